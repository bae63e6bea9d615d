"""
The optimisations of docs/fast.rst that can be switched off, to measure what each of them saves.

C{bench/without.py} switches one off in memory, and C{python -m bench --without NAME} switches one
off in a real service.  To start a service without an optimisation, as the benchmark does::

    python -m bench.switches NAME -n pop3svc ...

The arguments after the name are those of twistd.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred

from pop3svc import awaiting, files, lineendings, preparation
from pop3svc.accounts import hashing
from pop3svc.files import FileRegion
from pop3svc.lineendings import CRLFNormalizer, WireForm
from pop3svc.metrics import meter
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
from pop3svc.protocol.connection import POP3Connection
from pop3svc.protocol.framing import LineBuffer
from pop3svc.protocol.outlets import SocketOutlet
from pop3svc.protocol.sender import ReplySender
from pop3svc.providers.files import contents, counting, deletion, folders, lock
from pop3svc.providers.files.counting import SizeCounter
from pop3svc.providers.files.listing import Listing
from pop3svc.providers.files.lock import ExclusiveDirectory
from pop3svc.providers.files.sleeping import OpenWhileAsleep
from pop3svc.providers.files.snapshot import ListingCache
from pop3svc.providers.maildir import columns, names, scan
from pop3svc.providers.sql import readahead
from pop3svc.service import loop
from pop3svc.threadpool import BoundedThreadPool
from pop3svc.timing import SharedTimeout, TimeSlice

__all__ = ["SWITCHES", "Change", "Switch", "changed", "switchOf"]

# A change of one attribute: the object, the name, and the value that switches something off.
Change = tuple[Any, str, Any]
_MISSING = object()


class Switch(NamedTuple):
    """
    Switches an optimisation off.

    @ivar title: the title of the entry in docs/fast.rst.
    @ivar changes: a function that returns the changes.
    @ivar rows: the rows of the benchmark that show the optimisation; empty if C{bench/without.py}
        shows it in memory.
    @ivar server: the name of the server in these rows.
    """

    title: str
    changes: Callable[[], list[Change]]
    rows: tuple[int, ...] = ()
    server: str = "pop3svc"


def _everywhere(name: str, value: Any) -> list[Change]:
    """
    @return: changes that replace an attribute of C{awaiting} in all modules that have imported it.
    """
    before = getattr(awaiting, name)
    users = [each for key, each in sys.modules.items() if key.startswith("pop3svc.")]
    return [(each, name, value) for each in users if getattr(each, name, None) is before]


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


def _thenLater() -> list[Change]:
    def then(answer: Any, use: Callable[[Any], Any]) -> Any:
        async def work() -> Any:
            return await awaiting.settled(use(await awaiting.settled(answer)))

        return awaiting.startNow(work())

    return _everywhere("then", then)


def _classes() -> list[Change]:
    def isAwaitable(answer: object) -> bool:
        return isinstance(answer, Deferred)

    def then(answer: Any, use: Callable[[Any], Any]) -> Any:
        return answer.addCallback(use) if isinstance(answer, Deferred) else use(answer)

    return [*_everywhere("isAwaitable", isAwaitable), *_everywhere("then", then)]


def _timers() -> list[Change]:
    # A timer for each connection.
    def begin(self: Any, each: object) -> None:
        end(self, each)
        self._ends[each] = self._clock.callLater(self._seconds, passed, self, each)

    def end(self: Any, each: object) -> None:
        timer = self._ends.pop(each, None)
        if timer is not None and timer.active():
            timer.cancel()

    def passed(self: Any, each: object) -> None:
        del self._ends[each]
        left = 0.0
        if self._began is not None:
            left = self._began(each) + self._seconds - self._clock.seconds()
        if left > 0:
            self._ends[each] = self._clock.callLater(left, passed, self, each)
        else:
            self._passed(each)

    return [(SharedTimeout, "begin", begin), (SharedTimeout, "end", end)]


def _cleanCache() -> list[Change]:
    def isClean(self: Any, root: int, status: Any, folders: Any, times: Any) -> bool:
        return deletion.isClean(root, folders)

    return [(deletion.CleanCache, "isClean", isClean)]


def _raw() -> list[Change]:
    blocks = contents._blocks

    def asRaw(directory: Any, opened: Any, known: Any) -> Any:
        made = blocks(directory, opened, known)
        made.form = WireForm.RAW
        return made

    return [(contents, "_blocks", asRaw)]


class _ByReplace:
    """
    In place of C{DOT_LINE}: add the dots by C{replace}, in the only item that is returned.
    """

    def search(self, data: bytes) -> bool:
        return True

    def split(self, data: bytes) -> list[bytes]:
        return [data.replace(b"\n.", b"\n..")]


_BARE = re.compile(rb"(?<!\r)\n")


def _lineEnds() -> list[Change]:
    def feed(self: Any, data: bytes) -> bytes:
        if self._heldCR:
            data, self._heldCR = b"\r" + data, False
        if data.endswith(b"\r"):
            data, self._heldCR = data[:-1], True
        if not data:
            return b""
        self._atLineStart = data.endswith(b"\n")
        return _BARE.sub(b"\r\n", data)

    def countBareLF(data: bytes) -> int:
        return data.count(b"\n") - data.count(b"\r\n")

    return [(CRLFNormalizer, "feed", feed), (lineendings, "countBareLF", countBareLF)]


def _allChecks() -> list[Change]:
    measure = SizeCounter._measureAt

    def measureAt(self: Any, folders: Any, uniqueID: str, place: Any, before: int) -> Any:
        return measure(self, folders, uniqueID, place, -1)

    return [(SizeCounter, "_measureAt", measureAt)]


def _sizesOneByOne() -> list[Change]:
    def sizesIn(some: Any) -> list[int | None]:
        found = [names._SIZE.search(f"{each}/") for each in some]
        return [None if size is None else int(size[1]) for size in found]

    return [(scan, "sizesIn", sizesIn)]


def _cycles() -> list[Change]:
    made = POP3Connection.connectionMade

    def connectionMade(self: Any) -> None:
        self.itself = self
        made(self)

    return [(POP3Connection, "connectionMade", connectionMade)]


def _threads() -> list[Change]:
    pool = BoundedThreadPool("pop3svc-disk", threads=8, waiting=100_000)
    return [(files, "_disk", pool), (files, "_examining", nullcontext())]


def _order() -> list[Change]:
    return [(TimeSlice, "callLast", TimeSlice.callNext), (connection, "_FEW", 0)]


def _byLibrary(profile: str) -> Any:
    def prepare(text: str, *arguments: Any) -> str:
        prepared = preparation._enforced(profile, text, 1000)
        assert prepared is not None
        return prepared

    return prepare


SWITCHES: dict[str, Switch] = {
    "coroutines": Switch("Run a coroutine without a Deferred", _startNow),
    "then": Switch("Answer at once if all calls return at once", _thenLater),
    "attributes": Switch("Check for an attribute instead of a class", _classes),
    "timers": Switch("One timer for many time-outs", _timers),
    "timeouts": Switch(
        "Postpone a time limit",
        lambda: [(SharedTimeout, "slack", property(lambda self: 0.0, lambda self, slack: None))],
    ),
    "lines": Switch("Answer a single line without the buffer", _lines),
    "bodies": Switch(
        "Gather a short body without a coroutine",
        lambda: [(ReplySender, "gatherShort", lambda self, reply: False)],
    ),
    "firstlines": Switch(
        "Cache first lines",
        lambda: [(wire, "_statusLine", wire._statusLine.__wrapped__)],
    ),
    "outlets": Switch(
        "Write to the socket at once",
        lambda: [(outlets, "SocketOutlet", outlets.ProducerOutlet)],
    ),
    "ascii": Switch(
        "Prepare ASCII without precis-i18n",
        lambda: [
            (authentication, "prepareName", _byLibrary("UsernameCasePreserved")),
            (authentication, "preparePassword", _byLibrary("OpaqueString")),
        ],
    ),
    "logline": Switch("Make the text of a log line without Twisted's formatter", _informOf),
    "listings": Switch(
        "Share the listing",
        lambda: [(ListingCache, "get", lambda self, key, stamp: None)],
    ),
    "times": Switch(
        "Read the times of folders once",
        lambda: [(ExclusiveDirectory, "timesAtLock", lambda self: None)],
    ),
    "clean": Switch("Skip the check for interrupted deletions", _cleanCache),
    "sleeping": Switch(
        "Keep directories open while asleep",
        lambda: [(lock, "openWhileAsleep", OpenWhileAsleep(0))],
    ),
    "inotify": Switch(
        "Let the kernel report changes",
        lambda: [(Listing, "onSleep", Listing.clear)],
    ),
    "pagecache": Switch(
        "Local files in the reactor's thread",
        lambda: [(FileRegion, "readCached", lambda self, size: None)],
    ),
    "together": Switch(
        "Gather short replies",
        lambda: [(ReplySender, "isCrowded", property(lambda self: True))],
        (5,),
    ),
    "rounds": Switch(
        "Serve sockets that become ready meanwhile", lambda: [(loop, "_ROUNDS", 1)], (1,)
    ),
    "cycles": Switch("Free memory without the garbage collector", _cycles, (1,)),
    "samples": Switch(
        "Measure a sample of the commands", lambda: [(meter, "_SAMPLED", 1)], (1, 4), "metrics"
    ),
    "sendfile": Switch(
        "sendfile", lambda: [(SocketOutlet, "sendable", lambda self, region: None)], (7,)
    ),
    "unchanged": Switch("Remember which messages need no change", _raw, (7,)),
    "stuffing": Switch("Stuff dots in one scan", lambda: [(wire, "DOT_LINE", _ByReplace())], (9,)),
    "lineends": Switch("Convert line ends by replace", _lineEnds, (8,)),
    "checks": Switch("Shorten the checks at a first login", _allChecks, (12,)),
    "columns": Switch("List by columns", lambda: [(columns, "LEAST", 10**9)], (13,)),
    "names": Switch("Find the sizes in names by one search", _sizesOneByOne, (13,)),
    "stat": Switch(
        "Examine the files of small Maildirs only", lambda: [(folders, "_STATTED", 1000)], (14,)
    ),
    "readahead": Switch(
        "Read ahead from a database", lambda: [(readahead, "_MESSAGES", 0)], (6,), "sqlite"
    ),
    "lookups": Switch(
        "Look up the sizes of large mailboxes in another thread",
        lambda: [(counting, "_AT_ONCE", 10**9)],
        (17,),
    ),
    "slices": Switch("Fair time slices", lambda: [(TimeSlice, "SLICE", float("inf"))], (17,)),
    "order": Switch("Begin logins last", _order, (17,)),
    "threads": Switch("Few threads", _threads, (14, 17)),
    "niceness": Switch("Let hashes yield", lambda: [(hashing._workers, "_niceness", 0)], (17,)),
}


def switchOf(name: str) -> Switch:
    """
    @raise SystemExit: there is no optimisation of this name.
    """
    if name not in SWITCHES:
        raise SystemExit(f"There is no optimisation {name!r}; docs/fast.rst lists the names.")
    return SWITCHES[name]


@contextmanager
def changed(changes: list[Change]) -> Iterator[None]:
    """
    Apply changes, and take them back.
    """
    before = [(each, name, getattr(each, name, _MISSING)) for each, name, _ in changes]
    for each, name, value in changes:
        setattr(each, name, value)
    try:
        yield
    finally:
        for each, name, value in before:
            if value is _MISSING:
                delattr(each, name)
            else:
                setattr(each, name, value)


def main() -> None:
    """
    Run twistd without an optimisation.
    """
    from twisted.scripts.twistd import run

    for each, attribute, value in switchOf("".join(sys.argv[1:2])).changes():
        setattr(each, attribute, value)
    sys.argv = ["twistd", *sys.argv[2:]]
    run()


if __name__ == "__main__":
    main()
