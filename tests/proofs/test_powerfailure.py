"""
A removal removes all messages or none, even if the power fails at any moment.

Each change of a directory is recorded while a removal or a recovery runs.  For each moment, and
each choice of changes that were not synced before, a directory is built in which only the synced
and the chosen changes have happened.  There the next holder of the lock does its recovery.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from itertools import chain, combinations
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pop3svc.files import openDirectory
from pop3svc.providers.files.deletion import isClean, recover, removeAll

FOLDERS = ("new", "cur")
ALL, REST = {"a", "b", "c", "d"}, {"c", "d"}
FROM_NEW, FROM_CUR = ("new", "a", 0), ("cur", "b", 0)
Directories = dict[int, dict[str, int]]


class Entry(NamedTuple):
    """
    An entry of a directory.
    """

    directory: int
    name: str
    inode: int


class Link(Entry):
    """
    A change: a directory gets an entry.
    """

    def apply(self, directories: Directories) -> None:
        directories[self.directory].setdefault(self.name, self.inode)


class Unlink(Entry):
    """
    A change: a directory loses an entry.
    """

    def apply(self, directories: Directories) -> None:
        if directories[self.directory].get(self.name) == self.inode:
            del directories[self.directory][self.name]


class Rename(NamedTuple):
    """
    A change: an entry moves.  No file system does one half of it.
    """

    directory: int
    name: str
    inode: int
    target: int
    to: str

    def apply(self, directories: Directories) -> None:
        if directories[self.directory].get(self.name) == self.inode:
            del directories[self.directory][self.name]
            directories[self.target][self.to] = self.inode


Change = Link | Unlink | Rename


class Tape:
    """
    Records the changes of directories below a directory.

    @ivar entries: the changes, and the inodes of the directories that were synced, in order.
    """

    def __init__(self, patch: pytest.MonkeyPatch, full: tuple[str, ...]) -> None:
        """
        @param full: the names of directories for which there is no room.
        """
        self.entries: list[Change | int] = []
        real = {each: getattr(os, each) for each in ("mkdir", "rename", "link", "unlink", "fsync")}
        tape = self.entries

        def inodeOf(directory: int) -> int:
            return os.fstat(directory).st_ino

        def at(name: str, directory: int) -> int:
            return os.lstat(name, dir_fd=directory).st_ino

        def mkdir(name: str, mode: int, *, dir_fd: int) -> None:
            if name in full and name not in os.listdir(dir_fd):
                raise OSError(errno.ENOSPC, "full")
            real["mkdir"](name, mode, dir_fd=dir_fd)
            tape.append(Link(inodeOf(dir_fd), name, at(name, dir_fd)))

        def rename(name: str, to: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
            inode = at(name, src_dir_fd)
            real["rename"](name, to, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            tape.append(Rename(inodeOf(src_dir_fd), name, inode, inodeOf(dst_dir_fd), to))

        def link(name: str, to: str, *, dst_dir_fd: int, **named: Any) -> None:
            real["link"](name, to, dst_dir_fd=dst_dir_fd, **named)
            tape.append(Link(inodeOf(dst_dir_fd), to, at(to, dst_dir_fd)))

        def unlink(name: str, *, dir_fd: int) -> None:
            inode = at(name, dir_fd)
            real["unlink"](name, dir_fd=dir_fd)
            tape.append(Unlink(inodeOf(dir_fd), name, inode))

        def fsync(descriptor: int) -> None:
            tape.append(inodeOf(descriptor))

        for each in (mkdir, rename, link, unlink, fsync):
            patch.setattr(os, each.__name__, each)


# How a file system makes changes durable.  A journal keeps their order.  Without a journal, the
# sync of a directory makes only its own changes durable.  A rename may be a change of the directory
# that the entry leaves, or of the directory that gets the entry.
MODELS = ["journal", "left", "entered"]


def remaining(entries: list[Change | int], model: str) -> Iterator[list[Change]]:
    """
    @param model: see L{MODELS}.
    @return: the changes that may have happened after a power failure at the end of the entries.
    """
    isOrdered = model == "journal"
    changes: list[tuple[int, Change]] = []
    synced = set()
    for number, entry in enumerate(entries):
        if not isinstance(entry, int):
            changes.append((number, entry))
        elif isOrdered:
            synced.update(number for number, _ in changes)
        else:
            for number, change in changes:
                isEntered = isinstance(change, Rename) and model == "entered"
                if entry == (change.target if isEntered else change.directory):
                    synced.add(number)
    pending = [number for number, _ in changes if number not in synced]
    counts = range(len(pending) + 1)
    chosen: Iterator[tuple[int, ...]]
    if isOrdered:
        chosen = (tuple(pending[:count]) for count in counts)
    else:
        chosen = chain.from_iterable(combinations(pending, count) for count in counts)
    for some in chosen:
        yield [change for number, change in changes if number in synced or number in some]


def read(path: Path) -> tuple[Directories, dict[int, str]]:
    """
    @return: the entries of each directory, and the text of each file, by inode.
    """
    directories: Directories = {path.stat().st_ino: {}}
    texts: dict[int, str] = {}
    for each in path.rglob("*"):
        inode = each.stat().st_ino
        directories.setdefault(each.parent.stat().st_ino, {})[each.name] = inode
        if each.is_dir():
            directories.setdefault(inode, {})
        else:
            texts[inode] = each.read_text()
    return directories, texts


def build(path: Path, directories: Directories, texts: dict[int, str], root: int) -> None:
    path.mkdir()
    for name, inode in directories[root].items():
        if inode in texts:
            (path / name).write_text(texts[inode])
        else:
            build(path / name, directories, texts, inode)


def lock(root: int) -> None:
    if not isClean(root, FOLDERS):
        recover(root, FOLDERS)


def locate(place: Any, looks: int) -> Any:
    return None if looks else place


def fresh(path: Path, root: int) -> None:
    """
    No session has locked the mailbox before.
    """


def ready(path: Path, root: int) -> None:
    """
    An earlier session has removed nothing.
    """
    recover(root, FOLDERS)


def used(path: Path, root: int) -> None:
    """
    An earlier session has removed messages.
    """
    (path / "new" / "y").write_text("y")
    (path / "cur" / "z").write_text("z")
    removeAll(root, FOLDERS, [("new", "y", 0), ("cur", "z", 0)], locate)


def moved(path: Path, root: int) -> None:
    """
    A removal was interrupted before its decision.
    """
    recover(root, FOLDERS)
    (path / "pop3svc-removing" / ".new").mkdir()
    (path / "new" / "a").rename(path / "pop3svc-removing" / ".new" / "a")
    (path / "cur" / "b").rename(path / "pop3svc-removing" / "b")


def decided(path: Path, root: int) -> None:
    """
    A removal was interrupted after its decision.
    """
    moved(path, root)
    (path / "pop3svc-removing").rename(path / "pop3svc-removed")


def removal(*places: Any) -> Callable[[int], object]:
    def run(root: int) -> object:
        lock(root)
        return removeAll(root, FOLDERS, places, locate)

    return run


def inTurn(*removals: Callable[[int], object]) -> Callable[[int], object]:
    return lambda root: [each(root) for each in removals]


BOTH = removal(FROM_NEW, FROM_CUR)
STAGING = ("pop3svc-removing", ".new")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("before", "work", "full", "outcomes"),
    [
        (fresh, BOTH, (), [ALL, REST]),
        (ready, BOTH, (), [ALL, REST]),
        (used, BOTH, (), [ALL, REST]),
        (ready, BOTH, (".new",), [ALL, REST]),
        (ready, removal(FROM_CUR, FROM_NEW), (".new",), [ALL, REST]),
        (fresh, BOTH, STAGING, [ALL, REST]),
        (fresh, inTurn(removal(("cur", "c", 0)), BOTH), STAGING, [ALL, ALL - {"c"}, {"d"}]),
        (ready, inTurn(removal(("cur", "c", 0)), BOTH), (".new",), [ALL, ALL - {"c"}, {"d"}]),
        (moved, lock, (), [ALL]),
        (decided, lock, (), [REST]),
    ],
)
def test_powerFailure(
    tmp_path: Path,
    model: str,
    before: Callable[[Path, int], object],
    work: Callable[[int], object],
    full: tuple[str, ...],
    outcomes: list[set[str]],
) -> None:
    path = tmp_path / "mail"
    for folder in (*FOLDERS, "tmp"):
        (path / folder).mkdir(parents=True)
    for folder, name in (("new", "a"), ("cur", "b"), ("cur", "c"), ("new", "d")):
        (path / folder / name).write_text(name)
    root = openDirectory(str(path))
    before(path, root)
    directories, texts = read(path)
    with pytest.MonkeyPatch.context() as patch:
        tape = Tape(patch, full)
        work(root)
    os.close(root)
    made = [each.inode for each in tape.entries if isinstance(each, Link)]
    found = []
    seen = set()
    for count in range(len(tape.entries) + 1):
        for changes in remaining(tape.entries[:count], model):
            now = {each: dict(entries) for each, entries in directories.items()}
            now.update((each, {}) for each in made if each not in texts)
            for change in changes:
                change.apply(now)
            key = repr(now)
            if key in seen and count < len(tape.entries):
                continue
            seen.add(key)
            there = tmp_path / f"{count}-{len(found)}"
            build(there, now, texts, path.stat().st_ino)
            root = openDirectory(str(there))
            lock(root)
            os.close(root)
            left = {each.read_text() for folder in FOLDERS for each in (there / folder).iterdir()}
            # When the removal has returned, it is durable.
            right = outcomes if count < len(tape.entries) else outcomes[-1:]
            assert left in right, (tape.entries[:count], changes)
            found.append(left)
    # The power failures have led to each possible outcome.
    assert all(each in found for each in outcomes)
