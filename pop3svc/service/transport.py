"""
The transport of connections that the service accepts itself: it writes to the socket at once.
"""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IHalfCloseableProtocol,
    IPushProducer,
    ISystemHandle,
    ITCPTransport,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pop3svc.service.loop import Loop
from pop3svc.service.sockets import SocketFacts

__all__ = ["DONE", "LOST", "SocketTransport"]

log = Logger(namespace="pop3svc")

_IN, _OUT, _BROKEN = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP | select.EPOLLERR
# The most octets that are read in one turn.  With this limit no client delays the other clients for
# long.
_MOST = 65_536
# The usual reasons of connectionLost().  These objects are made once, because each connection needs
# one of them.
DONE, LOST = Failure(ConnectionDone()), Failure(ConnectionLost())


@implementer(ITCPTransport, IConsumer, IPushProducer, ISystemHandle)
class SocketTransport(SocketFacts):
    """
    One connection.  C{connectionLost} of the protocol is called after its other methods have
    returned.

    @ivar protocol: the protocol that gets the octets.  Another protocol may be set at any time.
    @ivar connected: whether the socket is open.
    @ivar disconnecting: whether the connection will be closed when all octets are written.
    @ivar measure: a function that takes the octets that wait in the kernel, and returns how many of
        them to read now.  The other octets stay in the kernel.  L{None} to read all octets.
    """

    isPort = False
    connected = True
    disconnecting = False
    measure: Callable[[bytes], int] | None = None
    # These values belong to the class, because most connections never change them.
    _isReading, _isWriting = True, False
    # Whether TLS has to write before it can read.
    _readsByWriting = False
    _hasReadAll = _isWriteClosing = _isWriteClosed = False
    _producer: Any = None
    _isStreaming = _isPaused = False
    # The reason why the connection has ended; None while it is open.
    _reason: Failure | None = None

    def __init__(self, loop: Loop, connected: socket.socket, peer: IAddress) -> None:
        """
        @param loop: watches the socket.
        @param connected: a socket that does not block.
        """
        super().__init__(connected, peer)
        self._loop = loop
        self._events = _IN
        # Octets that the socket has not accepted yet.
        self._waiting = bytearray()
        # Whether a method of the protocol may be running.
        self._isBusy = False

    def begin(self, protocol: Any) -> None:
        """
        Serve the connection.

        @param protocol: L{twisted.internet.interfaces.IProtocol}
        @raise OSError: the kernel cannot watch the socket.
        """
        self.protocol = protocol
        self._loop.watch(self._socket.fileno(), self, _IN)
        self._isBusy = True
        try:
            protocol.makeConnection(self)
        except Exception:
            self._failed()
        self._served()

    # --- events -----------------------------------------------------------------

    def ready(self, events: int) -> None:
        """
        Read from the socket and write to it, as the events allow.

        @param events: the events of the socket, as epoll names them.
        """
        self._isBusy = True
        try:
            if events == _IN and self._isReading:
                # Nearly all events are of this kind.
                self._read()
            else:
                self._readyFor(events)
        except Exception:
            self._failed()
        self._served()

    def _readyFor(self, events: int) -> None:
        if events & _OUT:
            self._drain()
        if self._reason is None:
            if self._isReading:
                if events & ~_OUT:
                    self._read()
            elif events & _BROKEN:
                self._end(LOST)

    def _failed(self) -> None:
        failure = Failure()
        log.failure("a connection failed", failure)
        # Drop the frames of the failure, because they refer to this object, and would make a
        # reference cycle.
        failure.cleanFailure()
        self._end(failure)

    def _served(self) -> None:
        """
        Do the work that had to wait until the method of the protocol had returned.
        """
        self._isBusy = False
        if self._reason is not None:
            self._lose()
        elif self._isWriting or self._readsByWriting or not self._isReading or self._events != _IN:
            self._watch()

    def _watch(self) -> None:
        """
        Tell the loop to wait for the events that this transport needs now.
        """
        if self._isBusy or self._reason is not None:
            # _served() calls this method again, or the connection ends.
            return
        isReading = self._isReading and not self._readsByWriting
        events = (_IN if isReading else 0) | (_OUT if self._isWriting else 0)
        if events != self._events:
            self._events = events
            self._loop.change(self._socket.fileno(), events)

    # --- reading ----------------------------------------------------------------

    def _read(self) -> None:
        try:
            if self.measure is None:
                data = self._socket.recv(_MOST)
            else:
                waiting = self._socket.recv(_MOST, socket.MSG_PEEK)
                data = self._socket.recv(self.measure(waiting)) if waiting else b""
        except BlockingIOError:
            return
        except OSError:
            self._end(LOST)
            return
        if data:
            self.protocol.dataReceived(data)
            return
        self._hasReadAll, self._isReading = True, False
        if IHalfCloseableProtocol.providedBy(self.protocol):
            self.protocol.readConnectionLost()
        else:
            self._end(DONE)

    def _discard(self) -> None:
        """
        Drop the octets that wait in the kernel, but no more than C{_MOST}.
        """
        try:
            self._socket.recv(_MOST)
        except OSError:
            # No octets wait, or the connection is lost.
            pass

    def pauseProducing(self) -> None:
        """
        See L{IPushProducer}.
        """
        self._isReading = False
        self._watch()

    def resumeProducing(self) -> None:
        """
        See L{IPushProducer}.
        """
        if self.connected and not self._hasReadAll and not self.disconnecting:
            self._isReading = True
            self._watch()

    # --- writing ----------------------------------------------------------------

    def _send(self, data: Any) -> int:
        """
        @return: the number of octets that the socket has accepted.
        """
        try:
            return self._socket.send(data)
        except BlockingIOError:
            pass
        except OSError:
            self._end(LOST)
        return 0

    @property
    def _mayWrite(self) -> bool:
        # Each connection that _end() has closed, or is about to close, has a reason.
        return self._reason is None and not self._isWriteClosed

    @property
    def _mustWait(self) -> bool:
        """
        Whether new octets have to wait, for example because earlier octets wait.
        """
        return bool(self._waiting)

    def write(self, data: bytes) -> None:
        """
        Write to the socket at once, and keep the octets that it does not accept.  See
        L{twisted.internet.interfaces.ITransport.write}.
        """
        if not self._mayWrite:
            return
        if self._mustWait:
            self._waiting += data
        else:
            done = self._send(data)
            if done == len(data):
                if self._producer is not None and not self._isStreaming:
                    # Ask a pull producer for its next piece.
                    self.startWriting()
                return
            self._waiting += memoryview(data)[done:]
            self.startWriting()
        if self._isStreaming and not self._isPaused:
            self._isPaused = True
            self._producer.pauseProducing()

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """
        See L{twisted.internet.interfaces.ITransport.writeSequence}.
        """
        self.write(b"".join(data))

    def writeSomeData(self, data: Any) -> int:
        """
        Write as many octets as the socket accepts now.  If some octets are left, the caller must
        pass them to L{write} before anything else is written.

        @return: the number of octets that were written.
        """
        if self._waiting or self._isWriteClosed or self._reason is not None:
            return 0
        return self._send(data)

    def startWriting(self) -> None:
        """
        Write the octets that wait, and resume the producer, as soon as the socket accepts octets.
        """
        self._isWriting = True
        self._watch()

    def _drain(self) -> None:
        """
        Write the octets that wait, and ask the producer for more.
        """
        self._isWriting = False
        if self._reason is None and self._waiting:
            del self._waiting[: self._send(self._waiting)]
        if self._waiting:
            self.startWriting()
            return
        producer = self._producer
        if producer is not None and (self._isPaused or not self._isStreaming):
            self._isPaused = False
            producer.resumeProducing()
        self._finish()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """
        See L{IConsumer}.
        """
        if self._producer is not None:
            raise RuntimeError("another producer is registered")
        if not self.connected:
            producer.stopProducing()
            return
        self._producer, self._isStreaming, self._isPaused = producer, streaming, False
        if not streaming:
            producer.resumeProducing()
            if self._producer is not None:
                # Ask the producer again as soon as the socket accepts octets, even if no octets
                # wait now.
                self.startWriting()

    def unregisterProducer(self) -> None:
        """
        See L{IConsumer}.
        """
        self._producer, self._isStreaming = None, False
        self._finish()

    def _stopProducer(self) -> None:
        producer, self._producer, self._isStreaming = self._producer, None, False
        if producer is not None:
            producer.stopProducing()

    # --- the end ----------------------------------------------------------------

    def _finish(self) -> None:
        """
        If all octets are written, close the connection or its sending half, as the protocol has
        asked for.
        """
        isClosing = self.disconnecting or self._isWriteClosing
        if isClosing and self._mayWrite and not self._mustWait and self._producer is None:
            self._close()

    def _close(self) -> None:
        if self.disconnecting:
            self._end(DONE)
            return
        self._isWriteClosed = True
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            # Ignore the error, because the client has reset the connection.
            pass
        if IHalfCloseableProtocol.providedBy(self.protocol):
            self.protocol.writeConnectionLost()

    def loseConnection(self) -> None:
        """
        See L{twisted.internet.interfaces.ITransport.loseConnection}.
        """
        self.disconnecting, self._isReading = True, False
        if self._isWriteClosed:
            self._end(DONE)
        else:
            self._finish()
            self._watch()

    stopProducing = loseConnection

    def loseWriteConnection(self) -> None:
        """
        See L{twisted.internet.interfaces.IHalfCloseableDescriptor}.
        """
        self._isWriteClosing = True
        self._finish()

    def abortConnection(self) -> None:
        """
        See L{ITCPTransport}.
        """
        self._isReading = self._isWriting = False
        self._end(Failure(ConnectionAborted()))

    def _end(self, reason: Failure) -> None:
        """
        Close the connection as soon as no method of the protocol is running.
        """
        if self._reason is None:
            self._reason = reason
            if not self._isBusy:
                self._loop.reactor.callLater(0, self._lose)

    def connectionLost(self, reason: Failure) -> None:
        """
        Close the connection, because the reactor ends.
        """
        self._reason = self._reason or reason
        self._lose()

    def _lose(self) -> None:
        if not self.connected:
            return
        self.connected = False
        reason = self._reason
        assert reason is not None
        self._loop.forget(self._socket.fileno())
        if reason is not DONE and reason.check(ConnectionAborted):
            try:
                # Close by a reset, so that the kernel drops the octets that it has not sent.
                linger = struct.pack("ii", 1, 0)
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            except OSError:
                pass
        self._socket.close()
        self._waiting.clear()
        # Break the reference cycle between the protocol and this transport, because Python frees
        # cycles late.
        protocol, self.protocol = self.protocol, None
        for call in (self._stopProducer, partial(protocol.connectionLost, reason)):
            try:
                call()
            except Exception:
                log.failure("a connection failed at its end")
