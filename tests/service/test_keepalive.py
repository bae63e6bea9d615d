"""
TCP keepalive on every connection: plain, with TLS, and behind a proxy.
"""

from __future__ import annotations

import os
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.protocols.policies import ProtocolWrapper

from pop3svc.policy import Policy
from pop3svc.providers.memory import MemoryProvider
from pop3svc.service.factory import POP3Factory
from pop3svc.service.keepalive import keepAlive, socketOf
from pop3svc.testing import MemoryTransport
from tests.support.running import PATIENCE, Running, freePort
from tests.support.site import options

HEADER = b"PROXY TCP4 192.0.2.7 192.0.2.1 5555 110\r\n"


def isKeptAlive(ours: socket.socket) -> bool:
    """
    @return: whether the other end of a local connection has a timer for keepalive.  While another
        timer is shown in its place, such as the one for unacknowledged data, wait.
    """
    while (timer := timerOf(ours)) in ("01", "04"):
        os.sched_yield()
    return timer == "02"


def timerOf(ours: socket.socket) -> str:
    here, there = ours.getsockname()[1], ours.getpeername()[1]
    with open("/proc/net/tcp") as table:
        next(table)
        for line in table:
            words = line.split()
            ports = [int(each.rpartition(":")[2], 16) for each in words[1:3]]
            if ports == [there, here]:
                return words[5][:2]
    raise AssertionError("no such connection")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_everyConnection(site: Path, tmp_path: Path, workers: str) -> None:
    """
    Keepalive is on for plain connections, after STLS, over TLS, and behind a proxy.
    """
    ports = [freePort() for _ in range(3)]
    where = [
        *("--endpoint", f"tcp:{ports[0]}:interface=127.0.0.1"),
        *("--endpoint", f"ssl:{ports[1]}"),
        *("--tls-endpoint", f"tcp:{ports[2]}:interface=127.0.0.1"),
    ]
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    for more, header in (([], b""), (["--proxy-from", "127.0.0.1"], HEADER)):
        with Running(
            tmp_path / "home", *options(site, *where, *more, "--workers", workers)
        ) as running:
            running.up()
            for port in (ports[0], ports[2]):
                with socket.create_connection(("127.0.0.1", port), PATIENCE) as raw:
                    raw.sendall(header)
                    if port == ports[0]:
                        assert raw.recv(100).startswith(b"+OK")
                        assert isKeptAlive(raw)
                        raw.sendall(b"STLS\r\n")
                        assert raw.recv(100).startswith(b"+OK")
                    with context.wrap_socket(raw) as wrapped:
                        wrapped.sendall(b"NOOP\r\n")
                        assert wrapped.recv(100)
                        assert isKeptAlive(wrapped)


def test_options() -> None:
    """
    The options have the values of the policy.  A value that the kernel refuses is left out, and
    with 0 keepalive stays off.
    """
    names = ["TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT"]
    with socket.socket() as each:
        assert keepAlive(each, Policy(keepaliveIdle=0))
        assert not each.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        keepAlive(each, Policy(keepaliveIdle=70, keepaliveInterval=7, stallTimeout=90))
        assert each.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        found = [each.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names]
        assert found == [70, 7, 4, 90_000]
        keepAlive(each, Policy(keepaliveIdle=99_999_999))
        assert each.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 30
    defaults = Policy()
    assert defaults.keepaliveIdle == 300
    # Linux ends a connection after TCP_USER_TIMEOUT, even if the client only has no room for data.
    # Such a client may stall at least as long as a client may be idle.
    assert defaults.stallTimeout >= defaults.idleTimeout


def test_inAProgramOfOnesOwn() -> None:
    """
    A factory that does not know its ports turns on keepalive for each connection.
    """
    factory = POP3Factory(MemoryProvider({"a": "b"}), clock=Clock())
    address = IPv4Address("TCP", "192.0.2.1", 1)
    with socket.socket() as each:
        transport: Any = MemoryTransport(address, False)
        transport.socket = each
        protocol: Any = factory.buildProtocol(address)
        transport.protocol = protocol
        protocol.makeConnection(transport)
        assert each.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    with socket.socket(socket.AF_UNIX) as local:
        transport.socket = local
        wrapper: Any = ProtocolWrapper.__new__(ProtocolWrapper)
        wrapper.transport = transport
        assert socketOf(wrapper) is None
        transport.socket = each
        assert socketOf(wrapper) is each
    assert socketOf(object()) is None
