"""
Check the claims of an access token.  They say who issued the token, for which user, and when the
token expires.  The claims are in the signed token itself (RFC 7519, RFC 9068) or in an answer of
the issuer (RFC 7662).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from joserfc.errors import JoseError
from joserfc.jwt import JWTClaimsRegistry

from pop3svc.errors import POP3ResponseError

__all__ = [
    "LONGEST_TOKEN",
    "MALFORMED",
    "BadSignature",
    "BadToken",
    "ClaimRules",
    "parseJSON",
    "unavailable",
]

# The most octets of a token.  A longer token is refused without further checks.
LONGEST_TOKEN = 8192
# The most seconds by which the clock of the issuer and the clock of this machine may differ.
_LEEWAY = 60
_LONGEST_NAME = 255
# The exceptions that joserfc and the modules of Python raise for malformed input.
MALFORMED = (
    JoseError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    IndexError,
    RecursionError,
)
_REASONS = {
    "iss": "its issuer is missing or wrong",
    "aud": "its audience is missing or wrong",
    "exp": "it has expired or does not say when it expires",
    "nbf": "it is not valid yet",
    "iat": "it is not valid yet",
}


class BadToken(Exception):
    """
    A token is not valid.  The text of the exception is the reason.  It contains no part of the
    token.
    """


class BadSignature(BadToken):
    """
    The signature of a token was made with another key.
    """


def unavailable() -> POP3ResponseError:
    """
    @return: the error for a login if the token cannot be checked now.
    """
    return POP3ResponseError("Tokens cannot be checked now.", "SYS/TEMP")


def _withoutDoubles(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("an object has a name twice")
    return values


def _noConstant(name: str) -> Any:
    raise ValueError("a number is not valid")


def parseJSON(data: bytes) -> dict[str, Any]:
    """
    Parse a JSON object.

    @raise ValueError: the JSON is malformed, has a name twice, is nested too deeply, or is not an
        object.
    """
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_withoutDoubles, parse_constant=_noConstant
        )
    except RecursionError:
        raise ValueError("it is nested too deeply")
    if not isinstance(value, dict):
        raise ValueError("it is no object")
    return value


@dataclass(frozen=True, slots=True)
class ClaimRules:
    """
    The claims that a valid token must have.

    @ivar issuer: the claim C{iss}; L{None} if the claim may be missing or have any value.
    @ivar audience: a value that the claim C{aud} must contain; L{None} if the claim may be missing
        or have any value.
    @ivar claim: the claim that contains the name of the user.
    @ivar scopes: the scopes that a token must have, in its claim C{scope} or C{scp}.
    @ivar clients: the values that the claim C{client_id} may have; empty if the claim may be
        missing or have any value.
    """

    issuer: str | None
    audience: str | None
    claim: str
    scopes: frozenset[str] = frozenset()
    clients: frozenset[str] = frozenset()

    def userOf(self, claims: dict[str, Any], now: float, mustExpire: bool) -> str:
        """
        Check the claims of a token.  The caller has already checked that the token comes from the
        issuer.

        @param now: the present time in seconds since the epoch.
        @param mustExpire: whether the claim C{exp} is necessary.
        @return: the name of the user.
        @raise BadToken: the token is not valid.
        """
        checks: dict[str, Any] = {"exp": {"essential": mustExpire}}
        for name, value in (("iss", self.issuer), ("aud", self.audience)):
            if value is not None:
                checks[name] = {"essential": True, "value": value}
        try:
            JWTClaimsRegistry(now=int(now), leeway=_LEEWAY, **checks).validate(claims)
        except MALFORMED as error:
            # The reason may name a claim, because the claims come from the issuer and not from the
            # client.
            raise BadToken(_REASONS.get(getattr(error, "claim", ""), "a claim is not valid"))
        if not self.scopes <= _scopesOf(claims):
            raise BadToken("a scope is missing")
        client = claims.get("client_id")
        if self.clients and not (isinstance(client, str) and client in self.clients):
            raise BadToken("it was issued to another client")
        if "cnf" in claims:
            # A token with the claim "cnf" is not a bearer token (RFC 7800).  Refuse the token,
            # because the client would have to prove that it has a key, and the service cannot check
            # this proof.
            raise BadToken("it is bound to a key of its client")
        return self._nameIn(claims)

    def _nameIn(self, claims: dict[str, Any]) -> str:
        name = claims.get(self.claim)
        # A printable name has no surrogates, so it can be encoded.
        if not isinstance(name, str) or not name or not name.isprintable():
            raise BadToken("it has no usable user name")
        if len(name.encode("utf-8")) > _LONGEST_NAME:
            raise BadToken("its user name is too long")
        # Refuse an address that was not verified, because some issuers let a user enter any
        # address.  Some issuers do not send email_verified, and some write true as a text.
        if self.claim == "email" and claims.get("email_verified", True) not in (True, "true"):
            raise BadToken("its address is not verified")
        return name


def _scopesOf(claims: dict[str, Any]) -> set[str]:
    found: set[str] = set()
    for name in ("scope", "scp"):
        value = claims.get(name, "")
        values: Iterable[Any] = value.split(" ") if isinstance(value, str) else value
        if isinstance(values, list):
            found |= {each for each in values if isinstance(each, str)}
    return found
