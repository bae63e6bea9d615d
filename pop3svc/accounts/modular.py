"""
Compare password hashes in the form of crypt(3) and its successors: C{$id$parameters$salt$hash}.
"""

from __future__ import annotations

import binascii
import ctypes
import ctypes.util
import hashlib
import hmac
import re
import secrets
from base64 import b64decode, b64encode
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError

__all__ = ["ModularHash", "findModular", "hashOfNobody", "hashPassword"]

_hasher = PasswordHasher()

# Limits on the cost of a comparison.  They are necessary because a client can cause a comparison
# without being logged in.  The limits allow three to six seconds of CPU time and one GiB of memory,
# which is more than ten times the usual cost.
_MOST_MEMORY = 1 << 30
_MOST_ARGON2_PASSES = 64
_MOST_ARGON2_LANES = 64
# The most KiB that all passes together may write.
_MOST_ARGON2_WORK = 4 << 20
_MOST_BCRYPT_COST = 16
_MOST_SHA_ROUNDS = 5_000_000
# The most blocks of 128 octets in all lanes together.  This number also limits the memory.
_MOST_SCRYPT_WORK = _MOST_MEMORY // 128


class ModularHash(NamedTuple):
    """
    A kind of hash.

    @ivar name: the name of the kind in messages to the operator.
    @ivar cost: takes a hash and returns the approximate CPU time of a comparison in milliseconds.
        It raises L{ValueError} if the hash is malformed or would cost too much.
    @ivar verify: takes a hash and a password, and returns whether they match.
    """

    name: str
    cost: Callable[[str], float]
    verify: Callable[[str, bytes], bool]


def hashPassword(password: str) -> str:
    """
    Hash a password with argon2.  The hash takes about 0.1 s of CPU time.

    @return: the hash in the form that a password file contains.
    """
    return _hasher.hash(password.encode("utf-8", "surrogateescape"))


def hashOfNobody() -> str:
    """
    Make a hash whose password nobody knows, without the work of L{hashPassword}.

    @return: random octets in the form of a hash.  A comparison with this text takes as long as a
        comparison with a hash of L{hashPassword}.
    """
    parameters = f"m={_hasher.memory_cost},t={_hasher.time_cost},p={_hasher.parallelism}"
    salt, key = (
        b64encode(secrets.token_bytes(size)).decode().rstrip("=")
        for size in (_hasher.salt_len, _hasher.hash_len)
    )
    return f"$argon2id$v=19${parameters}${salt}${key}"


def _decoded(text: str) -> bytes:
    """
    @raise ValueError: the text is not base64 without padding, or not in its canonical form.
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
    # Let other errors pass, such as a lack of memory.  They do not mean that the password is wrong.
    try:
        return _hasher.verify(stored, password)
    except VerifyMismatchError:
        return False


def _needs(package: str) -> ValueError:
    return ValueError(f"a hash that needs {package}: pip install 'pop3svc[hashes]'")


# The last character of the salt has two significant bits, so it must be one of four characters.
_BCRYPT = re.compile(r"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")


def _costBcrypt(stored: str) -> float:
    try:
        import bcrypt  # noqa: F401
    except ImportError:
        raise _needs("bcrypt")
    found = _BCRYPT.fullmatch(stored)
    if found is None:
        raise ValueError("a malformed bcrypt hash")
    cost = int(found[1])
    if not 4 <= cost <= _MOST_BCRYPT_COST:
        raise ValueError(f"a bcrypt hash with a cost out of bounds (from 4 to {_MOST_BCRYPT_COST})")
    return float(1 << cost) / 16


def _verifyBcrypt(stored: str, password: bytes) -> bool:
    import bcrypt

    # The algorithm ignores octets after the 72nd.  The package bcrypt, from version 5 on, raises an
    # error for a longer password.
    return bcrypt.checkpw(password[:72], stored.encode("ascii"))


def _costPasslib(name: str, kind: str, most: int, perMillisecond: float) -> Callable[[str], float]:
    """
    @param most: the most rounds; 0 for a kind of hash without rounds.
    """

    def cost(stored: str) -> float:
        parsed: Any = None
        handler = _handler(name)
        try:
            parsed = handler.from_string(stored)
        except ValueError:
            pass
        if parsed is None or parsed.checksum is None:
            raise ValueError(f"a malformed {kind} hash")
        rounds = parsed.rounds if most else 1000
        if most and rounds > most:
            raise ValueError(f"a {kind} hash with rounds out of bounds (at most {most})")
        return float(rounds) / perMillisecond

    return cost


def _handler(name: str) -> Any:
    try:
        import passlib.hash
    except ImportError:
        raise _needs("libpass")
    return getattr(passlib.hash, name)


def _verifyPasslib(name: str) -> Callable[[str, bytes], bool]:
    return lambda stored, password: bool(_handler(name).verify(password, stored))


def _fromPasslib(name: str, kind: str, shown: str, most: int, perMillisecond: float) -> ModularHash:
    return ModularHash(shown, _costPasslib(name, kind, most, perMillisecond), _verifyPasslib(name))


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


# --- yescrypt, by the library of crypt(3) -------------------------------------------------

_ITOA64 = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# A hash with the flavour "j" (the default) and the parameters log2(N) and r, one digit each.
# Hashes with further parameters are rare and are not supported.
_YESCRYPT = re.compile(
    r"\$g?y\$j([./0-9A-Za-j])([./0-9A-Za-j])\$[./0-9A-Za-z]{0,86}\$[./0-9A-Za-z]{43}"
)
# A hash with log2(N) as one digit, r as five digits and p as five digits.  The lowest digit of a
# number comes first.
_SCRYPT7 = re.compile(
    r"\$7\$([./0-9A-Za-z])([./0-9A-Za-z]{5})([./0-9A-Za-z]{5})[./0-9A-Za-z]{0,86}\$[./0-9A-Za-z]{43}"
)
# The size of the memory that crypt_rn() needs, in octets (CRYPT_DATA_SIZE of libxcrypt).
_WORK_SPACE = 32768


@cache
def _libcrypt() -> Any:
    """
    @return: the function crypt_rn() of libxcrypt; L{None} if the system does not have this library.
        Several threads may call the function at the same time.
    """
    name = ctypes.util.find_library("crypt")
    try:
        call = ctypes.CDLL(name or "libcrypt.so.1").crypt_rn
    except (OSError, AttributeError):
        return None
    call.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int]
    call.restype = ctypes.c_char_p
    return call


def _number(digits: str) -> int:
    return sum(_ITOA64.index(digit) << 6 * place for place, digit in enumerate(digits))


def _yescryptWork(stored: str) -> tuple[int, int, int] | None:
    """
    @return: log2(N), r and p of a hash; L{None} if the hash is malformed.
    """
    if (found := _YESCRYPT.fullmatch(stored)) is not None:
        # In this form the digit for a parameter is the parameter minus 1.
        return _number(found[1]) + 1, _number(found[2]) + 1, 1
    if (found := _SCRYPT7.fullmatch(stored)) is not None:
        return _number(found[1]), _number(found[2]), _number(found[3])
    return None


def _costYescrypt(stored: str) -> float:
    if _libcrypt() is None:
        raise ValueError("a hash that needs libxcrypt, which this system does not have")
    work = _yescryptWork(stored)
    if work is None:
        raise ValueError("a malformed yescrypt hash")
    ln, r, p = work
    if not (1 <= ln <= 20 and 1 <= r <= 64 and 1 <= p <= 16) or r * p << ln > _MOST_SCRYPT_WORK:
        raise ValueError(
            "a yescrypt hash with parameters out of bounds (2**ln times r times p at most "
            f"{_MOST_SCRYPT_WORK})"
        )
    return (r * p << ln) / 2500


def _verifyYescrypt(stored: str, password: bytes) -> bool:
    setting = stored.encode("ascii")
    made = _libcrypt()(password, setting, ctypes.create_string_buffer(_WORK_SPACE), _WORK_SPACE)
    if made is None:
        raise MemoryError("crypt(3) failed")
    return hmac.compare_digest(made, setting)


# --- the kinds --------------------------------------------------------------------------

_YESCRYPT_KIND = ModularHash("yescrypt", _costYescrypt, _verifyYescrypt)
_KINDS = {
    "$argon2": ModularHash("argon2", _costArgon2, _verifyArgon2),
    "$2": ModularHash("bcrypt ($2b$)", _costBcrypt, _verifyBcrypt),
    "$6$": _fromPasslib(
        "sha512_crypt", "sha512-crypt", "sha512-crypt ($6$)", _MOST_SHA_ROUNDS, 800
    ),
    "$5$": _fromPasslib(
        "sha256_crypt", "sha256-crypt", "sha256-crypt ($5$)", _MOST_SHA_ROUNDS, 800
    ),
    "$1$": _fromPasslib("md5_crypt", "md5-crypt", "md5-crypt ($1$)", 0, 500),
    "$scrypt$": ModularHash("scrypt", _costScrypt, _verifyScrypt),
    "$y$": _YESCRYPT_KIND,
    "$gy$": _YESCRYPT_KIND,
    "$7$": _YESCRYPT_KIND,
}
_DES = _fromPasslib("des_crypt", "DES-crypt", "DES-crypt", 0, 500)
_DES_FORM = re.compile(r"[./0-9A-Za-z]{13}")


def findModular(stored: str) -> tuple[str, ModularHash] | None:
    """
    @return: the prefix and the kind of a hash; L{None} if the kind is unknown.  The prefix of DES
        is empty.
    """
    for prefix, kind in _KINDS.items():
        if stored.startswith(prefix):
            return prefix, kind
    return ("", _DES) if _DES_FORM.fullmatch(stored) else None
