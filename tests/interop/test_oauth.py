"""
Real clients log in to a real service with tokens, whose keys a server of the issuer publishes.
"""

from __future__ import annotations

import signal
import ssl
import subprocess
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pop3svc.testing.certificates import Authority
from tests.interop.clients import environment, program, run, runInTerminal, writePrivately
from tests.support.running import Connection, Running, freePort
from tests.support.tokens import AUDIENCE, ISSUER, Issuer

pytestmark = pytest.mark.interop

MESSAGE = b"Subject: hello\r\n\r\nworld\r\n"
USER = "ann@example.org"


class Publisher:
    """
    The web server of an issuer.

    @ivar body: the key set; L{None}: it sends a header and no body.
    @ivar asked: how many requests came.
    @ivar dropped: set when a client has closed its connection without having got a body.
    """

    def __init__(self, port: int, certificate: Path, body: bytes | None) -> None:
        self.body = body
        self.asked = 0
        self.dropped = threading.Event()
        publisher = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                publisher.asked += 1
                body = publisher.body
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body or b"slow")))
                self.end_headers()
                if body is not None:
                    self.wfile.write(body)
                    return
                try:
                    self.connection.recv(1)
                except OSError:
                    pass
                publisher.dropped.set()

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """
        Stop listening.
        """
        self._server.shutdown()
        self._server.server_close()


class Site:
    """
    A service that accepts the tokens of an issuer.
    """

    def __init__(self, home: Path, isTrusted: bool = True) -> None:
        home.mkdir()
        self.issuer = Issuer()
        self.port, self.webPort = freePort(), freePort()
        authority = Authority()
        self.authorities = home / "ca.pem"
        authority.write(self.authorities)
        self.certificate = home / "served.pem"
        authority.issue(self.certificate, ["localhost", "127.0.0.1"])
        for folder in ("cur", "new", "tmp"):
            (home / "mail" / USER / folder).mkdir(parents=True)
        (home / "mail" / USER / "new" / "1.host").write_bytes(MESSAGE)
        trust = f":ca={self.authorities}" if isTrusted else ""
        self.running = Running(
            home / "service",
            *("--endpoint", f"ssl:{self.port}:interface=127.0.0.1"),
            *("--provider", f"maildir:{home}/mail/{{user}}"),
            "--auth",
            f"oauth:jwks=https://127.0.0.1:{self.webPort}/keys:issuer={ISSUER}"
            f":audience={AUDIENCE}{trust}",
            *("--certificate", str(self.certificate), "--data", str(home / "data")),
        )

    def publish(self, *names: str) -> Publisher:
        return Publisher(self.webPort, self.certificate, self.issuer.published(*names))

    def connect(self) -> Connection:
        client = Connection(self.port)
        client.startTLS(ssl.create_default_context(cafile=str(self.authorities)))
        assert client.line().startswith(b"+OK")
        return client

    def tryToken(self, token: str) -> bytes:
        """
        @return: the final reply.
        """
        client = self.connect()
        message = b64encode(f"n,a={USER},\x01auth=Bearer {token}\x01\x01".encode())
        reply = client.say(b"AUTH OAUTHBEARER " + message)
        if reply.startswith(b"+ "):
            reply = client.say(b"AQ==")
        client.socket.close()
        return reply

    def reload(self) -> None:
        self.running.process.send_signal(signal.SIGHUP)
        self.running.waitFor("reloaded after SIGHUP")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("oauth") / "site")
    publisher = site.publish()
    with site.running:
        site.running.up()
        yield site
    publisher.close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    return home


# --- mail programs --------------------------------------------------------------------


def curl(site: Site, token: str, *options: str) -> list[str]:
    return [
        *(program("curl"), "-sS", "--cacert", str(site.authorities), *options),
        *("--oauth2-bearer", token, "-u", USER, f"pop3s://127.0.0.1:{site.port}/1"),
    ]


@pytest.mark.parametrize("options", [(), ("--sasl-ir",)])
def test_curl(site: Site, home: Path, options: tuple[str, ...]) -> None:
    assert run(curl(site, site.issuer.token(), *options), home) == MESSAGE
    assert "AUTH OAUTHBEARER" in site.running.waitFor(f" {USER} ")


def test_curlRefused(site: Site, home: Path) -> None:
    token = site.issuer.token(exp=int(time.time()) - 600)
    done = subprocess.run(
        curl(site, token), env=environment(home), capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 67, done.stderr


@pytest.mark.parametrize("auth", ["oauthbearer", "xoauth2"])
@pytest.mark.parametrize("isGood", [True, False])
def test_mpop(site: Site, home: Path, auth: str, isGood: bool) -> None:
    token = site.issuer.token(aud=AUDIENCE if isGood else "other")
    writePrivately(home / "token", token)
    settings = f"""
account default
host 127.0.0.1
port {site.port}
auth {auth}
user {USER}
passwordeval cat {home}/token
tls on
tls_starttls off
tls_trust_file {site.authorities}
keep on
only_new off
received_header off
uidls_file {home}/uidls
delivery mbox {home}/mbox
"""
    command = [program("mpop"), "--quiet", "--file", writePrivately(home / "mpoprc", settings)]
    if not isGood:
        done = subprocess.run(
            command, env=environment(home), capture_output=True, timeout=60, check=False
        )
        assert done.returncode != 0
        assert b"[AUTH] Wrong name or password." in done.stderr
        return
    run(command, home)
    assert b"Subject: hello" in (home / "mbox").read_bytes()
    assert f"AUTH {auth.upper()}" in site.running.waitFor(f" {USER} ")


@pytest.mark.parametrize(
    ("name", "method"), [("mutt", "oauthbearer"), ("mutt", "xoauth2"), ("neomutt", "oauthbearer")]
)
def test_mutt(site: Site, home: Path, name: str, method: str) -> None:
    """
    neomutt sends the token as an initial response, and only a short one.
    """
    writePrivately(home / "token", site.issuer.token("ed", "EdDSA", iat=None, sub=None))
    url = f"pops://{USER.replace('@', '%40')}@127.0.0.1:{site.port}"
    for folder in ("tmp", "new", "cur"):
        (home / "delivered" / folder).mkdir(parents=True)
    settings = f"""
set mbox_type=Maildir
set folder="{home}"
set spoolfile="{home}/delivered"
set pop_host="{url}"
set pop_oauth_refresh_command="cat {home}/token"
set pop_authenticators="{method}"
set pop_delete=no
set certificate_file="{site.authorities}"
set sleep_time=0
set quit=yes
set move=no
push "<fetch-mail><exit>"
"""
    command = [program(name), "-n", "-F", writePrivately(home / "rc", settings)]
    runInTerminal(command, home)
    (received,) = (home / "delivered" / "new").iterdir()
    assert b"Subject: hello" in received.read_bytes()
    assert f"AUTH {method.upper()}" in site.running.waitFor(f" {USER} ")


# --- the issuer -----------------------------------------------------------------------


def test_offered(site: Site) -> None:
    client = site.connect()
    assert client.say(b"CAPA").startswith(b"+OK")
    assert b"SASL PLAIN LOGIN OAUTHBEARER XOAUTH2\r\n" in client.lines()


def test_refused(tmp_path: Path) -> None:
    """
    Wrong tokens get one answer, and nothing of a token gets into the log.
    """
    site = Site(tmp_path / "site")
    publisher = site.publish()
    now = int(time.time())
    stranger = Issuer()
    bad = [
        site.issuer.token(iss="https://other.example.org/"),
        site.issuer.token(exp=now - 600),
        site.issuer.token(nbf=now + 600),
        site.issuer.token(header={"alg": "none"}),
        site.issuer.token(header={"alg": "HS256"}),
        site.issuer.token(email="bob@example.org"),
        stranger.token(),
    ]
    with site.running:
        site.running.up()
        for token in bad[:2]:
            assert site.tryToken(token) == b"-ERR [AUTH] Wrong name or password.\r\n"
        skewed = site.issuer.token(exp=now - 30, iat=now + 30)
        assert site.tryToken(skewed) == b"+OK Logged in.\r\n"
        for token in bad[2:]:
            assert site.tryToken(token) == b"-ERR [AUTH] Wrong name or password.\r\n"
        assert publisher.asked == 1
        site.running.end(signal.SIGTERM)
    publisher.close()
    log = "\n".join(site.running.lines)
    assert "a token is refused, because its issuer is another one" in log
    assert "Traceback" not in log
    for token in [*bad, skewed]:
        assert not any(part in log for part in token.split("."))


def test_rotation(tmp_path: Path) -> None:
    """
    A new key is accepted, and a withdrawn one is not.
    """
    site = Site(tmp_path / "site")
    publisher = site.publish("rsa")
    with site.running:
        site.running.up()
        old, new = site.issuer.token(), site.issuer.token("ec", "ES256")
        assert site.tryToken(old).startswith(b"+OK")
        assert site.tryToken(new).startswith(b"-ERR [AUTH]")
        publisher.body = site.issuer.published("ec")
        site.reload()
        assert site.tryToken(new).startswith(b"+OK")
        assert site.tryToken(old).startswith(b"-ERR [AUTH]")
        assert publisher.asked == 2
    publisher.close()


def test_stopped(tmp_path: Path) -> None:
    """
    Without keys nobody is refused for good; with keys the issuer may be away.
    """
    site = Site(tmp_path / "site")
    with site.running:
        site.running.up()
        token = site.issuer.token()
        assert site.tryToken(token).startswith(b"-ERR [SYS/TEMP]")
        site.running.waitFor("is not available: ")
        publisher = site.publish()
        site.reload()
        assert site.tryToken(token).startswith(b"+OK")
        publisher.close()
        site.reload()
        site.running.waitFor("is not available: ")
        assert site.tryToken(token).startswith(b"+OK")


def test_slow(tmp_path: Path) -> None:
    """
    The service gives up on a body that does not come, and closes the connection.
    """
    site = Site(tmp_path / "site")
    publisher = site.publish()
    publisher.body = None
    with site.running:
        site.running.up()
        assert site.tryToken(site.issuer.token()).startswith(b"-ERR [SYS/TEMP]")
        site.running.waitFor("no complete answer within 10 s")
        assert publisher.dropped.wait(60)
    publisher.close()


def test_tooMuch(tmp_path: Path) -> None:
    site = Site(tmp_path / "site")
    publisher = site.publish()
    publisher.body = b" " * (1 << 20) + site.issuer.published()
    with site.running:
        site.running.up()
        assert site.tryToken(site.issuer.token()).startswith(b"-ERR [SYS/TEMP]")
        site.running.waitFor("its answer has more than 524288 octets")
    publisher.close()


def test_untrusted(tmp_path: Path) -> None:
    """
    Keys of a server whose certificate is not trusted are not used.
    """
    site = Site(tmp_path / "site", isTrusted=False)
    publisher = site.publish()
    with site.running:
        site.running.up()
        assert site.tryToken(site.issuer.token()).startswith(b"-ERR [SYS/TEMP]")
        site.running.waitFor("is not available: ")
        assert publisher.asked == 0
    publisher.close()
