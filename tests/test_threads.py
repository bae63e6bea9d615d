"""
Blocking providers that run in threads.
"""

from __future__ import annotations

import io
import threading
from typing import Any
from unittest import TestCase as PlainTestCase

import pytest
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase
from zope.interface import classImplements, implementer
from zope.interface.verify import verifyObject

from pop3svc.accounts.checkers import AccountsProvider
from pop3svc.awaiting import startNow
from pop3svc.interfaces import (
    IExclusiveMailbox,
    IMailboxStore,
    IPOP3Mailbox,
    IPOP3MailboxProvider,
    IReloading,
    ISleepingMailbox,
)
from pop3svc.protocol.session import ConnectionInfo
from pop3svc.providers.memory import MemoryMailbox, MemoryMaildrop, MemoryProvider
from pop3svc.testing import Inline, MailboxContract, StubProvider, conversation
from pop3svc.threadpool import BoundedThreadPool
from pop3svc.threads import InThreads, _Mailbox
from tests.support.contents import LINES, MESSAGE, Chunks, Lines
from tests.support.conversations import ALICE


class Contract(MailboxContract, PlainTestCase):
    def makeMailbox(self, messages: list[bytes]) -> Any:
        self.drop = MemoryMaildrop(messages)
        return self.again()

    def again(self) -> Any:
        return _Mailbox(MemoryMailbox(self.drop), Inline(), ("test", "alice"))


def test_provider() -> None:
    provider = InThreads(MemoryProvider({"alice": "secret"}, [b"a: b\n"]), runner=Inline())
    verifyObject(IPOP3MailboxProvider, provider)
    conversation(
        provider,
        ALICE.replace("S: +OK…", "S: +OK pop3svc memory ready.", 1)
        + "C: STAT\nS: +OK 1 6\nC: DELE 1\nS: +OK…\nC: QUIT\nS: +OK Bye, 1 deleted.\nS: (closed)",
    )
    conversation(provider, "S: +OK…\nC: XLOG alice wrong\nS: -ERR [AUTH]…")


class SleepingMailbox(MemoryMailbox):
    """
    A mailbox with C{onSleep}, such as one that closes its database connection.
    """

    isAsleep = False

    def onSleep(self, info: Any) -> None:
        self.isAsleep = True

    def listMessageUniqueIDs(self, info: Any) -> Any:
        self.isAsleep = False
        return super().listMessageUniqueIDs(info)


classImplements(SleepingMailbox, ISleepingMailbox)


@implementer(IMailboxStore, IReloading)
class Store:
    name = "store"

    def __init__(self) -> None:
        self.drop = MemoryMaildrop([b"a: b\n"])
        self.reloads = 0
        self.opened: list[SleepingMailbox] = []

    def openMailbox(self, info: Any, username: str) -> Any:
        if username != "alice":
            return None
        info.providerTag = username
        self.opened.append(SleepingMailbox(self.drop))
        return self.opened[-1]

    def reload(self) -> None:
        self.reloads += 1


class StoreContract(MailboxContract, PlainTestCase):
    """
    The contract for a store in threads, with a mailbox that sleeps.
    """

    def makeMailbox(self, messages: list[bytes]) -> Any:
        self.store = Store()
        self.store.drop = MemoryMaildrop(messages)
        return self.again()

    def again(self) -> Any:
        made: Any = InThreads(self.store, runner=Inline())
        opened = startNow(made.openMailbox(ConnectionInfo(1, None, False), "alice"))
        if isinstance(opened, Deferred):
            opened = opened.result
        verifyObject(ISleepingMailbox, opened)
        return opened


def test_store() -> None:
    """
    A store in threads provides the interfaces of the store, and works with --auth.
    """
    store = Store()
    made = InThreads(store, runner=Inline())
    verifyObject(IMailboxStore, made)
    assert IReloading.providedBy(made) and not IPOP3MailboxProvider.providedBy(made)
    made.reload()
    assert store.reloads == 1
    checker = InMemoryUsernamePasswordDatabaseDontUse(alice=b"secret", bob=b"x")
    provider = AccountsProvider(made, [checker])
    client = conversation(
        provider, ALICE + "C: SLEE\nS: +OK…\nC: WAKE\nS: +OK…\nC: RETR 1\nS: +OK…\nS: a: b\nS: ."
    )
    assert client.say(b"SLEE").startswith(b"+OK")
    assert store.opened[0].isAsleep
    conversation(provider, "S: +OK…\nC: XLOG bob x\nS: -ERR…")


def test_neither() -> None:
    with pytest.raises(TypeError, match="neither IPOP3MailboxProvider nor IMailboxStore"):
        InThreads(object())
    with pytest.raises(AttributeError):
        InThreads(Store(), runner=Inline()).isStillValid


def test_contentOfAnyKind() -> None:
    chunks: Any = Chunks([MESSAGE])
    chunks.nextChunk = iter([MESSAGE, None]).__next__
    kinds = [MESSAGE, io.BytesIO(MESSAGE), LINES, iter(LINES), Lines(list(LINES)), chunks]
    for content in kinds:
        provider = StubProvider([b"x"], messageContent=content)
        client = conversation(InThreads(provider, runner=Inline()), ALICE)
        said = client.say(b"RETR 1").partition(b"\r\n")[2]
        assert said == MESSAGE + b".\r\n", content


class RealThreads(TestCase):
    def setUp(self) -> None:
        self.workers = BoundedThreadPool("test", 4, 100)
        self.addCleanup(self.workers.stop)

    async def test_oneAtATime(self) -> None:
        """
        The calls of a mailbox run outside the reactor's thread, and never two at once, even if one
        was cancelled.
        """
        inside: list[int] = []
        most: list[int] = []
        gate = threading.Event()

        def listMessageUniqueIDs(info: Any) -> list[str]:
            assert threading.current_thread() is not threading.main_thread()
            inside.append(1)
            most.append(len(inside))
            gate.wait(30)
            inside.pop()
            return []

        listing = StubProvider(listMessageUniqueIDs=listMessageUniqueIDs).mailbox()
        mailbox: Any = _Mailbox(listing, self.workers, ("test", "alice"))
        info = ConnectionInfo(1, None, False)
        first = mailbox.listMessageUniqueIDs(info)
        first.addErrback(lambda _: None)
        second = mailbox.listMessageUniqueIDs(info)
        first.cancel()
        gate.set()
        self.assertEqual(await second, [])
        self.assertEqual(max(most), 1)

    async def test_requestRelease(self) -> None:
        """
        C{requestRelease} is called in the reactor's thread.
        """
        drop = MemoryMaildrop()
        info = ConnectionInfo(1, None, False)
        first: Any = _Mailbox(MemoryMailbox(drop), self.workers, ("test", "alice"))
        second: Any = _Mailbox(MemoryMailbox(drop), self.workers, ("test", "alice"))
        verifyObject(IPOP3Mailbox, first)
        assert IExclusiveMailbox.providedBy(first)
        asked: Deferred[Any] = Deferred()

        def requestRelease() -> bool:
            asked.callback(threading.current_thread() is threading.main_thread())
            return False

        await first.lock(info, requestRelease)
        with self.assertRaises(Exception):
            await second.lock(info, lambda: False)
        self.assertTrue(await asked)
        await first.unlock(info)
