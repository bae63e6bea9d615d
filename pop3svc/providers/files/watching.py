"""
Use inotify (Linux) to watch mailboxes for changes, and to see when a program sets the times of a
directory.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Any

from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.filepath import FilePath
from zope.interface import implementer

try:
    from twisted.python import _inotify
    from twisted.python._inotify import INotifyError
except ImportError:  # pragma: no cover (another kernel)
    _inotify = None  # type: ignore[assignment]

__all__ = ["DirectoryWatcher", "Inotify", "MailboxWatch"]

log = Logger(namespace="pop3svc")

# The device and the inode of a directory.
Key = tuple[int, int]

# The beginning of an event: wd, mask, cookie, and the length of the name that follows (inotify(7)).
_EVENT = struct.Struct("=iIII")
_READ = 65536
_OVERFLOW = 0x4000
# IN_ONLYDIR and IN_DONT_FOLLOW
_FLAGS = 0x01000000 | 0x02000000
# IN_DELETE_SELF, IN_MOVE_SELF and IN_IGNORED.  After such an event the watch ends or has ended.
_GONE = 0x0400 | 0x0800 | 0x8000
# IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE, IN_DELETE_SELF and IN_MOVE_SELF
_CHANGES = 0x0040 | 0x0080 | 0x0100 | 0x0200 | 0x0400 | 0x0800
# IN_ATTRIB and IN_DELETE_SELF
_TOUCHES = 0x0004 | 0x0400

_changes = count(1)


class _Reader:
    """
    Reads the events of an inotify descriptor.  The descriptor is open as long as there is a watch.

    @ivar descriptor: the descriptor; -1 if it is not open.
    """

    def __init__(self, isOff: bool) -> None:
        """
        @param isOff: whether nothing is watched.
        """
        self.descriptor = -1
        self._isOff = isOff or _inotify is None

    def add(self, path: str, mask: int) -> int | None:
        """
        Watch a directory.  The last part of C{path} must not be a link.

        @return: the number of the watch; L{None} if the directory cannot be watched.  If the
            directory is watched already, it keeps its number.
        """
        if self._isOff:
            return None
        try:
            if self.descriptor < 0:
                self.descriptor = _inotify.init()
                os.set_blocking(self.descriptor, False)
                os.set_inheritable(self.descriptor, False)
            number: int = _inotify.add(self.descriptor, FilePath(path), mask | _FLAGS)
        except (OSError, INotifyError):
            return None
        return number

    def remove(self, number: int) -> None:
        """
        End a watch.
        """
        try:
            _inotify.remove(self.descriptor, number)
        except INotifyError:
            # Ignore the error, because the directory has just been removed.
            pass

    def read(self) -> Iterator[tuple[int, int]] | None:
        """
        Read the events that the kernel has queued.

        @return: the number of the watch and the mask of each event; L{None} if there is no event.
        """
        if self.descriptor < 0:
            return None
        try:
            return eventsIn(os.read(self.descriptor, _READ))
        except (BlockingIOError, InterruptedError):
            return None

    def close(self) -> None:
        """
        Close the descriptor, which ends all watches.
        """
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def eventsIn(data: bytes) -> Iterator[tuple[int, int]]:
    """
    @param data: a block of inotify events (inotify(7)).
    @return: the number of the watch and the mask of each event.
    """
    offset = 0
    while offset + _EVENT.size <= len(data):
        number, mask, _, length = _EVENT.unpack_from(data, offset)
        offset += _EVENT.size + length
        yield number, mask


class MailboxWatch:
    """
    The watch of one mailbox by inotify.

    @ivar changes: a number that gets a new value after each change in the mailbox.  Two watches
        never have the same value.
    @ivar isBroken: whether the watch has ended, so that it reports no changes any more.
    """

    def __init__(self, watches: Inotify, key: Key) -> None:
        self.key = key
        self.changes = next(_changes)
        self.isBroken = False
        self.numbers: list[int] = []
        self.called: list[Callable[[], object]] = []
        self._watches = watches

    def look(self) -> int:
        """
        Process the events that the kernel has queued.

        @return: the value of L{changes}.
        """
        self._watches.drain()
        return self.changes

    def changed(self) -> None:
        """
        Record a change, and tell the sessions.
        """
        self.changes = next(_changes)
        for each in list(self.called):
            each()


class Inotify:
    """
    Watches the mailboxes of one store.  A mailbox has one watch, even if several sessions watch it
    by different paths.  Use this object in the reactor's thread only.

    Events are not read at each delivery, but when a session looks for changes, such as at WAKE.
    The kernel keeps the events in a queue until then.  If the queue overflows, the kernel reports
    the overflow.
    """

    def __init__(self, isOff: bool = False) -> None:
        """
        @param isOff: whether nothing is watched.
        """
        self._reader = _Reader(isOff)
        self._watches: dict[Key, MailboxWatch] = {}
        self._byNumber: dict[int, MailboxWatch] = {}

    def watch(
        self, root: int, folders: Iterable[str], changed: Callable[[], object]
    ) -> tuple[MailboxWatch, Callable[[], None]] | None:
        """
        Watch a mailbox for one session.

        @param root: a descriptor of the mailbox.
        @param folders: the directories in the mailbox that contain messages.
        @param changed: called after each change.
        @return: the watch, and a function that ends the watch for this session; L{None} if inotify
            cannot watch the mailbox.
        """
        status = os.fstat(root)
        key = status.st_dev, status.st_ino
        watch = self._watches.get(key)
        if watch is None:
            watch = self._begun(MailboxWatch(self, key), root, folders)
            if watch is None:
                return None
            self._watches[key] = watch
        watch.called.append(changed)
        kept = watch

        def end() -> None:
            kept.called.remove(changed)
            if not kept.called and self._watches.get(key) is kept:
                self._drop(kept)

        return watch, end

    def _begun(self, watch: MailboxWatch, root: int, folders: Iterable[str]) -> MailboxWatch | None:
        for folder in folders:
            # Watch the directory by its descriptor, because its path may name another directory
            # now.
            number = self._reader.add(f"/proc/self/fd/{root}/{folder}", _CHANGES)
            # If the number is known already, it belongs to another mailbox that has the same
            # folder.
            if number is None or number in self._byNumber:
                # Go on without a watch.  The mailbox then compares the times of its directories.
                self._drop(watch)
                return None
            watch.numbers.append(number)
            self._byNumber[number] = watch
        return watch

    def _drop(self, watch: MailboxWatch) -> None:
        watch.isBroken = True
        watch.changed()
        if self._watches.get(watch.key) is watch:
            del self._watches[watch.key]
        for number in watch.numbers:
            if self._byNumber.pop(number, None) is not None:
                self._reader.remove(number)
        if not self._byNumber:
            self.stop()

    def drain(self) -> None:
        """
        Process all events that the kernel has queued.
        """
        while (events := self._reader.read()) is not None:
            self.process(events)

    def process(self, events: Iterable[tuple[int, int]]) -> None:
        """
        @param events: the number of the watch and the mask of each event.
        """
        for number, mask in events:
            known = self._byNumber.get(number)
            if mask & _OVERFLOW:
                for watch in list(self._watches.values()):
                    watch.changed()
            elif known is not None and mask & _GONE:
                self._drop(known)
            elif known is not None:
                known.changed()

    def stop(self) -> None:
        """
        Close the inotify descriptor.
        """
        self._reader.close()


@implementer(IReadDescriptor)
class DirectoryWatcher:
    """
    Watches directories, and calls a function as soon as a program sets the times of a directory.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._reader = _Reader(not IReactorFDSet.providedBy(reactor))
        self._watched: dict[int, Callable[[bool], object]] = {}

    def watch(self, path: str, touched: Callable[[bool], object]) -> int | None:
        """
        Watch a directory.

        @param touched: called with L{False} when the times were set.  It is called with L{True}
            when the directory was removed and the watch has ended.
        @return: a number for L{end}; L{None} if inotify cannot watch the directory.
        """
        wasOpen = self._reader.descriptor >= 0
        number = self._reader.add(path, _TOUCHES)
        if not wasOpen and self._reader.descriptor >= 0:
            self._reactor.addReader(self)
        if number is None:
            self._stopIfIdle()
            return None
        self._watched[number] = touched
        return number

    def end(self, number: int) -> None:
        """
        End the watch of a directory.
        """
        if self._watched.pop(number, None) is not None:
            self._reader.remove(number)
            self._stopIfIdle()

    def _stopIfIdle(self) -> None:
        if not self._watched and self._reader.descriptor >= 0:
            self._reactor.removeReader(self)
            self._reader.close()

    def fileno(self) -> int:
        """
        See L{twisted.internet.interfaces.IFileDescriptor.fileno}.
        """
        return self._reader.descriptor

    def logPrefix(self) -> str:
        """
        See L{twisted.internet.interfaces.ILoggingContext.logPrefix}.
        """
        return "pop3svc"

    def connectionLost(self, reason: Failure) -> None:
        """
        See L{twisted.internet.interfaces.IFileDescriptor.connectionLost}.  The reactor calls this
        method when it stops.
        """
        self._watched.clear()
        self._stopIfIdle()

    def doRead(self) -> None:
        """
        See L{twisted.internet.interfaces.IReadDescriptor.doRead}.
        """
        for number, mask in self._reader.read() or ():
            # Call all functions after an overflow, because the times of any directory may have been
            # set.
            for each in list(self._watched) if mask & _OVERFLOW else [number]:
                self._dispatch(each, bool(mask & _GONE))

    def _dispatch(self, number: int, isGone: bool) -> None:
        touched = self._watched.get(number)
        if touched is not None:
            if isGone:
                self.end(number)
            touched(isGone)
