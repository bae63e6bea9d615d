"""
Measure the processor time that a session takes in the service, without sockets.  Measure also the
time of the session's parts, by leaving out one part after the other.

    python bench/parts.py

Each figure is in microseconds of processor time.  The program runs all pieces of work in turn,
twenty times, and takes the mean of many runs each time.  A figure is the least of these means, or
the difference between two such figures.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent))

from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.portal import Portal
from twisted.internet import reactor as installed
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.logger import globalLogBeginner
from twisted.python.failure import Failure

from bench.twistedmail import MaildirRealm
from bench.twistedmail import POP3Factory as TwistedMailFactory
from pop3svc.accounts.checkers import AccountsProvider
from pop3svc.accounts.passwordfile import PasswordFile
from pop3svc.accounts.throttle import LoginGuard, SharedThrottle
from pop3svc.logs import FileSink, Log
from pop3svc.policy import Policy
from pop3svc.protocol import record
from pop3svc.protocol.connection import POP3Connection
from pop3svc.providers.maildir import MaildirStore
from pop3svc.providers.memory import MemoryProvider
from pop3svc.service.factory import POP3Factory
from pop3svc.timing import TimeSlice

reactor: Any = installed
DONE = Failure(ConnectionDone())
ADDRESS = IPv4Address("TCP", "127.0.0.1", 1)
# One more user stays logged in during the short sessions of the others.
USERS, MESSAGES = 8, 20


class Socket:
    """
    A TCP transport without TLS that accepts all octets at once.
    """

    connected = True
    disconnecting = False

    def __init__(self) -> None:
        self.octets = 0

    def writeSomeData(self, data: bytes) -> int:
        self.octets += len(data)
        return len(data)

    def write(self, data: bytes) -> None:
        self.octets += len(data)

    def writeSequence(self, pieces: list[bytes]) -> None:
        self.octets += sum(map(len, pieces))

    def setTcpNoDelay(self, isOn: bool) -> None:
        pass

    def registerProducer(self, producer: Any, isStreaming: bool) -> None:
        pass

    unregisterProducer = pauseProducing = resumeProducing = doWrite = lambda self: None
    loseConnection = loseWriteConnection = abortConnection = lambda self: None


class _Nothing:
    """
    Does nothing, in the place of a part that is left out.
    """

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **named: None


def site(path: Path) -> None:
    (path / "users").write_text("".join(f"user{n}:{{PLAIN}}secret\n" for n in range(USERS + 1)))
    for user in range(USERS + 1):
        for folder in ("tmp", "new", "cur"):
            (path / "mail" / f"user{user}" / folder).mkdir(parents=True)
        for number in range(MESSAGES):
            name = path / "mail" / f"user{user}" / "cur" / f"{1000 + number}.M1P1.host:2,S"
            name.write_bytes(b"Subject: x\r\n\r\n" + (b"y" * 62 + b"\r\n") * 64)


def memory() -> MemoryProvider:
    """
    A provider with the same users, but without files and messages.
    """
    return MemoryProvider({f"user{user}": "secret" for user in range(USERS)})


def session(turn: int) -> tuple[bytes, ...]:
    """
    @return: the lines that a client sends in a short session.
    """
    return b"USER user%d\r\n" % (turn % USERS), b"PASS secret\r\n", b"STAT\r\n", b"QUIT\r\n"


class Parts:
    """
    A service with its real parts, and connections to it in memory.
    """

    def __init__(self, path: Path) -> None:
        throttle = LoginGuard(reactor, SharedThrottle(reactor))
        store = MaildirStore(str(path / "mail"))
        checker = PasswordFile(str(path / "users"))
        self.factory = POP3Factory(AccountsProvider(store, [checker]), throttle=throttle)

    def connect(self, *lines: bytes) -> tuple[Any, Socket]:
        protocol: Any = self.factory.buildProtocol(ADDRESS)
        assert isinstance(protocol, POP3Connection)
        socket = Socket()
        protocol.makeConnection(socket)
        for line in lines:
            protocol.dataReceived(line)
        return protocol, socket

    def logIn(self, user: int) -> tuple[Any, Socket]:
        """
        Log in, and let the reactor do the work that the login waits for.
        """
        protocol, socket = self.connect()
        for line in (b"USER user%d\r\n" % user, b"PASS secret\r\n", b"STAT\r\n"):
            protocol.dataReceived(line)
            while protocol.isAnswering:
                reactor.iterate(0.01)
        return protocol, socket

    def short(self, turn: int) -> None:
        protocol, socket = self.connect(*session(turn))
        protocol.connectionLost(DONE)
        assert socket.octets > 80, "a command waits"

    def stranger(self, turn: int) -> None:
        self.connect(b"QUIT\r\n")[0].connectionLost(DONE)


class Theirs:
    """
    Runs the same sessions with twisted.mail, over the same files.
    """

    def __init__(self, path: Path) -> None:
        checker = InMemoryUsernamePasswordDatabaseDontUse()
        for user in range(USERS):
            checker.addUser(b"user%d" % user, b"secret")
        self._factory = TwistedMailFactory(Portal(MaildirRealm(str(path / "mail")), [checker]))

    def short(self, turn: int) -> None:
        protocol: Any = self._factory.buildProtocol(ADDRESS)
        socket = Socket()
        protocol.makeConnection(socket)
        for line in session(turn):
            protocol.dataReceived(line)
        protocol.connectionLost(DONE)
        assert socket.octets > 80, "a command waits"


class Figures:
    """
    Measures pieces of work in turn.
    """

    def __init__(self) -> None:
        self._work: dict[str, tuple[Callable[[int], object], AbstractContextManager[object], int]]
        self._work = {}

    def add(
        self,
        name: str,
        work: Callable[[int], object],
        without: AbstractContextManager[object] | None = None,
        runs: int = 300,
    ) -> None:
        """
        @param work: takes the number of the run.
        @param without: leaves out a part of the service while the work runs.  It must be reusable.
        @param runs: the runs of one mean.
        """
        self._work[name] = work, nullcontext() if without is None else without, runs

    def measure(self) -> dict[str, float]:
        """
        @return: the times of a run in microseconds.  Each is the least of twenty means.
        """
        means: dict[str, list[float]] = {name: [] for name in self._work}
        for _ in range(20):
            for name, (work, without, runs) in self._work.items():
                # Run the calls that the work has delayed, so that they do not accumulate.  Their
                # time does not count.
                reactor.runUntilCurrent()
                with without:
                    began = time.process_time()
                    for turn in range(runs):
                        work(turn)
                    means[name].append((time.process_time() - began) / runs)
        return {name: min(each) * 1e6 for name, each in means.items()}


def say(what: str, microseconds: float) -> None:
    print(f"{what:58}{microseconds:7.0f}")


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        observer = Log(FileSink(os.devnull), reactor)
        observer.gather(Policy.logDelay)
        globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)
        # Switch time slices off, because they let the reactor serve other connections, and here no
        # reactor runs.
        TimeSlice.SLICE = float("inf")
        site(Path(directory))
        parts = Parts(Path(directory))
        for _ in range(3):
            for user in range(USERS):
                protocol, _ = parts.logIn(user)
                protocol.dataReceived(b"QUIT\r\n")
                protocol.connectionLost(DONE)
            # Wait until the times of directories show reliably whether the directories have
            # changed.
            time.sleep(0.1)
        protocol, _ = parts.logIn(USERS)

        def poll(_: int) -> None:
            for line in (b"SLEE\r\n", b"WAKE\r\n", b"UIDL\r\n"):
                protocol.dataReceived(line)

        poll(0)
        ahead = b"".join(b"RETR %d\r\n" % number for number in range(1, MESSAGES + 1))
        figures, factory = Figures(), parts.factory
        figures.add("whole", parts.short)
        figures.add("theirs", Theirs(Path(directory)).short)
        figures.add("stranger", parts.stranger)
        figures.add("log", parts.short, mock.patch.object(record, "log", _Nothing()))
        figures.add("throttle", parts.short, mock.patch.object(factory, "throttle", None))
        figures.add("files", parts.short, mock.patch.object(factory, "provider", memory()))
        figures.add("NOOP", lambda _: protocol.dataReceived(b"NOOP\r\n"))
        figures.add("RETR", lambda _: protocol.dataReceived(b"RETR 1\r\n"))
        figures.add("ahead", lambda _: protocol.dataReceived(ahead), runs=30)
        figures.add("poll", poll)
        least = figures.measure()
        say("connection, USER, PASS, STAT, QUIT", least["whole"])
        say("  the same by twisted.mail", least["theirs"])
        say("  connection and QUIT alone", least["stranger"])
        say("  of it the line in the log", least["whole"] - least["log"])
        say("  bans and limits of guesses", least["whole"] - least["throttle"])
        say("  files: passwords, lock, listing, sizes", least["whole"] - least["files"])
        say("NOOP", least["NOOP"])
        say("RETR of 4 KiB", least["RETR"])
        say(f"  of {MESSAGES} that came together", least["ahead"] / MESSAGES)
        say("SLEE, WAKE, UIDL of 20", least["poll"])


if __name__ == "__main__":
    main()
