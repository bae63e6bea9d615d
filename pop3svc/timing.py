"""
Share the time of the reactor's thread fairly between connections.  Use one timer for many time
limits, and restart time limits after progress.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

__all__ = ["Progress", "SharedTimeout", "TimeSlice", "useMonotonicClock"]

log = Logger(namespace="pop3svc")

T = TypeVar("T")


def useMonotonicClock(reactor: Any) -> None:
    """
    Make a reactor use the monotonic clock.  Twisted uses the wall clock.  If the wall clock is set
    back, no timer fires until the clock has caught up.  Call this function before the first
    C{callLater}.
    """
    if not reactor.getDelayedCalls():
        reactor.seconds = time.monotonic


class Progress(Deferred[T]):
    """
    A Deferred for work that reports progress.  After each report the time limits of the callers
    begin again.
    """

    def __init__(self, canceller: Callable[[Any], None] | None = None) -> None:
        """
        @param canceller: see L{Deferred}.
        """
        super().__init__(canceller)
        self.listeners: list[Callable[[], object]] = []

    def progressed(self) -> None:
        """
        Report progress.
        """
        for each in self.listeners:
            each()


class _Queue:
    """
    The work that waits for its next slice.  The work that has waited longest comes first.

    @ivar calls: the functions that continue the work.
    @ivar last: the functions that begin long work.  They are called after all others.
    @ivar isRunning: whether one of these functions is running.
    @ivar began: the time at which new work began to occupy the reactor's thread, in seconds of the
        clock.
    @ivar isInIteration: whether the work is between L{TimeSlice.beginIteration} and
        L{TimeSlice.endIteration}.
    @ivar latest: the time at which the latest work began, or last asked whether its slice is over.
    """

    __slots__ = (
        "began",
        "calls",
        "isInIteration",
        "isRunning",
        "isScheduled",
        "last",
        "latest",
    )

    def __init__(self) -> None:
        self.calls: deque[Callable[[], object]] = deque()
        self.last: deque[Callable[[], object]] = deque()
        self.isRunning = self.isScheduled = self.isInIteration = False
        self.began = self.latest = 0.0

    def schedule(self, clock: IReactorTime) -> None:
        """
        Call the waiting functions in the next iterations of the reactor.
        """
        if not self.isScheduled:
            self.isScheduled = True
            clock.callLater(0, self.run, clock)

    def run(self, clock: IReactorTime) -> None:
        """
        Call the functions that are waiting now, until the time of one slice is over.  Call at least
        one function of each kind.
        """
        end = clock.seconds() + TimeSlice.SLICE
        self.isRunning, self.isScheduled = True, False
        try:
            for calls in (self.calls, self.last):
                for _ in range(len(calls)):
                    calls.popleft()()
                    if clock.seconds() >= end:
                        break
        finally:
            # Schedule the other functions even if a function raises an exception.
            self.isRunning = False
            self.began = clock.seconds()
            if self.calls or self.last:
                self.schedule(clock)


class TimeSlice:
    """
    Limits the time for which work occupies the reactor's thread before the reactor serves other
    connections.  In each iteration of the reactor, all work that has waited for its next slice
    shares the time of one slice.  All new work shares the time of another slice.  The remaining
    work waits for a later iteration.  A client with a short command therefore waits little longer
    than the time of two slices, even if other clients have much work.

    @ivar isLate: whether the slice that all new work shares was used up at the last L{restart}, so
        that new work which takes long should wait.
    """

    # SLICE is the length of a slice in seconds.  It is so short that no client notices.  Work that
    # has waited gets at least LEAST seconds, so that the work takes more time than its resumption.
    SLICE, LEAST = 0.004, 0.0005

    # For each clock: the work that waits for its next slice.
    _queues: WeakKeyDictionary[Any, _Queue] = WeakKeyDictionary()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._queue = self._queues.setdefault(clock, _Queue())
        self.restart()

    def restart(self) -> float:
        """
        Begin a slice.

        @return: the present time in seconds of the clock.
        """
        now = self._began = self._clock.seconds()
        queue = self._queue
        if now - queue.latest > self.SLICE and not queue.isInIteration:
            # More time than a slice has passed since the latest work, so the reactor has waited for
            # events.
            queue.began = now
        queue.latest = now
        self.isLate = now - queue.began >= self.SLICE and not queue.isRunning
        return now

    def beginIteration(self) -> float:
        """
        Begin the slice that all new work of an iteration of the reactor shares.  Until
        L{endIteration}, no other slice of new work begins, even if a piece of work takes longer
        than a slice.

        @return: the present time in seconds of the clock.
        """
        queue = self._queue
        queue.isInIteration = True
        queue.began = queue.latest = now = self._clock.seconds()
        return now

    def endIteration(self) -> None:
        """
        Note that the new work of this iteration has ended.
        """
        self._queue.isInIteration = False

    def isOver(self) -> bool:
        """
        @return: whether the time of this slice, or of the slice that all new work shares, is used
            up.
        """
        queue = self._queue
        now = queue.latest = self._clock.seconds()
        if not queue.isRunning:
            if now - queue.began >= self.SLICE:
                return True
            if not queue.calls:
                # Nobody waits, so this work may use the whole slice that all new work shares.
                return False
        waiting = len(queue.calls)
        limit = self.SLICE if waiting < 2 else max(self.SLICE / waiting, self.LEAST)
        return now - self._began >= limit

    def callNext(self, call: Callable[[], object]) -> None:
        """
        Call a function after the reactor has served other connections.
        """
        self._queue.calls.append(call)
        self._queue.schedule(self._clock)

    def callLast(self, call: Callable[[], object]) -> None:
        """
        Call a function that begins long work, after the functions of L{callNext} that wait.
        """
        self._queue.last.append(call)
        self._queue.schedule(self._clock)

    async def next(self) -> None:
        """
        Return to the reactor.  Begin the next slice after the reactor has served other connections.
        """
        turn: Deferred[None] = Deferred()
        # Do nothing if the wait was cancelled meanwhile.
        self.callNext(lambda: None if turn.called else turn.callback(None))
        await turn
        self.restart()

    async def yieldIfDue(self) -> None:
        """
        Return to the reactor if this slice is used up.
        """
        if self.isOver():
            await self.next()


class SharedTimeout:
    """
    Time limits for many objects.  All limits have the same length and share one timer, because a
    timer for each object would take more time than most of the limited work.

    @ivar slack: a number of seconds.  A limit that began less than this number of seconds ago need
        not begin again, because it is extended when its end comes.  The number is 0 if there is no
        function C{began}.
    """

    def __init__(
        self,
        clock: IReactorTime,
        seconds: float,
        passed: Callable[[Any], object],
        began: Callable[[Any], float] | None = None,
    ) -> None:
        """
        @param passed: called with each object whose time limit has passed.
        @param began: takes an object and returns the time at which its limit really began.
        """
        self._clock = clock
        self._seconds = seconds
        self._passed = passed
        self._began = began
        # If a limit was extended, other limits may end late by at most this number of seconds.
        self.slack = 0.0 if began is None else seconds / 64
        # The end of each limit.  The earliest end comes first.
        self._ends: OrderedDict[Any, float] = OrderedDict()
        self._timer: IDelayedCall | None = None

    def begin(self, each: object) -> None:
        """
        Begin the time limit of an object.  If it runs already, begin it again.
        """
        ends = self._ends
        ends[each] = self._clock.seconds() + self._seconds
        ends.move_to_end(each)
        if self._timer is None:
            self._timer = self._clock.callLater(self._seconds, self._look)

    def end(self, each: object) -> None:
        """
        End the time limit of an object.
        """
        self._ends.pop(each, None)
        if not self._ends and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        now = self._clock.seconds()
        while self._ends:
            first, end = next(iter(self._ends.items()))
            if end <= now and self._began is not None:
                # Extend the limit.  The place of the limit in the order stays the same.
                end = self._ends[first] = self._began(first) + self._seconds
            if end > now:
                if self._timer is None:
                    self._timer = self._clock.callLater(end - now, self._look)
                return
            del self._ends[first]
            try:
                self._passed(first)
            except Exception:
                log.failure("a time limit handler failed")
