"""
Read local files without following what a stranger put there, and without
making the reactor wait for a disk.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
import time
from collections.abc import Callable, Hashable
from typing import Any

from zope.interface import implementer

from pop3svc.awaiting import BoundedThreadPool, Executor, isCancelled, tellProgress
from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import IChunkedContent
from pop3svc.lineendings import DOT_LINE, WireSizeCounter, countBareLF

__all__ = [
    "FileBlocks",
    "Stamp",
    "closeQuietly",
    "countOctets",
    "disk",
    "isStampTrustworthy",
    "longWork",
    "measure",
    "openDirectory",
    "openFile",
    "openRegular",
    "openReplaceable",
    "peek",
    "readReplaceable",
    "setPrivileged",
    "stampOf",
    "writeWhole",
]

# Large enough that the work for each block does not count, small enough to
# hold one for each of many clients.
_BLOCK = 131072
# What is sent at once without being read, and how far apart it is looked
# whether it is in the page cache: the kernel reads ahead by more.
_REGION = 1048576
_PROBE = 16384
_COUNTING_BLOCK = 1048576
# What is kept back of a message that is sent without being read.
_LAST = 4096

_TICK_NS = 20_000_000
_SECOND_NS = 1_000_000_000

# Reads only what is in the page cache; Linux.
_NOWAIT: int | None = getattr(os, "RWF_NOWAIT", None)
_NOT_AT_ONCE = (errno.EAGAIN, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)

# One read for each connection at most, and connections are counted elsewhere.
_disk = BoundedThreadPool("pop3svc-disk", threads=8, waiting=100_000)
# What may take minutes has threads of its own, so that short work finds one: two,
# because more of it at once is no faster.
_longWork = BoundedThreadPool("pop3svc-long", threads=2, waiting=10_000)


def disk() -> BoundedThreadPool:
    """
    @return: the threads in which files are read and written.
    """
    return _disk


def longWork() -> BoundedThreadPool:
    """
    @return: the threads for what may take long, as to count a large mailbox.
    """
    return _longWork


def closeQuietly(descriptor: int) -> None:
    """
    Close what was read, or made durable by other means: whatever the file
    system says then, the descriptor is closed, and what was done is done.
    """
    try:
        os.close(descriptor)
    except OSError:
        pass


def openRegular(name: str, directory: int | None = None) -> int:
    """
    Open a file for reading if it is a regular one: no link is followed, no
    FIFO waited for.

    @param directory: an open directory that C{name} is relative to.
    @return: a descriptor.
    @raise OSError: it is not there, or something else than a file.
    """
    return openFile(name, directory)[0]


def openFile(name: str, directory: int | None = None) -> tuple[int, os.stat_result]:
    """
    As L{openRegular}.

    @return: a descriptor, and what it is of.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENODEV):
            # A link, a socket, a device.
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
    Open a directory; no link is followed in the last part of its name.

    @return: a descriptor.
    @raise OSError: it is not there, or something else than a directory.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, dir_fd=directory)


Stamp = tuple[int, ...]

# Octets of a file that is read whole: a password file of two million users.
_LARGEST = 268_435_456
# What opens a file that this user may not open any more.
_privileged: Callable[[str], int] | None = None


def setPrivileged(opener: Callable[[str], int] | None) -> None:
    """
    Say what opens those files for reading that were named when the service still had
    its privileges.

    @param opener: takes a path, returns a descriptor, raises L{OSError}.
    """
    global _privileged
    _privileged = opener
    _stamps.clear()


def openReplaceable(path: str) -> int:
    """
    Open a file for reading that others may replace at any time: a certificate, its
    key, a password file.  Links are followed, as certbot makes some.  Whatever stands
    there, nothing is waited for.

    @return: a descriptor of a regular file.
    @raise OSError: it cannot be opened, or is something else.
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
            # A socket, a device.
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
    Read a file whole that others may replace at any time; see L{openReplaceable}.
    Blocks, as long as the disk takes.

    @param most: octets that it may have.
    @raise OSError: it cannot be read, is no regular file, or is larger.
    """
    descriptor = openReplaceable(path)
    with open(descriptor, "rb", buffering=0) as file:
        # Also of a file that grows while it is read.
        octets = bytearray()
        while block := file.read(min(_COUNTING_BLOCK, most + 1 - len(octets))):
            octets += block
            if len(octets) > most:
                raise OSError(errno.EFBIG, f"Larger than {most} octets", path)
    return bytes(octets)


def stampOf(path: str) -> Stamp | None:
    """
    @return: what changes whenever a file is changed or replaced; L{None} if it is
        not there, or cannot be looked at.
    """
    try:
        status = os.stat(path)
    except PermissionError:
        if _privileged is None:
            return None
        return _stampOfPrivileged(path, _privileged)
    except OSError:
        return None
    return _stamp(status)


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_ctime_ns


# Seconds for which a stamp holds that another process has to be asked for: logins come
# more often than an operator changes anything.
_STAMP_LIFE = 0.1
_stamps: dict[str, tuple[float, Stamp | None]] = {}


def _stampOfPrivileged(path: str, opener: Callable[[str], int]) -> Stamp | None:
    now = time.monotonic()
    when, stamp = _stamps.get(path, (-1.0, None))
    if when < 0 or now - when > _STAMP_LIFE:
        try:
            descriptor = opener(path)
        except OSError:
            stamp = None
        else:
            try:
                stamp = _stamp(os.fstat(descriptor))
            finally:
                closeQuietly(descriptor)
        # By the few files that were named when the service began.
        _stamps[path] = now, stamp
    return stamp


def isStampTrustworthy(latest: int) -> bool:
    """
    What has changed so recently may change again without its times telling.

    @param latest: nanoseconds, the latest of the times of what is looked at.
    @return: are they old enough to tell of any change from now on?
    """
    # Most file systems count in ticks, some in whole seconds, or in two.
    tick = _TICK_NS if latest % _SECOND_NS else 2 * _SECOND_NS + _TICK_NS
    # A time ahead of the clock tells, too: a change would set it back to now.
    return abs(time.time_ns() - latest) > tick


def writeWhole(path: str, octets: bytes, owner: tuple[int, int] | None = None) -> None:
    """
    Write a private file (0600) whole and durably, or not at all.  Blocks.

    @param owner: the user and group it is for.
    @raise OSError: nothing was written.
    """
    # A new file of its own: never one that somebody has put there.
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".pop3svc-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            if owner is not None:
                os.fchown(file.fileno(), *owner)
            file.write(octets)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def countOctets(descriptor: int) -> int:
    """
    Read a file and count its octets as they will be sent.  Blocks: not for
    the reactor thread.

    @raise OSError: it was given up, or cannot be read.
    """
    return measure(descriptor, os.fstat(descriptor).st_size)[0]


def measure(descriptor: int, size: int) -> tuple[int, bool, bytes]:
    """
    Read a file and count its octets as they will be sent.  Blocks: not for
    the reactor thread.

    @param size: of the file, octets.
    @return: the octets, whether what is sent is the file to the octet (line ends CRLF,
        the last one there, and no line begins with a dot), and the first 1,024 octets.
    @raise OSError: it was given up, or cannot be read.
    """
    if isCancelled():
        raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
    tellProgress()
    if size <= _BLOCK:
        # As nearly all are; there are many.
        block = os.pread(descriptor, size, 0)
        if len(block) == size:
            return *_examined(block), block[:1024]
    count = WireSizeCounter()
    offset, last, hasDots = 0, b"\n", False
    first = b""
    while offset < size:
        if isCancelled():
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        # What is no data is NULs, however many: they need no reading.
        data = _nextData(descriptor, offset, size)
        count.skip(data - offset)
        block = os.pread(descriptor, min(_COUNTING_BLOCK, size - data), data)
        if not block:
            break
        if not data:
            first = block[:1024]
        tellProgress()
        count.feed(block)
        hasDots = hasDots or b"\n." in block or (block[0] == 0x2E and last == b"\n")
        last = block[-1:]
        offset = data + len(block)
    octets = count.total()
    return octets, octets == size and not hasDots, first


def _examined(whole: bytes) -> tuple[int, bool]:
    """
    As L{measure}, of a message that is all there.
    """
    octets = len(whole) + countBareLF(whole)
    if not whole.endswith(b"\n") and whole:
        octets += 2
    isWireReady = octets == len(whole) and whole[:1] != b"." and DOT_LINE.search(whole) is None
    return octets, isWireReady


def peek(descriptor: int, octets: int) -> bytes | None:
    """
    @return: the first octets of a file; L{None} if they are not in the page cache.
    """
    if _NOWAIT is None:
        return None
    buffer = bytearray(octets)
    try:
        read = os.preadv(descriptor, [buffer], 0, _NOWAIT)
    except OSError:
        # A read in a thread will tell.
        return None
    return bytes(buffer[:read])


def _nextData(descriptor: int, offset: int, size: int) -> int:
    try:
        return min(os.lseek(descriptor, offset, os.SEEK_DATA), size)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size
        return offset


@implementer(IChunkedContent)
class FileBlocks:
    """
    A file read block by block: at once what is in the page cache, in a thread
    what is not.
    """

    def __init__(
        self,
        descriptor: int,
        closing: Callable[[], object],
        runner: Executor | None = None,
        offset: int = 0,
        length: int | None = None,
        hasLineEnds: bool = False,
        isWireReady: bool = False,
        group: Hashable = None,
    ) -> None:
        """
        @param descriptor: of the file.
        @param closing: called once, when the descriptor is no longer read.
        @param offset: octets, where to begin.
        @param length: octets to read, all that are there now if L{None}; if
            fewer are there when they are read that is an error.
        @param hasLineEnds: are these octets whole lines that end with CRLF?
        @param isWireReady: and does none of them begin with a dot?
        @param group: of work on the same mailbox; see L{Executor.run}.
        """
        self._group = group
        self.hasLineEnds = hasLineEnds
        self.isWireReady = isWireReady
        self._descriptor = descriptor
        self._closing = closing
        self._runner = disk() if runner is None else runner
        self._offset = offset
        if length is None:
            length = max(os.fstat(descriptor).st_size - offset, 0)
        self.length = self._left = length
        self._reading = False
        self._closed = False

    def nextChunk(self) -> Any:
        """
        See L{IChunkedContent.nextChunk}.
        """
        size = min(_BLOCK, self._left)
        if not size:
            return None
        if _NOWAIT is not None:
            buffer = bytearray(size)
            try:
                read = os.preadv(self._descriptor, [buffer], self._offset, _NOWAIT)
            except OSError as error:
                if error.errno not in _NOT_AT_ONCE:
                    raise
            else:
                # Some kernels say 0 before the end; a thread will know.
                if read:
                    return self._advance(bytes(memoryview(buffer)[:read]))
        self._reading = True
        try:
            work = self._runner.run(
                *(os.pread, self._descriptor, size, self._offset),
                ended=self._haveRead,
                group=self._group,
            )
        except POP3ResponseError:
            self._reading = False
            raise
        return work.addCallback(self._advance)

    def sendTo(self, socket: int) -> int:
        """
        Send the next octets to a socket as they are, those of them that are in
        the page cache.

        @param socket: its descriptor.
        @return: how many octets that were; 0: they have to be read by
            L{nextChunk}.
        @raise BlockingIOError: the socket takes none now.
        @raise ConnectionError: the client is gone.
        @raise OSError: the file is broken.
        """
        # The last octets go out with the end of the reply.
        size = min(_REGION, self._left - _LAST)
        size = self._cached(size) if size > 0 else 0
        if not size:
            return 0
        try:
            sent = os.sendfile(socket, self._descriptor, self._offset, size)
        except (BlockingIOError, ConnectionError):
            raise
        except OSError:
            # A file system that cannot do that, or an error that whoever reads and
            # writes in the ordinary way will see, too.
            return 0
        if not sent:
            raise EOFError("the file is shorter than it was said to be")
        self._offset += sent
        self._left -= sent
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
                read = os.preadv(self._descriptor, [octet], self._offset + distance, _NOWAIT)
            except OSError as error:
                if error.errno not in _NOT_AT_ONCE:
                    raise
                read = 0
            if not read:
                return distance
        return size

    def _haveRead(self) -> None:
        self._reading = False
        if self._closed:
            self._closing()

    def _advance(self, block: bytes) -> bytes:
        self._offset += len(block)
        if not block:
            raise EOFError("the file is shorter than it was said to be")
        self._left -= len(block)
        return block

    def close(self) -> None:
        """
        See L{IChunkedContent.close}.  A read under way is let finish, so that
        its descriptor is not given to another file meanwhile.
        """
        if not self._closed:
            self._closed = True
            if not self._reading:
                self._closing()
