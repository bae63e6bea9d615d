"""
The networks and addresses from which users have logged in.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from pop3svc.accounts.knownnetworks import KnownNetworks
from pop3svc.state import State
from pop3svc.testing import Inline


class Now:
    """
    A wall clock that a test sets.
    """

    def __init__(self) -> None:
        self.seconds = 1e9

    def __call__(self) -> float:
        return self.seconds


def done(coroutine: Any) -> None:
    outcome: list[Any] = []
    Deferred.fromCoroutine(coroutine).addBoth(outcome.append)
    assert outcome == [None]


def kept(path: Path, now: Now, isWriter: bool = True) -> KnownNetworks:
    """
    @return: the networks that another process loads from the same database.
    """
    known = KnownNetworks(State(str(path)), isWriter, Inline(), now)
    done(known.load())
    return known


def test_isKnown() -> None:
    """
    A user is known by network, not by address, for 90 days.
    """
    now = Now()
    known = KnownNetworks(now=now)
    assert known.add("alice", "192.0.2.7")
    assert known.isKnown("alice", "192.0.2.200")
    assert known.isKnown("alice", "::ffff:192.0.2.200")
    assert not known.isKnown("alice", "192.0.3.7")
    assert not known.isKnown("bob", "192.0.2.7")
    known.add("alice", "2001:db8:1:2::1")
    assert known.isKnown("alice", "2001:db8:1:2:3::1")
    assert not known.isKnown("alice", "2001:db8:1:3::1")
    now.seconds += 90 * 86400
    assert not known.isKnown("alice", "192.0.2.7")


def test_newsOnceADay() -> None:
    now = Now()
    known = KnownNetworks(now=now)
    assert known.add("alice", "192.0.2.7")
    assert not known.add("alice", "192.0.2.7")
    now.seconds += 86400
    assert known.add("alice", "192.0.2.7")


@pytest.mark.parametrize("address", ["192.0.2.%d", "2001:db8:1:%d::1"])
def test_isShared(address: str) -> None:
    """
    Three users share one address; its neighbours are not shared.
    """
    now = Now()
    known = KnownNetworks(now=now)
    for name in ("alice", "bob"):
        for _ in range(3):
            known.add(name, address % 7)
    known.add("carol", address % 8)
    assert not known.isShared(address % 7)
    known.add("carol", address % 7)
    assert known.isShared(address % 7)
    assert not known.isShared(address % 8)
    now.seconds += 90 * 86400
    assert not known.isShared(address % 7)


def test_staysSharedWhileItsUsersChange() -> None:
    now = Now()
    known = KnownNetworks(now=now)
    for day in range(120):
        known.add(f"user{day}", "192.0.2.7")
        now.seconds += 86400
    assert known.isShared("192.0.2.7")
    assert len(known._addresses["192.0.2.7/32"]) == 3


def test_isBounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """
    The networks of a user, the users and the addresses are bounded; evicted entries are
    deleted from the file.
    """
    monkeypatch.setattr(KnownNetworks, "USERS", 10)
    monkeypatch.setattr(KnownNetworks, "ADDRESSES", 10)
    now = Now()
    known = kept(tmp_path / "state.db", now)
    for number in range(20):
        now.seconds += 1
        known.add("alice", f"10.0.{number}.1")
    assert not known.isKnown("alice", "10.0.3.1") and known.isKnown("alice", "10.0.4.1")
    done(known.save())
    for number in range(30):
        known.add(f"user{number}", "198.51.100.1")
    done(known.save())
    with sqlite3.connect(tmp_path / "state.db") as database:
        rows = database.execute("SELECT user, network FROM network").fetchall()
    assert len([row for row in rows if row[1].endswith("/24")]) == 10
    assert len([row for row in rows if row[1].endswith("/32")]) == 12


def test_survivesARestart(tmp_path: Path) -> None:
    now = Now()
    known = kept(tmp_path / "state.db", now)
    for name in ("alice", "\udcff", "carol"):
        known.add(name, "192.0.2.7")
    known.add("alice", "2001:db8::1")
    done(known.save())
    again = kept(tmp_path / "state.db", now)
    for name in ("alice", "\udcff", "carol"):
        assert again.isKnown(name, "192.0.2.8")
    assert again.isShared("192.0.2.7")
    assert again.isKnown("alice", "2001:db8::2")
    now.seconds += 90 * 86400
    late = kept(tmp_path / "state.db", now)
    assert not late.isKnown("alice", "192.0.2.8")
    done(late.save())
    # The clock was ahead.
    now.seconds -= 90 * 86400
    assert kept(tmp_path / "state.db", now).isKnown("alice", "192.0.2.8")
    now.seconds += 180 * 86400
    done(kept(tmp_path / "state.db", now).save())
    with sqlite3.connect(tmp_path / "state.db") as database:
        assert database.execute("SELECT count(*) FROM network").fetchone() == (0,)


def test_readInSlices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = Now()
    known = kept(tmp_path / "state.db", now)
    for number in range(23):
        known.add(f"user{number}", f"10.0.{number}.1")
    done(known.save())
    for size in (1, 7, 46, 100):
        monkeypatch.setattr(KnownNetworks, "SLICE", size)
        again = kept(tmp_path / "state.db", now)
        assert all(again.isKnown(f"user{n}", f"10.0.{n}.1") for n in range(23))


def test_onlyChangesAreWritten(tmp_path: Path) -> None:
    now = Now()
    state = State(str(tmp_path / "state.db"))
    written: list[Any] = []
    write = state.write

    def recording(statement: str, rows: Any) -> bool:
        rows = list(rows)
        written.extend(rows if statement.startswith("INSERT") else [])
        return write(statement, rows)

    state.write = recording  # type: ignore[method-assign]
    known = KnownNetworks(state, True, Inline(), now)
    known.add("alice", "192.0.2.7")
    done(known.save())
    assert written == [(b"alice", "192.0.2.0/24", 1e9), (b"alice", "192.0.2.7/32", 1e9)]
    known.add("alice", "192.0.2.7")
    done(known.save())
    assert len(written) == 2


def test_writtenLaterAfterAFault(tmp_path: Path) -> None:
    now = Now()
    state = State(str(tmp_path / "state.db"))
    known = KnownNetworks(state, True, Inline(), now)
    known.add("alice", "192.0.2.7")
    state.close()
    (tmp_path / "state.db").rename(tmp_path / "elsewhere")
    (tmp_path / "state.db").mkdir()
    done(known.save())
    # Another process gets the logins that are not in the file yet.
    assert ["alice", "192.0.2.0/24", 1e9] in known.state()
    (tmp_path / "state.db").rmdir()
    (tmp_path / "elsewhere").rename(tmp_path / "state.db")
    done(known.save())
    assert known.state() == []
    assert kept(tmp_path / "state.db", now).isKnown("alice", "192.0.2.7")


def test_comesBackWhileWritingFails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A user logs in from a network again while the deletion of this network from the file fails.
    """
    monkeypatch.setattr(KnownNetworks, "EACH", 1)
    now = Now()
    state = State(str(tmp_path / "state.db"))
    known = KnownNetworks(state, True, Inline(), now)
    known.add("alice", "192.0.2.7")
    done(known.save())
    now.seconds += 1
    known.add("alice", "198.51.100.7")

    def failing(statement: str, rows: Any) -> bool:
        now.seconds += 1
        known.add("alice", "192.0.2.7")
        return False

    with monkeypatch.context() as patch:
        patch.setattr(state, "write", failing)
        done(known.save())
    done(known.save())
    assert kept(tmp_path / "state.db", now).isKnown("alice", "192.0.2.7")


def test_onlyOneWrites(tmp_path: Path) -> None:
    now = Now()
    reader = kept(tmp_path / "state.db", now, isWriter=False)
    reader.add("alice", "192.0.2.7")
    done(reader.save())
    assert reader.isKnown("alice", "192.0.2.7")
    assert not kept(tmp_path / "state.db", now).isKnown("alice", "192.0.2.7")


def test_goesOnElsewhere() -> None:
    """
    Without a file, another process gets all logins.
    """
    now = Now()
    known = KnownNetworks(now=now)
    for name in ("alice", "bob", "carol"):
        known.add(name, "192.0.2.7")
    there = KnownNetworks(now=now)
    there.restore(json.loads(json.dumps(known.state())))
    assert there.isKnown("bob", "192.0.2.9") and there.isShared("192.0.2.7")


def test_clockThatWasAhead() -> None:
    now = Now()
    known = KnownNetworks(now=now)
    known.restore([["alice", "192.0.2.0/24", 2e9]])
    now.seconds += 90 * 86400
    assert not known.isKnown("alice", "192.0.2.7")


def test_spellingsAreOneUser() -> None:
    """
    A directory may ignore case.  One user with several spellings makes no address shared.
    """
    known = KnownNetworks()
    for name in ("eve", "Eve", "EVE"):
        known.add(name, "203.0.113.9")
    assert known.isKnown("eVe", "203.0.113.7") and not known.isShared("203.0.113.9")
    again = KnownNetworks()
    again.restore([["eve", "203.0.113.9/32", 1.0], ["EVE", "203.0.113.9/32", 2.0]])
    assert len(again._addresses["203.0.113.9/32"]) == 1
