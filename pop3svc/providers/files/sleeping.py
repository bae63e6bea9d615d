"""
Keep the directories of sleeping sessions open, within a bound.
"""

from __future__ import annotations

import resource
from typing import Protocol

__all__ = ["OpenWhileAsleep", "openWhileAsleep"]

# One of this many descriptors of the process may be such a directory.  The other descriptors are
# left for connections.
_SHARE = 8
# The most directories.  Each takes some KiB of the kernel's memory.
_MOST = 4096


class Closable(Protocol):
    """
    A directory that a sleeping session keeps open.
    """

    def closeKept(self) -> None:
        """
        Close the directory, and call L{OpenWhileAsleep.forget}.
        """


class OpenWhileAsleep:
    """
    The directories that sleeping sessions of this process keep open.  If there are too many, the
    directory whose session has slept longest is closed.  Only for use in the reactor's thread.
    """

    def __init__(self, bound: int | None = None) -> None:
        """
        @param bound: the most directories.  L{None} for a share of the descriptors that the process
            may have; 0 to keep none open, in order to measure the gain.
        """
        self.bound = bound
        # The directories of the sessions that have slept longest come first.
        self._kept: dict[Closable, None] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, directory: Closable) -> bool:
        """
        Keep a directory open.

        @return: whether the directory may stay open.
        """
        if self.bound is None:
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            self.bound = _MOST if limit < 0 else min(limit // _SHARE, _MOST)
        if self.bound < 1:
            return False
        if len(self._kept) >= self.bound:
            next(iter(self._kept)).closeKept()
        self._kept[directory] = None
        return True

    def forget(self, directory: Closable) -> None:
        """
        Forget a directory, which the caller closes or uses.
        """
        self._kept.pop(directory, None)


# All stores of a process share its descriptors.
openWhileAsleep = OpenWhileAsleep()
