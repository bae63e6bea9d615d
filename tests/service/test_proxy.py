"""
PROXY headers, which may arrive in any pieces, and are read only from trusted networks.
"""

from __future__ import annotations

import signal
import socket
import ssl
import struct
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock

from pop3svc.policy import Policy
from pop3svc.providers.memory import MemoryProvider
from pop3svc.service.factory import POP3Factory
from pop3svc.service.proxy import ProxyFactory, parseHeader
from pop3svc.testing import MemoryTransport
from tests.support.running import PATIENCE, Running, freePort
from tests.support.site import options, trusting

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def v2(client: str, command: int = 0x21, more: bytes = b"") -> bytes:
    address = ip_address(client).packed
    family = 0x11 if len(address) == 4 else 0x21
    block = address * 2 + struct.pack("!HH", 5555, 110) + more
    return SIGNATURE + bytes([command, family]) + struct.pack("!H", len(block)) + block


GOOD = [
    (b"PROXY TCP4 192.0.2.7 192.0.2.1 5555 110\r\n", ("192.0.2.7", 5555)),
    (b"PROXY TCP6 2001:db8::7 2001:db8::1 5555 110\r\n", ("2001:db8::7", 5555)),
    (b"PROXY UNKNOWN\r\n", None),
    (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", None),
    (v2("192.0.2.7"), ("192.0.2.7", 5555)),
    (v2("2001:db8::7", more=b"\x04\0\x03abc"), ("2001:db8::7", 5555)),
    (v2("192.0.2.7", 0x20), None),
    (SIGNATURE + b"\x20\0\0\0", None),
    (SIGNATURE + b"\x21\x31\0\x02ab", None),
]


@pytest.mark.parametrize(("header", "client"), GOOD)
def test_headers(header: bytes, client: Any) -> None:
    for cut in range(len(header)):
        assert parseHeader(header[:cut]) is None
    assert parseHeader(header) == (client, b"")
    assert parseHeader(header + b"NOOP\r\n" * 50) == (client, b"NOOP\r\n" * 50)


@pytest.mark.parametrize(
    "header",
    [
        b"NOOP\r\n",
        b"\x16\x03\x01",
        b"PROXY\r\n",
        b"PROXY \r\n",
        b"PROXY TCP4 192.0.2.7\r\n",
        b"PROXY TCP4 2001:db8::7 192.0.2.1 1 2\r\n",
        b"PROXY TCP6 192.0.2.7 192.0.2.1 1 2\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 x 2\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 70000 2\r\n",
        b"PROXY TCP6 fe80::7%eth0 2001:db8::1 1 2\r\n",
        b"PROXY TCP6 fe80::7%x\nfailed 2001:db8::1 1 2\r\n",
        b"PROXY TCP6 ::ffff:192.0.2.7%1 2001:db8::1 1 2\r\n",
        b"PROXY TCP5 192.0.2.7 192.0.2.1 1 2\r\n",
        b"PROXY " + b"x" * 200,
        SIGNATURE + b"\x31\x11\0\x0c" + b"x" * 12,
        SIGNATURE + b"\x21\x11\xff\xff",
        SIGNATURE + b"\x21\x11\0\x04abcd",
    ],
)
def test_malformed(header: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parseHeader(header)


def connect(address: str) -> tuple[Any, MemoryTransport, Any]:
    clock = Clock()
    factory = POP3Factory(MemoryProvider({"alice": "secret"}), clock=clock)
    proxy = ProxyFactory(factory, [ip_network("10.0.0.0/8")], clock, factory.admission)
    peer = IPv4Address("TCP", address, 1)
    protocol = proxy.buildProtocol(peer)
    transport: Any = MemoryTransport(peer, False)
    transport.protocol = protocol
    protocol.makeConnection(transport)
    return protocol, transport, clock


@pytest.mark.parametrize(("header", "client"), GOOD)
def test_fromAProxy(header: bytes, client: Any) -> None:
    """
    The greeting waits for the header, and the header names the client.
    """
    protocol, transport, clock = connect("10.1.2.3")
    data = header + b"USER x\r\n"
    for index in range(len(header)):
        protocol.dataReceived(data[index : index + 1])
        assert bool(transport.written) is (index == len(header) - 1)
    real: Any = transport.protocol
    assert real.session.info.clientIP == ("10.1.2.3" if client is None else client[0])
    real.dataReceived(data[len(header) :])
    assert transport.written.endswith(b"ready.\r\n-ERR Use TLS to log in.\r\n")
    clock.advance(11)
    assert not transport.aborted


def test_fromOthers() -> None:
    """
    A header from a network that is not trusted is an unknown command, and changes no address.
    """
    protocol, transport, _ = connect("192.0.2.9")
    assert transport.written.startswith(b"+OK")
    protocol.dataReceived(GOOD[0][0])
    assert transport.written.endswith(b"-ERR Unknown command.\r\n")
    assert protocol.session.info.clientIP == "192.0.2.9"


def test_noHeader() -> None:
    protocol, transport, clock = connect("10.1.2.3")
    protocol.dataReceived(b"PROXY ")
    clock.advance(11)
    assert (transport.aborted, bytes(transport.written)) == (True, b"")
    protocol, transport, clock = connect("10.1.2.3")
    protocol.dataReceived(b"USER alice\r\n")
    assert (transport.aborted, bytes(transport.written)) == (True, b"")
    protocol, transport, clock = connect("10.1.2.3")
    protocol.connectionLost()
    assert clock.getDelayedCalls() == []


def test_beforeTheHeader() -> None:
    """
    A connection counts from its beginning, before its header, until it ends.
    """
    clock = Clock()
    factory = POP3Factory(
        MemoryProvider({"alice": "secret"}), Policy(maxUnauthenticated=3), clock=clock
    )
    proxy = ProxyFactory(factory, [ip_network("10.0.0.0/8")], clock, factory.admission)
    peer = IPv4Address("TCP", "10.1.2.3", 1)

    def come() -> tuple[Any, Any]:
        protocol, transport = proxy.buildProtocol(peer), MemoryTransport(peer, False)
        transport.protocol = protocol
        protocol.makeConnection(transport)
        return protocol, transport

    came = [come() for _ in range(5)]
    assert [transport.aborted for _, transport in came] == [True, True, False, False, False]
    assert factory.admission.inUse[0] == 3 and len(factory.admission.unauthenticated) == 3
    came[2][0].dataReceived(GOOD[0][0])
    assert {each.address for each in factory.admission.unauthenticated} == {"10.1.2.3", "192.0.2.7"}
    assert len(factory.admission.unauthenticated) == 3
    # The proxy's network has the most unauthenticated connections, so its oldest one is closed.
    came.append(come())
    assert came[3][1].aborted and not came[2][1].aborted
    for protocol, _ in came[3:]:
        protocol.connectionLost()
    clock.advance(11)
    assert {each.address for each in factory.admission.unauthenticated} == {"192.0.2.7"}
    assert factory.admission.inUse[0] == 1


def test_beforeTLS(site: Path, tmp_path: Path) -> None:
    """
    The header comes first on a plain port, also before STLS, and on a port with implicit TLS.
    """
    plain, secure = freePort(), freePort()
    with Running(
        tmp_path / "home",
        *options(
            site,
            *("--proxy-from", "127.0.0.0/8,10.0.0.0/8"),
            *("--endpoint", f"tcp:{plain}:interface=127.0.0.1"),
            *("--endpoint", f"ssl:{secure}:interface=127.0.0.1"),
        ),
    ) as running:
        running.up()
        for port, header in ((plain, GOOD[0][0]), (secure, v2("192.0.2.7"))):
            connection = socket.create_connection(("127.0.0.1", port), PATIENCE)
            connection.sendall(header)
            if port == plain:
                assert connection.recv(100).startswith(b"+OK")
                # The client is not on this machine.
                connection.sendall(b"USER alice\r\n")
                assert connection.recv(100) == b"-ERR Use TLS to log in.\r\n"
                connection.sendall(b"STLS\r\n")
                assert connection.recv(100).startswith(b"+OK")
            with trusting(site).wrap_socket(connection, server_hostname="localhost") as wrapped:
                if port == secure:
                    assert wrapped.recv(100).startswith(b"+OK")
                wrapped.sendall(b"XLOG bob secret word\r\n")
                assert wrapped.recv(100).startswith(b"+OK")
                wrapped.sendall(b"QUIT\r\n")
                assert wrapped.recv(100).startswith(b"+OK")
            assert "bob from 192.0.2.7 (TLS" in running.waitFor("bob from")
        with socket.create_connection(("127.0.0.1", secure), PATIENCE) as raw:
            with pytest.raises((ssl.SSLError, OSError)):
                trusting(site).wrap_socket(raw, server_hostname="localhost")
        assert running.end(signal.SIGTERM) == 0
        assert not any("Traceback" in line for line in running.lines)
