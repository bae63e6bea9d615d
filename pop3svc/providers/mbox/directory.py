"""
Lock an mbox for one session, and lock the file itself during each access.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred

from pop3svc.errors import POP3ResponseError
from pop3svc.providers.files.lock import (
    LockBusy,
    LockedDirectory,
    SlowExclusiveDirectory,
)
from pop3svc.providers.files.presence import Presence
from pop3svc.providers.files.takeover import LockRegistry
from pop3svc.providers.locking import LockPolicy, pause
from pop3svc.providers.mbox.locks import LockedMbox, MboxBusy
from pop3svc.providers.mbox.place import MboxPlace
from pop3svc.providers.mbox.rewriting import checkOwner
from pop3svc.threadpool import Executor

__all__ = ["MboxDirectory", "retryWhileBusy"]

T = TypeVar("T")

# Seconds for which an access to an mbox waits while another program has locked it, and seconds
# between two attempts.  A delivery agent holds its lock for a fraction of a second.
LOCK_WAIT = 10.0
LOCK_POLL = 0.1


async def retryWhileBusy(clock: Any, attempt: Callable[[], Deferred[T]]) -> T:
    """
    Repeat work that needs the lock of an mbox until the lock is free.

    @param attempt: begins the work in a thread.
    @raise MboxBusy: the lock was not free within L{LOCK_WAIT}.
    """
    end = clock.seconds() + LOCK_WAIT
    while True:
        try:
            return await attempt()
        except MboxBusy:
            if clock.seconds() >= end:
                raise
        await pause(clock, LOCK_POLL)


class MboxDirectory(SlowExclusiveDirectory):
    """
    An mbox that no two sessions can lock at the same time.  A session locks a directory that the
    service keeps beside the mbox.  Other programs do not know this lock.  L{locked} therefore also
    locks the mbox itself during each access.
    """

    def __init__(
        self,
        mbox: MboxPlace,
        executor: Executor,
        longExecutor: Executor,
        presence: Presence | None,
        registry: LockRegistry,
        policy: LockPolicy,
    ) -> None:
        """
        See L{ExclusiveDirectory.__init__<pop3svc.providers.files.lock.ExclusiveDirectory>}.

        @param mbox: the path of the mbox.
        """
        super().__init__(mbox.own, (), executor, longExecutor, presence, registry, policy)
        self.mbox = mbox
        # Show the path of the mbox, and not the path of the service's directory, in messages to the
        # operator.
        self.path = mbox.path

    def _tryLock(
        self, prepare: Callable[[int], object] | None
    ) -> LockedDirectory | LockBusy | None:
        try:
            if self.mbox.exists():
                self.mbox.makeOwn()
                with self.mbox.locked() as mbox:
                    if mbox is not None:
                        checkOwner(mbox)
        except MboxBusy:
            # Ignore the lock of the other program here.  The first listing waits for it.
            pass
        except OSError as error:
            raise self.fault("lock", error)
        return super()._tryLock(prepare)

    async def locked(
        self, work: Callable[[LockedMbox | None], T], action: str, isLong: bool = False
    ) -> T:
        """
        Lock the mbox and call C{work} in a thread.

        @param work: a function that gets the locked mbox, or L{None} if the mbox does not exist.
        @param action: describes the work in the log; it follows the word "cannot".
        @param isLong: whether the work may take minutes.
        @raise POP3ResponseError: C{IN-USE} if another program did not release its lock within
            L{LOCK_WAIT}.
        """

        def perform() -> T:
            # If the session has no lock, the mbox did not exist at the login or at WAKE.
            if self._held is None:
                return work(None)
            try:
                with self.mbox.locked() as mbox:
                    return work(mbox)
            except OSError as error:
                raise self.fault(action, error)

        run = self.runLong if isLong else self.run
        try:
            return await retryWhileBusy(self._registry.clock, lambda: run(perform))
        except MboxBusy:
            raise POP3ResponseError("Mailbox is locked by another program.", "IN-USE")
