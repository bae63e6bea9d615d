"""
The log as JSON lines, and as records of the journal of systemd.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from pop3svc.logrecords import JournalLog, isJournal, journalRecord, jsonLine
from pop3svc.logs import FileSink, Log, TextForm
from pop3svc.protocol.record import SessionRecord
from pop3svc.protocol.session import ConnectionInfo

NOW = datetime(2026, 11, 25, 23, 44, 17, 250_000, UTC).timestamp()


def event(**fields: Any) -> dict[str, Any]:
    return {
        "log_namespace": "pop3svc",
        "log_level": LogLevel.info,
        "log_time": NOW,
        "log_logger": object(),
        **fields,
    }


def record(**fields: Any) -> Any:
    [line] = jsonLine(event(**fields))
    assert line.endswith(b"}\n") and line.count(b"\n") == 1
    assert line[:-1].decode("ascii").isprintable()
    return json.loads(line, parse_constant=lambda name: pytest.fail(name))


def closeEvent() -> dict[str, Any]:
    events: list[Any] = []
    made = SessionRecord()
    made.user, made.loginMethod = "alice", "PASS"
    info = ConnectionInfo(7, "192.0.2.7", True)

    def keep(each: Any) -> None:
        if each.get("pop3Event") == "close":
            events.append(dict(each))

    from twisted.logger import globalLogPublisher

    globalLogPublisher.addObserver(keep)
    try:
        made.tell(info, "TLSv1.3", 2.5, "quit")
    finally:
        globalLogPublisher.removeObserver(keep)
    [found] = events
    found["log_time"] = NOW
    return dict(found)


def test_session() -> None:
    """
    The event C{close} of a session is one line with all fields of the event.
    """
    [line] = jsonLine(closeEvent())
    assert json.loads(line) == {
        "time": "2026-11-25T23:44:17.250Z",
        "level": "info",
        "namespace": "pop3svc",
        "event": "close",
        "text": "alice from 192.0.2.7 (TLSv1.3, PASS): 0 messages of 0 octets sent, 0 deleted, "
        "2.5 s; quit",
        "connectionID": 7,
        "user": "alice",
        "clientIP": "192.0.2.7",
        "isSecure": True,
        "tls": "TLSv1.3",
        "loginMethod": "PASS",
        "messagesSent": 0,
        "messageOctets": 0,
        "octetsSent": 0,
        "messagesDeleted": 0,
        "seconds": 2.5,
        "reason": "quit",
    }


def test_others() -> None:
    """
    The line of an event that another package has logged has no fields, because the names of these
    fields mean nothing here.  An event of the service needs no text.
    """
    assert record(log_format="x is {x}", x=5, worker=2) == {
        "time": "2026-11-25T23:44:17.250Z",
        "level": "info",
        "namespace": "pop3svc",
        "worker": 2,
        "text": "x is 5",
    }
    assert record(pop3Event="command", verb="STAT", odd=object(), seconds=float("nan")) == {
        "time": "2026-11-25T23:44:17.250Z",
        "level": "info",
        "namespace": "pop3svc",
        "event": "command",
        "verb": "STAT",
        "seconds": "nan",
    }
    assert jsonLine(event()) == []
    # A field of the event does not replace the level and the time of the line.
    assert record(pop3Event="x", level="critical", time=1)["level"] == "info"


def test_bounds() -> None:
    found = record(log_format="{x}", x="y" * 100_000, pop3Event="z", user="u" * 5000)
    assert len(found["text"]) < 8100
    assert found["user"] == "u" * 1000 + "..."


def test_traceback() -> None:
    try:
        raise OSError(2, "No such file", "a\nb\x1b[31m\udcff")
    except OSError:
        failure = Failure()
    found = record(log_format="it failed", log_failure=failure)
    assert found["text"] == "it failed"
    assert found["traceback"].startswith("Traceback (most recent call last):\n")
    assert "OSError" in found["traceback"]
    assert "traceback" in record(log_failure=failure)


@given(st.text(st.characters()) | st.text('\x00\x1b\x7f\x9b\u202e\u2028\udc80"\\\r\n'))
def test_anyText(text: str) -> None:
    """
    Each line is printable ASCII and strict JSON, without surrogates.
    """
    found = record(log_format="{text}", text=f"a{text}", pop3Event="login", user=text)
    json.dumps(found, ensure_ascii=False).encode("utf-8")
    if text.isascii() and len(text) < 100:
        assert found["user"] == text
        assert found["text"] == f"a{text}".rstrip()


def test_droppedLines() -> None:
    """
    The line about dropped lines has the same form as the other lines.
    """

    class Full:
        hasTime = False
        together = 65536
        isFull = True
        written = b""

        def write(self, data: bytes) -> int:
            if self.isFull:
                raise BlockingIOError
            self.written += data
            return len(data)

        def reopen(self) -> None:
            pass

    sink = Full()
    log = Log(sink, form=jsonLine)
    for _ in range(200):
        log(event(log_format="{x}", x="y" * 7900))
    sink.isFull = False
    log(event(log_format="last"))
    texts = [json.loads(each)["text"] for each in sink.written.splitlines()]
    assert texts[-1] == "last"
    assert texts[-2].startswith("dropped ") and texts[-2].endswith(" could not be written")


# --- the journal ------------------------------------------------------------------------


def parsed(data: bytes) -> dict[str, str]:
    """
    Read a record as journald does.
    """
    found = {}
    while data:
        line, _, data = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (length,) = struct.unpack("<Q", data[:8])
            value, data = data[8 : 8 + length], data[8 + length :]
            assert data[:1] == b"\n"
            data = data[1:]
        assert name.decode().replace("_", "").isalnum() and name.isupper()
        assert name.decode() not in found
        found[name.decode()] = value.decode()
    return found


def test_journalRecord() -> None:
    assert parsed(journalRecord(closeEvent() | {"worker": 3})) == {
        "MESSAGE": "[pop3svc#info] alice from 192.0.2.7 (TLSv1.3, PASS): 0 messages of 0 octets "
        "sent, 0 deleted, 2.5 s; quit",
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "pop3svc",
        "SYSLOG_FACILITY": "2",
        "POP3SVC_EVENT": "close",
        "POP3SVC_WORKER": "3",
        "POP3SVC_CONNECTION_ID": "7",
        "POP3SVC_USER": "alice",
        "POP3SVC_CLIENT_IP": "192.0.2.7",
        "POP3SVC_IS_SECURE": "1",
        "POP3SVC_TLS": "TLSv1.3",
        "POP3SVC_LOGIN_METHOD": "PASS",
        "POP3SVC_MESSAGES_SENT": "0",
        "POP3SVC_MESSAGE_OCTETS": "0",
        "POP3SVC_OCTETS_SENT": "0",
        "POP3SVC_MESSAGES_DELETED": "0",
        "POP3SVC_SECONDS": "2.5",
        "POP3SVC_REASON": "quit",
    }
    assert journalRecord(event()) == b""
    assert parsed(journalRecord(event(pop3Event="command", verb="X")))["MESSAGE"]


@given(st.text())
def test_anyTextInTheJournal(text: str) -> None:
    """
    No text in an event makes a further field of the record.
    """
    found = parsed(journalRecord(event(log_format="{x}", x=f"a{text}", pop3Event="z", user=text)))
    assert set(found) <= {
        *("MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "SYSLOG_FACILITY"),
        *("POP3SVC_EVENT", "POP3SVC_USER", "POP3SVC_X"),
    }
    assert found["POP3SVC_USER"] == text


@pytest.mark.parametrize(
    ("level", "priority"),
    [("debug", 7), ("info", 6), ("warn", 4), ("error", 3), ("critical", 2)],
)
def test_priorities(level: str, priority: int) -> None:
    made = event(log_format="x", log_level=LogLevel.lookupByName(level))
    assert parsed(journalRecord(made))["PRIORITY"] == str(priority)
    made["log_failure"] = Failure(ValueError("y"))
    lines = TextForm(hasTime=False, hasPriority=True)(made)
    assert len(lines) > 1
    assert all(each.startswith(b"<%d>" % priority) for each in lines)
    assert parsed(journalRecord(made))["POP3SVC_TRACEBACK"].endswith("ValueError: y")


@pytest.fixture
def bound(tmp_path: Path) -> Iterator[Callable[[], socket.socket]]:
    """
    A function that makes and binds the socket of a journal.
    """
    made: list[socket.socket] = []

    def bind() -> socket.socket:
        path = tmp_path / "journal"
        path.unlink(missing_ok=True)
        journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        journal.bind(str(path))
        journal.settimeout(0)
        made.append(journal)
        return journal

    yield bind
    for each in made:
        each.close()


def test_journal(tmp_path: Path, bound: Callable[[], socket.socket]) -> None:
    """
    While the journal is missing or does not read, events go to the other log.  No event is lost.
    """
    log = JournalLog(Log(FileSink(str(tmp_path / "log"))), str(tmp_path / "journal"))

    def others() -> list[str]:
        return [each.partition("] ")[2] for each in (tmp_path / "log").read_text().splitlines()]

    log(event(log_format="one"))
    assert others() == ["one"]
    for _ in range(2):
        journal = bound()
        log(event(log_format="two"))
        assert parsed(journal.recv(65536))["MESSAGE"] == "[pop3svc#info] two"
        journal.close()
    log(event(log_format="three"))
    assert others() == ["one", "three"]
    journal = bound()
    for number in range(2000):
        log(event(log_format="{x}", x=number))
    found = []
    while True:
        try:
            found.append(parsed(journal.recv(65536))["MESSAGE"].partition("] ")[2])
        except BlockingIOError:
            break
    assert sorted(found + others()[2:], key=int) == [str(number) for number in range(2000)]
    # A full socket does not end the connection.
    log(event(log_format="four"))
    assert parsed(journal.recv(65536))["MESSAGE"].endswith("four")
    (tmp_path / "log").rename(tmp_path / "old")
    log.reopen()
    assert (tmp_path / "log").exists()
    log(event(log_format="five"))
    assert parsed(journal.recv(65536))["MESSAGE"].endswith("five")
    log(event())
    with pytest.raises(BlockingIOError):
        journal.recv(65536)


def test_largestRecord(tmp_path: Path, bound: Callable[[], socket.socket]) -> None:
    """
    A record with very long values is bounded, so that it fits into one datagram.
    """
    journal = bound()
    log = JournalLog(Log(FileSink(str(tmp_path / "log"))), str(tmp_path / "journal"))
    fields = {f"field{each}": "\u3042" * 5000 for each in range(10)}
    failure = Failure(ValueError("\u3042" * 100_000))
    log(event(log_format="{x}", x="\u3042" * 90_000, log_failure=failure, pop3Event="x", **fields))
    assert parsed(journal.recv(1_000_000))["POP3SVC_TRACEBACK"]
    assert (tmp_path / "log").read_text() == ""


def test_isJournal() -> None:
    ours, other = socket.socketpair()
    with ours, other:
        number = ours.fileno()
        found = os.fstat(number)
        name = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        assert isJournal(number, name)
        assert not isJournal(other.fileno(), name)
        assert not isJournal(number, {})
        assert not isJournal(99_999, name)


def test_legacy() -> None:
    """
    An event without a level is written with the level info.
    """
    events: list[Any] = []
    Logger(namespace="x", observer=events.append).info("y")
    del events[0]["log_level"]
    assert json.loads(jsonLine(events[0])[0])["level"] == "info"
    assert parsed(journalRecord(events[0]))["PRIORITY"] == "6"
