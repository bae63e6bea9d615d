"""
Spellings of names and passwords in a password file (RFC 8265).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pop3svc.accounts.passwordediting import FORMS, addUser, removeUser, setPassword
from pop3svc.accounts.passwordfile import PasswordFile, PasswordFileNames, readPasswordFile
from pop3svc.service.command import main
from pop3svc.testing import Inline
from tests.support.passwords import isGood

COMPOSED, DECOMPOSED = "\xe4nne", "a\u0308nne"


def test_namesOfAFile(tmp_path: Path) -> None:
    """
    Another program may have written another spelling.  The first line of a user counts.
    """
    path = tmp_path / "users"
    path.write_text(
        f"{DECOMPOSED}:{{PLAIN}}one\n{COMPOSED}:{{PLAIN}}two\nBob:{{PLAIN}}three\n"
        "\uff45ve:{PLAIN}four\n\u2168:{PLAIN}five\n"
    )
    path.chmod(0o600)
    accounts = readPasswordFile(str(path))
    assert list(accounts.hashes) == [COMPOSED, "Bob", "eve"]
    assert [each.number for each in accounts.badLines] == [2, 5]
    assert "listed twice" in accounts.complaints()[0]
    assert "(RFC 8265)" in accounts.complaints()[1]
    checker = PasswordFile(str(path), Inline())
    assert isGood(checker, COMPOSED, "one")
    assert not isGood(checker, COMPOSED, "two")
    names = PasswordFileNames(str(path))
    for name in (COMPOSED, "Bob", "eve"):
        assert names.hasAccount(name)
    for name in ("bob", "\u2168", "ev", "nobody"):
        assert not names.hasAccount(name)


def test_changes(tmp_path: Path) -> None:
    path = str(tmp_path / "users")
    addUser(path, DECOMPOSED, "pa\u0308ss\xa0word")
    checker = PasswordFile(path, Inline())
    # The hash is that of the prepared password.
    assert isGood(checker, COMPOSED, "p\xe4ss word")
    with pytest.raises(ValueError, match="already"):
        addUser(path, COMPOSED, "x")
    setPassword(path, DECOMPOSED, "new")
    assert isGood(checker, COMPOSED, "new")
    assert list(readPasswordFile(path).hashes) == [COMPOSED]
    removeUser(path, DECOMPOSED)
    assert list(readPasswordFile(path).hashes) == []


@pytest.mark.parametrize("password", ["a\xadb", "a\udcff", "\xe9" * 129, "a\u200b"])
@pytest.mark.parametrize("form", FORMS)
def test_badPasswords(tmp_path: Path, password: str, form: str) -> None:
    with pytest.raises(ValueError, match="RFC 8265"):
        addUser(str(tmp_path / "users"), "ann", password, form=form)


@pytest.mark.parametrize("name", ["\u2168", "a\xadb", "\u05d0a", "\U0001f600", "\xe9" * 128])
def test_badNames(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="a user name"):
        addUser(str(tmp_path / "users"), name, "x")


def test_lineWithABadName(tmp_path: Path) -> None:
    """
    An operator can remove a user whose name is not allowed.
    """
    path = tmp_path / "users"
    path.write_text("\u2168:{PLAIN}x\nann:{PLAIN}x\n")
    removeUser(str(path), "\u2168")
    assert path.read_text() == "ann:{PLAIN}x\n"


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    C{pop3svc user} prepares names, with case mapping if the service has it.
    """
    path = tmp_path / "users"
    passwords = iter(["one", "two", "three"])
    monkeypatch.setattr("pop3svc.service.usercommand._askPassword", lambda: next(passwords))

    def user(*arguments: str) -> None:
        main(["user", *arguments, "--file", str(path)])

    user("add", "Ann")
    user("add", "A\u0308NNE", "--name-case", "mapped")
    assert list(readPasswordFile(str(path)).hashes) == ["Ann", COMPOSED]
    user("password", "\xc4nne", "--name-case", "mapped")
    assert isGood(PasswordFile(str(path), Inline()), COMPOSED, "three")
    with pytest.raises(SystemExit):
        user("add", "\u2168")
    user("remove", DECOMPOSED)
    assert list(readPasswordFile(str(path)).hashes) == ["Ann"]
