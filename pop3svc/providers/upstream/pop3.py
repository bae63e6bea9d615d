"""
A connection to another POP3 server.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.mail.pop3 import AdvancedPOP3Client, ServerErrorResponse
from twisted.python.failure import Failure
from zope.interface import implementer

from pop3svc.interfaces import IChunkedContent
from pop3svc.listings import isUniqueID
from pop3svc.providers.paths import uniqueIDFor
from pop3svc.providers.upstream.client import (
    MOST_MESSAGES,
    BoundedClient,
    CommandRefused,
    LoginRefused,
    MessageRow,
    UpstreamAway,
)

__all__ = ["BodyDecoder", "POP3Upstream"]

# The most octets of a line of a reply.  RFC 2449 section 4 allows 512.
_LONGEST_LINE = 4096
# The most octets of a message that may wait for the client, and the number of waiting octets at
# which reading goes on.
_HIGH, _LOW = 262_144, 65_536
# The most octets of an unneeded message that are read and dropped.  If more are left, a new
# connection takes less time.
_MOST_DROPPED = 1_048_576
# The most lines of the reply to CAPA.
_MOST_CAPABILITIES = 1000
_ROW = re.compile(rb"([0-9]{1,9}) ([!-~]+)(?: .*)?")
_CODE = re.compile(rb"\[([A-Za-z/-]{1,30})\]")
# Response codes that are passed on.  A refusal without such a code means a wrong password.
_CODES = ("IN-USE", "LOGIN-DELAY", "SYS/TEMP", "SYS/PERM")


class BodyDecoder:
    """
    Finds the end of a multi-line reply, and removes dot-stuffing, in pieces cut anywhere.

    @ivar rest: octets after the reply; L{None} before its end.
    """

    def __init__(self) -> None:
        # The reply begins at the beginning of a line.
        self._held = b"\r\n"
        self._isFirst = True
        self.rest: bytes | None = None

    def feed(self, data: bytes) -> bytes:
        """
        @param data: the next octets of the connection.
        @return: octets of the message; possibly none.
        """
        data = self._held + data
        end = data.find(b"\r\n.\r\n")
        if end >= 0:
            self.rest = data[end + 5 :]
            data, self._held = data[: end + 2], b""
        else:
            # Keep octets that may begin a line end with a dot.
            keep = data.find(b"\r", max(len(data) - 4, 0))
            keep = len(data) if keep < 0 else keep
            data, self._held = data[:keep], data[keep:]
        if self._isFirst and data:
            data = data[2:] if not data.startswith(b"\r\n.") else data[3:]
            self._isFirst = False
        return data.replace(b"\r\n.", b"\r\n")


@implementer(IChunkedContent)
class _Body:
    """
    A message that is being received.  Reading pauses while the client does not take it.
    """

    def __init__(self, client: POP3Upstream, octets: int) -> None:
        self._client = client
        self._decoder = BodyDecoder()
        self._expected = octets
        self._pieces: deque[bytes] = deque()
        self._waiting = 0
        self._received = 0
        self._isPaused = self._isClosed = False
        self._next: Deferred[None] | None = None
        self.ended: Deferred[None] = Deferred()
        self.isOver = False
        self._isWhole = False

    def feed(self, data: bytes) -> bytes | None:
        """
        @param data: the next octets of the connection.
        @return: octets after the message; L{None} if the message goes on.
        """
        piece = self._decoder.feed(data)
        self._received += len(piece)
        if self._decoder.rest is not None:
            self._isWhole = True
        if piece and not self._isClosed:
            self._pieces.append(piece)
            self._waiting += len(piece)
            if self._waiting > _HIGH and not self._isPaused and not self._isWhole:
                self._isPaused = True
                self._client.transport.pauseProducing()
        elif self._isClosed and self._received > self._expected + _MOST_DROPPED:
            self._client.abort("sends a message without end")
            return None
        if self._isWhole:
            self._finish()
        self._wake()
        return self._decoder.rest

    def _wake(self) -> None:
        waiting, self._next = self._next, None
        if waiting is not None:
            waiting.callback(None)

    def _finish(self) -> None:
        self.isOver = True
        if not self.ended.called:
            self.ended.callback(None)

    def lost(self) -> None:
        """
        Record that the connection is over.
        """
        self._finish()
        self._wake()

    async def nextChunk(self) -> bytes | None:
        """
        See L{IChunkedContent.nextChunk}.

        @raise UpstreamAway: the message is not complete.
        """
        while not self._pieces:
            if self.isOver:
                if not self._isWhole:
                    raise UpstreamAway(self._client.why or "closed the connection in a message")
                return None
            self._resume()
            self._next = Deferred()
            await self._client.within(self._next)
        piece = self._pieces.popleft()
        self._waiting -= len(piece)
        if self._waiting < _LOW:
            self._resume()
        return piece

    def _resume(self) -> None:
        if self._isPaused:
            self._isPaused = False
            if not self._client.isLost:
                self._client.transport.resumeProducing()

    def close(self) -> None:
        """
        See L{IChunkedContent.close}.  The connection is used again if the rest of the message is
        short.
        """
        if self._isClosed:
            return
        self._isClosed = True
        self._pieces.clear()
        if self.isOver:
            return
        if self._expected - self._received > _MOST_DROPPED:
            self._client.abort("was disconnected in a long message")
        else:
            self._resume()


class POP3Upstream(BoundedClient, AdvancedPOP3Client):
    """
    A session with another POP3 server.  Twisted's client sends the commands, and this class
    reads the replies, because messages must not be kept as a whole.
    """

    MAX_LENGTH = _LONGEST_LINE
    # The caller decides about TLS before the login.
    allowInsecureLogin = True
    # A session sees the messages of its beginning (RFC 1939 section 8).
    seesNewMessages = False

    def __init__(self, clock: Any) -> None:
        """
        @param clock: measures the time limits.
        """
        BoundedClient.__init__(self, clock)
        self._input = b""
        self._body: _Body | None = None
        self._numbers: dict[str, int] = {}
        self._sizes: dict[int, int] = {}

    # --- input ----------------------------------------------------------------------

    def serverGreeting(self, greeting: bytes) -> None:
        """
        See L{AdvancedPOP3Client}.
        """
        self.greetingArrived()

    def dataReceived(self, data: bytes) -> None:
        """
        Split the input into lines, and pass the pieces of a message on as they arrive.
        """
        self.progressed()
        self._input += data
        while self._input and not self.isLost:
            if self._body is not None:
                rest = self._body.feed(self._input)
                self._input = b"" if rest is None else rest
                if rest is None:
                    return
                self._body = None
                continue
            line, end, rest = self._input.partition(b"\r\n")
            if not end:
                if len(line) > _LONGEST_LINE:
                    self.abort("sends a line without end")
                return
            self._input = rest
            if len(line) > _LONGEST_LINE:
                self.abort("sends a line that is too long")
                return
            try:
                self._line(line)
            except Exception:
                self.abort("sends a malformed reply")

    def state_WAITING(self, line: bytes) -> None:
        """
        End the connection, because the server sends a line that answers no command.
        """
        self.abort("sends a line that nobody has asked for")

    def connectionLost(self, reason: Any = None) -> None:
        """
        See L{AdvancedPOP3Client}.
        """
        failure = reason if isinstance(reason, Failure) else Failure(UpstreamAway("is away"))
        if self._greetingError:
            self.why = self.why or "refuses the connection"
        self.wasLost(failure)
        if self._body is not None:
            self._body.lost()
        AdvancedPOP3Client.connectionLost(self, reason)

    # --- commands -------------------------------------------------------------------

    def _line(self, line: bytes) -> None:
        client: Any = self
        client.lineReceived(line)

    def _short(self, command: bytes, argument: bytes) -> Deferred[Any]:
        client: Any = self
        sent: Deferred[Any] = client.sendShort(command, argument)
        return sent

    def _long(self, command: bytes, consume: Callable[[bytes], object]) -> Deferred[Any]:
        client: Any = self
        sent: Deferred[Any] = client.sendLong(command, None, consume, None)
        return sent

    async def _ready(self) -> None:
        """
        Wait until the rest of a message that was left has arrived.
        """
        body = self._body
        if body is not None:
            await self.within(body.ended)
        if self.isLost:
            raise UpstreamAway(self.why or "closed the connection")

    async def _say(self, command: bytes, argument: bytes = b"") -> bytes:
        """
        Send a command with a reply of one line.

        @raise CommandRefused: the server refused the command.
        """
        await self._ready()
        return await self.within(self._short(command, argument).addErrback(_refused))

    async def _lines(self, command: bytes, consume: Callable[[bytes], object]) -> None:
        """
        Send a command with a reply of many lines.

        @raise CommandRefused: the server refused the command.
        """
        await self._ready()
        await self.within(self._long(command, consume).addErrback(_refused))

    async def capabilitiesNow(self) -> set[bytes]:
        """
        @return: the present capabilities; none if the server does not know CAPA.
        """
        found: set[bytes] = set()

        def consume(line: bytes) -> None:
            if len(found) >= _MOST_CAPABILITIES:
                raise ValueError
            found.add(line.upper())

        try:
            await self._lines(b"CAPA", consume)
        except CommandRefused:
            return set()
        return found

    async def beginTLS(self, creator: Any) -> None:
        """
        Begin TLS by STLS (RFC 2595 section 4).

        @raise UpstreamAway: the server has no TLS.
        """
        if b"STLS" not in await self.capabilitiesNow():
            raise UpstreamAway("offers no TLS: use pop3s://, or insecure=yes")

        def begin(_: bytes) -> None:
            # Begin TLS here and not later, because further input in the same packet is plain text,
            # and may come from an attacker in the network.
            if self._input:
                self.abort("sends plain text after STLS")
            else:
                self.transport.startTLS(creator)

        await self._ready()
        try:
            reply = self._short(b"STLS", b"").addCallbacks(begin, _refused)
            await self.within(reply)
        except CommandRefused:
            raise UpstreamAway("refuses STLS")

    async def logIn(self, username: bytes, password: bytes) -> None:
        """
        Log in by USER and PASS.

        @raise LoginRefused: the server refused the login.
        """
        try:
            await self._say(b"USER", username)
            await self._say(b"PASS", password)
        except CommandRefused as error:
            code = _CODE.match(error.text)
            known = code[1].decode("ascii").upper() if code is not None else ""
            raise LoginRefused(known if known in _CODES else None)

    async def listMessages(self) -> list[MessageRow]:
        """
        See L{Connection.listMessages<pop3svc.providers.upstream.client.Connection>}.
        """
        sizes: dict[int, int] = {}
        names: dict[int, str] = {}

        def addSize(line: bytes) -> None:
            number, octets = _row(line)
            sizes[number] = int(octets)
            if len(sizes) > MOST_MESSAGES or len(octets) > 15:
                raise ValueError

        def addName(line: bytes) -> None:
            number, name = _row(line)
            names[number] = name.decode("ascii")
            if len(names) > MOST_MESSAGES:
                raise ValueError

        try:
            await self._lines(b"LIST", addSize)
            await self._lines(b"UIDL", addName)
        except CommandRefused:
            raise UpstreamAway("refuses LIST or UIDL, and both are needed")
        if sizes.keys() != names.keys():
            self.abort("names other messages in UIDL than in LIST")
            raise UpstreamAway(self.why)
        self._numbers = _named(names)
        self._sizes = sizes
        return [MessageRow(name, sizes[number]) for name, number in self._numbers.items()]

    async def openMessage(self, uniqueID: str) -> IChunkedContent | None:
        """
        See L{Connection.openMessage<pop3svc.providers.upstream.client.Connection>}.
        """
        number = self._numbers.get(uniqueID)
        if number is None:
            return None
        body = _Body(self, self._sizes[number])

        def begin(_: bytes) -> None:
            # Begin to receive the message here and not later, because it may follow in the same
            # packet.
            self._body = body

        await self._ready()
        try:
            reply = self._short(b"RETR", b"%d" % number).addCallbacks(begin, _refused)
            await self.within(reply)
        except CommandRefused:
            return None
        return body

    async def deleteMessages(self, uniqueIDs: Sequence[str]) -> None:
        """
        See L{Connection.deleteMessages<pop3svc.providers.upstream.client.Connection>}.  The
        server deletes at QUIT (RFC 1939 section 6), so this ends the connection.
        """
        numbers = [self._numbers[each] for each in uniqueIDs if each in self._numbers]
        if not numbers:
            return
        try:
            for number in numbers:
                await self._say(b"DELE", b"%d" % number)
        except (CommandRefused, UpstreamAway, CancelledError):
            # Without QUIT the server deletes nothing.
            self.abort("was disconnected, because it refuses DELE")
            raise CommandRefused(b"DELE")
        try:
            await self._say(b"QUIT")
        except CommandRefused:
            raise UpstreamAway("has deleted some messages only")
        finally:
            self.isLost = True
            self.transport.loseConnection()

    async def restore(self, uniqueIDs: Sequence[str]) -> None:
        """
        Do nothing, because marks end with the session (RFC 1939 section 6).
        """

    def leave(self) -> None:
        """
        See L{Connection.leave<pop3svc.providers.upstream.client.Connection>}.
        """
        if self.isLost:
            return
        if self._body is not None or self._waiting is not None:
            self.abort("was disconnected")
            return
        self.isLost = True
        self._short(b"QUIT", b"").addErrback(lambda _: None)
        self.transport.loseConnection()


def _refused(failure: Failure) -> Failure:
    failure.trap(ServerErrorResponse)
    error: Any = failure.value
    raise CommandRefused(error.args[0])


def _row(line: bytes) -> tuple[int, bytes]:
    found = _ROW.fullmatch(line)
    if found is None:
        raise ValueError
    return int(found[1]), found[2]


def _named(names: dict[int, str]) -> dict[str, int]:
    """
    @return: the numbers of messages by a unique-id that is well-formed and occurs once, in order.
        RFC 1939 section 7 allows a server to give equal messages the same unique-id.
    """
    named: dict[str, int] = {}
    times: dict[str, int] = {}
    for number in sorted(names):
        name = names[number]
        count = times[name] = times.get(name, 0) + 1
        uniqueID = name if count == 1 and isUniqueID(name) else uniqueIDFor(name, str(count))
        while uniqueID in named:
            uniqueID = uniqueIDFor(uniqueID, "again")
        named[uniqueID] = number
    return named
