"""
Read the fields of a form that a browser sends.

The reader of twisted.web is not used.  That reader would take the parts of a message in a field for
parts of the form.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qsl

__all__ = ["fieldsIn"]

# The most fields that are read, which are enough for every form.
_MOST = 20
_BOUNDARY = re.compile(rb'boundary="?([0-9A-Za-z\'()+_,./:=? -]{1,70})"?')
_NAME = re.compile(rb'^content-disposition:[^\r\n]*?;[ \t]*name="([^"\r\n]*)"', re.I | re.M)


def fieldsIn(kind: bytes, body: bytes) -> dict[bytes, list[bytes]]:
    """
    @param kind: the Content-Type of the form.
    @return: the values of each field; empty if the form cannot be read.
    """
    name = kind.partition(b";")[0].strip().lower()
    if name == b"application/x-www-form-urlencoded":
        return _urlencoded(body)
    boundary = _BOUNDARY.search(kind)
    if name == b"multipart/form-data" and boundary is not None:
        return _multipart(body, boundary[1])
    return {}


def _urlencoded(body: bytes) -> dict[bytes, list[bytes]]:
    fields: dict[bytes, list[bytes]] = {}
    try:
        # Use a charset that keeps each octet as it is.
        pairs = parse_qsl(body.decode("latin-1"), True, encoding="latin-1", max_num_fields=_MOST)
    except ValueError:
        return {}
    for key, value in pairs:
        fields.setdefault(key.encode("latin-1"), []).append(value.encode("latin-1"))
    return fields


def _multipart(body: bytes, boundary: bytes) -> dict[bytes, list[bytes]]:
    """
    Read a form of the kind multipart/form-data; see RFC 7578, and RFC 2046 section 5.1.1.
    """
    fields: dict[bytes, list[bytes]] = {}
    _, *parts = (b"\r\n" + body).split(b"\r\n--" + boundary, _MOST + 1)
    for part in parts[:_MOST]:
        if part.startswith(b"--"):
            break
        head, _, value = part.partition(b"\r\n\r\n")
        name = _NAME.search(head)
        if name is not None:
            fields.setdefault(name[1], []).append(value)
    return fields
