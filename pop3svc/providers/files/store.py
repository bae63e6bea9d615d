"""
Make the mailboxes of a store from their parts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from pop3svc.files import disk, longWork
from pop3svc.fileuser import FileUser
from pop3svc.providers.files.directory import Directory, SlowDirectory, UserDirectory
from pop3svc.providers.files.listing import Caches
from pop3svc.providers.files.lock import (
    ExclusiveDirectory,
    SlowExclusiveDirectory,
    UserExclusiveDirectory,
)
from pop3svc.providers.files.mailbox import (
    ExclusiveFileMailbox,
    FileMailbox,
    ReadOnlyFileMailbox,
)
from pop3svc.providers.files.presence import Presence
from pop3svc.providers.files.snapshot import Format
from pop3svc.providers.files.takeover import LockRegistry
from pop3svc.providers.locking import LockPolicy
from pop3svc.providers.owners import UserExecutor
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
        @param manners: what a session does when a mailbox is locked.
        @param presence: records which mailboxes have existed.
        """
        self._format = format
        short, long = (disk(), longWork()) if runner is None else (runner, runner)
        folders, registry = format.folders, LockRegistry(short, clock)
        opened, openedByUser = _directories(isSlow)
        locked, lockedByUser = _exclusiveDirectories(isSlow)
        arguments = folders, short, long, presence

        def argumentsOf(user: FileUser) -> tuple[Any, ...]:
            return folders, UserExecutor(short, user), UserExecutor(long, user), presence

        def readOnlyMailbox(
            place: Root, format: Format, user: FileUser | None
        ) -> ReadOnlyFileMailbox:
            if user is None:
                directory = opened(place, *arguments)
            else:
                directory = openedByUser(place, *argumentsOf(user))
                directory.user = user
            return ReadOnlyFileMailbox(directory, format, caches)

        def exclusiveMailbox(
            place: Root, format: Format, user: FileUser | None, manners: LockPolicy
        ) -> ExclusiveFileMailbox:
            if user is None:
                directory = locked(place, *arguments, registry, manners)
            else:
                directory = lockedByUser(place, *argumentsOf(user), registry, manners)
                directory.user = user
            return ExclusiveFileMailbox(directory, format, caches)

        self._exclusive = exclusiveMailbox
        self._make: Callable[[Root, Format, FileUser | None], FileMailbox] = readOnlyMailbox
        if not readOnly:
            self._make = partial(exclusiveMailbox, manners=manners)

    def mailbox(
        self, place: Root, format: Format | None = None, user: FileUser | None = None
    ) -> FileMailbox:
        """
        @param place: the directory of a mailbox, which need not exist.
        @param format: a format with the same folders, which replaces the format of all mailboxes.
        @param user: the user whose rights are used for the mailbox; L{None} for the rights of the
            service.
        @return: the mailbox for one session.
        """
        return self._make(place, format or self._format, user)

    def patientMailbox(
        self, place: Root, format: Format | None = None, user: FileUser | None = None
    ) -> ExclusiveFileMailbox:
        """
        @return: a mailbox like L{mailbox}.  It does not ask another session to release its lock,
            and does not wait for the lock.
        """
        return self._exclusive(place, format or self._format, user, LockPolicy(takeover=False))


def _directories(isSlow: bool) -> tuple[type[Directory], type[Directory]]:
    """
    @return: the classes of directories for the rights of the service and for the rights of a user.
    """
    return (SlowDirectory, SlowDirectory) if isSlow else (Directory, UserDirectory)


def _exclusiveDirectories(
    isSlow: bool,
) -> tuple[type[ExclusiveDirectory], Callable[..., ExclusiveDirectory]]:
    """
    @return: see L{_directories}; directories that one session at a time can lock.
    """
    if isSlow:
        return SlowExclusiveDirectory, SlowExclusiveDirectory
    return ExclusiveDirectory, UserExclusiveDirectory
