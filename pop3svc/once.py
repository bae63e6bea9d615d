"""
Remember what the log has told, so that it tells it once and not at every poll.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock

__all__ = ["Once"]


class Once:
    """
    Keys that were seen, the latest of them.  Used from threads.
    """

    def __init__(self, bound: int = 10_000) -> None:
        """
        @param bound: how many keys are remembered; some 100 octets each.
        """
        self._bound = bound
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._lock = Lock()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._seen

    def isFirst(self, key: Hashable) -> bool:
        """
        @return: is this key new?  It is not the next time.
        """
        with self._lock:
            isNew = key not in self._seen
            self._seen[key] = None
            self._seen.move_to_end(key)
            if len(self._seen) > self._bound:
                self._seen.popitem(last=False)
            return isNew

    def forget(self, key: Hashable) -> bool:
        """
        @return: was it remembered?  It is new the next time.
        """
        with self._lock:
            return self._seen.pop(key, self) is None
