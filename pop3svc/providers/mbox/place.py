"""
The path of an mbox file, and the directory that the service keeps beside the file.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from pop3svc.files import closeQuietly
from pop3svc.fileuser import fileUID
from pop3svc.providers.mbox.locks import DotLock, LockedMbox, MboxBusy, lockFile
from pop3svc.providers.mbox.recovery import recover
from pop3svc.providers.paths import Root, openBelow

__all__ = ["MboxPlace", "readOwn"]

T = TypeVar("T")

_OWN_SUFFIX = ".pop3svc"
_OPEN = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class MboxPlace:
    """
    The path of one mbox.  Beside the mbox C{NAME}, the service keeps the directory
    C{.NAME.pop3svc}.  A session locks this directory.  The directory contains the unique-ids of
    deleted messages, temporary files, and replaced files that a program may still have open.

    @ivar path: the path of the mbox, for messages to the operator.
    @ivar own: the path of the directory that the service keeps beside the mbox.
    """

    def __init__(self, root: Root) -> None:
        """
        @param root: the path of the mbox.  The type is L{Root}, although the mbox is not a
            directory.
        """
        self.path = root.path
        self.name = root.parts[-1]
        self._directory = Root(root.base, root.parts[:-1])
        self.own = Root(root.base, (*root.parts[:-1], f".{self.name}{_OWN_SUFFIX}"))

    def openDirectory(self) -> int | None:
        """
        @return: a descriptor of the directory that contains the mbox; L{None} if this directory
            does not exist.
        """
        return self._directory.open()

    def exists(self) -> bool:
        """
        @return: whether the mbox exists.  A file of another kind with the same name counts as well.
            Blocks.
        """
        return self._isThere(self.name)

    def isKnown(self) -> bool:
        """
        @return: whether the mbox exists, or the directory exists that the service keeps beside the
            mbox.  Blocks.
        """
        return self._isThere(self.name, self.own.parts[-1])

    def _isThere(self, *names: str) -> bool:
        directory = self.openDirectory()
        if directory is None:
            return False
        try:
            for name in names:
                with suppress(FileNotFoundError):
                    os.stat(name, dir_fd=directory, follow_symlinks=False)
                    return True
        finally:
            closeQuietly(directory)
        return False

    def makeOwn(self) -> None:
        """
        Create the directory that the service keeps beside the mbox.  Blocks.

        @raise OSError: the directory cannot be created.
        """
        directory = self.openDirectory()
        if directory is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        try:
            with suppress(FileExistsError):
                os.mkdir(self.own.parts[-1], 0o700, dir_fd=directory)
                os.fsync(directory)
        finally:
            closeQuietly(directory)

    @contextmanager
    def reading(self) -> Iterator[tuple[int, os.stat_result] | None]:
        """
        Open the mbox for reading.  Blocks.

        @return: a descriptor and the status of the mbox; L{None} if the mbox does not exist.  The
            descriptor is closed at the end of the context.
        @raise OSError: the mbox is not a regular file, or cannot be opened.
        """
        directory = self.openDirectory()
        if directory is None:
            yield None
            return
        try:
            opened = _open(self.name, directory, os.O_RDONLY)
        finally:
            closeQuietly(directory)
        try:
            yield None if opened is None else (opened, os.fstat(opened))
        finally:
            if opened is not None:
                closeQuietly(opened)

    def openForReading(self) -> int | None:
        """
        @return: a descriptor of the mbox; L{None} if the mbox does not exist.  The caller closes
            the descriptor.
        """
        with self.reading() as opened:
            return None if opened is None else os.dup(opened[0])

    @contextmanager
    def shared(self) -> Iterator[tuple[int, os.stat_result] | None]:
        """
        Open and lock the mbox for reading.  Write nothing to the directory of the mbox.  Blocks.

        @raise MboxBusy: another program has locked the mbox.
        """
        with self.reading() as opened:
            if opened is not None:
                lockFile(opened[0], isShared=True)
                opened = opened[0], os.fstat(opened[0])
            yield opened

    @contextmanager
    def locked(self, create: Callable[[int], int] | None = None) -> Iterator[LockedMbox | None]:
        """
        Open the mbox.  Lock it first by fcntl(), then by a dot-lock.  If a process was killed while
        it changed the mbox, complete or undo the change.  This method blocks, but does not wait for
        a lock.

        @param create: a function that creates the mbox if it does not exist.  The function takes a
            descriptor of the directory and returns a descriptor of the file.
        @return: the locked mbox; L{None} if the mbox does not exist.
        @raise MboxBusy: another program has locked the mbox.
        @raise OSError: the mbox cannot be opened or locked.
        """
        descriptors: list[int] = []
        mbox: LockedMbox | None = None
        dotLock: DotLock | None = None
        try:
            directory = self.openDirectory()
            if directory is None:
                yield None
                return
            descriptors.append(directory)
            own = openBelow(self.own.parts[-1], directory)
            descriptors.append(own)
            _checkOwn(own)
            opened = _open(self.name, directory, os.O_RDWR)
            if opened is None and create is not None:
                opened = create(directory)
            if opened is None:
                yield None
                return
            mbox = LockedMbox(opened, directory, own, self.name)
            lockFile(opened)
            dotLock = DotLock(directory, self.name, own)
            # Check the file again, because another program may have replaced it before it was
            # locked.
            if not _isSame(opened, self.name, directory):
                raise MboxBusy
            recover(mbox)
            yield mbox
        finally:
            if dotLock is not None:
                dotLock.release()
            if mbox is not None:
                closeQuietly(mbox.descriptor)
            for each in reversed(descriptors):
                closeQuietly(each)


def _open(name: str, directory: int, flags: int) -> int | None:
    try:
        descriptor = os.open(name, flags | _OPEN, dir_fd=directory)
    except FileNotFoundError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EPERM, "not a regular file")
    except OSError:
        closeQuietly(descriptor)
        raise
    return descriptor


def _checkOwn(own: int) -> None:
    """
    @raise OSError: the directory that the service keeps beside the mbox belongs to another user.
        That user could make the service lose mail.
    """
    if os.fstat(own).st_uid != fileUID():
        raise OSError(errno.EPERM, "the directory .NAME.pop3svc beside it belongs to another user")


def _isSame(descriptor: int, name: str, directory: int) -> bool:
    try:
        there = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    here = os.fstat(descriptor)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def readOwn(place: MboxPlace, work: Callable[[int], T]) -> T | None:
    """
    Call C{work} with a descriptor of the directory that the service keeps beside the mbox.  Blocks.

    @return: the result of C{work}; L{None} if the directory does not exist.
    """
    directory = place.own.open()
    if directory is None:
        return None
    try:
        return work(directory)
    finally:
        closeQuietly(directory)
