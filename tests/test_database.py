"""
Transactions in threads, with SQLite and a real PostgreSQL.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from pop3svc.database import (
    Database,
    DatabaseRefused,
    DatabaseUnavailable,
    OutcomeUnknown,
    Transaction,
    _Pool,
)
from pop3svc.drivers import (
    Driver,
    Link,
    isRetryable,
    isUnavailable,
    makeDriver,
    parametersOf,
    placeholders,
)
from pop3svc.health import Health
from pop3svc.testing.reactorthread import reactorThread
from tests.support.postgresql import PostgreSQL, needsPostgreSQL

# --- statements -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "translated"),
    [
        ("SELECT a FROM t WHERE n = :name", "SELECT a FROM t WHERE n = %(name)s"),
        ("SELECT :a, :a || :b", "SELECT %(a)s, %(a)s || %(b)s"),
        ("SELECT a::text FROM t WHERE a = :a::int", "SELECT a::text FROM t WHERE a = %(a)s::int"),
        ("SELECT ':no', ''':no', \":no\"", "SELECT ':no', ''':no', \":no\""),
        (r"SELECT E'\':no', :yes", r"SELECT E'\':no', %(yes)s"),
        ("SELECT 1 -- :no '\n, :yes /* :no ' */", "SELECT 1 -- :no '\n, %(yes)s /* :no ' */"),
        ("SELECT $$:no'$$, $a$:no $$ $a$, :yes", "SELECT $$:no'$$, $a$:no $$ $a$, %(yes)s"),
        ("SELECT 5 % 2, 'a%' LIKE :p", "SELECT 5 %% 2, 'a%%' LIKE %(p)s"),
    ],
)
def test_placeholders(statement: str, translated: str) -> None:
    assert placeholders(statement) == translated


def test_parameters() -> None:
    assert parametersOf("SELECT :a, ':b', :c::text -- :d") == {"a", "c"}


# --- DSNs -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dsn", "fault"),
    [
        ("", "a DSN is sqlite:PATH or postgresql://"),
        ("mysql://root:secret@host/db", "a DSN is"),
        ("sqlite", "a DSN is"),
        ("sqlite:", "needs the path"),
        ("postgresql:host", "a DSN is"),
        ("postgresql://u:secret@h/db?sslmod=x", "sslmod is not a parameter"),
        ("postgresql://u:sec@ret@h/db", "%40"),
        ("postgresql://u:secret%zz@h/db", "not a connection URI"),
    ],
)
def test_wrongDSN(dsn: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault) as caught:
        makeDriver(dsn)
    assert "secret" not in str(caught.value) and "ret@" not in str(caught.value)


def test_missingDriver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)
    with pytest.raises(ValueError, match=r"pip install 'pop3svc\[postgresql\]'"):
        makeDriver("postgresql://h/db")


def test_nameWithoutSecrets() -> None:
    name = makeDriver("postgresql://user:secret@h:5433/db?sslmode=verify-full").name
    assert name == "postgresql://h:5433/db"


# --- the queue, without threads ---------------------------------------------------------


class Error(sqlite3.OperationalError):
    """
    An error of SQLite with a result code.
    """

    def __init__(self, code: int) -> None:
        super().__init__(f"error {code}")
        self.sqlite_errorcode = code


BUSY, IOERR = Error(sqlite3.SQLITE_BUSY), Error(sqlite3.SQLITE_IOERR)


class FakeLink(Link):
    dialect = "sqlite"

    def __init__(self) -> None:
        self.done: list[str] = []
        self.failures: dict[str, BaseException] = {}
        self.isDurable = True

    isLost = False

    def _do(self, what: str) -> None:
        self.done.append(what)
        if what in self.failures:
            raise self.failures.pop(what)

    def begin(self, isReading: bool) -> None:
        self._do("begin reading" if isReading else "begin")

    def allow(self, limit: float) -> None:
        self._do("allow")

    def commit(self) -> bool:
        self._do("commit")
        return self.isDurable

    def rollback(self) -> None:
        self._do("rollback")

    def isRefusedCommit(self, error: BaseException) -> bool:
        return error is BUSY

    def cut(self) -> None:
        self._do("cut")

    def close(self) -> None:
        self._do("close")

    def execute(self, statement: str, values: Any, isBinary: bool) -> Any:
        self._do(statement)

    def executeMany(self, statement: str, rows: Any) -> int:
        self._do(statement)
        return len(list(rows))


class FakeDriver(Driver):
    name, module = "fake:db", "sqlite3"

    def __init__(self) -> None:
        self.links: list[FakeLink] = []
        self.failure: BaseException | None = None

    def connect(self, limit: float) -> FakeLink:
        if self.failure is not None:
            raise self.failure
        self.links.append(FakeLink())
        return self.links[-1]

    def isWrongSetting(self, error: BaseException) -> bool:
        return getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_CANTOPEN


class Threads:
    """
    A pool with one connection.  It performs each call at once, or keeps the call until the test
    performs it.
    """

    def __init__(self, driver: FakeDriver, isInline: bool = True) -> None:
        self.driver, self.isInline = driver, isInline
        self.held: list[Callable[[], None]] = []
        self.kept: FakeLink | None = None
        self.isEnded = False
        self.pool = self

    def runWithConnection(self, call: Callable[..., Any], job: Any) -> Deferred[Any]:
        result: Deferred[Any] = Deferred()

        def perform() -> None:
            maybeDeferred(call, self, job).chainDeferred(result)

        if self.isInline:
            perform()
        else:
            self.held.append(perform)
        return result

    def link(self) -> tuple[FakeLink, bool]:
        if self.kept is not None:
            return self.kept, False
        self.kept = self.driver.connect(0)
        return self.kept, True

    def drop(self) -> None:
        if self.kept is not None:
            self.kept.close()
        self.kept = None

    def end(self, finished: Callable[[], object]) -> None:
        self.isEnded = True
        finished()


class Bench:
    def __init__(self, isInline: bool = True, **options: Any) -> None:
        self.clock, self.driver = Clock(), FakeDriver()
        self.threads = Threads(self.driver, isInline)
        self.database = Database(self.driver, clock=self.clock, pool=self.threads, **options)

    def run(self, work: Callable[..., Any], *arguments: Any, **options: Any) -> list[Any]:
        got: list[Any] = []
        self.database.run(work, *arguments, **options).addBoth(got.append)
        return got

    @property
    def link(self) -> FakeLink:
        return self.driver.links[-1]


def errorOf(got: list[Any]) -> BaseException:
    assert len(got) == 1 and isinstance(got[0], Failure)
    error: BaseException = got[0].value
    return error


def add(transaction: Transaction, number: int) -> int:
    transaction.execute("work")
    return number + 1


def test_commits() -> None:
    bench = Bench()
    assert bench.run(add, 1) == [2]
    assert bench.run(add, 1, isReading=True) == [2]
    assert bench.link.done == ["begin", "work", "commit", "begin reading", "work", "commit"]
    assert len(bench.driver.links) == 1
    assert bench.clock.getDelayedCalls() == []


def test_rollsBack() -> None:
    bench = Bench()

    def fail(transaction: Transaction) -> None:
        raise KeyError("mine")

    assert isinstance(errorOf(bench.run(fail)), KeyError)
    assert bench.link.done == ["begin", "rollback"]
    assert bench.run(add, 1) == [2]
    assert len(bench.driver.links) == 1


def test_wrongStatement(logged: list[str]) -> None:
    """
    An error of the driver that does not mean an outage goes to the caller as it is.
    """
    bench = Bench()
    bench.run(add, 1)
    wrong = sqlite3.OperationalError("no such table")
    bench.link.failures["work"] = wrong
    assert errorOf(bench.run(add, 1)) is wrong
    assert bench.database.health.isAvailable and logged == []


def test_repeatsAfterConflict() -> None:
    bench = Bench()
    bench.run(add, 1)
    bench.link.failures["commit"] = BUSY
    got = bench.run(add, 1)
    assert got == []
    bench.clock.advance(bench.database.PAUSE)
    assert got == [2]
    assert bench.link.done[3:] == ["begin", "work", "commit", "rollback", "begin", "work", "commit"]


def test_repeatsWithBound(logged: list[str]) -> None:
    bench = Bench()
    tries = []

    def meet(transaction: Transaction) -> None:
        tries.append(bench.clock.seconds())
        raise BUSY

    got = bench.run(meet)
    while not got:
        bench.clock.advance(0.01)
    assert isinstance(errorOf(got), DatabaseUnavailable)
    assert len(tries) == bench.database.TRIES and bench.clock.seconds() < 5
    # A conflict is no outage.
    assert logged == []


def test_conflictWaitsOutsideTheThreads() -> None:
    """
    While a transaction pauses, its thread does other work.
    """
    bench = Bench(threads=1)
    bench.run(add, 1)
    bench.link.failures["work"] = BUSY
    first = bench.run(add, 1)
    assert bench.run(add, 5) == [6] and first == []
    bench.clock.advance(1)
    assert first == [2]


def test_lostWhileIdle(logged: list[str]) -> None:
    """
    A connection that was lost while nobody used it is replaced, and the caller does not notice.
    """
    bench = Bench()
    bench.run(add, 1)
    bench.link.failures["begin"] = IOERR
    assert bench.run(add, 1) == [2]
    first, second = bench.driver.links
    assert first.done[-1] == "close" and second.done == ["begin", "work", "commit"]
    assert logged == []


def test_lostAgain(logged: list[str]) -> None:
    """
    If a lost connection cannot be replaced, the transaction fails.  The log says once that the
    outage begins, and once that it ends.
    """
    bench = Bench()
    bench.run(add, 1)
    bench.link.failures["begin"] = IOERR
    bench.driver.failure = Error(sqlite3.SQLITE_CANTOPEN)
    assert isinstance(errorOf(bench.run(add, 1)), DatabaseRefused)
    assert isinstance(errorOf(bench.run(add, 1)), DatabaseUnavailable)
    assert not bench.database.health.isAvailable
    bench.driver.failure = None
    assert bench.run(add, 1) == [2]
    assert bench.run(add, 1) == [2]
    assert logged == [
        f"fake:db is not available: error {sqlite3.SQLITE_CANTOPEN}",
        "fake:db is available again",
    ]


def test_unknownOutcome() -> None:
    """
    If the connection is lost during COMMIT, the outcome is unknown, and a transaction that must not
    run twice is not repeated.
    """
    bench = Bench()
    bench.run(add, 1)
    bench.link.failures["commit"] = IOERR
    assert isinstance(errorOf(bench.run(add, 1)), OutcomeUnknown)
    assert len(bench.driver.links) == 1 and bench.link.done[-1] == "close"


@pytest.mark.parametrize("how", [{"mayRepeat": True}, {"isReading": True}])
def test_unknownOutcomeRepeated(how: dict[str, bool]) -> None:
    bench = Bench()
    bench.run(add, 1)
    bench.link.failures["commit"] = IOERR
    assert bench.run(add, 1, **how) == [2]
    assert len(bench.driver.links) == 2


def test_notDurable() -> None:
    """
    A COMMIT that the standby has not confirmed is no success.
    """
    bench = Bench()
    bench.run(add, 1)
    bench.link.isDurable = False
    assert isinstance(errorOf(bench.run(add, 1)), OutcomeUnknown)


def test_boundOfTheQueue(logged: list[str]) -> None:
    bench = Bench(isInline=False, threads=1, waiting=2)
    waiting = [bench.run(add, each) for each in range(3)]
    assert isinstance(errorOf(bench.run(add, 9)), DatabaseUnavailable)
    assert len(bench.threads.held) == 1
    while bench.threads.held:
        bench.threads.held.pop(0)()
    assert waiting == [[1], [2], [3]]
    assert logged[0] == "fake:db is not available: too many transactions wait"


def test_lateInTheQueue() -> None:
    bench = Bench(isInline=False, threads=1, limit=3)
    first = bench.run(add, 1)
    second = bench.run(add, 2)
    bench.clock.advance(3)
    assert isinstance(errorOf(second), DatabaseUnavailable)
    assert type(errorOf(first)) is DatabaseUnavailable
    # The first transaction was cut before it began, and the second never begins.
    bench.threads.held.pop()()
    assert bench.threads.held == [] and bench.link.done == ["close"]


def test_cutAtWork() -> None:
    """
    Work that was cut never commits.
    """
    bench = Bench(limit=3)
    results: list[Any] = []

    def slow(transaction: Transaction) -> None:
        bench.clock.advance(3)
        results.append("goes on")

    got = bench.run(slow)
    assert type(errorOf(got)) is DatabaseUnavailable
    assert results == ["goes on"] and bench.link.done == ["begin", "cut", "close"]


def test_cutAtCommit() -> None:
    bench = Bench(limit=3)
    bench.run(add, 1)
    link = bench.link
    link.commit = lambda: bench.clock.advance(3) or True  # type: ignore
    abandoned: list[int] = []
    assert type(errorOf(bench.run(add, 1, abandoned=abandoned.append))) is OutcomeUnknown
    assert abandoned == [2]


def test_cutHitsNoOther() -> None:
    """
    The time limit of a transaction that has ended does not cut the next one.
    """
    bench = Bench(limit=3)
    for _ in range(3):
        bench.run(add, 1)
        bench.clock.advance(2)
    assert "cut" not in bench.link.done


def test_cancelled() -> None:
    bench = Bench(isInline=False, threads=1)
    got: list[Any] = []
    undone: list[int] = []
    first = bench.database.run(add, 1, abandoned=undone.append)
    second = bench.database.run(add, 2, abandoned=undone.append)
    for each in (first, second):
        each.addBoth(got.append)
        each.cancel()
    assert [type(each.value) for each in got] == [CancelledError, CancelledError]
    bench.threads.held.pop()()
    assert bench.threads.held == [] and undone == [2]
    assert bench.clock.getDelayedCalls() == []


def test_closes() -> None:
    bench = Bench(isInline=False, threads=1)
    running, waiting = bench.run(add, 1), bench.run(add, 2)
    closed: list[Any] = []
    bench.database.close().addBoth(closed.append)
    assert isinstance(errorOf(waiting), DatabaseUnavailable) and closed == []
    assert isinstance(errorOf(bench.run(add, 3)), DatabaseUnavailable)
    bench.threads.held.pop()()
    assert running == [2] and closed == [None] and bench.threads.isEnded
    assert bench.clock.getDelayedCalls() == []


def test_closedByTheLastTransaction() -> None:
    """
    The pool is ended only once, because a second call of its method C{end} would fail.
    """
    bench = Bench(isInline=False, threads=1)
    ends: list[Any] = []
    bench.threads.end = ends.append  # type: ignore[method-assign]
    result = bench.database.run(add, 1)
    result.addCallback(lambda _: bench.database.close() and None)
    bench.threads.held.pop()()
    assert len(ends) == 1


def test_closesWithoutTheThreads() -> None:
    """
    A thread that hangs delays the end of L{Database.close} by a few seconds only.
    """
    bench = Bench(isInline=False, threads=1)
    bench.run(add, 1)
    closed: list[Any] = []
    bench.database.close().addBoth(closed.append)
    bench.clock.advance(bench.database.GRACE)
    assert closed == []
    bench.clock.advance(bench.database.GRACE)
    assert closed == [None]


def test_closesUnused() -> None:
    closed: list[Any] = []
    Database(FakeDriver()).close().addBoth(closed.append)
    assert closed == [None]


def test_sharedHealth(logged: list[str]) -> None:
    health = Health("both")
    health.failed("one")
    health.failed("two")
    health.succeeded()
    health.succeeded()
    assert logged == ["both is not available: one", "both is available again"]


# --- SQLite ---------------------------------------------------------------------------


@pytest.fixture
def threads() -> Iterator[None]:
    """
    The reactor runs in a thread.
    """
    reactorThread.hold()
    yield
    reactorThread.release()


class Real:
    """
    A database with real threads.  Each method blocks until its transaction has ended.
    """

    def __init__(self, dsn: str, limit: float = 30, size: int = 2, **options: Any) -> None:
        self.database = Database(makeDriver(dsn, **options), threads=size, limit=limit)

    def run(self, work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return reactorThread.call(lambda: self.database.run(work, *arguments, **options))

    def execute(self, statement: str, **values: Any) -> Any:
        return self.run(lambda transaction: rows(transaction.execute(statement, **values)))

    def close(self) -> None:
        reactorThread.call(self.database.close)


def rows(cursor: Any) -> Any:
    return cursor.fetchall() if cursor.description else cursor.rowcount


@pytest.fixture
def sqlite(tmp_path: Path, threads: None) -> Iterator[Real]:
    real = Real(f"sqlite:{tmp_path / 'mail.db'}", mayCreate=True)
    real.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT)")
    real.execute("CREATE TABLE u (a INTEGER REFERENCES t (a) DEFERRABLE INITIALLY DEFERRED)")
    yield real
    real.close()


def test_sqlite(sqlite: Real, tmp_path: Path) -> None:
    sqlite.execute("INSERT INTO t VALUES (:a, :b)", a=1, b="'; DROP TABLE t; --")
    assert sqlite.execute("SELECT b FROM t WHERE a = :a", a=1) == [("'; DROP TABLE t; --",)]
    assert sqlite.execute("PRAGMA journal_mode") == [("wal",)]
    assert sqlite.execute("PRAGMA synchronous") == [(2,)]
    assert (tmp_path / "mail.db").stat().st_mode & 0o777 == 0o600
    with pytest.raises(sqlite3.IntegrityError):
        sqlite.execute("INSERT INTO u VALUES (77)")
    assert sqlite.execute("SELECT count(*) FROM u") == [(0,)]
    many = sqlite.run(
        lambda transaction: transaction.executeMany(
            "INSERT INTO t VALUES (:a, :b)", [{"a": each, "b": "x"} for each in range(2, 5)]
        )
    )
    assert many == 3


def test_sqliteReadFirst(sqlite: Real) -> None:
    """
    Transactions that read first and write later do not make each other fail.
    """
    sqlite.execute("INSERT INTO t VALUES (1, '0')")
    sqlite.database.TRIES = 1

    def increment(transaction: Transaction) -> None:
        (value,) = transaction.execute("SELECT b FROM t WHERE a = 1").fetchone()
        transaction.execute("UPDATE t SET b = :b WHERE a = 1", b=str(int(value) + 1))

    def all() -> Any:
        from twisted.internet.defer import gatherResults

        return gatherResults([sqlite.database.run(increment) for _ in range(40)])

    reactorThread.call(all)
    assert sqlite.execute("SELECT b FROM t") == [("40",)]


def test_sqliteFrozenWriter(sqlite: Real, tmp_path: Path) -> None:
    """
    If another connection holds the write lock, a write fails after a limited time, and reads go on.
    """
    holder = sqlite3.connect(tmp_path / "mail.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    short = Real(f"sqlite:{tmp_path / 'mail.db'}", limit=0.4)
    try:
        with pytest.raises(DatabaseUnavailable):
            short.execute("INSERT INTO t VALUES (9, '')")
        assert short.run(_countOf, isReading=True) == 0
        holder.execute("ROLLBACK")
        short.execute("INSERT INTO t VALUES (9, '')")
    finally:
        holder.close()
        short.close()


def _countOf(transaction: Transaction) -> Any:
    return transaction.execute("SELECT count(*) FROM t").fetchone()[0]


def test_sqliteEndless(sqlite: Real, tmp_path: Path) -> None:
    """
    A statement that takes too long is interrupted, and the connection works afterwards.
    """
    short = Real(f"sqlite:{tmp_path / 'mail.db'}", limit=0.3, size=1)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    try:
        with pytest.raises(DatabaseUnavailable, match="no answer within 0.3 s"):
            short.execute(endless)
        short.database._limit = 30
        assert short.run(_countOf) == 0
    finally:
        short.close()


def _foreign(path: Path, count: int) -> None:
    foreign = sqlite3.connect(path)
    foreign.execute("CREATE TABLE t (a)")
    foreign.executemany("INSERT INTO t VALUES (?)", [(each,) for each in range(count)])
    foreign.commit()
    foreign.close()


def test_sqliteReplaced(threads: None, tmp_path: Path) -> None:
    """
    A database that another program has put in the place of the old one is opened.
    """
    path = tmp_path / "foreign.db"
    _foreign(path, 1)
    real = Real(f"sqlite:{path}", isReadOnly=True)
    assert real.run(_countOf, isReading=True) == 1
    _foreign(tmp_path / "new.db", 2)
    os.replace(tmp_path / "new.db", path)
    assert real.run(_countOf, isReading=True) == 2
    path.unlink()
    with pytest.raises(DatabaseRefused, match="unable to open"):
        real.run(_countOf, isReading=True)
    real.close()


def test_sqliteReadOnly(threads: None, tmp_path: Path) -> None:
    """
    A database that was opened read-only is not changed.
    """
    path = tmp_path / "foreign.db"
    _foreign(path, 0)
    before = path.read_bytes()
    real = Real(f"sqlite:{path}", isReadOnly=True)
    assert real.run(_countOf, isReading=True) == 0
    with pytest.raises(DatabaseUnavailable, match="readonly"):
        real.run(lambda transaction: transaction.execute("INSERT INTO t VALUES (1)"))
    real.close()
    assert path.read_bytes() == before


def test_sqliteCheck(tmp_path: Path) -> None:
    missing = Database(makeDriver(f"sqlite:{tmp_path / 'missing.db'}"))
    with pytest.raises(DatabaseRefused, match="unable to open"):
        missing.check(_countOf)
    assert not (tmp_path / "missing.db").exists()
    (tmp_path / "text").write_text("this is no database, and longer than a header " * 20)
    with pytest.raises(DatabaseRefused, match="not a database"):
        Database(makeDriver(f"sqlite:{tmp_path / 'text'}")).check(_countOf)
    made = Database(makeDriver(f"sqlite:{tmp_path / 'new.db'}", mayCreate=True))
    made.check(lambda transaction: transaction.execute("CREATE TABLE t (a)"), isReading=False)
    assert made.check(_countOf) == 0


def test_sqliteThreadsEnd(sqlite: Real) -> None:
    sqlite.run(_countOf)
    pool = sqlite.database._pool
    assert isinstance(pool, _Pool) and pool.connections
    sqlite.close()
    assert not pool.connections
    assert not [each for each in pool.threadpool.threads if each.is_alive()]


# --- PostgreSQL -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    with PostgreSQL() as server:
        yield server


@pytest.fixture
def postgresql(server: PostgreSQL, threads: None) -> Iterator[Real]:
    server.execute("DROP TABLE IF EXISTS t")
    server.execute("CREATE TABLE t (a integer PRIMARY KEY, b bytea)")
    real = Real(server.dsn)
    yield real
    real.close()


@needsPostgreSQL
def test_postgresql(postgresql: Real) -> None:
    postgresql.execute("INSERT INTO t VALUES (:a, :b)", a=1, b=b"\0\xff%s")
    assert postgresql.execute("SELECT b FROM t WHERE a = :a AND 5 % 2 = 1", a=1) == [(b"\0\xff%s",)]
    assert postgresql.run(
        lambda transaction: transaction.executeBinary("SELECT b FROM t").fetchall()
    ) == [(b"\0\xff%s",)]
    assert postgresql.execute("SHOW timezone") == [("UTC",)]
    assert postgresql.execute("SHOW statement_timeout") == [("30s",)]
    many = postgresql.run(
        lambda transaction: transaction.executeMany(
            "INSERT INTO t VALUES (:a)", [{"a": each} for each in range(2, 5)]
        )
    )
    assert many == 3
    with pytest.raises(Exception, match="duplicate key") as caught:
        postgresql.execute("INSERT INTO t VALUES (9), (1)")
    assert not isUnavailable(caught.value) and not isRetryable(caught.value)
    assert postgresql.execute("SELECT count(*) FROM t") == [(4,)]


@needsPostgreSQL
def test_postgresqlReading(postgresql: Real) -> None:
    def write(transaction: Transaction) -> Any:
        return transaction.execute("INSERT INTO t VALUES (1)")

    with pytest.raises(DatabaseUnavailable, match="read-only transaction"):
        postgresql.run(write, isReading=True)
    postgresql.run(write)


@needsPostgreSQL
def test_postgresqlConflict(postgresql: Real) -> None:
    """
    After a serialization failure the transaction runs again.
    """
    postgresql.execute("INSERT INTO t VALUES (1, '0')")

    def increment(transaction: Transaction) -> None:
        transaction.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        (value,) = transaction.execute("SELECT b FROM t WHERE a = 1").fetchone()
        transaction.execute("UPDATE t SET b = :b WHERE a = 1", b=b"%d" % (int(value) + 1))

    def all() -> Any:
        from twisted.internet.defer import gatherResults

        return gatherResults([postgresql.database.run(increment) for _ in range(10)])

    reactorThread.call(all)
    assert postgresql.execute("SELECT b FROM t") == [(b"10",)]


@needsPostgreSQL
@pytest.mark.parametrize("how", ["terminate", "stop", "kill"])
def test_postgresqlRestarted(
    postgresql: Real, server: PostgreSQL, how: str, logged: list[str]
) -> None:
    """
    After a restart of the server, or after the server has closed all connections, the first
    transaction works.
    """
    postgresql.execute("INSERT INTO t VALUES (1)")
    if how == "terminate":
        assert server.terminateBackends() >= 1
    else:
        getattr(server, how)()
        with pytest.raises(DatabaseUnavailable, match="refused"):
            postgresql.run(_countOf)
        with pytest.raises(DatabaseUnavailable):
            postgresql.run(_countOf)
        server.start()
    assert postgresql.run(_countOf) == 1
    assert postgresql.run(_countOf) == 1
    begun = [each for each in logged if "is not available" in each]
    ended = [each for each in logged if "available again" in each]
    assert len(begun) == len(ended) == (how != "terminate")


@needsPostgreSQL
def test_postgresqlFrozen(postgresql: Real, server: PostgreSQL) -> None:
    """
    If the server does not answer, the transaction fails at its time limit, and its connection is
    not used again.
    """
    short = Real(server.dsn, limit=1.0, size=1)
    try:
        assert short.run(_countOf) == 0
        server.freeze()
        try:
            with pytest.raises(DatabaseUnavailable, match="no answer within 1 s"):
                short.run(_countOf)
        finally:
            server.thaw()
        short.database._limit = 30
        assert short.run(_countOf) == 0
    finally:
        short.close()


@needsPostgreSQL
def test_postgresqlLongTransaction(postgresql: Real, server: PostgreSQL) -> None:
    """
    A transaction that may take longer than others has a statement that takes longer.
    """

    def sleep(transaction: Any) -> Any:
        return transaction.execute("SELECT pg_sleep(1.5)").fetchone()

    short = Real(server.dsn, limit=1.0, size=1)
    try:
        with pytest.raises(DatabaseUnavailable):
            short.run(sleep)
        assert short.run(sleep, limit=20.0) is not None
        with pytest.raises(DatabaseUnavailable):
            short.run(sleep)
    finally:
        short.close()


@needsPostgreSQL
def test_postgresqlInfinity(postgresql: Real) -> None:
    """
    The times before and after all others are the first and the last time of Python.
    """

    def times(transaction: Any) -> Any:
        return transaction.execute(
            "SELECT CAST('infinity' AS timestamptz), CAST('-infinity' AS timestamptz), "
            "CAST('infinity' AS timestamp), CAST('-infinity' AS date), CAST('2026-11-27' AS date)"
        ).fetchall()

    [row] = postgresql.run(times)
    assert row == (
        datetime.max.replace(tzinfo=UTC),
        datetime.min.replace(tzinfo=UTC),
        datetime.max,
        date.min,
        date(2026, 11, 27),
    )


@needsPostgreSQL
def test_postgresqlChangedTable(postgresql: Real) -> None:
    """
    If the operator changes a table, the statements that were prepared before still work.
    """

    def select(transaction: Any) -> Any:
        return transaction.execute("SELECT * FROM altered").fetchall()

    postgresql.execute("DROP TABLE IF EXISTS altered")
    postgresql.execute("CREATE TABLE altered (a INT)")
    for _ in range(20):
        assert postgresql.run(select) == []
    postgresql.execute("ALTER TABLE altered ADD b INT")
    for _ in range(20):
        assert postgresql.run(select) == []


def waitUntil(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "this takes too long"
        time.sleep(0.01)


@needsPostgreSQL
def test_postgresqlFrozenAndCancelled(postgresql: Real, server: PostgreSQL) -> None:
    """
    If the server does not answer, the thread of a cancelled transaction does not wait for ever.
    """
    short = Real(server.dsn, limit=1.0, size=1)
    try:
        assert short.run(_countOf) == 0
        server.freeze()
        try:
            running: list[Any] = []
            reactorThread.call(
                lambda: running.append(
                    short.database.run(_countOf, isReading=True).addErrback(lambda _: None)
                )
            )
            waitUntil(lambda: bool(short.database._running))
            reactorThread.call(lambda: running[0].cancel())
            waitUntil(lambda: not short.database._running)
        finally:
            server.thaw()
    finally:
        short.close()


@needsPostgreSQL
def test_postgresqlSilentAfterTheHandshake(server: PostgreSQL) -> None:
    """
    A server that stops answering when the handshake has ended does not stop the service.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            client = listener.accept()[0]
            # Decline TLS and GSSAPI, accept the user, and be ready; then be silent.
            while client.recv(4096)[4:8] != b"\0\3\0\0":
                client.sendall(b"N")
            client.sendall(b"R\0\0\0\x08\0\0\0\0" + b"Z\0\0\0\x05I")
            while client.recv(4096):
                pass
            client.close()

        thread = threading.Thread(target=serve)
        thread.start()
        port = listener.getsockname()[1]
        database = Database(makeDriver(f"postgresql://x@127.0.0.1:{port}/x"), limit=1.0)
        with pytest.raises(DatabaseUnavailable):
            database.check(_countOf)
        thread.join(10)


@needsPostgreSQL
def test_postgresqlFrozenAtTheEnd(postgresql: Real, server: PostgreSQL) -> None:
    """
    If the server does not answer, closing makes the running transaction fail long before its time
    limit.
    """
    postgresql.run(_countOf)
    server.freeze()
    try:
        answers: list[Any] = []
        reactorThread.call(
            lambda: postgresql.database.run(_countOf).addBoth(answers.append) and None
        )
        postgresql.close()
        assert isinstance(answers[0].value, DatabaseUnavailable)
    finally:
        server.thaw()


@needsPostgreSQL
def test_postgresqlCommitCut(postgresql: Real, server: PostgreSQL) -> None:
    """
    If the connection is cut during COMMIT, the outcome is unknown.  In this test the server has
    committed the transaction.
    """
    server.configure("synchronous_standby_names", "nobody")
    short = Real(server.dsn, limit=1.0, size=1)
    try:
        with pytest.raises(OutcomeUnknown):
            short.execute("INSERT INTO t VALUES (1)")
    finally:
        short.close()
        server.configure("synchronous_standby_names", "")
    assert postgresql.run(_countOf) == 1


@needsPostgreSQL
def test_postgresqlCommitUnconfirmed(postgresql: Real, server: PostgreSQL) -> None:
    """
    If an operator cancels the wait for the standby, PostgreSQL reports a success and a warning.
    The outcome is then unknown.
    """
    server.configure("synchronous_standby_names", "nobody")
    cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    done = threading.Event()

    def cancelling() -> None:
        while not done.wait(0.02):
            server.execute(cancel)

    canceller = threading.Thread(target=cancelling)
    canceller.start()
    try:
        with pytest.raises(OutcomeUnknown, match="standby"):
            postgresql.execute("INSERT INTO t VALUES (1)")
    finally:
        done.set()
        canceller.join()
        server.configure("synchronous_standby_names", "")


@needsPostgreSQL
def test_postgresqlCheck(server: PostgreSQL) -> None:
    assert Database(makeDriver(server.dsn)).check(
        lambda transaction: transaction.execute("SELECT 1").fetchone()
    ) == (1,)
    with pytest.raises(DatabaseRefused, match='role "nobody" does not exist'):
        Database(makeDriver(server.dsn.replace("postgres@", "nobody@"))).check(_countOf)
    with pytest.raises(DatabaseRefused, match="SSL"):
        Database(makeDriver(server.dsn + "?sslmode=require")).check(_countOf)


@needsPostgreSQL
def test_postgresqlSilent() -> None:
    """
    A server that accepts a connection and sends nothing is not reported as a wrong setting.
    """
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        database = Database(makeDriver(f"postgresql://127.0.0.1:{port}/x?connect_timeout=2"))
        with pytest.raises(DatabaseUnavailable) as caught:
            database.check(_countOf)
        assert not isinstance(caught.value, DatabaseRefused)


@needsPostgreSQL
def test_postgresqlEndsInTheHandshake() -> None:
    """
    A connection that ends while TLS is negotiated is not reported as a wrong setting.
    """

    def serve() -> None:
        connection = listener.accept()[0]
        with connection:
            connection.recv(8)
            connection.sendall(b"S")
            connection.recv(10_000)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        port = listener.getsockname()[1]
        database = Database(makeDriver(f"postgresql://127.0.0.1:{port}/x?sslmode=require"))
        with pytest.raises(DatabaseUnavailable) as caught:
            database.check(_countOf)
        assert "unexpected eof" in str(caught.value)
        assert not isinstance(caught.value, DatabaseRefused)
