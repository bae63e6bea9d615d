"""
User names in paths, and file names as unique-ids.
"""

from __future__ import annotations

import os
import re
from hashlib import sha256

__all__ = ["PathTemplate", "isSafeName", "uniqueIDFor"]

_PLACEHOLDER = re.compile(r"\{([a-z]*)\}")
_LEGAL = re.compile(r"(?!_\Z)[!-~]{1,70}")
_DERIVED = re.compile(r"H-[0-9a-f]{64}")
_LONGEST = 200


def isSafeName(name: str) -> bool:
    """
    May this stand in a path as the name of one directory?  Printable without
    spaces, no separator, not hidden, not a way up, and not too long.
    """
    if not name or name.startswith((".", "-", "~")) or not name.isprintable():
        return False
    if any(character in "/\\:" or character.isspace() for character in name):
        return False
    return len(name.encode("utf-8")) <= _LONGEST


def uniqueIDFor(name: str, taken: bool = False) -> str:
    """
    The unique-id of a message kept under a name: the name itself if it is a
    legal one (RFC 1939 section 7), else one derived from all of it.  No two
    names have the same, and the same name always has the same.

    @param taken: another message has the name itself; derive one.
    """
    if not taken and _LEGAL.fullmatch(name) and not _DERIVED.fullmatch(name):
        return name
    return "H-" + sha256(os.fsencode(name)).hexdigest()


class PathTemplate:
    """
    A path with C{{user}}, C{{local}} and C{{domain}} in it, or the directory
    that holds a directory for each user.
    """

    def __init__(self, template: str) -> None:
        """
        @raise ValueError: a sentence for the operator.
        """
        if not template:
            raise ValueError("a path is needed")
        names = set(_PLACEHOLDER.findall(template))
        unknown = sorted(names - {"user", "local", "domain"})
        if unknown or "{" in _PLACEHOLDER.sub("", template):
            raise ValueError(f"{template}: the placeholders are {{user}}, {{local}} and {{domain}}")
        if not names:
            template = os.path.join(template, "{user}")
        self._template = os.path.abspath(os.path.expanduser(template))
        base = os.path.dirname(self._template.partition("{")[0] + "x")
        if not os.path.isdir(base):
            raise ValueError(f"{base} is not a directory")
        self._needsDomain = bool(names & {"local", "domain"})

    def pathFor(self, username: str) -> str | None:
        """
        @return: the path for a user, or L{None} for a name that is refused.
        """
        if not isSafeName(username):
            return None
        values = {"user": username}
        if self._needsDomain:
            local, at, domain = username.rpartition("@")
            if not at or not isSafeName(local) or not isSafeName(domain):
                return None
            values |= {"local": local, "domain": domain}
        return _PLACEHOLDER.sub(lambda found: values[found[1]], self._template)
