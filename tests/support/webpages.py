"""
The port for HTTP in memory, with the operator's page of a fake service.
"""

from __future__ import annotations

import re
from base64 import b64encode
from typing import Any
from urllib.parse import urlencode

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from pop3svc.accounts.throttle import LoginGuard, SharedThrottle
from pop3svc.admin.operations import OperationError, checkArguments
from pop3svc.metrics.declarations import key
from pop3svc.web.guard import Guard
from pop3svc.web.operator import OperatorPage
from pop3svc.web.passwords import Networks, Passwords
from pop3svc.web.recent import Recent
from pop3svc.web.resources import makeRoot
from pop3svc.web.server import BoundedSite

__all__ = ["Answer", "FakeHandler", "FakeNumbers", "Transport", "WebPages", "basic"]


def basic(password: str) -> str:
    """
    @return: the header with a password.
    """
    return "Authorization: Basic " + b64encode(f"me:{password}".encode()).decode("ascii")


class Transport(StringTransport):
    """
    A transport that notes an abort.
    """

    isAborted = False
    isSecure = False

    def abortConnection(self) -> None:
        self.isAborted = True
        self.disconnecting = True

    def getTcpKeepAlive(self) -> bool:
        return False


class FakeNumbers:
    """
    The numbers of a fake service.
    """

    isAlive = True
    isDraining = False

    def __init__(self) -> None:
        self.numbers: dict[str, Any] = {key("pop3svc_sessions", "awake"): 2}

    async def collect(self) -> Any:
        return dict(self.numbers)


class FakeHandler:
    """
    Answers admin operations with what a test has set.

    @ivar done: the operations that would change something, and their arguments.
    """

    def __init__(self) -> None:
        self.done: list[tuple[str, dict[str, str]]] = []
        self.sessions: list[dict[str, Any]] = []
        self.bans: list[dict[str, Any]] = []
        self.status: dict[str, Any] = {
            "pid": 17,
            "seconds": 90,
            "isDraining": False,
            "sessions": {"awake": 2},
            "listeners": ["127.0.0.1:1110"],
            "certificates": [],
            "servers": [],
            "queues": {"disk": 0},
        }
        self.error: str | None = None
        self.activity: list[Any] = []
        self.activityEnds: list[Deferred[None]] = []

    async def do(self, name: str, arguments: Any, send: Any) -> Any:
        checkArguments(name, arguments)
        if self.error is not None:
            raise OperationError(self.error)
        if name == "who":
            room = send(self.sessions)
            if room is not None:
                await room
            return None
        if name == "status":
            return self.status
        if name == "bans":
            return self.bans
        if name == "activity":
            self.activity.append(send)
            end: Deferred[None] = Deferred()
            self.activityEnds.append(end)
            return await end
        self.done.append((name, dict(arguments)))
        return 1


class Answer:
    """
    An answer as a client reads it.
    """

    def __init__(self, data: bytes) -> None:
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(first.split()[1])
        self.headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(": ")
            self.headers[name.lower()] = value
        self.text = body.decode("utf-8")

    @property
    def cookie(self) -> str:
        return self.headers.get("set-cookie", "").partition(";")[0]

    @property
    def token(self) -> str:
        found = re.search(r'name="token" value="([0-9a-f]{64})"', self.text)
        assert found is not None, self.text
        return found[1]


class WebPages:
    """
    The port in memory.
    """

    def __init__(
        self, password: str = "", hosts: Any = frozenset(["x"]), proxies: Networks = ()
    ) -> None:
        self.clock = MemoryReactorClock()
        self.clock.advance(1e6)
        self.numbers = FakeNumbers()
        self.handler = FakeHandler()
        self.throttle = SharedThrottle(self.clock)
        login = LoginGuard(self.clock, self.throttle)
        passwords = Passwords(password, login, self.clock, proxies) if password else None
        self.guard = Guard(passwords, hosts)
        recent = Recent(self.numbers.collect, self.clock)
        root = makeRoot(self.numbers, self.guard, recent, self.clock)
        self.page = OperatorPage(self.handler, recent.get, self.guard, self.clock)
        self.page.addTo(root)
        self.root = root
        self.site = BoundedSite(root, self.clock)
        self.site.startFactory()

    def begin(
        self, request: str, *headers: str, body: bytes = b"", host: str = "x", ip: str = "192.0.2.7"
    ) -> tuple[Any, Transport]:
        """
        Send a request.
        """
        channel = self.site.buildProtocol(IPv4Address("TCP", ip, 4000))
        transport = Transport(peerAddress=IPv4Address("TCP", ip, 4000))
        channel.makeConnection(transport)
        lines = [f"{request} HTTP/1.1", f"Host: {host}", *headers]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        channel.dataReceived("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        return channel, transport

    def ask(self, request: str, *headers: str, wait: float = 0, **more: Any) -> Answer:
        """
        @param wait: seconds until the answer.
        """
        channel, transport = self.begin(request, *headers, **more)
        if wait:
            self.clock.advance(wait)
        assert transport.disconnecting, "the connection stays open"
        channel.connectionLost(Failure(ConnectionDone()))
        return Answer(transport.value())

    def post(self, path: str, *headers: str, **fields: str) -> Answer:
        """
        Send a form.
        """
        kind = "Content-Type: application/x-www-form-urlencoded"
        return self.ask(f"POST {path}", kind, *headers, body=urlencode(fields).encode("ascii"))
