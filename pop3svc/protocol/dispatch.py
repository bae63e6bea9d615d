"""
Find the command of a line in a table, run it, and return the reply.
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

__all__ = ["Command", "Table", "lineLimit", "opensMailbox", "respond", "verbOf"]

log = Logger(namespace="pop3svc")

# The first words that HTTP clients and scanners send (RFC 9110, RFC 9113).
_HTTP_VERBS = frozenset(
    ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PRI", "PUT", "TRACE"]
)

# asyncio.CancelledError counts as an error of the provider, because a cancellation by Twisted never
# raises it.
_ERRORS = (Exception, asyncio.CancelledError)

Capabilities = Sequence[str] | Callable[[Session], Iterable[str]]


@dataclass(frozen=True, slots=True)
class Command:
    """
    The declaration of one command.

    @ivar verb: the verb in upper case.
    @ivar states: the states in which the command is valid.  In other states the service refuses the
        command without calling C{run}.
    @ivar run: the function that runs the command.  It takes C{(session, *arguments)} and returns a
        L{Reply}, a Deferred of a L{Reply}, or a coroutine.
    @ivar arguments: takes the octets after the verb and returns the arguments for C{run}.
    @ivar nextState: the state after a positive final reply; L{None} if the state does not change.
        If it is CLOSED, the connection is closed even after an error.
    @ivar capability: the lines that CAPA shows for the command, or a function that takes the
        session and returns these lines.
    @ivar announced: the states in which CAPA shows these lines.
    @ivar unavailable: a function that takes the session.  It returns the error if the command is
        not available now, and otherwise L{None}.  CAPA does not show a command that is not
        available.
    @ivar extension: the extension in L{pop3svc.policy.EXTENSIONS} to which the command belongs.  If
        this extension is switched off, the service does not know the command.
    @ivar longLine: whether a line with this command may be as long as a line inside AUTH, because
        it contains a password or a token.
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
        @return: the error if the command is not available now; otherwise L{None}.
        """
        return None if self.unavailable is None else self.unavailable(session)

    def capabilities(self, session: Session) -> list[str]:
        """
        @return: the lines that CAPA shows for the command in this session now.
        """
        if session.state not in self.announced or self.refusal(session) is not None:
            return []
        lines = self.capability
        return list(lines(session) if callable(lines) else lines)


Table = Mapping[str, Command]


def verbOf(session: Session, line: bytes, table: Table) -> str:
    """
    @return: the verb of a line; inside an exchange, the verb of the command to which the exchange
        belongs.  If the verb is not in the table, the result is a fixed word, because log events
        must not contain text from a client.
    """
    if session.exchange is not None:
        return f"({session.exchange.command.verb})"
    verb, _ = splitLine(line)
    return verb if verb in table else "(unknown)"


def lineLimit(session: Session, line: bytes, table: Table) -> int:
    """
    @return: the most octets that this line may have, including its line end.
    """
    if session.exchange is None:
        command = table.get(splitLine(line)[0])
        if command is None or not command.longLine:
            return session.policy.maxLineLength
    return session.policy.maxAuthLineLength


def opensMailbox(session: Session, line: bytes, table: Table) -> bool:
    """
    @param line: the octets of the line without its LF.
    @return: whether the command in this line opens the mailbox if the command succeeds.
    """
    exchange = session.exchange
    verb = splitLine(line.removesuffix(b"\r"))[0]
    command = table.get(verb) if exchange is None else exchange.command
    return command is not None and command.nextState is State.TRANSACTION


def respond(session: Session, line: bytes, table: Table) -> Reply | Coroutine[Any, Any, Reply]:
    """
    Answer one line.

    @param line: the octets of the line without its line end.
    @return: the reply; if the command has to wait, a coroutine that returns the reply.  An error
        becomes a reply, unless it is the cancellation of a session that has ended.
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
    @param found: the command with this verb; L{None} if there is none.
    @return: the reply to a line that is not a command, or that is not allowed in this state.
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
    Change the state of the session as the command declares for this reply.  Count a bad command.

    @return: the reply to send.
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
    Count the bad commands in a row.

    @return: the reply; after too many bad commands, another reply that closes the connection.
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
    Make a reply from an error that a command has raised.  Call this function in the C{except}
    block, because it logs the traceback.
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
