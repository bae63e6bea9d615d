"""
Certificates: their chains, keys, renewal and expiry.
"""

from __future__ import annotations

import datetime
import ssl
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from zope.interface.verify import verifyObject

from pop3svc.service.datadirectory import _selfSigned
from pop3svc.service.tls import RenewableCertificate

Signed = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def issue(name: str, issuer: Signed | None, isAuthority: bool, days: float = 9) -> Signed:
    key = ec.generate_private_key(ec.SECP256R1())
    own = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    signing = key if issuer is None else issuer[1]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(own)
        .issuer_name(own if issuer is None else issuer[0].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=isAuthority, path_length=None), critical=True)
        .sign(signing, hashes.SHA256())
    )
    return certificate, key


def pem(*signed: Signed) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate, _ in signed)


def privatePEM(key: object) -> bytes:
    return key.private_bytes(  # type: ignore[attr-defined, no-any-return]
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )


def shake(creator: RenewableCertificate, context: ssl.SSLContext) -> str | None:
    """
    Make a handshake in memory.

    @return: the protocol's version.
    """
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="mail.example.org")
    server = creator.serverConnectionForTLS(None)
    server.set_accept_state()
    from OpenSSL import SSL

    for _ in range(10):
        try:
            client.do_handshake()
            return client.version()
        except ssl.SSLWantReadError:
            pass
        if outgoing.pending:
            server.bio_write(outgoing.read())
        try:
            server.do_handshake()
        except SSL.WantReadError:
            pass
        try:
            incoming.write(server.bio_read(65536))
        except SSL.WantReadError:
            pass
    raise AssertionError("no end of the handshake")


def test_wholeChain(tmp_path: Path) -> None:
    root = issue("root", None, True)
    middle = issue("middle", root, True)
    leaf = issue("mail.example.org", middle, False)
    (tmp_path / "cert.pem").write_bytes(pem(leaf, middle))
    (tmp_path / "key.pem").write_bytes(privatePEM(leaf[1]))
    creator = RenewableCertificate(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))
    verifyObject(IOpenSSLServerConnectionCreator, creator)
    context = ssl.create_default_context(cadata=pem(root).decode())
    assert shake(creator, context) == "TLSv1.3"
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert shake(creator, context) == "TLSv1.2"
    (tmp_path / "cert.pem").write_bytes(pem(leaf))
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(creator, context)


def test_oneFile(tmp_path: Path) -> None:
    certificate, key = _selfSigned()
    (tmp_path / "both.pem").write_bytes(key + certificate)
    RenewableCertificate(str(tmp_path / "both.pem"), str(tmp_path / "both.pem"))


def test_keysOfAnyKind(tmp_path: Path) -> None:
    certificate, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    (tmp_path / "cert.pem").write_bytes(pem(issue("a", None, False)))
    for made, says in (
        (rsa.generate_private_key(65537, 2048), "is not the key of the first certificate"),
        (dsa.generate_private_key(1024), "a key type that TLS does not support"),
    ):
        (tmp_path / "key.pem").write_bytes(privatePEM(made))
        with pytest.raises(ValueError, match=says):
            RenewableCertificate(certificate, key)
    encrypted = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    (tmp_path / "key.pem").write_bytes(encrypted)
    with pytest.raises(ValueError, match="is encrypted"):
        RenewableCertificate(certificate, key)


def test_keysOfTicketsAge(tmp_path: Path) -> None:
    """
    The context is made anew once a day, and with it the key of the tickets.  Before that the
    context stays, even if the file has a new time.
    """
    certificate, key = _selfSigned()
    (tmp_path / "both.pem").write_bytes(key + certificate)
    now = 0.0
    path = str(tmp_path / "both.pem")
    creator = RenewableCertificate(path, path, seconds=lambda: now)

    def context() -> object:
        return creator.serverConnectionForTLS(None).get_context()

    first = context()
    now = 86399
    (tmp_path / "both.pem").touch()
    assert context() is first
    now = 86400
    second = context()
    assert second is not first
    assert context() is second
    now += 86399
    assert context() is second


def test_keysOfTicketsAgeWithoutFiles(tmp_path: Path) -> None:
    """
    If the files cannot be read, the next context is made from the contents that were handed over.
    After the files could be read once, these contents are no longer used.
    """
    certificate, key = _selfSigned()
    path, now = tmp_path / "both.pem", 0.0
    octets = key + certificate
    creator = RenewableCertificate(str(path), str(path), {str(path): octets}, lambda: now)
    first = creator.serverConnectionForTLS(None).get_context()
    now = 86400
    second = creator.serverConnectionForTLS(None).get_context()
    assert second is not first
    path.write_bytes(octets)
    creator.serverConnectionForTLS(None)
    path.unlink()
    now += 86400
    assert creator.serverConnectionForTLS(None).get_context() is second


class Day:
    """
    A clock that is ahead of the real time by the days that a test has set.
    """

    def __init__(self) -> None:
        self.day = 0.0

    def __call__(self) -> float:
        return time.time() + self.day * 86400


def test_warnsBeforeItEnds(tmp_path: Path, said: list[str]) -> None:
    """
    Warnings come 21, 7 and 1 days before a certificate expires, and when it has expired, once each.
    A renewed certificate gets its own warnings.
    """
    path, day = tmp_path / "cert.pem", Day()

    def put(days: float) -> None:
        leaf = issue("mail.example.org", None, False, days)
        path.write_bytes(pem(leaf) + privatePEM(leaf[1]))

    put(30)
    creator = RenewableCertificate(str(path), str(path), now=day)
    warned = {}
    for hour in range(32 * 24):
        day.day = hour / 24 + 0.001
        creator.look()
        if said:
            (warned[day.day // 1],) = said
            said.clear()
    assert list(warned) == [9, 23, 29, 30]
    assert "[pop3svc#warn] the certificate expires in 20 days, on " in warned[9]
    assert "expires in 6 days" in warned[23] and "expires in 0 days" in warned[29]
    assert "[pop3svc#error] the certificate expired on " in warned[30]
    assert all(str(path) in each for each in warned.values())
    put(40)
    creator.look()
    assert "serving the renewed certificate" in said[0] and "expires in 8 days" in said[1]
    creator.look()
    assert len(said) == 2


@pytest.mark.parametrize(("days", "says"), [(-0.5, "expired on"), (5, "expires in 4 days")])
def test_endsAlready(tmp_path: Path, said: list[str], days: float, says: str) -> None:
    """
    The first look warns of a certificate that expires soon.  The first expiry in the chain counts,
    except that of a root certificate.
    """
    root = issue("root", None, True, -0.2)
    middle = issue("middle", root, True, days)
    leaf = issue("mail.example.org", middle, False, 90)
    (tmp_path / "cert.pem").write_bytes(pem(leaf, middle, root))
    (tmp_path / "key.pem").write_bytes(privatePEM(leaf[1]))
    creator = RenewableCertificate(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))
    creator.look()
    assert len(said) == 1 and says in said[0]


def test_cannotBeLookedAt(tmp_path: Path, said: list[str]) -> None:
    """
    If the file can no longer be read, the log says so once, and the certificate is still served.
    """
    leaf = issue("mail.example.org", None, False, 90)
    path = tmp_path / "cert.pem"
    path.write_bytes(pem(leaf) + privatePEM(leaf[1]))
    creator = RenewableCertificate(str(path), str(path))
    path.unlink()
    for _ in range(3):
        creator.look()
        assert shake(creator, ssl.create_default_context(cadata=pem(leaf).decode()))
    assert len(said) == 1 and "cannot be read any more" in said[0]
