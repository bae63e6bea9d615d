"""
The base classes of mailboxes that keep each message in a file of its own.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any, TypeVar
from zlib import crc32

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from zope.interface import implementer

from pop3svc.awaiting import Executor, isAwaitable, isCancelled
from pop3svc.bounded import BoundedDict
from pop3svc.errors import POP3ResponseError
from pop3svc.files import (
    FileBlocks,
    closeQuietly,
    countOctets,
    disk,
    openDirectory,
    openFile,
)
from pop3svc.interfaces import (
    IBulkMessageSizes,
    IExclusiveMailbox,
    IPOP3ConnectionInfo,
    IPOP3Mailbox,
)
from pop3svc.listings import UniqueIDList
from pop3svc.once import Once
from pop3svc.providers.paths import Root, openBelow, uniqueIDFor
from pop3svc.providers.removal import CleanCache, Place, nameOfStaging, recover, removeAll
from pop3svc.providers.sizes import Key
from pop3svc.providers.watching import DirectoryWatcher
from pop3svc.state import State

__all__ = [
    "PERMANENT",
    "ExclusiveFileMailbox",
    "FileMailbox",
    "LockPolicy",
    "LockRegistry",
    "MailboxSnapshot",
    "Presence",
    "SizeCache",
    "checksumOf",
    "headIn",
    "headOf",
    "keyOf",
    "listFolder",
]

log = Logger(namespace="pop3svc")

# Errors of files that were logged already.
_faults = Once()

# Seconds after which the search for a message that is renamed all the time ends.
_SEEK = 2.0
# Errors that last until the operator repairs something; all others may be temporary.
PERMANENT = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.EROFS)

T = TypeVar("T")


class MailboxSnapshot(dict[str, Place]):
    """
    Unique-ids in message-number order, and the place of each message.  A snapshot never
    changes once it is made, because sessions share it.

    @ivar links: other names of the same file, by unique-id.
    @ivar isSure: whether no file moved during the scan, so that a message that is not
        listed no longer exists.
    @ivar time: time of the scan, nanoseconds, or the latest time of change of the
        directories if that is ahead of the clock; 0 if nothing was scanned.  A file that
        was written later is not listed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.links: dict[str, list[Place]] = {}
        self.isSure = True
        self.time = 0
        self._listed: UniqueIDList | None = None

    def listed(self) -> UniqueIDList:
        """
        @return: the unique-ids, for sessions to share.
        """
        if self._listed is None:
            self._listed = UniqueIDList(self)
        return self._listed


class Presence:
    """
    Registry of the mailboxes of a store that have existed.  The store refuses a mailbox that
    existed before and is missing now, because its file system may not be mounted.  If a client
    got an empty maildrop instead, it would forget which messages it has downloaded.
    """

    # Paths; some 100 octets each.
    BOUND = 100_000

    def __init__(self, state: State | None = None, runner: Executor | None = None) -> None:
        """
        @param state: the database that survives a restart; the registry is in memory only
            if it is not given.
        """
        self._state = State() if state is None else state
        self._runner = disk() if runner is None else runner
        self._there = Once(self.BOUND)
        self._missing = Once(self.BOUND)
        self._unwritten: list[str] = []
        self._lock = Lock()
        self._isWriting = False

    def useState(self, state: State) -> None:
        """
        @param state: the database that survives a restart.
        """
        self._state = state

    def isKnown(self, path: str) -> bool:
        """
        @return: whether the existence of this mailbox is recorded already.
        """
        return path in self._there

    def isThere(self, path: str, isInThread: bool) -> None:
        """
        Record that a mailbox exists.

        @param isInThread: whether the caller runs in a thread, so that this may block.
        """
        self._there.isFirst(path)
        self._missing.forget(path)
        with self._lock:
            self._unwritten.append(path)
        if isInThread:
            self._write()
        elif not self._isWriting:
            self._isWriting = True
            try:
                self._runner.run(self._write).addErrback(lambda _: None)
            except POP3ResponseError:
                # The next write includes this path.
                self._isWriting = False

    def _write(self) -> None:
        self._isWriting = False
        with self._lock:
            paths, self._unwritten = self._unwritten, []
        isWritten = self._state.write(
            "INSERT OR REPLACE INTO mailbox (path, seen) VALUES (?, ?)",
            [(os.fsencode(path), time.time()) for path in paths],
        )
        if not isWritten:
            # The next login to each mailbox tries again.
            for path in paths:
                self._there.forget(path)

    def isMissing(self, path: str) -> None:
        """
        Handle a mailbox that does not exist.  Blocks.

        @raise POP3ResponseError: C{SYS/TEMP} if the mailbox existed before, or the database
            cannot be read.
        """
        if self._unwritten:
            self._write()
        wasThere = self._state.ask("SELECT 1 FROM mailbox WHERE path = ?", os.fsencode(path))
        isFirst = self._missing.isFirst(path)
        # Record the mailbox again once it is back.
        self._there.forget(path)
        if wasThere is None:
            # The database is unreadable.  An empty maildrop might be wrong.
            raise POP3ResponseError("Mailbox is not available now.", "SYS/TEMP")
        if not wasThere:
            if isFirst:
                log.info("mailbox {path} is incomplete: serving what exists", path=path)
            return
        if isFirst:
            log.error(
                "mailbox {path} is missing: is its file system mounted?  Its user gets "
                "[SYS/TEMP] until it is back",
                path=path,
            )
        raise POP3ResponseError("Mailbox is not available now.", "SYS/TEMP")


class SizeCache:
    """
    Cache of the sizes of files as they are sent, by device, inode, size and times of the
    file.  To count a size the whole file has to be read, and clients ask for sizes at each
    poll.  Thread-safe.
    """

    # About 150 octets each.
    BOUND = 200_000

    def __init__(self) -> None:
        self._sizes: BoundedDict[tuple[int, ...], int] = BoundedDict(self.BOUND)
        self._lock = Lock()

    def sizeOf(self, descriptor: int) -> int:
        """
        @return: size in octets; if it is not cached, the file is read to count it.  Blocks.
        """
        status = os.fstat(descriptor)
        key = (
            *(status.st_dev, status.st_ino, status.st_size),
            *(status.st_mtime_ns, status.st_ctime_ns),
        )
        with self._lock:
            if key in self._sizes:
                self._sizes.move_to_end(key)
                return self._sizes[key]
        octets = countOctets(descriptor)
        with self._lock:
            self._sizes.put(key, octets)
        return octets


# Octets at the beginning of a message that distinguish it from others, because they hold
# its trace fields.
_HEAD = 1024


def headOf(descriptor: int) -> int:
    """
    @return: a checksum of the first octets of a message's file.  Reads them.
    """
    try:
        return checksumOf(os.pread(descriptor, _HEAD, 0))
    except OSError:
        return 0


def checksumOf(first: bytes) -> int:
    """
    @param first: the first octets of a message; more than needed are ignored.
    @return: a checksum that distinguishes the message from others.
    """
    return crc32(first[:_HEAD])


def headIn(directory: int, name: str) -> int:
    """
    Open a file in a directory and return its L{headOf}, 0 if it cannot be opened.
    """
    try:
        descriptor, _ = openFile(name, directory)
    except OSError:
        return 0
    try:
        return headOf(descriptor)
    finally:
        closeQuietly(descriptor)


def keyOf(root: int) -> Key:
    """
    @param root: a descriptor.
    @return: device and inode.
    """
    status = os.fstat(root)
    return status.st_dev, status.st_ino


def listFolder(root: int, folder: str) -> Iterator[Place]:
    """
    Yield the regular files of a directory that are not hidden, while it is read.
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


def _areInodesReliable(entry: os.DirEntry[str]) -> bool:
    """
    @return: whether a directory reports the same inodes as stat().  On an overlay file
        system they may differ.
    """
    try:
        return entry.inode() == entry.stat(follow_symlinks=False).st_ino
    except OSError:
        return False


class LockedDirectory:
    """
    A mailbox's directory, open and locked.  The lock is on the directory itself, because
    users could create, remove or own a lock file.
    """

    def __init__(self, root: int, key: Key) -> None:
        self.key = key
        self._root: int | None = root
        # The folder that was opened last stays open for the next message in it.
        self._folder: tuple[str, int] | None = None
        # A thread whose call has timed out may still use the descriptor.
        self._guard = Lock()

    def root(self) -> int | None:
        """
        @return: another descriptor of the directory, which the caller closes; L{None} if
            the lock was released.
        """
        with self._guard:
            # dup() would share the lock.
            return None if self._root is None else openDirectory(".", self._root)

    def descriptor(self) -> int | None:
        """
        Return the descriptor itself.  Only for use in the reactor's thread, and only until
        the caller returns to the reactor.

        @return: the descriptor of the directory; L{None} if the lock was released.
        """
        return self._root

    def openIn(self, folder: str, name: str) -> tuple[int, os.stat_result] | None:
        """
        Open a file in a folder of the mailbox.  Only for use in the reactor's thread.

        @return: a descriptor and its status; L{None} if the lock was released.
        @raise OSError: the file does not exist, or is not a regular file.
        """
        if self._root is None:
            return None
        if self._folder is None or self._folder[0] != folder:
            self._closeFolder()
            self._folder = folder, openBelow(folder, self._root)
        return openFile(name, self._folder[1])

    def _closeFolder(self) -> None:
        folder, self._folder = self._folder, None
        if folder is not None:
            closeQuietly(folder[1])

    def close(self) -> None:
        """
        Release the lock.
        """
        self._closeFolder()
        with self._guard:
            root, self._root = self._root, None
            if root is not None:
                closeQuietly(root)


@implementer(IPOP3Mailbox, IBulkMessageSizes)
class FileMailbox:
    """
    A mailbox that keeps each message in a file of its own, below one root directory.

    An L{Executor} runs work that reads directories or whole files.  A single file is
    opened in the reactor's thread.
    """

    # Directories below the root that may hold messages.
    folders: Sequence[str] = ()

    def __init__(
        self,
        place: Root,
        sizes: SizeCache,
        runner: Executor | None = None,
        isSlow: bool = False,
        presence: Presence | None = None,
    ) -> None:
        """
        @param place: the root directory; it need not exist.
        @param isSlow: whether opening a file may block for long, as on a network file
            system.  All work is then done by the runner.
        @param presence: records which mailboxes have existed.
        """
        self._place = place
        self._path = place.path
        # See Executor.run: the file system, and this mailbox on it.
        self._group = place.base, self._path
        self._sizes = sizes
        self._presence = presence
        self._runner = disk() if runner is None else runner
        self._isSlow = isSlow
        self._listing = MailboxSnapshot()
        # Places of messages that moved or arrived after the listing.
        self._moved: dict[str, Place] = {}
        self._movedLinks: dict[str, list[Place]] = {}

    def _placeOf(self, uniqueID: str) -> Place | None:
        return self._moved.get(uniqueID) or self._listing.get(uniqueID)

    def _setListing(self, listing: MailboxSnapshot) -> None:
        self._listing = listing
        self._moved = {}
        self._movedLinks = {}

    def scan(self, root: int) -> MailboxSnapshot:
        """
        List the messages.  Blocks; to be overridden.
        """
        raise NotImplementedError

    def _run(
        self,
        work: Callable[..., T],
        *arguments: Any,
        runner: Executor | None = None,
        **named: Any,
    ) -> Deferred[T]:
        """
        Run work on this mailbox in a thread; see L{Executor.run}.

        @param runner: an executor to use instead of the mailbox's own.
        """
        runner = runner or self._runner
        return runner.run(work, *arguments, group=self._group, **named)

    # --- in the reactor's thread ------------------------------------------------

    def _root(self) -> int | None:
        """
        @return: a descriptor of the root, which the caller closes.
        """
        return self._place.open()

    def _inRoot(self, work: Callable[[int, Key], T]) -> T | None:
        """
        Call C{work} with a descriptor of the root and its key, in the reactor's thread.

        @return: the result of C{work}; L{None} if the root does not exist.
        """
        root = self._root()
        if root is None:
            return None
        try:
            return work(root, keyOf(root))
        finally:
            closeQuietly(root)

    def _open(self, uniqueID: str, place: Place) -> tuple[int, os.stat_result] | None:
        """
        @return: a descriptor of a message's file, and its status; L{None} if there is no
            file at that place, or another file.
        """
        folder, name, _ = place
        try:
            root = self._root()
            if root is None:
                return None
            try:
                directory = openBelow(folder, root)
                try:
                    opened = openFile(name, directory)
                finally:
                    closeQuietly(directory)
            finally:
                closeQuietly(root)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._fault("open a message of", error, name)
        return self._checked(uniqueID, place, *opened)

    def _checked(
        self, uniqueID: str, place: Place, descriptor: int, status: os.stat_result
    ) -> tuple[int, os.stat_result] | None:
        if not self._isUntouched(uniqueID, place, status) and not self._isSame(
            uniqueID, place, status, lambda: headOf(descriptor)
        ):
            closeQuietly(descriptor)
            return None
        return descriptor, status

    def _isUntouched(self, uniqueID: str, place: Place, status: os.stat_result) -> bool:
        """
        Check cheaply whether the file is the one that was listed.

        @return: L{True} if it certainly is; L{False} if L{_isSame} has to decide.
        """
        return False

    def _isSame(
        self, uniqueID: str, place: Place, status: os.stat_result, head: Callable[[], int]
    ) -> bool:
        """
        @param head: reads the file's first octets; see L{headOf}.
        @return: whether the file at a place is the one that was listed there.
        """
        return place[2] in (0, status.st_ino)

    def _fault(self, what: str, error: OSError, name: str = "") -> POP3ResponseError:
        if error.errno != errno.ECANCELED and _faults.isFirst((self._path, name, str(error))):
            # Log it once instead of at each poll.
            log.error(
                "cannot {what} {path}: {error}",
                what=what,
                path=f"{self._path}/{name}" if name else self._path,
                error=error.strerror,
            )
        code = "SYS/PERM" if error.errno in PERMANENT else "SYS/TEMP"
        return POP3ResponseError("Mailbox unavailable.", code)

    # --- in a thread ----------------------------------------------------------

    def _scanned(self) -> MailboxSnapshot:
        try:
            root = self._root()
            if root is None:
                self._checkPresence(None)
                return MailboxSnapshot()
            try:
                self._checkPresence(root)
                return self.scan(root)
            finally:
                closeQuietly(root)
        except OSError as error:
            raise self._fault("list", error)

    def _checkPresence(self, root: int | None) -> bool:
        """
        Record that a mailbox exists.  If it does not exist, log or refuse that.  Blocks.

        @param root: a descriptor of the root, L{None} if there is none.
        @return: whether the root is a mailbox; an empty directory may be a mount point.
        @raise POP3ResponseError: C{SYS/TEMP} if the mailbox existed before.
        """
        isThere = root is not None and self._isThere(root)
        if self._presence is not None:
            path = self._path
            if not isThere:
                self._presence.isMissing(path)
            elif not self._presence.isKnown(path):
                self._presence.isThere(path, isInThread=True)
        return isThere

    def _isThere(self, root: int) -> bool:
        """
        @return: whether all directories that hold messages exist.
        """
        try:
            for folder in self.folders:
                os.stat(folder, dir_fd=root, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _seek(
        self, uniqueIDs: list[str], look: Callable[[str, Place], T | None]
    ) -> tuple[dict[str, T], bool]:
        """
        Call C{look} for each message.  If another program has renamed the file, search for
        it.

        @param look: takes a unique-id and a place, returns L{None} if the file is not at
            that place.
        @return: the results of C{look} by unique-id, and whether all other messages
            certainly no longer exist.  If not, they were renamed during the whole search.
        """
        found: dict[str, T] = {}

        def lookFor(uniqueID: str, place: Place | None) -> bool:
            got = None if place is None else look(uniqueID, place)
            if got is not None:
                found[uniqueID] = got
            return got is not None

        missing = [each for each in uniqueIDs if not lookFor(each, self._placeOf(each))]
        end = time.monotonic() + _SEEK
        while missing:
            listing = self._scanned()
            for uniqueID in missing:
                place = listing.get(uniqueID)
                if place is not None and lookFor(uniqueID, place):
                    self._moved[uniqueID] = place
            missing = [
                each
                for each in missing
                if each not in found and (each in listing or not listing.isSure)
            ]
            if missing and (time.monotonic() > end or isCancelled()):
                return found, False
            if missing:
                self._seekDuringScan(set(missing), lookFor)
                missing = [each for each in missing if each not in found]
        return found, True

    def _seekDuringScan(self, wanted: set[str], lookFor: Callable[[str, Place], bool]) -> None:
        """
        Open messages while their directory is read, so that another program has little
        time to rename them.
        """
        try:
            root = self._root()
            if root is None:
                return
            try:
                for folder in self.folders:
                    for place in listFolder(root, folder):
                        uniqueID = self.uniqueIDOf(place)
                        if uniqueID in wanted and lookFor(uniqueID, place):
                            wanted.discard(uniqueID)
                            self._moved[uniqueID] = place
            finally:
                closeQuietly(root)
        except OSError as error:
            raise self._fault("list", error)

    def uniqueIDOf(self, place: Place) -> str:
        """
        @return: the unique-id that the file's name gives.
        """
        return uniqueIDFor(place[1])

    @staticmethod
    def _missing(isSure: bool) -> POP3ResponseError:
        if isSure:
            return POP3ResponseError("Message no longer exists.")
        return POP3ResponseError("Message is in use, try again later.", "SYS/TEMP")

    def _octetsAt(self, uniqueID: str, place: Place) -> int | None:
        opened = self._open(uniqueID, place)
        if opened is None:
            return None
        try:
            return self._sizes.sizeOf(opened[0])
        except OSError as error:
            raise self._fault("read a message of", error, place[1])
        finally:
            closeQuietly(opened[0])

    # --- IPOP3Mailbox ---------------------------------------------------------

    def listMessageUniqueIDs(self, info: IPOP3ConnectionInfo) -> Any:
        return self._run(self._scanned).addCallback(self._listed)

    def _listed(self, listing: MailboxSnapshot) -> UniqueIDList:
        self._setListing(listing)
        return listing.listed()

    async def messageExists(self, info: IPOP3ConnectionInfo, uniqueID: str) -> bool:
        now = await self._run(self._scanned)
        if uniqueID not in now:
            if not now.isSure:
                raise self._missing(False)
            return False
        self._moved[uniqueID] = now[uniqueID]
        if uniqueID in now.links:
            self._movedLinks[uniqueID] = now.links[uniqueID]
        return True

    async def messageSize(self, info: IPOP3ConnectionInfo, uniqueID: str) -> int:
        found, isSure = await self._run(self._seek, [uniqueID], self._octetsAt)
        if uniqueID not in found:
            raise self._missing(isSure)
        octets: int = found[uniqueID]
        return octets

    async def messageSizes(
        self, info: IPOP3ConnectionInfo, uniqueIDs: list[str]
    ) -> list[int | None]:
        def octetsAt(uniqueID: str, place: Place) -> int | None:
            try:
                return self._octetsAt(uniqueID, place)
            except POP3ResponseError:
                # One unreadable file must not hide the sizes of all others.
                return -1

        found, isSure = await self._run(self._seek, uniqueIDs, octetsAt)
        if not isSure:
            raise self._missing(False)
        sizes = [found.get(each) for each in uniqueIDs]
        return [None if size is None or size < 0 else size for size in sizes]

    def messageContent(self, info: IPOP3ConnectionInfo, uniqueID: str) -> Any:
        place = self._placeOf(uniqueID)
        opened = None if self._isSlow or place is None else self._openAtOnce(uniqueID, place)
        if opened is None:
            return self._contentAfterSearch(uniqueID)
        return self._content(uniqueID, *opened)

    def _openAtOnce(self, uniqueID: str, place: Place) -> tuple[int, os.stat_result] | None:
        """
        Open a message in the reactor's thread.
        """
        return self._open(uniqueID, place)

    def _content(self, uniqueID: str, descriptor: int, status: os.stat_result) -> Any:
        """
        @return: the content of an open file.
        """
        closing = partial(closeQuietly, descriptor)
        return FileBlocks(
            descriptor, closing, self._runner, length=status.st_size, group=self._group
        )

    async def _contentAfterSearch(self, uniqueID: str) -> Any:
        found, isSure = await self._run(self._seek, [uniqueID], self._open, abandoned=_closeAll)
        if uniqueID not in found:
            raise self._missing(isSure)
        content = self._content(uniqueID, *found[uniqueID])
        return await content if isAwaitable(content) else content

    async def messageDelete(self, info: IPOP3ConnectionInfo, uniqueIDs: list[str]) -> None:
        await self._run(self._remove, list(uniqueIDs))

    def _remove(self, uniqueIDs: list[str]) -> None:
        links = self._listing.links | self._movedLinks
        wanted: list[tuple[str, Place | None]] = [(each, None) for each in uniqueIDs]
        wanted += [(each, link) for each in uniqueIDs for link in links.get(each, ())]

        def isRight(message: Any, place: Place, status: os.stat_result, directory: int) -> bool:
            return self._isSame(message[0], place, status, lambda: headIn(directory, place[1]))

        try:
            root = self._root()
            if root is None:
                return
            try:
                done = removeAll(root, self.folders, wanted, self._locator(root), isRight)
                self._afterRemoval(root, uniqueIDs, [(place, status) for _, place, status in done])
            finally:
                closeQuietly(root)
        except OSError as error:
            raise self._fault("delete from", error)

    def _afterRemoval(
        self, root: int, uniqueIDs: list[str], files: list[tuple[Place, os.stat_result]]
    ) -> None:
        """
        Called after messages were removed, to update other files.  Blocks, and must not
        raise.  To be overridden.
        """

    def _locator(self, root: int) -> Callable[[tuple[str, Place | None], int], Place | None]:
        """
        @return: a function for L{removeAll} that returns the place of a message: first the
            place where it was listed, then the place in a new scan.
        """
        now: MailboxSnapshot | None = None

        def locate(message: tuple[str, Place | None], looks: int) -> Place | None:
            nonlocal now
            uniqueID, link = message
            if link is not None:
                return None if looks else link
            if not looks:
                return self._placeOf(uniqueID)
            if looks > 1 or now is None:
                now = self.scan(root)
            if uniqueID not in now and not now.isSure:
                # The message may have been renamed during the scan.
                raise OSError(errno.EBUSY, "messages are renamed all the time")
            return now.get(uniqueID)

        return locate


def _closeAll(sought: tuple[dict[str, tuple[int, os.stat_result]], bool]) -> None:
    for descriptor, _ in sought[0].values():
        closeQuietly(descriptor)


@dataclass(frozen=True, slots=True)
class LockPolicy:
    """
    The behaviour of a login when another session has locked the mailbox.

    @ivar takeover: ask the other session to release its lock.
    @ivar wait: seconds to wait for the lock.
    """

    takeover: bool = True
    wait: float = 0.0


def _reactor() -> Any:
    from twisted.internet import reactor

    return reactor


class LockRegistry:
    """
    Registry of the mailboxes of a store that this process has locked.  Another process
    that waits for a mailbox takes a shared lock on the staging directory in it; the
    registry watches for that.

    @ivar cleanCache: cache of the mailboxes that need no recovery before they are locked.
    """

    # All times are in seconds.  POLL is the interval of polling if inotify does not work.  A
    # session is watched from the age WATCH_AFTER on.  After a request to release its lock, a
    # session has RELEASE_TIMEOUT to do it.
    POLL = 0.25
    WATCH_AFTER = 0.5
    RELEASE_TIMEOUT = 1.0

    def __init__(self, runner: Executor, clock: Any = None) -> None:
        self._runner = runner
        self._clock = clock
        self.cleanCache = CleanCache()
        # By path: mailbox, its requestRelease, and the time of locking.
        self._held: dict[str, tuple[ExclusiveFileMailbox, Callable[[], bool], float]] = {}
        self._timer: IDelayedCall | None = None
        self._watcher: DirectoryWatcher | None = None
        # Held mailboxes that inotify watches, so that polling can skip them.
        self._watched: dict[str, int] = {}

    @property
    def clock(self) -> Any:
        """
        The reactor, unless a test has passed another clock.
        """
        if self._clock is None:
            self._clock = _reactor()
        return self._clock

    def add(
        self, path: str, mailbox: ExclusiveFileMailbox, requestRelease: Callable[[], bool]
    ) -> None:
        """
        Register a mailbox that a session of this process has locked.
        """
        self._held[path] = mailbox, requestRelease, self.clock.seconds()
        self._pollLater()

    def remove(self, path: str) -> None:
        """
        Forget a mailbox whose lock was released.
        """
        self._held.pop(path, None)
        number = self._watched.pop(path, None)
        if number is not None and self._watcher is not None:
            self._watcher.end(number)
        if not self._held and self._timer is not None and self._timer.active():
            self._timer.cancel()
            self._timer = None

    def ask(self, path: str) -> bool | None:
        """
        Ask the session that holds a lock to release it.

        @return: whether that session releases the lock; L{None} if no session of this process
            holds it.
        """
        held = self._held.get(path)
        return None if held is None else held[1]()

    def _pollLater(self) -> None:
        if self._timer is None and len(self._held) > len(self._watched):
            self._timer = self.clock.callLater(self.POLL, self._poll)

    def _poll(self) -> None:
        self._timer = None
        old = self.clock.seconds() - self.WATCH_AFTER
        # Most sessions end before they are WATCH_AFTER seconds old.  The others are watched by
        # inotify from now on; this poll sees requests from before.
        paths = [
            path
            for path, (_, _, since) in self._held.items()
            if since <= old and path not in self._watched
        ]
        for path in paths:
            self._watch(path)
        if paths:
            self._findWaiting(paths)
        else:
            self._pollLater()

    def _watch(self, path: str) -> None:
        if self._watcher is None:
            self._watcher = DirectoryWatcher(self.clock)
        place = self._held[path][0].stagingPath()

        def touched(isGone: bool) -> None:
            if isGone:
                del self._watched[path]
                self._pollLater()
            else:
                self._findWaiting([path])

        number = None if place is None else self._watcher.watch(place, touched)
        if number is not None:
            self._watched[path] = number

    def _findWaiting(self, paths: list[str]) -> None:
        mailboxes = {path: self._held[path][0] for path in paths}
        try:
            looking = self._runner.run(
                lambda: [path for path, mailbox in mailboxes.items() if mailbox.isWaitedFor()]
            )
        except POP3ResponseError:
            # All threads are busy; the next poll may get one.
            self._askToRelease([])
            return
        looking.addCallbacks(self._askToRelease, lambda _: self._askToRelease([]))

    def _askToRelease(self, wanted: list[str]) -> None:
        for path in wanted:
            self.ask(path)
        self._pollLater()


class LockBusy:
    """
    The result of an attempt to lock a mailbox that another session has locked.
    """


@implementer(IExclusiveMailbox)
class ExclusiveFileMailbox(FileMailbox):
    """
    A L{FileMailbox} that one session at a time can lock, across all processes.  The kernel
    releases the lock when the process dies.
    """

    def __init__(
        self,
        place: Root,
        sizes: SizeCache,
        runner: Executor | None = None,
        registry: LockRegistry | None = None,
        manners: LockPolicy = LockPolicy(),
        isSlow: bool = False,
        presence: Presence | None = None,
    ) -> None:
        """
        @param registry: the registry that the mailboxes of one store share.
        """
        super().__init__(place, sizes, runner, isSlow, presence)
        # Number of calls still running in threads, and the lock to release after the last.
        self._working = 0
        self._releasing: LockedDirectory | None = None
        self._registry = LockRegistry(self._runner) if registry is None else registry
        self._policy = manners
        self._held: LockedDirectory | None = None

    def _run(self, work: Callable[..., T], *arguments: Any, **named: Any) -> Deferred[T]:
        self._working += 1
        ended = named.pop("ended", None)

        def worked() -> None:
            if ended is not None:
                ended()
            self._worked()

        try:
            return super()._run(work, *arguments, ended=worked, **named)
        except BaseException:
            self._working -= 1
            raise

    def _worked(self) -> None:
        self._working -= 1
        held = self._releasing
        if held is not None and not self._working:
            self._releasing = None
            held.close()

    def _checkPresence(self, root: int | None) -> bool:
        # lock() has checked it.
        return True

    def _root(self) -> int | None:
        # A mailbox that did not exist when it was locked is shown as empty.
        held = self._held
        return None if held is None else held.root()

    def _inRoot(self, work: Callable[[int, Key], T]) -> T | None:
        held = self._held
        root = None if held is None else held.descriptor()
        return None if held is None or root is None else work(root, held.key)

    def _isLost(self) -> bool:
        """
        @return: whether a thread hangs that works on this mailbox.
        """
        return self._runner.isLost(self._group)

    def _openAtOnce(self, uniqueID: str, place: Place) -> tuple[int, os.stat_result] | None:
        folder, name, _ = place
        try:
            opened = None if self._held is None else self._held.openIn(folder, name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._fault("open a message of", error, name)
        return None if opened is None else self._checked(uniqueID, place, *opened)

    def lock(self, info: IPOP3ConnectionInfo, requestRelease: Callable[[], bool]) -> Any:
        """
        See L{IExclusiveMailbox.lock}.
        """
        if self._isLost():
            raise POP3ResponseError("Mailbox timed out.", "SYS/TEMP")
        held = LockBusy() if self._isSlow else self._tryLock(recovers=False)
        if isinstance(held, LockBusy):
            return self._waitForLock(requestRelease)
        self._hold(held, requestRelease)
        return None

    async def _waitForLock(self, requestRelease: Callable[[], bool]) -> None:
        held = await self._tryLockInThread()
        if isinstance(held, LockBusy):
            held = await self._waitUntilFree()
        self._hold(held, requestRelease)

    def _hold(self, held: LockedDirectory | None, requestRelease: Callable[[], bool]) -> None:
        self._held = held
        if held is not None:
            self._registry.add(self._path, self, requestRelease)

    async def _tryLockInThread(self) -> LockedDirectory | LockBusy | None:
        return await self._run(self._tryLock, abandoned=_release)

    async def _waitUntilFree(self) -> LockedDirectory | None:
        """
        Ask the other session to release its lock, and wait for that.

        @raise POP3ResponseError: C{IN-USE}, the lock was not released in time.
        """
        clock, policy = self._registry.clock, self._policy
        end = clock.seconds() + policy.wait
        wanted: int | None = None
        try:
            if policy.takeover:
                gives = self._registry.ask(self._path)
                if gives:
                    end = clock.seconds() + LockRegistry.RELEASE_TIMEOUT
                elif gives is None:
                    end = max(end, clock.seconds() + LockRegistry.RELEASE_TIMEOUT)
                    wanted = await self._run(self._signalWaiting, abandoned=_closeOne)
            while True:
                held = await self._tryLockInThread()
                if not isinstance(held, LockBusy):
                    return held
                if clock.seconds() >= end:
                    raise POP3ResponseError("Mailbox is locked by another session.", "IN-USE")
                if wanted is not None:
                    # The other session may have become idle by now.
                    await self._run(_touch, wanted)
                await _pause(clock, LockRegistry.POLL / 2)
        finally:
            _closeOne(wanted)

    def _signalWaiting(self) -> int | None:
        """
        Signal to other processes that this one waits for the mailbox.

        @return: a descriptor to be closed to end that; L{None} if it is not possible.
        """
        try:
            root = self._place.open()
            if root is None:
                return None
            try:
                wanted = openDirectory(nameOfStaging(root), root)
            finally:
                closeQuietly(root)
        except OSError:
            return None
        try:
            fcntl.flock(wanted, fcntl.LOCK_SH | fcntl.LOCK_NB)
            _touch(wanted)
        except OSError:
            closeQuietly(wanted)
            return None
        return wanted

    def stagingPath(self) -> str | None:
        """
        @return: the present path of the directory whose times a waiting process sets;
            L{None} if inotify would not report that.
        """
        # Inotify does not report changes that another machine makes.
        root = None if self._isSlow or self._held is None else self._held.descriptor()
        return None if root is None else f"/proc/self/fd/{root}/{nameOfStaging(root)}"

    def isWaitedFor(self) -> bool:
        """
        @return: whether another process waits for this mailbox.  Blocks.
        """
        try:
            root = self._root()
            if root is None:
                return False
            try:
                wanted = openDirectory(nameOfStaging(root), root)
            finally:
                closeQuietly(root)
            try:
                fcntl.flock(wanted, fcntl.LOCK_EX | fcntl.LOCK_NB)
            finally:
                closeQuietly(wanted)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def _tryLock(self, recovers: bool = True) -> LockedDirectory | LockBusy | None:
        """
        Lock the mailbox if it is free.

        @param recovers: finish or undo an interrupted removal; if L{False}, a mailbox that
            needs that is reported as L{LockBusy}.
        @return: L{None} if the mailbox does not exist.
        """
        try:
            root = self._place.open()
            if root is None:
                if not recovers and self._presence is not None:
                    # The database may be read in a thread only.
                    return LockBusy()
                super()._checkPresence(None)
                return None
            try:
                if recovers:
                    super()._checkPresence(root)
                fcntl.flock(root, fcntl.LOCK_EX | fcntl.LOCK_NB)
                status = os.fstat(root)
                if recovers:
                    recover(root, self.folders)
                    self._afterLock(root)
                elif not self._registry.cleanCache.isClean(root, status, self.folders):
                    closeQuietly(root)
                    return LockBusy()
            except BaseException:
                closeQuietly(root)
                raise
        except BlockingIOError:
            return LockBusy()
        except OSError as error:
            raise self._fault("lock", error)
        presence, path = self._presence, self._path
        # A mailbox with staging directories is one that pop3svc has used.
        if not recovers and presence is not None and not presence.isKnown(path):
            presence.isThere(path, isInThread=False)
        return LockedDirectory(root, (status.st_dev, status.st_ino))

    def _afterLock(self, root: int) -> None:
        """
        Called in a thread after the mailbox was locked, to prepare the listing.  To be
        overridden.
        """

    def unlock(self, info: IPOP3ConnectionInfo) -> None:
        """
        See L{IExclusiveMailbox.unlock}.
        """
        held, self._held = self._held, None
        listing = self._listing
        self._setListing(MailboxSnapshot())
        if held is None:
            return
        self._registry.remove(self._path)
        self._beforeRelease(held, listing)
        if self._working:
            # A thread still works on the mailbox; keep the lock until it is done.
            self._releasing = held
        else:
            held.close()

    def _beforeRelease(self, held: LockedDirectory, listing: MailboxSnapshot) -> None:
        """
        Called before the lock is released.  Work that is started here still runs under the
        lock.  To be overridden.
        """


def _pause(clock: Any, seconds: float) -> Deferred[None]:
    pause: Deferred[None] = Deferred(lambda _: timer.cancel())
    timer = clock.callLater(seconds, pause.callback, None)
    return pause


def _touch(directory: int) -> None:
    with suppress(OSError):
        os.utime(directory)


def _closeOne(descriptor: int | None) -> None:
    if descriptor is not None:
        closeQuietly(descriptor)


def _release(held: LockedDirectory | LockBusy | None) -> None:
    if isinstance(held, LockedDirectory):
        held.close()
