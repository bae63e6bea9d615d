"""
New workers take the place of old ones, and nobody loses a session.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ProcessDone, ProcessTerminated

from pop3svc.policy import Policy
from pop3svc.service.workers import LEAVE, UP, Shared, Supervisor
from pop3svc.service.workers import PATIENCE as MORE
from tests.support.running import PATIENCE, Connection, Running, freePort
from tests.support.site import options, site  # noqa: F401
from tests.support.supervisors import Reactor, died, supervisor


def replace(made: Supervisor) -> list[Any]:
    """
    @return: a list that gets the result.
    """
    results: list[Any] = []
    Deferred.fromCoroutine(made.replaceWorkers()).addBoth(results.append)
    return results


def serve(worker: Any) -> None:
    worker._received(UP, b"null")


def told(worker: Any) -> bool:
    return LEAVE + b"null\n" in worker.transport.written


def test_oneAfterTheOther() -> None:
    """
    An old worker ends when its successor serves, and not before.  The old worker is not restarted.
    """
    reactor = Reactor()
    made = supervisor(reactor, 2)
    one, two = reactor.started
    results = replace(made)
    _, _, three, four = reactor.started
    assert [each.number for each in reactor.started] == [1, 2, 3, 4]
    assert not told(one) and not told(two)
    serve(three)
    assert told(one) and not told(two) and not results
    serve(four)
    assert told(two) and results == [None]
    assert [each.number for each in made.serving] == [1, 2, 3, 4]
    died(one, ProcessDone(0))
    died(two, ProcessTerminated(None, signal.SIGSEGV))
    reactor.advance(100)
    assert len(reactor.started) == 4
    # A worker that has replaced another one is restarted if it dies.
    died(three)
    reactor.advance(1)
    assert reactor.started[-1].number == 3


def test_theNewOneCannotServe() -> None:
    """
    If a new worker cannot serve, its old worker goes on, and the operator is told why.
    """
    reactor = Reactor()
    made = supervisor(reactor, 2)
    one, two = reactor.started
    results = replace(made)
    three, four = reactor.started[2:]
    serve(four)
    three.childDataReceived(2, b"pop3svc: no such store\n")
    died(three)
    [failure] = results
    assert failure.getErrorMessage() == (
        "the old worker 1 goes on, because the new one pop3svc: no such store"
    )
    assert not told(one) and told(two)
    reactor.advance(100)
    assert len(reactor.started) == 4
    # The next attempt replaces worker 1, and worker 4.
    results = replace(made)
    assert [each.number for each in reactor.started[4:]] == [5, 6]
    for each in reactor.started[4:]:
        serve(each)
    assert results == [None]
    assert told(one) and told(four)


def test_restartedAfterARefusedReload() -> None:
    """
    A worker that takes the place of a dead one gets the text of the configuration file with which
    a worker has served, and not the text with which no worker could serve.
    """

    def textOf(worker: Any) -> Any:
        return Shared(*json.loads(worker.transport.written[0])).config

    reactor = Reactor()
    made = supervisor(reactor, 1)
    [old] = reactor.started
    made._config = lambda: "bad"
    results = replace(made)
    assert textOf(reactor.started[-1]) == "bad"
    died(reactor.started[-1])
    assert len(results) == 1
    died(old)
    reactor.advance(1)
    assert textOf(reactor.started[-1]) is None
    # If no worker serves any more, the next reload decides.
    died(reactor.started[-1])
    made._config = lambda: "good"
    replace(made)
    reactor.advance(5)
    assert textOf(reactor.started[-1]) == "good"


def test_noMemoryForNewOnes() -> None:
    reactor = Reactor()
    made = supervisor(reactor, 1)
    reactor.fails = True
    [failure] = replace(made)
    assert "cannot be started: Cannot allocate memory" in failure.getErrorMessage()
    assert not told(reactor.started[0])


def test_neverServes() -> None:
    """
    A new worker that hangs is killed, and the old one goes on.
    """
    reactor = Reactor()
    made = supervisor(reactor, 1)
    results = replace(made)
    _, two = reactor.started
    reactor.advance(Policy().workerStartTimeout)
    assert two.transport.signals == ["KILL"]
    died(two, ProcessTerminated(None, signal.SIGKILL))
    assert "died by SIGKILL" in results[0].getErrorMessage()


def test_theOldOneDiesMeanwhile() -> None:
    """
    If an old worker dies, its successor still serves.  A successor that cannot serve is restarted.
    """
    reactor = Reactor()
    made = supervisor(reactor, 1)
    results = replace(made)
    one, two = reactor.started
    died(one)
    reactor.advance(5)
    assert len(reactor.started) == 2
    died(two)
    assert results[0].check(ValueError)
    reactor.advance(1)
    assert [each.number for each in reactor.started] == [1, 2, 2]
    serve(reactor.started[-1])
    assert not told(one)


def test_twoReloadsAtOnce() -> None:
    reactor = Reactor()
    made = supervisor(reactor, 1)
    first, second = replace(made), replace(made)
    assert len(reactor.started) == 2
    serve(reactor.started[1])
    assert first == [None] and not second
    assert len(reactor.started) == 3
    serve(reactor.started[2])
    assert second == [None]
    assert told(reactor.started[1])


def test_nobodyWaitsForTheReload() -> None:
    """
    If the operator cancels a reload, the replacement goes on.  The next replacement waits for it,
    so that there are never more than twice as many workers as configured.
    """
    reactor = Reactor()
    made = supervisor(reactor, 2)
    made.reloads("the workers", made.replaceWorkers)
    asked = Deferred.fromCoroutine(made.reload("by pop3svc reload"))
    asked.addErrback(lambda failure: failure.trap(CancelledError))
    asked.cancel()
    results = replace(made)
    assert len(reactor.started) == 4
    for each in reactor.started[2:4]:
        serve(each)
    assert all(told(each) for each in reactor.started[:2])
    assert [each.number for each in reactor.started] == [1, 2, 3, 4, 5, 6]
    for each in reactor.started[4:]:
        serve(each)
    assert results == [None]
    assert not any(told(each) for each in reactor.started[4:])


def test_stubborn() -> None:
    """
    An old worker that does not end is killed after a limited time.
    """
    reactor = Reactor()
    made = supervisor(reactor, 1)
    replace(made)
    one, two = reactor.started
    serve(two)
    policy = Policy()
    seconds = policy.drainTimeout + policy.shutdownTimeout + policy.answerTimeout + MORE
    reactor.advance(seconds - 1)
    assert one.transport.signals == []
    reactor.advance(1)
    assert (one.transport.signals, two.transport.signals) == (["KILL"], [])


def test_notWhileItStops() -> None:
    reactor = Reactor()
    made = supervisor(reactor, 1)
    made.stopService()
    assert replace(made) == [None]
    assert len(reactor.started) == 1


# --- end to end -----------------------------------------------------------------------------


class Load:
    """
    Clients that poll until L{stop} is called.  The clients share a thread.

    @ivar faults: what went wrong.
    @ivar commands: how many commands were answered.
    """

    def __init__(self, port: int, count: int) -> None:
        self.port = port
        self.faults: list[str] = []
        self.commands = 0
        self.isOver = False
        self.thread = threading.Thread(target=lambda: asyncio.run(self._all(count)))
        self.thread.start()

    async def _all(self, count: int) -> None:
        polls = [self._poll(f"user{number}", random.Random(number)) for number in range(count)]
        for error in await asyncio.gather(*polls, return_exceptions=True):
            if error is not None:
                self.faults.append(repr(error))

    async def _poll(self, name: str, chance: random.Random) -> None:
        while not self.isOver:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            script = ["NOOP", "STAT", "SLEE", "WAKE"] * chance.randrange(1, 4)
            for command in ["", f"USER {name}", "PASS secret", *script, "QUIT"]:
                if command:
                    writer.write(f"{command}\r\n".encode())
                reply = await asyncio.wait_for(reader.readline(), PATIENCE)
                if not reply.startswith(b"+OK"):
                    self.faults.append(f"{name} {command}: {reply!r}")
                    break
                self.commands += 1
            writer.close()

    def stop(self) -> None:
        self.isOver = True
        self.thread.join()


def ended(running: Running) -> set[int]:
    """
    @return: the workers that have ended so far.
    """
    said = re.compile(r"worker (\d+) has ended after its last session")
    return {int(found[1]) for line in running.lines if (found := said.search(line))}


def test_underLoad(tmp_path: Path) -> None:
    """
    Two reloads under the load of 200 clients: no command fails, and a sleeper wakes up.
    """
    port, file = freePort(), tmp_path / "c.toml"
    users = "".join(f"user{number}:{{PLAIN}}secret\n" for number in range(200))
    (tmp_path / "users").write_text(users + "asleep:{PLAIN}secret\n")
    (tmp_path / "users").chmod(0o600)
    for number in range(200):
        (tmp_path / "mail" / f"user{number}").mkdir(parents=True)
    text = f"""
        data = "{tmp_path}/data"
        workers = 2
        [limits]
        drainTimeout = 3000
        [[listener]]
        endpoint = "tcp:{port}:interface=127.0.0.1"
        [[store]]
        kind = "maildir"
        path = "{tmp_path}/mail/{{user}}"
        auth = ["passwd:{tmp_path}/users"]
        """
    file.write_text(text)
    with Running(tmp_path / "home", "--config", str(file)) as running:
        for _ in range(2):
            running.waitFor("serves")
        asleep = Connection(port)
        asleep.line()
        asleep.logIn(b"asleep", b"secret")
        assert asleep.say(b"SLEE").startswith(b"+OK")
        load = Load(port, 200)
        try:
            for number in (3, 5):
                file.write_text(f'without = ["CORE"]\n{text}' if number == 3 else text)
                running.process.send_signal(signal.SIGHUP)
                running.waitFor("reloaded after SIGHUP")
            while len(ended(running)) < 3:
                running.waitFor("has ended after its last session")
        finally:
            load.stop()
        assert load.faults == []
        assert load.commands > 1000
        # One of the first two workers still has the sleeper.
        assert ended(running) in ({1, 3, 4}, {2, 3, 4})
        reply = asleep.say(b"WAKE")
        assert reply.startswith(b"+OK"), [each for each in running.lines if "asleep" in each]
        assert asleep.say(b"QUIT").startswith(b"+OK")
        asleep.socket.close()
        running.waitFor("has ended after its last session")
        assert running.end(signal.SIGTERM) == 0
    assert not any("Traceback" in line for line in running.lines)


def test_sleepersEnd(site: Path, tmp_path: Path) -> None:  # noqa: F811
    """
    After C{drainTimeout} an old worker ends, and ends the sessions that it still has.
    """
    port = freePort()
    listen = ("--endpoint", f"tcp:{port}:interface=127.0.0.1", "--set", "drainTimeout=1")
    with Running(tmp_path, *options(site, "--workers", "2", *listen)) as running:
        for _ in range(2):
            running.waitFor("serves")
        asleep = Connection(port)
        asleep.line()
        asleep.logIn(b"alice", b"secret word")
        asleep.say(b"SLEE")
        running.process.send_signal(signal.SIGHUP)
        assert asleep.line() == b""
        running.waitFor("alice from 127.0.0.1")
        assert running.end(signal.SIGTERM) == 0


def test_newCode(tmp_path: Path) -> None:
    """
    New workers run the code that is installed when they start.
    """
    port = freePort()
    module = tmp_path / "upgraded.py"

    def install(version: str) -> None:
        module.write_text(
            "from pop3svc.providers.memory import MemoryProvider\n"
            "provider = MemoryProvider({})\n"
            f"provider.name = {version!r}\n"
        )
        # The stamp of the file must change, because Python compares it with the compiled code.
        os.utime(module, (len(version), len(version)))

    install("one")
    listen = ("--endpoint", f"tcp:{port}:interface=127.0.0.1", "--workers", "2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        with Running(tmp_path / "home", "--provider", "upgraded.provider", *listen) as running:
            for _ in range(2):
                running.waitFor("serves")
            old = Connection(port)
            assert b"one ready" in old.line()
            install("three")
            running.process.send_signal(signal.SIGHUP)
            running.waitFor("reloaded after SIGHUP")
            seen = b""
            while b"three ready" not in seen:
                client = Connection(port)
                seen = client.line()
                client.socket.close()
            assert old.say(b"NOOP").startswith(b"-ERR")
            old.socket.close()
            assert running.end(signal.SIGTERM) == 0
