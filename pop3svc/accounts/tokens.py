"""
Check signed access tokens (RFC 7519, RFC 9068) with the public keys of the issuer.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from joserfc import jws
from joserfc.jwk import import_key

from pop3svc.accounts.claims import (
    LONGEST_TOKEN,
    MALFORMED,
    BadSignature,
    BadToken,
    ClaimRules,
    parseJSON,
)

__all__ = ["ALGORITHMS", "DEFAULT_ALGORITHMS", "KeySet", "TokenRules"]

# The allowed algorithms.  All of them verify a signature with a public key.  With a symmetric
# algorithm, everybody who can verify a token could also make one.  The library joserfc accepts the
# old and the new name of EdDSA.
ALGORITHMS = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"),
    *("EdDSA", "Ed25519"),
)
DEFAULT_ALGORITHMS = ("RS256", "PS256", "ES256", "EdDSA", "Ed25519")

# The form of a signed token, which has three parts.  A token with five parts would be encrypted.
_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
# The most seconds until a token expires.  Most access tokens are valid for an hour, and few access
# tokens are valid for a day.
_LONGEST_LIFE = 7 * 86_400
# The allowed types of a token: the type of access tokens (RFC 9068 section 2.1), and the general
# type.  Tokens of other types, such as logout+jwt, have other purposes.
_TYPES = ("jwt", "at+jwt", "application/at+jwt")
# A token is refused if its header has one of these fields, because they change the meaning of the
# token.
_REFUSED_FIELDS = frozenset(["crit", "b64", "zip", "enc"])

# The most keys of a set.  An issuer has few keys, even while it renews them.
_MOST_KEYS = 100
# The allowed number of bits of an RSA key.  Shorter keys can be broken, and longer keys take too
# much time.
_RSA_BITS = range(2048, 8193)


class _Registry(jws.JWSRegistry):
    """
    Finds algorithms without the warnings of joserfc.  The warnings are not needed, because
    L{TokenRules} decides which algorithms are allowed.
    """

    def get_alg(self, name: str) -> Any:
        """
        See C{JWSRegistry.get_alg} of joserfc.
        """
        if name not in (self.allowed or ()):
            raise ValueError("its algorithm is not allowed")
        return self.algorithms[name]


class KeySet:
    """
    The public keys of an issuer (RFC 7517 section 5).

    @ivar dropped: the number of keys that were skipped, because they cannot be used or have the
        name of an earlier key.
    """

    def __init__(self, data: bytes) -> None:
        """
        @param data: the key set in JSON.  Keys that cannot be used are skipped.
        @raise ValueError: C{data} is not a key set, or has no key that can be used.
        """
        found = parseJSON(data).get("keys")
        if not isinstance(found, list):
            raise ValueError("it is no key set")
        if len(found) > _MOST_KEYS:
            raise ValueError(f"it has more than {_MOST_KEYS} keys")
        self._byName: dict[str, Any] = {}
        self._all: list[Any] = []
        self.dropped = 0
        for each in found:
            key = _usable(each)
            name = None if key is None else each.get("kid")
            # Of two keys with the same name, use the first one.
            if key is None or name in self._byName:
                self.dropped += 1
                continue
            self._all.append(key)
            if name is not None:
                self._byName[name] = key
        if not self._all:
            raise ValueError("it has no usable key")

    def pick(self, name: str | None) -> Any:
        """
        @param name: the name of the key in a token (C{kid}); L{None} if the token contains no name.
        @return: the key; L{None} if there is no such key.  If C{name} is L{None}, the set must have
            exactly one key.
        """
        if name is not None:
            return self._byName.get(name)
        return self._all[0] if len(self._all) == 1 else None


def _usable(value: Any) -> Any:
    """
    @return: the key; L{None} if it cannot be used.
    """
    if not isinstance(value, dict) or value.get("kty") not in ("RSA", "EC", "OKP"):
        return None
    if value.get("use", "sig") != "sig" or not isinstance(value.get("kid", ""), str):
        return None
    try:
        # Check the size before the import, because joserfc warns about short keys.
        if value["kty"] == "RSA" and _bitsOf(value["n"]) not in _RSA_BITS:
            return None
        key: Any = import_key(value)
    except MALFORMED:
        return None
    return key


def _bitsOf(number: str) -> int:
    """
    @param number: a number in the form Base64urlUInt (RFC 7518 section 2).
    """
    data = urlsafe_b64decode(number + "=" * (-len(number) % 4))
    return int.from_bytes(data, "big").bit_length()


@dataclass(frozen=True, slots=True)
class TokenRules:
    """
    The properties that a valid signed token must have.

    @ivar claims: the claims that the payload of the token must contain.
    @ivar algorithms: the allowed algorithms, which are some of L{ALGORITHMS}.
    """

    claims: ClaimRules
    algorithms: Sequence[str] = field(default=DEFAULT_ALGORITHMS)

    def keyNameOf(self, token: str) -> str | None:
        """
        Read the header of a token.

        @return: the name of the key that has signed the token; L{None} if the token contains no
            name.
        @raise BadToken: the token is not valid, whichever key has signed it.
        """
        if len(token) > LONGEST_TOKEN:
            raise BadToken("it is too long")
        if _COMPACT.fullmatch(token) is None:
            raise BadToken("it is not a signed token")
        part = token.partition(".")[0]
        try:
            header = parseJSON(urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        except ValueError:
            raise BadToken("its header is malformed")
        if header.get("alg") not in self.algorithms:
            raise BadToken("its algorithm is not allowed")
        kind = header.get("typ", "JWT")
        if not isinstance(kind, str) or kind.lower() not in _TYPES:
            raise BadToken("its type is wrong")
        name = header.get("kid")
        if not _REFUSED_FIELDS.isdisjoint(header) or not isinstance(name, str | None):
            raise BadToken("its header is malformed")
        return name

    def nameOf(self, token: str, key: Any, now: float) -> str:
        """
        Check a token.

        @param token: a token whose header L{keyNameOf} has read.
        @param key: the key with the name that L{keyNameOf} has returned, from a L{KeySet}.
        @param now: the present time in seconds since the epoch.
        @return: the name of the user.
        @raise BadSignature: another key has signed the token.
        @raise BadToken: the token is not valid for another reason.
        """
        try:
            registry = _Registry(algorithms=self.algorithms)
            signed = jws.deserialize_compact(token, key, registry=registry)
        except MALFORMED:
            raise BadSignature("its signature is wrong")
        try:
            claims = parseJSON(signed.payload)
        except ValueError:
            raise BadToken("a claim is not valid")
        name = self.claims.userOf(claims, now, mustExpire=True)
        if not claims["exp"] <= now + _LONGEST_LIFE:
            raise BadToken("it is valid for too long")
        return name
