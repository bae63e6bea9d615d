"""
Open a mailbox in the same way as a session of the service does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from zope.interface import implementer

from pop3svc.awaiting import CallTimeout, callWithTimeout, isAwaitable
from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import (
    IBulkMessageSizes,
    IExclusiveMailbox,
    IMailboxLogout,
    IMailboxStore,
    IPOP3ConnectionInfo,
    IPOP3Mailbox,
)
from pop3svc.protocol.content import MessageBody
from pop3svc.providers.locking import pause
from pop3svc.transfer.failures import NotPossible, TryAgain, Unreadable
from pop3svc.transfer.fingerprints import Fingerprint

__all__ = ["MailboxSession"]

# Seconds for which a transfer waits until another session unlocks the mailbox, and seconds between
# two attempts to lock it.
LOCK_WAIT, LOCK_POLL = 30.0, 1.0
# The number of messages whose sizes are requested by one call.
_SIZES = 1000


@implementer(IPOP3ConnectionInfo)
class _Info:
    """
    The facts that a store gets about the client of a session.  Here the client is this process.
    """

    clientIP = None
    connectionID = 0
    isSecure = True
    providerTag = None
    loginAttempt = None

    def __init__(self, username: str) -> None:
        self.userNameAtLogin = username


def _failure(error: Exception, action: str) -> Exception:
    """
    @return: the error that tells the operator why a call of the store has failed.
    """
    if isinstance(error, CallTimeout):
        return TryAgain(f"the store did not {action} in time")
    if isinstance(error, NotImplementedError):
        return NotPossible(f"the store cannot {action}")
    assert isinstance(error, POP3ResponseError)
    if error.code in ("IN-USE", "LOGIN-DELAY", "SYS/TEMP"):
        return TryAgain(f"the store cannot {action} now: {error.text}")
    return NotPossible(f"the store cannot {action}: {error.text}")


class MailboxSession:
    """
    A mailbox that is listed, and locked if it can be locked.

    @ivar uniqueIDs: the unique-ids of the messages, in order.
    """

    def __init__(self, store: Any, username: str, clock: Any, timeout: float) -> None:
        """
        @param store: the L{IMailboxStore} that opens the mailbox.
        @param timeout: the seconds that one call of the store may take.
        @raise NotPossible: the store opens no mailboxes without a password.
        """
        if not IMailboxStore.providedBy(store):
            raise NotPossible("the provider opens no mailbox without a password")
        self._store = store
        self._username = username
        self._clock = clock
        self._timeout = timeout
        self._info = _Info(username)
        self._mailbox: Any = None
        self._isLocked = False
        self.uniqueIDs: list[str] = []

    def _within(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return callWithTimeout(call, *arguments, clock=self._clock, timeout=self._timeout)

    async def _call(self, action: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """
        @param action: the action, in words that can follow "cannot" in a message.
        """
        try:
            return await self._within(call, *arguments)
        except (CallTimeout, POP3ResponseError, NotImplementedError) as error:
            raise _failure(error, action)

    async def open(self) -> None:
        """
        Lock and list the mailbox.  If another session has locked the mailbox, wait at most
        C{LOCK_WAIT} seconds until it is unlocked.

        @raise NotPossible: the mailbox cannot be opened.
        @raise TryAgain: the mailbox cannot be opened now.
        """
        opened = await self._call(
            "open the mailbox", self._store.openMailbox, self._info, self._username
        )
        if opened is None:
            raise NotPossible("there is no such user")
        self._mailbox = IPOP3Mailbox(opened)
        if IExclusiveMailbox.providedBy(self._mailbox):
            await self._lock()
        found = await self._call("list the mailbox", self._mailbox.listMessageUniqueIDs, self._info)
        self.uniqueIDs = list(found)

    async def _lock(self) -> None:
        end = self._clock.seconds() + LOCK_WAIT
        while True:
            try:
                await self._within(self._mailbox.lock, self._info, lambda: False)
                self._isLocked = True
                return
            except (CallTimeout, POP3ResponseError) as error:
                isInUse = isinstance(error, POP3ResponseError) and error.code == "IN-USE"
                if not isInUse or self._clock.seconds() >= end:
                    raise _failure(error, "lock the mailbox")
            await pause(self._clock, LOCK_POLL)

    async def sizes(self, uniqueIDs: Sequence[str]) -> dict[str, int | None]:
        """
        @return: for each message the octets that RETR sends; L{None} for a message that no longer
            exists or cannot be read.
        """
        found: dict[str, int | None] = {}
        for first in range(0, len(uniqueIDs), _SIZES):
            some = list(uniqueIDs[first : first + _SIZES])
            found.update(zip(some, await self._sizesOf(some), strict=True))
        return found

    async def _sizesOf(self, uniqueIDs: list[str]) -> list[int | None]:
        if IBulkMessageSizes.providedBy(self._mailbox):
            try:
                return list(await self._within(self._mailbox.messageSizes, self._info, uniqueIDs))
            except NotImplementedError:
                pass
            except (CallTimeout, POP3ResponseError) as error:
                raise _failure(error, "tell the sizes of messages")
        return [await self._sizeOf(each) for each in uniqueIDs]

    async def _sizeOf(self, uniqueID: str) -> int | None:
        try:
            size: int = await self._within(self._mailbox.messageSize, self._info, uniqueID)
            return size
        except NotImplementedError:
            pass
        except CallTimeout as error:
            raise _failure(error, "tell the sizes of messages")
        except POP3ResponseError as error:
            if error.code == "SYS/TEMP":
                raise _failure(error, "tell the sizes of messages")
            return None
        try:
            return (await self.fingerprint(uniqueID)).octets()
        except Unreadable:
            return None

    async def read(self, uniqueID: str, feed: Callable[[bytes], Any]) -> None:
        """
        Read a message.

        @param feed: takes each piece of the message; it may return an awaitable.
        @raise Unreadable: the message cannot be read.
        @raise TryAgain: the store does not work now.
        """
        try:
            content = await self._within(self._mailbox.messageContent, self._info, uniqueID)
            body = MessageBody(content, self._clock, self._timeout)
            try:
                while True:
                    piece = body.next()
                    if isAwaitable(piece):
                        piece = await piece
                    if piece is None:
                        return
                    fed = feed(piece)
                    if isAwaitable(fed):
                        await fed
            finally:
                body.close()
        except POP3ResponseError as error:
            if error.code in ("SYS/TEMP", "IN-USE"):
                raise _failure(error, "read a message")
            raise Unreadable(error.text.rstrip("."))
        except CallTimeout as error:
            raise _failure(error, "read a message")
        except (OSError, EOFError) as error:
            raise Unreadable(str(error) or type(error).__name__)

    async def fingerprint(self, uniqueID: str) -> Fingerprint:
        """
        Read a message to compute its size and its digest.

        @return: an object that has the size and the digest.
        @raise Unreadable: the message cannot be read.
        """
        found = Fingerprint()
        await self.read(uniqueID, found.feed)
        return found

    async def close(self) -> None:
        """
        Unlock and close the mailbox.
        """
        try:
            if self._isLocked:
                self._isLocked = False
                await self._call("unlock the mailbox", self._mailbox.unlock, self._info)
        finally:
            if IMailboxLogout.providedBy(self._mailbox):
                await self._call("close the mailbox", self._mailbox.logout)
