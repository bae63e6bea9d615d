"""
Users who log in with a bearer token that an OAuth server has issued.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.error import UnhandledCredentials
from twisted.logger import Logger
from zope.interface import implementer

from pop3svc.accounts.credentials import IBearerToken
from pop3svc.accounts.httprequests import checkURL
from pop3svc.accounts.issuerkeys import FileKeys, fetchedKeys
from pop3svc.accounts.tokens import ALGORITHMS, DEFAULT_ALGORITHMS, BadToken, TokenRules
from pop3svc.interfaces import IBearerAccounts, IPOP3ConnectionInfo, IReloading
from pop3svc.once import Once

__all__ = ["OAuthAccounts", "makeOAuth"]

log = Logger(namespace="pop3svc")

_OPTIONS = ("jwks", "issuer", "audience", "claim", "scope", "algorithms", "ca")
# An address has colons, so an option ends only where another one begins.
_BETWEEN = re.compile(rf":(?=(?:{'|'.join(_OPTIONS)})=)")


@implementer(ICredentialsChecker, IBearerAccounts, IReloading)
class OAuthAccounts:
    """
    Accepts the tokens of one issuer.  It checks no passwords.
    """

    credentialInterfaces = (IBearerToken,)

    def __init__(self, rules: TokenRules, keys: Any, now: Callable[[], float] = time.time) -> None:
        """
        @param keys: L{FileKeys} or L{FetchedKeys}.
        @param now: returns seconds since the epoch.
        """
        self._rules = rules
        self._keys = keys
        self._now = now
        self._logged = Once()

    def requestAvatarId(self, credentials: Any) -> Any:
        """
        See L{ICredentialsChecker.requestAvatarId}.
        """
        raise UnhandledCredentials()

    async def userOfToken(
        self, info: IPOP3ConnectionInfo, token: str, username: str | None
    ) -> str | None:
        """
        See L{IBearerAccounts.userOfToken}.
        """
        try:
            key = await self._keys.find(self._rules.keyNameOf(token))
            if key is None:
                raise BadToken("its key is not known")
            name = self._rules.nameOf(token, key, self._now())
            if username not in (None, name):
                raise BadToken("it is the token of another user")
        except BadToken as error:
            reason = str(error)
            if self._logged.isFirst(reason):
                log.info(
                    "a token is refused, because {reason} (logged once for each reason)",
                    reason=reason,
                )
            return None
        return name

    async def reload(self) -> None:
        """
        See L{IReloading.reload}.
        """
        self._logged = Once()
        await self._keys.reload()


def _optionsOf(argument: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for each in _BETWEEN.split(argument):
        name, found, value = each.partition("=")
        if name not in _OPTIONS or not found:
            raise ValueError(f"the options are {', '.join(_OPTIONS)}")
        if name in options:
            raise ValueError(f"{name} is given twice")
        if not value:
            raise ValueError(f"{name} is empty")
        options[name] = value
    for name in ("jwks", "issuer", "audience"):
        if name not in options:
            raise ValueError(f"{name} is needed")
    return options


def _checkHost(url: str) -> None:
    """
    @raise ValueError: nobody could be sure whose answer comes from there.
    """
    parts = checkURL(url)
    if parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "::1"):
        raise ValueError("http is allowed only from 127.0.0.1 and ::1; use https")


def makeOAuth(argument: str) -> OAuthAccounts:
    """
    Make the accounts of an issuer.

    @param argument: C{jwks=FILE|URL:issuer=ISSUER:audience=AUDIENCE[:claim=CLAIM]
        [:scope=SCOPE,...][:algorithms=ALGORITHM,...][:ca=FILE]}
    @raise ValueError: the argument is not valid; a sentence.
    """
    options = _optionsOf(argument)
    algorithms = options.get("algorithms", ",".join(DEFAULT_ALGORITHMS)).split(",")
    for each in algorithms:
        if each not in ALGORITHMS:
            raise ValueError(f"algorithms are among {', '.join(ALGORITHMS)}")
    rules = TokenRules(
        options["issuer"],
        options["audience"],
        options.get("claim", "email"),
        frozenset(each for each in re.split(r"[ ,]", options.get("scope", "")) if each),
        tuple(algorithms),
    )
    source, authorities = options["jwks"], options.get("ca")
    keys: Any
    if re.match(r"https?://", source):
        try:
            _checkHost(source)
        except ValueError as error:
            raise ValueError(f"jwks: {error}")
        keys = fetchedKeys(source, authorities)
    elif authorities is not None:
        raise ValueError("ca is for a jwks that is fetched")
    else:
        keys = FileKeys(source)
    return OAuthAccounts(rules, keys)
