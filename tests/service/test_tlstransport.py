"""
Large replies over TLS, to clients that are quick and slow, from a real twistd.
"""

from __future__ import annotations

import contextlib
import gc
import socket
import ssl
import weakref
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import PrivateCertificate
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from pop3svc.providers.memory import MemoryStore
from pop3svc.service.datadirectory import _selfSigned
from pop3svc.service.factory import POP3Factory
from pop3svc.service.tlstransport import TLSTransport
from tests.anybody import Anybody
from tests.support.running import Connection, Running, freePort

# More than the kernel takes at once.
MESSAGE = b"Subject: large\r\n\r\n" + b"".join(b"%070d\r\n" % line for line in range(100_000))


@pytest.mark.parametrize("isSTLS", [False, True])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_largeMessage(tmp_path: Path, isSTLS: bool, version: ssl.TLSVersion) -> None:
    """
    Its octets arrive, encrypted and in order, however slowly they are taken.
    """
    port = freePort()
    certificate, key = _selfSigned()
    (tmp_path / "both.pem").write_bytes(key + certificate)
    (tmp_path / "users").write_text("alice:{PLAIN}secret\n")
    for folder in ("tmp", "new", "cur"):
        (tmp_path / "mail" / "alice" / folder).mkdir(parents=True)
    (tmp_path / "mail" / "alice" / "new" / "1.x").write_bytes(MESSAGE)
    context = ssl.create_default_context(cafile=str(tmp_path / "both.pem"))
    context.minimum_version = context.maximum_version = version
    kind = "tcp" if isSTLS else "ssl"
    with Running(
        tmp_path / "home",
        *("--provider", f"maildir:{tmp_path / 'mail'}", "--auth", f"passwd:{tmp_path / 'users'}"),
        *("--certificate", str(tmp_path / "both.pem")),
        *("--private-key", str(tmp_path / "both.pem")),
        *("--endpoint", f"{kind}:{port}:interface=127.0.0.1"),
    ) as running:
        running.up()
        connection = Connection(port)
        # So that the server has to wait.
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        if isSTLS:
            connection.line()
            assert connection.say(b"STLS").startswith(b"+OK")
            connection.startTLS(context)
        else:
            connection.startTLS(context)
            assert connection.line().startswith(b"+OK")
        connection.logIn(b"alice", b"secret")
        # A file whose octets are known may go out by another way, without TLS.
        assert connection.say(b"STAT") == b"+OK 1 %d\r\n" % len(MESSAGE)
        for _ in range(2):
            assert connection.say(b"RETR 1").startswith(b"+OK")
            assert b"".join(connection.lines()) == MESSAGE
        # Many replies behind one another, while nothing is read.
        connection.socket.sendall(b"RETR 1\r\nNOOP\r\n" * 2 + b"QUIT\r\n")
        for _ in range(2):
            assert connection.line().startswith(b"+OK")
            assert b"".join(connection.lines()) == MESSAGE
            assert connection.line().startswith(b"+OK")
        assert connection.line().startswith(b"+OK")
        # After close_notify, not a cut connection.
        assert connection.line() == b""
        connection.socket.close()
        assert "4 messages" in running.waitFor("alice from")


class Taking(StringTransport):
    """
    Takes everything at once, and remembers what came together.
    """

    connected = True

    def __init__(self) -> None:
        super().__init__()
        self.segments: list[bytes] = []

    def writeSomeData(self, data: bytes) -> int:
        self.segments.append(bytes(data))
        return len(data)

    def write(self, data: bytes) -> None:
        raise AssertionError("it takes everything at once")


class OverTLS:
    """
    A client in memory.

    @ivar transport: the server's end.
    """

    def __init__(self) -> None:
        certificate = PrivateCertificate.loadPEM(b"".join(_selfSigned()))  # type: ignore[no-untyped-call]
        store = MemoryStore([b"a\r\n" * 100_000, b"b\r\n"])
        inner = POP3Factory(Anybody(store), clock=Clock())
        factory = TLSMemoryBIOFactory(certificate.options(), isClient=False, wrappedFactory=inner)
        factory.protocol = TLSTransport
        self.transport: Any = factory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
        self._below = Taking()
        self.transport.makeConnection(self._below)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self._client = context.wrap_bio(self._incoming, self._outgoing)
        with contextlib.suppress(ssl.SSLWantReadError):
            self._client.do_handshake()
        self.transport.dataReceived(self._outgoing.read())
        self._incoming.write(b"".join(self._below.segments))
        self._below.segments.clear()
        self._client.do_handshake()

    def say(self, line: bytes = b"") -> list[bytes]:
        """
        @param line: none, to end the handshake.
        @return: what is read in each segment that comes then, C{(end)} for the end of
            TLS.
        """
        if line:
            self._client.write(line + b"\r\n")
        self.transport.dataReceived(self._outgoing.read())
        segments, self._below.segments = self._below.segments, []
        read = []
        for segment in segments:
            self._incoming.write(segment)
            plain = b""
            with contextlib.suppress(ssl.SSLWantReadError):
                while piece := self._client.read(1_000_000):
                    plain += piece
                plain += b"(end)"
            read.append(plain)
        return read


def test_segments() -> None:
    """
    What belongs together goes together: tickets and greeting, the answers to what came
    together, the last words and the end; a large reply waits for nothing.
    """
    client = OverTLS()
    assert client.say() == [b"+OK test ready.\r\n"]
    assert len(client.say(b"USER alice")) == len(client.say(b"PASS x")) == 1
    assert client.say(b"RETR 2") == [b"+OK Message follows _\r\nb\r\n.\r\n"]
    large = client.say(b"RETR 1")
    assert b"".join(large) == b"+OK Message follows _\r\n" + b"a\r\n" * 100_000 + b".\r\n"
    # Held to its end it would be one, of any size.
    assert len(large) > 3 and all(large)
    assert client.say(b"QUIT") == [b"+OK Bye.\r\n(end)"]


def test_writtenBeforeAnAbort() -> None:
    """
    Is on its way.
    """
    client = OverTLS()
    client.say()
    transport = client.transport

    def lineReceived(line: bytes) -> None:
        transport.write(b"last words\r\n")
        transport.abortConnection()

    transport.wrappedProtocol.lineReceived = lineReceived
    assert b"".join(client.say(b"NOOP")).startswith(b"last words\r\n")


@pytest.mark.parametrize("isCut", [True, False])
def test_freedAtOnce(isCut: bool) -> None:
    """
    Of a connection that is over nothing waits for the garbage collector.
    """
    isOn = gc.isenabled()
    gc.disable()
    try:
        client = OverTLS()
        client.say()
        transport = client.transport
        gone = [weakref.ref(transport), weakref.ref(transport.wrappedProtocol.session)]
        if not isCut:
            client.say(b"QUIT")
        # Without the client's own end of TLS.
        transport.connectionLost(Failure(ConnectionDone()))
        del client, transport
        assert [each() for each in gone] == [None, None]
    finally:
        if isOn:
            gc.enable()


def test_transportThatDoesNotTell() -> None:
    """
    Where nothing tells what is taken, nothing is said to be: else a client that
    takes nothing would have all it asks for held in memory.
    """
    certificate = PrivateCertificate.loadPEM(b"".join(_selfSigned()))  # type: ignore[no-untyped-call]
    inner = Factory.forProtocol(Protocol)
    factory = TLSMemoryBIOFactory(certificate.options(), isClient=False, wrappedFactory=inner)
    transport = TLSTransport(factory, Protocol())
    transport.makeConnection(StringTransport())
    assert transport.writeSomeData(b"+OK\r\n") == 0
