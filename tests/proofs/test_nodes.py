"""
Three nodes at one database, with faults: the short form of C{bench/nodes.py}.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.postgresql import needsPostgreSQL
from tests.support.running import CHECKOUT

needsHAProxy = pytest.mark.skipif(
    shutil.which("haproxy") is None, reason="HAProxy is not installed (apt-get install haproxy)"
)


@needsPostgreSQL
@needsHAProxy
def test_nodes(tmp_path: Path) -> None:
    """
    Nothing that was confirmed is lost, comes back or goes to somebody else.
    """
    report = tmp_path / "report"
    done = subprocess.run(
        [sys.executable, "bench/nodes.py", "--minutes", "0.5", "--clients", "12"]
        + ["--report", str(report)],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    text = report.read_text()
    assert "wrong: 0" in text and "QUIT confirmed" in text and "fault" in text
