"""
Real clients log in to a real service with their certificates.
"""

from __future__ import annotations

import re
import signal
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pop3svc.testing.certificates import Authority
from tests.interop.clients import (
    environment,
    mpop,
    mutt,
    muttReceived,
    program,
    run,
    runInTerminal,
)
from tests.support.maildirs import deliver
from tests.support.running import Connection, Running, freePort

pytestmark = pytest.mark.interop

NAME = "user@example.org"
PASSWORD = "pencil"
MESSAGE = b"Subject: hello\r\n\r\nworld\r\n"
VERSIONS = ["-tls1_2", "-tls1_3"]


class Site:
    """
    A service, an authority for the certificates of clients, and certificates in the files C{good},
    C{several}, C{expired}, C{server}, C{stranger} and C{removed}.
    """

    def __init__(self, home: Path, *options: str) -> None:
        home.mkdir()
        self.home = home
        self.secure, self.plain = freePort(), freePort()
        serving, self.authority, stranger = Authority(), Authority(), Authority()
        self.trusted = home / "trusted.pem"
        serving.write(self.trusted)
        serving.issue(home / "served.pem", ["localhost", "127.0.0.1"])
        self.clientCa = home / "clients.pem"
        self.authority.write(self.clientCa)
        issue = self.authority.issue
        issue(home / "good", [NAME], isForClients=True)
        issue(home / "several", ["other@example.org", NAME], isForClients=True)
        issue(home / "expired", [NAME], -1, isForClients=True)
        issue(home / "server", [NAME])
        issue(home / "removed", ["gone@example.org"], isForClients=True)
        stranger.issue(home / "stranger", [NAME], isForClients=True)
        deliver(home / "mail" / NAME, "1.host", MESSAGE)
        self.users = home / "users"
        self.users.write_text(f"{NAME}:{{PLAIN}}{PASSWORD}\n")
        self.users.chmod(0o600)
        self.running = Running(
            home / "service",
            *("--endpoint", f"ssl:{self.secure}:interface=127.0.0.1"),
            *("--endpoint", f"tcp:{self.plain}:interface=127.0.0.1"),
            *("--provider", f"maildir:{home}/mail/{{user}}", "--auth", f"passwd:{self.users}"),
            *("--certificate", str(home / "served.pem"), "--data", str(home / "data")),
            *("--client-ca", str(self.clientCa)),
            *options,
        )

    def logged(self) -> str:
        """
        @return: the log line of the user's next session that ends.
        """
        return self.running.waitFor(f" {NAME} ")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("external") / "site")
    with site.running:
        site.running.up()
        yield site


# --- mail programs --------------------------------------------------------------------


def curl(site: Site, certificate: str, user: str, *options: str) -> list[str]:
    return [
        *(program("curl"), "-sS", "--cacert", str(site.trusted)),
        *("--cert", str(site.home / certificate), "-u", user, *options),
    ]


@pytest.mark.parametrize("isImplicit", [True, False])
@pytest.mark.parametrize(
    ("certificate", "user"), [("good", f"{NAME}:"), ("good", ":"), ("several", f"{NAME}:")]
)
def test_curl(site: Site, home: Path, certificate: str, user: str, isImplicit: bool) -> None:
    port, scheme = (site.secure, "pop3s") if isImplicit else (site.plain, "pop3")
    command = curl(site, certificate, user, "--ssl-reqd", "--login-options", "AUTH=EXTERNAL")
    assert run([*command, f"{scheme}://127.0.0.1:{port}/1"], home) == MESSAGE
    assert "AUTH EXTERNAL" in site.logged()


@pytest.mark.parametrize(
    ("certificate", "user"),
    [
        *((name, f"{NAME}:") for name in ("expired", "server", "stranger", "removed")),
        *(("removed", ":"), ("several", ":"), ("good", "other@example.org:")),
    ],
)
def test_curlIsRefused(site: Site, home: Path, certificate: str, user: str) -> None:
    command = curl(site, certificate, user, "--login-options", "AUTH=EXTERNAL")
    done = subprocess.run(
        [*command, f"pop3s://127.0.0.1:{site.secure}/1"],
        cwd=home,
        env=environment(home),
        capture_output=True,
        timeout=60,
    )
    # CURLE_LOGIN_DENIED
    assert (done.returncode, done.stdout) == (67, b"")


@pytest.mark.parametrize("certificate", ["good", "expired", "server", "stranger"])
def test_curlWithPassword(site: Site, home: Path, certificate: str) -> None:
    """
    Nobody has to use a certificate, and no certificate prevents a login with a password.
    """
    command = curl(site, certificate, f"{NAME}:{PASSWORD}")
    assert run([*command, f"pop3s://127.0.0.1:{site.secure}/1"], home) == MESSAGE
    assert "AUTH PLAIN" in site.logged()


def test_mpop(site: Site, home: Path) -> None:
    settings = ("auth external", f"user {NAME}")
    certificate = (f"tls_cert_file {site.home}/good", f"tls_key_file {site.home}/good")
    run(mpop(home, site.secure, site.trusted, *settings, *certificate), home)
    assert b"Subject: hello" in (home / "mbox").read_bytes()
    assert "AUTH EXTERNAL" in site.logged()


def test_mutt(site: Site, home: Path) -> None:
    settings = (
        f'set pop_user="{NAME}"',
        f'set ssl_client_cert="{site.home}/good"',
        'set pop_authenticators="external"',
    )
    runInTerminal(mutt("mutt", home, site.secure, site.trusted, *settings), home)
    assert b"Subject: hello" in muttReceived(home)
    assert "AUTH EXTERNAL" in site.logged()


# --- openssl s_client -----------------------------------------------------------------


def visit(site: Site, home: Path, *options: str, port: int = 0) -> tuple[str, str]:
    """
    @return: C{New} or C{Reused} for the TLS session, and the output with the replies to CAPA and
        AUTH.
    """
    command = [
        *(program("openssl"), "s_client", "-connect", f"127.0.0.1:{port or site.secure}"),
        *("-ign_eof", *options),
    ]
    said = run(command, home, b"CAPA\nAUTH EXTERNAL =\nQUIT\n").decode()
    found = re.search("^(New|Reused), TLS", said, re.MULTILINE)
    assert found is not None, said
    return found[1], said


def logsIn(said: str) -> bool:
    """
    Check that EXTERNAL was accepted if, and only if, it was announced.

    @return: whether EXTERNAL was announced and accepted.
    """
    isAnnounced = "SASL PLAIN LOGIN EXTERNAL\r\n" in said
    assert isAnnounced == ("+OK Logged in." in said)
    assert isAnnounced != ("-ERR No such mechanism." in said)
    return isAnnounced


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("certificate", ["good", "expired", "server", "stranger", ""])
def test_resumes(site: Site, home: Path, version: str, certificate: str) -> None:
    """
    After the resumption of a TLS session, EXTERNAL is possible if, and only if, it was possible
    after the full handshake, over implicit TLS and after STLS.
    """
    saved = str(home / "session")
    shown = ["-cert", str(site.home / certificate)] if certificate else []
    shown += ["-key", str(site.home / certificate)] if certificate else []
    for port, stls in ((site.secure, []), (site.plain, ["-starttls", "pop3"])):
        took, said = visit(site, home, version, *stls, *shown, "-sess_out", saved, port=port)
        assert (took, logsIn(said)) == ("New", certificate == "good")
        # The client sends no certificate now.
        took, said = visit(site, home, version, *stls, "-sess_in", saved, port=port)
        assert (took, logsIn(said)) == ("Reused", certificate == "good")


# --- accounts and authorities that change ---------------------------------------------


def party(site: Site, certificate: Path, isImplicit: bool = True) -> Connection:
    """
    @return: a client with a certificate.
    """
    context = ssl.create_default_context(cafile=str(site.trusted))
    context.load_cert_chain(certificate)
    connection = Connection(site.secure if isImplicit else site.plain)
    if isImplicit:
        connection.startTLS(context)
        connection.line()
    else:
        connection.line()
        assert connection.say(b"STLS").startswith(b"+OK")
        connection.startTLS(context)
    return connection


@pytest.mark.parametrize("workers", ["1", "2"])
def test_renewedAuthority(tmp_path: Path, workers: str) -> None:
    """
    While other clients connect, the file of the authority is replaced by a broken file, and then by
    another authority.  The service always accepts USER from a client with an unknown certificate,
    and EXTERNAL with a certificate of the last valid authority.
    """
    site = Site(tmp_path / "site", "--workers", workers, "--cleartext-login", "always")
    other = Authority()
    other.issue(tmp_path / "other", [NAME], isForClients=True)
    broken, renewed = tmp_path / "broken", tmp_path / "renewed"
    broken.write_text("nonsense")
    other.write(renewed)
    accepted: list[bytes] = []
    refused: list[bytes] = []
    isOver = threading.Event()

    def load() -> None:
        while not isOver.is_set():
            with party(site, site.home / "stranger").socket as socket:
                socket.sendall(b"USER nobody\r\n")
                refused.append(socket.recv(100))

    def attempt(certificate: Path, isImplicit: bool = True) -> bytes:
        client = party(site, certificate, isImplicit)
        said = client.say(b"AUTH EXTERNAL =")
        client.say(b"QUIT")
        client.socket.close()
        return said

    with site.running:
        site.running.up()
        loading = [threading.Thread(target=load) for _ in range(2)]
        for each in loading:
            each.start()
        try:
            good = site.home / "good"
            for isImplicit in (True, False):
                assert attempt(good, isImplicit) == b"+OK Logged in.\r\n"
            broken.replace(site.clientCa)
            site.running.process.send_signal(signal.SIGHUP)
            assert "clients.pem holds no PEM" in site.running.waitFor("keeping the previous")
            site.running.waitFor("reloaded after SIGHUP")
            for _ in range(10):
                accepted.append(attempt(good))
            renewed.replace(site.clientCa)
            for isImplicit in (True, False):
                said = attempt(good, isImplicit)
                assert said == b"-ERR No such mechanism.\r\n"
                accepted.append(attempt(tmp_path / "other", isImplicit))
            site.running.process.send_signal(signal.SIGHUP)
            site.running.waitFor("reloaded after SIGHUP")
        finally:
            isOver.set()
            for each in loading:
                each.join()
        assert set(accepted) == {b"+OK Logged in.\r\n"}
        assert len(refused) > 10 and set(refused) == {b"+OK Password required.\r\n"}
        # After a user is removed, the user's certificate does not log in, and WAKE is refused.
        client = party(site, tmp_path / "other")
        assert client.say(b"AUTH EXTERNAL =").startswith(b"+OK")
        assert client.say(b"SLEE").startswith(b"+OK")
        site.users.write_text("")
        assert attempt(tmp_path / "other") == b"-ERR [AUTH] Wrong name or password.\r\n"
        assert client.say(b"WAKE") == b"-ERR [AUTH] Account is no longer valid.\r\n"
        assert site.running.end(signal.SIGTERM) == 0
    assert not [line for line in site.running.lines if "Traceback" in line]


def test_oneListener(tmp_path: Path) -> None:
    """
    Only the listener with C{client-ca} asks for certificates.  The common name is the name of the
    user.  If C{client-ca} names no file with certificates, the service does not start.
    """
    site = Site(tmp_path / "site")
    site.running.process.kill()
    site.authority.issue(tmp_path / "named", ["alice"], isForClients=True)
    site.users.write_text(f"alice:{{PLAIN}}{PASSWORD}\n")
    config = tmp_path / "pop3svc.toml"
    config.write_text(f"""
data = "{tmp_path}/data"
certificate = "{site.home}/served.pem"
client-name = "cn"
[[listener]]
endpoint = "ssl:{site.secure}:interface=127.0.0.1"
client-ca = "{site.clientCa}"
[[listener]]
endpoint = "tcp:{site.plain}:interface=127.0.0.1"
[[store]]
kind = "memory"
auth = ["passwd:{site.users}"]
""")
    with Running(tmp_path / "service", "--config", str(config)) as running:
        running.up()
        client = party(site, tmp_path / "named")
        assert client.say(b"AUTH EXTERNAL =") == b"+OK Logged in.\r\n"
        client = party(site, tmp_path / "named", isImplicit=False)
        assert client.say(b"AUTH EXTERNAL =") == b"-ERR No such mechanism.\r\n"
    for path, says in (("nowhere.pem", "No such file"), ("users", "holds no PEM certificate")):
        config.write_text(config.read_text().replace(str(site.clientCa), str(site.home / path)))
        site.clientCa = site.home / path
        ended = Running(tmp_path / "service", "--config", str(config))
        with ended:
            assert ended.end() == 1
        (line,) = [each for each in ended.lines if "client-ca: " in each]
        assert f"{config}: listener[1].client-ca: {site.clientCa}" in line and says in line
