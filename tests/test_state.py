"""
The database that survives a restart.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path

import pytest

from pop3svc.state import State

INSERT = "INSERT OR REPLACE INTO mailbox (path, seen) VALUES (?, ?)"


def test_survivesARestart(tmp_path: Path) -> None:
    path = str(tmp_path / "state.db")
    state = State(path)
    assert state.write(INSERT, [(b"/srv/mail/alice", 1.0)])
    state.close()
    assert State(path).read("SELECT path FROM mailbox") == [(b"/srv/mail/alice",)]
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_severalAtOnce(tmp_path: Path) -> None:
    path = str(tmp_path / "state.db")
    first, second = State(path), State(path)
    assert first.write(INSERT, [(b"a", 1.0)]) and second.write(INSERT, [(b"b", 1.0)])
    assert len(first.read("SELECT * FROM mailbox")) == 2


def test_newerVersion(tmp_path: Path) -> None:
    path = str(tmp_path / "state.db")
    State(path).close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(ValueError, match=r"state\.db has schema version 99"):
        State(path)


def test_damaged(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(b"this is no database" * 1000)
    assert State(str(path)).read("SELECT * FROM mailbox") == []
    assert (tmp_path / "state.db.damaged").exists()


def test_noFile(tmp_path: Path) -> None:
    """
    A link or a FIFO in the place of the file is refused, and nothing waits for the FIFO.
    """
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="link"):
        State(str(tmp_path / "link"))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ValueError, match="fifo"):
        State(str(tmp_path / "fifo"))


def test_writeThatFails(tmp_path: Path) -> None:
    state = State(str(tmp_path / "state.db"))
    assert not state.write("INSERT INTO mailbox VALUES (?, ?)", [(None, None)])
    # The transaction has ended.
    assert state.write(INSERT, [(b"a", 1.0)])


def test_notOpenAcrossAFork(tmp_path: Path) -> None:
    """
    The file is checked by the constructor and opened again by the first use, because twistd
    forks in between, and a connection of SQLite does not survive a fork.
    """
    path = str(tmp_path / "state.db")

    def isOpen() -> bool:
        found = set()
        for each in os.listdir("/proc/self/fd"):
            try:
                found.add(os.readlink(f"/proc/self/fd/{each}"))
            except FileNotFoundError:
                pass
        return path in found

    state = State(path)
    assert not isOpen()
    assert state.write(INSERT, [(b"a", 1.0)])
    assert isOpen()
    state.close()
    assert not isOpen()
    assert len(state.read("SELECT * FROM mailbox")) == 1
