"""
Accepting pauses when file descriptors run out.
"""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock

from pop3svc.service import accepting
from pop3svc.service.accepting import AcceptLimiter
from tests.support.maildirs import deliver
from tests.support.running import Connection, Running, freePort


class Port:
    """
    What is asked of a port.
    """

    def __init__(self) -> None:
        self.isReading = True
        self.numberAccepts = 100

    def doRead(self) -> None:
        pass

    def stopReading(self) -> None:
        self.isReading = False

    def startReading(self) -> None:
        self.isReading = True


@pytest.mark.parametrize(("takesTurns", "each"), [(True, 1), (False, 12)])
def test_fewAtATime(monkeypatch: pytest.MonkeyPatch, takesTurns: bool, each: int) -> None:
    """
    Not more than there are descriptors for, or one at a time where there are
    other processes, however many Twisted would take next.
    """
    # However many this process has open.
    monkeypatch.setattr(accepting, "_openNow", lambda: 10)
    took = []

    class Busy(Port):
        def doRead(self) -> None:
            took.append(self.numberAccepts)
            self.numberAccepts += 20

    port: Any = Busy()
    pauser = AcceptLimiter(Clock(), limit=100, takesTurns=takesTurns)
    pauser.add(port)
    port.doRead()
    port.doRead()
    assert took == [each, each]


def test_pausesAndGoesOn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepting, "_openNow", lambda: 10)
    clock, port = Clock(), Port()
    pauser = AcceptLimiter(clock, limit=100)
    pauser.add(port)
    free: Any = 74
    looked = []
    monkeypatch.setattr(accepting, "_lowestFree", lambda: (looked.append(free), free)[1])

    def accepted() -> None:
        # Of 25 that are kept, three may come without a look.
        before = len(looked)
        for _ in range(4):
            assert len(looked) == before
            pauser.accepted()

    accepted()
    assert looked == [74]
    assert port.isReading and not clock.getDelayedCalls()
    for free in (75, None):
        accepted()
        pauser.accepted()
        assert not port.isReading and len(clock.getDelayedCalls()) == 1
        # Not at the first that is free again, or it would never hold still.
        for free in (None, 75, 70):
            clock.advance(AcceptLimiter.LOOK)
            assert not port.isReading
        free = 68
        clock.advance(AcceptLimiter.LOOK)
        assert port.isReading and not clock.getDelayedCalls()
    free = 75
    accepted()
    pauser.stop()
    assert not clock.getDelayedCalls()


def test_lowestFree() -> None:
    lowest = accepting._lowestFree()
    assert lowest is not None
    taken = os.open(os.devnull, os.O_RDONLY)
    try:
        assert taken == lowest
        assert accepting._lowestFree() not in (lowest, None)
    finally:
        os.close(taken)


def test_whoComesWaits(tmp_path: Path) -> None:
    """
    With more clients than descriptors nobody is cut off: who is in is served,
    and who waits gets in when others leave.
    """
    port = freePort()
    with Running(
        tmp_path / "home", "--endpoint", f"tcp:{port}:interface=127.0.0.1:backlog=200"
    ) as running:
        # Long before it looks: it imports Twisted first.
        resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE, (100, 100))
        running.up()
        login = (running.home / ".local/share/pop3svc/demo.netrc").read_text().split()
        password = login[login.index("password") + 1].encode()
        # All at once: as many as a port would take in one turn, and more.
        running.process.send_signal(signal.SIGSTOP)
        clients = [Connection(port) for _ in range(120)]
        running.process.send_signal(signal.SIGCONT)
        running.waitFor("not accepting connections")
        assert clients[0].line().startswith(b"+OK")
        clients[0].logIn(b"demo", password)
        assert clients[0].say(b"RETR 1").startswith(b"+OK")
        assert clients[0].lines()
        for each in clients[1:]:
            # Also those who were behind: each in its turn.
            assert each.line().startswith(b"+OK")
            assert each.say(b"QUIT").startswith(b"+OK")
            each.socket.close()
        running.waitFor("accepting connections again")
        assert clients[0].say(b"QUIT").startswith(b"+OK")
        clients[0].socket.close()


def test_loginsThatCanBeServed(tmp_path: Path) -> None:
    """
    With 900 clients and 1,024 descriptors whoever is let in is served, all at once.
    """
    port = freePort()
    mail = tmp_path / "mail"
    names = [f"user{number}" for number in range(900)]
    (tmp_path / "users").write_text("".join(f"{name}:{{PLAIN}}secret\n" for name in names))
    for name in names:
        deliver(mail / name, "1.x", (b"x" * 998 + b"\n") * 600)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    with Running(
        tmp_path / "home",
        *("--provider", f"maildir:{mail}", "--auth", f"passwd:{tmp_path / 'users'}"),
        *("--endpoint", f"tcp:{port}:interface=127.0.0.1", "--set", "closeTimeout=1"),
    ) as running:
        resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE, (300, 1024))
        running.up()
        assert resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE) == (1024, 1024)
        clients = [Connection(port) for _ in names]
        let, refused = [], 0
        for name, client in zip(names, clients):
            client.socket.sendall(b"XLOG %s secret\r\n" % name.encode())
        for client in clients:
            client.socket.settimeout(1)
            try:
                assert client.line().startswith(b"+OK")
                said = client.line()
            except TimeoutError:
                # In the kernel's queue, as all behind it.
                break
            if said.startswith(b"+OK"):
                let.append(client)
            else:
                assert said.startswith(b"-ERR [SYS/TEMP]"), said
                refused += 1
        assert len(let) > 30 and refused
        for client in let:
            client.socket.settimeout(60)
            client.socket.sendall(b"RETR 1\r\n")
        # None has read yet, so that all messages are open.
        for client in let:
            assert client.line().startswith(b"+OK")
        for client in let:
            assert len(client.lines()) == 600
        assert any("refusing logins: the limit of 1024 file" in each for each in drained(running))
        for each in clients:
            each.socket.close()


def drained(running: Running) -> list[str]:
    running.waitFor("refusing logins")
    return running.lines


def test_promised() -> None:
    """
    What those who are in may need is kept for them, by logins and by accepting.
    """
    inUse = (0, 0)
    pauser = AcceptLimiter(Clock(), limit=1000, inUse=lambda: inUse)
    port = Port()
    pauser.add(port)
    pauser._atFirst = 8
    for inUse, may in (((0, 0), True), ((400, 138), True), ((400, 139), True), ((400, 140), False)):
        assert pauser.mayServe() is may, inUse
    inUse = (300, 140)
    for _ in range(pauser._mayBeUnseen + 1):
        pauser.accepted()
    assert not port.isReading


def test_raiseLimit(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    To the hard limit, and where there is none to a number that is enough.
    """
    wanted: list[Any] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: wanted.append(limits))
    for limits in ((1024, 4096), (4096, 4096), (1024, -1), (-1, -1)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limits=limits: limits)
        accepting.raiseLimit()
    assert wanted == [(4096, 4096), (1_048_576, -1)]
