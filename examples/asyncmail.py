r"""An asyncio program with two servers.  One of them accepts messages, and the other serves these
messages over POP3.

Run it with C{python asyncmail.py 1025 1110}.  A client can send a message for alice to the first
port.  The second port serves alice's messages::

    printf 'Subject: milk\n\nTwo bottles.\n' | nc -N 127.0.0.1 1025
    curl -u alice:secret pop3://127.0.0.1:1110/1
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import signal
import sys
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from twisted.internet import asyncioreactor, endpoints
from twisted.internet.defer import Deferred
from zope.interface import implementer

from pop3svc import POP3Factory, POP3ResponseError
from pop3svc.interfaces import (
    INewMailNotifier,
    IPOP3ConnectionInfo,
    IPOP3Mailbox,
    IPOP3MailboxProvider,
)

# The most octets of a message, and the most messages.  The messages are in memory.
LARGEST, MOST = 1_000_000, 1_000
PASSWORDS = {"alice": "secret"}


class Maildrop:
    """
    The messages of one user by unique-id, and the functions that the program calls when the
    messages change.
    """

    def __init__(self) -> None:
        self.messages: dict[str, bytes] = {}
        self.watchers: list[Callable[[], None]] = []

    def change(self, add: list[bytes], remove: list[str]) -> None:
        """
        Add and remove messages.  This method awaits nothing, so it makes all changes or none.
        """
        for uniqueID in remove:
            self.messages.pop(uniqueID, None)
        # No other message ever has the same unique-id, even after a restart.
        self.messages |= {uuid4().hex: message for message in add}
        for changed in self.watchers:
            changed()


@implementer(IPOP3Mailbox, INewMailNotifier)
class Mailbox:
    """
    A maildrop for one session.
    """

    def __init__(self, maildrop: Maildrop) -> None:
        self._maildrop = maildrop

    async def listMessageUniqueIDs(self, info: IPOP3ConnectionInfo) -> list[str]:
        return list(self._maildrop.messages)

    async def messageExists(self, info: IPOP3ConnectionInfo, uniqueID: str) -> bool:
        return uniqueID in self._maildrop.messages

    async def messageSize(self, info: IPOP3ConnectionInfo, uniqueID: str) -> int:
        raise NotImplementedError

    async def messageContent(self, info: IPOP3ConnectionInfo, uniqueID: str) -> bytes:
        if uniqueID not in self._maildrop.messages:
            raise POP3ResponseError("Message no longer exists.")
        return self._maildrop.messages[uniqueID]

    async def messageDelete(self, info: IPOP3ConnectionInfo, uniqueIDs: list[str]) -> None:
        self._maildrop.change([], uniqueIDs)

    def watchMailbox(
        self, info: IPOP3ConnectionInfo, changed: Callable[[], None]
    ) -> Callable[[], None]:
        self._maildrop.watchers.append(changed)
        return lambda: self._maildrop.watchers.remove(changed)


@implementer(IPOP3MailboxProvider)
class Provider:
    """
    Checks passwords.  It computes their hashes in threads, because hashing takes time.
    """

    name = "asyncio mail"

    def __init__(self, maildrops: dict[str, Maildrop]) -> None:
        self._maildrops = maildrops
        self._hashes = {name: self._hash(name, each) for name, each in PASSWORDS.items()}
        # Compute at most two hashes at the same time, because anybody can cause a hash by a login,
        # and each hash takes 16 MiB.
        self._two = asyncio.Semaphore(2)

    @staticmethod
    def _hash(username: str, password: str) -> bytes:
        salt, given = (each.encode("utf-8", "surrogateescape") for each in (username, password))
        return hashlib.scrypt(given, salt=salt, n=2**14, r=8, p=1)

    async def authenticate(
        self, info: IPOP3ConnectionInfo, username: str, password: str
    ) -> Mailbox | None:
        async with self._two:
            given = await asyncio.to_thread(self._hash, username, password)
        isRight = hmac.compare_digest(given, self._hashes.get(username, b""))
        return Mailbox(self._maildrops[username]) if isRight else None


async def take(maildrop: Maildrop, reader: StreamReader, writer: StreamWriter) -> None:
    """
    Deliver the message that a client sends.
    """
    message = bytearray()
    try:
        async with asyncio.timeout(30):
            while chunk := await reader.read(65536):
                message += chunk
                if len(message) > LARGEST or len(maildrop.messages) >= MOST:
                    return
        if message:
            maildrop.change([bytes(message)], [])
    except (OSError, TimeoutError):
        # The message is not complete, so do not deliver it.
        pass
    finally:
        writer.close()


async def main(takingPort: str = "1025", mailPort: str = "1110") -> None:
    loop = asyncio.get_running_loop()
    asyncioreactor.install(loop)
    # Import this module after the asyncio reactor is installed, because an earlier import installs
    # another reactor.
    from twisted.internet import reactor

    running: Any = reactor
    running.startRunning(installSignalHandlers=False)
    maildrops = {name: Maildrop() for name in PASSWORDS}
    factory = POP3Factory(Provider(maildrops))
    endpoint = endpoints.serverFromString(running, f"tcp:{mailPort}:interface=127.0.0.1")
    port = await endpoint.listen(factory).asFuture(loop)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with await asyncio.start_server(
        lambda *streams: take(maildrops["alice"], *streams), "127.0.0.1", int(takingPort)
    ):
        await stop.wait()
    await Deferred.fromCoroutine(_end(port, factory)).asFuture(loop)


async def _end(port: Any, factory: POP3Factory) -> None:
    await port.stopListening()
    await factory.shutdown()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
