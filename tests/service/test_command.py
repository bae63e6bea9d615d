"""
The command C{pop3svc} from outside.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.running import PATIENCE, environment, script


@pytest.mark.parametrize(
    "arguments",
    [
        "--help",
        "--version",
        *("serve --help", "serve --help-settings", "import --help", "export --help", "user --help"),
        *("user list --help", "config --help", "config show", "sql --help", "check --help"),
        *("check --list-rules", "completion bash", "manual man"),
    ],
)
def test_nobodyReads(arguments: str, tmp_path: Path) -> None:
    """
    Output that nobody reads ends a command by SIGPIPE, without a traceback.
    """
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [script("pop3svc"), *arguments.split()],
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=subprocess.PIPE,
        # Without a buffer, argparse ignores the error of its own output.
        env=environment(tmp_path) | {"PYTHONUNBUFFERED": ""},
        cwd=tmp_path,
        timeout=PATIENCE,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, b"")


def test_deliverHelpThatNobodyReads(tmp_path: Path) -> None:
    """
    The exit status of a delivery is one of sysexits.h.
    """
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [script("pop3svc"), "deliver", "--help"],
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=subprocess.PIPE,
        env=environment(tmp_path),
        timeout=PATIENCE,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
