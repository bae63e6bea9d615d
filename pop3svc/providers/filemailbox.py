"""
What mailboxes of one file for each message have in common.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from zope.interface import implementer

from pop3svc.calling import Runner
from pop3svc.errors import POP3ResponseError
from pop3svc.files import (
    FileBlocks,
    closeQuietly,
    countOctets,
    disk,
    openDirectory,
    openFile,
    openRegular,
)
from pop3svc.interfaces import (
    IBulkMessageSizes,
    IExclusiveMailbox,
    IPOP3ConnectionInfo,
    IPOP3Mailbox,
)
from pop3svc.listings import Listed
from pop3svc.providers.names import Root
from pop3svc.providers.removal import Readiness, nameOfStaging, recover, removeAll
from pop3svc.providers.sizes import Key
from pop3svc.providers.watching import Touches

__all__ = [
    "PERMANENT",
    "ExclusiveFileMailbox",
    "FileMailbox",
    "Holders",
    "KnownSizes",
    "Listing",
    "LockManners",
    "Place",
    "keyOf",
    "listFolder",
]

log = Logger(namespace="pop3svc")

# How often a message that is renamed is looked for.
_LOOKS = 5
# What somebody has to mend; anything else may pass.
PERMANENT = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.EROFS)

T = TypeVar("T")

# (directory below the mailbox's root, file name)
Place = tuple[str, str]


class Listing(dict[str, Place]):
    """
    Unique-ids in message-number order, and where each message is.  Once made
    it is not changed: sessions share it.

    @ivar links: other names of the same file, by unique-id.
    @ivar isSure: whether nothing moved while it was made, so that what is
        missing has gone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.links: dict[str, list[Place]] = {}
        self.isSure = True
        self._listed: Listed | None = None

    def listed(self) -> Listed:
        """
        @return: the unique-ids, for sessions to share.
        """
        if self._listed is None:
            self._listed = Listed(self)
        return self._listed


class KnownSizes:
    """
    The sizes of files as they are sent, remembered by what the file is: to
    count needs reading, and clients ask at each poll.  Used from threads.
    """

    # About 150 octets each.
    BOUND = 200_000

    def __init__(self) -> None:
        self._sizes: OrderedDict[tuple[int, ...], int] = OrderedDict()
        self._lock = Lock()

    def sizeOf(self, descriptor: int) -> int:
        """
        @return: octets; counted by reading if not known.  Blocks.
        """
        status = os.fstat(descriptor)
        key = (
            *(status.st_dev, status.st_ino, status.st_size),
            *(status.st_mtime_ns, status.st_ctime_ns),
        )
        with self._lock:
            if key in self._sizes:
                self._sizes.move_to_end(key)
                return self._sizes[key]
        octets = countOctets(descriptor)
        with self._lock:
            self._sizes[key] = octets
            if len(self._sizes) > self.BOUND:
                self._sizes.popitem(last=False)
        return octets


def keyOf(root: int) -> Key:
    """
    @param root: a descriptor.
    """
    status = os.fstat(root)
    return status.st_dev, status.st_ino


def listFolder(root: int, folder: str) -> list[str]:
    """
    The names of the regular files in a directory that are not hidden.
    """
    try:
        directory = openDirectory(folder, root)
    except FileNotFoundError:
        return []
    try:
        with os.scandir(directory) as entries:
            return [
                entry.name
                for entry in entries
                if not entry.name.startswith(".") and entry.is_file(follow_symlinks=False)
            ]
    finally:
        closeQuietly(directory)


class _Held:
    """
    A mailbox's directory, open and locked.  The lock is on the directory
    itself: there is no file of it to be made, removed or owned by anybody.
    """

    def __init__(self, root: int, key: Key) -> None:
        self.key = key
        self._root: int | None = root
        # The directory that was opened last stays open, for the next message
        # in it.
        self._folder: tuple[str, int] | None = None
        # A thread that nobody waits for any more may still look.
        self._guard = Lock()

    def root(self) -> int | None:
        """
        @return: another descriptor of the directory, to be closed by the
            caller; L{None} if the lock was given back.
        """
        with self._guard:
            # Not dup(): that would share the lock.
            return None if self._root is None else openDirectory(".", self._root)

    def here(self) -> int | None:
        """
        In the reactor's thread only, and until it has its next turn.

        @return: the descriptor of the directory; L{None} if the lock was given
            back.
        """
        return self._root

    def openIn(self, folder: str, name: str) -> tuple[int, os.stat_result] | None:
        """
        Open a file in a directory below.  In the reactor's thread only.

        @return: a descriptor and what it is of; L{None} if the lock was given
            back.
        @raise OSError: it is not there, or no file.
        """
        if self._root is None:
            return None
        if self._folder is None or self._folder[0] != folder:
            self._leaveFolder()
            self._folder = folder, openDirectory(folder, self._root)
        return openFile(name, self._folder[1])

    def _leaveFolder(self) -> None:
        folder, self._folder = self._folder, None
        if folder is not None:
            closeQuietly(folder[1])

    def close(self) -> None:
        """
        Give the lock back.
        """
        self._leaveFolder()
        with self._guard:
            root, self._root = self._root, None
            if root is not None:
                closeQuietly(root)


@implementer(IPOP3Mailbox, IBulkMessageSizes)
class FileMailbox:
    """
    A mailbox of one file for each message, below one directory.

    Work that touches directories or reads whole files is done by a runner;
    to open one file is not.
    """

    # The directories below the root that messages may be in.
    folders: Sequence[str] = ()

    def __init__(
        self,
        place: Root,
        sizes: KnownSizes,
        runner: Runner | None = None,
        isSlow: bool = False,
    ) -> None:
        """
        @param place: the root; it need not exist.
        @param isSlow: is it on a file system on which to open a file may take
            long, as over a network?  All is done by the runner then.
        """
        self._place = place
        self._sizes = sizes
        self._runner = disk() if runner is None else runner
        self._isSlow = isSlow
        self._listing = Listing()
        # Where messages have been found since, and those that came since.
        self._moved: dict[str, Place] = {}
        self._movedLinks: dict[str, list[Place]] = {}

    def _placeOf(self, uniqueID: str) -> Place | None:
        return self._moved.get(uniqueID) or self._listing.get(uniqueID)

    def _setListing(self, listing: Listing) -> None:
        self._listing = listing
        self._moved = {}
        self._movedLinks = {}

    def scan(self, root: int) -> Listing:
        """
        List the messages.  Blocks; to be overridden.
        """
        raise NotImplementedError

    # --- without waiting ------------------------------------------------------

    def _root(self) -> int | None:
        """
        @return: a descriptor of the root, to be closed by the caller.
        """
        return self._place.open()

    def _inRoot(self, work: Callable[[int, Key], T]) -> T | None:
        """
        Do something with a descriptor of the root, and its key, in the
        reactor's thread.

        @return: what C{work} returned; L{None} if the root is not there.
        """
        root = self._root()
        if root is None:
            return None
        try:
            return work(root, keyOf(root))
        finally:
            closeQuietly(root)

    def _open(self, place: Place) -> int | None:
        folder, name = place
        try:
            root = self._root()
            if root is None:
                return None
            try:
                directory = openDirectory(folder, root)
                try:
                    return openRegular(name, directory)
                finally:
                    closeQuietly(directory)
            finally:
                closeQuietly(root)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._fault("open a message of", error)

    def _fault(self, what: str, error: OSError) -> POP3ResponseError:
        path = self._place.path
        log.error("cannot {what} {path}: {error}", what=what, path=path, error=error.strerror)
        code = "SYS/PERM" if error.errno in PERMANENT else "SYS/TEMP"
        return POP3ResponseError("The mailbox has a fault.", code)

    # --- in a thread ----------------------------------------------------------

    def _scanned(self) -> Listing:
        try:
            root = self._root()
            if root is None:
                return Listing()
            try:
                return self.scan(root)
            finally:
                closeQuietly(root)
        except OSError as error:
            raise self._fault("list", error)

    def _seek(self, uniqueIDs: list[str], look: Callable[[Place], T | None]) -> dict[str, T]:
        """
        Do something with the files of messages, wherever they have been
        renamed to meanwhile.

        @param look: returns L{None} if there is no file at a place.
        @return: what C{look} returned, by unique-id; one that has gone is
            missing.
        """
        found: dict[str, T] = {}
        wanted, listing = uniqueIDs, None
        for _ in range(_LOOKS):
            missing = []
            placeOf = self._placeOf if listing is None else listing.get
            for uniqueID in wanted:
                place = placeOf(uniqueID)
                got = None if place is None else look(place)
                if got is None:
                    missing.append(uniqueID)
                elif place is not None:
                    found[uniqueID] = got
                    if listing is not None:
                        self._moved[uniqueID] = place
            wanted = missing
            if not wanted or (listing is not None and listing.isSure):
                break
            listing = self._scanned()
        return found

    def _octetsAt(self, place: Place) -> int | None:
        descriptor = self._open(place)
        if descriptor is None:
            return None
        try:
            return self._sizes.sizeOf(descriptor)
        except OSError as error:
            raise self._fault("read a message of", error)
        finally:
            closeQuietly(descriptor)

    # --- IPOP3Mailbox ---------------------------------------------------------

    def listMessageUniqueIDs(self, info: IPOP3ConnectionInfo) -> Any:
        return self._runner.run(self._scanned).addCallback(self._listed)

    def _listed(self, listing: Listing) -> Listed:
        self._setListing(listing)
        return listing.listed()

    async def messageExists(self, info: IPOP3ConnectionInfo, uniqueID: str) -> bool:
        now = await self._runner.run(self._scanned)
        if uniqueID not in now:
            return False
        self._moved[uniqueID] = now[uniqueID]
        if uniqueID in now.links:
            self._movedLinks[uniqueID] = now.links[uniqueID]
        return True

    async def messageSize(self, info: IPOP3ConnectionInfo, uniqueID: str) -> int:
        found = await self._runner.run(self._seek, [uniqueID], self._octetsAt)
        if uniqueID not in found:
            raise POP3ResponseError("That message has gone.")
        octets: int = found[uniqueID]
        return octets

    async def messageSizes(
        self, info: IPOP3ConnectionInfo, uniqueIDs: list[str]
    ) -> list[int | None]:
        def octetsAt(place: Place) -> int | None:
            try:
                return self._octetsAt(place)
            except POP3ResponseError as error:
                if error.code != "SYS/PERM":
                    raise
                # One file that cannot be read is no reason to show no size.
                return -1

        found = await self._runner.run(self._seek, uniqueIDs, octetsAt)
        sizes = [found.get(each) for each in uniqueIDs]
        return [None if size is None or size < 0 else size for size in sizes]

    def messageContent(self, info: IPOP3ConnectionInfo, uniqueID: str) -> Any:
        place = self._placeOf(uniqueID)
        opened = None if self._isSlow or place is None else self._openHere(place)
        if opened is None:
            return self._contentElsewhere(uniqueID)
        return self._blocks(uniqueID, *opened)

    def _openHere(self, place: Place) -> tuple[int, os.stat_result] | None:
        """
        Open a message in the reactor's thread.
        """
        descriptor = self._open(place)
        return None if descriptor is None else (descriptor, self._statusOf(descriptor))

    def _statusOf(self, descriptor: int) -> os.stat_result:
        """
        What was opened; it is closed again if that cannot be told.
        """
        try:
            return os.fstat(descriptor)
        except OSError as error:
            closeQuietly(descriptor)
            raise self._fault("read a message of", error)

    def _blocks(
        self, uniqueID: str, descriptor: int, status: os.stat_result | None = None
    ) -> FileBlocks:
        if status is None:
            status = self._statusOf(descriptor)
        closing = partial(closeQuietly, descriptor)
        return FileBlocks(descriptor, closing, self._runner, length=status.st_size)

    async def _contentElsewhere(self, uniqueID: str) -> FileBlocks:
        found = await self._runner.run(self._seek, [uniqueID], self._open, abandoned=_closeAll)
        if uniqueID not in found:
            raise POP3ResponseError("That message has gone.")
        return self._blocks(uniqueID, found[uniqueID])

    async def messageDelete(self, info: IPOP3ConnectionInfo, uniqueIDs: list[str]) -> None:
        await self._runner.run(self._removed, list(uniqueIDs))

    def _removed(self, uniqueIDs: list[str]) -> None:
        links = self._listing.links | self._movedLinks
        wanted: list[tuple[str, Place | None]] = [(each, None) for each in uniqueIDs]
        wanted += [(each, link) for each in uniqueIDs for link in links.get(each, ())]
        try:
            root = self._root()
            if root is None:
                return
            try:
                removeAll(root, self.folders, wanted, self._locator(root))
            finally:
                closeQuietly(root)
        except OSError as error:
            raise self._fault("delete from", error)

    def _locator(self, root: int) -> Callable[[tuple[str, Place | None], int], Place | None]:
        """
        Where a message is: at first where it was listed, else where a new
        look finds it.
        """
        now: Listing | None = None

        def locate(message: tuple[str, Place | None], looks: int) -> Place | None:
            nonlocal now
            uniqueID, link = message
            if link is not None:
                return None if looks else link
            if not looks:
                return self._placeOf(uniqueID)
            if looks > 1 or now is None:
                now = self.scan(root)
            if uniqueID not in now and not now.isSure:
                # It may have been renamed just now, and not be gone at all.
                raise OSError(errno.EBUSY, "messages are renamed all the time")
            return now.get(uniqueID)

        return locate


def _closeAll(found: dict[str, int]) -> None:
    for descriptor in found.values():
        closeQuietly(descriptor)


@dataclass(frozen=True, slots=True)
class LockManners:
    """
    What a session does that finds the mailbox held.

    @ivar takesOver: ask the holder to give way.
    @ivar wait: seconds to wait for it to become free.
    """

    takesOver: bool = True
    wait: float = 0.0


def _reactor() -> Any:
    from twisted.internet import reactor

    return reactor


class Holders:
    """
    Who holds which mailbox of a store in this process, and whether somebody in
    another process wants it: who does holds a lock on a directory in it.

    @ivar readiness: which mailboxes can be locked without mending.
    """

    # Seconds: how often to look where the kernel does not tell; how long a session
    # lasts that is worth it; and how long another process is given.
    LOOK = 0.25
    YOUNG = 0.5
    PATIENCE = 1.0

    def __init__(self, runner: Runner, clock: Any = None) -> None:
        self._runner = runner
        self._clock = clock
        self.readiness = Readiness()
        # With when that began.
        self._held: dict[str, tuple[ExclusiveFileMailbox, Callable[[], bool], float]] = {}
        self._timer: IDelayedCall | None = None
        self._touches: Touches | None = None
        # Those of the held that the kernel tells of, which need no look.
        self._watched: dict[str, int] = {}

    @property
    def clock(self) -> Any:
        """
        The reactor, unless a test has given another.
        """
        if self._clock is None:
            self._clock = _reactor()
        return self._clock

    def add(self, path: str, mailbox: ExclusiveFileMailbox, surrender: Callable[[], bool]) -> None:
        """
        A session of this process holds a mailbox.
        """
        self._held[path] = mailbox, surrender, self.clock.seconds()
        self._lookLater()

    def remove(self, path: str) -> None:
        """
        It does no more.
        """
        self._held.pop(path, None)
        number = self._watched.pop(path, None)
        if number is not None and self._touches is not None:
            self._touches.end(number)
        if not self._held and self._timer is not None and self._timer.active():
            self._timer.cancel()
            self._timer = None

    def ask(self, path: str) -> bool | None:
        """
        Ask the holder to give way.

        @return: whether it does; L{None} if nobody here holds it.
        """
        held = self._held.get(path)
        return None if held is None else held[1]()

    def _lookLater(self) -> None:
        if self._timer is None and len(self._held) > len(self._watched):
            self._timer = self.clock.callLater(self.LOOK, self._look)

    def _look(self) -> None:
        self._timer = None
        old = self.clock.seconds() - self.YOUNG
        # Most sessions are over before; of what is left the kernel tells, if
        # it can.  Whoever wants it by now is seen by this look.
        paths = [
            path
            for path, (_, _, since) in self._held.items()
            if since <= old and path not in self._watched
        ]
        for path in paths:
            self._watch(path)
        if paths:
            self._see(paths)
        else:
            self._lookLater()

    def _watch(self, path: str) -> None:
        if self._touches is None:
            self._touches = Touches(self.clock)
        place = self._held[path][0].placeOfWanting()

        def touched(isGone: bool) -> None:
            if isGone:
                del self._watched[path]
                self._lookLater()
            else:
                self._see([path])

        number = None if place is None else self._touches.watch(place, touched)
        if number is not None:
            self._watched[path] = number

    def _see(self, paths: list[str]) -> None:
        mailboxes = {path: self._held[path][0] for path in paths}
        looking = self._runner.run(
            lambda: [path for path, mailbox in mailboxes.items() if mailbox.isWanted()]
        )
        looking.addCallbacks(self._found, lambda _: self._found([]))

    def _found(self, wanted: list[str]) -> None:
        for path in wanted:
            self.ask(path)
        self._lookLater()


class _Busy:
    """
    Another session has the lock.
    """


@implementer(IExclusiveMailbox)
class ExclusiveFileMailbox(FileMailbox):
    """
    A L{FileMailbox} that one session may hold, among all processes.  The
    kernel frees the lock when its process dies.
    """

    def __init__(
        self,
        place: Root,
        sizes: KnownSizes,
        runner: Runner | None = None,
        holders: Holders | None = None,
        manners: LockManners = LockManners(),
        isSlow: bool = False,
    ) -> None:
        """
        @param holders: what the mailboxes of one store share.
        """
        super().__init__(place, sizes, runner, isSlow)
        self._holders = Holders(self._runner) if holders is None else holders
        self._manners = manners
        self._held: _Held | None = None

    def _root(self) -> int | None:
        # Of a mailbox that was not there to be locked nothing is shown.
        held = self._held
        return None if held is None else held.root()

    def _inRoot(self, work: Callable[[int, Key], T]) -> T | None:
        held = self._held
        root = None if held is None else held.here()
        return None if held is None or root is None else work(root, held.key)

    def _openHere(self, place: Place) -> tuple[int, os.stat_result] | None:
        try:
            return None if self._held is None else self._held.openIn(*place)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._fault("open a message of", error)

    def lock(self, info: IPOP3ConnectionInfo, surrender: Callable[[], bool]) -> Any:
        """
        See L{IExclusiveMailbox.lock}.
        """
        held = _Busy() if self._isSlow else self._taken(recovers=False)
        if isinstance(held, _Busy):
            return self._lockInTurn(surrender)
        self._hold(held, surrender)
        return None

    async def _lockInTurn(self, surrender: Callable[[], bool]) -> None:
        held = await self._tryToTake()
        if isinstance(held, _Busy):
            held = await self._getInTurn()
        self._hold(held, surrender)

    def _hold(self, held: _Held | None, surrender: Callable[[], bool]) -> None:
        self._held = held
        if held is not None:
            self._holders.add(self._place.path, self, surrender)

    async def _tryToTake(self) -> _Held | _Busy | None:
        return await self._runner.run(self._taken, abandoned=_giveBack)

    async def _getInTurn(self) -> _Held | None:
        """
        @raise POP3ResponseError: C{IN-USE}.
        """
        clock, manners = self._holders.clock, self._manners
        end = clock.seconds() + manners.wait
        wanted: int | None = None
        try:
            if manners.takesOver:
                gives = self._holders.ask(self._place.path)
                if gives:
                    end = clock.seconds() + Holders.PATIENCE
                elif gives is None:
                    end = max(end, clock.seconds() + Holders.PATIENCE)
                    wanted = await self._runner.run(self._want, abandoned=_closeOne)
            while True:
                held = await self._tryToTake()
                if not isinstance(held, _Busy):
                    return held
                if clock.seconds() >= end:
                    raise POP3ResponseError("Another session has this mailbox.", "IN-USE")
                if wanted is not None:
                    # The holder may have become idle by now.
                    await self._runner.run(_touch, wanted)
                await _pause(clock, Holders.LOOK / 2)
        finally:
            _closeOne(wanted)

    def _want(self) -> int | None:
        """
        Show other processes that the mailbox is wanted.
        """
        try:
            root = self._place.open()
            if root is None:
                return None
            try:
                wanted = openDirectory(nameOfStaging(root), root)
            finally:
                closeQuietly(root)
        except OSError:
            return None
        try:
            fcntl.flock(wanted, fcntl.LOCK_SH | fcntl.LOCK_NB)
            _touch(wanted)
        except OSError:
            closeQuietly(wanted)
            return None
        return wanted

    def placeOfWanting(self) -> str | None:
        """
        @return: a path of the directory that is touched by who wants this
            mailbox, for now; L{None} if that is not seen here.
        """
        # Of what is done on another machine the kernel does not tell.
        root = None if self._isSlow or self._held is None else self._held.here()
        return None if root is None else f"/proc/self/fd/{root}/{nameOfStaging(root)}"

    def isWanted(self) -> bool:
        """
        Does somebody in another process want this mailbox?  Blocks.
        """
        try:
            root = self._root()
            if root is None:
                return False
            try:
                wanted = openDirectory(nameOfStaging(root), root)
            finally:
                closeQuietly(root)
            try:
                fcntl.flock(wanted, fcntl.LOCK_EX | fcntl.LOCK_NB)
            finally:
                closeQuietly(wanted)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def _taken(self, recovers: bool = True) -> _Held | _Busy | None:
        """
        @param recovers: mend what a removal has left that was cut short; else
            L{_Busy} if there is any.
        """
        try:
            root = self._place.open()
            if root is None:
                return None
            try:
                fcntl.flock(root, fcntl.LOCK_EX | fcntl.LOCK_NB)
                status = os.fstat(root)
                if recovers:
                    recover(root, self.folders)
                    self._lookAhead(root)
                elif not self._holders.readiness.isReady(root, status, self.folders):
                    closeQuietly(root)
                    return _Busy()
            except BaseException:
                closeQuietly(root)
                raise
        except BlockingIOError:
            return _Busy()
        except OSError as error:
            raise self._fault("lock", error)
        return _Held(root, (status.st_dev, status.st_ino))

    def _lookAhead(self, root: int) -> None:
        """
        In a thread, after the lock was taken: what comes next may begin.
        """

    def unlock(self, info: IPOP3ConnectionInfo) -> None:
        """
        See L{IExclusiveMailbox.unlock}.
        """
        held, self._held = self._held, None
        self._setListing(Listing())
        if held is not None:
            self._holders.remove(self._place.path)
            held.close()


def _pause(clock: Any, seconds: float) -> Deferred[None]:
    pause: Deferred[None] = Deferred(lambda _: timer.cancel())
    timer = clock.callLater(seconds, pause.callback, None)
    return pause


def _touch(directory: int) -> None:
    with suppress(OSError):
        os.utime(directory)


def _closeOne(descriptor: int | None) -> None:
    if descriptor is not None:
        closeQuietly(descriptor)


def _giveBack(held: _Held | _Busy | None) -> None:
    if isinstance(held, _Held):
        held.close()
