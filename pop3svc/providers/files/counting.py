"""
Find the sizes of messages.  If a size is not known, the message is read once to count its octets.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred

from pop3svc.downgrading.converter import surrogateSize
from pop3svc.errors import POP3ResponseError
from pop3svc.files import closeQuietly, measure, openFile
from pop3svc.interfaces import Eventual
from pop3svc.providers.files.deletion import Place
from pop3svc.providers.files.directory import Directory
from pop3svc.providers.files.finder import Finder
from pop3svc.providers.files.folders import OpenFolders
from pop3svc.providers.files.listing import Caches, Listing
from pop3svc.providers.files.lock import LockedDirectory
from pop3svc.providers.files.sizes import MailboxSizes, MessageInfo, checksumOf, headIn, headOf
from pop3svc.providers.files.snapshot import MailboxSnapshot
from pop3svc.providers.paths import openBelow
from pop3svc.providers.unpacking import CannotUnpack, countUnpacked, packedAs, unpacked
from pop3svc.threadpool import isCancelled, mustStop
from pop3svc.timing import Progress

__all__ = ["SizeCounter"]

# If more than _FEW messages have to be counted, this is done in the threads for long work.  The
# sizes are saved each time _KEPT messages were counted.
_FEW, _KEPT = 200, 5000
# The most messages whose sizes are looked up in the reactor's thread.  This number of look-ups
# takes a few milliseconds.
_AT_ONCE = 20_000
# The number of octets that are read at a time.
_BLOCK = 262_144
# The sizes of messages: -1 if a message cannot be read, None if a message was not found.  The
# second value says whether the messages that were not found certainly do not exist any more.
_Measured = tuple[Sequence[int | None], bool]


class SizeCounter:
    """
    Finds the sizes of the messages that a session has listed.
    """

    __slots__ = ("_caches", "_directory", "_finder", "_listing")

    def __init__(
        self, directory: Directory, listing: Listing, finder: Finder, caches: Caches
    ) -> None:
        self._directory = directory
        self._listing = listing
        self._finder = finder
        self._caches = caches

    # --- in the reactor's thread --------------------------------------------------

    def sizeOf(self, uniqueID: str) -> Eventual[int]:
        """
        See L{IPOP3Mailbox.messageSize}.
        """
        sizes = self._listing.sizes
        known = None if sizes is None else sizes.known.get(uniqueID)
        if known is not None:
            return known.octets
        return self._directory.run(self._measured, [uniqueID]).addCallback(self._one)

    def _one(self, measured: _Measured) -> int:
        [octets], isSure = measured
        if octets is None:
            raise self._finder.missing(isSure)
        if octets < 0:
            raise POP3ResponseError("Message cannot be read.", "SYS/PERM")
        return octets

    def needsUTF8(self, uniqueID: str) -> bool | None:
        """
        See L{ISurrogates.needsUTF8}.
        """
        sizes = self._listing.sizes
        known = None if sizes is None else sizes.known.get(uniqueID)
        return None if known is None else known.surrogate > 0

    def sizesOf(
        self, uniqueIDs: Sequence[str], ofSurrogates: bool = False
    ) -> Eventual[Sequence[int | None]]:
        """
        See L{IBulkMessageSizes.messageSizes} and L{ISurrogates.surrogateSizes}.
        """
        known = self._listing.sizes
        if known is None:
            measured = self._directory.run(self._measured, uniqueIDs, ofSurrogates)
            return measured.addCallback(self._all)
        octets = known.wholeOf(uniqueIDs, ofSurrogates)
        if octets is None and len(uniqueIDs) > _AT_ONCE:
            return self._lookUp(known, uniqueIDs, ofSurrogates)
        if octets is None:
            octets = known.octetsOf(uniqueIDs, ofSurrogates)
        if octets is not None:
            return octets
        return self._learn(known, uniqueIDs, ofSurrogates, known.countUnknown(uniqueIDs))

    def _lookUp(
        self, known: MailboxSizes, uniqueIDs: Sequence[str], ofSurrogates: bool
    ) -> Deferred[Any]:
        """
        Look up many sizes in a thread.
        """
        work = self._directory.run(known.lookUp, uniqueIDs, ofSurrogates)

        def lookedUp(found: tuple[list[int] | None, int]) -> Any:
            octets, unknown = found
            if octets is not None:
                return octets
            learning = self._learn(known, uniqueIDs, ofSurrogates, unknown)
            if isinstance(learning, Progress) and isinstance(work, Progress):
                learning.listeners.append(work.progressed)
            return learning

        return work.addCallback(lookedUp)

    def _learn(
        self, known: MailboxSizes, uniqueIDs: Sequence[str], ofSurrogates: bool, unknown: int
    ) -> Deferred[Any]:
        """
        @param unknown: the number of messages whose sizes are not known.
        """
        if known.isCounting:
            return self._afterOthers(known, uniqueIDs, ofSurrogates)
        return self._count(known, uniqueIDs, ofSurrogates, unknown).addCallback(self._all)

    def _afterOthers(
        self, known: MailboxSizes, uniqueIDs: Sequence[str], ofSurrogates: bool
    ) -> Deferred[Any]:
        """
        Wait until another session has ended its counting, and then find the sizes.
        """
        waiter: Progress[None] = Progress(known.waiters.remove)
        known.waiters.append(waiter)

        def ask(_: None) -> Any:
            sizes = self.sizesOf(uniqueIDs, ofSurrogates)
            if isinstance(sizes, Progress):
                sizes.listeners.append(waiter.progressed)
            return sizes

        return waiter.addCallback(ask)

    def _count(
        self, known: MailboxSizes, uniqueIDs: Sequence[str], ofSurrogates: bool, unknown: int
    ) -> Deferred[_Measured]:
        if unknown <= _FEW:
            return self._directory.run(self._measured, uniqueIDs, ofSurrogates)
        known.isCounting = True

        def over(outcome: Any) -> Any:
            known.isCounting = False
            waiters, known.waiters = known.waiters, []
            for waiter in waiters:
                waiter.callback(None)
            return outcome

        try:
            work = self._directory.runLong(self._measured, uniqueIDs, ofSurrogates)
        except POP3ResponseError:
            over(None)
            raise
        if isinstance(work, Progress):
            work.listeners.append(known.progressed)
        return work.addBoth(over)

    def _all(self, measured: _Measured) -> Sequence[int | None]:
        sizes, isSure = measured
        if not isSure:
            raise self._finder.missing(False)
        # Return None for a file that cannot be read, so that the other sizes are returned.
        return [None if each == -1 else each for each in sizes] if -1 in sizes else sizes

    # --- in a thread ----------------------------------------------------------------

    def _measured(self, uniqueIDs: Sequence[str], ofSurrogates: bool = False) -> _Measured:
        """
        Find the sizes of messages.  If a size is not known, read the message.  Blocks.
        """
        try:
            measured = self._directory.use(partial(self._measuredIn, uniqueIDs, ofSurrogates))
        except OSError as error:
            raise self._directory.fault("read a message of", error)
        return ([None] * len(uniqueIDs), True) if measured is None else measured

    def _measuredIn(self, uniqueIDs: Sequence[str], ofSurrogates: bool, root: int) -> _Measured:
        # Keep a reference to the listing, because the session may discard it while this method
        # runs.
        listing = self._listing.current
        sizes = self._listing.sizesIn(root)
        sizes.load(root, len(listing))
        unknown: Sequence[str] = [each for each in uniqueIDs if each not in sizes.known]
        if unknown:
            # Pass on the list object of the listing if possible, because sizesInNames() then finds
            # the names of the files in a column, which takes less time.
            asked = uniqueIDs if len(unknown) == len(uniqueIDs) else unknown
            sizes.learn(self._listing.sizesInNames(asked))
            unknown = [each for each in unknown if each not in sizes.known]
        unreadable: dict[str, MessageInfo] = {}
        allSure = True
        for first in range(0, len(unknown), _KEPT):
            # Save the sizes after each part, even after a cancellation, so that no message is
            # counted again.
            added: dict[str, MessageInfo] = {}
            try:
                isSure = self._read(root, unknown[first : first + _KEPT], added)
            finally:
                readable = {each: found for each, found in added.items() if found.octets >= 0}
                sizes.keep(root, readable, listing.listed.numbers())
            allSure = allSure and isSure
            unreadable.update(added)
            if isCancelled():
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        self._caches.sizes.trim()
        found = list(map(sizes.known.get, uniqueIDs))
        if unreadable:
            found = [sizes.known.get(each) or unreadable.get(each) for each in uniqueIDs]
        if ofSurrogates:
            return [each and (each.surrogate or each.octets) for each in found], allSure
        return [each and each.octets for each in found], allSure

    def _read(self, root: int, uniqueIDs: Sequence[str], added: dict[str, MessageInfo]) -> bool:
        """
        Read messages and count their octets.  Blocks.

        @param added: a dictionary to which the results are added, even if this call is cancelled.
        @return: whether the messages that were not found certainly do not exist any more.
        """
        # A file with the listed inode is the listed file if it was not changed after the listing.
        before = self._listing.current.time or sys.maxsize
        with OpenFolders(root) as folders:

            def measureAt(uniqueID: str, place: Place) -> MessageInfo | None:
                measured = self._measureAt(folders, uniqueID, place, before)
                if measured is not None:
                    added[uniqueID] = measured
                return measured

            return self._finder.seek(uniqueIDs, measureAt)[1]

    def _measureAt(
        self, folders: Mapping[str, int], uniqueID: str, place: Place, before: int
    ) -> MessageInfo | None:
        """
        Read a message.  Blocks.

        @param before: a time in nanoseconds.  A file with the listed inode is the listed file if it
            was not changed after this time.
        @return: the size and the identity of the message; L{None} if the message is not at this
            place.  If the message cannot be read, the size is -1.
        """
        folder, name, _ = place
        try:
            descriptor, status = openFile(name, folders[folder])
        except FileNotFoundError:
            return None
        except OSError as error:
            self._directory.fault("read", error, name)
            return MessageInfo(-1, 0)
        try:
            # At a first login, usually no unique-id is recorded yet.  Handle this case separately,
            # because it needs a third of the steps of isSame().
            known = self._listing.sizes
            isUsual = (
                place[2] == status.st_ino
                and status.st_ctime_ns <= before
                and (known is None or not (known.claims or known.seen or uniqueID in known.known))
            )
            if not isUsual and not self._listing.isSame(
                uniqueID, place, status, lambda: headOf(descriptor)
            ):
                return None
            octets, isWireReady, first, isASCII = measure(descriptor, status.st_size)
            kind = "=" if isWireReady else "."
            packing = packedAs(first)
            if packing is not None:
                octets, kind = countUnpacked(descriptor, packing), "z"
            surrogate = 0
            if packing is not None or not isASCII:
                surrogate = _surrogateOf(descriptor, status.st_size, packing)
        except CannotUnpack as error:
            self._directory.fault("unpack", OSError(errno.EIO, str(error)), name)
            return MessageInfo(-1, 0)
        except OSError as error:
            if error.errno == errno.ECANCELED:
                raise
            self._directory.fault("read", error, name)
            return MessageInfo(-1, 0)
        finally:
            closeQuietly(descriptor)
        return MessageInfo(
            *(octets, status.st_ino, status.st_size, status.st_mtime_ns, kind),
            *(checksumOf(first), surrogate),
        )

    # --- at the end of a session ----------------------------------------------------------

    def save(self, listing: MailboxSnapshot, held: LockedDirectory) -> None:
        """
        Begin to save which unique-id belongs to which file.  The unique-ids of this listing must
        not change any more, because the client has seen them.

        @param listing: the last listing of the session.
        @param held: the mailbox.  It stays locked until the entries are saved.
        """
        sizes = self._listing.sizes
        if sizes is None or not sizes.hasUnwritten:
            return
        known = sizes

        def write() -> None:
            root = held.root()
            if root is None:
                return
            try:
                known.claimSeen(partial(_headListed, root, listing))
                known.write(root)
            finally:
                closeQuietly(root)

        try:
            self._directory.run(write).addErrback(lambda _: None)
        except POP3ResponseError:
            # Ignore the error, because the next session will save the entries.
            pass


def _surrogateOf(descriptor: int, size: int, packing: bytes | None) -> int:
    """
    Read a message.  Blocks.

    @param size: the size of the file in octets.
    @param packing: see L{packedAs}.
    @return: see L{surrogateSize}.
    @raise CannotUnpack: the message cannot be unpacked.
    @raise OSError: the work was cancelled, or the file cannot be read.
    """

    def pieces() -> Iterator[bytes]:
        return _blocks(descriptor, size) if packing is None else unpacked(descriptor, packing)

    # First look for octets that are not ASCII, because this takes much less time than a conversion.
    return 0 if all(map(bytes.isascii, pieces())) else surrogateSize(pieces())


def _blocks(descriptor: int, size: int) -> Iterator[bytes]:
    for offset in range(0, size, _BLOCK):
        if mustStop():
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        yield os.pread(descriptor, _BLOCK, offset)


def _headListed(root: int, listing: MailboxSnapshot, uniqueID: str) -> int:
    place = listing.get(uniqueID)
    if place is None:
        return 0
    try:
        directory = openBelow(place[0], root)
    except OSError:
        return 0
    try:
        return headIn(directory, place[1])
    finally:
        closeQuietly(directory)
