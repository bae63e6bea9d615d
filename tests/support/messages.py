"""
Messages that are hard to send, and their octets as they are sent.
"""

from __future__ import annotations

import re

from hypothesis import strategies as st


def stuffed(sent: bytes) -> bytes:
    """
    An independent implementation of dot-stuffing (RFC 1939 section 3).
    """
    lines = sent.split(b"\r\n")
    return b"\r\n".join(b"." + line if line.startswith(b".") else line for line in lines)


def topOf(sent: bytes, lines: int) -> bytes:
    """
    An independent implementation of TOP.
    """
    blank = re.search(rb"\A\r\n|\r\n\r\n", sent)
    if blank is None:
        return sent
    body = sent[blank.end() :].split(b"\r\n")
    return sent[: blank.end()] + b"".join(line + b"\r\n" for line in body[:-1][:lines])


NASTY = st.lists(
    st.sampled_from([b"\r", b"\n", b".", b"x", b"\0", b"\xff", b"\r\n"]), max_size=30
).map(b"".join)


def asSent(message: bytes) -> bytes:
    """
    An independent implementation of CRLFNormalizer.
    """
    sent = re.sub(rb"(?<!\r)\n", b"\r\n", message)
    return sent if not sent or sent.endswith(b"\r\n") else sent + b"\r\n"
