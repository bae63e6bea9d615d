"""
Tokens that their issuer is asked about, with connections in memory.
"""

from __future__ import annotations

import sys
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from pop3svc.accounts import introspection
from pop3svc.accounts.claims import ClaimRules
from pop3svc.accounts.introspection import IntrospectedTokens, SecretFile
from pop3svc.accounts.oauth import OAuthAccounts
from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import ILoginAttempt
from pop3svc.protocol.session import ConnectionInfo
from pop3svc.service.plugins import OAuthMaker
from pop3svc.service.settings import SettingError, Store
from pop3svc.service.stores import makeAccounts
from pop3svc.testing import Inline
from pop3svc.testing.certificates import Authority
from tests.support.logs import logging
from tests.support.webservers import Server

URL = "https://id.example.org/introspect?key=secretkey"
WHERE = "the introspection of tokens at https://id.example.org/introspect"
TOKEN = "opaque-token+/=="
SECRET = "s:e+c ä%"
NOW = 1_700_000_000


@implementer(ILoginAttempt)
class Attempt:
    wasRefused = False
    isGuess = True

    def __init__(self, isKnown: bool = False) -> None:
        self.isFromKnownNetwork = isKnown


class Site:
    """
    Accounts, and the server that they ask.
    """

    def __init__(self, path: Path, rules: ClaimRules | None = None, **options: Any) -> None:
        self.clock = Clock()
        self.server = Server()
        (path / "secret").write_text(SECRET + "\n")
        self.secret = SecretFile(str(path / "secret"), Inline())
        self.tokens = IntrospectedTokens(
            URL,
            "pop3 svc",
            self.secret,
            rules or ClaimRules(None, None, "username"),
            reactor=self.clock,
            endpoints=self.server,
            **options,
        )
        self.accounts = OAuthAccounts(self.tokens, lambda: NOW)

    def logIn(self, token: str = TOKEN, name: str | None = None, attempt: Any = None) -> list[Any]:
        """
        @return: a list that gets the name of the user, L{None}, or the code of the error.
        """
        info = ConnectionInfo(1, "192.0.2.1", True)
        info.loginAttempt = attempt
        outcome: list[Any] = []

        def ended(value: Any) -> None:
            if isinstance(value, Failure):
                value = value.value
                value = value.code if isinstance(value, POP3ResponseError) else value
            outcome.append(value)

        self.asking = Deferred.fromCoroutine(self.accounts.userOfToken(info, token, name))
        self.asking.addBoth(ended)
        self.clock.advance(0)
        return outcome

    def answerTo(self, body: str, **options: Any) -> Any:
        """
        @return: the outcome of a login to which the server answers this.
        """
        outcome = self.logIn(**options)
        self.server.answer("200 OK", body.encode("utf-8", "surrogatepass"))
        assert not self.server.isOpen and self.clock.getDelayedCalls() == []
        (one,) = outcome
        return one


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[str]]:
    with logging() as lines:
        yield lines
    for part in (TOKEN, SECRET, "secretkey"):
        assert not any(part in line for line in lines)


def test_request(site: Site) -> None:
    """
    The token is in the body alone, and the secret is encoded as RFC 6749 section 2.3.1 says.
    """
    outcome = site.logIn("a&token=b\0ü" + TOKEN, "ann")
    lines, body = site.server.request()
    assert lines[0] == b"POST /introspect?key=secretkey HTTP/1.1"
    assert b"Content-Type: application/x-www-form-urlencoded" in lines
    assert b"Accept: application/json" in lines and b"Accept-Encoding: identity" in lines
    credentials = b64encode(b"pop3+svc:s%3Ae%2Bc+%C3%A4%25")
    assert b"Authorization: Basic " + credentials in lines
    assert parse_qs(body.decode("ascii"), strict_parsing=True) == {
        "token": ["a&token=b\0ü" + TOKEN],
        "token_type_hint": ["access_token"],
    }
    site.server.answer("200 OK", b'{"active": true, "username": "ann"}')
    assert outcome == ["ann"]


ACCEPTED = [
    "",
    f', "exp": {NOW - 30}, "nbf": {NOW + 30}, "iat": {NOW + 30}',
    f', "exp": {NOW + 10**9}, "token_type": "bearer"',
    ', "exp": null, "aud": null, "iss": null, "cnf": null',
    ', "iss": "https://other.example/", "aud": ["other"], "scope": "x", "client_id": "other"',
]


@pytest.mark.parametrize("more", ACCEPTED)
def test_accepted(site: Site, more: str) -> None:
    """
    Clocks may differ by a minute, and the issuer need not say when a token expires.
    """
    assert site.answerTo('{"active": true, "username": "ann"' + more + "}", name="ann") == "ann"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ('{"active": false}', "its issuer says that it is not active"),
        ('{"active": false, "username": "ann"}', "its issuer says that it is not active"),
        ('{"active": true}', "it has no usable user name"),
        ('{"active": true, "sub": "ann"}', "it has no usable user name"),
        ('{"active": true, "username": 5}', "it has no usable user name"),
        ('{"active": true, "username": ""}', "it has no usable user name"),
        ('{"active": true, "username": "a\\nb"}', "it has no usable user name"),
        ('{"active": true, "username": "bob"}', "it is the token of another user"),
        ('{"active": true, "username": "ann", "token_type": "DPoP"}', "its type is wrong"),
        ('{"active": true, "username": "ann", "token_type": 1}', "its type is wrong"),
        ('{"active": true, "username": "ann", "cnf": {}}', "it is bound to a key of its client"),
        *(
            (f'{{"active": true, "username": "ann", {claim}}}', reason)
            for claim, reason in [
                (f'"exp": {NOW - 90}', "it has expired"),
                (f'"exp": "{NOW + 90}"', "it has expired"),
                ('"exp": true', "it has expired"),
                (f'"nbf": {NOW + 90}', "it is not valid yet"),
                (f'"iat": {NOW + 90}', "it is not valid yet"),
                ('"iss": 5', "its issuer is missing or wrong"),
                ('"aud": 5', "its audience is missing or wrong"),
            ]
        ),
    ],
)
def test_refused(site: Site, logged: list[str], answer: str, reason: str) -> None:
    assert site.answerTo(answer, name="ann") is None
    assert site.answerTo(answer, name="ann") is None
    (line,) = logged
    assert line.startswith(f"a token is refused, because {reason}")


RULES = ClaimRules(
    "https://id.example.org/", "pop3", "email", frozenset(["mail"]), frozenset(["app"])
)
CLAIMS = {
    "active": "true",
    "iss": '"https://id.example.org/"',
    "aud": '["web", "pop3"]',
    "email": '"ann"',
    "scope": '"openid mail"',
    "client_id": '"app"',
}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"iss": None}, "its issuer"),
        ({"iss": "null"}, "its issuer"),
        ({"iss": '"https://id.example.org"'}, "its issuer"),
        ({"aud": None}, "its audience"),
        ({"aud": '"web"'}, "its audience"),
        ({"aud": "[]"}, "its audience"),
        ({"scope": '"openid"'}, "a scope"),
        ({"scope": None}, "a scope"),
        ({"client_id": '"other"'}, "it was issued to another client"),
        ({"client_id": '["app"]'}, "it was issued to another client"),
        ({"client_id": None}, "it was issued to another client"),
        ({"email": None, "username": '"ann"'}, "it has no usable user name"),
        ({"email_verified": "false"}, "its address is not verified"),
    ],
)
def test_rules(tmp_path: Path, logged: list[str], changes: Any, reason: str) -> None:
    site = Site(tmp_path, RULES)
    claims = {name: value for name, value in (CLAIMS | changes).items() if value is not None}
    text = ", ".join(f'"{name}": {value}' for name, value in claims.items())
    assert site.answerTo("{" + text + "}", name="ann") == (None if reason else "ann")
    assert len(logged) == bool(reason)
    assert all(line.startswith(f"a token is refused, because {reason}") for line in logged)


@pytest.mark.parametrize(
    ("status", "body", "headers", "reason"),
    [
        ("401 Unauthorized", b"", [], "it refuses client and secret (status 401)"),
        ("403 Forbidden", b"", [], "it answers with the status 403"),
        ("400 Bad Request", b'{"error": "x"}', [], "it answers with the status 400"),
        ("500 Oops", b"", [], "it answers with the status 500"),
        ("204 No Content", b"", [], "it answers with the status 204"),
        ("307 No", b"", ["Location: https://evil.example/"], "it answers with the status 307"),
        ("200 OK", b"active=true", ["Content-Type: text/html"], "without application/json"),
        ("200 OK", b'{"active": true', [], "its answer is not a valid JSON object"),
        ("200 OK", b'["active"]', [], "its answer is not a valid JSON object"),
        ("200 OK", b"[" * 60_000, [], "its answer is not a valid JSON object"),
        ("200 OK", b'{"active": false, "active": true}', [], "is not a valid JSON object"),
        ("200 OK", b'{"active": true, "exp": NaN}', [], "is not a valid JSON object"),
        ("200 OK", b"{}", [], "does not say whether the token is active"),
        ("200 OK", b'{"active": "false"}', [], "does not say whether the token is active"),
        ("200 OK", b'{"active": 1}', [], "does not say whether the token is active"),
        ("200 OK", b'{"active": null}', [], "does not say whether the token is active"),
        ("200 OK", b"x", ["Content-Encoding: gzip"], "its answer is compressed"),
        ("200 OK", b" " * 65_537, [], "its answer has more than 65536 octets"),
    ],
)
def test_outOfOrder(
    site: Site, logged: list[str], status: str, body: bytes, headers: list[str], reason: str
) -> None:
    for _ in range(2):
        outcome = site.logIn()
        site.server.answer(status, body, *headers)
        assert outcome == ["SYS/TEMP"] and not site.server.isOpen
    assert site.answerTo('{"active": false}') is None
    assert len(site.server.transports) == 3
    assert logged[0].startswith(f"{WHERE} is not available: ") and reason in logged[0]
    assert logged[1] == f"{WHERE} is available again"


def test_unreachable(site: Site, logged: list[str]) -> None:
    site.server.error = ConnectionRefusedError()
    assert site.logIn() == ["SYS/TEMP"]
    assert "(ConnectionRefusedError)" in logged[0]


def test_noAnswer(tmp_path: Path, logged: list[str]) -> None:
    """
    The limit covers everything up to the last octet of the body.
    """
    site = Site(tmp_path, timeout=7)
    outcome = site.logIn()
    site.clock.advance(6.5)
    site.server.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{")
    assert outcome == [] and site.server.isOpen
    site.clock.advance(0.6)
    assert outcome == ["SYS/TEMP"] and not site.server.isOpen
    assert "no complete answer within 7 s" in logged[0]


def test_tooLong(site: Site) -> None:
    assert site.logIn("x" * 8193) == [None]
    assert site.server.transports == []
    assert site.logIn("x" * 8192) == []


def test_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Users from known networks go first.  A login counts as a guess from its request on.
    """
    monkeypatch.setattr(introspection, "MOST_WAITING", 2)
    site = Site(tmp_path, concurrent=1)
    attempts = [Attempt(), Attempt(), Attempt(isKnown=True), Attempt()]
    outcomes = [site.logIn(f"token{n}", None, each) for n, each in enumerate(attempts)]
    assert [each.isGuess for each in attempts] == [True, False, False, False]
    # The queue is full for the last one.
    assert outcomes == [[], [], [], ["SYS/TEMP"]]
    for expected in (0, 2, 1):
        assert b"token=token%d&" % expected in site.server.request()[1]
        site.server.answer("200 OK", b'{"active": true, "username": "u%d"}' % expected)
        assert outcomes[expected] == [f"u{expected}"] and attempts[expected].isGuess
        site.clock.advance(0)


def test_patience(tmp_path: Path) -> None:
    site = Site(tmp_path, concurrent=1, timeout=60)
    first, second = site.logIn(), site.logIn()
    site.clock.advance(31)
    assert first == [] and second == ["SYS/TEMP"]
    assert len(site.server.transports) == 1


def test_clientGoes(tmp_path: Path) -> None:
    """
    A request whose client has gone keeps its place until it ends.
    """
    site = Site(tmp_path, concurrent=1)
    site.logIn()
    first = site.asking
    site.logIn("other")
    first.cancel()
    assert len(site.server.transports) == 1 and site.server.isOpen
    site.clock.advance(5.1)
    assert len(site.server.transports) == 2


def test_secret(tmp_path: Path, site: Site, logged: list[str]) -> None:
    """
    Reloading reads the secret again; a file that cannot be used changes nothing.
    """
    path = tmp_path / "secret"

    def reload() -> None:
        Deferred.fromCoroutine(site.accounts.reload()).addErrback(pytest.fail)

    path.write_text("second\r\n")
    reload()
    for content in (b"", b"\n", b"a\nb\n", b"\xff", b"x" * 1025):
        path.write_bytes(content)
        reload()
    path.unlink()
    reload()
    assert len(logged) == 6
    assert all(line.startswith("keeping the previous secret: ") for line in logged)
    assert f"cannot read {path}: No such file" in logged[-1]
    site.logIn()
    assert b"Authorization: Basic " + b64encode(b"pop3+svc:second") in site.server.request()[0]


# --- the setting ------------------------------------------------------------------


def accountsOf(argument: str) -> Any:
    (made,) = makeAccounts(Store("--provider", "--auth", None, None, (f"oauth:{argument}",)))
    return made


def test_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str]) -> None:
    (tmp_path / "secret").write_text("x")
    Authority().write(tmp_path / "ca.pem")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    secret, rest = f"client=pop3:secret={tmp_path}/secret", ":issuer=https://x/:audience=pop3"
    for argument in (
        f"introspect=https://id.example.org:8443/introspect?a=b:{secret}{rest}",
        f"introspect=https://id.example.org/:{secret}:scope=a,b",
        f"introspect=https://id.example.org/:{secret}:clients=a:claim=sub:ca={tmp_path}/ca.pem",
        f"introspect=http://127.0.0.1:80/:timeout=60:concurrent=1000:{secret}{rest}",
        f"introspect=http://[::1]:80/:client=a b:secret-credential=secret{rest}",
    ):
        assert isinstance(accountsOf(argument), OAuthAccounts)
    assert logged == []
    accountsOf(f"introspect=https://id.example.org/a?b:{secret}")
    (line,) = logged
    assert line.startswith("every token of https://id.example.org/a is accepted")


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("introspect=URL", "client is needed"),
        ("introspect=URL:client=c", "either secret or secret-credential is needed"),
        (
            "introspect=URL:client=c:secret=PATH:secret-credential=c",
            "either secret or secret-credential",
        ),
        ("introspect=URL:client=c:secret=PATHx", "cannot read PATHx: No such file or directory"),
        ("introspect=URL:client=c:secret=DIR", "cannot read DIR: "),
        ("introspect=URL:client=c:secret=EMPTY", "EMPTY must contain one line"),
        (
            "introspect=URL:client=c:secret-credential=a/b",
            "secret-credential the name of a credential",
        ),
        ("introspect=URL:client=c:secret=PATH:jwks=x", "introspect cannot be combined with jwks"),
        ("introspect=URL:client=c:secret=PATH:algorithms=RS256", "algorithms cannot be combined"),
        ("introspect=URL:client=c:secret=PATH:timeout=0", "timeout is a number from 1 to 60"),
        ("introspect=URL:client=c:secret=PATH:timeout=61", "timeout is a number from 1 to 60"),
        ("introspect=URL:client=c:secret=PATH:concurrent=x", "concurrent is a number from 1 to"),
        ("introspect=URL:client=c:secret=PATH:ca=PATHx", "cannot read PATHx"),
        ("introspect=URL:client=c:secret=PATH:ca=PATH", "contains no certificate"),
        ("introspect=http://id.example.org/:client=c:secret=PATH", "use https"),
        ("introspect=http://localhost/:client=c:secret=PATH", "use https"),
        ("introspect=https://a:b@h/:client=c:secret=PATH", "must not contain a user"),
        ("introspect=id.example.org:client=c:secret=PATH", "introspect: a URL"),
    ],
)
def test_badArguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str, sentence: str
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    path = tmp_path / "secret"
    path.write_text("x")
    (tmp_path / "empty").write_text("")

    def filled(text: str) -> str:
        names = {"=URL": "=https://h/", "PATH": str(path), "DIR": str(tmp_path)}
        for name, value in (names | {"EMPTY": str(tmp_path / "empty")}).items():
            text = text.replace(name, value)
        return text

    with pytest.raises(SettingError) as caught:
        accountsOf(filled(argument))
    assert filled(sentence) in str(caught.value)


def test_noCredentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(SettingError, match="secret-credential needs systemd's credentials"):
        accountsOf("introspect=https://h/:client=c:secret-credential=c")


@pytest.mark.parametrize("module", ["treq", "joserfc"])
def test_withoutLibraries(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    for name in [each for each in sys.modules if each.startswith("pop3svc.accounts.")]:
        if name.rpartition(".")[2] in ("oauth", "claims", "tokens", "introspection", "issuerkeys"):
            monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ValueError, match="pip install 'pop3svc\\[oauth\\]'"):
        OAuthMaker().generateChecker("jwks=x")
