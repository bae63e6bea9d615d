"""
Change an mbox.  Messages are added to the end of the file.  To remove messages, the service
replaces the file.  Each change is made completely or not at all.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from pop3svc.files import closeQuietly
from pop3svc.fileuser import fileGIDs, fileUID
from pop3svc.providers.mbox.gone import NEW, Gone, forgetLatest, writeGone
from pop3svc.providers.mbox.locks import LockedMbox, isUnopened, lockFile
from pop3svc.providers.mbox.scan import readExactly
from pop3svc.threadpool import mustStop, reportProgress

__all__ = ["APPEND", "append", "checkOwner", "copyRange", "replaceWithout", "writeAll"]

# The first characters in the name of a file that records an addition to the mbox.
APPEND = "append-"
FROM = b"From "
_COPY = 1_048_576
# The flag RENAME_EXCHANGE of renameat2(2).
_EXCHANGE = 2

# Parts of a file.  Each part is the offset of its first octet and the offset after its last octet.
Ranges = Sequence[tuple[int, int]]
GoneOf = Callable[[int], Gone]


def writeAll(descriptor: int, data: bytes, offset: int) -> None:
    """
    Write all octets at an offset.  Blocks.
    """
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        offset += written
        view = view[written:]


def copyRange(source: int, start: int, end: int, target: int, offset: int) -> int:
    """
    Copy a part of a file.  Blocks.

    @return: the offset in the target after the last copied octet.
    """
    while start < end:
        reportProgress()
        block = readExactly(source, min(_COPY, end - start), start)
        writeAll(target, block, offset)
        start += len(block)
        offset += len(block)
    return offset


def exchange(first: tuple[int, str], second: tuple[int, str]) -> None:
    """
    Exchange two files atomically.

    @param first: a descriptor of a directory, and the name of a file in it.
    @param second: a descriptor of the directory and the name of the other file.
    @raise OSError: nothing was exchanged.
    """
    call: Any = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    names = os.fsencode(first[1]), os.fsencode(second[1])
    if call(first[0], names[0], second[0], names[1], ctypes.c_uint(_EXCHANGE)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _takeOver(new: int, old: int, status: os.stat_result) -> None:
    """
    Give a new file the owner, the mode and the attributes of another file.

    @raise OSError: the owner cannot be kept.
    """
    os.fchown(new, status.st_uid, status.st_gid)
    os.fchmod(new, status.st_mode & 0o7777)
    # Ignore the error, because some file systems have no attributes.  The attributes include access
    # control lists.
    with suppress(OSError):
        for name in os.listxattr(old):
            with suppress(OSError):
                os.setxattr(new, name, os.getxattr(old, name))


def checkOwner(mbox: LockedMbox) -> None:
    """
    Check whether the service may give a file to the owner of the mbox.  Blocks.

    @raise OSError: the service may not give files to this owner.  The service could therefore not
        delete messages.
    """
    status = mbox.status()
    if not fileUID():
        return
    if status.st_uid == fileUID() and status.st_gid in fileGIDs():
        return
    temporary = f"{NEW}0-0"
    descriptor = _create(mbox.own, temporary)
    try:
        os.fchown(descriptor, status.st_uid, status.st_gid)
    except PermissionError:
        raise OSError(
            errno.EPERM,
            f"its owner, user {status.st_uid} and group {status.st_gid}, cannot be kept when "
            "messages are deleted: run the service as that user or as root, or use readonly=yes",
        )
    finally:
        closeQuietly(descriptor)
        os.unlink(temporary, dir_fd=mbox.own)


def _create(own: int, name: str) -> int:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=own)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, 0o600, dir_fd=own)


def replaceWithout(mbox: LockedMbox, removed: Ranges, after: GoneOf | None) -> None:
    """
    Replace the mbox by a new file that lacks some parts of the old mbox.  Blocks.

    The old and the new file exchange their names in one atomic step.  The old file is kept while a
    program has it open, but not much longer than an hour.  A program that waits for the lock of the
    old file will add its message to the old file.  The module L{recovery} then moves the message.

    @param removed: the parts to remove, in ascending order.
    @param after: takes the inode of the new file and returns the unique-ids of all deleted
        messages, including the removed ones; L{None} if no listed message is removed.
    @raise OSError: nothing was removed.
    """
    status = mbox.status()
    temporary = f"{NEW}{status.st_ino}-{status.st_size}"
    new = _create(mbox.own, temporary)
    try:
        _takeOver(new, mbox.descriptor, status)
        target, at = 0, 0
        for start, end in [*removed, (status.st_size, status.st_size)]:
            target = copyRange(mbox.descriptor, at, start, new, target)
            at = end
        # Keep the times of the old file, because programs that look for new mail compare the times.
        os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
        os.fsync(new)
        lockFile(new)
        if after is not None:
            writeGone(mbox.own, after(os.fstat(new).st_ino))
        exchange((mbox.own, temporary), (mbox.directory, mbox.name))
    except BaseException:
        with suppress(OSError):
            _discard(mbox, new, temporary)
        closeQuietly(new)
        raise
    old, mbox.descriptor = mbox.descriptor, new
    try:
        os.fsync(mbox.directory)
        os.fsync(mbox.own)
        if isUnopened(old):
            os.unlink(temporary, dir_fd=mbox.own)
    except OSError:
        # Ignore the error, because the messages are deleted already.  The next lock removes the old
        # file.
        pass
    finally:
        closeQuietly(old)


def _discard(mbox: LockedMbox, new: int, name: str) -> None:
    """
    Remove a new file, unless it has got the place of the mbox.  Some file systems report an error
    although they have exchanged the files.
    """
    status = os.fstat(new)
    if os.path.samestat(status, os.stat(name, dir_fd=mbox.own, follow_symlinks=False)):
        # Free the room first, because a full disk may have no room for the list.
        os.ftruncate(new, 0)
        forgetLatest(mbox.own, status.st_ino)
        os.unlink(name, dir_fd=mbox.own)


def separator(mbox: LockedMbox) -> bytes:
    """
    @return: the line ends that have to be added to the end of the mbox, so that there is an empty
        line before the next envelope line.
    """
    size = mbox.status().st_size
    last = readExactly(mbox.descriptor, min(size, 3), max(size - 3, 0))
    if not last.strip(b"\r\n") and size <= 3:
        return b""
    if last.endswith((b"\n\n", b"\n\r\n")):
        return b""
    return b"\n" if last.endswith(b"\n") else b"\n\n"


def _checkCancelled() -> None:
    if mustStop():
        raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))


def append(mbox: LockedMbox, length: int, pieces: Iterable[bytes]) -> None:
    """
    Add a message with its envelope line.  The message is durable after the call.  Blocks.

    The file gets its new size before anything is written.  The beginning of the envelope line is
    written last.  L{recovery} can therefore find the message, and find out whether it is complete.

    @param length: the number of octets of all pieces together.
    @param pieces: the octets of the message.  The first piece begins with the envelope line.
    @raise OSError: nothing was added.
    """
    status = mbox.status()
    first = separator(mbox)
    lead = first + FROM
    size, total = status.st_size, len(first) + length
    record = f"{APPEND}{status.st_ino}-{size}-{total}-{len(first)}"
    closeQuietly(_create(mbox.own, record))
    try:
        os.fsync(mbox.own)
        os.ftruncate(mbox.descriptor, size + total)
        at, skipped = size + len(lead), len(FROM)
        for piece in pieces:
            _checkCancelled()
            part = piece[skipped:]
            skipped -= len(piece) - len(part)
            writeAll(mbox.descriptor, part, at)
            at += len(part)
        if at != size + total:
            raise OSError(errno.EIO, "the message changed while it was written")
        os.fsync(mbox.descriptor)
        # Check again, because nobody would learn of a message that is stored now.
        _checkCancelled()
        writeAll(mbox.descriptor, lead, size)
        os.fsync(mbox.descriptor)
    except BaseException:
        os.ftruncate(mbox.descriptor, size)
        with suppress(OSError):
            os.unlink(record, dir_fd=mbox.own)
        raise
    with suppress(OSError):
        os.unlink(record, dir_fd=mbox.own)
