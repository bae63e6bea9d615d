"""
Read the octets between DATA and the final dot (RFC 5321 section 4.5.2), block by block.
"""

from __future__ import annotations

__all__ = ["DataPhase"]

_END = b"\r\n.\r\n"


class DataPhase:
    """
    Finds the end of a message, and removes the dot-stuffing.

    A line ends with CRLF, and not with a CR or an LF alone.  Programs disagree about a CR or an LF
    alone.  An attacker could therefore smuggle mail in octets that one program reads as one
    message, and another program as two.

    @ivar hasBareLineEnd: whether the input had a CR or an LF that is not a part of CRLF.
    """

    def __init__(self) -> None:
        self.hasBareLineEnd = False
        # The octets that may be the beginning of the final line.  The first value is a line end,
        # because the message begins at the start of a line.
        self._held = b"\r\n"
        self._isFirst = True

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """
        @param data: the next octets from the client.
        @return: a pair: the next octets of the message, and the octets after the final dot.  The
            second element is L{None} until the final dot has come.  The last line of the message
            always has its line end.
        """
        data = self._held + data
        end = data.find(_END)
        rest = None
        if end >= 0:
            data, rest = data[: end + 2], data[end + len(_END) :]
        else:
            kept = next(size for size in (4, 3, 2, 1, 0) if data.endswith(_END[:size]))
            data, self._held = data[: len(data) - kept], data[len(data) - kept :]
        if not data:
            return b"", rest
        ends = data.count(b"\r\n")
        if data.count(b"\r") != ends or data.count(b"\n") != ends:
            self.hasBareLineEnd = True
        data = data.replace(b"\r\n.", b"\r\n")
        if self._isFirst:
            # Drop the line end before the first line, because it does not belong to the message.
            self._isFirst = False
            data = data[2:]
        return data, rest
