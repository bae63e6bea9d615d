"""
The data directory, which contains the service's own files.  For a service without configuration,
these files include the accounts, the mail and the certificate.
"""

from __future__ import annotations

import datetime
import errno
import os
import secrets
import socket
import time
from ipaddress import ip_address

from platformdirs import user_data_dir

from pop3svc.accounts.apppasswordlines import revokeAppPasswords
from pop3svc.accounts.passwordediting import addUser
from pop3svc.files import openDirectory, writeWhole

__all__ = ["DataDirectory", "defaultDataDirectory"]

_WELCOME = """\
Date: {date}
From: pop3svc <postmaster@localhost>
To: demo <demo@localhost>
Subject: Welcome to pop3svc
Message-ID: <welcome@localhost>
MIME-Version: 1.0
Content-Type: text/plain; charset=us-ascii

This message was read over POP3 from a Maildir:

    {path}

Each file that you put into its "new" folder is a message.  Add other users with

    pop3svc user add NAME

Their mail is in a folder of that name beside this one.
"""


def defaultDataDirectory() -> str:
    """
    @return: the default data directory.  It belongs to the user who runs the service, and is where
        the platform keeps the data of programs.
    """
    return user_data_dir("pop3svc", appauthor=False)


Owner = tuple[int, int]


def _makeDirectory(path: str, owner: Owner | None) -> None:
    """
    Create a private directory if it does not exist.
    """
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return
    if owner is not None:
        descriptor = openDirectory(path)
        try:
            os.fchown(descriptor, *owner)
        finally:
            os.close(descriptor)


class DataDirectory:
    """
    The directory of the service's own files.  The service creates each file when it first needs the
    file.
    """

    def __init__(self, path: str, owner: Owner | None = None) -> None:
        """
        @param owner: the user and the group that own new files; L{None} if the service keeps its
            privileges.
        """
        self.path = os.path.abspath(os.path.expanduser(path))
        self._owner = owner

    def _at(self, *names: str) -> str:
        return os.path.join(self.path, *names)

    @property
    def passwordFile(self) -> str:
        """
        The path of the password file.
        """
        return self._at("users")

    @property
    def mail(self) -> str:
        """
        The directory of the Maildirs.
        """
        return self._at("mail")

    @property
    def state(self) -> str:
        """
        The path of the database of L{pop3svc.state.State}.
        """
        return self._at("state.db")

    @property
    def fetchRecord(self) -> str:
        """
        The path of the record of C{pop3svc fetch}; see L{pop3svc.fetching.record}.
        """
        return self._at("fetch.db")

    @property
    def adminSocket(self) -> str:
        """
        The path of the admin socket; see L{pop3svc.admin.server}.
        """
        return self._at("admin.sock")

    @property
    def demoLogin(self) -> str:
        """
        The path of a file with the name and the password of the user C{demo}.  C{curl --netrc-file}
        can read the file.
        """
        return self._at("demo.netrc")

    def readDemoLogin(self) -> tuple[str, str] | None:
        """
        @return: the name and the password of the user C{demo}; L{None} if L{demoLogin} cannot be
            read.
        """
        try:
            with open(self.demoLogin, encoding="ascii") as file:
                words = file.read(1000).split()
        except (OSError, ValueError):
            return None
        found = dict(zip(words[::2], words[1::2], strict=False))
        if "login" not in found or "password" not in found:
            return None
        return found["login"], found["password"]

    def make(self) -> None:
        """
        Create the directory.

        @raise ValueError: the directory cannot be created.  The text is a sentence for the
            operator.
        """
        try:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            _makeDirectory(self.path, self._owner)
            if not os.path.isdir(self.path):
                raise NotADirectoryError(errno.ENOTDIR, "Not a directory", self.path)
        except OSError as error:
            raise ValueError(f"{error.filename or self.path}: {error.strerror}")

    def makeAccounts(self) -> None:
        """
        Create the directory of the Maildirs.  If there is no password file, also create one with
        the user C{demo}, whose Maildir gets a message.

        @raise ValueError: a file cannot be created.  The text is a sentence for the operator.
        """
        self.make()
        try:
            owner = self._owner
            _makeDirectory(self.mail, owner)
            if os.path.exists(self.passwordFile):
                return
            demo = self._at("mail", "demo")
            for folder in (demo, *(os.path.join(demo, each) for each in ("tmp", "new", "cur"))):
                _makeDirectory(folder, owner)
            name = f"{int(time.time())}.M0P{os.getpid()}.localhost"
            date = datetime.datetime.now(datetime.UTC).strftime("%a, %d %b %Y %H:%M:%S +0000")
            welcome = _WELCOME.format(date=date, path=self._at("mail", "demo"))
            writeWhole(self._at("mail", "demo", "new", name), welcome.encode("utf-8"), owner)
            password = secrets.token_urlsafe(12)
            login = f"machine 127.0.0.1 login demo password {password}\n"
            writeWhole(self.demoLogin, login.encode("ascii"), owner)
            # Remove old application passwords, because an earlier password file may have had a user
            # of this name.
            revokeAppPasswords(self.passwordFile, "demo")
            # Create the password file last, because it marks the first start as complete.
            addUser(self.passwordFile, "demo", password, owner)
        except OSError as error:
            raise ValueError(f"{error.filename or self.path}: {error.strerror}")

    def makeCertificate(self) -> tuple[str, str, bool]:
        """
        Create a self-signed certificate if there is none.

        @return: the paths of the certificate and its key, and whether they are new.
        @raise ValueError: a file cannot be created.  The text is a sentence for the operator.
        """
        self.make()
        certificate, privateKey = self._at("certificate.pem"), self._at("key.pem")
        if os.path.exists(certificate) and os.path.exists(privateKey):
            return certificate, privateKey, False
        try:
            certificatePEM, keyPEM = _selfSigned()
            writeWhole(privateKey, keyPEM, self._owner)
            writeWhole(certificate, certificatePEM, self._owner)
        except OSError as error:
            raise ValueError(f"{error.filename or self.path}: {error.strerror}")
        return certificate, privateKey, True


def _selfSigned() -> tuple[bytes, bytes]:
    # These modules are imported here, because their import takes long, and commands such as
    # C{pop3svc deliver} do not need them.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

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
