"""
Lock the directory of a mailbox for one session, across all processes.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Lock
from typing import Any, TypeVar

from twisted.internet.defer import Deferred

from pop3svc.errors import POP3ResponseError
from pop3svc.files import FolderTimes, closeQuietly, openDirectory, openFile
from pop3svc.interfaces import Eventual
from pop3svc.providers.files.deletion import nameOfStaging, recover
from pop3svc.providers.files.directory import Directory, Opened, UserDirectory
from pop3svc.providers.files.presence import Presence
from pop3svc.providers.files.sizes import Key
from pop3svc.providers.files.sleeping import openWhileAsleep
from pop3svc.providers.files.snapshot import stampOf
from pop3svc.providers.files.takeover import LockRegistry
from pop3svc.providers.locking import LockPolicy, pause
from pop3svc.providers.paths import Root, openBelow
from pop3svc.threadpool import Executor

__all__ = [
    "ExclusiveDirectory",
    "LockBusy",
    "LockedDirectory",
    "SlowExclusiveDirectory",
    "UserExclusiveDirectory",
]

T = TypeVar("T")


class LockedDirectory:
    """
    A mailbox's directory, open and locked.  The directory itself is locked, because users could
    create, remove or own a lock file.

    @ivar isClean: whether the directory certainly needed no recovery when it was locked, and no
        removal has begun since then.
    @ivar times: the times of the folders when the directory was locked, for the first listing;
        L{None} if the times have to be read.
    """

    __slots__ = ("_folder", "_guard", "_root", "isClean", "key", "times")

    def __init__(self, root: int, key: Key, times: FolderTimes | None) -> None:
        """
        @param times: L{None} if the directory may have needed a recovery.
        """
        self.key = key
        self.isClean = times is not None
        self.times = times
        self._root: int | None = root
        # The folder that was opened last stays open for the next message in it.
        self._folder: tuple[str, int] | None = None
        # A thread whose call has timed out may still use the descriptor.
        self._guard = Lock()

    def root(self) -> int | None:
        """
        @return: another descriptor of the directory, which the caller closes; L{None} if
            the lock was released.
        """
        with self._guard:
            # dup() would share the lock.
            return None if self._root is None else openDirectory(".", self._root)

    def descriptor(self) -> int | None:
        """
        Return the descriptor itself.  Use it only in the reactor's thread, and only until the
        caller returns to the reactor.

        @return: the descriptor of the directory; L{None} if the lock was released.
        """
        return self._root

    def openIn(self, folder: str, name: str) -> tuple[int, os.stat_result] | None:
        """
        Open a file in a folder of the mailbox.  Only for use in the reactor's thread.

        @return: a descriptor and its status; L{None} if the lock was released.
        @raise OSError: the file does not exist, or is not a regular file.
        """
        if self._root is None:
            return None
        if self._folder is None or self._folder[0] != folder:
            self._closeFolder()
            self._folder = folder, openBelow(folder, self._root)
        return openFile(name, self._folder[1])

    def _closeFolder(self) -> None:
        folder, self._folder = self._folder, None
        if folder is not None:
            closeQuietly(folder[1])

    def unlock(self) -> bool:
        """
        Release the lock, and keep the directory open.

        @return: whether this was possible.
        """
        self._closeFolder()
        if self._root is None:
            return False
        try:
            fcntl.flock(self._root, fcntl.LOCK_UN)
        except OSError:
            return False
        return True

    def lockAgain(self) -> None:
        """
        Lock the directory after L{unlock}.

        @raise OSError: another session has the lock.
        """
        assert self._root is not None, "it was closed"
        fcntl.flock(self._root, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        """
        Release the lock.
        """
        self._closeFolder()
        with self._guard:
            root, self._root = self._root, None
            if root is not None:
                closeQuietly(root)


class LockBusy:
    """
    The result of an attempt to lock a mailbox that another session has locked.
    """


class ExclusiveDirectory(Directory):
    """
    A L{Directory} that one session at a time can lock, across all processes.  The kernel releases
    the lock when the process dies.  Without the lock, the directory appears not to exist.

    A sleeping session keeps the directory open, without the lock, so that it need not find the
    directory again when it wakes up.

    @cvar mayKeepOpen: whether a sleeping session may keep the directory open.
    """

    __slots__ = ("_held", "_kept", "_policy", "_registry", "_releasing", "_working")

    mayKeepOpen = True

    def __init__(
        self,
        place: Root,
        folders: Sequence[str],
        executor: Executor,
        longExecutor: Executor,
        presence: Presence | None,
        registry: LockRegistry,
        policy: LockPolicy,
    ) -> None:
        """
        @param registry: the registry that the mailboxes of one store share.
        @param policy: how a session acts when the mailbox is locked.
        """
        super().__init__(place, folders, executor, longExecutor, presence)
        # Number of calls that still run in threads, and the lock to release after the last call.
        self._working = 0
        self._releasing: LockedDirectory | None = None
        self._registry = registry
        self._policy = policy
        self._held: LockedDirectory | None = None
        # The directory of a sleeping session, which is open but not locked.
        self._kept: LockedDirectory | None = None

    # --- access while it is locked ------------------------------------------------

    def _runBy(
        self, executor: Executor, work: Callable[..., T], *arguments: Any, **named: Any
    ) -> Deferred[T]:
        self._working += 1
        ended = named.pop("ended", None)

        def worked() -> None:
            if ended is not None:
                ended()
            self._worked()

        try:
            return super()._runBy(executor, work, *arguments, ended=worked, **named)
        except BaseException:
            self._working -= 1
            raise

    def _worked(self) -> None:
        self._working -= 1
        held = self._releasing
        if held is not None and not self._working:
            self._releasing = None
            held.close()

    def open(self) -> int | None:
        """
        See L{Directory.open}.
        """
        # A mailbox that did not exist when it was locked is shown as empty.
        held = self._held
        return None if held is None else held.root()

    def checkPresence(self, root: int | None) -> None:
        """
        Do nothing, because L{lock} has checked that the mailbox exists.
        """

    def attempt(self, work: Callable[[int, Key], T]) -> T | None:
        """
        See L{Directory.attempt}.
        """
        held = self._held
        root = None if held is None else held.descriptor()
        return None if held is None or root is None else work(root, held.key)

    def timesAtLock(self) -> FolderTimes | None:
        """
        See L{Directory.timesAtLock}.
        """
        held = self._held
        if held is None:
            return None
        times, held.times = held.times, None
        return times

    def attemptFile(self, folder: str, name: str) -> Opened | None:
        """
        See L{Directory.attemptFile}.
        """
        return None if self._held is None else self._held.openIn(folder, name)

    # --- locking ------------------------------------------------------------------

    def lock(
        self,
        requestRelease: Callable[[], bool],
        prepare: Callable[[int], object],
        isUnchanged: Callable[[Key], bool] = lambda _: False,
    ) -> Eventual[None]:
        """
        Lock the directory; see L{IExclusiveMailbox.lock}.

        @param prepare: takes a descriptor of the locked directory.  If locking needs a thread,
            that thread calls this function.
        @param isUnchanged: takes the key of the directory.  Returns whether certainly no message
            was added, moved or removed since L{unlock}.
        """
        if self.isLost():
            raise POP3ResponseError("Mailbox timed out.", "SYS/TEMP")
        held: LockedDirectory | LockBusy | None = None
        if self._kept is not None:
            held = self._lockKept(isUnchanged)
        if held is None:
            held = self._tryAtOnce()
        if isinstance(held, LockBusy):
            return self._waitForLock(requestRelease, prepare)
        self._hold(held, requestRelease)
        return None

    def _lockKept(self, isUnchanged: Callable[[Key], bool]) -> LockedDirectory | None:
        """
        Lock the directory that has stayed open since L{unlock}.

        @return: L{None} if the mailbox has to be opened again.
        """
        kept = self._takeKept()
        try:
            kept.lockAgain()
            here = os.stat(self.path)
            isHere = (here.st_dev, here.st_ino) == kept.key
            # Another process may have been killed during a removal.  A removal moves messages.
            if isHere and kept.isClean and isUnchanged(kept.key):
                return kept
            root = kept.descriptor()
            cache = self._registry.cleanCache
            if isHere and root is not None:
                times = stampOf(root, self.folders)
                if cache.isClean(root, here, self.folders, times):
                    kept.isClean, kept.times = True, times
                    return kept
        except OSError:
            # Another session has the lock, or the path names no directory any more.
            pass
        kept.close()
        return None

    def _takeKept(self) -> LockedDirectory:
        kept, self._kept = self._kept, None
        assert kept is not None, "nothing was kept"
        openWhileAsleep.forget(self)
        return kept

    def closeKept(self) -> None:
        """
        See L{Directory.closeKept}.
        """
        if self._kept is not None:
            self._takeKept().close()

    def expectRemoval(self) -> None:
        """
        Record that a removal begins, so that the next lock looks for an interrupted removal.
        """
        if self._held is not None:
            self._held.isClean, self._held.times = False, None

    def _tryAtOnce(self) -> LockedDirectory | LockBusy | None:
        return self._tryLock(None)

    async def _waitForLock(
        self, requestRelease: Callable[[], bool], prepare: Callable[[int], object]
    ) -> None:
        held = await self._tryInThread(prepare)
        if isinstance(held, LockBusy):
            held = await self._waitUntilFree(prepare)
        self._hold(held, requestRelease)

    def _hold(self, held: LockedDirectory | None, requestRelease: Callable[[], bool]) -> None:
        self._held = held
        if held is not None:
            self._registry.add(self.path, self, requestRelease)

    async def _tryInThread(
        self, prepare: Callable[[int], object]
    ) -> LockedDirectory | LockBusy | None:
        return await self.run(self._tryLock, prepare, abandoned=_release)

    async def _waitUntilFree(self, prepare: Callable[[int], object]) -> LockedDirectory | None:
        """
        Ask the other session to release its lock, and wait for the release.

        @raise POP3ResponseError: C{IN-USE}, the lock was not released in time.
        """
        clock, policy = self._registry.clock, self._policy
        end = clock.seconds() + policy.wait
        wanted: int | None = None
        try:
            if policy.takeover:
                gives = self._registry.ask(self.path)
                if gives:
                    end = clock.seconds() + LockRegistry.RELEASE_TIMEOUT
                elif gives is None:
                    end = max(end, clock.seconds() + LockRegistry.RELEASE_TIMEOUT)
                    wanted = await self.run(self._signalWaiting, abandoned=_closeOne)
            while True:
                held = await self._tryInThread(prepare)
                if not isinstance(held, LockBusy):
                    return held
                if clock.seconds() >= end:
                    raise POP3ResponseError("Mailbox is locked by another session.", "IN-USE")
                if wanted is not None:
                    # The other session may have become idle by now.
                    await self.run(_touch, wanted)
                await pause(clock, LockRegistry.POLL / 2)
        finally:
            _closeOne(wanted)

    def _signalWaiting(self) -> int | None:
        """
        Signal to other processes that this process waits for the mailbox.

        @return: a descriptor, which the caller closes to end the signal; L{None} if the signal is
            not possible.
        """
        try:
            root = self._place.open()
            if root is None:
                return None
            try:
                wanted = openDirectory(nameOfStaging(root), root)
            finally:
                closeQuietly(root)
        except OSError:
            return None
        try:
            fcntl.flock(wanted, fcntl.LOCK_SH | fcntl.LOCK_NB)
            _touch(wanted)
        except OSError:
            closeQuietly(wanted)
            return None
        return wanted

    def stagingPath(self) -> str | None:
        """
        See L{Lockable.stagingPath}.
        """
        root = None if self._held is None else self._held.descriptor()
        return None if root is None else f"/proc/self/fd/{root}/{nameOfStaging(root)}"

    def isWaitedFor(self) -> bool:
        """
        See L{Lockable.isWaitedFor}.
        """
        try:
            with self.rights():
                root = self.open()
                if root is None:
                    return False
                try:
                    wanted = openDirectory(nameOfStaging(root), root)
                finally:
                    closeQuietly(root)
            try:
                fcntl.flock(wanted, fcntl.LOCK_EX | fcntl.LOCK_NB)
            finally:
                closeQuietly(wanted)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def _tryLock(
        self, prepare: Callable[[int], object] | None
    ) -> LockedDirectory | LockBusy | None:
        """
        Lock the mailbox if it is free.

        @param prepare: if this method runs in a thread, a function that takes a descriptor.  It
            is called after the recovery from an interrupted removal.  If this method runs in the
            reactor's thread, L{None}; a mailbox that needs a recovery counts as L{LockBusy}.
        @return: L{None} if the mailbox does not exist.
        """
        presence = self._presence
        times: FolderTimes | None = None
        try:
            root = self._place.open()
            if root is None:
                if prepare is None and presence is not None:
                    # The database may be read only in a thread.
                    return LockBusy()
                super().checkPresence(None)
                return None
            try:
                if prepare is not None:
                    super().checkPresence(root)
                fcntl.flock(root, fcntl.LOCK_EX | fcntl.LOCK_NB)
                status = os.fstat(root)
                if prepare is not None:
                    recover(root, self.folders)
                    prepare(root)
                else:
                    times = stampOf(root, self.folders)
                    cache = self._registry.cleanCache
                    if not cache.isClean(root, status, self.folders, times):
                        closeQuietly(root)
                        return LockBusy()
            except BaseException:
                closeQuietly(root)
                raise
        except BlockingIOError:
            return LockBusy()
        except OSError as error:
            raise self.fault("lock", error)
        # The mailbox has staging directories, so pop3svc has used it before.
        if prepare is None and presence is not None and not presence.isKnown(self.path):
            presence.isThere(self.path, isInThread=False)
        return LockedDirectory(root, (status.st_dev, status.st_ino), times)

    def unlock(self, before: Callable[[LockedDirectory], object], keepsOpen: bool = False) -> None:
        """
        Release the lock.

        @param before: called before the release of a lock.  Work that it starts in threads still
            runs under the lock.
        @param keepsOpen: whether the directory may stay open until the next L{lock} or
            L{closeKept}, because the session sleeps.
        """
        held, self._held = self._held, None
        if held is None:
            return
        self._registry.remove(self.path)
        before(held)
        if self._working:
            # A thread still works on the mailbox.  Keep the lock until the thread is done.
            self._releasing = held
        elif keepsOpen and self.mayKeepOpen and held.unlock() and openWhileAsleep.keep(self):
            self._kept = held
        else:
            held.close()


class UserExclusiveDirectory(UserDirectory, ExclusiveDirectory):
    """
    An L{ExclusiveDirectory} that is used with the rights of its user.  It is locked in a thread,
    because locking may start work in other threads.
    """

    __slots__ = ()

    mayKeepOpen = False

    def _tryAtOnce(self) -> LockedDirectory | LockBusy | None:
        return LockBusy()


class SlowExclusiveDirectory(ExclusiveDirectory):
    """
    An L{ExclusiveDirectory} on a file system where opening a file may block for long, such
    as a network file system.  All work is done in threads.
    """

    __slots__ = ()

    mayKeepOpen = False

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

    def _tryAtOnce(self) -> LockedDirectory | LockBusy | None:
        return LockBusy()

    def stagingPath(self) -> str | None:
        """
        See L{Lockable.stagingPath}.
        """
        # Inotify does not report changes that another machine makes.
        return None


def _touch(directory: int) -> None:
    with suppress(OSError):
        os.utime(directory)


def _closeOne(descriptor: int | None) -> None:
    if descriptor is not None:
        closeQuietly(descriptor)


def _release(held: LockedDirectory | LockBusy | None) -> None:
    if isinstance(held, LockedDirectory):
        held.close()
