"""
Change a password file.  The functions add users, remove users and set passwords.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import NamedTuple

from pop3svc.accounts.hashes import LONGEST_PASSWORD, hashPassword
from pop3svc.accounts.linefiles import changing
from pop3svc.accounts.passwordlines import checkUserName, nameIn, verifiersIn, withVerifiers
from pop3svc.accounts.scramkeys import makeVerifier
from pop3svc.preparation import preparePassword

__all__ = ["FORMS", "Proved", "addUser", "addVerifiers", "removeUser", "setPassword"]


def _find(lines: list[str], name: str) -> list[int]:
    """
    @return: the indices of the lines of a user.  In a file that another program has written, a user
        may have several lines.
    """
    return [
        index
        for index, line in enumerate(lines)
        if not line.startswith("#") and ":" in line and nameIn(line) == name
    ]


def _checkPassword(password: str) -> str:
    if not password:
        raise ValueError("the password is empty")
    if len(password.encode("utf-8", "surrogateescape")) > LONGEST_PASSWORD:
        raise ValueError(f"a password has at most {LONGEST_PASSWORD} octets")
    if any(ord(character) < 32 or ord(character) == 127 for character in password):
        raise ValueError("a password must not contain control characters")
    return preparePassword(password)


# The forms in which a password can be stored: a hash, a verifier for SCRAM, or both in the same
# line.
FORMS = ("hash", "verifier", "both")


def _store(password: str, form: str) -> tuple[str, Mapping[str, str]]:
    """
    @param form: one of L{FORMS}.
    @return: the hash or verifier to store as the password, and the verifiers for the extra fields
        of the line.
    """
    password = _checkPassword(password)
    if form == "verifier":
        return makeVerifier(password), {}
    return hashPassword(password), {"sha256": makeVerifier(password)} if form == "both" else {}


def addUser(
    path: str,
    name: str,
    password: str,
    owner: tuple[int, int] | None = None,
    form: str = "hash",
) -> None:
    """
    Add a user.  Create the file if it does not exist.

    @param owner: the uid and the gid that own a new file.
    @param form: the form in which the password is stored; one of L{FORMS}.  Verifiers are made for
        SCRAM-SHA-256.
    @raise ValueError: the user cannot be added.  The text is a sentence with the reason.
    """
    stored, verifiers = _store(password, form)
    with changing(path, mayBeNew=True, owner=owner) as lines:
        name = checkUserName(name)
        if _find(lines, name):
            raise ValueError(f"there is already a user {name}")
        lines.append(f"{name}:{stored}{withVerifiers(stored, '', verifiers)}\n")


def setPassword(path: str, name: str, password: str, form: str = "hash") -> None:
    """
    Replace the password of a user.  If the user has several lines, keep the first one only.  The
    fields after the password stay, but verifiers of the previous password are removed.

    @param form: see L{addUser}.
    @raise ValueError: the password cannot be replaced.  The text is a sentence with the reason.
    """
    name = nameIn(name)
    stored, verifiers = _store(password, form)
    with changing(path) as lines:
        found = _find(lines, name)
        if not found:
            raise ValueError(f"there is no user {name}")
        _, colon, fields = lines[found[0]].rstrip("\r\n").partition(":")[2].partition(":")
        rest = withVerifiers(stored, colon + fields, verifiers)
        lines[found[0]] = f"{name}:{stored}{rest}\n"
        for index in reversed(found[1:]):
            del lines[index]


class Proved(NamedTuple):
    """
    The verifiers of a password with which a user has just logged in.

    @ivar stored: the stored password of the user.  The verifiers belong to it.
    @ivar verifiers: the verifiers by algorithm, in the form of stored passwords.
    """

    stored: str
    verifiers: Mapping[str, str]


def addVerifiers(path: str, found: Mapping[str, Proved]) -> int:
    """
    Add verifiers to the lines of users.  A user gets no verifier if the stored password has changed
    since the login, or if the line of the user has no place for verifiers.  The file keeps its
    owner and its permissions.

    @param found: the verifiers by user name.
    @return: the number of users who got a verifier.
    @raise ValueError: the file cannot be changed.  The text is a sentence that names the file.
    """
    count = 0
    with changing(path, keepsAccess=True) as lines:
        for name, index in _firstLines(lines, found).items():
            text = lines[index].rstrip("\r\n")
            stored, colon, fields = text.partition(":")[2].partition(":")
            if stored != found[name].stored:
                continue
            try:
                has = verifiersIn(stored, fields)
                rest = withVerifiers(stored, colon + fields, {**found[name].verifiers, **has})
            except ValueError:
                continue
            line = f"{name}:{stored}{rest}{lines[index][len(text) :]}"
            count += line != lines[index]
            lines[index] = line
    return count


def _firstLines(lines: list[str], names: Container[str]) -> dict[str, int]:
    """
    @return: the index of the first line of each user.
    """
    found: dict[str, int] = {}
    for index, line in enumerate(lines):
        name, colon, _ = line.partition(":")
        if colon and name in names:
            found.setdefault(name, index)
    return found


def removeUser(path: str, name: str) -> None:
    """
    Remove all lines of a user.

    @raise ValueError: the user cannot be removed.  The text is a sentence with the reason.
    """
    name = nameIn(name)
    with changing(path) as lines:
        found = _find(lines, name)
        if not found:
            raise ValueError(f"there is no user {name}")
        for index in reversed(found):
            del lines[index]
