"""
Messages that are hard to transfer: the octets on disk, and the octets that a client has to receive.

In transfer each bare LF becomes CRLF, a lone CR stays, and a last line without an end gets one.  An
empty message stays empty.  A header in UTF-8 is converted to ASCII, because the clients do not send
UTF8.  Nothing else changes.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

__all__ = ["HARD_MESSAGES", "HardMessage", "normalised"]

# The usual block sizes of readers and writers of files and sockets.
_BORDERS = (16384, 65536)


@dataclass(frozen=True)
class HardMessage:
    """
    @ivar name: the name of the message in tests.
    @ivar stored: its octets on disk.
    @ivar expected: the octets that a client receives, without dot-stuffing.
    @ivar folder: the directory in the Maildir that holds it.
    @ivar suffix: the end of its file name, such as its flags.
    """

    name: str
    stored: bytes
    expected: bytes
    folder: str = "new"
    suffix: str = ""

    @property
    def longestLine(self) -> int:
        """
        The length of the longest line in octets, without its LF.
        """
        return max(map(len, self.expected.split(b"\n")))


def normalised(stored: bytes) -> bytes:
    """
    @return: the octets that a client receives for the octets on disk, if the header is ASCII.  This
        function computes them in another way than the service.
    """
    sent = re.sub(rb"(?<!\r)\n", b"\r\n", stored)
    return sent if not sent or sent.endswith(b"\r\n") else sent + b"\r\n"


def _header(name: str) -> bytes:
    return (
        b"From: Alice <alice@example.test>\nTo: Bob <bob@example.test>\n"
        b"Date: Sat, 21 Nov 2026 10:00:00 +0000\nMessage-ID: <%s@example.test>\n"
        b"Subject: %s\n\n" % (name.encode(), name.encode())
    )


def _mail(name: str, body: bytes, expectedBody: bytes | None = None, **place: str) -> HardMessage:
    """
    A message with LF line ends in its header, and with this body.
    """
    header = _header(name)
    stored = header + body
    if expectedBody is None:
        return HardMessage(name, stored, normalised(stored), **place)
    return HardMessage(name, stored, header.replace(b"\n", b"\r\n") + expectedBody, **place)


def _crlfMail(name: str, body: bytes, expectedBody: bytes, **place: str) -> HardMessage:
    """
    A message with CRLF line ends in its header, and with this body.
    """
    header = _header(name).replace(b"\n", b"\r\n")
    return HardMessage(name, header + body, header + expectedBody, **place)


def _bare(name: str, stored: bytes, expected: bytes, **place: str) -> HardMessage:
    """
    A message of exactly these octets.
    """
    return HardMessage(name, stored, expected, **place)


def _atBorders(size: int, shift: int, end: bytes) -> HardMessage:
    """
    A message with lines that begin with a dot at three block borders, or near them.

    @param shift: the offset of the dot from the border.  With a line end of two octets, 0 puts the
        line end before the border, 1 across it, and 2 after it.
    """
    form = "CRLF" if end == b"\r\n" else "LF"
    name = f"dots-{form}-{size}{shift:+d}"
    stored = _header(name).replace(b"\n", end)
    for border in (size, 2 * size, 3 * size):
        start = border + shift - len(end)
        filler = (b"filler " * 9 + end) * ((start - len(stored)) // (63 + len(end)))
        stored += filler
        stored += b"x" * (start - len(stored)) + end
        assert len(stored) == border + shift
        # One, two and three dots, and a single dot, each after a line end.
        stored += b".one" + end + b"." + end + b"..two" + end + b"..." + end
    stored += b"end" + end
    return HardMessage(name, stored, stored.replace(end, b"\r\n"))


def _fuzz(seed: int, octets: int) -> bytes:
    """
    Line ends, dots and a few other octets in a random but reproducible order.
    """
    chosen = random.Random(seed)
    return bytes(chosen.choices(b"\r\n.a", (3, 3, 3, 1), k=octets))


def _large(octets: int) -> bytes:
    """
    A body with lines of many lengths, some of which begin with a dot.
    """
    block = b"".join(
        (b"." if length % 7 == 0 else b"") + b"0123456789" * (length // 10) + b"\n"
        for length in range(0, 1000, 3)
    )
    return (block * (octets // len(block) + 1))[:octets] + b"\n"


_ALL_OCTETS = bytes(each for each in range(1, 256) if each not in b"\r\n")
_UTF8_HEADER = (
    "From: Jürgen Größe <jürgen@müller.example>\nSubject: Grüße – 你好 🙂\n"
    "X-Long: äöü\n\tfolded ß\n\nTschüß\n"
).encode()
# The message that a client gets if it has not sent UTF8.
_SURROGATE = (
    "From: =?utf-8?B?SsO8cmdlbiBHcsO2w59lIDxqw7xyZ2VuQG3DvGxsZXIuZXhhbXBsZT4=?=\r\n"
    " <invalid@internationalized-address.invalid>\r\n"
    "Subject: =?utf-8?B?R3LDvMOfZSDigJMg5L2g5aW9IPCfmYI=?=\r\n"
    "X-Long: =?utf-8?B?w6TDtsO8?=\tfolded =?utf-8?B?w58=?=\r\n\r\nTschüß\r\n"
).encode()


def _messages() -> list[HardMessage]:
    return [
        # line ends
        _mail("lf", b"one\ntwo\n", b"one\r\ntwo\r\n"),
        _crlfMail("crlf", b"one\r\ntwo\r\n", b"one\r\ntwo\r\n"),
        _mail("mixed", b"one\r\ntwo\nthree\r\n\nfour\n", b"one\r\ntwo\r\nthree\r\n\r\nfour\r\n"),
        _mail("lone-cr", b"one\rtwo\r\rthree\n", b"one\rtwo\r\rthree\r\n"),
        _mail("lone-cr-last", b"one\ntwo\r", b"one\r\ntwo\r\r\n"),
        _mail("cr-before-crlf", b"one\r\r\ntwo\r\r\r\n", b"one\r\r\ntwo\r\r\r\n"),
        _mail("cr-starts-line", b"\rone\n\r.\n\r\r\n", b"\rone\r\n\r.\r\n\r\r\n"),
        _mail("crs-only", b"\r" * 70_000 + b"\n", b"\r" * 70_000 + b"\n"),
        _mail("lf-cr", b"one\n\rtwo\n\r\n", b"one\r\n\rtwo\r\n\r\n"),
        _mail("no-final-end", b"one\ntwo", b"one\r\ntwo\r\n"),
        _crlfMail("no-final-end-crlf", b"one\r\ntwo", b"one\r\ntwo\r\n"),
        _mail("blank-lines", b"\n" * 66_000, b"\r\n" * 66_000),
        _mail("blank-lines-crlf", b"\r\n" * 33_000, b"\r\n" * 33_000),
        _mail("trailing-blanks", b"one \ntwo\t\n \n\t\n", b"one \r\ntwo\t\r\n \r\n\t\r\n"),
        # octets
        _mail("nul", b"one\0two\n\0\n.\0\n\0", b"one\0two\r\n\0\r\n.\0\r\n\0\r\n"),
        _mail("eight-bit", _ALL_OCTETS + b"\n", _ALL_OCTETS + b"\r\n"),
        _mail("latin1", "Grüße\n".encode("latin-1"), "Grüße\r\n".encode("latin-1")),
        _mail(
            "controls",
            b"\x1a\n\x04\n\x03\n\x1b[2J\n",
            b"\x1a\r\n\x04\r\n\x03\r\n\x1b[2J\r\n",
        ),
        _bare("utf8-header", _UTF8_HEADER, _SURROGATE),
        # dots
        _mail("dots", b".\n..\n...\n.a\n..a\n. \n", b".\r\n..\r\n...\r\n.a\r\n..a\r\n. \r\n"),
        _crlfMail("dot-alone-crlf", b"one\r\n.\r\ntwo\r\n", b"one\r\n.\r\ntwo\r\n"),
        _mail("dot-alone-lf", b"one\n.\ntwo\n", b"one\r\n.\r\ntwo\r\n"),
        _mail("dot-alone-mixed", b"one\n.\r\ntwo\r\n.\n", b"one\r\n.\r\ntwo\r\n.\r\n"),
        _crlfMail("dot-last-crlf", b"one\r\n.\r\n", b"one\r\n.\r\n"),
        _mail("dot-last-no-end", b"one\n.", b"one\r\n.\r\n"),
        _mail("dot-cr", b".\rone\n.\r\r\n.\r", b".\rone\r\n.\r\r\n.\r\r\n"),
        _mail("dots-only", b".\n" * 33_000, b".\r\n" * 33_000),
        _mail(
            "answers", b"+OK\n-ERR no\n.\n+OK bye\n.\n", b"+OK\r\n-ERR no\r\n.\r\n+OK bye\r\n.\r\n"
        ),
        _mail("from-lines", b"From here\n>From there\n\nFrom x\n"),
        # degenerate messages
        _bare("empty", b"", b""),
        _bare("only-crlf", b"\r\n", b"\r\n"),
        _bare("only-lf", b"\n", b"\r\n"),
        _bare("only-cr", b"\r", b"\r\r\n"),
        _bare("only-dot", b".", b".\r\n"),
        _bare("only-dot-crlf", b".\r\n", b".\r\n"),
        _bare("only-nul", b"\0", b"\0\r\n"),
        _bare("two-dots", b"..\n", b"..\r\n"),
        _bare("dot-first", b".From: x\n\n.\n", b".From: x\r\n\r\n.\r\n"),
        _bare("header-blank", b"Subject: header\nX: y\n\n", b"Subject: header\r\nX: y\r\n\r\n"),
        _bare("header-only", b"Subject: header\nX: y\n", b"Subject: header\r\nX: y\r\n"),
        _bare("header-cut", b"Subject: header\r\nX: y", b"Subject: header\r\nX: y\r\n"),
        _bare("body-only", b"\nno header\n", b"\r\nno header\r\n"),
        _bare("no-header", b"no header at all\n", b"no header at all\r\n"),
        # sizes
        _mail("line-998", b"x" * 998 + b"\n", b"x" * 998 + b"\r\n"),
        _mail("line-70000", b"x" * 70_000 + b"\n", b"x" * 70_000 + b"\r\n"),
        _mail("line-1mb", b"x" * 1_000_000 + b"\n", b"x" * 1_000_000 + b"\r\n"),
        _mail("dots-70000", b"." * 70_000 + b"\n", b"." * 70_000 + b"\r\n"),
        _mail("large", _large(7_000_000)),
        # a mixture
        _mail("fuzz", _fuzz(1, 140_000) + b"\n"),
        _mail("fuzz-no-end", _fuzz(2, 65_536) + b"."),
        _bare("fuzz-bare", _fuzz(3, 70_001), normalised(_fuzz(3, 70_001))),
        # the directory and the file name
        _mail("seen", b"seen\n", b"seen\r\n", folder="cur", suffix=":2,S"),
        _mail("flagged", b".flagged\n", b".flagged\r\n", folder="cur", suffix=":2,FRS"),
        _mail("no-flags", b"old\n", b"old\r\n", folder="cur", suffix=":2,"),
        _mail("sizes-in-name", b"size\n", b"size\r\n", suffix=",S=999,W=1"),
        _mail("odd-name", b"odd\n", b"odd\r\n", suffix=" \u00f6 ~%+"),
        _mail("long-name", b"long\n", b"long\r\n", folder="cur", suffix="x" * 150 + ":2,RS"),
        # blocks
        *(
            _atBorders(size, shift, end)
            for size in _BORDERS
            for end in (b"\n", b"\r\n")
            for shift in (-1, 0, 1, 2)
        ),
    ]


HARD_MESSAGES: tuple[HardMessage, ...] = tuple(_messages())
