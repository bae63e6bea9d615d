"""
Workers: several processes on the same ports.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.logger import LogEvent, Logger, LogLevel, formatEvent, globalLogPublisher
from twisted.python.failure import Failure

from pop3svc.policy import Policy
from pop3svc.service.worker import _Parent
from pop3svc.service.workers import BEAT, BEAT_EVERY, EVENT, UP, Lines, Outbox
from pop3svc.service.workers import PATIENCE as MORE
from tests.support.maildirs import deliver
from tests.support.running import (
    PATIENCE,
    Connection,
    Running,
    forEverybody,
    freePort,
    script,
)
from tests.support.site import options, run, served, trusting
from tests.support.supervisors import Reactor, Transport, died, supervisor
from tests.support.workers import Site, begun, mayRunHere


@pytest.fixture
def workers(site: Path, tmp_path: Path) -> Iterator[Site]:
    yield from begun(site, tmp_path / "home")


def hasEnded(pid: int) -> bool:
    """
    Wait for the end of a process that is not a child of this process.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], PATIENCE)[0])
    finally:
        os.close(descriptor)


@pytest.mark.smoke
def test_bothServe(workers: Site) -> None:
    """
    Both workers accept connections, and the log names the worker of each connection.
    """
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in workers.pids.values():
            os.kill(pid, number)
        if number == signal.SIGSTOP:
            # These connections wait until both workers run again, so that both accept some.
            workers.open += [Connection(workers.port) for _ in range(120)]
    for each in workers.open:
        assert each.line().startswith(b"+OK")
    accepted = Counter(workers.workersOf(*workers.open))
    assert min(accepted[1], accepted[2]) >= 5, accepted
    for number in (1, 2):
        workers.connectTo(number).socket.close()
        workers.running.waitFor(f"[pop3svc#info worker {number}] nobody from 127.0.0.1 (no TLS)")
    assert workers.end() == 0
    assert not any("Traceback" in line for line in workers.running.lines)
    assert all(hasEnded(pid) for pid in workers.pids.values())


def test_killedWorker(workers: Site, site: Path) -> None:
    """
    If a worker is killed, its locks are free, the other worker goes on, and a new worker starts.
    """
    first, second = workers.connectTo(1), workers.connectTo(2)
    assert first.say(b"XLOG alice secret word").startswith(b"+OK")
    assert second.say(b"XLOG alice secret word").startswith(b"-ERR [IN-USE]")
    killed = workers.pids[1]
    os.kill(killed, signal.SIGKILL)
    assert hasEnded(killed)
    assert second.say(b"XLOG alice secret word").startswith(b"+OK")
    assert second.say(b"QUIT").startswith(b"+OK")
    said = workers.running.waitFor("worker 1 ")
    assert said.endswith("worker 1 died by SIGKILL; restarting it in 1 s")
    assert workers.waitForWorker() == 1
    assert workers.pids[1] != killed
    assert workers.connectTo(1).say(b"XLOG alice secret word").startswith(b"+OK")
    assert workers.end() == 0


def test_sleeperInAnotherWorker(workers: Site, site: Path) -> None:
    """
    A login never waits for a sleeper of another worker, and the sleeper misses no change.
    """
    for name in ("1.x", "2.x"):
        deliver(site / "mail" / "alice", name)
    first, second = workers.connectTo(1), workers.connectTo(2)
    assert first.say(b"XLOG alice secret word").startswith(b"+OK")
    for left in (1, 0):
        assert first.say(b"SLEE").startswith(b"+OK")
        assert second.say(b"XLOG alice secret word").startswith(b"+OK")
        assert second.say(b"DELE 1").startswith(b"+OK")
        assert first.say(b"WAKE").startswith(b"-ERR [IN-USE]")
        assert second.say(b"QAUT").startswith(b"+OK")
        assert first.say(b"WAKE").startswith(b"+OK [ACTIVITY/NONE]")
        assert first.say(b"STAT").startswith(b"+OK %d " % left)
    assert first.say(b"SLEE").startswith(b"+OK")
    assert second.say(b"XLOG alice secret word").startswith(b"+OK")
    os.kill(workers.pids[2], signal.SIGKILL)
    assert hasEnded(workers.pids[2])
    assert first.say(b"WAKE").startswith(b"+OK [ACTIVITY/NONE]")
    assert first.say(b"SLEE").startswith(b"+OK")
    # A worker that is killed while a session sleeps leaves no lock either.
    assert workers.waitForWorker() == 2
    os.kill(workers.pids[1], signal.SIGKILL)
    assert workers.connectTo(2).say(b"XLOG alice secret word").startswith(b"+OK")
    assert workers.waitForWorker() == 1
    assert workers.end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_drains(site: Path, tmp_path: Path, number: int) -> None:
    """
    When the service stops, a client still receives the rest of its message, and an idle session
    ends.
    """
    # A busy machine needs more than the default time for ten megabytes.
    for workers in begun(site, tmp_path / "home", "--set", "shutdownTimeout=50"):
        drains(workers, site, number)


def drains(workers: Site, site: Path, number: int) -> None:
    message = deliver(site / "mail" / "alice", "1.big", b"x" * 998 + b"\n" + b"y\n" * 5_000_000)
    busy, idle = workers.connectTo(1), workers.connectTo(2)
    assert idle.say(b"XLOG bob secret word").startswith(b"+OK")
    assert busy.say(b"XLOG alice secret word").startswith(b"+OK")
    assert busy.say(b"RETR 1").startswith(b"+OK")
    assert busy.line() == b"x" * 998 + b"\r\n"
    workers.running.process.send_signal(number)
    assert idle.line() == b""
    while True:
        try:
            Connection(workers.port).socket.close()
        except ConnectionResetError:
            # This connection was in the queue when the ports were closed.
            pass
        except ConnectionRefusedError:
            break
    rest = b""
    while data := busy.socket.recv(1_048_576):
        rest = rest[-10:] + data
    assert rest.endswith(b"y\r\n.\r\n")
    assert workers.running.end() == 0
    assert not any("Traceback" in line for line in workers.running.lines)
    # The last lines of a worker are in the log, too.
    assert any("alice from 127.0.0.1" in line for line in workers.running.lines)
    message.unlink()


def test_parentKilled(workers: Site) -> None:
    idle = [workers.connectTo(number) for number in (1, 2)]
    for each, name in zip(idle, (b"alice", b"bob")):
        assert each.say(b"XLOG " + name + b" secret word").startswith(b"+OK")
    workers.running.process.kill()
    assert [each.line() for each in idle] == [b"", b""]
    assert all(hasEnded(pid) for pid in workers.pids.values())
    with pytest.raises(ConnectionRefusedError):
        Connection(workers.port)


HEADER = b"PROXY TCP4 192.0.2.%d 192.0.2.200 5000 110\r\n"


def test_bans(site: Path, tmp_path: Path) -> None:
    """
    The strikes of all workers count together.  A worker that is started later knows the bans, and
    the known networks of users.
    """
    more = ["--proxy-from", "127.0.0.1", "--cleartext-login", "always"]
    for workers in begun(site, tmp_path / "home", *more):
        connection = workers.connectTo(1, HEADER % 9)
        assert connection.say(b"XLOG bob secret word").startswith(b"+OK")
        connection.socket.close()
        for number, guess in ((1, b"one"), (2, b"two"), (2, b"one"), (1, b"three")):
            connection = workers.connectTo(number, HEADER % 7)
            said = connection.say(b"XLOG alice " + guess)
            assert said == b"-ERR [AUTH] Wrong name or password.\r\n"
        assert workers.running.waitFor("banned 192.0.2.7 for 10000 s after 3 failed logins")
        for number in (2, 1):
            connection = workers.connectTo(number, HEADER % 7)
            assert connection.say(b"XLOG alice secret word").startswith(b"-ERR [AUTH]")
        os.kill(workers.pids[2], signal.SIGKILL)
        assert workers.waitForWorker() == 2
        connection = workers.connectTo(2, HEADER % 7)
        assert connection.say(b"XLOG alice secret word").startswith(b"-ERR [AUTH]")
        assert connection.say(b"XLOG bob secret word").startswith(b"+OK")
        assert workers.end() == 0
        refused = [line for line in workers.running.lines if "refused a login" in line]
        assert len(refused) == 1


def test_knownNetworksSurviveARestart(site: Path, tmp_path: Path) -> None:
    """
    Known networks survive a restart, whichever worker saw the login.  The parent stores them, and
    all workers read them.
    """
    more = ["--proxy-from", "127.0.0.1", "--cleartext-login", "always"]
    more += ["--data", str(tmp_path / "data"), "--set", "banStrikes=1"]
    for workers in begun(site, tmp_path / "home", *more):
        for number, name in ((1, b"alice"), (2, b"bob")):
            connection = workers.connectTo(number, HEADER % (7 + number))
            assert connection.say(b"XLOG " + name + b" secret word").startswith(b"+OK")
        assert workers.end() == 0
        assert not any("forgotten" in line for line in workers.running.lines)
    for workers in begun(site, tmp_path / "home", *more):
        for number in (1, 2):
            connection = workers.connectTo(number, HEADER % number)
            assert connection.say(b"XLOG nobody x").startswith(b"-ERR [AUTH]")
            for name in (b"alice", b"bob"):
                connection = workers.connectTo(3 - number, HEADER % number)
                assert connection.say(b"XLOG " + name + b" secret word").startswith(b"+OK")
                connection.say(b"QUIT")
            connection = workers.connectTo(number, HEADER % number)
            assert connection.say(b"XLOG carol secret word").startswith(b"-ERR [AUTH]")
        assert workers.end() == 0


def test_loginDelay(site: Path, tmp_path: Path) -> None:
    for workers in begun(site, tmp_path / "home", "--set", "loginDelay=3600"):
        first, second = workers.connectTo(1), workers.connectTo(2)
        assert first.say(b"XLOG alice secret word").startswith(b"+OK")
        assert first.say(b"QUIT").startswith(b"+OK")
        # A refusal takes a second.  By then the second worker knows of the first login.
        assert second.say(b"XLOG bob wrong").startswith(b"-ERR [AUTH]")
        assert second.say(b"XLOG alice secret word").startswith(b"-ERR [LOGIN-DELAY]")
        assert second.say(b"XLOG bob secret word").startswith(b"+OK")


def test_takenOver(site: Path, tmp_path: Path) -> None:
    """
    An idle session makes room for a session of another worker.
    """
    for workers in begun(site, tmp_path / "home", "--set", "takeoverIdle=1"):
        first, second = workers.connectTo(1), workers.connectTo(2)
        assert first.say(b"XLOG bob secret word").startswith(b"+OK")
        while not (said := second.say(b"XLOG bob secret word")).startswith(b"+OK"):
            assert said.startswith(b"-ERR [IN-USE]")
        workers.running.waitFor("made room for another session")
        assert first.line() == b""


def test_embeddedDefault(tmp_path: Path) -> None:
    """
    The embedded default with workers makes and announces its files once, and stores known networks.
    """
    home, port = tmp_path / "home", freePort()
    with Running(
        home, "--workers", "2", "--endpoint", f"tcp:{port}:interface=127.0.0.1"
    ) as running:
        workers = Site(running, port)
        data = home / ".local" / "share" / "pop3svc"
        password = (data / "demo.netrc").read_text().split()[-1].encode()
        for number in (1, 2):
            connection = workers.connectTo(number)
            assert connection.say(b"XLOG demo " + password).startswith(b"+OK")
            assert connection.say(b"STAT").startswith(b"+OK 1 ")
            assert connection.say(b"QUIT").startswith(b"+OK")
        assert workers.end() == 0
    for text in ("made a self-signed certificate", "the user demo has a message", "read it:"):
        assert sum(text in line for line in running.lines) == 1
    with sqlite3.connect(data / "state.db") as database:
        users = database.execute("SELECT DISTINCT user FROM network").fetchall()
    assert users == [(b"demo",)]


def test_daemon(site: Path, tmp_path: Path) -> None:
    """
    In the background all workers write to one log, and the service ends completely.
    """
    home, port = tmp_path / "home", freePort()
    command = [script("twistd"), "--pidfile=pid", "--logfile=log", "pop3svc", "--workers", "2"]
    ended = run([*command, *options(site, "--endpoint", f"tcp:{port}:interface=127.0.0.1")], home)
    assert (ended.returncode, ended.stderr) == (0, "")
    parent = int((home / "pid").read_text())
    try:
        # A client that comes before the workers serve must wait.
        connection = Connection(port)
        assert connection.line().startswith(b"+OK")
        assert connection.say(b"XLOG bob secret word").startswith(b"+OK")
        assert connection.say(b"QUIT").startswith(b"+OK")
    finally:
        os.kill(parent, signal.SIGTERM)
    assert hasEnded(parent)
    log = (home / "log").read_text()
    assert re.search(r"\[pop3svc#info worker [12]\] bob from 127.0.0.1", log)
    assert log.count("without --data, a restart forgets the networks") == 1
    assert "Traceback" not in log
    assert not (home / "pid").exists()


def test_tls(site: Path, tmp_path: Path) -> None:
    """
    Workers serve every kind of endpoint with implicit TLS, and STLS.
    """
    ports = [freePort() for _ in range(3)]
    for workers in begun(
        site,
        tmp_path / "home",
        *("--endpoint", f"ssl:{ports[0]}", "--tls-endpoint", f"tcp:{ports[1]}"),
        *(
            "--endpoint",
            f"ssl:{ports[2]}:privateKey={site / 'key.pem'}:certKey={site / 'cert.pem'}",
        ),
    ):
        for port in ports:
            assert served(port)
        connection = Connection(workers.port)
        connection.line()
        assert connection.say(b"STLS").startswith(b"+OK")
        connection.startTLS(trusting(site))
        assert connection.say(b"NOOP").startswith(b"-ERR")


def test_keyThatCannotBeRead(site: Path, tmp_path: Path) -> None:
    """
    A worker that is started later gets the key from the parent.
    """
    shutil.copytree(site, tmp_path / "site")
    for workers in begun(tmp_path / "site", tmp_path / "home"):
        (tmp_path / "site" / "key.pem").unlink()
        os.kill(workers.pids[1], signal.SIGKILL)
        assert workers.waitForWorker() == 1
        connection = workers.connectTo(1)
        assert connection.say(b"STLS").startswith(b"+OK")
        connection.startTLS(trusting(site))
        assert connection.say(b"XLOG bob secret word").startswith(b"+OK")


@pytest.mark.skipif(not mayRunHere(), reason="another user cannot run this Python")
def test_dropsPrivileges(site: Path) -> None:
    """
    A worker that is started later serves with a key that it cannot read.
    """
    with forEverybody() as path:
        own = path / "site"
        shutil.copytree(site, own)
        for each in [own, own / "mail", own / "mail" / "bob", own / "users"]:
            os.chown(each, 65534, 65534)
        (own / "key.pem").chmod(0o600)
        port, secure = freePort(), freePort()
        with Running(
            path / "home",
            *options(own, "--workers", "2", "--endpoint", f"tcp:{port}:interface=127.0.0.1"),
            *("--endpoint", f"ssl:{secure}"),
            twistd=("--uid=65534", "--gid=65534"),
        ) as running:
            servesWithoutPrivileges(Site(running, port), site)


def servesWithoutPrivileges(workers: Site, site: Path) -> None:
    os.kill(workers.pids[1], signal.SIGKILL)
    assert workers.waitForWorker() == 1
    for number in (1, 2):
        assert "Uid:\t65534" in Path(f"/proc/{workers.pids[number]}/status").read_text()
        connection = workers.connectTo(number)
        assert connection.say(b"STLS").startswith(b"+OK")
        connection.startTLS(trusting(site))
        assert connection.say(b"XLOG bob secret word").startswith(b"+OK")
        assert connection.say(b"QUIT").startswith(b"+OK")
    assert workers.end() == 0


BAD: dict[str, tuple[list[str], list[str], str]] = {
    "none": ([], ["--workers", "0"], "--workers 0: must be a whole number"),
    "no number": ([], ["--workers", "x"], "--workers x: must be a whole number"),
    "too many": ([], ["--workers", "1000"], "--workers 1000: must be a whole number"),
    "chroot": (["--chroot=."], ["--workers", "2"], "--workers cannot be used with --chroot"),
    "another": ([], ["--workers", "2", "--provider", "nonsense:x"], "there is no provider"),
}


def test_cannotBegin(site: Path, tmp_path: Path) -> None:
    """
    If no worker can start, the service ends with one sentence and exit status 1, because clients
    would wait forever.
    """
    home = tmp_path / "home"
    home.mkdir()
    (home / "mine.py").write_text(
        "import sys\n"
        "from pop3svc.providers.memory import MemoryProvider\n"
        "def make():\n"
        "    if '-m' in sys.argv or 'worker' in sys.argv[0]:\n"
        "        raise ValueError('not here')\n"
        "    return MemoryProvider({'alice': 'secret'}, [b'x: y'])\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(home))
        command = [script("twistd"), "-n", "--pidfile=pid", "pop3svc", "--provider", "mine.make"]
        where = ["--endpoint", f"tcp:{freePort()}:interface=127.0.0.1", "--workers", "2"]
        ended = run([*command, *where], home)
    assert ended.returncode == 1, ended
    assert ended.stderr == (
        "pop3svc: no worker can serve; last output: pop3svc: --provider mine.make: not here\n"
    )
    assert not (home / "pid").exists()


@pytest.mark.parametrize("case", BAD)
def test_badOptions(tmp_path: Path, case: str) -> None:
    """
    A wrong option ends the service with one sentence and exit status 1, before a worker is started.
    """
    twistd, wrong, says = BAD[case]
    home = tmp_path / "home"
    ended = run([script("twistd"), "-n", "--pidfile=", *twistd, "pop3svc", *wrong], home)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("pop3svc: ")
    assert says in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not (home / "x").exists()


# --- in memory --------------------------------------------------------------


def test_partThatDoesNotStart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The supervisor names the fault of a store that fails when it is started.
    """
    (tmp_path / "failing.py").write_text(
        "from twisted.application.service import Service\n"
        "from pop3svc.providers.memory import MemoryStore\n"
        "class Store(Service, MemoryStore):\n"
        "    name = 'failing'\n"
        "    def __init__(self):\n"
        "        MemoryStore.__init__(self, [])\n"
        "    def startService(self):\n"
        "        raise RuntimeError('the disk is away')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    options = (
        *("--endpoint", f"tcp:{freePort()}:interface=127.0.0.1", "--workers", "2"),
        *("--provider", "failing.Store", "--auth", "memory:a:b"),
    )
    with Running(tmp_path / "home", *options) as running:
        assert running.end() == 1
    text = "no worker can serve; last output: RuntimeError: the disk is away"
    assert f"pop3svc: {text}" in running.lines


def test_noneServes(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """
    If no worker has ever served, the service ends when the last worker has ended, and names its
    last output.
    """
    statuses: list[Any] = []
    monkeypatch.setattr("atexit.register", lambda *call: statuses.append(call))
    reactor = Reactor()
    supervisor(reactor, 2, False)
    first, second = reactor.started
    died(first)
    assert not reactor.stopped
    second.processExited(Failure(ProcessTerminated(1)))
    second.childDataReceived(2, b"Traceback\nPermissionError: no\x1b")
    assert not reactor.stopped
    second.processEnded(Failure(ProcessTerminated(1)))
    assert reactor.stopped == 1
    assert statuses == [(os._exit, 1)]
    assert capfd.readouterr().err == (
        "pop3svc: no worker can serve; last output: PermissionError: no\\x1b\n"
    )


def test_noneIsStarted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atexit.register", lambda *call: None)
    reactor = Reactor()
    reactor.fails = True
    supervisor(reactor, 2, False)
    assert reactor.stopped == 1


def test_oneHasServed() -> None:
    """
    If a worker has served once, all workers that end are restarted, because the fault may pass.
    """
    reactor = Reactor()
    supervisor(reactor, 2)
    for each in list(reactor.started):
        died(each)
    reactor.advance(1)
    assert not reactor.stopped and len(reactor.started) == 4
    for each in reactor.started[2:]:
        died(each)
    assert not reactor.stopped


def test_neverBegins() -> None:
    """
    A worker that does not begin to serve within the limit is killed, and no other worker.
    """
    reactor = Reactor()
    supervisor(reactor, 2, False)
    first, second = reactor.started
    first._received(UP, b"null")
    reactor.advance(Policy().workerStartTimeout)
    assert (first.transport.signals, second.transport.signals) == ([], ["KILL"])


def test_backoff() -> None:
    """
    The pause before a restart grows up to 5 seconds, and is 1 second again after a longer life.
    """
    reactor = Reactor()
    supervisor(reactor)
    for delay in (1, 2, 4, 5, 5):
        count = len(reactor.started)
        died(reactor.started[-1])
        reactor.advance(delay - 0.01)
        assert len(reactor.started) == count
        reactor.advance(0.01)
        assert len(reactor.started) == count + 1
    reactor.advance(5.1)
    died(reactor.started[-1])
    reactor.advance(1)
    assert len(reactor.started) == 7


def test_stubborn() -> None:
    """
    When the service stops, a worker that does not end is killed after a limited time, and no worker
    is started any more.
    """
    reactor = Reactor()
    made = supervisor(reactor, 3)
    first, second, third = reactor.started
    died(third)
    ended: list[object] = []
    made.stopService().addCallback(ended.append)
    processes = [each.transport.signals for each in (first, second)]
    assert processes == [["TERM"], ["TERM"]]
    died(first, ProcessDone(0))
    reactor.advance(Policy().shutdownTimeout + Policy().answerTimeout + MORE)
    assert processes == [["TERM"], ["TERM", "KILL"]]
    assert not ended
    died(second, ProcessTerminated(None, signal.SIGKILL))
    assert ended
    assert len(reactor.started) == 3 and not reactor.getDelayedCalls()


def test_otherLimitsWhileItRuns() -> None:
    """
    When the service stops, workers get the time that the new limits give to sessions.
    """
    reactor = Reactor()
    made = supervisor(reactor)
    (only,) = reactor.started
    made.usePolicy(Policy(shutdownTimeout=500))
    made.stopService()
    reactor.advance(500 + Policy().answerTimeout)
    assert only.transport.signals == ["TERM"]
    reactor.advance(MORE)
    assert only.transport.signals == ["TERM", "KILL"]


def test_pipeHeldByAnother() -> None:
    """
    A service that stops does not wait forever for the last output of a worker.
    """
    reactor = Reactor()
    made = supervisor(reactor)
    ended: list[object] = []
    made.stopService().addCallback(ended.append)
    reactor.started[0].processExited(Failure(ProcessDone(0)))
    assert not ended
    reactor.advance(Policy().shutdownTimeout + Policy().answerTimeout + 2 * MORE)
    assert ended and not reactor.getDelayedCalls()


def test_outboxIsBounded() -> None:
    """
    While the other side does not read, the oldest lines are dropped.
    """
    transport = Transport()
    outbox = Outbox(transport)
    outbox.send(b"S", "0")
    outbox.pauseProducing()
    line = "x" * 998
    count = Outbox.BOUND // 1000
    for number in range(count + 5):
        outbox.send(b"S", f"{number:06}" + line[6:])
    assert transport.written == [b"S0\n"]
    outbox.resumeProducing()
    assert transport.written[1].startswith(b"S000005")
    assert len(transport.written) == count + 1
    outbox.send(b"L", '"' + "x" * Lines.MAX_LENGTH + '"')
    assert len(transport.written) == count + 1


def test_roomInTheOutbox() -> None:
    """
    A sender of many lines waits while the other side does not read.
    """
    outbox = Outbox(Transport())
    assert outbox.room() is None
    outbox.pauseProducing()
    first, second = outbox.room(), outbox.room()
    assert first is not None and second is not None
    first.addErrback(lambda failure: failure.trap(CancelledError))
    first.cancel()
    assert not second.called
    outbox.resumeProducing()
    assert second.called and outbox.room() is None


def test_largeEvents() -> None:
    """
    An event that is too long for a line is cut and sent.
    """
    told: list[tuple[bytes, str]] = []

    class Kept:
        def send(self, kind: bytes, text: str) -> None:
            told.append((kind, text))

    parent: Any = _Parent(None)
    parent._outbox = Kept()
    log: Any = Logger(namespace="pop3svc", observer=parent.observe)
    log.info("{name}", name="x" * 3_000_000)
    log.info("{each}", each=["y" * 3_000_000])
    assert [kind for kind, _ in told] == [EVENT, EVENT]
    for _, text in told:
        assert len(text) < Lines.MAX_LENGTH // 8
        assert "more characters" in json.loads(text)["text"]


# --- workers that hang ------------------------------------------------------------------


@pytest.fixture
def errors() -> Iterator[list[str]]:
    """
    The errors in the log.
    """
    lines: list[str] = []

    def observe(event: LogEvent) -> None:
        if event["log_level"] >= LogLevel.error:
            lines.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


def look(reactor: Reactor, times: int) -> None:
    for _ in range(times):
        reactor.advance(BEAT_EVERY)


def test_hangingWorker(errors: list[str]) -> None:
    """
    A worker without heartbeats is killed and restarted, with one line in the log.  The other
    worker goes on.
    """
    limit = Policy().workerHangTimeout
    reactor = Reactor()
    made = supervisor(reactor, 2)
    one, two = reactor.started
    for _ in range(limit):
        look(reactor, 1)
        two.childDataReceived(3, BEAT + b"3\n")
    assert not one.transport.signals
    look(reactor, 1)
    assert one.transport.signals == ["KILL"] and not two.transport.signals
    assert made.describe() == "3 sessions; 2 of 2 workers serve"
    died(one, ProcessTerminated(None, signal.SIGKILL))
    assert errors == [
        f"worker 1 sent no heartbeat for {limit} s and was killed; restarting it in 1 s"
    ]
    reactor.advance(1)
    assert [each.number for each in reactor.started] == [1, 2, 1]


def test_suspendedMachine() -> None:
    """
    The time in which the parent did not run does not count.
    """
    reactor = Reactor()
    supervisor(reactor, 1)
    [worker] = reactor.started
    for _ in range(Policy().workerHangTimeout):
        reactor.advance(100_000)
    assert not worker.transport.signals
    # Any output shows that the worker lives.
    worker.childDataReceived(3, BEAT + b"0\n")
    look(reactor, Policy().workerHangTimeout)
    assert not worker.transport.signals
    look(reactor, 1)
    assert worker.transport.signals == ["KILL"]


def test_cannotBeKilled(errors: list[str]) -> None:
    """
    The log says so if the kernel does not end a worker.
    """
    reactor = Reactor()
    supervisor(reactor, 1)
    look(reactor, Policy().workerHangTimeout + 1 + MORE)
    assert errors == [
        "worker 1 (process 5) hangs, and the kernel does not end it; it may wait for a disk"
    ]


def test_notYetServing() -> None:
    """
    Another limit applies to a worker that starts.
    """
    reactor = Reactor()
    supervisor(reactor, 1, serve=False)
    [worker] = reactor.started
    look(reactor, Policy().workerHangTimeout + 1)
    assert not worker.transport.signals


def test_stoppedProcess(site: Path, tmp_path: Path) -> None:
    """
    A worker that SIGSTOP has stopped is replaced, and a session of the other worker goes on.
    """
    for workers in begun(site, tmp_path / "home", "--set", "workerHangTimeout=5"):
        other = workers.connectTo(2)
        assert other.say(b"XLOG alice secret word").startswith(b"+OK")
        old = workers.pids[1]
        os.kill(old, signal.SIGSTOP)
        said = workers.running.waitFor("worker 1 ")
        assert said.endswith(
            "worker 1 sent no heartbeat for 5 s and was killed; restarting it in 1 s"
        )
        assert hasEnded(old)
        assert other.say(b"NOOP").startswith(b"+OK")
        assert workers.waitForWorker() == 1
        assert workers.connectTo(1).say(b"XLOG bob secret word").startswith(b"+OK")
        assert other.say(b"QUIT").startswith(b"+OK")
        assert workers.end() == 0
