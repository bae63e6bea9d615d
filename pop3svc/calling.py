"""
Make value, Deferred and coroutine one thing, finish what must not be
cancelled, and keep what blocks out of the reactor thread.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Generator
from types import CoroutineType
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from pop3svc.errors import POP3ResponseError

__all__ = [
    "CarriedThrough",
    "Deadlines",
    "Runner",
    "Turns",
    "Unanswered",
    "Workers",
    "answered",
    "ask",
    "begin",
    "givenUp",
    "isLater",
    "settle",
]

log = Logger(namespace="pop3svc")

T = TypeVar("T")


class Unanswered(Exception):
    """
    What was asked did not answer in time.
    """


def isLater(answer: object) -> bool:
    """
    Is this no value, but a Deferred or a coroutine that will give it?
    """
    # To ask for its class costs more: Deferred is an abstract one.
    return hasattr(answer, "__await__")


def begin(coroutine: Coroutine[Any, Any, T]) -> T | Deferred[T]:
    """
    Run a coroutine as far as it goes at once: most never wait, and a Deferred
    costs more than they do.

    @return: what it returned, if it is over; else a Deferred.
    """
    try:
        awaited = coroutine.send(None)
    except StopIteration as over:
        value: T = over.value
        return value
    rest: Any = _rest(coroutine, awaited)
    return Deferred.fromCoroutine(rest)


def _rest(coroutine: Coroutine[Any, Any, T], awaited: Any) -> Generator[Any, Any, T]:
    """
    The rest of a coroutine that has begun.
    """
    while True:
        try:
            value = yield awaited
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as error:
            step: Callable[[Any], Any] = coroutine.throw
            argument: Any = error
        else:
            step, argument = coroutine.send, value
        try:
            awaited = step(argument)
        except StopIteration as over:
            result: T = over.value
            return result


async def ask(
    call: Callable[..., Any], *arguments: Any, clock: IReactorTime, timeout: float
) -> Any:
    """
    Call something that may answer at once, by a Deferred or by a coroutine.

    Cancelling the Deferred that drives this cancels a pending answer.

    @param timeout: seconds until L{Unanswered} is raised and a pending answer
        is cancelled.
    @return: the answer.
    @raise Unanswered: it did not answer in time.
    """
    answer = call(*arguments)
    if isLater(answer):
        answer = await answered(answer, clock, timeout)
    return answer


async def answered(answer: Any, clock: IReactorTime, timeout: float) -> Any:
    """
    Wait for an answer that is not there yet; see L{ask} and L{isLater}.
    """
    if not isinstance(answer, Deferred):
        answer = begin(answer if isinstance(answer, CoroutineType) else settle(lambda: answer))
    if isinstance(answer, Deferred):
        answer = await _within(answer, clock, timeout)
    return answer


async def settle(call: Callable[..., Any], *arguments: Any) -> Any:
    """
    Call something that may answer at once, by a Deferred or by a coroutine,
    and wait as long as it takes: whoever called us sets the limit.

    @return: the answer.
    """
    answer = call(*arguments)
    if isLater(answer):
        answer = await answer
    return answer


def _within(answer: Deferred[Any], clock: IReactorTime, timeout: float) -> Deferred[Any]:
    """
    The same answer, or L{Unanswered} after C{timeout} seconds, even if
    cancelling it changes nothing.
    """
    if answer.called and not answer.paused:
        return answer

    def abandon(_: object) -> None:
        if timer.active():
            timer.cancel()
        answer.cancel()

    result: Deferred[Any] = Deferred(abandon)

    isLate = False

    def late() -> None:
        nonlocal isLate
        isLate = True
        # It counts as over only when it has been told so.
        answer.cancel()
        if not result.called:
            result.errback(Unanswered())

    timer = clock.callLater(timeout, late)

    def arrived(value: Any) -> None:
        if timer.active():
            timer.cancel()
        if isLate or result.called:
            if not result.called:
                result.errback(Unanswered())
        else:
            if isinstance(value, Failure):
                result.errback(value)
            else:
                result.callback(value)

    answer.addBoth(arrived)
    return result


class CarriedThrough:
    """
    A call that goes on to its end whoever stops waiting for it.
    """

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self._outcome: Any = None
        self._waiting: list[Deferred[None]] = []
        self.done = False

        outcome: Any
        try:
            outcome = begin(settle(call, *arguments))
        except BaseException:
            outcome = Failure()
        if isinstance(outcome, Deferred):
            outcome.addBoth(self._ended)
        else:
            self._ended(outcome)

    def _ended(self, outcome: Any) -> None:
        self.done = True
        self._outcome = outcome
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.callback(None)

    async def outcome(self, clock: IReactorTime | None = None, timeout: float = 0) -> Any:
        """
        Wait for the end.  To be cancelled stops the waiting only.

        @param timeout: seconds; without a clock there is no limit.
        @return: what the call returned.
        @raise Unanswered: not within C{timeout} seconds; it still goes on.
        """
        if not self.done:
            waiter: Deferred[None] = Deferred(self._waiting.remove)
            self._waiting.append(waiter)
            await (waiter if clock is None else _within(waiter, clock, timeout))
        if isinstance(self._outcome, Failure):
            self._outcome.raiseException()
        return self._outcome


class Runner(Protocol):
    """
    Runs blocking work somewhere else than in the reactor thread.
    """

    def run(
        self,
        work: Callable[..., T],
        *arguments: Any,
        abandoned: Callable[[T], object] | None = None,
    ) -> Deferred[T]:
        """
        @param abandoned: called (in the reactor thread) with what C{work}
            returned if nobody waits for it any more, to give it back.
        @return: a Deferred firing with what C{work} returned.
        @raise POP3ResponseError: C{SYS/TEMP}, too much work is waiting.
        """


class _DaemonThread(threading.Thread):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named, daemon=True)


_running = threading.local()


def givenUp() -> bool:
    """
    Asked by long work in one of the threads of L{Workers}, now and then.

    @return: does nobody wait for it any more?
    """
    asked: Callable[[], bool] | None = getattr(_running, "givenUp", None)
    return asked is not None and asked()


class Turns:
    """
    Lets the reactor have its turn in long work in its own thread.
    """

    # Seconds: what nobody notices, even if a hundred do the same.
    SLICE = 0.004

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._began = clock.seconds()

    def restart(self) -> float:
        """
        A turn begins.

        @return: seconds on the clock.
        """
        self._began = self._clock.seconds()
        return self._began

    def isOver(self) -> bool:
        """
        Has this turn taken its time?
        """
        return self._clock.seconds() - self._began >= self.SLICE

    async def next(self) -> None:
        """
        Let the reactor have its turn.
        """
        turn: Deferred[None] = Deferred()
        self._clock.callLater(0, turn.callback, None)
        await turn
        self._began = self._clock.seconds()

    async def perhaps(self) -> None:
        """
        Let the reactor have its turn if this one is over.
        """
        if self.isOver():
            await self.next()


class Deadlines:
    """
    Time limits of one length for many, by one timer: a timer for each would
    cost more than most of what they limit.
    """

    def __init__(
        self, clock: IReactorTime, seconds: float, passed: Callable[[Any], object]
    ) -> None:
        """
        @param passed: called with whoever's limit has passed.
        """
        self._clock = clock
        self._seconds = seconds
        self._passed = passed
        # When each is over; those that began first stand first.
        self._ends: OrderedDict[Any, float] = OrderedDict()
        self._timer: IDelayedCall | None = None

    def begin(self, each: object) -> None:
        """
        From now on, whether or not it had begun before.
        """
        ends = self._ends
        ends[each] = self._clock.seconds() + self._seconds
        ends.move_to_end(each)
        if self._timer is None:
            self._timer = self._clock.callLater(self._seconds, self._look)

    def end(self, each: object) -> None:
        """
        There is no limit any more.
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
            if end > now:
                if self._timer is None:
                    self._timer = self._clock.callLater(end - now, self._look)
                return
            del self._ends[first]
            try:
                self._passed(first)
            except Exception:
                log.failure("what was to be done in time failed")


class _Skipped:
    """
    What work returns that was cancelled before it began.
    """


class Workers:
    """
    A few threads for work that blocks, with a bound to what may wait.
    """

    def __init__(self, name: str, threads: int, waiting: int, reactor: Any = None) -> None:
        """
        @param threads: how many pieces of work run at once.
        @param waiting: how many more may wait for their turn.
        """
        self._bound = threads + waiting
        self._underWay = 0
        self._pool = ThreadPool(0, threads, name)
        # One that a disk never gives back must not keep the process.
        self._pool.threadFactory = _DaemonThread
        self._reactor = reactor
        self._started = False

    def _start(self) -> None:
        if self._reactor is None:
            from twisted.internet import reactor

            self._reactor = reactor
        self._started = True
        self._pool.start()
        self._reactor.addSystemEventTrigger("after", "shutdown", self.stop)

    def stop(self) -> None:
        """
        Wait for what runs and end the threads.
        """
        if self._started:
            self._started = False
            self._pool.stop()

    def run(
        self,
        work: Callable[..., T],
        *arguments: Any,
        abandoned: Callable[[T], object] | None = None,
    ) -> Deferred[T]:
        """
        Run C{work} in a thread.

        @param abandoned: called (in the reactor thread) with what C{work}
            returned if the Deferred was cancelled meanwhile, to give it back.
        @return: a Deferred.  Cancelling it skips work that has not begun.
        @raise POP3ResponseError: C{SYS/TEMP}, too much is waiting.
        """
        if self._underWay >= self._bound:
            raise POP3ResponseError("Too busy, try again later.", "SYS/TEMP")
        if not self._started:
            self._start()
        self._underWay += 1
        cancelled = False

        def cancel(_: Deferred[T]) -> None:
            nonlocal cancelled
            cancelled = True

        result: Deferred[T] = Deferred(cancel)

        def job() -> Any:
            if cancelled:
                return _Skipped()
            _running.givenUp = lambda: cancelled or not self._started
            return work(*arguments)

        def ended(outcome: Any) -> None:
            self._underWay -= 1
            if not cancelled:
                if isinstance(outcome, Failure):
                    result.errback(outcome)
                else:
                    result.callback(outcome)
            elif abandoned is not None and not isinstance(outcome, Failure | _Skipped):
                abandoned(outcome)

        deferToThreadPool(self._reactor, self._pool, job).addBoth(ended)
        return result
