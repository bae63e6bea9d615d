"""
Record which mailboxes have existed, so that a mailbox that is missing does not look empty.
"""

from __future__ import annotations

import os
import time
from threading import Lock

from twisted.logger import Logger

from pop3svc.errors import POP3ResponseError
from pop3svc.files import disk
from pop3svc.once import Once
from pop3svc.state import State
from pop3svc.threadpool import Executor

__all__ = ["Presence"]

log = Logger(namespace="pop3svc")


class Presence:
    """
    Records which mailboxes of a store have existed.  If such a mailbox is missing now, the store
    refuses its sessions, because its file system may not be mounted.  If a client got an empty
    maildrop instead, it would forget which messages it has downloaded.
    """

    # The most paths that are remembered.  Each takes some 100 octets.
    BOUND = 100_000

    def __init__(self, state: State | None = None, runner: Executor | None = None) -> None:
        """
        @param state: the database of facts that survive a restart.  Without a database, the record
            is in memory and does not survive.
        """
        self._state = State() if state is None else state
        self._runner = disk() if runner is None else runner
        self._there = Once(self.BOUND)
        self._missing = Once(self.BOUND)
        self._unwritten: list[str] = []
        self._lock = Lock()
        self._isWriting = False

    def useState(self, state: State) -> None:
        """
        @param state: the database of facts that survive a restart.
        """
        self._state = state

    def isKnown(self, path: str) -> bool:
        """
        @return: whether this process has already recorded that the mailbox exists.
        """
        return path in self._there

    def isThere(self, path: str, isInThread: bool) -> None:
        """
        Record that a mailbox exists.

        @param isInThread: whether the caller runs in a thread, so that this method may block.
        """
        self._there.isFirst(path)
        self._missing.forget(path)
        with self._lock:
            self._unwritten.append(path)
        if isInThread:
            self._write()
        elif not self._isWriting:
            self._isWriting = True
            try:
                self._runner.run(self._write).addErrback(lambda _: None)
            except POP3ResponseError:
                # Ignore the error, because the next write includes this path.
                self._isWriting = False

    def _write(self) -> None:
        self._isWriting = False
        with self._lock:
            paths, self._unwritten = self._unwritten, []
        isWritten = self._state.write(
            "INSERT OR REPLACE INTO mailbox (path, seen) VALUES (?, ?)",
            [(os.fsencode(path), time.time()) for path in paths],
        )
        if not isWritten:
            # Forget the paths, so that the next login to each mailbox tries again.
            for path in paths:
                self._there.forget(path)

    def refuseIfKnown(self, path: str) -> None:
        """
        Refuse the use of a mailbox that does not exist, if the mailbox existed before.  Blocks.

        @raise POP3ResponseError: C{SYS/TEMP}: the mailbox existed before, so its file system may
            not be mounted; or the database cannot be read.
        """
        if self._unwritten:
            self._write()
        wasThere = self._state.ask("SELECT 1 FROM mailbox WHERE path = ?", os.fsencode(path))
        # Forget the path, so that the mailbox is recorded again when it is back.
        self._there.forget(path)
        if wasThere == []:
            return
        if wasThere and self._missing.isFirst(path):
            log.error(
                "mailbox {path} is missing: is its file system mounted?  Until it is back, its "
                "user gets [SYS/TEMP], and its mail has to wait",
                path=path,
            )
        # Refuse even if the database cannot be read, because an empty maildrop might be wrong.
        raise POP3ResponseError("Mailbox is not available now.", "SYS/TEMP")

    def isMissing(self, path: str) -> None:
        """
        Decide what happens if the mailbox of a session does not exist.  Blocks.

        @raise POP3ResponseError: see L{refuseIfKnown}.
        """
        self.refuseIfKnown(path)
        if self._missing.isFirst(path):
            log.info(
                "mailbox {path} does not exist or is incomplete: serving what exists", path=path
            )
