"""
The hooks of the contract, and the helpers of its tests.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock

from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import Eventual, IExclusiveMailbox, IMailboxLogout, IReadOnlyMailbox
from pop3svc.lineendings import WireSizeCounter
from pop3svc.protocol.content import MessageBody
from pop3svc.protocol.session import ConnectionInfo
from pop3svc.testing.contract.loop import MAX_TURNS, Loop
from pop3svc.testing.contract.session import ContractSession

__all__ = ["ARRIVED", "MESSAGES", "ContractCase", "nameOf"]

MESSAGES = (
    b"Subject: one\r\n\r\nThe first.\r\n",
    b"Subject: two\n\n.\n..\n.dot \xe9\xff\x00\nlone\rCR",
    b"",
    b"Subject: four\r\n\r\n" + b"x" * 100_000 + b"\r\n",
)
ARRIVED = b"Subject: five\r\n\r\nIt came later.\r\n"


def nameOf(object_: Any, method: str) -> str:
    """
    @return: the name of a method with the name of its class.
    """
    return f"{type(object_).__qualname__}.{method}"


class ContractCase:
    """
    The hooks that an author implements, and helpers for the tests.
    """

    assertEqual: Any
    assertTrue: Any
    assertFalse: Any
    assertIn: Any
    assertRaises: Any
    skipTest: Any
    addCleanup: Any
    _loopOrNone: Loop | None = None
    # The unique-ids that deliver() has returned in this test.
    _delivered: Sequence[str | None] = ()

    # --- hooks for the author -----------------------------------------------------

    def makeMailbox(self, messages: list[bytes]) -> Any:
        """
        Make a mailbox for a new session, with exactly these messages in this order.  A test calls
        this method once.  L{again} makes the mailboxes of further sessions.
        """
        raise NotImplementedError

    def again(self) -> Any:
        """
        Make a mailbox for another session of the same user, as a later login does.
        """
        raise NotImplementedError

    def deliver(self, message: bytes) -> Eventual[str | None]:
        """
        Optional: deliver a message to the mailbox of L{makeMailbox}, as its last message.  If the
        mailbox provides C{INewMailNotifier}, it has to notice the message after some calls of
        L{goOn}.  Some tests call this method twice.  Each call has to deliver a new message.

        @return: the unique-id of the message, or L{None} if only the next listing shows the
            unique-id.
        """
        raise NotImplementedError

    def remove(self, uniqueID: str) -> Eventual[None]:
        """
        Optional: remove a message from the mailbox of L{makeMailbox} as another program
        would, whether or not a session has locked the mailbox.
        """
        raise NotImplementedError

    def failDeletion(self) -> Eventual[None]:
        """
        Optional: make all further deletions in the mailbox of L{makeMailbox} fail before they are
        complete.  Examples of causes are a full disk, a lost database, and a message that cannot be
        removed.
        """
        raise NotImplementedError

    def goOn(self) -> object:
        """
        Optional: make available the results for which the mailbox waits.  For example, advance a
        clock, run queued work, or fire a Deferred.  Tests call this method repeatedly.
        """

    @property
    def _loop(self) -> Loop:
        """
        The loop that runs the coroutines of the hooks and of the mailbox.
        """
        if self._loopOrNone is None:
            self._loopOrNone = Loop()
            self.addCleanup(self._loopOrNone.close)
        return self._loopOrNone

    def _advance(self) -> None:
        """
        Make available the results for which the mailbox waits.
        """
        self._loop.turn()
        answer = self.goOn()
        assert not inspect.isawaitable(answer), (
            f"goOn() returned {answer!r}, which nothing awaits; goOn() is a plain function"
        )

    def _info(self) -> ConnectionInfo:
        return ConnectionInfo(1, "127.0.0.1", True)

    def _now(self, call: Any, *arguments: Any) -> Any:
        got: list[Any] = []

        try:
            answer = call(*arguments)
            if inspect.iscoroutine(answer):
                answer = self._loop.begin(answer)
        except Exception:
            answer = fail()
        if isinstance(answer, Deferred):
            answer.addBoth(got.append)
        else:
            got.append(answer)
        for _ in range(MAX_TURNS):
            if got:
                break
            self._advance()
        assert got, "no result came; goOn() has to make results available"
        if hasattr(got[0], "raiseException"):
            got[0].raiseException()
        return got[0]

    def _made(self, messages: Any = MESSAGES) -> Any:
        mailbox = self._now(self.makeMailbox, list(messages))
        assert mailbox is not None, "makeMailbox() returned None; it returns a mailbox"
        return mailbox

    def _madeAgain(self) -> Any:
        mailbox = self._now(self.again)
        assert mailbox is not None, "again() returned None; it returns a mailbox"
        return mailbox

    def _opened(self, messages: Any = MESSAGES) -> tuple[Any, list[str]]:
        mailbox = self._made(messages)
        self._lock(mailbox)
        return mailbox, self._listed(mailbox)

    def _reopened(self) -> tuple[Any, list[str]]:
        mailbox = self._madeAgain()
        self._lock(mailbox)
        return mailbox, self._listed(mailbox)

    def _lock(self, mailbox: Any) -> None:
        if IExclusiveMailbox.providedBy(mailbox):
            self._now(mailbox.lock, self._info(), lambda: False)

    def _closed(self, mailbox: Any) -> None:
        if IExclusiveMailbox.providedBy(mailbox):
            self._now(mailbox.unlock, self._info())
        if IMailboxLogout.providedBy(mailbox):
            self._now(mailbox.logout)

    def _isFree(self) -> bool:
        """
        @return: whether another session can lock the mailbox.
        """
        mailbox = self._madeAgain()
        try:
            self._now(mailbox.lock, self._info(), lambda: False)
        except POP3ResponseError as error:
            self.assertEqual(error.code, "IN-USE")
            return False
        self._closed(mailbox)
        return True

    def _listed(self, mailbox: Any) -> list[str]:
        listed = self._now(mailbox.listMessageUniqueIDs, self._info())
        name = nameOf(mailbox, "listMessageUniqueIDs")
        assert isinstance(listed, Iterable) and not isinstance(listed, str), (
            f"{name} returned {listed!r}; it returns an iterable of str, an empty one if there "
            "are no messages"
        )
        listed = list(listed)
        for each in listed:
            assert isinstance(each, str), f"{name} lists {each!r}; unique-ids are str"
        return listed

    def _left(self) -> list[str]:
        """
        @return: the listing of a later session.
        """
        mailbox, listed = self._reopened()
        self._closed(mailbox)
        return listed

    def _content(self, mailbox: Any, uniqueID: str) -> bytes:
        content = self._now(mailbox.messageContent, self._info(), uniqueID)
        body = MessageBody(content, Clock(), 10)
        octets = b""
        try:
            while True:
                chunk = self._now(body.next)
                if chunk is None:
                    return octets
                octets += chunk
        finally:
            body.close()

    def _sentSize(self, mailbox: Any, uniqueID: str) -> int:
        """
        @return: the number of octets of a message as RETR sends it.
        """
        count = WireSizeCounter()
        count.feed(self._content(mailbox, uniqueID))
        return count.total()

    def _session(self, messages: Any = MESSAGES, **options: Any) -> ContractSession:
        """
        @return: a session whose mailbox holds these messages at first.
        """
        first = [self._made(messages)]
        return self._begun(lambda: first.pop() if first else self._madeAgain(), **options)

    def _furtherSession(self, **options: Any) -> ContractSession:
        return self._begun(self._madeAgain, **options)

    def _begun(self, mailboxes: Callable[[], Any], **options: Any) -> ContractSession:
        session = ContractSession(mailboxes, self._loop, self._advance, **options)
        self.addCleanup(session.forget)
        return session

    def _deliver(self) -> str | None:
        try:
            uniqueID: str | None = self._now(self.deliver, ARRIVED)
        except NotImplementedError:
            self.skipTest("deliver() is not implemented")
            raise
        assert uniqueID is None or uniqueID not in self._delivered, (
            f"deliver() returned {uniqueID!r} twice; each delivered message needs a "
            "unique-id of its own"
        )
        self._delivered = [*self._delivered, uniqueID]
        return uniqueID

    def _deletable(self, mailbox: Any = None) -> None:
        if IReadOnlyMailbox.providedBy(self._madeAgain() if mailbox is None else mailbox):
            self.skipTest("it provides IReadOnlyMailbox")

    def _exclusive(self, mailbox: Any) -> None:
        if not IExclusiveMailbox.providedBy(mailbox):
            self.skipTest("it does not provide IExclusiveMailbox")
