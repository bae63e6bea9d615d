"""
Split the octets of a POP3 server into lines and messages.  The octets may arrive in pieces of any
size.
"""

from __future__ import annotations

import re

__all__ = ["BodyDecoder", "LineTooLong", "Lines", "parseRow"]

# A line of the reply to LIST or UIDL.  The line has a number, and a size or a unique-id.  Some
# servers add more text.
_ROW = re.compile(rb"([0-9]{1,9}) ([!-~]+)(?: .*)?")


class LineTooLong(Exception):
    """
    A server has sent a line that is too long.
    """


def parseRow(line: bytes) -> tuple[int, bytes]:
    """
    @param line: a line of the reply to LIST or UIDL.
    @return: a pair of the message number, and the size or the unique-id.
    @raise ValueError: the line is malformed.
    """
    found = _ROW.fullmatch(line)
    if found is None:
        raise ValueError
    return int(found[1]), found[2]


class Lines:
    """
    The octets that have been received and not used yet.
    """

    def __init__(self, longest: int) -> None:
        """
        @param longest: the most octets of a line, without its line end.
        """
        self._longest = longest
        self._data = b""
        self._offset = 0

    def add(self, data: bytes) -> None:
        """
        @param data: the next octets of the connection.
        """
        self._data = self._data[self._offset :] + data
        self._offset = 0

    @property
    def isEmpty(self) -> bool:
        """
        Whether all octets were used.
        """
        return self._offset >= len(self._data)

    def line(self) -> bytes | None:
        """
        @return: the next line without CRLF; L{None} if the line is not complete.
        @raise LineTooLong: the line is too long.
        """
        end = self._data.find(b"\r\n", self._offset)
        length = (len(self._data) if end < 0 else end) - self._offset
        # Without a line end, the last octet may be the CR of the line end.
        if length > self._longest + (end < 0):
            raise LineTooLong
        if end < 0:
            return None
        line = self._data[self._offset : end]
        self._offset = end + 2
        return line

    def rest(self) -> bytes:
        """
        @return: all octets that were not used.  From now on they count as used.
        """
        data, self._data = self._data[self._offset :], b""
        self._offset = 0
        return data


class BodyDecoder:
    """
    Finds the end of a multi-line reply, and removes dot-stuffing.  The reply may arrive in pieces
    of any size.

    @ivar rest: the octets after the reply; L{None} before the end of the reply.
    """

    def __init__(self) -> None:
        # A line end in front lets the first line of the reply be treated like any other line.
        self._held = b"\r\n"
        self._isFirst = True
        self.rest: bytes | None = None

    def feed(self, data: bytes) -> bytes:
        """
        @param data: the next octets of the connection.
        @return: the octets that certainly belong to the message; empty if there are none yet.
        """
        data = self._held + data
        end = data.find(b"\r\n.\r\n")
        if end >= 0:
            self.rest = data[end + 5 :]
            data, self._held = data[: end + 2], b""
        else:
            # Keep back the last octets from a CR on, because the next line may begin with a dot.
            keep = data.find(b"\r", max(len(data) - 4, 0))
            keep = len(data) if keep < 0 else keep
            data, self._held = data[:keep], data[keep:]
        if self._isFirst and data:
            data = data[2:] if not data.startswith(b"\r\n.") else data[3:]
            self._isFirst = False
        return data.replace(b"\r\n.", b"\r\n")
