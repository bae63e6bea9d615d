"""
Several certificates of a real service, and real clients that ask for host names.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from scramp import ScramClient

from pop3svc.testing.certificates import Authority
from tests.service.test_certificateset import AUTHORITY, certbot
from tests.support.running import PATIENCE, Running, environment, freePort, script
from tests.support.site import site

__all__ = ["site"]

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


class Service:
    """
    A service with the certificates of a directory.
    """

    def __init__(self, path: Path, site: Path, *more: str) -> None:
        self.path = path
        self.plain, self.secure, self.web = freePort(), freePort(), freePort()
        for name in "ab":
            certbot(path, name, f"{name}.example", f"*.{name}.example")
        AUTHORITY.write(path / "ca.pem")
        users = (site / "users").read_text()
        (path / "users").write_text(f"{users}carol:{{PLAIN}}secret word\n")
        (site / "mail" / "carol").mkdir(exist_ok=True)
        clients = Authority()
        clients.write(path / "clients.pem")
        clients.issue(path / "client.pem", ["alice"], isForClients=True)
        host = "interface=127.0.0.1"
        self.running = Running(
            path / "home",
            *("--provider", f"maildir:{site / 'mail'}", "--auth", f"passwd:{path / 'users'}"),
            *("--enable", "SCRAM-SHA-256-PLUS"),
            *("--certificate-directory", str(path / "live"), "--tls-default-name", "b.example"),
            *("--client-ca", str(path / "clients.pem"), "--client-name", "cn"),
            *("--endpoint", f"tcp:{self.plain}:{host}", "--endpoint", f"ssl:{self.secure}:{host}"),
            *("--admin", str(path / "admin.sock"), "--web", f"tcp:{self.web}:{host}"),
            *more,
        )

    def talk(self, port: int, *arguments: str, commands: str = "QUIT\n") -> str:
        done = subprocess.run(
            [
                *("openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-crlf", "-ign_eof"),
                *("-CAfile", str(self.path / "ca.pem"), *arguments),
            ],
            input=commands,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert "Verify return code: 0 (ok)" in done.stdout, done.stdout + done.stderr
        return done.stdout

    def served(self, *arguments: str, isPlain: bool = False) -> str:
        """
        @return: the common name of the certificate that a client gets.
        """
        ways = ("-starttls", "pop3") if isPlain else ()
        said = self.talk(self.plain if isPlain else self.secure, *ways, *arguments)
        (found,) = re.findall(r"^subject=CN *= *(\S+)", said, re.MULTILINE)
        return str(found)

    def curl(self, host: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                *("curl", "-sS", "--cacert", str(self.path / "ca.pem"), *arguments),
                *("--resolve", f"{host}:{self.secure}:127.0.0.1"),
                f"pop3s://{host}:{self.secure}/",
            ],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )


@pytest.fixture(scope="module", params=[1, 2])
def service(
    request: pytest.FixtureRequest, site: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    workers = request.param
    made = Service(tmp_path_factory.mktemp("names"), site, "--workers", str(workers))
    with made.running as running:
        running.up()
        for _ in range(workers if workers > 1 else 0):
            running.waitFor("serves")
        yield made


def test_servedByName(service: Service) -> None:
    for name, expected in (
        ("a.example", "a.example"),
        ("x.a.example", "a.example"),
        ("b.example", "b.example"),
        ("other.example", "b.example"),
        (None, "b.example"),
    ):
        how = ("-noservername",) if name is None else ("-servername", name)
        for isPlain in (False, True):
            assert service.served(*how, isPlain=isPlain) == expected, name


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(service: Service) -> None:
    """
    curl verifies the certificate for the name that it asks for, and logs in by a password and by
    the client's certificate.
    """
    for host in ("a.example", "x.a.example", "b.example"):
        done = service.curl(host, "-u", "alice:secret word")
        assert done.returncode == 0, done.stderr
    certificate = ("--cert", str(service.path / "client.pem"))
    for host in ("a.example", "b.example"):
        done = service.curl(host, *certificate, "-u", "alice:", "--login-options", "AUTH=EXTERNAL")
        assert done.returncode == 0, done.stderr
    # The exit status 60 means that the certificate is for another name.
    assert service.curl("c.example", "-u", "alice:secret word").returncode == 60


@pytest.mark.skipif(shutil.which("fetchmail") is None, reason="needs fetchmail")
def test_fetchmail(service: Service, tmp_path: Path) -> None:
    """
    fetchmail asks for the name that it expects in the certificate.
    """
    configuration = tmp_path / "fetchmailrc"
    configuration.write_text(
        f"poll localhost service {service.secure} protocol pop3 "
        f'username alice password "secret word" ssl sslcertck '
        f"sslcertfile {service.path / 'ca.pem'} sslcommonname x.a.example\n"
    )
    configuration.chmod(0o600)
    done = subprocess.run(
        ["fetchmail", "--check", "-f", str(configuration), "-v", "--nodetach"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env=os.environ | {"HOME": str(tmp_path), "FETCHMAILHOME": str(tmp_path)},
    )
    # The exit status 1 means that there is no mail.
    assert done.returncode == 1, done.stdout + done.stderr
    assert "a.example" in done.stdout


def test_renewedAddedAndRemoved(service: Service) -> None:
    """
    Certificates of certbot are renewed, added and removed without a signal.  A later SIGHUP changes
    nothing.
    """
    before = service.talk(service.secure, "-servername", "a.example")
    certbot(service.path, "a", "a.example")
    while serial(service.talk(service.secure, "-servername", "a.example")) == serial(before):
        pass
    certbot(service.path, "c", "c.example")
    while service.served("-servername", "c.example") != "c.example":
        pass
    shutil.rmtree(service.path / "live" / "c")
    while service.served("-servername", "c.example") == "c.example":
        pass
    assert service.served("-noservername") == "b.example"
    service.running.process.send_signal(signal.SIGHUP)
    service.running.waitFor("reloaded after SIGHUP")
    assert service.served("-servername", "a.example") == "a.example"


def test_protocolAndName(service: Service) -> None:
    """
    The choice of the certificate leaves the choice of the protocol (ALPN) as it is.
    """
    said = service.talk(service.secure, "-servername", "a.example", "-alpn", "pop3")
    assert "ALPN protocol: pop3" in said
    done = subprocess.run(
        [
            *("openssl", "s_client", "-connect", f"127.0.0.1:{service.secure}"),
            *("-servername", "a.example", "-alpn", "http/1.1"),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert "no application protocol" in done.stderr


def login(service: Service, name: str | None, wrong: bool = False) -> bytes:
    """
    Log in by SCRAM-SHA-256-PLUS, bound to the certificate that was received.

    @param wrong: bind to another certificate.
    @return: the last line of the server.
    """
    context = ssl.create_default_context(cafile=str(service.path / "ca.pem"))
    context.check_hostname = False
    with socket.create_connection(("127.0.0.1", service.secure), PATIENCE) as raw:
        with context.wrap_socket(raw, server_hostname=name) as wrapped:
            certificate = wrapped.getpeercert(True)
            assert certificate is not None
            bound = hashlib.sha256(certificate + b"x" * wrong).digest()
            client = ScramClient(
                ["SCRAM-SHA-256-PLUS"],
                "carol",
                "secret word",
                channel_binding=("tls-server-end-point", bound),
            )
            lines = wrapped.makefile("rb")
            lines.readline()

            def say(text: str) -> bytes:
                wrapped.sendall(text.encode("ascii") + b"\r\n")
                return lines.readline()

            def encoded(text: str) -> str:
                return base64.b64encode(text.encode("utf-8")).decode("ascii")

            challenge = say(f"AUTH SCRAM-SHA-256-PLUS {encoded(client.get_client_first())}")
            client.set_server_first(base64.b64decode(challenge[2:]).decode("utf-8"))
            answer = say(encoded(client.get_client_final()))
            if answer.startswith(b"+ "):
                client.set_server_final(base64.b64decode(answer[2:]).decode("utf-8"))
                answer = say("")
            say("QUIT")
            return answer


def test_channelBinding(service: Service) -> None:
    """
    SCRAM is bound to the certificate that the client has received for the name.
    """
    for name in ("a.example", "b.example", None):
        assert login(service, name).startswith(b"+OK")
        assert login(service, name, wrong=True).startswith(b"-ERR")


def test_status(service: Service) -> None:
    """
    The operator sees the end of each certificate, and each has a metric.
    """
    socketPath = str(service.path / "admin.sock")
    done = subprocess.run(
        [script("pop3svc"), "status", "--admin", socketPath],
        env=environment(service.path),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with urlopen(f"http://127.0.0.1:{service.web}/metrics", timeout=PATIENCE) as answer:
        metrics = answer.read().decode("utf-8")
    for name in "ab":
        path = service.path / "live" / name / "fullchain.pem"
        assert f'pop3svc_certificate_end_timestamp_seconds{{certificate="{path}"}}' in metrics
        assert re.search(rf"^certificate {path}: \d+ days left$", done.stdout, re.MULTILINE)


def serial(said: str) -> str:
    (pem,) = re.findall(r"-----BEGIN CERTIFICATE-----.*?-----END", said, re.DOTALL)
    return str(pem)
