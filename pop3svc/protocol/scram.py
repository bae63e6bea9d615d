"""
Read and write the messages of SCRAM (RFC 5802, RFC 7677) on the side of the server.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass

from pop3svc.errors import BadArguments, POP3ResponseError
from pop3svc.interfaces import ScramKeys

__all__ = [
    "ALGORITHMS",
    "BINDING_TYPES",
    "SASL_NAME",
    "ClientFirst",
    "ScramServer",
    "makeUp",
    "seedOf",
    "unescaped",
]

# For each mechanism: the name of its hash function in hashlib.
ALGORITHMS = {
    "SCRAM-SHA-1": "sha1",
    "SCRAM-SHA-256": "sha256",
    "SCRAM-SHA-256-PLUS": "sha256",
}
# The types of channel binding that a client may choose.
BINDING_TYPES = ("tls-exporter", "tls-server-end-point")

# The most octets of a message of a client, and the most octets of a name.  These limits are enough,
# because names are short, and nonces have some 30 octets.
_LONGEST = 2048
_LONGEST_NAME = 255
# The length of the salt and the number of rounds for a user who does not exist.  They are used if
# no user of the accounts has keys.
_SALT = 16
_ROUNDS = 4096

# The rule saslname of RFC 5801 section 4, but without control characters.
SASL_NAME = r"(?:[^,=\x00-\x1f\x7f]|=2C|=3D)+"
_NONCE = r"[\x21-\x2b\x2d-\x7e]+"
# A message may have extensions, which are ignored.  The mandatory extension "m=" is refused.
_MORE = r"(?:,[A-Za-ln-z]=[^,\x00]+)*"
_FIRST = re.compile(
    rf"(?P<header>(?P<flag>[ny]|p=(?P<type>[A-Za-z0-9.-]+)),(?:a=(?P<other>{SASL_NAME}))?,)"
    rf"(?P<bare>n=(?P<name>{SASL_NAME}),r=(?P<nonce>{_NONCE}){_MORE})"
)
_FINAL = re.compile(
    rf"(?P<rest>c=(?P<binding>[A-Za-z0-9+/=]+),r=(?P<nonce>{_NONCE}){_MORE}),"
    r"p=(?P<proof>[A-Za-z0-9+/=]+)"
)


def _text(message: bytes) -> str:
    if len(message) > _LONGEST:
        raise BadArguments("SCRAM message is too long.")
    try:
        return message.decode("utf-8")
    except UnicodeDecodeError:
        raise _malformed()


def _malformed() -> BadArguments:
    return BadArguments("SCRAM message is not valid.")


def unescaped(name: str) -> str:
    """
    @param name: a saslname (RFC 5801 section 4).
    """
    return name.replace("=2C", ",").replace("=3D", "=")


def _encoded(data: bytes) -> str:
    return b64encode(data).decode("ascii")


@dataclass(frozen=True, slots=True)
class ClientFirst:
    """
    The first message of a client (RFC 5802 section 7, C{client-first-message}).

    @ivar header: the GS2 header.  The final message of the client repeats it.
    @ivar flag: the flag for channel binding: C{n}, C{y} or C{p}.
    @ivar bindingType: the type of channel binding; L{None} if the flag is not C{p}.
    @ivar bare: the message after the header.
    @ivar name: the user name.
    @ivar nonce: the nonce of the client.
    """

    header: str
    flag: str
    bindingType: str | None
    bare: str
    name: str
    nonce: str

    @classmethod
    def parse(cls, message: bytes) -> ClientFirst:
        """
        @raise BadArguments: the message is malformed, or asks for a mandatory extension.
        @raise POP3ResponseError: the client wants to act as another user.
        """
        found = _FIRST.fullmatch(_text(message))
        if found is None:
            raise _malformed()
        name, other = unescaped(found["name"]), found["other"]
        if len(name.encode("utf-8")) > _LONGEST_NAME:
            raise _malformed()
        if other is not None and unescaped(other) != name:
            raise POP3ResponseError("Authorization identity must be the user name.", "AUTH")
        return cls(
            found["header"], found["flag"][0], found["type"], found["bare"], name, found["nonce"]
        )


def seedOf(secret: bytes, name: str, algorithm: str) -> bytes:
    """
    @param secret: the secret of the service.
    @return: 64 octets that nobody outside the service knows.  The same arguments always give the
        same octets.
    """
    octets = name.encode("utf-8", "surrogateescape")
    return hmac.digest(secret, algorithm.encode() + b"\0" + octets, "sha512")


def makeUp(seed: bytes, algorithm: str, like: ScramKeys | None) -> ScramKeys:
    """
    Make keys that match no password.  With these made-up keys, an exchange does not reveal whether
    the user exists.

    @param seed: see L{seedOf}.  The same seed always gives the same keys.
    @param like: keys with the same number of rounds and the same length of the salt as the keys to
        make; L{None} for default values.
    """
    size = hashlib.new(algorithm).digest_size
    length, rounds = (_SALT, _ROUNDS) if like is None else (len(like.salt), like.rounds)
    # Include the length and the rounds.  If they change, the salt changes as well, as the salt of a
    # real user would do.
    salt = hashlib.shake_256(b"salt,%d,%d," % (length, rounds) + seed).digest(length)
    keys = hashlib.shake_256(b"keys," + seed).digest(2 * size)
    return ScramKeys(salt, rounds, keys[:size], keys[size:])


class ScramServer:
    """
    The side of the server in one exchange.
    """

    def __init__(
        self,
        algorithm: str,
        first: ClientFirst,
        keys: ScramKeys,
        binding: bytes = b"",
        makeNonce: Callable[[], str] = lambda: secrets.token_urlsafe(24),
    ) -> None:
        """
        @param algorithm: the name of the hash function.
        @param keys: the keys of the user, or made-up keys.
        @param binding: the octets of the channel binding that the client has chosen.
        """
        self._algorithm = algorithm
        self._first = first
        self._keys = keys
        self._binding = _encoded(first.header.encode("utf-8") + binding)
        self._nonce = first.nonce + makeNonce()
        self._challenge = f"r={self._nonce},s={_encoded(keys.salt)},i={keys.rounds}"

    @property
    def challenge(self) -> bytes:
        """
        The first message of the server.
        """
        return self._challenge.encode("ascii")

    def check(self, message: bytes) -> tuple[bool, bytes]:
        """
        Check the final message of the client.

        @return: whether the proof is right, and the final message of the server.
        @raise BadArguments: the message is malformed, or belongs to another exchange.
        @raise POP3ResponseError: the channel binding is wrong.
        """
        found = _FINAL.fullmatch(_text(message))
        if found is None or found["nonce"] != self._nonce:
            raise _malformed()
        proof = _strictly(found["proof"])
        if len(proof) != hashlib.new(self._algorithm).digest_size:
            raise _malformed()
        if not hmac.compare_digest(found["binding"], self._binding):
            raise POP3ResponseError("Channel binding does not match.", "AUTH")
        exchange = ",".join((self._first.bare, self._challenge, found["rest"])).encode("utf-8")
        keys, algorithm = self._keys, self._algorithm
        signature = hmac.digest(keys.storedKey, exchange, algorithm)
        clientKey = bytes(a ^ b for a, b in zip(proof, signature, strict=True))
        stored = hashlib.new(algorithm, clientKey).digest()
        isRight = hmac.compare_digest(stored, keys.storedKey)
        final = b"v=" + b64encode(hmac.digest(keys.serverKey, exchange, algorithm))
        return isRight, final


def _strictly(text: str) -> bytes:
    """
    Decode base64.  Refuse a text that is not the canonical encoding of its octets.
    """
    try:
        data = b64decode(text, validate=True)
    except ValueError:
        raise _malformed()
    if _encoded(data) != text:
        raise _malformed()
    return data
