"""
The session of one client: its state, its identity and its login.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import Invalid, implementer, providedBy
from zope.interface.verify import verifyObject

from pop3svc.awaiting import Shielded
from pop3svc.errors import POP3ResponseError, ProviderMistake
from pop3svc.interfaces import (
    IAccountStatus,
    ILoginThrottle,
    IPOP3ConnectionInfo,
    IPOP3Mailbox,
    IPOP3MailboxProvider,
    ISharedSecrets,
    SharedSecret,
)
from pop3svc.languages import Language
from pop3svc.networks import isLoopback
from pop3svc.policy import Policy
from pop3svc.preparation import prepareName, preparePassword
from pop3svc.protocol.challenges import makeChallenge
from pop3svc.protocol.providercalls import ProviderCalls
from pop3svc.protocol.record import SessionRecord
from pop3svc.protocol.remarks import nameOf
from pop3svc.protocol.transaction import Transaction

__all__ = [
    "ConnectionInfo",
    "Exchange",
    "Password",
    "Proven",
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
    The state of a session (RFC 1939 section 3; for SLEEPING see docs/extensions, SLEE).  The
    UPDATE state has no value here, because it exists only while QUIT runs.
    """

    # Use the hash of the identity, because it is cheaper, and each command looks up a state in a
    # set.
    __hash__ = object.__hash__

    AUTHORIZATION = "AUTHORIZATION"
    TRANSACTION = "TRANSACTION"
    SLEEPING = "SLEEPING"
    CLOSED = "CLOSED"


def _verified(call: Any, mailbox: Any) -> Any:
    """
    @param call: the method that returned a mailbox.
    @return: the mailbox, or its adapter.
    @raise ProviderMistake: the method returned no mailbox.
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
                # zope.interface fails for a method whose only parameter is "*arguments".
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


# To hold the classes leaks no memory, because they are few, and Python does not unload them.
_verifiedClasses: set[type] = set()


_NO_MECHANISMS: Mapping[str, Any] = {}


def _admitAll(name: str, isLogin: bool) -> Callable[[bool], object]:
    return lambda isIn: None


def noBinding(name: str) -> bytes | None:
    """
    The value of L{Session.channelBinding} for a connection without TLS.

    @return: L{None}
    """
    return None


def noNames() -> tuple[str, ...]:
    """
    The value of L{Session.certificateNames} for a connection without TLS.

    @return: no names.
    """
    return ()


def keepLanguage(language: Language | None) -> None:
    """
    The value of L{Session.useLanguage} without a connection.
    """


def refuseRelease(isMarked: bool) -> bool:
    """
    The default value of L{Session.tryRelease}: the session does not end itself.

    @param isMarked: whether any message is marked.
    @return: False.
    """
    return False


def _printable(name: str) -> str:
    """
    @return: the name for the log, escaped if it has unprintable characters.
    """
    return name if name.isprintable() else ascii(name)[1:-1]


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
        Whether the client is on this machine.  A client of a UNIX socket has no address.
        """
        return isLoopback(self.clientIP)


@dataclass(frozen=True, slots=True, repr=False)
class Password:
    """
    A name and a password, which the provider has to check.

    @ivar isUsable: whether both can be prepared (RFC 8265).  If not, the login is refused after
        the same check as for an unknown user.
    """

    name: str
    password: str
    isUsable: bool = True


@dataclass(frozen=True, slots=True)
class Proven:
    """
    The name of a user whom a SASL mechanism has authenticated.  The provider has to be an
    L{pop3svc.interfaces.IMailboxStore}, because C{openMailbox} opens the mailbox.

    @ivar mailbox: the name of the mailbox; empty if it is the name of the login.
    """

    name: str
    mailbox: str = ""


class Exchange(Protocol):
    """
    An unfinished exchange inside one command.  The client's next line belongs to it, and is
    not a command.
    """

    command: Any

    async def respond(self, line: bytes) -> Any:
        """
        Answer the client's next line.

        @return: a L{pop3svc.protocol.replies.Reply}; if it is not a challenge, the exchange is
            over.
        """


class Session:
    """
    One client's session: its state, its identity, its login, and its transaction.

    @ivar state: the state; the dispatcher sets it, and L{end} closes it.
    @ivar claimedName: the name of an accepted USER that waits for its PASS.
    @ivar exchange: the unfinished AUTH, or L{None}.
    @ivar badCommands: how many commands in a row were invalid.
    @ivar mayStartTLS: whether there is a certificate for STLS.
    @ivar tryRelease: called when another session of the user wants the mailbox.  Takes whether
        any message is marked, and returns whether this session ends itself now.  The
        connection sets it.
    @ivar channelBinding: takes the name of a channel binding, returns its octets, or L{None} if
        the connection has no such binding.  The connection sets it.
    @ivar timestamp: the challenge of APOP in the greeting; empty without APOP.
    @ivar certificateNames: returns the users that the client's verified certificate names.  The
        connection sets it.
    @ivar isUTF8: whether the client can read UTF-8 in header fields, because it has sent UTF8
        (RFC 6856 section 2.1).
    @ivar useLanguage: takes the L{Language} of all further replies, L{None} for English.  The
        connection sets it.
    @ivar secret: octets that only this service knows.
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
        @param commands: every L{pop3svc.protocol.dispatch.Command} of the service, for CAPA.
        @param mechanisms: every L{pop3svc.protocol.sasl.Mechanism} of the service by name, for
            CAPA and AUTH.
        @param provider: L{IPOP3MailboxProvider}
        @param throttle: L{ILoginThrottle} or L{None}
        @param acquireSlot: called before a login and before WAKE.  Takes the user's name, and
            whether this is a login.  Raises L{POP3ResponseError} if there are too many
            sessions, or the user logs in again too soon.  Otherwise it returns a function.  The
            session calls that function once, when it falls asleep or ends.  The argument says
            whether the login succeeded.
        @param makeRecord: L{SessionRecord}, or a subclass that also counts for the whole service.
        @param makeCalls: L{ProviderCalls}, or a subclass that also measures.
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
        self._throttle = None if throttle is None else ILoginThrottle(throttle)
        self.state = State.AUTHORIZATION
        self.claimedName: str | None = None
        self.exchange: Exchange | None = None
        self.tryRelease = refuseRelease
        self.channelBinding: Callable[[str], bytes | None] = noBinding
        self.certificateNames: Callable[[], tuple[str, ...]] = noNames
        self.isUTF8 = False
        self.useLanguage: Callable[[Language | None], object] = keepLanguage
        self.secret = secret
        isOffered = "APOP" in policy.enable and ISharedSecrets.providedBy(provider)
        self.timestamp = makeChallenge() if isOffered and policy.has("APOP") else ""
        self.badCommands = 0
        self._failedLogins = self._exchanges = 0
        self._wasChecked = self._isRepeated = False
        self.transaction: Transaction | None = None
        self._credentialsVersion = ""
        self._leaving: Shielded | None = None

    @property
    def greeting(self) -> str:
        """
        The text of the greeting (RFC 1939 section 4), with the timestamp of APOP if that is on.
        """
        text = f"{self.provider.name} ready."
        return f"{text} {self.timestamp}" if self.timestamp else text

    @property
    def isOver(self) -> bool:
        """
        Whether the client is gone.  No new work begins then.
        """
        return self.calls.isOver

    @isOver.setter
    def isOver(self, isOver: bool) -> None:
        self.calls.isOver = isOver

    def enter(self, state: State) -> None:
        """
        Set the state.  Only the dispatcher calls this.
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
        Check credentials and open the mailbox.  Every command that logs in calls this.

        @param method: the command, and the mechanism of AUTH, for the log.
        @raise POP3ResponseError: the login is refused, or the mailbox is not available.
        """
        given = credentials
        if isinstance(credentials, Password):
            credentials = self._prepared(credentials)
        name = credentials.name
        try:
            transaction = await self._authenticate(credentials)
            self._releaseSlot = self._acquireSlot(name, True)
            self.info.userNameAtLogin = name
            if IAccountStatus.providedBy(self.provider):
                self._credentialsVersion = await self.calls.ask(
                    self.provider.credentialsVersion, self.info, name
                )
            await transaction.begin()
            self._isIn = True
        except CancelledError:
            # The client is lost; end() releases everything.
            raise
        except Exception as error:
            if isinstance(error, POP3ResponseError):
                isUsable = isinstance(credentials, Proven) or credentials.isUsable
                self._loginEvent(name if isUsable else given.name, error.code or "")
            await self._leave()
            raise
        self.record.user = _printable(name)
        self.record.loginMethod = method
        self._loginEvent(name, None)

    def prepareName(self, name: str) -> tuple[str, bool]:
        """
        Prepare a name that the client has sent, before anything looks it up (RFC 8265 section 3).

        @return: the prepared name and True; or a name that no user has and False, if the name
            cannot be prepared.  Look up this name all the same, because the time must not tell the
            difference to an unknown user.
        """
        try:
            return prepareName(name, self.policy.nameCase == "mapped"), True
        except ValueError:
            return self._standIn(name), False

    def _prepared(self, given: Password) -> Password:
        name, isUsable = self.prepareName(given.name)
        try:
            password = preparePassword(given.password)
        except ValueError:
            password, isUsable = self._standIn(given.password), False
        if name is given.name and password is given.password:
            return given
        return Password(name, password, isUsable)

    def _standIn(self, text: str) -> str:
        """
        @return: a text that nobody can guess, always the same for a text.  Repeating one wrong
            password then counts as one guess.
        """
        # A token of an OAuth server may contain any surrogate.
        octets = text.encode("utf-8", "surrogatepass")
        return "-" + hmac.digest(self.secret, b"prepare\0" + octets, "sha256").hex()

    def _loginEvent(self, name: str, refusal: str | None) -> None:
        # Do not change this text, because contrib/fail2ban matches it.  Other refusals are no wrong
        # guesses.  The throttle itself logs the attempts that it refuses.
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

    async def _authenticate(self, credentials: Password | Proven) -> Transaction:
        self._wasChecked = self._isRepeated = False
        if isinstance(credentials, Proven):
            return await self._open(credentials)
        name, password = credentials.name, credentials.password
        if not name or not password:
            raise POP3ResponseError("A user name and a password are required.", "AUTH")
        info, throttle = self.info, self._throttle
        await self._admit(name, password)
        try:
            mailbox = await self.calls.ask(self.provider.authenticate, info, name, password)
            if mailbox is None:
                raise POP3ResponseError("Wrong name or password.", "AUTH")
            mailbox = _verified(self.provider.authenticate, mailbox)
            if not credentials.isUsable:
                # A provider has accepted a password that the client has not sent.  _leave()
                # releases the mailbox.
                self.transaction = self._transaction(name, mailbox)
                raise POP3ResponseError("Wrong name or password.", "AUTH")
        except BaseException as error:
            if not isinstance(error, POP3ResponseError) or error.code != "AUTH":
                if throttle is not None:
                    throttle.loginAbandoned(info, name, isinstance(error, CancelledError))
                raise
            raise await self._refusal(name)
        self.transaction = transaction = self._transaction(name, mailbox)
        if throttle is not None:
            await self.calls.ask(throttle.loginSucceeded, info, name)
        return transaction

    async def _admit(self, name: str, guess: str | None) -> None:
        """
        Ask whether a guess may be checked.

        @param guess: the password; L{None} if a mechanism does not show it.
        @raise POP3ResponseError: the guess is refused.
        """
        self._wasChecked = self._isRepeated = False
        throttle = self._throttle
        if throttle is not None:
            mayLogin = await self.calls.finish(throttle.mayLogin, self.info, name, guess)
            if self.isOver:
                if mayLogin:
                    # The throttle has to learn how each admitted attempt ends.
                    throttle.loginAbandoned(self.info, name, False)
                raise CancelledError()
            if not mayLogin:
                raise self._wrong()
        self._wasChecked = True

    async def _refusal(self, name: str) -> POP3ResponseError:
        """
        Count a wrong guess.

        @return: the error to raise.  All refusals of a login have the same text.
        """
        throttle = self._throttle
        if throttle is not None:
            self._isRepeated = bool(await self.calls.ask(throttle.loginFailed, self.info, name))
        return self._wrong()

    def countExchange(self) -> None:
        """
        Count an exchange for which the provider looks up a user.  Neither the throttle nor
        C{maxBadCommands} counts an exchange that the client does not finish, so this bounds the
        look-ups of one connection.

        @raise POP3ResponseError: there were too many since the last successful login.
        """
        self._exchanges += 1
        if self._exchanges > self.policy.maxFailedLogins:
            raise POP3ResponseError("Too many logins were begun.", critical=True)

    async def prove(self, proven: Proven, isRight: bool, secret: str | None = None) -> None:
        """
        Count the outcome of a mechanism that checks the credentials itself.

        @param isRight: whether the client has proved that it is the user.
        @param secret: what the client has sent to prove it, if the same wrong credentials are
            always the same text.  Repeating the text then counts once.
        @raise POP3ResponseError: it has not, or the guess is refused.
        """
        name = proven.name
        try:
            await self._admit(name, secret)
            if not isRight:
                raise await self._refusal(name)
        except POP3ResponseError as error:
            self._loginEvent(name, error.code or "")
            raise
        await self._succeeded(name)

    async def _succeeded(self, name: str) -> None:
        self._exchanges = 0
        if self._throttle is not None:
            await self.calls.ask(self._throttle.loginSucceeded, self.info, name)

    async def proveToken(self, name: str | None, token: str) -> Proven:
        """
        Let the provider check a bearer token.  Counts as in L{prove}; a client that repeats an
        expired token counts once.

        @param name: the user as whom the client wants to log in; L{None} if it names none.
        @return: the credentials for L{logIn}.
        @raise POP3ResponseError: the token is refused, or cannot be checked now.
        """
        if name is None:
            # Only the token tells whose attempt this is.
            user = await self._userOfToken(None, token)
            prepared, isUsable = self.prepareName(user or "")
            proven = Proven(prepared)
            await self.prove(proven, bool(user) and isUsable, token)
            return proven
        name, isUsable = self.prepareName(name)
        # Ask the throttle first, because the provider may have to ask another server.
        try:
            await self._admit(name, token)
            user = await self._userOfToken(name, token)
            if not user or not isUsable or self.prepareName(user) != (name, True):
                raise await self._refusal(name)
        except POP3ResponseError as error:
            self._loginEvent(name, error.code or "")
            raise
        await self._succeeded(name)
        return Proven(name)

    async def _userOfToken(self, name: str | None, token: str) -> str | None:
        """
        @param name: the user whose attempt the throttle has admitted, or L{None}.
        """
        provider: Any = self.provider
        try:
            user: str | None = await self.calls.ask(provider.userOfToken, self.info, token, name)
        except BaseException as error:
            if isinstance(error, POP3ResponseError) and error.code == "AUTH":
                return None
            if self._throttle is not None and name is not None:
                isLost = isinstance(error, CancelledError)
                self._throttle.loginAbandoned(self.info, name, isLost)
            raise
        return user

    async def proveDigest(self, name: str, digest: str, makeDigest: Callable[[str], str]) -> Proven:
        """
        Check the digest of a challenge and a password.  Counts as in L{prove}.

        @param digest: hexadecimal digits that the client has sent.
        @param makeDigest: takes a password, returns the right digest.
        @return: the credentials for L{logIn}.
        @raise POP3ResponseError: the digest is wrong, or the guess is refused.
        """
        provider: Any = self.provider
        name, isUsable = self.prepareName(name)
        found: SharedSecret | None = await self.calls.ask(provider.sharedSecret, self.info, name)
        # Compute a digest also for a user that does not exist, because it takes time.
        password = secrets.token_hex(16) if found is None else found.password
        isRight = hmac.compare_digest(makeDigest(password), digest)
        proven = Proven(name, "" if found is None else found.mailbox)
        await self.prove(proven, isRight and isUsable and found is not None)
        return proven

    async def _open(self, proven: Proven) -> Transaction:
        """
        Open the mailbox of a user whose name a mechanism has proved.
        """
        provider: Any = self.provider
        name = proven.name
        mailbox = await self.calls.ask(provider.openMailbox, self.info, proven.mailbox or name)
        if mailbox is None:
            raise self._wrong()
        self.transaction = self._transaction(name, _verified(provider.openMailbox, mailbox))
        return self.transaction

    def _transaction(self, name: str, mailbox: Any) -> Transaction:
        policy = self.policy
        return Transaction(
            self.calls,
            self.info,
            mailbox,
            _printable(name),
            self.record,
            self._requestRelease,
            "UID-PARAM" not in policy.without,
            "" if self.isUTF8 or "UTF8" in policy.without else policy.utf8Headers,
        )

    def _wrong(self) -> POP3ResponseError:
        self._failedLogins += 1
        return POP3ResponseError(
            "Wrong name or password.",
            "AUTH",
            critical=self._failedLogins >= self.policy.maxFailedLogins,
        )

    def _requestRelease(self) -> bool:
        """
        Answer another session of the same user, which waits for the lock.

        @return: whether this session ends itself.
        """
        transaction = self.transaction
        if self.isOver or self.state is not State.TRANSACTION or transaction is None:
            return False
        return self.tryRelease(transaction.hasMarks)

    # --- asleep and awake ---------------------------------------------------

    @property
    def active(self) -> Transaction:
        """
        The transaction, for commands that are valid only inside a transaction.
        """
        assert self.transaction is not None, "this command needs another state"
        return self.transaction

    async def sleep(self) -> int:
        """
        Delete the marked messages, release the mailbox, and keep the user
        (docs/extensions, SLEE).

        @return: how many messages were deleted.
        @raise POP3ResponseError: nothing has changed.
        """
        deleted = await self.active.sleep()
        self._returnSlot()
        return deleted

    async def wake(self) -> bool:
        """
        Take the mailbox again (docs/extensions, WAKE).

        @return: whether the listing has a unique-id that was not listed before SLEE.
        @raise POP3ResponseError: the session is still asleep, and holds no lock.
        """
        name = self.info.userNameAtLogin
        if IAccountStatus.providedBy(self.provider) and not await self.calls.ask(
            self.provider.isStillValid, self.info, name, self._credentialsVersion
        ):
            raise POP3ResponseError("Account is no longer valid.", "AUTH")
        self._releaseSlot = self._acquireSlot(name or "", False)
        try:
            return await self.active.wake()
        except CancelledError:
            # end() returns the slot.
            raise
        except Exception:
            self._returnSlot()
            raise

    def _returnSlot(self) -> None:
        releaseSlot, self._releaseSlot = self._releaseSlot, None
        if releaseSlot is not None:
            releaseSlot(self._isIn)

    # --- leaving ------------------------------------------------------------

    async def quit(self) -> int:
        """
        Enter the UPDATE state (RFC 1939 section 6): delete the marked messages, and release
        the mailbox whether or not the deletion worked.

        @return: how many messages were deleted.
        @raise POP3ResponseError: nothing was deleted.
        """
        if self.state is not State.TRANSACTION:
            return 0
        transaction = self.active
        try:
            return await transaction.commit()
        finally:
            # A running deletion still needs the lock.  end() releases the lock after the deletion.
            if transaction.deletion is None:
                await self._leave()

    async def logOut(self) -> None:
        """
        Delete the marked messages, release the mailbox, and forget the user
        (docs/extensions, QAUT).

        @raise POP3ResponseError: nothing has changed.
        """
        await self.active.commit()
        await self._leave()

    async def end(self) -> None:
        """
        Wait for a running deletion, and release everything, because the client is lost, timed out
        or done.  Do not delete the marked messages.
        """
        self.isOver = True
        if self.transaction is not None:
            deletion, self.transaction.deletion = self.transaction.deletion, None
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
        # Clear the attributes before the first await, so that a second call releases nothing
        # twice.  Shield the release from cancellation, so that it always completes.
        transaction, self.transaction = self.transaction, None
        self._credentialsVersion = ""
        self._returnSlot()
        self._isIn = False
        self.info.userNameAtLogin = None
        if transaction is None:
            self.info.providerTag = None
        else:
            self._leaving = Shielded(transaction.end)
            await self._leaving.outcome()
