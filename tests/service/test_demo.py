"""
C{pop3svc demo}, and which services have a playground.
"""

from __future__ import annotations

import os
import re
import signal
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from pop3svc.accounts.passwordediting import addUser
from tests.support.running import Connection, Running, freePort, script


def test_theDemo(tmp_path: Path) -> None:
    """
    C{pop3svc demo} starts the service and the playground, and leaves no files.
    """
    with Running(tmp_path / "home", command=[script("pop3svc"), "demo"]) as running:
        address = running.waitFor("/playground").strip()
        port = re.search("port ([0-9]+),", running.waitFor("server "))
        name = running.waitFor("user ").split()[1]
        password = running.waitFor("password ").split()[1]
        log = Path(running.waitFor("The log is").rpartition("The log is ")[2].rstrip("."))
        assert log.exists() and port is not None
        with urllib.request.urlopen(address, timeout=60) as page:
            assert page.status == 200
        client = Connection(int(port[1]))
        client.line()
        client.logIn(name.encode(), password.encode())
        client.socket.close()
        assert running.end(signal.SIGINT) == 0
    assert not log.parent.exists() and not os.listdir(tmp_path / "home")


def test_usersOfTheEmbeddedDefault(tmp_path: Path) -> None:
    """
    The embedded default has no playground if the operator has added a user.
    """
    home, web = tmp_path / "home", freePort()
    options = (
        *("--data", str(tmp_path / "data"), "--endpoint", f"tcp:{freePort()}:interface=127.0.0.1"),
        *("--web", f"tcp:{web}:interface=127.0.0.1"),
    )
    address = f"http://127.0.0.1:{web}/playground"
    with Running(home, *options) as running:
        running.up()
        with urllib.request.urlopen(address, timeout=60) as page:
            assert page.status == 200
        assert running.end(signal.SIGTERM) == 0
    addUser(str(tmp_path / "data" / "users"), "alice", "secret")
    with Running(home, *options) as running:
        running.up()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(address, timeout=60)


def test_realStores(tmp_path: Path) -> None:
    """
    A service with mail that somebody needs has no playground.
    """
    (tmp_path / "mail").mkdir()
    web = freePort()
    options = (
        *("--provider", f"maildir:{tmp_path}/mail", "--auth", "memory:alice:secret"),
        *("--endpoint", f"tcp:{freePort()}:interface=127.0.0.1"),
        *("--web", f"tcp:{web}:interface=127.0.0.1"),
    )
    with Running(tmp_path / "home", *options) as running:
        running.up()
        base = f"http://127.0.0.1:{web}/"
        with urllib.request.urlopen(base, timeout=60) as page:
            assert b"playground" not in page.read()
        for path in ("playground", "conversations", "mail", "upload", "random", "command"):
            try:
                urllib.request.urlopen(base + path, data=b"to=alice", timeout=60)
            except urllib.error.HTTPError as error:
                with error:
                    assert error.code == 404
            else:
                raise AssertionError(path)
