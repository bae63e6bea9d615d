"""
An HTTP server whose clients cannot use up the memory, the connections or the time of the process.

Each connection carries one request.  Limits apply to the number of connections, to the size of a
request, and to the time that a request may take.
"""

from __future__ import annotations

from collections import Counter
from io import BytesIO
from typing import Any

from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.server import Request, Site

from pop3svc.networks import networkOf

__all__ = ["BoundedSite"]


class _Nowhere(BytesIO):
    """
    Drops the body of a request that is too large.
    """

    def write(self, data: Any) -> int:
        return len(data)


class _Request(Request):
    """
    A request whose body has a limited size.
    """

    isTooLarge = False

    def __repr__(self) -> str:
        """
        @return: a text that does not contain the path.  The reason is that twisted.web logs the
            text, and that a client may send any octets as a path.
        """
        return f"<{type(self).__name__}>"

    def gotLength(self, length: int | None) -> None:
        """
        See L{twisted.web.http.Request.gotLength}.
        """
        channel: Any = self.channel
        self.isTooLarge = length is None or length > channel.largestBody
        self.content = _Nowhere() if self.isTooLarge else BytesIO()
        if self.isTooLarge:
            channel.refuse(b"413 Content Too Large")

    def process(self) -> None:
        """
        See L{twisted.web.server.Request.process}.
        """
        if self.isTooLarge:
            return
        channel: Any = self.channel
        if not self.uri.startswith(b"/"):
            channel.refuse(b"400 Bad Request")
        else:
            channel.isAnswering = True
            self.responseHeaders.setRawHeaders(b"connection", [b"close"])
            self.responseHeaders.setRawHeaders(b"cache-control", [b"no-store"])
            super().process()  # type: ignore[no-untyped-call]


class _Channel(HTTPChannel):
    """
    A connection that carries one request.  The connection ends after at most L{LIFE} seconds,
    unless L{lasts} has returned true.
    """

    # The most octets of the request line and all headers.  Monitoring systems send some hundred
    # octets.
    totalHeadersSize = 8192
    maxHeaders = 50
    # Seconds from the beginning of the connection to the end of the answer.  The time must be
    # longer than the 5 seconds that a worker has for its answer.
    LIFE = 10.0
    # The network of the client, which BoundedSite sets.
    network = ""
    # The most octets that a client may send after its request.  Such octets are dropped.  Twisted
    # would keep them, and would count all kept octets again each time that octets arrive.
    LARGEST_REST = 65_536
    isAnswering = False
    _rest = 0
    _life: Any = None
    _isRefused = False

    def connectionMade(self) -> None:
        """
        See L{twisted.internet.protocol.BaseProtocol.connectionMade}.
        """
        self._life = self.factory.reactor.callLater(self.LIFE, self.abort)
        super().connectionMade()  # type: ignore[no-untyped-call]

    def abort(self) -> None:
        """
        End the connection at once.
        """
        transport: Any = self.transport
        transport.abortConnection()

    @property
    def largestBody(self) -> int:
        """
        The most octets that the body of this request may have.
        """
        path = self._path.partition(b"?")[0]
        return int(self.factory.largeBodies.get(path, self.factory.LARGEST))

    def lasts(self) -> bool:
        """
        Let this connection stay open for a long time, unless too many such connections are open.

        @return: whether the connection stays open.
        """
        return bool(self.factory.letLast(self))

    def lastFor(self, seconds: float) -> None:
        """
        @param seconds: the time from now to the end of the connection.
        """
        self._life.reset(seconds)

    def refuse(self, status: bytes) -> None:
        """
        Answer without a body, and end the connection.

        @param status: the code and its phrase.
        """
        self._isRefused = True
        transport: Any = self.transport
        transport.write(b"HTTP/1.1 %b\r\nConnection: close\r\nContent-Length: 0\r\n\r\n" % status)
        self.loseConnection()  # type: ignore[no-untyped-call]

    def dataReceived(self, data: bytes) -> None:
        """
        See L{twisted.internet.interfaces.IProtocol.dataReceived}.
        """
        if self.isAnswering:
            self._rest += len(data)
            if self._rest > self.LARGEST_REST:
                self.abort()
        elif not self._isRefused:
            super().dataReceived(data)  # type: ignore[no-untyped-call]

    def rawDataReceived(self, data: bytes) -> None:
        """
        See L{HTTPChannel.rawDataReceived}.
        """
        if not self._isRefused:
            super().rawDataReceived(data)

    def checkPersistence(self, request: Any, version: bytes) -> bool:
        """
        See L{HTTPChannel.checkPersistence}.  Close each connection after its request, because an
        idle connection would take the place of another.
        """
        return False

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        See L{twisted.internet.protocol.Protocol.connectionLost}.
        """
        if self._life is not None and self._life.active():
            self._life.cancel()
        self.factory.channels.pop(self, None)
        self.factory.lasting.discard(self)
        super().connectionLost(reason)  # type: ignore[no-untyped-call]


class BoundedSite(Site):
    """
    Makes the connections.  At most L{MOST} of them are open at the same time, not counting those in
    L{lasting}.  At this limit, a new connection takes the place of an old one.  Clients that hang
    therefore cannot keep other clients away.

    @ivar channels: the connections, the oldest first.
    @ivar lasting: the connections that stay open for a long time.  L{channels} does not contain
        them.
    @ivar largeBodies: the most octets of a body, for each path that takes more octets than
        L{LARGEST}.
    """

    noisy = False
    # The most connections at the same time, not counting those in "lasting".  The number is enough
    # for a few monitoring systems and pages.
    MOST = 64
    # The most connections that stay open for a long time, and the seconds until they are closed.
    # The browser then connects again.
    MOST_LASTING = 32
    LASTING = 3600.0
    # The most octets of a body, which are enough for a form with a few fields.
    LARGEST = 65_536
    requestFactory = _Request

    def __init__(self, resource: Any, reactor: Any) -> None:
        """
        @param resource: L{twisted.web.resource.IResource}
        """
        super().__init__(  # type: ignore[no-untyped-call]
            resource, reactor=reactor, timeout=_Channel.LIFE, parsePOSTFormSubmission=False
        )
        self.protocol: Any = _Channel
        self.channels: dict[_Channel, None] = {}
        self.lasting: set[_Channel] = set()
        self.largeBodies: dict[bytes, int] = {}

    def startFactory(self) -> None:
        """
        See L{twisted.internet.protocol.Factory.startFactory}.  Do nothing, because without an
        access log no timer for its dates is needed.
        """

    def stopFactory(self) -> None:
        """
        See L{twisted.internet.protocol.Factory.stopFactory}.
        """

    def log(self, request: Any) -> None:
        """
        Do nothing, because an access log would contain text from clients.
        """

    def buildProtocol(self, addr: Any) -> Any:
        """
        See L{twisted.internet.interfaces.IProtocolFactory.buildProtocol}.
        """
        if len(self.channels) >= self.MOST:
            other = self._dispensable()
            del self.channels[other]
            other.abort()
        channel = super().buildProtocol(addr)  # type: ignore[no-untyped-call]
        host = getattr(addr, "host", None)
        channel.network = networkOf(host if isinstance(host, str) else None)
        self.channels[channel] = None
        return channel

    def _dispensable(self) -> _Channel:
        """
        @return: the oldest connection of the network that has the most connections.  A client that
            opens many connections therefore takes room only from its own network.
        """
        counts = Counter(each.network for each in self.channels)
        most = max(counts.values())
        return next(each for each in self.channels if counts[each.network] == most)

    def letLast(self, channel: _Channel) -> bool:
        """
        Let a connection stay open for L{LASTING} seconds, unless L{MOST_LASTING} connections do so
        already.

        @return: whether the connection stays open.
        """
        if len(self.lasting) >= self.MOST_LASTING or channel not in self.channels:
            return False
        del self.channels[channel]
        self.lasting.add(channel)
        channel.lastFor(self.LASTING)
        return True

    def abortAll(self) -> None:
        """
        End all connections.
        """
        for each in [*self.channels, *self.lasting]:
            each.abort()
