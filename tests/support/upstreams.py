"""
Connections in memory to another mail server.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import alsoProvides

from pop3svc.protocol.session import ConnectionInfo
from pop3svc.providers.upstream import UpstreamProvider

__all__ = ["End", "Network", "Scripted", "result"]


class End:
    """
    One end of a connection.

    @ivar waiting: octets for the protocol of this end.
    """

    disconnecting = False

    def __init__(self) -> None:
        self.waiting = bytearray()
        self.other: Any = None
        self.protocol: Any = None
        self.isPaused = False
        self.isOpen = True
        self.isEnding = False
        self.wasAborted = False
        self.usesTLS = False
        self.producer: Any = None

    def write(self, data: bytes) -> None:
        if self.isOpen and not self.isEnding:
            self.other.waiting += data

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        self.isEnding = self.disconnecting = True

    def abortConnection(self) -> None:
        # As Twisted's transports do, lose the connection in a later turn of the reactor.
        self.wasAborted = True

    def close(self, reason: Exception) -> None:
        if self.isOpen:
            self.isOpen = False
            self.protocol.connectionLost(Failure(reason))

    def pauseProducing(self) -> None:
        self.isPaused = True

    def resumeProducing(self) -> None:
        self.isPaused = False

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def startTLS(self, context: Any) -> None:
        self.usesTLS = True

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 4)

    getHost = getPeer

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass

    def deliver(self, most: int) -> bool:
        """
        Take one step: lose the connection, give octets to the protocol, or let its producer go on.

        @return: whether anything happened.
        """
        if self.isOpen and self.wasAborted:
            self.close(ConnectionAborted())
            self.other.close(ConnectionDone())
            return True
        if self.isOpen and self.waiting and not self.isPaused:
            data = bytes(self.waiting[:most])
            del self.waiting[:most]
            self.protocol.dataReceived(data)
            return True
        if self.isOpen and not self.isPaused and self.other.isEnding and not self.waiting:
            self.close(ConnectionDone())
            self.other.close(ConnectionDone())
            return True
        if self.producer is not None and self.isOpen and not self.other.waiting:
            self.producer.resumeProducing()
            return True
        return False


class Network:
    """
    An endpoint whose connections lead to protocols in memory.

    @ivar clients: the clients' ends of all connections.
    """

    def __init__(
        self, makeServer: Callable[[], Any], most: int = 1 << 20, isSecure: bool = False
    ) -> None:
        """
        @param makeServer: makes the server's protocol of each connection.
        @param most: octets that are delivered at a time.
        @param isSecure: whether the connections seem to use TLS.
        """
        self._makeServer = makeServer
        self._isSecure = isSecure
        self._most = most
        self.clients: list[End] = []
        self.clock = Clock()

    def connect(self, factory: Any) -> Deferred[Any]:
        client, server = End(), End()
        if self._isSecure:
            alsoProvides(client, ISSLTransport)
            alsoProvides(server, ISSLTransport)
        client.other, server.other = server, client
        client.protocol = factory.buildProtocol(None)
        server.protocol = self._makeServer()
        self.clients.append(client)
        client.protocol.makeConnection(client)
        server.protocol.makeConnection(server)
        return succeed(client.protocol)

    def pump(self) -> None:
        """
        Deliver all data, until nothing happens.
        """
        for _ in range(100_000):
            ends = [end for client in self.clients for end in (client, client.other)]
            happened = [end.deliver(self._most) for end in ends]
            if not any(happened):
                return
        raise AssertionError("it does not come to rest")

    def provider(self, address: str, **options: Any) -> UpstreamProvider:
        """
        @return: a provider that uses this network.
        """
        return UpstreamProvider(address, clock=self.clock, endpoint=self, **options)

    def mailbox(self, address: str, **options: Any) -> Any:
        """
        @return: the mailbox of alice, or L{None}.
        """
        info = ConnectionInfo(1, "127.0.0.1", True)
        provider = self.provider(address, **options)
        return result(self, provider.authenticate(info, "alice", "secret"))


def result(network: Network, coroutine: Any, seconds: float = 0) -> Any:
    """
    Drive a coroutine to its end.

    @param seconds: how long the clock may run until the end.
    """
    results: list[Any] = []
    Deferred.fromCoroutine(coroutine).addBoth(results.append)
    network.pump()
    for _ in range(int(seconds * 2)):
        if not results:
            network.clock.advance(0.5)
            network.pump()
    assert results, "there is no result"
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]


class Scripted(Protocol):
    """
    A server that answers each line by a function.
    """

    def __init__(self, greeting: bytes, answer: Callable[[Any, bytes], bytes | None]) -> None:
        """
        @param answer: gets this protocol and the line; returns octets to send, or L{None} to
            close the connection.
        """
        self._greeting = greeting
        self._answer = answer
        self._buffer = b""
        self.lines: list[bytes] = []

    def connectionMade(self) -> None:
        self.transport.write(self._greeting)  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        transport: Any = self.transport
        self._buffer += data
        while b"\r\n" in self._buffer:
            line, _, self._buffer = self._buffer.partition(b"\r\n")
            self.lines.append(line)
            reply = self._answer(self, line)
            if reply is None:
                transport.loseConnection()
            else:
                transport.write(reply)
