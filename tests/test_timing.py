"""
The monotonic clock, shared time limits and fair time slices.
"""

from __future__ import annotations

import time

from twisted.internet.base import ReactorBase
from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from pop3svc.timing import SharedTimeout, TimeSlice, useMonotonicClock
from tests.support.coroutines import start


class MonotonicClockTests(TestCase):
    """
    Timers do not depend on the wall clock.
    """

    def test_wallClockSetBack(self) -> None:
        class Reactor(ReactorBase):
            def installWaker(self) -> None:
                pass

        own = Reactor()
        useMonotonicClock(own)
        called: list[int] = []
        own.callLater(0, called.append, 1)
        self.patch(time, "time", lambda: 0.0)
        own.runUntilCurrent()
        self.assertEqual(called, [1])
        self.assertIs(own.seconds, time.monotonic)


class SharedTimeoutTests(TestCase):
    """
    Time limits of one length with one timer.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.passed: list[str] = []
        self.timeouts = SharedTimeout(self.clock, 10, self.passed.append)

    def test_oneTimerForAll(self) -> None:
        self.timeouts.begin("a")
        self.clock.advance(4)
        self.timeouts.begin("b")
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(6)
        self.assertEqual(self.passed, ["a"])
        self.clock.advance(3.5)
        self.assertEqual(self.passed, ["a"])
        self.clock.advance(0.5)
        self.assertEqual(self.passed, ["a", "b"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_beginsAnew(self) -> None:
        self.timeouts.begin("a")
        self.timeouts.begin("b")
        self.clock.advance(9)
        self.timeouts.begin("a")
        self.clock.advance(1)
        self.assertEqual(self.passed, ["b"])
        self.clock.advance(9)
        self.assertEqual(self.passed, ["b", "a"])

    def test_endStopsTheTimer(self) -> None:
        self.timeouts.begin("a")
        self.timeouts.begin("b")
        self.timeouts.end("a")
        self.timeouts.end("nobody")
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.timeouts.end("b")
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.clock.advance(20)
        self.assertEqual(self.passed, [])

    def test_errorOfOneHandler(self) -> None:
        """
        An error of one handler does not affect the others; an object that begins again
        meanwhile gets a new limit.
        """

        def passed(each: str) -> None:
            self.passed.append(each)
            if each == "a":
                self.timeouts.begin("a")
                raise ValueError

        self.timeouts = SharedTimeout(self.clock, 10, passed)
        self.timeouts.begin("a")
        self.timeouts.begin("b")
        self.clock.advance(10)
        self.assertEqual(self.passed, ["a", "b"])
        self.clock.advance(10)
        self.assertEqual(self.passed, ["a", "b", "a"])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)


class TimeSliceTests(TestCase):
    """
    Waiters for their next slice share the time of one slice.
    """

    def test_waitersShareASlice(self) -> None:
        clock = Clock()
        mine = TimeSlice(clock)
        clock.advance(TimeSlice.SLICE / 2)
        self.assertFalse(mine.isOver())
        others = [start(TimeSlice(clock).next())[1] for _ in range(4)]
        self.assertTrue(mine.isOver())
        # The shortest slice, for any number of waiters.
        others += [start(TimeSlice(clock).next())[1] for _ in range(1000)]
        mine.restart()
        self.assertFalse(mine.isOver())
        clock.advance(0)
        self.assertEqual(others, [[None]] * len(others))
        mine.restart()
        clock.advance(TimeSlice.SLICE / 2)
        self.assertFalse(mine.isOver())

    def test_cancelledWaiterDoesNotCount(self) -> None:
        """
        A waiter that is cancelled no longer counts.
        """
        clock = Clock()
        turn, got = start(TimeSlice(clock).next())
        turn.cancel()
        clock.advance(0)
        self.assertTrue(got[0].check(CancelledError))
        self.assertEqual(TimeSlice._shared[clock], [0])
