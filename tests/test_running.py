"""
Support of the tests: reserved ports, and the copy of pop3svc that is tested.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.running import CHECKOUT, PATIENCE, checkCopy, environment, forEverybody, freePort


def test_portIsKept() -> None:
    """
    A service with SO_REUSEADDR can listen on a reserved port.  A socket without SO_REUSEADDR cannot
    bind to this port.
    """
    port = freePort()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))
    for _ in range(2):
        with socket.create_server(("127.0.0.1", port)) as service:
            with socket.create_connection(("127.0.0.1", port), PATIENCE):
                service.accept()[0].close()


@pytest.mark.smoke
def test_anotherCopy(tmp_path: Path) -> None:
    """
    L{checkCopy} fails if the processes that tests start would run another copy than the one beside
    the tests.
    """
    checkCopy(environment(tmp_path)["PYTHONPATH"])
    (tmp_path / "pop3svc").mkdir()
    (tmp_path / "pop3svc" / "__init__.py").touch()
    with pytest.raises(AssertionError, match="imports .*, not "):
        checkCopy(os.pathsep.join([str(tmp_path), str(CHECKOUT)]))


def test_anotherCopyOfTheTests(tmp_path: Path) -> None:
    """
    pytest refuses to run the tests if it would import another copy than the one beside the tests.
    """
    shutil.copytree(CHECKOUT / "pop3svc", tmp_path / "pop3svc")
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            CHECKOUT / "tests/test_errors.py",
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert ended.returncode == 1, ended
    assert f"another copy than {CHECKOUT} would be tested" in ended.stdout + ended.stderr


def test_forEverybody() -> None:
    """
    No directory on the path of the new directory is private.
    """
    with forEverybody() as path:
        for each in [path, *path.parents]:
            assert each.stat().st_mode & 0o005 == 0o005, each
    assert not path.exists()
