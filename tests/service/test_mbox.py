"""
A service that is killed while clients delete from an mbox and a delivery agent adds to it.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.running import Connection, Running, freePort

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mbox needs Linux")

MESSAGES = 150
# A delivery agent that follows Debian's policy: it opens the file, and locks it by fcntl() and then
# by a dot-lock.
AGENT = """
import fcntl, os, sys, time
path, count = sys.argv[1], int(sys.argv[2])
for number in range(count):
    with open(path, "ab") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        while True:
            try:
                lock = os.open(path + ".lock", os.O_CREAT | os.O_EXCL)
                break
            except FileExistsError:
                try:
                    process = int(open(path + ".lock").read() or 0)
                except (FileNotFoundError, ValueError):
                    continue
                if process and not os.path.exists(f"/proc/{process}"):
                    os.unlink(path + ".lock")
                fcntl.lockf(file, fcntl.LOCK_UN)
                time.sleep(0.001)
                fcntl.lockf(file, fcntl.LOCK_EX)
        file.write(b"From a@b Mon Nov  2 10:00:00 2026\\nSubject: %d\\n\\ntext %d\\n\\n" % (number, number))
        file.flush()
        os.close(lock)
        os.unlink(path + ".lock")
    time.sleep(0.01)
"""


def _session(port: int) -> tuple[set[int], str]:
    """
    Fetch and delete all messages.

    @return: the numbers in their subjects, and what went wrong; empty if the deletion was
        confirmed.
    """
    seen: set[int] = set()
    connection = Connection(port)
    try:
        connection.line()
        connection.logIn(b"alice", b"secret")
        reply = connection.say(b"STAT")
        assert reply.startswith(b"+OK"), reply
        count = int(reply.split(b" ")[1])
        for number in range(1, count + 1):
            # On a busy machine the agent may write between two looks of the service at the file.
            for _ in range(20):
                reply = connection.say(b"RETR %d" % number)
                if not reply.startswith(b"-ERR [SYS/TEMP]"):
                    break
            assert reply.startswith(b"+OK"), reply
            text = b"".join(connection.lines())
            match = re.fullmatch(rb"Subject: (\d+)\r\n\r\ntext \1\r\n", text)
            assert match is not None, text
            seen.add(int(match[1]))
            assert connection.say(b"DELE %d" % number).startswith(b"+OK")
        reply = connection.say(b"QUIT")
        return seen, "" if reply.startswith(b"+OK") else repr(reply)
    except (OSError, AssertionError, IndexError, ValueError) as error:
        if isinstance(error, AssertionError) and "Subject" in str(error):
            raise
        return seen, repr(error)
    finally:
        connection.socket.close()


def test_killed(tmp_path: Path) -> None:
    """
    No message is lost, and no message comes back whose deletion was confirmed with +OK.
    """
    port = freePort()
    mail = tmp_path / "mail"
    mail.mkdir()
    mbox = mail / "alice"
    mbox.touch()
    options = (
        *("--endpoint", f"tcp:{port}:interface=127.0.0.1", "--data", str(tmp_path / "data")),
        *("--provider", f"mbox:{mail}", "--auth", "memory:alice:secret"),
    )
    agent = subprocess.Popen([sys.executable, "-c", AGENT, mbox, str(MESSAGES)])
    deleted: set[int] = set()
    cut = rounds = 0
    try:
        while agent.poll() is None or rounds < 2:
            with Running(tmp_path / "home", *options) as service:
                service.up()
                for _ in range(4):
                    seen, fault = _session(port)
                    assert not seen & deleted
                    assert fault == ""
                    deleted |= seen
                connection = Connection(port)
                connection.line()
                connection.logIn(b"alice", b"secret")
                count = int(connection.say(b"STAT").split(b" ")[1])
                cut += count
                connection.socket.sendall(
                    b"".join(b"DELE %d\r\n" % (each + 1) for each in range(count)) + b"QUIT\r\n"
                )
                # The service is killed at some moment while it deletes.
                service.end(signal.SIGKILL)
                connection.socket.close()
            rounds += 1
        with Running(tmp_path / "home", *options) as service:
            service.up()
            seen, fault = _session(port)
            assert fault == ""
            assert not seen & deleted
    finally:
        agent.kill()
        agent.wait()
    unsure = set(range(MESSAGES)) - deleted - seen
    # Only the sessions that were cut by a kill may have deleted more.
    assert len(unsure) <= cut
    left = [each.name for each in mail.iterdir() if each.name not in ("alice", ".alice.pop3svc")]
    assert left == []
