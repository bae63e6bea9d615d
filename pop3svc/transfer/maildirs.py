"""
Read Maildirs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

from pop3svc.files import closeQuietly, openFile
from pop3svc.providers.files.scanning import scanPlaces
from pop3svc.providers.maildir.names import parseNames, separatorOf
from pop3svc.providers.paths import uniqueIDFor
from pop3svc.providers.unpacking import CannotUnpack, packedAs, unpacked
from pop3svc.transfer.failures import NotPossible, Unreadable
from pop3svc.transfer.folders import readWhole
from pop3svc.transfer.source import Source, SourceMessage

__all__ = ["MaildirSource", "foldersOf", "isMaildir"]

_FOLDERS = ("new", "cur")
# The number of octets that show whether a file is compressed.
_MAGIC = 16


def isMaildir(path: str) -> bool:
    """
    @return: whether a directory is a Maildir.  This function blocks.
    """
    return all(os.path.isdir(os.path.join(path, each)) for each in _FOLDERS)


def foldersOf(path: str) -> list[str]:
    """
    @return: the paths of the folders of a Maildir++ except INBOX, in order.  This function blocks.
    """
    names = sorted(each for each in os.listdir(path) if each[0] == "." and each not in (".", ".."))
    paths = [os.path.join(path, each) for each in names]
    return [each for each in paths if os.path.isdir(os.path.join(each, "cur"))]


class MaildirSource(Source):
    """
    One folder of a Maildir.  Other programs may deliver, rename and remove messages during the
    import.
    """

    def __init__(self, path: str, kept: Mapping[str, tuple[str, int]]) -> None:
        """
        @param kept: the unique-ids and the positions that the messages had on another server, by
            the base names of their files.
        """
        super().__init__(path)
        self._kept = kept
        self._places: dict[str, tuple[str, str]] = {}
        self._bases: set[str] = set()

    def _scan(self) -> dict[str, tuple[str, str, str, str]]:
        """
        @return: by base name, the folder of the file, its name, and the seconds and microseconds in
            this name.
        """
        root = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            places = scanPlaces(root, _FOLDERS).places
        finally:
            closeQuietly(root)
        parsed = parseNames(places, separatorOf(places))
        found: dict[str, tuple[str, str, str, str]] = {}
        several: dict[str, list[tuple[str, str]]] = {}
        for (base, seconds, microseconds), (folder, name, *_) in zip(parsed, places, strict=True):
            if base in found:
                several.setdefault(base, [found[base][:2]]).append((folder, name))
            found[base] = folder, name, seconds, microseconds
        for base, named in several.items():
            self._refuseTwins(base, named)
        self._places = {base: (folder, name) for base, (folder, name, _, _) in found.items()}
        return found

    def _refuseTwins(self, base: str, named: Sequence[tuple[str, str]]) -> None:
        """
        @param named: the folders and the names that have this base name.  A file has several of
            them if it was renamed while the directory was read.
        @raise NotPossible: several files have this base name.
        """
        files = set()
        for folder, name in named:
            try:
                status = os.stat(os.path.join(self.path, folder, name), follow_symlinks=False)
            except FileNotFoundError:
                continue
            files.add((status.st_dev, status.st_ino))
        if len(files) > 1:
            raise NotPossible(f"{self.path} has {len(files)} messages of the name {base}")

    def messages(self) -> Sequence[SourceMessage]:
        """
        See L{Source.messages}.  Messages that another server has numbered come first.  The other
        messages follow in the order of their times.  If the name of a message's file has no time,
        the message has the time of the file.
        """
        found: list[tuple[tuple[int, int, float, str], SourceMessage]] = []
        for base, (folder, name, seconds, microseconds) in self._scan().items():
            arrival = 0.0
            if seconds:
                arrival = int(seconds) + min(int(microseconds or 0), 999_999) / 1_000_000
            if not 0 < arrival < 2**33:
                try:
                    arrival = os.stat(os.path.join(self.path, folder, name)).st_mtime
                except FileNotFoundError:
                    arrival = 0.0
            uniqueID, rank = self._kept.get(base, (uniqueIDFor(base), -1))
            key = (0, rank, 0.0, base) if rank >= 0 else (1, 0, arrival, base)
            found.append((key, SourceMessage(base, arrival, uniqueID)))
        found.sort(key=lambda each: each[0])
        self._bases = {each.key for _, each in found}
        return [each for _, each in found]

    def _open(self, base: str) -> tuple[int, os.stat_result]:
        for isLast in (False, True):
            place = self._places.get(base)
            if place is None:
                break
            try:
                return openFile(os.path.join(self.path, *place))
            except FileNotFoundError:
                if os.path.lexists(os.path.join(self.path, *place)):
                    raise Unreadable("it is not a regular file")
            if not isLast:
                # Look for the file again, because another program has renamed or removed it.
                self._scan()
        raise Unreadable("it is gone", isTemporary=True)

    def pieces(self, message: SourceMessage) -> Iterator[bytes]:
        """
        See L{Source.pieces}.  Messages that Dovecot has compressed are unpacked.
        """
        descriptor, status = self._open(message.key)
        try:
            kind = packedAs(os.pread(descriptor, _MAGIC, 0))
            if kind is None:
                yield from readWhole(descriptor, status)
            else:
                yield from unpacked(descriptor, kind)
        except CannotUnpack as error:
            raise Unreadable(f"it {error}")
        finally:
            closeQuietly(descriptor)

    def hasMore(self) -> bool:
        """
        See L{Source.hasMore}.
        """
        return not self._bases.issuperset(self._scan())
