"""
The message numbers, the unique-ids, the deletion marks and the known sizes of one session.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from pop3svc.errors import POP3ResponseError
from pop3svc.listings import UniqueIDList

__all__ = ["Maildrop", "MessageRef"]


class MessageRef(NamedTuple):
    """
    A message as commands of this session refer to it.

    @ivar number: the message number; 0 if the message arrived after the listing.
    """

    number: int
    uniqueID: str


class Maildrop:
    """
    The messages of one session in one listing.  The session makes a new object for each listing: at
    the login, at CORE and at WAKE.  The numbers of one object never change.

    @ivar listed: all unique-ids, in order.
    """

    __slots__ = ("_gone", "_laterSizes", "_marked", "_octets", "_sizes", "listed")

    def __init__(self, listed: UniqueIDList) -> None:
        self.listed = listed
        self._marked: dict[str, None] = {}
        # The values of this dictionary are not used.  An empty set would take three times the
        # memory of an empty dictionary.
        self._gone: dict[str, None] = {}
        # The known sizes.  The list has the sizes of listed messages, by the message number minus
        # 1.  The dictionary has the sizes of other messages, by unique-id.
        self._sizes: list[int | None] | None = None
        self._laterSizes: dict[str, int] = {}
        self._octets: int | None = None

    def byNumber(self, number: int) -> MessageRef:
        """
        Find a message by its number.

        @raise POP3ResponseError: the message does not exist, or is deleted.
        """
        uniqueIDs = self.listed.uniqueIDs
        if not 1 <= number <= len(uniqueIDs):
            raise POP3ResponseError("No such message.")
        uniqueID = uniqueIDs[number - 1]
        if not self.isWhole:
            self.refuseDeleted(uniqueID)
        return MessageRef(number, uniqueID)

    def byUniqueID(self, uniqueID: str) -> MessageRef | None:
        """
        @return: the message; L{None} if it was not listed.
        @raise POP3ResponseError: the message is deleted.
        """
        self.refuseDeleted(uniqueID)
        number = self.listed.number(uniqueID)
        return None if number is None else MessageRef(number, uniqueID)

    def refuseDeleted(self, uniqueID: str) -> None:
        """
        Check that a message is not deleted.

        @raise POP3ResponseError: the message is marked for deletion or deleted.
        """
        if uniqueID in self._marked or uniqueID in self._gone:
            raise POP3ResponseError("Message is deleted.")

    @property
    def isWhole(self) -> bool:
        """
        Whether no message is deleted or marked for deletion.
        """
        return not self._marked and not self._gone

    def present(self) -> Iterator[MessageRef]:
        """
        Yield the messages that are not deleted, in the order of their numbers.
        """
        marked, gone = self._marked, self._gone
        for number, uniqueID in enumerate(self.listed, 1):
            if uniqueID not in marked and uniqueID not in gone:
                yield MessageRef(number, uniqueID)

    def mark(self, found: MessageRef) -> None:
        """
        Mark a message for deletion.
        """
        self._marked[found.uniqueID] = None
        self._leave(found.uniqueID)

    def unmark(self) -> None:
        """
        Remove all deletion marks (RSET).
        """
        self._marked.clear()
        self._octets = None

    @property
    def hasMarks(self) -> bool:
        """
        Whether at least one message is marked for deletion.
        """
        return bool(self._marked)

    def marked(self) -> list[str]:
        """
        @return: the unique-ids of the marked messages, in the order in which they were marked.
        """
        return list(self._marked)

    def setGone(self, uniqueIDs: Iterable[str]) -> None:
        """
        Record that messages have been deleted.
        """
        for uniqueID in uniqueIDs:
            if uniqueID in self._marked:
                del self._marked[uniqueID]
            else:
                self._leave(uniqueID)
            self._gone[uniqueID] = None

    def _leave(self, uniqueID: str) -> None:
        number = self.listed.number(uniqueID)
        if self._octets is not None and number is not None:
            self._octets -= self.size(MessageRef(number, uniqueID)) or 0

    def count(self) -> int:
        """
        @return: the number of messages that are not deleted.
        """
        if self.isWhole:
            return len(self.listed)
        number = self.listed.number
        away = sum(number(each) is not None for each in self._marked)
        return len(self.listed) - away - sum(number(each) is not None for each in self._gone)

    def octets(self) -> int | None:
        """
        @return: the total size in octets of the messages that are not deleted; L{None} if one of
            the sizes is not known.
        """
        if self._octets is None and self._sizes is not None:
            sizes = self._sizes
            if not self.isWhole:
                sizes = [sizes[each.number - 1] for each in self.present()]
            if None not in sizes:
                self._octets = sum(filter(None, sizes))
        return self._octets

    def size(self, found: MessageRef) -> int | None:
        """
        @return: the size of a message in octets; L{None} if it is not known.
        """
        if not found.number:
            return self._laterSizes.get(found.uniqueID)
        return None if self._sizes is None else self._sizes[found.number - 1]

    def sizes(self) -> Sequence[int | None]:
        """
        @return: the sizes of all listed messages in octets, in the order of their numbers.  A size
            that is not known is L{None}.  The list is empty until L{setSizes} has stored sizes.
        """
        return self._sizes or ()

    def setSizes(self, found: Sequence[MessageRef], sizes: list[int | None]) -> None:
        """
        Store sizes of messages whose sizes are not known yet.

        @param found: the messages; empty for all listed messages.
        @param sizes: the size of each message in octets; L{None} if it is not available.  The
            caller must not change this list afterwards.  The method does not copy it, because a
            copy for very many messages would take too long.
        """
        self._octets = None
        if not found:
            self._sizes = sizes
            return
        for each, octets in zip(found, sizes, strict=True):
            if each.number:
                if self._sizes is None:
                    self._sizes = [None] * len(self.listed)
                self._sizes[each.number - 1] = octets
            elif octets is not None:
                self._laterSizes[each.uniqueID] = octets
