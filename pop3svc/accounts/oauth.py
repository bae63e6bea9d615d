"""
Users who log in with a bearer token that an OAuth server has issued.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.error import UnhandledCredentials
from twisted.logger import Logger
from zope.interface import implementer

from pop3svc.accounts.credentials import IBearerToken
from pop3svc.accounts.issuerkeys import FetchedKeys, FileKeys, KeyServer
from pop3svc.accounts.tokens import ALGORITHMS, DEFAULT_ALGORITHMS, BadToken, TokenRules
from pop3svc.files import readReplaceable
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


def _checkAddress(address: str) -> None:
    """
    @raise ValueError: keys must not be fetched from there.
    """
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or not address.isascii() or not address.isprintable() or " " in address:
        raise ValueError("jwks is not a valid address")
    if parts.username is not None or parts.password is not None:
        raise ValueError("jwks must have no user name and no password")
    if parts.scheme == "http" and host not in ("127.0.0.1", "::1"):
        raise ValueError("jwks over http is allowed only from 127.0.0.1 and ::1; use https")


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
        _checkAddress(source)
        pem = None
        if authorities is not None:
            try:
                pem = readReplaceable(authorities)
            except OSError as error:
                raise ValueError(f"{authorities}: {error.strerror}")
        try:
            server = KeyServer(source, pem)
        except ValueError:
            raise ValueError(f"{authorities} has no certificate in PEM")
        keys = FetchedKeys(source, server.fetch)
    elif authorities is not None:
        raise ValueError("ca is for a jwks that is fetched")
    else:
        keys = FileKeys(source)
    return OAuthAccounts(rules, keys)
