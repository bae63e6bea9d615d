"""
Maildirs.
"""

from pop3svc.providers.maildir.store import MaildirStore

__all__ = ["MaildirStore"]
