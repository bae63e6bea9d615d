"""
List the files of a mailbox, and keep the listing for all sessions of the mailbox.
"""

from __future__ import annotations

import os
import stat
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import repeat
from threading import Lock
from typing import Any, NamedTuple, Protocol

from pop3svc.files import (
    MISSING,
    FileStamp,
    FolderTimes,
    areStampsTrustworthy,
    closeQuietly,
    stampFrom,
)
from pop3svc.listings import UniqueIDList
from pop3svc.providers.files.deletion import Place
from pop3svc.providers.files.sizes import Key, MailboxSizes
from pop3svc.providers.paths import openBelow, uniqueIDFor

__all__ = [
    "EMPTY",
    "FolderNames",
    "Format",
    "ListingCache",
    "MailboxSnapshot",
    "NoListingCache",
    "PlaceColumns",
    "Stamp",
    "isLarge",
    "listFolder",
    "readFolder",
    "stampOf",
]

# A mailbox counts as large if its directories together have more octets than this.
_LARGE = 1_000_000


class PlaceColumns(Sequence[Place]):
    """
    The places of many messages in columns, so that there is no object for each place.

    @ivar names: the names of the files.
    @ivar inodes: the inode of each file; 0 if it is not known.
    """

    __slots__ = ("_folderOf", "_folders", "inodes", "names")

    def __init__(
        self, folders: Sequence[str], folderOf: bytes, names: list[str], inodes: array[int]
    ) -> None:
        """
        @param folders: the directories that hold messages.
        @param folderOf: for each file, the index of its directory in C{folders}.
        """
        self._folders = folders
        self._folderOf = folderOf
        self.names = names
        self.inodes = inodes

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        return self._folders[self._folderOf[index]], self.names[index], self.inodes[index]


class MailboxSnapshot:
    """
    Unique-ids in the order of message numbers, and the place of each message.  A snapshot never
    changes after it was made, because sessions share it.

    @ivar listed: the unique-ids, as an object that sessions share.
    @ivar places: the place of each message.
    @ivar links: the further names of a message's file, by unique-id.
    @ivar isSure: whether the scan was complete and all messages were identified.  In this case, a
        message that is not listed does not exist.
    @ivar time: the time at which the scan began, in nanoseconds; 0 without a complete scan.  If a
        directory has a later time of change or of modification, C{time} is this later time.  A file
        that was delivered after C{time} is not listed.
    @ivar separator: the separator before the flags in the names of files; empty if the names have
        no flags.
    @ivar uniqueIDFor: takes the part of a file's name before the separator and returns the
        unique-id.
    """

    __slots__ = ("isSure", "links", "listed", "places", "separator", "time", "uniqueIDFor")

    def __init__(self, listed: UniqueIDList | None = None, places: Sequence[Place] = ()) -> None:
        self.listed = UniqueIDList(()) if listed is None else listed
        self.places = places
        self.links: dict[str, list[Place]] = {}
        self.isSure = True
        self.time = 0
        self.separator = ""
        self.uniqueIDFor: Callable[[str], str] = uniqueIDFor

    def __len__(self) -> int:
        return len(self.places)

    def __contains__(self, uniqueID: str) -> bool:
        return self.listed.number(uniqueID) is not None

    def get(self, uniqueID: str) -> Place | None:
        """
        @return: the place of a message; L{None} if it was not listed.
        """
        number = self.listed.number(uniqueID)
        return None if number is None else self.places[number - 1]

    def items(self) -> Iterator[tuple[str, Place]]:
        """
        @return: the unique-id and the place of each message.
        """
        return zip(self.listed.uniqueIDs, self.places, strict=True)

    def uniqueIDOf(self, place: Place) -> str:
        """
        @return: the unique-id that the name of the file gives.
        """
        name = place[1]
        return self.uniqueIDFor(name.partition(self.separator)[0] if self.separator else name)


# The listing of a session that has listed nothing.
EMPTY = MailboxSnapshot()

# The stamp of each directory.
Stamp = tuple[FileStamp, ...]


class Format(Protocol):
    """
    A kind of mailbox.  The format knows how the files of messages are named and in which order they
    are listed.

    @ivar believesNames: whether the operator trusts L{sizesInNames}.
    """

    @property
    def believesNames(self) -> bool: ...

    @property
    def folders(self) -> Sequence[str]:
        """
        The directories below the root that may hold messages.
        """

    def scan(self, root: int, sizes: MailboxSizes) -> tuple[MailboxSnapshot, Stamp]:
        """
        List the messages.  Blocks.

        @param root: a descriptor of the root directory.
        @param sizes: knows to which file each unique-id belongs.
        @return: the listing, and the times of the directories for which it is valid.  The times
            matter only if C{isSure} of the listing is true.
        """

    def sizesInNames(self, names: Sequence[str]) -> list[int | None]:
        """
        @return: the size of each message in octets according to the name of its file; L{None} if
            the name contains no size.
        """

    def afterDeletion(self, root: int, files: Sequence[tuple[Place, os.stat_result]]) -> None:
        """
        Update other files of the mailbox after messages were deleted.  This method blocks.  It must
        not raise an exception.
        """


def stampOf(root: int, folders: Sequence[str]) -> FolderTimes:
    """
    @return: the times of the directories, and whether they are old enough to be trusted.
    """
    stamp: list[FileStamp] = []
    for folder in folders:
        try:
            status = os.stat(folder, dir_fd=root, follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                # The times of a link do not change together with those of the directory.
                directory = openBelow(folder, root)
                try:
                    status = os.fstat(directory)
                finally:
                    closeQuietly(directory)
            stamp.append(stampFrom(status))
        except FileNotFoundError:
            stamp.append(MISSING)
    return tuple(stamp), areStampsTrustworthy(stamp)


def isLarge(root: int, folders: Sequence[str]) -> bool:
    """
    @return: whether a mailbox has so many messages that a listing takes a long time.
    """
    octets = 0
    for folder in folders:
        with suppress(OSError):
            octets += os.stat(folder, dir_fd=root, follow_symlinks=False).st_size
    # On most file systems a directory has some 70 octets for each file.
    return octets > _LARGE


class ListingCache:
    """
    A cache of the latest listing of each mailbox.  The sessions of a mailbox share the listing.  If
    the mailbox has not changed, WAKE therefore needs no scan.  The cache is thread-safe.
    """

    # The most messages in the cache.  A message takes some 300 octets.  Each mailbox counts as EACH
    # further messages.  The listing that was added last stays in the cache even if it has more
    # messages than BOUND.
    BOUND, EACH = 300_000, 5

    def __init__(self) -> None:
        self._listings: OrderedDict[Key, tuple[Stamp, MailboxSnapshot]] = OrderedDict()
        self._watched: dict[Key, tuple[int, MailboxSnapshot]] = {}
        self._messages = 0
        self._lock = Lock()

    def get(self, key: Key, stamp: Stamp) -> MailboxSnapshot | None:
        """
        @return: the listing; L{None} if there is no listing for these times of the directories.
        """
        with self._lock:
            known = self._listings.get(key)
            if known is None or known[0] != stamp:
                return None
            self._listings.move_to_end(key)
            return known[1]

    def getWatched(self, key: Key, changes: int | None) -> MailboxSnapshot | None:
        """
        @param changes: the present value of C{MailboxWatch.changes}.
        @return: the listing; L{None} if there is no listing for this value.
        """
        with self._lock:
            known = self._watched.get(key)
            return known[1] if known is not None and known[0] == changes else None

    def setWatched(self, key: Key, listing: MailboxSnapshot, changes: int | None) -> None:
        """
        Record that a listing is valid for a value of C{MailboxWatch.changes}, unless the cache has
        another listing now.
        """
        with self._lock:
            known = self._listings.get(key)
            if known is not None and known[1] is listing and changes is not None:
                self._watched[key] = changes, listing

    def put(self, key: Key, stamp: Stamp, listing: MailboxSnapshot) -> None:
        """
        Store a listing.  Its C{isSure} must be true.
        """
        with self._lock:
            self._drop(key)
            self._listings[key] = stamp, listing
            self._messages += len(listing) + self.EACH
            while self._messages > self.BOUND and len(self._listings) > 1:
                self._drop(next(iter(self._listings)))

    def drop(self, key: Key) -> None:
        """
        Forget the listing of a mailbox, because it is out of date.
        """
        with self._lock:
            self._drop(key)

    def _drop(self, key: Key) -> None:
        known = self._listings.pop(key, None)
        self._watched.pop(key, None)
        if known is not None:
            self._messages -= len(known[1]) + self.EACH


class NoListingCache(ListingCache):
    """
    A cache that keeps no listing.  It is for a store whose listings may change while the times of
    the directories stay the same.
    """

    def put(self, key: Key, stamp: Stamp, listing: MailboxSnapshot) -> None:
        """
        Do nothing.
        """


def listFolder(root: int, folder: str) -> Iterator[Place]:
    """
    Read a directory, and yield its regular files that are not hidden.
    """
    try:
        directory = openBelow(folder, root)
    except FileNotFoundError:
        return
    try:
        isReliable: bool | None = None
        with os.scandir(directory) as entries:
            for entry in entries:
                name = entry.name
                if name[0] == "." or not entry.is_file(follow_symlinks=False):
                    continue
                if isReliable is None:
                    isReliable = _areInodesReliable(entry)
                yield folder, name, entry.inode() if isReliable else 0
    finally:
        closeQuietly(directory)


class FolderNames(NamedTuple):
    """
    The regular files of a directory that are not hidden.  Their names and inodes are stored as
    columns.

    @ivar folder: the name of the directory.
    @ivar names: the names of the files.
    @ivar inodes: the inode of each file; 0 if it is not known.
    """

    folder: str
    names: list[str]
    inodes: array[int]

    def places(self) -> Iterator[Place]:
        """
        @return: the place of each file.
        """
        return zip(repeat(self.folder), self.names, self.inodes)


def readFolder(root: int, folder: str) -> FolderNames:
    """
    Read a whole directory at once; see L{listFolder}.
    """
    names: list[str] = []
    inodes = array("Q")
    try:
        directory = openBelow(folder, root)
    except FileNotFoundError:
        return FolderNames(folder, names, inodes)
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                name = entry.name
                if name[0] != "." and entry.is_file(follow_symlinks=False):
                    if not names:
                        areReliable = _areInodesReliable(entry)
                    names.append(name)
                    inodes.append(entry.inode())
    finally:
        closeQuietly(directory)
    if names and not areReliable:
        inodes = array("Q", bytes(inodes.itemsize * len(names)))
    return FolderNames(folder, names, inodes)


def _areInodesReliable(entry: os.DirEntry[str]) -> bool:
    """
    @return: whether a directory reports the same inodes as stat().  On an overlay file system the
        inodes may differ.
    """
    try:
        return entry.inode() == entry.stat(follow_symlinks=False).st_ino
    except OSError:
        return False
