"""
Write octets to a transport as fast as the client reads them.  An outlet writes directly to the
socket, or it is a producer of the transport.
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

# The least number of octets of a file for which sendfile() is used.  For fewer octets, it takes
# more time than it saves.
_LARGE = 262144
# Seconds between two checks of whether a slow client has read anything.
_LOOK = 15


class Stalled(Exception):
    """
    The client has read nothing for too long, although replies wait.
    """


def outletTo(
    transport: Any, turns: TimeSlice, clock: IReactorTime, stallTimeout: float, isTLS: bool = False
) -> Outlet:
    """
    Make the outlet of one connection.

    @param transport: an L{twisted.internet.interfaces.IConsumer}.
    @param turns: the time slices in which all work for the connection is done.
    @param stallTimeout: if the client reads nothing for this number of seconds, L{Stalled} is
        raised.
    @param isTLS: whether the transport encrypts the octets.
    """
    # Check the class and not the object, because a wrapper would look for the attribute in the
    # wrapped transport.
    kind = SocketOutlet if hasattr(type(transport), "writeSomeData") else ProducerOutlet
    return kind(transport, turns, clock, stallTimeout, isTLS)


def _queued(transport: Any) -> int | None:
    """
    @return: the number of octets in the send buffer of the kernel; L{None} if it is not known.
    """
    try:
        buffer = fcntl.ioctl(transport.fileno(), termios.TIOCOUTQ, b"\0" * 4)
    except (AttributeError, OSError, TypeError, ValueError):
        return None
    return int.from_bytes(buffer, sys.byteorder)


@implementer(IPushProducer)
class Outlet:
    """
    The common part of all outlets.  This class waits until the transport has room, and finds out
    whether the client still reads.

    @ivar isFull: whether the transport still has octets to write.
    @ivar isTLS: whether the transport encrypts the octets.
    @ivar unasked: the number of octets that were written since the last L{flush}.  A
        L{SocketOutlet} counts only octets that it has written while the transport was full.
    """

    # Use slots, because they take less memory than a dictionary, and a service has many idle
    # connections.
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
        # These values are used while the transport is full.  They are the time at which the client
        # last read anything, and the number of octets in the send buffer of the kernel at the last
        # check.
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

        @param octets: the octets, which may be empty.
        @raise Stalled: the client has read nothing for too long.
        @raise ConnectionLost: the connection is lost.
        """
        if octets and not self._stopped:
            self.write(octets)
        # By now a full transport has called pauseProducing, or write() has set isFull.
        self.unasked = 0
        if self.isFull and not self._stopped:
            await self._room()
        else:
            # Let the reactor run, so that it can notice the loss of the connection.  A transport
            # without a connection may discard the octets and never become full.
            await self._turns.yieldIfDue()
        if self._stopped:
            raise ConnectionLost()

    def sendable(self, region: object) -> FileRegion | None:
        """
        @param region: see L{pop3svc.protocol.replies.Body.region}.
        @return: the region if L{send} should send its octets; otherwise L{None}.
        """
        return None

    async def send(self, region: FileRegion) -> int:
        """
        Send the next octets of a region without reading them into memory.  The caller has to flush
        all earlier octets before this call.

        @param region: the result of L{sendable}.
        @return: the number of octets sent; 0 if the caller has to read the next octets and write
            them.
        @raise Stalled: the client has read nothing for too long.
        @raise ConnectionLost: the connection is lost.
        """
        return 0

    def encrypted(self) -> Outlet:
        """
        Release this outlet, because TLS begins and the transport encrypts all further octets.

        @return: the outlet to use instead.
        """
        self.release()
        transport = self._transport
        # Use a L{ProducerOutlet} for a transport of Twisted, because its C{writeSomeData} does not
        # encrypt.
        kind = type(self) if hasattr(type(transport), "measure") else ProducerOutlet
        return kind(transport, self._turns, self._clock, self._stallTimeout, True)

    def release(self) -> None:
        """
        Unregister this outlet as the producer of the transport, if it is registered.
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
        Check whether the client has read anything.  If it has read nothing for too long, let the
        wait fail.
        """
        if self.stalledFor() >= self._stallTimeout:
            resumed.errback(Stalled())
        else:
            self._lookLater(resumed)

    def stalledFor(self) -> float:
        """
        @return: the number of seconds since the client last read anything; 0 if no octets wait for
            the client.
        """
        if self._resumed is None:
            return 0.0
        # Look at the send buffer, because it may contain megabytes.  A slow client may read for
        # minutes before the transport can write again.
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
    Writes to any transport.  It is the push producer of the transport while octets are flushed.  It
    is used for the TLS of Twisted, and for transports in memory.
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
    Writes directly to the socket, and does not wait for the next iteration of the reactor.  Octets
    that the socket does not accept go to the transport.  Until the transport has written these
    octets, the outlet is its pull producer.  Without TLS, the octets of a large file go directly
    from the page cache to the socket.
    """

    __slots__ = ()

    def write(self, octets: bytes) -> None:
        """
        Write as many octets as the socket accepts, and give the rest to the transport.  Register as
        the producer of the transport, because the transport then tells when it has written the
        rest.
        """
        if self.isFull:
            self.unasked += len(octets)
            self._transport.write(octets)
            return
        # Look up the method each time, because it may change when TLS begins.
        written = self._transport.writeSomeData(octets)
        if written != len(octets):
            self._writeRest(octets, written)

    def _writeRest(self, octets: bytes, written: Any) -> None:
        """
        @param written: the value that C{writeSomeData} has returned, which may be an exception.
        """
        done, writeSome = 0, self._transport.writeSomeData
        while isinstance(written, int) and written > 0:
            done += written
            if done == len(octets):
                return
            written = writeSome(memoryview(octets)[done:])
        # The socket is full or has an error.  The transport will notice an error when it writes.
        self._transport.write(octets[done:])
        self._fill()

    def _fill(self) -> None:
        """
        Register as a pull producer, so that the transport tells when it has written everything.
        """
        self._register(False)
        # Set this attribute after the registration, because the transport calls resumeProducing as
        # soon as a pull producer registers.
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
                # Wait for a time slice, because many sockets may have room at the same time.
                self._turns.callNext(partial(self._goOn, resumed))

    def _goOn(self, resumed: Deferred[None]) -> None:
        if not resumed.called:
            # The wait was not cancelled.
            resumed.callback(None)

    def sendable(self, region: object) -> FileRegion | None:
        """
        See L{Outlet.sendable}.  With TLS the octets have to be read, because they are encrypted.
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
