"""
Keep the sizes of a mailbox's messages, and for each unique-id the file to which it belongs, in a
file of the mailbox.

The file C{pop3svc-sizes} begins with a line that gives its version and the device and inode of the
mailbox.  Blocks follow: a line with length and checksum, then a line for each message.  The service
only appends to the file, or replaces the whole file.  It ignores a damaged block, and then replaces
the file.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial, wraps
from itertools import repeat
from threading import Lock, RLock
from typing import BinaryIO, Concatenate, NamedTuple, ParamSpec, TypeVar
from zlib import crc32

from pop3svc.files import FileStamp, closeQuietly, openFile, openRegular, stampFrom
from pop3svc.fileuser import fileUID
from pop3svc.listings import areUniqueIDs, slices
from pop3svc.timing import Progress

__all__ = [
    "COPIED",
    "GONE",
    "Key",
    "MailboxSizes",
    "MessageInfo",
    "SizeCache",
    "UnsavedSizes",
    "checksumOf",
    "headIn",
    "headOf",
    "infosOf",
    "keyOf",
]

P = ParamSpec("P")
T = TypeVar("T")

_NAME = "pop3svc-sizes"
# The file that replaces the file of sizes.  Its name is always the same, so that killed services
# leave at most one such file.
_NEXT = "pop3svc-sizes.new"
# Increase this number if a change of pop3svc.downgrading makes different octets of a message.
_VERSION = "pop3svc-sizes 5"
# The most octets of a line, which has a unique-id of 70 octets and seven numbers.
_LINE = 228
# The file is replaced when it has more than twice as many entries as needed, plus this number.
_SPARE = 1000
# The most unique-ids of deleted messages that are remembered, so that no other message gets one of
# these.  This number is enough.  A name can return only after a clock was set back or a backup was
# restored, and then it returns soon.
_GONE = 2000

# The inode that stands for all files of a copied mailbox; and the kind of a message that no longer
# exists.
COPIED, GONE = 0, "g"

# The most messages whose first octets are read for a checksum, because their sizes were not
# counted.  More messages would take longer than the rest of the session.
_READ = 20

# (device, inode) of a mailbox
Key = tuple[int, int]


def keyOf(root: int) -> Key:
    """
    @param root: a descriptor.
    @return: device and inode.
    """
    status = os.fstat(root)
    return status.st_dev, status.st_ino


# The number of octets at the beginning of a message that distinguish the message from others,
# because they contain its trace fields.
_HEAD = 1024


def checksumOf(first: bytes) -> int:
    """
    @param first: the first octets of a message, or more octets.
    @return: a checksum that distinguishes the message from others.
    """
    return crc32(first[:_HEAD])


def headOf(descriptor: int) -> int:
    """
    Read the first octets of a message's file.

    @return: their checksum.
    """
    try:
        return checksumOf(os.pread(descriptor, _HEAD, 0))
    except OSError:
        return 0


def headIn(directory: int, name: str) -> int:
    """
    Open a file in a directory, and return the checksum of its first octets (L{headOf}).  It is
    0 if the file cannot be opened.
    """
    try:
        descriptor, _ = openFile(name, directory)
    except OSError:
        return 0
    try:
        return headOf(descriptor)
    finally:
        closeQuietly(descriptor)


class MessageInfo(NamedTuple):
    """
    Size and identity of the file of one message.

    @ivar octets: size of the message as it is sent, without dot-stuffing; -1 if it was not
        counted.
    @ivar inode: inode of the file.
    @ivar size: size of the file, octets.
    @ivar modified: time of modification of the file, nanoseconds.
    @ivar kind: how the file differs from the octets that are sent: C{=} not at all; C{.} line ends
        or dots have to be changed; C{z} the file is compressed; C{g} the file no longer exists.
    @ivar head: a checksum of the first octets; 0 if they were not read.
    @ivar surrogate: size of the surrogate for clients that have not sent UTF8; 0 if the message
        needs none.
    """

    octets: int
    inode: int
    size: int = 0
    modified: int = 0
    kind: str = "."
    head: int = 0
    surrogate: int = 0

    def isFile(self, status: os.stat_result, head: Callable[[], int]) -> bool:
        """
        @param head: reads the first octets of the file, and returns their checksum.
        @return: whether this is still the same message.  A copy with the same time of
            modification is the same message, because backups and programs that compress mail make
            such copies.
        """
        if not self.modified:
            # For this entry only the name and the inode are known.
            return self.kind != GONE and self.inode in (COPIED, status.st_ino)
        if self.modified == status.st_mtime_ns:
            return True
        if self.size != status.st_size:
            return False
        if self.inode == COPIED:
            return True
        # A program may have set the time.  The inode alone is not enough, because a new file soon
        # gets the inode of a removed file.
        isInode = self.inode == status.st_ino and self.kind != GONE
        return isInode and bool(self.head) and self.head == head()

    def isUnchanged(self, status: os.stat_result) -> bool:
        """
        @return: whether the file is unchanged, as the rules of a Maildir require.
        """
        return self.size == status.st_size and self.modified == status.st_mtime_ns


# Makes a L{MessageInfo} of a tuple of all its fields.  This takes a third of the time of the
# constructor.
_infoOf: Callable[[tuple[object, ...]], MessageInfo] = partial(tuple.__new__, MessageInfo)


def infosOf(
    uniqueIDs: Sequence[str], sizes: Sequence[int | None], inodes: Sequence[int]
) -> dict[str, MessageInfo]:
    """
    @param sizes: the size of each message in octets; L{None} if it is not known.
    @param inodes: the inode of each message's file.
    @return: an entry for each message whose size is known.
    """
    infos: dict[str, MessageInfo] = {}
    for some, octets, theirs in zip(*map(slices, (uniqueIDs, sizes, inodes)), strict=True):
        columns = octets, theirs, *map(repeat, (0, 0, ".", 0, 0))
        infos.update(zip(some, map(_infoOf, zip(*columns, strict=False)), strict=True))
    if None in sizes:
        return {each: info for each, info in infos.items() if info.octets is not None}
    return infos


_NOTHING: tuple[Sequence[str], bool, list[int]] = (), False, []


def _guarded(method: Callable[Concatenate[MailboxSizes, P], T]) -> Callable[..., T]:
    """
    Let one thread at a time change the sizes.
    """

    @wraps(method)
    def guarded(self: MailboxSizes, *arguments: P.args, **named: P.kwargs) -> T:
        with self._guard:
            return method(self, *arguments, **named)

    return guarded


class MailboxSizes:
    """
    L{MessageInfo} of the messages of one mailbox, by unique-id.  One session at a time uses this
    object while the mailbox is locked.

    @ivar known: messages whose size was counted.
    @ivar seen: messages that were listed but not counted; only in memory.
    @ivar claims: further unique-ids: those of removed messages, and those of messages that have the
        same name as another message.
    @ivar isCounting: whether a session is counting messages.
    @ivar waiters: Deferreds that fire when the counting ends.
    """

    # Every mailbox that was opened lately has such an object.
    __slots__ = (
        "_changes",
        "_guard",
        "_isSeenWritten",
        "_stamp",
        "_unwritten",
        "_whole",
        "_written",
        "claims",
        "isCounting",
        "isLoaded",
        "known",
        "seen",
        "waiters",
    )

    def __init__(self) -> None:
        self.known: dict[str, MessageInfo] = {}
        self.seen: dict[str, MessageInfo] = {}
        self.claims: OrderedDict[str, MessageInfo] = OrderedDict()
        self.isLoaded = False
        self._isSeenWritten = True
        # Sessions of a read-only store share this object from several threads.
        self._guard = RLock()
        # The stamp of the file when it was last read or written.
        self._stamp: FileStamp | None = None
        self.isCounting = False
        self.waiters: list[Progress[None]] = []
        # Number of entries in the file (a message may have several); -1 if the file is damaged,
        # does not exist, or was written for another directory.
        self._written = -1
        # The unique-ids in C{claims} that are not in the file yet.
        self._unwritten: dict[str, MessageInfo] = {}
        # The sizes of a whole listing, which are kept because all its sessions need them; and
        # whether these are the sizes of surrogates.
        self._whole: tuple[Sequence[str], bool, list[int]] = _NOTHING
        # The number of changes of C{known}.
        self._changes = 0

    def octetsOf(self, uniqueIDs: Sequence[str], ofSurrogates: bool = False) -> list[int] | None:
        """
        @param uniqueIDs: a list that is not changed afterwards.
        @param ofSurrogates: for messages that need a surrogate, return its size.
        @return: the sizes of the messages, which the caller must not change; L{None} if a size is
            not known.
        """
        changes = self._changes
        try:
            found = map(self.known.__getitem__, uniqueIDs)
            if ofSurrogates:
                octets = [each.surrogate or each.octets for each in found]
            else:
                octets = [each.octets for each in found]
        except KeyError:
            return None
        # Another thread may be changing the sizes, or may have changed them since then.
        if self._guard.acquire(blocking=False):
            if changes == self._changes:
                self._whole = uniqueIDs, ofSurrogates, octets
            self._guard.release()
        return octets

    def wholeOf(self, uniqueIDs: Sequence[str], ofSurrogates: bool) -> list[int] | None:
        """
        @return: the result of the last call of L{octetsOf}, if it was for the same list; otherwise
            L{None}.
        """
        sequence, areOfSurrogates, octets = self._whole
        isSame = sequence is uniqueIDs and areOfSurrogates is ofSurrogates
        return octets if isSame else None

    def countUnknown(self, uniqueIDs: Sequence[str]) -> int:
        """
        @return: the number of messages without a known size, according to the part of the file that
            was read.
        """
        if not self.isLoaded:
            return len(uniqueIDs)
        return sum(each not in self.known for each in uniqueIDs)

    def lookUp(self, uniqueIDs: Sequence[str], ofSurrogates: bool) -> tuple[list[int] | None, int]:
        """
        Look up the sizes of many messages, in a thread.

        @return: the sizes, see L{octetsOf}; and the number of messages whose size is not known.
        """
        octets = self.octetsOf(uniqueIDs, ofSurrogates)
        return octets, 0 if octets is not None else self.countUnknown(uniqueIDs)

    def _change(self) -> None:
        self._changes += 1
        self._whole = _NOTHING

    @_guarded
    def learn(self, added: Mapping[str, MessageInfo]) -> None:
        """
        Add sizes in memory, without writing them.
        """
        self._change()
        self.known.update(added)
        if self.seen:
            for uniqueID in added:
                self.seen.pop(uniqueID, None)

    @_guarded
    def forget(self, uniqueID: str) -> None:
        """
        Discard the size of a message, because its file has changed.  The message keeps its
        unique-id.
        """
        self._change()
        info = self.known.pop(uniqueID, None)
        if info is not None:
            self._claim(uniqueID, info)

    def ownerOf(self, uniqueID: str) -> MessageInfo | None:
        """
        @return: the file to which a unique-id belongs, or belonged before.
        """
        return self.known.get(uniqueID) or self.claims.get(uniqueID) or self.seen.get(uniqueID)

    @_guarded
    def see(self, uniqueID: str, status: os.stat_result) -> None:
        """
        Record a message that was listed for the first time.
        """
        self.seen[uniqueID] = MessageInfo(-1, status.st_ino, status.st_size, status.st_mtime_ns)
        self._isSeenWritten = False

    @property
    def hasUnwritten(self) -> bool:
        """
        Whether messages were listed that the file does not contain.
        """
        return bool(self.seen) and not self._isSeenWritten

    @_guarded
    def claimSeen(self, head: Callable[[str], int]) -> None:
        """
        Also queue for writing the messages that were listed but not counted.

        @param head: reads the first octets of a message; see L{MessageInfo.isFile}.
        """
        areFew = len(self.seen) <= _READ
        for uniqueID, info in list(self.seen.items()):
            if uniqueID not in self.claims:
                if areFew and not info.head:
                    info = info._replace(head=head(uniqueID))
                self.seen[uniqueID] = self._unwritten[uniqueID] = info
        self._isSeenWritten = True

    @_guarded
    def claim(self, uniqueID: str, info: MessageInfo) -> None:
        """
        Assign a unique-id to a file.
        """
        self._claim(uniqueID, info)
        self._unwritten[uniqueID] = self.claims[uniqueID]

    @_guarded
    def adopt(self, uniqueID: str, inode: int) -> None:
        """
        Record the inode of a copy that has replaced a file.
        """
        if uniqueID in self.known:
            adopted = self.known[uniqueID]._replace(inode=inode)
            self.known[uniqueID] = self._unwritten[uniqueID] = adopted
        elif uniqueID in self.claims:
            self.claim(uniqueID, self.claims[uniqueID]._replace(inode=inode, kind="."))
        elif uniqueID in self.seen:
            self.seen[uniqueID] = self.seen[uniqueID]._replace(inode=inode)

    def _claim(self, uniqueID: str, info: MessageInfo) -> None:
        self.claims.pop(uniqueID, None)
        self.claims[uniqueID] = info._replace(octets=-1)
        while len(self.claims) > _GONE:
            self.claims.popitem(last=False)

    @_guarded
    def markGone(self, uniqueIDs: Iterable[str], inodes: Mapping[str, int]) -> None:
        """
        Record that messages no longer exist, so that no other message gets their unique-ids.

        @param inodes: the inode of each message, for messages that were never recorded.
        """
        self._change()
        for uniqueID in uniqueIDs:
            info = self.known.pop(uniqueID, None) or self.claims.get(uniqueID)
            seen = self.seen.pop(uniqueID, None)
            if info is None and seen is not None:
                self.claim(uniqueID, seen._replace(kind=GONE))
            elif info is None:
                self.claim(uniqueID, MessageInfo(-1, inodes.get(uniqueID, -1), kind=GONE))
            else:
                self._claim(uniqueID, info._replace(kind=GONE))

    @_guarded
    def markOthersGone(self, listed: Collection[str]) -> None:
        """
        Record that all messages that were not listed no longer exist.
        """
        gone = [each for each in self.known if each not in listed]
        gone += [each for each in self.seen if each not in listed]
        gone += [
            each for each, claim in self.claims.items() if claim.kind != GONE and each not in listed
        ]
        if gone:
            self.markGone(gone, {})

    def progressed(self) -> None:
        """
        Report to the waiting sessions that the counting makes progress.
        """
        for waiter in self.waiters:
            waiter.progressed()

    # --- the file -----------------------------------------------------------------

    @_guarded
    def load(self, root: int, messages: int) -> None:
        """
        Read the file, if it has not been read yet, or has changed.  Blocks.

        @param root: a descriptor of the mailbox.
        @param messages: number of messages in the mailbox.
        """
        stamp = _stampOf(root)
        if self.isLoaded and stamp == self._stamp:
            return
        if stamp is not None:
            # Another process may have written to the file.
            self.known, self.claims = {}, OrderedDict()
            self._change()
            self._written = -1
            self._readFile(root, messages)
            for uniqueID, info in self._unwritten.items():
                if uniqueID not in self.known:
                    self._claim(uniqueID, info)
            # A thread may have looked up sizes while the file was being read.
            self._change()
        self._stamp = stamp
        self.isLoaded = True

    def _readFile(self, root: int, messages: int) -> None:
        # The owner of the mailbox may put any file there, so limit its size by the number of
        # messages.
        longest = _LINE * (2 * messages + 2 * _SPARE + 2 * _GONE)
        try:
            descriptor = openRegular(_NAME, root)
        except OSError:
            return
        with open(descriptor, "rb") as file:
            try:
                if os.fstat(descriptor).st_size <= longest:
                    self._read(file, root, longest)
            except (OSError, ValueError):
                self._written = -1

    def _read(self, file: BinaryIO, root: int, longest: int) -> None:
        line = file.readline(_LINE)
        first = line.decode("ascii").split()
        if " ".join(first[:2]) != _VERSION or not line.endswith(b"\n"):
            return
        # In a copied mailbox all files have different inodes.
        isOwn = first[2:] == [str(each) for each in keyOf(root)]
        self._written = 0
        while line := file.readline(_LINE):
            length, checksum = (int(word, 16) for word in line.split())
            if not 0 <= length <= longest:
                raise ValueError
            block = file.read(length)
            if len(block) != length or crc32(block) != checksum:
                raise ValueError
            for uniqueID, info in _entries(block):
                self._written += 1
                if not isOwn:
                    info = info._replace(inode=COPIED)
                if info.octets >= 0:
                    self.known[uniqueID] = info
                    self.claims.pop(uniqueID, None)
                else:
                    self.known.pop(uniqueID, None)
                    self._claim(uniqueID, info)
        if not isOwn:
            self._written = -1

    @_guarded
    def keep(self, root: int, added: Mapping[str, MessageInfo], listed: Collection[str]) -> None:
        """
        Add sizes, and write them to the file.  Blocks.

        @param listed: the unique-ids of all messages.
        """
        self.learn(added)
        if len(self.known) > 2 * len(listed) + _SPARE:
            self.markGone([each for each in self.known if each not in listed], {})
        self.write(root, added)

    @_guarded
    def write(self, root: int, added: Mapping[str, MessageInfo] | None = None) -> None:
        """
        Write unwritten entries to the file.  Blocks.

        @param added: entries of L{known} that are not in the file yet.
        """
        unwritten, self._unwritten = self._unwritten, {}
        unwritten.update(added or {})
        if not unwritten:
            return
        entries = len(self.known) + len(self.claims)
        try:
            if self._written < 0 or self._written + len(unwritten) > 2 * entries + _SPARE:
                self._replaceFile(root, unwritten)
            else:
                self._append(root, unwritten)
        except OSError:
            # The next call replaces the file and writes the entries again.
            self._written = -1
            if len(unwritten) <= _GONE:
                self._unwritten = {**unwritten, **self._unwritten}
        self._stamp = _stampOf(root)

    def _replaceFile(self, root: int, unwritten: Mapping[str, MessageInfo]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(_NEXT, flags, 0o600, dir_fd=root)
        except FileExistsError:
            # A service was killed while it wrote this file.  No other service is writing the file
            # now, because the mailbox is locked.
            os.unlink(_NEXT, dir_fd=root)
            descriptor = os.open(_NEXT, flags, 0o600, dir_fd=root)
        entries = {**unwritten, **self.claims, **self.known}
        try:
            device, inode = keyOf(root)
            _writeAll(descriptor, f"{_VERSION} {device} {inode}\n".encode("ascii"))
            for block in _blocks(entries):
                _writeAll(descriptor, block)
            os.rename(_NEXT, _NAME, src_dir_fd=root, dst_dir_fd=root)
        except OSError:
            os.unlink(_NEXT, dir_fd=root)
            raise
        finally:
            closeQuietly(descriptor)
        self._written = len(entries)

    def _append(self, root: int, added: Mapping[str, MessageInfo]) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(_NAME, flags, dir_fd=root)
        try:
            status = os.fstat(descriptor)
            isOwn = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
            if not isOwn or status.st_uid != fileUID():
                raise OSError(errno.EPERM, "not a file of this service")
            for block in _blocks(added):
                _writeAll(descriptor, block)
        finally:
            closeQuietly(descriptor)
        self._written += len(added)


class UnsavedSizes(MailboxSizes):
    """
    Sizes that are kept only in memory, because the store changes nothing in the mailbox.  This
    class still reads the file that another service has written.
    """

    __slots__ = ()

    @property
    def hasUnwritten(self) -> bool:
        return False

    def keep(self, root: int, added: Mapping[str, MessageInfo], listed: Collection[str]) -> None:
        """
        Add sizes.
        """
        with self._guard:
            self.learn(added)
            self._unwritten.clear()

    def write(self, root: int, added: Mapping[str, MessageInfo] | None = None) -> None:
        """
        Discard the entries that a saved mailbox would write.
        """
        with self._guard:
            self._unwritten.clear()


# The entries of one block; with this number at most some MiB are read or written at once.
_BLOCK = 20_000


def _stampOf(root: int) -> FileStamp | None:
    try:
        return stampFrom(os.stat(_NAME, dir_fd=root, follow_symlinks=False))
    except OSError:
        return None


def _entries(block: bytes) -> Iterator[tuple[str, MessageInfo]]:
    """
    Parse a block.

    @raise ValueError: the block is malformed.
    """
    words = block.decode("ascii").split()
    if len(words) % 8:
        raise ValueError
    numbers = [map(int, words[column::8]) for column in (1, 2, 3, 4)]
    heads, surrogates = map(int, words[6::8]), map(int, words[7::8])
    if not areUniqueIDs(words[0::8]):
        raise ValueError
    columns = zip(*numbers, words[5::8], heads, surrogates, strict=True)
    return zip(words[0::8], map(_infoOf, columns), strict=True)


def _blocks(entries: Mapping[str, MessageInfo]) -> Iterator[bytes]:
    lines = [
        f"{uniqueID} {octets} {inode} {size} {modified} {kind} {head} {surrogate}\n"
        for uniqueID, (octets, inode, size, modified, kind, head, surrogate) in entries.items()
    ]
    for first in range(0, len(lines), _BLOCK):
        block = "".join(lines[first : first + _BLOCK]).encode("ascii")
        yield b"%x %x\n" % (len(block), crc32(block)) + block


def _writeAll(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


class SizeCache:
    """
    Cache of the L{MailboxSizes} of one store.  It drops the least recently used mailboxes.
    Thread-safe.
    """

    # The most messages of all mailboxes; some 300 octets each.
    BOUND = 500_000

    def __init__(self, make: Callable[[], MailboxSizes] = MailboxSizes) -> None:
        """
        @param make: L{MailboxSizes}, or L{UnsavedSizes} for a store that writes nothing.
        """
        self._make = make
        self._mailboxes: OrderedDict[Key, MailboxSizes] = OrderedDict()
        self._lock = Lock()

    def of(self, key: Key) -> MailboxSizes:
        """
        @return: the sizes of a mailbox.
        """
        with self._lock:
            sizes = self._mailboxes.get(key)
            if sizes is None:
                sizes = self._mailboxes[key] = self._make()
            self._mailboxes.move_to_end(key)
            return sizes

    def trim(self) -> None:
        """
        Drop the least recently used mailboxes while there are too many messages.
        """
        with self._lock:
            total = sum(_weight(each) for each in self._mailboxes.values())
            while total > self.BOUND and len(self._mailboxes) > 1:
                _, dropped = self._mailboxes.popitem(last=False)
                total -= _weight(dropped)


def _weight(sizes: MailboxSizes) -> int:
    return len(sizes.known) + len(sizes.claims) + len(sizes.seen) + 10
