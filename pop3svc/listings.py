"""
Check the unique-ids of a mailbox once, and keep the data derived from them.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

__all__ = [
    "BadListing",
    "UniqueIDList",
    "areUniqueIDs",
    "countDistinct",
    "isDerived",
    "isUniqueID",
    "slices",
]

T = TypeVar("T")

# See RFC 1939 section 7.  The unique-id "_" is not allowed, because a client could take it for the
# mark of the extension MULTI-LINE-IND.
_LONGEST = 70
_UNIQUE_ID = re.compile(r"(?!_\Z)[!-~]{1,70}")
_DERIVED = re.compile(r"H-[0-9a-f]{64}")
# How many lines of a reply are formatted at a time.  This number of lines takes some tens of KiB.
_LINES = 1000


class BadListing(Exception):
    """
    A provider's listing breaks the rules for unique-ids.  The cause is a bug of the provider.
    """


def isUniqueID(text: object) -> bool:
    """
    @return: whether a value is a well-formed unique-id (RFC 1939 section 7).
    """
    return isinstance(text, str) and _UNIQUE_ID.fullmatch(text) is not None


def isDerived(uniqueID: str) -> bool:
    """
    @return: whether a unique-id has the form of a derived unique-id.  The service derives a
        unique-id from the name of a file if the name itself cannot be the unique-id.
    """
    return uniqueID.startswith("H-") and _DERIVED.fullmatch(uniqueID) is not None


# How many unique-ids one call processes.  The call holds the interpreter's lock, so it must end
# after some milliseconds.
_SLICE = 20_000


def slices(values: Sequence[T]) -> Iterator[Sequence[T]]:
    """
    @return: the values, in lists of bounded length.
    """
    if len(values) <= _SLICE:
        return iter([values])
    return (values[first : first + _SLICE] for first in range(0, len(values), _SLICE))


def areUniqueIDs(texts: Sequence[str]) -> bool:
    """
    @return: whether all texts are well-formed unique-ids.  This function is faster than a call of
        L{isUniqueID} for each text.
    """
    return all(map(_areUniqueIDs, slices(texts)))


def _areUniqueIDs(texts: Sequence[str]) -> bool:
    if not texts:
        return True
    try:
        joined = "".join(texts)
    except TypeError:
        return False
    return (
        joined.isascii()
        and joined.isprintable()
        and " " not in joined
        and max(map(len, texts)) <= _LONGEST
        and min(map(len, texts)) > 0
        and "_" not in texts
    )


def countDistinct(texts: Sequence[str]) -> int:
    """
    @return: the number of different texts.
    """
    distinct: set[str] = set()
    for some in slices(texts):
        distinct.update(some)
    return len(distinct)


class UniqueIDList:
    """
    Unique-ids in the order of message numbers.  A list never changes.  A mailbox may return the
    same list as long as nothing has changed.  The sessions of the mailbox then share the list, and
    the data that is derived from the list.

    @ivar uniqueIDs: the unique-ids.  Do not change this list.
    """

    __slots__ = ("_hashes", "_lines", "_numbers", "uniqueIDs")

    def __init__(self, uniqueIDs: Iterable[str]) -> None:
        """
        @raise BadListing: a unique-id is malformed, or occurs twice.
        """
        self.uniqueIDs = list(uniqueIDs)
        if not areUniqueIDs(self.uniqueIDs):
            for uniqueID in self.uniqueIDs:
                if not isUniqueID(uniqueID):
                    raise BadListing(f"not a well-formed unique-id: {uniqueID!r}")
        if countDistinct(self.uniqueIDs) != len(self.uniqueIDs):
            seen: set[str] = set()
            for uniqueID in self.uniqueIDs:
                if uniqueID in seen:
                    raise BadListing(f"listed twice: {uniqueID!r}")
                seen.add(uniqueID)
        self._numbers: dict[str, int] | None = None
        self._hashes: array[int] | None = None
        self._lines: list[bytes] = []

    @classmethod
    def ofChecked(cls, uniqueIDs: list[str]) -> UniqueIDList:
        """
        @param uniqueIDs: unique-ids that are well-formed and different.  The caller must not change
            this list afterwards.
        @return: a list of the unique-ids, which are not checked again.
        """
        made = cls(())
        made.uniqueIDs = uniqueIDs
        return made

    def __iter__(self) -> Iterator[str]:
        return iter(self.uniqueIDs)

    def __len__(self) -> int:
        return len(self.uniqueIDs)

    def number(self, uniqueID: str) -> int | None:
        """
        @return: the message number of a unique-id; L{None} if the list does not contain the
            unique-id.
        """
        return (self._numbers or self.numbers()).get(uniqueID)

    def numbers(self) -> Mapping[str, int]:
        """
        @return: the message number of each unique-id.
        """
        if self._numbers is None:
            self._numbers = dict(zip(self.uniqueIDs, range(1, len(self) + 1), strict=True))
        return self._numbers

    def hashes(self) -> array[int]:
        """
        @return: a 64-bit hash of each unique-id, to find new messages later.
        """
        if self._hashes is None:
            hashes = array("q")
            for some in slices(self.uniqueIDs):
                hashes.extend(map(hash, some))
            self._hashes = hashes
        return self._hashes

    def prepare(self) -> None:
        """
        If there are very many messages, compute the data that sessions need.  This takes long, so
        call this method in a thread.  The data of a short list is computed at its first use.
        """
        if len(self) > _SLICE:
            self.hashes()
            numbers: dict[str, int] = {}
            for index in range(0, len(self), _SLICE):
                some = self.uniqueIDs[index : index + _SLICE]
                numbers.update(zip(some, range(index + 1, index + 1 + len(some)), strict=True))
            self._numbers = numbers

    def hasOthersThan(self, hashes: array[int]) -> bool:
        """
        @param hashes: the value of L{hashes} of another list.
        @return: whether this list contains a unique-id that is not in the other list.
        """
        own = self.hashes()
        return own is not hashes and not set(own).issubset(hashes)

    def lines(self) -> Iterator[bytes]:
        """
        @return: the lines of a UIDL reply (RFC 1939 section 7), several in each piece.
        """
        for index in range(0, len(self), _LINES):
            piece = index // _LINES
            if piece == len(self._lines):
                some = self.uniqueIDs[index : index + _LINES]
                text = [f"{number} {each}\r\n" for number, each in enumerate(some, index + 1)]
                self._lines.append("".join(text).encode("ascii"))
            yield self._lines[piece]
