"""
Tell systemd about the state of the service, as sd_notify(3) does.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable, MutableMapping
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

__all__ = ["VARIABLES", "Notifier"]

log = Logger(namespace="pop3svc")

# The variables that systemd sets only for the process that it has started.
VARIABLES = (
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
)


class Notifier(Service):
    """
    Sends datagrams to systemd when the service is ready, when it reloads its configuration, when
    its state changes, and when it stops.  For systemd's watchdog it sends datagrams regularly.
    """

    # Seconds between two checks of the state.  The state is sent if it has changed.
    STATUS_EVERY = 5.0
    # Seconds until the next attempt to send a datagram, after the queue of the socket was full.
    AGAIN = 1.0
    # The most datagrams that wait for the next attempt.  The number is greater than the number of
    # changes of state that an operator can cause in this time.
    MOST_WAITING = 16

    def __init__(
        self,
        reactor: Any,
        address: str,
        watchdog: float = 0.0,
        microseconds: Callable[[], int] = lambda: time.monotonic_ns() // 1000,
    ) -> None:
        """
        @param address: the path of a socket, or C{@} and the name of an abstract socket.
        @param watchdog: the seconds without a datagram after which systemd kills the service; 0 if
            systemd does not watch the service.
        @param microseconds: returns the time of C{CLOCK_MONOTONIC}.
        """
        self._reactor = reactor
        self._microseconds = microseconds
        self._watchdog = watchdog
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._waiting: deque[str] = deque()
        self._isReady = self._isStopping = self._hasFailed = False
        # The number of reloads that run now.
        self._reloads = 0
        self._status = ""
        # A function that returns a line about the state of the service.
        self.describe: Callable[[], str] = lambda: ""
        # Fires when the service can serve clients.
        self.serves: Deferred[None] = Deferred()
        # Connect now, because the path cannot be reached after a chroot.
        self._connect()

    @classmethod
    def fromEnvironment(
        cls, reactor: Any, environ: MutableMapping[str, str] = os.environ
    ) -> Notifier | None:
        """
        Make a notifier from the variables that systemd has set.  Remove the variables from the
        environment, because the processes that the service starts must not send datagrams to
        systemd.

        @return: the notifier; L{None} if C{NOTIFY_SOCKET} names no UNIX socket.
        """
        address = environ.pop("NOTIFY_SOCKET", "")
        text = environ.pop("WATCHDOG_USEC", "")
        pid = environ.pop("WATCHDOG_PID", "")
        if not address:
            return None
        if not address.startswith(("/", "@")):
            log.warn(
                "NOTIFY_SOCKET is not the address of a UNIX socket, so nothing is sent to systemd"
            )
            return None
        isMine = pid in ("", str(os.getpid()))
        isNumber = text.isascii() and text.isdigit() and len(text) < 19
        return cls(reactor, address, int(text) / 1_000_000 if isMine and isNumber else 0.0)

    # --- the messages for systemd -----------------------------------------------------------

    def startService(self) -> None:
        """
        See L{twisted.application.service.IService.startService}.  Send datagrams for the watchdog
        while the reactor runs.
        """
        super().startService()  # type: ignore[no-untyped-call]
        self._reactor.addSystemEventTrigger("before", "shutdown", self._stops)
        if self._watchdog:
            self._repeat(self._watchdog / 2, self._live)
        self._repeat(self.STATUS_EVERY, self._lookAtStatus)
        self.serves.addCallback(self._ready)

    def _repeat(self, seconds: float, call: Callable[[], object]) -> None:
        # The calls are never stopped, because systemd watches the process until it ends.
        looping = LoopingCall(call)
        looping.clock = self._reactor
        looping.start(seconds)

    def _live(self) -> None:
        # If other datagrams wait, leave this one out, because the next call sends another one.
        if not self._waiting:
            self._write("WATCHDOG=1")

    def _lookAtStatus(self) -> None:
        status = self.describe()
        if status != self._status and self._isReady and not self._waiting:
            self._status = status
            self._write(f"STATUS={status}")

    def _ready(self, _: object) -> None:
        self._isReady = True
        if not self._reloads:
            self._tellReady()

    def _tellReady(self) -> None:
        self._status = self.describe()
        self._send(f"READY=1\nSTATUS={self._status}")

    def reloading(self) -> None:
        """
        Tell systemd that the service begins to read its configuration again.
        """
        self._reloads += 1
        if self._isReady and self._reloads == 1:
            self._send(f"RELOADING=1\nMONOTONIC_USEC={self._microseconds()}")

    def reloaded(self) -> None:
        """
        Tell systemd that a reload is over.
        """
        self._reloads -= 1
        if self._isReady and not self._reloads:
            self._tellReady()

    def _stops(self) -> None:
        self._send("STOPPING=1\nSTATUS=stopping")
        self._isStopping = True

    # --- datagrams ----------------------------------------------------------------------

    def _send(self, text: str) -> None:
        """
        Send a datagram.  If the queue of the socket is full, send the datagram later, because
        systemd needs it.
        """
        if self._isStopping:
            return
        if self._waiting or not self._write(text):
            if not self._waiting:
                self._reactor.callLater(self.AGAIN, self._sendWaiting)
            if len(self._waiting) < self.MOST_WAITING:
                self._waiting.append(text)

    def _sendWaiting(self) -> None:
        while self._waiting:
            if not self._write(self._waiting[0]):
                self._reactor.callLater(self.AGAIN, self._sendWaiting)
                return
            self._waiting.popleft()

    def _connect(self) -> None:
        try:
            self._socket.connect(self._address)
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        if not self._hasFailed:
            self._hasFailed = True
            log.error("cannot tell systemd about the service: {error}", error=error.strerror)

    def _write(self, text: str) -> bool:
        """
        @return: false if the datagram must be sent again later.  True means that it was sent, or
            that no attempt can succeed.
        """
        data = text.encode("utf-8")
        for isSecond in (False, True):
            try:
                self._socket.send(data)
            except BlockingIOError:
                return False
            except OSError as error:
                if isSecond:
                    self._failed(error)
                else:
                    # Connect and try again, because another process may have bound a new socket to
                    # the address.
                    self._connect()
            else:
                self._hasFailed = False
                return True
        return True
