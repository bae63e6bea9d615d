"""
Input is cut into lines, however it is split.
"""

from __future__ import annotations

import pytest

from pop3svc.protocol.framing import LineBuffer

INPUT = b"USER alice\r\nPASS x y\n\n\rNOOP\r\r\nrest"
LINES = [b"USER alice\r", b"PASS x y", b"", b"\rNOOP\r\r"]


@pytest.mark.parametrize("size", range(1, len(INPUT) + 1))
def test_everySplit(size: int) -> None:
    """
    CRLF and a bare LF end a line; a bare CR does not.
    """
    lines = LineBuffer()
    found = []
    for start in range(0, len(INPUT), size):
        lines.feed(INPUT[start : start + size])
        while lines.lines:
            found.append(lines.next())
    assert found == LINES
    assert (lines.partial, lines.held) == (b"rest", 4)
    assert lines.lines == []


def test_waitingLinesKeepTheirOrder() -> None:
    """
    Lines that are not taken wait in their order; clear() returns them all.
    """
    lines = LineBuffer()
    lines.feed(b"a\r\nb\n")
    lines.feed(b"c\nd")
    assert (lines.next(), lines.held) == (b"a\r", 5)
    lines.feed(b"e\n")
    assert lines.clear() == b"b\nc\nde\n"
    assert (lines.lines, lines.partial, lines.held) == ([], b"", 0)
