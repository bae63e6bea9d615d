"""
Run SQL statements, and make the parts of statements that differ between SQLite and PostgreSQL.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pop3svc.database import Transaction

__all__ = [
    "Names",
    "changeNumber",
    "execute",
    "forUpdate",
    "hasTable",
    "names",
    "now",
    "octetsType",
    "one",
    "query",
]

# Expressions for the present time of the database's clock, in milliseconds since the epoch.  Other
# functions, such as now() of PostgreSQL, return the time at which the transaction began.  This time
# may be too old, because the transaction may have waited for a lock since then.
_NOW = {
    "sqlite": "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)",
    "postgresql": "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)",
}
_TABLES = {
    "sqlite": "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = :name",
    "postgresql": "SELECT 1 FROM information_schema.tables "
    "WHERE table_schema = current_schema() AND table_name = :name",
}


def one(transaction: Transaction, statement: str, **values: Any) -> tuple[Any, ...] | None:
    """
    @return: the first row of a query; L{None} if the query returns no row.
    """
    row: tuple[Any, ...] | None = transaction.execute(statement, **values).fetchone()
    return row


def query(transaction: Transaction, statement: str, **values: Any) -> list[tuple[Any, ...]]:
    """
    @return: the rows of a query.  The query must return few rows, because all of them are read at
        once.
    """
    found: list[tuple[Any, ...]] = transaction.execute(statement, **values).fetchall()
    return found


def execute(transaction: Transaction, statement: str, **values: Any) -> int:
    """
    @return: the number of rows that a statement has changed.
    """
    return int(transaction.execute(statement, **values).rowcount)


def now(transaction: Transaction) -> str:
    """
    @return: an SQL expression for the present time of the database's clock, in milliseconds since
        the epoch.
    """
    return _NOW[transaction.dialect]


def forUpdate(transaction: Transaction) -> str:
    """
    @return: the end of a query that locks its rows.  For SQLite this text is empty.  SQLite has no
        such clause, and does not let two transactions write at the same time.
    """
    return "" if transaction.dialect == "sqlite" else "FOR UPDATE"


def octetsType(transaction: Transaction) -> str:
    """
    @return: the SQL type of a column that contains octets.
    """
    return "BLOB" if transaction.dialect == "sqlite" else "BYTEA"


def hasTable(transaction: Transaction, name: str) -> bool:
    """
    @return: whether the database has a table of this name.
    """
    return one(transaction, _TABLES[transaction.dialect], name=name) is not None


@dataclass(frozen=True)
class Names:
    """
    A list of values for C{IN (...)}.

    @ivar sql: the placeholders of the parameters.
    @ivar values: the value of each parameter.
    """

    sql: str
    values: dict[str, Any]


def names(values: Sequence[Any]) -> Names:
    """
    @param values: at most some hundred values, because databases limit the number of parameters of
        a statement.
    """
    named = {f"v{number}": value for number, value in enumerate(values)}
    return Names(", ".join(f":{name}" for name in named), named)


def changeNumber() -> int:
    """
    Make the change number of a mailbox that is changed now.  The number is random.  A counter would
    have the same value again after a backup was restored, and a listing in the cache would seem to
    be current.
    """
    return secrets.randbits(62)
