"""
Find the application passwords of a password file when users log in, and record their use.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from pop3svc.accounts.apppasswordlines import Entry, fileOf, readAppPasswords, recordUses
from pop3svc.accounts.lazywriting import LazyWriter
from pop3svc.awaiting import CallTimeout, Shielded, settled
from pop3svc.bounded import BoundedDict
from pop3svc.errors import POP3ResponseError
from pop3svc.files import FileStamp, stampOf
from pop3svc.once import Once
from pop3svc.threadpool import BoundedThreadPool, Executor

__all__ = ["AppPasswordFile", "UseTimes"]

log = Logger(namespace="pop3svc")

Key = tuple[str, str]

# A separate thread reads the file of application passwords.  The password file has its own thread
# as well.
_files = BoundedThreadPool("pop3svc-app-passwords", threads=1, waiting=100)
# Another thread writes the times of use.  A write waits for the lock of the directory, and every
# user of the machine who may read the directory can hold this lock.  No login may wait for the
# lock.
_recording = BoundedThreadPool("pop3svc-app-password-uses", threads=1, waiting=100)


def _read(path: str) -> tuple[FileStamp | None, dict[Key, Entry], list[str]]:
    """
    @return: the stamp of the file, and the result of L{readAppPasswords}.  The stamp was taken
        before the file was read.
    """
    return stampOf(fileOf(path)), *readAppPasswords(path)


class UseTimes:
    """
    Records the times at which application passwords are used.  The use of the same password is
    recorded at most once a minute.
    """

    # The least number of seconds between two records of the same password.
    PERIOD = 60.0
    # Seconds from the use of a password until the record is written.  All records that are made in
    # the meantime are written together.
    PAUSE = 5.0
    # The most passwords that are remembered.  Each takes some 200 octets.
    MOST = 10_000

    def __init__(
        self,
        write: Callable[[dict[Key, float]], Any],
        what: str,
        clock: IReactorTime | None = None,
    ) -> None:
        """
        @param write: writes the times of use, in seconds since 1970.  It may return a Deferred.
        @param what: see L{LazyWriter}.
        """
        self._writer: LazyWriter[Key, float] = LazyWriter(what, write, self.PAUSE, self.MOST, clock)
        self._recorded: BoundedDict[Key, float] = BoundedDict(self.MOST)

    def record(self, key: Key, now: float) -> None:
        """
        Record that a password was used.

        @param key: the user and the selector of the password.
        @param now: the present time in seconds since 1970.
        """
        before = self._recorded.get(key)
        if before is None or not 0 <= now - before < self.PERIOD:
            self._recorded.put(key, now)
            self._writer.put(key, now)


class AppPasswordFile:
    """
    Finds the application passwords of a password file, and records their use.  L{find} checks
    whether the file of application passwords has changed.  If so, a thread reads it again.
    """

    # Seconds that a login waits until the file has been read.  After this time the login is
    # refused, because the application password may have been revoked.
    PATIENCE = 5.0
    # Seconds between two attempts to read a file that cannot be read.
    RETRY = 1.0

    def __init__(
        self, path: str, runner: Executor | None = None, clock: IReactorTime | None = None
    ) -> None:
        """
        @param path: the path of the password file.
        @param runner: runs the functions that read and write the files.
        @param clock: used for time limits and pauses; the reactor if not given.
        """
        self._path = path
        self._file = fileOf(path)
        self._runner = _files if runner is None else runner
        self._recorder = _recording if runner is None else runner
        self._clock = clock
        self._hasRead = False
        # The stamp of the file; None if the file does not exist.
        self._seen: FileStamp | None = None
        self._entries: dict[Key, Entry] = {}
        self._reading: Shielded | None = None
        self._fault = ""
        self._tried = 0.0
        self._reported = Once(1000)
        self._uses = UseTimes(
            self._record, "the last use of application passwords is not recorded", clock
        )

    async def find(self, user: str, selector: str) -> Entry | None:
        """
        @raise POP3ResponseError: C{SYS/TEMP}: the file cannot be read now.
        """
        # Check twice, because a thread may have begun to read the file before it was changed.
        for _ in range(2):
            if self._hasRead and stampOf(self._file) == self._seen:
                break
            await self._refresh()
        if not self._hasRead:
            raise _unavailable()
        return self._entries.get((user, selector))

    async def _refresh(self) -> None:
        if self._reading is None or self._reading.done:
            if self._fault and time.monotonic() - self._tried < self.RETRY:
                raise _unavailable()
            self._reading = Shielded(self._read)
        if self._reading.done:
            return
        if self._clock is None:
            from twisted.internet import reactor

            self._clock = IReactorTime(reactor)
        try:
            await settled(self._reading.outcome(self._clock, self.PATIENCE))
        except CallTimeout:
            raise _unavailable() from None

    async def _read(self) -> None:
        self._tried = time.monotonic()
        fault = ""
        try:
            self._seen, self._entries, complaints = await self._runner.run(_read, self._path)
        except (POP3ResponseError, ValueError) as error:
            fault = str(error)
            if isinstance(error, POP3ResponseError):
                fault = f"{self._file} cannot be read now, for lack of threads"
            self._hasRead = False
            if fault != self._fault:
                log.error("no application passwords: {error}", error=fault)
        else:
            self._hasRead = True
            for each in complaints:
                if self._reported.isFirst(each):
                    log.error("{path}, {line}", path=self._file, line=each)
        self._fault = fault

    def forget(self) -> None:
        """
        Read the file again at the next login with an application password, and log each error of
        the file again.
        """
        self._hasRead, self._fault, self._reported = False, "", Once(1000)

    def used(self, entry: Entry, now: float) -> None:
        """
        Record that a password was used.

        @param now: the present time in seconds since 1970.
        """
        self._uses.record((entry.user, entry.selector), now)

    def _record(self, uses: dict[Key, float]) -> Deferred[Any]:
        return self._recorder.run(recordUses, self._path, uses)


def _unavailable() -> POP3ResponseError:
    return POP3ResponseError("Accounts are not available now.", "SYS/TEMP")
