"""
Write log events as lines.  The text of an event is escaped, so that it cannot begin a new line.  No
method waits until the output accepts a line.
"""

from __future__ import annotations

import atexit
import os
import select
import socket
import stat
import time
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from threading import RLock, get_ident
from typing import Any, Protocol

from twisted.logger import ILogObserver, LogEvent, LogLevel
from zope.interface import implementer

from pop3svc.summaries import textOf

__all__ = [
    "FileSink",
    "Form",
    "Log",
    "Sink",
    "StreamSink",
    "SyslogSink",
    "TextForm",
    "cut",
    "escaped",
    "eventText",
    "priorityOf",
    "tracebackOf",
]

# The most characters of a line.  A longer line comes from a bug or from an attempt to fill the
# disk.
_LONGEST = 8000
# The most octets of a syslog datagram.  The program rsyslog accepts 8 KiB by default.
_DATAGRAM = 8000
# The priorities of the levels (RFC 5424 section 6.2.1).
_PRIORITIES = {"debug": 7, "info": 6, "warn": 4, "error": 3, "critical": 2}
# If a write to a pipe has at most this many octets, the system writes all of them or none.  POSIX
# guarantees this for 512 octets.
_AT_ONCE = 512
# This system guarantees the same for this number of octets.
_PIPE = select.PIPE_BUF
# The most octets of one write to a file or to a stream socket.  A write of this size takes less
# than a millisecond.
_TOGETHER = 65_536
# The lines of events with these levels may wait, so that several lines are written together.
# Events with other levels are written at once, because they may be the last ones before the process
# ends.
_PATIENT = frozenset([LogLevel.debug, LogLevel.info, LogLevel.warn])


def escaped(text: str) -> str:
    """
    Escape text for one line of the log.  Characters that are not printable
    become escape sequences of Python: control characters, line ends, marks that change the
    direction of writing, and octets that are not UTF-8.

    @return: printable text without surrogates, so that it can be encoded in UTF-8.
    """
    if text.isprintable():
        return text
    return "".join([each if each.isprintable() else _escape(each) for each in text])


def cut(text: str) -> str:
    """
    @return: the text.  If it is too long for a line of the log, its end is replaced by the number
        of missing characters.
    """
    if len(text) > _LONGEST:
        return f"{text[:_LONGEST]} ({len(text) - _LONGEST} more characters)"
    return text


def _escape(character: str) -> str:
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:
        # The character stands for an octet that is not UTF-8 (the error handler "surrogateescape").
        return f"\\x{number - 0xDC00:02x}"
    return repr(character)[1:-1]


def _system(event: LogEvent) -> str:
    system = event.get("log_system")
    if system is not None:
        return escaped(str(system))
    level = getattr(event.get("log_level"), "name", "-")
    return _defaultSystem(str(event.get("log_namespace", "-")), level)


# A cache of 128 results is enough, because only some dozens of packages log events.
@lru_cache(128)
def _defaultSystem(namespace: str, level: str) -> str:
    return escaped(f"{namespace}#{level}")


def eventText(event: LogEvent) -> list[str]:
    """
    Format an event.

    @return: the lines of the event; empty if the event has no text.  The first line is C{[system]
        text}.  Each line of a traceback begins with a tab and a vertical bar, so that it does not
        look like the first line of an event.
    """
    text = textOf(event)
    failure = event.get("log_failure")
    if not text and failure is None:
        return []
    lines = [f"[{_system(event)}] {escaped(cut(text.rstrip()))}"]
    if failure is not None:
        traceback = tracebackOf(failure)
        lines += [f"\t| {escaped(cut(each))}" for each in traceback.split("\n")]
    return lines


def tracebackOf(failure: Any) -> str:
    """
    @param failure: C{log_failure} of an event.
    @return: the traceback; if the traceback cannot be formatted, the reason.
    """
    try:
        traceback: str = failure.getTraceback()
    except Exception as error:
        return f"(cannot format the traceback: {type(error).__name__})"
    return traceback.rstrip()


def priorityOf(event: LogEvent) -> int:
    """
    @return: the priority of an event (RFC 5424 section 6.2.1): 7 for debug to 2 for critical.
    """
    return _PRIORITIES.get(getattr(event.get("log_level"), "name", ""), 6)


# Functions that make the lines of an event.  Each line ends with LF.  There are no lines if the
# event has nothing to write.
Form = Callable[[LogEvent], list[bytes]]


class TextForm:
    """
    Makes lines of text; see L{eventText}.
    """

    def __init__(self, hasTime: bool = True, hasPriority: bool = False) -> None:
        """
        @param hasTime: whether the first line of each event begins with the time.
        @param hasPriority: whether each line begins with a priority such as C{<6>}.  The journal of
            systemd reads the priority and removes it from the line (sd-daemon(3)).
        """
        self._hasTime = hasTime
        self._hasPriority = hasPriority
        # The time of the last event in whole seconds, and the text of this time.
        self._last = -1, ""

    def __call__(self, event: LogEvent) -> list[bytes]:
        """
        @return: the lines of the event.
        """
        lines = eventText(event)
        if not lines:
            return []
        if self._hasTime:
            lines[0] = f"{self._timeOf(event)} {lines[0]}"
        if len(lines) == 1 and not self._hasPriority:
            # Handle the most frequent case without the list comprehension below.
            return [(lines[0] + "\n").encode("utf-8", "backslashreplace")]
        head = b"<%d>" % priorityOf(event) if self._hasPriority else b""
        return [head + each.encode("utf-8", "backslashreplace") + b"\n" for each in lines]

    def _timeOf(self, event: LogEvent) -> str:
        second = int(event.get("log_time") or time.time())
        # Read and set both values at once, because several threads may call this method at the same
        # time.
        before, text = self._last
        if second != before:
            text = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(second))
            self._last = second, text
        return text


class Sink(Protocol):
    """
    An output for the lines of a log.
    """

    # Whether the first line of each event begins with the time of the event.
    hasTime: bool
    # The most octets of a write that contains several lines; 0 if each line needs a separate write.
    together: int

    def write(self, data: bytes) -> int:
        """
        Write octets.  Do not wait until all of them can be written.

        @return: the number of octets written.
        @raise OSError: nothing can be written now.
        """

    def reopen(self) -> None:
        """
        Open the output again, because the file may have been renamed or replaced.

        @raise OSError: the output cannot be opened.  In this case the sink still uses the old
            output.
        """


class FileSink:
    """
    A log file.  The file is opened in append mode, because logrotate may copy the file and truncate
    it.  The next write must then begin at the start of the file.
    """

    hasTime = True
    together = _TOGETHER

    def __init__(self, path: str, owner: tuple[int, int] | None = None) -> None:
        """
        @param owner: user and group of a new file.
        @raise OSError: the file cannot be opened.
        """
        self.path = os.path.abspath(path)
        self._descriptor = self._opened(owner)

    def _opened(self, owner: tuple[int, int] | None) -> int:
        # Use O_NONBLOCK, because the path may name a FIFO that nobody reads.
        flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            return os.open(self.path, flags)
        except FileNotFoundError:
            descriptor = os.open(self.path, flags | os.O_CREAT, 0o640)
        if owner is not None:
            os.fchown(descriptor, *owner)
        return descriptor

    def write(self, data: bytes) -> int:
        """
        See L{Sink.write}.
        """
        return os.write(self._descriptor, data)

    def reopen(self) -> None:
        """
        See L{Sink.reopen}.
        """
        before, self._descriptor = self._descriptor, self._opened(None)
        os.close(before)


class StreamSink:
    """
    A descriptor that the process has inherited, such as standard output.
    """

    hasTime = True

    def __init__(self, descriptor: int) -> None:
        mode = os.fstat(descriptor).st_mode
        self._socket: socket.socket | None = None
        self._waits = False
        # Other processes may write to the same pipe.  If a write were longer than _PIPE, their
        # lines could end up inside a line of this process.
        self.together = _TOGETHER if stat.S_ISREG(mode) else _PIPE
        if stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=os.dup(descriptor))
            self._descriptor = self._socket.fileno()
            isStream = self._socket.type == socket.SOCK_STREAM
            self.together = _TOGETHER if isStream else 0
            return
        # Open the file of the descriptor a second time.  If O_NONBLOCK were set on the descriptor
        # itself, it would affect all processes that share the descriptor.
        flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            self._descriptor = os.open(f"/proc/self/fd/{descriptor}", flags)
        except OSError:
            self._descriptor = os.dup(descriptor)
            self._waits = True
            self.together = _AT_ONCE

    def write(self, data: bytes) -> int:
        """
        See L{Sink.write}.
        """
        if self._socket is not None:
            return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        if self._waits:
            poll = select.poll()
            poll.register(self._descriptor, select.POLLOUT)
            if not poll.poll(0):
                raise BlockingIOError
            data = data[:_AT_ONCE]
        return os.write(self._descriptor, data)

    def reopen(self) -> None:
        """
        See L{Sink.reopen}.  Do nothing, because a descriptor has no path that could be opened
        again.
        """


class SyslogSink:
    """
    The socket of the system log (RFC 3164).
    """

    hasTime = False
    together = 0
    # The facility "mail", at the level "info".
    PRIORITY = 2 << 3 | 6

    def __init__(self, name: str, path: str = "/dev/log") -> None:
        """
        @param name: the program name in each line.
        """
        self._name = name
        self._path = path
        self._socket: socket.socket | None = None

    def write(self, data: bytes) -> int:
        """
        See L{Sink.write}.  Each line is sent as one datagram.
        """
        head = f"<{self.PRIORITY}>{time.strftime('%b %e %H:%M:%S')} {self._name}[{os.getpid()}]: "
        for _ in range(2):
            if self._socket is None:
                self._socket = self._connected()
            try:
                line = head.encode("utf-8") + data.rstrip(b"\n")
                self._socket.send(line[:_DATAGRAM], socket.MSG_DONTWAIT)
                return len(data)
            except BlockingIOError:
                raise
            except OSError:
                # The syslog daemon may have been restarted.
                self.reopen()
        raise BlockingIOError

    def _connected(self) -> socket.socket:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            made.connect(self._path)
        except OSError:
            made.close()
            raise
        return made

    def reopen(self) -> None:
        """
        See L{Sink.reopen}.
        """
        before, self._socket = self._socket, None
        if before is not None:
            before.close()


def _lossOf(count: int) -> LogEvent:
    """
    @return: the event that says how many lines were dropped.
    """
    return {
        "log_format": "dropped {count} lines that could not be written",
        "log_namespace": "pop3svc",
        "log_level": LogLevel.error,
        "log_time": time.time(),
        "count": count,
    }


@implementer(ILogObserver)
class Log:
    """
    An observer that writes events as lines.  Lines wait in a buffer while they cannot be written,
    for example because nobody reads a pipe or a disk is full.  If the buffer is full, the observer
    drops further lines, and later writes a line with the number of dropped lines.

    After a call of L{gather}, lines that are logged within a short time are written together.
    """

    # The size of the buffer in octets, enough for some thousand lines or for a hundred tracebacks.
    BOUND = 1_048_576
    # If this many octets wait, they are written without a further delay.  The lines of two hundred
    # sessions have this size.
    GATHERED = 32_768
    # Seconds after a failed write until the next attempt, unless an event triggers an attempt
    # earlier.
    AGAIN = 1.0

    def __init__(self, sink: Sink, reactor: Any = None, form: Form | None = None) -> None:
        """
        @param reactor: schedules attempts to write the buffer.  Without a reactor, nothing but the
            next event triggers an attempt to write.
        @param form: makes the lines of an event; L{TextForm} if not given.
        """
        self._sink = sink
        self._form: Form = TextForm(sink.hasTime) if form is None else form
        self._reactor = reactor
        # The lock is necessary because every thread may log an event.  The same thread must be able
        # to take the lock twice, because Python's garbage collector may log an event while this
        # thread holds the lock.
        self._lock = RLock()
        self._waiting: deque[bytes] = deque()
        # The octets that the sink has to write next, and the number of all waiting octets.
        self._piece = b""
        self._held = 0
        self._dropped = 0
        # Whether the output has refused a part of the last write.
        self._isStuck = False
        self._isWriting = False
        self._tries = False
        # How many seconds lines may wait, the thread whose lines may wait, and whether a timer
        # runs.
        self._delay = 0.0
        self._gathers: int | None = None
        self._isDue = False

    def gather(self, delay: float) -> None:
        """
        Gather the lines of the calling thread from now on, and write several of them together.  The
        calling thread must be the reactor's thread.  Errors and the lines of other threads are
        still written at once, after the lines that wait already.

        @param delay: the longest time in seconds that a line waits.  A busy reactor may write the
            line later.  If the value is 0, or the sink cannot write several lines together, this
            call changes nothing.
        """
        if delay > 0 and self._sink.together:
            self._delay = delay
            self._gathers = get_ident()
            # Write the waiting lines at the latest when the interpreter exits, because the reactor
            # may not have stopped in order.
            atexit.register(self.writeAtOnce)

    def writeAtOnce(self) -> None:
        """
        Write the waiting lines.  After this call, write each line at once.
        """
        atexit.unregister(self.writeAtOnce)
        with self._lock:
            self._gathers = None
            self._flush()

    def __call__(self, event: LogEvent) -> None:
        """
        See L{ILogObserver}.
        """
        lines = self._form(event)
        if not lines:
            return
        with self._lock:
            for each in lines:
                self._put(each)
            if (
                self._gathers == get_ident()
                and self._held < self.GATHERED
                and event.get("log_level") in _PATIENT
                and not self._isStuck
            ):
                if not self._isDue:
                    self._isDue = True
                    self._reactor.callLater(self._delay, self._writeDue)
            else:
                self._flush()

    def _put(self, line: bytes) -> None:
        if self._dropped or self._held + len(line) > self.BOUND:
            self._flush()
            if self._dropped or self._held + len(line) > self.BOUND:
                self._dropped += 1
                return
        self._waiting.append(line)
        self._held += len(line)

    def _writeDue(self) -> None:
        with self._lock:
            self._isDue = False
            self._flush()

    def _flush(self) -> None:
        """
        Write all waiting lines, or as many as possible without blocking.
        """
        if self._isWriting:
            # An event was logged while this method was writing.  The running loop of _wroteAll also
            # writes the line of this event.
            return
        self._isWriting = True
        try:
            self._isStuck = not self._wroteAll()
        finally:
            self._isWriting = False
        if self._isStuck:
            self._tryAgain()

    def _wroteAll(self) -> bool:
        while self._held:
            if not self._piece:
                self._piece = self._nextPiece()
            try:
                written = self._sink.write(self._piece)
            except OSError:
                return False
            self._piece = self._piece[written:]
            self._held -= written
            if self._piece:
                return False
            if not self._held and self._dropped:
                lost, self._dropped = self._dropped, 0
                for each in self._form(_lossOf(lost)):
                    self._waiting.append(each)
                    self._held += len(each)
        return True

    def _nextPiece(self) -> bytes:
        """
        Remove lines from the front of the buffer, as many as the sink can write together.
        """
        waiting, together = self._waiting, self._sink.together
        lines = [waiting.popleft()]
        size = len(lines[0])
        while waiting and size + len(waiting[0]) <= together:
            size += len(waiting[0])
            lines.append(waiting.popleft())
        return b"".join(lines)

    def _tryAgain(self) -> None:
        if self._reactor is None or self._tries:
            return
        self._tries = True
        # callLater may not be called in other threads than the reactor's.
        self._reactor.callFromThread(self._reactor.callLater, self.AGAIN, self._again)

    def _again(self) -> None:
        with self._lock:
            self._tries = False
            self._flush()

    def reopen(self) -> None:
        """
        Open the output again; see L{Sink.reopen}.
        """
        with self._lock:
            self._flush()
            self._sink.reopen()
