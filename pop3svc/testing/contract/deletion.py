"""
Tests of the contract: deletion.
"""

from __future__ import annotations

from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import IReadOnlyMailbox
from pop3svc.testing.contract.case import MESSAGES, ContractCase
from pop3svc.testing.contract.session import bodyOf, normalised
from pop3svc.testing.wrappers import Delayed

__all__ = ["DeletionContract"]


class DeletionContract(ContractCase):
    """
    A deletion deletes all marked messages or none, and happens at the right time.
    """

    def test_delete(self) -> None:
        """
        Deleted messages no longer exist in this session and in the next.  The other messages stay.
        """
        mailbox, listed = self._opened()
        self._deletable(mailbox)
        self._now(mailbox.messageDelete, self._info(), [listed[0], listed[2]])
        with self.assertRaises(POP3ResponseError):
            self._content(mailbox, listed[0])
        self.assertFalse(self._now(mailbox.messageExists, self._info(), listed[0]))
        self.assertEqual(self._listed(mailbox), [listed[1], listed[3]])
        self._closed(mailbox)
        self.assertEqual(self._left(), [listed[1], listed[3]])

    def test_deleteTwice(self) -> None:
        """
        The deletion of a message that no longer exists succeeds.
        """
        mailbox, listed = self._opened()
        self._deletable(mailbox)
        self._now(mailbox.messageDelete, self._info(), [listed[0]])
        self._now(mailbox.messageDelete, self._info(), [listed[0], listed[1]])
        self._now(mailbox.messageDelete, self._info(), [listed[1]])
        self.assertEqual(self._listed(mailbox), listed[2:])
        self._closed(mailbox)
        self.assertEqual(self._left(), listed[2:])

    def test_deleteAllOrNone(self) -> None:
        """
        A deletion that fails deletes nothing.  After a failed QUIT the messages stay and the
        mailbox is unlocked.
        """
        mailbox, listed = self._opened()
        self._deletable(mailbox)
        contents = [self._content(mailbox, each) for each in listed]
        try:
            self._now(self.failDeletion)
        except NotImplementedError:
            self._closed(mailbox)
            self.skipTest("failDeletion() is not implemented")
        with self.assertRaises(POP3ResponseError):
            self._now(mailbox.messageDelete, self._info(), listed)
        self.assertEqual(self._listed(mailbox), listed)
        self._closed(mailbox)
        session = self._furtherSession()
        session.logIn()
        for number in range(1, 5):
            session.ok(b"DELE %d" % number)
        self.assertTrue(session.say(b"QUIT").startswith(b"-ERR"))
        session.over()
        mailbox, left = self._reopened()
        self.assertEqual(left, listed)
        self.assertEqual([self._content(mailbox, each) for each in listed], contents)
        self._closed(mailbox)

    def test_deleteAtQUIT(self) -> None:
        """
        Marked messages are deleted at QUIT and not before.  They are not deleted after RSET or a
        lost connection.
        """
        session = self._session()
        self._deletable()
        session.logIn()
        session.ok(b"DELE 1")
        session.ok(b"RSET")
        session.quit()
        listed = self._left()
        self.assertEqual(len(listed), 4)
        session = self._furtherSession()
        session.logIn()
        session.ok(b"DELE 1")
        session.ok(b"DELE 4")
        session.vanish()
        self.assertEqual(self._left(), listed)
        session = self._furtherSession()
        session.logIn()
        session.ok(b"DELE 1")
        session.ok(b"DELE 3")
        session.quit()
        self.assertEqual(self._left(), [listed[1], listed[3]])

    def test_deleteAtOnce(self) -> None:
        """
        DELI and CORE delete at once, and the session goes on.
        """
        session = self._session()
        self._deletable()
        session.logIn()
        session.ok(b"DELI 1")
        self.assertEqual(session.say(b"RETR 1")[:4], b"-ERR")
        session.ok(b"DELE 2")
        self.assertEqual(session.ok(b"CORE")[:20], b"+OK [ACTIVITY/NONE] ")
        self.assertTrue(session.ok(b"STAT").startswith(b"+OK 2 "))
        self.assertEqual(bodyOf(session.ok(b"RETR 2")), normalised(MESSAGES[3]))
        session.vanish()
        self.assertEqual(len(self._left()), 2)

    def test_deletionIsFinished(self) -> None:
        """
        If a client disconnects during a deletion, the deletion goes on, and the mailbox is unlocked
        after the deletion.
        """
        session = self._session(kind=Delayed)
        self._deletable()
        session.logIn()
        session.ok(b"DELE 1")
        session.ok(b"DELE 3")
        session.send(b"QUIT")
        self.assertEqual(session.waitsFor, "messageDelete")
        session.vanish()
        if "unlock" in session.calls:
            order = [each for each in session.calls if each in ("messageDelete", "unlock")]
            self.assertEqual(order, ["messageDelete", "unlock"])
        mailbox, listed = self._reopened()
        self.assertEqual(len(listed), 2)
        self.assertEqual(self._content(mailbox, listed[0])[:12], MESSAGES[1][:12])
        self._closed(mailbox)

    def test_readOnly(self) -> None:
        """
        A read-only mailbox refuses deletion and deletes nothing.
        """
        session = self._session()
        if not IReadOnlyMailbox.providedBy(self._madeAgain()):
            self.skipTest("it does not provide IReadOnlyMailbox")
        listed = self._left()
        session.logIn()
        for line in (b"DELE 1", b"DELI 1"):
            self.assertTrue(session.say(line).startswith(b"-ERR [READ-ONLY] "))
        session.quit()
        self.assertFalse("messageDelete" in session.calls)
        self.assertEqual(self._left(), listed)
