"""
The listings of mailboxes in a database.  All sessions of a mailbox share a listing.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock

from pop3svc.database import Transaction
from pop3svc.listings import UniqueIDList
from pop3svc.providers.sql.statements import one, query

__all__ = ["ListingCache", "MailboxListing", "listIn"]

# The most messages that one query returns.  Without this limit, the server and this process would
# keep all rows of a large mailbox in memory.
_PAGE = 2000


@dataclass(frozen=True)
class MailboxListing:
    """
    The messages of a mailbox.

    @ivar changes: the change number of the mailbox at the time of the listing.
    @ivar sizes: the octets of each message.
    @ivar surrogates: the size of each surrogate in octets, by the index of the message.  Messages
        that need no surrogate are left out.
    """

    changes: int
    uniqueIDs: UniqueIDList
    sizes: array[int]
    surrogates: dict[int, int]


def listIn(transaction: Transaction, mailbox: int) -> MailboxListing:
    """
    List a mailbox.  Blocks.
    """
    # Read the change number first.  If a message arrives between two queries, the listing has
    # another number than the mailbox, and the next session lists again.
    row = one(transaction, "SELECT changes FROM mailbox WHERE id = :id", id=mailbox)
    changes = -1 if row is None else int(row[0])
    uniqueIDs: list[str] = []
    sizes = array("Q")
    surrogates: dict[int, int] = {}
    last = 0
    while True:
        rows = query(
            transaction,
            "SELECT position, uniqueid, octets, surrogate FROM message WHERE mailbox = :mailbox "
            f"AND position > :last ORDER BY position LIMIT {_PAGE}",
            mailbox=mailbox,
            last=last,
        )
        surrogates |= {len(sizes) + at: row[3] for at, row in enumerate(rows) if row[3]}
        uniqueIDs += [row[1] for row in rows]
        sizes.extend(row[2] for row in rows)
        if len(rows) < _PAGE:
            break
        last = rows[-1][0]
    listed = UniqueIDList(uniqueIDs)
    listed.prepare()
    return MailboxListing(changes, listed, sizes, surrogates)


class ListingCache:
    """
    A cache of the latest listing of each mailbox.  Any thread may use it.
    """

    # The most messages in the cache.  A message takes some 150 octets.  Each mailbox counts as EACH
    # further messages.  The listing that was added last stays in the cache even if it has more
    # messages than BOUND.
    BOUND, EACH = 300_000, 5

    def __init__(self) -> None:
        self._listings: OrderedDict[int, MailboxListing] = OrderedDict()
        self._messages = 0
        self._guard = Lock()

    def get(self, mailbox: int, changes: int) -> MailboxListing | None:
        """
        @return: the listing of a mailbox; L{None} if the change number had another value when
            the listing was made.
        """
        with self._guard:
            known = self._listings.get(mailbox)
            if known is None or known.changes != changes:
                return None
            self._listings.move_to_end(mailbox)
            return known

    def put(self, mailbox: int, listing: MailboxListing) -> None:
        """
        Add a listing to the cache.
        """
        with self._guard:
            self._drop(mailbox)
            self._listings[mailbox] = listing
            self._messages += len(listing.sizes) + self.EACH
            while self._messages > self.BOUND and len(self._listings) > 1:
                self._drop(next(iter(self._listings)))

    def _drop(self, mailbox: int) -> None:
        known = self._listings.pop(mailbox, None)
        if known is not None:
            self._messages -= len(known.sizes) + self.EACH
