"""
A removal removes all files or none, even after a kill or an error at any step.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from pop3svc.files import openDirectory
from pop3svc.providers.files.deletion import isClean, recover, removeAll

FOLDERS = ("new", "cur")
PLACES = [("new", "a"), ("cur", "b:2,S"), ("cur", "c")]
KEPT = [("new", "d"), ("cur", "e")]
STEPS = ["mkdir", "rename", "fsync", "unlink", "link", "open", "scandir", "listdir", "lstat"]


def make(path: Path) -> int:
    for folder in FOLDERS:
        (path / folder).mkdir(parents=True)
    for folder, name in PLACES + KEPT:
        (path / folder / name).write_text(name)
    return openDirectory(str(path))


def there(path: Path) -> set[tuple[str, str]]:
    found = {(folder, each.name) for folder in FOLDERS for each in (path / folder).iterdir()}
    for folder, name in found:
        assert (path / folder / name).read_text() == name
    return found


def staged(path: Path) -> list[str]:
    """
    @return: the names beside the folders, except the empty staging directory.
    """
    left = [each for each in path.iterdir() if each.name not in FOLDERS]
    waiting = path / "pop3svc-removing"
    if waiting in left:
        if not any(each.name != ".new" for each in waiting.rglob("*")):
            left.remove(waiting)
    return [each.name for each in left]


def locate(place: Any, looks: int) -> Any:
    return None if looks else place


def test_removeAll(tmp_path: Path) -> None:
    root = make(tmp_path)
    removeAll(root, FOLDERS, PLACES, locate)
    assert there(tmp_path) == set(KEPT)
    # The next recovery renames the staging directory back, after a sync of its removals.
    assert staged(tmp_path) == ["pop3svc-removed"]
    assert list((tmp_path / "pop3svc-removed").rglob("?")) == []
    recover(root, FOLDERS)
    assert staged(tmp_path) == []


def test_gone(tmp_path: Path) -> None:
    root = make(tmp_path)
    (tmp_path / "cur" / "c").unlink()
    removeAll(root, FOLDERS, PLACES, locate)
    assert there(tmp_path) == set(KEPT)


def test_renamed(tmp_path: Path) -> None:
    root = make(tmp_path)
    (tmp_path / "new" / "a").rename(tmp_path / "cur" / "a:2,RS")

    def look(place: Any, looks: int) -> Any:
        return ("cur", "a:2,RS") if place == ("new", "a") and looks else place

    removeAll(root, FOLDERS, PLACES, look)
    assert there(tmp_path) == set(KEPT)


def test_fullDisk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A removal needs no directory on a full disk.  A later removal needs none on any disk, because the
    staging directories are kept.
    """
    root = make(tmp_path)
    recover(root, FOLDERS)
    assert [each.name for each in (tmp_path / "pop3svc-removing").iterdir()] == []
    tried: list[str] = []

    def full(name: str, *_: object, **__: object) -> None:
        tried.append(name)
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", full)
        removeAll(root, FOLDERS, PLACES, locate)
    assert there(tmp_path) == set(KEPT)
    # Another removal or login begins with a recovery.
    assert staged(tmp_path) == ["pop3svc-removed"]
    assert tried == [".new"]
    removeAll(root, FOLDERS, KEPT[:1], locate)
    recover(root, FOLDERS)
    (tmp_path / "new" / "a").write_text("a")
    renamed: list[str] = []
    rename = os.rename

    def remembered(name: str, to: str, **named: Any) -> None:
        renamed.append(to)
        rename(name, to, **named)

    def exists(*_: object, **__: object) -> None:
        raise FileExistsError

    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", exists)
        patch.setattr(os, "rename", remembered)
        removeAll(root, FOLDERS, [("new", "a"), KEPT[1]], locate)
    assert there(tmp_path) == set()
    assert renamed == ["a", "e", "pop3svc-removed"]


def test_noRoomAndNotPutBack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    If a directory cannot be created after some files were moved, and these files cannot be put back
    either, the removal fails.  The next recovery puts the files back.
    """
    root = make(tmp_path)
    recover(root, FOLDERS)

    def broken(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patch:
        noRoom(patch)
        patch.setattr(os, "link", broken)
        with pytest.raises(OSError, match="broken"):
            removeAll(root, FOLDERS, PLACES[::-1], locate)
    recover(root, FOLDERS)
    assert there(tmp_path) == set(PLACES + KEPT)


def noRoom(patch: pytest.MonkeyPatch) -> None:
    mkdir = os.mkdir

    def full(name: str, *arguments: Any, **named: Any) -> None:
        if name == ".new":
            raise OSError(errno.ENOSPC, "full")
        mkdir(name, *arguments, **named)

    patch.setattr(os, "mkdir", full)


def test_killedWithoutRoom(tmp_path: Path) -> None:
    """
    If there is no room for a directory and the process is killed at any step, the next lock finds
    that a recovery is necessary.
    """
    outcomes = set()
    for step in range(1, 200):
        path = tmp_path / str(step)
        root = make(path)
        recover(root, FOLDERS)
        status = killedAt(path, step, noRoom)
        if not isClean(root, FOLDERS):
            recover(root, FOLDERS)
        os.close(root)
        left = there(path)
        assert left in (set(PLACES + KEPT), set(KEPT)), (step, left)
        assert staged(path) == []
        outcomes.add((status, len(left)))
        if status == 0:
            break
    assert outcomes == {(9, 5), (9, 2), (0, 2)}


def test_leftWithoutRoom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    If there is no room for a directory and the last file of a removal cannot be unlinked, a later
    removal that fails removes nothing.
    """
    root = make(tmp_path)
    recover(root, FOLDERS)
    unlink, rename = os.unlink, os.rename

    def stuck(name: str, **named: Any) -> None:
        if name.startswith("pop3svc-deleted."):
            raise OSError(errno.EIO, "broken")
        unlink(name, **named)

    def stubborn(name: str, to: str, **named: Any) -> None:
        if name == "e":
            raise OSError(errno.EIO, "broken")
        rename(name, to, **named)

    with monkeypatch.context() as patch:
        noRoom(patch)
        with monkeypatch.context() as first:
            first.setattr(os, "unlink", stuck)
            removeAll(root, FOLDERS, PLACES, locate)
        patch.setattr(os, "rename", stubborn)
        with pytest.raises(OSError, match="broken"):
            removeAll(root, FOLDERS, KEPT, locate)
    recover(root, FOLDERS)
    assert there(tmp_path) == set(KEPT)


def test_quotaOfTheOwner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    If the owner of the mailbox has no quota for another directory, the removal needs none.
    """

    def full(*_: object) -> None:
        raise OSError(errno.EDQUOT, "quota")

    root = make(tmp_path)
    recover(root, FOLDERS)
    monkeypatch.setattr("pop3svc.providers.files.deletion.fileUID", lambda: 0)
    monkeypatch.setattr(os, "fchown", full)
    removeAll(root, FOLDERS, PLACES, locate)
    assert there(tmp_path) == set(KEPT)
    # No directory is left that belongs to root.
    assert [each.name for each in (tmp_path / "pop3svc-removed").iterdir()] == []


def test_directoriesInTheStagingDirectory(tmp_path: Path) -> None:
    """
    Directories that another program has created in the staging directory are ignored, unless there
    are many.
    """
    root = make(tmp_path)
    removeAll(root, FOLDERS, PLACES, locate)
    (tmp_path / "pop3svc-removed" / "cur").mkdir()
    recover(root, FOLDERS)
    assert isClean(root, FOLDERS)
    assert there(tmp_path) == set(KEPT)
    for number in range(10):
        (tmp_path / "pop3svc-removing" / str(number)).mkdir()
    assert not isClean(root, FOLDERS)
    removeAll(root, FOLDERS, KEPT, locate)
    assert there(tmp_path) == set()


def test_foldersRemoved(tmp_path: Path) -> None:
    root = make(tmp_path)
    recover(root, FOLDERS)
    for folder, name in (("new", "a"), ("new", "d")):
        (tmp_path / folder / name).unlink()
    (tmp_path / "new").rmdir()
    removeAll(root, FOLDERS, PLACES, locate)
    assert (tmp_path / "cur").exists()
    recover(root, FOLDERS)
    (tmp_path / "pop3svc-removing" / ".new").mkdir()
    (tmp_path / "pop3svc-removing" / ".new" / "a").write_text("a")
    recover(root, FOLDERS)
    assert (tmp_path / "new" / "a").read_text() == "a"


def test_bothStages(tmp_path: Path) -> None:
    """
    If both staging directories exist, the files of one are put back, and those of the other are
    removed.
    """
    root = make(tmp_path)
    for state, name in (("pop3svc-removing", "a"), ("pop3svc-removed", "d")):
        (tmp_path / state / ".new").mkdir(parents=True)
        (tmp_path / "new" / name).rename(tmp_path / state / ".new" / name)
    for _ in range(2):
        recover(root, FOLDERS)
        assert there(tmp_path) == set(PLACES + KEPT) - {("new", "d")}


def test_renamedAllTheTime(tmp_path: Path) -> None:
    root = make(tmp_path)
    with pytest.raises(OSError, match="renamed"):
        removeAll(root, FOLDERS, [("new", "a"), ("new", "zzz")], lambda place, looks: place)
    assert there(tmp_path) == set(PLACES + KEPT)
    assert staged(tmp_path) == []


def test_somethingElseNow(tmp_path: Path) -> None:
    """
    A directory that has replaced a message's file is not removed.
    """
    root = make(tmp_path)
    (tmp_path / "cur" / "c").unlink()
    (tmp_path / "cur" / "c").mkdir()
    removeAll(root, FOLDERS, PLACES, locate)
    assert (tmp_path / "cur" / "c").is_dir()


def failingAt(monkeypatch: pytest.MonkeyPatch, step: int, happens: Any) -> list[str]:
    """
    Call C{happens} before the step-th call of the file system.
    """
    calls: list[str] = []

    def wrap(name: str, original: Any) -> Any:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            calls.append(name)
            if len(calls) == step:
                happens()
            return original(*arguments, **named)

        return wrapped

    for name in STEPS:
        monkeypatch.setattr(os, name, wrap(name, getattr(os, name)))
    return calls


def killedAt(path: Path, step: int, prepare: Any = lambda patch: None) -> int:
    """
    Remove files in another process, which is killed before the step-th call of the file system.

    @param prepare: a function that patches the process.
    @return: the exit status: 9 if the process was killed, 0 if there were fewer calls.
    """
    child = os.fork()
    if not child:
        with pytest.MonkeyPatch.context() as patch:
            prepare(patch)
            calls = failingAt(patch, step, lambda: os._exit(9))
            removeAll(openDirectory(str(path)), FOLDERS, PLACES, locate)
            os._exit(0 if len(calls) < step else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_killedAtEveryStep(tmp_path: Path) -> None:
    """
    After the recovery, all files that were to be removed exist, or none of them.
    """
    outcomes = set()
    for step in range(1, 200):
        path = tmp_path / str(step)
        os.close(make(path))
        status = killedAt(path, step)
        # Kill the recovery, too, at each of its steps in turn.
        second = os.fork()
        if not second:
            with pytest.MonkeyPatch.context() as patch:
                failingAt(patch, step % 17 + 1, lambda: os._exit(9))
                recover(openDirectory(str(path)), FOLDERS)
                os._exit(0)
        os.waitpid(second, 0)
        root = openDirectory(str(path))
        recover(root, FOLDERS)
        os.close(root)
        left = there(path)
        assert left in (set(PLACES + KEPT), set(KEPT)), (step, left)
        assert staged(path) == []
        outcomes.add((status, len(left)))
        if status == 0:
            break
    assert outcomes == {(9, 5), (9, 2), (0, 2)}


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENOSPC, errno.EIO])
def test_faultAtEveryStep(tmp_path: Path, code: int) -> None:
    """
    If a removal fails, all files still exist after the next recovery.  Otherwise all files that
    were to be removed are removed.
    """

    def fault() -> None:
        raise OSError(code, os.strerror(code))

    outcomes = set()
    for step in range(1, 200):
        path = tmp_path / str(step)
        root = make(path)
        with pytest.MonkeyPatch.context() as patch:
            calls = failingAt(patch, step, fault)
            try:
                removeAll(root, FOLDERS, PLACES, locate)
                failed = False
            except OSError:
                failed = True
        recover(root, FOLDERS)
        os.close(root)
        assert there(path) == (set(PLACES + KEPT) if failed else set(KEPT)), (step, calls[-1])
        assert staged(path) == []
        outcomes.add(failed)
        if len(calls) < step:
            break
    assert outcomes == {True, False}


def test_putBackOverwritesNothing(tmp_path: Path) -> None:
    root = make(tmp_path)
    (tmp_path / "pop3svc-removing" / ".new").mkdir(parents=True)
    (tmp_path / "new" / "a").rename(tmp_path / "pop3svc-removing" / ".new" / "a")
    (tmp_path / "new" / "a").write_text("another")
    recover(root, FOLDERS)
    texts = {each.read_text() for each in (tmp_path / "new").iterdir()}
    assert texts == {"a", "another", "d"}


def test_withoutHardLinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def noLinks(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    root = make(tmp_path)
    (tmp_path / "pop3svc-removing" / ".new").mkdir(parents=True)
    (tmp_path / "new" / "a").rename(tmp_path / "pop3svc-removing" / ".new" / "a")
    monkeypatch.setattr(os, "link", noLinks)
    recover(root, FOLDERS)
    assert there(tmp_path) == set(PLACES + KEPT)


@pytest.mark.parametrize("name", ["pop3svc-removed", "pop3svc-removing"])
@pytest.mark.parametrize("place", ["", ".new"])
@pytest.mark.parametrize("isLink", [True, False])
def test_plantedNames(tmp_path: Path, name: str, place: str, isLink: bool) -> None:
    """
    Whatever the owner of a mailbox puts in the place of a staging directory, no file outside of the
    mailbox is removed, and messages can be removed.
    """
    elsewhere, box = tmp_path / "elsewhere", tmp_path / "box"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("x")
    root = make(box)
    planted = box / name / place
    planted.parent.mkdir(exist_ok=True)
    if isLink:
        planted.symlink_to(elsewhere)
    else:
        planted.write_text("x")
    recover(root, FOLDERS)
    assert all((box / folder / each).exists() for folder, each in PLACES + KEPT)
    removeAll(root, FOLDERS, PLACES, locate)
    assert all((box / folder / each).exists() for folder, each in KEPT)
    assert not any((box / folder / each).exists() for folder, each in PLACES)
    assert (elsewhere / "precious").exists()


@pytest.mark.parametrize("length", [200, 234, 235, 255])
def test_longNames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    """
    A removal on a full disk, and a recovery, can handle files whose names are as long as allowed.
    """
    root = make(tmp_path)
    (tmp_path / "tmp").mkdir()
    name = "y" * length

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", full)
        (tmp_path / "new" / name).write_text(name)
        removeAll(root, FOLDERS, [("new", name)], locate)
    assert there(tmp_path) == {*PLACES, *KEPT}
    assert list((tmp_path / "tmp").iterdir()) == []
    # A file is put back beside another file with the same name.
    recover(root, FOLDERS)
    (tmp_path / "cur" / name).write_text("one")
    (tmp_path / "pop3svc-removing" / name).write_text("another")
    recover(root, FOLDERS)
    found = [each.read_text() for each in (tmp_path / "cur").iterdir() if "y" in each.name]
    assert sorted(found) == ["another", "one"]


def test_tmpThatAppears(tmp_path: Path) -> None:
    """
    A removal that used the root directory, because "tmp" was missing, is undone even if another
    program has created "tmp".
    """
    root = make(tmp_path)
    (tmp_path / "new" / "a").rename(tmp_path / "pop3svc-deleting.new.a")
    (tmp_path / "tmp").mkdir()
    recover(root, FOLDERS)
    assert there(tmp_path) == {*PLACES, *KEPT}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_ownerOfANewFolder(tmp_path: Path) -> None:
    """
    A folder that a recovery has to create belongs to the owner of the mailbox.
    """
    root = make(tmp_path)
    waiting = tmp_path / "pop3svc-removing" / ".new"
    waiting.mkdir(parents=True)
    for each in (tmp_path / "new").iterdir():
        each.rename(waiting / each.name)
    (tmp_path / "new").rmdir()
    os.chown(tmp_path, 12345, 12346)
    recover(root, FOLDERS)
    status = (tmp_path / "new").stat()
    assert (status.st_uid, status.st_gid) == (12345, 12346)
    assert there(tmp_path) == {*PLACES, *KEPT}


def test_readOnlyDisk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    On a disk that has become read-only, a mailbox can be read if an interrupted removal is certain,
    but not if files have to be put back.
    """
    root = make(tmp_path)
    removeAll(root, FOLDERS, PLACES, locate)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "read-only")

    with monkeypatch.context() as patched:
        for step in ("rename", "unlink", "mkdir", "link"):
            patched.setattr(os, step, refuse)
        recover(root, FOLDERS)
        with pytest.raises(OSError, match="read-only"):
            removeAll(root, FOLDERS, KEPT, locate)
        assert there(tmp_path) == set(KEPT)
    recover(root, FOLDERS)
    (tmp_path / "new" / "d").rename(tmp_path / "pop3svc-removing" / ".new" / "d")
    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(OSError, match="read-only"):
        recover(root, FOLDERS)


def test_durableInOrder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    After an earlier removal, the name of the staging directory is synced before files are moved.
    The directories that files have left are synced after those to which they were moved.
    """
    root = make(tmp_path)
    removeAll(root, FOLDERS, PLACES, locate)
    before: list[int] = []
    synced: list[int] = []
    fsync = os.fsync

    def remembered(descriptor: int) -> None:
        fsync(descriptor)
        areMoved = any((tmp_path / "pop3svc-removing").rglob("d"))
        (synced if areMoved else before).append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", remembered)
    removeAll(root, FOLDERS, KEPT, locate)
    removed = tmp_path / "pop3svc-removed"
    inOrder = [removed / ".new", removed, tmp_path / "new", tmp_path / "cur"]
    assert synced == [each.stat().st_ino for each in inOrder]
    # The last sync makes the decision durable.
    assert before[-2:] == [tmp_path.stat().st_ino] * 2
