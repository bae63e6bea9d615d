"""
Compute the reply to one line, from the session and a table of commands.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import CoroutineType
from typing import Any

from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from pop3svc.awaiting import isAwaitable, startNow
from pop3svc.errors import BadArguments, POP3ResponseError, ProviderMistake
from pop3svc.protocol import grammar
from pop3svc.protocol.replies import After, Reply, err
from pop3svc.protocol.session import Session, State
from pop3svc.protocol.wire import hasControl, splitLine

__all__ = ["Command", "Table", "lineLimit", "respond", "verbOf"]

log = Logger(namespace="pop3svc")

# First words of HTTP clients and scanners (RFC 9110, RFC 9113).
_HTTP_VERBS = frozenset(
    ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PRI", "PUT", "TRACE"]
)

# Twisted's cancellation never raises asyncio.CancelledError, so this is an error of the provider.
_ERRORS = (Exception, asyncio.CancelledError)

Capabilities = Sequence[str] | Callable[[Session], Iterable[str]]


@dataclass(frozen=True, slots=True)
class Command:
    """
    Declaration of one command.

    @ivar verb: the verb in upper case.
    @ivar states: the states in which the command is valid.  In other states the service refuses the
        command without calling C{run}.
    @ivar run: the body of the command.  Takes C{(session, *arguments)}, and returns a L{Reply},
        or a Deferred or coroutine of one.
    @ivar arguments: parses the octets after the verb into the arguments of the body.
    @ivar nextState: the state after a positive final reply; L{None} to keep the state.  If it is
        CLOSED, the connection is closed even after an error.
    @ivar capability: the command's lines of CAPA, or a function that takes the session and returns
        these lines.
    @ivar announced: the states in which CAPA shows these lines.
    @ivar unavailable: a function that takes the session and returns the error if the command
        is not available now, or L{None}.  CAPA does not show an unavailable command.
    @ivar extension: the extension in L{pop3svc.policy.EXTENSIONS} that the command belongs to.
        The service does not know the command when that extension is switched off.
    @ivar longLine: whether the command's line may be as long as a line inside AUTH, because the
        line holds a password or a token.
    """

    verb: str
    states: frozenset[State]
    run: Callable[..., Reply | Awaitable[Reply]]
    arguments: Callable[[bytes | None], tuple[Any, ...]] = grammar.nothing
    nextState: State | None = None
    capability: Capabilities = ()
    announced: frozenset[State] = frozenset([State.AUTHORIZATION, State.TRANSACTION])
    unavailable: Callable[[Session], POP3ResponseError | None] | None = None
    extension: str | None = None
    longLine: bool = False

    def refusal(self, session: Session) -> POP3ResponseError | None:
        """
        @return: the error if the command is not available now, or L{None}.
        """
        return None if self.unavailable is None else self.unavailable(session)

    def capabilities(self, session: Session) -> list[str]:
        """
        @return: the command's lines of CAPA for this session now.
        """
        if session.state not in self.announced or self.refusal(session) is not None:
            return []
        lines = self.capability
        return list(lines(session) if callable(lines) else lines)


Table = Mapping[str, Command]


def verbOf(session: Session, line: bytes, table: Table) -> str:
    """
    @return: the verb of a line if it is in the table, else a fixed word, because log events
        must not contain text from a client.
    """
    if session.exchange is not None:
        return f"({session.exchange.command.verb})"
    verb, _ = splitLine(line)
    return verb if verb in table else "(unknown)"


def lineLimit(session: Session, line: bytes, table: Table) -> int:
    """
    @return: the maximum length of this line in octets, including the line end.
    """
    if session.exchange is None:
        command = table.get(splitLine(line)[0])
        if command is None or not command.longLine:
            return session.policy.maxLineLength
    return session.policy.maxAuthLineLength


def respond(session: Session, line: bytes, table: Table) -> Reply | Coroutine[Any, Any, Reply]:
    """
    Answer one line.

    @param line: octets without the line end.
    @return: the reply; a coroutine of the reply if the command has to wait.  Errors become replies,
        except for a cancellation.
    """
    exchange = session.exchange
    body: Callable[..., Any]
    arguments: tuple[Any, ...]
    if exchange is not None:
        command, body, arguments = exchange.command, exchange.respond, (line,)
    else:
        verb, rest = splitLine(line)
        found = table.get(verb)
        try:
            if found is None or session.state not in found.states or hasControl(line):
                return _counted(session, _unusable(verb, line, found))
            if found.unavailable is not None:
                refusal = found.unavailable(session)
                if refusal is not None:
                    raise refusal
            arguments = (session, *found.arguments(rest))
        except POP3ResponseError as error:
            return _counted(session, _refused(error))
        command, body = found, found.run
    try:
        answer: Any = body(*arguments)
        if type(answer) is not Reply:
            if isinstance(answer, CoroutineType):
                answer = startNow(answer)
            if isAwaitable(answer):
                return _answeredLater(session, command, answer)
        reply: Reply = answer
    except _ERRORS as error:
        reply = _mapped(error, command, session)
    return _answered(session, command, reply)


def _unusable(verb: str, line: bytes, found: Command | None) -> Reply:
    """
    @param found: the command, if there is one with this verb.
    @return: the reply to a line that is not a command, or not a command of this state.
    """
    if found is None and verb in _HTTP_VERBS:
        return err("This is a POP3 service.", then=After.CLOSE, isBadCommand=True)
    if hasControl(line):
        return err("Control characters are not allowed.", isBadCommand=True)
    if found is None:
        return err("Unknown command.", isBadCommand=True)
    return err("Command is not valid in this state.", isBadCommand=True)


async def _answeredLater(session: Session, command: Command, answer: Awaitable[Reply]) -> Reply:
    try:
        reply = await answer
    except _ERRORS as error:
        reply = _mapped(error, command, session)
    return _answered(session, command, reply)


def _answered(session: Session, command: Command, reply: Reply) -> Reply:
    """
    Apply the transition of a command after its reply.
    """
    if reply.isChallenge:
        return reply
    session.exchange = None
    nextState = command.nextState
    if nextState is not None and reply.positive and not reply.keepsState:
        session.enter(nextState)
    if reply.isBadCommand:
        return _counted(session, reply)
    session.badCommands = 0
    return reply


def _counted(session: Session, reply: Reply) -> Reply:
    """
    Close after too many bad commands in a row.
    """
    if not reply.isBadCommand:
        session.badCommands = 0
        return reply
    session.badCommands += 1
    if session.badCommands < session.policy.maxBadCommands:
        return reply
    return err("Too many bad commands.", then=After.CLOSE, isBadCommand=True)


def _refused(error: POP3ResponseError) -> Reply:
    return err(
        error.text,
        error.code,
        After.CLOSE if error.critical else After.GO_ON,
        isBadCommand=isinstance(error, BadArguments),
    )


def _mapped(error: BaseException, command: Command, session: Session) -> Reply:
    """
    Map an error of a command's body to a reply.  Call this function in the C{except} block, because
    it logs the traceback.
    """
    if isinstance(error, POP3ResponseError):
        reply = _refused(error)
    elif isinstance(error, NotImplementedError):
        reply = err("Command not available.")
    else:
        if isinstance(error, CancelledError) and session.isOver:
            raise error
        if isinstance(error, ProviderMistake):
            log.error("{mistake}", mistake=str(error), verb=command.verb, pop3Event="error")
        else:
            log.failure("{verb} failed", verb=command.verb, pop3Event="error")
        return err("Internal error.", "SYS/TEMP", After.CLOSE, fault=True)
    if command.nextState is State.CLOSED and reply.then is After.GO_ON:
        return err(reply.text, reply.code, After.CLOSE)
    return reply
