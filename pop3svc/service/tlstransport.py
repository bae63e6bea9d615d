"""
Twisted's TLS transport, made to write at once.
"""

from __future__ import annotations

from typing import Any

from OpenSSL.SSL import Error, WantReadError
from twisted.internet.interfaces import IPullProducer
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

__all__ = ["TLSTransport"]

# Octets of plain text in a record (RFC 8446 section 5.1), and what OpenSSL may have
# to send for that.
_RECORD = 2**14
_SEALED = 2**15
# What is longer waits for nothing that may come after it.
_SHORT = 2**14


@implementer(IPullProducer)
class _Drain:
    """
    Hears when the transport below has written all that it had.
    """

    def __init__(self, transport: TLSTransport, producer: Any) -> None:
        self._transport = transport
        # Twisted looks for it by this name.
        self._producer = producer

    def resumeProducing(self) -> None:
        self._transport.drained()
        self._producer.resumeProducing()

    def stopProducing(self) -> None:
        self._producer.stopProducing()

    def pauseProducing(self) -> None:
        pass


class TLSTransport(TLSMemoryBIOProtocol):
    """
    What is written to it is sealed and given to the kernel at once, as far as the
    kernel takes it; what is short, after all that came in with it was looked at: the
    last words and the end of TLS are one segment.  Twisted's own default gathers small
    writes for a turn of the reactor, and then waits for another: whoever writes whole
    replies gains nothing by that.
    """

    # Does the transport below hold something, after which the next has to go?
    _isFull = False
    # Sealed, and not sent yet, while something that came in is looked at.
    _held: list[bytes] | None = None
    _heldOctets = 0

    def makeConnection(self, transport: Any) -> None:
        """
        See L{TLSMemoryBIOProtocol.makeConnection}.
        """
        self._writeBelow = getattr(transport, "writeSomeData", None)
        super().makeConnection(transport)  # type: ignore[no-untyped-call]

    def _flushSendBIO(self) -> None:
        try:
            octets = self._tlsConnection.bio_read(_SEALED)
        except WantReadError:
            return
        self._send(octets)

    def dataReceived(self, data: bytes) -> None:
        """
        See L{TLSMemoryBIOProtocol.dataReceived}.
        """
        self._held, self._heldOctets = [], 0
        try:
            super().dataReceived(data)  # type: ignore[no-untyped-call]
        finally:
            self._sendHeld()

    def _sendHeld(self) -> None:
        held, self._held = self._held, None
        if held:
            self._send(b"".join(held))

    def _send(self, octets: bytes) -> None:
        held = self._held
        if held is not None:
            held.append(octets)
            self._heldOctets += len(octets)
            if self._heldOctets <= _SHORT:
                return
            octets = b"".join(held)
            held.clear()
            self._heldOctets = 0
        transport: Any = self.transport
        if self._writeBelow is None or self._isFull or not transport.connected:
            transport.write(octets)
            return
        written = self._writeBelow(octets)
        if not isinstance(written, int) or written < 0:
            # It is broken, which the transport will find out, too.
            written = 0
        if written < len(octets):
            self._isFull = True
            transport.write(octets[written:])

    def _tlsShutdownFinished(self, reason: Any) -> None:
        if reason is not None:
            # Its frames refer to this: what goes in a circle is freed late, and OpenSSL's
            # memory with it.
            reason.cleanFailure()
        super()._tlsShutdownFinished(reason)  # type: ignore[no-untyped-call]

    def writeSomeData(self, data: Any) -> int:
        """
        Write what goes out now, as L{twisted.internet.tcp.Connection.writeSomeData}
        does.

        @param data: bytes or a memoryview.
        @return: the number of octets taken.
        """
        if self._writeBelow is None:
            # Nothing would tell whether there is room: it goes the ordinary way.
            return 0
        if not self._handshakeDone:
            self._appSendBuffer.append(bytes(data))
            return len(data)
        if self._isFull or self.disconnecting or self._lostTLSConnection:
            return 0
        sealed = []
        done, length = 0, len(data)
        connection = self._tlsConnection
        try:
            while done < length:
                piece = data if length <= _RECORD else memoryview(data)[done : done + _RECORD]
                done += connection.send(piece)
                sealed.append(connection.bio_read(_SEALED))
        except Error:
            # It comes again when the rest is written in the ordinary way.
            pass
        if sealed:
            self._send(sealed[0] if len(sealed) == 1 else b"".join(sealed))
        return done

    def abortConnection(self) -> None:
        """
        See L{TLSMemoryBIOProtocol.abortConnection}.
        """
        # What was written is on its way, as it would be without TLS.
        self._sendHeld()
        super().abortConnection()  # type: ignore[no-untyped-call]

    def drained(self) -> None:
        """
        The transport below holds nothing any more.
        """
        self._isFull = False

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """
        See L{TLSMemoryBIOProtocol.registerProducer}; a pull producer is asked when all
        is written.
        """
        if streaming or self._writeBelow is None or self._lostTLSConnection:
            super().registerProducer(producer, streaming)  # type: ignore[no-untyped-call]
            return
        transport: Any = self.transport
        self._producer = drain = _Drain(self, producer)
        # Which asks for something at once, and knows nothing then.
        transport.registerProducer(drain, False)
        self._isFull = True
