"""
A user with messages, and conversations after the login.
"""

from __future__ import annotations

from typing import Any

from pop3svc.providers.memory import MemoryProvider
from pop3svc.testing import conversation

MESSAGES = [
    b"Subject: one\n\nfirst\n.\n.dot\n",
    b"Subject: two\r\n\r\n" + b"line\r\n" * 5,
    b"only a header: yes",
]


ALICE = "S: +OK…\nC: USER alice\nS: +OK…\nC: PASS secret\nS: +OK…\n"


def provider(messages: Any = MESSAGES) -> MemoryProvider:
    return MemoryProvider({"alice": "secret", "bob": " two words "}, messages)


def loggedIn(script: str, messages: Any = MESSAGES, **options: Any) -> Any:
    return conversation(provider(messages), ALICE + script, **options)
