"""
One connection: lines in, one command at a time, TLS, time-outs, the end.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, MutableSet
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IHandshakeListener,
    IReactorTime,
)
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from pop3svc.awaiting import SharedTimeout, TimeSlice, startNow
from pop3svc.policy import Policy
from pop3svc.protocol.closing import Closing, isTLS
from pop3svc.protocol.content import MessageBody
from pop3svc.protocol.dispatch import Table, lineLimit, respond, verbOf
from pop3svc.protocol.framing import LineBuffer
from pop3svc.protocol.replies import After, Reply, err, ok
from pop3svc.protocol.sender import ReplySender, Stalled
from pop3svc.protocol.session import Session, State, refuseRelease

__all__ = ["Limits", "POP3Connection"]

log = Logger(namespace="pop3svc")

# The first octet of a TLS record that begins a handshake (RFC 8446 section
# 5.1); no command begins with it.
_HANDSHAKE_RECORD = 0x16


@implementer(IHandshakeListener, IHalfCloseableProtocol)
class POP3Connection(LineReceiver):
    """
    The server's end of one POP3 connection: one command at a time, TLS, time limits.  Of
    L{LineReceiver} it uses C{paused}, and the methods that pause and resume.  It is long because
    Twisted calls all of these methods on one object.

    @ivar session: the state of the client.
    """

    # Most connections are idle; a dictionary for so many names is large.
    __slots__ = (
        "_clock",
        "_closing",
        "_connectionCreator",
        "_ended",
        "_ending",
        "_handshaking",
        "_heardNothing",
        "_input",
        "_isEnding",
        "_isLate",
        "_isTaking",
        "_isUnauthenticated",
        "_limit",
        "_limits",
        "_makeSession",
        "_policy",
        "_quietSince",
        "_readEnded",
        "_reason",
        "_running",
        "_sender",
        "_stopping",
        "_table",
        "_turns",
        "_unauthenticated",
        "address",
        "session",
    )

    def __init__(
        self,
        makeSession: Callable[[Any], Session],
        table: Table,
        clock: IReactorTime,
        connectionCreator: Any,
        ended: Callable[[POP3Connection], object],
        unauthenticated: MutableSet[POP3Connection],
        limits: Limits,
    ) -> None:
        """
        @param makeSession: takes the transport.
        @param connectionCreator: for STLS: what C{startTLS} takes, or L{None}.
        @param ended: called once, when all of this is over.
        @param unauthenticated: holds this connection until somebody logs in.
        @param limits: the time limits of all connections.
        """
        self._makeSession = makeSession
        self._table = table
        self._clock = clock
        self._connectionCreator = connectionCreator
        self._ended = ended
        self._unauthenticated = unauthenticated
        # Set by the factory, for its counting.
        self.address: str | None = None
        self._heardNothing = True
        self._handshaking = False
        self._running: Deferred[None] | None = None
        self._limits = limits
        # That of them which runs now.
        self._limit: SharedTimeout | None = None
        # Made when the connection ends.
        self._closing: Closing | None = None
        self._isUnauthenticated = False
        self._isLate = False
        self._isEnding = False
        self._ending: Deferred[None] | None = None
        self._reason = ""
        self._readEnded = False
        self._turns = TimeSlice(clock)
        self._input = LineBuffer()
        self._isTaking = False
        self._stopping = False

    @property
    def isAnswering(self) -> bool:
        """
        Is something under way that has to be waited for?
        """
        return self._running is not None or self.paused

    # --- beginning ------------------------------------------------------------

    def connectionMade(self) -> None:
        """
        Greet (RFC 1939 section 4).
        """
        transport: Any = self.transport
        self.session = self._makeSession(transport)
        # It refers to this connection: what goes in a circle is freed late.
        del self._makeSession
        self._policy = self.session.policy
        self._sender = ReplySender(
            transport,
            self._turns,
            self._clock,
            self._policy.stallTimeout,
            "MULTI-LINE-IND" not in self._policy.without,
            isTLS(transport),
            self.session.record,
        )
        self._quietSince = self.session.record.began = self._clock.seconds()
        self._handshaking = isTLS(transport)
        setNoDelay = getattr(transport, "setTcpNoDelay", None)
        if setNoDelay is not None:
            # A reply that goes out in two parts must not wait for the
            # acknowledgement of the first.
            setNoDelay(True)
        info = self.session.info
        if self._policy.verboseEvents:
            log.debug(
                pop3Event="connection",
                connectionID=info.connectionID,
                clientIP=info.clientIP,
                isSecure=info.isSecure,
            )
        self.session.tryRelease = self._tryRelease
        self._limitLogin()
        self._sender.say(ok(f"{self.session.provider.name} ready."))
        self._awaitLine()

    def handshakeCompleted(self) -> None:
        """
        See L{IHandshakeListener}.
        """
        self._handshaking = False

    # --- lines ----------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        """
        Some octets came in.
        """
        if self._reason:
            # Whatever a client still sends is read, so that its end of the
            # connection closes in order, and dropped.
            return
        if self._heardNothing and data:
            self._heardNothing = False
            if data[0] == _HANDSHAKE_RECORD and not self.session.info.isSecure:
                self._close("TLS handshake on plaintext port")
                return
        self._input.feed(data)
        if self._input.held > self._policy.maxInputHeld:
            self._abort("pipelined too much input")
            return
        if self._running is not None:
            # It stays where it is, in the kernel.
            if not self.paused:
                self.pauseProducing()
        elif not self.paused:
            self._takeLines()

    def clearLineBuffer(self) -> bytes:
        """
        Drop the input that waits.

        @return: the octets that were dropped.
        """
        return self._input.clear()

    def _takeLines(self) -> None:
        """
        Answer what came in, as far as it goes without waiting.
        """
        if self._isTaking:
            return
        self._isTaking = True
        try:
            lines, turns, isNew = self._input, self._turns, bool(self._input)
            turns.restart()
            while lines and self._running is None and not self.paused:
                self.lineReceived(lines.next())
                if turns.isOver() and not self._reason and self._running is None:
                    # Others wait; the rest is for the next turn.
                    self.pauseProducing()
                    self._turns.callNext(self._nextTurn)
        finally:
            self._isTaking = False
        if self._running is not None or self._reason:
            return
        if not lines and len(lines.partial) >= self._policy.maxAuthLineLength:
            self.lineLengthExceeded(lines.partial)
            return
        if self._sender.hasGathered and not self._sender.flushShort():
            # All that came in is answered, or has had its turn.
            self._run(self._sender.flush())
            if self._running is not None or self._reason:
                return
        if self._readEnded and not lines:
            self._close("closed by the client")
        elif isNew or self._limit is None:
            # Octets that end no line renew no limit.
            self._awaitLine()

    def lineReceived(self, line: bytes) -> None:
        """
        One line came in: answer it before the next is looked at.
        """
        if self._reason:
            return
        octets = len(line) + 1
        if line.endswith(b"\r"):
            line = line[:-1]
        session = self.session
        if octets > self._policy.maxLineLength and octets > lineLimit(session, line, self._table):
            self.lineLengthExceeded(line)
            return
        if self._policy.verboseEvents:
            self._run(self._serve(self._watched(line)))
            return
        try:
            reply = respond(session, line, self._table)
            if isinstance(reply, Reply) and reply.body is None and not self._sender.isCrowded:
                self._sender.gather(reply)
                self._sent(reply)
                return
        except Exception:
            self._failed(Failure())
            return
        self._run(self._serve(reply))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        """
        Do something to the end before another line is looked at.
        """
        try:
            running = startNow(work)
        except Exception:
            self._failed(Failure())
            return
        if isinstance(running, Deferred):
            # What was answered before does not wait for it.
            self._sender.flushNow()
            self._running = running
            if not self._isUnauthenticated:
                # The clock stops meanwhile.
                self._setLimit(None)
            running.addCallbacks(lambda _: None, self._failed).addCallback(self._goOn)

    def lineLengthExceeded(self, line: bytes) -> None:
        """
        A line is too long (RFC 2449 section 4).
        """
        self._sender.say(err("Line is too long."))
        self._close("sent a line that is too long")

    async def _watched(self, line: bytes) -> Reply:
        """
        Answer a line, and tell of it.
        """
        session = self.session
        verb = verbOf(session, line, self._table)
        began = self._clock.seconds()
        reply = respond(session, line, self._table)
        if not isinstance(reply, Reply):
            reply = await reply
        log.debug(
            pop3Event="command",
            connectionID=session.info.connectionID,
            verb=verb,
            positive=reply.positive,
            code=reply.code,
            seconds=self._clock.seconds() - began,
        )
        return reply

    async def _serve(self, answer: Reply | Coroutine[Any, Any, Reply]) -> None:
        reply = answer if isinstance(answer, Reply) else await answer
        whole = await self._sender.send(reply)
        if whole and isinstance(reply.body, MessageBody):
            record = self.session.record
            record.messagesSent += 1
            record.messageOctets += reply.body.octets
        self._sent(reply)

    def _sent(self, reply: Reply) -> None:
        """
        A reply is on its way.
        """
        if reply.then is not After.GO_ON:
            if reply.then is After.START_TLS:
                self._startTLS()
            else:
                self._close(_whyClosed(self.session, reply))
            if self._reason:
                return
        if self.session.state is not State.AUTHORIZATION:
            if self._isUnauthenticated:
                self._endLoginLimit()
        elif not self._isUnauthenticated:
            # Logged in and out again: the connection begins anew.
            self._tell("logged out")
            self._limitLogin()
        elif self._isLate:
            self._sayTooLate()
            return
        if self._stopping:
            self._sayStopping()

    def _goOn(self, _: object) -> None:
        """
        What had to be waited for is over.
        """
        self._running = None
        if self.paused:
            self.paused = False
            transport: Any = self.transport
            transport.resumeProducing()
        if self._reason:
            return
        # If it was no command, _sent() has not looked.
        if self._isLate:
            self._sayTooLate()
        elif self._stopping:
            self._sayStopping()
        else:
            self._takeLines()

    def _nextTurn(self) -> None:
        if self._running is None and self.paused:
            self._goOn(None)

    def _failed(self, failure: Failure) -> None:
        if failure.check(Stalled):
            self._abort("stopped reading")
        elif self._reason or failure.check(ConnectionLost):
            # The client is gone; what it asked for was cut short.
            self._abort("lost")
        else:
            log.failure(
                "connection {connectionID}: a reply failed midway",
                failure,
                pop3Event="error",
                connectionID=self.session.info.connectionID,
            )
            # Those before it are whole.
            self._sender.flushNow()
            self._abort("a reply failed midway")

    def _startTLS(self) -> None:
        transport: Any = self.transport
        self._sender.flushNow()
        self._sender.startTLS()
        if self.clearLineBuffer():
            # Somebody put plain text behind STLS to have it run inside TLS.
            self._abort("sent plain text behind STLS")
            return
        self._handshaking = True
        self.session.info.isSecure = True
        transport.startTLS(self._connectionCreator)

    # --- time -----------------------------------------------------------------

    def _awaitLine(self) -> None:
        """
        Limit the wait for the next line.  Before login the login's own limit
        does that.
        """
        self._quietSince = self._clock.seconds()
        state = self.session.state
        if state is State.TRANSACTION:
            self._setLimit(self._limits.idle)
        elif state is State.SLEEPING:
            self._setLimit(self._limits.sleep)

    def _setLimit(self, limit: SharedTimeout | None) -> None:
        """
        Begin one limit, whatever ran before.
        """
        before, self._limit = self._limit, limit
        if before is not None and before is not limit:
            before.end(self)
        if limit is not None:
            limit.begin(self)

    def idleTooLong(self) -> None:
        """
        The wait for a command was too long.  Without a word (RFC 1939 section
        3); the mailbox is free at once, whenever the client closes its end.
        """
        self._close("idle for too long")
        self._endSession()

    def _limitLogin(self) -> None:
        self._unauthenticated.add(self)
        self._isUnauthenticated = True
        self._setLimit(self._limits.login)

    def _endLoginLimit(self) -> None:
        self._unauthenticated.discard(self)
        self._isUnauthenticated = self._isLate = False
        self._setLimit(None)

    def loginTooLate(self) -> None:
        """
        The time for a login is over.
        """
        if self._running is not None:
            # What is under way may yet be the login; _sent() looks again, or
            # _goOn().
            self._isLate = True
        else:
            self._sayTooLate()

    def _sayTooLate(self) -> None:
        if self._handshaking:
            self._abort("took too long to log in")
            return
        self._sender.say(err("Login timed out."))
        self._close("took too long to log in")

    # --- the end --------------------------------------------------------------

    def stop(self) -> None:
        """
        The service stops: end as soon as no command is running.
        """
        self._stopping = True
        if self._reason:
            # It has been told good-bye; what is written still goes out.
            self.closeFully()
        elif self._running is None:
            self._sayStopping()

    def _sayStopping(self) -> None:
        if self._handshaking:
            self._abort("the service is stopping")
            return
        if self.session.state is State.AUTHORIZATION:
            self._sender.say(err("Server is shutting down.", "SYS/TEMP"))
        self._close("the service is stopping")

    def abort(self, reason: str) -> None:
        """
        End now, whatever is under way.
        """
        self._abort(reason)

    def _tryRelease(self, isMarked: bool) -> bool:
        """
        Another session of the user wants the mailbox: end this one if it has
        been idle long enough.  Nothing of it is deleted.
        """
        if self._reason:
            return False
        policy = self._policy
        enough = policy.takeoverMarked if isMarked else policy.takeoverIdle
        if self._running is not None:
            # A client that takes nothing of a reply may be gone.
            if self._sender.stalledFor() < enough:
                return False
            self._abort("made room for another session of the user")
            self._cancelRunning()
            self._endSession()
            return True
        if self._clock.seconds() - self._quietSince < enough:
            return False
        self._close("made room for another session of the user")
        self._endSession()
        return True

    def _endSession(self) -> Deferred[None] | None:
        """
        Let go of everything, once.

        @return: a Deferred, if that takes time.
        """
        if not self._isEnding:
            self._isEnding = True
            try:
                ending = startNow(self.session.end())
            except Exception:
                log.failure("ending a session failed")
                return None
            if isinstance(ending, Deferred):
                self._ending = ending.addErrback(
                    lambda failure: log.failure("ending a session failed", failure)
                )
        return self._ending

    def readConnectionLost(self) -> None:
        """
        The client has closed its half: it gets the answers to what it sent.
        See L{IHalfCloseableProtocol}.
        """
        self._readEnded = True
        if self._reason:
            transport: Any = self.transport
            transport.loseConnection()
        elif self._running is None and not self._input:
            self._close("closed by the client")

    def writeConnectionLost(self) -> None:
        """
        Our half is closed.  See L{IHalfCloseableProtocol}.
        """
        if self._readEnded:
            transport: Any = self.transport
            transport.loseConnection()

    def _close(self, reason: str) -> None:
        """
        Close our end in order: what is written still arrives, and what the
        client still sends is read, or a reset might overtake our last words.
        """
        if self._reason:
            return
        self._reason = reason
        self.clearLineBuffer()
        self._sender.flushNow()
        self._sender.release()
        # Before the connection may be over at once.
        self._setLimit(self._limits.closing)
        self._closingNow().inOrder(self._sender.isFull)

    def _closingNow(self) -> Closing:
        if self._closing is None:
            self._closing = Closing(self.transport, self._clock)
        return self._closing

    def closeFully(self) -> None:
        """
        The client has had its time to close its own end.
        """
        self._stopTimers()
        self._closingNow().fully(self._policy.stallTimeout)

    def _abort(self, reason: str) -> None:
        """
        Close at once, so that nothing that was cut short looks whole.
        """
        if not self._reason:
            self._reason = reason
        self._stopTimers()
        self.clearLineBuffer()
        self._closingNow().abort()

    def _cancelRunning(self) -> None:
        running = self._running
        if running is not None:
            self.session.isOver = True
            running.cancel()

    def _stopTimers(self) -> None:
        self._setLimit(None)
        if self._closing is not None:
            self._closing.stopTimer()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        The connection is gone, for whatever reason.
        """
        if not hasattr(self, "_policy"):
            # It never came to be a session.
            self._ended(self)
            return
        if not self._reason:
            if self._handshaking and self.session.info.isSecure:
                self._reason = "failed the TLS handshake"
            elif reason.check(ConnectionDone):
                self._reason = "closed by the client"
            else:
                self._reason = "lost"
        self._stopTimers()
        self._cancelRunning()
        ending = self._endSession()
        if ending is None:
            self._over(None)
        else:
            ending.addBoth(self._over)

    def _over(self, _: object) -> None:
        # See connectionMade().
        self.session.tryRelease = refuseRelease
        self._tell(self._reason)
        self._ended(self)

    def _tell(self, reason: str) -> None:
        """
        One line for what is over, and begin to count anew.
        """
        session = self.session
        tls = _versionOfTLS(self.transport) if session.info.isSecure else None
        session.record.tell(session.info, tls, self._clock.seconds(), reason)


class Limits:
    """
    The time limits of the connections of one service.

    @ivar login: from the beginning to a login.
    @ivar idle: waiting for a command.
    @ivar sleep: the same, asleep.
    @ivar closing: until a client closes its end.
    """

    def __init__(self, clock: IReactorTime, policy: Policy) -> None:
        self.login = SharedTimeout(clock, policy.loginTimeout, POP3Connection.loginTooLate)
        self.idle = SharedTimeout(clock, policy.idleTimeout, POP3Connection.idleTooLong)
        self.sleep = SharedTimeout(clock, policy.sleepTimeout, POP3Connection.idleTooLong)
        self.closing = SharedTimeout(clock, policy.closeTimeout, POP3Connection.closeFully)


def _whyClosed(session: Session, reply: Reply) -> str:
    if session.state is State.CLOSED:
        return "quit"
    if reply.fault:
        return "an error of the service"
    if reply.isBadCommand:
        return "sent too many bad commands"
    return "quit" if reply.positive else "refused"


def _versionOfTLS(transport: Any) -> str:
    """
    @return: such as C{TLSv1.3}.
    """
    getHandle = getattr(transport, "getHandle", None)
    name = getattr(getHandle() if getHandle else None, "get_protocol_version_name", None)
    return str(name()) if name is not None else "TLS"
