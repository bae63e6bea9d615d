"""
Tests of the contract: sleeping sessions and new mail.
"""

from __future__ import annotations

from pop3svc.interfaces import INewMailNotifier, IReadOnlyMailbox
from pop3svc.testing.contract.case import ARRIVED, MESSAGES, ContractCase
from pop3svc.testing.contract.loop import MAX_TURNS
from pop3svc.testing.contract.session import bodyOf, normalised

__all__ = ["SleepContract"]


class SleepContract(ContractCase):
    """
    A sleeping session changes nothing in the mailbox.  The reply to WAKE announces new mail.
    """

    def test_sleep(self) -> None:
        """
        After SLEE and WAKE the deleted messages are gone, and the rest of the mailbox is unchanged.
        """
        session = self._session()
        isReadOnly = IReadOnlyMailbox.providedBy(self._madeAgain())
        session.logIn()
        before = session.ok(b"UIDL")
        session.ok(b"SLEE")
        self.assertEqual(session.ok(b"WAKE")[:20], b"+OK [ACTIVITY/NONE] ")
        self.assertEqual(session.ok(b"UIDL"), before)
        if not isReadOnly:
            session.ok(b"DELE 2")
            session.ok(b"SLEE")
            self.assertEqual(session.ok(b"WAKE")[:20], b"+OK [ACTIVITY/NONE] ")
            self.assertEqual(len(bodyOf(session.ok(b"UIDL")).splitlines()), 3)
            self.assertEqual(bodyOf(session.ok(b"RETR 1")), normalised(MESSAGES[0]))
        session.quit()

    def test_newMail(self) -> None:
        """
        WAKE and CORE announce new mail once, and make a listing that contains the new mail.  Before
        WAKE or CORE the session keeps its listing.
        """
        session = self._session()
        session.logIn()
        before = session.ok(b"UIDL")
        self._deliver()
        self.assertEqual(session.ok(b"UIDL"), before)
        self.assertTrue(session.ok(b"STAT").startswith(b"+OK 4 "))
        self.assertEqual(session.ok(b"CORE")[:19], b"+OK [ACTIVITY/NEW] ")
        self.assertEqual(bodyOf(session.ok(b"RETR 5")), ARRIVED)
        self.assertEqual(session.ok(b"CORE")[:20], b"+OK [ACTIVITY/NONE] ")
        self.assertTrue(session.ok(b"UIDL").startswith(before[:-3]))
        session.ok(b"SLEE")
        self._deliver()
        self.assertEqual(session.ok(b"WAKE")[:19], b"+OK [ACTIVITY/NEW] ")
        self.assertEqual(bodyOf(session.ok(b"RETR 6")), ARRIVED)
        session.ok(b"SLEE")
        self.assertEqual(session.ok(b"WAKE")[:20], b"+OK [ACTIVITY/NONE] ")
        session.quit()

    def test_arrivedMeanwhile(self) -> None:
        """
        If C{messageExists} returns true for a message that arrived after login, a client can read
        the message by its unique-id, and its number is 0.  Otherwise the service refuses the
        message.
        """
        session = self._session()
        isReadOnly = IReadOnlyMailbox.providedBy(self._madeAgain())
        session.logIn()
        before = session.ok(b"LIST")
        uniqueID = self._deliver()
        if uniqueID is None:
            session.vanish()
            self.skipTest("the unique-id is not known before the next listing")
        name = f"UID:{uniqueID}".encode("ascii")
        reply = session.say(b"RETR " + name)
        if reply.startswith(b"-ERR [UID/NOT-FOUND]"):
            # messageExists may always return false.  Every command then refuses the message.
            self.assertEqual(session.say(b"LIST " + name), reply)
        else:
            self.assertEqual(bodyOf(reply), ARRIVED)
            self.assertEqual(session.ok(b"LIST " + name), b"+OK 0 %d\r\n" % len(ARRIVED))
            self.assertEqual(bodyOf(session.ok(b"TOP " + name + b" 0"))[:14], ARRIVED[:14])
            self.assertEqual(session.ok(b"LIST"), before)
            if not isReadOnly:
                session.ok(b"DELE " + name)
        session.quit()
        left = self._left()
        self.assertEqual(len(left), 5 if isReadOnly or reply.startswith(b"-ERR") else 4)
        self.assertEqual(uniqueID in left, len(left) == 5)

    def test_watch(self) -> None:
        """
        A mailbox with L{INewMailNotifier} reports a new message before it lists the message.  After
        the end of the watch it reports nothing.
        """
        mailbox = self._made()
        if not INewMailNotifier.providedBy(mailbox):
            self.skipTest("it does not provide INewMailNotifier")
        reported: list[None] = []
        end = self._now(mailbox.watchMailbox, self._info(), lambda: reported.append(None))
        self.assertTrue(callable(end), "watchMailbox has to return a function that ends the watch")
        self._lock(mailbox)
        self._listed(mailbox)
        before = len(reported)
        self._deliver()
        for _ in range(MAX_TURNS):
            if len(reported) > before:
                break
            self._advance()
        self._listed(mailbox)
        self.assertTrue(len(reported) > before, "the mailbox did not report a message that arrived")
        self._now(end)
        before = len(reported)
        self._deliver()
        for _ in range(MAX_TURNS):
            self._advance()
        self.assertEqual(len(reported), before, "a change was reported after the watch ended")
        self._closed(mailbox)
