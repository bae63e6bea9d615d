"""
Share the reactor's time fairly, run many time limits with one timer, and restart time limits after
progress.
"""

from __future__ import annotations

import time
from collections import OrderedDict
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
    Make a reactor use the monotonic clock.  Twisted uses the wall clock.  If somebody sets the wall
    clock back, no timer fires until the clock has caught up.  Call this before the first
    C{callLater}.
    """
    if not reactor.getDelayedCalls():
        reactor.seconds = time.monotonic


class Progress(Deferred[T]):
    """
    A Deferred whose work reports progress.  After each report the time limits of its callers begin
    again.
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


class TimeSlice:
    """
    Limits how long work occupies the reactor's thread before the reactor serves others.  All work
    that waits for its next slice shares the time of one slice.  A new client therefore waits at
    most for one slice, even if much work is waiting.
    """

    # Seconds of a slice, short enough that no client notices; and the fewest seconds of a slice.
    SLICE, LEAST = 0.004, 0.0002

    # For each clock, the number of pieces of work that wait for their next slice.
    _shared: WeakKeyDictionary[Any, list[int]] = WeakKeyDictionary()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._waiting = self._shared.setdefault(clock, [0])
        self._began = clock.seconds()

    def restart(self) -> float:
        """
        Begin a slice.

        @return: the time on the clock, seconds.
        """
        self._began = self._clock.seconds()
        return self._began

    def isOver(self) -> bool:
        """
        @return: whether this slice is used up.
        """
        waiting = self._waiting[0]
        limit = self.SLICE if waiting < 2 else max(self.SLICE / waiting, self.LEAST)
        return self._clock.seconds() - self._began >= limit

    def callNext(self, call: Callable[[], object]) -> None:
        """
        Call a function after the reactor has served others.
        """
        self._waiting[0] += 1
        self._clock.callLater(0, self._called, call)

    def _called(self, call: Callable[[], object]) -> None:
        self._waiting[0] -= 1
        call()

    async def next(self) -> None:
        """
        Return to the reactor, and begin the next slice after it has served others.
        """
        turn: Deferred[None] = Deferred()
        # The waiter may have been cancelled by then.
        self.callNext(lambda: None if turn.called else turn.callback(None))
        await turn
        self._began = self._clock.seconds()

    async def yieldIfDue(self) -> None:
        """
        Return to the reactor if this slice is used up.
        """
        if self.isOver():
            await self.next()


class SharedTimeout:
    """
    Time limits of the same length for many objects.  All share one timer, because a timer for each
    object would take more time than most of the limited work.

    @ivar slack: seconds.  A limit that began a shorter time ago need not be restarted, because it
        is postponed when its end comes.  Zero without the function C{began}.
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
        @param began: takes an object, and returns the time at which its limit really began.
        """
        self._clock = clock
        self._seconds = seconds
        self._passed = passed
        self._began = began
        # A limit that was postponed makes others late by this at most.
        self.slack = 0.0 if began is None else seconds / 64
        # End of each limit, the earliest first.
        self._ends: OrderedDict[Any, float] = OrderedDict()
        self._timer: IDelayedCall | None = None

    def begin(self, each: object) -> None:
        """
        Begin, or begin again, the time limit of an object.
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
                # Its place in the order stays.
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
