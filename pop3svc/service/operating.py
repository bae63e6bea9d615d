"""
Open the log of a service, and handle the signals that reload the configuration and reopen the log.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized

from pop3svc.awaiting import Shielded, maybeAwait, settled
from pop3svc.logrecords import JournalLog, isJournal, jsonLine
from pop3svc.logs import FileSink, Form, Log, Sink, StreamSink, SyslogSink, TextForm, escaped

if TYPE_CHECKING:
    from pop3svc.service.notifying import Notifier

__all__ = ["Operated", "Signals", "giveUp", "makeLog", "signals"]

log = Logger(namespace="pop3svc")

_STREAMS = {"-": 1, "/dev/stdout": 1, "/dev/stderr": 2}


def makeLog(
    twistd: Mapping[str, Any],
    reactor: Any,
    owner: tuple[int, int] | None,
    form: str = "text",
    delay: int = 0,
) -> Log | JournalLog | None:
    """
    Open the log that twistd's options name.  Unlike twistd's own log, this log never rotates its
    file, but can be reopened, and the service never waits for the log's reader.

    @param twistd: twistd's options.
    @param owner: the user and the group that own a new file; L{None} for those of this process.
    @param form: the setting C{log-format}: text, json or journal.  If text goes to the journal of
        systemd, each line begins with its priority.
    @param delay: the milliseconds for which a line may wait for further lines while the reactor
        runs; see L{Log.gather}.
    @return: the log; L{None} if C{--logger} names an observer.
    @raise ValueError: the log cannot be opened.  The text is a sentence for the operator.
    """
    if twistd.get("logger"):
        if form != "text":
            raise ValueError(f"--log-format {form}: it cannot be combined with --logger")
        return None
    name, isDaemon = twistd.get("logfile"), not twistd.get("nodaemon")
    if not name:
        name = "twistd.log" if isDaemon else "-"
    sink: Sink
    isPlain = True
    try:
        if twistd.get("syslog"):
            sink = SyslogSink(twistd.get("prefix") or "pop3svc")
        elif name in _STREAMS:
            if isDaemon:
                raise ValueError(f"--logfile {name}: a daemon has no standard output; use -n")
            sys.stdout.flush()
            sink = StreamSink(_STREAMS[name])
            isPlain = not isJournal(_STREAMS[name])
        else:
            sink = FileSink(name, owner)
    except OSError as error:
        raise ValueError(f"--logfile {name}: {error.strerror}")
    lines: Form = TextForm(sink.hasTime, hasPriority=not isPlain)
    made = Log(sink, reactor, jsonLine if form == "json" else lines)
    if delay:
        reactor.callWhenRunning(made.gather, delay / 1000)
        reactor.addSystemEventTrigger("after", "shutdown", made.writeAtOnce)
    return JournalLog(made) if form == "journal" else made


def giveUp(reactor: Any, sentence: str) -> None:
    """
    End a service that cannot serve, with exit status 1.

    @param sentence: the reason, which goes to the log and to the standard error.
    """
    log.critical("{sentence}", sentence=sentence)
    print(f"pop3svc: {escaped(sentence)}", file=sys.__stderr__)
    # Set the exit status at the exit of the process, because twistd exits with status 0 when its
    # reactor has been stopped.
    atexit.register(os._exit, 1)
    reactor.stop()


class Signals:
    """
    Handles SIGHUP and SIGUSR1, because these signals would end the process by default.
    """

    NUMBERS = (signal.SIGHUP, signal.SIGUSR1)

    def __init__(self) -> None:
        self._held: list[int] = []
        self._call: Callable[[int], object] = self._held.append

    def hold(self) -> None:
        """
        Install the handler.  The handler keeps the signals that arrive, and L{serve} handles them
        later.
        """
        for number in self.NUMBERS:
            try:
                signal.signal(number, self._came)
            except ValueError:
                # A test may call this method outside the main thread, where no handler can be
                # installed.
                return

    def _came(self, number: int, frame: object) -> None:
        self._call(number)

    def serve(self, reactor: Any, calls: Mapping[int, Callable[[], object]]) -> None:
        """
        Handle signals from now on.

        @param calls: for each signal, the function to call in the reactor's thread.
        """
        self._call = lambda number: reactor.callFromThread(calls[number])
        held, self._held = self._held, []
        for number in dict.fromkeys(held):
            self._call(number)


signals = Signals()


class Operated(MultiService):
    """
    A service that twistd starts, with a log and signals for the operator.

    @ivar announcements: lines that the service logs when it starts.
    @ivar warnings: warnings that the service logs when it starts.
    @ivar notifier: tells systemd about the state of the service; L{None} if systemd has not asked.
    """

    def __init__(self, observer: Log | JournalLog | None = None) -> None:
        """
        @param observer: the log of the service; L{None} to keep the log of twistd.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.announcements: list[str] = []
        self.warnings: list[str] = []
        self.notifier: Notifier | None = None
        self._log = observer
        self._parts: list[tuple[str, Callable[[], Any]]] = []

    def setServiceParent(self, parent: Any) -> None:
        """
        See L{twisted.application.service.IService.setServiceParent}.  This method also sets the log
        of the application.
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
        Handle signals from now on.
        """
        signals.serve(
            reactor,
            {
                signal.SIGHUP: lambda: Deferred.fromCoroutine(self.reload("after SIGHUP")),
                signal.SIGUSR1: self.reopenLog,
            },
        )

    def reloads(self, what: str, call: Callable[[], Any]) -> None:
        """
        Add a part of the configuration that is read again at each reload.

        @param what: the name of this part in the log.
        @param call: reads the part again.  The function may return a Deferred or a coroutine.  The
            function raises L{ValueError} with a sentence if the part keeps the previous
            configuration.
        """
        self._parts.append((what, call))

    def reopenLog(self) -> None:
        """
        Reopen the log.  If the log cannot be reopened, keep the open file.
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

    async def reload(self, reason: str) -> list[str]:
        """
        Reopen the log, and read the configuration again.  A reload that has begun goes on even if
        the caller no longer waits for it.  Otherwise a part could have a mixture of the old and the
        new configuration.

        @param reason: the order of the operator that has caused the reload, for the log.
        @return: a sentence for each part that has kept its previous configuration.
        """
        faults: list[str] = await settled(Shielded(self._notifiedReload, reason).outcome())
        return faults

    async def _notifiedReload(self, reason: str) -> list[str]:
        if self.notifier is None:
            return await self._reload(reason)
        self.notifier.reloading()
        try:
            return await self._reload(reason)
        finally:
            self.notifier.reloaded()

    async def _reload(self, reason: str) -> list[str]:
        faults = []
        self.reopenLog()
        for what, call in list(self._parts):
            try:
                await maybeAwait(call)
            except (ValueError, OSError) as error:
                faults.append(f"{what}: {error}")
                log.error("{fault}", fault=faults[-1])
            except Exception:
                faults.append(f"{what}: the reload failed, as the log shows")
                log.failure("{what}: reload failed", what=what)
        what = ", ".join(what for what, _ in self._parts)
        log.info("reloaded {reason}: the log, {what}", reason=reason, what=what)
        return faults
