"""
Relieve Python's garbage collector in a process that serves.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

__all__ = ["relieveCollector"]


def relieveCollector(
    reactor: Any, threshold: int, seconds: Callable[[], float] = time.thread_time
) -> None:
    """
    Make the collector examine fewer objects.  Sessions make few cycles, and reference counts free
    all other objects.

    When the reactor has started, the collector ignores the objects that exist then.  These objects
    are modules and settings, which live until the process ends.  Later the collector also ignores
    the objects that it has already examined, if there are very many; see L{_Exemption}.

    @param reactor: the reactor of the process.
    @param threshold: the number of new objects after which the collector looks for cycles
        among them; see C{gc.set_threshold}.  0 leaves the collector as Python sets it.
    @param seconds: returns the processor time of the present thread in seconds.
    """
    if threshold:
        exemption = _Exemption(reactor, seconds)
        reactor.callWhenRunning(exemption.begin, threshold)
        reactor.addSystemEventTrigger("after", "shutdown", exemption.end)


class _Exemption:
    """
    Exempts long-lived objects from garbage collection.

    While a full collection runs, all clients wait.  Its time grows with the number of objects.
    While seven processes shared two cores, a full collection took 0.6 s in a process with 3,000
    sleepers, and 1.5 s in a process with 8,000.  If a full collection takes longer than L{PAUSE},
    this class exempts the remaining objects.  The next full collection then examines only newer
    objects.
    """

    # Seconds of processor time.  Shorter delays harm no client.  The time that the thread waits for
    # a processor does not count, because an exemption would not make that time shorter.
    PAUSE = 0.02
    # Seconds after which exempt objects are examined once more, because some of them may belong to
    # cycles by then.
    AGAIN = 86_400

    def __init__(self, reactor: Any, seconds: Callable[[], float]) -> None:
        """
        @param seconds: see L{relieveCollector}.
        """
        self._reactor = reactor
        self._seconds = seconds
        self._began = 0.0

    def begin(self, threshold: int) -> None:
        """
        Exempt all present objects.
        """
        gc.collect()
        gc.freeze()
        gc.set_threshold(threshold)
        gc.callbacks.append(self._collecting)
        self._reactor.callLater(self.AGAIN, self._examineAgain)

    def end(self) -> None:
        """
        End the exemption when the process ends, because the interpreter then uses the collector to
        close remaining objects, such as databases.
        """
        if self._collecting in gc.callbacks:
            gc.callbacks.remove(self._collecting)
        gc.unfreeze()

    def _collecting(self, phase: str, info: dict[str, int]) -> None:
        """
        Called at the beginning and at the end of each collection, in the thread that has caused the
        collection.
        """
        if info["generation"] < 2:
            return
        now = self._seconds()
        if phase == "start":
            self._began = now
        elif now - self._began > self.PAUSE:
            gc.freeze()

    def _examineAgain(self) -> None:
        gc.unfreeze()
        self._reactor.callLater(self.AGAIN, self._examineAgain)
