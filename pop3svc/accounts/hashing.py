"""
A queue for hashing passwords: logins from known networks go first, and nobody waits long.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from pop3svc.awaiting import BoundedThreadPool, Executor
from pop3svc.errors import POP3ResponseError
from pop3svc.policy import Policy

__all__ = ["HashQueue", "hashing", "startHashing"]


class _Entry:
    """
    One password that is to be hashed.
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
            # Nobody waits for it any more.
            return
        if isinstance(outcome, Failure):
            result.errback(outcome)
        else:
            result.callback(outcome)


def _busy() -> POP3ResponseError:
    return POP3ResponseError("Too busy, try again later.", "SYS/TEMP")


class HashQueue:
    """
    Gives a few threads one password after the other.  Urgent ones go first; all of them
    wait for a limited time.
    """

    # Hashes at once.  Each takes a core for a tenth of a second and 64 MiB.
    PLACES = 2
    # Passwords that may wait: the time limit bounds them before, unless connections come
    # very fast.  Each costs some two KiB.
    MOST = 10_000

    def __init__(self, runner: Executor, clock: IReactorTime | None = None) -> None:
        """
        @param clock: the reactor if not given.
        """
        self._runner = runner
        self._clock = clock
        self._underWay = 0
        self._isStarting = False
        self._urgent: dict[_Entry, None] = {}
        self._others: dict[_Entry, None] = {}

    def run(
        self,
        work: Callable[..., Any],
        *arguments: Any,
        isUrgent: bool = False,
        patience: float = Policy.loginWait,
        begun: Callable[[], object] = lambda: None,
    ) -> Deferred[Any]:
        """
        Run C{work} in a thread.

        @param isUrgent: does it go before those that are not?
        @param patience: seconds that it may wait for its turn.
        @param begun: called when it begins.
        @return: a Deferred firing with what C{work} returned, or failing with
            L{POP3ResponseError}, C{SYS/TEMP}: it waited for too long.  Cancelling it skips
            work that has not begun; other work goes on to its end in its place, because a
            hash cannot be interrupted.
        @raise POP3ResponseError: C{SYS/TEMP}, too many are waiting.
        """
        if len(self._urgent) + len(self._others) >= self.MOST:
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
        self._next()
        if entry in queue:
            entry.timer = self._later(patience, lambda: self._late(queue, entry))
        return result

    def _later(self, seconds: float, call: Callable[[], object]) -> IDelayedCall:
        if self._clock is None:
            from twisted.internet import reactor

            self._clock = IReactorTime(reactor)
        return self._clock.callLater(seconds, call)

    def _late(self, queue: dict[_Entry, None], entry: _Entry) -> None:
        del queue[entry]
        entry.finish(Failure(_busy()))

    def _next(self) -> None:
        if self._isStarting:
            # One that was over at once; the loop below goes on.
            return
        self._isStarting = True
        try:
            while self._underWay < self.PLACES and (queue := self._urgent or self._others):
                entry = next(iter(queue))
                del queue[entry]
                if entry.timer is not None:
                    entry.timer.cancel()
                self._start(entry)
        finally:
            self._isStarting = False

    def _start(self, entry: _Entry) -> None:
        self._underWay += 1

        def begin() -> Deferred[Any]:
            entry.begun()
            return self._runner.run(entry.work, *entry.arguments)

        def ended(outcome: Any) -> None:
            self._underWay -= 1
            self._next()
            entry.finish(outcome)

        maybeDeferred(begin).addBoth(ended)


_workers = BoundedThreadPool("pop3svc-hash", threads=HashQueue.PLACES, waiting=HashQueue.PLACES)
_queue = HashQueue(_workers)


def hashing() -> HashQueue:
    """
    @return: the queue of all password files of this process.
    """
    return _queue


def startHashing() -> None:
    """
    Start the first thread now, because there may be none to be had later.
    """
    _workers.start()
