"""
The use of a mailbox by one session, from login to logout.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from pop3svc.awaiting import (
    CallTimeout,
    Shielded,
    ValueOrDeferred,
    inTurn,
    isAwaitable,
    settled,
    startNow,
    then,
)
from pop3svc.errors import BadArguments, POP3ResponseError, ProviderMistake
from pop3svc.interfaces import (
    IExclusiveMailbox,
    IMailboxLogout,
    INewMailNotifier,
    IPOP3ConnectionInfo,
    IReadOnlyMailbox,
    ISleepingMailbox,
)
from pop3svc.listings import BadListing, UniqueIDList, isUniqueID
from pop3svc.protocol.content import MessageBody
from pop3svc.protocol.grammar import MessageNumber, Reference
from pop3svc.protocol.maildrop import Maildrop, MessageRef
from pop3svc.protocol.messages import Messages
from pop3svc.protocol.providercalls import ProviderCalls
from pop3svc.protocol.record import SessionRecord
from pop3svc.protocol.remarks import nameOf
from pop3svc.protocol.replies import Body, Lines, Pieces

__all__ = ["Transaction"]

log = Logger(namespace="pop3svc")


class Transaction:
    """
    The mailbox of a session between login and logout, with its lock, its watch and its listing.  A
    session that is asleep has no lock and no listing.  The class is a little long, because each
    command that uses the mailbox has a method here.

    @ivar mailbox: an L{pop3svc.interfaces.IPOP3Mailbox}.
    @ivar maildrop: the listing; L{None} while the session is asleep.
    @ivar deletion: the deletion that is running; L{None} if there is none.
    """

    __slots__ = (
        "_calls",
        "_changes",
        "_changesListed",
        "_endWatch",
        "_known",
        "_locked",
        "_messages",
        "_record",
        "_requestRelease",
        "_takesUniqueIDs",
        "_unlocking",
        "_user",
        "deletion",
        "info",
        "mailbox",
        "maildrop",
    )

    def __init__(
        self,
        calls: ProviderCalls,
        info: IPOP3ConnectionInfo,
        mailbox: Any,
        user: str,
        record: SessionRecord,
        requestRelease: Callable[[], bool],
        takesUniqueIDs: bool,
        utf8Headers: str = "",
    ) -> None:
        """
        @param user: the name of the user, for the log.
        @param record: counts deleted messages.
        @param requestRelease: see L{IExclusiveMailbox.lock}.
        @param takesUniqueIDs: see docs/extensions, UID-PARAM.
        @param utf8Headers: see L{Messages}.
        """
        self._calls = calls
        self.info = info
        self.mailbox = mailbox
        self._user = user
        self._messages = Messages(calls, info, mailbox, user, utf8Headers)
        self._record = record
        self._requestRelease = requestRelease
        self._takesUniqueIDs = takesUniqueIDs
        self.maildrop: Maildrop | None = None
        self.deletion: Shielded | None = None
        self._locked = False
        self._unlocking: Shielded | None = None
        self._endWatch: Callable[[], object] | None = None
        # The number of calls of L{_changed} so far, and this number at the time of the last
        # listing.
        self._changes = self._changesListed = 0
        # The hashes of the unique-ids that were listed before SLEE, eight octets each.
        self._known: array[int] | None = None

    # --- beginning ----------------------------------------------------------

    def begin(self) -> ValueOrDeferred[None]:
        """
        Watch the mailbox for changes, lock it and list it.

        @raise POP3ResponseError: the mailbox is not available.  The caller has to call L{end} even
            in this case, because it releases the watch and the lock.
        """
        return inTurn(self._beginning())

    def _beginning(self) -> Iterator[ValueOrDeferred[object]]:
        if INewMailNotifier.providedBy(self.mailbox):
            watch = self._calls.finish(self.mailbox.watchMailbox, self.info, self._changed)
            yield then(watch, self._setWatch)
        yield self._lock()
        yield then(self._list(), self._setMaildrop)

    def _setWatch(self, endWatch: Callable[[], object] | None) -> None:
        if self._calls.isOver:
            # End the watch, because the mailbox has returned although the call was cancelled.
            if endWatch is not None:
                self._calls.release(endWatch)
            raise CancelledError()
        self._endWatch = endWatch

    def _setMaildrop(self, maildrop: Maildrop) -> None:
        self.maildrop = maildrop

    def _changed(self) -> None:
        self._changes += 1

    def _lock(self) -> ValueOrDeferred[None]:
        mailbox = self.mailbox
        if not IExclusiveMailbox.providedBy(mailbox):
            return None
        return then(
            self._calls.finish(mailbox.lock, self.info, self._requestRelease), self._setLocked
        )

    def _setLocked(self, _: object) -> ValueOrDeferred[None]:
        if self._calls.isOver:
            return startNow(self._unlockForNobody())
        self._locked = True
        return None

    async def _unlockForNobody(self) -> None:
        self._unlocking = Shielded(self._calls.release, self.mailbox.unlock, self.info)
        await settled(self._unlocking.outcome())
        raise CancelledError()

    def _list(self) -> ValueOrDeferred[Maildrop]:
        self._changesListed = self._changes
        return then(self._calls.ask(self.mailbox.listMessageUniqueIDs, self.info), self._listed)

    def _listed(self, listed: Iterable[str]) -> Maildrop:
        call = self.mailbox.listMessageUniqueIDs
        if isinstance(listed, str | bytes) or not isinstance(listed, Iterable):
            raise ProviderMistake(
                f"{nameOf(call)} returned {type(listed).__name__}: return a list of the "
                "unique-ids, each a str"
            )
        try:
            return Maildrop(listed if isinstance(listed, UniqueIDList) else UniqueIDList(listed))
        except BadListing as error:
            log.error(
                "{call} breaks a rule in the listing of {user}: {rule}",
                call=nameOf(call),
                user=self._user,
                rule=str(error),
                connectionID=self.info.connectionID,
            )
            raise POP3ResponseError("Mailbox cannot be listed.", "SYS/PERM")

    # --- the listing --------------------------------------------------------

    def _drop(self) -> Maildrop:
        assert self.maildrop is not None, "this command needs another state"
        return self.maildrop

    def count(self) -> int:
        """
        @return: the number of messages that are not deleted.
        """
        return self._drop().count()

    def uniqueIDs(self) -> Body:
        """
        @return: the number and the unique-id of each message that is not deleted.
        """
        maildrop = self._drop()
        if maildrop.isWhole:
            return Pieces(maildrop.listed.lines())
        return Lines(f"{each.number} {each.uniqueID}" for each in maildrop.present())

    def find(self, reference: Reference) -> ValueOrDeferred[MessageRef]:
        """
        @return: the message that C{reference} names.  If the message arrived after the listing, its
            number is 0 (docs/extensions, UID-PARAM).
        @raise POP3ResponseError: the message does not exist, or is deleted.
        """
        maildrop = self._drop()
        if isinstance(reference, MessageNumber):
            return maildrop.byNumber(reference.number)
        missing = POP3ResponseError("No such message.", "UID/NOT-FOUND")
        if not self._takesUniqueIDs:
            raise BadArguments("Argument is not a number.")
        uniqueID = reference.text
        if not isUniqueID(uniqueID):
            raise missing
        found = maildrop.byUniqueID(uniqueID)
        if found is not None:
            return found

        def arrived(isThere: bool) -> MessageRef:
            if not isThere:
                raise missing
            return MessageRef(0, uniqueID)

        return then(self._calls.ask(self.mailbox.messageExists, self.info, uniqueID), arrived)

    def size(self, found: MessageRef) -> ValueOrDeferred[int]:
        """
        @return: the number of octets that RETR sends for a message, without dot-stuffing.
        """
        return self._messages.sizeIn(self._drop(), found)

    def sizes(self) -> ValueOrDeferred[Body]:
        """
        @return: the number and the size in octets of each message that is not deleted.
        """
        return self._messages.sizesIn(self._drop())

    def total(self) -> ValueOrDeferred[tuple[int, int]]:
        """
        @return: the number and the octets of the messages that are not deleted (RFC 1939, STAT).
        """
        return self._messages.totalIn(self._drop())

    def open(self, found: MessageRef) -> ValueOrDeferred[MessageBody]:
        """
        @return: the content of a message.  The caller closes it.
        """

        def opened(body: MessageBody) -> MessageBody:
            body.expects(self._drop().size(found), self._messages.warnOfOtherSize)
            return body

        return then(self._messages.open(found.uniqueID), opened)

    # --- deleting -----------------------------------------------------------

    @property
    def isReadOnly(self) -> bool:
        """
        Whether the messages of this mailbox cannot be deleted.
        """
        return IReadOnlyMailbox.providedBy(self.mailbox)

    @property
    def hasMarks(self) -> bool:
        """
        Whether at least one message is marked for deletion.
        """
        return self.maildrop is not None and self.maildrop.hasMarks

    def mark(self, found: MessageRef) -> None:
        """
        Mark a message for deletion.
        """
        self._drop().mark(found)

    def unmark(self) -> None:
        """
        Remove all deletion marks.
        """
        self._drop().unmark()

    async def _delete(self, uniqueIDs: list[str]) -> None:
        """
        Delete either all given messages or none.  A deletion that has begun goes on even if the
        client disconnects.  L{pop3svc.protocol.session.Session.end} waits until the deletion has
        ended.
        """
        mailbox = self.mailbox

        async def delete() -> None:
            try:
                answer = self._calls.start(mailbox.messageDelete, self.info, uniqueIDs)
                if isAwaitable(answer):
                    await answer
                self._record.messagesDeleted += len(uniqueIDs)
            finally:
                self.deletion = None

        deletion = Shielded(delete)
        self.deletion = None if deletion.done else deletion
        try:
            await settled(deletion.outcome(self._calls.clock, self._calls.timeout))
        except CallTimeout:
            raise POP3ResponseError(
                "The deletion takes too long; whether it happens is not known yet.",
                "SYS/TEMP",
                critical=True,
            )

    def commit(self) -> ValueOrDeferred[int]:
        """
        Delete either all marked messages or none.

        @return: the number of deleted messages.
        @raise POP3ResponseError: nothing was deleted, or the deletion takes so long that its
            outcome is not known yet.
        """
        maildrop = self._drop()
        return startNow(self._commit(maildrop)) if maildrop.hasMarks else 0

    async def _commit(self, maildrop: Maildrop) -> int:
        marked = maildrop.marked()
        await self._delete(marked)
        maildrop.setGone(marked)
        return len(marked)

    async def deleteNow(self, found: MessageRef) -> None:
        """
        Delete one message now and not at QUIT (docs/extensions, DELI).

        @raise POP3ResponseError: the message does not exist any more; or see L{commit}.
        """
        maildrop = self._drop()
        # Open the message first.  DELI has to refuse a message that does not exist any more, and
        # messageDelete would accept it.
        (await settled(self._messages.content(found.uniqueID))).close()
        await self._delete([found.uniqueID])
        maildrop.setGone([found.uniqueID])

    # --- refreshing, sleeping, waking ---------------------------------------

    async def refresh(self) -> bool:
        """
        Delete the marked messages and list the mailbox again.  The session keeps the lock
        (docs/extensions, CORE).

        @return: whether the new listing contains a unique-id that the old listing did not contain.
        @raise POP3ResponseError: see L{commit}; or the messages were deleted, but the mailbox
            cannot be listed.
        """
        await settled(self.commit())
        known = self._drop().listed.hashes()
        try:
            self.maildrop = await settled(self._list())
        except CancelledError:
            raise
        except Exception as error:
            if not isinstance(error, POP3ResponseError):
                log.failure("a mailbox cannot be listed again", pop3Event="error")
            raise POP3ResponseError("Mailbox cannot be listed.", "SYS/TEMP", critical=True)
        return self.maildrop.listed.hasOthersThan(known)

    def sleep(self) -> ValueOrDeferred[int]:
        """
        Delete the marked messages and release the lock and the listing
        (docs/extensions, SLEE).

        @return: the number of deleted messages.
        @raise POP3ResponseError: see L{commit}.
        """
        return then(self.commit(), self._fallAsleep)

    def _fallAsleep(self, deleted: int) -> ValueOrDeferred[int]:
        self._known = self._drop().listed.hashes()
        self.maildrop = None
        locked, self._locked = self._locked, False
        self._unlocking = Shielded(inTurn, self._releasesForSleep(locked))
        return then(self._unlocking.outcome(), lambda _: deleted)

    def _releasesForSleep(self, locked: bool) -> Iterator[ValueOrDeferred[None]]:
        if ISleepingMailbox.providedBy(self.mailbox):
            yield self._calls.release(self.mailbox.onSleep, self.info)
        if locked:
            yield self._calls.release(self.mailbox.unlock, self.info)

    async def wake(self) -> bool:
        """
        Take the lock again and list the mailbox (docs/extensions, WAKE).

        @return: whether the new listing contains a unique-id that the listing before SLEE did not
            contain.
        @raise POP3ResponseError: the mailbox cannot be taken.  The session is still asleep and has
            no lock.
        """
        changes = self._changesListed
        try:
            locked = self._lock()
            if isAwaitable(locked):
                await locked
            listed: Any = self._list()
            maildrop: Maildrop = await listed if isAwaitable(listed) else listed
        except CancelledError:
            raise
        except Exception:
            if self._locked:
                self._locked = False
                self._unlocking = Shielded(self._calls.release, self.mailbox.unlock, self.info)
                await settled(self._unlocking.outcome())
            raise
        known, self._known = self._known or array("Q"), None
        self.maildrop = maildrop
        if self._endWatch is not None and self._changes == changes:
            return False
        return maildrop.listed.hasOthersThan(known)

    # --- the end ------------------------------------------------------------

    def end(self) -> ValueOrDeferred[None]:
        """
        Release the lock, the watch and the mailbox.  Call this method once, and protect the call
        from cancellation.
        """
        return inTurn(self._ending())

    def _ending(self) -> Iterator[ValueOrDeferred[None]]:
        locked, self._locked = self._locked, False
        endWatch, self._endWatch = self._endWatch, None
        self.maildrop = self._known = None
        # Wait, because the lock may be released just now by SLEE, or by a WAKE that has failed or
        # was cancelled.
        if self._unlocking is not None:
            yield self._unlocking.outcome()
        if locked:
            yield self._calls.release(self.mailbox.unlock, self.info)
        if endWatch is not None:
            yield self._calls.release(endWatch)
        if IMailboxLogout.providedBy(self.mailbox):
            yield self._calls.release(self.mailbox.logout)
        # Clear this attribute last, because the methods of the mailbox may use it.
        self.info.providerTag = None
