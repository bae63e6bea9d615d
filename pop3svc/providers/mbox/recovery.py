"""
Complete or undo the changes of processes that were killed.  If another program has added mail to a
file after the service had replaced this file, move the mail to the new file.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress

from pop3svc.files import NO_ROOM, closeQuietly
from pop3svc.providers.mbox.gone import NEW, forgetLatest
from pop3svc.providers.mbox.locks import LockedMbox, MboxBusy, isRunning, isUnopened, lockFile
from pop3svc.providers.mbox.rewriting import APPEND, FROM, append, replaceWithout
from pop3svc.providers.mbox.scan import readExactly

__all__ = ["recover"]

_NEW = re.compile(re.escape(NEW) + r"([0-9]{1,20})-([0-9]{1,19})")
_APPEND = re.compile(re.escape(APPEND) + r"([0-9]{1,20})-([0-9]{1,19})-([0-9]{1,19})-([0-2])")
_LEFT = re.compile(r"(?:lock|stale|gone)-([0-9]{1,10}).*")
# A recovery removes a replaced file if no program has the file open, or if the last change of the
# file was this number of seconds ago.  No delivery agent waits that long for a lock.  A temporary
# file of this age is removed even if its process seems to run.
_KEPT = 3600
_BLOCK = 1_048_576


def recover(mbox: LockedMbox) -> None:
    """
    Complete or undo the change of a process that was killed.  Blocks.

    @raise OSError: the change can neither be completed nor undone now.
    """
    names = sorted(os.listdir(mbox.own))
    for name in names:
        added = _APPEND.fullmatch(name)
        if added is not None:
            inode, size, total, pad = map(int, added.groups())
            _recoverAppend(mbox, inode, size, total, b"\n" * pad)
            os.unlink(name, dir_fd=mbox.own)
    for name in names:
        replaced = _NEW.fullmatch(name)
        if replaced is not None:
            _recoverNew(mbox, name, int(replaced[1]), int(replaced[2]))
        else:
            _removeLeft(mbox.own, name)


def _removeLeft(own: int, name: str) -> None:
    """
    Remove a temporary file of a process that was killed.
    """
    left = _LEFT.fullmatch(name)
    if left is None:
        return
    with suppress(FileNotFoundError):
        made = os.stat(name, dir_fd=own, follow_symlinks=False).st_mtime
        # Also look at the age of the file.  If the process ran in another container, a process with
        # the same id may run here.
        if not isRunning(int(left[1])) or time.time() - made > _KEPT:
            os.unlink(name, dir_fd=own)


def _recoverAppend(mbox: LockedMbox, inode: int, size: int, total: int, pad: bytes) -> None:
    """
    Remove a message that a killed process has added incompletely.
    """
    status = mbox.status()
    if status.st_ino != inode or status.st_size < size + total:
        # Either another program has replaced the file, or the process was killed before it added
        # anything.
        return
    lead = pad + FROM
    found = readExactly(mbox.descriptor, len(lead), size)
    if found == lead or not lead.startswith(found.rstrip(b"\0")):
        return
    if status.st_size == size + total:
        os.ftruncate(mbox.descriptor, size)
        os.fsync(mbox.descriptor)
    else:
        # Another program has added a message after the incomplete one.
        replaceWithout(mbox, [(size, size + total)], None)


def _recoverNew(mbox: LockedMbox, name: str, inode: int, size: int) -> None:
    """
    Remove the file that a rewriting has left.  It is either a new file that did not replace the
    mbox, or the old file that was replaced.  Keep an old file that a program may have open, for at
    most L{_KEPT} seconds.
    """
    try:
        descriptor = os.open(
            name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=mbox.own
        )
    except FileNotFoundError:
        return
    try:
        status = os.fstat(descriptor)
        if status.st_ino != inode:
            if status.st_nlink == 1:
                # Free the room first, because a full disk may have no room for the list.
                os.ftruncate(descriptor, 0)
            try:
                forgetLatest(mbox.own, status.st_ino)
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                # Keep the file, because it shows that the list has too many unique-ids.
                return
            os.unlink(name, dir_fd=mbox.own)
            return
        try:
            lockFile(descriptor)
        except MboxBusy:
            # Another program is adding a message to the old file.  The next call moves this
            # message.
            return
        end = os.fstat(descriptor).st_size
        if end > size:
            _moveGrowth(mbox, descriptor, size, end)
        if isUnopened(descriptor) or time.time() - status.st_ctime > _KEPT:
            os.unlink(name, dir_fd=mbox.own)
    finally:
        closeQuietly(descriptor)


def _moveGrowth(mbox: LockedMbox, old: int, size: int, end: int) -> None:
    # Skip line ends, because some programs write an empty line before the envelope line.
    lead = readExactly(old, min(4, end - size), size)
    start = size + len(lead) - len(lead.lstrip(b"\r\n"))
    length = end - start
    if readExactly(old, min(len(FROM), length), start) == FROM and not _endsWith(
        mbox, old, start, end
    ):
        append(mbox, length, (_block(old, at, end) for at in range(start, end, _BLOCK)))
    os.ftruncate(old, size)
    os.fsync(old)


def _block(old: int, at: int, end: int) -> bytes:
    return readExactly(old, min(_BLOCK, end - at), at)


def _endsWith(mbox: LockedMbox, old: int, size: int, end: int) -> bool:
    """
    @return: whether the mbox already ends with the part that was added to the old file.  This
        happens if a process was killed after it had moved the part.
    """
    there = mbox.status().st_size
    if there < end - size:
        return False
    offset = there - (end - size)
    return all(
        _block(old, at, end)
        == readExactly(mbox.descriptor, min(_BLOCK, end - at), offset + at - size)
        for at in range(size, end, _BLOCK)
    )
