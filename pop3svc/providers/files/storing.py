"""
Write new messages to files.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from itertools import count
from typing import BinaryIO, NamedTuple

from twisted.internet.defer import CancelledError

from pop3svc.errors import DeliveryError, OverQuota, StoreUnavailable
from pop3svc.files import closeQuietly
from pop3svc.interfaces import DeliveryCopy
from pop3svc.lineendings import LFNormalizer, WireSizeCounter
from pop3svc.providers.files.directory import PERMANENT
from pop3svc.threadpool import mustStop

__all__ = [
    "NO_LINKS",
    "Written",
    "deliverInTurn",
    "nameOfDelivery",
    "publish",
    "refusalFor",
    "removeQuietly",
    "writeMessage",
]

# The number of octets that are read at a time.
_BLOCK = 262_144

# Counts the deliveries of this process.
_deliveries = count(1)
_UNSAFE = re.compile(r"[^A-Za-z0-9.-]")

# The errors of link() if the file system has no hard links, or allows no further link to the file.
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class Written(NamedTuple):
    """
    The sizes in octets of a message that was written.

    @ivar size: the size of the file.
    @ivar wireSize: the number of octets that RETR sends, without dot-stuffing.
    """

    size: int
    wireSize: int


@lru_cache(1)
def _host() -> str:
    """
    @return: the name of this machine in a form that can be part of a file's name.
    """
    name = socket.gethostname() or "localhost"
    return _UNSAFE.sub(lambda found: "".join(f"\\{octet:03o}" for octet in found[0].encode()), name)


def nameOfDelivery(microseconds: int | None = None) -> str:
    """
    @param microseconds: the time of arrival in microseconds since the epoch; L{None} for the
        present time.
    @return: a name that no other message has, such as C{1600000000.M123456P789Q1.host}.  The name
        begins with the time of arrival.
    """
    if microseconds is None:
        microseconds = time.time_ns() // 1000
    seconds, rest = divmod(max(microseconds, 0), 1_000_000)
    return f"{seconds}.M{rest:06}P{os.getpid()}Q{next(_deliveries)}.{_host()}"


def writeMessage(
    directory: int,
    name: str,
    header: bytes,
    content: BinaryIO,
    owner: tuple[int, int] | None = None,
    modified: int | None = None,
) -> Written:
    """
    Write a message with LF line ends to a new file with mode 0600.  After the call the content of
    the file is durable.  Blocks.

    @param directory: a descriptor of the directory.
    @param header: header fields to add before the message, as complete lines.
    @param content: see L{pop3svc.interfaces.IDelivery.deliver}.
    @param owner: the user and the group who will own the file.
    @param modified: the time of modification that the file gets, in nanoseconds since the epoch.
    @raise OSError: the message was not written, and no file is left.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o600, dir_fd=directory)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            if owner is not None:
                os.fchown(descriptor, *owner)
            lines, wire = LFNormalizer(), WireSizeCounter()
            size = 0
            content.seek(0)
            data = lines.feed(header)
            while True:
                file.write(data)
                wire.feed(data)
                size += len(data)
                block = content.read(_BLOCK)
                if not block:
                    break
                if mustStop():
                    raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
                data = lines.feed(block)
            data = lines.finish()
            file.write(data)
            wire.feed(data)
        if modified is not None:
            os.utime(descriptor, ns=(modified, modified))
        os.fsync(descriptor)
        # Close the file now, because some file systems do not report a full disk before this call.
        descriptor, closing = -1, descriptor
        os.close(closing)
    except BaseException:
        removeQuietly(directory, name)
        if descriptor >= 0:
            closeQuietly(descriptor)
        raise
    return Written(size + len(data), wire.total())


def publish(source: int, name: str, target: int, newName: str, mayExist: bool = False) -> bool:
    """
    Move a written message to the directory where sessions find it.  The move is durable after the
    call.  Blocks.

    @param source: a descriptor of the directory that contains the file C{name}.
    @param target: a descriptor of the directory to which the message is moved.
    @param mayExist: whether a message with the name C{newName} may exist already.  Such a message
        stays.
    @return: whether the message was moved.  If another message had the name already, the new
        message was removed.
    @raise OSError: the message was not moved.  It is in neither directory.
    """
    try:
        if mayExist:
            try:
                _link(source, name, target, newName)
            except FileExistsError:
                removeQuietly(source, name)
                return False
        else:
            os.rename(name, newName, src_dir_fd=source, dst_dir_fd=target)
    except BaseException:
        removeQuietly(source, name)
        raise
    try:
        os.fsync(target)
    except OSError:
        # Refuse the message, because a crash could lose it.  The sender will send it again.
        removeQuietly(target, newName)
        raise
    return True


def _link(source: int, name: str, target: int, newName: str) -> None:
    """
    @raise FileExistsError: a file with the name C{newName} exists.
    """
    try:
        os.link(name, newName, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        try:
            os.stat(newName, dir_fd=target, follow_symlinks=False)
        except FileNotFoundError:
            os.rename(name, newName, src_dir_fd=source, dst_dir_fd=target)
            return
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    os.unlink(name, dir_fd=source)


def removeQuietly(directory: int, name: str) -> None:
    """
    Remove a file that this delivery has written.  Ignore errors.
    """
    try:
        os.unlink(name, dir_fd=directory)
    except OSError:
        pass


async def deliverInTurn(
    copies: Sequence[DeliveryCopy],
    deliver: Callable[[DeliveryCopy], Awaitable[DeliveryError | None]],
) -> list[DeliveryError | None]:
    """
    Deliver the copies of a message one after the other, because all of them are read from the same
    file.

    @param deliver: delivers one copy, and returns the reason if this is not possible.
    @return: the results for L{pop3svc.interfaces.IDelivery.deliver}.  If the call is cancelled, the
        present copy and all later copies get an error.  The copies before it are stored.
    """
    results: list[DeliveryError | None] = []
    isOver = False
    for copy in copies:
        error: DeliveryError | None = StoreUnavailable("The delivery was interrupted.")
        if not isOver:
            try:
                error = await deliver(copy)
            except CancelledError:
                isOver = True
        results.append(error)
    return results


def refusalFor(error: OSError) -> DeliveryError:
    """
    @return: the error for the sender.
    """
    if error.errno == errno.EDQUOT:
        return OverQuota("The mailbox is full.")
    if error.errno == errno.ENOSPC:
        return StoreUnavailable("There is no room for the message now.")
    if error.errno in PERMANENT:
        return StoreUnavailable("The mailbox cannot be written.")
    return StoreUnavailable("The mailbox is not available now.")
