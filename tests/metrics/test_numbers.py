"""
The numbers of workers, put together.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from pop3svc.health import Health
from pop3svc.metrics.declarations import METRICS, addUp, key
from pop3svc.metrics.exposition import expose, requireLibrary
from pop3svc.metrics.numbers import WorkersNumbers, _addHealth, readiness
from pop3svc.service.workers import ANSWER, COUNTS
from tests.support.supervisors import Reactor, died, supervisor

CONNECTIONS, SESSIONS = key("pop3svc_connections_total"), key("pop3svc_sessions", "awake")


class Workers:
    """
    A supervisor in memory, and the numbers of its workers.
    """

    def __init__(self, count: int = 2) -> None:
        self.reactor = Reactor()
        self.reactor.advance(1e6)
        self.supervisor = supervisor(self.reactor, count)
        self.numbers = WorkersNumbers(self.supervisor, SimpleNamespace(all=list))
        self.supervisor.numbers = self.numbers

    def begin(self) -> Deferred[Any]:
        return Deferred.fromCoroutine(self.numbers.collect())

    def answer(self, number: int, **numbers: Any) -> None:
        """
        Answer the last question to a worker.
        """
        worker = self.reactor.started[number]
        question = json.loads(worker.transport.written[-1][1:])
        assert question["do"] == "metrics"
        answer = {"id": question["id"], "result": numbers}
        worker._received(ANSWER, json.dumps(answer).encode("ascii"))

    def collect(self, *answers: dict[str, Any]) -> Any:
        """
        @param answers: the answers of all workers, in the order in which they were started.  The
            answer of a worker that no longer serves is not used.
        """
        collected = self.begin()
        for number, each in enumerate(self.reactor.started):
            if each in self.supervisor.serving:
                self.answer(number, **answers[number])
        results: list[Any] = []
        collected.addBoth(results.append)
        [result] = results
        return result


def test_workersAreAddedUp() -> None:
    workers = Workers()
    numbers = workers.collect({CONNECTIONS: 3, SESSIONS: 1}, {CONNECTIONS: 4, SESSIONS: 1})
    assert (numbers[CONNECTIONS], numbers[SESSIONS]) == (7, 2)
    assert numbers["pop3svc_workers"] == 2
    assert numbers["pop3svc_worker_restarts_total"] == 0


def test_countersNeverDecrease() -> None:
    """
    A worker that ends sends what it has counted.  If a worker is killed, its answer to the last
    request still counts.
    """
    workers = Workers()
    workers.collect({CONNECTIONS: 3, SESSIONS: 1}, {CONNECTIONS: 4, SESSIONS: 1})
    first = workers.reactor.started[0]
    first._received(COUNTS, json.dumps({CONNECTIONS: 5, SESSIONS: 1}).encode("ascii"))
    died(first)
    numbers = workers.collect({}, {CONNECTIONS: 4, SESSIONS: 1})
    assert (numbers[CONNECTIONS], numbers[SESSIONS]) == (9, 1)
    assert numbers["pop3svc_workers"] == 1
    assert numbers["pop3svc_worker_restarts_total"] == 1
    died(workers.reactor.started[1])
    numbers = workers.collect()
    assert numbers[CONNECTIONS] == 9 and SESSIONS not in numbers
    assert readiness(workers.numbers, numbers) == "starting"


def test_aWorkerEndsWhileItIsAsked() -> None:
    workers = Workers()
    workers.collect({CONNECTIONS: 3}, {CONNECTIONS: 4})
    collected = workers.begin()
    workers.answer(0, **{CONNECTIONS: 6})
    died(workers.reactor.started[0])
    workers.answer(1, **{CONNECTIONS: 4})
    results: list[Any] = []
    collected.addBoth(results.append)
    # The first worker ended before its new answer was used, so its previous answer counts.
    assert results[0][CONNECTIONS] == 7
    assert workers.collect({}, {CONNECTIONS: 4})[CONNECTIONS] == results[0][CONNECTIONS]


@pytest.mark.parametrize("ends", [False, True])
def test_aWorkerThatDoesNotAnswer(ends: bool) -> None:
    """
    The numbers wait a few seconds for a worker that does not answer, and not at all for a worker
    that has ended.
    """
    workers = Workers()
    workers.collect({CONNECTIONS: 3}, {CONNECTIONS: 4})
    collected = workers.begin()
    workers.answer(1, **{CONNECTIONS: 5})
    results: list[Any] = []
    collected.addBoth(results.append)
    assert results == []
    if ends:
        died(workers.reactor.started[0])
    else:
        workers.reactor.advance(5)
    assert results[0][CONNECTIONS] == 8


def test_readiness() -> None:
    workers = Workers(1)
    assert readiness(workers.numbers, {}) == ""
    assert "not available" in readiness(workers.numbers, {"pop3svc_servers_failing": 1})
    workers.supervisor.drain()
    assert readiness(workers.numbers, {}) == "draining"


def test_addUp() -> None:
    server = key("pop3svc_server_available", "a\tb\nc")
    assert server == "pop3svc_server_available\ta b c"
    delay, draining = key("pop3svc_reactor_delay_seconds"), key("pop3svc_draining")
    first = {server: 1, delay: [1, 0, 0.5], draining: 0, "unknown": 4}
    second = {server: 0, delay: [1, 2, 0.25], draining: 1}
    assert addUp([first, second]) == {server: 0, delay: [2, 2, 0.75], draining: 1}
    assert first[delay] == [1, 0, 0.5]


def test_health(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("pop3svc.health.time.monotonic", lambda: now[0])
    first, second = Health("a server"), Health("a server")

    def found() -> tuple[Any, ...]:
        numbers: dict[str, Any] = {}
        _addHealth(numbers)
        names = ("pop3svc_server_available", "pop3svc_server_faults_total")
        failing = sum(each.hasFailedRecently for each in (first, second))
        return (*(numbers[key(name, "a server")] for name in names), failing)

    assert found() == (1, 0, 0)
    second.failed("gone")
    second.failed("gone")
    assert found() == (0, 2, 1)
    now[0] += Health.RECENT
    assert found() == (0, 2, 0)
    second.succeeded()
    assert found() == (1, 2, 0)


def test_theLibraryIsMissing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ValueError, match=r"^needs prometheus-client: pip install 'pop3svc\[metri"):
        requireLibrary()


def everyName() -> set[str]:
    """
    @return: the names of all samples of C{/metrics}.
    """
    numbers: dict[str, Any] = {}
    for each in METRICS:
        value = [0] * (len(each.buckets) + 2) if each.kind == "histogram" else 1
        numbers[key(each.name, *each.labels)] = value
    lines = expose(numbers).decode("ascii").splitlines()
    return {line.partition("{")[0].partition(" ")[0] for line in lines if line[0] != "#"}


@pytest.mark.parametrize("name", ["grafana/pop3svc.json", "prometheus/pop3svc.yml"])
def test_contribUsesRealNames(name: str) -> None:
    text = (Path(__file__).parent.parent.parent / "contrib" / name).read_text()
    if name.endswith(".json"):
        json.loads(text)
    used = set(re.findall(r"\bpop3svc_\w+", text))
    assert len(used) > 8
    assert used <= everyName()


def test_declarations() -> None:
    assert len({each.name for each in METRICS}) == len(METRICS)
    for each in METRICS:
        assert each.name.startswith("pop3svc_") and each.help.endswith(".")
        assert each.name.endswith("_total") == (each.kind == "counter")
        assert bool(each.buckets) == (each.kind == "histogram")
