"""
Answer requests for metrics and health checks on the port for HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from pop3svc.metrics.exposition import CONTENT_TYPE, expose
from pop3svc.metrics.numbers import readiness
from pop3svc.web.guard import Guard
from pop3svc.web.recent import Recent

__all__ = ["Answer", "makeRoot"]

log = Logger(namespace="pop3svc")

_TEXT = "text/plain; charset=utf-8"
# Seconds before a request without a password is refused.
_REFUSAL_DELAY = 1.0

# A status code, the media type of the body, and the body.
Content = tuple[int, str, bytes]


class Answer(Resource):
    """
    A resource that answers GET and HEAD, with an answer that contains no text from the request.
    """

    isLeaf = False

    def __init__(
        self, make: Callable[[], Coroutine[Any, Any, Content]], guard: Guard | None, clock: Any
    ) -> None:
        """
        @param make: makes the answer to a request.
        @param guard: checks the password; L{None} if clients need no password.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._make = make
        self._guard = guard
        self._clock = clock

    def getChild(self, path: bytes, request: Any) -> Resource:
        """
        See L{Resource.getChild}.
        """
        return _NOT_FOUND

    def render(self, request: Any) -> int | bytes:
        """
        See L{twisted.web.resource.IResource.render}.
        """
        if request.method not in (b"GET", b"HEAD"):
            request.setHeader(b"allow", b"GET, HEAD")
            return _write(request, (405, _TEXT, b"Only GET and HEAD are possible here.\n"))
        work: Deferred[Any] = Deferred.fromCoroutine(self._answer(request))
        request.notifyFinish().addErrback(lambda _: work.cancel())
        work.addErrback(lambda failure: failure.trap(CancelledError))
        return NOT_DONE_YET

    async def _answer(self, request: Any) -> None:
        guard = self._guard
        if guard is not None and not guard.isHostAllowed(request):
            # A request that names another host may come from a page of an attacker; see the
            # argument "hosts" of Guard.
            content: Content = (421, _TEXT, b"This address does not belong to the service.\n")
        elif guard is not None and not await guard.isAllowed(request):
            if not request.requestHeaders.hasHeader(b"authorization"):
                over: Deferred[None] = Deferred(lambda _: timer.cancel())
                timer = self._clock.callLater(_REFUSAL_DELAY, over.callback, None)
                await over
            request.setHeader(b"www-authenticate", b'Basic realm="pop3svc", charset="UTF-8"')
            content = (401, _TEXT, b"The password is missing or wrong.\n")
        else:
            try:
                content = await self._make()
            except CancelledError:
                # The client has disconnected.
                raise
            except Exception:
                log.failure("cannot answer a request at --web")
                content = (500, _TEXT, b"The log of the service says what failed.\n")
        request.write(_write(request, content))
        request.finish()


def _write(request: Any, content: Content) -> bytes:
    status, kind, body = content
    request.setResponseCode(status)
    request.setHeader(b"content-type", kind.encode("ascii"))
    request.setHeader(b"content-length", b"%d" % len(body))
    # Send this name, because twisted.web would send its version.
    request.setHeader(b"server", b"pop3svc")
    request.setHeader(b"x-content-type-options", b"nosniff")
    return body


class _NotFound(Resource):
    """
    The answer for a path that does not exist.
    """

    isLeaf = True

    def render(self, request: Any) -> bytes:
        return _write(request, (404, _TEXT, b"There is /metrics, /healthz and /readyz.\n"))


_NOT_FOUND = _NotFound()  # type: ignore[no-untyped-call]


class _Root(Resource):
    """
    The root of the port.
    """

    def getChild(self, path: bytes, request: Any) -> Resource:
        """
        See L{Resource.getChild}.
        """
        return _NOT_FOUND


def makeRoot(
    service: Any, guard: Guard, recent: Recent, clock: Any, hasMetrics: bool = True
) -> Resource:
    """
    @param service: L{pop3svc.metrics.numbers.ServiceNumbers} or
        L{pop3svc.metrics.numbers.WorkersNumbers}
    @param guard: checks the password for C{/metrics}.  The health checks need no password, because
        load balancers send none, and the answers reveal little.
    @param recent: collects the numbers of the service.
    @param hasMetrics: whether to answer C{/metrics}.
    @return: the root of the port, with C{/metrics}, C{/healthz} and C{/readyz}.
    """
    last: tuple[Mapping[str, Any] | None, bytes] = (None, b"")

    async def metrics() -> Content:
        nonlocal last
        numbers = await recent.get()
        if last[0] is not numbers:
            last = numbers, expose(numbers)
        return 200, CONTENT_TYPE, last[1]

    async def health() -> Content:
        if service.isAlive:
            return 200, _TEXT, b"ok\n"
        return 503, _TEXT, b"no process serves\n"

    async def ready() -> Content:
        reason = readiness(service, {}) or readiness(service, await recent.get())
        if reason:
            return 503, _TEXT, f"not ready: {reason}\n".encode("ascii")
        return 200, _TEXT, b"ready\n"

    root = _Root()  # type: ignore[no-untyped-call]
    for path, make, needed in (
        (b"metrics", metrics, guard),
        (b"healthz", health, None),
        (b"readyz", ready, None),
    ):
        if path == b"metrics" and not hasMetrics:
            continue
        root.putChild(path, Answer(make, needed, clock))
    return root
