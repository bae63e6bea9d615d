"""
A dictionary with a bound.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

__all__ = ["BoundedDict"]

K = TypeVar("K")
V = TypeVar("V")


class BoundedDict(OrderedDict[K, V]):
    """
    A dictionary that drops its oldest entries.  L{put} and C{move_to_end} make an entry the newest
    one.
    """

    def __init__(self, bound: int) -> None:
        """
        @param bound: the number of entries that are kept.
        """
        super().__init__()
        self._bound = bound

    def put(self, key: K, value: V) -> K | None:
        """
        Set an entry, as the newest one.

        @return: the key of the entry that was dropped, if any.
        """
        self[key] = value
        self.move_to_end(key)
        return self.popitem(last=False)[0] if len(self) > self._bound else None
