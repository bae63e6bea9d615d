"""
Log when a server or a database stops working, and when it works again.
"""

from __future__ import annotations

from weakref import WeakSet

from twisted.logger import Logger

__all__ = ["Health"]

log = Logger(namespace="pop3svc")


class Health:
    """
    Whether a server or a database works.  The log says when it stops working, and when it works
    again.  Several users of one server may share a L{Health}.

    @ivar name: of the server or the database.
    @ivar reason: why it does not work; empty while it works.
    """

    # All that this process uses, for the operator.
    _all: WeakSet[Health] = WeakSet()

    def __init__(self, name: str) -> None:
        """
        @param name: of the server or the database, for the log.
        """
        self.name = name
        self.reason = ""
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
        Whether it works.
        """
        return not self.reason

    def failed(self, reason: str) -> None:
        """
        The server or the database did not work.
        """
        if self.isAvailable:
            self.reason = reason or "no reason is known"
            log.error("{name} is not available: {reason}", name=self.name, reason=reason)

    def succeeded(self) -> None:
        """
        The server or the database has worked.
        """
        if not self.isAvailable:
            self.reason = ""
            log.info("{name} is available again", name=self.name)
