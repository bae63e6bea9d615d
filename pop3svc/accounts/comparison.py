"""
Compare the password of a login with a stored password.  All sources of accounts share one queue for
slow comparisons.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from pop3svc.accounts.hashes import HASHES, LONGEST_PASSWORD, HashReader, hashOfNobody
from pop3svc.accounts.hashing import CheckQueue, hashing
from pop3svc.bounded import BoundedDict
from pop3svc.credentials import asAttempt
from pop3svc.errors import POP3ResponseError
from pop3svc.threadpool import Executor

__all__ = ["PasswordComparison", "RememberedChecks", "UsualCost"]

log = Logger(namespace="pop3svc")


class UsualCost:
    """
    Counts how many hashes of a source have which cost, and keeps an example for each cost.
    """

    # The largest number of different costs that are counted.  It is enough, because a source has
    # only a few kinds of hashes.
    MOST = 1000

    def __init__(self) -> None:
        self._counts: dict[float, int] = {}
        self._examples: dict[float, str] = {}

    def add(self, cost: float, stored: str) -> None:
        """
        Count a hash.

        @param cost: the CPU time of a comparison in milliseconds.
        """
        if cost in self._counts or len(self._counts) < self.MOST:
            self._counts[cost] = self._counts.get(cost, 0) + 1
            self._examples.setdefault(cost, stored)

    def example(self) -> str | None:
        """
        @return: a hash of the median cost; L{None} if no hash was counted.  A few hashes with
            extreme costs do not change the median.
        """
        rest = (sum(self._counts.values()) + 1) // 2
        for cost in sorted(self._counts):
            rest -= self._counts[cost]
            if rest <= 0:
                return self._examples[cost]
        return None


class RememberedChecks:
    """
    Remembers comparisons that have succeeded a short time ago.  For each comparison it stores a
    keyed digest of the name, the password and the stored password.  The key is kept in the memory
    of this process and nowhere else.
    """

    # The most comparisons that are remembered.  Each takes about 200 octets.
    MOST = 10_000

    def __init__(self, seconds: float, now: Callable[[], float]) -> None:
        """
        @param seconds: how many seconds a comparison is remembered.
        @param now: returns the seconds of a monotonic clock.
        """
        self._seconds = seconds
        self._now = now
        self._key = secrets.token_bytes(32)
        # For the digest of each comparison: the time at which the comparison is forgotten.
        self._until: BoundedDict[bytes, float] = BoundedDict(self.MOST)

    def digestOf(self, name: bytes, password: bytes, stored: str) -> bytes:
        """
        @return: the digest of a comparison.
        """
        digest = hashlib.blake2b(key=self._key, digest_size=32)
        for each in (name, stored.encode("utf-8", "surrogateescape"), password):
            # Include the lengths of the fields, because otherwise different fields could give the
            # same octets.
            digest.update(len(each).to_bytes(8))
            digest.update(each)
        return digest.digest()

    def has(self, digest: bytes) -> bool:
        """
        @return: whether this comparison has succeeded within the remembered time.
        """
        until = self._until.get(digest)
        if until is None:
            return False
        if self._now() >= until:
            del self._until[digest]
            return False
        return True

    def add(self, digest: bytes) -> None:
        """
        Remember a comparison that has succeeded.
        """
        self._until.put(digest, self._now() + self._seconds)

    def clear(self) -> None:
        """
        Forget all comparisons.
        """
        self._until.clear()


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
        @param source: the name of the source, for the log.
        @param runner: runs slow comparisons; the shared threads if not given.
        @param clock: used for time limits and for the age of remembered comparisons; the real time
            if not given.
        """
        self._source = source
        self._reader = reader
        self._queue = hashing() if runner is None else CheckQueue(runner, clock)
        self._now = time.monotonic if clock is None else clock.seconds
        self._remembered: RememberedChecks | None = None
        self._reported: set[str] = set()
        # The password of an unknown user is compared with this hash while the source has no hash.
        self._standIn = hashOfNobody()

    def remember(self, seconds: int) -> None:
        """
        After this call, remember successful comparisons.  Comparisons that take little time are not
        remembered.

        @param seconds: how many seconds a comparison is remembered; 0 if none is remembered.
        """
        self._remembered = RememberedChecks(seconds, self._now) if seconds else None

    def forget(self) -> None:
        """
        Forget the remembered comparisons.  Also forget which errors were logged, so that each error
        is logged again.
        """
        self._reported.clear()
        if self._remembered is not None:
            self._remembered.clear()

    async def isRight(
        self,
        credentials: Any,
        stored: str | None,
        standIn: str = "",
        mayLogIn: bool = True,
        secret: bytes | None = None,
    ) -> bool:
        """
        Compare the password of a login.

        @param credentials: credentials of twisted.cred, with C{username} and C{password}.
        @param stored: a stored password that can be used; L{None} if the user does not exist.
        @param standIn: another stored password that can be used.  If the user does not exist, the
            password is compared with this stored password, so that the answer takes the same time.
        @param mayLogIn: whether the user may log in with the right password.  If not, a remembered
            comparison is not used, because a quick refusal would reveal that the password is right.
        @param secret: the text to compare instead of the password that the client has sent.
        @raise POP3ResponseError: C{SYS/TEMP}: the comparison would have to wait too long, or has
            failed, for example for lack of memory.
        """
        username: bytes = credentials.username
        whole: bytes = credentials.password if secret is None else secret
        name = username.decode("utf-8", "surrogateescape")
        compared = stored or standIn or self._standIn
        # Some kinds of hashes do not accept NUL.
        isUsable = len(whole) <= LONGEST_PASSWORD and b"\0" not in whole
        password = whole[:LONGEST_PASSWORD].replace(b"\0", b"")
        credentials = asAttempt(credentials)
        remembered, digest = self._remembered, b""
        quick = self._reader.quickly(compared, password, name)
        if quick is not None:
            remembered = None
            credentials.comparing()
            matches = _settled(quick)
        else:
            if remembered is not None:
                # Compute the digest for an unknown user as well, so that the time is the same.
                digest = remembered.digestOf(username, whole, compared)
                if remembered.has(digest) and stored is not None and mayLogIn:
                    return True
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
            if remembered is not None:
                remembered.add(digest)
            return True
        if stored is not None:
            credentials.refused()
        return False

    def _compare(self, stored: str, password: bytes, name: str) -> bool | str:
        return _settled(partial(self._reader.verify, stored, password, name))

    def _failed(self, error: str) -> None:
        # Log each kind of error once.  After forget() it is logged again.
        if error not in self._reported:
            self._reported.add(error)
            log.error(
                "comparing a password of {source} failed: {error}",
                source=self._source,
                error=error,
            )
        raise POP3ResponseError("Password check is not available now.", "SYS/TEMP")


def _settled(verify: Callable[[], bool]) -> bool | str:
    """
    @return: whether the password matches, or the name of the error if the comparison failed.
    """
    try:
        return verify()
    except Exception as error:
        return type(error).__name__
