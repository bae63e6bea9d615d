"""
Make and recognise application passwords.  An application password is a random secret for one mail
program of a user.

A secret has 32 characters of base32 (RFC 4648 section 6) in eight groups.  The first group is the
selector, which is not secret.  It tells the service which hash of the user to compare.  A
comparison with each hash of the user would take too long.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Container, Sequence
from datetime import UTC, date, datetime, time
from ipaddress import IPv4Network, IPv6Network
from typing import Any, NamedTuple

from pop3svc.accounts.restrictions import Restrictions

__all__ = ["AppPassword", "expiryOf", "makeSecret", "secretIn"]

_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
_GROUP = 4
# The number of groups after the selector.  Their 28 characters have 140 bits.
_SECRET_GROUPS = 7
_LENGTH = _GROUP * (1 + _SECRET_GROUPS)
# Users may type small or capital letters.  Between the groups users may type a hyphen, a space or
# nothing.
_FORM = re.compile(rb"[A-Za-z2-7]{4}(?:[ -]?[A-Za-z2-7]{4}){7}")
_SEPARATORS = bytes.maketrans(b" ", b"-")


class AppPassword(NamedTuple):
    """
    An application password as a source of accounts stores it.

    @ivar stored: the hash of the secret.  The hashed text has no separators between the groups.
    @ivar networks: the networks from which the password may be used; empty for all networks.
    @ivar expires: the time in seconds since 1970 from which the password is not valid any more;
        L{None} if it is always valid.
    """

    stored: str
    networks: Sequence[IPv4Network | IPv6Network] = ()
    expires: float | None = None

    def isExpired(self, now: float) -> bool:
        """
        @param now: the present time in seconds since 1970.
        """
        return self.expires is not None and now >= self.expires

    def mayBeUsed(self, client: Any, now: float) -> bool:
        """
        @param client: credentials, or another object with the attribute C{clientIP}.
        @param now: the present time in seconds since 1970.
        """
        return not self.isExpired(now) and Restrictions(None, self.networks).allows(client)


def _random(groups: int) -> list[str]:
    return ["".join(secrets.choice(_ALPHABET) for _ in range(_GROUP)) for _ in range(groups)]


def makeSecret(taken: Container[str] = ()) -> tuple[str, str]:
    """
    Make a secret.

    @param taken: the selectors of all application passwords that the user has already.
    @return: the selector, and the secret as the user sees it, in groups.
    """
    selector = _random(1)[0]
    while selector in taken:
        selector = _random(1)[0]
    return selector, "-".join([selector, *_random(_SECRET_GROUPS)])


def secretIn(password: bytes) -> tuple[str, bytes] | None:
    """
    @param password: the password that a client has sent.
    @return: the selector, and the secret without separators; L{None} if the password does not have
        the form of an application password.  The hash is made of the secret without separators.
    """
    # Check the length first, because this is quick and excludes most other passwords.
    if len(password) < _LENGTH or _FORM.fullmatch(password) is None:
        return None
    secret = password.translate(_SEPARATORS, b" -").lower()
    return secret[:_GROUP].decode("ascii"), secret


_NOT_A_TIME = "a time of expiry that is not in the form 2030-12-31 or 2030-12-31T12:00"


def expiryOf(value: Any) -> float | None:
    """
    Read the time at which an application password expires.

    @param value: L{None}, a number of seconds since 1970, a C{datetime}, a C{date}, or a text in a
        form of ISO 8601.  A date means the end of that day.  A time without an offset is in UTC.
    @return: the time in seconds since 1970; L{None} if the password is always valid.
    @raise ValueError: C{value} is not a time.  The text is a short reason.
    """
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            isDate = re.fullmatch(r"\d{4}-\d{2}-\d{2}", value) is not None
            value = date.fromisoformat(value) if isDate else datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(_NOT_A_TIME) from None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time.max)
    if isinstance(value, datetime):
        aware: datetime = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
        return aware.timestamp()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise ValueError(_NOT_A_TIME)
