"""
Tests of the contract: sizes, and messages that no longer exist.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import IBulkMessageSizes, IReadOnlyMailbox
from pop3svc.testing.contract.case import ContractCase, nameOf
from pop3svc.testing.contract.session import ContractSession, bodyOf

__all__ = ["SizeContract"]


class SizeContract(ContractCase):
    """
    A size is the number of octets that RETR sends, and a mailbox refuses a message that no longer
    exists.
    """

    def _size(self, mailbox: Any, uniqueID: str) -> int | None:
        """
        @return: the size that the mailbox returns; L{None} if the service has to count the octets.
        """
        try:
            size: int | None = self._now(mailbox.messageSize, self._info(), uniqueID)
        except NotImplementedError:
            return None
        return size

    def _sizes(self, mailbox: Any, asked: list[str]) -> list[int | None]:
        """
        @return: the sizes that the mailbox gives for many messages at once.
        """
        sizes = self._now(mailbox.messageSizes, self._info(), list(asked))
        name = nameOf(mailbox, "messageSizes")
        assert isinstance(sizes, Iterable), f"{name} returned {sizes!r}; it returns one size each"
        sizes = list(sizes)
        assert len(sizes) == len(asked), (
            f"{name} returned {len(sizes)} sizes of {len(asked)} messages"
        )
        return sizes

    def _checkSize(self, name: str, uniqueID: str, size: Any, octets: int) -> None:
        assert size is None or (isinstance(size, int) and size == octets), (
            f"{name} returned {size!r} octets for {uniqueID!r}; the content of messageContent "
            f"has {octets} octets when it is sent"
        )

    def test_sizes(self) -> None:
        """
        The mailbox returns the number of octets that RETR sends, or the service has to count them.
        """
        mailbox, listed = self._opened()
        name = nameOf(mailbox, "messageSize")
        for uniqueID in listed:
            size = self._size(mailbox, uniqueID)
            self._checkSize(name, uniqueID, size, self._sentSize(mailbox, uniqueID))
        self._closed(mailbox)

    def test_bulkSizes(self) -> None:
        """
        Bulk sizes are correct and in the order of the arguments.  The size of a message that no
        longer exists is L{None}.
        """
        mailbox, listed = self._opened()
        if not IBulkMessageSizes.providedBy(mailbox):
            self._closed(mailbox)
            self.skipTest("it does not provide IBulkMessageSizes")
        name = nameOf(mailbox, "messageSizes")
        true = {each: self._sentSize(mailbox, each) for each in listed}
        for asked in (listed, listed[::-1], listed[1:3], listed[:1]):
            for uniqueID, size in zip(asked, self._sizes(mailbox, asked), strict=True):
                self._checkSize(name, uniqueID, size, true[uniqueID])
        before = self._sizes(mailbox, listed)
        self._remove(mailbox, listed[1])
        try:
            after = self._sizes(mailbox, listed)
        except POP3ResponseError as error:
            raise AssertionError(f"{name} fails after one message has gone: {error}")
        assert after[1] is None, (
            f"{name} returned {after[1]!r} for a message that has gone; it has to return None"
        )
        before[1] = None
        assert after == before, (
            f"{name} returned {after} after one message has gone, but {before} before"
        )
        self._closed(mailbox)

    def _remove(self, mailbox: Any, uniqueID: str) -> None:
        """
        Remove a listed message, by another program if possible.
        """
        try:
            self._now(self.remove, uniqueID)
        except NotImplementedError:
            if IReadOnlyMailbox.providedBy(mailbox):
                self._closed(mailbox)
                self.skipTest("remove() is not implemented, and the mailbox is read-only")
            self._now(mailbox.messageDelete, self._info(), [uniqueID])

    def test_gone(self) -> None:
        """
        The mailbox refuses a message that was removed after the listing.  It does not refuse the
        other messages.
        """
        mailbox, listed = self._opened()
        contents = [self._content(mailbox, each) for each in listed]
        sizes = [self._size(mailbox, each) for each in listed]
        self._remove(mailbox, listed[1])
        for method in ("messageSize", "messageContent"):
            name = nameOf(mailbox, method)
            try:
                answer = self._now(getattr(mailbox, method), self._info(), listed[1])
            except POP3ResponseError:
                continue
            except NotImplementedError:
                assert method == "messageSize", f"{name} is not implemented"
                continue
            except Exception as error:
                raise AssertionError(
                    f"{name} raised {error!r} for a message that has gone; it has to raise "
                    "POP3ResponseError"
                )
            assert answer is None and method == "messageSize", (
                f"{name} returned {answer!r} for a message that has gone; it has to raise "
                "POP3ResponseError"
            )
        for number, each in enumerate(listed):
            if number != 1:
                self.assertEqual(self._content(mailbox, each), contents[number])
                self.assertEqual(self._size(mailbox, each), sizes[number])
        self._closed(mailbox)

    def test_goneInASession(self) -> None:
        """
        RETR and TOP refuse a message that was removed during the session.  STAT and LIST still
        work, and so do LIST and RETR of the other messages.
        """
        session = self._session()
        session.logIn()
        sizes = [len(bodyOf(session.ok(b"RETR %d" % number))) for number in range(1, 5)]
        session.quit()
        session = self._furtherSession()
        session.logIn()
        try:
            self._now(self.remove, self._uniqueID(session, 2))
        except NotImplementedError:
            session.vanish()
            self.skipTest("remove() is not implemented")
        session.ok(b"STAT")
        listed = dict(line.split(b" ")[:2] for line in bodyOf(session.ok(b"LIST")).splitlines())
        for number, size in enumerate(sizes, 1):
            if number != 2:
                self.assertEqual(listed[b"%d" % number], b"%d" % size)
                self.assertEqual(session.ok(b"LIST %d" % number), b"+OK %d %d\r\n" % (number, size))
                self.assertEqual(len(bodyOf(session.ok(b"RETR %d" % number))), size)
        for line in (b"RETR 2", b"TOP 2 0"):
            self.assertEqual(session.say(line)[:4], b"-ERR")
        session.quit()

    def _uniqueID(self, session: ContractSession, number: int) -> str:
        return session.ok(b"UIDL %d" % number).split()[2].decode("ascii")

    def test_sizesInASession(self) -> None:
        """
        LIST and STAT give the exact number of octets that RETR sends.
        """
        session = self._session()
        session.logIn()
        sizes = [len(bodyOf(session.ok(b"RETR %d" % number))) for number in range(1, 5)]
        session.quit()
        for order in ((b"STAT", b"LIST"), (b"LIST", b"STAT")):
            session = self._furtherSession()
            session.logIn()
            said = {line: session.ok(line) for line in order}
            self.assertEqual(said[b"STAT"], b"+OK 4 %d\r\n" % sum(sizes))
            listed = b"".join(b"%d %d\r\n" % each for each in enumerate(sizes, 1))
            self.assertEqual(bodyOf(said[b"LIST"]), listed)
            for number, size in enumerate(sizes, 1):
                self.assertEqual(session.ok(b"LIST %d" % number), b"+OK %d %d\r\n" % (number, size))
            session.quit()
