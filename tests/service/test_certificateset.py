"""
Several certificates: the right one for each name, renewal, and sessions that are resumed.
"""

from __future__ import annotations

import os
import shutil
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from zope.interface.verify import verifyObject

from pop3svc.protocol.channelbinding import channelBinding
from pop3svc.protocol.clientcertificate import certificateNames
from pop3svc.service import certificateset
from pop3svc.service.certificates import Certificates
from pop3svc.service.certificateset import CertificateSet
from pop3svc.service.configcommand import main
from pop3svc.service.options import Options
from pop3svc.service.servernames import ServerNames, isHostName
from pop3svc.service.settings import SettingError
from pop3svc.service.tls import RenewableCertificate
from pop3svc.testing.certificates import Authority
from tests.service.test_clientcertificates import Transport

VERSIONS = [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION]
AUTHORITY = Authority()


def issue(path: Path, *names: str, days: int = 30) -> Path:
    """
    Write a new certificate and its key into one file, and replace an existing file at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    AUTHORITY.issue(path.with_suffix(".new"), list(names), days)
    path.with_suffix(".new").rename(path)
    return path


def certbot(path: Path, lineage: str, *names: str, days: int = 30) -> None:
    """
    Issue a certificate as certbot does: write a numbered file, and replace the links to the former
    file one after the other.
    """
    archive, live = path / "archive" / lineage, path / "live" / lineage
    number = len(list(archive.glob("both*"))) + 1
    issue(archive / f"both{number}.pem", *names, days=days)
    live.mkdir(parents=True, exist_ok=True)
    for name in (certificateset.CHAIN, certificateset.KEY):
        (live / name).unlink(missing_ok=True)
        (live / name).symlink_to(f"../../archive/{lineage}/both{number}.pem")


def load(tmp_path: Path, text: str, handed: dict[str, str] | None = None) -> Any:
    """
    @return: the certificates of a configuration.
    """
    (tmp_path / "pop3svc.toml").write_text(text)
    options = Options()
    options.parseOptions(["--config", str(tmp_path / "pop3svc.toml")])
    return Certificates(options.settings(), None, handed)  # type: ignore[arg-type]


Handshake = tuple[str, SSL.Connection, SSL.Connection, tuple[SSL.Context, Any]]


def shake(
    creator: Any,
    name: str | None,
    version: int = VERSIONS[1],
    saved: tuple[SSL.Context, Any] | None = None,
    certificate: str | None = None,
    meanwhile: Callable[[], object] | None = None,
) -> Handshake:
    """
    Make a handshake in memory.

    @param saved: the session to resume.
    @param meanwhile: called between the two flights of the server.
    @return: the first name of the server's certificate, both ends, and the session.
    """
    if saved is None:
        context, session = SSL.Context(SSL.TLS_CLIENT_METHOD), None
        context.set_min_proto_version(version)
        context.set_max_proto_version(version)
        if certificate is not None:
            context.use_certificate_chain_file(certificate)
            context.use_privatekey_file(certificate)
    else:
        context, session = saved
    client, server = SSL.Connection(context, None), creator.serverConnectionForTLS(None)
    if name is not None:
        client.set_tlsext_host_name(name.encode("ascii"))
    if session is not None:
        client.set_session(session)
    client.set_connect_state()
    server.set_accept_state()
    for turn in range(6):
        for end, other in ((client, server), (server, client)):
            try:
                end.do_handshake()
            except SSL.WantReadError:
                pass
            try:
                other.bio_write(end.bio_read(65536))
            except SSL.WantReadError:
                pass
        if not turn and meanwhile is not None:
            meanwhile()
    # The tickets of TLS 1.3 follow the handshake.
    server.send(b"+OK\r\n")
    client.bio_write(server.bio_read(65536))
    assert client.recv(10) == b"+OK\r\n"
    peer = client.get_peer_certificate(as_cryptography=True)
    assert peer is not None
    (first,) = peer.subject
    for each in (client, server):
        # A session cannot be resumed if its connection was cut.
        each.set_shutdown(SSL.SENT_SHUTDOWN | SSL.RECEIVED_SHUTDOWN)
    return str(first.value), client, server, (context, client.get_session())


def named(creator: Any, name: str | None) -> str:
    return shake(creator, name)[0]


def test_names() -> None:
    names = ServerNames(
        [("a", ["a.example", "*.example"]), ("b", ["a.example", "b.example"]), ("c", ["*.example"])]
    )
    assert names.find("A.Example.") == "a" and names.find("b.example") == "b"
    assert names.find("c.example") == "a"
    assert names.find("c.d.example") is names.find("example") is names.find("") is None
    assert isHostName("*.a-b.example") and isHostName("localhost")
    for each in ("", "*", "a..b", "a.*.b", "ä.example", "A.example", "a" * 64, "a." * 127 + "aa"):
        assert not isHostName(each), each


def test_chooses(tmp_path: Path) -> None:
    """
    A name is found as a whole name, by a wildcard, or among configured names.  Every other name
    gets the default certificate.
    """
    for name, *names in (
        ("own", "mail.example.org"),
        ("a", "a.example", "*.a.example", "mail.example.org"),
        ("b", "b.example"),
    ):
        issue(tmp_path / f"{name}.pem", *names)
    certificates = load(
        tmp_path,
        f"""
        certificate = "{tmp_path}/own.pem"
        [[tls.certificate]]
        certificate = "{tmp_path}/a.pem"
        [[tls.certificate]]
        certificate = "{tmp_path}/b.pem"
        names = ["Other.Example", "*.b.example"]
        """,
    )
    creator = certificates.of()
    verifyObject(IOpenSSLServerConnectionCreator, creator)
    for name, found in (
        (None, "mail.example.org"),
        ("unknown.example", "mail.example.org"),
        ("mail.example.org", "mail.example.org"),
        ("A.Example", "a.example"),
        ("x.a.example", "a.example"),
        ("x.x.a.example", "mail.example.org"),
        ("b.example", "mail.example.org"),
        ("other.example", "b.example"),
        ("x.b.example", "b.example"),
    ):
        assert named(creator, name) == found, name
    assert certificates.of() is creator
    assert [Path(each.certificate).name for each in certificates.all()] == [
        *("own.pem", "a.pem", "b.pem")
    ]
    assert creator.certificate == str(tmp_path / "own.pem") and creator.clients is None
    assert creator.end == certificates.all()[0].end


@pytest.mark.parametrize("version", VERSIONS)
def test_resumes(tmp_path: Path, version: int) -> None:
    """
    A session is resumed, and the channel binding is that of its certificate.  After the renewal of
    any certificate, no earlier session is resumed.
    """
    issue(tmp_path / "own.pem", "mail.example.org")
    issue(tmp_path / "a.pem", "a.example")
    creator = load(
        tmp_path,
        f"""
        certificate = "{tmp_path}/own.pem"
        [[tls.certificate]]
        certificate = "{tmp_path}/a.pem"
        """,
    ).of()

    def bound(server: SSL.Connection) -> bytes | None:
        return channelBinding(Transport(server), "tls-server-end-point")

    def expected(client: SSL.Connection) -> bytes:
        certificate = client.get_peer_certificate(as_cryptography=True)
        assert certificate is not None
        return certificate.fingerprint(SHA256())

    full: list[Any] = []
    found = {}
    for name in (None, "a.example"):
        _, client, server, saved = shake(creator, name, version)
        again = shake(creator, name, version, saved)
        assert wasResumed(again)
        assert bound(server) == expected(client) == bound(again[2]) == expected(again[1])
        full.append(bound(server))
        found[name] = again[3]
    assert full[0] != full[1]
    issue(tmp_path / "a.pem", "a.example")
    # The first handshake may see that the files have changed, and still has the old certificate.
    shake(creator, "a.example", version)
    for name, saved in found.items():
        again = shake(creator, name, version, saved)
        assert not wasResumed(again)
    _, client, server, _ = shake(creator, "a.example", version)
    assert bound(server) == expected(client) not in full


def wasResumed(handshake: Handshake) -> bool:
    """
    @return: whether the session of an earlier handshake was used.
    """
    # pyOpenSSL has no public function for this.
    from OpenSSL._util import lib

    inner: Any = handshake[1]
    return bool(lib.SSL_session_reused(inner._ssl))


def test_directory(tmp_path: Path, said: list[str]) -> None:
    """
    Certificates of certbot are renewed, added and removed while the service runs.
    """
    certbot(tmp_path, "a", "a.example")
    certbot(tmp_path, "b", "b.example")
    (tmp_path / "live" / "README").write_text("Do not move these directories.")
    certificates = load(
        tmp_path, f'certificate-directory = "{tmp_path}/live"\ntls-default-name = "B.example"'
    )
    creator, now = certificates.of(), 1e12
    directory = creator.directory
    directory._seconds = lambda: now

    def after(change: Callable[[], object], name: str) -> str:
        nonlocal now
        change()
        now += 2
        return named(creator, name)

    assert certificates.announcements == [
        f"the default certificate is {tmp_path}/live/b/{certificateset.CHAIN}"
    ]
    assert named(creator, "a.example") == "a.example" and named(creator, None) == "b.example"
    # An added certificate, whose files are not there at first.
    assert after((tmp_path / "live" / "c").mkdir, "c.example") == "b.example"
    assert after(lambda: certbot(tmp_path, "c", "c.example"), "c.example") == "c.example"
    assert [each.partition("] ")[2] for each in said] == [
        f"serving another certificate: {tmp_path}/live/c/{certificateset.CHAIN}"
    ]
    # A renewed certificate, with another name.
    certbot(tmp_path, "a", "new.example")
    now += 2
    named(creator, "a.example")
    assert named(creator, "a.example") == "b.example"
    assert named(creator, "new.example") == "new.example"
    # Of two certificates for the same name, the one that expires last is served.
    certbot(tmp_path, "a-0001", "new.example", "second.example", days=60)
    assert after(lambda: None, "new.example") == "new.example"
    assert certificates.all()[1].end == creator._names.find("new.example").end
    # The default is removed.
    said.clear()
    assert after(lambda: shutil.rmtree(tmp_path / "live" / "b"), "b.example") == "new.example"
    assert "no longer serving" in said[0] and "the default certificate is" in said[1]
    # Nothing is left, and the last certificates are served all the same.
    assert after(lambda: shutil.rmtree(tmp_path / "live"), "c.example") == "c.example"
    assert "No such file or directory" in said[2]
    assert after(lambda: None, "c.example") == "c.example"
    assert len(said) == 3


def test_unusableInDirectory(tmp_path: Path, said: list[str]) -> None:
    """
    A certificate that cannot be used does not keep another one from being served.
    """
    certbot(tmp_path, "a", "a.example")
    certbot(tmp_path, "b", "b.example")
    (tmp_path / "archive" / "b" / "both1.pem").write_text("nonsense")
    certificates = load(tmp_path, f'certificate-directory = "{tmp_path}/live"')
    creator = certificates.of()
    now = 1e12
    creator.directory._seconds = lambda: now
    for _ in range(3):
        now += 2
        assert named(creator, "b.example") == "a.example"
    assert len(said) == 1 and "not serving a certificate: " in said[0]
    assert "b/fullchain.pem holds no PEM certificate" in said[0]
    certbot(tmp_path, "b", "b.example")
    now += 2
    assert named(creator, "b.example") == "b.example"
    shutil.rmtree(tmp_path / "live" / "a")
    (tmp_path / "archive" / "b" / "both2.pem").write_text("nonsense")
    with pytest.raises(SettingError, match="no subdirectory has a usable .* holds no PEM"):
        load(tmp_path, f'certificate-directory = "{tmp_path}/live"').of()
    creator.reload()
    assert named(creator, "b.example") == "b.example"


def test_reloadSaysAgain(tmp_path: Path, said: list[str]) -> None:
    """
    Each error is logged once, and again after each reload.
    """
    certbot(tmp_path, "a", "a.example")
    creator = load(tmp_path, f'certificate-directory = "{tmp_path}/live"').of()
    (tmp_path / "archive" / "a" / "both1.pem").write_text("nonsense")
    for _ in range(2):
        named(creator, None)
    assert len(said) == 1 and "keeping the previous certificate: " in said[0]
    (tmp_path / "live").rename(tmp_path / "gone")
    for _ in range(2):
        said.clear()
        creator.reload()
        assert len(said) == 2
        assert f"{tmp_path}/live: No such file or directory" in said[0]
        assert "keeping the previous certificate: " in said[1]


def test_looksOnce(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A directory that does not change is not read again.  A directory that changes is read at most
    once a second.
    """
    certbot(tmp_path, "a", "a.example")
    creator = load(tmp_path, f'certificate-directory = "{tmp_path}/live"').of()
    os.utime(tmp_path / "live", (1, 1))
    now, looked = 1e12, 0
    directory = creator.directory
    directory._seconds = lambda: now
    real = directory._list

    def counted() -> Any:
        nonlocal looked
        looked += 1
        return real()

    monkeypatch.setattr(directory, "_list", counted)
    monkeypatch.setattr(certificateset, "areStampsTrustworthy", lambda stamps: True)
    for _ in range(3):
        named(creator, "a.example")
    assert looked == 1
    now += 5
    (tmp_path / "live" / "b").mkdir()
    for _ in range(3):
        named(creator, "a.example")
    assert looked == 2
    (tmp_path / "live" / "b").rmdir()
    now += 0.9
    named(creator, "a.example")
    assert looked == 2
    now += 0.2
    for _ in range(3):
        named(creator, "a.example")
    assert looked == 3
    now += 60
    named(creator, "a.example")
    assert looked == 3
    # If the stamps cannot be trusted, the directory is always read again, because a change may
    # leave its times as they are.
    monkeypatch.setattr(certificateset, "areStampsTrustworthy", lambda stamps: False)
    (tmp_path / "live" / "b").mkdir()
    for expected in (4, 5):
        now += 60
        named(creator, "a.example")
        assert looked == expected


def test_tooMany(tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificateset, "_MOST", 2)
    for name in "abc":
        certbot(tmp_path, name, f"{name}.example")
    creator = load(tmp_path, f'certificate-directory = "{tmp_path}/live"').of()
    assert len(creator.all) == 2
    assert len(said) == 1 and "has more than 2 subdirectories" in said[0]


def test_manyNew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Many certificates that are added at the same time are loaded a few at a time, and those that
    cannot be used do not stop the others.
    """
    monkeypatch.setattr(certificateset, "_AT_ONCE", 2)
    certbot(tmp_path, "x", "x.example")
    creator = load(tmp_path, f'certificate-directory = "{tmp_path}/live"').of()
    now = 1e12
    creator.directory._seconds = lambda: now
    for name in "abcdefg":
        certbot(tmp_path, name, f"{name}.example")
    for name in "abc":
        (tmp_path / "archive" / name / "both1.pem").write_text("nonsense")
    counts = []
    for _ in range(6):
        now += 2
        creator.serverConnectionForTLS(None)
        counts.append(len(creator.all))
    assert counts == [1, 2, 4, 5, 5, 5]
    # Directories without certificates, and other files, do not stop the others either.
    for name in "hij":
        (tmp_path / "live" / name).mkdir()
        (tmp_path / "live" / f"{name}.txt").touch()
    certbot(tmp_path, "z", "z.example")
    certbot(tmp_path, "c", "c.example")
    now += 2
    assert named(creator, "z.example") == "z.example"
    assert named(creator, "c.example") == "c.example"


def test_manyRenewed(tmp_path: Path) -> None:
    """
    Many certificates that are renewed at the same time are loaded a few at a time.
    """
    names = [f"{each}.example" for each in "abcdefghijklmnop"]
    for name in names:
        certbot(tmp_path, name, name)
    creator = load(tmp_path, f'certificate-directory = "{tmp_path}/live"').of()
    for name in names:
        certbot(tmp_path, name, name)
    before = {each: each.context for each in creator.all}
    new = 0
    while new < len(names):
        creator.serverConnectionForTLS(None)
        found = sum(each.context is not before[each] for each in creator.all)
        assert new < found <= new + 5
        new = found


def test_otherAuthorityForMany(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    When the authorities of clients change, no handshake and no reload makes the contexts of all
    certificates.  Each context is made when a client needs it.
    """
    names = [f"{each}.example" for each in "abcdefghijkl"]
    for name in names:
        certbot(tmp_path, name, name)
    Authority().write(tmp_path / "ca.pem")
    creator = load(
        tmp_path,
        f'certificate-directory = "{tmp_path}/live"\nclient-ca = "{tmp_path}/ca.pem"',
    ).of()
    made: list[str] = []
    make = RenewableCertificate._contextFor

    def count(self: RenewableCertificate, contents: tuple[bytes, ...]) -> SSL.Context:
        made.append(self.names[0])
        return make(self, contents)

    monkeypatch.setattr(RenewableCertificate, "_contextFor", count)
    others = Authority()
    others.write(tmp_path / "ca.pem")
    others.issue(tmp_path / "client.pem", ["alice@example.org"], isForClients=True)
    own = str(tmp_path / "client.pem")
    # The default certificate gets two contexts: for the authorities, and for the key of tickets.
    for act, contexts in (
        (lambda: shake(creator, "l.example", certificate=own), ["a.example"] * 2 + ["l.example"]),
        (lambda: shake(creator, "l.example", certificate=own), []),
        (creator.reload, []),
        (lambda: shake(creator, "k.example", certificate=own), ["k.example"]),
    ):
        done = act()
        assert made == contexts
        made.clear()
        if done is not None:
            assert certificateNames(Transport(done[2])) == ("alice@example.org",)


def test_handed(tmp_path: Path) -> None:
    """
    A worker that can read neither the directory nor the files uses what its parent has read.
    """
    certbot(tmp_path, "a", "a.example")
    certbot(tmp_path, "b", "b.example")
    issue(tmp_path / "own.pem", "mail.example.org")
    text = f"""
        certificate-directory = "{tmp_path}/live"
        [[tls.certificate]]
        certificate = "{tmp_path}/own.pem"
    """
    first = load(tmp_path, text)
    first.of()
    contents = {path: data.decode("latin-1") for path, data in first.contents().items()}
    assert sorted(contents) == sorted(first.files()) and len(contents) == 5
    shutil.rmtree(tmp_path / "live")
    (tmp_path / "own.pem").unlink()
    creator = load(tmp_path, text, contents).of()
    for name, found in (("b.example", "b.example"), (None, "mail.example.org")):
        assert named(creator, name) == found
    assert isinstance(creator, CertificateSet) and len(creator.all) == 3


@pytest.mark.parametrize("version", VERSIONS)
def test_clientCertificates(tmp_path: Path, version: int) -> None:
    """
    The certificate of a client verifies, whatever name the client asks for, also when the session
    is resumed.  After the authority was replaced, its certificates verify for no name.
    """
    certbot(tmp_path, "a", "a.example")
    certbot(tmp_path, "b", "b.example")
    clients = Authority()
    clients.write(tmp_path / "ca.pem")
    clients.issue(tmp_path / "client.pem", ["alice@example.org"], isForClients=True)
    creator = load(
        tmp_path,
        f'certificate-directory = "{tmp_path}/live"\nclient-ca = "{tmp_path}/ca.pem"',
    ).of()
    own = str(tmp_path / "client.pem")
    for name in (None, "a.example", "b.example"):
        _, _, server, saved = shake(creator, name, version, certificate=own)
        assert certificateNames(Transport(server)) == ("alice@example.org",)
        again = shake(creator, name, version, saved)
        assert wasResumed(again)
        assert certificateNames(Transport(again[2])) == ("alice@example.org",)
    Authority().write(tmp_path / "ca.pem")
    for name in ("b.example", "a.example"):
        _, _, server, _ = shake(creator, name, version, certificate=own)
        assert certificateNames(Transport(server)) == ()


def test_renewedDuringHandshake(tmp_path: Path) -> None:
    """
    If a certificate is renewed during a handshake, the first context is not freed, because OpenSSL
    still calls its callbacks.
    """
    import gc

    certbot(tmp_path, "a", "a.example")
    certbot(tmp_path, "b", "b.example")
    clients = Authority()
    clients.write(tmp_path / "ca.pem")
    clients.issue(tmp_path / "client.pem", ["alice@example.org"], isForClients=True)
    creator = load(
        tmp_path,
        f'certificate-directory = "{tmp_path}/live"\nclient-ca = "{tmp_path}/ca.pem"',
    ).of()

    def renew() -> None:
        certbot(tmp_path, "a", "a.example")
        creator.reload()
        gc.collect()

    name, _, server, _ = shake(
        creator, "b.example", certificate=str(tmp_path / "client.pem"), meanwhile=renew
    )
    assert name == "b.example"
    assert certificateNames(Transport(server)) == ("alice@example.org",)


def test_ticketKeys(tmp_path: Path) -> None:
    """
    Only the default certificate gets a new context each day, because only it makes tickets.
    """
    for name in "abc":
        certbot(tmp_path, name, f"{name}.example")
    certificates = load(tmp_path, f'certificate-directory = "{tmp_path}/live"')
    creator = certificates.of()
    now = 0.0

    def after(seconds: float) -> list[bool]:
        """
        @return: for each certificate, whether a check after some time makes a new context.
        """
        nonlocal now
        now += seconds
        before = [each.context for each in creator.all]
        certificates.look()
        return [each.context is not old for each, old in zip(creator.all, before, strict=True)]

    for each in creator.all:
        each._began, each._seconds = now, lambda: now
    assert after(86399) == [False, False, False]
    assert after(1) == [True, False, False]
    creator._defaultName = "b.example"
    creator._arrange()
    assert after(86400) == [False, True, False]


def test_renewedBeforeSecondHello(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The first context is also kept if a client has to send a second hello.
    """
    certbot(tmp_path, "a", "a.example")
    certbot(tmp_path, "b", "b.example")
    creator = load(tmp_path, f'certificate-directory = "{tmp_path}/live"').of()
    first = weakref.ref(creator.default.context)
    # Clients do not begin with a key for this curve.
    creator.default.context.set_tmp_ecdh(ec.SECP256R1())
    hellos = []
    find = creator._names.find
    monkeypatch.setattr(creator._names, "find", lambda name: (hellos.append(name), find(name))[1])
    shaken = shake(creator, "b.example", meanwhile=creator.default.renewTickets)
    assert shaken[0] == "b.example" and hellos == ["b.example"] * 2
    assert first() is not None


def test_otherDefaultDuringHandshake(tmp_path: Path) -> None:
    """
    A client gets the certificate for its name, even if this certificate has become the default
    meanwhile.
    """
    certbot(tmp_path, "b", "b.example")
    certbot(tmp_path, "c", "c.example")
    creator = load(tmp_path, f'certificate-directory = "{tmp_path}/live"').of()

    class Begun:
        """
        A connection that began before the client said its name.
        """

        def serverConnectionForTLS(self, protocol: Any) -> SSL.Connection:
            connection = creator.serverConnectionForTLS(None)
            certbot(tmp_path, "a", "a.example")
            creator.reload()
            return connection

    assert named(Begun(), "a.example") == "a.example"
    assert named(creator, None) == "a.example"


def test_neverRaises(tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """
    If the callback that OpenSSL calls fails, the client gets the default certificate.
    """
    certbot(tmp_path, "a", "a.example")
    certbot(tmp_path, "b", "b.example")
    creator = load(tmp_path, f'certificate-directory = "{tmp_path}/live"').of()
    monkeypatch.setattr(creator, "_names", None)
    assert named(creator, "b.example") == "a.example"
    assert "cannot choose a certificate" in said[0]


def test_warns(tmp_path: Path, said: list[str]) -> None:
    """
    A warning is logged once for each certificate that expires soon.
    """
    for name, days in (("a", 5), ("b", 90), ("c", 20)):
        certbot(tmp_path, name, f"{name}.example", days=days)
    certificates = load(
        tmp_path,
        f'certificate-directory = "{tmp_path}/live"\n'
        '[[listener]]\nendpoint = "ssl:1"\nold-tls-from = ["192.0.2.1/32"]',
    )
    usual = certificates.of()
    assert certificates.of(certificates._settings.listeners[0]) is not usual
    assert len(certificates.announcements) == 1
    certificates.look()
    certificates.look()
    assert len(said) == 2
    assert "expires in 4 days" in said[0] and "live/a/" in said[0]
    assert "expires in 19 days" in said[1] and "live/c/" in said[1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[tls.certificate]]", "tls.certificate[1]: needs a certificate"),
        ('[[tls.certificate]]\ncertificate = "a.pem"', "/a.pem: No such file"),
        (
            '[[tls.certificate]]\ncertificate = "{}/none.pem"',
            "none.pem has no host names, so it needs names",
        ),
        ('[[tls.certificate]]\ncertificate = "x"\nnames = ["ä"]', "names: must be a host name"),
        (
            '[[tls.certificate]]\ncertificate = "x"\nname = "a"',
            "unknown setting; did you mean names",
        ),
        ('[[tls.certificates]]\ncertificate = "x"', "tls.certificates: unknown setting; did you"),
        ('[tls]\ncertificate = "x"', "must be an array of tables, [[tls.certificate]]"),
        ("tls = 3", "tls: must be tables, [[tls.certificate]]"),
        (
            '[[tls.certificate]]\ncertificate = "x"\nnames = ["a.b"]\n'
            '[[tls.certificate]]\ncertificate = "y"\nnames = ["A.b"]',
            "tls.certificate[2].names: a second certificate for a.b",
        ),
        ('tls-default-name = "a.example"', "tls-default-name requires certificate-directory"),
        (
            'tls-default-name = "a.example"\n[[tls.certificate]]\ncertificate = "{}/b.pem"',
            "tls-default-name: no certificate is for a.example",
        ),
        ('certificate-directory = "/nowhere"', "certificate-directory: /nowhere: No such file"),
        ('certificate-directory = "{}"', "no subdirectory has a usable fullchain.pem and"),
        (
            'certificate-directory = "{}/live"\nclient-ca = "/nowhere"',
            "client-ca: /nowhere: No such file",
        ),
    ],
)
def test_bad(tmp_path: Path, text: str, says: str) -> None:
    issue(tmp_path / "none.pem", "alice@example.org")
    issue(tmp_path / "b.pem", "b.example")
    if "live" in text:
        certbot(tmp_path, "a", "a.example")
    with pytest.raises(SettingError) as caught:
        load(tmp_path, text.replace("{}", str(tmp_path))).of()
    assert says in str(caught.value)


def test_configCheck(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    C{pop3svc config check} lists all faults, each in a sentence of its own.
    """
    issue(tmp_path / "a.pem", "a.example")
    issue(tmp_path / "b.pem", "b.example")
    issue(tmp_path / "old.pem", "old.example", days=-1)
    issue(tmp_path / "none.pem", "alice@example.org")
    issue(tmp_path / "address.pem", "192.0.2.1")
    certbot(tmp_path, "x", "x.example")
    certbot(tmp_path, "y", "y.example")
    certbot(tmp_path, "z", "z.example", days=-1)
    (tmp_path / "archive" / "y" / "both1.pem").write_text("nonsense")
    path = tmp_path / "pop3svc.toml"

    def check(text: str) -> tuple[list[str], list[str]]:
        path.write_text(text.replace("{}", str(tmp_path)))
        try:
            main(["check", str(path)])
        except SystemExit as ended:
            assert ended.code == 1
        said = capsys.readouterr()
        return said.out.splitlines(), said.err.replace(str(tmp_path), "").splitlines()

    table = "[[tls.certificate]]\ncertificate = "
    _, faults = check(
        'certificate = "{}/a.pem"\nprivate-key = "{}/b.pem"\n'
        'certificate-directory = "{}/live"\ntls-default-name = "nobody.example"\n'
        f'{table}"{{}}/old.pem"\n{table}"{{}}/missing.pem"\n{table}"{{}}/none.pem"\n'
        f'{table}"{{}}/none.pem"\nnames = ["n.example"]\n{table}"{{}}/address.pem"\n'
    )
    for fault, says in zip(
        faults,
        (
            "certificate: /b.pem is not the key of the first certificate in /a.pem",
            "tls.certificate[2]: /missing.pem: No such file or directory",
            "certificate-directory: /live/y/fullchain.pem holds no PEM certificate",
            "tls.certificate[1]: /old.pem expired on ",
            "tls.certificate[3]: /none.pem has no host name in its subjectAltName",
            "certificate-directory: /live/z/fullchain.pem expired on ",
            "tls-default-name: no certificate is for nobody.example",
        ),
        strict=True,
    ):
        assert says in fault
    said, faults = check(
        f'certificate-directory = "{{}}/archive"\n{table}"{{}}/a.pem"\n'
        '[[listener]]\nendpoint = "ssl:1995"\ncertificate = "{}/old.pem"\n'
    )
    assert "certificate-directory: /archive: no subdirectory has a usable" in faults[0]
    assert "listener[1].certificate: /old.pem expired on " in faults[1] and len(faults) == 2
    shutil.rmtree(tmp_path / "live" / "y")
    shutil.rmtree(tmp_path / "live" / "z")
    said, faults = check(
        f'certificate-directory = "{{}}/live"\n{table}"{{}}/a.pem"\n'
        '[[listener]]\nendpoint = "ssl:9950"\nold-tls-from = ["192.0.2.0/28", "::1"]\n'
    )
    assert not faults
    assert said[0].endswith("loopback; TLS 1.0 and later, only from 192.0.2.0/28, ::1/128")
    assert f"certificate: {tmp_path}/a.pem, those in {tmp_path}/live" in said


def test_configCheckOfStatus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    issue(tmp_path / "a.pem", "a.example")
    (tmp_path / "status").write_text("nonsense")
    path = tmp_path / "pop3svc.toml"
    path.write_text(
        f'certificate = "{tmp_path}/a.pem"\nocsp-response = "{tmp_path}/none"\n'
        f'[[tls.certificate]]\ncertificate = "{tmp_path}/a.pem"\n'
        f'ocsp-response = "{tmp_path}/status"\n'
    )
    with pytest.raises(SystemExit):
        main(["check", str(path)])
    one, other = capsys.readouterr().err.splitlines()
    assert f"pop3svc.toml: ocsp-response: {tmp_path}/none: No such file" in one
    assert (
        f"tls.certificate[1].ocsp-response: {tmp_path}/status: the issuer of the certificate is not"
        in other
    )


def test_withoutTreq(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The check finds a missing library, without which the service does not start.
    """
    monkeypatch.setitem(sys.modules, "treq", None)
    text = f'certificate = "{issue(tmp_path / "a.pem", "a.example")}"\nocsp-fetch = true\n'
    with pytest.raises(SettingError, match="ocsp-fetch needs treq: pip install"):
        load(tmp_path, text)
    with pytest.raises(SystemExit) as ended:
        main(["check", str(tmp_path / "pop3svc.toml")])
    assert ended.value.code == 1 and "ocsp-fetch needs treq" in capsys.readouterr().err
