"""
Pause accepting connections when file descriptors run out.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

__all__ = ["AcceptLimiter", "raiseLimit"]

log = Logger(namespace="pop3svc")


# More descriptors than any configured number of connections needs.
_MOST = 1_048_576


def _lowestFree() -> int | None:
    """
    @return: the lowest descriptor that is not in use; L{None} if all are in use.  All lower
        descriptors are in use.
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
    Raise the soft limit of descriptors to the hard limit.  The usual soft limit of 1,024 is
    meant for programs that use select().
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            # Keep the present limit.
            pass


class AcceptLimiter:
    """
    Stops accepting connections before all descriptors are in use, because sessions need descriptors
    for their mailboxes.  It resumes when enough are free.  New clients wait in the kernel's queue
    meanwhile.
    """

    # Descriptors reserved for sessions: at most KEPT, and at most 1/SHARE of the limit.  When
    # 1/UNSEEN of the free descriptors have become connections, the free descriptors are counted
    # again.
    KEPT, SHARE, UNSEEN = 256, 4, 8
    # Seconds between two checks while paused.
    LOOK = 0.25
    # Descriptors of a session that is not asleep: its mailbox, a message that is sent, the
    # directory of that message, and a temporary one.
    EACH = 4
    # Descriptors reserved for other work: threads that read directories, and files of the
    # configuration that are read again.
    SPARE = 32

    def __init__(
        self,
        clock: IReactorTime,
        limit: int | None = None,
        takesTurns: bool = False,
        inUse: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        """
        @param limit: limit of descriptors; the limit of the process if not given.
        @param takesTurns: whether to accept only one connection in each turn of the reactor.  This
            is for processes that accept from the same sockets, so that the next idle process gets
            the next connection.
        @param inUse: returns the number of connections, and the number of sessions that are
            not asleep.
        """
        self._ports: list[Any] = []
        self._clock = clock
        if limit is None:
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._limit = limit
        self._inUse = inUse
        # Descriptors in use, without those of connections.  The limiter counts these at the first
        # connection, because the service opens files until then.
        self._atFirst = -1
        self._refuses = False
        kept = min(self.KEPT, limit // self.SHARE)
        self._spare = min(self.SPARE, limit // 8)
        self._stopAt, self._goOnAt = limit - kept, limit - kept - kept // 4
        self._unseen, self._mayBeUnseen = 0, kept // self.UNSEEN
        # A port accepts several connections in one turn of the reactor, and nothing can stop it
        # during the turn.
        self._burst = 1 if takesTurns else max(kept // 2, 1)
        self._timer: IDelayedCall | None = None

    def add(self, port: Any) -> None:
        """
        Add a listening port.
        """
        self._ports.append(port)
        read = port.doRead

        def doRead() -> Any:
            if not self.isPaused and self._isShort():
                # Clients have logged in since the last check.
                self._pause()
                return None
            # Set this each time, because Twisted itself changes the value.
            port.numberAccepts = self._burst
            return read()

        port.doRead = doRead

    def _needed(self) -> int:
        """
        @return: the descriptors that all present sessions may need at the same time.
        """
        connections, awake = self._inUse()
        if self._atFirst < 0:
            self._atFirst = max(_openNow() - connections, 0)
        return self._atFirst + connections + self.EACH * awake

    def _isShort(self, more: int = 0) -> bool:
        """
        @return: whether too few descriptors are free.  There must be enough to accept the
            connections of one turn of the reactor, and to let some of their clients log in.
        """
        logins = max(self.EACH, self._limit // 16)
        return self._needed() + self._burst + more + logins + self._spare > self._limit

    def mayServe(self) -> bool:
        """
        @return: whether enough descriptors are free for another session, in addition to all that
            the present sessions may need.
        """
        needed = self._needed() + self.EACH + self._spare
        isEnough = needed <= self._limit
        if isEnough and needed > self._limit // 2:
            # Other code may have opened descriptors that are not counted.
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
        Called for each accepted connection, to check the free descriptors regularly.
        """
        if self.isPaused:
            return
        self._unseen += 1
        if self._unseen <= self._mayBeUnseen:
            return
        self._unseen = 0
        lowest = _lowestFree()
        if lowest is None or lowest >= self._stopAt or self._isShort():
            self._pause()

    def _pause(self) -> None:
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
        Stop checking, because the ports are closed.
        """
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
