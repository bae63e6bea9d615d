"""
Convert the header fields of a message and of its MIME parts to ASCII, while the message is read.
"""

from __future__ import annotations

from collections.abc import Iterable

from pop3svc.downgrading.fields import asciiField, splitField, unfolded
from pop3svc.downgrading.parameters import asciiBoundary, boundaryOf
from pop3svc.lineendings import CRLFNormalizer

__all__ = ["SurrogateConverter", "surrogateSize"]

# The most octets of a field that are kept until the field ends.  In a longer field each octet that
# is not ASCII becomes a question mark.
_LONGEST_FIELD = 65_536
# The most octets of one field that is encoded, and of all encoded fields of a message together.
# Beyond these limits, each character that is not ASCII becomes a question mark.  Within the limits
# the encoding takes some milliseconds, so it may run in the reactor's thread.
_LONGEST_ENCODED, _MOST_ENCODED = 8_192, 32_768
# The most levels of nested multiparts.
_DEEPEST = 20
# The most octets of a line with a boundary.  The number is enough, because a boundary has at most
# 70 characters (RFC 2046 section 5.1.1).
_LONGEST_DELIMITER = 1_000

_QUESTION = bytes(range(128)) + b"?" * 128
_CRLF = b"\r\n"


class SurrogateConverter:
    """
    Converts one message, which arrives in blocks.  A block may end at any place.

    The converter changes only header fields in UTF-8: those of the message, and those of the parts
    of its multiparts.  The converter does not change attached messages, because they belong to a
    body.

    @ivar hasChanged: whether a field was converted, so that the message needs UTF-8 mode.
    """

    def __init__(self) -> None:
        self.hasChanged = False
        self._lineEnds = CRLFNormalizer()
        # The octets at the end of the last block that were not converted yet, because their line is
        # not complete.
        self._held = b""
        self._isHeader = True
        # The lines of the present field, and the number of their octets.
        self._field: list[bytes] = []
        self._fieldOctets = 0
        # Whether the present field is too long to be encoded, and whether the next octet of this
        # field is inside a line.
        self._isOverlong = self._isInLine = False
        # The body of the field Content-Type, and whether the field was encoded.  If it was encoded,
        # its boundary was made ASCII.
        self._contentType: tuple[bytes, bool] | None = None
        # The boundaries of the multiparts around the present part, each with its replacement.
        self._boundaries: list[tuple[bytes, bytes]] = []
        self._isAtLineStart = True
        self._encodable = _MOST_ENCODED

    def feed(self, data: bytes) -> bytes:
        """
        @param data: the next octets of the message.
        @return: the next octets of the surrogate, with CRLF as line ends.  There may be none yet.
        """
        return self._take(self._lineEnds.feed(data))

    def finish(self) -> bytes:
        """
        @return: the last octets of the surrogate.
        """
        written = self._take(self._lineEnds.finish())
        return written + self._endField()

    def _take(self, data: bytes) -> bytes:
        data = self._held + data
        self._held = b""
        written: list[bytes] = []
        position = 0
        while position < len(data):
            read = self._readHeader if self._isHeader else self._readBody
            position = read(data, position, written)
        return b"".join(written)

    # --- header -----------------------------------------------------------------------

    def _readHeader(self, data: bytes, position: int, written: list[bytes]) -> int:
        """
        Read a line of a header.

        @param written: a buffer to which the octets of the surrogate are added.
        @return: the position of the next octet.
        """
        end = data.find(_CRLF, position)
        isWhole = end >= 0
        end = end + 2 if isWhole else len(data)
        line = data[position:end]
        if self._isOverlong:
            if self._isInLine or line[:1] in (b" ", b"\t"):
                written.append(self._questioned(line))
                self._isInLine = not isWhole
                return end
            self._isOverlong = False
        isContinued = line[:1] in (b" ", b"\t") and bool(self._field)
        if not isContinued:
            written.append(self._endField())
        if self._fieldOctets + len(line) > _LONGEST_FIELD:
            written.append(self._questioned(b"".join([*self._field, line])))
            self._field, self._fieldOctets = [], 0
            self._isOverlong, self._isInLine = True, not isWhole
        elif not isWhole:
            self._held = line
        elif line == _CRLF:
            written.append(line)
            self._endHeader()
        elif not isContinued and self._boundaries and self._readDelimiter(line[:-2], written):
            pass
        else:
            self._field.append(line)
            self._fieldOctets += len(line)
        return end

    def _questioned(self, data: bytes) -> bytes:
        if data.isascii():
            return data
        self.hasChanged = True
        return data.translate(_QUESTION)

    def _endField(self) -> bytes:
        """
        @return: the field that was read last, converted to ASCII.
        """
        field = b"".join(self._field)
        self._field, self._fieldOctets = [], 0
        isEncoded = False
        ascii_ = field
        if not field.isascii() and _isUTF8(field):
            isEncoded = len(field) <= min(_LONGEST_ENCODED, self._encodable)
            if isEncoded:
                self._encodable -= len(field)
                ascii_ = asciiField(field)
            else:
                ascii_ = field.decode("utf-8").encode("ascii", "replace")
            self.hasChanged = True
        if field[:8].lower() == b"content-" and self._contentType is None:
            found = splitField(field)
            if found is not None and found[0].lower() == "content-type":
                self._contentType = found[1], isEncoded
        return ascii_

    def _endHeader(self) -> None:
        """
        Begin the body of the message or of a part.
        """
        found, self._contentType = self._contentType, None
        self._isHeader, self._isAtLineStart = False, True
        if found is None or len(self._boundaries) >= _DEEPEST:
            return
        contentType, isEncoded = found
        boundary = boundaryOf(unfolded(contentType.decode("utf-8", "surrogateescape")))
        if boundary is None:
            return
        original = written = boundary.encode("utf-8", "surrogateescape")
        if len(original) > _LONGEST_DELIMITER:
            return
        if isEncoded and not original.isascii():
            written = asciiBoundary(boundary).encode("ascii")
        self._boundaries.append((original, written))

    # --- body -------------------------------------------------------------------------

    def _readBody(self, data: bytes, position: int, written: list[bytes]) -> int:
        """
        Read octets of a body up to the next line that begins with C{--}.  If such a line begins
        here, read the line if it has a boundary, and otherwise only the C{--}.  Outside multiparts,
        read all octets.
        """
        if not self._boundaries:
            written.append(data[position:])
            return len(data)
        if self._isAtLineStart and data.startswith(b"--", position):
            end = data.find(_CRLF, position, position + _LONGEST_DELIMITER + 2)
            if end < 0 and len(data) - position < _LONGEST_DELIMITER + 2:
                self._held = data[position:]
                return len(data)
            self._isAtLineStart = False
            if end >= 0 and self._readDelimiter(data[position:end], written):
                return end + 2
            written.append(b"--")
            return position + 2
        at = data.find(b"\n--", position)
        end = len(data) if at < 0 else at + 1
        if at < 0 and data.endswith(b"-") and self._mayBegin(data, position):
            # Wait for the next octet, because it will show whether this line has a boundary.
            self._held = b"-"
            end -= 1
        written.append(data[position:end])
        if end > position:
            self._isAtLineStart = data[end - 1 : end] == b"\n"
        return len(data) if at < 0 else end

    def _mayBegin(self, data: bytes, position: int) -> bool:
        """
        @return: whether the last octet of the block is the first octet of a line.
        """
        last = len(data) - 1
        return data[last - 1 : last] == b"\n" if last > position else self._isAtLineStart

    def _readDelimiter(self, line: bytes, written: list[bytes]) -> bool:
        """
        Read a line that may contain a boundary (RFC 2046 section 5.1.1).

        @param line: the line without its line end.
        @return: whether the line contains a boundary.
        """
        if not line.startswith(b"--") or len(line) > _LONGEST_DELIMITER:
            return False
        text = line[2:].rstrip(b" \t")
        for index in reversed(range(len(self._boundaries))):
            boundary, ascii_ = self._boundaries[index]
            if text not in (boundary, boundary + b"--"):
                continue
            isEnd = text != boundary
            self._isHeader = not isEnd
            self._isAtLineStart = True
            self._contentType = None
            self._boundaries = self._boundaries[: index if isEnd else index + 1]
            written.append(b"--" + ascii_ + line[2 + len(boundary) :] + _CRLF)
            return True
        return False


def _isUTF8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def surrogateSize(pieces: Iterable[bytes]) -> int:
    """
    @param pieces: the octets of a message, in pieces of any size.
    @return: the number of octets of the message's surrogate, without dot-stuffing; 0 if the message
        needs no surrogate.
    """
    converter = SurrogateConverter()
    octets = sum(len(converter.feed(each)) for each in pieces) + len(converter.finish())
    return octets if converter.hasChanged else 0
