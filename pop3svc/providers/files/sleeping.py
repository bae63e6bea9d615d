"""
Keep the directories of sleeping sessions open, within a bound.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from typing import Any

__all__ = ["OpenWhileAsleep", "openWhileAsleep"]

# Of the descriptors that the process may have, one in so many may be such a directory, so that
# sleeping sessions leave the descriptors for connections.
_SHARE = 8
# The most directories, because each holds some KiB of the kernel's memory.
_MOST = 4096


class OpenWhileAsleep:
    """
    The directories that sleeping sessions of this process keep open.  If there are too many, the
    one is closed whose session has slept longest.  Only for use in the reactor's thread.
    """

    def __init__(self, bound: int | None = None) -> None:
        """
        @param bound: the most directories; L{None}: a share of the descriptors that the process
            may have; 0: keep none open, to measure the gain.
        """
        self.bound = bound
        # The function that closes the directory of each owner, the longest asleep first.
        self._kept: dict[Any, Callable[[], object]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, owner: Any, close: Callable[[], object]) -> bool:
        """
        Keep a directory open.

        @param owner: names the directory for L{forget}.
        @param close: closes the directory, if there are too many.
        @return: whether the directory may stay open.
        """
        if self.bound is None:
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            self.bound = _MOST if limit < 0 else min(limit // _SHARE, _MOST)
        if self.bound < 1:
            return False
        if len(self._kept) >= self.bound:
            self._kept.pop(next(iter(self._kept)))()
        self._kept[owner] = close
        return True

    def forget(self, owner: Any) -> None:
        """
        Forget a directory, which the caller closes or uses.
        """
        self._kept.pop(owner, None)


# All stores of a process share its descriptors.
openWhileAsleep = OpenWhileAsleep()
