"""
A queue for checks of passwords.  Logins from known networks go first.  No login waits longer than a
time limit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from pop3svc.errors import POP3ResponseError
from pop3svc.policy import Policy
from pop3svc.threadpool import BoundedThreadPool

__all__ = ["CheckQueue", "CoroutineRunner", "hashing", "startHashing"]


class _Runner(Protocol):
    """
    Runs a check.  L{pop3svc.threadpool.Executor} and L{CoroutineRunner} are such runners.
    """

    def run(self, work: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """
        @return: a Deferred that fires with the result of C{work}.
        """


class CoroutineRunner:
    """
    Runs coroutines for a L{CheckQueue}.
    """

    def run(self, work: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """
        Start a coroutine.
        """
        return Deferred.fromCoroutine(work(*arguments))


class _Entry:
    """
    A check that waits in the queue or runs.
    """

    __slots__ = ("arguments", "begun", "result", "timer", "work")

    def __init__(
        self, work: Callable[..., Any], arguments: Any, begun: Callable[[], object]
    ) -> None:
        self.work = work
        self.arguments = arguments
        self.begun = begun
        self.result: Deferred[Any] | None = None
        self.timer: IDelayedCall | None = None

    def finish(self, outcome: Any) -> None:
        result, self.result = self.result, None
        if result is None:
            # The caller has cancelled the Deferred.
            return
        if isinstance(outcome, Failure):
            result.errback(outcome)
        else:
            result.callback(outcome)


def _busy() -> POP3ResponseError:
    return POP3ResponseError("Too busy, try again later.", "SYS/TEMP")


class CheckQueue:
    """
    Runs checks of passwords, a few at a time.  Urgent checks go first.  No check waits longer than
    its time limit.
    """

    # The most hashes that are computed at the same time.  Each takes about 0.1 s of CPU time and 64
    # MiB of memory.
    CONCURRENT = 2
    # The most checks that may wait.  Usually the time limits keep the queue shorter.  A waiting
    # check takes about 2 KiB.
    MAX_WAITING = 10_000

    def __init__(
        self,
        runner: _Runner,
        clock: IReactorTime | None = None,
        concurrent: int = CONCURRENT,
        mostWaiting: int = MAX_WAITING,
    ) -> None:
        """
        @param runner: runs the checks.
        @param clock: used for the time limits; the reactor if not given.
        @param concurrent: the most checks that run at the same time.
        @param mostWaiting: the most checks that may wait.
        """
        self._runner = runner
        self._clock = clock
        self._concurrent = concurrent
        self._mostWaiting = mostWaiting
        self._running = 0
        self._isStarting = False
        self._urgent: dict[_Entry, None] = {}
        self._others: dict[_Entry, None] = {}

    @property
    def underWay(self) -> int:
        """
        The number of checks that run or wait.
        """
        return self._running + len(self._urgent) + len(self._others)

    def run(
        self,
        work: Callable[..., Any],
        *arguments: Any,
        isUrgent: bool = False,
        patience: float = Policy.loginWait,
        begun: Callable[[], object] = lambda: None,
    ) -> Deferred[Any]:
        """
        Run C{work} as soon as fewer than C{concurrent} checks run, and no other check is before it
        in the queue.

        @param isUrgent: whether C{work} runs before waiting work that is not urgent.
        @param patience: how many seconds C{work} may wait in the queue.
        @param begun: called when C{work} begins.
        @return: a Deferred that fires with the result of C{work}.  If C{work} waits longer than
            C{patience}, the Deferred fails with L{POP3ResponseError}, C{SYS/TEMP}.  Cancelling the
            Deferred removes work that has not begun.  Work that has begun is not interrupted.
        @raise POP3ResponseError: C{SYS/TEMP} if the queue is full.
        """
        if len(self._urgent) + len(self._others) >= self._mostWaiting:
            raise _busy()
        entry = _Entry(work, arguments, begun)
        queue = self._urgent if isUrgent else self._others
        queue[entry] = None

        def leave() -> None:
            entry.result = None
            if queue.pop(entry, entry) is None and entry.timer is not None:
                entry.timer.cancel()

        result: Deferred[Any] = Deferred(lambda _: leave())
        entry.result = result
        self._startNext()
        if entry in queue:
            entry.timer = self._callLater(patience, lambda: self._expire(queue, entry))
        return result

    def _callLater(self, seconds: float, call: Callable[[], object]) -> IDelayedCall:
        if self._clock is None:
            from twisted.internet import reactor

            self._clock = IReactorTime(reactor)
        return self._clock.callLater(seconds, call)

    def _expire(self, queue: dict[_Entry, None], entry: _Entry) -> None:
        del queue[entry]
        entry.finish(Failure(_busy()))

    def _startNext(self) -> None:
        if self._isStarting:
            # The loop below has called this method, because work that it has started has ended at
            # once.  The loop itself will start the next work.
            return
        self._isStarting = True
        try:
            while self._running < self._concurrent and (queue := self._urgent or self._others):
                entry = next(iter(queue))
                del queue[entry]
                if entry.timer is not None:
                    entry.timer.cancel()
                self._start(entry)
        finally:
            self._isStarting = False

    def _start(self, entry: _Entry) -> None:
        self._running += 1

        def begin() -> Deferred[Any]:
            entry.begun()
            return self._runner.run(entry.work, *entry.arguments)

        def ended(outcome: Any) -> None:
            self._running -= 1
            self._startNext()
            entry.finish(outcome)

        maybeDeferred(begin).addBoth(ended)


# Threads that compute hashes yield to the reactor's thread.  While 30 clients guessed passwords on
# two cores, the slowest NOOP of other sessions took 51 to 128 ms without this niceness, and 7 to 46
# ms with the niceness.
NICENESS = 10

_workers = BoundedThreadPool(
    "pop3svc-hash",
    threads=CheckQueue.CONCURRENT,
    waiting=CheckQueue.CONCURRENT,
    niceness=NICENESS,
)
_queue = CheckQueue(_workers)


def hashing() -> CheckQueue:
    """
    @return: the queue in which all sources of accounts of this process compute hashes.
    """
    return _queue


def startHashing() -> None:
    """
    Start the first thread now, because the start of a thread may fail later.
    """
    _workers.start()
