"""
The playground.  In a browser, its visitors write mails, watch conversations, and talk to the
service.

The playground exists only for stores in memory, and for an embedded default whose only user is the
demonstration user, because every visitor can read all mail of such a service.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any, NamedTuple

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.web.resource import Resource

from pop3svc.delivery.recipients import Recipient, Recipients
from pop3svc.errors import DeliveryError, NoSuchUser
from pop3svc.web.conversations import Conversations, showLines
from pop3svc.web.guard import Guard
from pop3svc.web.mails import makeMail, randomMail
from pop3svc.web.markup import Markup, joined, tag
from pop3svc.web.pages import (
    HTML,
    Page,
    Response,
    field,
    hidden,
    layout,
    notice,
    redirect,
    refusal,
)
from pop3svc.web.playforms import mailForms, section, suggestions
from pop3svc.web.popclient import PlayClients
from pop3svc.web.streams import Stream, Streams, pause

__all__ = ["LARGEST_MAIL", "Playground", "Visited"]

log = Logger(namespace="pop3svc")

# The most octets of an uploaded message, and the octets of the rest of its form.
LARGEST_MAIL = 1_048_576
_REST_OF_FORM = 4096
# The most messages that the playground delivers until the service starts again, and the most octets
# of all these messages.  The limits prevent visitors from filling the memory or the disk.
_MOST_MAILS, _MOST_OCTETS = 2_000, 67_108_864
# Seconds between two updates of the page, and seconds to wait for a reply of the service.
_EVERY, _PATIENCE = 0.25, 7.0
# The most octets of a command that a visitor types.
_LONGEST = 512
_DONE = {
    "sent": "The message has arrived in the mailbox.",
    "nouser": "There is no such user.",
    "bad": "These header fields are not possible in a mail.",
    "empty": "Choose a file first.",
    "failed": "The mailbox did not take the message.",
    "many": "The playground has delivered enough mail; restart the service to go on.",
    "busy": "All connections of the playground are in use; try again in some minutes.",
}
_FAULTS = frozenset(_DONE) - {"sent"}


class Visited(NamedTuple):
    """
    The service to which the playground belongs.

    @ivar factory: L{pop3svc.service.factory.POP3Factory}
    @ivar recipients: finds users, and stores mail for them.
    @ivar store: the store of the users in C{users}.
    @ivar users: the names of users.  The first of them gets the mail unless the visitor names
        another.
    @ivar login: the name and the password of the button that logs a visitor in; L{None} for no such
        button.
    """

    factory: Any
    traces: Any
    recipients: Recipients
    store: Any
    users: tuple[str, ...]
    login: tuple[str, str] | None


class Playground:
    """
    The pages of the playground.
    """

    def __init__(self, visited: Visited, guard: Guard, reactor: Any) -> None:
        self._visited = visited
        self._guard = guard
        self._reactor = reactor
        self._clients = PlayClients(reactor, visited.factory)
        self._conversations = Conversations(visited.traces, reactor, visited.users)
        self._streams = Streams(reactor)
        self._streams.changed = self._watch
        self._update: Any = None
        # The request of each reader.  A request identifies its visitor.
        self._requests: dict[Stream, Any] = {}
        self._mails = self._octets = 0

    def addTo(self, root: Resource) -> None:
        """
        Add the pages to the root resource of a port.
        """
        guard = self._guard
        root.putChild(b"playground", Page(guard, self._page))
        root.putChild(b"conversations", Page(guard, self._begin))
        root.putChild(b"mail", Page(guard, None, self._mail))
        root.putChild(b"upload", Page(guard, None, self._upload))
        root.putChild(b"random", Page(guard, None, self._random))
        root.putChild(b"command", Page(guard, None, self._command))

    @property
    def largeBodies(self) -> dict[bytes, int]:
        """
        The paths that accept large forms, and the most octets of these forms; see
        L{pop3svc.web.server.BoundedSite}.
        """
        return {b"/upload": LARGEST_MAIL + _REST_OF_FORM}

    def stop(self) -> None:
        """
        End all connections and streams.
        """
        self._clients.closeAll()
        self._conversations.stop()

    # --- the page -------------------------------------------------------------------

    async def _page(self, request: Any) -> Response:
        self._conversations.watch()
        done = field(request, "done", 20)
        token = self._guard.token(request)
        said = notice(done, _DONE)
        if done in _FAULTS:
            said = tag("p", _DONE[done], class_="notice bad", role="alert")
        return layout(
            "Playground",
            said,
            tag(
                "p",
                "Send a mail, and read it over POP3.  All of this happens in the service itself, "
                "over real connections.",
            ),
            tag("p", id="state", class_="state", role="status", data_stream="conversations"),
            tag(
                "div",
                section(
                    "client",
                    "Talk POP3",
                    tag("div", self._showClient(request, token), id="live-client"),
                ),
                section("mail", "Send a mail", mailForms(self._visited.users, token)),
                section(
                    "talks",
                    "Conversations",
                    tag("div", self._conversations.show(), id="live-talks"),
                    isWide=True,
                ),
                class_="grid",
            ),
            page="playground",
            links=joined(
                tag("a", "Service", href="."),
                tag("a", "Playground", href="playground", aria_current="page"),
            ),
        )

    # --- the client -------------------------------------------------------------------

    def _showClient(self, request: Any, token: str) -> Markup:
        client = self._clients.of(self._guard.client(request))
        isOpen = client is not None and client.isOpen
        lines = () if client is None else client.lines
        badge = ("good", "connected") if isOpen else ("idle", "not connected")
        state = tag("span", badge[1], class_=f"badge {badge[0]}")
        talk = (
            showLines(lines) if lines else tag("p", "Click a command, or type one.", class_="empty")
        )
        command = tag(
            "p",
            tag("label", "Command", for_="line"),
            tag(
                "input",
                name="line",
                id="line",
                autocomplete="off",
                autocapitalize="off",
                spellcheck="false",
                maxlength=_LONGEST,
                placeholder="CAPA",
            ),
            " ",
            tag("button", "Send the command", class_="primary"),
            class_="row",
        )
        form = tag(
            "form",
            hidden(token),
            command,
            suggestions(self._visited.users, self._visited.login, client),
            method="post",
            action="command",
            id="talk",
        )
        return tag(
            "div",
            tag(
                "div",
                talk,
                class_="transcript",
                tabindex="0",
                role="log",
                aria_label="Your conversation",
            ),
            tag("p", state),
            form,
            id="client-panel",
            data_version=self._clients.nextVersion() if client is None else client.version,
        )

    async def _command(self, request: Any) -> Response:
        visitor = self._guard.client(request)
        done = ""
        action = field(request, "do", 20)
        if action == "random":
            user = self._visited.users[0] if self._visited.users else ""
            done = await self._deliver(user, randomMail(user))
        else:
            done = await self._talk(visitor, action, request)
        if request.getHeader(b"x-requested-with") is None:
            where = "playground" if done in ("", "sent") else f"playground?done={done}"
            return redirect(f"{where}#client")
        self._conversations.watch()
        shown = self._showClient(request, self._guard.token(request))
        if done in _FAULTS:
            shown = joined(tag("p", _DONE[done], class_="notice bad", role="alert"), shown)
        return Response(200, HTML, shown.encode("utf-8", "replace"))

    async def _talk(self, visitor: str, action: str, request: Any) -> str:
        """
        Send a command of a visitor to the service, or log the visitor in.

        @return: the key of an error in C{_DONE}; empty if there was no error.
        """
        lines = [field(request, "suggestion", _LONGEST) or field(request, "line", _LONGEST)]
        login = self._visited.login
        if action == "login" and login is not None:
            lines = [f"USER {login[0]}", f"PASS {login[1]}"]
        client = self._clients.of(visitor)
        if client is None or not client.isOpen:
            client = self._clients.connect(visitor)
            if client is None:
                return "busy"
            await self._wait(client.reply())
        for line in lines:
            # Send one line and drop the others, because each line would be a command.
            line = line.strip("\r\n").split("\n")[0].split("\r")[0]
            if line and client.isOpen and not client.isWaiting:
                client.lastUsed = self._reactor.seconds()
                await self._wait(client.say(line))
        client.hasChanged = False
        return ""

    async def _wait(self, reply: Deferred[None]) -> None:
        """
        Wait for a reply for a limited time.  The reply may still come later.
        """
        over: Deferred[None] = Deferred(lambda _: timer.cancel())
        timer = self._reactor.callLater(_PATIENCE, over.callback, None)

        def come(_: object) -> None:
            if not over.called:
                timer.cancel()
                over.callback(None)

        reply.addBoth(come)
        await over

    # --- mail ---------------------------------------------------------------------------

    async def _mail(self, request: Any) -> Response:
        user = field(request, "to", 200).strip()
        try:
            text = field(request, "text", 65_536).replace("\r\n", "\n")
            sender, subject = field(request, "from", 200), field(request, "subject", 200)
            message = makeMail(sender, user, subject, text)
        except ValueError:
            return redirect("playground?done=bad#mail")
        return await self._delivered(user, message)

    async def _upload(self, request: Any) -> Response:
        [message, *_] = request.args.get(b"file", [b""])
        if not message:
            return redirect("playground?done=empty#mail")
        if len(message) > LARGEST_MAIL:
            return refusal(413, "The message is larger than 1 MiB.")
        return await self._delivered(field(request, "to", 200).strip(), message)

    async def _random(self, request: Any) -> Response:
        user = field(request, "to", 200).strip()
        try:
            return await self._delivered(user, randomMail(user))
        except ValueError:
            return redirect("playground?done=nouser#mail")

    async def _delivered(self, user: str, message: bytes) -> Response:
        done = await self._deliver(user, message)
        return redirect(f"playground?done={done}#mail")

    async def _deliver(self, user: str, message: bytes) -> str:
        """
        @return: the key of the result in C{_DONE}.
        """
        if self._mails >= _MOST_MAILS or self._octets + len(message) > _MOST_OCTETS:
            return "many"
        self._mails += 1
        self._octets += len(message)
        visited = self._visited
        try:
            if user in visited.users:
                recipient = Recipient(user, visited.store)
            else:
                recipient = await visited.recipients.find(user)
            [error] = await visited.recipients.deliver([(recipient, b"")], BytesIO(message))
        except NoSuchUser:
            return "nouser"
        except DeliveryError:
            return "failed"
        return "sent" if error is None else "failed"

    # --- live ---------------------------------------------------------------------------

    async def _begin(self, request: Any) -> Response | None:
        self._conversations.watch()
        begun = self._streams.begin(request)
        if not isinstance(begun, Stream):
            return begun
        begun.send("talks", self._conversations.show())
        self._requests[begun] = request
        request.notifyFinish().addBoth(lambda _: self._requests.pop(begun))
        return None

    def _watch(self) -> None:
        if len(self._streams):
            self._update = Deferred.fromCoroutine(self._updateAgain())
            self._update.addErrback(_report)
        elif self._update is not None:
            update, self._update = self._update, None
            update.cancel()

    async def _updateAgain(self) -> None:
        while True:
            await pause(self._reactor, _EVERY)
            self._conversations.watch()
            if self._conversations.hasChanged:
                self._streams.send("talks", self._conversations.show())
            self._updateClients()

    def _updateClients(self) -> None:
        """
        Show visitors the lines that arrive after the answer to their forms, such as the end of a
        connection.
        """
        shown = set()
        for stream, request in self._requests.items():
            client = self._clients.of(self._guard.client(request))
            if client is not None and client.hasChanged:
                stream.send("client", self._showClient(request, self._guard.token(request)))
                shown.add(client)
        for each in shown:
            each.hasChanged = False


def _report(failure: Any) -> None:
    if not failure.check(CancelledError):
        log.failure("the playground failed", failure)
