"""
Record which mailboxes have existed, so that a missing mailbox does not look empty.
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
    Registry of the mailboxes of a store that have existed.  The store refuses a mailbox that
    existed before and is missing now, because its file system may not be mounted.  If a client
    got an empty maildrop instead, it would forget which messages it has downloaded.
    """

    # The most paths; some 100 octets each.
    BOUND = 100_000

    def __init__(self, state: State | None = None, runner: Executor | None = None) -> None:
        """
        @param state: the database that survives a restart.  Without it the registry is only in
            memory.
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
        @param state: the database that survives a restart.
        """
        self._state = state

    def isKnown(self, path: str) -> bool:
        """
        @return: whether the existence of this mailbox is recorded already.
        """
        return path in self._there

    def mayBeMade(self, path: str) -> bool:
        """
        Decide whether a mailbox that does not exist may be created.  Blocks.

        @return: whether the mailbox never existed.  If it existed before, its file system may not
            be mounted.
        """
        if self._unwritten:
            self._write()
        return self._state.ask("SELECT 1 FROM mailbox WHERE path = ?", os.fsencode(path)) == []

    def isThere(self, path: str, isInThread: bool) -> None:
        """
        Record that a mailbox exists.

        @param isInThread: whether the caller runs in a thread, so that this may block.
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
                # The next write includes this path.
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
            # The next login to each mailbox tries again.
            for path in paths:
                self._there.forget(path)

    def isMissing(self, path: str) -> None:
        """
        Handle a mailbox that does not exist.  Blocks.

        @raise POP3ResponseError: C{SYS/TEMP} if the mailbox existed before, or the database
            cannot be read.
        """
        if self._unwritten:
            self._write()
        wasThere = self._state.ask("SELECT 1 FROM mailbox WHERE path = ?", os.fsencode(path))
        isFirst = self._missing.isFirst(path)
        # Record the mailbox again once it is back.
        self._there.forget(path)
        if wasThere is None:
            # The database is unreadable.  An empty maildrop might be wrong.
            raise POP3ResponseError("Mailbox is not available now.", "SYS/TEMP")
        if not wasThere:
            if isFirst:
                log.info("mailbox {path} is incomplete: serving what exists", path=path)
            return
        if isFirst:
            log.error(
                "mailbox {path} is missing: is its file system mounted?  Its user gets "
                "[SYS/TEMP] until it is back",
                path=path,
            )
        raise POP3ResponseError("Mailbox is not available now.", "SYS/TEMP")
