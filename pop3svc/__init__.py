"""
A POP3 service on Twisted with pluggable mailbox providers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pop3svc.lazyimports import onDemand

if TYPE_CHECKING:
    from pop3svc.errors import POP3ResponseError
    from pop3svc.policy import Policy
    from pop3svc.providers.twistedmail import PortalProvider
    from pop3svc.service.factory import POP3Factory

__all__ = ["POP3Factory", "POP3ResponseError", "Policy", "PortalProvider", "__version__"]

# setuptools reads the version from this line without importing the package (see setup.cfg).
__version__ = "0.2.0"

__getattr__ = onDemand(
    __name__,
    {
        "POP3Factory": "pop3svc.service.factory",
        "POP3ResponseError": "pop3svc.errors",
        "Policy": "pop3svc.policy",
        "PortalProvider": "pop3svc.providers.twistedmail",
    },
)
