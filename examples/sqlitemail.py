r""" Serve mail from an SQLite database.  The calls to the database run in threads, because they
block.

Add a user, deliver a message, and start the service::

    echo secret | pop3svc user add alice --file users
    python sqlitemail.py mail.db alice < message.eml
    PYTHONPATH=. twistd -n --pidfile= pop3svc \
        --provider sqlitemail.serve:mail.db --auth passwd:users
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from twisted.logger import Logger
from zope.interface import implementer

from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import (
    IBulkMessageSizes,
    IMailboxStore,
    IPOP3ConnectionInfo,
    IPOP3Mailbox,
)
from pop3svc.lineendings import WireSizeCounter
from pop3svc.threads import InThreads

log = Logger()

# With AUTOINCREMENT SQLite never uses a number again, so the number can be the unique-id.
SCHEMA = """
CREATE TABLE IF NOT EXISTS mail (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    user TEXT NOT NULL, size INTEGER NOT NULL, message BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS byUser ON mail (user, number);
"""


@contextmanager
def transaction(path: str) -> Iterator[sqlite3.Connection]:
    """
    Open a connection for one transaction.  The calls come from several threads, but only the thread
    that has opened a connection may use it.
    """
    database = sqlite3.connect(path, timeout=10)
    try:
        with database:
            yield database
    except sqlite3.Error as error:
        log.error("{path}: {error}", path=path, error=error)
        raise POP3ResponseError("The database is not available.", "SYS/TEMP")
    finally:
        database.close()


def deliver(path: str, user: str, message: bytes) -> str:
    """
    @return: the unique-id of the new message.
    """
    counter = WireSizeCounter()
    counter.feed(message)
    row = user, counter.total(), message
    with transaction(path) as database:
        added = database.execute("INSERT INTO mail (user, size, message) VALUES (?, ?, ?)", row)
    return str(added.lastrowid)


@implementer(IPOP3Mailbox, IBulkMessageSizes)
class SQLiteMailbox:
    """
    The messages of one user.
    """

    def __init__(self, path: str, user: str) -> None:
        self._path = path
        self._user = user

    def _sizes(self) -> dict[str, int]:
        query = "SELECT number, size FROM mail WHERE user = ? ORDER BY number"
        with transaction(self._path) as database:
            return {str(number): size for number, size in database.execute(query, [self._user])}

    def listMessageUniqueIDs(self, info: IPOP3ConnectionInfo) -> list[str]:
        return list(self._sizes())

    def messageExists(self, info: IPOP3ConnectionInfo, uniqueID: str) -> bool:
        return uniqueID in self._sizes()

    def messageSize(self, info: IPOP3ConnectionInfo, uniqueID: str) -> int:
        return int(self._column("size", uniqueID))

    def messageSizes(self, info: IPOP3ConnectionInfo, uniqueIDs: list[str]) -> list[int | None]:
        sizes = self._sizes()
        return [sizes.get(each) for each in uniqueIDs]

    def messageContent(self, info: IPOP3ConnectionInfo, uniqueID: str) -> bytes:
        return bytes(self._column("message", uniqueID))

    def _column(self, name: str, uniqueID: str) -> bytes | int:
        query = f"SELECT {name} FROM mail WHERE user = ? AND number = ?"
        with transaction(self._path) as database:
            row = database.execute(query, [self._user, uniqueID]).fetchone()
        if row is None:
            raise POP3ResponseError("Message no longer exists.")
        column: bytes | int = row[0]
        return column

    def messageDelete(self, info: IPOP3ConnectionInfo, uniqueIDs: list[str]) -> None:
        rows = [(self._user, each) for each in uniqueIDs]
        with transaction(self._path) as database:
            database.executemany("DELETE FROM mail WHERE user = ? AND number = ?", rows)


@implementer(IMailboxStore)
class SQLiteStore:
    """
    A database with the mail of all users.
    """

    name = "SQLite mail"

    def __init__(self, path: str) -> None:
        self._path = path
        with transaction(path) as database:
            database.executescript(SCHEMA)

    def openMailbox(self, info: IPOP3ConnectionInfo, username: str) -> SQLiteMailbox:
        return SQLiteMailbox(self._path, username)


def serve(path: str) -> InThreads:
    """
    @return: the provider for C{--provider sqlitemail.serve:PATH}.
    """
    return InThreads(SQLiteStore(path))


if __name__ == "__main__":
    _, databasePath, recipient = sys.argv
    SQLiteStore(databasePath)
    deliver(databasePath, recipient, sys.stdin.buffer.read())
