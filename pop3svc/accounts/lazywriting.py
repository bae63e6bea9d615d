"""
Write facts about logins some seconds after the login, several facts at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Generic, TypeVar

from twisted.internet.defer import maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from pop3svc.once import Once

__all__ = ["LazyWriter"]

log = Logger(namespace="pop3svc")

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LazyWriter(Generic[K, V]):
    """
    Collects facts about logins, and writes them together.  If the process ends before a fact is
    written, the fact is lost.
    """

    # Seconds from an error to the next attempt to write.
    RETRY = 300.0

    def __init__(
        self,
        what: str,
        write: Callable[[dict[K, V]], Any],
        pause: float,
        most: int,
        clock: IReactorTime | None = None,
    ) -> None:
        """
        @param what: the text that comes before an error in the log.  It names the consequence, such
            as C{"no verifiers are added"}.
        @param write: writes several facts.  It may return a Deferred.
        @param pause: seconds from the first waiting fact until the facts are written.
        @param most: the most facts that may wait.  Further facts are lost.
        @param clock: starts the writing; the reactor if not given.
        """
        self._what = what
        self._write = write
        self._pause = pause
        self._most = most
        self._clock = clock
        self._waiting: dict[K, V] = {}
        self._isScheduled = False
        self._reported = Once()

    @property
    def isFull(self) -> bool:
        """
        Whether so many facts wait that a further fact would be lost.
        """
        return len(self._waiting) >= self._most

    def put(self, key: K, value: V) -> None:
        """
        Take a fact, to write it later.
        """
        if key not in self._waiting and self.isFull:
            return
        self._waiting[key] = value
        if not self._isScheduled:
            self._schedule(self._pause)

    def _schedule(self, seconds: float) -> None:
        if self._clock is None:
            from twisted.internet import reactor

            self._clock = IReactorTime(reactor)
        self._isScheduled = True
        self._clock.callLater(seconds, self._begin)

    def _begin(self) -> None:
        waiting, self._waiting = self._waiting, {}
        maybeDeferred(self._write, waiting).addBoth(partial(self._ended, waiting))

    def _ended(self, waiting: dict[K, V], outcome: Any) -> None:
        self._isScheduled = False
        if isinstance(outcome, Failure):
            sentence = f"{self._what}: {outcome.getErrorMessage()}"
            if self._reported.isFirst(sentence):
                log.warn("{sentence}", sentence=sentence)
            # The facts that arrived during the failed write replace the facts with the same keys,
            # because they are newer.
            for key, value in self._waiting.items():
                if key in waiting or len(waiting) < self._most:
                    waiting[key] = value
            self._waiting = waiting
            self._schedule(self.RETRY)
        else:
            self._reported = Once()
            if self._waiting:
                self._schedule(self._pause)
