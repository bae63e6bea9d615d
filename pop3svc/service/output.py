"""
Find out whether the standard output of a command was written.
"""

from __future__ import annotations

import errno
import os
import sys

__all__ = ["ensureOutput", "isFull", "outputFault"]

# The errors of a full disk, of a failing device, and of a descriptor that is not open for writing.
_FULL = frozenset([errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF])


def ensureOutput() -> None:
    """
    Replace a standard output that the caller has closed.  Otherwise Python would have no standard
    output, and the next opened file would get the descriptor of the standard output.
    """
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def outputFault() -> str:
    """
    Write the buffered output.  If the output cannot be written, discard it, because Python would
    try again at its end, and would print a traceback.

    @return: the reason why the output could not be written; empty if it was written.
    @raise BrokenPipeError: nobody reads the output.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return f"cannot write the output: {error.strerror}"
    return ""


def isFull(error: OSError) -> bool:
    """
    @return: whether an error says that the output could not be written.  A stream without a buffer
        raises such an error at once, so L{outputFault} cannot find it.
    """
    return error.errno in _FULL and error.filename is None
