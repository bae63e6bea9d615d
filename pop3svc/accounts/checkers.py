"""
A mailbox provider made of twisted.cred checkers and a mailbox store.
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
    Finds facts about users in the sources of accounts of one store.  The first source that knows a
    user decides, both for logins and for new mail.
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
    A checker that has accepted a user.

    @ivar checker: the index of the checker.
    @ivar name: the user's name there.
    @ivar version: see L{IPasswordAttempt.version}.
    """

    checker: int
    name: str
    version: str = ""


@implementer(IPOP3MailboxProvider, IMailboxStore, IAccountStatus, IExpiry, IProvenAccounts)
class AccountsProvider:
    """
    Authenticates a user with the first checker that accepts the password, and opens the
    user's mailbox in the store.

    @ivar expireDays: see L{IExpiry}.
    """

    def __init__(
        self, store: Any, checkers: Sequence[Any], patience: float = Policy.loginWait
    ) -> None:
        """
        @param store: L{IMailboxStore}
        @param checkers: L{ICredentialsChecker}s for L{twisted.cred.credentials.IUsernamePassword},
            asked in this order.  A checker for L{IBearerToken} alone checks no passwords.
        @param patience: how many seconds a login may wait for its password check to begin.
        """
        self._store = IMailboxStore(store)
        self._checkers = [ICredentialsChecker(checker) for checker in checkers]
        # The other checkers may compare at once, without calling IPasswordAttempt.comparing.
        self._reportsGuesses = [
            IPasswordAttempt in each.credentialInterfaces for each in self._checkers
        ]
        self._patience = patience
        self._scram = self._those(IScramAccounts)
        self._secrets = self._those(ISharedSecrets)
        self._bearer = self._those(IBearerAccounts)
        # For each connection, the checker that accepted the user, because IAccountStatus is a
        # question to that checker.  It is not in info.providerTag, because that attribute belongs
        # to the store.
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
            # A value that is not a name, such as the empty tuple ANONYMOUS, means that there is no
            # user.
            if isinstance(avatarID, str) and avatarID:
                if attempt is not None:
                    # The password was right, so a later failure does not count as a wrong guess.
                    attempt.isGuess = attempt.wasRefused = False
                self._acceptedBy[info] = _Accepted(index, avatarID, credentials.version)
                return await maybeAwait(self._store.openMailbox, info, avatarID)
        return None

    def _those(self, interface: InterfaceClass) -> list[tuple[int, Any]]:
        """
        @return: the checkers that provide an interface, with their indices.  If there are any, also
            declare that this provider provides the interface.
        """
        found = [
            (index, each) for index, each in enumerate(self._checkers) if interface.providedBy(each)
        ]
        if found:
            alsoProvides(self, interface)
        return found

    async def sharedSecret(self, info: IPOP3ConnectionInfo, username: str) -> SharedSecret | None:
        """
        See L{ISharedSecrets.sharedSecret}; of the first checker that has one.
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
        See L{IScramAccounts.exampleScramKeys}; of the first checker that has keys.
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
        See L{IBearerAccounts.userOfToken}; of the first checker that accepts the token.
        """
        attempt = getattr(info, "loginAttempt", None)
        for index, checker in self._bearer:
            if attempt is not None:
                # A checker may set this to False until it checks the token.
                attempt.isGuess = True
            name: str | None = await maybeAwait(checker.userOfToken, info, token, username)
            if name is not None:
                self._acceptedBy[info] = _Accepted(index, name)
                return name
        return None

    async def provenMailbox(self, info: IPOP3ConnectionInfo, username: str) -> str | None:
        """
        See L{IProvenAccounts.provenMailbox}; of the first checker that has the account.  Do not ask
        checkers that cannot tell which accounts exist, because they would accept a removed account.
        If no checker can tell, accept every user.
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
        # If there is no checker, a mechanism has authenticated the user.
        return None if accepted is None else IAccountStatus(self._checkers[accepted.checker], None)

    def credentialsVersion(self, info: IPOP3ConnectionInfo, username: str) -> Any:
        """
        See L{IAccountStatus.credentialsVersion}; empty if the checker does not provide it.
        """
        accepted = self._acceptedBy.get(info)
        status = self._statusOf(accepted)
        if accepted is None or status is None:
            return ""
        return accepted.version or status.credentialsVersion(info, accepted.name)

    def isStillValid(self, info: IPOP3ConnectionInfo, username: str, version: str) -> Any:
        """
        See L{IAccountStatus.isStillValid}; true if the checker does not provide it.
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
            # This value is left over from a cancelled exchange, or from an earlier login.
            del self._acceptedBy[info]
        return self._store.openMailbox(info, username)
