"""
The octets of a message as POP3 sends it: every line end CRLF, nothing else changed.
"""

from __future__ import annotations

import re

__all__ = ["DOT_LINE", "CRLFNormalizer", "WireSizeCounter", "countBareLF"]

# Where a line begins with a dot; a CR before the LF need not be looked for.
DOT_LINE = re.compile(rb"\n\.")
_LONE_RETURN = re.compile(rb"\r(?!\n)")


def countBareLF(data: bytes) -> int:
    """
    @return: how many line feeds have no carriage return before them.
    """
    # Each message is looked at, and the obvious count() takes twice as long.
    feeds = len(data) - len(data.replace(b"\n", b""))
    returns = len(data) - len(data.replace(b"\r", b""))
    if not feeds or not returns:
        return feeds
    if feeds == returns and _LONE_RETURN.search(data) is None:
        return 0
    return feeds - data.count(b"\r\n")


class CRLFNormalizer:
    """
    Makes the line ends of one message CRLF while it passes through in blocks.

    A bare LF becomes CRLF, a lone CR stays, and a last line without an end
    gets one.  Blocks may be cut anywhere.  Nothing that is given out ends
    between a CR and its LF.
    """

    def __init__(self) -> None:
        self._heldCR = False
        self._atLineStart = True

    def feed(self, data: bytes) -> bytes:
        """
        @param data: the next octets of the message, as they are kept.
        @return: octets to be sent; possibly none yet.
        """
        if self._heldCR:
            data = b"\r" + data
            self._heldCR = False
        if data.endswith(b"\r"):
            # Whether this is half a line end the next block tells.
            self._heldCR = True
            data = data[:-1]
        if not data:
            return b""
        self._atLineStart = data.endswith(b"\n")
        if b"\r" not in data:
            # Many times faster than what follows.
            return data.replace(b"\n", b"\r\n")
        if countBareLF(data):
            data = data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        return data

    def finish(self) -> bytes:
        """
        @return: what is still to be sent after the last block.
        """
        if self._heldCR:
            return b"\r\r\n"
        return b"" if self._atLineStart else b"\r\n"


class WireSizeCounter:
    """
    Counts what L{CRLFNormalizer} would give out, without making it.
    """

    def __init__(self) -> None:
        self._octets = 0
        self._last = b"\n"

    def feed(self, data: bytes) -> None:
        """
        @param data: the next octets of the message, as they are kept.
        """
        if not data:
            return
        self._octets += len(data) + countBareLF(data)
        if self._last == b"\r" and data.startswith(b"\n"):
            self._octets -= 1
        self._last = data[-1:]

    def skip(self, octets: int) -> None:
        """
        @param octets: how many NULs follow: a hole in a file.
        """
        if octets:
            self._octets += octets
            self._last = b"\0"

    def total(self) -> int:
        """
        @return: octets of the whole message as sent, without dot-stuffing.
        """
        return self._octets if self._last == b"\n" else self._octets + 2
