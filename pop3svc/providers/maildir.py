"""
Serve a Maildir for each user.
"""

from __future__ import annotations

import errno
import heapq
import os
import re
import sys
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from operator import itemgetter
from threading import Lock
from typing import Any

from twisted.logger import Logger
from zope.interface import alsoProvides, implementer

from pop3svc.awaiting import Executor, Progress, isCancelled
from pop3svc.errors import POP3ResponseError
from pop3svc.files import (
    FileBlocks,
    closeQuietly,
    disk,
    isStampTrustworthy,
    longWork,
    measure,
    openFile,
    peek,
)
from pop3svc.interfaces import (
    IMailboxStore,
    INewMailNotifier,
    IPOP3ConnectionInfo,
    IReadOnlyMailbox,
    ISleepingMailbox,
)
from pop3svc.listings import UniqueIDList, areUniqueIDs, countDistinct
from pop3svc.providers.filemailbox import (
    ExclusiveFileMailbox,
    FileMailbox,
    LockPolicy,
    LockRegistry,
    MailboxSnapshot,
    Presence,
    SizeCache,
    checksumOf,
    headIn,
    headOf,
    keyOf,
    listFolder,
)
from pop3svc.providers.paths import PathTemplate, openBelow, uniqueIDFor
from pop3svc.providers.quota import recordDeletion
from pop3svc.providers.removal import Place
from pop3svc.providers.sizes import GONE, Key, MaildirSizes, MessageInfo, SharedSizes
from pop3svc.providers.unpacking import CannotUnpack, PackedBlocks, countUnpacked, packedAs
from pop3svc.providers.watching import Inotify, MailboxWatch
from pop3svc.state import State

__all__ = ["MaildirMailbox", "MaildirStore"]

log = Logger(namespace="pop3svc")

# Separators before the flags of a file name: ":" by the Maildir specification, another one
# on file systems that do not allow ":".
SEPARATORS = ":;!-_+"
_FLAGS = re.compile(rf"([{re.escape(SEPARATORS)}])2,[A-Za-z]*")
# The size with CRLF, which Dovecot and maildrop write after the size on disk.
_SIZE = re.compile(r",S=[0-9]{1,12},W=([0-9]{1,12})(?![0-9])")
# How often a directory is read at most until it did not change meanwhile, and the pause
# (seconds) between two reads.
_SCANS, _PAUSE = 10, 0.02
# The most repetitions of a listing because a message was renamed before its stat().
_LOOKS = 10
# The most messages that are counted outside the threads for long work, and the number of
# counted messages after which the sizes are saved.
_FEW, _KEPT = 200, 5000
# The most files for which a listing calls stat() for each, because a new file may have the
# inode of the file that it replaced.  With more files, these calls would cost more than the
# rest of the listing.
_STATTED = 100
# Size of the directories, octets, from which a Maildir counts as large.
_LARGE = 1_000_000

# Seconds and microseconds of delivery, base name, unique-id and place of a message.
MessageRef = tuple[int, int, str, str, Place]


# Inode, time of modification and time of change of each directory.
Stamp = tuple[tuple[int, ...], ...]


def _stampOf(root: int) -> tuple[Stamp, bool]:
    """
    @return: the times of new and cur, and whether they are old enough to be trusted.
    """
    stamp: list[tuple[int, ...]] = []
    latest = 0
    for folder in ("new", "cur"):
        try:
            status = os.stat(folder, dir_fd=root, follow_symlinks=False)
        except FileNotFoundError:
            stamp.append((0,))
            continue
        # The time of change cannot be set back.
        stamp.append((status.st_ino, status.st_mtime_ns, status.st_ctime_ns))
        latest = max(latest, status.st_mtime_ns, status.st_ctime_ns)
    return tuple(stamp), isStampTrustworthy(latest)


def _isLarge(root: int) -> bool:
    """
    @return: whether a Maildir has so many messages that listing them takes long.
    """
    octets = 0
    for folder in ("new", "cur"):
        with suppress(OSError):
            octets += os.stat(folder, dir_fd=root, follow_symlinks=False).st_size
    # A directory has some 70 octets for each file, on most file systems.
    return octets > _LARGE


class ListingCache:
    """
    Cache of the latest listing of each mailbox, shared by its sessions, so that WAKE of an
    unchanged mailbox needs no scan.  Thread-safe.
    """

    # Messages in all; the latest mailbox is kept even if it has more.  Some 300 octets
    # each.  A mailbox counts as EACH further messages.
    BOUND, EACH = 300_000, 5

    def __init__(self) -> None:
        self._listings: OrderedDict[tuple[int, int], tuple[Stamp, MailboxSnapshot]] = OrderedDict()
        self._watched: dict[tuple[int, int], tuple[int, MailboxSnapshot]] = {}
        self._messages = 0
        self._lock = Lock()

    def get(self, key: tuple[int, int], stamp: Stamp) -> MailboxSnapshot | None:
        """
        @return: the listing, if it was made with the same times of the directories.
        """
        with self._lock:
            known = self._listings.get(key)
            if known is None or known[0] != stamp:
                return None
            self._listings.move_to_end(key)
            return known[1]

    def getWatched(self, key: tuple[int, int], changes: int | None) -> MailboxSnapshot | None:
        """
        @param changes: the present count of changes of the mailbox's watch.
        @return: the listing, if it was made with the same count.
        """
        with self._lock:
            known = self._watched.get(key)
            return known[1] if known is not None and known[0] == changes else None

    def setWatched(
        self, key: tuple[int, int], listing: MailboxSnapshot, changes: int | None
    ) -> None:
        """
        Record the watch's count of changes with a listing, if it is still the latest.
        """
        with self._lock:
            known = self._listings.get(key)
            if known is not None and known[1] is listing and changes is not None:
                self._watched[key] = changes, listing

    def put(self, key: tuple[int, int], stamp: Stamp, listing: MailboxSnapshot) -> None:
        """
        Store a listing that is sure.
        """
        with self._lock:
            self._drop(key)
            self._listings[key] = stamp, listing
            self._messages += len(listing) + self.EACH
            while self._messages > self.BOUND and len(self._listings) > 1:
                self._drop(next(iter(self._listings)))

    def drop(self, key: tuple[int, int]) -> None:
        """
        Discard the listing of a mailbox because it is out of date.
        """
        with self._lock:
            self._drop(key)

    def _drop(self, key: tuple[int, int]) -> None:
        known = self._listings.pop(key, None)
        self._watched.pop(key, None)
        if known is not None:
            self._messages -= len(known[1]) + self.EACH


@lru_cache(len(SEPARATORS))
def _nameWith(separator: str) -> re.Pattern[str]:
    """
    @return: a pattern for names such as "1600000000.M123456P789.host:2,S", joined by "/"
        because one call matches many.  Its groups: the part before the flags, and in it
        the seconds and microseconds, if present.
    """
    no = f"[^{re.escape(separator)}/]"
    seconds = rf"([0-9]{{1,20}})\.(?:[^.{re.escape(separator)}/]*?M([0-9]{{1,20}}))?"
    return re.compile(rf"((?:{seconds})?{no}*)[^/]*/")


# Names that one call parses, so that it holds the interpreter lock for some milliseconds
# only.
_SLICE = 10_000


def _named(places: Sequence[Place], separator: str) -> list[tuple[str, str, str]]:
    """
    @return: for each place the file's name without its flags, and the seconds and
        microseconds of delivery in that name; empty if it has none.
    """
    findAll = _nameWith(separator).findall
    found: list[tuple[str, str, str]] = []
    for first in range(0, len(places), _SLICE):
        names = [place[1] for place in places[first : first + _SLICE]]
        # No file name contains a slash.
        found += findAll("/".join([*names, ""]))
    return found


def separatorOf(places: Iterable[Place]) -> str:
    """
    @return: the separator before the flags: C{:}, unless all names in C{cur} have the
        same other separator.
    """
    found = ""
    for folder, name, _ in places:
        if folder != "cur":
            continue
        flags = _FLAGS.fullmatch(name, max(name.rfind("2,") - 1, 0))
        if flags is None or ":2," in name or flags[1] == ":" or found not in ("", flags[1]):
            return ":"
        found = flags[1]
    return found or ":"


def _sorted(found: list[Any]) -> list[Any]:
    """
    Sort like C{sorted}, without holding the interpreter lock for long.
    """
    if len(found) <= 2 * _SLICE:
        found.sort()
        return found
    slices = [sorted(found[first : first + _SLICE]) for first in range(0, len(found), _SLICE)]
    return list(heapq.merge(*slices))


def _scanPlaces(root: int) -> tuple[Sequence[Place], dict[Place, int], bool, Stamp]:
    """
    List the places of messages.  A message that is moved while a directory is read may be
    missed or seen twice, so read again until the directories do not change.

    @return: the places; for each place the number of the last read that saw it, empty if one
        read was enough; whether the last read is reliable; the times of the directories
        then, empty if it is not reliable.
    """
    seen: dict[Place, int] = {}
    for look in range(_SCANS):
        before, _ = _stampOf(root)
        # new before cur: a message that moves meanwhile is seen twice instead of missed.
        places = [*listFolder(root, "new"), *listFolder(root, "cur")]
        after, isOld = _stampOf(root)
        if before == after and isOld:
            # This read was complete.
            return places, {}, True, after
        seen.update(dict.fromkeys(places, look))
        if before == after:
            time.sleep(_PAUSE)
        if isCancelled():
            break
    return list(seen), seen, False, ()


@dataclass
class _Shared:
    """
    Caches and options that the mailboxes of one store share.

    @ivar believesNames: take C{,W=} in a file's name for its size.
    @ivar separator: the separator before the flags in file names; empty: found in the
        names.
    @ivar longWork: executor for calls that take long.
    """

    listings: ListingCache
    sizes: SharedSizes
    watches: Inotify
    believesNames: bool = False
    separator: str = ""
    longWork: Executor | None = None


@implementer(INewMailNotifier, ISleepingMailbox)
class _Maildir(FileMailbox):
    """
    A Maildir: the listing, and the sizes of its messages.
    """

    folders = ("new", "cur")
    shared: _Shared
    # The watch of the directories, while there is one.
    _watch: MailboxWatch | None = None
    _changed: Callable[[], object] | None = None
    _endWatch: Callable[[], None] | None = None
    _known: MaildirSizes | None = None
    # Device and inode of the directory that was listed.
    _key: Key | None = None
    _separator = ":"

    # --- the listing ----------------------------------------------------------

    def scan(self, root: int) -> MailboxSnapshot:
        """
        See L{FileMailbox.scan}.  The order is that of delivery, by the time in the name,
        or the file's time of modification if the name has none.
        """
        key = self._key = keyOf(root)
        self._known = self.shared.sizes.of(key)
        shared = self._sharedListing(root, key)
        if shared is not None:
            return shared
        listing, stamp = self._scan(root)
        if listing.isSure:
            self.shared.listings.put(key, stamp, listing)
        return listing

    def _sharedListing(self, root: int, key: Key) -> MailboxSnapshot | None:
        stamp, isOld = _stampOf(root)
        return self.shared.listings.get(key, stamp) if isOld else None

    def listMessageUniqueIDs(self, info: IPOP3ConnectionInfo) -> Any:
        """
        See L{IPOP3Mailbox.listMessageUniqueIDs}.
        """
        changes = None if self._watch is None else self._watch.look()
        if not self._isSlow:
            # No thread is needed if another session's listing is still valid.
            listing = self._listedBefore(changes)
            if self._changed is not None and not self._watchHolds():
                # Without a valid watch, changes may have gone unnoticed.
                self._changed()
            if listing is not None:
                return self._listed(listing)
        return self._run(self._scanned).addCallback(self._listedNow, changes)

    def _watchHolds(self) -> bool:
        watch = self._watch
        return watch is not None and not watch.isBroken and watch.key == self._key

    def _listedBefore(self, changes: int | None) -> MailboxSnapshot | None:
        self._key = None

        def look(root: int, key: Key) -> MailboxSnapshot | None:
            self._key = key
            self._known = self.shared.sizes.of(key)
            if self._watchHolds():
                listing = self.shared.listings.getWatched(key, changes)
                if listing is not None:
                    return listing
            return self._sharedListing(root, key)

        try:
            return self._inRoot(look)
        except OSError as error:
            raise self._fault("list", error)

    def _listedNow(self, listing: MailboxSnapshot, changes: int | None) -> UniqueIDList:
        watch = self._watch
        if watch is not None and listing.isSure and watch.look() == changes and self._watchHolds():
            self.shared.listings.setWatched(watch.key, listing, changes)
        return self._listed(listing)

    def watchMailbox(
        self, info: IPOP3ConnectionInfo, changed: Callable[[], object]
    ) -> Callable[[], None] | None:
        """
        See L{INewMailNotifier.watchMailbox}.  The inotify watch begins at the first SLEE,
        so that a session that never sleeps does not pay for it.
        """
        if self._isSlow:
            return None
        self._changed = changed
        return self._endWatching

    def _endWatching(self) -> None:
        self._changed = None
        self._unwatch()

    def _unwatch(self) -> None:
        end, self._endWatch = self._endWatch, None
        self._watch = None
        if end is not None:
            end()

    def onSleep(self, info: IPOP3ConnectionInfo) -> None:
        """
        See L{ISleepingMailbox.onSleep}.
        """
        if self._changed is not None and not self._watchHolds():
            self._unwatch()
            self._beginWatch(self._changed)
        self._setListing(MailboxSnapshot())
        self._known = None

    def _beginWatch(self, changed: Callable[[], object]) -> None:
        # Changes before the beginning of the watch have gone unnoticed.
        changed()

        def begin(root: int, key: Key) -> None:
            watching = self.shared.watches.watch(root, self.folders, changed)
            if watching is None:
                return
            self._watch, self._endWatch = watching
            changes = self._watch.look()
            listing = self._sharedListing(root, key)
            if listing is not None:
                self.shared.listings.setWatched(self._watch.key, listing, changes)

        try:
            self._inRoot(begin)
        except OSError:
            # Without a watch, the times of the directories are compared.
            self._unwatch()

    # --- sizes ------------------------------------------------------------------

    def messageSize(self, info: IPOP3ConnectionInfo, uniqueID: str) -> Any:
        """
        See L{IPOP3Mailbox.messageSize}.
        """
        known = None if self._known is None else self._known.known.get(uniqueID)
        if known is not None:
            return known.octets
        return self._run(self._measured, [uniqueID]).addCallback(self._oneSize)

    def _oneSize(self, measured: tuple[Sequence[int | None], bool]) -> int:
        [octets], isSure = measured
        if octets is None:
            raise self._missing(isSure)
        if octets < 0:
            raise POP3ResponseError("Message cannot be read.", "SYS/PERM")
        return octets

    def messageSizes(self, info: IPOP3ConnectionInfo, uniqueIDs: list[str]) -> Any:
        """
        See L{IBulkMessageSizes.messageSizes}.
        """
        known = self._known
        if known is not None:
            octets = known.octetsOf(uniqueIDs)
            if octets is not None:
                return octets
            if known.isCounting:
                # Another session is counting these messages; wait for its result.
                waiter: Progress[None] = Progress(known.waiters.remove)
                known.waiters.append(waiter)

                def ask(_: None) -> Any:
                    sizes = self.messageSizes(info, uniqueIDs)
                    if isinstance(sizes, Progress):
                        sizes.listeners.append(waiter.progressed)
                    return sizes

                return waiter.addCallback(ask)
        return self._count(uniqueIDs).addCallback(self._allSizes)

    def _count(self, uniqueIDs: list[str]) -> Any:
        known = self._known
        unknown = len(uniqueIDs)
        if known is not None and known.isLoaded:
            unknown -= sum(map(known.known.__contains__, uniqueIDs))
        if known is None or unknown <= _FEW:
            return self._run(self._measured, uniqueIDs)
        known.isCounting = True

        def over(outcome: Any) -> Any:
            known.isCounting = False
            waiters, known.waiters = known.waiters, []
            for waiter in waiters:
                waiter.callback(None)
            return outcome

        try:
            work = self._run(self._measured, uniqueIDs, runner=self.shared.longWork)
        except POP3ResponseError:
            over(None)
            raise
        if isinstance(work, Progress):
            work.listeners.append(known.progressed)
        return work.addBoth(over)

    def _allSizes(self, measured: tuple[Sequence[int | None], bool]) -> Sequence[int | None]:
        sizes, isSure = measured
        if not isSure:
            raise self._missing(False)
        # One unreadable file must not hide the sizes of all others.
        return [None if each == -1 else each for each in sizes] if -1 in sizes else sizes

    def _measured(self, uniqueIDs: list[str]) -> tuple[Sequence[int | None], bool]:
        """
        Find the sizes of messages; read those whose size is not known.  Blocks.

        @return: octets, -1 for a message that cannot be read, L{None} for one that no
            longer exists; and whether those are certainly gone.
        """
        try:
            root = self._root()
            if root is None:
                return [None] * len(uniqueIDs), True
            try:
                return self._measuredIn(root, uniqueIDs)
            finally:
                closeQuietly(root)
        except OSError as error:
            raise self._fault("read a message of", error)

    def _measuredIn(self, root: int, uniqueIDs: list[str]) -> tuple[Sequence[int | None], bool]:
        # The session may drop its listing while this runs.
        listing = self._listing
        sizes = self.shared.sizes.of(keyOf(root))
        self._known = sizes
        sizes.load(root, len(listing))
        unknown = [each for each in uniqueIDs if each not in sizes.known]
        if self.shared.believesNames and unknown:
            sizes.learn(self._sizesInNames(unknown))
            unknown = [each for each in unknown if each not in sizes.known]
        unreadable: dict[str, MessageInfo] = {}
        allSure = True
        for first in range(0, len(unknown), _KEPT):
            # Save the sizes after each part, and also when this is cancelled, so that no
            # message is counted again.
            added: dict[str, MessageInfo] = {}
            try:
                isSure = self._read(root, unknown[first : first + _KEPT], added)
            finally:
                readable = {each: found for each, found in added.items() if found.octets >= 0}
                self._keep(root, sizes, readable, listing)
            allSure = allSure and isSure
            unreadable.update(added)
            if isCancelled():
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        self.shared.sizes.trim()
        try:
            return [sizes.known[each].octets for each in uniqueIDs], allSure
        except KeyError:
            found = (sizes.known.get(each) or unreadable.get(each) for each in uniqueIDs)
            return [None if each is None else each.octets for each in found], allSure

    def _keep(
        self,
        root: int,
        sizes: MaildirSizes,
        readable: dict[str, MessageInfo],
        listing: MailboxSnapshot,
    ) -> None:
        # Without the lock, do not write to the file of sizes.
        sizes.learn(readable)
        sizes.keepNothing()

    def _read(self, root: int, uniqueIDs: list[str], added: dict[str, MessageInfo]) -> bool:
        """
        Read messages.  Blocks.

        @param added: filled with the results, also if this is cancelled.
        @return: whether the messages that are missing are certainly gone.
        """
        directories: dict[str, int] = {}
        # A file that was not changed since the listing is the listed one.
        before = self._listing.time or sys.maxsize

        def measureAt(uniqueID: str, place: Place) -> MessageInfo | None:
            measured = self._measureAt(root, directories, uniqueID, place, before)
            if measured is not None:
                added[uniqueID] = measured
            return measured

        try:
            return self._seek(uniqueIDs, measureAt)[1]
        finally:
            for descriptor in directories.values():
                closeQuietly(descriptor)

    def _measureAt(
        self, root: int, directories: dict[str, int], uniqueID: str, place: Place, before: int
    ) -> MessageInfo | None:
        """
        Read a message.  Blocks.

        @param before: a file whose time of change (nanoseconds) is not after this is the
            listed one if it has the listed inode.
        @return: L{None} if it is not at that place; with a size of -1 octets if it cannot
            be read.
        """
        folder, name, _ = place
        try:
            if folder not in directories:
                directories[folder] = openBelow(folder, root)
            descriptor, status = openFile(name, directories[folder])
        except FileNotFoundError:
            return None
        except OSError as error:
            self._fault("read", error, name)
            return MessageInfo(-1, 0)
        try:
            # The usual case of a first login, where no unique-id has an owner, takes a third of
            # the steps of _isSame().
            known = self._known
            isUsual = (
                place[2] == status.st_ino
                and status.st_ctime_ns <= before
                and (known is None or not (known.claims or known.seen or uniqueID in known.known))
            )
            if not isUsual and not self._isSame(
                uniqueID, place, status, lambda: headOf(descriptor)
            ):
                return None
            octets, isWireReady, first = measure(descriptor, status.st_size)
            kind = "=" if isWireReady else "."
            packing = packedAs(first)
            if packing is not None:
                octets, kind = countUnpacked(descriptor, packing), "z"
        except CannotUnpack as error:
            self._cannotUnpack(name, error)
            return MessageInfo(-1, 0)
        except OSError as error:
            if error.errno == errno.ECANCELED:
                raise
            self._fault("read", error, name)
            return MessageInfo(-1, 0)
        finally:
            closeQuietly(descriptor)
        return MessageInfo(
            octets, status.st_ino, status.st_size, status.st_mtime_ns, kind, checksumOf(first)
        )

    def _cannotUnpack(self, name: str, error: CannotUnpack) -> None:
        self._fault("unpack", OSError(errno.EIO, str(error)), name)

    def _sizesInNames(self, uniqueIDs: Sequence[str]) -> dict[str, MessageInfo]:
        """
        @return: the sizes given by the names of files.
        """
        places = map(self._placeOf if self._moved else self._listing.get, uniqueIDs)
        return {
            uniqueID: MessageInfo(int(size[1]), place[2])
            for uniqueID, place in zip(uniqueIDs, places, strict=True)
            if place is not None and (size := _SIZE.search(place[1])) is not None
        }

    def _afterRemoval(
        self, root: int, uniqueIDs: list[str], files: list[tuple[Place, os.stat_result]]
    ) -> None:
        recordDeletion(root, files)
        sizes = self._known
        if sizes is None:
            sizes = self._known = self.shared.sizes.of(keyOf(root))
            sizes.load(root, len(self._listing))
        places = {each: self._placeOf(each) for each in uniqueIDs}
        sizes.markGone(uniqueIDs, {each: place[2] for each, place in places.items() if place})
        sizes.write(root)

    def _isUntouched(self, uniqueID: str, place: Place, status: os.stat_result) -> bool:
        known = None if self._known is None else self._known.known.get(uniqueID)
        return (
            known is not None and known.modified == status.st_mtime_ns and place[2] == status.st_ino
        )

    def _isSame(
        self, uniqueID: str, place: Place, status: os.stat_result, head: Callable[[], int]
    ) -> bool:
        known = None if self._known is None else self._known.ownerOf(uniqueID)
        if known is None:
            if place[2] not in (0, status.st_ino):
                return False
            if not self._isLater(uniqueID, status):
                return True
            if self._known is not None:
                # The unique-id belongs to the file that is gone.
                self._known.claim(uniqueID, MessageInfo(-1, status.st_ino, kind=GONE))
                self._dropListing()
            return False
        if place[2] not in (0, status.st_ino):
            # Another file has the name.  A copy with the same time is the same message.
            return known.modified == status.st_mtime_ns
        if known.isFile(status, head):
            return True
        # A program has changed the file in place, which Maildir forbids; it is another
        # message now.
        assert self._known is not None
        self._known.forget(uniqueID)
        self._dropListing()
        return False

    def _dropListing(self) -> None:
        if self._key is not None:
            self.shared.listings.drop(self._key)

    def _isLater(self, uniqueID: str, status: os.stat_result) -> bool:
        """
        @return: whether a file was delivered after the listing, and has the inode of the
            listed file.  A rename changes only the time of change.  A write also changes the
            time of modification.
        """
        listing = self._listing
        if not listing.time or uniqueID not in listing:
            return False
        return min(status.st_ctime_ns, status.st_mtime_ns) > listing.time

    def _content(self, uniqueID: str, descriptor: int, status: os.stat_result) -> Any:
        known = None if self._known is None else self._known.known.get(uniqueID)
        if known is not None and not known.isUnchanged(status):
            # The file was touched or copied, so its line ends are not known any more.
            known = None
        if known is None or known.kind == "z":
            first = peek(descriptor, 16)
            if first is None or packedAs(first) is not None:
                return self._contentInAThread(descriptor, status, known)
        return self._blocks(descriptor, status, known)

    def _blocks(
        self, descriptor: int, status: os.stat_result, known: MessageInfo | None
    ) -> FileBlocks:
        return FileBlocks(
            descriptor,
            partial(closeQuietly, descriptor),
            self._runner,
            length=status.st_size,
            # Each bare line end would make the message longer on the wire.
            hasLineEnds=known is not None and known.octets == status.st_size,
            isWireReady=known is not None and known.kind == "=",
            group=self._group,
        )

    async def _contentInAThread(
        self, descriptor: int, status: os.stat_result, known: MessageInfo | None
    ) -> Any:
        def packing() -> bytes | None:
            kind = packedAs(os.pread(descriptor, 16, 0))
            if kind is not None and known is None:
                # Refuse a damaged file before a part of it is sent.
                countUnpacked(descriptor, kind)
            return kind

        closing = partial(closeQuietly, descriptor)
        isReading, isAbandoned = True, False

        def ended() -> None:
            nonlocal isReading
            isReading = False
            if isAbandoned:
                closing()

        try:
            kind = await self._run(packing, ended=ended)
        except CannotUnpack as error:
            closing()
            self._cannotUnpack("", error)
            raise POP3ResponseError("Message cannot be read.", "SYS/PERM")
        except OSError as error:
            closing()
            raise self._fault("read a message of", error)
        except BaseException:
            # Do not close it while the thread reads, because another file could get the
            # same descriptor.
            isAbandoned = True
            if not isReading:
                closing()
            raise
        if kind is None:
            return self._blocks(descriptor, status, known)
        return PackedBlocks(descriptor, kind, closing, self._runner, self._group)

    # --- scanning ---------------------------------------------------------------

    def _scan(self, root: int) -> tuple[MailboxSnapshot, Stamp]:
        for _ in range(_LOOKS):
            listing, stamp, isDoubtful = self._scanOnce(root)
            if not isDoubtful or isCancelled():
                break
        return listing, stamp

    def _scanOnce(self, root: int) -> tuple[MailboxSnapshot, Stamp, bool]:
        """
        @return: the listing, the directories' times, and whether the listing is unsure
            only because a message was renamed before its stat().
        """
        now = time.time_ns()
        places, seen, isSure, stamp = _scanPlaces(root)
        separator = self._separator = self.shared.separator or separatorOf(places)
        listing = MailboxSnapshot()
        listing.isSure = isSure
        if isSure:
            listing.time = max(now, *(each for _, *times in stamp for each in times), 0)
        named = list(zip(_named(places, separator), places, strict=True))
        bases = [base for (base, _, _), _ in named]
        several: set[str] = set()
        if countDistinct(bases) != len(bases):
            several.update(base for base, times in Counter(bases).items() if times > 1)
        sizes = self.shared.sizes.of(keyOf(root))
        sizes.load(root, len(places))
        # Check all names at once, because a call for each of many messages costs too much.
        # None of these names looks like a derived unique-id.
        areLegal = areUniqueIDs(bases)
        found = [
            (
                *(int(seconds), int(microseconds or 0), base),
                *(base if areLegal else uniqueIDFor(base), place),
            )
            for (base, seconds, microseconds), place in named
            if seconds and base not in several
        ]
        # Messages that were renamed before their stat(); they make the listing unsure.
        doubts: list[Place] = []
        if len(found) < len(named):
            others: dict[str, list[Place]] = {}
            for (base, seconds, _), place in named:
                if not seconds or base in several:
                    others.setdefault(base, []).append(place)
            found += self._others(root, others, seen, listing.links, sizes, doubts)
        if sizes.known or sizes.claims or sizes.seen or len(found) <= _STATTED:
            found = self._withOwners(root, found, sizes, doubts)
        isDoubtful = isSure and bool(doubts)
        isSure = listing.isSure = isSure and not doubts
        found = _sorted(found)
        for first in range(0, len(found), _SLICE):
            listing.update(map(itemgetter(3, 4), found[first : first + _SLICE]))
        if isSure:
            sizes.markOthersGone(listing)
        self._keep(root, sizes, {}, listing)
        # Prepare the unique-ids here, because this runs in a thread.
        listing.listed().prepare()
        return listing, stamp, isDoubtful

    def _withOwners(
        self, root: int, found: list[MessageRef], sizes: MaildirSizes, doubts: list[Place]
    ) -> list[MessageRef]:
        """
        Give a file that has the name of an earlier file another unique-id.

        @param doubts: extended by the places of messages that could not be identified.
        """
        ownerOf = sizes.ownerOf
        areFew = len(found) <= _STATTED
        suspects = []
        for index, (_, _, _, uniqueID, place) in enumerate(found):
            owner = ownerOf(uniqueID)
            if areFew or (owner is not None and (owner.inode != place[2] or owner.kind == GONE)):
                suspects.append((index, owner))
        directories: dict[str, int] = {}

        def identify(index: int, owner: MessageInfo | None, place: Place) -> bool:
            seconds, microseconds, base, uniqueID, _ = found[index]
            status = self._status(root, directories, place)
            if status is None or place[2] not in (0, status.st_ino):
                return False
            head = partial(self._headAt, root, directories, place)
            if owner is not None and not owner.isFile(status, head):
                uniqueID = uniqueIDFor(base, _identity(status))
                owner = ownerOf(uniqueID)
            found[index] = seconds, microseconds, base, uniqueID, place
            if owner is None:
                sizes.see(uniqueID, status)
            elif owner.inode != status.st_ino or owner.kind == GONE:
                sizes.adopt(uniqueID, status.st_ino)
            return True

        try:
            renamed: dict[int, tuple[int, MessageInfo | None]] = {}
            for index, owner in suspects:
                place = found[index][4]
                if not identify(index, owner, place):
                    renamed[place[2] or -index - 1] = index, owner
            for _ in range(_LOOKS if renamed else 0):
                # Find the message by its inode, because its name has changed.
                for folder in self.folders:
                    for place in listFolder(root, folder):
                        at = renamed.get(place[2])
                        if at is not None and identify(*at, place):
                            del renamed[place[2]]
                if not renamed or isCancelled():
                    break
            # The next scan identifies the others.
            doubts += [found[index][4] for index, _ in renamed.values()]
        finally:
            for directory in directories.values():
                closeQuietly(directory)
        return found

    def uniqueIDOf(self, place: Place) -> str:
        """
        See L{FileMailbox.uniqueIDOf}.
        """
        return uniqueIDFor(place[1].partition(self._separator)[0])

    def _others(
        self,
        root: int,
        byBase: Mapping[str, list[Place]],
        seen: Mapping[Place, int],
        links: dict[str, list[Place]],
        sizes: MaildirSizes,
        doubts: list[Place],
    ) -> list[MessageRef]:
        """
        Handle messages whose name has no time of delivery, or whose base name occurs more
        than once.

        @param seen: see L{_scanPlaces}.
        @param links: filled with the other names of each message.
        """
        found: list[MessageRef] = []
        directories: dict[str, int] = {}
        try:
            for base, places in byBase.items():
                # The place that was seen last comes first.
                places.sort(key=lambda each: (-seen.get(each, 0), each))
                files = [(places, "")]
                if len(places) > 1 or not base:
                    files = self._distinct(root, directories, base, places, sizes, doubts)
                for names, more in files:
                    order = self._order(root, directories, names[0])
                    if order is None:
                        doubts.append(names[0])
                    else:
                        uniqueID = uniqueIDFor(base, more)
                        found.append((*order, uniqueID, names[0]))
                        if len(names) > 1:
                            links[uniqueID] = names[1:]
        finally:
            for directory in directories.values():
                closeQuietly(directory)
        return found

    @staticmethod
    def _headAt(root: int, directories: dict[str, int], place: Place) -> int:
        return headIn(directories[place[0]], place[1])

    @staticmethod
    def _status(root: int, directories: dict[str, int], place: Place) -> os.stat_result | None:
        folder, name, _ = place
        try:
            if folder not in directories:
                directories[folder] = openBelow(folder, root)
            return os.lstat(name, dir_fd=directories[folder])
        except FileNotFoundError:
            return None

    def _distinct(
        self,
        root: int,
        directories: dict[str, int],
        base: str,
        places: list[Place],
        sizes: MaildirSizes,
        doubts: list[Place],
    ) -> list[tuple[list[Place], str]]:
        """
        Group places with the same base name by message.

        @return: for each message its places, and a text that distinguishes it from the
            first message of that name; empty for the first one.
        """
        files: dict[tuple[int, int], list[Place]] = {}
        statuses: dict[tuple[int, int], os.stat_result] = {}
        for place in places:
            status = self._status(root, directories, place)
            if status is None:
                doubts.append(place)
            else:
                key = status.st_dev, status.st_ino
                files.setdefault(key, []).append(place)
                statuses[key] = status
        if not files:
            # It was renamed again; the search begins at the place where it was seen last.
            return [(places[:1], "")]
        first: tuple[int, int] | None = None
        if base:
            # The first message of that name keeps the unique-id.
            owner = sizes.ownerOf(uniqueIDFor(base))
            if owner is None:
                first = min(statuses, key=lambda key: (statuses[key].st_mtime_ns, key))
                oldest = statuses[first]
                if not doubts:
                    claimed = MessageInfo(-1, oldest.st_ino, oldest.st_size, oldest.st_mtime_ns)
                    sizes.claim(uniqueIDFor(base), claimed)
            else:
                first = next(
                    (
                        key
                        for key, status in statuses.items()
                        if owner.isFile(
                            status, partial(self._headAt, root, directories, files[key][0])
                        )
                    ),
                    None,
                )
        return [
            (names, "" if key == first else _identity(statuses[key]))
            for key, names in files.items()
        ]

    def _order(
        self, root: int, directories: dict[str, int], place: Place
    ) -> tuple[int, int, str] | None:
        [(name, seconds, microseconds)] = _named([place], self._separator)
        if seconds:
            return int(seconds), int(microseconds or 0), name
        status = self._status(root, directories, place)
        if status is None:
            return None
        nanoseconds = status.st_mtime_ns
        return nanoseconds // 1_000_000_000, nanoseconds // 1000 % 1_000_000, name


def _identity(status: os.stat_result) -> str:
    """
    @return: a text that distinguishes a file from all others, now and later.
    """
    return f"{status.st_dev}:{status.st_ino}:{status.st_mtime_ns}"


class MaildirMailbox(_Maildir, ExclusiveFileMailbox):
    """
    One user's Maildir, as one session sees it.
    """

    def _afterLock(self, root: int) -> None:
        # listMessageUniqueIDs then finds the listing without another call in a thread.  A
        # large one is left out, because the lock would wait for it.
        with suppress(OSError):
            if _stampOf(root)[1] and not _isLarge(root):
                self.scan(root)

    def _keep(
        self,
        root: int,
        sizes: MaildirSizes,
        readable: dict[str, MessageInfo],
        listing: MailboxSnapshot,
    ) -> None:
        sizes.keep(root, readable, listing)

    def _beforeRelease(self, held: Any, listing: MailboxSnapshot) -> None:
        sizes = self._known
        if sizes is None or not sizes.hasUnwritten:
            return

        def write() -> None:
            root = held.root()
            if root is None:
                return
            try:
                # Clients have seen the unique-ids of messages that were not counted; record
                # their files.
                sizes.claimSeen(partial(self._headListed, root, listing))
                sizes.write(root)
            finally:
                closeQuietly(root)

        with suppress(POP3ResponseError):
            self._run(write).addErrback(lambda _: None)

    @staticmethod
    def _headListed(root: int, listing: MailboxSnapshot, uniqueID: str) -> int:
        place = listing.get(uniqueID)
        try:
            directory = openBelow(place[0] if place else "", root)
        except OSError:
            return 0
        try:
            return headIn(directory, place[1]) if place else 0
        finally:
            closeQuietly(directory)

    def _isLost(self) -> bool:
        longWork = self.shared.longWork
        return super()._isLost() or (longWork is not None and longWork.isLost(self._group))


@implementer(IMailboxStore)
class MaildirStore:
    """
    A store that finds a Maildir by the user's name.
    """

    name = "pop3svc"

    def __init__(
        self,
        path: str,
        readOnly: bool = False,
        runner: Executor | None = None,
        manners: LockPolicy = LockPolicy(),  # noqa: B008 (it is frozen)
        clock: Any = None,
        isSlow: bool = False,
        believesNames: bool = False,
        separator: str = "",
    ) -> None:
        """
        @param path: the directory that holds a Maildir for each user, or a
            path with placeholders; see L{PathTemplate}.
        @param readOnly: delete, lock and write nothing.
        @param manners: how a session acts when a mailbox is locked.
        @param isSlow: whether opening a file may block for long, as on a network file
            system.  All work is then done in threads.
        @param believesNames: take C{,W=} in a file's name for its size, instead of
            counting once.
        @param separator: the separator before the flags in file names, one of
            L{SEPARATORS}; empty: found in the names.
        @raise ValueError: a sentence for the operator.
        """
        self._template = PathTemplate(path)
        self._readOnly = readOnly
        self._runner = runner
        self._policy = manners
        self._registry = LockRegistry(disk() if runner is None else runner, clock)
        self._isSlow = isSlow
        self._sizes = SizeCache()
        if separator and separator not in SEPARATORS:
            raise ValueError(f"separator must be one of {' '.join(SEPARATORS)}")
        self._presence = Presence(runner=runner)
        self._shared = _Shared(
            *(ListingCache(), SharedSizes(), Inotify(), believesNames, separator),
            longWork() if runner is None else runner,
        )

    def useState(self, state: State) -> None:
        """
        @param state: the database that survives a restart.
        """
        self._presence.useState(state)

    def looksUnmounted(self) -> str | None:
        """
        @return: a sentence for the operator if no mailbox exists; else L{None}.
        """
        if self._template.hasAny():
            return None
        return (
            f"there is no mailbox below {self._template.base}: is its file system mounted, and "
            "is the path right?"
        )

    def openMailbox(self, info: IPOP3ConnectionInfo, username: str) -> FileMailbox | None:
        """
        See L{IMailboxStore.openMailbox}.  A user without a Maildir has an empty maildrop.
        A name that is not safe in a path is refused.
        """
        place = self._template.placeFor(username)
        if place is None:
            return None
        mailbox: _Maildir
        if self._readOnly:
            mailbox = _Maildir(place, self._sizes, self._runner, self._isSlow, self._presence)
            alsoProvides(mailbox, IReadOnlyMailbox)
        else:
            mailbox = MaildirMailbox(
                *(place, self._sizes, self._runner, self._registry, self._policy),
                *(self._isSlow, self._presence),
            )
        mailbox.shared = self._shared
        return mailbox
