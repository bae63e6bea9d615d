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

    When the reactor has started, the collector ignores the objects that exist then.  These objects
    are modules and settings, which live until the process ends.

    @param reactor: the reactor of the process.
    @param threshold: the number of new objects after which the collector looks for cycles
        among them; see C{gc.set_threshold}.  0 leaves the collector as Python sets it.
    """
    if threshold:
        reactor.callWhenRunning(_relieve, threshold)
        # Undo the exemption when the process ends, because the interpreter then uses the collector
        # to close remaining objects, such as databases.
        reactor.addSystemEventTrigger("after", "shutdown", gc.unfreeze)


def _relieve(threshold: int) -> None:
    gc.collect()
    gc.freeze()
    gc.set_threshold(threshold)
