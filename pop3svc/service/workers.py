"""
Processes that share the listening ports: started, heard, ended.

The process that twistd has started opens the ports, and starts workers that
run the same command line on them.  A worker's standard input is what the
parent tells it, another pipe what it tells the parent: lines that begin with
a letter of what they are, JSON behind it.  When the parent is gone, both
close.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import LogEvent, Logger, LogLevel, eventFromJSON, globalLogPublisher
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from pop3svc.accounts.throttle import SharedThrottle
from pop3svc.logs import Log
from pop3svc.policy import Policy
from pop3svc.service.operating import Operated, Signals, giveUp
from pop3svc.service.privileged import Opener

__all__ = [
    "DELAY",
    "EVENT",
    "LOG",
    "PATIENCE",
    "RELOAD",
    "STRIKE",
    "UP",
    "Lines",
    "Outbox",
    "Shared",
    "Supervisor",
]

log = Logger(namespace="pop3svc")

# What a line is: an event of plain values for the log, another event; an
# attempt to log in that counts; a login that delays others of its user; the
# worker serves; it is to read again what it was configured by.
EVENT, LOG, STRIKE, DELAY, UP, RELOAD = b"E", b"L", b"S", b"D", b"U", b"R"

# Seconds that whoever ends is given on top of what sessions are: for the last
# lines of the log.
PATIENCE = 5

# Descriptors of a worker: lines for the parent, and then the ports.
_TO_PARENT = 3


class Shared(NamedTuple):
    """
    What a worker is given by its parent when it starts: the first line that
    the parent tells.

    @ivar number: which worker it is, from 1.
    @ivar of: how many there are.
    @ivar arguments: the command line behind C{pop3svc}.
    @ivar reactor: its short name, or L{None} for the default.
    @ivar directory: where the paths on the command line begin.
    @ivar families: the address families of the ports.
    @ivar certificates: the PEM texts of each certificate and its key: the service's, then
        those of listeners.
    @ivar strikes: L{SharedThrottle.state}
    @ivar opened: the files that another process opens, as this user may not;
        the socket to ask it is the descriptor behind the ports.
    @ivar state: the path of what has to survive a worker, where there is no data
        directory; see L{pop3svc.state.State}.
    @ivar config: the text of the configuration file, because a worker may not be allowed to
        read it.
    """

    number: int
    of: int
    arguments: list[str]
    reactor: str | None
    directory: str
    families: list[int]
    certificates: list[tuple[str, str]]
    strikes: Any
    opened: list[str]
    state: str | None = None
    config: str | None = None

    @property
    def ports(self) -> list[tuple[int, int]]:
        """
        Descriptor and address family of each port.
        """
        return list(enumerate(self.families, _TO_PARENT + 1))

    @property
    def opener(self) -> Opener | None:
        """
        What opens files that this user may not open.
        """
        if not self.opened:
            return None
        descriptor = _TO_PARENT + 1 + len(self.families)
        os.set_inheritable(descriptor, False)
        return Opener(socket.socket(fileno=descriptor), self.opened)


@implementer(IPushProducer)
class Outbox:
    """
    Lines for another process.  Some wait while it takes none, and the oldest
    of them are dropped.
    """

    # Octets that wait: some ten thousand lines, as they are some hundred octets each.
    BOUND = 4_194_304

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._waiting: deque[bytes] = deque()
        self._held = 0
        self._isPaused = False
        transport.registerProducer(self, True)

    def send(self, kind: bytes, text: str) -> None:
        """
        Tell something.

        @param text: JSON.
        """
        line = kind + text.encode("ascii") + b"\n"
        if len(line) > Lines.MAX_LENGTH:
            return
        if self._isPaused:
            self._waiting.append(line)
            self._held += len(line)
            while self._held > self.BOUND:
                self._held -= len(self._waiting.popleft())
        else:
            self._transport.write(line)

    def pauseProducing(self) -> None:
        """
        See L{IPushProducer.pauseProducing}.
        """
        self._isPaused = True

    def resumeProducing(self) -> None:
        """
        See L{IPushProducer.resumeProducing}.
        """
        self._isPaused = False
        while self._waiting and not self._isPaused:
            line = self._waiting.popleft()
            self._held -= len(line)
            self._transport.write(line)

    def stopProducing(self) -> None:
        """
        See L{twisted.internet.interfaces.IProducer.stopProducing}.
        """
        self._isPaused = True

    def close(self) -> None:
        """
        No more is told; what waits is given to the transport.
        """
        self._transport.unregisterProducer()
        self._transport.writeSequence(self._waiting)


class Lines(LineReceiver):
    """
    Lines from another process.
    """

    delimiter = b"\n"
    # A traceback is long.
    MAX_LENGTH = 1_048_576

    def __init__(self, told: Callable[[bytes, bytes], object]) -> None:
        """
        @param told: called with what a line is, and its JSON.
        """
        self._told = told

    def lineReceived(self, line: bytes) -> None:
        """
        See L{LineReceiver.lineReceived}.
        """
        self._told(line[:1], line[1:])

    def lineLengthExceeded(self, line: bytes) -> None:
        """
        See L{LineReceiver.lineLengthExceeded}: nobody sends one.
        """


class _Worker(ProcessProtocol):
    """
    A worker as its parent sees it.
    """

    def __init__(self, supervisor: Supervisor, number: int) -> None:
        self._supervisor = supervisor
        self.number = number
        self.began = supervisor.clock.seconds()
        self.outbox: Outbox | None = None
        self._lines = Lines(self._told)
        self._said = b""
        # The last line that is no event: how an error ends.
        self.lastWords = ""
        self.serves = False

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.write(json.dumps(self._supervisor.shared(self.number)).encode("ascii") + b"\n")
        self.outbox = Outbox(transport)

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        if childFD == _TO_PARENT:
            self._lines.dataReceived(data)  # type: ignore[no-untyped-call]
            return
        # What is no event of the log: a sentence, a traceback.
        *lines, self._said = (self._said + data).split(b"\n")
        for line in lines:
            self._say(line)
        self._said = self._said[-Lines.MAX_LENGTH :]

    def _say(self, line: bytes) -> None:
        text = line.decode("utf-8", "backslashreplace")
        if text.strip():
            self.lastWords = text.strip()
            log.error("worker {number}: {line}", number=self.number, line=text)

    def _told(self, kind: bytes, text: bytes) -> None:
        if kind == EVENT:
            event = json.loads(text)
            event["log_level"] = LogLevel.lookupByName(event["log_level"])
            self._publish(event)
        elif kind == LOG:
            self._publish(eventFromJSON(text.decode("ascii")))
        elif kind == UP:
            self.serves = True
            self._supervisor.serves(self)
            log.info("{worker} serves", worker=self)
        else:
            self._supervisor.told(self, kind, text.decode("ascii"))

    def _publish(self, event: LogEvent) -> None:
        system = event.get("log_system")
        if system is None:
            level = event.get("log_level", LogLevel.info)
            system = f"{event.get('log_namespace')}#{level.name}"
        event["worker"] = self.number
        event["log_system"] = f"{system} worker {self.number}"
        globalLogPublisher(event)

    def signal(self, name: str) -> None:
        transport: Any = self.transport
        if transport.pid is not None:
            transport.signalProcess(name)

    def processExited(self, reason: Failure) -> None:
        self._supervisor.ended(self, reason.value)

    def processEnded(self, reason: Failure) -> None:
        # Now all is read that it has told.
        self._say(self._said)
        self._supervisor.fellSilent(self)

    def __str__(self) -> str:
        transport: Any = self.transport
        return f"worker {self.number} (process {transport.pid})"


class Supervisor(Operated):
    """
    The parent: keeps a number of workers alive, and ends them.  It hears what
    they have to tell each other and passes it on.

    @ivar kept: what lives as long as the workers.
    """

    def __init__(
        self,
        reactor: Any,
        policy: Policy,
        throttle: SharedThrottle,
        sockets: Sequence[Any],
        shared: Shared,
        certificates: Callable[[], list[tuple[bytes, bytes]]],
        config: Callable[[], str | None],
        observer: Log | None = None,
        opener: Opener | None = None,
    ) -> None:
        """
        @param throttle: counts what all workers have counted, for those that
            are started later.
        @param sockets: that listen.
        @param shared: what each worker is given; its number, the certificate and
            the strikes are filled in.
        @param certificates: gives the octets of each certificate and its key.
        @param config: gives the text of the configuration file, if there is one.
        @param observer: see L{Operated}.
        @param opener: opens files that workers may not open.
        """
        super().__init__(observer)
        self.clock = reactor
        self._opener = opener
        self._certificates = certificates
        self._config = config
        self.kept: object = None
        self._policy = policy
        self._throttle = throttle
        self._sockets = sockets
        self._shared = shared
        self._workers: dict[int, _Worker] = {}
        # These, and those who have died but whose last words are not read.
        self._heard: set[_Worker] = set()
        self._delays: dict[int, int] = {}
        self._timers: dict[int, IDelayedCall] = {}
        # Has any of them ever served?  And those that were started once.
        self._haveServed = False
        self._tried: set[int] = set()
        self._stopped: Deferred[None] | None = None

    def shared(self, number: int) -> Shared:
        """
        @return: what a worker is given.
        """
        return self._shared._replace(
            number=number,
            certificates=[
                (chain.decode("latin-1"), key.decode("latin-1"))
                for chain, key in self._certificates()
            ],
            strikes=self._throttle.state(),
            config=self._config(),
        )

    def startService(self) -> None:
        """
        See L{twisted.application.service.IService.startService}.
        """
        super().startService()
        # When its signal handlers tell who has died.
        self.clock.callWhenRunning(self._startAll)

    def _startAll(self) -> None:
        for number in range(1, self._shared.of + 1):
            self._start(number)

    def _start(self, number: int) -> None:
        self._timers.pop(number, None)
        if self._stopped is not None:
            return
        worker = _Worker(self, number)
        descriptors: dict[int, int | str] = {0: "w", 1: "r", 2: "r", _TO_PARENT: "r"}
        descriptors.update(
            (there, each.fileno())
            for there, each in enumerate(
                [*self._sockets, *([] if self._opener is None else [self._opener])],
                _TO_PARENT + 1,
            )
        )
        # A worker that is about to begin has no handlers for these signals yet.  Blocked
        # signals stay blocked in it until it has some.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, Signals.NUMBERS)
        try:
            self.clock.spawnProcess(
                worker,
                sys.executable,
                # Modules come from where they come from here, and no other place.
                [sys.executable, "-P", "-m", "pop3svc.service.worker", str(number)],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                childFDs=descriptors,
            )
        except OSError as error:
            # No memory for another process now, or no descriptors.
            worker.lastWords = f"cannot be started: {error.strerror}"
            self._restart(worker, worker.lastWords)
            self._tried.add(number)
            self._giveUp(worker)
            return
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._tried.add(number)
        self._workers[number] = worker
        self._heard.add(worker)
        self.clock.callLater(self._policy.workerStartTimeout, self._lookAt, worker)

    def _lookAt(self, worker: _Worker) -> None:
        """
        A worker has had its time to begin.
        """
        if not worker.serves and self._workers.get(worker.number) is worker:
            log.error("{worker} did not start serving; killing it", worker=worker)
            worker.signal("KILL")

    def serves(self, worker: _Worker) -> None:
        """
        A worker has begun to serve.
        """
        self._haveServed = True

    def _giveUp(self, worker: _Worker) -> None:
        """
        End if none of the workers has ever served: clients would wait for ever.
        """
        if self._haveServed or self._heard or len(self._tried) < self._shared.of:
            return
        if self._stopped is None:
            why = worker.lastWords or "it says nothing"
            giveUp(self.clock, f"no worker can serve, as the last one says: {why}")

    def ended(self, worker: _Worker, reason: Any) -> None:
        """
        A worker has died, or ended as it was told.
        """
        del self._workers[worker.number]
        how = "ended"
        if reason.signal is not None:
            how = f"died by {signal.Signals(reason.signal).name}"
        elif reason.exitCode:
            how = f"ended with status {reason.exitCode}"
        if self._stopped is None:
            self._restart(worker, how)
            return
        if how != "ended":
            log.error("worker {number} {how}", number=worker.number, how=how)

    def fellSilent(self, worker: _Worker) -> None:
        """
        Nothing more is heard of a worker that has died.
        """
        self._heard.discard(worker)
        self._giveUp(worker)
        if not self._heard:
            self._over()

    def _over(self) -> None:
        if self._stopped is not None and not self._stopped.called:
            self._stopped.callback(None)

    def _restart(self, worker: _Worker, how: str) -> None:
        longest = self._policy.maxRestartDelay
        number = worker.number
        delay = self._delays.get(number, 1)
        if self.clock.seconds() - worker.began > longest:
            delay = 1
        self._delays[number] = min(2 * delay, longest)
        log.error(
            "worker {number} {how}; restarting it in {delay} s",
            number=number,
            how=how,
            delay=delay,
        )
        self._timers[number] = self.clock.callLater(delay, self._start, number)

    def told(self, teller: _Worker, kind: bytes, text: str) -> None:
        """
        A worker tells the others something.
        """
        if kind == STRIKE:
            self._throttle.heard(*json.loads(text))
        self._tell(kind, text, teller)

    def reloadWorkers(self) -> None:
        """
        Have all workers read again what they were configured by.
        """
        self._tell(RELOAD, json.dumps(self._config()))

    def _tell(self, kind: bytes, text: str, teller: _Worker | None = None) -> None:
        for worker in self._workers.values():
            if worker is not teller and worker.outbox is not None:
                worker.outbox.send(kind, text)

    def stopService(self) -> Deferred[Any]:
        """
        Tell the workers, and wait for them: as long as a session may take to
        end, and a deletion.
        See L{twisted.application.service.IService.stopService}.
        """
        stopped: Deferred[None] = Deferred()
        self._stopped = stopped
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        # Theirs are the same; closed in all processes they are closed.
        for each in self._sockets:
            each.close()
        for worker in self._workers.values():
            worker.signal("TERM")
        if not self._heard:
            self._over()
        patience = self._policy.shutdownTimeout + self._policy.answerTimeout + PATIENCE
        timers = [
            self.clock.callLater(patience, self._kill),
            # Somebody else may hold a pipe of a worker that is gone.
            self.clock.callLater(patience + PATIENCE, self._over),
        ]

        def others(_: object) -> Any:
            for timer in timers:
                if timer.active():
                    timer.cancel()
            return super(Supervisor, self).stopService()  # type: ignore[no-untyped-call]

        return stopped.addCallback(others)

    def _kill(self) -> None:
        for worker in self._workers.values():
            log.error("{worker} did not stop; killing it", worker=worker)
            worker.signal("KILL")
