"""
Accounts behind an HTTP server, with connections in memory.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import UsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from pop3svc.accounts import httpaccounts
from pop3svc.accounts.checkers import AccountsProvider
from pop3svc.accounts.httpaccounts import HTTPAccounts
from pop3svc.credentials import PasswordAttempt
from pop3svc.errors import POP3ResponseError
from pop3svc.protocol.session import ConnectionInfo
from pop3svc.providers.memory import MemoryStore
from pop3svc.service.plugins import HTTPAccountsMaker
from pop3svc.testing.certificates import Authority
from tests.support.logs import logging
from tests.support.webservers import Server

URL = "https://accounts.example.org/check?key=secretkey"
SECRET = "pass wörd"


class Attempt:
    isFromKnownNetwork = False
    isGuess = wasRefused = False


class Site:
    """
    Accounts, and the server that they ask.
    """

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.server = Server()
        self.accounts = HTTPAccounts(URL, reactor=self.clock, endpoints=self.server, **options)

    def logIn(self, name: str = "ann", password: str = SECRET, **more: Any) -> list[Any]:
        """
        @return: a list that gets the outcome.
        """
        credentials = PasswordAttempt(
            name.encode("utf-8", "surrogateescape"),
            password.encode("utf-8", "surrogateescape"),
            clientIP="192.0.2.1",
            isSecure=True,
            **more,
        )
        outcome: list[Any] = []
        self.asking = maybeDeferred(self.accounts.requestAvatarId, credentials)
        self.asking.addBoth(lambda value: outcome.append(_plain(value)))
        self.clock.advance(0)
        return outcome


def _plain(value: Any) -> Any:
    if isinstance(value, Failure):
        if value.check(UnauthorizedLogin):
            return None
        if value.check(POP3ResponseError):
            return value.value.code
        return value.value
    return value


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[str]]:
    with logging() as lines:
        yield lines
    assert not any(SECRET in line or "secretkey" in line for line in lines)


def test_oneRequest(site: Site) -> None:
    verifyObject(ICredentialsChecker, site.accounts)
    outcome = site.logIn()
    head, _, body = site.server.transports[0].value().partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /check?key=secretkey HTTP/1.1"
    assert b"Content-Type: application/json" in lines and b"Connection: close" in lines
    assert b"Accept-Encoding: identity" in lines
    assert not any(each.lower().startswith(b"cookie") for each in lines)
    assert json.loads(body) == {
        "name": "ann",
        "password": SECRET,
        "address": "192.0.2.1",
        "tls": True,
    }
    site.server.answer("200 OK", '{"user": "Änn", "other": 1}'.encode())
    assert outcome == ["Änn".encode()]
    assert not site.server.isOpen and site.clock.getDelayedCalls() == []


def test_noCookies(site: Site) -> None:
    """
    A cookie of one user's login must not be sent with another user's login.
    """
    for _ in range(2):
        site.logIn()
        assert b"ookie" not in site.server.transports[-1].value()
        site.server.answer("200 OK", b'{"user": "ann"}', "Set-Cookie: session=ann; Path=/")


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden"])
def test_refused(site: Site, status: str) -> None:
    attempt = Attempt()
    outcome = site.logIn(attempt=attempt)
    assert attempt.isGuess and not attempt.wasRefused
    # The body of a refusal does not matter, and nobody waits for it.
    site.server.send(f"HTTP/1.1 {status}\r\nContent-Length: 10\r\n\r\n".encode())
    assert outcome == [None] and attempt.wasRefused
    assert not site.server.isOpen


WRONG = [
    ("500 Oops", b"", [], "with the status 500"),
    ("404 Not Found", b"", [], "with the status 404"),
    ("204 No Content", b"", [], "with the status 204"),
    ("302 Found", b"", ["Location: https://evil.example/"], "with the status 302"),
    ("200 OK", b'{"user": "ann"}', ["Content-Type: text/plain"], "without application/json"),
    ("200 OK", b'{"user": "ann"', [], "not valid JSON"),
    ("200 OK", b"\xff", [], "not valid JSON"),
    ("200 OK", b"[" * 60_000, [], "not valid JSON"),
    ("200 OK", b"[]", [], "names no user"),
    ("200 OK", b"{}", [], "names no user"),
    ("200 OK", b'{"user": ""}', [], "names no user"),
    ("200 OK", b'{"user": 7}', [], "names no user"),
    ("200 OK", b'{"user": "a\\nb"}', [], "names no user"),
    ("200 OK", b'{"user": "\\ud800"}', [], "names no user"),
    ("200 OK", b'{"user": "' + b"a" * 513 + b'"}', [], "names no user"),
    ("200 OK", b"x", ["Content-Encoding: gzip"], "is compressed"),
    ("200 OK", b" " * 65_537, [], "more than 65536 octets"),
]


@pytest.mark.parametrize(("status", "body", "headers", "reason"), WRONG)
def test_outOfOrder(
    site: Site, logged: list[str], status: str, body: bytes, headers: list[str], reason: str
) -> None:
    attempt = Attempt()
    outcome = site.logIn(attempt=attempt)
    site.server.answer(status, body, *headers)
    assert outcome == ["SYS/TEMP"] and not attempt.wasRefused
    assert len(site.server.transports) == 1 and not site.server.isOpen
    (line,) = logged
    start = "the server of accounts at https://accounts.example.org/check is not available: "
    assert line.startswith(start) and reason in line
    # The same again is not logged again, and its end is logged once.
    site.logIn()
    site.server.answer(status, body, *headers)
    for _ in range(2):
        site.logIn()
        site.server.answer("401 No")
    assert len(logged) == 2 and logged[1].endswith("/check is available again")
    assert site.clock.getDelayedCalls() == []


def test_unreachable(site: Site, logged: list[str]) -> None:
    site.server.error = ConnectionRefusedError()
    assert site.logIn() == ["SYS/TEMP"]
    assert "(ConnectionRefusedError)" in logged[0]


def test_endedEarly(site: Site, logged: list[str]) -> None:
    outcome = site.logIn()
    site.server.send(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
    )
    site.server.transports[0].loseConnection()
    assert outcome == ["SYS/TEMP"] and "ended early" in logged[0]
    outcome = site.logIn()
    site.server.transports[1].loseConnection()
    assert outcome == ["SYS/TEMP"]


def test_noLength(site: Site) -> None:
    """
    The end of the connection is the end of a body without a length.
    """
    outcome = site.logIn()
    site.server.send(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{"user": "ann"}')
    assert outcome == []
    site.server.transports[0].loseConnection()
    assert outcome == [b"ann"]


def test_endlessHeaders(site: Site, logged: list[str]) -> None:
    """
    The headers have a limit, too.
    """
    outcome = site.logIn()
    site.server.send(b"HTTP/1.1 200 OK\r\n")
    for _ in range(20):
        if site.server.isOpen:
            site.server.send(b"X-Header: %b\r\n" % (b"x" * 9990))
    assert outcome == ["SYS/TEMP"] and not site.server.isOpen
    assert "its answer has too many octets" in logged[0]


STALLED = [
    b"",
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n{",
]


@pytest.mark.parametrize("begun", STALLED)
def test_timeLimit(begun: bytes, logged: list[str]) -> None:
    """
    The limit covers everything up to the last octet of the body.
    """
    site = Site(timeout=7)
    outcome = site.logIn()
    site.clock.advance(4)
    if begun:
        site.server.send(begun)
    site.clock.advance(2.5)
    assert outcome == [] and site.server.isOpen
    site.clock.advance(0.6)
    assert outcome == ["SYS/TEMP"] and not site.server.isOpen
    assert "no complete answer within 7 s" in logged[0]
    assert site.clock.getDelayedCalls() == []


def test_noConnectionInTime(site: Site) -> None:
    connecting: Deferred[Any] = Deferred()
    site.server.connect = lambda factory: connecting  # type: ignore[method-assign]
    outcome = site.logIn()
    site.clock.advance(5.1)
    assert outcome == ["SYS/TEMP"] and connecting.called


def test_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpaccounts, "MOST_WAITING", 2)
    site = Site(concurrent=2)
    attempts = [Attempt() for _ in range(5)]
    outcomes = [site.logIn(attempt=each, patience=3) for each in attempts]
    assert len(site.server.transports) == 2
    assert [each.isGuess for each in attempts] == [True, True, False, False, False]
    # The queue is full for the last one.
    assert outcomes == [[], [], [], [], ["SYS/TEMP"]]
    site.server.answer("200 OK", b'{"user": "one"}', index=0)
    site.clock.advance(0)
    assert outcomes[0] == [b"one"] and len(site.server.transports) == 3
    site.clock.advance(3)
    # The other one has waited for its turn too long.
    assert outcomes[3] == ["SYS/TEMP"] and not attempts[3].isGuess
    assert outcomes[1:3] == [[], []]


def test_clientGoes(site: Site) -> None:
    """
    A request whose client has gone keeps its place until it ends.
    """
    site = Site(concurrent=1)
    outcome = site.logIn()
    first = site.asking
    site.logIn("ben")
    first.cancel()
    assert len(outcome) == 1 and len(site.server.transports) == 1 and site.server.isOpen
    site.clock.advance(5.1)
    assert len(site.server.transports) == 2


@pytest.mark.parametrize(
    ("name", "password"),
    [
        ("a\udcff", "x"),
        ("ann", "\udcff"),
        ("a\0", "x"),
        ("ann", "x\0"),
        ("a" * 513, "x"),
        ("ann", "x" * 1025),
    ],
)
def test_notAsked(site: Site, name: str, password: str) -> None:
    assert site.logIn(name, password) == [None]
    assert site.server.transports == []


def test_otherCredentials(site: Site) -> None:
    asking = maybeDeferred(site.accounts.requestAvatarId, UsernamePassword(b"ann", b"x"))
    site.clock.advance(0)
    body = json.loads(site.server.transports[0].value().partition(b"\r\n\r\n")[2])
    assert body == {"name": "ann", "password": "x", "address": None, "tls": False}
    site.server.answer("200 OK", b'{"user": "ann"}')
    assert asking.result == b"ann"


def test_provider(site: Site) -> None:
    """
    The server gets the address of the client and whether it uses TLS.  The user in the answer names
    the mailbox.
    """
    store = MemoryStore([b"x"])
    info = ConnectionInfo(1, "192.0.2.7", False)
    got: list[Any] = []
    provider = AccountsProvider(store, [site.accounts])
    Deferred.fromCoroutine(provider.authenticate(info, "ann", "x")).addBoth(got.append)
    site.clock.advance(0)
    body = json.loads(site.server.transports[0].value().partition(b"\r\n\r\n")[2])
    assert body["address"] == "192.0.2.7" and body["tls"] is False
    site.server.answer("200 OK", b'{"user": "ann@example.org"}')
    assert len(got) == 1 and list(store.maildrops) == ["ann@example.org"]


# --- the setting ------------------------------------------------------------------


def test_arguments(tmp_path: Path) -> None:
    maker = HTTPAccountsMaker()
    Authority().write(tmp_path / "ca.pem")
    for text in (
        "https://example.org",
        f"https://example.org:8443/a/b?c=d:timeout=60:concurrent=1000:ca={tmp_path / 'ca.pem'}",
        "http://localhost:80/",
        "http://127.0.0.1/:timeout=1",
        "http://[::1]:8080/check:concurrent=1",
        "http://example.org/:insecure=yes",
    ):
        assert isinstance(maker.generateChecker(text), HTTPAccounts)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "a URL such as https://HOST/PATH is needed"),
        ("example.org", "a URL such as https://HOST/PATH is needed"),
        ("ftp://example.org/", "a URL such as https://HOST/PATH is needed"),
        ("https:///path", "a URL such as https://HOST/PATH is needed"),
        ("https://example.org:0/", "a URL such as https://HOST/PATH is needed"),
        ("https://example.org:66666/", "a URL such as https://HOST/PATH is needed"),
        ("https://example.org:x/", "a URL such as https://HOST/PATH is needed"),
        ("https://[::1/", "a URL such as https://HOST/PATH is needed"),
        ("https://example.org/a b", "a URL such as https://HOST/PATH is needed"),
        ("https://ann:x@example.org/", "the URL must not contain a user or a fragment"),
        ("https://example.org/#x", "the URL must not contain a user or a fragment"),
        (
            "http://example.org/",
            "passwords would be sent without TLS; use https, or add insecure=yes to allow this",
        ),
        ("http://localhost/:ca=/x", "ca is for https only"),
        ("https://example.org/:ca=/no/such", "cannot read /no/such: No such file or directory"),
        ("https://example.org/:timeout=0", "timeout is a number of seconds, from 1 to 60"),
        ("https://example.org/:timeout=61", "timeout is a number of seconds, from 1 to 60"),
        ("https://example.org/:timeout=x", "timeout is a number"),
        ("https://example.org/:concurrent=0", "concurrent is a number from 1 to 1000"),
        ("https://example.org/:insecure=maybe", "insecure is yes or no"),
        ("https://example.org/:timeout=5:timeout=6", "timeout is given twice"),
    ],
)
def test_badArguments(text: str, fault: str) -> None:
    with pytest.raises(ValueError) as caught:
        HTTPAccountsMaker().generateChecker(text)
    assert str(caught.value) == fault


def test_withoutTreq(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "treq", None)
    with pytest.raises(ValueError, match="need treq: pip install 'pop3svc\\[http\\]'"):
        HTTPAccountsMaker().generateChecker("https://example.org/")
