"""
Collect facts once for many requests.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

__all__ = ["Recent"]


class Recent:
    """
    Collects facts, and uses them for all requests within some time.  Therefore many requests cost
    little.
    """

    # The time for which facts are used is at least SHARE times as long as their collection took.
    SHARE = 20

    def __init__(
        self, collect: Callable[[], Awaitable[Any]], clock: Any, seconds: float = 1.0
    ) -> None:
        """
        @param seconds: the least time for which the same facts are used again.
        """
        self._collect = collect
        self._clock = clock
        self._seconds = seconds
        self._facts: Any = None
        self._end = 0.0
        # The Deferreds of the requests that wait for the end of a collection; None if no collection
        # runs.
        self._waiting: list[Deferred[Any]] | None = None

    async def _collected(self) -> Any:
        return await self._collect()

    def get(self) -> Deferred[Any]:
        """
        @return: a Deferred that fires with the facts.
        """
        waiting = [] if self._waiting is None else self._waiting
        waiter: Deferred[Any] = Deferred(lambda each: waiting.remove(each))
        if self._facts is not None and self._clock.seconds() < self._end:
            waiter.callback(self._facts)
            return waiter
        waiting.append(waiter)
        if self._waiting is None:
            self._waiting = waiting
            began = self._clock.seconds()
            Deferred.fromCoroutine(self._collected()).addBoth(self._done, waiting, began)
        return waiter

    def _done(self, facts: Any, waiting: list[Deferred[Any]], began: float) -> None:
        if waiting is self._waiting:
            self._waiting = None
            if not isinstance(facts, Failure):
                now = self._clock.seconds()
                self._facts = facts
                self._end = now + max(self._seconds, (now - began) * self.SHARE)
        while waiting:
            waiting.pop(0).callback(facts)

    def forget(self) -> None:
        """
        Collect the facts again for the next request, because they have changed.
        """
        self._facts = self._waiting = None
