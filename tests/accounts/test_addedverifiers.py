"""
Verifiers that are added to a password file when users log in.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from passlib.hash import des_crypt
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from pop3svc.accounts import passwordediting, verifiers
from pop3svc.accounts.passwordediting import addVerifiers, setPassword
from pop3svc.accounts.passwordfile import PasswordFile, readPasswordFile
from pop3svc.accounts.passwordlines import verifiersIn, withVerifiers
from pop3svc.accounts.scramkeys import makeVerifier
from pop3svc.accounts.verifiers import VerifierAdder
from pop3svc.interfaces import IVerifierAdding
from pop3svc.protocol.session import ConnectionInfo
from pop3svc.testing import Inline
from tests.support.passwords import ask, hashed, isGood

HASH = hashed("pencil")
MECHANISMS = frozenset(["SCRAM-SHA-256", "SCRAM-SHA-1"])


class Later:
    """
    Runs work when it is told to.
    """

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def run(self, work: Callable[..., Any], *arguments: Any, **_: Any) -> Deferred[Any]:
        result: Deferred[Any] = Deferred()

        def perform() -> None:
            try:
                value = work(*arguments)
            except Exception:
                result.errback(Failure())
            else:
                result.callback(value)

        self.waiting.append(perform)
        return result

    def perform(self) -> None:
        self.waiting.pop(0)()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "users"


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """
    The algorithms of the verifiers that were made.
    """
    found: list[str] = []

    def make(password: str, algorithm: str) -> str:
        found.append(algorithm)
        return makeVerifier(password, algorithm)

    monkeypatch.setattr(verifiers, "makeVerifier", make)
    return found


def adding(path: Path, clock: Clock, mechanisms: frozenset[str] = MECHANISMS) -> PasswordFile:
    checker = PasswordFile(str(path), Inline(), clock)
    checker.addVerifiers(mechanisms)
    assert IVerifierAdding.providedBy(checker)
    return checker


def beside(path: Path, name: str = "ann") -> set[str]:
    """
    @return: the algorithms of a user's verifiers.
    """
    return set(readPasswordFile(str(path)).verifiers.get(name, {}))


def test_added(path: Path, made: list[str], logged: list[str]) -> None:
    """
    Verifiers are written together, ten seconds after the first login; the session stays valid.
    """
    path.write_text(f"# users\nann:{HASH}\nben:{HASH}:1:2:3:4:5:a=b\r\ncat:{HASH}\nbad\n")
    path.chmod(0o640)
    clock = Clock()
    checker = adding(path, clock)
    info = ConnectionInfo(1, "192.0.2.7", True)
    assert isGood(checker, "ann", "pencil")
    version = checker.credentialsVersion(info, "ann")
    assert not isGood(checker, "cat", "wrong") and not isGood(checker, "eve", "pencil")
    clock.advance(9)
    assert isGood(checker, "ben", "pencil") and isGood(checker, "ann", "pencil")
    assert beside(path) == set() and made == ["sha1", "sha256"] * 2
    clock.advance(1)
    assert beside(path) == beside(path, "ben") == {"sha1", "sha256"}
    assert beside(path, "cat") == set()
    lines = path.read_bytes().splitlines(keepends=True)
    assert logged[-1:] == [f"{path}: added verifiers of 2 users"]
    assert lines[0] == b"# users\n" and lines[4] == b"bad\n"
    assert lines[2].startswith(b"ben:" + HASH.encode() + b":1:2:3:4:5:a=b pop3svc_scram")
    assert lines[2].endswith(b"\r\n") and lines[1].endswith(b"\n")
    assert path.stat().st_mode & 0o777 == 0o640
    # Later logins add nothing.
    before = path.stat().st_ino
    assert isGood(checker, "ann", "pencil") and isGood(checker, "ben", "pencil")
    clock.advance(100)
    assert (path.stat().st_ino, len(made)) == (before, 4)
    assert checker.isStillValid(info, "ann", version) is True
    keys: list[Any] = []
    Deferred.fromCoroutine(checker.scramKeys(info, "ann", "sha256", b"s")).addBoth(keys.append)
    assert keys[0].rounds == 65_536


def test_off(path: Path, made: list[str]) -> None:
    path.write_text(f"ann:{HASH}\n")
    clock = Clock()
    for checker in (adding(path, clock, frozenset()), PasswordFile(str(path), Inline(), clock)):
        assert isGood(checker, "ann", "pencil")
        assert (made, clock.getDelayedCalls()) == ([], [])


@pytest.mark.parametrize(
    ("stored", "password"),
    [
        ("{PLAIN}pencil", "pencil"),
        (des_crypt.hash("pencilcase"), "pencilcase"),
        (des_crypt.hash("pencilcase"), "pencilca?"),
        (bcrypt.hashpw(b"x" * 72, bcrypt.gensalt(4)).decode(), "x" * 73),
        (hashed("\udcff"), "\udcff"),
        (hashed("\u00ad"), "\u00ad"),
    ],
    # The hashes are new in each process.
    ids=["plain", "DES", "DES with another end", "bcrypt", "no UTF-8", "soft hyphen"],
)
def test_noVerifier(path: Path, stored: str, password: str) -> None:
    """
    A password in the clear needs no verifier.  For the other passwords no verifier can be made, or
    it would be wrong.
    """
    path.write_text(f"ann:{stored}\n")
    clock = Clock()
    checker = adding(path, clock)
    for _ in range(2):
        assert isGood(checker, "ann", password)
        clock.advance(20)
    assert path.read_text() == f"ann:{stored}\n"


def test_wholePasswords(path: Path) -> None:
    path.write_text(
        f"ann:{des_crypt.hash('12345678')}\nben:{bcrypt.hashpw(b'x', bcrypt.gensalt(4)).decode()}\n"
        f"cat:{makeVerifier('x')}\n"
    )
    clock = Clock()
    checker = adding(path, clock)
    assert isGood(checker, "ann", "12345678") and isGood(checker, "ben", "x")
    assert isGood(checker, "cat", "x")
    clock.advance(10)
    assert beside(path) == beside(path, "ben") == {"sha1", "sha256"}
    assert beside(path, "cat") == {"sha1"}


@pytest.mark.parametrize("field", ["nologin", "allow_nets=192.0.2.1"])
def test_refused(path: Path, made: list[str], field: str) -> None:
    path.write_text(f"ann:{HASH}::::::{field}\n")
    ask(adding(path, Clock()), "ann", "pencil")
    assert made == []


def test_changedMeanwhile(path: Path) -> None:
    """
    A password that changes before the write gets no verifier of the old one, and the others do.
    """
    path.write_text(f"ann:{HASH}\nben:{HASH}\ncat:{HASH}\n")
    clock = Clock()
    checker = adding(path, clock)
    for name in ("ann", "ben", "cat"):
        assert isGood(checker, name, "pencil")
    setPassword(str(path), "ann", "brush")
    passwordediting.removeUser(str(path), "cat")
    with path.open("a") as file:
        file.write("dan:{PLAIN}x\n")
    clock.advance(10)
    assert (beside(path), beside(path, "ben")) == (set(), {"sha1", "sha256"})
    assert list(readPasswordFile(str(path)).hashes) == ["ann", "ben", "dan"]
    assert isGood(checker, "ann", "brush")
    clock.advance(10)
    assert beside(path) == {"sha1", "sha256"}


def test_otherWorker(path: Path) -> None:
    """
    What another process has added stays; if nothing is missing, the file is not written.
    """
    path.write_text(f"ann:{HASH}\n")
    first = passwordediting.Proved(HASH, {"sha256": makeVerifier("pencil")})
    addVerifiers(str(path), {"ann": first})
    before = path.read_text(), path.stat().st_ino
    addVerifiers(
        str(path), {"ann": passwordediting.Proved(HASH, {"sha256": makeVerifier("pencil")})}
    )
    assert (path.read_text(), path.stat().st_ino) == before
    sha1 = makeVerifier("pencil", "sha1")
    addVerifiers(str(path), {"ann": passwordediting.Proved(HASH, {"sha1": sha1})})
    fields = path.read_text().rstrip("\n").split(":", 2)[2]
    assert verifiersIn(HASH, fields) == {**first.verifiers, "sha1": sha1}


def test_firstLine(path: Path) -> None:
    """
    The first line of a user counts, as for a login; an old form stays.
    """
    old = f"ben:{HASH}:::::::/var/mail/ben\n"
    path.write_text(f"#ann:{HASH}\nann\nann:{HASH}\nann:{HASH}\n{old}")
    proved = passwordediting.Proved(HASH, {"sha1": makeVerifier("pencil", "sha1")})
    addVerifiers(str(path), {"ann": proved, "ben": proved, "cat": proved})
    lines = path.read_text().splitlines(keepends=True)
    assert ["pop3svc" in each for each in lines] == [False, False, True, False, False]
    assert lines[4] == old


def test_failure(path: Path, logged: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A file that cannot be written is reported once, and written later.
    """
    path.write_text(f"ann:{HASH}\nben:{HASH}\n")
    clock = Clock()
    checker = adding(path, clock)
    assert isGood(checker, "ann", "pencil")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space")))
        clock.advance(10)
        assert isGood(checker, "ben", "pencil")
        clock.advance(300)
    assert logged == [f"no verifiers are added: {path}: No space"]
    assert beside(path) == set() and len(list(path.parent.iterdir())) == 1
    clock.advance(300)
    assert beside(path) == beside(path, "ben") == {"sha1", "sha256"}


def test_notBlocking(path: Path) -> None:
    """
    A login waits neither for the computation nor for the write; logins meanwhile add once.
    """
    path.write_text(f"ann:{HASH}\n")
    clock, later = Clock(), Later()
    checker: Any = PasswordFile(str(path), Inline(), clock)
    checker._adder = adder = VerifierAdder(str(path), ["sha1"], later, clock)  # type: ignore[arg-type]
    for _ in range(3):
        assert isGood(checker, "ann", "pencil")
    assert len(later.waiting) == 1
    later.perform()
    clock.advance(10)
    assert len(later.waiting) == 1
    adder.proved("ben", b"x", hashed("x"), ())
    later.waiting.reverse()
    later.perform()
    assert beside(path) == set()
    later.perform()
    assert beside(path) == {"sha1"}
    # A verifier that was made during the write is written next.
    assert clock.getDelayedCalls()


def test_bounds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, later = Clock(), Later()
    monkeypatch.setattr(VerifierAdder, "MOST", 2)
    adder = VerifierAdder(str(path), ["sha1"], later, clock)  # type: ignore[arg-type]
    monkeypatch.setattr(verifiers, "_MOST_COMPUTED", 3)
    for number in range(5):
        adder.proved(f"user{number}", b"x", HASH, ())
    assert len(later.waiting) == 3
    while later.waiting:
        later.perform()
    adder.proved("other", b"x", HASH, ())
    assert later.waiting == []


def test_noThread(path: Path, logged: list[str]) -> None:
    """
    If no thread is free, a later login tries again.
    """
    path.write_text(f"ann:{HASH}\n")

    class Busy(Inline):
        isBusy = True

        def run(self, *arguments: Any, **named: Any) -> Any:
            if self.isBusy:
                raise RuntimeError("busy")
            return super().run(*arguments, **named)

    clock, busy = Clock(), Busy()
    adder = VerifierAdder(str(path), ["sha1"], busy, clock)
    adder.proved("ann", b"pencil", HASH, ())
    assert logged == ["no verifier can be computed: busy"]
    busy.isBusy = False
    adder.proved("ann", b"pencil", HASH, ())
    clock.advance(10)
    assert beside(path) == {"sha1"}


def test_linesOfOthers() -> None:
    assert withVerifiers(HASH, "", {}) == "" and verifiersIn(HASH, "1:2:3:4:5:x=y z") == {}
