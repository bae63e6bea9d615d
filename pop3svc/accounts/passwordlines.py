"""
The lines of a password file.
"""

from __future__ import annotations

__all__ = ["checkUserName"]


def checkUserName(name: str) -> str:
    """
    Check that a password file can hold a user name.

    @return: the name.
    @raise ValueError: the name is not allowed; a sentence for the operator.
    """
    if not name or not name.isprintable() or any(c in ":#" or c.isspace() for c in name):
        raise ValueError("a user name is printable, without spaces, ':' and '#'")
    return name
