"""
For authors of providers and of clients: talk to a service in memory, and the
contract that a mailbox keeps.
"""

from pop3svc.testing.client import Client, Inline, MemoryTransport, conversation
from pop3svc.testing.contract import MailboxContract
from pop3svc.testing.wrappers import Coroutines, Later, Recording

__all__ = [
    "Client",
    "Coroutines",
    "Inline",
    "Later",
    "MailboxContract",
    "MemoryTransport",
    "Recording",
    "conversation",
]
