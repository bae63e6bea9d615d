"""
The operator's page.  The page shows the results of admin operations, and its forms carry out such
operations.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.web.resource import Resource

from pop3svc.admin.operations import Handler, OperationError
from pop3svc.web.guard import Guard
from pop3svc.web.history import History
from pop3svc.web.markup import Child, Markup, joined, tag
from pop3svc.web.pages import (
    Page,
    Response,
    addStatic,
    field,
    hidden,
    layout,
    notice,
    redirect,
    refusal,
)
from pop3svc.web.recent import Recent
from pop3svc.web.streams import Stream, Streams, pause
from pop3svc.web.views import (
    showActivity,
    showBans,
    showCertificates,
    showCharts,
    showServers,
    showSessions,
    showSummary,
    showWorkers,
)

__all__ = ["OperatorPage"]

log = Logger(namespace="pop3svc")

# The most sessions that the page shows, and the most bans.  With this limit the page takes only
# some milliseconds to make.
_MOST = 100
# The most events that the page shows.
_EVENTS = 50
# The least number of seconds between two updates of an open page.  After an update, the pause is
# also at least _PAUSE times as long as the update took.  An open page therefore takes only a small
# part of the time of a large service.
_EVERY, _PAUSE = 0.5, 20
# Seconds between two updates of the bans, because there may be tens of thousands of bans.
_BANS_EVERY = 5.0
# Seconds from a failed request for events to the next request.
_AGAIN = 5.0

# For each part of the page, its name, its title, and whether it has the whole width of the page.
_PARTS = (
    ("summary", "Now", True),
    ("charts", "The last hour", True),
    ("sessions", "Sessions", True),
    ("activity", "Sleepers, wakes and logins", True),
    ("bans", "Bans", False),
    ("certificates", "Certificates", False),
    ("servers", "Stores and sources of accounts", False),
    ("workers", "Workers", False),
)

_DONE = {
    "kicked": "The session has ended.",
    "gone": "There was no such session any more.",
    "lifted": "The ban is lifted.",
    "nothing": "There was nothing to lift.",
    "draining": "The service admits no more logins, and ends when nobody is logged in.",
}


class OperatorPage:
    """
    The pages that show the service to its operator, and the forms on these pages.

    @ivar history: the counts of the last hour.  The history is a service of Twisted, which the
        caller starts and stops.
    """

    def __init__(
        self,
        handler: Handler,
        collect: Callable[[], Awaitable[Mapping[str, Any]]],
        guard: Guard,
        clock: Any,
        links: Child = None,
    ) -> None:
        """
        @param handler: carries out admin operations.
        @param collect: returns L{pop3svc.metrics.declarations.Numbers}.
        @param links: the links to other pages.
        """
        self._handler = handler
        self._collect = collect
        self._guard = guard
        self._clock = clock
        self._links = links
        self.history = History(collect, clock)
        # All pages share one update, because each update counts all sessions.
        self._looks = Recent(self._look, clock, _EVERY / 2)
        self._bans = Recent(self._askBans, clock, _BANS_EVERY)
        self._streams = Streams(clock)
        self._streams.changed = self._watch
        self._events: deque[Mapping[str, Any]] = deque(maxlen=_EVENTS)
        self._shown: dict[str, Markup] = {}
        self._watching: list[Deferred[Any]] = []

    def addTo(self, root: Resource) -> None:
        """
        Add the pages to the root resource of a port.
        """
        guard = self._guard
        addStatic(root, guard)
        root.putChild(b"", Page(guard, self._page))
        root.putChild(b"events", Page(guard, self._begin))
        root.putChild(b"kick", Page(guard, self._confirmKick, self._kick))
        root.putChild(b"lift", Page(guard, None, self._lift))
        root.putChild(b"drain", Page(guard, self._confirmDrain, self._drain))

    # --- the page -----------------------------------------------------------------

    async def _some(self, name: str) -> tuple[list[Any], bool]:
        """
        Ask for the first items of a long answer.

        @return: the items, and whether there are more.
        """
        items: list[Any] = []
        full: Deferred[None] = Deferred()

        def send(more: list[Any]) -> Deferred[None] | None:
            items.extend(more)
            if len(items) <= _MOST:
                return None
            if not full.called:
                full.callback(None)
            # This Deferred never fires, so no further items are sent, because the page has no room
            # for them.
            return Deferred()

        asked = Deferred.fromCoroutine(self._handler.do(name, {}, send))
        failures: list[Any] = []
        ended: Deferred[None] = Deferred(lambda _: asked.cancel())
        asked.addErrback(failures.append)
        for each in (asked, full):
            each.addCallback(lambda _: None if ended.called else ended.callback(None))
        await ended
        if full.called:
            asked.cancel()
            return items[:_MOST], True
        if failures:
            failures[0].raiseException()
        return items, False

    async def _look(self) -> dict[str, Markup]:
        """
        @return: the parts of the page with the present facts, by their names.
        """
        numbers = await self._collect()
        sessions, isMore = await self._some("who")
        status = await self._handler.do("status", {}, _ignore)
        bans = await self._bans.get()
        return {
            "summary": showSummary(status, numbers),
            "charts": showCharts(self.history.minutes(numbers)),
            "sessions": showSessions(sessions, isMore),
            "activity": showActivity([*reversed(self._events)]),
            "bans": showBans(bans[:_MOST], len(bans) > _MOST),
            "certificates": showCertificates(status, time.time()),
            "servers": showServers(status),
            "workers": showWorkers(status),
        }

    async def _askBans(self) -> Any:
        return await self._handler.do("bans", {}, _ignore)

    def _hasChanged(self) -> None:
        """
        Collect all facts again for the next page, because a form has changed some of them.
        """
        self._looks.forget()
        self._bans.forget()

    async def _page(self, request: Any) -> Response:
        try:
            parts = await self._looks.get()
        except OperationError as error:
            return refusal(503, str(error))
        token = self._guard.token(request)
        sections = [
            tag(
                "section",
                tag("h2", title, id=f"{name}-title"),
                tag("div", parts[name], id=f"live-{name}", class_="live"),
                aria_labelledby=f"{name}-title",
                class_="wide" if isWide else None,
            )
            for name, title, isWide in _PARTS
        ]
        return layout(
            "Service",
            notice(field(request, "done"), _DONE),
            tag("p", "Live", id="state", class_="state", role="status", data_stream="events"),
            # The button of each ban belongs to this form, which has the token.  The parts of the
            # page that are updated therefore need no token.
            tag("form", hidden(token), id="lift", method="post", action="lift"),
            tag("div", *sections, class_="grid"),
            tag("p", tag("a", "Drain the service", href="drain", class_="action danger")),
            page="operator",
            links=joined(tag("a", "Service", href=".", aria_current="page"), self._links),
        )

    # --- live ---------------------------------------------------------------------

    async def _begin(self, request: Any) -> Response | None:
        begun = self._streams.begin(request)
        if not isinstance(begun, Stream):
            return begun
        for name, part in self._shown.items():
            begun.send(name, part)
        return None

    def _watch(self) -> None:
        """
        Watch the service as long as somebody reads the page.
        """
        if len(self._streams):
            self._watching = [
                Deferred.fromCoroutine(each) for each in (self._lookAgain(), self._hearActivity())
            ]
            for each in self._watching:
                each.addErrback(_report)
            return
        watching, self._watching = self._watching, []
        for each in watching:
            each.cancel()
        self._shown.clear()

    async def _lookAgain(self) -> None:
        while True:
            began = self._clock.seconds()
            try:
                parts = await self._looks.get()
            except OperationError as error:
                parts = {"sessions": tag("p", str(error), class_="empty")}
            except CancelledError:
                # Nobody reads the page any more.
                raise
            except Exception:
                log.failure("cannot look at the service")
                await pause(self._clock, _AGAIN)
                continue
            for name, part in parts.items():
                if self._shown.get(name) != part:
                    self._shown[name] = part
                    self._streams.send(name, part)
            took = self._clock.seconds() - began
            await pause(self._clock, max(_EVERY, took * _PAUSE))

    async def _hearActivity(self) -> None:
        """
        Request events again and again, because each request lasts only for some time.
        """
        while True:
            try:
                await self._handler.do("activity", {"seconds": "30"}, self._heard)
            except OperationError:
                await pause(self._clock, _AGAIN)

    def _heard(self, events: list[Any]) -> None:
        if events:
            self._events.extend(events)
            part = self._shown["activity"] = showActivity([*reversed(self._events)])
            self._streams.send("activity", part)

    # --- forms ----------------------------------------------------------------------

    def _confirm(self, request: Any, title: str, sentence: str, button: Markup) -> Response:
        form = tag(
            "form",
            tag("p", sentence),
            hidden(self._guard.token(request)),
            tag("p", button, " ", tag("a", "Cancel", href=".", class_="action")),
            method="post",
        )
        return layout(title, form, links=tag("a", "Service", href="."))

    async def _confirmKick(self, request: Any) -> Response:
        target = field(request, "session", 100)
        if not target:
            return refusal(400, "No session is named.")
        button = tag(
            "button", "Kick", name="session", value=target, class_="action danger", autofocus=True
        )
        sentence = f"End session {target} at once?  Messages that are marked are not deleted."
        return self._confirm(request, "Kick a session", sentence, button)

    async def _kick(self, request: Any) -> Response:
        target = field(request, "session", 100)
        if not all(part.isascii() and part.isdigit() for part in target.split(".")):
            return refusal(400, "No session is named.")
        # Say that the target is a session.  If the target were taken for the name of a user, all
        # sessions of this user would end.
        arguments = {"target": target, "only": "session"}
        count = await self._handler.do("kick", arguments, _ignore)
        self._hasChanged()
        return redirect("./?done=kicked" if count else "./?done=gone")

    async def _lift(self, request: Any) -> Response:
        try:
            isLifted = await self._handler.do(
                "lift", {"target": field(request, "target", 100)}, _ignore
            )
        except OperationError as error:
            return refusal(400, str(error))
        self._hasChanged()
        return redirect("./?done=lifted" if isLifted else "./?done=nothing")

    async def _confirmDrain(self, request: Any) -> Response:
        sentence = (
            "Admit no more logins?  The service ends when its last session has ended, or after the "
            "drainTimeout.  This cannot be undone."
        )
        button = tag("button", "Drain", class_="action danger", autofocus=True)
        return self._confirm(request, "Drain the service", sentence, button)

    async def _drain(self, request: Any) -> Response:
        await self._handler.do("drain", {}, _ignore)
        self._hasChanged()
        return redirect("./?done=draining")


def _ignore(items: list[Any]) -> None:
    """
    Take the items of an operation that sends none.
    """


def _report(failure: Any) -> None:
    if not failure.check(CancelledError):
        log.failure("watching the service failed", failure)
