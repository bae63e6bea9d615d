"""
A store of mailboxes in a database.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, BinaryIO

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from zope.interface import implementer

from pop3svc.database import Database, DatabaseRefused, DatabaseUnavailable, Transaction
from pop3svc.drivers import Driver, SQLite
from pop3svc.errors import DeliveryError, POP3ResponseError, StoreUnavailable
from pop3svc.files import disk
from pop3svc.interfaces import (
    DeliveryCopy,
    Eventual,
    IDelivery,
    IExpiry,
    IHousekeeping,
    IMailboxStore,
    IPOP3ConnectionInfo,
)
from pop3svc.providers.locking import LockPolicy
from pop3svc.providers.sql.delivery import Delivery, Quota, mailboxOf
from pop3svc.providers.sql.housekeeping import Housekeeping
from pop3svc.providers.sql.leases import Node
from pop3svc.providers.sql.listing import ListingCache
from pop3svc.providers.sql.mailbox import ExclusiveSQLMailbox, ReadOnlySQLMailbox, SQLMailbox
from pop3svc.providers.sql.schema import SchemaError, migrate, requireCurrent, requireNoNewer
from pop3svc.threadpool import Executor

__all__ = ["SQLStore"]

log = Logger(namespace="pop3svc")

# The most characters of a name.  An address has at most 64 octets before the "@" and 255 octets
# after it (RFC 5321 section 4.5.3.1).
_LONGEST = 320


@implementer(IMailboxStore, IDelivery, IExpiry, IHousekeeping)
class SQLStore(Service):
    """
    Mailboxes in a database, for any number of nodes.

    @ivar expireDays: see L{IExpiry}.
    """

    name = "pop3svc"

    def __init__(
        self,
        driver: Driver,
        readOnly: bool = False,
        policy: LockPolicy = LockPolicy(),  # noqa: B008 (it is frozen)
        lease: float = 30.0,
        quota: Quota = Quota(),  # noqa: B008 (it is frozen)
        expireDays: int = 0,
        clock: Any = None,
        pool: Any = None,
        executor: Executor | None = None,
    ) -> None:
        """
        @param driver: the database; see L{pop3svc.drivers.makeDriver}.
        @param readOnly: whether the store deletes, locks and writes nothing.
        @param policy: the behaviour of a session if another session has locked its mailbox.
        @param lease: seconds after which other nodes may take the mailboxes of a dead node.
        @param quota: the limits of each mailbox.
        @param expireDays: the age in days at which messages are deleted; 0 if they are never
            deleted.
        @param pool: see L{Database}.
        @param executor: reads and converts new messages in threads.
        """
        if clock is None:
            from twisted.internet import reactor as clock
        self._driver = driver
        self._executor = disk() if executor is None else executor
        self._database = Database(driver, clock=clock, pool=pool)
        self._renewals = Database(
            driver, threads=1, health=self._database.health, clock=clock, pool=pool
        )
        self._readOnly = readOnly
        self._policy = policy
        self._quota = quota
        self._clock = clock
        self._listings = ListingCache()
        self._isPrepared = self._isRefused = False
        self.node = Node(self._database, self._renewals, lease, clock)
        self.expireDays = expireDays
        self._housekeeping = Housekeeping(
            *(self._database, self._prepareOnce, self.node, expireDays, clock)
        )

    def check(self) -> None:
        """
        Check the database, and change nothing.  This method blocks for a limited time.

        @raise ValueError: the database cannot be used until the operator changes a setting.  The
            text of the exception is one sentence.
        @raise DatabaseUnavailable: the database is unavailable.
        """
        try:
            if isinstance(self._driver, SQLite) and not os.path.exists(self._driver.path):
                self._checkDirectory(self._driver.path)
            else:
                self._database.check(self._checkTables)
        except DatabaseRefused as error:
            raise ValueError(str(error))
        except SchemaError as error:
            raise ValueError(f"{self._database.name}: {error}")

    def _checkDirectory(self, path: str) -> None:
        if self._readOnly:
            raise ValueError(f"{path} does not exist")
        directory = os.path.dirname(path)
        if not os.path.isdir(directory):
            raise ValueError(f"{directory} is not a directory")

    def _checkTables(self, transaction: Transaction) -> None:
        if self._migrates:
            requireNoNewer(transaction)
        else:
            requireCurrent(transaction)

    @property
    def _migrates(self) -> bool:
        # An SQLite file is used by one service only.  No older version of the service can therefore
        # need the old tables.
        return isinstance(self._driver, SQLite) and not self._readOnly

    async def prepare(self) -> None:
        """
        Check the tables of the database.  If the database is SQLite and the store is not read-only,
        make or migrate the tables instead.  L{openMailbox}, L{hasMailbox} and L{deliver} call this
        method first, until a call has succeeded.

        @raise POP3ResponseError: the tables cannot be used now.
        """
        try:
            if self._migrates:
                await self._database.run(migrate)
            else:
                await self._database.run(requireCurrent, isReading=True)
        except SchemaError as error:
            if not self._isRefused:
                self._isRefused = True
                log.error("{database}: {error}", database=self._database.name, error=str(error))
            raise POP3ResponseError("Mailbox is not available now.", "SYS/PERM")
        except DatabaseUnavailable:
            raise POP3ResponseError("Mailbox is not available now.", "SYS/TEMP")
        self._isPrepared = True

    async def _prepareOnce(self) -> None:
        if not self._isPrepared:
            await self.prepare()

    def startHousekeeping(self) -> None:
        """
        See L{IHousekeeping.startHousekeeping}.
        """
        if not self._readOnly:
            self._housekeeping.start()

    def stopHousekeeping(self) -> None:
        """
        See L{IHousekeeping.stopHousekeeping}.
        """
        self._housekeeping.stop()

    def stopService(self) -> Deferred[None]:
        """
        Release the leases, and close the connections.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        await self.node.stop()
        await self._renewals.close()
        await self._database.close()

    def openMailbox(self, info: IPOP3ConnectionInfo, username: str) -> Eventual[SQLMailbox | None]:
        """
        See L{IMailboxStore.openMailbox}.  A user without a mailbox has an empty maildrop.
        """
        if not _isName(username):
            return None
        if not self._isPrepared:
            return self._openLater(username)
        return self._open(username)

    async def _openLater(self, username: str) -> SQLMailbox:
        await self.prepare()
        return self._open(username)

    def _open(self, username: str) -> SQLMailbox:
        if self._readOnly:
            return ReadOnlySQLMailbox(self._database, username, self._listings)
        return ExclusiveSQLMailbox(
            *(self._database, username, self._listings),
            *(self.node, self._policy, self._clock),
        )

    async def hasMailbox(self, username: str) -> bool:
        """
        See L{IDelivery.hasMailbox}.
        """
        if not self._isPrepared:
            await self.prepare()
        try:
            found = await self._database.run(mailboxOf, username, False, isReading=True)
        except DatabaseUnavailable:
            raise POP3ResponseError("Mailbox is not available now.", "SYS/TEMP")
        return found is not None

    async def deliver(
        self, copies: Sequence[DeliveryCopy], content: BinaryIO
    ) -> Sequence[DeliveryError | None]:
        """
        See L{IDelivery.deliver}.
        """
        if self._readOnly:
            return [StoreUnavailable("The mailbox is read-only.") for _ in copies]
        if not self._isPrepared:
            try:
                await self.prepare()
            except POP3ResponseError:
                return [StoreUnavailable("Mailbox is not available now.") for _ in copies]
        return await Delivery(self._database, self._executor, self._quota, copies, content).run()


def _isName(name: str) -> bool:
    """
    @return: whether a user may have this name.  It must be printable, without spaces, and not too
        long.
    """
    return 0 < len(name) <= _LONGEST and name.isprintable() and " " not in name
