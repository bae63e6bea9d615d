"""
Read stored passwords of all kinds, estimate the cost of a comparison, and compare.

Every source of accounts that has stored passwords uses this module.  A stored password may begin
with a scheme of Dovecot or Courier, such as C{{SSHA256}} or C{{SHA512.HEX}}.  If it does not, it
has the default scheme of the source.  The usual default is C{CRYPT}, which finds the kind of a hash
by its first characters, such as C{$argon2id$} or C{$6$}.
"""

from __future__ import annotations

import binascii
import hmac
import re
from base64 import b64decode
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from pop3svc.accounts.digests import (
    FIXED,
    SALTED,
    DigestScheme,
    cramMD5,
    digestMD5,
    pbkdf2,
    plainMD4,
    readScram,
    scram,
)
from pop3svc.accounts.modular import ModularHash, findModular, hashOfNobody, hashPassword
from pop3svc.interfaces import ScramKeys

__all__ = ["HASHES", "KINDS", "LONGEST_PASSWORD", "HashReader", "hashOfNobody", "hashPassword"]

# The most octets of a password.  Every kind of hash accepts passwords of this length.
LONGEST_PASSWORD = 1024
# The most characters of a stored password.  A password of LONGEST_PASSWORD octets fits with the
# scheme {PLAIN}.
_LONGEST = 2048
# A comparison that takes at most this many milliseconds of CPU time runs in the reactor's thread.
_QUICK = 0.05

# The kinds of hashes, as messages to the operator name them.
KINDS = (
    "argon2, bcrypt ($2b$), sha512-crypt ($6$), sha256-crypt ($5$), md5-crypt ($1$), scrypt, "
    "yescrypt, and {SCHEME} of Dovecot"
)


class _Scheme(NamedTuple):
    """
    A scheme of stored passwords, such as C{{SSHA256}}.

    @ivar decode: takes the text after the scheme, and the suffix of the scheme (C{""}, C{"b64"} or
        C{"hex"}).  It returns the value that C{cost} and C{verify} take, or raises L{ValueError}.
    @ivar cost: takes the decoded value and returns the CPU time of a comparison in milliseconds.
        It raises L{ValueError} if the hash is malformed or would cost too much.
    @ivar verify: takes the decoded value, a password and the name of the user, and returns whether
        they match.
    """

    decode: Callable[[str, str], Any]
    cost: Callable[[Any], float]
    verify: Callable[[Any, bytes, str], bool]
    isPlain: bool = False


# --- forms of the text ----------------------------------------------------------------


def _fromBase64(text: str) -> bytes:
    try:
        return b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (ValueError, binascii.Error):
        raise ValueError("malformed base64")


def _fromHex(text: str) -> bytes:
    if not re.fullmatch("(?:[0-9A-Fa-f]{2})*", text):
        raise ValueError("malformed hexadecimal digits")
    return bytes.fromhex(text)


def _asText(text: str, suffix: str) -> str:
    """
    Decode a text.  If C{suffix} is empty, the text is returned unchanged.
    """
    if suffix == "":
        return text
    data = _fromHex(text) if suffix == "hex" else _fromBase64(text)
    return data.decode("utf-8", "surrogateescape")


def _asDigest(size: int, text: str, suffix: str) -> bytes:
    """
    Decode the octets of a digest.  The text is in hexadecimal digits if C{suffix} says so, or if
    C{suffix} is empty and the text is twice as long as the digest.  Otherwise it is in base64.
    """
    isHex = suffix == "hex" or (suffix == "" and len(text) == 2 * size)
    return _fromHex(text) if isHex else _fromBase64(text)


def _asSalted(text: str, suffix: str) -> bytes:
    return _fromHex(text) if suffix == "hex" else _fromBase64(text)


# --- schemes --------------------------------------------------------------------------


def _costPlain(text: str) -> float:
    if not text:
        raise ValueError("an empty password")
    return 0.0


def _verifyPlain(text: str, password: bytes, _: str) -> bool:
    return hmac.compare_digest(text.encode("utf-8", "surrogateescape"), password)


_PLAIN = _Scheme(_asText, _costPlain, _verifyPlain, isPlain=True)


def _crypt(*prefixes: str) -> _Scheme:
    """
    Make a scheme for hashes that begin with the kind of the hash.

    @param prefixes: the prefixes of the allowed kinds.  If there are none, all kinds are allowed.
    """

    def kindOf(text: str) -> ModularHash:
        found = findModular(text)
        if found is None or (prefixes and found[0] not in prefixes):
            raise ValueError("unknown kind of hash")
        return found[1]

    return _Scheme(
        _asText,
        lambda text: kindOf(text).cost(text),
        lambda text, password, _: kindOf(text).verify(text, password),
    )


def _digest(scheme: DigestScheme) -> _Scheme:
    def cost(data: bytes) -> float:
        scheme.check(data)
        return _QUICK / 10

    decode = _asSalted if scheme.isSalted else partial(_asDigest, scheme.size)
    return _Scheme(decode, cost, lambda data, password, _: scheme.verify(data, password))


def _octets(size: int, milliseconds: float, verify: Callable[[bytes, bytes, str], bool]) -> _Scheme:
    def cost(data: bytes) -> float:
        if len(data) != size:
            raise ValueError("a digest of the wrong length")
        return milliseconds

    return _Scheme(partial(_asDigest, size), cost, verify)


def _plainMD4() -> _Scheme:
    def cost(data: bytes) -> float:
        try:
            import passlib.crypto.digest  # noqa: F401
        except ImportError:
            raise ValueError("a hash that needs libpass: pip install 'pop3svc[hashes]'")
        if len(data) != 16:
            raise ValueError("a digest of the wrong length")
        return 0.1

    return _Scheme(partial(_asDigest, 16), cost, lambda data, password, _: plainMD4(data, password))


def _rounds(scheme: Any) -> _Scheme:
    return _Scheme(
        _asText, scheme.cost, lambda text, password, _: bool(scheme.verify(text, password))
    )


def _md5() -> _Scheme:
    """
    Make Dovecot's scheme C{MD5}.  The text is a hash that begins with C{$1$}, or a digest of the
    password.
    """
    text, digest = _crypt("$1$"), _digest(FIXED["PLAIN-MD5"])

    def decode(stored: str, suffix: str) -> Any:
        return (text if stored.startswith("$1$") else digest).decode(stored, suffix)

    def kindOf(data: Any) -> _Scheme:
        return text if isinstance(data, str) else digest

    return _Scheme(
        decode,
        lambda data: kindOf(data).cost(data),
        lambda data, password, name: kindOf(data).verify(data, password, name),
    )


_CRYPT = _crypt()
_CRAM = _octets(32, 0.2, lambda data, password, _: cramMD5(data, password))
_SCHEMES = (
    {
        "PLAIN": _PLAIN,
        "CLEAR": _PLAIN,
        "CLEARTEXT": _PLAIN,
        "CRYPT": _CRYPT,
        "DES-CRYPT": _crypt(""),
        "MD5-CRYPT": _crypt("$1$"),
        "SHA256-CRYPT": _crypt("$5$"),
        "SHA512-CRYPT": _crypt("$6$"),
        "BLF-CRYPT": _crypt("$2"),
        "ARGON2": _crypt("$argon2"),
        "ARGON2I": _crypt("$argon2"),
        "ARGON2ID": _crypt("$argon2"),
        "PBKDF2": _rounds(pbkdf2),
        "SCRAM-SHA-1": _rounds(scram("sha1")),
        "SCRAM-SHA-256": _rounds(scram("sha256")),
        "MD5": _md5(),
        "PLAIN-MD4": _plainMD4(),
        "CRAM-MD5": _CRAM,
        "HMAC-MD5": _CRAM,
        "DIGEST-MD5": _octets(16, 0.01, digestMD5),
    }
    | {name: _digest(scheme) for name, scheme in FIXED.items()}
    | {name: _digest(scheme) for name, scheme in SALTED.items()}
)
_SCRAM = {"sha1": _SCHEMES["SCRAM-SHA-1"], "sha256": _SCHEMES["SCRAM-SHA-256"]}
# In Courier's authentication library, MD5 means what Dovecot calls LDAP-MD5, and MD5RAW means what
# Dovecot calls PLAIN-MD5.
_COURIER = _SCHEMES | {"MD5": _SCHEMES["LDAP-MD5"], "MD5RAW": _SCHEMES["PLAIN-MD5"]}
_PREFIX = re.compile(r"\{([A-Za-z0-9-]{1,32})(?:\.(?i:(b64|base64|hex)))?\}")


class HashReader:
    """
    Reads the stored passwords of one source of accounts.  A user whose stored password has an
    unknown scheme cannot log in.
    """

    def __init__(self, default: str = "CRYPT", isCourier: bool = False) -> None:
        """
        @param default: the scheme of a stored password that does not begin with a scheme.
        @param isCourier: whether the schemes C{{MD5}} and C{{MD5RAW}} have the meanings that they
            have in Courier.
        @raise ValueError: the scheme does not exist.
        """
        self._schemes = _COURIER if isCourier else _SCHEMES
        known = self._schemes.get(default.upper())
        if known is None:
            raise ValueError(f"there is no scheme {default}; there are {', '.join(self._schemes)}")
        self._default = known

    def _read(self, stored: str) -> tuple[_Scheme, Any]:
        if len(stored) > _LONGEST:
            raise ValueError(f"a hash of more than {_LONGEST} characters")
        found = _PREFIX.match(stored)
        scheme, text, suffix = self._default, stored, ""
        if found is not None:
            known = self._schemes.get(found[1].upper())
            if known is None:
                raise ValueError("unknown kind of hash")
            scheme, text = known, stored[found.end() :]
            suffix = (found[2] or "").lower().replace("base64", "b64")
        if not text.isascii() and not scheme.isPlain:
            raise ValueError("unknown kind of hash")
        return scheme, scheme.decode(text, suffix)

    def costOf(self, stored: str) -> float:
        """
        Check that a stored password is usable, and estimate the CPU time of a comparison.

        @return: the CPU time in milliseconds.
        @raise ValueError: the stored password is malformed or would cost too much.  The text is a
            short reason that does not contain the hash.
        """
        scheme, data = self._read(stored)
        return scheme.cost(data)

    def isPlain(self, stored: str) -> bool:
        """
        @return: whether the stored password is a password in clear text.
        """
        return self._read(stored)[0].isPlain

    def passwordOf(self, stored: str) -> str | None:
        """
        @return: the password in clear text; L{None} if the stored password is a hash.
        """
        scheme, data = self._read(stored)
        return data if scheme.isPlain else None

    def scramKeys(self, stored: str, algorithm: str) -> ScramKeys | None:
        """
        @param stored: a stored password for which L{costOf} has returned a number.
        @param algorithm: C{"sha1"} or C{"sha256"}.
        @return: the keys, if the stored password is a SCRAM verifier for this algorithm; otherwise
            L{None}.
        """
        scheme, data = self._read(stored)
        return readScram(data, algorithm) if scheme is _SCRAM[algorithm] else None

    def isWhollyCompared(self, stored: str, password: bytes) -> bool:
        """
        @param stored: a stored password for which L{costOf} has returned a number.
        @return: whether the comparison depends on all octets of the password.  DES ignores octets
            after the 8th, and bcrypt ignores octets after the 72nd.
        """
        _, data = self._read(stored)
        kind = findModular(data) if isinstance(data, str) else None
        if kind is None:
            return True
        return len(password) <= {"": 8, "$2": 72}.get(kind[0], LONGEST_PASSWORD)

    def quickly(self, stored: str, password: bytes, username: str) -> Callable[[], bool] | None:
        """
        @return: a function that compares the two passwords, as L{verify} does; L{None} if the
            comparison would block the reactor's thread for too long.
        """
        scheme, data = self._read(stored)
        if scheme.cost(data) > _QUICK:
            return None
        return partial(scheme.verify, data, password, username)

    def verify(self, stored: str, password: bytes, username: str) -> bool:
        """
        Compare a password with a hash for which L{costOf} has returned a number.  Blocks.

        @param username: the name of the user, which some schemes include in the hash.
        @return: whether the password matches.
        @raise Exception: the comparison failed, for example for lack of memory.
        """
        scheme, data = self._read(stored)
        return scheme.verify(data, password, username)


# The reader for sources of accounts that have no options for hashes.
HASHES = HashReader()
