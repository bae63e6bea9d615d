"""
A message that is being received.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from twisted.internet.defer import Deferred
from zope.interface import implementer

from pop3svc.client.decoding import BodyDecoder
from pop3svc.client.failures import ServerUnavailable
from pop3svc.interfaces import IChunkedContent

__all__ = ["Message"]

# The most octets of a message that may wait for the program.  If more octets wait, reading pauses
# until their number has fallen below the second value.
_HIGH, _LOW = 262_144, 65_536
# The most octets that are read and dropped if the program does not need the rest of a message.  If
# more octets are left, a new connection is quicker.
_MOST_DROPPED = 1_048_576


class _Client(Protocol):
    """
    The attributes and methods of a connection that a L{Message} uses.
    """

    isLost: bool
    why: str

    def abort(self, why: str) -> None: ...

    def pauseReading(self) -> None: ...

    def resumeReading(self) -> None: ...


@implementer(IChunkedContent)
class Message:
    """
    A message that is being received.  If the program does not take the octets, reading pauses, so
    that only a bounded part of the message is in memory.  A program reads the message with C{async
    for}, or by calls of L{nextChunk} until the result is L{None}.  In both cases it must call
    L{close} at the end.
    """

    def __init__(self, client: _Client, octets: int) -> None:
        """
        @param octets: the size that the server has reported, which may be wrong.
        """
        self._client = client
        self._decoder = BodyDecoder()
        self._expected = octets
        self._pieces: deque[bytes] = deque()
        self._waiting = 0
        self._received = 0
        self._isPaused = self._isClosed = False
        self._next: Deferred[None] | None = None
        self._isOver = False
        self._isWhole = False

    def feed(self, data: bytes) -> bytes | None:
        """
        Take octets from the connection.

        @param data: the next octets.
        @return: the octets after the message; L{None} if the message goes on.
        """
        piece = self._decoder.feed(data)
        self._received += len(piece)
        if self._decoder.rest is not None:
            self._isWhole = self._isOver = True
        if piece and not self._isClosed:
            self._pieces.append(piece)
            self._waiting += len(piece)
            if self._waiting > _HIGH and not self._isPaused and not self._isWhole:
                self._isPaused = True
                self._client.pauseReading()
        elif self._isClosed and self._received > 2 * self._expected + _MOST_DROPPED:
            # Allow twice the reported size, because some servers count each line end as one octet.
            self._client.abort("sends a message without end")
            return None
        self._wake()
        return self._decoder.rest

    def _wake(self) -> None:
        waiting, self._next = self._next, None
        if waiting is not None:
            waiting.callback(None)

    def lost(self) -> None:
        """
        Record that the connection has ended.
        """
        self._isOver = True
        self._wake()

    async def nextChunk(self) -> bytes | None:
        """
        @return: the next octets; L{None} at the end of the message.  The octets have CRLF as line
            ends, and no dot-stuffing.
        @raise ServerUnavailable: the connection was lost before the end of the message.
        """
        while not self._pieces:
            if self._isOver:
                if not self._isWhole:
                    raise ServerUnavailable(
                        self._client.why or "closed the connection in a message"
                    )
                return None
            self._resume()
            self._next = Deferred(self._cancelled)
            await self._next
        piece = self._pieces.popleft()
        self._waiting -= len(piece)
        if self._waiting < _LOW:
            self._resume()
        return piece

    def _cancelled(self, _: object) -> None:
        self._next = None
        self._client.abort("was disconnected, because the session ended")

    def __aiter__(self) -> Message:
        return self

    async def __anext__(self) -> bytes:
        piece = await self.nextChunk()
        if piece is None:
            raise StopAsyncIteration
        return piece

    def _resume(self) -> None:
        if self._isPaused:
            self._isPaused = False
            if not self._client.isLost:
                self._client.resumeReading()

    def close(self) -> None:
        """
        Take no more octets.  If the rest of the message is short, it is dropped, and the connection
        can still be used.  Otherwise the connection is ended.
        """
        if self._isClosed:
            return
        self._isClosed = True
        self._pieces.clear()
        if self._isOver:
            return
        if self._expected - self._received > _MOST_DROPPED:
            self._client.abort("was disconnected in a long message")
        else:
            self._resume()
