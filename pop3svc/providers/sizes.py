"""
The sizes of a Maildir's messages, counted once and kept in a file of it.

The file C{pop3svc-sizes} begins with a line that tells its version; blocks
follow, each a line with its length and checksum and then a line for each
message.  It is only ever added to, or replaced as a whole; what is damaged is
not believed, and written anew.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from threading import Lock
from typing import NamedTuple
from zlib import crc32

from pop3svc.files import closeQuietly, openRegular

__all__ = ["Examined", "Key", "MailboxSizes", "SharedSizes", "markOf"]

_NAME = "pop3svc-sizes"
_VERSION = b"pop3svc-sizes 2\n"
# Octets; a million messages have not so many.
_LONGEST = 33_554_432
# A file with so many more entries than there are messages is written anew.
_SPARE = 1000

# (device, inode) of a Maildir
Key = tuple[int, int]


class Examined(NamedTuple):
    """
    What reading a message has told.

    @ivar octets: as it is sent, without dot-stuffing.
    @ivar mark: of the file that was read; see L{markOf}.
    @ivar isAsSent: the file is to the octet what is sent: its line ends are
        CRLF, the last one there, and no line begins with a dot.
    """

    octets: int
    mark: int
    isAsSent: bool


def markOf(status: os.stat_result) -> int:
    """
    @return: what tells a file from what it was before somebody wrote to it,
        though nobody should.
    """
    return (status.st_size * 0x9E3779B1 ^ status.st_mtime_ns) & 0xFFFFFFFFFFFFFFFF


class MailboxSizes:
    """
    What is known of the messages of one Maildir, by unique-id.  A mailbox has
    it to itself while it is locked.
    """

    def __init__(self) -> None:
        self.known: dict[str, Examined] = {}
        self.isLoaded = False
        # How many entries the file has, more than once for some; -1: it is
        # damaged, or not there.
        self._written = -1
        # The sizes of a whole listing, which its sessions ask for one after
        # the other.
        self._whole: tuple[Sequence[str], list[int]] = (), []

    def octetsOf(self, uniqueIDs: Sequence[str]) -> list[int] | None:
        """
        @param uniqueIDs: not to be changed afterwards.
        @return: the sizes of messages, not to be changed; L{None} if they are
            not all known.
        """
        if self._whole[0] is not uniqueIDs:
            try:
                octets = [each.octets for each in map(self.known.__getitem__, uniqueIDs)]
            except KeyError:
                return None
            self._whole = uniqueIDs, octets
        return self._whole[1]

    def learn(self, added: Mapping[str, Examined]) -> None:
        """
        Add to what is known, and keep nothing.
        """
        self._whole = (), []
        self.known.update(added)

    def forget(self, uniqueID: str) -> None:
        """
        What is known of a message is not true any more.
        """
        self._whole = (), []
        self.known.pop(uniqueID, None)

    def load(self, root: int, listed: Collection[str]) -> None:
        """
        Read what is kept, once.  Blocks.

        @param root: a descriptor of the Maildir.
        @param listed: the unique-ids that there are; others are not wanted.
        """
        if self.isLoaded:
            return
        self.isLoaded = True
        octets = _read(root)
        if not octets.startswith(_VERSION):
            return
        offset = len(_VERSION)
        self._written = 0
        while offset < len(octets):
            end = octets.find(b"\n", offset, offset + 64)
            try:
                length, checksum = (int(word, 16) for word in octets[offset:end].split())
                block = octets[end + 1 : end + 1 + length]
                if end < 0 or len(block) != length or crc32(block) != checksum:
                    raise ValueError
                words = block.decode("ascii").split()
                examined = map(
                    Examined,
                    map(int, words[1::4]),
                    map(int, words[2::4]),
                    map("1".__eq__, words[3::4]),
                )
                self.known.update(
                    (uniqueID, each)
                    for uniqueID, each in zip(words[0::4], examined, strict=True)
                    if uniqueID in listed and each.octets >= 0
                )
            except ValueError:
                self._written = -1
                return
            self._written += len(words) // 4
            offset = end + 1 + length

    def keep(self, root: int, added: Mapping[str, Examined], listed: Collection[str]) -> None:
        """
        Add to what is kept.  Blocks.

        @param listed: the unique-ids that there are.
        """
        self.learn(added)
        if len(self.known) > 2 * len(listed) + _SPARE:
            self.known = {each: self.known[each] for each in listed if each in self.known}
        try:
            if self._written < 0 or self._written + len(added) > 2 * len(self.known) + _SPARE:
                self._writeAnew(root)
            else:
                self._append(root, added)
        except OSError:
            # They are counted again another time.
            self._written = -1

    def _writeAnew(self, root: int) -> None:
        temporary = f"{_NAME}.{os.getpid()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(temporary, flags, 0o600, dir_fd=root)
        except FileExistsError:
            os.unlink(temporary, dir_fd=root)
            descriptor = os.open(temporary, flags, 0o600, dir_fd=root)
        try:
            _writeAll(descriptor, _VERSION + _block(self.known))
            os.rename(temporary, _NAME, src_dir_fd=root, dst_dir_fd=root)
        except OSError:
            os.unlink(temporary, dir_fd=root)
            raise
        finally:
            closeQuietly(descriptor)
        self._written = len(self.known)

    def _append(self, root: int, added: Mapping[str, Examined]) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(_NAME, flags, dir_fd=root)
        try:
            status = os.fstat(descriptor)
            isOwn = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
            if not isOwn or status.st_uid != os.geteuid() or status.st_size > _LONGEST // 2:
                raise OSError(errno.EPERM, "not a file of ours")
            _writeAll(descriptor, _block(added))
        finally:
            closeQuietly(descriptor)
        self._written += len(added)


def _read(root: int) -> bytes:
    try:
        descriptor = openRegular(_NAME, root)
    except OSError:
        return b""
    try:
        if os.fstat(descriptor).st_size > _LONGEST:
            return b""
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(_LONGEST)
    except OSError:
        return b""
    finally:
        closeQuietly(descriptor)


def _block(entries: Mapping[str, Examined]) -> bytes:
    lines = [
        f"{uniqueID} {each.octets} {each.mark} {each.isAsSent:d}\n"
        for uniqueID, each in entries.items()
    ]
    block = "".join(lines).encode("ascii")
    return b"%x %x\n" % (len(block), crc32(block)) + block


def _writeAll(descriptor: int, octets: bytes) -> None:
    left = memoryview(octets)
    while left:
        left = left[os.write(descriptor, left) :]


class SharedSizes:
    """
    The sizes of the mailboxes of one store: those that were used last stay in
    memory.  Used from threads.
    """

    # Messages in all; some 200 octets each.
    BOUND = 500_000

    def __init__(self) -> None:
        self._mailboxes: OrderedDict[Key, MailboxSizes] = OrderedDict()
        self._lock = Lock()

    def of(self, key: Key) -> MailboxSizes:
        """
        @return: what is known of a mailbox.
        """
        with self._lock:
            sizes = self._mailboxes.get(key)
            if sizes is None:
                sizes = self._mailboxes[key] = MailboxSizes()
            self._mailboxes.move_to_end(key)
            return sizes

    def trim(self) -> None:
        """
        Forget the mailboxes that were not used for longest, if there are too
        many messages.
        """
        with self._lock:
            total = sum(len(each.known) + 10 for each in self._mailboxes.values())
            while total > self.BOUND and len(self._mailboxes) > 1:
                _, dropped = self._mailboxes.popitem(last=False)
                total -= len(dropped.known) + 10
