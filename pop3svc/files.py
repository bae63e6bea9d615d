"""
Read and write local files.  The functions for mail do not follow links, because other users may
have made them.  L{FileBlocks} and L{FileRegion} do not block the reactor's thread while a disk
reads.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
import time
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from itertools import islice
from threading import Lock
from typing import Any

from zope.interface import implementer

from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import IChunkedContent
from pop3svc.lineendings import DOT_LINE, WireForm, WireSizeCounter, countBareLF
from pop3svc.threadpool import BoundedThreadPool, Executor, InlineExecutor, mustStop

__all__ = [
    "MISSING",
    "NO_ROOM",
    "FileBlocks",
    "FileRegion",
    "FileStamp",
    "FolderTimes",
    "areStampsTrustworthy",
    "closeQuietly",
    "countOctets",
    "disk",
    "listReplaceable",
    "longWork",
    "measure",
    "openDirectory",
    "openFile",
    "openRegular",
    "openReplaceable",
    "peek",
    "readReplaceable",
    "setPrivileged",
    "stampFrom",
    "stampOf",
    "syncDirectory",
    "useNoThreads",
    "useSlowFiles",
    "writeWhole",
]

# The size of a block.  It is large enough that the time per block does not matter, and small enough
# that the blocks of many clients fit into memory.
_BLOCK = 131072
# The most octets that one call of sendfile() sends.
_REGION = 1048576
# Before it calls sendfile(), the service finds out whether the octets are in the page cache.  It
# tests one octet of every 16,384 octets.  This is enough, because the kernel reads more octets than
# this at a time.  Reading all octets by one call would release the interpreter lock only once, but
# row 7 would take 1.1 times as long.
_PROBE = 16384
# The number of octets of a large message that are examined at a time.  A thread has Python's
# interpreter lock during this time, so that the reactor's thread may have to wait.
_COUNTING_BLOCK = 131072
# Only one thread examines a large message at a time.  More threads would not be faster, because all
# of them need the interpreter lock, and the reactor's thread would have to wait for each of them.
_examining = Lock()
# The number of octets at the end of a message that are not sent by sendfile().
_LAST = 4096

_TICK_NS = 20_000_000
_SECOND_NS = 1_000_000_000

# A flag of preadv() on Linux: read from the page cache, and never from the disk.
_NOWAIT: int | None = getattr(os, "RWF_NOWAIT", None)
_NOT_CACHED = (errno.EAGAIN, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)

# The number of threads for a slow file system.
_SLOW = 8
# Four threads, because more would not be faster if the files are in the page cache.  Each thread
# also needs Python's interpreter lock, so the reactor's thread would wait longer.  The queue may be
# long.  Few jobs wait in it, because the number of connections is limited, and each connection has
# at most one job in the queue.
_disk: BoundedThreadPool | InlineExecutor = BoundedThreadPool(
    "pop3svc-disk", threads=4, waiting=100_000
)
# Separate threads run work that may take minutes, so that short work need not wait for it.  More
# than two threads would not be faster.
_longWork: BoundedThreadPool | InlineExecutor = BoundedThreadPool(
    "pop3svc-long", threads=2, waiting=10_000
)


def useNoThreads() -> None:
    """
    Make all reads and writes of files run in the calling thread, for a program without a reactor.
    Call this function before a store is made.
    """
    global _disk, _longWork
    _disk = _longWork = InlineExecutor()


def disk() -> BoundedThreadPool | InlineExecutor:
    """
    @return: the threads that read and write files.
    """
    return _disk


def useSlowFiles() -> None:
    """
    Let more threads read and write files, because they wait for a slow file system most of the
    time.
    """
    _disk.allow(_SLOW)


def longWork() -> BoundedThreadPool | InlineExecutor:
    """
    @return: the threads for work that may take minutes, such as counting the octets of a large
        mailbox.
    """
    return _longWork


def closeQuietly(descriptor: int) -> None:
    """
    Close a descriptor, and ignore an error.  Even if there is an error, the descriptor is closed.
    Call this function if the file was only read, or if the written data is already durable.
    """
    try:
        os.close(descriptor)
    except OSError:
        pass


def openRegular(name: str, directory: int | None = None) -> int:
    """
    Open a regular file for reading.  Do not follow a link, and do not wait for a FIFO.

    @param directory: an open directory that C{name} is relative to.
    @return: a descriptor.
    @raise OSError: the file cannot be opened, or is not a regular file.
    """
    return openFile(name, directory)[0]


def openFile(name: str, directory: int | None = None) -> tuple[int, os.stat_result]:
    """
    Open a regular file for reading, as L{openRegular} does, and read its status.

    @return: a descriptor, and the status of the file.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENODEV):
            # The name belongs to a link, a socket or a device.
            raise OSError(errno.ENOENT, "not a regular file")
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.ENOENT, "not a regular file")
    except OSError:
        closeQuietly(descriptor)
        raise
    return descriptor, status


def openDirectory(name: str, directory: int | None = None) -> int:
    """
    Open a directory.  If the last part of C{name} is a link, do not follow the link.

    @return: a descriptor.
    @raise OSError: C{name} cannot be opened, or is not a directory.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, dir_fd=directory)


# Inode, size, time of modification (mtime) and time of change (ctime) of a file or directory.  No
# program can set the time of change back.
FileStamp = tuple[int, int, int, int]

# The stamps of several directories, and whether they are old enough to be trusted; see
# L{areStampsTrustworthy}.
FolderTimes = tuple[tuple[FileStamp, ...], bool]

# The most octets of a file that is read as a whole.  A password file of two million users is
# smaller.
_LARGEST = 268_435_456
# A function that opens files.  It is called for files that the service may not open itself after it
# has given up its privileges.
_privileged: Callable[[str], int] | None = None


def setPrivileged(opener: Callable[[str], int] | None) -> None:
    """
    Set the function that opens files for reading.  It is called for files that the service may not
    open itself after it has given up its privileges.

    @param opener: takes a path and returns a descriptor, or raises L{OSError}.
    """
    global _privileged
    _privileged = opener
    _stamps.clear()


def openReplaceable(path: str) -> int:
    """
    Open a file for reading that other programs may replace at any time.  Examples are a
    certificate, a private key and a password file.  Follow links, because certbot makes links.  Do
    not wait for a FIFO.

    @return: a descriptor of a regular file.
    @raise OSError: the file cannot be opened, or is not a regular file.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except PermissionError:
        if _privileged is None:
            raise
        descriptor = _privileged(path)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENODEV):
            # The file is a socket or a device.
            raise OSError(error.errno, "Not a regular file", path)
        raise
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "Not a regular file", path)
    except OSError:
        closeQuietly(descriptor)
        raise
    return descriptor


def readReplaceable(path: str, most: int = _LARGEST) -> bytes:
    """
    Read a whole file that other programs may replace at any time; see L{openReplaceable}.  Blocks.

    @param most: the largest allowed size in octets.
    @raise OSError: the file cannot be read, is not a regular file, or is larger than C{most}.
    """
    descriptor = openReplaceable(path)
    with open(descriptor, "rb", buffering=0) as file:
        # Limit the number of octets that are read.  The size of the file is no safe limit, because
        # the file may grow meanwhile.
        data = bytearray()
        while block := file.read(min(_COUNTING_BLOCK, most + 1 - len(data))):
            data += block
            if len(data) > most:
                raise OSError(errno.EFBIG, f"Larger than {most} octets", path)
    return bytes(data)


def listReplaceable(path: str, most: int) -> list[str]:
    """
    List a directory while other programs may add and remove files.

    @param most: the most names to read.
    @return: the names in the directory.
    @raise OSError: the directory cannot be listed.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except PermissionError:
        if _privileged is None:
            raise
        # Let the privileged process open the directory.  This process can read the open directory
        # without a permission.
        descriptor = _privileged(path)
    try:
        with os.scandir(descriptor) as entries:
            return [entry.name for entry in islice(entries, most)]
    finally:
        closeQuietly(descriptor)


def stampOf(path: str) -> FileStamp | None:
    """
    @return: the result of L{stampFrom} for a file; L{None} if the file does not exist or its status
        cannot be read.
    """
    try:
        status = os.stat(path)
    except PermissionError:
        if _privileged is None:
            return None
        return _stampOfPrivileged(path, _privileged)
    except OSError:
        return None
    return stampFrom(status)


# The errors of a call for which the disk, or the quota of a user, has no room.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

# The stamp of a file that does not exist.
MISSING: FileStamp = (0, 0, 0, 0)


def stampFrom(status: os.stat_result) -> FileStamp:
    """
    @return: a value that changes when the file is changed or replaced; but see
        L{areStampsTrustworthy}.
    """
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


# Seconds for which a stamp from the privileged process is cached.  Without the cache, each login
# would ask the privileged process.
_STAMP_LIFE = 0.1
_stamps: dict[str, tuple[float, FileStamp | None]] = {}


def _stampOfPrivileged(path: str, opener: Callable[[str], int]) -> FileStamp | None:
    now = time.monotonic()
    when, stamp = _stamps.get(path, (-1.0, None))
    if when < 0 or now - when > _STAMP_LIFE:
        try:
            descriptor = opener(path)
        except OSError:
            stamp = None
        else:
            try:
                stamp = stampFrom(os.fstat(descriptor))
            finally:
                closeQuietly(descriptor)
        # The cache needs no limit, because it has entries for configured files and certificates
        # only.
        _stamps[path] = now, stamp
    return stamp


def areStampsTrustworthy(stamps: Iterable[FileStamp]) -> bool:
    """
    Find out whether the times of files are old enough to show every later change.  If a file
    changes twice within one tick of the file system's clock, its times may be the same after both
    changes.

    @return: whether each later change will change the stamps.
    """
    latest = 0
    for _, _, modified, changed in stamps:
        if modified > latest:
            latest = modified
        if changed > latest:
            latest = changed
    # The clock of most file systems advances in ticks of some milliseconds.  The clock of other
    # file systems advances in steps of one or two seconds, and their times have no fractions of a
    # second.
    tick = _TICK_NS if latest % _SECOND_NS else 2 * _SECOND_NS + _TICK_NS
    # Also trust a time in the future, because a change would set the time to the present.
    return abs(time.time_ns() - latest) > tick


def writeWhole(
    path: str, data: bytes, owner: tuple[int, int] | None = None, mode: int = 0o600
) -> None:
    """
    Write a file atomically and durably.  Blocks.

    @param owner: the user and the group who will own the file.
    @param mode: the permissions of the file.  By default no other user may read it.
    @raise OSError: nothing was written.
    """
    # Write to a new file with an unpredictable name, because another user could have created a file
    # with a known name.
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".pop3svc-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            if owner is not None:
                os.fchown(file.fileno(), *owner)
            if mode != 0o600:
                os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    # Sync the directory, because otherwise a power failure could bring the old file back.  Ignore
    # an error, because the new file has been written.
    with suppress(OSError):
        syncDirectory(os.path.dirname(path) or ".")


def syncDirectory(path: str) -> None:
    """
    Make the names of the files in a directory durable.  The directory may be a link.  Blocks.

    @raise OSError: the names may not be durable.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        closeQuietly(descriptor)


def countOctets(descriptor: int) -> int:
    """
    Read a file and count its octets on the wire.  Blocks; call it in a thread.

    @raise OSError: the work was cancelled, or the file cannot be read.
    """
    return measure(descriptor, os.fstat(descriptor).st_size)[0]


def measure(descriptor: int, size: int) -> tuple[int, bool, bytes, bool]:
    """
    Read a file and count its octets on the wire.  Blocks; call it in a thread.

    @param size: the size of the file in octets.
    @return: four values: the size on the wire, whether the file can be sent unchanged, the first
        1,024 octets, and whether all octets are ASCII.  A file can be sent unchanged if all lines
        end with CRLF and no line begins with a dot.
    @raise OSError: the work was cancelled, or the file cannot be read.
    """
    if mustStop():
        raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
    if size <= _BLOCK:
        # Handle small messages separately, because nearly all messages are small.
        block = os.pread(descriptor, size, 0)
        if len(block) == size:
            return *_measureWhole(block), block[:1024], block.isascii()
    count = WireSizeCounter()
    offset, last, hasDots = 0, b"\n", False
    first, isASCII = b"", True
    while offset < size:
        if mustStop():
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        # A hole in a sparse file need not be read, because it consists of NULs.
        data = _nextData(descriptor, offset, size)
        count.skip(data - offset)
        block = os.pread(descriptor, min(_COUNTING_BLOCK, size - data), data)
        if not block:
            break
        if not data:
            first = block[:1024]
        with _examining:
            count.feed(block)
            isASCII = isASCII and block.isascii()
            hasDots = hasDots or (block[0] == 0x2E and last == b"\n")
            hasDots = hasDots or DOT_LINE.search(block) is not None
        last = block[-1:]
        offset = data + len(block)
    octets = count.total()
    return octets, octets == size and not hasDots, first, isASCII


def _measureWhole(whole: bytes) -> tuple[int, bool]:
    """
    @return: the first two values that L{measure} returns, for a message in memory.
    """
    octets = len(whole) + countBareLF(whole)
    if not whole.endswith(b"\n") and whole:
        octets += 2
    isWireReady = octets == len(whole) and whole[:1] != b"." and DOT_LINE.search(whole) is None
    return octets, isWireReady


def peek(descriptor: int, size: int) -> bytes | None:
    """
    @return: the first octets of a file; L{None} if they are not in the page cache.
    """
    if _NOWAIT is None:
        return None
    buffer = bytearray(size)
    try:
        read = os.preadv(descriptor, [buffer], 0, _NOWAIT)
    except OSError:
        # Ignore the error, because the caller will read the file in a thread and get the error
        # again.
        return None
    return bytes(buffer[:read])


def _nextData(descriptor: int, offset: int, size: int) -> int:
    try:
        return min(os.lseek(descriptor, offset, os.SEEK_DATA), size)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size
        return offset


class FileRegion:
    """
    The octets of an open file that have not been sent yet.  L{FileBlocks} reads these octets.  An
    outlet (L{pop3svc.protocol.outlets}) may call L{sendTo} instead, which sends octets without
    reading them into memory.  The methods of this class use octets only if they are in the page
    cache.  They therefore never block.

    @ivar descriptor: a descriptor of the file.
    @ivar offset: the offset of the next octet in the file.
    @ivar left: the number of octets that have not been sent.
    """

    __slots__ = ("descriptor", "left", "offset")

    def __init__(self, descriptor: int, offset: int, length: int) -> None:
        """
        @param offset: the offset of the first octet in the file.
        @param length: the number of octets.
        """
        self.descriptor = descriptor
        self.offset = offset
        self.left = length

    def advance(self, octets: int) -> None:
        """
        Move the offset past octets that were read or sent.

        @param octets: the number of octets that were read or sent.
        @raise EOFError: the number of octets is 0, because the file has become shorter.
        """
        if not octets:
            raise EOFError("the file is shorter than expected")
        self.offset += octets
        self.left -= octets

    def readCached(self, size: int) -> bytes | None:
        """
        Read the next octets if they are in the page cache.

        @param size: the most octets to read.
        @return: the octets; L{None} if a thread has to read them from the disk.
        @raise OSError: the file cannot be read.
        """
        if _NOWAIT is None:
            return None
        buffer = bytearray(size)
        try:
            read = os.preadv(self.descriptor, [buffer], self.offset, _NOWAIT)
        except OSError as error:
            if error.errno not in _NOT_CACHED:
                raise
            return None
        if not read:
            # Some kernels return 0 before the end of the file is reached.  The caller then reads in
            # a thread.
            return None
        self.offset += read
        self.left -= read
        return bytes(memoryview(buffer)[:read])

    def sendTo(self, socket: int) -> int:
        """
        Send the next octets to a socket, as far as they are in the page cache.  The octets are sent
        unchanged.

        @param socket: a descriptor.
        @return: the number of octets sent; 0 if the caller has to read the octets and write them to
            the socket.
        @raise BlockingIOError: the socket's buffer is full.
        @raise ConnectionError: the client is gone.
        @raise OSError: the file cannot be read.
        """
        # Do not send the last octets, so that they share a packet with the end of the reply.
        size = min(_REGION, self.left - _LAST)
        size = self._cached(size) if size > 0 else 0
        if not size:
            return 0
        try:
            sent = os.sendfile(socket, self.descriptor, self.offset, size)
        except (BlockingIOError, ConnectionError):
            raise
        except OSError:
            # Perhaps the file system does not support sendfile(), or the file or the socket has an
            # error.  Ignore the error, because the caller then reads and writes without sendfile()
            # and gets a real error again.
            return 0
        self.advance(sent)
        return sent

    def _cached(self, size: int) -> int:
        """
        @return: how many of the next octets are in the page cache.
        """
        if _NOWAIT is None:
            return 0
        octet = bytearray(1)
        for distance in range(0, size, _PROBE):
            try:
                read = os.preadv(self.descriptor, [octet], self.offset + distance, _NOWAIT)
            except OSError as error:
                if error.errno not in _NOT_CACHED:
                    raise
                read = 0
            if not read:
                return distance
        return size


@implementer(IChunkedContent)
class FileBlocks:
    """
    The content of a file, read block by block.  If a block is not in the page cache, a thread reads
    it.

    @ivar region: the octets that have not been read yet.
    @ivar form: see L{WireForm}.
    """

    def __init__(
        self,
        descriptor: int,
        closing: Callable[[], object],
        runner: Executor | None = None,
        offset: int = 0,
        length: int | None = None,
        form: WireForm = WireForm.RAW,
        group: Hashable = None,
    ) -> None:
        """
        @param descriptor: a descriptor of the file.
        @param closing: called once after L{close}, when no thread reads from the descriptor any
            more.
        @param offset: the offset of the first octet in the file.
        @param length: the number of octets to read; L{None} for all octets up to the present end of
            the file.  If the file becomes shorter, reading fails.
        @param form: the form of the content.
        @param group: see L{Executor.run}.
        """
        self._group = group
        self.form = form
        self._closing = closing
        self._runner = disk() if runner is None else runner
        if length is None:
            length = max(os.fstat(descriptor).st_size - offset, 0)
        self.region = FileRegion(descriptor, offset, length)
        self._reading = False
        self._closed = False

    def nextChunk(self) -> Any:
        """
        See L{IChunkedContent.nextChunk}.
        """
        region = self.region
        size = min(_BLOCK, region.left)
        if not size:
            return None
        block = region.readCached(size)
        if block is not None:
            return block
        self._reading = True
        try:
            work = self._runner.run(
                *(os.pread, region.descriptor, size, region.offset),
                ended=self._haveRead,
                group=self._group,
            )
        except POP3ResponseError:
            self._reading = False
            raise
        return work.addCallback(self._haveBlock)

    def _haveRead(self) -> None:
        self._reading = False
        if self._closed:
            self._closing()

    def _haveBlock(self, block: bytes) -> bytes:
        self.region.advance(len(block))
        return block

    def close(self) -> None:
        """
        See L{IChunkedContent.close}.  If a thread is reading, the descriptor stays open until the
        thread has finished.  Otherwise another file could get the same descriptor, and the thread
        would read the other file.
        """
        if not self._closed:
            self._closed = True
            if not self._reading:
                self._closing()
