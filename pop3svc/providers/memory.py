"""
Mailboxes in memory: for tests, and to see how little a store needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count

from zope.interface import implementer

from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import (
    IExclusiveMailbox,
    IMailboxStore,
    IPOP3ConnectionInfo,
    IPOP3Mailbox,
    IPOP3MailboxProvider,
)

__all__ = ["MemoryMailbox", "MemoryMaildrop", "MemoryProvider", "MemoryStore"]


class MemoryMaildrop:
    """
    What one user's sessions share.

    @ivar holder: what asks the session that holds the lock to give way, or
        L{None}.
    @ivar messages: octets by unique-id, in order of arrival.
    """

    def __init__(self, messages: Sequence[bytes] = ()) -> None:
        self.messages: dict[str, bytes] = {}
        self._serial = count(1)
        self.holder: Callable[[], bool] | None = None
        for message in messages:
            self.add(message)

    @property
    def isHeld(self) -> bool:
        """
        Does a session hold the lock?
        """
        return self.holder is not None

    def add(self, message: bytes) -> str:
        """
        A message arrives.

        @return: its unique-id.
        """
        uniqueID = f"message-{next(self._serial)}"
        self.messages[uniqueID] = message
        return uniqueID


@implementer(IPOP3Mailbox, IExclusiveMailbox)
class MemoryMailbox:
    """
    A session's view of a L{MemoryMaildrop}.
    """

    def __init__(self, maildrop: MemoryMaildrop) -> None:
        self._maildrop = maildrop

    def lock(self, info: IPOP3ConnectionInfo, requestRelease: Callable[[], bool]) -> None:
        holder = self._maildrop.holder
        # One that gives way has unlocked by the time it says so.
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

    def messageContent(self, info: IPOP3ConnectionInfo, uniqueID: str) -> bytes:
        try:
            return self._maildrop.messages[uniqueID]
        except KeyError:
            raise POP3ResponseError("Message no longer exists.")

    def messageDelete(self, info: IPOP3ConnectionInfo, uniqueIDs: list[str]) -> None:
        for uniqueID in uniqueIDs:
            self._maildrop.messages.pop(uniqueID, None)


@implementer(IMailboxStore)
class MemoryStore:
    """
    A maildrop for whoever asks.
    """

    name = "pop3svc memory"

    def __init__(self, messages: Sequence[bytes] = ()) -> None:
        """
        @param messages: what each maildrop holds at first.
        """
        self._messages = messages
        self.maildrops: dict[str, MemoryMaildrop] = {}

    def maildrop(self, username: str) -> MemoryMaildrop:
        """
        @return: what the sessions of this user share.
        """
        if username not in self.maildrops:
            self.maildrops[username] = MemoryMaildrop(self._messages)
        return self.maildrops[username]

    def openMailbox(self, info: IPOP3ConnectionInfo, username: str) -> MemoryMailbox:
        return MemoryMailbox(self.maildrop(username))


@implementer(IPOP3MailboxProvider)
class MemoryProvider:
    """
    Users and their passwords, each with a maildrop.
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
