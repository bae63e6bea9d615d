"""
The operator may write the name of a user in each spelling (RFC 8265).
"""

from __future__ import annotations

import pytest

from pop3svc.policy import Policy
from pop3svc.testing import Client
from tests.admin.test_operations import Process


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


def test_otherNames() -> None:
    process = Process()
    loggedIn(process)
    for name in ("ALICE", "a b", "\u2168"):
        assert process.who(user=name) == []
        assert process.do("kick", target=name) == 0
        assert process.do("lift", target=name) is False
