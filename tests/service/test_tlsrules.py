"""
Versions and ciphers of TLS, between OpenSSL's client and a real service.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from OpenSSL import SSL

from pop3svc.service.options import Options
from pop3svc.service.settings import SettingError
from pop3svc.service.tlsrules import checkCiphers, checkCiphersuites
from tests.support.running import PATIENCE, Running, freePort
from tests.support.site import options, site

__all__ = ["site"]

needsOpenSSL = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")

OLD = ("-cipher", "ALL:@SECLEVEL=0")


def visit(port: int, *arguments: str) -> tuple[str, str]:
    """
    @return: the version of TLS and the cipher; empty strings if the handshake failed.
    """
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-crlf", *arguments],
        input="QUIT\n",
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    found = re.search(r"^New, (?!\(NONE)(?:\S+), Cipher is (\S+)", done.stdout, re.MULTILINE)
    version = re.search(r"^ *Protocol *: (\S+)|^New, (TLSv1\.3)", done.stdout, re.MULTILINE)
    if found is None or version is None:
        return "", ""
    return version[1] or version[2], found[1]


class Ports:
    """
    The ports of a running service.
    """

    def __init__(self) -> None:
        self.usual, self.old, self.oldPlain, self.others = (freePort() for _ in range(4))


@pytest.fixture(scope="module")
def running(
    site: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Running, Ports]]:
    ports, home = Ports(), tmp_path_factory.mktemp("rules")
    host = "interface=127.0.0.1"
    (home / "pop3svc.toml").write_text(
        f"""
        tls-ciphers = "ECDHE-ECDSA-AES128-GCM-SHA256"
        tls-ciphersuites = "TLS_CHACHA20_POLY1305_SHA256"
        [[listener]]
        endpoint = "ssl:{ports.usual}:{host}"
        [[listener]]
        endpoint = "ssl:{ports.old}:{host}"
        old-tls-from = ["127.0.0.1/32"]
        [[listener]]
        endpoint = "tcp:{ports.oldPlain}:{host}"
        old-tls-from = ["127.0.0.1/32"]
        [[listener]]
        endpoint = "ssl:{ports.others}:{host}"
        old-tls-from = ["192.0.2.0/24"]
        """
    )
    with Running(home, *options(site), "--config", str(home / "pop3svc.toml")) as process:
        process.up()
        process.waitFor("accepts TLS 1.0 and 1.1, which are not safe, from 127.0.0.1/32 only")
        yield process, ports


@needsOpenSSL
def test_ciphers(running: tuple[Running, Ports]) -> None:
    _, ports = running
    assert visit(ports.usual, "-tls1_2") == ("TLSv1.2", "ECDHE-ECDSA-AES128-GCM-SHA256")
    assert visit(ports.usual) == ("TLSv1.3", "TLS_CHACHA20_POLY1305_SHA256")
    assert visit(ports.usual, "-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384") == ("", "")
    assert visit(ports.usual, "-tls1", *OLD) == ("", "")


@needsOpenSSL
def test_oldDevices(running: tuple[Running, Ports]) -> None:
    """
    A listener for old devices speaks TLS 1.0 and later, and the log shows the version.
    """
    process, ports = running
    assert visit(ports.old, "-tls1", *OLD)[0] == "TLSv1"
    process.waitFor("(TLSv1)")
    assert visit(ports.old, "-tls1_1", *OLD)[0] == "TLSv1.1"
    assert visit(ports.old)[0] == "TLSv1.3"
    assert visit(ports.oldPlain, "-starttls", "pop3", "-tls1", *OLD)[0] == "TLSv1"


@needsOpenSSL
def test_oldDevicesOfOthers(running: tuple[Running, Ports]) -> None:
    process, ports = running
    assert visit(ports.others) == visit(ports.others, "-tls1", *OLD) == ("", "")
    process.waitFor("refused 127.0.0.1: old-tls-from does not name it")


def test_refusedWithoutTLS(site: Path, tmp_path: Path) -> None:
    from twisted.internet.address import IPv4Address, UNIXAddress
    from twisted.internet.task import Clock
    from twisted.internet.testing import StringTransport

    from pop3svc.metrics.meter import Meter
    from pop3svc.providers.memory import MemoryProvider
    from pop3svc.service.factory import ListenerFactory, POP3Factory
    from pop3svc.service.settings import NETWORKS
    from tests.support.mailboxes import logged

    meter = Meter(Clock())
    main = POP3Factory(MemoryProvider({}), clock=Clock(), meter=meter)
    factory = ListenerFactory(main, None, networks=NETWORKS.fromText("192.0.2.0/24"))

    def connect() -> None:
        for address, may in (
            (IPv4Address("TCP", "192.0.2.1", 1), True),
            (IPv4Address("TCP", "::ffff:192.0.2.1", 1), True),
            (IPv4Address("TCP", "198.51.100.1", 1), False),
            (IPv4Address("TCP", "198.51.100.1", 2), False),
            (UNIXAddress("/run/x"), False),
        ):
            protocol, transport = factory.buildProtocol(address), StringTransport()
            assert protocol is not None
            protocol.makeConnection(transport)
            assert transport.value().startswith(b"+OK" if may else b"-ERR [SYS/PERM] This port")

    events = logged(connect)
    texts = [each for each in events if str(each["log_format"]).startswith("refused ")]
    assert [each["clientIP"] for each in texts] == ["198.51.100.1", None]
    assert meter.numbers()["pop3svc_connections_refused_total\tnetwork"] == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('tls-ciphers = "NONSENSE"', "tls-ciphers: OpenSSL has no cipher 'NONSENSE' for TLS 1.2"),
        ('tls-ciphers = "ECDHE:TYPO"', "OpenSSL has no cipher 'TYPO'"),
        ('tls-ciphers = "!aNULL"', "OpenSSL has no cipher '!aNULL'"),
        ('tls-ciphers = ""', "OpenSSL has no cipher ''"),
        ('tls-ciphersuites = "TLS_AES_128_GCM_SHA256:TYPO"', "has no cipher 'TYPO' for TLS 1.3"),
        ('tls-ciphersuites = ""', "must be ciphers for TLS 1.3"),
        ('tls-minimum-version = "1.0"', "must be one of 1.2, 1.3"),
        ('[[listener]]\nendpoint = "tcp:1"\nold-tls-from = []', "must name a network"),
        (
            '[[listener]]\nendpoint = "unix:/x"\nold-tls-from = ["::1/128"]',
            "clients of a unix: socket have no address",
        ),
    ],
)
def test_bad(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "pop3svc.toml").write_text(text)
    read = Options()
    read.parseOptions(["--config", str(tmp_path / "pop3svc.toml")])
    with pytest.raises(SettingError, match=re.escape(says)):
        read.settings()


def test_good(monkeypatch: pytest.MonkeyPatch) -> None:
    checkCiphers("ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL:@STRENGTH")
    checkCiphersuites("TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384")
    monkeypatch.delattr(SSL.Context, "set_tls13_ciphersuites")
    with pytest.raises(ValueError, match="needs pyOpenSSL 25.2"):
        checkCiphersuites("TLS_AES_128_GCM_SHA256")


def test_onlyTLS13(site: Path) -> None:
    """
    The TLS context itself has the minimum version.
    """
    from pop3svc.service.tls import RenewableCertificate
    from pop3svc.service.tlsrules import TLSRules

    creator = RenewableCertificate(
        str(site / "cert.pem"), str(site / "key.pem"), rules=TLSRules("1.3")
    )
    for version, fits in ((SSL.TLS1_3_VERSION, True), (SSL.TLS1_2_VERSION, False)):
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_max_proto_version(version)
        client, server = SSL.Connection(context, None), creator.serverConnectionForTLS(None)
        client.set_connect_state()
        server.set_accept_state()
        with pytest.raises(SSL.WantReadError):
            client.do_handshake()
        server.bio_write(client.bio_read(65536))
        with pytest.raises(SSL.WantReadError if fits else SSL.Error):
            server.do_handshake()
