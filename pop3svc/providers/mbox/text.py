"""
The text of mbox files: envelope lines, quoting, and digests of messages.
"""

from __future__ import annotations

import re
import time
from hashlib import blake2b

__all__ = [
    "LONGEST_ENVELOPE",
    "VARIANTS",
    "MessageDigest",
    "Unquoter",
    "headerEnd",
    "isEnvelope",
    "makeEnvelope",
    "unquoted",
]

# The variants of the mbox format.  In mboxo and mboxrd, lines of a message that begin with "From "
# are quoted by ">".  In mboxrd, lines with one or more ">" before "From " are quoted as well.  In
# mboxcl2 no line is quoted, and Content-Length has the number of octets of the body.
VARIANTS = ("mboxo", "mboxrd", "mboxcl2")

# The most octets of an envelope line.  It contains an address of at most 320 octets and a date of
# some 40 octets.
LONGEST_ENVELOPE = 1024
# The most octets of a header.  Further octets are considered the body.
_LONGEST_HEADER = 262_144
_DIGEST = 16

# An envelope line.  The date has the form of asctime(3) or of RFC 5322.  The seconds may be
# missing, and a time zone may follow.
_ENVELOPE = re.compile(
    rb"From [^\n]*?(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun),? +"
    rb"(?:(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) +[0-9]{1,2}|"
    rb"[0-9]{1,2} +(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) +[0-9]{4}) +"
    rb"[0-9]{1,2}:[0-9]{2}(?::[0-9]{2})?(?: +[A-Za-z0-9+-]{1,8}){0,4}\s*"
)
_HEADER_END = re.compile(rb"(?:\A|\n)\r?\n")
# Header fields that mail programs change in the mbox, although the message stays the same.
_CHANGING = re.compile(
    rb"^(?:Status|X-Status|X-UID|X-UIDL|X-Keywords|X-IMAP|X-IMAPbase|Content-Length|Lines|"
    rb"X-Mozilla-Status2?|X-Mozilla-Keys):[^\n]*(?:\n[ \t][^\n]*)*(?:\n|\Z)",
    re.IGNORECASE | re.MULTILINE,
)
_QUOTED = re.compile(rb"^>(?=>*From )", re.MULTILINE)
_FROM = b"From "
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


def isEnvelope(line: bytes) -> bool:
    """
    @return: whether a line looks like an envelope line.  An envelope line consists of C{From }, an
        optional address and a date.  The line end may be missing.
    """
    return len(line) <= LONGEST_ENVELOPE and _ENVELOPE.fullmatch(line) is not None


def makeEnvelope(sender: bytes, arrival: float) -> bytes:
    """
    Make an envelope line.

    @param sender: the address of the sender.  Octets other than C{!} to C{~}, and octets after the
        first 320, are left out.  If no octet is left, the line has C{MAILER-DAEMON}.
    @param arrival: the time of arrival in seconds since the epoch.
    @return: the line with its end.
    """
    sender = re.sub(rb"[^!-~]", b"", sender)[:320] or b"MAILER-DAEMON"
    # Make the form of asctime() by hand, because the result of strftime() depends on the locale.
    when = time.gmtime(arrival)
    date = (
        f"{_DAYS[when.tm_wday]} {_MONTHS[when.tm_mon - 1]} {when.tm_mday:2} "
        f"{when.tm_hour:02}:{when.tm_min:02}:{when.tm_sec:02} {when.tm_year:04}"
    )
    return b"From " + sender + b" " + date.encode("ascii") + b"\n"


def headerEnd(data: bytes) -> int | None:
    """
    @param data: the beginning of a message.
    @return: the offset of the first octet after the empty line that ends the header; L{None} if
        there is no empty line.
    """
    found = _HEADER_END.search(data)
    return None if found is None else found.end()


class MessageDigest:
    """
    A digest of a message and of its envelope line.  It does not depend on the header fields that
    programs change in the mbox.  The digest of a message therefore stays the same after a program
    has marked the message as read.
    """

    def __init__(self, envelope: bytes) -> None:
        """
        @param envelope: the envelope line.
        """
        self._hash = blake2b(envelope.rstrip(b"\r\n") + b"\n", digest_size=_DIGEST)
        self._header: bytes | None = b""

    def feed(self, data: bytes) -> None:
        """
        @param data: the next octets of the stored message.
        """
        if self._header is None:
            self._hash.update(data)
            return
        self._header += data
        end = headerEnd(self._header)
        if len(self._header) > _LONGEST_HEADER:
            # Divide a longer header at the same octet, however large the pieces are.
            end = min(end or _LONGEST_HEADER, _LONGEST_HEADER)
        if end is not None:
            whole, self._header = self._header, None
            self._hash.update(_CHANGING.sub(b"", whole[:end]))
            self._hash.update(whole[end:])

    def digest(self) -> str:
        """
        @return: the digest as 32 hexadecimal digits.
        """
        header, self._header = self._header, None
        if header is not None:
            self._hash.update(_CHANGING.sub(b"", header))
        return self._hash.hexdigest()


def unquoted(data: bytes) -> bytes:
    """
    @param data: whole lines of a file in the variant mboxrd.
    @return: the original lines, without the quoting of C{From }.
    """
    return _QUOTED.sub(b"", data) if b"From " in data else data


class Unquoter:
    """
    Removes the quoting of mboxrd, block by block.  Blocks may be cut anywhere.
    """

    def __init__(self) -> None:
        self._isLineStart = True
        # The end of the previous block, if only the next block shows whether a line is quoted.  It
        # is ">" and then the first characters of "From ".
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """
        @param data: the next octets of the stored message.
        @return: the next octets of the message; they may be empty.
        """
        if self._isLineStart or self._held:
            data = self._held + data
            self._held = b""
        else:
            # The block begins in the middle of a line.  Do not apply the pattern to the rest of
            # this line.
            end = data.find(b"\n") + 1
            if not end:
                return data
            self._isLineStart = True
            return data[:end] + self.feed(data[end:])
        start = data.rfind(b"\n") + 1
        run = start + len(data[start:]) - len(data[start:].lstrip(b">"))
        if run > start and _FROM.startswith(data[run:]) and data[run:] != _FROM:
            # The last line of the block contains ">" and perhaps a part of "From ", and the next
            # block continues the line.  Do not return the last ">" yet, because it is removed if
            # "From " follows.
            before, self._held = data[: run - 1], data[run - 1 :]
            self._isLineStart = True
            return unquoted(before[:start]) + before[start:]
        self._isLineStart = not data[start:]
        return unquoted(data)

    def finish(self) -> bytes:
        """
        @return: the octets to send after the last block.
        """
        held, self._held = self._held, b""
        return held
