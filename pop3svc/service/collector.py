"""
Relieve Python's garbage collector in a process that serves.
"""

from __future__ import annotations

import gc
from typing import Any

__all__ = ["relieveCollector"]


def relieveCollector(reactor: Any, threshold: int) -> None:
    """
    Make the collector examine fewer objects.  Sessions make few cycles, and reference counts free
    all other objects.

    When the reactor has started, the existing objects are exempt from collection, because modules
    and settings live until the process ends.

    @param reactor: runs the process.
    @param threshold: the number of new objects after which the collector looks for cycles
        among them; see C{gc.set_threshold}.  0 leaves the collector as Python sets it.
    """
    if threshold:
        reactor.callWhenRunning(_relieve, threshold)
        # At its end the interpreter uses the collector to close remaining objects, such as
        # databases.
        reactor.addSystemEventTrigger("after", "shutdown", gc.unfreeze)


def _relieve(threshold: int) -> None:
    gc.collect()
    gc.freeze()
    gc.set_threshold(threshold)
