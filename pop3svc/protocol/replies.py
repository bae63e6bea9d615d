"""
The replies that commands return, and the actions of the connection after a reply.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Any, NamedTuple, Protocol

from pop3svc.lineendings import WireForm

__all__ = ["After", "Body", "Lines", "Pieces", "Reply", "challenge", "err", "ok"]

# The size of a piece of a listing in octets.  Larger pieces would take too much memory for ten
# thousand clients.  Smaller pieces would take too much time.
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

    @ivar form: the form of the octets.  It tells the encoder what has to be changed.
    @ivar region: the part of a file that C{next} has not read yet (L{pop3svc.files.FileRegion});
        L{None} if the octets are not in a file.  The sender passes the region to the outlet, and
        nothing but the outlet uses it.
    """

    form: WireForm
    region: object

    def next(self) -> Any:
        """
        @return: the next octets, or a Deferred or a coroutine of them; L{None} after the last
            octets.  The octets may be cut anywhere.  Line ends are LF or CRLF.
        """

    def wasSent(self, octets: int) -> None:
        """
        Record that the whole body was sent.

        @param octets: the size of the body in octets, without dot-stuffing and without the final
            dot.
        """

    def close(self) -> None:
        """
        Release the resources of the body.  The owner of the body calls this method exactly once.
        """


class Lines:
    """
    A L{Body} of short lines.  They are generated while the body is sent.
    """

    form = WireForm.LINES
    region: object = None

    def __init__(self, lines: Iterable[str]) -> None:
        """
        @param lines: the lines, in ASCII and without line ends.
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
    A L{Body} of pieces that are ready to be sent.
    """

    form = WireForm.READY
    region: object = None

    def __init__(self, pieces: Iterable[bytes]) -> None:
        """
        @param pieces: the pieces, which are sent unchanged.  Each piece consists of whole lines.
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

    @ivar positive: whether the reply begins with C{+OK} and not with C{-ERR}.
    @ivar text: the text after C{+OK} or C{-ERR} and the response code, in printable ASCII.
    @ivar code: the response code without its brackets; L{None} if there is none.
    @ivar body: the body of a multi-line reply; L{None} for a single-line reply.
    @ivar topLines: the number of lines that are sent after the header and the empty line (RFC 1939,
        TOP); L{None} if the whole body is sent.
    @ivar then: the action of the connection after it has sent the reply.
    @ivar isChallenge: whether the reply is a challenge inside AUTH.  It then consists of C{+ } and
        C{text}, which is in base64.
    @ivar keepsState: whether the session keeps its state after a positive reply, although the
        command has a C{nextState}.
    @ivar isBadCommand: whether the command is unknown, malformed, or not valid in the state of the
        session.
    @ivar fault: whether the reply was caused by a bug in the service or in the provider.
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
    Make a positive reply.  If it has a body, it is a multi-line reply.
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
