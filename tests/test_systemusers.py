"""
Users of the system.
"""

from __future__ import annotations

import os
import pwd
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from pop3svc.errors import POP3ResponseError
from pop3svc.systemusers import SystemUser, SystemUsers, lookUp
from pop3svc.testing import Inline
from tests.support.coroutines import start

ALICE = SystemUser(20001, 20001, "/home/alice", (20001, 20005))


def test_lookUp() -> None:
    entry = pwd.getpwuid(os.geteuid())
    found = lookUp(entry.pw_name)
    assert found is not None
    assert found[:3] == (entry.pw_uid, entry.pw_gid, entry.pw_dir)
    assert entry.pw_gid in found.groups


@pytest.mark.parametrize("name", ["", "no-such-user", "root\0x", "\udcff", "ä" * 3000])
def test_nobody(name: str) -> None:
    assert lookUp(name) is None


class Directory:
    """
    A directory of users.  A test can make the directory unavailable.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.asked: list[str] = []
        self.isAway = False
        self.users = {"alice": ALICE}
        self.system = SystemUsers(Inline(), self.clock, self._look)

    def _look(self, name: str) -> SystemUser | None:
        self.asked.append(name)
        if self.isAway:
            raise OSError(5, "Input/output error")
        return self.users.get(name)

    def find(self, name: str) -> Any:
        _, got = start(self.system.find(name))
        return got[0] if got else None


def test_remembered() -> None:
    """
    A user is remembered for a minute, and the absence of a user for some seconds.
    """
    directory = Directory()
    assert directory.find("alice") == directory.find("alice") == ALICE
    assert directory.find("bob") is directory.find("bob") is None
    assert directory.asked == ["alice", "bob"]
    directory.users = {"bob": ALICE}
    directory.clock.advance(SystemUsers.ABSENT)
    assert directory.find("bob") == directory.find("alice") == ALICE
    directory.clock.advance(SystemUsers.LIFE)
    assert directory.find("alice") is None


def test_bounded() -> None:
    directory = Directory()
    for number in range(SystemUsers.BOUND + 5):
        directory.find(f"u{number}")
    assert len(directory.system._known) == SystemUsers.BOUND


def test_away() -> None:
    """
    An error is not remembered.
    """
    directory = Directory()
    directory.isAway = True
    failure = directory.find("alice")
    assert failure.check(POP3ResponseError) and failure.value.code == "SYS/TEMP"
    directory.isAway = False
    assert directory.find("alice") == ALICE


class Stuck:
    """
    An executor whose work never ends.
    """

    def run(self, work: Any, *arguments: Any, **_: Any) -> Deferred[Any]:
        return Deferred()


def test_stuck() -> None:
    clock = Clock()
    executor: Any = Stuck()
    _, got = start(SystemUsers(executor, clock).find("alice"))
    clock.advance(SystemUsers.TIMEOUT - 1)
    assert not got
    clock.advance(1)
    assert got[0].check(POP3ResponseError) and got[0].value.code == "SYS/TEMP"
