"""
A digest of a message that does not depend on the store that keeps it.
"""

from __future__ import annotations

import re
from hashlib import blake2b

from pop3svc.lineendings import LFNormalizer, WireSizeCounter

__all__ = ["Fingerprint"]

# Octets of a digest; with 16, no two messages have the same digest by chance.
_DIGEST = 16
# The most octets of a line that are kept until its end.
_LONGEST = 1_048_576
# Fields that an mbox adds.
_OWN_FIELD = re.compile(rb"(?:x-uidl|content-length)[ \t]*:", re.I)
# The characters that the quoting of an mbox adds.  The digest leaves these characters out, because
# not all variants say how to remove the quoting.
_QUOTES = re.compile(rb"^>+(?=From )", re.M)


class Fingerprint:
    """
    Computes the size of a message, and a digest that is the same before and after an mbox has
    quoted C{From } and added C{X-UIDL} and C{Content-Length}.
    """

    def __init__(self) -> None:
        self._hash = blake2b(digest_size=_DIGEST)
        self._wire = WireSizeCounter()
        self._lines = LFNormalizer()
        self._held = b""
        # Whether the held octets begin a line, whether the header is unfinished, and whether the
        # present field is left out.
        self._isStart = self._isHeader = True
        self._isDropped = False

    def feed(self, data: bytes) -> None:
        """
        @param data: the next octets of the message, cut anywhere.
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
                # An mbox adds the empty line to a message without a body.
                self._isHeader = False
                return b"".join([*kept, *lines[number + 1 :]])
            if (number or self._isStart) and line[:1] not in (b" ", b"\t"):
                self._isDropped = _OWN_FIELD.match(line) is not None
            if not self._isDropped:
                kept.append(line)
        return b"".join(kept)

    def digest(self) -> str:
        """
        @return: the digest, 32 hexadecimal digits.  No octets may follow.
        """
        self._take(self._lines.finish(), isLast=True)
        return self._hash.hexdigest()

    def octets(self) -> int:
        """
        @return: octets that RETR sends, without dot-stuffing.
        """
        return self._wire.total()


def _split(whole: bytes) -> list[bytes]:
    parts = whole.split(b"\n")
    last = parts.pop()
    return [each + b"\n" for each in parts] + ([last] if last else [])
