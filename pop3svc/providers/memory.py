"""
Keep mailboxes in memory, for tests and as an example of a minimal store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import BinaryIO

from zope.interface import implementer

from pop3svc.errors import DeliveryError, POP3ResponseError
from pop3svc.interfaces import (
    DeliveryCopy,
    IDelivery,
    IExclusiveMailbox,
    IMailboxStore,
    IPOP3ConnectionInfo,
    IPOP3Mailbox,
    IPOP3MailboxProvider,
    ISurrogates,
)

__all__ = ["MemoryMailbox", "MemoryMaildrop", "MemoryProvider", "MemoryStore"]


class MemoryMaildrop:
    """
    The messages and the lock of one user.  All sessions of the user share this object.

    @ivar holder: the function C{requestRelease} of the session that holds the lock; L{None} if no
        session holds the lock.
    @ivar messages: the messages by their unique-ids, in order of arrival.
    """

    def __init__(self, messages: Sequence[bytes] = ()) -> None:
        self.messages: dict[str, bytes] = {}
        self._serial = count(1)
        self._imported: set[str] = set()
        self.holder: Callable[[], bool] | None = None
        for message in messages:
            self.add(message)

    @property
    def isHeld(self) -> bool:
        """
        Whether a session holds the lock.
        """
        return self.holder is not None

    def add(self, message: bytes) -> str:
        """
        Add a message.

        @return: the unique-id of the message.
        """
        uniqueID = f"message-{next(self._serial)}"
        while uniqueID in self._imported:
            uniqueID = f"message-{next(self._serial)}"
        self.messages[uniqueID] = message
        return uniqueID

    def addImported(self, uniqueID: str, message: bytes) -> None:
        """
        Add a message that already has a unique-id.  Do nothing if the mailbox has a message with
        this unique-id, or if this method has added one before.
        """
        if uniqueID not in self._imported and uniqueID not in self.messages:
            self._imported.add(uniqueID)
            self.messages[uniqueID] = message


@implementer(IPOP3Mailbox, IExclusiveMailbox, ISurrogates)
class MemoryMailbox:
    """
    A L{MemoryMaildrop} as one session uses it.
    """

    hasSurrogates = True

    def __init__(self, maildrop: MemoryMaildrop) -> None:
        self._maildrop = maildrop

    def lock(self, info: IPOP3ConnectionInfo, requestRelease: Callable[[], bool]) -> None:
        holder = self._maildrop.holder
        # If the other session agrees, it releases the lock before holder() returns.
        if holder is not None and not (holder() and not self._maildrop.isHeld):
            raise POP3ResponseError("Mailbox is locked by another session.", "IN-USE")
        self._maildrop.holder = requestRelease

    def unlock(self, info: IPOP3ConnectionInfo) -> None:
        self._maildrop.holder = None

    def listMessageUniqueIDs(self, info: IPOP3ConnectionInfo) -> list[str]:
        return list(self._maildrop.messages)

    def messageExists(self, info: IPOP3ConnectionInfo, uniqueID: str) -> bool:
        return uniqueID in self._maildrop.messages

    def messageSize(self, info: IPOP3ConnectionInfo, uniqueID: str) -> int:
        raise NotImplementedError

    def surrogateSizes(self, info: IPOP3ConnectionInfo, uniqueIDs: list[str]) -> list[int | None]:
        raise NotImplementedError

    def needsUTF8(self, info: IPOP3ConnectionInfo, uniqueID: str) -> bool | None:
        message = self._maildrop.messages.get(uniqueID, b"")
        # In tests, the message may be an object that is not bytes.
        return False if isinstance(message, bytes) and message.isascii() else None

    def messageContent(self, info: IPOP3ConnectionInfo, uniqueID: str) -> bytes:
        try:
            return self._maildrop.messages[uniqueID]
        except KeyError:
            raise POP3ResponseError("Message no longer exists.")

    def messageDelete(self, info: IPOP3ConnectionInfo, uniqueIDs: list[str]) -> None:
        for uniqueID in uniqueIDs:
            self._maildrop.messages.pop(uniqueID, None)


@implementer(IMailboxStore, IDelivery)
class MemoryStore:
    """
    A store that creates a maildrop for every user name.
    """

    name = "pop3svc memory"

    def __init__(self, messages: Sequence[bytes] = ()) -> None:
        """
        @param messages: the initial messages of each maildrop.
        """
        self._messages = messages
        self.maildrops: dict[str, MemoryMaildrop] = {}

    def maildrop(self, username: str) -> MemoryMaildrop:
        """
        @return: the maildrop that the sessions of this user share.
        """
        if username not in self.maildrops:
            self.maildrops[username] = MemoryMaildrop(self._messages)
        return self.maildrops[username]

    def openMailbox(self, info: IPOP3ConnectionInfo, username: str) -> MemoryMailbox:
        return MemoryMailbox(self.maildrop(username))

    def hasMailbox(self, username: str) -> bool:
        return username in self.maildrops

    def deliver(
        self, copies: Sequence[DeliveryCopy], content: BinaryIO
    ) -> list[DeliveryError | None]:
        content.seek(0)
        message = content.read()
        for copy in copies:
            maildrop = self.maildrop(copy.username)
            if copy.uniqueID is None:
                maildrop.add(copy.header + message)
            else:
                maildrop.addImported(copy.uniqueID, copy.header + message)
        return [None] * len(copies)


@implementer(IPOP3MailboxProvider)
class MemoryProvider:
    """
    A provider with some users.  Each user has a password and a maildrop.
    """

    name = "pop3svc memory"

    def __init__(self, passwords: Mapping[str, str], messages: Sequence[bytes] = ()) -> None:
        self.passwords = dict(passwords)
        self.store = MemoryStore(messages)

    def authenticate(
        self, info: IPOP3ConnectionInfo, username: str, password: str
    ) -> MemoryMailbox | None:
        if self.passwords.get(username) != password:
            return None
        return self.store.openMailbox(info, username)
