"""
Make the mailboxes of a store from their parts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pop3svc.files import disk, longWork
from pop3svc.providers.files.directory import Directory, SlowDirectory
from pop3svc.providers.files.listing import Caches
from pop3svc.providers.files.lock import ExclusiveDirectory, SlowExclusiveDirectory
from pop3svc.providers.files.mailbox import (
    ExclusiveFileMailbox,
    FileMailbox,
    ReadOnlyFileMailbox,
)
from pop3svc.providers.files.presence import Presence
from pop3svc.providers.files.snapshot import Format
from pop3svc.providers.files.takeover import LockRegistry
from pop3svc.providers.locking import LockPolicy
from pop3svc.providers.paths import Root
from pop3svc.threadpool import Executor

__all__ = ["MailboxMaker"]


class MailboxMaker:
    """
    Makes the mailboxes of one store.

    @ivar mailbox: takes the directory of a mailbox, which need not exist; returns the mailbox
        for one session.
    """

    def __init__(
        self,
        format: Format,
        caches: Caches,
        readOnly: bool = False,
        isSlow: bool = False,
        runner: Executor | None = None,
        manners: LockPolicy = LockPolicy(),  # noqa: B008 (it is frozen)
        clock: Any = None,
        presence: Presence | None = None,
    ) -> None:
        """
        @param format: how the directories hold messages.
        @param caches: what the mailboxes share.
        @param readOnly: delete, lock and write nothing.
        @param isSlow: whether opening a file may block for long, as on a network file
            system.
        @param runner: runs work in threads.
        @param manners: how a session acts when a mailbox is locked.
        @param presence: records which mailboxes have existed.
        """
        self._format = format
        self._caches = caches
        short, long = (disk(), longWork()) if runner is None else (runner, runner)
        arguments = format.folders, short, long, presence
        self.mailbox: Callable[[Root], FileMailbox]
        if readOnly:
            opened = SlowDirectory if isSlow else Directory
            self.mailbox = lambda place: self._readOnly(opened(place, *arguments))
        else:
            shared = LockRegistry(short, clock), manners
            locked = SlowExclusiveDirectory if isSlow else ExclusiveDirectory
            self.mailbox = lambda place: self._exclusive(locked(place, *arguments, *shared))

    def _readOnly(self, directory: Directory) -> FileMailbox:
        return ReadOnlyFileMailbox(directory, self._format, self._caches)

    def _exclusive(self, directory: ExclusiveDirectory) -> FileMailbox:
        return ExclusiveFileMailbox(directory, self._format, self._caches)
