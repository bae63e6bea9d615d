"""
A small HTTP API with mail, for C{httpmail.py}.  It has two messages of the user alice, whose
password is secret.

Run it with C{python httpmailapi.py 8080}.

    - C{GET /messages} returns a list in JSON, with the oldest message first.  For each message the
      list has a pair: the name, and the size with CRLF as line ends.
    - C{GET /messages/NAME} returns a message.
    - C{POST /delete} with a list of names in JSON deletes all these messages or none.
"""

from __future__ import annotations

import json
import sys
from typing import Any
from urllib.parse import unquote_to_bytes

from twisted.internet import endpoints, task
from twisted.internet.defer import Deferred
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from pop3svc.lineendings import WireSizeCounter

LOGIN = (b"alice", b"secret")


def sizeOf(message: bytes) -> int:
    """
    @return: the number of octets of a message as POP3 sends it.
    """
    counter = WireSizeCounter()
    counter.feed(message)
    return counter.total()


class API(Resource):
    """
    The messages of one user, by name.
    """

    isLeaf = True

    def __init__(self, messages: dict[str, bytes]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.messages = messages

    def render(self, request: Request) -> bytes:
        """
        Answer a request, or refuse it if its user name or password is wrong.
        """
        methods = {b"GET": self.get, b"POST": self.delete}
        if (request.getUser(), request.getPassword()) != LOGIN:
            request.setResponseCode(401)
        elif request.method not in methods:
            request.setResponseCode(405)
        else:
            return methods[request.method](request)
        return b""

    def get(self, request: Request) -> bytes:
        if request.path == b"/messages":
            sizes = [(name, sizeOf(message)) for name, message in self.messages.items()]
            return json.dumps(sizes).encode()
        name = unquote_to_bytes(request.path.removeprefix(b"/messages/")).decode()
        if name not in self.messages:
            request.setResponseCode(404)
        return self.messages.get(name, b"")

    def delete(self, request: Request) -> bytes:
        content: Any = request.content
        for name in json.load(content):
            self.messages.pop(name, None)
        return b""


async def main(reactor: Any, port: str = "8080") -> None:
    mail = {
        "milk": b"Subject: milk\n\nTwo bottles.\n",
        "rent, due": b"Subject: rent\n\nDue on Friday.\n",
    }
    endpoint = endpoints.serverFromString(reactor, f"tcp:{port}:interface=127.0.0.1")
    await endpoint.listen(Site(API(mail)))
    # Serve until Ctrl-C.
    await Deferred()


if __name__ == "__main__":
    task.react(main, sys.argv[1:])
