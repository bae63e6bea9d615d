"""
Find the unique-id that a message has in its own header.
"""

from __future__ import annotations

import re

from pop3svc.listings import isUniqueID

__all__ = ["HEADER", "uniqueIDInHeader", "valueInHeader"]

# The number of octets at the beginning of a message that are searched for the header X-UIDL.
HEADER = 65_536
_FIELD = re.compile(rb"^X-UIDL[ \t]*:[ \t]*(.*?)[ \t]*\r?\n(?![ \t])", re.IGNORECASE | re.MULTILINE)
_END = re.compile(rb"^\r?\n", re.MULTILINE)


def valueInHeader(data: bytes) -> str | None:
    """
    @param data: the beginning of a message, with any line ends; L{HEADER} octets are enough.
    @return: the value of the first header C{X-UIDL}, with one character for each octet; L{None}
        without this header.
    """
    end = _END.search(data)
    found = _FIELD.search(data, 0, len(data) if end is None else end.start())
    return found[1].decode("latin-1") if found is not None and found[1] else None


def uniqueIDInHeader(data: bytes) -> str | None:
    """
    Find the unique-id that qpopper, mailutils, or Dovecot with C{pop3_reuse_xuidl} gave to its
    clients.  Call this function only if the operator has allowed such unique-ids, because an
    attacker can send a message with such a header.

    @param data: see L{valueInHeader}.
    @return: the value of the first header C{X-UIDL}; L{None} without this header, or if RFC 1939
        section 7 does not allow the value.
    """
    value = valueInHeader(data)
    return value if isUniqueID(value) else None
