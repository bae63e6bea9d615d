"""
A provider made of twisted.cred checkers and a store.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.cred.checkers import (
    AllowAnonymousAccess,
    ICredentialsChecker,
    InMemoryUsernamePasswordDatabaseDontUse,
)
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import UnhandledCredentials
from twisted.internet.defer import Deferred
from zope.interface import implementer
from zope.interface.verify import verifyObject

from pop3svc.accounts.checkers import AccountsProvider
from pop3svc.accounts.passwordediting import addUser, removeUser, setPassword
from pop3svc.accounts.passwordfile import PasswordFile
from pop3svc.awaiting import startNow
from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import IAccountStatus, IMailboxStore, IPOP3MailboxProvider
from pop3svc.protocol.session import ConnectionInfo
from pop3svc.providers.memory import MemoryStore
from pop3svc.testing import Inline, StubProvider, conversation


def database(**users: str) -> Any:
    found = InMemoryUsernamePasswordDatabaseDontUse()
    for name, password in users.items():
        found.addUser(name.encode(), password.encode())
    return found


@implementer(ICredentialsChecker)
class Odd:
    credentialInterfaces = (IUsernamePassword,)

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    async def requestAvatarId(self, credentials: Any) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return await self.answer if isinstance(self.answer, Deferred) else self.answer


def attempt(checkers: list[Any], name: str, password: str, said: str) -> MemoryStore:
    store = MemoryStore([b"x"])
    provider = AccountsProvider(store, checkers)
    verifyObject(IPOP3MailboxProvider, provider)
    verifyObject(IMailboxStore, provider)
    conversation(
        provider,
        f"S: +OK pop3svc memory ready.\nC: USER {name}\nS: +OK…\nC: PASS {password}\nS: {said}",
    )
    return store


REFUSED = "-ERR [AUTH] Wrong name or password."


def test_askedInOrder() -> None:
    checkers = [database(alice="one"), AllowAnonymousAccess(), database(alice="two", bob="three")]
    for name, password in (("alice", "one"), ("alice", "two"), ("bob", "three")):
        assert list(attempt(checkers, name, password, "+OK Logged in.").maildrops) == [name]
    assert attempt(checkers, "alice", "three", REFUSED).maildrops == {}
    assert attempt(checkers, "eve", "one", REFUSED).maildrops == {}


def test_answers() -> None:
    """
    The mailbox is opened under the avatar ID; an avatar ID without a name is a failed login.
    """
    assert list(attempt([Odd(b"carol")], "x", "y", "+OK…").maildrops) == ["carol"]
    assert list(attempt([Odd("carol")], "x", "y", "+OK…").maildrops) == ["carol"]
    for answer in ((), b"", "", None, 5):
        attempt([Odd(answer)], "x", "y", REFUSED)
    attempt([Odd(POP3ResponseError("Later.", "SYS/TEMP"))], "x", "y", "-ERR [SYS/TEMP] Later.")
    attempt([Odd(KeyError("y"))], "x", "y", "-ERR [SYS/TEMP] Internal error.")


class Attempt:
    isFromKnownNetwork = False
    isGuess = True
    wasRefused = False


def checked(name: str, *checkers: Any, store: Any = None) -> tuple[bool, bool]:
    """
    @return: whether the attempt is a guess, and whether a checker has refused it.
    """
    info = ConnectionInfo(1, "192.0.2.7", True)
    info.loginAttempt = attempt = Attempt()
    provider = AccountsProvider(store or MemoryStore(), checkers)
    Deferred.fromCoroutine(provider.authenticate(info, name, "secret")).addErrback(lambda _: None)
    return attempt.isGuess, attempt.wasRefused


def test_whatCountsAsAGuess(tmp_path: Path) -> None:
    """
    If the client is lost, a password that may have been compared counts as a guess.  If one
    checker refuses a password and the next checker fails, the password counts, too.
    """
    (tmp_path / "users").write_text("alice:{PLAIN}other\nbob:{PLAIN}secret\n")
    passwords = PasswordFile(str(tmp_path / "users"), Inline())
    fault = Odd(POP3ResponseError("Later.", "SYS/TEMP"))
    silent = Odd(Deferred())
    assert checked("alice", silent) == (True, False)
    assert checked("alice", fault) == (True, False)
    assert checked("alice", passwords, fault) == (True, True)
    assert checked("alice", database(alice="other"), fault) == (True, True)
    # The file has no user of this name, so it has refused no password.
    assert checked("carol", passwords, fault) == (True, False)
    assert checked("carol", Odd(UnhandledCredentials()), fault) == (True, False)

    inUse = StubProvider(openMailbox=POP3ResponseError("Wait.", "IN-USE"))
    assert checked("bob", database(bob="other"), passwords, store=inUse) == (False, False)


def test_storeRefuses() -> None:
    provider = AccountsProvider(StubProvider(openMailbox=None), [database(alice="one")])
    conversation(provider, f"S: +OK…\nC: USER alice\nS: +OK…\nC: PASS one\nS: {REFUSED}")


def test_isStillValid(tmp_path: Any) -> None:
    """
    A sleeping session does not wake up if its account is gone or has a new password; other
    sessions do.
    """
    path = str(tmp_path / "users")
    for name in ("alice", "bob"):
        addUser(path, name, "secret")
    checkers = [database(carol="secret"), PasswordFile(path, Inline())]
    verifyObject(IAccountStatus, checkers[1])
    provider = AccountsProvider(MemoryStore([b"x"]), checkers)
    verifyObject(IAccountStatus, provider)
    script = (
        "S: +OK…\nC: XLOG {0} secret\nS: +OK…\nC: SLEE\nS: +OK…\nC: WAKE\nS: +OK…\nC: SLEE\nS: +OK…"
    )
    alice, bob, carol = (
        conversation(provider, script.format(name)) for name in ("alice", "bob", "carol")
    )
    setPassword(path, "alice", "other")
    refused = b"-ERR [AUTH] Account is no longer valid.\r\n"
    assert alice.say(b"WAKE") == refused
    assert bob.say(b"WAKE").startswith(b"+OK")
    assert bob.say(b"SLEE").startswith(b"+OK")
    removeUser(path, "bob")
    assert bob.say(b"WAKE") == refused
    assert carol.say(b"WAKE").startswith(b"+OK")


def test_provedElsewhere(tmp_path: Path) -> None:
    """
    No checker knows the version of a user whom another mechanism has proved.  The checker of an
    earlier login is not asked.
    """
    path = tmp_path / "users"
    path.write_text("alice:{PLAIN}one\nbob:{PLAIN}two\n")
    provider = AccountsProvider(MemoryStore([]), [PasswordFile(str(path), Inline())])
    info = ConnectionInfo(1, None, True)
    provider.openMailbox(info, "bob")
    assert provider.credentialsVersion(info, "bob") == ""
    assert provider.isStillValid(info, "bob", "") is True
    startNow(provider.authenticate(info, "alice", "one"))
    assert provider.credentialsVersion(info, "alice") != ""
    provider.openMailbox(info, "bob")
    assert provider.credentialsVersion(info, "bob") == ""


def test_provenUsersNeedAnAccount(tmp_path: Path) -> None:
    """
    A user whose account was removed cannot log in by EXTERNAL, even if another source cannot tell
    which accounts it has.
    """
    path = str(tmp_path / "users")
    addUser(path, "alice", "secret word")
    info = ConnectionInfo(1, "192.0.2.7", True)

    def proven(checkers: list[Any], name: str) -> Any:
        return startNow(AccountsProvider(MemoryStore([]), checkers).provenMailbox(info, name))

    def withFile() -> list[Any]:
        return [PasswordFile(path, Inline()), database(bob="x")]

    assert proven(withFile(), "alice") == "alice"
    assert proven(withFile(), "bob") is None
    removeUser(path, "alice")
    assert proven(withFile(), "alice") is None
    assert proven([database(bob="x")], "alice") == "alice"
