"""
Store the messages of the benchmark in the database of a store.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from bench.mail import SMALL, Mail
from pop3svc.database import Database, Transaction
from pop3svc.drivers import Driver
from pop3svc.providers.sql.schema import migrate
from pop3svc.providers.sql.statements import execute, one

__all__ = ["SQLMail"]

# The most rows of one transaction.
_BATCH = 5000


class SQLMail:
    """
    The mailboxes of the benchmark, in a database.
    """

    def __init__(self, driver: Driver, mail: Mail) -> None:
        """
        Make the tables, and fill them.
        """
        self._database = Database(driver, limit=600)
        self._mail = mail
        self._database.check(migrate, isReading=False)
        sizes = mail.sizes
        count = max(sizes.many, sizes.fetched)
        for first in range(1, count + 1, _BATCH):
            numbers = range(first, min(first + _BATCH, count + 1))
            self._database.check(self._contents, numbers, isReading=False)
        for number in range(sizes.users):
            self._mailbox(f"user{number}", sizes.messages)
        self._mailbox("many", sizes.many)
        # No client retrieves these messages, so they share the contents of the other messages.
        self._mailbox("huge", sizes.huge)
        self.remakeFetched()

    def _contents(self, transaction: Transaction, numbers: range) -> None:
        transaction.executeMany(
            "INSERT INTO content (id, octets, pieces, form, uses, made) "
            "VALUES (:id, :octets, 1, 'ready', 1000000, 0)",
            [{"id": number, "octets": SMALL} for number in numbers],
        )
        small = self._mail.path / "small"
        transaction.executeMany(
            "INSERT INTO piece (content, number, data) VALUES (:id, 0, :data)",
            [{"id": number, "data": (small / str(number)).read_bytes()} for number in numbers],
        )

    def _mailbox(self, name: str, count: int) -> None:
        number = abs(hash(name)) % (1 << 62) + 1
        for first in range(1, count + 1, _BATCH):
            last = min(first + _BATCH - 1, count)
            self._database.check(self._messages, number, name, first, last, isReading=False)

    def _messages(
        self, transaction: Transaction, mailbox: int, name: str, first: int, last: int
    ) -> None:
        if first == 1:
            execute(transaction, "DELETE FROM message WHERE mailbox = :id", id=mailbox)
            execute(transaction, "DELETE FROM lease WHERE mailbox = :id", id=mailbox)
            execute(transaction, "DELETE FROM mailbox WHERE id = :id", id=mailbox)
            execute(
                transaction,
                "INSERT INTO mailbox (id, name, nextposition, messages, octets, changes) "
                "VALUES (:id, :name, 1, 0, 0, :changes)",
                id=mailbox,
                name=name,
                # Change this value, so that the service does not use a listing that it still has.
                changes=time.time_ns(),
            )
            execute(
                transaction,
                "INSERT INTO lease (mailbox, node, epoch, token) VALUES (:id, '', 0, 0)",
                id=mailbox,
            )
        transaction.executeMany(
            "INSERT INTO message (mailbox, position, uniqueid, octets, arrival, isforeign, "
            "header, content) VALUES (:mailbox, :position, :uniqueid, :octets, 0, 0, :header, "
            ":content)",
            self._rows(mailbox, first, last),
        )
        execute(
            transaction,
            "UPDATE mailbox SET nextposition = :next, messages = messages + :count, "
            "octets = octets + :octets, changes = changes + 1 WHERE id = :id",
            id=mailbox,
            next=last + 1,
            count=last - first + 1,
            octets=(last - first + 1) * SMALL,
        )

    def _rows(self, mailbox: int, first: int, last: int) -> Iterator[dict[str, object]]:
        contents = max(self._mail.sizes.many, self._mail.sizes.fetched)
        for position in range(first, last + 1):
            yield {
                "mailbox": mailbox,
                "position": position,
                "uniqueid": f"{mailbox:016x}{position:016x}",
                "octets": SMALL,
                "header": b"",
                "content": (position - 1) % contents + 1,
            }

    def remakeFetched(self) -> None:
        """
        Make the mailboxes C{del0} and so on again, because clients delete messages from them.
        """
        for number in range(self._mail.sizes.users):
            self._mailbox(f"del{number}", self._mail.sizes.fetched)

    def left(self, name: str) -> int:
        """
        @return: the number of messages in a mailbox.
        """

        def count(transaction: Transaction) -> int:
            row = one(
                transaction,
                "SELECT COUNT(*) FROM message JOIN mailbox ON mailbox.id = message.mailbox "
                "WHERE name = :name",
                name=name,
            )
            return 0 if row is None else int(row[0])

        return self._database.check(count)
