"""
Stored passwords of all kinds.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from pathlib import Path

import pytest

from pop3svc.accounts import modular
from pop3svc.accounts.digests import _stateMD5
from pop3svc.accounts.hashes import HASHES, HashReader

SAMPLES = [
    line.split("\t")
    for line in (Path(__file__).parent / "samples" / "dovecot-passwords.tsv")
    .read_text()
    .splitlines()
    if not line.startswith("#")
]


@pytest.mark.parametrize(("name", "password", "stored"), SAMPLES, ids=[each[0] for each in SAMPLES])
def test_madeByDovecot(name: str, password: str, stored: str) -> None:
    """
    Each scheme as Dovecot writes it.
    """
    assert 0 <= HASHES.costOf(stored) < 1000
    right = password.encode()
    assert HASHES.verify(stored, right, name)
    # DES reads eight octets only.
    assert HASHES.verify(stored, right + b"x", name) is name.startswith("des-crypt")
    for wrong in (b"", b"x", right[:-1] + b"?", right[1:], right.upper()):
        isSame = name.startswith("des-crypt") and wrong[:8] == right[:8]
        assert HASHES.verify(stored, wrong, name) is isSame, wrong


def test_allSamplesAreThere() -> None:
    assert len(SAMPLES) == 37


def test_anyCase() -> None:
    assert HASHES.verify("{ssha256.Hex}" + _ssha256().hex(), b"secret", "")
    assert HASHES.verify("{Plain.BASE64}c2VjcmV0", b"secret", "")


def _ssha256(salt: bytes = b"salt") -> bytes:
    return hashlib.sha256(b"secret" + salt).digest() + salt


def test_encodings() -> None:
    """
    Digests of fixed length may be in hexadecimal digits without a suffix, salted ones not.
    """
    digest = hashlib.sha256(b"secret").digest()
    assert HASHES.verify("{SHA256}" + digest.hex(), b"secret", "")
    assert HASHES.verify("{SHA256}" + digest.hex().upper(), b"secret", "")
    assert HASHES.verify("{SHA256.b64}" + base64.b64encode(digest).decode(), b"secret", "")
    for stored in (
        "{SHA256.b64}" + digest.hex(),
        "{SHA256.hex}" + base64.b64encode(digest).decode(),
        "{SSHA256}" + base64.b64encode(_ssha256(b"")).decode(),
    ):
        with pytest.raises(ValueError, match=r"wrong length|malformed"):
            HASHES.costOf(stored)
    assert not HASHES.verify("{SSHA256}" + _ssha256().hex(), b"secret", "")
    assert HASHES.verify(
        "{SSHA256}" + base64.b64encode(_ssha256(b"longer salt")).decode(), b"secret", ""
    )


@pytest.mark.parametrize(
    "stored",
    [
        "",
        "!",
        "*",
        "x",
        "{PLAIN}",
        "{}x",
        "{PLAIN x",
        "{OTP}sha1 1024 seed hash",
        "{NOSUCH}secret",
        "{PLAIN.B65}eA==",
        "{PLAIN-TRUNC}6-secret",
        "{SHA}",
        "{SHA}secret",
        "{SHA}\xe4",
        "{PLAIN-MD5.HEX}3cb4e732631f47e6eb961f34554b7cd",
        "{MD5-CRYPT}$6$abcdefgh$yIZAF3gQPvtKZO/9qOJKffAKKbtS3ef3qmwyugk4uWVj",
        "{SHA512-CRYPT}$1$KwKqh9Xo$Jx2FF9MbbCzMsm0TYTuiJ.",
        "{DES-CRYPT}$1$KwKqh9Xo$Jx2FF9MbbCzMsm0TYTuiJ.",
        "{ARGON2ID}AtZNJXT2aFMOM",
        "{PBKDF2}$1$salt$0$" + "0" * 40,
        "{PBKDF2}$1$salt$9999999$" + "0" * 40,
        "{PBKDF2}$1$salt$5000$" + "0" * 39,
        "{SCRAM-SHA-1}4096,c2FsdA==,AAAA,AAAA",
        "{SCRAM-SHA-256}9999999,c2FsdA==," + "A" * 43 + "=," + "A" * 43 + "=",
        "{SCRAM-SHA-256}0,c2FsdA==," + "A" * 43 + "=," + "A" * 43 + "=",
        "{SCRAM-SHA-256}4095,c2FsdA==," + "A" * 43 + "=," + "A" * 43 + "=",
        "{SCRAM-SHA-256}x",
        "{CRAM-MD5}00",
        "{DIGEST-MD5}00",
        "{PLAIN-MD4}00",
        "$y$j9T$abcdefghijklmnop$short",
        "$y$jGT$abcdefghijklmnop$" + "0" * 43,
        "$y$jL5$abcdefghijklmnop$" + "0" * 43,
        "$y$kzT$abcdefghijklmnop$" + "0" * 43,
        "$7$z6..../....salt$" + "0" * 43,
        "$6$" + "x" * 3000,
    ],
)
def test_unusable(stored: str) -> None:
    """
    An unusable stored password is rejected, and the reason does not show it.
    """
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        HASHES.costOf(stored)
    reason = str(caught.value)
    assert "secret" not in reason and len(reason) < 200
    assert len(stored) < 8 or stored not in reason


def test_courier() -> None:
    """
    Courier's MD5 is the digest of the password in base64, and Dovecot's is not.
    """
    courier = HashReader(isCourier=True)
    digest = hashlib.md5(b"secret").digest()
    inBase64 = "{MD5}" + base64.b64encode(digest).decode()
    assert courier.verify(inBase64, b"secret", "")
    assert courier.verify("{MD5RAW}" + digest.hex(), b"secret", "")
    assert not courier.verify(inBase64, b"other", "")
    with pytest.raises(ValueError, match="unknown kind"):
        HASHES.costOf("{MD5RAW}" + digest.hex())
    with pytest.raises(ValueError, match="malformed"):
        courier.costOf("{MD5}$1$KwKqh9Xo$Jx2FF9MbbCzMsm0TYTuiJ.")
    assert HASHES.verify("{MD5}" + digest.hex(), b"secret", "")
    assert HASHES.verify("{MD5}$1$KwKqh9Xo$Jx2FF9MbbCzMsm0TYTuiJ.", b"Tr0ub4dor&3", "")


def test_defaultScheme() -> None:
    plain = HashReader("plain")
    assert plain.verify("$1$no hash", b"$1$no hash", "") and plain.isPlain("x")
    assert plain.verify("{SHA256.HEX}" + hashlib.sha256(b"x").hexdigest(), b"x", "")
    assert not plain.isPlain("{SHA256.HEX}" + hashlib.sha256(b"x").hexdigest())
    assert HashReader("SHA256").verify(hashlib.sha256(b"x").hexdigest(), b"x", "")
    with pytest.raises(ValueError, match="there is no scheme NOSUCH; there are PLAIN, "):
        HashReader("NOSUCH")


def test_stateOfMD5() -> None:
    """
    The MD5 state after the last block is the digest of the standard library.
    """
    key = b"key".ljust(64, b"\0")
    block = bytes(octet ^ 0x36 for octet in key)
    assert _stateMD5(block) != _stateMD5(key)
    # The message and its padding fill one block, and the state after this block is the digest.
    message = b"a" * 55
    padded = message + b"\x80" + (55 * 8).to_bytes(8, "little")
    assert _stateMD5(padded) == hashlib.md5(message).digest()
    assert hmac.new(b"key", message, "md5").digest() != _stateMD5(padded)


def test_withoutLibxcrypt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modular, "_libcrypt", lambda: None)
    stored = "$y$j9T$abcdefghijklmnop$0Hi8KsZH/hAMRN9Bam6ce3nmi5QAIz3R/KeaXG/c7p9"
    with pytest.raises(ValueError, match="needs libxcrypt"):
        HASHES.costOf(stored)


def test_libxcryptFails(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A comparison that fails is no wrong password.
    """
    monkeypatch.setattr(modular, "_libcrypt", lambda: lambda *_: None)
    stored = "$y$j9T$abcdefghijklmnop$0Hi8KsZH/hAMRN9Bam6ce3nmi5QAIz3R/KeaXG/c7p9"
    with pytest.raises(MemoryError):
        HASHES.verify(stored, b"x", "")


def test_scryptOfCrypt() -> None:
    """
    C{$7$} and C{$gy$} are compared by the system's library, as C{$y$} is.
    """
    call = modular._libcrypt()
    if call is None:
        pytest.skip("this system has no libxcrypt")
    import ctypes

    for setting in (b"$7$86..../....abcdefgh", b"$gy$j75$abcdefghijklmnop"):
        made = call(b"secret", setting, ctypes.create_string_buffer(32768), 32768)
        assert made is not None and made.startswith(setting)
        assert 0 < HASHES.costOf(made.decode()) < 1000
        assert HASHES.verify(made.decode(), b"secret", "")
        assert not HASHES.verify(made.decode(), b"other", "")


def test_quick() -> None:
    """
    Only digests are compared in the reactor's thread.
    """
    quick = {each[0].partition("@")[0] for each in SAMPLES if HASHES.quickly(each[2], b"x", "x")}
    assert quick == {
        *("plain", "cleartext", "plain-b64", "plain-hex", "sha", "sha256", "sha512", "smd5"),
        *("ssha", "ssha256", "ssha512", "ssha256-hex", "ssha512-hex", "sha512-hex", "sha256-hex"),
        *("sha512-b64", "ldap-md5", "plain-md5", "digest-md5"),
    }


def test_hashOfNobody() -> None:
    """
    A comparison with this hash fails, and takes as long as a comparison with a real hash.
    """
    nobody, real = modular.hashOfNobody(), modular.hashPassword("x")
    assert len(nobody) == len(real) and nobody.split("$")[:4] == real.split("$")[:4]
    assert HASHES.costOf(nobody) == HASHES.costOf(real)
    assert not HASHES.verify(nobody, b"x", "alice") and HASHES.verify(real, b"x", "alice")
    assert HASHES.quickly(nobody, b"x", "alice") is None
    assert modular.hashOfNobody() != nobody
