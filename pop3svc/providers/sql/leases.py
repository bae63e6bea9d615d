"""
Leases of mailboxes.  A session that has the lease of a mailbox has the mailbox for itself, on all
nodes that use the database.

A node is a process of the service.  Each node has a row in the table "node".  The row contains the
time when it expires, and the node renews the row at regular intervals.  One renewal is enough for
all sessions of the node.  The lease of a mailbox is a row as well.  This row contains the name
of the node that holds the lease, and a token.  The token grows each time a session takes the lease.
If a session deletes messages, the transaction locks the row of the lease, and checks the node and
the token.  A node may be disconnected from the database while another node takes the mailbox.
Because of the check, the first node then deletes nothing from the mailbox.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from pop3svc.bounded import BoundedDict
from pop3svc.database import Database, DatabaseUnavailable, Transaction
from pop3svc.errors import POP3ResponseError
from pop3svc.providers.sql.statements import execute, forUpdate, now, one, query

__all__ = ["Lease", "LeaseHeld", "Node"]

log = Logger(namespace="pop3svc")

# The most leases in one statement.  Databases limit the number of parameters of a statement.
_CHUNK = 500


class LeaseHeld:
    """
    The result of an attempt to take a lease that another session holds.
    """

    def __init__(self, mailbox: int) -> None:
        """
        @param mailbox: the number of the mailbox.
        """
        self.mailbox = mailbox


@dataclass
class Lease:
    """
    The lease of a mailbox that a session of this process holds.

    @ivar mailbox: the number of the mailbox.
    @ivar token: the token of the lease, a number that grows each time a session takes the lease.
    @ivar changes: the change number of the mailbox at the time when the lease was taken.
    @ivar requestRelease: asks the session to release the mailbox; L{None} until the session is
        registered (L{Node.hold}).
    @ivar isLost: whether another node has taken the lease.
    """

    mailbox: int
    epoch: int
    token: int
    changes: int
    requestRelease: Callable[[], bool] | None = None
    isLost: bool = False

    def check(self) -> None:
        """
        @raise POP3ResponseError: the lease is lost, so the session must end.
        """
        if self.isLost:
            raise POP3ResponseError(
                "Mailbox was taken by another session.", "IN-USE", critical=True
            )


class Node:
    """
    This process as one of the nodes that use the database.

    @ivar name: the name of the node.  No other process has or had the same name.
    """

    # Seconds between two checks.  In a check the node finds out which of its leases other nodes
    # want.
    INTERVAL = 0.5
    # The most mailboxes whose latest token is remembered for L{hold}.
    LATEST = 10_000

    def __init__(self, database: Database, renewals: Database, duration: float, clock: Any) -> None:
        """
        @param renewals: another L{Database} object for the same database.  It has its own thread,
            so that other work does not delay the renewal of the node's row.
        @param duration: seconds after which the row of a node expires.  Other nodes may then take
            the leases of the node.
        """
        host = socket.gethostname()[:32]
        self.name = f"{host}.{os.getpid()}.{secrets.token_hex(8)}"
        self._database = database
        self._renewals = renewals
        self._duration = int(duration * 1000)
        self._clock = clock
        # The keys of these dictionaries are the numbers of mailboxes.  _held has the lease of the
        # registered session, and _latest the token of the lease that a thread has taken last.
        # _unreleased has a lease that was not released because the database was unavailable.
        self._held: dict[int, Lease] = {}
        self._latest: BoundedDict[int, int] = BoundedDict(self.LATEST)
        self._unreleased: dict[int, Lease] = {}
        self._guard = Lock()
        self._timer: IDelayedCall | None = None
        self._beat: Deferred[Any] | None = None
        self._renewed = -1e9
        self._isStopped = False

    # --- in a thread -----------------------------------------------------------------

    def ensure(self, transaction: Transaction) -> int:
        """
        Renew the row of this node, or make a new row.

        @return: the time when the row was made, which is called the epoch of the node.
        """
        time = now(transaction)
        renewed = one(
            transaction,
            f"UPDATE node SET expires = {time} + :duration WHERE name = :name RETURNING epoch",
            duration=self._duration,
            name=self.name,
        )
        if renewed is None:
            # Either this is the first call, or another node has removed the row because it had
            # expired long ago.
            execute(
                transaction,
                "INSERT INTO node (name, epoch, expires) "
                f"VALUES (:name, {time}, {time} + :duration) ON CONFLICT (name) DO NOTHING",
                duration=self._duration,
                name=self.name,
            )
            return self.ensure(transaction)
        return int(renewed[0])

    def take(
        self, transaction: Transaction, mailbox: int, changes: int, wants: bool
    ) -> Lease | LeaseHeld:
        """
        Take the lease of a mailbox if it is free.

        @param changes: the change number of the mailbox.
        @param wants: whether to ask the node that holds the lease to release the lease.
        """
        lock = forUpdate(transaction)
        row = one(
            transaction,
            f"SELECT node, epoch, token FROM lease WHERE mailbox = :mailbox {lock}",
            mailbox=mailbox,
        )
        assert row is not None, "a lease is made with its mailbox"
        holder, epoch, token = row
        own = self._epochOf(transaction, self.name)
        if own is None:
            own = self.ensure(transaction)
        if holder == self.name:
            # This node has the lease.  If no session is registered with this token, the session
            # that took the lease has ended without a release, or is not registered yet.  In the
            # second case, L{hold} will not register it, because this call takes the lease.
            if not self._outdate(mailbox, token):
                return LeaseHeld(mailbox)
        elif holder and self._epochOf(transaction, holder) == epoch:
            if wants:
                execute(
                    transaction,
                    "UPDATE lease SET wantedby = :name WHERE mailbox = :mailbox "
                    "AND wantedby IS NULL",
                    name=self.name,
                    mailbox=mailbox,
                )
            return LeaseHeld(mailbox)
        execute(
            transaction,
            "UPDATE lease SET node = :name, epoch = :epoch, token = :token, wantedby = NULL "
            "WHERE mailbox = :mailbox",
            name=self.name,
            epoch=own,
            token=token + 1,
            mailbox=mailbox,
        )
        with self._guard:
            self._latest.put(mailbox, token + 1)
        return Lease(mailbox, own, token + 1, changes)

    def _outdate(self, mailbox: int, token: int) -> bool:
        """
        Make sure that no session of this process is registered with a token later.

        @return: L{False} if a session is registered with this token.
        """
        # Check and change at once.  Otherwise L{hold} could register the session in between.
        with self._guard:
            held = self._held.get(mailbox)
            if held is not None and held.token == token:
                return False
            self._latest.put(mailbox, max(token + 1, self._latest.get(mailbox, 0)))
            return True

    @staticmethod
    def _epochOf(transaction: Transaction, name: str) -> int | None:
        """
        @return: the epoch of a node; L{None} if the row of the node has expired or does not exist.
        """
        row = one(
            transaction,
            f"SELECT epoch FROM node WHERE name = :name AND expires > {now(transaction)}",
            name=name,
        )
        return None if row is None else int(row[0])

    def isFree(self, transaction: Transaction, mailbox: int) -> bool:
        """
        Lock the row of a mailbox's lease.

        @return: whether the lease is free.
        """
        row = one(
            transaction,
            f"SELECT node, epoch FROM lease WHERE mailbox = :mailbox {forUpdate(transaction)}",
            mailbox=mailbox,
        )
        if row is None or not row[0]:
            return row is not None
        isAlive: bool = self._epochOf(transaction, row[0]) == row[1]
        return not isAlive

    def fence(self, transaction: Transaction, lease: Lease) -> None:
        """
        Lock the row of a lease before the mailbox is changed.  Check that the row still contains
        the token of the lease.  If the row contains the token, no other node has taken the lease,
        even if the row of this node has expired.

        @raise POP3ResponseError: another node has taken the lease.
        """
        holds = execute(
            transaction,
            "UPDATE lease SET token = token WHERE mailbox = :mailbox AND node = :name "
            "AND epoch = :epoch AND token = :token",
            mailbox=lease.mailbox,
            name=self.name,
            epoch=lease.epoch,
            token=lease.token,
        )
        if not holds:
            lease.isLost = True
            lease.check()

    def _release(self, transaction: Transaction, leases: Sequence[Lease]) -> None:
        for lease in leases:
            execute(
                transaction,
                "UPDATE lease SET node = '', wantedby = NULL WHERE mailbox = :mailbox "
                "AND node = :name AND epoch = :epoch AND token = :token",
                mailbox=lease.mailbox,
                name=self.name,
                epoch=lease.epoch,
                token=lease.token,
            )

    def _look(
        self, transaction: Transaction, isDue: bool, unreleased: Sequence[Lease]
    ) -> tuple[list[Lease], dict[int, int] | None]:
        """
        @param isDue: whether the row of the node has to be renewed.
        @return: two values.  The first value contains the leases that other nodes want.  The
            second value contains the token of each lease that the node holds; L{None} if the row
            was not renewed.
        """
        tokens = None
        if isDue:
            self.ensure(transaction)
            rows = query(
                transaction, "SELECT mailbox, token FROM lease WHERE node = :name", name=self.name
            )
            tokens = dict(rows)
        self._release(transaction, unreleased)
        wanted = query(
            transaction,
            "SELECT mailbox, epoch, token FROM lease WHERE node = :name AND wantedby IS NOT NULL",
            name=self.name,
        )
        if wanted:
            # Clear the requests, so that no session releases its mailbox because of a node that has
            # stopped waiting.  A node that still waits will ask again.
            execute(
                transaction,
                "UPDATE lease SET wantedby = NULL WHERE node = :name AND wantedby IS NOT NULL",
                name=self.name,
            )
        leases = [Lease(mailbox, epoch, token, -1) for mailbox, epoch, token in wanted]
        return leases, tokens

    # --- in the reactor's thread ---------------------------------------------------------

    def hold(self, lease: Lease, requestRelease: Callable[[], bool]) -> bool:
        """
        Register the session that has taken a lease.

        @return: L{False} if another session of this process has taken the lease meanwhile, so that
            the session was not registered.
        """
        with self._guard:
            if self._latest.get(lease.mailbox, 0) > lease.token:
                return False
            lease.requestRelease = requestRelease
            self._held[lease.mailbox] = lease
        self._later()
        return True

    def ask(self, mailbox: int) -> bool | None:
        """
        Ask the session of this process that holds a mailbox to release the mailbox.

        @return: whether the session releases the mailbox; L{None} if the mailbox is not held by a
            session of this process.
        """
        lease = self._held.get(mailbox)
        if lease is None or lease.requestRelease is None:
            return None
        return lease.requestRelease()

    async def release(self, lease: Lease) -> None:
        """
        Release a lease.  If the database is unavailable, try again until the lease is released.
        """
        if self._held.get(lease.mailbox) is lease:
            del self._held[lease.mailbox]
        if lease.isLost:
            return
        try:
            await self._database.run(self._release, [lease], mayRepeat=True)
        except DatabaseUnavailable:
            # Try again later.  Until the release no other node can take the lease, because this
            # node goes on renewing its row.
            self._unreleased[lease.mailbox] = lease
            self._later()

    def _later(self) -> None:
        isIdle = self._timer is None and self._beat is None and not self._isStopped
        if isIdle and (self._held or self._unreleased):
            self._timer = self._clock.callLater(self.INTERVAL, self._begin)

    def _begin(self) -> None:
        self._timer = None
        isDue = self._clock.seconds() >= self._renewed + self._duration / 4000
        unreleased = [
            each for mailbox, each in self._unreleased.items() if mailbox not in self._held
        ][:_CHUNK]
        beat = self._renewals.run(self._look, isDue, unreleased, mayRepeat=True)
        self._beat = beat
        beat.addCallbacks(
            self._looked,
            self._failed,
            callbackArgs=(isDue, dict(self._held), unreleased),
        )
        beat.addErrback(lambda failure: log.failure("cannot renew the node", failure))
        beat.addBoth(self._ended)

    def _looked(
        self,
        result: tuple[list[Lease], dict[int, int] | None],
        isDue: bool,
        before: dict[int, Lease],
        unreleased: Sequence[Lease],
    ) -> None:
        wanted, tokens = result
        for lease in unreleased:
            if self._unreleased.get(lease.mailbox) is lease:
                del self._unreleased[lease.mailbox]
        if isDue:
            self._renewed = self._clock.seconds()
        for mailbox, lease in before.items() if tokens is not None else ():
            isHeld = self._held.get(mailbox) is lease
            if isHeld and tokens is not None and tokens.get(mailbox) != lease.token:
                log.warn("the lease of mailbox number {mailbox} is lost", mailbox=mailbox)
                lease.isLost = True
                self.ask(mailbox)
        for lease in wanted:
            # If the answer to the COMMIT of a login was lost, this node may have a lease of which
            # no session knows.
            if self.ask(lease.mailbox) is None and self._outdate(lease.mailbox, lease.token):
                self._unreleased[lease.mailbox] = lease

    def _failed(self, failure: Any) -> None:
        # If the database is unavailable, the class Database has already logged the failure.
        if failure.check(DatabaseUnavailable) is None:
            log.failure("cannot renew the node", failure)

    def _ended(self, _: Any) -> None:
        self._beat = None
        self._later()

    async def stop(self) -> None:
        """
        Release the leases of the node, and remove the row of the node.
        """
        self._isStopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        leases = [*self._held.values(), *self._unreleased.values()]

        def leave(transaction: Transaction) -> None:
            self._release(transaction, leases)
            execute(transaction, "DELETE FROM node WHERE name = :name", name=self.name)

        try:
            await self._database.run(leave, mayRepeat=True)
        except DatabaseUnavailable:
            # Do nothing, because the leases end when the row of the node expires.
            pass
