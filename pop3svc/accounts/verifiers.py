"""
Add verifiers for SCRAM to a password file.  A verifier is made when a user logs in with a password.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from pop3svc.accounts.hashes import HASHES
from pop3svc.accounts.lazywriting import LazyWriter
from pop3svc.accounts.passwordediting import Proved, addVerifiers
from pop3svc.accounts.scramkeys import makeVerifier
from pop3svc.bounded import BoundedDict
from pop3svc.once import Once
from pop3svc.threadpool import BoundedThreadPool, Executor

__all__ = ["VerifierAdder"]

log = Logger(namespace="pop3svc")

# The most passwords whose verifiers are computed now or wait for their computation.  Further users
# get a verifier at a later login.
_MOST_COMPUTED = 100
# A separate thread computes verifiers, so that no login waits for the computation.
_adding = BoundedThreadPool("pop3svc-verifiers", threads=1, waiting=_MOST_COMPUTED + 10)


def _make(password: str, algorithms: Iterable[str]) -> dict[str, str]:
    """
    @return: the verifiers by algorithm; empty if SASLprep does not allow the password.
    """
    try:
        return {each: makeVerifier(password, each) for each in algorithms}
    except ValueError:
        return {}


class VerifierAdder:
    """
    Adds verifiers to a password file.  A thread computes the verifiers.  Some seconds later several
    verifiers are written together, because each change of the file makes the service read the file
    again.  If the service ends before it has written a verifier, a later login adds the verifier.
    """

    # Seconds from the first new verifier until the file is written.
    PAUSE = 10.0
    # The most users whose verifiers wait to be written.  Each takes some 400 octets.
    MOST = 10_000

    def __init__(
        self,
        path: str,
        algorithms: Iterable[str],
        runner: Executor | None = None,
        clock: IReactorTime | None = None,
    ) -> None:
        """
        @param algorithms: the algorithms for which verifiers are added: C{"sha1"}, C{"sha256"} or
            both.
        @param runner: runs the computation of verifiers and the writing of the file.
        @param clock: starts the writing; the reactor if not given.
        """
        self._path = path
        self._algorithms = sorted(algorithms)
        self._runner = _adding if runner is None else runner
        self._computing = 0
        # For each user: the stored password for which verifiers have been computed.  If the
        # verifiers could not be added, the next login must not compute them again.
        self._tried: BoundedDict[str, str] = BoundedDict(self.MOST)
        self._writer: LazyWriter[str, Proved] = LazyWriter(
            "no verifiers are added", self._write, self.PAUSE, self.MOST, clock
        )
        self._reported = Once()

    def proved(self, name: str, password: bytes, stored: str, has: Container[str]) -> None:
        """
        Add the missing verifiers of a user who has just logged in with the right password.

        @param stored: the user's stored password.
        @param has: the algorithms for which the user has verifiers already.
        """
        missing = [each for each in self._algorithms if each not in has]
        if not missing or self._tried.get(name) == stored:
            return
        if self._computing >= _MOST_COMPUTED or self._writer.isFull:
            return
        # No verifier is needed if the password is stored in clear text.  Some hashes depend on the
        # beginning of the password only.  A verifier depends on the whole password, so it would
        # refuse passwords that such a hash accepts.
        if HASHES.isPlain(stored) or not HASHES.isWhollyCompared(stored, password):
            return
        missing = [each for each in missing if HASHES.scramKeys(stored, each) is None]
        try:
            text = password.decode("utf-8")
        except UnicodeDecodeError:
            return
        if missing:
            self._tried.put(name, stored)
            self._computing += 1
            computed = maybeDeferred(self._runner.run, _make, text, missing)
            computed.addBoth(partial(self._made, name, stored))

    def _made(self, name: str, stored: str, made: Any) -> None:
        self._computing -= 1
        if isinstance(made, Failure):
            self._tried.pop(name, None)
            sentence = f"no verifier can be computed: {made.getErrorMessage()}"
            if self._reported.isFirst(sentence):
                log.warn("{sentence}", sentence=sentence)
        elif made:
            self._writer.put(name, Proved(stored, made))

    def _write(self, waiting: dict[str, Proved]) -> Deferred[Any]:
        return self._runner.run(addVerifiers, self._path, waiting).addCallback(self._written)

    def _written(self, count: int) -> None:
        if count:
            log.info("{path}: added verifiers of {count} users", path=self._path, count=count)
