"""
Split input into lines.
"""

from __future__ import annotations

__all__ = ["LineBuffer"]


class LineBuffer:
    """
    Cuts input into lines, and keeps lines until they are answered.  A line ends with CRLF, or
    with a bare LF, because some clients send only that.

    @ivar held: the number of octets that are kept.
    """

    __slots__ = ("_lines", "_partial", "held")

    def __init__(self) -> None:
        # The first line is the last element, because a list pops its last element without
        # moving the others.  An empty deque takes ten times as much memory as an empty list.
        self._lines: list[bytes] = []
        # A line whose end has not come yet.
        self._partial = b""
        self.held = 0

    def feed(self, data: bytes) -> None:
        """
        Take input.
        """
        self.held += len(data)
        lines = (self._partial + data).split(b"\n")
        self._partial = lines.pop()
        lines.reverse()
        self._lines[:0] = lines

    def __bool__(self) -> bool:
        """
        @return: whether a complete line waits.
        """
        return bool(self._lines)

    def next(self) -> bytes | None:
        """
        @return: the next line, without LF, with CR if there is one; L{None} if no complete line
            waits.
        """
        if not self._lines:
            return None
        line = self._lines.pop()
        self.held -= len(line) + 1
        return line

    @property
    def partial(self) -> bytes:
        """
        The line whose end has not come yet.
        """
        return self._partial

    def clear(self) -> bytes:
        """
        Drop all buffered input.

        @return: the octets that were dropped.
        """
        dropped = b"\n".join([*reversed(self._lines), self._partial])
        self._lines.clear()
        self._partial, self.held = b"", 0
        return dropped
