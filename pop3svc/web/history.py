"""
Count the logins and the wakes of each minute of the last hour.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from twisted.application.internet import TimerService
from twisted.internet.defer import Deferred
from twisted.logger import Logger

__all__ = ["History", "Minute"]

log = Logger(namespace="pop3svc")


class Minute(NamedTuple):
    """
    The counts of one minute.

    @ivar logins: the number of logins that succeeded.
    @ivar refused: the number of logins with wrong credentials.
    @ivar failed: the number of logins that failed for another reason.
    @ivar wakes: the number of sessions that woke up.
    """

    logins: int = 0
    refused: int = 0
    failed: int = 0
    wakes: int = 0


def _totals(numbers: Mapping[str, Any]) -> Minute:
    counts = dict.fromkeys(Minute._fields, 0)
    for key, value in numbers.items():
        name, *labels = key.split("\t")
        if name == "pop3svc_logins_total":
            result = {"ok": "logins", "refused": "refused"}.get(labels[-1], "failed")
            counts[result] += int(value)
        elif name == "pop3svc_wakes_total" and labels[-1] != "refused":
            counts["wakes"] += int(value)
    return Minute(**counts)


def _since(before: Minute, now: Minute) -> Minute:
    return Minute(*(max(0, b - a) for a, b in zip(before, now, strict=True)))


class History(TimerService):
    """
    Keeps the counts of the last minutes, by reading the counters of the metrics once a minute.
    """

    # The number of minutes that are kept, including the present one.
    KEPT = 60
    _EVERY = 60

    def __init__(self, collect: Callable[[], Awaitable[Mapping[str, Any]]], clock: Any) -> None:
        """
        @param collect: returns L{pop3svc.metrics.declarations.Numbers}.
        """
        super().__init__(self._EVERY, self._take)  # type: ignore[no-untyped-call]
        self.clock = clock
        self._collect = collect
        self._minutes: deque[Minute] = deque([Minute()] * (self.KEPT - 1), self.KEPT - 1)
        self._last = Minute()

    def _take(self) -> Deferred[None]:
        taken: Deferred[None] = Deferred.fromCoroutine(self._takeNumbers())
        # Catch errors, because TimerService would stop after a failure.
        taken.addErrback(lambda failure: log.failure("cannot take the numbers", failure))
        return taken

    async def _takeNumbers(self) -> None:
        now = _totals(await self._collect())
        self._minutes.append(_since(self._last, now))
        self._last = now

    def minutes(self, numbers: Mapping[str, Any]) -> list[Minute]:
        """
        @param numbers: the present numbers of the metrics, for the minute that has not ended.
        @return: the counts of L{KEPT} minutes, the oldest first.
        """
        return [*self._minutes, _since(self._last, _totals(numbers))]
