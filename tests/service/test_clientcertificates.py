"""
Certificates of clients: which of them verify, in full handshakes and when a session is resumed.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from OpenSSL import SSL

from pop3svc.protocol import clientcertificate
from pop3svc.protocol.clientcertificate import ClientCertificates, certificateNames
from pop3svc.service.tls import ClientAuthority, RenewableCertificate
from pop3svc.testing.certificates import Authority

VERSIONS = [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION]
ALICE = "alice@example.org"


# A client's context, and a session.
Saved = tuple[SSL.Context, Any]


class Transport:
    """
    A transport whose handle is a TLS connection.
    """

    def __init__(self, handle: object) -> None:
        self.handle = handle

    def getHandle(self) -> object:
        return self.handle


class Site:
    """
    A server's certificate, an authority of clients, and a clock.
    """

    def __init__(self, path: Path, field: str = "email") -> None:
        self.path = path
        self.days = 0.0
        self.authority = Authority()
        self.authority.issue(path / "server.pem", ["mail.example.org"], 90)
        self.authority.write(path / "ca.pem")
        server = str(path / "server.pem")
        clients = ClientAuthority(str(path / "ca.pem"), field)
        self.creator = RenewableCertificate(server, server, now=self.now, clients=clients)

    def now(self) -> float:
        import time

        return time.time() + self.days * 86400

    def client(self, *names: str, days: int = 1, isForClients: bool = True) -> str:
        """
        @return: the path of a certificate.
        """
        path = self.path / "client.pem"
        self.authority.issue(path, list(names), days, isForClients=isForClients)
        return str(path)

    def connect(
        self, certificate: str | None, version: int = VERSIONS[1]
    ) -> tuple[tuple[str, ...], Saved]:
        """
        Make a full handshake in memory.

        @return: the names that the server finds, and what is needed to resume.
        """
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(version)
        context.set_max_proto_version(version)
        if certificate is not None:
            context.use_certificate_chain_file(certificate)
            context.use_privatekey_file(certificate)
        names, saved, wasVerified = self._shake(context, None)
        assert wasVerified == (certificate is not None)
        return names, saved

    def resume(self, saved: Saved, isRefused: bool = False) -> tuple[str, ...]:
        """
        @param isRefused: whether the server does not resume the session.
        @return: the names that the server finds.
        """
        names, _, wasVerified = self._shake(*saved)
        assert wasVerified == isRefused
        return names

    def _shake(self, context: SSL.Context, session: Any) -> tuple[tuple[str, ...], Saved, bool]:
        client = SSL.Connection(context, None)
        if session is not None:
            client.set_session(session)
        client.set_connect_state()
        server = self.creator.serverConnectionForTLS(None)
        server.set_accept_state()
        shake(client, server)
        peer = server.clientCertificate
        wasVerified = peer._hasVerified or peer.isRefused
        names = certificateNames(Transport(server))
        for each in (client, server):
            # A session cannot be resumed if its connection was cut.
            each.set_shutdown(SSL.SENT_SHUTDOWN | SSL.RECEIVED_SHUTDOWN)
        return names, (context, client.get_session()), wasVerified


def step(one: SSL.Connection, other: SSL.Connection, work: Callable[[], object]) -> bool:
    """
    @return: whether the work was done.
    """
    done = True
    try:
        work()
    except SSL.WantReadError:
        done = False
    try:
        other.bio_write(one.bio_read(1 << 20))
    except SSL.WantReadError:
        pass
    return done


def shake(client: SSL.Connection, server: SSL.Connection) -> None:
    for _ in range(10):
        both = step(client, server, client.do_handshake), step(server, client, server.do_handshake)
        if all(both):
            break
    # The tickets of TLS 1.3 follow the handshake.
    step(server, client, lambda: server.send(b"x"))
    assert client.recv(1) == b"x"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.mark.parametrize("version", VERSIONS)
def test_verifies(site: Site, version: int) -> None:
    """
    A certificate names its user in a full handshake, and when the session is resumed.  A client
    without a certificate can connect, too.
    """
    certificate = site.client(ALICE)
    names, session = site.connect(certificate, version)
    assert names == (ALICE,)
    assert site.resume(session) == (ALICE,)
    names, session = site.connect(None, version)
    assert names == ()
    assert site.resume(session) == ()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("why", ["stranger", "expired", "server"])
def test_doesNotVerify(site: Site, version: int, why: str) -> None:
    """
    If the certificate does not verify, the handshake succeeds, but the certificate names nobody.
    It names nobody in a resumed session either, although OpenSSL does not verify it again.
    """
    if why == "stranger":
        site.authority = Authority()
    certificate = site.client(
        ALICE, days=-1 if why == "expired" else 1, isForClients=why != "server"
    )
    names, session = site.connect(certificate, version)
    assert names == ()
    assert site.resume(session) == ()


@pytest.mark.parametrize("version", VERSIONS)
def test_expiresMeanwhile(site: Site, version: int) -> None:
    _, session = site.connect(site.client(ALICE, days=3), version)
    site.days = 0.9
    assert site.resume(session) == (ALICE,)
    # In this chain the authority's own certificate expires first.
    site.days = 1.1
    assert site.resume(session) == ()


@pytest.mark.parametrize("version", VERSIONS)
def test_forgotten(site: Site, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The number of remembered certificates is limited.  The one that was used least recently is
    forgotten.
    """
    monkeypatch.setattr(clientcertificate, "_REMEMBERED", 2)
    sessions = {}
    for name in ("a@b", "c@d"):
        sessions[name] = site.connect(site.client(name), version)[1]
    assert site.resume(sessions["a@b"]) == ("a@b",)
    sessions["e@f"] = site.connect(site.client("e@f"), version)[1]
    found = [site.resume(each) for each in sessions.values()]
    assert found == [("a@b",), (), ("e@f",)]


def test_severalNames(site: Site) -> None:
    """
    A certificate may have several names.  A repeated name counts once, and invalid names are
    dropped.
    """
    names = [ALICE, "bob@example.org", ALICE, "a\tb@example.org", "x" * 250 + "@example.org"]
    assert site.connect(site.client(*names))[0] == (ALICE, "bob@example.org")
    assert site.connect(site.client("mail.example.org"))[0] == ()


def test_commonName(tmp_path: Path) -> None:
    site = Site(tmp_path, "cn")
    assert site.connect(site.client("alice", "bob@example.org"))[0] == ("alice",)


def signed(issuer: Any, build: Callable[[Any], Any]) -> tuple[Any, Any]:
    """
    @param issuer: a certificate and its key; L{None} for a certificate that signs itself.
    @return: a certificate and its key.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, os.urandom(4).hex())])
    day, now = datetime.timedelta(days=1), datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name if issuer is None else issuer[0].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
    )
    signing = key if issuer is None else issuer[1]
    return build(builder).sign(signing, hashes.SHA256()), key


def put(path: Path, *certificates: tuple[Any, Any]) -> str:
    """
    Write a chain and the key of its first certificate.
    """
    key = certificates[0][1].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(key + b"".join(each.public_bytes(Encoding.PEM) for each, _ in certificates))
    return str(path)


def authority(builder: Any) -> Any:
    return builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)


def constrained(builder: Any) -> Any:
    constraints = x509.NameConstraints([x509.RFC822Name("example.com")], None)
    return authority(builder).add_extension(constraints, critical=True)


def user(builder: Any) -> Any:
    names = x509.SubjectAlternativeName([x509.RFC822Name(ALICE)])
    return builder.add_extension(names, critical=False)


@pytest.mark.parametrize("version", VERSIONS)
def test_chain(site: Site, version: int) -> None:
    """
    A certificate of an intermediate authority verifies if the client sends the intermediate
    certificate, and if the certificate keeps the constraints of this authority.  OpenSSL reports
    broken constraints after it has reported that the certificate itself is right.
    """
    root = signed(None, authority)
    put(site.path / "ca.pem", root)
    site.creator.look()
    for build, expected in ((authority, (ALICE,)), (constrained, ())):
        middle = signed(root, build)
        leaf = signed(middle, user)
        certificate = put(site.path / "client.pem", leaf, middle)
        names, session = site.connect(certificate, version)
        assert names == expected
        assert site.resume(session) == expected
        assert site.connect(put(site.path / "client.pem", leaf), version)[0] == ()


def test_unreadable(site: Site) -> None:
    """
    A certificate without a usable extension names nobody.
    """
    root = signed(None, authority)
    put(site.path / "ca.pem", root)
    bad = x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, b"nonsense")
    leaf = signed(root, lambda builder: builder.add_extension(bad, critical=False))
    assert site.connect(put(site.path / "client.pem", leaf))[0] == ()
    none = signed(root, lambda builder: builder)
    assert site.connect(put(site.path / "client.pem", none))[0] == ()


class Odd:
    """
    A TLS connection, or a certificate, whose fields cannot be read.
    """

    clientCertificate: Any = None

    def to_cryptography(self) -> object:
        raise ValueError

    def get_peer_certificate(self, as_cryptography: bool) -> object:
        raise ValueError


def test_cannotBeParsed() -> None:
    odd, certificates = Odd(), ClientCertificates("email")
    assert certificateNames(object()) == ()
    assert certificateNames(Transport(odd)) == ()
    certificates.watch(odd)
    assert certificateNames(Transport(odd)) == ()
    assert ClientCertificates.verified(odd, odd, 0, 0, 1)
    assert odd.clientCertificate.isRefused
    assert certificates.namesIn(odd, float("inf")) == ()
    assert certificateNames(Transport(odd)) == ()


@pytest.mark.parametrize("version", VERSIONS)
def test_renewed(site: Site, version: int, said: list[str]) -> None:
    """
    A certificate of the new authority verifies, and one of the old authority no longer does, not
    even in a resumed session.  A file that cannot be used changes nothing.
    """
    old = Path(site.client(ALICE)).read_bytes()
    (site.path / "old.pem").write_bytes(old)
    _, session = site.connect(str(site.path / "old.pem"), version)
    (site.path / "ca.pem").unlink()
    site.creator.look()
    assert "its key or the client CA cannot be read any more" in said.pop()
    for broken, says in (
        (b"nonsense", "ca.pem holds no PEM certificate"),
        (old, "contains a certificate that does not belong to an authority"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "holds no PEM"),
    ):
        (site.path / "ca.pem").write_bytes(broken)
        assert site.resume(session) == (ALICE,)
        assert len(said) == 1 and "keeping the previous" in said[0] and says in said.pop()
    (site.path / "ca.pem").unlink()
    with pytest.raises(ValueError, match="No such file"):
        clients = ClientAuthority(str(site.path / "ca.pem"), "email")
        RenewableCertificate(site.creator.certificate, site.creator.privateKey, clients=clients)
    assert site.resume(session) == (ALICE,)
    site.authority = Authority()
    site.authority.write(site.path / "ca.pem")
    assert site.resume(session, isRefused=True) == ()
    assert len(said) == 1 and "using the renewed client CA" in said[0]
    assert site.connect(str(site.path / "old.pem"), version)[0] == ()
    assert site.connect(site.client(ALICE), version)[0] == (ALICE,)


def test_handed(site: Site) -> None:
    """
    A worker that cannot read the files uses what its parent has read.
    """
    creator = site.creator
    contents = creator.contents()
    assert [each.partition(b"\n")[0] for each in contents.values()] == [
        b"-----BEGIN CERTIFICATE-----"
    ] * 2
    certificate = site.client(ALICE)
    for name in ("ca.pem", "server.pem"):
        (site.path / name).unlink()
    site.creator = RenewableCertificate(
        creator.certificate, creator.privateKey, contents, clients=creator.clients
    )
    assert site.connect(certificate)[0] == (ALICE,)
    assert len(creator.files) == 2
