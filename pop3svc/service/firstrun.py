"""
The embedded default: a directory with accounts, mail and a certificate.
"""

from __future__ import annotations

import datetime
import os
import secrets
import socket
import time
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from platformdirs import user_data_dir

from pop3svc.accounts.passwordfile import addUser

__all__ = ["DataDirectory", "defaultDataDirectory"]

_WELCOME = """\
Date: {date}
From: pop3svc <postmaster@localhost>
To: demo <demo@localhost>
Subject: Welcome to pop3svc
Message-ID: <welcome@localhost>
MIME-Version: 1.0
Content-Type: text/plain; charset=us-ascii

This message lies in a Maildir and was read over POP3:

    {path}

Put files into its "new" folder and they are mail.  Other users get in with

    pop3svc user add NAME

and their mail goes into a folder of that name beside this one.
"""


def defaultDataDirectory() -> str:
    """
    @return: a directory of the user's own, by the platform's convention.
    """
    return user_data_dir("pop3svc", appauthor=False)


def _writeNew(path: str, octets: bytes) -> None:
    """
    Write a private file whole, or not at all.
    """
    temporary = f"{path}.{os.getpid()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(octets)
    os.replace(temporary, path)


class DataDirectory:
    """
    Where the service keeps what is its own.  Nothing is made before it is
    needed, and what is there is left as it is.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(os.path.expanduser(path))

    def _at(self, *names: str) -> str:
        return os.path.join(self.path, *names)

    @property
    def passwordFile(self) -> str:
        """
        The accounts of the embedded default.
        """
        return self._at("users")

    @property
    def mail(self) -> str:
        """
        The directory of the embedded default's Maildirs.
        """
        return self._at("mail")

    @property
    def demoLogin(self) -> str:
        """
        The first user's name and password, as a file for C{curl --netrc-file}.
        """
        return self._at("demo.netrc")

    def make(self) -> None:
        """
        @raise ValueError: it cannot be made; a sentence for the operator.
        """
        try:
            os.makedirs(self.path, 0o700, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{self.path}: {error.strerror}")

    def makeAccounts(self) -> None:
        """
        Make the accounts and the Maildirs, with a first user who has a
        message.

        @raise ValueError: a sentence for the operator.
        """
        self.make()
        try:
            os.makedirs(self.mail, 0o700, exist_ok=True)
            if os.path.exists(self.passwordFile):
                return
            for folder in ("", "tmp", "new", "cur"):
                os.makedirs(self._at("mail", "demo", folder), 0o700, exist_ok=True)
            name = f"{int(time.time())}.M0P{os.getpid()}.localhost"
            date = datetime.datetime.now(datetime.UTC).strftime("%a, %d %b %Y %H:%M:%S +0000")
            welcome = _WELCOME.format(date=date, path=self._at("mail", "demo"))
            _writeNew(self._at("mail", "demo", "new", name), welcome.encode("utf-8"))
            password = secrets.token_urlsafe(12)
            login = f"machine 127.0.0.1 login demo password {password}\n"
            _writeNew(self.demoLogin, login.encode("ascii"))
            # Last, as it is what tells a first start.
            addUser(self.passwordFile, "demo", password)
        except OSError as error:
            raise ValueError(f"{error.filename or self.path}: {error.strerror}")

    def makeCertificate(self) -> tuple[str, str, bool]:
        """
        Make a self-signed certificate if there is none.

        @return: the paths of the certificate and its key, and whether they
            were made now.
        @raise ValueError: a sentence for the operator.
        """
        self.make()
        certificate, privateKey = self._at("certificate.pem"), self._at("key.pem")
        if os.path.exists(certificate) and os.path.exists(privateKey):
            return certificate, privateKey, False
        try:
            certificateOctets, keyOctets = _selfSigned()
            _writeNew(privateKey, keyOctets)
            _writeNew(certificate, certificateOctets)
        except OSError as error:
            raise ValueError(f"{error.filename or self.path}: {error.strerror}")
        return certificate, privateKey, True

    def giveTo(self, uid: int, gid: int) -> None:
        """
        Make all of it another user's, as the service gives up its privileges.

        @raise ValueError: a sentence for the operator.
        """
        try:
            os.chown(self.path, uid, gid)
            for directory, folders, files in os.walk(self.path):
                for name in folders + files:
                    os.chown(os.path.join(directory, name), uid, gid, follow_symlinks=False)
        except OSError as error:
            raise ValueError(f"{error.filename or self.path}: {error.strerror}")


def _selfSigned() -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    host = socket.gethostname() or "localhost"
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])])
    names: list[x509.GeneralName] = [
        x509.DNSName(each) for each in dict.fromkeys([host, "localhost"]) if each.isascii()
    ]
    names += [x509.IPAddress(ip_address(each)) for each in ("127.0.0.1", "::1")]
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=3650))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )
