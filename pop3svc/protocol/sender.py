"""
Write one reply to a consumer, at the consumer's pace.
"""

from __future__ import annotations

import fcntl
import sys
import termios
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from zope.interface import implementer

from pop3svc.calling import Turns
from pop3svc.protocol.replies import Reply
from pop3svc.protocol.wire import MultiLine, firstLine

__all__ = ["ReplySender", "Stalled"]

# Pieces smaller than this wait for the next, so that a short reply is one
# write, and one segment.
_PIECE = 16384


class Stalled(Exception):
    """
    The client takes nothing of what it asked for.
    """


def _queued(transport: Any) -> int | None:
    """
    @return: octets that the kernel holds for the client, if it tells.
    """
    try:
        buffer = fcntl.ioctl(transport.fileno(), termios.TIOCOUTQ, b"\0" * 4)
    except (AttributeError, OSError, TypeError, ValueError):
        return None
    return int.from_bytes(buffer, sys.byteorder)


@implementer(IPushProducer)
class ReplySender:
    """
    Sends the replies of one connection, one at a time.

    @ivar octetsSent: octets written to the transport so far.
    """

    def __init__(
        self,
        transport: Any,
        clock: IReactorTime,
        stallTimeout: float,
        marksMultiLine: bool = False,
    ) -> None:
        """
        @param transport: L{twisted.internet.interfaces.IConsumer}
        @param stallTimeout: seconds without progress until L{Stalled}.
        @param marksMultiLine: is MULTI-LINE-IND on?
        """
        self._marksMultiLine = marksMultiLine
        self._transport = transport
        self._clock = clock
        self._stallTimeout = stallTimeout
        self._paused = False
        self._stopped = False
        self._resumed: Deferred[None] | None = None
        self._turns = Turns(clock)
        self._timer: IDelayedCall | None = None
        self.octetsSent = 0

    async def send(self, reply: Reply) -> bool:
        """
        Write a reply and close its body.

        @return: was the body, if any, sent to its end?
        @raise Stalled: the client took nothing for too long.
        @raise ConnectionLost: the transport stopped us.
        """
        body = reply.body
        try:
            self._paused = self._stopped = False
            self._turns = Turns(self._clock)
            self._transport.registerProducer(self, True)
            try:
                return await self._write(self._firstLine(reply), reply)
            finally:
                self._transport.unregisterProducer()
        finally:
            if body is not None:
                body.close()

    def say(self, reply: Reply) -> None:
        """
        Write a short single-line reply that answers nothing: the greeting, a
        last word.
        """
        octets = self._firstLine(reply)
        self._transport.write(octets)
        self.octetsSent += len(octets)

    def _firstLine(self, reply: Reply) -> bytes:
        return firstLine(reply, self._marksMultiLine)

    async def _write(self, held: bytes, reply: Reply) -> bool:
        body = reply.body
        whole = True
        if body is not None:
            encoder = MultiLine(reply.topLines)
            while not encoder.done:
                chunk = await body.next()
                if chunk is None:
                    break
                held += encoder.feed(chunk)
                if len(held) >= _PIECE:
                    await self._put(held)
                    held = b""
            whole = not encoder.done
            held += encoder.finish()
        await self._put(held)
        return whole

    async def _put(self, octets: bytes) -> None:
        if not self._stopped:
            self._transport.write(octets)
            self.octetsSent += len(octets)
        if self._paused and not self._stopped:
            await self._room()
        else:
            # A transport that takes everything may be one that drops it.
            await self._turns.perhaps()
        if self._stopped:
            raise ConnectionLost()

    async def _room(self) -> None:
        resumed: Deferred[None] = Deferred()
        self._resumed = resumed
        self._look(resumed, None)
        try:
            await resumed
        finally:
            self._resumed = None
            if self._timer is not None and self._timer.active():
                self._timer.cancel()
            self._timer = None

    def _look(self, resumed: Deferred[None], before: int | None) -> None:
        """
        Does the client take anything?  The kernel may hold megabytes for one
        that is slow.
        """
        queued = _queued(self._transport)
        if self._timer is None or (queued is not None and before is not None and queued < before):
            self._timer = self._clock.callLater(self._stallTimeout, self._look, resumed, queued)
        else:
            resumed.errback(Stalled())

    def _wake(self) -> None:
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            resumed.callback(None)

    def pauseProducing(self) -> None:
        """
        See L{IPushProducer}.
        """
        self._paused = True

    def resumeProducing(self) -> None:
        """
        See L{IPushProducer}.
        """
        self._paused = False
        self._wake()

    def stopProducing(self) -> None:
        """
        See L{twisted.internet.interfaces.IProducer}.
        """
        self._stopped = True
        self._wake()
