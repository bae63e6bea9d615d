"""
Read local files without following what a stranger put there, and without
making the reactor wait for a disk.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from pop3svc.calling import Runner, Workers
from pop3svc.interfaces import IChunkedContent
from pop3svc.octets import OctetCount

__all__ = ["FileBlocks", "countOctets", "disk", "openDirectory", "openRegular"]

# Large enough that the work for each block does not count, small enough to
# hold one for each of many clients.
_BLOCK = 65536
_COUNTING_BLOCK = 1048576

# Reads only what is in the page cache; Linux.
_NOWAIT: int | None = getattr(os, "RWF_NOWAIT", None)
_NOT_AT_ONCE = (errno.EAGAIN, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)

# One read for each connection at most, and connections are counted elsewhere.
_disk = Workers("pop3svc-disk", threads=8, waiting=100_000)


def disk() -> Runner:
    """
    @return: the threads in which files are read and written.
    """
    return _disk


def openRegular(name: str, directory: int | None = None) -> int:
    """
    Open a file for reading if it is a regular one: no link is followed, no
    FIFO waited for.

    @param directory: an open directory that C{name} is relative to.
    @return: a descriptor.
    @raise OSError: it is not there, or something else than a file.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENODEV):
            # A link, a socket, a device.
            raise OSError(errno.ENOENT, "not a regular file")
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.ENOENT, "not a regular file")
    return descriptor


def openDirectory(name: str, directory: int | None = None) -> int:
    """
    Open a directory; no link is followed in the last part of its name.

    @return: a descriptor.
    @raise OSError: it is not there, or something else than a directory.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, dir_fd=directory)


def countOctets(descriptor: int) -> int:
    """
    Read a file and count its octets as they will be sent.  Blocks: not for
    the reactor thread.
    """
    count = OctetCount()
    offset = 0
    while True:
        block = os.pread(descriptor, _COUNTING_BLOCK, offset)
        if not block:
            return count.total()
        count.feed(block)
        offset += len(block)


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
        runner: Runner | None = None,
        offset: int = 0,
        length: int | None = None,
    ) -> None:
        """
        @param closing: called once, when the descriptor is no longer read.
        @param offset: octets, where to begin.
        @param length: octets to read, all if L{None}.
        """
        self._descriptor = descriptor
        self._closing = closing
        self._runner = disk() if runner is None else runner
        self._offset = offset
        self._left = length
        self._reading = False
        self._closed = False

    def nextChunk(self) -> Any:
        """
        See L{IChunkedContent.nextChunk}.
        """
        size = _BLOCK if self._left is None else min(_BLOCK, self._left)
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
                return self._advance(bytes(memoryview(buffer)[:read]))
        self._reading = True
        reading: Deferred[bytes] = Deferred()
        self._runner.run(os.pread, self._descriptor, size, self._offset).addBoth(
            self._haveRead, reading
        )
        return reading

    def _haveRead(self, outcome: Any, reading: Deferred[Any]) -> None:
        self._reading = False
        if self._closed:
            self._closing()
        if isinstance(outcome, bytes):
            reading.callback(self._advance(outcome))
        else:
            reading.errback(outcome)

    def _advance(self, block: bytes) -> bytes | None:
        self._offset += len(block)
        if self._left is not None:
            if not block:
                raise EOFError("the file is shorter than it was said to be")
            self._left -= len(block)
        return block or None

    def close(self) -> None:
        """
        See L{IChunkedContent.close}.  A read under way is let finish, so that
        its descriptor is not given to another file meanwhile.
        """
        if not self._closed:
            self._closed = True
            if not self._reading:
                self._closing()
