"""
Blocking work in threads: bounds, cancellation, and threads that hang.
"""

from __future__ import annotations

import os
import sys
import threading

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import TestCase

from pop3svc.errors import POP3ResponseError
from pop3svc.threadpool import BoundedThreadPool


class BoundedThreadPoolTests(TestCase):
    def setUp(self) -> None:
        self.workers = BoundedThreadPool("test", threads=1, waiting=1)
        self.addCleanup(self.workers.stop)

    async def test_runsInAThread(self) -> None:
        thread = await self.workers.run(threading.get_ident)
        self.assertNotEqual(thread, threading.get_ident())
        with self.assertRaises(ZeroDivisionError):
            await self.workers.run(divmod, 1, 0)

    async def test_moreThreads(self) -> None:
        """
        A pool may be allowed more threads later, and never gets fewer.
        """
        for threads in (2, 1):
            self.workers.allow(threads)
        both = threading.Barrier(2)
        numbers = [await each for each in [self.workers.run(both.wait, 30) for _ in range(2)]]
        self.assertEqual(sorted(numbers), [0, 1])

    async def test_nicer(self) -> None:
        """
        On Linux the threads have a lower priority than the thread of the reactor, whose priority
        does not change.
        """
        workers = BoundedThreadPool("nice", threads=1, waiting=1, niceness=3)
        self.addCleanup(workers.stop)
        before = os.nice(0)
        wanted = before + 3 if sys.platform == "linux" else before
        self.assertEqual(await workers.run(os.nice, 0), min(wanted, 19))
        self.assertEqual(os.nice(0), before)

    async def test_nicenessIsForbidden(self) -> None:
        def forbid(niceness: int) -> int:
            raise PermissionError

        self.patch(os, "nice", forbid)
        workers = BoundedThreadPool("nice", threads=1, waiting=1, niceness=3)
        self.addCleanup(workers.stop)
        self.assertEqual(await workers.run(int), 0)

    async def test_queueIsBounded(self) -> None:
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
        A thread that hangs is replaced, and further work of its group is refused until the thread
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
        # If stop() waited for the lost thread, it would take PATIENCE seconds.
        began = reactor.seconds()
        self.workers.stop()
        self.assertLess(reactor.seconds() - began, BoundedThreadPool.PATIENCE / 2)

    async def test_stopNoticesThreadsThatAreLostMeanwhile(self) -> None:
        """
        If a thread becomes lost while the pool waits for it, the pool waits no longer, although
        nothing notifies the pool.
        """
        self.patch(BoundedThreadPool, "GRACE", 0.3)
        await self.hang(self.workers, "a")
        began = reactor.seconds()
        self.workers.stop()
        self.assertLess(reactor.seconds() - began, BoundedThreadPool.PATIENCE / 2)
