"""
Collect facts about a process for C{pop3svc status}, such as its certificates and the servers that
the process uses.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from pop3svc.accounts.hashing import hashing
from pop3svc.files import disk, longWork
from pop3svc.health import Health

__all__ = ["partsOf", "placeOf"]


def placeOf(address: Any) -> str:
    """
    @param address: the L{twisted.internet.interfaces.IAddress} of a port.
    @return: the host and the port, or the path of a UNIX socket.
    """
    if not hasattr(address, "port"):
        name = getattr(address, "name", address)
        return os.fsdecode(name) if isinstance(name, bytes) else str(name)
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{host}:{address.port}"


def partsOf(certificates: Any, service: Any) -> Callable[[], Mapping[str, Any]]:
    """
    @param certificates: L{pop3svc.service.certificates.Certificates}
    @param service: L{pop3svc.service.running.POP3Service}
    @return: a function that returns a dictionary of facts.  C{listeners} has the addresses of the
        ports.  C{certificates} has for each certificate its C{path}, and its C{end} in seconds
        since the epoch.  C{servers} has for each server C{name}, C{isAvailable} and C{reason}.
        C{queues} has for each queue the amount of work that runs or waits.
    """

    def parts() -> Mapping[str, Any]:
        return {
            "listeners": [placeOf(each.getHost()) for each in service.ports],
            "certificates": [
                {"path": each.certificate, "end": each.end.timestamp()}
                for each in certificates.all()
            ],
            "servers": [
                {"name": each.name, "isAvailable": each.isAvailable, "reason": each.reason}
                for each in Health.all()
            ],
            "queues": {
                "disk": disk().underWay,
                "longWork": longWork().underWay,
                "passwords": hashing().underWay,
            },
        }

    return parts
