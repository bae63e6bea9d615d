"""
Remove either all files of a set or none, even if the process is killed or the power fails.

First the files are moved into a staging directory, C{pop3svc-removing}, which is in the same
mailbox.  Then the staging directory is renamed to C{pop3svc-removed}.  If the process ends before
this rename, the next recovery puts all files back.  If the process ends after the rename, the
recovery removes all files.  After that, the recovery gives the empty staging directory its first
name again.  The directory itself is kept, because a full disk may have no room for a new one.

A mailbox may have several folders, such as C{new} and C{cur} of a Maildir.  Files of the last of
them are moved into the staging directory itself.  Files of another folder are moved into a
subdirectory, such as C{.new}.  The first removal from this folder creates the subdirectory, so that
a login creates one directory only.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha256
from typing import TypeVar

from pop3svc.bounded import BoundedDict
from pop3svc.files import (
    MISSING,
    NO_ROOM,
    FileStamp,
    FolderTimes,
    areStampsTrustworthy,
    closeQuietly,
    openDirectory,
    stampFrom,
)
from pop3svc.fileuser import fileUID
from pop3svc.providers.paths import openBelow

__all__ = [
    "OWN_NAMES",
    "CleanCache",
    "Place",
    "isClean",
    "nameOfStaging",
    "recover",
    "removeAll",
    "removeEvenIfFull",
]

_STAGING = "pop3svc-removing"
_REMOVED = "pop3svc-removed"
# A file whose name begins with one of these prefixes is not a message.
OWN_NAMES = (_STAGING, _REMOVED, "pop3svc-deleting.", "pop3svc-deleted.")

# The most searches for one file.  If other programs rename the file during each search, the file
# counts as in use.
_LOOKS = 5

# The most entries that L{isClean} reads of a directory, because another program may have put very
# many files there.
_FEW = 10

# The number of files that are removed at a time on a full disk.  The names of so few files usually
# fit into the block that a directory has from its beginning.
_SLICE = 10

# The errors of L{openDirectory} if the name belongs to a file or to a link.
_NO_DIRECTORY = (errno.ENOTDIR, errno.ELOOP)

# The place of a file: the name of a directory below the root, the name of the file in this
# directory, and the inode of the file.  The inode is 0 if it is not known.
Place = tuple[str, str, int]
Message = TypeVar("Message")


def nameOfStaging(root: int) -> str:
    """
    @return: the name that the staging directory has now.
    """
    try:
        os.lstat(_STAGING, dir_fd=root)
    except FileNotFoundError:
        return _REMOVED
    return _STAGING


class _NoRoom(OSError):
    """
    The disk has no room for a directory.  Nothing was removed.
    """


def _stage(folder: str, folders: Sequence[str]) -> str:
    """
    @return: the path from the staging directory to the directory for files of C{folder}.  No
        message has this name, because listings leave out hidden files.
    """
    return "." if folder == folders[-1] else f".{folder}"


def removeAll(
    root: int,
    folders: Sequence[str],
    wanted: Sequence[Message],
    locate: Callable[[Message, int], Place | None],
    isRight: Callable[[Message, Place, os.stat_result, int], bool] = lambda *_: True,
) -> list[tuple[Message, Place, os.stat_result]]:
    """
    Remove either the files of all messages or none.  A file that does not exist any more counts as
    removed.  The removal is durable when this function returns.  Blocks.

    @param root: a descriptor of the mailbox's root directory.
    @param folders: the directories below the root that may contain the files.
    @param locate: takes a message, and the number of searches for it that have failed.  It returns
        the place of the message's file; L{None} if the file does not exist any more.
    @param isRight: takes a message, the place of a file, the status of this file, and a descriptor
        of its directory.  It returns whether the file belongs to the message.
    @return: the removed messages.  Each comes with the place and the status of its file.
    @raise OSError: nothing was removed.
    """
    try:
        if not isClean(root, folders):
            recover(root, folders)
            _makeReady(root)
        removed = _stageAll(root, folders, wanted, locate, isRight)
    except _NoRoom:
        # Remove the files in another way, because it needs no directory.
        _expectRecovery(root)
        return _removeByNames(root, wanted, locate, isRight)
    # From here on the removal is certain.  The files are unlinked without a sync, and errors are
    # ignored, because the next recovery unlinks files that are left.
    with suppress(OSError):
        for _, directory in _staged(root, _REMOVED, folders):
            try:
                _unlinkAll(directory)
            finally:
                closeQuietly(directory)
    return removed


def removeEvenIfFull(
    root: int,
    folders: Sequence[str],
    wanted: Sequence[Message],
    locate: Callable[[Message, int], Place | None],
    isRight: Callable[[Message, Place, os.stat_result, int], bool],
) -> tuple[list[tuple[Message, Place, os.stat_result]], OSError | None]:
    """
    Remove files as L{removeAll} does.  If the disk has no room for the names of all files in the
    staging directory, remove a few files at a time, because removed files free their room.  RFC
    1939 section 6 allows that only some messages are removed if resources are short.  Blocks.

    @return: the result of L{removeAll}, and the error because of which some messages were not
        removed; L{None} if all were removed.
    @raise OSError: nothing was removed.
    """
    try:
        return removeAll(root, folders, wanted, locate, isRight), None
    except OSError as error:
        if error.errno not in NO_ROOM or len(wanted) <= _SLICE:
            raise
    removed: list[tuple[Message, Place, os.stat_result]] = []
    for first in range(0, len(wanted), _SLICE):
        try:
            part = wanted[first : first + _SLICE]
            removed += removeAll(root, folders, part, locate, isRight)
        except OSError as error:
            if not removed:
                raise
            return removed, error
    return removed, None


def _expectRecovery(root: int) -> None:
    """
    Give the staging directory its second name, although it contains no files.  L{isClean} then
    returns false until a recovery has looked for the files of L{_removeByNames}.

    @raise OSError: nothing was changed durably.
    """
    try:
        os.rename(_STAGING, _REMOVED, src_dir_fd=root, dst_dir_fd=root)
    except FileNotFoundError:
        # Without a staging directory, L{isClean} returns false as well.
        return
    os.fsync(root)


def _stageAll(
    root: int,
    folders: Sequence[str],
    wanted: Sequence[Message],
    locate: Callable[[Message, int], Place | None],
    isRight: Callable[[Message, Place, os.stat_result, int], bool],
) -> list[tuple[Message, Place, os.stat_result]]:
    """
    Move the files into the staging directory.  Then take the step after which their removal is
    certain.

    @return: see L{removeAll}.
    @raise OSError: nothing was removed.
    """
    removed: list[tuple[Message, Place, os.stat_result]] = []
    opened: dict[str, tuple[int, int]] = {}
    staging = openDirectory(_STAGING, root)

    def move(message: Message, place: Place) -> bool:
        if place[0] not in opened and not _openBoth(root, staging, folders, opened, place[0]):
            return False
        source, target = opened[place[0]]
        status = _renamed(place[1], source, place[1], target, partial(isRight, message, place))
        if status is not None:
            removed.append((message, place, status))
        return status is not None

    try:
        # Sync the name of the staging directory before files are moved.  After an earlier removal,
        # its name was C{pop3svc-removed}.  If a power failure brought this name back, the recovery
        # would remove all files.
        os.fsync(root)
        _moveAll(wanted, locate, move)
        # Sync the directories to which files were moved before those from which they were moved.
        # Otherwise a power failure could lose a file.
        for _, target in opened.values():
            if target != staging:
                os.fsync(target)
        os.fsync(staging)
        for source, _ in opened.values():
            os.fsync(source)
        # The removal is certain after this step.
        os.rename(_STAGING, _REMOVED, src_dir_fd=root, dst_dir_fd=root)
        try:
            os.fsync(root)
        except OSError:
            os.rename(_REMOVED, _STAGING, src_dir_fd=root, dst_dir_fd=root)
            raise
    except OSError:
        _putBack(root, folders)
        raise
    finally:
        for descriptor in {staging, *(each for pair in opened.values() for each in pair)}:
            closeQuietly(descriptor)
    return removed


def _openBoth(
    root: int,
    staging: int,
    folders: Sequence[str],
    opened: dict[str, tuple[int, int]],
    folder: str,
) -> bool:
    """
    Open a folder, and the directory to which its files are moved.

    @param opened: gets the two descriptors.  The second one is C{staging} for the last folder.
    @return: whether the folder exists.
    """
    try:
        source = openBelow(folder, root)
    except FileNotFoundError:
        return False
    try:
        target, name = staging, _stage(folder, folders)
        if name != ".":
            if _makeOwn(name, staging, os.fstat(root)):
                # Sync the new name first.  Otherwise a power failure could lose the directory with
                # the files in it.
                os.fsync(staging)
            target = openDirectory(name, staging)
    except BaseException:
        closeQuietly(source)
        raise
    opened[folder] = source, target
    return True


def _moveAll(
    wanted: Iterable[Message],
    locate: Callable[[Message, int], Place | None],
    move: Callable[[Message, Place], bool],
) -> None:
    for message in wanted:
        for looks in range(_LOOKS):
            place = locate(message, looks)
            if place is None or move(message, place):
                break
        else:
            raise OSError(errno.EBUSY, "a message is renamed all the time")


_Stamp = tuple[FileStamp, ...]


class CleanCache:
    """
    A cache of mailboxes that need no L{recover}.  If such a mailbox is locked again, its
    directories need not be read.  The cache is not thread-safe.
    """

    # The most mailboxes.  Each takes some 1,100 octets.
    BOUND = 10_000

    def __init__(self) -> None:
        # By device and inode of a mailbox: the stamps of its root, of its folders, and of its
        # staging directories.
        self._stamps: BoundedDict[tuple[int, int], tuple[FileStamp, _Stamp, _Stamp]]
        self._stamps = BoundedDict(self.BOUND)

    def isClean(
        self,
        root: int,
        status: os.stat_result,
        folders: Sequence[str],
        times: FolderTimes,
    ) -> bool:
        """
        See L{isClean}.

        @param status: the status of the root directory.
        @param times: the times of C{folders}.
        """
        key, own = (status.st_dev, status.st_ino), stampFrom(status)
        ofFolders, areOld = times
        known = self._stamps.get(key)
        if MISSING in ofFolders:
            # The target of a link may be on a file system that is not mounted.
            return False
        # If these stamps are the same, no removal has begun, because a removal first moves messages
        # out of their folders.
        if known is not None and known[0] == own and known[1] == ofFolders:
            return True
        staged = _stampOf(root, folders)
        if staged is None:
            return False
        if known is None or known[0] != own or known[2] != staged:
            # Compare the times with the clock before the directories are read, because a change
            # during the reading must count as recent.
            isOld = areStampsTrustworthy((own, *staged))
            if not isClean(root, folders):
                return False
            if not isOld:
                return True
        self._stamps.put(key, (own, ofFolders if areOld else (), staged))
        return True


def _stampOf(root: int, folders: Sequence[str]) -> _Stamp | None:
    """
    @return: the stamps of the staging directory and of its subdirectories; L{None} if there is no
        staging directory.
    """
    stamps = []
    for folder in reversed(folders):
        try:
            stamps.append(stampFrom(os.lstat(f"{_STAGING}/{_stage(folder, folders)}", dir_fd=root)))
        except FileNotFoundError:
            if not stamps:
                return None
        except OSError:
            return None
    return tuple(stamps)


def isClean(root: int, folders: Sequence[str]) -> bool:
    """
    Check a mailbox, and change nothing.

    @return: whether L{recover} has nothing to do.
    """
    try:
        os.lstat(_REMOVED, dir_fd=root)
    except FileNotFoundError:
        pass
    else:
        return False
    try:
        for folder in folders:
            # Return False if a directory for messages is missing, because the file system of the
            # mailbox may not be mounted.
            os.stat(folder, dir_fd=root)
    except OSError:
        return False
    isReady = False
    for _, directory in _staged(root, _STAGING, folders):
        isReady = True
        try:
            with os.scandir(directory) as entries:
                for number, entry in enumerate(entries, 1):
                    if number == _FEW or not entry.is_dir(follow_symlinks=False):
                        return False
        finally:
            closeQuietly(directory)
    return isReady


def recover(root: int, folders: Sequence[str]) -> None:
    """
    Complete or undo a removal that was interrupted.  Create the staging directory for the next
    removal.  Blocks.

    @raise OSError: the recovery failed.
    """
    for name in (_STAGING, _REMOVED):
        _setAside(name, root)
    # First complete a removal by names.  As soon as the staging directory has its first name again,
    # L{isClean} returns true.
    _recoverByNames(root)
    try:
        _purge(root, folders)
    except OSError as error:
        # Ignore the error on a read-only file system.  The removed files can stay, because listings
        # do not include them.
        if error.errno != errno.EROFS:
            raise
    _putBack(root, folders)
    try:
        _makeReady(root)
    except OSError as error:
        # Ignore the error, because a session that deletes nothing needs no staging directory.
        if error.errno not in (*NO_ROOM, errno.EROFS):
            raise


def _setAside(name: str, root: int) -> None:
    """
    If another program has put a file in the place of a staging directory, rename the file.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISDIR(os.lstat(name, dir_fd=root).st_mode):
            aside = f"{_REMOVED}.{time.time_ns()}"
            os.rename(name, aside, src_dir_fd=root, dst_dir_fd=root)


def _makeReady(root: int) -> None:
    _makeOwn(_STAGING, root, os.fstat(root))


def _makeOwn(name: str, directory: int, owner: os.stat_result) -> bool:
    """
    Create a directory if it does not exist.  If this thread has the file rights of root, give the
    new directory to the owner of the mailbox.

    @return: whether the directory was created.
    @raise _NoRoom: the disk, or the quota of the owner, has no room for the directory.
    """
    try:
        os.mkdir(name, 0o700, dir_fd=directory)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in NO_ROOM:
            raise _NoRoom(error.errno, "there is no room for a directory") from error
        raise
    if fileUID() == 0:
        made = openDirectory(name, directory)
        try:
            os.fchown(made, owner.st_uid, owner.st_gid)
        except OSError as error:
            # Keep no directory of another owner, because the owner of the mailbox could not use it.
            os.rmdir(name, dir_fd=directory)
            if error.errno in NO_ROOM:
                raise _NoRoom(error.errno, "the owner has no room for a directory") from error
            raise
        finally:
            closeQuietly(made)
    return True


def _renamed(
    name: str, source: int, to: str, target: int, isRight: Callable[[os.stat_result, int], bool]
) -> os.stat_result | None:
    try:
        status = os.lstat(name, dir_fd=source)
        # The message does not exist any more if its name belongs to a directory or to another file.
        if not stat.S_ISREG(status.st_mode) or not isRight(status, source):
            return None
        os.rename(name, to, src_dir_fd=source, dst_dir_fd=target)
    except FileNotFoundError:
        return None
    return status


# --- on a full disk -----------------------------------------------------------------

# If a directory cannot be created, messages are moved to "tmp", or to the root if there is no
# "tmp", and their names get the first prefix.  If the process ends now, a recovery puts the files
# back.  Then one of the files gets the second prefix.  From this step on the removal is certain.  A
# recovery removes all files, and the file with the second prefix last.
_PREFIX, _DECIDED = "pop3svc-deleting.", "pop3svc-deleted."
_TMP = "tmp"
# The most octets of a name.
_LONGEST = 255


def _nameOf(folder: str) -> str:
    """
    @return: the folder's part of the new name of a file.
    """
    return "here" if folder == "." else folder


def _nameInTmp(folder: str, name: str) -> str:
    """
    @return: the new name of a file without its prefix.  It has at most as many octets as a name may
        have.  If the old name is too long, it is shortened, and a recovery puts the file back with
        the short name.
    """
    whole = os.fsencode(f"{_nameOf(folder)}.{name}")
    if len(_PREFIX) + len(whole) > _LONGEST:
        digest = sha256(whole).hexdigest()
        whole = whole[: _LONGEST - len(_PREFIX) - len(digest)] + digest.encode("ascii")
    return os.fsdecode(whole)


def _removeByNames(
    root: int,
    wanted: Sequence[Message],
    locate: Callable[[Message, int], Place | None],
    isRight: Callable[[Message, Place, os.stat_result, int], bool],
) -> list[tuple[Message, Place, os.stat_result]]:
    """
    Remove files as L{removeAll} does, but create no file and no directory.
    """
    removed: list[tuple[Message, Place, os.stat_result]] = []
    sources: dict[str, int] = {}
    tmp = _openTmp(root)
    try:

        def move(message: Message, place: Place) -> bool:
            folder, name = place[:2]
            if folder not in sources:
                sources[folder] = openBelow(folder, root)
            status = _renamed(
                *(name, sources[folder], _PREFIX + _nameInTmp(folder, name), tmp),
                partial(isRight, message, place),
            )
            if status is not None:
                removed.append((message, place, status))
            return status is not None

        try:
            _moveAll(wanted, locate, move)
            if not removed:
                return removed
            for descriptor in (tmp, *sources.values()):
                os.fsync(descriptor)
            folder, name = removed[0][1][:2]
            first = _nameInTmp(folder, name)
            os.rename(_PREFIX + first, _DECIDED + first, src_dir_fd=tmp, dst_dir_fd=tmp)
            try:
                os.fsync(tmp)
            except OSError:
                os.rename(_DECIDED + first, _PREFIX + first, src_dir_fd=tmp, dst_dir_fd=tmp)
                raise
        except OSError:
            _recoverByNames(root)
            raise
        with suppress(OSError):
            _recoverByNames(root)
    finally:
        for descriptor in (tmp, *sources.values()):
            closeQuietly(descriptor)
    return removed


def _openTmp(root: int) -> int:
    try:
        return openDirectory(_TMP, root)
    except (FileNotFoundError, NotADirectoryError):
        return openDirectory(".", root)


def _recoverByNames(root: int) -> None:
    """
    Complete or undo a call of L{_removeByNames} that was interrupted.
    """
    # Look in both directories, because another program may have created "tmp" meanwhile.
    _recoverNamesIn(openDirectory(".", root), root)
    _recoverNamesIn(_openTmp(root), root)


def _recoverNamesIn(tmp: int, root: int) -> None:
    """
    @param tmp: a descriptor of the directory with the files.  This function closes it.
    """
    try:
        names = os.listdir(tmp)
        decided = [name for name in names if name.startswith(_DECIDED)]
        staged = [name for name in names if name.startswith(_PREFIX)]
        for name in staged:
            if decided:
                os.unlink(name, dir_fd=tmp)
            else:
                folder, _, old = name.removeprefix(_PREFIX).partition(".")
                home = openBelow("." if folder == _nameOf(".") else folder, root)
                try:
                    isLinked = _return(name, tmp, home, old)
                    os.fsync(home)
                    if isLinked:
                        os.unlink(name, dir_fd=tmp)
                finally:
                    closeQuietly(home)
        if decided:
            # Make the removal of the other files durable first, because the files with the second
            # prefix show that the removal is certain.
            os.fsync(tmp)
            for name in decided:
                os.unlink(name, dir_fd=tmp)
        if staged or decided:
            # Otherwise a power failure could bring a file with the second prefix back.
            os.fsync(tmp)
    finally:
        closeQuietly(tmp)


def _staged(root: int, name: str, folders: Sequence[str]) -> Iterator[tuple[str, int]]:
    """
    Open a staging directory and its subdirectories, and yield each with the name of its folder.
    The caller closes the descriptors.
    """
    try:
        staging = openDirectory(name, root)
    except OSError as error:
        if error.errno not in (errno.ENOENT, *_NO_DIRECTORY):
            raise
        return
    try:
        for folder in folders:
            try:
                directory = openDirectory(_stage(folder, folders), staging)
            except OSError as error:
                # If the name belongs to a file, the file counts as a file of the last folder.
                if error.errno not in (errno.ENOENT, *_NO_DIRECTORY):
                    raise
                continue
            yield folder, directory
    finally:
        closeQuietly(staging)


def _purge(root: int, folders: Sequence[str]) -> None:
    for _, directory in _staged(root, _REMOVED, folders):
        try:
            _unlinkAll(directory)
            # Sync before the rename.  Otherwise a power failure could undo only the removal of the
            # files, and the next recovery would put them back into their folders.
            os.fsync(directory)
        finally:
            closeQuietly(directory)
    try:
        os.rename(_REMOVED, _STAGING, src_dir_fd=root, dst_dir_fd=root)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        # Rename it to an unused name, because another program has created a staging directory.
        aside = f"{_REMOVED}.{time.time_ns()}"
        os.rename(_REMOVED, aside, src_dir_fd=root, dst_dir_fd=root)


def _filesIn(directory: int) -> list[str]:
    with os.scandir(directory) as entries:
        return [each.name for each in entries if not each.is_dir(follow_symlinks=False)]


def _unlinkAll(directory: int) -> None:
    for name in _filesIn(directory):
        os.unlink(name, dir_fd=directory)


def _putBack(root: int, folders: Sequence[str]) -> None:
    for folder, directory in _staged(root, _STAGING, folders):
        try:
            names = _filesIn(directory)
            if names:
                _putAllBack(root, folder, names, directory)
        finally:
            closeQuietly(directory)


def _putAllBack(root: int, folder: str, names: list[str], directory: int) -> None:
    _makeOwn(folder, root, os.fstat(root))
    home = openBelow(folder, root)
    try:
        linked = [name for name in names if _return(name, directory, home, name)]
        os.fsync(home)
        for name in linked:
            os.unlink(name, dir_fd=directory)
    finally:
        closeQuietly(home)


def _return(name: str, source: int, target: int, to: str) -> bool:
    """
    Put a file back, and do not overwrite another file with the same name.

    @return: whether the file has both names now.  The caller unlinks the old name after a sync of
        the new name.
    """
    try:
        os.link(name, to, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
    except FileExistsError:
        here = os.lstat(name, dir_fd=source)
        there = os.lstat(to, dir_fd=target)
        if (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
            # Another program has just created a file with this name, so keep both files.
            other = os.fsdecode(os.fsencode(f"{here.st_ino}.{to}")[:_LONGEST])
            os.rename(name, other, src_dir_fd=source, dst_dir_fd=target)
            return False
    except OSError as error:
        if error.errno not in (
            *(errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK),
            *NO_ROOM,
        ):
            raise
        # Rename the file, because the file system has no hard links, or has no space for a hard
        # link.
        os.rename(name, to, src_dir_fd=source, dst_dir_fd=target)
        return False
    return True
