"""
A provider that accepts every user without checking the password.
"""

from __future__ import annotations

from typing import Any

from zope.interface import implementer

from pop3svc.interfaces import IPOP3MailboxProvider

__all__ = ["Anybody"]


@implementer(IPOP3MailboxProvider)
class Anybody:
    """
    A provider for a store.  It opens the mailbox of each user name, whatever the password is.
    """

    name = "test"

    def __init__(self, store: Any) -> None:
        self.store = store

    def authenticate(self, info: Any, username: str, password: str) -> Any:
        """
        See L{IPOP3MailboxProvider.authenticate}.
        """
        return self.store.openMailbox(info, username)
