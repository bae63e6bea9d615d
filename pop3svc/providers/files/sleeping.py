"""
Keep the directories of sleeping sessions open, up to a limit.
"""

from __future__ import annotations

import resource
from typing import Protocol

__all__ = ["OpenWhileAsleep", "openWhileAsleep"]

# At most one of every _SHARE descriptors is used for a kept directory.  The other descriptors are
# left for connections.
_SHARE = 8
# The most directories that are kept open.  Each takes some KiB of memory in the kernel.
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
    directory whose session has slept for the longest time is closed.  Use this object in the
    reactor's thread only.
    """

    def __init__(self, bound: int | None = None) -> None:
        """
        @param bound: the most directories that are kept open.  L{None} means a share of the
            descriptors that the process may have.  0 means none, which is for measurements.
        """
        self.bound = bound
        # The directory of the session that has slept for the longest time comes first.
        self._kept: dict[Closable, None] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, directory: Closable) -> bool:
        """
        Ask to keep a directory open.

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
        Forget a directory, because the caller closes or uses it.
        """
        self._kept.pop(directory, None)


# All stores of a process share this object, because they share the descriptors of the process.
openWhileAsleep = OpenWhileAsleep()
