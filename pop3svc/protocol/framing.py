"""
Split input into lines.
"""

from __future__ import annotations

__all__ = ["LineBuffer"]


class LineBuffer:
    """
    Cuts input into lines, and keeps lines until they are answered.  A line ends with CRLF, or
    with a bare LF, because some clients send only that.

    @ivar lines: the complete lines, the first line last.  The list stays the same object.
    @ivar partial: the line whose end has not come yet.
    @ivar held: the number of octets that are kept.
    """

    __slots__ = ("held", "lines", "partial")

    def __init__(self) -> None:
        # The first line is the last element, because a list pops its last element without
        # moving the others.  An empty deque takes ten times as much memory as an empty list.
        self.lines: list[bytes] = []
        self.partial = b""
        self.held = 0

    def feed(self, data: bytes) -> None:
        """
        Take input.
        """
        self.held += len(data)
        if self.partial:
            data = self.partial + data
        lines = data.split(b"\n")
        self.partial = lines.pop()
        if len(lines) > 1:
            lines.reverse()
        self.lines[:0] = lines

    def next(self) -> bytes:
        """
        @return: the next line, without LF, with CR if there is one.
        @raise IndexError: no complete line waits.
        """
        line = self.lines.pop()
        self.held -= len(line) + 1
        return line

    def clear(self) -> bytes:
        """
        Drop all buffered input.

        @return: the octets that were dropped.
        """
        dropped = b"\n".join([*reversed(self.lines), self.partial])
        self.lines.clear()
        self.partial, self.held = b"", 0
        return dropped
