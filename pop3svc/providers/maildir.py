"""
A Maildir for each user.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from threading import Lock
from typing import Any

from twisted.logger import Logger
from zope.interface import alsoProvides, implementer

from pop3svc.calling import Runner
from pop3svc.errors import POP3ResponseError
from pop3svc.files import (
    FileBlocks,
    closeQuietly,
    disk,
    examine,
    haveSettled,
    openDirectory,
    openFile,
)
from pop3svc.interfaces import (
    IMailboxStore,
    INewMailNotifier,
    IPOP3ConnectionInfo,
    IReadOnlyMailbox,
    ISleepingMailbox,
)
from pop3svc.listings import Listed, areUniqueIDs
from pop3svc.providers.filemailbox import (
    PERMANENT,
    ExclusiveFileMailbox,
    FileMailbox,
    Holders,
    KnownSizes,
    Listing,
    LockManners,
    Place,
    keyOf,
    listFolder,
)
from pop3svc.providers.names import PathTemplate, uniqueIDFor
from pop3svc.providers.sizes import Examined, Key, MailboxSizes, SharedSizes, markOf
from pop3svc.providers.watching import Watch, Watches

__all__ = ["MaildirMailbox", "MaildirStore"]

log = Logger(namespace="pop3svc")

# Of "1600000000.M123456P789.host:2,S", with a "/" behind, as there are many: all before
# the flags, and in it the seconds and microseconds, if they are told.
_NAME = re.compile(r"((?:([0-9]{1,20})\.(?:[^.:/]*?M([0-9]{1,20}))?)?[^:/]*)[^/]*/")
# The size with CRLF, as Dovecot and maildrop write it behind the one on disk.
_SIZE = re.compile(r",S=[0-9]{1,12},W=([0-9]{1,12})(?![0-9])")
# A directory is read so often, with a pause (seconds) in between, until nothing
# has changed.
_SCANS, _PAUSE = 10, 0.02


# What tells whether a directory has changed.
Stamp = tuple[tuple[int, ...], ...]


def _settled(root: int) -> tuple[Stamp, bool]:
    """
    The times of new and cur, and whether they are old enough to be trusted.
    """
    stamp: list[tuple[int, ...]] = []
    latest = 0
    for folder in ("new", "cur"):
        try:
            status = os.stat(folder, dir_fd=root, follow_symlinks=False)
        except FileNotFoundError:
            stamp.append((0,))
            continue
        # The time of change cannot be set back.
        stamp.append((status.st_ino, status.st_mtime_ns, status.st_ctime_ns))
        latest = max(latest, status.st_mtime_ns, status.st_ctime_ns)
    return tuple(stamp), haveSettled(latest)


class SharedListings:
    """
    The latest listing of each mailbox, for all its sessions: to wake up to a
    mailbox that has not changed costs no listing.  Used from threads.
    """

    # Messages in all, but for those of one mailbox; some 300 octets each.  A mailbox
    # counts as some, too.
    BOUND, EACH = 300_000, 5

    def __init__(self) -> None:
        self._listings: OrderedDict[tuple[int, int], tuple[Stamp, Listing]] = OrderedDict()
        self._heard: dict[tuple[int, int], tuple[int, Listing]] = {}
        self._messages = 0
        self._lock = Lock()

    def get(self, key: tuple[int, int], stamp: Stamp) -> Listing | None:
        """
        @return: the listing, if nothing has changed since.
        """
        with self._lock:
            known = self._listings.get(key)
            if known is None or known[0] != stamp:
                return None
            self._listings.move_to_end(key)
            return known[1]

    def heard(self, key: tuple[int, int], heard: int | None) -> Listing | None:
        """
        @param heard: what the mailbox's watch has heard by now.
        @return: the listing, if it had heard as much when that was made.
        """
        with self._lock:
            known = self._heard.get(key)
            return known[1] if known is not None and known[0] == heard else None

    def setHeard(self, key: tuple[int, int], listing: Listing, heard: int | None) -> None:
        """
        A listing, if it is still the latest, was made when a watch had heard
        so much.
        """
        with self._lock:
            known = self._listings.get(key)
            if known is not None and known[1] is listing and heard is not None:
                self._heard[key] = heard, listing

    def put(self, key: tuple[int, int], stamp: Stamp, listing: Listing) -> None:
        """
        Remember a listing that is sure.
        """
        with self._lock:
            self._drop(key)
            self._listings[key] = stamp, listing
            self._messages += len(listing) + self.EACH
            while self._messages > self.BOUND and len(self._listings) > 1:
                self._drop(next(iter(self._listings)))

    def _drop(self, key: tuple[int, int]) -> None:
        known = self._listings.pop(key, None)
        self._heard.pop(key, None)
        if known is not None:
            self._messages -= len(known[1]) + self.EACH


def _named(places: Iterable[Place]) -> list[tuple[str, str, str]]:
    """
    @return: of each place the file's name without its flags, and in that the
        seconds and microseconds of its delivery; empty if they are not told.
    """
    names = [name for _, name in places]
    # None holds a slash.
    return _NAME.findall("/".join([*names, ""]))


def _scanPlaces(root: int) -> tuple[Collection[Place], dict[Place, int], bool, Stamp]:
    """
    Where messages are.  A message that is moved while a directory is read may
    be missed or seen twice, so this looks again until nothing has changed.

    @return: the places; if one look was not enough, with the number of the
        look that saw them last; whether the last look is to be relied on, and
        the directories' times then.
    """
    seen: dict[Place, int] = {}
    for look in range(_SCANS):
        before, _ = _settled(root)
        # new before cur: what moves meanwhile is seen twice rather than not
        # at all.
        places = [("new", name) for name in listFolder(root, "new")]
        places += [("cur", name) for name in listFolder(root, "cur")]
        after, isOld = _settled(root)
        if before == after and isOld:
            # It tells all there is.
            return places, {}, True, after
        seen.update(dict.fromkeys(places, look))
        if before == after:
            time.sleep(_PAUSE)
    return seen, seen, False, ()


@dataclass
class _Shared:
    """
    What the mailboxes of one store share.

    @ivar believesNames: take C{,W=} in a file's name for its size.
    """

    listings: SharedListings
    sizes: SharedSizes
    watches: Watches
    believesNames: bool = False


@implementer(INewMailNotifier, ISleepingMailbox)
class _Maildir(FileMailbox):
    """
    Listing a Maildir, and the sizes of its messages.
    """

    folders = ("new", "cur")
    shared: _Shared
    # Set while there is a watch: what it had heard when the listing was made,
    # which is then as good as new.
    _watch: Watch | None = None
    _changed: Callable[[], object] | None = None
    _endWatch: Callable[[], None] | None = None
    _heard: int | None = None
    _known: MailboxSizes | None = None
    # The directory that was listed.
    _key: Key | None = None

    # --- the listing ----------------------------------------------------------

    def scan(self, root: int) -> Listing:
        """
        See L{FileMailbox.scan}: in order of delivery, by the time in the name,
        else the file's.
        """
        key = keyOf(root)
        shared = self._sharedListing(root, key)
        if shared is not None:
            return shared
        listing, stamp = self._scan(root)
        if listing.isSure:
            self.shared.listings.put(key, stamp, listing)
        return listing

    def _sharedListing(self, root: int, key: Key) -> Listing | None:
        stamp, isOld = _settled(root)
        return self.shared.listings.get(key, stamp) if isOld else None

    def listMessageUniqueIDs(self, info: IPOP3ConnectionInfo) -> Any:
        """
        See L{IPOP3Mailbox.listMessageUniqueIDs}.
        """
        heard = None if self._watch is None else self._watch.look()
        if not self._isSlow:
            # Without a thread, where another session's look still holds.
            listing = self._listedBefore(heard)
            if self._changed is not None and not self._watchHolds():
                # What may have changed it could not tell.
                self._changed()
            if listing is not None:
                return self._listed(listing)
        return self._runner.run(self._scanned).addCallback(self._listedNow, heard)

    def _watchHolds(self) -> bool:
        watch = self._watch
        return watch is not None and not watch.isBroken and watch.key == self._key

    def _listedBefore(self, heard: int | None) -> Listing | None:
        self._key = None

        def look(root: int, key: Key) -> Listing | None:
            self._key = key
            self._known = self.shared.sizes.of(key)
            if self._watchHolds():
                listing = self.shared.listings.heard(key, heard)
                if listing is not None:
                    return listing
            return self._sharedListing(root, key)

        try:
            return self._inRoot(look)
        except OSError as error:
            raise self._fault("list", error)

    def _listedNow(self, listing: Listing, heard: int | None) -> Listed:
        watch = self._watch
        if watch is not None and listing.isSure and watch.look() == heard and self._watchHolds():
            self.shared.listings.setHeard(watch.key, listing, heard)
        return self._listed(listing)

    def watchMailbox(
        self, info: IPOP3ConnectionInfo, changed: Callable[[], object]
    ) -> Callable[[], None] | None:
        """
        See L{INewMailNotifier.watchMailbox}.  The kernel is asked at the first
        SLEE: sessions that never sleep pay nothing for it.
        """
        if self._isSlow:
            return None
        self._changed = changed
        return self._endWatching

    def _endWatching(self) -> None:
        self._changed = None
        self._unwatch()

    def _unwatch(self) -> None:
        end, self._endWatch = self._endWatch, None
        self._watch = None
        if end is not None:
            end()

    def fallAsleep(self, info: IPOP3ConnectionInfo) -> None:
        """
        See L{ISleepingMailbox.fallAsleep}.
        """
        if self._changed is not None and not self._watchHolds():
            self._unwatch()
            self._beginWatch(self._changed)
        self._setListing(Listing())
        self._known = None

    def _beginWatch(self, changed: Callable[[], object]) -> None:
        # What has changed before there was a watch it could not tell.
        changed()

        def begin(root: int, key: Key) -> None:
            watching = self.shared.watches.watch(root, self.folders, changed)
            if watching is None:
                return
            self._watch, self._endWatch = watching
            heard = self._watch.look()
            listing = self._sharedListing(root, key)
            if listing is not None:
                self.shared.listings.setHeard(self._watch.key, listing, heard)

        try:
            self._inRoot(begin)
        except OSError:
            # The directories' times tell, too.
            self._unwatch()

    # --- sizes ------------------------------------------------------------------

    def messageSize(self, info: IPOP3ConnectionInfo, uniqueID: str) -> Any:
        """
        See L{IPOP3Mailbox.messageSize}.
        """
        known = None if self._known is None else self._known.known.get(uniqueID)
        if known is not None:
            return known.octets
        return self._runner.run(self._examined, [uniqueID]).addCallback(self._oneSize)

    @staticmethod
    def _oneSize(sizes: Sequence[int | None]) -> int:
        [octets] = sizes
        if octets is None:
            raise POP3ResponseError("That message has gone.")
        if octets < 0:
            raise POP3ResponseError("That message cannot be read.", "SYS/PERM")
        return octets

    def messageSizes(self, info: IPOP3ConnectionInfo, uniqueIDs: list[str]) -> Any:
        """
        See L{IBulkMessageSizes.messageSizes}.
        """
        if self._known is not None:
            octets = self._known.octetsOf(uniqueIDs)
            if octets is not None:
                return octets
        return self._runner.run(self._examined, uniqueIDs).addCallback(self._allSizes)

    @staticmethod
    def _allSizes(sizes: Sequence[int | None]) -> Sequence[int | None]:
        # One file that cannot be read is no reason to show no size.
        return [None if each == -1 else each for each in sizes] if -1 in sizes else sizes

    def _examined(self, uniqueIDs: list[str]) -> Sequence[int | None]:
        """
        The sizes of messages, read where they are not known.  Blocks.

        @return: octets, -1 of what cannot be read, L{None} of what has gone.
        """
        try:
            root = self._root()
            if root is None:
                return [None] * len(uniqueIDs)
            try:
                return self._examinedIn(root, uniqueIDs)
            finally:
                closeQuietly(root)
        except OSError as error:
            raise self._fault("read a message of", error)

    def _examinedIn(self, root: int, uniqueIDs: list[str]) -> Sequence[int | None]:
        sizes = self.shared.sizes.of(keyOf(root))
        self._known = sizes
        sizes.load(root, self._listing)
        unknown = [each for each in uniqueIDs if each not in sizes.known]
        if self.shared.believesNames and unknown:
            sizes.learn(self._told(unknown))
            unknown = [each for each in unknown if each not in sizes.known]
        directories: dict[str, int] = {}
        try:
            added = self._seek(unknown, partial(_examinedAt, root, directories))
        finally:
            for descriptor in directories.values():
                closeQuietly(descriptor)
        readable = {each: examined for each, examined in added.items() if examined.octets >= 0}
        if readable and isinstance(self, ExclusiveFileMailbox):
            sizes.keep(root, readable, self._listing)
        else:
            sizes.learn(readable)
        self.shared.sizes.trim()
        try:
            return [sizes.known[each].octets for each in uniqueIDs]
        except KeyError:
            found = (sizes.known.get(each) or added.get(each) for each in uniqueIDs)
            return [None if each is None else each.octets for each in found]

    def _told(self, uniqueIDs: Sequence[str]) -> dict[str, Examined]:
        """
        @return: the sizes that stand in the names of files.
        """
        places = map(self._placeOf if self._moved else self._listing.get, uniqueIDs)
        return {
            uniqueID: Examined(int(size[1]), 0, False)
            for uniqueID, place in zip(uniqueIDs, places, strict=True)
            if place is not None and (size := _SIZE.search(place[1])) is not None
        }

    def _removed(self, uniqueIDs: list[str]) -> None:
        super()._removed(uniqueIDs)
        if self._known is not None:
            for uniqueID in uniqueIDs:
                self._known.forget(uniqueID)

    def _blocks(
        self, uniqueID: str, descriptor: int, status: os.stat_result | None = None
    ) -> FileBlocks:
        known = None if self._known is None else self._known.known.get(uniqueID)
        if status is None:
            status = self._statusOf(descriptor)
        if known is not None and known.mark and known.mark != markOf(status):
            # Somebody has written to it, against the rules: count it anew the
            # next time.
            assert self._known is not None
            self._known.forget(uniqueID)
            known = None
        return FileBlocks(
            descriptor,
            partial(closeQuietly, descriptor),
            self._runner,
            length=status.st_size,
            # Each line end that was none would have made it longer.
            hasLineEnds=known is not None and known.octets == status.st_size and known.mark != 0,
            isAsSent=known is not None and known.isAsSent,
        )

    # --- looking ----------------------------------------------------------------

    def _scan(self, root: int) -> tuple[Listing, Stamp]:
        places, seen, isSure, stamp = _scanPlaces(root)
        listing = Listing()
        listing.isSure = isSure
        named = list(zip(_named(places), places, strict=True))
        bases = [base for (base, _, _), _ in named]
        several: set[str] = set()
        if len(set(bases)) != len(bases):
            several.update(base for base, times in Counter(bases).items() if times > 1)
        # All that is done one by one costs, as there are many.  None of these looks like a
        # unique-id that was derived.
        areLegal = areUniqueIDs(bases)
        found = [
            (
                *(int(seconds), int(microseconds or 0), base),
                *(base if areLegal else uniqueIDFor(base), place),
            )
            for (base, seconds, microseconds), place in named
            if seconds and base not in several
        ]
        if len(found) < len(named):
            others: dict[str, list[Place]] = {}
            for (base, seconds, _), place in named:
                if not seconds or base in several:
                    others.setdefault(base, []).append(place)
            found += self._others(root, others, seen, listing.links)
        found.sort()
        listing.update(map(itemgetter(3, 4), found))
        # Made here, in a thread.
        listing.listed()
        return listing, stamp

    def _others(
        self,
        root: int,
        byBase: Mapping[str, list[Place]],
        seen: Mapping[Place, int],
        links: dict[str, list[Place]],
    ) -> list[tuple[int, int, str, str, Place]]:
        """
        Messages whose name does not tell all, or is not the only one.

        @param seen: see L{_scanPlaces}.
        @param links: where the other names of each message go.
        @return: seconds and microseconds, base name, unique-id and place.
        """
        found = []
        directories: dict[str, int] = {}
        try:
            for base, places in byBase.items():
                # The place where one was seen last stands first.
                places.sort(key=lambda each: (-seen.get(each, 0), each))
                files = [(places, "")]
                if len(places) > 1 or not base:
                    files = self._distinct(root, directories, places)
                for names, more in files:
                    order = self._order(root, directories, names[0])
                    if order is not None:
                        uniqueID = uniqueIDFor(base, more)
                        found.append((*order, uniqueID, names[0]))
                        if len(names) > 1:
                            links[uniqueID] = names[1:]
        finally:
            for directory in directories.values():
                closeQuietly(directory)
        return found

    @staticmethod
    def _status(root: int, directories: dict[str, int], place: Place) -> os.stat_result | None:
        folder, name = place
        try:
            if folder not in directories:
                directories[folder] = openDirectory(folder, root)
            return os.lstat(name, dir_fd=directories[folder])
        except FileNotFoundError:
            return None

    def _distinct(
        self, root: int, directories: dict[str, int], places: list[Place]
    ) -> list[tuple[list[Place], str]]:
        """
        Of places with one base name those that are different messages now:
        the names of each, and what tells it from the others.
        """
        files: dict[tuple[int, int], list[Place]] = {}
        for place in places:
            status = self._status(root, directories, place)
            if status is not None:
                files.setdefault((status.st_dev, status.st_ino), []).append(place)
        if not files:
            # Renamed again since; where it was seen last it is looked for
            # from.
            return [(places[:1], "")]
        if len(files) == 1 and not places[0][1].startswith(":"):
            return [(names, "") for names in files.values()]
        return [(names, f"{device}:{inode}") for (device, inode), names in files.items()]

    def _order(
        self, root: int, directories: dict[str, int], place: Place
    ) -> tuple[int, int, str] | None:
        [(name, seconds, microseconds)] = _named([place])
        if seconds:
            return int(seconds), int(microseconds or 0), name
        status = self._status(root, directories, place)
        if status is None:
            return None
        nanoseconds = status.st_mtime_ns
        return nanoseconds // 1_000_000_000, nanoseconds // 1000 % 1_000_000, name


def _examinedAt(root: int, directories: dict[str, int], place: Place) -> Examined | None:
    """
    Read a message.  Blocks.

    @return: what that has told; L{None} if it is not there, -1 octets if it
        cannot be read.
    """
    folder, name = place
    try:
        if folder not in directories:
            directories[folder] = openDirectory(folder, root)
        descriptor, status = openFile(name, directories[folder])
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in PERMANENT:
            raise
        log.error("cannot read {name}: {error}", name=name, error=error.strerror)
        return Examined(-1, 0, False)
    try:
        octets, isAsSent = examine(descriptor, status.st_size)
    finally:
        closeQuietly(descriptor)
    return Examined(octets, markOf(status) or 1, isAsSent)


class MaildirMailbox(_Maildir, ExclusiveFileMailbox):
    """
    One user's Maildir, for one session.
    """

    def _lookAhead(self, root: int) -> None:
        # Whoever asks for the listing finds it without another thread.
        with suppress(OSError):
            if _settled(root)[1]:
                self.scan(root)


@implementer(IMailboxStore)
class MaildirStore:
    """
    A Maildir for each user, found by the user's name.
    """

    name = "pop3svc"

    def __init__(
        self,
        path: str,
        readOnly: bool = False,
        runner: Runner | None = None,
        manners: LockManners = LockManners(),  # noqa: B008 (it is frozen)
        clock: Any = None,
        isSlow: bool = False,
        believesNames: bool = False,
    ) -> None:
        """
        @param path: the directory that holds a Maildir for each user, or a
            path with placeholders; see L{PathTemplate}.
        @param readOnly: nothing is deleted, nothing locked, nothing written.
        @param manners: what a session does that finds a mailbox held.
        @param isSlow: is it on a file system on which to open a file may take
            long?  Then nothing of it is done in the reactor's thread.
        @param believesNames: take C{,W=} in a file's name for its size, in
            place of counting once.
        @raise ValueError: a sentence for the operator.
        """
        self._template = PathTemplate(path)
        self._readOnly = readOnly
        self._runner = runner
        self._manners = manners
        self._holders = Holders(disk() if runner is None else runner, clock)
        self._isSlow = isSlow
        self._sizes = KnownSizes()
        self._shared = _Shared(SharedListings(), SharedSizes(), Watches(), believesNames)

    def openMailbox(self, info: IPOP3ConnectionInfo, username: str) -> FileMailbox | None:
        """
        See L{IMailboxStore.openMailbox}.  A user without a Maildir has an
        empty maildrop; a name that cannot stand in a path is refused.
        """
        place = self._template.placeFor(username)
        if place is None:
            return None
        mailbox: _Maildir
        if self._readOnly:
            mailbox = _Maildir(place, self._sizes, self._runner, self._isSlow)
            alsoProvides(mailbox, IReadOnlyMailbox)
        else:
            mailbox = MaildirMailbox(
                place, self._sizes, self._runner, self._holders, self._manners, self._isSlow
            )
        mailbox.shared = self._shared
        return mailbox
