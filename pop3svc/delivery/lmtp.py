"""
Receive mail by LMTP (RFC 2033), on Twisted's SMTP protocol.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Coroutine
from functools import partial
from itertools import count
from tempfile import SpooledTemporaryFile
from typing import Any, NamedTuple, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import Protocol, ServerFactory
from twisted.logger import Logger
from twisted.mail.smtp import rfc822date
from twisted.python.failure import Failure

from pop3svc.awaiting import CallTimeout, awaitWithTimeout, callWithTimeout
from pop3svc.delivery.dataphase import DataPhase
from pop3svc.delivery.envelope import BadPath, Path, Trace, parsePath, traceLine
from pop3svc.delivery.recipients import Recipient, Recipients
from pop3svc.delivery.serial import Endless, SerialSMTP
from pop3svc.errors import (
    DeliveryError,
    MalformedMessage,
    MessageTooLarge,
    POP3ResponseError,
    StoreUnavailable,
)
from pop3svc.files import disk
from pop3svc.policy import Policy
from pop3svc.threadpool import Executor

__all__ = ["SPOOLED", "LMTPFactory", "LMTPProtocol"]

log = Logger(namespace="pop3svc")

# The most octets of a message that are kept in memory.  A larger message goes to a temporary file.
SPOOLED = 262_144
# Seconds within which a cancelled delivery must report which copies it has stored.
_PATIENCE = 10

_HELO = re.compile(rb"[!-~]{1,255}")

# The reply codes for some enhanced status codes (RFC 3463).  For any other status code, its class
# determines the reply code.
_CODES = {"4.2.2": 452, "5.2.2": 552, "5.3.4": 552, "5.1.1": 550, "5.6.0": 550}

_ids = count(1)


class _Accepted(NamedTuple):
    """
    A recipient that the server has accepted.
    """

    path: Path
    recipient: Recipient


class _Transfer:
    """
    A message while it arrives.

    @ivar error: the reason why the message will be refused at its end; L{None} if there is none.
        The octets of such a message are not kept.
    """

    def __init__(self, limit: int, executor: Executor) -> None:
        """
        @param limit: the most octets that a message may have.
        """
        self.phase = DataPhase()
        self.trace = Trace()
        self.size = 0
        self.error: DeliveryError | None = None
        self.content: Any = SpooledTemporaryFile(SPOOLED)  # noqa: SIM115 (closed by close())
        self._limit = limit
        self._executor = executor
        self._dropped = 0

    async def write(self, block: bytes) -> None:
        """
        @param block: the next octets of the message.
        @raise Endless: far more octets have come than a message may have.
        """
        if self.error is None:
            self.size += len(block)
            if self.phase.hasBareLineEnd:
                self._refuse(MalformedMessage("Bare CR or LF is not allowed."))
            elif self.size > self._limit:
                self._refuse(MessageTooLarge("The message is too large."))
        if self.error is not None:
            self._dropped += len(block)
            if self._dropped > self._limit:
                raise Endless
            return
        self.trace.feed(block)
        if self.size <= SPOOLED:
            self.content.write(block)
            return
        try:
            await self._executor.run(self.content.write, block)
        except (OSError, POP3ResponseError) as error:
            log.error("cannot keep an arriving message: {error}", error=str(error))
            self._refuse(StoreUnavailable("There is no room for the message now."))

    def _refuse(self, error: DeliveryError) -> None:
        self.error = error
        self.close()

    def close(self) -> None:
        """
        Release the memory or the file with the octets.
        """
        self.content.close()


class LMTPProtocol(SerialSMTP):
    """
    The server's side of a connection.  The class sends a reply for each recipient, and refuses a CR
    or an LF that is not part of CRLF.  It writes a message to a file instead of passing each line
    to an object.
    """

    def __init__(self, factory: LMTPFactory, address: IAddress | None) -> None:
        super().__init__(factory.clock, factory.policy, factory.host)
        self.factory = factory
        self._client = getattr(address, "host", None) or "local"
        self._greeted: str | None = None
        self._sender: Path | None = None
        self._isUTF8 = False
        self._accepted: list[_Accepted] = []
        self._transfer: _Transfer | None = None

    def connectionLost(self, reason: Failure | None = None) -> None:
        """
        See L{SerialSMTP.connectionLost}.  A message that has not arrived completely is not stored.
        If the connection is lost while a message is being stored, no more copies are begun.
        """
        super().connectionLost(reason)
        if self._transfer is not None:
            self._transfer.close()
            self._transfer = None
        self.factory.ended(self)

    def _receiver(self) -> Callable[[bytes], Coroutine[Any, Any, None]] | None:
        return None if self._transfer is None else partial(self._receive, self._transfer)

    # --- commands ---------------------------------------------------------------------

    def lookupMethod(self, command: bytes) -> Any:
        """
        See L{SerialSMTP.lookupMethod}.
        """
        found = _COMMANDS.get(command.upper())
        return None if found is None else found.__get__(self)

    def _reset(self) -> None:
        self._sender, self._accepted = None, []
        self._isUTF8 = False

    def _lhlo(self, argument: str) -> None:
        name = argument.encode("utf-8")
        if not _HELO.fullmatch(name):
            self._refuse(501, "5.5.4 LHLO needs the name of the client.")
            return
        self._greeted = argument
        self._reset()
        self._bad = 0
        lines = [
            self.host.decode("ascii"),
            "PIPELINING",
            f"SIZE {self._policy.maxMessageSize}",
            "8BITMIME",
            "SMTPUTF8",
            "ENHANCEDSTATUSCODES",
        ]
        self._say(250, "\n".join(lines))

    def _mail(self, argument: str) -> None:
        if self._greeted is None or self._sender is not None:
            self._refuse(503, "5.5.1 MAIL is not allowed here.")
            return
        try:
            path = parsePath(argument, "FROM")
        except BadPath:
            self._refuse(501, "5.1.7 The sender is not valid.")
            return
        isUTF8 = False
        for each in path.parameters:
            word, _, value = each.upper().partition("=")
            if word == "SIZE" and value.isdigit() and len(value) <= 20:
                if int(value) > self._policy.maxMessageSize:
                    self._say(552, "5.3.4 The message is too large.")
                    return
            elif word == "SMTPUTF8" and not value:
                isUTF8 = True
            elif word != "BODY" or value not in ("7BIT", "8BITMIME"):
                self._refuse(555, "5.5.4 A parameter is not known.")
                return
        if not (path.text.isascii() or isUTF8):
            self._refuse(550, "5.6.7 The address needs SMTPUTF8.")
            return
        self._bad = 0
        self._sender, self._isUTF8 = path, isUTF8
        self._say(250, "2.1.0 The sender is accepted.")

    async def _rcpt(self, argument: str) -> None:
        if self._sender is None:
            self._refuse(503, "5.5.1 MAIL comes first.")
            return
        if len(self._accepted) >= self._policy.maxRecipients:
            self._say(452, "4.5.3 Too many recipients.")
            return
        try:
            path = parsePath(argument, "TO")
        except BadPath:
            self._refuse(501, "5.1.3 The recipient is not valid.")
            return
        if path.parameters:
            self._refuse(555, "5.5.4 A parameter is not known.")
            return
        if not (path.text.isascii() or self._isUTF8):
            self._say(553, "5.6.7 The address needs SMTPUTF8.")
            return
        try:
            recipient = await callWithTimeout(
                *(self.factory.recipients.find, path.name),
                clock=self.factory.clock,
                timeout=self._policy.answerTimeout,
            )
        except CallTimeout:
            self._say(451, "4.3.0 The accounts are not available now.")
        except DeliveryError as error:
            self._answer(error)
        else:
            self._bad = 0
            self._accepted.append(_Accepted(path, recipient))
            self._say(250, "2.1.5 The recipient is accepted.")

    def _data(self, argument: str) -> None:
        if argument:
            self._refuse(501, "5.5.4 DATA has no arguments.")
        elif not self._accepted:
            # Read commands and no message from now on.  Even with pipelining, a client sends no
            # message before it has received 354.
            self._refuse(503, "5.5.1 There is no recipient.")
        else:
            self._transfer = _Transfer(self._policy.maxMessageSize, self.factory.executor)
            self._say(354, "Send the message, and a line with a dot.")

    def _rset(self, argument: str) -> None:
        self._reset()
        self._say(250, "2.0.0 Reset.")

    def _noop(self, argument: str) -> None:
        self._say(250, "2.0.0 OK")

    def _vrfy(self, argument: str) -> None:
        self._say(252, "2.5.0 Send mail, and see.")

    def _quit(self, argument: str) -> None:
        self._close(221, "2.0.0 Bye.")

    # --- the message ------------------------------------------------------------------

    async def _receive(self, transfer: _Transfer, data: bytes) -> None:
        block, rest = transfer.phase.feed(data)
        await transfer.write(block)
        if rest is None:
            return
        # The rest of the packet may have further commands.
        self._input = rest + self._input
        self._transfer = None
        try:
            results = await self._store(transfer)
        finally:
            transfer.close()
        for accepted, error in zip(self._accepted, results, strict=True):
            log.info(
                "LMTP: a message of {octets} octets for {user}: {result}",
                octets=transfer.size,
                user=accepted.recipient.username,
                result="stored" if error is None else f"{error.status} {error.text}",
            )
            if self._isClosing and not self._isStopping:
                continue
            if error is None:
                self._say(250, "2.0.0 The message is stored.")
            else:
                self._answer(error)
        self._reset()

    async def _store(self, transfer: _Transfer) -> list[DeliveryError | None]:
        """
        @return: the result for each accepted recipient.
        """
        if transfer.error is not None:
            return [transfer.error] * len(self._accepted)
        errors: dict[Recipient, DeliveryError | None] = {}
        copies: dict[Recipient, bytes] = {}
        for path, recipient in self._accepted:
            try:
                transfer.trace.check(path.text)
            except DeliveryError as error:
                errors.setdefault(recipient, error)
            else:
                # Store one copy for a user with several addresses.
                copies.setdefault(recipient, self._headerFor(path))
        if copies:
            results = await self._within(
                Deferred.fromCoroutine(
                    self.factory.recipients.deliver(list(copies.items()), transfer.content)
                ),
                len(copies),
            )
            errors |= zip(copies, results, strict=True)
        return [errors[each.recipient] for each in self._accepted]

    async def _within(
        self, delivery: Deferred[list[DeliveryError | None]], copies: int
    ) -> list[DeliveryError | None]:
        """
        Wait for a delivery.  If the delivery takes too long, cancel it.  Use the results that the
        cancelled delivery returns, because it may have stored some copies.
        """
        clock, limit = self.factory.clock, self._policy.answerTimeout
        timer = clock.callLater(limit, delivery.cancel)
        try:
            results: list[DeliveryError | None] = await awaitWithTimeout(
                delivery, clock, limit + _PATIENCE
            )
            return results
        except CallTimeout:
            return [StoreUnavailable("The mailbox is not available now.")] * copies
        finally:
            if timer.active():
                timer.cancel()

    def _headerFor(self, path: Path) -> bytes:
        sender = self._sender
        assert sender is not None
        kind = "UTF8LMTP" if self._isUTF8 else "LMTP"
        host, date = self.host.decode("ascii"), rfc822date().decode("ascii")
        received = (
            f"from {self._greeted} ({self._client})\r\n\tby {host} (pop3svc) with {kind} "
            f"id {self.factory.started:x}.{next(_ids)}\r\n\tfor <{path.text}>; {date}"
        )
        return (
            traceLine("Return-Path", f"<{sender.text}>")
            + traceLine("Delivered-To", path.text)
            + traceLine("Received", received)
        )

    def _answer(self, error: DeliveryError) -> None:
        code = _CODES.get(error.status, 451 if error.isTemporary else 554)
        self._say(code, f"{error.status} {error.text}")


# The commands of LMTP.  HELO and EHLO are missing, because in LMTP the command LHLO replaces both
# (RFC 2033 section 4.1).
_COMMANDS: dict[bytes, Any] = {
    b"LHLO": LMTPProtocol._lhlo,
    b"MAIL": LMTPProtocol._mail,
    b"RCPT": LMTPProtocol._rcpt,
    b"DATA": LMTPProtocol._data,
    b"RSET": LMTPProtocol._rset,
    b"NOOP": LMTPProtocol._noop,
    b"VRFY": LMTPProtocol._vrfy,
    b"QUIT": LMTPProtocol._quit,
}


class _Rejecting(Protocol):
    """
    Refuses a connection, because too many are open.
    """

    def connectionMade(self) -> None:
        transport: Any = self.transport
        if hasattr(transport, "getPeerCertificate"):
            # Send no reply over TLS, because it would have to wait for the handshake, whose time is
            # not limited.
            transport.abortConnection()
            return
        transport.write(b"421 4.3.2 Too many connections.\r\n")
        transport.loseConnection()


class LMTPFactory(ServerFactory):
    """
    Receives mail on any stream endpoint.

    @ivar accepted: called for each connection.
    """

    noisy = False

    def __init__(
        self,
        recipients: Recipients,
        policy: Policy | None = None,
        *,
        clock: Any = None,
        executor: Executor | None = None,
        host: str | None = None,
    ) -> None:
        """
        @param policy: the limits; L{None} for the default limits.
        @param clock: the clock; L{None} for the reactor.
        @param executor: writes large messages to temporary files.
        @param host: the name of this machine.
        """
        if clock is None:
            from twisted.internet import reactor

            clock = IReactorTime(reactor)
        self.recipients = recipients
        self.policy = Policy() if policy is None else policy
        self.clock = clock
        self.executor: Executor = disk() if executor is None else executor
        name = socket.gethostname() if host is None else host
        self.host = re.sub(r"[^A-Za-z0-9.-]", "-", name).encode("ascii") or b"localhost"
        self.started = int(clock.seconds() * 1000)
        self.accepted: Callable[[], object] = lambda: None
        self.connections: set[LMTPProtocol] = set()
        self.isStopping = False
        self._waiting: list[Deferred[None]] = []

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        """
        See L{twisted.internet.interfaces.IProtocolFactory.buildProtocol}.
        """
        self.accepted()
        if self.isStopping:
            return None
        if len(self.connections) >= self.policy.maxLMTPConnections:
            return _Rejecting()
        connection = LMTPProtocol(self, addr)
        self.connections.add(connection)
        return connection

    def ended(self, connection: LMTPProtocol) -> None:
        """
        Note that a connection has ended.
        """
        self.connections.discard(connection)
        if not self.connections:
            waiting, self._waiting = self._waiting, []
            for each in waiting:
                each.callback(None)

    async def shutdown(self) -> None:
        """
        End all connections.  Running deliveries get C{policy.answerTimeout} seconds to finish,
        because otherwise their clients would send the messages again.
        """
        self.isStopping = True
        for connection in list(self.connections):
            connection.stop()
        for timeout in (self.policy.answerTimeout, _PATIENCE):
            if not self.connections:
                return
            over: Deferred[None] = Deferred(self._waiting.remove)
            self._waiting.append(over)
            try:
                await awaitWithTimeout(over, self.clock, timeout)
            except CallTimeout:
                for connection in list(self.connections):
                    cast(Any, connection.transport).abortConnection()
