"""
A TLS transport that writes to the socket without waiting for a turn of the reactor.
"""

from __future__ import annotations

from typing import Any

from OpenSSL.SSL import Error, WantReadError
from twisted.internet.interfaces import IPullProducer
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

__all__ = ["TLSTransport"]

# Octets of plaintext in a record (RFC 8446 section 5.1), and an upper bound of the encrypted octets
# of a record.
_RECORD = 2**14
_SEALED = 2**15
# The most octets that are gathered while input is processed.
_SHORT = 2**14


@implementer(IPullProducer)
class _Drain:
    """
    A producer.  The transport below calls it after writing its buffer.
    """

    def __init__(self, transport: TLSTransport, producer: Any) -> None:
        self._transport = transport
        # TLSMemoryBIOProtocol reads the attribute of this name.
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
    Encrypts data and writes it to the socket immediately.  While input is processed, up to 16 KiB
    are gathered until the processing ends, so that the last reply and the close alert share a
    segment.  Twisted's own class gathers small writes until the next turn of the reactor, which has
    no advantage for whole replies.
    """

    # Whether the transport below has buffered data, so that further data must follow it.
    _isFull = False
    # Encrypted data that is gathered while input is processed.
    _held: list[bytes] | None = None
    _heldSize = 0

    def makeConnection(self, transport: Any) -> None:
        """
        See L{TLSMemoryBIOProtocol.makeConnection}.
        """
        self._writeBelow = getattr(transport, "writeSomeData", None)
        super().makeConnection(transport)  # type: ignore[no-untyped-call]

    def _flushSendBIO(self) -> None:
        try:
            data = self._tlsConnection.bio_read(_SEALED)
        except WantReadError:
            return
        self._send(data)

    def dataReceived(self, data: bytes) -> None:
        """
        See L{TLSMemoryBIOProtocol.dataReceived}.
        """
        self._held, self._heldSize = [], 0
        try:
            super().dataReceived(data)  # type: ignore[no-untyped-call]
        finally:
            self._sendHeld()

    def _sendHeld(self) -> None:
        held, self._held = self._held, None
        if held:
            self._send(b"".join(held))

    def _send(self, data: bytes) -> None:
        held = self._held
        if held is not None:
            held.append(data)
            self._heldSize += len(data)
            if self._heldSize <= _SHORT:
                return
            data = b"".join(held)
            held.clear()
            self._heldSize = 0
        transport: Any = self.transport
        if self._writeBelow is None or self._isFull or not transport.connected:
            transport.write(data)
            return
        written = self._writeBelow(data)
        if not isinstance(written, int) or written < 0:
            # The connection is broken; the transport below sees that error itself.
            written = 0
        if written < len(data):
            self._isFull = True
            transport.write(data[written:])

    def _tlsShutdownFinished(self, reason: Any) -> None:
        if reason is not None:
            # The frames of the failure refer to this object.  Break the cycle, so that this
            # object and OpenSSL's memory are freed at once.
            reason.cleanFailure()
        super()._tlsShutdownFinished(reason)  # type: ignore[no-untyped-call]

    def writeSomeData(self, data: Any) -> int:
        """
        Write as much as the socket accepts, like
        L{twisted.internet.tcp.Connection.writeSomeData}.

        @param data: bytes or a memoryview.
        @return: the number of octets written.
        """
        if self._writeBelow is None:
            # The transport below cannot report how much it accepts, so the caller uses write().
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
            # The caller writes the rest with write(), which raises the error again.
            pass
        if sealed:
            self._send(sealed[0] if len(sealed) == 1 else b"".join(sealed))
        return done

    def abortConnection(self) -> None:
        """
        See L{TLSMemoryBIOProtocol.abortConnection}.
        """
        # Send gathered data first, because a plain TCP transport would have sent it.
        self._sendHeld()
        super().abortConnection()  # type: ignore[no-untyped-call]

    def drained(self) -> None:
        """
        Called when the transport below has written its buffer.
        """
        self._isFull = False

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """
        See L{TLSMemoryBIOProtocol.registerProducer}.  A pull producer is resumed when all
        data is written.
        """
        if streaming or self._writeBelow is None or self._lostTLSConnection:
            super().registerProducer(producer, streaming)  # type: ignore[no-untyped-call]
            return
        transport: Any = self.transport
        self._producer = drain = _Drain(self, producer)
        # registerProducer() resumes the producer at once and clears _isFull, so set it
        # afterwards.
        transport.registerProducer(drain, False)
        self._isFull = True
