"""
Run blocking work in a bounded pool of threads.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Hashable
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

from pop3svc.errors import POP3ResponseError
from pop3svc.fileuser import asService
from pop3svc.timing import Progress

__all__ = [
    "BoundedThreadPool",
    "Executor",
    "InlineExecutor",
    "isCancelled",
    "mustStop",
    "reportProgress",
]

T = TypeVar("T")


class Executor(Protocol):
    """
    Runs blocking work outside the reactor's thread.
    """

    def run(
        self,
        work: Callable[..., T],
        *arguments: Any,
        abandoned: Callable[[T], object] | None = None,
        ended: Callable[[], object] | None = None,
        group: Hashable = None,
    ) -> Deferred[T]:
        """
        Run C{work}.

        @param abandoned: called in the reactor's thread with the result of C{work} if the Deferred
            was cancelled.  The function releases the result.
        @param ended: called in the reactor's thread when C{work} has ended or will never begin.
            The call comes before the Deferred fires.  If the Deferred was cancelled, the call may
            come much later.
        @param group: the name of the object that C{work} uses, such as a mailbox.  If the name is a
            tuple, its first element is the name of a resource that contains the object, such as a
            file system.  The number of threads that may hang is limited for each resource.
        @return: a Deferred that fires with the result of C{work}.
        @raise POP3ResponseError: C{SYS/TEMP} if too much work is waiting, if a thread hangs in
            earlier work of the same group, or if too many threads hang in work on the resource.
        """

    def isLost(self, group: Hashable) -> bool:
        """
        @return: whether a thread hangs in work of a group.
        """


_running = threading.local()


def isCancelled() -> bool:
    """
    Find out whether the work of this thread was cancelled.  Long work in a thread of a
    L{BoundedThreadPool} calls this function regularly.

    @return: whether the work was cancelled.
    """
    job: _Job | None = getattr(_running, "job", None)
    return job is not None and job.isCancelled


def reportProgress() -> None:
    """
    Report that the work of this thread goes on.  Long work in a thread of a L{BoundedThreadPool}
    calls this function regularly, because otherwise the thread may count as lost.
    """
    job: _Job | None = getattr(_running, "job", None)
    if job is not None:
        job.reportProgress()


def mustStop() -> bool:
    """
    Report progress, and find out whether the work was cancelled.  One function does both, because
    work calls the function for each of many messages.

    @return: whether the work was cancelled.
    """
    job: _Job | None = getattr(_running, "job", None)
    if job is None:
        return False
    job.reportProgress()
    return job.isCancelled


class InlineExecutor:
    """
    Runs work at once in the calling thread, for a program without a reactor.

    @ivar underWay: see L{BoundedThreadPool.underWay}.
    """

    underWay = 0

    def start(self) -> None:
        """
        Do nothing, because there are no threads.
        """

    def allow(self, threads: int) -> None:
        """
        Do nothing, because there are no threads.
        """

    def run(
        self,
        work: Callable[..., T],
        *arguments: Any,
        abandoned: Callable[[T], object] | None = None,
        ended: Callable[[], object] | None = None,
        group: Hashable = None,
    ) -> Deferred[T]:
        """
        See L{Executor.run}.
        """
        try:
            return succeed(work(*arguments))
        except Exception:
            return fail()
        finally:
            if ended is not None:
                ended()

    def isLost(self, group: Hashable) -> bool:
        """
        See L{Executor.isLost}.
        """
        return False


class _Skipped:
    """
    The result of work that was cancelled before it began.
    """


def _beNicer(niceness: int) -> None:
    """
    Lower the priority of the present thread.
    """
    if sys.platform != "linux":
        # Do nothing, because the call would lower the priority of the whole process on other
        # systems.
        return
    try:
        os.nice(niceness)
    except OSError:
        # Ignore the error, because a filter of system calls may forbid the call.
        pass


class _Job:
    """
    Work that waits for a thread, runs or has ended.

    @ivar isCancelled: whether the Deferred of this job was cancelled.
    """

    __slots__ = (
        "abandoned",
        "arguments",
        "ended",
        "group",
        "hasBegun",
        "isCancelled",
        "lastReport",
        "reactor",
        "result",
        "work",
    )

    def __init__(
        self,
        work: Callable[..., Any],
        arguments: tuple[Any, ...],
        abandoned: Callable[[Any], object] | None,
        ended: Callable[[], object] | None,
        group: Hashable,
        reactor: Any,
    ) -> None:
        self.reactor = reactor
        self.lastReport = 0.0
        self.work = work
        self.arguments = arguments
        self.abandoned = abandoned
        self.ended = ended
        self.group = group
        self.isCancelled = False
        self.hasBegun = False
        self.result: Progress[Any] | None = None

    def reportProgress(self) -> None:
        """
        Record that the work goes on, and inform the reactor's thread at most four times a second.
        """
        now = time.monotonic()
        if now - self.lastReport >= 0.25:
            self.lastReport = now
            self.reactor.callFromThread(self._progressed)

    def _progressed(self) -> None:
        if self.result is not None:
            self.result.progressed()

    def perform(self) -> Any:
        """
        Do the work in a thread of the pool.

        @return: the result of the work, a L{Failure}, or L{_Skipped}.
        """
        if self.isCancelled:
            return _Skipped()
        self.hasBegun = True
        _running.job = self
        try:
            return self.work(*self.arguments)
        except BaseException:
            return Failure()
        finally:
            _running.job = None


class BoundedThreadPool:
    """
    A pool of a few threads that run blocking work.  The queue of work that waits for a thread is
    bounded.

    A thread that hangs in its work is I{lost}; see L{GRACE}.  Another thread takes the place of a
    lost thread, so that one dead disk does not stop all other work.  While a thread is lost in the
    work of a group (see L{Executor.run}), the pool refuses further work of this group.
    """

    # A thread is lost if its work was cancelled and has not ended GRACE seconds later.  This time
    # is enough for work that calls isCancelled() regularly.  While all threads are busy, a thread
    # is also lost if its work has neither ended nor reported progress for LATE seconds.  By default
    # no call of the service has a longer time limit than LATE.
    GRACE, LATE = 1.0, 150.0
    # The most threads that may be lost in work on one resource, such as a file system.
    EACH = 16

    # The most lost threads that other threads replace.  A lost thread takes some 100 KiB of memory
    # and no processor time.
    LOST = 32
    # Seconds that L{stop} waits for running work.  It does not wait longer, because all sessions
    # have ended already and the process must end.
    PATIENCE = 5.0

    def __init__(
        self, name: str, threads: int, waiting: int, reactor: Any = None, niceness: int = 0
    ) -> None:
        """
        @param threads: the number of threads that may run work, without lost threads.
        @param waiting: the most jobs that may wait for a thread.
        @param niceness: a number that is added to the niceness of the threads (C{os.nice}).  Only
            Linux has a niceness for each thread.
        """
        self._name = name
        self._niceness = niceness
        self._most = threads
        self._bound = threads + waiting
        self._underWay = 0
        self._reactor = reactor
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads = 0
        self._hasTrigger = False
        # The first dictionary has the jobs that run in threads, and the threads change it.  The
        # second dictionary has the cancelled jobs that still run, with the time of the cancellation
        # (seconds).
        self._begun: dict[_Job, None] = {}
        self._cancelled: dict[_Job, float] = {}
        # stop() waits for this condition.  A thread notifies it when a job has ended.
        self._over = threading.Condition()
        self._active = 0

    @property
    def underWay(self) -> int:
        """
        The number of jobs that run or wait.
        """
        return self._underWay

    def start(self) -> None:
        """
        Start the first thread now, because the system may refuse threads later.
        """
        if not self._threads:
            self._grow()

    def allow(self, threads: int) -> None:
        """
        Let the pool have at least this number of threads.
        """
        more = max(threads - self._most, 0)
        self._most += more
        self._bound += more

    def _grow(self) -> None:
        """
        Start a further thread, unless the pool already has as many threads as it may have.

        @raise POP3ResponseError: C{SYS/TEMP} if the pool has no thread except lost threads, and
            cannot start one.
        """
        lost = len(self._lost())
        if self._threads >= self._most + min(lost, self.LOST):
            return
        if self._reactor is None:
            from twisted.internet import reactor

            self._reactor = reactor
        if not self._hasTrigger:
            self._hasTrigger = True
            self._reactor.addSystemEventTrigger("after", "shutdown", self.stop)
        name = f"{self._name}-{self._threads + 1}"
        try:
            # Start the thread with the rights of the process, because a new thread inherits the
            # file rights of the thread that starts it.
            with asService():
                # Make a daemon thread, because a thread that hangs must not keep the process alive.
                threading.Thread(target=self._serve, name=name, daemon=True).start()
        except RuntimeError:
            # The system allows no further thread.  The existing threads will do the work later.
            if self._threads <= lost:
                raise POP3ResponseError("Too busy, try again later.", "SYS/TEMP")
            return
        self._threads += 1

    def _serve(self) -> None:
        if self._niceness:
            _beNicer(self._niceness)
        jobs, reactor = self._jobs, self._reactor
        while (job := jobs.get()) is not None:
            with self._over:
                self._active += 1
            job.lastReport = time.monotonic()
            self._begun[job] = None
            outcome = job.perform()
            del self._begun[job]
            with self._over:
                self._active -= 1
                self._over.notify_all()
            reactor.callFromThread(self._ended, job, outcome)
            # Delete the references before the thread waits again, because the result may be large.
            del job, outcome
        with self._over:
            self._over.notify_all()

    def stop(self) -> None:
        """
        Wait until running work has ended, but at most L{PATIENCE} seconds.  Do not wait for lost
        threads.  Then end the threads.
        """
        for _ in range(self._threads):
            self._jobs.put(None)
        end = time.monotonic() + self.PATIENCE
        with self._over:
            while max(self._jobs.qsize(), self._active) > len(self._lost()):
                # Check again soon, because no notification follows when a thread becomes lost.
                if time.monotonic() >= end:
                    break
                self._over.wait(0.1)
        self._threads = 0
        self._jobs = SimpleQueue()

    def _lost(self) -> list[_Job]:
        """
        @return: the jobs whose threads are lost.
        """
        now = time.monotonic()
        lost = [job for job, since in self._cancelled.items() if now - since > self.GRACE]
        if self._underWay >= self._most:
            # A job that is never cancelled, such as a deletion, may also hang.
            lost += [
                job
                for job in list(self._begun)
                if job not in self._cancelled and now - job.lastReport > self.LATE
            ]
        return lost

    def isLost(self, group: Hashable) -> bool:
        """
        See L{Executor.isLost}.
        """
        return bool(self._cancelled) and any(job.group == group for job in self._lost())

    def _isRefused(self, group: Hashable, lost: list[_Job]) -> bool:
        if any(job.group == group for job in lost):
            return True
        if not isinstance(group, tuple):
            return False
        # The first element of a tuple names the resource, such as a file system.
        same = [job for job in lost if isinstance(job.group, tuple) and job.group[0] == group[0]]
        return len(same) >= self.EACH

    def run(
        self,
        work: Callable[..., T],
        *arguments: Any,
        abandoned: Callable[[T], object] | None = None,
        ended: Callable[[], object] | None = None,
        group: Hashable = None,
    ) -> Deferred[T]:
        """
        Run C{work} in a thread; see L{Executor.run}.

        @return: a Deferred with the result of C{work}.  If the Deferred is cancelled before C{work}
            has begun, C{work} is skipped.
        """
        lost = self._lost() if self._cancelled or self._underWay >= self._most else []
        if self._underWay - len(lost) >= self._bound:
            raise POP3ResponseError("Too busy, try again later.", "SYS/TEMP")
        if lost and group is not None and self._isRefused(group, lost):
            raise POP3ResponseError("Mailbox timed out.", "SYS/TEMP")
        if self._threads <= self._underWay:
            self._grow()
        job = _Job(work, arguments, abandoned, ended, group, self._reactor)

        def cancel(_: object) -> None:
            job.isCancelled = True
            if job.hasBegun:
                self._cancelled[job] = time.monotonic()

        result: Progress[T] = Progress(cancel)
        job.result = result
        self._underWay += 1
        self._jobs.put(job)
        return result

    def _ended(self, job: _Job, outcome: Any) -> None:
        self._underWay -= 1
        self._cancelled.pop(job, None)
        if self._threads > self._most + len(self._lost()):
            self._threads -= 1
            self._jobs.put(None)
        result, job.result = job.result, None
        assert result is not None
        if job.ended is not None:
            job.ended()
        if not job.isCancelled:
            if isinstance(outcome, Failure):
                result.errback(outcome)
            else:
                result.callback(outcome)
        elif job.abandoned is not None and not isinstance(outcome, Failure | _Skipped):
            job.abandoned(outcome)
