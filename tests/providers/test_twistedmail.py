"""
Mailboxes of twisted.mail.pop3 and realms of twisted.cred.
"""

from __future__ import annotations

import io
from typing import Any
from unittest import TestCase

from twisted.cred.checkers import ICredentialsChecker, InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.portal import IRealm, Portal
from twisted.internet.defer import Deferred, fail, succeed
from twisted.mail.interfaces import IMailboxPOP3
from zope.interface import implementer
from zope.interface.verify import verifyObject

from pop3svc import PortalProvider
from pop3svc.credentials import IPasswordAttempt
from pop3svc.interfaces import IPOP3Mailbox, IPOP3MailboxProvider
from pop3svc.providers.memory import MemoryMailbox, MemoryMaildrop
from pop3svc.testing import MailboxContract, conversation
from tests.support.conversations import ALICE


@implementer(IMailboxPOP3)
class Legacy:
    """
    A mailbox for twisted.mail; some of its methods return Deferreds.
    """

    def __init__(self, messages: dict[bytes, bytes]) -> None:
        self.messages = messages
        self.listed = list(messages)
        self.marked: set[int] = set()
        self.calls: list[str] = []
        self.fails = False

    def listMessages(self, index: int | None = None) -> Any:
        sizes = [
            0 if each in self.marked or name not in self.messages else 99
            for each, name in enumerate(self.listed)
        ]
        return succeed(sizes) if index is None else sizes[index]

    def getMessage(self, index: int) -> Any:
        if self.listed[index] not in self.messages:
            raise ValueError(index)
        return io.BytesIO(self.messages[self.listed[index]])

    def getUidl(self, index: int) -> bytes:
        return self.listed[index]

    def deleteMessage(self, index: int) -> None:
        self.calls.append(f"delete {index}")
        self.marked.add(index)

    def undeleteMessages(self) -> None:
        self.calls.append("undelete")
        self.marked.clear()

    def sync(self) -> Any:
        self.calls.append("sync")
        if self.fails:
            return fail(OSError("disk"))
        for index in self.marked:
            del self.messages[self.listed[index]]
        self.marked.clear()
        return None


class LegacyContract(MailboxContract, TestCase):
    def makeMailbox(self, messages: list[bytes]) -> Any:
        self.messages = {b"id%d" % n: each for n, each in enumerate(messages)}
        return self.again()

    def again(self) -> Any:
        return IPOP3Mailbox(Legacy(self.messages))


@implementer(IRealm)
class Realm:
    def __init__(self, avatar: Any) -> None:
        self.avatar = avatar
        self.logouts = 0

    def requestAvatar(self, avatarId: Any, mind: Any, *interfaces: Any) -> Any:
        for interface in interfaces:
            if interface.providedBy(self.avatar):
                return interface, self.avatar, self.logout
        raise NotImplementedError

    def logout(self) -> None:
        self.logouts += 1


def portal(avatar: Any) -> tuple[PortalProvider, Realm]:
    database = InMemoryUsernamePasswordDatabaseDontUse()
    database.addUser(b"alice", b"secret")
    realm = Realm(avatar)
    provider = PortalProvider(Portal(realm, [database]), "legacy mail")
    verifyObject(IPOP3MailboxProvider, provider)
    return provider, realm


def test_portal() -> None:
    legacy = Legacy({b"a": b"one\n", b"b": b"two", b"c": b""})
    provider, realm = portal(legacy)
    client = conversation(
        provider,
        "S: +OK legacy mail ready.\nC: USER alice\nS: +OK…\nC: PASS wrong\nS: -ERR [AUTH]…\n"
        + ALICE.partition("\n")[2]
        + """
        C: STAT
        S: +OK 3 10
        C: UIDL 2
        S: +OK 2 b
        C: DELE 2
        S: +OK…
        C: DELE 1
        S: +OK…
        C: RETR 3
        S: +OK…
        S: .
        """,
    )
    assert (legacy.calls, realm.logouts) == ([], 0)
    assert client.say(b"QUIT") == b"+OK Bye, 2 deleted.\r\n"
    assert legacy.calls == ["delete 1", "delete 0", "sync"]
    assert (list(legacy.messages), realm.logouts) == ([b"c"], 1)


def test_deletionFails() -> None:
    legacy = Legacy({b"a": b"one\n"})
    legacy.fails = True
    provider, realm = portal(legacy)
    conversation(
        provider,
        "S: +OK…"
        + ALICE.partition("\n")[2].join(["\n", ""])
        + "C: DELE 1\nS: +OK…\nC: QUIT\nS: -ERR [SYS/TEMP]…\nS: (closed)",
    )
    assert legacy.calls == ["delete 0", "sync", "undelete"]
    assert (list(legacy.messages), realm.logouts) == ([b"a"], 1)


def test_lostClient() -> None:
    legacy = Legacy({b"a": b"one\n"})
    provider, realm = portal(legacy)
    conversation(provider, ALICE + "C: DELE 1\nS: +OK…").vanish()
    assert (legacy.calls, realm.logouts) == ([], 1)


def test_gone() -> None:
    legacy = Legacy({b"a": b"one\n"})
    client = conversation(portal(legacy)[0], ALICE)
    legacy.messages.clear()
    assert client.say(b"RETR 1") == b"-ERR Message no longer exists.\r\n"


def test_ownMailboxesThroughAPortal() -> None:
    """
    A realm may return an L{IPOP3Mailbox}; the mailbox keeps its other interfaces.
    """
    drop = MemoryMaildrop([b"x"])
    provider, realm = portal(MemoryMailbox(drop))
    client = conversation(provider, ALICE)
    assert drop.isHeld
    client.vanish()
    assert (drop.isHeld, realm.logouts) == (False, 1)


def test_theCheckerLearnsAboutTheClient() -> None:
    """
    A checker may answer later, and gets the client's address.
    """
    seen: list[Any] = []
    answer: Deferred[bytes] = Deferred()

    @implementer(ICredentialsChecker)
    class Checker:
        credentialInterfaces = (IPasswordAttempt,)

        def requestAvatarId(self, credentials: Any) -> Any:
            seen.append((credentials.clientIP, credentials.isSecure, credentials.password))
            return answer

    provider = PortalProvider(Portal(Realm(Legacy({})), [Checker()]))
    client = conversation(provider, "S: +OK…\nC: USER alice\nS: +OK…")
    assert client.say(b"PASS secret") == b""
    assert seen == [("127.0.0.1", False, b"secret")]
    answer.callback(b"alice")
    assert client.received() == b"+OK Logged in.\r\n"


def test_nothingForUs() -> None:
    conversation(
        portal(object())[0],
        "S: +OK…\nC: USER alice\nS: +OK…\nC: PASS secret\nS: -ERR Command not available.",
    )


def test_sameUniqueIDTwice() -> None:
    legacy = Legacy({b"a": b"one\n", b"b": b"two"})
    legacy.getUidl = lambda index: b"same"  # type: ignore[method-assign]
    conversation(
        portal(legacy)[0],
        "S: +OK…\nC: USER alice\nS: +OK…\nC: PASS secret\nS: -ERR [SYS/TEMP]…\nS: (closed)",
    )
