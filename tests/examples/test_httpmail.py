"""
The example of a mailbox behind an HTTP API.
"""

from __future__ import annotations

import poplib
import unittest
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpmail
import pytest
from httpmail import Account, HTTPMail, HTTPMailbox
from httpmailapi import API
from treq.testing import StubTreq
from twisted.internet.defer import Deferred
from twisted.web.server import NOT_DONE_YET

from pop3svc.errors import POP3ResponseError
from pop3svc.testing import MailboxContract
from tests.examples.serving import logIn, messages, program, service, untilOpen
from tests.support.running import freePort

URL = "http://127.0.0.1"


class HTTPMailboxTests(MailboxContract, unittest.TestCase):
    def makeMailbox(self, messages: list[bytes]) -> Any:
        # POP3 does not allow the second name as a unique-id.
        names = ("1", "a message/2?", "3", "4")
        self.api = API(dict(zip(names, messages, strict=False)))
        self.http: Any = StubTreq(self.api)
        return self.again()

    def again(self) -> Any:
        return HTTPMailbox(Account(URL, self.http, "alice", "secret"))

    def deliver(self, message: bytes) -> str:
        name = f"late {len(self.api.messages)}"
        self.api.messages[name] = message
        return sha256(name.encode()).hexdigest()

    def remove(self, uniqueID: str) -> None:
        found = self.api.messages
        del found[uniqueID if uniqueID in found else "a message/2?"]

    def failDeletion(self) -> None:
        def fail(request: Any) -> bytes:
            request.setResponseCode(503)
            return b""

        self.api.delete = fail  # type: ignore[method-assign]

    def goOn(self) -> None:
        self.http.flush()


def login(resource: Any, name: str = "alice", password: str = "secret") -> Deferred[Any]:
    http: Any = StubTreq(resource)
    found = Deferred.fromCoroutine(HTTPMail(URL, http).authenticate(None, name, password))  # type: ignore[arg-type]
    http.flush()
    return found


def result(deferred: Deferred[Any]) -> Any:
    got: list[Any] = []
    deferred.addBoth(got.append)
    return got[0]


def test_logins() -> None:
    assert isinstance(result(login(API({}))), HTTPMailbox)
    assert result(login(API({}), password="wrong")) is None
    assert result(login(API({}), name="alice:x")) is None


def test_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    If the API does not work, a login fails with SYS/TEMP, and not as with a wrong password.
    """

    class Broken(API):
        def get(self, request: Any) -> bytes:
            request.setResponseCode(500)
            return b""

    class Redirecting(API):
        def get(self, request: Any) -> bytes:
            request.redirect(b"http://elsewhere.invalid/")
            return b""

    monkeypatch.setattr(httpmail, "LARGEST", 5)
    for resource in (Broken({}), Redirecting({}), API({"name": b""})):
        error = result(login(resource)).value
        assert isinstance(error, POP3ResponseError) and error.code == "SYS/TEMP"


def test_noAnswer() -> None:
    """
    If the service cancels a login that waits for the API, the login fails.
    """

    class Silent(API):
        def get(self, request: Any) -> Any:
            return NOT_DONE_YET

    waiting = login(Silent({}))
    waiting.cancel()
    assert isinstance(result(waiting).value, POP3ResponseError)


def test_insecure() -> None:
    with pytest.raises(ValueError, match="in the clear"):
        HTTPMail("http://mail.example.org/api")


def test_served(tmp_path: Path) -> None:
    port = freePort()
    provider = f"httpmail.HTTPMail:http://127.0.0.1:{port}"
    with program(tmp_path, "httpmailapi.py", str(port)):
        untilOpen(port)
        with service(tmp_path, "--provider", provider) as pop3:
            client = logIn(pop3, "alice", "secret")
            assert messages(client)[1] == b"Subject: rent\n\nDue on Friday.\n"
            assert client.list()[1] == [b"1 31", b"2 33"]
            client.dele(2)
            client.quit()
            client = logIn(pop3, "alice", "secret")
            assert client.uidl()[1] == [b"1 milk"]
            client.quit()
            with pytest.raises(poplib.error_proto, match="AUTH"):
                logIn(pop3, "alice", "wrong")
