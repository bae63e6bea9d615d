"""
Use the quota file of Maildir++.  This module checks the limits for new messages, and records
deliveries and deletions.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from pop3svc.errors import OverQuota
from pop3svc.files import closeQuietly, openDirectory, openRegular
from pop3svc.fileuser import fileUID
from pop3svc.providers.files.deletion import Place
from pop3svc.providers.paths import openBelow

__all__ = ["checkQuota", "recordDeletion", "recordDelivery"]

_NAME = "maildirsize"
# The form of the first line.  It limits the octets, the messages, or both.
_QUOTA = re.compile(rb"[0-9]+[SC](?:,[0-9]+[SC])?\n")
_SIZE = re.compile(r",S=([0-9]{1,15})(?![0-9])")
_LIMIT = re.compile(rb"([0-9]{1,18})([SC])")
# The form of the other lines: octets and messages, which may be padded with spaces.
_CHANGE = re.compile(rb" *(-?[0-9]{1,18}) +(-?[0-9]{1,18}) *")
# The messages are counted again if the file has more than _LONGEST octets.  They are also counted
# again if the mailbox seems full, because the file may be wrong.  A full mailbox is not counted
# again if the last count was less than _OLDEST seconds ago and the file has not changed since then.
_LONGEST = 5120
_OLDEST = 900


def recordDeletion(root: int, files: Sequence[tuple[Place, os.stat_result]]) -> None:
    """
    If the Maildir has the file C{maildirsize}, add a line for removed messages.  If the line cannot
    be written, the mailbox seems fuller than it is, until its messages are counted again.  Blocks.

    @param root: a descriptor of the Maildir.
    """
    if not files:
        return
    octets = 0
    for (_, name, _), status in files:
        found = _SIZE.search(name)
        octets += status.st_size if found is None else int(found[1])
    with suppress(OSError):
        flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(_NAME, flags, dir_fd=root)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                return
            if _QUOTA.match(os.pread(descriptor, 64, 0)) is None:
                # Write nothing, because the file contains no limit.
                return
            line = b"%d %d\n" % (-octets, -len(files))
            if status.st_size and os.pread(descriptor, 1, status.st_size - 1) != b"\n":
                line = b"\n" + line
            os.write(descriptor, line)
        finally:
            closeQuietly(descriptor)


class _Use(NamedTuple):
    """
    The content of C{maildirsize}.

    @ivar first: the first line, which contains the limits.
    @ivar octets: the sum of the octets in all other lines; L{None} if the messages have to be
        counted again.
    @ivar isFresh: whether the messages were counted recently, and the file has not changed since
        then.
    """

    first: bytes
    octets: int | None
    messages: int
    isFresh: bool

    def admits(self, size: int) -> bool:
        """
        @return: whether there is room for a message of C{size} octets.
        """
        limits = {kind: int(number) for number, kind in _LIMIT.findall(self.first)}
        # A limit of 0 means that there is no limit.
        octets, messages = limits.get(b"S", 0), limits.get(b"C", 0)
        used = self.octets or 0
        return (not octets or used + size <= octets) and (
            not messages or self.messages + 1 <= messages
        )


def checkQuota(root: int, size: int) -> None:
    """
    If the Maildir has the file C{maildirsize}, check that there is room for another message.  Count
    the messages again if the file is too long, if a line after the first is damaged, or if the
    mailbox seems full and was not counted recently.  Blocks.

    @param root: a descriptor of the Maildir.
    @param size: the size of the message's file in octets.
    @raise OverQuota: the mailbox has no room.
    @raise OSError: the messages cannot be counted.
    """
    use = _read(root)
    if use is None:
        return
    if use.octets is None or not (use.admits(size) or use.isFresh):
        use = _count(root, use.first)
    if not use.admits(size):
        raise OverQuota("The mailbox is full.")


def recordDelivery(root: int, size: int) -> None:
    """
    If the Maildir has the file C{maildirsize}, add a line for a new message.  If the line cannot be
    written, ignore the error.  The message is stored already, and the messages are counted again
    when the mailbox seems full.  Blocks.

    @param root: a descriptor of the Maildir.
    @param size: the size of the message's file in octets.
    """
    with suppress(OSError):
        flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(_NAME, flags, dir_fd=root)
        try:
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
                os.write(descriptor, b"%d 1\n" % size)
        finally:
            closeQuietly(descriptor)


def _read(root: int) -> _Use | None:
    """
    @return: the content of the file; L{None} if there is no file, or if it contains no limit.
    """
    try:
        descriptor = openRegular(_NAME, root)
    except OSError:
        return None
    with open(descriptor, "rb") as file:
        data = file.read(_LONGEST + 1)
        age = time.time() - os.fstat(descriptor).st_mtime
    if _QUOTA.match(data) is None:
        # There is no limit, because only the first line can contain one.
        return None
    first, *changes, rest = data.split(b"\n")
    octets = messages = 0
    for line in changes:
        found = _CHANGE.fullmatch(line)
        if found is None:
            return _Use(first, None, 0, False)
        octets += int(found[1])
        messages += int(found[2])
    if rest or octets < 0 or messages < 0 or len(data) > _LONGEST:
        return _Use(first, None, 0, False)
    return _Use(first, octets, messages, len(changes) <= 1 and age < _OLDEST)


def _count(root: int, first: bytes) -> _Use:
    """
    Count the messages of the Maildir and of its folders, and write the numbers to the file.
    """
    octets = messages = 0
    folders = [".", *(each.name for each in _entries(root, ".") if each.name[:1] == ".")]
    for folder in folders:
        for part in ("new", "cur"):
            for entry in _entries(root, f"{folder}/{part}"):
                if entry.name.startswith("."):
                    continue
                found = _SIZE.search(entry.name)
                with suppress(FileNotFoundError):
                    octets += (
                        entry.stat(follow_symlinks=False).st_size
                        if found is None
                        else int(found[1])
                    )
                    messages += 1
    _write(root, first + b"\n%d %d\n" % (octets, messages))
    return _Use(first, octets, messages, True)


def _entries(root: int, path: str) -> Iterator[os.DirEntry[str]]:
    """
    List a directory in the Maildir.  Follow links under the conditions of L{openBelow}.
    """
    descriptor = openDirectory(".", root)
    try:
        for part in path.split("/"):
            below = openBelow(part, descriptor)
            closeQuietly(descriptor)
            descriptor = below
        with os.scandir(descriptor) as entries:
            yield from entries
    except OSError as error:
        # A link that is not followed is not counted.
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
    finally:
        closeQuietly(descriptor)


def _write(root: int, data: bytes) -> None:
    """
    Replace the file.  If this fails, the previous file stays, and the next delivery counts the
    messages again.
    """
    temporary = f"{_NAME}.{os.getpid()}.{time.time_ns()}"
    with suppress(OSError):
        # Use a descriptor, because the owner of the Maildir may replace "tmp" by a link.
        tmp = openBelow("tmp", root)
        try:
            _create(temporary, tmp, data, os.fstat(root))
            os.rename(temporary, _NAME, src_dir_fd=tmp, dst_dir_fd=root)
        except OSError:
            os.unlink(temporary, dir_fd=tmp)
        finally:
            closeQuietly(tmp)


def _create(name: str, directory: int, data: bytes, owner: os.stat_result) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o600, dir_fd=directory)
    try:
        if fileUID() == 0:
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        if os.write(descriptor, data) != len(data):
            raise OSError
    finally:
        closeQuietly(descriptor)
