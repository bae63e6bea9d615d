"""
A queue of octets for a client, with pauses between them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

__all__ = ["Action", "Outbox"]

# The least time in seconds between two pieces of a slow reply.
_TICK = 0.05

# An action is one of three: octets to write, with a rate in octets a second (None if the rate has
# no limit); seconds to wait; or a function to call.
Action = tuple[bytes, float | None] | float | Callable[[], object]


class Outbox:
    """
    Carries out actions in their order.

    @ivar octets: the number of octets that wait to be written.
    @ivar isPaused: whether actions must wait.  Call L{flush} after C{isPaused} was set to false.
    """

    def __init__(
        self,
        clock: IReactorTime,
        write: Callable[[bytes], object],
        flushed: Callable[[], object],
    ) -> None:
        """
        @param write: writes octets.
        @param flushed: called after each L{flush}, when C{octets} may have changed.
        """
        self.octets = 0
        self.isPaused = False
        self._clock = clock
        self._write = write
        self._flushed = flushed
        self._actions: deque[Action] = deque()
        self._timer: IDelayedCall | None = None
        self._isFlushing = False

    @property
    def isBusy(self) -> bool:
        """
        Whether an action is waiting.
        """
        return bool(self._actions)

    def do(self, action: Action) -> None:
        """
        Carry out an action after all earlier actions.
        """
        if isinstance(action, tuple):
            self.octets += len(action[0])
        self._actions.append(action)
        self.flush()

    def drop(self) -> None:
        """
        Forget all actions.
        """
        self._actions.clear()
        self.octets = 0
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def flush(self) -> None:
        """
        Carry out actions until an action has to wait.
        """
        if self._isFlushing:
            return
        self._isFlushing = True
        try:
            while self._actions and self._timer is None and not self.isPaused:
                action = self._actions.popleft()
                if isinstance(action, tuple):
                    self._send(*action)
                elif callable(action):
                    action()
                else:
                    self._wait(action)
        finally:
            self._isFlushing = False
        self._flushed()

    def _send(self, octets: bytes, rate: float | None) -> None:
        if rate is not None:
            piece = max(1, int(rate * _TICK))
            if len(octets) > piece:
                self._actions.appendleft((octets[piece:], rate))
            self._actions.appendleft((octets[:piece], None))
            self._wait(min(piece, len(octets)) / rate)
            return
        self.octets -= len(octets)
        self._write(octets)

    def _wait(self, seconds: float) -> None:
        self._timer = self._clock.callLater(seconds, self._resume)

    def _resume(self) -> None:
        self._timer = None
        self.flush()
