"""
Prepare user names and passwords for comparison (RFC 8265), so that different spellings of a name
mean the same user.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

__all__ = ["LONGEST_NAME", "LONGEST_PASSWORD", "prepareName", "preparePassword"]

# The most octets of a name, and of a password that is not ASCII.  With some characters the time
# grows with the square of the length: 256 octets take at most 4 ms, and 1,024 octets take 66 ms.
LONGEST_NAME = 255
LONGEST_PASSWORD = 256


@lru_cache
def _profile(name: str) -> Any:
    # Imported late, because the import takes 40 ms, and most services need only ASCII.
    from precis_i18n import get_profile

    return get_profile(name)


def _enforced(profile: str, text: str, longest: int) -> str | None:
    """
    @return: the prepared text; L{None} if the profile does not allow the text.
    """
    # Each character has at least one octet, so this check also limits the time for encoding.
    if len(text) > longest:
        return None
    try:
        if len(text.encode("utf-8")) > longest:
            return None
        found: str = _profile(profile).enforce(text)
    except UnicodeEncodeError:
        # precis_i18n raises this error, and the encoding raises it for octets that were not UTF-8.
        return None
    return found


def prepareName(name: str, isCaseMapped: bool = False) -> str:
    """
    Prepare a user name by the profile UsernameCasePreserved or UsernameCaseMapped (RFC 8265
    section 3).

    @param name: octets that are not UTF-8 are surrogate escapes.
    @param isCaseMapped: whether C{Alice} and C{alice} are the same user.
    @return: the prepared name.  Preparing it again does not change it.
    @raise ValueError: the profile does not allow the name; a sentence for the operator.
    """
    # Printable ASCII without spaces needs no library, because the profiles allow these characters
    # and change only their case.
    if name.isascii() and name.isprintable() and " " not in name:
        return name.lower() if isCaseMapped else name
    profile = "UsernameCaseMapped" if isCaseMapped else "UsernameCasePreserved"
    prepared = _enforced(profile, name, LONGEST_NAME)
    if prepared is None:
        raise ValueError(
            "a user name has no spaces, no control characters and no symbols that are not ASCII, "
            f"at most {LONGEST_NAME} octets, and one writing direction (RFC 8265)"
        )
    return prepared


def preparePassword(password: str) -> str:
    """
    Prepare a password by the profile OpaqueString (RFC 8265 section 4).

    @param password: octets that are not UTF-8 are surrogate escapes.
    @return: the prepared password.
    @raise ValueError: the profile does not allow the password; a sentence for the operator.
    """
    # The profile does not change printable ASCII.
    if password.isascii() and password.isprintable():
        return password
    prepared = _enforced("OpaqueString", password, LONGEST_PASSWORD)
    if prepared is None:
        raise ValueError(
            "a password is UTF-8 without control and invisible characters, and has at most "
            f"{LONGEST_PASSWORD} octets if it is not ASCII (RFC 8265)"
        )
    return prepared
