"""
Tokens that must be refused, and the keys that verify them.
"""

from __future__ import annotations

import hmac
import json
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc.jwk import ECKey, RSAKey
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from pop3svc.accounts.claims import BadToken, ClaimRules, parseJSON
from pop3svc.accounts.httprequests import HTTPUnavailable
from pop3svc.accounts.issuerkeys import FetchedKeys, FileKeys, fetchedKeys
from pop3svc.accounts.oauth import OAuthAccounts, SignedTokens
from pop3svc.accounts.tokens import KeySet, TokenRules
from pop3svc.awaiting import startNow
from pop3svc.errors import POP3ResponseError
from pop3svc.service.plugins import OAuthMaker
from pop3svc.service.settings import SettingError, Store
from pop3svc.service.stores import makeAccounts
from pop3svc.testing import Inline
from tests.support.logs import logging
from tests.support.tokens import AUDIENCE, ISSUER, Issuer, compact, encoded
from tests.support.webservers import Server as WebServer

RULES = TokenRules(ClaimRules(ISSUER, AUDIENCE, "email"))


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


def check(issuer: Issuer, token: str, rules: TokenRules = RULES, now: float | None = None) -> str:
    key = KeySet(issuer.published()).pick(rules.keyNameOf(token))
    if key is None:
        raise BadToken("no such key")
    return rules.nameOf(token, key, time.time() if now is None else now)


# --- tokens ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "algorithm"), [("rsa", "RS256"), ("ec", "ES256"), ("ed", "EdDSA"), ("ed", "Ed25519")]
)
def test_accepted(issuer: Issuer, name: str, algorithm: str) -> None:
    assert check(issuer, issuer.token(name, algorithm)) == "ann@example.org"


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": ["other", AUDIENCE]},
        {"iat": None},
        {"nbf": 20},
        {"exp": -20},
        {"email_verified": True},
        {"email_verified": "true"},
        {"header": {"typ": None}},
        {"header": {"typ": "JWT"}},
        {"header": {"typ": "application/AT+JWT"}},
    ],
)
def test_stillAccepted(issuer: Issuer, changes: dict[str, Any]) -> None:
    """
    Clocks may differ by a minute, and some claims may be missing or have several forms.
    """
    # Times are relative, because other tests may have taken long since this list was made.
    changes = {
        name: int(time.time()) + value if name in ("nbf", "exp") else value
        for name, value in changes.items()
    }
    assert check(issuer, issuer.token(**changes)) == "ann@example.org"


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://other.example.org/"},
        {"iss": None},
        {"iss": [ISSUER]},
        {"iss": ISSUER.rstrip("/")},
        {"aud": "other"},
        {"aud": ["other"]},
        {"aud": []},
        {"aud": None},
        {"aud": [AUDIENCE, 1]},
        {"exp": None},
        {"exp": int(time.time()) - 120},
        {"exp": str(int(time.time()) + 600)},
        {"exp": True},
        {"exp": [int(time.time()) + 600]},
        {"exp": 1e308},
        {"exp": 10**400},
        {"exp": int(time.time()) + 10 * 86_400},
        {"nbf": int(time.time()) + 36_000},
        {"nbf": "0"},
        {"iat": int(time.time()) + 36_000},
        {"iat": False},
        {"email": None},
        {"email": ""},
        {"email": 1},
        {"email": ["ann@example.org"]},
        {"email": "ann\0@example.org"},
        {"email": "ann\n"},
        {"email": "\ud800"},
        {"email": "a" * 256},
        {"email_verified": False},
        {"email_verified": "false"},
        {"header": {"typ": "logout+jwt"}},
        {"header": {"typ": 1}},
        {"header": {"kid": "other"}},
        {"header": {"kid": 1}},
        {"header": {"kid": None}},
        {"header": {"kid": "ec"}},
        {"header": {"alg": "none"}},
        {"header": {"alg": "None"}},
        {"header": {"alg": "HS256"}},
        {"header": {"alg": "RS384"}},
        {"header": {"alg": "PS256"}},
        {"header": {"alg": ["RS256"]}},
        {"header": {"alg": None}},
        {"header": {"crit": []}},
        {"header": {"crit": ["b64"], "b64": False}},
        {"header": {"zip": "DEF"}},
    ],
)
def test_refused(issuer: Issuer, changes: dict[str, Any]) -> None:
    with pytest.raises(BadToken) as caught:
        check(issuer, issuer.token(**changes))
    assert "example.org" not in str(caught.value)


def test_notANumber(issuer: Issuer) -> None:
    """
    C{NaN}, C{Infinity} and a number that is too large for a float are no times.
    """
    header = {"alg": "RS256", "kid": "rsa"}
    claims = json.dumps(issuer.claims(exp="EXP"))
    for number in ("NaN", "Infinity", "1e400", "-1e400"):
        payload = claims.replace('"EXP"', number).encode()
        with pytest.raises(BadToken):
            check(issuer, compact(header, payload, issuer.keys["rsa"], "RS256"))


def test_keyConfusion(issuer: Issuer) -> None:
    """
    A public key is no secret, so it must not verify a symmetric signature.
    """
    public = issuer.keys["rsa"].public_key.public_bytes(
        Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    )
    header = {"alg": "HS256", "typ": "JWT", "kid": "rsa"}
    signed, _, _ = compact(header, issuer.claims(), issuer.keys["rsa"], "RS256").rpartition(".")
    token = f"{signed}.{encoded(hmac.digest(public, signed.encode(), 'sha256'))}"
    with pytest.raises(BadToken):
        check(issuer, token)
    with pytest.raises(BadToken):
        RULES.nameOf(token, KeySet(issuer.published()).pick("rsa"), time.time())


def test_withoutSignature(issuer: Issuer) -> None:
    header = encoded(json.dumps({"alg": "none", "typ": "JWT", "kid": "rsa"}).encode())
    payload = encoded(json.dumps(issuer.claims()).encode())
    for token in (f"{header}.{payload}.", f"{header}.{payload}", f"{header}.{payload}.AA"):
        with pytest.raises(BadToken):
            check(issuer, token)


def test_changedToken(issuer: Issuer) -> None:
    header, payload, signature = issuer.token().split(".")
    _, other, _ = issuer.token(email="bob@example.org").split(".")
    zero = encoded(bytes(64))
    for token in (
        f"{header}.{other}.{signature}",
        f"{header}.{payload}.{signature[:-4]}",
        f"{header}.{payload}.{signature}AAAA",
        f"{header}.{payload}.",
        f"{header}.{payload}.{signature}.",
        f".{payload}.{signature}",
        f"{header}.{payload}.{signature}\n",
        ".".join([*issuer.token("ec", "ES256").split(".")[:2], zero]),
    ):
        with pytest.raises(BadToken):
            check(issuer, token)


def test_ownKey(issuer: Issuer) -> None:
    """
    A key that the token brings along is not used.
    """
    own: Any = RSAKey.generate_key(2048)
    header = {"alg": "RS256", "kid": "rsa", "jwk": own.as_dict(private=False)}
    with pytest.raises(BadToken):
        check(issuer, compact(header, issuer.claims(), own, "RS256"))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b"1",
        b'{"a":' * 900 + b"1" + b"}" * 900,
        b"[" * 3000,
    ],
)
def test_signedGarbage(issuer: Issuer, payload: bytes) -> None:
    header = {"alg": "RS256", "kid": "rsa"}
    with pytest.raises(BadToken):
        check(issuer, compact(header, payload, issuer.keys["rsa"], "RS256"))


def test_doubledNames(issuer: Issuer) -> None:
    """
    Parsers differ in which of two values they take.
    """
    claims = json.dumps(issuer.claims())
    doubled = (claims[:-1] + ',"email":"bob@example.org"}').encode()
    key = issuer.keys["rsa"]
    with pytest.raises(BadToken):
        check(issuer, compact({"alg": "RS256", "kid": "rsa"}, doubled, key, "RS256"))
    header = b'{"alg":"RS256","kid":"ec","kid":"rsa"}'
    with pytest.raises(BadToken):
        check(issuer, compact(header, issuer.claims(), key, "RS256"))
    with pytest.raises(ValueError):
        parseJSON(b"[" * 100_000)


def test_tooLong(issuer: Issuer) -> None:
    token = issuer.token(more="a" * 8192)
    assert len(token) > 8192
    with pytest.raises(BadToken):
        check(issuer, token)
    assert check(issuer, issuer.token(more="a" * 5000)) == "ann@example.org"


@pytest.mark.parametrize("client", [None, "other", ["app"], 1])
def test_clients(issuer: Issuer, client: Any) -> None:
    rules = TokenRules(ClaimRules(ISSUER, AUDIENCE, "email", clients=frozenset(["app", "web"])))
    assert check(issuer, issuer.token(client_id="app"), rules) == "ann@example.org"
    with pytest.raises(BadToken):
        check(issuer, issuer.token(client_id=client), rules)


def test_boundToAKey(issuer: Issuer) -> None:
    """
    Whoever has stolen such a token must not log in with it (RFC 8705 section 3, RFC 9449).
    """
    with pytest.raises(BadToken):
        check(issuer, issuer.token(cnf={"x5t#S256": "x"}))


def test_claimAndScopes(issuer: Issuer) -> None:
    rules = TokenRules(ClaimRules(ISSUER, AUDIENCE, "name", frozenset(["mail", "pop"])))
    for changes in ({"scope": "pop openid mail"}, {"scp": ["mail", "pop"]}, {"scp": "mail pop"}):
        token = issuer.token(name_="x", email_verified=False, **changes)
        with pytest.raises(BadToken):
            check(issuer, token, rules)
    claims = issuer.claims(name="ann", scope="pop openid mail", email_verified=False)
    header, key = {"alg": "RS256", "kid": "rsa"}, issuer.keys["rsa"]
    assert check(issuer, compact(header, claims, key, "RS256"), rules) == "ann"
    for scope in ("pop", "popmail", "", None, 1, {"mail": 1, "pop": 1}, [["mail"], "pop"]):
        token = compact(header, claims | {"scope": scope}, key, "RS256")
        with pytest.raises(BadToken):
            check(issuer, token, rules)


# --- key sets -------------------------------------------------------------------------


def test_usableKeys(issuer: Issuer) -> None:
    """
    One odd key affects no other key.
    """
    good = issuer.keys["ec"].as_dict(private=False)
    small: Any = RSAKey.generate_key(1024)
    odd = [
        {"kty": "oct", "k": "c2VjcmV0", "kid": "oct"},
        small.as_dict(private=False) | {"kid": "small"},
        good | {"kid": "enc", "use": "enc"},
        good | {"kid": 5},
        good | {"x": "!"},
        {"kty": "EC"},
        {"kty": "new", "kid": "new"},
        {"kty": ["RSA"]},
        {},
        5,
        None,
        good,
        # The first of two keys with one name counts.
        issuer.keys["rsa"].as_dict(private=False) | {"kid": "ec"},
    ]
    keys = KeySet(json.dumps({"keys": odd}).encode())
    assert keys.dropped == len(odd) - 1
    assert keys.pick("ec").kid == "ec" and keys.pick("ec").key_type == "EC"
    assert [keys.pick(each) for each in ("oct", "small", "enc", "new")] == [None] * 4
    assert keys.pick(None) is keys.pick("ec")
    assert KeySet(issuer.published()).pick(None) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"keys": {}}',
        b'{"keys": []}',
        b'{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}',
        b'{"keys": [], "keys": []}',
        b"[" * 100_000,
        json.dumps({"keys": [{}] * 101}).encode(),
    ],
)
def test_noKeySet(data: bytes) -> None:
    with pytest.raises(ValueError):
        KeySet(data)


def test_file(issuer: Issuer, tmp_path: Path) -> None:
    """
    A changed file is read again, and a broken one changes nothing.
    """
    path = tmp_path / "keys"
    path.write_bytes(issuer.published("rsa"))
    clock = Clock()
    keys = FileKeys(str(path), Inline(), clock)

    def find(name: str) -> Any:
        return startNow(keys.find(name))

    assert find("rsa") is not None and find("ec") is None
    path.write_bytes(issuer.published("rsa", "ec"))
    assert find("ec") is not None
    path.write_bytes(b"{")
    assert find("ec") is not None
    path.unlink()
    clock.advance(2)
    assert find("ec") is not None
    path.write_bytes(issuer.published("rsa"))
    clock.advance(2)
    assert find("ec") is None and find("rsa") is not None


class Server:
    """
    Answers a fetch when the test says so.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.asked: list[Deferred[bytes]] = []
        self.keys = FetchedKeys("https://id.example.org/keys", self.fetch, self.clock)

    def fetch(self) -> Deferred[bytes]:
        self.asked.append(Deferred())
        return self.asked[-1]

    def find(self, name: str | None) -> list[Any]:
        """
        @return: a list that the key, or the error, is added to.
        """
        outcome: list[Any] = []
        coroutine: Any = self.keys.find(name)
        Deferred.fromCoroutine(coroutine).addBoth(outcome.append)
        return outcome


def isUnavailable(outcome: list[Any]) -> bool:
    (failure,) = outcome
    error = failure.value
    return isinstance(error, POP3ResponseError) and error.code == "SYS/TEMP"


def test_fetched(issuer: Issuer) -> None:
    """
    Logins that come together share one fetch.
    """
    server = Server()
    one, two = server.find("rsa"), server.find("rsa")
    assert len(server.asked) == 1 and one == two == []
    server.asked[0].callback(issuer.published("rsa"))
    assert one[0] is two[0] is server.find("rsa")[0] is not None
    assert len(server.asked) == 1


def test_unknownKey(issuer: Issuer) -> None:
    """
    An unknown key leads to another fetch, but not within a minute of the last one.
    """
    server = Server()
    server.find("rsa")
    server.asked[0].callback(issuer.published("rsa"))
    assert server.find("ec") == [None]
    assert len(server.asked) == 1
    server.clock.advance(61)
    one, two = server.find("ec"), server.find("other")
    assert len(server.asked) == 2
    server.asked[1].callback(issuer.published("rsa", "ec"))
    assert one[0].kid == "ec" and two == [None]
    assert server.find("other") == [None] and len(server.asked) == 2


def test_unknownKeyWhileAway(issuer: Issuer) -> None:
    """
    Nobody knows whether the key exists, if the server does not answer.
    """
    server = Server()
    server.find("rsa")
    server.asked[0].callback(issuer.published("rsa"))
    server.clock.advance(61)
    outcome = server.find("ec")
    server.asked[1].errback(HTTPUnavailable("refused"))
    assert isUnavailable(outcome)
    assert server.find("rsa")[0].kid == "rsa"


@pytest.mark.parametrize("data", [b"{}", b"<html>", b""])
def test_neverThere(issuer: Issuer, data: bytes) -> None:
    server = Server()
    outcome = server.find("rsa")
    server.asked[0].callback(data)
    assert isUnavailable(outcome)
    # The next attempt comes after some seconds only.
    assert isUnavailable(server.find("rsa")) and len(server.asked) == 1
    server.clock.advance(6)
    outcome = server.find("rsa")
    server.asked[1].callback(issuer.published("rsa"))
    assert outcome[0].kid == "rsa"


def test_old(issuer: Issuer) -> None:
    """
    Old keys serve while they are fetched again, and for a day if that fails.
    """
    server = Server()
    server.find("rsa")
    server.asked[0].callback(issuer.published("rsa"))
    server.clock.advance(FetchedKeys.REFRESH + 1)
    assert server.find("rsa")[0].kid == "rsa" and len(server.asked) == 2
    server.asked[1].errback(HTTPUnavailable("refused"))
    assert server.find("rsa")[0].kid == "rsa" and len(server.asked) == 2
    server.clock.advance(FetchedKeys.OLDEST)
    outcome = server.find("rsa")
    server.asked[2].errback(HTTPUnavailable("refused"))
    assert isUnavailable(outcome)


class Site:
    """
    Keys that are fetched from a server in memory.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.server = WebServer()
        url = "https://id.example.org/keys?key=secretkey"
        self.keys = fetchedKeys(url, None, self.clock, self.server)

    def find(self) -> list[Any]:
        """
        @return: a list that gets the key C{rsa}, or the code of the error.
        """
        outcome: list[Any] = []

        def ended(value: Any) -> None:
            outcome.append(value.value.code if isinstance(value, Failure) else value.kid)

        Deferred.fromCoroutine(self.keys.find("rsa")).addBoth(ended)
        self.clock.advance(0)
        return outcome


def test_request(issuer: Issuer) -> None:
    """
    Issuers use several media types for a key set.
    """
    site = Site()
    outcome = site.find()
    lines, body = site.server.request()
    assert lines[0] == b"GET /keys?key=secretkey HTTP/1.1" and body == b""
    assert b"Accept: application/json" in lines and b"Accept-Encoding: identity" in lines
    assert not any(each.startswith((b"Authorization", b"Content-Type")) for each in lines)
    site.server.answer("200 OK", issuer.published(), "Content-Type: application/jwk-set+json")
    assert outcome == ["rsa"]
    assert not site.server.isOpen and site.clock.getDelayedCalls() == []


@pytest.mark.parametrize(
    ("status", "body", "headers", "reason"),
    [
        ("404 Not Found", b"", [], "it answers with the status 404"),
        ("302 Found", b"", ["Location: http://evil.example/"], "it answers with the status 302"),
        ("200 OK", b"<html>", [], "it is not JSON"),
        ("200 OK", b"{}", [], "it is no key set"),
        ("200 OK", b"x", ["Content-Encoding: gzip"], "its answer is compressed"),
        ("200 OK", b" " * 524_289, [], "its answer has more than 524288 octets"),
    ],
)
def test_wrongAnswer(
    issuer: Issuer, status: str, body: bytes, headers: list[str], reason: str
) -> None:
    site = Site()
    with logging() as lines:
        for _ in range(2):
            outcome = site.find()
            site.server.answer(status, body, *headers)
            assert outcome == ["SYS/TEMP"] and not site.server.isOpen
            site.clock.advance(6)
        outcome = site.find()
        site.server.answer("200 OK", issuer.published())
    assert outcome == ["rsa"] and len(site.server.transports) == 3
    where = "the key set at https://id.example.org/keys"
    assert lines == [f"{where} is not available: {reason}", f"{where} is available again"]


def test_noAnswer() -> None:
    """
    The limit covers everything up to the last octet of the body.
    """
    site = Site()
    with logging() as lines:
        outcome = site.find()
        site.clock.advance(9)
        site.server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{")
        assert outcome == []
        site.clock.advance(1.1)
    assert outcome == ["SYS/TEMP"] and not site.server.isOpen
    assert lines[0].endswith("is not available: no complete answer within 10 s")


def test_noWarnings(issuer: Issuer) -> None:
    """
    The library's warnings about keys and algorithms are not for the operator.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small: Any = RSAKey.generate_key(1024)
    keys = json.loads(issuer.published("ed"))["keys"] + [small.as_dict(private=False)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert KeySet(json.dumps({"keys": keys}).encode()).dropped == 1
        assert check(issuer, issuer.token("ed", "EdDSA")) == "ann@example.org"


def test_reload(issuer: Issuer) -> None:
    server = Server()
    server.find("rsa")
    server.asked[0].callback(issuer.published("rsa"))
    startNow(server.keys.reload())
    server.asked[1].callback(issuer.published("ec"))
    assert server.find("ec")[0].kid == "ec" and server.find("rsa") == [None]


def test_replacedKey(issuer: Issuer) -> None:
    """
    A token that the known key does not verify leads to another fetch, because the new key may have
    the same name, or none; but not within a minute of the last one.
    """
    old, new = issuer.published("rsa"), issuer.published("ec")
    for name in ("same", None):
        server = Server()
        tokens = SignedTokens(RULES, server.keys)

        def published(data: bytes, name: str | None = name) -> bytes:
            keys = json.loads(data)["keys"]
            for each in keys:
                del each["kid"]
                if name is not None:
                    each["kid"] = name
            return json.dumps({"keys": keys}).encode()

        header = {"kid": name}
        before = issuer.token("rsa", "RS256", header=header)
        after = issuer.token("ec", "ES256", header=header)

        def ask(token: str, tokens: SignedTokens = tokens) -> list[Any]:
            outcome: list[Any] = []
            asked = tokens.nameOf(None, token, time.time)
            Deferred.fromCoroutine(asked).addBoth(outcome.append)
            return outcome

        first = ask(before)
        server.asked[0].callback(published(old))
        assert first == ["ann@example.org"]
        assert ask(after)[0].check(BadToken) and len(server.asked) == 1
        server.clock.advance(61)
        outcomes = [ask(after), ask(after)]
        assert outcomes == [[], []] and ask(before) == first
        server.asked[1].callback(published(new))
        assert outcomes == [first, first]
        assert ask(before)[0].check(BadToken) and len(server.asked) == 2
        # If the issuer does not answer, the token is still refused.
        server.clock.advance(61)
        refused = ask(before)
        server.asked[2].errback(HTTPUnavailable("refused"))
        assert refused[0].check(BadToken) and ask(after) == first


# --- the accounts ---------------------------------------------------------------------


def test_users(issuer: Issuer, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes(issuer.published())
    accounts = OAuthAccounts(SignedTokens(RULES, FileKeys(str(path), Inline(), Clock())))

    def user(token: str, name: str | None) -> Any:
        info: Any = None
        return startNow(accounts.userOfToken(info, token, name))

    assert user(issuer.token(), None) == user(issuer.token(), "ann@example.org")
    assert user(issuer.token(), None) == "ann@example.org"
    # The service decides whether a spelling is the same user.
    assert user(issuer.token(), "Ann@example.org") == "ann@example.org"
    for name in ("bob@example.org", "ann@example.com", "a b", "\udcff", ""):
        assert user(issuer.token(), name) is None
    for token in ("x", issuer.token(iss="x"), issuer.token(header={"kid": "x"})):
        assert user(token, None) is None


def test_argument(issuer: Issuer, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes(issuer.published())
    rest = f":issuer={ISSUER}:audience={AUDIENCE}"
    (made,) = makeAccounts(Store("--provider", "--auth", None, None, (f"oauth:jwks={path}{rest}",)))
    assert isinstance(made, OAuthAccounts)
    make = OAuthMaker().generateChecker
    make(f"jwks={path}{rest}:claim=sub:scope=a,b:clients=c,d:algorithms=RS256,EdDSA")
    make(f"jwks=https://id.example.org:8443/keys?a=b{rest}")
    make(f"jwks=http://127.0.0.1:8080/keys{rest}")


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("", "the options are"),
        ("jwks=PATH", "issuer is needed"),
        ("jwks=PATH:issuer=x:issuer=y:audience=z", "issuer is given twice"),
        ("jwks=PATH:issuer=:audience=z", "issuer is empty"),
        ("issuer=x:audience=z", "jwks or introspect is needed"),
        ("jwks=PATH:issuer=x:audience=z:algorithms=HS256", "algorithms are among"),
        ("jwks=PATH:issuer=x:audience=z:algorithms=none", "algorithms are among"),
        ("jwks=PATH:issuer=x:audience=z:ca=y", "ca is for"),
        ("jwks=PATHx:issuer=x:audience=z", "No such file"),
        ("jwks=http://id.example.org/:issuer=x:audience=z", "use https"),
        ("jwks=http://localhost/:issuer=x:audience=z", "use https"),
        ("jwks=https://a:b@id.example.org/:issuer=x:audience=z", "must not contain a user"),
        ("jwks=https://:issuer=x:audience=z", "jwks: a URL such as"),
        ("jwks=https://h:x/:issuer=x:audience=z", "jwks: a URL such as"),
        ("jwks=https://h/ä:issuer=x:audience=z", "jwks: a URL such as"),
        ("jwks=https://h/:issuer=x:audience=z:ca=PATHx", "No such file"),
        ("jwks=https://h/:issuer=x:audience=z:ca=PATH", "no certificate"),
    ],
)
def test_badArguments(issuer: Issuer, tmp_path: Path, argument: str, sentence: str) -> None:
    path = tmp_path / "keys"
    path.write_bytes(issuer.published())
    description = "oauth:" + argument.replace("PATH", str(path))
    with pytest.raises(SettingError) as caught:
        makeAccounts(Store("--provider", "--auth", None, None, (description,)))
    assert sentence in str(caught.value)


def test_small(issuer: Issuer) -> None:
    """
    A key on another curve does not verify a signature of ES256.
    """
    key: Any = ECKey.generate_key("P-384", {"kid": "ec"})
    token = issuer.token("ec", "ES256")
    with pytest.raises(BadToken):
        RULES.nameOf(token, key, time.time())
