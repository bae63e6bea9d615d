"""
Kinds of password hashes: their syntax and bounds, their costs, and verification.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import re
from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import NamedTuple

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError

__all__ = [
    "KINDS",
    "LONGEST_PASSWORD",
    "PLAIN",
    "costOf",
    "hashPassword",
    "isPlain",
    "verify",
]

_hasher = PasswordHasher()

# Octets of a password.  Every kind of hash takes this many.
LONGEST_PASSWORD = 1024
# Characters of a hash.  The longest legitimate entry is a {PLAIN} password.
_LONGEST = 2048

# Bounds on the cost of one comparison, because clients that are not logged in can cause
# comparisons.  Each bound is about five seconds of CPU time or one GiB of memory, ten times
# the usual cost.
_MOST_MEMORY = 1 << 30
_MOST_ARGON2_PASSES = 64
_MOST_ARGON2_LANES = 64
# KiB written by all passes together.
_MOST_ARGON2_WORK = 4 << 20
_MOST_BCRYPT_COST = 16
_MOST_SHA512_ROUNDS = 5_000_000
# Blocks of 128 octets in all lanes together, so this bounds the memory as well.
_MOST_SCRYPT_WORK = _MOST_MEMORY // 128

PLAIN = "{PLAIN}"


class _Kind(NamedTuple):
    """
    @ivar name: the name shown to the operator.
    @ivar cost: takes a hash, returns the approximate CPU time of a comparison in
        milliseconds; raises L{ValueError} if the hash is malformed or out of bounds.
    @ivar verify: takes a hash and a password, returns whether they match.
    """

    name: str
    cost: Callable[[str], float]
    verify: Callable[[str, bytes], bool]


def hashPassword(password: str) -> str:
    """
    Hash a password with argon2.  Takes about 0.1 s of CPU time.

    @return: the hash, in the form for a password file.
    """
    return _hasher.hash(password.encode("utf-8", "surrogateescape"))


def _decoded(text: str) -> bytes:
    """
    @raise ValueError: the text is not canonical base64 without padding.
    """
    octets = b64decode(text + "=" * (-len(text) % 4))
    if b64encode(octets).rstrip(b"=") != text.encode("ascii"):
        raise ValueError("not canonical")
    return octets


_ARGON2 = re.compile(
    r"\$argon2(?:id|i|d)(?:\$v=(?:16|19))?\$m=([0-9]{1,10}),t=([0-9]{1,10}),p=([0-9]{1,8})"
    r"\$([A-Za-z0-9+/]+)\$([A-Za-z0-9+/]+)"
)


def _costArgon2(stored: str) -> float:
    found = _ARGON2.fullmatch(stored)
    if found is None:
        raise ValueError("a malformed argon2 hash")
    memory, passes, lanes = int(found[1]), int(found[2]), int(found[3])
    try:
        isWhole = len(_decoded(found[4])) >= 8 and len(_decoded(found[5])) >= 4
    except (ValueError, binascii.Error):
        isWhole = False
    if not isWhole:
        raise ValueError("a malformed argon2 hash")
    if (
        not (1 <= passes <= _MOST_ARGON2_PASSES and 1 <= lanes <= _MOST_ARGON2_LANES)
        or not 8 * lanes <= memory <= _MOST_MEMORY // 1024
        or memory * passes > _MOST_ARGON2_WORK
    ):
        raise ValueError(
            f"an argon2 hash with parameters out of bounds (m from 8 for each lane to "
            f"{_MOST_MEMORY // 1024}, t at most {_MOST_ARGON2_PASSES}, p at most "
            f"{_MOST_ARGON2_LANES}, m times t at most {_MOST_ARGON2_WORK})"
        )
    return memory * passes / 1500


def _verifyArgon2(stored: str, password: bytes) -> bool:
    # Other errors, such as a lack of memory, do not mean that the password is wrong.
    try:
        return _hasher.verify(stored, password)
    except VerifyMismatchError:
        return False


def _missing(package: str) -> ValueError:
    return ValueError(f"a hash that needs {package}: pip install 'pop3svc[hashes]'")


# The last character of the salt holds two bits only.
_BCRYPT = re.compile(r"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")


def _costBcrypt(stored: str) -> float:
    try:
        import bcrypt  # noqa: F401
    except ImportError:
        raise _missing("bcrypt")
    found = _BCRYPT.fullmatch(stored)
    if found is None:
        raise ValueError("a malformed bcrypt hash")
    cost = int(found[1])
    if not 4 <= cost <= _MOST_BCRYPT_COST:
        raise ValueError(f"a bcrypt hash with a cost out of bounds (from 4 to {_MOST_BCRYPT_COST})")
    return float(1 << cost) / 16


def _verifyBcrypt(stored: str, password: bytes) -> bool:
    import bcrypt

    # bcrypt has always ignored octets after the 72nd; bcrypt 5 raises an error for them.
    return bcrypt.checkpw(password[:72], stored.encode("ascii"))


def _costSHA512(stored: str) -> float:
    try:
        from passlib.hash import sha512_crypt
    except ImportError:
        raise _missing("libpass")
    try:
        parsed = sha512_crypt.from_string(stored)
        isWhole = parsed.checksum is not None
    except ValueError:
        isWhole = False
    if not isWhole:
        raise ValueError("a malformed sha512-crypt hash")
    if parsed.rounds > _MOST_SHA512_ROUNDS:
        raise ValueError(
            f"a sha512-crypt hash with rounds out of bounds (at most {_MOST_SHA512_ROUNDS})"
        )
    return float(parsed.rounds) / 800


def _verifySHA512(stored: str, password: bytes) -> bool:
    from passlib.hash import sha512_crypt

    return bool(sha512_crypt.verify(password, stored))


_SCRYPT = re.compile(
    r"\$scrypt\$ln=([0-9]{1,2}),r=([0-9]{1,2}),p=([0-9]{1,2})"
    r"\$([A-Za-z0-9+/]{2,88})\$([A-Za-z0-9+/]{22,88})"
)


def _scryptFields(stored: str) -> tuple[int, int, int, bytes, bytes]:
    found = _SCRYPT.fullmatch(stored)
    if found is None:
        raise ValueError("a malformed scrypt hash")
    ln, r, p = (int(found[index]) for index in (1, 2, 3))
    if not (1 <= ln <= 20 and 1 <= r <= 32 and 1 <= p <= 16) or r * p << ln > _MOST_SCRYPT_WORK:
        raise ValueError(
            "a scrypt hash with parameters out of bounds (ln at most 20, r at most 32, p at "
            f"most 16, 2**ln times r times p at most {_MOST_SCRYPT_WORK})"
        )
    try:
        salt, key = (b64decode(text + "=" * (-len(text) % 4)) for text in (found[4], found[5]))
    except binascii.Error:
        raise ValueError("a malformed scrypt hash")
    return ln, r, p, salt, key


def _costScrypt(stored: str) -> float:
    ln, r, p, _, _ = _scryptFields(stored)
    return (r * p << ln) / 2500


def _verifyScrypt(stored: str, password: bytes) -> bool:
    ln, r, p, salt, key = _scryptFields(stored)
    memory = 128 * r * ((1 << ln) + p + 2)
    made = hashlib.scrypt(
        password, salt=salt, n=1 << ln, r=r, p=p, maxmem=memory + 1048576, dklen=len(key)
    )
    return hmac.compare_digest(made, key)


def _costPlain(stored: str) -> float:
    if stored == PLAIN:
        raise ValueError("an empty password")
    return 0.0


def _verifyPlain(stored: str, password: bytes) -> bool:
    known = stored.removeprefix(PLAIN).encode("utf-8", "surrogateescape")
    return hmac.compare_digest(known, password)


_PREFIXES = {
    "$argon2": _Kind("argon2", _costArgon2, _verifyArgon2),
    "$2": _Kind("bcrypt ($2b$)", _costBcrypt, _verifyBcrypt),
    "$6$": _Kind("sha512-crypt ($6$)", _costSHA512, _verifySHA512),
    "$scrypt$": _Kind("scrypt", _costScrypt, _verifyScrypt),
    PLAIN: _Kind("{PLAIN}", _costPlain, _verifyPlain),
}

# For messages to the operator.
KINDS = ", ".join(kind.name for kind in _PREFIXES.values())


def _kindOf(stored: str) -> _Kind:
    for prefix, kind in _PREFIXES.items():
        if stored.startswith(prefix):
            return kind
    raise ValueError("unknown kind of hash")


def costOf(stored: str) -> float:
    """
    Check that a hash is usable, and estimate the CPU time of a comparison.

    @return: milliseconds.
    @raise ValueError: the hash is malformed or out of bounds.  The text is a short reason, and
        does not contain the hash.
    """
    if len(stored) > _LONGEST:
        raise ValueError(f"a hash of more than {_LONGEST} characters")
    if not stored.isascii() and not stored.startswith(PLAIN):
        raise ValueError("unknown kind of hash")
    return _kindOf(stored).cost(stored)


def isPlain(stored: str) -> bool:
    """
    @return: whether the password is in the clear.  Comparing it needs no thread.
    """
    return stored.startswith(PLAIN)


def verify(stored: str, password: bytes) -> bool:
    """
    Compare a password with a hash for which L{costOf} has returned a number.  Blocks.

    @return: whether they match.
    @raise Exception: the comparison failed, for example for lack of memory.
    """
    return _kindOf(stored).verify(stored, password)
