"""
Delete messages of a mailbox in a database.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pop3svc.database import Transaction
from pop3svc.providers.sql.statements import changeNumber, execute, names, query

__all__ = ["deleteIn"]

# The most unique-ids in one statement.  Databases limit the number of parameters of a statement.
_CHUNK = 500


def deleteIn(transaction: Transaction, mailbox: int, uniqueIDs: Sequence[str]) -> None:
    """
    Delete messages of a mailbox.  Blocks.  A message that no longer exists is considered deleted.

    @param mailbox: the number of the mailbox.  The transaction must have locked the row of the
        mailbox's lease.
    """
    count = octets = 0
    contents: list[int] = []
    for first in range(0, len(uniqueIDs), _CHUNK):
        some = names(uniqueIDs[first : first + _CHUNK])
        where = f"WHERE mailbox = :mailbox AND uniqueid IN ({some.sql})"
        rows = query(
            transaction,
            f"SELECT octets, content FROM message {where}",
            mailbox=mailbox,
            **some.values,
        )
        execute(
            transaction,
            "INSERT INTO formerid (mailbox, uniqueid) SELECT mailbox, uniqueid FROM message "
            f"{where} AND isforeign = 1 ON CONFLICT (mailbox, uniqueid) DO NOTHING",
            mailbox=mailbox,
            **some.values,
        )
        execute(transaction, f"DELETE FROM message {where}", mailbox=mailbox, **some.values)
        count += len(rows)
        octets += sum(row[0] for row in rows)
        contents += [row[1] for row in rows]
    if not count:
        return
    execute(
        transaction,
        "UPDATE mailbox SET messages = messages - :count, octets = octets - :octets, "
        "changes = :changes WHERE id = :id",
        count=count,
        changes=changeNumber(),
        octets=octets,
        id=mailbox,
    )
    _releaseContents(transaction, contents)


def _releaseContents(transaction: Transaction, contents: Sequence[int]) -> None:
    """
    Remove the contents that are no longer used by any message.

    @param contents: for each deleted message, the number of its content.
    """
    counts = Counter(contents)
    for content, count in counts.items():
        if count > 1:
            # Several of the deleted messages used this content.  The loop below subtracts one use.
            execute(
                transaction,
                "UPDATE content SET uses = uses - :more WHERE id = :id",
                more=count - 1,
                id=content,
            )
    contents = sorted(counts)
    for first in range(0, len(contents), _CHUNK):
        some = names(contents[first : first + _CHUNK])
        execute(
            transaction,
            f"UPDATE content SET uses = uses - 1 WHERE id IN ({some.sql})",
            **some.values,
        )
        unused = f"SELECT id FROM content WHERE uses < 1 AND id IN ({some.sql})"
        execute(transaction, f"DELETE FROM piece WHERE content IN ({unused})", **some.values)
        execute(
            transaction, f"DELETE FROM content WHERE uses < 1 AND id IN ({some.sql})", **some.values
        )
