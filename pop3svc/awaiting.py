"""
Helpers for calling providers: treat values, Deferreds and coroutines alike, limit the wait,
shield calls from cancellation, and run blocking work in threads.
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
    "mustStop",
    "reportProgress",
    "startNow",
    "useMonotonicClock",
]

log = Logger(namespace="pop3svc")

T = TypeVar("T")


class CallTimeout(Exception):
    """
    A call did not return a result in time.
    """


def useMonotonicClock(reactor: Any) -> None:
    """
    Make a reactor use the monotonic clock.  Twisted uses the wall clock; if that is set
    back, no timer fires until it has caught up.  Call this before the first C{callLater}.
    """
    if not reactor.getDelayedCalls():
        reactor.seconds = time.monotonic


def isAwaitable(answer: object) -> bool:
    """
    @return: whether the result of a call is a Deferred or another awaitable instead of a
        value.
    """
    # inspect.isawaitable and isinstance cost more, because they ask an abstract class.
    return hasattr(answer, "__await__")


def startNow(coroutine: Coroutine[Any, Any, T]) -> T | Deferred[T]:
    """
    Run a coroutine until it waits.  Most coroutines never wait, and making a Deferred
    costs more time than running them.

    @return: the result of the coroutine, if it has ended; else a Deferred.
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
    Drive the rest of a coroutine that has begun.

    @param awaited: the object that it waits for.
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
        f"{name} awaits an asyncio object: run the service in an asyncio event loop, "
        "for example with twistd --reactor asyncio"
    )


def _explained(error: RuntimeError, coroutine: Any) -> Exception:
    """
    @return: a replacement for asyncio's error that no event loop is running, because that
        error does not say how to solve the problem; all other errors unchanged.
    """
    return _needsLoop(coroutine) if str(error) == "no running event loop" else error


async def callWithTimeout(
    call: Callable[..., Any], *arguments: Any, clock: IReactorTime, timeout: float
) -> Any:
    """
    Call a function that returns a value, a Deferred or a coroutine, and wait for the
    result.

    Cancelling the Deferred that drives this cancels a pending result.

    @param timeout: seconds until L{CallTimeout} is raised and a pending result is
        cancelled.
    @return: the result.
    @raise CallTimeout: there was no result in time.
    """
    answer = call(*arguments)
    if isAwaitable(answer):
        answer = await awaitWithTimeout(answer, clock, timeout)
    return answer


def ensureStarted(answer: Any) -> Any:
    """
    Start an awaitable of Twisted, or of asyncio if an asyncio event loop runs the reactor.

    @return: the result if the awaitable ends at once; else a Deferred.
    @raise ProviderMistake: the awaitable needs an asyncio event loop, and none runs.
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
    @return: whether a coroutine belongs to this package.  None of those awaits asyncio, and
        all rely on Twisted's cancellation, where a call never has both a result and a
        cancellation.
    """
    frame = coroutine.cr_frame
    name = "" if frame is None else str(frame.f_globals.get("__name__"))
    return name.startswith("pop3svc.")


async def _awaited(answer: Any) -> Any:
    return await answer


class _Steps:
    """
    An awaitable that drives another one step by step.
    """

    def __init__(self, answer: Any, step: Callable[[Any], Generator[Any, Any, Any]]) -> None:
        """
        @param step: waits for each object that the other awaitable yields.
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
    Drive an awaitable in a task of its own, because much of asyncio requires a task.  The
    awaitable may also await Deferreds.
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
            # The result of the cancelled Deferred is not needed; swallow its error.
            waitsFor.addErrback(lambda _: None)
            raise

    task = loop.create_task(_awaited(_Steps(answer, step)))

    def translate(failure: Failure) -> Any:
        # asyncio.CancelledError is no Exception, so handlers that release a mailbox would
        # not catch it.
        failure.trap(asyncio.CancelledError)
        raise CancelledError()

    return Deferred.fromFuture(task).addErrback(translate)


async def awaitWithTimeout(answer: Any, clock: IReactorTime, timeout: float) -> Any:
    """
    Wait for the result of an awaitable; see L{callWithTimeout}.
    """
    answer = ensureStarted(answer)
    if isinstance(answer, Deferred):
        answer = await _within(answer, clock, timeout)
    return answer


async def maybeAwait(call: Callable[..., Any], *arguments: Any) -> Any:
    """
    Call a function that returns a value, a Deferred or a coroutine, and wait for the result
    without a time limit.  The caller sets the limit.

    @return: the result.
    """
    answer = call(*arguments)
    if isAwaitable(answer):
        answer = ensureStarted(answer)
        if isinstance(answer, Deferred):
            answer = await answer
    return answer


def _within(answer: Deferred[Any], clock: IReactorTime, timeout: float) -> Deferred[Any]:
    """
    @return: a Deferred with the same result, or with L{CallTimeout} after C{timeout}
        seconds, also if C{answer} ignores its cancellation.
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
        # Cancel the call before the time-out is reported.
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
    A call that runs to its end even if its callers are cancelled.
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
        Wait for the end of the call.  Cancelling this does not cancel the call.

        @param timeout: seconds; without a clock there is no limit.
        @return: the result of the call.
        @raise CallTimeout: the call did not end within C{timeout} seconds; it goes on.
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
    A Deferred whose work reports progress.  Each report restarts the time limits of its
    waiters.
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


class Executor(Protocol):
    """
    Runs blocking work outside the reactor's thread.
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
        Run C{work}.

        @param abandoned: called in the reactor's thread with the result of C{work} if the
            Deferred was cancelled, to release that result.
        @param ended: called in the reactor's thread when C{work} has ended or will never
            begin: before the Deferred fires, or long after it was cancelled.
        @param group: names the object that C{work} is for, such as a mailbox.  If it is a
            tuple, its first element names the resource that it is on, such as a file
            system, which has a limit of its own.
        @return: a Deferred that fires with the result of C{work}.
        @raise POP3ResponseError: C{SYS/TEMP} if too much work is waiting, or a thread hangs
            in earlier work of the same group.
        """

    def isLost(self, group: Hashable) -> bool:
        """
        @return: whether a thread hangs in work of a group.
        """


_running = threading.local()


def isCancelled() -> bool:
    """
    Check for cancellation.  Long work in a thread of a L{BoundedThreadPool} calls this
    regularly.

    @return: whether the work was cancelled.
    """
    job: _Job | None = getattr(_running, "job", None)
    return job is not None and job.isCancelled


def reportProgress() -> None:
    """
    Report progress.  Long work in a thread of a L{BoundedThreadPool} calls this regularly.
    """
    job: _Job | None = getattr(_running, "job", None)
    if job is not None:
        job.reportProgress()


def mustStop() -> bool:
    """
    Report progress and check for cancellation, in one step for work on each of many messages.

    @return: whether the work was cancelled.
    """
    job: _Job | None = getattr(_running, "job", None)
    if job is None:
        return False
    job.reportProgress()
    return job.isCancelled


class TimeSlice:
    """
    Limits how long work occupies the reactor's thread before the reactor serves others.
    All work that waits for its next slice shares the time of one slice.  A new client
    therefore waits for the time of one slice, however much work is waiting.
    """

    # Seconds of a slice: short enough that no client notices; and the shortest.
    SLICE, LEAST = 0.004, 0.0002

    # Number of waiters for their next slice, by clock.
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
    Time limits of one length for many objects, with one timer, because a timer for each
    would cost more than most of the limited work.
    """

    def __init__(
        self, clock: IReactorTime, seconds: float, passed: Callable[[Any], object]
    ) -> None:
        """
        @param passed: called with each object whose time limit has passed.
        """
        self._clock = clock
        self._seconds = seconds
        self._passed = passed
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
    The result of work that was cancelled before it began.
    """


class _Job:
    """
    One piece of work, from L{BoundedThreadPool.run} to its end.

    @ivar isCancelled: whether its Deferred was cancelled.
    """

    __slots__ = (
        "abandoned",
        "arguments",
        "ended",
        "group",
        "hasBegun",
        "isCancelled",
        "lastReport",
        "reactor",
        "result",
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
        self.lastReport = 0.0
        self.work = work
        self.arguments = arguments
        self.abandoned = abandoned
        self.ended = ended
        self.group = group
        self.isCancelled = False
        self.hasBegun = False
        self.result: Progress[Any] | None = None

    def reportProgress(self) -> None:
        """
        Report progress to the reactor's thread, at most four times a second.
        """
        now = time.monotonic()
        if now - self.lastReport >= 0.25:
            self.lastReport = now
            self.reactor.callFromThread(self._progressed)

    def _progressed(self) -> None:
        if self.result is not None:
            self.result.progressed()

    def perform(self) -> Any:
        """
        Do the work, in a thread.

        @return: the result of the work, a L{Failure}, or L{_Skipped}.
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
    A few threads for blocking work, with a bounded queue.

    A thread that hangs in cancelled work is I{lost}.  Another thread takes its place, so
    that one dead disk does not stop all other work.  While a group has a lost thread, its
    further work is refused.
    """

    # Seconds within which cancelled work ends, because it checks isCancelled(); and within
    # which other work ends or reports progress, longer than the limit of any call.
    GRACE, LATE = 1.0, 150.0
    # Threads that one file system may lose.
    EACH = 16

    # Threads that may be lost in all; each costs some 100 KiB and no processor time.
    LOST = 32
    # Seconds that L{stop} waits for running work.  Sessions have ended by then, with time
    # limits of their own, and the process must end.
    PATIENCE = 5.0

    def __init__(self, name: str, threads: int, waiting: int, reactor: Any = None) -> None:
        """
        @param threads: number of threads.
        @param waiting: bound of the queue.
        """
        self._name = name
        self._most = threads
        self._bound = threads + waiting
        self._underWay = 0
        self._reactor = reactor
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads = 0
        self._hasTrigger = False
        # Work that runs in a thread, changed by the threads; and cancelled work that still
        # runs, with the time of the cancellation (seconds).
        self._begun: dict[_Job, None] = {}
        self._cancelled: dict[_Job, float] = {}
        # Notified when a piece of work has ended, for stop().
        self._over = threading.Condition()
        self._active = 0

    def start(self) -> None:
        """
        Start the first thread, so that there is one even if the system refuses more later.
        """
        if not self._threads:
            self._grow()

    def _grow(self) -> None:
        """
        Start one more thread, if there are fewer than allowed.

        @raise POP3ResponseError: C{SYS/TEMP} if the pool has no thread and cannot start one.
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
            # A daemon, because a thread that hangs must not keep the process alive.
            threading.Thread(target=self._serve, name=name, daemon=True).start()
        except RuntimeError:
            # The system refuses another thread.  The existing ones do the work later.
            if self._threads <= lost:
                raise POP3ResponseError("Too busy, try again later.", "SYS/TEMP")
            return
        self._threads += 1

    def _serve(self) -> None:
        jobs, reactor = self._jobs, self._reactor
        while (job := jobs.get()) is not None:
            with self._over:
                self._active += 1
            job.lastReport = time.monotonic()
            self._begun[job] = None
            outcome = job.perform()
            del self._begun[job]
            with self._over:
                self._active -= 1
                self._over.notify_all()
            reactor.callFromThread(self._ended, job, outcome)
            # Drop the references, because the result may be large.
            del job, outcome
        with self._over:
            self._over.notify_all()

    def stop(self) -> None:
        """
        Wait for running work, at most L{PATIENCE} and not for lost threads, and end the
        threads.
        """
        for _ in range(self._threads):
            self._jobs.put(None)
        end = time.monotonic() + self.PATIENCE
        with self._over:
            while max(self._jobs.qsize(), self._active) > len(self._lost()):
                # Look again soon, because nothing is notified when a thread counts as lost.
                if time.monotonic() >= end:
                    break
                self._over.wait(0.1)
        self._threads = 0
        self._jobs = SimpleQueue()

    def _lost(self) -> list[_Job]:
        """
        @return: the work whose threads are lost.
        """
        now = time.monotonic()
        lost = [job for job, since in self._cancelled.items() if now - since > self.GRACE]
        if self._underWay >= self._most:
            # Work that is never cancelled, such as a deletion, may hang as well.
            lost += [
                job
                for job in list(self._begun)
                if job not in self._cancelled and now - job.lastReport > self.LATE
            ]
        return lost

    def isLost(self, group: Hashable) -> bool:
        """
        See L{Executor.isLost}.
        """
        return bool(self._cancelled) and any(job.group == group for job in self._lost())

    def _isRefused(self, group: Hashable, lost: list[_Job]) -> bool:
        if any(job.group == group for job in lost):
            return True
        if not isinstance(group, tuple):
            return False
        # The first element of a tuple names the file system.
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
        Run C{work} in a thread; see L{Executor.run}.

        @return: a Deferred.  Cancelling it skips work that has not begun.
        """
        lost = self._lost() if self._cancelled or self._underWay >= self._most else []
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
                self._cancelled[job] = time.monotonic()

        result: Progress[T] = Progress(cancel)
        job.result = result
        self._underWay += 1
        self._jobs.put(job)
        return result

    def _ended(self, job: _Job, outcome: Any) -> None:
        self._underWay -= 1
        self._cancelled.pop(job, None)
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
