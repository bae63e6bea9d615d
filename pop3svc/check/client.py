"""
A POP3 client that keeps the octets of replies unchanged, and limits each wait.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHandshakeListener, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

__all__ = ["Broken", "Client", "Closed", "Reply", "Silent", "expect", "isText", "show"]

# The most octets of a reply, and of a line without an end.
_MAX_REPLY = 32 * 1024 * 1024
_MAX_LINE = 65536
# The most octets of the server's output in a text for the user.
_MAX_SHOWN = 120
# Octets of the line that ends a multi-line reply.
_END = len(b".\r\n")
# Seconds that a server may take to close its end after the client has closed its own.
_CLOSING = 2.0
# Commands whose arguments are not shown, because they hold passwords.
_SECRET = (b"PASS", b"AUTH", b"XLOG", b"APOP")


class Broken(Exception):
    """
    The server breaks a rule; the text describes the server's behaviour.
    """


class Silent(Broken):
    """
    The server sent nothing within the time limit.
    """


class Closed(Broken):
    """
    The server closed the connection instead of answering.
    """


def show(octets: bytes) -> str:
    """
    @return: the octets in readable form; only the first ones if there are many.
    """
    text = repr(octets[:_MAX_SHOWN])[1:]
    return text if len(octets) <= _MAX_SHOWN else f"{text}... ({len(octets)} octets)"


def isText(octets: bytes) -> bool:
    """
    @return: whether octets are UTF-8 without control characters.
    """
    try:
        return re.search(r"[\x00-\x1f\x7f-\x9f]", octets.decode("utf-8")) is None
    except UnicodeDecodeError:
        return False


def expect(condition: bool, seen: str) -> None:
    """
    @raise Broken: the condition does not hold.
    """
    if not condition:
        raise Broken(seen)


def _redacted(command: bytes) -> str:
    """
    @return: a command for error messages, without the arguments of the commands in C{_SECRET}.
    """
    verb = command[:4].upper()
    return show(verb + b" ..." if verb in _SECRET and len(command) > 4 else command)


def _redactedSASL(line: bytes) -> str:
    """
    @param line: a line of a SASL exchange: the command AUTH, a response, or C{*}.
    @return: the line for error messages.  A response is not shown, because it may hold a password.
    """
    return _redacted(line) if line == b"*" or line[:5].upper() == b"AUTH " else "a SASL response"


@dataclass(frozen=True, slots=True)
class Reply:
    """
    One reply, unchanged.

    @ivar command: the command that the reply answers, in readable form.
    @ivar first: the first line with its end.
    @ivar body: the octets after the first line of a multi-line reply, with dot-stuffing, but
        without the line of the final dot; L{None} for any other reply.
    @ivar afterLANG: whether the client has sent LANG with a language before this reply (RFC 6856
        section 3.2).
    """

    command: str
    first: bytes
    body: bytes | None = None
    afterLANG: bool = False

    @property
    def positive(self) -> bool:
        """
        Whether the status is C{+OK}, in upper or lower case.
        """
        return self.first[:3].upper() == b"+OK"

    @property
    def text(self) -> bytes:
        """
        The text after the status indicator and a space.
        """
        return self.first.rstrip(b"\r\n").partition(b" ")[2]

    @property
    def code(self) -> bytes | None:
        """
        The response code in upper case (RFC 2449 section 8), or L{None}.
        """
        code, bracket, _ = self.text.partition(b"]")
        return code[1:].upper() if bracket and code.startswith(b"[") else None

    @property
    def content(self) -> bytes:
        """
        The body without dot-stuffing (RFC 1939 section 3).
        """
        body = self.body or b""
        return body[body.startswith(b".") :].replace(b"\r\n.", b"\r\n")

    @property
    def lines(self) -> list[bytes]:
        """
        The lines of the body without their line ends.
        """
        return self.content.removesuffix(b"\r\n").split(b"\r\n") if self.content else []

    def __str__(self) -> str:
        return f"{self.command} is answered {show(self.first)}"


@implementer(IHandshakeListener)
class Client(Protocol):
    """
    The client's end of one connection.

    @ivar isSecure: whether the TLS handshake has completed.
    @ivar lost: the reason why the connection has ended; L{None} while it is open.
    """

    def __init__(
        self, clock: IReactorTime, timeout: float, record: Callable[[Reply], object]
    ) -> None:
        """
        @param timeout: seconds without input until L{Silent} is raised.
        @param record: called with each reply.
        """
        self._clock = clock
        self._timeout = timeout
        self._record = record
        self._buffer = bytearray()
        # The number of pieces of each size that the client has received since it last sent octets.
        self._pieces: Counter[int] = Counter()
        self._before = self._last = 0
        self._waiting: Deferred[None] | None = None
        self._handshake: Deferred[None] | None = None
        self._afterLANG = False
        self.isSecure = False
        self.lost: Failure | None = None

    # --- called by the transport -------------------------------------------------

    def connectionMade(self) -> None:
        """
        See L{Protocol.connectionMade}.
        """
        transport: Any = self.transport
        transport.setTcpNoDelay(True)

    def dataReceived(self, data: bytes) -> None:
        """
        See L{Protocol.dataReceived}.
        """
        self._buffer += data
        self._before, self._last = self._last, len(data)
        self._pieces[self._last] += 1
        if len(self._buffer) > _MAX_REPLY:
            transport: Any = self.transport
            transport.abortConnection()
        self._wake()

    def handshakeCompleted(self) -> None:
        """
        See L{IHandshakeListener}.
        """
        self.isSecure = True
        handshake, self._handshake = self._handshake, None
        if handshake is not None:
            handshake.callback(None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        See L{Protocol.connectionLost}.
        """
        self.lost = reason
        handshake, self._handshake = self._handshake, None
        if handshake is not None:
            handshake.errback(reason)
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)

    # --- sending -----------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """
        Send octets unchanged.
        """
        self._pieces.clear()
        self._before = self._last = 0
        transport: Any = self.transport
        transport.write(data)

    async def sendInPieces(self, data: bytes) -> None:
        """
        Send each octet in a separate segment.
        """
        for at in range(len(data)):
            self.send(data[at : at + 1])
            await deferLater(self._clock, 0)

    async def startTLS(self, creator: Any) -> None:
        """
        Begin TLS at once.

        @param creator: the argument for C{startTLS} of the transport.
        @raise Broken: the handshake failed, or the server sent unencrypted octets before the
            handshake.  The text gives the reason.
        """
        expect(not self._buffer, f"{show(bytes(self._buffer))} comes in the clear before TLS")
        if self.lost is not None:
            raise Closed("the connection is closed before TLS")
        self._handshake = handshake = Deferred[None]()
        transport: Any = self.transport
        transport.startTLS(creator)
        handshake.addTimeout(self._timeout, self._clock)
        try:
            await handshake
        except Exception as error:
            self.abort()
            raise Broken(f"the TLS handshake fails: {_reason(error)}")

    @property
    def tlsVersion(self) -> str:
        """
        The version of TLS that was negotiated, such as C{TLSv1.3}.
        """
        transport: Any = self.transport
        return str(transport.protocol.getHandle().get_protocol_version_name())

    # --- receiving ---------------------------------------------------------------

    async def _receive(self) -> None:
        """
        Wait for more octets.
        """
        if self.lost is not None:
            raise Closed("the connection is closed" + self._pending())
        if len(self._buffer) > _MAX_REPLY:
            raise Broken(f"more than {_MAX_REPLY} octets come without an end")
        self._waiting = waiting = Deferred[None]()
        timer = self._clock.callLater(self._timeout, self._wake)
        had = len(self._buffer)
        try:
            await waiting
        finally:
            self._waiting = None
            isLate = not timer.active()
            if not isLate:
                timer.cancel()
        if isLate and len(self._buffer) == had and self.lost is None:
            raise Silent(f"nothing comes for {self._timeout:g} seconds{self._pending()}")

    def _pending(self) -> str:
        return f" after {show(bytes(self._buffer[-_MAX_SHOWN:]))}" if self._buffer else ""

    def _take(self, octets: int) -> bytes:
        taken = bytes(self._buffer[:octets])
        del self._buffer[:octets]
        return taken

    async def line(self) -> bytes:
        """
        @return: the next line with its end, CRLF or LF.
        """
        while (at := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > _MAX_LINE:
                raise Broken(f"more than {_MAX_LINE} octets come without a line end")
            await self._receive()
        return self._take(at + 1)

    async def _body(self) -> bytes:
        searched = 0
        while True:
            if self._buffer.startswith(b".\r\n"):
                self._take(3)
                return b""
            at = self._buffer.find(b"\r\n.\r\n", max(0, searched - 4))
            if at >= 0:
                body = self._take(at + 2)
                self._take(3)
                return body
            searched = len(self._buffer)
            await self._receive()

    @property
    def endedApart(self) -> bool:
        """
        Whether the last line of a multi-line reply, or the end of this line, came in a separate
        piece.  A piece is one read of a plain connection, or one record of TLS.  It is false if the
        server cuts the message into equal pieces, because then the last piece is short only by
        chance.
        """
        isCutEvenly = self._before == max(self._pieces) and self._pieces[self._before] > 1
        return 0 < self._last <= _END and not isCutEvenly

    async def reply(self, command: bytes, multiLine: bool = False) -> Reply:
        """
        Wait for the answer to a command that the caller has sent.

        @param multiLine: whether a positive answer is multi-line.
        """
        shown = _redacted(command)
        try:
            reply = Reply(shown, await self.line(), afterLANG=self._afterLANG)
        except Broken as error:
            raise type(error)(f"{shown}: {error}")
        if multiLine and reply.positive:
            try:
                reply = replace(reply, body=await self._body())
            except Broken as error:
                raise type(error)(f"{shown} has no last line of a dot and CRLF: {error}")
        self._record(reply)
        return reply

    async def command(self, command: bytes, multiLine: bool = False) -> Reply:
        """
        Send a command and wait for its answer.
        """
        self._afterLANG = self._afterLANG or command[:5].upper() == b"LANG "
        self.send(command + b"\r\n")
        return await self.reply(command, multiLine)

    async def accepted(self, command: bytes, multiLine: bool = False) -> Reply:
        """
        Send a command, wait for its answer, and expect a positive answer.

        @raise Broken: the answer is negative.
        """
        reply = await self.command(command, multiLine)
        expect(reply.positive, str(reply))
        return reply

    async def fetched(self, command: bytes) -> Reply:
        """
        Send a command, and expect a positive multi-line answer.
        """
        return await self.accepted(command, multiLine=True)

    async def refused(self, *commands: bytes) -> None:
        """
        Send commands one by one, and expect a negative answer to each.

        @raise Broken: an answer is positive.
        """
        for command in commands:
            reply = await self.command(command)
            expect(reply.first[:4].upper() == b"-ERR", str(reply))

    async def challenge(self, command: bytes) -> bytes | Reply:
        """
        Send a line of a SASL exchange.

        @return: the challenge after its C{+ }, with the line end (RFC 5034 section 4); or the reply
            that ends the exchange.
        """
        shown = _redactedSASL(command)
        self.send(command + b"\r\n")
        line = await self.line()
        if line.startswith(b"+") and line[:3].upper() != b"+OK":
            expect(line.startswith(b"+ "), f"{shown} is answered {show(line)}")
            return line[2:]
        reply = Reply(shown, line)
        self._record(reply)
        return reply

    # --- the end -----------------------------------------------------------------

    async def ended(self) -> bytes:
        """
        Wait until the server closes the connection.

        @return: the octets that the server sends before it closes.
        @raise Silent: the server does not close the connection in time.
        """
        while self.lost is None:
            had = len(self._buffer)
            try:
                await self._receive()
            except Silent:
                raise Silent(f"the connection is not closed within {self._timeout:g} seconds")
            expect(len(self._buffer) - had < _MAX_LINE, "the server does not stop sending")
        return self._take(len(self._buffer))

    @property
    def endedInOrder(self) -> bool:
        """
        Whether the server closed the connection in order.  Over TLS this requires a close alert
        (RFC 8314 section 3.4).
        """
        return self.lost is not None and self.lost.check(ConnectionDone) is not None

    async def close(self) -> None:
        """
        Close the client's end, and wait for a short time until the server has closed its own end.
        A server that has closed its end has also released the mailbox.
        """
        if self.lost is not None:
            return
        transport: Any = self.transport
        if self.isSecure:
            transport.loseConnection()
        else:
            transport.loseWriteConnection()
        timer = self._clock.callLater(min(_CLOSING, self._timeout), self.abort)
        while self.lost is None:
            self._buffer.clear()
            self._waiting = Deferred()
            await self._waiting
        if timer.active():
            timer.cancel()

    def abort(self) -> None:
        """
        Abort the connection.
        """
        if self.lost is None:
            transport: Any = self.transport
            transport.abortConnection()


def _reason(error: Exception) -> str:
    """
    @return: the reason for a failed handshake, in one line.
    """
    text = " ".join(str(part) for part in _parts(error)) or type(error).__name__
    return text.replace("\n", " ").rstrip(".")


def _parts(error: Exception) -> list[str]:
    """
    @return: the texts of an error.  OpenSSL's errors are lists of tuples whose last element
        is the text.
    """
    found = []
    for argument in error.args:
        if isinstance(argument, list):
            found += [str(each[-1] if isinstance(each, tuple) else each) for each in argument]
        elif argument:
            found.append(str(argument))
    return found
