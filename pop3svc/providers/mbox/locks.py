"""
Lock mbox files as Debian's policy requires: fcntl() first, then a dot-lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from contextlib import suppress
from dataclasses import dataclass

from pop3svc.files import closeQuietly, openFile

__all__ = [
    "DotLock",
    "LockedMbox",
    "MboxBusy",
    "isRunning",
    "isSupported",
    "isUnopened",
    "lockFile",
]

# Seconds from which a dot-lock without a process id is stale, as for lockfile_create(3).
_STALE = 300
# Octets of a dot-lock that are read; a process id has at most ten digits.
_CONTENT = 64
# Locks that belong to a descriptor.  A lock by F_SETLK would belong to the process, and the process
# would lose it by closing any descriptor of the file.  A lock of either kind excludes a lock of the
# other kind.
_SET_LOCK: int | None = getattr(fcntl, "F_OFD_SETLK", None)
# struct flock of Linux: type, whence, start, length, process id.
_FLOCK = "@hhqqi0q"
# The signal that the kernel sends when another program opens a leased file.  It is ignored by
# default.
_SIGURG = 23


class MboxBusy(Exception):
    """
    Another program has locked the mbox.
    """


def isSupported() -> bool:
    """
    @return: whether this system has the required locks.
    """
    return _SET_LOCK is not None


def lockFile(descriptor: int, isShared: bool = False) -> None:
    """
    Lock a whole file by fcntl(), until the descriptor is closed.

    @param isShared: lock for reading; the descriptor need not be open for writing.
    @raise MboxBusy: another program has locked it.
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

    @return: whether no other descriptor of the file is open; L{False} also if the file system
        has no leases.
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

    @ivar descriptor: the file, open for reading and writing.
    @ivar directory: a descriptor of the mbox's directory.
    @ivar own: a descriptor of the service's directory beside the mbox.
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

        @param directory: a descriptor of the mbox's directory.
        @param name: the name of the mbox.
        @param own: a descriptor of a directory for the file before it is linked, on the same
            file system.
        @raise MboxBusy: the file exists, and is not stale.
        @raise OSError: the file cannot be created.
        """
        self._directory = directory
        self._name = f"{name}.lock"
        # Link the file instead of creating it by open(), which was not atomic on some network
        # file systems.
        temporary = f"lock-{os.getpid()}-{id(self)}"
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=own)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o644, dir_fd=own)
        try:
            os.write(descriptor, b"%d\n" % os.getpid())
            # The programs of other users may read the process id.
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
        Remove the present file if it is stale.

        @return: whether the file no longer exists.
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
            # Another program has replaced the stale file just now.
            with suppress(OSError):
                os.link(aside, self._name, src_dir_fd=own, dst_dir_fd=self._directory)
        os.unlink(aside, dir_fd=own)
        return isRight

    def _findStale(self) -> int | None:
        """
        @return: the inode of the present file if the file is stale; 0 if no file exists; L{None} if
            the file is valid.
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
            # This process holds the lock by fcntl() now, but has not made a dot-lock yet.  A
            # dot-lock with its process id therefore belongs to an earlier process, for example in
            # another container.
            isValid = int(number) != os.getpid() and isRunning(int(number))
        else:
            # Compare with a time of the same file system, because its clock may differ.
            isValid = self._status.st_mtime < status.st_mtime + _STALE
        return None if isValid else status.st_ino

    def release(self) -> None:
        """
        Remove the file, if it is still the file that this object has created.
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
