"""
Log when a server or a database stops working, and when it works again.
"""

from __future__ import annotations

from twisted.logger import Logger

__all__ = ["Health"]

log = Logger(namespace="pop3svc")


class Health:
    """
    Whether a server or a database works.  The log says when it stops working, and when it works
    again.  Several users of one server may share a L{Health}.
    """

    def __init__(self, name: str) -> None:
        """
        @param name: of the server or the database, for the log.
        """
        self._name = name
        self.isAvailable = True

    def failed(self, reason: str) -> None:
        """
        The server or the database did not work.
        """
        if self.isAvailable:
            self.isAvailable = False
            log.error("{name} is not available: {reason}", name=self._name, reason=reason)

    def succeeded(self) -> None:
        """
        The server or the database has worked.
        """
        if not self.isAvailable:
            self.isAvailable = True
            log.info("{name} is available again", name=self._name)
