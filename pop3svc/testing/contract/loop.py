"""
Run coroutines of asyncio or of Twisted without a reactor.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from twisted.internet.defer import CancelledError, Deferred

from pop3svc.testing.wrappers import Wrapper

__all__ = ["MAX_TURNS", "Bridged", "Loop"]

# The most calls of goOn() before a test fails.
MAX_TURNS = 1000


class _DeferredBridge:
    """
    Lets a coroutine that runs in a task of asyncio also await Deferreds.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, Any]:
        step: Callable[[Any], Any] = self._coroutine.send
        argument: Any = None
        while True:
            try:
                awaited = step(argument)
            except StopIteration as over:
                return over.value
            try:
                if isinstance(awaited, Deferred):
                    yield from _fired(awaited).__await__()
                    argument = None
                else:
                    argument = yield awaited
                step = self._coroutine.send
            except GeneratorExit:
                self._coroutine.close()
                raise
            except BaseException as error:
                step, argument = self._coroutine.throw, error


async def _fired(awaited: Deferred[Any]) -> None:
    """
    Wait until a Deferred has a result.  The result stays in the Deferred, because the coroutine
    that awaits the Deferred reads it there.
    """
    fired: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def fire(result: Any) -> Any:
        if not fired.done():
            fired.set_result(None)
        return result

    awaited.addBoth(fire)
    try:
        await fired
    except asyncio.CancelledError:
        awaited.cancel()
        # The result is not needed, so ignore the error of the cancellation.
        awaited.addErrback(lambda _: None)
        raise


class Loop:
    """
    Runs coroutines of asyncio and of Twisted without a reactor.  A coroutine runs as far as
    possible at once, and continues at each L{turn}.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()

    def begin(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """
        @return: the result of the coroutine if the coroutine has finished; otherwise a Deferred.
        """
        task = self._loop.create_task(self._run(_DeferredBridge(coroutine)))
        self.turn()
        if task.done():
            return task.result()
        answer: Deferred[Any] = Deferred(lambda _: self._cancel(task))

        def over(_: object) -> None:
            # The caller has cancelled the work, so ignore the exception.
            if answer.called:
                task.cancelled() or task.exception()
            elif task.cancelled():
                answer.errback(CancelledError())
            elif (error := task.exception()) is not None:
                answer.errback(error)
            else:
                answer.callback(task.result())

        task.add_done_callback(over)
        return answer

    def _cancel(self, task: asyncio.Task[Any]) -> None:
        task.cancel()
        for _ in range(MAX_TURNS):
            if task.done() or self._loop.is_running():
                return
            self.turn()

    @staticmethod
    async def _run(driven: _DeferredBridge) -> Any:
        return await driven

    def turn(self) -> None:
        """
        Run the callbacks that are ready.
        """
        if not self._loop.is_running():
            self._loop.call_soon(self._loop.stop)
            self._loop.run_forever()

    def close(self) -> None:
        """
        Cancel all tasks and close the loop.
        """
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self.turn()
        self._loop.close()


class Bridged(Wrapper):
    """
    Lets coroutines of the mailbox await tasks and futures of asyncio, as under the asyncio reactor.
    """

    def __init__(self, mailbox: Any, loop: Loop) -> None:
        super().__init__(mailbox)
        self._loop = loop

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def bridged(*arguments: Any) -> Any:
            answer = call(*arguments)
            return self._loop.begin(answer) if inspect.iscoroutine(answer) else answer

        return bridged
