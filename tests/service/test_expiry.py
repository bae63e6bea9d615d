"""
A real service, with and without workers, deletes old messages of Maildirs.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.support.maildirs import deliver
from tests.support.running import Connection, Running, freePort

DAY = 86400


@pytest.mark.parametrize("workers", [1, 2])
def test_oldMessages(tmp_path: Path, workers: int) -> None:
    """
    Old messages are deleted once, by one process of the service.
    """
    mail, port = tmp_path / "mail", freePort()
    for days in (31, 29):
        then = int(time.time()) - days * DAY
        path = deliver(mail / "alice", f"{then}.M1P1.host")
        os.utime(path, (then, then))
    options = (
        *("--endpoint", f"tcp:{port}:interface=127.0.0.1", "--auth", "memory:alice:secret"),
        *("--provider", f"maildir:{mail}:expire=30", "--workers", str(workers)),
    )
    with Running(tmp_path / "home", *options) as running:
        running.waitFor("deleted 1 messages older than 30 days from 1 Maildirs")
        client = Connection(port)
        client.line()
        client.say(b"CAPA")
        assert b"EXPIRE 30\r\n" in client.lines()
        client.logIn(b"alice", b"secret")
        assert client.say(b"STAT").startswith(b"+OK 1 ")
        client.say(b"QUIT")
        assert running.end(signal.SIGTERM) == 0
    assert sum("deleted" in line and "older" in line for line in running.lines) == 1


def test_cannotBeWalked(tmp_path: Path) -> None:
    (tmp_path / "mail").mkdir()
    provider = f"maildir:{tmp_path}/mail/{{local}}:expire=30"
    with Running(tmp_path / "home", "--provider", provider, "--auth", "memory:a:b") as running:
        assert running.end() == 1
    assert running.lines[-1] == (
        f"pop3svc: --provider maildir: expire requires {{user}}, or {{local}} and {{domain}}, in "
        f"the path, each as a separate directory; {tmp_path}/mail/{{local}} does not show the users"
    )
