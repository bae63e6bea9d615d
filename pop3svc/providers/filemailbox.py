"""
What mailboxes of one file for each message have in common.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from zope.interface import implementer

from pop3svc.calling import Runner
from pop3svc.errors import POP3ResponseError
from pop3svc.files import FileBlocks, countOctets, disk, openDirectory, openRegular
from pop3svc.interfaces import (
    IBulkMessageSizes,
    IExclusiveMailbox,
    IPOP3ConnectionInfo,
    IPOP3Mailbox,
)
from pop3svc.providers.removal import recover, removeAll

__all__ = ["ExclusiveFileMailbox", "FileMailbox", "KnownSizes", "Listing", "Place", "listFolder"]

log = Logger(namespace="pop3svc")

_LOCK_FILE = "pop3svc.lock"

# (directory below the mailbox's root, file name)
Place = tuple[str, str]

# Unique-ids in message-number order, and where each message is.
Listing = dict[str, Place]


class KnownSizes:
    """
    The sizes of files as they are sent, remembered by what the file is: to
    count needs reading, and clients ask at each poll.  Used from threads.
    """

    # About 150 octets each.
    BOUND = 200_000

    def __init__(self) -> None:
        self._sizes: OrderedDict[tuple[int, ...], int] = OrderedDict()
        self._lock = Lock()

    def sizeOf(self, descriptor: int) -> int:
        """
        @return: octets; counted by reading if not known.  Blocks.
        """
        status = os.fstat(descriptor)
        key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        with self._lock:
            if key in self._sizes:
                self._sizes.move_to_end(key)
                return self._sizes[key]
        octets = countOctets(descriptor)
        with self._lock:
            self._sizes[key] = octets
            if len(self._sizes) > self.BOUND:
                self._sizes.popitem(last=False)
        return octets


def listFolder(root: int, folder: str) -> list[str]:
    """
    The names of the regular files in a directory that are not hidden.
    """
    try:
        directory = openDirectory(folder, root)
    except FileNotFoundError:
        return []
    try:
        with os.scandir(directory) as entries:
            return [
                entry.name
                for entry in entries
                if not entry.name.startswith(".") and entry.is_file(follow_symlinks=False)
            ]
    finally:
        os.close(directory)


def _openRoot(path: str) -> int | None:
    """
    @return: a descriptor, or L{None} if there is no such directory.
    @raise OSError: it is there but not to be had.
    """
    try:
        return openDirectory(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
        # A link that the operator made is followed; one that a user made may
        # point at another user's mail.
        status = os.lstat(path)
        if not stat.S_ISLNK(status.st_mode) or status.st_uid not in (0, os.geteuid()):
            raise
        return openDirectory(os.path.realpath(path, strict=True))


class _Held:
    """
    The lock and the directory it is in.
    """

    def __init__(self, root: int, lock: int) -> None:
        self._descriptors = [root, lock]
        # A thread that nobody waits for any more may still look.
        self._guard = Lock()

    def root(self) -> int | None:
        """
        @return: a descriptor of the directory, to be closed by the caller;
            L{None} if the lock was given back.
        """
        with self._guard:
            return os.dup(self._descriptors[0]) if self._descriptors else None

    def close(self) -> None:
        """
        Give the lock back.
        """
        with self._guard:
            while self._descriptors:
                os.close(self._descriptors.pop())


@implementer(IPOP3Mailbox, IBulkMessageSizes)
class FileMailbox:
    """
    A mailbox of one file for each message, below one directory.

    Work that touches directories or reads whole files is done by a runner;
    to open one file is not.
    """

    # The directories below the root that messages may be in.
    folders: Sequence[str] = ()

    def __init__(self, path: str, sizes: KnownSizes, runner: Runner | None = None) -> None:
        """
        @param path: the root; it need not exist.
        """
        self._path = path
        self._sizes = sizes
        self._runner = disk() if runner is None else runner
        self._listing: Listing = {}

    def scan(self, root: int) -> Listing:
        """
        List the messages.  Blocks; to be overridden.
        """
        raise NotImplementedError

    # --- without waiting ------------------------------------------------------

    def _root(self) -> int | None:
        """
        @return: a descriptor of the root, to be closed by the caller.
        """
        return _openRoot(self._path)

    def _open(self, place: Place) -> int | None:
        folder, name = place
        try:
            root = self._root()
            if root is None:
                return None
            try:
                directory = openDirectory(folder, root)
                try:
                    return openRegular(name, directory)
                finally:
                    os.close(directory)
            finally:
                os.close(root)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._fault("open a message of", error)

    def _fault(self, what: str, error: OSError) -> POP3ResponseError:
        log.error("cannot {what} {path}: {error}", what=what, path=self._path, error=error.strerror)
        return POP3ResponseError("The mailbox has a fault.", "SYS/PERM")

    # --- in a thread ----------------------------------------------------------

    def _scanned(self) -> Listing:
        try:
            root = self._root()
            if root is None:
                return {}
            try:
                return self.scan(root)
            finally:
                os.close(root)
        except OSError as error:
            raise self._fault("list", error)

    def _counted(self, places: list[Place]) -> list[int | None]:
        octets: list[int | None] = []
        for place in places:
            descriptor = self._open(place)
            if descriptor is None:
                octets.append(None)
                continue
            try:
                octets.append(self._sizes.sizeOf(descriptor))
            finally:
                os.close(descriptor)
        return octets

    # --- IPOP3Mailbox ---------------------------------------------------------

    async def listMessageUniqueIDs(self, info: IPOP3ConnectionInfo) -> list[str]:
        self._listing = await self._runner.run(self._scanned)
        return list(self._listing)

    async def messageExists(self, info: IPOP3ConnectionInfo, uniqueID: str) -> bool:
        return await self._relocated(uniqueID) is not None

    async def _relocated(self, uniqueID: str) -> Place | None:
        """
        Where is a message now?  Its flags may have changed since the listing.
        """
        place = (await self._runner.run(self._scanned)).get(uniqueID)
        if place is not None:
            self._listing[uniqueID] = place
        return place

    async def messageSize(self, info: IPOP3ConnectionInfo, uniqueID: str) -> int:
        (octets,) = await self._runner.run(self._counted, [self._listing[uniqueID]])
        if octets is None:
            place = await self._relocated(uniqueID)
            if place is not None:
                (octets,) = await self._runner.run(self._counted, [place])
        if octets is None:
            raise POP3ResponseError("That message has gone.")
        return octets

    async def messageSizes(self, info: IPOP3ConnectionInfo, uniqueIDs: list[str]) -> list[int]:
        listing = self._listing
        octets = await self._runner.run(self._counted, [listing[each] for each in uniqueIDs])
        missing = [each for each, size in zip(uniqueIDs, octets, strict=True) if size is None]
        if not missing:
            return [size or 0 for size in octets]
        now = await self._runner.run(self._scanned)
        listing.update({each: now[each] for each in missing if each in now})
        again = await self._runner.run(self._counted, [listing[each] for each in missing])
        found = dict(zip(missing, again, strict=True))
        # One that has gone has no octets left to send.
        return [
            (found.get(each) if size is None else size) or 0
            for each, size in zip(uniqueIDs, octets, strict=True)
        ]

    async def messageContent(self, info: IPOP3ConnectionInfo, uniqueID: str) -> FileBlocks:
        descriptor = self._open(self._listing[uniqueID])
        if descriptor is None:
            place = await self._relocated(uniqueID)
            if place is not None:
                descriptor = self._open(place)
        if descriptor is None:
            raise POP3ResponseError("That message has gone.")
        return FileBlocks(descriptor, lambda: os.close(descriptor), self._runner)

    async def messageDelete(self, info: IPOP3ConnectionInfo, uniqueIDs: list[str]) -> None:
        await self._runner.run(self._removed, list(uniqueIDs))

    def _removed(self, uniqueIDs: list[str]) -> None:
        try:
            root = self._root()
            if root is None:
                return
            try:
                removeAll(root, self.folders, uniqueIDs, self._locator(root))
            finally:
                os.close(root)
        except OSError as error:
            log.error("cannot delete from {path}: {error}", path=self._path, error=error.strerror)
            raise POP3ResponseError("The messages cannot be deleted.", "SYS/PERM")

    def _locator(self, root: int) -> Callable[[str, int], Place | None]:
        """
        Where a message is: at first where it was listed, else where a new
        look finds it.
        """
        now: Listing = {}

        def locate(uniqueID: str, looks: int) -> Place | None:
            nonlocal now
            if not looks:
                return self._listing[uniqueID]
            if looks > 1 or not now:
                now = self.scan(root)
            return now.get(uniqueID)

        return locate


@implementer(IExclusiveMailbox)
class ExclusiveFileMailbox(FileMailbox):
    """
    A L{FileMailbox} that one session may hold, among all processes.  The
    kernel frees the lock when its process dies.
    """

    def __init__(self, path: str, sizes: KnownSizes, runner: Runner | None = None) -> None:
        super().__init__(path, sizes, runner)
        self._held: _Held | None = None

    def _root(self) -> int | None:
        # Of a mailbox that was not there to be locked nothing is shown.
        held = self._held
        return None if held is None else held.root()

    def lock(self, info: IPOP3ConnectionInfo, surrender: Callable[[], bool]) -> Deferred[None]:
        """
        See L{IExclusiveMailbox.lock}.
        """

        def hold(held: _Held | None) -> None:
            self._held = held

        taken: Deferred[Any] = self._runner.run(
            self._taken, abandoned=lambda held: held.close() if held is not None else None
        )
        return taken.addCallback(hold)

    def _taken(self) -> _Held | None:
        try:
            root = _openRoot(self._path)
            if root is None:
                return None
            try:
                lock = self._lockFile(root)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    recover(root, self.folders)
                except BaseException:
                    os.close(lock)
                    raise
            except BaseException:
                os.close(root)
                raise
        except BlockingIOError:
            raise POP3ResponseError("Another session has this mailbox.", "IN-USE")
        except OSError as error:
            raise self._fault("lock", error)
        return _Held(root, lock)

    @staticmethod
    def _lockFile(root: int) -> int:
        # It is never removed: whoever waits for it holds it open.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        lock = os.open(_LOCK_FILE, flags, 0o600, dir_fd=root)
        if not stat.S_ISREG(os.fstat(lock).st_mode):
            os.close(lock)
            raise OSError(errno.EINVAL, f"{_LOCK_FILE} is not a file")
        return lock

    def unlock(self, info: IPOP3ConnectionInfo) -> None:
        """
        See L{IExclusiveMailbox.unlock}.
        """
        held, self._held = self._held, None
        if held is not None:
            held.close()
