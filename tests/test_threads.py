"""
A provider that blocks, in threads.
"""

from __future__ import annotations

import io
import threading
from typing import Any
from unittest import TestCase as PlainTestCase

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from pop3svc.calling import Workers
from pop3svc.interfaces import IExclusiveMailbox, IPOP3Mailbox, IPOP3MailboxProvider
from pop3svc.protocol.session import ConnectionInfo
from pop3svc.providers.memory import MemoryMailbox, MemoryMaildrop, MemoryProvider
from pop3svc.testing import Inline, MailboxContract, conversation
from pop3svc.threads import InThreads, _Mailbox
from tests.protocol.test_commands import ALICE
from tests.protocol.test_content import LINES, MESSAGE, Chunks, Lines


class Contract(MailboxContract, PlainTestCase):
    def makeMailbox(self, messages: list[bytes]) -> Any:
        self.drop = MemoryMaildrop(messages)
        return self.again()

    def again(self) -> Any:
        return _Mailbox(MemoryMailbox(self.drop), Inline())


def test_provider() -> None:
    provider = InThreads(MemoryProvider({"alice": "secret"}, [b"a: b\n"]), runner=Inline())
    verifyObject(IPOP3MailboxProvider, provider)
    conversation(
        provider,
        ALICE.replace("S: +OK…", "S: +OK pop3svc memory ready.", 1)
        + "C: STAT\nS: +OK 1 6\nC: DELE 1\nS: +OK…\nC: QUIT\nS: +OK Bye, 1 deleted.\nS: (closed)",
    )
    conversation(provider, "S: +OK…\nC: XLOG alice wrong\nS: -ERR [AUTH]…")


def test_contentOfAnyKind() -> None:
    chunks: Any = Chunks([MESSAGE])
    chunks.nextChunk = iter([MESSAGE, None]).__next__
    kinds = [MESSAGE, io.BytesIO(MESSAGE), LINES, iter(LINES), Lines(list(LINES)), chunks]
    for content in kinds:

        class Mailbox(MemoryMailbox):
            def messageContent(self, info: Any, uniqueID: str, it: Any = content) -> Any:
                return it

        @implementer(IPOP3MailboxProvider)
        class Provider:
            name = "kinds"

            def authenticate(self, info: Any, username: str, password: str) -> Any:
                return Mailbox(MemoryMaildrop([b"x"]))

        client = conversation(InThreads(Provider(), runner=Inline()), ALICE)
        said = client.say(b"RETR 1").partition(b"\r\n")[2]
        assert said == MESSAGE + b".\r\n", content


class RealThreads(TestCase):
    def setUp(self) -> None:
        self.workers = Workers("test", 4, 100)
        self.addCleanup(self.workers.stop)

    async def test_oneAtATime(self) -> None:
        """
        Not in the reactor's thread, and never two at once, even if one was
        given up.
        """
        inside: list[int] = []
        most: list[int] = []
        gate = threading.Event()

        class Mailbox(MemoryMailbox):
            def listMessageUniqueIDs(self, info: Any) -> list[str]:
                assert threading.current_thread() is not threading.main_thread()
                inside.append(1)
                most.append(len(inside))
                gate.wait(30)
                inside.pop()
                return []

        mailbox: Any = _Mailbox(Mailbox(MemoryMaildrop()), self.workers)
        info = ConnectionInfo(1, None, False)
        first = mailbox.listMessageUniqueIDs(info)
        first.addErrback(lambda _: None)
        second = mailbox.listMessageUniqueIDs(info)
        first.cancel()
        gate.set()
        self.assertEqual(await second, [])
        self.assertEqual(max(most), 1)

    async def test_surrender(self) -> None:
        """
        It is asked in the reactor's thread.
        """
        drop = MemoryMaildrop()
        info = ConnectionInfo(1, None, False)
        first: Any = _Mailbox(MemoryMailbox(drop), self.workers)
        second: Any = _Mailbox(MemoryMailbox(drop), self.workers)
        verifyObject(IPOP3Mailbox, first)
        assert IExclusiveMailbox.providedBy(first)
        asked: Deferred[Any] = Deferred()

        def surrender() -> bool:
            asked.callback(threading.current_thread() is threading.main_thread())
            return False

        await first.lock(info, surrender)
        with self.assertRaises(Exception):
            await second.lock(info, lambda: False)
        self.assertTrue(await asked)
        await first.unlock(info)
