"""
Settings for the behaviour of a session if another session has locked the mailbox.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred

__all__ = ["LockPolicy", "pause"]


@dataclass(frozen=True, slots=True)
class LockPolicy:
    """
    The behaviour of a session if another session has locked the mailbox.

    @ivar takeover: whether to ask the other session to release its lock.
    @ivar wait: the number of seconds to wait for the lock.
    """

    takeover: bool = True
    wait: float = 0.0


def pause(clock: Any, seconds: float) -> Deferred[None]:
    """
    @return: a Deferred that fires after C{seconds}.
    """
    pause: Deferred[None] = Deferred(lambda _: timer.cancel())
    timer = clock.callLater(seconds, pause.callback, None)
    return pause
