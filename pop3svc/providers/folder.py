"""
Serve a folder of C{.eml} files as one mailbox.  This store is for the tutorial and for demos.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, BinaryIO

from zope.interface import alsoProvides, implementer

from pop3svc.errors import DeliveryError, POP3ResponseError, StoreUnavailable
from pop3svc.files import closeQuietly, disk
from pop3svc.interfaces import DeliveryCopy, IDelivery, IMailboxStore, IPOP3ConnectionInfo
from pop3svc.providers.files.deletion import OWN_NAMES, Place
from pop3svc.providers.files.folders import MessageRef, identify
from pop3svc.providers.files.listing import Caches
from pop3svc.providers.files.mailbox import FileMailbox
from pop3svc.providers.files.scanning import scanPlaces, sortRefs
from pop3svc.providers.files.sizes import MailboxSizes, SizeCache, UnsavedSizes
from pop3svc.providers.files.snapshot import MailboxSnapshot, NoListingCache, Stamp
from pop3svc.providers.files.store import MailboxMaker
from pop3svc.providers.files.storing import (
    deliverInTurn,
    nameOfDelivery,
    publish,
    refusalFor,
    writeMessage,
)
from pop3svc.providers.files.watching import Inotify
from pop3svc.providers.locking import LockPolicy
from pop3svc.providers.paths import Root, uniqueIDFor
from pop3svc.threadpool import Executor

__all__ = ["FolderStore"]


class _FolderFormat:
    """
    The format of a folder.  Each file whose name ends with C{.eml}, in upper or lower case, is a
    message.  Hidden files are no messages.  The messages are in the order of the names of their
    files.
    """

    folders = (".",)
    believesNames = False

    def scan(self, root: int, sizes: MailboxSizes) -> tuple[MailboxSnapshot, Stamp]:
        """
        See L{Format.scan<pop3svc.providers.files.snapshot.Format.scan>}.
        """
        scan = scanPlaces(root, self.folders)
        found: list[MessageRef] = [
            (0, 0, place[1], uniqueIDFor(place[1]), place)
            for place in scan.places
            if place[1].lower().endswith(".eml") and not place[1].startswith(OWN_NAMES)
        ]
        doubts: list[Place] = []
        sizes.load(root, len(found))
        identify(root, self.folders, found, sizes, doubts, comparesAll=True)
        return scan.snapshot(sortRefs(found), not doubts), scan.stamp

    def sizesInNames(self, names: Sequence[str]) -> list[int | None]:
        """
        See L{Format.sizesInNames<pop3svc.providers.files.snapshot.Format.sizesInNames>}.  The names
        of the files do not contain the sizes.
        """
        return [None] * len(names)

    def afterDeletion(self, root: int, files: Sequence[tuple[Place, os.stat_result]]) -> None:
        """
        Do nothing, because no other file depends on the messages.
        """


@implementer(IMailboxStore)
class FolderStore:
    """
    A store that opens the same folder for every user.  A store that is not read-only also provides
    L{IDelivery<pop3svc.interfaces.IDelivery>}.
    """

    name = "pop3svc"

    def __init__(
        self,
        path: str,
        readOnly: bool = False,
        runner: Executor | None = None,
        manners: LockPolicy = LockPolicy(),  # noqa: B008 (it is frozen)
        clock: Any = None,
    ) -> None:
        """
        @param path: the path of the folder.
        @param readOnly: whether the store deletes, locks and writes nothing.
        @param manners: the behaviour of a session if another session has locked the mailbox.
        @raise ValueError: the folder does not exist.  The text is a sentence for the operator.
        """
        if not os.path.isdir(path):
            raise ValueError(f"{path or 'the path'} is not a directory")
        self._place = Root(os.path.abspath(path))
        self._executor = disk() if runner is None else runner
        if not readOnly:
            alsoProvides(self, IDelivery)
        self._maker = MailboxMaker(
            _FolderFormat(),
            # Scan the folder for each listing, because people edit files, and an edit does not
            # change the times of the folder.
            Caches(NoListingCache(), SizeCache(UnsavedSizes), Inotify(isOff=True)),
            *(readOnly, False, runner, manners, clock),
        )

    def openMailbox(self, info: IPOP3ConnectionInfo, username: str) -> FileMailbox:
        """
        See L{IMailboxStore.openMailbox}.
        """
        return self._maker.mailbox(self._place)

    def hasMailbox(self, username: str) -> bool:
        """
        See L{IDelivery.hasMailbox}.  The result is always true, because all users share the folder.
        """
        return True

    async def deliver(
        self, copies: Sequence[DeliveryCopy], content: BinaryIO
    ) -> list[DeliveryError | None]:
        """
        See L{IDelivery.deliver}.  If the message already has a unique-id, the name of the file is
        made from this unique-id.
        """
        return await deliverInTurn(copies, lambda copy: self._deliver(copy, content))

    async def _deliver(self, copy: DeliveryCopy, content: BinaryIO) -> DeliveryError | None:
        try:
            await self._executor.run(
                self._store, copy, content, group=(self._place.base, self._place.path)
            )
        except OSError as failure:
            return refusalFor(failure)
        except POP3ResponseError:
            return StoreUnavailable("The mailbox is not available now.")
        return None

    def _store(self, copy: DeliveryCopy, content: BinaryIO) -> None:
        arrival = None if copy.arrival is None else int(copy.arrival * 1_000_000) + copy.order
        name = nameOfDelivery(arrival)
        newName = f"{name}.eml"
        if copy.uniqueID is not None:
            stem = copy.uniqueID.removesuffix(".eml")
            isName = stem and not stem.startswith(".") and "/" not in stem
            newName = f"{stem if isName else uniqueIDFor(stem, 'name')}.eml"
        root = self._place.open()
        if root is None:
            raise FileNotFoundError
        try:
            # Write the message under a hidden name first, because sessions would list an incomplete
            # file whose name ends with ".eml".
            hidden = f".{name}.new"
            writeMessage(root, hidden, copy.header, content)
            publish(root, hidden, root, newName, mayExist=copy.uniqueID is not None)
        finally:
            closeQuietly(root)
