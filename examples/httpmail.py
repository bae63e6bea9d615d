"""
Serve mail from an HTTP API, which also checks the logins.

This program needs C{pip install treq}.  Start the API in C{httpmailapi.py}, and then the service::

    python httpmailapi.py 8080
    PYTHONPATH=. twistd -n --pidfile= pop3svc --provider httpmail.HTTPMail:http://127.0.0.1:8080
"""

from __future__ import annotations

import hashlib
import json
from typing import Any
from urllib.parse import quote, urlsplit

import treq
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import (
    IBulkMessageSizes,
    IPOP3ConnectionInfo,
    IPOP3Mailbox,
    IPOP3MailboxProvider,
)
from pop3svc.listings import isUniqueID

log = Logger()

# The most seconds that a request may take, and the most octets of its answer.
TIMEOUT = 30
LARGEST = 50_000_000


class Account:
    """
    Sends the requests of one user to the API.
    """

    def __init__(self, url: str, http: Any, user: str, password: str) -> None:
        self._url = url
        self._http = http
        # Pass on the name and the password as the octets that the client has sent.
        self._auth = tuple(each.encode("utf-8", "surrogateescape") for each in (user, password))

    async def request(self, method: str, path: str, **options: Any) -> tuple[int, bytes]:
        """
        @return: the status of the answer (200, 401 or 404) and its body.
        @raise POP3ResponseError: the API does not answer, or answers with another status.
        """
        from twisted.internet import reactor

        # Deletions need this timeout, because the service does not cancel a deletion.
        answer = Deferred.fromCoroutine(self._exchange(method, path, **options))
        try:
            return await answer.addTimeout(TIMEOUT, IReactorTime(reactor))
        except Exception as error:
            log.error("{method} {path}: {error!r}", method=method, path=path, error=error)
            raise POP3ResponseError("The mail store is not available.", "SYS/TEMP")

    async def _exchange(self, method: str, path: str, **options: Any) -> tuple[int, bytes]:
        url = self._url + path
        # Follow no redirection, because it could send the password to another server.
        options |= {"auth": self._auth, "allow_redirects": False, "unbuffered": True}
        response = await self._http.request(method, url, **options)
        body = bytearray()

        def take(data: bytes) -> None:
            body.extend(data)
            if len(body) > LARGEST:
                raise ValueError("the answer is too large")

        await treq.collect(response, take)
        if response.code not in (200, 401, 404):
            raise ValueError(f"status {response.code}")
        return response.code, bytes(body)


@implementer(IPOP3Mailbox, IBulkMessageSizes)
class HTTPMailbox:
    """
    The messages of one user.
    """

    def __init__(self, account: Account) -> None:
        self._account = account
        # For each unique-id, the name that the API has for the message.
        self._names: dict[str, str] = {}

    async def _sizes(self) -> dict[str, int]:
        _, body = await self._account.request("GET", "/messages")
        sizes = {}
        for name, size in json.loads(body):
            uniqueID = name if isUniqueID(name) else hashlib.sha256(name.encode()).hexdigest()
            self._names[uniqueID] = name
            sizes[uniqueID] = size
        return sizes

    async def listMessageUniqueIDs(self, info: IPOP3ConnectionInfo) -> list[str]:
        return list(await self._sizes())

    async def messageExists(self, info: IPOP3ConnectionInfo, uniqueID: str) -> bool:
        return uniqueID in await self._sizes()

    async def messageSize(self, info: IPOP3ConnectionInfo, uniqueID: str) -> int:
        sizes = await self._sizes()
        if uniqueID not in sizes:
            raise POP3ResponseError("Message no longer exists.")
        return sizes[uniqueID]

    async def messageSizes(
        self, info: IPOP3ConnectionInfo, uniqueIDs: list[str]
    ) -> list[int | None]:
        sizes = await self._sizes()
        return [sizes.get(each) for each in uniqueIDs]

    async def messageContent(self, info: IPOP3ConnectionInfo, uniqueID: str) -> bytes:
        path = f"/messages/{quote(self._names[uniqueID], safe='')}"
        status, body = await self._account.request("GET", path)
        if status != 200:
            raise POP3ResponseError("Message no longer exists.")
        return body

    async def messageDelete(self, info: IPOP3ConnectionInfo, uniqueIDs: list[str]) -> None:
        # Send one request for all messages, because the API deletes all messages of a request or
        # none.
        names = [self._names[each] for each in uniqueIDs]
        status, _ = await self._account.request("POST", "/delete", json=names)
        if status != 200:
            raise POP3ResponseError("Cannot delete messages.", "SYS/TEMP")


@implementer(IPOP3MailboxProvider)
class HTTPMail:
    """
    Passes each login on to the API.
    """

    name = "HTTP mail"

    def __init__(self, url: str, http: Any = treq) -> None:
        """
        @param http: an object with the functions of treq, for tests.
        @raise ValueError: the address is not safe; the text is a sentence for the operator.
        """
        found = urlsplit(url)
        if found.scheme != "https" and found.hostname not in ("127.0.0.1", "::1", "localhost"):
            raise ValueError(f"{url} is not https, so passwords would be sent in the clear")
        self._url = url.rstrip("/")
        self._http = http

    async def authenticate(
        self, info: IPOP3ConnectionInfo, username: str, password: str
    ) -> HTTPMailbox | None:
        if ":" in username:
            # Refuse a name with a colon, because HTTP takes the text after the first colon as the
            # password.
            return None
        account = Account(self._url, self._http, username, password)
        status, _ = await account.request("GET", "/messages")
        return HTTPMailbox(account) if status == 200 else None
