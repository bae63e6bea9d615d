"""
The server that is looked at: how to connect to it, how to log in.
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

# How many replies are kept for the rules about replies; what a run makes is
# some hundreds.
_RECORDED = 20_000
# Seconds between attempts to get a mailbox that is in use.
_AGAIN = 0.5
# Which messages are read: that many, none of more octets.
_SAMPLE = 8
_LARGEST = 1024 * 1024


class NotApplicable(Exception):
    """
    A rule has nothing to look at here; the text says why.
    """


class CannotLogIn(Exception):
    """
    The login is refused.
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
    @return: what SASL PLAIN sends (RFC 4616 section 2), in base64.
    """
    return b64encode(b"\0" + user + b"\0" + password)


@dataclass
class Target:
    """
    A POP3 server, and an account on it.

    @ivar mode: C{"plain"}, C{"stls"} or C{"tls"} (from the first octet).
    @ivar connectionCreator: makes what a client's C{startTLS} takes.
    @ivar anyCertificate: the same for a server whose certificate is not verified;
        only used where the password is sent in the clear anyway.
    @ivar timeout: seconds without an answer until it is given up.
    @ivar record: the replies so far, without their bodies.
    @ivar before: the capabilities before login, where logging in is done;
        L{None} if CAPA is not there.
    @ivar after: the capabilities after login, likewise.
    @ivar probed: optional commands that are there without CAPA telling.
    @ivar noGreeting: why no session begins, L{None} if one does.
    @ivar noLogin: why no login comes about, L{None} if it does.
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
    noGreeting: str | None = None
    noLogin: str | None = None
    _open: list[Client] = field(default_factory=list)
    _shared: Client | None = None

    # --- connecting --------------------------------------------------------------

    def _seen(self, reply: Reply) -> None:
        if len(self.record) < _RECORDED:
            isMultiLine = reply.body is not None
            self.record.append(replace(reply, body=b"" if isMultiLine else None))

    async def connected(self) -> Client:
        """
        @return: a client whose connection has just been made: nothing was read.
        """
        factory = Factory.forProtocol(lambda: Client(self.reactor, self.timeout, self._seen))
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
        @return: a client that was greeted; with C{"stls"} still without TLS.
        """
        client = await self.connected()
        await client.reply(b"(the greeting)")
        return client

    async def fresh(self) -> Client:
        """
        @return: a client that was greeted and may log in.
        """
        client = await self.greeted()
        if self.mode == "stls":
            await client.accepted(b"STLS")
            await client.startTLS(self.connectionCreator())
        return client

    def forSTLS(self) -> Any:
        """
        @return: what C{startTLS} takes, for rules that ask something else of TLS than
            whether the certificate is valid: one rule finds that it is not.
        """
        if self.mode == "plain" and self.anyCertificate is not None:
            return self.anyCertificate()
        return self.connectionCreator()

    async def withSTLS(self) -> Client:
        """
        @return: a client without TLS on a server that announces STLS.
        @raise NotApplicable: it does not.
        """
        if self.mode == "tls":
            raise NotApplicable("TLS is on from the first octet")
        client = await self.greeted()
        reply = await client.say(b"CAPA", multiLine=True)
        if not reply.positive or "STLS" not in capabilities(reply):
            raise NotApplicable("STLS is not announced")
        return client

    # --- logging in --------------------------------------------------------------

    @property
    def plainResponse(self) -> bytes:
        """
        What SASL PLAIN sends (RFC 4616 section 2), in base64.
        """
        return plainResponse(self.user, self.password)

    async def tryLogIn(self, client: Client) -> Reply:
        """
        Log in once, by USER and PASS or, where only that is announced, by AUTH
        PLAIN.

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
        reply = await client.say(b"USER " + self.user)
        if not reply.positive:
            return reply
        return await client.say(b"PASS " + self.password)

    async def loggedIn(self) -> Client:
        """
        A session of its own: the shared one lets the mailbox go before.

        @raise CannotLogIn: it is refused.
        """
        await self.release()
        return await self.loggedInBeside()

    async def loggedInBeside(self) -> Client:
        """
        As L{loggedIn}, but other sessions stay.
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
            raise NotApplicable("LOGIN-DELAY keeps it from logging in again so soon")
        raise CannotLogIn(str(reply))

    async def shared(self) -> Client:
        """
        @return: the session that rules share which leave it as it was.
        """
        if self._shared is None or self._shared.lost is not None:
            self._shared = await self.loggedInBeside()
        return self._shared

    async def release(self) -> None:
        """
        End the shared session.  Without QUIT: with EXPIRE 0 that may delete
        what was read (RFC 2449 section 6.7).
        """
        client, self._shared = self._shared, None
        if client is not None:
            await client.close()

    async def closeOthers(self) -> None:
        """
        Close what a rule has opened.
        """
        closing = [client for client in self._open if client is not self._shared]
        self._open = [] if self._shared is None else [self._shared]
        for client in closing:
            await client.close()

    async def begin(self) -> None:
        """
        See whether it is there, what it announces, and whether the login is
        good.

        @raise CannotLogIn: user or password are refused.
        @raise Exception: it cannot be connected to.
        """
        client = await self.connected()
        try:
            await self._greets(client)
            client = await self.greeted()
            if self.mode == "stls":
                await client.accepted(b"STLS")
        except Broken as error:
            self.noGreeting = self.noLogin = str(error)
            return
        if self.mode == "stls":
            await client.startTLS(self.connectionCreator())
        try:
            reply = await client.say(b"CAPA", multiLine=True)
            self.before = capabilities(reply) if reply.positive else None
            client = await self.shared()
            reply = await client.say(b"CAPA", multiLine=True)
            self.after = capabilities(reply) if reply.positive else None
            if self.after is None:
                await self._probe(client)
        except Broken as error:
            self.noLogin = str(error)

    async def _greets(self, client: Client) -> None:
        """
        Does it greet, and that once?  Else nothing that follows is what it
        seems.
        """
        greeting = await client.reply(b"(the greeting)")
        expect(greeting.positive, str(greeting))
        unknown = await client.say(b"XYZZ")
        if unknown.positive:
            # Either it is content with anything, or that was no answer.
            await client.say(b"QUIT")
            rest = await client.ended()
            expect(not rest, f"{unknown}; {show(rest)} follows the answer to QUIT")

    async def _probe(self, client: Client) -> None:
        """
        Without CAPA a client has to try (RFC 2449 section 5).
        """
        for verb, command in (("UIDL", b"UIDL"), ("TOP", b"TOP 1 0")):
            if (await client.say(command, multiLine=True)).positive:
                self.probed.add(verb)

    def has(self, tag: str) -> bool:
        """
        Is this capability announced, before or after login?
        """
        return tag in (self.before or {}) or tag in (self.after or {}) or tag in self.probed

    # --- messages ----------------------------------------------------------------

    async def sizes(self, client: Client) -> dict[int, int]:
        """
        @return: what LIST says, sizes in octets by message number.
        @raise NotApplicable: there are no messages.
        """
        found = {}
        for line in (await client.fetched(b"LIST")).lines:
            try:
                number, size = line.split(b" ")[:2]
                found[int(number)] = int(size)
            except ValueError:
                raise Broken(f"LIST says {line!r}")
        if not found:
            raise NotApplicable("there are no messages")
        return found

    async def chosen(self, client: Client) -> list[int]:
        """
        @return: the numbers of some messages of at most a megabyte: the first,
            the last, the smallest and the largest of them.
        @raise NotApplicable: there are none.
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
        @return: numbers and sizes of the largest messages of at most a
            megabyte, each of another size.
        @raise NotApplicable: there are no messages.
        """
        bySize: dict[int, int] = {}
        for number, size in (await self.sizes(client)).items():
            if size <= _LARGEST:
                bySize.setdefault(size, number)
        return [(bySize[size], size) for size in sorted(bySize, reverse=True)[:most]]

    async def sample(self, client: Client) -> list[int]:
        """
        @return: those that are L{chosen}, without any that need UTF8 (RFC 6856
            section 5).
        @raise NotApplicable: there are none.
        """
        chosen = await self.chosen(client)
        if not self.has("UTF8"):
            return chosen
        sample = [
            number
            for number in chosen
            if (await client.say(b"RETR %d" % number, multiLine=True)).code != b"UTF8"
        ]
        if not sample:
            raise NotApplicable("all messages need UTF8")
        return sample
