"""
Files that only a privileged user may open, for a service that gives its privileges up:
a process that keeps them opens these files, and nothing else.

A descriptor of their directory would not do: the kernel looks at the directory's
permissions each time that a name is looked up in it, whoever opened it.
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

__all__ = ["Opener", "changeableBy", "openTo", "startOpener", "unreadable"]

# Seconds that an answer may take, because a login waits for it.
_PATIENCE = 2.0
# Seconds without another question after one that was not answered.
_REST = 60.0
_MOST_LINKS = 40


def unreadable(paths: Iterable[str], uid: int, gid: int | None) -> list[str]:
    """
    Try in a process of its own which files another user cannot open: that counts groups,
    access control lists and mounts, too.

    @return: those of the paths.
    """
    if gid is None:
        # As twistd does.
        gid = getpwuid(uid).pw_gid
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        denied = b""
        try:
            switchUID(uid, gid)
            for number, path in enumerate(paths):
                try:
                    os.close(openReplaceable(path))
                except PermissionError:
                    denied += bytes([number])
                except OSError:
                    pass
            os.write(theirs, denied + b"\xff")
        finally:
            os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as answer:
        found = answer.read()
    os.waitpid(child, 0)
    # One that could not even become this user says so later.
    named = list(paths)
    return [named[number] for number in found.removesuffix(b"\xff")]


def openTo(path: str) -> str | None:
    """
    @return: C{read by everybody}, or C{changed by everybody} or by a group; L{None} if
        the permissions of the file and of the directories on the way let nobody.
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
        # Nobody else comes that far.
        return None
    if mode & stat.S_IWOTH or directories[0] & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
        return "changed by everybody"
    if mode & stat.S_IROTH:
        return "read by everybody"
    return "changed by a group" if mode & stat.S_IWGRP else None


def changeableBy(path: str) -> str | None:
    """
    Look whether a file may be read for somebody else: only if nobody but root can put
    another file in its place, or a link to one.

    @return: the directory on the way, links included, that others may change; L{None}
        if there is none.
    @raise OSError: the file is not there.
    """
    here, links = "/", 0
    ahead = [each for each in reversed(os.path.abspath(path).split("/")) if each]
    while ahead:
        name = ahead.pop()
        if name == "..":
            here = os.path.dirname(here)
            continue
        directory, status = os.stat(here), os.lstat(os.path.join(here, name))
        # In a directory such as /tmp nobody can take away what is root's.
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


class Opener:
    """
    Asks for files to be opened.

    @ivar paths: those that may be asked for.
    """

    def __init__(self, asking: socket.socket, paths: Sequence[str]) -> None:
        """
        @param asking: the socket of the process that opens them; several processes
            may share it.
        """
        self.paths = list(paths)
        self._asking = asking
        self._numbers = {path: number for number, path in enumerate(self.paths)}
        self._restsUntil = 0.0

    def fileno(self) -> int:
        """
        @return: the descriptor of the socket.
        """
        return self._asking.fileno()

    def open(self, path: str) -> int:
        """
        @return: a descriptor of the file, for reading.
        @raise OSError: it cannot be opened.
        """
        number = self._numbers.get(path)
        if number is None or time.monotonic() < self._restsUntil:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.settimeout(_PATIENCE)
            try:
                # Nobody else reads what is answered here, however many ask.
                socket.send_fds(self._asking, [bytes([number])], [theirs.fileno()])
                theirs.close()
                said, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
            except OSError:
                self._restsUntil = time.monotonic() + _REST
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        if descriptors:
            os.set_inheritable(descriptors[0], False)
            return descriptors[0]
        code = said[0] if said else errno.EACCES
        raise OSError(code, os.strerror(code), path)


def startOpener(paths: Sequence[str]) -> Opener:
    """
    Start the process that keeps its privileges; it ends with those who may ask it.

    @param paths: the files, absolute; at most 255.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if not os.fork():
        _serve(theirs.fileno(), paths)
    theirs.close()
    ours.settimeout(_PATIENCE)
    return Opener(ours, paths)


def _serve(descriptor: int, paths: Sequence[str]) -> NoReturn:
    """
    Open what is asked for, until nobody is left who could ask.
    """
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        os.chdir("/")
        # Nothing of the service stays open here: no port, no pipe of a log.
        nothing = os.open(os.devnull, os.O_RDWR)
        for each in range(3):
            os.dup2(nothing, each)
        os.dup2(descriptor, 3)
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        asked = socket.socket(fileno=3)
        while True:
            said, descriptors, _, _ = socket.recv_fds(asked, 1, 1)
            if not said:
                break
            for each in descriptors:
                with socket.socket(fileno=each) as answering:
                    _answer(answering, paths[said[0]])
    except BaseException:
        os._exit(1)
    os._exit(0)


def _answer(answering: socket.socket, path: str) -> None:
    try:
        if changeableBy(path) is not None:
            raise OSError(errno.EACCES, "")
        descriptor = openReplaceable(path)
    except OSError as error:
        answer, descriptors = bytes([error.errno or errno.EIO]), []
    else:
        answer, descriptors = b"\0", [descriptor]
    try:
        socket.send_fds(answering, [answer], descriptors)
    except OSError:
        # Whoever asked is gone.
        pass
    finally:
        for each in descriptors:
            os.close(each)
