"""
Delete old messages, unused contents and the rows of dead nodes.  One of the nodes does this work
about once an hour.  A node is a process of the service.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from pop3svc.database import Database, DatabaseUnavailable, Transaction
from pop3svc.errors import POP3ResponseError
from pop3svc.providers.sql.deletion import deleteIn
from pop3svc.providers.sql.leases import Node
from pop3svc.providers.sql.statements import execute, names, now, one, query

__all__ = ["Housekeeping"]

log = Logger(namespace="pop3svc")

# A day in milliseconds.
_DAY = 86_400_000
# A week.  If the latest round of housekeeping was more than a week ago, or seems to be more than a
# week in the future, the clock of the database may be wrong.  If the clock is far ahead, all
# messages look old and would be deleted.
_DOUBT = 7 * _DAY
# The most messages or contents that one transaction deletes, so that the transaction is short.
_BATCH = 500
# The table "lease" has a row with this number, which no mailbox has.  The row contains the time of
# the latest round.
_JOB = 0


class Housekeeping:
    """
    Deletes messages that are older than a number of days.  It also deletes the contents of
    deliveries that were never finished, and the rows of dead nodes.
    """

    # INTERVAL is the number of seconds between two rounds, if the rounds of all nodes are counted.
    # A node waits at most FIRST seconds before its first round.
    INTERVAL, FIRST = 3600.0, 60.0

    def __init__(
        self,
        database: Database,
        prepare: Callable[[], Awaitable[None]],
        node: Node,
        expireDays: int,
        clock: Any,
    ) -> None:
        """
        @param prepare: makes sure that the tables of the database can be used.
        @param expireDays: the age in days at which messages are deleted; 0 if they are never
            deleted.
        """
        self._database = database
        self._prepare = prepare
        self._node = node
        self._expireDays = expireDays
        self._clock = clock
        self._timer: IDelayedCall | None = None
        self._isClockDoubted = False

    def start(self) -> None:
        """
        Begin to do rounds.
        """
        # Wait for a random time.  Otherwise nodes that start together would all begin at the same
        # moment.
        first = random.uniform(1, self.FIRST)
        self._timer = self._clock.callLater(first, self._begin)

    def stop(self) -> None:
        """
        Do no further rounds.
        """
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _begin(self) -> None:
        self._timer = self._clock.callLater(self.INTERVAL, self._begin)
        Deferred.fromCoroutine(self.run()).addErrback(
            lambda failure: log.failure("cleaning up a database failed", failure)
        )

    async def run(self) -> None:
        """
        Do a round if one is due and no other node has done it.
        """
        try:
            await self._prepare()
            isDue = await self._database.run(self._isDue)
            self._doubt(isDue is None)
            if not isDue:
                return
            await self._expire()
            while await self._database.run(_removeUnused, mayRepeat=True):
                pass
            await self._database.run(_forgetNodes, mayRepeat=True)
        except (DatabaseUnavailable, POP3ResponseError):
            # The failure is already in the log.  The next round will continue the work.
            pass

    def _doubt(self, isDoubted: bool) -> None:
        if isDoubted and not self._isClockDoubted:
            log.error(
                "the last round in {database} is more than {days} days from now; its clock may be "
                "wrong, so no old messages are deleted; if it is right, execute: "
                "UPDATE lease SET epoch = 0 WHERE mailbox = {job}",
                database=self._database.name,
                days=_DOUBT // _DAY,
                job=_JOB,
            )
        self._isClockDoubted = isDoubted

    def _isDue(self, transaction: Transaction) -> bool | None:
        """
        @return: whether this node has to do a round; L{None} if the clock of the database may be
            wrong.
        """
        execute(
            transaction,
            "INSERT INTO lease (mailbox, node, epoch, token) VALUES (:job, '', 0, 0) "
            "ON CONFLICT (mailbox) DO NOTHING",
            job=_JOB,
        )
        time = now(transaction)
        row = one(transaction, f"SELECT epoch, {time} FROM lease WHERE mailbox = :job", job=_JOB)
        # Before the first round, the time in the row is 0.
        if self._expireDays and row is not None and row[0] and abs(row[1] - row[0]) > _DOUBT:
            return None
        return bool(
            execute(
                transaction,
                f"UPDATE lease SET epoch = {time} WHERE mailbox = :job "
                f"AND epoch < {time} - :interval",
                job=_JOB,
                # A round is due after nine tenths of the interval.  The clocks of the nodes run at
                # different speeds, so a node may ask a little before the interval is over.
                interval=int(self.INTERVAL * 900),
            )
        )

    async def _expire(self) -> None:
        if not self._expireDays:
            return
        count = 0
        # Skip mailboxes that a session has locked.  The next round handles them.
        skipped: set[int] = set()
        while True:
            mailbox = await self._database.run(self._nextWithOld, sorted(skipped)[:_BATCH])
            if mailbox is None or len(skipped) >= _BATCH:
                break
            deleted = await self._database.run(self._expireIn, mailbox, mayRepeat=True)
            count += deleted or 0
            if not deleted:
                skipped.add(mailbox)
        if count:
            log.info(
                "{count} messages older than {days} days were deleted",
                count=count,
                days=self._expireDays,
            )

    def _nextWithOld(self, transaction: Transaction, skipped: Sequence[int]) -> int | None:
        some = names(skipped or [_JOB])
        row = one(
            transaction,
            f"SELECT mailbox FROM message WHERE arrival < {now(transaction)} - :age "
            f"AND mailbox NOT IN ({some.sql}) LIMIT 1",
            age=self._expireDays * _DAY,
            **some.values,
        )
        return None if row is None else int(row[0])

    def _expireIn(self, transaction: Transaction, mailbox: int) -> int:
        """
        Delete old messages of a mailbox, unless a session has locked the mailbox.

        @return: the number of deleted messages.
        """
        if not self._node.isFree(transaction, mailbox):
            return 0
        rows = query(
            transaction,
            "SELECT uniqueid FROM message WHERE mailbox = :mailbox "
            f"AND arrival < {now(transaction)} - :age LIMIT {_BATCH}",
            mailbox=mailbox,
            age=self._expireDays * _DAY,
        )
        deleteIn(transaction, mailbox, [uniqueID for (uniqueID,) in rows])
        return len(rows)


def _removeUnused(transaction: Transaction) -> int:
    """
    Remove contents of deliveries that were never finished.

    @return: the number of removed contents.
    """
    rows = query(
        transaction,
        f"SELECT id FROM content WHERE uses < 1 AND made < {now(transaction)} - :age "
        f"LIMIT {_BATCH}",
        age=_DAY,
    )
    if rows:
        some = names([number for (number,) in rows])
        execute(transaction, f"DELETE FROM piece WHERE content IN ({some.sql})", **some.values)
        execute(transaction, f"DELETE FROM content WHERE id IN ({some.sql})", **some.values)
    return len(rows)


def _forgetNodes(transaction: Transaction) -> None:
    """
    Remove the rows of nodes that have been dead for a day.
    """
    execute(
        transaction,
        f"DELETE FROM node WHERE expires < {now(transaction)} - :age",
        age=_DAY,
    )
