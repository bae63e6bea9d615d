"""
The session of one client.  It has a state, logs a user in, and has one transaction at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, Protocol

from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from pop3svc.awaiting import Shielded, ValueOrDeferred, inTurn, isAwaitable, settled, startNow, then
from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import (
    IAccountStatus,
    IPOP3ConnectionInfo,
    IPOP3MailboxProvider,
    ISharedSecrets,
)
from pop3svc.languages import Language
from pop3svc.networks import isLoopback
from pop3svc.policy import Policy
from pop3svc.protocol.authentication import Authentication, Password, Proven
from pop3svc.protocol.challenges import makeChallenge
from pop3svc.protocol.providercalls import ProviderCalls
from pop3svc.protocol.record import SessionRecord
from pop3svc.protocol.remarks import printable
from pop3svc.protocol.transaction import Transaction

__all__ = [
    "ConnectionInfo",
    "Exchange",
    "Session",
    "State",
    "keepLanguage",
    "noBinding",
    "noNames",
    "refuseRelease",
]

log = Logger(namespace="pop3svc")


class State(Enum):
    """
    The state of a session (RFC 1939 section 3).  The state SLEEPING belongs to the extension SLEE
    (docs/extensions).  There is no value for the UPDATE state, because this state exists during
    QUIT only.
    """

    # Use the hash of the identity, because it takes less time.  Each command looks for the state in
    # a set.
    __hash__ = object.__hash__

    AUTHORIZATION = "AUTHORIZATION"
    TRANSACTION = "TRANSACTION"
    SLEEPING = "SLEEPING"
    CLOSED = "CLOSED"


_NO_MECHANISMS: Mapping[str, Any] = {}


def _admitAll(name: str, isLogin: bool) -> Callable[[bool], object]:
    return lambda isIn: None


def noBinding(name: str) -> bytes | None:
    """
    Return L{None}.  This function is the value of L{Session.channelBinding} if the session has no
    connection.

    @return: L{None}, because there is no channel binding.
    """
    return None


def noNames() -> tuple[str, ...]:
    """
    Return no names.  This function is the value of L{Session.certificateNames} if the session has
    no connection.

    @return: no names.
    """
    return ()


def keepLanguage(language: Language | None) -> None:
    """
    Do nothing.  This function is the value of L{Session.useLanguage} if the session has no
    connection.
    """


def refuseRelease(isMarked: bool) -> bool:
    """
    Refuse to end the session.  This function is the value of L{Session.tryRelease} if the session
    has no connection.

    @param isMarked: whether at least one message is marked for deletion.
    @return: False.
    """
    return False


@implementer(IPOP3ConnectionInfo)
class ConnectionInfo:
    """
    The facts about a client that a provider can read.
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
        Whether the client is on this machine.  This is also true for a client of a UNIX socket,
        which has no address.
        """
        return isLoopback(self.clientIP)


class Exchange(Protocol):
    """
    An unfinished exchange inside a command.  The next line of the client belongs to the exchange,
    and is not a command.
    """

    command: Any

    async def respond(self, line: bytes) -> Any:
        """
        Answer the next line of the client.

        @return: a L{pop3svc.protocol.replies.Reply}.  If it is not a challenge, the exchange has
            ended.
        """


class Session:
    """
    The session of one client, with its state, its login and its transaction.

    @ivar state: the state.  The dispatcher sets it, and L{end} sets it to CLOSED.
    @ivar claimedName: the name from a USER command whose PASS has not come yet.
    @ivar exchange: the exchange of AUTH that is not finished yet; L{None} if there is none.
    @ivar badCommands: the number of invalid commands in a row.
    @ivar mayStartTLS: whether the listener has a certificate, so that STLS is possible.
    @ivar tryRelease: called when another session of the user wants the mailbox.  The argument says
        whether at least one message is marked for deletion.  The function returns whether this
        session ends now.  The connection sets this attribute.
    @ivar channelBinding: takes the type of a channel binding and returns its octets; L{None} if the
        connection has no channel binding of this type.  The connection sets this attribute.
    @ivar timestamp: the challenge of APOP in the greeting; empty if APOP is not available.
    @ivar certificateNames: returns the names of users in the verified certificate of the client.
        The connection sets this attribute.
    @ivar isUTF8: whether the client can read UTF-8 in header fields, because it has sent UTF8
        (RFC 6856 section 2.1).
    @ivar useLanguage: takes the L{Language} of all further replies; L{None} for English.  The
        connection sets this attribute.
    @ivar authentication: checks the credentials.
    @ivar transaction: the mailbox between login and logout; otherwise L{None}.
    @ivar record: the counters for the log.
    @ivar calls: makes calls to the provider.
    """

    def __init__(
        self,
        info: ConnectionInfo,
        provider: Any,
        policy: Policy,
        clock: IReactorTime,
        commands: Sequence[Any] = (),
        mechanisms: Mapping[str, Any] = _NO_MECHANISMS,
        mayStartTLS: bool = False,
        throttle: Any = None,
        acquireSlot: Callable[[str, bool], Callable[[bool], object]] = _admitAll,
        secret: bytes = b"",
        makeRecord: Callable[[], SessionRecord] = SessionRecord,
        makeCalls: Callable[[int, IReactorTime, float], ProviderCalls] = ProviderCalls,
    ) -> None:
        """
        @param commands: all commands of the service, for CAPA.  Each is a
            L{pop3svc.protocol.dispatch.Command}.
        @param mechanisms: all mechanisms of the service by name, for CAPA and AUTH.  Each is a
            L{pop3svc.protocol.sasl.Mechanism}.
        @param provider: an L{IPOP3MailboxProvider}.
        @param throttle: an L{ILoginThrottle}; L{None} if logins are not throttled.
        @param acquireSlot: called at each login, after the credentials were accepted, and at each
            WAKE.  It takes the name of the user, and whether this is a login.  It raises
            L{POP3ResponseError} if there are too many sessions, or if the user logs in again too
            soon.  Otherwise it returns a function.  The session calls this function once, when the
            session is no longer awake, or when the login or WAKE has failed.  The argument of the
            function says whether the login succeeded.
        @param makeRecord: L{SessionRecord}, or a subclass that also adds to the counts of the whole
            service.
        @param makeCalls: L{ProviderCalls}, or a subclass that also measures the time of calls.
        """
        self.info = info
        self.provider = IPOP3MailboxProvider(provider)
        self.policy = policy
        self.commands = commands
        self.mechanisms = mechanisms
        self.mayStartTLS = mayStartTLS
        self.calls = makeCalls(info.connectionID, clock, policy.answerTimeout)
        self.record = makeRecord()
        self._acquireSlot = acquireSlot
        self._releaseSlot: Callable[[bool], object] | None = None
        self._isIn = False
        self.authentication = Authentication(
            info, self.provider, policy, self.calls, throttle, secret
        )
        self.state = State.AUTHORIZATION
        self.claimedName: str | None = None
        self.exchange: Exchange | None = None
        self.tryRelease = refuseRelease
        self.channelBinding: Callable[[str], bytes | None] = noBinding
        self.certificateNames: Callable[[], tuple[str, ...]] = noNames
        self.isUTF8 = False
        self.useLanguage: Callable[[Language | None], object] = keepLanguage
        isOffered = "APOP" in policy.enable and ISharedSecrets.providedBy(provider)
        self.timestamp = makeChallenge() if isOffered and policy.has("APOP") else ""
        self.badCommands = 0
        self.transaction: Transaction | None = None
        self._credentialsVersion = ""
        self._leaving: Shielded | None = None

    @property
    def greeting(self) -> str:
        """
        The text of the greeting (RFC 1939 section 4).  If APOP is available, the text contains the
        timestamp.
        """
        text = f"{self.provider.name} ready."
        return f"{text} {self.timestamp}" if self.timestamp else text

    @property
    def isOver(self) -> bool:
        """
        Whether the session has ended, so that no new work may begin.
        """
        return self.calls.isOver

    @isOver.setter
    def isOver(self, isOver: bool) -> None:
        self.calls.isOver = isOver

    def enter(self, state: State) -> None:
        """
        Set the state.  Nothing but the dispatcher calls this method.
        """
        transaction = self.transaction
        if state is State.TRANSACTION and (transaction is None or transaction.maildrop is None):
            raise AssertionError("the state TRANSACTION requires a listing")
        self.state = state

    # --- logging in ---------------------------------------------------------

    @property
    def mayLogInHere(self) -> bool:
        """
        Whether the client may send a password on this connection (RFC 2595 section 2.2).
        """
        if self.info.isSecure or self.policy.cleartextLogin == "always":
            return True
        return self.policy.cleartextLogin == "loopback" and self.info.isLoopback

    async def logIn(self, credentials: Password | Proven, method: str = "") -> None:
        """
        Check credentials and open the mailbox.  Every command that logs a user in calls this
        method.

        @param method: the command, and the mechanism of AUTH; both are for the log.
        @raise POP3ResponseError: the login is refused, or the mailbox is not available.
        """
        authentication = self.authentication
        given = credentials
        if isinstance(credentials, Password):
            credentials = authentication.prepared(credentials)
        name = credentials.name
        try:
            mailbox = await authentication.mailboxOf(credentials)
            # Store the mailbox before the next call, because end() has to release it.
            self.transaction = transaction = self._transaction(name, mailbox)
            if isinstance(credentials, Password):
                told = authentication.succeeded(name)
                if isAwaitable(told):
                    await told
            self._releaseSlot = self._acquireSlot(name, True)
            self.info.userNameAtLogin = name
            if IAccountStatus.providedBy(self.provider):
                version: Any = self.calls.ask(self.provider.credentialsVersion, self.info, name)
                if isAwaitable(version):
                    version = await version
                self._credentialsVersion = version
            begun = transaction.begin()
            if isAwaitable(begun):
                await begun
            self._isIn = True
        except CancelledError:
            # The session is over, and end() releases everything.
            raise
        except Exception as error:
            if isinstance(error, POP3ResponseError):
                isUsable = isinstance(credentials, Proven) or credentials.isUsable
                authentication.tell(name if isUsable else given.name, error.code or "")
            await settled(self._leave())
            raise
        self.record.user = printable(name)
        self.record.loginMethod = method
        authentication.tell(name, None)

    def _transaction(self, name: str, mailbox: Any) -> Transaction:
        policy = self.policy
        return Transaction(
            self.calls,
            self.info,
            mailbox,
            printable(name),
            self.record,
            self._requestRelease,
            "UID-PARAM" not in policy.without,
            "" if self.isUTF8 or "UTF8" in policy.without else policy.utf8Headers,
        )

    def _requestRelease(self) -> bool:
        """
        Decide whether to release the lock for another session of the same user.

        @return: whether this session ends.
        """
        transaction = self.transaction
        if self.isOver or self.state is not State.TRANSACTION or transaction is None:
            return False
        return self.tryRelease(transaction.hasMarks)

    # --- asleep and awake ---------------------------------------------------

    @property
    def active(self) -> Transaction:
        """
        The transaction.  This attribute is only for commands that need a user who has logged in.
        """
        assert self.transaction is not None, "this command needs another state"
        return self.transaction

    def sleep(self) -> ValueOrDeferred[int]:
        """
        Delete the marked messages and release the mailbox.  The user stays logged in
        (docs/extensions, SLEE).

        @return: the number of deleted messages.
        @raise POP3ResponseError: see L{Transaction.commit}.
        """
        return then(self.active.sleep(), self._asleep)

    def _asleep(self, deleted: int) -> int:
        self._returnSlot()
        return deleted

    async def wake(self) -> bool:
        """
        Take the mailbox again (docs/extensions, WAKE).

        @return: whether the new listing contains a unique-id that the listing before SLEE did not
            contain.
        @raise POP3ResponseError: the mailbox cannot be taken.  The session is still asleep and has
            no lock.
        """
        name = self.info.userNameAtLogin
        if IAccountStatus.providedBy(self.provider):
            isValid = self.calls.ask(
                self.provider.isStillValid, self.info, name, self._credentialsVersion
            )
            if isAwaitable(isValid):
                isValid = await isValid
            if not isValid:
                raise POP3ResponseError("Account is no longer valid.", "AUTH")
        self._releaseSlot = self._acquireSlot(name or "", False)
        try:
            return await self.active.wake()
        except CancelledError:
            # Do not return the slot here, because end() returns it.
            raise
        except Exception:
            self._returnSlot()
            raise

    def _returnSlot(self) -> None:
        releaseSlot, self._releaseSlot = self._releaseSlot, None
        if releaseSlot is not None:
            releaseSlot(self._isIn)

    # --- leaving ------------------------------------------------------------

    def quit(self) -> ValueOrDeferred[int]:
        """
        Enter the UPDATE state (RFC 1939 section 6).  Delete the marked messages.  Release the
        mailbox even if the deletion has failed.

        @return: the number of deleted messages.
        @raise POP3ResponseError: see L{Transaction.commit}.
        """
        if self.state is not State.TRANSACTION:
            return 0
        transaction = self.active
        if transaction.hasMarks or transaction.deletion is not None:
            return startNow(self._update(transaction))
        return then(self._leave(), lambda _: 0)

    async def _update(self, transaction: Transaction) -> int:
        try:
            return await settled(transaction.commit())
        finally:
            # Keep the lock during a running deletion.  The method end() releases it after the
            # deletion.
            if transaction.deletion is None:
                await settled(self._leave())

    def logOut(self) -> ValueOrDeferred[object]:
        """
        Delete the marked messages, release the mailbox, and forget the user
        (docs/extensions, QAUT).

        @raise POP3ResponseError: see L{Transaction.commit}.
        """
        return then(self.active.commit(), lambda _: self._leave())

    def end(self) -> ValueOrDeferred[None]:
        """
        End the session.  Wait for a running deletion, and then release everything.  Do not delete
        the marked messages.
        """
        self.isOver = True
        return inTurn(self._ending())

    def _ending(self) -> Iterator[ValueOrDeferred[object]]:
        if self.transaction is not None:
            deletion, self.transaction.deletion = self.transaction.deletion, None
            if deletion is not None:
                yield startNow(_finished(deletion))
        yield self._leave()
        if self._leaving is not None:
            yield self._leaving.outcome()
        self.state = State.CLOSED

    def _leave(self) -> ValueOrDeferred[None]:
        # Clear the attributes before the release begins, so that a second call releases nothing
        # twice.  Protect the release from cancellation, so that it always ends.
        transaction, self.transaction = self.transaction, None
        self._credentialsVersion = ""
        self._returnSlot()
        self._isIn = False
        self.info.userNameAtLogin = None
        if transaction is None:
            self.info.providerTag = None
            return None
        self._leaving = Shielded(transaction.end)
        return self._leaving.outcome()


async def _finished(deletion: Shielded) -> None:
    """
    Wait for the end of a deletion whose session is ending.
    """
    try:
        await settled(deletion.outcome())
    except Exception:
        log.failure("a deletion failed after its client was gone")
