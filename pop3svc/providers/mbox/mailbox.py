"""
The mailbox of one session.  Its messages are in an mbox.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from threading import Lock
from typing import Any

from zope.interface import implementer

from pop3svc.downgrading.converter import surrogateSize
from pop3svc.errors import POP3ResponseError
from pop3svc.files import areStampsTrustworthy, closeQuietly, stampFrom
from pop3svc.interfaces import (
    Eventual,
    IBulkMessageSizes,
    IExclusiveMailbox,
    IPOP3ConnectionInfo,
    IPOP3Mailbox,
    IReadOnlyMailbox,
    ISleepingMailbox,
    ISurrogates,
)
from pop3svc.listings import UniqueIDList
from pop3svc.providers.files.directory import Directory
from pop3svc.providers.mbox.content import MboxContent
from pop3svc.providers.mbox.directory import MboxDirectory, retryWhileBusy
from pop3svc.providers.mbox.gone import Gone, loadGone
from pop3svc.providers.mbox.locks import LockedMbox, MboxBusy
from pop3svc.providers.mbox.place import MboxPlace, readOwn
from pop3svc.providers.mbox.rewriting import replaceWithout
from pop3svc.providers.mbox.scan import Scan, Stored, nameMessages, readExactly, scanMessages

__all__ = ["ExclusiveMboxMailbox", "MboxFormat", "MboxMailbox", "ReadOnlyMboxMailbox", "ScanCache"]

_NOTHING = Scan((0, 0, 0, 0))
# The size in octets from which an mbox counts as large.  Reading a large mbox takes a long time.
_LARGE = 67_108_864


class ScanCache:
    """
    A cache of the latest scan of each mbox.  The sessions of an mbox share the scan.  The methods
    are thread-safe.
    """

    # The most messages in the cache.  A message takes some 500 octets.  Each mailbox counts as EACH
    # further messages.  The scan that was added last stays in the cache even if it has more
    # messages than BOUND.
    BOUND, EACH = 200_000, 5

    def __init__(self) -> None:
        self._scans: OrderedDict[tuple[int, int], Scan] = OrderedDict()
        self._messages = 0
        self._lock = Lock()

    def get(self, status: os.stat_result) -> Scan | None:
        """
        @param status: the present status of the file.
        @return: the scan; L{None} if the file has changed since the scan, or was not scanned.
        """
        key = status.st_dev, status.st_ino
        with self._lock:
            scan = self._scans.get(key)
            if scan is None or scan.stamp != stampFrom(status):
                return None
            self._scans.move_to_end(key)
            return scan

    def put(self, status: os.stat_result, scan: Scan) -> None:
        """
        Add a scan to the cache.  Do not add it if the file changed so recently that a further
        change might not change the times of the file.
        """
        key = status.st_dev, status.st_ino
        with self._lock:
            self._drop(key)
            if not areStampsTrustworthy([scan.stamp]):
                return
            self._scans[key] = scan
            self._messages += len(scan.messages) + self.EACH
            while self._messages > self.BOUND and len(self._scans) > 1:
                self._drop(next(iter(self._scans)))

    def _drop(self, key: tuple[int, int]) -> None:
        scan = self._scans.pop(key, None)
        if scan is not None:
            self._messages -= len(scan.messages) + self.EACH


class MboxFormat:
    """
    Reads the mbox files of one store.

    @ivar variant: one of L{VARIANTS<pop3svc.providers.mbox.text.VARIANTS>}.
    @ivar usesXUIDL: whether the field X-UIDL is the unique-id of a message.
    """

    def __init__(self, variant: str, usesXUIDL: bool) -> None:
        self.variant = variant
        self.usesXUIDL = usesXUIDL
        self._cache = ScanCache()

    def known(self, status: os.stat_result) -> Scan | None:
        """
        @return: the messages of an mbox; L{None} if the mbox has changed since it was scanned, or
            if the cache has no scan of it.
        """
        return self._cache.get(status)

    def scan(self, descriptor: int, gone: Gone) -> Scan:
        """
        Find the messages of an mbox that is locked.  Blocks.

        @param gone: the unique-ids of deleted messages.
        """
        status = os.fstat(descriptor)
        scan = self._cache.get(status)
        if scan is None:
            stored = scanMessages(descriptor, status.st_size, self.variant, surrogateSize)
            named = nameMessages(stored, frozenset(gone.uniqueIDs), self.usesXUIDL)
            scan = Scan(stampFrom(status), named)
            scan.listed.prepare()
            self._cache.put(status, scan)
        return scan


class _Changed(Exception):
    """
    The mbox has changed since it was scanned.
    """


@implementer(IPOP3Mailbox, IBulkMessageSizes, ISleepingMailbox, ISurrogates)
class MboxMailbox:
    """
    The mailbox of one session.  Its messages are in an mbox.  The session keeps its listing while
    other programs add and remove messages.  Each access finds the message in the present file.
    """

    hasSurrogates = True

    def __init__(self, directory: Directory, place: MboxPlace, format: MboxFormat) -> None:
        """
        @param directory: runs work in threads.
        @param place: the path of the mbox.
        """
        self._directory = directory
        self._place = place
        self._format = format
        self._scan = _NOTHING

    async def _scanned(self) -> Scan:
        """
        @return: the messages that the mbox contains now.
        """
        raise NotImplementedError

    async def listMessageUniqueIDs(self, info: IPOP3ConnectionInfo) -> UniqueIDList:
        """
        See L{IPOP3Mailbox.listMessageUniqueIDs}.
        """
        self._scan = await self._scanned()
        return self._scan.listed

    async def messageExists(self, info: IPOP3ConnectionInfo, uniqueID: str) -> bool:
        """
        See L{IPOP3Mailbox.messageExists}.
        """
        self._scan = await self._scanned()
        return uniqueID in self._scan.messages

    async def messageSize(self, info: IPOP3ConnectionInfo, uniqueID: str) -> int:
        """
        See L{IPOP3Mailbox.messageSize}.
        """
        sizes = await self.messageSizes(info, [uniqueID])
        if sizes[0] is None:
            raise POP3ResponseError("Message no longer exists.")
        return sizes[0]

    async def messageSizes(
        self, info: IPOP3ConnectionInfo, uniqueIDs: Sequence[str]
    ) -> Sequence[int | None]:
        """
        See L{IBulkMessageSizes.messageSizes}.
        """
        messages = await self._presentMessages()
        return [messages[each].octets if each in messages else None for each in uniqueIDs]

    async def _presentMessages(self) -> dict[str, Stored]:
        if not await self._directory.run(self._isPresent):
            self._scan = await self._scanned()
        return self._scan.messages

    async def surrogateSizes(
        self, info: IPOP3ConnectionInfo, uniqueIDs: Sequence[str]
    ) -> Sequence[int | None]:
        """
        See L{ISurrogates.surrogateSizes}.
        """
        messages = await self._presentMessages()
        found = (messages.get(each) for each in uniqueIDs)
        return [None if each is None else each.surrogate or each.octets for each in found]

    def needsUTF8(self, info: IPOP3ConnectionInfo, uniqueID: str) -> bool | None:
        """
        See L{ISurrogates.needsUTF8}.
        """
        stored = self._scan.messages.get(uniqueID)
        return None if stored is None else stored.surrogate > 0

    def _isPresent(self) -> bool:
        try:
            with self._place.reading() as opened:
                return opened is not None and stampFrom(opened[1]) == self._scan.stamp
        except OSError as error:
            raise self._directory.fault("read", error)

    async def messageContent(self, info: IPOP3ConnectionInfo, uniqueID: str) -> MboxContent:
        """
        See L{IPOP3Mailbox.messageContent}.
        """
        for isLast in (False, True):
            stored = self._scan.messages.get(uniqueID)
            if stored is None:
                raise POP3ResponseError("Message no longer exists.")
            try:
                descriptor, envelope = await self._directory.run(
                    self._open, stored, self._scan, abandoned=_closeOpened
                )
            except _Changed:
                if isLast:
                    break
                self._scan = await self._scanned()
                continue
            return MboxContent(
                descriptor,
                partial(closeQuietly, descriptor),
                envelope,
                stored,
                self._format.variant,
                self._directory.executor,
                self._directory.group,
            )
        raise POP3ResponseError("Mailbox is being changed by another program.", "SYS/TEMP")

    def _open(self, stored: Stored, scan: Scan) -> tuple[int, bytes]:
        try:
            descriptor = self._place.openForReading()
            if descriptor is None:
                raise _Changed
            try:
                if stampFrom(os.fstat(descriptor)) != scan.stamp:
                    raise _Changed
                octets = stored.content - stored.start
                return descriptor, readExactly(descriptor, octets, stored.start)
            except BaseException:
                closeQuietly(descriptor)
                raise
        except OSError as error:
            raise self._directory.fault("read a message of", error)

    async def messageDelete(self, info: IPOP3ConnectionInfo, uniqueIDs: Sequence[str]) -> None:
        """
        See L{IPOP3Mailbox.messageDelete}.
        """
        raise POP3ResponseError("Mailbox is read-only.", "READ-ONLY")

    def onSleep(self, info: IPOP3ConnectionInfo) -> None:
        """
        See L{ISleepingMailbox.onSleep}.
        """
        self._scan = _NOTHING


def _closeOpened(opened: tuple[int, bytes]) -> None:
    closeQuietly(opened[0])


@implementer(IReadOnlyMailbox)
class ReadOnlyMboxMailbox(MboxMailbox):
    """
    An L{MboxMailbox} of a store that deletes and writes nothing.  While it lists messages, the mbox
    is locked by fcntl() for reading.  There is no dot-lock.
    """

    def __init__(
        self, directory: Directory, place: MboxPlace, format: MboxFormat, clock: Any
    ) -> None:
        """
        See L{MboxMailbox.__init__}.

        @param clock: measures the wait for a lock.
        """
        super().__init__(directory, place, format)
        self._clock = clock

    async def _scanned(self) -> Scan:
        def attempt() -> Any:
            return self._directory.runLong(self._scanNow)

        try:
            found: Scan = await retryWhileBusy(self._clock, attempt)
        except MboxBusy:
            raise POP3ResponseError("Mailbox is locked by another program.", "IN-USE")
        return found

    def _scanNow(self) -> Scan:
        try:
            with self._place.shared() as opened:
                if opened is None:
                    return _NOTHING
                descriptor, status = opened
                gone = readOwn(self._place, lambda own: loadGone(own, status.st_ino))
                return self._format.scan(descriptor, gone or Gone())
        except OSError as error:
            raise self._directory.fault("read", error)


@implementer(IExclusiveMailbox)
class ExclusiveMboxMailbox(MboxMailbox):
    """
    An L{MboxMailbox} that no two sessions can lock at the same time, even in different processes.
    """

    _directory: MboxDirectory

    def __init__(self, directory: MboxDirectory, place: MboxPlace, format: MboxFormat) -> None:
        """
        See L{MboxMailbox.__init__}.
        """
        super().__init__(directory, place, format)

    def lock(self, info: IPOP3ConnectionInfo, requestRelease: Callable[[], bool]) -> Eventual[None]:
        """
        See L{IExclusiveMailbox.lock}.
        """
        return self._directory.lock(requestRelease, lambda _: None)

    def unlock(self, info: IPOP3ConnectionInfo) -> None:
        """
        See L{IExclusiveMailbox.unlock}.
        """
        self._scan = _NOTHING
        self._directory.unlock(lambda _: None)

    async def _scanned(self) -> Scan:
        found = await self._directory.locked(self._scanIfSmall, "read")
        if found is None:
            found = await self._directory.locked(self._scanLocked, "read", isLong=True)
        return found

    def _scanIfSmall(self, mbox: LockedMbox | None) -> Scan | None:
        if mbox is not None:
            status = mbox.status()
            if status.st_size > _LARGE:
                # The result is None if the cache has no scan of the present file.  The caller then
                # reads the mbox in a thread for long work.
                return self._format.known(status)
        return self._scanLocked(mbox)

    def _scanLocked(self, mbox: LockedMbox | None) -> Scan:
        if mbox is None:
            return _NOTHING
        gone = loadGone(mbox.own, mbox.status().st_ino)
        return self._format.scan(mbox.descriptor, gone)

    async def messageDelete(self, info: IPOP3ConnectionInfo, uniqueIDs: Sequence[str]) -> None:
        """
        See L{IPOP3Mailbox.messageDelete}.
        """
        wanted = list(uniqueIDs)
        await self._directory.locked(partial(self._remove, wanted), "delete from", isLong=True)

    def _remove(self, uniqueIDs: list[str], mbox: LockedMbox | None) -> None:
        if mbox is None:
            return
        before = loadGone(mbox.own, mbox.status().st_ino)
        messages = self._format.scan(mbox.descriptor, before).messages
        there = {each: messages[each] for each in uniqueIDs if each in messages}
        if not there:
            return
        removed = sorted((each.start, each.following) for each in there.values())
        digests = [each.digest for each in messages.values()]
        replaceWithout(mbox, removed, lambda inode: before.withMore(list(there), inode, digests))
