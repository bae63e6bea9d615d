"""
Lock the directory of a mailbox for one session.  No other session can then lock the directory, not
even in another process.
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
    The open directory of a mailbox.  It is locked until L{unlock} or L{close}.  The lock is on the
    directory itself, because users could create, remove or own a lock file.

    @ivar isClean: whether it is certain that the directory needed no recovery when it was locked,
        and that no removal has begun since then.
    @ivar times: the times of the folders when the directory was locked, for the first listing;
        L{None} if the times have to be read.
    """

    __slots__ = ("_folder", "_guard", "_root", "isClean", "key", "times")

    def __init__(self, root: int, key: Key, times: FolderTimes | None) -> None:
        """
        @param times: the times of the folders; L{None} if the directory may have needed a recovery.
        """
        self.key = key
        self.isClean = times is not None
        self.times = times
        self._root: int | None = root
        # The folder that was opened last.  It stays open for the next message in this folder.
        self._folder: tuple[str, int] | None = None
        # The guard is necessary because a thread whose call has timed out may still use the
        # descriptor.
        self._guard = Lock()

    def root(self) -> int | None:
        """
        @return: another descriptor of the directory; L{None} after L{close}.  The caller closes the
            descriptor.
        """
        with self._guard:
            # Open the directory again, because a descriptor from dup() would share the lock.
            return None if self._root is None else openDirectory(".", self._root)

    def descriptor(self) -> int | None:
        """
        Return the descriptor itself.  The caller must be in the reactor's thread, and must not use
        the descriptor after it has returned to the reactor.

        @return: the descriptor of the directory; L{None} after L{close}.
        """
        return self._root

    def openIn(self, folder: str, name: str) -> tuple[int, os.stat_result] | None:
        """
        Open a file in a folder of the mailbox.  Call this method in the reactor's thread only.

        @return: a descriptor and the status of the file; L{None} after L{close}.
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
        Release the lock, but keep the directory open.

        @return: whether the lock was released in this way.
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
        Close the directory, which releases the lock.
        """
        self._closeFolder()
        with self._guard:
            root, self._root = self._root, None
            if root is not None:
                closeQuietly(root)


class LockBusy:
    """
    The result of an attempt to lock a mailbox that another session has locked, or that cannot be
    locked in the reactor's thread.
    """


class ExclusiveDirectory(Directory):
    """
    A L{Directory} that no two sessions can lock at the same time, even in different processes.  The
    kernel releases the lock when the process dies.  While the session does not have the lock, the
    methods work as if the directory did not exist.

    A session that is asleep may keep the directory open but not locked.  The session then need not
    find the directory again when it wakes up.

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
        @param policy: the behaviour of a session if another session has locked the mailbox.
        """
        super().__init__(place, folders, executor, longExecutor, presence)
        # The number of calls that still run in threads, and the lock that has to be released after
        # the last of these calls.
        self._working = 0
        self._releasing: LockedDirectory | None = None
        self._registry = registry
        self._policy = policy
        self._held: LockedDirectory | None = None
        # The directory while the session is asleep.  It is open but not locked.
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
        # If no mailbox existed at L{lock}, the result is None, and the session lists no messages.
        held = self._held
        return None if held is None else held.root()

    def checkPresence(self, root: int | None) -> None:
        """
        Do nothing, because L{lock} has made this check.
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

        @param prepare: takes a descriptor of the locked directory.  It is called only if the
            directory is locked in a thread, and is called in this thread.
        @param isUnchanged: takes the key of the directory.  It returns whether it is certain that
            no message was added, moved or removed since L{unlock}.
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

        @return: the locked directory; L{None} if the mailbox has to be opened again.
        """
        kept = self._takeKept()
        try:
            kept.lockAgain()
            here = os.stat(self.path)
            isHere = (here.st_dev, here.st_ino) == kept.key
            # If another process was killed during a removal, a recovery is necessary.  The watch
            # reports the removal as a change, because a removal moves messages.
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
            # Another session has the lock, or the directory cannot be used any more.
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
        Record that a removal begins.  The next L{lock} then looks for a removal that was
        interrupted.
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
        Wait until the other session releases its lock.  If the policy is to take over the mailbox,
        ask the other session to do so.

        @raise POP3ResponseError: C{IN-USE}: the lock was not released in time.
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
                    # Ask again, because the other session may have become idle meanwhile.
                    await self.run(_touch, wanted)
                await pause(clock, LockRegistry.POLL / 2)
        finally:
            _closeOne(wanted)

    def _signalWaiting(self) -> int | None:
        """
        Show other processes that this process waits for the mailbox.

        @return: a descriptor, which the caller closes when it does not wait any more; L{None} if
            this is not possible.
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

        @param prepare: L{None} if this method runs in the reactor's thread.  Otherwise a function
            that is called with a descriptor of the locked mailbox, after L{recover}.
        @return: the locked directory; L{None} if the mailbox does not exist; L{LockBusy} if another
            session has the lock, or if the mailbox has to be locked in another thread.
        """
        presence = self._presence
        times: FolderTimes | None = None
        try:
            root = self._place.open()
            if root is None:
                if prepare is None and presence is not None:
                    # Try again in a thread, because the reactor's thread must not read the database
                    # of C{presence}.
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
        # Record that the mailbox exists.  No further check is needed, because the mailbox has
        # staging directories, so pop3svc has used it before.
        if prepare is None and presence is not None and not presence.isKnown(self.path):
            presence.isThere(self.path, isInThread=False)
        return LockedDirectory(root, (status.st_dev, status.st_ino), times)

    def unlock(self, before: Callable[[LockedDirectory], object], keepsOpen: bool = False) -> None:
        """
        Release the lock.

        @param before: called with the locked directory before the lock is released.  If C{before}
            starts work in threads, the lock is kept until this work has ended.
        @param keepsOpen: whether the directory may stay open until the next L{lock} or
            L{closeKept}, because the session falls asleep.
        """
        held, self._held = self._held, None
        if held is None:
            return
        self._registry.remove(self.path)
        before(held)
        if self._working:
            # Keep the lock, because a thread still works on the mailbox.
            self._releasing = held
        elif keepsOpen and self.mayKeepOpen and held.unlock() and openWhileAsleep.keep(self):
            self._kept = held
        else:
            held.close()


class UserExclusiveDirectory(UserDirectory, ExclusiveDirectory):
    """
    An L{ExclusiveDirectory} that is used with the rights of C{user}.  It is always locked in a
    thread that has these rights.
    """

    __slots__ = ()

    mayKeepOpen = False

    def _tryAtOnce(self) -> LockedDirectory | LockBusy | None:
        return LockBusy()


class SlowExclusiveDirectory(ExclusiveDirectory):
    """
    An L{ExclusiveDirectory} on a file system where opening a file may block for a long time, such
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
        # Return no path, because inotify does not report changes that another machine makes.
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
