"""
Make the mailboxes of a store from their parts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from pop3svc.files import disk, longWork, useSlowFiles
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
        @param format: the format of the mailboxes, which finds the messages in a directory.
        @param caches: the caches that the mailboxes share.
        @param readOnly: whether the store deletes, locks and writes nothing.
        @param isSlow: whether opening a file may block for a long time, as on a network file
            system.
        @param runner: runs work in threads.
        @param manners: the behaviour of a session if another session has locked the mailbox.
        @param presence: records which mailboxes have existed.
        """
        self._format = format
        if isSlow:
            useSlowFiles()
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
        @param place: the directory of a mailbox.  It need not exist.
        @param format: the format of this mailbox, if it differs from the format of the other
            mailboxes.  Both formats must have the same folders.
        @param user: the user with whose rights the files are opened; L{None} for the rights of the
            service.
        @return: the mailbox for one session.
        """
        return self._make(place, format or self._format, user)

    def patientMailbox(
        self, place: Root, format: Format | None = None, user: FileUser | None = None
    ) -> ExclusiveFileMailbox:
        """
        @return: a mailbox as from L{mailbox}.  If another session has locked the mailbox, the lock
            fails at once, and the other session is not asked to release its lock.
        """
        return self._exclusive(place, format or self._format, user, LockPolicy(takeover=False))


def _directories(isSlow: bool) -> tuple[type[Directory], type[Directory]]:
    """
    @return: two classes of directories.  The first class works with the rights of the service, and
        the second class works with the rights of a user.
    """
    return (SlowDirectory, SlowDirectory) if isSlow else (Directory, UserDirectory)


def _exclusiveDirectories(
    isSlow: bool,
) -> tuple[type[ExclusiveDirectory], Callable[..., ExclusiveDirectory]]:
    """
    @return: two classes as from L{_directories}, for directories that no two sessions can lock at
        the same time.
    """
    if isSlow:
        return SlowExclusiveDirectory, SlowExclusiveDirectory
    return ExclusiveDirectory, UserExclusiveDirectory
