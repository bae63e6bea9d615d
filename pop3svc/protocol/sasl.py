"""
The SASL mechanisms, and the class that runs a mechanism line by line.  Each mechanism is an async
generator.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from zope.interface.interface import InterfaceClass

from pop3svc.awaiting import settled
from pop3svc.errors import BadArguments, POP3ResponseError
from pop3svc.interfaces import (
    IBearerAccounts,
    IPOP3MailboxProvider,
    IProvenAccounts,
    IScramAccounts,
    ISharedSecrets,
    ScramKeys,
)
from pop3svc.protocol.authentication import Password, Proven
from pop3svc.protocol.bearer import BearerMessage, failureOf
from pop3svc.protocol.challenges import cramDigest, makeChallenge, readCram
from pop3svc.protocol.replies import Reply, challenge
from pop3svc.protocol.scram import (
    ALGORITHMS,
    BINDING_TYPES,
    ClientFirst,
    ScramServer,
    makeUp,
    seedOf,
)
from pop3svc.protocol.session import Session
from pop3svc.protocol.wire import hasControl

__all__ = ["MECHANISMS", "Mechanism", "SASLExchange", "mechanism", "offered"]

# The form of base64 that a client must use (RFC 5034 section 5).  It has to be checked, because
# b64decode accepts malformed base64.
_BASE64 = re.compile(rb"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")


@dataclass(frozen=True, slots=True)
class Refusal:
    """
    The end of a failed exchange.  The service sends a last challenge that explains the failure.
    After the client's answer, which may be anything, the service sends the error.

    @ivar explanation: the last challenge.
    """

    explanation: bytes
    error: POP3ResponseError


# A mechanism yields challenges.  At the end it yields credentials or a refusal.
Conversation = AsyncGenerator[bytes | Password | Proven | Refusal, bytes]


@dataclass(frozen=True, slots=True)
class Mechanism:
    """
    A SASL mechanism (RFC 4422).

    @ivar name: the name of the mechanism in AUTH and CAPA.
    @ivar needs: the interface that the provider must provide.
    @ivar cleartext: whether the client sends the password or a token in clear text.
    @ivar bindsChannel: whether the exchange is bound to the TLS connection (channel binding).
    @ivar needsCertificate: whether the mechanism needs a verified certificate of the client.
    @ivar converse: takes C{(session, initial response or None)} and returns the async generator of
        an exchange.
    """

    name: str
    needs: InterfaceClass
    cleartext: bool
    converse: Callable[[Session, bytes | None], Conversation]
    bindsChannel: bool = False
    needsCertificate: bool = False

    def isUsable(self, session: Session) -> bool:
        """
        @return: whether this session may log in with this mechanism.
        """
        if not session.policy.has(self.name):
            return False
        if self.cleartext and not session.mayLogInHere:
            return False
        if self.bindsChannel and not any(map(session.channelBinding, BINDING_TYPES)):
            return False
        if self.needsCertificate and not session.certificateNames():
            return False
        return bool(self.needs.providedBy(session.provider))


MECHANISMS: dict[str, Mechanism] = {}


def mechanism(
    name: str,
    needs: InterfaceClass,
    cleartext: bool = False,
    bindsChannel: bool = False,
    needsCertificate: bool = False,
    *,
    table: dict[str, Mechanism] = MECHANISMS,
) -> Callable[
    [Callable[[Session, bytes | None], Conversation]],
    Callable[[Session, bytes | None], Conversation],
]:
    """
    Declare the decorated async generator as a mechanism; see L{Mechanism}.

    @param table: the table to which the mechanism is added; the table of this package if not given.
    @raise ValueError: the table already has a mechanism with this name.
    """
    if name in table:
        raise ValueError(f"{name} is declared already")

    def declare(
        converse: Callable[[Session, bytes | None], Conversation],
    ) -> Callable[[Session, bytes | None], Conversation]:
        table[name] = Mechanism(name, needs, cleartext, converse, bindsChannel, needsCertificate)
        return converse

    return declare


def offered(session: Session) -> list[str]:
    """
    @return: the names of the mechanisms with which this session may log in.
    """
    return [each.name for each in session.mechanisms.values() if each.isUsable(session)]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _password(name: bytes, password: bytes) -> Password:
    if not name or not password or hasControl(name) or b"\0" in password:
        raise POP3ResponseError("Wrong name or password.", "AUTH")
    return Password(_text(name), _text(password))


def _areOne(session: Session, one: bytes, other: bytes) -> bool:
    """
    @return: whether two names are spellings of the same name.
    """
    first, isUsable = session.authentication.prepareName(_text(one))
    return isUsable and session.authentication.prepareName(_text(other)) == (first, True)


@mechanism("PLAIN", needs=IPOP3MailboxProvider, cleartext=True)
async def plain(session: Session, initial: bytes | None) -> Conversation:
    """
    Run the mechanism PLAIN (RFC 4616).
    """
    response = (yield b"") if initial is None else initial
    fields = response.split(b"\0")
    if len(fields) != 3:
        raise BadArguments("Response is not valid for PLAIN.")
    authorization, name, password = fields
    if authorization not in (b"", name) and not _areOne(session, authorization, name):
        raise POP3ResponseError("Authorization identity must be the user name.", "AUTH")
    yield _password(name, password)


@mechanism("LOGIN", needs=IPOP3MailboxProvider, cleartext=True)
async def login(session: Session, initial: bytes | None) -> Conversation:
    """
    Run the mechanism LOGIN.  No RFC defines it, but many clients support it.
    """
    name = (yield b"Username:") if initial is None else initial
    password = yield b"Password:"
    yield _password(name, password)


def _bindingOf(session: Session, first: ClientFirst, bindsChannel: bool) -> bytes:
    """
    @return: the octets of the channel binding that the client has chosen; empty if it has chosen
        none.
    @raise POP3ResponseError: RFC 5802 section 6 does not allow the client's choice.
    """
    if not bindsChannel:
        plus = session.mechanisms.get("SCRAM-SHA-256-PLUS")
        if first.flag == "p":
            raise BadArguments("Channel binding needs a mechanism with -PLUS.")
        if first.flag == "y" and plus is not None and plus.isUsable(session):
            # Refuse the login, because an attacker may have removed -PLUS from the list of
            # mechanisms that the client has got.
            raise POP3ResponseError("This server supports channel binding.", "AUTH")
        return b""
    if first.bindingType is None:
        raise BadArguments("This mechanism needs channel binding.")
    known = first.bindingType in BINDING_TYPES
    octets = session.channelBinding(first.bindingType) if known else None
    if not octets:
        raise POP3ResponseError("This connection has no such channel binding.", "AUTH")
    return octets


async def _scram(
    session: Session, initial: bytes | None, algorithm: str, bindsChannel: bool
) -> Conversation:
    first = ClientFirst.parse((yield b"") if initial is None else initial)
    binding = _bindingOf(session, first, bindsChannel)
    # Make keys up for every user, so that the time does not reveal whether the user exists.
    provider: Any = session.provider
    name, isUsable = session.authentication.prepareName(first.name)
    seed = seedOf(session.authentication.secret, name, algorithm)
    like = provider.exampleScramKeys(name, algorithm, seed)
    madeUp = makeUp(seed, algorithm, like)
    # Make the salt for a password in clear text from the seed alone, so that it does not depend on
    # the keys of other users.
    salt = makeUp(seed, algorithm, None).salt

    async def find() -> ScramKeys | None:
        found: ScramKeys | None = await settled(
            session.calls.ask(provider.scramKeys, session.info, name, algorithm, salt)
        )
        return found

    session.authentication.countExchange()
    keys = await find()
    server = ScramServer(algorithm, first, keys or madeUp, binding)
    isRight, final = server.check((yield server.challenge))
    # Look the keys up again, because the password may have changed since the challenge was sent.
    isProven = isRight and isUsable and keys is not None and await find() == keys
    proven = Proven(name, "" if keys is None else keys.mailbox)
    await session.authentication.prove(proven, isProven)
    # This message shows the client that the server has the right keys.  The client answers with an
    # empty response.
    if (yield final):
        raise BadArguments("Response must be empty.")
    yield proven


def _declareScram(name: str) -> None:
    bindsChannel = name.endswith("-PLUS")

    @mechanism(name, needs=IScramAccounts, bindsChannel=bindsChannel)
    def converse(session: Session, initial: bytes | None) -> Conversation:
        return _scram(session, initial, ALGORITHMS[name], bindsChannel)


# Declare the strongest of these mechanisms first, because some clients use the first mechanism of
# the list that they support.
_declareScram("SCRAM-SHA-256-PLUS")
_declareScram("SCRAM-SHA-256")
_declareScram("SCRAM-SHA-1")


@mechanism("CRAM-MD5", needs=ISharedSecrets)
async def cramMD5(session: Session, initial: bytes | None) -> Conversation:
    """
    Run the mechanism CRAM-MD5 (RFC 2195).
    """
    if initial is not None:
        raise BadArguments("CRAM-MD5 has no initial response.")
    sent = makeChallenge()
    name, digest = readCram((yield sent.encode("ascii")))
    yield await session.authentication.proveDigest(
        name, digest, lambda password: cramDigest(sent, password)
    )


async def _bearer(
    session: Session, initial: bytes | None, parse: Callable[[bytes], BearerMessage], name: str
) -> Conversation:
    message = parse((yield b"") if initial is None else initial)
    result: Proven | Refusal
    try:
        result = await session.authentication.proveToken(message.name, message.token)
    except POP3ResponseError as error:
        if error.code != "AUTH":
            raise
        result = Refusal(failureOf(name), error)
    yield result


def _declareBearer(name: str, parse: Callable[[bytes], BearerMessage]) -> None:
    @mechanism(name, needs=IBearerAccounts, cleartext=True)
    def converse(session: Session, initial: bytes | None) -> Conversation:
        return _bearer(session, initial, parse, name)


_declareBearer("OAUTHBEARER", BearerMessage.parseOAuthBearer)
_declareBearer("XOAUTH2", BearerMessage.parseXOAuth2)


@mechanism("EXTERNAL", needs=IProvenAccounts, needsCertificate=True)
async def external(session: Session, initial: bytes | None) -> Conversation:
    """
    Run the mechanism EXTERNAL (RFC 4422 appendix A).  The certificate of the client names the user.
    """
    response = (yield b"") if initial is None else initial
    if hasControl(response):
        raise BadArguments("Response is not valid for EXTERNAL.")
    prepared = map(session.authentication.prepareName, session.certificateNames())
    names = list(dict.fromkeys(name for name, isUsable in prepared if isUsable))
    if not response and len(names) > 1:
        raise POP3ResponseError("Certificate names several users; name one of them.", "AUTH")
    # Without a usable name, refuse the login as for a name without an account.
    chosen = _text(response) if response else next(iter(names), "")
    name = session.authentication.prepareName(chosen)[0]
    mailbox = None
    if name in names:
        provider: Any = session.provider
        mailbox = await settled(session.calls.ask(provider.provenMailbox, session.info, name))
    proven = Proven(name, mailbox or "")
    await session.authentication.prove(proven, mailbox is not None)
    yield proven


class SASLExchange:
    """
    Runs one mechanism line by line (RFC 5034 section 4).
    """

    def __init__(
        self,
        command: Any,
        session: Session,
        chosen: Mechanism,
        finish: Callable[[Password | Proven], Awaitable[Reply]],
    ) -> None:
        """
        @param command: the L{pop3svc.protocol.dispatch.Command} of AUTH.
        @param finish: takes the result of the mechanism and returns the final reply.
        """
        self.command = command
        self._session = session
        self._chosen = chosen
        self._finish = finish
        self._conversation: Conversation | None = None
        self._refusal: POP3ResponseError | None = None

    async def begin(self, initial: bytes | None) -> Reply:
        """
        Begin the exchange.

        @param initial: the initial response as the client has sent it.  C{=} stands for an empty
            response.  L{None} means that there is no initial response.
        """
        if initial is not None:
            initial = b"" if initial == b"=" else _decoded(initial)
        self._conversation = self._chosen.converse(self._session, initial)
        return await self._step(None)

    async def respond(self, line: bytes) -> Reply:
        """
        Continue the exchange.

        @param line: the next line of the client.
        """
        assert self._conversation is not None
        if self._refusal is not None:
            # Accept any line, because clients send "AQ==", an empty line, "*" or QUIT.
            raise self._refusal
        try:
            if line == b"*":
                raise POP3ResponseError("Cancelled.")
            # Accept "=" for an empty response, because curl sends it in later lines as well.
            response = b"" if line == b"=" else _decoded(line)
        except POP3ResponseError:
            await self._conversation.aclose()
            raise
        return await self._step(response)

    async def _step(self, response: bytes | None) -> Reply:
        assert self._conversation is not None
        # The argument of the first asend() must be None.
        result = await self._conversation.asend(response)  # type: ignore[arg-type]
        if isinstance(result, bytes):
            self._session.exchange = self
            return challenge(b64encode(result).decode("ascii"))
        await self._conversation.aclose()
        if isinstance(result, Refusal):
            self._refusal = result.error
            self._session.exchange = self
            return challenge(b64encode(result.explanation).decode("ascii"))
        return await self._finish(result)


def _decoded(line: bytes) -> bytes:
    if _BASE64.fullmatch(line) is None:
        raise BadArguments("Response is not valid base64.")
    data = b64decode(line)
    if b64encode(data) != line:
        raise BadArguments("Response is not valid base64.")
    return data
