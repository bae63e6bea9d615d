"""
Start the service and stop it in order, with its ports and the known networks.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from twisted.application.internet import TimerService
from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.error import CannotListenError, ReactorNotRunning
from twisted.logger import Logger
from twisted.python.failure import Failure

from pop3svc.accounts.hashing import startHashing
from pop3svc.accounts.knownnetworks import KnownNetworks
from pop3svc.accounts.throttle import SharedThrottle
from pop3svc.files import disk, longWork
from pop3svc.interfaces import IHousekeeping
from pop3svc.logrecords import JournalLog
from pop3svc.logs import Log
from pop3svc.service.accepting import AcceptLimiter, raiseLimit
from pop3svc.service.certificates import Certificates
from pop3svc.service.factory import POP3Factory
from pop3svc.service.keepalive import keepAlive, socketOf
from pop3svc.service.operating import Operated
from pop3svc.service.settings import SettingError

if TYPE_CHECKING:
    from pop3svc.delivery.lmtp import LMTPFactory

__all__ = ["HousekeepingService", "KnownNetworksService", "POP3Service", "exitInOrder", "lookAfter"]

log = Logger(namespace="pop3svc")


class POP3Service(Operated):
    """
    The service: it listens on its ports, serves clients, and ends in order.

    @ivar isDraining: whether the service admits no more logins; see L{drain}.
    """

    # Seconds between two checks whether anybody is still logged in.
    DRAIN_LOOK = 0.5

    def __init__(
        self,
        reactor: Any,
        factory: POP3Factory,
        throttle: SharedThrottle,
        takesTurns: bool = False,
        observer: Log | JournalLog | None = None,
    ) -> None:
        """
        @param throttle: counts failed logins.
        @param takesTurns: see L{AcceptLimiter}.
        @param observer: see L{Operated}.
        """
        super().__init__(observer)
        self._reactor = reactor
        self.factory = factory
        self.throttle = throttle
        self.ports: list[Any] = []
        self._lmtp: LMTPFactory | None = None
        self.isDraining = False
        self._isFirst = True
        raiseLimit()
        self._accepting = AcceptLimiter(reactor, takesTurns=takesTurns, inUse=self._inUse)
        factory.admission.accepted = self._accepting.accepted
        factory.admission.mayServe = self._accepting.mayServe

    def takeMail(self, lmtp: LMTPFactory) -> None:
        """
        @param lmtp: receives mail.  The descriptors of its connections count like those of
            sessions, and its connections end with the service.
        """
        self._lmtp = lmtp
        lmtp.accepted = self._accepting.accepted

    def _inUse(self) -> tuple[int, int]:
        connections, awake = self.factory.admission.inUse
        # Count a connection that delivers mail like a session, because it may have as many
        # descriptors open.
        mail = 0 if self._lmtp is None else len(self._lmtp.connections)
        return connections + mail, awake + mail

    def listen(self, where: str, endpoint: Any, factory: Any) -> list[Any]:
        """
        Open a port now, while the process has the privileges for it.

        @param where: the option or the key that names the port, for messages to the operator.
        @param factory: makes the protocols of the port's connections.
        @return: the ports that are open already: one port, or none if the endpoint opens its port
            later.
        @raise SettingError: the port cannot be opened.
        """
        before = len(self.ports)
        listening: Deferred[Any] = endpoint.listen(factory)
        failures: list[Failure] = []
        listening.addCallbacks(self._opened, failures.append)
        if failures:
            error = failures[0].value
            if isinstance(error, CannotListenError):
                cause = error.socketError
                raise SettingError(f"{where}: {getattr(cause, 'strerror', None) or cause}")
            raise SettingError(f"{where}: {error}")
        if not listening.called:
            listening.addErrback(self._lateFailure, where)
        return self.ports[before:]

    def _opened(self, port: Any) -> None:
        self.ports.append(port)
        self._accepting.add(port)
        if getattr(getattr(port, "socket", None), "family", None) == socket.AF_UNIX:
            # Connections to a UNIX socket need no keepalive.
            return
        found = socketOf(port)
        handsOn = found is not None and keepAlive(found, self.factory.policy)
        # A connection does not know its port, so this value is true only if the connections of all
        # ports inherit the options.
        self.factory.portsKeepAlive = handsOn and (self._isFirst or self.factory.portsKeepAlive)
        self._isFirst = False

    def _lateFailure(self, failure: Failure, where: str) -> None:
        log.failure("{where}: cannot listen", failure, where=where)
        self._reactor.stop()

    def startService(self) -> None:
        """
        See L{twisted.application.service.IService.startService}.
        """
        super().startService()
        # Start the threads now, because later the system might have no room for more threads.
        disk().start()
        longWork().start()
        startHashing()

    def drain(self) -> None:
        """
        Admit no more logins, and stop when nobody is logged in any more, or when
        C{drainTimeout} is over.
        """
        if self.isDraining:
            return
        self.isDraining = True
        self.factory.admission.drain()
        seconds = self.factory.policy.drainTimeout
        log.info("draining: no more logins; stopping after {seconds} s at most", seconds=seconds)
        self._lookDrained(self._reactor.seconds() + seconds)

    def describe(self) -> str:
        """
        @return: the state in a few words, for systemd.
        """
        sessions = self.factory.admission.loggedIn
        return (
            f"draining; {sessions} sessions are left" if self.isDraining else f"{sessions} sessions"
        )

    def leave(self) -> None:
        """
        Accept no more connections, because another process has taken over the ports.  Existing
        connections go on, and clients may still log in on them.  The process stops when the last
        connection has ended, or when C{drainTimeout} is over.
        """
        self._accepting.stop()
        ports, self.ports = self.ports, []
        for port in ports:
            port.stopListening()
        self._lookEmpty(self._reactor.seconds() + self.factory.policy.drainTimeout)

    def _lookEmpty(self, end: float) -> None:
        count, _ = self._inUse()
        if count and self._reactor.seconds() < end:
            self._reactor.callLater(self.DRAIN_LOOK, self._lookEmpty, end)
            return
        try:
            self._reactor.stop()
        except ReactorNotRunning:
            pass

    def _lookDrained(self, end: float) -> None:
        count = self.factory.admission.loggedIn
        if count and self._reactor.seconds() < end:
            self._reactor.callLater(self.DRAIN_LOOK, self._lookDrained, end)
            return
        log.info("drained: {count} sessions are left", count=count)
        try:
            self._reactor.stop()
        except ReactorNotRunning:
            pass

    def stopService(self) -> Deferred[Any]:
        """
        Stop accepting connections, wait for running commands, and stop all other parts.
        See L{twisted.application.service.IService.stopService}.
        """
        self._accepting.stop()
        stopping: list[Deferred[Any]] = []
        for port in self.ports:
            stopped = port.stopListening()
            if isinstance(stopped, Deferred):
                stopping.append(stopped)
        stopping.append(Deferred.fromCoroutine(self.factory.shutdown()))
        if self._lmtp is not None:
            stopping.append(Deferred.fromCoroutine(self._lmtp.shutdown()))

        def others(_: object) -> Any:
            return super(POP3Service, self).stopService()  # type: ignore[no-untyped-call]

        return gatherResults(stopping).addBoth(others)


class HousekeepingService(Service):
    """
    Starts and stops the regular work that a provider or a store does by itself; see
    L{IHousekeeping}.
    """

    def __init__(self, part: IHousekeeping) -> None:
        """
        @param part: the provider or store.
        """
        self._part = part

    def startService(self) -> None:
        """
        See L{twisted.application.service.IService.startService}.
        """
        super().startService()  # type: ignore[no-untyped-call]
        self._part.startHousekeeping()

    def stopService(self) -> None:
        """
        See L{twisted.application.service.IService.stopService}.
        """
        self._part.stopHousekeeping()
        super().stopService()  # type: ignore[no-untyped-call]


class KnownNetworksService(TimerService):
    """
    Reads the known networks at the start.  Writes them once a minute, and at the end.
    """

    # Seconds between two writes.  Each write stores what has changed, so a crash loses at most the
    # changes of this time.
    EVERY = 60

    def __init__(self, known: KnownNetworks) -> None:
        super().__init__(self.EVERY, self._save)  # type: ignore[no-untyped-call]
        self._known = known

    def _save(self) -> Deferred[None]:
        saved: Deferred[None] = Deferred.fromCoroutine(self._known.save())
        # Catch errors, because TimerService would stop after a failure.  The next call tries again.
        saved.addErrback(lambda failure: log.failure("cannot store the known networks", failure))
        return saved

    def startService(self) -> None:
        """
        See L{twisted.application.service.IService.startService}.
        """
        super().startService()  # type: ignore[no-untyped-call]
        loaded = Deferred.fromCoroutine(self._known.load())
        loaded.addErrback(lambda failure: log.failure("cannot read the known networks", failure))

    def stopService(self) -> Any:
        """
        See L{twisted.application.service.IService.stopService}.
        """
        stopped = super().stopService()  # type: ignore[no-untyped-call]
        return gatherResults([maybeDeferred(lambda: stopped), self._save()])


def lookAfter(certificates: Certificates) -> TimerService:
    """
    Make a service that checks all certificates at the start and every hour.
    """
    return TimerService(3600, certificates.look)


def exitInOrder(reactor: Any, signals: Sequence[int]) -> None:
    """
    Exit with status 0 on the given signals.  The reactor's own handlers are not enough.  With them,
    twistd would send itself the signal again after the reactor has stopped.
    """

    def stop(*_: object) -> None:
        def once() -> None:
            try:
                reactor.stop()
            except ReactorNotRunning:
                pass

        reactor.callFromThread(once)

    def install() -> None:
        for number in signals:
            signal.signal(number, stop)

    reactor.callWhenRunning(install)
