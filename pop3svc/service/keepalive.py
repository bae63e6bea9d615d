"""
Let the kernel detect connections whose client is no longer there.
"""

from __future__ import annotations

import socket
from typing import Any

from pop3svc.policy import Policy

__all__ = ["keepAlive", "socketOf"]

_LINUX = hasattr(socket, "TCP_USER_TIMEOUT")


def socketOf(transport: Any) -> socket.socket | None:
    """
    @return: the TCP socket below a transport and its wrappers; L{None} if there is none.
    """
    for _ in range(8):
        found = transport.__dict__.get("socket") if hasattr(transport, "__dict__") else None
        if found is not None:
            family = getattr(found, "family", None)
            return found if family in (socket.AF_INET, socket.AF_INET6) else None
        transport = getattr(transport, "transport", None)
    return None


def keepAlive(found: socket.socket, policy: Policy) -> bool:
    """
    Turn on TCP keepalive, and limit the time that the client may take to acknowledge sent data.  If
    C{policy.keepaliveIdle} is 0, change nothing.

    @param found: the socket of a connection, or a listening socket.
    @return: whether the service need not set the options for each connection.  On Linux, accepted
        connections inherit the options from the listening socket.
    """
    if not policy.keepaliveIdle:
        return True
    wanted = [
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", policy.keepaliveIdle),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", policy.keepaliveInterval),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", policy.keepaliveProbes),
        # Linux counts a client with a window of zero like a client that does not acknowledge.  A
        # shorter time would disconnect clients that are still allowed to stall.
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", policy.stallTimeout * 1000),
    ]
    for level, name, value in wanted:
        option = getattr(socket, name, None)
        if option is None:
            continue
        try:
            found.setsockopt(level, option, value)
        except OSError:
            # Ignore the error: the value is too large for the kernel, or the socket is closed
            # already.
            pass
    return _LINUX
