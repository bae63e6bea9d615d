"""
The program of a worker, one of the processes that share the listening ports; see
L{pop3svc.service.workers}.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from threading import get_ident, main_thread
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ReactorNotRunning
from twisted.internet.task import LoopingCall
from twisted.logger import LogEvent, Logger, eventAsJSON, globalLogBeginner
from twisted.python.failure import Failure

from pop3svc.admin.operations import OperationError
from pop3svc.files import setPrivileged
from pop3svc.logs import cut, eventText
from pop3svc.service.operating import Signals
from pop3svc.service.workers import (
    ANSWER,
    ASK,
    BEAT,
    BEAT_EVERY,
    COUNTS,
    DELAY,
    DRAIN,
    EVENT,
    LEAVE,
    LOG,
    PATIENCE,
    STRIKE,
    UP,
    Lines,
    Outbox,
    Shared,
)

__all__ = ["main"]

log = Logger(namespace="pop3svc")

# The types that JSON preserves, and the keys of each event whose values have other types.
_PLAIN = (str, int, float, type(None))
_OBJECTS = frozenset(["log_level", "log_logger", "log_source"])


def _firstLine() -> tuple[Shared, bytes]:
    """
    @return: the configuration that the parent has sent, and the octets that were read after it.
    """
    read = bytearray()
    while b"\n" not in read:
        data = os.read(0, 65536)
        if not data:
            # The parent has already ended, so this worker has nothing to do.
            raise SystemExit(1)
        read += data
    line, _, rest = read.partition(b"\n")
    return Shared(*json.loads(line)), bytes(rest)


class _Parent(Lines):
    """
    The connection of a worker to its parent.
    """

    def __init__(self, reactor: Any) -> None:
        super().__init__(self._handle)
        self._reactor = reactor
        self._outbox: Outbox | None = None
        self.service: Any = None
        # The object that has the numbers for metrics; None if the service counts nothing.
        self.numbers: Any = None
        # Carries out the operations of the admin socket.
        self.operations: Any = None
        # The questions of the parent that are not answered yet.
        self._questions: dict[int, Deferred[None]] = {}
        # A Deferred that fires when the pipe to the parent is closed.
        self.gone: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        """
        See L{twisted.internet.protocol.BaseProtocol.connectionMade}.
        """
        self._outbox = Outbox(self.transport)

    def connectionLost(self, reason: Failure | None = None) -> None:
        """
        See L{twisted.internet.protocol.Protocol.connectionLost}.  A worker stops when its parent
        has ended.
        """
        self._outbox = None
        self.gone.callback(None)
        try:
            self._reactor.stop()
        except ReactorNotRunning:
            pass

    def observe(self, event: LogEvent) -> None:
        """
        Send an event to the parent's log.  If an event of another package has no text, drop it.
        """
        if self._outbox is None or not (event.get("log_format") or "pop3Event" in event):
            return
        if get_ident() != main_thread().ident:
            # Other threads log events, but only the reactor's thread may write to a transport.
            self._reactor.callFromThread(self.observe, event)
            return
        # Write usual events as JSON here, because eventAsJSON takes ten times as long, and each
        # session has an event.
        plain = {key: value for key, value in event.items() if isinstance(value, _PLAIN)}
        kind, text = EVENT, ""
        if event.keys() - plain.keys() <= _OBJECTS:
            plain["log_level"] = event["log_level"].name
            text = json.dumps(plain)
        else:
            kind, text = LOG, eventAsJSON(event)
        if len(text) >= Lines.MAX_LENGTH:
            # The line is too long to be sent, so cut the text as the log would.
            lines = cut("\n".join(eventText(event)))
            plain = {
                "log_format": "{text}",
                "text": lines,
                "log_time": event.get("log_time"),
                "log_namespace": event.get("log_namespace"),
                "log_level": event["log_level"].name,
            }
            kind, text = EVENT, json.dumps(plain)
        self._outbox.send(kind, text)

    def tellStrike(self, event: str, clientIP: str | None, username: str, guess: str) -> None:
        """
        Tell the parent and the other workers about an attempt to log in.
        """
        self._send(STRIKE, [event, clientIP, username, guess])

    def tellDelay(self, name: str, isDelayed: bool) -> None:
        """
        Tell the other workers about a login that delays further logins, or no longer delays them.
        """
        self._send(DELAY, [name, isDelayed])

    def tellUp(self) -> None:
        """
        Tell the parent that this worker serves clients.  From now on, send a heartbeat each second.
        """
        self._send(UP, None)
        beating = LoopingCall(self._beat)
        beating.clock = self._reactor
        beating.start(BEAT_EVERY)

    def _beat(self) -> None:
        self._send(BEAT, self.service.factory.admission.loggedIn)

    def _send(self, kind: bytes, what: Any) -> None:
        if self._outbox is not None:
            self._outbox.send(kind, json.dumps(what))

    def _handle(self, kind: bytes, text: bytes) -> None:
        what = json.loads(text)
        if kind == STRIKE:
            self.service.throttle.heard(*what)
        elif kind == DELAY:
            self.service.factory.admission.heardLogin(*what)
        elif kind == LEAVE:
            self.service.leave()
        elif kind == DRAIN:
            self.service.drain()
        elif kind == ASK:
            self._asked(what)

    def _asked(self, question: Any) -> None:
        number = question["id"]
        if "isCancelled" in question:
            if number in self._questions:
                self._questions[number].cancel()
            return
        answered = Deferred.fromCoroutine(self._answer(question))
        if not answered.called:
            self._questions[number] = answered
        answered.addErrback(lambda failure: failure.trap(CancelledError))
        answered.addBoth(lambda _: self._questions.pop(number, None))

    def _sendItems(self, number: int, items: list[Any]) -> Deferred[None] | None:
        self._send(ANSWER, {"id": number, "items": items})
        return None if self._outbox is None else self._outbox.room()

    async def _answer(self, question: Any) -> None:
        number = question["id"]
        answer: dict[str, Any] = {"id": number}
        try:
            answer["result"] = await self.operations.do(
                question["do"],
                question["arguments"],
                lambda items: self._sendItems(number, items),
            )
        except CancelledError:
            # The parent has cancelled the question, so send no answer.
            raise
        except OperationError as error:
            answer["error"] = str(error)
        except Exception:
            log.failure("an operation of the admin socket failed")
            answer["error"] = "The operation failed; the log of the service says why."
        self._send(ANSWER, answer)

    def leave(self) -> Deferred[None]:
        """
        Send the numbers of this process and the buffered lines, and close the pipe to the parent.

        @return: a Deferred that fires when the pipe is closed.
        """
        if self._outbox is not None:
            if self.numbers is not None:
                self._send(COUNTS, self.numbers.last())
            transport: Any = self.transport
            self._outbox.close()
            transport.loseConnection()
            self._reactor.callLater(PATIENCE, os._exit, 1)
        return self.gone


def main() -> None:
    """
    Serve clients until SIGTERM, until the parent orders the end, or until the parent has ended.
    """
    # Ignore Ctrl-C and the signals of the operator.  The parent also gets these signals, and tells
    # its workers what to do.
    for number in (signal.SIGINT, *Signals.NUMBERS):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, Signals.NUMBERS)
    shared, rest = _firstLine()
    if shared.reactor is not None:
        from twisted.application.reactors import installReactor

        installReactor(shared.reactor)
    from twisted.internet import reactor as installed
    from twisted.internet import stdio

    # The type is Any, because the annotation of StandardIO depends on the platform.
    StandardIO: Any = stdio.StandardIO
    reactor: Any = installed
    from pop3svc.service.tap import Options, makeService

    opener = shared.opener
    if opener is not None:
        setPrivileged(opener.open)
    parent = _Parent(reactor)
    here = os.getcwd()
    if shared.directory != here:
        os.chdir(shared.directory)
    options = Options()
    options.parseOptions(shared.arguments)
    for number in Signals.NUMBERS:
        signal.signal(number, signal.SIG_IGN)
    parent.service = service = makeService(options, shared, parent)
    os.chdir(here)
    StandardIO(parent, 0, 3, reactor)
    observer: Any = parent.observe
    globalLogBeginner.beginLoggingTo([observer])
    if rest:
        parent.dataReceived(rest)  # type: ignore[no-untyped-call]
    reactor.addSystemEventTrigger(
        "before", "shutdown", lambda: service.stopService().addBoth(lambda _: parent.leave())
    )
    try:
        service.privilegedStartService()
        service.startService()
    except BaseException:
        # Let Python write the traceback to the real standard error, which the parent reads.  The
        # log has replaced sys.stderr, and sends nothing before the reactor runs.
        sys.stderr = sys.__stderr__
        raise
    reactor.callWhenRunning(parent.tellUp)
    reactor.run()


if __name__ == "__main__":
    main()
