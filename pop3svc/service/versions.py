"""
The versions of pop3svc and of the programs that it rests on.
"""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

__all__ = ["versions"]


def versions() -> str:
    """
    @return: one line for each of pop3svc, Twisted, Python and OpenSSL.
    """
    from OpenSSL import SSL

    try:
        own = version("pop3svc")
    except PackageNotFoundError:
        own = "(not installed)"
    openSSL = SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode("ascii").removeprefix("OpenSSL ")
    return "\n".join(
        [
            f"pop3svc {own}",
            f"Twisted {version('twisted')}",
            f"Python {platform.python_version()}",
            f"OpenSSL {openSSL}",
        ]
    )
