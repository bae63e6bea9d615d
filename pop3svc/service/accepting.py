"""
Accept connections, and pause when file descriptors run out.
"""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IListeningPort, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pop3svc.service.loop import Loop
from pop3svc.service.sockets import addressOf
from pop3svc.service.tlstransport import PlainTransport, SecureTransport
from pop3svc.service.transport import LOST, SocketTransport

__all__ = ["AcceptLimiter", "SocketPort", "raiseLimit"]

log = Logger(namespace="pop3svc")


# By default, Linux allows a process no more descriptors than this number (fs.nr_open).
_MOST = 1_048_576
# The errors of accept() if descriptors or memory run out.
_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def _lowestFree() -> int | None:
    """
    @return: the lowest descriptor that is not in use; L{None} if no descriptor is free.
    """
    try:
        descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    os.close(descriptor)
    return descriptor


def _openNow() -> int:
    """
    @return: the number of open descriptors.
    """
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        lowest = _lowestFree()
        return 0 if lowest is None else lowest


def raiseLimit() -> None:
    """
    Raise the soft limit of descriptors to the hard limit.  The usual soft limit of 1,024 exists for
    the sake of programs that use select(), which this service does not use.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            # The service also runs with the present limit.
            pass


@implementer(IListeningPort)
class SocketPort:
    """
    Accepts the connections of a Twisted port itself, and gives each connection the service's own
    transport, a L{SocketTransport}.

    @ivar limiter: says how many connections to accept.
    @ivar socket: the listening socket.
    """

    isPort = True
    limiter: AcceptLimiter

    def __init__(self, port: Any, factory: Any, loop: Loop, connectionCreator: Any = None) -> None:
        """
        @param port: a L{twisted.internet.tcp.Port} that listens.  The port itself accepts no
            connections from now on.
        @param factory: makes the protocols.
        @param connectionCreator: makes the TLS connections of a port that uses TLS from the first
            octet; L{None} for a port without TLS.
        """
        port.stopReading()
        self._port = port
        self._factory = factory
        self._loop = loop
        self._connectionCreator = connectionCreator
        self._isReading = False
        self.socket: socket.socket = port.socket
        # The family is stored, because each access to socket.family takes time to make an
        # enumeration member.
        self._family = int(self.socket.family)
        if self._family != socket.AF_UNIX:
            # Connections inherit this option from the listening socket.  Without the option, the
            # second part of a reply would wait until the client has acknowledged the first part.
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The most calls to accept() in one turn.  A call that finds no connection takes as much
        # time as a call that finds one, so a port that is not busy gets one call.
        self._expected = 1
        self.startReading()

    @property
    def disconnected(self) -> bool:
        """
        Whether the port is closed or is being closed.
        """
        return bool(self._port.disconnected or self._port.disconnecting)

    def startListening(self) -> None:
        """
        See L{IListeningPort}.  The port listens already.
        """

    def stopListening(self) -> Any:
        """
        See L{IListeningPort}.
        """
        self.stopReading()
        return self._port.stopListening()

    def getHost(self) -> Any:
        """
        See L{IListeningPort}.
        """
        return self._port.getHost()

    def startReading(self) -> None:
        """
        Accept connections.
        """
        if not self._isReading:
            self._isReading = True
            self._loop.watch(self.socket.fileno(), self, select.EPOLLIN)

    def stopReading(self) -> None:
        """
        Accept no connections for now.
        """
        if self._isReading:
            self._isReading = False
            self._loop.forget(self.socket.fileno())

    def connectionLost(self, reason: Failure) -> None:
        """
        Accept no more connections, because the reactor ends.
        """
        self.stopReading()

    def accept(self) -> None:
        """
        Accept connections that wait, but no more than the limiter admits.
        """
        most = min(self._expected, self.limiter.mayAccept())
        accepted = 0
        while accepted < most and self._isReading:
            try:
                connected, name = self.socket.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _SHORT:
                    self.limiter.pause()
                # Any other error concerns one connection, which the client or a firewall has
                # already closed.
                break
            accepted += 1
            self._serve(connected, name)
        self._expected = 2 * accepted if accepted == self._expected else max(accepted, 1)

    def _serve(self, connected: socket.socket, name: Any) -> None:
        connected.setblocking(False)
        protocol: Any = None
        try:
            address = addressOf(self._family, name)
            protocol = self._factory.buildProtocol(address)
            if protocol is None:
                connected.close()
                return
            if self._connectionCreator is None:
                transport: SocketTransport = PlainTransport(self._loop, connected, address)
            else:
                # Make a SecureTransport at once.  A PlainTransport that startTLS() turns into a
                # SecureTransport takes more memory, because its class changes.
                transport = SecureTransport(self._loop, connected, address)
                transport.beginTLS(self._connectionCreator.connectionOn(connected.fileno()))
            transport.begin(protocol)
        except Exception:
            log.failure("cannot serve a connection")
            connected.close()
            if protocol is not None:
                # Tell the protocol that the connection is lost, because the factory may have
                # counted the connection.
                protocol.connectionLost(LOST)


class AcceptLimiter:
    """
    Stops accepting connections before all descriptors are in use, because sessions need descriptors
    for their mailboxes.  The limiter lets the ports accept connections again when enough
    descriptors are free.  New clients wait in the kernel's queue meanwhile.
    """

    # For sessions the limiter reserves KEPT descriptors, or 1/SHARE of the limit if that is less.
    # The limiter checks the free descriptors again when new connections have used 1/UNSEEN of the
    # reserved number.
    KEPT, SHARE, UNSEEN = 256, 4, 8
    # Seconds between two checks of the free descriptors while no connections are accepted.
    LOOK = 0.25
    # The most descriptors that a session which is not asleep has besides its connection.  They are
    # for its mailbox, for a message, for the directory of this message, and for a temporary file.
    EACH = 4
    # Descriptors reserved for other work, such as threads that read directories, and for reading
    # the configuration again.
    SPARE = 32

    def __init__(
        self,
        clock: IReactorTime,
        limit: int | None = None,
        takesTurns: bool = False,
        inUse: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        """
        @param limit: the limit of descriptors; L{None} for the limit of the process.
        @param takesTurns: whether to accept only one connection in each turn of the reactor.  True
            is for several processes that accept from the same sockets, because an idle process can
            then accept the next connection.
        @param inUse: returns the number of connections, and the number of sessions that are
            not asleep.
        """
        self._ports: list[Any] = []
        self._clock = clock
        if limit is None:
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._limit = limit
        self._inUse = inUse
        # The number of descriptors that are in use, except the descriptors of connections.  The
        # limiter counts them at the first connection, because the service opens files until then.
        self._atFirst = -1
        self._refuses = False
        kept = min(self.KEPT, limit // self.SHARE)
        self._spare = min(self.SPARE, limit // 8)
        self._stopAt, self._goOnAt = limit - kept, limit - kept - kept // 4
        self._unseen, self._mayBeUnseen = 0, kept // self.UNSEEN
        # The most connections that a port accepts in one turn of the reactor.  Nothing can stop a
        # port of Twisted during the turn.
        self._burst = 1 if takesTurns else max(kept // 2, 1)
        self._timer: IDelayedCall | None = None

    def add(self, port: Any) -> None:
        """
        Add a listening port.
        """
        self._ports.append(port)
        if isinstance(port, SocketPort):
            port.limiter = self
            return
        read = port.doRead

        def doRead() -> Any:
            if not self.mayAccept():
                return None
            # Set this value each time, because Twisted itself changes it.
            port.numberAccepts = self._burst
            return read()

        port.doRead = doRead

    def mayAccept(self) -> int:
        """
        @return: the number of connections that a port may accept now.
        """
        if not self.isPaused and self._isShort():
            # The reason is, for example, that clients have logged in since the last check.
            self.pause()
        return 0 if self.isPaused else self._burst

    def _needed(self) -> int:
        """
        @return: the number of descriptors that the service needs if each present session opens as
            many as it may.
        """
        connections, awake = self._inUse()
        if self._atFirst < 0:
            self._atFirst = max(_openNow() - connections, 0)
        return self._atFirst + connections + self.EACH * awake

    def _isShort(self, more: int = 0) -> bool:
        """
        @return: whether too few descriptors are free.  Enough descriptors must be free for the
            connections of one turn of the reactor, and for the logins of some of their clients.
        """
        logins = max(self.EACH, self._limit // 16)
        return self._needed() + self._burst + more + logins + self._spare > self._limit

    def mayServe(self) -> bool:
        """
        @return: whether enough descriptors are free for another session.  The descriptors that the
            present sessions may need do not count as free.
        """
        needed = self._needed() + self.EACH + self._spare
        isEnough = needed <= self._limit
        if isEnough and needed > self._limit // 2:
            # Other code may have opened descriptors that the limiter has not counted.
            lowest = _lowestFree()
            isEnough = lowest is not None and lowest + self.EACH + self._spare <= self._limit
        if isEnough:
            self._refuses = False
        elif not self._refuses:
            self._refuses = True
            log.warn(
                "refusing logins: the limit of {limit} file descriptors leaves no room for "
                "more sessions",
                limit=self._limit,
            )
        return isEnough

    @property
    def isPaused(self) -> bool:
        """
        Whether accepting is paused.
        """
        return self._timer is not None

    def accepted(self) -> None:
        """
        Count an accepted connection.  After a number of connections, check the free descriptors.
        """
        if self.isPaused:
            return
        self._unseen += 1
        if self._unseen <= self._mayBeUnseen:
            return
        self._unseen = 0
        lowest = _lowestFree()
        if lowest is None or lowest >= self._stopAt or self._isShort():
            self.pause()

    def pause(self) -> None:
        """
        Stop accepting connections until enough descriptors are free.
        """
        if self.isPaused:
            return
        log.warn("not accepting connections: low on file descriptors")
        self._timer = self._clock.callLater(self.LOOK, self._look)
        for port in self._ports:
            port.stopReading()

    def _look(self) -> None:
        lowest = _lowestFree()
        if lowest is None or lowest >= self._goOnAt or self._isShort(self._spare):
            self._timer = self._clock.callLater(self.LOOK, self._look)
            return
        self._timer = None
        log.info("accepting connections again")
        for port in self._ports:
            if not getattr(port, "disconnected", False):
                port.startReading()

    def stop(self) -> None:
        """
        Stop checking the descriptors, because the ports are about to be closed.
        """
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
