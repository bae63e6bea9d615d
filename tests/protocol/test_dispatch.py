"""
Every verb in every state, and the reply to each kind of error.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher

from pop3svc.awaiting import isAwaitable
from pop3svc.errors import BadArguments, POP3ResponseError
from pop3svc.listings import UniqueIDList
from pop3svc.policy import Policy
from pop3svc.protocol.commands import COMMANDS
from pop3svc.protocol.dispatch import Command, lineLimit, respond, verbOf
from pop3svc.protocol.maildrop import Maildrop
from pop3svc.protocol.replies import After, Reply, challenge, err, ok
from pop3svc.protocol.session import ConnectionInfo, Session, State
from pop3svc.providers.memory import MemoryProvider
from pop3svc.testing import Client
from tests.support.connections import withCommand
from tests.support.coroutines import start


def makeSession(state: State = State.AUTHORIZATION, isSecure: bool = True) -> Session:
    info = ConnectionInfo(1, "192.0.2.1", isSecure)
    session = Session(info, MemoryProvider({}), Policy(), Clock(), tuple(COMMANDS.values()))
    transaction = session._transaction("alice", object())
    transaction.maildrop = Maildrop(UniqueIDList([]))
    session.transaction = transaction
    session.state = state
    return session


def reply(session: Session, line: bytes, table: Any) -> Reply:
    answer: Any = respond(session, line, table)
    if isAwaitable(answer):
        (answer,) = start(answer)[1]
    if hasattr(answer, "raiseException"):
        answer.raiseException()
    assert isinstance(answer, Reply)
    return answer


def tableOf(**fields: Any) -> dict[str, Command]:
    run = fields.pop("run")
    return {"DO": Command("DO", frozenset(State), run, **fields)}


def raising(error: BaseException, **fields: Any) -> Reply:
    async def run(session: Session) -> Reply:
        raise error

    return reply(makeSession(), b"DO", tableOf(run=run, **fields))


@pytest.mark.parametrize("verb", COMMANDS)
@pytest.mark.parametrize("state", State)
def test_everyVerbInEveryState(verb: str, state: State) -> None:
    """
    In a wrong state, a command is refused as a bad command and does not run.
    """
    command = COMMANDS[verb]
    entered = []

    async def run(*arguments: Any) -> Reply:
        entered.append(arguments)
        return ok("Done.")

    table = {verb: Command(verb, command.states, run, lambda rest: ())}
    for spelled in (verb, verb.lower(), verb.title()):
        entered.clear()
        answer = reply(makeSession(state), spelled.encode(), table)
        assert answer.positive == bool(entered) == (state in command.states)
        assert answer.isBadCommand == (state not in command.states)


def test_unknownVerbs() -> None:
    for line in (b"", b" ", b"FOO", b"DO\xff", b"\xff", b" DO", b"DO\tx", b"D\0O", b"\x7f"):
        answer = reply(makeSession(), line, tableOf(run=None))
        assert (answer.positive, answer.isBadCommand, answer.then) == (False, True, After.GO_ON)


def test_badCommandsInARowClose() -> None:
    async def run(session: Session) -> Reply:
        return ok("Done.")

    session, table = makeSession(), tableOf(run=run)
    for _ in range(19):
        assert reply(session, b"FOO", table).then is After.GO_ON
    assert reply(session, b"DO", table).positive
    for _ in range(19):
        assert reply(session, b"DO x", table).then is After.GO_ON
    last = reply(session, b"FOO", table)
    assert (last.then, last.text) == (After.CLOSE, "Too many bad commands.")


def test_refusalsAreNoBadCommands() -> None:
    async def run(session: Session) -> Reply:
        raise POP3ResponseError("No such message.")

    session = makeSession()
    for _ in range(50):
        assert reply(session, b"DO", tableOf(run=run)).then is After.GO_ON


@pytest.mark.parametrize("verb", [b"GET / HTTP/1.1", b"post /", b"PRI * HTTP/2.0", b"OPTIONS *"])
def test_httpRequest(verb: bytes) -> None:
    assert reply(makeSession(), verb, COMMANDS).then is After.CLOSE


def test_errorMap() -> None:
    answer = raising(POP3ResponseError("No.", "IN-USE"))
    assert (answer.text, answer.code, answer.then) == ("No.", "IN-USE", After.GO_ON)
    assert raising(POP3ResponseError("No.", critical=True)).then is After.CLOSE
    assert raising(BadArguments("No.")).isBadCommand
    answer = raising(NotImplementedError())
    assert (answer.text, answer.then) == ("Command not available.", After.GO_ON)
    assert not answer.isBadCommand
    assert raising(POP3ResponseError("No."), nextState=State.CLOSED).then is After.CLOSE


def test_bugIsLoggedAndHidden() -> None:
    """
    A bug is logged with its traceback, and the client gets no detail.
    """
    seen: list[Any] = []
    globalLogPublisher.addObserver(seen.append)
    try:
        answer = raising(ValueError("a secret"))
    finally:
        globalLogPublisher.removeObserver(seen.append)
    assert (answer.code, answer.then, answer.fault) == ("SYS/TEMP", After.CLOSE, True)
    assert "secret" not in answer.text
    (event,) = (event for event in seen if event.get("pop3Event") == "error")
    assert event["log_failure"].check(ValueError)
    assert formatEvent(event) == "DO failed"


def test_cancellationPassesThrough() -> None:
    """
    A cancellation is raised if the client is gone; otherwise it is an error of the provider.
    """
    session = makeSession()
    session.isOver = True

    async def run(session: Session) -> Reply:
        raise CancelledError()

    with pytest.raises(CancelledError):
        reply(session, b"DO", tableOf(run=run))
    late: Deferred[Any] = Deferred()
    with pytest.raises(CancelledError):
        late.errback(CancelledError())
        reply(session, b"DO", tableOf(run=lambda session: late))
    for error in (CancelledError(), asyncio.CancelledError()):
        assert raising(error).fault


def test_unavailableCommands() -> None:
    async def run(session: Session) -> Reply:
        return ok("Done.")

    refused = POP3ResponseError("Not now.", "READ-ONLY")
    table = tableOf(run=run, unavailable=lambda session: refused, capability=["DO"])
    assert reply(makeSession(), b"DO", table).code == "READ-ONLY"
    assert table["DO"].capabilities(makeSession()) == []
    table = tableOf(run=run, unavailable=lambda session: None, capability=["DO"])
    assert reply(makeSession(), b"DO", table).positive
    assert table["DO"].capabilities(makeSession()) == ["DO"]
    assert table["DO"].capabilities(makeSession(State.SLEEPING)) == []
    table = tableOf(run=run, capability=lambda session: [session.state.value])
    assert table["DO"].capabilities(makeSession()) == ["AUTHORIZATION"]


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (ok(""), State.TRANSACTION),
        (ok("", keepsState=True), State.AUTHORIZATION),
        (err(""), State.AUTHORIZATION),
        (challenge(""), State.AUTHORIZATION),
    ],
)
def test_transition(answer: Reply, state: State) -> None:
    async def run(session: Session) -> Reply:
        return answer

    session = makeSession()
    reply(session, b"DO", tableOf(run=run, nextState=State.TRANSACTION))
    assert session.state is state


def test_noTransactionWithoutAListing() -> None:
    session = makeSession()
    session.transaction = None
    with pytest.raises(AssertionError):
        session.enter(State.TRANSACTION)


def test_linesOfAnExchangeAreNotCommands() -> None:
    """
    During an exchange, lines are not parsed as commands.
    """

    class Exchange:
        command = Command("DO", frozenset(State), None, nextState=State.TRANSACTION)  # type: ignore[arg-type]

        async def respond(self, line: bytes) -> Reply:
            if line == b"more":
                return challenge("eA==")
            return ok("Done.") if line == b"yes" else err("No.")

    session = makeSession()
    session.exchange = Exchange()
    assert verbOf(session, b"secret", COMMANDS) == "(DO)"
    assert lineLimit(session, b"x", COMMANDS) == 12288
    assert reply(session, b"more", COMMANDS).isChallenge
    assert not reply(session, b"NOOP", COMMANDS).positive
    assert session.exchange is None
    assert session.state is State.AUTHORIZATION
    session.exchange = Exchange()
    assert reply(session, b"yes", COMMANDS).positive
    assert session.state is State.TRANSACTION


def test_linesAndVerbs() -> None:
    session = makeSession()
    assert verbOf(session, b"noop", COMMANDS) == "NOOP"
    assert verbOf(session, b"secret", COMMANDS) == "(unknown)"
    assert lineLimit(session, b"auth plain", COMMANDS) == 12288
    assert lineLimit(session, b"AUTHX", COMMANDS) == 255
    assert lineLimit(session, b"USER x", COMMANDS) == 255
    # A password may be as long as in AUTH.
    assert lineLimit(session, b"PASS x", COMMANDS) == 12288
    assert lineLimit(session, b"xlog x y", COMMANDS) == 12288


def test_commandMayReturnItsReplyAtOnce() -> None:
    client = Client(withCommand(lambda session: ok("At once.")))
    client.received()
    assert client.say(b"X") == b"+OK At once.\r\n"


def test_commandWithoutReplyIsABug() -> None:
    """
    A command that returns no reply is a bug: the connection is aborted.
    """
    client = Client(withCommand(lambda session: None))
    client.received()
    assert client.say(b"X") == b""
    assert client.wasAborted
