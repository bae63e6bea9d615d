"""
Check passwords with functions that block, such as functions of a C library.  The checks run in
separate threads, and each check has a time limit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from pop3svc.accounts.hashing import CheckQueue
from pop3svc.awaiting import CallTimeout, awaitWithTimeout
from pop3svc.errors import POP3ResponseError
from pop3svc.health import Health
from pop3svc.policy import Policy
from pop3svc.threadpool import BoundedThreadPool, Executor

__all__ = ["CONCURRENT", "MOST_LOST", "MOST_WAITING", "BlockingChecks", "CheckUnavailable"]

log = Logger(namespace="pop3svc")

T = TypeVar("T")

# The most checks that run at the same time.  Each needs a thread, which takes some 100 KiB.
CONCURRENT = 10
# The most logins that may wait for their check.  Each takes about 2 KiB.
MOST_WAITING = 1000
# The most threads that may hang in checks whose time limit has passed.  Without this limit, a
# library that does not return would take another thread for each login.
MOST_LOST = 16


class CheckUnavailable(Exception):
    """
    A check has no result, because the source of accounts has failed.  The text of the exception is
    the reason, for the operator.  It contains neither the name nor the password of the login.
    """


class _Threads(BoundedThreadPool):
    """
    Threads for checks.
    """

    # A thread counts as lost 0 seconds after its check was cancelled.  The pool need not wait
    # longer, because a check never finds out that it was cancelled.
    GRACE = 0.0


class _Check:
    """
    A check that runs in a thread.

    @ivar isOver: whether the thread has returned, or will never begin the check.
    @ivar isLost: whether the time limit has passed before that.
    """

    __slots__ = ("isLost", "isOver")

    def __init__(self) -> None:
        self.isLost = self.isOver = False


class BlockingChecks:
    """
    Runs the checks of one source of accounts in a few threads.  Logins from known networks go
    first, and each login waits for a limited time.

    If a check exceeds its time limit, its login gets C{SYS/TEMP}.  The thread of this check is
    I{lost} until the check returns, and another thread takes its place.  While too many threads are
    lost, every login gets C{SYS/TEMP}.

    @ivar lost: the number of threads that are lost now.
    """

    def __init__(
        self,
        name: str,
        limit: float,
        concurrent: int = CONCURRENT,
        mostWaiting: int = MOST_WAITING,
        mostLost: int = MOST_LOST,
        threads: Executor | None = None,
        clock: IReactorTime | None = None,
    ) -> None:
        """
        @param name: the name of the source in the log, such as C{the LDAP server at ldap://HOST}.
        @param limit: the time limit of a check in seconds.
        @param concurrent: the most checks that run at the same time.
        @param mostWaiting: the most checks that may wait for their turn.
        @param mostLost: if this many threads are lost, no further check begins.  The number is at
            most L{BoundedThreadPool.LOST}.  Checks that run already may still lose their threads.
        @param threads: runs the checks; a new pool of threads if not given.
        @param clock: used for the time limits; the reactor if not given.
        """
        if threads is None:
            # A check may exceed its time limit before a thread begins it.  Such checks need places
            # in the queue of the pool.
            threads = _Threads("pop3svc-check", concurrent, waiting=concurrent)
        self._threads = threads
        self._name = name
        self._limit = limit
        self._mostLost = mostLost
        self._clock = clock
        self._queue = CheckQueue(self, clock, concurrent, mostWaiting)
        self._health = Health(name)
        self._hasReportedLost = False
        self.lost = 0

    async def check(self, credentials: Any, work: Callable[..., T], *arguments: Any) -> T:
        """
        Check the password of a login in a thread.

        @param credentials: L{pop3svc.credentials.IPasswordAttempt}.  This method calls C{comparing}
            before C{work} begins.  If the password is wrong, the caller of this method has to call
            C{refused}.
        @param work: called in a thread with C{arguments}.  It raises L{CheckUnavailable} if it
            cannot find a result.  A result that comes after the time limit is ignored.
        @return: the result of C{work}.
        @raise POP3ResponseError: C{SYS/TEMP}: C{work} had no result, exceeded the time limit or had
            to wait for too long, or too many threads are lost.
        """
        return await self._answer(
            work,
            arguments,
            isUrgent=credentials.isFromKnownNetwork,
            patience=credentials.patience,
            begun=credentials.comparing,
        )

    async def ask(
        self,
        work: Callable[..., T],
        *arguments: Any,
        isUrgent: bool = False,
        patience: float = Policy.loginWait,
    ) -> T:
        """
        Run C{work} in a thread, as L{check} does.  This method is for work that does not compare a
        password.

        @param isUrgent: whether C{work} runs before waiting work that is not urgent.
        @param patience: how many seconds C{work} may wait for its turn.
        """
        return await self._answer(work, arguments, isUrgent=isUrgent, patience=patience)

    async def _answer(self, work: Callable[..., T], arguments: Any, **options: Any) -> T:
        try:
            self._refuseIfLost()
            result: T = await self._queue.run(work, *arguments, **options)
        except CheckUnavailable as error:
            self._health.failed(str(error))
            raise POP3ResponseError("Accounts are not available now.", "SYS/TEMP") from None
        self._health.succeeded()
        self._hasReportedLost = False
        return result

    def _refuseIfLost(self) -> None:
        if self.lost >= self._mostLost:
            raise CheckUnavailable(f"{self.lost} checks do not end")

    # --- for the queue ----------------------------------------------------------------

    def run(self, work: Callable[..., T], *arguments: Any) -> Deferred[T]:
        """
        Begin a check whose turn has come.  L{CheckQueue} calls this method.

        @return: a Deferred with the result.  It fails with L{CheckUnavailable} after the time
            limit.
        @raise CheckUnavailable: too many threads are lost.
        @raise POP3ResponseError: C{SYS/TEMP}: no thread can be started.
        """
        self._refuseIfLost()
        check = _Check()
        running = self._threads.run(work, *arguments, ended=lambda: self._ended(check))
        return Deferred.fromCoroutine(self._within(running, check))

    async def _within(self, running: Deferred[T], check: _Check) -> T:
        if self._clock is None:
            from twisted.internet import reactor

            self._clock = IReactorTime(reactor)
        try:
            result: T = await awaitWithTimeout(running, self._clock, self._limit)
        except CallTimeout:
            if not check.isOver:
                self._lose(check)
            raise CheckUnavailable(f"no answer within {self._limit:g} s") from None
        return result

    def _lose(self, check: _Check) -> None:
        check.isLost = True
        self.lost += 1
        if self.lost >= self._mostLost and not self._hasReportedLost:
            self._hasReportedLost = True
            log.error(
                "{name}: {count} checks do not end; logins get [SYS/TEMP] until one of them ends",
                name=self._name,
                count=self.lost,
            )

    def _ended(self, check: _Check) -> None:
        check.isOver = True
        if check.isLost:
            self.lost -= 1
