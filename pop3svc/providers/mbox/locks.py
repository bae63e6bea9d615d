"""
Lock mbox files.  The order is that of Debian's policy: first a lock by fcntl(), then a dot-lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from contextlib import suppress
from dataclasses import dataclass

from pop3svc.files import NO_ROOM, closeQuietly, openFile

__all__ = [
    "DotLock",
    "LockedMbox",
    "MboxBusy",
    "isRunning",
    "isSupported",
    "isUnopened",
    "lockFile",
]

# A dot-lock without a process id is stale if it is at least this number of seconds old.  The
# function lockfile_create(3) has the same limit.
_STALE = 300
# The number of octets that are read from a dot-lock.  A process id has at most ten digits.
_CONTENT = 64
# The command of fcntl() for a lock that belongs to a descriptor.  A lock by F_SETLK would belong to
# the process.  The process would lose that lock as soon as it closes any descriptor of the file.
# Locks by F_OFD_SETLK and by F_SETLK exclude each other.
_SET_LOCK: int | None = getattr(fcntl, "F_OFD_SETLK", None)
# The fields of struct flock on Linux: type, whence, start, length, process id.
_FLOCK = "@hhqqi0q"
# The signal that the kernel sends if another program opens a file while this process has a lease
# for the file.  A process ignores this signal by default.
_SIGURG = 23


class MboxBusy(Exception):
    """
    Another program has locked the mbox.
    """


def isSupported() -> bool:
    """
    @return: whether this system has locks by F_OFD_SETLK.
    """
    return _SET_LOCK is not None


def lockFile(descriptor: int, isShared: bool = False) -> None:
    """
    Lock a whole file by fcntl().  The lock ends when the descriptor is closed.

    @param isShared: whether other programs may lock the file for reading at the same time.  The
        descriptor then need not be open for writing.
    @raise MboxBusy: another program has locked the file.
    @raise OSError: the file cannot be locked.
    """
    assert _SET_LOCK is not None
    kind = fcntl.F_RDLCK if isShared else fcntl.F_WRLCK
    try:
        fcntl.fcntl(descriptor, _SET_LOCK, struct.pack(_FLOCK, kind, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise MboxBusy
        raise


def isUnopened(descriptor: int) -> bool:
    """
    Ask the kernel for a lease.  The kernel grants the lease only if no other descriptor of the file
    is open.

    @return: L{True} if no other descriptor of the file is open; L{False} if another descriptor is
        open, or if the file system has no leases.
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, _SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return False
    return True


@dataclass
class LockedMbox:
    """
    An mbox that is open and locked.

    @ivar descriptor: a descriptor of the file, open for reading and writing.
    @ivar directory: a descriptor of the directory that contains the mbox.
    @ivar own: a descriptor of the directory that the service keeps beside the mbox.
    @ivar name: the name of the mbox in the directory.
    """

    descriptor: int
    directory: int
    own: int
    name: str

    def status(self) -> os.stat_result:
        """
        @return: the present status of the file.
        """
        return os.fstat(self.descriptor)


class DotLock:
    """
    The file C{NAME.lock} beside an mbox.
    """

    def __init__(self, directory: int, name: str, own: int) -> None:
        """
        Create the file.  Blocks.

        @param directory: a descriptor of the directory that contains the mbox.
        @param name: the name of the mbox.
        @param own: a descriptor of another directory on the same file system.  The file is created
            there and then linked to its final name.
        @raise MboxBusy: the file exists, and is not stale.
        @raise OSError: the file cannot be created.
        """
        self._directory = directory
        self._name = f"{name}.lock"
        # Create the file with another name and link it, because the creation by open() was not
        # atomic on some network file systems.
        temporary = f"lock-{os.getpid()}-{id(self)}"
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=own)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o644, dir_fd=own)
        try:
            try:
                os.write(descriptor, b"%d\n" % os.getpid())
            except OSError as error:
                # A dot-lock without a process id is valid for some minutes.
                if error.errno not in NO_ROOM:
                    raise
            # Let other users read the file, because their programs check the process id.
            os.fchmod(descriptor, 0o644)
            self._status = os.fstat(descriptor)
            self._link(temporary, own)
        finally:
            closeQuietly(descriptor)
            with suppress(OSError):
                os.unlink(temporary, dir_fd=own)

    def _link(self, temporary: str, own: int) -> None:
        for _ in range(2):
            try:
                os.link(temporary, self._name, src_dir_fd=own, dst_dir_fd=self._directory)
                return
            except FileExistsError:
                if not self._removeStale(own):
                    break
        raise MboxBusy

    def _removeStale(self, own: int) -> bool:
        """
        Remove the existing dot-lock if it is stale.

        @return: whether the dot-lock does not exist any more.
        """
        stale = self._findStale()
        if stale is None:
            return False
        if stale == 0:
            return True
        aside = f"stale-{os.getpid()}-{id(self)}"
        try:
            os.rename(self._name, aside, src_dir_fd=self._directory, dst_dir_fd=own)
        except FileNotFoundError:
            return True
        isRight = os.stat(aside, dir_fd=own, follow_symlinks=False).st_ino == stale
        if not isRight:
            # Put the file back, because another program has just replaced the stale dot-lock by a
            # new dot-lock.
            with suppress(OSError):
                os.link(aside, self._name, src_dir_fd=own, dst_dir_fd=self._directory)
        os.unlink(aside, dir_fd=own)
        return isRight

    def _findStale(self) -> int | None:
        """
        @return: the inode of the existing dot-lock if it is stale; 0 if there is no dot-lock;
            L{None} if the dot-lock is valid.
        """
        try:
            descriptor, status = openFile(self._name, self._directory)
        except FileNotFoundError:
            isThere = _exists(self._name, self._directory)
            return None if isThere else 0
        except PermissionError:
            status = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
            content = b""
        else:
            try:
                content = os.pread(descriptor, _CONTENT, 0)
            finally:
                closeQuietly(descriptor)
        number = content.split(b"\n")[0].strip()
        if number.isdigit() and 0 < int(number) < 2**31:
            # This process has the lock by fcntl(), but has not made a dot-lock yet.  If the
            # dot-lock contains the id of this process, an earlier process with the same id made it,
            # for example in another container.
            isValid = int(number) != os.getpid() and isRunning(int(number))
        else:
            # Compare the time of the dot-lock with the time of a new file on the same file system,
            # because the clock of the file system may differ from the clock of this machine.
            isValid = self._status.st_mtime < status.st_mtime + _STALE
        return None if isValid else status.st_ino

    def release(self) -> None:
        """
        Remove the dot-lock.  Do not remove it if another program has replaced it meanwhile.
        """
        with suppress(OSError):
            status = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
            if status.st_ino == self._status.st_ino and status.st_dev == self._status.st_dev:
                os.unlink(self._name, dir_fd=self._directory)


def _exists(name: str, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def isRunning(process: int) -> bool:
    """
    @return: whether a process of this machine has this id.
    """
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    return True
