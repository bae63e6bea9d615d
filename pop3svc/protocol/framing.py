"""
Split input into lines.
"""

from __future__ import annotations

__all__ = ["LineBuffer"]


class LineBuffer:
    """
    Cuts input into lines, and keeps each line until L{next} returns it.  A line ends with CRLF or
    with a bare LF, because some clients send a bare LF.

    @ivar lines: the complete lines in reverse order.  The attribute is always the same list.
    @ivar partial: the beginning of a line whose end has not come yet.
    @ivar held: the number of octets in the buffer.
    """

    __slots__ = ("held", "lines", "partial")

    def __init__(self) -> None:
        # The order is reversed, because a list removes its last element without moving the others.
        # A deque is not used, because an empty deque takes ten times the memory of an empty list.
        self.lines: list[bytes] = []
        self.partial = b""
        self.held = 0

    def feed(self, data: bytes) -> None:
        """
        Add input to the buffer.
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
        @return: the next line without its LF.  A CR before the LF stays.
        @raise IndexError: the buffer has no complete line.
        """
        line = self.lines.pop()
        self.held -= len(line) + 1
        return line

    def clear(self) -> bytes:
        """
        Remove all input from the buffer.

        @return: the octets that were removed.
        """
        dropped = b"\n".join([*reversed(self.lines), self.partial])
        self.lines.clear()
        self.partial, self.held = b"", 0
        return dropped
