"""
If the service is killed during QUIT, it has deleted all of 200 marked messages, or none.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path

from tests.support.maildirs import deliver
from tests.support.running import Connection, Running, freePort

COUNT = 200
# How often the service is killed.  Set POP3SVC_KILLS to kill it more often.
KILLS = int(os.environ.get("POP3SVC_KILLS", "6"))


def test_killedDuringQuit(tmp_path: Path) -> None:
    (tmp_path / "users").write_text("alice:{PLAIN}secret\n")
    maildir = tmp_path / "mail" / "alice"
    port = freePort()
    options = [
        *("--provider", f"maildir:{tmp_path / 'mail'}", "--auth", f"passwd:{tmp_path / 'users'}"),
        *("--endpoint", f"tcp:{port}:interface=127.0.0.1"),
    ]
    outcomes = []
    choose = random.Random(5)
    took = 0.05
    for attempt in range(KILLS):
        for number in range(COUNT):
            folder, flags = ("cur", ":2,S") if number % 2 else ("new", "")
            deliver(maildir, f"{attempt}.{number:03}.x{flags}", folder=folder)
        with Running(tmp_path / "home", *options) as running:
            running.up()
            connection = Connection(port)
            connection.line()
            connection.logIn(b"alice", b"secret")
            for number in range(COUNT):
                assert connection.say(b"DELE %d" % (number + 1)).startswith(b"+OK")
            # The kill comes at a random time between the command and a little after its usual end.
            wait = threading.Timer(
                choose.uniform(0, 1.3 * took),
                os.kill,
                (running.process.pid, signal.SIGKILL),
            )
            began = time.monotonic()
            wait.start()
            try:
                said = connection.say(b"QUIT")
            except ConnectionError:
                said = b""
            if said:
                took = time.monotonic() - began
            wait.join()
            assert running.end() == -signal.SIGKILL
        with Running(tmp_path / "home", *options) as running:
            running.up()
            connection = Connection(port)
            connection.line()
            connection.logIn(b"alice", b"secret")
            left = int(connection.say(b"STAT").split()[1])
            names = {each.name for each in maildir.iterdir()}
            # The kill may have come while the file of sizes was written.
            names -= {"pop3svc-sizes", "pop3svc-sizes.new"}
            assert names == {"tmp", "new", "cur", "pop3svc-removing"}
            files = sum(len(list((maildir / each).iterdir())) for each in ("new", "cur"))
            assert files == left
            assert left in (0, COUNT), (attempt, left)
            # If QUIT was acknowledged, the messages are gone.
            assert not (said.startswith(b"+OK") and left)
            outcomes.append((left, bool(said)))
            for folder in ("new", "cur"):
                for each in (maildir / folder).iterdir():
                    each.unlink()
            connection.say(b"QUIT")
    assert len(outcomes) == KILLS
    print(
        f"kept {sum(left > 0 for left, _ in outcomes)}, removed {outcomes.count((0, True))} "
        f"after and {outcomes.count((0, False))} before the answer"
    )
