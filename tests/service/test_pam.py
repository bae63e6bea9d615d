"""
A service for the users of the system: PAM checks their passwords, and NSS knows their homes.
"""

from __future__ import annotations

import grp
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.lmtp import offer
from tests.support.maildirs import deliver
from tests.support.pam import UNIX, System, hasNamespaces
from tests.support.running import Connection, Running, forEverybody, freePort
from tests.support.unprivileged import SERVICE, capable, pythonForOthers, twistd


def _groupOf(name: str) -> str:
    try:
        return str(grp.getgrnam(name).gr_gid)
    except KeyError:
        return ""


# The group that may read /etc/shadow.
SHADOW = _groupOf("shadow")


pytestmark = pytest.mark.skipif(
    not hasNamespaces() or pythonForOthers() is None or not SHADOW,
    reason="needs root, the group shadow, mount namespaces, and a Python that other users can run",
)

TEMPORARY = b"-ERR [SYS/TEMP] Accounts are not available now.\r\n"
# A module that waits until a file exists, for one user.
STUCK = """#!/bin/sh
[ "$PAM_USER" = stuck ] || exit 0
touch {path}/waits
while [ ! -e {path}/go ]; do sleep 0.1; done
exit 1
"""


class Site:
    """
    A system with a service.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.system = System(path)
        self.data = path / "data"
        self.data.mkdir(mode=0o700)
        os.chown(self.data, SERVICE, SERVICE)
        self.port = freePort()

    def user(self, name: str, uid: int, aging: str = "0:99999:7::") -> None:
        home = self.system.user(name, uid, name, aging)
        message = deliver(
            home / "Maildir", "1600000000.M1P1Q1.host", name.encode() + b": x\r\n\r\n"
        )
        for each in (home / "Maildir", *(home / "Maildir").iterdir(), message):
            os.chown(each, uid, uid)

    @contextmanager
    def running(self, auth: str, groups: str, *more: str) -> Iterator[Running]:
        options = [
            *("--endpoint", f"tcp:{self.port}:interface=127.0.0.1", "--data", str(self.data)),
            *("--provider", "maildir:{home}/Maildir:owner=user", "--auth", auth, *more),
        ]
        command = self.system.command(capable(twistd(*options), groups=groups))
        with Running(self.path, command=command) as service:
            service.up()
            yield service

    def ask(self, name: str, password: str | None = None) -> bytes:
        """
        @return: the reply to PASS, or the first message.
        """
        connection = Connection(self.port)
        connection.line()
        assert connection.say(f"USER {name}".encode()).startswith(b"+OK")
        reply = connection.say(f"PASS {password or name}".encode())
        if reply.startswith(b"+OK"):
            assert connection.say(b"RETR 1").startswith(b"+OK")
            reply = b"".join(connection.lines())
            assert connection.say(b"QUIT").startswith(b"+OK")
        connection.socket.close()
        return reply


@pytest.fixture
def site() -> Iterator[Site]:
    with forEverybody() as path:
        yield Site(path)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_logins(site: Site, workers: str) -> None:
    """
    Many users with private homes log in at once.  Expired accounts and wrong passwords are refused.
    """
    users = [f"user{number}" for number in range(8)]
    for number, name in enumerate(users):
        site.user(name, 20001 + number)
    site.user("expired", 20100, f"0:99999:7::{int(time.time() // 86400) - 1}")
    lmtp = site.data / "lmtp"
    more = ["--workers", workers, "--lmtp", f"unix:{lmtp}"]
    with site.running("pam:pop3svc", SHADOW, *more) as service:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(site.ask, users))
        assert found == [name.encode() + b": x\r\n\r\n" for name in users]
        wrong = site.ask("user0", "x")
        assert wrong.startswith(b"-ERR [AUTH]")
        for name, password in (
            ("user0", "user0\0"),
            ("user0", "user0\0x"),
            ("expired", "expired"),
            ("nobody-knows", "x"),
        ):
            assert site.ask(name, password).startswith(b"-ERR")
        assert site.ask("expired") == wrong
        # An expired account gets mail, and one below the first uid gets none.
        names = ["user0", "expired", "nobody-knows", "root"]
        assert offer(lmtp, b"a: b\r\n\r\n", *names) == [
            *("250 2.0.0", "250 2.0.0", "550 5.1.1", "550 5.1.1"),
        ]
        assert service.end(signal.SIGTERM) == 0
    text = "\n".join(service.lines)
    mail = site.path / "home" / "user0" / "Maildir" / "new"
    assert {each.stat().st_uid for each in mail.iterdir()} == {20001}
    assert len(list(mail.iterdir())) == 2
    assert "expired cannot log in: the account has expired" in text
    assert "Traceback" not in text


def test_notPermitted(site: Site) -> None:
    """
    Without the group shadow, PAM cannot read the passwords.  Logins fail, and the log says so once.
    """
    site.user("alice", 20001)
    with site.running("pam:pop3svc", "") as service:
        assert site.ask("alice") == site.ask("alice", "x") == TEMPORARY
        assert service.end(signal.SIGTERM) == 0
    assert sum("PAM error 9" in line for line in service.lines) == 1


def test_stuck(site: Site) -> None:
    """
    If a module of PAM does not return, the login fails after the time limit, and others can log in.
    """
    script = site.path / "stuck"
    script.write_text(STUCK.format(path=site.data))
    script.chmod(0o755)
    site.system.service("pop3svc", f"auth required pam_exec.so quiet {script}\n{UNIX}")
    site.user("stuck", 20001)
    site.user("alice", 20002)
    with site.running("pam:pop3svc:timeout=2", SHADOW) as service:
        with ThreadPoolExecutor(2) as pool:
            stuck = pool.submit(site.ask, "stuck")
            assert site.ask("alice") == b"alice: x\r\n\r\n"
            assert stuck.result() == TEMPORARY
        assert site.ask("alice") == b"alice: x\r\n\r\n"
        (site.data / "go").touch()
        assert service.end(signal.SIGTERM) == 0
    assert any("no answer within 2 s" in line for line in service.lines)
