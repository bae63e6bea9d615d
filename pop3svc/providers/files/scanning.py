"""
Read the directories of a mailbox.  Messages are found even if they move while the directories are
read.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from operator import itemgetter
from typing import Any, TypeVar

from pop3svc.listings import UniqueIDList, slices
from pop3svc.providers.files.deletion import Place
from pop3svc.providers.files.folders import MessageRef
from pop3svc.providers.files.snapshot import (
    FolderNames,
    MailboxSnapshot,
    Stamp,
    readFolder,
    stampOf,
)
from pop3svc.threadpool import isCancelled

__all__ = ["Scan", "scanPlaces", "sortInSlices", "sortRefs"]

# The directories are read at most _SCANS times.  A read is the last one if the directories do not
# change during the read and their times are old enough to show this.  If the times are too new, the
# next read begins after _PAUSE seconds.
_SCANS, _PAUSE = 10, 0.02
# One call of sort() sorts about this number of messages, or up to twice as many.  The call holds
# the interpreter's lock, so it must end after some milliseconds.
_SLICE = 10_000
# The sample of L{sortInSlices} contains one of every _SAMPLED values.
_SAMPLED = 100

T = TypeVar("T")


@dataclass
class Scan:
    """
    The places of the messages of a mailbox.

    @ivar folders: the files of each directory, from the last read; empty if this read was not
        complete.
    @ivar seen: for each place, the number of the last read that has found a file there; empty if
        the last read was complete.
    @ivar isSure: whether the last read was complete.
    @ivar stamp: the times of the directories at the last read; empty if this read was not complete.
    @ivar began: the time at which the scan began, in nanoseconds.
    """

    folders: Sequence[FolderNames]
    seen: Mapping[Place, int]
    isSure: bool
    stamp: Stamp
    began: int

    @cached_property
    def places(self) -> list[Place]:
        """
        The places of all files that were found.
        """
        return list(self.eachPlace())

    def eachPlace(self) -> Iterator[Place]:
        """
        @return: an iterator that makes the places one by one.
        """
        if self.seen:
            return iter(self.seen)
        return chain.from_iterable(folder.places() for folder in self.folders)

    def snapshot(self, found: Sequence[MessageRef], isSure: bool) -> MailboxSnapshot:
        """
        @param found: the messages in the order of their numbers.
        @param isSure: whether all messages were identified.
        @return: the listing.
        """
        placeOf: dict[str, Place] = {}
        for some in slices(found):
            placeOf.update(map(itemgetter(3, 4), some))
        return self.snapshotOf(UniqueIDList(placeOf), list(placeOf.values()), isSure)

    def snapshotOf(
        self, listed: UniqueIDList, places: Sequence[Place], isSure: bool
    ) -> MailboxSnapshot:
        """
        @param listed: the unique-ids of the messages, in the order of their numbers.
        @param places: the place of each message.
        @param isSure: whether all messages were identified.
        @return: the listing.
        """
        listing = MailboxSnapshot(listed, places)
        listing.isSure = self.isSure and isSure
        if self.isSure:
            listing.time = max(self.began, *(max(each[2:]) for each in self.stamp))
        return listing


def scanPlaces(root: int, folders: Sequence[str]) -> Scan:
    """
    List the places of messages.  If a message moves while a directory is read, it may be missed or
    found twice.  The directories are therefore read again until they do not change during a read,
    but at most L{_SCANS} times.

    @param root: a descriptor of the mailbox.
    @param folders: the directories below the root that contain messages.
    """
    began = time.time_ns()
    seen: dict[Place, int] = {}
    for look in range(_SCANS):
        before, _ = stampOf(root, folders)
        read = [readFolder(root, folder) for folder in folders]
        after, isOld = stampOf(root, folders)
        if before == after and isOld:
            # The directories have not changed, so this read was complete.
            return Scan(read, {}, True, after, began)
        for names in read:
            seen.update(dict.fromkeys(names.places(), look))
        if before == after:
            time.sleep(_PAUSE)
        if isCancelled():
            break
    return Scan((), seen, False, (), began)


def sortRefs(found: list[MessageRef]) -> list[MessageRef]:
    """
    Sort references to messages; see L{sortInSlices}.
    """
    return sortInSlices(found)


def sortInSlices(values: list[T], key: Callable[[T], Any] = lambda value: value) -> list[T]:
    """
    Sort values as C{sorted} does, but do not hold the interpreter's lock for a long time.

    @param values: the values.  No two of them may be equal.  The order of this list may change.
    """
    if len(values) <= 2 * _SLICE:
        values.sort(key=key)
        return values
    runs = [
        sorted(values[first : first + _SLICE], key=key) for first in range(0, len(values), _SLICE)
    ]
    # Choose limits from a sample of the values, so that about _SLICE values lie between two
    # neighbouring limits.  Each run has a sorted part between two limits.  sort() merges these
    # parts.
    sample = sorted(chain.from_iterable(run[::_SAMPLED] for run in runs), key=key)
    step = _SLICE // _SAMPLED
    starts = [0] * len(runs)
    result: list[T] = []
    for limit in (*sample[step::step], None):
        between: list[T] = []
        for index, run in enumerate(runs):
            end = len(run)
            if limit is not None:
                end = bisect_left(run, key(limit), starts[index], key=key)
            between += run[starts[index] : end]
            starts[index] = end
        between.sort(key=key)
        result += between
    return result
