"""
A real slapd in a temporary directory, for tests.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from pop3svc.testing.certificates import Authority
from tests.support.running import freePort

__all__ = ["BASE", "PASSWORD", "READER", "Slapd", "needsSlapd", "whyNoSlapd"]

# Seconds that a step may take; a busy machine needs long.
PATIENCE = 60
SCHEMAS = Path("/etc/ldap/schema")

BASE = "ou=people,dc=example,dc=org"
READER = "cn=reader,dc=example,dc=org"
_ROOT = "cn=root,dc=example,dc=org"
# The password of the reader, of the root, and of each user that was added without a password.
PASSWORD = "topsecret"

_CONFIGURATION = """
include {schemas}/core.schema
include {schemas}/cosine.schema
include {schemas}/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile {directory}/pid
idletimeout {idleTimeout}
TLSCertificateFile {directory}/server.pem
TLSCertificateKeyFile {directory}/server.pem
database mdb
suffix "dc=example,dc=org"
directory {directory}/data
rootdn "cn=root,dc=example,dc=org"
rootpw topsecret
access to attrs=userPassword by anonymous auth by * none
access to dn.base="uid=hidden,ou=people,dc=example,dc=org" by * none
access to * by dn.exact="cn=reader,dc=example,dc=org" read by self read by * none
"""

_TOP = """
dn: dc=example,dc=org
objectClass: dcObject
objectClass: organization
dc: example
o: Example

dn: cn=reader,dc=example,dc=org
objectClass: organizationalRole
objectClass: simpleSecurityObject
cn: reader
userPassword: topsecret

dn: ou=people,dc=example,dc=org
objectClass: organizationalUnit
ou: people

dn: ou=more,ou=people,dc=example,dc=org
objectClass: organizationalUnit
ou: more
"""


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/lib/openldap")


def whyNoSlapd() -> str:
    """
    @return: why there can be no server; empty if there can be one.
    """
    try:
        import ldap  # noqa: F401
    except ImportError:
        return "python-ldap is not installed"
    if _program("slapd") is None or not (SCHEMAS / "inetorgperson.schema").exists():
        return "slapd is not installed (apt-get install slapd)"
    return ""


needsSlapd = pytest.mark.skipif(bool(whyNoSlapd()), reason=whyNoSlapd() or "there is a slapd")


class Slapd:
    """
    A server with one user, ann, and a certificate for 127.0.0.1.

    @ivar authority: the authority that has signed the certificate.
    """

    def __init__(self, idleTimeout: int = 0) -> None:
        """
        @param idleTimeout: seconds after which the server ends an idle connection; 0: never.
        """
        self.port, self.tlsPort = freePort(), freePort()
        self.url = f"ldap://127.0.0.1:{self.port}"
        self.tlsURL = f"ldaps://127.0.0.1:{self.tlsPort}"
        self.authority = Authority()
        self._idleTimeout = idleTimeout
        self._directory = Path()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Slapd:
        self._directory = Path(tempfile.mkdtemp(prefix="pop3svc-slapd-"))
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise
        return self

    def _prepare(self) -> None:
        (self._directory / "data").mkdir()
        self._file("slapd.conf").write_text(
            _CONFIGURATION.format(
                schemas=SCHEMAS, directory=self._directory, idleTimeout=self._idleTimeout
            )
        )
        self.authority.write(Path(self.ca))
        self.authority.issue(self._file("server.pem"), ["127.0.0.1"])
        self.passwordFile.write_text(f"{PASSWORD}\n")
        subprocess.run(
            [_program("slapadd") or "slapadd", "-f", str(self._file("slapd.conf"))],
            input=_TOP.encode(),
            check=True,
            capture_output=True,
        )
        self.start()
        self.addUser("ann", mail="ann@example.org")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """
        Stop the server, and remove its directory.
        """
        if self._process is not None:
            self.thaw()
            self.stop(signal.SIGKILL)
        shutil.rmtree(self._directory)

    def _file(self, name: str) -> Path:
        return self._directory / name

    @property
    def ca(self) -> str:
        """
        The path of the authority's certificate.
        """
        return str(self._file("ca.pem"))

    @property
    def passwordFile(self) -> Path:
        """
        A file with the reader's password.
        """
        return self._file("password")

    @contextmanager
    def root(self) -> Iterator[Any]:
        """
        @return: a connection with all rights.
        """
        import ldap

        link = ldap.initialize(self.url)
        link.set_option(ldap.OPT_TIMEOUT, PATIENCE)
        try:
            link.simple_bind_s(_ROOT, PASSWORD)
            yield link
        finally:
            link.unbind_ext_s()

    def addUser(self, name: str, dn: str = "", password: str = PASSWORD, **more: str) -> str:
        """
        Add a user.

        @param dn: the DN up to the base; C{uid=NAME} if not given.
        @param password: as it is stored; empty: the entry has no password.
        @param more: further attributes.
        @return: the DN.
        """
        values = {"objectClass": "inetOrgPerson", "cn": name, "sn": name, "uid": name, **more}
        if password:
            values["userPassword"] = password
        dn = f"{dn or f'uid={name}'},{BASE}"
        with self.root() as link:
            link.add_s(dn, [(key, [each.encode()]) for key, each in values.items()])
        return dn

    def change(self, dn: str, attribute: str, *values: str) -> None:
        """
        Replace the values of an attribute.
        """
        import ldap

        with self.root() as link:
            link.modify_s(
                dn, [(ldap.MOD_REPLACE, attribute, [each.encode() for each in values] or None)]
            )

    def remove(self, dn: str) -> None:
        """
        Remove an entry.
        """
        with self.root() as link:
            link.delete_s(dn)

    def useCertificate(self, authority: Authority, *names: str) -> None:
        """
        Start the server again with another certificate.
        """
        self.stop()
        authority.issue(self._file("server.pem"), list(names))
        self.start()

    def start(self) -> None:
        """
        Start the server, and wait until it answers.
        """
        import ldap

        assert self._process is None
        with open(self._file("log"), "ab") as log:
            # -d keeps it in the foreground.
            self._process = subprocess.Popen(
                [_program("slapd") or "slapd", "-d", "0", "-f", str(self._file("slapd.conf"))]
                + ["-h", f"{self.url} {self.tlsURL}"],
                start_new_session=True,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + PATIENCE
        while True:
            link = ldap.initialize(self.url)
            link.set_option(ldap.OPT_NETWORK_TIMEOUT, PATIENCE)
            try:
                link.simple_bind_s()
                return
            except ldap.SERVER_DOWN:
                assert self._process.poll() is None, self._file("log").read_text()
                assert time.monotonic() < end, "slapd takes too long"
                time.sleep(0.02)
            finally:
                link.unbind_ext_s()

    def stop(self, number: int = signal.SIGTERM) -> None:
        """
        Stop the server; its connections are ended.
        """
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(PATIENCE)
        self._process = None

    def freeze(self) -> None:
        """
        Stop the server where it is: connections stay, and nothing answers.
        """
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        # Its threads may still run on other processors when the signal has been sent.
        tasks = Path(f"/proc/{self._process.pid}/task")
        while any(
            (each / "stat").read_text().rpartition(")")[2].split()[0] != "T"
            for each in tasks.iterdir()
        ):
            time.sleep(0.001)

    def thaw(self) -> None:
        """
        Let a frozen server go on.
        """
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
