"""
Check the credentials of a client, such as a password, a digest or a bearer token.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import CancelledError
from twisted.logger import Logger
from zope.interface import Invalid, providedBy
from zope.interface.verify import verifyObject

from pop3svc.awaiting import Shielded, ValueOrDeferred, isAwaitable, settled, then
from pop3svc.errors import POP3ResponseError, ProviderMistake
from pop3svc.interfaces import (
    ILoginThrottle,
    IMailboxLogout,
    IPOP3ConnectionInfo,
    IPOP3Mailbox,
    SharedSecret,
)
from pop3svc.policy import Policy
from pop3svc.preparation import prepareName, preparePassword
from pop3svc.protocol.providercalls import ProviderCalls
from pop3svc.protocol.remarks import nameOf, printable

__all__ = ["Authentication", "Password", "Proven"]

log = Logger(namespace="pop3svc")


@dataclass(frozen=True, slots=True, repr=False)
class Password:
    """
    A name and a password.  The provider has to check them.

    @ivar isUsable: whether the name and the password can be prepared (RFC 8265).  If not, the login
        is refused, but after the same check as for an unknown user.
    """

    name: str
    password: str
    isUsable: bool = True


@dataclass(frozen=True, slots=True)
class Proven:
    """
    The name of a user whom APOP or a SASL mechanism has authenticated.  The provider must provide
    L{pop3svc.interfaces.IMailboxStore}, because the service calls its method C{openMailbox}.

    @ivar mailbox: the name of the mailbox; empty if the mailbox has the same name as the login.
    """

    name: str
    mailbox: str = ""


def _verified(call: Any, mailbox: Any) -> Any:
    """
    @param call: the method that has returned C{mailbox}.
    @return: the mailbox, or an adapter for it.
    @raise ProviderMistake: C{mailbox} is not a mailbox.
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
                # Skip the interface, because zope.interface fails if a method is declared without
                # self, as "def method(*arguments)".
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


# The set keeps references to classes.  This is no leak, because providers have few classes of
# mailboxes.
_verifiedClasses: set[type] = set()


class Authentication:
    """
    Checks the credentials of one session, and counts wrong guesses.

    @ivar secret: octets that nobody outside this service knows.
    """

    def __init__(
        self,
        info: IPOP3ConnectionInfo,
        provider: Any,
        policy: Policy,
        calls: ProviderCalls,
        throttle: Any = None,
        secret: bytes = b"",
    ) -> None:
        """
        @param provider: an L{pop3svc.interfaces.IPOP3MailboxProvider}.
        @param throttle: an L{ILoginThrottle}; L{None} if logins are not throttled.
        """
        self._info = info
        self._provider = provider
        self._policy = policy
        self._calls = calls
        self._throttle = None if throttle is None else ILoginThrottle(throttle)
        self.secret = secret
        self._failedLogins = self._exchanges = 0
        self._wasChecked = self._isRepeated = False

    # --- names and passwords ------------------------------------------------

    def prepareName(self, name: str) -> tuple[str, bool]:
        """
        Prepare a name that the client has sent (RFC 8265 section 3).  Call this method before the
        name is looked up anywhere.

        @return: the prepared name, and True.  If the name cannot be prepared, the values are a name
            that no user has, and False.  The caller has to look up this name as well, so that the
            refusal takes as long as for an unknown user.
        """
        try:
            return prepareName(name, self._policy.nameCase == "mapped"), True
        except ValueError:
            return self._standIn(name), False

    def prepared(self, given: Password) -> Password:
        """
        @return: credentials with the prepared name and the prepared password; see L{prepareName}.
        """
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
        @return: a text that nobody can guess.  The same argument always gives the same text, so
            that a wrong password that is repeated counts as one guess.
        """
        # Encode surrogates as well, because a user name from an OAuth server may contain any
        # surrogate.
        octets = text.encode("utf-8", "surrogatepass")
        return "-" + hmac.digest(self.secret, b"prepare\0" + octets, "sha256").hex()

    def tell(self, name: str, refusal: str | None) -> None:
        """
        Log the outcome of a login.

        @param refusal: the response code of the refusal, which may be empty; L{None} if the login
            succeeded.
        """
        # Do not change the text below, because contrib/fail2ban matches it.  A refusal with another
        # code has no text, because it is not a wrong guess.  The throttle itself logs the attempts
        # that it refuses.
        isFailure = refusal == "AUTH" and self._wasChecked and not self._isRepeated
        text = "failed login from {clientIP}: {user}" if isFailure else None
        if text is None and not self._policy.verboseEvents:
            return
        log.info(
            text,
            pop3Event="login",
            connectionID=self._info.connectionID,
            clientIP=self._info.clientIP,
            isSecure=self._info.isSecure,
            user=printable(name) or "(none)",
            succeeded=refusal is None,
            code=refusal,
        )

    # --- the provider's answer ----------------------------------------------

    async def mailboxOf(self, credentials: Password | Proven) -> Any:
        """
        Check a password, or open the mailbox of a user whom a mechanism has authenticated.  If the
        password was right, the caller has to call L{succeeded} afterwards.

        @param credentials: see L{prepared}.
        @return: an L{IPOP3Mailbox}.
        @raise POP3ResponseError: the login is refused, or the mailbox is not available.
        """
        self._wasChecked = self._isRepeated = False
        if isinstance(credentials, Proven):
            opened = credentials.mailbox or credentials.name
            call = self._provider.openMailbox
            mailbox = await settled(self._calls.finish(call, self._info, opened))
            self._keepOrRelease(mailbox)
            if mailbox is None:
                raise self._wrong()
            return _verified(call, mailbox)
        name, password = credentials.name, credentials.password
        if not name or not password:
            raise POP3ResponseError("A user name and a password are required.", "AUTH")
        admitted = self._admit(name, password)
        if isAwaitable(admitted):
            await admitted
        call = self._provider.authenticate
        try:
            mailbox = self._calls.finish(call, self._info, name, password)
            if isAwaitable(mailbox):
                mailbox = await mailbox
            self._keepOrRelease(mailbox)
            if mailbox is not None:
                mailbox = _verified(call, mailbox)
                if credentials.isUsable:
                    return mailbox
                # Release the mailbox that the provider has returned, because the name or the
                # password cannot be prepared.
                if IMailboxLogout.providedBy(mailbox):
                    await settled(Shielded(self._calls.release, mailbox.logout).outcome())
            raise POP3ResponseError("Wrong name or password.", "AUTH")
        except BaseException as error:
            if not isinstance(error, POP3ResponseError) or error.code != "AUTH":
                self._abandon(name, isinstance(error, CancelledError))
                raise
            raise await self._refusal(name)

    def _keepOrRelease(self, mailbox: Any) -> None:
        """
        Release a mailbox that the provider has returned although the call was cancelled.

        @raise CancelledError: the session has ended.
        """
        if self._calls.isOver:
            if IMailboxLogout.providedBy(mailbox):
                self._calls.release(mailbox.logout)
            raise CancelledError()

    def succeeded(self, name: str) -> ValueOrDeferred[object]:
        """
        Tell the throttle that a user has been authenticated.
        """
        self._exchanges = 0
        if self._throttle is None:
            return None
        return self._calls.ask(self._throttle.loginSucceeded, self._info, name)

    # --- guesses ------------------------------------------------------------

    def _admit(self, name: str, guess: str | None) -> ValueOrDeferred[None]:
        """
        Ask the throttle whether a guess may be checked.

        @param guess: the password; L{None} if the mechanism does not show the password to the
            service.
        @raise POP3ResponseError: the guess is refused.
        """
        self._wasChecked = self._isRepeated = False
        throttle = self._throttle
        if throttle is None:
            self._wasChecked = True
            return None
        mayLogin = self._calls.finish(throttle.mayLogin, self._info, name, guess)
        return then(mayLogin, lambda mayLogin: self._admitted(name, mayLogin))

    def _admitted(self, name: str, mayLogin: bool) -> None:
        if self._calls.isOver:
            if mayLogin:
                # Report the end of the attempt, because the throttle must learn how each admitted
                # attempt ends.
                self._abandon(name, False)
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
            failed = self._calls.ask(throttle.loginFailed, self._info, name)
            self._isRepeated = bool(await settled(failed))
        return self._wrong()

    def _abandon(self, name: str, isLost: bool) -> None:
        if self._throttle is not None:
            self._throttle.loginAbandoned(self._info, name, isLost)

    def _wrong(self) -> POP3ResponseError:
        self._failedLogins += 1
        return POP3ResponseError(
            "Wrong name or password.",
            "AUTH",
            critical=self._failedLogins >= self._policy.maxFailedLogins,
        )

    # --- mechanisms ---------------------------------------------------------

    def countExchange(self) -> None:
        """
        Count an exchange for which the provider looks up a user.  An exchange that the client does
        not finish is counted neither by the throttle nor by C{maxBadCommands}.  This method
        therefore limits the number of such exchanges on one connection.

        @raise POP3ResponseError: there were too many exchanges since the last login.
        """
        self._exchanges += 1
        if self._exchanges > self._policy.maxFailedLogins:
            raise POP3ResponseError("Too many logins were begun.", critical=True)

    async def prove(self, proven: Proven, isRight: bool, secret: str | None = None) -> None:
        """
        Count the outcome of a mechanism that checks the credentials itself.

        @param isRight: whether the client has proved its identity.
        @param secret: the proof that the client has sent, if the same wrong credentials always give
            the same text; otherwise L{None}.  The same text counts as one guess even if it is
            repeated.
        @raise POP3ResponseError: the client has not proved its identity, or the throttle refuses
            the guess.
        """
        name = proven.name
        try:
            await settled(self._admit(name, secret))
            if not isRight:
                raise await self._refusal(name)
        except POP3ResponseError as error:
            self.tell(name, error.code or "")
            raise
        await settled(self.succeeded(name))

    async def proveToken(self, name: str | None, token: str) -> Proven:
        """
        Let the provider check a bearer token.  The attempt counts as in L{prove}.  If a client
        repeats an expired token, the attempts count as one guess.

        @param name: the name of the user that the client has sent; L{None} if it has sent no name.
        @return: the credentials for L{pop3svc.protocol.session.Session.logIn}.
        @raise POP3ResponseError: the token is refused, or cannot be checked now.
        """
        if name is None:
            # Check the token first, because nothing else tells whose attempt this is.
            user = await self._userOfToken(None, token)
            prepared, isUsable = self.prepareName(user or "")
            proven = Proven(prepared)
            await self.prove(proven, bool(user) and isUsable, token)
            return proven
        name, isUsable = self.prepareName(name)
        # Ask the throttle first, because the provider may have to ask another server.
        try:
            await settled(self._admit(name, token))
            user = await self._userOfToken(name, token)
            if not user or not isUsable or self.prepareName(user) != (name, True):
                raise await self._refusal(name)
        except POP3ResponseError as error:
            self.tell(name, error.code or "")
            raise
        await settled(self.succeeded(name))
        return Proven(name)

    async def _userOfToken(self, name: str | None, token: str) -> str | None:
        """
        @param name: the name of the user whose attempt the throttle has admitted; L{None} if the
            client has sent no name.
        """
        provider: Any = self._provider
        try:
            asked = self._calls.ask(provider.userOfToken, self._info, token, name)
            user: str | None = await settled(asked)
        except BaseException as error:
            if isinstance(error, POP3ResponseError) and error.code == "AUTH":
                return None
            if name is not None:
                self._abandon(name, isinstance(error, CancelledError))
            raise
        return user

    async def proveDigest(self, name: str, digest: str, makeDigest: Callable[[str], str]) -> Proven:
        """
        Check the digest of a challenge and a password.  The attempt counts as in L{prove}.

        @param digest: hexadecimal digits that the client has sent.
        @param makeDigest: takes a password and returns the right digest.
        @return: the credentials for L{pop3svc.protocol.session.Session.logIn}.
        @raise POP3ResponseError: the digest is wrong, or the throttle refuses the guess.
        """
        provider: Any = self._provider
        name, isUsable = self.prepareName(name)
        asked = self._calls.ask(provider.sharedSecret, self._info, name)
        found: SharedSecret | None = await settled(asked)
        # Compute a digest even if the user does not exist, so that the time is the same.
        password = secrets.token_hex(16) if found is None else found.password
        isRight = hmac.compare_digest(makeDigest(password), digest)
        proven = Proven(name, "" if found is None else found.mailbox)
        await self.prove(proven, isRight and isUsable and found is not None)
        return proven
