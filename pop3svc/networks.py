"""
Parse the addresses of clients, and find the networks to which limits apply.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

__all__ = ["LOOPBACK", "addressOf", "isLoopback", "networkOf"]

LOOPBACK = ("127.0.0.0/8", "::1/128")


# Cache the results, because the same clients connect again and again.
@lru_cache(4096)
def addressOf(clientIP: str) -> IPv4Address | IPv6Address:
    """
    @return: the address.  An IPv4-mapped IPv6 address is converted to the IPv4 address.
    """
    address = ip_address(clientIP.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return address if mapped is None else mapped


@lru_cache(4096)
def isLoopback(clientIP: str | None) -> bool:
    """
    @param clientIP: the address of the client; L{None} for a UNIX socket, which has no address.
    @return: whether the address belongs to this machine's loopback interface, or the client uses a
        UNIX socket.
    """
    return clientIP is None or addressOf(clientIP).is_loopback


@lru_cache(4096)
def networkOf(clientIP: str | None, v4: int = 32, v6: int = 64) -> str:
    """
    @param v4: the prefix length of the network for an IPv4 address.
    @param v6: the prefix length of the network for an IPv6 address.
    @return: the network to which an address belongs; C{""} if there is no address.
    """
    if not clientIP:
        return ""
    address = addressOf(clientIP)
    return str(ip_network((address, v4 if address.version == 4 else v6), strict=False))
