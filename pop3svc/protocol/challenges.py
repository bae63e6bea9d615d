"""
Make the challenges and the digests of APOP (RFC 1939 section 7) and CRAM-MD5 (RFC 2195).
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

from pop3svc.errors import BadArguments

__all__ = ["apopDigest", "cramDigest", "makeChallenge", "readCram"]

_CRAM = re.compile(rb"(?P<name>[^\x00-\x1f\x7f]{1,255}) (?P<digest>[0-9a-f]{32})")


def makeChallenge() -> str:
    """
    @return: a new challenge in the form of a message-id.  It contains no C{=}, because mpop refuses
        this character.  It does not contain the name of this machine.
    """
    return f"<{secrets.token_hex(16)}@pop3svc>"


def _octets(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def apopDigest(challenge: str, password: str) -> str:
    """
    @return: the digest of APOP as 32 hexadecimal digits.
    """
    made = hashlib.md5(_octets(challenge) + _octets(password), usedforsecurity=False)
    return made.hexdigest()


def cramDigest(challenge: str, password: str) -> str:
    """
    @return: the digest of CRAM-MD5 as 32 hexadecimal digits.
    """
    return hmac.new(_octets(password), _octets(challenge), "md5").hexdigest()


def readCram(response: bytes) -> tuple[str, str]:
    """
    Read a response of CRAM-MD5 (RFC 2195 section 2).

    @return: the name of the user, and the digest.
    @raise BadArguments: the response is malformed, or the name has control characters.
    """
    found = _CRAM.fullmatch(response)
    if found is None:
        raise BadArguments("Response is not valid for CRAM-MD5.")
    return found["name"].decode("utf-8", "surrogateescape"), found["digest"].decode("ascii")
