"""
Remove either all files of a set or none, even if the process is killed or the power fails.

First the files are moved into a staging directory, C{pop3svc-removing}, which is in the same
mailbox.  Then the staging directory is renamed to C{pop3svc-removed}.  If the process ends before
this rename, the next recovery puts all files back.  If the process ends after the rename, the
recovery removes all files.  After that, the recovery gives the empty staging directory its first
name again.  The directory itself is kept, because a full disk may have no room for a new one.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

from pop3svc.bounded import BoundedDict
from pop3svc.files import (
    FileStamp,
    FolderTimes,
    areStampsTrustworthy,
    closeQuietly,
    openDirectory,
    stampFrom,
)
from pop3svc.fileuser import fileUID
from pop3svc.providers.paths import openBelow

__all__ = ["OWN_NAMES", "CleanCache", "Place", "isClean", "nameOfStaging", "recover", "removeAll"]

_STAGING = "pop3svc-removing"
_REMOVED = "pop3svc-removed"
# A file whose name begins with one of these prefixes is not a message.
OWN_NAMES = (_STAGING, _REMOVED, "pop3svc-deleting.", "pop3svc-deleted.")

# The most searches for one file.  If other programs rename the file during each search, the file
# counts as in use.
_LOOKS = 5

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


def _stage(folder: str) -> str:
    """
    @return: the name of the subdirectory of the staging directory for files of C{folder}.
    """
    return "here" if folder == "." else folder


def removeAll(
    root: int,
    folders: Iterable[str],
    wanted: Iterable[Message],
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
    if not isClean(root, folders):
        recover(root, folders)
        try:
            _makeReady(root, folders)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            # Remove the files in another way, because there is no space for a staging directory.
            return _removeByNames(root, wanted, locate, isRight)
    removed = _stageAll(root, folders, wanted, locate, isRight)
    # From here on the removal is certain.  The files are unlinked without a sync, and errors are
    # ignored, because the next recovery unlinks files that are left.
    with suppress(OSError):
        for _, directory in _staged(root, _REMOVED, folders):
            try:
                _unlinkAll(directory)
            finally:
                closeQuietly(directory)
    return removed


def _stageAll(
    root: int,
    folders: Iterable[str],
    wanted: Iterable[Message],
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
        status = _moveAway(root, staging, opened, place, partial(isRight, message, place))
        if status is not None:
            removed.append((message, place, status))
        return status is not None

    try:
        _moveAll(wanted, locate, move)
        # Sync the name of the staging directory first.  After an earlier removal, its name was
        # C{pop3svc-removed}.  If a power failure brought this name back, the recovery would remove
        # all files.
        os.fsync(root)
        for source, target in opened.values():
            os.fsync(target)
            os.fsync(source)
        os.fsync(staging)
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
        for descriptor in (staging, *(each for pair in opened.values() for each in pair)):
            closeQuietly(descriptor)
    return removed


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
    @return: the stamps of the staging directories; L{None} if one of them does not exist.
    """
    try:
        return tuple(
            stampFrom(os.lstat(f"{_STAGING}/{_stage(folder)}", dir_fd=root)) for folder in folders
        )
    except OSError:
        return None


def isClean(root: int, folders: Iterable[str]) -> bool:
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
    found = 0
    for _, directory in _staged(root, _STAGING, folders):
        found += 1
        try:
            # Read one entry and no more, because another program may have put very many files
            # there.
            with os.scandir(directory) as entries:
                if next(entries, None) is not None:
                    return False
        finally:
            closeQuietly(directory)
    return found == len(tuple(folders))


def recover(root: int, folders: Iterable[str]) -> None:
    """
    Complete or undo a removal that was interrupted.  Create the staging directories for the next
    removal.  Blocks.

    @raise OSError: the recovery failed.
    """
    try:
        _purge(root, folders)
    except OSError as error:
        # Ignore the error on a read-only file system.  The removed files can stay, because listings
        # do not include them.
        if error.errno != errno.EROFS:
            raise
    _putBack(root, folders)
    _recoverByNames(root)
    try:
        _makeReady(root, folders)
    except OSError as error:
        # Ignore the error, because a session that deletes nothing needs no staging directories.
        if error.errno not in (*_FULL, errno.EROFS):
            raise


def _makeReady(root: int, folders: Iterable[str]) -> None:
    owner = os.fstat(root)
    _makeOwn(_STAGING, root, owner)
    staging = openDirectory(_STAGING, root)
    try:
        for folder in folders:
            _makeOwn(_stage(folder), staging, owner)
    finally:
        closeQuietly(staging)


def _makeOwn(name: str, directory: int, owner: os.stat_result) -> None:
    """
    Create a directory if it does not exist.  If this thread has the file rights of root, give the
    new directory to the owner of the mailbox.
    """
    try:
        os.mkdir(name, 0o700, dir_fd=directory)
    except FileExistsError:
        return
    if fileUID() == 0:
        made = openDirectory(name, directory)
        try:
            os.fchown(made, owner.st_uid, owner.st_gid)
        finally:
            closeQuietly(made)


def _moveAway(
    root: int,
    staging: int,
    opened: dict[str, tuple[int, int]],
    place: Place,
    isRight: Callable[[os.stat_result, int], bool],
) -> os.stat_result | None:
    """
    Move a file into the staging directory.

    @return: the status of the file; L{None} if it does not exist, or is not the right file.
    """
    folder, name = place[:2]
    if folder not in opened:
        try:
            source = openBelow(folder, root)
        except FileNotFoundError:
            return None
        try:
            opened[folder] = source, openDirectory(_stage(folder), staging)
        except BaseException:
            closeQuietly(source)
            raise
    source, target = opened[folder]
    return _renamed(name, source, name, target, isRight)


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

# If no staging directory can be created, messages are moved to "tmp", or to the root if there is no
# "tmp", and their names get the first prefix.  If the process ends now, a recovery puts the files
# back.  Then one of the files gets the second prefix.  From this step on the removal is certain.  A
# recovery removes all files, and the file with the second prefix last.
_PREFIX, _DECIDED = "pop3svc-deleting.", "pop3svc-deleted."
_TMP = "tmp"
_FULL = (errno.ENOSPC, errno.EDQUOT)


def _removeByNames(
    root: int,
    wanted: Iterable[Message],
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
                *(name, sources[folder], f"{_PREFIX}{_stage(folder)}.{name}", tmp),
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
            first = f"{_stage(folder)}.{name}"
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
    tmp = _openTmp(root)
    try:
        names = os.listdir(tmp)
        decided = [name for name in names if name.startswith(_DECIDED)]
        staged = [name for name in names if name.startswith(_PREFIX)]
        for name in staged:
            if decided:
                os.unlink(name, dir_fd=tmp)
            else:
                folder, _, old = name.removeprefix(_PREFIX).partition(".")
                home = openBelow("." if folder == _stage(".") else folder, root)
                try:
                    _return(name, tmp, home, old)
                    os.fsync(home)
                finally:
                    closeQuietly(home)
        if decided:
            # Make the removal of the other files durable first, because the files with the second
            # prefix show that the removal is certain.
            os.fsync(tmp)
            for name in decided:
                os.unlink(name, dir_fd=tmp)
    finally:
        closeQuietly(tmp)


def _staged(root: int, name: str, folders: Iterable[str]) -> Iterable[tuple[str, int]]:
    """
    Open the subdirectories of a staging directory, and yield each with the name of its folder.  The
    caller closes the descriptors.
    """
    try:
        staging = openDirectory(name, root)
    except FileNotFoundError:
        return
    try:
        for folder in folders:
            try:
                yield folder, openDirectory(_stage(folder), staging)
            except FileNotFoundError:
                continue
    finally:
        closeQuietly(staging)


def _purge(root: int, folders: Iterable[str]) -> None:
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


def _unlinkAll(directory: int) -> None:
    for name in os.listdir(directory):
        os.unlink(name, dir_fd=directory)


def _putBack(root: int, folders: Iterable[str]) -> None:
    for folder, directory in _staged(root, _STAGING, folders):
        try:
            names = os.listdir(directory)
            if names:
                _putAllBack(root, folder, names, directory)
        finally:
            closeQuietly(directory)


def _putAllBack(root: int, folder: str, names: list[str], directory: int) -> None:
    with suppress(FileExistsError):
        os.mkdir(folder, 0o700, dir_fd=root)
    home = openBelow(folder, root)
    try:
        for name in names:
            _return(name, directory, home, name)
        os.fsync(home)
    finally:
        closeQuietly(home)


def _return(name: str, source: int, target: int, to: str) -> None:
    """
    Put a file back, and do not overwrite another file with the same name.
    """
    try:
        os.link(name, to, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
    except FileExistsError:
        here = os.lstat(name, dir_fd=source)
        there = os.lstat(to, dir_fd=target)
        if (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
            # Another program has just created a file with this name, so keep both files.
            os.rename(name, f"{here.st_ino}.{to}", src_dir_fd=source, dst_dir_fd=target)
            return
    except OSError as error:
        if error.errno not in (
            *(errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK),
            *_FULL,
        ):
            raise
        # Rename the file, because the file system has no hard links, or has no space for a hard
        # link.
        os.rename(name, to, src_dir_fd=source, dst_dir_fd=target)
        return
    os.unlink(name, dir_fd=source)
