"""
Separate the replies of the protocol engine, and put the faults of a test into the replies.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pop3svc.protocol.grammar import words
from pop3svc.protocol.wire import splitLine
from pop3svc.testing.faults import CutOff, Fault, NoAnswer, NoFinalDot, Slow, TempFail, WrongSize

__all__ = ["FaultyReply", "ReplySplitter", "isMultiLine"]

# The commands whose positive replies are always multi-line, and the commands whose positive replies
# are multi-line only without an argument.
_MULTI_LINE = frozenset(["CAPA", "RETR", "TOP"])
_MULTI_LINE_ALONE = frozenset(["AUTH", "LANG", "LIST", "UIDL"])
_END = b"\r\n.\r\n"

_SIZES = re.compile(rb"(\+OK )?([0-9]+) ([0-9]+)(?=\r\n| _\r\n)")
_CODE = re.compile(rb"(\+OK|-ERR) \[([^\]]*)\]")


def isMultiLine(line: bytes) -> bool:
    """
    @param line: a command, with its line end.
    @return: whether a positive reply to this command is multi-line.
    """
    verb, rest = splitLine(line.rstrip(b"\r\n"))
    return verb in _MULTI_LINE or (verb in _MULTI_LINE_ALONE and not words(rest))


class ReplySplitter:
    """
    Finds the beginning and the end of each reply in the octets of the engine.  Like a client, it
    finds the end by the final dot, and knows from the command whether to expect one.  The pieces of
    octets may end anywhere.

    @ivar isMultiLine: whether the next reply is multi-line if it is positive.
    """

    def __init__(self) -> None:
        self.isMultiLine = False
        # Octets of a first line that is not complete yet.
        self._partial = b""
        # The last octets of a body that has not ended yet; empty between bodies.
        self._tail = b""

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bool]]:
        """
        Split octets into pieces of replies.  After the last piece of a reply, and before you take
        the next piece, set L{isMultiLine} for the next reply.

        @param data: the next octets of the engine.
        @return: pairs of a piece and a bool, which says whether the piece is the last of its reply.
            The first piece of a reply is its first line.
        """
        while data:
            if not self._tail:
                line, end, data = (self._partial + data).partition(b"\r\n")
                if not end:
                    self._partial = line
                    return
                self._partial = b""
                # The line end of the first line may begin the end of the body.
                self._tail = end if self.isMultiLine and line.startswith(b"+OK") else b""
                yield line + end, not self._tail
                continue
            known = len(self._tail)
            data = self._tail + data
            at = data.find(_END)
            if at < 0:
                self._tail = data[1 - len(_END) :]
                yield data[known:], False
                return
            self._tail = b""
            at += len(_END)
            piece, data = data[known:at], data[at:]
            yield piece, True


class FaultyReply:
    """
    A reply of the engine on its way to the transport.

    @ivar seconds: how long the reply is delayed.
    @ivar rate: octets a second; L{None} if the rate has no limit.
    @ivar isSilent: whether the server drops the reply and all later replies.
    @ivar isCut: whether the connection ends after the octets that L{feed} returned last.
    """

    def __init__(self, verb: str, faults: list[Fault], codes: re.Pattern[bytes] | None) -> None:
        """
        @param codes: a regular expression for the response codes to remove; L{None} to remove none.
        """
        self._isStat = verb == "STAT"
        self._codes = codes
        self._atFirstLine = True
        self._tail = b""
        self._partial = b""
        self._wrongBy = sum(each.by for each in faults if isinstance(each, WrongSize))
        self._left: int | None = min(
            (each.after for each in faults if isinstance(each, CutOff)), default=None
        )
        self._hasDot = not any(isinstance(each, NoFinalDot) for each in faults)
        self._fails = any(isinstance(each, TempFail) for each in faults)
        slow = [each for each in faults if isinstance(each, Slow)]
        self.seconds = sum(each.seconds for each in slow)
        self.rate: float | None = min(
            (each.octetsPerSecond for each in slow if each.octetsPerSecond is not None),
            default=None,
        )
        self.isSilent = any(isinstance(each, NoAnswer) for each in faults)
        self.isCut = False

    def feed(self, data: bytes) -> bytes:
        """
        @param data: octets of the engine.  In the first call these are the whole first line.
        @return: octets to send.
        """
        if self._atFirstLine:
            self._atFirstLine = False
            if self._fails:
                data = b"-ERR [SYS/TEMP] Try again later.\r\n"
            if self._codes is not None:
                code = _CODE.match(data)
                if code is not None and self._codes.fullmatch(code[2]):
                    data = code[1] + data[code.end() :]
        elif self._fails:
            return b""
        if self._wrongBy:
            data = self._partial + data
            end = data.rfind(b"\n") + 1
            data, self._partial = data[:end], data[end:]
            data = b"".join(_SIZES.sub(self._wrong, line) for line in data.splitlines(True))
        if not self._hasDot:
            data = self._tail + data
            data, self._tail = data[: -len(_END)], data[-len(_END) :]
        return self._upToCut(data)

    def finish(self) -> bytes:
        """
        @return: the remaining octets to send.
        """
        tail, self._tail = self._tail, b""
        return self._upToCut(tail.removesuffix(b".\r\n") if tail == _END else tail)

    def _wrong(self, found: re.Match[bytes]) -> bytes:
        number, octets = int(found[2]), int(found[3])
        messages = number if self._isStat else 1
        wrong = max(0, octets + messages * self._wrongBy)
        return b"%s%d %d" % (found[1] or b"", number, wrong)

    def _upToCut(self, data: bytes) -> bytes:
        if self._left is None:
            return data
        data = data[: self._left]
        self._left -= len(data)
        self.isCut = not self._left
        return data
