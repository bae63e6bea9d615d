"""
Write an mbox.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import BinaryIO, NamedTuple

from pop3svc.files import closeQuietly, syncDirectory
from pop3svc.providers.files.storing import NO_LINKS
from pop3svc.providers.mbox.delivery import storedText
from pop3svc.providers.mbox.scan import scanMessages
from pop3svc.providers.mbox.text import makeEnvelope
from pop3svc.transfer.failures import NotPossible
from pop3svc.transfer.target import Target, lockOwn

__all__ = ["MboxTarget"]

_VARIANT = "mboxrd"
# The end of the name of the directory that contains an unfinished mbox, and the names of the files
# in this directory.
_UNFINISHED = ".unfinished"
_MBOX, _JOURNAL = "mbox", "journal"
# When this number of messages or octets is written, the messages are made durable and entered in
# the journal.
_MESSAGES, _OCTETS = 200, 16_777_216


class _Entry(NamedTuple):
    """
    An entry of the journal: a message that is durable.

    @ivar end: the offset in the mbox at which the message ends.
    @ivar after: the offset in the journal at which the message's line ends.
    """

    uniqueID: str
    end: int
    after: int


class MboxTarget(Target):
    """
    An mbox file of the variant mboxrd that an export writes.  The file is written under another
    name, and gets its own name when it is complete.  A journal records the messages that are
    durable.
    """

    def __init__(self, path: str, username: str, addsXUIDL: bool = False) -> None:
        """
        @param username: the user of the mailbox.
        @param addsXUIDL: whether to add the field X-UIDL to each message.
        """
        super().__init__(path)
        self._work = f"{os.path.abspath(path)}{_UNFINISHED}"
        head = {"user": username, "x-uidl": addsXUIDL}
        self._head = json.dumps(head).encode("ascii") + b"\n"
        self._addsXUIDL = addsXUIDL
        self._journal = self._mbox = -1
        self._written: list[str] = []
        self._pending: list[bytes] = []
        self._end = self._synced = 0
        self._isPublished = False

    def prepare(self, uniqueIDs: Sequence[str]) -> int:
        """
        See L{Target.prepare}.
        """
        self._refuseUsedPath()
        with suppress(FileExistsError):
            os.mkdir(self._work, 0o700)
            syncDirectory(os.path.dirname(self._work))
        others = set(os.listdir(self._work)) - {_MBOX, _JOURNAL}
        if others:
            raise NotPossible(f"{self._work} does not belong to an export")
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._journal = os.open(os.path.join(self._work, _JOURNAL), flags, 0o600)
        lockOwn(self._journal, self.path)
        self._mbox = os.open(os.path.join(self._work, _MBOX), flags, 0o600)
        done = self._resume(uniqueIDs)
        syncDirectory(self._work)
        return done

    def _refuseUsedPath(self) -> None:
        """
        @raise NotPossible: the path is used, and it is neither an empty file nor the mbox of an
            interrupted export.
        """
        try:
            there = os.lstat(self.path)
        except FileNotFoundError:
            return
        if os.path.isfile(self.path) and not os.path.islink(self.path) and not there.st_size:
            return
        try:
            own = os.stat(os.path.join(self._work, _MBOX))
        except FileNotFoundError:
            own = None
        if own is None or (own.st_dev, own.st_ino) != (there.st_dev, there.st_ino):
            raise NotPossible(f"{self.path} is not empty")
        # An earlier export was killed after the mbox had got its own name.
        self._isPublished = True

    def _resume(self, uniqueIDs: Sequence[str]) -> int:
        """
        Keep the first messages of the mbox as long as they are also the first messages of the
        mailbox, and continue after them.

        @return: the number of the messages that are kept.
        """
        with open(self._journal, "rb", closefd=False) as file:
            head = file.readline()
            size = os.fstat(self._mbox).st_size
            if not head.endswith(b"\n"):
                if size:
                    raise NotPossible(f"{self._work} does not belong to an export")
                os.ftruncate(self._journal, 0)
                os.pwrite(self._journal, self._head, 0)
                os.fsync(self._journal)
                head = self._head
            if head != self._head:
                raise NotPossible(f"{self._work} has the unfinished export of another mailbox")
            last = _Entry("", 0, len(self._head))
            for uniqueID in uniqueIDs:
                entry = _parse(file.readline(), last.after)
                if entry is None or entry.uniqueID != uniqueID or entry.end > size:
                    break
                self._written.append(uniqueID)
                last = entry
            isWhole = not file.readline()
        if self._isPublished and not (isWhole and size == last.end):
            # Do not change an mbox that already has its final name.
            raise NotPossible(f"{self.path} is not empty")
        os.ftruncate(self._mbox, last.end)
        os.ftruncate(self._journal, last.after)
        for descriptor, offset in ((self._mbox, last.end), (self._journal, last.after)):
            os.lseek(descriptor, offset, os.SEEK_SET)
        self._end = self._synced = last.end
        return len(self._written)

    def add(self, uniqueID: str, content: BinaryIO, arrival: float, sender: bytes) -> None:
        """
        See L{Target.add}.
        """
        header = f"X-UIDL: {uniqueID}\r\n".encode("ascii") if self._addsXUIDL else b""
        envelope = makeEnvelope(sender, arrival)
        start = self._end
        try:
            for piece in storedText(envelope, header, content, _VARIANT):
                _writeAll(self._mbox, piece)
                self._end += len(piece)
        except BaseException:
            # Remove what was written of this message, because the mbox must contain only complete
            # messages.
            self._end = start
            os.ftruncate(self._mbox, start)
            os.lseek(self._mbox, start, os.SEEK_SET)
            raise
        self._written.append(uniqueID)
        self._pending.append(json.dumps([uniqueID, self._end]).encode("ascii") + b"\n")
        if len(self._pending) >= _MESSAGES or self._end - self._synced >= _OCTETS:
            self._sync()

    def _sync(self) -> None:
        os.fsync(self._mbox)
        _writeAll(self._journal, b"".join(self._pending))
        os.fsync(self._journal)
        self._pending = []
        self._synced = self._end

    def finish(self) -> dict[str, int]:
        """
        See L{Target.finish}.
        """
        self._sync()
        stored = scanMessages(self._mbox, os.fstat(self._mbox).st_size, _VARIANT)
        if len(stored) != len(self._written):
            return {}
        found: dict[str, int] = {}
        for uniqueID, each in zip(self._written, stored, strict=True):
            added = len(f"X-UIDL: {uniqueID}\r\n") if self._addsXUIDL else 0
            found[uniqueID] = each.octets - added
        return found

    def publish(self) -> None:
        """
        See L{Target.publish}.
        """
        mbox, journal = (os.path.join(self._work, each) for each in (_MBOX, _JOURNAL))
        if not self._isPublished:
            with suppress(FileNotFoundError):
                if not os.lstat(self.path).st_size:
                    os.unlink(self.path)
            self._giveName(mbox)
            syncDirectory(os.path.dirname(self._work))
        os.unlink(journal)
        with suppress(FileNotFoundError):
            os.unlink(mbox)
        os.rmdir(self._work)
        syncDirectory(os.path.dirname(self._work))

    def _giveName(self, mbox: str) -> None:
        # Make a link instead of a rename, because a rename could replace another file.
        try:
            os.link(mbox, self.path)
        except OSError as error:
            if error.errno not in NO_LINKS or os.path.lexists(self.path):
                raise
            os.rename(mbox, self.path)

    def close(self) -> None:
        """
        See L{Target.close}.  The written files stay for the next export.
        """
        if self._pending:
            with suppress(OSError):
                self._sync()
        for descriptor in (self._mbox, self._journal):
            if descriptor >= 0:
                closeQuietly(descriptor)
        self._mbox = self._journal = -1


def _parse(line: bytes, before: int) -> _Entry | None:
    """
    @param before: the offset of the line in the journal.
    @return: the entry in a line; L{None} if the line is not a complete entry.
    """
    if not line.endswith(b"\n"):
        return None
    try:
        uniqueID, end = json.loads(line)
        if not (isinstance(uniqueID, str) and isinstance(end, int)):
            return None
    except (TypeError, ValueError):
        return None
    return _Entry(uniqueID, end, before + len(line))


def _writeAll(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
