"""
Verifiers for SCRAM beside the hashes of a password file.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from pop3svc.accounts.hashes import HASHES
from pop3svc.accounts.passwordediting import addUser, setPassword
from pop3svc.accounts.passwordfile import PasswordFile, readPasswordFile
from pop3svc.accounts.passwordlines import withVerifiers
from pop3svc.accounts.scramkeys import makeVerifier
from pop3svc.protocol.session import ConnectionInfo
from pop3svc.testing import Inline
from tests.support.passwords import hashed, isGood

# Computed once for all tests, because the computation takes many rounds.
HASH = hashed("pencil")
SHA256 = makeVerifier("pencil")
SHA1 = makeVerifier("pencil", "sha1")
SALT = b"salt" * 4


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "users"


def keysOf(checker: PasswordFile, name: str = "ann", algorithm: str = "sha256") -> Any:
    got: list[Any] = []
    info = ConnectionInfo(1, "192.0.2.7", True)
    Deferred.fromCoroutine(checker.scramKeys(info, name, algorithm, SALT)).addBoth(got.append)
    return None if got[0] is None else replace(got[0], version="")


def keysIn(stored: str, algorithm: str = "sha256") -> Any:
    return HASHES.scramKeys(stored, algorithm)


def lineOf(stored: str, rest: str = "", **verifiers: str) -> str:
    return f"ann:{stored}{withVerifiers(stored, rest, verifiers)}\n"


def test_beside(path: Path) -> None:
    """
    The hash checks passwords, and the verifiers give keys.
    """
    path.write_text(lineOf(HASH, sha256=SHA256, sha1=SHA1))
    checker = PasswordFile(str(path), Inline())
    assert isGood(checker, "ann", "pencil") and not isGood(checker, "ann", "other")
    assert keysOf(checker) == keysIn(SHA256)
    assert keysOf(checker, algorithm="sha1") == keysIn(SHA1, "sha1")
    assert keysOf(checker, "ben") is None
    # The example keys for an unknown user have the same number of rounds.
    example = checker.exampleScramKeys("ben", "sha1", b"seed")
    assert example is not None and example.rounds == 65_536


def test_oneAlgorithm(path: Path) -> None:
    path.write_text(lineOf(SHA256, sha1=SHA1))
    checker = PasswordFile(str(path), Inline())
    assert keysOf(checker) == keysIn(SHA256)
    assert keysOf(checker, algorithm="sha1") == keysIn(SHA1, "sha1")


def test_plain(path: Path) -> None:
    """
    A password in clear text needs no verifier.  A verifier beside it is ignored.
    """
    path.write_text(lineOf("{PLAIN}pen", sha256=SHA256))
    checker = PasswordFile(str(path), Inline())
    keys = keysOf(checker)
    assert (keys.rounds, keys.salt) == (4096, SALT)


@pytest.mark.parametrize("by", ["another program", "password", "verifier", "both"])
def test_changedPassword(path: Path, by: str) -> None:
    """
    A verifier of the previous password does not count any more, even if another program has
    changed the hash and left the verifier.
    """
    path.write_text(lineOf(HASH, ":1000:1000::/home/ann::user=ann", sha256=SHA256, sha1=SHA1))
    checker = PasswordFile(str(path), Inline())
    assert keysOf(checker) is not None
    if by == "another program":
        path.write_text(path.read_text().replace(HASH, hashed("brush")))
    else:
        setPassword(str(path), "ann", "brush", "hash" if by == "password" else by)
        assert path.read_text().count("pop3svc_scram") == (by == "both")
    assert ":1000:1000::/home/ann::user=ann" in path.read_text()
    assert isGood(checker, "ann", "brush") and not isGood(checker, "ann", "pencil")
    keys = keysOf(checker)
    assert (keys is not None) == (by in ("verifier", "both"))
    assert keys != keysIn(SHA256)
    assert keysOf(checker, algorithm="sha1") is None


def test_editor(path: Path) -> None:
    addUser(str(path), "ann", "pencil", form="both")
    addUser(str(path), "ben", "pencil", form="verifier")
    addUser(str(path), "cat", "pencil")
    ann, ben, cat = path.read_text().splitlines()
    assert ann.startswith("ann:$argon2id$") and "::::::pop3svc_scram_sha_256=" in ann
    assert ben.startswith("ben:{SCRAM-SHA-256}") and cat.startswith("cat:$argon2id$")
    assert "pop3svc" not in ben + cat
    checker = PasswordFile(str(path), Inline())
    for name in ("ann", "ben", "cat"):
        assert isGood(checker, name, "pencil")
        assert (keysOf(checker, name) is None) == (name == "cat")
    # A change without a new verifier leaves the extra fields empty.
    setPassword(str(path), "ann", "brush")
    assert path.read_text().splitlines()[0].endswith("::::::")


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ("", "::::::V"),
        (":", "::::::V"),
        (":1000:1000", ":1000:1000::::V"),
        (":1:2:3:4:5", ":1:2:3:4:5:V"),
        (":1:2:3:4:5:", ":1:2:3:4:5:V"),
        (":1:2:3:4:5:a=b:c nologin", ":1:2:3:4:5:a=b:c nologin V"),
    ],
)
def test_otherFields(rest: str, expected: str) -> None:
    """
    The other fields of a line stay when a verifier is added, replaced or removed.
    """
    made = withVerifiers(HASH, rest, {"sha256": SHA256})
    head, _, verifier = made.rpartition("pop3svc_scram_sha_256=")
    assert head + "V" == expected and verifier.endswith(SHA256.removeprefix("{SCRAM-SHA-256}"))
    assert withVerifiers(HASH, made, {"sha256": SHA256}) == made
    assert withVerifiers(HASH, rest, {}) == rest
    assert withVerifiers(HASH, made, {}).rstrip(": ") == rest.rstrip(":")


def test_oldForm(path: Path) -> None:
    """
    A line in an old format of Dovecot keeps the location of the mail, and cannot get a verifier.
    """
    path.write_text(f"ann:{HASH}:::::::/var/mail/ann\n")
    with pytest.raises(ValueError, match="an old format of Dovecot, with no place"):
        setPassword(str(path), "ann", "brush", "both")
    setPassword(str(path), "ann", "brush")
    assert path.read_text().endswith(":::::::/var/mail/ann\n")


def test_malformed(path: Path) -> None:
    """
    A broken verifier is reported if it belongs to the hash of its line, and ignored otherwise.
    """
    path.write_text(lineOf(HASH, sha256=SHA256)[:-6] + "\n")
    assert [each.name for each in readPasswordFile(str(path)).badLines] == ["ann"]
    path.write_text(f"ann:{HASH}::::::pop3svc_scram_sha_256=nonsense pop3svc_scram_sha_1\n")
    assert readPasswordFile(str(path)).badLines == []


def test_unprintable() -> None:
    """
    A verifier can be added beside a hash with octets that are not UTF-8.
    """
    assert withVerifiers("{PLAIN}\udcff", "", {"sha256": SHA256}).startswith("::::::pop3svc")
