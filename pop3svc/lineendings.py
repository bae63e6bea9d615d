"""
Convert the line ends of messages to CRLF or LF, and count the octets that a message has on the
wire.
"""

from __future__ import annotations

import re
from enum import Enum

__all__ = [
    "DOT_LINE",
    "CRLFNormalizer",
    "LFNormalizer",
    "WireForm",
    "WireSizeCounter",
    "countBareLF",
]

# The beginning of a line with a dot, after LF or CRLF.
DOT_LINE = re.compile(rb"\n\.")
_LONE_RETURN = re.compile(rb"\r(?!\n)")
# A CRLF without another carriage return before it.
_LINE_END = re.compile(rb"(?<!\r)\r\n")


class WireForm(Enum):
    """
    The form of the stored octets of a message.  The form says which changes the encoder has to make
    for the body of a multi-line reply.
    """

    # Line ends may be LF, the last line may have none, and lines may begin with a dot.
    RAW = "raw"
    # All lines end with CRLF.  Lines may begin with a dot.
    LINES = "lines"
    # All lines end with CRLF, and no line begins with a dot.  The octets are sent unchanged.
    READY = "ready"


def countBareLF(data: bytes) -> int:
    """
    @return: the number of line feeds without a carriage return before them.
    """
    # bytes.count() would take twice as long, and this function reads every message.
    feeds = len(data) - len(data.replace(b"\n", b""))
    returns = len(data) - len(data.replace(b"\r", b""))
    if not feeds or not returns:
        return feeds
    if feeds == returns and _LONE_RETURN.search(data) is None:
        return 0
    return feeds - data.count(b"\r\n")


class CRLFNormalizer:
    """
    Converts the line ends of one message to CRLF, block by block.

    A bare LF becomes CRLF.  A lone CR stays.  A last line without a line end gets CRLF. Blocks may
    be cut anywhere.  A returned block never ends between the CR and the LF of a line end.
    """

    def __init__(self) -> None:
        self._heldCR = False
        self._atLineStart = True

    def feed(self, data: bytes) -> bytes:
        """
        @param data: the next octets of the stored message.
        @return: the next octets to send; they may be empty.
        """
        if self._heldCR:
            data = b"\r" + data
            self._heldCR = False
        if data.endswith(b"\r"):
            # Only the next block shows whether an LF follows this CR.
            self._heldCR = True
            data = data[:-1]
        if not data:
            return b""
        self._atLineStart = data.endswith(b"\n")
        if b"\r" not in data:
            # Handle a block without CR separately, because the code for the general case takes many
            # times longer.
            return data.replace(b"\n", b"\r\n")
        if countBareLF(data):
            data = data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        return data

    def finish(self) -> bytes:
        """
        @return: the octets to send after the last block.
        """
        if self._heldCR:
            return b"\r\r\n"
        return b"" if self._atLineStart else b"\r\n"


class LFNormalizer:
    """
    Converts the line ends of one message to LF, block by block.

    L{CRLFNormalizer} makes the same octets from the result as from the original message.  A line
    end with more than one carriage return therefore does not change.  A last line without a line
    end gets LF.  Blocks may be cut anywhere.
    """

    def __init__(self) -> None:
        # A carriage return at the end of the input so far, after which an LF may follow; and
        # whether another carriage return comes before it.
        self._held = b""
        self._isAfterCR = False
        self._atLineStart = True

    def feed(self, data: bytes) -> bytes:
        """
        @param data: the next octets of the message.
        @return: the next octets to store; they may be empty.
        """
        data = self._held + data
        self._held = b""
        if data.endswith(b"\r"):
            data, self._held = data[:-1], b"\r"
        if not data:
            return b""
        before = b"\r" if self._isAfterCR else b""
        self._isAfterCR = data.endswith(b"\r")
        self._atLineStart = data.endswith(b"\n")
        if before or b"\r\r\n" in data:
            return _LINE_END.sub(b"\n", before + data)[len(before) :]
        return data.replace(b"\r\n", b"\n")

    def finish(self) -> bytes:
        """
        @return: the octets to store after the last block.
        """
        if self._held:
            # The last line ends with this carriage return and has no line end.
            return self._held + b"\r\n"
        return b"" if self._atLineStart else b"\n"


class WireSizeCounter:
    """
    Counts the octets that L{CRLFNormalizer} would return, without making them.
    """

    def __init__(self) -> None:
        self._octets = 0
        self._last = b"\n"

    def feed(self, data: bytes) -> None:
        """
        @param data: the next octets of the stored message.
        """
        if not data:
            return
        self._octets += len(data) + countBareLF(data)
        if self._last == b"\r" and data.startswith(b"\n"):
            self._octets -= 1
        self._last = data[-1:]

    def skip(self, octets: int) -> None:
        """
        Count NULs that are not read, such as those of a hole in a sparse file.

        @param octets: the number of NULs.
        """
        if octets:
            self._octets += octets
            self._last = b"\0"

    def total(self) -> int:
        """
        @return: the number of octets that the whole message has on the wire, without dot-stuffing.
        """
        return self._octets if self._last == b"\n" else self._octets + 2
