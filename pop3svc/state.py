"""
Facts that survive a restart, in one SQLite file of the data directory.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Sequence
from threading import Lock
from typing import Any

from twisted.logger import Logger

__all__ = ["State"]

log = Logger(namespace="pop3svc")

# Each step takes the schema from one version to the next: PRAGMA user_version counts them.
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
)
# Seconds that one process waits for another one's write.
_PATIENCE = 5.0


class State:
    """
    Keeps the networks from which users have logged in, and the mailboxes that
    have been there.  Several processes may share one file.  Its methods block:
    call them in a thread.  Without a path all is kept in memory, and forgotten at
    the end.
    """

    def __init__(self, path: str | None = None, owner: tuple[int, int] | None = None) -> None:
        """
        @param path: the file; it is made if it is not there.
        @param owner: the user and group that a new file is for.
        @raise ValueError: the file cannot be used; a sentence for the operator.
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
            # It is opened again when it is needed: twistd forks and gives up its privileges
            # in between, and a connection of SQLite does not survive a fork.
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
            # A power failure may lose the last facts, and never damages the file.
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            self._migrate(database)
        except BaseException:
            database.close()
            raise
        return database

    def _migrate(self, database: sqlite3.Connection) -> None:
        # Several processes may come at once: one makes the tables, the others see them.
        database.execute("BEGIN IMMEDIATE")
        try:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version > len(_STEPS):
                raise ValueError(
                    f"{self.path} is of version {version}; this pop3svc knows versions up to "
                    f"{len(_STEPS)}"
                )
            for step in _STEPS[version:]:
                for statement in step.split(";"):
                    database.execute(statement)
            database.execute(f"PRAGMA user_version = {len(_STEPS)}")
        except BaseException:
            database.execute("ROLLBACK")
            raise
        database.execute("COMMIT")

    def close(self) -> None:
        """
        Close the file; it is opened again when it is needed.
        """
        with self._lock:
            if self._database is not None:
                self._database.close()
                self._database = None

    def read(self, statement: str, *arguments: Any) -> list[Any]:
        """
        @return: the rows; none if the file cannot be read, which is logged.
        """
        return self.ask(statement, *arguments) or []

    def ask(self, statement: str, *arguments: Any) -> list[Any] | None:
        """
        @return: the rows; L{None} if the file cannot be read, which is logged.
        """
        try:
            with self._lock:
                return self._connection().execute(statement, arguments).fetchall()
        except sqlite3.Error as error:
            self._fault(error)
            return None

    def write(self, statement: str, rows: Iterable[Sequence[Any]]) -> bool:
        """
        Run a statement for each of some rows, in one transaction.

        @return: were they written?  If not, that is logged.
        """
        try:
            with self._lock:
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

    def _fault(self, error: sqlite3.Error) -> None:
        # Once for each fault, not at each login.
        if self._lastFault != str(error):
            self._lastFault = str(error)
            log.error("cannot use {path}: {error}", path=self.path, error=str(error))
