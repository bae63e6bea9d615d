"""
The content of a message's file, unpacked if it is compressed.
"""

from __future__ import annotations

import errno
import os
from functools import partial

from pop3svc.errors import POP3ResponseError
from pop3svc.files import FileBlocks, closeQuietly, peek
from pop3svc.interfaces import Eventual, IChunkedContent
from pop3svc.lineendings import WireForm
from pop3svc.providers.files.directory import Directory, Opened
from pop3svc.providers.files.sizes import MessageInfo
from pop3svc.providers.unpacking import CannotUnpack, PackedBlocks, countUnpacked, packedAs

__all__ = ["contentOf"]


def contentOf(
    directory: Directory, opened: Opened, known: MessageInfo | None
) -> Eventual[IChunkedContent]:
    """
    Read an open file.

    @param directory: the mailbox.
    @param opened: the file; it is closed at the end.
    @param known: size and kind of the message, if they are known.
    @return: its content.
    """
    descriptor, status = opened
    if known is not None and not known.isUnchanged(status):
        # The file has another time or inode, so the form of its line ends is no longer known.
        known = None
    if known is None or known.kind == "z":
        first = peek(descriptor, 16)
        if first is None or packedAs(first) is not None:
            return _contentInThread(directory, opened, known)
    return _blocks(directory, opened, known)


def _blocks(directory: Directory, opened: Opened, known: MessageInfo | None) -> FileBlocks:
    descriptor, status = opened
    form = WireForm.RAW
    # Each bare LF would make the message longer on the wire.
    if known is not None and known.octets == status.st_size:
        form = WireForm.READY if known.kind == "=" else WireForm.LINES
    return FileBlocks(
        descriptor,
        partial(closeQuietly, descriptor),
        directory.executor,
        length=status.st_size,
        form=form,
        group=directory.group,
    )


async def _contentInThread(
    directory: Directory, opened: Opened, known: MessageInfo | None
) -> IChunkedContent:
    descriptor = opened[0]

    def packing() -> bytes | None:
        kind = packedAs(os.pread(descriptor, 16, 0))
        if kind is not None and known is None:
            # Refuse a damaged file before a part of it is sent.
            countUnpacked(descriptor, kind)
        return kind

    closing = partial(closeQuietly, descriptor)
    isReading, isAbandoned = True, False

    def ended() -> None:
        nonlocal isReading
        isReading = False
        if isAbandoned:
            closing()

    try:
        kind = await directory.run(packing, ended=ended)
    except CannotUnpack as error:
        closing()
        directory.fault("unpack", OSError(errno.EIO, str(error)))
        raise POP3ResponseError("Message cannot be read.", "SYS/PERM")
    except OSError as error:
        closing()
        raise directory.fault("read a message of", error)
    except BaseException:
        # Do not close the descriptor while the thread reads, because another file could get the
        # same descriptor.
        isAbandoned = True
        if not isReading:
            closing()
        raise
    if kind is None:
        return _blocks(directory, opened, known)
    return PackedBlocks(descriptor, kind, closing, directory.executor, directory.group)
