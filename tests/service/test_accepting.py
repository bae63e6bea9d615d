"""
Accepting pauses when file descriptors run out.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from pop3svc.service import accepting
from pop3svc.service.accepting import AcceptLimiter, SocketPort
from pop3svc.service.loop import Loop
from pop3svc.service.sockets import addressOf
from tests.service.test_transport import Reactor
from tests.support.maildirs import deliver
from tests.support.running import Connection, Running, freePort


class Port:
    """
    What L{AcceptLimiter} uses of a port of Twisted.
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
    In one turn a port accepts at most half as many connections as descriptors are reserved, or one
    connection if processes take turns.  The number that Twisted would choose does not count.
    """
    # The result must not depend on the descriptors that this process has open.
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
        # Of the 25 reserved descriptors, three may be used without a check.
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
        # Accepting does not go on at the first free descriptor, because it would soon pause again.
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
    With more clients than descriptors no client is cut off.  The accepted clients are served, and
    the waiting clients are accepted when others leave.
    """
    port = freePort()
    with Running(
        tmp_path / "home", "--endpoint", f"tcp:{port}:interface=127.0.0.1:backlog=200"
    ) as running:
        # The service reads its limit later, because it imports Twisted first.
        resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE, (100, 100))
        running.up()
        login = (running.home / ".local/share/pop3svc/demo.netrc").read_text().split()
        password = login[login.index("password") + 1].encode()
        # The clients come at once, and are more than a port would accept in one turn.
        running.process.send_signal(signal.SIGSTOP)
        clients = [Connection(port) for _ in range(120)]
        running.process.send_signal(signal.SIGCONT)
        running.waitFor("not accepting connections")
        assert clients[0].line().startswith(b"+OK")
        clients[0].logIn(b"demo", password)
        assert clients[0].say(b"RETR 1").startswith(b"+OK")
        assert clients[0].lines()
        for each in clients[1:]:
            # The clients that had to wait are served, too, each in its turn.
            assert each.line().startswith(b"+OK")
            assert each.say(b"QUIT").startswith(b"+OK")
            each.socket.close()
        running.waitFor("accepting connections again")
        assert clients[0].say(b"QUIT").startswith(b"+OK")
        clients[0].socket.close()


def test_loginsThatCanBeServed(tmp_path: Path) -> None:
    """
    With 900 clients and 1,024 descriptors, all users whose login succeeds can read mail at the same
    time.
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
                # This client and all later ones wait in the kernel's queue.
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
        # No client has read its message yet, so the files of all messages are open.
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
    New logins and new connections leave enough descriptors free for the present sessions.
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
    The soft limit is raised to the hard limit, or to 1,048,576 if there is no hard limit.
    """
    wanted: list[Any] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: wanted.append(limits))
    for limits in ((1024, 4096), (4096, 4096), (1024, -1), (-1, -1)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limits=limits: limits)
        accepting.raiseLimit()
    assert wanted == [(4096, 4096), (1_048_576, -1)]


class Listening:
    """
    What a L{SocketPort} uses of a port of Twisted.
    """

    disconnecting = disconnected = False

    def __init__(self, family: int = socket.AF_INET) -> None:
        self.isReading = True
        if family == socket.AF_UNIX:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.bind(f"\0pop3svc-{os.getpid()}-{id(self)}")
            self.socket.listen()
        else:
            host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
            self.socket = socket.create_server((host, 0), family=family)
        self.socket.setblocking(False)

    def stopReading(self) -> None:
        self.isReading = False

    def stopListening(self) -> str:
        self.socket.close()
        return "stopped"

    def getHost(self) -> str:
        return "host"


class Greeting(Protocol):
    def connectionMade(self) -> None:
        self.transport.write(b"hello")  # type: ignore[union-attr]

    def connectionLost(self, reason: Any = None) -> None:
        pass


class Site:
    """
    A port, and the addresses for which its factory made protocols.
    """

    def __init__(self, family: int = socket.AF_INET, limit: int = 1000) -> None:
        self.reactor = Reactor()
        self.loop = Loop(self.reactor)
        self.below = Listening(family)
        self.peers: list[Any] = []
        self.makes: Any = Greeting
        self.port = SocketPort(self.below, self, self.loop)
        self.limiter = AcceptLimiter(self.reactor, limit=limit)
        self.limiter._atFirst = 8
        self.limiter.add(self.port)
        self.address = self.below.socket.getsockname()

    def buildProtocol(self, peer: Any) -> Any:
        self.peers.append(peer)
        return self.makes()

    def connect(self) -> socket.socket:
        client = socket.socket(self.below.socket.family)
        client.settimeout(10)
        client.connect(self.address)
        return client

    def close(self) -> None:
        self.loop.connectionLost(Failure(ConnectionDone()))
        self.limiter.stop()
        self.below.socket.close()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])
def test_ownPort(family: int) -> None:
    """
    Clients are accepted with their addresses, but not while the port does not read.
    """
    site = Site(family)
    assert not site.below.isReading
    clients = [site.connect() for _ in range(5)]
    # The number of connections in a turn doubles, so a burst is accepted in few turns.
    site.reactor.turn(3)
    assert [each.recv(10) for each in clients] == [b"hello"] * 5
    if family == socket.AF_UNIX:
        assert site.peers == [UNIXAddress(None)] * 5
    else:
        assert [each.port for each in site.peers] == [each.getsockname()[1] for each in clients]
        assert {each.host for each in site.peers} == {site.address[0]}
        kind = IPv6Address if family == socket.AF_INET6 else IPv4Address
        assert all(isinstance(each, kind) for each in site.peers)
    site.port.stopReading()
    later = site.connect()
    site.reactor.turn(2)
    assert len(site.peers) == 5
    site.port.startReading()
    site.reactor.turn(2)
    assert later.recv(10) == b"hello"
    assert site.port.getHost() == "host" and not site.port.disconnected
    site.port.startListening()
    assert site.port.stopListening() == "stopped"
    site.reactor.turn()
    for each in (*clients, later):
        each.close()
    site.close()


def test_zoneOfAnAddress() -> None:
    name, index = "lo", socket.if_nametoindex("lo")
    found = addressOf(socket.AF_INET6, ("fe80::1", 5, 0, index))
    assert (found.host, found.port) == (f"fe80::1%{name}", 5)


def test_connectionsThatCannotBeServed() -> None:
    """
    A connection without a protocol is closed, and the next connection is served.
    """

    def fail() -> None:
        raise ValueError

    site = Site()
    for site.makes in (lambda: None, fail):
        client = site.connect()
        site.reactor.turn()
        assert client.recv(10) == b""
        client.close()
    site.makes = Greeting
    client = site.connect()
    site.reactor.turn()
    assert client.recv(10) == b"hello"
    client.close()
    site.close()


def test_connectionThatCannotBeWatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A connection that cannot be watched is closed, its protocol is told, and other connections are
    served.
    """
    site = Site()
    first = site.connect()
    site.reactor.turn()
    assert first.recv(10) == b"hello"
    made: list[Any] = []

    def make() -> Any:
        made.append(Greeting())
        return made[-1]

    def watch(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    site.makes = make
    lost: list[Any] = []
    monkeypatch.setattr(Greeting, "connectionLost", lambda self, reason: lost.append(self))
    with monkeypatch.context() as patch:
        patch.setattr(site.loop, "watch", watch)
        second = site.connect()
        site.reactor.turn()
    assert second.recv(10) == b"" and lost == made
    third = site.connect()
    site.reactor.turn()
    assert third.recv(10) == b"hello"
    for each in (first, second, third):
        each.close()
    site.close()


@pytest.mark.parametrize(
    ("code", "isPaused"), [(errno.EMFILE, True), (errno.ENOMEM, True), (errno.ECONNABORTED, False)]
)
def test_errorsOfAccept(code: int, isPaused: bool) -> None:
    """
    The port pauses if descriptors or memory run out.  It does not pause for a client that has
    already gone.
    """
    site = Site()

    class Failing:
        def accept(self) -> None:
            raise OSError(code, "x")

        def fileno(self) -> int:
            return site.below.socket.fileno()

    site.port.socket = Failing()  # type: ignore[assignment]
    client = site.connect()
    site.reactor.turn()
    assert site.limiter.isPaused is isPaused
    site.port.socket = site.below.socket
    if isPaused:
        site.limiter.pause()
        assert not site.peers
        site.reactor.advance(AcceptLimiter.LOOK)
        assert not site.limiter.isPaused
    site.reactor.turn()
    assert client.recv(10) == b"hello"
    client.close()
    site.close()


def test_mayNotAccept() -> None:
    """
    A port accepts no connection if the limiter admits none.
    """
    site = Site(limit=100)
    site.limiter._atFirst = 90
    client = site.connect()
    site.reactor.turn()
    assert site.limiter.isPaused and not site.peers
    client.close()
    site.close()
