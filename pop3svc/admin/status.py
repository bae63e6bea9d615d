"""
Facts about a process for C{pop3svc status}: its certificates, and the servers that it uses.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.address import UNIXAddress

from pop3svc.accounts.hashing import hashing
from pop3svc.files import disk, longWork
from pop3svc.health import Health

__all__ = ["partsOf"]


def _text(address: Any) -> str:
    """
    @return: the address of a listener, as in a URL.
    """
    if isinstance(address, UNIXAddress):
        return f"unix:{os.fsdecode(address.name or b'')}"
    return (
        f"[{address.host}]:{address.port}"
        if ":" in address.host
        else f"{address.host}:{address.port}"
    )


def partsOf(certificates: Any, service: Any) -> Callable[[], Mapping[str, Any]]:
    """
    @param certificates: L{pop3svc.service.certificates.Certificates}
    @param service: L{pop3svc.service.running.POP3Service}
    @return: a function that returns C{listeners} (their addresses), C{certificates} (C{path}, and
        C{end} in seconds since the epoch), C{servers} (C{name}, C{isAvailable}, C{reason}) and
        C{queues} (the work that runs or waits).
    """

    def parts() -> Mapping[str, Any]:
        return {
            "listeners": [_text(each.getHost()) for each in service.ports],
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
