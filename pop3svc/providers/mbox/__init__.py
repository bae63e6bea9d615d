"""
Mailboxes in mbox files.
"""

from pop3svc.providers.mbox.store import MboxStore

__all__ = ["MboxStore"]
