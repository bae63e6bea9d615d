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
        # Use a buffer, as Python does by default if the output is a pipe.
        env=environment(tmp_path) | {"PYTHONUNBUFFERED": ""},
        cwd=tmp_path,
        timeout=PATIENCE,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, b"")


@pytest.mark.parametrize(
    ("arguments", "unbuffered"),
    [
        *(("--version", ""), ("serve --help-settings", ""), ("config show", "")),
        *(("check --list-rules", ""), ("export --provider folder:. --data . alice made", "")),
        *(("user --help", "1"), ("check --help", "1"), ("completion bash", "1")),
    ],
)
def test_fullDisk(arguments: str, unbuffered: str, tmp_path: Path) -> None:
    """
    If a command cannot write its output, it says so in one sentence.
    """
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [script("pop3svc"), *arguments.split()],
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment(tmp_path) | {"PYTHONUNBUFFERED": unbuffered},
            cwd=tmp_path,
            timeout=PATIENCE,
            check=False,
        )
    text = b"pop3svc: cannot write the output: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, text)


def test_noOutput(tmp_path: Path) -> None:
    """
    A command whose standard output is closed runs all the same.
    """
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" completion bash >&-', script("pop3svc")],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment(tmp_path),
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_deliverHelpThatNobodyReads(tmp_path: Path) -> None:
    """
    C{pop3svc deliver} does not end by SIGPIPE, because its exit status must be one of sysexits.h.
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
