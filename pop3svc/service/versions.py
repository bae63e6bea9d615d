"""
The versions of pop3svc and of the software that it needs.
"""

from __future__ import annotations

import platform
from importlib.metadata import version

import pop3svc

__all__ = ["versions"]


def versions() -> str:
    """
    @return: four lines with the versions of pop3svc, Twisted, Python and OpenSSL.
    """
    from OpenSSL import SSL

    openSSL = SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode("ascii").removeprefix("OpenSSL ")
    return "\n".join(
        [
            f"pop3svc {pop3svc.__version__}",
            f"Twisted {version('twisted')}",
            f"Python {platform.python_version()}",
            f"OpenSSL {openSSL}",
        ]
    )
