"""
Three nodes at one database, with faults: the short form of C{bench/nodes.py}.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.patroni import whyNoPatroni
from tests.support.postgresql import needsPostgreSQL
from tests.support.running import CHECKOUT

needsHAProxy = pytest.mark.skipif(
    shutil.which("haproxy") is None, reason="HAProxy is not installed (apt-get install haproxy)"
)


def _reportOf(path: Path, *options: str) -> str:
    """
    Run C{bench/nodes.py}, which must find nothing wrong.

    @param path: a directory for the report.
    """
    report = path / "report"
    done = subprocess.run(
        [sys.executable, "bench/nodes.py", *options, "--report", str(report)],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    text = report.read_text()
    assert "wrong: 0" in text and "QUIT confirmed" in text and "fault" in text
    return text


@needsPostgreSQL
@needsHAProxy
def test_nodes(tmp_path: Path) -> None:
    """
    Nothing that was confirmed is lost, comes back or goes to somebody else.
    """
    text = _reportOf(tmp_path, "--minutes", "0", "--clients", "12")
    for each in ("kill", "freeze", "restart", "cut"):
        assert f"fault: {each} 1" in text


def test_failover(tmp_path: Path) -> None:
    """
    Nothing that was confirmed is lost when the leader of two PostgreSQL servers is killed, and the
    service answers again.
    """
    if reason := whyNoPatroni():
        pytest.skip(reason)
    text = _reportOf(tmp_path, "--patroni", "1", "--minutes", "0", "--clients", "12")
    assert "leader killed 1" in text and "first delivery after" in text
