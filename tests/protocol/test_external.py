"""
The mechanism EXTERNAL: which names of a certificate log in.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.internet.task import Clock
from zope.interface import implementer

from pop3svc.accounts.checkers import AccountsProvider
from pop3svc.accounts.domains import DomainProvider
from pop3svc.accounts.passwordediting import removeUser
from pop3svc.accounts.passwordfile import PasswordFile
from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import IAccountNames
from pop3svc.policy import Policy
from pop3svc.providers.memory import MemoryStore
from pop3svc.service.factory import POP3Factory
from pop3svc.testing import Client, Inline, StubProvider
from tests.support.throttles import RecordingThrottle

WRONG = b"-ERR [AUTH] Wrong name or password.\r\n"
LOGGED_IN = b"+OK Logged in.\r\n"


class Names:
    """
    Returns the names of a client's certificate.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)

    def __call__(self) -> tuple[str, ...]:
        return self.names


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "users"
    path.write_text("ann:{PLAIN}one\nbob:{PLAIN}two\n")
    path.chmod(0o600)
    return path


def providerOf(path: Path, *others: Any) -> AccountsProvider:
    checkers = [PasswordFile(str(path), Inline()), *others]
    return AccountsProvider(MemoryStore([b"a: b\n\nc\n"]), checkers)


def connect(provider: Any, *names: str, policy: Policy | None = None, throttle: Any = None) -> Any:
    factory = POP3Factory(provider, policy, clock=Clock(), throttle=throttle)
    client = Client(factory, isSecure=True)
    client.protocol.session.certificateNames = Names(names)
    client.received()
    return client


def logIn(provider: Any, response: str, *names: str) -> bytes:
    """
    @return: the reply to a response.  It is the same for an initial response and for a response on
        a line of its own.
    """
    encoded = b64encode(response.encode()) or b"="
    client = connect(provider, *names)
    reply: bytes = client.say(b"AUTH EXTERNAL " + encoded)
    client.say(b"QUIT")
    for line in [encoded] if response else [b"=", b""]:
        client = connect(provider, *names)
        assert client.say(b"AUTH EXTERNAL") == b"+ \r\n"
        assert client.say(line) == reply
        client.say(b"QUIT")
    return reply


def test_logsIn(path: Path) -> None:
    """
    A client logs in with the only name of its certificate, or with one of its names that it
    chooses.
    """
    provider = providerOf(path)
    assert logIn(provider, "", "ann") == LOGGED_IN
    assert logIn(provider, "ann", "ann") == LOGGED_IN
    assert logIn(provider, "ann", "bob", "ann") == LOGGED_IN
    client = connect(provider, "ann")
    client.say(b"AUTH EXTERNAL =")
    assert client.say(b"STAT") == b"+OK 1 11\r\n"
    assert client.protocol.session.info.userNameAtLogin == "ann"


def test_refused(path: Path) -> None:
    """
    A login is refused for a name that the certificate does not have, without a choice among several
    names, and for a name without an account.
    """
    provider = providerOf(path)
    assert logIn(provider, "bob", "ann") == WRONG
    assert logIn(provider, "Ann", "ann") == WRONG
    assert logIn(provider, "", "eve") == logIn(provider, "eve", "eve") == WRONG
    several = b"-ERR [AUTH] Certificate names several users; name one of them.\r\n"
    assert logIn(provider, "", "ann", "bob") == several
    assert logIn(provider, "", "x" * 600) == logIn(provider, "", "a\nb") == WRONG
    for bad in ("ann\0", "ann\tbob", "\0ann"):
        said = logIn(provider, bad, "ann")
        assert said == b"-ERR Response is not valid for EXTERNAL.\r\n"


def test_offered(path: Path) -> None:
    """
    EXTERNAL is neither announced nor accepted without a name in a verified certificate, if it is
    switched off, or if the provider cannot look up accounts.
    """
    provider, off = providerOf(path), Policy(without=frozenset(["EXTERNAL"]))
    stub = StubProvider()
    for client, isOffered in (
        (connect(provider, "ann"), True),
        (connect(provider), False),
        (connect(provider, "ann", policy=off), False),
        (connect(stub, "ann"), False),
    ):
        said = client.say(b"CAPA")
        assert (b" EXTERNAL\r\n" in said) == isOffered
        assert b"SASL PLAIN LOGIN" in said
        assert client.say(b"AUTH EXTERNAL").startswith(b"+ ") == isOffered


def test_withoutTLS(path: Path) -> None:
    client = Client(POP3Factory(providerOf(path), clock=Clock()))
    client.received()
    assert b"EXTERNAL" not in client.say(b"CAPA")
    assert client.say(b"AUTH EXTERNAL =") == b"-ERR No such mechanism.\r\n"


def test_endsWithTheConnection(path: Path) -> None:
    """
    No function that refers to the connection stays in its session.
    """
    client = connect(providerOf(path), "ann")
    client.vanish()
    assert client.protocol.session.certificateNames() == ()


def test_expiresMeanwhile(path: Path) -> None:
    """
    A certificate that expires between the challenge and the response is refused.
    """
    client = connect(providerOf(path), "ann")
    assert client.say(b"AUTH EXTERNAL") == b"+ \r\n"
    client.protocol.session.certificateNames.names = ()
    assert client.say(b64encode(b"ann")) == WRONG


@implementer(IAccountNames)
class AccountNames(InMemoryUsernamePasswordDatabaseDontUse):
    """
    A checker that only knows which accounts there are.
    """

    def hasAccount(self, username: str) -> bool:
        if username == "away":
            raise POP3ResponseError("Accounts are not available now.", "SYS/TEMP")
        return username == "dan"


def test_otherSources(path: Path) -> None:
    """
    The first source that has the account decides.  Sources that cannot tell let everybody in if
    there are no others.
    """
    provider = providerOf(path, AccountNames())
    assert logIn(provider, "", "dan") == logIn(provider, "", "ann") == LOGGED_IN
    assert logIn(provider, "", "eve") == WRONG
    assert logIn(provider, "", "away") == b"-ERR [SYS/TEMP] Accounts are not available now.\r\n"
    mute = InMemoryUsernamePasswordDatabaseDontUse()
    assert logIn(providerOf(path, mute), "", "eve") == WRONG
    assert logIn(AccountsProvider(MemoryStore([]), [mute]), "", "eve") == LOGGED_IN
    assert logIn(AccountsProvider(MemoryStore([]), []), "", "ann") == WRONG


def test_wakesUp(path: Path) -> None:
    """
    A removed user does not wake up, and neither does one whose password has changed.  If no source
    can look up accounts, the user wakes up.
    """
    clients = [connect(providerOf(path), name) for name in ("ann", "bob")]
    mute = InMemoryUsernamePasswordDatabaseDontUse()
    clients.append(connect(AccountsProvider(MemoryStore([]), [mute]), "eve"))
    for each in clients:
        assert each.say(b"AUTH EXTERNAL =") == LOGGED_IN
        for line in (b"SLEE", b"WAKE", b"SLEE"):
            assert each.say(line).startswith(b"+OK")
    removeUser(path, "ann")
    path.write_text(path.read_text().replace("two", "changed"))
    refused = b"-ERR [AUTH] Account is no longer valid.\r\n"
    assert clients[0].say(b"WAKE") == clients[1].say(b"WAKE") == refused
    assert clients[2].say(b"WAKE").startswith(b"+OK")
    assert logIn(providerOf(path), "", "ann") == WRONG


def test_anotherUserAfterwards(path: Path) -> None:
    """
    WAKE checks the account of the present login, not the account of an earlier login.
    """
    client = connect(providerOf(path, AccountNames()), "ann", "dan")
    assert client.say(b"AUTH EXTERNAL " + b64encode(b"ann")) == LOGGED_IN
    assert client.say(b"QAUT").startswith(b"+OK")
    assert client.say(b"AUTH EXTERNAL " + b64encode(b"dan")) == LOGGED_IN
    removeUser(path, "ann")
    for line in (b"SLEE", b"WAKE"):
        assert client.say(line).startswith(b"+OK")


def test_domains(tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_text("ann@one.example:{PLAIN}one\nann@two.example:{PLAIN}two\n")
    providers = {"one.example": providerOf(path), "two.example": StubProvider()}
    provider = DomainProvider(providers, "x")
    assert logIn(provider, "", "ann@one.example") == LOGGED_IN
    for name in ("ann@two.example", "ann@three.example", "bob@one.example"):
        assert logIn(provider, "", name) == WRONG
    assert b"EXTERNAL" not in connect(DomainProvider({None: StubProvider()}, "x"), "ann").say(
        b"CAPA"
    )


def test_counted(path: Path) -> None:
    """
    The throttle hears of each attempt, and can refuse it.
    """
    throttle, provider = RecordingThrottle(), providerOf(path)

    def attempt(name: bytes) -> bytes:
        client = connect(provider, "ann", "eve", throttle=throttle)
        said: bytes = client.say(b"AUTH EXTERNAL " + b64encode(name))
        return said

    assert attempt(b"ann") == LOGGED_IN
    assert attempt(b"bob") == attempt(b"eve") == WRONG
    throttle.admits = False
    assert attempt(b"ann") == WRONG
    assert throttle.told == [
        *(("may", "ann", None), ("succeeded", "ann")),
        *(("may", "bob", None), ("failed", "bob")),
        *(("may", "eve", None), ("failed", "eve")),
        ("may", "ann", None),
    ]


def test_restricted(path: Path) -> None:
    """
    The restrictions of an account hold for a certificate, too.
    """
    path.write_text("ann:{PLAIN}one::::::nologin\nbob:{PLAIN}two::::::allow_nets=192.0.2.0/24\n")
    provider = providerOf(path)
    client = connect(provider, "ann")
    assert client.say(b"AUTH EXTERNAL =") == b"-ERR [SYS/PERM] Login is disabled.\r\n"
    # The client's address is 127.0.0.1.
    assert connect(provider, "bob").say(b"AUTH EXTERNAL =") == WRONG
