"""
Calls to a provider, a mailbox or a throttle, for one session.

Each call has a time limit.  The log names calls that block the reactor.  A call that releases a
resource never fails.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from pop3svc.awaiting import CallTimeout, awaitWithTimeout, ensureStarted, isAwaitable
from pop3svc.errors import POP3ResponseError
from pop3svc.protocol.remarks import HELD, nameOf, remarkHeld

__all__ = ["ProviderCalls"]

log = Logger(namespace="pop3svc")


class ProviderCalls:
    """
    Makes the calls of one session.

    @ivar clock: the reactor's clock.
    @ivar timeout: seconds that one call may take.
    @ivar isOver: whether the client is gone, so that no result is needed any more.
    """

    __slots__ = ("_connectionID", "_seconds", "clock", "isOver", "timeout")

    def __init__(self, connectionID: int, clock: IReactorTime, timeout: float) -> None:
        """
        @param connectionID: for the log.
        """
        self._connectionID = connectionID
        self.clock = clock
        self._seconds = clock.seconds
        self.timeout = timeout
        self.isOver = False

    def start(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """
        Call a method, and warn once if the call blocked the reactor.

        @return: the value of the method, or a Deferred.
        """
        seconds = self._seconds
        late = seconds() + HELD
        try:
            answer = call(*arguments)
            return ensureStarted(answer) if isAwaitable(answer) else answer
        finally:
            if seconds() > late:
                remarkHeld(call, seconds() - late + HELD)

    async def ask(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """
        Call a method and wait for its value.

        @raise POP3ResponseError: C{SYS/TEMP} if the call did not return in time.
        @raise CancelledError: the session is over, and the method returned although it was
            cancelled.
        """
        answer = self.start(call, *arguments)
        if isAwaitable(answer):
            answer = await self.wait(call, answer)
        if self.isOver:
            raise CancelledError()
        return answer

    async def finish(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """
        Make a call whose value is needed even if the session is over; see L{ask}.
        """
        answer = self.start(call, *arguments)
        return await self.wait(call, answer) if isAwaitable(answer) else answer

    async def wait(self, call: Callable[..., Any], answer: Any) -> Any:
        """
        Wait for the value of a call that L{start} has made.

        @raise POP3ResponseError: C{SYS/TEMP} if the call did not return in time.
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

    async def release(self, call: Callable[..., Any], *arguments: Any) -> None:
        """
        Call a method that releases a resource.  An exception is only logged.
        """
        try:
            await self.finish(call, *arguments)
        except Exception:
            log.failure("failed to release mailbox")
