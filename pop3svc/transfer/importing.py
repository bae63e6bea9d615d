"""
Import messages to a mailbox.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import Any, NamedTuple

from twisted.logger import Logger

from pop3svc.awaiting import CallTimeout, callWithTimeout
from pop3svc.delivery.recipients import Recipient
from pop3svc.errors import DeliveryError, POP3ResponseError
from pop3svc.interfaces import DeliveryCopy
from pop3svc.listings import isUniqueID
from pop3svc.providers.paths import uniqueIDFor
from pop3svc.threadpool import Executor
from pop3svc.transfer.failures import NotPossible, TryAgain, Unreadable, reasonOf
from pop3svc.transfer.fingerprints import Fingerprint
from pop3svc.transfer.report import Report, messages
from pop3svc.transfer.session import MailboxSession
from pop3svc.transfer.source import Source, SourceMessage, fitArrivals

__all__ = ["SPOOLED", "Import"]

log = Logger(namespace="pop3svc")

# The most octets of a message that are kept in memory.
SPOOLED = 262_144
_MICROSECONDS = 1_000_000


class _Planned(NamedTuple):
    """
    A message that is to be imported.

    @ivar arrival: the time of arrival to store, in seconds since the epoch.
    """

    arrival: float
    source: Source
    message: SourceMessage


class _Stored(NamedTuple):
    """
    A message that the store has confirmed to have stored.

    @ivar number: the number of the message in the import.  The first message has the number 1.
    @ivar octets: the size of the message as RETR sends it.
    @ivar digest: the digest of the message, as L{Fingerprint} computes it.
    """

    number: int
    octets: int
    digest: str


@dataclass(frozen=True)
class Import:
    """
    Stores messages in a user's mailbox.  An import can be repeated, because it does not store
    messages that the mailbox has now or had before.

    @ivar recipient: the user and the user's store.
    @ivar sources: the sources of the messages.
    @ivar executor: runs work in threads.
    @ivar timeout: the seconds that one call of the store may take.
    @ivar largest: the most octets that a message may have.
    @ivar mustEnd: returns whether the operator wants to end the import.
    """

    recipient: Recipient
    sources: Sequence[Source]
    executor: Executor
    clock: Any
    timeout: float
    largest: int
    report: Report
    mustEnd: Callable[[], bool] = lambda: False

    async def run(self) -> int:
        """
        Import the messages, and check the mailbox by reading it.

        @return: the exit status of the command.
        @raise NotPossible: the import cannot be done.
        @raise TryAgain: a later attempt may succeed.
        """
        # Make the session for the check first.  If the store opens no mailbox without a password,
        # the import then fails before the first message is stored.
        username, store = self.recipient
        session = MailboxSession(store, username, self.clock, self.timeout)
        try:
            planned = await self.executor.run(self._plan)
            stored = await self._store(planned)
            hasMore = await self.executor.run(self._hasMore)
        finally:
            for each in self.sources:
                each.close()
        try:
            await session.open()
            there = await _Comparison(session, stored, self.report).run()
        finally:
            await session.close()
        text = f"the mailbox of {username} has {there} of {messages(len(planned))}"
        if there == len(stored):
            text += f", with {sum(each.octets for each in stored.values())} octets as sent"
        self.report.conclude(text)
        if hasMore:
            raise TryAgain("the source has changed meanwhile")
        return self.report.exitStatus

    # --- in a thread ------------------------------------------------------------------

    def _plan(self) -> list[_Planned]:
        """
        Merge the messages of all sources into one sequence.  The messages of each source keep their
        order.
        """
        planned: list[_Planned] = []
        for source in self.sources:
            try:
                messages = source.messages()
            except OSError as error:
                raise NotPossible(f"{source.path} cannot be read: {reasonOf(error)}")
            arrivals = fitArrivals([each.arrival for each in messages])
            planned += [
                _Planned(arrival, source, message)
                for arrival, message in zip(arrivals, messages, strict=True)
            ]
        planned.sort(key=lambda each: each.arrival)
        return planned

    def _hasMore(self) -> bool:
        try:
            return any(each.hasMore() for each in self.sources)
        except OSError:
            return True

    def _read(self, planned: _Planned, spool: Any) -> Fingerprint:
        """
        Copy a message to a temporary file.

        @raise Unreadable: the message cannot be read, or is too large.
        @raise TryAgain: the temporary file cannot be written.
        """
        found = Fingerprint()
        size = 0
        pieces = planned.source.pieces(planned.message)
        while True:
            try:
                piece = next(pieces, None)
            except OSError as error:
                raise Unreadable(reasonOf(error))
            if piece is None:
                return found
            size += len(piece)
            if size > self.largest:
                raise Unreadable(f"it has more than {self.largest} octets (maxMessageSize)")
            found.feed(piece)
            try:
                spool.write(piece)
            except OSError as error:
                raise TryAgain(f"a temporary file cannot be written: {reasonOf(error)}")

    # --- storing ----------------------------------------------------------------------

    async def _store(self, planned: Sequence[_Planned]) -> dict[str, _Stored]:
        """
        @return: the messages that are stored durably, by unique-id.
        """
        stored: dict[str, _Stored] = {}
        names = _Names()
        last = -1
        self.report.begin(len(planned))
        for number, each in enumerate(planned, 1):
            if self.mustEnd():
                raise TryAgain("the import was interrupted")
            # Make each time later than the previous one, because messages that arrived at the same
            # time must keep their order.
            at = int(each.arrival * _MICROSECONDS)
            last = max(at, last + 1)
            try:
                with SpooledTemporaryFile(SPOOLED) as spool:
                    found = await self.executor.run(self._read, each, spool)
                    digest = found.digest()
                    uniqueID = names.nameFor(each.message.uniqueID, digest)
                    await self._deliver(
                        DeliveryCopy(
                            self.recipient.username,
                            uniqueID=uniqueID,
                            arrival=each.arrival,
                            order=last - at,
                        ),
                        spool,
                    )
                stored[uniqueID] = _Stored(number, found.octets(), digest)
            except Unreadable as error:
                self.report.failed(number, str(error), error.isTemporary)
            except DeliveryError as error:
                if error.isTemporary:
                    raise TryAgain(f"message {number} cannot be stored now: {error.text}")
                if type(error) is DeliveryError:
                    # End the import, because all further messages would cause the same error.
                    raise NotPossible(error.text.rstrip("."))
                self.report.failed(number, error.text.rstrip("."))
            self.report.advance()
        return stored

    async def _deliver(self, copy: DeliveryCopy, spool: Any) -> None:
        """
        @raise DeliveryError: the message was not stored.
        @raise TryAgain: the store did not answer, or is not available.
        """
        try:
            [error] = await callWithTimeout(
                *(self.recipient.store.deliver, [copy], spool),
                clock=self.clock,
                timeout=self.timeout,
            )
        except CallTimeout:
            raise TryAgain("the store did not answer in time")
        except POP3ResponseError as refusal:
            raise TryAgain(f"the store is not available now: {refusal.text}")
        if error is not None:
            raise error


class _Names:
    """
    Gives each message of one import a unique-id.  If the import is repeated, each message gets the
    same unique-id again.
    """

    def __init__(self) -> None:
        self._digests: dict[str, str] = {}
        self._equal: dict[str, int] = {}

    def nameFor(self, kept: str | None, digest: str) -> str:
        """
        @param kept: the unique-id that the message should keep; L{None} if there is none.
        @param digest: the digest of the message, as L{Fingerprint} computes it.
        """
        if kept is None:
            number = self._equal[digest] = self._equal.get(digest, 0) + 1
            return digest if number == 1 else f"{digest}.{number}"
        if not isUniqueID(kept) or self._digests.setdefault(kept, digest) != digest:
            # Make another unique-id, because a different message of this import has the same one,
            # or because the text is no unique-id.
            return uniqueIDFor(kept, digest)
        return kept


class _Comparison:
    """
    Compares a mailbox with the messages that the import has stored in it.
    """

    def __init__(self, session: MailboxSession, stored: dict[str, _Stored], report: Report) -> None:
        self._session = session
        self._stored = stored
        self._report = report

    async def run(self) -> int:
        """
        @return: the number of stored messages that are in the mailbox.
        """
        listed = self._session.uniqueIDs
        places = {uniqueID: place for place, uniqueID in enumerate(listed)}
        found: dict[str, int] = {}
        missing: dict[str, _Stored] = {}
        own = [each for each in listed if each in self._stored]
        sizes = await self._session.sizes(own)
        for uniqueID, each in self._stored.items():
            if sizes.get(uniqueID) is None:
                missing[uniqueID] = each
            elif await self._isEqual(uniqueID, each):
                found[uniqueID] = places[uniqueID]
            else:
                self._report.failed(
                    each.number, "the mailbox has another message with its unique-id"
                )
        for uniqueID, place in (await self._findByContent(missing, places)).items():
            found[uniqueID] = place
            del missing[uniqueID]
        for each in missing.values():
            self._report.failed(each.number, "the mailbox had it before, and it was deleted")
        order = [found[each] for each in self._stored if each in found]
        if order != sorted(order):
            self._report.note("the store lists the messages in another order")
        return len(found)

    async def _isEqual(self, uniqueID: str, stored: _Stored) -> bool:
        # Compare the digests.  The sizes differ if an mbox has added fields or quoted lines, and
        # another message with the same unique-id may have the same size.
        try:
            return (await self._session.fingerprint(uniqueID)).digest() == stored.digest
        except Unreadable:
            return False

    async def _findByContent(
        self, missing: dict[str, _Stored], places: dict[str, int]
    ) -> dict[str, int]:
        """
        Find stored messages by their content, for a store that lists them with other unique-ids.

        @param missing: the stored messages that the mailbox does not list, by the unique-ids that
            they should have.
        @return: for each message that was found, its place in the mailbox's list, by its unique-id
            in C{missing}.
        """
        if not missing:
            return {}
        wanted: dict[str, list[str]] = {}
        for uniqueID, each in missing.items():
            wanted.setdefault(each.digest, []).append(uniqueID)
        octets = {each.octets for each in missing.values()}
        others = [each for each in places if each not in self._stored]
        found: dict[str, int] = {}
        for other, size in (await self._session.sizes(others)).items():
            if size not in octets:
                continue
            try:
                digest = (await self._session.fingerprint(other)).digest()
            except Unreadable:
                continue
            if wanted.get(digest):
                found[wanted[digest].pop(0)] = places[other]
        return found
