"""
Serve a folder of C{.eml} files as one mailbox, for the tutorial and for demos.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from zope.interface import implementer

from pop3svc.interfaces import IMailboxStore, IPOP3ConnectionInfo
from pop3svc.providers.files.deletion import OWN_NAMES, Place
from pop3svc.providers.files.folders import MessageRef, identify
from pop3svc.providers.files.listing import Caches
from pop3svc.providers.files.mailbox import FileMailbox
from pop3svc.providers.files.scanning import scanPlaces, sortRefs
from pop3svc.providers.files.sizes import MailboxSizes, MessageInfo, SizeCache, UnsavedSizes
from pop3svc.providers.files.snapshot import MailboxSnapshot, NoListingCache, Stamp
from pop3svc.providers.files.store import MailboxMaker
from pop3svc.providers.files.watching import Inotify
from pop3svc.providers.locking import LockPolicy
from pop3svc.providers.paths import Root, uniqueIDFor
from pop3svc.threadpool import Executor

__all__ = ["FolderStore"]


class _FolderFormat:
    """
    Files whose name ends with C{.eml}, in the order of their names.
    """

    folders = (".",)

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

    def sizesInNames(
        self, uniqueIDs: Iterable[str], places: Iterable[Place | None]
    ) -> dict[str, MessageInfo]:
        """
        Return nothing, because the names give no sizes.
        """
        return {}

    def afterDeletion(self, root: int, files: Sequence[tuple[Place, os.stat_result]]) -> None:
        """
        Do nothing, because no other file depends on the messages.
        """


@implementer(IMailboxStore)
class FolderStore:
    """
    A store that opens the same folder for every user.
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
        @param path: the folder.
        @param readOnly: delete, lock and write nothing.
        @param manners: how a session acts when a mailbox is locked.
        @raise ValueError: a sentence for the operator.
        """
        if not os.path.isdir(path):
            raise ValueError(f"{path or 'the path'} is not a directory")
        self._place = Root(os.path.abspath(path))
        self._maker = MailboxMaker(
            _FolderFormat(),
            # People edit files, and that does not change the times of the folder.
            Caches(NoListingCache(), SizeCache(UnsavedSizes), Inotify(isOff=True)),
            *(readOnly, False, runner, manners, clock),
        )

    def openMailbox(self, info: IPOP3ConnectionInfo, username: str) -> FileMailbox:
        """
        See L{IMailboxStore.openMailbox}.
        """
        return self._maker.mailbox(self._place)
