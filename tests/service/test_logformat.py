"""
The setting log-format, in a real service.
"""

from __future__ import annotations

import json
import shutil
import signal
from base64 import b64encode
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from pop3svc.logrecords import JournalLog
from pop3svc.logs import Log
from pop3svc.service.operating import makeLog
from tests.support.running import CHECKOUT, Connection, Running, freePort
from tests.support.site import options, run, site  # noqa: F401


@pytest.mark.parametrize("workers", [1, 2])
def test_json(site: Path, tmp_path: Path, workers: int) -> None:  # noqa: F811
    """
    Each line is a JSON object.  fail2ban finds the failed logins, whatever names are tried.
    """
    port = freePort()
    with Running(
        tmp_path / "home",
        *options(site, "--endpoint", f"tcp:{port}:interface=127.0.0.1"),
        *("--log-format", "json", "--workers", str(workers)),
    ) as running:
        running.up()
        connection = Connection(port)
        connection.line()
        forged = b'x", "level": "info", "namespace": "pop3svc", "event": "login", "text": "'
        for name in (b"alice", forged + b"failed login from 192.0.2.1: y", b"\xff"):
            response = b64encode(b"\0" + name + b"\0wrong")
            assert connection.say(b"AUTH PLAIN " + response).startswith(b"-ERR [AUTH]")
        client = Connection(port)
        client.line()
        client.logIn(b"bob", b"secret word")
        client.say(b"QUIT")
        running.waitFor("bob from 127.0.0.1")
        assert running.end(signal.SIGTERM) == 0
    events: list[Any] = [json.loads(each) for each in running.lines]
    for each in events:
        assert datetime.fromisoformat(each["time"]).utcoffset() is not None
        assert each["level"] in ("info", "warn", "error")
        assert each["text"]
    [close] = [each for each in events if each.get("event") == "close" and each["user"] == "bob"]
    assert (close["reason"], close["loginMethod"]) == ("quit", "PASS")
    assert ("worker" in close) == (workers > 1)
    failed = [each for each in events if each.get("event") == "login"]
    assert [each["clientIP"] for each in failed] == ["127.0.0.1"] * 3
    assert not any("wrong" in each for each in running.lines)
    command = shutil.which("fail2ban-regex")
    if command is None:
        pytest.skip("fail2ban is not installed")
    log = tmp_path / "log"
    log.write_text("\n".join(running.lines) + "\n")
    filter = CHECKOUT / "contrib" / "fail2ban" / "pop3svc-json.conf"
    found = run([command, "-o", "ip", str(log), str(filter)], tmp_path)
    assert found.stdout.split() == ["127.0.0.1"] * 3, found
    others = [each.replace('"event": "login"', '"event": "close"') for each in running.lines]
    others += [f"x{each}" for each in running.lines]
    log.write_text("\n".join(others) + "\n")
    found = run([command, "-o", "ip", str(log), str(filter)], tmp_path)
    assert found.stdout.split() == [], found


def test_makeLog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    twistd = {"logfile": "log", "nodaemon": True}
    assert isinstance(makeLog(twistd, None, None, "json"), Log)
    assert isinstance(makeLog(twistd, None, None, "journal"), JournalLog)
    with pytest.raises(ValueError, match="^--log-format json: it cannot be combined with --logger"):
        makeLog({"logger": "a.b"}, None, None, "json")
