"""
Watch mailboxes for changes, and directories for new times, with inotify (Linux).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.filepath import FilePath
from zope.interface import implementer

try:
    from twisted.internet import inotify
    from twisted.python import _inotify
    from twisted.python._inotify import INotifyError
except ImportError:  # pragma: no cover (another kernel)
    inotify = None  # type: ignore[assignment]

__all__ = ["DirectoryWatcher", "Inotify", "MailboxWatch"]

log = Logger(namespace="pop3svc")

# (device, inode) of a directory
Key = tuple[int, int]

# wd, mask, cookie, length of the name that follows (inotify(7))
_EVENT = struct.Struct("=iIII")
_READ = 65536
_OVERFLOW = 0x4000
# IN_ONLYDIR and IN_DONT_FOLLOW
_FLAGS = 0x01000000 | 0x02000000

_changes = count(1)


def _begunInotify() -> int:
    descriptor = _inotify.init()
    os.set_blocking(descriptor, False)
    os.set_inheritable(descriptor, False)
    return descriptor


class MailboxWatch:
    """
    A watch of one mailbox.

    @ivar changes: a number that is new after each change in the mailbox, and that no other
        watch has.
    @ivar isBroken: whether the watch has ended and reports no more changes.
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

        @return: L{changes}
        """
        self._watches.drain()
        return self.changes

    def changed(self) -> None:
        """
        Record a change, and notify the sessions.
        """
        self.changes = next(_changes)
        for each in list(self.called):
            each()


class Inotify:
    """
    Watches of the mailboxes of one store.  A mailbox has one watch, also if several
    sessions watch it under different names.  Only for use in the reactor's thread.

    Events are read at WAKE instead of at each delivery.  The kernel's queue is bounded, and
    the kernel reports when it overflows.
    """

    def __init__(self) -> None:
        self._descriptor = -1
        self._isOff = inotify is None
        self._watches: dict[Key, MailboxWatch] = {}
        self._byNumber: dict[int, MailboxWatch] = {}

    def watch(
        self, root: int, folders: Iterable[str], changed: Callable[[], object]
    ) -> tuple[MailboxWatch, Callable[[], None]] | None:
        """
        Watch a mailbox for one session.

        @param root: a descriptor of the mailbox.
        @param folders: the directories in it that hold messages.
        @param changed: called after each change.
        @return: the watch, and a function that ends it for this session; L{None} if
            inotify cannot watch the mailbox.
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
        if self._isOff:
            return None
        try:
            if self._descriptor < 0:
                self._descriptor = _begunInotify()
            mask = inotify.IN_MOVED_FROM | inotify.IN_MOVED_TO | inotify.IN_CREATE
            mask |= inotify.IN_DELETE | inotify.IN_DELETE_SELF | inotify.IN_MOVE_SELF | _FLAGS
            for folder in folders:
                # Watch the directory that is open, because its path may name another one.
                path = FilePath(f"/proc/self/fd/{root}/{folder}")
                number = _inotify.add(self._descriptor, path, mask)
                if number in self._byNumber:
                    raise FileExistsError(f"another mailbox has this {folder}, too")
                watch.numbers.append(number)
                self._byNumber[number] = watch
        except (OSError, INotifyError):
            # The directory does not exist, or there are too many watches.  The mailbox
            # then compares the times of its directories.
            self._drop(watch)
            return None
        return watch

    def _drop(self, watch: MailboxWatch) -> None:
        watch.isBroken = True
        watch.changed()
        if self._watches.get(watch.key) is watch:
            del self._watches[watch.key]
        for number in watch.numbers:
            if self._byNumber.pop(number, None) is not None:
                _inotify.remove(self._descriptor, number)
        if not self._byNumber:
            self.stop()

    def drain(self) -> None:
        """
        Process all events that the kernel has queued.
        """
        while self._descriptor >= 0:
            try:
                data = os.read(self._descriptor, _READ)
            except (BlockingIOError, InterruptedError):
                return
            self.process(data)

    def process(self, data: bytes) -> None:
        """
        Process a block of inotify events.
        """
        offset = 0
        while offset + _EVENT.size <= len(data):
            number, mask, _, length = _EVENT.unpack_from(data, offset)
            offset += _EVENT.size + length
            if mask & _OVERFLOW:
                for watch in list(self._watches.values()):
                    watch.changed()
                continue
            known = self._byNumber.get(number)
            if known is None:
                continue
            if mask & (inotify.IN_DELETE_SELF | inotify.IN_MOVE_SELF | inotify.IN_IGNORED):
                self._drop(known)
            else:
                known.changed()

    def stop(self) -> None:
        """
        Close the inotify descriptor.
        """
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


@implementer(IReadDescriptor)
class DirectoryWatcher:
    """
    Watches directories, and calls back at once when a program sets their times.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._isOff = inotify is None or not IReactorFDSet.providedBy(reactor)
        self._descriptor = -1
        self._watched: dict[int, Callable[[bool], object]] = {}

    def watch(self, path: str, touched: Callable[[bool], object]) -> int | None:
        """
        Watch a directory.

        @param touched: called when the times were set, with L{False}; or when the
            directory was removed and the watch has ended, with L{True}.
        @return: a number for L{end}; L{None} if inotify cannot watch the directory.
        """
        if self._isOff:
            return None
        try:
            if self._descriptor < 0:
                self._descriptor = _begunInotify()
                self._reactor.addReader(self)
            mask = inotify.IN_ATTRIB | inotify.IN_DELETE_SELF | _FLAGS
            number: int = _inotify.add(self._descriptor, FilePath(path), mask)
        except (OSError, INotifyError):
            self._stopIfIdle()
            return None
        self._watched[number] = touched
        return number

    def end(self, number: int) -> None:
        """
        End the watch of a directory.
        """
        if self._watched.pop(number, None) is not None:
            try:
                _inotify.remove(self._descriptor, number)
            except INotifyError:
                # The directory was removed just now.
                pass
            self._stopIfIdle()

    def _stopIfIdle(self) -> None:
        if not self._watched and self._descriptor >= 0:
            self._reactor.removeReader(self)
            os.close(self._descriptor)
            self._descriptor = -1

    def fileno(self) -> int:
        """
        See L{twisted.internet.interfaces.IFileDescriptor.fileno}.
        """
        return self._descriptor

    def logPrefix(self) -> str:
        """
        See L{twisted.internet.interfaces.ILoggingContext.logPrefix}.
        """
        return "pop3svc"

    def connectionLost(self, reason: Failure) -> None:
        """
        See L{twisted.internet.interfaces.IFileDescriptor.connectionLost}.  The reactor
        calls this when it stops.
        """
        self._watched.clear()
        self._stopIfIdle()

    def doRead(self) -> None:
        """
        See L{twisted.internet.interfaces.IReadDescriptor.doRead}.
        """
        try:
            data = os.read(self._descriptor, _READ)
        except (BlockingIOError, InterruptedError):
            return
        offset = 0
        while offset + _EVENT.size <= len(data):
            number, mask, _, length = _EVENT.unpack_from(data, offset)
            offset += _EVENT.size + length
            # After an overflow, any directory may have been touched.
            for each in list(self._watched) if mask & _OVERFLOW else [number]:
                self._dispatch(each, bool(mask & (inotify.IN_DELETE_SELF | inotify.IN_IGNORED)))

    def _dispatch(self, number: int, isGone: bool) -> None:
        touched = self._watched.get(number)
        if touched is not None:
            if isGone:
                self.end(number)
            touched(isGone)
