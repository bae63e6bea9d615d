"""
Switch off each optimisation in the table of docs/fast.rst, one after the other, and compare.

    python bench/without.py [NAME...]

For a short session, a poll and a RETR in memory, each line shows the processor time without the
optimisation, divided by the time with it, and how many more bytecodes they take without it.  Each
ratio is the median of fifteen ratios from alternating runs.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from twisted.internet.defer import Deferred
from twisted.logger import globalLogBeginner, textFileLogObserver

from bench.parts import DONE, USERS, Parts, reactor, site
from pop3svc import awaiting, preparation
from pop3svc.files import FileRegion
from pop3svc.protocol import (
    authentication,
    connection,
    dispatch,
    messages,
    outlets,
    record,
    session,
    wire,
)
from pop3svc.protocol.framing import LineBuffer
from pop3svc.protocol.sender import ReplySender
from pop3svc.providers.files import deletion, lock
from pop3svc.providers.files.listing import Listing
from pop3svc.providers.files.lock import ExclusiveDirectory
from pop3svc.providers.files.sleeping import OpenWhileAsleep
from pop3svc.providers.files.snapshot import ListingCache
from pop3svc.timing import SharedTimeout, TimeSlice
from tests.support.bytecodes import costOf

# A change of one attribute: the object, the name, and the value that switches something off.
Change = tuple[Any, str, Any]
_LONG_AGO = 1_700_000_000
_ROUNDS, _RUNS = 15, 60
# The time limits of connections that have logged in.
_limits: list[SharedTimeout] = []


def _alwaysLater(coroutine: Any) -> Any:
    """
    In place of C{startNow}: make a Deferred for each coroutine.
    """
    made = Deferred.fromCoroutine(coroutine)
    if made.called:
        found: list[Any] = []
        made.addBoth(found.append)
        if hasattr(found[0], "raiseException"):
            found[0].raiseException()
        return found[0]
    return made


def _startNow() -> list[Change]:
    users = (awaiting, connection, dispatch, messages, session)
    return [(each, "startNow", _alwaysLater) for each in users]


def _informOf() -> list[Change]:
    def informOf(logger: Any, summary: str, **fields: Any) -> None:
        logger.info("{summary}", summary=summary, **fields)

    return [(record, "informOf", informOf)]


def _lines() -> list[Change]:
    # Pretend that octets wait, so that the connection always uses the buffer.
    class Buffer(LineBuffer):
        __slots__ = ("_held",)

        @property
        def held(self) -> float:  # type: ignore[override]
            return self._held or 0.5

        @held.setter
        def held(self, held: float) -> None:
            self._held = held

    return [(connection, "LineBuffer", Buffer)]


def _timeouts() -> list[Change]:
    class NoSlack(SharedTimeout):
        slack = property(lambda self: 0.0, lambda self, slack: None)  # type: ignore[assignment]

    return [(each, "__class__", NoSlack) for each in _limits]


def _cleanCache() -> list[Change]:
    def isClean(self: Any, root: int, status: Any, folders: Any, times: Any) -> bool:
        return deletion.isClean(root, folders)

    return [(deletion.CleanCache, "isClean", isClean)]


def _kept() -> list[Change]:
    return [(lock, "openWhileAsleep", OpenWhileAsleep(0))]


# By name: the title of an entry of docs/fast.rst, and a function that returns the changes.
SWITCHES: dict[str, tuple[str, Callable[[], list[Change]]]] = {
    "coroutines": ("Run a coroutine without a Deferred", _startNow),
    "timeouts": ("Postpone a time limit", _timeouts),
    "lines": ("Answer a single line without the buffer", _lines),
    "bodies": (
        "Gather a short body without a coroutine",
        lambda: [(ReplySender, "gatherShort", lambda self, reply: False)],
    ),
    "firstlines": (
        "Cache first lines",
        lambda: [(wire, "_statusLine", wire._statusLine.__wrapped__)],
    ),
    "outlets": (
        "Write to the socket at once",
        lambda: [(outlets, "SocketOutlet", outlets.ProducerOutlet)],
    ),
    "ascii": (
        "Prepare ASCII without precis-i18n",
        lambda: [
            (authentication, "prepareName", _byLibrary("UsernameCasePreserved")),
            (authentication, "preparePassword", _byLibrary("OpaqueString")),
        ],
    ),
    "logline": ("Make the text of a log line without Twisted's formatter", _informOf),
    "listings": (
        "Share the listing",
        lambda: [(ListingCache, "get", lambda self, key, stamp: None)],
    ),
    "times": (
        "Read the times of folders once",
        lambda: [(ExclusiveDirectory, "timesAtLock", lambda self: None)],
    ),
    "clean": ("Skip the check for interrupted deletions", _cleanCache),
    "sleeping": ("Keep directories open while asleep", _kept),
    "inotify": (
        "Let the kernel report changes",
        lambda: [(Listing, "onSleep", Listing.clear)],
    ),
    "pagecache": (
        "Local files in the reactor's thread",
        lambda: [(FileRegion, "readCached", lambda self, size: None)],
    ),
}


def _byLibrary(profile: str) -> Any:
    def prepare(text: str, *arguments: Any) -> str:
        prepared = preparation._enforced(profile, text, 1000)
        assert prepared is not None
        return prepared

    return prepare


@contextmanager
def changed(changes: list[Change]) -> Iterator[None]:
    """
    Apply changes, and take them back.
    """
    before = [(each, name, getattr(each, name)) for each, name, _ in changes]
    for each, name, value in changes:
        setattr(each, name, value)
    try:
        yield
    finally:
        for each, name, value in before:
            setattr(each, name, value)


class Work:
    """
    A short session, a poll and a RETR over transports in memory.
    """

    def __init__(self, path: Path) -> None:
        site(path)
        self.parts = Parts(path)
        limits = self.parts.factory._limits
        _limits[:] = [limits.idle, limits.sleep]
        for _ in range(3):
            for user in range(USERS):
                self._end(self._logIn(user))
            for each in path.rglob("mail/**"):
                os.utime(each, (_LONG_AGO, _LONG_AGO))

    def _logIn(self, user: int) -> Any:
        protocol, _ = self.parts.logIn(user)
        return protocol

    def _end(self, protocol: Any) -> None:
        protocol.dataReceived(b"QUIT\r\n")
        protocol.connectionLost(DONE)

    def _say(self, protocol: Any, *lines: bytes) -> None:
        for line in lines:
            protocol.dataReceived(line + b"\r\n")
            while protocol.isAnswering:
                reactor.iterate(0.0001)

    def session(self) -> None:
        protocol, _ = self.parts.connect()
        self._say(protocol, b"USER user1", b"PASS secret", b"STAT", b"QUIT")
        protocol.connectionLost(DONE)

    @contextmanager
    def all(self) -> Iterator[list[Callable[[], object]]]:
        """
        @return: the three pieces of work.  The poll and the RETR use a connection that logs in now.
        """
        protocol = self._logIn(0)
        yield [
            self.session,
            lambda: self._say(protocol, b"SLEE", b"WAKE", b"UIDL"),
            lambda: self._say(protocol, b"RETR 3"),
        ]
        self._end(protocol)


def times(work: Work) -> list[float]:
    """
    @return: seconds of processor time of each piece of work.
    """
    found = []
    with work.all() as pieces:
        for each in pieces:
            each()
            began = time.process_time()
            for _ in range(_RUNS):
                each()
            found.append((time.process_time() - began) / _RUNS)
    return found


def bytecodes(work: Work) -> list[int]:
    with work.all() as pieces:
        return [costOf(each).total for each in pieces]


def compare(work: Work, switch: Callable[[], list[Change]]) -> str:
    ratios: list[list[float]] = []
    for _ in range(_ROUNDS):
        with_ = times(work)
        with changed(switch()):
            without = times(work)
        ratios.append([b / a for a, b in zip(with_, without, strict=True)])
    most = bytecodes(work)
    with changed(switch()):
        more = [b - a for a, b in zip(most, bytecodes(work), strict=True)]
    columns = [
        f"x{statistics.median(column):.2f} {extra:+6}"
        for column, extra in zip(zip(*ratios, strict=True), more, strict=True)
    ]
    return "   ".join(columns)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory, open(os.devnull, "w") as log:
        observer: Any = textFileLogObserver(log)
        globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)
        # Switch time slices off, because they let the reactor serve other connections, and here no
        # reactor runs.
        TimeSlice.SLICE = float("inf")
        work = Work(Path(directory))
        print(f"{'without':58}{'session':15}{'poll':15}RETR")
        for name in sys.argv[1:] or SWITCHES:
            title, switch = SWITCHES[name]
            print(f"{title:58}{compare(work, switch)}", flush=True)


if __name__ == "__main__":
    main()
