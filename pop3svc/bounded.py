"""
A dictionary with a limited number of entries.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

__all__ = ["BoundedDict"]

K = TypeVar("K")
V = TypeVar("V")


class BoundedDict(OrderedDict[K, V]):
    """
    A dictionary with a limited number of entries.  If there are too many, L{put} removes the oldest
    entry.  L{put} and C{move_to_end} make an entry the newest entry.
    """

    def __init__(self, bound: int) -> None:
        """
        @param bound: the largest number of entries.
        """
        super().__init__()
        self._bound = bound

    def put(self, key: K, value: V) -> K | None:
        """
        Set an entry, and make it the newest entry.

        @return: the key of the entry that was removed; L{None} if none was removed.
        """
        self[key] = value
        self.move_to_end(key)
        return self.popitem(last=False)[0] if len(self) > self._bound else None
