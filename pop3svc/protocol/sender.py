"""
Write one reply to a consumer, at the consumer's pace.
"""

from __future__ import annotations

import fcntl
import sys
import termios
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from zope.interface import implementer

from pop3svc.awaiting import TimeSlice, isAwaitable
from pop3svc.files import FileRegion
from pop3svc.lineendings import WireForm
from pop3svc.protocol.record import SessionRecord
from pop3svc.protocol.replies import Reply
from pop3svc.protocol.wire import MultiLine, firstLine

__all__ = ["ReplySender", "Stalled"]

# Gathered octets from which they are written.  Fewer octets wait, so that a short reply, or
# several, are one write and one segment.
_PIECE = 65536
# The octets of a TLS record (RFC 8446 section 5.1), and the fewest that the last record of
# a large reply holds.
_RECORD, _LAST = 16384, 512
# Octets of a region of a file from which sendfile() saves more than it costs.
_LARGE = 262144
# Seconds between two checks whether a slow client has read anything.
_LOOK = 15


class Stalled(Exception):
    """
    The client has read nothing of its replies for too long.
    """


def _queued(transport: Any) -> int | None:
    """
    @return: octets in the kernel's send buffer, or L{None} if that is not known.
    """
    try:
        buffer = fcntl.ioctl(transport.fileno(), termios.TIOCOUTQ, b"\0" * 4)
    except (AttributeError, OSError, TypeError, ValueError):
        return None
    return int.from_bytes(buffer, sys.byteorder)


def _sendable(region: object) -> FileRegion | None:
    """
    @return: the region if sendfile() saves more than it costs.
    """
    return region if isinstance(region, FileRegion) and region.left >= _LARGE else None


@implementer(IPushProducer)
class ReplySender:
    """
    Sends the replies of one connection, one at a time.  Short replies are gathered until
    L{flush}.

    @ivar hasGathered: whether octets were gathered and not yet written.
    @ivar isCrowded: whether the gathered octets must be flushed before the next reply,
        because there are many of them, or because the transport is full.
    @ivar isFull: whether the transport still has octets to write.
    """

    def __init__(
        self,
        transport: Any,
        turns: TimeSlice,
        clock: IReactorTime,
        stallTimeout: float,
        marksMultiLine: bool = False,
        isTLS: bool = False,
        record: SessionRecord | None = None,
    ) -> None:
        """
        @param transport: L{twisted.internet.interfaces.IConsumer}
        @param turns: limits the time of all work for the connection.
        @param stallTimeout: seconds without progress until L{Stalled}.
        @param marksMultiLine: whether first lines of multi-line replies are marked
            (docs/extensions, MULTI-LINE-IND).
        @param isTLS: whether the transport encrypts the octets.
        @param record: counts the octets.
        """
        self._marksMultiLine = marksMultiLine
        self._transport = transport
        self._turns = turns
        self._clock = clock
        self._stallTimeout = stallTimeout
        self._paused = False
        self._stopped = False
        self._resumed: Deferred[None] | None = None
        self._timer: IDelayedCall | None = None
        self._record = SessionRecord() if record is None else record
        self._gathered: list[bytes] = []
        self._octets = 0
        # Octets written since the last L{flush}, which waits until the transport has room.
        self._unasked = 0
        self._isRegistered = False
        # Writes to the socket at once, without waiting for the next iteration of the reactor.
        # The class is asked, because a wrapper may pass on attributes that it does not have
        # to the transport that it wraps.
        self._writeSome: Callable[[Any], Any] | None = None
        if hasattr(type(transport), "writeSomeData"):
            self._writeSome = transport.writeSomeData
        # Whether a body may write to the transport's descriptor itself.
        self._maySendTo = self._writeSome is not None and not isTLS
        self._isTLS = isTLS
        # While the transport is full: when the client last read anything, and the octets in
        # the kernel's send buffer then.
        self._progress = 0.0
        self._queuedThen: int | None = None

    def startTLS(self) -> None:
        """
        Adapt to a transport that encrypts everything from now on.
        """
        self.release()
        self._paused = False
        self._writeSome = None
        self._maySendTo = False
        self._isTLS = True

    # --- gathering --------------------------------------------------------------

    def gather(self, reply: Reply) -> None:
        """
        Gather a reply without a body.
        """
        self._gather(firstLine(reply, self._marksMultiLine))

    def _gather(self, octets: bytes) -> None:
        self._gathered.append(octets)
        self._octets += len(octets)
        self._record.octetsSent += len(octets)

    @property
    def hasGathered(self) -> bool:
        return self._octets > 0

    @property
    def isCrowded(self) -> bool:
        return self._octets + self._unasked >= _PIECE or self._paused

    async def send(self, reply: Reply) -> bool:
        """
        Gather the octets of a reply, flush them when there are many, and close the body.

        @return: whether the whole body, if any, was sent.
        @raise Stalled: the client has read nothing for too long.
        @raise ConnectionLost: the connection is lost.
        """
        isWhole = await self._send(reply)
        if self.isCrowded:
            await self.flush()
        return isWhole

    async def _send(self, reply: Reply) -> bool:
        body = reply.body
        if body is None:
            self.gather(reply)
            return True
        encoder = None
        before, kept = self._gathered, len(self._gathered)
        octetsBefore = 0
        try:
            self.gather(reply)
            octetsBefore = self._record.octetsSent
            region = None
            if body.form is not WireForm.READY or reply.topLines is not None:
                encoder = MultiLine(reply.topLines, body.form)
            elif self._maySendTo:
                region = _sendable(body.region)
            while encoder is None or not encoder.done:
                if region is not None:
                    await self._sendTo(region)
                chunk = body.next()
                if isAwaitable(chunk):
                    chunk = await chunk
                if chunk is None:
                    break
                # Flush only when another piece has come, so that the last piece and the
                # final dot are one write, because some clients expect the dot at the end
                # of a read.
                if self._octets >= _PIECE and (len(chunk) >= _LAST or self._octets >= 4 * _PIECE):
                    await self.flush()
                self._gather(chunk if encoder is None else encoder.feed(chunk))
            if encoder is None:
                octets = self._record.octetsSent - octetsBefore
                self._gather(b".\r\n")
            else:
                self._gather(encoder.finish())
                octets = encoder.octets
            isWhole = encoder is None or not encoder.done
            if isWhole:
                body.wasSent(octets)
            if self._isTLS and self._octets > _RECORD:
                self._splitRecords()
        except BaseException:
            # Keep only the replies before this one, because they are whole.
            del self._gathered[kept if self._gathered is before else 0 :]
            self._octets = sum(map(len, self._gathered))
            raise
        finally:
            body.close()
        return isWhole

    def _splitRecords(self) -> None:
        """
        Write the gathered octets in two parts if TLS would leave only a few for the last
        record, so that the last record has more than the end of the reply.
        """
        if 0 < self._octets % _RECORD < _LAST:
            octets = b"".join(self._gathered)
            self._gathered, self._octets = [octets[:-_LAST]], len(octets) - _LAST
            self.flushNow()
            self._gathered, self._octets = [octets[-_LAST:]], _LAST

    async def _sendTo(self, region: FileRegion) -> None:
        """
        Send as many octets of a file as are in the page cache.
        """
        # The first line of the reply is gathered, and must precede them.
        await self.flush()
        while True:
            try:
                sent = region.sendTo(self._transport.fileno())
            except BlockingIOError:
                self._register(False)
                self._paused = True
                self._transport.startWriting()
            except ConnectionError:
                raise ConnectionLost()
            else:
                if not sent:
                    return
                self._record.octetsSent += sent
            await self.flush()

    def say(self, reply: Reply) -> None:
        """
        Write a short single-line reply that answers no command: the greeting, or the reason
        why the service closes the connection.
        """
        self.gather(reply)
        self.flushNow()

    # --- writing ----------------------------------------------------------------

    def _register(self, isStreaming: bool) -> None:
        self._isRegistered = True
        self._paused = self._stopped = False
        self._transport.registerProducer(self, isStreaming)

    def _unregister(self) -> None:
        if self._isRegistered:
            self._isRegistered = False
            self._transport.unregisterProducer()

    def flushNow(self) -> None:
        """
        Write the gathered octets, even if the transport is full.
        """
        if not self._octets:
            return
        gathered = self._gathered
        octets = gathered[0] if len(gathered) == 1 else b"".join(gathered)
        self._gathered, self._octets = [], 0
        if self._writeSome is None or self._paused:
            self._unasked += len(octets)
            self._transport.write(octets)
        else:
            self._writeAtOnce(octets)

    def _writeAtOnce(self, octets: bytes) -> None:
        """
        Write as many octets as the socket accepts.  Hand the rest to the transport, and
        register as its producer to learn when it has written them.
        """
        assert self._writeSome is not None
        done, length = 0, len(octets)
        while done < length:
            written = self._writeSome(memoryview(octets)[done:] if done else octets)
            if not isinstance(written, int) or written <= 0:
                # The socket is full or broken.  If it is broken, the transport finds out
                # when it writes.
                self._transport.write(octets[done:])
                self._register(False)
                # Set this after registering, because the transport calls resumeProducing
                # at once when a pull producer registers.
                self._paused = True
                return
            done += written

    def flushShort(self) -> bool:
        """
        Write the gathered octets if they are few and the transport is not full.

        @return: False if L{flush} must be called, because there are many octets, or the
            transport is full.
        """
        if self._octets + self._unasked >= _PIECE or self.isFull:
            return False
        self.flushNow()
        return not self._paused

    async def flush(self) -> None:
        """
        Write the gathered octets, and wait until the transport has room for more.

        @raise Stalled: the client has read nothing for too long.
        @raise ConnectionLost: the connection is lost.
        """
        isOurs = self._writeSome is None and not self._isRegistered
        if isOurs:
            self._register(True)
        try:
            if not self._stopped:
                self.flushNow()
            # If the transport is full, it has called pauseProducing by now.
            self._unasked = 0
            if self._paused and not self._stopped:
                await self._room()
            else:
                # A transport that is never full may drop the octets, because the connection
                # is lost.  Give the reactor a chance to notice.
                await self._turns.yieldIfDue()
            if self._stopped:
                raise ConnectionLost()
        finally:
            if isOurs:
                self._unregister()

    @property
    def isFull(self) -> bool:
        return self._paused

    def release(self) -> None:
        """
        Unregister from the transport, because the connection is to be closed.
        """
        self._unregister()

    async def _room(self) -> None:
        resumed: Deferred[None] = Deferred()
        self._resumed = resumed
        self._progress, self._queuedThen = self._clock.seconds(), _queued(self._transport)
        self._lookLater(resumed)
        try:
            await resumed
        finally:
            self._resumed = None
            if self._timer is not None and self._timer.active():
                self._timer.cancel()
            self._timer = None
        self._turns.restart()

    def _lookLater(self, resumed: Deferred[None]) -> None:
        wait = min(_LOOK, self._stallTimeout - self.stalledFor())
        self._timer = self._clock.callLater(max(wait, 0), self._look, resumed)

    def _look(self, resumed: Deferred[None]) -> None:
        """
        Fail the wait if the client has read nothing for too long.
        """
        if self.stalledFor() >= self._stallTimeout:
            resumed.errback(Stalled())
        else:
            self._lookLater(resumed)

    def stalledFor(self) -> float:
        """
        @return: seconds since the client last read anything; 0 if no octets wait for it.
        """
        if self._resumed is None:
            return 0.0
        # The send buffer may hold megabytes, so a slow client may read for minutes before the
        # transport can write again.
        queued = _queued(self._transport)
        if queued is not None and self._queuedThen is not None and queued < self._queuedThen:
            self._progress = self._clock.seconds()
        self._queuedThen = queued
        return self._clock.seconds() - self._progress

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
        if self._paused:
            self._paused = False
            if self._writeSome is not None:
                self._unregister()
            self._wake()

    def stopProducing(self) -> None:
        """
        See L{twisted.internet.interfaces.IProducer}.
        """
        self._stopped = True
        self._wake()
