"""
A POP3 server and a web server in one program.  A user writes a message in a browser, and a mail
program fetches the message.

Run it with C{python webmail.py 8080 1110}.  Open http://127.0.0.1:8080/ and send a message.  Then
read the message with C{curl -u alice:secret pop3://127.0.0.1:1110/1}.
"""

from __future__ import annotations

import sys
from email.message import EmailMessage
from email.policy import SMTP
from html import escape
from typing import Any
from uuid import uuid4

from twisted.internet import endpoints, task
from twisted.internet.defer import Deferred
from twisted.logger import globalLogBeginner, textFileLogObserver
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from pop3svc import POP3Factory
from pop3svc.providers.memory import MemoryMaildrop, MemoryProvider

# The most octets of a message, and the most messages.  The messages are in memory.
LARGEST, MOST = 100_000, 1_000

PAGE = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>Mail</title>
<p>{answer} {count} messages wait.</p>
<form method="post">
<p><input name="subject" maxlength="200" placeholder="Subject"></p>
<p><textarea name="text"></textarea></p>
<p><button>Send</button></p>
</form></html>
"""


def makeMessage(subject: str, text: str) -> bytes:
    """
    @raise ValueError: the subject or the text is not allowed in a message.
    """
    message = EmailMessage(SMTP)
    message["From"] = message["To"] = "alice@localhost"
    message["Subject"] = subject
    message.set_content(text)
    return message.as_bytes()


class MailPage(Resource):
    """
    A form that delivers a message.
    """

    isLeaf = True

    def __init__(self, maildrop: MemoryMaildrop) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._maildrop = maildrop

    def _show(self, request: Request, status: int, answer: str = "") -> bytes:
        request.setResponseCode(status)
        request.setHeader("content-type", "text/html; charset=utf-8")
        page = PAGE.format(answer=escape(answer), count=len(self._maildrop.messages))
        return page.encode()

    def render_GET(self, request: Request) -> bytes:
        return self._show(request, 200)

    def render_POST(self, request: Request) -> bytes:
        arguments: dict[bytes, list[bytes]] = request.args or {}
        subject, text = (arguments.get(name, [b""])[0] for name in (b"subject", b"text"))
        if len(subject) + len(text) > LARGEST or len(self._maildrop.messages) >= MOST:
            return self._show(request, 413, "This is too much.")
        try:
            message = makeMessage(subject.decode(), text.decode())
        except ValueError:
            return self._show(request, 400, "This cannot be sent.")
        # Do not call add() of the maildrop, because its unique-ids begin with message-1 at each
        # start of the program.  A client would then take a new message for a message that it has
        # fetched.
        self._maildrop.messages[uuid4().hex] = message
        return self._show(request, 200, "The message is sent.")


async def main(reactor: Any, webPort: str = "8080", mailPort: str = "1110") -> None:
    provider = MemoryProvider({"alice": "secret"})
    pop3 = POP3Factory(provider)
    web = Site(MailPage(provider.store.maildrop("alice")))
    for factory, port in ((web, webPort), (pop3, mailPort)):
        endpoint = endpoints.serverFromString(reactor, f"tcp:{port}:interface=127.0.0.1")
        await endpoint.listen(factory)
    # At Ctrl-C, end the sessions before the reactor stops.
    reactor.addSystemEventTrigger(
        "before", "shutdown", lambda: Deferred.fromCoroutine(pop3.shutdown())
    )
    await Deferred()


if __name__ == "__main__":
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)])
    task.react(main, sys.argv[1:])
