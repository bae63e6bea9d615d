"""
Report events of sessions, such as logins and wakes, to the operator as they happen.
"""

from __future__ import annotations

import time
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall

from pop3svc.admin.operations import OperationError, Send, secondsIn

__all__ = ["Activity"]

# The seconds for which an operation runs: the default and the maximum.
_DEFAULT, _LONGEST = 60, 3600
# The most operations at the same time.  All open pages of a service share one operation.
_MOST = 4
# Seconds between two parts of an answer, and seconds until an empty part shows that the operation
# still runs.
_EVERY, _BEAT = 0.25, 2.0
# The most events in one part of an answer.  For further events the part gives their number, because
# a person cannot read more events.
_AT_ONCE = 50


class _Listener:
    """
    One operation, and the events that the operation has not sent yet.
    """

    def __init__(self, send: Send) -> None:
        self.send = send
        self.events: list[dict[str, Any]] = []
        self._leftOut = 0
        self._quiet = 0.0

    def hear(self, event: dict[str, Any]) -> None:
        """
        Keep an event for the next part of the answer.
        """
        if len(self.events) < _AT_ONCE:
            self.events.append(event)
        else:
            self._leftOut += 1

    def flush(self) -> None:
        """
        Send the events.  If no events have come for some time, send an empty part, which shows that
        the operation still runs.
        """
        self._quiet += _EVERY
        if not self.events and self._quiet < _BEAT:
            return
        events, self.events = self.events, []
        if self._leftOut:
            events.append({"what": "more", "count": self._leftOut})
        self._leftOut, self._quiet = 0, 0.0
        self.send(events)


class Activity:
    """
    The operations that receive the events of the sessions of a process.  While no operation runs,
    the sessions report nothing.
    """

    def __init__(self, meter: Any, clock: Any, worker: int = 0) -> None:
        """
        @param meter: L{pop3svc.metrics.meter.Meter}
        @param worker: see L{pop3svc.admin.sessions.idOf}.
        """
        self._meter = meter
        self._clock = clock
        self._worker = worker
        self._listeners: list[_Listener] = []

    async def run(self, send: Send, seconds: str | None = None) -> None:
        """
        Report the events of the sessions for some seconds, or until the caller cancels this
        coroutine.

        @param send: takes a list of events.  An event is a dictionary of C{time} (seconds since the
            epoch), C{what} and C{detail} (see L{pop3svc.metrics.meter.Meter}), C{session}, C{user}
            and C{address}.  If events were left out, the last entry has the C{what} C{more} and the
            C{count} of these events.
        @raise OperationError: C{seconds} is not a valid number, or too many operations run.
        """
        limit = secondsIn(seconds, _DEFAULT, _LONGEST)
        if len(self._listeners) >= _MOST:
            raise OperationError(f"{_MOST} operations of this kind already run.")
        listener = _Listener(send)
        self._listeners.append(listener)
        self._meter.hear = self._hear
        flushing: Any = LoopingCall(listener.flush)
        flushing.clock = self._clock
        over: Deferred[None] = Deferred()
        timer = self._clock.callLater(limit, over.callback, None)
        flushing.start(_EVERY, now=False)
        try:
            await over
            listener.flush()
        finally:
            if timer.active():
                timer.cancel()
            flushing.stop()
            self._listeners.remove(listener)
            if not self._listeners:
                self._meter.hear = None

    def _hear(self, what: str, info: Any, user: str | None, detail: str) -> None:
        number = info.connectionID
        event = {
            "time": round(time.time(), 3),
            "what": what,
            "session": f"{self._worker}.{number}" if self._worker else str(number),
            "user": user,
            "address": info.clientIP,
            "detail": detail,
        }
        for each in self._listeners:
            each.hear(event)
