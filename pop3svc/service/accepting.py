"""
Accepting connections pauses when file descriptors run out.
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


# Descriptors: more than connections may ever be.
_MOST = 1_048_576


def _lowestFree() -> int | None:
    """
    @return: the lowest descriptor that is not in use, so that at least as many
        are; L{None} if there is none.
    """
    try:
        descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    os.close(descriptor)
    return descriptor


def _openNow() -> int:
    """
    @return: how many descriptors are open.
    """
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        lowest = _lowestFree()
        return 0 if lowest is None else lowest


def raiseLimit() -> None:
    """
    Allow this process as many descriptors as it may have: the usual 1,024 is for
    programs that use select().
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            # It goes on with what it has.
            pass


class AcceptLimiter:
    """
    Stops accepting before the last descriptors are gone, as the sessions that
    there are need some for their mailboxes, and goes on when there are some
    again.  Whoever comes meanwhile waits in the kernel's queue.
    """

    # Descriptors kept for sessions, at most and as a share of all; and of these the share
    # that is accepted from one look to the next.
    KEPT, SHARE, UNSEEN = 256, 4, 8
    # Seconds from one look to the next while paused.
    LOOK = 0.25
    # Descriptors of a session that is not asleep: its mailbox, a message that it is sent
    # and that one's directory, and one for a moment.
    EACH = 4
    # Kept for all else: threads that read directories, a file that is read again.
    SPARE = 32

    def __init__(
        self,
        clock: IReactorTime,
        limit: int | None = None,
        takesTurns: bool = False,
        inUse: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        """
        @param limit: of descriptors; the process's own if not given.
        @param inUse: tells how many connections there are, and how many sessions that
            are not asleep.
        @param takesTurns: accept one connection at a time, as other processes
            accept from the same sockets: whoever has time takes the next.
        """
        self._ports: list[Any] = []
        self._clock = clock
        if limit is None:
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._limit = limit
        self._inUse = inUse
        # What there is before anybody comes; looked at when somebody does, as files are
        # opened until then.
        self._atFirst = -1
        self._refuses = False
        kept = min(self.KEPT, limit // self.SHARE)
        self._spare = min(self.SPARE, limit // 8)
        self._stopAt, self._goOnAt = limit - kept, limit - kept - kept // 4
        self._unseen, self._mayBeUnseen = 0, kept // self.UNSEEN
        # A port accepts many at once, and cannot be stopped meanwhile.
        self._burst = 1 if takesTurns else max(kept // 2, 1)
        self._timer: IDelayedCall | None = None

    def add(self, port: Any) -> None:
        """
        Look after a listening port, too.
        """
        self._ports.append(port)
        read = port.doRead

        def doRead() -> Any:
            if not self.isPaused and self._isPromised():
                # Since the last look those who are in have logged in.
                self._pause()
                return None
            # It grows by itself, by twenty at a time.
            port.numberAccepts = self._burst
            return read()

        port.doRead = doRead

    def _promised(self) -> int:
        """
        Descriptors that are needed if everybody who is in does what may be done at once.
        """
        connections, awake = self._inUse()
        if self._atFirst < 0:
            self._atFirst = max(_openNow() - connections, 0)
        return self._atFirst + connections + self.EACH * awake

    def _isPromised(self, more: int = 0) -> bool:
        """
        Are there too few descriptors to accept as many as may come at once, and to let
        some of them log in then?
        """
        logins = max(self.EACH, self._limit // 16)
        return self._promised() + self._burst + more + logins + self._spare > self._limit

    def mayServe(self) -> bool:
        """
        Are there descriptors for another session, with what all others may need?
        """
        needed = self._promised() + self.EACH + self._spare
        isEnough = needed <= self._limit
        if isEnough and needed > self._limit // 2:
            # Others have opened more than is counted, perhaps.
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
        Is nothing accepted now?
        """
        return self._timer is not None

    def accepted(self) -> None:
        """
        A connection was accepted: look now and then whether there is room for
        more.
        """
        if self.isPaused:
            return
        self._unseen += 1
        if self._unseen <= self._mayBeUnseen:
            return
        self._unseen = 0
        lowest = _lowestFree()
        if lowest is None or lowest >= self._stopAt or self._isPromised():
            self._pause()

    def _pause(self) -> None:
        log.warn("not accepting connections: low on file descriptors")
        self._timer = self._clock.callLater(self.LOOK, self._look)
        for port in self._ports:
            port.stopReading()

    def _look(self) -> None:
        lowest = _lowestFree()
        if lowest is None or lowest >= self._goOnAt or self._isPromised(self._spare):
            self._timer = self._clock.callLater(self.LOOK, self._look)
            return
        self._timer = None
        log.info("accepting connections again")
        for port in self._ports:
            if not getattr(port, "disconnected", False):
                port.startReading()

    def stop(self) -> None:
        """
        Look no more: the ports are closed.
        """
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
