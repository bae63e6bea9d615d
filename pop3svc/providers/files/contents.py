"""
Read the content of a message from its file.  If the file is compressed, unpack it.
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
    Make the content of a message from its open file.

    @param directory: the directory of the mailbox.
    @param opened: the file.  It is closed when the content is closed.
    @param known: the size and the kind of the message; L{None} if they are not known.
    @return: the content of the message.
    """
    descriptor, status = opened
    if known is not None and not known.isUnchanged(status):
        # Do not use the known values, because the file has another size or time of modification
        # now.
        known = None
    if known is None or known.kind == "z":
        first = peek(descriptor, 16)
        if first is None or packedAs(first) is not None:
            return _contentInThread(directory, opened, known)
    return _blocks(directory, opened, known)


def _blocks(directory: Directory, opened: Opened, known: MessageInfo | None) -> FileBlocks:
    descriptor, status = opened
    form = WireForm.RAW
    # If the message has as many octets on the wire as in the file, it has no bare LF, because each
    # bare LF would add an octet on the wire.
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
            # Unpack the whole file first, so that a damaged file is refused before a part of it is
            # sent.
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
        # Do not close the descriptor while the thread reads from it, because another file could get
        # the same descriptor.
        isAbandoned = True
        if not isReading:
            closing()
        raise
    if kind is None:
        return _blocks(directory, opened, known)
    return PackedBlocks(descriptor, kind, closing, directory.executor, directory.group)
