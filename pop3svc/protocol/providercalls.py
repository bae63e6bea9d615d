"""
Call a provider, a mailbox or a throttle for one session.

Each call has a time limit.  A call that blocks the reactor is logged.  If a call that releases a
resource fails, the error is logged and not raised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from pop3svc.awaiting import (
    CallTimeout,
    ValueOrDeferred,
    awaitWithTimeout,
    ensureStarted,
    startNow,
    then,
)
from pop3svc.errors import POP3ResponseError
from pop3svc.protocol.remarks import HELD, nameOf, remarkHeld

__all__ = ["ProviderCalls"]

log = Logger(namespace="pop3svc")


class ProviderCalls:
    """
    Makes the calls that one session needs.

    @ivar clock: the reactor's clock.
    @ivar timeout: the time limit of a call in seconds.
    @ivar isOver: whether the session has ended.  The results of most calls are then not needed.
    """

    __slots__ = ("_connectionID", "_seconds", "clock", "isOver", "timeout")

    def __init__(self, connectionID: int, clock: IReactorTime, timeout: float) -> None:
        """
        @param connectionID: the number of the connection, for the log.
        """
        self._connectionID = connectionID
        self.clock = clock
        self._seconds = clock.seconds
        self.timeout = timeout
        self.isOver = False

    def start(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """
        Call a method, and warn once if the call blocked the reactor.

        @return: the value of the method, or a Deferred of this value.
        """
        seconds = self._seconds
        began = seconds()
        try:
            answer = call(*arguments)
            return ensureStarted(answer) if hasattr(answer, "__await__") else answer
        finally:
            if seconds() - began > HELD:
                remarkHeld(call, seconds() - began)

    def ask(self, call: Callable[..., Any], *arguments: Any) -> ValueOrDeferred[Any]:
        """
        Call a method, and limit the time until its value has arrived.

        @return: the value of the method, or a Deferred of this value.
        @raise POP3ResponseError: C{SYS/TEMP}: the call has not returned a value within the time
            limit.
        @raise CancelledError: the session has ended, so that nobody needs the value.
        """
        answer = self.start(call, *arguments)
        if hasattr(answer, "__await__"):
            return then(startNow(self.wait(call, answer)), self._neededStill)
        if self.isOver:
            raise CancelledError()
        return answer

    def _neededStill(self, answer: Any) -> Any:
        if self.isOver:
            raise CancelledError()
        return answer

    def finish(self, call: Callable[..., Any], *arguments: Any) -> ValueOrDeferred[Any]:
        """
        Make a call as L{ask} does.  The value is returned even if the session has ended.
        """
        answer = self.start(call, *arguments)
        return startNow(self.wait(call, answer)) if hasattr(answer, "__await__") else answer

    async def wait(self, call: Callable[..., Any], answer: Any) -> Any:
        """
        Wait for the value of a call that was made by L{start}.

        @raise POP3ResponseError: C{SYS/TEMP}: the call has not returned a value within the time
            limit.
        """
        try:
            return await awaitWithTimeout(answer, self.clock, self.timeout)
        except CallTimeout:
            log.error(
                "{call} of connection {connectionID} did not answer within {timeout} s",
                call=nameOf(call),
                connectionID=self._connectionID,
                timeout=self.timeout,
            )
            raise POP3ResponseError("Mailbox timed out.", "SYS/TEMP", critical=True)

    def release(self, call: Callable[..., Any], *arguments: Any) -> ValueOrDeferred[None]:
        """
        Call a method that releases a resource.  If the method fails, log the exception and do not
        raise it.

        @return: L{None}, or a Deferred that fires when the call has ended.
        """
        try:
            answer = self.finish(call, *arguments)
        except Exception:
            log.failure("failed to release mailbox")
            return None
        return answer.addCallbacks(_ignore, _logged) if hasattr(answer, "__await__") else None


def _ignore(_: object) -> None:
    """
    Ignore the value of a method that releases a resource.
    """


def _logged(failure: Failure) -> None:
    failure.trap(Exception)
    log.failure("failed to release mailbox", failure)
