"""
Carry out SMTP commands one after the other, on Twisted's SMTP protocol.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from twisted.mail.smtp import SMTP
from twisted.python.failure import Failure
from zope.interface import implementer

from pop3svc.awaiting import startNow
from pop3svc.policy import Policy

__all__ = ["Endless", "SerialSMTP"]

log = Logger(namespace="pop3svc")

# The most octets of a command with its CRLF.  RFC 5321 section 4.5.3.1.4 requires 512 octets, and
# extensions need more.
_LONGEST = 1000
# The most octets that may wait while a command runs.  The number is enough for a few reads of the
# socket.  No more octets arrive, because reading is paused while a command runs.
_HELD = 262_144

_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")


class Endless(Exception):
    """
    The client goes on sending a message that is too large.
    """


@implementer(IPushProducer)
class SerialSMTP(SMTP):
    """
    The server's side of a connection.

    Twisted's class provides the reply format, the dispatch of commands and the timer.  LMTP needs a
    different behaviour in three points.  A command waits until the previous command is answered.  A
    line that is too long counts as one line.  Nothing is read from a client that does not read its
    replies.
    """

    noisy = False

    def __init__(self, clock: Any, policy: Policy, host: bytes) -> None:
        """
        @param host: the name of this machine.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.host = host
        self._clock = clock
        self._policy = policy
        self._input = b""
        # Whether a line that is too long is being dropped, and the number of its octets that were
        # dropped so far.
        self._isSkipping = False
        self._skipped = 0
        self._running: Deferred[None] | None = None
        self._isFull = False
        # Whether any octets of the client have arrived.
        self._hasHeard = False
        self._isClosing = False
        # Whether the connection closes without an answer to the close alert of TLS.
        self._isImpatient = False
        # Whether the service is stopping.
        self._isStopping = False
        self._bad = 0

    def _receiver(self) -> Callable[[bytes], Coroutine[Any, Any, None]] | None:
        """
        @return: a function that takes the next octets of a message; L{None} while commands arrive
            instead.
        """
        raise NotImplementedError

    def lookupMethod(self, command: bytes) -> Any:
        """
        See L{SMTP.lookupMethod<twisted.mail.smtp.SMTP.lookupMethod>}.

        @return: the function that carries out a command; L{None} if the command is not known.  The
            function takes the argument of the command (str), and may return a coroutine.
        """
        raise NotImplementedError

    # --- the connection -----------------------------------------------------------------

    def connectionMade(self) -> None:
        """
        See L{Protocol.connectionMade<twisted.internet.protocol.Protocol.connectionMade>}.
        """
        transport: Any = self.transport
        transport.registerProducer(self, True)
        self._say(220, f"{self.host.decode('ascii')} pop3svc LMTP")
        self._startTimer(self._policy.lmtpTimeout)

    def callLater(self, period: float, call: Callable[[], object]) -> Any:
        """
        See L{twisted.protocols.policies.TimeoutMixin.callLater}.
        """
        return self._clock.callLater(period, call)

    def connectionLost(self, reason: Failure | None = None) -> None:
        """
        See L{Protocol.connectionLost<twisted.internet.protocol.Protocol.connectionLost>}.  The
        running command is cancelled.
        """
        self._startTimer(None)
        self._isClosing = True
        self._input = b""
        if self._running is not None:
            self._running.cancel()

    def timeoutConnection(self) -> None:
        """
        See L{twisted.protocols.policies.TimeoutMixin.timeoutConnection}.
        """
        transport: Any = self.transport
        if self._isFull or self._isImpatient:
            # Send no reply, because the client does not read replies either.
            transport.abortConnection()
        elif self._isClosing:
            # The client has not answered the close alert of TLS.  Close without its answer.  An
            # abort now could lose replies on the way to the client.
            self._isImpatient = True
            self._startTimer(self._policy.closeTimeout)
            transport.loseConnection()
        else:
            self._close(421, "4.4.2 Nothing came for too long.")

    def stop(self) -> None:
        """
        End the connection because the service stops.  If a command runs, wait for its end.
        """
        self._isStopping = True
        if self._running is None:
            self._close(421, "4.3.2 The service stops.")
        else:
            self._isClosing = True

    def _close(self, code: int, text: str) -> None:
        transport: Any = self.transport
        self._isClosing = True
        self._say(code, text)
        transport.unregisterProducer()
        # Begin the time limit first, because the next call may end the connection.  With TLS the
        # connection waits for the close alert of the client.
        self._startTimer(self._policy.closeTimeout)
        transport.loseConnection()

    def _say(self, code: int, text: str) -> None:
        self.sendCode(code, text.encode("ascii", "replace"))  # type: ignore[no-untyped-call]

    def _startTimer(self, seconds: float | None) -> None:
        """
        Limit the time to wait for input.

        @param seconds: the limit; L{None} for no limit, as while a command runs.
        """
        self.setTimeout(seconds)  # type: ignore[no-untyped-call]

    def pauseProducing(self) -> None:
        """
        See L{IPushProducer.pauseProducing}.  Read no more from a client that does not read its
        replies.
        """
        self._isFull = True
        if self._hasHeard:
            # Do not pause before the client has sent something, because over TLS the greeting waits
            # for the input of the handshake.
            cast(Any, self.transport).pauseProducing()

    def resumeProducing(self) -> None:
        """
        See L{IPushProducer.resumeProducing}.
        """
        self._isFull = False
        if self._running is None and not self._isClosing:
            cast(Any, self.transport).resumeProducing()
            self._proceed()

    def stopProducing(self) -> None:
        """
        See L{twisted.internet.interfaces.IProducer.stopProducing}.
        """

    # --- input ------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        """
        See L{Protocol.dataReceived<twisted.internet.protocol.Protocol.dataReceived>}.
        """
        if self._isClosing:
            return
        self._hasHeard = True
        self._input += data
        if len(self._input) > _HELD:
            cast(Any, self.transport).abortConnection()
            return
        if self._running is None:
            self.resetTimeout()  # type: ignore[no-untyped-call]
            self._proceed()

    def _proceed(self) -> None:
        """
        Handle the octets that have arrived, until a command has to wait.
        """
        while self._input and not (self._running or self._isClosing or self._isFull):
            receive = self._receiver()
            if receive is not None:
                data, self._input = self._input, b""
                self._perform(receive(data))
            else:
                line = self._nextLine()
                if line is None:
                    return
                self._command(line)

    def _nextLine(self) -> bytes | None:
        """
        @return: the next command; L{None} if it has not arrived completely.
        """
        while True:
            line, end, rest = self._input.partition(b"\r\n")
            if not end:
                if len(self._input) > _LONGEST:
                    self._isSkipping = True
                    self._skipped += len(self._input)
                    self._input = self._input[-1:]
                if self._skipped > _HELD:
                    self._close(421, "5.5.2 The line is too long.")
                return None
            self._input = rest
            if not self._isSkipping and len(line) + 2 <= _LONGEST:
                return line
            self._isSkipping, self._skipped = False, 0
            self._refuse(500, "5.5.2 The line is too long.")
            if self._isClosing:
                return None

    def _command(self, line: bytes) -> None:
        verb, _, argument = line.partition(b" ")
        method = None
        if verb.isalpha() and not _CONTROL.search(line):
            method = self.lookupMethod(verb)
        if method is None:
            self._refuse(500, "5.5.1 The command is not known.")
            return
        try:
            text = argument.strip().decode("utf-8")
        except UnicodeDecodeError:
            self._refuse(501, "5.5.2 The argument is not UTF-8.")
            return
        answer = method(text)
        if answer is not None:
            self._perform(answer)

    def _refuse(self, code: int, text: str) -> None:
        """
        Answer an invalid command.
        """
        self._bad += 1
        if self._bad > self._policy.maxBadCommands:
            self._close(421, "4.7.0 Too many invalid commands.")
        else:
            self._say(code, text)

    def _perform(self, work: Coroutine[Any, Any, None]) -> None:
        """
        Carry out a command, and read no further input meanwhile.
        """
        try:
            result = startNow(work)
        except Exception:
            self._failed(Failure())
            return
        if not isinstance(result, Deferred):
            return
        self._running = result
        self._startTimer(None)
        cast(Any, self.transport).pauseProducing()
        result.addErrback(self._failed).addCallback(self._performed)

    def _failed(self, failure: Failure) -> None:
        if not failure.check(CancelledError, Endless):
            log.failure("an LMTP command failed", failure)
        if not self._isClosing:
            if failure.check(Endless):
                self._close(421, "5.3.4 The message is too large.")
            else:
                self._close(421, "4.3.0 The service has a fault.")

    def _performed(self, _: object) -> None:
        self._running = None
        if not cast(Any, self.transport).connected or self._isClosing:
            if self._isStopping and cast(Any, self.transport).connected:
                self._close(421, "4.3.2 The service stops.")
            return
        self._startTimer(self._policy.lmtpTimeout)
        if not self._isFull:
            cast(Any, self.transport).resumeProducing()
        self._proceed()
