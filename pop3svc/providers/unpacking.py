"""
Read mail that Dovecot has compressed.  The first octets of a file tell whether and how the file is
compressed.
"""

from __future__ import annotations

import bz2
import errno
import lzma
import os
import zlib
from collections.abc import Callable, Hashable, Iterator
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from pop3svc.errors import POP3ResponseError
from pop3svc.fileuser import asService
from pop3svc.interfaces import IChunkedContent
from pop3svc.lineendings import WireSizeCounter
from pop3svc.threadpool import Executor, isCancelled

__all__ = ["CannotUnpack", "PackedBlocks", "countUnpacked", "packedAs", "unpacked"]

_READ = 65536
# The most octets of an unpacked piece.  A piece in Dovecot's LZ4 format is a whole chunk instead.
_PIECE = 131072
# The most octets of an unpacked message.  Anybody can send a small message that unpacks to
# gigabytes, so there must be a limit.  Real mail is smaller than this limit.
LARGEST = 536_870_912

_GZIP, _BZIP2, _XZ = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0"
_ZSTD, _LZ4, _ENCRYPTED = b"\x28\xb5\x2f\xfd", b"Dovecot-LZ4\x0d\x2a\x9b\xc5", b"CRYPTED\x03\x07"
_MAGIC = (_GZIP, _BZIP2, _XZ, _ZSTD, _LZ4, _ENCRYPTED)
# The most octets of an unpacked chunk in Dovecot's LZ4 format.  Dovecot itself writes chunks of
# 64 KiB.
_CHUNK = 1_048_576


class CannotUnpack(Exception):
    """
    A message cannot be unpacked: it is damaged, too large or encrypted, or a library for its
    compression is missing.  The text of the exception is for the operator.
    """


def packedAs(first: bytes) -> bytes | None:
    """
    @param first: at least the first 16 octets of a file.
    @return: the magic number of the compression, or of Dovecot's encryption; L{None} if the file is
        neither compressed nor encrypted.
    """
    if not first.startswith(_MAGIC):
        return None
    for magic in _MAGIC:
        if first.startswith(magic) and (magic is not _BZIP2 or b"1" <= first[3:4] <= b"9"):
            return magic
    return None


def _library(name: str) -> Any:
    try:
        # Import with the rights of the service, because a user may not be allowed to read the files
        # of the library.
        with asService():
            return __import__(name, fromlist=["*"])
    except ImportError:
        raise CannotUnpack(f"needs a library: pip install 'pop3svc[{name.partition('.')[0]}]'")


class _Zlib:
    """
    The decompressor of zlib.  It has the same interface as the decompressors of bz2 and lzma.
    """

    def __init__(self) -> None:
        self._inside = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._inside.eof

    @property
    def needs_input(self) -> bool:
        return not self._inside.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inside.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inside.decompress(self._inside.unconsumed_tail + data, max_length)


_STREAMS: dict[bytes, Callable[[], Any]] = {
    _GZIP: _Zlib,
    _BZIP2: bz2.BZ2Decompressor,
    _XZ: lambda: lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=134_217_728),
}


def unpacked(descriptor: int, kind: bytes) -> Iterator[bytes]:
    """
    Unpack a file.  Blocks.

    @param kind: the result of L{packedAs}.
    @return: the unpacked octets, in pieces of bounded size.
    @raise CannotUnpack: the message cannot be unpacked.  The iterator raises this error, and not
        the function itself.
    @raise OSError: the file cannot be read, or the work was cancelled.  The iterator raises this
        error as well.
    """
    octets = 0
    try:
        for piece in _pieces(descriptor, kind):
            octets += len(piece)
            if octets > LARGEST:
                raise CannotUnpack(f"unpacks to more than {LARGEST} octets")
            if isCancelled():
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
            yield piece
    except (zlib.error, lzma.LZMAError, EOFError, ValueError, MemoryError) as error:
        raise CannotUnpack(f"is damaged: {error or type(error).__name__}")
    except OSError as error:
        # An OSError without an errno comes from bz2 and means that the data is damaged.
        if error.errno is not None:
            raise
        raise CannotUnpack(f"is damaged: {error}")


def _pieces(descriptor: int, kind: bytes) -> Iterator[bytes]:
    if kind == _ENCRYPTED:
        raise CannotUnpack("is encrypted by Dovecot")
    if kind == _LZ4:
        return _lz4(descriptor)
    if kind == _ZSTD:
        return _zstd(descriptor)
    return _streams(descriptor, _STREAMS[kind])


def _streams(descriptor: int, make: Callable[[], Any]) -> Iterator[bytes]:
    offset, data, stream = 0, b"", make()
    while True:
        if not data and stream.needs_input:
            data = os.pread(descriptor, _READ, offset)
            offset += len(data)
            if not data:
                raise EOFError("the data is truncated")
        piece = stream.decompress(data, _PIECE)
        data = b""
        if piece:
            yield piece
        if stream.eof:
            data = stream.unused_data
            if not data:
                data = os.pread(descriptor, _READ, offset)
                offset += len(data)
            if not data:
                return
            # Another compressed stream follows in the same file.
            stream = make()


class _Pread:
    """
    A file object that reads from a descriptor, because the library zstandard needs a file object.
    The object does not read ahead and does not own the descriptor.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._offset = 0

    def read(self, size: int) -> bytes:
        """
        @return: the next octets, at most C{size} of them.
        """
        block = os.pread(self._descriptor, size, self._offset)
        self._offset += len(block)
        return block


def _zstd(descriptor: int) -> Iterator[bytes]:
    library = _library("zstandard")
    decompressor = library.ZstdDecompressor(max_window_size=134_217_728)
    reader = decompressor.stream_reader(_Pread(descriptor), read_across_frames=True)
    try:
        while piece := reader.read(_PIECE):
            yield piece
    except library.ZstdError as error:
        raise ValueError(str(error))


def _lz4(descriptor: int) -> Iterator[bytes]:
    library = _library("lz4.block")
    offset = len(_LZ4)
    largest = int.from_bytes(os.pread(descriptor, 4, offset))
    if not 0 < largest <= _CHUNK:
        raise ValueError("a chunk is too large")
    offset += 4
    while length := os.pread(descriptor, 4, offset):
        octets = int.from_bytes(length)
        chunk = os.pread(descriptor, min(octets, 2 * _CHUNK), offset + 4)
        if len(length) < 4 or len(chunk) != octets:
            raise EOFError("the data is truncated")
        try:
            yield library.decompress(chunk, uncompressed_size=largest)
        except library.LZ4BlockError as error:
            raise ValueError(str(error))
        offset += 4 + octets


def countUnpacked(descriptor: int, kind: bytes) -> int:
    """
    Unpack a message and count its octets on the wire.  Blocks.

    @raise CannotUnpack: the message cannot be unpacked.
    @raise OSError: the file cannot be read, or the work was cancelled.
    """
    count = WireSizeCounter()
    for piece in unpacked(descriptor, kind):
        count.feed(piece)
    return count.total()


@implementer(IChunkedContent)
class PackedBlocks:
    """
    The content of a compressed message, unpacked piece by piece in threads.
    """

    def __init__(
        self,
        descriptor: int,
        kind: bytes,
        closing: Callable[[], object],
        runner: Executor,
        group: Hashable,
    ) -> None:
        """
        @param closing: called once, when nothing reads from the descriptor any more.
        @param group: see L{Executor.run}.
        """
        self._pieces = unpacked(descriptor, kind)
        self._closing = closing
        self._runner = runner
        self._group = group
        self._isReading = False
        self._isClosed = False

    def nextChunk(self) -> Deferred[bytes | None]:
        """
        See L{IChunkedContent.nextChunk}.
        """
        self._isReading = True
        try:
            return self._runner.run(
                next, self._pieces, None, ended=self._haveRead, group=self._group
            )
        except POP3ResponseError:
            self._isReading = False
            raise

    def _haveRead(self) -> None:
        self._isReading = False
        if self._isClosed:
            self._closing()

    def close(self) -> None:
        """
        See L{IChunkedContent.close}.  If a thread is reading, the descriptor stays open until the
        thread has finished.  Otherwise another file could get the same descriptor, and the thread
        would read the other file.
        """
        if not self._isClosed:
            self._isClosed = True
            if not self._isReading:
                self._closing()
