"""
Mailboxes that keep each message in a separate file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from zope.interface import implementer

from pop3svc.awaiting import isAwaitable
from pop3svc.files import closeQuietly
from pop3svc.interfaces import (
    Eventual,
    IBulkMessageSizes,
    IChunkedContent,
    IExclusiveMailbox,
    INewMailNotifier,
    IPOP3ConnectionInfo,
    IPOP3Mailbox,
    IReadOnlyMailbox,
    ISleepingMailbox,
    ISurrogates,
)
from pop3svc.listings import UniqueIDList
from pop3svc.providers.files.contents import contentOf
from pop3svc.providers.files.counting import SizeCounter
from pop3svc.providers.files.deletion import Place, removeEvenIfFull
from pop3svc.providers.files.directory import Directory, Opened
from pop3svc.providers.files.finder import Finder
from pop3svc.providers.files.folders import OpenFolders
from pop3svc.providers.files.listing import Caches, Listing
from pop3svc.providers.files.lock import ExclusiveDirectory
from pop3svc.providers.files.sizes import headIn
from pop3svc.providers.files.snapshot import Format
from pop3svc.threadpool import mustStop

__all__ = ["ExclusiveFileMailbox", "FileMailbox", "ReadOnlyFileMailbox"]


@implementer(IPOP3Mailbox, IBulkMessageSizes, INewMailNotifier, ISleepingMailbox, ISurrogates)
class FileMailbox:
    """
    The mailbox of one session.  It consists of several parts.  The directory locks the mailbox and
    opens files.  The format gives messages their unique-ids.  The listing contains the messages of
    the session.  The finder finds the files of messages, and the counter finds the sizes.
    """

    def __init__(self, directory: Directory, format: Format, caches: Caches) -> None:
        """
        @param directory: the directory of the mailbox.
        @param format: the format of the mailbox, which finds the messages in the directory.
        @param caches: the caches that the mailboxes of one store share.
        """
        self._directory = directory
        self._format = format
        self.listing = Listing(directory, format, caches)
        self._finder = Finder(directory, self.listing)
        self._counter = SizeCounter(directory, self.listing, self._finder, caches)

    def listMessageUniqueIDs(self, info: IPOP3ConnectionInfo) -> Eventual[UniqueIDList]:
        """
        See L{IPOP3Mailbox.listMessageUniqueIDs}.
        """
        return self.listing.refresh()

    async def messageExists(self, info: IPOP3ConnectionInfo, uniqueID: str) -> bool:
        """
        See L{IPOP3Mailbox.messageExists}.
        """
        now = await self._directory.run(self.listing.scanned)
        if uniqueID in now:
            self.listing.adopt(uniqueID, now)
            return True
        if not now.isSure:
            raise self._finder.missing(False)
        return False

    def messageSize(self, info: IPOP3ConnectionInfo, uniqueID: str) -> Eventual[int]:
        """
        See L{IPOP3Mailbox.messageSize}.
        """
        return self._counter.sizeOf(uniqueID)

    def messageSizes(
        self, info: IPOP3ConnectionInfo, uniqueIDs: Sequence[str]
    ) -> Eventual[Sequence[int | None]]:
        """
        See L{IBulkMessageSizes.messageSizes}.
        """
        return self._counter.sizesOf(uniqueIDs)

    @property
    def hasSurrogates(self) -> bool:
        """
        See L{ISurrogates.hasSurrogates}.  If the sizes come from the names of files, the mailbox
        does not know which messages need a surrogate.
        """
        return not self._format.believesNames

    def surrogateSizes(
        self, info: IPOP3ConnectionInfo, uniqueIDs: Sequence[str]
    ) -> Eventual[Sequence[int | None]]:
        """
        See L{ISurrogates.surrogateSizes}.
        """
        return self._counter.sizesOf(uniqueIDs, ofSurrogates=True)

    def needsUTF8(self, info: IPOP3ConnectionInfo, uniqueID: str) -> bool | None:
        """
        See L{ISurrogates.needsUTF8}.
        """
        return self._counter.needsUTF8(uniqueID)

    def messageContent(self, info: IPOP3ConnectionInfo, uniqueID: str) -> Eventual[IChunkedContent]:
        """
        See L{IPOP3Mailbox.messageContent}.
        """
        opened = self._finder.attempt(uniqueID)
        if opened is None:
            return self._contentAfterSearch(uniqueID)
        return self._content(uniqueID, opened)

    def _content(self, uniqueID: str, opened: Opened) -> Eventual[IChunkedContent]:
        sizes = self.listing.sizes
        known = None if sizes is None else sizes.known.get(uniqueID)
        return contentOf(self._directory, opened, known)

    async def _contentAfterSearch(self, uniqueID: str) -> IChunkedContent:
        found, isSure = await self._directory.run(
            self._finder.seek, [uniqueID], self._finder.open, abandoned=_closeAll
        )
        if uniqueID not in found:
            raise self._finder.missing(isSure)
        content: Any = self._content(uniqueID, found[uniqueID])
        if isAwaitable(content):
            content = await content
        return cast(IChunkedContent, content)

    async def messageDelete(self, info: IPOP3ConnectionInfo, uniqueIDs: Sequence[str]) -> None:
        """
        See L{IPOP3Mailbox.messageDelete}.
        """
        await self._directory.run(self._remove, list(uniqueIDs))

    def _remove(self, uniqueIDs: list[str]) -> None:
        try:
            self._directory.use(partial(self._removeIn, uniqueIDs))
        except OSError as error:
            raise self._directory.fault("delete from", error)

    def _removeIn(self, uniqueIDs: list[str], root: int) -> None:
        listing = self.listing
        wanted: list[tuple[str, Place | None]] = [(each, None) for each in uniqueIDs]
        wanted += listing.linksOf(uniqueIDs)

        def isRight(
            message: tuple[str, Place | None], place: Place, status: os.stat_result, folder: int
        ) -> bool:
            return listing.isSame(message[0], place, status, lambda: headIn(folder, place[1]))

        folders = self._directory.folders
        locate = self._finder.locator(root)
        done, failure = removeEvenIfFull(root, folders, wanted, locate, isRight)
        self._format.afterDeletion(root, [(place, status) for _, place, status in done])
        sizes = listing.sizes
        if sizes is None:
            sizes = listing.sizesIn(root)
            sizes.load(root, len(listing.current))
        if failure is not None:
            left = set(wanted).difference(message for message, _, _ in done)
            kept = {uniqueID for uniqueID, _ in left}
            uniqueIDs = [each for each in uniqueIDs if each not in kept]
        places = {each: listing.placeOf(each) for each in uniqueIDs}
        sizes.markGone(uniqueIDs, {each: place[2] for each, place in places.items() if place})
        sizes.write(root)
        if failure is not None:
            raise failure

    async def select(self, isWanted: Callable[[Place, OpenFolders], bool]) -> list[str]:
        """
        Find the messages of the listing whose files meet a condition.

        @param isWanted: takes the place of a message's file and the open folders, and returns
            whether the message is selected.  It is called in a thread.
        @return: the unique-ids of the selected messages.
        """
        return await self._directory.run(self._selected, isWanted)

    def _selected(self, isWanted: Callable[[Place, OpenFolders], bool]) -> list[str]:
        def select(root: int) -> list[str]:
            with OpenFolders(root) as opened:
                return [
                    uniqueID
                    for uniqueID, place in self.listing.current.items()
                    if not mustStop() and isWanted(place, opened)
                ]

        try:
            return self._directory.use(select) or []
        except OSError as error:
            raise self._directory.fault("read", error)

    def watchMailbox(
        self, info: IPOP3ConnectionInfo, changed: Callable[[], object]
    ) -> Callable[[], None]:
        """
        See L{INewMailNotifier.watchMailbox}.
        """
        return self.listing.watch(changed)

    def onSleep(self, info: IPOP3ConnectionInfo) -> None:
        """
        See L{ISleepingMailbox.onSleep}.
        """
        self.listing.onSleep()


@implementer(IReadOnlyMailbox)
class ReadOnlyFileMailbox(FileMailbox):
    """
    A L{FileMailbox} of a store that deletes, locks and writes nothing.
    """


@implementer(IExclusiveMailbox)
class ExclusiveFileMailbox(FileMailbox):
    """
    A L{FileMailbox} that no two sessions can lock at the same time, even in different processes.
    """

    _directory: ExclusiveDirectory

    def __init__(self, directory: ExclusiveDirectory, format: Format, caches: Caches) -> None:
        """
        See L{FileMailbox.__init__}.
        """
        super().__init__(directory, format, caches)
        self._isFallingAsleep = False

    def lock(self, info: IPOP3ConnectionInfo, requestRelease: Callable[[], bool]) -> Eventual[None]:
        """
        See L{IExclusiveMailbox.lock}.
        """
        listing = self.listing
        return self._directory.lock(requestRelease, listing.scanIfSmall, listing.isUnchanged)

    def unlock(self, info: IPOP3ConnectionInfo) -> None:
        """
        See L{IExclusiveMailbox.unlock}.
        """
        listing = self.listing
        keepsOpen = self._isFallingAsleep and listing.isWatched
        self._isFallingAsleep = False
        self._directory.unlock(partial(self._counter.save, listing.clear()), keepsOpen)

    def onSleep(self, info: IPOP3ConnectionInfo) -> None:
        """
        See L{ISleepingMailbox.onSleep}.
        """
        super().onSleep(info)
        self._isFallingAsleep = True

    async def messageDelete(self, info: IPOP3ConnectionInfo, uniqueIDs: Sequence[str]) -> None:
        """
        See L{IPOP3Mailbox.messageDelete}.
        """
        self._directory.expectRemoval()
        await super().messageDelete(info, uniqueIDs)


def _closeAll(sought: tuple[dict[str, Opened], bool]) -> None:
    for descriptor, _ in sought[0].values():
        closeQuietly(descriptor)
