"""
With two spellings of a name the same user logs in, whatever the way to log in.  A name that cannot
be prepared is refused like an unknown one.
"""

from __future__ import annotations

import hmac
from base64 import b64decode, b64encode
from collections.abc import Callable
from hashlib import md5
from pathlib import Path
from typing import Any

import pytest
from scramp import ScramClient
from twisted.internet.task import Clock

from pop3svc.accounts.checkers import AccountsProvider
from pop3svc.accounts.passwordfile import PasswordFile
from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import IMailboxLogout
from pop3svc.policy import OPTIONAL_MECHANISMS, Policy
from pop3svc.providers.memory import MemoryStore
from pop3svc.service.factory import POP3Factory
from pop3svc.testing import Client, Inline, StubProvider
from tests.protocol.test_bearer import Tokens
from tests.support.connections import events
from tests.support.throttles import RecordingThrottle

MAPPED = Policy(nameCase="mapped", enable=frozenset(OPTIONAL_MECHANISMS))
PRESERVED = Policy(enable=frozenset(OPTIONAL_MECHANISMS))
LOGGED_IN = b"+OK Logged in.\r\n"
WRONG = b"-ERR [AUTH] Wrong name or password.\r\n"
PASSWORD = "pässword"


@pytest.fixture
def mail(tmp_path: Path) -> AccountsProvider:
    path = tmp_path / "users"
    path.write_text(f"änne:{{PLAIN}}{PASSWORD}\nann:{{PLAIN}}{PASSWORD}\n")
    path.chmod(0o600)
    tokens = Tokens(t1="änne", t2="A\u0308NNE", t3="bad name", t4="\ud800")
    return AccountsProvider(
        MemoryStore([b"a: b\n\nc\n"]), [PasswordFile(str(path), Inline()), tokens]
    )


def connect(mail: Any, policy: Policy = MAPPED, throttle: Any = None, *names: str) -> Client:
    factory = POP3Factory(mail, policy, clock=Clock(), throttle=throttle, secret=b"s" * 32)
    client = Client(factory, isSecure=True)
    session: Any = client.protocol.session  # type: ignore[attr-defined]
    session.certificateNames = lambda: names
    return client


def encoded(text: str) -> bytes:
    return b64encode(text.encode("utf-8", "surrogateescape"))


def userAndPass(client: Client, name: str, password: str) -> bytes:
    client.say(b"USER " + name.encode("utf-8", "surrogateescape"))
    return client.say(b"PASS " + password.encode("utf-8", "surrogateescape"))


def xlog(client: Client, name: str, password: str) -> bytes:
    return client.say(f"XLOG {name} {password}".encode("utf-8", "surrogateescape"))


def plain(client: Client, name: str, password: str) -> bytes:
    return client.say(b"AUTH PLAIN " + encoded(f"\0{name}\0{password}"))


def login(client: Client, name: str, password: str) -> bytes:
    client.say(b"AUTH LOGIN " + encoded(name))
    return client.say(encoded(password))


def scram(client: Client, name: str, password: str) -> bytes:
    # The name is put in later, because the library would prepare it by SASLprep.
    other = ScramClient(["SCRAM-SHA-256"], "USER", password)
    other.get_client_first()
    other.client_first_bare = other.client_first_bare.replace("USER", name)
    client.say(b"AUTH SCRAM-SHA-256")
    reply = client.say(encoded("n,," + other.client_first_bare))
    other.set_server_first(b64decode(reply[2:-2]).decode())
    reply = client.say(encoded(other.get_client_final()))
    return client.say(b"") if reply.startswith(b"+ ") else reply


def apop(client: Client, name: str, password: str) -> bytes:
    session: Any = client.protocol.session  # type: ignore[attr-defined]
    digest = md5((session.timestamp + password).encode()).hexdigest()
    return client.say(f"APOP {name} {digest}".encode("utf-8", "surrogateescape"))


def cram(client: Client, name: str, password: str) -> bytes:
    challenge = b64decode(client.say(b"AUTH CRAM-MD5").split(b"\r\n")[-2][2:])
    digest = hmac.new(password.encode(), challenge, "md5").hexdigest()
    return client.say(encoded(f"{name} {digest}"))


PASSWORDS = [userAndPass, xlog, plain, login]
WAYS = [*PASSWORDS, scram, apop, cram]
Way = Callable[[Client, str, str], bytes]


def user(client: Client) -> Any:
    return client.protocol.session.info.userNameAtLogin  # type: ignore[attr-defined]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["änne", "a\u0308nne", "ÄNNE", "A\u0308Nne"])
def test_spellings(mail: AccountsProvider, way: Way, name: str) -> None:
    client = connect(mail)
    client.received()
    assert way(client, name, PASSWORD) == LOGGED_IN
    assert user(client) == "änne"
    client.vanish()
    isLower = name == name.lower()
    client = connect(mail, PRESERVED)
    client.received()
    assert way(client, name, PASSWORD) == (LOGGED_IN if isLower else WRONG)
    assert user(client) == ("änne" if isLower else None)


@pytest.mark.parametrize("way", PASSWORDS)
def test_spellingsOfAPassword(mail: AccountsProvider, way: Way) -> None:
    client = connect(mail)
    client.received()
    assert way(client, "ann", "pa\u0308ssword") == LOGGED_IN


def test_oneLock(mail: AccountsProvider) -> None:
    """
    The mailbox that one spelling has locked is locked for another.
    """
    one, other = connect(mail), connect(mail)
    one.received(), other.received()
    assert userAndPass(one, "ann", PASSWORD) == LOGGED_IN
    assert userAndPass(other, "ANN", PASSWORD).startswith(b"-ERR [IN-USE]")


def test_oneLimit(mail: AccountsProvider) -> None:
    """
    The sessions of a user are counted together.
    """
    policy = Policy(nameCase="mapped", loginDelay=60)
    factory = POP3Factory(mail, policy, clock=Clock())
    one, other = Client(factory), Client(factory)
    one.received(), other.received()
    assert userAndPass(one, "ann", PASSWORD) == LOGGED_IN
    one.say(b"QUIT")
    assert userAndPass(other, "Ann", PASSWORD).startswith(b"-ERR [LOGIN-DELAY]")


@pytest.mark.parametrize("way", WAYS)
def test_throttleSeesOneName(mail: AccountsProvider, way: Way) -> None:
    """
    Bans, strikes and known networks are kept under the prepared name.
    """
    throttle = RecordingThrottle()
    client = connect(mail, MAPPED, throttle)
    client.received()
    assert way(client, "ÄNNE", "wrong") == WRONG
    assert way(client, "A\u0308nne", PASSWORD) == LOGGED_IN
    assert {each[1] for each in throttle.told} == {"änne"}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["än\u00adne", "Ⅸ", "😀", "משהa", "a\udcffb"])
def test_unusableNames(mail: AccountsProvider, way: Way, name: str) -> None:
    """
    Names that cannot be prepared are refused like an unknown user: after the same calls, with the
    same reply.
    """
    if way is scram and not name.isprintable():
        # SCRAM itself refuses octets that are not UTF-8.
        return
    asked: list[list[Any]] = []
    for each in ("nobody", name):
        throttle = RecordingThrottle()
        client = connect(mail, MAPPED, throttle)
        client.received()
        assert way(client, each, "wrong") == way(client, each, PASSWORD) == WRONG
        assert user(client) is None
        asked.append([(what[0], len(what)) for what in throttle.told])
        # The throttle never sees such a name, but a made-up name that is the same for the same
        # text.
        assert len({what[1] for what in throttle.told}) == 1
        assert throttle.told[0][1].isascii()
    assert asked[0] == asked[1]


@pytest.mark.parametrize("way", [xlog, plain, login])
def test_longNames(mail: AccountsProvider, way: Way) -> None:
    """
    The throttle sees a made-up name in place of a name that is not ASCII and is too long to
    prepare.
    """
    throttle = RecordingThrottle()
    client = connect(mail, MAPPED, throttle)
    client.received()
    assert way(client, "é" * 128, "x") == WRONG
    assert len(throttle.told[0][1]) == 65


@pytest.mark.parametrize("way", PASSWORDS)
@pytest.mark.parametrize("password", ["a\u00adb", "pässword\udcff", "é" * 129, "\u00ad"])
def test_unusablePasswords(mail: AccountsProvider, way: Way, password: str) -> None:
    throttle = RecordingThrottle()
    client = connect(mail, MAPPED, throttle)
    client.received()
    assert way(client, "ann", password) == way(client, "ann", password) == WRONG
    guesses = [each[2] for each in throttle.told if each[0] == "may"]
    # The same wrong password is the same guess, and a different password is a different guess.
    assert len(guesses) == 2 and len(set(guesses)) == 1
    assert way(client, "ann", password + "\u00ad") == WRONG
    assert len({each[2] for each in throttle.told if each[0] == "may"}) == 2


def test_providerIsAskedForUnusableNames() -> None:
    """
    The provider checks a password as for any unknown user, but never sees what the client sent.
    """
    asked: list[tuple[str, str]] = []
    mail = StubProvider(authenticate=lambda info, *credentials: asked.append(credentials))
    client = connect(mail)
    client.received()
    for name, password in (("a\udcff", "secret"), ("alice", "b\udcfe"), ("😀", "😀\udcff")):
        assert plain(client, name, password) == WRONG
    assert [each[0] == "alice" for each in asked] == [False, True, False]
    assert [each[1] == "secret" for each in asked] == [True, False, False]
    assert all(text.isascii() for each in asked for text in each)
    # Nobody can guess the made-up names, because they depend on the secret.
    other = POP3Factory(mail, MAPPED, clock=Clock(), secret=b"t" * 32)
    client = Client(other, isSecure=True)
    client.received()
    assert plain(client, "a\udcff", "secret") == WRONG
    assert asked[-1] != asked[0] and len(asked[-1][0]) == 65


def test_providerAcceptsAnything() -> None:
    """
    A name that cannot be prepared is refused even by a provider that lets in everybody.  The
    mailbox is released, if that is needed.
    """
    simple = StubProvider([b"a: b\n\nc\n"])
    client = connect(simple)
    client.received()
    assert plain(client, "a\udcff", "secret") == WRONG
    told: list[str] = []
    mail = StubProvider([b"a: b\n\nc\n"], logout=lambda: told.append("logout"))
    assert mail.authenticate is not None
    client = connect(mail)
    client.received()
    box = mail.mailbox()
    assert IMailboxLogout.providedBy(box)
    for name, password in (("a\udcff", "secret"), ("alice", "secret\udcff")):
        everybody = StubProvider(
            [b"a: b\n\nc\n"],
            authenticate=lambda info, *credentials: mail.mailbox(),
        )
        client = connect(everybody)
        client.received()
        assert plain(client, name, password) == WRONG
        assert user(client) is None
    assert told == ["logout", "logout"]
    assert plain(client, "alice", "anything") == LOGGED_IN


class Everybody(AccountsProvider):
    """
    Each name is another name of ann.
    """

    async def scramKeys(self, info: Any, username: str, algorithm: str, salt: bytes) -> Any:
        return await super().scramKeys(info, "ann", algorithm, salt)

    async def sharedSecret(self, info: Any, username: str) -> Any:
        return await super().sharedSecret(info, "ann")


@pytest.mark.parametrize("way", [scram, apop, cram])
def test_mechanismsOfAnyName(tmp_path: Path, way: Way) -> None:
    """
    A name that cannot be prepared is refused even if the provider has keys for every name.
    """
    path = tmp_path / "users"
    path.write_text(f"ann:{{PLAIN}}{PASSWORD}\n")
    path.chmod(0o600)
    everybody = Everybody(MemoryStore([b"a: b\n\nc\n"]), [PasswordFile(str(path), Inline())])
    client = connect(everybody)
    client.received()
    assert way(client, "Ⅸ", PASSWORD) == WRONG
    assert way(client, "whoever", PASSWORD) == LOGGED_IN


def test_emptyNames() -> None:
    client = connect(StubProvider())
    client.received()
    assert plain(client, "", "x") == WRONG
    assert userAndPass(client, "x", "").startswith(b"-ERR This command takes a password")


def test_events(mail: AccountsProvider) -> None:
    """
    The log shows the prepared name.  If the name or the password cannot be prepared, it shows the
    name as it was sent.
    """
    policy = Policy(nameCase="mapped", verboseEvents=1)

    def act() -> None:
        for name, password in (("Ann", PASSWORD), ("a\udcff", "x"), ("ANN", "x\udcff")):
            client = connect(mail, policy)
            client.received()
            plain(client, name, password)
            client.say(b"QUIT")

    assert [each["user"] for each in events("login", act)] == ["ann", "a\\udcff", "ANN"]


def test_identities(mail: AccountsProvider) -> None:
    """
    The authorization identity of PLAIN may be another spelling of the name.
    """

    def said(other: str, policy: Policy = MAPPED) -> bytes:
        client = connect(mail, policy)
        client.received()
        reply = client.say(b"AUTH PLAIN " + encoded(f"{other}\0ann\0{PASSWORD}"))
        client.vanish()
        return reply

    assert said("ANN") == said("ann") == said("") == LOGGED_IN
    refused = b"-ERR [AUTH] Authorization identity must be the user name.\r\n"
    assert said("änne") == said("a\udcff") == said("ANN", PRESERVED) == refused


def test_external(mail: AccountsProvider) -> None:
    """
    Names of certificates are prepared, too; those that cannot be prepared name nobody.
    """

    def said(response: str, *names: str, policy: Policy = MAPPED) -> bytes:
        client = connect(mail, policy, None, *names)
        client.received()
        reply = client.say(b"AUTH EXTERNAL " + (encoded(response) or b"="))
        if reply == LOGGED_IN:
            assert user(client) == "ann"
        client.vanish()
        return reply

    assert said("", "ANN") == said("ann", "ANN") == said("ANN", "x", "ann") == LOGGED_IN
    # Two spellings are one name.
    assert said("", "ann", "Ann") == LOGGED_IN
    assert said("", "ann", "Ann", policy=PRESERVED).startswith(b"-ERR [AUTH] Certificate names")
    assert said("ANN", "ann", policy=PRESERVED) == WRONG
    assert said("", "a b", "ann") == LOGGED_IN
    assert said("", "a b") == WRONG
    assert said("a b", "a b") == said("a b", "ann") == WRONG


@pytest.mark.parametrize("mechanism", ["OAUTHBEARER", "XOAUTH2"])
def test_tokens(mail: AccountsProvider, mechanism: str) -> None:
    def said(token: str, name: str | None, policy: Policy = MAPPED) -> Any:
        client = connect(mail, policy)
        client.received()
        if mechanism == "OAUTHBEARER":
            header = "n,," if name is None else f"n,a={name},"
            message = f"{header}\x01auth=Bearer {token}\x01\x01"
        else:
            message = ("" if name is None else f"user={name}\x01") + f"auth=Bearer {token}\x01\x01"
        reply = client.say(b"AUTH " + mechanism.encode() + b" " + encoded(message))
        if reply.startswith(b"+ "):
            reply = client.say(b"")
        name = user(client)
        client.vanish()
        return name if reply == LOGGED_IN else reply

    assert said("t1", "ÄNNE") == said("t1", None) == said("t1", "a\u0308nne") == "änne"
    # The name in the token is prepared.
    assert said("t2", None) == "änne"
    assert said("t2", None, PRESERVED) == "ÄNNE"
    assert said("t1", "ÄNNE", PRESERVED) == WRONG
    assert said("t3", None) == said("t4", None) == WRONG
    assert said("t1", "Ⅸ") == said("t3", "bad name") == said("none", None) == WRONG
    assert said("t1", "ann") == WRONG


def test_errorOfAProvider() -> None:
    """
    An error of a provider is the answer for a name that cannot be prepared, too.
    """
    mail = StubProvider(authenticate=POP3ResponseError("Not now.", "SYS/TEMP"))
    client = connect(mail)
    client.received()
    assert (
        plain(client, "a\udcff", "x") == plain(client, "a", "x") == b"-ERR [SYS/TEMP] Not now.\r\n"
    )
