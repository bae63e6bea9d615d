"""
The operator may write the name of a user in any spelling that the service accepts (RFC 8265).
"""

from __future__ import annotations

from typing import Any

import pytest

from pop3svc.accounts.throttle import SharedThrottle
from pop3svc.policy import Policy
from pop3svc.testing import Client
from tests.admin.test_operations import Process, Workers


def loggedIn(process: Process) -> Client:
    client = process.connect()
    client.say(b"XLOG alice secret")
    return client


@pytest.mark.parametrize("name", ["alice", "ALICE", "\uff21lice"])
def test_spellings(name: str) -> None:
    process = Process(policy=Policy(nameCase="mapped"))
    client = loggedIn(process)
    assert [each["user"] for each in process.who(user=name)] == ["alice"]
    assert process.do("kick", target=name) == 1
    client.pump()
    assert process.who() == []
    for host in range(10):
        process.connect(f"192.0.2.{host}").say(b"XLOG Alice wrong%d" % host)
    assert process.do("lift", target=name) is True
    assert process.do("lift", target=name) is False


@pytest.mark.parametrize("name", ["alice", "ALICE", "\uff21lice"])
def test_spellingsWithWorkers(name: str) -> None:
    """
    The parent of workers also prepares the name of a user.
    """
    workers = Workers(Policy(nameCase="mapped"))
    told: list[tuple[Any, ...]] = []
    workers.throttle = SharedThrottle(workers.clock, tell=lambda *event: told.append(event))
    workers.do("lift", target=name)
    workers.do("lift", target="alice")
    assert told[0] == told[1]


def test_otherNames() -> None:
    process = Process()
    loggedIn(process)
    for name in ("ALICE", "a b", "\u2168"):
        assert process.who(user=name) == []
        assert process.do("kick", target=name) == 0
        assert process.do("lift", target=name) is False
