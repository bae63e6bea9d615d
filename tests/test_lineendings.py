"""
Line ends and counts, at every split of the input.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pop3svc.lineendings import CRLFNormalizer, WireSizeCounter
from tests.support.messages import NASTY, asSent


def through(message: bytes, cuts: list[int]) -> tuple[bytes, int]:
    lineEnds, count, sent, begin = CRLFNormalizer(), WireSizeCounter(), b"", 0
    for cut in [*cuts, len(message)]:
        piece = lineEnds.feed(message[begin:cut])
        assert not (sent.endswith(b"\r") and piece.startswith(b"\n"))
        sent += piece
        count.feed(message[begin:cut])
        begin = cut
    return sent + lineEnds.finish(), count.total()


@pytest.mark.parametrize(
    ("message", "sent"),
    [
        (b"", b""),
        (b"\n", b"\r\n"),
        (b"\r", b"\r\r\n"),
        (b"a\nb\r\nc\rd", b"a\r\nb\r\nc\rd\r\n"),
        (b"\r\r\n", b"\r\r\n"),
        (b"\n\r", b"\r\n\r\r\n"),
        (b"\0\xff\n", b"\0\xff\r\n"),
    ],
)
def test_examples(message: bytes, sent: bytes) -> None:
    assert asSent(message) == sent
    for cut in range(len(message) + 1):
        assert through(message, [cut]) == (sent, len(sent))
    assert through(message, list(range(len(message)))) == (sent, len(sent))


@given(NASTY, st.lists(st.integers(0, 60), max_size=5))
def test_anyCuts(message: bytes, cuts: list[int]) -> None:
    sent = asSent(message)
    places = sorted(min(cut, len(message)) for cut in cuts)
    assert through(message, places) == (sent, len(sent))
