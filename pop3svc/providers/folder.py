"""
Serve a folder of C{.eml} files as one mailbox, for the tutorial and for demos.
"""

from __future__ import annotations

import os
from typing import Any

from zope.interface import alsoProvides, implementer

from pop3svc.awaiting import Executor
from pop3svc.files import disk
from pop3svc.interfaces import IMailboxStore, IPOP3ConnectionInfo, IReadOnlyMailbox
from pop3svc.providers.filemailbox import (
    ExclusiveFileMailbox,
    FileMailbox,
    LockPolicy,
    LockRegistry,
    MailboxSnapshot,
    SizeCache,
    listFolder,
)
from pop3svc.providers.paths import Root, uniqueIDFor
from pop3svc.providers.removal import OWN_NAMES

__all__ = ["FolderMailbox", "FolderStore"]


class _Folder(FileMailbox):
    """
    A folder: the listing.
    """

    folders = (".",)

    def scan(self, root: int) -> MailboxSnapshot:
        """
        See L{FileMailbox.scan}.  The order is that of the names.
        """
        places = sorted(
            place
            for place in listFolder(root, ".")
            if place[1].lower().endswith(".eml") and not place[1].startswith(OWN_NAMES)
        )
        listing = MailboxSnapshot()
        listing.update({uniqueIDFor(place[1]): place for place in places})
        return listing


class FolderMailbox(_Folder, ExclusiveFileMailbox):
    """
    The folder, as one session sees it.
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
        self._readOnly = readOnly
        self._runner = runner
        self._policy = manners
        self._registry = LockRegistry(disk() if runner is None else runner, clock)
        self._sizes = SizeCache()

    def openMailbox(self, info: IPOP3ConnectionInfo, username: str) -> FileMailbox:
        """
        See L{IMailboxStore.openMailbox}.
        """
        if not self._readOnly:
            return FolderMailbox(
                self._place, self._sizes, self._runner, self._registry, self._policy
            )
        mailbox = _Folder(self._place, self._sizes, self._runner)
        alsoProvides(mailbox, IReadOnlyMailbox)
        return mailbox
