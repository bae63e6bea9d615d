"""
A mailbox provider that uses checkers of twisted.cred and a mailbox store.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.error import LoginFailed, UnhandledCredentials
from zope.interface import alsoProvides, implementer
from zope.interface.interface import InterfaceClass

from pop3svc.awaiting import maybeAwait
from pop3svc.credentials import IBearerToken, IPasswordAttempt, PasswordAttempt
from pop3svc.interfaces import (
    IAccountNames,
    IAccountStatus,
    IBearerAccounts,
    IExpiry,
    IMailboxStore,
    IPOP3ConnectionInfo,
    IPOP3MailboxProvider,
    IProvenAccounts,
    IScramAccounts,
    ISharedSecrets,
    IUserFacts,
    IUsesUserFacts,
    ScramKeys,
    SharedSecret,
    UserFacts,
)
from pop3svc.policy import Policy

__all__ = ["AccountFacts", "AccountsProvider"]


@implementer(IUserFacts)
class AccountFacts:
    """
    Finds facts about the users of one store in the sources of accounts.  The facts come from the
    first source that knows the user, for logins as well as for new mail.
    """

    def __init__(self, accounts: Sequence[Any]) -> None:
        """
        @param accounts: the sources, in the order in which they are asked.
        """
        self._sources = [each for each in accounts if IUserFacts.providedBy(each)]

    async def factsOf(self, username: str) -> UserFacts | None:
        """
        See L{IUserFacts.factsOf}.
        """
        for each in self._sources:
            facts: UserFacts | None = await maybeAwait(each.factsOf, username)
            if facts is not None:
                return facts
        return None


class _Accepted(NamedTuple):
    """
    The checker that has accepted a login or has returned keys or a secret for it, and the user
    according to this checker.

    @ivar checker: the index of the checker in the list of checkers.
    @ivar name: the name of the user according to the checker.
    @ivar version: see L{IPasswordAttempt.version}.
    """

    checker: int
    name: str
    version: str = ""


@implementer(IPOP3MailboxProvider, IMailboxStore, IAccountStatus, IExpiry, IProvenAccounts)
class AccountsProvider:
    """
    Asks the checkers one after the other, until one accepts the password.  Then opens the mailbox
    of the user in the store.

    @ivar expireDays: see L{IExpiry}.
    """

    def __init__(
        self, store: Any, checkers: Sequence[Any], patience: float = Policy.loginWait
    ) -> None:
        """
        @param store: an L{IMailboxStore}.
        @param checkers: L{ICredentialsChecker}s for L{twisted.cred.credentials.IUsernamePassword},
            in the order in which they are asked.  A checker that supports no other credentials than
            L{IBearerToken} is not asked about passwords.
        @param patience: how many seconds a login may wait for its password check to begin.
        """
        self._store = IMailboxStore(store)
        self._checkers = [ICredentialsChecker(checker) for checker in checkers]
        # For each checker: whether it calls IPasswordAttempt.comparing before it compares a
        # password.
        self._reportsGuesses = [
            IPasswordAttempt in each.credentialInterfaces for each in self._checkers
        ]
        self._patience = patience
        self._scram = self._those(IScramAccounts)
        self._secrets = self._those(ISharedSecrets)
        self._bearer = self._those(IBearerAccounts)
        # For each connection: the checker that has accepted the user, or has returned keys or a
        # secret for the user.  Later questions of IAccountStatus go to this checker.  The checker
        # is not stored in info.providerTag, because the store uses that attribute.
        self._acceptedBy: WeakKeyDictionary[Any, _Accepted] = WeakKeyDictionary()
        if IUsesUserFacts.providedBy(store):
            store.useFacts(AccountFacts(checkers))
        self.name: str = store.name
        self.expireDays: int = store.expireDays if IExpiry.providedBy(store) else 0

    async def authenticate(self, info: IPOP3ConnectionInfo, username: str, password: str) -> Any:
        """
        See L{IPOP3MailboxProvider.authenticate}.
        """
        attempt = getattr(info, "loginAttempt", None)
        credentials = PasswordAttempt(
            username.encode("utf-8", "surrogateescape"),
            password.encode("utf-8", "surrogateescape"),
            attempt,
            self._patience,
            info.clientIP,
            info.isSecure,
        )
        if attempt is not None:
            attempt.isGuess = False
        for index, checker in enumerate(self._checkers):
            if tuple(checker.credentialInterfaces) == (IBearerToken,):
                continue
            if attempt is not None and not self._reportsGuesses[index]:
                attempt.isGuess = True
            try:
                avatarID = await maybeAwait(checker.requestAvatarId, credentials)
            except UnhandledCredentials:
                continue
            except LoginFailed:
                if attempt is not None and not self._reportsGuesses[index]:
                    attempt.wasRefused = True
                continue
            if isinstance(avatarID, bytes):
                avatarID = avatarID.decode("utf-8", "surrogateescape")
            # If the value is not a name, there is no user.  An example is the empty tuple
            # ANONYMOUS.
            if isinstance(avatarID, str) and avatarID:
                if attempt is not None:
                    # The password is right, so a later failure must not count as a wrong guess.
                    attempt.isGuess = attempt.wasRefused = False
                self._acceptedBy[info] = _Accepted(index, avatarID, credentials.version)
                return await maybeAwait(self._store.openMailbox, info, avatarID)
        return None

    def _those(self, interface: InterfaceClass) -> list[tuple[int, Any]]:
        """
        @return: the checkers that provide an interface, each with its index.  If there is such a
            checker, this method also declares that the provider provides the interface.
        """
        found = [
            (index, each) for index, each in enumerate(self._checkers) if interface.providedBy(each)
        ]
        if found:
            alsoProvides(self, interface)
        return found

    async def sharedSecret(self, info: IPOP3ConnectionInfo, username: str) -> SharedSecret | None:
        """
        See L{ISharedSecrets.sharedSecret}.  Return the secret from the first checker that has a
        secret.
        """
        for index, checker in self._secrets:
            secret: SharedSecret | None = await maybeAwait(checker.sharedSecret, info, username)
            if secret is not None:
                self._acceptedBy[info] = _Accepted(
                    index, secret.mailbox or username, secret.version
                )
                return secret
        return None

    async def scramKeys(
        self, info: IPOP3ConnectionInfo, username: str, algorithm: str, salt: bytes
    ) -> ScramKeys | None:
        """
        Return the keys of the first checker that has keys; see L{IScramAccounts.scramKeys}.
        """
        for index, checker in self._scram:
            keys: ScramKeys | None = await maybeAwait(
                checker.scramKeys, info, username, algorithm, salt
            )
            if keys is not None:
                self._acceptedBy[info] = _Accepted(index, keys.mailbox or username, keys.version)
                return keys
        return None

    def exampleScramKeys(self, username: str, algorithm: str, seed: bytes) -> ScramKeys | None:
        """
        See L{IScramAccounts.exampleScramKeys}.  Return the keys from the first checker that has
        keys.
        """
        for _, checker in self._scram:
            found: ScramKeys | None = checker.exampleScramKeys(username, algorithm, seed)
            if found is not None:
                return found
        return None

    async def userOfToken(
        self, info: IPOP3ConnectionInfo, token: str, username: str | None
    ) -> str | None:
        """
        See L{IBearerAccounts.userOfToken}.  Return the user from the first checker that accepts the
        token.
        """
        attempt = getattr(info, "loginAttempt", None)
        for index, checker in self._bearer:
            if attempt is not None:
                # Begin with True, because an earlier checker may have set False while it waited.
                attempt.isGuess = True
            name: str | None = await maybeAwait(checker.userOfToken, info, token, username)
            if name is not None:
                self._acceptedBy[info] = _Accepted(index, name)
                return name
        return None

    async def provenMailbox(self, info: IPOP3ConnectionInfo, username: str) -> str | None:
        """
        See L{IProvenAccounts.provenMailbox}.  Return the mailbox from the first checker that has
        the account.  Skip a checker that cannot tell which accounts exist, because the account may
        have been removed.  If there are checkers, but all are skipped, accept every user.
        """
        self._acceptedBy.pop(info, None)
        canTell = False
        for index, checker in enumerate(self._checkers):
            mailbox: str | None = None
            if IProvenAccounts.providedBy(checker):
                canTell = True
                mailbox = await maybeAwait(checker.provenMailbox, info, username)
            elif IAccountNames.providedBy(checker):
                canTell = True
                if await maybeAwait(checker.hasAccount, username):
                    mailbox = username
            if mailbox is not None:
                self._acceptedBy[info] = _Accepted(index, mailbox)
                return mailbox
        return None if canTell or not self._checkers else username

    def _statusOf(self, accepted: _Accepted | None) -> Any:
        # No checker is known if provenMailbox() has accepted a user although no checker can tell
        # which accounts exist.
        return None if accepted is None else IAccountStatus(self._checkers[accepted.checker], None)

    def credentialsVersion(self, info: IPOP3ConnectionInfo, username: str) -> Any:
        """
        See L{IAccountStatus.credentialsVersion}.  The version is empty if no checker has accepted
        the user, or if the checker does not provide L{IAccountStatus}.
        """
        accepted = self._acceptedBy.get(info)
        status = self._statusOf(accepted)
        if accepted is None or status is None:
            return ""
        return accepted.version or status.credentialsVersion(info, accepted.name)

    def isStillValid(self, info: IPOP3ConnectionInfo, username: str, version: str) -> Any:
        """
        See L{IAccountStatus.isStillValid}.  The result is true if no checker has accepted the user,
        or if the checker does not provide L{IAccountStatus}.
        """
        accepted = self._acceptedBy.get(info)
        status = self._statusOf(accepted)
        if accepted is None or status is None:
            return True
        return status.isStillValid(info, accepted.name, version)

    def openMailbox(self, info: IPOP3ConnectionInfo, username: str) -> Any:
        """
        See L{IMailboxStore.openMailbox}.
        """
        accepted = self._acceptedBy.get(info)
        if accepted is not None and accepted.name != username:
            # This entry is left over from a cancelled exchange, or from an earlier login.
            del self._acceptedBy[info]
        return self._store.openMailbox(info, username)
