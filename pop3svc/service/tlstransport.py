"""
TLS on the socket of a connection, from its first octet or after STLS.
"""

from __future__ import annotations

from typing import Any

from cryptography.hazmat.bindings.openssl.binding import Binding
from OpenSSL import SSL
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IHandshakeListener,
    ISSLTransport,
    ITLSTransport,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from pop3svc.service.transport import DONE, LOST, SocketTransport

__all__ = ["PlainTransport", "SecureTransport"]

# The most octets of plaintext in a TLS record (RFC 8446 section 5.1).  OpenSSL reads one record
# after the other from the socket.  If a read asks for so many octets, it gets the whole record, and
# no octets stay in OpenSSL.
_RECORD = 16_384
# This function empties the thread's queue of OpenSSL's errors.  pyOpenSSL leaves the error of a
# failed system call there, and OpenSSL 3 would report it for the next connection that has to wait.
_clearErrors = Binding().lib.ERR_clear_error


@implementer(ITLSTransport)
class PlainTransport(SocketTransport):
    """
    A connection that begins without TLS, and may change to TLS.
    """

    def startTLS(self, contextFactory: Any, normal: bool = True) -> None:
        """
        Begin TLS as the server.  See L{ITLSTransport}.  Octets that were written before this call
        go out without TLS.  Octets of the client that wait in the kernel belong to TLS.

        @param contextFactory: has the method C{connectionOn} of
            L{pop3svc.service.tls.RenewableCertificate}.
        """
        tls = contextFactory.connectionOn(self.fileno())
        # Change the class of this object instead of making another object, because the protocol has
        # a reference to it.
        transport: Any = self
        transport.__class__ = SecureTransport
        transport.beginTLS(tls)


@implementer(ISSLTransport)
class SecureTransport(SocketTransport):
    """
    A connection with TLS.  OpenSSL itself reads from the socket and writes to it.  The protocol
    may write before the handshake is over.

    The connection ends when both sides have sent a close alert.  A second call of C{loseConnection}
    closes it without the alert of the client.
    """

    _tls: Any
    _isShaking = True
    # The octets that were written before TLS began, and that the socket has not accepted yet.
    _plain: bytearray | None = None
    # Whether OpenSSL has to read before it can write.
    _writesByReading = False
    _isImpatient = False

    def beginTLS(self, tls: SSL.Connection) -> None:
        """
        Become the server of a handshake, and wait for the client.
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
            # OpenSSL has to write first.  Octets of the client wait in the kernel until the socket
            # accepts octets.
            self._isWriting = self._readsByWriting = True
            return
        except SSL.Error as error:
            _clearErrors()
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
            _clearErrors()
            self._fail(LOST)
            return
        if not self.disconnecting:
            self.protocol.dataReceived(data)

    def _fail(self, reason: Failure) -> None:
        """
        Close the connection, because the handshake has failed, or because OpenSSL cannot read from
        the connection.
        """
        # Read the octets that wait.  If any were left, the kernel would close the connection by a
        # reset, which might overtake the fatal alert of OpenSSL.
        self._discard()
        self._end(reason)

    def _clientCloses(self) -> None:
        """
        Write the octets that wait, and close the connection, because the client has sent a close
        alert.
        """
        self._hasReadAll, self._isReading = True, False
        if (
            not self.disconnecting
            and self._tls.get_protocol_version() >= SSL.TLS1_3_VERSION
            and IHalfCloseableProtocol.providedBy(self.protocol)
        ):
            # In TLS 1.3 the alert closes only the half of the client (RFC 8446 section 6.1).
            self.protocol.readConnectionLost()
            return
        self.disconnecting = True
        self._stopProducer()
        if self._isWriteClosed:
            self._end(DONE)
        else:
            self._finish()

    def pauseProducing(self) -> None:
        """
        See L{SocketTransport.pauseProducing}.  A connection that is being closed goes on reading,
        because it waits for the rest of the handshake or for the close alert of the client.
        """
        if not self.disconnecting:
            super().pauseProducing()

    def resumeProducing(self) -> None:
        """
        See L{SocketTransport.resumeProducing}.
        """
        if self._isReading or self._plain:
            return
        super().resumeProducing()
        if self._isReading and not self._isShaking and self._tls.pending():
            # Read the octets that wait in OpenSSL in the next turn, because the kernel does not
            # report them.
            self._loop.reactor.callLater(0, self._readPending)

    def _readPending(self) -> None:
        if self.connected and self._isReading:
            self.ready(self._events)

    def _send(self, data: Any) -> int:
        """
        @return: the number of octets in the complete records that the socket has accepted.  The
            next call must pass the octets after them again, because OpenSSL may have encrypted them
            already.
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
            _clearErrors()
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
            _clearErrors()
            hasBoth = True
        self._isWriteClosed = True
        if hasBoth or self._isImpatient:
            self._end(DONE)
        else:
            # Wait for the close alert of the client.
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
            # Go on reading, because the waiting octets can be written only after the handshake.
            self._isReading = True
            self._watch()

    def loseWriteConnection(self) -> None:
        """
        Close the connection, because TLS 1.2 has no half-closed connections.
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
