"""
The values a command can return, and what happens after each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import Any, NamedTuple, Protocol

__all__ = ["After", "Body", "Lines", "Pieces", "Reply", "challenge", "err", "ok"]

# What a listing is handed on in: large enough to be cheap, small enough to
# hold for ten thousand clients.
_PIECE = 16384


class After(Enum):
    """
    What the connection does once the reply is sent.
    """

    GO_ON = "go on"
    CLOSE = "close"
    START_TLS = "start TLS"


class Body(Protocol):
    """
    The octets behind the first line of a reply, before dot-stuffing.

    @ivar hasLineEnds: are they whole lines, all of their ends CRLF?
    @ivar isWireReady: and are they to the octet what is sent: does no line begin
        with a dot, either?
    @ivar sendTo: sends the next octets to a socket without taking them in
        hand: takes its descriptor and returns how many octets that were, 0 if
        they have to be asked for by C{next}; raises C{BlockingIOError} if the
        socket takes none now.  Or L{None}.
    """

    hasLineEnds: bool
    isWireReady: bool
    sendTo: Callable[[int], int] | None

    def next(self) -> Any:
        """
        @return: some octets, cut anywhere, line ends LF or CRLF; L{None} after
            the last; or a Deferred or coroutine that gives them.
        """

    def wasSent(self, octets: int) -> None:
        """
        The whole body was sent: so many octets, without dot-stuffing and without the
        line that ends the reply.
        """

    def close(self) -> None:
        """
        Let go of what the body holds.  Called exactly once by whoever was
        given the body.
        """


class Lines:
    """
    A L{Body} of short lines that are made while it is sent.
    """

    hasLineEnds = True
    isWireReady = False
    sendTo: Callable[[int], int] | None = None

    def __init__(self, lines: Iterable[str]) -> None:
        """
        @param lines: ASCII without line ends.
        """
        self._lines: Iterator[str] = iter(lines)

    def next(self) -> bytes | None:
        """
        See L{Body.next}.
        """
        piece: list[str] = []
        octets = 0
        for line in self._lines:
            piece.append(line)
            octets += len(line) + 2
            if octets >= _PIECE:
                break
        if not piece:
            return None
        piece.append("")
        return "\r\n".join(piece).encode("ascii")

    def wasSent(self, octets: int) -> None:
        """
        See L{Body.wasSent}.
        """

    def close(self) -> None:
        """
        See L{Body.close}.
        """
        self._lines = iter(())


class Pieces:
    """
    A L{Body} that stands ready in pieces.
    """

    hasLineEnds = isWireReady = True
    sendTo: Callable[[int], int] | None = None

    def __init__(self, pieces: Iterable[bytes]) -> None:
        """
        @param pieces: octets to be sent as they are, each of whole lines.
        """
        self._pieces: Iterator[bytes] = iter(pieces)

    def next(self) -> bytes | None:
        """
        See L{Body.next}.
        """
        return next(self._pieces, None)

    def wasSent(self, octets: int) -> None:
        """
        See L{Body.wasSent}.
        """

    def close(self) -> None:
        """
        See L{Body.close}.
        """
        self._pieces = iter(())


class Reply(NamedTuple):
    """
    What a command answers.

    @ivar positive: C{+OK} or C{-ERR}.
    @ivar text: the rest of the first line, printable ASCII.
    @ivar code: a response code without its brackets, or L{None}.
    @ivar body: what follows the first line of a multi-line reply.
    @ivar topLines: of the body, send its header, the blank line and this many
        lines (RFC 1939, TOP); L{None} for all.
    @ivar then: what happens after it.
    @ivar isChallenge: a C{+ } line inside AUTH; C{text} is its base64.
    @ivar stays: a positive reply that does not enter the command's next state.
    @ivar senseless: the command was unknown, misplaced or malformed.
    @ivar fault: the answer hides an error of ours or of the provider.
    """

    positive: bool
    text: str
    code: str | None = None
    body: Body | None = None
    topLines: int | None = None
    then: After = After.GO_ON
    isChallenge: bool = False
    keepsState: bool = False
    isBadCommand: bool = False
    fault: bool = False


def ok(
    text: str,
    code: str | None = None,
    body: Body | None = None,
    topLines: int | None = None,
    then: After = After.GO_ON,
    keepsState: bool = False,
) -> Reply:
    """
    A positive reply; multi-line if it has a body.
    """
    return Reply(True, text, code, body, topLines, then, keepsState=keepsState)


def err(
    text: str,
    code: str | None = None,
    then: After = After.GO_ON,
    isBadCommand: bool = False,
    fault: bool = False,
) -> Reply:
    """
    A negative reply.
    """
    return Reply(False, text, code, then=then, isBadCommand=isBadCommand, fault=fault)


def challenge(encoded: str) -> Reply:
    """
    A challenge inside AUTH (RFC 5034 section 4).

    @param encoded: the challenge in base64.
    """
    return Reply(True, encoded, isChallenge=True)
