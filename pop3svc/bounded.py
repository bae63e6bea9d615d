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

    def put(self, key: K, value: V) -> None:
        """
        Set an entry, as the newest one.
        """
        self[key] = value
        self.move_to_end(key)
        if len(self) > self._bound:
            self.popitem(last=False)
