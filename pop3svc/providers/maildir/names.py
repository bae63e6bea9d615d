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

# The separators that may come before the flags in a file's name.  The Maildir specification
# requires ":".  The other separators are for file systems that do not allow ":".
SEPARATORS = ":;!-_+"
_FLAGS = re.compile(rf"([{re.escape(SEPARATORS)}])2,[A-Za-z]*")
# Finds the size with CRLF line ends.  Dovecot writes it after the size of the file.
_SIZE = re.compile(r",S=[0-9]{1,12},W=([0-9]{1,12})(?![0-9])[^/]*/")

# The part of a name before the flags, and the seconds and the microseconds of delivery in this
# part.  The last two are empty if the part does not contain them.
ParsedName = tuple[str, str, str]


@lru_cache(len(SEPARATORS))
def _nameWith(separator: str) -> re.Pattern[str]:
    """
    @return: a pattern for names such as "1600000000.M123456P789.host:2,S".  The names are joined by
        "/", so that one call matches many of them.  The groups of the pattern are the part before
        the flags, and the seconds and the microseconds in this part.
    """
    no = f"[^{re.escape(separator)}/]"
    seconds = rf"([0-9]{{1,20}})\.(?:[^.{re.escape(separator)}/]*?M([0-9]{{1,20}}))?"
    return re.compile(rf"((?:{seconds})?{no}*)[^/]*/")


# The most names that one call parses.  The call holds the interpreter's lock, so it must end after
# some milliseconds.
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
        # Join the names by slashes, because the name of a file never contains a slash.
        found += findAll("/".join([*names, ""]))
    return found


def separatorOf(places: Iterable[Place]) -> str:
    """
    @return: the separator before the flags.  It is C{:}, unless all names in C{cur} have the same
        other separator.
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
    @return: for each name of a file, the size of the message according to the name, in octets with
        CRLF; L{None} if the name contains no size.
    """
    sizes: list[int | None] = []
    for some in slices(names):
        # Join the names by slashes, because the name of a file never contains a slash.  A match of
        # the pattern ends at the next slash.
        found = _SIZE.findall("/".join([*some, ""]))
        if len(found) == len(some):
            sizes += map(int, found)
        else:
            sizes += [int(size[1]) if (size := _SIZE.search(f"{each}/")) else None for each in some]
    return sizes


def nameWithUniqueID(uniqueID: str, separator: str = "") -> str:
    """
    @param separator: the separator before the flags; empty if it is not known.
    @return: a name for a file whose message gets this unique-id.  If there is no such name, the
        result is made from a hash of the unique-id.
    """
    isName = not uniqueID.startswith(".") and "/" not in uniqueID
    isPlain = isName and (separator or ":") not in uniqueID
    # A store that finds its separator from the names may use any of these characters.
    mayHaveFlags = any(f"{each}2," in uniqueID for each in SEPARATORS)
    if isPlain and not mayHaveFlags and uniqueIDFor(uniqueID) == uniqueID:
        return uniqueID
    return f"uid-{sha256(uniqueID.encode('utf-8', 'surrogateescape')).hexdigest()}"
