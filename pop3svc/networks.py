"""
Addresses of clients, and the networks they count for.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

__all__ = ["LOOPBACK", "addressOf", "isLoopback", "networkOf"]

LOOPBACK = ("127.0.0.0/8", "::1/128")


# The same few clients come again and again.
@lru_cache(4096)
def addressOf(clientIP: str) -> IPv4Address | IPv6Address:
    """
    @return: the address, an IPv4 one if that is what is mapped into IPv6.
    """
    address = ip_address(clientIP.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return address if mapped is None else mapped


def isLoopback(clientIP: str | None) -> bool:
    """
    Does a client come from this machine?  A UNIX socket has no address.
    """
    return clientIP is None or addressOf(clientIP).is_loopback


@lru_cache(4096)
def networkOf(clientIP: str | None, v4: int = 32, v6: int = 64) -> str:
    """
    @return: the network that an address counts for; C{""} where there is no
        address.
    """
    if not clientIP:
        return ""
    address = addressOf(clientIP)
    return str(ip_network((address, v4 if address.version == 4 else v6), strict=False))
