"""
Watch the sockets of all connections by one reader of the reactor.
"""

from __future__ import annotations

import select
from typing import Any

from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pop3svc.timing import TimeSlice

__all__ = ["Loop"]

log = Logger(namespace="pop3svc")

# The most sockets that are served in one batch, and the most batches before other readers of the
# reactor have their turn.
_BATCH, _ROUNDS = 64, 16


@implementer(IReadDescriptor)
class Loop:
    """
    Watches sockets by its own epoll, and the reactor watches this epoll.  The reactor therefore
    handles one event for all sockets that are ready.
    """

    # Whether this system has epoll.
    isPossible = hasattr(select, "epoll")

    def __init__(self, reactor: Any) -> None:
        """
        @param reactor: provides L{twisted.internet.interfaces.IReactorFDSet} and
            L{twisted.internet.interfaces.IReactorTime}.
        """
        self.reactor = reactor
        self._turns = TimeSlice(reactor)
        self._poller = select.epoll()
        self._parts: dict[int, Any] = {}
        self._isWatched = False

    def fileno(self) -> int:
        """
        See L{IReadDescriptor}.
        """
        return self._poller.fileno()

    def logPrefix(self) -> str:
        """
        See L{IReadDescriptor}.
        """
        return "pop3svc"

    def watch(self, descriptor: int, part: Any, events: int) -> None:
        """
        Begin to watch a socket.

        @param part: the object that serves the socket.  If its C{isPort} is true, its C{accept} is
            called when clients wait.  Otherwise its C{ready} is called with the events that have
            happened.
        @param events: the events to wait for, as epoll names them.
        """
        self._poller.register(descriptor, events)
        self._parts[descriptor] = part
        if not self._isWatched:
            self._isWatched = True
            self.reactor.addReader(self)

    def change(self, descriptor: int, events: int) -> None:
        """
        Wait for other events.
        """
        self._poller.modify(descriptor, events)

    def forget(self, descriptor: int) -> None:
        """
        Stop watching a socket.  Call this method before the socket is closed.  If another process
        also has the socket open, the kernel would otherwise continue to report its events.
        """
        del self._parts[descriptor]
        self._poller.unregister(descriptor)

    def doRead(self) -> None:
        """
        Serve the sockets that are ready.  See L{IReadDescriptor}.

        If several sockets were ready, other sockets have probably become ready meanwhile.  Serve
        them too, because a return to the reactor takes as long as the work for a short command.
        """
        seconds = self.reactor.seconds
        end = self._turns.beginIteration() + TimeSlice.SLICE
        try:
            for _ in range(_ROUNDS):
                ready = self._poller.poll(0, _BATCH)
                self._serve(ready)
                if len(ready) < 2 or seconds() >= end:
                    return
        finally:
            self._turns.endIteration()

    def _serve(self, ready: list[tuple[int, int]]) -> None:
        """
        @param ready: pairs of a descriptor and its events.
        """
        parts, ports = self._parts, []
        for descriptor, events in ready:
            part = parts.get(descriptor)
            if part is None:
                # Another connection of this batch has closed this connection meanwhile.
                continue
            if part.isPort:
                ports.append(part)
            else:
                try:
                    part.ready(events)
                except Exception:
                    self._failed()
        # Accept connections last.  A new connection may get the descriptor of a connection that was
        # closed in this batch.  The other events of the batch for this descriptor do not belong to
        # the new connection.
        for port in ports:
            try:
                port.accept()
            except Exception:
                self._failed()

    def _failed(self) -> None:
        """
        Log the exception that is being handled.  If the exception reached the reactor, the reactor
        would end this object and all connections.
        """
        log.failure("a socket failed")

    def connectionLost(self, reason: Failure) -> None:
        """
        End all connections, because the reactor ends.
        """
        for part in list(self._parts.values()):
            part.connectionLost(reason)
        self._poller.close()
