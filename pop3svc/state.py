"""
Keep data in an SQLite file in the data directory, so that the data survives a restart.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Iterable, Sequence
from threading import Lock
from typing import Any

from twisted.logger import Logger

from pop3svc.fileuser import asService

__all__ = ["State", "migrate"]

log = Logger(namespace="pop3svc")

# Each step migrates the schema from one version to the next.  PRAGMA user_version counts the steps.
_STEPS = (
    """
    CREATE TABLE network (
        user BLOB NOT NULL,
        network TEXT NOT NULL,
        seen REAL NOT NULL,
        PRIMARY KEY (user, network)
    ) WITHOUT ROWID;
    CREATE TABLE mailbox (
        path BLOB PRIMARY KEY,
        seen REAL NOT NULL
    ) WITHOUT ROWID;
    """,
    """
    CREATE TABLE secret (
        name TEXT PRIMARY KEY,
        value BLOB NOT NULL
    ) WITHOUT ROWID;
    """,
)
# Seconds that a process waits for another process that writes to the file.
_PATIENCE = 5.0


def migrate(database: sqlite3.Connection, steps: Sequence[str]) -> None:
    """
    Create the tables of a file, or change tables that an earlier version of the service has
    created.  Blocks.

    @param database: a connection in autocommit mode (C{isolation_level=None}).
    @param steps: for each version of the schema, the statements that migrate the schema to the next
        version.  Semicolons separate the statements.
    @raise ValueError: a later version of the service has written the file.  The text of the error
        is the end of a sentence.
    """
    # Take the write lock first.  If several processes start at once, one process creates the tables
    # while the others wait.
    database.execute("BEGIN IMMEDIATE")
    try:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version > len(steps):
            raise ValueError(
                f"schema version {version}; this pop3svc supports versions up to {len(steps)}"
            )
        for step in steps[version:]:
            for statement in step.split(";"):
                database.execute(statement)
        database.execute(f"PRAGMA user_version = {len(steps)}")
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


class State:
    """
    A database with the networks from which users have logged in, the mailboxes that have existed,
    and secrets.  Several processes may share one file.  The methods block, so call them in a
    thread.  Without a path, the database is in memory and does not survive a restart.
    """

    def __init__(self, path: str | None = None, owner: tuple[int, int] | None = None) -> None:
        """
        @param path: the path of the file.  The file is created if it does not exist.
        @param owner: user and group of a new file.
        @raise ValueError: the file cannot be used.  The text is a sentence for the operator.
        """
        self.path = path
        self._lock = Lock()
        self._lastFault = ""
        self._database: sqlite3.Connection | None = None
        try:
            self._database = self._opened(owner)
        except sqlite3.DatabaseError as error:
            if path is None or isinstance(error, sqlite3.OperationalError):
                raise ValueError(f"{path}: {error}")
            aside = f"{path}.damaged"
            os.replace(path, aside)
            log.error("{path} is damaged; moved to {aside}, starting empty", path=path, aside=aside)
            self._database = self._opened(owner)
        if path is not None:
            # Close the file now, and open it again at the first use.  The process may fork in the
            # meantime (twistd does), and a connection of SQLite does not survive a fork.
            self.close()

    def _connection(self) -> sqlite3.Connection:
        if self._database is None:
            try:
                self._database = self._opened(None)
            except ValueError as error:
                raise sqlite3.OperationalError(str(error))
        return self._database

    def _opened(self, owner: tuple[int, int] | None) -> sqlite3.Connection:
        path = self.path
        if path is not None:
            try:
                descriptor = os.open(
                    path,
                    os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
                    0o600,
                )
            except OSError as error:
                raise ValueError(f"{path}: {error.strerror}")
            try:
                if owner is not None:
                    os.fchown(descriptor, *owner)
            finally:
                os.close(descriptor)
        database = sqlite3.connect(
            path or ":memory:", _PATIENCE, isolation_level=None, check_same_thread=False
        )
        try:
            # With these settings a power failure may lose the last changes, but it does not damage
            # the file.
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            try:
                migrate(database, _STEPS)
            except ValueError as error:
                raise ValueError(f"{self.path} has {error}")
        except BaseException:
            database.close()
            raise
        return database

    def close(self) -> None:
        """
        Close the file.  The next call of another method opens the file again.
        """
        with self._lock:
            if self._database is not None:
                self._database.close()
                self._database = None

    def read(self, statement: str, *arguments: Any) -> list[Any]:
        """
        @return: the rows; an empty list if the file cannot be read.  A failure is logged.
        """
        return self.ask(statement, *arguments) or []

    def ask(self, statement: str, *arguments: Any) -> list[Any] | None:
        """
        @return: the rows; L{None} if the file cannot be read.  A failure is logged.
        """
        try:
            # Use the rights of the service, because the file belongs to the service and this thread
            # may have the rights of a user.
            with asService(), self._lock:
                return self._connection().execute(statement, arguments).fetchall()
        except sqlite3.Error as error:
            self._fault(error)
            return None

    def write(self, statement: str, rows: Iterable[Sequence[Any]]) -> bool:
        """
        Run a statement once for each row.  All runs are in one transaction.

        @return: whether the rows were written.  A failure is logged.
        """
        try:
            with asService(), self._lock:
                database = self._connection()
                database.execute("BEGIN IMMEDIATE")
                try:
                    database.executemany(statement, rows)
                except BaseException:
                    database.execute("ROLLBACK")
                    raise
                database.execute("COMMIT")
        except sqlite3.Error as error:
            self._fault(error)
            return False
        self._lastFault = ""
        return True

    def secret(self, name: str) -> bytes:
        """
        @return: the secret octets of this name, which never change.  If the file cannot be used,
            each call returns other octets.
        """
        made = secrets.token_bytes(32)
        self.write("INSERT OR IGNORE INTO secret (name, value) VALUES (?, ?)", [(name, made)])
        rows = self.read("SELECT value FROM secret WHERE name = ?", name)
        return bytes(rows[0][0]) if rows else made

    def _fault(self, error: sqlite3.Error) -> None:
        # Log each error once instead of at each login.
        if self._lastFault != str(error):
            self._lastFault = str(error)
            log.error("cannot use {path}: {error}", path=self.path, error=str(error))
