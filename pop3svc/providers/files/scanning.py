"""
Read the directories of a mailbox, and find even messages that move meanwhile.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

from pop3svc.providers.files.deletion import Place
from pop3svc.providers.files.folders import MessageRef
from pop3svc.providers.files.snapshot import MailboxSnapshot, Stamp, listFolder, stampOf
from pop3svc.threadpool import isCancelled

__all__ = ["Scan", "scanPlaces", "sortRefs"]

# The most reads of the directories; fewer are enough if the directories do not change during a
# read.  The seconds between two reads.
_SCANS, _PAUSE = 10, 0.02
# The most messages that one call sorts, so that it holds the interpreter lock for some
# milliseconds only.
_SLICE = 10_000


@dataclass
class Scan:
    """
    The places of a mailbox's messages.

    @ivar places: the places.
    @ivar seen: for each place the number of the last read that found it; empty if one read was
        enough.
    @ivar isSure: whether the last read was complete.
    @ivar stamp: the times of the directories at the last read; empty if that read was not complete.
    @ivar began: when the scan began, nanoseconds.
    """

    places: Sequence[Place]
    seen: Mapping[Place, int]
    isSure: bool
    stamp: Stamp
    began: int

    def snapshot(self, found: Sequence[MessageRef], isSure: bool) -> MailboxSnapshot:
        """
        @param found: the messages in the order of their numbers.
        @param isSure: whether all messages were identified.
        @return: the listing.
        """
        listing = MailboxSnapshot()
        listing.isSure = self.isSure and isSure
        if self.isSure:
            listing.time = max(self.began, *(max(each[2:]) for each in self.stamp))
        for first in range(0, len(found), _SLICE):
            listing.update(map(itemgetter(3, 4), found[first : first + _SLICE]))
        return listing


def scanPlaces(root: int, folders: Sequence[str]) -> Scan:
    """
    List the places of messages.  A message that is moved while a directory is read may be
    missed or seen twice, so read again until the directories do not change.

    @param root: a descriptor of the mailbox.
    @param folders: the directories below it that hold messages.
    """
    began = time.time_ns()
    seen: dict[Place, int] = {}
    for look in range(_SCANS):
        before, _ = stampOf(root, folders)
        places = [place for folder in folders for place in listFolder(root, folder)]
        after, isOld = stampOf(root, folders)
        if before == after and isOld:
            # This read was complete.
            return Scan(places, {}, True, after, began)
        seen.update(dict.fromkeys(places, look))
        if before == after:
            time.sleep(_PAUSE)
        if isCancelled():
            break
    return Scan(list(seen), seen, False, (), began)


def sortRefs(found: list[MessageRef]) -> list[MessageRef]:
    """
    Sort like C{sorted}, without holding the interpreter lock for long.
    """
    if len(found) <= 2 * _SLICE:
        found.sort()
        return found
    slices = [sorted(found[first : first + _SLICE]) for first in range(0, len(found), _SLICE)]
    return list(heapq.merge(*slices))
