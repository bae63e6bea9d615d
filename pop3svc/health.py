"""
Log when a server or a database stops working, and when it works again.
"""

from __future__ import annotations

import time
from weakref import WeakSet

from twisted.logger import Logger

__all__ = ["Health"]

log = Logger(namespace="pop3svc")


class Health:
    """
    Records whether a server or a database works.  The log says when the server or the database
    stops working, and when it works again.  All objects that use one server may share a L{Health}.

    @ivar name: the name of the server or the database.
    @ivar reason: why the server or the database does not work; empty while it works.
    @ivar faults: the number of failures.
    """

    # Seconds after a failure until C{/readyz} reports success again.  The report must not wait for
    # a success, because a load balancer may send no clients until then, and without clients the
    # service does not use the server.
    RECENT = 30.0
    # All servers and databases that this process uses.  The operator can see them.
    _all: WeakSet[Health] = WeakSet()

    def __init__(self, name: str) -> None:
        """
        @param name: the name of the server or the database, for the log.
        """
        self.name = name
        self.reason = ""
        self.faults = 0
        self._last = 0.0
        self._all.add(self)

    @classmethod
    def all(cls) -> list[Health]:
        """
        @return: the servers and databases that this process uses.
        """
        return sorted(cls._all, key=lambda each: each.name)

    @property
    def isAvailable(self) -> bool:
        """
        Whether the server or the database works.
        """
        return not self.reason

    @property
    def hasFailedRecently(self) -> bool:
        """
        Whether the server or the database does not work, and the last failure was within L{RECENT}
        seconds.
        """
        return bool(self.reason) and time.monotonic() - self._last < self.RECENT

    def failed(self, reason: str) -> None:
        """
        Record that the server or the database did not work.
        """
        self.faults += 1
        self._last = time.monotonic()
        if self.isAvailable:
            self.reason = reason or "no reason is known"
            log.error("{name} is not available: {reason}", name=self.name, reason=reason)

    def succeeded(self) -> None:
        """
        Record that the server or the database has worked.
        """
        if not self.isAvailable:
            self.reason = ""
            log.info("{name} is available again", name=self.name)
