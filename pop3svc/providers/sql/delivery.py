"""
Store new messages in the database.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import BinaryIO

from twisted.internet.defer import Deferred

from pop3svc.database import Database, DatabaseUnavailable, Transaction
from pop3svc.downgrading.converter import surrogateSize
from pop3svc.errors import DeliveryError, OverQuota, StoreUnavailable
from pop3svc.interfaces import DeliveryCopy
from pop3svc.lineendings import WireForm
from pop3svc.providers.sql.content import FormFinder, piecesOf
from pop3svc.providers.sql.statements import changeNumber, execute, now, one
from pop3svc.threadpool import Executor

__all__ = ["Delivery", "Quota", "mailboxOf"]


@dataclass(frozen=True)
class Quota:
    """
    The limits of each mailbox of a store.

    @ivar octets: the most octets of a mailbox; 0 if there is no limit.
    @ivar messages: the most messages of a mailbox; 0 if there is no limit.
    """

    octets: int = 0
    messages: int = 0


def mailboxOf(transaction: Transaction, name: str, makes: bool) -> tuple[int, int] | None:
    """
    @param makes: whether to create the mailbox if it does not exist.
    @return: the number of the mailbox and its change number; L{None} if the mailbox does not
        exist.
    """
    row = one(transaction, "SELECT id, changes FROM mailbox WHERE name = :name", name=name)
    if row is not None or not makes:
        return None if row is None else (int(row[0]), int(row[1]))
    number = secrets.randbits(63)
    made = execute(
        transaction,
        "INSERT INTO mailbox (id, name, nextposition, messages, octets, changes) "
        "VALUES (:id, :name, 1, 0, 0, 0) ON CONFLICT (name) DO NOTHING",
        id=number,
        name=name,
    )
    if made:
        execute(
            transaction,
            "INSERT INTO lease (mailbox, node, epoch, token) VALUES (:mailbox, '', 0, 0)",
            mailbox=number,
        )
        return number, 0
    # Read again, because another transaction has just created the mailbox.
    return mailboxOf(transaction, name, False)


class Delivery:
    """
    The delivery of one message to one or more users.  Each step has the same effect if it runs
    twice.  A step may run again because the answer to its COMMIT was lost.
    """

    def __init__(
        self,
        database: Database,
        executor: Executor,
        quota: Quota,
        copies: Sequence[DeliveryCopy],
        content: BinaryIO,
    ) -> None:
        """
        @param executor: reads and converts the message in threads.
        @param quota: the limits of each mailbox.
        """
        self._database = database
        self._executor = executor
        self._quota = quota
        self._copies = copies
        self._file = content
        self._number = secrets.randbits(63)
        self._uniqueIDs = [each.uniqueID or secrets.token_hex(16) for each in copies]
        self._now = time.time()
        # For each copy: the size of its surrogate; 0 if the copy needs no surrogate.
        self._surrogates = [0] * len(copies)

    async def run(self) -> list[DeliveryError | None]:
        """
        Store the message.

        @return: see L{IDelivery.deliver<pop3svc.interfaces.IDelivery.deliver>}.
        """
        pieces = piecesOf(self._file)
        found = FormFinder()
        number = 0
        try:
            piece = await self._read(pieces)
            while piece is not None:
                found.feed(piece)
                following = await self._read(pieces)
                if following is None and not number:
                    # One transaction is enough for a small message.  Most messages are small.
                    break
                await self._database.run(self._writePiece, number, piece, mayRepeat=True)
                number, piece = number + 1, following
            if not (found.isASCII and all(each.header.isascii() for each in self._copies)):
                self._surrogates = await self._executor.run(self._measured)
            last = [] if piece is None else [piece]
            return await self._database.run(self._store, found, number, last, mayRepeat=True)
        except DatabaseUnavailable:
            return [StoreUnavailable("Mailbox is not available now.") for _ in self._copies]

    def _measured(self) -> list[int]:
        """
        Read the message again, and compute the size of the surrogate of each copy.  Blocks.
        """
        file = self._file
        known: dict[bytes, int] = {}
        file.seek(0)
        isContinued = file.read(1) in (b" ", b"\t")
        ofContent = surrogateSize(piecesOf(file))
        for copy in self._copies:
            header = copy.header
            if header in known:
                continue
            if header.isascii() and not isContinued:
                known[header] = len(header) + ofContent if ofContent else 0
            else:
                # Convert the message together with the header fields of this copy.  These fields
                # are not ASCII, or the first line of the content continues the last of these
                # fields.
                known[header] = surrogateSize(chain([header], piecesOf(file)))
        return [known[each.header] for each in self._copies]

    def _read(self, pieces: Iterator[bytes]) -> Deferred[bytes | None]:
        return self._executor.run(next, pieces, None)

    def _writePiece(self, transaction: Transaction, number: int, piece: bytes) -> None:
        """
        Write a piece of a large message.  No mailbox uses the content until the message is stored.
        If the delivery fails, L{Housekeeping} removes the unused content after a day.
        """
        if not number:
            self._writeContent(transaction, 0, 0, WireForm.LINES, 0)
        self._insertPiece(transaction, number, piece)

    def _insertPiece(self, transaction: Transaction, number: int, piece: bytes) -> None:
        execute(
            transaction,
            "INSERT INTO piece (content, number, data) VALUES (:content, :number, :data) "
            "ON CONFLICT (content, number) DO NOTHING",
            content=self._number,
            number=number,
            data=piece,
        )

    def _writeContent(
        self, transaction: Transaction, octets: int, pieces: int, form: WireForm, uses: int
    ) -> None:
        execute(
            transaction,
            "INSERT INTO content (id, octets, pieces, form, uses, made) "
            f"VALUES (:id, :octets, :pieces, :form, :uses, {now(transaction)}) "
            "ON CONFLICT (id) DO UPDATE SET octets = :octets, pieces = :pieces, form = :form, "
            "uses = :uses",
            id=self._number,
            octets=octets,
            pieces=pieces,
            form=form.value,
            uses=uses,
        )

    def _store(
        self, transaction: Transaction, found: FormFinder, pieces: int, last: Sequence[bytes]
    ) -> list[DeliveryError | None]:
        """
        Add the message to the mailboxes.

        @param pieces: the number of pieces that were written already.
        @param last: the last piece; empty if it was written already.
        """
        results: list[DeliveryError | None] = [None] * len(self._copies)
        stored = 0
        # Lock the mailboxes in the same order in all transactions, because otherwise two
        # transactions could wait for each other.
        order = sorted(range(len(self._copies)), key=lambda each: self._copies[each].username)
        for index in order:
            results[index], isNew = self._add(transaction, index, found.octets)
            stored += isNew
        if stored:
            count = pieces + len(last)
            self._writeContent(transaction, found.octets, count, found.form, stored)
            for number, piece in enumerate(last, pieces):
                self._insertPiece(transaction, number, piece)
        return results

    def _add(
        self, transaction: Transaction, index: int, octets: int
    ) -> tuple[DeliveryError | None, bool]:
        """
        @return: the result of the delivery of a copy, and whether this call added the copy.
        """
        copy, uniqueID = self._copies[index], self._uniqueIDs[index]
        mailbox = mailboxOf(transaction, copy.username, makes=True)
        assert mailbox is not None
        number = mailbox[0]
        size = octets + len(copy.header)
        quota = self._quota
        row = one(
            transaction,
            "UPDATE mailbox SET nextposition = nextposition + 1, messages = messages + 1, "
            "octets = octets + :size, changes = :changes WHERE id = :id "
            "AND (messages < :messages OR :messages = 0) "
            "AND (octets + :size <= :octets OR :octets = 0) RETURNING nextposition - 1",
            size=size,
            changes=changeNumber(),
            id=number,
            messages=quota.messages,
            octets=quota.octets,
        )
        # Check now, because the row of the mailbox is locked.  No other transaction can add the
        # same unique-id.
        if self._isKnown(transaction, number, uniqueID, copy.uniqueID is not None):
            if row is not None:
                execute(
                    transaction,
                    "UPDATE mailbox SET messages = messages - 1, octets = octets - :size "
                    "WHERE id = :id",
                    size=size,
                    id=number,
                )
            return None, False
        if row is None:
            return OverQuota("The mailbox is full."), False
        arrival = self._now if copy.arrival is None else copy.arrival
        execute(
            transaction,
            "INSERT INTO message (mailbox, position, uniqueid, octets, surrogate, arrival, "
            "isforeign, header, content) VALUES (:mailbox, :position, :uniqueid, :octets, "
            ":surrogate, :arrival, :isforeign, :header, :content)",
            mailbox=number,
            position=row[0],
            uniqueid=uniqueID,
            octets=size,
            surrogate=self._surrogates[index],
            arrival=int(arrival * 1000),
            isforeign=int(copy.uniqueID is not None),
            header=copy.header,
            content=self._number,
        )
        return None, True

    def _isKnown(
        self, transaction: Transaction, mailbox: int, uniqueID: str, isForeign: bool
    ) -> bool:
        """
        @param isForeign: whether the unique-id comes from another server.
        @return: whether the mailbox has a message with this unique-id.  If C{isForeign} is true,
            a message that was deleted counts, too.
        """
        tables = ("message", "formerid") if isForeign else ("message",)
        return any(
            one(
                transaction,
                f"SELECT 1 FROM {table} WHERE mailbox = :mailbox AND uniqueid = :uniqueid",
                mailbox=mailbox,
                uniqueid=uniqueID,
            )
            for table in tables
        )
