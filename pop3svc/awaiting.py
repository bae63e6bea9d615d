"""
Make value, Deferred and coroutine one thing, finish what must not be
cancelled, and keep what blocks out of the reactor thread.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Generator, Hashable
from queue import SimpleQueue
from types import CoroutineType
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from pop3svc.errors import POP3ResponseError, ProviderMistake

__all__ = [
    "BoundedThreadPool",
    "CallTimeout",
    "Executor",
    "Progress",
    "SharedTimeout",
    "Shielded",
    "TimeSlice",
    "awaitWithTimeout",
    "callWithTimeout",
    "ensureStarted",
    "isAwaitable",
    "isCancelled",
    "maybeAwait",
    "startNow",
    "tellProgress",
    "useMonotonicClock",
]

log = Logger(namespace="pop3svc")

T = TypeVar("T")


class CallTimeout(Exception):
    """
    What was asked did not answer in time.
    """


def useMonotonicClock(reactor: Any) -> None:
    """
    Have a reactor measure all waiting by the monotonic clock.  Twisted's own is the
    wall clock: when that is set back, all time limits stop until it has caught up.
    Call it before anything waits.
    """
    if not reactor.getDelayedCalls():
        reactor.seconds = time.monotonic


def isAwaitable(answer: object) -> bool:
    """
    Is this no value, but a Deferred or a coroutine that will give it?
    """
    # To ask for its class costs more: Deferred is an abstract one.
    return hasattr(answer, "__await__")


def startNow(coroutine: Coroutine[Any, Any, T]) -> T | Deferred[T]:
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
    except RuntimeError as error:
        raise _explained(error, coroutine)
    rest: Any = _rest(coroutine, awaited)
    return Deferred.fromCoroutine(rest)


def _rest(coroutine: Coroutine[Any, Any, T], awaited: Any) -> Generator[Any, Any, T]:
    """
    The rest of a coroutine that has begun.
    """
    while True:
        try:
            if not isinstance(awaited, Deferred):
                raise _needsLoop(coroutine)
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
        except RuntimeError as error:
            raise _explained(error, coroutine)


def _needsLoop(coroutine: Any) -> ProviderMistake:
    name = getattr(coroutine, "__qualname__", type(coroutine).__name__)
    return ProviderMistake(
        f"{name} awaits something of asyncio: run the service in an asyncio event loop, "
        "as with twistd --reactor asyncio"
    )


def _explained(error: RuntimeError, coroutine: Any) -> Exception:
    """
    @return: what to say of an error of a coroutine: asyncio does not say what to do
        where no event loop of its own runs.
    """
    return _needsLoop(coroutine) if str(error) == "no running event loop" else error


async def callWithTimeout(
    call: Callable[..., Any], *arguments: Any, clock: IReactorTime, timeout: float
) -> Any:
    """
    Call something that may answer at once, by a Deferred or by a coroutine.

    Cancelling the Deferred that drives this cancels a pending answer.

    @param timeout: seconds until L{CallTimeout} is raised and a pending answer
        is cancelled.
    @return: the answer.
    @raise Unanswered: it did not answer in time.
    """
    answer = call(*arguments)
    if isAwaitable(answer):
        answer = await awaitWithTimeout(answer, clock, timeout)
    return answer


def ensureStarted(answer: Any) -> Any:
    """
    Begin to wait for a Deferred, or for any awaitable: of Twisted, or of asyncio where
    an asyncio event loop runs the reactor.

    @return: what it gives, if it is over at once; else a Deferred.
    @raise ProviderMistake: it awaits asyncio, and no asyncio event loop runs.
    """
    if isinstance(answer, Deferred):
        return answer
    if isinstance(answer, CoroutineType) and _isOurs(answer):
        return startNow(answer)
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        if isinstance(answer, CoroutineType):
            return startNow(answer)
        coroutine: Any = _awaited(answer)
        coroutine.__qualname__ = type(answer).__name__
        return startNow(coroutine)
    return _inTask(answer, loop)


def _isOurs(coroutine: CoroutineType[Any, Any, Any]) -> bool:
    """
    Is a coroutine of this package?  None of them awaits asyncio, and all are written for
    Twisted's cancellation, by which a result never comes together with a cancellation.
    """
    frame = coroutine.cr_frame
    name = "" if frame is None else str(frame.f_globals.get("__name__"))
    return name.startswith("pop3svc.")


async def _awaited(answer: Any) -> Any:
    return await answer


class _Steps:
    """
    What awaits this drives an awaitable, step by step.
    """

    def __init__(self, answer: Any, step: Callable[[Any], Generator[Any, Any, Any]]) -> None:
        """
        @param step: waits for what the awaitable waits for.
        """
        self._steps = answer.__await__()
        self._step = step

    def __await__(self) -> Generator[Any, Any, Any]:
        steps, argument = self._steps, None
        send: Callable[[Any], Any] = steps.send if hasattr(steps, "send") else lambda _: next(steps)
        resume = send
        while True:
            try:
                waitsFor = resume(argument)
            except StopIteration as over:
                return over.value
            try:
                resume, argument = send, (yield from self._step(waitsFor))
            except GeneratorExit:
                steps.close()
                raise
            except BaseException as error:
                resume, argument = steps.throw, error


def _inTask(answer: Any, loop: asyncio.AbstractEventLoop) -> Deferred[Any]:
    """
    Drive an awaitable in a task of its own, because much of asyncio wants one.  It may
    await Deferreds, too.
    """

    def step(waitsFor: Any) -> Generator[Any, Any, Any]:
        if not isinstance(waitsFor, Deferred):
            return (yield waitsFor)
        fired: asyncio.Future[None] = loop.create_future()

        def fire(result: Any) -> Any:
            if not fired.done():
                fired.set_result(None)
            return result

        waitsFor.addBoth(fire)
        try:
            return (yield from fired)
        except asyncio.CancelledError:
            waitsFor.cancel()
            # It was told; nobody waits for what becomes of it.
            waitsFor.addErrback(lambda _: None)
            raise

    task = loop.create_task(_awaited(_Steps(answer, step)))

    def translate(failure: Failure) -> Any:
        # An asyncio.CancelledError is no Exception: it would pass by what lets go.
        failure.trap(asyncio.CancelledError)
        raise CancelledError()

    return Deferred.fromFuture(task).addErrback(translate)


async def awaitWithTimeout(answer: Any, clock: IReactorTime, timeout: float) -> Any:
    """
    Wait for an answer that is not there yet; see L{callWithTimeout} and L{isAwaitable}.
    """
    answer = ensureStarted(answer)
    if isinstance(answer, Deferred):
        answer = await _within(answer, clock, timeout)
    return answer


async def maybeAwait(call: Callable[..., Any], *arguments: Any) -> Any:
    """
    Call something that may answer at once, by a Deferred or by a coroutine,
    and wait as long as it takes: whoever called us sets the limit.

    @return: the answer.
    """
    answer = call(*arguments)
    if isAwaitable(answer):
        answer = ensureStarted(answer)
        if isinstance(answer, Deferred):
            answer = await answer
    return answer


def _within(answer: Deferred[Any], clock: IReactorTime, timeout: float) -> Deferred[Any]:
    """
    The same answer, or L{CallTimeout} after C{timeout} seconds, even if
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
            result.errback(CallTimeout())

    def goesOn() -> None:
        if timer.active():
            timer.reset(timeout)

    timer = clock.callLater(timeout, late)
    if isinstance(answer, Progress):
        answer.listeners.append(goesOn)

    def arrived(value: Any) -> None:
        if timer.active():
            timer.cancel()
        if isLate or result.called:
            if not result.called:
                result.errback(CallTimeout())
        else:
            if isinstance(value, Failure):
                result.errback(value)
            else:
                result.callback(value)

    answer.addBoth(arrived)
    return result


class Shielded:
    """
    A call that goes on to its end whoever stops waiting for it.
    """

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self._outcome: Any = None
        self._waiting: list[Deferred[None]] = []
        self.done = False

        outcome: Any
        try:
            outcome = startNow(maybeAwait(call, *arguments))
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


class Progress(Deferred[T]):
    """
    A Deferred whose work tells that it goes on: each time, the time limit of who waits
    begins anew.
    """

    def __init__(self, canceller: Callable[[Any], None] | None = None) -> None:
        """
        @param canceller: see L{Deferred}.
        """
        super().__init__(canceller)
        self.listeners: list[Callable[[], object]] = []

    def progressed(self) -> None:
        """
        The work goes on.
        """
        for each in self.listeners:
            each()


class Executor(Protocol):
    """
    Runs blocking work somewhere else than in the reactor thread.
    """

    def run(
        self,
        work: Callable[..., T],
        *arguments: Any,
        abandoned: Callable[[T], object] | None = None,
        ended: Callable[[], object] | None = None,
        group: Hashable = None,
    ) -> Deferred[T]:
        """
        @param abandoned: called (in the reactor thread) with what C{work}
            returned if nobody waits for it any more, to give it back.
        @param ended: called (in the reactor thread) when C{work} is over, or will never
            begin: before the Deferred fires, or long after it was cancelled.
        @param group: work on one thing, such as a mailbox, that may not come back; if it is
            a tuple, its first element is what has a bound of its own, such as a file system.
        @return: a Deferred firing with what C{work} returned.
        @raise POP3ResponseError: C{SYS/TEMP}, too much work is waiting, or
            earlier work of the same group has not come back.
        """

    def isLost(self, group: Hashable) -> bool:
        """
        @return: has a group of work a thread that has not come back?
        """


_running = threading.local()


def isCancelled() -> bool:
    """
    Asked by long work in one of the threads of L{BoundedThreadPool}, now and then.

    @return: does nobody wait for it any more?
    """
    job: _Job | None = getattr(_running, "job", None)
    return job is not None and job.isCancelled


def tellProgress() -> None:
    """
    Called by long work in one of the threads of L{BoundedThreadPool}, now and then: it goes on.
    """
    job: _Job | None = getattr(_running, "job", None)
    if job is not None:
        job.tell()


class TimeSlice:
    """
    Lets the reactor have its turn in long work in its own thread.  Those that wait for
    their next turn share the time of one, so that a client who comes between does not
    wait for each of them that long.
    """

    # Seconds: what nobody notices; and the least that one is given.
    SLICE, LEAST = 0.004, 0.0002

    # By clock: how many wait for their next turn.
    _shared: WeakKeyDictionary[Any, list[int]] = WeakKeyDictionary()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._waiting = self._shared.setdefault(clock, [0])
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
        waiting = self._waiting[0]
        limit = self.SLICE if waiting < 2 else max(self.SLICE / waiting, self.LEAST)
        return self._clock.seconds() - self._began >= limit

    def callNext(self, call: Callable[[], object]) -> None:
        """
        Call something in the next turn.
        """
        self._waiting[0] += 1
        self._clock.callLater(0, self._called, call)

    def _called(self, call: Callable[[], object]) -> None:
        self._waiting[0] -= 1
        call()

    async def next(self) -> None:
        """
        Let the reactor have its turn.
        """
        turn: Deferred[None] = Deferred()
        # Whoever waited may be gone by then.
        self.callNext(lambda: None if turn.called else turn.callback(None))
        await turn
        self._began = self._clock.seconds()

    async def yieldIfDue(self) -> None:
        """
        Let the reactor have its turn if this one is over.
        """
        if self.isOver():
            await self.next()


class SharedTimeout:
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
                log.failure("a time limit handler failed")


class _Skipped:
    """
    What work returns that was cancelled before it began.
    """


class _Job:
    """
    One piece of work, from L{BoundedThreadPool.run} to its end.

    @ivar isCancelled: does nobody wait for it any more?
    """

    __slots__ = (
        "abandoned",
        "arguments",
        "ended",
        "group",
        "hasBegun",
        "isCancelled",
        "reactor",
        "result",
        "told",
        "work",
    )

    def __init__(
        self,
        work: Callable[..., Any],
        arguments: tuple[Any, ...],
        abandoned: Callable[[Any], object] | None,
        ended: Callable[[], object] | None,
        group: Hashable,
        reactor: Any,
    ) -> None:
        self.reactor = reactor
        self.told = 0.0
        self.work = work
        self.arguments = arguments
        self.abandoned = abandoned
        self.ended = ended
        self.group = group
        self.isCancelled = False
        self.hasBegun = False
        self.result: Progress[Any] | None = None

    def tell(self) -> None:
        """
        Tell who waits that the work goes on: four times a second is enough.
        """
        now = time.monotonic()
        if now - self.told >= 0.25:
            self.told = now
            self.reactor.callFromThread(self._tell)

    def _tell(self) -> None:
        if self.result is not None:
            self.result.progressed()

    def perform(self) -> Any:
        """
        Do the work, in a thread.

        @return: its value, a L{Failure}, or L{_Skipped}.
        """
        if self.isCancelled:
            return _Skipped()
        self.hasBegun = True
        _running.job = self
        try:
            return self.work(*self.arguments)
        except BaseException:
            return Failure()
        finally:
            _running.job = None


class BoundedThreadPool:
    """
    A few threads for work that blocks, with a bound to what may wait.

    A thread that does not come back from work that was given up is I{lost}: another
    one takes its place, so that one dead disk does not stop the rest.  While a group
    of work has a lost thread it gets no second one.
    """

    # Seconds in which work that was given up ends, because it looks at isCancelled(); and in
    # which other work ends, or tells that it goes on: longer than the limit of any call.
    GRACE, LATE = 1.0, 150.0
    # Threads that one file system may lose, of those that may be lost in all.
    EACH = 16

    # Threads that may be lost: each costs some 100 KiB and no processor.
    LOST = 32
    # Seconds that L{stop} waits for work under way.  Sessions have ended by then, with
    # time limits of their own, and the process must end.
    PATIENCE = 5.0

    def __init__(self, name: str, threads: int, waiting: int, reactor: Any = None) -> None:
        """
        @param threads: how many pieces of work run at once.
        @param waiting: how many more may wait for their turn.
        """
        self._name = name
        self._most = threads
        self._bound = threads + waiting
        self._underWay = 0
        self._reactor = reactor
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads = 0
        self._hasTrigger = False
        # Work that is in a thread now, by those threads; and work that was given up, with
        # the time (seconds) of that.
        self._begun: dict[_Job, None] = {}
        self._givenUp: dict[_Job, float] = {}
        # Told when a piece of work is over, for stop().
        self._over = threading.Condition()
        self._active = 0

    def start(self) -> None:
        """
        Start the first thread, so that it is there when no other can be had.
        """
        if not self._threads:
            self._grow()

    def _grow(self) -> None:
        """
        Start one more thread, if there are not enough.

        @raise POP3ResponseError: C{SYS/TEMP}, there is none at all.
        """
        lost = len(self._lost())
        if self._threads >= self._most + min(lost, self.LOST):
            return
        if self._reactor is None:
            from twisted.internet import reactor

            self._reactor = reactor
        if not self._hasTrigger:
            self._hasTrigger = True
            self._reactor.addSystemEventTrigger("after", "shutdown", self.stop)
        name = f"{self._name}-{self._threads + 1}"
        try:
            # A thread that a disk never gives back must not keep the process.
            threading.Thread(target=self._serve, name=name, daemon=True).start()
        except RuntimeError:
            # The system has no more threads for us.  Those that run do the work later.
            if self._threads <= lost:
                raise POP3ResponseError("Too busy, try again later.", "SYS/TEMP")
            return
        self._threads += 1

    def _serve(self) -> None:
        jobs, reactor = self._jobs, self._reactor
        while (job := jobs.get()) is not None:
            with self._over:
                self._active += 1
            job.told = time.monotonic()
            self._begun[job] = None
            outcome = job.perform()
            del self._begun[job]
            with self._over:
                self._active -= 1
                self._over.notify_all()
            reactor.callFromThread(self._ended, job, outcome)
            # What was done may be large.
            del job, outcome
        with self._over:
            self._over.notify_all()

    def stop(self) -> None:
        """
        Wait for what runs, but for lost threads and not longer than L{PATIENCE},
        and end the threads.
        """
        for _ in range(self._threads):
            self._jobs.put(None)
        with self._over:
            self._over.wait_for(
                lambda: max(self._jobs.qsize(), self._active) <= len(self._lost()), self.PATIENCE
            )
        self._threads = 0
        self._jobs = SimpleQueue()

    def _lost(self) -> list[_Job]:
        """
        @return: the work whose threads are lost.
        """
        now = time.monotonic()
        lost = [job for job, since in self._givenUp.items() if now - since > self.GRACE]
        if self._underWay >= self._most:
            # What nobody may give up, as a deletion, may hang as well.
            lost += [
                job
                for job in list(self._begun)
                if job not in self._givenUp and now - job.told > self.LATE
            ]
        return lost

    def isLost(self, group: Hashable) -> bool:
        """
        @return: has a group of work a thread that has not come back?
        """
        return bool(self._givenUp) and any(job.group == group for job in self._lost())

    def _isRefused(self, group: Hashable, lost: list[_Job]) -> bool:
        if any(job.group == group for job in lost):
            return True
        if not isinstance(group, tuple):
            return False
        # The first of a tuple is what a whole file system has in common.
        same = [job for job in lost if isinstance(job.group, tuple) and job.group[0] == group[0]]
        return len(same) >= self.EACH

    def run(
        self,
        work: Callable[..., T],
        *arguments: Any,
        abandoned: Callable[[T], object] | None = None,
        ended: Callable[[], object] | None = None,
        group: Hashable = None,
    ) -> Deferred[T]:
        """
        Run C{work} in a thread.

        @param abandoned: called (in the reactor thread) with what C{work}
            returned if the Deferred was cancelled meanwhile, to give it back.
        @param ended: called (in the reactor thread) when C{work} is over, or will never
            begin: before the Deferred fires, or long after it was cancelled.
        @param group: work on one thing, such as a mailbox, that may not come back.
        @return: a Deferred.  Cancelling it skips work that has not begun.
        @raise POP3ResponseError: C{SYS/TEMP}, too much is waiting, or earlier work
            of the same group has not come back.
        """
        lost = self._lost() if self._givenUp or self._underWay >= self._most else []
        if self._underWay - len(lost) >= self._bound:
            raise POP3ResponseError("Too busy, try again later.", "SYS/TEMP")
        if lost and group is not None and self._isRefused(group, lost):
            raise POP3ResponseError("Mailbox timed out.", "SYS/TEMP")
        if self._threads <= self._underWay:
            self._grow()
        job = _Job(work, arguments, abandoned, ended, group, self._reactor)

        def cancel(_: object) -> None:
            job.isCancelled = True
            if job.hasBegun:
                self._givenUp[job] = time.monotonic()

        result: Progress[T] = Progress(cancel)
        job.result = result
        self._underWay += 1
        self._jobs.put(job)
        return result

    def _ended(self, job: _Job, outcome: Any) -> None:
        self._underWay -= 1
        self._givenUp.pop(job, None)
        if self._threads > self._most + len(self._lost()):
            self._threads -= 1
            self._jobs.put(None)
        result, job.result = job.result, None
        assert result is not None
        if job.ended is not None:
            job.ended()
        if not job.isCancelled:
            if isinstance(outcome, Failure):
                result.errback(outcome)
            else:
                result.callback(outcome)
        elif job.abandoned is not None and not isinstance(outcome, Failure | _Skipped):
            job.abandoned(outcome)
