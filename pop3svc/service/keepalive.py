"""
Connections whose client is gone without a word are found by the kernel.
"""

from __future__ import annotations

import socket
from typing import Any

from pop3svc.policy import Policy

__all__ = ["keepAlive", "socketOf"]

_LINUX = hasattr(socket, "TCP_USER_TIMEOUT")


def socketOf(transport: Any) -> socket.socket | None:
    """
    @return: the TCP socket below a transport, whatever is around it.
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
    Have the kernel ask whether the client is still there when nothing has come for
    long, and give up what is not acknowledged.

    @param found: of a connection, or one that listens.
    @return: do the connections that a listening one accepts keep alive, too?  Linux
        hands that on, so that it costs nothing for each.
    """
    if not policy.keepaliveIdle:
        return True
    wanted = [
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", policy.keepaliveIdle),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", policy.keepaliveInterval),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", policy.keepaliveProbes),
        # Also for a client that acknowledges and takes nothing: Linux counts a window of
        # zero as no answer.  Anything shorter would cut off who may stall.
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", policy.stallTimeout * 1000),
    ]
    for level, name, value in wanted:
        option = getattr(socket, name, None)
        if option is None:
            continue
        try:
            found.setsockopt(level, option, value)
        except OSError:
            # More than the kernel takes, or it is closed already.
            pass
    return _LINUX
