"""
Read the message that a client retrieves.  In the same transaction, read the messages that the
client will probably retrieve next.
"""

from __future__ import annotations

from typing import Any

from pop3svc.database import Transaction

__all__ = ["Found", "ReadAhead", "findMessage"]

# The most messages that are read ahead, and the most octets of the content of such a message.  With
# these limits a session keeps at most 256 KiB of contents in memory.
_MESSAGES, _OCTETS = 16, 16_384

# The columns of a row.  The first columns are the size and the header fields of a message.  Then
# come the number, the size, the number of pieces, the form and the first piece of its content.  The
# last columns are the position of the message, its unique-id and the size of its surrogate.
Found = tuple[Any, ...]

_COLUMNS = (
    "message.octets, header, message.content, content.octets, pieces, form, data, position, "
    "uniqueid, surrogate FROM message LEFT JOIN content ON content.id = message.content "
    "LEFT JOIN piece ON piece.content = message.content AND piece.number = 0"
)


def findMessage(transaction: Transaction, mailbox: int, uniqueID: str) -> Found | None:
    """
    Find a message.  Blocks.

    @return: the row of the message; L{None} if the message does not exist.
    """
    row: Found | None = transaction.executeBinary(
        f"SELECT {_COLUMNS} WHERE mailbox = :mailbox AND uniqueid = :uniqueid",
        mailbox=mailbox,
        uniqueid=uniqueID,
    ).fetchone()
    return row


class ReadAhead:
    """
    The next messages of a session that retrieves one message after the other.  For a small message,
    a job in a thread of the database takes more time than the rest of RETR.  Several messages are
    therefore read in one job.
    """

    def __init__(self) -> None:
        self._read: dict[str, Found] = {}
        self._last = -1

    def take(self, uniqueID: str) -> Found | None:
        """
        @return: the message; L{None} if it was not read ahead.
        """
        found = self._read.pop(uniqueID, None)
        if found is not None:
            self._last = found[7]
        return found

    def clear(self) -> None:
        """
        Forget the messages that were read ahead.
        """
        self._read = {}
        self._last = -1

    def find(self, transaction: Transaction, mailbox: int, uniqueID: str) -> Found | None:
        """
        Find a message.  If the message follows the message that was found last, also read the small
        messages that come next.  Blocks.

        @return: the row of the message; L{None} if the message does not exist.
        """
        found = findMessage(transaction, mailbox, uniqueID)
        if found is None:
            return None
        last, self._last = self._last, found[7]
        if last == found[7] - 1:
            rows = transaction.executeBinary(
                f"SELECT {_COLUMNS} WHERE mailbox = :mailbox AND position > :first "
                f"AND position <= :last AND content.octets <= {_OCTETS} AND pieces < 2",
                mailbox=mailbox,
                first=found[7],
                last=found[7] + _MESSAGES,
            ).fetchall()
            self._read = {row[8]: row for row in rows}
        return found
