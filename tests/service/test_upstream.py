"""
A service in front of another server: this service, and Dovecot if it is installed.
"""

from __future__ import annotations

import itertools
import os
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pop3svc.testing.certificates import Authority
from tests.support.messages import asSent, stuffed
from tests.support.running import Connection, Running, forEverybody, freePort

MESSAGES = [
    b"Subject: one\n\nfirst\n.dot\n",
    b"Subject: two\n\n" + b"x" * 70 + b"\n" + b"y" * 400_000 + b"\n",
    b"Subject: three\n\n..\n",
]
PASSWORD = b"s p\xc3\xa9ci}al"

needsDovecot = pytest.mark.skipif(
    not (os.path.exists("/usr/lib/dovecot/imap") and os.geteuid() == 0),
    reason="Dovecot's IMAP server is not installed, or the tests do not run as root",
)


@pytest.fixture
def place() -> Iterator[Path]:
    with forEverybody() as path:
        yield path


_delivered = itertools.count(1)


def deliver(mail: Path, *messages: bytes) -> None:
    for folder in ("new", "cur", "tmp"):
        (mail / folder).mkdir(parents=True, exist_ok=True)
    for message in messages:
        count = next(_delivered)
        (mail / "new" / f"{1600000000 + count}.M{count}P1.host").write_bytes(message)
    subprocess.run(["chmod", "-R", "a+rwX", mail], check=True)


def front(place: Path, provider: str) -> tuple[Running, int]:
    port = freePort()
    options = ("--endpoint", f"tcp:{port}:interface=127.0.0.1", "--data", str(place / "data"))
    return Running(place / "front", *options, "--provider", provider).up(), port


def connected(port: int, password: bytes = PASSWORD) -> Connection:
    connection = Connection(port)
    connection.line()
    connection.logIn(b"alice", password)
    return connection


def exercise(port: int, mail: Path) -> None:
    """
    Fetch, delete, sleep, wake up and log in again.
    """
    connection = connected(port)
    sizes = [len(asSent(each)) for each in MESSAGES]
    assert connection.say(b"STAT") == b"+OK 3 %d\r\n" % sum(sizes)
    for number, message in enumerate(MESSAGES, 1):
        assert connection.say(b"RETR %d" % number).startswith(b"+OK")
        assert b"".join(connection.lines()) == stuffed(asSent(message))
    assert connection.say(b"TOP 2 0").startswith(b"+OK")
    assert b"".join(connection.lines()) == b"Subject: two\r\n\r\n"
    connection.say(b"UIDL")
    first = [line.split(b" ")[1] for line in connection.lines()]
    assert len(set(first)) == 3
    assert connection.say(b"DELE 1").startswith(b"+OK")
    assert connection.say(b"SLEE").startswith(b"+OK")
    deliver(mail, b"Subject: four\n\n4\n")
    assert connection.say(b"WAKE").startswith(b"+OK [ACTIVITY/NEW]")
    connection.say(b"UIDL")
    second = [line.split(b" ")[1] for line in connection.lines()]
    assert second[:2] == first[1:] and len(second) == 3
    assert connection.say(b"DELE 2").startswith(b"+OK")
    assert connection.say(b"QUIT").startswith(b"+OK")
    connection = connected(port)
    connection.say(b"UIDL")
    third = [line.split(b" ")[1] for line in connection.lines()]
    assert third == [second[0], second[2]]
    assert connection.say(b"QUIT").startswith(b"+OK")
    wrong = Connection(port)
    wrong.line()
    wrong.say(b"USER alice")
    assert wrong.say(b"PASS nonsense").startswith(b"-ERR [AUTH]")


@pytest.mark.parametrize("scheme", ["pop3s", "pop3"])
def test_thisService(scheme: str, place: Path) -> None:
    """
    A service serves the mail of another one, over TLS that it verifies.
    """
    authority = Authority()
    authority.write(place / "ca.pem")
    authority.issue(place / "server.pem", ["localhost"])
    deliver(place / "mail" / "alice", *MESSAGES)
    plain, tls = freePort(), freePort()
    options = (
        *("--endpoint", f"tcp:{plain}:interface=127.0.0.1", "--data", str(place / "back-data")),
        *("--tls-endpoint", f"tcp:{tls}:interface=127.0.0.1"),
        *("--certificate", str(place / "server.pem"), "--private-key", str(place / "server.pem")),
        *("--provider", f"maildir:{place}/mail"),
        *("--auth", f"memory:alice:{PASSWORD.decode()}"),
    )
    port = tls if scheme == "pop3s" else plain
    with Running(place / "back", *options) as back:
        back.up()
        service, own = front(place, f"upstream:{scheme}://localhost:{port}:ca={place}/ca.pem")
        with service:
            exercise(own, place / "mail" / "alice")
            back.process.kill()
            back.process.wait()
            gone = Connection(own)
            gone.line()
            gone.say(b"USER alice")
            assert gone.say(b"PASS " + PASSWORD).startswith(b"-ERR [SYS/TEMP]")
            service.waitFor(f"the mail server localhost:{port} cannot be reached")
        assert not any("Traceback" in line for line in service.lines)


@pytest.mark.parametrize("names", [["other.example.test"], None])
def test_certificateIsVerified(names: list[str] | None, place: Path) -> None:
    """
    No password is sent to a server whose certificate is for another name, or not trusted.
    """
    authority = Authority()
    (authority if names else Authority()).write(place / "ca.pem")
    authority.issue(place / "server.pem", names or ["localhost"])
    tls = freePort()
    options = (
        *("--tls-endpoint", f"tcp:{tls}:interface=127.0.0.1", "--data", str(place / "back-data")),
        *("--certificate", str(place / "server.pem"), "--private-key", str(place / "server.pem")),
        *("--provider", "memory:", "--auth", "memory:alice:secret"),
    )
    with Running(place / "back", *options) as back:
        back.up()
        service, own = front(place, f"upstream:pop3s://localhost:{tls}:ca={place}/ca.pem")
        with service:
            connection = Connection(own)
            connection.line()
            connection.say(b"USER alice")
            assert connection.say(b"PASS secret").startswith(b"-ERR [SYS/TEMP]")
            text = "another name" if names else "certificate verify failed"
            assert text in service.waitFor(f"the mail server localhost:{tls}")


CONFIGURATION = """
base_dir = {place}/run
state_dir = {place}/state
log_path = {place}/dovecot.log
protocols = pop3 imap
ssl = yes
ssl_cert = <{place}/server.pem
ssl_key = <{place}/server.pem
mail_location = maildir:{place}/mail/%u
first_valid_uid = 1
mail_max_userip_connections = 100
auth_mechanisms = plain
passdb {{
  driver = passwd-file
  args = scheme=PLAIN {place}/users
}}
userdb {{
  driver = static
  args = uid=nobody gid=nogroup home={place}/mail/%u
}}
service pop3-login {{
  inet_listener pop3 {{
    port = {pop3}
  }}
  inet_listener pop3s {{
    port = {pop3s}
  }}
}}
service imap-login {{
  inet_listener imap {{
    port = {imap}
  }}
  inet_listener imaps {{
    port = {imaps}
  }}
}}
"""


@pytest.fixture
def dovecot(place: Path) -> Iterator[dict[str, Any]]:
    authority = Authority()
    authority.write(place / "ca.pem")
    authority.issue(place / "server.pem", ["localhost"])
    ports = {name: freePort() for name in ("pop3", "pop3s", "imap", "imaps")}
    (place / "users").write_bytes(b"alice:" + PASSWORD + b"\n")
    (place / "dovecot.conf").write_text(CONFIGURATION.format(place=place, **ports))
    for folder in ("run", "state"):
        (place / folder).mkdir()
    deliver(place / "mail" / "alice", *MESSAGES)
    process = subprocess.Popen(["dovecot", "-F", "-c", place / "dovecot.conf"])
    context = ssl.create_default_context(cafile=str(place / "ca.pem"))
    try:
        for _ in range(600):
            try:
                connection = Connection(ports["pop3s"])
                connection.startTLS(context)
                assert connection.line().startswith(b"+OK")
                break
            except OSError:
                process.poll()
        yield ports
    finally:
        process.terminate()
        process.wait()


@needsDovecot
@pytest.mark.parametrize("scheme", ["pop3s", "pop3", "imaps", "imap"])
def test_dovecot(scheme: str, place: Path, dovecot: dict[str, int]) -> None:
    """
    A service serves the mail of Dovecot, by POP3 and by IMAP.
    """
    mailbox = "/INBOX" if scheme.startswith("imap") else ""
    address = f"{scheme}://localhost:{dovecot[scheme]}{mailbox}"
    service, own = front(place, f"upstream:{address}:ca={place}/ca.pem")
    with service:
        exercise(own, place / "mail" / "alice")
        # Log in once more, and go away without QUIT.
        connected(own).socket.close()
    assert not any("Traceback" in line for line in service.lines)
