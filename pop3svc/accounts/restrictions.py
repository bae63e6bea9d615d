"""
Restrictions of an account.  The user of the account may not log in at all, or may log in from some
networks only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, NamedTuple

from pop3svc.networks import addressOf

__all__ = ["BARRED", "Restrictions", "networksOf", "reasonOf"]

# The values of nologin with which a user may log in.
_MAY_LOG_IN = ("", "0", "f", "false", "n", "no", "off", "none", "null")
_IS_BARRED = ("1", "t", "true", "y", "yes", "on")
_REASON = re.compile(r"[ -Z\\^-~]{1,200}")
# The reason for the client if the account contains no reason, or a reason that is too long, is not
# printable ASCII or contains a square bracket.
BARRED = "Login is disabled."


class Restrictions(NamedTuple):
    """
    The restrictions of an account.

    @ivar nologin: the reason why the user may not log in; L{None} if the user may log in.
    @ivar networks: the networks from which the user may log in; empty for all networks.
    """

    nologin: str | None = None
    networks: Sequence[IPv4Network | IPv6Network] = ()

    def allows(self, client: Any) -> bool:
        """
        @param client: credentials, or another object with the attribute C{clientIP}.
        @return: whether C{networks} allows a login from the address of the client.
        """
        if not self.networks:
            return True
        clientIP: str | None = getattr(client, "clientIP", None)
        if clientIP is None:
            return False
        address = addressOf(clientIP)
        return any(address in each for each in self.networks)

    def mayLogIn(self, client: Any) -> bool:
        """
        @param client: see L{allows}.
        @return: whether the user may log in from the address of the client.
        """
        return self.nologin is None and self.allows(client)


def reasonOf(nologin: str) -> str | None:
    """
    @param nologin: empty, a truth value, or a reason for the client.
    @return: the reason why the user may not log in; L{None} if the user may log in.
    """
    nologin = nologin.strip()
    if nologin.lower() in _MAY_LOG_IN:
        return None
    isText = nologin.lower() not in _IS_BARRED and _REASON.fullmatch(nologin)
    return nologin if isText else BARRED


def networksOf(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """
    @param text: networks and addresses, separated by commas or spaces.
    @raise ValueError: the text contains anything but networks and addresses.  The text of the error
        is a short reason.
    """
    try:
        return tuple(ip_network(each, strict=False) for each in re.split(r"[\s,]+", text) if each)
    except ValueError:
        raise ValueError("a malformed list of networks") from None
