"""
A line to its verb and the rest; a reply to its bytes.
"""

from __future__ import annotations

import re
from functools import lru_cache

from pop3svc.lineendings import DOT_LINE, CRLFNormalizer
from pop3svc.protocol.replies import Reply

__all__ = ["MultiLine", "Top", "firstLine", "hasControl", "splitLine"]

_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_UNSENDABLE = re.compile(r"[^ -~]")
# RFC 2449 section 4, with its CRLF.
_FIRST_LINE = 512
_MARK = " _"


def hasControl(line: bytes) -> bool:
    """
    Does the line hold a control octet?
    """
    return _CONTROL.search(line) is not None


def splitLine(line: bytes) -> tuple[str, bytes | None]:
    """
    @return: the verb in upper case, and what followed its one space, L{None}
        if nothing did.
    """
    verb, space, rest = line.partition(b" ")
    return verb.upper().decode("ascii", "replace"), rest if space else None


def firstLine(reply: Reply, marksMultiLine: bool = False) -> bytes:
    """
    The first line of a reply, with its CRLF: always one line, always at most
    512 octets (RFC 2449 section 4), whatever it was made from.

    @param marksMultiLine: end that of a multi-line reply, and of no other,
        with C{ _} (MULTI-LINE-IND).
    """
    if reply.isChallenge:
        # A challenge may be longer (RFC 5034 section 4).
        return f"+ {reply.text}\r\n".encode("ascii")
    return _statusLine(
        reply.positive, reply.code, reply.text, marksMultiLine, reply.body is not None
    )


# Most replies are the same few: 35 bytecodes in place of 64 for each.
@lru_cache(512)
def _statusLine(
    isPositive: bool, code: str | None, text: str, marksMultiLine: bool, isMultiLine: bool
) -> bytes:
    line = "+OK" if isPositive else "-ERR"
    if code is not None:
        line += f" [{code}]"
    if text:
        line += " " + text
    if not (line.isascii() and line.isprintable()):
        line = _UNSENDABLE.sub("?", line)
    line = line[: _FIRST_LINE - 2 - len(_MARK)]
    if marksMultiLine:
        while line.endswith(_MARK):
            line = line.removesuffix(_MARK)
        if isMultiLine:
            line += _MARK
    return line.encode("ascii") + b"\r\n"


class Top:
    """
    Lets the header, the blank line and a number of lines pass (RFC 1939, TOP).
    """

    def __init__(self, lines: int) -> None:
        self._linesLeft = lines
        self._inHeader = True
        self._atLineStart = True
        self.done = False

    def feed(self, data: bytes) -> bytes:
        """
        @param data: the next octets as L{CRLFNormalizer} gives them out.
        @return: those of them that are wanted.
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
        behind = data[kept:].split(b"\r\n", self._linesLeft)[-1]
        return data[: len(data) - len(behind)]

    def _endOfHeader(self, data: bytes) -> int:
        """
        @return: where in C{data} the body begins, -1 if not in it.
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
    Turns the body of a multi-line reply into what is sent: line ends made
    CRLF, lines that begin with a dot stuffed (RFC 1939 section 3), a dot at
    the end.  Blocks may be cut anywhere.
    """

    def __init__(self, topLines: int | None = None, hasLineEnds: bool = False) -> None:
        """
        @param topLines: see L{Reply.topLines}.
        @param hasLineEnds: see L{pop3svc.protocol.replies.Body.hasLineEnds}.
        """
        # Top has to see whole line ends, and blocks are cut inside them, too.
        self._lineEnds = None if hasLineEnds and topLines is None else CRLFNormalizer()
        self._top = None if topLines is None else Top(topLines)
        self._atLineStart = True
        # Octets given out, without the dots that were added.
        self.octets = 0

    @property
    def done(self) -> bool:
        """
        Is nothing more of the body wanted?
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
        @return: what is still to be sent, the final dot included.
        """
        rest = b"" if self._lineEnds is None else self._lineEnds.finish()
        return self._stuffed(rest) + b".\r\n"

    def _stuffed(self, data: bytes) -> bytes:
        if self._top is not None:
            data = self._top.feed(data)
        if not data:
            return b""
        self.octets += len(data)
        # Only the seam needs a look; within the block replace() sees all.
        leading = self._atLineStart and data.startswith(b".")
        self._atLineStart = data.endswith(b"\n")
        if b"." in data and DOT_LINE.search(data):
            # Four times as fast as replace().
            data = b"\n..".join(DOT_LINE.split(data))
        return b"." + data if leading else data
