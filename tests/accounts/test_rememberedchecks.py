"""
Checks of passwords that are remembered for a short time.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock

from pop3svc.accounts.comparison import PasswordComparison, RememberedChecks
from pop3svc.accounts.hashes import HashReader
from pop3svc.accounts.passwordediting import addUser, removeUser, setPassword
from pop3svc.accounts.passwordfile import PasswordFile
from pop3svc.accounts.scramkeys import makeVerifier
from pop3svc.accounts.sqlaccounts import SQLAccounts
from pop3svc.credentials import PasswordAttempt
from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import IPasswordComparing
from pop3svc.testing import Inline
from tests.support.databases import inlineDatabase
from tests.support.passwords import hashed

HASH = hashed("right")


class Counting(Inline):
    """
    Runs work at once, and counts the comparisons.
    """

    def __init__(self) -> None:
        super().__init__()
        self.comparisons = 0

    def run(self, work: Callable[..., Any], *arguments: Any, **named: Any) -> Deferred[Any]:
        self.comparisons += getattr(work, "__name__", "") == "_compare"
        return super().run(work, *arguments, **named)


class Attempt:
    """
    The attempt of a login, as a throttle sees it.
    """

    isFromKnownNetwork = False
    isGuess = wasRefused = False


class Accounts:
    """
    Accounts whose successful checks are remembered for ten seconds.
    """

    def __init__(self, tmp_path: Path, line: str = f"ann:{HASH}", seconds: int = 10) -> None:
        self.path = str(tmp_path / "users")
        Path(self.path).write_text(f"{line}\n")
        self.clock, self.runner = Clock(), Counting()
        self.checker = PasswordFile(self.path, self.runner, self.clock)
        self.checker.rememberChecks(seconds)
        self.attempt = Attempt()

    def compared(self, password: str = "right", name: str = "ann", clientIP: str = "::1") -> int:
        """
        Log in.

        @return: the number of comparisons.
        """
        before = self.runner.comparisons
        self.answer = answer(self.checker, name, password, clientIP, self.attempt)
        return self.runner.comparisons - before

    @property
    def isIn(self) -> bool:
        if isinstance(self.answer, bytes):
            return True
        assert self.answer.check(UnauthorizedLogin), self.answer
        return False


def answer(checker: Any, name: str, password: str, clientIP: str, attempt: Any = None) -> Any:
    got: list[Any] = []
    credentials = PasswordAttempt(
        name.encode(), password.encode("utf-8", "surrogateescape"), attempt, clientIP=clientIP
    )
    maybeDeferred(checker.requestAvatarId, credentials).addBoth(got.append)
    return got[0]


def test_remembered(tmp_path: Path) -> None:
    """
    The time runs from the comparison, and does not begin again with each login.
    """
    accounts = Accounts(tmp_path)
    assert IPasswordComparing.providedBy(accounts.checker)
    assert (accounts.compared(), accounts.isIn) == (1, True)
    for _ in range(3):
        accounts.clock.advance(3)
        assert (accounts.compared(), accounts.isIn) == (0, True)
    accounts.clock.advance(1)
    assert (accounts.compared(), accounts.isIn) == (1, True)
    assert accounts.compared() == 0


def test_off(tmp_path: Path) -> None:
    accounts = Accounts(tmp_path, seconds=0)
    assert [accounts.compared() for _ in range(3)] == [1, 1, 1]


def test_wrong(tmp_path: Path) -> None:
    """
    Wrong passwords are never remembered, and count as guesses each time.
    """
    accounts = Accounts(tmp_path)
    assert accounts.compared() == 1
    for password in ("wrong", "right ", "righ", "", "right\0", "\udcff", "x" * 2000):
        for _ in range(2):
            accounts.attempt = Attempt()
            assert (accounts.compared(password), accounts.isIn) == (1, False)
            assert accounts.attempt.isGuess and accounts.attempt.wasRefused
    for _ in range(2):
        assert (accounts.compared("right", "ben"), accounts.isIn) == (1, False)
    assert (accounts.compared(), accounts.isIn) == (0, True)


def test_fieldsAreKeptApart() -> None:
    """
    Two different combinations of name, password and hash have different digests.
    """
    checks = RememberedChecks(10, Clock().seconds)
    seen = {
        checks.digestOf(*each)
        for each in ((b"a", b"bc", "d"), (b"ab", b"c", "d"), (b"a", b"b", "cd"), (b"", b"bc", "ad"))
    }
    assert len(seen) == 4
    assert RememberedChecks(10, Clock().seconds).digestOf(b"a", b"bc", "d") not in seen


@pytest.mark.parametrize("change", ["password", "removed", "reload", "other"])
def test_forgotten(tmp_path: Path, change: str) -> None:
    """
    A change of the file forgets everything; so does a reload.
    """
    accounts = Accounts(tmp_path)
    assert (accounts.compared(), accounts.compared()) == (1, 0)
    if change == "password":
        setPassword(accounts.path, "ann", "other")
    elif change == "removed":
        removeUser(accounts.path, "ann")
    elif change == "reload":
        accounts.checker.reload()
    else:
        addUser(accounts.path, "ben", "x")
    assert accounts.compared() == 1
    assert accounts.isIn is (change in ("reload", "other"))


def test_unreadableFile(tmp_path: Path) -> None:
    """
    A reload forgets also if the file cannot be read.
    """
    accounts = Accounts(tmp_path)
    assert (accounts.compared(), accounts.compared()) == (1, 0)
    Path(accounts.path).unlink()
    accounts.checker.reload()
    assert (accounts.compared(), accounts.isIn) == (1, True)


@pytest.mark.parametrize("extra", ["allow_nets=192.0.2.0/24", "nologin"])
def test_restricted(tmp_path: Path, extra: str) -> None:
    """
    A right password that is refused costs a comparison each time.  Otherwise the time would tell
    that it is right.
    """
    accounts = Accounts(tmp_path, f"ann:{HASH}::::::{extra}")
    if extra != "nologin":
        assert (accounts.compared(clientIP="192.0.2.1"), accounts.isIn) == (1, True)
        assert accounts.compared(clientIP="192.0.2.1") == 0
    for _ in range(2):
        assert accounts.compared() == 1
        assert accounts.answer.check(UnauthorizedLogin, POP3ResponseError)


@pytest.mark.parametrize(
    ("stored", "comparisons"), [("{PLAIN}right", 0), (makeVerifier("right"), 1)]
)
def test_kinds(tmp_path: Path, stored: str, comparisons: int) -> None:
    """
    A quick comparison is not remembered, because this would save nothing.
    """
    accounts = Accounts(tmp_path, f"ann:{stored}")
    assert (accounts.compared(), accounts.isIn) == (comparisons, True)
    assert (accounts.compared(), accounts.isIn) == (0, True)
    remembered: Any = accounts.checker._comparison._remembered
    assert len(remembered._until) == comparisons


def test_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RememberedChecks, "MOST", 2)
    checks = RememberedChecks(10, Clock().seconds)
    for each in (b"1", b"2", b"3"):
        checks.add(each)
    assert [checks.has(each) for each in (b"1", b"2", b"3")] == [False, True, True]


def test_usualClock() -> None:
    """
    Setting the clock of the machine back does not prolong the time.
    """
    import time

    comparison: Any = PasswordComparison("x", runner=Inline())
    assert comparison._now is time.monotonic


def test_sql(tmp_path: Path) -> None:
    """
    The query runs at each login, and a changed row is a new comparison.
    """
    path = tmp_path / "accounts.db"

    def execute(statement: str, *values: str) -> None:
        database = sqlite3.connect(path)
        database.execute(statement, values)
        database.commit()
        database.close()

    execute("CREATE TABLE account (name, password, nologin)")
    execute("INSERT INTO account VALUES ('ann', ?, 0)", HASH)
    runner, clock = Counting(), Clock()
    checker = SQLAccounts(
        inlineDatabase(f"sqlite:{path}", isReadOnly=True),
        "SELECT password, nologin FROM account WHERE name = :user",
        HashReader(),
        runner,
        clock,
    )
    checker.rememberChecks(10)
    assert IPasswordComparing.providedBy(checker)

    def compared(password: str = "right") -> tuple[int, bool]:
        before = runner.comparisons
        found = answer(checker, "ann", password, "::1")
        return runner.comparisons - before, found == b"ann"

    assert [compared(), compared(), compared("wrong")] == [(1, True), (0, True), (1, False)]
    execute("UPDATE account SET nologin = 1")
    assert [compared(), compared()] == [(1, False), (1, False)]
    execute("UPDATE account SET nologin = 0")
    assert compared() == (0, True)
    execute("UPDATE account SET password = ?", hashed("other"))
    assert [compared(), compared("other"), compared("other")] == [(1, False), (1, True), (0, True)]
    checker.reload()
    assert compared("other") == (1, True)
    execute("DELETE FROM account")
    assert compared("other") == (1, False)
