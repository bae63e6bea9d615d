"""
Make the body of a reply from the content that a provider returns.  Count the octets of a message by
reading the message.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.python.components import registerAdapter
from zope.interface import implementer

from pop3svc.awaiting import awaitWithTimeout, isAwaitable
from pop3svc.errors import ProviderMistake
from pop3svc.files import FileBlocks
from pop3svc.interfaces import IChunkedContent, IFileContent, IMessageContent, IWireContent
from pop3svc.lineendings import WireForm, WireSizeCounter
from pop3svc.protocol.remarks import HELD, nameOf, remarkHeld
from pop3svc.timing import TimeSlice

__all__ = ["MessageBody", "countByReading"]

# Lines are joined to pieces of at least this number of octets.
_PIECE = 16384
_BLOCK = 65536


@implementer(IChunkedContent)
class _Bytes:
    """
    A content that is in memory.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._offset = 0

    def nextChunk(self) -> bytes | None:
        block = self._data[self._offset : self._offset + _BLOCK]
        self._offset += len(block)
        return block or None

    def close(self) -> None:
        self._data = b""


@implementer(IChunkedContent)
class _BinaryFile:
    """
    A content that is read from a file object.
    """

    def __init__(self, file: Any) -> None:
        self._file = file

    def nextChunk(self) -> bytes | None:
        block = self._file.read(_BLOCK)
        if not isinstance(block, bytes):
            raise ProviderMistake("open the file of a message in binary mode")
        return block or None

    def close(self) -> None:
        self._file.close()


@implementer(IChunkedContent)
class _IterableOfLines:
    """
    A content that the provider returns as lines.  Each line may have a line end or no line end.
    """

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._source = lines
        self._lines: Iterator[bytes] = iter(lines)

    def nextChunk(self) -> bytes | None:
        piece: list[bytes] = []
        octets = 0
        for line in self._lines:
            if not isinstance(line, bytes):
                raise ProviderMistake(
                    f"a line of the message is {type(line).__name__}: yield bytes"
                )
            piece.append(line if line.endswith(b"\n") else line + b"\r\n")
            octets += len(line)
            if octets >= _PIECE:
                break
        return b"".join(piece) or None

    def close(self) -> None:
        # Close a generator, so that its "finally" blocks run.
        close = getattr(self._source, "close", None)
        if close is not None:
            close()


def _fromFile(file: Any) -> Any:
    if isinstance(file, io.TextIOBase):
        raise ProviderMistake("open the file of a message in binary mode")
    if type(file) in (io.BufferedReader, io.FileIO, io.BufferedRandom) and file.seekable():
        return FileBlocks(file.fileno(), file.close, offset=file.tell())
    return _BinaryFile(file)


def _fromAnything(content: Any) -> Any:
    if isinstance(content, str) or not isinstance(content, Iterable):
        return None
    return _IterableOfLines(content)


registerAdapter(_Bytes, bytes, IChunkedContent)
for _kind in (bytearray, memoryview):
    registerAdapter(lambda data: _Bytes(bytes(data)), _kind, IChunkedContent)
registerAdapter(_fromFile, io.IOBase.__mro__[1], IChunkedContent)
registerAdapter(_fromAnything, object, IChunkedContent)


def _fromRegion(region: Any) -> FileBlocks:
    return FileBlocks(
        region.fileno,
        region.close,
        offset=region.offset,
        length=region.length,
        form=WireForm.READY,
    )


class MessageBody:
    """
    A L{pop3svc.protocol.replies.Body} of the content that C{messageContent} returned.

    @ivar octets: the size of the message in octets.  It is set after the whole message was sent.
    """

    form = WireForm.RAW
    region: object = None
    _expected: int | None = None
    _differs: Callable[[int, int], object] | None = None
    octets = 0

    def __init__(
        self, content: Any, clock: IReactorTime, timeout: float, call: Any = "messageContent"
    ) -> None:
        """
        @param content: an object that provides L{IMessageContent}, L{IChunkedContent} or
            L{IFileContent}, or that can be adapted to L{IChunkedContent}.
        @param timeout: the time limit for reading one piece, in seconds.
        @param call: the method that has returned the content, for the log.
        @raise ProviderMistake: C{content} is another kind of object.
        """
        self._call = call
        self._clock = clock
        self._timeout = timeout
        if IMessageContent.providedBy(content):
            self._content: Any = content
            self._next: Callable[[], Any] | None = None
        else:
            if IFileContent.providedBy(content):
                content = _fromRegion(content)
            if isinstance(content, FileBlocks):
                self.form, self.region = content.form, content.region
            else:
                content = self._adapted(content)
                if IWireContent.providedBy(content):
                    self.form = content.form
            self._content = content
            self._next = content.nextChunk

    def _adapted(self, content: Any) -> Any:
        # Do not use the error of zope.interface, because its text could contain a part of the mail.
        try:
            adapted = IChunkedContent(content, None)
        except ProviderMistake as mistake:
            raise self._named(mistake)
        if adapted is None:
            raise ProviderMistake(
                f"{nameOf(self._call)} returned {type(content).__name__}: return bytes, a file in "
                "binary mode, an iterable of lines (bytes), or an object that provides "
                "IMessageContent, IChunkedContent or IFileContent"
            )
        return adapted

    def expects(self, size: int | None, differs: Callable[[int, int], object]) -> None:
        """
        After the whole message was sent, compare its size with the number of octets that were sent.

        @param size: the size in octets that LIST shows; L{None} if it is not known.
        @param differs: called with this size and the number of octets that were sent, if they
            differ.
        """
        self._expected, self._differs = size, differs

    def wasSent(self, octets: int) -> None:
        """
        See L{pop3svc.protocol.replies.Body.wasSent}.
        """
        self.octets = octets
        size = self._expected
        if size is not None and size != octets and self._differs is not None:
            self._differs(size, octets)

    def next(self) -> Any:
        """
        See L{pop3svc.protocol.replies.Body.next}.
        """
        if self._next is None:
            return self._lines()
        began = self._clock.seconds()
        try:
            chunk = self._next()
        except ProviderMistake as mistake:
            raise self._named(mistake)
        finally:
            held = self._clock.seconds() - began
            if held > HELD:
                remarkHeld(self._call, held)
        if chunk is None or isinstance(chunk, bytes):
            return chunk
        return self._chunk(chunk)

    def _named(self, mistake: ProviderMistake) -> ProviderMistake:
        return ProviderMistake(f"{nameOf(self._call)}: {mistake}")

    async def _chunk(self, chunk: Any) -> bytes | None:
        if isAwaitable(chunk):
            chunk = await awaitWithTimeout(chunk, self._clock, self._timeout)
        if not isinstance(chunk, bytes | None):
            raise ProviderMistake(
                f"nextChunk of the content from {nameOf(self._call)} returned "
                f"{type(chunk).__name__}: return bytes, or None after the last"
            )
        return chunk

    async def _lines(self) -> bytes | None:
        piece: list[bytes] = []
        octets = 0
        while octets < _PIECE:
            began = self._clock.seconds()
            line = self._content.nextLine()
            held = self._clock.seconds() - began
            if held > HELD:
                remarkHeld(self._call, held)
            if isAwaitable(line):
                line = await awaitWithTimeout(line, self._clock, self._timeout)
            if line is None:
                break
            if not isinstance(line, bytes):
                raise ProviderMistake(
                    f"nextLine of the content from {nameOf(self._call)} returned "
                    f"{type(line).__name__}: return bytes, or None after the last"
                )
            piece.append(line)
            octets += len(line) + 2
        if not piece:
            return None
        piece.append(b"")
        return b"\r\n".join(piece)

    def close(self) -> None:
        """
        See L{pop3svc.protocol.replies.Body.close}.
        """
        self._content.close()


async def countByReading(body: MessageBody, clock: IReactorTime) -> int:
    """
    Read a message to its end, and close it.

    @return: the number of octets that the message has on the wire, without dot-stuffing.
    """
    count = WireSizeCounter()
    turns = TimeSlice(clock)
    try:
        while True:
            chunk = body.next()
            if isAwaitable(chunk):
                chunk = await chunk
            if chunk is None:
                return count.total()
            count.feed(chunk)
            await turns.yieldIfDue()
    finally:
        body.close()
