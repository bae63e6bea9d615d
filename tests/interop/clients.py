"""
Running real clients.
"""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

__all__ = ["TIMEOUT", "environment", "program", "run", "runInTerminal", "writePrivately"]

# Seconds that a client may take.
TIMEOUT = 60.0


def program(name: str) -> str:
    """
    @return: the path of a client.  If it is not installed, the test is skipped, or fails if all
        clients are required.
    """
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which(name)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is not installed")
        pytest.skip(f"{name} is not installed")
    return found


def environment(home: Path) -> dict[str, str]:
    """
    @return: an environment without the user's own settings and without a proxy.
    """
    return {
        "HOME": str(home),
        "FETCHMAILHOME": str(home),
        "TMPDIR": str(home),
        "PATH": os.environ.get("PATH", os.defpath),
        "LC_ALL": "C.UTF-8",
        "TERM": "vt100",
        "LINES": "24",
        "COLUMNS": "80",
    }


def run(command: Sequence[str], home: Path, input: bytes = b"") -> bytes:
    """
    Run a client and expect success.

    @return: its output.
    """
    # Files instead of pipes, because some clients write octet by octet.
    said, complained, given = home / "stdout", home / "stderr", home / "stdin"
    given.write_bytes(input)
    with said.open("wb") as stdout, complained.open("wb") as stderr, given.open("rb") as stdin:
        done = subprocess.run(
            command,
            cwd=home,
            env=environment(home),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            timeout=TIMEOUT,
        )
    written = said.read_bytes()
    assert done.returncode == 0, (written[-2000:], complained.read_bytes()[-2000:])
    return written


def runInTerminal(command: Sequence[str], home: Path) -> None:
    """
    Run a client that needs a terminal.
    """
    ours, theirs = pty.openpty()
    screen = bytearray()

    def read() -> None:
        try:
            while octets := os.read(ours, 65536):
                screen.extend(octets)
        except OSError:
            # No process has the terminal open any longer.
            pass

    process = subprocess.Popen(
        command,
        cwd=home,
        env=environment(home),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    reader = threading.Thread(target=read)
    reader.start()
    try:
        status: int | None = process.wait(TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        status = None
    reader.join()
    os.close(ours)
    assert status == 0, (status, bytes(screen[-2000:]))


def writePrivately(path: Path, text: str) -> str:
    """
    Write a settings file that contains a password.
    """
    path.touch(0o600)
    path.write_text(text)
    return str(path)
