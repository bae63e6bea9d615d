"""
The file of hashed passwords.
"""

from __future__ import annotations

import base64
import builtins
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from argon2.low_level import Type, hash_secret
from passlib.hash import sha512_crypt
from twisted.cred.credentials import UsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher

from pop3svc.accounts import hashes, passwordfile
from pop3svc.accounts.checkers import AccountsProvider
from pop3svc.accounts.passwordediting import addUser, removeUser, setPassword
from pop3svc.accounts.passwordfile import Accounts, PasswordFile, readPasswordFile
from pop3svc.accounts.passwordlines import checkUserName
from pop3svc.credentials import IPasswordAttempt, PasswordAttempt
from pop3svc.errors import POP3ResponseError
from pop3svc.protocol.session import ConnectionInfo
from pop3svc.providers.memory import MemoryStore
from pop3svc.testing import Inline
from pop3svc.threadpool import BoundedThreadPool
from tests.support.passwords import ask, isGood


def scrypt(password: bytes) -> str:
    def encoded(octets: bytes) -> str:
        return base64.b64encode(octets).decode().rstrip("=")

    salt = b"saltsalt"
    key = hashlib.scrypt(password, salt=salt, n=1 << 10, r=8, p=1, dklen=32)
    return f"$scrypt$ln=10,r=8,p=1${encoded(salt)}${encoded(key)}"


# Constant, because the names of tests contain them.
HASHES = {
    "argon2id": hash_secret(b"two words", b"saltsalt" * 2, 3, 65536, 4, 32, Type.ID).decode(),
    "bcrypt": bcrypt.hashpw(b"two words", b"$2b$04$" + b"saltsaltsaltsaltsaltsO").decode(),
    "sha512-crypt": sha512_crypt.using(rounds=1000, salt="saltsalt").hash("two words"),
    "scrypt": scrypt(b"two words"),
    "plain": "{PLAIN}two words",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "users"


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """
    The log messages.
    """
    seen: list[str] = []

    def observer(event: Any) -> None:
        seen.append(formatEvent(event))

    globalLogPublisher.addObserver(observer)
    yield seen
    globalLogPublisher.removeObserver(observer)


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
        ("alice", "ignored: no colon"),
        (":x", "ignored: a user name is"),
        ("a b:{PLAIN}x", "ignored: a user name is"),
        ("alice:", "unknown kind"),
        ("alice:secret", "unknown kind"),
        ("alice:$1$abc$def", "malformed md5-crypt"),
        ("alice:$argon2id$nonsense", "malformed argon2"),
        ("alice:" + HASHES["argon2id"][:-1], "malformed argon2"),
        ("alice:" + HASHES["argon2id"].replace("m=", "n="), "malformed argon2"),
        ("alice:" + HASHES["argon2id"] + "\u00b2", "unknown kind"),
        ("alice:$2b$04$short", "malformed bcrypt"),
        ("alice:$2b$99$" + "O" * 53, "out of bounds"),
        ("alice:$2b$04$" + "a" * 53, "malformed bcrypt"),
        ("alice:$6$", "malformed sha512-crypt"),
        ("alice:$6$rounds=x$a$b", "malformed sha512-crypt"),
        ("alice:$scrypt$ln=10$x$y", "malformed scrypt"),
        ("alice:$scrypt$ln=10,r=8,p=1$c2FsdAA$" + "a" * 41, "malformed scrypt"),
        ("alice:{PLAIN}", "an empty password"),
        ("alice:{PLAIN}" + "x" * 3000, "more than 2048 characters"),
        ("bob:{PLAIN}x", "ignored: the user name is listed twice"),
    ],
)
def test_badLine(path: Path, lines: list[str], line: str, says: str) -> None:
    """
    A bad line affects only its own user.  It is logged once, without its content.
    """
    path.write_text(f"bob:{HASHES['scrypt']}\n# comment\n{line}\ncarol:{HASHES['scrypt']}\n")
    checker = PasswordFile(str(path), Inline())
    name = line.partition(":")[0]
    if says.startswith("ignored"):
        beginning = f"{path}, line 3: ignored: "
    else:
        beginning = f"{path}, line 3: {name} cannot log in: "
        assert not isGood(checker, name, "two words")
    assert isGood(checker, "bob", "two words")
    assert isGood(checker, "carol", "two words")
    # The file changes, but not the bad line.
    with path.open("a") as file:
        file.write("dave:{PLAIN}x\n")
    assert isGood(checker, "dave", "x")
    complaints = [each for each in lines if "line 3" in each]
    assert len(complaints) == 1
    assert complaints[0].startswith(beginning) and says in complaints[0]
    assert complaints[0].endswith(f"(supported kinds: {hashes.KINDS})")
    said = complaints[0].removeprefix(str(path))
    assert "secret" not in said and "xxx" not in said


def test_mendedLine(path: Path, lines: list[str]) -> None:
    """
    A corrected line counts; a line that is broken again is logged again.
    """
    checker = None
    for text in ("alice:x\n", "alice:{PLAIN}x\n", "alice:xx\n"):
        path.write_text(text)
        checker = checker or PasswordFile(str(path), Inline())
        assert isGood(checker, "alice", "x") is ("PLAIN" in text)
    assert sum("cannot log in" in each for each in lines) == 2


def test_goodLineAfterABadOne(path: Path) -> None:
    """
    The first line of a name counts, even if it is the bad one.
    """
    path.write_text("alice:$1$x\nalice:{PLAIN}x\nbob:{PLAIN}x\n")
    checker = PasswordFile(str(path), Inline())
    assert not isGood(checker, "alice", "x")
    assert isGood(checker, "bob", "x")
    assert [each.number for each in readPasswordFile(str(path)).badLines] == [1, 2]


def test_manyBadLines(path: Path, lines: list[str]) -> None:
    """
    A file of another format does not fill the log.
    """
    path.write_text("".join(f"user{each}\tx\n" for each in range(1500)) + "bob:{PLAIN}x\n")
    assert isGood(PasswordFile(str(path), Inline()), "bob", "x")
    assert len([each for each in lines if "no colon" in each]) == 1000
    assert f"{path}: 500 more lines cannot be used" in lines
    assert readPasswordFile(str(path)).complaints()[-1] == "500 more lines cannot be used"


@pytest.mark.parametrize(
    "stored",
    [
        HASHES["argon2id"].replace("m=65536", "m=4194304"),
        HASHES["argon2id"].replace("m=65536", "m=1"),
        HASHES["argon2id"].replace("t=3", "t=0"),
        HASHES["argon2id"].replace("t=3", "t=65"),
        HASHES["argon2id"].replace("t=3", "t=99999999"),
        HASHES["argon2id"].replace("m=65536,t=3", "m=1048576,t=5"),
        HASHES["argon2id"].replace("p=4", "p=65"),
        "$2b$17$" + "O" * 53,
        "$2b$31$" + "O" * 53,
        "$2b$03$" + "O" * 53,
        "$6$rounds=5000001$saltsalt$" + "a" * 86,
        "$6$rounds=999999999$saltsalt$" + "a" * 86,
        "$scrypt$ln=21,r=8,p=1$c2FsdA$" + "a" * 43,
        "$scrypt$ln=20,r=9,p=1$c2FsdA$" + "a" * 43,
        "$scrypt$ln=20,r=8,p=2$c2FsdA$" + "a" * 43,
        "$scrypt$ln=19,r=32,p=1$c2FsdA$" + "a" * 43,
    ],
)
def test_extremeHash(path: Path, stored: str) -> None:
    """
    A hash that would cost minutes or all memory is rejected when the file is read.
    """
    with pytest.raises(ValueError, match="out of bounds"):
        hashes.HASHES.costOf(stored)
    path.write_text(f"alice:{stored}\nbob:{HASHES['scrypt']}\n")
    checker = PasswordFile(str(path), Inline())
    for name in ("alice", "nobody"):
        assert not isGood(checker, name, "x")
    assert isGood(checker, "bob", "two words")


@pytest.mark.parametrize("kind", HASHES)
def test_usualHash(kind: str) -> None:
    assert 0 <= hashes.HASHES.costOf(HASHES[kind]) < 1000


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
    assert not isGood(PasswordFile(str(path), Inline()), "alice", "two words")
    (complaint,) = readPasswordFile(str(path)).complaints()
    assert complaint.startswith("line 1: alice cannot log in: a hash that needs ")
    assert complaint.endswith("pip install 'pop3svc[hashes]'")


def test_reread(path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Changes take effect at the next login; the accounts stay if the file cannot be read.
    """
    monkeypatch.setattr(PasswordFile, "RETRY", 0)
    addUser(str(path), "alice", "one")
    checker = PasswordFile(str(path), Inline())
    setPassword(str(path), "alice", "two")
    addUser(str(path), "bob", "three")
    assert not isGood(checker, "alice", "one")
    assert isGood(checker, "alice", "two")
    assert isGood(checker, "bob", "three")
    good = path.read_text()
    path.unlink()
    for _ in range(3):
        assert isGood(checker, "bob", "three")
    faults = [each for each in lines if "keeping the previous accounts" in each]
    assert faults == [f"keeping the previous accounts: {path}: No such file or directory"]
    # Removals take effect, even if the file has bad lines.
    path.write_text(good + "nonsense\n")
    assert isGood(checker, "bob", "three")
    removeUser(str(path), "bob")
    assert not isGood(checker, "bob", "three")


class Slowly(Inline):
    """
    Runs work when the test calls for it.
    """

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []
        self.count = 0

    def run(self, work: Any, *arguments: Any, **named: Any) -> Deferred[Any]:
        self.count += 1
        result: Deferred[Any] = Deferred()
        self.waiting.append(lambda: result.callback(work(*arguments)))
        return result


def attempt(checker: PasswordFile, name: str, password: str) -> list[Any]:
    """
    @return: the outcome, empty until there is one.
    """
    got: list[Any] = []
    credentials = UsernamePassword(name.encode(), password.encode())
    maybeDeferred(checker.requestAvatarId, credentials).addBoth(got.append)
    return got


def test_readInAThread(path: Path) -> None:
    """
    The file is read once for all logins that arrive meanwhile.  No login waits longer than
    five seconds; after that the old entries count.
    """
    path.write_text("alice:{PLAIN}one\nbob:{PLAIN}x\n")
    clock, runner = Clock(), Slowly()
    checker = PasswordFile(str(path), runner, clock)
    path.write_text("alice:{PLAIN}three\n")
    answers = [attempt(checker, "alice", "three"), attempt(checker, "bob", "x")]
    assert answers == [[], []] and runner.count == 1
    runner.waiting.pop()()
    assert answers[0] == [b"alice"] and answers[1][0].check(UnauthorizedLogin)
    path.write_text("alice:{PLAIN}fourth\n")
    late = attempt(checker, "alice", "three")
    clock.advance(PasswordFile.PATIENCE)
    assert late == [b"alice"]
    runner.waiting.pop()()
    assert attempt(checker, "alice", "fourth") == [b"alice"]
    # An unchanged file is not read.
    assert runner.count == 2
    assert clock.getDelayedCalls() == []


def test_notReadAgainAndAgain(path: Path) -> None:
    """
    An unreadable file is not read again for every guess.
    """
    path.write_text("alice:{PLAIN}x\n")
    runner = Slowly()
    checker = PasswordFile(str(path), runner, Clock())
    path.unlink()
    for _ in range(50):
        attempt(checker, "alice", "x")
        while runner.waiting:
            runner.waiting.pop()()
    assert runner.count == 1


def test_tooLarge(path: Path) -> None:
    path.write_text("alice:{PLAIN}x\n")
    os.truncate(path, (256 << 20) + 1)
    with pytest.raises(ValueError, match="is larger than 268435456 octets"):
        PasswordFile(str(path), Inline())


def test_plainIsWarnedAbout(path: Path) -> None:
    path.write_text("alice:{PLAIN}x\n")
    seen: list[Any] = []
    globalLogPublisher.addObserver(seen.append)
    PasswordFile(str(path), Inline())
    globalLogPublisher.removeObserver(seen.append)
    assert [event["count"] for event in seen if "not hashed" in event.get("log_format", "")] == [1]


class Counting(Inline):
    """
    Records the hashes with which passwords are compared.
    """

    # Comparisons that are really made.
    MOST = 10

    def __init__(self) -> None:
        self.verified: list[str] = []

    def run(self, work: Any, *arguments: Any, **named: Any) -> Deferred[Any]:
        if len(arguments) == 3:
            self.verified.append(arguments[0])
            if len(self.verified) > self.MOST:
                # The hashes may be extreme.
                return succeed(False)
        return super().run(work, *arguments)


def test_unknownUsersCostTheSame(path: Path) -> None:
    """
    Each attempt verifies one hash, of a kind that the file holds.
    """
    runner = Counting()
    path.write_text("".join(f"user{n}:{HASHES['scrypt']}\n" for n in range(3)))
    checker = PasswordFile(str(path), runner)
    for name in ("user0", "nobody", "nobody", "\udcff", ""):
        assert isGood(checker, name, "two words") is (name == "user0") if name != "\udcff" else True
    assert runner.verified == [HASHES["scrypt"]] * 4
    path.write_text("")
    assert not isGood(checker, "nobody", "x")
    assert runner.verified[-1].startswith("$argon2id$")


def test_unknownUsersCostWhatIsUsual(path: Path) -> None:
    """
    Neither the costliest nor the cheapest extreme hash is the stand-in.
    """
    dear = HASHES["argon2id"].replace("m=65536,t=3", "m=1048576,t=4")
    runner = Counting()
    runner.MOST = 0
    for others in ([dear], [dear, HASHES["plain"]], [dear] * 2 + [HASHES["plain"]]):
        usual = [HASHES["scrypt"]] * max(1, len(others))
        path.write_text("".join(f"user{n}:{each}\n" for n, each in enumerate([*others, *usual])))
        checker = PasswordFile(str(path), runner)
        for number in range(50):
            assert not isGood(checker, f"nobody{number}", "x")
    assert set(runner.verified) == {HASHES["scrypt"]}


def test_comparisonThatFails(path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """
    If memory is short, nothing is compared.  The login gets SYS/TEMP, not the refusal of a wrong
    password, and the error is logged once.
    """

    def fails(reader: Any, stored: str, password: bytes, username: str) -> bool:
        raise MemoryError(password)

    path.write_text(f"alice:{HASHES['scrypt']}\n")
    checker = PasswordFile(str(path), Inline())
    monkeypatch.setattr(hashes.HashReader, "verify", fails)
    for _ in range(3):
        answer = ask(checker, "alice", "two words")
        assert answer.check(POP3ResponseError) and answer.value.code == "SYS/TEMP"
    assert [each for each in lines if "comparing" in each] == [
        f"comparing a password of {path} failed: MemoryError"
    ]


@pytest.mark.parametrize("kind", HASHES)
def test_passwordWithNUL(path: Path, kind: str) -> None:
    path.write_text(f"alice:{HASHES[kind]}\n")
    checker = PasswordFile(str(path), Inline())
    for password in ("two words\0", "two\0 words", "\0"):
        assert not isGood(checker, "alice", password)


def test_tellsWhenItCompares(path: Path) -> None:
    """
    An attempt does not count as a guess while its password waits in the queue.
    """
    assert IPasswordAttempt in PasswordFile.credentialInterfaces

    class Attempt:
        isFromKnownNetwork = isGuess = wasRefused = False

    for kind in ("scrypt", "plain"):
        path.write_text(f"alice:{HASHES[kind]}\n")
        runner = Slowly()
        checker = PasswordFile(str(path), runner, Clock())
        attempts = [Attempt() for _ in range(3)]
        for each in attempts:
            credentials = PasswordAttempt(b"alice", b"x", each)
            maybeDeferred(checker.requestAvatarId, credentials).addErrback(lambda _: None)
        # Two are hashed concurrently.
        count = 2 if kind == "scrypt" else 3
        assert [each.isGuess for each in attempts] == [True] * count + [False] * (3 - count)


def test_busy(path: Path) -> None:
    addUser(str(path), "alice", "x")
    workers = BoundedThreadPool("test", threads=0, waiting=0)
    answer = ask(PasswordFile(str(path), workers), "alice", "x")
    assert answer.check(POP3ResponseError)
    assert answer.value.code == "SYS/TEMP"


def test_editing(path: Path) -> None:
    """
    Writing is atomic and private, and keeps the other lines.
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
    assert list(readPasswordFile(str(path)).hashes) == ["bob"]
    for wrong, says in (
        (lambda: addUser(str(path), "bob", "x"), "there is already a user bob"),
        (lambda: setPassword(str(path), "eve", "x"), "there is no user eve"),
        (lambda: removeUser(str(path), "eve"), "there is no user eve"),
        (lambda: addUser(str(path), "a:b", "x"), "a user name is"),
        (lambda: addUser(str(path), "eve", ""), "the password is empty"),
        (lambda: addUser(str(path), "eve", "a\tb"), "must not contain control characters"),
    ):
        text = path.read_text()
        with pytest.raises(ValueError, match=says):
            wrong()
        assert path.read_text() == text


def test_editingALink(path: Path, tmp_path: Path) -> None:
    """
    Editing a symbolic link writes its target and keeps the link.
    """
    target = tmp_path / "elsewhere"
    target.mkdir()
    (target / "real").write_text("")
    path.symlink_to(target / "real")
    addUser(str(path), "alice", "x")
    assert path.is_symlink()
    assert list(readPasswordFile(str(target / "real")).hashes) == ["alice"]


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
    A password that is too long is wrong, for each kind of hash.
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
        with pytest.raises(ValueError, match="Not a regular file"):
            PasswordFile(name, Inline())


def test_readAgainAfterAFault(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A change that could not be read is read later.
    """
    monkeypatch.setattr(PasswordFile, "RETRY", 0)
    addUser(str(path), "alice", "one")
    checker = PasswordFile(str(path), Inline())
    setPassword(str(path), "alice", "two")

    def broken(name: str) -> Accounts:
        raise ValueError("Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(passwordfile, "readPasswordFile", broken)
        assert isGood(checker, "alice", "one")
    assert isGood(checker, "alice", "two")


def test_editingAFileWithBadLines(path: Path) -> None:
    """
    Bad lines stay unchanged; setting a user's password replaces the user's bad line.
    """
    path.write_bytes(b"nonsense\nalice:$1$old\nbob:{PLAIN}x\nbob:{PLAIN}y\n\xff")
    before = path.read_bytes()
    addUser(str(path), "carol", "z")
    assert path.read_bytes().startswith(before + b"\n")
    setPassword(str(path), "alice", "new")
    checker = PasswordFile(str(path), Inline())
    assert isGood(checker, "alice", "new")
    # All lines of the name are removed.
    setPassword(str(path), "bob", "new")
    assert path.read_text(errors="surrogateescape").count("bob:") == 1
    removeUser(str(path), "bob")
    with pytest.raises(ValueError, match="there is already a user alice"):
        addUser(str(path), "alice", "x")
    assert path.read_text(errors="surrogateescape").startswith("nonsense\nalice:$argon2id$")


# --- lines of Dovecot -----------------------------------------------------------


# The answers of Dovecot 2.3.19 to "doveadm auth test -x rip=ADDRESS NAME PASSWORD": True and False
# for the password, and None for a user with the field nologin.
DOVECOT = [
    ("{PLAIN}one", "192.0.2.7", "one", True),
    ("{PLAIN}one:1000:1000:Full Name:/home/full:/bin/sh:", "192.0.2.7", "one", True),
    ("{PLAIN}one:two", "192.0.2.7", "one", True),
    ("{PLAIN}one:two", "192.0.2.7", "one:two", False),
    ("{PLAIN}one::::::", "192.0.2.7", "one", True),
    ("{PLAIN}one::::::nologin", "192.0.2.7", "one", None),
    ("{PLAIN}one::::::nologin", "192.0.2.7", "two", False),
    ("{PLAIN}one::::::nologin=no", "192.0.2.7", "one", None),
    ("{PLAIN}one::::::nologin=", "192.0.2.7", "one", None),
    ("{PLAIN}one::::::allow_nets=192.0.2.0/24,2001:db8::/32", "192.0.2.7", "one", True),
    ("{PLAIN}one::::::allow_nets=192.0.2.0/24,2001:db8::/32", "192.0.2.7", "two", False),
    ("{PLAIN}one::::::allow_nets=192.0.2.0/24,2001:db8::/32", "2001:db8::1", "one", True),
    ("{PLAIN}one::::::allow_nets=192.0.2.0/24,2001:db8::/32", "198.51.100.1", "one", False),
    ("{PLAIN}one::::::allow_nets=192.0.2.0/24,2001:db8::/32", None, "one", False),
    ("{PLAIN}one::::::userdb_quota=x allow_nets=192.0.2.5/24 more=1", "192.0.2.7", "one", True),
    ("{PLAIN}one::::::allow_nets=", "192.0.2.7", "one", False),
    ("{PLAIN}one::::::allow_nets=anywhere", "192.0.2.7", "one", False),
    ("{PLAIN}one:::::::nologin", "192.0.2.7", "one", True),
    ("{PLAIN}one:::::::maildir:/mail nologin", "192.0.2.7", "one", True),
    ("{PLAIN}one:::::nologin", "192.0.2.7", "one", True),
    ("", "192.0.2.7", "one", False),
    (":1000:1000::/home/full", "192.0.2.7", "one", False),
]


def login(checker: PasswordFile, password: str, clientIP: str | None) -> Any:
    got: list[Any] = []
    credentials = PasswordAttempt(b"ann", password.encode(), clientIP=clientIP)
    maybeDeferred(checker.requestAvatarId, credentials).addBoth(got.append)
    return got[0]


@pytest.mark.parametrize(("rest", "clientIP", "password", "answer"), DOVECOT)
def test_linesOfDovecot(
    path: Path, rest: str, clientIP: str | None, password: str, answer: bool | None
) -> None:
    path.write_text(f"ann:{rest}\nben:{{PLAIN}}one\n")
    checker = PasswordFile(str(path), Inline())
    got = login(checker, password, clientIP)
    if answer:
        assert got == b"ann"
    elif answer is None:
        assert got.check(POP3ResponseError)
        assert (got.value.text, got.value.code) == ("Login is disabled.", "SYS/PERM")
    else:
        assert got.check(UnauthorizedLogin)
    assert isGood(checker, "ben", "one")


def test_reasonOfNologin(path: Path) -> None:
    path.write_text("ann:{PLAIN}one::::::nologin=Ask-the-office\n")
    got = login(PasswordFile(str(path), Inline()), "one", None)
    assert got.value.text == "Ask-the-office"


def test_badNetworks(path: Path, lines: list[str]) -> None:
    path.write_text("ann:{PLAIN}one::::::allow_nets=secretnet\n")
    PasswordFile(str(path), Inline())
    (line,) = [each for each in lines if "cannot log in" in each]
    assert "line 1: ann cannot log in: a malformed list of networks" in line
    assert "secretnet" not in "".join(lines)


def test_barredWhileAsleep(path: Path) -> None:
    """
    A user whose line gets restrictions cannot wake up, and has neither keys for SCRAM nor a secret.
    """
    info = ConnectionInfo(1, "192.0.2.7", True)
    path.write_text("ann:{PLAIN}one\n")
    checker = PasswordFile(str(path), Inline())
    version = checker.credentialsVersion(info, "ann")
    assert checker.isStillValid(info, "ann", version) is True

    def hasKeys() -> bool:
        got: list[Any] = []
        for each in (
            checker.scramKeys(info, "ann", "sha256", b"salt" * 4),
            checker.sharedSecret(info, "ann"),
        ):
            Deferred.fromCoroutine(each).addBoth(got.append)
        assert (got[0] is None) == (got[1] is None)
        return got[0] is not None

    assert hasKeys()
    for field, mayLogIn in (
        ("nologin", False),
        ("allow_nets=198.51.100.0/24", False),
        ("allow_nets=192.0.2.7", True),
    ):
        path.write_text(f"ann:{{PLAIN}}one::::::{field}\n")
        checker.reload()
        assert checker.isStillValid(info, "ann", version) is False
        assert hasKeys() == mayLogIn
    # A version from the time at which the user is barred is not valid either.
    path.write_text("ann:{PLAIN}one::::::nologin\n")
    checker.reload()
    now = checker.credentialsVersion(info, "ann")
    assert checker.isStillValid(info, "ann", now) is False


def test_changedDuringALogin(path: Path) -> None:
    """
    A session whose login began before the password was changed has the version of the old password,
    whichever method the login used.
    """
    path.write_text(f"ann:{sha512_crypt.using(rounds=1000).hash('one')}\nben:{{PLAIN}}one\n")
    runner, clock = Slowly(), Clock()
    checker = PasswordFile(str(path), runner, clock)
    provider = AccountsProvider(MemoryStore({"ann": [], "ben": []}), [checker])
    ann, scram, apop = (ConnectionInfo(each, "192.0.2.7", True) for each in range(3))
    begun = [
        provider.authenticate(ann, "ann", "one"),
        provider.scramKeys(scram, "ben", "sha256", b"salt" * 4),
        provider.sharedSecret(apop, "ben"),
    ]
    begun = [Deferred.fromCoroutine(each) for each in begun]
    path.write_text("ann:{PLAIN}two\nben:{PLAIN}two\n")
    other = attempt(checker, "ann", "two")
    while runner.waiting:
        runner.waiting.pop()()
    assert other == [b"ann"] and all(each.called and each.result is not None for each in begun)
    for info, name in ((ann, "ann"), (scram, "ben"), (apop, "ben")):
        provider.openMailbox(info, name)
        version = provider.credentialsVersion(info, name)
        assert version and provider.isStillValid(info, name, version) is False


def test_changedDuringTheRead(path: Path) -> None:
    """
    A login does not use what was read before the file was changed.
    """

    class Late(Slowly):
        def run(self, work: Any, *arguments: Any, **named: Any) -> Deferred[Any]:
            read = work(*arguments)
            return super().run(lambda: read)

    path.write_text("ann:{PLAIN}one\n")
    runner = Late()
    checker = PasswordFile(str(path), runner, Clock())
    path.write_text("ann:{PLAIN}second\n")
    first = attempt(checker, "ann", "second")
    path.write_text("ann:{PLAIN}the third\n")
    later = attempt(checker, "ann", "second")
    assert first == later == [] and runner.count == 1
    while runner.waiting:
        runner.waiting.pop()()
    assert first[0].check(UnauthorizedLogin) and later[0].check(UnauthorizedLogin)
    assert attempt(checker, "ann", "the third") == [b"ann"] and runner.count == 2


def test_editingKeepsOtherFields(path: Path) -> None:
    rest = "1000:1000:Full Name:/home/ann:/bin/sh:nologin allow_nets=2001:db8::/32"
    path.write_text(f"ann:{{PLAIN}}x:{rest}\r\nann:second\nben:{{PLAIN}}x:\n")
    setPassword(str(path), "ann", "new")
    setPassword(str(path), "ben", "new", form="verifier")
    ann, ben = path.read_text().splitlines()
    assert ann.startswith("ann:$argon2id$") and ann.split(":", 2)[2] == rest
    assert ben.startswith("ben:{SCRAM-SHA-256}") and ben.endswith(":") and ben.count(":") == 2
