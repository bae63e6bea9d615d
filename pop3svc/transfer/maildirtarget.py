"""
Write a Maildir.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import BinaryIO

from pop3svc.files import (
    closeQuietly,
    countOctets,
    openDirectory,
    openRegular,
    syncDirectory,
)
from pop3svc.providers.files.scanning import scanPlaces
from pop3svc.providers.files.storing import nameOfDelivery, publish, writeMessage
from pop3svc.providers.maildir.names import nameWithUniqueID, parseNames
from pop3svc.transfer.failures import NotPossible
from pop3svc.transfer.target import Target, lockOwn

__all__ = ["MaildirTarget"]

# The name of the file that marks an unfinished export.
_MARK = ".pop3svc-export"
_FOLDERS = ("tmp", "new", "cur")
_LISTED = ("new", "cur")
_MICROSECONDS = 1_000_000
# The most octets of the mark that are read.
_MOST = 4096


class MaildirTarget(Target):
    """
    A Maildir that an export writes.  The base name of each file is the message's unique-id, if a
    file can have this name.
    """

    def __init__(self, path: str, username: str) -> None:
        """
        @param username: the user of the mailbox.
        """
        super().__init__(path)
        self._mark = json.dumps({"user": username}).encode("ascii")
        self._descriptors: dict[str, int] = {}
        self._there: dict[str, tuple[str, str]] = {}
        self._names: dict[str, str] = {}
        self._latest = 0

    def prepare(self, uniqueIDs: Sequence[str]) -> int:
        """
        See L{Target.prepare}.
        """
        try:
            os.mkdir(self.path, 0o700)
            syncDirectory(os.path.dirname(os.path.abspath(self.path)))
        except FileExistsError:
            if not os.path.isdir(self.path):
                raise NotPossible(f"{self.path} exists and is not a directory")
        self._takeMark()
        for folder in _FOLDERS:
            below = os.path.join(self.path, folder)
            if not os.path.isdir(below):
                os.mkdir(below, 0o700)
            self._descriptors[folder] = openDirectory(below)
        syncDirectory(self.path)
        self._descriptors["."] = openDirectory(self.path)
        for name in os.listdir(self._descriptors["tmp"]):
            # Remove the file, because the interrupted export had only begun to write this message.
            os.unlink(name, dir_fd=self._descriptors["tmp"])
        self._there = self._scan()
        return 0

    def _takeMark(self) -> None:
        others = [each for each in os.listdir(self.path) if each != _MARK]
        mark = os.path.join(self.path, _MARK)
        if others and not os.path.lexists(mark):
            raise NotPossible(f"{self.path} is not empty")
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = self._descriptors[_MARK] = os.open(mark, flags, 0o600)
        lockOwn(descriptor, self.path)
        found = os.pread(descriptor, _MOST, 0)
        if found == self._mark:
            return
        if others:
            raise NotPossible(f"{self.path} has the unfinished export of another mailbox")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, self._mark, 0)
        os.fsync(descriptor)
        syncDirectory(self.path)

    def _scan(self) -> dict[str, tuple[str, str]]:
        """
        @return: the folder and the name of each file, by the file's base name.
        """
        places = scanPlaces(self._descriptors["."], _LISTED).places
        parsed = parseNames(places, ":")
        return {
            base: (place[0], place[1]) for (base, *_), place in zip(parsed, places, strict=True)
        }

    def keep(self, uniqueID: str) -> bool:
        """
        See L{Target.keep}.
        """
        name = nameWithUniqueID(uniqueID)
        if name not in self._there:
            return False
        self._names[uniqueID] = name
        folder, file = self._there[name]
        status = os.stat(file, dir_fd=self._descriptors[folder], follow_symlinks=False)
        self._latest = max(self._latest, status.st_mtime_ns // 1000)
        return True

    def add(self, uniqueID: str, content: BinaryIO, arrival: float, sender: bytes) -> None:
        """
        See L{Target.add}.  The times of the files increase in the order of the messages.
        """
        name = self._names[uniqueID] = nameWithUniqueID(uniqueID)
        arrived = int(arrival * _MICROSECONDS)
        self._latest = max(arrived, self._latest + 1)
        source, target = self._descriptors["tmp"], self._descriptors["new"]
        temporary = nameOfDelivery(self._latest)
        writeMessage(source, temporary, b"", content, None, self._latest * 1000)
        publish(source, temporary, target, name, mayExist=True)

    def finish(self) -> dict[str, int]:
        """
        See L{Target.finish}.
        """
        there = self._scan()
        found: dict[str, int] = {}
        for uniqueID, base in self._names.items():
            if base in there:
                folder, name = there[base]
                descriptor = openRegular(name, self._descriptors[folder])
                try:
                    found[uniqueID] = countOctets(descriptor)
                finally:
                    closeQuietly(descriptor)
        for folder in _FOLDERS:
            os.fsync(self._descriptors[folder])
        return found

    def publish(self) -> None:
        """
        See L{Target.publish}.
        """
        os.unlink(_MARK, dir_fd=self._descriptors["."])
        os.fsync(self._descriptors["."])

    def close(self) -> None:
        """
        See L{Target.close}.
        """
        for descriptor in self._descriptors.values():
            closeQuietly(descriptor)
        self._descriptors.clear()
