"""
Mailboxes of another POP3 or IMAP server.
"""

from pop3svc.providers.upstream.logins import UpstreamProvider

__all__ = ["UpstreamProvider"]
