"""
The common parts of connections to other POP3 and IMAP servers, and the time limits for replies of
IMAP servers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from pop3svc.client.connection import REPLY_TIMEOUT
from pop3svc.client.failures import CommandRefused, ServerUnavailable, reasonOfLoss
from pop3svc.interfaces import IChunkedContent

__all__ = [
    "BoundedClient",
    "Connection",
    "MessageRow",
]

T = TypeVar("T")


class MessageRow(NamedTuple):
    """
    A message as the other server lists it.

    @ivar uniqueID: the unique-id for clients.
    @ivar octets: the size that the server reports.
    """

    uniqueID: str
    octets: int


class Connection(Protocol):
    """
    A connection to the other server on which a user is logged in.

    @ivar isLost: whether the connection has ended, or must not be used.
    @ivar seesNewMessages: whether a further listing on the same connection contains messages that
        have arrived since the previous listing.
    """

    isLost: bool
    seesNewMessages: bool

    async def listMessages(self) -> list[MessageRow]:
        """
        @return: the messages that exist now, in the order of the server.
        """

    async def openMessage(self, uniqueID: str) -> IChunkedContent | None:
        """
        @return: the content of a message; L{None} if it does not exist.
        """

    async def deleteMessages(self, uniqueIDs: Sequence[str]) -> None:
        """
        Delete messages.  A message that does not exist is considered deleted.

        @raise CommandRefused: nothing was deleted.
        @raise ServerUnavailable: the deletion failed, for example because the connection was lost.
            Any of the messages may have been deleted.
        """

    async def restore(self, uniqueIDs: Sequence[str]) -> None:
        """
        Remove the deletion marks that an interrupted deletion has left on messages.
        """

    def leave(self) -> None:
        """
        End the session.  Do not wait for the answer of the server.
        """


class BoundedClient:
    """
    A mix-in class for a client's protocol.  It limits the time for each reply.

    @ivar isLost: whether the connection has ended, or must not be used.
    @ivar why: the reason why the connection has ended, for the operator.
    """

    transport: Any
    isLost = False
    why = ""
    _timer: IDelayedCall | None = None

    def __init__(self, clock: Any) -> None:
        self.clock = clock
        self._greeted: Deferred[None] | None = Deferred()

    def greetingArrived(self) -> None:
        """
        Record that the greeting of the server has arrived.
        """
        greeted, self._greeted = self._greeted, None
        if greeted is not None:
            greeted.callback(None)

    async def greeting(self) -> None:
        """
        Wait for the greeting.
        """
        if self._greeted is not None:
            await self.within(self._greeted)

    def wasLost(self, reason: Failure) -> None:
        """
        Record that the connection has ended.
        """
        self.isLost = True
        self.why = self.why or reasonOfLoss(reason.value)
        greeted, self._greeted = self._greeted, None
        if greeted is not None:
            greeted.errback(reason)

    def abort(self, why: str) -> None:
        """
        End the connection at once, for example because the server has violated the protocol or a
        limit.

        @param why: the reason as the end of a sentence.  In the log it follows the address of the
            server.
        """
        self.why = self.why or why
        self.isLost = True
        self.transport.abortConnection()

    def progressed(self) -> None:
        """
        Restart the time limit, because a part of a long reply has arrived.
        """
        if self._timer is not None and self._timer.active():
            self._timer.reset(REPLY_TIMEOUT)

    async def within(self, reply: Deferred[T]) -> T:
        """
        Wait for a reply.

        @raise ServerUnavailable: the connection has ended, or no reply arrived in time.
        """
        late = f"did not answer within {REPLY_TIMEOUT} s"
        timer = self._timer = self.clock.callLater(REPLY_TIMEOUT, self.abort, late)
        try:
            return await reply
        except CommandRefused:
            raise
        except CancelledError:
            # End the connection, because otherwise the late reply would look like the reply to the
            # next command.
            self.abort("was disconnected, because the session ended")
            raise
        except Exception as error:
            raise ServerUnavailable(self.why or f"closed the connection ({type(error).__name__})")
        finally:
            if timer.active():
                timer.cancel()
