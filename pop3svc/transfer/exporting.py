"""
Export a mailbox.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.utils import mktime_tz, parsedate_tz
from tempfile import SpooledTemporaryFile
from typing import Any

from pop3svc.providers.maildir.names import parseNames
from pop3svc.threadpool import Executor
from pop3svc.transfer.failures import TryAgain, Unreadable
from pop3svc.transfer.report import Report, messages
from pop3svc.transfer.session import MailboxSession
from pop3svc.transfer.target import Target, failureOf

__all__ = ["Export", "arrivalOf"]

# The most octets of a message that are kept in memory, and the octets of a message that are
# searched for header fields.
_SPOOLED = 262_144
_HEAD = 65_536
_HEADER_END = re.compile(rb"\r?\n\r?\n|\A\r?\n")
_RECEIVED = re.compile(rb"^Received:[^\n]*(?:\n[ \t][^\n]*)*", re.I | re.M)
_DATE = re.compile(rb"^Date:[ \t]*([^\r\n]*)", re.I | re.M)
_RETURN_PATH = re.compile(rb"^Return-Path:[ \t]*<([^<>\r\n]*)>", re.I | re.M)


def arrivalOf(uniqueID: str, head: bytes) -> float | None:
    """
    Guess when a message arrived, because a mailbox does not report the time of arrival.  If the
    unique-id has the form of a file's name in a Maildir, take the time in this name.  Otherwise
    take the time in the first field C{Received}.  If this field is missing or has no valid time,
    take the time in C{Date}.

    @param head: the beginning of the message.
    @return: the time in seconds since the epoch; L{None} if it is not known.
    """
    [(_, seconds, microseconds)] = parseNames([("", uniqueID.replace("/", "_"), 0)], ":")
    if seconds and 0 < int(seconds) < 2**33 and int(seconds) > 10**8:
        return int(seconds) + min(int(microseconds or 0), 999_999) / 1_000_000
    received, date = _RECEIVED.search(head), _DATE.search(head)
    texts = [] if received is None else [received[0].rpartition(b";")[2]]
    texts += [] if date is None else [date[1]]
    for text in texts:
        try:
            parsed = parsedate_tz(text.decode("ascii", "replace"))
            arrival = None if parsed is None else float(mktime_tz(parsed))
        except (ValueError, OverflowError, IndexError):
            continue
        if arrival is not None and 0 < arrival <= time.time():
            return arrival
    return None


@dataclass(frozen=True)
class Export:
    """
    Writes the messages of a mailbox to a file or a directory.

    @ivar session: the session with the mailbox.  L{run} opens and closes it.
    @ivar username: the user of the mailbox.
    @ivar executor: runs work in threads.
    @ivar mustEnd: returns whether the operator wants to end the export.
    """

    session: MailboxSession
    username: str
    target: Target
    executor: Executor
    report: Report
    mustEnd: Callable[[], bool] = lambda: False

    async def run(self) -> int:
        """
        Export the messages, and check the result by reading it.

        @return: the exit status of the command.
        @raise NotPossible: the export cannot be done.
        @raise TryAgain: the export may succeed later.
        """
        try:
            await self.session.open()
            uniqueIDs = self.session.uniqueIDs
            sizes = await self.session.sizes(uniqueIDs)
            done = await self._write(self.target.prepare, uniqueIDs)
            unreadable = await self._copy(uniqueIDs, done)
            found = await self._write(self.target.finish)
            there = [each for each in uniqueIDs if found.get(each) == sizes[each] is not None]
            self._compare(uniqueIDs, sizes, found, unreadable)
            if self.report.exitStatus != 75:
                await self._write(self.target.publish)
        finally:
            self.target.close()
            await self.session.close()
        octets = sum(found[each] for each in there)
        self.report.conclude(
            f"{self.target.path} has {len(there)} of {messages(len(uniqueIDs))} of "
            f"{self.username}, with {octets} octets as sent"
        )
        if self.report.exitStatus == 75:
            raise TryAgain("the export is not complete")
        return self.report.exitStatus

    def _compare(
        self,
        uniqueIDs: Sequence[str],
        sizes: dict[str, int | None],
        found: dict[str, int],
        unreadable: set[int],
    ) -> None:
        for number, uniqueID in enumerate(uniqueIDs, 1):
            if number in unreadable:
                continue
            if uniqueID not in found:
                self.report.failed(number, "it was written, but is not there any more")
            elif found[uniqueID] != sizes[uniqueID]:
                self.report.failed(
                    number,
                    f"it has {found[uniqueID]} octets, but the mailbox reports {sizes[uniqueID]}",
                )

    async def _write(self, work: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return await self.executor.run(work, *arguments)
        except OSError as error:
            raise failureOf(error, self.target.path)

    async def _copy(self, uniqueIDs: Sequence[str], done: int) -> set[int]:
        """
        @param done: the number of messages that an earlier export has written.  These messages are
            the first messages of the mailbox.
        @return: the numbers of the messages that cannot be read.
        """
        unreadable: set[int] = set()
        self.report.begin(len(uniqueIDs))
        latest = 0.0
        for number, uniqueID in enumerate(uniqueIDs, 1):
            if self.mustEnd():
                raise TryAgain("the export was interrupted")
            if number > done and not await self._write(self.target.keep, uniqueID):
                try:
                    latest = await self._copyOne(uniqueID, latest)
                except Unreadable as error:
                    self.report.failed(number, str(error))
                    unreadable.add(number)
            self.report.advance()
        return unreadable

    async def _copyOne(self, uniqueID: str, latest: float) -> float:
        """
        @param latest: the time of arrival of the last message that was copied; 0 if there is none.
        @return: the time of arrival of this message.
        """
        head = bytearray()
        with SpooledTemporaryFile(_SPOOLED) as spool:

            def write(piece: bytes) -> Any:
                head.extend(piece[: max(_HEAD - len(head), 0)])
                return self._write(spool.write, piece)

            await self.session.read(uniqueID, write)
            end = _HEADER_END.search(head)
            header = bytes(head if end is None else head[: end.end()])
            arrival = arrivalOf(uniqueID, header) or latest or time.time()
            sender = _RETURN_PATH.search(header)
            await self._write(
                *(self.target.add, uniqueID, spool),
                *(arrival, b"" if sender is None else sender[1]),
            )
        return arrival
