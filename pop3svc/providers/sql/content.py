"""
Read the content of a message from the database, piece by piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from twisted.python.failure import Failure
from zope.interface import implementer

from pop3svc.database import Database, DatabaseUnavailable, Transaction
from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import Eventual, IWireContent
from pop3svc.lineendings import DOT_LINE, CRLFNormalizer, WireForm

__all__ = ["PIECE", "Damaged", "FormFinder", "StoredContent", "piecesOf", "readPiece"]

# The size of a piece in octets.  Reading in larger pieces is not faster and takes more memory,
# because each session keeps a piece in memory.
PIECE = 262_144


class Damaged(Exception):
    """
    The content of a message in the database is incomplete, or has a wrong size.
    """


def piecesOf(content: BinaryIO) -> Iterator[bytes]:
    """
    Read a message, and yield its octets in pieces of at most L{PIECE} octets.  Each line, including
    the last one, ends with CRLF.  The lines are not dot-stuffed.  Blocks.
    """
    normalizer = CRLFNormalizer()
    waiting = bytearray()
    content.seek(0)
    while block := content.read(PIECE):
        waiting += normalizer.feed(block)
        while len(waiting) >= PIECE:
            yield bytes(waiting[:PIECE])
            del waiting[:PIECE]
    waiting += normalizer.finish()
    while waiting:
        yield bytes(waiting[:PIECE])
        del waiting[:PIECE]


class FormFinder:
    """
    Reads a message piece by piece, and finds out whether a line begins with a dot.

    @ivar octets: the number of octets that were read so far.
    @ivar isASCII: whether all octets that were read so far are ASCII.
    """

    def __init__(self) -> None:
        self.octets = 0
        self.isASCII = True
        self._hasDots = False
        self._last = b"\n"

    def feed(self, piece: bytes) -> None:
        """
        @param piece: the next octets, in the form in which L{piecesOf} yields them.
        """
        self.octets += len(piece)
        self.isASCII = self.isASCII and piece.isascii()
        if not self._hasDots:
            starts = self._last == b"\n" and piece.startswith(b".")
            self._hasDots = starts or DOT_LINE.search(piece) is not None
        self._last = piece[-1:]

    @property
    def form(self) -> WireForm:
        """
        The form of the octets.  The form says which changes are necessary when the octets are sent.
        """
        return WireForm.LINES if self._hasDots else WireForm.READY


@implementer(IWireContent)
class StoredContent:
    """
    The content of a message.  It consists of header fields that belong to the copy of this mailbox,
    and of pieces that the copies of several mailboxes may share.  If a piece is missing, or all
    pieces together have a wrong length, L{nextChunk} fails with L{Damaged}.  The reply then has no
    final dot, so that the client does not consider the message complete.

    @ivar form: see L{WireForm}.
    """

    def __init__(
        self,
        database: Database,
        content: int,
        pieces: int,
        octets: int,
        form: WireForm,
        first: Sequence[bytes],
    ) -> None:
        """
        @param content: the number of the content.
        @param pieces: the number of pieces.
        @param octets: the size of the content without the header fields of the copy.
        @param first: the header fields of the copy, and the pieces that were read already.
        """
        self.form = form
        self._database = database
        self._content = content
        self._pieces = pieces
        self._left = octets - sum(map(len, first[1:]))
        self._next = len(first) - 1
        self._read = [each for each in reversed(first) if each]

    def nextChunk(self) -> Eventual[bytes | None]:
        """
        See L{IChunkedContent.nextChunk}.
        """
        if self._read:
            return self._read.pop()
        if self._next < self._pieces:
            number, self._next = self._next, self._next + 1
            piece = self._database.run(readPiece, self._content, number, isReading=True)
            return piece.addCallbacks(self._checked, self._unavailable)
        if self._left:
            raise Damaged(f"content {self._content} is too short")
        return None

    @staticmethod
    def _unavailable(failure: Failure) -> Any:
        failure.trap(DatabaseUnavailable)
        # The class Database has already logged that the database is unavailable.
        raise POP3ResponseError("Mailbox is not available now.", "SYS/TEMP")

    def _checked(self, piece: bytes) -> bytes:
        self._left -= len(piece)
        if self._left < 0:
            raise Damaged(f"content {self._content} is too long")
        return piece

    def close(self) -> None:
        """
        See L{IChunkedContent.close}.
        """
        self._read.clear()


def readPiece(transaction: Transaction, content: int, number: int) -> bytes:
    """
    Read a piece.  Blocks.

    @raise Damaged: the piece is missing.
    """
    row = transaction.executeBinary(
        "SELECT data FROM piece WHERE content = :content AND number = :number",
        content=content,
        number=number,
    ).fetchone()
    if row is None:
        raise Damaged(f"piece {number} of content {content} is missing")
    return bytes(row[0])
