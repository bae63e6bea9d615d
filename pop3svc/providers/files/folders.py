"""
Open the folders of a mailbox once, and work on many files in them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial

from pop3svc.files import closeQuietly
from pop3svc.providers.files.deletion import Place
from pop3svc.providers.files.sizes import COPIED, GONE, MailboxSizes, MessageInfo, headIn
from pop3svc.providers.files.snapshot import listFolder
from pop3svc.providers.paths import openBelow, uniqueIDFor
from pop3svc.threadpool import isCancelled

__all__ = ["MessageRef", "OpenFolders", "areIdentified", "identify", "identityOf"]

# A listing of at most this number of files calls stat() for each file, because a new file may have
# the inode of the file that it has replaced.  For more files, these calls would take more time than
# the rest of the listing.
_STATTED = 100
# The most searches for a message that was renamed before stat() was called for it.
_LOOKS = 10

# The seconds and microseconds of the delivery of a message, its base name, its unique-id and its
# place.
MessageRef = tuple[int, int, str, str, Place]


class OpenFolders(dict[str, int]):
    """
    Descriptors of the folders of a mailbox.  A folder is opened at its first use.  If a folder does
    not exist, L{FileNotFoundError} is raised.
    """

    def __init__(self, root: int) -> None:
        """
        @param root: a descriptor of the mailbox.
        """
        super().__init__()
        self._root = root

    def __missing__(self, folder: str) -> int:
        descriptor = self[folder] = openBelow(folder, self._root)
        return descriptor

    def __enter__(self) -> OpenFolders:
        return self

    def __exit__(self, *error: object) -> None:
        for descriptor in self.values():
            closeQuietly(descriptor)

    def status(self, place: Place) -> os.stat_result | None:
        """
        @return: the status of a file; L{None} if the file does not exist.
        """
        try:
            return os.lstat(place[1], dir_fd=self[place[0]])
        except FileNotFoundError:
            return None

    def head(self, place: Place) -> int:
        """
        @return: see L{headIn}.
        """
        return headIn(self[place[0]], place[1])


def identityOf(status: os.stat_result) -> str:
    """
    @return: a text that distinguishes a file from all other files, including files that are created
        later.
    """
    return f"{status.st_dev}:{status.st_ino}:{status.st_mtime_ns}"


def identify(
    root: int,
    folders: Sequence[str],
    found: list[MessageRef],
    sizes: MailboxSizes,
    doubts: list[Place],
    comparesAll: bool = False,
) -> None:
    """
    Give a message another unique-id if its file has the name of an earlier file.  Blocks.

    If other programs rename a message during the whole search, the message cannot be identified.
    Then it keeps the unique-id that its name gives.  If this unique-id belongs to another file, the
    message is not listed.

    @param folders: the directories below C{root} that may contain the files.
    @param found: the messages.  This list is changed in place.
    @param sizes: knows to which file each unique-id belongs.
    @param doubts: a list to which the places of messages are added if they could not be identified.
    @param comparesAll: whether to call stat() for each file even if there are many files.
    """
    areFew = comparesAll or len(found) <= _STATTED
    if not areFew and not (sizes.known or sizes.claims or sizes.seen):
        return
    ownerOf = sizes.ownerOf
    suspects = []
    for index, (_, _, _, uniqueID, place) in enumerate(found):
        owner = ownerOf(uniqueID)
        if areFew or (owner is not None and (owner.inode != place[2] or owner.kind == GONE)):
            suspects.append((index, owner))
    renamed: dict[int, tuple[int, MessageInfo | None]] = {}
    with OpenFolders(root) as opened:
        check = partial(_identifyOne, opened, found, sizes)
        for index, owner in suspects:
            place = found[index][4]
            if not check(index, owner, place):
                renamed[place[2] or -index - 1] = index, owner
        _seekRenamed(root, folders, renamed, check)
    # The next scan has to identify the messages that were not found.
    doubts += [found[index][4] for index, _ in renamed.values()]
    unnamed = {index for index, owner in renamed.values() if _isOfAnother(owner, found[index][4])}
    if unnamed:
        found[:] = [each for index, each in enumerate(found) if index not in unnamed]


def _isOfAnother(owner: MessageInfo | None, place: Place) -> bool:
    """
    @param owner: the file to which a unique-id belongs.
    @return: whether the file at C{place} is another file, according to the inodes.
    """
    if owner is None:
        return False
    return owner.kind == GONE or (COPIED != owner.inode != place[2] != 0)


def areIdentified(uniqueIDs: list[str], inodes: list[int], sizes: MailboxSizes) -> bool:
    """
    @param uniqueIDs: the unique-ids of some messages.  The mailbox must have so many messages that
        L{identify} does not call stat() for each file.
    @param inodes: the inode of each message.
    @return: whether L{identify} is not needed, because it would look at no file and would give no
        message another unique-id.
    """
    if not (sizes.known or sizes.claims or sizes.seen):
        return True
    owners: list[MessageInfo | None] = list(map(sizes.known.get, uniqueIDs))
    if not all(owners):
        owners = list(map(sizes.ownerOf, uniqueIDs))
    return not any(
        owner is not None and (owner.inode != inode or owner.kind == GONE)
        for owner, inode in zip(owners, inodes, strict=True)
    )


def _identifyOne(
    opened: OpenFolders,
    found: list[MessageRef],
    sizes: MailboxSizes,
    index: int,
    owner: MessageInfo | None,
    place: Place,
) -> bool:
    """
    @param owner: the file to which the unique-id of C{found[index]} belongs.
    @return: whether the message was found at C{place}.
    """
    seconds, microseconds, base, uniqueID, _ = found[index]
    status = opened.status(place)
    if status is None or place[2] not in (0, status.st_ino):
        return False
    if owner is not None and not owner.isFile(status, partial(opened.head, place)):
        uniqueID = uniqueIDFor(base, identityOf(status))
        owner = sizes.ownerOf(uniqueID)
    if owner is not None and owner.octets >= 0 and not owner.isUnchanged(status):
        # Count the size again, because the same message was written again, possibly with other line
        # ends.
        sizes.forget(uniqueID)
        owner = sizes.ownerOf(uniqueID)
    found[index] = seconds, microseconds, base, uniqueID, place
    if owner is None:
        sizes.see(uniqueID, status)
    elif owner.inode != status.st_ino or owner.kind == GONE:
        sizes.adopt(uniqueID, status.st_ino)
    return True


def _seekRenamed(
    root: int,
    folders: Sequence[str],
    renamed: dict[int, tuple[int, MessageInfo | None]],
    check: Callable[[int, MessageInfo | None, Place], bool],
) -> None:
    """
    Find messages by their inodes, because their names have changed.

    @param renamed: the index and the owner of each message, by inode.  This function removes the
        entries of the messages that it finds.
    """
    for _ in range(_LOOKS if renamed else 0):
        for folder in folders:
            for place in listFolder(root, folder):
                at = renamed.get(place[2])
                if at is not None and check(*at, place):
                    del renamed[place[2]]
        if not renamed or isCancelled():
            break
