"""
Ask the session that has locked a mailbox to release its lock.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from twisted.internet.interfaces import IDelayedCall

from pop3svc.errors import POP3ResponseError
from pop3svc.providers.files.deletion import CleanCache
from pop3svc.providers.files.watching import DirectoryWatcher
from pop3svc.threadpool import Executor

__all__ = ["LockRegistry", "Lockable"]


class Lockable(Protocol):
    """
    A directory that this process has locked.
    """

    def stagingPath(self) -> str | None:
        """
        @return: the path that the staging directory has now.  A process that waits for the lock
            sets the times of this directory.  The path is L{None} if inotify would not report such
            a change.
        """

    def rights(self) -> AbstractContextManager[None]:
        """
        @return: a context with the file rights that are necessary to call L{stagingPath} and to use
            its result.
        """

    def isWaitedFor(self) -> bool:
        """
        @return: whether another process waits for the lock.  Blocks.
        """


def _reactor() -> Any:
    from twisted.internet import reactor

    return reactor


class LockRegistry:
    """
    A registry of the mailboxes of a store that this process has locked.  If another process waits
    for a mailbox, it takes a shared lock on the staging directory in the mailbox.  The registry
    looks for such locks.

    @ivar cleanCache: a cache of mailboxes that need no recovery when they are locked.
    """

    # All times are in seconds.  The locked mailboxes that inotify does not watch are polled every
    # POLL seconds.  A mailbox is watched or polled when it has been locked for WATCH_AFTER seconds.
    # A session must release its lock within RELEASE_TIMEOUT after a request.
    POLL = 0.25
    WATCH_AFTER = 0.5
    RELEASE_TIMEOUT = 1.0

    def __init__(self, runner: Executor, clock: Any = None) -> None:
        self._runner = runner
        self._clock = clock
        self.cleanCache = CleanCache()
        # For each path: the directory, the function requestRelease of its session, and the time at
        # which it was locked.
        self._held: dict[str, tuple[Lockable, Callable[[], bool], float]] = {}
        self._timer: IDelayedCall | None = None
        self._watcher: DirectoryWatcher | None = None
        # The locked mailboxes that inotify watches, and the numbers of their watches.  These
        # mailboxes are not polled.
        self._watched: dict[str, int] = {}

    @property
    def clock(self) -> Any:
        """
        The reactor, or the clock that a test has passed.
        """
        if self._clock is None:
            self._clock = _reactor()
        return self._clock

    def add(self, path: str, directory: Lockable, requestRelease: Callable[[], bool]) -> None:
        """
        Register a mailbox that a session of this process has locked.
        """
        self._held[path] = directory, requestRelease, self.clock.seconds()
        self._pollLater()

    def remove(self, path: str) -> None:
        """
        Forget a mailbox whose lock was released.
        """
        self._held.pop(path, None)
        number = self._watched.pop(path, None)
        if number is not None and self._watcher is not None:
            self._watcher.end(number)
        if not self._held and self._timer is not None and self._timer.active():
            self._timer.cancel()
            self._timer = None

    def ask(self, path: str) -> bool | None:
        """
        Ask the session that holds a lock to release it.

        @return: whether the session releases the lock; L{None} if the lock is not held by a session
            of this process.
        """
        held = self._held.get(path)
        return None if held is None else held[1]()

    def _pollLater(self) -> None:
        if self._timer is None and len(self._held) > len(self._watched):
            self._timer = self.clock.callLater(self.POLL, self._poll)

    def _poll(self) -> None:
        self._timer = None
        old = self.clock.seconds() - self.WATCH_AFTER
        # Most sessions end before they are WATCH_AFTER seconds old.  Let inotify watch the
        # mailboxes of the older sessions from now on.  Look for earlier requests once, because
        # inotify does not report them.
        paths = [
            path
            for path, (_, _, since) in self._held.items()
            if since <= old and path not in self._watched
        ]
        for path in paths:
            self._watch(path)
        if paths:
            self._findWaiting(paths)
        else:
            self._pollLater()

    def _watch(self, path: str) -> None:
        if self._watcher is None:
            self._watcher = DirectoryWatcher(self.clock)
        held, watcher = self._held[path][0], self._watcher

        def touched(isGone: bool) -> None:
            if isGone:
                del self._watched[path]
                self._pollLater()
            else:
                self._findWaiting([path])

        with held.rights():
            place = held.stagingPath()
            number = None if place is None else watcher.watch(place, touched)
        if number is not None:
            self._watched[path] = number

    def _findWaiting(self, paths: list[str]) -> None:
        directories = {path: self._held[path][0] for path in paths}
        try:
            looking = self._runner.run(
                lambda: [path for path, each in directories.items() if each.isWaitedFor()]
            )
        except POP3ResponseError:
            # Ignore the error.  Too much work is waiting for a thread, and the next poll or inotify
            # event tries again.
            self._askToRelease([])
            return
        looking.addCallbacks(self._askToRelease, lambda _: self._askToRelease([]))

    def _askToRelease(self, wanted: list[str]) -> None:
        for path in wanted:
            self.ask(path)
        self._pollLater()
