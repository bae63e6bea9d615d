"""
Complete or undo the change of a killed process, and move mail that another program has added to a
replaced file.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress

from pop3svc.files import closeQuietly
from pop3svc.providers.mbox.gone import NEW, Gone, loadGone, writeGone
from pop3svc.providers.mbox.locks import LockedMbox, MboxBusy, isRunning, isUnopened, lockFile
from pop3svc.providers.mbox.rewriting import APPEND, FROM, append, replaceWithout
from pop3svc.providers.mbox.scan import readExactly

__all__ = ["recover"]

_NEW = re.compile(re.escape(NEW) + r"([0-9]{1,20})-([0-9]{1,19})")
_APPEND = re.compile(re.escape(APPEND) + r"([0-9]{1,20})-([0-9]{1,19})-([0-9]{1,19})-([0-2])")
_LEFT = re.compile(r"(?:lock|stale|gone)-([0-9]{1,10}).*")
# If the kernel cannot say whether a program has a replaced file open, the file is kept for this
# number of seconds.  No delivery agent waits that long for a lock.
_KEPT = 3600
_BLOCK = 1_048_576


def recover(mbox: LockedMbox) -> None:
    """
    Complete or undo the change of a killed process.  Blocks.

    @raise OSError: this is not possible now.
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
    Remove a file that a killed process has made.
    """
    left = _LEFT.fullmatch(name)
    if left is None:
        return
    with suppress(FileNotFoundError):
        made = os.stat(name, dir_fd=own, follow_symlinks=False).st_mtime
        # The process with this id may run in another container.
        if not isRunning(int(left[1])) or time.time() - made > _KEPT:
            os.unlink(name, dir_fd=own)


def _recoverAppend(mbox: LockedMbox, inode: int, size: int, total: int, pad: bytes) -> None:
    """
    Remove an incomplete message.
    """
    status = mbox.status()
    if status.st_ino != inode or status.st_size < size + total:
        # Another program has replaced the file, or the addition had not begun.
        return
    lead = pad + FROM
    found = readExactly(mbox.descriptor, len(lead), size)
    if found == lead or not lead.startswith(found.rstrip(b"\0")):
        return
    if status.st_size == size + total:
        os.ftruncate(mbox.descriptor, size)
        os.fsync(mbox.descriptor)
    else:
        # Another program has added a message meanwhile.
        replaceWithout(mbox, [(size, size + total)], Gone(), None)


def _recoverNew(mbox: LockedMbox, name: str, inode: int, size: int) -> None:
    """
    Remove the file of a rewriting: an unused new file, or an old file.
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
            gone = loadGone(mbox.own, mbox.status().st_ino)
            writeGone(mbox.own, Gone(gone.uniqueIDs))
            os.unlink(name, dir_fd=mbox.own)
            return
        try:
            lockFile(descriptor)
        except MboxBusy:
            # Another program is adding a message to the old file; the next lock moves it.
            return
        end = os.fstat(descriptor).st_size
        if end > size:
            _moveGrowth(mbox, descriptor, size, end)
        if isUnopened(descriptor) or time.time() - status.st_ctime > _KEPT:
            os.unlink(name, dir_fd=mbox.own)
    finally:
        closeQuietly(descriptor)


def _moveGrowth(mbox: LockedMbox, old: int, size: int, end: int) -> None:
    length = end - size
    if readExactly(old, min(len(FROM), length), size) == FROM and not _endsWith(
        mbox, old, size, end
    ):
        append(mbox, length, (_block(old, at, end) for at in range(size, end, _BLOCK)))
    os.ftruncate(old, size)
    os.fsync(old)


def _block(old: int, at: int, end: int) -> bytes:
    return readExactly(old, min(_BLOCK, end - at), at)


def _endsWith(mbox: LockedMbox, old: int, size: int, end: int) -> bool:
    """
    @return: whether the mbox already ends with the new part of the old file.  This is so if a
        process has moved the part, and was killed afterwards.
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
