"""
Write log events as JSON lines, or as records of the journal of systemd.
"""

from __future__ import annotations

import json
import math
import os
import re
import socket
import stat
import struct
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from threading import Lock
from typing import Any

from twisted.logger import ILogObserver, LogEvent
from zope.interface import implementer

from pop3svc.logs import Log, cut, eventText, priorityOf, tracebackOf
from pop3svc.summaries import textOf

__all__ = ["JOURNAL", "JournalLog", "isJournal", "journalRecord", "jsonLine"]

# The socket of the journal of systemd.
JOURNAL = "/run/systemd/journal/socket"
# The most characters of a field and of a traceback.  A longer value comes from a bug or from an
# attempt to fill the disk.  A record must also fit into a datagram of a UNIX socket, which has at
# most some 200,000 octets.
_LONGEST_FIELD, _LONGEST_TRACEBACK = 1000, 40_000
# Fields of the service's events that L{_fieldsOf} leaves out, because their values are added to the
# record separately.
_TOLD = frozenset(["pop3Event", "summary", "worker"])
# Surrogates, which stand for octets that are not UTF-8 (the error handler "surrogateescape").
_SURROGATES = re.compile("[\ud800-\udfff]")
_UPPER = re.compile("(?<=[a-z0-9])(?=[A-Z])")


def _clean(text: str) -> str:
    """
    @return: the text with escape sequences instead of surrogates.  Surrogates are not characters,
        and many programs refuse them.
    """
    if text.isascii():
        return text
    return _SURROGATES.sub(lambda found: f"\\x{ord(found[0]) & 0xFF:02x}", text)


def _bounded(text: str, longest: int = _LONGEST_FIELD) -> str:
    return _clean(text if len(text) <= longest else f"{text[:longest]}...")


def _fieldsOf(event: LogEvent) -> Iterator[tuple[str, Any]]:
    """
    @return: names and values of the fields of an event that the service itself has logged (see
        docs/events).  Only texts, numbers, booleans and L{None} are returned.
    """
    if "pop3Event" not in event:
        return
    for key, value in event.items():
        if key.startswith("log_") or key in _TOLD:
            continue
        if isinstance(value, str):
            yield key, _bounded(value)
        elif isinstance(value, float) and not math.isfinite(value):
            # JSON has no infinity and no NaN.
            yield key, str(value)
        elif value is None or isinstance(value, int | float):
            yield key, value


def _timeOf(event: LogEvent) -> str:
    """
    @return: the time of an event in UTC (RFC 3339).
    """
    when = datetime.fromtimestamp(event.get("log_time") or time.time(), UTC)
    return f"{when.replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"


def jsonLine(event: LogEvent) -> list[bytes]:
    """
    Make a JSON object of an event, in ASCII.  Its keys are C{time}, C{level}, C{namespace},
    C{event}, C{worker} and C{text} in this order, then the result of L{_fieldsOf}, then
    C{traceback}.  If an event has no value for a key, the key is missing.  A field of the event may
    also have the value C{null}.

    @return: a list with the line of the event; an empty list if the event has no text, no name and
        no traceback.
    """
    text = textOf(event)
    failure = event.get("log_failure")
    if not text and failure is None and "pop3Event" not in event:
        return []
    record: dict[str, Any] = {
        "time": _timeOf(event),
        "level": getattr(event.get("log_level"), "name", "info"),
        "namespace": _bounded(str(event.get("log_namespace", "-"))),
    }
    if "pop3Event" in event:
        record["event"] = _bounded(str(event["pop3Event"]))
    if "worker" in event:
        record["worker"] = event["worker"]
    if text:
        record["text"] = _clean(cut(text.rstrip()))
    for key, value in _fieldsOf(event):
        record.setdefault(key, value)
    if failure is not None:
        record["traceback"] = _bounded(tracebackOf(failure), _LONGEST_TRACEBACK)
    return [json.dumps(record, default=str).encode("ascii") + b"\n"]


# --- the journal ----------------------------------------------------------------------


def isJournal(descriptor: int, environment: Mapping[str, str] = os.environ) -> bool:
    """
    @return: whether a descriptor is the connection to the journal that systemd has opened for this
        process (JOURNAL_STREAM in systemd.exec(5)).
    """
    device, _, inode = environment.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return stat.S_ISSOCK(found.st_mode) and (device, inode) == (
        str(found.st_dev),
        str(found.st_ino),
    )


def _entry(name: str, value: str) -> bytes:
    """
    @return: a field in the form that the native protocol of the journal requires.  If the value
        contains a line end, the length comes before the value.
    """
    data = value.encode("utf-8", "backslashreplace")
    if b"\n" in data:
        return name.encode("ascii") + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
    return name.encode("ascii") + b"=" + data + b"\n"


def _nameOf(key: str) -> str:
    """
    @return: the name of a field in the journal, such as C{POP3SVC_CLIENT_IP} for C{clientIP}.
    """
    name = re.sub("[^A-Z0-9_]", "_", _UPPER.sub("_", key).upper())
    return f"POP3SVC_{name}"[:64]


def journalRecord(event: LogEvent) -> bytes:
    """
    Make a record of the journal's native protocol.  C{MESSAGE} is the first line of the text
    format, but without the time.  A filter for the text format therefore also matches C{MESSAGE}.

    @return: the datagram; empty if the event has nothing to write.
    """
    lines = eventText(event)
    fields = list(_fieldsOf(event))
    if not lines and not fields:
        return b""
    failure = event.get("log_failure")
    name = event.get("pop3Event")
    parts = [
        _entry("MESSAGE", lines[0] if lines else f"[pop3svc] {name}"),
        _entry("PRIORITY", str(priorityOf(event))),
        _entry("SYSLOG_IDENTIFIER", "pop3svc"),
        _entry("SYSLOG_FACILITY", "2"),
    ]
    if name is not None:
        parts.append(_entry("POP3SVC_EVENT", _bounded(str(name))))
    if "worker" in event:
        parts.append(_entry("POP3SVC_WORKER", str(event["worker"])))
    parts += [
        _entry(_nameOf(key), str(int(value)) if isinstance(value, bool) else str(value))
        for key, value in fields
        if value is not None
    ]
    if failure is not None:
        traceback = _bounded(tracebackOf(failure), _LONGEST_TRACEBACK)
        parts.append(_entry("POP3SVC_TRACEBACK", traceback))
    return b"".join(parts)


@implementer(ILogObserver)
class JournalLog:
    """
    An observer that sends events to the journal of systemd.  If the socket of the journal is
    missing or full, the events go to another log.
    """

    def __init__(self, otherwise: Log, path: str = JOURNAL) -> None:
        """
        @param otherwise: the log for events that the journal does not accept.
        @param path: the path of the journal's socket.
        """
        self._otherwise = otherwise
        self._path = path
        self._socket: socket.socket | None = None
        # The lock is necessary because every thread may log an event.
        self._lock = Lock()

    def __call__(self, event: LogEvent) -> None:
        """
        See L{ILogObserver}.
        """
        record = journalRecord(event)
        if not record:
            return
        with self._lock:
            wasSent = self._send(record)
        if not wasSent:
            self._otherwise(event)

    def _send(self, record: bytes) -> bool:
        # Try twice, because the journal may have been restarted.
        for _ in range(2):
            try:
                if self._socket is None:
                    self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                    self._socket.connect(self._path)
                self._socket.send(record, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                return True
            except BlockingIOError:
                return False
            except OSError:
                self._close()
        return False

    def _close(self) -> None:
        before, self._socket = self._socket, None
        if before is not None:
            before.close()

    def reopen(self) -> None:
        """
        Close the connection to the journal, so that the next record makes a new one.  Also reopen
        the log for events that the journal does not accept.

        @raise OSError: this log cannot be opened; see L{pop3svc.logs.Sink.reopen}.
        """
        with self._lock:
            self._close()
        self._otherwise.reopen()
