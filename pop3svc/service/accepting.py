"""
Accepting connections pauses when file descriptors run out.
"""

from __future__ import annotations

import os
import resource
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

__all__ = ["AcceptingPauser"]

log = Logger(namespace="pop3svc")


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


class AcceptingPauser:
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

    def __init__(
        self, clock: IReactorTime, limit: int | None = None, takesTurns: bool = False
    ) -> None:
        """
        @param limit: of descriptors; the process's own if not given.
        @param takesTurns: accept one connection at a time, as other processes
            accept from the same sockets: whoever has time takes the next.
        """
        self._ports: list[Any] = []
        self._clock = clock
        if limit is None:
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        kept = min(self.KEPT, limit // self.SHARE)
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
            # It grows by itself, by twenty at a time.
            port.numberAccepts = self._burst
            return read()

        port.doRead = doRead

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
        if lowest is None or lowest >= self._stopAt:
            log.warn("accepting pauses: there are not enough file descriptors")
            self._timer = self._clock.callLater(self.LOOK, self._look)
            for port in self._ports:
                port.stopReading()

    def _look(self) -> None:
        lowest = _lowestFree()
        if lowest is None or lowest >= self._goOnAt:
            self._timer = self._clock.callLater(self.LOOK, self._look)
            return
        self._timer = None
        log.info("accepting goes on")
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
