"""
A mailbox of another server, as one session uses it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from zope.interface import implementer

from pop3svc.client.failures import CommandRefused, ServerUnavailable
from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import (
    IBulkMessageSizes,
    IChunkedContent,
    IMailboxLogout,
    IPOP3ConnectionInfo,
    IPOP3Mailbox,
    ISleepingMailbox,
)
from pop3svc.lineendings import WireSizeCounter
from pop3svc.listings import UniqueIDList
from pop3svc.providers.upstream.client import Connection, MessageRow

__all__ = ["UpstreamMailbox"]


@implementer(IChunkedContent)
class _Counted:
    """
    The content of a message.  Its octets are counted while it is read.
    """

    def __init__(self, content: IChunkedContent, learned: Callable[[int], object], report: Any):
        """
        @param learned: called with the size of the message when all of it was read.
        @param report: takes an L{ServerUnavailable} and returns the error for the client.
        """
        self._content = content
        self._learned = learned
        self._report = report
        self._count = WireSizeCounter()

    async def nextChunk(self) -> bytes | None:
        """
        See L{IChunkedContent.nextChunk}.
        """
        try:
            chunk: bytes | None = await self._content.nextChunk()  # type: ignore[misc]
        except ServerUnavailable as error:
            raise self._report(error)
        if chunk is None:
            self._learned(self._count.total())
        else:
            self._count.feed(chunk)
        return chunk

    def close(self) -> None:
        """
        See L{IChunkedContent.close}.
        """
        self._content.close()


@implementer(IPOP3Mailbox, IBulkMessageSizes, IMailboxLogout, ISleepingMailbox)
class UpstreamMailbox:
    """
    The mailbox of one session on another server.  It never uses two connections at the same time.
    It makes a new connection when the previous one has ended, or when this is necessary to see new
    messages.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        report: Callable[[ServerUnavailable], POP3ResponseError],
        believesSizes: bool,
    ) -> None:
        """
        @param connect: connects and logs in.
        @param report: logs that the server is unavailable, and returns the error for the client.
        @param believesSizes: whether to trust the sizes that the server reports.
        """
        self._connect = connect
        self._report = report
        self._believesSizes = believesSizes
        self._connection: Connection | None = None
        self._present: dict[str, int] = {}
        # The sizes of messages that were read, by unique-id.
        self._known: dict[str, int] = {}
        self._isListed = False

    async def logIn(self) -> None:
        """
        Connect and log in.
        """
        self._connection = await self._connect()

    async def _ready(self) -> Connection:
        """
        @return: a connection that has listed its messages.
        """
        connection = self._connection
        if connection is None or connection.isLost:
            self._connection = None
            connection = self._connection = await self._connect()
            self._isListed = False
        if not self._isListed:
            rows = await self._rows(connection)
            self._present = {each.uniqueID: each.octets for each in rows}
            self._isListed = True
        return connection

    async def _rows(self, connection: Connection) -> list[MessageRow]:
        try:
            return await connection.listMessages()
        except ServerUnavailable as error:
            raise self._report(error)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.leave()

    async def listMessageUniqueIDs(self, info: IPOP3ConnectionInfo) -> UniqueIDList:
        """
        See L{IPOP3Mailbox.listMessageUniqueIDs}.
        """
        connection = self._connection
        if self._isListed and connection is not None and not connection.seesNewMessages:
            self._drop()
        self._isListed = False
        await self._ready()
        self._known = {each: self._known[each] for each in self._known if each in self._present}
        return UniqueIDList(self._present)

    async def messageExists(self, info: IPOP3ConnectionInfo, uniqueID: str) -> bool:
        """
        See L{IPOP3Mailbox.messageExists}.
        """
        connection = await self._ready()
        if uniqueID not in self._present and connection.seesNewMessages:
            self._isListed = False
            await self._ready()
        return uniqueID in self._present

    async def messageSize(self, info: IPOP3ConnectionInfo, uniqueID: str) -> int:
        """
        See L{IPOP3Mailbox.messageSize}.
        """
        await self._ready()
        if uniqueID not in self._present:
            raise POP3ResponseError("Message no longer exists.")
        known = self._known.get(uniqueID)
        if known is not None:
            return known
        if not self._believesSizes:
            raise NotImplementedError
        return self._present[uniqueID]

    async def messageSizes(
        self, info: IPOP3ConnectionInfo, uniqueIDs: Sequence[str]
    ) -> Sequence[int | None]:
        """
        See L{IBulkMessageSizes.messageSizes}.
        """
        await self._ready()
        if not self._believesSizes:
            # Raise this error, so that the service asks for the size of each message.
            raise NotImplementedError
        present, known = self._present, self._known
        return [known.get(each, present[each]) if each in present else None for each in uniqueIDs]

    async def messageContent(self, info: IPOP3ConnectionInfo, uniqueID: str) -> IChunkedContent:
        """
        See L{IPOP3Mailbox.messageContent}.
        """
        connection = await self._ready()
        try:
            content = await connection.openMessage(uniqueID)
        except ServerUnavailable as error:
            raise self._report(error)
        if content is None:
            raise POP3ResponseError("Message no longer exists.")

        def learned(octets: int) -> None:
            self._known[uniqueID] = octets

        return _Counted(content, learned, self._report)

    async def messageDelete(self, info: IPOP3ConnectionInfo, uniqueIDs: Sequence[str]) -> None:
        """
        See L{IPOP3Mailbox.messageDelete}.  The other server deletes the messages.  If the reply of
        the server does not show whether it has deleted all of them, the mailbox lists the messages
        again.
        """
        for isLast in (False, True):
            connection = await self._ready()
            try:
                await connection.deleteMessages(uniqueIDs)
                for each in uniqueIDs:
                    self._present.pop(each, None)
                return
            except CommandRefused:
                if isLast:
                    raise POP3ResponseError("Messages were not deleted.", "SYS/TEMP")
                # List again at the next access, because another session may have deleted some of
                # these messages.
                self._drop()
            except ServerUnavailable as error:
                await self._verify(uniqueIDs, error)
                return

    async def _verify(self, uniqueIDs: Sequence[str], error: ServerUnavailable) -> None:
        """
        Find out whether all messages were deleted.

        @raise POP3ResponseError: some of the messages still exist, or the mailbox cannot find out
            whether they exist.
        """
        failure = self._report(error)
        self._drop()
        connection = await self._ready()
        left = [each for each in uniqueIDs if each in self._present]
        if left:
            await connection.restore(left)
            raise failure

    def onSleep(self, info: IPOP3ConnectionInfo) -> None:
        """
        See L{ISleepingMailbox.onSleep}.  The connection ends, so that another session can use the
        mailbox meanwhile.
        """
        self._drop()
        self._present = {}

    def logout(self) -> None:
        """
        See L{IMailboxLogout.logout}.
        """
        self._drop()
