"""
Logins by tokens at a real service.  The issuer's server is stopped, slow, restarted or gives wrong
answers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import parse_qs, urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, build_opener, urlopen

import pytest

from pop3svc.testing.certificates import Authority
from tests.support.authorization import KINDS, OAuthSite
from tests.support.running import PATIENCE, freePort
from tests.support.tokens import AUDIENCE, Issuer

LOGGED_IN = b"+OK Logged in.\r\n"
REFUSED = b"-ERR [AUTH] Wrong name or password.\r\n"
AWAY = b"-ERR [SYS/TEMP] Tokens cannot be checked now.\r\n"


@pytest.fixture
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[OAuthSite]:
    """
    A service that checks tokens in the way of the test's parameter.  The issuer's server is not
    running yet.
    """
    site = OAuthSite(tmp_path / "site", *request.param)
    with site.running:
        site.running.up()
        yield site
    site.server.stop()


BOTH = pytest.mark.parametrize("site", [(kind,) for kind in KINDS], indirect=True, ids=KINDS)
SIGNED = pytest.mark.parametrize("site", [("jwks",)], indirect=True, ids=["jwks"])


def introspected(options: str = "") -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "site", [("introspect", options)], indirect=True, ids=["introspect"]
    )


@BOTH
def test_refused(site: OAuthSite) -> None:
    """
    All wrong tokens get the same answer.  The clocks of the issuer and of the service may differ by
    a minute.
    """
    site.start()
    now = int(time.time())
    bad = [
        site.token(iss="https://other.example.org/"),
        site.token(exp=now - 120),
        site.token(nbf=now + 300),
        site.token(email="bob@example.org"),
        "never-issued",
    ]
    skewed = site.token(exp=now - 20, iat=now + 30, nbf=now + 30)
    assert site.tryToken(skewed) == LOGGED_IN
    # Try the tokens at the same time, because each refusal is delayed.
    for client in [site.begin(token) for token in bad]:
        assert site.finish(client) == REFUSED
    lines = site.log()
    reasons = [line for line in lines if "a token is refused, because" in line]
    assert len(reasons) == len(bad)
    log = "\n".join(lines)
    for token in [*bad, skewed]:
        assert not any(part in log for part in token.split("."))


@SIGNED
def test_wrongSignatures(site: OAuthSite) -> None:
    server = site.start()
    stranger = Issuer()
    bad = (
        stranger.token(),
        site.token(header={"alg": "none"}),
        site.token(header={"alg": "HS256"}),
        site.token(header={"kid": "unknown"}),
    )
    for client in [site.begin(token) for token in bad]:
        assert site.finish(client) == REFUSED
    assert site.tryToken(site.token()) == LOGGED_IN
    assert server.asked == ["/keys"]


@BOTH
def test_comesAndGoes(site: OAuthSite) -> None:
    """
    The service starts while the issuer's server is away.  Meanwhile no login counts as a guess.
    """
    # Three different wrong tokens would lead to a ban.
    for number in range(4):
        assert site.tryToken(site.token(jti=str(number))) == AWAY
    token = site.token()
    site.running.waitFor("is not available: it cannot be reached")
    site.start()
    # Keys are fetched again after some seconds, or at a reload.
    site.reload()
    assert site.tryToken(token) == LOGGED_IN
    site.server.stop()
    site.reload()
    # For a day, the service goes on using the keys that it has fetched.
    assert site.tryToken(token) == (LOGGED_IN if site.kind == "jwks" else AWAY)
    site.running.waitFor("is not available: it cannot be reached")
    site.start()
    site.reload()
    assert site.tryToken(token) == LOGGED_IN
    site.running.waitFor("is available again")
    lines = site.log()
    assert sum("is not available" in line for line in lines) == 2
    assert sum("is available again" in line for line in lines) == 2
    assert not any("failed login" in line or "banned" in line for line in lines)


@BOTH
def test_slow(site: OAuthSite) -> None:
    """
    The service gives up on a body that does not come, closes the connection, and serves other
    clients meanwhile.
    """
    server = site.start()
    server.fault = "stall"
    client = site.begin(site.token())
    other = site.connect()
    for _ in range(100):
        assert other.say(b"NOOP").startswith(b"-ERR")
        other.socket.close()
        other = site.connect()
    assert client.line() == AWAY
    site.running.waitFor("is not available: no complete answer within ")
    assert server.dropped.wait(60)
    server.fault = ""
    site.reload()
    assert site.tryToken(site.token()) == LOGGED_IN


@BOTH
@pytest.mark.parametrize(
    ("fault", "reason"),
    [("flood", "its answer has more than "), ("redirect", "it answers with the status 302")],
)
def test_wrongAnswers(site: OAuthSite, fault: str, reason: str) -> None:
    server = site.start()
    server.fault = fault
    assert site.tryToken(site.token()) == AWAY
    site.running.waitFor(f"is not available: {reason}")
    assert len(server.asked) == 1
    server.fault = ""
    site.reload()
    assert site.tryToken(site.token()) == LOGGED_IN


@BOTH
def test_certificates(site: OAuthSite, tmp_path: Path) -> None:
    """
    The service asks no server whose certificate is for another name, has expired, or belongs to
    another authority.
    """
    site.authority.issue(tmp_path / "other", ["other.example.org"])
    site.authority.issue(tmp_path / "expired", ["127.0.0.1"], days=-1)
    Authority().issue(tmp_path / "stranger", ["127.0.0.1"])
    token = site.token()
    for name in ("other", "expired", "stranger"):
        site.server.start(tmp_path / name)
        site.reload()
        assert site.tryToken(token) == AWAY
        site.server.stop()
    assert site.server.asked == []
    site.start()
    site.reload()
    assert site.tryToken(token) == LOGGED_IN
    assert sum("is not available: TLS failed" in line for line in site.log()) == 1


@SIGNED
def test_rolledKey(site: OAuthSite) -> None:
    """
    A new key is accepted, and a withdrawn one is not.
    """
    server = site.start()
    server.keys = site.issuer.published("rsa")
    old, new = site.token(), site.issuer.token("ec", "ES256")
    assert site.tryToken(old) == LOGGED_IN
    assert site.tryToken(new) == REFUSED
    server.keys = site.issuer.published("ec")
    site.reload()
    assert site.tryToken(new) == LOGGED_IN
    assert site.tryToken(old) == REFUSED
    assert server.asked == ["/keys"] * 2


@introspected()
def test_rolledSecret(site: OAuthSite) -> None:
    """
    While only the issuer has the new secret, no login succeeds.  When the service has read the new
    secret, too, logins succeed again.
    """
    server = site.start()
    token = site.token()
    assert site.tryToken(token) == LOGGED_IN
    server.secret = "another"
    for _ in range(2):
        assert site.tryToken(token) == AWAY
    site.running.waitFor("is not available: it refuses client and secret (status 401)")
    site.secret.write_text("another\n")
    site.reload()
    assert site.tryToken(token) == LOGGED_IN
    lines = site.log()
    assert sum("is not available" in line for line in lines) == 1
    assert sum("is available again" in line for line in lines) == 1


@introspected()
def test_revoked(site: OAuthSite) -> None:
    server = site.start()
    token = site.token()
    assert site.tryToken(token) == LOGGED_IN
    del server.claims[token]
    assert site.tryToken(token) == REFUSED
    assert server.asked == ["/introspect"] * 2


@introspected(":concurrent=2:timeout=60")
def test_many(site: OAuthSite) -> None:
    """
    At most two requests run at the same time, and all clients get their answer.
    """
    server = site.start()
    server.gate.clear()
    clients = []
    for number in range(12):
        user = f"user{number}@example.org"
        site.addUser(user)
        clients.append(site.begin(site.token(email=user), user))
    # The service has read the logins of all clients before it answers this command.
    assert site.connect().say(b"CAPA").startswith(b"+OK")
    server.gate.set()
    for each in clients:
        assert each.line() == LOGGED_IN
        assert each.say(b"QUIT").startswith(b"+OK")
    assert len(server.asked) == 12 and server.mostAtOnce == 2


# --- another issuer -------------------------------------------------------------------


class _NoRedirection(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def idTokenOf(issuer: str, user: str) -> str:
    """
    @return: a token that the authorization code flow gives to a program (RFC 6749 section 4.1).
    """
    asked = {"client_id": AUDIENCE, "redirect_uri": "https://mail.example.org/", "scope": "openid"}
    query = urlencode({**asked, "response_type": "code", "scope": "openid email"})
    with pytest.raises(HTTPError) as caught:
        opener = build_opener(_NoRedirection)
        opener.open(f"{issuer}/oauth2/authorize?{query}", f"sub={user}".encode(), PATIENCE)
    (code,) = parse_qs(urlsplit(caught.value.headers["Location"]).query)["code"]
    caught.value.close()
    form = {**asked, "grant_type": "authorization_code", "code": code, "client_secret": "any"}
    with urlopen(f"{issuer}/oauth2/token", urlencode(form).encode(), PATIENCE) as answer:
        token = json.load(answer)["id_token"]
    assert isinstance(token, str)
    return token


@contextmanager
def provider(port: int) -> Iterator[None]:
    """
    Run oidc-provider-mock.
    """
    from oidc_provider_mock import User, run_server_in_thread

    users = [User(sub=name, claims={"email": f"{name}@example.org"}) for name in ("ann", "bob")]
    with run_server_in_thread(port, user_claims=users):
        yield


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_anotherIssuer(tmp_path: Path) -> None:
    """
    Tokens and keys of another implementation are accepted.  This implementation makes a new key at
    each start, and its tokens do not name their key.
    """
    port = freePort()
    issuer = f"http://127.0.0.1:{port}"
    source = f"jwks={issuer}/jwks:issuer={issuer}:audience={AUDIENCE}"
    site = OAuthSite(tmp_path / "site", source=source)
    with site.running:
        site.running.up()
        with provider(port):
            old = idTokenOf(issuer, "ann")
            assert site.tryToken(old) == LOGGED_IN
            assert site.tryToken(idTokenOf(issuer, "bob")) == REFUSED
        # The log shows when the new key is there.
        site.reload()
        site.running.waitFor("is not available")
        with provider(port):
            new = idTokenOf(issuer, "ann")
            site.reload()
            site.running.waitFor("is available again")
            assert site.tryToken(new) == LOGGED_IN
            assert site.tryToken(old) == REFUSED
        site.log()
