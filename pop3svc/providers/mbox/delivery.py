"""
Add a message to an mbox.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from typing import BinaryIO

from pop3svc.errors import DeliveryError
from pop3svc.files import closeQuietly
from pop3svc.fileuser import fileUID
from pop3svc.interfaces import DeliveryCopy
from pop3svc.listings import isUniqueID
from pop3svc.providers.mbox.gone import loadGone
from pop3svc.providers.mbox.locks import LockedMbox, MboxBusy
from pop3svc.providers.mbox.mailbox import MboxFormat
from pop3svc.providers.mbox.rewriting import append
from pop3svc.providers.mbox.text import makeEnvelope

__all__ = ["addCopy", "createMbox", "storedText"]

_LINE = 65_536
_PIECE = 131_072
_FROM = b"From "
_RETURN_PATH = re.compile(rb"^Return-Path:[ \t]*<([^<>\r\n]*)>", re.I | re.M)
_OWN_FIELD = re.compile(rb"Content-Length:", re.I)


def addCopy(mbox: LockedMbox, format: MboxFormat, copy: DeliveryCopy, content: BinaryIO) -> None:
    """
    Add a message for one user.  The message is durable after the call.  If the mbox has or had a
    message with the unique-id of the copy, add nothing.  Blocks.

    @param content: the message.  It is read several times.
    @raise DeliveryError: the message has a unique-id that the mbox cannot store.
    @raise OSError: nothing was added.
    """
    header = copy.header
    if copy.uniqueID is not None:
        if not format.usesXUIDL or not isUniqueID(copy.uniqueID):
            raise DeliveryError(
                "An mbox keeps the unique-ids of another server only with uidl=x-uidl."
            )
        gone = loadGone(mbox.own, mbox.status().st_ino)
        if copy.uniqueID in gone.uniqueIDs:
            return
        if copy.uniqueID in format.scan(mbox.descriptor, gone).messages:
            return
        header = f"X-UIDL: {copy.uniqueID}\r\n".encode("ascii") + header
    sender = _RETURN_PATH.search(copy.header)
    arrival = time.time() if copy.arrival is None else copy.arrival
    envelope = makeEnvelope(b"" if sender is None else sender[1], arrival)

    def pieces() -> Iterator[bytes]:
        return storedText(envelope, header, content, format.variant)

    append(mbox, sum(map(len, pieces())), pieces())


def storedText(envelope: bytes, header: bytes, content: BinaryIO, variant: str) -> Iterator[bytes]:
    """
    Make the text of a message as an mbox contains it, with the empty line after it.  Blocks.

    @param envelope: the envelope line.
    @param header: header fields to add before the message, as complete lines.
    @param content: the message; see L{pop3svc.interfaces.IDelivery.deliver}.
    @param variant: one of L{VARIANTS<pop3svc.providers.mbox.text.VARIANTS>}.
    @return: pieces of bounded size.
    """
    length = _bodyLength(content) if variant == "mboxcl2" else None
    yield envelope
    lines = _lines(content) if length is None else _withLength(_lines(content), length)
    yield header.replace(b"\r\n", b"\n")
    yield from _joined(_quoted(lines, content, variant))
    yield b"\n"


def _lines(content: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """
    @return: pairs.  The first value of each pair is a line that ends with LF, or a piece of a long
        line.  The second value says whether the piece is the beginning of a line.  The last line
        gets a line end if it has none.
    """
    content.seek(0)
    isStart, end = True, b""
    while line := content.readline(_LINE):
        if line.endswith(b"\r"):
            line += content.read(1)
        wasStart, isStart = isStart, line.endswith(b"\n")
        if line.endswith(b"\r\n") and not line.endswith(b"\r\r\n"):
            line = line[:-2] + b"\n"
        # Write CRLF after a CR that is part of the text.  Otherwise the CR would become a part of
        # the line end.
        end = b"\r\n" if line.endswith(b"\r") else b"\n"
        yield line, wasStart
    if not isStart:
        yield end, False


def _bodyLength(content: BinaryIO) -> int:
    """
    @return: the number of octets of the body, with LF as line ends.
    """
    octets, isBody = 0, False
    for line, isStart in _lines(content):
        if isBody:
            octets += len(line)
        elif isStart and line == b"\n":
            isBody = True
    return octets


def _withLength(lines: Iterator[tuple[bytes, bool]], length: int) -> Iterator[tuple[bytes, bool]]:
    """
    Give a message the field Content-Length with the right value.
    """
    isBody = isDropped = False
    for line, isStart in lines:
        if not isBody and isStart:
            if line == b"\n":
                isBody, isDropped = True, False
                yield f"Content-Length: {length}\n".encode("ascii"), True
            elif line[:1] not in (b" ", b"\t"):
                isDropped = _OWN_FIELD.match(line) is not None
        if not isDropped:
            yield line, isStart
    if not isBody:
        yield b"Content-Length: 0\n\n", True


def _quoted(
    lines: Iterator[tuple[bytes, bool]], content: BinaryIO, variant: str
) -> Iterator[bytes]:
    for line, isStart in lines:
        if isStart and _needsQuote(line, content, variant):
            yield b">"
        yield line


def _needsQuote(line: bytes, content: BinaryIO, variant: str) -> bool:
    if variant == "mboxcl2":
        return False
    if variant == "mboxo":
        return line.startswith(_FROM)
    rest = line.lstrip(b">")
    if line.endswith(b"\n") or len(rest) >= len(_FROM):
        return rest.startswith(_FROM)
    if rest:
        return (rest + _peek(content, len(_FROM))).startswith(_FROM)
    # The piece contains nothing but ">".  Read ahead until another character comes, and then go
    # back.
    offset = content.tell()
    try:
        while block := content.read(_LINE):
            rest = block.lstrip(b">")
            if rest:
                return (rest + content.read(len(_FROM))).startswith(_FROM)
        return False
    finally:
        content.seek(offset)


def _peek(content: BinaryIO, octets: int) -> bytes:
    offset = content.tell()
    try:
        return content.read(octets)
    finally:
        content.seek(offset)


def _joined(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """
    @return: the same octets in larger pieces, so that fewer system calls are necessary to write
        them.
    """
    parts: list[bytes] = []
    octets = 0
    for each in pieces:
        parts.append(each)
        octets += len(each)
        if octets >= _PIECE:
            yield b"".join(parts)
            parts, octets = [], 0
    yield b"".join(parts)


def createMbox(name: str, directory: int) -> int:
    """
    Create an empty mbox for its first message.  Blocks.

    @return: a descriptor.
    @raise OSError: the mbox cannot be created.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, 0o600, dir_fd=directory)
    except FileExistsError:
        # Another program has just created the file.  The next attempt will open it.
        raise MboxBusy
    try:
        if not fileUID():
            # Give the file to the owner of the directory, because an mbox in the directory of a
            # user has to belong to this user.
            status = os.fstat(directory)
            os.fchown(descriptor, status.st_uid, status.st_gid)
        os.fsync(directory)
    except OSError:
        closeQuietly(descriptor)
        raise
    return descriptor
