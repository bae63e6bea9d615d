"""
Let new workers take the place of old workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.defer import Deferred, DeferredLock

__all__ = ["Succession"]


class Succession:
    """
    Replaces old workers by new workers, each old worker by one new worker.  A new worker is
    I{pending} until it serves or has failed.
    """

    def __init__(self) -> None:
        # For the number of each pending worker, the old worker that it is to replace.
        self._old: dict[int, Any] = {}
        self._faults: list[str] = []
        self._over: Deferred[None] | None = None
        # The lock lets replacements run one after the other.
        self._lock = DeferredLock()

    def isPending(self, number: int) -> bool:
        """
        @return: whether the worker with this number is pending.
        """
        return number in self._old

    def hasSuccessor(self, worker: Any) -> bool:
        """
        @return: whether a pending worker is to replace C{worker}.
        """
        return worker in self._old.values()

    def served(self, number: int) -> Any:
        """
        Note that a worker has begun to serve.

        @return: the old worker that the worker replaces; L{None} if the worker is not pending.
        """
        return self._old.pop(number, None)

    def failed(self, number: int, how: str) -> Any:
        """
        Note that a pending worker has failed.

        @param how: the end of a sentence that begins with "the new one".
        @return: the old worker, which is not replaced.
        """
        old = self._old.pop(number)
        self._faults.append(f"the old worker {old.number} goes on, because the new one {how}")
        return old

    def look(self) -> None:
        """
        Finish the replacement if no worker is pending any more.  Call this method after L{served}
        and after L{failed}.
        """
        if not self._old and self._over is not None:
            over, self._over = self._over, None
            over.callback(None)

    async def run(
        self, pairs: Callable[[], Iterable[tuple[int, Any]]], start: Callable[[int], object]
    ) -> None:
        """
        Replace workers.  If another replacement runs, wait for its end first.

        @param pairs: returns pairs of the number of a new worker and the old worker that it
            replaces.
        @param start: starts the worker with a number.
        @raise ValueError: some new workers could not serve, so their old workers go on.
        """
        await self._lock.acquire()
        try:
            self._faults = []
            over: Deferred[None] = Deferred()
            self._over = over
            # Record all numbers before the first start, because a worker may fail before the next
            # worker is started.
            self._old = dict(pairs())
            for number in list(self._old):
                start(number)
            self.look()
            await over
            if self._faults:
                raise ValueError("; ".join(self._faults))
        finally:
            self._lock.release()
