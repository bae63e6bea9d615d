"""
Read mbox files.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from email.utils import mktime_tz, parsedate_tz

from pop3svc.files import closeQuietly
from pop3svc.providers.mbox.locks import MboxBusy, lockFile
from pop3svc.providers.mbox.scan import NotMbox, Stored, nameMessages, readExactly, scanMessages
from pop3svc.providers.mbox.text import MessageDigest, Unquoter, headerEnd
from pop3svc.transfer.failures import NotPossible, TryAgain, Unreadable
from pop3svc.transfer.source import Source, SourceMessage

__all__ = ["MboxSource", "arrivalIn"]

# The number of octets that are read in one step.
_BLOCK = 262_144
# The number of octets of a header that are searched for Content-Length.
_HEADER = 65_536
_LENGTH = re.compile(rb"^Content-Length:[ \t]*([0-9]{1,15})[ \t]*\r?$", re.I | re.M)
_DATE = re.compile(r"\b(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun),? +[A-Za-z0-9: +-]+$")


def arrivalIn(envelope: bytes) -> float | None:
    """
    @param envelope: an envelope line.
    @return: the date in the line, in seconds since the epoch; L{None} if the line has no valid
        date.  A date without a zone is taken as UTC (RFC 4155).
    """
    found = _DATE.search(envelope.decode("ascii", "replace").strip())
    parsed = None if found is None else parsedate_tz(found[0])
    if parsed is None:
        return None
    try:
        arrival = mktime_tz(parsed)
    except (ValueError, OverflowError):
        return None
    return float(arrival) if arrival > 0 else None


class MboxSource(Source):
    """
    An mbox file.  Other programs may append to it or replace it during the import.
    """

    def __init__(self, path: str, variant: str, usesXUIDL: bool) -> None:
        """
        @param variant: one of L{VARIANTS<pop3svc.providers.mbox.text.VARIANTS>}.
        @param usesXUIDL: whether the field X-UIDL of a message is its unique-id.
        """
        super().__init__(path)
        self._variant = variant
        self._usesXUIDL = usesXUIDL
        self._descriptor = -1
        self._status: os.stat_result | None = None

    def messages(self) -> Sequence[SourceMessage]:
        """
        See L{Source.messages}.  If the field X-UIDL does not give the unique-id of a message, the
        unique-id is made from the message's octets and its envelope line.
        """
        self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise NotPossible(f"{self.path} is not a regular file")
        # Lock a second descriptor.  When the second descriptor is closed, the lock ends, and the
        # first descriptor stays open.
        locked = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self._lock(locked)
            self._status = status = os.fstat(self._descriptor)
            stored = scanMessages(self._descriptor, status.st_size, self._variant)
        except NotMbox as error:
            raise NotPossible(f"{self.path} cannot be imported: {error.strerror}")
        finally:
            closeQuietly(locked)
        arrival, found = status.st_mtime, []
        for uniqueID, each in nameMessages(stored, frozenset(), self._usesXUIDL).items():
            envelope = readExactly(self._descriptor, each.content - each.start, each.start)
            arrival = arrivalIn(envelope) or arrival
            found.append(SourceMessage(each, arrival, uniqueID))
        return found

    def _lock(self, descriptor: int) -> None:
        """
        @raise TryAgain: another program has locked the file.
        """
        try:
            lockFile(descriptor, isShared=True)
        except MboxBusy:
            raise TryAgain(f"another program has locked {self.path}")
        except OSError:
            # Go on without a lock, because the file system has none.  The digests will show whether
            # the file has changed.
            pass

    def pieces(self, message: SourceMessage) -> Iterator[bytes]:
        """
        See L{Source.pieces}.
        """
        stored: Stored = message.key
        if self._isCut(stored):
            raise Unreadable("the mbox ends in the middle of the message")
        envelope = readExactly(self._descriptor, stored.content - stored.start, stored.start)
        digest = MessageDigest(envelope)
        unquoter = Unquoter() if self._variant == "mboxrd" else None
        for offset in range(stored.content, stored.end, _BLOCK):
            octets = min(_BLOCK, stored.end - offset)
            block = os.pread(self._descriptor, octets, offset)
            digest.feed(block)
            yield block if unquoter is None else unquoter.feed(block)
        if digest.digest() != stored.digest:
            raise Unreadable("another program changed the mbox meanwhile", isTemporary=True)
        if unquoter is not None:
            yield unquoter.finish()

    def _isCut(self, stored: Stored) -> bool:
        """
        @return: whether the end of a message is missing.  Only the last message can have lost its
            end: the last line of the file has no line end, or C{Content-Length} in an mboxcl2
            counts more octets than the file has.
        """
        assert self._status is not None
        size = self._status.st_size
        if stored.following < size:
            return False
        if readExactly(self._descriptor, 1, size - 1) != b"\n":
            return True
        if self._variant != "mboxcl2":
            return False
        header = os.pread(self._descriptor, min(_HEADER, size - stored.content), stored.content)
        end = headerEnd(header)
        found = None if end is None else _LENGTH.search(header, 0, end)
        return end is not None and found is not None and stored.content + end + int(found[1]) > size

    def hasMore(self) -> bool:
        """
        See L{Source.hasMore}.
        """
        try:
            now = os.stat(self.path)
        except FileNotFoundError:
            return True
        then = self._status
        assert then is not None
        return (now.st_ino, now.st_size) != (then.st_ino, then.st_size)

    def close(self) -> None:
        """
        See L{Source.close}.
        """
        if self._descriptor >= 0:
            closeQuietly(self._descriptor)
            self._descriptor = -1
