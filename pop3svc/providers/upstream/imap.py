"""
A connection to an IMAP server.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.mail.imap4 import Command, IMAP4Client, IMAP4Exception
from twisted.python.failure import Failure
from zope.interface import implementer

from pop3svc.client.failures import CommandRefused, LoginRefused, ServerUnavailable
from pop3svc.client.protocol import MOST_MESSAGES
from pop3svc.interfaces import IChunkedContent
from pop3svc.providers.upstream.client import BoundedClient, MessageRow

__all__ = ["IMAPUpstream", "uidSets"]

# The most octets of a message that one FETCH asks for.  The service sends the next FETCH when the
# client has read these octets.
_PIECE = 131_072
# Limits for the input from the server: the most octets of a line, and the most lines and octets of
# a reply.  FETCH responses, such as the lines of a listing, do not count.
_LONGEST_LINE = 65_536
_MOST_LINES, _MOST_OCTETS = 2000, 1_048_576
# The most octets that a set of messages may have in one command.  Servers accept 8,000 octets (RFC
# 7162 section 4).
_LONGEST_SET = 4000
_FETCH = re.compile(rb"[0-9]{1,10} FETCH \(", re.IGNORECASE)
# Responses that report changes of messages.  A command that changes many messages causes as many
# responses, and another client may also change many messages.
_CHANGE = re.compile(rb"[0-9]{1,10} (?:EXPUNGE$|FETCH \()", re.IGNORECASE)
# The most parts of a response with literals.
_MOST_PARTS = 64
_UID = re.compile(rb"\bUID ([0-9]{1,10})\b", re.IGNORECASE)
_SIZE = re.compile(rb"\bRFC822\.SIZE ([0-9]{1,15})\b", re.IGNORECASE)
_BODY = re.compile(rb"\bBODY\[\](?:<([0-9]{1,15})>)? (?:\{([0-9]{1,9})\}\r\n|(\"\"|NIL))", re.I)
_VALIDITY = re.compile(rb"OK \[UIDVALIDITY ([0-9]{1,10})\]", re.IGNORECASE)
_CODE = re.compile(rb"\[([A-Za-z-]{1,30})[\] ]")
# The POP3 response codes for IMAP response codes (RFC 5530).  A refusal with another code or
# without a code means that the password is wrong.
_CODES = {
    b"UNAVAILABLE": "SYS/TEMP",
    b"SERVERBUG": "SYS/TEMP",
    b"LIMIT": "SYS/TEMP",
    b"INUSE": "IN-USE",
    b"PRIVACYREQUIRED": "SYS/PERM",
    b"CONTACTADMIN": "SYS/PERM",
    b"EXPIRED": "SYS/PERM",
}


@implementer(IChunkedContent)
class _Pieces:
    """
    A message that is fetched piece by piece.
    """

    def __init__(self, client: IMAPUpstream, uid: int, octets: int, first: bytes) -> None:
        """
        @param octets: the size that the server reports, which may be wrong.
        """
        self._client = client
        self._uid = uid
        self._octets = octets
        self._first: bytes | None = first
        self._offset = 0
        self._arrived(first)

    def _arrived(self, piece: bytes) -> None:
        self._offset += len(piece)
        # A server may send fewer octets than it was asked for, although the message goes on.
        self._isOver = not piece or (len(piece) < _PIECE and self._offset >= self._octets)

    async def nextChunk(self) -> bytes | None:
        """
        See L{IChunkedContent.nextChunk}.

        @raise ServerUnavailable: the message is not complete.
        """
        piece, self._first = self._first, None
        if piece is None:
            if self._isOver:
                return None
            piece = await self._client.fetch(self._uid, self._offset)
            if piece is None:
                raise ServerUnavailable("has removed a message while it was sent")
            self._arrived(piece)
        return piece or None

    def close(self) -> None:
        """
        See L{IChunkedContent.close}.
        """
        self._first = None
        self._isOver = True


class IMAPUpstream(BoundedClient, IMAP4Client):
    """
    A session with one mailbox of an IMAP server (RFC 3501).  L{IMAP4Client} sends commands and
    finds the ends of replies.
    """

    MAX_LENGTH = _LONGEST_LINE
    seesNewMessages = True

    def __init__(self, clock: Any, mailbox: str) -> None:
        """
        @param clock: measures the time limits.
        @param mailbox: the name of the mailbox.
        """
        BoundedClient.__init__(self, clock)
        IMAP4Client.__init__(self)
        self._name = mailbox
        self._validity = 0
        self._uids: dict[str, int] = {}
        self._sizes: dict[int, int] = {}
        self._lines = self._octets = self._changes = 0
        self._fetched: Callable[[bytes], object] | None = None
        self._untagged: list[bytes] = []

    # --- input ----------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        """
        See L{IMAP4Client}.
        """
        self.progressed()
        if not self.isLost:
            try:
                IMAP4Client.dataReceived(self, data)
            except Exception:
                self.abort("sends a malformed reply")

    def lineLengthExceeded(self, line: bytes) -> None:
        """
        End the connection, because a line of the server is too long.
        """
        self.abort("sends a line that is too long")

    def serverGreeting(self, caps: Any) -> None:
        """
        See L{IMAP4Client}.
        """
        self.greetingArrived()

    def dispatchCommand(self, tag: bytes, rest: bytes) -> None:
        """
        See L{IMAP4Client}.
        """
        if self.isLost:
            return
        try:
            if self.state is not None:
                self._defaultHandler(tag, rest)
            elif rest[:3].upper() == b"OK ":
                self.state = "unauth"
                self.greetingArrived()
            else:
                self.abort("refuses the connection")
        except Exception:
            self.abort("sends a malformed reply")

    def _setupForLiteral(self, rest: bytes, octets: int) -> None:
        parts: list[bytes] = vars(self).get("_parts") or []
        isLong = len(parts) > _MOST_PARTS or sum(map(len, parts)) > 2 * _PIECE
        if isLong or not 0 <= octets <= _PIECE:
            self.abort("sends more than it was asked for")
            return
        IMAP4Client._setupForLiteral(self, rest, octets)

    def _defaultHandler(self, tag: bytes, rest: bytes) -> None:
        if tag != b"*":
            if tag == b"+" and not self.waiting:
                raise ValueError
            IMAP4Client._defaultHandler(self, tag, rest)
            return
        if self._fetched is not None and _FETCH.match(rest):
            self._fetched(rest)
            return
        if _CHANGE.match(rest):
            self._changes += 1
            if self._changes > 2 * MOST_MESSAGES:
                self.abort("sends more than it was asked for")
            return
        self._lines += 1
        self._octets += len(rest)
        if self._lines > _MOST_LINES or self._octets > _MOST_OCTETS:
            self.abort("sends more than it was asked for")
        elif self.waiting:
            self._untagged.append(rest)

    def connectionLost(self, reason: Any = None) -> None:
        """
        See L{IMAP4Client}.
        """
        self.wasLost(reason)
        IMAP4Client.connectionLost(self, reason)

    # --- commands -------------------------------------------------------------------

    def _sent(self, command: Command) -> Deferred[Any]:
        client: Any = self
        sent: Deferred[Any] = client.sendCommand(command)
        return sent

    def _sendLine(self, line: bytes) -> None:
        client: Any = self
        client.sendLine(line)

    async def _say(
        self,
        command: bytes,
        arguments: bytes | None = None,
        fetched: Callable[[bytes], object] | None = None,
        continuation: Callable[[bytes], object] | None = None,
    ) -> list[bytes]:
        """
        Send a command.

        @param fetched: called with each FETCH response of the server.
        @param continuation: called for each line with which the server asks for more input.
        @return: the untagged responses that are not FETCH responses, and then the tagged response.
        @raise CommandRefused: the server refused the command.
        """
        if self.isLost:
            raise ServerUnavailable(self.why or "closed the connection")
        self._lines = self._octets = self._changes = 0
        self._untagged = []
        self._fetched = fetched
        try:
            _, line = await self.within(
                self._sent(Command(command, arguments, (), continuation)).addErrback(_refused)
            )
        finally:
            self._fetched = None
        return [*self._untagged, line]

    async def _capabilities(self) -> set[bytes]:
        found: set[bytes] = set()
        for line in await self._say(b"CAPABILITY"):
            if line.upper().startswith(b"CAPABILITY "):
                found.update(line.upper().split()[1:])
        return found

    async def beginTLS(self, creator: Any) -> None:
        """
        Begin TLS with the command STARTTLS (RFC 3501 section 6.2.1).

        @raise ServerUnavailable: the server does not offer TLS, or refuses it.
        """
        if b"STARTTLS" not in await self._capabilities():
            raise ServerUnavailable("offers no TLS: use imaps://, or insecure=yes")

        def begin(result: Any) -> Any:
            # Begin TLS in this callback, before further input is read.  Input that came with the
            # reply would be plain text, and an attacker in the network may have inserted it.
            client: Any = self
            if client.clearLineBuffer():
                self.abort("sends plain text after STARTTLS")
            else:
                self.transport.startTLS(creator)
            return result

        try:
            await self.within(self._sent(Command(b"STARTTLS")).addCallbacks(begin, _refused))
        except CommandRefused:
            raise ServerUnavailable("refuses STARTTLS")

    async def passLogin(self, username: bytes, password: bytes) -> None:
        """
        Log in with AUTHENTICATE PLAIN or LOGIN, and select the mailbox.

        @raise LoginRefused: the server refused the login.
        """
        capabilities = await self._capabilities()
        try:
            if b"AUTH=PLAIN" in capabilities:
                secret = base64.b64encode(b"\0" + username + b"\0" + password)
                await self._say(
                    b"AUTHENTICATE", b"PLAIN", continuation=lambda _: self._sendLine(secret)
                )
            elif b"LOGINDISABLED" in capabilities:
                raise ServerUnavailable("accepts no passwords")
            else:
                await self._logInByLiterals(username, password)
        except CommandRefused as error:
            code = _CODE.match(error.text)
            raise LoginRefused(None if code is None else _CODES.get(code[1].upper()))
        self._hasUIDPlus = b"UIDPLUS" in await self._capabilities()
        await self._select()

    async def _logInByLiterals(self, username: bytes, password: bytes) -> None:
        # Send the name and the password as literals, because a literal can contain any octets and
        # cannot end the command.
        coming = iter([username + b" {%d}" % len(password), password])

        def more(_: bytes) -> None:
            self._sendLine(next(coming))

        await self._say(b"LOGIN", b"{%d}" % len(username), continuation=more)

    async def _select(self) -> None:
        name: bytes = self._name.encode("imap4-utf-7")
        quoted = name.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
        try:
            lines = await self._say(b"SELECT", b'"' + quoted + b'"')
        except CommandRefused:
            raise ServerUnavailable(f"does not select the mailbox {self._name}")
        for line in lines:
            found = _VALIDITY.match(line)
            if found is not None:
                self._validity = int(found[1])
        if not self._validity:
            raise ServerUnavailable("has no UIDVALIDITY, which the unique-ids need")

    async def listMessages(self) -> list[MessageRow]:
        """
        See L{Connection.listMessages<pop3svc.providers.upstream.client.Connection>}.
        """
        sizes: dict[int, int] = {}

        def fetched(line: bytes) -> None:
            uid, size = _UID.search(line), _SIZE.search(line)
            if uid is not None and size is not None:
                sizes[int(uid[1])] = int(size[1])
                if len(sizes) > MOST_MESSAGES:
                    raise ValueError

        try:
            # Send NOOP first, because a server may not report new messages before it gets this
            # command.
            await self._say(b"NOOP")
            await self._say(b"UID FETCH", b"1:* (UID RFC822.SIZE)", fetched)
        except CommandRefused:
            raise ServerUnavailable("refuses to list the messages")
        self._sizes = sizes
        self._uids = {f"{self._validity}.{uid}": uid for uid in sorted(sizes)}
        return [MessageRow(name, sizes[uid]) for name, uid in self._uids.items()]

    async def fetch(self, uid: int, offset: int) -> bytes | None:
        """
        @return: the octets of a message that begin at C{offset}, at most L{_PIECE} of them; L{None}
            if the message does not exist.
        """
        found: list[bytes] = []

        def fetched(line: bytes) -> None:
            body = _BODY.search(line)
            if body is None:
                return
            length = int(body[2] or 0)
            if int(body[1] or 0) != offset:
                raise ValueError
            around = line[: body.start()] + line[body.end() + length :]
            number = _UID.search(around)
            if number is None or int(number[1]) != uid:
                return
            if length > _PIECE or len(line) < body.end() + length or found:
                raise ValueError
            found.append(line[body.end() : body.end() + length])

        try:
            await self._say(
                b"UID FETCH", b"%d (UID BODY.PEEK[]<%d.%d>)" % (uid, offset, _PIECE), fetched
            )
        except CommandRefused:
            return None
        return found[0] if found else None

    async def openMessage(self, uniqueID: str) -> IChunkedContent | None:
        """
        See L{Connection.openMessage<pop3svc.providers.upstream.client.Connection>}.
        """
        uid = self._uids.get(uniqueID)
        if uid is None:
            return None
        first = await self.fetch(uid, 0)
        octets = self._sizes[uid]
        if first == b"" and octets:
            # Do not send an empty message, because the client would then delete the message.
            raise ServerUnavailable("sends no octets of a message")
        return None if first is None else _Pieces(self, uid, octets, first)

    async def deleteMessages(self, uniqueIDs: Sequence[str]) -> None:
        """
        See L{Connection.deleteMessages<pop3svc.providers.upstream.client.Connection>}.
        """
        uids = sorted(self._uids[each] for each in uniqueIDs if each in self._uids)
        if not uids:
            return
        others: list[int] = []
        try:
            if not self._hasUIDPlus:
                # EXPUNGE also removes messages that other clients have marked.  Remove the marks of
                # these messages before, and set them again afterwards (RFC 4549 section 4.2.4).
                others = sorted(set(await self._marked()) - set(uids))
                await self._change(others, b"-FLAGS.SILENT")
            await self._change(uids, b"+FLAGS.SILENT")
        except (CommandRefused, ServerUnavailable, CancelledError):
            await self._undo(uids, others)
            raise CommandRefused(b"STORE")
        try:
            await self._expunge(uids)
            await self._change(others, b"+FLAGS.SILENT")
        except CommandRefused:
            await self._undo(uids, others)
            raise ServerUnavailable("refuses EXPUNGE")

    async def _expunge(self, uids: list[int]) -> None:
        if self._hasUIDPlus:
            for some in uidSets(uids):
                await self._say(b"UID EXPUNGE", some)
        else:
            await self._say(b"EXPUNGE")

    async def _marked(self) -> list[int]:
        found: list[int] = []
        for line in await self._say(b"UID SEARCH", b"DELETED"):
            if line.upper().startswith(b"SEARCH"):
                found += [int(each) for each in line.split()[1:]]
        return found

    async def _change(self, uids: list[int], change: bytes) -> None:
        for some in uidSets(uids):
            await self._say(b"UID STORE", some + b" " + change + b" (\\Deleted)")

    async def _undo(self, uids: list[int], others: list[int]) -> None:
        """
        Remove the deletion marks of C{uids} again, and mark C{others} again.  Ignore a refusal of
        the server, and the loss of the connection.
        """
        try:
            await self._change(uids, b"-FLAGS.SILENT")
            await self._change(others, b"+FLAGS.SILENT")
        except (CommandRefused, ServerUnavailable):
            pass

    async def restore(self, uniqueIDs: Sequence[str]) -> None:
        """
        See L{Connection.restore<pop3svc.providers.upstream.client.Connection>}.
        """
        await self._undo(sorted(self._uids[each] for each in uniqueIDs if each in self._uids), [])

    def leave(self) -> None:
        """
        See L{Connection.leave<pop3svc.providers.upstream.client.Connection>}.
        """
        if self.isLost:
            return
        if self.waiting:
            self.abort("was disconnected")
            return
        self.isLost = True
        self._sent(Command(b"LOGOUT")).addErrback(lambda _: None)
        self.transport.loseConnection()


def uidSets(uids: Iterable[int]) -> Iterator[bytes]:
    """
    @param uids: UIDs in ascending order.
    @return: sequence sets that contain the UIDs (RFC 3501 section 9).  Each set is short enough for
        one command.
    """
    parts: list[str] = []
    octets = 0
    for first, last in _ranges(uids):
        part = str(first) if first == last else f"{first}:{last}"
        if octets + len(part) > _LONGEST_SET and parts:
            yield ",".join(parts).encode("ascii")
            parts, octets = [], 0
        parts.append(part)
        octets += len(part) + 1
    if parts:
        yield ",".join(parts).encode("ascii")


def _ranges(uids: Iterable[int]) -> Iterator[tuple[int, int]]:
    first = last = -1
    for uid in uids:
        if uid != last + 1 or first < 0:
            if first >= 0:
                yield first, last
            first = uid
        last = uid
    if first >= 0:
        yield first, last


def _refused(failure: Failure) -> Failure:
    failure.trap(IMAP4Exception)
    error: Any = failure.value
    text = error.args[0] if error.args else b""
    raise CommandRefused(text if isinstance(text, bytes) else b"")
