"""
Read and change text files that several programs may change at the same time.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from pop3svc.files import openReplaceable, writeWhole

__all__ = ["changing", "linesOf"]

# The most octets of a file.  The limit bounds the memory, and is enough for two million users.
_LARGEST = 256 << 20


def linesOf(path: str) -> Iterator[str]:
    """
    Read a file line by line.  Blocks.

    @return: the lines with their line ends.
    @raise ValueError: the file cannot be read, or is too large.  The text is a sentence that names
        the file.
    """
    try:
        descriptor = openReplaceable(path)
        with open(descriptor, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            if os.fstat(descriptor).st_size > _LARGEST:
                raise ValueError(f"{path} is larger than {_LARGEST} octets")
            yield from file
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error


@contextmanager
def changing(
    path: str,
    mayBeNew: bool = False,
    owner: tuple[int, int] | None = None,
    keepsAccess: bool = False,
) -> Iterator[list[str]]:
    """
    A context with the lines of a file.  Change the list of lines in place.  At the end of the
    context the changed lines are written to the file atomically.  Because of a lock, no two
    processes write at the same time.  Blocks.

    @param mayBeNew: whether the file is created if it does not exist.
    @param owner: the uid and the gid that own a new file.
    @param keepsAccess: whether the file keeps its owner and its permissions.  If not, no user but
        the owner can read it afterwards.
    @raise ValueError: the file cannot be read or written.  The text is a sentence that names the
        file.
    """
    directory = os.path.dirname(os.path.realpath(path))
    try:
        held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ValueError(f"{directory}: {error.strerror}")
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        isNew = mayBeNew and not os.path.exists(path)
        # Keep lines that are not valid unchanged, so that the operator can correct them.
        lines = [] if isNew else list(linesOf(path))
        if lines and not lines[-1].endswith("\n"):
            lines[-1] += "\n"
        before = list(lines)
        yield lines
        if lines == before and not isNew:
            return
        mode = 0o600
        if not isNew and (keepsAccess or os.geteuid() == 0):
            status = os.stat(path)
            owner = status.st_uid, status.st_gid
            mode = stat.S_IMODE(status.st_mode) if keepsAccess else mode
        text = "".join(lines)
        writeWhole(os.path.realpath(path), text.encode("utf-8", "surrogateescape"), owner, mode)
        os.fsync(held)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}")
    finally:
        os.close(held)
