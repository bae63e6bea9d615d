"""
Results that come at once, late or never; shielded calls; threads.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from twisted.internet import reactor
from twisted.internet.base import ReactorBase
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from pop3svc.awaiting import (
    BoundedThreadPool,
    CallTimeout,
    SharedTimeout,
    Shielded,
    TimeSlice,
    callWithTimeout,
    maybeAwait,
    useMonotonicClock,
)
from pop3svc.errors import POP3ResponseError
from tests.support.coroutines import start


class AskTests(TestCase):
    """
    Values, Deferreds and coroutines, handled alike.
    """

    def setUp(self) -> None:
        self.clock = Clock()

    def ask(self, call: Any, *arguments: Any) -> tuple[Deferred[Any], list[Any]]:
        return start(callWithTimeout(call, *arguments, clock=self.clock, timeout=10))

    def test_value(self) -> None:
        self.assertEqual(self.ask(lambda a: a, 5)[1], [5])

    def test_deferred(self) -> None:
        self.assertEqual(self.ask(succeed, 5)[1], [5])
        answer: Deferred[int] = Deferred()
        _, got = self.ask(lambda: answer)
        self.assertEqual(got, [])
        answer.callback(6)
        self.assertEqual(got, [6])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_coroutine(self) -> None:
        answer: Deferred[int] = Deferred()

        async def call(more: int) -> int:
            return more + await answer

        _, got = self.ask(call, 1)
        answer.callback(6)
        self.assertEqual(got, [7])

    def test_anyAwaitable(self) -> None:
        class Delayed:
            def __init__(self, answer: Deferred[bool]) -> None:
                self.answer = answer

            def __await__(self) -> Any:
                return self.answer.__await__()

        self.assertEqual(self.ask(lambda: Delayed(succeed(False)))[1], [False])
        answer: Deferred[bool] = Deferred()
        _, got = self.ask(lambda: Delayed(answer))
        answer.callback(False)
        self.assertEqual(got, [False])
        _, got = self.ask(lambda: Delayed(Deferred()))
        self.clock.advance(11)
        self.assertTrue(got[0].check(CallTimeout))

    def test_failure(self) -> None:
        for call in (lambda: fail(ValueError("x")), lambda: 1 // 0):
            _, got = self.ask(call)
            self.assertTrue(got[0].check(ValueError, ZeroDivisionError))
        answer: Deferred[int] = Deferred()
        _, got = self.ask(lambda: answer)
        answer.errback(ValueError("x"))
        self.assertTrue(got[0].check(ValueError))

    def test_noAnswer(self) -> None:
        cancelled: list[object] = []
        _, got = self.ask(lambda: Deferred(cancelled.append))
        self.clock.advance(9.9)
        self.assertEqual(got, [])
        self.clock.advance(0.2)
        self.assertTrue(got[0].check(CallTimeout))
        self.assertEqual(len(cancelled), 1)

    def test_noAnswerEvenWhenCancelled(self) -> None:
        async def stubborn() -> int:
            try:
                await Deferred()
            except CancelledError:
                pass
            await never
            return 1

        never: Deferred[None] = Deferred()
        _, got = self.ask(stubborn)
        self.clock.advance(11)
        self.assertTrue(got[0].check(CallTimeout))
        never.callback(None)

    def test_cancel(self) -> None:
        cancelled: list[object] = []
        asking, got = self.ask(lambda: Deferred(cancelled.append))
        asking.cancel()
        self.assertEqual(len(cancelled), 1)
        self.assertTrue(got[0].check(CancelledError))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_settle(self) -> None:
        for call in (lambda: 5, lambda: succeed(5)):
            self.assertEqual(start(maybeAwait(call))[1], [5])

    def test_carriedThrough(self) -> None:
        """
        A cancelled waiter does not stop the call.
        """
        answer: Deferred[int] = Deferred()
        carried = Shielded(lambda: answer)
        waiting, got = start(carried.outcome(self.clock, 10))
        waiting.cancel()
        self.assertTrue(got[0].check(CancelledError))
        _, late = start(carried.outcome(self.clock, 10))
        self.clock.advance(11)
        self.assertTrue(late[0].check(CallTimeout))
        _, patient = start(carried.outcome())
        self.clock.advance(1000)
        self.assertEqual(patient, [])
        answer.callback(5)
        self.assertEqual(patient, [5])
        self.assertTrue(carried.done)
        self.assertEqual(start(carried.outcome())[1], [5])

    def test_carriedThroughFails(self) -> None:
        _, got = start(Shielded(fail, ValueError("x")).outcome())
        self.assertTrue(got[0].check(ValueError))


class WorkersTests(TestCase):
    """
    The bounded thread pool.
    """

    def setUp(self) -> None:
        self.workers = BoundedThreadPool("test", threads=1, waiting=1)
        self.addCleanup(self.workers.stop)

    async def test_run(self) -> None:
        thread = await self.workers.run(threading.get_ident)
        self.assertNotEqual(thread, threading.get_ident())
        with self.assertRaises(ZeroDivisionError):
            await self.workers.run(divmod, 1, 0)

    async def test_bound(self) -> None:
        gate = threading.Event()
        first = self.workers.run(gate.wait, 30)
        second = self.workers.run(int)
        with self.assertRaises(POP3ResponseError) as caught:
            self.workers.run(int)
        self.assertEqual(caught.exception.code, "SYS/TEMP")
        gate.set()
        self.assertEqual((await first, await second), (True, 0))
        self.assertEqual(await self.workers.run(int), 0)

    async def test_cancel(self) -> None:
        """
        The result of cancelled work is released; work that has not begun is skipped.
        """
        gate, given = threading.Event(), []
        begun: Deferred[None] = Deferred()
        freed: Deferred[bool] = Deferred()

        def work() -> bool:
            reactor.callFromThread(begun.callback, None)
            return gate.wait(30)

        first = self.workers.run(work, abandoned=freed.callback)
        await begun
        began: list[int] = []
        second = self.workers.run(began.append, 1, abandoned=given.append)
        for each in (first, second):
            each.cancel()
            self.failureResultOf(each, CancelledError)
        gate.set()
        self.assertEqual(await freed, True)
        self.assertEqual(await self.workers.run(int), 0)
        self.assertEqual((given, began), ([], []))

    def refuseThreads(self) -> None:
        """
        Make the start of threads fail, as under systemd's TasksMax.
        """

        def start(thread: object) -> None:
            raise RuntimeError("can't start new thread")

        self.patch(threading.Thread, "start", start)

    async def test_noThreadAtAll(self) -> None:
        """
        Work that cannot begin is refused and not counted.
        """
        original = threading.Thread.start
        self.refuseThreads()
        for _ in range(5):
            with self.assertRaises(POP3ResponseError) as caught:
                self.workers.run(int)
            self.assertEqual(caught.exception.code, "SYS/TEMP")
        self.patch(threading.Thread, "start", original)
        self.assertEqual(await self.workers.run(int), 0)

    async def test_noSecondThread(self) -> None:
        """
        If no second thread can be started, the first one does the work.
        """
        workers = BoundedThreadPool("test", threads=4, waiting=4)
        self.addCleanup(workers.stop)
        workers.start()
        self.refuseThreads()
        gate = threading.Event()
        first = workers.run(gate.wait, 30)
        rest = [workers.run(int) for _ in range(5)]
        gate.set()
        self.assertEqual([await each for each in (first, *rest)], [True, 0, 0, 0, 0, 0])

    async def hang(self, workers: BoundedThreadPool, group: str) -> threading.Event:
        """
        Start work that hangs, and cancel it.

        @return: an event that ends the work.
        """
        gate = threading.Event()
        self.addCleanup(gate.set)
        begun: Deferred[None] = Deferred()

        def work() -> bool:
            reactor.callFromThread(begun.callback, None)
            return gate.wait(30)

        hanging = workers.run(work, group=group)
        await begun
        hanging.cancel()
        self.failureResultOf(hanging, CancelledError)
        return gate

    async def test_lostThread(self) -> None:
        """
        A thread that hangs is replaced, and further work of its group is refused until it
        returns.
        """
        self.patch(BoundedThreadPool, "GRACE", 0.0)
        gates = [await self.hang(self.workers, name) for name in ("a", "b", "c")]
        for name in ("a", "b", "c"):
            self.assertTrue(self.workers.isLost(name))
            with self.assertRaises(POP3ResponseError) as caught:
                self.workers.run(int, group=name)
            self.assertEqual(caught.exception.code, "SYS/TEMP")
        self.assertEqual(await self.workers.run(int, group="d"), 0)
        gates[0].set()
        while self.workers.isLost("a"):
            await self.workers.run(int)
        self.assertEqual(await self.workers.run(int, group="a"), 0)

    async def test_stopDoesNotWaitForLostThreads(self) -> None:
        self.patch(BoundedThreadPool, "GRACE", 0.0)
        await self.hang(self.workers, "a")
        # Without this, the test would take 30 seconds, or five.
        began = reactor.seconds()
        self.workers.stop()
        self.assertLess(reactor.seconds() - began, BoundedThreadPool.PATIENCE / 2)

    async def test_stopNoticesThreadsThatAreLostMeanwhile(self) -> None:
        """
        Nothing is notified when the grace of cancelled work is over.
        """
        self.patch(BoundedThreadPool, "GRACE", 0.3)
        await self.hang(self.workers, "a")
        began = reactor.seconds()
        self.workers.stop()
        self.assertLess(reactor.seconds() - began, BoundedThreadPool.PATIENCE / 2)


class MonotonicTests(TestCase):
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


class DeadlinesTests(TestCase):
    """
    Time limits of one length with one timer.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.passed: list[str] = []
        self.deadlines = SharedTimeout(self.clock, 10, self.passed.append)

    def test_each(self) -> None:
        self.deadlines.begin("a")
        self.clock.advance(4)
        self.deadlines.begin("b")
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(6)
        self.assertEqual(self.passed, ["a"])
        self.clock.advance(3.5)
        self.assertEqual(self.passed, ["a"])
        self.clock.advance(0.5)
        self.assertEqual(self.passed, ["a", "b"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_anew(self) -> None:
        self.deadlines.begin("a")
        self.deadlines.begin("b")
        self.clock.advance(9)
        self.deadlines.begin("a")
        self.clock.advance(1)
        self.assertEqual(self.passed, ["b"])
        self.clock.advance(9)
        self.assertEqual(self.passed, ["b", "a"])

    def test_ended(self) -> None:
        self.deadlines.begin("a")
        self.deadlines.begin("b")
        self.deadlines.end("a")
        self.deadlines.end("nobody")
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.deadlines.end("b")
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.clock.advance(20)
        self.assertEqual(self.passed, [])

    def test_errors(self) -> None:
        """
        An error of one handler does not affect the others; an object that begins again
        meanwhile gets a new limit.
        """

        def passed(each: str) -> None:
            self.passed.append(each)
            if each == "a":
                self.deadlines.begin("a")
                raise ValueError

        self.deadlines = SharedTimeout(self.clock, 10, passed)
        self.deadlines.begin("a")
        self.deadlines.begin("b")
        self.clock.advance(10)
        self.assertEqual(self.passed, ["a", "b"])
        self.clock.advance(10)
        self.assertEqual(self.passed, ["a", "b", "a"])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)


class TurnsTests(TestCase):
    """
    Waiters for their next slice share the time of one slice.
    """

    def test_shared(self) -> None:
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

    def test_gone(self) -> None:
        """
        A waiter that is cancelled no longer counts.
        """
        clock = Clock()
        turn, got = start(TimeSlice(clock).next())
        turn.cancel()
        clock.advance(0)
        self.assertTrue(got[0].check(CancelledError))
        self.assertEqual(TimeSlice._shared[clock], [0])
