"""
A POP3 service on Twisted with pluggable mailbox providers.
"""

from pop3svc.errors import POP3ResponseError
from pop3svc.policy import Policy
from pop3svc.providers.twistedmail import PortalProvider
from pop3svc.service.factory import POP3Factory

__all__ = ["POP3Factory", "POP3ResponseError", "Policy", "PortalProvider"]
