"""
Let a single thread use files with the rights of another user (Linux).

The file rights of a thread are its user (C{setfsuid}), its group (C{setfsgid}) and its
supplementary groups.  The function setgroups() of the C library would change the groups of all
threads.  This module therefore calls the kernel directly.  The process needs the capabilities
CAP_SETUID and CAP_SETGID.  If it had other capabilities, such as CAP_DAC_OVERRIDE, there would be
no protection.  A thread that takes the rights of a user would keep those capabilities, unless the
process belongs to root.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
import threading
from dataclasses import dataclass
from typing import Any, NoReturn

from twisted.logger import Logger

__all__ = [
    "FileUser",
    "asService",
    "asUser",
    "checkMayChangeUser",
    "fileGIDs",
    "fileUID",
]

log = Logger(namespace="pop3svc")

# The number of the system call setgroups.  The keys are the type of the machine and the octets of a
# pointer.  For 32-bit machines, the value is the number of setgroups32.
_SETGROUPS = {
    ("x86_64", 8): 116,
    ("aarch64", 8): 159,
    ("riscv64", 8): 159,
    ("loongarch64", 8): 159,
    ("ppc64le", 8): 81,
    ("s390x", 8): 206,
    ("i686", 4): 206,
    ("armv7l", 4): 206,
}
# With this argument, setfsuid() and setfsgid() return the present value and change nothing.
_PRESENT = 0xFFFFFFFF
# The capabilities CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER and CAP_MKNOD, as
# bits of a number.
_FILE_CAPABILITIES = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 27
_REMEDY = (
    "owner=user needs Linux with the capabilities CAP_SETUID and CAP_SETGID, such as from "
    "AmbientCapabilities in a unit of systemd"
)


@dataclass(frozen=True, slots=True)
class FileUser:
    """
    The rights with which a thread uses files.

    @ivar uid: the user.
    @ivar gid: the group to which new files belong.
    @ivar groups: the supplementary groups.
    """

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


class _Thread(threading.local):
    """
    @ivar user: the user whose rights the thread has; L{None} for the rights of the process.
    """

    user: FileUser | None = None


_thread = _Thread()
# The rights of the process; None until a thread changes its rights for the first time.
_process: FileUser | None = None


def fileUID() -> int:
    """
    @return: the user to whom new files of this thread belong.
    """
    user = _thread.user
    return os.geteuid() if user is None else user.uid


def fileGIDs() -> tuple[int, ...]:
    """
    @return: the groups to which this thread may give files.
    """
    user = _thread.user
    return (os.getegid(), *os.getgroups()) if user is None else (user.gid, *user.groups)


class _Kernel:
    """
    The system calls.
    """

    def __init__(self) -> None:
        number = _SETGROUPS.get((platform.machine(), struct.calcsize("P")))
        if not sys.platform.startswith("linux") or number is None:
            raise OSError(errno.ENOSYS, "this system cannot change the rights of one thread")
        # PyDLL does not release the interpreter's lock during a call, because the release would
        # take more time than these calls.
        library = ctypes.PyDLL(None, use_errno=True)
        self._number = ctypes.c_long(number)
        self._call: Any = library.syscall
        self._call.restype = ctypes.c_long
        self._setfsuid: Any = library.setfsuid
        self._setfsgid: Any = library.setfsgid
        for each in (self._setfsuid, self._setfsgid):
            each.argtypes, each.restype = [ctypes.c_uint], ctypes.c_uint

    def setGroups(self, groups: tuple[int, ...]) -> None:
        """
        @raise OSError: the groups were not changed.
        """
        array = (ctypes.c_uint * len(groups))(*groups)
        if self._call(self._number, ctypes.c_long(len(groups)), array):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def setGroup(self, gid: int) -> None:
        """
        @raise OSError: the group was not changed.
        """
        self._setfsgid(gid)
        # setfsgid() does not report a failure, so read the group again.
        if self._setfsgid(_PRESENT) != gid:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def setUser(self, uid: int) -> None:
        """
        @raise OSError: the user was not changed.
        """
        self._setfsuid(uid)
        if self._setfsuid(_PRESENT) != uid:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))


_kernel: _Kernel | None = None


def _calls() -> _Kernel:
    global _kernel
    if _kernel is None:
        _kernel = _Kernel()
    return _kernel


def _rightsOfProcess() -> FileUser:
    return FileUser(os.geteuid(), os.getegid(), tuple(os.getgroups()))


def _enter(user: FileUser) -> None:
    """
    Give this thread the rights of a user.  Before the call, the thread must have the rights of the
    process.

    @raise OSError: the rights cannot be taken.  The thread still has the rights of the process.
    """
    global _process
    kernel = _calls()
    if _process is None:
        _process = _rightsOfProcess()
    try:
        kernel.setGroups(user.groups)
        kernel.setGroup(user.gid)
        kernel.setUser(user.uid)
    except OSError as error:
        _leave()
        raise OSError(error.errno, f"the rights of user {user.uid} cannot be taken: {_REMEDY}")
    _thread.user = user


def _leave() -> None:
    """
    Give this thread the rights of the process again.  If this is not possible, end the process.
    Otherwise the thread would do work for other users with the wrong rights.
    """
    kernel, process = _calls(), _process
    assert process is not None
    try:
        kernel.setUser(process.uid)
        kernel.setGroup(process.gid)
        try:
            kernel.setGroups(process.groups)
        except OSError:
            # The call fails without CAP_SETGID.  This is no problem if the groups are those of the
            # process.
            if tuple(os.getgroups()) != process.groups:
                raise
    except BaseException as error:
        _end(error)
    _thread.user = None


def _end(error: BaseException) -> NoReturn:
    try:
        log.critical(
            "the process ends, because a thread cannot change its rights to files: {error}",
            error=str(error),
        )
    finally:
        os._exit(70)


class asUser:
    """
    A context in which this thread uses files with the rights of a user.  Contexts of different
    users do not nest.
    """

    __slots__ = ("_isWithin", "_user")

    def __init__(self, user: FileUser) -> None:
        self._user = user
        self._isWithin = False

    def __enter__(self) -> None:
        """
        @raise OSError: the rights cannot be taken.
        """
        before = _thread.user
        if before is not None:
            if before != self._user:
                raise RuntimeError(
                    "a thread with the rights of one user needs the rights of another"
                )
            self._isWithin = True
        else:
            _enter(self._user)

    def __exit__(self, *error: object) -> None:
        if not self._isWithin:
            _leave()


class asService:
    """
    A context in which this thread has the rights of the process, even if it had the rights of a
    user before.  Use the context for work on files that belong to the service.
    """

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        self._before = _thread.user
        if self._before is not None:
            _leave()

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            try:
                _enter(self._before)
            except OSError as failure:
                # End the process, because the rest of the user's work must not run with the rights
                # of the service.
                _end(failure)


def checkMayChangeUser(uid: int) -> None:
    """
    Check that a thread of this process can take the rights of a user, and that it has no further
    rights then.

    @param uid: any user other than root.
    @raise ValueError: the thread cannot take the rights, or keeps further rights.  The text is a
        sentence for the operator.
    """
    global _process
    # Read the rights of the process again, because the process may have changed its user since the
    # last check.
    _process = None
    try:
        with asUser(FileUser(uid, uid)):
            left = _effectiveCapabilities() & _FILE_CAPABILITIES
    except OSError:
        raise ValueError(_REMEDY)
    if left:
        raise ValueError(
            "owner=user does not protect the mail of one user from another, because the service "
            "has a capability such as CAP_DAC_OVERRIDE; leave it only CAP_SETUID and CAP_SETGID"
        )


def _effectiveCapabilities() -> int:
    with open("/proc/thread-self/status", "rb") as file:
        for line in file:
            if line.startswith(b"CapEff:"):
                return int(line.partition(b":")[2], 16)
    return 0
