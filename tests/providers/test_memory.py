"""
The memory store keeps the contract of mailboxes.
"""

from __future__ import annotations

from typing import Any
from unittest import TestCase

from zope.interface.verify import verifyObject

from pop3svc.interfaces import IMailboxStore, IPOP3MailboxProvider
from pop3svc.providers.memory import MemoryProvider, MemoryStore
from pop3svc.testing import MailboxContract


class MemoryTests(MailboxContract, TestCase):
    def makeMailbox(self, messages: list[bytes]) -> Any:
        self.store = MemoryStore(messages)
        return self.again()

    def again(self) -> Any:
        return self.store.openMailbox(self._info(), "alice")

    def deliver(self, message: bytes) -> str:
        return self.store.maildrop("alice").add(message)


def test_interfaces() -> None:
    verifyObject(IMailboxStore, MemoryStore())
    verifyObject(IPOP3MailboxProvider, MemoryProvider({}))
