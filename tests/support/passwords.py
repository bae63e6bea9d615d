"""
Passwords checked against a password file, and hashes of passwords.
"""

from __future__ import annotations

from typing import Any

import pytest
from argon2 import PasswordHasher
from twisted.cred.credentials import UsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import maybeDeferred

from pop3svc.accounts import modular
from pop3svc.accounts.passwordfile import PasswordFile

# A comparison takes a millisecond instead of a fifth of a second, but is still left to a thread.
CHEAP = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1)


def hashed(password: str) -> str:
    """
    @return: a hash that is computed in a millisecond.
    """
    return CHEAP.hash(password.encode("utf-8", "surrogateescape"))


@pytest.fixture(autouse=True)
def cheapHashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Let C{hashPassword} take a millisecond.  A package whose conftest imports this fixture uses
    it in all of its tests.
    """
    monkeypatch.setattr(modular, "_hasher", CHEAP)


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
