"""
The messages that another server has recorded, and the unique-ids that can be kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pop3svc.listings import areUniqueIDs, isDerived, isUniqueID

__all__ = ["DamagedFile", "Kept", "OldMessage", "keep"]


class DamagedFile(ValueError):
    """
    The file of another server is damaged.  The text is a sentence for the operator.  The sentences
    of the parsers do not name the file: L{uniqueIDsOf<pop3svc.migration.uniqueids.uniqueIDsOf>}
    adds its name.
    """


class OldMessage(NamedTuple):
    """
    A message in the records of another server.

    @ivar base: the name of the message's file up to the first C{:}.
    @ivar uniqueID: the unique-id that the server sent to its clients.  This unique-id has not been
        checked yet.
    @ivar rank: a value whose order is the order in which the server numbered the messages.
    """

    base: str
    uniqueID: str
    rank: Any


@dataclass(frozen=True)
class Kept:
    """
    The unique-ids of another server, as far as messages keep them.

    @ivar uniqueIDs: the unique-ids by base name, in the order of message numbers.
    @ivar illegal: the number of messages whose unique-id cannot be kept.  Either RFC 1939 section 7
        does not allow the unique-id, or it has the form that this service derives from file names.
    @ivar repeated: the number of messages whose unique-id another message also has.
    """

    uniqueIDs: dict[str, str]
    illegal: int = 0
    repeated: int = 0


def keep(
    messages: Sequence[OldMessage], present: Container[str] | None = None, renames: bool = False
) -> Kept:
    """
    Choose the unique-ids that messages keep.  No unique-id is chosen twice.

    @param messages: the messages, in the order in which the server gave them unique-ids.
    @param present: the base names of the messages whose files exist; L{None} if all files exist.
        These messages are considered first, because clients do not see the other messages any more.
        Only these messages count in C{illegal} and C{repeated}.
    @param renames: whether the server appended C{-2} to the second of several equal unique-ids,
        C{-3} to the third, and so on (C{pop3_uidl_duplicates = rename} of Dovecot).
    """
    taken: set[str] = set()
    kept: list[OldMessage] = []
    illegal = repeated = 0
    occurrences: Counter[str] = Counter()
    # Check all unique-ids together first, because this is faster than to check each of them.
    areLegal = areUniqueIDs([each.uniqueID for each in messages])
    there = [each for each in messages if present is None or each.base in present]
    gone = [] if present is None else [each for each in messages if each.base not in present]
    for message in there:
        uniqueID = message.uniqueID
        if renames:
            occurrences[uniqueID] += 1
            if occurrences[uniqueID] > 1:
                uniqueID = f"{uniqueID}-{occurrences[uniqueID]}"
        if not (_isLegal(uniqueID) if renames or not areLegal else not isDerived(uniqueID)):
            illegal += 1
        elif uniqueID in taken:
            repeated += 1
        else:
            taken.add(uniqueID)
            kept.append(message._replace(uniqueID=uniqueID) if renames else message)
    for message in gone:
        if _isLegal(message.uniqueID) and message.uniqueID not in taken:
            taken.add(message.uniqueID)
            kept.append(message)
    kept.sort(key=lambda each: each.rank)
    return Kept({each.base: each.uniqueID for each in kept}, illegal, repeated)


def _isLegal(uniqueID: str) -> bool:
    # Do not keep a unique-id of the form that this service derives from file names, because it
    # could be equal to the unique-id of another message.
    return isUniqueID(uniqueID) and not isDerived(uniqueID)
