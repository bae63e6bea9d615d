"""
Contents of messages in lines and in pieces.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import succeed
from zope.interface import implementer

from pop3svc.interfaces import IChunkedContent, IMessageContent

MESSAGE = b"a: b\r\n\r\n" + b"0123456789\r\n" * 20000


LINES = MESSAGE.split(b"\r\n")[:-1]


@implementer(IMessageContent)
class Lines:
    def __init__(self, lines: list[bytes], late: bool = False) -> None:
        self.lines = iter(lines)
        self.late = late
        self.closed = 0

    def nextLine(self) -> Any:
        line = next(self.lines, None)
        return succeed(line) if self.late else line

    def close(self) -> None:
        self.closed += 1


@implementer(IChunkedContent)
class Chunks:
    def __init__(self, chunks: list[Any]) -> None:
        self.chunks = iter(chunks)
        self.closed = 0

    async def nextChunk(self) -> Any:
        return next(self.chunks, None)

    def close(self) -> None:
        self.closed += 1
