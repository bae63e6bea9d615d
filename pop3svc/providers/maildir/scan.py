"""
List the messages of a Maildir.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from functools import partial

from pop3svc.listings import areUniqueIDs, countDistinct
from pop3svc.providers.files.deletion import Place
from pop3svc.providers.files.folders import MessageRef, OpenFolders, identify, identityOf
from pop3svc.providers.files.scanning import Scan, scanPlaces, sortRefs
from pop3svc.providers.files.sizes import MailboxSizes, MessageInfo
from pop3svc.providers.files.snapshot import MailboxSnapshot, Stamp
from pop3svc.providers.maildir.columns import listByColumns
from pop3svc.providers.maildir.migrated import KeptIDs, MigratedMaildir
from pop3svc.providers.maildir.names import ParsedName, parseNames, separatorOf, sizesIn
from pop3svc.providers.maildir.quota import recordDeletion
from pop3svc.providers.paths import uniqueIDFor
from pop3svc.threadpool import isCancelled

__all__ = ["MaildirFormat"]

# The most times that a Maildir is listed if a message is renamed before its stat() each time.
_LOOKS = 10


class MaildirFormat:
    """
    The format of a Maildir.  Messages are in the directories C{new} and C{cur}, and have names such
    as C{1600000000.M123456P789.host:2,S}.  The messages are listed in the order of delivery.  The
    time of delivery is in the name.  If the name contains no time, the time of modification of the
    file is used.
    """

    # Read new before cur.  A message that moves to cur during a scan may then be found twice, but
    # is not missed.
    folders = ("new", "cur")

    def __init__(
        self,
        believesNames: bool = False,
        separator: str = "",
        migrated: MigratedMaildir | None = None,
    ) -> None:
        """
        @param believesNames: whether C{,W=} in the name of a file is used as the size of the
            message.
        @param separator: the separator before the flags in the names of files, one of
            L{SEPARATORS<pop3svc.providers.maildir.names.SEPARATORS>}; empty if it has to be found
            from the names.
        @param migrated: finds the unique-ids that the previous server of one Maildir has given to
            messages; L{None} if there was no previous server.
        """
        self._migrated = migrated
        self.believesNames = believesNames
        self._separator = separator

    def scan(self, root: int, sizes: MailboxSizes) -> tuple[MailboxSnapshot, Stamp]:
        """
        See L{Format.scan<pop3svc.providers.files.snapshot.Format.scan>}.
        """
        for _ in range(_LOOKS):
            listing, stamp, isDoubtful = self._scanOnce(root, sizes)
            if not isDoubtful or isCancelled():
                break
        return listing, stamp

    def _scanOnce(self, root: int, sizes: MailboxSizes) -> tuple[MailboxSnapshot, Stamp, bool]:
        """
        @return: the listing, the times of the directories, and a bool.  The bool is true if the
            listing is unsure, and the only reason is that a message was renamed before its stat().
        """
        scan = scanPlaces(root, self.folders)
        separator = self._separator or separatorOf(scan.eachPlace())
        sizes.load(root, sum(len(folder.names) for folder in scan.folders) or len(scan.seen))
        if self._migrated is None:
            listing = listByColumns(scan, separator, sizes)
            if listing is not None:
                return listing, scan.stamp, False
        return self._scanInGeneral(root, sizes, scan, separator)

    def _scanInGeneral(
        self, root: int, sizes: MailboxSizes, scan: Scan, separator: str
    ) -> tuple[MailboxSnapshot, Stamp, bool]:
        """
        List messages whose names may have any form.

        @param separator: the separator before the flags.
        @return: see L{_scanOnce}.
        """
        places = scan.places
        named = list(zip(parseNames(places, separator), places, strict=True))
        bases = [base for (base, _, _), _ in named]
        several: set[str] = set()
        if countDistinct(bases) != len(bases):
            several.update(base for base, times in Counter(bases).items() if times > 1)
        # Check all names in one call, because a call for each of many messages would take too much
        # time.  A name that begins with seconds does not look like a derived unique-id.
        areLegal = areUniqueIDs(bases)
        kept = self._kept(root, scan, bases)
        found: list[MessageRef]
        if kept is None:
            found = [
                (
                    *(int(seconds), int(microseconds or 0), base),
                    *(base if areLegal else uniqueIDFor(base), place),
                )
                for (base, seconds, microseconds), place in named
                if seconds and base not in several
            ]
        else:
            found = _withKept(kept, named, several)
        idOf = uniqueIDFor if kept is None else kept.uniqueIDFor
        # The places of messages that were renamed before their stat().  The listing is unsure if at
        # least one message was renamed in this way.
        doubts: list[Place] = []
        links: dict[str, list[Place]] = {}
        if len(found) < len(named):
            others: dict[str, list[Place]] = {}
            isKept = () if kept is None else kept.heads
            for (base, seconds, _), place in named:
                if base in several or not (seconds or base in isKept):
                    others.setdefault(base, []).append(place)
            with OpenFolders(root) as opened:
                irregular = _Irregular(*(opened, separator, scan.seen, sizes, doubts, links, kept))
                found += irregular.refs(others)
        identify(root, self.folders, found, sizes, doubts)
        listing = scan.snapshot(sortRefs(found), not doubts)
        listing.links = links
        listing.separator = separator
        listing.uniqueIDFor = idOf
        return listing, scan.stamp, scan.isSure and bool(doubts)

    def _kept(self, root: int, scan: Scan, bases: Sequence[str]) -> KeptIDs | None:
        """
        @param bases: the base name of the message at each place of the scan.
        @return: the unique-ids of the previous server; L{None} if there was no previous server.
        """
        if self._migrated is None:
            return None

        def places() -> dict[str, Place]:
            return dict(zip(bases, scan.places, strict=True))

        return self._migrated.kept(root, places, scan.isSure)

    def sizesInNames(self, names: Sequence[str]) -> list[int | None]:
        """
        See L{Format.sizesInNames<pop3svc.providers.files.snapshot.Format.sizesInNames>}.
        """
        return sizesIn(names)

    def afterDeletion(self, root: int, files: Sequence[tuple[Place, os.stat_result]]) -> None:
        """
        Update the Maildir++ quota file.
        """
        recordDeletion(root, files)


def _withKept(
    kept: KeptIDs, named: Sequence[tuple[ParsedName, Place]], several: Container[str]
) -> list[MessageRef]:
    """
    @param several: the base names that occur more than once.
    @return: references to the messages that the previous server knew, and to other messages whose
        names contain a time.
    """
    heads, uniqueIDFor = kept.heads, kept.uniqueIDFor
    return [
        (*heads[base], place)
        if base in heads
        else (int(seconds), int(microseconds or 0), base, uniqueIDFor(base), place)
        for (base, seconds, microseconds), place in named
        if (seconds or base in heads) and base not in several
    ]


class _Irregular:
    """
    Handles messages whose names contain no time of delivery, or whose base names occur more than
    once.
    """

    def __init__(
        self,
        opened: OpenFolders,
        separator: str,
        seen: Mapping[Place, int],
        sizes: MailboxSizes,
        doubts: list[Place],
        links: dict[str, list[Place]],
        kept: KeptIDs | None,
    ) -> None:
        """
        @param seen: see L{Scan<pop3svc.providers.files.scanning.Scan>}.
        @param doubts: a list to which the places of messages are added if they could not be
            identified.
        @param links: a dictionary to which the other names of each message are added, by unique-id.
        @param kept: the unique-ids of the previous server; L{None} if there was no previous server.
        """
        self._kept = kept
        self._opened = opened
        self._separator = separator
        self._seen = seen
        self._sizes = sizes
        self._doubts = doubts
        self._links = links

    def refs(self, byBase: Mapping[str, list[Place]]) -> list[MessageRef]:
        """
        @param byBase: the places of messages by base name.
        @return: references to the messages.
        """
        found: list[MessageRef] = []
        for base, places in byBase.items():
            # Sort the places, so that the place where a file was seen last comes first.
            places.sort(key=lambda each: (-self._seen.get(each, 0), each))
            files = [(places, "")]
            if len(places) > 1 or not base:
                files = self._distinct(base, places)
            for names, more in files:
                order = self._order(names[0])
                if order is None:
                    self._doubts.append(names[0])
                else:
                    uniqueID = uniqueIDFor(base, more) if more else self._idOf(base)
                    found.append((*order, uniqueID, names[0]))
                    if len(names) > 1:
                        self._links[uniqueID] = names[1:]
        return found

    def _idOf(self, base: str) -> str:
        return uniqueIDFor(base) if self._kept is None else self._kept.uniqueIDFor(base)

    def _distinct(self, base: str, places: list[Place]) -> list[tuple[list[Place], str]]:
        """
        Find out which places with the same base name belong to the same message.

        @return: for each message, its places and a text.  The text distinguishes the message from
            the first message with the same name.  It is empty for the first message.
        """
        files: dict[tuple[int, int], list[Place]] = {}
        statuses: dict[tuple[int, int], os.stat_result] = {}
        for place in places:
            status = self._opened.status(place)
            if status is None:
                self._doubts.append(place)
            else:
                key = status.st_dev, status.st_ino
                files.setdefault(key, []).append(place)
                statuses[key] = status
        if not files:
            # The message was renamed again.  Return the last known place of the message, because
            # the search begins there.
            return [(places[:1], "")]
        first = self._first(self._idOf(base), files, statuses) if base else None
        return [
            (names, "" if key == first else identityOf(statuses[key]))
            for key, names in files.items()
        ]

    def _first(
        self,
        uniqueID: str,
        files: Mapping[tuple[int, int], list[Place]],
        statuses: Mapping[tuple[int, int], os.stat_result],
    ) -> tuple[int, int] | None:
        """
        @param files: the places of the messages with the same name, by device and inode.
        @return: the device and inode of the message that keeps the unique-id of this name; L{None}
            if there is no such message.
        """
        owner = self._sizes.ownerOf(uniqueID)
        if owner is not None:
            for key, status in statuses.items():
                if owner.isFile(status, partial(self._opened.head, files[key][0])):
                    return key
            return None
        first = min(statuses, key=lambda key: (statuses[key].st_mtime_ns, key))
        oldest = statuses[first]
        if not self._doubts:
            claimed = MessageInfo(-1, oldest.st_ino, oldest.st_size, oldest.st_mtime_ns)
            self._sizes.claim(uniqueID, claimed)
        return first

    def _order(self, place: Place) -> tuple[int, int, str] | None:
        [(name, seconds, microseconds)] = parseNames([place], self._separator)
        if self._kept is not None and name in self._kept.heads:
            return self._kept.heads[name][:3]
        if seconds:
            return int(seconds), int(microseconds or 0), name
        status = self._opened.status(place)
        if status is None:
            return None
        nanoseconds = status.st_mtime_ns
        return nanoseconds // 1_000_000_000, nanoseconds // 1000 % 1_000_000, name
