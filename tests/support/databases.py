"""
Databases for tests in memory: transactions run at once, in the test's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred, fail, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from pop3svc.database import Database
from pop3svc.drivers import Driver, Link, makeDriver


class InlinePool:
    """
    Runs each transaction before L{runWithConnection} returns.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._link: Link | None = None
        self.pool = self

    def link(self) -> tuple[Link, bool]:
        isNew = self._link is None or self._link.isLost
        if self._link is None or isNew:
            self._link = self._driver.connect(5.0)
        return self._link, isNew

    def drop(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def runWithConnection(self, call: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        try:
            return succeed(call(self, *arguments))
        except Exception:
            return fail()


def inlineDatabase(dsn: str, **options: Any) -> Database:
    """
    @param options: of L{makeDriver}.
    """
    driver = makeDriver(dsn, **options)
    return Database(driver, clock=Clock(), pool=InlinePool(driver))


def emptyPostgreSQL(driver: Driver) -> None:
    """
    Remove all tables.
    """
    link = driver.connect(10)
    try:
        link.execute("DROP SCHEMA public CASCADE", {}, False)
        link.execute("CREATE SCHEMA public", {}, False)
        link.commit()
    finally:
        link.close()


def finish(work: Coroutine[Any, Any, Any] | Deferred[Any]) -> Any:
    """
    @return: the result of work that has nothing to wait for.
    """
    results: list[Any] = []
    ensureDeferred(work).addBoth(results.append)
    [result] = results
    if isinstance(result, Failure):
        result.raiseException()
    return result
