"""
How a connection is closed: in order, fully, or at once.
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
    Closes the transport of one connection.  It is made when the connection ends.
    """

    __slots__ = ("_clock", "_givingUp", "_transport")

    def __init__(self, transport: Any, clock: IReactorTime) -> None:
        self._transport = transport
        self._clock = clock
        self._givingUp: IDelayedCall | None = None

    def inOrder(self, isFull: bool) -> None:
        """
        Close our end: data that is written still arrives, and data that the client still sends
        is read, because a reset might overtake our last reply.

        @param isFull: whether the transport still has something to write.
        """
        transport = self._transport
        closeWrite = getattr(transport, "loseWriteConnection", None)
        if isTLS(transport) or closeWrite is None:
            # Over TLS our close_notify ends our half.
            transport.loseConnection()
            return
        closeWrite()
        # A wrapper may pass on attributes that it does not have to the transport that it wraps.
        if not isFull and hasattr(type(transport), "doWrite"):
            # Nothing has to be written before the end of our half, so send it now.
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
        Close at once, so that no reply that was cut short looks whole.
        """
        self._transport.abortConnection()

    def stopTimer(self) -> None:
        """
        The connection is over.
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
