"""
Connections to SQLite and to PostgreSQL.  Both kinds have the same interface.
"""

from __future__ import annotations

import os
import re
import socket
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import closing
from datetime import UTC, date, datetime
from functools import cache, lru_cache
from typing import Any
from urllib.parse import parse_qsl, quote

__all__ = [
    "Driver",
    "Link",
    "PostgreSQL",
    "SQLite",
    "isRetryable",
    "isUnavailable",
    "isUnencodable",
    "makeDriver",
    "parametersOf",
    "placeholders",
]


# --- statements ---------------------------------------------------------------

# A named parameter is ":name", unless it is inside a text, a quoted name or a comment.  "::" is
# PostgreSQL's operator for a cast, and does not begin a parameter.
_TOKEN = re.compile(
    r"""
    (?<!\w)[eE]'(?:[^'\\]|\\.|'')*'      # E'text' of PostgreSQL, with backslashes
    | '(?:[^']|'')*'                     # 'text'
    | "(?:[^"]|"")*"                     # "name"
    | --[^\n]*                           # a comment to the end of the line
    | /\*.*?\*/                          # a comment
    | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$    # $tag$text$tag$ of PostgreSQL
    | ::
    | :(?P<name>[A-Za-z_]\w*)
    """,
    re.VERBOSE | re.DOTALL,
)


def parametersOf(statement: str) -> set[str]:
    """
    @return: the names of the parameters of a statement.
    """
    return {found["name"] for found in _TOKEN.finditer(statement) if found["name"]}


@lru_cache(maxsize=512)
def placeholders(statement: str) -> str:
    """
    Translate the named parameters of a statement to the form that psycopg requires.

    @param statement: with parameters C{:name}.
    @return: the statement with parameters C{%(name)s}.
    """
    parts, last = [], 0
    for found in _TOKEN.finditer(statement):
        if found["name"]:
            parts += [statement[last : found.start()].replace("%", "%%"), f"%({found['name']})s"]
            last = found.end()
    return "".join([*parts, statement[last:].replace("%", "%%")])


# --- errors ---------------------------------------------------------------------

# SQLSTATEs of PostgreSQL: serialization failure, deadlock, no lock in time.
_RETRYABLE = ("40001", "40P01", "55P03")
# Classes of SQLSTATEs: wrong data, a violated constraint, a wrong state of the transaction, a
# rollback, a wrong state of an object, an error of a function.  If COMMIT fails with an error of
# one of these classes, nothing is committed.  The SQLSTATE 40003, "completion unknown", is an
# exception.
_REFUSED_COMMIT = ("22", "23", "25", "40", "55", "P0")
# Classes of SQLSTATEs that say that the server cannot work now.  The reasons are the connection,
# resources, an operator or a timeout, and the system.
_UNAVAILABLE = ("08", "53", "57", "58")
_IDLE_TIMEOUT, _READ_ONLY = "25P03", "25006"
# Texts of errors after which a later attempt would fail as well.
_WRONG_SETTINGS = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|does not exist|certificate"
    r"|invalid \S+ value|invalid port|invalid integer|does not support SSL"
    # "unexpected eof" reports a lost connection, and no wrong setting.
    r"|SSL error(?!: unexpected eof)"
    r"|permission denied for database|not permitted to log in"
)


def _codeOf(error: BaseException) -> int:
    """
    @return: SQLite's primary result code; 0 if there is none.
    """
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _stateOf(error: BaseException) -> str | None:
    """
    @return: PostgreSQL's SQLSTATE; L{None} if there is none.
    """
    state: str | None = getattr(error, "sqlstate", None)
    return state


def _isFromPostgreSQL(error: BaseException) -> bool:
    return any(each.__module__.startswith("psycopg") for each in type(error).__mro__)


def isRetryable(error: BaseException) -> bool:
    """
    @return: whether the error means that the transaction conflicts with another transaction.  Such
        a transaction may succeed if it is repeated from its beginning after a pause.
    """
    if isinstance(error, sqlite3.Error):
        return _codeOf(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    state = _stateOf(error)
    # A prepared statement fails once after its table was changed.  psycopg prepares it again after
    # the rollback.
    isOutdated = state == "0A000" and "cached plan" in str(error)
    return state in _RETRYABLE or isOutdated


_AWAY = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_NOTADB,
)


def isUnavailable(error: BaseException) -> bool:
    """
    @return: whether an error of a driver means that the database cannot work now.  The cause of any
        other error is the statement or one of its values.
    """
    if isinstance(error, sqlite3.Error):
        return _codeOf(error) in _AWAY
    if not _isFromPostgreSQL(error):
        return False
    state = _stateOf(error)
    if state is None:
        # Without a SQLSTATE, an OperationalError means that there is no connection.
        return "OperationalError" in [each.__name__ for each in type(error).__mro__]
    return state[:2] in _UNAVAILABLE or state in (*_RETRYABLE, _IDLE_TIMEOUT, _READ_ONLY)


def isUnencodable(error: BaseException) -> bool:
    """
    @return: whether the error means that a value has a character that the encoding of the database
        cannot represent.
    """
    return _stateOf(error) in ("22021", "22P05")


# --- what both kinds of database provide ----------------------------------------------


class Link(ABC):
    """
    A connection to a database.  No two threads use it at the same time, except by L{cut}.
    """

    dialect: str

    @property
    @abstractmethod
    def isLost(self) -> bool:
        """
        Whether the connection cannot be used any more.
        """

    @abstractmethod
    def begin(self, isReading: bool) -> None:
        """
        Begin a transaction.

        @param isReading: whether the transaction is read-only.
        """

    @abstractmethod
    def commit(self) -> bool:
        """
        Commit the transaction.

        @return: whether the commit is as durable as the settings of the database require.
        """

    @abstractmethod
    def rollback(self) -> None:
        """
        Undo the transaction.
        """

    @abstractmethod
    def allow(self, limit: float) -> None:
        """
        Let the transaction that has begun take longer than others.

        @param limit: how many seconds a statement of this transaction may take.
        """

    @abstractmethod
    def isRefusedCommit(self, error: BaseException) -> bool:
        """
        @return: whether an error of C{commit} means that nothing was committed.
        """

    @abstractmethod
    def cut(self) -> None:
        """
        Make the running statement fail.  This method may be called from any thread.  It does not
        block.
        """

    @abstractmethod
    def close(self) -> None:
        """
        Close the connection.
        """

    @abstractmethod
    def execute(self, statement: str, values: Mapping[str, Any], isBinary: bool) -> Any:
        """
        Execute a statement.

        @param isBinary: whether PostgreSQL sends the result in binary form.
        @return: a cursor of the DB-API.
        """

    @abstractmethod
    def executeMany(self, statement: str, rows: Iterable[Mapping[str, Any]]) -> int:
        """
        Execute a statement once for each set of values.

        @return: the number of changed rows.
        """


class Driver(ABC):
    """
    Connects to one database.

    @ivar name: the database, in a form for the operator that contains no user and no password.
    @ivar module: the DB-API module.
    """

    name: str
    module: str

    @abstractmethod
    def connect(self, limit: float) -> Link:
        """
        Connect.  Blocks.

        @param limit: how many seconds a statement may take.
        """

    def isWrongSetting(self, error: BaseException) -> bool:
        """
        @return: whether the database refuses all connections until the operator changes a
            setting.
        """
        return False


# --- SQLite ---------------------------------------------------------------------


class _SQLiteLink(Link):
    dialect = "sqlite"

    def __init__(self, path: str, patience: float, isReadOnly: bool) -> None:
        self._path = path
        self._connection = sqlite3.connect(
            f"file:{quote(path)}?mode=rw",
            # Limit the wait for another writer, because the other process may be frozen.
            patience,
            isolation_level=None,
            check_same_thread=False,
            uri=True,
        )
        self._isClosed = False
        try:
            self._connection.execute("PRAGMA foreign_keys = ON")
            if isReadOnly:
                self._connection.execute("PRAGMA query_only = ON")
            else:
                self._connection.execute("PRAGMA journal_mode = WAL")
                # A commit survives a power failure.
                self._connection.execute("PRAGMA synchronous = FULL")
            # Read from the file now, so that an error is raised here.  The statements above do not
            # always read the file.
            self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            self._file = self._identity()
        except BaseException:
            self.close()
            raise

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    @property
    def isLost(self) -> bool:
        # The connection is useless if the path belongs to another file now, for example because the
        # database was restored from a backup.
        return self._isClosed or self._identity() != self._file

    def begin(self, isReading: bool) -> None:
        # Take the write lock at the beginning.  Otherwise another transaction could write after the
        # first read of this transaction.  The first write of this transaction would then fail at
        # once, regardless of the timeout.
        self._connection.execute("BEGIN" if isReading else "BEGIN IMMEDIATE")

    def allow(self, limit: float) -> None:
        # SQLite itself does not limit the time of a statement.
        pass

    def commit(self) -> bool:
        self._connection.execute("COMMIT")
        return True

    def rollback(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def isRefusedCommit(self, error: BaseException) -> bool:
        return not isinstance(error, sqlite3.Error) or _codeOf(error) in (
            sqlite3.SQLITE_BUSY,
            sqlite3.SQLITE_LOCKED,
            sqlite3.SQLITE_FULL,
            sqlite3.SQLITE_CONSTRAINT,
        )

    def cut(self) -> None:
        if not self._isClosed:
            self._connection.interrupt()

    def close(self) -> None:
        self._isClosed = True
        self._connection.close()

    def execute(self, statement: str, values: Mapping[str, Any], isBinary: bool) -> Any:
        return self._connection.execute(statement, values)

    def executeMany(self, statement: str, rows: Iterable[Mapping[str, Any]]) -> int:
        return self._connection.executemany(statement, rows).rowcount


class SQLite(Driver):
    """
    An SQLite database in a file on this machine.
    """

    module = "sqlite3"
    # Seconds that a transaction waits for another writer.  The wait is also limited to half of the
    # time limit of the transaction, because nothing can interrupt this wait.
    PATIENCE = 5.0

    def __init__(
        self,
        path: str,
        isReadOnly: bool = False,
        mayCreate: bool = False,
        owner: tuple[int, int] | None = None,
    ) -> None:
        """
        @param isReadOnly: whether the database must not be changed.  The journal mode then stays as
            it is, because the database belongs to another program.
        @param mayCreate: whether to create the file if it does not exist.
        @param owner: user and group of a new file.
        """
        if not path or "\0" in path:
            raise ValueError("sqlite: needs the path of a file")
        self.path = os.path.abspath(path)
        self.name = f"sqlite:{self.path}"
        self._isReadOnly = isReadOnly
        self._mayCreate = mayCreate
        self._owner = owner

    def connect(self, limit: float) -> Link:
        """
        See L{Driver.connect}.
        """
        if self._mayCreate and not os.path.exists(self.path):
            self._create()
        return _SQLiteLink(self.path, min(self.PATIENCE, limit / 2), self._isReadOnly)

    def _create(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(self.path, flags, 0o600)
            try:
                if self._owner is not None:
                    os.fchown(descriptor, *self._owner)
            finally:
                os.close(descriptor)
        except OSError as error:
            refused = sqlite3.OperationalError(error.strerror)
            refused.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
            raise refused

    def isWrongSetting(self, error: BaseException) -> bool:
        """
        See L{Driver.isWrongSetting}.  The setting is wrong if the file is missing or unreadable, or
        is not a database.
        """
        return _codeOf(error) in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB)


# --- PostgreSQL -----------------------------------------------------------------

# Default settings of a connection.  The time to connect is limited by connect_timeout (seconds).
# The time until a broken network is noticed is limited by tcp_user_timeout (milliseconds) and by
# the keepalives (seconds, and a number of probes).
_CLIENT = {
    "application_name": "pop3svc",
    "connect_timeout": 3,
    "tcp_user_timeout": 5000,
    "keepalives_idle": 2,
    "keepalives_interval": 1,
    "keepalives_count": 3,
}
# Settings of the connection on the server.  The server gets the same limits for the network, so
# that it frees the locks of a transaction if the network is broken.
_SERVER = {
    "tcp_user_timeout": "5000",
    "tcp_keepalives_idle": "2",
    "tcp_keepalives_interval": "1",
    "tcp_keepalives_count": "3",
    "lock_timeout": "1000",
    "timezone": "UTC",
}


class _PostgreSQLLink(Link):
    dialect = "postgresql"

    def __init__(self, connection: Any, limit: float, prepares: bool) -> None:
        self._connection = connection
        # Duplicate the descriptor, because libpq may close its own descriptor at any time.  Another
        # file could then get the same number.
        self._socket = socket.socket(fileno=os.dup(connection.fileno()))
        self._warnings: list[str] = []
        self._isReading = False
        self._isUseless = False
        connection.add_notice_handler(self._noticed)
        for kind, loader in _loadersWithInfinity():
            connection.adapters.register_loader(kind, loader)
        if not prepares:
            connection.prepare_threshold = None
        # The limit of connect_timeout ends with the handshake.  A server, or a pooler that waits
        # for a server, may stop answering after it.
        timer = threading.Timer(limit, self.cut)
        timer.daemon = True
        timer.start()
        try:
            self._set(limit)
        except BaseException:
            self.close()
            raise
        finally:
            timer.cancel()

    def _set(self, limit: float) -> None:
        """
        Change settings of this connection on the server, such as time limits.  Skip a setting that
        the server does not know.
        """
        import psycopg

        connection = self._connection
        connection.autocommit = True
        times = {
            "statement_timeout": str(int(limit * 1000)),
            "idle_in_transaction_session_timeout": str(int(limit * 1000)),
        }
        for setting, value in (times | _SERVER).items():
            try:
                connection.execute("SELECT set_config(%s, %s, false)", [setting, value])
            except psycopg.Error:
                if connection.closed:
                    raise
        connection.autocommit = False

    def _noticed(self, notice: Any) -> None:
        self._warnings.append(notice.sqlstate or "")

    @property
    def isLost(self) -> bool:
        return bool(self._connection.closed) or self._isUseless

    def begin(self, isReading: bool) -> None:
        # Send nothing now, because psycopg sends BEGIN together with the first statement.
        if isReading != self._isReading:
            self._connection.read_only = isReading
            self._isReading = isReading

    def allow(self, limit: float) -> None:
        # With "true" the value is valid until the end of the transaction.
        self._connection.execute(
            "SELECT set_config('statement_timeout', %s, true)", [str(int(limit * 1000))]
        )

    def commit(self) -> bool:
        self._warnings.clear()
        self._connection.commit()
        # After COMMIT the SQLSTATE 01000 means "canceling wait for synchronous replication".
        return "01000" not in self._warnings

    def rollback(self) -> None:
        self._connection.rollback()

    def isRefusedCommit(self, error: BaseException) -> bool:
        state = _stateOf(error)
        if not _isFromPostgreSQL(error):
            return True
        return state is not None and state[:2] in _REFUSED_COMMIT and state != "40003"

    def cut(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            # The server has already closed the connection.
            pass

    def close(self) -> None:
        # close() sends a last message and does not wait for an answer.
        with closing(self._socket):
            self._connection.close()

    def _checked(self, error: BaseException) -> None:
        # After a failover the old leader accepts no writes.  A new connection finds the new leader.
        self._isUseless = _stateOf(error) == _READ_ONLY and not self._isReading

    def execute(self, statement: str, values: Mapping[str, Any], isBinary: bool) -> Any:
        cursor = self._connection.cursor(binary=isBinary)
        try:
            return cursor.execute(placeholders(statement), values)
        except BaseException as error:
            self._checked(error)
            raise

    def executeMany(self, statement: str, rows: Iterable[Mapping[str, Any]]) -> int:
        cursor = self._connection.cursor()
        try:
            cursor.executemany(placeholders(statement), rows)
        except BaseException as error:
            self._checked(error)
            raise
        return int(cursor.rowcount)


@cache
def _loadersWithInfinity() -> list[tuple[str, Any]]:
    """
    @return: types of PostgreSQL, each with a loader for psycopg.  The loader reads the times
        "infinity" and "-infinity" as the last and the first time of Python, because psycopg refuses
        them.
    """
    from psycopg.types import datetime as types

    def withInfinity(loader: Any, kind: Any, zone: Any) -> Any:
        limits = {b"infinity": kind.max, b"-infinity": kind.min}
        if zone is not None:
            limits = {each: limit.replace(tzinfo=zone) for each, limit in limits.items()}

        class WithInfinity(loader):  # type: ignore[misc]
            def load(self, data: Any) -> Any:
                limit = limits.get(bytes(data))
                return super().load(data) if limit is None else limit

        return WithInfinity

    return [
        ("timestamptz", withInfinity(types.TimestamptzLoader, datetime, UTC)),
        ("timestamp", withInfinity(types.TimestampLoader, datetime, None)),
        ("date", withInfinity(types.DateLoader, date, None)),
    ]


class PostgreSQL(Driver):
    """
    A PostgreSQL server, or another server with the protocol of PostgreSQL.
    """

    module = "psycopg"

    def __init__(self, dsn: str, prepares: bool = True) -> None:
        """
        @param dsn: a connection URI of libpq.
        @param prepares: whether to prepare statements on the server.  Some connection poolers do
            not support prepared statements.
        @raise ValueError: the URI is wrong, or the driver is missing.  The text is a sentence that
            does not contain the password.
        """
        try:
            import psycopg
            from psycopg.conninfo import conninfo_to_dict
            from psycopg.pq import Conninfo
        except ImportError:
            raise ValueError("postgresql: needs psycopg: pip install 'pop3svc[postgresql]'")
        known = {each.keyword.decode() for each in Conninfo.get_defaults()} | {"ssl"}
        for key, _ in parse_qsl(dsn.partition("?")[2], keep_blank_values=True):
            if key not in known:
                raise ValueError(f"postgresql: {key} is not a parameter of a connection")
        try:
            given: dict[str, Any] = dict(conninfo_to_dict(dsn))
        except psycopg.Error:
            # Do not show the text of the error, because it may contain a part of the password.
            raise ValueError("postgresql: the DSN is not a connection URI")
        if "@" in str(given.get("host", "")):
            raise ValueError('postgresql: a "@" in the user or the password is written %40')
        # Show only values from the DSN, and no values from the environment of the process.
        host, port = given.get("host") or "", given.get("port")
        place = f"{host}:{port}" if port and "," not in host else host
        self.name = f"postgresql://{place}/{given.get('dbname') or ''}"
        self._prepares = prepares
        self._parameters: dict[str, Any] = _CLIENT | given

    def connect(self, limit: float) -> Link:
        """
        See L{Driver.connect}.
        """
        import psycopg

        connection = psycopg.connect(**self._parameters)
        try:
            return _PostgreSQLLink(connection, limit, self._prepares)
        except BaseException:
            connection.close()
            raise

    def isWrongSetting(self, error: BaseException) -> bool:
        """
        See L{Driver.isWrongSetting}.  A refused connection has no SQLSTATE, so the text of the
        error decides.
        """
        return _stateOf(error) is None and _WRONG_SETTINGS.search(str(error)) is not None


def makeDriver(
    dsn: str,
    isReadOnly: bool = False,
    mayCreate: bool = False,
    prepares: bool = True,
    owner: tuple[int, int] | None = None,
) -> Driver:
    """
    Make the driver for a DSN.

    @param dsn: C{sqlite:PATH} or C{postgresql://USER:PASSWORD@HOST:PORT/DATABASE?PARAMETERS}.
    @param isReadOnly: see L{SQLite}, which also describes C{mayCreate} and C{owner}.  These
        arguments have no effect on PostgreSQL.
    @param prepares: see L{PostgreSQL}.
    @raise ValueError: the DSN is wrong, or the driver is missing.  The text is a sentence that does
        not contain the password.
    """
    scheme, colon, rest = dsn.partition(":")
    if colon and scheme == "sqlite":
        return SQLite(rest, isReadOnly, mayCreate, owner)
    if colon and scheme in ("postgresql", "postgres") and rest.startswith("//"):
        return PostgreSQL(dsn, prepares)
    raise ValueError("a DSN is sqlite:PATH or postgresql://USER:PASSWORD@HOST/DATABASE")
