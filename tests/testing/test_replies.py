"""
The octets of the engine are split into its replies.
"""

from __future__ import annotations

import pytest

from pop3svc.testing.replies import ReplySplitter, isMultiLine

# Each reply, and whether a positive reply to the same command is multi-line.
REPLIES = [
    (b"+OK ready.\r\n", False),
    (b"+OK\r\n.\r\n", True),
    (b"+OK follows _\r\na\r\n..\r\n\r\n.b\r\n.\r\n", True),
    (b"-ERR no such message.\r\n", True),
    (b"+ YQ==\r\n", False),
    (b"+OK\r\nx\n.\r\n\r\n.\r\n", True),
    (b"+OK Bye.\r\n", False),
]


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7, 1000])
@pytest.mark.parametrize("start", range(7))
def test_split(step: int, start: int) -> None:
    """
    However the octets are cut, each reply is found, and its first piece is its first line.
    """
    octets = b"".join(reply for reply, _ in REPLIES)
    splitter = ReplySplitter()
    splitter.isMultiLine = REPLIES[0][1]
    found: list[list[bytes]] = [[]]
    cuts = [0, *range(start or step, len(octets), step), len(octets)]
    for begin, end in zip(cuts, cuts[1:], strict=False):
        for piece, isLast in splitter.feed(octets[begin:end]):
            found[-1].append(piece)
            if isLast:
                if len(found) < len(REPLIES):
                    splitter.isMultiLine = REPLIES[len(found)][1]
                found.append([])
    assert [b"".join(pieces) for pieces in found] == [reply for reply, _ in REPLIES] + [b""]
    assert all(pieces[0].endswith(b"\r\n") and pieces[0].count(b"\n") == 1 for pieces in found[:-1])


@pytest.mark.parametrize(
    ("line", "isIt"),
    [
        (b"capa\r\n", True),
        (b"RETR 1\n", True),
        (b"TOP 1 0\r\n", True),
        (b"LIST\r\n", True),
        (b"LIST \r\n", True),
        (b"LIST 1\r\n", False),
        (b"UIDL\r\n", True),
        (b"UIDL UID:1\r\n", False),
        (b"AUTH\r\n", True),
        (b"AUTH PLAIN\r\n", False),
        (b"LANG\r\n", True),
        (b"LANG de\r\n", False),
        (b"STAT\r\n", False),
        (b"\r\n", False),
    ],
)
def test_multiLine(line: bytes, isIt: bool) -> None:
    assert isMultiLine(line) is isIt
