"""
Remember which messages were fetched, in one SQLite file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from threading import Lock
from typing import NamedTuple

from pop3svc.files import closeQuietly
from pop3svc.state import migrate
from pop3svc.transfer.failures import NotPossible

__all__ = ["FORGET_AFTER", "Entry", "FetchRecord", "Listing"]

# For each version of the tables, the statements that change the tables of the previous version.
_SCHEMAS = (
    """
CREATE TABLE account (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE message (
    account INTEGER NOT NULL,
    uid TEXT NOT NULL,
    digest BLOB NOT NULL,
    isStored INTEGER NOT NULL,
    missing REAL,
    PRIMARY KEY (account, uid, digest)
) WITHOUT ROWID;
""",
    """
CREATE TABLE large (
    account INTEGER NOT NULL,
    uid TEXT NOT NULL,
    most INTEGER NOT NULL,
    PRIMARY KEY (account, uid)
) WITHOUT ROWID;
""",
)
# Seconds for which one process waits while another process writes.
_PATIENCE = 30.0
# Seconds for which a message is remembered after the server has stopped listing it.  The time is
# long, because a server may lose its mail for some days and then list the mail again.  No
# duplicates must be stored then.
FORGET_AFTER = 30 * 86400


class Entry(NamedTuple):
    """
    A message that was fetched.

    @ivar uniqueID: the unique-id that the server has given to the message.
    @ivar digest: the SHA-256 digest of the message as it was received.
    """

    uniqueID: str
    digest: bytes


class Listing(NamedTuple):
    """
    The conclusions from a list of the server's messages.

    @ivar forgotten: the messages that the record has forgotten, because the server has not listed
        them for L{FORGET_AFTER}.
    @ivar certain: the unique-ids that certainly still belong to the same message.  For each of
        them, one message is stored, and every list since then has contained the unique-id.  A
        message with any other unique-id has to be compared, because the server may have given the
        unique-id to another message (RFC 1939 section 7).
    @ivar large: the unique-ids of the messages that were found to be too large.  Each unique-id has
        the limit of octets that applied at that time.
    """

    forgotten: list[Entry]
    certain: set[str]
    large: dict[str, int]


class FetchRecord:
    """
    The record of the fetched messages of some accounts.  The methods block, so they must be called
    in a thread.
    """

    def __init__(self, path: str) -> None:
        """
        @param path: the path of the file.  The file is created if it does not exist.
        @raise NotPossible: the file cannot be used.
        """
        self.path = path
        self._mutex = Lock()
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            # The locks of accounts are on a separate file.  On SQLite's file, the closing of any
            # descriptor would also end SQLite's own locks.
            os.close(os.open(path, flags, 0o600))
            self._locks = os.open(f"{path}-accounts", flags, 0o600)
        except OSError as error:
            raise NotPossible(f"{path}: {error.strerror}")
        try:
            self._database = sqlite3.connect(
                path, _PATIENCE, isolation_level=None, check_same_thread=False
            )
            self._database.execute("PRAGMA journal_mode = WAL")
            # The record must survive a power failure, because otherwise a message would be stored
            # again.
            self._database.execute("PRAGMA synchronous = FULL")
            migrate(self._database, _SCHEMAS)
        except ValueError as error:
            closeQuietly(self._locks)
            raise NotPossible(f"{path} has {error}")
        except sqlite3.Error as error:
            closeQuietly(self._locks)
            raise NotPossible(f"{path}: {error}")

    def close(self) -> None:
        """
        Close the file, and release the accounts.
        """
        with self._mutex:
            self._database.close()
            closeQuietly(self._locks)

    def open(self, name: str) -> int:
        """
        Reserve an account for this process, until the record is closed.

        @param name: the name of the account, such as C{alice@mail.example.org:995}.
        @return: the number of the account in the record.
        @raise NotPossible: another process has reserved the account, or the record cannot be used.
        """
        with self._mutex:
            self._write("INSERT OR IGNORE INTO account (name) VALUES (?)", [(name,)])
            [(number,)] = self._database.execute("SELECT id FROM account WHERE name = ?", (name,))
        try:
            fcntl.lockf(self._locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise NotPossible(f"{self.path}-accounts: {error.strerror}")
            raise NotPossible(f"another process of pop3svc fetch is fetching the mail of {name}")
        return int(number)

    def load(self, account: int) -> dict[Entry, bool]:
        """
        @return: the messages of an account.  The value of each is true if the message is stored,
            and false if its storing was interrupted, so that nobody knows whether it is stored.
        """
        with self._mutex:
            rows = self._database.execute(
                "SELECT uid, digest, isStored FROM message WHERE account = ?", (account,)
            )
            return {Entry(uid, bytes(digest)): bool(isStored) for uid, digest, isStored in rows}

    def begin(self, account: int, entry: Entry) -> None:
        """
        Record that a message is going to be stored.
        """
        with self._mutex:
            self._write(
                "INSERT OR IGNORE INTO message (account, uid, digest, isStored) "
                "VALUES (?, ?, ?, 0)",
                [(account, *entry)],
            )

    def abandon(self, account: int, entry: Entry) -> None:
        """
        Record that a message was not stored, although its storing had begun.
        """
        with self._mutex:
            self._write(
                "DELETE FROM message WHERE account = ? AND uid = ? AND digest = ? AND isStored = 0",
                [(account, *entry)],
            )

    def finish(self, account: int, entries: Iterable[Entry], missing: float | None = None) -> None:
        """
        Record that messages are stored.

        @param missing: the present time in seconds since the epoch, if the messages will be deleted
            on the server.  The record then treats them as missing from the server's list, because
            the server may give their unique-ids to other messages.
        """
        with self._mutex:
            self._write(
                "INSERT INTO message (account, uid, digest, isStored, missing) "
                "VALUES (?, ?, ?, 1, ?) "
                "ON CONFLICT DO UPDATE SET isStored = 1, missing = excluded.missing",
                [(account, *each, missing) for each in entries],
            )

    def listed(self, account: int, known: Collection[str], now: float) -> Listing:
        """
        Record which messages the server lists.

        @param known: the unique-ids of all messages that the server lists.
        @param now: the present time in seconds since the epoch.
        @return: what follows from the list.
        """
        present = frozenset(known)
        with self._mutex:
            rows = self._database.execute(
                "SELECT uid, digest, isStored, missing FROM message WHERE account = ?", (account,)
            ).fetchall()
            there = Counter(
                uid for uid, _, isStored, missing in rows if isStored and missing is None
            )
            changed: list[tuple[object, ...]] = []
            old: list[tuple[int, str, bytes]] = []
            for uid, digest, _, missing in rows:
                key = (account, uid, bytes(digest))
                isListed = uid in present
                if missing is None:
                    if not isListed:
                        changed.append((now, *key))
                elif isListed and not there[uid]:
                    # Set the time to now.  Do not remove it before the message has been compared.
                    changed.append((now, *key))
                elif now - missing > FORGET_AFTER:
                    old.append(key)
            large = self._listedLarge(account, present)
            where = "WHERE account = ? AND uid = ? AND digest = ?"
            if changed:
                self._write(f"UPDATE message SET missing = ? {where}", changed)
            if old:
                self._write(f"DELETE FROM message {where}", old)
        certain = {uid for uid, count in there.items() if count == 1 and uid in present}
        return Listing([Entry(uid, digest) for _, uid, digest in old], certain, large)

    def _listedLarge(self, account: int, present: Collection[str]) -> dict[str, int]:
        """
        Forget the messages that were too large and that the server does not list any more.

        @return: see L{Listing.large}.
        """
        rows = self._database.execute("SELECT uid, most FROM large WHERE account = ?", (account,))
        large = dict(rows.fetchall())
        gone = [(account, uid) for uid in large if uid not in present]
        if gone:
            self._write("DELETE FROM large WHERE account = ? AND uid = ?", gone)
        return {uid: most for uid, most in large.items() if uid in present}

    def tooLarge(self, account: int, uniqueID: str, most: int) -> None:
        """
        Record that a message was found to be too large.

        @param most: the present limit for the octets of a message.
        """
        with self._mutex:
            self._write(
                "INSERT OR REPLACE INTO large VALUES (?, ?, ?)", [(account, uniqueID, most)]
            )

    def _write(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        database = self._database
        try:
            database.execute("BEGIN IMMEDIATE")
            try:
                database.executemany(statement, rows)
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")
        except sqlite3.Error as error:
            raise NotPossible(f"{self.path}: {error}")
