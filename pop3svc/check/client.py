"""
A POP3 client that shows the octets as they came, and never waits for ever.
"""

from __future__ import annotations

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

__all__ = ["Broken", "Client", "Closed", "Reply", "Silent", "expect", "show"]

# What one reply may hold, octets; and one line that is not ended.
_MOST = 32 * 1024 * 1024
_LONGEST = 65536
# What is shown of what was seen, octets.
_SHOWN = 120
# The line that ends a multi-line reply, octets.
_END = len(b".\r\n")
# How long a server may take to close its end after ours, seconds.
_CLOSING = 2.0
# Commands whose arguments nobody needs to see.
_SECRET = (b"PASS", b"AUTH", b"XLOG", b"APOP")


class Broken(Exception):
    """
    A rule is broken; the text says what was seen.
    """


class Silent(Broken):
    """
    Nothing came within the time given.
    """


class Closed(Broken):
    """
    The server closed the connection where an answer was due.
    """


def show(octets: bytes) -> str:
    """
    @return: octets for people to read, cut where they are many.
    """
    text = repr(octets[:_SHOWN])[1:]
    return text if len(octets) <= _SHOWN else f"{text}... ({len(octets)} octets)"


def expect(condition: bool, seen: str) -> None:
    """
    @raise Broken: the condition does not hold.
    """
    if not condition:
        raise Broken(seen)


def _told(command: bytes) -> str:
    """
    A command as it may be shown.
    """
    verb = command[:4].upper()
    return show(verb + b" ..." if verb in _SECRET and len(command) > 4 else command)


@dataclass(frozen=True, slots=True)
class Reply:
    """
    One reply, as it came.

    @ivar command: what it answers, for people to read.
    @ivar first: the first line with its end.
    @ivar body: of a multi-line reply: the octets behind the first line, still
        dot-stuffed, without the dot line at the end; else L{None}.
    @ivar afterLANG: was a language chosen (RFC 6856 section 3.2)?
    """

    command: str
    first: bytes
    body: bytes | None = None
    afterLANG: bool = False

    @property
    def positive(self) -> bool:
        """
        Is it C{+OK}, in any case?
        """
        return self.first[:3].upper() == b"+OK"

    @property
    def text(self) -> bytes:
        """
        What follows the status indicator and a space.
        """
        return self.first.rstrip(b"\r\n").partition(b" ")[2]

    @property
    def code(self) -> bytes | None:
        """
        The response code in upper case (RFC 2449 section 8), L{None} if there
        is none.
        """
        code, bracket, _ = self.text.partition(b"]")
        return code[1:].upper() if bracket and code.startswith(b"[") else None

    @property
    def content(self) -> bytes:
        """
        The body without its dot-stuffing (RFC 1939 section 3).
        """
        body = self.body or b""
        return body[body.startswith(b".") :].replace(b"\r\n.", b"\r\n")

    @property
    def lines(self) -> list[bytes]:
        """
        The lines of the body without their ends.
        """
        return self.content.removesuffix(b"\r\n").split(b"\r\n") if self.content else []

    def __str__(self) -> str:
        return f"{self.command} is answered {show(self.first)}"


@implementer(IHandshakeListener)
class Client(Protocol):
    """
    The client's end of one connection.

    @ivar isSecure: was the TLS handshake completed?
    @ivar lost: why the connection is over, L{None} while it is not.
    """

    def __init__(
        self, clock: IReactorTime, timeout: float, record: Callable[[Reply], object]
    ) -> None:
        """
        @param timeout: seconds without an octet until L{Silent} is raised.
        @param record: called with each reply.
        """
        self._clock = clock
        self._timeout = timeout
        self._record = record
        self._buffer = bytearray()
        # How many octets came at once, and how often, since something was sent.
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
        if len(self._buffer) > _MOST:
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
        Send octets as they are.
        """
        self._pieces.clear()
        self._before = self._last = 0
        transport: Any = self.transport
        transport.write(data)

    async def sendInPieces(self, data: bytes) -> None:
        """
        Send each octet in a segment of its own.
        """
        for at in range(len(data)):
            self.send(data[at : at + 1])
            await deferLater(self._clock, 0)

    async def startTLS(self, creator: Any) -> None:
        """
        Begin TLS at once.

        @param creator: what C{startTLS} of a client's transport takes.
        @raise Broken: the handshake failed, or something in the clear came
            before it; the text says why.
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

    async def _more(self) -> None:
        """
        Wait for more octets.
        """
        if self.lost is not None:
            raise Closed("the connection is closed" + self._leftOver())
        if len(self._buffer) > _MOST:
            raise Broken(f"more than {_MOST} octets come without an end")
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
            raise Silent(f"nothing comes for {self._timeout:g} seconds{self._leftOver()}")

    def _leftOver(self) -> str:
        return f" behind {show(bytes(self._buffer[-_SHOWN:]))}" if self._buffer else ""

    def _take(self, octets: int) -> bytes:
        taken = bytes(self._buffer[:octets])
        del self._buffer[:octets]
        return taken

    async def line(self) -> bytes:
        """
        @return: the next line with its end, CRLF or LF.
        """
        while (at := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > _LONGEST:
                raise Broken(f"more than {_LONGEST} octets come without a line end")
            await self._more()
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
            await self._more()

    @property
    def endedApart(self) -> bool:
        """
        Did the line that ends a multi-line reply, or the end of that line, come
        in a piece of its own: a read of a plain connection, a record of TLS?
        Not if the message is cut into equal pieces: then the border fell there
        by chance.
        """
        isCutEvenly = self._before == max(self._pieces) and self._pieces[self._before] > 1
        return 0 < self._last <= _END and not isCutEvenly

    async def reply(self, command: bytes, multiLine: bool = False) -> Reply:
        """
        Wait for the answer to a command that was sent already.

        @param multiLine: is a positive answer multi-line?
        """
        told = _told(command)
        try:
            reply = Reply(told, await self.line(), afterLANG=self._afterLANG)
        except Broken as error:
            raise type(error)(f"{told}: {error}")
        if multiLine and reply.positive:
            try:
                reply = replace(reply, body=await self._body())
            except Broken as error:
                raise type(error)(f"{told} has no last line of a dot and CRLF: {error}")
        self._record(reply)
        return reply

    async def say(self, command: bytes, multiLine: bool = False) -> Reply:
        """
        Send a command, wait for its answer.
        """
        self._afterLANG = self._afterLANG or command[:5].upper() == b"LANG "
        self.send(command + b"\r\n")
        return await self.reply(command, multiLine)

    async def accepted(self, command: bytes, multiLine: bool = False) -> Reply:
        """
        As L{say}; the answer has to be positive.

        @raise Broken: it is not.
        """
        reply = await self.say(command, multiLine)
        expect(reply.positive, str(reply))
        return reply

    async def fetched(self, command: bytes) -> Reply:
        """
        As L{accepted}, for a multi-line answer.
        """
        return await self.accepted(command, multiLine=True)

    async def refused(self, *commands: bytes) -> None:
        """
        Send commands one by one; the answer to each has to be negative.

        @raise Broken: one is not.
        """
        for command in commands:
            reply = await self.say(command)
            expect(reply.first[:4].upper() == b"-ERR", str(reply))

    async def challenge(self, command: bytes) -> bytes | Reply:
        """
        Send a line of a SASL exchange.

        @return: what follows the C{+ } of a challenge, with the line end (RFC
            5034 section 4), or the reply that ends the exchange.
        """
        self.send(command + b"\r\n")
        line = await self.line()
        if line.startswith(b"+") and line[:3].upper() != b"+OK":
            expect(line.startswith(b"+ "), f"{_told(command)} is answered {show(line)}")
            return line[2:]
        reply = Reply(_told(command), line)
        self._record(reply)
        return reply

    # --- the end -----------------------------------------------------------------

    async def ended(self) -> bytes:
        """
        Wait until the server closes the connection.

        @return: what it still sends.
        @raise Silent: it does not.
        """
        while self.lost is None:
            had = len(self._buffer)
            try:
                await self._more()
            except Silent:
                raise Silent(f"the connection is not closed within {self._timeout:g} seconds")
            expect(len(self._buffer) - had < _LONGEST, "it sends and sends")
        return self._take(len(self._buffer))

    @property
    def endedInOrder(self) -> bool:
        """
        Was the end of the connection told, over TLS by a close alert (RFC 8314
        section 3.4)?
        """
        return self.lost is not None and self.lost.check(ConnectionDone) is not None

    async def close(self) -> None:
        """
        Close our end and wait a little until the server has closed its own, so
        that it has let the mailbox go.
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
        Cut the connection.
        """
        if self.lost is None:
            transport: Any = self.transport
            transport.abortConnection()


def _reason(error: Exception) -> str:
    """
    One line for why a handshake failed.
    """
    text = " ".join(str(part) for part in _parts(error)) or type(error).__name__
    return text.replace("\n", " ").rstrip(".")


def _parts(error: Exception) -> list[str]:
    """
    OpenSSL's errors are lists of tuples; the last of each is the text.
    """
    found = []
    for argument in error.args:
        if isinstance(argument, list):
            found += [str(each[-1] if isinstance(each, tuple) else each) for each in argument]
        elif argument:
            found.append(str(argument))
    return found
