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
from zope.interface import Interface, implementer

from pop3svc.calling import Turns
from pop3svc.protocol.replies import Reply
from pop3svc.protocol.wire import MultiLine, firstLine

__all__ = ["IReplyByReply", "ReplySender", "Stalled"]

# Pieces smaller than this wait for the next, so that a short reply is one
# write, and one segment, and so are many short ones.
_PIECE = 65536


class IReplyByReply(Interface):
    """
    Marker.  A transport that wants to know where each reply begins and ends:
    the sender is its producer for one reply at a time, and gathers none.
    """


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
    Sends the replies of one connection, one at a time.  Short ones are gathered
    until L{flush}.

    @ivar octetsSent: octets written to the transport so far.
    """

    def __init__(
        self,
        transport: Any,
        clock: IReactorTime,
        stallTimeout: float,
        marksMultiLine: bool = False,
        isTLS: bool = False,
    ) -> None:
        """
        @param transport: L{twisted.internet.interfaces.IConsumer}
        @param stallTimeout: seconds without progress until L{Stalled}.
        @param marksMultiLine: is MULTI-LINE-IND on?
        @param isTLS: is what is written encrypted?
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
        self._gathered: list[bytes] = []
        self._octets = 0
        self._byReply = IReplyByReply.providedBy(transport)
        # Of a plain TCP transport.
        self._writeAtOnce = None if isTLS or self._byReply else getattr(transport, "doWrite", None)

    def startTLS(self) -> None:
        """
        What is written from here on is encrypted.
        """
        self._writeAtOnce = None

    async def send(self, reply: Reply) -> bool:
        """
        Gather a reply's octets, write them when they are many, and close the
        body.

        @return: was the body, if any, sent to its end?
        @raise Stalled: the client took nothing for too long.
        @raise ConnectionLost: the transport stopped us.
        """
        self._turns = Turns(self._clock)
        if not self._byReply:
            return await self._send(reply)
        self._register()
        try:
            isWhole = await self._send(reply)
            await self._flush()
        finally:
            self._transport.unregisterProducer()
        return isWhole

    def _register(self) -> None:
        self._paused = self._stopped = False
        self._transport.registerProducer(self, True)

    async def _send(self, reply: Reply) -> bool:
        flush = self._flush if self._byReply else self.flush
        self._gather(self._firstLine(reply))
        body = reply.body
        whole = True
        if body is not None:
            try:
                encoder = MultiLine(reply.topLines)
                while not encoder.done:
                    chunk = await body.next()
                    if chunk is None:
                        break
                    self._gather(encoder.feed(chunk))
                    if self._octets >= _PIECE:
                        await flush()
                whole = not encoder.done
                self._gather(encoder.finish())
            finally:
                body.close()
        if self._octets >= _PIECE:
            await flush()
        return whole

    def say(self, reply: Reply) -> None:
        """
        Write a short single-line reply that answers nothing: the greeting, a
        last word.
        """
        self._gather(self._firstLine(reply))
        self.flushNow()

    def _firstLine(self, reply: Reply) -> bytes:
        return firstLine(reply, self._marksMultiLine)

    def _gather(self, octets: bytes) -> None:
        self._gathered.append(octets)
        self._octets += len(octets)
        self.octetsSent += len(octets)

    @property
    def hasGathered(self) -> bool:
        """
        Is there anything that was not written yet?
        """
        return self._octets > 0

    def flushNow(self) -> None:
        """
        Write what was gathered, however full the transport is.
        """
        if self._octets:
            gathered, self._gathered, self._octets = self._gathered, [], 0
            self._transport.write(b"".join(gathered))
            if self._writeAtOnce is not None:
                # Not only when the reactor comes round again.  What goes
                # wrong it will find out, too.
                self._writeAtOnce()

    async def flush(self) -> None:
        """
        Write what was gathered, and wait until there is room for more.

        @raise Stalled: the client took nothing for too long.
        @raise ConnectionLost: the transport stopped us.
        """
        self._register()
        try:
            await self._flush()
        finally:
            self._transport.unregisterProducer()

    async def _flush(self) -> None:
        if not self._stopped:
            self.flushNow()
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
