"""
A supervisor in memory, whose workers are no processes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.error import ProcessTerminated
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from pop3svc.accounts.throttle import SharedThrottle
from pop3svc.policy import Policy
from pop3svc.service.workers import UP, Shared, Supervisor

__all__ = ["Reactor", "Transport", "died", "supervisor"]


class Transport:
    """
    A process or a pipe, with the methods that the supervisor calls.
    """

    def __init__(self) -> None:
        self.pid: int | None = 5
        self.written: list[bytes] = []
        self.signals: list[str] = []
        self.producer: Any = None

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def writeSequence(self, data: Any) -> None:
        self.written.extend(data)

    def registerProducer(self, producer: Any, isStreaming: bool) -> None:
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def signalProcess(self, name: str) -> None:
        self.signals.append(name)


class Reactor(Clock):
    """
    A clock that notes processes instead of starting them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.started: list[Any] = []
        self.fails = False
        self.stopped = 0

    def callWhenRunning(self, what: Callable[[], object]) -> None:
        what()

    def spawnProcess(self, protocol: Any, *rest: Any, **more: Any) -> None:
        if self.fails:
            raise OSError(12, "Cannot allocate memory")
        self.started.append(protocol)
        protocol.makeConnection(Transport())

    def stop(self) -> None:
        self.stopped += 1


def supervisor(reactor: Reactor, count: int = 1, serve: bool = True) -> Supervisor:
    shared = Shared(0, count, [], None, "/", [], {}, None, [])
    made = Supervisor(
        *(reactor, Policy(maxRestartDelay=5), SharedThrottle(reactor), [], shared),
        *(dict, lambda: None),
    )
    made.startService()
    for each in reactor.started if serve else []:
        each._received(UP, b"null")
    return made


def died(worker: Any, reason: Any = ProcessTerminated(1)) -> None:
    worker.processExited(Failure(reason))
    worker.processEnded(Failure(reason))
