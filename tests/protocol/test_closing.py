"""
The end of a connection: both halves, the time limits, TLS, and a shutdown meanwhile.
"""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.testing import StringTransport
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import alsoProvides

from pop3svc.testing import Client
from tests.support.connections import advance, connected, loggedIn, makeFactory, reason
from tests.support.coroutines import start


def test_shutdownWaitsForTheLastReply() -> None:
    """
    The shutdown waits until the client reads the last reply, but not for an unlimited time.
    """
    for isSecure in (False, True):
        factory = makeFactory()
        client = Client(factory, isSecure=isSecure)
        client.logIn()
        client.stall()
        client.send(b"QUIT\r\n")
        assert client.isOpen
        _, over = start(factory.shutdown())
        assert client.isOpen
        advance(client, 6)
        client.pump()
        assert not client.isOpen and over == [None]


def test_clientThatKeepsItsHalfOpen() -> None:
    """
    A client that does not read the last reply cannot keep the connection open for ever, even if it
    has closed its half.
    """
    client = loggedIn()
    client.stall()
    client.send(b"QUIT\r\n")
    client.endSending()
    advance(client, 6)
    assert client.isOpen and client.transport.ended
    advance(client, 601)
    assert client.wasAborted and not client.isOpen


def test_shutdownDuringTheHalfClose() -> None:
    """
    The service stops at the moment when a connection closes its half: the connection is
    closed fully at once, and aborted after its time limit.
    """
    factory = makeFactory()

    class Transport(StringTransport):
        over: list[Any] = []
        aborted = False

        def loseWriteConnection(self) -> None:
            self.over = start(factory.shutdown())[1]

        def abortConnection(self) -> None:
            self.aborted = True

    transport = Transport()
    protocol = connected(factory, transport)
    protocol.dataReceived(b"QUIT\r\n")
    assert transport.disconnecting and not transport.aborted
    factory.clock.advance(601)  # type: ignore[attr-defined]
    assert transport.aborted
    protocol.connectionLost()
    assert transport.over == [None]


def test_halvesCloseInAnyOrder() -> None:
    """
    The connection is closed in whatever order its halves are closed.
    """
    client = loggedIn()
    assert client.say(b"QUIT") and not client.isOpen
    for first in (True, False):
        transport = StringTransport()
        transport.loseWriteConnection = lambda: None  # type: ignore[attr-defined]
        protocol = connected(makeFactory(), transport)
        if first:
            protocol.readConnectionLost()
            assert not transport.disconnecting
            protocol.writeConnectionLost()
        else:
            protocol.dataReceived(b"QUIT\r\n")
            protocol.writeConnectionLost()
            assert not transport.disconnecting
            protocol.readConnectionLost()
        assert transport.disconnecting
        protocol.connectionLost()


@pytest.mark.parametrize("byStartTLS", [False, True])
def test_closeAlertWithoutAnswer(byStartTLS: bool) -> None:
    """
    If a client does not answer the close alert, the TCP connection is closed.
    """
    factory = makeFactory()
    below = StringTransport()
    tls: Any = TLSMemoryBIOProtocol.__new__(TLSMemoryBIOProtocol)
    tls.transport = below
    tls.loseConnection = lambda: None
    protocol = connected(factory, StringTransport())
    if byStartTLS:
        # After STLS, the protocol of the TCP transport is that of TLS.
        protocol.transport.protocol = tls
        protocol.transport.loseConnection = lambda: None
        alsoProvides(protocol.transport, ISSLTransport)
    else:
        protocol.transport = tls
    protocol.stop()
    assert not below.disconnecting
    factory.clock.advance(6)  # type: ignore[attr-defined]
    assert below.disconnecting
    protocol.connectionLost()


def test_closingConnectionIsNotClosedAgain() -> None:
    """
    A connection that is closing is not closed again for another reason.
    """
    client = loggedIn()
    client.stall()
    client.send(b"QUIT\r\n")
    protocol: Any = client.protocol

    def sendMore() -> None:
        protocol.dataReceived(b"NOOP\r\n")
        protocol.lineReceived(b"NOOP")
        protocol.lineLengthExceeded(b"x")
        client.vanish()

    assert reason(client, sendMore) == "quit"


def test_lastReplyThatDoesNotFit() -> None:
    """
    If the last reply does not fit into the socket, the transport sends it before it closes.
    """

    class Transport(StringTransport):
        closed = False

        def writeSomeData(self, data: bytes) -> int:
            return 0

        def loseWriteConnection(self) -> None:
            self.closed = True

        def doWrite(self) -> None:
            raise AssertionError("there is no room")

    transport = Transport()
    protocol = connected(makeFactory(), transport)
    protocol.stop()
    assert transport.closed and transport.value().endswith(
        b"-ERR [SYS/TEMP] Server is shutting down.\r\n"
    )
    protocol.connectionLost()


def test_halfCloseIsNotDelayed() -> None:
    """
    The half-close is not delayed; if it ends the connection at once, no time limit is left.
    """

    class Transport(StringTransport):
        closed = 0

        def writeSomeData(self, data: bytes) -> int:
            self.write(bytes(data))
            return len(data)

        def loseWriteConnection(self) -> None:
            pass

        def doWrite(self) -> None:
            self.closed += 1
            protocol.connectionLost()

    transport, factory = Transport(), makeFactory()
    protocol = connected(factory, transport)
    protocol.dataReceived(b"QUIT\r\n")
    assert transport.closed == 1 and transport.value().endswith(b"+OK Bye.\r\n")
    assert factory.clock.getDelayedCalls() == []  # type: ignore[attr-defined]


def test_timeoutAndShutdownWaitForUnsentReplies() -> None:
    """
    A login timeout or a shutdown waits for replies that do not fit into the socket yet.
    """
    each = b"+OK Password required.\r\n"
    for isStopped, said in (
        (False, b"-ERR Login timed out.\r\n"),
        (True, b"-ERR [SYS/TEMP] Server is shutting down.\r\n"),
    ):
        factory = makeFactory()
        client = Client(factory)
        client.received()
        client.stall()
        while not client.protocol.isAnswering:  # type: ignore[attr-defined]
            client.send(b"USER x\r\n")
        assert client.protocol.isAnswering  # type: ignore[attr-defined]
        if isStopped:
            start(factory.shutdown())
        else:
            advance(client, 181)
        assert client.isOpen
        received = b""
        while octets := client.read(100_000):
            received += octets
        client.transport.isStalled = False
        advance(client, 0)
        received += client.received()
        assert received.endswith(each + said)


def test_endBeforeConnectionMade() -> None:
    """
    A connection that ends before C{connectionMade} is not counted.
    """
    factory = makeFactory()
    protocol: Any = factory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 40000))
    told: list[object] = []
    protocol._ended = told.append
    protocol.connectionLost()
    assert told == [protocol]
    assert not factory.connections
