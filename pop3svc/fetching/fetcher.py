"""
Fetch the new messages of one mailbox.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from tempfile import SpooledTemporaryFile
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred

from pop3svc.client.failures import CommandRefused, ServerUnavailable
from pop3svc.client.message import Message
from pop3svc.client.protocol import POP3Client, Reference
from pop3svc.fetching.record import Entry, FetchRecord, Listing
from pop3svc.fetching.targets import Arrived, Target, Unsure
from pop3svc.threadpool import Executor
from pop3svc.transfer.failures import NotPossible, TryAgain, Unreadable, reasonOf
from pop3svc.transfer.report import Report

__all__ = ["Fetcher", "Recorder"]

# The most messages that are requested before the first of them has arrived.  Whenever half of them
# have arrived, the same number of messages is requested in one packet.
_AHEAD = 32
# The most deletions that wait for their replies.
_DELETING = 1000
# The most octets of a message that are kept in memory.  A longer message goes to a temporary file.
_SPOOLED = 262_144

# The beginning of names that are made from headers, for servers without unique-ids.
_OF_HEADER = "top-"
_TWICE = (
    "message {number} may be stored twice, because an earlier attempt to store it was interrupted"
)


class _Wanted(NamedTuple):
    """
    A message to fetch.

    @ivar number: the message number in the present session.
    """

    number: int
    uniqueID: str
    octets: int


class Recorder:
    """
    Records the fetched messages of one account.  While one transaction is written, new entries wait
    for the next transaction.  Therefore L{finish} does not wait for the database.
    """

    def __init__(
        self, record: FetchRecord, account: int, executor: Executor, deletes: bool = False
    ) -> None:
        """
        @param deletes: whether the messages will be deleted on the server.  If so, the server may
            give their unique-ids to other messages afterwards.
        """
        self._deletes = deletes
        self._record = record
        self._account = account
        self._executor = executor
        self._stored: dict[str, set[bytes]] = {}
        self._begun: set[Entry] = set()
        self._waiting: list[Entry] = []
        self._isWriting = False
        self._settling: list[Deferred[None]] = []
        self._failure: Exception | None = None

    async def load(self) -> None:
        """
        Read the record of the account.
        """
        found = await self._executor.run(self._record.load, self._account)
        for entry, isStored in found.items():
            if isStored:
                self._stored.setdefault(entry.uniqueID, set()).add(entry.digest)
            else:
                self._begun.add(entry)

    def digestsOf(self, uniqueID: str) -> set[bytes]:
        """
        @return: the digests of the stored messages that have this unique-id.
        """
        return self._stored.get(uniqueID, set())

    def hasServersIDs(self) -> bool:
        """
        @return: whether a message was recorded under a unique-id of the server, and not under a
            name that is made from its header.
        """
        return any(not each.startswith(_OF_HEADER) for each in self._stored)

    def hasBegun(self, entry: Entry) -> bool:
        """
        @return: whether the storing of a message has begun, and its end was not recorded.
        """
        return entry in self._begun

    async def listed(self, uniqueIDs: Sequence[str]) -> Listing:
        """
        Record which messages the server lists.
        """
        listing = await self._executor.run(
            self._record.listed, self._account, uniqueIDs, time.time()
        )
        for entry in listing.forgotten:
            self._begun.discard(entry)
            digests = self._stored.get(entry.uniqueID, set())
            digests.discard(entry.digest)
            if not digests:
                self._stored.pop(entry.uniqueID, None)
        return listing

    async def tooLarge(self, uniqueID: str, most: int) -> None:
        """
        Record durably that a message was found to be too large.

        @param most: the present limit for the octets of a message.
        """
        await self._executor.run(self._record.tooLarge, self._account, uniqueID, most)

    async def begin(self, entry: Entry) -> None:
        """
        Record durably that a message is going to be stored.
        """
        await self._executor.run(self._record.begin, self._account, entry)
        self._begun.add(entry)

    async def abandon(self, entry: Entry) -> None:
        """
        Record that a message was not stored after all.
        """
        await self._executor.run(self._record.abandon, self._account, entry)
        self._begun.discard(entry)

    def finish(self, entry: Entry) -> None:
        """
        Record that a message is stored.  The transaction is written later; L{settle} waits for it.
        """
        self._begun.discard(entry)
        self._stored.setdefault(entry.uniqueID, set()).add(entry.digest)
        self._waiting.append(entry)
        self._startWriting()

    def _startWriting(self) -> None:
        if self._waiting and not self._isWriting:
            self._isWriting = True
            Deferred.fromCoroutine(self._write())

    async def _write(self) -> None:
        entries: list[Entry] = []
        try:
            while self._waiting and self._failure is None:
                entries, self._waiting = self._waiting, []
                missing = time.time() if self._deletes else None
                await self._executor.run(self._record.finish, self._account, entries, missing)
        except Exception as error:
            self._failure = error
            # Keep the entries for the next attempt, because their messages are stored.
            self._waiting = [*entries, *self._waiting]
        self._isWriting = False
        settling, self._settling = self._settling, []
        for each in settling:
            each.callback(None)

    async def settle(self) -> None:
        """
        Wait until all finished messages are recorded durably.

        @raise NotPossible: they cannot be recorded now.  A later call tries again.
        """
        if self._failure is None:
            # Write the entries that an earlier call could not write.
            self._startWriting()
        if self._isWriting:
            # The wait also covers entries that come meanwhile, because _write() goes on until no
            # entry waits.
            settled: Deferred[None] = Deferred()
            self._settling.append(settled)
            await settled
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure


class Fetcher:
    """
    Stores those messages of one account that were not stored before.

    @ivar isIncomplete: whether the last call of L{fetch} has left out messages that a later call
        may fetch.
    """

    def __init__(
        self,
        name: str,
        recorder: Recorder,
        target: Target,
        report: Report,
        executor: Executor,
        largest: int,
        deletes: bool = False,
        mustEnd: Callable[[], bool] = lambda: False,
    ) -> None:
        """
        @param name: the name of the account.  The names that messages get in the target depend on
            this name.
        @param executor: runs work in threads.
        @param largest: the most octets that a message may have.
        @param deletes: whether to delete messages on the server when they are stored.
        @param mustEnd: returns whether the operator wants to end the command.
        """
        self._name = name
        self._recorder = recorder
        self._target = target
        self._report = report
        self._executor = executor
        self._largest = largest
        self._deletes = deletes
        self._mustEnd = mustEnd
        self.isIncomplete = False

    async def fetch(self, client: POP3Client) -> int:
        """
        Fetch the new messages.

        @param client: a connection after the login, or after WAKE.  When this method returns, the
            messages that have to be deleted are marked for deletion, or already deleted.
        @return: the number of messages that were stored.
        @raise ClientError: the connection fails, or the server refuses a command.
        @raise TryAgain: a later attempt may succeed.
        @raise NotPossible: the messages cannot be fetched.
        """
        self.isIncomplete = True
        names = await self._names(client)
        listing = await self._recorder.listed(list(names.values()))
        counts = Counter(names.values())
        # Leave out messages that were found to be too large before, because the operator has
        # already been told about them.
        unwanted = {each for each, most in listing.large.items() if most >= self._largest}
        if not self._deletes:
            unwanted |= listing.certain
        # If messages are to be deleted, fetch all of them, and compare them with the record.  A
        # unique-id alone is not enough, because a server may give the unique-id of a deleted
        # message to another message (RFC 1939 section 7).
        wanted = [
            _Wanted(number, uniqueID, 0)
            for number, uniqueID in sorted(names.items())
            if uniqueID not in unwanted or counts[uniqueID] > 1
        ]
        session = _Session(client, names, counts)
        failures = self._report.failures
        stored = 0
        try:
            if wanted:
                stored = await self._fetchAll(session, wanted)
            await session.deleteKnown()
            await session.settle()
        finally:
            session.end()
        self.isIncomplete = self._report.failures > failures
        return stored

    async def _names(self, client: POP3Client) -> dict[int, str]:
        """
        @return: the unique-ids by message number.  If the server has no UIDL, names that are made
            from the headers take their place.
        """
        try:
            return await client.uniqueIDs()
        except CommandRefused as error:
            # Do not change from unique-ids to names from headers, because all messages would be
            # fetched again.
            if client.has("UIDL") or error.code is not None or self._recorder.hasServersIDs():
                raise ServerUnavailable("refuses UIDL now")
        try:
            sizes = await client.sizes()
            return {number: await _nameOf(client, number) for number in sizes}
        except CommandRefused:
            raise ServerUnavailable(
                "supports neither UIDL nor TOP, so new messages cannot be recognised"
            )

    async def _fetchAll(self, session: _Session, wanted: Sequence[_Wanted]) -> int:
        try:
            sizes = await session.client.sizes()
        except CommandRefused:
            sizes = {}
        rows = [each._replace(octets=sizes.get(each.number, 0)) for each in wanted]
        self._report.begin(len(rows))
        stored = 0
        rest = iter(rows)
        try:
            while True:
                if self._mustEnd():
                    raise TryAgain("the command was interrupted")
                coming = session.next(rest, self._isSmallEnough)
                if coming is None:
                    break
                stored += await self._fetchOne(session, *coming)
                self._report.advance()
        finally:
            self._report.end()
            await self._recorder.settle()
        return stored

    def _isSmallEnough(self, wanted: _Wanted) -> bool:
        if wanted.octets <= self._largest:
            return True
        self._tooLarge(wanted)
        self._report.advance()
        return False

    def _tooLarge(self, wanted: _Wanted) -> None:
        self._report.failed(
            wanted.number, f"it has more than {self._largest} octets (maxMessageSize)"
        )

    async def _fetchOne(
        self, session: _Session, wanted: _Wanted, coming: Deferred[Message]
    ) -> bool:
        """
        @return: whether the message was stored.
        """
        try:
            message = await coming
        except CommandRefused:
            self._report.failed(wanted.number, "the server does not send it", isTemporary=True)
            return False
        with SpooledTemporaryFile(_SPOOLED) as spool:
            try:
                digest = await self._receive(message, spool)
            finally:
                message.close()
            if digest is None:
                # Record the message now.  If the rest of the message is so long that the connection
                # ends, the next attempt can go on after this message.
                await self._recorder.tooLarge(wanted.uniqueID, self._largest)
                self._tooLarge(wanted)
                return False
            return await self._storeOne(session, wanted, digest, spool)

    async def _receive(self, message: Message, spool: Any) -> bytes | None:
        """
        @return: the digest of the message; L{None} if it is too large.
        @raise TryAgain: the temporary file cannot be written.
        """
        digest = hashlib.sha256()
        octets = 0
        async for piece in message:
            octets += len(piece)
            if octets > self._largest:
                return None
            digest.update(piece)
            if octets <= _SPOOLED:
                # This write does not block, because the file is still in memory.
                spool.write(piece)
                continue
            try:
                await self._executor.run(spool.write, piece)
            except OSError as error:
                raise TryAgain(f"a temporary file cannot be written: {reasonOf(error)}")
        return digest.digest()

    async def _storeOne(
        self, session: _Session, wanted: _Wanted, digest: bytes, spool: Any
    ) -> bool:
        recorder, entry = self._recorder, Entry(wanted.uniqueID, digest)
        if digest in recorder.digestsOf(wanted.uniqueID):
            recorder.finish(entry)
            if self._deletes:
                session.known.append(wanted.number)
            return False
        # The name depends on the digest, because another message may have the same unique-id.
        parts = [self._name, wanted.uniqueID, digest.hex()]
        name = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()
        mayBeStored = recorder.hasBegun(entry)
        if not self._target.recognises:
            await recorder.begin(entry)
            if mayBeStored and not self._target.canLook:
                self._report.note(_TWICE.format(number=wanted.number))
        try:
            await self._target.store(Arrived(name, spool, mayBeStored))
        except Unsure:
            raise
        except (Unreadable, TryAgain, NotPossible) as error:
            if not self._target.recognises:
                await recorder.abandon(entry)
            if not isinstance(error, Unreadable):
                raise
            self._report.failed(wanted.number, str(error))
            return False
        recorder.finish(entry)
        if not self._target.recognises:
            await recorder.settle()
        if self._deletes:
            await session.delete(wanted.number)
        return True


class _Session:
    """
    The messages of one session with the server.

    @ivar known: the numbers of the messages that were stored in an earlier session, and are still
        to be deleted.  Before they are deleted, the record stores durably that the server may give
        their unique-ids to other messages.
    """

    def __init__(self, client: POP3Client, names: dict[int, str], counts: Counter[str]) -> None:
        self.client = client
        self._names = names
        self._counts = counts
        self.known: list[int] = []
        self._hasUniqueIDs = client.has("UID-PARAM")
        self._coming: deque[tuple[_Wanted, Deferred[Message]]] = deque()
        self._deleting: deque[Deferred[Any]] = deque()

    def _reference(self, number: int) -> Reference:
        """
        @return: the unique-id of a message, if the server accepts it instead of a number, and
            otherwise the number.  With a unique-id, the client cannot delete another message by
            mistake.
        """
        uniqueID = self._names[number]
        if self._hasUniqueIDs and self._counts[uniqueID] == 1 and len(uniqueID) <= 70:
            return uniqueID
        return number

    def next(
        self, rest: Iterator[_Wanted], isWanted: Callable[[_Wanted], bool]
    ) -> tuple[_Wanted, Deferred[Message]] | None:
        """
        Request the next messages, so that some messages are always on their way.

        @return: the first of the messages that are on their way; L{None} if there are no more.
        """
        isAsking = False
        while len(self._coming) < _AHEAD and (isAsking or len(self._coming) <= _AHEAD // 2):
            isAsking = True
            wanted = next(rest, None)
            if wanted is None:
                break
            if isWanted(wanted):
                self._coming.append((wanted, self.client.retrieve(wanted.number, wanted.octets)))
        return self._coming.popleft() if self._coming else None

    def end(self) -> None:
        """
        Give up the messages that have not arrived, and the deletions without a reply.
        """
        if self._coming:
            self.client.abort("was disconnected")
        for each in [*(message for _, message in self._coming), *self._deleting]:
            each.addErrback(lambda _: None)

    async def delete(self, number: int) -> None:
        """
        Delete a message by DELI if the server has this command, and otherwise mark it for deletion
        at QUIT.  After DELI, a loss of the connection does not undo the deletion.
        """
        delete = self.client.deleteNow if self.client.has("DELI") else self.client.delete
        self._deleting.append(delete(self._reference(number)))
        while self._deleting and (self._deleting[0].called or len(self._deleting) > _DELETING):
            await self._settleOne()

    async def deleteKnown(self) -> None:
        """
        Delete the messages in L{known}.
        """
        for number in self.known:
            await self.delete(number)

    async def _settleOne(self) -> None:
        # Ignore a refusal, because the next attempt can delete the message.
        with suppress(CommandRefused):
            await self._deleting.popleft()

    async def settle(self) -> None:
        """
        Wait for all deletions.
        """
        while self._deleting:
            await self._settleOne()


async def _nameOf(client: POP3Client, number: int) -> str:
    """
    @return: a name that is made from the header of a message, for a server without unique-ids.
    """
    digest = hashlib.sha256()
    octets = 0
    header = await client.top(number)
    try:
        async for piece in header:
            octets += len(piece)
            if octets > _SPOOLED:
                raise ServerUnavailable("sends a header that is too long")
            digest.update(piece)
    finally:
        header.close()
    return f"{_OF_HEADER}{digest.hexdigest()}"
