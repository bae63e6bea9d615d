"""
Remove the UNIX sockets of services that were killed.
"""

from __future__ import annotations

import errno
import os
import socket
import stat

__all__ = ["removeStale"]


def removeStale(path: str) -> None:
    """
    Remove the socket of a service that was killed, if there is one.  A file with the process number
    of the service would not show whether the service still runs, because another process may have
    got the same number.  In a container every service has the same number.

    @raise OSError: the file is not a socket, or a service answers on the socket.
    """
    try:
        isSocket = stat.S_ISSOCK(os.lstat(path).st_mode)
    except FileNotFoundError:
        return
    if not isSocket:
        raise FileExistsError(errno.EEXIST, "the file is not a socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            # Many clients wait on the socket, so a service listens on it.
            pass
    raise OSError(errno.EADDRINUSE, "another service uses it")
