"""
The file of hashed passwords.
"""

from __future__ import annotations

import base64
import builtins
import hashlib
import os
import stat
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from passlib.hash import sha512_crypt
from twisted.cred.credentials import UsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import globalLogPublisher

from pop3svc.accounts import passwordfile
from pop3svc.accounts.passwordfile import (
    PasswordFile,
    addUser,
    checkUserName,
    readPasswordFile,
    removeUser,
    setPassword,
)
from pop3svc.calling import Workers
from pop3svc.errors import POP3ResponseError
from pop3svc.testing import Inline


def scrypt(password: bytes) -> str:
    def encoded(octets: bytes) -> str:
        return base64.b64encode(octets).decode().rstrip("=")

    salt = b"saltsalt"
    key = hashlib.scrypt(password, salt=salt, n=1 << 10, r=8, p=1, dklen=32)
    return f"$scrypt$ln=10,r=8,p=1${encoded(salt)}${encoded(key)}"


HASHES = {
    "argon2id": passwordfile._hasher.hash("two words"),
    "bcrypt": bcrypt.hashpw(b"two words", bcrypt.gensalt(4)).decode(),
    "sha512-crypt": sha512_crypt.using(rounds=1000).hash("two words"),
    "scrypt": scrypt(b"two words"),
    "plain": "{PLAIN}two words",
}


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


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "users"


@pytest.mark.parametrize("kind", HASHES)
def test_kinds(path: Path, kind: str) -> None:
    path.write_text(f"# a comment\n\nalice:{HASHES[kind]}\n")
    checker = PasswordFile(str(path), Inline())
    assert isGood(checker, "alice", "two words")
    for wrong in ("two word", "two words ", "", "x" * 200, HASHES[kind], "\udcff"):
        assert not isGood(checker, "alice", wrong)
    assert not isGood(checker, "Alice", "two words")
    assert not isGood(checker, "bob", "two words")


def test_longPasswords(path: Path) -> None:
    addUser(str(path), "alice", "ä" * 100 + "x")
    checker = PasswordFile(str(path), Inline())
    assert isGood(checker, "alice", "ä" * 100 + "x")
    assert not isGood(checker, "alice", "ä" * 100)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("alice", "no colon"),
        (":x", "a user name is"),
        ("a b:{PLAIN}x", "a user name is"),
        ("alice:", "no known kind"),
        ("alice:secret", "no known kind"),
        ("alice:$1$abc$def", "no known kind"),
        ("alice:$argon2id$nonsense", "malformed argon2"),
        ("alice:$2b$04$short", "malformed bcrypt"),
        ("alice:$2b$99$" + "a" * 53, "malformed bcrypt"),
        ("alice:$6$", "malformed sha512-crypt"),
        ("alice:$6$rounds=x$a$b", "malformed sha512-crypt"),
        ("alice:$scrypt$ln=10$x$y", "malformed scrypt"),
        ("alice:$scrypt$ln=30,r=8,p=1$c2FsdA$" + "a" * 43, "out of bounds"),
        ("alice:{PLAIN}", "empty password"),
        ("bob:{PLAIN}x", "there already"),
    ],
)
def test_malformed(path: Path, line: str, says: str) -> None:
    """
    The line is named by its number; what stands in it is not repeated.
    """
    path.write_text(f"bob:{HASHES['argon2id']}\n# comment\n{line}\n")
    with pytest.raises(ValueError, match=says) as caught:
        PasswordFile(str(path), Inline())
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert "$" not in str(caught.value)


def test_missingFile(path: Path) -> None:
    with pytest.raises(ValueError, match="No such file"):
        PasswordFile(str(path), Inline())
    path.mkdir()
    with pytest.raises(ValueError, match="Is a directory"):
        readPasswordFile(str(path))


@pytest.mark.parametrize(("kind", "module"), [("bcrypt", "bcrypt"), ("sha512-crypt", "passlib")])
def test_missingExtra(path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, module: str) -> None:
    path.write_text(f"alice:{HASHES[kind]}\n")
    original = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.startswith(module):
            raise ImportError(name)
        return original(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"line 1: .* pip install 'pop3svc\[hashes\]'"):
        PasswordFile(str(path), Inline())


def test_reread(path: Path) -> None:
    """
    Changes count at the next login; a malformed file changes nothing.
    """
    addUser(str(path), "alice", "one")
    checker = PasswordFile(str(path), Inline())
    setPassword(str(path), "alice", "two")
    addUser(str(path), "bob", "three")
    assert not isGood(checker, "alice", "one")
    assert isGood(checker, "alice", "two")
    assert isGood(checker, "bob", "three")
    seen: list[Any] = []
    globalLogPublisher.addObserver(seen.append)
    good = path.read_text()
    path.write_text("nonsense\n")
    assert isGood(checker, "bob", "three")
    path.unlink()
    assert isGood(checker, "bob", "three")
    globalLogPublisher.removeObserver(seen.append)
    errors = [event["error"] for event in seen if "error" in event]
    assert errors == [f"{path}, line 1: no colon", f"{path}: No such file or directory"]
    path.write_text(good)
    removeUser(str(path), "bob")
    assert not isGood(checker, "bob", "three")


def test_plainIsWarnedAbout(path: Path) -> None:
    path.write_text("alice:{PLAIN}x\n")
    seen: list[Any] = []
    globalLogPublisher.addObserver(seen.append)
    PasswordFile(str(path), Inline())
    globalLogPublisher.removeObserver(seen.append)
    assert [event["count"] for event in seen if "not hashed" in event.get("log_format", "")] == [1]


def test_unknownUsersCostTheSame(path: Path) -> None:
    """
    One hash is verified for each attempt, of a kind that the file holds.
    """
    verified: list[str] = []

    class Counting(Inline):
        def run(
            self, work: Any, *arguments: Any, abandoned: Any = None, group: Any = None
        ) -> Deferred[Any]:
            verified.append(arguments[0])
            return super().run(work, *arguments)

    path.write_text("".join(f"user{n}:{HASHES['scrypt']}\n" for n in range(3)))
    checker = PasswordFile(str(path), Counting())
    for name in ("user0", "nobody", "nobody", "\udcff", ""):
        assert isGood(checker, name, "two words") is (name == "user0") if name != "\udcff" else True
    assert len(verified) == 4
    assert set(verified) == {HASHES["scrypt"]}
    path.write_text("")
    assert not isGood(checker, "nobody", "x")
    assert verified[-1].startswith("$argon2id$")


def test_busy(path: Path) -> None:
    addUser(str(path), "alice", "x")
    workers = Workers("test", threads=0, waiting=0)
    answer = ask(PasswordFile(str(path), workers), "alice", "x")
    assert answer.check(POP3ResponseError)
    assert answer.value.code == "SYS/TEMP"


def test_editing(path: Path) -> None:
    """
    Atomic, private, and what else stands in the file stays.
    """
    path.write_text("# ours\nbob:{PLAIN}x\n\n# the end")
    path.chmod(0o644)
    before = path.stat().st_ino
    addUser(str(path), "alice", "p w ")
    lines = path.read_text().split("\n")
    assert lines[:4] == ["# ours", "bob:{PLAIN}x", "", "# the end"]
    assert lines[4].startswith("alice:$argon2id$")
    assert lines[5:] == [""]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_ino != before
    assert [each.name for each in path.parent.iterdir()] == ["users"]
    setPassword(str(path), "bob", "new")
    assert path.read_text().split("\n")[1].startswith("bob:$argon2id$")
    removeUser(str(path), "alice")
    assert list(readPasswordFile(str(path))) == ["bob"]
    for wrong, says in (
        (lambda: addUser(str(path), "bob", "x"), "there is a user bob already"),
        (lambda: setPassword(str(path), "eve", "x"), "there is no user eve"),
        (lambda: removeUser(str(path), "eve"), "there is no user eve"),
        (lambda: addUser(str(path), "a:b", "x"), "a user name is"),
        (lambda: addUser(str(path), "eve", ""), "an empty password"),
        (lambda: addUser(str(path), "eve", "a\tb"), "no control characters"),
    ):
        text = path.read_text()
        with pytest.raises(ValueError, match=says):
            wrong()
        assert path.read_text() == text


def test_editingALink(path: Path, tmp_path: Path) -> None:
    """
    What a link names is written, the link stays.
    """
    target = tmp_path / "elsewhere"
    target.mkdir()
    (target / "real").write_text("")
    path.symlink_to(target / "real")
    addUser(str(path), "alice", "x")
    assert path.is_symlink()
    assert list(readPasswordFile(str(target / "real"))) == ["alice"]


def test_editingFails(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text("alice:{PLAIN}x\n")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match="No space left"):
        addUser(str(path), "bob", "x")
    assert path.read_text() == "alice:{PLAIN}x\n"
    assert [each.name for each in path.parent.iterdir()] == ["users"]
    with pytest.raises(ValueError, match="Not a directory"):
        addUser(str(path / "x" / "y"), "bob", "x")


@pytest.mark.parametrize("name", ["", "a b", "a:b", "#a", "a\n", "\udcff", "a\u2028"])
def test_badNames(name: str) -> None:
    with pytest.raises(ValueError, match="a user name is"):
        checkUserName(name)


def test_passwordsOfAnyLength(path: Path) -> None:
    """
    What is too long is wrong, whatever the kind of the hash.
    """
    for kind, stored in HASHES.items():
        path.write_text(f"alice:{stored}\n")
        checker = PasswordFile(str(path), Inline())
        assert not isGood(checker, "alice", "two words" + "x" * 8000), kind
    with pytest.raises(ValueError, match="at most 1024 octets"):
        addUser(str(path), "bob", "x" * 1025)


def test_notAFile(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name in (str(tmp_path / "fifo"), "/dev/zero"):
        with pytest.raises(ValueError, match="is not a file"):
            PasswordFile(name, Inline())


def test_readAgainAfterAFault(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A change that could not be read is read later.
    """
    addUser(str(path), "alice", "one")
    checker = PasswordFile(str(path), Inline())
    setPassword(str(path), "alice", "two")

    def broken(name: str) -> str:
        raise ValueError("Too many open files")

    monkeypatch.setattr(passwordfile, "_read", broken)
    assert isGood(checker, "alice", "one")
    monkeypatch.undo()
    assert isGood(checker, "alice", "two")
