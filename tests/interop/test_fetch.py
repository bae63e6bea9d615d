"""
C{pop3svc fetch} fetches from Debian's Dovecot and Courier.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.oldservers import PASSWORD, Courier, Dovecot, OldServer
from tests.support.running import PATIENCE, environment, forEverybody, script

pytestmark = pytest.mark.interop

MESSAGES = [b"Subject: %d\n\n.\n..\nFrom x\n" % number for number in range(30)]


@pytest.fixture(params=[Dovecot, Courier], ids=["dovecot", "courier"])
def server(request: pytest.FixtureRequest) -> Iterator[OldServer]:
    if reason := request.param.whyNot():
        pytest.skip(reason)
    with forEverybody() as base:
        made: OldServer = request.param(base)
        try:
            for number, each in enumerate(MESSAGES):
                made.deliver("alice", number, each)
            yield made
        finally:
            made.stop()


def fetch(home: Path, server: OldServer, *more: str) -> str:
    (home / "password").write_text(PASSWORD)
    done = subprocess.run(
        [
            *(script("pop3svc"), "fetch", "--state", str(home / "db"), "--insecure"),
            *("--password-file", str(home / "password"), "--to", f"maildir:{home / 'Maildir'}"),
            *(*more, f"pop3://alice@127.0.0.1:{server.port}"),
        ],
        capture_output=True,
        text=True,
        env=environment(home),
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.partition(": ")[2]


def test_once(server: OldServer, tmp_path: Path) -> None:
    """
    Each message is fetched once, and deleted when that is asked for.
    """
    assert fetch(tmp_path, server) == "30 messages fetched\n"
    assert fetch(tmp_path, server) == "0 messages fetched\n"
    server.deliver("alice", 99, b"Subject: new\n\nx\n")
    assert fetch(tmp_path, server, "--delete") == "1 message fetched\n"
    assert server.uniqueIDs("alice") == []
    stored = sorted(each.read_bytes() for each in (tmp_path / "Maildir" / "new").iterdir())
    assert stored == sorted([*MESSAGES, b"Subject: new\n\nx\n"])
