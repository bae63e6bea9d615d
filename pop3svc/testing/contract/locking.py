"""
Tests of the contract: the lock.
"""

from __future__ import annotations

from pop3svc.errors import POP3ResponseError
from pop3svc.testing.contract.case import ContractCase

__all__ = ["LockContract"]


class LockContract(ContractCase):
    """
    One session at a time locks an exclusive mailbox.
    """

    def test_lock(self) -> None:
        """
        Only one session can lock an exclusive mailbox.  After this session has unlocked the
        mailbox, another session can lock it.
        """
        mailbox = self._made()
        self._exclusive(mailbox)
        other = self._madeAgain()
        self._now(mailbox.lock, self._info(), lambda: False)
        with self.assertRaises(POP3ResponseError) as caught:
            self._now(other.lock, self._info(), lambda: False)
        self.assertEqual(caught.exception.code, "IN-USE")
        self._now(mailbox.unlock, self._info())
        self._now(other.lock, self._info(), lambda: False)
        self._now(other.unlock, self._info())
        self._now(mailbox.lock, self._info(), lambda: False)
        self._closed(mailbox)

    def test_requestRelease(self) -> None:
        """
        If a session is asked to release the mailbox and agrees, another session can lock it.  If
        the session refuses, it keeps the mailbox.
        """
        mailbox = self._made()
        self._exclusive(mailbox)
        asked: list[bool] = []

        def requestRelease() -> bool:
            gives = bool(asked)
            asked.append(gives)
            if gives:
                self._now(mailbox.unlock, self._info())
            return gives

        self._now(mailbox.lock, self._info(), requestRelease)
        other = self._madeAgain()
        for gives in (False, True):
            before = len(asked)
            try:
                self._now(other.lock, self._info(), lambda: False)
                isHeld = True
            except POP3ResponseError as error:
                self.assertEqual(error.code, "IN-USE")
                isHeld = False
            if len(asked) == before:
                self._closed(mailbox)
                self.skipTest("it does not call requestRelease")
            self.assertEqual(asked[before:], [gives])
            self.assertEqual(isHeld, gives)
        self._closed(other)

    def test_lockInASession(self) -> None:
        """
        The mailbox is locked from login or WAKE to SLEE, QAUT, QUIT or the loss of the client.  At
        other times it is not locked.
        """
        session = self._session()
        self._exclusive(self._madeAgain())

        def held() -> list[str]:
            return [each for each in session.calls if each in ("lock", "unlock")]

        session.logIn()
        pairs = ["lock"]
        for line, isFree in (
            (b"CORE", False),
            (b"SLEE", True),
            (b"WAKE", False),
            (b"QAUT", True),
            (b"XLOG alice secret", False),
            (b"QUIT", True),
        ):
            session.ok(line)
            if isFree == (pairs[-1] == "lock"):
                pairs.append("unlock" if isFree else "lock")
            self.assertEqual(held(), pairs, line)
            self.assertEqual(self._isFree(), isFree, line)
        session.over()
        session = self._furtherSession()
        session.logIn()
        self.assertFalse(self._isFree())
        session.vanish()
        self.assertEqual(held(), ["lock", "unlock"])
        self.assertTrue(self._isFree())

    def test_refusedSession(self) -> None:
        """
        Login and WAKE are refused while another session has locked the mailbox, and do not
        affect that session.
        """
        session = self._session()
        self._exclusive(self._madeAgain())
        session.logIn()
        session.ok(b"SLEE")
        mailbox, listed = self._reopened()
        self.assertTrue(session.say(b"WAKE").startswith(b"-ERR [IN-USE] "))
        further = self._furtherSession()
        self.assertTrue(further.say(b"XLOG alice secret").startswith(b"-ERR [IN-USE] "))
        further.vanish()
        self.assertFalse(self._isFree())
        self.assertEqual(self._listed(mailbox), listed)
        self._closed(mailbox)
        session.ok(b"WAKE")
        session.quit()
        self.assertTrue(self._isFree())
