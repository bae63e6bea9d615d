"""
The operations of the admin socket in a service with workers.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.python.failure import Failure

from pop3svc.admin.operations import OperationError, Send, addressIn, isAddress, preparedName

__all__ = ["Asked", "WorkersOperations"]

# The seconds within which a worker must send the next line of its answer.  The answer to the
# operator names a worker that takes longer.
_PATIENCE = 5.0


class WorkerEnded(OperationError):
    """
    A worker ended before it had answered.
    """


class Asked:
    """
    Sends questions to workers, and receives their answers.
    """

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self._count = 0
        self._open: dict[int, tuple[Deferred[Any], Send, Any, Hashable]] = {}

    def ask(
        self,
        worker: Hashable,
        write: Callable[[Mapping[str, Any]], object],
        name: str,
        arguments: Mapping[str, str],
        send: Send,
    ) -> Deferred[Any]:
        """
        Ask a worker.

        @param write: sends the question to the worker.
        @return: a Deferred of the result.  The Deferred fails with L{OperationError} if the worker
            refuses the question, ends or does not answer in time.
        """
        self._count += 1
        number = self._count

        def stop(_: object = None) -> None:
            self._forget(number)
            write({"id": number, "isCancelled": True})

        answer: Deferred[Any] = Deferred(stop)
        timer = self._clock.callLater(_PATIENCE, self._late, number, stop)
        self._open[number] = answer, send, timer, worker
        write({"id": number, "do": name, "arguments": dict(arguments)})
        return answer

    def _forget(self, number: int) -> None:
        timer = self._open.pop(number)[2]
        if timer.active():
            timer.cancel()

    def _late(self, number: int, stop: Callable[[], None]) -> None:
        answer = self._open[number][0]
        stop()
        answer.errback(OperationError("no answer in time"))

    def answered(self, value: Mapping[str, Any]) -> None:
        """
        Take one line of a worker's answer.
        """
        number = value["id"]
        if number not in self._open:
            # The answer came too late, or the question was cancelled.
            return
        answer, send, timer, _ = self._open[number]
        if "items" in value:
            timer.reset(_PATIENCE)
            send(value["items"])
            return
        self._forget(number)
        if "error" in value:
            answer.errback(OperationError(value["error"]))
        else:
            answer.callback(value["result"])

    def workerEnded(self, worker: Hashable) -> None:
        """
        Let all questions to a worker fail, because the worker has ended and cannot answer any more.
        """
        for number, (answer, _, _, asked) in list(self._open.items()):
            # The failure of another question may have cancelled this one.
            if asked is worker and number in self._open:
                self._forget(number)
                answer.errback(WorkerEnded("the worker has ended"))


class WorkersOperations:
    """
    Carries out operations in the parent process of a service with workers.
    """

    def __init__(
        self,
        supervisor: Any,
        parts: Callable[[], Mapping[str, Any]],
        clock: Any,
        numbers: Any = None,
    ) -> None:
        """
        @param supervisor: L{pop3svc.service.workers.Supervisor}
        @param parts: returns further facts for C{status}.
        @param numbers: L{pop3svc.metrics.numbers.WorkersNumbers}; L{None} if nothing is counted.
        """
        self._numbers = numbers
        self._supervisor = supervisor
        self._parts = parts
        self._clock = clock
        self._began = clock.seconds()

    async def do(self, name: str, arguments: Mapping[str, str], send: Send) -> Any:
        """
        See L{pop3svc.admin.operations.Handler.do}.
        """
        throttle = self._supervisor.throttle
        if name == "who":
            return await self._askAll(name, arguments, send)
        if name in ("trace", "activity"):
            return await self._follow(name, arguments, send)
        if name == "kick":
            return sum(await self._askAll(name, arguments, send))
        if name == "bans":
            # Ask any one worker, because all workers have the same bans.  The numbers of refused
            # attempts are then those of this worker.
            return await self._ask(self._anyWorker(), name, arguments, send)
        if name == "ban":
            throttle.ban(addressIn(arguments["address"]))
            return None
        if name == "lift":
            target = arguments["target"]
            if isAddress(target):
                return throttle.lift(addressIn(target))
            return throttle.lift(None, preparedName(target, self._supervisor.policy))
        if name == "status":
            return await self._status(send)
        if name == "reload":
            return await self._supervisor.reload("by pop3svc reload")
        if name == "metrics":
            if self._numbers is None:
                raise OperationError("The service counts nothing, because it runs without --web.")
            return await self._numbers.collect()
        assert name == "drain"
        self._supervisor.drain()
        return None

    def _anyWorker(self) -> Any:
        for each in self._supervisor.serving:
            return each
        raise OperationError("No worker serves now.")

    def _ask(
        self, worker: Any, name: str, arguments: Mapping[str, str], send: Send
    ) -> Deferred[Any]:
        asked: Deferred[Any] = self._supervisor.ask(worker, name, arguments, send)
        return asked

    async def _askAll(self, name: str, arguments: Mapping[str, str], send: Send) -> Any:
        """
        Ask all workers.  Leave out workers that end meanwhile, because their sessions have ended.
        """
        workers = self._supervisor.serving
        asked = [self._ask(each, name, arguments, send) for each in workers]
        answers = await DeferredList(asked, consumeErrors=True)
        results = []
        for worker, (hasAnswered, answer) in zip(workers, answers, strict=True):
            if not hasAnswered and answer.check(WorkerEnded):
                continue
            if not hasAnswered:
                raise OperationError(f"{worker}: {answer.getErrorMessage()}")
            results.append(answer)
        return results if name == "kick" else None

    async def _follow(self, name: str, arguments: Mapping[str, str], send: Send) -> None:
        """
        Receive items from all workers until the operation ends.  Workers that begin to serve
        meanwhile take part as well.
        """
        over: Deferred[None] = Deferred()
        asked: dict[Any, Deferred[Any]] = {}

        def ask(worker: Any) -> None:
            asked[worker] = self._ask(worker, name, arguments, send)
            asked[worker].addBoth(ended, worker)

        def ended(answer: Any, worker: Any) -> None:
            del asked[worker]
            if over.called:
                return
            if not isinstance(answer, Failure):
                # The operation has lasted for its full time in this worker.  In the other workers
                # it has begun at the same time, or later, and is cancelled.
                over.callback(None)
            elif worker in self._supervisor.serving:
                over.errback(OperationError(f"{worker}: {answer.getErrorMessage()}"))
            elif not asked:
                over.errback(OperationError("No worker serves now."))

        workers = self._supervisor.serving
        if not workers:
            raise OperationError("No worker serves now.")
        for each in workers:
            ask(each)
        self._supervisor.joined.append(ask)
        try:
            await over
        finally:
            self._supervisor.joined.remove(ask)
            for answer in list(asked.values()):
                answer.cancel()

    async def _status(self, send: Send) -> dict[str, Any]:
        workers = []
        sessions: Counter[str] = Counter()
        for each in self._supervisor.workers:
            facts = {"worker": each.number, "pid": each.pid, "serves": each.serves}
            if each.serves:
                try:
                    status = await self._ask(each, "status", {}, send)
                except OperationError:
                    facts["serves"] = False
                else:
                    sessions.update(status["sessions"])
                    facts |= {
                        key: value
                        for key, value in status.items()
                        if key in ("seconds", "sessions", "servers", "queues", "isDraining")
                    }
            workers.append(facts)
        parts = self._parts()
        return {
            "pid": os.getpid(),
            "seconds": round(self._clock.seconds() - self._began),
            "isDraining": self._supervisor.isDraining,
            "sessions": dict(sessions),
            "workers": workers,
            "listeners": parts["listeners"],
            "certificates": parts["certificates"],
        }
