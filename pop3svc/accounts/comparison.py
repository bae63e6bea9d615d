"""
Compare the password of a login with a stored one, in the queue that all sources of accounts share.
"""

from __future__ import annotations

import secrets
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from pop3svc.accounts.credentials import asAttempt
from pop3svc.accounts.hashes import HASHES, LONGEST_PASSWORD, HashReader, hashPassword
from pop3svc.accounts.hashing import CheckQueue, hashing
from pop3svc.errors import POP3ResponseError
from pop3svc.threadpool import Executor

__all__ = ["PasswordComparison", "UsualCost"]

log = Logger(namespace="pop3svc")


class UsualCost:
    """
    The costs of the hashes that a source has, with an example of each.
    """

    # The most different costs that are counted.  A source has only a few kinds of hashes.
    MOST = 1000

    def __init__(self) -> None:
        self._counts: dict[float, int] = {}
        self._examples: dict[float, str] = {}

    def add(self, cost: float, stored: str) -> None:
        """
        Count a hash.

        @param cost: milliseconds.
        """
        if cost in self._counts or len(self._counts) < self.MOST:
            self._counts[cost] = self._counts.get(cost, 0) + 1
            self._examples.setdefault(cost, stored)

    def example(self) -> str | None:
        """
        @return: a hash of the median cost, because a few extreme hashes do not change the
            median; L{None} if there are no hashes.
        """
        rest = (sum(self._counts.values()) + 1) // 2
        for cost in sorted(self._counts):
            rest -= self._counts[cost]
            if rest <= 0:
                return self._examples[cost]
        return None


class PasswordComparison:
    """
    Compares passwords for one source of accounts.
    """

    def __init__(
        self,
        source: str,
        reader: HashReader = HASHES,
        runner: Executor | None = None,
        clock: IReactorTime | None = None,
    ) -> None:
        """
        @param source: the source, for the log.
        @param runner: compares passwords; the shared threads if not given.
        @param clock: the reactor if not given.
        """
        self._source = source
        self._reader = reader
        self._queue = hashing() if runner is None else CheckQueue(runner, clock)
        self._reported: set[str] = set()
        # Compared for unknown users while the source has no hash of its own.
        self._standIn = hashPassword(secrets.token_hex(16))

    def forget(self) -> None:
        """
        Forget the logged errors, so that each is logged again.
        """
        self._reported.clear()

    async def isRight(self, credentials: Any, stored: str | None, standIn: str = "") -> bool:
        """
        Compare the password of a login.

        @param credentials: credentials of twisted.cred, with C{username} and C{password}.
        @param stored: a usable stored password; L{None} if the user does not exist.
        @param standIn: a usable stored password.  If the user does not exist, a comparison with it
            hides this.
        @raise POP3ResponseError: C{SYS/TEMP} if the comparison would have to wait too long, or
            failed, for example for lack of memory.
        """
        username: bytes = credentials.username
        password: bytes = credentials.password
        name = username.decode("utf-8", "surrogateescape")
        compared = stored or standIn or self._standIn
        # Some kinds of hashes do not accept NUL.
        isUsable = len(password) <= LONGEST_PASSWORD and b"\0" not in password
        password = password[:LONGEST_PASSWORD].replace(b"\0", b"")
        credentials = asAttempt(credentials)
        if self._reader.isQuick(compared):
            # This comparison needs no thread.
            credentials.comparing()
            matches = self._compare(compared, password, name)
        else:
            matches = await self._queue.run(
                self._compare,
                compared,
                password,
                name,
                isUrgent=credentials.isFromKnownNetwork,
                patience=credentials.patience,
                begun=credentials.comparing,
            )
        if isinstance(matches, str):
            self._failed(matches)
        if matches and stored is not None and isUsable:
            return True
        if stored is not None:
            credentials.refused()
        return False

    def _compare(self, stored: str, password: bytes, name: str) -> bool | str:
        """
        @return: whether the password matches, or the name of the error if the comparison
            failed.
        """
        try:
            return self._reader.verify(stored, password, name)
        except Exception as error:
            return type(error).__name__

    def _failed(self, error: str) -> None:
        # Logged once for each kind of error, until the source is read again.
        if error not in self._reported:
            self._reported.add(error)
            log.error(
                "comparing a password of {source} failed: {error}",
                source=self._source,
                error=error,
            )
        raise POP3ResponseError("Password check is not available now.", "SYS/TEMP")
