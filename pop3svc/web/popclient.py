"""
Connect the playground to its own service.  Over a connection, a visitor sends commands one by one.
"""

from __future__ import annotations

import re
import socket
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from pop3svc.web.conversations import Line

__all__ = ["PlayClient", "PlayClients", "blankedCommand"]

# The most octets of a line, the most lines of one reply, and the most lines of a whole conversation
# that are shown.
_LONGEST, _OF_REPLY, _LINES = 400, 60, 200
_BLANK = "****"
_versions = count(1)
# The commands that have multi-line replies.  The list is needed if the service does not mark
# multi-line replies by MULTI-LINE-IND.
_MULTI_LINE = re.compile(r"(?:CAPA|RETR .*|TOP .*|LIST|UIDL|AUTH|LANG) *", re.IGNORECASE)


def blankedCommand(line: str, isExchange: bool) -> str:
    """
    @param isExchange: whether the line belongs to an unfinished AUTH.
    @return: a line of the client without its secrets.
    """
    verb, *words = line.split(" ")
    kept = {"PASS": 0, "XLOG": 1, "APOP": 1, "AUTH": 1}.get(verb.upper())
    if isExchange:
        return _BLANK
    if kept is None or len(words) <= kept:
        return line
    return " ".join([verb, *words[:kept], _BLANK])


class PlayClient(Protocol):
    """
    One connection of a visitor.

    @ivar lines: the lines of both sides, without secrets.
    @ivar version: a number that grows with each line.  A new connection begins with a larger number
        than all earlier connections.
    @ivar isOpen: whether the connection is open.
    @ivar hasChanged: whether there are lines that the visitor has not seen.
    @ivar lastUsed: the time of the visitor's last command, in seconds of the clock.
    """

    isOpen = False
    hasChanged = False

    def __init__(self, ended: Callable[[PlayClient], object]) -> None:
        """
        @param ended: called at the end of the connection.
        """
        self.lines: deque[Line] = deque(maxlen=_LINES)
        self.version = next(_versions)
        self._ended = ended
        self._buffer = b""
        self._isSkipping = False
        # Fires at the end of the reply that the client waits for.  The first reply is the greeting.
        self._waiting: Deferred[None] | None = None
        self._isMultiLine: bool | None = None
        self._count = 0
        self._isExchange = False
        self._mayBeMultiLine = False
        self.lastUsed = 0.0

    def _add(self, line: Line) -> None:
        self.lines.append(line)
        self.version, self.hasChanged = next(_versions), True

    def connectionMade(self) -> None:
        """
        See L{twisted.internet.protocol.BaseProtocol.connectionMade}.
        """
        self.isOpen = True

    def say(self, line: str) -> Deferred[None]:
        """
        Send a command.  Call this method only if no other command waits for its reply.

        @return: a Deferred that fires when the reply is complete, or when the connection has ended.
        """
        reply = self.reply()
        self._add(Line("C", blankedCommand(line, self._isExchange)))
        self._mayBeMultiLine = not self._isExchange and _MULTI_LINE.fullmatch(line) is not None
        self._isMultiLine, self._count = None, 0
        transport: Any = self.transport
        transport.write(line.encode("utf-8", "replace") + b"\r\n")
        return reply

    @property
    def isWaiting(self) -> bool:
        """
        Whether a command waits for the end of its reply.
        """
        return self._waiting is not None

    def reply(self) -> Deferred[None]:
        """
        @return: a Deferred that fires at the end of the next reply.
        """

        def forget(_: object) -> None:
            self._waiting = None

        self._waiting = Deferred(forget)
        return self._waiting

    def dataReceived(self, data: bytes) -> None:
        """
        See L{twisted.internet.interfaces.IProtocol.dataReceived}.
        """
        *lines, rest = (self._buffer + data).split(b"\n")
        for line in lines:
            if self._isSkipping:
                self._isSkipping = False
            else:
                self._lineReceived(line.removesuffix(b"\r"))
        if len(rest) > _LONGEST and not self._isSkipping:
            self._isSkipping = True
            self._lineReceived(rest)
        self._buffer = b"" if self._isSkipping else rest

    def _lineReceived(self, data: bytes) -> None:
        text = data[:_LONGEST].decode("utf-8", "replace")
        if len(data) > _LONGEST:
            text += " ..."
        self._count += 1
        if self._isMultiLine:
            if data == b".":
                if self._count > _OF_REPLY:
                    self._add(Line("-", f"({self._count - _OF_REPLY} more lines)"))
                self._add(Line("S", text))
                self._complete()
            elif self._count <= _OF_REPLY:
                self._add(Line("S", text))
            return
        self._add(Line("S", text))
        self._isExchange = text.startswith("+ ") or text == "+"
        isPositive = text.startswith("+OK")
        self._isMultiLine = isPositive and (text.endswith(" _") or self._mayBeMultiLine)
        if not self._isMultiLine:
            self._complete()

    def _complete(self) -> None:
        self._isMultiLine = None
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        See L{Protocol.connectionLost}.
        """
        self.isOpen = False
        self._add(Line("-", "the connection has ended"))
        self._complete()
        self._ended(self)

    def close(self) -> None:
        """
        End the connection.
        """
        if self.isOpen:
            transport: Any = self.transport
            transport.abortConnection()


class PlayClients:
    """
    The connections of all visitors.
    """

    # The most connections at the same time, and the seconds until a connection is closed.  A
    # visitor needs a connection for some minutes.
    MOST, LIFE = 8, 900.0
    # Seconds without a command after which a connection may be closed to make room for another
    # visitor.
    UNUSED = 120.0
    # The most visitors whose conversations are kept, also after the end of their connections.
    KEPT = 16

    def __init__(self, reactor: Any, factory: Any) -> None:
        """
        @param reactor: adopts both sockets of each connection, and measures times.
        @param factory: L{pop3svc.service.factory.POP3Factory}
        """
        self._reactor = reactor
        self._factory = factory
        self._clients: dict[str, PlayClient] = {}
        self._open: dict[PlayClient, Any] = {}

    @staticmethod
    def nextVersion() -> int:
        """
        @return: a number that is larger than each L{PlayClient.version} so far.
        """
        return next(_versions)

    def of(self, visitor: str) -> PlayClient | None:
        """
        @return: the latest connection of a visitor; L{None} if no connection is kept.
        """
        return self._clients.get(visitor)

    def connect(self, visitor: str) -> PlayClient | None:
        """
        Connect a visitor.  The greeting arrives later.

        @return: the connection; L{None} if there are too many connections.
        """
        before = self._clients.pop(visitor, None)
        if before is not None:
            before.close()
        if len(self._open) >= self.MOST and not self._makeRoom():
            return None
        client = PlayClient(self._ended)
        client.lastUsed = self._reactor.seconds()
        self._clients[visitor] = client
        while len(self._clients) > self.KEPT:
            name, oldest = next(iter(self._clients.items()))
            oldest.close()
            del self._clients[name]
        self._open[client] = self._reactor.callLater(self.LIFE, client.close)
        self._join(client)
        return client

    def _makeRoom(self) -> bool:
        oldest = min(self._open, key=lambda each: each.lastUsed)
        if self._reactor.seconds() - oldest.lastUsed < self.UNUSED:
            return False
        self._open.pop(oldest).cancel()
        oldest.close()
        return True

    def _join(self, client: PlayClient) -> None:
        """
        Connect a client to the factory, by a pair of sockets.
        """
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            for each in (here, there):
                each.setblocking(False)
            for each, factory in ((there, self._factory), (here, _ForOne(client))):
                self._reactor.adoptStreamConnection(each.fileno(), socket.AF_UNIX, factory)
        finally:
            # Close these descriptors, because the reactor has made copies of them.
            here.close()
            there.close()

    def _ended(self, client: PlayClient) -> None:
        timer = self._open.pop(client, None)
        if timer is not None and timer.active():
            timer.cancel()

    def closeAll(self) -> None:
        """
        End all connections.
        """
        for each in list(self._open):
            each.close()


class _ForOne(Factory):
    """
    A factory that passes on a protocol that exists already.
    """

    noisy = False

    def __init__(self, client: PlayClient) -> None:
        self._client = client

    def buildProtocol(self, addr: Any) -> Any:
        """
        See L{Factory.buildProtocol}.
        """
        return self._client
