"""
Run transactions in threads, with a bounded queue and a limit on every wait.

Each thread of L{twisted.enterprise.adbapi} has a connection to the database.  A thread replaces a
lost connection.  If a transaction conflicts with another transaction, it runs again.  If a server
does not answer, the service shuts the socket of the connection down, because no setting of the
driver limits the wait for a frozen server.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

from twisted.enterprise import adbapi
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from pop3svc.drivers import Driver, Link, isRetryable, isUnavailable
from pop3svc.health import Health

__all__ = [
    "Database",
    "DatabaseRefused",
    "DatabaseUnavailable",
    "OutcomeUnknown",
    "Transaction",
]

log = Logger(namespace="pop3svc")

T = TypeVar("T")


class DatabaseUnavailable(Exception):
    """
    The database cannot work now.  No change of the transaction is committed, unless the exception
    is an L{OutcomeUnknown}.  The text of the exception is one sentence for the operator.
    """


class DatabaseRefused(DatabaseUnavailable):
    """
    The database refuses all connections until the operator changes a setting.  Examples are a wrong
    password, a missing database and a certificate that is not valid.
    """


class OutcomeUnknown(DatabaseUnavailable):
    """
    The answer to COMMIT is missing.  Nothing but the tables shows whether the transaction was
    committed.
    """


class Transaction:
    """
    A transaction that runs in a thread.  A statement has named parameters, such as C{:name}.  The
    driver binds their values.

    @ivar dialect: C{"sqlite"} or C{"postgresql"}, because some statements differ between the two.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self.dialect = link.dialect

    def execute(self, statement: str, **values: Any) -> Any:
        """
        Execute a statement.

        @return: a cursor of the DB-API: C{fetchone}, C{fetchmany}, C{rowcount}, C{description}.
        """
        return self._link.execute(statement, values, False)

    def executeBinary(self, statement: str, **values: Any) -> Any:
        """
        Execute a query for large binary values; see L{execute}.  In PostgreSQL's text format such a
        query takes twice as long.
        """
        return self._link.execute(statement, values, True)

    def executeMany(self, statement: str, rows: Iterable[Mapping[str, Any]]) -> int:
        """
        Execute a statement once for each set of values.

        @return: the number of changed rows.
        """
        return self._link.executeMany(statement, rows)


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class _Again(Exception):
    """
    The transaction conflicts with another transaction.  It may run again after a pause.
    """


class _Job:
    """
    A transaction that waits, runs or has ended.

    @ivar result: the Deferred of the caller; L{None} after it has fired.
    @ivar isCommitting: whether COMMIT may have been sent.  This is set before COMMIT is sent, and
        cleared when the transaction runs again.
    """

    def __init__(
        self,
        work: Callable[..., Any],
        isReading: bool,
        mayRepeat: bool,
        limit: float,
        isLong: bool = False,
        abandoned: Callable[[Any], object] | None = None,
    ) -> None:
        """
        @param limit: how many seconds the transaction may take.
        @param isLong: whether this is longer than other transactions may take.
        """
        self.work = work
        self.isReading = isReading
        self.mayRepeat = mayRepeat or isReading
        self.abandoned = abandoned
        self.result: Deferred[Any] | None = None
        self.timer: IDelayedCall | None = None
        self.tries = 0
        self.limit = limit
        self._isLong = isLong
        self.isCommitting = False
        self.isCut = False
        self._link: Link | None = None
        # Without this lock, L{cut} could interrupt the next transaction of the same thread by
        # mistake.
        self._lock = threading.Lock()

    def attach(self, link: Link) -> None:
        """
        Begin to use a connection.
        """
        with self._lock:
            if self.isCut:
                raise DatabaseUnavailable("no answer in time")
            self._link = link
            self.isCommitting = False

    def detach(self) -> None:
        """
        Stop using the connection.  After this call L{cut} has no effect.
        """
        with self._lock:
            self._link = None

    def beginCommit(self) -> None:
        """
        Record that COMMIT is sent next.  If the connection is cut after this call, nobody knows
        whether the transaction was committed.
        """
        with self._lock:
            if self.isCut:
                raise DatabaseUnavailable("no answer in time")
            self.isCommitting = True

    def cut(self) -> bool:
        """
        Make the running statement fail, and start no further statement.

        @return: whether the outcome of the transaction is unknown.
        """
        with self._lock:
            self.isCut = True
            if self._link is not None:
                self._link.cut()
            return self.isCommitting and not self.isReading

    def attempt(self, link: Link) -> Any:
        """
        Run the transaction once.  Blocks.

        @raise OutcomeUnknown: the answer to COMMIT is missing.
        """
        self.attach(link)
        try:
            link.begin(self.isReading)
            if self._isLong:
                link.allow(self.limit)
            answer = self.work(Transaction(link))
            self.beginCommit()
            try:
                isDurable = link.commit()
            except BaseException as error:
                if self.isReading or link.isRefusedCommit(error):
                    raise
                raise OutcomeUnknown(_sentence(error)) from error
            if not isDurable and not self.isReading:
                raise OutcomeUnknown("the standby has not confirmed the COMMIT")
            return answer
        finally:
            self.detach()


class _Access(adbapi.Connection):
    """
    The object that adbapi passes to a function in a thread.  Its C{commit} and C{rollback} do
    nothing, because the function itself begins and ends the transaction.
    """

    def __init__(self, pool: Any) -> None:
        self.pool = pool

    def commit(self) -> None:
        pass

    def rollback(self) -> None:
        pass


class _Pool(adbapi.ConnectionPool):
    """
    The threads that use a database.  Each thread has its own connection.
    """

    connectionFactory = _Access

    def __init__(self, driver: Driver, size: int, limit: float, reactor: Any) -> None:
        name = "pop3svc-database"
        super().__init__(  # type: ignore[no-untyped-call]
            driver.module, cp_min=0, cp_max=size, cp_reactor=reactor, cp_name=name
        )
        self._driver = driver
        self._limit = limit
        # Make daemon threads, because a thread that hangs must not keep the process alive.
        threads: Any = self.threadpool
        threads.threadFactory = partial(threading.Thread, daemon=True)
        # L{Database} sets this function.  Without this function, the shutdown trigger of adbapi
        # would wait for the threads.
        self.closing: Callable[[], Any] = lambda: None

    def finalClose(self) -> Any:
        """
        Close the database; adbapi calls this method when the reactor stops.
        """
        self.shutdownID = None
        return self.closing()

    def link(self) -> tuple[Link, bool]:
        """
        @return: the connection of this thread, and whether this call has made it.
        """
        thread = threading.get_ident()
        found = self.connections.get(thread)
        if found is not None and found.isLost:
            self.drop()
            found = None
        if found is not None:
            return found, False
        made = self.connections[thread] = self._driver.connect(self._limit)
        return made, True

    def drop(self) -> None:
        """
        Close the connection of this thread.
        """
        found = self.connections.pop(threading.get_ident(), None)
        if found is not None:
            _closeQuietly(found)

    def end(self, finished: Callable[[], object]) -> None:
        """
        Start a thread that waits for the threads of the pool and then closes all connections.  The
        reactor's thread itself must not wait.

        @param finished: called in the reactor's thread at the end.
        """
        reactor: Any = self._reactor
        if self.shutdownID is not None:
            reactor.removeSystemEventTrigger(self.shutdownID)
            self.shutdownID = None

        def wait() -> None:
            self.threadpool.stop()
            while self.connections:
                _closeQuietly(self.connections.popitem()[1])
            reactor.callFromThread(finished)

        threading.Thread(target=wait, name="pop3svc-database-end", daemon=True).start()


def _closeQuietly(link: Link) -> None:
    try:
        link.close()
    except Exception as error:
        log.debug("closing a connection failed: {error}", error=_sentence(error))


class Database:
    """
    Runs transactions in a few threads.

    No method except L{check} blocks.  The first transaction starts the threads and connects.  An
    object that has run no transaction therefore survives a fork.
    """

    # Seconds that a transaction may take, including its wait in the queue.  The limit is shorter
    # than the limit for calls of a provider, so that the client gets the reason for the failure.
    LIMIT = 10.0
    # The most transactions that may wait.
    WAITING = 1000
    # How often a transaction that conflicts with others is tried, and the longest pause (seconds)
    # after the first try.  After each further try the longest pause is twice as long.  Eight tries
    # were enough in a stress test.
    TRIES, PAUSE = 8, 0.02
    # Seconds for which L{close} lets running transactions go on.
    GRACE = 2.0

    def __init__(
        self,
        driver: Driver,
        threads: int = 4,
        waiting: int = WAITING,
        limit: float = LIMIT,
        health: Health | None = None,
        clock: IReactorTime | None = None,
        pool: Any = None,
    ) -> None:
        """
        @param driver: see L{pop3svc.drivers.makeDriver}.
        @param threads: the most transactions that run at once.  Each of them has its own
            connection.
        @param waiting: the most transactions that may wait; further transactions are refused.
        @param limit: how many seconds a transaction may take, including its wait.
        @param health: records whether the database works.  Several databases on one server may
            share it.
        @param clock: calls functions later; the reactor if not given.
        @param pool: replaces the pool of adbapi in tests.  It must have the method
            C{runWithConnection}.
        """
        self.name = driver.name
        # The path of an SQLite database; None for a server.
        self.path: str | None = getattr(driver, "path", None)
        self.health = Health(driver.name) if health is None else health
        self._driver = driver
        self._threads = threads
        self._bound = waiting
        self._limit = limit
        self._clock = clock
        self._pool = pool
        self._waiting: dict[_Job, None] = {}
        # The transactions that wait for the end of a pause before their next try.
        self._pausing: dict[_Job, IDelayedCall] = {}
        self._running: dict[_Job, None] = {}
        self._isStarting = False
        self._isClosed = False
        self._closing: Deferred[None] | None = None
        self._isEnding = False
        self._graces: list[IDelayedCall] = []

    # --- for callers ----------------------------------------------------------------

    def run(
        self,
        work: Callable[..., T],
        *arguments: Any,
        isReading: bool = False,
        mayRepeat: bool = False,
        abandoned: Callable[[T], object] | None = None,
        limit: float | None = None,
    ) -> Deferred[T]:
        """
        Run C{work} in a transaction in a thread, and commit the transaction.  C{work} runs again
        from its beginning if the transaction conflicts with another transaction.  It may also
        run again if the connection is lost before COMMIT.  C{work} must therefore have no effects
        outside the transaction.

        @param work: gets a L{Transaction} and C{arguments}.
        @param isReading: whether the transaction is read-only.  The database then refuses changes.
        @param mayRepeat: whether C{work} may run a second time after its first run was committed,
            as a deletion may.  If the connection is lost during COMMIT, C{work} then runs once
            more.
        @param abandoned: called in the reactor's thread with the result of C{work} if the
            transaction was committed after the Deferred had been cancelled or had timed out.  This
            function undoes the committed changes.
        @param limit: how many seconds the transaction may take, if it may take longer than others.
        @return: a Deferred with the result of C{work}.  It fails with L{DatabaseUnavailable}, with
            L{OutcomeUnknown}, or, after a rollback, with the exception of C{work} or of the driver.
            Cancelling the Deferred skips work that has not begun.  Work that has begun goes on.
        """
        if self._isClosed:
            return fail(DatabaseUnavailable(f"{self.name}: closed"))
        if len(self._waiting) + len(self._pausing) >= self._bound:
            self.health.failed("too many transactions wait")
            return fail(DatabaseUnavailable(f"{self.name}: too many transactions wait"))
        isLong = limit is not None and limit > self._limit
        job = _Job(
            partial(_apply, work, arguments),
            *(isReading, mayRepeat, max(limit or 0, self._limit), isLong, abandoned),
        )
        result: Deferred[T] = Deferred(lambda _: self._cancelled(job))
        job.result = result
        job.timer = self._callLater(job.limit, self._late, job)
        self._waiting[job] = None
        self._startNext()
        return result

    def check(self, work: Callable[..., T], *arguments: Any, isReading: bool = True) -> T:
        """
        Connect, run C{work} in a transaction, and disconnect.  This method does not use the
        reactor.  It blocks for a limited time.

        @param work: see L{run}.
        @raise DatabaseRefused: a setting has to be changed.
        @raise DatabaseUnavailable: a later attempt may succeed.
        """
        job = _Job(partial(_apply, work, arguments), isReading, False, self._limit)
        timer = threading.Timer(self._limit, job.cut)
        timer.daemon = True
        timer.start()
        link = None
        try:
            link = self._driver.connect(self._limit)
            answer: T = job.attempt(link)
            return answer
        except Exception as error:
            explained = self._explained(error, job)
            if isinstance(explained, _Again):
                explained = DatabaseUnavailable(f"{self.name}: {explained}")
            raise explained
        finally:
            timer.cancel()
            if link is not None:
                _closeQuietly(link)

    def close(self) -> Deferred[None]:
        """
        Close the connections.  Waiting transactions fail.  Running transactions are cut after
        L{GRACE} seconds.

        @return: a Deferred that fires when the threads have ended, but at the latest after 2 *
            L{GRACE} seconds.
        """
        if self._closing is not None:
            return self._closing
        self._isClosed = True
        self._closing = Deferred()
        for job in [*self._waiting, *self._pausing]:
            self._settle(job, Failure(DatabaseUnavailable(f"{self.name}: closed")))
        self._waiting.clear()
        for timer in self._pausing.values():
            timer.cancel()
        self._pausing.clear()
        if self._pool is None:
            self._closing.callback(None)
        elif self._running:
            self._graces = [
                self._callLater(self.GRACE, self._cutAll),
                self._callLater(2 * self.GRACE, self._finished),
            ]
        else:
            self._end()
        return self._closing

    # --- the queue ------------------------------------------------------------------

    def _callLater(self, seconds: float, call: Callable[..., Any], *arguments: Any) -> IDelayedCall:
        if self._clock is None:
            from twisted.internet import reactor

            self._clock = IReactorTime(reactor)
        return self._clock.callLater(seconds, call, *arguments)

    def _threadsWithConnections(self) -> Any:
        if self._pool is None:
            from twisted.internet import reactor

            self._pool = _Pool(self._driver, self._threads, self._limit, reactor)
            self._pool.closing = self.close
            self._pool.start()
        return self._pool

    def _startNext(self) -> None:
        if self._isStarting:
            # The loop below has called this method again, because a job that it has started has
            # already ended.
            return
        self._isStarting = True
        try:
            while len(self._running) < self._threads and self._waiting:
                job = next(iter(self._waiting))
                del self._waiting[job]
                self._running[job] = None
                job.tries += 1
                pool = self._threadsWithConnections()
                pool.runWithConnection(self._perform, job).addBoth(self._ended, job)
        finally:
            self._isStarting = False

    def _cancelled(self, job: _Job) -> None:
        if job in self._running:
            # Keep the time limit.  If the server does not answer, the thread must not wait forever.
            job.result = None
            return
        self._forget(job)
        self._dequeue(job)

    def _forget(self, job: _Job) -> Deferred[Any] | None:
        result, job.result = job.result, None
        if job.timer is not None and job.timer.active():
            job.timer.cancel()
        return result

    def _dequeue(self, job: _Job) -> None:
        self._waiting.pop(job, None)
        pause = self._pausing.pop(job, None)
        if pause is not None and pause.active():
            pause.cancel()

    def _settle(self, job: _Job, outcome: Any) -> None:
        result = self._forget(job)
        if result is None:
            if job.abandoned is not None and not isinstance(outcome, Failure):
                job.abandoned(outcome)
        elif isinstance(outcome, Failure):
            result.errback(outcome)
        else:
            result.callback(outcome)

    def _late(self, job: _Job) -> None:
        """
        The time limit of a transaction has passed.
        """
        isRunning = job in self._running
        reason = f"no answer within {job.limit:g} s"
        self._dequeue(job)
        kind: type[DatabaseUnavailable] = DatabaseUnavailable
        if isRunning and job.cut():
            kind = OutcomeUnknown
        if isRunning:
            self.health.failed(reason)
        self._settle(job, Failure(kind(f"{self.name}: {reason}")))

    def _ended(self, outcome: Any, job: _Job) -> None:
        del self._running[job]
        error = outcome.value if isinstance(outcome, Failure) else None
        mayTry = job.result is not None and not self._isClosed and job.tries < self.TRIES
        if isinstance(error, _Again) and mayTry:
            pause = self.PAUSE * 2 ** (job.tries - 1) * random.uniform(0.5, 1)
            self._pausing[job] = self._callLater(pause, self._again, job)
            self._startNext()
            return
        if isinstance(error, _Again):
            outcome = Failure(DatabaseUnavailable(f"{self.name}: {error}"))
        elif isinstance(error, DatabaseUnavailable):
            self.health.failed(str(error).removeprefix(f"{self.name}: "))
        elif not job.isCut:
            self.health.succeeded()
        self._settle(job, outcome)
        if self._isClosed:
            self._ready()
        else:
            self._startNext()

    def _again(self, job: _Job) -> None:
        del self._pausing[job]
        # The transaction has already waited, so it goes to the front of the queue.
        self._waiting = {job: None} | self._waiting
        self._startNext()

    # --- in a thread ------------------------------------------------------------------

    def _perform(self, access: Any, job: _Job) -> Any:
        """
        Run a transaction.  If the connection of an earlier transaction breaks, run the transaction
        once more on a new connection.  If the outcome of COMMIT is unknown, run the transaction
        once more only if it may be repeated.
        """
        pool = access.pool
        isFirst = True
        while True:
            link, isNew = None, True
            try:
                link, isNew = pool.link()
                return job.attempt(link)
            except BaseException as error:
                isBroken = link is None or self._isBroken(link, job, error)
                if isBroken:
                    pool.drop()
                isLost = job.mayRepeat if isinstance(error, OutcomeUnknown) else not isNew
                if isFirst and isBroken and isLost and not job.isCut:
                    isFirst = False
                    continue
                raise self._explained(error, job)

    def _isBroken(self, link: Link, job: _Job, error: BaseException) -> bool:
        """
        Roll back, unless the connection is known to be broken.

        @return: whether the connection cannot be used any more.
        """
        if job.isCut or link.isLost or isinstance(error, OutcomeUnknown):
            return True
        try:
            # Attach the connection again, so that the time limit includes the rollback.
            job.attach(link)
            link.rollback()
        except Exception:
            return True
        finally:
            job.detach()
        return link.isLost or (isUnavailable(error) and not isRetryable(error))

    def _explained(self, error: BaseException, job: _Job) -> BaseException:
        """
        @return: the error for the caller of L{Database.run}, or L{_Again} if the transaction may
            run again.
        """
        explained: BaseException = error
        if isinstance(error, OutcomeUnknown):
            explained = OutcomeUnknown(f"{self.name}: {error}")
        elif job.isCut:
            explained = DatabaseUnavailable(f"{self.name}: no answer within {job.limit:g} s")
        elif isRetryable(error):
            explained = _Again(_sentence(error))
        elif self._driver.isWrongSetting(error):
            explained = DatabaseRefused(f"{self.name}: {_sentence(error)}")
        elif isUnavailable(error):
            explained = DatabaseUnavailable(f"{self.name}: {_sentence(error)}")
        if explained is not error:
            explained.__cause__ = error
        return explained

    # --- the end ----------------------------------------------------------------------

    def _cutAll(self) -> None:
        for job in self._running:
            job.cut()

    def _ready(self) -> None:
        if not self._running and self._closing is not None and not self._closing.called:
            self._end()

    def _end(self) -> None:
        # The caller may have called close() when it got the result of the last transaction.
        if self._isEnding:
            return
        self._isEnding = True
        self._pool.end(self._finished)

    def _finished(self) -> None:
        for each in self._graces:
            if each.active():
                each.cancel()
        if self._closing is not None and not self._closing.called:
            self._closing.callback(None)


def _apply(work: Callable[..., T], arguments: tuple[Any, ...], transaction: Transaction) -> T:
    return work(transaction, *arguments)
