"""
Open the file of a message, even if another program renames it.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from pop3svc.errors import POP3ResponseError
from pop3svc.files import closeQuietly
from pop3svc.providers.files.deletion import Place
from pop3svc.providers.files.directory import Directory, Opened
from pop3svc.providers.files.listing import Listing
from pop3svc.providers.files.sizes import headOf
from pop3svc.providers.files.snapshot import MailboxSnapshot, listFolder
from pop3svc.threadpool import isCancelled

__all__ = ["Finder"]

# A search ends after this number of seconds if other programs rename the message again and again.
_SEEK = 2.0

T = TypeVar("T")


class Finder:
    """
    Finds the files of the messages that a session has listed.
    """

    __slots__ = ("_directory", "_listing")

    def __init__(self, directory: Directory, listing: Listing) -> None:
        self._directory = directory
        self._listing = listing

    def attempt(self, uniqueID: str) -> Opened | None:
        """
        Open a message at its last known place.  This method works in the reactor's thread.

        @return: the open file; L{None} if there is no file or another file at this place, or if the
            file must be opened in a thread.
        """
        place = self._listing.placeOf(uniqueID)
        return None if place is None else self._open(uniqueID, place, self._directory.attemptFile)

    def open(self, uniqueID: str, place: Place) -> Opened | None:
        """
        Open a message.  Blocks.

        @return: the open file; L{None} if there is no file or another file at this place.
        """
        return self._open(uniqueID, place, self._directory.openFile)

    def _open(
        self, uniqueID: str, place: Place, opener: Callable[[str, str], Opened | None]
    ) -> Opened | None:
        folder, name, _ = place
        try:
            opened = opener(folder, name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._directory.fault("open a message of", error, name)
        if opened is None:
            return None
        descriptor, status = opened
        listing = self._listing
        if not listing.isUntouched(uniqueID, place, status) and not listing.isSame(
            uniqueID, place, status, lambda: headOf(descriptor)
        ):
            closeQuietly(descriptor)
            return None
        return opened

    def seek(
        self, uniqueIDs: Sequence[str], look: Callable[[str, Place], T | None]
    ) -> tuple[dict[str, T], bool]:
        """
        Call C{look} with each message.  If another program has renamed the file of a message,
        search for the file.  Blocks.

        @param look: takes a unique-id and a place, and returns L{None} if the file of the message
            is not at this place.
        @return: the results of C{look} by unique-id, and a bool.  The bool is true if the messages
            without a result certainly do not exist any more.  The bool is false if the search ended
            before this was certain, because messages were renamed or the work was cancelled.
        """
        found: dict[str, T] = {}
        listing = self._listing

        def lookFor(uniqueID: str, place: Place | None) -> bool:
            got = None if place is None else look(uniqueID, place)
            if got is not None:
                found[uniqueID] = got
            return got is not None

        missing = [each for each in uniqueIDs if not lookFor(each, listing.placeOf(each))]
        end = time.monotonic() + _SEEK
        while missing:
            now = listing.scanned()
            for uniqueID in missing:
                place = now.get(uniqueID)
                if place is not None and lookFor(uniqueID, place):
                    listing.move(uniqueID, place)
            missing = [
                each for each in missing if each not in found and (each in now or not now.isSure)
            ]
            if missing and (time.monotonic() > end or isCancelled()):
                return found, False
            if missing:
                self._seekDuringScan(set(missing), now, lookFor)
                missing = [each for each in missing if each not in found]
        return found, True

    def _seekDuringScan(
        self, wanted: set[str], now: MailboxSnapshot, lookFor: Callable[[str, Place], bool]
    ) -> None:
        """
        Open messages while the directory is read, so that other programs have little time to rename
        the files.
        """

        def seekIn(root: int) -> None:
            for folder in self._directory.folders:
                for place in listFolder(root, folder):
                    uniqueID = now.uniqueIDOf(place)
                    if uniqueID in wanted and lookFor(uniqueID, place):
                        wanted.discard(uniqueID)
                        self._listing.move(uniqueID, place)

        try:
            self._directory.use(seekIn)
        except OSError as error:
            raise self._directory.fault("list", error)

    def locator(self, root: int) -> Callable[[tuple[str, Place | None], int], Place | None]:
        """
        @return: a function for L{removeAll<pop3svc.providers.files.deletion.removeAll>} that
            returns the place of a message.  The first call for a message returns its last known
            place.  Further calls for this message return its place in a new scan.
        """
        now: MailboxSnapshot | None = None
        # The inodes of the files in the new scan, if the session's listing is not sure.  Such a
        # listing may have a file under a unique-id that the new scan gives to no file.
        inodes: set[int] = set()

        def locate(message: tuple[str, Place | None], looks: int) -> Place | None:
            nonlocal now
            uniqueID, link = message
            if link is not None:
                return None if looks else link
            listed = self._listing.placeOf(uniqueID)
            if not looks:
                return listed
            if looks > 1 or now is None:
                now = self._listing.scan(root)
                inodes.clear()
                if not self._listing.current.isSure:
                    inodes.update(place[2] for place in now.places)
            place = now.get(uniqueID)
            if place is None and not (now.isSure and (listed is None or listed[2] not in inodes)):
                # Raise an error, because the message may exist.  It may have been renamed during
                # the scan, or its file may have another unique-id now.
                raise OSError(errno.EBUSY, "messages are renamed all the time")
            return place

        return locate

    @staticmethod
    def missing(isSure: bool) -> POP3ResponseError:
        """
        @param isSure: see L{seek}.
        @return: the error for the client if a message was not found.
        """
        if isSure:
            return POP3ResponseError("Message no longer exists.")
        return POP3ResponseError("Message is in use, try again later.", "SYS/TEMP")
