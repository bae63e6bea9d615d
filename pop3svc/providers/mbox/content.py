"""
The content of one message in an mbox.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zope.interface import implementer

from pop3svc.files import FileBlocks
from pop3svc.interfaces import IChunkedContent
from pop3svc.providers.mbox.scan import Stored
from pop3svc.providers.mbox.text import MessageDigest, Unquoter
from pop3svc.threadpool import Executor

__all__ = ["MboxContent"]


@implementer(IChunkedContent)
class MboxContent:
    """
    The content of a message.  It is read from the mbox while other programs may change the file.
    After the last octet, the digest of all octets shows whether they are the octets of the listed
    message.
    """

    def __init__(
        self,
        descriptor: int,
        closing: Callable[[], object],
        envelope: bytes,
        stored: Stored,
        variant: str,
        runner: Executor,
        group: Any,
    ) -> None:
        """
        @param closing: closes the descriptor.
        @param envelope: the envelope line of the message.
        """
        length = stored.end - stored.content
        self._blocks = FileBlocks(descriptor, closing, runner, stored.content, length, group=group)
        self._digest = MessageDigest(envelope)
        self._expected = stored.digest
        self._unquoter = Unquoter() if variant == "mboxrd" else None
        self._isOver = False

    def nextChunk(self) -> Any:
        """
        See L{IChunkedContent.nextChunk}.

        @raise EOFError: another program has changed the message.  The final dot must then not be
            sent.
        """
        if self._isOver:
            return None
        block = self._blocks.nextChunk()
        if block is None or isinstance(block, bytes):
            return self._read(block)
        return block.addCallback(self._read)

    def _read(self, block: bytes | None) -> bytes | None:
        if block is None:
            self._isOver = True
            if self._digest.digest() != self._expected:
                raise EOFError("another program changed the message while it was sent")
            return self._unquoter.finish() or None if self._unquoter is not None else None
        self._digest.feed(block)
        return block if self._unquoter is None else self._unquoter.feed(block)

    def close(self) -> None:
        """
        See L{IChunkedContent.close}.
        """
        self._blocks.close()
