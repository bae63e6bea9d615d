"""
The server under test: connect, log in, and choose messages.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater

from pop3svc.check.client import Broken, Client, Reply, expect, show

__all__ = ["CannotLogIn", "NotApplicable", "Target", "capabilities", "plainResponse"]

# The most replies that a target keeps for the rules about replies. A run has some hundreds of
# replies.
_RECORDED = 20_000
# Seconds between two attempts to log in while the server answers IN-USE or LOGIN-DELAY.
_AGAIN = 0.5
# The most messages that a rule reads, and the most octets of such a message.
_SAMPLE = 8
_LARGEST = 1024 * 1024


class NotApplicable(Exception):
    """
    A rule does not apply to this server; the text gives the reason.
    """


class CannotLogIn(Exception):
    """
    The server refuses the login.
    """


Capabilities = dict[str, list[str]]


def capabilities(reply: Reply) -> Capabilities:
    """
    @return: the arguments of each capability by its tag in upper case.
    """
    found: Capabilities = {}
    for line in reply.lines:
        tag, *arguments = line.decode("latin-1").split(" ")
        found.setdefault(tag.upper(), arguments)
    return found


def plainResponse(user: bytes, password: bytes) -> bytes:
    """
    @return: the response of SASL PLAIN (RFC 4616 section 2), in base64.
    """
    return b64encode(b"\0" + user + b"\0" + password)


@dataclass
class Target:
    """
    A POP3 server, and an account on it.

    @ivar mode: C{"plain"}, C{"stls"} or C{"tls"} (from the first octet).
    @ivar connectionCreator: returns an argument for a client's C{startTLS}.
    @ivar anyCertificate: returns an argument for a client's C{startTLS} that does not verify the
        certificate.  It is used only where the password would otherwise be sent without TLS.
    @ivar timeout: how many seconds to wait for an answer.
    @ivar record: the replies so far, without their bodies.
    @ivar before: the capabilities before login; L{None} if the server has no CAPA.  With C{"stls"}
        they are the capabilities inside TLS.
    @ivar after: the capabilities after login; L{None} if CAPA does not work after login.
    @ivar probed: optional commands that the server accepts without announcing them.
    @ivar greetingError: the reason why the rules cannot use the server's greeting; otherwise
        L{None}.
    @ivar loginError: the reason why the login fails; L{None} if it succeeds.
    """

    reactor: Any
    host: str
    port: int
    mode: str
    user: bytes
    password: bytes
    connectionCreator: Callable[[], Any]
    timeout: float = 10.0
    anyCertificate: Callable[[], Any] | None = None
    record: list[Reply] = field(default_factory=list)
    before: Capabilities | None = None
    after: Capabilities | None = None
    probed: set[str] = field(default_factory=set)
    greetingError: str | None = None
    loginError: str | None = None
    _open: list[Client] = field(default_factory=list)
    _shared: Client | None = None

    # --- connecting --------------------------------------------------------------

    def _recordReply(self, reply: Reply) -> None:
        if len(self.record) < _RECORDED:
            isMultiLine = reply.body is not None
            self.record.append(replace(reply, body=b"" if isMultiLine else None))

    async def connected(self) -> Client:
        """
        @return: a client with a new connection, which has read nothing.
        """
        factory = Factory.forProtocol(lambda: Client(self.reactor, self.timeout, self._recordReply))
        factory.noisy = False
        endpoint = HostnameEndpoint(self.reactor, self.host, self.port, self.timeout)
        protocol: Any = await endpoint.connect(factory)
        client: Client = protocol
        self._open.append(client)
        if self.mode == "tls":
            await client.startTLS(self.connectionCreator())
        return client

    async def greeted(self) -> Client:
        """
        @return: a client that has read the greeting.  With C{"stls"} the client has not begun TLS
            yet.
        """
        client = await self.connected()
        await client.reply(b"(the greeting)")
        return client

    async def fresh(self) -> Client:
        """
        @return: a client that has read the greeting and can log in.
        """
        client = await self.greeted()
        if self.mode == "stls":
            await client.accepted(b"STLS")
            await client.startTLS(self.connectionCreator())
        return client

    def forSTLS(self) -> Any:
        """
        @return: an argument for C{startTLS}, for rules that do not test the certificate.  A
            separate rule tests the certificate.
        """
        if self.mode == "plain" and self.anyCertificate is not None:
            return self.anyCertificate()
        return self.connectionCreator()

    async def withSTLS(self) -> Client:
        """
        @return: a client without TLS, on a server that announces STLS.
        @raise NotApplicable: TLS is on from the first octet, or the server does not announce STLS.
        """
        if self.mode == "tls":
            raise NotApplicable("TLS is on from the first octet")
        client = await self.greeted()
        reply = await client.command(b"CAPA", multiLine=True)
        if not reply.positive or "STLS" not in capabilities(reply):
            raise NotApplicable("STLS is not announced")
        return client

    # --- logging in --------------------------------------------------------------

    @property
    def plainResponse(self) -> bytes:
        """
        The response of SASL PLAIN (RFC 4616 section 2), in base64.
        """
        return plainResponse(self.user, self.password)

    async def tryLogIn(self, client: Client) -> Reply:
        """
        Try one login by USER and PASS, or by AUTH PLAIN if the server announces only AUTH PLAIN.

        @return: the answer.
        """
        before = self.before or {}
        if "USER" not in before and "PLAIN" in before.get("SASL", []):
            challenge = await client.challenge(b"AUTH PLAIN")
            if not isinstance(challenge, Reply):
                challenge = await client.challenge(self.plainResponse)
            if not isinstance(challenge, Reply):
                raise Broken("AUTH PLAIN asks twice")
            return challenge
        reply = await client.command(b"USER " + self.user)
        if not reply.positive:
            return reply
        return await client.command(b"PASS " + self.password)

    async def loggedIn(self) -> Client:
        """
        End the shared session, so that the server releases the mailbox, and log in again.

        @return: a client that is logged in.
        @raise CannotLogIn: the server refuses the login.
        """
        await self.release()
        return await self.loggedInBeside()

    async def loggedInBeside(self) -> Client:
        """
        Log in, and let the shared session go on if there is one.

        @return: a client that is logged in.
        @raise CannotLogIn: the server refuses the login.
        """
        deadline = self.reactor.seconds() + self.timeout
        while True:
            client = await self.fresh()
            reply = await self.tryLogIn(client)
            if reply.positive:
                return client
            await client.close()
            if reply.code not in (b"IN-USE", b"LOGIN-DELAY") or self.reactor.seconds() > deadline:
                break
            await deferLater(self.reactor, _AGAIN)
        if reply.code == b"LOGIN-DELAY":
            raise NotApplicable("LOGIN-DELAY forbids another login so soon")
        raise CannotLogIn(str(reply))

    async def shared(self) -> Client:
        """
        @return: the client of the shared session, for rules that do not change the state of the
            session.
        """
        if self._shared is None or self._shared.lost is not None:
            self._shared = await self.loggedInBeside()
        return self._shared

    async def release(self) -> None:
        """
        End the shared session without QUIT, because with EXPIRE 0 QUIT may delete the
        messages that were read (RFC 2449 section 6.7).
        """
        client, self._shared = self._shared, None
        if client is not None:
            await client.close()

    async def closeOthers(self) -> None:
        """
        Close the connections that a rule has opened.
        """
        closing = [client for client in self._open if client is not self._shared]
        self._open = [] if self._shared is None else [self._shared]
        for client in closing:
            await client.close()

    async def begin(self) -> None:
        """
        Connect, read the capabilities, and log in.

        @raise CannotLogIn: the server refuses the login.
        @raise Exception: the connection fails.
        """
        client = await self.connected()
        try:
            await self._checkGreeting(client)
            client = await self.greeted()
            if self.mode == "stls":
                await client.accepted(b"STLS")
        except Broken as error:
            self.greetingError = self.loginError = str(error)
            return
        if self.mode == "stls":
            await client.startTLS(self.connectionCreator())
        try:
            reply = await client.command(b"CAPA", multiLine=True)
            self.before = capabilities(reply) if reply.positive else None
            client = await self.shared()
            reply = await client.command(b"CAPA", multiLine=True)
            self.after = capabilities(reply) if reply.positive else None
            if self.after is None:
                await self._probe(client)
        except Broken as error:
            self.loginError = str(error)

    async def _checkGreeting(self, client: Client) -> None:
        """
        Check that the server sends exactly one positive greeting.  With two greetings the client
        would take each reply for the answer to the wrong command.
        """
        greeting = await client.reply(b"(the greeting)")
        expect(greeting.positive, str(greeting))
        unknown = await client.command(b"XYZZ")
        if unknown.positive:
            # Either the server accepts unknown commands, or this was a second greeting.
            await client.command(b"QUIT")
            rest = await client.ended()
            expect(not rest, f"{unknown}; {show(rest)} follows the answer to QUIT")

    async def _probe(self, client: Client) -> None:
        """
        Try the optional commands, because CAPA does not work after login (RFC 2449 section 5).
        """
        for verb, command in (("UIDL", b"UIDL"), ("TOP", b"TOP 1 0")):
            if (await client.command(command, multiLine=True)).positive:
                self.probed.add(verb)

    def has(self, tag: str) -> bool:
        """
        @return: whether the server announces a capability before or after login, or an attempt to
            use the capability has succeeded.
        """
        return tag in (self.before or {}) or tag in (self.after or {}) or tag in self.probed

    # --- messages ----------------------------------------------------------------

    async def sizes(self, client: Client) -> dict[int, int]:
        """
        @return: the sizes from LIST in octets, by message number.
        @raise NotApplicable: the mailbox is empty.
        """
        found = {}
        for line in (await client.fetched(b"LIST")).lines:
            try:
                number, size = line.split(b" ")[:2]
                found[int(number)] = int(size)
            except ValueError:
                raise Broken(f"LIST lists {line!r}")
        if not found:
            raise NotApplicable("there are no messages")
        return found

    async def chosen(self, client: Client) -> list[int]:
        """
        Choose up to eight of the messages that have at most a megabyte.  Among them are the first,
        the last, the smallest and the largest of these messages.

        @return: the numbers of the messages.
        @raise NotApplicable: no message is small enough.
        """
        sizes = await self.sizes(client)
        small = [number for number in sorted(sizes) if sizes[number] <= _LARGEST]
        if not small:
            raise NotApplicable("there are no messages of a megabyte or less")
        bySize = sorted(small, key=sizes.__getitem__)
        chosen = dict.fromkeys([small[0], small[-1], bySize[0], bySize[-1], *small])
        return sorted(list(chosen)[:_SAMPLE])

    async def largest(self, client: Client, most: int) -> list[tuple[int, int]]:
        """
        @return: the numbers and sizes of the largest messages of at most a megabyte.  No two of
            them have the same size.
        @raise NotApplicable: the mailbox is empty.
        """
        bySize: dict[int, int] = {}
        for number, size in (await self.sizes(client)).items():
            if size <= _LARGEST:
                bySize.setdefault(size, number)
        return [(bySize[size], size) for size in sorted(bySize, reverse=True)[:most]]

    async def sample(self, client: Client) -> list[int]:
        """
        @return: the numbers of the L{chosen} messages, except messages that need UTF8 (RFC 6856
            section 5).
        @raise NotApplicable: all messages need UTF8.
        """
        chosen = await self.chosen(client)
        if not self.has("UTF8"):
            return chosen
        sample = [
            number
            for number in chosen
            if (await client.command(b"RETR %d" % number, multiLine=True)).code != b"UTF8"
        ]
        if not sample:
            raise NotApplicable("all messages need UTF8")
        return sample
