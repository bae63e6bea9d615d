"""
Compare passwords with the digests that Dovecot and Courier store.  Most of these digests are quick
to compute.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import math
import re
import struct
from base64 import b64decode
from collections.abc import Callable
from typing import NamedTuple

from pop3svc.interfaces import ScramKeys

__all__ = [
    "FIXED",
    "SALTED",
    "DigestScheme",
    "cramMD5",
    "digestMD5",
    "pbkdf2",
    "plainMD4",
    "readScram",
    "scram",
]

# The most rounds of PBKDF2 and SCRAM.  This number of rounds takes some two seconds of CPU time.  A
# limit is necessary because a client can cause a comparison without being logged in.
_MOST_ROUNDS = 5_000_000
# The least number of rounds of SCRAM.  RFC 7677 section 4 recommends it, and some clients refuse
# fewer rounds.
_LEAST_SCRAM_ROUNDS = 4096
_ROUNDS_PER_MILLISECOND = 2500


class DigestScheme(NamedTuple):
    """
    A scheme whose digest is made of the password, followed by a salt if the scheme has one.

    @ivar algorithm: the name of the digest in C{hashlib}.
    @ivar size: the size of the digest in octets.
    @ivar isSalted: whether the stored value contains a salt after the digest.
    """

    algorithm: str
    size: int
    isSalted: bool

    def check(self, data: bytes) -> None:
        """
        @raise ValueError: C{data} does not have the length of this scheme.
        """
        isWhole = len(data) > self.size if self.isSalted else len(data) == self.size
        if not isWhole:
            raise ValueError("a digest of the wrong length")

    def verify(self, data: bytes, password: bytes) -> bool:
        """
        @return: whether C{data} contains the digest of the password.
        """
        known, salt = data[: self.size], data[self.size :]
        made = hashlib.new(self.algorithm, password + salt, usedforsecurity=False).digest()
        return hmac.compare_digest(made, known)


FIXED = {
    "SHA": DigestScheme("sha1", 20, False),
    "SHA1": DigestScheme("sha1", 20, False),
    "SHA256": DigestScheme("sha256", 32, False),
    "SHA512": DigestScheme("sha512", 64, False),
    "PLAIN-MD5": DigestScheme("md5", 16, False),
    "LDAP-MD5": DigestScheme("md5", 16, False),
}
SALTED = {
    "SMD5": DigestScheme("md5", 16, True),
    "SSHA": DigestScheme("sha1", 20, True),
    "SSHA256": DigestScheme("sha256", 32, True),
    "SSHA512": DigestScheme("sha512", 64, True),
}


# --- with rounds ------------------------------------------------------------------------


class _Rounds(NamedTuple):
    """
    A scheme whose hash is computed in many rounds.

    @ivar cost: takes the stored text and returns the CPU time of a comparison in milliseconds.  It
        raises L{ValueError} if the text is malformed.
    @ivar verify: takes the stored text and a password, and returns whether they match.
    """

    cost: Callable[[str], float]
    verify: Callable[[str, bytes], bool]


def _roundsOf(text: str) -> int:
    rounds = int(text)
    if not 1 <= rounds <= _MOST_ROUNDS:
        raise ValueError(f"a hash with rounds out of bounds (at most {_MOST_ROUNDS})")
    return rounds


_PBKDF2 = re.compile(r"\$1\$([^$]{1,64})\$([0-9]{1,10})\$([0-9A-Fa-f]{40})")


def _costPBKDF2(text: str) -> float:
    found = _PBKDF2.fullmatch(text)
    if found is None:
        raise ValueError("a malformed PBKDF2 hash")
    return _roundsOf(found[2]) / _ROUNDS_PER_MILLISECOND


def _verifyPBKDF2(text: str, password: bytes) -> bool:
    found = _PBKDF2.fullmatch(text)
    assert found is not None
    salt = found[1].encode("utf-8", "surrogateescape")
    made = hashlib.pbkdf2_hmac("sha1", password, salt, int(found[2]), 20)
    return hmac.compare_digest(made, bytes.fromhex(found[3]))


pbkdf2 = _Rounds(_costPBKDF2, _verifyPBKDF2)

_SCRAM = re.compile(
    r"([0-9]{1,10}),([A-Za-z0-9+/=]{1,128}),([A-Za-z0-9+/=]{1,128}),([A-Za-z0-9+/=]{1,128})"
)


def readScram(text: str, algorithm: str) -> ScramKeys:
    """
    Read a verifier of SCRAM (RFC 5802 section 3).  Its form is C{rounds,salt,StoredKey,ServerKey}.
    The last three values are in base64.

    @raise ValueError: the verifier is malformed, or the number of rounds is too small or too large.
    """
    size = hashlib.new(algorithm).digest_size
    found = _SCRAM.fullmatch(text)
    try:
        if found is None:
            raise ValueError("no verifier")
        salt, stored, server = (b64decode(found[each], validate=True) for each in (2, 3, 4))
    except (ValueError, binascii.Error):
        raise ValueError("a malformed SCRAM verifier")
    if not salt or len(stored) != size or len(server) != size:
        raise ValueError("a malformed SCRAM verifier")
    rounds = _roundsOf(found[1])
    if rounds < _LEAST_SCRAM_ROUNDS:
        raise ValueError(f"a SCRAM verifier with fewer than {_LEAST_SCRAM_ROUNDS} rounds")
    return ScramKeys(salt, rounds, stored, server)


def _prepared(password: bytes) -> bytes:
    """
    @return: the password after the preparation for SCRAM (RFC 5802 section 2.2).  If SASLprep (RFC
        4013) does not allow the password, the password is returned unchanged.
    """
    if password.isascii():
        return password
    from scramp import ScramException
    from scramp.utils import saslprep

    try:
        return str(saslprep(password.decode("utf-8"))).encode("utf-8")
    except (ScramException, UnicodeDecodeError):
        return password


def scram(algorithm: str) -> _Rounds:
    """
    Make the scheme of SCRAM verifiers; see L{readScram}.
    """

    def verify(text: str, password: bytes) -> bool:
        keys = readScram(text, algorithm)
        salted = hashlib.pbkdf2_hmac(algorithm, _prepared(password), keys.salt, keys.rounds)
        key = hmac.digest(salted, b"Client Key", algorithm)
        return hmac.compare_digest(hashlib.new(algorithm, key).digest(), keys.storedKey)

    return _Rounds(lambda text: readScram(text, algorithm).rounds / _ROUNDS_PER_MILLISECOND, verify)


# --- MD4 and MD5 in other forms ---------------------------------------------------------


def plainMD4(data: bytes, password: bytes) -> bool:
    """
    Compare a password with an MD4 digest.  This function does not rely on C{hashlib}, which has no
    MD4 with newer versions of OpenSSL.
    """
    from passlib.crypto.digest import lookup_hash

    made: bytes = lookup_hash("md4").const(password).digest()
    return hmac.compare_digest(made, data)


def digestMD5(data: bytes, password: bytes, username: str) -> bool:
    """
    Compare a password with the MD5 of C{user:realm:password} (RFC 2831 section 2.1.2.1).

    @param username: the name of the user.  The part after the first C{@} is the realm.  If there is
        no C{@}, the realm is empty.
    """
    user, _, realm = username.encode("utf-8", "surrogateescape").partition(b"@")
    made = hashlib.md5(b":".join((user, realm, password)), usedforsecurity=False).digest()
    return hmac.compare_digest(made, data)


_SHIFTS = (7, 12, 17, 22) * 4 + (5, 9, 14, 20) * 4 + (4, 11, 16, 23) * 4 + (6, 10, 15, 21) * 4
_SINES = [int(abs(math.sin(each + 1)) * (1 << 32)) for each in range(64)]
_START = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)


def _stateMD5(block: bytes) -> bytes:
    """
    @param block: the first block of a message, 64 octets.
    @return: the state of MD5 (RFC 1321 section 3.4) after the block.  This function computes it,
        because C{hashlib} does not return the state.
    """
    words = struct.unpack("<16I", block)
    a, b, c, d = _START
    for step, (shift, sine) in enumerate(zip(_SHIFTS, _SINES, strict=True)):
        if step < 16:
            mixed, index = (b & c) | (~b & d), step
        elif step < 32:
            mixed, index = (d & b) | (~d & c), (5 * step + 1) % 16
        elif step < 48:
            mixed, index = b ^ c ^ d, (3 * step + 5) % 16
        else:
            mixed, index = c ^ (b | (~d & 0xFFFFFFFF)), 7 * step % 16
        total = (a + mixed + sine + words[index]) & 0xFFFFFFFF
        a, d, c, b = d, c, b, (b + (total << shift | total >> (32 - shift))) & 0xFFFFFFFF
    ended = zip(_START, (a, b, c, d), strict=True)
    return struct.pack("<4I", *((old + new) & 0xFFFFFFFF for old, new in ended))


def cramMD5(data: bytes, password: bytes) -> bool:
    """
    Compare a password with a digest that Dovecot stores for CRAM-MD5.  The digest contains the two
    states of MD5 that HMAC-MD5 (RFC 2104) has after it has processed the padded key.  The outer
    state comes first.
    """
    key = password
    if len(key) > 64:
        key = hashlib.md5(key, usedforsecurity=False).digest()
    key = key.ljust(64, b"\0")
    outer, inner = (bytes(octet ^ pad for octet in key) for pad in (0x5C, 0x36))
    return hmac.compare_digest(_stateMD5(outer) + _stateMD5(inner), data)
