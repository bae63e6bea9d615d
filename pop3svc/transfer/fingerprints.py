"""
Compute a digest of a message that is the same in every store.
"""

from __future__ import annotations

import re
from hashlib import blake2b

from pop3svc.lineendings import LFNormalizer, WireSizeCounter

__all__ = ["Fingerprint"]

# The octets of a digest.  With 16 octets, no two messages have the same digest by chance.
_DIGEST = 16
# The most octets of a line that are kept until the line ends.
_LONGEST = 1_048_576
# The header fields that an mbox adds.
_OWN_FIELD = re.compile(rb"(?:x-uidl|content-length)[ \t]*:", re.I)
# The characters by which an mbox quotes a line.  The digest leaves them out, because not all
# variants of mbox say how to remove them.
_QUOTES = re.compile(rb"^>+(?=From )", re.M)


class Fingerprint:
    """
    Computes the size and the digest of a message.  The digest stays the same if an mbox quotes
    lines that begin with C{From }, and adds the fields C{X-UIDL} and C{Content-Length}.
    """

    def __init__(self) -> None:
        self._hash = blake2b(digest_size=_DIGEST)
        self._wire = WireSizeCounter()
        self._lines = LFNormalizer()
        self._held = b""
        # Whether the held octets are at the beginning of a line, whether they belong to the header,
        # and whether the present field is left out.
        self._isStart = self._isHeader = True
        self._isDropped = False

    def feed(self, data: bytes) -> None:
        """
        @param data: the next octets of the message.  The octets may begin and end at any place of
            the message.
        """
        self._wire.feed(data)
        self._take(self._lines.feed(data), isLast=False)

    def _take(self, data: bytes, isLast: bool) -> None:
        data = self._held + data
        end = len(data) if isLast else data.rfind(b"\n") + 1
        if not end and len(data) > _LONGEST:
            end = len(data)
        whole, self._held = data[:end], data[end:]
        if not whole:
            return
        if self._isHeader:
            whole = self._withoutOwnFields(whole)
        if self._isStart:
            whole = _QUOTES.sub(b"", whole)
        else:
            line = whole.find(b"\n") + 1
            whole = whole[:line] + _QUOTES.sub(b"", whole[line:]) if line else whole
        self._isStart = data[:end].endswith(b"\n")
        self._hash.update(whole)

    def _withoutOwnFields(self, whole: bytes) -> bytes:
        kept: list[bytes] = []
        lines = whole.splitlines(keepends=True) if b"\r" not in whole else _split(whole)
        for number, line in enumerate(lines):
            if line == b"\n" and (number or self._isStart):
                # Leave out the empty line after the header, because an mbox adds this line to a
                # message without a body.
                self._isHeader = False
                return b"".join([*kept, *lines[number + 1 :]])
            if (number or self._isStart) and line[:1] not in (b" ", b"\t"):
                self._isDropped = _OWN_FIELD.match(line) is not None
            if not self._isDropped:
                kept.append(line)
        return b"".join(kept)

    def digest(self) -> str:
        """
        @return: the digest as 32 hexadecimal digits.  Call this method after the last octets.
        """
        self._take(self._lines.finish(), isLast=True)
        return self._hash.hexdigest()

    def octets(self) -> int:
        """
        @return: the number of octets that RETR sends, without dot-stuffing.
        """
        return self._wire.total()


def _split(whole: bytes) -> list[bytes]:
    parts = whole.split(b"\n")
    last = parts.pop()
    return [each + b"\n" for each in parts] + ([last] if last else [])
