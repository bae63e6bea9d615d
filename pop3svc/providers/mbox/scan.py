"""
Find the messages of an mbox file.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from pop3svc.files import FileStamp
from pop3svc.lineendings import WireSizeCounter
from pop3svc.listings import UniqueIDList, isUniqueID
from pop3svc.providers.mbox.text import (
    LONGEST_ENVELOPE,
    MessageDigest,
    Unquoter,
    headerEnd,
    isEnvelope,
    unquoted,
)
from pop3svc.threadpool import mustStop

__all__ = ["NotMbox", "Scan", "Stored", "nameMessages", "readExactly", "scanMessages"]

# _BLOCK is the number of octets that are read at a time.  A message of at most _SMALL octets is
# examined in one piece.
_BLOCK = 1_048_576
_SMALL = 262_144
# The number of octets of a header that are searched for Content-Length, X-UIDL and Subject.
_HEADER = 65_536
_CONTENT_LENGTH = re.compile(rb"^Content-Length:[ \t]*([0-9]{1,15})[ \t]*\r?$", re.I | re.M)
_X_UIDL = re.compile(rb"^X-UIDL:[ \t]*([!-~]{1,70})[ \t]*\r?$", re.I | re.M)
# The c-client library begins its files with a message that contains data of the library and is not
# mail.
_INTERNAL = re.compile(
    rb"^Subject: DON'T DELETE THIS MESSAGE -- FOLDER INTERNAL DATA\r?$", re.I | re.M
)


class NotMbox(OSError):
    """
    The file is no mbox, because it does not begin with an envelope line.
    """


class Stored(NamedTuple):
    """
    A message in an mbox file.

    @ivar start: the offset of its envelope line in the file.
    @ivar content: the offset of the first octet after the envelope line.
    @ivar end: the offset after the last octet of the message.  An empty line may follow.
    @ivar following: the offset of the next envelope line; the size of the file for the last
        message.
    @ivar octets: the number of octets that RETR sends, without dot-stuffing.
    @ivar digest: see L{MessageDigest}.
    @ivar xUIDL: the value of the field X-UIDL; empty if the message has no such field.
    @ivar isInternal: whether the message contains data of another program and is not mail.
    @ivar surrogate: the size of the surrogate for clients that have not sent UTF8; 0 if the message
        needs no surrogate.
    """

    start: int
    content: int
    end: int
    following: int
    octets: int
    digest: str
    xUIDL: str
    isInternal: bool
    surrogate: int = 0


@dataclass
class Scan:
    """
    The messages that a file contains at one time.  A scan never changes, because sessions share it.

    @ivar stamp: the inode, the size and the times of the file; see L{pop3svc.files.stampFrom}.
    @ivar messages: the messages by their unique-ids, in the order of the file.
    """

    stamp: FileStamp
    messages: dict[str, Stored] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.listed = UniqueIDList(self.messages)


def readExactly(descriptor: int, octets: int, offset: int) -> bytes:
    """
    Read a part of a file.  Blocks.

    @raise OSError: the file ends before the end of the part.
    """
    parts: list[bytes] = []
    while octets:
        part = os.pread(descriptor, min(octets, _BLOCK), offset)
        if not part:
            raise OSError(errno.EIO, "the file is shorter than expected")
        parts.append(part)
        offset += len(part)
        octets -= len(part)
    return b"".join(parts)


class _Window:
    """
    The part of a file that is in memory.  This part moves through the file.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self.size = size
        self._base = 0
        self._data = b""

    def _load(self, offset: int) -> None:
        # Also read the three octets before the offset, because they show whether an empty line
        # comes before it.
        self._base = max(offset - 3, 0)
        octets = min(_BLOCK, self.size - self._base)
        self._data = readExactly(self._descriptor, octets, self._base)

    def octets(self, start: int, end: int) -> bytes:
        """
        @return: the octets of the file from C{start} to C{end}, or to the end of the file.  The
            caller may ask for at most half a block.
        """
        end = min(end, self.size)
        if start < self._base or end > self._base + len(self._data):
            self._load(start)
        return self._data[start - self._base : end - self._base]

    def line(self, start: int) -> bytes:
        """
        @return: the line with its line end.  A line that is longer than any envelope line is cut.
        """
        data = self.octets(start, start + LONGEST_ENVELOPE + 1)
        return data[: data.find(b"\n") + 1] or data

    def nextEnvelope(self, start: int) -> int:
        """
        @param start: the offset after an envelope line.
        @return: the offset of the next envelope line that comes after an empty line; the size of
            the file if there is no such line.
        """
        at = start - 1
        while True:
            if at < self._base + 3 or at >= self._base + len(self._data):
                self._load(at)
            found = self._data.find(b"\nFrom ", at - self._base)
            loaded = self._base + len(self._data)
            if found < 0:
                if loaded >= self.size:
                    return self.size
                at = max(at, loaded - 5)
                self._load(at)
                continue
            envelope = self._base + found + 1
            if self.emptyLineBefore(envelope, start) and isEnvelope(self.line(envelope)):
                return envelope
            at = envelope

    def emptyLineBefore(self, offset: int, start: int) -> int:
        """
        @param start: the offset of the message that ends at C{offset}.
        @return: the number of octets of the empty line before C{offset}; 0 if there is no empty
            line.
        """
        before = self.octets(max(start - 1, offset - 3), offset)
        if before.endswith(b"\n\r\n"):
            return 2
        return 1 if before.endswith(b"\n\n") else 0


def _endByLength(window: _Window, content: int) -> tuple[int, int] | None:
    """
    Find the end of a message from its field C{Content-Length}.  The value is trusted if a body of
    this length ends in a possible place.  Possible places are the end of the file, and an empty
    line before an envelope line.

    @return: the end of the message, and the offset of the next envelope line; L{None} if
        C{Content-Length} is missing or not trusted.
    """
    header = window.octets(content, content + _HEADER)
    length = headerEnd(header)
    if length is None:
        return None
    found = _CONTENT_LENGTH.search(header, 0, length)
    if found is None:
        return None
    end = content + length + int(found[1])
    if end > window.size:
        return None
    after = window.octets(end, end + LONGEST_ENVELOPE + 3)
    empty = 2 if after.startswith(b"\r\n") else 1 if after.startswith(b"\n") else 0
    if not after or end + empty == window.size:
        return end, window.size
    if empty and isEnvelope(window.line(end + empty)):
        return end, end + empty
    return None


def scanMessages(
    descriptor: int,
    size: int,
    variant: str,
    surrogateSize: Callable[[Iterable[bytes]], int] = lambda pieces: 0,
) -> list[Stored]:
    """
    Find all messages of a file.  This function blocks.  The memory that it needs depends on the
    number of messages, and not on their size.

    @param size: the number of octets to read.
    @param variant: one of L{VARIANTS<pop3svc.providers.mbox.text.VARIANTS>}.
    @param surrogateSize: L{pop3svc.downgrading.converter.surrogateSize}, called for messages that
        are not ASCII.
    @raise NotMbox: the file does not begin with an envelope line.
    @raise OSError: the file cannot be read, or the work was cancelled.
    """
    window = _Window(descriptor, size)
    start = _firstEnvelope(window)
    found: list[Stored] = []
    while start < size:
        if mustStop():
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        content = start + len(window.line(start))
        ends = _endByLength(window, content) if variant == "mboxcl2" else None
        if ends is None:
            following = window.nextEnvelope(content)
            end = following - window.emptyLineBefore(following, content)
            ends = max(end, content), following
        stored = _examined(window, descriptor, (start, content, *ends), variant, not found)
        if stored.surrogate:
            pieces = _pieces(descriptor, content, ends[0], variant)
            stored = stored._replace(surrogate=surrogateSize(pieces))
        found.append(stored)
        start = ends[1]
    return found


def _pieces(descriptor: int, content: int, end: int, variant: str) -> Iterator[bytes]:
    """
    Read a message.  Blocks.

    @return: the octets of the message, without the quoting of the variant.
    """
    unquoter = Unquoter()
    for offset in range(content, end, _BLOCK):
        if mustStop():
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        block = readExactly(descriptor, min(_BLOCK, end - offset), offset)
        yield unquoter.feed(block) if variant == "mboxrd" else block
    yield unquoter.finish()


def _firstEnvelope(window: _Window) -> int:
    # Skip empty lines, because a program that removed the first message may have left them.
    first = window.octets(0, _HEADER)
    start = len(first) - len(first.lstrip(b"\r\n"))
    if start == window.size:
        return start
    if not isEnvelope(window.line(start)):
        raise NotMbox(
            errno.EINVAL, "it is not an mbox, because it does not begin with an envelope line"
        )
    return start


def _examined(
    window: _Window,
    descriptor: int,
    place: tuple[int, int, int, int],
    variant: str,
    isFirst: bool,
) -> Stored:
    """
    @return: the message.  Its C{surrogate} is 1 if at least one octet is not ASCII, and otherwise
        0.
    """
    start, content, end, _ = place
    digest = MessageDigest(window.octets(start, content))
    count = WireSizeCounter()
    if end - content <= _SMALL:
        head = window.octets(content, end)
        digest.feed(head)
        isASCII = head.isascii()
        count.feed(unquoted(head) if variant == "mboxrd" else head)
    else:
        unquoter = Unquoter()
        isASCII = True
        head = readExactly(descriptor, _HEADER, content)
        for offset in range(content, end, _BLOCK):
            if mustStop():
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
            block = readExactly(descriptor, min(_BLOCK, end - offset), offset)
            digest.feed(block)
            isASCII = isASCII and block.isascii()
            count.feed(unquoter.feed(block) if variant == "mboxrd" else block)
        count.feed(unquoter.finish())
    length = headerEnd(head[:_HEADER]) or len(head[:_HEADER])
    known = _X_UIDL.search(head, 0, length)
    isInternal = isFirst and _INTERNAL.search(head, 0, length) is not None
    xUIDL = "" if known is None else known[1].decode("ascii")
    return Stored(*place, count.total(), digest.digest(), xUIDL, isInternal, not isASCII)


def nameMessages(
    stored: Iterable[Stored], gone: frozenset[str], usesXUIDL: bool
) -> dict[str, Stored]:
    """
    Give each message a unique-id.  The unique-id is the digest of the message.  If another message
    has or had this unique-id, a number is added.

    @param gone: the unique-ids of deleted messages.
    @param usesXUIDL: whether a message with a field X-UIDL gets the value of the field as its
        unique-id, unless another message has or had this unique-id.
    @return: the messages by their unique-ids, without a message whose C{isInternal} is true.
    """
    named: dict[str, Stored] = {}
    numbers: dict[str, int] = {}
    for each in stored:
        if each.isInternal:
            continue
        uniqueID = each.xUIDL
        if not usesXUIDL or not isUniqueID(uniqueID) or uniqueID in named or uniqueID in gone:
            number = numbers.get(each.digest, 0)
            while True:
                number += 1
                uniqueID = each.digest if number == 1 else f"{each.digest}.{number}"
                if uniqueID not in gone and uniqueID not in named:
                    break
            numbers[each.digest] = number
        named[uniqueID] = each
    return named
