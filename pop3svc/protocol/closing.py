"""
Close a connection in one of three ways.  The service can close its own end in order, close both
ends, or abort the connection.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime, ISSLTransport
from twisted.protocols.tls import TLSMemoryBIOProtocol

__all__ = ["Closing", "isTLS"]


def isTLS(transport: object) -> bool:
    """
    @return: whether data that is written to this transport is encrypted.
    """
    return ISSLTransport.providedBy(transport) or isinstance(transport, TLSMemoryBIOProtocol)


class Closing:
    """
    Closes the transport of one connection.  The connection makes this object when it has to close.
    """

    __slots__ = ("_clock", "_givingUp", "_transport")

    def __init__(self, transport: Any, clock: IReactorTime) -> None:
        self._transport = transport
        self._clock = clock
        self._givingUp: IDelayedCall | None = None

    def inOrder(self, isFull: bool) -> None:
        """
        Close our end.  Data that was written before still arrives.  The service has to go on
        reading, because otherwise the kernel could send a reset, and the client could lose our last
        reply.

        @param isFull: whether the transport still has data to write.
        """
        transport = self._transport
        closeWrite = getattr(transport, "loseWriteConnection", None)
        if isTLS(transport) or closeWrite is None:
            # With TLS, a close_notify closes our half of the connection.
            transport.loseConnection()
            return
        closeWrite()
        # Check the class and not the object, because a wrapper would look for the attribute in the
        # wrapped transport.
        if not isFull and hasattr(type(transport), "doWrite"):
            # All data was written, so close our half now.
            transport.doWrite()

    def fully(self, patience: float) -> None:
        """
        Close both ends, and do not wait until the client closes its own end.

        @param patience: seconds until the connection is aborted.
        """
        transport = self._transport
        self._givingUp = self._clock.callLater(patience, self.abort)
        if isTLS(transport):
            transport = _below(transport)
        transport.loseConnection()

    def abort(self) -> None:
        """
        Abort the connection, and discard data that was not sent yet.  The client gets an error, and
        therefore does not consider an incomplete reply complete.
        """
        self._transport.abortConnection()

    def stopTimer(self) -> None:
        """
        Stop the timer of L{fully}, if it is running.
        """
        timer, self._givingUp = self._givingUp, None
        if timer is not None and timer.active():
            timer.cancel()


def _below(transport: Any) -> Any:
    """
    @return: the transport below the TLS of a transport.
    """
    if isinstance(transport, TLSMemoryBIOProtocol):
        return transport.transport
    protocol = getattr(transport, "protocol", None)
    return protocol.transport if isinstance(protocol, TLSMemoryBIOProtocol) else transport
