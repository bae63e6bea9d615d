"""
Show the conversations of clients and the service to the operator, as they happen.
"""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall

from pop3svc.admin.operations import OperationError, Send, addressIn, isAddress, secondsIn
from pop3svc.admin.sessions import idOf
from pop3svc.protocol.connection import POP3Connection
from pop3svc.protocol.taps import Heard, Tap
from pop3svc.timing import TimeSlice

__all__ = ["Listener", "Traces"]

# The seconds for which a trace runs: the default and the maximum.
_DEFAULT, _LONGEST = 60, 3600
# The most traces at the same time.  Each trace takes time for each line of a traced connection.
_MOST = 4
# Seconds between two empty answers.  By writing an empty answer, the service notices that the
# reader of the trace has gone away.
_BEAT = 2.0
# The most lines that a trace keeps of one connection before its login, and the most lines of all
# such connections together.  The first number is enough for STLS and some failed logins.  The
# second number of lines takes some megabytes.
_KEPT, _ALL_KEPT = 50, 20_000


def _sameAddress(text: str | None, address: str) -> bool:
    try:
        return text is not None and str(ip_address(text)) == address
    except ValueError:
        # A link-local address may end with a zone, such as %eth0.
        return text == address


class Listener(Protocol):
    """
    Receives the lines of conversations.
    """

    def mayMatch(self, connection: Any) -> bool:
        """
        @return: whether the listener needs the lines of a connection.
        """

    def hear(self, connection: Any, heard: Heard) -> None:
        """
        Receive a line of a connection.
        """

    def ended(self, connection: Any) -> None:
        """
        Note that a connection has ended.
        """


class Trace:
    """
    One trace, which shows the lines of all connections of a user, or of all connections from an
    address.
    """

    def __init__(self, target: str, send: Send, worker: int) -> None:
        """
        @param target: an IP address, or the name of a user as the service knows it.
        @param send: takes lines.  A line is a dictionary of C{session}, C{time} (RFC 3339), C{from}
            (C{C} for the client, C{S} for the service, or C{-}) and C{text}.
        """
        self._address = addressIn(target) if isAddress(target) else None
        self._target = target
        self._send = send
        self._worker = worker
        # For each connection whose user is not known yet: its last lines, and the last name that it
        # has sent.
        self._kept: dict[Any, deque[dict[str, Any]]] = {}
        self._names: dict[Any, str] = {}
        self._count = 0

    def mayMatch(self, connection: Any) -> bool:
        """
        @return: whether the connection belongs to this trace, or may belong to it when its user is
            known.
        """
        if self._address is not None:
            return _sameAddress(connection.address, self._address)
        session = getattr(connection, "session", None)
        return session is None or session.record.user in (None, self._target)

    def _isMatch(self, connection: Any, heard: Heard) -> bool:
        if self._address is not None:
            return _sameAddress(connection.address, self._address)
        user = connection.session.record.user
        if heard.name is not None:
            # Prepare the name, because the client may spell it in another way.
            self._names[connection] = connection.session.authentication.prepareName(heard.name)[0]
        if user is None:
            return self._names.get(connection) == self._target
        self._names.pop(connection, None)
        return bool(user == self._target)

    def hear(self, connection: Any, heard: Heard) -> None:
        """
        Show a line of a connection, or keep it until the user is known.
        """
        now = datetime.now(UTC).replace(tzinfo=None)
        item = {
            "session": idOf(connection, self._worker),
            "time": f"{now.isoformat(timespec='milliseconds')}Z",
            "from": heard.side,
            "text": heard.text,
        }
        isMatch = self._isMatch(connection, heard)
        if self._names.get(connection) == self._target:
            # Show the name, because it is the target of this trace.  The trace hides any other
            # name, because the client may have sent a password as a name by mistake.
            item["text"] = heard.named
        if isMatch:
            self._send([*self._taken(connection), item])
        elif connection.session.record.user is None and self._address is None:
            self._keep(connection, item)
        else:
            self._taken(connection)

    def _keep(self, connection: Any, item: dict[str, Any]) -> None:
        kept = self._kept.setdefault(connection, deque(maxlen=_KEPT))
        self._count += len(kept) < _KEPT
        kept.append(item)
        while self._count > _ALL_KEPT:
            self._taken(next(iter(self._kept)))

    def _taken(self, connection: Any) -> list[dict[str, Any]]:
        kept = list(self._kept.pop(connection, ()))
        self._count -= len(kept)
        return kept

    def ended(self, connection: Any) -> None:
        """
        Forget a connection.
        """
        self._taken(connection)
        self._names.pop(connection, None)


class Traces:
    """
    The traces of a process, and all other listeners to its conversations.  While there is no
    listener, connections have no taps (see L{pop3svc.protocol.taps}).
    """

    def __init__(self, factory: Any, clock: Any, worker: int = 0) -> None:
        """
        @param factory: L{pop3svc.service.factory.POP3Factory}
        @param worker: the number of this worker; 0 without workers.
        """
        self._factory = factory
        self._clock = clock
        self._worker = worker
        self._traces: list[Listener] = []
        self._taps: dict[Any, Tap] = {}

    async def run(self, send: Send, target: str, seconds: str | None = None) -> None:
        """
        Trace a user or an address for some seconds, or until the caller cancels this coroutine.

        @param send: see L{Trace}.
        @raise OperationError: C{seconds} is not a valid number, or too many traces run.
        """
        limit = secondsIn(seconds, _DEFAULT, _LONGEST)
        if sum(isinstance(each, Trace) for each in self._traces) >= _MOST:
            raise OperationError(f"{_MOST} traces run already.")
        trace = Trace(target, send, self._worker)
        self._traces.append(trace)
        # An empty answer shows the reader that the trace has begun, or that it still runs.
        beat: Any = LoopingCall(send, [])
        beat.clock = self._clock
        over: Deferred[None] = Deferred()
        timer = self._clock.callLater(limit, over.callback, None)
        try:
            await self.begin(trace)
            beat.start(_BEAT)
            await over
        finally:
            if timer.active():
                timer.cancel()
            if beat.running:
                beat.stop()
            self.end(trace)

    async def begin(self, listener: Listener) -> None:
        """
        Begin to pass lines to a listener.  It gets the lines of all connections that it needs,
        including connections that exist already.
        """
        if listener not in self._traces:
            self._traces.append(listener)
        self._factory.buildProtocol = self._buildProtocol
        turn = TimeSlice(self._clock)
        for each in list(self._factory.connections):
            await turn.yieldIfDue()
            if each in self._factory.connections:
                self._attach(each)

    def end(self, listener: Listener) -> None:
        """
        Stop passing lines to a listener.
        """
        self._traces.remove(listener)
        self._detach()

    def _buildProtocol(self, *arguments: Any) -> Any:
        factory = self._factory
        made = type(factory).buildProtocol(factory, *arguments)
        if isinstance(made, POP3Connection):
            self._attach(made)
        return made

    def _attach(self, connection: Any) -> None:
        if connection not in self._taps and any(each.mayMatch(connection) for each in self._traces):
            self._taps[connection] = Tap(connection, self._hear, self._ended)

    def _detach(self) -> None:
        """
        Remove all taps if no listener is left.
        """
        if self._traces:
            return
        self._factory.__dict__.pop("buildProtocol", None)
        for each in self._taps.values():
            each.detach()
        self._taps.clear()

    def _hear(self, connection: Any, heard: Heard) -> None:
        for each in self._traces:
            each.hear(connection, heard)

    def _ended(self, connection: Any) -> None:
        self._taps.pop(connection, None)
        for each in self._traces:
            each.ended(connection)
