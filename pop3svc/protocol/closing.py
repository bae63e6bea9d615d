"""
Close a connection: in order, fully, or at once.
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
    Closes the transport of one connection.  The connection makes this object when it ends.
    """

    __slots__ = ("_clock", "_givingUp", "_transport")

    def __init__(self, transport: Any, clock: IReactorTime) -> None:
        self._transport = transport
        self._clock = clock
        self._givingUp: IDelayedCall | None = None

    def inOrder(self, isFull: bool) -> None:
        """
        Close our end.  Written data still arrives.  Data that the client still sends is read,
        because otherwise a reset might overtake our last reply.

        @param isFull: whether the transport still has something to write.
        """
        transport = self._transport
        closeWrite = getattr(transport, "loseWriteConnection", None)
        if isTLS(transport) or closeWrite is None:
            # Over TLS our close_notify ends our half.
            transport.loseConnection()
            return
        closeWrite()
        # Ask the class, because a wrapper passes on requests for missing attributes to the wrapped
        # transport.
        if not isFull and hasattr(type(transport), "doWrite"):
            # All data is written, so send the end of our half now.
            transport.doWrite()

    def fully(self, patience: float) -> None:
        """
        Close both ends, because the client has had its time to close its own.

        @param patience: seconds until the connection is aborted.
        """
        transport = self._transport
        self._givingUp = self._clock.callLater(patience, self.abort)
        if isTLS(transport):
            transport = _below(transport)
        transport.loseConnection()

    def abort(self) -> None:
        """
        Close at once, so that a reply that was cut short does not look complete.
        """
        self._transport.abortConnection()

    def stopTimer(self) -> None:
        """
        Stop the timer, because the connection is over.
        """
        timer, self._givingUp = self._givingUp, None
        if timer is not None and timer.active():
            timer.cancel()


def _below(transport: Any) -> Any:
    """
    @return: the transport that carries the TLS of a transport.
    """
    if isinstance(transport, TLSMemoryBIOProtocol):
        return transport.transport
    protocol = getattr(transport, "protocol", None)
    return protocol.transport if isinstance(protocol, TLSMemoryBIOProtocol) else transport
