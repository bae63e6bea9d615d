"""
Fetch mail in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.task import Clock

from pop3svc.client import PasswordLogin, POP3Client, connect
from pop3svc.fetching.fetcher import Fetcher, Recorder
from pop3svc.fetching.record import FetchRecord
from pop3svc.fetching.targets import Arrived
from pop3svc.fetching.watching import Visit
from pop3svc.policy import Policy
from pop3svc.providers.memory import MemoryProvider
from pop3svc.service.factory import POP3Factory
from pop3svc.threadpool import InlineExecutor
from pop3svc.transfer.report import Report
from tests.support.upstreams import Network, result

__all__ = ["Box", "Fetching", "MemoryTarget"]


class MemoryTarget:
    """
    Keeps messages.

    @ivar errors: raised by the next calls, in order; L{None} for a call that succeeds.
    """

    def __init__(self, recognises: bool = True) -> None:
        self.recognises = self.canLook = recognises
        self.messages: dict[str, bytes] = {}
        self.all: list[bytes] = []
        self.errors: list[Exception | None] = []
        self.isClosed = False

    async def store(self, message: Arrived) -> None:
        if self.errors:
            error = self.errors.pop(0)
            if error is not None:
                raise error
        message.content.seek(0)
        content = message.content.read()
        if message.name not in self.messages or not self.recognises:
            self.all.append(content)
        self.messages[message.name] = content

    async def close(self) -> None:
        self.isClosed = True


class Box:
    """
    The other server: this service in memory, with a mailbox of alice.
    """

    def __init__(self, *messages: bytes, policy: Policy = Policy(), most: int = 1 << 20) -> None:
        self.provider = MemoryProvider({"alice": "secret"}, messages)
        self.factory = POP3Factory(self.provider, policy, clock=Clock())
        self.network = Network(lambda: self.factory.buildProtocol(None), most)

    @property
    def messages(self) -> dict[str, bytes]:
        found: dict[str, bytes] = self.provider.store.maildrop("alice").messages
        return found

    def add(self, message: bytes) -> None:
        self.provider.store.maildrop("alice").add(message)


class Fetching:
    """
    A command C{pop3svc fetch} in memory.  Each instance stands for a process of its own.
    """

    def __init__(
        self,
        network: Network,
        path: Path,
        target: Any,
        deletes: bool = False,
        largest: int = 1 << 20,
        mustEnd: Callable[[], bool] = lambda: False,
    ) -> None:
        self.network = network
        self.said: list[str] = []
        self.report = Report(self.said.append, self.said.append)
        self.record = FetchRecord(str(path))
        executor: Any = InlineExecutor()
        number = self.record.open("alice@test")
        self.recorder = Recorder(self.record, number, executor, deletes)
        self.fetcher = Fetcher(
            *("alice@test", self.recorder, target, self.report, executor, largest),
            *(deletes, mustEnd),
        )
        self.visit = Visit("alice@test", self.connect, self.fetcher)
        result(network, self.recorder.load())

    async def connect(self) -> POP3Client:
        login = PasswordLogin("alice", "secret")
        return await connect(self.network.clock, "pop3://h", login, None, endpoint=self.network)

    def once(self) -> int:
        """
        Fetch, and end the process.

        @return: the number of messages.
        """
        try:
            stored: int = result(self.network, self.visit.run(), 60)
            return stored
        finally:
            self.end()

    def end(self) -> None:
        self.record.close()
        self.network.pump()
