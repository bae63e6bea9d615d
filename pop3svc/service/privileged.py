"""
Open files for a service that has given up its privileges.  A separate process keeps the privileges.
The process opens only the files that were named at its start.

A descriptor of the directory that contains the file would not be enough.  The kernel checks the
permissions of the directory at each lookup of a file, and not only when the directory is opened.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import stat
import time
from collections.abc import Iterable, Sequence
from pwd import getpwuid
from typing import NoReturn

from twisted.python.util import switchUID

from pop3svc.files import openReplaceable

__all__ = ["Opener", "changeableBy", "entriesFor", "openTo", "startOpener", "unreadable"]

# Seconds to wait for an answer.  The time is short, because a login waits for the answer.
_PATIENCE = 2.0
# Seconds without further requests after a request that was not answered.
_REST = 60.0
_MOST_LINKS = 40
# A request begins with the number of a file in _NUMBER octets.  The name of a subdirectory with at
# most _NAME octets may follow.
_NUMBER = 4
_NAME = 255


def unreadable(paths: Iterable[str], uid: int, gid: int | None) -> list[str]:
    """
    Try to open files and directories as another user, in a child process.  The attempt takes
    groups, access control lists and mounts into account.

    @return: the paths that the user cannot open.
    """
    if gid is None:
        # Use the user's own group, as twistd does.
        gid = getpwuid(uid).pw_gid
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        denied: list[str] = []
        try:
            switchUID(uid, gid)
            for number, path in enumerate(paths):
                try:
                    if os.path.isdir(path):
                        os.listdir(path)
                    else:
                        os.close(openReplaceable(path))
                except PermissionError:
                    denied.append(str(number))
                except OSError:
                    pass
            with open(theirs, "w") as answer:
                answer.write(" ".join(denied))
        finally:
            os._exit(0)
    os.close(theirs)
    with open(ours) as answer:
        found = answer.read().split()
    os.waitpid(child, 0)
    # If the child could not become the user, the list is empty, and twistd reports the error later.
    named = list(paths)
    return [named[int(number)] for number in found]


def openTo(path: str) -> str | None:
    """
    @return: C{read by everybody}, C{changed by everybody}, C{replaced by everybody} or C{changed by
        a group}; L{None} if the permissions of the file and its directories allow none of these.
    """
    path = os.path.realpath(path)
    try:
        mode = os.stat(path).st_mode
        directories = []
        here = path
        while here != "/":
            here = os.path.dirname(here)
            directories.append(os.stat(here).st_mode)
    except OSError:
        return None
    if not all(each & stat.S_IXOTH for each in directories):
        # Other users cannot reach the file.
        return None
    if directories[0] & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
        return "replaced by everybody"
    if mode & stat.S_IWOTH:
        return "changed by everybody"
    if mode & stat.S_IROTH:
        return "read by everybody"
    return "changed by a group" if mode & stat.S_IWGRP else None


def changeableBy(path: str) -> str | None:
    """
    Find a directory on the path of a file in which other users than root could replace the file, a
    link or a directory.  The privileged process opens a file only if its path has no such
    directory.  Therefore only root decides which file is opened.

    @return: such a directory on the path, or on the path that a link leads to; L{None} if there is
        none.
    @raise OSError: the path cannot be followed, for example because the file does not exist.
    """
    here, links = "/", 0
    ahead = [each for each in reversed(os.path.abspath(path).split("/")) if each]
    while ahead:
        name = ahead.pop()
        if name == "..":
            here = os.path.dirname(here)
            continue
        directory, status = os.stat(here), os.lstat(os.path.join(here, name))
        # In a directory with the sticky bit, such as /tmp, other users cannot replace files of
        # root.
        isKept = directory.st_mode & stat.S_ISVTX and status.st_uid == 0
        isOpen = directory.st_mode & stat.S_IWOTH or (
            directory.st_mode & stat.S_IWGRP and directory.st_gid != 0
        )
        if directory.st_uid != 0 or (isOpen and not isKept):
            return here
        if not stat.S_ISLNK(status.st_mode):
            here = os.path.join(here, name)
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        target = os.readlink(os.path.join(here, name))
        if target.startswith("/"):
            here = "/"
        ahead += [each for each in reversed(target.split("/")) if each not in ("", ".")]
    return None


def entriesFor(directory: str, names: Iterable[str]) -> list[str]:
    """
    Make the entries that allow the privileged process to list a directory, and to open some files
    in all its subdirectories.

    @param names: the names of the files.
    @return: entries for the argument C{paths} of L{startOpener}.
    """
    return [f"{directory}/", *(f"{directory}/*/{each}" for each in names)]


def _fileOf(entry: str, name: str) -> str:
    """
    @param entry: an entry of the argument C{paths} of L{startOpener}.
    @param name: the name of a subdirectory, if the entry is for all subdirectories, and otherwise
        an empty text.
    @return: the path to open.
    @raise OSError: the entry and the name do not fit, or the name is not allowed.
    """
    if not name:
        return entry
    directory, star, file = entry.rpartition("/*/")
    if not star or "/" in name or "\0" in name or name in (".", ".."):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    return f"{directory}/{name}/{file}"


class Opener:
    """
    Asks the privileged process to open files.

    @ivar paths: the files that the privileged process opens.
    """

    def __init__(self, asking: socket.socket, paths: Sequence[str]) -> None:
        """
        @param paths: see L{startOpener}.
        @param asking: a socket to the privileged process; several processes may share it.
        """
        self.paths = list(paths)
        self._asking = asking
        self._numbers = {path: number for number, path in enumerate(self.paths)}
        self._restsUntil = 0.0

    def fileno(self) -> int:
        """
        @return: the descriptor of the socket to the privileged process.
        """
        return self._asking.fileno()

    def open(self, path: str) -> int:
        """
        @return: a descriptor from which the file can be read.
        @raise OSError: the file cannot be opened.
        """
        number, name = self._numbers.get(path, self._numbers.get(f"{path}/")), b""
        if number is None:
            subdirectory, file = os.path.split(path)
            directory, own = os.path.split(subdirectory)
            number, name = self._numbers.get(f"{directory}/*/{file}"), os.fsencode(own)
        if number is None or time.monotonic() < self._restsUntil:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.settimeout(_PATIENCE)
            try:
                # Each request has its own socket pair, so that processes that share the request
                # socket do not read each other's answers.
                request = number.to_bytes(_NUMBER, "big") + name
                socket.send_fds(self._asking, [request], [theirs.fileno()])
                theirs.close()
                answer, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
            except OSError:
                self._restsUntil = time.monotonic() + _REST
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        if descriptors:
            os.set_inheritable(descriptors[0], False)
            return descriptors[0]
        code = answer[0] if answer else errno.EACCES
        raise OSError(code, os.strerror(code), path)


def startOpener(paths: Sequence[str]) -> Opener:
    """
    Start the privileged process.  The process ends when all its clients have ended.

    @param paths: the absolute paths of the files that the process may open; see also
        L{entriesFor}.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if not os.fork():
        _serve(theirs.fileno(), paths)
    theirs.close()
    ours.settimeout(_PATIENCE)
    return Opener(ours, paths)


def _serve(descriptor: int, paths: Sequence[str]) -> NoReturn:
    """
    Open files on request until all clients have closed the socket.
    """
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        os.chdir("/")
        # Close all descriptors of the service, such as ports and the pipe of a log, because this
        # process would keep them open.
        nothing = os.open(os.devnull, os.O_RDWR)
        for each in range(3):
            os.dup2(nothing, each)
        os.dup2(descriptor, 3)
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        asked = socket.socket(fileno=3)
        while True:
            request, descriptors, _, _ = socket.recv_fds(asked, _NUMBER + _NAME, 1)
            if not request:
                break
            for each in descriptors:
                with socket.socket(fileno=each) as answering:
                    place, name = request[:_NUMBER], os.fsdecode(request[_NUMBER:])
                    _answer(answering, paths[int.from_bytes(place, "big")], name)
    except BaseException:
        os._exit(1)
    os._exit(0)


def _answer(answering: socket.socket, entry: str, name: str) -> None:
    try:
        path = _fileOf(entry, name)
        if changeableBy(path) is not None:
            raise OSError(errno.EACCES, "")
        if entry.endswith("/"):
            descriptor = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        else:
            descriptor = openReplaceable(path)
    except OSError as error:
        answer, descriptors = bytes([error.errno or errno.EIO]), []
    else:
        answer, descriptors = b"\0", [descriptor]
    try:
        socket.send_fds(answering, [answer], descriptors)
    except OSError:
        # Ignore the error, because the client is gone.
        pass
    finally:
        for each in descriptors:
            os.close(each)
