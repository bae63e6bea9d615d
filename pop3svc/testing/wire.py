"""
A layer between the protocol engine and its transport.  It records the lines and applies the
faults of a test.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
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
from pop3svc.protocol.sender import IReplyByReply
from pop3svc.protocol.session import State
from pop3svc.protocol.wire import splitLine
from pop3svc.service.factory import POP3Factory
from pop3svc.testing.faults import (
    GREETING,
    CutOff,
    Fault,
    Faults,
    NoAnswer,
    NoFinalDot,
    Slow,
    TempFail,
    WrongSize,
)
from pop3svc.testing.transcript import Transcript

__all__ = ["Wire", "WireFactory"]

# Octets held back before the engine is paused.
_BUFFER_LIMIT = 65536
# The minimum of seconds between two pieces of a slow reply.
_TICK = 0.05
# The commands that the engine gets instead of a command that must not be carried out.  They
# are harmless and have a single reply; one for before and one for after login.
_BEFORE_LOGIN = b"CAPA\r\n"
_AFTER_LOGIN = b"NOOP\r\n"
# The first octet of a TLS record that begins a handshake (RFC 8446 section 5.1).
_HANDSHAKE_RECORD = b"\x16"
_END = b"\r\n.\r\n"

_SIZES = re.compile(rb"(\+OK )?([0-9]+) ([0-9]+)(?=\r\n| _\r\n)")
_CODE = re.compile(rb"(\+OK|-ERR) \[([^\]]*)\]")


class _Reply:
    """
    A reply of the engine on its way to the transport.
    """

    def __init__(self, verb: str, faults: list[Fault], codes: re.Pattern[bytes] | None) -> None:
        """
        @param codes: the response codes to remove, or L{None}.
        """
        self._isStat = verb == "STAT"
        self._codes = codes
        self._atFirstLine = True
        self._tail = b""
        self._partial = b""
        self._wrongBy = sum(each.by for each in faults if isinstance(each, WrongSize))
        self._left: int | None = min(
            (each.after for each in faults if isinstance(each, CutOff)), default=None
        )
        self._hasDot = not any(isinstance(each, NoFinalDot) for each in faults)
        self._fails = any(isinstance(each, TempFail) for each in faults)
        slow = [each for each in faults if isinstance(each, Slow)]
        self.seconds = sum(each.seconds for each in slow)
        self.rate: float | None = min(
            (each.octetsPerSecond for each in slow if each.octetsPerSecond is not None),
            default=None,
        )
        self.isSilent = any(isinstance(each, NoAnswer) for each in faults)
        self.isCut = False

    def feed(self, data: bytes) -> bytes:
        """
        @param data: octets of the engine, beginning with a whole first line.
        @return: octets to send.
        """
        if self._atFirstLine:
            self._atFirstLine = False
            if self._fails:
                data = b"-ERR [SYS/TEMP] Try again later.\r\n"
            if self._codes is not None:
                code = _CODE.match(data)
                if code is not None and self._codes.fullmatch(code[2]):
                    data = code[1] + data[code.end() :]
        elif self._fails:
            return b""
        if self._wrongBy:
            data = self._partial + data
            end = data.rfind(b"\n") + 1
            data, self._partial = data[:end], data[end:]
            data = b"".join(_SIZES.sub(self._wrong, line) for line in data.splitlines(True))
        if not self._hasDot:
            data = self._tail + data
            data, self._tail = data[: -len(_END)], data[-len(_END) :]
        return self._upToCut(data)

    def finish(self) -> bytes:
        """
        @return: the remaining octets to send.
        """
        tail, self._tail = self._tail, b""
        return self._upToCut(tail.removesuffix(b".\r\n") if tail == _END else tail)

    def _wrong(self, found: re.Match[bytes]) -> bytes:
        number, octets = int(found[2]), int(found[3])
        messages = number if self._isStat else 1
        wrong = max(0, octets + messages * self._wrongBy)
        return b"%s%d %d" % (found[1] or b"", number, wrong)

    def _upToCut(self, data: bytes) -> bytes:
        if self._left is None:
            return data
        data = data[: self._left]
        self._left -= len(data)
        self.isCut = not self._left
        return data


@implementer(IPushProducer)
class _FlowControl:
    """
    The producer that the transport sees; it passes pauses on to the L{Wire}.
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
    A connection: the protocol of the transport, and the transport of the engine.  The octets
    that the engine writes between registering and unregistering as a producer are one reply,
    and answer one line.  Other octets (a greeting, a last line) answer none.
    """

    def __init__(self, factory: WireFactory, wrapped: Any) -> None:
        super().__init__(factory, wrapped)
        self._faults = factory.faults
        self._clock = factory.clock
        self._codes = factory.codes
        self._oneAtATime = factory.oneAtATime
        self._talk = factory.transcript.begin()
        self._partial = b""
        self._asked: deque[tuple[str, list[Fault]]] = deque()
        self._reply: _Reply | None = None
        self._ignoresInput = False
        self._isSilenced = False
        self._isLost = False
        # Actions to do in this order: octets to write at a rate, seconds to wait, functions
        # to call.
        self._held: deque[tuple[bytes, float | None] | float | Callable[[], object]] = deque()
        self._heldOctets = 0
        self._timer: IDelayedCall | None = None
        self._isFlushing = False
        self._isPaused = False
        self._isRegistered = False
        self._producer: Any = None
        self._isEnginePaused = False
        self._isTLSWaiting = False

    # --- the protocol of the transport ----------------------------------------

    def makeConnection(self, transport: Any) -> None:
        """
        See L{ProtocolWrapper.makeConnection}.
        """
        directlyProvides(self, providedBy(transport), IReplyByReply)
        if isTLS(transport):
            alsoProvides(self, ISSLTransport)
        Protocol.makeConnection(self, transport)
        self.factory.registerProtocol(self)
        self._begin(GREETING, self._faults.striking(GREETING))
        self._ignoresInput = self._isSilenced
        engine: Any = self.wrappedProtocol
        engine.makeConnection(self)
        self._end()

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
        passed = b""
        for line in lines:
            self._talk.client(line)
            isAhead = bool(self._asked) or self._reply is not None
            if self._oneAtATime and isAhead:
                self._cut(b"-ERR This server takes one command at a time.\r\n")
                return
            verb = self._verbOf(line)
            faults = self._faults.striking(verb)
            self._asked.append((verb, faults))
            if any(isinstance(each, NoAnswer | TempFail) for each in faults):
                passed += self._harmless()
            else:
                passed += line + b"\n"
            if any(isinstance(each, NoAnswer) for each in faults):
                self._ignoresInput = True
                partial = b""
                break
        if len(partial) > self.factory.maxLine or partial.startswith(_HANDSHAKE_RECORD):
            # Too long for a line, or TLS; the engine handles both.
            passed, partial = passed + partial, b""
        self._partial = partial
        if passed:
            self.wrappedProtocol.dataReceived(passed)

    def _verbOf(self, line: bytes) -> str:
        session = getattr(self.wrappedProtocol, "session", None)
        if session is not None and session.exchange is not None:
            verb: str = session.exchange.command.verb
            return verb
        return splitLine(line.removesuffix(b"\r"))[0]

    def _harmless(self) -> bytes:
        session = getattr(self.wrappedProtocol, "session", None)
        isBefore = session is not None and session.state is State.AUTHORIZATION
        return _BEFORE_LOGIN if isBefore else _AFTER_LOGIN

    def readConnectionLost(self) -> None:
        """
        See L{IHalfCloseableProtocol}.
        """
        if self._ignoresInput:
            # The engine gets no more input, so close the whole connection here.
            self.abortConnection()
        else:
            engine: Any = self.wrappedProtocol
            engine.readConnectionLost()

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
        self._drop()
        self.stopEngine()
        super().connectionLost(reason)  # type: ignore[no-untyped-call]

    # --- the transport of the engine --------------------------------------------

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """
        See L{twisted.internet.interfaces.ITransport}; begins a reply.
        """
        self._producer = producer
        self._isEnginePaused = False
        if self._isLost:
            self.stopEngine()
            return
        self._begin(*(self._asked.popleft() if self._asked else ("", [])))
        self._do(self._register)

    def unregisterProducer(self) -> None:
        """
        See L{twisted.internet.interfaces.ITransport}; ends a reply.
        """
        self._end()
        self._producer = None
        self._do(self._unregister)

    def write(self, data: bytes) -> None:
        """
        See L{twisted.internet.interfaces.ITransport}.
        """
        if self._reply is None:
            self._begin("", [])
            self._write(data)
            self._end()
        else:
            self._write(data)

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

    def loseWriteConnection(self) -> None:
        """
        See L{twisted.internet.interfaces.ITCPTransport}.
        """
        self._do(self._transport.loseWriteConnection)

    def abortConnection(self) -> None:
        """
        See L{twisted.internet.interfaces.ITCPTransport}.
        """
        self._drop()
        self._ignoresInput = self._isSilenced = True
        self._transport.abortConnection()

    def startTLS(self, connectionCreator: Any) -> None:
        """
        See L{twisted.internet.interfaces.ITLSTransport}.
        """
        if self._held:
            # Input that arrives meanwhile is TLS, so leave it in the kernel.
            self._isTLSWaiting = True
            self._transport.pauseProducing()

        def start() -> None:
            self._transport.startTLS(connectionCreator)
            if self._isTLSWaiting:
                self._isTLSWaiting = False
                self._transport.resumeProducing()

        alsoProvides(self, ISSLTransport)
        self._do(start)

    def pauseProducing(self) -> None:
        """
        Pause input for the engine.
        """
        self._transport.pauseProducing()

    def resumeProducing(self) -> None:
        """
        Resume input for the engine.
        """
        if not self._isTLSWaiting:
            self._transport.resumeProducing()

    # --- between both ----------------------------------------------------------

    @property
    def _transport(self) -> Any:
        return self.transport

    def _begin(self, verb: str, faults: list[Fault]) -> None:
        reply = _Reply(verb, faults, self._codes)
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
        if reply is not None and not self._isSilenced:
            self._put(reply.finish(), reply.rate)

    def _put(self, octets: bytes, rate: float | None = None) -> None:
        if self._reply is not None:
            rate = self._reply.rate
        if octets:
            self._heldOctets += len(octets)
            self._do((octets, rate))

    def _cut(self, lastOctets: bytes) -> None:
        """
        Send last octets, close the connection, and ignore further input.
        """
        self._put(lastOctets)
        self._do(self._unregister)
        self._do(self._transport.loseConnection)
        self._ignoresInput = self._isSilenced = True
        # Drop the commands that were sent ahead as well.
        engine = self.wrappedProtocol
        if isinstance(engine, POP3Connection):
            engine.clearLineBuffer()

    def _register(self) -> None:
        self._isRegistered = True
        self._transport.registerProducer(_FlowControl(self), True)

    def _unregister(self) -> None:
        if self._isRegistered:
            self._isRegistered = self._isPaused = False
            self._transport.unregisterProducer()

    def setPaused(self, isPaused: bool) -> None:
        """
        Pause or resume output because the transport's buffer is full or has room.
        """
        self._isPaused = isPaused
        self._flush()

    def stopEngine(self) -> None:
        """
        Stop the engine's producer because the transport takes no more output.
        """
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.stopProducing()

    def _do(self, what: tuple[bytes, float | None] | float | Callable[[], object]) -> None:
        if not self._isSilenced and not self._isLost:
            self._held.append(what)
            self._flush()

    def _drop(self) -> None:
        self._held.clear()
        self._heldOctets = 0
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _flush(self) -> None:
        if self._isFlushing:
            return
        self._isFlushing = True
        try:
            while self._held and self._timer is None and not self._isPaused:
                what = self._held.popleft()
                if isinstance(what, tuple):
                    self._send(*what)
                elif callable(what):
                    what()
                else:
                    self._wait(what)
        finally:
            self._isFlushing = False
        self._balance()

    def _send(self, octets: bytes, rate: float | None) -> None:
        if rate is not None:
            piece = max(1, int(rate * _TICK))
            if len(octets) > piece:
                self._held.appendleft((octets[piece:], rate))
            self._held.appendleft((octets[:piece], None))
            self._wait(min(piece, len(octets)) / rate)
            return
        self._heldOctets -= len(octets)
        self._talk.server(octets)
        self._transport.write(octets)

    def _wait(self, seconds: float) -> None:
        self._timer = self._clock.callLater(seconds, self._resume)

    def _resume(self) -> None:
        self._timer = None
        self._flush()

    def _balance(self) -> None:
        """
        Pause or resume the engine's producer according to the octets held back.
        """
        producer = self._producer
        if producer is None:
            return
        if self._isPaused or self._heldOctets >= _BUFFER_LIMIT:
            if not self._isEnginePaused:
                self._isEnginePaused = True
                producer.pauseProducing()
        elif self._isEnginePaused and not self._heldOctets:
            self._isEnginePaused = False
            producer.resumeProducing()


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
        @param withoutCodes: a regular expression for the response codes to remove from
            replies; L{None} for none.
        @param oneAtATime: whether to refuse commands that are sent before the previous answer,
            and to close the connection (RFC 2449 section 6.6 allows such commands only if
            PIPELINING is announced).
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
