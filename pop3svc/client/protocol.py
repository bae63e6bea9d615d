"""
The commands of a POP3 client (RFC 1939, 2449, 2595, 5034).
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import ISSLTransport
from twisted.python.failure import Failure

from pop3svc.client.connection import REPLY_TIMEOUT, ClientConnection
from pop3svc.client.decoding import parseRow
from pop3svc.client.failures import ClientError, CommandRefused, LoginRefused, ServerUnavailable
from pop3svc.client.logins import MECHANISMS, Login, Mechanism, PasswordLogin, choose
from pop3svc.client.message import Message
from pop3svc.files import longWork
from pop3svc.protocol.channelbinding import endPointBinding
from pop3svc.threadpool import Executor

__all__ = ["MOST_MESSAGES", "POP3Client", "Reference", "Reply"]

# The most messages of one mailbox.  Each message takes some 300 octets of memory.
MOST_MESSAGES = 500_000
# The most octets of a unique-id.  RFC 1939 section 7 allows 70 octets, but some servers have longer
# unique-ids.
LONGEST_UNIQUE_ID = 255
# The most octets of an AUTH command with an initial response (RFC 5034 section 4).
_LONGEST_AUTH = 255
# The most lines of the reply to CAPA.
_MOST_CAPABILITIES = 1000
# The most digits of a size in octets.
_LONGEST_NUMBER = 15
_STAT = re.compile(rb"([0-9]{1,9}) ([0-9]{1,15})(?: .*)?")
_CODES = ("IN-USE", "LOGIN-DELAY", "SYS/TEMP", "SYS/PERM")
_MARK = b" _"

# A message number, or a unique-id if the server has the capability UID-PARAM.
Reference = int | str


class Reply(NamedTuple):
    """
    The reply to any command.

    @ivar text: the text after C{+OK}.
    @ivar lines: the lines after the first, without dot-stuffing; L{None} for a reply of one line.
    """

    text: bytes
    lines: list[bytes] | None


class POP3Client(ClientConnection):
    """
    A connection to a POP3 server.  L{startTLS}, L{logIn} and L{quit} are coroutine functions.  The
    other methods that send commands return Deferreds, which a program may await.  The program may
    call further methods before it awaits the first result.  If the server supports PIPELINING, the
    commands are sent at once.  Otherwise each command waits for the reply to the previous one.

    The connection is aborted if a reply breaks the protocol or a limit, if a reply does not come in
    time, or if its Deferred is cancelled.  The Deferreds of all other commands that wait then fail
    with L{ServerUnavailable}.  If the server refuses a command, the Deferred of this command fails
    with L{CommandRefused}.

    @ivar capabilities: the arguments of each capability in the last reply to CAPA, by the name of
        the capability in capitals.  Empty if the server does not support CAPA.
    """

    def __init__(
        self, clock: Any, replyTimeout: float = REPLY_TIMEOUT, executor: Executor | None = None
    ) -> None:
        """
        @param clock: the clock of the time limits.
        @param replyTimeout: seconds until a reply begins, and between two pieces of a long reply.
        @param executor: runs long computations; L{None} to run them in threads.
        """
        super().__init__(clock, replyTimeout)
        self.capabilities: Mapping[str, list[str]] = {}
        self._executor = executor

    def _about(self, verb: str, reference: Reference, more: str = "", **options: Any) -> Any:
        """
        Send a command about one message.
        """
        if isinstance(reference, int):
            text = f"{verb} {reference}{more}"
        else:
            if not re.fullmatch("[!-~]+", reference):
                raise ValueError("a unique-id must be printable ASCII without spaces")
            text = f"{verb} UID:{reference}{more}"
        return self._command(text.encode("ascii"), **options)

    # --- capabilities and TLS -------------------------------------------------------

    def has(self, capability: str) -> bool:
        """
        @return: whether the last CAPA has announced a capability.
        """
        return capability in self.capabilities

    def askCapabilities(self) -> Deferred[Mapping[str, list[str]]]:
        """
        Ask for the capabilities by CAPA (RFC 2449 section 5).

        @return: the capabilities; see L{capabilities}.
        """
        found: dict[str, list[str]] = {}
        lines = 0

        def consume(line: bytes) -> None:
            nonlocal lines
            # Count the lines, because a server may list the same name again and again.
            lines += 1
            if lines > _MOST_CAPABILITIES:
                raise ValueError
            name, *arguments = line.decode("latin-1").split(" ")
            found[name.upper()] = arguments

        def done(_: object) -> Mapping[str, list[str]]:
            self.capabilities = found
            self._queue.isPipelining = "PIPELINING" in found
            return found

        def refused(failure: Failure) -> Mapping[str, list[str]]:
            failure.trap(CommandRefused)
            found.clear()
            return done(None)

        return self._command(b"CAPA", consume=consume, isAlone=True).addCallbacks(done, refused)

    async def startTLS(self, creator: Any) -> None:
        """
        Begin TLS by STLS (RFC 2595 section 4).  Afterwards the capabilities are unknown until the
        next CAPA.

        @param creator: the result of L{twisted.internet.ssl.optionsForClientTLS}, which verifies
            the certificate.
        @raise ServerUnavailable: the server refuses STLS, or sends plain text after it.
        """

        def begin(_: bytes) -> None:
            # Begin TLS here and not later.  If the same packet has further octets, they were sent
            # without TLS, and an attacker in the network may have added them.
            if not self._input.isEmpty:
                self.abort("sends plain text after STLS")
            else:
                transport: Any = self.transport
                transport.startTLS(creator)

        try:
            await self._command(b"STLS", begun=begin, isAlone=True)
        except CommandRefused:
            raise ServerUnavailable("refuses STLS")
        if self.isLost:
            raise self._lost()
        self.capabilities = {}
        self._queue.isPipelining = False

    # --- logging in -----------------------------------------------------------------

    async def logIn(self, login: Login, mechanism: str | None = None) -> str:
        """
        Log in by the best mechanism that the server offers, or by USER and PASS.  If the server
        refuses SCRAM, and the caller has not named a mechanism, the client also tries PLAIN,
        because some accounts have no keys for SCRAM.  There are three exceptions.  The client does
        not try PLAIN after a response code other than AUTH, because such a code names another
        cause.  The client does not try PLAIN after SCRAM-SHA-256-PLUS, because the refusal may mean
        that the server has noticed a man in the middle.  The client does not try PLAIN without TLS,
        because the refusal may come from an attacker who wants the password.

        @param mechanism: the name of a SASL mechanism, or C{USER} for USER and PASS; L{None} for
            the best way that the server offers.
        @return: the name of the mechanism that was used, or C{USER}.
        @raise LoginRefused: the server refused the login.
        @raise ServerUnavailable: the server does not offer the mechanism, or breaks its rules.
        """
        offered = {each.upper() for each in self.capabilities.get("SASL", ())}
        binding = self._binding() if "SCRAM-SHA-256-PLUS" in offered else None
        name = choose(login, offered, binding is not None, mechanism)
        try:
            if name is None:
                assert isinstance(login, PasswordLogin)
                await self._logInByUser(login)
                return "USER"
            try:
                await self._authenticate(name, MECHANISMS[name], login, binding)
            except CommandRefused as error:
                mayTryAgain = mechanism is None and error.code in (None, "AUTH")
                isSCRAM = name.startswith("SCRAM-") and not name.endswith("-PLUS")
                if not (isSCRAM and self._usesTLS() and "PLAIN" in offered and mayTryAgain):
                    raise
                name = "PLAIN"
                await self._authenticate(name, MECHANISMS[name], login, None)
            return name
        except CommandRefused as error:
            raise LoginRefused(error.code if error.code in _CODES else None)

    def _usesTLS(self) -> bool:
        return bool(ISSLTransport.providedBy(self.transport))

    def _binding(self) -> bytes | None:
        """
        @return: octets that identify the server's certificate (C{tls-server-end-point}); L{None}
            without TLS.
        """
        getHandle = getattr(self.transport, "getHandle", None)
        handle: Any = getHandle() if getHandle else None
        if not hasattr(handle, "get_peer_certificate"):
            return None
        certificate = handle.get_peer_certificate(as_cryptography=True)
        return None if certificate is None else endPointBinding(certificate)

    async def _logInByUser(self, login: PasswordLogin) -> None:
        name, password = (
            each.encode("utf-8", "surrogateescape") for each in (login.username, login.password)
        )
        if not self._queue.isPipelining:
            await self._command(b"USER " + name)
            await self._command(b"PASS " + password)
            return
        first, second = self._command(b"USER " + name), self._command(b"PASS " + password)
        try:
            await first
        except ClientError:
            # Ignore the error of PASS, because it follows from the error of USER.
            second.addErrback(lambda _: None)
            raise
        await second

    async def _authenticate(
        self, name: str, mechanism: Mechanism, login: Login, binding: bytes | None
    ) -> None:
        """
        Carry out a SASL exchange by AUTH (RFC 5034).
        """
        exchange = mechanism.begin(login, binding)
        message: bytes | None = next(exchange)
        assert message is not None
        line = f"AUTH {name} ".encode("ascii") + (b64encode(message) or b"=")
        if len(line) > _LONGEST_AUTH:
            challenge = await self._exchange(line[: len(name) + 5])
            if challenge is None:
                raise ServerUnavailable("accepts a login before it has begun")
            line = b64encode(message)
        while (challenge := await self._exchange(line)) is not None:
            message = await self._next(exchange, mechanism, challenge)
            if message is None:
                raise ServerUnavailable(f"answers {name} wrongly")
            line = b64encode(message)
        if await self._next(exchange, mechanism, None) is not None:
            raise ServerUnavailable(f"answers {name} wrongly")

    def _exchange(self, line: bytes) -> Deferred[bytes | None]:
        return self._command(line, mayContinue=True, isAlone=True)

    async def _next(
        self, exchange: Any, mechanism: Mechanism, challenge: bytes | None
    ) -> bytes | None:
        """
        @return: the next message of the client; L{None} at the end of the exchange.
        """

        def step() -> bytes | None:
            try:
                message: bytes = exchange.send(challenge)
                return message
            except StopIteration:
                return None

        try:
            if mechanism.isSlow and challenge is not None:
                return await (self._executor or longWork()).run(step)
            return step()
        except ServerUnavailable as error:
            # End the connection, because this server has broken the rules of the mechanism and
            # cannot be trusted.
            self.abort(str(error))
            raise

    # --- the mailbox ----------------------------------------------------------------

    def stat(self) -> Deferred[tuple[int, int]]:
        """
        @return: the number of messages, and the sum of their octets.
        """

        def parse(text: bytes) -> tuple[int, int]:
            found = _STAT.fullmatch(text)
            if found is None:
                self.abort("sends a malformed reply")
                raise self._lost()
            return int(found[1]), int(found[2])

        return self._command(b"STAT").addCallback(parse)

    def sizes(self) -> Deferred[dict[int, int]]:
        """
        @return: the size of each message in octets, by message number, as the server reports it
            (LIST).
        """
        found: dict[int, int] = {}

        def add(line: bytes) -> None:
            number, octets = parseRow(line)
            if not octets.isdigit() or len(octets) > _LONGEST_NUMBER:
                raise ValueError
            if number in found or len(found) >= MOST_MESSAGES:
                raise ValueError
            found[number] = int(octets)

        return self._command(b"LIST", consume=add).addCallback(lambda _: found)

    def uniqueIDs(self) -> Deferred[dict[int, str]]:
        """
        @return: the unique-id of each message by its number (UIDL).  A unique-id is printable
            ASCII.  A unique-id may be longer than RFC 1939 allows, and several messages may have
            the same unique-id.
        """
        found: dict[int, str] = {}

        def add(line: bytes) -> None:
            number, name = parseRow(line)
            if len(name) > LONGEST_UNIQUE_ID:
                raise ValueError
            if number in found or len(found) >= MOST_MESSAGES:
                raise ValueError
            found[number] = name.decode("ascii")

        return self._command(b"UIDL", consume=add).addCallback(lambda _: found)

    def retrieve(self, reference: Reference, octets: int = 0) -> Deferred[Message]:
        """
        Read a message (RETR).

        @param octets: the size that the server has reported; 0 if it is not known.
        @return: a Deferred of the message, which fires when the message begins to arrive.  The
            caller must call L{Message.close}.
        """
        return self._receive("RETR", reference, "", octets)

    def top(self, reference: Reference, lines: int = 0) -> Deferred[Message]:
        """
        Read the header of a message, and the first lines of its body (TOP).

        @return: the message; see L{retrieve}.
        """
        return self._receive("TOP", reference, f" {lines}", 0)

    def _receive(
        self, verb: str, reference: Reference, more: str, octets: int
    ) -> Deferred[Message]:
        def begin(_: bytes) -> None:
            self._message = Message(self, octets)

        found: Deferred[Message] = self._about(verb, reference, more, begun=begin)
        return found

    def delete(self, reference: Reference) -> Deferred[bytes]:
        """
        Mark a message for deletion at L{quit} (DELE).
        """
        found: Deferred[bytes] = self._about("DELE", reference)
        return found

    def reset(self) -> Deferred[bytes]:
        """
        Remove all marks (RSET).
        """
        return self._command(b"RSET")

    def noop(self) -> Deferred[bytes]:
        """
        Do nothing (NOOP).
        """
        return self._command(b"NOOP")

    async def quit(self) -> None:
        """
        End the session, delete the marked messages, and close the connection.

        @raise CommandRefused: the server may have deleted only some of the messages.
        @raise ServerUnavailable: the connection was lost, and any of the marked messages may have
            been deleted.
        """
        try:
            await self._command(b"QUIT", isAlone=True)
        finally:
            self._close()

    def ask(self, line: bytes) -> Deferred[Reply]:
        """
        Send any command.  If the reply has several lines, the server must have the capability
        MULTI-LINE-IND, because the first line then shows that further lines follow.

        @param line: the command without its line end.
        """
        lines: list[bytes] = []

        def begin(text: bytes) -> None:
            command = self._queue.first
            if self.has("MULTI-LINE-IND") and text.endswith(_MARK) and command is not None:
                command.consume = consume

        def consume(each: bytes) -> None:
            lines.append(each)
            if len(lines) > MOST_MESSAGES:
                raise ValueError

        def done(text: bytes) -> Reply:
            isLong = self.has("MULTI-LINE-IND") and text.endswith(_MARK)
            return Reply(text.removesuffix(_MARK), lines) if isLong else Reply(text, None)

        return self._command(line, begun=begin).addCallback(done)

    # --- the extensions of this service ---------------------------------------------

    def deleteNow(self, reference: Reference) -> Deferred[bytes]:
        """
        Delete a message at once (DELI).
        """
        found: Deferred[bytes] = self._about("DELI", reference)
        return found

    def sleep(self) -> Deferred[bytes]:
        """
        Delete the marked messages, and release the mailbox (SLEE).  The connection stays open.  If
        the server refuses the command, nothing has changed.
        """
        return self._command(b"SLEE")

    def wake(self) -> Deferred[bool]:
        """
        Take the mailbox again after L{sleep} (WAKE).  The messages get new numbers.

        @return: whether there may be new messages.
        """
        return self._command(b"WAKE").addCallback(_hasNews)

    def refresh(self) -> Deferred[bool]:
        """
        Delete the marked messages, and list the mailbox again (CORE).  The messages get new
        numbers.

        @return: whether there may be new messages.
        """
        return self._command(b"CORE").addCallback(_hasNews)


def _hasNews(text: bytes) -> bool:
    return not text.upper().startswith(b"[ACTIVITY/NONE]")
