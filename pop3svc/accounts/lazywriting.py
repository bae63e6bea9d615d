"""
Write facts about logins in a thread, some seconds later, several facts at a time.
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
    Collects facts, and writes them together.  Facts that are not written when the process ends are
    lost.
    """

    # Seconds after an error until the next attempt.
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
        @param what: the consequence of an error, for the log, such as C{"no verifiers are added"}.
        @param write: writes facts, and may return a Deferred.
        @param pause: seconds from the first new fact until it is written.
        @param most: the number of facts that may wait.
        @param clock: the reactor if not given.
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
        Whether further facts are dropped.
        """
        return len(self._waiting) >= self._most

    def put(self, key: K, value: V) -> None:
        """
        Write a fact later.
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
            # Facts that came during the write are newer.
            for key, value in self._waiting.items():
                if key in waiting or len(waiting) < self._most:
                    waiting[key] = value
            self._waiting = waiting
            self._schedule(self.RETRY)
        else:
            self._reported = Once()
            if self._waiting:
                self._schedule(self._pause)
