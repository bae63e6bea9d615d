"""
Show the conversations of all sessions in a page.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from pop3svc.admin.sessions import idOf
from pop3svc.web.explanations import explain
from pop3svc.web.markup import Markup, joined, tag

__all__ = ["Conversations", "Line", "showLines"]

log = Logger(namespace="pop3svc")

# The most sessions that are shown, and the most lines of each session.
_SESSIONS, _LINES = 8, 40


class Line(NamedTuple):
    """
    A line of a conversation.

    @ivar side: C{C} for the client, C{S} for the server, or C{-} for a remark.
    """

    side: str
    text: str


def showLines(lines: Collection[Line]) -> Markup:
    """
    @return: the lines as a list.  An explanation stands below the first line that it explains.
    """
    rows = []
    explained: set[str] = set()
    for side, text in lines:
        notes = [each for each in explain(side, text) if each not in explained]
        explained.update(notes)
        prefix = tag("span", f"{side}:", class_="side") if side != "-" else None
        css = {"C": "client", "S": "server"}.get(side, "remark")
        rows.append(
            tag(
                "li",
                tag("code", prefix, " " if prefix else None, text),
                *(tag("p", each, class_="note") for each in notes),
                class_=css,
            )
        )
    return tag("ol", *rows, class_="talk")


class _Conversation:
    def __init__(self, name: str) -> None:
        self.name = name
        self.user: str | None = None
        self.isOver = False
        self.lines: deque[Line] = deque(maxlen=_LINES)


class Conversations:
    """
    Listens to all sessions while somebody looks at the playground.

    @ivar hasChanged: whether lines have come or connections have ended since the last call of
        L{show}.
    """

    # Seconds from the last call of L{watch} until this object stops listening.
    LINGER = 600.0

    def __init__(self, traces: Any, clock: Any, users: Collection[str]) -> None:
        """
        @param traces: L{pop3svc.admin.traces.Traces}
        @param users: the names that are shown when a client sends them.  Other names are hidden,
            because a client may have sent a password as a name by mistake.
        """
        self._traces = traces
        self._clock = clock
        self._users = frozenset(users)
        self._found: dict[Any, _Conversation] = {}
        self._timer: Any = None
        self.hasChanged = False

    def watch(self) -> None:
        """
        Listen to the sessions for some time from now on.
        """
        if self._timer is not None:
            self._timer.reset(self.LINGER)
            return
        self._timer = self._clock.callLater(self.LINGER, self.stop)
        begun: Deferred[None] = Deferred.fromCoroutine(self._traces.begin(self))
        begun.addErrback(lambda failure: log.failure("cannot hear the sessions", failure))

    def stop(self) -> None:
        """
        Stop listening.
        """
        if self._timer is None:
            return
        if self._timer.active():
            self._timer.cancel()
        self._timer = None
        self._traces.end(self)
        self._found.clear()

    # --- as a listener of traces ------------------------------------------------------

    def mayMatch(self, connection: Any) -> bool:
        """
        See L{pop3svc.admin.traces.Listener.mayMatch}.
        """
        return True

    def hear(self, connection: Any, heard: Any) -> None:
        """
        See L{pop3svc.admin.traces.Listener.hear}.
        """
        found = self._found.pop(connection, None)
        if found is None:
            found = _Conversation(idOf(connection, 0))
        # Put the conversation at the end, because the one with the latest line comes last.
        self._found[connection] = found
        if len(self._found) > _SESSIONS:
            del self._found[next(iter(self._found))]
        found.user = connection.session.record.user or found.user
        text = heard.named if heard.name in self._users else heard.text
        found.lines.append(Line(heard.side, text))
        self.hasChanged = True

    def ended(self, connection: Any) -> None:
        """
        See L{pop3svc.admin.traces.Listener.ended}.
        """
        found = self._found.pop(connection, None)
        if found is not None:
            found.isOver = True
            # Use another key, so that the dictionary does not keep the connection in memory.
            self._found[object()] = found
        self.hasChanged = True

    def show(self) -> Markup:
        """
        @return: the conversations.  The one with the latest line comes first.
        """
        self.hasChanged = False
        if not self._found:
            return tag(
                "p",
                "Nobody talks to the service now. Begin above, or with a mail program.",
                class_="empty",
            )
        return joined(*(self._one(each) for each in reversed(self._found.values())))

    @staticmethod
    def _one(found: _Conversation) -> Markup:
        state = "ended" if found.isOver else "connected"
        badge = tag("span", state, class_="badge " + ("idle" if found.isOver else "good"))
        who = found.user or "not logged in"
        title = tag("h3", f"Session {found.name}, {who} ", badge)
        return tag("article", title, showLines(found.lines), id=f"talk-{found.name}")
