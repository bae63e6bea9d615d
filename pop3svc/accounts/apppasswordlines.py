"""
The files with the application passwords of a password file.

C{FILE.app-passwords} has a line for each::

    user:selector:hash:created=TIME [expires=TIME] [networks=NETWORK,...] label=TEXT

Only C{pop3svc user} writes this file, so that no change of an operator is lost.  The service writes
C{FILE.app-passwords-used}, with the times at which the passwords were last used::

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
from pop3svc.accounts.passwordlines import checkUserName
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

# The most application passwords of a user.  The limit keeps the list short enough to read.
MOST = 100
# The most characters of a label.
_LONGEST_LABEL = 100

# A user and a selector.
Key = tuple[str, str]


class Entry(NamedTuple):
    """
    A line of the file.

    @ivar created: the time at which the password was made, as the file has it.
    """

    user: str
    selector: str
    password: AppPassword
    created: str
    label: str


def fileOf(path: str) -> str:
    """
    @param path: a password file.
    @return: the file of its application passwords.
    """
    return f"{path}.app-passwords"


def _usesOf(path: str) -> str:
    return f"{path}.app-passwords-used"


# --- reading --------------------------------------------------------------------------


def _entryIn(line: str) -> Entry:
    """
    @raise ValueError: the line is malformed; a short reason.
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
        # The unknown field may be a misspelled restriction, so the password must not be valid
        # without it.
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
        are empty if the file does not exist.
    @raise ValueError: the file cannot be read; a sentence that names it.
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
    @param expires: a time for L{expiryOf}; empty for never.
    @return: the secret.
    @raise ValueError: the password cannot be made; a sentence that gives the reason.
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
    @return: the owner of the password file, for the new file, if this process may set it.
    """
    if os.geteuid() != 0:
        return None
    status = os.stat(path)
    return status.st_uid, status.st_gid


def revokeAppPasswords(path: str, user: str, which: str | None = None) -> int:
    """
    Remove application passwords of a user.  Blocks.

    @param path: the password file.
    @param which: a label or a selector; L{None} for all passwords, including those of unusable
        lines.
    @return: the number of passwords that were removed.
    @raise ValueError: the file cannot be changed; a sentence that names it.
    """
    if not os.path.exists(fileOf(path)):
        return 0
    with changing(fileOf(path)) as lines:
        fields = [each.rstrip("\r\n").split(":", 3) for each in lines]
        own = {index for index, each in enumerate(fields) if each[0] == user and len(each) > 1}
        if which is not None:
            labels = {index: f" {fields[index][-1]}".partition(" label=")[2] for index in own}
            # A selector may look like the label of another password.
            own = {index for index in own if labels[index] == which} or {
                index for index in own if fields[index][1] == which
            }
        lines[:] = [each for index, each in enumerate(lines) if index not in own]
    return len(own)


# --- last uses ------------------------------------------------------------------------


def lastUses(path: str) -> dict[Key, int]:
    """
    Read when application passwords were last used.  Blocks.

    @param path: the password file.
    @return: seconds since 1970, by user and selector.
    @raise ValueError: the file cannot be read; a sentence that names it.
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
    Write when application passwords were last used.  Drop the times of passwords that do not exist
    any more.  Blocks.

    @param path: the password file.
    @param uses: seconds since 1970, by user and selector.
    @raise ValueError: the file cannot be written; a sentence that names it.
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
