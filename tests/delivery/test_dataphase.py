"""
The octets between DATA and the final dot, cut anywhere.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pop3svc.delivery.dataphase import DataPhase


def fed(*blocks: bytes) -> tuple[bytes, bytes | None, bool]:
    """
    @return: the message, the octets after the final dot (L{None} without a final dot), and whether
        the input has bare line ends.
    """
    phase = DataPhase()
    message = b""
    for number, block in enumerate(blocks, 1):
        data, rest = phase.feed(block)
        message += data
        if rest is not None:
            return message, rest + b"".join(blocks[number:]), phase.hasBareLineEnd
    return message, None, phase.hasBareLineEnd


@pytest.mark.parametrize(
    ("sent", "message", "rest"),
    [
        (b".\r\n", b"", b""),
        (b"a\r\n.\r\nQUIT\r\n", b"a\r\n", b"QUIT\r\n"),
        (b"..\r\n...\r\n.a\r\n.\r\n", b".\r\n..\r\na\r\n", b""),
        (b"\r\n\r\n.\r\n", b"\r\n\r\n", b""),
        (b"a\r\n.", b"a", None),
    ],
)
def test_plain(sent: bytes, message: bytes, rest: bytes | None) -> None:
    assert fed(sent) == (message, rest, False)


@pytest.mark.parametrize(
    "sent",
    [
        b"a\n.\nMAIL FROM:<b@b>\r\n.\r\n",
        b"a\n.\r\nMAIL FROM:<b@b>\r\n.\r\n",
        b"a\r\n.\nMAIL FROM:<b@b>\r\n.\r\n",
        b"a\r.\rMAIL FROM:<b@b>\r\n.\r\n",
        b"a\r\n.\rMAIL FROM:<b@b>\r\n.\r\n",
        b"a\r\r\n.\r\r\nMAIL FROM:<b@b>\r\n.\r\n",
        b"\n.\r\n.\r\n",
        b"\r.\r\n.\r\n",
    ],
)
def test_smuggling(sent: bytes) -> None:
    """
    Only CRLF . CRLF ends a message, and bare line ends are noticed wherever a packet ends.
    """
    for cut in range(len(sent) + 1):
        _, rest, hasBare = fed(sent[:cut], sent[cut:])
        assert (rest, hasBare) == (b"", True), cut


@given(st.lists(st.text("a.\r\n").map(str.encode)), st.text("ab\r\n.").map(str.encode))
def test_everyCut(blocks: list[bytes], after: bytes) -> None:
    """
    The result does not depend on the cuts, and the dot-stuffing of a message is removed.
    """
    whole = b"".join(blocks)
    assert fed(*blocks, after) == fed(whole + after)
    lines = [each.replace(b"\r", b"").replace(b"\n", b"") for each in blocks]
    message = b"".join(each + b"\r\n" for each in lines)
    stuffed = b"".join((b"." if each[:1] == b"." else b"") + each + b"\r\n" for each in lines)
    assert fed(stuffed + b".\r\n" + after) == (message, after, False)
