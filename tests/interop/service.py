"""
A real service: twistd in a process of its own, on free ports of this machine.
"""

from __future__ import annotations

import datetime
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.interop.hard_messages import HardMessage
from tests.support.running import environment, freePort, script

__all__ = ["HOST", "PASSWORD", "Maildir", "Service"]

HOST = "127.0.0.1"
PASSWORD = "correct-horse"

# Seconds until the service must answer, and until it must have ended.
_START = 30.0
_STOP = 20.0
_POLL = 0.05
# Seconds that one read from the service may take.
_PATIENCE = 20.0


def _makeCertificate(certificate: Path, privateKey: Path) -> None:
    """
    Write a self-signed certificate for this machine, and its key.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    names = [x509.DNSName("localhost"), x509.IPAddress(ip_address(HOST))]
    now = datetime.datetime.now(datetime.UTC)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    usage = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=7))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=True, key_cert_sign=True, **usage), critical=True
        )
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    certificate.write_bytes(made.public_bytes(Encoding.PEM))
    privateKey.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    privateKey.chmod(0o600)


class Maildir:
    """
    A user's Maildir on disk.

    @ivar delivered: the octets of each message in the Maildir, by the path of its file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.delivered: dict[str, bytes] = {}
        for folder in ("tmp", "new", "cur"):
            (path / folder).mkdir(parents=True)

    def add(self, number: int, message: HardMessage, source: Path) -> None:
        """
        Deliver a message, as a link to a file that holds it.

        @param number: its position in the order of delivery.
        """
        path = f"{message.folder}/{1_700_000_000 + number}.M{number}P1.interop{message.suffix}"
        (self.path / path).hardlink_to(source)
        self.delivered[path] = message.stored

    def contents(self) -> dict[str, bytes]:
        """
        @return: the octets of each message by the path of its file.
        """
        return {
            f"{folder}/{path.name}": path.read_bytes()
            for folder in ("new", "cur", "tmp")
            for path in (self.path / folder).iterdir()
        }


class Service:
    """
    A run of C{twistd pop3svc} with a plain port that offers STLS, and a port with implicit TLS.

    @ivar port: the plain port.
    @ivar tlsPort: the port with implicit TLS.
    @ivar certificate: the certificate that a client has to trust.
    """

    def __init__(self, directory: Path) -> None:
        """
        @param directory: an empty directory for all files of the service.
        """
        self.directory = directory
        self.certificate = directory / "certificate.pem"
        self.mail = directory / "mail"
        self._privateKey = directory / "key.pem"
        self._users = directory / "users"
        self._corpus = directory / "corpus"
        self._logFile = directory / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self.port = self.tlsPort = 0
        self.mail.mkdir()
        self._corpus.mkdir()
        _makeCertificate(self.certificate, self._privateKey)
        self._users.touch(0o600)

    def addUser(self, name: str, messages: Iterable[HardMessage] = ()) -> Maildir:
        """
        Add an account with a Maildir; the service may be running.
        """
        maildir = Maildir(self.mail / name)
        for number, message in enumerate(messages, 1):
            source = self._corpus / message.name
            if not source.exists():
                source.write_bytes(message.stored)
            maildir.add(number, message, source)
        with self._users.open("a") as users:
            # Store no hash, because the tests log in hundreds of times, and each check of a hash
            # takes long.
            users.write(f"{name}:{{PLAIN}}{PASSWORD}\n")
        return maildir

    def _command(self) -> list[str]:
        return [
            script("twistd"),
            "-n",
            "--pidfile=",
            "--logfile=-",
            "pop3svc",
            *("--endpoint", f"tcp:{self.port}:interface={HOST}"),
            *("--endpoint", f"ssl:{self.tlsPort}:interface={HOST}"),
            *("--provider", f"maildir:{self.mail}"),
            *("--auth", f"passwd:{self._users}"),
            *("--certificate", str(self.certificate)),
            *("--private-key", str(self._privateKey)),
        ]

    def start(self) -> None:
        """
        Start the service and wait until it answers on both ports.
        """
        self.port, self.tlsPort = freePort(), freePort()
        with self._logFile.open("wb") as log:
            self._process = subprocess.Popen(
                self._command(),
                cwd=self.directory,
                env=environment(self.directory),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            if self._answers():
                return
        except BaseException:
            self.stop()
            raise
        self.stop()
        raise AssertionError(f"the service does not start:\n{self.log()}")

    def _answers(self) -> bool:
        """
        Wait until the service greets on both ports, or ends, or the time is over.

        @return: whether it greets.
        """
        assert self._process is not None
        deadline = time.monotonic() + _START
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                for way in ("plain", "tls"):
                    with self.connect(way) as connection:
                        assert connection.recv(512).startswith(b"+OK")
            except OSError:
                time.sleep(_POLL)
            else:
                return True
        return False

    def portFor(self, way: str) -> int:
        """
        @param way: C{"plain"}, C{"stls"}, or C{"tls"} for implicit TLS.
        """
        return self.tlsPort if way == "tls" else self.port

    def context(self) -> ssl.SSLContext:
        """
        @return: a TLS context for clients that trusts only this service.
        """
        return ssl.create_default_context(cafile=str(self.certificate))

    def secured(self, connection: socket.socket) -> ssl.SSLSocket:
        """
        Begin TLS on a connection.  An end without close_notify is an error.
        """
        return self.context().wrap_socket(
            connection, server_hostname=HOST, suppress_ragged_eofs=False
        )

    def connect(self, way: str) -> socket.socket:
        """
        @param way: see L{portFor}.  With C{"stls"}, the caller has to send STLS.
        """
        connection = socket.create_connection((HOST, self.portFor(way)), _PATIENCE)
        if way != "tls":
            return connection
        try:
            return self.secured(connection)
        except BaseException:
            connection.close()
            raise

    def log(self) -> str:
        """
        @return: the log so far.
        """
        return self._logFile.read_text(errors="replace") if self._logFile.exists() else ""

    def stop(self) -> int | None:
        """
        Stop the service by SIGTERM.

        @return: the exit status; L{None} if the service was not running.
        """
        process, self._process = self._process, None
        if process is None:
            return None
        try:
            process.send_signal(signal.SIGTERM)
            return process.wait(_STOP)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
