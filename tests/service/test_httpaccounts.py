"""
Accounts that are checked by HTTP, with a real service and a real server of twisted.web.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import ssl
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from pop3svc.testing.certificates import Authority
from pop3svc.testing.reactorthread import reactorThread
from tests.support.maildirs import deliver
from tests.support.running import Running, freePort, replyToLogin

SECRET = "topsecret"
AWAY = b"-ERR [SYS/TEMP] Accounts are not available now.\r\n"
WRONG = b"-ERR [AUTH] Wrong name or password.\r\n"


class Check(Resource):
    """
    Checks passwords.  The user's name in the request decides how the resource answers.
    """

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[dict[str, Any]] = []
        self.redirected = 0

    def render(self, request: Any) -> Any:
        if request.path != b"/check":
            self.redirected += 1
            return b'{"user": "ann"}'
        asked = json.loads(request.content.read())
        self.asked.append(asked)
        request.setHeader("Content-Type", "application/json")
        name = asked["name"]
        if name == "silent":
            return NOT_DONE_YET
        if name == "stalling":
            request.setHeader("Content-Length", "15")
            request.write(b'{"user"')
            return NOT_DONE_YET
        if name == "large":
            return b" " * 20_000_000
        if name == "redirected":
            request.setHeader("Location", "/elsewhere")
        request.setResponseCode({"broken": 500, "redirected": 307}.get(name, 200))
        if asked["password"] != SECRET:
            request.setResponseCode(401)
            return b""
        return b'{"user": "ann"}'


class Server:
    """
    A server of twisted.web in a thread of this process.
    """

    def __init__(self) -> None:
        self.check = Check()
        self.port = freePort()
        self._listening: Any = None
        self._site: Any = None

    def start(self, certificate: Path | None = None) -> None:
        from twisted.internet import reactor

        def listen() -> None:
            network: Any = reactor
            self._site = Site(self.check)
            if certificate is None:
                self._listening = network.listenTCP(self.port, self._site, interface="127.0.0.1")
            else:
                options = ssl.PrivateCertificate.loadPEM(certificate.read_bytes()).options()
                self._listening = network.listenSSL(
                    self.port, self._site, options, interface="127.0.0.1"
                )

        reactorThread.call(listen)

    def stop(self) -> None:
        if self._listening is not None:
            listening, self._listening = self._listening, None
            reactorThread.call(listening.stopListening)


@pytest.fixture
def server() -> Iterator[Server]:
    reactorThread.hold()
    server = Server()
    try:
        yield server
    finally:
        server.stop()
        reactorThread.release()


def options(tmp_path: Path, port: int, auth: str) -> list[str]:
    deliver(tmp_path / "mail" / "ann", "1.x")
    return [
        *("--provider", f"maildir:{tmp_path / 'mail'}", "--auth", f"http:{auth}"),
        *("--endpoint", f"tcp:{port}:interface=127.0.0.1"),
    ]


def answer(port: int, name: str, password: str = SECRET) -> bytes:
    return replyToLogin(port, name, password)


def test_answers(tmp_path: Path, server: Server) -> None:
    server.start()
    port = freePort()
    url = f"http://127.0.0.1:{server.port}/check"
    with Running(tmp_path / "home", *options(tmp_path, port, f"{url}:timeout=2")) as running:
        running.up()
        assert answer(port, "ann@example.org").startswith(b"+OK")
        assert server.check.asked == [
            {"name": "ann@example.org", "password": SECRET, "address": "127.0.0.1", "tls": False}
        ]
        assert answer(port, "ann", "wrong") == WRONG
        assert answer(port, "broken") == AWAY
        assert answer(port, "redirected") == AWAY
        began = time.monotonic()
        assert answer(port, "large") == AWAY
        assert time.monotonic() - began < 2
        assert answer(port, "silent") == AWAY
        assert answer(port, "stalling") == AWAY
        assert 4 <= time.monotonic() - began < 30
        assert answer(port, "ann").startswith(b"+OK")
        lines = running.finish(SECRET)
    assert server.check.redirected == 0 and len(server.check.asked) == 8
    begun = [line for line in lines if "is not available: " in line]
    assert len(begun) == 1 and f"{url} is not available: it answers with the status 500" in begun[0]
    assert sum("is available again" in line for line in lines) == 1
    assert sum("failed login" in line for line in lines) == 1


def test_comesAndGoes(tmp_path: Path, server: Server) -> None:
    """
    The service starts without the server, and logins succeed whenever the server can be reached.
    """
    port = freePort()
    url = f"http://localhost:{server.port}/check"
    with Running(tmp_path / "home", *options(tmp_path, port, url)) as running:
        running.up()
        assert answer(port, "ann") == AWAY
        server.start()
        for _ in range(2):
            assert answer(port, "ann").startswith(b"+OK")
        server.stop()
        for _ in range(2):
            assert answer(port, "ann") == AWAY
        server.start()
        assert answer(port, "ann").startswith(b"+OK")
        lines = running.finish(SECRET)
    assert sum("is not available: it cannot be reached" in line for line in lines) == 2
    assert sum("is available again" in line for line in lines) == 2


def test_certificates(tmp_path: Path, server: Server) -> None:
    """
    A server gets no password if its certificate is for another name, has expired, or belongs to
    another authority.
    """
    authority = Authority()
    authority.write(tmp_path / "ca.pem")
    authority.issue(tmp_path / "right.pem", ["localhost"])
    authority.issue(tmp_path / "other.pem", ["other.example.org"])
    authority.issue(tmp_path / "expired.pem", ["localhost"], days=-1)
    Authority().issue(tmp_path / "stranger.pem", ["localhost"])
    port = freePort()
    url = f"https://localhost:{server.port}/check:ca={tmp_path / 'ca.pem'}"
    with Running(tmp_path / "home", *options(tmp_path, port, url)) as running:
        running.up()
        for name in ("other", "expired", "stranger"):
            server.start(tmp_path / f"{name}.pem")
            assert answer(port, "ann") == AWAY
            server.stop()
        assert server.check.asked == []
        server.start(tmp_path / "right.pem")
        assert answer(port, "ann").startswith(b"+OK")
        assert answer(port, "ann", "wrong") == WRONG
        assert answer(port, "large") == AWAY
        assert answer(port, "ann").startswith(b"+OK")
        lines = running.finish(SECRET)
    begun = [line for line in lines if "is not available: " in line]
    assert len(begun) == 2 and "TLS failed, for example because its certificate" in begun[0]
