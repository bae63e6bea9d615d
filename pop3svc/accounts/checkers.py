"""
Accounts that twisted.cred checkers know, and a store, make a provider.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.error import LoginFailed, UnhandledCredentials
from zope.interface import implementer

from pop3svc.accounts.credentials import IPasswordAttempt, PasswordAttempt
from pop3svc.awaiting import maybeAwait
from pop3svc.interfaces import (
    IAccountStatus,
    IMailboxStore,
    IPOP3ConnectionInfo,
    IPOP3MailboxProvider,
)
from pop3svc.policy import Policy

__all__ = ["AccountsProvider"]


@implementer(IPOP3MailboxProvider, IMailboxStore, IAccountStatus)
class AccountsProvider:
    """
    Whoever one of the checkers knows gets their mailbox from the store.
    """

    def __init__(
        self, store: Any, checkers: Sequence[Any], patience: float = Policy.loginWait
    ) -> None:
        """
        @param store: L{IMailboxStore}
        @param checkers: L{ICredentialsChecker}s for
            L{twisted.cred.credentials.IUsernamePassword}, asked in this order.
        @param patience: seconds that a login may wait for its turn to be checked.
        """
        self._store = IMailboxStore(store)
        self._checkers = [ICredentialsChecker(checker) for checker in checkers]
        # Others may compare at once, and do not tell.
        self._tells = [IPasswordAttempt in each.credentialInterfaces for each in self._checkers]
        self._patience = patience
        # Who vouched for the user of a connection, and under which name: whether they
        # may stay is asked there.  Not in info.providerTag, which is the store's.
        self._vouchers: WeakKeyDictionary[Any, tuple[int, str]] = WeakKeyDictionary()
        self.name: str = store.name

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
        )
        if attempt is not None:
            attempt.isGuess = False
        for index, checker in enumerate(self._checkers):
            if attempt is not None and not self._tells[index]:
                attempt.isGuess = True
            try:
                avatarID = await maybeAwait(checker.requestAvatarId, credentials)
            except UnhandledCredentials:
                continue
            except LoginFailed:
                if attempt is not None and not self._tells[index]:
                    attempt.wasRefused = True
                continue
            if isinstance(avatarID, bytes):
                avatarID = avatarID.decode("utf-8", "surrogateescape")
            # Anything else than a name is nobody: ANONYMOUS is an empty tuple.
            if isinstance(avatarID, str) and avatarID:
                if attempt is not None:
                    # It was right: whatever comes now, nobody has guessed.
                    attempt.isGuess = attempt.wasRefused = False
                self._vouchers[info] = index, avatarID
                return await maybeAwait(self._store.openMailbox, info, avatarID)
        return None

    def _vouching(self, info: IPOP3ConnectionInfo) -> tuple[Any, str]:
        index, avatarID = self._vouchers[info]
        return IAccountStatus(self._checkers[index], None), avatarID

    def credentialsVersion(self, info: IPOP3ConnectionInfo, username: str) -> Any:
        """
        See L{IAccountStatus.credentialsVersion}; empty where the checker cannot tell.
        """
        status, avatarID = self._vouching(info)
        return "" if status is None else status.credentialsVersion(info, avatarID)

    def isStillValid(self, info: IPOP3ConnectionInfo, username: str, version: str) -> Any:
        """
        See L{IAccountStatus.isStillValid}; yes where the checker cannot tell.
        """
        status, avatarID = self._vouching(info)
        return status is None or status.isStillValid(info, avatarID, version)

    def openMailbox(self, info: IPOP3ConnectionInfo, username: str) -> Any:
        """
        See L{IMailboxStore.openMailbox}.
        """
        return self._store.openMailbox(info, username)
