"""
Read the directories of a mailbox, and find even messages that move during the reading.
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

# The most reads of the directories, and the seconds between two reads.  Fewer reads are enough if
# the directories do not change during a read.
_SCANS, _PAUSE = 10, 0.02
# The most messages that one call sorts, so that it holds the interpreter lock only for some
# milliseconds.
_SLICE = 10_000
# Of this number of values, one is in the sample of L{sortInSlices}.
_SAMPLED = 100

T = TypeVar("T")


@dataclass
class Scan:
    """
    The places of a mailbox's messages.

    @ivar folders: the files of each directory; empty if one read was not enough.
    @ivar seen: for each place the number of the last read that found a file there; empty if one
        read was enough.
    @ivar isSure: whether the last read was complete.
    @ivar stamp: the times of the directories at the last read; empty if that read was not complete.
    @ivar began: when the scan began, nanoseconds.
    """

    folders: Sequence[FolderNames]
    seen: Mapping[Place, int]
    isSure: bool
    stamp: Stamp
    began: int

    @cached_property
    def places(self) -> list[Place]:
        """
        The places.
        """
        return list(self.eachPlace())

    def eachPlace(self) -> Iterator[Place]:
        """
        @return: the places, made one by one.
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
    List the places of messages.  If a message moves while a directory is read, the reading may miss
    it or find it twice.  Therefore read again until the directories do not change.

    @param root: a descriptor of the mailbox.
    @param folders: the directories below it that hold messages.
    """
    began = time.time_ns()
    seen: dict[Place, int] = {}
    for look in range(_SCANS):
        before, _ = stampOf(root, folders)
        read = [readFolder(root, folder) for folder in folders]
        after, isOld = stampOf(root, folders)
        if before == after and isOld:
            # This read was complete.
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
    Sort references like L{sortInSlices}.
    """
    return sortInSlices(found)


def sortInSlices(values: list[T], key: Callable[[T], Any] = lambda value: value) -> list[T]:
    """
    Sort like C{sorted}, without holding the interpreter lock for long.

    @param values: different values; the order of this list may change.
    """
    if len(values) <= 2 * _SLICE:
        values.sort(key=key)
        return values
    runs = [
        sorted(values[first : first + _SLICE], key=key) for first in range(0, len(values), _SLICE)
    ]
    # Choose limits from a sample, so that some _SLICE values are between two of them.  The values
    # between two limits are sorted parts of the runs, which sort() merges.
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
