"""
What an operator needs of a service that runs: its log, and the signals that have it read
its configuration again.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized

from pop3svc.awaiting import maybeAwait
from pop3svc.logs import FileSink, Log, Sink, StreamSink, SyslogSink, escaped

__all__ = ["Operated", "Signals", "giveUp", "makeLog", "signals"]

log = Logger(namespace="pop3svc")

_STREAMS = {"-": 1, "/dev/stdout": 1, "/dev/stderr": 2}


def makeLog(twistd: Mapping[str, Any], reactor: Any, owner: tuple[int, int] | None) -> Log | None:
    """
    Open the log that twistd's options ask for.  Unlike twistd's own it is only appended to,
    can be opened anew, and never waits for its reader.

    @param twistd: its options.
    @param owner: the user and group that a new file is for.
    @return: L{None} if they name an observer of their own.
    @raise ValueError: a sentence for the operator.
    """
    if twistd.get("logger"):
        return None
    name, isDaemon = twistd.get("logfile"), not twistd.get("nodaemon")
    if not name:
        name = "twistd.log" if isDaemon else "-"
    sink: Sink
    try:
        if twistd.get("syslog"):
            sink = SyslogSink(twistd.get("prefix") or "pop3svc")
        elif name in _STREAMS:
            if isDaemon:
                raise ValueError(f"--logfile {name}: a daemon has no standard output; use -n")
            sys.stdout.flush()
            sink = StreamSink(_STREAMS[name])
        else:
            sink = FileSink(name, owner)
    except OSError as error:
        raise ValueError(f"--logfile {name}: {error.strerror}")
    return Log(sink, reactor)


def giveUp(reactor: Any, sentence: str) -> None:
    """
    End the service, as it cannot serve: with a sentence, and exit status 1.
    """
    log.critical("{sentence}", sentence=sentence)
    print(f"pop3svc: {escaped(sentence)}", file=sys.__stderr__)
    # twistd ends with 0 whenever its reactor was stopped, and only after all else is done.
    atexit.register(os._exit, 1)
    reactor.stop()


class Signals:
    """
    SIGHUP and SIGUSR1, whose default is the end of the process.
    """

    NUMBERS = (signal.SIGHUP, signal.SIGUSR1)

    def __init__(self) -> None:
        self._held: list[int] = []
        self._call: Callable[[int], object] = self._held.append

    def hold(self) -> None:
        """
        From now on they end nothing; those that come before L{serve} are kept.
        """
        for number in self.NUMBERS:
            try:
                signal.signal(number, self._came)
            except ValueError:
                # In another thread than the first, as in a test: nobody sends any.
                return

    def _came(self, number: int, frame: object) -> None:
        self._call(number)

    def serve(self, reactor: Any, calls: Mapping[int, Callable[[], object]]) -> None:
        """
        @param calls: what is to be done in the reactor's thread, by signal.
        """
        self._call = lambda number: reactor.callFromThread(calls[number])
        held, self._held = self._held, []
        for number in dict.fromkeys(held):
            self._call(number)


signals = Signals()


class Operated(MultiService):
    """
    A service that twistd starts: it hears its operator.

    @ivar announcements: lines for the log when it starts.
    @ivar warnings: the same, of what is not as it should be.
    """

    def __init__(self, observer: Log | None = None) -> None:
        """
        @param observer: where the log goes, or L{None} if that is not ours to say.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.announcements: list[str] = []
        self.warnings: list[str] = []
        self._log = observer
        self._parts: list[tuple[str, Callable[[], Any]]] = []

    def setServiceParent(self, parent: Any) -> None:
        """
        See L{twisted.application.service.IService.setServiceParent}: the application
        says where the log goes.
        """
        super().setServiceParent(parent)  # type: ignore[no-untyped-call]
        if self._log is not None and isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self._log)

    def startService(self) -> None:
        """
        See L{twisted.application.service.IService.startService}.
        """
        super().startService()  # type: ignore[no-untyped-call]
        for line in self.announcements:
            log.info("{line}", line=line)
        for line in self.warnings:
            log.warn("{line}", line=line)

    def hear(self, reactor: Any) -> None:
        """
        Do from now on what signals ask for.
        """
        signals.serve(
            reactor,
            {
                signal.SIGHUP: lambda: Deferred.fromCoroutine(self.reload(True)),
                signal.SIGUSR1: self.reopenLog,
            },
        )

    def reloads(self, what: str, call: Callable[[], Any]) -> None:
        """
        Something is to be read again when the operator asks for it.

        @param what: its name, for the log.
        @param call: may give a Deferred or a coroutine, and raise L{ValueError} with
            a sentence, if it goes on with what it had.
        """
        self._parts.append((what, call))

    def reopenLog(self) -> None:
        """
        Open the log anew; where it cannot be opened it goes on as it was.
        """
        if self._log is None:
            return
        try:
            self._log.reopen()
        except OSError as error:
            log.error(
                "cannot reopen the log, keeping the open one: {path}: {error}",
                path=error.filename,
                error=error.strerror,
            )

    async def reload(self, isFirst: bool = False) -> None:
        """
        Read again what the service was configured by.

        @param isFirst: was this process asked by the operator itself?
        """
        if isFirst:
            self.reopenLog()
        for what, call in list(self._parts):
            try:
                await maybeAwait(call)
            except (ValueError, OSError) as error:
                log.error("{what}: {error}", what=what, error=str(error))
            except Exception:
                log.failure("{what}: reload failed", what=what)
        if isFirst:
            what = ", ".join(what for what, _ in self._parts)
            log.info("reloaded after SIGHUP: the log, {what}", what=what)
