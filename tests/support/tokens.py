"""
Tokens of an issuer, signed in the test.
"""

from __future__ import annotations

import json
import time
from base64 import urlsafe_b64encode
from typing import Any

from joserfc import jws
from joserfc.jwk import ECKey, OKPKey, RSAKey

__all__ = ["AUDIENCE", "ISSUER", "Issuer", "compact", "encoded"]

ISSUER = "https://id.example.org/"
AUDIENCE = "pop3"


def encoded(data: bytes) -> str:
    """
    @return: base64url without padding.
    """
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def compact(header: Any, payload: Any, key: Any, algorithm: str) -> str:
    """
    Sign octets or objects, even those that the library would refuse to sign.

    @param algorithm: how the signature is made, whatever the header says.
    """
    parts = [
        encoded(each if isinstance(each, bytes) else json.dumps(each).encode())
        for each in (header, payload)
    ]
    signed = ".".join(parts).encode()
    method = jws.JWSRegistry.algorithms[algorithm]
    return f"{signed.decode()}.{encoded(method.sign(signed, key))}"


class Issuer:
    """
    An issuer with one key of each type, named C{rsa}, C{ec} and C{ed}.
    """

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {
            "rsa": RSAKey.generate_key(2048, {"kid": "rsa", "use": "sig", "alg": "RS256"}),
            "ec": ECKey.generate_key("P-256", {"kid": "ec"}),
            "ed": OKPKey.generate_key("Ed25519", {"kid": "ed"}),
        }

    def claims(self, **changes: Any) -> dict[str, Any]:
        """
        @param changes: the claims to change; L{None} leaves a claim out.
        """
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "exp": now + 600,
            "iat": now,
            "sub": "1",
            "email": "ann@example.org",
        }
        return {name: each for name, each in (claims | changes).items() if each is not None}

    def token(
        self, name: str = "rsa", algorithm: str = "RS256", header: Any = None, **changes: Any
    ) -> str:
        """
        @param name: the name of the key.
        @param header: the parameters of the header to change; L{None} leaves a parameter out.
        """
        fields = {"alg": algorithm, "typ": "at+jwt", "kid": name} | (header or {})
        fields = {each: value for each, value in fields.items() if value is not None}
        return compact(fields, self.claims(**changes), self.keys[name], algorithm)

    def published(self, *names: str) -> bytes:
        """
        @param names: the names of the keys; all keys if no name is given.
        @return: the key set.
        """
        keys = [self.keys[each].as_dict(private=False) for each in names or self.keys]
        return json.dumps({"keys": keys}).encode()
