"""
Prepare user names and passwords for comparison (RFC 8265), so that different spellings of a name
mean the same user.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

__all__ = ["LONGEST_NAME", "LONGEST_PASSWORD", "prepareName", "preparePassword"]

# The most octets of a name and of a password that are not printable ASCII.  With some characters,
# the time of a preparation grows with the square of the length.  The longest time is 4 ms for 256
# octets, and 66 ms for 1,024 octets.
LONGEST_NAME = 255
LONGEST_PASSWORD = 256


@lru_cache
def _profile(name: str) -> Any:
    # Import the library only when it is needed, because the import takes 40 ms.  Most services have
    # only names and passwords in ASCII.
    from precis_i18n import get_profile

    return get_profile(name)


def _enforced(profile: str, text: str, longest: int) -> str | None:
    """
    @return: the prepared text; L{None} if the profile does not allow the text.
    """
    # Check the number of characters first, because it limits the time that the encoding takes.
    if len(text) > longest:
        return None
    try:
        if len(text.encode("utf-8")) > longest:
            return None
        found: str = _profile(profile).enforce(text)
    except UnicodeEncodeError:
        # precis_i18n raises this error if the profile does not allow the text.  The encoding raises
        # it if the text contains surrogates.
        return None
    return found


def prepareName(name: str, isCaseMapped: bool = False) -> str:
    """
    Prepare a user name with the profile UsernameCasePreserved or UsernameCaseMapped (RFC 8265
    section 3).

    @param name: the user name.  Octets that are not UTF-8 must be surrogates (the error handler
        C{surrogateescape}).
    @param isCaseMapped: whether the case of letters is ignored, so that C{Alice} and C{alice} are
        the same user.
    @return: the prepared name.  A further preparation does not change the result.
    @raise ValueError: the profile does not allow the name.  The text is a sentence for the
        operator.
    """
    # For printable ASCII without spaces the library is not needed, because the profiles allow these
    # characters and change at most their case.
    if name.isascii() and name.isprintable() and " " not in name:
        return name.lower() if isCaseMapped else name
    profile = "UsernameCaseMapped" if isCaseMapped else "UsernameCasePreserved"
    prepared = _enforced(profile, name, LONGEST_NAME)
    if prepared is None:
        raise ValueError(
            "a user name has no spaces, no control characters and no symbols that are not ASCII; "
            f"it has at most {LONGEST_NAME} octets and one writing direction (RFC 8265)"
        )
    return prepared


def preparePassword(password: str) -> str:
    """
    Prepare a password with the profile OpaqueString (RFC 8265 section 4).

    @param password: the password.  Octets that are not UTF-8 must be surrogates (the error handler
        C{surrogateescape}).
    @return: the prepared password.
    @raise ValueError: the profile does not allow the password.  The text is a sentence for the
        operator.
    """
    # For printable ASCII the library is not needed, because the profile does not change these
    # characters.
    if password.isascii() and password.isprintable():
        return password
    prepared = _enforced("OpaqueString", password, LONGEST_PASSWORD)
    if prepared is None:
        raise ValueError(
            "a password is UTF-8 without control and invisible characters, and has at most "
            f"{LONGEST_PASSWORD} octets if it is not ASCII (RFC 8265)"
        )
    return prepared
