"""
Encode replies, and pass their octets to the outlet of the connection.
"""

from __future__ import annotations

from typing import Any

from pop3svc.awaiting import isAwaitable
from pop3svc.files import FileRegion
from pop3svc.languages import Language
from pop3svc.lineendings import WireForm
from pop3svc.protocol.outlets import Outlet
from pop3svc.protocol.record import SessionRecord
from pop3svc.protocol.replies import Reply
from pop3svc.protocol.wire import LineStyle, MultiLine, firstLine

__all__ = ["ReplySender"]

# Octets are written when this number of octets was gathered.  Fewer octets wait, so that several
# short replies share one write and one segment.
_PIECE = 65536
# _RECORD is the most octets of a TLS record (RFC 8446 section 5.1).  _LAST is the least number of
# octets in the last record of a large reply.
_RECORD, _LAST = 16384, 512


class ReplySender:
    """
    Sends the replies of one connection, one at a time.  Short replies are gathered until
    L{flush}.

    @ivar isCrowded: whether the gathered octets must be flushed before the next reply.  This is
        necessary if there are many of them, or if the transport is full.
    @ivar isFull: whether the transport still has octets to write.
    """

    # Use slots, because they take less memory than a dictionary, and a service has many idle
    # connections.
    __slots__ = ("_gathered", "_octets", "_outlet", "_pieces", "_record", "_style")

    def __init__(
        self, outlet: Outlet, marksMultiLine: bool = False, record: SessionRecord | None = None
    ) -> None:
        """
        @param outlet: takes the octets.
        @param marksMultiLine: whether the first line of a multi-line reply is marked
            (docs/extensions, MULTI-LINE-IND).
        @param record: counts the octets that are sent.
        """
        self._outlet = outlet
        self._style = LineStyle.of(marksMultiLine)
        self._record = SessionRecord() if record is None else record
        self._gathered: list[bytes] = []
        self._octets = 0
        # The pieces that gatherShort() has read, if send() has to send them.
        self._pieces: list[Any] = []

    def startTLS(self) -> None:
        """
        Replace the outlet by one for TLS, because the transport encrypts all further octets.
        """
        self._outlet = self._outlet.encrypted()

    def useLanguage(self, language: Language | None) -> None:
        """
        Set the language of the texts of all further replies (RFC 6856 section 3.2).

        @param language: the language; L{None} for English.
        """
        self._style = LineStyle.of(self._style.marksMultiLine, language)

    # --- gathering --------------------------------------------------------------

    def gather(self, reply: Reply) -> None:
        """
        Gather a reply without a body.
        """
        octets = firstLine(reply, self._style)
        self._gathered.append(octets)
        count = len(octets)
        self._octets += count
        self._record.octetsSent += count

    def _gather(self, octets: bytes) -> None:
        self._gathered.append(octets)
        self._octets += len(octets)
        self._record.octetsSent += len(octets)

    @property
    def isCrowded(self) -> bool:
        outlet = self._outlet
        return self._octets + outlet.unasked >= _PIECE or outlet.isFull

    def gatherShort(self, reply: Reply) -> bool:
        """
        If the body of a reply is one short piece that needs no encoding, gather the reply and close
        the body.  This takes a quarter of the bytecodes of L{send}.

        @return: False if nothing was gathered, so that L{send} must be called next.
        """
        body = reply.body
        assert body is not None, "see gather()"
        if body.form is not WireForm.READY or reply.topLines is not None:
            return False
        outlet = self._outlet
        if outlet.sendable(body.region) is not None:
            return False
        pieces = self._pieces
        try:
            piece = body.next()
            pieces.append(piece)
            if type(piece) is not bytes or len(piece) >= _RECORD:
                return False
            piece = body.next()
            pieces.append(piece)
            if piece is not None:
                return False
            octets = len(pieces[0])
            body.wasSent(octets)
        except BaseException:
            pieces.clear()
            body.close()
            raise
        self.gather(reply)
        self._gathered += (pieces[0], b".\r\n")
        self._octets += octets + 3
        self._record.octetsSent += octets + 3
        pieces.clear()
        body.close()
        if self._octets > _RECORD and outlet.isTLS:
            self._splitRecords()
        return True

    async def send(self, reply: Reply) -> bool:
        """
        Gather the octets of a reply, and close its body.  Flush the octets when there are many of
        them.

        @return: whether the whole body was sent; true if there is no body.
        @raise Stalled: the client has read nothing for too long.
        @raise ConnectionLost: the connection is lost.
        """
        isWhole = await self._send(reply)
        if self.isCrowded:
            await self.flush()
        return isWhole

    async def _send(self, reply: Reply) -> bool:
        body = reply.body
        if body is None:
            self.gather(reply)
            return True
        encoder = None
        read, self._pieces = self._pieces, []
        before, kept = self._gathered, len(self._gathered)
        octetsBefore = 0
        try:
            self.gather(reply)
            octetsBefore = self._record.octetsSent
            region = None
            if body.form is not WireForm.READY or reply.topLines is not None:
                encoder = MultiLine(reply.topLines, body.form)
            else:
                region = self._outlet.sendable(body.region)
            while encoder is None or not encoder.done:
                if region is not None:
                    await self._sendUnread(region)
                chunk = read.pop(0) if read else body.next()
                if isAwaitable(chunk):
                    chunk = await chunk
                if chunk is None:
                    break
                # Flush when another piece has come, and not before.  The last piece and the final
                # dot must share one write, because some clients expect the dot at the end of a
                # read.
                if self._octets >= _PIECE and (len(chunk) >= _LAST or self._octets >= 4 * _PIECE):
                    await self.flush()
                self._gather(chunk if encoder is None else encoder.feed(chunk))
            if encoder is None:
                octets = self._record.octetsSent - octetsBefore
                self._gather(b".\r\n")
            else:
                self._gather(encoder.finish())
                octets = encoder.octets
            isWhole = encoder is None or not encoder.done
            if isWhole:
                body.wasSent(octets)
            if self._octets > _RECORD and self._outlet.isTLS:
                self._splitRecords()
        except BaseException:
            # Remove the octets of this reply.  Keep the replies before it, because they are
            # complete.
            del self._gathered[kept if self._gathered is before else 0 :]
            self._octets = sum(map(len, self._gathered))
            raise
        finally:
            body.close()
        return isWhole

    def _splitRecords(self) -> None:
        """
        Write the gathered octets in two parts if the last TLS record would contain few octets.  The
        last record then contains more than the final dot.
        """
        if 0 < self._octets % _RECORD < _LAST:
            octets = b"".join(self._gathered)
            self._gathered, self._octets = [octets[:-_LAST]], len(octets) - _LAST
            self.flushNow()
            self._gathered, self._octets = [octets[-_LAST:]], _LAST

    async def _sendUnread(self, region: FileRegion) -> None:
        """
        Send octets of a body without reading them into memory, as many as the outlet can send in
        this way.
        """
        # First write the first line of the reply, because it was gathered and not written yet.
        await self.flush()
        while sent := await self._outlet.send(region):
            self._record.octetsSent += sent
            await self.flush()

    def say(self, reply: Reply) -> None:
        """
        Write a single-line reply that answers no command.  It is the greeting, or the reason why
        the service closes the connection.
        """
        self.gather(reply)
        self.flushNow()

    # --- writing ----------------------------------------------------------------

    def _taken(self) -> bytes:
        """
        Empty the buffer.

        @return: the gathered octets.
        """
        gathered = self._gathered
        octets = gathered[0] if len(gathered) == 1 else b"".join(gathered)
        self._gathered, self._octets = [], 0
        return octets

    def flushNow(self) -> None:
        """
        Write the gathered octets, even if the transport is full.
        """
        if self._octets:
            self._outlet.write(self._taken())

    def flushShort(self) -> bool:
        """
        Write the gathered octets, unless there are many of them or the transport is full.

        @return: False if L{flush} must be called, because there are many octets or the transport is
            full.
        """
        if not self._octets:
            return True
        outlet = self._outlet
        if self._octets + outlet.unasked >= _PIECE or outlet.isFull:
            return False
        outlet.write(self._taken())
        return not outlet.isFull

    async def flush(self) -> None:
        """
        Write the gathered octets, and wait until the transport has room for more.

        @raise Stalled: the client has read nothing for too long.
        @raise ConnectionLost: the connection is lost.
        """
        await self._outlet.flush(self._taken())

    @property
    def isFull(self) -> bool:
        return self._outlet.isFull

    def stalledFor(self) -> float:
        """
        See L{Outlet.stalledFor}.
        """
        return self._outlet.stalledFor()

    def release(self) -> None:
        """
        See L{Outlet.release}.
        """
        self._outlet.release()
