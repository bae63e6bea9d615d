"""
The mailbox of one session.  Its messages are in a database.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from zope.interface import implementer

from pop3svc.database import Database, DatabaseUnavailable, Transaction
from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import (
    Eventual,
    IBulkMessageSizes,
    IExclusiveMailbox,
    INewMailNotifier,
    IPOP3ConnectionInfo,
    IPOP3Mailbox,
    IReadOnlyMailbox,
    ISleepingMailbox,
    ISurrogates,
)
from pop3svc.lineendings import WireForm
from pop3svc.listings import UniqueIDList
from pop3svc.once import Once
from pop3svc.providers.locking import LockPolicy, pause
from pop3svc.providers.sql.content import Damaged, StoredContent
from pop3svc.providers.sql.deletion import deleteIn
from pop3svc.providers.sql.delivery import mailboxOf
from pop3svc.providers.sql.leases import Lease, LeaseHeld, Node
from pop3svc.providers.sql.listing import ListingCache, MailboxListing, listIn
from pop3svc.providers.sql.readahead import Found, ReadAhead, findMessage
from pop3svc.providers.sql.statements import one

__all__ = ["ExclusiveSQLMailbox", "ReadOnlySQLMailbox", "SQLMailbox"]

log = Logger(namespace="pop3svc")

# The damaged messages that the log already contains.
_damaged = Once()
_NO_SIZES: array[int] = array("Q")


@implementer(IPOP3Mailbox, IBulkMessageSizes, ISleepingMailbox, ISurrogates)
class SQLMailbox:
    """
    A mailbox that any number of sessions read at the same time.
    """

    hasSurrogates = True

    def __init__(self, database: Database, name: str, listings: ListingCache) -> None:
        """
        @param name: the user's name.
        @param listings: the cache of listings that all mailboxes of a store share.
        """
        self._database = database
        self._name = name
        self._listings = listings
        # The number of the mailbox; 0 if the mailbox does not exist.
        self._number = 0
        self._listing: MailboxListing | None = None
        # The dictionary has the size of each message that messageExists has found since the
        # listing, and the size of its surrogate.  The set contains the messages that the session
        # has deleted since the listing.
        self._later: dict[str, tuple[int, int]] = {}
        self._gone: set[str] = set()
        self._ahead = ReadAhead()

    def _check(self) -> None:
        """
        @raise POP3ResponseError: the session must end.
        """

    # --- the listing --------------------------------------------------------------------

    def listMessageUniqueIDs(self, info: IPOP3ConnectionInfo) -> Eventual[UniqueIDList]:
        """
        See L{IPOP3Mailbox.listMessageUniqueIDs}.
        """
        self._check()
        return self._read(self._listIfChanged).addCallback(self._listed)

    def _listIfChanged(self, transaction: Transaction) -> tuple[int, MailboxListing]:
        found = mailboxOf(transaction, self._name, makes=False)
        if found is None:
            return 0, MailboxListing(-1, UniqueIDList(()), _NO_SIZES, {})
        number, changes = found
        known = self._listings.get(number, changes)
        return number, listIn(transaction, number) if known is None else known

    def _listed(self, result: tuple[int, MailboxListing]) -> UniqueIDList:
        self._number, listing = result
        if self._number:
            self._listings.put(self._number, listing)
        return self._use(listing)

    def _use(self, listing: MailboxListing) -> UniqueIDList:
        self._listing = listing
        self._later = {}
        self._gone = set()
        return listing.uniqueIDs

    def _read(self, work: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        return self._database.run(work, *arguments, isReading=True).addErrback(self._unavailable)

    def _unavailable(self, failure: Any) -> Any:
        error = failure.value
        if isinstance(error, Damaged):
            raise self._damaged(error)
        failure.trap(DatabaseUnavailable)
        # The class Database has already logged that the database is unavailable.
        raise POP3ResponseError("Mailbox is not available now.", "SYS/TEMP")

    def _damaged(self, error: Damaged) -> POP3ResponseError:
        if _damaged.isFirst(str(error)):
            log.error("message of {name} is damaged: {error}", name=self._name, error=str(error))
        return POP3ResponseError("Message cannot be read.", "SYS/PERM")

    async def messageExists(self, info: IPOP3ConnectionInfo, uniqueID: str) -> bool:
        """
        See L{IPOP3Mailbox.messageExists}.
        """
        self._check()
        row = await self._read(findMessage, self._number, uniqueID)
        if row is None:
            return False
        self._later[uniqueID] = int(row[0]), int(row[9])
        return True

    # --- sizes ----------------------------------------------------------------------------

    def messageSize(self, info: IPOP3ConnectionInfo, uniqueID: str) -> int:
        """
        See L{IPOP3Mailbox.messageSize}.
        """
        size = self._sizeOf(uniqueID)
        if size is None:
            raise POP3ResponseError("Message no longer exists.")
        return size

    def _sizeOf(self, uniqueID: str) -> int | None:
        if uniqueID in self._gone:
            return None
        listing = self._listing
        number = None if listing is None else listing.uniqueIDs.number(uniqueID)
        if listing is None or number is None:
            return self._later.get(uniqueID, (None, 0))[0]
        return listing.sizes[number - 1]

    def _surrogateOf(self, uniqueID: str) -> int:
        """
        @return: the size of a message's surrogate; 0 if the message needs no surrogate.
        """
        listing = self._listing
        number = None if listing is None else listing.uniqueIDs.number(uniqueID)
        if listing is None or number is None:
            return self._later.get(uniqueID, (0, 0))[1]
        return listing.surrogates.get(number - 1, 0)

    def messageSizes(
        self, info: IPOP3ConnectionInfo, uniqueIDs: Sequence[str]
    ) -> Sequence[int | None]:
        """
        See L{IBulkMessageSizes.messageSizes}.
        """
        listing = self._listing
        if listing is not None and uniqueIDs is listing.uniqueIDs.uniqueIDs and not self._gone:
            return listing.sizes
        return [self._sizeOf(each) for each in uniqueIDs]

    def surrogateSizes(
        self, info: IPOP3ConnectionInfo, uniqueIDs: Sequence[str]
    ) -> Sequence[int | None]:
        """
        See L{ISurrogates.surrogateSizes}.
        """
        sizes = self.messageSizes(info, uniqueIDs)
        listing = self._listing
        if listing is not None and not listing.surrogates and not self._later:
            return sizes
        return [
            size and (self._surrogateOf(uniqueID) or size)
            for uniqueID, size in zip(uniqueIDs, sizes, strict=True)
        ]

    def needsUTF8(self, info: IPOP3ConnectionInfo, uniqueID: str) -> bool:
        """
        See L{ISurrogates.needsUTF8}.
        """
        return self._surrogateOf(uniqueID) > 0

    # --- contents -------------------------------------------------------------------------

    def messageContent(self, info: IPOP3ConnectionInfo, uniqueID: str) -> Eventual[StoredContent]:
        """
        See L{IPOP3Mailbox.messageContent}.
        """
        self._check()
        found = self._ahead.take(uniqueID)
        if found is None:
            return self._read(self._open, uniqueID).addCallback(self._content)
        try:
            return self._content(_checked(None, uniqueID, found))
        except Damaged as error:
            raise self._damaged(error)

    def _open(self, transaction: Transaction, uniqueID: str) -> tuple[Any, ...] | None:
        """
        Find a message, check that its content is complete, and read its beginning.

        @raise Damaged: the content is incomplete.
        """
        row = self._ahead.find(transaction, self._number, uniqueID)
        return None if row is None else _checked(transaction, uniqueID, row)

    def _content(self, found: tuple[Any, ...] | None) -> StoredContent:
        if found is None:
            raise POP3ResponseError("Message no longer exists.")
        return StoredContent(self._database, *found)

    def messageDelete(self, info: IPOP3ConnectionInfo, uniqueIDs: Sequence[str]) -> Eventual[None]:
        """
        See L{IPOP3Mailbox.messageDelete}.
        """
        raise NotImplementedError

    def onSleep(self, info: IPOP3ConnectionInfo) -> None:
        """
        See L{ISleepingMailbox.onSleep}.
        """
        self._listing = None
        self._later = {}
        self._gone = set()
        self._ahead.clear()


def _checked(transaction: Transaction | None, uniqueID: str, found: Found) -> tuple[Any, ...]:
    """
    Check that the content of a message is complete.

    @param transaction: L{None} is allowed if the message has at most one piece.
    @return: the arguments of L{StoredContent}.
    @raise Damaged: the content is incomplete.
    """
    size, header, content, octets, pieces, form, data = found[:7]
    if octets is None or size != octets + len(header):
        raise Damaged(f"content {content} of {uniqueID} is missing or has another size")
    first = [bytes(header)]
    if data is not None:
        first.append(bytes(data))
    if pieces < 2:
        if sum(map(len, first[1:])) != octets or len(first) != pieces + 1:
            raise Damaged(f"content {content} of {uniqueID} has another length")
    elif transaction is not None:
        whole = one(
            transaction,
            "SELECT COUNT(*), SUM(LENGTH(data)) FROM piece WHERE content = :content",
            content=content,
        )
        if whole is None or (whole[0], int(whole[1] or 0)) != (pieces, octets) or data is None:
            raise Damaged(f"content {content} of {uniqueID} is incomplete")
    return content, pieces, octets, WireForm(form), first


@implementer(IReadOnlyMailbox)
class ReadOnlySQLMailbox(SQLMailbox):
    """
    A mailbox of a store that changes nothing.
    """


@implementer(IExclusiveMailbox, INewMailNotifier)
class ExclusiveSQLMailbox(SQLMailbox):
    """
    A mailbox that no two sessions can lock at the same time, even on different nodes.
    """

    # Times in seconds.  POLL is the time between two attempts to take a lease.  RELEASE_TIMEOUT is
    # the time within which a session must release its lease after a request.  It includes the time
    # until the node of the session sees the request.
    POLL = 0.2
    RELEASE_TIMEOUT = 2.0
    # The most seconds that a deletion may take, and the number of messages for which it may take a
    # second more than other transactions.  If the deletion of a large mailbox always failed, the
    # client would fetch all messages again and again.
    DELETION_LIMIT, DELETED_EACH_SECOND = 90.0, 500

    def __init__(
        self,
        database: Database,
        name: str,
        listings: ListingCache,
        node: Node,
        policy: LockPolicy,
        clock: Any,
    ) -> None:
        """
        @param node: the L{Node} of this process.
        @param policy: the behaviour of the session if another session has locked the mailbox.
        """
        super().__init__(database, name, listings)
        self._node = node
        self._policy = policy
        self._clock = clock
        self._lease: Lease | None = None
        # Whether the change number was read together with the lease and was not used for a
        # listing yet.
        self._isFresh = False
        self._changed: Callable[[], object] = lambda: None

    def _check(self) -> None:
        if self._lease is not None:
            self._lease.check()

    # --- the lock -------------------------------------------------------------------------

    async def lock(self, info: IPOP3ConnectionInfo, requestRelease: Callable[[], bool]) -> None:
        """
        See L{IExclusiveMailbox.lock}.
        """
        clock, policy, node = self._clock, self._policy, self._node
        end: float | None = None
        while True:
            taken = await self._take(policy.takeover)
            if isinstance(taken, Lease) and node.hold(taken, requestRelease):
                break
            if end is None:
                end = clock.seconds() + policy.wait
                isGiven = node.ask(taken.mailbox) if policy.takeover else False
                if isGiven is not False:
                    end = max(end, clock.seconds() + self.RELEASE_TIMEOUT)
                if isGiven:
                    continue
            if clock.seconds() >= end:
                raise POP3ResponseError("Mailbox is locked by another session.", "IN-USE")
            await pause(clock, self.POLL)
        self._lease = taken
        self._number = taken.mailbox
        self._isFresh = True

    def _take(self, wants: bool) -> Deferred[Lease | LeaseHeld]:
        def take(transaction: Transaction) -> Lease | LeaseHeld:
            found = mailboxOf(transaction, self._name, makes=True)
            assert found is not None
            return self._node.take(transaction, *found, wants)

        taking = self._database.run(take, mayRepeat=True, abandoned=self._abandon)
        return taking.addErrback(self._unavailable)

    def _abandon(self, taken: Lease | LeaseHeld) -> None:
        """
        Release a lease that was taken after the session had stopped waiting for it.
        """
        if isinstance(taken, Lease):
            Deferred.fromCoroutine(self._node.release(taken))

    def unlock(self, info: IPOP3ConnectionInfo) -> Deferred[None] | None:
        """
        See L{IExclusiveMailbox.unlock}.  The next session of this process may lock the mailbox as
        soon as this method returns.
        """
        lease, self._lease = self._lease, None
        self._listing = None
        self._ahead.clear()
        return None if lease is None else Deferred.fromCoroutine(self._node.release(lease))

    # --- the listing ------------------------------------------------------------------------

    def watchMailbox(
        self, info: IPOP3ConnectionInfo, changed: Callable[[], object]
    ) -> Callable[[], None]:
        """
        See L{INewMailNotifier.watchMailbox}.  No watching is necessary.  The change number is
        read together with the lease, and it shows whether the mailbox has changed.
        """
        self._changed = changed

        def end() -> None:
            self._changed = lambda: None

        return end

    def listMessageUniqueIDs(self, info: IPOP3ConnectionInfo) -> Eventual[UniqueIDList]:
        """
        See L{IPOP3Mailbox.listMessageUniqueIDs}.
        """
        isFresh, self._isFresh = self._isFresh, False
        if isFresh and self._lease is not None:
            listing = self._listings.get(self._number, self._lease.changes)
            if listing is not None:
                return self._use(listing)
        return super().listMessageUniqueIDs(info)

    def _use(self, listing: MailboxListing) -> UniqueIDList:
        if listing.changes != self._changesUsed:
            self._changed()
        self._changesUsed = listing.changes
        return super()._use(listing)

    _changesUsed = -1

    # --- deleting ---------------------------------------------------------------------------

    async def messageDelete(self, info: IPOP3ConnectionInfo, uniqueIDs: Sequence[str]) -> None:
        """
        See L{IPOP3Mailbox.messageDelete}.
        """
        lease = self._lease
        if lease is None:
            raise POP3ResponseError("Mailbox is not available now.", "SYS/TEMP")
        lease.check()
        more = len(uniqueIDs) // self.DELETED_EACH_SECOND
        limit = min(Database.LIMIT + more, self.DELETION_LIMIT)
        deleting = self._database.run(
            self._delete, lease, list(uniqueIDs), mayRepeat=True, limit=limit
        )
        await deleting.addErrback(self._unavailable)
        self._gone.update(uniqueIDs)
        self._ahead.clear()

    def _delete(self, transaction: Transaction, lease: Lease, uniqueIDs: list[str]) -> None:
        """
        Delete messages.  This method has the same effect if it runs twice.  It may run again
        because the answer to COMMIT was lost.
        """
        self._node.fence(transaction, lease)
        deleteIn(transaction, lease.mailbox, uniqueIDs)
