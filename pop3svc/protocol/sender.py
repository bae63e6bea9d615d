"""
Write one reply to a consumer, at the consumer's pace.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IPushProducer, IReactorTime
from zope.interface import implementer

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


@implementer(IPushProducer)
class ReplySender:
    """
    Sends the replies of one connection, one at a time.

    @ivar octetsSent: octets written to the transport so far.
    """

    def __init__(self, transport: Any, clock: IReactorTime, stallTimeout: float) -> None:
        """
        @param transport: L{twisted.internet.interfaces.IConsumer}
        @param stallTimeout: seconds without progress until L{Stalled}.
        """
        self._transport = transport
        self._clock = clock
        self._stallTimeout = stallTimeout
        self._paused = False
        self._stopped = False
        self._resumed: Deferred[None] | None = None
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
            self._transport.registerProducer(self, True)
            try:
                return await self._write(firstLine(reply), reply)
            finally:
                self._transport.unregisterProducer()
        finally:
            if body is not None:
                body.close()

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
        if self._stopped:
            raise ConnectionLost()

    async def _room(self) -> None:
        resumed: Deferred[None] = Deferred()
        self._resumed = resumed
        timer = self._clock.callLater(self._stallTimeout, resumed.errback, Stalled())
        try:
            await resumed
        finally:
            self._resumed = None
            if timer.active():
                timer.cancel()

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
