"""
The mechanisms OAUTHBEARER and XOAUTH2: their messages, and what follows a failure.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Any

import pytest
from twisted.cred.checkers import ICredentialsChecker
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from zope.interface import implementer

from pop3svc.accounts.checkers import AccountsProvider
from pop3svc.accounts.domains import DomainProvider
from pop3svc.awaiting import startNow
from pop3svc.credentials import IBearerToken
from pop3svc.errors import BadArguments, POP3ResponseError
from pop3svc.interfaces import IBearerAccounts
from pop3svc.policy import Policy
from pop3svc.protocol.bearer import BearerMessage
from pop3svc.protocol.session import ConnectionInfo
from pop3svc.providers.memory import MemoryStore
from pop3svc.service.factory import POP3Factory
from pop3svc.testing import Client
from tests.support.throttles import RecordingThrottle

GOOD = b"n,a=ann@example.org,\x01host=h\x01port=995\x01auth=Bearer abc.def-_~+/==\x01\x01"


# --- the messages ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "name"),
    [
        (GOOD, "ann@example.org"),
        (b"n,,\x01auth=Bearer abc.def-_~+/==\x01\x01", None),
        (b"y,a=a=2Cb=3D,\x01auth=bearer  abc.def-_~+/==\x01x=\x01\x01", "a,b="),
        (b"n,,\x01more=a=b\tc\r\n\x01auth=BEARER abc.def-_~+/==\x01\x01", None),
    ],
)
def test_oauthBearer(message: bytes, name: str | None) -> None:
    """
    Unknown keys are ignored (RFC 7628 section 3.1).
    """
    assert BearerMessage.parseOAuthBearer(message) == BearerMessage("abc.def-_~+/==", name)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x01",
        b"n,,",
        b"n,,\x01",
        b"n,,\x01\x01",
        b"n,,\x01host=h\x01\x01",
        b"n,,\x01auth=\x01\x01",
        b"n,,\x01auth=Bearer\x01\x01",
        b"n,,\x01auth=Bearer \x01\x01",
        b"n,,\x01auth=Bearerabc\x01\x01",
        b"n,,\x01auth=Basic abc\x01\x01",
        b"n,,\x01auth=Bearer a b\x01\x01",
        b"n,,\x01auth=Bearer =abc\x01\x01",
        b"n,,\x01auth=Bearer abc\r\n\x01\x01",
        b"n,,\x01auth=Bearer abc\x01",
        b"n,,\x01auth=Bearer abc",
        b"n,,\x01auth=Bearer abc\x01\x01x",
        b"n,,\x01auth=Bearer abc\x01\x01\x01",
        b"n,,auth=Bearer abc\x01\x01",
        b"n,,\x01auth=Bearer abc\x01auth=Bearer abc\x01\x01",
        b"n,,\x01=x\x01auth=Bearer abc\x01\x01",
        b"n,,\x01a1=x\x01auth=Bearer abc\x01\x01",
        b"n,,\x01a=\xc3\xbc\x01auth=Bearer abc\x01\x01",
        b"n,,\x01a=\x00\x01auth=Bearer abc\x01\x01",
        b"p=tls-exporter,,\x01auth=Bearer abc\x01\x01",
        b"N,,\x01auth=Bearer abc\x01\x01",
        b"n,a=,\x01auth=Bearer abc\x01\x01",
        b"n,a=a=2cb,\x01auth=Bearer abc\x01\x01",
        b"n,a=a\x00b,\x01auth=Bearer abc\x01\x01",
        b"n,a=\xff,\x01auth=Bearer abc\x01\x01",
        b"n,a=" + b"a" * 256 + b",\x01auth=Bearer abc\x01\x01",
        b"n,,\x01auth=Bearer " + b"a" * 8193 + b"\x01\x01",
        b"n,,\x01x=" + b"a" * 9216 + b"\x01auth=Bearer abc\x01\x01",
    ],
)
def test_badOAuthBearer(message: bytes) -> None:
    with pytest.raises(BadArguments):
        BearerMessage.parseOAuthBearer(message)


def test_xoauth2() -> None:
    parse = BearerMessage.parseXOAuth2
    assert parse(b"user=ann\x01auth=Bearer abc\x01\x01") == BearerMessage("abc", "ann")
    assert parse(b"auth=Bearer abc\x01\x01") == BearerMessage("abc", None)
    longest = "a" * 8192
    assert parse(f"auth=Bearer {longest}\x01\x01".encode()).token == longest


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"user=ann\x01\x01",
        b"user=\x01auth=Bearer abc\x01\x01",
        b"user=ann\x01auth=Bearer abc\x01",
        b"user=ann\x01auth=Bearer abc\x01\x01\x01",
        b"user=ann\x01auth=\x01\x01",
        b"user=ann\x01auth=abc\x01\x01",
        b"auth=Bearer abc\x01user=ann\x01\x01",
        b"user=ann\x01user=ann\x01auth=Bearer abc\x01\x01",
        b"user=a\x00n\x01auth=Bearer abc\x01\x01",
        b"user=\xff\x01auth=Bearer abc\x01\x01",
        b"user=" + b"a" * 256 + b"\x01auth=Bearer abc\x01\x01",
    ],
)
def test_badXOAuth2(message: bytes) -> None:
    with pytest.raises(BadArguments):
        BearerMessage.parseXOAuth2(message)


# --- logging in -----------------------------------------------------------------------


@implementer(ICredentialsChecker, IBearerAccounts)
class Tokens:
    """
    Accepts tokens of a table.
    """

    credentialInterfaces = (IBearerToken,)

    def __init__(self, **users: str) -> None:
        self.users = users
        self.asked: list[tuple[str, str | None]] = []
        self.error: Exception | None = None

    def requestAvatarId(self, credentials: Any) -> Any:
        raise AssertionError("it checks no passwords")

    def userOfToken(self, info: Any, token: str, username: str | None) -> str | None:
        self.asked.append((token, username))
        if self.error is not None:
            raise self.error
        found = self.users.get(token)
        return found if username in (None, found) else None


class Talk:
    """
    A client of a service whose accounts know the token C{good}, which is ann's.
    """

    def __init__(self, policy: Policy = Policy(), isSecure: bool = True) -> None:
        self.tokens, self.throttle = Tokens(good="ann"), RecordingThrottle()
        provider = AccountsProvider(MemoryStore([b"a: b\n\nc\n"]), [self.tokens])
        factory = POP3Factory(provider, policy, clock=Clock(), throttle=self.throttle)
        self.client = Client(factory, isSecure=isSecure)
        self.client.received()

    def say(self, line: bytes) -> bytes:
        return self.client.say(line)

    def begin(self, mechanism: str, token: str, name: str | None) -> bytes:
        """
        @return: the reply to the message.
        """
        authzid = "" if name is None else f"a={name}"
        user = "" if name is None else f"user={name}\x01"
        message = {
            "OAUTHBEARER": f"n,{authzid},\x01auth=Bearer {token}\x01\x01",
            "XOAUTH2": f"{user}auth=Bearer {token}\x01\x01",
        }[mechanism]
        assert self.say(b"AUTH " + mechanism.encode()) == b"+ \r\n"
        return self.say(b64encode(message.encode()))


BOTH = pytest.mark.parametrize("mechanism", ["OAUTHBEARER", "XOAUTH2"])


@BOTH
@pytest.mark.parametrize("name", ["ann", None])
def test_accepted(mechanism: str, name: str | None) -> None:
    """
    The name of the login is that of the token, also if the client names no user.
    """
    talk = Talk()
    assert talk.begin(mechanism, "good", name) == b"+OK Logged in.\r\n"
    assert talk.say(b"STAT") == b"+OK 1 11\r\n"
    assert talk.throttle.told == [("may", "ann", "good"), ("succeeded", "ann")]


def test_initialResponse() -> None:
    talk = Talk(Policy(maxLineLength=255))
    message = b64encode(b"n,,\x01auth=Bearer " + b"a" * 8192 + b"\x01\x01")
    assert talk.say(b"AUTH OAUTHBEARER " + message).startswith(b"+ ")
    assert talk.tokens.asked == [("a" * 8192, None)]


@pytest.mark.parametrize(
    ("mechanism", "explanation"),
    [
        ("OAUTHBEARER", b'{"status":"invalid_token"}'),
        ("XOAUTH2", b'{"status":"401","schemes":"bearer"}'),
    ],
)
@pytest.mark.parametrize("line", [b"AQ==", b"", b"=", b"*", b"QUIT", b"!", b"AB=="])
@pytest.mark.parametrize(("token", "name"), [("bad", "ann"), ("good", "bob"), ("bad", None)])
def test_refused(
    mechanism: str, explanation: bytes, line: bytes, token: str, name: str | None
) -> None:
    """
    The client answers the explanation with one line.  Whatever it contains, the login fails.
    """
    talk = Talk()
    reply = talk.begin(mechanism, token, name)
    assert reply == b"+ " + b64encode(explanation) + b"\r\n"
    assert talk.say(line) == b"-ERR [AUTH] Wrong name or password.\r\n"
    assert talk.throttle.told == [("may", name or "", token), ("failed", name or "")]
    assert len(talk.tokens.asked) == 1
    assert talk.say(b"STAT").startswith(b"-ERR ")
    assert talk.say(b"CAPA").startswith(b"+OK")


@BOTH
def test_anotherMessageAfterAFailure(mechanism: str) -> None:
    """
    If the client answers the explanation with a message that has a good token, the token is not
    checked.
    """
    talk = Talk()
    assert talk.begin(mechanism, "bad", "ann").startswith(b"+ ")
    second = b64encode(b"n,,\x01auth=Bearer good\x01\x01")
    assert talk.say(second) == b"-ERR [AUTH] Wrong name or password.\r\n"
    assert talk.say(b"STAT").startswith(b"-ERR ")
    assert talk.begin(mechanism, "good", "ann") == b"+OK Logged in.\r\n"


def test_lostAfterAFailure() -> None:
    talk = Talk()
    talk.begin("XOAUTH2", "bad", "ann")
    talk.client.vanish()
    assert talk.throttle.told[-1] == ("failed", "ann")


def test_lastFailure() -> None:
    """
    The connection ends after too many failures.
    """
    talk = Talk(Policy(maxFailedLogins=1))
    talk.begin("OAUTHBEARER", "bad", "ann")
    assert talk.say(b"AQ==").startswith(b"-ERR [AUTH]")
    assert not talk.client.isOpen


@BOTH
def test_throttled(mechanism: str) -> None:
    """
    A refusal by the throttle looks like the refusal of a wrong token, even if the token is good.
    """
    talk = Talk()
    talk.throttle.admits = False
    assert talk.begin(mechanism, "good", "ann").startswith(b"+ ey")
    assert talk.say(b"") == b"-ERR [AUTH] Wrong name or password.\r\n"
    # Nobody is asked about the token.
    assert talk.tokens.asked == []
    assert talk.begin(mechanism, "good", None).startswith(b"+ ey")
    assert talk.say(b"") == b"-ERR [AUTH] Wrong name or password.\r\n"


@BOTH
def test_outOfOrder(mechanism: str) -> None:
    """
    If tokens cannot be checked, no failure is counted.
    """
    talk = Talk()
    talk.tokens.error = POP3ResponseError("Not now.", "SYS/TEMP")
    assert talk.begin(mechanism, "good", "ann") == b"-ERR [SYS/TEMP] Not now.\r\n"
    assert talk.throttle.told == [("may", "ann", "good"), ("abandoned", "ann", False)]
    assert talk.begin(mechanism, "good", None) == b"-ERR [SYS/TEMP] Not now.\r\n"
    assert len(talk.throttle.told) == 2
    assert talk.say(b"CAPA").startswith(b"+OK")


@BOTH
@pytest.mark.parametrize("isThrottled", [True, False])
def test_lostMeanwhile(mechanism: str, isThrottled: bool) -> None:
    """
    The throttle hears of a client that hangs up while its token is checked.
    """
    talk = Talk()
    if not isThrottled:
        talk.client.protocol.session.authentication._throttle = None
    waiting: Deferred[str] = Deferred()
    talk.tokens.userOfToken = lambda *_: waiting  # type: ignore[assignment,method-assign]
    assert talk.begin(mechanism, "good", "ann") == b""
    talk.client.vanish()
    told = [("may", "ann", "good"), ("abandoned", "ann", True)]
    assert talk.throttle.told == (told if isThrottled else [])


@BOTH
def test_refusesByError(mechanism: str) -> None:
    """
    A provider may also refuse a token by an error with the code AUTH.
    """
    talk = Talk()
    talk.tokens.error = POP3ResponseError("Not you.", "AUTH")
    for name in ("ann", None):
        assert talk.begin(mechanism, "good", name).startswith(b"+ ey")
        assert talk.say(b"") == b"-ERR [AUTH] Wrong name or password.\r\n"
        assert talk.throttle.told[-2:] == [("may", name or "", "good"), ("failed", name or "")]


@BOTH
def test_otherUser(mechanism: str) -> None:
    """
    If a provider returns another user than the client has named, the login is refused.
    """
    talk = Talk()
    talk.tokens.userOfToken = lambda *_: "bob"  # type: ignore[method-assign]
    assert talk.begin(mechanism, "good", "ann").startswith(b"+ ey")
    assert talk.say(b"") == b"-ERR [AUTH] Wrong name or password.\r\n"
    assert talk.throttle.told[-1] == ("failed", "ann")


def test_severalSources() -> None:
    """
    If one source sets C{isGuess} to C{False}, it is C{True} again for the next source.
    """
    seen: list[bool] = []

    class Source(Tokens):
        def userOfToken(self, info: Any, token: str, username: str | None) -> str | None:
            seen.append(info.loginAttempt.isGuess)
            info.loginAttempt.isGuess = False
            return super().userOfToken(info, token, username)

    class Attempt:
        isGuess = True

    info = ConnectionInfo(1, None, True)
    info.loginAttempt = Attempt()
    provider = AccountsProvider(MemoryStore([]), [Source(), Source(good="ann")])
    assert startNow(provider.userOfToken(info, "good", "ann")) == "ann"
    assert seen == [True, True]


@BOTH
def test_busy(mechanism: str) -> None:
    """
    An error of the throttle that is no refusal is answered at once.
    """
    talk = Talk()
    talk.throttle.error = POP3ResponseError("Too busy.", "SYS/TEMP")
    assert talk.begin(mechanism, "good", "ann") == b"-ERR [SYS/TEMP] Too busy.\r\n"


@BOTH
def test_malformed(mechanism: str) -> None:
    """
    A malformed message is refused at once, and is no guess.
    """
    talk = Talk()
    talk.say(b"AUTH " + mechanism.encode())
    reply = talk.say(b64encode(b"n,,\x01auth=\x01\x01"))
    assert reply.startswith(b"-ERR ") and b"[AUTH]" not in reply
    assert talk.tokens.asked == talk.throttle.told == []


def test_onlyTokens() -> None:
    """
    Accounts without passwords refuse each password.
    """
    talk = Talk()
    talk.say(b"USER ann")
    assert talk.say(b"PASS good").startswith(b"-ERR [AUTH]")


# --- what is offered ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "isSecure", "offered"),
    [
        (Policy(), True, b"SASL PLAIN LOGIN OAUTHBEARER XOAUTH2"),
        (Policy(without=frozenset(["XOAUTH2"])), True, b"SASL PLAIN LOGIN OAUTHBEARER"),
        (Policy(without=frozenset(["OAUTHBEARER", "PLAIN", "LOGIN"])), True, b"SASL XOAUTH2"),
        (Policy(cleartextLogin="never"), False, b""),
        (Policy(cleartextLogin="always"), False, b"SASL PLAIN LOGIN OAUTHBEARER XOAUTH2"),
    ],
)
def test_offered(policy: Policy, isSecure: bool, offered: bytes) -> None:
    """
    A token is as secret as a password, so it needs TLS where a password does.
    """
    talk = Talk(policy, isSecure)
    lines = talk.say(b"CAPA").split(b"\r\n")
    assert [each for each in lines if each.startswith(b"SASL")] == ([offered] if offered else [])
    for name in (b"OAUTHBEARER", b"XOAUTH2"):
        accepted = talk.say(b"AUTH " + name).startswith(b"+ ")
        assert accepted == (name in offered.split())
        if accepted:
            talk.say(b"*")


def test_withoutTokens() -> None:
    provider = AccountsProvider(MemoryStore([]), [])
    client = Client(POP3Factory(provider, clock=Clock()), isSecure=True)
    client.received()
    assert b"SASL PLAIN LOGIN\r\n" in client.say(b"CAPA")
    assert client.say(b"AUTH XOAUTH2") == b"-ERR No such mechanism.\r\n"


# --- domains --------------------------------------------------------------------------


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    ("token", "name", "reply"),
    [
        ("one", "ann@a.example", b"+OK"),
        ("two", "bob@b.example", b"+OK"),
        # The provider of a.example vouches for a user of another domain.
        ("foreign", "bob@b.example", b"+ ey"),
        ("lost", "eve@c.example", b"+ ey"),
    ],
)
def test_domains(token: str, name: str, reply: bytes, named: bool) -> None:
    """
    Tokens of a domain's issuer open mailboxes of that domain only.
    """
    first = Tokens(one="ann@a.example", foreign="bob@b.example", lost="eve@c.example")
    second = Tokens(two="bob@b.example")
    provider = DomainProvider(
        {
            "a.example": AccountsProvider(MemoryStore([]), [first]),
            "b.example": AccountsProvider(MemoryStore([]), [second]),
        },
        "two",
    )
    client = Client(POP3Factory(provider, clock=Clock()), isSecure=True)
    client.received()
    authzid = f"a={name}" if named else ""
    message = b64encode(f"n,{authzid},\x01auth=Bearer {token}\x01\x01".encode())
    assert client.say(b"AUTH OAUTHBEARER " + message).startswith(reply)
    assert b64decode(message)
