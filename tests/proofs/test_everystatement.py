"""
A mailbox in a database, and a fault at every call to the database of a session in turn.

The connection is lost before a call has its effect, or after that, when the answer is lost.
PostgreSQL itself ends the connection; with SQLite, the driver reports an error of the disk.  From
then on the database works again (a node that reconnects), is away for good (a node that was
killed), or loses the answer to each further COMMIT.

C{POP3SVC_TEST_LONG} in the environment: with every kind of fault for PostgreSQL, and with full
disks and conflicts.
"""

from __future__ import annotations

import io
import os
import sqlite3
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from pop3svc.drivers import Driver, Link, makeDriver
from pop3svc.interfaces import DeliveryCopy
from pop3svc.providers.sql import content
from pop3svc.providers.sql.statements import execute, query
from pop3svc.providers.sql.store import SQLStore
from pop3svc.service.factory import POP3Factory
from pop3svc.testing import Client, Inline
from tests.anybody import Anybody
from tests.proofs.everycall import (
    CONTENTS,
    MESSAGES,
    SCENARIOS,
    Judge,
    converse,
    examine,
    hear,
    keepFailure,
)
from tests.support.databases import InlinePool
from tests.support.postgresql import PostgreSQL, needsPostgreSQL
from tests.support.stores import done

# Faults that happen once, and faults that last.
ONCE = ["before", "after"]
LASTING = ["away before", "away after", "commits without answers"]
OTHERS = ["full", "conflict"]
LONG = bool(os.environ.get("POP3SVC_TEST_LONG"))
# Octets of a piece, so that messages have several.
PIECE = 24
# Seconds that the session's clock may take to a reply.
PATIENCE = 30


class Plan:
    """
    Counts the calls, and makes one of them fail.

    @ivar calls: the names of the calls so far.
    @ivar isOn: whether calls are counted.
    """

    def __init__(self, how: str = "", at: int = 0, server: PostgreSQL | None = None) -> None:
        """
        @param at: the number of the call, from 1.
        @param server: ends the connections; L{None} for SQLite.
        """
        self.how = how
        self.at = at
        self.calls: list[str] = []
        self.isOn = False
        self._server = server

    def call(self, link: FaultyLink | None, name: str, call: Callable[..., Any], *rest: Any) -> Any:
        """
        Make a call, or a fault.
        """
        if not self.isOn:
            return call(*rest)
        self.calls.append(name)
        number = len(self.calls)
        isAway = self.how.startswith("away") and number > self.at
        isUnanswered = self.how.startswith("commits") and name == "commit" and number >= self.at
        if number != self.at and not isAway and not isUnanswered:
            return call(*rest)
        if self.how in OTHERS:
            raise self._refusal()
        if not isAway and (self.how.endswith("after") or isUnanswered):
            made = call(*rest)
            if not isinstance(made, bool | None):
                # An open cursor would keep the transaction of SQLite open.
                made.close()
        if self.how.startswith("commits") and not isUnanswered:
            return call(*rest)
        if link is not None:
            self._end(link)
        raise self._error("connection lost", sqlite3.SQLITE_IOERR, "OperationalError")

    def _end(self, link: FaultyLink) -> None:
        if self._server is not None and not link.real.isLost:
            process = link.real._connection.info.backend_pid
            self._server.execute("SELECT pg_terminate_backend(%s, 5000)", [process])
        link.real.close()

    def _error(self, text: str, code: int, name: str) -> Exception:
        if self._server is not None:
            import psycopg

            kind = getattr(psycopg.errors, name)
            made: Exception = kind(text)
            return made
        error = sqlite3.OperationalError(text)
        error.sqlite_errorcode = code
        return error

    def _refusal(self) -> Exception:
        if self.how == "full":
            return self._error("disk full", sqlite3.SQLITE_FULL, "DiskFull")
        return self._error("conflict", sqlite3.SQLITE_BUSY, "SerializationFailure")


class FaultyLink(Link):
    """
    A connection whose calls go through a L{Plan}.
    """

    def __init__(self, real: Any, plan: Plan) -> None:
        self.real = real
        self.dialect = real.dialect
        self._call = partial(plan.call, self)

    @property
    def isLost(self) -> bool:
        return bool(self.real.isLost)

    def begin(self, isReading: bool) -> None:
        self._call("begin", self.real.begin, isReading)

    def allow(self, limit: float) -> None:
        self._call("allow", self.real.allow, limit)

    def commit(self) -> bool:
        return bool(self._call("commit", self.real.commit))

    def rollback(self) -> None:
        self._call("rollback", self.real.rollback)

    def isRefusedCommit(self, error: BaseException) -> bool:
        return bool(self.real.isRefusedCommit(error))

    def cut(self) -> None:
        self.real.cut()

    def close(self) -> None:
        self.real.close()

    def execute(self, statement: str, values: Any, isBinary: bool) -> Any:
        name = " ".join(statement.split()[:3])
        return self._call(name, self.real.execute, statement, values, isBinary)

    def executeMany(self, statement: str, rows: Any) -> int:
        return int(self._call("executeMany", self.real.executeMany, statement, rows))


class FaultyDriver(Driver):
    """
    Makes connections with a L{Plan}.
    """

    def __init__(self, real: Driver, plan: Plan) -> None:
        self.real = real
        self.plan = plan
        self.name, self.module = real.name, real.module

    def connect(self, limit: float) -> Link:
        return FaultyLink(self.plan.call(None, "connect", self.real.connect, limit), self.plan)

    def isWrongSetting(self, error: BaseException) -> bool:
        return self.real.isWrongSetting(error)


class Runs:
    """
    Runs a session with one fault after the other, each with a mailbox of its own.
    """

    _users = count(1)

    def __init__(self, dsn: str, scenario: str, server: PostgreSQL | None) -> None:
        self._driver = makeDriver(dsn)
        self._server = server
        _, _, self._steps = SCENARIOS[scenario]
        # Connections of the delivery and of the service that looks afterwards.
        self._pool = InlinePool(self._driver)
        self._other = self._store(self._driver, self._pool)
        self._clock = Clock()

    def _store(self, driver: Driver, pool: InlinePool, clock: Clock | None = None) -> SQLStore:
        store = SQLStore(driver, clock=clock or Clock(), pool=pool, executor=Inline())
        store._isPrepared = True
        return store

    def close(self) -> None:
        self._pool.drop()

    def _deliver(self, user: str, name: str) -> None:
        copy = DeliveryCopy(user, uniqueID=name)
        assert done(self._other.deliver, [copy], io.BytesIO(CONTENTS[name])) == [None]

    def _client(self, store: SQLStore, user: str, clock: Clock) -> Client:
        class Mailboxes:
            @staticmethod
            def openMailbox(info: Any, username: str) -> Any:
                return store.openMailbox(info, user)

        return Client(POP3Factory(Anybody(Mailboxes()), clock=clock))

    def _ask(self, work: Callable[..., Any], statement: str, **values: Any) -> Any:
        return done(
            lambda: self._other._database.run(
                lambda transaction: work(transaction, statement, **values)
            )
        )

    def run(self, how: str, at: int) -> tuple[list[str], list[str]]:
        """
        Run the session with a fault at one call.

        @return: the calls, and what is wrong.
        """
        user = f"user{next(self._users)}"
        for name in MESSAGES:
            self._deliver(user, name)
        plan = Plan(how, at, self._server)
        driver = FaultyDriver(self._driver, plan)
        clock, pool = Clock(), InlinePool(driver)
        store = self._store(driver, pool, clock)
        client = self._client(store, user, clock)
        client.received()
        told: list[Any] = []
        failures: list[str] = []
        observer = partial(keepFailure, failures)

        def say(line: bytes) -> bytes:
            reply = client.say(line)
            end = b".\r\n" if line.startswith((b"RETR", b"TOP")) else b"\r\n"
            waited = 0
            while client.isOpen and waited < PATIENCE * 10:
                if reply.endswith(end) or reply.startswith(b"-ERR"):
                    break
                clock.advance(0.1)
                waited += 1
                reply += client.received()
            return reply

        globalLogPublisher.addObserver(observer)
        plan.isOn = True
        try:
            converse(client, say, self._steps, partial(self._deliver, user), told.append)
            # The next beats of the node release a lease whose release has failed.
            for _ in range(20):
                clock.advance(0.1)
        finally:
            plan.isOn = False
            globalLogPublisher.removeObserver(observer)
            pool.drop()
        told.append(["end", plan.calls, 0, failures])
        judge = Judge([], 0)
        isLasting = how in LASTING
        hear(judge, told, isLasting)
        if isLasting:
            # The node is gone for as long as a lease lasts.
            self._ask(execute, "UPDATE node SET expires = expires - 31000")
        found = examine(self._client(self._store(self._driver, self._pool), user, Clock()), judge)
        judge.wrong += self._sums(user, found or [])
        last = [rest[0] for what, *rest in told if what == "C"][-1:]
        name = plan.calls[at - 1] if 0 < at <= len(plan.calls) else "no call"
        return plan.calls, [f"{how} call {at}, {name}, {last}: {each}" for each in judge.wrong]

    def _sums(self, user: str, found: list[str]) -> list[str]:
        """
        @return: a sentence if the numbers in the tables do not agree, or content is left.
        """
        rows = self._ask(
            query,
            "SELECT messages, octets, (SELECT COUNT(*) FROM message WHERE mailbox = id), "
            "(SELECT COALESCE(SUM(octets), 0) FROM message WHERE mailbox = id) FROM mailbox "
            "WHERE name = :name",
            name=user,
        )
        unused = self._ask(
            query,
            "SELECT (SELECT COUNT(*) FROM content WHERE id NOT IN (SELECT content FROM message)), "
            "(SELECT COUNT(*) FROM piece WHERE content NOT IN (SELECT content FROM message))",
        )
        ((messages, octets, rowsFound, sizes),) = rows
        isRight = messages == rowsFound == len(found) and octets == int(sizes)
        isRight = isRight and tuple(unused[0]) == (0, 0)
        return [] if isRight else [f"the tables disagree: {rows}, {unused}, {found}"]


def casesOf(kind: str) -> list[Any]:
    """
    @return: the faults that are tried with one kind of database.
    """
    faults = [*ONCE, *LASTING, *OTHERS] if LONG or kind == "sqlite" else ["after", LASTING[2]]
    marks = needsPostgreSQL if kind == "postgresql" else ()
    return [pytest.param(kind, each, marks=marks) for each in faults]


@pytest.mark.parametrize("scenario", ["quit", "sleep"])
@pytest.mark.parametrize(("kind", "how"), [*casesOf("sqlite"), *casesOf("postgresql")])
def test_everyStatement(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    dsnOf: Callable[[str], str],
    kind: str,
    how: str,
    scenario: str,
) -> None:
    """
    Nothing is lost that was not confirmed as deleted, nothing comes back that was, each failure
    has a reply, and the mailbox is free afterwards.
    """
    monkeypatch.setattr(content, "PIECE", PIECE)
    server = request.getfixturevalue("server") if kind == "postgresql" else None
    runs = Runs(dsnOf(kind), scenario, server)
    try:
        usual, wrong = runs.run("", 0)
        at = 1
        while True:
            # Only a COMMIT can stay without an answer; the calls are the same up to the fault.
            isOther = how.startswith("commits") and usual[at - 1 : at] not in ([], ["commit"])
            calls, faults = (usual, []) if isOther else runs.run(how, at)
            if len(calls) < at:
                break
            wrong += faults
            at += 1
    finally:
        runs.close()
    print(f"{how} at {at - 1} calls; {len(usual)} without a fault")
    assert wrong == []
    assert at > len(usual) > 50
