"""
Make the mailboxes of a store from their parts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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
        @param format: the format in which the directories hold messages.
        @param caches: the caches that the mailboxes share.
        @param readOnly: delete, lock and write nothing.
        @param isSlow: whether opening a file may block for long, as on a network file
            system.
        @param runner: runs work in threads.
        @param manners: how a session acts when a mailbox is locked.
        @param presence: records which mailboxes have existed.
        """
        self._format = format
        short, long = (disk(), longWork()) if runner is None else (runner, runner)
        arguments = format.folders, short, long, presence
        opened = SlowDirectory if isSlow else Directory
        locked = SlowExclusiveDirectory if isSlow else ExclusiveDirectory
        registry = LockRegistry(short, clock)

        def readOnlyMailbox(place: Root, format: Format) -> ReadOnlyFileMailbox:
            return ReadOnlyFileMailbox(opened(place, *arguments), format, caches)

        def exclusiveMailbox(
            place: Root, format: Format, manners: LockPolicy
        ) -> ExclusiveFileMailbox:
            return ExclusiveFileMailbox(
                locked(place, *arguments, registry, manners), format, caches
            )

        self._exclusive = exclusiveMailbox
        self._make: Callable[[Root, Format], FileMailbox] = readOnlyMailbox
        if not readOnly:
            self._make = partial(exclusiveMailbox, manners=manners)

    def mailbox(self, place: Root, format: Format | None = None) -> FileMailbox:
        """
        @param place: the directory of a mailbox, which need not exist.
        @param format: a format with the same folders, which replaces the format of all mailboxes.
        @return: the mailbox for one session.
        """
        return self._make(place, format or self._format)

    def patientMailbox(self, place: Root, format: Format | None = None) -> ExclusiveFileMailbox:
        """
        @return: like L{mailbox}, a mailbox that asks no other session to release its lock, and
            does not wait for it.
        """
        return self._exclusive(place, format or self._format, LockPolicy(takeover=False))
