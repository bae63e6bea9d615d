"""
TLS on the socket of a connection, from its first octet or after STLS.
"""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from twisted.internet.interfaces import IHandshakeListener, ISSLTransport, ITLSTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from pop3svc.service.transport import DONE, LOST, SocketTransport

__all__ = ["PlainTransport", "SecureTransport"]

# The most octets of plaintext in a record (RFC 8446 section 5.1).  OpenSSL reads one record after
# the other from the socket.  If the buffer has room for a whole record, no octets of the record
# stay in OpenSSL.
_RECORD = 16_384


@implementer(ITLSTransport)
class PlainTransport(SocketTransport):
    """
    A connection without TLS, which may begin TLS.
    """

    def startTLS(self, contextFactory: Any, normal: bool = True) -> None:
        """
        Begin TLS as the server.  See L{ITLSTransport}.  Octets that were written before go out
        without TLS.  Octets that wait in the kernel belong to TLS.

        @param contextFactory: has the method C{connectionOn} of
            L{pop3svc.service.tls.RenewableCertificate}.
        """
        tls = contextFactory.connectionOn(self.fileno())
        # The object stays the same, because the protocol has it.
        transport: Any = self
        transport.__class__ = SecureTransport
        transport.beginTLS(tls)


@implementer(ISSLTransport)
class SecureTransport(SocketTransport):
    """
    A connection with TLS.  OpenSSL itself reads from the socket and writes to it.  The protocol
    may write before the handshake is over.

    It ends when both sides have sent a close alert.  Call C{loseConnection} again to close it
    without the alert of the client.
    """

    _tls: Any
    _isShaking = True
    # Octets that were written before TLS began, and that the socket has not accepted.
    _plain: bytearray | None = None
    # Whether OpenSSL has to read before it can write.
    _writesByReading = False
    _isImpatient = False

    def beginTLS(self, tls: SSL.Connection) -> None:
        """
        Wait for the handshake.
        """
        self._tls = tls
        tls.set_accept_state()
        if self._waiting:
            self._plain, self._waiting = self._waiting, bytearray()
            self._isReading = False
            self._watch()

    def _shake(self) -> None:
        """
        Go on with the handshake.
        """
        self._isWriting = self._readsByWriting = False
        try:
            self._tls.do_handshake()
        except SSL.WantReadError:
            return
        except SSL.WantWriteError:
            # Octets of the client wait in the kernel until then.
            self._isWriting = self._readsByWriting = True
            return
        except SSL.Error as error:
            self._fail(Failure(error.with_traceback(None)))
            return
        self._isShaking = False
        if IHandshakeListener.providedBy(self.protocol):
            self.protocol.handshakeCompleted()
        self._drain()

    def _read(self) -> None:
        if self._isShaking:
            self._shake()
            return
        self._readsByWriting = False
        if self._writesByReading:
            self._writesByReading, self._isWriting = False, True
        try:
            data = self._tls.recv(_RECORD)
        except SSL.WantReadError:
            return
        except SSL.WantWriteError:
            self._readsByWriting = self._isWriting = True
            return
        except SSL.ZeroReturnError:
            self._clientCloses()
            return
        except SSL.Error:
            self._fail(LOST)
            return
        if not self.disconnecting:
            self.protocol.dataReceived(data)

    def _fail(self, reason: Failure) -> None:
        """
        Close the connection, because the client breaks the rules of TLS or is gone.
        """
        # With octets that nobody has read, the kernel would close by a reset, which might overtake
        # the fatal alert of OpenSSL.
        self._discard()
        self._end(reason)

    def _clientCloses(self) -> None:
        """
        Write the octets that wait, and close.
        """
        self._hasReadAll, self._isReading, self.disconnecting = True, False, True
        self._stopProducer()
        if self._isWriteClosed:
            self._end(DONE)
        else:
            self._finish()

    def resumeProducing(self) -> None:
        """
        See L{SocketTransport.resumeProducing}.
        """
        if self._isReading or self._plain:
            return
        super().resumeProducing()
        if self._isReading and not self._isShaking and self._tls.pending():
            # The kernel does not report octets that OpenSSL has read.
            self._loop.reactor.callLater(0, self._readPending)

    def _readPending(self) -> None:
        if self.connected and self._isReading:
            self.ready(self._events)

    def _send(self, data: Any) -> int:
        """
        @return: the number of octets in complete records that the socket has accepted.  The next
            call must begin with the octets that follow, because OpenSSL may have encrypted them.
        """
        done = 0
        try:
            while done < len(data):
                done += self._tls.send(memoryview(data)[done:] if done else data)
        except SSL.WantWriteError:
            pass
        except SSL.WantReadError:
            self._writesByReading = True
        except SSL.Error:
            self._end(LOST)
        return done

    @property
    def _mustWait(self) -> bool:
        return self._isShaking or bool(self._waiting)

    def writeSomeData(self, data: Any) -> int:
        """
        See L{SocketTransport.writeSomeData}.
        """
        if self._isShaking and self._mayWrite:
            self._waiting += data
            return len(data)
        return super().writeSomeData(data)

    def startWriting(self) -> None:
        """
        See L{SocketTransport.startWriting}.
        """
        self._isWriting = not self._writesByReading
        self._watch()

    def _drain(self) -> None:
        if self._plain:
            del self._plain[: super()._send(self._plain)]
            self._isWriting = bool(self._plain)
            self._isReading = not self._plain
        elif self._isShaking:
            self._shake()
        else:
            if self._readsByWriting:
                self._read()
            super()._drain()
            if self._readsByWriting:
                self._isWriting = True

    def _close(self) -> None:
        try:
            hasBoth = self._tls.shutdown()
        except SSL.WantWriteError:
            self.startWriting()
            return
        except SSL.Error:
            hasBoth = True
        self._isWriteClosed = True
        if hasBoth or self._isImpatient:
            self._end(DONE)
        else:
            # Read the close alert of the client.
            self._isReading = True
            self._watch()

    def loseConnection(self) -> None:
        """
        See L{SocketTransport.loseConnection}.
        """
        if self._isShaking and not self._waiting:
            self.abortConnection()
            return
        self._isImpatient = self.disconnecting
        super().loseConnection()
        if self._isShaking and not self._plain:
            # The waiting octets can be written only after the handshake.
            self._isReading = True
            self._watch()

    def loseWriteConnection(self) -> None:
        """
        Close the connection, because TLS has no half-closed connections.
        """
        self.loseConnection()

    def getHandle(self) -> Any:
        """
        @return: the C{OpenSSL.SSL.Connection}.
        """
        return self._tls

    def getPeerCertificate(self) -> Any:
        """
        See L{ISSLTransport}.
        """
        return self._tls.get_peer_certificate()
