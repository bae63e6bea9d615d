"""
Read Dovecot's file C{dovecot-uidlist}.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from pop3svc.migration.formats import MessageNames, UIDLFormat
from pop3svc.migration.records import DamagedFile, OldMessage

__all__ = ["FILE", "UIDList", "UIDRecord", "readUIDList"]

FILE = "dovecot-uidlist"
# UIDs and UIDVALIDITY have 32 bits (RFC 3501 section 9, nz-number).
_NUMBER = re.compile(r"[0-9]{1,10}")
_LINE = re.compile(r"([0-9]{1,10}) ")
_LARGEST = 0xFFFFFFFF


class UIDRecord(NamedTuple):
    """
    A message in C{dovecot-uidlist}.

    @ivar base: the base name of the message's file.
    @ivar saved: the saved unique-id (field C{P}); L{None} without this field.
    @ivar order: the number by which Dovecot orders messages for POP3 (field C{O}); L{None} without
        this field.
    @ivar guid: the message's GUID (field C{G}); L{None} without this field.
    """

    uid: int
    base: str
    saved: str | None = None
    order: int | None = None
    guid: str | None = None


@dataclass(frozen=True)
class UIDList:
    """
    The content of C{dovecot-uidlist}.

    @ivar nextUID: a number that is larger than the UID of any message.
    @ivar records: the messages in the order of their UIDs.  The files of some messages may not
        exist any more.
    """

    uidValidity: int
    nextUID: int
    records: list[UIDRecord]

    def messages(
        self, format: UIDLFormat, inHeader: Callable[[str], str | None] | None = None
    ) -> list[OldMessage]:
        """
        @param inHeader: takes a base name, and returns the value of the header C{X-UIDL} in the
            message's file.  Pass L{None} unless Dovecot had C{pop3_reuse_xuidl = yes}.
        @return: the messages with their unique-ids, in the order of their UIDs.
        """
        found = []
        for record in self.records:
            uniqueID = record.saved
            if uniqueID is None and inHeader is not None:
                uniqueID = inHeader(record.base)
            if uniqueID is None:
                octets = _octets(record.base)
                guid = octets if record.guid is None else _octets(record.guid)
                names = MessageNames(record.uid, self.uidValidity, octets, guid)
                uniqueID = format.expand(names)
            # A field P without a value stands for the base name.
            uniqueID = uniqueID or record.base
            # Messages with the field O come first.
            hasNone = record.order is None
            rank = hasNone, 0 if record.order is None else record.order, record.uid
            found.append(OldMessage(record.base, uniqueID, rank))
        return found


def _octets(name: str) -> str:
    return name if name.isascii() else os.fsencode(name).decode("latin-1")


def _number(word: str) -> int | None:
    number = int(word) if _NUMBER.fullmatch(word) else 0
    return number if 0 < number <= _LARGEST else None


def readUIDList(data: bytes) -> UIDList:
    """
    Parse a file of version 1 (Dovecot 1.0) or 3 (Dovecot 1.1 and later).

    @param data: the octets of the whole file.
    @raise DamagedFile: the file is damaged, or has another version.
    """
    lines = os.fsdecode(data).split("\n")
    if lines.pop():
        raise DamagedFile("it ends in the middle of a line")
    header = lines[0].split(" ") if lines else [""]
    if header[0] == "1" and len(header) == 3:
        uidValidity, nextUID = _number(header[1]), _number(header[2])
        read = _readOld
    elif header[0] == "3":
        fields = {each[:1]: each[1:] for each in reversed(header[1:]) if each}
        uidValidity, nextUID = _number(fields.get("V", "")), _number(fields.get("N", ""))
        read = _readNew
    else:
        raise DamagedFile("its first line does not belong to a known version")
    if uidValidity is None or nextUID is None:
        raise DamagedFile("its first line has no UIDVALIDITY or no next UID")
    records: dict[str, UIDRecord] = {}
    last = 0
    for number, line in enumerate(lines[1:], 2):
        found = _LINE.match(line)
        uid = 0 if found is None else int(found[1])
        record = read(uid, line[found.end() :]) if found and last < uid <= _LARGEST else None
        if record is None:
            raise DamagedFile(f"line {number} is damaged")
        last = uid
        # If two lines name the same file, use the later line.
        records.pop(record.base, None)
        records[record.base] = record
    # The header may be out of date, because Dovecot appends lines without changing the header.
    return UIDList(uidValidity, max(nextUID, last + 1), list(records.values()))


def _baseOf(name: str) -> str | None:
    base = name.partition(":")[0]
    return base if base and "/" not in name and "\0" not in name else None


def _readOld(uid: int, rest: str) -> UIDRecord | None:
    base = _baseOf(rest)
    return None if base is None else UIDRecord(uid, base)


def _readNew(uid: int, rest: str) -> UIDRecord | None:
    if rest[:1] == ":":
        # In the usual case the line has no fields.
        return _readOld(uid, rest[1:])
    words, separator, name = rest.partition(" :")
    base = _baseOf(name)
    if not separator or base is None:
        return None
    fields: dict[str, str] = {}
    for word in words.split(" "):
        # Keep the first word of each letter.  The value of a field may contain blanks, so a further
        # word may be the rest of a value.
        fields.setdefault(word[:1], word[1:])
    order = fields.get("O")
    if order is not None and not _NUMBER.fullmatch(order):
        return None
    return UIDRecord(
        uid, base, fields.get("P"), None if order is None else int(order), fields.get("G")
    )
