"""
Check requests for pages, and answer them with the necessary headers.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from pop3svc.web.forms import fieldsIn
from pop3svc.web.guard import Guard
from pop3svc.web.markup import Child, Markup, joined, tag

__all__ = [
    "HTML",
    "Page",
    "Response",
    "addStatic",
    "field",
    "hidden",
    "layout",
    "notice",
    "redirect",
    "refusal",
]

log = Logger(namespace="pop3svc")

HTML = "text/html; charset=utf-8"
_HEADERS = (
    # Send this name, because twisted.web would send its version.
    (b"server", b"pop3svc"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        b"form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    ),
)


class Response(NamedTuple):
    """
    The answer to a request.

    @ivar kind: the media type of the body.
    @ivar location: the address to which the client is redirected; empty for no redirection.
    """

    status: int
    kind: str
    body: bytes
    location: str = ""


# A function that answers a request.  The function returns None if it has begun an answer that
# lasts, such as a stream of events.
Handle = Callable[[Any], Awaitable[Response | None]]


def layout(title: str, *children: Child, page: str = "", links: Child = None) -> Response:
    """
    Make an HTML page.

    @param page: the name of the page for the style sheet.
    @param links: the links to other pages.
    """
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title} - pop3svc"),
        tag("link", rel="stylesheet", href="style.css"),
        tag("script", src="script.js", defer=True),
    )
    header = tag(
        "header",
        tag("a", "Skip to the content", href="#content", class_="skip"),
        tag("p", "pop3svc", class_="brand"),
        tag("nav", links, aria_label="Pages"),
    )
    main = tag("main", tag("h1", title), *children, id="content", tabindex="-1")
    body = tag("body", header, main, class_=page or None)
    whole = joined(Markup("<!DOCTYPE html>\n"), tag("html", head, body, lang="en"))
    return Response(200, HTML, whole.encode("utf-8", "replace"))


def refusal(status: int, sentence: str) -> Response:
    """
    Make a page that says why a request was refused.
    """
    made = layout(
        "Nothing was changed",
        tag("p", sentence),
        tag("p", tag("a", "Back to the service", href=".")),
    )
    return made._replace(status=status)


def redirect(location: str) -> Response:
    """
    @return: the answer to a form that was carried out.  The answer is a redirection, so that a
        reload of the page does not send the form again.
    """
    return Response(303, "text/plain; charset=utf-8", b"", location)


def field(request: Any, name: str, most: int = 4096) -> str:
    """
    @return: the value of a field of a form, cut to C{most} octets; empty if the field is missing.
    """
    [value, *_] = request.args.get(name.encode("ascii"), [b""])
    return bytes(value[:most]).decode("utf-8", "replace")


def hidden(token: str, **values: str) -> Markup:
    """
    @return: hidden fields for a form: its token, and a field for each of C{values}.
    """
    return joined(
        tag("input", type="hidden", name="token", value=token),
        *(tag("input", type="hidden", name=key, value=each) for key, each in values.items()),
    )


def notice(done: str, sentences: dict[str, str]) -> Child:
    """
    @param done: a word in the address of the page, which says what was done.
    @param sentences: for each word, the sentence that the page shows.  The page never shows text
        from its address.
    """
    return tag("p", sentences[done], class_="notice", role="status") if done in sentences else None


class Page(Resource):
    """
    The resource of one address.
    """

    def __init__(
        self,
        guard: Guard,
        get: Handle | None = None,
        post: Handle | None = None,
    ) -> None:
        """
        @param get: answers GET and HEAD, without changing anything.
        @param post: carries out a form.  The function is called only if the form has the token of
            its client.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._guard = guard
        self._handlers = {b"GET": get, b"HEAD": get, b"POST": post}

    def getChild(self, path: bytes, request: Any) -> Resource:
        """
        See L{Resource.getChild}.
        """
        return Page(self._guard, _notFound)

    def render(self, request: Any) -> int:
        """
        See L{twisted.web.resource.IResource.render}.
        """
        for name, value in _HEADERS:
            request.setHeader(name, value)
        work: Deferred[Any] = Deferred.fromCoroutine(self._answer(request))
        request.notifyFinish().addErrback(lambda _: work.cancel())
        work.addErrback(lambda failure: failure.trap(CancelledError))
        return NOT_DONE_YET

    async def _answer(self, request: Any) -> None:
        try:
            response = await self._response(request)
        except CancelledError:
            # The client has disconnected.
            raise
        except Exception:
            log.failure("cannot answer a request at --web")
            response = refusal(500, "The log of the service says what failed.")
        if response is None:
            return
        request.setResponseCode(response.status)
        request.setHeader(b"content-type", response.kind.encode("ascii"))
        request.setHeader(b"content-length", b"%d" % len(response.body))
        if response.location:
            request.setHeader(b"location", response.location.encode("ascii"))
        request.write(response.body)
        request.finish()

    async def _response(self, request: Any) -> Response | None:
        guard = self._guard
        if not guard.isHostAllowed(request):
            return refusal(421, "This address does not belong to the service.")
        if not await guard.isAllowed(request):
            request.setHeader(b"www-authenticate", b'Basic realm="pop3svc", charset="UTF-8"')
            return refusal(401, "The password is missing or wrong.")
        handle = self._handlers.get(request.method)
        if handle is None:
            allowed = b", ".join(name for name, each in self._handlers.items() if each is not None)
            request.setHeader(b"allow", allowed)
            return refusal(405, "This is not possible here.")
        if request.method == b"POST":
            kind = request.getHeader(b"content-type") or b""
            # Read the fields from the body, and ignore any fields in the address.
            request.args = fieldsIn(kind, request.content.read())
            if not guard.isFromOurForm(request, field(request, "token")):
                return refusal(403, "The form is too old, or another page has sent it.")
        return await handle(request)


async def _notFound(request: Any) -> Response:
    return refusal(404, "There is no such page.")


def addStatic(root: Resource, guard: Guard) -> None:
    """
    Add the style sheet and the script.  Read both files now, because the service may have no
    permission to read them later.
    """
    directory = os.path.join(os.path.dirname(__file__), "static")
    for name, kind in (("style.css", "text/css"), ("script.js", "text/javascript")):
        with open(os.path.join(directory, name), "rb") as file:
            response = Response(200, f"{kind}; charset=utf-8", file.read())

        async def get(request: Any, response: Response = response) -> Response:
            return response

        root.putChild(name.encode("ascii"), Page(guard, get))
