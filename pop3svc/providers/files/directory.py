"""
Open the root directory of a mailbox, and the files in it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from pop3svc.errors import POP3ResponseError
from pop3svc.files import FolderTimes, closeQuietly, openFile
from pop3svc.fileuser import FileUser, asUser
from pop3svc.once import Once
from pop3svc.providers.files.presence import Presence
from pop3svc.providers.files.sizes import Key, keyOf
from pop3svc.providers.paths import Root, openBelow
from pop3svc.threadpool import Executor

__all__ = ["PERMANENT", "Directory", "Opened", "SlowDirectory", "UserDirectory"]

log = Logger(namespace="pop3svc")

# The errors of files that were logged already.
_faults = Once()

# Errors that stay until the operator removes their cause.  All other errors may be temporary.
PERMANENT = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.EROFS)

T = TypeVar("T")

# A descriptor of an open file, and the status of the file.
Opened = tuple[int, os.stat_result]


class Directory:
    """
    The root directory of a mailbox.  Any number of sessions may read the mailbox at the same time.

    @ivar path: the path of the directory.
    @ivar folders: the names of the directories in it that contain messages.
    @ivar executor: runs work on this mailbox in threads.
    @ivar group: the group for L{Executor.run}.  It consists of the base path, which stands for the
        file system, and the path of this directory.
    @ivar user: the user with whose rights the executors work; L{None} for the rights of the
        service.
    """

    __slots__ = (
        "_longExecutor",
        "_place",
        "_presence",
        "executor",
        "folders",
        "group",
        "path",
        "user",
    )

    def __init__(
        self,
        place: Root,
        folders: Sequence[str],
        executor: Executor,
        longExecutor: Executor,
        presence: Presence | None = None,
    ) -> None:
        """
        @param place: the directory.  It need not exist.
        @param longExecutor: runs work that may take minutes.
        @param presence: records which mailboxes have existed.
        """
        self.path = place.path
        self.folders = folders
        self.executor = executor
        self.group = place.base, self.path
        self._place = place
        self._longExecutor = longExecutor
        self._presence = presence
        self.user: FileUser | None = None

    # --- in threads -------------------------------------------------------------

    def run(self, work: Callable[..., T], *arguments: Any, **named: Any) -> Deferred[T]:
        """
        Run work on this mailbox in a thread; see L{Executor.run}.
        """
        return self._runBy(self.executor, work, *arguments, **named)

    def runLong(self, work: Callable[..., T], *arguments: Any, **named: Any) -> Deferred[T]:
        """
        Run work that may take minutes in a thread; see L{Executor.run}.
        """
        return self._runBy(self._longExecutor, work, *arguments, **named)

    def _runBy(
        self, executor: Executor, work: Callable[..., T], *arguments: Any, **named: Any
    ) -> Deferred[T]:
        return executor.run(work, *arguments, group=self.group, **named)

    def rights(self) -> AbstractContextManager[None]:
        """
        @return: a context with the file rights of C{user}, for work outside the executors.
        """
        return nullcontext() if self.user is None else asUser(self.user)

    def isLost(self) -> bool:
        """
        @return: whether a thread that works on this mailbox hangs.
        """
        return self.executor.isLost(self.group) or self._longExecutor.isLost(self.group)

    def open(self) -> int | None:
        """
        Open the directory.  Blocks.

        @return: a descriptor; L{None} if the directory does not exist.  The caller closes the
            descriptor.
        @raise OSError: the directory cannot be opened.
        """
        return self._place.open()

    def use(self, work: Callable[[int], T]) -> T | None:
        """
        Call C{work} with a descriptor of the directory.  Blocks.

        @return: the result of C{work}; L{None} if the directory does not exist.
        @raise OSError: the directory cannot be opened.
        """
        root = self.open()
        if root is None:
            return None
        try:
            return work(root)
        finally:
            closeQuietly(root)

    def openFile(self, folder: str, name: str) -> Opened | None:
        """
        Open a file in a folder of the mailbox.  Blocks.

        @return: the open file; L{None} if the directory does not exist.
        @raise OSError: the file does not exist, or is not a regular file.
        """

        def opened(root: int) -> Opened:
            directory = openBelow(folder, root)
            try:
                return openFile(name, directory)
            finally:
                closeQuietly(directory)

        return self.use(opened)

    def checkPresence(self, root: int | None) -> None:
        """
        Record that this mailbox exists.  If the directory or one of its folders is missing, log
        this fact or refuse the session.  Blocks.

        @param root: a descriptor of the directory; L{None} if the directory does not exist.
        @raise POP3ResponseError: see
            L{isMissing<pop3svc.providers.files.presence.Presence.isMissing>}.
        """
        presence, path = self._presence, self.path
        if presence is None:
            return
        if root is None or not self._isWhole(root):
            presence.isMissing(path)
        elif not presence.isKnown(path):
            presence.isThere(path, isInThread=True)

    def _isWhole(self, root: int) -> bool:
        """
        @return: whether all directories for messages exist.  If not, the mailbox may be a mount
            point without its file system.
        """
        try:
            for folder in self.folders:
                # Follow a link, because its target may be missing as well.
                os.stat(folder, dir_fd=root)
        except FileNotFoundError:
            return False
        return True

    # --- in the reactor's thread --------------------------------------------------

    def attempt(self, work: Callable[[int, Key], T]) -> T | None:
        """
        Call C{work} in the reactor's thread, with a descriptor and the key of the directory.

        @return: the result of C{work}; L{None} if the directory does not exist, or if it must be
            opened in a thread.
        @raise OSError: the directory cannot be opened.
        """
        return self.use(lambda root: work(root, keyOf(root)))

    def attemptFile(self, folder: str, name: str) -> Opened | None:
        """
        Open a file in a folder of the mailbox, in the reactor's thread.

        @return: the open file; L{None} if the directory does not exist, or if the file must be
            opened in a thread.
        @raise OSError: the file does not exist, or is not a regular file.
        """
        return self.openFile(folder, name)

    def timesAtLock(self) -> FolderTimes | None:
        """
        Take and forget the times that the folders had when the directory was locked.  Call this
        method at the beginning of each listing, because only the first listing after the lock may
        use the times.

        @return: see L{stampOf<pop3svc.providers.files.snapshot.stampOf>}; L{None} if the times have
            to be read.
        """
        return None

    def closeKept(self) -> None:
        """
        Close the directory if it was kept open for a sleeping session.  Only an
        L{ExclusiveDirectory<pop3svc.providers.files.lock.ExclusiveDirectory>} is kept open.
        """

    # --- in any thread --------------------------------------------------------------

    def fault(self, action: str, error: OSError, name: str = "") -> POP3ResponseError:
        """
        Log an error of a file, unless it was logged before.

        @param action: describes the action in the log; it follows the word "cannot".
        @param name: the name of a file in the mailbox.
        @return: the error for the client.
        """
        if error.errno != errno.ECANCELED and _faults.isFirst((self.path, name, str(error))):
            log.error(
                "cannot {what} {path}: {error}",
                what=action,
                path=f"{self.path}/{name}" if name else self.path,
                error=error.strerror,
            )
        code = "SYS/PERM" if error.errno in PERMANENT else "SYS/TEMP"
        return POP3ResponseError("Mailbox unavailable.", code)


class UserDirectory(Directory):
    """
    A L{Directory} that is used with the rights of C{user}, even in the reactor's thread.
    """

    __slots__ = ()

    def attempt(self, work: Callable[[int, Key], T]) -> T | None:
        """
        See L{Directory.attempt}.
        """
        with self.rights():
            return super().attempt(work)

    def attemptFile(self, folder: str, name: str) -> Opened | None:
        """
        See L{Directory.attemptFile}.
        """
        with self.rights():
            return super().attemptFile(folder, name)


class SlowDirectory(Directory):
    """
    A L{Directory} on a file system where opening a file may block for a long time, such as a
    network file system.  All work is done in threads.
    """

    __slots__ = ()

    def attempt(self, work: Callable[[int, Key], T]) -> T | None:
        """
        See L{Directory.attempt}.
        """
        return None

    def attemptFile(self, folder: str, name: str) -> Opened | None:
        """
        See L{Directory.attemptFile}.
        """
        return None
