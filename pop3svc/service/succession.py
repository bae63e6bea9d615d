"""
Let new workers take the place of old ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.defer import Deferred, DeferredLock

__all__ = ["Succession"]


class Succession:
    """
    Keeps the new workers that are to replace old ones, one new worker for each old one.  A new
    worker is I{pending} until it serves or has failed.
    """

    def __init__(self) -> None:
        # The old workers by the numbers of the pending ones.
        self._old: dict[int, Any] = {}
        self._faults: list[str] = []
        self._over: Deferred[None] | None = None
        # Replacements run one after the other.
        self._lock = DeferredLock()

    def isPending(self, number: int) -> bool:
        """
        @return: whether a worker of this number is to take the place of another.
        """
        return number in self._old

    def hasSuccessor(self, worker: Any) -> bool:
        """
        @return: whether a pending worker is to take the place of C{worker}.
        """
        return worker in self._old.values()

    def served(self, number: int) -> Any:
        """
        Called when a worker serves.

        @return: the worker whose place it takes; L{None} if it is not pending.
        """
        return self._old.pop(number, None)

    def failed(self, number: int, how: str) -> Any:
        """
        Called when a pending worker has failed.

        @param how: the end of a sentence that begins with "the new one".
        @return: the old worker, which goes on.
        """
        old = self._old.pop(number)
        self._faults.append(f"the old worker {old.number} goes on, because the new one {how}")
        return old

    def look(self) -> None:
        """
        Finish the replacement if no worker is pending any more.  Call this after L{served} and
        L{failed}.
        """
        if not self._old and self._over is not None:
            over, self._over = self._over, None
            over.callback(None)

    async def run(
        self, pairs: Callable[[], Iterable[tuple[int, Any]]], start: Callable[[int], object]
    ) -> None:
        """
        Replace workers, after the replacements that have begun earlier.

        @param pairs: returns the number of each new worker, and the old one.
        @param start: starts the worker of a number.
        @raise ValueError: new workers could not serve, so that old ones go on.
        """
        await self._lock.acquire()
        try:
            self._faults = []
            over: Deferred[None] = Deferred()
            self._over = over
            # Record all numbers first, because a worker may fail before the next one is started.
            self._old = dict(pairs())
            for number in list(self._old):
                start(number)
            self.look()
            await over
            if self._faults:
                raise ValueError("; ".join(self._faults))
        finally:
            self._lock.release()
