"""
Passwords checked against a password file.
"""

from __future__ import annotations

from typing import Any

from twisted.cred.credentials import UsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import maybeDeferred

from pop3svc.accounts.passwordfile import (
    PasswordFile,
)


def ask(checker: PasswordFile, name: str, password: str) -> Any:
    got: list[Any] = []
    credentials = UsernamePassword(
        name.encode("utf-8", "surrogateescape"), password.encode("utf-8", "surrogateescape")
    )
    maybeDeferred(checker.requestAvatarId, credentials).addBoth(got.append)
    return got[0]


def isGood(checker: PasswordFile, name: str, password: str) -> bool:
    answer = ask(checker, name, password)
    if answer == name.encode():
        return True
    assert answer.check(UnauthorizedLogin), answer
    return False
