"""
Transports with few abilities, and transports that call the connection back at once.
"""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.testing import StringTransport

from tests.support.connections import advance, connected, loggedIn, makeFactory
from tests.support.mailboxes import later


def test_withoutNoDelayAndHalfClose() -> None:
    """
    A transport need not support TCP_NODELAY and half-close.
    """
    transport = StringTransport()
    protocol = connected(makeFactory(), transport)
    protocol.dataReceived(b"QUIT\r\n")
    assert transport.value().endswith(b"+OK Bye.\r\n")
    assert transport.disconnecting
    protocol.connectionLost()


def test_inputInsideResumeProducing() -> None:
    """
    A transport may deliver its buffered input inside C{resumeProducing}.
    """
    provider, client, mailbox = later(b"LIST 1\r\n")
    transport: Any = client.transport
    coming = [b"NOOP\r\nNOOP\r\n", b"NOOP\r\n"]

    def resumeProducing() -> None:
        transport.isPaused = False
        while coming:
            client.protocol.dataReceived(coming.pop(0))

    transport.resumeProducing = resumeProducing
    # While a command runs, input is paused; input that still arrives is kept.
    client.protocol.dataReceived(b"NOOP\r\n")
    client.protocol.dataReceived(b"NOOP\r\n")
    mailbox.answerAll()
    assert client.received() == b"+OK 1 5\r\n" + b"+OK Done.\r\n" * 5


def test_slowReaderIsNotStalled() -> None:
    """
    A slow client that reads something is not stalled.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for _ in range(5):
            ours.send(b"x" * 100)
        client = loggedIn()
        client.transport.fileno = ours.fileno  # type: ignore[attr-defined]
        client.stall()
        client.send(b"RETR 2\r\n")
        for _ in range(3):
            theirs.recv(100)
            advance(client, 600)
            assert client.isOpen
        advance(client, 601)
        assert client.wasAborted


def test_peerSendsDuringAReply() -> None:
    """
    A peer in the same process may send input while it receives a reply.
    """
    coming = [b"FOO\r\n", b"QUIT\r\n"]

    class Transport(StringTransport):
        protocol: Any = None

        def write(self, data: bytes) -> None:
            super().write(data)
            if self.protocol is not None and coming:
                self.protocol.dataReceived(coming.pop(0))

    transport = Transport()
    protocol = connected(makeFactory(), transport)
    transport.protocol = protocol
    protocol.dataReceived(b"USER alice\r\n")
    assert transport.value().count(b"\r\n") == 4
    assert transport.disconnecting
    protocol.connectionLost()


def test_peerSendsDuringALargeReply() -> None:
    """
    A peer in the same process may send input while it receives a large message.
    """
    coming = [b"NOOP\r\n", b"QUIT\r\n"]

    class Transport(StringTransport):
        protocol: Any = None

        def write(self, data: bytes) -> None:
            super().write(data)
            if len(data) > 30_000 and coming:
                self.protocol.dataReceived(coming.pop(0))

    transport = Transport()
    protocol = connected(makeFactory(), transport)
    transport.protocol = protocol
    protocol.dataReceived(b"USER alice\r\nPASS secret\r\nRETR 2\r\n")
    assert transport.value().endswith(b"\r\n.\r\n+OK Done.\r\n+OK Bye.\r\n")
    protocol.connectionLost()
