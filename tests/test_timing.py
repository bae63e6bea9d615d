"""
The monotonic clock, shared time limits and fair time slices.
"""

from __future__ import annotations

import time
from functools import partial

from twisted.internet.base import ReactorBase
from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from pop3svc.timing import SharedTimeout, TimeSlice, useMonotonicClock
from tests.support.coroutines import start


class MonotonicClockTests(TestCase):
    """
    With the monotonic clock, timers do not depend on the wall clock.
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
    Time limits of the same length share one timer.
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
        If the handler fails for one object, it is still called for the other objects.  If the
        handler begins the limit of the object again, the object gets a new limit.
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
    All work that waits for its next slice shares the time of one slice.
    """

    def test_waitersShareASlice(self) -> None:
        clock = Clock()
        mine = TimeSlice(clock)
        clock.advance(TimeSlice.SLICE / 2)
        self.assertFalse(mine.isOver())
        others = [start(TimeSlice(clock).next())[1] for _ in range(4)]
        self.assertTrue(mine.isOver())
        # However many others wait, a slice has at least the length LEAST.
        others += [start(TimeSlice(clock).next())[1] for _ in range(1000)]
        mine.restart()
        self.assertFalse(mine.isOver())
        clock.advance(0)
        self.assertEqual(others, [[None]] * len(others))
        mine.restart()
        clock.advance(TimeSlice.SLICE / 2)
        self.assertFalse(mine.isOver())

    def test_cancelledWaiterDoesNotCount(self) -> None:
        clock = Clock()
        turn, got = start(TimeSlice(clock).next())
        turn.cancel()
        clock.advance(0)
        self.assertTrue(got[0].check(CancelledError))
        self.assertFalse(TimeSlice._queues[clock].calls)

    def test_waitersShareAnIteration(self) -> None:
        """
        In each iteration of the reactor the waiters have the time of one slice together, the oldest
        first.
        """
        clock = Clock()
        slice = TimeSlice(clock)
        called: list[int] = []

        def work(number: int) -> None:
            clock.rightNow += TimeSlice.SLICE / 4
            called.append(number)

        for number in range(10):
            slice.callNext(partial(work, number))
        counts = []
        while clock.getDelayedCalls():
            iterate(clock)
            counts.append(len(called))
        self.assertEqual(counts, [4, 8, 10])
        self.assertEqual(called, list(range(10)))

    def test_longWorkIsLast(self) -> None:
        """
        Long work begins after the other work that waits.  In each iteration of the reactor at least
        one function of each kind is called.
        """
        clock = Clock()
        slice = TimeSlice(clock)
        called: list[str] = []

        def work(name: str) -> None:
            clock.rightNow += TimeSlice.SLICE / 2
            called.append(name)

        for _ in range(3):
            slice.callLast(partial(work, "last"))
            slice.callNext(partial(work, "next"))
        found = []
        while clock.getDelayedCalls():
            iterate(clock)
            found.append(" ".join(called))
            called.clear()
        self.assertEqual(found, ["next next last", "next last", "last"])

    def test_newWaitersWaitForTheNextIteration(self) -> None:
        clock = Clock()
        slice = TimeSlice(clock)
        called: list[str] = []

        def again() -> None:
            called.append("again")
            slice.callNext(again)

        slice.callNext(again)
        for count in (1, 2, 3):
            iterate(clock)
            self.assertEqual(len(called), count)

    def test_waiterThatFails(self) -> None:
        """
        If a waiter fails, the other waiters still get their turn.
        """
        clock = Clock()
        slice = TimeSlice(clock)
        called: list[int] = []
        slice.callNext(lambda: 1 // 0)
        slice.callNext(lambda: called.append(1))
        with self.assertRaises(ZeroDivisionError):
            iterate(clock)
        iterate(clock)
        self.assertEqual(called, [1])
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_newWorkSharesASlice(self) -> None:
        """
        The work of many connections that have input at the same time shares one slice.  After the
        reactor has served others or waited for input, a new slice begins.
        """
        clock = Clock()
        slices = [TimeSlice(clock) for _ in range(8)]
        clock.rightNow += 1

        def areOver() -> list[bool]:
            found = []
            for each in slices:
                each.restart()
                clock.rightNow += TimeSlice.SLICE * 0.3
                found.append(each.isOver())
            return found

        self.assertEqual(areOver(), [False] * 3 + [True] * 5)
        # The reactor has served other connections.
        slices[0].callNext(lambda: None)
        iterate(clock)
        self.assertEqual(areOver(), [False] * 3 + [True] * 5)
        # The reactor has waited for input.
        clock.rightNow += 1
        self.assertEqual(areOver(), [False] * 3 + [True] * 5)

    def test_workThatHasWaited(self) -> None:
        """
        Work that has waited gets at least LEAST seconds, however much other work waits.
        """
        clock = Clock()
        slice = TimeSlice(clock)
        found: list[bool] = []

        def work() -> None:
            slice.restart()
            clock.rightNow += TimeSlice.LEAST / 2
            found.append(slice.isOver())

        for _ in range(1000):
            slice.callNext(work)
        while clock.getDelayedCalls():
            iterate(clock)
        self.assertEqual(found, [False] * 1000)

    def test_late(self) -> None:
        """
        C{isLate} is true for new work if the slice that all new work shares is used up.  It is
        false for work that has waited for its own slice.
        """
        clock = Clock()
        slice = TimeSlice(clock)
        self.assertFalse(slice.isLate)
        clock.advance(TimeSlice.SLICE / 2)
        slice.restart()
        self.assertFalse(slice.isLate)
        clock.advance(TimeSlice.SLICE / 2)
        slice.restart()
        self.assertTrue(slice.isLate)
        late: list[bool] = []

        def work() -> None:
            clock.rightNow += TimeSlice.SLICE
            slice.restart()
            late.append(slice.isLate)

        slice.callNext(work)
        iterate(clock)
        self.assertEqual(late, [False])
        clock.rightNow += TimeSlice.SLICE
        slice.restart()
        self.assertTrue(slice.isLate)
        TimeSlice(clock).beginIteration()
        slice.restart()
        self.assertFalse(slice.isLate)

    def test_longWorkInAnIteration(self) -> None:
        """
        In an iteration of the reactor, work that takes longer than a slice does not look like a
        time in which the reactor has waited.
        """
        clock = Clock()
        slice = TimeSlice(clock)
        found: list[bool] = []
        slice.beginIteration()
        for _ in range(3):
            slice.restart()
            found.append(slice.isLate)
            clock.rightNow += TimeSlice.SLICE * 2
        slice.endIteration()
        slice.restart()
        found.append(slice.isLate)
        self.assertEqual(found, [False, True, True, False])


def iterate(clock: Clock) -> None:
    """
    Make all calls that wait now, as one iteration of the reactor does.
    """
    calls, clock.calls = clock.calls, []
    for each in calls:
        each.func(*each.args, **each.kw)
