"""
The target of an export, to which messages are written.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Sequence
from typing import Any, BinaryIO

from pop3svc.transfer.failures import NotPossible, TryAgain, reasonOf

__all__ = ["Target", "failureOf", "lockOwn"]


class Target:
    """
    A file or a directory to which an export writes messages.  If an export was killed, a later
    export can continue it.  All methods block.

    @ivar path: the path of the file or the directory.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def prepare(self, uniqueIDs: Sequence[str]) -> int:
        """
        Create the file or the directory, or continue an interrupted export.

        @param uniqueIDs: the unique-ids of the messages of the mailbox, in order.
        @return: the number of messages, from the first one on, that need not be written again.
        @raise NotPossible: the path has other content.
        @raise TryAgain: another export writes to the path.
        @raise OSError: the target cannot be written.
        """
        raise NotImplementedError

    def keep(self, uniqueID: str) -> bool:
        """
        Keep a message that an interrupted export has written.

        @return: whether the message was found.
        @raise OSError: the target cannot be read.
        """
        return False

    def add(self, uniqueID: str, content: BinaryIO, arrival: float, sender: bytes) -> None:
        """
        Write a message.

        @param content: the message as RETR sends it.
        @param arrival: the time of arrival, in seconds since the epoch.
        @param sender: the address in the message's Return-Path; empty if it has none.
        @raise OSError: the message was not written.
        """
        raise NotImplementedError

    def finish(self) -> dict[str, int]:
        """
        Make all messages durable, and read them to check them.

        @return: for each message that is found again, the number of octets that RETR would send.
        @raise OSError: the target cannot be written or read.
        """
        raise NotImplementedError

    def publish(self) -> None:
        """
        Mark the export as complete, durably.

        @raise OSError: the export is perhaps not marked durably.
        """
        raise NotImplementedError

    def close(self) -> None:
        """
        Close the files of the target.
        """


def lockOwn(descriptor: int, path: str) -> None:
    """
    Lock a file of the export until its descriptor is closed.

    @raise TryAgain: another export has locked the file, or has just removed it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise TryAgain(f"another export writes {path}")
        raise
    if not os.fstat(descriptor).st_nlink:
        # Another export has removed the file after this export opened it, and before this export
        # locked it.
        raise TryAgain(f"another export has just written {path}")


# The errors whose cause the operator can remove, so that the export can be continued afterwards.
_TEMPORARY = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EAGAIN, errno.ENOMEM, errno.ESTALE)


def failureOf(error: OSError, path: Any) -> Exception:
    """
    @return: the error that tells the operator why the target cannot be written.
    """
    text = f"{path} cannot be written: {reasonOf(error)}"
    return TryAgain(text) if error.errno in _TEMPORARY else NotPossible(text)
