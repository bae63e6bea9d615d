"""
Helpers for calling providers.  They treat values, Deferreds and coroutines alike, limit the wait
for a result, and protect calls from cancellation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from types import CoroutineType
from typing import Any, TypeGuard, TypeVar, Union

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from pop3svc.errors import ProviderMistake
from pop3svc.timing import Progress

__all__ = [
    "CallTimeout",
    "Shielded",
    "ValueOrDeferred",
    "awaitWithTimeout",
    "callWithTimeout",
    "ensureStarted",
    "inTurn",
    "isAwaitable",
    "maybeAwait",
    "settled",
    "startNow",
    "then",
]

T = TypeVar("T")
U = TypeVar("U")

# The result of a function that returns a value if the value is known at once, and otherwise a
# Deferred of the value.
ValueOrDeferred = Union[T, "Deferred[T]"]


class CallTimeout(Exception):
    """
    A call did not return a result in time.
    """


def isAwaitable(answer: object) -> TypeGuard[Awaitable[Any]]:
    """
    @return: whether the result of a call is a Deferred or another awaitable instead of a
        value.
    """
    # inspect.isawaitable and isinstance(answer, Deferred) take more time, because Awaitable and
    # Deferred have the metaclass ABCMeta.
    return hasattr(answer, "__await__")


def startNow(coroutine: Coroutine[Any, Any, T]) -> T | Deferred[T]:
    """
    Run a coroutine until it waits for the first time or ends.  Most coroutines never wait, and
    making a Deferred costs more time than running them.

    @return: the result of the coroutine if it has ended, otherwise a Deferred of the result.
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


def then(answer: ValueOrDeferred[T], use: Callable[[T], ValueOrDeferred[U]]) -> ValueOrDeferred[U]:
    """
    Pass the result of a function to C{use}.  This happens at once if the result is a value, and
    otherwise when the Deferred fires.  If all results are values, this function takes a third of
    the time that a coroutine takes.

    @param answer: the result, or a Deferred of the result.  The caller must not use this Deferred
        again.
    @param use: takes the result.
    @return: the result of C{use}, or a Deferred of this result.
    """
    if hasattr(answer, "__await__"):
        later: Any = answer
        chained: Deferred[U] = later.addCallback(use)
        return chained
    # mypy does not know that the answer is not a Deferred.
    value: Any = answer
    return use(value)


def inTurn(answers: Iterator[ValueOrDeferred[object]]) -> ValueOrDeferred[None]:
    """
    Run steps one after the other.  There is no pause between two steps if the first of them returns
    a value and not a Deferred.

    @param answers: a generator that runs the steps and yields the answer of each step.  The
        generator is resumed when the answer has arrived.  If a Deferred fails, no further step
        runs.
    @return: L{None}, or a Deferred that fires after the last step.
    """
    for answer in answers:
        if hasattr(answer, "__await__"):
            later: Any = answer
            rest: Deferred[None] = later.addCallback(lambda _: inTurn(answers))
            return rest
    return None


async def settled(answer: ValueOrDeferred[T]) -> T:
    """
    Wait for the result of a function that returns a L{ValueOrDeferred}.

    @param answer: the result, or a Deferred of the result.
    @return: the result.
    """
    if isinstance(answer, Deferred):
        result: T = await answer
        return result
    return answer


def _rest(coroutine: Coroutine[Any, Any, T], awaited: Any) -> Generator[Any, Any, T]:
    """
    Run a coroutine from its first wait to its end.

    @param awaited: the object for which the coroutine waits.
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
    @return: the same error, unless it is asyncio's error "no running event loop".  That error is
        replaced, because its text does not say how to solve the problem.
    """
    return _needsLoop(coroutine) if str(error) == "no running event loop" else error


async def callWithTimeout(
    call: Callable[..., Any], *arguments: Any, clock: IReactorTime, timeout: float
) -> Any:
    """
    Call a function that returns a value, a Deferred or a coroutine, and wait for the
    result.

    If the wait is cancelled, this function cancels the pending call.

    @param timeout: the most seconds to wait.  If the call reports progress (L{Progress}), the time
        begins again.
    @return: the result.
    @raise CallTimeout: there was no result in time.  The pending call was cancelled.
    """
    answer = call(*arguments)
    if isAwaitable(answer):
        answer = await awaitWithTimeout(answer, clock, timeout)
    return answer


def ensureStarted(answer: Any) -> Any:
    """
    Start an awaitable of Twisted, or of asyncio if an asyncio event loop runs the reactor.

    @return: the result if the awaitable ends at once; otherwise a Deferred of the result.
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
    @return: whether a coroutine belongs to this package.  These coroutines do not await objects of
        asyncio.  They rely on a rule of Twisted: a call that was cancelled returns no result.
    """
    frame = coroutine.cr_frame
    name = "" if frame is None else str(frame.f_globals.get("__name__"))
    return name.startswith("pop3svc.")


async def _awaited(answer: Any) -> Any:
    return await answer


class _Steps:
    """
    An awaitable that runs another awaitable step by step.
    """

    def __init__(self, answer: Any, step: Callable[[Any], Generator[Any, Any, Any]]) -> None:
        """
        @param step: a generator function that waits for an object.  It is called with each object
            that the other awaitable yields.
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
    Run an awaitable in a separate task, because many functions of asyncio work in a task only.  The
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
            # Ignore the error of the cancelled Deferred, because nobody needs its result.
            waitsFor.addErrback(lambda _: None)
            raise

    task = loop.create_task(_awaited(_Steps(answer, step)))

    def translate(failure: Failure) -> Any:
        # asyncio.CancelledError is not a subclass of Exception.  Handlers that release a mailbox
        # would therefore not catch it.
        failure.trap(asyncio.CancelledError)
        raise CancelledError()

    return Deferred.fromFuture(task).addErrback(translate)


async def awaitWithTimeout(answer: Any, clock: IReactorTime, timeout: float) -> Any:
    """
    Wait for the result of an awaitable for a limited time; see L{callWithTimeout}.
    """
    answer = ensureStarted(answer)
    if isinstance(answer, Deferred):
        answer = await _within(answer, clock, timeout)
    return answer


async def maybeAwait(call: Callable[..., Any], *arguments: Any) -> Any:
    """
    Call a function that returns a value, a Deferred or a coroutine, and wait for the result.  This
    function sets no time limit.  Its callers may set one.

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
    @return: a Deferred with the result of C{answer}.  It fails with L{CallTimeout} after C{timeout}
        seconds without progress, even if C{answer} does not react to its cancellation.
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
    A call that goes on even if a wait for its result is cancelled.
    """

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self._outcome: Any = None
        self._waiting: list[Deferred[None]] = []
        self.done = False

        outcome: Any
        try:
            outcome = call(*arguments)
            if isAwaitable(outcome):
                outcome = ensureStarted(outcome)
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

    def outcome(
        self, clock: IReactorTime | None = None, timeout: float = 0
    ) -> ValueOrDeferred[Any]:
        """
        Wait for the end of the call.  Cancelling the Deferred does not cancel the call.

        @param timeout: the most seconds to wait.  If C{clock} is L{None}, there is no limit.
        @return: the result of the call, or a Deferred of this result.
        @raise CallTimeout: the call did not end within C{timeout} seconds.  The call itself goes
            on.
        """
        if not self.done:
            waiter: Deferred[None] = Deferred(self._waiting.remove)
            self._waiting.append(waiter)
            limited = waiter if clock is None else _within(waiter, clock, timeout)
            return limited.addCallback(lambda _: self.outcome())
        if isinstance(self._outcome, Failure):
            self._outcome.raiseException()
        return self._outcome
