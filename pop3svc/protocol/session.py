"""
All that is remembered about one client; the only caller of mailbox methods.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Any, Protocol

from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import Invalid, implementer, providedBy
from zope.interface.verify import verifyObject

from pop3svc.awaiting import (
    CallTimeout,
    Shielded,
    TimeSlice,
    awaitWithTimeout,
    ensureStarted,
    isAwaitable,
)
from pop3svc.errors import BadArguments, POP3ResponseError, ProviderMistake
from pop3svc.interfaces import (
    IAccountStatus,
    IBulkMessageSizes,
    IExclusiveMailbox,
    ILoginThrottle,
    IMailboxLogout,
    INewMailNotifier,
    IPOP3ConnectionInfo,
    IPOP3Mailbox,
    IPOP3MailboxProvider,
    IReadOnlyMailbox,
    ISleepingMailbox,
)
from pop3svc.listings import BadListing, UniqueIDList, isUniqueID
from pop3svc.networks import isLoopback
from pop3svc.policy import Policy
from pop3svc.protocol.content import MessageBody, countByReading
from pop3svc.protocol.grammar import MessageNumber, Reference
from pop3svc.protocol.maildrop import Maildrop, MessageRef
from pop3svc.protocol.remarks import HELD, nameOf, remarkHeld, warnOnce
from pop3svc.protocol.replies import Body, Lines, Pieces

__all__ = ["ConnectionInfo", "Exchange", "Session", "State", "refuseRelease"]

log = Logger(namespace="pop3svc")


class State(Enum):
    """
    Where a session stands (RFC 1939 section 3; SLEEPING: docs/extensions, SLEE).
    UPDATE is a moment inside QUIT, not a place to stay.
    """

    # By identity: it is looked up at each command.
    __hash__ = object.__hash__

    AUTHORIZATION = "AUTHORIZATION"
    TRANSACTION = "TRANSACTION"
    SLEEPING = "SLEEPING"
    CLOSED = "CLOSED"


# Messages of a mailbox for which a step over all of them is a turn of its own.
_MANY = 100_000


def _listOf(call: Any, values: Iterable[Any]) -> Callable[[], list[Any]]:
    """
    @return: makes a list of what a method returned, under its name: it may be a generator.
    """

    def make() -> list[Any]:
        return list(values)

    make.__qualname__ = nameOf(call)
    return make


def _octets(call: Any, size: object) -> int:
    """
    @param size: what a method returned for the size of a message.
    @return: the size, octets.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise ProviderMistake(
            f"{nameOf(call)} returned {type(size).__name__} for a size: return the octets of "
            "the message as an int, 0 or more"
        )
    return size


def _verified(call: Any, mailbox: Any) -> Any:
    """
    @param call: the method that returned a mailbox.
    @return: the mailbox, or what adapts it.
    @raise ProviderMistake: it is no mailbox.
    """
    adapted = IPOP3Mailbox(mailbox, None)
    if adapted is None:
        raise ProviderMistake(
            f"{nameOf(call)} returned {type(mailbox).__name__}, which is no mailbox: write "
            "@implementer(IPOP3Mailbox) above that class"
        )
    if type(adapted) not in _verifiedClasses:
        _verifiedClasses.add(type(adapted))
        ours = [each for each in providedBy(adapted) if each.__module__ == IPOP3Mailbox.__module__]
        for interface in ours:
            try:
                verifyObject(interface, adapted)
            except IndexError:
                # zope.interface does not get along with "*arguments" alone.
                continue
            except Invalid as error:
                faults = getattr(error, "exceptions", [error])
                for fault in faults:
                    log.warn(
                        "{name} does not keep to {interface}: {fault}",
                        name=type(adapted).__name__,
                        interface=interface.__name__,
                        fault=" ".join(str(fault).split()),
                    )
    return adapted


# There are few, and classes stay.
_verifiedClasses: set[type] = set()


def _admitAll(name: str, isLogin: bool) -> Callable[[bool], object]:
    return lambda isIn: None


def refuseRelease(isMarked: bool) -> bool:
    """
    What a session answers to L{Session.tryRelease} that does not end itself.
    """
    return False


def _printable(name: str) -> str:
    """
    A name for events: what a log cannot show is escaped.
    """
    return name if name.isprintable() else ascii(name)[1:-1]


@implementer(IPOP3ConnectionInfo)
class ConnectionInfo:
    """
    What a provider may know of the client.
    """

    def __init__(self, connectionID: int, clientIP: str | None, isSecure: bool) -> None:
        self.connectionID = connectionID
        self.clientIP = clientIP
        self.isSecure = isSecure
        self.userNameAtLogin: str | None = None
        self.providerTag: Any = None
        self.loginAttempt: Any = None

    @property
    def isLoopback(self) -> bool:
        """
        Did the client come from this machine?  A UNIX socket has no address.
        """
        return isLoopback(self.clientIP)


class Exchange(Protocol):
    """
    An unfinished conversation inside one command: its next line is not a
    command.
    """

    command: Any

    async def respond(self, line: bytes) -> Any:
        """
        @return: a L{pop3svc.protocol.replies.Reply}; if it is not a
            challenge, the exchange is over.
        """


class Session:
    """
    One client's session.

    @ivar isOver: the client is gone; nothing new begins.
    @ivar state: where it stands; set by the dispatcher only.
    @ivar claimedName: the name of an accepted USER that waits for its PASS.
    @ivar exchange: the unfinished AUTH, or L{None}.
    @ivar senseless: how many commands in a row made no sense.
    @ivar mayStartTLS: is there a certificate for STLS?
    @ivar tryRelease: asked, with whether any message is marked, when another
        session of the user wants the mailbox; returns whether this one ends
        itself now.  Set by the connection.
    @ivar maildrop: the listing, while in TRANSACTION.
    """

    def __init__(
        self,
        info: ConnectionInfo,
        provider: Any,
        policy: Policy,
        clock: IReactorTime,
        commands: Sequence[Any] = (),
        mayStartTLS: bool = False,
        throttle: Any = None,
        acquireSlot: Callable[[str, bool], Callable[[bool], object]] = _admitAll,
    ) -> None:
        """
        @param commands: every L{pop3svc.protocol.dispatch.Command} there is,
            for CAPA.
        @param provider: L{IPOP3MailboxProvider}
        @param throttle: L{ILoginThrottle} or L{None}
        @param acquireSlot: called before a session of a user awakes, with whether that
            is by a login; raises L{POP3ResponseError} if there are too many,
            or if it is too soon.  What it returns is called once when the
            session is awake no longer, with whether it has come to be.
        """
        self.info = info
        self.provider = IPOP3MailboxProvider(provider)
        self.policy = policy
        self.commands = commands
        self.mayStartTLS = mayStartTLS
        self._clock = clock
        self._seconds = clock.seconds
        self._acquireSlot = acquireSlot
        self._releaseSlot: Callable[[bool], object] | None = None
        self._isIn = False
        self._throttle = None if throttle is None else ILoginThrottle(throttle)
        self.state = State.AUTHORIZATION
        self.isOver = False
        self.claimedName: str | None = None
        self.exchange: Exchange | None = None
        self.tryRelease = refuseRelease
        self.badCommands = 0
        self._failedLogins = 0
        self._wasChecked = self._isRepeated = False
        self.maildrop: Maildrop | None = None
        self._mailbox: Any = None
        self._locked = False
        self._endWatch: Callable[[], object] | None = None
        # How often the watch has called, now and when the listing was asked
        # for.
        self._changes = self._changesListed = 0
        # Of the unique-ids listed before going to sleep, eight octets each.
        self._known: array[int] | None = None
        self._credentialsVersion = ""
        self._deletion: Shielded | None = None
        self._leaving: Shielded | None = None
        # For the line at the end.
        self.user: str | None = None
        self.loginMethod = ""
        self.messagesDeleted = 0

    def _call(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """
        Call a method of a provider, and say once if it held the reactor.

        @return: its value, or a Deferred.
        """
        seconds = self._seconds
        late = seconds() + HELD
        try:
            answer = call(*arguments)
            return ensureStarted(answer) if isAwaitable(answer) else answer
        finally:
            if seconds() > late:
                remarkHeld(call, seconds() - late + HELD)

    async def _ask(self, call: Callable[..., Any], *arguments: Any) -> Any:
        answer = self._call(call, *arguments)
        if isAwaitable(answer):
            answer = await self._waited(call, answer)
        if self.isOver:
            # It answered although it was cancelled.
            raise CancelledError()
        return answer

    async def _answer(self, call: Callable[..., Any], *arguments: Any) -> Any:
        answer = self._call(call, *arguments)
        return await self._waited(call, answer) if isAwaitable(answer) else answer

    async def _waited(self, call: Callable[..., Any], answer: Any) -> Any:
        try:
            return await awaitWithTimeout(answer, self._clock, self.policy.answerTimeout)
        except CallTimeout:
            log.error(
                "{call} of connection {connectionID} did not answer within {timeout} s",
                call=nameOf(call),
                connectionID=self.info.connectionID,
                timeout=self.policy.answerTimeout,
            )
            raise POP3ResponseError("Mailbox timed out.", "SYS/TEMP", critical=True)

    def enter(self, state: State) -> None:
        """
        The one transition; only the dispatcher makes it.
        """
        if state is State.TRANSACTION and self.maildrop is None:
            raise AssertionError("TRANSACTION is entered with a listing only")
        self.state = state

    # --- logging in ---------------------------------------------------------

    @property
    def mayLogInHere(self) -> bool:
        """
        May a password be sent on this connection (RFC 2595 section 2.2)?
        """
        if self.info.isSecure or self.policy.cleartextLogin == "always":
            return True
        return self.policy.cleartextLogin == "loopback" and self.info.isLoopback

    async def logIn(self, name: str, password: str, method: str = "") -> None:
        """
        Check a login and open the mailbox: the one way in for every command
        that logs in.

        @param method: the command, and the mechanism of AUTH, for the log.
        @raise POP3ResponseError: refused, or the mailbox is not to be had.
        """
        try:
            mailbox = await self._authenticate(name, password)
            self._releaseSlot = self._acquireSlot(name, True)
            self.info.userNameAtLogin = name
            if IAccountStatus.providedBy(self.provider):
                self._credentialsVersion = await self._ask(
                    self.provider.credentialsVersion, self.info, name
                )
            await self._enter(mailbox)
            self._isIn = True
        except CancelledError:
            # The client is lost; end() lets go of everything.
            raise
        except Exception as error:
            if isinstance(error, POP3ResponseError):
                self._loginEvent(name, error.code or "")
            await self._leave()
            raise
        self.user = _printable(name)
        self.loginMethod = method
        self._loginEvent(name, None)

    def _loginEvent(self, name: str, refusal: str | None) -> None:
        # Stable, for fail2ban: contrib/fail2ban reads it.  Other refusals are no failed
        # guesses: the throttle has lines of its own for those that it does not let through.
        isFailure = refusal == "AUTH" and self._wasChecked and not self._isRepeated
        text = "failed login from {clientIP}: {user}" if isFailure else None
        if text is None and not self.policy.verboseEvents:
            return
        log.info(
            text,
            pop3Event="login",
            connectionID=self.info.connectionID,
            clientIP=self.info.clientIP,
            isSecure=self.info.isSecure,
            user=_printable(name) or "(none)",
            succeeded=refusal is None,
            code=refusal,
        )

    async def _authenticate(self, name: str, password: str) -> Any:
        self._wasChecked = self._isRepeated = False
        if not name or not password:
            raise POP3ResponseError("A user name and a password are required.", "AUTH")
        info, throttle = self.info, self._throttle
        if throttle is not None and not await self._ask(throttle.mayLogin, info, name, password):
            raise self._wrong()
        self._wasChecked = True
        try:
            mailbox = await self._ask(self.provider.authenticate, info, name, password)
            if mailbox is None:
                raise POP3ResponseError("Wrong name or password.", "AUTH")
            mailbox = _verified(self.provider.authenticate, mailbox)
        except BaseException as error:
            if not isinstance(error, POP3ResponseError) or error.code != "AUTH":
                if throttle is not None:
                    throttle.loginAbandoned(info, name, isinstance(error, CancelledError))
                raise
            if throttle is not None:
                self._isRepeated = bool(await self._ask(throttle.loginFailed, info, name))
            # One text for whatever was wrong.
            raise self._wrong()
        self._mailbox = mailbox
        if throttle is not None:
            await self._ask(throttle.loginSucceeded, info, name)
        return self._mailbox

    def _wrong(self) -> POP3ResponseError:
        self._failedLogins += 1
        return POP3ResponseError(
            "Wrong name or password.",
            "AUTH",
            critical=self._failedLogins >= self.policy.maxFailedLogins,
        )

    async def _enter(self, mailbox: Any) -> None:
        if INewMailNotifier.providedBy(mailbox):
            self._endWatch = await self._ask(mailbox.watchMailbox, self.info, self._changed)
        await self._lock()
        self.maildrop = await self._list()

    def _changed(self) -> None:
        """
        The mailbox would list otherwise than last time.
        """
        self._changes += 1

    async def _lock(self) -> None:
        if IExclusiveMailbox.providedBy(self._mailbox):
            mailbox = self._mailbox
            await self._answer(mailbox.lock, self.info, self._requestRelease)
            if self.isOver:
                await Shielded(self._letGo, mailbox.unlock, self.info).outcome()
                raise CancelledError()
            self._locked = True

    def _requestRelease(self) -> bool:
        """
        Another session of the same user waits for the lock.
        """
        if self.isOver or self.state is not State.TRANSACTION or self.maildrop is None:
            return False
        return self.tryRelease(bool(self.maildrop.marked()))

    async def _list(self) -> Maildrop:
        self._changesListed = self._changes
        call = self._mailbox.listMessageUniqueIDs
        listed: Iterable[str] = await self._ask(call, self.info)
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
                user=self.printableName,
                rule=str(error),
                connectionID=self.info.connectionID,
            )
            raise POP3ResponseError("Mailbox cannot be listed.", "SYS/PERM")

    # --- the listing --------------------------------------------------------

    def _drop(self) -> Maildrop:
        assert self.maildrop is not None, "commands run in their states only"
        return self.maildrop

    def count(self) -> int:
        """
        @return: how many messages there are that are not deleted.
        """
        return self._drop().count()

    def uniqueIDs(self) -> Body:
        """
        @return: the number and unique-id of each message that is not deleted.
        """
        maildrop = self._drop()
        if maildrop.isWhole:
            return Pieces(maildrop.listed.lines())
        return Lines(f"{each.number} {each.uniqueID}" for each in maildrop.present())

    async def find(self, reference: Reference) -> MessageRef:
        """
        @return: the message that an argument names; number 0 if it arrived
            after the listing (docs/extensions, UID-PARAM).
        @raise POP3ResponseError: there is none, or it is deleted.
        """
        maildrop = self._drop()
        if isinstance(reference, MessageNumber):
            return maildrop.byNumber(reference.number)
        missing = POP3ResponseError("No such message.", "UID/NOT-FOUND")
        if "UID-PARAM" in self.policy.without:
            raise BadArguments("Argument is not a number.")
        uniqueID = reference.text
        if not isUniqueID(uniqueID):
            raise missing
        found = maildrop.byUniqueID(uniqueID)
        if found is None:
            if not await self._ask(self._mailbox.messageExists, self.info, uniqueID):
                raise missing
            found = MessageRef(0, uniqueID)
        return found

    async def size(self, found: MessageRef) -> int:
        """
        @return: octets of a message as RETR sends it, without dot-stuffing.
        """
        maildrop = self._drop()
        octets = maildrop.size(found)
        if octets is None:
            octets = await self._size(found.uniqueID)
            maildrop.setSizes([found], [octets])
        return octets

    async def sizes(self) -> Body:
        """
        @return: the number and octets of each message that is not deleted.
        """
        maildrop = self._drop()
        await self._learnSizes(maildrop)
        sizes = maildrop.sizes()
        if maildrop.isWhole:
            return Lines(f"{number} {octets or 0}" for number, octets in enumerate(sizes, 1))
        return Lines(f"{each.number} {sizes[each.number - 1] or 0}" for each in maildrop.present())

    async def _learnSizes(self, maildrop: Maildrop) -> None:
        """
        Ask for the sizes that are not known.
        """
        mailbox, known = self._mailbox, maildrop.sizes()
        if known and None not in known:
            return
        isBulk = IBulkMessageSizes.providedBy(mailbox)
        if isBulk and not known and maildrop.isWhole and len(maildrop.listed) > 1:
            unknown: list[MessageRef] = []
            uniqueIDs = maildrop.listed.uniqueIDs
        else:
            unknown = [
                each for each in maildrop.present() if not known or known[each.number - 1] is None
            ]
            if not unknown:
                return
            uniqueIDs = [each.uniqueID for each in unknown]
        sizes = await self._manySizes(mailbox, uniqueIDs) if isBulk else None
        if sizes is None:
            sizes = await self._sizesOneByOne(uniqueIDs)
        # Of one that is gone nothing is known, and nothing remembered.
        maildrop.setSizes(unknown, sizes)

    async def _manySizes(self, mailbox: Any, uniqueIDs: list[str]) -> list[int | None] | None:
        """
        @return: a size for each message, L{None} for one that has gone; L{None} if
            the mailbox cannot tell many sizes at once after all.
        """
        call = mailbox.messageSizes
        try:
            answer = await self._ask(call, self.info, uniqueIDs)
        except NotImplementedError:
            return None
        if isinstance(answer, str | bytes) or not isinstance(answer, Iterable):
            raise ProviderMistake(
                f"{nameOf(call)} returned {type(answer).__name__}: return a list with the size of "
                "each message, or None for one that has gone"
            )
        sizes: list[int | None] = self._call(_listOf(call, answer))
        isLarge = len(sizes) > _MANY
        if isLarge:
            # Of very many each step takes long.
            await TimeSlice(self._clock).next()
        if len(sizes) != len(uniqueIDs):
            raise ProviderMistake(
                f"{nameOf(call)} returned {len(sizes)} sizes for {len(uniqueIDs)} messages: "
                "return one for each, in the order asked"
            )
        for octets in set(sizes):
            if octets is not None:
                _octets(call, octets)
        if isLarge:
            await TimeSlice(self._clock).next()
        return sizes

    async def _sizesOneByOne(self, uniqueIDs: list[str]) -> list[int | None]:
        """
        STAT and LIST without argument have no C{-ERR} of their own (RFC 1939 section 5):
        trouble with one message shows when that one is asked for.

        @return: a size for each message, L{None} where there is none to be had.
        @raise POP3ResponseError: C{SYS/TEMP}, none of several messages has a size now.
        """
        sizes: list[int | None] = []
        faults: list[POP3ResponseError] = []
        turns = TimeSlice(self._clock)
        for uniqueID in uniqueIDs:
            octets = None
            try:
                octets = await self._size(uniqueID)
            except POP3ResponseError as error:
                if error.critical:
                    raise
                faults.append(error)
            except (CancelledError, ProviderMistake):
                raise
            except Exception:
                call = self._mailbox.messageSize
                warnOnce(
                    call,
                    "{call} or what reads a message failed for a message of {user}; STAT and "
                    "LIST count none of its octets",
                    user=self.printableName,
                    log_failure=Failure(),
                )
            sizes.append(octets)
            await turns.yieldIfDue()
        if len(faults) == len(uniqueIDs) > 1 and all(each.code == "SYS/TEMP" for each in faults):
            raise faults[0]
        return sizes

    async def total(self) -> tuple[int, int]:
        """
        @return: how many messages there are that are not deleted, and their
            octets (RFC 1939, STAT).
        """
        maildrop = self._drop()
        octets = maildrop.octets()
        if octets is None:
            await self._learnSizes(maildrop)
            sizes = maildrop.sizes()
            octets = maildrop.octets()
            if octets is None:
                octets = sum(sizes[each.number - 1] or 0 for each in maildrop.present())
        return maildrop.count(), octets

    async def _size(self, uniqueID: str) -> int:
        call = self._mailbox.messageSize
        try:
            octets = await self._ask(call, self.info, uniqueID)
        except NotImplementedError:
            octets = None
        if octets is None:
            return await countByReading(await self._content(uniqueID), self._clock)
        return _octets(call, octets)

    async def _content(self, uniqueID: str) -> MessageBody:
        call = self._mailbox.messageContent
        content = self._call(call, self.info, uniqueID)
        if isAwaitable(content):
            content = await self._waited(call, content)
        body = MessageBody(content, self._clock, self.policy.answerTimeout, call)
        if self.isOver:
            body.close()
            raise CancelledError()
        return body

    async def open(self, found: MessageRef) -> MessageBody:
        """
        @return: the message, to be closed by whoever gets it.
        """
        body = await self._content(found.uniqueID)
        body.expects(self._drop().size(found), self._saidOtherwise)
        return body

    def _saidOtherwise(self, said: int, sent: int) -> None:
        """
        A whole message had another size than the mailbox said.
        """
        mailbox = self._mailbox
        isBulk = IBulkMessageSizes.providedBy(mailbox)
        warnOnce(
            mailbox.messageSizes if isBulk else mailbox.messageSize,
            "{call} said {said} octets for a message of {user} that has {sent} when it is sent: "
            "return the octets with CRLF line ends, or raise NotImplementedError to have them "
            "counted",
            said=said,
            sent=sent,
            user=self.printableName,
        )

    @property
    def printableName(self) -> str:
        """
        The user's name for the log.
        """
        return _printable(self.info.userNameAtLogin or "")

    # --- deleting -----------------------------------------------------------

    @property
    def isReadOnly(self) -> bool:
        """
        Is nothing deleted in this mailbox?
        """
        return IReadOnlyMailbox.providedBy(self._mailbox)

    def mark(self, found: MessageRef) -> None:
        """
        Mark a message for deletion.
        """
        self._drop().mark(found)

    def unmark(self) -> None:
        """
        Take all marks back.
        """
        self._drop().unmark()

    async def _delete(self, uniqueIDs: list[str]) -> None:
        """
        Delete all of these or none.  Once begun it is finished, whether or not
        anybody waits; end() does.
        """
        if not uniqueIDs:
            return
        mailbox = self._mailbox

        async def delete() -> None:
            try:
                answer = self._call(mailbox.messageDelete, self.info, uniqueIDs)
                if isAwaitable(answer):
                    await answer
                self.messagesDeleted += len(uniqueIDs)
            finally:
                self._deletion = None

        deletion = Shielded(delete)
        self._deletion = None if deletion.done else deletion
        try:
            await deletion.outcome(self._clock, self.policy.answerTimeout)
        except CallTimeout:
            raise POP3ResponseError(
                "The deletion takes too long; whether it happens is not known yet.",
                "SYS/TEMP",
                critical=True,
            )

    async def commit(self) -> int:
        """
        Delete what is marked, all or none.

        @return: how many messages that were.
        @raise POP3ResponseError: nothing was deleted.
        """
        maildrop = self._drop()
        marked = maildrop.marked()
        await self._delete(marked)
        maildrop.setGone(marked)
        return len(marked)

    async def deleteNow(self, found: MessageRef) -> None:
        """
        Delete one message without waiting for QUIT (docs/extensions, DELI).

        @raise POP3ResponseError: it has gone, or was not deleted.
        """
        # One that is gone counts as deleted for messageDelete; here it is
        # an error, and opening it tells.
        (await self._content(found.uniqueID)).close()
        await self._delete([found.uniqueID])
        self._drop().setGone([found.uniqueID])

    # --- staying, asleep or not ------------------------------------------------

    async def refresh(self) -> bool:
        """
        Delete what is marked and list afresh, the lock kept
        (docs/extensions, CORE).

        @return: is there a unique-id that was not listed before?
        @raise POP3ResponseError: nothing has changed; or, if critical, the
            deletion worked and the listing did not.
        """
        await self.commit()
        known = self._drop().listed.hashes()
        try:
            self.maildrop = await self._list()
        except CancelledError:
            raise
        except Exception as error:
            if not isinstance(error, POP3ResponseError):
                log.failure("a mailbox cannot be listed again", pop3Event="error")
            raise POP3ResponseError("Mailbox cannot be listed.", "SYS/TEMP", critical=True)
        return self.maildrop.listed.hasOthersThan(known)

    async def sleep(self) -> int:
        """
        Delete what is marked and let the lock go, all but the user forgotten
        (docs/extensions, SLEE).

        @return: how many messages were deleted.
        @raise POP3ResponseError: nothing has changed.
        """
        deleted = await self.commit()
        self._known = self._drop().listed.hashes()
        self.maildrop = None
        locked, self._locked = self._locked, False
        if locked or ISleepingMailbox.providedBy(self._mailbox):
            self._leaving = Shielded(self._releaseForSleep, self._mailbox, locked)
            await self._leaving.outcome()
        self._giveBackPlace()
        return deleted

    async def _releaseForSleep(self, mailbox: Any, locked: bool) -> None:
        if ISleepingMailbox.providedBy(mailbox):
            await self._letGo(mailbox.onSleep, self.info)
        if locked:
            await self._letGo(mailbox.unlock, self.info)

    async def wake(self) -> bool:
        """
        Take the lock again and list afresh (docs/extensions, WAKE).

        @return: is there a unique-id that was not listed before sleeping?
        @raise POP3ResponseError: still asleep, and nothing is held.
        """
        name = self.info.userNameAtLogin
        if IAccountStatus.providedBy(self.provider) and not await self._ask(
            self.provider.isStillValid, self.info, name, self._credentialsVersion
        ):
            raise POP3ResponseError("Account is no longer valid.", "AUTH")
        self._releaseSlot = self._acquireSlot(name or "", False)
        changes = self._changesListed
        try:
            await self._lock()
            maildrop = await self._list()
        except CancelledError:
            raise
        except Exception:
            if self._locked:
                self._locked = False
                await Shielded(self._letGo, self._mailbox.unlock, self.info).outcome()
            self._giveBackPlace()
            raise
        known, self._known = self._known or array("Q"), None
        self.maildrop = maildrop
        if self._endWatch is not None and self._changes == changes:
            return False
        return maildrop.listed.hasOthersThan(known)

    def _giveBackPlace(self) -> None:
        releaseSlot, self._releaseSlot = self._releaseSlot, None
        if releaseSlot is not None:
            releaseSlot(self._isIn)

    # --- leaving ------------------------------------------------------------

    async def quit(self) -> int:
        """
        The UPDATE state (RFC 1939 section 6): delete what is marked and let
        go of the mailbox, whether or not the deletion worked.

        @return: how many messages were deleted.
        @raise POP3ResponseError: nothing was deleted.
        """
        if self.state is not State.TRANSACTION:
            return 0
        try:
            return await self.commit()
        finally:
            # A deletion that is not over yet keeps the lock; end() lets it go.
            if self._deletion is None:
                await self._leave()

    async def logOut(self) -> None:
        """
        Delete what is marked and let go of the mailbox and of all that is
        known of its user (docs/extensions, QAUT).

        @raise POP3ResponseError: nothing has changed.
        """
        await self.commit()
        await self._leave()

    async def end(self) -> None:
        """
        The client is lost, timed out or done: let go of everything, after a
        deletion that is under way.  Nothing else is deleted.
        """
        self.isOver = True
        deletion, self._deletion = self._deletion, None
        if deletion is not None:
            try:
                await deletion.outcome()
            except Exception:
                log.failure("a deletion failed after its client was gone")
        await self._leave()
        if self._leaving is not None:
            await self._leaving.outcome()
        self.state = State.CLOSED

    async def _leave(self) -> None:
        # Everything is forgotten before anything is awaited, so that nothing
        # is let go twice; and it is carried through, so that all of it is.
        mailbox, self._mailbox = self._mailbox, None
        locked, self._locked = self._locked, False
        endWatch, self._endWatch = self._endWatch, None
        self.maildrop = self._known = None
        self._credentialsVersion = ""
        self._giveBackPlace()
        self._isIn = False
        self.info.userNameAtLogin = None
        if mailbox is None:
            self.info.providerTag = None
        else:
            # SLEE may be letting go of the lock still.
            earlier = self._leaving
            self._leaving = Shielded(self._letAllGo, mailbox, locked, endWatch, earlier)
            await self._leaving.outcome()

    async def _letAllGo(
        self,
        mailbox: Any,
        locked: bool,
        endWatch: Callable[[], object] | None,
        earlier: Shielded | None,
    ) -> None:
        if earlier is not None:
            await earlier.outcome()
        if locked:
            await self._letGo(mailbox.unlock, self.info)
        if endWatch is not None:
            await self._letGo(endWatch)
        if IMailboxLogout.providedBy(mailbox):
            await self._letGo(mailbox.logout)
        # The mailbox may have kept something there until now.
        self.info.providerTag = None

    async def _letGo(self, call: Callable[..., Any], *arguments: Any) -> None:
        try:
            await self._answer(call, *arguments)
        except Exception:
            log.failure("failed to release mailbox")
