"""
Real clients log in to a real service by the methods that are off by default.
"""

from __future__ import annotations

import socket
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL
from scramp import ScramClient
from scramp.core import CbName

from pop3svc.accounts.scramkeys import makeVerifier
from pop3svc.testing.certificates import Authority
from tests.interop.clients import program, run, runInTerminal, writePrivately
from tests.support.running import Running, freePort

pytestmark = pytest.mark.interop

PASSWORD = "pencil, and = sign"
MESSAGE = b"Subject: hello\r\n\r\nworld\r\n"
ENABLED = ("--enable", "SCRAM-SHA-256", "--enable", "SCRAM-SHA-1")


class Site:
    """
    A service, with a user whose account has a verifier and one whose password is in the clear.
    """

    def __init__(self, home: Path, *options: str) -> None:
        home.mkdir()
        self.port = freePort()
        authority = Authority()
        self.certificate = home / "ca.pem"
        authority.write(self.certificate)
        served = home / "served.pem"
        authority.issue(served, ["localhost", "127.0.0.1"])
        for name in ("user", "plain"):
            for folder in ("cur", "new", "tmp"):
                (home / "mail" / name / folder).mkdir(parents=True)
            (home / "mail" / name / "new" / "1.host").write_bytes(MESSAGE)
        users = home / "users"
        users.write_text(f"user:{makeVerifier(PASSWORD)}\nplain:{{PLAIN}}{PASSWORD}\n")
        users.chmod(0o600)
        self.running = Running(
            home / "service",
            *("--endpoint", f"ssl:{self.port}:interface=127.0.0.1"),
            *("--provider", f"maildir:{home}/mail/{{user}}", "--auth", f"passwd:{users}"),
            *("--certificate", str(served), "--data", str(home / "data")),
            *options,
        )

    def logged(self, name: str) -> str:
        """
        @return: the log line of the next session that ends.
        """
        return self.running.waitFor(f" {name} ")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("logins") / "site", *ENABLED)
    with site.running:
        site.running.up()
        yield site


@pytest.fixture(scope="module")
def boundSite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    options = (*ENABLED, "--enable", "SCRAM-SHA-256-PLUS")
    site = Site(tmp_path_factory.mktemp("bound") / "site", *options)
    with site.running:
        site.running.up()
        yield site


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    return home


@pytest.fixture(scope="module")
def oldSite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    options = ("--enable", "APOP", "--enable", "CRAM-MD5")
    site = Site(tmp_path_factory.mktemp("old") / "site", *options)
    with site.running:
        for name in ("APOP", "CRAM-MD5"):
            site.running.waitFor(f"{name} needs passwords that are not hashed")
        yield site


# --- mail programs --------------------------------------------------------------------


def runMpop(site: Site, home: Path, auth: str, user: str) -> None:
    """
    Fetch the message.
    """
    settings = f"""
account default
host 127.0.0.1
port {site.port}
auth {auth}
user {user}
password {PASSWORD}
tls on
tls_starttls off
tls_trust_file {site.certificate}
keep on
only_new off
received_header off
uidls_file {home}/uidls
delivery mbox {home}/mbox
"""
    run([program("mpop"), "--quiet", "--file", writePrivately(home / "mpoprc", settings)], home)
    assert b"Subject: hello" in (home / "mbox").read_bytes()


@pytest.mark.parametrize(
    ("auth", "user"),
    [("scram-sha-256", "user"), ("scram-sha-256", "plain"), ("scram-sha-1", "plain")],
)
def test_mpop(site: Site, home: Path, auth: str, user: str) -> None:
    runMpop(site, home, auth, user)
    assert f"AUTH {auth.upper()}" in site.logged(user)


@pytest.mark.parametrize(("auth", "method"), [("apop", "APOP"), ("cram-md5", "AUTH CRAM-MD5")])
def test_mpopWithDigests(oldSite: Site, home: Path, auth: str, method: str) -> None:
    runMpop(oldSite, home, auth, "plain")
    assert method in oldSite.logged("plain")


@pytest.mark.parametrize(
    ("option", "method"), [("AUTH=+APOP", "APOP"), ("AUTH=CRAM-MD5", "AUTH CRAM-MD5")]
)
def test_curlWithDigests(oldSite: Site, home: Path, option: str, method: str) -> None:
    got = run(
        [
            *(program("curl"), "-sS", "--cacert", str(oldSite.certificate)),
            *("--login-options", option, "-u", f"plain:{PASSWORD}"),
            f"pop3s://127.0.0.1:{oldSite.port}/1",
        ],
        home,
    )
    assert got == MESSAGE
    assert method in oldSite.logged("plain")


@pytest.mark.parametrize(
    ("protocol", "auth", "method"),
    [("apop", "password", "APOP"), ("pop3", "cram-md5", "AUTH CRAM-MD5")],
)
def test_fetchmail(oldSite: Site, home: Path, protocol: str, auth: str, method: str) -> None:
    settings = f"""
set no bouncemail
poll 127.0.0.1 service {oldSite.port} protocol {protocol} auth {auth}
  username "plain" password "{PASSWORD}" ssl sslcertfile "{oldSite.certificate}"
  sslcommonname "localhost" keep fetchall mda "/bin/cat >> {home}/mbox"
"""
    command = [program("fetchmail"), "-f", writePrivately(home / "rc", settings)]
    run(command, home)
    assert b"Subject: hello" in (home / "mbox").read_bytes()
    assert method in oldSite.logged("plain")


@pytest.mark.parametrize(
    ("name", "methods"), [("mutt", "scram-sha-256"), ("mutt", ""), ("neomutt", "")]
)
def test_mutt(site: Site, home: Path, name: str, methods: str) -> None:
    """
    mutt and neomutt send their own name as the authorization identity, and choose SCRAM by
    themselves.
    """
    url = f"pops://user@127.0.0.1:{site.port}"
    for folder in ("tmp", "new", "cur"):
        (home / "delivered" / folder).mkdir(parents=True)
    settings = f"""
set mbox_type=Maildir
set folder="{home}"
set spoolfile="{home}/delivered"
set pop_host="{url}"
set pop_pass="{PASSWORD}"
set pop_delete=no
set certificate_file="{site.certificate}"
set sleep_time=0
set quit=yes
set move=no
{f'set pop_authenticators="{methods}"' if methods else ""}
push "<fetch-mail><exit>"
"""
    command = [program(name), "-n", "-F", writePrivately(home / "rc", settings)]
    runInTerminal(command, home)
    (received,) = (home / "delivered" / "new").iterdir()
    assert b"Subject: hello" in received.read_bytes()
    assert "AUTH SCRAM-SHA-256" in site.logged("user")


def test_curl(site: Site, home: Path) -> None:
    """
    curl without SCRAM goes on with PLAIN against the verifier.
    """
    got = run(
        [
            *(program("curl"), "-sS", "--cacert", str(site.certificate)),
            *("-u", f"user:{PASSWORD}", f"pop3s://127.0.0.1:{site.port}/1"),
        ],
        home,
    )
    assert got == MESSAGE
    assert "AUTH PLAIN" in site.logged("user")


# --- scramp's client, with channel binding --------------------------------------------


class Party:
    """
    A client over TLS, line by line.
    """

    def __init__(self, site: Site) -> None:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        plain = socket.create_connection(("127.0.0.1", site.port), 20)
        plain.settimeout(None)
        self.connection = SSL.Connection(context, plain)
        self.connection.set_connect_state()
        self.connection.do_handshake()
        self._buffer = b""
        assert self.line().startswith(b"+OK")

    def line(self) -> bytes:
        """
        @return: the next line.
        """
        while b"\r\n" not in self._buffer:
            self._buffer += self.connection.recv(65536)
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def say(self, line: bytes) -> bytes:
        """
        @return: the first line of the reply.
        """
        self.connection.sendall(line + b"\r\n")
        return self.line()

    def exporter(self) -> bytes:
        """
        @return: the octets of RFC 9266.
        """
        return self.connection.export_keying_material(b"EXPORTER-Channel-Binding", 32, b"")

    def endPoint(self) -> bytes:
        """
        @return: the octets of RFC 5929 section 4.
        """
        import hashlib

        found: x509.Certificate = self.connection.get_peer_certificate(as_cryptography=True)
        assert found.signature_hash_algorithm is not None
        return hashlib.new(
            found.signature_hash_algorithm.name, found.public_bytes(Encoding.DER)
        ).digest()


def logIn(party: Party, mechanism: str, binding: Any) -> bytes:
    """
    @return: the final reply.
    """
    client = ScramClient([mechanism], "user", PASSWORD, channel_binding=binding)
    assert party.say(b"AUTH " + mechanism.encode()) == b"+ "

    def respond(text: str) -> bytes:
        return party.say(b64encode(text.encode()))

    client.set_server_first(b64decode(respond(client.get_client_first())[2:]).decode())
    final = respond(client.get_client_final())
    if not final.startswith(b"+ "):
        return final
    client.set_server_final(b64decode(final[2:]).decode())
    return party.say(b"")


def test_library(site: Site) -> None:
    assert logIn(Party(site), "SCRAM-SHA-256", None) == b"+OK Logged in."


@pytest.mark.parametrize(
    ("name", "octets"),
    [("tls-exporter", Party.exporter), ("tls-server-end-point", Party.endPoint)],
)
def test_binding(
    boundSite: Site,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    octets: Callable[[Party], bytes],
) -> None:
    """
    The octets of this connection are accepted, and those of another one are not.  The library
    refuses C{tls-exporter} by name, so its table is changed.
    """
    monkeypatch.setattr(CbName, "UNSUPPORTED_TYPES", frozenset())
    monkeypatch.setattr(CbName, "SUPPORTED_TYPES", frozenset([name]))
    party, other = Party(boundSite), Party(boundSite)
    assert logIn(party, "SCRAM-SHA-256-PLUS", (name, octets(party))) == b"+OK Logged in."
    wrong = octets(party) if name == "tls-exporter" else b"x" * 32
    assert logIn(other, "SCRAM-SHA-256-PLUS", (name, wrong)).startswith(b"-ERR [AUTH]")


def test_offered(site: Site, boundSite: Site) -> None:
    for each, names in (
        (site, b"PLAIN LOGIN SCRAM-SHA-256 SCRAM-SHA-1"),
        (boundSite, b"PLAIN LOGIN SCRAM-SHA-256-PLUS SCRAM-SHA-256 SCRAM-SHA-1"),
    ):
        party = Party(each)
        lines = [party.say(b"CAPA")]
        while lines[-1] != b".":
            lines.append(party.line())
        assert b"SASL " + names in lines
