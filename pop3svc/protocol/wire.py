"""
Split lines into verb and arguments, and encode replies.
"""

from __future__ import annotations

import re
from functools import lru_cache

from pop3svc.languages import Language
from pop3svc.lineendings import DOT_LINE, CRLFNormalizer, WireForm
from pop3svc.protocol.replies import Reply

__all__ = ["PLAIN", "LineStyle", "MultiLine", "Top", "firstLine", "hasControl", "splitLine"]

_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_UNSENDABLE = re.compile(r"[^ -~]")
# The same after LANG, when a text is UTF-8 (RFC 6856 section 3.2).
_UNSENDABLE_UTF8 = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# The most octets of a first line with its CRLF (RFC 2449 section 4).
_FIRST_LINE = 512
_MARK = " _"
_LONGEST = _FIRST_LINE - 2 - len(_MARK)


class LineStyle:
    """
    The way in which a session shows first lines.  The cache of first lines compares styles by
    identity, because this is the fastest comparison.

    @ivar marksMultiLine: whether the first line of a multi-line reply, and of no other reply, ends
        with C{ _} (MULTI-LINE-IND).
    @ivar language: the language of the texts after LANG; L{None} for English.
    """

    __slots__ = ("language", "marksMultiLine")

    def __init__(self, marksMultiLine: bool, language: Language | None) -> None:
        self.marksMultiLine = marksMultiLine
        self.language = language

    @staticmethod
    @lru_cache(64)
    def of(marksMultiLine: bool, language: Language | None = None) -> LineStyle:
        """
        @return: the style.  The same arguments always give the same object.
        """
        return LineStyle(marksMultiLine, language)


PLAIN = LineStyle.of(False)


def hasControl(line: bytes) -> bool:
    """
    @return: whether the line contains a control character.
    """
    return _CONTROL.search(line) is not None


def splitLine(line: bytes) -> tuple[str, bytes | None]:
    """
    @return: the verb in upper case; and the octets after one space, or L{None} if there is no
        space.
    """
    verb, space, rest = line.partition(b" ")
    # Use latin-1, because it decodes every octet, and takes the least time.
    return verb.upper().decode("latin-1"), rest if space else None


def firstLine(reply: Reply, style: LineStyle = PLAIN) -> bytes:
    """
    Encode the first line of a reply, with its CRLF.  The text is translated if the style has a
    language, unprintable characters are replaced, and the line is cut to 512 octets (RFC 2449
    section 4).
    """
    if reply.isChallenge:
        # A challenge may be longer (RFC 5034 section 4).
        return f"+ {reply.text}\r\n".encode("ascii")
    return _statusLine(reply.positive, reply.code, reply.text, style, reply.body is not None)


# Cache the result, because most replies have one of a few first lines.  A cached line takes 35
# bytecodes, a new line 64.
@lru_cache(512)
def _statusLine(
    isPositive: bool, code: str | None, text: str, style: LineStyle, isMultiLine: bool
) -> bytes:
    line = "+OK" if isPositive else "-ERR"
    if code is not None:
        line += f" [{code}]"
    language = style.language
    if text:
        line += " " + (text if language is None else language.translated(text))
    if not (line.isascii() and line.isprintable()):
        line = (_UNSENDABLE if language is None else _UNSENDABLE_UTF8).sub("?", line)
        # Do not cut a character in two.
        line = line.encode("utf-8")[:_LONGEST].decode("utf-8", "ignore")
    line = line[:_LONGEST]
    if style.marksMultiLine:
        while line.endswith(_MARK):
            line = line.removesuffix(_MARK)
        if isMultiLine:
            line += _MARK
    return line.encode("utf-8") + b"\r\n"


class Top:
    """
    Selects the header of a message, the blank line and a number of lines of the body (RFC 1939,
    TOP).
    """

    def __init__(self, lines: int) -> None:
        self._linesLeft = lines
        self._inHeader = True
        self._atLineStart = True
        self.done = False

    def feed(self, data: bytes) -> bytes:
        """
        @param data: the next octets from L{CRLFNormalizer}.
        @return: the octets to send.
        """
        if self.done:
            return b""
        kept = 0
        if self._inHeader:
            kept = self._endOfHeader(data)
            if kept < 0:
                return data
            self._inHeader = False
        lines = data.count(b"\r\n", kept)
        if lines < self._linesLeft:
            self._linesLeft -= lines
            return data
        self.done = True
        if not self._linesLeft:
            return data[:kept]
        dropped = data[kept:].split(b"\r\n", self._linesLeft)[-1]
        return data[: len(data) - len(dropped)]

    def _endOfHeader(self, data: bytes) -> int:
        """
        @return: the offset in C{data} at which the body begins, -1 if it begins later.
        """
        if self._atLineStart and data.startswith(b"\r\n"):
            return 2
        at = data.find(b"\r\n\r\n")
        if at >= 0:
            return at + 4
        if data:
            self._atLineStart = data.endswith(b"\r\n")
        return -1


class MultiLine:
    """
    Encodes the body of a multi-line reply: converts line ends to CRLF, stuffs lines that
    begin with a dot (RFC 1939 section 3), and appends the final dot.  Blocks may be cut
    anywhere.
    """

    def __init__(self, topLines: int | None = None, form: WireForm = WireForm.RAW) -> None:
        """
        @param topLines: see L{Reply.topLines}.
        @param form: the form of the octets.
        """
        # Top needs complete line ends, and a block may end inside a line end.  Top therefore always
        # gets the output of a CRLFNormalizer.
        isRaw = form is WireForm.RAW or topLines is not None
        self._lineEnds = CRLFNormalizer() if isRaw else None
        self._top = None if topLines is None else Top(topLines)
        self._atLineStart = True
        # Octets returned so far, without the added dots.
        self.octets = 0

    @property
    def done(self) -> bool:
        """
        Whether the rest of the body is not sent.
        """
        return self._top is not None and self._top.done

    def feed(self, data: bytes) -> bytes:
        """
        @param data: the next octets of the body.
        @return: octets for the wire; possibly none yet.
        """
        return self._stuffed(data if self._lineEnds is None else self._lineEnds.feed(data))

    def finish(self) -> bytes:
        """
        @return: the last octets for the wire, with the final dot.
        """
        rest = b"" if self._lineEnds is None else self._lineEnds.finish()
        return self._stuffed(rest) + b".\r\n"

    def _stuffed(self, data: bytes) -> bytes:
        if self._top is not None:
            data = self._top.feed(data)
        if not data:
            return b""
        self.octets += len(data)
        # A dot at the beginning of a block begins a line if the last block ended with a line end.
        # The pattern finds all other dots that begin a line.
        leading = self._atLineStart and data.startswith(b".")
        self._atLineStart = data.endswith(b"\n")
        if b"." in data and DOT_LINE.search(data):
            # This is four times as fast as replace().
            data = b"\n..".join(DOT_LINE.split(data))
        return b"." + data if leading else data
