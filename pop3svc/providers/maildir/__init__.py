"""
Mailboxes that are Maildirs.
"""

from pop3svc.providers.maildir.store import ExpiringMaildirStore, MaildirStore

__all__ = ["ExpiringMaildirStore", "MaildirStore"]
