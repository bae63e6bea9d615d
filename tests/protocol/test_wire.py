"""
First lines, dot-stuffing and TOP, at every split of the input.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pop3svc.lineendings import WireForm
from pop3svc.protocol.replies import After, Body, Lines, Pieces, challenge, err, ok
from pop3svc.protocol.wire import MultiLine, firstLine, hasControl, splitLine
from tests.support.messages import NASTY, asSent, stuffed, topOf


def through(message: bytes, cuts: list[int], topLines: int | None = None) -> bytes:
    encoder, sent, begin = MultiLine(topLines), b"", 0
    for cut in [*cuts, len(message)]:
        if encoder.done:
            break
        sent += encoder.feed(message[begin:cut])
        begin = cut
    return sent + encoder.finish()


EXAMPLES = [
    b"",
    b".",
    b"..",
    b"\r\n",
    b"\n.\n",
    b".\r\n.\r\n..\r\n",
    b"a: b\r\n\r\n.\r\nc\r\n",
    b"a: b\n\nc\n.d\n\n\n.e",
    b"\r\n\r\nbody\r\n",
    b"a\r.\r\n.",
    b"a: b\r\n",
    b"a: b\r\n.\r\nb\r\n",
    b"\r\r\n\r\n.x\r",
]


@pytest.mark.parametrize("message", EXAMPLES)
def test_everySplit(message: bytes) -> None:
    sent = asSent(message)
    for top in (None, 0, 1, 2, 99999999):
        wanted = stuffed(sent if top is None else topOf(sent, top)) + b".\r\n"
        assert through(message, list(range(len(message))), top) == wanted
        for first in range(len(message) + 1):
            for second in range(first, len(message) + 1):
                assert through(message, [first, second], top) == wanted


@given(NASTY, st.lists(st.integers(0, 60), max_size=5), st.none() | st.integers(0, 5))
def test_anySplit(message: bytes, cuts: list[int], top: int | None) -> None:
    sent = asSent(message)
    wanted = stuffed(sent if top is None else topOf(sent, top)) + b".\r\n"
    places = sorted(min(cut, len(message)) for cut in cuts)
    assert through(message, places, top) == wanted


def test_nothingEndsAMessageEarly() -> None:
    """
    For any message, only the last line is a single dot.
    """
    for message in EXAMPLES:
        lines = through(message, []).split(b"\r\n")
        assert lines.index(b".") == len(lines) - 2


def test_topStopsReading() -> None:
    encoder = MultiLine(0)
    assert encoder.feed(b"a: b\r\n\r\nbody") == b"a: b\r\n\r\n"
    assert encoder.done
    assert encoder.feed(b"more\r\n") == b""
    assert encoder.finish() == b".\r\n"


@pytest.mark.parametrize(
    ("reply", "line"),
    [
        (ok("Fine."), b"+OK Fine.\r\n"),
        (ok(""), b"+OK\r\n"),
        (err("No.", "SYS/TEMP", After.CLOSE), b"-ERR [SYS/TEMP] No.\r\n"),
        (challenge(""), b"+ \r\n"),
        (challenge("YWJj"), b"+ YWJj\r\n"),
        (ok("a\r\nb\0ä"), b"+OK a??b??\r\n"),
        (ok("a\r\nb"), b"+OK a??b\r\n"),
        (ok("ä"), b"+OK ?\r\n"),
        (ok("a _"), b"+OK a _\r\n"),
    ],
)
def test_firstLine(reply: object, line: bytes) -> None:
    assert firstLine(reply) == line  # type: ignore[arg-type]


def test_firstLineIsShort() -> None:
    line = firstLine(ok("x" * 9000))
    assert len(line) == 510
    assert line.endswith(b"x\r\n")


def test_splitLine() -> None:
    assert splitLine(b"pass  a b ") == ("PASS", b" a b ")
    assert splitLine(b"noop") == ("NOOP", None)
    assert splitLine(b"NOOP ") == ("NOOP", b"")
    assert splitLine(b"") == ("", None)
    assert splitLine("ſtat".encode())[0] != "STAT"
    assert splitLine(b"\xff")[0] not in ("", "STAT")


def test_hasControl() -> None:
    assert not hasControl(b" ~\x80\xff")
    for octet in [*range(32), 127]:
        assert hasControl(b"a" + bytes([octet]) + b"b")


@pytest.mark.parametrize("lines", [0, 1, 2, 9])
def test_topOfWhatHasLineEnds(lines: int) -> None:
    """
    Blocks may be cut inside a line end.
    """
    message = b"a: b\r\n\r\n.one\r\n\r\nthree\r\n"
    whole = MultiLine(lines)
    wanted = whole.feed(message) + whole.finish()
    for cut in range(len(message)):
        top = MultiLine(lines, WireForm.LINES)
        got = top.feed(message[:cut])
        assert got + top.feed(message[cut:]) + top.finish() == wanted, cut


@pytest.mark.parametrize("body", [Lines(["a"]), Pieces([b"a\r\n"])])
def test_closedBodies(body: Body) -> None:
    """
    A closed body returns no more octets.
    """
    body.close()
    assert body.next() is None
