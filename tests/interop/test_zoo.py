"""
Real clients log in to a real service, each by several methods.

The table of C{docs/logins.rst} lists the same clients and methods.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import os
import re
import signal
import ssl
import subprocess
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest
from scramp import ScramClient

from pop3svc.accounts.scramkeys import makeVerifier
from pop3svc.testing.certificates import Authority
from tests.interop.clients import program, run, runInTerminal, writePrivately
from tests.interop.party import Party
from tests.support.running import CHECKOUT, Running, freePort
from tests.support.tokens import AUDIENCE, ISSUER, Issuer

pytestmark = pytest.mark.interop

PASSWORD = "pencil, and = sign"
MESSAGE = b"Subject: hello\r\n\r\nworld\r\n"
# The password of the first user is not hashed.  The second user has a verifier.
USERS = ("ann@example.org", "bob@example.org")


def _each(option: str, *names: str) -> tuple[str, ...]:
    return tuple(part for each in names for part in (option, each))


# Without SCRAM-SHA-256-PLUS, because neomutt chooses it and then gives up.
UNBOUND = _each("--enable", "SCRAM-SHA-256", "SCRAM-SHA-1", "CRAM-MD5", "APOP")
ALL = (*UNBOUND, *_each("--enable", "SCRAM-SHA-256-PLUS"))
# curl prefers OAUTHBEARER, whatever its options say.
NO_OAUTHBEARER = (*ALL, *_each("--without", "OAUTHBEARER"))
# curl uses USER and PASS if the service offers it nothing else.
BARE = _each("--without", "PLAIN", "LOGIN", "OAUTHBEARER", "XOAUTH2", "EXTERNAL")
OPTIONS = {
    ("curl", "USER"): BARE,
    ("curl", "XOAUTH2"): NO_OAUTHBEARER,
    ("neomutt", "SCRAM-SHA-256"): UNBOUND,
}


class Site:
    """
    A service.  Its options say which methods it offers.
    """

    def __init__(self, home: Path, *options: str) -> None:
        home.mkdir()
        self.port = freePort()
        self.home = home
        self.issuer = Issuer()
        authority = Authority()
        self.authorities = home / "ca.pem"
        authority.write(self.authorities)
        self.served, self.certificate = home / "served.pem", home / "ann.pem"
        authority.issue(self.served, ["localhost", "127.0.0.1"])
        authority.issue(self.certificate, [USERS[0]], isForClients=True)
        for name in USERS:
            for folder in ("cur", "new", "tmp"):
                (home / "mail" / name / folder).mkdir(parents=True)
            (home / "mail" / name / "new" / "1.host").write_bytes(MESSAGE)
        users, keys = home / "users", home / "keys"
        users.write_text(f"{USERS[0]}:{{PLAIN}}{PASSWORD}\n{USERS[1]}:{makeVerifier(PASSWORD)}\n")
        users.chmod(0o600)
        keys.write_bytes(self.issuer.published())
        self.running = Running(
            home / "service",
            *("--endpoint", f"ssl:{self.port}:interface=127.0.0.1"),
            *("--provider", f"maildir:{home}/mail/{{user}}", "--auth", f"passwd:{users}"),
            *("--auth", f"oauth:jwks={keys}:issuer={ISSUER}:audience={AUDIENCE}"),
            *("--certificate", str(self.served), "--client-ca", str(self.authorities)),
            *("--data", str(home / "data")),
            *options,
        )

    def token(self) -> str:
        """
        @return: a token of the first user; a short one, because neomutt sends no long ones.
        """
        return self.issuer.token("ed", "EdDSA", iat=None, sub=None)


Sites = Callable[[tuple[str, ...]], Site]


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sites]:
    """
    @return: a function that starts a service with some options, or finds the service with these
        options.
    """
    started: dict[tuple[str, ...], Site] = {}
    with ExitStack() as stack:

        def find(options: tuple[str, ...]) -> Site:
            if options not in started:
                started[options] = Site(tmp_path_factory.mktemp("zoo") / "site", *options)
                stack.enter_context(started[options].running).up()
            return started[options]

        yield find
        for options, each in started.items():
            assert each.running.end(signal.SIGTERM) == 0
            assert not [line for line in each.running.lines if "Traceback" in line]
            for name in {"APOP", "CRAM-MD5"} & set(options):
                warning = f"{name} needs passwords that are stored without a hash"
                assert sum(warning in line for line in each.running.lines) == 1


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    return home


# --- the clients ----------------------------------------------------------------------
#
# Each function fetches the message with a client, by one method and as one user.


def curl(site: Site, home: Path, method: str, user: str) -> bytes:
    options = {
        "APOP": ["--login-options", "AUTH=+APOP"],
        "USER": [],
        "OAUTHBEARER": ["--oauth2-bearer", site.token()],
        "XOAUTH2": ["--oauth2-bearer", site.token()],
        "EXTERNAL": ["--cert", str(site.certificate), "--login-options", "AUTH=EXTERNAL"],
    }.get(method, ["--login-options", f"AUTH={method}"])
    hasPassword = method not in ("OAUTHBEARER", "XOAUTH2", "EXTERNAL")
    who = user + (f":{PASSWORD}" if hasPassword else ":" if method == "EXTERNAL" else "")
    return run(
        [
            *(program("curl"), "-sS", "--cacert", str(site.authorities), *options),
            *("-u", who, f"pop3s://127.0.0.1:{site.port}/1"),
        ],
        home,
    )


def fetchmail(site: Site, home: Path, method: str, user: str) -> bytes:
    auth = "cram-md5" if method == "CRAM-MD5" else "password"
    settings = f"""
set no bouncemail
poll 127.0.0.1 service {site.port} protocol {"apop" if method == "APOP" else "pop3"} auth {auth}
  username "{user}" password "{PASSWORD}" ssl sslcertfile "{site.authorities}"
  sslcommonname "localhost" keep fetchall mda "/bin/cat >> {home}/mbox"
"""
    run([program("fetchmail"), "-f", writePrivately(home / "rc", settings)], home)
    return (home / "mbox").read_bytes()


def getmail(site: Site, home: Path, method: str, user: str) -> bytes:
    served = ssl.PEM_cert_to_DER_cert(_firstCertificate(site.served))
    settings = f"""
[retriever]
type = SimplePOP3SSLRetriever
server = 127.0.0.1
port = {site.port}
username = {user}
password = {PASSWORD}
use_apop = {method == "APOP"}
ssl_fingerprints = ("{hashlib.sha256(served).hexdigest()}",)
[destination]
type = MDA_external
path = /usr/bin/tee
arguments = ("{home}/message",)
allow_root_commands = true
[options]
delete = false
verbose = 0
"""
    writePrivately(home / "getmailrc", settings)
    run([program("getmail"), "--getmaildir", str(home), "--rcfile", "getmailrc"], home)
    return (home / "message").read_bytes()


def mpop(site: Site, home: Path, method: str, user: str) -> bytes:
    isToken = method in ("OAUTHBEARER", "XOAUTH2")
    writePrivately(home / "password", site.token() if isToken else PASSWORD)
    certificate = f"tls_cert_file {site.certificate}\ntls_key_file {site.certificate}"
    settings = f"""
account default
host 127.0.0.1
port {site.port}
auth {method.lower()}
user {user}
{certificate if method == "EXTERNAL" else f"passwordeval cat {home}/password"}
tls on
tls_starttls off
tls_trust_file {site.authorities}
keep on
only_new off
received_header off
uidls_file {home}/uidls
delivery mbox {home}/mbox
"""
    run([program("mpop"), "--quiet", "--file", writePrivately(home / "mpoprc", settings)], home)
    return (home / "mbox").read_bytes()


def _mutt(name: str, site: Site, home: Path, method: str, user: str) -> bytes:
    for folder in ("tmp", "new", "cur"):
        (home / "delivered" / folder).mkdir(parents=True)
    writePrivately(home / "token", site.token())
    secret = f'set pop_pass="{PASSWORD}"'
    if method in ("OAUTHBEARER", "XOAUTH2"):
        secret = f'set pop_oauth_refresh_command="cat {home}/token"'
    elif method == "EXTERNAL":
        secret = f'set ssl_client_cert="{site.certificate}"'
    # neomutt chooses SCRAM by itself, and cannot be told to.
    isChosen = name == "neomutt" and method.startswith("SCRAM")
    settings = f"""
set mbox_type=Maildir
set folder="{home}"
set spoolfile="{home}/delivered"
set pop_host="pops://127.0.0.1:{site.port}"
set pop_user="{user}"
{secret}
{"" if isChosen else f'set pop_authenticators="{method.lower()}"'}
set pop_delete=no
set certificate_file="{site.authorities}"
set sleep_time=0
set quit=yes
set move=no
push "<fetch-mail><exit>"
"""
    runInTerminal([program(name), "-n", "-F", writePrivately(home / "rc", settings)], home)
    return _delivered(home)


def mutt(site: Site, home: Path, method: str, user: str) -> bytes:
    return _mutt("mutt", site, home, method, user)


def neomutt(site: Site, home: Path, method: str, user: str) -> bytes:
    return _mutt("neomutt", site, home, method, user)


def _perl(client: str, site: Site, home: Path, method: str, user: str) -> bytes:
    needsPerl()
    return run(
        [
            *(program("perl"), str(CHECKOUT / "tests" / "interop" / "clients.pl"), client),
            *("PASS" if method == "USER" else method, "127.0.0.1", str(site.port)),
            *(str(site.authorities), user, PASSWORD),
            str(site.certificate) if method == "EXTERNAL" else "",
        ],
        home,
    )


def mailPOP3Client(site: Site, home: Path, method: str, user: str) -> bytes:
    return _perl("Mail::POP3Client", site, home, method, user)


def netPOP3(site: Site, home: Path, method: str, user: str) -> bytes:
    return _perl("Net::POP3", site, home, method, user)


# Modules that clients.pl needs, and the Debian packages that contain them.
PERL = {
    "Authen::SASL": "libauthen-sasl-perl",
    "Authen::SCRAM::Client": "libauthen-scram-perl",
    "Digest::HMAC_MD5": "libdigest-hmac-perl",
    "IO::Socket::SSL": "libio-socket-ssl-perl",
    "Mail::POP3Client": "libmail-pop3client-perl",
}


@cache
def missingPerl() -> list[str]:
    """
    @return: the packages of the modules that are not installed.
    """
    return [
        package
        for name, package in PERL.items()
        if subprocess.run(
            [program("perl"), f"-M{name}", "-e1"], stderr=subprocess.DEVNULL
        ).returncode
    ]


def needsPerl() -> None:
    """
    If a module is missing, skip the test, or fail if all clients are required.
    """
    if missing := missingPerl():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"not installed: {missing}")


def _delivered(home: Path) -> bytes:
    (received,) = (home / "delivered" / "new").iterdir()
    return received.read_bytes()


def _firstCertificate(path: Path) -> str:
    found = re.search("-----BEGIN CERT.*?-----END CERTIFICATE-----", path.read_text(), re.DOTALL)
    assert found is not None
    return found[0]


# --- GNU SASL -------------------------------------------------------------------------


class GnuSASL:
    """
    The client's side of an exchange in libgsasl, the library of mpop, mutt and neomutt.  The
    library's own program does not speak POP3.
    """

    # From gsasl.h.
    AUTHID, PASSWORD, CB_TLS_EXPORTER = 1, 3, 25
    OK, NEEDS_MORE = 0, 1

    def __init__(self, mechanism: str, values: dict[int, str]) -> None:
        name = ctypes.util.find_library("gsasl")
        if name is None:
            (pytest.fail if os.environ.get("CI") else pytest.skip)("libgsasl is not installed")
        self._library = ctypes.CDLL(name)
        self._context, self._session = ctypes.c_void_p(), ctypes.c_void_p()
        assert self._library.gsasl_init(ctypes.byref(self._context)) == self.OK
        started = self._library.gsasl_client_start(
            self._context, mechanism.encode(), ctypes.byref(self._session)
        )
        assert started == self.OK
        for key, value in values.items():
            self._library.gsasl_property_set(self._session, key, value.encode())

    def step(self, received: bytes) -> tuple[bool, bytes]:
        """
        @param received: a message of the server, in base64.
        @return: whether the exchange has succeeded, and the next message, in base64.
        """
        output = ctypes.c_void_p()
        status = self._library.gsasl_step64(self._session, received, ctypes.byref(output))
        assert status in (self.OK, self.NEEDS_MORE), status
        said = ctypes.cast(output, ctypes.c_char_p).value or b""
        self._library.gsasl_free(output)
        return status == self.OK, said

    def close(self) -> None:
        """
        Free the memory.
        """
        self._library.gsasl_finish(self._session)
        self._library.gsasl_done(self._context)


def gsasl(site: Site, home: Path, method: str, user: str) -> bytes:
    client = Party(site.port)
    values = {GnuSASL.AUTHID: user, GnuSASL.PASSWORD: PASSWORD}
    if method.endswith("-PLUS"):
        values[GnuSASL.CB_TLS_EXPORTER] = b64encode(client.exporter()).decode()
    party = GnuSASL(method, values)
    try:
        reply, isOver = client.say(b"AUTH " + method.encode()), False
        while reply.startswith(b"+ "):
            isOver, message = party.step(reply[2:])
            reply = client.say(message)
        assert isOver and reply.startswith(b"+OK"), reply
    finally:
        party.close()
    return _fetched(client)


def scramp(site: Site, home: Path, method: str, user: str) -> bytes:
    party = Party(site.port)
    # The library refuses tls-exporter by its name.
    binding = ("tls-server-end-point", party.endPoint()) if method.endswith("-PLUS") else None
    client = ScramClient([method], user, PASSWORD, channel_binding=binding)

    def respond(text: str) -> str:
        return b64decode(party.say(b64encode(text.encode()))[2:]).decode()

    assert party.say(b"AUTH " + method.encode()) == b"+ "
    client.set_server_first(respond(client.get_client_first()))
    client.set_server_final(respond(client.get_client_final()))
    assert party.say(b"").startswith(b"+OK")
    return _fetched(party)


def _fetched(client: Party) -> bytes:
    lines = [client.say(b"RETR 1")]
    while lines[-1] != b".":
        lines.append(client.line())
    assert client.say(b"QUIT").startswith(b"+OK")
    return b"\n".join(lines)


# --- the zoo --------------------------------------------------------------------------

Client = Callable[[Site, Path, str, str], bytes]

# The methods of each client, in the order of docs/logins.rst.
ZOO: dict[str, tuple[Client, str]] = {
    "curl": (curl, "USER PLAIN LOGIN CRAM-MD5 APOP OAUTHBEARER XOAUTH2 EXTERNAL"),
    "fetchmail": (fetchmail, "USER CRAM-MD5 APOP"),
    "getmail6": (getmail, "USER APOP"),
    "libgsasl": (gsasl, "PLAIN SCRAM-SHA-256-PLUS SCRAM-SHA-256 SCRAM-SHA-1 CRAM-MD5"),
    "Mail::POP3Client": (mailPOP3Client, "USER CRAM-MD5 APOP"),
    "mpop": (
        mpop,
        "USER PLAIN LOGIN SCRAM-SHA-256 SCRAM-SHA-1 CRAM-MD5 APOP OAUTHBEARER XOAUTH2 EXTERNAL",
    ),
    "mutt": (
        mutt,
        "USER PLAIN LOGIN SCRAM-SHA-256 SCRAM-SHA-1 CRAM-MD5 APOP OAUTHBEARER XOAUTH2 EXTERNAL",
    ),
    "neomutt": (neomutt, "USER SCRAM-SHA-256 APOP OAUTHBEARER"),
    "Net::POP3": (
        netPOP3,
        "USER PLAIN LOGIN SCRAM-SHA-256 SCRAM-SHA-1 CRAM-MD5 APOP EXTERNAL",
    ),
    "scramp": (scramp, "SCRAM-SHA-256-PLUS SCRAM-SHA-256 SCRAM-SHA-1"),
}
# Methods by which the user with a verifier also logs in.
WITH_VERIFIER = ("USER", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS")


def cases() -> Iterator[tuple[str, str, str]]:
    """
    @return: the client, the method and the user of each login.
    """
    for name, (_, methods) in ZOO.items():
        for method in methods.split():
            yield name, method, USERS[0]
            if method in WITH_VERIFIER:
                yield name, method, USERS[1]


@pytest.mark.parametrize(("name", "method", "user"), list(cases()))
def test_logsIn(sites: Sites, home: Path, name: str, method: str, user: str) -> None:
    site = sites(OPTIONS.get((name, method), ALL))
    received = ZOO[name][0](site, home, method, user)
    assert b"Subject: hello" in received and b"world" in received
    used = {"USER": "PASS", "APOP": "APOP"}.get(method, f"AUTH {method}")
    site.running.waitFor(f" {user} from 127.0.0.1 (TLSv1.3, {used})")


def test_tableOfThePage() -> None:
    """
    C{docs/logins.rst} lists exactly these clients and methods.
    """
    page = (CHECKOUT / "docs" / "logins.rst").read_text()
    section = page[page.index("\nClients\n-------\n") : page.index("\nTokens\n------\n")]
    rows = re.findall(r"^``(\S+)``  +(\S.*)$", section, re.MULTILINE)
    assert dict(rows) == {name: methods for name, (_, methods) in ZOO.items()}
