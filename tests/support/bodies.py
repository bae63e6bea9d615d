"""
Bodies of replies.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from pop3svc.files import FileRegion
from pop3svc.lineendings import WireForm


class Body:
    form = WireForm.RAW
    region: object = None

    def __init__(self, *chunks: Any) -> None:
        self.chunks = list(chunks)
        self.closed = 0
        self.octets: int | None = None

    async def next(self) -> Any:
        chunk = self.chunks.pop(0) if self.chunks else None
        if isinstance(chunk, Exception):
            raise chunk
        return await chunk if isinstance(chunk, Deferred) else chunk

    def wasSent(self, octets: int) -> None:
        self.octets = octets

    def close(self) -> None:
        self.closed += 1


class Plain:
    """
    A plain TCP transport whose socket accepts a limited number of octets.
    """

    def __init__(self, *takes: int) -> None:
        self.takes = list(takes)
        self.written = b""
        self.producer: Any = None
        self.isStreaming = True
        self.isWriting = False
        self.waiting = b""

    def writeSomeData(self, data: bytes) -> int:
        taken = bytes(data)[: self.takes.pop(0) if self.takes else 0]
        self.written += taken
        return len(taken)

    def write(self, data: bytes) -> None:
        self.waiting += data

    def registerProducer(self, producer: Any, isStreaming: bool) -> None:
        assert self.producer is None
        self.producer, self.isStreaming = producer, isStreaming
        if not isStreaming:
            producer.resumeProducing()

    def unregisterProducer(self) -> None:
        self.producer = None

    def startWriting(self) -> None:
        self.isWriting = True

    def fileno(self) -> int:
        return 7

    def drain(self) -> None:
        """
        Act as the reactor: let the socket accept all buffered octets.
        """
        self.written += self.waiting
        self.waiting, self.isWriting = b"", False
        if self.producer is not None:
            self.producer.resumeProducing()


class Steps(FileRegion):
    """
    A region of a file whose calls of C{sendTo} return or raise the given values.

    @ivar sockets: the descriptors that it was sent to.
    """

    __slots__ = ("sockets", "steps")

    def __init__(self, steps: list[Any], length: int) -> None:
        super().__init__(-1, 0, length)
        self.steps = steps
        self.sockets: set[int] = set()

    def sendTo(self, socket: int) -> int:
        self.sockets.add(socket)
        step = self.steps.pop(0)
        if isinstance(step, Exception):
            raise step
        sent: int = step
        return sent


class InFile(Body):
    """
    A body that needs no change, in a file.
    """

    form = WireForm.READY

    def __init__(self, steps: list[Any], *chunks: Any, length: int = 262_144) -> None:
        super().__init__(*chunks)
        self.region: Steps = Steps(steps, length)
