"""
Switch off optimisations of docs/fast.rst, one after the other, and compare.

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

from twisted.logger import globalLogBeginner, textFileLogObserver

from bench.parts import DONE, USERS, Parts, reactor, site
from bench.switches import SWITCHES, Change, changed, switchOf
from pop3svc.timing import TimeSlice
from tests.support.bytecodes import costOf

_LONG_AGO = 1_700_000_000
_ROUNDS, _RUNS = 15, 60


class Work:
    """
    A short session, a poll and a RETR over transports in memory.
    """

    def __init__(self, path: Path) -> None:
        site(path)
        self.parts = Parts(path)
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
        for name in sys.argv[1:] or [each for each in SWITCHES if not SWITCHES[each].rows]:
            switch = switchOf(name)
            print(f"{switch.title:58}{compare(work, switch.changes)}", flush=True)


if __name__ == "__main__":
    main()
