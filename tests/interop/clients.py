"""
Run real clients.
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

__all__ = [
    "TIMEOUT",
    "environment",
    "mpop",
    "mutt",
    "muttReceived",
    "program",
    "run",
    "runInTerminal",
    "writePrivately",
]

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
    # Use files instead of pipes, because some clients write octet by octet.
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
    Write a file that only its owner may read, because it may contain a password.

    @return: the path of the file.
    """
    path.touch(0o600)
    path.write_text(text)
    return str(path)


def mpop(home: Path, port: int, authorities: Path, *settings: str) -> list[str]:
    """
    @param port: the port of a service on this machine, with implicit TLS.
    @param settings: lines such as C{auth plain}, C{user NAME} and C{passwordeval COMMAND}.
    @return: a command that fetches all messages into the file C{mbox} in C{home}.
    """
    lines = "\n".join(settings)
    text = f"""
account default
host 127.0.0.1
port {port}
{lines}
tls on
tls_starttls off
tls_trust_file {authorities}
keep on
only_new off
received_header off
uidls_file {home}/uidls
delivery mbox {home}/mbox
"""
    return [program("mpop"), "--quiet", "--file", writePrivately(home / "mpoprc", text)]


def mutt(name: str, home: Path, port: int, authorities: Path, *settings: str) -> list[str]:
    """
    @param name: C{mutt} or C{neomutt}.
    @param port: the port of a service on this machine, with implicit TLS.
    @param settings: lines such as C{set pop_user=NAME}.
    @return: a command for L{runInTerminal}; see L{muttReceived}.
    """
    for folder in ("tmp", "new", "cur"):
        (home / "delivered" / folder).mkdir(parents=True)
    lines = "\n".join(settings)
    text = f"""
set mbox_type=Maildir
set folder="{home}"
set spoolfile="{home}/delivered"
set pop_host="pops://127.0.0.1:{port}"
{lines}
set pop_delete=no
set certificate_file="{authorities}"
set sleep_time=0
set quit=yes
set move=no
push "<fetch-mail><exit>"
"""
    return [program(name), "-n", "-F", writePrivately(home / "rc", text)]


def muttReceived(home: Path) -> bytes:
    """
    @return: the only message that mutt has fetched.
    """
    (received,) = (home / "delivered" / "new").iterdir()
    return received.read_bytes()
