"""
Store new messages in Maildirs.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Container, Sequence
from threading import Lock
from typing import Any, BinaryIO, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from pop3svc.bounded import BoundedDict
from pop3svc.errors import (
    DeliveryError,
    NoSuchUser,
    POP3ResponseError,
    StoreUnavailable,
)
from pop3svc.files import FileStamp, areStampsTrustworthy, closeQuietly, stampFrom
from pop3svc.fileuser import fileUID
from pop3svc.interfaces import DeliveryCopy
from pop3svc.once import Once
from pop3svc.providers.files.presence import Presence
from pop3svc.providers.files.sizes import Key, UnsavedSizes, keyOf
from pop3svc.providers.files.snapshot import Format
from pop3svc.providers.files.storing import (
    deliverInTurn,
    nameOfDelivery,
    publish,
    refusalFor,
    removeQuietly,
    writeMessage,
)
from pop3svc.providers.maildir.names import nameWithUniqueID, parseNames
from pop3svc.providers.maildir.quota import checkQuota, recordDelivery
from pop3svc.providers.owners import Owned, Owners, executorFor
from pop3svc.providers.paths import Root, openBelow, openOrMake, uniqueIDFor
from pop3svc.threadpool import Executor, isCancelled

__all__ = ["MaildirDelivery"]

log = Logger(namespace="pop3svc")

T = TypeVar("T")

# The errors that were logged already.
_faults = Once()

# The limit on the size of a mailbox's file of sizes is computed from this number of messages.  A
# larger file is not read.  An import then uses nothing but the names of files.
_MOST_MESSAGES = 500_000


class MaildirDelivery:
    """
    Stores messages in the Maildirs of one store.
    """

    # The most mailboxes whose unique-ids are remembered during an import.
    BOUND = 16

    def __init__(
        self,
        owners: Owners,
        executor: Executor,
        presence: Presence,
        separator: str = "",
        formatFor: Callable[[str, Root], Format | None] = lambda *_: None,
    ) -> None:
        """
        @param owners: finds the Maildirs.
        @param executor: runs work in threads.
        @param presence: records which mailboxes have existed.
        @param separator: see L{MaildirStore<pop3svc.providers.maildir.store.MaildirStore>}.
        @param formatFor: takes a user and the user's Maildir, and returns a format that lists
            messages with the unique-ids of the previous server; L{None} if there was no previous
            server.
        """
        self._formatFor = formatFor
        self._owners = owners
        self._executor = executor
        self._presence = presence
        self._separator = separator
        self._imported: BoundedDict[Key, _KnownIDs] = BoundedDict(self.BOUND)
        self._lock = Lock()

    async def hasMailbox(self, username: str) -> bool:
        """
        See L{pop3svc.interfaces.IDelivery.hasMailbox}.
        """
        found = await self._owners.find(username)
        if found is None:
            return False
        try:
            return await self._run(found, self._exists, found.place)
        except OSError as error:
            self._report("look for", found.place, error)
            raise POP3ResponseError("Mailbox unavailable.", "SYS/TEMP")

    def _run(self, found: Owned, work: Callable[..., T], *arguments: Any) -> Deferred[T]:
        place, user = found
        executor = executorFor(self._executor, user)
        return executor.run(work, *arguments, group=(place.base, place.path))

    def _exists(self, place: Root) -> bool:
        if self._isThere(place):
            return True
        # If the Maildir existed before, its file system may not be mounted.  The result False would
        # make the mail server return the mail to its sender.
        self._presence.refuseIfKnown(place.path)
        return False

    @staticmethod
    def _isThere(place: Root) -> bool:
        root = place.open()
        if root is None:
            return False
        try:
            for folder in ("new", "cur"):
                try:
                    closeQuietly(openBelow(folder, root))
                except FileNotFoundError:
                    continue
                return True
        finally:
            closeQuietly(root)
        return False

    async def deliver(
        self, copies: Sequence[DeliveryCopy], content: BinaryIO
    ) -> list[DeliveryError | None]:
        """
        See L{pop3svc.interfaces.IDelivery.deliver}.
        """
        return await deliverInTurn(copies, lambda copy: self._deliver(copy, content))

    async def _deliver(self, copy: DeliveryCopy, content: BinaryIO) -> DeliveryError | None:
        try:
            found = await self._owners.find(copy.username)
        except POP3ResponseError:
            return StoreUnavailable("The mailbox is not available now.")
        if found is None:
            return NoSuchUser("There is no such user.")
        place = found.place
        try:
            await self._run(found, self._store, place, copy, content)
        except DeliveryError as error:
            return error
        except POP3ResponseError:
            # Too much work is waiting, or a thread that works on this mailbox hangs, or the mailbox
            # is missing.
            return StoreUnavailable("The mailbox is not available now.")
        except OSError as error:
            self._report("store a message in", place, error)
            return refusalFor(error)
        return None

    @staticmethod
    def _report(action: str, place: Root, error: OSError) -> None:
        if error.errno != errno.ECANCELED and _faults.isFirst((place.path, str(error))):
            log.error(
                "cannot {what} {path}: {error}",
                what=action,
                path=place.path,
                error=error.strerror or str(error),
            )

    # --- in a thread ------------------------------------------------------------------

    def _store(self, place: Root, copy: DeliveryCopy, content: BinaryIO) -> None:
        """
        @raise DeliveryError: the message was not stored, because the mailbox is full.
        @raise POP3ResponseError: the message was not stored, because the mailbox is missing.
        @raise OSError: the message was not stored, because of an error of a file, or because the
            work was cancelled.
        """
        root = self._open(place)
        try:
            source = openOrMake("tmp", root)
            try:
                target = openBelow("new", root)
                try:
                    self._storeIn(place, root, source, target, copy, content)
                finally:
                    closeQuietly(target)
            finally:
                closeQuietly(source)
        finally:
            closeQuietly(root)
        if not self._presence.isKnown(place.path):
            self._presence.isThere(place.path, isInThread=True)

    def _open(self, place: Root) -> int:
        """
        @return: a descriptor of the Maildir.  If the Maildir has never existed, it is created.
        @raise POP3ResponseError: see L{Presence.refuseIfKnown}.
        """
        root = place.open()
        try:
            if root is not None and all(_has(root, each) for each in ("new", "cur")):
                return root
            # If "new" or "cur" is missing, the directory may be a mount point without its file
            # system.
            self._presence.refuseIfKnown(place.path)
            if root is None:
                root = place.make()
            for folder in ("tmp", "new", "cur"):
                closeQuietly(openOrMake(folder, root))
        except BaseException:
            if root is not None:
                closeQuietly(root)
            raise
        return root

    def _storeIn(
        self,
        place: Root,
        root: int,
        source: int,
        target: int,
        copy: DeliveryCopy,
        content: BinaryIO,
    ) -> None:
        """
        @param root: a descriptor of the Maildir.
        @param source: a descriptor of C{tmp}.
        @param target: a descriptor of C{new}.
        """
        base, microseconds = None, None
        if copy.uniqueID is not None:
            base = nameWithUniqueID(copy.uniqueID, self._separator)
            with self._lock:
                known = self._knownIn(root, copy.username, place)
                if copy.uniqueID in known.former or known.has(root, target, base):
                    return
        if copy.arrival is not None:
            microseconds = int(copy.arrival * 1_000_000) + copy.order
        name = nameOfDelivery(microseconds)
        owner = None
        if fileUID() == 0:
            around = os.fstat(root)
            owner = around.st_uid, around.st_gid
        # Set the time of the file.  It determines the order of messages whose names contain no
        # time.
        modified = None if microseconds is None else microseconds * 1000
        written = writeMessage(source, name, copy.header, content, owner, modified)
        try:
            checkQuota(root, written.size)
            if isCancelled():
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        except BaseException:
            removeQuietly(source, name)
            raise
        newName = base or f"{name},S={written.size},W={written.wireSize}"
        if publish(source, name, target, newName, mayExist=base is not None):
            recordDelivery(root, written.size)

    def _knownIn(self, root: int, username: str, place: Root) -> _KnownIDs:
        key = keyOf(root)
        known = self._imported.get(key)
        if known is None:
            format = self._formatFor(username, place)
            former = [] if format is None else format.scan(root, UnsavedSizes())[0].listed.uniqueIDs
            known = _KnownIDs(self._separator or ":", frozenset(former))
            self._imported.put(key, known)
        return known


class _KnownIDs:
    """
    The unique-ids and names that the messages of a mailbox have or had.

    @ivar former: the unique-ids that the messages had at the beginning of the import, if there was
        a previous server; otherwise empty.
    """

    def __init__(self, separator: str, former: Container[str]) -> None:
        self.former = former
        self._separator = separator
        self._stamp: FileStamp | None = None
        self._bases: set[str] = set()
        self._sizes = UnsavedSizes()

    def has(self, root: int, new: int, base: str) -> bool:
        """
        @param root: a descriptor of the Maildir.
        @param new: a descriptor of C{new}.
        @return: whether the mailbox has or had a message with this name.
        """
        try:
            # Compare the whole name in "new", because names in this directory have no flags.
            os.stat(base, dir_fd=new, follow_symlinks=False)
        except FileNotFoundError:
            pass
        else:
            return True
        self._look(root)
        if base in self._bases:
            return True
        self._sizes.load(root, _MOST_MESSAGES)
        return self._sizes.ownerOf(uniqueIDFor(base)) is not None

    def _look(self, root: int) -> None:
        """
        List C{cur} if it has changed.
        """
        current = openBelow("cur", root)
        try:
            stamp = stampFrom(os.fstat(current))
            if stamp == self._stamp:
                return
            places = [("cur", name, 0) for name in os.listdir(current)]
        finally:
            closeQuietly(current)
        self._bases = {base for base, _, _ in parseNames(places, self._separator)}
        # Keep no stamp if it is so new that a further change might not change it.
        self._stamp = stamp if areStampsTrustworthy([stamp]) else None


def _has(root: int, folder: str) -> bool:
    try:
        os.stat(folder, dir_fd=root, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
