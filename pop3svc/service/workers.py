"""
Start, supervise and stop worker processes that share the listening ports.

The parent process opens the ports, and starts workers with the same command line.  The workers
serve these ports.  The parent sends lines to a worker's standard input, and the worker sends lines
to the parent over another pipe.  A line consists of a letter for its kind, and JSON, except the
first line to a worker, which is only JSON.  When the parent ends, both pipes close.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import LoopingCall
from twisted.logger import LogEvent, Logger, LogLevel, eventFromJSON, globalLogPublisher
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from pop3svc.accounts.throttle import SharedThrottle
from pop3svc.admin.workers import Asked
from pop3svc.logrecords import JournalLog
from pop3svc.logs import Log
from pop3svc.policy import Policy
from pop3svc.service.notifying import VARIABLES
from pop3svc.service.operating import Operated, Signals, giveUp
from pop3svc.service.privileged import Opener
from pop3svc.service.succession import Succession

__all__ = [
    "ANSWER",
    "ASK",
    "BEAT",
    "BEAT_EVERY",
    "COUNTS",
    "DELAY",
    "DRAIN",
    "EVENT",
    "LEAVE",
    "LOG",
    "PATIENCE",
    "STRIKE",
    "UP",
    "Lines",
    "Outbox",
    "Shared",
    "Supervisor",
]

log = Logger(namespace="pop3svc")

# The kinds of lines.  EVENT is an event for the log whose values JSON preserves, and LOG is any
# other event.  STRIKE is an event of a login attempt, or an order of the operator about a ban.
# DELAY is a login that delays other logins of its user.  UP says that the worker has begun to
# serve, and LEAVE says that another worker has replaced this worker.  ASK is a question of the
# operator to a worker, and ANSWER is a line of the answer.  DRAIN is an order to admit no more
# logins and to end.  BEAT is a heartbeat with the number of sessions.  COUNTS has the numbers that
# a worker has counted until its end.
EVENT, LOG, STRIKE, DELAY, UP, LEAVE = b"E", b"L", b"S", b"D", b"U", b"R"
ASK, ANSWER, DRAIN, BEAT, COUNTS = b"Q", b"A", b"N", b"B", b"C"

# How many seconds a process may take to send its last log events, after the time for its sessions
# to end.
PATIENCE = 5

# Seconds between two heartbeats of a worker, and between two checks by the parent.
BEAT_EVERY = 1

# The descriptor of a worker's pipe to the parent.  The descriptors of the ports have the next
# numbers.
_TO_PARENT = 3


class Shared(NamedTuple):
    """
    The configuration of a worker.  The parent sends it as the first line to the worker.

    @ivar number: the number of the worker; the first worker has the number 1.
    @ivar of: the number of workers of the service.
    @ivar arguments: the command line after C{pop3svc}.
    @ivar reactor: the short name of the reactor; L{None} for the default.
    @ivar directory: the directory to which relative paths on the command line belong.
    @ivar families: the address families of the ports.
    @ivar certificates: the PEM texts of the files of all certificates, by path.
    @ivar strikes: the result of L{SharedThrottle.state}.
    @ivar opened: the files that the privileged process opens, because the user of the service may
        not open them.  The descriptor after those of the ports is a socket to that process.
    @ivar state: the path of the workers' temporary database if there is no data directory; see
        L{pop3svc.state.State}.
    @ivar config: the text of the configuration file, because a worker may not be allowed to read
        the file.
    @ivar firstConfig: the text with which the service has started.  The parent still uses its own
        settings from this text, such as the listeners.
    """

    number: int
    of: int
    arguments: list[str]
    reactor: str | None
    directory: str
    families: list[int]
    certificates: dict[str, str]
    strikes: Any
    opened: list[str]
    state: str | None = None
    config: str | None = None
    firstConfig: str | None = None

    @property
    def ports(self) -> list[tuple[int, int]]:
        """
        The descriptor and the address family of each port.
        """
        return list(enumerate(self.families, _TO_PARENT + 1))

    @property
    def opener(self) -> Opener | None:
        """
        Asks the privileged process to open files; L{None} without such a process.
        """
        if not self.opened:
            return None
        descriptor = _TO_PARENT + 1 + len(self.families)
        os.set_inheritable(descriptor, False)
        return Opener(socket.socket(fileno=descriptor), self.opened)


@implementer(IPushProducer)
class Outbox:
    """
    Sends lines to another process.  While that process does not read, the outbox buffers lines.  If
    the outbox has too many lines, it drops the oldest.
    """

    # The most octets that are buffered.  The buffer has room for ten thousand lines of 400 octets.
    BOUND = 4_194_304

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._waiting: deque[bytes] = deque()
        self._held = 0
        self._isPaused = False
        self._wantRoom: list[Deferred[None]] = []
        transport.registerProducer(self, True)

    def send(self, kind: bytes, text: str) -> None:
        """
        Send a line.

        @param kind: the kind of the line.
        @param text: the JSON of the line.
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

    def room(self) -> Deferred[None] | None:
        """
        Call this method after each line if many lines have to be sent.  Otherwise the buffer would
        overflow, and other lines, such as those of the log, would be dropped.

        @return: a Deferred that fires when the other process reads again; L{None} if the process
            reads now.
        """
        if not self._isPaused:
            return None
        wanted: Deferred[None] = Deferred(self._wantRoom.remove)
        self._wantRoom.append(wanted)
        return wanted

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
        while self._wantRoom and not self._isPaused:
            self._wantRoom.pop(0).callback(None)

    def stopProducing(self) -> None:
        """
        See L{twisted.internet.interfaces.IProducer.stopProducing}.
        """
        self._isPaused = True

    def close(self) -> None:
        """
        Pass the buffered lines to the transport.  Call this method before the transport is closed.
        """
        self._transport.unregisterProducer()
        self._transport.writeSequence(self._waiting)


class Lines(LineReceiver):
    """
    Receives lines from another process.
    """

    delimiter = b"\n"
    # The most octets of a line, which are enough for a log event with a traceback.
    MAX_LENGTH = 1_048_576

    def __init__(self, received: Callable[[bytes, bytes], object]) -> None:
        """
        @param received: called with the kind and the JSON of each line.
        """
        self._received = received

    def lineReceived(self, line: bytes) -> None:
        """
        See L{LineReceiver.lineReceived}.
        """
        self._received(line[:1], line[1:])

    def lineLengthExceeded(self, line: bytes) -> None:
        """
        See L{LineReceiver.lineLengthExceeded}.  Do nothing, because no process sends such a line.
        """


class _Worker(ProcessProtocol):
    """
    A worker, as its parent sees it.
    """

    def __init__(self, supervisor: Supervisor, number: int) -> None:
        self._supervisor = supervisor
        self.number = number
        self.began = supervisor.clock.seconds()
        # The text of the configuration file that this worker uses.
        self.config: str | None = None
        self.outbox: Outbox | None = None
        self._lines = Lines(self._received)
        self._partialLine = b""
        # The last line of output that is not an event.  This line may be the last line of a
        # traceback.
        self.lastOutput = ""
        self.serves = False
        # How a pending worker has ended, as the end of a sentence; empty otherwise.
        self.how = ""
        # Whether another worker has replaced this one.
        self.leaves = False
        # The number of checks by the parent since the worker last sent something.
        self.silence = 0
        self.isHanging = False
        # The number of logged-in sessions in the last heartbeat.
        self.sessions = 0

    def connectionMade(self) -> None:
        transport: Any = self.transport
        shared = self._supervisor.shared(self.number)
        self.config = shared.config
        transport.write(json.dumps(shared).encode("ascii") + b"\n")
        self.outbox = Outbox(transport)

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        if childFD == _TO_PARENT:
            self.silence = 0
            self._lines.dataReceived(data)  # type: ignore[no-untyped-call]
            return
        # The worker has written text that is not an event, such as a traceback, to its standard
        # output or its standard error.
        *lines, self._partialLine = (self._partialLine + data).split(b"\n")
        for line in lines:
            self._logOutput(line)
        self._partialLine = self._partialLine[-Lines.MAX_LENGTH :]

    def _logOutput(self, line: bytes) -> None:
        text = line.decode("utf-8", "backslashreplace")
        if text.strip():
            self.lastOutput = text.strip()
            log.error("worker {number}: {line}", number=self.number, line=text)

    def _received(self, kind: bytes, text: bytes) -> None:
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
        elif kind == BEAT:
            self.sessions = json.loads(text)
        elif kind == ANSWER:
            self._supervisor.asked.answered(json.loads(text))
        elif kind == COUNTS:
            self._supervisor.counted(self, json.loads(text))
        else:
            self._supervisor.forward(self, kind, text.decode("ascii"))

    def _publish(self, event: LogEvent) -> None:
        system = event.get("log_system")
        if system is None:
            level = event.get("log_level", LogLevel.info)
            system = f"{event.get('log_namespace')}#{level.name}"
        event["worker"] = self.number
        event["log_system"] = f"{system} worker {self.number}"
        globalLogPublisher(event)

    @property
    def pid(self) -> int | None:
        """
        The number of the process; L{None} when the process has ended.
        """
        transport: Any = self.transport
        pid: int | None = transport.pid
        return pid

    def signal(self, name: str) -> None:
        transport: Any = self.transport
        if transport.pid is not None:
            transport.signalProcess(name)

    def processExited(self, reason: Failure) -> None:
        self._supervisor.ended(self, reason.value)

    def processEnded(self, reason: Failure) -> None:
        # Log the last line of output, which may have no line end.
        self._logOutput(self._partialLine)
        self._supervisor.outputEnded(self)

    def __str__(self) -> str:
        transport: Any = self.transport
        return f"worker {self.number} (process {transport.pid})"


def _environment() -> dict[str, str]:
    """
    @return: the environment variables for a worker.
    """
    inherited = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    return inherited | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


class Supervisor(Operated):
    """
    The work of the parent: it keeps a number of workers running, forwards lines among them, and
    stops them.  The class is long because most of its methods use the same table of workers.

    @ivar kept: an object that must exist as long as the workers, such as their temporary directory.
    @ivar policy: the limits of the service.
    @ivar throttle: counts the login attempts of all workers.
    @ivar asked: sends questions to the workers.
    @ivar isDraining: whether the workers admit no more logins; see L{drain}.
    @ivar whenServing: fires when the first worker serves.
    @ivar restarts: the number of restarts of workers that had failed.
    @ivar numbers: L{pop3svc.metrics.numbers.WorkersNumbers}; L{None} if nothing is counted.
    @ivar joined: functions that are called with each worker that begins to serve.  An operation
        that all workers carry out for some time, such as a trace, adds a function.
    """

    def __init__(
        self,
        reactor: Any,
        policy: Policy,
        throttle: SharedThrottle,
        sockets: Sequence[Any],
        shared: Shared,
        certificates: Callable[[], Mapping[str, bytes]],
        config: Callable[[], str | None],
        observer: Log | JournalLog | None = None,
        opener: Opener | None = None,
    ) -> None:
        """
        @param throttle: counts the login attempts of all workers, so that workers that are started
            later get the counts.
        @param sockets: the listening sockets.
        @param shared: the configuration of each worker.  The number, the certificates, the strikes
            and the text of the configuration file are added for each worker.
        @param certificates: returns the contents of the files of all certificates, by path.
        @param config: returns the text of the configuration file; L{None} if there is none.
        @param observer: see L{Operated}.
        @param opener: the client of the privileged process; L{None} without such a process.
        """
        super().__init__(observer)
        self.clock = reactor
        self._opener = opener
        self._certificates = certificates
        self._config = config
        # The text of the configuration file of the worker that has begun to serve last, in a tuple;
        # an empty tuple if none has served yet.
        self._served: tuple[str | None, ...] = ()
        self.kept: object = None
        self.policy = policy
        self.throttle = throttle
        self.asked = Asked(reactor)
        self.isDraining = False
        self.restarts = 0
        self.numbers: Any = None
        self.joined: list[Callable[[_Worker], object]] = []
        self._sockets = sockets
        self._shared = shared
        self._workers: dict[int, _Worker] = {}
        # The workers that run, and the workers that have ended but whose output has not been read
        # to its end.
        self._reading: set[_Worker] = set()
        self._delays: dict[int, int] = {}
        self._timers: dict[int, IDelayedCall] = {}
        # Whether any worker has ever served clients.
        self._haveServed = False
        self.whenServing: Deferred[None] = Deferred()
        self._tried: set[int] = set()
        self._succession = Succession()
        self._stopped: Deferred[None] | None = None
        self._looking = LoopingCall(self._lookForHanging)
        self._looking.clock = reactor

    def shared(self, number: int) -> Shared:
        """
        @return: the configuration for the worker with this number.
        """
        return self._shared._replace(
            number=number,
            certificates={
                path: data.decode("latin-1") for path, data in self._certificates().items()
            },
            strikes=self.throttle.state(),
            config=self._configFor(number),
        )

    def _configFor(self, number: int) -> str | None:
        """
        @return: the text of the configuration file for the worker with this number.  A worker that
            takes the place of a worker that has died gets a text with which a worker has served,
            because no worker may be able to serve with the present text.
        """
        if self._served and not self._succession.isPending(number):
            return self._served[0]
        return self._config()

    def usePolicy(self, policy: Policy) -> None:
        """
        Use other limits.  The parent needs them to know, for example, how long workers may take to
        start and to end.
        """
        self.policy = policy

    def startService(self) -> None:
        """
        See L{twisted.application.service.IService.startService}.
        """
        super().startService()
        # Start the workers when the reactor runs, because it then has its handler for SIGCHLD.
        self.clock.callWhenRunning(self._startAll)

    def _startAll(self) -> None:
        for number in range(1, self._shared.of + 1):
            self._start(number)
        self._looking.start(BEAT_EVERY, now=False)

    def _start(self, number: int) -> None:
        self._timers.pop(number, None)
        if self._stopped is not None or self.isDraining:
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
        # Block these signals in the new worker, because they would end it until it ignores them.  A
        # worker inherits the blocked signals, and unblocks them when it ignores them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, Signals.NUMBERS)
        try:
            self.clock.spawnProcess(
                worker,
                sys.executable,
                # With -P and PYTHONPATH, the worker imports modules from the same places as this
                # process.
                [sys.executable, "-P", "-m", "pop3svc.service.worker", str(number)],
                env=_environment(),
                childFDs=descriptors,
            )
        except OSError as error:
            # The system does not have enough memory or descriptors for another process.
            worker.lastOutput = f"cannot be started: {error.strerror}"
            self._tried.add(number)
            if self._succession.isPending(number):
                self._keepOld(worker, worker.lastOutput)
                return
            self._restart(worker, worker.lastOutput)
            self._giveUp(worker)
            return
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._tried.add(number)
        self._workers[number] = worker
        self._reading.add(worker)
        self.clock.callLater(self.policy.workerStartTimeout, self._killUnlessServing, worker)

    def _killUnlessServing(self, worker: _Worker) -> None:
        """
        Kill a worker that has not begun to serve in time.
        """
        if not worker.serves and self._workers.get(worker.number) is worker:
            log.error("{worker} did not start serving; killing it", worker=worker)
            worker.signal("KILL")

    def serves(self, worker: _Worker) -> None:
        """
        Note that a worker has begun to serve.
        """
        if not self._haveServed:
            self._haveServed = True
            self.whenServing.callback(None)
        for join in list(self.joined):
            join(worker)
        self._served = (worker.config,)
        old = self._succession.served(worker.number)
        if old is not None:
            self._leave(old)
            self._succession.look()

    def _lookForHanging(self) -> None:
        """
        Kill the workers that send no heartbeats.  The limit is a number of checks instead of
        seconds for two reasons.  While the machine is suspended, no worker can send anything.
        While this process is busy, it does not read what the workers have sent.  In both cases this
        process makes no checks.
        """
        for worker in self.serving:
            worker.silence += 1
            if worker.silence * BEAT_EVERY > self.policy.workerHangTimeout:
                if not worker.isHanging:
                    worker.isHanging = True
                    self.clock.callLater(PATIENCE, self._reportUnkilled, worker)
                worker.signal("KILL")

    def _reportUnkilled(self, worker: _Worker) -> None:
        if self._workers.get(worker.number) is worker:
            log.error(
                "{worker} hangs, and the kernel does not end it; it may wait for a disk",
                worker=worker,
            )

    def _leave(self, worker: _Worker) -> None:
        """
        Let a worker end when its last session has ended.
        """
        if self._workers.get(worker.number) is not worker or worker.outbox is None:
            return
        worker.leaves = True
        worker.outbox.send(LEAVE, "null")
        policy = self.policy
        patience = policy.drainTimeout + policy.shutdownTimeout + policy.answerTimeout + PATIENCE
        self.clock.callLater(patience, self._killIfThere, worker)

    def _killIfThere(self, worker: _Worker) -> None:
        if self._workers.get(worker.number) is worker:
            log.error("{worker} did not end; killing it", worker=worker)
            worker.signal("KILL")

    async def replaceWorkers(self) -> None:
        """
        Start new workers with the present settings and the present code.  When a new worker serves,
        an old one accepts no more connections, and ends when its last session has ended.

        @raise ValueError: some new workers could not serve, so their old workers go on.
        """
        await self._succession.run(self._pairs, self._start)

    def _pairs(self) -> list[tuple[int, _Worker]]:
        """
        @return: for each worker to replace, the number of the new worker and the old worker.
        """
        if self._stopped is not None or self.isDraining:
            return []
        old = [each for each in self._workers.values() if not each.leaves]
        if not any(each.serves for each in old):
            # No worker serves with the previous text, so that further workers try the present one.
            self._served = ()
        return list(enumerate(old, max(self._tried, default=0) + 1))

    def _keepOld(self, worker: _Worker, how: str) -> None:
        """
        Keep the old worker, because the new one could not serve.  If the old one has ended, start
        the new one again.
        """
        old = self._succession.failed(worker.number, how)
        if self._workers.get(old.number) is not old:
            self._restart(worker, how)

    def _giveUp(self, worker: _Worker) -> None:
        """
        Stop the service if no worker has ever served, because clients would wait forever.
        """
        if self._haveServed or self._reading or len(self._tried) < self._shared.of:
            return
        if self._stopped is None:
            why = worker.lastOutput or "no output"
            giveUp(self.clock, f"no worker can serve; last output: {why}")

    def ended(self, worker: _Worker, reason: Any) -> None:
        """
        Note that a worker has ended.  Start another worker if the service still needs one.
        """
        del self._workers[worker.number]
        how = "ended"
        if worker.isHanging:
            seconds = self.policy.workerHangTimeout
            how = f"sent no heartbeat for {seconds} s and was killed"
        elif reason.signal is not None:
            how = f"died by {signal.Signals(reason.signal).name}"
        elif reason.exitCode:
            how = f"ended with status {reason.exitCode}"
        isServing = self._stopped is None and not self.isDraining
        if worker.leaves and how == "ended":
            log.info("worker {number} has ended after its last session", number=worker.number)
        elif isServing and self._succession.isPending(worker.number):
            # Wait for the rest of the worker's output, which says why the worker has ended.
            worker.how = how
        elif isServing and self._succession.hasSuccessor(worker):
            log.error("worker {number} {how}", number=worker.number, how=how)
        elif isServing and not worker.leaves:
            self._restart(worker, how)
        elif how != "ended":
            log.error("worker {number} {how}", number=worker.number, how=how)

    def outputEnded(self, worker: _Worker) -> None:
        """
        Note that a worker has ended and that all its output has been read.
        """
        self._reading.discard(worker)
        self.asked.workerEnded(worker)
        if self.numbers is not None:
            self.numbers.workerEnded(worker)
        if worker.how and self._succession.isPending(worker.number):
            self._keepOld(worker, worker.lastOutput or worker.how)
            self._succession.look()
        if self.isDraining and not self._reading:
            self._end()
        else:
            self._giveUp(worker)
        if not self._reading:
            self._over()

    def _end(self) -> None:
        """
        End the service, because all workers have ended after their last sessions.
        """
        if self._stopped is None:
            log.info("drained")
            self.clock.stop()

    def _over(self) -> None:
        if self._stopped is not None and not self._stopped.called:
            self._stopped.callback(None)

    def _restart(self, worker: _Worker, how: str) -> None:
        self.restarts += 1
        longest = self.policy.maxRestartDelay
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

    def forward(self, sender: _Worker, kind: bytes, text: str) -> None:
        """
        Forward a line from one worker to the other workers.
        """
        if kind == STRIKE:
            self.throttle.heard(*json.loads(text))
        self._sendAll(kind, text, sender)

    def _sendAll(self, kind: bytes, text: str, sender: _Worker | None = None) -> None:
        for worker in self._workers.values():
            if worker is not sender and worker.outbox is not None:
                worker.outbox.send(kind, text)

    # --- the operator -----------------------------------------------------------------

    @property
    def workers(self) -> list[_Worker]:
        """
        The workers that run.
        """
        return list(self._workers.values())

    @property
    def serving(self) -> list[_Worker]:
        """
        The workers that serve, including the workers that will end after their last sessions.
        """
        return [each for each in self._workers.values() if each.serves]

    def describe(self) -> str:
        """
        @return: the state in a few words, for systemd.
        """
        sessions = sum(each.sessions for each in self._workers.values())
        if self.isDraining:
            return f"draining; {sessions} sessions are left"
        serving = sum(not each.leaves for each in self.serving)
        return f"{sessions} sessions; {serving} of {self._shared.of} workers serve"

    @property
    def reading(self) -> frozenset[_Worker]:
        """
        The workers that run, and the workers that have ended but whose output has not been read to
        its end.
        """
        return frozenset(self._reading)

    def counted(self, worker: _Worker, numbers: Mapping[str, Any]) -> None:
        """
        Pass on the numbers that a worker has counted until its end.
        """
        if self.numbers is not None:
            self.numbers.lastNumbers(worker, numbers)

    def ask(
        self, worker: _Worker, name: str, arguments: Mapping[str, str], send: Any
    ) -> Deferred[Any]:
        """
        Ask a worker to carry out an operation; see L{Asked.ask}.
        """
        outbox = worker.outbox
        assert outbox is not None

        def write(question: Mapping[str, Any]) -> None:
            outbox.send(ASK, json.dumps(question))

        return self.asked.ask(worker, write, name, arguments, send)

    def tellStrike(self, event: str, clientIP: str | None, username: str, guess: str) -> None:
        """
        Tell all workers about a ban that the operator has ordered or lifted, or about an attempt to
        log in to the operator's page.
        """
        self._sendAll(STRIKE, json.dumps([event, clientIP, username, guess]))

    def drain(self) -> None:
        """
        Let the workers admit no more logins, and end when nobody is logged in any more.  Then the
        service ends.
        """
        if self.isDraining:
            return
        self.isDraining = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._sendAll(DRAIN, "null")
        if not self._reading:
            self._end()

    # --- the end ----------------------------------------------------------------------

    def stopService(self) -> Deferred[Any]:
        """
        See L{twisted.application.service.IService.stopService}.  Stop the workers, and wait
        as long as a session and a deletion may take to end.
        """
        stopped: Deferred[None] = Deferred()
        self._stopped = stopped
        if self._looking.running:
            self._looking.stop()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        # A port closes when the parent and all workers have closed their copies of the socket.
        for each in self._sockets:
            each.close()
        for worker in self._workers.values():
            worker.signal("TERM")
        if not self._reading:
            self._over()
        patience = self.policy.shutdownTimeout + self.policy.answerTimeout + PATIENCE
        timers = [
            self.clock.callLater(patience, self._kill),
            # Do not wait longer for the output, because another process may still hold the pipe of
            # a worker that has ended.
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
