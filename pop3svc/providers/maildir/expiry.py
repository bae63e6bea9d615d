"""
Delete old messages from Maildirs.  No two processes do this in the same directory of Maildirs at
the same time.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from pop3svc.awaiting import CallTimeout, callWithTimeout
from pop3svc.errors import POP3ResponseError
from pop3svc.files import closeQuietly
from pop3svc.once import Once
from pop3svc.providers.files.deletion import OWN_NAMES, Place
from pop3svc.providers.files.folders import OpenFolders
from pop3svc.providers.files.mailbox import ExclusiveFileMailbox
from pop3svc.providers.files.snapshot import listFolder
from pop3svc.providers.locking import pause
from pop3svc.providers.owners import Owned, Owners, executorFor
from pop3svc.providers.paths import PathTemplate, Root, openBelow
from pop3svc.threadpool import Executor, mustStop

__all__ = ["Expiry", "arrivalOf"]

log = Logger(namespace="pop3svc")

# The errors that were logged already.
_faults = Once()

T = TypeVar("T")

_DAY = 86_400
# 36 hours in seconds.  A file in "tmp" that is older belongs to no delivery (maildir(5)).
_UNFINISHED = 129_600
_FOLDERS = ("new", "cur")
_SECONDS = re.compile(r"([0-9]{1,15})\.")
# A round visits all Maildirs of a store, and locks the file with this name.  The time of
# modification of the file is the beginning of the latest round.
MARK = ".pop3svc-expiry"
_EXPLANATION = b"pop3svc deletes old mail; the time of this file is the start of the last round.\n"


def arrivalOf(name: str, modified: float) -> float:
    """
    @param name: the name of a message's file.
    @param modified: the time of modification of the file in seconds since the epoch.
    @return: the time from which the age of a message counts, in seconds since the epoch.  It is the
        time at the beginning of the name or the time of modification, whichever is later.  A
        program that copies a message to a mailbox writes the present time into the name, and keeps
        the time of the file.  A message that was restored from a backup has an old name.  In both
        cases the message may have come into the mailbox as late as the later time.  The later time
        counts, because the capability EXPIRE promises a minimum (RFC 2449 section 6.7).
    """
    found = _SECONDS.match(name)
    return modified if found is None else max(modified, float(found[1]))


@dataclass
class _Round:
    """
    The numbers of messages, Maildirs and files of one round.

    @ivar messages: the number of deleted messages.
    @ivar mailboxes: the number of Maildirs from which messages were deleted.
    @ivar files: the number of files that were removed from C{tmp}.
    @ivar inUse: the number of Maildirs with old messages that were skipped because a session had
        locked them.
    @ivar failed: the number of Maildirs that could not be read or changed.
    @ivar isOver: whether all Maildirs were visited.
    """

    messages: int = 0
    mailboxes: int = 0
    files: int = 0
    inUse: int = 0
    failed: int = 0
    isOver: bool = False


class Expiry:
    """
    Deletes messages from the Maildirs of a store if they are older than a number of days.  It also
    deletes files that deliveries have left in C{tmp}.
    """

    # Times in seconds.  INTERVAL is the least time from the beginning of a round to the beginning
    # of the next round, even if another process does that round.  CHECK is the time between two
    # checks of whether a round is due.  FIRST is the time from the start to the first check.
    INTERVAL, CHECK, FIRST = 21_600.0, 600.0, 2.0
    # After at most VISITED Maildirs, a round pauses for PAUSE seconds.  In the pauses, sessions can
    # use the disk and the threads.
    VISITED, PAUSE = 20, 0.05
    # The most messages that are deleted at a time.  With this limit a login need not wait long for
    # the lock.
    BATCH = 500
    # If the latest round was more than this number of seconds ago, or more than this number of
    # seconds in the future, the clock may be wrong.  If the clock is far ahead, all messages look
    # old and would be deleted.
    DOUBT = 604_800.0
    # The time limit of a step in seconds.  A large mailbox on a slow disk needs less time.
    TIMEOUT = 300.0

    def __init__(
        self,
        template: PathTemplate,
        owners: Owners,
        days: int,
        open: Callable[[str, Owned], ExclusiveFileMailbox],
        executor: Executor,
        clock: Any = None,
    ) -> None:
        """
        @param owners: finds the rights of users.
        @param days: the age in days from which messages are deleted.
        @param open: takes a user and the user's Maildir, and returns the mailbox.  The lock of this
            mailbox must not ask another session to release the mailbox.
        @raise ValueError: the paths of the Maildirs do not show to which users they belong.
        """
        template.requireUsers()
        self._template = template
        self._owners = owners
        self._days = days
        self._open = open
        self._executor = executor
        self._clock = clock
        self._mark = os.path.join(template.base, MARK)
        # The time at which the round began, in seconds since the epoch.
        self._begun = 0.0
        self._timer: IDelayedCall | None = None
        self._running: Deferred[None] | None = None

    def start(self) -> None:
        """
        Begin to do rounds.
        """
        if self._clock is None:
            from twisted.internet import reactor

            self._clock = reactor
        self._timer = self._clock.callLater(self.FIRST, self._begin)

    def stop(self) -> None:
        """
        Do no further rounds.  A deletion that has begun goes on.  If the process ends during the
        deletion, the next session that locks the mailbox completes or undoes it.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._running is not None:
            self._running.cancel()

    def _begin(self) -> None:
        self._timer = self._clock.callLater(self.CHECK, self._begin)
        if self._running is None:
            running = self._running = Deferred.fromCoroutine(self.run())
            running.addErrback(self._failed).addBoth(self._ended)

    def _failed(self, failure: Any) -> None:
        if failure.check(CancelledError) is None:
            log.failure("deleting old messages failed", failure)

    def _ended(self, _: object) -> None:
        self._running = None

    async def _call(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return await callWithTimeout(call, *arguments, clock=self._clock, timeout=self.TIMEOUT)

    def _inThread(self, work: Callable[..., T], *arguments: Any, **named: Any) -> Deferred[T]:
        # Use a separate group for each file system, so that a dead file system takes no threads
        # from the others.
        group = self._template.base, self._mark
        return self._executor.run(work, *arguments, group=group, **named)

    async def run(self) -> None:
        """
        Do a round if it is due, unless another process is doing a round.
        """
        try:
            mark = await self._call(lambda: self._inThread(self._take, abandoned=_close))
        except OSError as error:
            if _faults.isFirst((self._mark, str(error))):
                log.error(
                    "cannot use {path}, so no old messages are deleted: {error}",
                    path=self._mark,
                    error=error.strerror,
                )
            return
        except (POP3ResponseError, CallTimeout):
            # Try again later, because the file system does not answer, or all threads are busy.
            return
        if mark is None:
            return
        round = _Round()
        try:
            await self._walk(round)
        except CallTimeout:
            log.error("{path} does not answer; old messages stay", path=self._template.base)
        except OSError as error:
            log.error(
                "cannot list {path}, so old messages stay: {error}",
                path=self._template.base,
                error=error.strerror,
            )
        finally:
            # Close the file, which releases the lock.
            closeQuietly(mark)
            self._report(round)

    def _report(self, round: _Round) -> None:
        log.info(
            "deleted {messages} messages older than {days} days from {mailboxes} "
            "Maildirs and {files} old files from tmp; {inUse} Maildirs were in use, "
            "{failed} could not be read or changed",
            days=self._days,
            messages=round.messages,
            mailboxes=round.mailboxes,
            files=round.files,
            inUse=round.inUse,
            failed=round.failed,
        )

    async def _walk(self, round: _Round) -> None:
        def failed(place: Root, error: OSError) -> None:
            round.failed += 1
            if _faults.isFirst((place.path, str(error))):
                log.error("cannot expire {path}: {error}", path=place.path, error=error.strerror)

        mailboxes = self._template.mailboxes(failed)
        while not round.isOver:
            if self._owners.areUsers:
                await self._expireOwned(mailboxes, round, failed)
            else:
                found = await self._call(
                    lambda: self._inThread(self._nextWithOld, mailboxes, round, failed)
                )
                if found is not None:
                    username, place = found
                    await self._expire(username, Owned(place, None), round)
            await pause(self._clock, self.PAUSE)

    async def _expireOwned(
        self,
        mailboxes: Iterator[tuple[str, Root]],
        round: _Round,
        failed: Callable[[Root, OSError], object],
    ) -> None:
        """
        Delete old messages from the next Maildirs.  Use each Maildir with the rights of its user,
        because the service itself may not be allowed to read it.
        """
        batch = await self._call(self._inThread, lambda: list(islice(mailboxes, self.VISITED)))
        round.isOver = len(batch) < self.VISITED
        for username, place in batch:
            try:
                found = await self._call(self._owners.find, username)
                if found is None:
                    # Skip the directory, because it does not belong to a user of this store.
                    continue
                executor = executorFor(self._executor, found.user)
                group = place.base, place.path
                hasOld = await self._call(
                    partial(executor.run, self._visit, place, round, group=group)
                )
            except OSError as error:
                failed(place, error)
            except POP3ResponseError:
                round.failed += 1
            else:
                if hasOld:
                    await self._expire(username, found, round)

    async def _expire(self, username: str, found: Owned, round: _Round) -> None:
        """
        Delete old messages from a Maildir, unless a session has locked it.
        """
        isWanted = False

        def requestRelease() -> bool:
            nonlocal isWanted
            isWanted = True
            return True

        mailbox: Any = self._open(username, found)
        try:
            await self._call(mailbox.lock, None, requestRelease)
        except POP3ResponseError as error:
            if error.code == "IN-USE":
                round.inUse += 1
            else:
                round.failed += 1
            return
        except CallTimeout:
            round.failed += 1
            return
        deleted = 0
        try:
            await self._call(mailbox.listMessageUniqueIDs, None)
            old = await self._call(mailbox.select, self._isOld)
            # Stop if a session waits for the mailbox.  The next round deletes the rest.
            while old and not isWanted:
                await self._call(mailbox.messageDelete, None, old[: self.BATCH])
                deleted += len(old[: self.BATCH])
                del old[: self.BATCH]
        except (POP3ResponseError, CallTimeout):
            # Do not log the error, because the mailbox logs errors of files itself.
            round.failed += 1
        finally:
            mailbox.unlock(None)
            round.messages += deleted
            round.mailboxes += deleted > 0

    # --- in a thread ------------------------------------------------------------------

    def _take(self) -> int | None:
        """
        Begin a round.

        @return: a descriptor of the file C{MARK}; L{None} if no round is due, or if another process
            is doing a round.  The file is locked until the descriptor is closed.
        @raise OSError: the file cannot be used.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        mark = os.open(self._mark, flags, 0o600)
        try:
            status = os.fstat(mark)
            if not stat.S_ISREG(status.st_mode) or status.st_uid not in (0, os.geteuid()):
                raise OSError(errno.EPERM, "it belongs to another user, or is not a regular file")
            try:
                fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                closeQuietly(mark)
                return None
            status = os.fstat(mark)
            self._begun = time.time()
            # If the file is empty, it was created just now.
            if status.st_size and not self._isDue(self._begun - status.st_mtime):
                closeQuietly(mark)
                return None
            if not status.st_size:
                os.write(mark, _EXPLANATION)
            os.utime(mark)
        except BaseException:
            closeQuietly(mark)
            raise
        return mark

    def _isDue(self, age: float) -> bool:
        """
        @param age: the number of seconds since the beginning of the latest round.  It is negative
            if the clock was set back.
        """
        if abs(age) < self.DOUBT:
            return not 0 <= age < self.INTERVAL
        if _faults.isFirst((self._mark, "clock")):
            log.error(
                "{path} has the time of the last round, which is more than {days} days from now; "
                "the clock may be wrong, so no old messages are deleted; if it is right, "
                "run: touch {path}",
                path=self._mark,
                days=int(self.DOUBT) // _DAY,
            )
        return False

    def _nextWithOld(
        self,
        mailboxes: Iterator[tuple[str, Root]],
        round: _Round,
        failed: Callable[[Root, OSError], object],
    ) -> tuple[str, Root] | None:
        """
        Visit the next Maildirs until one of them has old messages.  Do not lock them.

        @return: the user and the Maildir; L{None} if the visited Maildirs have no old messages.
        """
        visited = 0
        for username, place in islice(mailboxes, self.VISITED):
            visited += 1
            try:
                if self._visit(place, round):
                    return username, place
            except OSError as error:
                failed(place, error)
            if mustStop():
                return None
        round.isOver = visited < self.VISITED
        return None

    def _visit(self, place: Root, round: _Round) -> bool:
        """
        Visit a Maildir, and remove the files that deliveries have left in its C{tmp}.

        @return: whether the Maildir has old messages.
        """
        root = place.open()
        if root is None:
            return False
        try:
            with OpenFolders(root) as opened:
                try:
                    for folder in _FOLDERS:
                        opened[folder]
                except FileNotFoundError:
                    # Skip the directory, because it is not a Maildir, or its file system is not
                    # mounted.
                    return False
                round.files += _removeUnfinished(root, self._begun - _UNFINISHED)
                return any(
                    self._isOld(found, opened)
                    for folder in _FOLDERS
                    for found in listFolder(root, folder)
                    if not mustStop()
                )
        finally:
            closeQuietly(root)

    def _isOld(self, place: Place, opened: OpenFolders) -> bool:
        """
        @return: whether a message has to be deleted.
        """
        # Use the time at which the round began, because the clock may be set during the round.
        before = self._begun - self._days * _DAY
        # Look at the name first.  Most names contain a time that is late enough, and then no stat()
        # is needed.
        if arrivalOf(place[1], 0.0) >= before:
            return False
        status = opened.status(place)
        return status is not None and arrivalOf(place[1], status.st_mtime) < before


def _close(mark: int | None) -> None:
    if mark is not None:
        closeQuietly(mark)


def _removeUnfinished(root: int, before: float) -> int:
    """
    Remove the files from C{tmp} that nobody has read or changed for 36 hours.

    @param root: a descriptor of a Maildir.
    @param before: the time 36 hours before the beginning of the round, in seconds since the epoch.
    @return: the number of removed files.
    """
    try:
        tmp = openBelow("tmp", root)
    except FileNotFoundError:
        return 0
    removed = 0
    try:
        for name in os.listdir(tmp):
            # Skip files with these prefixes, because a removal on a full disk moves messages to
            # "tmp".
            if name.startswith(OWN_NAMES):
                continue
            with suppress(FileNotFoundError):
                status = os.lstat(name, dir_fd=tmp)
                # Look at the other times as well, because a delivery may have set the time of
                # modification to the time of the message.
                latest = max(status.st_atime, status.st_mtime, status.st_ctime)
                if stat.S_ISREG(status.st_mode) and latest < before:
                    os.unlink(name, dir_fd=tmp)
                    removed += 1
            if mustStop():
                break
    finally:
        closeQuietly(tmp)
    return removed
