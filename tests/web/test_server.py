"""
The port for HTTP, in memory.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Collection
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.logger import formatEvent
from twisted.python.failure import Failure

from pop3svc.accounts.throttle import LoginGuard, SharedThrottle
from pop3svc.web.guard import Guard
from pop3svc.web.passwords import Passwords
from pop3svc.web.recent import Recent
from pop3svc.web.resources import makeRoot
from pop3svc.web.server import BoundedSite
from tests.support.mailboxes import logged


class Service:
    """
    A service whose numbers the test sets.
    """

    isAlive = True
    isDraining = False

    def __init__(self) -> None:
        self.numbers: Any = {"pop3svc_connections_total": 3}
        self.asked = 0

    async def collect(self) -> Any:
        self.asked += 1
        if isinstance(self.numbers, Exception):
            raise self.numbers
        return await self.numbers if isinstance(self.numbers, Deferred) else self.numbers


class Transport(StringTransport):
    """
    A transport that notes an abort.
    """

    isAborted = False

    def abortConnection(self) -> None:
        self.isAborted = True
        self.disconnecting = True

    def getTcpKeepAlive(self) -> bool:
        return False


class Port:
    """
    A port in memory.
    """

    def __init__(self, password: str = "", hosts: Collection[str] | None = None) -> None:
        self.clock = MemoryReactorClock()
        self.service = Service()
        throttle = LoginGuard(self.clock, SharedThrottle(self.clock))
        passwords = Passwords(password, throttle, self.clock) if password else None
        recent = Recent(self.service.collect, self.clock)
        root = makeRoot(self.service, Guard(passwords, hosts), recent, self.clock)
        self.site = BoundedSite(root, self.clock)
        self.site.startFactory()

    def connect(self, host: str = "127.0.0.1") -> tuple[Any, Transport]:
        channel = self.site.buildProtocol(IPv4Address("TCP", host, 4000))
        transport = Transport()
        channel.makeConnection(transport)
        return channel, transport

    def begin(self, request: bytes, *headers: bytes) -> tuple[Any, Transport]:
        channel, transport = self.connect()
        lines = [request + b" HTTP/1.1", b"Host: x", *headers, b"", b""]
        channel.dataReceived(b"\r\n".join(lines))
        return channel, transport

    def ask(self, request: bytes, *headers: bytes) -> tuple[int, str]:
        """
        @return: the status and the body.
        """
        channel, transport = self.begin(request, *headers)
        channel.connectionLost(Failure(ConnectionDone()))
        return answerOf(transport)


def answerOf(transport: Transport) -> tuple[int, str]:
    assert transport.disconnecting, "the connection stays open"
    head, _, body = transport.value().partition(b"\r\n\r\n")
    assert b"twisted" not in head.lower()
    return int(head.split()[1]), body.decode("ascii")


@pytest.mark.smoke
def test_answers() -> None:
    port = Port()
    status, text = port.ask(b"GET /metrics")
    assert status == 200 and text.splitlines()[-1] == "pop3svc_connections_total 3.0"
    assert port.ask(b"HEAD /metrics") == (200, "")
    assert port.ask(b"GET /healthz") == (200, "ok\n")
    assert port.ask(b"GET /readyz?x=y") == (200, "ready\n")
    assert port.site.channels == {}
    assert port.clock.getDelayedCalls() == []


@pytest.mark.parametrize("path", [b"/", b"/metrics/x", b"/x", b"//", b"/%00"])
def test_otherPaths(path: bytes) -> None:
    assert Port().ask(b"GET " + path) == (404, "There is /metrics, /healthz and /readyz.\n")


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"XYZZY"])
def test_otherMethods(method: bytes) -> None:
    port = Port()
    headers = b"Content-Length: 0"
    assert port.ask(method + b" /metrics", headers)[0] == 405
    assert port.service.asked == 0


def test_aBody() -> None:
    port = Port()
    channel, transport = port.begin(b"POST /metrics", b"Content-Length: 3")
    assert transport.value() == b""
    channel.dataReceived(b"abc")
    assert answerOf(transport)[0] == 405


@pytest.mark.parametrize("header", [b"Content-Length: 65537", b"Transfer-Encoding: chunked"])
def test_aLargeBody(header: bytes) -> None:
    port = Port()
    channel, transport = port.begin(b"POST /metrics", header)
    assert answerOf(transport)[0] == 413
    channel.dataReceived(b"10000\r\n" + b"x" * 65_537 + b"\r\n0\r\n\r\n")
    assert transport.value().count(b"HTTP/1.1") == 1
    channel.connectionLost(Failure(ConnectionDone()))


@pytest.mark.parametrize(
    "data",
    [
        b"GET /metrics\r\n",
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n" + b"A: b\r\n" * 51 + b"\r\n",
        b"GET /" + b"x" * 8192 + b" HTTP/1.1\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nA: " + b"x" * 20_000,
        b"GET /metrics HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n: x\r\n\r\n",
        b"GET * HTTP/1.1\r\n\r\n",
        b"GET http://x/ HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Type: a\rb\r\nContent-Length: 1\r\n\r\nx",
        b"PUT / HTTP/1.1\r\nContent-Type: a\rb\r\nContent-Length: 1\r\n\r\nx",
    ],
)
def test_nonsense(data: bytes) -> None:
    port = Port()
    channel, transport = port.connect()
    events = logged(lambda: channel.dataReceived(data))
    assert transport.disconnecting and port.service.asked == 0
    assert transport.value() == b"" or transport.value().startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert [each for each in events if each.get("log_failure")] == []
    channel.connectionLost(Failure(ConnectionDone()))
    assert port.clock.getDelayedCalls() == []


def test_oddPathOfAHead() -> None:
    """
    twisted.web logs the request, and the log must not contain text of the client.
    """
    port = Port()
    events = logged(lambda: port.ask(b"HEAD /ready\xa1secret"))
    texts = [*map(formatEvent, events)]
    assert not any("secret" in each or "MESSAGE LOST" in each for each in texts)


def test_anotherHost() -> None:
    """
    A page of an attacker whose name leads to this machine (DNS rebinding) reads no metrics.
    """
    port = Port(hosts=["127.0.0.1"])
    assert port.ask(b"GET /metrics")[0] == 421 and port.service.asked == 0
    assert Port(hosts=["x"]).ask(b"GET /metrics")[0] == 200
    assert port.ask(b"GET /healthz")[0] == 200


def test_health() -> None:
    port = Port()
    port.service.isDraining = True
    assert port.ask(b"GET /readyz") == (503, "not ready: draining\n")
    port.service.isDraining, port.service.isAlive = False, False
    assert port.ask(b"GET /readyz") == (503, "not ready: starting\n")
    assert port.ask(b"GET /healthz") == (503, "no process serves\n")
    assert port.service.asked == 0
    port.service.isAlive = True
    port.service.numbers = {"pop3svc_servers_failing": 1}
    assert port.ask(b"GET /readyz")[0] == 503
    assert port.ask(b"GET /healthz")[0] == 200


def basic(password: bytes) -> bytes:
    return b"Authorization: Basic " + b64encode(b"anybody:" + password)


def test_thePassword() -> None:
    port = Port("sesame")
    assert port.ask(b"GET /metrics", basic(b"sesame"))[0] == 200
    assert port.ask(b"GET /healthz")[0] == 200
    assert port.ask(b"GET /readyz")[0] == 200
    for header in (basic(b"wrong"), basic(b""), b"Authorization: Basic !", b"A: b"):
        _, transport = port.begin(b"GET /metrics", header)
        assert transport.value() == b""
        port.clock.advance(1)
        assert answerOf(transport)[0] == 401
        assert b"WWW-Authenticate: Basic" in transport.value()
    # A client that leaves takes its timer with it.
    channel, transport = port.begin(b"GET /metrics", basic(b"wrong"))
    channel.connectionLost(Failure(ConnectionDone()))
    port.clock.advance(1)
    assert transport.value() == b""


def test_manyRequestsAreCollectedOnce() -> None:
    port = Port()
    later: Deferred[Any] = Deferred()
    port.service.numbers = later
    begun = [port.begin(b"GET /metrics") for _ in range(3)]
    events = logged(lambda: begun[0][0].connectionLost(Failure(ConnectionDone())))
    assert [each for each in events if each.get("log_failure")] == []
    assert port.service.asked == 1
    later.callback({"pop3svc_connections_total": 3})
    assert begun[0][1].value() == b""
    assert [answerOf(each)[0] for _, each in begun[1:]] == [200, 200]
    port.service.numbers = {}
    assert "3.0" in port.ask(b"GET /metrics")[1]
    port.clock.advance(1)
    assert port.ask(b"GET /metrics") == (200, "")
    assert port.service.asked == 2


def test_aFailure() -> None:
    port = Port()
    port.service.numbers = RuntimeError("secret")
    answers: list[Any] = []
    events = logged(lambda: answers.append(port.ask(b"GET /metrics")))
    assert answers == [(500, "The log of the service says what failed.\n")]
    assert len([each for each in events if each.get("log_failure")]) == 1
    port.service.numbers = {}
    assert port.ask(b"GET /metrics")[0] == 200


def test_aClientThatHangs() -> None:
    """
    Every connection ends after some seconds, whatever the client sends.
    """
    port = Port()
    port.service.numbers = Deferred()
    silent, slow = port.connect()[1], port.connect()
    waiting = port.begin(b"GET /metrics")[1]
    for _ in range(5):
        port.clock.advance(1.9)
        slow[0].dataReceived(b"X")
        assert not (silent.isAborted or slow[1].isAborted or waiting.isAborted)
    port.clock.advance(0.5)
    assert silent.isAborted and slow[1].isAborted and waiting.isAborted


def test_octetsAfterTheRequest() -> None:
    """
    Octets after the request are dropped, and too many of them end the connection.
    """
    port = Port()
    port.service.numbers = Deferred()
    channel, transport = port.begin(b"GET /metrics")
    another = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    for _ in range(65_536 // len(another)):
        channel.dataReceived(another)
    assert not transport.isAborted and not channel._dataBuffer
    port.service.numbers.callback({})
    assert transport.value().count(b"HTTP/1.1 ") == 1
    channel.dataReceived(another)
    assert transport.isAborted


def test_manyConnectionsOfOneClient() -> None:
    """
    A client that opens many connections takes room only from itself.
    """
    port = Port()
    honest = port.connect("198.51.100.1")[1]
    attack = [port.connect("192.0.2.7")[1] for _ in range(3 * BoundedSite.MOST)]
    assert not honest.isAborted
    assert [each.isAborted for each in attack].count(False) == BoundedSite.MOST - 1
    assert port.connect("198.51.100.2")[1].isAborted is False and not honest.isAborted


def test_tooManyConnections() -> None:
    """
    The oldest connection makes room.
    """
    port = Port()
    begun = [port.connect() for _ in range(BoundedSite.MOST)]
    assert not begun[0][1].isAborted
    assert port.ask(b"GET /healthz")[0] == 200
    assert [each.isAborted for _, each in begun].count(True) == 1 and begun[0][1].isAborted
    assert len(port.site.channels) == BoundedSite.MOST - 1
    port.site.abortAll()
    assert all(each.isAborted for _, each in begun)
