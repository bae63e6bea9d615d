"""
Remember the unique-ids of messages that were deleted from an mbox.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from pop3svc.files import closeQuietly, openFile
from pop3svc.listings import isUniqueID
from pop3svc.providers.mbox.scan import readExactly

__all__ = ["NEW", "Gone", "forgetLatest", "loadGone", "writeGone"]

# The first characters in the name of a file that will replace the mbox.  The replacement exchanges
# the names of the new and the old file; see L{rewriting}.
NEW = "new-"
_FILE = "gone"
_MAGIC = "pop3svc-mbox-1"
# The number of unique-ids to remember.  Older unique-ids are forgotten, except those of messages
# with the same digest as a message in the mbox.  This does little harm, because a new message could
# get a forgotten unique-id only if it had the same octets and the same envelope line, or the same
# X-UIDL.
BOUND = 20_000
# The most octets of the file with the unique-ids.  A larger file is considered damaged.
_LARGEST = 268_435_456


@dataclass(frozen=True)
class Gone:
    """
    The unique-ids of deleted messages.

    @ivar uniqueIDs: the unique-ids in the order of the deletions.
    @ivar latest: the number of unique-ids that the latest rewriting of the mbox has added.
    @ivar inode: the inode of the file that the latest rewriting made.
    """

    uniqueIDs: Sequence[str] = ()
    latest: int = 0
    inode: int = 0

    def withMore(self, uniqueIDs: Sequence[str], inode: int, keep: Iterable[str]) -> Gone:
        """
        @param uniqueIDs: the unique-ids of the messages to delete.
        @param inode: the inode of the new file.
        @param keep: the digests of the messages in the mbox.  Unique-ids that begin with one of
            these digests are not forgotten.
        @return: the unique-ids to remember after the deletion.
        """
        before = list(self.uniqueIDs)
        excess = len(before) + len(uniqueIDs) - BOUND
        if excess > 0:
            used = set(keep)
            old = [each for each in before[:excess] if each.partition(".")[0] in used]
            before = old + before[excess:]
        return Gone([*before, *uniqueIDs], len(uniqueIDs), inode)

    def withoutLatest(self) -> Gone:
        """
        @return: the unique-ids that were remembered before the latest rewriting.
        """
        return Gone(self.uniqueIDs[: len(self.uniqueIDs) - self.latest])


def loadGone(own: int, inode: int) -> Gone:
    """
    Read the unique-ids.  Blocks.

    @param own: a descriptor of the directory that the service keeps beside the mbox.
    @param inode: the inode of the mbox.
    @raise OSError: the file with the unique-ids cannot be read, or is damaged.
    """
    gone = _stored(own)
    if gone.latest and gone.inode != inode and _isUnused(own, gone.inode):
        return gone.withoutLatest()
    return gone


def forgetLatest(own: int, inode: int) -> None:
    """
    Forget the unique-ids that a rewriting has added, because the file that it made was not put in
    the place of the mbox.  Write nothing if this rewriting has added no unique-ids, because a full
    disk has no room.  Blocks.

    @param inode: the inode of the file that the rewriting made.
    @raise OSError: see L{writeGone}.
    """
    gone = _stored(own)
    if gone.latest and gone.inode == inode:
        writeGone(own, gone.withoutLatest())


def _stored(own: int) -> Gone:
    try:
        descriptor, status = openFile(_FILE, own)
    except FileNotFoundError:
        return Gone()
    try:
        if status.st_size > _LARGEST:
            raise OSError(errno.EFBIG, "the list of deleted unique-ids is too large")
        data = readExactly(descriptor, status.st_size, 0)
    finally:
        closeQuietly(descriptor)
    return _parsed(data)


def _parsed(data: bytes) -> Gone:
    try:
        head, *lines = data.decode("ascii").split("\n")
        magic, total, latest, inode = head.split(" ")
        uniqueIDs = lines[:-1]
        if (
            magic != _MAGIC
            or int(total) != len(uniqueIDs)
            or not 0 <= int(latest) <= len(uniqueIDs)
            or not all(map(isUniqueID, uniqueIDs))
        ):
            raise ValueError
        return Gone(uniqueIDs, int(latest), int(inode))
    except ValueError:
        raise OSError(errno.EIO, "the list of deleted unique-ids is damaged")


def _isUnused(own: int, inode: int) -> bool:
    """
    @return: whether the file that the latest rewriting made was not put in the place of the mbox.
    """
    for name in os.listdir(own):
        if name.startswith(NEW):
            with suppress(FileNotFoundError):
                if os.stat(name, dir_fd=own, follow_symlinks=False).st_ino == inode:
                    return True
    return False


def writeGone(own: int, gone: Gone) -> None:
    """
    Replace the file with the unique-ids.  The replacement is atomic and durable.  Blocks.

    @raise OSError: the file was not replaced, or the replacement may not be durable.
    """
    head = f"{_MAGIC} {len(gone.uniqueIDs)} {gone.latest} {gone.inode}"
    data = "\n".join([head, *gone.uniqueIDs, ""]).encode("ascii")
    temporary = f"{_FILE}-{os.getpid()}"
    with suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=own)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600, dir_fd=own)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, _FILE, src_dir_fd=own, dst_dir_fd=own)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=own)
        raise
    os.fsync(own)
