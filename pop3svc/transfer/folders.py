"""
Read MH folders, and folders of C{.eml} files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

from pop3svc.files import closeQuietly, openFile
from pop3svc.transfer.failures import Unreadable
from pop3svc.transfer.source import Source, SourceMessage

__all__ = ["EmlSource", "FolderSource", "MHSource", "isMessageOfMH", "readWhole"]

# The number of octets that are read in one step.
_BLOCK = 262_144


def readWhole(descriptor: int, status: os.stat_result) -> Iterator[bytes]:
    """
    Read a file, and check that it has not changed meanwhile.

    @param status: the status of the file before it is read.
    @raise Unreadable: the file has changed.
    """
    offset = 0
    while block := os.pread(descriptor, _BLOCK, offset):
        offset += len(block)
        yield block
    after = os.fstat(descriptor)
    if offset != status.st_size or after.st_mtime_ns != status.st_mtime_ns:
        raise Unreadable("another program changed it meanwhile", isTemporary=True)


def isMessageOfMH(name: str) -> bool:
    """
    @return: whether a file with this name is a message in an MH folder.
    """
    return name.isascii() and name.isdigit()


class FolderSource(Source):
    """
    A directory that holds a file for each message.
    """

    def __init__(self, path: str, kept: Mapping[str, tuple[str, int]]) -> None:
        """
        @param kept: the unique-ids to keep, as L{uniqueIDsOf<pop3svc.migration.uniqueIDsOf>}
            returns them.
        """
        super().__init__(path)
        self._kept = kept
        self._names: set[str] = set()

    def _listed(self) -> list[str]:
        """
        @return: the names of the messages' files, in order.
        """
        raise NotImplementedError

    def messages(self) -> Sequence[SourceMessage]:
        """
        See L{Source.messages}.
        """
        found = []
        for name in self._listed():
            try:
                arrival = os.stat(os.path.join(self.path, name)).st_mtime
            except FileNotFoundError:
                # Leave out a file that was removed after the directory was read.  A link to a
                # missing file stays, so that the import names it to the operator.
                if not os.path.islink(os.path.join(self.path, name)):
                    continue
                arrival = 0.0
            kept = self._kept.get(name.partition(":")[0])
            found.append(SourceMessage(name, arrival, None if kept is None else kept[0]))
        self._names = {each.key for each in found}
        return found

    def pieces(self, message: SourceMessage) -> Iterator[bytes]:
        """
        See L{Source.pieces}.
        """
        path = os.path.join(self.path, message.key)
        try:
            descriptor, status = openFile(path)
        except FileNotFoundError:
            if os.path.lexists(path):
                raise Unreadable("it is not a regular file")
            raise Unreadable("it is gone", isTemporary=True)
        try:
            yield from readWhole(descriptor, status)
        finally:
            closeQuietly(descriptor)

    def hasMore(self) -> bool:
        """
        See L{Source.hasMore}.
        """
        return not self._names.issuperset(self._listed())


class MHSource(FolderSource):
    """
    An MH folder.  The name of each message's file is a number, which gives the order.
    """

    def _listed(self) -> list[str]:
        return sorted(filter(isMessageOfMH, os.listdir(self.path)), key=int)


class EmlSource(FolderSource):
    """
    A directory of C{.eml} files, in the order of their names.
    """

    def _listed(self) -> list[str]:
        names = os.listdir(self.path)
        return sorted(each for each in names if each.lower().endswith(".eml") and each[0] != ".")
