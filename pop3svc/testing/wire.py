"""
A layer between the protocol engine and its transport.  The layer records the lines, and applies the
faults of a test.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Any

from twisted.internet.interfaces import (
    IAddress,
    IHalfCloseableProtocol,
    IHandshakeListener,
    IPushProducer,
    IReactorTime,
    ISSLTransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from zope.interface import alsoProvides, directlyProvides, implementer, providedBy

from pop3svc.protocol.closing import isTLS
from pop3svc.protocol.connection import POP3Connection
from pop3svc.protocol.session import State
from pop3svc.protocol.wire import splitLine
from pop3svc.service.factory import POP3Factory
from pop3svc.testing.faults import GREETING, Fault, Faults, NoAnswer, TempFail
from pop3svc.testing.outbox import Action, Outbox
from pop3svc.testing.replies import FaultyReply, ReplySplitter, isMultiLine
from pop3svc.testing.transcript import Transcript

__all__ = ["Wire", "WireFactory"]

# If this number of octets waits for the transport, the layer pauses the engine's producer.
_BUFFER_LIMIT = 65536
# If the engine must not carry out a line, it gets one of these harmless lines instead, and answers
# it with one reply. The first is for lines inside AUTH, the second for lines before login, and the
# third for lines after login.
_INSIDE_AUTH = b"*\r\n"
_BEFORE_LOGIN = b"CAPA\r\n"
_AFTER_LOGIN = b"NOOP\r\n"
# The first octet of a TLS record that begins a handshake (RFC 8446 section 5.1).
_HANDSHAKE_RECORD = b"\x16"


@implementer(IPushProducer)
class _FlowControl:
    """
    The producer that the transport pauses and resumes.  It passes these calls on to the L{Wire}.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def pauseProducing(self) -> None:
        self._wire.setPaused(True)

    def resumeProducing(self) -> None:
        self._wire.setPaused(False)

    def stopProducing(self) -> None:
        self._wire.stopEngine()


@implementer(IHandshakeListener, IHalfCloseableProtocol)
class Wire(ProtocolWrapper):
    """
    A connection.  For the transport it is the protocol, and for the engine it is the transport.  It
    gives the engine one line at a time, and the next line only after the whole reply, because a
    fault changes a single reply, and the commands after a fault may have to be dropped.
    """

    def __init__(self, factory: WireFactory, wrapped: Any) -> None:
        super().__init__(factory, wrapped)
        self._faults = factory.faults
        self._codes = factory.codes
        self._oneAtATime = factory.oneAtATime
        self._talk = factory.transcript.begin()
        # Input that the engine has not received yet: lines with their line ends, octets that are
        # too long for a line, and the beginning of a line.
        self._coming: deque[bytes] = deque()
        self._partial = b""
        # The verb of the line that the engine is answering, and the faults that happen at this
        # line.
        self._asked: tuple[str, list[Fault]] | None = None
        self._isPassing = False
        self._hasReadEnded = False
        self._isClosing = False
        self._splitter = ReplySplitter()
        self._reply: FaultyReply | None = None
        self._ignoresInput = False
        self._isSilenced = False
        self._isLost = False
        self._outbox = Outbox(factory.clock, self._send, self._balance)
        self._isRegistered = False
        self._producer: Any = None
        self._isEnginePaused = False
        self._pausesInput = False
        self._isTLSWaiting = False
        self._isInputHeld = False

    # --- the protocol of the transport ----------------------------------------

    def makeConnection(self, transport: Any) -> None:
        """
        See L{ProtocolWrapper.makeConnection}.
        """
        directlyProvides(self, providedBy(transport))
        if isTLS(transport):
            alsoProvides(self, ISSLTransport)
        Protocol.makeConnection(self, transport)
        self.factory.registerProtocol(self)
        faults = self._faults.striking(GREETING)
        self._asked = GREETING, faults
        self._ignoresInput = _isUnanswered(faults)
        engine: Any = self.wrappedProtocol
        engine.makeConnection(self)

    def handshakeCompleted(self) -> None:
        """
        See L{IHandshakeListener}.
        """
        engine: Any = self.wrappedProtocol
        engine.handshakeCompleted()

    def dataReceived(self, data: bytes) -> None:
        """
        See L{ProtocolWrapper.dataReceived}.
        """
        if self._ignoresInput:
            return
        *lines, partial = (self._partial + data).split(b"\n")
        for line in lines:
            self._talk.client(line)
            isAhead = bool(self._coming) or self._asked is not None
            if self._oneAtATime and isAhead:
                self._cut(b"-ERR This server takes one command at a time.\r\n")
                return
            self._coming.append(line + b"\n")
        if len(partial) > self.factory.maxLine or partial.startswith(_HANDSHAKE_RECORD):
            # The octets are too long for a line, or are TLS. The engine handles both cases.
            self._coming.append(partial)
            partial = b""
        self._partial = partial
        if self._isClosing:
            self._dropInput()
        self._passOn()

    def _passOn(self) -> None:
        """
        Give lines to the engine, until the engine has to wait before it answers a line.
        """
        if self._isPassing:
            return
        self._isPassing = True
        try:
            while self._coming and self._asked is None:
                self._ask(self._coming.popleft())
        finally:
            self._isPassing = False
        self._holdInput()
        if self._hasReadEnded and not self._coming:
            self._hasReadEnded = False
            engine: Any = self.wrappedProtocol
            engine.readConnectionLost()

    def _ask(self, line: bytes) -> None:
        """
        Give the engine a line, or a harmless line in its place.
        """
        if line.endswith(b"\n"):
            exchange = self._exchange()
            verb = splitLine(line.rstrip(b"\r\n"))[0] if exchange is None else exchange.command.verb
            faults = self._faults.striking(verb)
            self._asked = verb, faults
            if _isUnanswered(faults):
                self._ignoresInput = True
                self._dropInput()
            if any(isinstance(each, NoAnswer | TempFail) for each in faults):
                line = self._harmless()
            self._splitter.isMultiLine = exchange is None and isMultiLine(line)
        self.wrappedProtocol.dataReceived(line)

    def _exchange(self) -> Any:
        session = getattr(self.wrappedProtocol, "session", None)
        return None if session is None else session.exchange

    def _harmless(self) -> bytes:
        if self._exchange() is not None:
            return _INSIDE_AUTH
        session = getattr(self.wrappedProtocol, "session", None)
        isBefore = session is not None and session.state is State.AUTHORIZATION
        return _BEFORE_LOGIN if isBefore else _AFTER_LOGIN

    def _dropInput(self) -> None:
        self._coming.clear()
        self._partial = b""
        self._holdInput()

    def _holdInput(self) -> None:
        """
        Pause input if lines wait here, if the engine has paused input, or if TLS is about to begin;
        otherwise resume input.
        """
        isHeld = bool(self._coming) or self._pausesInput or self._isTLSWaiting
        if isHeld != self._isInputHeld:
            self._isInputHeld = isHeld
            if isHeld:
                self._transport.pauseProducing()
            else:
                self._transport.resumeProducing()

    def readConnectionLost(self) -> None:
        """
        See L{IHalfCloseableProtocol}.
        """
        if self._ignoresInput:
            # The engine gets no more input, so close the whole connection here.
            self.abortConnection()
        else:
            self._hasReadEnded = True
            self._passOn()

    def writeConnectionLost(self) -> None:
        """
        See L{IHalfCloseableProtocol}.
        """
        engine: Any = self.wrappedProtocol
        engine.writeConnectionLost()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        See L{ProtocolWrapper.connectionLost}.
        """
        self._isLost = True
        self._coming.clear()
        self._outbox.drop()
        self.stopEngine()
        super().connectionLost(reason)  # type: ignore[no-untyped-call]

    # --- the transport of the engine --------------------------------------------

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """
        See L{twisted.internet.interfaces.ITransport}.
        """
        self._producer = producer
        self._isEnginePaused = False
        if self._isLost:
            self.stopEngine()
            return
        self._do(self._register)

    def unregisterProducer(self) -> None:
        """
        See L{twisted.internet.interfaces.ITransport}.
        """
        self._producer = None
        self._do(self._unregister)

    def write(self, data: bytes) -> None:
        """
        See L{twisted.internet.interfaces.ITransport}.
        """
        for octets, isLast in self._splitter.feed(data):
            if self._reply is None:
                # If the octets answer no line, they are the last message of the engine before it
                # closes.
                self._begin(*(self._asked or ("", [])))
            self._write(octets)
            if isLast:
                self._end()
        self._passOn()

    def writeSequence(self, data: Any) -> None:
        """
        See L{twisted.internet.interfaces.ITransport}.
        """
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        """
        See L{twisted.internet.interfaces.ITransport}.
        """
        self.disconnecting = 1
        self._do(self._transport.loseConnection)
        self._endInput()

    def loseWriteConnection(self) -> None:
        """
        See L{twisted.internet.interfaces.ITCPTransport}.
        """
        self._do(self._transport.loseWriteConnection)
        self._endInput()

    def _endInput(self) -> None:
        """
        Drop the lines that wait and all lines that arrive later, because the engine is closing the
        connection and answers no further line.
        """
        self._isClosing = True
        self._dropInput()
        self._passOn()

    def abortConnection(self) -> None:
        """
        See L{twisted.internet.interfaces.ITCPTransport}.
        """
        self._outbox.drop()
        self._dropInput()
        self._ignoresInput = self._isSilenced = True
        self._transport.abortConnection()

    def startTLS(self, connectionCreator: Any) -> None:
        """
        See L{twisted.internet.interfaces.ITLSTransport}.
        """
        if self._coming or self._partial:
            # These lines are plain text after STLS. The engine has not seen them, and must not see
            # them inside TLS.
            self.abortConnection()
            return
        if self._outbox.isBusy:
            # Input that arrives now belongs to TLS, so leave it in the kernel until TLS begins.
            self._isTLSWaiting = True
            self._holdInput()

        def start() -> None:
            self._transport.startTLS(connectionCreator)
            self._isTLSWaiting = False
            self._holdInput()

        alsoProvides(self, ISSLTransport)
        self._do(start)

    def pauseProducing(self) -> None:
        """
        Pause input for the engine.
        """
        self._pausesInput = True
        self._holdInput()

    def resumeProducing(self) -> None:
        """
        Resume input for the engine.
        """
        self._pausesInput = False
        self._holdInput()

    # --- between both ----------------------------------------------------------

    @property
    def _transport(self) -> Any:
        return self.transport

    def _begin(self, verb: str, faults: list[Fault]) -> None:
        reply = FaultyReply(verb, faults, self._codes)
        self._reply = reply
        if reply.isSilent:
            self._isSilenced = True
        if reply.seconds:
            self._do(reply.seconds)

    def _write(self, data: bytes) -> None:
        reply = self._reply
        if reply is None or self._isSilenced:
            return
        octets = reply.feed(data)
        if reply.isCut:
            self._cut(octets)
        else:
            self._put(octets)

    def _end(self) -> None:
        reply, self._reply = self._reply, None
        self._asked = None
        self._splitter.isMultiLine = False
        if reply is not None and not self._isSilenced:
            self._put(reply.finish(), reply.rate)

    def _put(self, octets: bytes, rate: float | None = None) -> None:
        if self._reply is not None:
            rate = self._reply.rate
        if octets:
            self._do((octets, rate))

    def _cut(self, lastOctets: bytes) -> None:
        """
        Send these last octets, close the connection, and ignore further input.
        """
        self._put(lastOctets)
        self._do(self._unregister)
        self._do(self._transport.loseConnection)
        self._ignoresInput = self._isSilenced = True
        # Also drop the commands that the client has sent without waiting for this reply.
        self._dropInput()
        engine = self.wrappedProtocol
        if isinstance(engine, POP3Connection):
            engine.clearLineBuffer()

    def _register(self) -> None:
        self._isRegistered = True
        self._transport.registerProducer(_FlowControl(self), True)

    def _unregister(self) -> None:
        if self._isRegistered:
            self._isRegistered = self._outbox.isPaused = False
            self._transport.unregisterProducer()

    def setPaused(self, isPaused: bool) -> None:
        """
        Pause output while the transport's buffer is full, and resume output when the buffer has
        room.
        """
        self._outbox.isPaused = isPaused
        self._outbox.flush()

    def stopEngine(self) -> None:
        """
        Stop the engine's producer, because the transport takes no more output.
        """
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.stopProducing()

    def _do(self, action: Action) -> None:
        if not self._isSilenced and not self._isLost:
            self._outbox.do(action)

    def _send(self, octets: bytes) -> None:
        self._talk.server(octets)
        self._transport.write(octets)

    def _balance(self) -> None:
        """
        Pause the engine's producer if output is paused or many octets wait for the transport.
        Resume the producer when no octets wait.
        """
        producer = self._producer
        if producer is None:
            return
        if self._outbox.isPaused or self._outbox.octets >= _BUFFER_LIMIT:
            if not self._isEnginePaused:
                self._isEnginePaused = True
                producer.pauseProducing()
        elif self._isEnginePaused and not self._outbox.octets:
            self._isEnginePaused = False
            producer.resumeProducing()


def _isUnanswered(faults: list[Fault]) -> bool:
    """
    @return: whether the server answers nothing more on this connection.
    """
    return any(isinstance(each, NoAnswer) for each in faults)


class WireFactory(WrappingFactory[Wire]):
    """
    Puts a L{Wire} around each connection of a factory.
    """

    noisy = False

    def __init__(
        self,
        factory: POP3Factory,
        faults: Faults,
        transcript: Transcript,
        clock: IReactorTime,
        withoutCodes: str | None = None,
        oneAtATime: bool = False,
    ) -> None:
        """
        @param withoutCodes: a regular expression for the response codes to remove from replies;
            L{None} to remove none.
        @param oneAtATime: whether to close the connection if a client sends a command before it has
            got the previous answer.  RFC 2449 section 6.6 allows a client to do this only if the
            server announces PIPELINING.
        """
        super().__init__(factory)  # type: ignore[no-untyped-call]
        self.faults = faults
        self.transcript = transcript
        self.clock = clock
        self.codes = None if withoutCodes is None else re.compile(withoutCodes.encode("ascii"))
        self.oneAtATime = oneAtATime
        self.maxLine = factory.policy.maxAuthLineLength

    def buildProtocol(self, addr: IAddress | None) -> Wire | None:  # type: ignore[override]
        """
        See L{twisted.internet.interfaces.IProtocolFactory.buildProtocol}.
        """
        connection = self.wrappedFactory.buildProtocol(addr)
        return None if connection is None else Wire(self, connection)
