"""
The service's own transport, over pairs of sockets: partial writes, closing, errors, producers.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.address import UNIXAddress
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from zope.interface import implementer

from pop3svc.service.loop import Loop
from pop3svc.service.tlstransport import PlainTransport
from pop3svc.timing import TimeSlice


class Reactor(Clock):
    """
    A reactor that turns only when a test asks for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[Any] = []

    def addReader(self, reader: Any) -> None:
        self.readers.append(reader)

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.advance(0)
            for each in self.readers:
                each.doRead()


class Hearing(Protocol):
    """
    Remembers what happens, and checks that no method is called while another one runs.
    """

    def __init__(self) -> None:
        self.received = bytearray()
        self.ends: list[Any] = []
        self.isInside = False
        self.does: Any = lambda data: None

    def connectionMade(self) -> None:
        self.isInside = True
        self.does(b"")
        self.isInside = False

    def dataReceived(self, data: bytes) -> None:
        assert not self.ends and not self.isInside
        self.received += data
        self.isInside = True
        self.does(data)
        self.isInside = False

    def connectionLost(self, reason: Any = None) -> None:
        assert not self.isInside
        self.ends.append(reason.type)


@implementer(IHalfCloseableProtocol)
class HalfClosing(Hearing):
    """
    Remembers which halves of the connection were closed.
    """

    halves = ""

    def readConnectionLost(self) -> None:
        self.halves += "r"

    def writeConnectionLost(self) -> None:
        self.halves += "w"


class Pair:
    """
    A transport, and the other end of its socket.

    @ivar client: the other end.
    """

    def __init__(
        self, protocol: Any = None, does: Any = None, family: int = socket.AF_UNIX
    ) -> None:
        self.reactor = Reactor()
        self.loop = Loop(self.reactor)
        if family == socket.AF_UNIX:
            ours, self.client = socket.socketpair()
        else:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                self.client = socket.create_connection(listener.getsockname())
                ours, _ = listener.accept()
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.client.settimeout(10)
        self.protocol = Hearing() if protocol is None else protocol
        if does is not None:
            self.protocol.does = does
        self.transport: Any = PlainTransport(self.loop, ours, UNIXAddress(None))
        self.transport.begin(self.protocol)

    def turn(self, times: int = 1) -> None:
        self.reactor.turn(times)

    def say(self, data: bytes) -> None:
        self.client.sendall(data)
        self.turn()

    def take(self, count: int) -> bytes:
        """
        Read octets, while the transport writes.
        """
        found = bytearray()
        for _ in range(10_000):
            if len(found) == count:
                return bytes(found)
            self.turn()
            self.client.setblocking(False)
            try:
                piece = self.client.recv(min(count - len(found), 1000))
            except BlockingIOError:
                continue
            assert piece, "the connection has ended"
            found += piece
        raise AssertionError(f"only {len(found)} octets come")

    def isClosed(self) -> bool:
        """
        Whether the client sees the end of the connection.
        """
        self.client.settimeout(10)
        return self.client.recv(1) == b""

    def close(self) -> None:
        self.client.close()
        self.loop.connectionLost(None)  # type: ignore[arg-type]


@pytest.fixture
def make() -> Iterator[Any]:
    made: list[Pair] = []

    def one(*arguments: Any, **options: Any) -> Pair:
        made.append(Pair(*arguments, **options))
        return made[-1]

    yield one
    for each in made:
        if each.transport.connected:
            each.transport.abortConnection()
            each.turn()
        each.close()


def large(size: int = 300_000) -> bytes:
    return b"".join(struct.pack("!I", number) for number in range(size // 4))


def test_echo(make: Any) -> None:
    pair = make(does=lambda data: pair.transport.write(data.upper()) if data else None)
    pair.say(b"abc")
    assert pair.client.recv(100) == b"ABC"
    # No octets wait, so the transport waits only for input.
    assert pair.transport._events == 1
    assert isinstance(pair.transport.getPeer(), UNIXAddress)


@pytest.mark.parametrize("method", ["write", "writeSequence", "writeSomeData"])
def test_partialWrites(make: Any, method: str) -> None:
    """
    Octets that the socket does not accept at once follow in order.
    """
    pair, data = make(), large()
    if method == "writeSequence":
        pair.transport.writeSequence([data[:1000], data[1000:]])
    elif method == "write":
        for start in range(0, len(data), 7001):
            pair.transport.write(data[start : start + 7001])
    else:
        done = pair.transport.writeSomeData(data)
        assert 0 < done < len(data)
        pair.transport.write(data[done:])
        assert pair.transport.writeSomeData(b"x") == 0
    pair.transport.loseConnection()
    assert pair.take(len(data)) == data
    pair.turn(2)
    assert pair.isClosed() and pair.protocol.ends == [ConnectionDone]
    # Afterwards nothing happens.
    pair.transport.write(b"x")
    pair.transport.loseConnection()
    pair.transport.abortConnection()
    pair.transport.pauseProducing()
    pair.transport.resumeProducing()
    pair.turn(2)
    assert pair.protocol.ends == [ConnectionDone] and pair.transport.fileno() == -1


def test_closingInsideAMethod(make: Any) -> None:
    """
    C{connectionLost} is called when the method has returned, and within the same turn.
    """
    for name, reason in (
        ("loseConnection", ConnectionDone),
        ("abortConnection", ConnectionAborted),
    ):

        def does(data: bytes, name: str = name) -> None:
            if data:
                pair.transport.write(b"bye")
                getattr(pair.transport, name)()
                getattr(pair.transport, name)()

        pair = make(does=does)
        pair.say(b"x")
        assert pair.protocol.ends == [reason]
        assert not pair.reactor.getDelayedCalls()


def test_closingWhenItIsMade(make: Any) -> None:
    pair = make(
        does=lambda _: protocol.transport.loseConnection(), protocol=(protocol := Hearing())
    )
    assert pair.protocol.ends == [ConnectionDone]


def test_closingOutside(make: Any) -> None:
    """
    C{connectionLost} is not called inside a call of the application.
    """
    pair = make()
    pair.transport.loseConnection()
    assert pair.protocol.ends == []
    pair.turn()
    assert pair.protocol.ends == [ConnectionDone] and pair.isClosed()


def test_reset(make: Any) -> None:
    """
    If the client resets the connection, the protocol learns of it, even while the transport does
    not read.
    """
    for isPaused in (False, True):
        pair = make(family=socket.AF_INET)
        if isPaused:
            pair.transport.pauseProducing()
            pair.transport.write(large())
        linger = struct.pack("ii", 1, 0)
        pair.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        pair.client.close()
        pair.turn(3)
        assert pair.protocol.ends == [ConnectionLost]


def test_abortResets(make: Any) -> None:
    pair = make(family=socket.AF_INET)
    pair.transport.write(b"x")
    pair.transport.abortConnection()
    pair.turn()
    with pytest.raises(ConnectionResetError):
        while pair.client.recv(100):
            pass
    assert pair.protocol.ends == [ConnectionAborted]


def test_endOfInput(make: Any) -> None:
    pair = make()
    pair.client.sendall(b"last")
    pair.client.shutdown(socket.SHUT_WR)
    pair.turn(3)
    assert (pair.protocol.received, pair.protocol.ends) == (b"last", [ConnectionDone])


def test_halves(make: Any) -> None:
    """
    A half-closed connection is still served, and the transport waits for no more input.
    """
    pair = make(HalfClosing())
    pair.client.shutdown(socket.SHUT_WR)
    pair.turn(3)
    assert (pair.protocol.halves, pair.protocol.ends) == ("r", [])
    assert pair.transport._events == 0
    pair.transport.resumeProducing()
    assert pair.transport._events == 0
    data = large()
    pair.transport.write(data)
    pair.transport.loseWriteConnection()
    assert pair.protocol.halves == "r"
    assert pair.take(len(data)) == data
    pair.turn()
    assert pair.isClosed() and pair.protocol.halves == "rw"
    # The protocol has not closed the connection, but both halves are closed, so it is lost.
    pair.turn()
    assert pair.protocol.ends == [ConnectionLost]


def test_halfIsClosedAtOnce(make: Any) -> None:
    pair = make(HalfClosing())
    pair.transport.write(b"x")
    pair.transport.loseWriteConnection()
    assert pair.protocol.halves == "w"
    pair.transport.write(b"too late")
    assert pair.client.recv(100) == b"x" and pair.isClosed()
    pair.say(b"still read")
    assert pair.protocol.received == b"still read"
    pair.client.close()
    pair.turn()
    assert pair.protocol.halves == "wr"
    pair.transport.loseConnection()
    pair.turn()
    assert pair.protocol.ends == [ConnectionDone]


def test_pause(make: Any) -> None:
    """
    A paused protocol receives nothing until it is resumed.  A repeated pause or resumption changes
    nothing.
    """
    pair = make(does=lambda data: pair.transport.pauseProducing() if data else None)
    pair.say(b"a")
    pair.say(b"b")
    pair.transport.pauseProducing()
    pair.turn()
    assert pair.protocol.received == b"a"
    for _ in range(2):
        pair.transport.resumeProducing()
    pair.turn()
    assert pair.protocol.received == b"ab"


class Producer:
    """
    Writes pieces while it may.
    """

    def __init__(self, transport: Any, count: int) -> None:
        self.transport, self.left = transport, count
        self.calls: list[str] = []
        self.mayWrite = True

    def produce(self) -> None:
        while self.left and self.mayWrite:
            self.left -= 1
            self.transport.write(b"%05d" % self.left * 200)
        if not self.left:
            self.transport.unregisterProducer()

    def pauseProducing(self) -> None:
        self.calls.append("pause")
        self.mayWrite = False

    def resumeProducing(self) -> None:
        self.calls.append("resume")
        self.mayWrite = True
        self.produce()

    def stopProducing(self) -> None:
        self.calls.append("stop")
        self.mayWrite = False


class OneAtATime(Producer):
    def resumeProducing(self) -> None:
        self.calls.append("resume")
        if self.left:
            self.left -= 1
            self.transport.write(b"%05d" % self.left * 200)
        else:
            self.transport.unregisterProducer()


@pytest.mark.parametrize("isStreaming", [True, False])
def test_producers(make: Any, isStreaming: bool) -> None:
    """
    After C{loseConnection}, the connection closes when the producer has ended.
    """
    pair = make()
    producer = (Producer if isStreaming else OneAtATime)(pair.transport, 200)
    pair.transport.registerProducer(producer, isStreaming)
    if isStreaming:
        producer.produce()
        assert producer.calls == ["pause"] and producer.left
    with pytest.raises(RuntimeError):
        pair.transport.registerProducer(producer, isStreaming)
    pair.transport.loseConnection()
    expected = b"".join(b"%05d" % left * 200 for left in range(199, -1, -1))
    assert pair.take(len(expected)) == expected
    pair.turn(3)
    assert pair.protocol.ends == [ConnectionDone]
    assert "stop" not in producer.calls
    pair.transport.registerProducer(producer, isStreaming)
    assert producer.calls[-1] == "stop"


def test_abortWithAProducer(make: Any) -> None:
    """
    The producer is stopped before the protocol hears of the end.
    """
    pair = make()
    producer = Producer(pair.transport, 10_000)
    pair.transport.registerProducer(producer, True)
    producer.produce()
    pair.transport.abortConnection()
    pair.turn()
    assert producer.calls == ["pause", "stop"] and pair.protocol.ends == [ConnectionAborted]


def test_errorOfAProducer(make: Any) -> None:
    """
    The protocol hears of the end although its producer raises.
    """

    class Failing(Producer):
        def stopProducing(self) -> None:
            raise ValueError

    pair = make()
    pair.transport.registerProducer(Failing(pair.transport, 10_000), True)
    pair.transport.abortConnection()
    pair.turn()
    assert pair.protocol.ends == [ConnectionAborted] and pair.isClosed()


def test_roomForAFile(make: Any) -> None:
    """
    A producer that bypasses the transport by sendfile() is told when the socket has room.
    """
    pair = make()
    told: list[str] = []

    class Pulled(Producer):
        def resumeProducing(self) -> None:
            told.append("room")

    # No octets wait.  SocketOutlet also registers if the socket has accepted its last write.
    pair.transport.registerProducer(Pulled(None, 0), False)
    pair.turn(2)
    assert told == ["room"] * 2
    pair.transport.startWriting()
    pair.turn(2)
    assert told == ["room"] * 3


def test_errorsOfTheProtocol(make: Any) -> None:
    """
    If a protocol raises an exception, its connection is closed.
    """

    def fail(data: bytes) -> None:
        if data:
            pair.protocol.isInside = False
            raise ValueError(data)

    pair = make(does=fail)
    pair.say(b"x")
    assert pair.protocol.ends == [ValueError] and pair.isClosed()

    class Failing(Hearing):
        def connectionMade(self) -> None:
            raise ValueError

        def connectionLost(self, reason: Any = None) -> None:
            super().connectionLost(reason)
            raise ValueError

    pair = make(Failing())
    assert pair.protocol.ends == [ValueError] and pair.isClosed()


def test_measured(make: Any) -> None:
    """
    Octets that are not asked for stay in the kernel.
    """
    pair = make()
    pair.transport.measure = lambda data: min(3, len(data))
    pair.say(b"abcd")
    assert pair.protocol.received == b"abc"
    pair.transport.measure = None
    pair.turn()
    assert pair.protocol.received == b"abcd"


class Part:
    """
    What a loop knows of a socket.
    """

    def __init__(self, isPort: bool, does: Any) -> None:
        self.isPort = isPort
        self.ours, self.theirs = socket.socketpair()
        self.theirs.send(b"x")
        self.does = does

    def ready(self, events: int) -> None:
        self.ours.recv(1)
        self.does("ready")

    def accept(self) -> None:
        self.ours.recv(1)
        self.does("accept")

    def connectionLost(self, reason: Any) -> None:
        self.does("lost")


def test_loop() -> None:
    """
    Ports come last.  A socket that another one has closed in the same turn is not served.  An
    exception of one socket does not keep the loop from serving the others.
    """
    reactor = Reactor()
    loop = Loop(reactor)
    assert loop.logPrefix() == "pop3svc" and loop.fileno() > 0
    calls: list[str] = []

    def fail(what: str) -> None:
        calls.append(what)
        raise ValueError

    def forgetOther(what: str) -> None:
        calls.append(what)
        loop.forget(gone.ours.fileno())

    port, first, gone = Part(True, fail), Part(False, forgetOther), Part(False, calls.append)
    failing = Part(False, fail)
    for each in (port, first, failing, gone):
        loop.watch(each.ours.fileno(), each, 1)
    assert reactor.readers == [loop]
    loop.doRead()
    assert calls == ["ready", "ready", "accept"]
    calls.clear()

    def sendMore(what: str) -> None:
        calls.append(what)
        reactor.advance(TimeSlice.SLICE / 2)
        for each in (first, failing):
            each.theirs.send(b"x")

    # Sockets that have become ready meanwhile are served, too, until the time slice is over.
    first.does, failing.does = sendMore, calls.append
    for each in (first, failing):
        each.theirs.send(b"x")
    loop.doRead()
    assert calls == ["ready"] * 4
    calls.clear()
    failing.does = first.does = port.does = calls.append
    loop.connectionLost(None)  # type: ignore[arg-type]
    assert calls == ["lost"] * 3
    for each in (port, first, failing, gone):
        each.ours.close()
        each.theirs.close()
