"""
The log: no text of an event can begin a line of its own, and the service never waits for a reader
of the log.
"""

from __future__ import annotations

import os
import re
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import Logger, LogLevel, eventAsJSON, eventFromJSON
from twisted.python.failure import Failure

from pop3svc.logs import FileSink, Log, StreamSink, SyslogSink, escaped, eventText
from tests.support.running import environment


def told(tell: Callable[[Logger], object]) -> list[str]:
    events: list[Any] = []
    tell(Logger(namespace="pop3svc", observer=events.append))
    lines: list[str] = []
    for event in events:
        lines += eventText(event)
    return lines


FORGED = "2026-11-25T23:44:17+0000 [pop3svc#info] failed login from 192.0.2.66: alice"
# Characters that begin a new line in some program.
ENDS = ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029", "\0"]


@pytest.mark.smoke
@pytest.mark.parametrize("end", ENDS)
def test_oneLine(end: str) -> None:
    """
    Foreign text in an event never begins a new line.
    """
    evil = f"1.x{end}{FORGED}"

    class Named:
        def __str__(self) -> str:
            return evil

        name = evil

    def fails() -> None:
        try:
            raise OSError(2, "No such file or directory", evil)
        except OSError:
            Logger.failure(Logger(namespace=evil, observer=events.append), "{path}", path=evil)

    events: list[Any] = []
    fails()
    ways: list[list[str]] = [
        told(lambda log: log.info("cannot read {path}", path=evil)),
        told(lambda log: log.info("cannot read {each.name}", each=Named())),
        told(lambda log: log.warn("cannot read {each}", each=Named())),
        told(lambda log: log.error(f"cannot read {evil}")),
        told(lambda log: log.info("{line}", line=evil, log_system=evil)),
        told(lambda log: log.failure("{why}", Failure(ValueError(evil)), why=evil)),
        eventText(events[0]),
    ]
    # Events of workers arrive as JSON.
    ways.append(eventText(eventFromJSON(eventAsJSON(events[0]))))
    for lines in ways:
        for number, line in enumerate(lines):
            assert line.isprintable() or line[1:].isprintable()
            assert line.startswith("\t| " if number else "[")
            assert not line.startswith(FORGED)
        assert len("\n".join(lines).splitlines()) == len(lines)


@given(st.text(st.characters(exclude_categories=[]), max_size=40))
def test_escaped(text: str) -> None:
    """
    Escaped text is printable, and can be encoded in UTF-8.
    """
    shown = escaped(text)
    assert shown.isprintable()
    shown.encode("utf-8")
    assert (shown == text) == text.isprintable()


def test_octets() -> None:
    """
    The octets of a file name that is not UTF-8 become escape sequences.
    """
    name = os.fsdecode(b"caf\xe9\n\x1b[31m")
    assert escaped(name) == "caf\\xe9\\n\\x1b[31m"
    assert escaped("caf\xe9 \u202e") == "caf\xe9 \\u202e"
    assert told(lambda log: log.info("{name}", name=name)) == [
        "[pop3svc#info] caf\\xe9\\n\\x1b[31m"
    ]


def test_longTextIsCut() -> None:
    (line,) = told(lambda log: log.info("{name}", name="x" * 10_000_000))
    assert len(line) < 9000 and line.endswith("(9992000 more characters)")


def test_traceback() -> None:
    def tell(log: Logger) -> None:
        try:
            raise ValueError("one\ntwo")
        except ValueError:
            log.failure("it failed")

    first, *lines = told(tell)
    assert first == "[pop3svc#critical] it failed"
    assert lines[0] == "\t| Traceback (most recent call last):"
    assert all(each.startswith("\t| ") for each in lines)
    assert lines[-1] == "\t| two"


def test_eventsWithoutText() -> None:
    assert told(lambda log: log.debug(pop3Event="command", seconds=1)) == []
    assert eventText({"log_format": "x"}) == ["[-#-] x"]


class Broken:
    """
    A failure whose traceback cannot be formatted.
    """

    def getTraceback(self) -> str:
        raise RuntimeError


def test_tracebackThatCannotBeFormatted() -> None:
    lines = eventText({"log_format": "x", "log_failure": Broken(), "log_level": LogLevel.error})
    assert lines == ["[-#error] x", "\t| (cannot format the traceback: RuntimeError)"]


# --- writing ------------------------------------------------------------------


class Reactor(Clock):
    def callFromThread(self, call: Callable[..., object], *arguments: object) -> None:
        call(*arguments)


def event(text: str) -> dict[str, Any]:
    return {
        "log_format": "{text}",
        "text": text,
        "log_time": 1.5,
        "log_namespace": "pop3svc",
        "log_level": LogLevel.info,
    }


@pytest.fixture(params=["pipe", "socket", "shared pipe"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """
    A sink for a log, and a function that reads what the sink has written.
    """
    ours: Any
    if request.param == "socket":
        ours, theirs = socket.socketpair()
        out, read = theirs.fileno(), ours.recv
        ours.settimeout(0)
    else:
        ours, theirs = os.pipe()
        os.set_blocking(ours, False)
        out, read = theirs, lambda size: os.read(ours, size)
        if request.param == "shared pipe":
            openTruly = os.open
            with monkeypatch.context() as patch:
                patch.setattr(os, "open", lambda path, *more: openTruly("/nowhere" + path, *more))
                sink = StreamSink(out)
    if request.param != "shared pipe":
        sink = StreamSink(out)

    def everything() -> bytes:
        found = b""
        try:
            while block := read(1_000_000):
                found += block
        except BlockingIOError:
            pass
        return found

    yield sink, everything
    for each in (ours, theirs):
        if isinstance(each, int):
            os.close(each)
        else:
            each.close()


def test_bufferIsBounded(reader: Any) -> None:
    """
    If nobody reads the log, lines are buffered up to a bound.  Further lines are dropped and
    counted.  Every line is complete.
    """
    sink, everything = reader
    reactor = Reactor()
    log = Log(sink, reactor)
    count = 4000
    for number in range(count):
        log(event(f"{number} " + "x" * 1000))
    assert log._held <= Log.BOUND
    found = b""
    while block := everything():
        found += block
        reactor.advance(Log.AGAIN)
    assert not reactor.getDelayedCalls()
    log(event("again"))
    *lines, last, again = (found + everything()).decode().splitlines()
    assert 1000 < len(lines) < count
    for number, line in enumerate(lines):
        assert re.fullmatch(rf"1970-01-01T\S+ \[pop3svc#info\] {number} x{{1000}}", line)
    dropped = count - len(lines)
    assert last.endswith(f"[pop3svc#error] dropped {dropped} lines that could not be written")
    assert again.endswith("again")


def test_theStreamIsNotChanged() -> None:
    """
    Standard output stays blocking for other processes that share it.
    """
    ours, theirs = os.pipe()
    StreamSink(theirs)
    assert os.get_blocking(theirs)
    os.close(ours)
    os.close(theirs)


def test_fileIsRotated(tmp_path: Path) -> None:
    """
    After a rename and reopening, or a copy and truncation, each line exists once, and the file has
    no hole.
    """
    path = tmp_path / "log"
    log = Log(FileSink(str(path)))
    assert oct(path.stat().st_mode & 0o777) == "0o640"
    log(event("one"))
    path.rename(tmp_path / "log.1")
    log(event("two"))
    path.touch()
    log.reopen()
    log(event("three"))
    (tmp_path / "log.2").write_bytes(path.read_bytes())
    os.truncate(path, 0)
    log(event("four"))
    found = {
        each.name: re.findall(r"^1970-01-01T.* (\w+)\n", each.read_text(), re.MULTILINE)
        for each in tmp_path.iterdir()
    }
    assert "\0" not in path.read_text()
    assert found == {"log.1": ["one", "two"], "log.2": ["three"], "log": ["four"]}


def test_fileGone(tmp_path: Path) -> None:
    """
    If the file cannot be reopened, lines go to the file that is still open.
    """
    path = tmp_path / "place" / "log"
    path.parent.mkdir()
    log = Log(FileSink(str(path)))
    path.parent.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError):
        log.reopen()
    log(event("one"))
    assert "one" in (tmp_path / "elsewhere" / "log").read_text()


def test_fifo(tmp_path: Path) -> None:
    """
    If a FIFO has taken the place of the file, reopening fails at once.
    """
    path = tmp_path / "log"
    log = Log(FileSink(str(path)))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError):
        log.reopen()
    log(event("one"))


class Disk:
    """
    Stands in for the log file.

    @ivar room: the number of octets that still fit on the disk.
    @ivar writes: the octets of each write.
    """

    hasTime = False

    def __init__(self, room: int = 1_000_000_000, together: int = 65536) -> None:
        self.room = room
        self.together = together
        self.writes: list[bytes] = []
        self.onWrite: Callable[[], object] = lambda: None

    @property
    def written(self) -> bytes:
        return b"".join(self.writes)

    def write(self, data: bytes) -> int:
        self.onWrite()
        if not self.room:
            raise OSError(28, "No space left on device")
        took = data[: self.room]
        self.room -= len(took)
        self.writes.append(took)
        return len(took)

    def reopen(self) -> None:
        self.writes.append(b"(opened)")


def test_fullDisk() -> None:
    """
    Lines that did not fit are written when there is space again.
    """

    disk, reactor = Disk(room=0), Reactor()
    log = Log(disk, reactor)
    log(event("one"))
    disk.room = 10
    log(event("two"))
    disk.room = 1000
    reactor.advance(Log.AGAIN)
    assert disk.written == b"[pop3svc#info] one\n[pop3svc#info] two\n"


def test_threads(tmp_path: Path) -> None:
    """
    Lines from all threads are complete.
    """
    log = Log(FileSink(str(tmp_path / "log")))
    threads = [
        threading.Thread(target=lambda: [log(event("x" * 50)) for _ in range(200)])
        for _ in range(4)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 800 and len(set(lines)) == 1


def test_syslog(tmp_path: Path) -> None:
    """
    Each line is a datagram.  syslogd may start after the log was made, and may hang.
    """
    path = str(tmp_path / "log")
    log = Log(SyslogSink("pop3svc", path))
    log(event("before"))
    for _ in range(2):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as system:
            system.bind(path)
            log(event("one"))
            datagrams = []
            system.settimeout(0)
            try:
                while True:
                    datagrams.append(system.recv(10_000).decode())
            except BlockingIOError:
                pass
            assert re.fullmatch(
                rf"<22>\w{{3}} [ 0-9]\d \d\d:\d\d:\d\d pop3svc\[{os.getpid()}\]: "
                r"\[pop3svc#info\] one",
                datagrams[-1],
            )
            for _ in range(2000):
                log(event("x" * 9000))
            assert log._held <= Log.BOUND
        os.unlink(path)
        log = Log(SyslogSink("pop3svc", path))


def test_syslogIsRestarted(tmp_path: Path) -> None:
    """
    After a restart of syslogd the log connects to the new socket, and loses no line.
    """
    path = str(tmp_path / "log")
    log = Log(SyslogSink("pop3svc", path))
    for text in ("one", "two"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as system:
            system.bind(path)
            system.settimeout(5)
            log(event(text))
            assert system.recv(10_000).decode().endswith(f" {text}")
        os.unlink(path)
    log(event("three"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as system:
        system.bind(path)
        system.settimeout(5)
        log(event("four"))
        assert [system.recv(10_000).decode()[-5:] for _ in range(2)] == ["three", " four"]


# --- lines that share a write -------------------------------------------------


class Gathered:
    """
    A log whose lines wait for 50 milliseconds.
    """

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.reactor = Reactor()
        self.log = Log(disk, self.reactor)
        self.log.gather(0.05)

    def say(self, *texts: str, **more: Any) -> None:
        for text in texts:
            self.log(event(text) | more)

    @property
    def texts(self) -> list[list[str]]:
        """
        The texts of each write.
        """
        return [re.findall(r"#\w+\] (.*)\n", each.decode()) for each in self.disk.writes]


@pytest.fixture
def gathered() -> Iterator[Gathered]:
    """
    A log on a disk with room.
    """
    made = Gathered(Disk())
    yield made
    made.log.writeAtOnce()


def test_linesShareOneWrite(gathered: Gathered) -> None:
    """
    All lines of 50 milliseconds are in one write, in order, and none waits longer.
    """
    for text in ("one", "two", "three", "four"):
        gathered.say(text)
        gathered.reactor.advance(0.02)
    assert gathered.texts == [["one", "two", "three"]]
    assert len(gathered.reactor.getDelayedCalls()) == 1
    gathered.reactor.advance(0.05)
    assert gathered.texts == [["one", "two", "three"], ["four"]]
    assert not gathered.reactor.getDelayedCalls()


def test_errorsAreWrittenAtOnce(gathered: Gathered) -> None:
    """
    The lines before an error are written before it.
    """
    gathered.say("one")
    gathered.say("two", log_level=LogLevel.warn)
    assert gathered.texts == []
    gathered.say("three", log_level=LogLevel.error)
    assert gathered.texts == [["one", "two", "three"]]
    gathered.say("four", log_level=LogLevel.critical)
    assert gathered.texts[1:] == [["four"]]


def test_linesThatWaitAreBounded(gathered: Gathered) -> None:
    for _ in range(100):
        gathered.say("x" * 1000)
        assert gathered.log._held < Log.GATHERED
    assert [len(each) for each in gathered.texts] == [33, 33, 33]
    # A traceback of many long lines.
    gathered.say("x" * 7000, log_failure=Failure(ValueError("\n".join(["y" * 7000] * 10))))
    assert gathered.log._held < Log.GATHERED


def test_otherThreadsWriteAtOnce(gathered: Gathered) -> None:
    """
    The lines of other threads do not wait, because only the reactor's thread may start timers.
    """
    gathered.say("one")
    thread = threading.Thread(target=gathered.say, args=("two",))
    thread.start()
    thread.join()
    assert gathered.texts == [["one", "two"]]


def test_reopenWritesBefore(gathered: Gathered) -> None:
    """
    The lines that wait go to the file that was renamed.
    """
    gathered.say("one")
    gathered.log.reopen()
    gathered.say("two")
    gathered.reactor.advance(0.05)
    assert gathered.disk.written == b"[pop3svc#info] one\n(opened)[pop3svc#info] two\n"


def test_theEnd(gathered: Gathered) -> None:
    """
    After L{Log.writeAtOnce}, which is called when the reactor stops, no line waits.
    """
    gathered.say("one")
    gathered.log.writeAtOnce()
    gathered.say("two")
    assert gathered.texts == [["one"], ["two"]]


def test_processEndsWithoutItsReactor(tmp_path: Path) -> None:
    """
    A process that ends by an exception writes the lines that wait.
    """
    program = (
        "import sys; from pop3svc.logs import *; from twisted.internet.task import Clock\n"
        "log = Log(FileSink(sys.argv[1]), Clock()); log.gather(3600)\n"
        "log({'log_format': 'one', 'log_level': __import__('twisted.logger').logger.LogLevel.info})\n"
        "1 / 0\n"
    )
    path = tmp_path / "log"
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        env=environment(tmp_path),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1 and b"ZeroDivisionError" in done.stderr
    assert path.read_text().endswith("] one\n")


def test_eventWhileWriting(gathered: Gathered) -> None:
    """
    An event that arises while lines are written, as from Python's garbage collector, is
    written once, after them.
    """
    events = ["two", "three"]
    failed = LogLevel.error
    gathered.disk.onWrite = lambda: (
        gathered.say(events.pop(0), log_level=failed) if events else None
    )
    gathered.say("one", log_level=LogLevel.error)
    assert gathered.texts == [["one"], ["two"], ["three"]]


def test_pipesGetWholeLines() -> None:
    """
    No write to a pipe is larger than the kernel writes in one piece, and none ends within a line.
    """
    ours, theirs = os.pipe()
    assert StreamSink(theirs).together == select.PIPE_BUF
    os.close(ours)
    os.close(theirs)
    gathered = Gathered(Disk(together=4096))
    gathered.say(*("x" * 1000 for _ in range(10)))
    gathered.reactor.advance(0.05)
    assert [len(each) for each in gathered.texts] == [4, 4, 2]
    assert all(each.endswith(b"\n") for each in gathered.disk.writes)


def test_datagramsHaveOneLine() -> None:
    """
    Each line to syslog needs a datagram of its own, so the lines do not wait.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        assert StreamSink(theirs.fileno()).together == SyslogSink("pop3svc").together == 0
    gathered = Gathered(Disk(together=0))
    gathered.say("one", "two")
    assert gathered.texts == [["one"], ["two"]]


def test_fullDiskWhileLinesWait(gathered: Gathered) -> None:
    """
    The log keeps a bounded number of octets, and writes them when there is room again.
    """
    gathered.disk.room = 30
    gathered.say("one", "two", "three")
    gathered.reactor.advance(0.05)
    gathered.say(*("x" * 1000 for _ in range(2000)))
    assert gathered.log._held <= Log.BOUND
    gathered.disk.room = 1_000_000_000
    gathered.reactor.advance(Log.AGAIN)
    lines = gathered.disk.written.decode().splitlines()
    assert [each.partition("] ")[2] for each in lines[:3]] == ["one", "two", "three"]
    (dropped,) = re.findall(r"dropped (\d+) lines", lines[-1])
    assert len(lines) - 4 + int(dropped) == 2000
    gathered.say("last")
    gathered.reactor.advance(0.05)
    assert gathered.texts[-1] == ["last"]
