"""
Change a password file: add and remove users, and set their passwords.
"""

from __future__ import annotations

from collections.abc import Mapping

from pop3svc.accounts.hashes import LONGEST_PASSWORD, hashPassword
from pop3svc.accounts.linefiles import changing
from pop3svc.accounts.passwordlines import checkUserName, withVerifiers
from pop3svc.accounts.scramkeys import makeVerifier

__all__ = ["FORMS", "addUser", "removeUser", "setPassword"]


def _find(lines: list[str], name: str) -> list[int]:
    """
    @return: the indices of a user's lines.  A file that another program has written may have
        several.
    """
    return [
        index
        for index, line in enumerate(lines)
        if not line.startswith("#") and ":" in line and line.partition(":")[0] == name
    ]


def _checkPassword(password: str) -> str:
    if not password:
        raise ValueError("the password is empty")
    if len(password.encode("utf-8", "surrogateescape")) > LONGEST_PASSWORD:
        raise ValueError(f"a password has at most {LONGEST_PASSWORD} octets")
    if any(ord(character) < 32 or ord(character) == 127 for character in password):
        raise ValueError("a password must not contain control characters")
    return password


# What can be stored: a hash, a verifier for SCRAM, or a hash and a verifier beside it.
FORMS = ("hash", "verifier", "both")


def _store(password: str, form: str) -> tuple[str, Mapping[str, str]]:
    """
    @param form: one of L{FORMS}.
    @return: the password as it is stored, and the verifiers beside it.
    """
    _checkPassword(password)
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

    @param owner: uid and gid of a new file.
    @param form: what is stored, one of L{FORMS}.  A verifier is one of SCRAM-SHA-256.
    @raise ValueError: the user cannot be added; a sentence that gives the reason.
    """
    stored, verifiers = _store(password, form)
    with changing(path, mayBeNew=True, owner=owner) as lines:
        if _find(lines, checkUserName(name)):
            raise ValueError(f"there is a user {name} already")
        lines.append(f"{name}:{stored}{withVerifiers(stored, '', verifiers)}\n")


def setPassword(path: str, name: str, password: str, form: str = "hash") -> None:
    """
    Replace a user's password, and remove further lines of that user.  The fields after the
    password stay, except for verifiers of the previous password.

    @param form: see L{addUser}.
    @raise ValueError: the password cannot be replaced; a sentence that gives the reason.
    """
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


def removeUser(path: str, name: str) -> None:
    """
    Remove a user, with all lines of that name.

    @raise ValueError: the user cannot be removed; a sentence that gives the reason.
    """
    with changing(path) as lines:
        found = _find(lines, name)
        if not found:
            raise ValueError(f"there is no user {name}")
        for index in reversed(found):
            del lines[index]
