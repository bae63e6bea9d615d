"""
What a provider returns for a message, as a closable body; its size by reading.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.python.components import registerAdapter
from zope.interface import implementer

from pop3svc.awaiting import TimeSlice, awaitWithTimeout, isAwaitable
from pop3svc.errors import ProviderMistake
from pop3svc.files import FileBlocks
from pop3svc.interfaces import IChunkedContent, IFileContent, IMessageContent
from pop3svc.lineendings import WireSizeCounter
from pop3svc.protocol.remarks import HELD, nameOf, remarkHeld

__all__ = ["MessageBody", "countByReading"]

# Lines are handed on in pieces of about this many octets.
_PIECE = 16384
_BLOCK = 65536
# Messages of so many octets are worth a way of their own.
_LARGE = 262144


@implementer(IChunkedContent)
class _Bytes:
    """
    A message that is all there.
    """

    def __init__(self, octets: bytes) -> None:
        self._octets = octets
        self._offset = 0

    def nextChunk(self) -> bytes | None:
        block = self._octets[self._offset : self._offset + _BLOCK]
        self._offset += len(block)
        return block or None

    def close(self) -> None:
        self._octets = b""


@implementer(IChunkedContent)
class _BinaryFile:
    """
    A message read from a file object.
    """

    def __init__(self, file: Any) -> None:
        self._file = file

    def nextChunk(self) -> bytes | None:
        block = self._file.read(_BLOCK)
        if not isinstance(block, bytes):
            raise ProviderMistake("a file of a message is opened in binary mode")
        return block or None

    def close(self) -> None:
        self._file.close()


@implementer(IChunkedContent)
class _IterableOfLines:
    """
    A message given as lines, with or without their line ends.
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
                    f"the lines of a message are bytes, and one is {type(line).__name__}"
                )
            piece.append(line if line.endswith(b"\n") else line + b"\r\n")
            octets += len(line)
            if octets >= _PIECE:
                break
        return b"".join(piece) or None

    def close(self) -> None:
        # A generator has a close(), and its "finally" waits for it.
        close = getattr(self._source, "close", None)
        if close is not None:
            close()


def _fromFile(file: Any) -> Any:
    if isinstance(file, io.TextIOBase):
        raise ProviderMistake("a file of a message is opened in binary mode")
    if type(file) in (io.BufferedReader, io.FileIO, io.BufferedRandom) and file.seekable():
        return FileBlocks(file.fileno(), file.close, offset=file.tell())
    return _BinaryFile(file)


def _fromAnything(content: Any) -> Any:
    if isinstance(content, str) or not isinstance(content, Iterable):
        return None
    return _IterableOfLines(content)


registerAdapter(_Bytes, bytes, IChunkedContent)
for _kind in (bytearray, memoryview):
    registerAdapter(lambda octets: _Bytes(bytes(octets)), _kind, IChunkedContent)
registerAdapter(_fromFile, io.IOBase.__mro__[1], IChunkedContent)
registerAdapter(_fromAnything, object, IChunkedContent)


def _fromRegion(region: Any) -> FileBlocks:
    return FileBlocks(
        region.fileno,
        region.close,
        offset=region.offset,
        length=region.length,
        hasLineEnds=True,
        isWireReady=True,
    )


class MessageBody:
    """
    A L{pop3svc.protocol.replies.Body} of what C{messageContent} returned.
    """

    hasLineEnds = isWireReady = False
    sendTo: Callable[[int], int] | None = None
    _said: int | None = None
    _otherwise: Callable[[int, int], object] | None = None
    # Of the whole message, once it was sent.
    octets = 0

    def __init__(
        self, content: Any, clock: IReactorTime, timeout: float, call: Any = "messageContent"
    ) -> None:
        """
        @param content: provides L{IMessageContent}, L{IChunkedContent} or
            L{IFileContent}, or can be adapted to L{IChunkedContent}.
        @param timeout: seconds that one piece may take.
        @param call: the method that returned it, for the log.
        @raise ProviderMistake: it is none of these.
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
                self.hasLineEnds, self.isWireReady = content.hasLineEnds, content.isWireReady
                if content.isWireReady and content.length >= _LARGE:
                    self.sendTo = content.sendTo
            else:
                content = self._adapted(content)
            self._content = content
            self._next = content.nextChunk

    def _adapted(self, content: Any) -> Any:
        # An error of zope.interface would show the message.
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

    def expects(self, said: int | None, otherwise: Callable[[int, int], object]) -> None:
        """
        @param said: the size of the message as LIST tells it, octets, or L{None}.
        @param otherwise: called with that and the octets sent, if they differ.
        """
        self._said, self._otherwise = said, otherwise

    def wasSent(self, octets: int) -> None:
        """
        See L{pop3svc.protocol.replies.Body.wasSent}.
        """
        self.octets = octets
        if self._said is not None and self._said != octets and self._otherwise is not None:
            self._otherwise(self._said, octets)

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
                f"nextChunk of what {nameOf(self._call)} returned gave "
                f"{type(chunk).__name__}: it "
                "returns bytes, or None after the last"
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
                    f"nextLine of what {nameOf(self._call)} returned gave "
                    f"{type(line).__name__}: it "
                    "returns bytes, or None after the last"
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
    Read a message to its end and close it.

    @return: octets as they will be sent, without dot-stuffing.
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
