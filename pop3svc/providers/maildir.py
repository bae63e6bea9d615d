"""
A Maildir for each user.
"""

from __future__ import annotations

import os
import re
import time
from collections import OrderedDict
from threading import Lock
from typing import Any

from zope.interface import alsoProvides, implementer

from pop3svc.calling import Runner
from pop3svc.files import disk, openDirectory
from pop3svc.interfaces import IMailboxStore, IPOP3ConnectionInfo, IReadOnlyMailbox
from pop3svc.providers.filemailbox import (
    ExclusiveFileMailbox,
    FileMailbox,
    Holders,
    KnownSizes,
    Listing,
    LockManners,
    Place,
    listFolder,
)
from pop3svc.providers.names import PathTemplate, uniqueIDFor

__all__ = ["MaildirMailbox", "MaildirStore"]

# "1600000000.M123456P789.host": the seconds, and the microseconds if told.
_DELIVERED = re.compile(r"([0-9]{1,20})\.(?:[^.]*?M([0-9]{1,20}))?")
# A directory changed so recently may have changed during a scan without its
# time telling: file systems count in ticks.
_TICK_NS = 20_000_000
_SCANS = 10


def _baseName(name: str) -> str:
    """
    A file's name without its flags.
    """
    return name.partition(":")[0]


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
    return tuple(stamp), time.time_ns() - latest > _TICK_NS


class SharedListings:
    """
    The latest listing of each mailbox, for all its sessions: to wake up to a
    mailbox that has not changed costs no listing.  Used from threads.
    """

    # Messages in all; some 300 octets each.
    BOUND = 300_000

    def __init__(self) -> None:
        self._listings: OrderedDict[tuple[int, int], tuple[Stamp, Listing]] = OrderedDict()
        self._messages = 0
        self._lock = Lock()

    def get(self, key: tuple[int, int], stamp: Stamp) -> Listing | None:
        """
        @return: a listing of a session's own, if nothing has changed since.
        """
        with self._lock:
            known = self._listings.get(key)
            if known is None or known[0] != stamp:
                return None
            self._listings.move_to_end(key)
            return known[1].copy()

    def put(self, key: tuple[int, int], stamp: Stamp, listing: Listing) -> None:
        """
        Remember a listing that is sure.
        """
        with self._lock:
            self._drop(key)
            self._listings[key] = stamp, listing.copy()
            self._messages += len(listing)
            while self._messages > self.BOUND:
                self._drop(next(iter(self._listings)))

    def _drop(self, key: tuple[int, int]) -> None:
        known = self._listings.pop(key, None)
        if known is not None:
            self._messages -= len(known[1])


def _scanPlaces(root: int) -> tuple[dict[Place, int], bool, Stamp]:
    """
    Where messages are.  A message that is moved while a directory is read may
    be missed or seen twice, so this looks again until nothing has changed.

    @return: the places with the number of the look that saw them last,
        whether the last look is to be relied on, and the directories' times
        then.
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
            return dict.fromkeys(places, look), True, after
        seen.update(dict.fromkeys(places, look))
        if before == after:
            time.sleep(_TICK_NS / 1e9)
    return seen, False, ()


class _Maildir(FileMailbox):
    """
    Listing a Maildir.
    """

    folders = ("new", "cur")
    # What the mailboxes of one store share.
    shared: SharedListings

    def scan(self, root: int) -> Listing:
        """
        See L{FileMailbox.scan}: in order of delivery, by the time in the name,
        else the file's.
        """
        status = os.fstat(root)
        key = status.st_dev, status.st_ino
        stamp, isOld = _settled(root)
        shared = self.shared.get(key, stamp) if isOld else None
        if shared is not None:
            return shared
        listing, stamp = self._scan(root)
        if listing.isSure:
            self.shared.put(key, stamp, listing)
        return listing

    def _scan(self, root: int) -> tuple[Listing, Stamp]:
        places, isSure, stamp = _scanPlaces(root)
        byBase: dict[str, list[Place]] = {}
        # The place where one was seen last stands first.
        for place in sorted(places, key=lambda each: (-places[each], each)):
            byBase.setdefault(_baseName(place[1]), []).append(place)
        keyed: list[tuple[tuple[int, int, str], str, list[Place]]] = []
        directories: dict[str, int] = {}
        try:
            for base, found in byBase.items():
                files = [(found, "")]
                if len(found) > 1 or not base:
                    files = self._distinct(root, directories, found)
                for names, more in files:
                    key = self._order(root, directories, names[0])
                    if key is not None:
                        keyed.append((key, uniqueIDFor(base, more), names))
        finally:
            for directory in directories.values():
                os.close(directory)
        keyed.sort()
        listing = Listing()
        listing.isSure = isSure
        for _, uniqueID, names in keyed:
            listing[uniqueID] = names[0]
            if len(names) > 1:
                listing.links[uniqueID] = names[1:]
        return listing, stamp

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
        if len(files) == 1 and _baseName(places[0][1]):
            return [(names, "") for names in files.values()]
        return [(names, f"{device}:{inode}") for (device, inode), names in files.items()]

    def _order(
        self, root: int, directories: dict[str, int], place: Place
    ) -> tuple[int, int, str] | None:
        name = _baseName(place[1])
        delivered = _DELIVERED.match(name)
        if delivered is not None:
            return int(delivered[1]), int(delivered[2] or 0), name
        status = self._status(root, directories, place)
        if status is None:
            return None
        seconds, nanoseconds = divmod(status.st_mtime_ns, 1_000_000_000)
        return seconds, nanoseconds // 1000, name


class MaildirMailbox(_Maildir, ExclusiveFileMailbox):
    """
    One user's Maildir, for one session.
    """


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
    ) -> None:
        """
        @param path: the directory that holds a Maildir for each user, or a
            path with placeholders; see L{PathTemplate}.
        @param readOnly: nothing is deleted, nothing locked, nothing written.
        @param manners: what a session does that finds a mailbox held.
        @raise ValueError: a sentence for the operator.
        """
        self._template = PathTemplate(path)
        self._readOnly = readOnly
        self._runner = runner
        self._manners = manners
        self._holders = Holders(disk() if runner is None else runner, clock)
        self._sizes = KnownSizes()
        self._shared = SharedListings()

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
            mailbox = _Maildir(place, self._sizes, self._runner)
            alsoProvides(mailbox, IReadOnlyMailbox)
        else:
            mailbox = MaildirMailbox(place, self._sizes, self._runner, self._holders, self._manners)
        mailbox.shared = self._shared
        return mailbox
