"""
Use several providers in one service.  Each provider has the users of one domain, and one more
provider may have all other users.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from zope.interface import alsoProvides, implementer

from pop3svc.awaiting import maybeAwait
from pop3svc.interfaces import (
    IAccountStatus,
    IBearerAccounts,
    IExpiry,
    IPOP3ConnectionInfo,
    IPOP3MailboxProvider,
    IProvenAccounts,
    IScramAccounts,
    ISharedSecrets,
    ScramKeys,
    SharedSecret,
)

__all__ = ["DomainProvider"]


@implementer(IPOP3MailboxProvider, IAccountStatus, IExpiry)
class DomainProvider:
    """
    Passes each login to the provider of the user's domain.  The domain is the part of the name
    after the last C{@}, in lower case.  The provider gets the whole name, including the domain.

    @ivar expireDays: see L{IExpiry}.  It is the lowest age of all providers that delete messages,
        because a client may ask for the age before it has sent a name.
    """

    def __init__(self, providers: Mapping[str | None, Any], name: str) -> None:
        """
        @param providers: an L{IPOP3MailboxProvider} for each domain.  The domains are in lower
            case.  The provider with the key L{None} has the users of all other domains, and the
            users without a domain.  If there is no provider with this key, the logins of these
            users are refused.
        @param name: see L{IPOP3MailboxProvider}.
        """
        self._providers = {
            domain: IPOP3MailboxProvider(provider) for domain, provider in providers.items()
        }
        self.name = name
        days = [each.expireDays for each in self._providers.values() if IExpiry.providedBy(each)]
        self.expireDays: int = min((each for each in days if each), default=0)

        # For each connection on which a provider has returned SCRAM keys, a secret, the user of a
        # token, or a proven mailbox: the name of the mailbox, and this provider.  The provider must
        # be stored, because the name of the mailbox may have another domain than the name of the
        # user.
        self._foundBy: WeakKeyDictionary[Any, tuple[str, Any]] = WeakKeyDictionary()
        for interface in (IScramAccounts, ISharedSecrets, IBearerAccounts, IProvenAccounts):
            if any(interface.providedBy(each) for each in self._providers.values()):
                alsoProvides(self, interface)

    def _of(self, username: str) -> Any:
        _, at, domain = username.rpartition("@")
        found = self._providers.get(domain.lower()) if at else None
        return self._providers.get(None) if found is None else found

    def authenticate(self, info: IPOP3ConnectionInfo, username: str, password: str) -> Any:
        """
        See L{IPOP3MailboxProvider.authenticate}.
        """
        provider = self._of(username)
        return None if provider is None else provider.authenticate(info, username, password)

    def openMailbox(self, info: IPOP3ConnectionInfo, username: str) -> Any:
        """
        See L{IMailboxStore.openMailbox}.
        """
        # Compare the name, because the entry may be left over from a cancelled exchange with
        # another name.
        mailbox, provider = self._foundBy.pop(info, ("", None))
        if mailbox != username:
            provider = self._of(username)
        return None if provider is None else provider.openMailbox(info, username)

    async def scramKeys(
        self, info: IPOP3ConnectionInfo, username: str, algorithm: str, salt: bytes
    ) -> ScramKeys | None:
        """
        See L{IScramAccounts.scramKeys}.
        """
        provider: Any = self._of(username)
        if not IScramAccounts.providedBy(provider):
            return None
        keys: ScramKeys | None = await maybeAwait(
            provider.scramKeys, info, username, algorithm, salt
        )
        if keys is not None:
            self._foundBy[info] = keys.mailbox or username, provider
        return keys

    async def sharedSecret(self, info: IPOP3ConnectionInfo, username: str) -> SharedSecret | None:
        """
        See L{ISharedSecrets.sharedSecret}.
        """
        provider: Any = self._of(username)
        if not ISharedSecrets.providedBy(provider):
            return None
        found: SharedSecret | None = await maybeAwait(provider.sharedSecret, info, username)
        if found is not None:
            self._foundBy[info] = found.mailbox or username, provider
        return found

    async def provenMailbox(self, info: IPOP3ConnectionInfo, username: str) -> str | None:
        """
        See L{IProvenAccounts.provenMailbox}.
        """
        provider: Any = self._of(username)
        if not IProvenAccounts.providedBy(provider):
            return None
        mailbox: str | None = await maybeAwait(provider.provenMailbox, info, username)
        if mailbox is not None:
            self._foundBy[info] = mailbox, provider
        return mailbox

    def exampleScramKeys(self, username: str, algorithm: str, seed: bytes) -> ScramKeys | None:
        """
        See L{IScramAccounts.exampleScramKeys}.
        """
        provider: Any = self._of(username)
        if not IScramAccounts.providedBy(provider):
            return None
        found: ScramKeys | None = provider.exampleScramKeys(username, algorithm, seed)
        return found

    async def userOfToken(
        self, info: IPOP3ConnectionInfo, token: str, username: str | None
    ) -> str | None:
        """
        See L{IBearerAccounts.userOfToken}.  A token that a provider accepts is valid only for users
        of the provider's own domain.
        """
        for provider in self._providers.values():
            if not IBearerAccounts.providedBy(provider):
                continue
            if username is not None and self._of(username) is not provider:
                continue
            source: Any = provider
            name: str | None = await maybeAwait(source.userOfToken, info, token, username)
            if name is not None and self._of(name) is provider:
                self._foundBy[info] = name, provider
                return name
        return None

    def credentialsVersion(self, info: IPOP3ConnectionInfo, username: str) -> Any:
        """
        See L{IAccountStatus.credentialsVersion}.
        """
        provider = self._of(username)
        if not IAccountStatus.providedBy(provider):
            return ""
        return provider.credentialsVersion(info, username)

    def isStillValid(self, info: IPOP3ConnectionInfo, username: str, version: str) -> Any:
        """
        See L{IAccountStatus.isStillValid}.
        """
        provider = self._of(username)
        if not IAccountStatus.providedBy(provider):
            return True
        return provider.isStillValid(info, username, version)
