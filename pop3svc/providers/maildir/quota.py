"""
Record deletions in the Maildir++ quota file, for the programs that deliver mail.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from contextlib import suppress

from pop3svc.files import closeQuietly
from pop3svc.providers.files.deletion import Place

__all__ = ["recordDeletion"]

_NAME = "maildirsize"
# The first line: octets, messages, or both.
_QUOTA = re.compile(rb"[0-9]+[SC](?:,[0-9]+[SC])?\n")
_SIZE = re.compile(r",S=([0-9]{1,15})(?![0-9])")


def recordDeletion(root: int, files: Sequence[tuple[Place, os.stat_result]]) -> None:
    """
    Add a line for removed files to C{maildirsize}, if the Maildir has one.  If the line
    cannot be written, remove C{maildirsize}, because the next delivery then recalculates
    it.  Blocks.

    @param root: a descriptor of the Maildir.
    """
    if not files:
        return
    octets = 0
    for (_, name, _), status in files:
        found = _SIZE.search(name)
        octets += status.st_size if found is None else int(found[1])
    with suppress(OSError):
        flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(_NAME, flags, dir_fd=root)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                return
            if _QUOTA.match(os.pread(descriptor, 64, 0)) is None:
                # The file is damaged; the next delivery recalculates it.
                return
            line = b"%d %d\n" % (-octets, -len(files))
            if status.st_size and os.pread(descriptor, 1, status.st_size - 1) != b"\n":
                line = b"\n" + line
            try:
                isWritten = os.write(descriptor, line) == len(line)
            except OSError:
                isWritten = False
            if not isWritten:
                os.unlink(_NAME, dir_fd=root)
        finally:
            closeQuietly(descriptor)
