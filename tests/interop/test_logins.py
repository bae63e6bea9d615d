"""
Clients log in to a service that has enabled SCRAM, and bind SCRAM to their connections.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scramp import ScramClient
from scramp.core import CbName

from pop3svc.accounts.scramkeys import makeVerifier
from pop3svc.testing.certificates import Authority
from tests.interop.clients import program, run, runInTerminal, writePrivately
from tests.interop.party import Party
from tests.support.running import Running, freePort

pytestmark = pytest.mark.interop

PASSWORD = "pencil, and = sign"
MESSAGE = b"Subject: hello\r\n\r\nworld\r\n"
ENABLED = ("--enable", "SCRAM-SHA-256", "--enable", "SCRAM-SHA-1")


class Site:
    """
    A service with two users: C{user} has a verifier for SCRAM, and the password of C{plain} is
    stored without a hash.
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
        @return: the log line of the user's next session that ends.
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


# --- mail programs --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mutt", "neomutt"])
def test_muttChooses(site: Site, home: Path, name: str) -> None:
    """
    mutt and neomutt choose SCRAM by themselves, and log in, although they also send the user's name
    as the authorization identity.
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
push "<fetch-mail><exit>"
"""
    command = [program(name), "-n", "-F", writePrivately(home / "rc", settings)]
    runInTerminal(command, home)
    (received,) = (home / "delivered" / "new").iterdir()
    assert b"Subject: hello" in received.read_bytes()
    assert "AUTH SCRAM-SHA-256" in site.logged("user")


def test_curl(site: Site, home: Path) -> None:
    """
    A curl without SCRAM logs in by PLAIN, as a user who has only a verifier.
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
    assert logIn(Party(site.port), "SCRAM-SHA-256", None) == b"+OK Logged in."


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
    The right octets for channel binding are accepted, and wrong octets, such as those of another
    connection, are refused.  The library refuses C{tls-exporter} by name, so the test changes the
    library's table.
    """
    monkeypatch.setattr(CbName, "UNSUPPORTED_TYPES", frozenset())
    monkeypatch.setattr(CbName, "SUPPORTED_TYPES", frozenset([name]))
    party, other = Party(boundSite.port), Party(boundSite.port)
    assert logIn(party, "SCRAM-SHA-256-PLUS", (name, octets(party))) == b"+OK Logged in."
    wrong = octets(party) if name == "tls-exporter" else b"x" * 32
    assert logIn(other, "SCRAM-SHA-256-PLUS", (name, wrong)).startswith(b"-ERR [AUTH]")


def test_offered(site: Site, boundSite: Site) -> None:
    for each, names in (
        (site, b"PLAIN LOGIN SCRAM-SHA-256 SCRAM-SHA-1"),
        (boundSite, b"PLAIN LOGIN SCRAM-SHA-256-PLUS SCRAM-SHA-256 SCRAM-SHA-1"),
    ):
        party = Party(each.port)
        lines = [party.say(b"CAPA")]
        while lines[-1] != b".":
            lines.append(party.line())
        assert b"SASL " + names in lines
