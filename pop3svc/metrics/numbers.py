"""
The numbers of a service: of one process that serves, or of all workers.
"""

from __future__ import annotations

import os
import resource
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from twisted.internet.defer import Deferred, DeferredList

from pop3svc import __version__
from pop3svc.accounts.hashing import hashing
from pop3svc.files import disk, longWork
from pop3svc.health import Health
from pop3svc.metrics.declarations import BY_NAME, Numbers, addUp, key, merge
from pop3svc.metrics.meter import Meter
from pop3svc.timing import TimeSlice

__all__ = ["ProcessNumbers", "ServiceNumbers", "WorkersNumbers", "readiness"]

# The values of a label, by the names of L{pop3svc.protocol.session.State}.
_STATES = {"AUTHORIZATION": "login", "TRANSACTION": "awake", "SLEEPING": "asleep"}
# The counters to which sessions add their work.
_OF_SESSIONS = (
    key("pop3svc_messages_sent_total"),
    key("pop3svc_message_octets_total"),
    key("pop3svc_messages_deleted_total"),
    key("pop3svc_octets_sent_total"),
)
# The number of sessions that one step counts.  A step takes less than a millisecond.
_AT_ONCE = 500


class ProcessNumbers:
    """
    The numbers of one process that serves clients.
    """

    def __init__(self, service: Any, meter: Meter) -> None:
        """
        @param service: L{pop3svc.service.running.POP3Service}
        @param meter: the meter of the service's factory.
        """
        self._service = service
        self._meter = meter
        # For each counter to which sessions add their work, its value in the last answer.
        self._counted: dict[str, float] = {}

    async def collect(self) -> Numbers:
        """
        @return: the present numbers.  Between the steps of counting, the reactor does other work.
        """
        connections = list(self._service.factory.connections)
        numbers = self._meter.numbers()
        sums, turn = _Sums(), TimeSlice(self._meter.clock)
        for start in range(0, len(connections), _AT_ONCE):
            await turn.yieldIfDue()
            sums.add(connections[start : start + _AT_ONCE])
        return self._whole(numbers, sums)

    def last(self) -> Numbers:
        """
        @return: the numbers at the end of the process, when few sessions are left.
        """
        sums = _Sums()
        sums.add(self._service.factory.connections)
        return self._whole(self._meter.numbers(), sums)

    def _whole(self, numbers: Numbers, sums: _Sums) -> Numbers:
        merge(numbers, sums.numbers())
        # A session is missing from the sums if it ended while other sessions were counted.  A
        # counter must not decrease because of a missing session.
        for name in _OF_SESSIONS:
            count = max(_number(numbers[name]), self._counted.get(name, 0))
            numbers[name] = self._counted[name] = count
        _addHealth(numbers)
        _addResources(numbers)
        numbers[key("pop3svc_info", __version__)] = 1
        numbers[key("pop3svc_draining")] = int(self._service.isDraining)
        for name, count in (
            ("disk", disk().underWay),
            ("longWork", longWork().underWay),
            ("passwords", hashing().underWay),
        ):
            numbers[key("pop3svc_queue_length", name)] = count
        return numbers


class _Sums:
    """
    Adds up how much the present sessions have sent and deleted, and counts the sessions in each
    state.
    """

    def __init__(self) -> None:
        self._states: Counter[str] = Counter()
        self._totals = dict.fromkeys(_OF_SESSIONS, 0)

    def add(self, connections: Iterable[Any]) -> None:
        """
        Add the sessions of some connections.
        """
        messages = messageOctets = deleted = octets = 0
        for each in connections:
            session = each.session
            record = session.record
            self._states[session.state.name] += 1
            messages += record.messagesSent
            messageOctets += record.messageOctets
            deleted += record.messagesDeleted
            octets += record.octetsSent
        for name, count in zip(
            _OF_SESSIONS, (messages, messageOctets, deleted, octets), strict=True
        ):
            self._totals[name] += count

    def numbers(self) -> Numbers:
        """
        @return: the sums, and the number of sessions in each state.
        """
        found: Numbers = {**self._totals}
        for name, shown in _STATES.items():
            found[key("pop3svc_sessions", shown)] = self._states[name]
        return found


def _addHealth(numbers: Numbers) -> None:
    failing = 0
    for each in Health.all():
        name = key("pop3svc_server_available", each.name)
        numbers[name] = min(int(each.isAvailable), _number(numbers.get(name, 1)))
        name = key("pop3svc_server_faults_total", each.name)
        numbers[name] = each.faults + _number(numbers.get(name, 0))
        failing += each.hasFailedRecently
    numbers[key("pop3svc_servers_failing")] = failing


def _number(value: float | list[float]) -> float:
    assert not isinstance(value, list)
    return value


def _addResources(numbers: Numbers) -> None:
    numbers[key("pop3svc_cpu_seconds_total")] = time.process_time()
    try:
        # Since Linux 6.2 the size of this directory is the number of descriptors, so no list is
        # needed.
        count = os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd"))
    except OSError:
        return
    numbers[key("pop3svc_open_file_descriptors")] = count
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    numbers[key("pop3svc_max_file_descriptors")] = limit


def _addGeneral(numbers: Numbers, throttle: Any, certificates: Any) -> None:
    """
    Add the numbers that belong to the service as a whole, and not to one worker.
    """
    numbers[key("pop3svc_bans")] = throttle.countBans()
    for each in certificates.all():
        name = key("pop3svc_certificate_end_timestamp_seconds", each.certificate)
        numbers[name] = each.end.timestamp()


class ServiceNumbers:
    """
    The numbers of a service without workers.
    """

    def __init__(self, service: Any, process: ProcessNumbers, certificates: Any) -> None:
        """
        @param service: L{pop3svc.service.running.POP3Service}
        @param certificates: L{pop3svc.service.certificates.Certificates}
        """
        self._service = service
        self._process = process
        self._certificates = certificates

    @property
    def isAlive(self) -> bool:
        """
        Whether the service has started to serve clients.
        """
        return bool(self._service.running)

    @property
    def isDraining(self) -> bool:
        """
        Whether the service admits no more logins.
        """
        return bool(self._service.isDraining)

    async def collect(self) -> Numbers:
        """
        @return: the present numbers.
        """
        numbers = await self._process.collect()
        _addGeneral(numbers, self._service.throttle, self._certificates)
        numbers[key("pop3svc_workers")] = int(self.isAlive)
        numbers[key("pop3svc_worker_restarts_total")] = 0
        return numbers


def _isKept(each: str) -> bool:
    """
    @return: whether the service keeps a number after the end of its worker.  The service keeps all
        numbers except gauges.
    """
    metric = BY_NAME.get(each.partition("\t")[0])
    return metric is not None and metric.kind != "gauge"


class WorkersNumbers:
    """
    The numbers of all workers together.

    A counter must never decrease.  Therefore the service keeps the counters of workers that have
    ended.  If a worker does not answer in time, the service uses the last answer of this worker.
    """

    def __init__(self, supervisor: Any, certificates: Any) -> None:
        """
        @param supervisor: L{pop3svc.service.workers.Supervisor}
        @param certificates: L{pop3svc.service.certificates.Certificates}
        """
        self._supervisor = supervisor
        self._certificates = certificates
        self._last: dict[Any, Mapping[str, Any]] = {}
        self._ended: Numbers = {}

    @property
    def isAlive(self) -> bool:
        """
        Whether at least one worker serves clients.
        """
        return bool(self._supervisor.serving)

    @property
    def isDraining(self) -> bool:
        """
        Whether the service admits no more logins.
        """
        return bool(self._supervisor.isDraining)

    def lastNumbers(self, worker: Any, numbers: Mapping[str, Any]) -> None:
        """
        Store the numbers that a worker sends when it ends.
        """
        self._last[worker] = numbers

    def workerEnded(self, worker: Any) -> None:
        """
        Keep the counters of a worker that has ended.
        """
        numbers = self._last.pop(worker, {})
        merge(self._ended, {each: value for each, value in numbers.items() if _isKept(each)})

    async def collect(self) -> Numbers:
        """
        @return: the present numbers.
        """
        workers = self._supervisor.serving
        asked: list[Deferred[Any]] = [
            self._supervisor.ask(each, "metrics", {}, lambda items: None) for each in workers
        ]
        answers = await DeferredList(asked, consumeErrors=True)
        for worker, (hasAnswered, answer) in zip(workers, answers, strict=True):
            # If a worker has ended meanwhile, C{workerEnded} has already added its counters.
            if hasAnswered and worker in self._supervisor.reading:
                self._last[worker] = answer
        numbers = addUp([self._ended, *self._last.values()])
        _addGeneral(numbers, self._supervisor.throttle, self._certificates)
        numbers[key("pop3svc_draining")] = int(self.isDraining)
        numbers[key("pop3svc_workers")] = len(self._supervisor.serving)
        numbers[key("pop3svc_worker_restarts_total")] = self._supervisor.restarts
        return numbers


def readiness(service: Any, numbers: Mapping[str, Any]) -> str:
    """
    @param service: L{ServiceNumbers} or L{WorkersNumbers}
    @return: the reason why the service should get no more clients; empty if the service is ready
        for clients.
    """
    if service.isDraining:
        return "draining"
    if not service.isAlive:
        return "starting"
    if numbers.get(key("pop3svc_servers_failing"), 0):
        return "a store or a source of accounts is not available"
    return ""
