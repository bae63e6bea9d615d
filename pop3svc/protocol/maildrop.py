"""
Numbers and unique-ids, deletion marks and known sizes of one session.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from pop3svc.errors import POP3ResponseError

__all__ = ["BadListing", "Found", "Maildrop", "isUniqueID"]

# RFC 1939 section 7; a lone "_" would look like the mark of a multi-line reply.
_LONGEST = 70
_UNIQUE_ID = re.compile(r"(?!_\Z)[!-~]{1,70}")


class BadListing(Exception):
    """
    A provider's listing breaks the rules for unique-ids: a bug of its own.
    """


def isUniqueID(text: object) -> bool:
    """
    Is this a well-formed unique-id (RFC 1939 section 7)?
    """
    return isinstance(text, str) and _UNIQUE_ID.fullmatch(text) is not None


def _areUniqueIDs(texts: list[str]) -> bool:
    """
    Are they all well-formed?  As L{isUniqueID}, for many at once.
    """
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


class Found(NamedTuple):
    """
    A message of this session.

    @ivar number: its number, 0 if it arrived after the listing.
    """

    number: int
    uniqueID: str


class Maildrop:
    """
    The messages of one session as they were listed.  Numbers never shift.
    """

    def __init__(self, uniqueIDs: Iterable[str]) -> None:
        """
        @raise BadListing: a unique-id is malformed, or stands there twice.
        """
        self._uniqueIDs = list(uniqueIDs)
        if not _areUniqueIDs(self._uniqueIDs):
            for uniqueID in self._uniqueIDs:
                if not isUniqueID(uniqueID):
                    raise BadListing(f"not a well-formed unique-id: {uniqueID!r}")
        self._numbers = dict(zip(self._uniqueIDs, range(1, len(self._uniqueIDs) + 1), strict=True))
        if len(self._numbers) != len(self._uniqueIDs):
            seen: set[str] = set()
            for uniqueID in self._uniqueIDs:
                if uniqueID in seen:
                    raise BadListing(f"listed twice: {uniqueID!r}")
                seen.add(uniqueID)
        self._marked: dict[str, None] = {}
        self._gone: set[str] = set()
        self._sizes: dict[str, int] = {}
        self._octets: int | None = None

    def byNumber(self, number: int) -> Found:
        """
        @raise POP3ResponseError: there is no such message, or it is deleted.
        """
        if not 1 <= number <= len(self._uniqueIDs):
            raise POP3ResponseError("There is no such message.")
        uniqueID = self._uniqueIDs[number - 1]
        self.refuseDeleted(uniqueID)
        return Found(number, uniqueID)

    def byUniqueID(self, uniqueID: str) -> Found | None:
        """
        @return: the message, or L{None} if it was not listed.
        @raise POP3ResponseError: it is deleted.
        """
        self.refuseDeleted(uniqueID)
        number = self._numbers.get(uniqueID)
        return None if number is None else Found(number, uniqueID)

    def refuseDeleted(self, uniqueID: str) -> None:
        """
        @raise POP3ResponseError: the message is marked or gone.
        """
        if uniqueID in self._marked or uniqueID in self._gone:
            raise POP3ResponseError("That message is deleted.")

    def present(self) -> Iterator[Found]:
        """
        The messages that are not deleted, in order.
        """
        if not self._marked and not self._gone:
            numbers = range(1, len(self._uniqueIDs) + 1)
            yield from map(Found._make, zip(numbers, self._uniqueIDs, strict=True))
            return
        for number, uniqueID in enumerate(self._uniqueIDs, 1):
            if uniqueID not in self._marked and uniqueID not in self._gone:
                yield Found(number, uniqueID)

    def uniqueIDs(self) -> Iterable[str]:
        """
        @return: all that were listed.
        """
        return self._uniqueIDs

    def mark(self, found: Found) -> None:
        """
        Mark a message for deletion.
        """
        self._marked[found.uniqueID] = None
        self._leave(found.uniqueID)

    def unmark(self) -> None:
        """
        Take all marks back (RSET).
        """
        self._marked.clear()
        self._octets = None

    def marked(self) -> list[str]:
        """
        @return: the unique-ids marked for deletion, in the order of marking.
        """
        return list(self._marked)

    def setGone(self, uniqueIDs: Iterable[str]) -> None:
        """
        These have been deleted for good.
        """
        for uniqueID in uniqueIDs:
            if uniqueID in self._marked:
                del self._marked[uniqueID]
            else:
                self._leave(uniqueID)
            self._gone.add(uniqueID)

    def _leave(self, uniqueID: str) -> None:
        if self._octets is not None and uniqueID in self._numbers:
            self._octets -= self._sizes.get(uniqueID, 0)

    def count(self) -> int:
        """
        @return: how many messages are not deleted.
        """
        away = sum(each in self._numbers for each in self._marked)
        return len(self._uniqueIDs) - away - sum(each in self._numbers for each in self._gone)

    def octets(self) -> int | None:
        """
        @return: octets of all that are not deleted, L{None} if not known.
        """
        return self._octets

    def setOctets(self, octets: int) -> None:
        """
        Remember what all that are not deleted come to, so that STAT need not
        count again.
        """
        self._octets = octets

    def size(self, uniqueID: str) -> int | None:
        """
        @return: octets, or L{None} if not known yet.
        """
        return self._sizes.get(uniqueID)

    def sizes(self) -> Mapping[str, int]:
        """
        @return: octets by unique-id, of those that are known.
        """
        return self._sizes

    def setSizes(self, octets: Mapping[str, int]) -> None:
        """
        Remember sizes by unique-id, so that they stay the same for the
        session.
        """
        self._sizes.update(octets)
        self._octets = None
