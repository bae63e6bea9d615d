"""
Accept logins of users who have a bearer token of an OAuth server.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.error import UnhandledCredentials
from twisted.logger import Logger
from zope.interface import implementer

from pop3svc.accounts.claims import BadSignature, BadToken, ClaimRules
from pop3svc.accounts.httprequests import checkURL
from pop3svc.accounts.introspection import CONCURRENT, TIMEOUT, IntrospectedTokens, SecretFile
from pop3svc.accounts.issuerkeys import FileKeys, fetchedKeys
from pop3svc.accounts.tokens import ALGORITHMS, DEFAULT_ALGORITHMS, TokenRules
from pop3svc.credentials import IBearerToken
from pop3svc.interfaces import IBearerAccounts, IPOP3ConnectionInfo, IReloading
from pop3svc.once import Once
from pop3svc.preparation import prepareName

__all__ = ["OAuthAccounts", "SignedTokens", "makeOAuth"]

log = Logger(namespace="pop3svc")

_COMMON = ("issuer", "audience", "claim", "scope", "clients", "ca")
# For each kind of check: the options that it allows, and the options that it requires.
_KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "jwks": (("jwks", *_COMMON, "algorithms"), ("issuer", "audience")),
    "introspect": (
        ("introspect", *_COMMON, "client", "secret", "secret-credential", "timeout", "concurrent"),
        ("client",),
    ),
}
_OPTIONS = sorted({name for names, _ in _KINDS.values() for name in names})
# An option ends where the next option begins.  It cannot end at the next colon, because addresses
# contain colons.
_BETWEEN = re.compile(rf":(?=(?:{'|'.join(_OPTIONS)})=)")


class _Tokens(Protocol):
    """
    A way to check tokens.  L{SignedTokens} and L{IntrospectedTokens} have these methods.
    """

    async def nameOf(
        self, info: IPOP3ConnectionInfo | None, token: str, now: Callable[[], float]
    ) -> str:
        """
        @param now: returns the present time in seconds since the epoch.
        @return: the name of the user.
        @raise BadToken: the token is not valid.
        @raise POP3ResponseError: C{SYS/TEMP}: the token cannot be checked now.
        """

    async def reload(self) -> None:
        """
        Read the files again, and fetch keys again.
        """


class SignedTokens:
    """
    Verifies the signatures of tokens with the keys of the issuer.
    """

    def __init__(self, rules: TokenRules, keys: Any) -> None:
        """
        @param keys: L{FileKeys} or L{pop3svc.accounts.issuerkeys.FetchedKeys}.
        """
        self._rules = rules
        self._keys = keys

    async def nameOf(
        self, info: IPOP3ConnectionInfo | None, token: str, now: Callable[[], float]
    ) -> str:
        """
        Verify a token.

        @param now: returns the present time in seconds since the epoch.
        @return: the name of the user.
        @raise BadToken: the token is not valid.
        @raise POP3ResponseError: C{SYS/TEMP}: the keys are not available now.
        """
        keyName = self._rules.keyNameOf(token)
        key = await self._keys.find(keyName)
        if key is None:
            raise BadToken("its key is not known")
        try:
            return self._rules.nameOf(token, key, now())
        except BadSignature:
            # The issuer may have replaced the key by another key with the same name, or by another
            # key without a name.
            other = await self._keys.findAgain(keyName)
            if other is None or other is key:
                raise
        return self._rules.nameOf(token, other, now())

    async def reload(self) -> None:
        """
        Read the keys again from their file, or fetch them again.
        """
        await self._keys.reload()


@implementer(ICredentialsChecker, IBearerAccounts, IReloading)
class OAuthAccounts:
    """
    A source of accounts that accepts the tokens of one issuer.  It checks no passwords.
    """

    credentialInterfaces = (IBearerToken,)

    def __init__(self, tokens: _Tokens, now: Callable[[], float] = time.time) -> None:
        """
        @param now: returns the present time in seconds since the epoch.
        """
        self._tokens = tokens
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
        attempt = getattr(info, "loginAttempt", None)
        if attempt is not None:
            # Do not count the attempt as a guess yet.  If the client disconnects while it waits for
            # keys or for its turn, it has learned nothing.
            attempt.isGuess = False
        try:
            name = await self._tokens.nameOf(info, token, self._now)
            if username is not None and not _mayBeOne(username, name):
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
        await self._tokens.reload()


# --- the argument of --auth -----------------------------------------------------


def _mayBeOne(one: str, other: str) -> bool:
    """
    @return: whether two names may be spellings of the same name.  Later the service compares them
        again, with the profile (RFC 8265) that the operator has chosen.
    """
    try:
        return one == other or prepareName(one, True) == prepareName(other, True)
    except ValueError:
        return False


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
    if "jwks" not in options and "introspect" not in options:
        raise ValueError("jwks or introspect is needed")
    kind = "jwks" if "jwks" in options else "introspect"
    mine, needed = _KINDS[kind]
    for name in options:
        if name not in mine:
            raise ValueError(f"{name} cannot be combined with {kind}")
    for name in needed:
        if name not in options:
            raise ValueError(f"{name} is needed")
    return options


def _checkHost(option: str, url: str) -> None:
    """
    @raise ValueError: the address cannot be used, or is on another machine and has no TLS.  Without
        TLS, an attacker in the network could forge the answers.
    """
    try:
        parts = checkURL(url)
    except ValueError as error:
        raise ValueError(f"{option}: {error}")
    if parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "::1"):
        raise ValueError(f"{option}: http is allowed only from 127.0.0.1 and ::1; use https")


def _listOf(options: dict[str, str], name: str) -> frozenset[str]:
    return frozenset(each for each in re.split(r"[ ,]", options.get(name, "")) if each)


def _claimRules(options: dict[str, str], claim: str) -> ClaimRules:
    return ClaimRules(
        options.get("issuer"),
        options.get("audience"),
        options.get("claim", claim),
        _listOf(options, "scope"),
        _listOf(options, "clients"),
    )


def _number(options: dict[str, str], name: str, default: int, most: int) -> int:
    text = options.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= most):
        raise ValueError(f"{name} is a number from 1 to {most}")
    return int(text)


def makeOAuth(argument: str, pathOfCredential: Callable[[str], str]) -> OAuthAccounts:
    """
    Make the accounts of an issuer.

    @param argument: C{jwks=FILE|URL:issuer=ISSUER:audience=AUDIENCE[:algorithms=ALGORITHM,...]}
        or C{introspect=URL:client=ID:secret=FILE|secret-credential=NAME[:issuer=ISSUER]
        [:audience=AUDIENCE][:timeout=SECONDS][:concurrent=NUMBER]}, and then C{[:claim=CLAIM]
        [:scope=SCOPE,...][:clients=ID,...][:ca=FILE]}
    @param pathOfCredential: takes the name of a systemd credential and returns the path of its
        file.
    @raise ValueError: the argument is not valid.  The text is a sentence.
    """
    options = _optionsOf(argument)
    if "jwks" in options:
        return OAuthAccounts(_makeSigned(options))
    name = "secret-credential"
    if ("secret" in options) == (name in options):
        raise ValueError(f"either secret or {name} is needed")
    if name in options:
        try:
            options["secret"] = pathOfCredential(options[name])
        except ValueError as error:
            raise ValueError(f"{name} {error}")
    return OAuthAccounts(_makeIntrospected(options))


def _makeSigned(options: dict[str, str]) -> SignedTokens:
    algorithms: Sequence[str] = DEFAULT_ALGORITHMS
    if "algorithms" in options:
        algorithms = tuple(options["algorithms"].split(","))
    for each in algorithms:
        if each not in ALGORITHMS:
            raise ValueError(f"algorithms are among {', '.join(ALGORITHMS)}")
    rules = TokenRules(_claimRules(options, "email"), algorithms)
    source, authorities = options["jwks"], options.get("ca")
    keys: Any
    if re.match(r"https?://", source):
        _checkHost("jwks", source)
        keys = fetchedKeys(source, authorities)
    elif authorities is not None:
        raise ValueError("ca is for a jwks that is fetched")
    else:
        keys = FileKeys(source)
    return SignedTokens(rules, keys)


def _makeIntrospected(options: dict[str, str]) -> IntrospectedTokens:
    url = options["introspect"]
    _checkHost("introspect", url)
    if not any(each in options for each in ("audience", "scope", "clients")):
        log.warn(
            "every token of {url} is accepted, even a token for another service; "
            "audience=, scope= or clients= can limit this",
            url=url.partition("?")[0],
        )
    return IntrospectedTokens(
        url,
        options["client"],
        SecretFile(options["secret"]),
        _claimRules(options, "username"),
        _number(options, "timeout", TIMEOUT, 60),
        _number(options, "concurrent", CONCURRENT, 1000),
        options.get("ca"),
    )
