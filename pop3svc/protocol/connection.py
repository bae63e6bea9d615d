"""
Serve one connection.  This module reads lines, runs one command at a time, begins TLS, applies time
limits and closes the connection.
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

from pop3svc.awaiting import startNow
from pop3svc.errors import POP3ResponseError
from pop3svc.languages import Language
from pop3svc.policy import Policy
from pop3svc.protocol.channelbinding import channelBinding
from pop3svc.protocol.clientcertificate import certificateNames
from pop3svc.protocol.closing import Closing, isTLS
from pop3svc.protocol.content import MessageBody
from pop3svc.protocol.dispatch import Table, lineLimit, opensMailbox, respond, verbOf
from pop3svc.protocol.framing import LineBuffer
from pop3svc.protocol.outlets import Stalled, outletTo
from pop3svc.protocol.replies import After, Reply, err, ok
from pop3svc.protocol.sender import ReplySender
from pop3svc.protocol.session import (
    Session,
    State,
    keepLanguage,
    noBinding,
    noNames,
    refuseRelease,
)
from pop3svc.timing import SharedTimeout, TimeSlice

__all__ = ["Limits", "POP3Connection"]

log = Logger(namespace="pop3svc")

# The first octet of a TLS record that begins a handshake (RFC 8446 section 5.1).  No command begins
# with this octet.
_HANDSHAKE_RECORD = 0x16
# If no more commands than this are left in the buffer, they do not wait for the next time slice.
_FEW = 4

# Looking up a global name takes less time than looking up an attribute of an enumeration.
_GO_ON, _AUTHORIZATION, _TRANSACTION = After.GO_ON, State.AUTHORIZATION, State.TRANSACTION


@implementer(IHandshakeListener, IHalfCloseableProtocol)
class POP3Connection(LineReceiver):
    """
    The server's end of one POP3 connection.  It uses the attribute C{paused} of L{LineReceiver},
    and the methods that pause and resume.  It splits the input into lines itself.  The class is
    long because Twisted reports all events of a connection to one object.

    @ivar session: the state of the client.
    """

    # Use slots, because they take less memory than a dictionary, and a service has many idle
    # connections.
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
        "_limitBegan",
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
        @param makeSession: takes the transport and returns the session.
        @param connectionCreator: the argument of C{transport.startTLS} for STLS; L{None} if STLS is
            not available.
        @param ended: called once, when the connection and its session have ended.
        @param unauthenticated: the set of all connections on which nobody is logged in.
        @param limits: the time limits, which all connections share.
        """
        self._makeSession = makeSession
        self._table = table
        self._clock = clock
        self._connectionCreator = connectionCreator
        self._ended = ended
        self._unauthenticated = unauthenticated
        # The address of the client.  The factory sets this attribute, because it counts the
        # connections of each address.
        self.address: str | None = None
        self._heardNothing = True
        self._handshaking = False
        self._running: Deferred[None] | None = None
        self._limits = limits
        # The time limit that runs now; None if there is none.
        self._limit: SharedTimeout | None = None
        self._limitBegan = 0.0
        # This object is made when the connection has to close.
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
        Whether a command is running, or input waits for the next time slice.
        """
        return self._running is not None or self.paused

    @property
    def waitsFor(self) -> str:
        """
        The event for which the session waits.  C{"command"} means the next command of the client.
        C{"client"} means that the client has to read a reply.  C{"provider"} means an answer of the
        provider.
        """
        if self._running is None:
            return "command"
        return "client" if self._sender.stalledFor() > 0 else "provider"

    @property
    def tls(self) -> str | None:
        """
        The version of TLS, such as C{"TLSv1.3"}; L{None} if the connection does not use TLS.
        """
        return _versionOfTLS(self.transport) if self.session.info.isSecure else None

    # --- beginning ------------------------------------------------------------

    def connectionMade(self) -> None:
        """
        Send the greeting (RFC 1939 section 4).
        """
        transport: Any = self.transport
        self.session = self._makeSession(transport)
        # Delete the reference to the function.  The function refers to this connection, and Python
        # frees reference cycles late.
        del self._makeSession
        self._policy = self.session.policy
        clock, isSecure = self._clock, isTLS(transport)
        self._sender = ReplySender(
            outletTo(transport, self._turns, clock, self._policy.stallTimeout, isSecure),
            "MULTI-LINE-IND" not in self._policy.without,
            self.session.record,
        )
        self._quietSince = self.session.record.began = clock.seconds()
        self._handshaking = isSecure
        setNoDelay = getattr(transport, "setTcpNoDelay", None)
        if setNoDelay is not None:
            # Switch off Nagle's algorithm, because with it the second part of a reply would wait
            # until the client has acknowledged the first part.
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
        self.session.channelBinding = self._channelBinding
        self.session.certificateNames = self._certificateNames
        self.session.useLanguage = self._useLanguage
        self._limitLogin()
        self._sender.say(ok(self.session.greeting))

    def _channelBinding(self, name: str) -> bytes | None:
        return channelBinding(self.transport, name) if self.session.info.isSecure else None

    def _certificateNames(self) -> tuple[str, ...]:
        return certificateNames(self.transport) if self.session.info.isSecure else ()

    def _useLanguage(self, language: Language | None) -> None:
        # Look up the sender now, because a tap may have replaced it.
        self._sender.useLanguage(language)

    def handshakeCompleted(self) -> None:
        """
        See L{IHandshakeListener}.
        """
        self._handshaking = False
        # Check the certificate now, so that the result is remembered.  The client may resume the
        # TLS session later.
        self._certificateNames()

    # --- lines ----------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        """
        Take octets from the client, and answer each line that is complete.
        """
        if self._reason or not data:
            # The connection is closing.  Take further input and ignore it, so that the client can
            # close its end in order.
            return
        if self._heardNothing:
            self._heardNothing = False
            if data[0] == _HANDSHAKE_RECORD and not self.session.info.isSecure:
                self._close("TLS handshake on plaintext port")
                return
        taken = self._input
        isFree = self._running is None and not self.paused
        if isFree and not taken.held and data.find(b"\n") == len(data) - 1 and not self._isTaking:
            # Most clients send one whole line and wait.  Such a line needs no buffer.
            self._takeLines(data[:-1])
            return
        taken.feed(data)
        if taken.held > self._policy.maxInputHeld:
            self._abort("pipelined too much input")
            return
        if isFree:
            self._takeLines()
        elif not self.paused:
            # Leave further input in the kernel while a command is running.
            self.pauseProducing()

    def clearLineBuffer(self) -> bytes:
        """
        Drop the buffered input.

        @return: the dropped octets.
        """
        return self._input.clear()

    def _takeLines(self, line: bytes | None = None) -> None:
        """
        Answer the buffered lines, until a command has to wait or the time slice is over.

        @param line: a line that came before the buffered lines.
        """
        if self._isTaking:
            return
        self._isTaking = True
        taken, turns = self._input, self._turns
        lines = taken.lines
        now = turns.restart()
        if turns.isLate:
            if line is not None:
                taken.feed(line + b"\n")
                line = None
            if self._waits(False):
                self._isTaking = False
                # Send the replies to earlier commands, and restart the time limit, because the
                # client has sent a line.
                self._sender.flushNow()
                self._awaitLine(now)
                return
        if line is None and lines:
            line = taken.next()
        isNew = line is not None
        try:
            while line is not None:
                self.lineReceived(line)
                if self._running is not None or self.paused or not lines:
                    break
                # Read the attribute again, because lineReceived() may have replaced the sender for
                # a tap.
                if self._sender.isCrowded:
                    self._run(self._sender.flush())
                    if self._running is not None or self._reason:
                        break
                if turns.isOver() and self._waits(len(lines) > _FEW):
                    break
                line = taken.next()
        finally:
            self._isTaking = False
        if self._running is not None or self._reason:
            return
        if taken.partial and not lines and len(taken.partial) >= self._policy.maxAuthLineLength:
            self.lineLengthExceeded(taken.partial)
            return
        if not self._sender.flushShort():
            # Write the gathered replies, because all lines are answered, or the time slice is over.
            self._run(self._sender.flush())
            if self._running is not None or self._reason:
                return
        if self._readEnded and not lines:
            self._close("closed by the client")
        elif isNew or self._limit is None:
            # Do not restart a running time limit for a part of a line.
            self._awaitLine(now)

    def _waits(self, isLong: bool) -> bool:
        """
        Let the reactor serve other connections before the buffered lines are answered, if these
        lines take long.  A line that opens a mailbox waits until all other clients have had their
        turn, because many users may log in at the same time.

        @param isLong: whether the lines take long even if none of them opens a mailbox.
        @return: whether the lines wait.
        """
        lines, session, table = self._input.lines, self.session, self._table
        if lines and opensMailbox(session, lines[-1], table):
            self._turns.callLast(self._nextTurn)
        elif isLong:
            self._turns.callNext(self._nextTurn)
        else:
            return False
        self.pauseProducing()
        return True

    def lineReceived(self, line: bytes) -> None:
        """
        Answer one line.  If the command in this line has to wait, all later lines wait as well.
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
            if type(reply) is Reply:
                if reply.body is None:
                    self._sender.gather(reply)
                    self._sent(reply)
                    return
                if self._sender.gatherShort(reply):
                    self._count(reply.body)
                    self._sent(reply)
                    return
        except Exception:
            self._failed(Failure())
            return
        self._run(self._serve(reply))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        """
        Run a coroutine.  If the coroutine has to wait, no line is answered until the coroutine has
        ended.
        """
        try:
            running = startNow(work)
        except Exception:
            self._failed(Failure())
            return
        if isinstance(running, Deferred):
            # Send the gathered replies now, so that they do not wait for this work.
            self._sender.flushNow()
            self._running = running
            if not self._isUnauthenticated:
                # No time limit runs while a command is running, except the limit for the login.
                self._setLimit(None)
            running.addCallbacks(lambda _: None, self._failed).addCallback(self._goOn)

    def lineLengthExceeded(self, line: bytes) -> None:
        """
        Refuse a line that is too long (RFC 2449 section 4), and close.
        """
        self._sender.say(err("Line is too long."))
        self._close("sent a line that is too long")

    async def _watched(self, line: bytes) -> Reply:
        """
        Answer a line, and log the command.
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
        if await self._sender.send(reply):
            self._count(reply.body)
        self._sent(reply)

    def _count(self, body: object) -> None:
        """
        Count a body that was sent whole, if the body is a message.  Do not count listings.
        """
        if isinstance(body, MessageBody):
            record = self.session.record
            record.messagesSent += 1
            record.messageOctets += body.octets

    def _sent(self, reply: Reply) -> None:
        """
        Carry out the action that belongs to a reply, and adapt the time limits to the new state.
        """
        if reply.then is not _GO_ON:
            if reply.then is After.START_TLS:
                self._startTLS()
            else:
                self._close(_whyClosed(self.session, reply))
            if self._reason:
                return
        if (self.session.state is _AUTHORIZATION) is not self._isUnauthenticated:
            if self._isUnauthenticated:
                self._endLoginLimit()
            else:
                # Start the limit for a login again, because the user has logged out.
                self._tell("logged out")
                self._limitLogin()
        elif self._isLate:
            self._sayTooLate()
            return
        if self._stopping:
            self._sayStopping()

    def _goOn(self, _: object) -> None:
        """
        Go on with the input after a command that had to wait.
        """
        self._running = None
        wasPaused, self.paused = self.paused, False
        if not self._reason:
            # Check these attributes here as well, because _sent() is not called after a flush.
            if self._isLate:
                self._sayTooLate()
            elif self._stopping:
                self._sayStopping()
            else:
                self._takeLines()
        if wasPaused and not self.paused:
            if self._running is not None and not self._reason:
                # The next command has to wait, too.  Read nothing more meanwhile, because each
                # such command would otherwise add the octets of a read to the buffer.
                self.paused = True
            else:
                transport: Any = self.transport
                transport.resumeProducing()

    def _nextTurn(self) -> None:
        if self._running is None and self.paused:
            self._goOn(None)

    def _failed(self, failure: Failure) -> None:
        if failure.check(Stalled):
            self._abort("stopped reading")
        elif self._reason or failure.check(ConnectionLost):
            # The connection is closing, or the client has disconnected.
            self._abort("lost")
        else:
            # Do not log a POP3ResponseError, because a provider raises it for a failure that it has
            # foreseen.
            if not failure.check(POP3ResponseError):
                log.failure(
                    "connection {connectionID}: a reply failed midway",
                    failure,
                    pop3Event="error",
                    connectionID=self.session.info.connectionID,
                )
            # Send the earlier replies, because they are complete.
            self._sender.flushNow()
            self._abort("a reply failed midway")

    def _startTLS(self) -> None:
        transport: Any = self.transport
        self._sender.flushNow()
        self._sender.startTLS()
        # Forget the language, because an attacker may have chosen it before the connection was
        # encrypted.
        self._sender.useLanguage(None)
        if self.clearLineBuffer():
            # The buffered input was sent as plain text.  An attacker may have inserted it, and it
            # would run as commands inside TLS.
            self._abort("sent plain text after STLS")
            return
        self._handshaking = True
        self.session.info.isSecure = True
        transport.startTLS(self._connectionCreator)

    # --- time -----------------------------------------------------------------

    def _awaitLine(self, now: float) -> None:
        """
        Limit the wait for the next line.  Before a login, the limit for the login is the only limit
        that runs.

        @param now: the present time in seconds of the clock.
        """
        self._quietSince = now
        state = self.session.state
        if state is _AUTHORIZATION:
            return
        limit = self._limits.idle if state is _TRANSACTION else self._limits.sleep
        if limit is not self._limit or now - self._limitBegan >= limit.slack:
            self._limitBegan = now
            self._setLimit(limit)

    def _setLimit(self, limit: SharedTimeout | None) -> None:
        """
        Begin a time limit, and end the limit that was running before.

        @param limit: the new time limit; L{None} if none begins.
        """
        before, self._limit = self._limit, limit
        if before is not None and before is not limit:
            before.end(self)
        if limit is not None:
            limit.begin(self)

    def quietSince(self) -> float:
        """
        @return: the time at which the wait for the next line began, in seconds of the clock.
        """
        return self._quietSince

    def idleTooLong(self) -> None:
        """
        Close the connection, because the client has sent no command for too long.  Send no reply
        (RFC 1939 section 3).  Unlock the mailbox now and not when the client closes its end.
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
        Close the connection, because nobody has logged in within the time limit.
        """
        if self._running is not None:
            # Wait for the end of the running command, because it may be the login.  Then _sent() or
            # _goOn() checks again.
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
        Close the connection because the service stops.  If a command is running, close after it.
        """
        self._stopping = True
        if self._reason:
            # The connection is closing already.  Do not wait until the client closes its end.
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
        Abort the connection, even if a command is running.

        @param reason: the reason in the log.
        """
        self._abort(reason)

    def end(self, reason: str) -> None:
        """
        End the session now, and do not delete the marked messages.  Abort the connection if a
        command or the TLS handshake is running.  Otherwise close the connection in order.

        @param reason: the reason in the log.
        """
        if self._running is None and not self._handshaking:
            self._close(reason)
        else:
            self._abort(reason)
        self._endSession()

    def _tryRelease(self, isMarked: bool) -> bool:
        """
        End this session if its client has sent or read nothing for long enough, because another
        session of the user wants the mailbox.  Do not delete the marked messages.

        @param isMarked: whether at least one message is marked for deletion.
        @return: whether the session ends.
        """
        if self._reason:
            return False
        policy = self._policy
        enough = policy.takeoverMarked if isMarked else policy.takeoverIdle
        if self._running is not None:
            # Abort only if the client has read nothing of a reply for long enough.  Such a client
            # has probably gone.
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
        End the session and release the mailbox.  Further calls of this method do nothing.

        @return: a Deferred that fires when the session has ended; L{None} if the session has ended
            already.
        """
        if not self._isEnding:
            self._isEnding = True
            try:
                ending = self.session.end()
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
        Answer the remaining lines and then close the connection, because the client has closed its
        half.  See L{IHalfCloseableProtocol}.
        """
        self._readEnded = True
        if self._reason:
            transport: Any = self.transport
            transport.loseConnection()
        elif self._running is None and not self._input.lines:
            self._close("closed by the client")

    def writeConnectionLost(self) -> None:
        """
        Close the connection if both halves are closed.  See L{IHalfCloseableProtocol}.
        """
        if self._readEnded:
            transport: Any = self.transport
            transport.loseConnection()

    def _close(self, reason: str) -> None:
        """
        Close our end in order.  Data that was written before still arrives.  The connection goes on
        reading, because otherwise the kernel could send a reset, and the client could lose our last
        reply.

        @param reason: the reason in the log.
        """
        if self._reason:
            return
        self._reason = reason
        self.clearLineBuffer()
        self._sender.flushNow()
        self._sender.release()
        # Begin the time limit first.  The next call may call connectionLost(), which ends the
        # limit.
        self._setLimit(self._limits.closing)
        self._closingNow().inOrder(self._sender.isFull)

    def _closingNow(self) -> Closing:
        if self._closing is None:
            self._closing = Closing(self.transport, self._clock)
        return self._closing

    def closeFully(self) -> None:
        """
        Close both ends, and do not wait until the client closes its own end.
        """
        self._stopTimers()
        self._closingNow().fully(self._policy.stallTimeout)

    def _abort(self, reason: str) -> None:
        """
        Abort the connection; see L{Closing.abort}.

        @param reason: the reason in the log.
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
        End the session, because the connection is lost.
        """
        if not hasattr(self, "_policy"):
            # There is no session, because connectionMade() was not called or has failed.
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
        # Delete the references to methods of this connection, because Python frees reference cycles
        # late.
        self.session.tryRelease = refuseRelease
        self.session.channelBinding = noBinding
        self.session.certificateNames = noNames
        self.session.useLanguage = keepLanguage
        self._tell(self._reason)
        self._ended(self)

    def _tell(self, reason: str) -> None:
        """
        Write the line of the log for a logout or for the end of the connection.  Then restart the
        counters.
        """
        session = self.session
        session.record.tell(session.info, self.tls, self._clock.seconds(), reason)


class Limits:
    """
    The time limits of the connections of one service.

    @ivar login: limits the time until somebody has logged in.
    @ivar idle: limits the wait for a command.
    @ivar sleep: limits the wait for a command if the session is asleep.
    @ivar closing: limits the wait for the client to close its end.
    """

    def __init__(self, clock: IReactorTime, policy: Policy) -> None:
        self.login = SharedTimeout(clock, policy.loginTimeout, POP3Connection.loginTooLate)
        passed, began = POP3Connection.idleTooLong, POP3Connection.quietSince
        self.idle = SharedTimeout(clock, policy.idleTimeout, passed, began)
        self.sleep = SharedTimeout(clock, policy.sleepTimeout, passed, began)
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
    @return: the version of TLS, such as C{TLSv1.3}; C{TLS} if the version is not known.
    """
    getHandle = getattr(transport, "getHandle", None)
    name = getattr(getHandle() if getHandle else None, "get_protocol_version_name", None)
    return str(name()) if name is not None else "TLS"
