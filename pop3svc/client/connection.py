"""
Exchange lines with a POP3 server, find the replies to commands, and apply time limits.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure

from pop3svc.client.decoding import Lines, LineTooLong
from pop3svc.client.exchanges import Command, Patience, Queue
from pop3svc.client.failures import CommandRefused, ServerUnavailable, reasonOfLoss
from pop3svc.client.logins import decoded
from pop3svc.client.message import Message

__all__ = ["LONGEST_COMMAND", "LONGEST_LINE", "REPLY_TIMEOUT", "ClientConnection"]

# Seconds until a reply begins, and between two pieces of a message or a long reply.  The number is
# less than the default of answerTimeout.  If a service uses the client, this limit therefore
# applies first, and the log names the server as the cause.
REPLY_TIMEOUT = 30
# The most octets of a line of a reply.  RFC 2449 section 4 allows 512 octets.
LONGEST_LINE = 4096
# The most octets of a command without its line end.  RFC 2449 section 4 allows 255 octets, but the
# names and passwords of some services are longer.
LONGEST_COMMAND = 2048


class ClientConnection(Protocol):
    """
    Sends commands, and finds the reply to each.

    @ivar isLost: whether the connection has ended, or must not be used.
    @ivar why: the reason of the loss, in words that follow the server's address in a sentence.
    """

    def __init__(self, clock: Any, replyTimeout: float = REPLY_TIMEOUT) -> None:
        """
        @param clock: the clock of the time limits.
        @param replyTimeout: seconds until a reply begins, and between two pieces of a long reply.
        """
        self.clock = clock
        self.isLost = False
        self.why = ""
        self._input = Lines(LONGEST_LINE)
        self._patience = Patience(clock, replyTimeout, self.abort)
        self._queue = Queue(self._write)
        self._isPaused = False
        self._message: Message | None = None
        self._inLines = False
        self._text = b""
        self._greeted: Deferred[bytes] = Deferred()
        self._isGreeted = False

    # --- the connection -------------------------------------------------------------

    def connectionMade(self) -> None:
        """
        Begin to wait for the greeting.
        """
        self._patience.begin()

    def greeting(self) -> Deferred[bytes]:
        """
        Wait for the greeting.  Call this method only once.

        @return: the text of the greeting.
        """
        return self._greeted

    def abort(self, why: str) -> None:
        """
        End the connection at once, for example because the server has broken the protocol or a
        limit.

        @param why: the reason, as a predicate whose subject is the server's address, such as
            C{sends too slowly}.
        """
        self.why = self.why or why
        self.isLost = True
        self._patience.end()
        transport: Any = self.transport
        transport.abortConnection()

    def pauseReading(self) -> None:
        """
        Stop reading until L{resumeReading} is called.
        """
        self._isPaused = True
        self._patience.pause()
        transport: Any = self.transport
        transport.pauseProducing()

    def resumeReading(self) -> None:
        """
        Go on reading after L{pauseReading}.
        """
        self._isPaused = False
        self._patience.resume()
        transport: Any = self.transport
        transport.resumeProducing()

    def connectionLost(self, reason: Failure = Failure(ServerUnavailable("is away"))) -> None:  # noqa: B008
        """
        See L{Protocol.connectionLost}.
        """
        self.isLost = True
        self._patience.end()
        self.why = self.why or reasonOfLoss(reason.value)
        error = self._lost(type(reason.value).__name__)
        if not self._isGreeted:
            self._isGreeted = True
            self._greeted.errback(error)
        message, self._message = self._message, None
        if message is not None:
            message.lost()
        for each in self._queue.takeAll():
            if not each.reply.called:
                each.reply.errback(error)

    def _lost(self, name: str = "") -> ServerUnavailable:
        detail = f" ({name})" if name else ""
        return ServerUnavailable(self.why or f"closed the connection{detail}")

    def leave(self) -> None:
        """
        End the session by QUIT, without waiting for the server.  If commands wait for replies, end
        the connection at once.
        """
        if self.isLost:
            return
        if not self._queue.isEmpty:
            self.abort("was disconnected")
            return
        self._command(b"QUIT", isAlone=True).addErrback(lambda _: None)
        self._close()

    def _close(self) -> None:
        wasLost, self.isLost = self.isLost, True
        transport: Any = self.transport
        transport.loseConnection()
        if not wasLost:
            # Limit the time for the end, because a connection with TLS does not end before the
            # server has answered.
            self._patience.begin()

    # --- input ----------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        """
        Split the input into lines, and pass the pieces of a message on as they arrive.
        """
        self._patience.progressed(len(data))
        self._input.add(data)
        try:
            while not (self._input.isEmpty or self._isAborted()):
                if self._message is not None:
                    self._feed(self._message)
                    continue
                line = self._input.line()
                if line is None:
                    return
                self._line(line)
        except LineTooLong:
            self.abort("sends a line that is too long")
        except ValueError:
            self.abort("sends a malformed reply")

    def _isAborted(self) -> bool:
        # leave() sets isLost, but does not abort the connection.  The reply to QUIT must still be
        # read.
        return self.isLost and bool(self.why)

    def _feed(self, message: Message) -> None:
        rest = message.feed(self._input.rest())
        if rest is not None:
            self._message = None
            self._input.add(rest)
            self._complete()

    def _line(self, line: bytes) -> None:
        if not self._isGreeted:
            self._greet(line)
        elif self._inLines:
            self._rowOrEnd(line)
        elif self._queue.first is None:
            self.abort("sends a line that answers no command")
        else:
            self._status(self._queue.first, line)

    def _greet(self, line: bytes) -> None:
        isOK, text = _statusOf(line)
        self._patience.end()
        self._isGreeted = True
        if isOK:
            self._greeted.callback(text)
        else:
            self.abort("refuses the connection")
            self._greeted.errback(self._lost())

    def _status(self, command: Command, line: bytes) -> None:
        if command.mayContinue and (line == b"+" or line.startswith(b"+ ")):
            self._complete(decoded(line[2:]))
            return
        isOK, text = _statusOf(line)
        if not isOK:
            self._complete(Failure(CommandRefused(text)))
            return
        if command.begun is not None:
            # If the reply is a message, command.begun must make the Message object now, because
            # octets of the message may follow in the same packet.
            command.begun(text)
        if self._message is not None:
            # Pass the message to the caller now, so that the caller can read it while it arrives.
            self._fire(command, self._message)
        elif command.consume is not None:
            self._inLines, self._text = True, text
        else:
            self._complete(None if command.mayContinue else text)

    def _rowOrEnd(self, line: bytes) -> None:
        command = self._queue.first
        assert command is not None and command.consume is not None
        if line == b".":
            self._inLines = False
            self._complete(self._text)
        else:
            command.consume(line[1:] if line.startswith(b".") else line)

    def _beginWaiting(self) -> None:
        self._patience.begin()
        if self._isPaused:
            # A reply may end while reading is paused, because TLS may deliver octets that were
            # received before the pause.
            self._patience.pause()

    @staticmethod
    def _fire(command: Command, result: Any) -> None:
        if not command.reply.called:
            command.reply.callback(result)

    def _complete(self, result: Any = None) -> None:
        """
        End the first command, because its reply is complete.
        """
        command = self._queue.answered()
        if not (self._queue.isPipelining or self._input.isEmpty):
            # Refuse further octets, because they would be taken for the reply to the next command.
            self.abort("sends a line that answers no command")
        elif self._queue.first is None and not self.isLost:
            self._patience.end()
        else:
            self._beginWaiting()
        # Send the waiting commands before the caller gets the result, because the caller may then
        # add another command.
        if not self.isLost:
            self._send()
        self._fire(command, result)

    # --- output ---------------------------------------------------------------------

    def _write(self, data: bytes) -> None:
        transport: Any = self.transport
        transport.write(data)

    def _send(self) -> None:
        wasIdle = self._queue.first is None
        self._queue.send()
        if wasIdle and self._queue.first is not None:
            self._beginWaiting()

    def _command(self, line: bytes, **more: Any) -> Deferred[Any]:
        """
        @param more: further arguments for L{Command}.
        """
        if set(line) & {0, 10, 13}:
            raise ValueError("a command must not contain CR, LF or NUL")
        if len(line) > LONGEST_COMMAND and not more.get("mayContinue"):
            raise ValueError(f"a command must not have more than {LONGEST_COMMAND} octets")
        if self.isLost:
            return fail(self._lost())
        reply: Deferred[Any] = Deferred(self._cancelled)
        wasIdle = self._queue.first is None
        self._queue.add(Command(line + b"\r\n", reply, **more))
        if wasIdle:
            self._beginWaiting()
        return reply

    def _cancelled(self, reply: Deferred[Any]) -> None:
        # End the connection, because the late reply would be taken for the reply to the next
        # command.
        self.abort("was disconnected, because the session ended")
        reply.errback(CancelledError())


def _statusOf(line: bytes) -> tuple[bool, bytes]:
    """
    @return: whether a status line is positive, and its text.
    @raise ValueError: the line is not a status line.
    """
    status, _, text = line.partition(b" ")
    if status.upper() not in (b"+OK", b"-ERR"):
        raise ValueError
    return status == b"+OK" or status.upper() == b"+OK", text
