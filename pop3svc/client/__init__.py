"""
A POP3 client for Twisted.
"""

from pop3svc.client.address import Address, TLSOptions
from pop3svc.client.connecting import connect
from pop3svc.client.failures import ClientError, CommandRefused, LoginRefused, ServerUnavailable
from pop3svc.client.logins import CertificateLogin, PasswordLogin, TokenLogin
from pop3svc.client.message import Message
from pop3svc.client.protocol import POP3Client, Reply

__all__ = [
    "Address",
    "CertificateLogin",
    "ClientError",
    "CommandRefused",
    "LoginRefused",
    "Message",
    "POP3Client",
    "PasswordLogin",
    "Reply",
    "ServerUnavailable",
    "TLSOptions",
    "TokenLogin",
    "connect",
]
