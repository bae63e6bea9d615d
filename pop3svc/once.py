"""
Remember the keys that were added last, such as the problems that have been logged already.
"""

from __future__ import annotations

from collections.abc import Hashable
from threading import Lock

from pop3svc.bounded import BoundedDict

__all__ = ["Once"]


class Once:
    """
    A bounded set of the keys that were added last.  Thread-safe.
    """

    def __init__(self, bound: int = 10_000) -> None:
        """
        @param bound: the most keys that are remembered.  A key takes some 100 octets.
        """
        self._seen: BoundedDict[Hashable, None] = BoundedDict(bound)
        self._lock = Lock()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._seen

    def isFirst(self, key: Hashable) -> bool:
        """
        Remember a key.

        @return: whether the key is new.
        """
        with self._lock:
            isNew = key not in self._seen
            self._seen.put(key, None)
            return isNew

    def forget(self, key: Hashable) -> bool:
        """
        Forget a key, so that L{isFirst} treats it as new the next time.

        @return: whether the key was remembered.
        """
        with self._lock:
            return self._seen.pop(key, self) is None
