"""
The values that a command returns, and the actions after a reply.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Any, NamedTuple, Protocol

from pop3svc.lineendings import WireForm

__all__ = ["After", "Body", "Lines", "Pieces", "Reply", "challenge", "err", "ok"]

# The octets of a piece of a listing.  Larger pieces would need too much memory for ten thousand
# clients, and smaller ones too much time.
_PIECE = 16384


class After(Enum):
    """
    The action of the connection after it has sent a reply.
    """

    GO_ON = "go on"
    CLOSE = "close"
    START_TLS = "start TLS"


class Body(Protocol):
    """
    The octets after the first line of a reply, before dot-stuffing.

    @ivar form: the form of the octets, which decides how the encoder changes them.
    @ivar region: the part of a file that C{next} has not read yet (L{pop3svc.files.FileRegion}), or
        L{None} if the octets are not in a file.  Only the outlet reads this attribute.
    """

    form: WireForm
    region: object

    def next(self) -> Any:
        """
        @return: the next octets, cut anywhere, with line ends LF or CRLF; L{None} after
            the last; or a Deferred or coroutine of these.
        """

    def wasSent(self, octets: int) -> None:
        """
        Called after the whole body was sent.

        @param octets: the size of the body, without dot-stuffing and the final dot.
        """

    def close(self) -> None:
        """
        Release the resources of the body.  The owner of the body calls this exactly once.
        """


class Lines:
    """
    A L{Body} of short lines that are generated while it is sent.
    """

    form = WireForm.LINES
    region: object = None

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
    A L{Body} of prepared pieces.
    """

    form = WireForm.READY
    region: object = None

    def __init__(self, pieces: Iterable[bytes]) -> None:
        """
        @param pieces: octets to send unchanged, each piece of whole lines.
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
    The reply to a command.

    @ivar positive: whether the reply is C{+OK}, and not C{-ERR}.
    @ivar text: the rest of the first line; printable ASCII.
    @ivar code: a response code without its brackets, or L{None}.
    @ivar body: the body of a multi-line reply.
    @ivar topLines: send only the header of the body, the blank line and this many lines
        (RFC 1939, TOP); L{None} to send all.
    @ivar then: the action of the connection after the reply was sent.
    @ivar isChallenge: whether the reply is a challenge inside AUTH (C{+ } and C{text} in base64).
    @ivar keepsState: whether the state does not change after a positive reply, although the command
        has a C{nextState}.
    @ivar isBadCommand: whether the command was unknown, not valid in the state, or malformed.
    @ivar fault: whether a bug in the service or the provider caused the reply.
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
    Make a positive reply.  A reply with a body is multi-line.
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
    Make a negative reply.
    """
    return Reply(False, text, code, then=then, isBadCommand=isBadCommand, fault=fault)


def challenge(encoded: str) -> Reply:
    """
    Make a challenge inside AUTH (RFC 5034 section 4).

    @param encoded: the challenge in base64.
    """
    return Reply(True, encoded, isChallenge=True)
