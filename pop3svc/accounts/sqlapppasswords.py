"""
Application passwords in a database.  A query that the operator has written finds them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from pop3svc.accounts.apppasswordfile import UseTimes
from pop3svc.accounts.apppasswords import AppPassword, expiryOf
from pop3svc.accounts.comparison import PasswordComparison
from pop3svc.accounts.hashes import HASHES
from pop3svc.accounts.restrictions import networksOf
from pop3svc.database import Database, DatabaseUnavailable, Transaction
from pop3svc.drivers import isUnencodable, parametersOf
from pop3svc.errors import POP3ResponseError
from pop3svc.health import Health
from pop3svc.once import Once
from pop3svc.threadpool import Executor

__all__ = ["BadQuery", "SQLAppPasswords", "valuesOf"]

log = Logger(namespace="pop3svc")

_COLUMNS = ("hash", "networks", "expires")
_PARAMETERS = ("user", "local", "domain", "selector")

Key = tuple[str, str]


class BadQuery(Exception):
    """
    A query does not return the right columns.  The text is a sentence for the operator.
    """


def valuesOf(name: str) -> dict[str, str]:
    """
    @param name: the name of a login.
    @return: the values of the parameters C{:user}, C{:local} and C{:domain}.
    """
    local, at, domain = name.rpartition("@")
    return {"user": name, "local": local if at else name, "domain": domain if at else ""}


def _checkParameters(what: str, statement: str) -> None:
    """
    @raise ValueError: a parameter is missing or unknown.  The text is a sentence for the operator.
    """
    used = parametersOf(statement)
    others = sorted(used - set(_PARAMETERS))
    if others:
        raise ValueError(
            f"{what} has a parameter :{others[0]}; there are :user, :local, :domain and :selector"
        )
    if "selector" not in used or not used & {"user", "local"}:
        raise ValueError(f"{what} needs the parameter :selector, and :user or :local")


def _look(transaction: Transaction, query: str, key: Key) -> list[dict[str, Any]]:
    """
    @return: the rows of an application password, at most two of them.
    """
    name, selector = key
    cursor = transaction.execute(query, **valuesOf(name), selector=selector)
    if cursor.description is None:
        raise BadQuery("apps: the query returns no rows")
    columns = [str(each[0]).lower() for each in cursor.description]
    if not _isComplete(columns):
        raise BadQuery("apps: the query must return hash, and may return networks and expires")
    return [dict(zip(columns, each, strict=True)) for each in cursor.fetchmany(2)]


def _isComplete(columns: Collection[str]) -> bool:
    isUnique = len(set(columns)) == len(columns)
    return isUnique and "hash" in columns and set(columns) <= set(_COLUMNS)


def _record(transaction: Transaction, statement: str, uses: Collection[Key]) -> None:
    for name, selector in uses:
        transaction.execute(statement, **valuesOf(name), selector=selector)


def _textOf(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bytes | memoryview):
        return bytes(value).decode("utf-8", "surrogateescape")
    if not isinstance(value, str):
        raise ValueError("a column that is no text")
    return value


class SQLAppPasswords:
    """
    Finds application passwords by a query.  The query has the parameter C{:selector}, the parameter
    C{:user} or C{:local}, and perhaps C{:domain}.  It returns one row or none.  The row has the
    column C{hash}.  It may have the columns C{networks} (in the form of C{allow_nets}) and
    C{expires} (in a form for L{expiryOf}).

    @ivar comparison: compares secrets with the hashes.
    """

    def __init__(
        self,
        database: Database,
        query: str,
        writing: Database | None = None,
        statement: str = "",
        runner: Executor | None = None,
        clock: IReactorTime | None = None,
    ) -> None:
        """
        @param writing: the database in which C{statement} runs.
        @param statement: a statement that runs after an application password was used, at most once
            a minute for each password.  It has the same parameters as C{query}.
        @param runner: runs the comparisons of secrets.
        @param clock: used for time limits and pauses; the reactor if not given.
        @raise ValueError: C{query} or C{statement} has wrong parameters.  The text is a sentence
            for the operator.
        """
        _checkParameters("apps: the query", query)
        if writing is not None:
            _checkParameters("used: the statement", statement)
        self._database = database
        self._query = query
        self._writing = writing
        self._statement = statement
        self._name = f"application passwords in {database.name}"
        self.comparison = PasswordComparison(self._name, HASHES, runner, clock)
        self._health = Health(f"the query for {self._name}")
        self._reported = Once()
        self._uses = UseTimes(self._write, f"the last use of {self._name} is not recorded", clock)

    def check(self) -> None:
        """
        Try the query.  This method blocks for a limited time.

        @raise BadQuery: the query returns the wrong columns.
        """
        self._database.check(_look, self._query, ("nobody@example.invalid", "aaaa"))

    async def find(self, name: str, selector: str) -> AppPassword | None:
        """
        @param name: the name of the user, in a form that the database accepts.
        @return: the application password; L{None} if there is none, or if it cannot be used.
        @raise POP3ResponseError: C{SYS/TEMP}: the database or the query has failed.
        """
        try:
            rows = await self._database.run(_look, self._query, (name, selector), isReading=True)
        except DatabaseUnavailable:
            # The class Database has already logged the failure.
            raise _unavailable() from None
        except Exception as error:
            if isUnencodable(error):
                return None
            self._health.failed(" ".join(str(error).split()) or type(error).__name__)
            raise _unavailable() from None
        self._health.succeeded()
        if not rows:
            return None
        try:
            if len(rows) > 1:
                raise ValueError("the query returns more than one row")
            return _passwordIn(rows[0])
        except ValueError as error:
            if self._reported.isFirst((name, selector, str(error))):
                log.error(
                    "{source}: {name} cannot use {selector}: {error}",
                    source=self._name,
                    name=name,
                    selector=selector,
                    error=str(error),
                )
            return None

    def used(self, name: str, selector: str, now: float) -> None:
        """
        Record that an application password was used.

        @param now: the present time in seconds since 1970.
        """
        if self._writing is not None:
            self._uses.record((name, selector), now)

    def _write(self, uses: dict[Key, float]) -> Deferred[Any]:
        assert self._writing is not None
        return self._writing.run(_record, self._statement, list(uses), mayRepeat=True)

    def forget(self) -> None:
        """
        Forget the remembered comparisons.  Log each error again, even if it was logged before.
        """
        self._reported = Once()
        self.comparison.forget()


def _passwordIn(row: dict[str, Any]) -> AppPassword:
    """
    @raise ValueError: the row cannot be used.  The text is a short reason.
    """
    stored = _textOf(row["hash"])
    HASHES.costOf(stored)
    networks = _textOf(row.get("networks"))
    expires = row.get("expires")
    if isinstance(expires, bytes | memoryview):
        expires = _textOf(expires)
    return AppPassword(stored, networksOf(networks), expiryOf(expires))


def _unavailable() -> POP3ResponseError:
    return POP3ResponseError("Accounts are not available now.", "SYS/TEMP")
