"""
Transcripts of the connections of a server.
"""

from __future__ import annotations

__all__ = ["Talk", "Transcript"]

# The most octets that a transcript keeps of all connections together.
_KEPT = 16 * 1024 * 1024

Line = tuple[str, str]


class Transcript:
    """
    The lines of each connection, unencrypted.

    @ivar talks: a L{Talk} for each connection, in the order in which the connections were made.
    """

    def __init__(self, limit: int = _KEPT) -> None:
        """
        @param limit: the most octets; the transcript drops further lines.
        """
        self.talks: list[Talk] = []
        self._left = limit

    def begin(self) -> Talk:
        """
        Add a connection.
        """
        talk = Talk(self)
        self.talks.append(talk)
        return talk

    def room(self, octets: int) -> bool:
        """
        Reserve room for this number of octets.

        @return: whether the transcript had enough room.
        """
        self._left -= octets
        return self._left >= 0

    def text(self) -> str:
        """
        @return: lines that begin with C{C: } and C{S: }, as in the RFCs, with an empty line between
            connections.  Octets that are not UTF-8 are escaped.
        """
        return (
            "\n".join(
                "".join(f"{who}: {line}\n" for who, line in talk.lines) for talk in self.talks
            )
            .encode("utf-8", "backslashreplace")
            .decode("utf-8")
        )


class Talk:
    """
    The transcript of one connection.
    """

    def __init__(self, transcript: Transcript) -> None:
        self._transcript = transcript
        self._kept: list[Line] = []
        self._partial = b""
        self._isFull = False

    @property
    def lines(self) -> list[Line]:
        """
        The lines, each with its sender, C{"C"} or C{"S"}, without line ends.  Octets that are
        not UTF-8 are surrogate escapes.
        """
        rest = self._partial
        return [*self._kept, ("S", _text(rest))] if rest else list(self._kept)

    def client(self, line: bytes) -> None:
        """
        Add a line of the client.
        """
        if self._mayKeep(line):
            self._kept.append(("C", _text(line)))

    def server(self, octets: bytes) -> None:
        """
        Add octets of the server, which may end within a line.
        """
        if self._mayKeep(octets):
            *lines, self._partial = (self._partial + octets).split(b"\n")
            self._kept.extend(("S", _text(line)) for line in lines)

    def _mayKeep(self, octets: bytes) -> bool:
        if not self._isFull and not self._transcript.room(len(octets)):
            self._isFull = True
            self._partial = b""
            self._kept.append(("S", "(the transcript ends here)"))
        return not self._isFull


def _text(line: bytes) -> str:
    return line.removesuffix(b"\r").decode("utf-8", "surrogateescape")
