"""
Parse the names of a Maildir's files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import sha256

from pop3svc.listings import slices
from pop3svc.providers.files.deletion import Place
from pop3svc.providers.paths import uniqueIDFor

__all__ = [
    "SEPARATORS",
    "ParsedName",
    "nameWithUniqueID",
    "parseNames",
    "separatorOf",
    "sizesIn",
]

# Separators before the flags of a file name: ":" in the Maildir specification, and another
# character on file systems that do not allow ":".
SEPARATORS = ":;!-_+"
_FLAGS = re.compile(rf"([{re.escape(SEPARATORS)}])2,[A-Za-z]*")
# The size with CRLF, which Dovecot and maildrop write after the size on disk.
_SIZE = re.compile(r",S=[0-9]{1,12},W=([0-9]{1,12})(?![0-9])[^/]*/")

# The part of a name before the flags, and the seconds and microseconds of delivery in that part;
# empty if the part has none.
ParsedName = tuple[str, str, str]


@lru_cache(len(SEPARATORS))
def _nameWith(separator: str) -> re.Pattern[str]:
    """
    @return: a pattern for names such as "1600000000.M123456P789.host:2,S", joined by "/"
        because one call matches many.  Its groups are the part before the flags, and the seconds
        and microseconds in that part, if present.
    """
    no = f"[^{re.escape(separator)}/]"
    seconds = rf"([0-9]{{1,20}})\.(?:[^.{re.escape(separator)}/]*?M([0-9]{{1,20}}))?"
    return re.compile(rf"((?:{seconds})?{no}*)[^/]*/")


# Names that one call parses, so that it holds the interpreter lock only for some milliseconds.
_SLICE = 10_000


def parseNames(places: Sequence[Place], separator: str) -> list[ParsedName]:
    """
    @param separator: the separator before the flags.
    @return: the parsed name of the file at each place.
    """
    findAll = _nameWith(separator).findall
    found: list[ParsedName] = []
    for first in range(0, len(places), _SLICE):
        names = [place[1] for place in places[first : first + _SLICE]]
        # No file name contains a slash.
        found += findAll("/".join([*names, ""]))
    return found


def separatorOf(places: Iterable[Place]) -> str:
    """
    @return: the separator before the flags: C{:}, unless all names in C{cur} have the
        same other separator.
    """
    found = ""
    for folder, name, _ in places:
        if folder != "cur":
            continue
        flags = _FLAGS.fullmatch(name, max(name.rfind("2,") - 1, 0))
        if flags is None or ":2," in name or flags[1] == ":" or found not in ("", flags[1]):
            return ":"
        found = flags[1]
    return found or ":"


def sizesIn(names: Sequence[str]) -> list[int | None]:
    """
    @return: for each name of a file the message's size in it, in octets as sent; L{None} if the
        name contains no size.
    """
    sizes: list[int | None] = []
    for some in slices(names):
        # No file name contains a slash, and a match extends to the next one.
        found = _SIZE.findall("/".join([*some, ""]))
        if len(found) == len(some):
            sizes += map(int, found)
        else:
            sizes += [int(size[1]) if (size := _SIZE.search(f"{each}/")) else None for each in some]
    return sizes


def nameWithUniqueID(uniqueID: str, separator: str = "") -> str:
    """
    @param separator: the separator before the flags; empty: not known.
    @return: the name of a file that has this unique-id.  If no name can have it, another name,
        which is always the same for this unique-id.
    """
    isName = not uniqueID.startswith(".") and "/" not in uniqueID
    isPlain = isName and (separator or ":") not in uniqueID
    # The service finds out the separator, and one of these characters may be the separator.
    mayHaveFlags = any(f"{each}2," in uniqueID for each in SEPARATORS)
    if isPlain and not mayHaveFlags and uniqueIDFor(uniqueID) == uniqueID:
        return uniqueID
    return f"uid-{sha256(uniqueID.encode('utf-8', 'surrogateescape')).hexdigest()}"
