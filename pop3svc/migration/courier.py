"""
Read the file C{courierpop3dsizelist} of Courier's POP3 server.
"""

from __future__ import annotations

import os
import re

from pop3svc.migration.records import DamagedFile, OldMessage

__all__ = ["FILE", "readSizeList"]

FILE = "courierpop3dsizelist"
_HEADERS = (
    (1, re.compile(rb"/1 ([0-9]{1,20})")),
    (2, re.compile(rb"/2 ([0-9]{1,20}) ([0-9]{1,20})")),
    (3, re.compile(rb"/3 ([0-9]{1,20}) ([0-9]{1,20})")),
)
_LINES = {
    0: re.compile(rb"(.+) [0-9]{1,20}()()"),
    1: re.compile(rb"(.+) [0-9]{1,20} ([0-9]{1,20})()"),
    2: re.compile(rb"(.+) [0-9]{1,20} ([0-9]{1,20}):([0-9]{1,20})"),
    3: re.compile(rb"(.+) [0-9]{1,20} ([0-9]{1,20}):([0-9]{1,20}):[01]"),
}
_UNSAFE = re.compile(rb"[^!-~]|['\"+]")
_LEADING = re.compile(rb"[0-9]*")


def readSizeList(data: bytes) -> list[OldMessage]:
    """
    Parse a file of one of the versions 0 to 3.  Version 0 has no header.

    @param data: the octets of the whole file.
    @return: the messages in the order of the file.  The files of some messages may not exist any
        more.
    @raise DamagedFile: the file is damaged, or has another version.
    """
    lines = data.split(b"\n")
    if lines.pop():
        raise DamagedFile("it ends in the middle of a line")
    version = 0
    if lines and lines[0].startswith(b"/"):
        version = next((each for each, first in _HEADERS if first.fullmatch(lines[0])), 0)
        if not version:
            raise DamagedFile("its first line does not belong to a known version")
    elif not lines:
        raise DamagedFile("it is empty")
    messages: dict[bytes, OldMessage] = {}
    for index, line in enumerate(lines[1:] if version else lines, 2 if version else 1):
        # The name may contain blanks, so take the numbers at the end of the line.
        found = _LINES[version].fullmatch(line)
        if found is None or b"/" in found[1] or found[1][:1] == b":":
            raise DamagedFile(f"line {index} is damaged")
        base = found[1].partition(b":")[0]
        uniqueID = _uniqueIDOf(base, int(found[2] or 0), int(found[3] or 0))
        name = os.fsdecode(base)
        leading = _LEADING.match(base)
        rank = int(leading[0] or 0) if leading else 0, base
        messages.pop(base, None)
        messages[base] = OldMessage(name, uniqueID, rank)
    return list(messages.values())


def _uniqueIDOf(base: bytes, number: int, uidValidity: int) -> str:
    if not number:
        return _UNSAFE.sub(lambda found: b"+%02X" % found[0][0], base).decode("ascii")
    return f"UID{number}-{uidValidity}" if uidValidity else f"UID{number}"
