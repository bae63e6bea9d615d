"""
Listen to the conversation of one connection.  A tap removes secrets from the lines that it reports.

A tap replaces attributes of its own connection, and of no other.  It therefore takes no time on
other connections.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from pop3svc.protocol.dispatch import Table
from pop3svc.protocol.replies import Reply, ok
from pop3svc.protocol.sender import ReplySender
from pop3svc.protocol.session import Session
from pop3svc.protocol.wire import PLAIN, LineStyle, firstLine, splitLine

__all__ = ["Heard", "Tap", "blanked"]

log = Logger(namespace="pop3svc")

# The text that stands in place of a possible secret.
_BLANK = "****"
# The form of an argument that names a message, or that is a number of lines.  Other arguments are
# not shown, because a client may send a password in a wrong place.
_HARMLESS = re.compile(rb"[0-9]{1,10}|UID:[!-~]{1,70}", re.IGNORECASE)
_HARMLESS_ARGUMENTS = 2
# The commands whose first argument is the name of a user.
_NAMING = frozenset(["USER", "XLOG", "APOP"])
# The most characters of an event.  This is enough, because the first line of a reply has at most
# 512 octets.
_LONGEST = 512


class Heard(NamedTuple):
    """
    One line of a conversation.

    @ivar side: C{C} if the client has sent the line, C{S} if the server has sent it, and C{-} for a
        remark.
    @ivar text: the line without secrets and without the name of a user.
    @ivar name: the name of a user that the client has sent; L{None} if the line contains no name.
    @ivar named: the line with this name; equal to C{text} if there is no name.
    """

    side: str
    text: str
    name: str | None
    named: str


def blanked(session: Session, line: bytes, table: Table) -> Heard:
    """
    Remove all secrets from a line of the client.  Keep only text that is known to be harmless.  A
    client may send a password or a token at any place, for example after the server has refused
    AUTH.

    @param line: the octets of the line without its line end.
    @param table: the commands of the service.
    """
    if session.exchange is not None:
        return Heard("C", _BLANK, None, _BLANK)
    verb, rest = splitLine(line)
    if verb not in table:
        return Heard("C", _BLANK, None, _BLANK)
    if rest is None:
        return Heard("C", verb, None, verb)
    words = rest.split(b" ")
    if verb in _NAMING:
        hasSecret = verb != "USER"
        text = f"{verb} {_BLANK} {_BLANK}" if hasSecret else f"{verb} {_BLANK}"
        name = words[0].decode("utf-8", "replace")
        isComplete = len(words) > 1 if hasSecret else len(words) == 1
        if not (isComplete and name.isprintable()):
            return Heard("C", f"{verb} {_BLANK}", None, f"{verb} {_BLANK}")
        return Heard("C", text, name, text.replace(_BLANK, name, 1))
    if verb == "AUTH":
        chosen = words[0].upper().decode("ascii", "replace")
        shown = chosen if chosen in session.mechanisms else _BLANK
        text = f"AUTH {shown} {_BLANK}" if words[1:] else f"AUTH {shown}"
    elif len(words) <= _HARMLESS_ARGUMENTS and all(map(_HARMLESS.fullmatch, words)):
        text = f"{verb} {rest.decode('ascii')}"
    else:
        text = f"{verb} {_BLANK}"
    return Heard("C", text, None, text)


class _TappedSender(ReplySender):
    """
    A L{ReplySender} that tells a tap what it sends.
    """

    __slots__ = ("_tap",)

    def __init__(self, sender: ReplySender, tap: Tap) -> None:
        for name in ReplySender.__slots__:
            setattr(self, name, getattr(sender, name))
        self._tap = tap

    def plain(self) -> ReplySender:
        """
        @return: a sender without a tap, which can take the place of this sender.
        """
        made = ReplySender.__new__(ReplySender)
        for name in ReplySender.__slots__:
            setattr(made, name, getattr(self, name))
        return made

    def gather(self, reply: Reply) -> None:
        """
        See L{ReplySender.gather}.
        """
        self._tap.replied(reply, self._style)
        super().gather(reply)

    def gatherShort(self, reply: Reply) -> bool:
        """
        See L{ReplySender.gatherShort}.  Gather nothing, so that L{_send} sends the reply and tells
        the tap the number of octets.
        """
        return False

    async def _send(self, reply: Reply) -> bool:
        if reply.body is None:
            return await super()._send(reply)
        before = self._record.octetsSent + len(firstLine(reply, self._style))
        try:
            isWhole = await super()._send(reply)
        except BaseException:
            self._tap.said("S", "(the rest of the reply was not sent)")
            raise
        self._tap.said("S", f"({self._record.octetsSent - before} octets)")
        return isWhole


class Tap:
    """
    Listens to one connection, until L{detach} is called or the connection ends.
    """

    def __init__(
        self,
        connection: Any,
        hear: Callable[[Any, Heard], object],
        ended: Callable[[Any], object],
    ) -> None:
        """
        Begin to listen.

        @param connection: a L{pop3svc.protocol.connection.POP3Connection}.
        @param hear: called with the connection and a L{Heard} for each line.
        @param ended: called with the connection when the connection has ended.
        """
        self._connection = connection
        self._hear = hear
        self._ended = ended
        self._isOn = True
        connection.lineReceived = self._lineReceived
        connection.connectionLost = self._connectionLost
        if hasattr(connection, "session"):
            self._replaceSender()
        else:
            connection.connectionMade = self._connectionMade

    def detach(self) -> None:
        """
        Stop listening.
        """
        if not self._isOn:
            return
        self._isOn = False
        connection = self._connection
        for name in ("lineReceived", "connectionLost", "connectionMade"):
            connection.__dict__.pop(name, None)
        sender = getattr(connection, "_sender", None)
        # Do not replace the sender while a running command uses it.  The tap ignores the replies of
        # this command.
        if isinstance(sender, _TappedSender) and connection._running is None:
            connection._sender = sender.plain()

    def _replaceSender(self) -> None:
        connection = self._connection
        isTapped = isinstance(connection._sender, _TappedSender)
        # Do not replace the sender while a running command uses it.
        if not isTapped and connection._running is None:
            connection._sender = _TappedSender(connection._sender, self)

    def replied(self, reply: Reply, style: LineStyle = PLAIN) -> None:
        """
        Hear a reply.  The sender calls this method before it sends the first line of the reply.
        """
        if reply.isChallenge:
            self.said("S", f"+ {_BLANK}")
        else:
            self.said("S", firstLine(reply, style).decode("utf-8", "replace").rstrip())

    def said(self, side: str, text: str) -> None:
        """
        Pass a line to the listener; see L{Heard}.
        """
        self._tell(Heard(side, text, None, text))

    def _tell(self, heard: Heard) -> None:
        if not self._isOn:
            return
        try:
            self._hear(
                self._connection,
                heard._replace(text=heard.text[:_LONGEST], named=heard.named[:_LONGEST]),
            )
        except Exception:
            # Log the error and do not raise it, because the session has to go on.
            log.failure("a trace failed")

    def _connectionMade(self) -> None:
        connection = self._connection
        type(connection).connectionMade(connection)
        self._replaceSender()
        self.replied(ok(connection.session.greeting))

    def _lineReceived(self, line: bytes) -> None:
        connection = self._connection
        if not connection._reason:
            self._replaceSender()
            self._tell(blanked(connection.session, line.removesuffix(b"\r"), connection._table))
        type(connection).lineReceived(connection, line)

    def _connectionLost(self, reason: Failure = connectionDone) -> None:
        connection = self._connection
        if hasattr(connection, "session"):
            self.said("-", "the connection has ended")
        self.detach()
        self._ended(connection)
        type(connection).connectionLost(connection, reason)
