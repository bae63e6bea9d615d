"""
A client that is connected to a service in memory, and conversations in the notation of the RFCs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, execute
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IAddress, ISSLTransport, ITransport
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import alsoProvides, implementer

from pop3svc.policy import Policy
from pop3svc.service.factory import POP3Factory

__all__ = ["Client", "Inline", "MemoryTransport", "conversation"]

T = TypeVar("T")

# Octets that Twisted's TCP transports buffer before they pause their producer.
_BUFFER_LIMIT = 65536


class Inline:
    """
    A L{pop3svc.threadpool.Executor} that runs its work at once in the caller's thread.
    """

    def run(
        self,
        work: Callable[..., T],
        *arguments: Any,
        abandoned: Callable[[T], object] | None = None,
        ended: Callable[[], object] | None = None,
        group: Hashable = None,
    ) -> Deferred[T]:
        done = execute(work, *arguments)
        if ended is not None:
            ended()
        return done

    def isLost(self, group: Hashable) -> bool:
        return False


@implementer(ITransport)
class MemoryTransport:
    """
    The server's transport of a connection in memory.
    """

    disconnecting = False

    def __init__(self, address: IAddress, isSecure: bool) -> None:
        self._address = address
        self.written = bytearray()
        self.isStalled = False
        self.ended = False
        self.aborted = False
        self.isPaused = False
        self.producer: Any = None
        self._producerPaused = False
        self.noDelay = False
        self.startedTLS = False
        if isSecure:
            alsoProvides(self, ISSLTransport)

    def write(self, data: bytes) -> None:
        if not self.ended:
            self.written += data
            if self.isStalled and self.producer is not None and len(self.written) > _BUFFER_LIMIT:
                self._producerPaused = True
                self.producer.pauseProducing()

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert self.producer is None, "one producer at a time"
        assert streaming
        if self.aborted:
            producer.stopProducing()
        else:
            self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None
        self._producerPaused = False

    def take(self, octets: int) -> bytes:
        """
        Read octets on the client's side.
        """
        taken = bytes(self.written[:octets])
        del self.written[:octets]
        if self._producerPaused and not self.written:
            self._producerPaused = False
            self.producer.resumeProducing()
        return taken

    def pauseProducing(self) -> None:
        self.isPaused = True

    def resumeProducing(self) -> None:
        self.isPaused = False

    def loseWriteConnection(self) -> None:
        assert self.producer is None, "a producer is still registered"
        self.ended = True

    def loseConnection(self) -> None:
        self.ended = True

    def abortConnection(self) -> None:
        self.aborted = True

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.noDelay = enabled

    def startTLS(self, connectionCreator: Any) -> None:
        assert self.producer is None
        self.startedTLS = True
        alsoProvides(self, ISSLTransport)

    def getPeer(self) -> IAddress:
        return self._address

    def getHost(self) -> IAddress:
        return self._address


class Client:
    """
    A client that is connected to a factory in memory.

    @ivar isOpen: whether the connection is open.
    @ivar wasAborted: whether the service aborted the connection instead of closing it normally.
    """

    def __init__(
        self, factory: POP3Factory, address: IAddress | None = None, isSecure: bool = False
    ) -> None:
        if address is None:
            address = IPv4Address("TCP", "127.0.0.1", 40000)
        protocol: Any = factory.buildProtocol(address)
        assert protocol is not None, "the factory refuses the connection"
        self.protocol = protocol
        self.transport = MemoryTransport(address, isSecure)
        self._coming = b""
        self._received = bytearray()
        self._hasStalled = False
        self.isOpen = True
        self.wasAborted = False
        protocol.makeConnection(self.transport)
        self.pump()

    def pump(self) -> None:
        """
        Pass on the octets that both sides have written, and the end of the connection.  C{send},
        C{received} and most other methods call this method themselves.
        """
        while True:
            if self._coming and not self.transport.isPaused and self.isOpen:
                data, self._coming = self._coming, b""
                self.protocol.dataReceived(data)
                continue
            if self.transport.written and not self.transport.isStalled:
                self._received += self.transport.take(len(self.transport.written))
                continue
            break
        if not self.isOpen:
            return
        if self.transport.aborted:
            self.wasAborted = True
            self._lost(ConnectionAborted())
        elif self.transport.ended and not self.transport.isStalled:
            self._lost(ConnectionDone())

    def _lost(self, reason: Exception) -> None:
        self.isOpen = False
        producer = self.transport.producer
        if producer is not None:
            producer.stopProducing()
        self.protocol.connectionLost(Failure(reason))

    def send(self, data: bytes) -> None:
        """
        Send octets unchanged.
        """
        self._coming += data
        self.pump()

    def received(self) -> bytes:
        """
        @return: the octets received since the last call.
        """
        self.pump()
        received = bytes(self._received)
        self._received.clear()
        return received

    def say(self, line: bytes) -> bytes:
        """
        Send a line.

        @return: the octets received since the last call of L{received}.
        """
        self.send(line + b"\r\n")
        return self.received()

    def logIn(self, name: bytes = b"alice", password: bytes = b"secret") -> None:
        """
        Log in by USER and PASS.
        """
        self.received()
        assert self.say(b"USER " + name).startswith(b"+OK")
        reply = self.say(b"PASS " + password)
        assert reply.startswith(b"+OK"), reply

    def stall(self) -> None:
        """
        Stop reading.
        """
        self.transport.isStalled = True

    def read(self, octets: int) -> bytes:
        """
        Read some octets after L{stall}.
        """
        taken = self.transport.take(octets)
        self.pump()
        return taken

    def vanish(self) -> None:
        """
        Lose the connection.
        """
        if self.isOpen:
            self._lost(ConnectionLost())
            self.pump()

    def endSending(self) -> None:
        """
        Close the client's half of the connection.
        """
        self.protocol.readConnectionLost()
        self.pump()


def conversation(
    provider: Any,
    script: str,
    policy: Policy | None = None,
    isSecure: bool = False,
    octetAtATime: bool = False,
    **options: Any,
) -> Client:
    """
    Hold a conversation with a service in memory.

    The script has a line C{C: ...} for each line of the client, and a line C{S: ...} for each line
    of the server.  The script begins with the greeting.  A server line that ends in C{…} matches
    any line that begins in the same way.  Spaces at the end of a line are significant.  C{S:
    (closed)} means that the service has closed the connection.  Other lines are comments.

    @param options: further arguments for L{POP3Factory}.
    @return: the client, for use after the conversation.
    @raise AssertionError: the server answered differently.
    """
    client = Client(POP3Factory(provider, policy, clock=Clock(), **options), isSecure=isSecure)
    coming: list[str] = []
    done: list[str] = []

    def fetch() -> None:
        coming.extend(client.received().decode("latin-1").split("\r\n")[:-1])

    fetch()
    for line in script.splitlines():
        who, _, text = line.lstrip().partition(":")
        text = text.removeprefix(" ")
        if who == "C":
            assert not coming, _wrong(done, "(a line of the client)", coming)
            data = text.encode("utf-8", "surrogateescape") + b"\r\n"
            for piece in [data[i : i + 1] for i in range(len(data))] if octetAtATime else [data]:
                client.send(piece)
            fetch()
        elif who == "S" and text == "(closed)":
            assert not coming and not client.isOpen, _wrong(done, text, coming)
        elif who == "S":
            got = coming.pop(0) if coming else "(nothing)"
            isRight = got.startswith(text[:-1]) if text.endswith("…") else got == text
            assert isRight, _wrong(done, text, [got, *coming])
        else:
            continue
        done.append(line.strip())
    assert not coming, _wrong(done, "(nothing)", coming)
    return client


def _wrong(done: list[str], wanted: str, coming: list[str]) -> str:
    got = coming[0] if coming else "(nothing)"
    return "\n".join([*done, f"wanted: S: {wanted}", f"   got: S: {got}"])
