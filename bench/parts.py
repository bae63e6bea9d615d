"""
Measure the processor time that a session takes in the service, without sockets.  Measure also the
time of the session's parts, by leaving out one part after the other.

    python bench/parts.py

Each figure is in microseconds of processor time.  The program takes the mean of many runs, twenty
times.  A figure is the least of these means, or the difference between two such figures.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.portal import Portal
from twisted.internet import reactor as installed
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.logger import globalLogBeginner, textFileLogObserver
from twisted.python.failure import Failure

from bench.twistedmail import MaildirRealm
from bench.twistedmail import POP3Factory as TwistedMailFactory
from pop3svc.accounts.checkers import AccountsProvider
from pop3svc.accounts.passwordfile import PasswordFile
from pop3svc.accounts.throttle import LoginGuard, SharedThrottle
from pop3svc.protocol import connection
from pop3svc.protocol.connection import POP3Connection
from pop3svc.providers.maildir import MaildirStore
from pop3svc.providers.memory import MemoryProvider
from pop3svc.service.factory import POP3Factory
from pop3svc.timing import TimeSlice

reactor: Any = installed
DONE = Failure(ConnectionDone())
ADDRESS = IPv4Address("TCP", "127.0.0.1", 1)
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
    (path / "users").write_text("".join(f"user{n}:{{PLAIN}}secret\n" for n in range(USERS)))
    for user in range(USERS):
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


def least(work: Callable[[int], object], runs: int = 300) -> float:
    """
    @return: the time of a run in microseconds, which is the least of twenty means.
    """
    best = float("inf")
    for _ in range(20):
        # Run the calls that the work has delayed, so that they do not accumulate.  Their time does
        # not count.
        reactor.runUntilCurrent()
        began = time.process_time()
        for turn in range(runs):
            work(turn)
        best = min(best, (time.process_time() - began) / runs)
    return best * 1e6


def say(what: str, microseconds: float) -> None:
    print(f"{what:58}{microseconds:7.0f}")


def main() -> None:
    with tempfile.TemporaryDirectory() as directory, open(os.devnull, "w") as log:
        observer: Any = textFileLogObserver(log)
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
        factory = parts.factory
        whole = least(parts.short)
        say("connection, USER, PASS, STAT, QUIT", whole)
        say("  the same by twisted.mail", least(Theirs(Path(directory)).short))
        say("  connection and QUIT alone", least(parts.stranger))
        kept: Any = connection.log
        connection.log = _Nothing()  # type: ignore[assignment]
        say("  of it the line in the log", whole - least(parts.short))
        connection.log = kept
        kept, factory.throttle = factory.throttle, None
        say("  bans and limits of guesses", whole - least(parts.short))
        factory.throttle = kept
        kept, factory.provider = factory.provider, memory()
        memorized = least(parts.short)
        say("  files: passwords, lock, listing, sizes", whole - memorized)
        factory.provider = kept
        protocol, _ = parts.logIn(0)
        say("NOOP", least(lambda _: protocol.dataReceived(b"NOOP\r\n")))
        say("RETR of 4 KiB", least(lambda turn: protocol.dataReceived(b"RETR 1\r\n")))
        ahead = b"".join(b"RETR %d\r\n" % number for number in range(1, MESSAGES + 1))
        say(
            f"  of {MESSAGES} that came together",
            least(lambda _: protocol.dataReceived(ahead), 30) / MESSAGES,
        )

        def poll(_: int) -> None:
            for line in (b"SLEE\r\n", b"WAKE\r\n", b"UIDL\r\n"):
                protocol.dataReceived(line)

        poll(0)
        say("SLEE, WAKE, UIDL of 20", least(poll))


if __name__ == "__main__":
    main()
