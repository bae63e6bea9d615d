"""
Tests of the contract: late results, and the end of a session.
"""

from __future__ import annotations

from pop3svc.interfaces import IMailboxLogout
from pop3svc.testing.contract.case import ContractCase
from pop3svc.testing.contract.loop import MAX_TURNS
from pop3svc.testing.contract.session import StopScript
from pop3svc.testing.wrappers import Async, Delayed

__all__ = ["ResultContract"]

# A script of commands that read a mailbox, release it, and lock it again.
READING = (
    b"USER alice",
    b"PASS secret",
    b"STAT",
    b"LIST",
    b"UIDL",
    b"RETR 1",
    b"RETR 4",
    b"TOP 4 1",
    b"RETR UID:nothing",
    b"CORE",
    b"SLEE",
    b"WAKE",
    b"LIST 2",
    b"QAUT",
    b"USER alice",
    b"PASS secret",
    b"RETR 2",
    b"QUIT",
)


class ResultContract(ContractCase):
    """
    Results may come late, and every end of a session releases the mailbox.
    """

    def test_logout(self) -> None:
        """
        The service calls C{logout} of a mailbox with L{IMailboxLogout} exactly once: after QUIT,
        after QAUT, or after a lost connection.
        """
        session = self._session()
        session.logIn()
        session.ok(b"QAUT")
        session.logIn()
        session.quit()
        further = self._furtherSession()
        further.logIn()
        further.vanish()
        if not IMailboxLogout.providedBy(self._madeAgain()):
            self.skipTest("it does not provide IMailboxLogout")
        self.assertEqual(session.calls.count("logout"), 2)
        self.assertEqual((further.calls.count("logout"), further.calls[-1]), (1, "logout"))

    def test_lateAnswers(self) -> None:
        """
        The replies are the same whether the mailbox returns its results at once, returns
        coroutines, or returns Deferreds that fire later.
        """
        session = self._session()
        said = [session.say(line) for line in READING]
        session.over()
        for kind in (Async, Delayed):
            further = self._furtherSession(kind=kind)
            self.assertEqual([further.say(line) for line in READING], said)
            further.over()

    def test_vanishingClient(self) -> None:
        """
        If a client disconnects while the session waits for a result, the mailbox is unlocked and
        unchanged afterwards.
        """
        mailbox, listed = self._opened()
        self._closed(mailbox)
        for steps in range(MAX_TURNS):
            session = self._furtherSession(kind=Delayed, steps=steps)
            try:
                for line in READING:
                    session.say(line)
            except StopScript:
                session.vanish()
            else:
                session.over()
                break
            self.assertEqual(self._left(), listed)
        self.assertTrue(steps > len(READING) // 2)
