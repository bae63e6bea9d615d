"""
What any mailbox must do, as tests for an author to inherit.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from zope.interface import implementer
from zope.interface.verify import verifyObject

from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import (
    IBulkMessageSizes,
    IExclusiveMailbox,
    IPOP3Mailbox,
    IPOP3MailboxProvider,
    IReadOnlyMailbox,
)
from pop3svc.octets import OctetCount
from pop3svc.protocol.content import MessageBody
from pop3svc.protocol.maildrop import isUniqueID
from pop3svc.protocol.session import ConnectionInfo
from pop3svc.testing.client import conversation

__all__ = ["MailboxContract"]

_MESSAGES = (
    b"Subject: one\r\n\r\nThe first.\r\n",
    b"Subject: two\n\n.\n..\n.dot\nlone\rCR",
    b"",
    b"Subject: four\r\n\r\n" + b"x" * 100_000 + b"\r\n",
)


@implementer(IPOP3MailboxProvider)
class _OneMailbox:
    """
    Whoever logs in gets the mailbox that a function makes.
    """

    name = "contract"

    def __init__(self, make: Any) -> None:
        self._make = make

    def authenticate(self, info: Any, username: str, password: str) -> Any:
        return self._make()


class MailboxContract:
    """
    Mix this into a C{unittest.TestCase} and say how a mailbox is made.  All
    answers have to come at once: give a store a
    L{pop3svc.testing.Inline} in place of its threads.
    """

    assertEqual: Any
    assertTrue: Any
    assertRaises: Any
    skipTest: Any

    def makeMailbox(self, messages: list[bytes]) -> Any:
        """
        Make a mailbox for a new session; it holds exactly these messages, in
        this order.  Called once in a test; L{again} for a further session.
        """
        raise NotImplementedError

    def again(self) -> Any:
        """
        Make a mailbox for another session of the same user, as a later login
        would.
        """
        raise NotImplementedError

    # --- helpers --------------------------------------------------------------

    def _info(self) -> ConnectionInfo:
        return ConnectionInfo(1, "127.0.0.1", True)

    def _now(self, call: Any, *arguments: Any) -> Any:
        got: list[Any] = []

        async def run() -> Any:
            return await maybeDeferred(call, *arguments)

        Deferred.fromCoroutine(run()).addBoth(got.append)
        assert got, "the answer did not come at once"
        if hasattr(got[0], "raiseException"):
            got[0].raiseException()
        return got[0]

    def _opened(self, messages: Any = _MESSAGES) -> tuple[Any, list[str]]:
        mailbox = self.makeMailbox(list(messages))
        if IExclusiveMailbox.providedBy(mailbox):
            self._now(mailbox.lock, self._info(), lambda: False)
        return mailbox, self._listed(mailbox)

    def _closed(self, mailbox: Any) -> None:
        if IExclusiveMailbox.providedBy(mailbox):
            self._now(mailbox.unlock, self._info())

    def _listed(self, mailbox: Any) -> list[str]:
        return list(self._now(mailbox.listMessageUniqueIDs, self._info()))

    def _content(self, mailbox: Any, uniqueID: str) -> bytes:
        content = self._now(mailbox.messageContent, self._info(), uniqueID)
        body = MessageBody(content, Clock(), 10)
        octets = b""
        while True:
            chunk = self._now(body.next)
            if chunk is None:
                break
            octets += chunk
        body.close()
        return octets

    def _deletable(self, mailbox: Any) -> None:
        if IReadOnlyMailbox.providedBy(mailbox):
            self.skipTest("a read-only mailbox")

    # --- the contract ---------------------------------------------------------

    def test_providesItsInterfaces(self) -> None:
        """
        The mailbox has what its interfaces say.
        """
        mailbox = self.makeMailbox([])
        verifyObject(IPOP3Mailbox, mailbox)
        for optional in (IBulkMessageSizes, IExclusiveMailbox):
            if optional.providedBy(mailbox):
                verifyObject(optional, mailbox)

    def test_empty(self) -> None:
        """
        An empty mailbox lists nothing.
        """
        mailbox, listed = self._opened([])
        self.assertEqual(listed, [])
        self._closed(mailbox)

    def test_uniqueIDs(self) -> None:
        """
        Unique-ids are well-formed, distinct, and the same the next time and
        in the next session.
        """
        mailbox, listed = self._opened()
        self.assertEqual(len(listed), len(_MESSAGES))
        self.assertEqual(len(set(listed)), len(listed))
        self.assertTrue(all(isUniqueID(each) for each in listed))
        self.assertEqual(self._listed(mailbox), listed)
        self._closed(mailbox)
        later = self.again()
        if IExclusiveMailbox.providedBy(later):
            self._now(later.lock, self._info(), lambda: False)
        self.assertEqual(self._listed(later), listed)
        self._closed(later)

    def test_content(self) -> None:
        """
        Messages come as they are, in the order of the listing, line ends
        aside.
        """
        mailbox, listed = self._opened()
        for uniqueID, message in zip(listed, _MESSAGES, strict=True):
            got = self._content(mailbox, uniqueID)
            self.assertEqual(
                got.replace(b"\r\n", b"\n").rstrip(b"\n"),
                message.replace(b"\r\n", b"\n").rstrip(b"\n"),
            )
        self._closed(mailbox)

    def test_sizes(self) -> None:
        """
        A size is what the content comes to when it is sent, asked for one by
        one or all at once.
        """
        mailbox, listed = self._opened()
        for uniqueID in listed:
            count = OctetCount()
            count.feed(self._content(mailbox, uniqueID))
            try:
                size = self._now(mailbox.messageSize, self._info(), uniqueID)
            except NotImplementedError:
                continue
            self.assertEqual(size, count.total())
            if IBulkMessageSizes.providedBy(mailbox):
                sizes = list(self._now(mailbox.messageSizes, self._info(), [uniqueID, listed[0]]))
                self.assertEqual(sizes[0], size)
                self.assertEqual(len(sizes), 2)
        self._closed(mailbox)

    def test_closeBeforeTheEnd(self) -> None:
        """
        A message may be closed unread.
        """
        mailbox, listed = self._opened()
        content = self._now(mailbox.messageContent, self._info(), listed[3])
        MessageBody(content, Clock(), 10).close()
        self._closed(mailbox)

    def test_messageExists(self) -> None:
        """
        What a client makes up does not exist.
        """
        mailbox, _ = self._opened()
        for madeUp in ("nothing", "../../etc/passwd", "..", "new/x", "~", "a:2,S", "." * 70):
            self.assertEqual(
                bool(self._now(mailbox.messageExists, self._info(), madeUp)), False, madeUp
            )
        self._closed(mailbox)

    def test_delete(self) -> None:
        """
        Deleted messages are gone, for this session and the next; the rest
        stays.
        """
        mailbox, listed = self._opened()
        self._deletable(mailbox)
        self._now(mailbox.messageDelete, self._info(), [listed[0], listed[2]])
        with self.assertRaises(POP3ResponseError):
            self._content(mailbox, listed[0])
        self.assertEqual(self._listed(mailbox), [listed[1], listed[3]])
        self._closed(mailbox)
        later = self.again()
        if IExclusiveMailbox.providedBy(later):
            self._now(later.lock, self._info(), lambda: False)
        self.assertEqual(self._listed(later), [listed[1], listed[3]])
        self._closed(later)

    def test_deleteTwice(self) -> None:
        """
        A message that is gone already counts as deleted.
        """
        mailbox, listed = self._opened()
        self._deletable(mailbox)
        self._now(mailbox.messageDelete, self._info(), [listed[0]])
        self._now(mailbox.messageDelete, self._info(), [listed[0], listed[1]])
        self.assertEqual(self._listed(mailbox), listed[2:])
        self._closed(mailbox)

    def test_lock(self) -> None:
        """
        Only one session holds an exclusive mailbox; the next may when it is
        let go.
        """
        mailbox = self.makeMailbox(list(_MESSAGES))
        if not IExclusiveMailbox.providedBy(mailbox):
            self.skipTest("not exclusive")
        other = self.again()
        self._now(mailbox.lock, self._info(), lambda: False)
        with self.assertRaises(POP3ResponseError) as caught:
            self._now(other.lock, self._info(), lambda: False)
        self.assertEqual(caught.exception.code, "IN-USE")
        self._now(mailbox.unlock, self._info())
        self._now(other.lock, self._info(), lambda: False)
        self._now(other.unlock, self._info())
        self._now(mailbox.lock, self._info(), lambda: False)
        self._now(mailbox.unlock, self._info())

    def test_servesASession(self) -> None:
        """
        A client sees the messages over POP3.
        """
        mailbox = self.makeMailbox([b"Subject: a\n\nb\n"])
        conversation(
            _OneMailbox(lambda: mailbox),
            """
            S: +OK contract ready.
            C: USER alice
            S: +OK…
            C: PASS secret
            S: +OK…
            C: STAT
            S: +OK 1 17
            C: LIST 1
            S: +OK 1 17
            C: RETR 1
            S: +OK…
            S: Subject: a
            S:
            S: b
            S: .
            C: QUIT
            S: +OK…
            S: (closed)
            """,
        )
