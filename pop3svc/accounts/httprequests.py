"""
Send requests to an HTTP server.  The time and the size of each answer are limited.

The requests may contain secrets.  The module therefore follows no redirection, keeps no cookie and
repeats no request.
"""

from __future__ import annotations

import re
from base64 import b64encode
from io import BytesIO
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.ssl import optionsForClientTLS
from twisted.internet.task import Cooperator
from twisted.python.failure import Failure
from twisted.web.client import Agent, FileBodyProducer, ResponseDone
from twisted.web.http import OK, PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IAgentEndpointFactory
from zope.interface import implementer

from pop3svc.awaiting import CallTimeout, awaitWithTimeout
from pop3svc.trust import trustRootOf

__all__ = [
    "JSON",
    "Answer",
    "HTTPExchange",
    "HTTPUnavailable",
    "bodyOf",
    "checkURL",
    "requireTreq",
    "withoutQuery",
]

JSON = "application/json"
_VISIBLE = re.compile(r"[!-~]+")
# The most octets of an answer that do not belong to the body, such as header fields.  Twisted has
# no limit for them.
_MOST_HEADERS = 65_536


class HTTPUnavailable(Exception):
    """
    The server has given no usable answer.  The text of the exception is the reason, for the
    operator.  It contains no part of the request.
    """


class Answer(NamedTuple):
    """
    The answer to a request.

    @ivar mediaType: the media type of the body, in lower case and without parameters.
    @ivar body: the body; empty if the status is not 200.
    """

    status: int
    mediaType: str
    body: bytes


def requireTreq() -> None:
    """
    @raise ValueError: treq is missing.  The text is a sentence for the operator.
    """
    try:
        import treq  # noqa: F401
    except ImportError:
        raise ValueError("accounts behind HTTP need treq: pip install 'pop3svc[http]'")


# --- URLs ---------------------------------------------------------------------


def checkURL(url: str) -> SplitResult:
    """
    @return: the parts of the URL.
    @raise ValueError: requests cannot be sent to this URL.  The text is a sentence for the
        operator.
    """
    try:
        parts = urlsplit(url)
        isUsable = _VISIBLE.fullmatch(url) and parts.hostname and parts.port != 0
    except ValueError:
        isUsable = None
    if not isUsable or parts.scheme not in ("https", "http"):
        raise ValueError("a URL such as https://HOST/PATH is needed")
    if "@" in parts.netloc or "#" in url:
        raise ValueError("the URL must not contain a user or a fragment")
    return parts


def withoutQuery(parts: SplitResult) -> str:
    """
    @return: the URL without its query, for the log.  A query may contain a secret.
    """
    return f"{parts.scheme}://{parts.netloc}{parts.path}"


# --- connections --------------------------------------------------------------


@implementer(IAgentEndpointFactory)
class _VerifiedEndpoints:
    """
    Makes endpoints that verify the certificate of a server whose URL begins with C{https}.
    """

    def __init__(self, reactor: Any, authorities: str | None, timeout: float) -> None:
        """
        @param authorities: see L{trustRootOf}.
        @param timeout: the time limit for making a connection, in seconds.
        @raise ValueError: the file of authorities cannot be used.  The text is a sentence for the
            operator.
        """
        self._reactor = reactor
        self._trustRoot = trustRootOf(authorities)
        self._timeout = timeout

    def endpointForURI(self, uri: Any) -> Any:
        """
        See L{IAgentEndpointFactory.endpointForURI}.
        """
        host = uri.host.decode("ascii")
        endpoint = HostnameEndpoint(self._reactor, host, uri.port, timeout=self._timeout)
        if uri.scheme != b"https":
            return endpoint
        return wrapClientTLS(optionsForClientTLS(host, self._trustRoot), endpoint)


@implementer(IAgentEndpointFactory, IStreamClientEndpoint)
class _Connection:
    """
    A connection for one request.  The next request uses a new connection.  If a connection were
    kept, the server could close it at the moment when the next request is sent.  The service could
    then not know whether the server has processed the request.

    @ivar isTooMuch: whether the connection was aborted because the server has sent too much.
    """

    def __init__(self, endpoints: Any, most: int) -> None:
        """
        @param most: the most octets that the server may send.
        """
        self._endpoints = endpoints
        self._most = most
        self.isTooMuch = False
        self._endpoint: Any = None
        self._protocol: Any = None

    def endpointForURI(self, uri: Any) -> _Connection:
        """
        See L{IAgentEndpointFactory.endpointForURI}.
        """
        self._endpoint = self._endpoints.endpointForURI(uri)
        return self

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        """
        See L{IStreamClientEndpoint.connect}.
        """
        connecting: Deferred[Any] = self._endpoint.connect(protocolFactory)
        return connecting.addCallback(self._connected)

    def _connected(self, protocol: Any) -> Any:
        self._protocol = protocol
        received = protocol.dataReceived

        def dataReceived(data: bytes) -> None:
            self._most -= len(data)
            if self._most >= 0:
                received(data)
            elif not self.isTooMuch:
                self.isTooMuch = True
                self.abort()

        protocol.dataReceived = dataReceived
        return protocol

    def abort(self) -> None:
        """
        End the connection at once.  C{loseConnection} would wait for the server if the connection
        uses TLS.
        """
        if self._protocol is not None and self._protocol.transport is not None:
            self._protocol.transport.abortConnection()


# --- answers ------------------------------------------------------------------


@implementer(IAgent)
class _Plain:
    """
    An agent that refuses compressed answers.  A small compressed answer may become very large.
    """

    def __init__(self, agent: Any) -> None:
        self._agent = agent

    def request(
        self, method: bytes, uri: bytes, headers: Any = None, bodyProducer: Any = None
    ) -> Any:
        """
        See L{IAgent.request}.
        """
        headers = Headers() if headers is None else headers.copy()
        headers.setRawHeaders(b"accept-encoding", [b"identity"])
        answer: Deferred[Any] = self._agent.request(method, uri, headers, bodyProducer)
        return answer.addCallback(self._check)

    def _check(self, response: Any) -> Any:
        encodings = response.headers.getRawHeaders(b"content-encoding", [])
        if any(each.strip().lower() != b"identity" for each in encodings):
            raise HTTPUnavailable("its answer is compressed")
        return response


class _Body(Protocol):
    """
    Collects the body of an answer up to a limit.

    @ivar whole: fires with the body.
    """

    def __init__(self, largest: int) -> None:
        """
        @param largest: the most octets of the body.
        """
        self._largest = largest
        self._data = bytearray()
        self.whole: Deferred[bytes] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        """
        See L{Protocol.dataReceived}.
        """
        if self.whole.called:
            return
        if len(self._data) + len(data) > self._largest:
            self.whole.errback(HTTPUnavailable(f"its answer has more than {self._largest} octets"))
            return
        self._data += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        See L{Protocol.connectionLost}.
        """
        if self.whole.called:
            return
        # If the answer has no length, the body ends with the connection.  The check of the JSON
        # finds out whether the body is complete.
        if reason.check(ResponseDone, PotentialDataLoss):
            self.whole.callback(bytes(self._data))
        else:
            self.whole.errback(HTTPUnavailable("its answer ended early"))


def _mediaTypeOf(headers: Headers) -> str:
    found = headers.getRawHeaders(b"content-type", [b""])
    return found[-1].partition(b";")[0].strip().lower().decode("ascii", "replace")


def _reasonOf(error: BaseException) -> str:
    """
    @return: the reason why a request failed.  The reason is made from the types of the errors.  The
        texts of the errors are not used, because they may contain parts of the request or of the
        answer.
    """
    reasons = getattr(error, "reasons", None)
    inner = [each.value for each in reasons] if reasons else [error]
    name = type(inner[0]).__name__
    packages = {type(each).__module__.partition(".")[0] for each in inner}
    if packages & {"OpenSSL", "service_identity"}:
        return "TLS failed, for example because its certificate is not valid"
    return f"it cannot be reached, or ended the connection ({name})"


def bodyOf(answer: Answer, mediaType: str | None = None) -> bytes:
    """
    @param mediaType: the media type that the body must have; L{None} if any type is allowed.
    @return: the body of an answer.
    @raise HTTPUnavailable: the status is not 200, or the media type is wrong.
    """
    if answer.status != OK:
        raise HTTPUnavailable(f"it answers with the status {answer.status}")
    if mediaType not in (None, answer.mediaType):
        raise HTTPUnavailable(f"it answers with the status 200, but without {mediaType}")
    return answer.body


# --- requests -----------------------------------------------------------------


class HTTPExchange:
    """
    Sends requests to one URL.  Each request uses a new connection.
    """

    def __init__(
        self,
        url: str,
        timeout: float,
        largest: int,
        authorities: str | None = None,
        reactor: Any = None,
        endpoints: Any = None,
    ) -> None:
        """
        @param url: see L{checkURL}.
        @param timeout: the time limit of a request in seconds, from the connection to the last
            octet of the answer.
        @param largest: the most octets of a body.
        @param authorities: see L{trustRootOf}.
        @param reactor: used for connections and for the time limit; the global reactor if not
            given.
        @param endpoints: an L{IAgentEndpointFactory} that replaces the connections in tests.
        @raise ValueError: the file of authorities cannot be used.  The text is a sentence for the
            operator.
        """
        if reactor is None:
            from twisted.internet import reactor
        self._url = url
        self._reactor: Any = reactor
        self._endpoints = endpoints or _VerifiedEndpoints(reactor, authorities, timeout)
        self._timeout = timeout
        self._largest = largest

    async def ask(
        self,
        method: str,
        body: bytes = b"",
        mediaType: str | None = None,
        credentials: tuple[bytes, bytes] | None = None,
        accept: str = JSON,
    ) -> Answer:
        """
        Send one request, and wait for its answer.

        @param body: the body of the request; empty for a request without a body.
        @param mediaType: the media type of the body.
        @param credentials: a name and a password for Basic authentication (RFC 7617).
        @param accept: the media type that the answer should have.
        @raise HTTPUnavailable: no complete answer arrived in time, or the answer was too large.
        """
        headers = Headers({"Accept": [accept]})
        if mediaType is not None:
            headers.addRawHeader("Content-Type", mediaType)
        if credentials is not None:
            headers.addRawHeader(b"Authorization", b"Basic " + b64encode(b":".join(credentials)))
        try:
            exchange = self._exchange(method, headers, body)
            answer: Answer = await awaitWithTimeout(exchange, self._reactor, self._timeout)
        except HTTPUnavailable:
            raise
        except CallTimeout:
            raise HTTPUnavailable(f"no complete answer within {self._timeout:g} s") from None
        except Exception as error:
            raise HTTPUnavailable(_reasonOf(error)) from None
        return answer

    def _soon(self, call: Any) -> Any:
        return self._reactor.callLater(0, call)

    async def _exchange(self, method: str, headers: Headers, data: bytes) -> Answer:
        from treq.client import HTTPClient

        # A body that is sent in chunks has more octets than its content.
        connection = _Connection(self._endpoints, 2 * self._largest + _MOST_HEADERS)
        # Use a new client for each request, because a client of treq keeps cookies.
        client = HTTPClient(_Plain(Agent.usingEndpointFactory(self._reactor, connection)))
        producer = FileBodyProducer(BytesIO(data), Cooperator(scheduler=self._soon))
        try:
            response = await client.request(
                method,
                self._url,
                data=producer if data else None,
                headers=headers,
                allow_redirects=False,
                unbuffered=True,
            )
            if response.code != OK:
                return Answer(response.code, "", b"")
            body = _Body(self._largest)
            response.deliverBody(body)
            return Answer(OK, _mediaTypeOf(response.headers), await body.whole)
        except Exception:
            if connection.isTooMuch:
                raise HTTPUnavailable("its answer has too many octets") from None
            raise
        finally:
            connection.abort()
