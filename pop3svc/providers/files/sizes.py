"""
Store the sizes of messages in a file of their mailbox.  The file also records to which file each
unique-id belongs.

The first line of the file C{pop3svc-sizes} contains its version and the device and inode of the
mailbox.  Blocks follow.  A block begins with a line with its length and its checksum, and then has
a line for each message.  The service either appends blocks to the file or replaces the whole file.
If a block is damaged, the service ignores this block and all later blocks.  The next write then
replaces the file.
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
# The new file, before it replaces the file of sizes.  The name is always the same, so that
# processes that are killed leave at most one such file.
_NEXT = "pop3svc-sizes.new"
# Increase this number if pop3svc.downgrading is changed so that a message gets another surrogate.
_VERSION = "pop3svc-sizes 5"
# The most octets of a line.  It contains a unique-id of at most 70 octets and seven other values.
_LINE = 228
# If n entries are needed, the file is replaced when it would have more than 2 * n + _SPARE entries.
_SPARE = 1000
# The most unique-ids that are remembered without sizes, so that no other message gets one of them.
# Most of them belonged to deleted messages.  This number is enough.  The name of a file can occur
# again if a clock was set back or a backup was restored, and in these cases it occurs again soon.
_GONE = 2000

# COPIED is the inode in the entries of a copied mailbox, because its files have other inodes.  GONE
# is the kind of a message that does not exist any more.
COPIED, GONE = 0, "g"

# Messages whose sizes were not counted have no checksum.  At the end of a session, their first
# octets are read for a checksum, but only if there are at most this number of such messages.  To
# read more messages would take more time than the rest of the session.
_READ = 20

# The device and the inode of a mailbox.
Key = tuple[int, int]


def keyOf(root: int) -> Key:
    """
    @param root: a descriptor of the mailbox.
    @return: the device and the inode of the mailbox.
    """
    status = os.fstat(root)
    return status.st_dev, status.st_ino


# A checksum is made from this number of octets at the beginning of a message.  These octets
# distinguish the message from others, because they contain its trace fields.
_HEAD = 1024


def checksumOf(first: bytes) -> int:
    """
    @param first: at least the first octets of a message.
    @return: a checksum that distinguishes the message from others.
    """
    return crc32(first[:_HEAD])


def headOf(descriptor: int) -> int:
    """
    Read the first octets of a message's file, and make a checksum of them.

    @return: the checksum; 0 if the file cannot be read.
    """
    try:
        return checksumOf(os.pread(descriptor, _HEAD, 0))
    except OSError:
        return 0


def headIn(directory: int, name: str) -> int:
    """
    Open a file in a directory, and return the checksum of its first octets (L{headOf}).  The
    checksum is 0 if the file cannot be opened.
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
    The size of a message, and the identity of its file.

    @ivar octets: the number of octets of the message when it is sent, without dot-stuffing; -1 if
        they were not counted.
    @ivar inode: the inode of the file.
    @ivar size: the size of the file in octets.
    @ivar modified: the time of modification of the file in nanoseconds.
    @ivar kind: the difference between the file and the octets that are sent.  C{=} means that there
        is no difference.  C{.} means that line ends or dots may have to be changed.  C{z} means
        that the file is compressed.  C{g} means that the file does not exist any more.
    @ivar head: a checksum of the first octets; 0 if they were not read.
    @ivar surrogate: the size of the surrogate for clients that have not sent UTF8; 0 if the message
        needs no surrogate.
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
        @param head: reads the first octets of the file and returns their checksum.
        @return: whether the file still contains the same message.  A copy with the same time of
            modification counts as the same message, because backups and programs that compress mail
            make such copies.
        """
        if not self.modified:
            # This entry contains the inode, but neither the size nor the time of the file.
            return self.kind != GONE and self.inode in (COPIED, status.st_ino)
        if self.modified == status.st_mtime_ns:
            return True
        if self.size != status.st_size:
            return False
        if self.inode == COPIED:
            return True
        # Compare the first octets if the time differs, because a program may have set the time.
        # The inode is not enough, because a new file soon gets the inode of a removed file.
        isInode = self.inode == status.st_ino and self.kind != GONE
        return isInode and bool(self.head) and self.head == head()

    def isUnchanged(self, status: os.stat_result) -> bool:
        """
        @return: whether the file has not changed, as the rules of a Maildir require.
        """
        return self.size == status.st_size and self.modified == status.st_mtime_ns


# Makes a L{MessageInfo} of a tuple with all its fields.  This takes a third of the time that the
# constructor takes.
_infoOf: Callable[[tuple[object, ...]], MessageInfo] = partial(tuple.__new__, MessageInfo)


def infosOf(
    uniqueIDs: Sequence[str], sizes: Sequence[int | None], inodes: Sequence[int]
) -> dict[str, MessageInfo]:
    """
    @param sizes: the size of each message in octets; L{None} if it is not known.
    @param inodes: the inode of the file of each message.
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
    Decorate a method so that no two threads run such a method of the same object at the same time.
    """

    @wraps(method)
    def guarded(self: MailboxSizes, *arguments: P.args, **named: P.kwargs) -> T:
        with self._guard:
            return method(self, *arguments, **named)

    return guarded


class MailboxSizes:
    """
    The L{MessageInfo} of each message of a mailbox, by unique-id.  While the mailbox is locked, no
    session uses this object except the session that has the lock.

    @ivar known: the messages whose sizes are known.
    @ivar seen: the messages that were listed but not counted.  They are not written to the file
        before L{claimSeen}.
    @ivar claims: further unique-ids and their files, without sizes.  Most of these messages were
        removed, or were listed in earlier sessions but not counted.
    @ivar isCounting: whether a session is counting messages.
    @ivar waiters: Deferreds that fire when the counting ends.
    """

    # Use slots, because every mailbox that was opened lately has such an object.
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
        # The guard is necessary because sessions of a read-only store use this object in several
        # threads.
        self._guard = RLock()
        # The stamp that the file had when it was last read or written.
        self._stamp: FileStamp | None = None
        self.isCounting = False
        self.waiters: list[Progress[None]] = []
        # The number of entries in the file.  A message may have several entries.  The number is -1
        # if the file is damaged, does not exist, or was written for another directory.
        self._written = -1
        # The entries that the next write adds to the file.
        self._unwritten: dict[str, MessageInfo] = {}
        # The sizes of a whole listing, and whether they are the sizes of surrogates.  They are kept
        # because all sessions with the same listing need them.
        self._whole: tuple[Sequence[str], bool, list[int]] = _NOTHING
        # How often C{known} was changed.
        self._changes = 0

    def octetsOf(self, uniqueIDs: Sequence[str], ofSurrogates: bool = False) -> list[int] | None:
        """
        @param uniqueIDs: the unique-ids of the messages.  The caller must not change this list
            afterwards.
        @param ofSurrogates: whether to return the size of the surrogate for a message that needs
            one.
        @return: the sizes of the messages; L{None} if a size is not known.  The caller must not
            change this list.
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
        # Store the list only if no other thread is changing the sizes or has changed them
        # meanwhile.
        if self._guard.acquire(blocking=False):
            if changes == self._changes:
                self._whole = uniqueIDs, ofSurrogates, octets
            self._guard.release()
        return octets

    def wholeOf(self, uniqueIDs: Sequence[str], ofSurrogates: bool) -> list[int] | None:
        """
        @return: the result of the last call of L{octetsOf} if that call had the same arguments and
            no size has changed since; otherwise L{None}.
        """
        sequence, areOfSurrogates, octets = self._whole
        isSame = sequence is uniqueIDs and areOfSurrogates is ofSurrogates
        return octets if isSame else None

    def countUnknown(self, uniqueIDs: Sequence[str]) -> int:
        """
        @return: the number of messages whose sizes are not known.  If the file was not read yet,
            all sizes count as not known.
        """
        if not self.isLoaded:
            return len(uniqueIDs)
        return sum(each not in self.known for each in uniqueIDs)

    def lookUp(self, uniqueIDs: Sequence[str], ofSurrogates: bool) -> tuple[list[int] | None, int]:
        """
        Look up the sizes of many messages.  This method runs in a thread.

        @return: the result of L{octetsOf}, and the number of messages whose sizes are not known.
        """
        octets = self.octetsOf(uniqueIDs, ofSurrogates)
        return octets, 0 if octets is not None else self.countUnknown(uniqueIDs)

    def _change(self) -> None:
        self._changes += 1
        self._whole = _NOTHING

    @_guarded
    def learn(self, added: Mapping[str, MessageInfo]) -> None:
        """
        Add sizes in memory.  Do not write them to the file.
        """
        self._change()
        self.known.update(added)
        if self.seen:
            for uniqueID in added:
                self.seen.pop(uniqueID, None)

    @_guarded
    def forget(self, uniqueID: str) -> None:
        """
        Forget the size of a message, because its file has changed.  Do not forget to which file the
        unique-id belongs.
        """
        self._change()
        info = self.known.pop(uniqueID, None)
        if info is not None:
            self._claim(uniqueID, info)

    def ownerOf(self, uniqueID: str) -> MessageInfo | None:
        """
        @return: the file to which a unique-id belongs or has belonged; L{None} if there is no such
            file.
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
        Whether messages were listed for the first time since the last call of L{claimSeen}.
        """
        return bool(self.seen) and not self._isSeenWritten

    @_guarded
    def claimSeen(self, head: Callable[[str], int]) -> None:
        """
        Make the next write also include the messages that were listed but not counted.

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
        Record that a unique-id belongs to a file.
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
        Record that messages do not exist any more, so that no other message gets their unique-ids.

        @param inodes: the inode of each message.  It is used for messages that were never recorded.
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
        Record that no messages except the listed ones exist.
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
        Tell the waiting sessions that the counting of messages goes on.
        """
        for waiter in self.waiters:
            waiter.progressed()

    # --- the file -----------------------------------------------------------------

    @_guarded
    def load(self, root: int, messages: int) -> None:
        """
        Read the file, unless it was read already and has not changed since.  Blocks.

        @param root: a descriptor of the mailbox.
        @param messages: the number of messages in the mailbox.
        """
        stamp = _stampOf(root)
        if self.isLoaded and stamp == self._stamp:
            return
        if stamp is not None:
            # Replace all entries, because another process may have written to the file.
            self.known, self.claims = {}, OrderedDict()
            self._change()
            self._written = -1
            self._readFile(root, messages)
            for uniqueID, info in self._unwritten.items():
                if uniqueID not in self.known:
                    self._claim(uniqueID, info)
            # Count a second change, so that L{octetsOf} does not store the result of a lookup that
            # began while the file was read.
            self._change()
        self._stamp = stamp
        self.isLoaded = True

    def _readFile(self, root: int, messages: int) -> None:
        # Limit the size of the file by the number of messages, because the owner of the mailbox may
        # put any file there.
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
        # If the file was written for another directory, the mailbox was copied, and its messages
        # have other inodes now.
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
        Write the entries that are not in the file yet.  Blocks.

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
            # Replace the file at the next call, and write all entries again.
            self._written = -1
            if len(unwritten) <= _GONE:
                self._unwritten = {**unwritten, **self._unwritten}
        self._stamp = _stampOf(root)

    def _replaceFile(self, root: int, unwritten: Mapping[str, MessageInfo]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(_NEXT, flags, 0o600, dir_fd=root)
        except FileExistsError:
            # Remove the file, which a killed process has left.  No other process writes the file
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
    Sizes that are kept in memory and never written, for callers that do not save sizes.  If the
    file exists because another caller has saved sizes, this class reads it.
    """

    __slots__ = ()

    @property
    def hasUnwritten(self) -> bool:
        return False

    def keep(self, root: int, added: Mapping[str, MessageInfo], listed: Collection[str]) -> None:
        """
        Add sizes in memory.
        """
        with self._guard:
            self.learn(added)
            self._unwritten.clear()

    def write(self, root: int, added: Mapping[str, MessageInfo] | None = None) -> None:
        """
        Write nothing, and forget the entries that the base class would write.
        """
        with self._guard:
            self._unwritten.clear()


# The most entries of one block.  With this number, at most some MiB are read or written at a time.
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
    A cache of the L{MailboxSizes} of one store.  If it is full, it drops the mailboxes that were
    not used for the longest time.  The cache is thread-safe.
    """

    # The most messages of all mailboxes together.  A message takes some 300 octets.
    BOUND = 500_000

    def __init__(self, make: Callable[[], MailboxSizes] = MailboxSizes) -> None:
        """
        @param make: L{MailboxSizes}, or L{UnsavedSizes} for a store that does not save sizes.
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
        While there are too many messages, drop the mailboxes that were not used for the longest
        time.
        """
        with self._lock:
            total = sum(_weight(each) for each in self._mailboxes.values())
            while total > self.BOUND and len(self._mailboxes) > 1:
                _, dropped = self._mailboxes.popitem(last=False)
                total -= _weight(dropped)


def _weight(sizes: MailboxSizes) -> int:
    return len(sizes.known) + len(sizes.claims) + len(sizes.seen) + 10
