"""
Split a line into its verb and the rest, and encode replies.
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
# Characters that are not sent after LANG.  Texts may be UTF-8 then (RFC 6856 section 3.2).
_UNSENDABLE_UTF8 = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# The most octets of a first line, including its CRLF (RFC 2449 section 4).
_FIRST_LINE = 512
_MARK = " _"
_LONGEST = _FIRST_LINE - 2 - len(_MARK)


class LineStyle:
    """
    The form in which a session sends the first lines of replies.  The cache of first lines compares
    styles by identity, which is the fastest comparison.

    @ivar marksMultiLine: whether C{ _} is added to the first line of a multi-line reply
        (MULTI-LINE-IND).  The first line of another reply then never ends with C{ _}.
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
        @return: the style with these properties.  The same arguments always give the same object.
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
    @return: the verb in upper case, and the octets after the first space; L{None} if there is no
        space.
    """
    verb, space, rest = line.partition(b" ")
    # Use latin-1, because it decodes every octet and takes the least time.
    return verb.upper().decode("latin-1"), rest if space else None


def firstLine(reply: Reply, style: LineStyle = PLAIN) -> bytes:
    """
    Encode the first line of a reply, including the CRLF.  If the style has a language, the text is
    translated.  Characters that are not printable are replaced.  The line is cut to 512 octets (RFC
    2449 section 4).
    """
    if reply.isChallenge:
        # Do not cut a challenge, because it may be longer (RFC 5034 section 4).
        return f"+ {reply.text}\r\n".encode("ascii")
    return _statusLine(reply.positive, reply.code, reply.text, style, reply.body is not None)


# Cache the result, because most replies have one of a few first lines.  A line from the cache takes
# 18 bytecodes, and a new line takes 73 to 82.
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
        # Decode the line again, so that the cut does not leave a part of a character.
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
    Selects the header of a message, the empty line and the first lines of the body (RFC 1939, TOP).
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
        @return: the offset in C{data} at which the body begins; -1 if the body begins after
            C{data}.
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
    Encodes the body of a multi-line reply.  It converts line ends to CRLF, adds a dot to lines that
    begin with a dot (RFC 1939 section 3), and adds the final dot.  Blocks may be cut anywhere.
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
        # The number of octets that were returned so far, without the added dots.
        self.octets = 0

    @property
    def done(self) -> bool:
        """
        Whether enough lines were selected, so that the rest of the body is not needed.
        """
        return self._top is not None and self._top.done

    def feed(self, data: bytes) -> bytes:
        """
        @param data: the next octets of the body.
        @return: the next octets to send; they may be empty.
        """
        return self._stuffed(data if self._lineEnds is None else self._lineEnds.feed(data))

    def finish(self) -> bytes:
        """
        @return: the last octets to send, including the final dot.
        """
        rest = b"" if self._lineEnds is None else self._lineEnds.finish()
        return self._stuffed(rest) + b".\r\n"

    def _stuffed(self, data: bytes) -> bytes:
        if self._top is not None:
            data = self._top.feed(data)
        if not data:
            return b""
        self.octets += len(data)
        # The pattern does not find a dot at the beginning of a block.  This dot begins a line if
        # the previous block has ended with a line end.
        leading = self._atLineStart and data.startswith(b".")
        self._atLineStart = data.endswith(b"\n")
        if b"." in data and DOT_LINE.search(data):
            # split() and join() together are four times as fast as replace().
            data = b"\n..".join(DOT_LINE.split(data))
        return b"." + data if leading else data
