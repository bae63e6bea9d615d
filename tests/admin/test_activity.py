"""
The operation C{activity} in memory: it reports logins, sleepers and wakes as they happen.
"""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from pop3svc.admin.activity import Activity
from pop3svc.admin.operations import OperationError, ProcessOperations
from pop3svc.metrics.meter import Meter
from pop3svc.service.factory import POP3Factory
from pop3svc.testing import Client
from tests.support.connections import makeFactory


class Process:
    """
    A process with a meter, and its L{Activity}.
    """

    def __init__(self, worker: int = 0) -> None:
        self.clock = Clock()
        self.meter = Meter(self.clock)
        self.factory: POP3Factory = makeFactory(clock=self.clock, meter=self.meter)
        self.activity = Activity(self.meter, self.clock, worker)
        self.events: list[Any] = []
        self.parts = 0

    def hear(self, **arguments: str) -> Deferred[Any]:
        def send(events: list[Any]) -> None:
            self.events += events
            self.parts += 1

        return Deferred.fromCoroutine(self.activity.run(send, **arguments))

    def connect(self) -> Client:
        client = Client(self.factory, IPv4Address("TCP", "192.0.2.7", 4000), isSecure=True)
        client.received()
        return client


def failureOf(running: Deferred[Any]) -> None:
    failures: list[Any] = []
    running.addErrback(failures.append)
    failures[0].raiseException()


def said(events: list[Any]) -> list[tuple[str, str | None, str]]:
    return [(each["what"], each["user"], each["detail"]) for each in events]


def test_aSession() -> None:
    process = Process(worker=2)
    running = process.hear()
    client = process.connect()
    for line in (
        *(b"USER alice", b"PASS wrong", b"AUTH PLAIN AGFsaWNlAHdyb25n"),
        *(b"XLOG alice secret", b"SLEE", b"WAKE", b"QAUT", b"AUTH PLAIN"),
        *(b"AGFsaWNlAHNlY3JldA==", b"QUIT"),
    ):
        client.say(line)
        client.received()
    assert process.events == []
    process.clock.advance(0.25)
    assert said(process.events) == [
        ("refused", None, "PASS"),
        ("refused", None, "PLAIN"),
        ("login", "alice", "XLOG"),
        ("sleep", "alice", ""),
        ("wake", "alice", "ACTIVITY/NONE"),
        ("end", "alice", "logged out"),
        ("login", "alice", "PLAIN"),
        ("end", "alice", "quit"),
    ]
    first = process.events[0]
    assert first["address"] == "192.0.2.7" and first["session"].startswith("2.")
    assert abs(first["time"]) > 1e9
    assert not running.called
    running.addErrback(lambda _: None)
    running.cancel()
    assert process.meter.hear is None and process.clock.getDelayedCalls() == []


def test_theEnd() -> None:
    process = Process()
    running = process.hear(seconds="3")
    process.connect().say(b"XLOG alice secret")
    process.clock.pump([0.25] * 12)
    assert running.called and [each["what"] for each in process.events] == ["login"]
    # The second part is a sign of life.
    assert process.parts == 2
    assert process.meter.hear is None


def test_manyEvents() -> None:
    process = Process()
    process.hear()
    for _ in range(60):
        process.connect().say(b"XLOG alice wrong")
    process.clock.advance(0.25)
    assert len(process.events) == 51
    assert process.events[-1] == {"what": "more", "count": 10}


def test_refused() -> None:
    process = Process()
    for seconds in ("0", "x", "3601", "-1"):
        with pytest.raises(OperationError):
            failureOf(process.hear(seconds=seconds))
    for _ in range(4):
        process.hear()
    with pytest.raises(OperationError, match="already run"):
        failureOf(process.hear())


def test_withoutNumbers() -> None:
    """
    If the service counts nothing, the operation C{activity} fails, and the error names the reason.
    """
    operations = ProcessOperations(None, dict, Clock())
    failures: list[Any] = []
    Deferred.fromCoroutine(operations.do("activity", {}, lambda items: None)).addErrback(
        failures.append
    )
    assert "without --web" in failures[0].getErrorMessage()
