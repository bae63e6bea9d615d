"""
Send events to pages as they happen (server-sent events of HTML).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import LoopingCall
from zope.interface import implementer

from pop3svc.web.pages import Response, refusal

__all__ = ["Stream", "Streams", "pause"]


async def pause(clock: Any, seconds: float) -> None:
    """
    Wait for some seconds.  If the wait is cancelled, its timer is cancelled too.
    """
    over: Deferred[None] = Deferred(lambda _: timer.cancel())
    timer = clock.callLater(seconds, over.callback, None)
    await over


@implementer(IPushProducer)
class Stream:
    """
    The connection of one reader.  If too many octets wait for the reader, the connection is closed.
    """

    # The most octets that wait for a reader.  The number is enough for a page that is in the
    # background for a moment.
    BOUND = 262_144

    def __init__(self, request: Any) -> None:
        self._request = request
        self._isPaused = False
        self._held = 0
        self.isOver = False

    def send(self, event: str, data: str) -> None:
        """
        Send an event.

        @param event: the name of the event; empty for an event that only shows that the connection
            still exists.
        @param data: a text, which may have several lines.
        """
        if self.isOver:
            return
        lines = "".join(f"data: {line}\n" for line in data.split("\n"))
        self._write(f"event: {event}\n{lines}\n" if event else ":\n\n")

    def _write(self, text: str) -> None:
        octets = text.encode("utf-8", "replace")
        if self._isPaused:
            self._held += len(octets)
            if self._held > self.BOUND:
                self.drop()
                return
        self._request.write(octets)

    def drop(self) -> None:
        """
        End the connection at once.
        """
        self.isOver = True
        self._request.channel.abort()

    def pauseProducing(self) -> None:
        """
        See L{IPushProducer.pauseProducing}.
        """
        self._isPaused = True

    def resumeProducing(self) -> None:
        """
        See L{IPushProducer.resumeProducing}.
        """
        self._isPaused, self._held = False, 0

    def stopProducing(self) -> None:
        """
        See L{twisted.internet.interfaces.IProducer.stopProducing}.
        """
        self.isOver = True


class Streams:
    """
    The readers of a page.

    @ivar changed: a function that is called when the first reader comes, and when the last reader
        goes.
    """

    # The most readers of a page at the same time.
    MOST = 16
    # Seconds between two empty events.  By sending an empty event, the service notices that a
    # reader has gone away.
    _BEAT = 15.0

    def __init__(self, clock: Any) -> None:
        self._streams: dict[Stream, None] = {}
        self.changed: Callable[[], object] = lambda: None
        self._beat: Any = LoopingCall(lambda: self.send("", ""))
        self._beat.clock = clock

    def __len__(self) -> int:
        return len(self._streams)

    def begin(self, request: Any) -> Stream | Response:
        """
        Begin to send events to the sender of a request.

        @return: the new reader, an empty answer to HEAD, or a refusal if there are too many
            readers.
        """
        if request.method == b"HEAD":
            return Response(200, "text/event-stream", b"")
        if len(self._streams) >= self.MOST or not request.channel.lasts():
            return refusal(503, "Too many pages are open.")
        stream = Stream(request)
        request.setHeader(b"content-type", b"text/event-stream")
        request.registerProducer(stream, True)
        stream.send("", "")
        self._streams[stream] = None
        request.notifyFinish().addBoth(self._ended, stream)
        if len(self._streams) == 1:
            self._beat.start(self._BEAT, now=False)
            self.changed()
        return stream

    def _ended(self, _: object, stream: Stream) -> None:
        stream.isOver = True
        self._streams.pop(stream, None)
        if not self._streams and self._beat.running:
            self._beat.stop()
            self.changed()

    def send(self, event: str, data: str) -> None:
        """
        Send an event to all readers; see L{Stream.send}.
        """
        for each in list(self._streams):
            each.send(event, data)
