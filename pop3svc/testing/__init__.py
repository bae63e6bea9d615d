"""
Tools for tests of mailbox providers and of POP3 clients.  They include a client in memory, a real
server with faults on demand, and tests that check a mailbox against its contract.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pop3svc.lazyimports import onDemand

if TYPE_CHECKING:
    from pop3svc.protocol.session import ConnectionInfo
    from pop3svc.testing.client import Client, Inline, MemoryTransport, conversation
    from pop3svc.testing.contract import MailboxContract
    from pop3svc.testing.faults import (
        CutOff,
        ExpiredCertificate,
        NoAnswer,
        NoFinalDot,
        Slow,
        TempFail,
        WrongNameCertificate,
        WrongSize,
    )
    from pop3svc.testing.server import POP3Server
    from pop3svc.testing.stubs import StubProvider
    from pop3svc.testing.wrappers import Async, Delayed, Recording

__all__ = [
    "Async",
    "Client",
    "ConnectionInfo",
    "CutOff",
    "Delayed",
    "ExpiredCertificate",
    "Inline",
    "MailboxContract",
    "MemoryTransport",
    "NoAnswer",
    "NoFinalDot",
    "POP3Server",
    "Recording",
    "Slow",
    "StubProvider",
    "TempFail",
    "WrongNameCertificate",
    "WrongSize",
    "conversation",
]

__getattr__ = onDemand(
    __name__,
    {
        "Client": "pop3svc.testing.client",
        "ConnectionInfo": "pop3svc.protocol.session",
        "Async": "pop3svc.testing.wrappers",
        "CutOff": "pop3svc.testing.faults",
        "ExpiredCertificate": "pop3svc.testing.faults",
        "Inline": "pop3svc.testing.client",
        "Delayed": "pop3svc.testing.wrappers",
        "MailboxContract": "pop3svc.testing.contract",
        "MemoryTransport": "pop3svc.testing.client",
        "NoAnswer": "pop3svc.testing.faults",
        "NoFinalDot": "pop3svc.testing.faults",
        "POP3Server": "pop3svc.testing.server",
        "Recording": "pop3svc.testing.wrappers",
        "Slow": "pop3svc.testing.faults",
        "StubProvider": "pop3svc.testing.stubs",
        "TempFail": "pop3svc.testing.faults",
        "WrongNameCertificate": "pop3svc.testing.faults",
        "WrongSize": "pop3svc.testing.faults",
        "conversation": "pop3svc.testing.client",
    },
)
