"""
List a mailbox for one session, and remember where its messages are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from pop3svc.files import FolderTimes, closeQuietly
from pop3svc.interfaces import Eventual
from pop3svc.listings import UniqueIDList
from pop3svc.providers.files.deletion import Place
from pop3svc.providers.files.directory import Directory
from pop3svc.providers.files.sizes import (
    GONE,
    Key,
    MailboxSizes,
    MessageInfo,
    SizeCache,
    infosOf,
    keyOf,
)
from pop3svc.providers.files.snapshot import (
    EMPTY,
    Format,
    ListingCache,
    MailboxSnapshot,
    PlaceColumns,
    isLarge,
    stampOf,
)
from pop3svc.providers.files.watching import Inotify, MailboxWatch

__all__ = ["Caches", "Listing"]


@dataclass
class Caches:
    """
    Caches that the mailboxes of one store share.
    """

    listings: ListingCache
    sizes: SizeCache
    watches: Inotify


class _Watching:
    """
    Watches a mailbox for one session.  The watch of inotify begins at the first SLEE, because most
    sessions never sleep and need no watch.
    """

    __slots__ = ("_caches", "_directory", "_end", "_watch", "changed")

    def __init__(self, directory: Directory, caches: Caches, changed: Callable[[], object]) -> None:
        """
        @param changed: called after each change of the mailbox, and also if a change may have been
            missed.
        """
        self.changed = changed
        self._directory = directory
        self._caches = caches
        # The watch and the function that ends it; None until the watch has begun.
        self._watch: MailboxWatch | None = None
        self._end: Callable[[], None] | None = None

    def look(self) -> int | None:
        """
        @return: see L{MailboxWatch.look}; L{None} if there is no watch.
        """
        return None if self._watch is None else self._watch.look()

    def holds(self, key: Key | None) -> bool:
        """
        @return: whether the watch reports all changes of the directory with this key.
        """
        watch = self._watch
        return watch is not None and not watch.isBroken and watch.key == key

    def changesRead(self) -> int | None:
        """
        @return: the same number as from L{look}, except that events in the queue of the kernel are
            not counted.
        """
        return None if self._watch is None else self._watch.changes

    def begin(self) -> None:
        """
        Begin the inotify watch.
        """
        self.end()
        # Call the function, because the watch does not report changes from before its beginning.
        self.changed()

        def begin(root: int, key: Key) -> None:
            caches, folders = self._caches, self._directory.folders
            watching = caches.watches.watch(root, folders, self.changed)
            if watching is None:
                return
            watch, self._end = watching
            self._watch = watch
            changes = watch.look()
            stamp, isOld = stampOf(root, folders)
            listing = caches.listings.get(key, stamp) if isOld else None
            if listing is not None:
                caches.listings.setWatched(watch.key, listing, changes)

        try:
            self._directory.attempt(begin)
        except OSError:
            # Go on without a watch.  The times of the directories are then compared.
            self.end()

    def end(self) -> None:
        """
        End the inotify watch.
        """
        end, self._end = self._end, None
        self._watch = None
        if end is not None:
            end()


class Listing:
    """
    The messages that one session has listed.  The object also knows to which places the messages
    have moved since the listing.

    @ivar current: the latest listing.
    @ivar sizes: the sizes of the messages in the listed directory; L{None} if nothing was listed.
    """

    __slots__ = (
        "_caches",
        "_changesAtLock",
        "_changesAtSleep",
        "_directory",
        "_format",
        "_key",
        "_moved",
        "_movedLinks",
        "_watching",
        "current",
        "sizes",
    )

    def __init__(self, directory: Directory, format: Format, caches: Caches) -> None:
        """
        @param format: the format, which finds the messages in the directory.
        """
        self.current = EMPTY
        self.sizes: MailboxSizes | None = None
        self._directory = directory
        self._format = format
        self._caches = caches
        # The device and the inode of the listed directory.
        self._key: Key | None = None
        # The new places and further names of messages that have moved or arrived after the listing.
        self._moved: dict[str, Place] = {}
        self._movedLinks: dict[str, list[Place]] = {}
        self._watching: _Watching | None = None
        # The value of MailboxWatch.changes at the last SLEE.
        self._changesAtSleep: int | None = None
        # The same value, if nothing had changed when WAKE locked the mailbox.  The next listing may
        # use this value.
        self._changesAtLock: int | None = None

    # --- in the reactor's thread --------------------------------------------------

    def refresh(self) -> Eventual[UniqueIDList]:
        """
        List the messages for the session.

        @return: the unique-ids.
        """
        watching = self._watching
        # Use the value from the lock if there is one, because the lock has just read the queue of
        # the kernel.
        changes, self._changesAtLock = self._changesAtLock, None
        if changes is None and watching is not None:
            changes = watching.look()
        # Use the shared listing if it is still valid, because this needs no thread.
        listing = self._listedBefore(changes)
        if watching is not None and not watching.holds(self._key):
            # Report a change if there is no valid watch, because changes may have been missed.
            watching.changed()
        if listing is not None:
            return self._use(listing)
        return self._directory.run(self.scanned).addCallback(self._listedNow, changes)

    def _listedBefore(self, changes: int | None) -> MailboxSnapshot | None:
        self._key = None
        times = self._directory.timesAtLock()

        def look(root: int, key: Key) -> MailboxSnapshot | None:
            self._key = key
            self.sizes = self._caches.sizes.of(key)
            watching = self._watching
            if watching is not None and watching.holds(key):
                listing = self._caches.listings.getWatched(key, changes)
                if listing is not None:
                    return listing
            return self._shared(root, key, times)

        try:
            return self._directory.attempt(look)
        except OSError as error:
            raise self._directory.fault("list", error)

    def _listedNow(self, listing: MailboxSnapshot, changes: int | None) -> UniqueIDList:
        watching, key = self._watching, self._key
        if watching is not None and key is not None and listing.isSure:
            isUnchanged = watching.look() == changes and watching.holds(key)
            if isUnchanged:
                self._caches.listings.setWatched(key, listing, changes)
        return self._use(listing)

    def _use(self, listing: MailboxSnapshot) -> UniqueIDList:
        self._set(listing)
        return listing.listed

    def _set(self, listing: MailboxSnapshot) -> None:
        self.current = listing
        self._moved = {}
        self._movedLinks = {}

    def clear(self) -> MailboxSnapshot:
        """
        Forget the listing.

        @return: the listing.
        """
        listing = self.current
        self._set(EMPTY)
        self._changesAtLock = None
        return listing

    def watch(self, changed: Callable[[], object]) -> Callable[[], None]:
        """
        Call C{changed} after each change; see L{INewMailNotifier.watchMailbox}.

        @return: a function that ends the watch.
        """
        watching = self._watching = _Watching(self._directory, self._caches, changed)

        def end() -> None:
            watching.end()
            if self._watching is watching:
                self._watching = None
            # Close the kept directory, because the session may end while it is asleep.
            self._directory.closeKept()

        return end

    def onSleep(self) -> None:
        """
        Begin the watch of inotify, unless it watches the mailbox already.  Forget the listing, so
        that a session needs little memory while it is asleep.
        """
        if self._watching is not None and not self._watching.holds(self._key):
            self._watching.begin()
        self._changesAtSleep = None if self._watching is None else self._watching.changesRead()
        self.clear()
        self.sizes = None

    @property
    def isWatched(self) -> bool:
        """
        Whether inotify reports all changes of the listed mailbox.
        """
        return self._watching is not None and self._watching.holds(self._key)

    def isUnchanged(self, key: Key) -> bool:
        """
        @param key: the key of the directory.
        @return: whether it is certain that no message was added, moved or removed since L{onSleep}.
        """
        watching = self._watching
        if watching is None:
            return False
        changes = watching.look()
        if changes != self._changesAtSleep or not watching.holds(key):
            # Do not store the value, because the lock may have to wait and the mailbox may change
            # meanwhile.
            return False
        self._changesAtLock = changes
        return True

    # --- in a thread ----------------------------------------------------------------

    def scanned(self) -> MailboxSnapshot:
        """
        List the messages that exist now.  The listing of the session does not change.

        @raise POP3ResponseError: the directory cannot be read, or the mailbox is missing.
        """
        directory = self._directory
        try:
            root = directory.open()
            if root is None:
                directory.checkPresence(None)
                return MailboxSnapshot()
            try:
                directory.checkPresence(root)
                return self.scan(root)
            finally:
                closeQuietly(root)
        except OSError as error:
            raise directory.fault("list", error)

    def scan(self, root: int) -> MailboxSnapshot:
        """
        Return the shared listing if it is still valid.  Otherwise list the messages that exist now.

        @param root: a descriptor of the directory.
        @raise OSError: the directory cannot be read.
        """
        key = self._key = keyOf(root)
        sizes = self.sizes = self._caches.sizes.of(key)
        shared = self._shared(root, key)
        if shared is not None:
            return shared
        listing, stamp = self._format.scan(root, sizes)
        # Prepare the unique-ids now, because this method runs in a thread.
        listing.listed.prepare()
        if listing.isSure:
            sizes.markOthersGone(listing.listed.numbers())
        sizes.keep(root, {}, listing.listed.numbers())
        if listing.isSure and stamp:
            self._caches.listings.put(key, stamp, listing)
        return listing

    def scanIfSmall(self, root: int) -> None:
        """
        Scan the directory, so that L{refresh} finds a listing and needs no further work in a
        thread.  Do not scan a large directory, because the lock must not take that long.  Do not
        scan a directory whose times are too new, because L{refresh} could not use the listing.
        """
        folders = self._directory.folders
        with suppress(OSError):
            if stampOf(root, folders)[1] and not isLarge(root, folders):
                self.scan(root)

    def sizesIn(self, root: int) -> MailboxSizes:
        """
        @param root: a descriptor of the directory.
        @return: the sizes of the messages in this directory.
        """
        sizes = self.sizes = self._caches.sizes.of(keyOf(root))
        return sizes

    def _shared(
        self, root: int, key: Key, times: FolderTimes | None = None
    ) -> MailboxSnapshot | None:
        stamp, isOld = times or stampOf(root, self._directory.folders)
        return self._caches.listings.get(key, stamp) if isOld else None

    # --- places -----------------------------------------------------------------------

    def placeOf(self, uniqueID: str) -> Place | None:
        """
        @return: the last known place of a message; L{None} if the message was not listed.
        """
        return self._moved.get(uniqueID) or self.current.get(uniqueID)

    def move(self, uniqueID: str, place: Place) -> None:
        """
        Record the new place of a message.
        """
        self._moved[uniqueID] = place

    def adopt(self, uniqueID: str, now: MailboxSnapshot) -> None:
        """
        Record the place and the other names that a message has in a newer listing.
        """
        place = now.get(uniqueID)
        if place is None:
            return
        self._moved[uniqueID] = place
        if uniqueID in now.links:
            self._movedLinks[uniqueID] = now.links[uniqueID]

    def linksOf(self, uniqueIDs: Iterable[str]) -> Iterator[tuple[str, Place]]:
        """
        @return: pairs of a unique-id and the place of a further name of the message's file.
        """
        links = self.current.links | self._movedLinks
        for uniqueID in uniqueIDs:
            for link in links.get(uniqueID, ()):
                yield uniqueID, link

    def sizesInNames(self, uniqueIDs: Sequence[str]) -> dict[str, MessageInfo]:
        """
        @return: the sizes of messages according to the names of their files; empty if the operator
            does not trust these names.
        """
        if not self._format.believesNames:
            return {}
        listing = self.current
        names: Sequence[str]
        inodes: Sequence[int]
        isWhole = uniqueIDs is listing.listed.uniqueIDs and not self._moved
        if isWhole and isinstance(listing.places, PlaceColumns):
            names, inodes = listing.places.names, listing.places.inodes
        else:
            places = [self.placeOf(each) or ("", "", 0) for each in uniqueIDs]
            names, inodes = [each[1] for each in places], [each[2] for each in places]
        sizes = self._format.sizesInNames(names)
        return infosOf(uniqueIDs, sizes, inodes)

    # --- identity ---------------------------------------------------------------------

    def isUntouched(self, uniqueID: str, place: Place, status: os.stat_result) -> bool:
        """
        Check with little work whether a file is the listed file.

        @return: L{True} if the file is certainly the listed one; L{False} if L{isSame} has to find
            out.
        """
        known = None if self.sizes is None else self.sizes.known.get(uniqueID)
        return (
            known is not None and known.modified == status.st_mtime_ns and place[2] == status.st_ino
        )

    def isSame(
        self, uniqueID: str, place: Place, status: os.stat_result, head: Callable[[], int]
    ) -> bool:
        """
        @param head: reads the first octets of the file; see
            L{headOf<pop3svc.providers.files.sizes.headOf>}.
        @return: whether the file that is at a place now is the listed file, or a copy of it.
        """
        sizes = self.sizes
        known = None if sizes is None else sizes.ownerOf(uniqueID)
        if sizes is None or known is None:
            if place[2] not in (0, status.st_ino):
                return False
            if not self._isLater(uniqueID, status):
                return True
            if sizes is not None:
                # Record that the unique-id belongs to a file that does not exist any more.
                sizes.claim(uniqueID, MessageInfo(-1, status.st_ino, kind=GONE))
                self._drop()
            return False
        if place[2] not in (0, status.st_ino):
            # Another file has this name now.  If it has the same time, it is a copy of the same
            # message.
            return known.modified == status.st_mtime_ns
        if known.isFile(status, head):
            return True
        # A program has changed or replaced the file, although the rules of a Maildir forbid this.
        # The file counts as another message now.
        sizes.forget(uniqueID)
        self._drop()
        return False

    def _isLater(self, uniqueID: str, status: os.stat_result) -> bool:
        """
        @return: whether a file with the inode of the listed file was delivered after the listing.
            A write changes the time of change and the time of modification.  A rename does not
            change the time of modification.
        """
        listing = self.current
        if not listing.time or uniqueID not in listing:
            return False
        return min(status.st_ctime_ns, status.st_mtime_ns) > listing.time

    def _drop(self) -> None:
        if self._key is not None:
            self._caches.listings.drop(self._key)
