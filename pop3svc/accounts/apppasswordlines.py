"""
Read and change two files beside a password file: the file of its application passwords, and the
file of the times at which these passwords were last used.

The application passwords of the password file C{FILE} are in C{FILE.app-passwords}.  Each has a
line::

    user:selector:hash:created=TIME [expires=TIME] [networks=NETWORK,...] label=TEXT

The service itself never writes this file, because it could lose a change of the operator.
C{pop3svc user} writes the file.  The service writes the times of the last uses to
C{FILE.app-passwords-used}.  Each application password that was used has a line::

    user:selector:TIME
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from pop3svc.accounts.apppasswords import AppPassword, expiryOf, makeSecret, secretIn
from pop3svc.accounts.hashes import HASHES, hashPassword
from pop3svc.accounts.linefiles import changing, linesOf
from pop3svc.accounts.passwordlines import checkUserName, nameIn
from pop3svc.accounts.restrictions import networksOf

__all__ = [
    "Entry",
    "addAppPassword",
    "fileOf",
    "lastUses",
    "readAppPasswords",
    "recordUses",
    "revokeAppPasswords",
]

# The most application passwords of a user.  The limit keeps the user's list short enough for the
# operator to read.
MOST = 100
# The most characters of a label.
_LONGEST_LABEL = 100

# The user and the selector of an application password.
Key = tuple[str, str]


class Entry(NamedTuple):
    """
    A line of the file of application passwords.

    @ivar created: the time at which the password was made, in the form that the file has.
    """

    user: str
    selector: str
    password: AppPassword
    created: str
    label: str


def fileOf(path: str) -> str:
    """
    @param path: the path of a password file.
    @return: the path of the file with the application passwords.
    """
    return f"{path}.app-passwords"


def _usesOf(path: str) -> str:
    return f"{path}.app-passwords-used"


# --- reading --------------------------------------------------------------------------


def _entryIn(line: str) -> Entry:
    """
    @raise ValueError: the line is malformed.  The text is a short reason.
    """
    fields = line.split(":", 3)
    if len(fields) < 4:
        raise ValueError("fewer than four fields")
    user, selector, stored, rest = fields
    user = checkUserName(user)
    if secretIn(selector.encode("utf-8", "surrogateescape") * 8) is None:
        raise ValueError("a malformed selector")
    HASHES.costOf(stored)
    settings, _, label = f" {rest}".partition(" label=")
    values = dict(each.partition("=")[::2] for each in settings.split())
    others = sorted(set(values) - {"created", "expires", "networks"})
    if others:
        # Refuse the whole line, because the unknown setting may be a misspelled restriction.  The
        # password must not be valid without the restriction.
        raise ValueError("an unknown setting")
    networks = networksOf(values.get("networks", ""))
    if "networks" in values and not networks:
        raise ValueError("networks is not a list of networks")
    expires = expiryOf(values.get("expires"))
    if "expires" in values and expires is None:
        raise ValueError("an empty time of expiry")
    password = AppPassword(stored, networks, expires)
    return Entry(user, selector, password, values.get("created", ""), label)


def readAppPasswords(path: str) -> tuple[dict[Key, Entry], list[str]]:
    """
    Read the application passwords of a password file.  Blocks.

    @param path: the password file.
    @return: the application passwords, and a sentence about each line that cannot be used.  Both
        values are empty if the file does not exist.
    @raise ValueError: the file cannot be read.  The text is a sentence that names the file.
    """
    try:
        return _parse(linesOf(fileOf(path)))
    except ValueError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return {}, []
        raise


def _parse(lines: Iterable[str]) -> tuple[dict[Key, Entry], list[str]]:
    found: dict[Key, Entry] = {}
    complaints = []
    for number, line in enumerate(lines, 1):
        line = line.rstrip("\r\n")
        if not line.strip() or line.startswith("#"):
            continue
        try:
            entry = _entryIn(line)
            if (entry.user, entry.selector) in found:
                raise ValueError("the selector is listed twice")
            found[entry.user, entry.selector] = entry
        except ValueError as error:
            complaints.append(f"line {number}: ignored: {error}")
    return found, complaints


# --- changing -------------------------------------------------------------------------


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def addAppPassword(
    path: str, user: str, label: str, networks: Sequence[str] = (), expires: str = ""
) -> str:
    """
    Make an application password.  Blocks.

    @param path: the password file.
    @param networks: the networks from which the password may be used; empty for all networks.
    @param expires: the time from which the password is not valid any more, in a form that
        L{expiryOf} reads; empty if it is always valid.
    @return: the new application password.
    @raise ValueError: the password cannot be made.  The text is a sentence with the reason.
    """
    isText = label.isprintable() and label == label.strip()
    if not label or not isText or len(label) > _LONGEST_LABEL:
        raise ValueError(f"a label is printable text of at most {_LONGEST_LABEL} characters")
    settings = [f"created={_now()}"]
    if expires:
        settings.append(f"expires={expires}")
    if networks:
        settings.append(f"networks={','.join(networks)}")
    with changing(fileOf(path), mayBeNew=True, owner=_ownerOf(path)) as lines:
        others = [each for each in _parse(lines)[0].values() if each.user == user]
        if any(each.label == label for each in others):
            raise ValueError(f"{user} already has an application password {label}")
        if len(others) >= MOST:
            raise ValueError(f"{user} already has {MOST} application passwords")
        selector, secret = makeSecret({each.selector for each in others})
        found = secretIn(secret.encode("ascii"))
        assert found is not None
        stored = hashPassword(found[1].decode("ascii"))
        line = f"{user}:{selector}:{stored}:{' '.join(settings)} label={label}"
        _entryIn(line)
        lines.append(f"{line}\n")
    return secret


def _ownerOf(path: str) -> tuple[int, int] | None:
    """
    @return: the user and the group that own the password file, so that a new file gets the same
        user and group; L{None} if this process may not set them.
    """
    if os.geteuid() != 0:
        return None
    status = os.stat(path)
    return status.st_uid, status.st_gid


def revokeAppPasswords(path: str, user: str, which: str | None = None) -> int:
    """
    Remove application passwords of a user.  Blocks.

    @param path: the password file.
    @param which: the label or the selector of a password.  L{None} means all passwords, including
        those of lines that cannot be used.
    @return: the number of passwords that were removed.
    @raise ValueError: the file cannot be changed.  The text is a sentence that names the file.
    """
    if not os.path.exists(fileOf(path)):
        return 0
    with changing(fileOf(path)) as lines:
        fields = [each.rstrip("\r\n").split(":", 3) for each in lines]
        own = {
            index for index, each in enumerate(fields) if nameIn(each[0]) == user and len(each) > 1
        }
        if which is not None:
            labels = {index: f" {fields[index][-1]}".partition(" label=")[2] for index in own}
            # Look for a label first, because the label of one password may be equal to the selector
            # of another password.
            own = {index for index in own if labels[index] == which} or {
                index for index in own if fields[index][1] == which
            }
        lines[:] = [each for index, each in enumerate(lines) if index not in own]
    return len(own)


# --- last uses ------------------------------------------------------------------------


def lastUses(path: str) -> dict[Key, int]:
    """
    Read the times at which application passwords were last used.  Blocks.

    @param path: the password file.
    @return: the times in seconds since 1970, by user and selector.
    @raise ValueError: the file cannot be read.  The text is a sentence that names the file.
    """
    try:
        return _usesIn(linesOf(_usesOf(path)))
    except ValueError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return {}
        raise


def _usesIn(lines: Iterable[str]) -> dict[Key, int]:
    found = {}
    for line in lines:
        user, _, rest = line.rstrip("\r\n").partition(":")
        selector, _, seconds = rest.partition(":")
        if seconds.isascii() and seconds.isdigit() and len(seconds) < 16:
            found[user, selector] = int(seconds)
    return found


def recordUses(path: str, uses: Mapping[Key, float]) -> None:
    """
    Write the times at which application passwords were last used.  Remove the times of passwords
    that do not exist any more.  Blocks.

    @param path: the password file.
    @param uses: the new times in seconds since 1970, by user and selector.
    @raise ValueError: the file cannot be written.  The text is a sentence that names the file.
    """
    existing = readAppPasswords(path)[0]
    with changing(_usesOf(path), mayBeNew=True, owner=_ownerOf(path)) as lines:
        known = _usesIn(lines)
        for key, seconds in uses.items():
            known[key] = max(known.get(key, 0), int(seconds))
        lines[:] = [
            f"{user}:{selector}:{seconds}\n"
            for (user, selector), seconds in known.items()
            if (user, selector) in existing
        ]
