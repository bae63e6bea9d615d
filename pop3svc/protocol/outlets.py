"""
Write octets to a transport at the client's pace: to its socket at once, or as a producer.
"""

from __future__ import annotations

import fcntl
import sys
import termios
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from zope.interface import implementer

from pop3svc.files import FileRegion
from pop3svc.timing import TimeSlice

__all__ = ["Outlet", "ProducerOutlet", "SocketOutlet", "Stalled", "outletTo"]

# For this number of octets of a file or more, sendfile() saves more time than it takes.
_LARGE = 262144
# Seconds between two checks whether a slow client has read anything.
_LOOK = 15


class Stalled(Exception):
    """
    The client has read nothing of its replies for too long.
    """


def outletTo(
    transport: Any, turns: TimeSlice, clock: IReactorTime, stallTimeout: float, isTLS: bool = False
) -> Outlet:
    """
    Make the outlet of one connection.

    @param transport: L{twisted.internet.interfaces.IConsumer}
    @param turns: limits the time of all work for the connection.
    @param stallTimeout: seconds without progress until L{Stalled}.
    @param isTLS: whether the transport encrypts the octets.
    """
    # Check the class and not the object, because a wrapper passes requests for missing attributes
    # on to the wrapped transport.
    kind = SocketOutlet if hasattr(type(transport), "writeSomeData") else ProducerOutlet
    return kind(transport, turns, clock, stallTimeout, isTLS)


def _queued(transport: Any) -> int | None:
    """
    @return: the number of octets in the kernel's send buffer; L{None} if it is not known.
    """
    try:
        buffer = fcntl.ioctl(transport.fileno(), termios.TIOCOUTQ, b"\0" * 4)
    except (AttributeError, OSError, TypeError, ValueError):
        return None
    return int.from_bytes(buffer, sys.byteorder)


@implementer(IPushProducer)
class Outlet:
    """
    The common part of all outlets.  It waits until the transport has room, and finds out whether
    the client still reads.

    @ivar isFull: whether the transport still has octets to write.
    @ivar isTLS: whether the transport encrypts the octets.
    @ivar unasked: octets written since the last L{flush}, which waits until the transport has
        room.
    """

    # Slots take less memory than a dictionary, and a service has many idle connections.
    __slots__ = (
        "_clock",
        "_isRegistered",
        "_progress",
        "_queuedThen",
        "_resumed",
        "_stallTimeout",
        "_stopped",
        "_timer",
        "_transport",
        "_turns",
        "isFull",
        "isTLS",
        "unasked",
    )

    def __init__(
        self,
        transport: Any,
        turns: TimeSlice,
        clock: IReactorTime,
        stallTimeout: float,
        isTLS: bool = False,
    ) -> None:
        """
        See L{outletTo}.
        """
        self._transport = transport
        self._turns = turns
        self._clock = clock
        self._stallTimeout = stallTimeout
        self.isTLS = isTLS
        self.isFull = False
        self.unasked = 0
        self._stopped = False
        self._resumed: Deferred[None] | None = None
        self._timer: IDelayedCall | None = None
        self._isRegistered = False
        # While the transport is full: the time when the client last read anything, and the number
        # of octets in the kernel's send buffer at that time.
        self._progress = 0.0
        self._queuedThen: int | None = None

    # --- writing ----------------------------------------------------------------

    def write(self, octets: bytes) -> None:
        """
        Write octets, even if the transport is full.
        """
        self.unasked += len(octets)
        self._transport.write(octets)

    async def flush(self, octets: bytes) -> None:
        """
        Write octets, and wait until the transport has room for more.

        @param octets: possibly none.
        @raise Stalled: the client has read nothing for too long.
        @raise ConnectionLost: the connection is lost.
        """
        if octets and not self._stopped:
            self.write(octets)
        # If the transport is full, it has called pauseProducing by now.
        self.unasked = 0
        if self.isFull and not self._stopped:
            await self._room()
        else:
            # If the connection is lost, the transport may discard the octets, and never become
            # full.  Let the reactor run, so that the reactor can notice the loss.
            await self._turns.yieldIfDue()
        if self._stopped:
            raise ConnectionLost()

    def sendable(self, region: object) -> FileRegion | None:
        """
        @param region: see L{pop3svc.protocol.replies.Body.region}.
        @return: the region if L{send} should send its octets, otherwise L{None}.
        """
        return None

    async def send(self, region: FileRegion) -> int:
        """
        Send the next octets of a region without reading them.  Flush all earlier octets before this
        call.

        @param region: the result of L{sendable}.
        @return: the number of octets sent; 0 if the next octets have to be read.
        @raise Stalled: the client has read nothing for too long.
        @raise ConnectionLost: the connection is lost.
        """
        return 0

    def encrypted(self) -> Outlet:
        """
        Release this outlet, because the transport encrypts all octets from now on.

        @return: the outlet to use instead.
        """
        self.release()
        transport = self._transport
        # C{writeSomeData} of Twisted's transports does not encrypt.
        kind = type(self) if hasattr(type(transport), "measure") else ProducerOutlet
        return kind(transport, self._turns, self._clock, self._stallTimeout, True)

    def release(self) -> None:
        """
        Unregister from the transport, because the connection will be closed.
        """
        if self._isRegistered:
            self._isRegistered = False
            self._transport.unregisterProducer()

    def _register(self, isStreaming: bool) -> None:
        self._isRegistered = True
        self.isFull = self._stopped = False
        self._transport.registerProducer(self, isStreaming)

    # --- waiting ----------------------------------------------------------------

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
        @return: seconds since the client last read anything; 0 if no octets wait for the client.
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
        self.isFull = True

    def resumeProducing(self) -> None:
        """
        See L{IPushProducer}.
        """
        if self.isFull:
            self.isFull = False
            self._wake()

    def stopProducing(self) -> None:
        """
        See L{twisted.internet.interfaces.IProducer}.
        """
        self._stopped = True
        self._wake()


class ProducerOutlet(Outlet):
    """
    Writes to any transport, and is its push producer while octets are flushed.  It serves TLS after
    STLS, and transports in memory.
    """

    __slots__ = ()

    async def flush(self, octets: bytes) -> None:
        """
        See L{Outlet.flush}.
        """
        self._register(True)
        try:
            await super().flush(octets)
        finally:
            self.release()


class SocketOutlet(Outlet):
    """
    Writes to the socket at once, without waiting for the next iteration of the reactor.  The
    transport gets only the octets that the socket does not accept.  This outlet is the transport's
    pull producer until the transport has written these octets.  Without TLS, octets of files go
    from the page cache to the socket.
    """

    __slots__ = ()

    def write(self, octets: bytes) -> None:
        """
        Write as many octets as the socket accepts.  Hand the rest to the transport, and
        register as its producer to learn when it has written them.
        """
        if self.isFull:
            self.unasked += len(octets)
            self._transport.write(octets)
            return
        # Ask each time, because the method may change when TLS begins.
        written = self._transport.writeSomeData(octets)
        if written != len(octets):
            self._writeRest(octets, written)

    def _writeRest(self, octets: bytes, written: Any) -> None:
        """
        @param written: the answer of C{writeSomeData}, which may be an exception.
        """
        done, writeSome = 0, self._transport.writeSomeData
        while isinstance(written, int) and written > 0:
            done += written
            if done == len(octets):
                return
            written = writeSome(memoryview(octets)[done:])
        # The socket is full or broken.  The transport will notice a broken socket when it writes.
        self._transport.write(octets[done:])
        self._fill()

    def _fill(self) -> None:
        """
        Wait until the transport has written everything.
        """
        self._register(False)
        # Set this after registering, because the transport calls resumeProducing at once when
        # a pull producer registers.
        self.isFull = True

    def resumeProducing(self) -> None:
        """
        See L{twisted.internet.interfaces.IPullProducer}.
        """
        if self.isFull:
            self.isFull = False
            self.release()
            resumed, self._resumed = self._resumed, None
            if resumed is not None:
                # Many sockets may have room at the same time, so each waits for its time slice.
                self._turns.callNext(partial(self._goOn, resumed))

    def _goOn(self, resumed: Deferred[None]) -> None:
        if not resumed.called:
            # Nobody has cancelled the wait.
            resumed.callback(None)

    def sendable(self, region: object) -> FileRegion | None:
        """
        See L{Outlet.sendable}.  TLS encrypts the octets, so they have to be read.
        """
        if self.isTLS or not isinstance(region, FileRegion) or region.left < _LARGE:
            return None
        return region

    async def send(self, region: FileRegion) -> int:
        """
        See L{Outlet.send}.
        """
        while True:
            try:
                return region.sendTo(self._transport.fileno())
            except BlockingIOError:
                self._fill()
                self._transport.startWriting()
            except ConnectionError:
                raise ConnectionLost()
            await self.flush(b"")
