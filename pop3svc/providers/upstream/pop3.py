"""
A connection to another POP3 server.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import CancelledError

from pop3svc.client.failures import CommandRefused, ServerUnavailable
from pop3svc.client.logins import PasswordLogin
from pop3svc.client.protocol import POP3Client
from pop3svc.interfaces import IChunkedContent
from pop3svc.listings import isUniqueID
from pop3svc.providers.paths import uniqueIDFor
from pop3svc.providers.upstream.client import MessageRow

__all__ = ["POP3Upstream"]


class POP3Upstream(POP3Client):
    """
    A session with another POP3 server.
    """

    # A POP3 session does not see messages that arrive after its login (RFC 1939 section 8).
    seesNewMessages = False

    def __init__(self, clock: Any) -> None:
        """
        @param clock: measures the time limits.
        """
        super().__init__(clock)
        self._numbers: dict[str, int] = {}
        self._sizes: dict[int, int] = {}

    async def beginTLS(self, creator: Any) -> None:
        """
        Begin TLS with the command STLS (RFC 2595 section 4).

        @raise ServerUnavailable: the server does not offer TLS.
        """
        await self.askCapabilities()
        if not self.has("STLS"):
            raise ServerUnavailable("offers no TLS: use pop3s://, or insecure=yes")
        await self.startTLS(creator)

    async def passLogin(self, username: bytes, password: bytes) -> None:
        """
        Log in with USER and PASS, because nearly every server has these commands.

        @raise LoginRefused: the server refused the login.
        """
        name, secret = (each.decode("utf-8", "surrogateescape") for each in (username, password))
        await self.logIn(PasswordLogin(name, secret), "USER")

    async def listMessages(self) -> list[MessageRow]:
        """
        See L{Connection.listMessages<pop3svc.providers.upstream.client.Connection>}.
        """
        try:
            sizes = await self.sizes()
            names = await self.uniqueIDs()
        except CommandRefused:
            raise ServerUnavailable("refuses LIST or UIDL, but both are needed")
        if sizes.keys() != names.keys():
            self.abort("does not list the same messages in UIDL and LIST")
            raise ServerUnavailable(self.why)
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
        try:
            message: IChunkedContent = await self.retrieve(number, self._sizes[number])
            return message
        except CommandRefused:
            return None

    async def deleteMessages(self, uniqueIDs: Sequence[str]) -> None:
        """
        See L{Connection.deleteMessages<pop3svc.providers.upstream.client.Connection>}.  A POP3
        server deletes messages at QUIT (RFC 1939 section 6).  This method therefore ends the
        connection.
        """
        numbers = [self._numbers[each] for each in uniqueIDs if each in self._numbers]
        if not numbers:
            return
        try:
            for number in numbers:
                await self.delete(number)
        except (CommandRefused, ServerUnavailable, CancelledError):
            # Disconnect without QUIT, so that the server deletes nothing.
            self.abort("was disconnected, because it refuses DELE")
            raise CommandRefused(b"DELE")
        try:
            await self.quit()
        except CommandRefused:
            raise ServerUnavailable("has deleted only some of the messages")

    async def restore(self, uniqueIDs: Sequence[str]) -> None:
        """
        Do nothing, because the server forgets the marks at the end of a session (RFC 1939 section
        6).
        """


def _named(names: dict[int, str]) -> dict[str, int]:
    """
    @return: the message numbers by unique-id, in ascending order.  A message gets another unique-id
        if its own is malformed, or if an earlier message has the same.  RFC 1939 section 7 allows a
        server to give equal messages the same unique-id.
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
