"""
The extensions, case by case.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from zope.interface import implementer

from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import IAccountStatus, IPOP3ConnectionInfo
from pop3svc.policy import EXTENSIONS, Policy
from pop3svc.protocol.commands import COMMANDS
from pop3svc.protocol.session import State
from pop3svc.providers.memory import MemoryProvider
from pop3svc.service.factory import POP3Factory
from pop3svc.testing import Client, StubProvider, conversation
from tests.support.connections import advance, events, reason
from tests.support.conversations import ALICE, MESSAGES, loggedIn, provider
from tests.support.mailboxes import LEAVE, LOGIN, Provider, later, served

FULL = POP3ResponseError("Disk full.", "SYS/TEMP")


def test_deli() -> None:
    """
    DELI deletes at once; RSET does not undo it, and QUIT does not delete again.
    """
    mail = provider()
    client = conversation(
        mail,
        ALICE
        + """
        C: DELI 2
        S: +OK Deleted message. UID:message-2
        C: DELI 2
        S: -ERR Message is deleted.
        C: RETR UID:message-2
        S: -ERR Message is deleted.
        C: RSET
        S: +OK…
        C: UIDL
        S: +OK Unique-ids follow _
        S: 1 message-1
        S: 3 message-3
        S: .
        C: STAT
        S: +OK 2 52
        C: DELE 1
        S: +OK…
        C: DELI 1
        S: -ERR Message is deleted.
        C: DELI 9
        S: -ERR…
        C: DELI
        S: -ERR…
        C: DELI 3 1
        S: -ERR…
        """,
    )
    assert list(mail.store.maildrop("alice").messages) == ["message-1", "message-3"]
    del mail.store.maildrop("alice").messages["message-3"]
    assert client.say(b"DELI 3") == b"-ERR Message no longer exists.\r\n"
    assert client.say(b"QUIT") == b"+OK Bye, 1 deleted.\r\n"


def test_deliFails() -> None:
    conversation(
        StubProvider(MESSAGES, messageDelete=FULL),
        ALICE
        + "C: DELI 1\nS: -ERR [SYS/TEMP] Disk full.\nC: STAT\nS: +OK 3 98\nC: DELE 1\nS: +OK…",
    )


def test_deliReadOnly() -> None:
    mail = StubProvider(MESSAGES, isReadOnly=True)
    client = conversation(mail, ALICE + "C: DELI 1\nS: -ERR [READ-ONLY] …")
    assert b"DELI" not in client.say(b"CAPA")


def test_core() -> None:
    mail = provider()
    client = conversation(
        mail,
        ALICE
        + "C: DELE 1\nS: +OK…\nC: CORE x\nS: -ERR…\nC: CORE\nS: +OK [ACTIVITY/NONE] Refreshed.",
    )
    assert client.say(b"UIDL 1") == b"+OK 1 message-2\r\n"
    drop = mail.store.maildrop("alice")
    drop.add(b"new")
    assert drop.isHeld
    assert client.say(b"refr") == b"+OK [ACTIVITY/NEW] Refreshed.\r\n"
    assert client.say(b"UIDL 3") == b"+OK 3 message-4\r\n"
    assert client.say(b"CORE") == b"+OK [ACTIVITY/NONE] Refreshed.\r\n"


@pytest.mark.parametrize("verb", ["CORE", "SLEE", "QAUT"])
def test_deletionFails(verb: str) -> None:
    """
    After a failed deletion the session is in TRANSACTION with the same listing, marks, lock
    and messages.
    """
    mail = StubProvider(MESSAGES, isExclusive=True, messageDelete=FULL)
    conversation(
        mail,
        ALICE
        + f"""
        C: DELE 1
        S: +OK…
        C: {verb}
        S: -ERR [SYS/TEMP] Disk full.
        C: UIDL
        S: +OK…
        S: 2 message-2
        S: 3 message-3
        S: .
        C: RSET
        S: +OK…
        C: STAT
        S: +OK 3 98
        """,
    )
    assert mail.maildrop.isHeld
    assert len(mail.maildrop.messages) == 3


@pytest.mark.parametrize("verb", ["CORE", "SLEE", "QAUT", "QUIT"])
def test_goneMeanwhile(verb: str) -> None:
    mail = provider()
    client = conversation(mail, ALICE + "C: DELE 1\nS: +OK…")
    del mail.store.maildrop("alice").messages["message-1"]
    assert client.say(verb.encode()).startswith(b"+OK")


def test_coreCannotList() -> None:
    """
    If CORE deletes but cannot list, the connection is closed.
    """
    mail = StubProvider(MESSAGES)
    client = conversation(mail, ALICE + "C: DELE 1\nS: +OK…")
    mail.maildrop.messages["_"] = b""
    assert client.say(b"CORE") == b"-ERR [SYS/TEMP] Mailbox cannot be listed.\r\n"
    assert not client.isOpen


def test_sleepAndWake() -> None:
    mail = provider()
    client = conversation(
        mail,
        ALICE
        + """
        C: SLEE x
        S: -ERR…
        C: DELE 1
        S: +OK…
        C: SLEE
        S: +OK Asleep, 1 deleted.
        C: CAPA
        S: -ERR…
        C: STAT
        S: -ERR…
        C: RETR UID:message-2
        S: -ERR…
        C: SLEE
        S: -ERR…
        C: NOOP
        S: +OK…
        C: WAKE x
        S: -ERR…
        C: WAKE
        S: +OK [ACTIVITY/NONE] Awake.
        C: UIDL 1
        S: +OK 1 message-2
        C: WAKE
        S: -ERR…
        C: SLEE
        S: +OK Asleep, 0 deleted.
        """,
    )
    drop = mail.store.maildrop("alice")
    assert not drop.isHeld
    del drop.messages["message-2"]
    assert client.say(b"WAKE") == b"+OK [ACTIVITY/NONE] Awake.\r\n"
    assert client.say(b"UIDL 1") == b"+OK 1 message-3\r\n"
    client.say(b"SLEE")
    drop.add(b"x: y\n")
    assert client.say(b"WAKE") == b"+OK [ACTIVITY/NEW] Awake.\r\n"
    assert client.say(b"STAT") == b"+OK 2 26\r\n"
    client.say(b"SLEE")
    assert client.say(b"QUIT") == b"+OK Bye.\r\n"
    assert not client.isOpen


def test_sleepHoldingNothing() -> None:
    """
    SLEE and WAKE work for a mailbox with neither a lock nor C{onSleep}.
    """
    client = conversation(StubProvider([b"x"]), ALICE + "C: DELE 1\nS: +OK…\nC: SLEE\nS: +OK…")
    assert client.say(b"WAKE") == b"+OK [ACTIVITY/NONE] Awake.\r\n"
    assert client.say(b"STAT") == b"+OK 0 0\r\n"


def test_pipelinedAfterSlee() -> None:
    client = loggedIn("")
    client.send(b"SLEE\r\nSTAT\r\nNOOP\r\nWAKE\r\nSTAT\r\n")
    said = [line.split(b" ")[0] for line in client.received().split(b"\r\n")]
    assert said == [b"+OK", b"-ERR", b"+OK", b"+OK", b"+OK", b""]


def test_wakeWhileInUse() -> None:
    mail = provider()
    client = conversation(mail, ALICE + "C: SLEE\nS: +OK…")
    other = conversation(mail, ALICE)
    assert client.say(b"WAKE").startswith(b"-ERR [IN-USE]")
    assert client.say(b"STAT").startswith(b"-ERR")
    other.say(b"QUIT")
    assert client.say(b"WAKE").startswith(b"+OK [ACTIVITY/NONE]")
    assert client.say(b"STAT") == b"+OK 3 98\r\n"


def test_wakeCannotList() -> None:
    """
    After a failed WAKE the session is still asleep, without a lock.
    """
    mail = provider()
    client = conversation(mail, ALICE + "C: SLEE\nS: +OK…")
    drop = mail.store.maildrop("alice")
    kept = dict(drop.messages)
    drop.messages["_"] = b""
    assert client.say(b"WAKE") == b"-ERR [SYS/PERM] Mailbox cannot be listed.\r\n"
    assert not drop.isHeld
    drop.messages = kept
    assert client.say(b"WAKE").startswith(b"+OK")


@implementer(IAccountStatus)
class Accounts(MemoryProvider):
    def credentialsVersion(self, info: Any, username: str) -> str:
        assert IPOP3ConnectionInfo.providedBy(info)
        return self.passwords[username]

    async def isStillValid(self, info: Any, username: str, mark: str) -> bool:
        assert IPOP3ConnectionInfo.providedBy(info)
        return self.passwords.get(username) == mark


@pytest.mark.parametrize("change", [{}, {"alice": "other"}])
def test_wakeOfAnAccountThatChanged(change: dict[str, str]) -> None:
    mail = Accounts({"alice": "secret"})
    client = conversation(mail, ALICE + "C: SLEE\nS: +OK…\nC: WAKE\nS: +OK…\nC: SLEE\nS: +OK…")
    mail.passwords = change
    assert client.say(b"WAKE") == b"-ERR [AUTH] Account is no longer valid.\r\n"
    assert not mail.store.maildrop("alice").isHeld
    mail.passwords = {"alice": "secret"}
    assert client.say(b"WAKE").startswith(b"+OK")


class AccountsLater(Accounts):
    """
    Answers each call about an account when the test says so.
    """

    def __init__(self, passwords: dict[str, str]) -> None:
        super().__init__(passwords)
        self.waiting: list[tuple[Deferred[Any], Any]] = []

    def _later(self, value: Any) -> Any:
        waiting: Deferred[Any] = Deferred()
        self.waiting.append((waiting, value))
        return waiting

    def credentialsVersion(self, info: Any, username: str) -> Any:
        return self._later(self.passwords[username])

    def isStillValid(self, info: Any, username: str, mark: str) -> Any:
        return self._later(self.passwords.get(username) == mark)


def test_accountAnswersLater() -> None:
    mail = AccountsLater({"alice": "secret"})
    client = conversation(mail, "S: +OK…\nC: USER alice\nS: +OK…")
    for line in (b"PASS secret", b"SLEE", b"WAKE"):
        said = client.say(line)
        if line != b"SLEE":
            assert said == b""
            waiting, value = mail.waiting.pop()
            waiting.callback(value)
            said = client.received()
        assert said.startswith(b"+OK")
    client.say(b"SLEE")
    mail.passwords = {}
    assert client.say(b"WAKE") == b""
    waiting, value = mail.waiting.pop()
    waiting.callback(value)
    assert client.received() == b"-ERR [AUTH] Account is no longer valid.\r\n"


def test_sleepingSessionHoldsLittle() -> None:
    """
    A sleeping session keeps 8 octets for each message in place of the listing, and has an idle
    timeout of its own.
    """
    client = loggedIn("C: STAT\nS: +OK…\nC: DELE 1\nS: +OK…\nC: RSET\nS: +OK…\nC: SLEE\nS: +OK…")
    session = client.protocol.session
    assert session.transaction.maildrop is None
    assert session.transaction._known is not None
    assert len(session.transaction._known.tobytes()) == 8 * 3
    advance(client, 3500)
    assert client.say(b"NOOP") == b"+OK Done.\r\n"
    advance(client, 3599)
    assert client.isOpen
    assert reason(client, lambda: advance(client, 2)) == "idle for too long"
    client = loggedIn("C: SLEE\nS: +OK…")
    client.say(b"WAKE")
    assert reason(client, lambda: advance(client, 601)) == "idle for too long"


def test_callsOfEachCommand() -> None:
    prov = Provider()
    client = conversation(prov, ALICE)
    for verb, calls in (
        ("CORE", ["listMessageUniqueIDs"]),
        ("SLEE", ["unlock"]),
        ("WAKE", ["lock", "listMessageUniqueIDs"]),
        ("DELE 1", []),
        ("CORE", ["messageDelete", "listMessageUniqueIDs"]),
        ("DELE 1", []),
        ("QAUT", ["messageDelete", *LEAVE]),
        ("XLOG bob secret", LOGIN),
        ("SLEE", ["unlock"]),
        ("QUIT", LEAVE[1:]),
    ):
        prov.calls.clear()
        assert client.say(verb.encode()).startswith(b"+OK")
        assert prov.calls == calls, verb


def test_lostAsleep() -> None:
    prov = Provider()
    client = conversation(prov, ALICE + "C: SLEE\nS: +OK…")
    prov.calls.clear()
    client.vanish()
    assert prov.calls == LEAVE[1:]
    assert len(prov.maildrop.messages) == 2


def test_lostWhileFallingAsleepOrWaking() -> None:
    for script, steps in ((b"DELE 1\r\nSLEE\r\n", 3), (b"SLEE\r\nWAKE\r\n", 4)):
        for step in range(steps):
            prov, client, mailbox = later(script)
            for _ in range(step):
                if mailbox.waiting:
                    mailbox.answer()
            client.vanish()
            mailbox.answerAll()
            assert prov.calls.count("lock") == prov.calls.count("unlock"), (script, step)
            assert prov.calls.count("logout") == 1
            assert not prov.maildrop.isHeld


def test_qaut() -> None:
    """
    After QAUT nothing of the first user is left, and the lock is released.
    """
    mail = provider()
    client = conversation(
        mail,
        ALICE + "C: DELE 3\nS: +OK…\nC: QAUT x\nS: -ERR…\nC: QAUT\nS: +OK Logged out.",
        isSecure=True,
    )
    assert not mail.store.maildrop("alice").isHeld
    assert len(mail.store.maildrop("alice").messages) == 2
    info = client.protocol.session.info
    assert (info.userNameAtLogin, info.providerTag, info.isSecure) == (None, None, True)
    for line in (b"STAT", b"RETR 1", b"DELE 1", b"RSET", b"WAKE"):
        assert client.say(line).startswith(b"-ERR")
    assert client.say(b"PASS secret") == b"-ERR Send USER first.\r\n"
    assert client.say(b"XLOG bob  two words ") == b"+OK Logged in.\r\n"
    assert client.say(b"STAT") == b"+OK 3 98\r\n"
    assert info.userNameAtLogin == "bob"
    # The login timeout begins again.
    client.say(b"QAUT")
    advance(client, 179)
    assert client.isOpen
    assert reason(client, lambda: advance(client, 2)) == "took too long to log in"


def test_qautInTheLog() -> None:
    """
    QAUT logs the line of the user's session, and begins a new record.
    """
    client = loggedIn("C: DELE 1\nS: +OK…")
    assert reason(client, lambda: client.say(b"QAUT")) == "logged out"
    assert client.protocol.session.record.messagesDeleted == 0
    assert client.protocol.session.record.user is None


def test_xlog() -> None:
    conversation(
        provider(),
        """
        S: +OK…
        C: XLOG
        S: -ERR…
        C: XLOG alice
        S: -ERR…
        C: XLOG alice 
        S: -ERR…
        C: XLOG alice wrong
        S: -ERR [AUTH] Wrong name or password.
        C: USER alice
        S: +OK…
        C: XLOG alice wrong
        S: -ERR [AUTH] Wrong name or password.
        C: PASS secret
        S: -ERR Send USER first.
        C: XLOG bob  two words 
        S: +OK Logged in.
        C: XLOG alice secret
        S: -ERR…
        """,
    )
    conversation(
        provider(),
        "S: +OK…\nC: XLOG alice secret\nS: -ERR Use TLS to log in.",
        policy=Policy(cleartextLogin="never"),
    )


SWITCHED = {
    "DELI": ["DELI 1"],
    "CORE": ["CORE", "REFR"],
    "SLEE-WAKE": ["SLEE", "WAKE"],
    "QAUT": ["QAUT"],
    "XLOG": ["XLOG alice secret"],
    "LANG": ["LANG", "LANG en"],
}


@pytest.mark.parametrize("name", EXTENSIONS)
def test_switchedOff(name: str) -> None:
    """
    A disabled extension is neither announced nor accepted; the others are.
    """
    policy = Policy(without=frozenset([name]))
    client = Client(POP3Factory(provider(), policy, clock=Clock()))
    for line in SWITCHED.get(name, []):
        assert client.say(line.encode()).endswith(b"-ERR Unknown command.\r\n")
    client.logIn()
    for line in SWITCHED.get(name, []):
        assert client.say(line.encode()) == b"-ERR Unknown command.\r\n"
    announced = {line.split(b" ")[0].decode() for line in client.say(b"CAPA").split(b"\r\n")[1:]}
    tags = {"SLEE-WAKE": {"SLEE-WAKE", "SLEEPING"}}
    for each in EXTENSIONS:
        for tag in tags.get(each, {each}):
            assert (tag in announced) is (each != name)
    if name == "UID-PARAM":
        for line in (b"RETR UID:message-1", b"LIST uid:message-1", b"TOP UID:message-1 0"):
            assert client.say(line) == b"-ERR Argument is not a number.\r\n"
    marked = client.say(b"LIST").partition(b"\r\n")[0].endswith(b" _")
    assert marked is (name != "MULTI-LINE-IND")


def test_unknownExtension() -> None:
    with pytest.raises(ValueError, match="without NOOP: there are"):
        Policy(without=frozenset(["NOOP"]))


ARGUMENTS = {
    "USER": b" alice",
    "PASS": b" secret",
    "RETR": b" 1",
    "DELE": b" 2",
    "DELI": b" 3",
    "TOP": b" 1 0",
    "XLOG": b" alice secret",
    "AUTH": b"",
}
MULTI_LINE = {"CAPA", "LANG", "LIST", "UIDL", "RETR", "TOP", "AUTH"}


def test_multiLineMark() -> None:
    """
    For all commands, the first line of a multi-line reply ends with the mark, and no other line
    does.
    """
    seen = set()
    for verb, each in COMMANDS.items():
        for state in (State.AUTHORIZATION, State.TRANSACTION, State.SLEEPING):
            for given in (ARGUMENTS.get(verb, b""), b" 1", b" nonsense 1 2"):
                client = Client(
                    POP3Factory(
                        provider(),
                        Policy(cleartextLogin="always"),
                        clock=Clock(),
                        connectionCreator=object(),
                    )
                )
                assert not client.received().endswith(b" _\r\n")
                if state is not State.AUTHORIZATION:
                    client.logIn()
                if state is State.SLEEPING:
                    client.say(b"SLEE")
                if verb == "PASS":
                    client.say(b"USER alice")
                lines = client.say(verb.encode() + given).split(b"\r\n")[:-1]
                if lines[-1] == b"." and len(lines) > 1:
                    assert lines[0].startswith(b"+OK")
                    assert lines[0].endswith(b" _"), (verb, lines)
                    seen.add(verb)
                else:
                    assert len(lines) == 1
                    assert not lines[0].endswith(b" _"), (verb, lines)
                assert not any(line.endswith(b" _") for line in lines[1:])
                assert each.verb == verb
    assert seen == MULTI_LINE


def test_markCannotBeForged() -> None:
    """
    If the text of a provider ends like the mark, this end is not sent.
    """
    mail = StubProvider(MESSAGES, messageDelete=POP3ResponseError("Odd _"))
    conversation(mail, ALICE + "C: DELI 1\nS: -ERR Odd")


def test_takeOver() -> None:
    """
    An idle session releases its lock for another session of the user, and deletes nothing.  A
    session keeps its lock while a command runs, and longer if messages are marked.
    """
    mail = provider([b"x" * 500_000, b"y"])
    refused = "S: +OK…\nC: USER alice\nS: +OK…\nC: PASS secret\nS: -ERR [IN-USE] …"
    first = conversation(mail, ALICE + "C: DELE 2\nS: +OK…")
    advance(first, 599)
    conversation(mail, refused)
    advance(first, 0.5)
    first.say(b"RSET")
    advance(first, 59)
    conversation(mail, refused)
    first.stall()
    first.send(b"RETR 1\r\n")
    advance(first, 59)
    conversation(mail, refused)
    while first.read(100_000):
        advance(first, 0)
    first.transport.isStalled = False
    advance(first, 59)
    conversation(mail, refused)
    advance(first, 2)
    seen = []
    why = reason(first, lambda: seen.append(conversation(mail, ALICE)) or first.pump())
    assert why == "made room for another session of the user"
    assert not first.isOpen
    assert seen[0].say(b"STAT")[:5] == b"+OK 2"


def test_takeOverFromAClientThatDoesNotRead() -> None:
    """
    A client that stops reading in the middle of a message counts as idle.
    """
    mail = provider([b"x" * 500_000, b"y"])
    first = conversation(mail, ALICE)
    first.stall()
    first.send(b"RETR 1\r\n")
    advance(first, 61)
    seen = []
    why = reason(first, lambda: seen.append(conversation(mail, ALICE)) or first.pump())
    assert why == "made room for another session of the user"
    assert first.wasAborted
    assert seen[0].say(b"STAT")[:5] == b"+OK 2"


def test_marksDelayTheTakeOver() -> None:
    policy = Policy(idleTimeout=2000)
    mail = provider()
    first = conversation(mail, ALICE + "C: DELE 1\nS: +OK…", policy=policy)
    advance(first, 601)
    conversation(mail, ALICE)
    assert len(mail.store.maildrop("alice").messages) == 3


def test_idleFreesTheMailboxAtOnce() -> None:
    """
    The idle timeout releases the lock at once, even if the client closes later.
    """
    mail = provider()
    first = conversation(mail, ALICE)
    first.stall()
    advance(first, 601)
    assert not mail.store.maildrop("alice").isHeld
    assert first.isOpen
    first.vanish()


def test_idleTimeoutAfterWake() -> None:
    """
    After WAKE, the idle timeout is ten minutes again, not an hour.
    """
    client = loggedIn("")
    client.say(b"SLEE")
    advance(client, 601)
    assert client.say(b"WAKE").startswith(b"+OK")
    advance(client, 599)
    assert client.isOpen
    advance(client, 2)
    assert not client.isOpen


def test_sleepingSessionIsNotAskedToRelease() -> None:
    asked: list[Callable[[], bool]] = []
    client, _ = served(lock=lambda info, requestRelease: asked.append(requestRelease))
    client.say(b"PASS secret")
    assert client.say(b"SLEE").startswith(b"+OK")
    advance(client, 100)
    assert not asked[0]()
    assert client.isOpen


@pytest.mark.parametrize("error", [RuntimeError("a bug"), CancelledError()])
def test_coreFailsToListByABug(error: Exception) -> None:
    """
    If an unexpected error prevents the new listing of CORE, the error is logged, and the connection
    is closed.
    """
    answers: list[Any] = [["message-1", "message-2"]]

    def listed(info: Any) -> Any:
        if answers:
            return answers.pop()
        raise error

    client, calls = served(listMessageUniqueIDs=listed)
    client.say(b"PASS secret")
    (event,) = events("error", lambda: client.send(b"CORE\r\n"))
    assert client.received().startswith(b"-ERR [SYS/TEMP]")
    assert event["log_failure"].check(type(error))
    assert (client.isOpen, calls) == (False, ["unlock"])


def test_newMailWhileAsleep() -> None:
    """
    A session that was not notified does not compare listings.
    """
    calls: list[str] = []
    watching: list[Callable[[], None]] = []

    def watchMailbox(info: Any, changed: Callable[[], None]) -> Callable[[], None]:
        watching.append(changed)
        return lambda: calls.append("watch ended")

    provider = StubProvider(watchMailbox=watchMailbox, onSleep=lambda info: calls.append("onSleep"))
    client = Client(POP3Factory(provider, clock=Clock()))
    client.logIn()
    for isTold in (False, True, True):
        assert client.say(b"SLEE").startswith(b"+OK")
        provider.maildrop.add(b"new")
        if isTold:
            watching[0]()
        code = b"ACTIVITY/NEW" if isTold else b"ACTIVITY/NONE"
        assert client.say(b"WAKE").startswith(b"+OK [%s]" % code)
    client.say(b"QUIT")
    assert calls == ["onSleep"] * 3 + ["watch ended"]
