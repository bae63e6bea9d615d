"""
Adapt mailboxes of twisted.mail.pop3 and realms of twisted.cred.

An L{IMailboxPOP3} has these limits:

  - It does not know how many octets RETR sends.  The service therefore reads each message to count
    its octets.
  - It marks messages for deletion, and C{sync()} deletes them.  Whether a deletion can delete a
    part of the messages depends on the C{sync()} and the C{undeleteMessages()} of the mailbox.
  - It cannot be locked.
  - The index of a message must not change between two listings.
  - A message with size 0 is considered deleted, because C{listMessages} reports deleted messages
    with size 0.
"""

from __future__ import annotations

from typing import Any

from twisted.cred.error import LoginFailed, UnhandledCredentials
from twisted.cred.portal import Portal
from twisted.mail.interfaces import IMailboxPOP3
from twisted.python.components import registerAdapter
from zope.interface import directlyProvides, implementer, providedBy

from pop3svc.awaiting import maybeAwait
from pop3svc.credentials import PasswordAttempt
from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import (
    IMailboxLogout,
    IPOP3ConnectionInfo,
    IPOP3Mailbox,
    IPOP3MailboxProvider,
)

__all__ = ["PortalProvider", "TwistedMailbox"]


@implementer(IPOP3Mailbox)
class TwistedMailbox:
    """
    An L{IPOP3Mailbox} that uses an L{IMailboxPOP3}.  The class is registered as an adapter.
    """

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox
        self._indexes: dict[str, int] | None = None

    async def _indexed(self) -> dict[str, int]:
        """
        @return: the indexes of the present messages by their unique-ids.  The first index is 0.
        """
        if self._indexes is None:
            sizes = await maybeAwait(self._mailbox.listMessages)
            indexes: dict[str, int] = {}
            for index, size in enumerate(sizes):
                # A message with size 0 was deleted but still has an index.
                if size:
                    uniqueID = await maybeAwait(self._mailbox.getUidl, index)
                    if isinstance(uniqueID, bytes):
                        uniqueID = uniqueID.decode("ascii", "replace")
                    if uniqueID in indexes:
                        raise ValueError("getUidl gives two messages the same unique-id")
                    indexes[uniqueID] = index
            self._indexes = indexes
        return self._indexes

    async def _index(self, uniqueID: str) -> int:
        index = (await self._indexed()).get(uniqueID)
        if index is None:
            raise POP3ResponseError("Message no longer exists.")
        return index

    async def listMessageUniqueIDs(self, info: IPOP3ConnectionInfo) -> list[str]:
        self._indexes = None
        return list(await self._indexed())

    def messageExists(self, info: IPOP3ConnectionInfo, uniqueID: str) -> bool:
        return False

    def messageSize(self, info: IPOP3ConnectionInfo, uniqueID: str) -> int:
        raise NotImplementedError

    async def messageContent(self, info: IPOP3ConnectionInfo, uniqueID: str) -> Any:
        index = await self._index(uniqueID)
        try:
            return await maybeAwait(self._mailbox.getMessage, index)
        except (ValueError, IndexError, OSError):
            raise POP3ResponseError("Message no longer exists.")

    async def messageDelete(self, info: IPOP3ConnectionInfo, uniqueIDs: list[str]) -> None:
        indexes = await self._indexed()
        try:
            for uniqueID in uniqueIDs:
                if uniqueID in indexes:
                    await maybeAwait(self._mailbox.deleteMessage, indexes[uniqueID])
            await maybeAwait(self._mailbox.sync)
        except BaseException:
            await maybeAwait(self._mailbox.undeleteMessages)
            raise
        finally:
            self._indexes = None


registerAdapter(TwistedMailbox, IMailboxPOP3, IPOP3Mailbox)


class _Avatar:
    """
    A mailbox, together with the logout function that the realm returned with it.
    """

    def __init__(self, mailbox: Any, logout: Any) -> None:
        self._mailbox = mailbox
        self.logout = logout
        directlyProvides(self, providedBy(mailbox), IMailboxLogout)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mailbox, name)


@implementer(IPOP3MailboxProvider)
class PortalProvider:
    """
    A provider for a twisted.cred realm whose avatars are L{IPOP3Mailbox}es or
    L{IMailboxPOP3}s.

    The checkers of the portal get a L{PasswordAttempt}.  It contains the address of the client, and
    says whether the connection uses TLS.
    """

    def __init__(self, portal: Portal, name: str = "pop3svc") -> None:
        """
        @param portal: the portal.  Its checkers may return a Deferred.
        @param name: see L{IPOP3MailboxProvider}.
        """
        self._portal = portal
        self.name = name

    async def authenticate(self, info: IPOP3ConnectionInfo, username: str, password: str) -> Any:
        """
        See L{IPOP3MailboxProvider.authenticate}.
        """
        credentials = PasswordAttempt(
            username.encode("utf-8", "surrogateescape"),
            password.encode("utf-8", "surrogateescape"),
            info.loginAttempt,
            clientIP=info.clientIP,
            isSecure=info.isSecure,
        )
        try:
            _, avatar, logout = await maybeAwait(
                self._portal.login, credentials, None, IPOP3Mailbox, IMailboxPOP3
            )
        except (LoginFailed, UnhandledCredentials):
            return None
        return _Avatar(IPOP3Mailbox(avatar), logout)
