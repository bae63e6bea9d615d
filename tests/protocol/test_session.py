"""
Calls of the provider and its mailbox, and their order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from zope.interface import implementer
from zope.interface.verify import verifyObject

from pop3svc.awaiting import settled
from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import (
    ILoginThrottle,
    IPOP3ConnectionInfo,
)
from pop3svc.policy import Policy
from pop3svc.protocol.authentication import Password
from pop3svc.protocol.session import ConnectionInfo, Session, State
from pop3svc.providers.memory import MemoryProvider
from pop3svc.service.factory import POP3Factory
from pop3svc.testing import Async, Client, Delayed, StubProvider, conversation
from tests.support.connections import loggedIn, withCommand
from tests.support.contents import Chunks
from tests.support.conversations import ALICE
from tests.support.coroutines import start
from tests.support.mailboxes import LEAVE, LOGIN, Provider, later, logged

# A kind of wrapped mailbox.
W = TypeVar("W", bound=Delayed)


def test_orderOfCalls() -> None:
    provider = Provider()
    client = conversation(provider, ALICE)
    assert provider.calls == LOGIN
    assert provider.info.userNameAtLogin == "alice"
    provider.calls.clear()
    client.say(b"STAT")
    client.say(b"LIST")
    assert provider.calls == ["messageSize", "messageContent"] * 2
    provider.calls.clear()
    client.say(b"DELE 1")
    client.say(b"QUIT")
    assert provider.calls == ["messageDelete", *LEAVE]
    assert list(provider.maildrop.messages) == ["message-2"]


def test_quitWithoutMarksDeletesNothing() -> None:
    provider = Provider()
    client = conversation(provider, ALICE)
    provider.calls.clear()
    client.say(b"DELE 1")
    client.say(b"RSET")
    client.say(b"QUIT")
    assert provider.calls == LEAVE


def test_lostClientDeletesNothing() -> None:
    provider = Provider()
    client = conversation(provider, ALICE + "C: DELE 1\nS: +OK…")
    provider.calls.clear()
    client.vanish()
    assert provider.calls == LEAVE
    assert len(provider.maildrop.messages) == 2


def test_mailboxOfCoroutines() -> None:
    provider = Provider(Async)
    client = conversation(provider, ALICE + "C: DELE 1\nS: +OK…\nC: QUIT\nS: +OK…\nS: (closed)")
    assert not client.isOpen
    assert list(provider.maildrop.messages) == ["message-2"]


def test_loginFailsAfterTheLock() -> None:
    """
    A listing breaks a rule: the log names the rule, the reply does not.
    """
    for listing, rule in ((["a", "a"], "listed twice"), (["_"], "not a well-formed")):
        provider = Provider(listMessageUniqueIDs=listing)
        seen: list[Any] = []
        globalLogPublisher.addObserver(seen.append)
        conversation(
            provider,
            "S: +OK…\nC: USER alice\nS: +OK…\nC: PASS secret\n"
            "S: -ERR [SYS/PERM] Mailbox cannot be listed.\nC: STAT\nS: -ERR…\nC: USER alice\nS: +OK…",
        )
        globalLogPublisher.removeObserver(seen.append)
        assert any(rule in event.get("rule", "") for event in seen)
        assert [each for each in provider.calls if each in LEAVE] == LEAVE
        assert provider.info.userNameAtLogin is None


def test_loginReturnsNoMailbox() -> None:
    """
    A result that is no mailbox is a bug of the provider.
    """
    provider = Provider(lambda mailbox: object())
    conversation(
        provider,
        "S: +OK…\nC: USER alice\nS: +OK…\nC: PASS secret\nS: -ERR [SYS/TEMP]…\nS: (closed)",
    )


@pytest.mark.parametrize("steps", range(5))
def test_lostAtEveryAwaitOfTheLogin(steps: int) -> None:
    """
    If the client is lost during the login, each acquired resource is released once.
    """
    wrapped: list[Delayed] = []

    def wrap(mailbox: Any) -> Delayed:
        wrapped.append(Delayed(mailbox))
        return wrapped[0]

    provider = Provider(wrap)
    client = Client(POP3Factory(provider, clock=Clock()))
    client.send(b"USER alice\r\nPASS secret\r\nSTAT\r\n")
    done = [wrapped[0].answer() for _ in range(min(steps, 3))]
    if steps == 4:
        assert client.received().endswith(b"+OK Logged in.\r\n")
    client.vanish()
    wrapped[0].answerAll()
    assert done == LOGIN[1 : 1 + min(steps, 3)]
    assert provider.calls.count("lock") == provider.calls.count("unlock")
    assert provider.calls.count("watchMailbox") == provider.calls.count("watch ended")
    assert provider.calls.count("logout") == 1
    assert not provider.maildrop.isHeld


def test_lostDuringTheDeletion() -> None:
    """
    The deletion is finished, and then the lock is released.
    """
    provider, client, mailbox = later(b"DELE 1\r\nQUIT\r\n")
    assert [name for name, *_ in mailbox.waiting] == ["messageDelete"]
    client.vanish()
    assert mailbox.cancelled == []
    assert [name for name, *_ in mailbox.waiting] == ["messageDelete"]
    assert client.protocol.factory.connections  # type: ignore[union-attr]
    mailbox.answerAll()
    assert provider.calls[-4:] == ["messageDelete", *LEAVE]
    assert list(provider.maildrop.messages) == ["message-2"]
    assert not client.protocol.factory.connections  # type: ignore[union-attr]


def test_lostDuringTheUnlock() -> None:
    provider, client, mailbox = later(b"DELE 1\r\nQUIT\r\n")
    assert mailbox.answer() == "messageDelete"
    assert [name for name, *_ in mailbox.waiting] == ["unlock"]
    client.vanish()
    mailbox.answerAll()
    assert provider.calls[-4:] == ["messageDelete", *LEAVE]


def test_deletionTimesOut() -> None:
    """
    The client is told that the result is not known; the lock is kept until the deletion ends.
    """
    provider, client, mailbox = later(b"DELE 1\r\nQUIT\r\n")
    client.protocol.factory.clock.advance(119)  # type: ignore[union-attr]
    assert client.received() == b"+OK Message marked for deletion.\r\n"
    client.protocol.factory.clock.advance(2)  # type: ignore[union-attr]
    assert client.received().endswith(
        b"-ERR [SYS/TEMP] The deletion takes too long; whether it happens is not known yet.\r\n"
    )
    assert not client.isOpen
    assert provider.maildrop.isHeld
    mailbox.answerAll()
    assert provider.calls[-4:] == ["messageDelete", *LEAVE]
    assert not provider.maildrop.isHeld


def test_deletionFailsWithoutItsClient() -> None:
    provider, client, mailbox = later(b"DELE 1\r\nQUIT\r\n")
    client.vanish()
    _, answer, _ = mailbox.waiting.pop()
    answer.errback(OSError("disk"))
    mailbox.answerAll()
    assert provider.calls[-3:] == LEAVE


def test_callTimesOut() -> None:
    """
    A call that takes too long is cancelled and the connection closed.
    """
    provider, client, mailbox = later(b"STAT\r\n")
    seen: list[Any] = []
    globalLogPublisher.addObserver(seen.append)
    client.protocol.factory.clock.advance(121)  # type: ignore[union-attr]
    globalLogPublisher.removeObserver(seen.append)
    (text,) = (formatEvent(event) for event in seen if "timeout" in event)
    number = client.protocol.session.info.connectionID
    assert text.endswith(f" of connection {number} did not answer within 120 s")
    assert client.received() == b"-ERR [SYS/TEMP] Mailbox timed out.\r\n"
    assert mailbox.cancelled == ["messageSize"]
    mailbox.answerAll()
    assert not client.isOpen
    assert provider.calls[-3:] == LEAVE


def test_failedReleaseIsLogged() -> None:
    """
    If unlock fails, QUIT still succeeds, and the other resources are released.
    """
    provider = Provider(unlock=lambda info: fail(ValueError("x")))
    client = conversation(provider, ALICE)
    provider.calls.clear()
    told = logged(lambda: client.send(b"QUIT\r\n"))
    assert client.received() == b"+OK Bye.\r\n"
    assert [each["log_failure"].type for each in told if "log_failure" in each] == [ValueError]
    assert provider.calls == LEAVE


def test_bulkSizes() -> None:
    provider = Provider(messageSizes=iter([5, 6]))
    conversation(
        provider,
        ALICE
        + "C: STAT\nS: +OK 2 11\nC: LIST\nS: +OK…\nS: 1 5\nS: 2 6\nS: .\nC: LIST 2\nS: +OK 2 6",
    )
    assert provider.calls.count("messageSizes") == 1
    assert "messageSize" not in provider.calls


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([5, 6], b"+OK 2 11\r\n"),
        # Without the method the mailbox is asked for one size after the other.
        (NotImplementedError(), b"+OK 2 10\r\n"),
        (ValueError(), b"-ERR [SYS/TEMP] Internal error.\r\n"),
        ([5], b"-ERR [SYS/TEMP] Internal error.\r\n"),
    ],
)
def test_bulkSizesLater(answer: Any, said: bytes) -> None:
    later: Deferred[Any] = Deferred()
    provider = StubProvider([b"one\n", b"two\n"], messageSizes=lambda *_: later)
    client = conversation(provider, ALICE)
    assert client.say(b"STAT") == b""
    if isinstance(answer, Exception):
        later.errback(answer)
    else:
        later.callback(answer)
    assert client.received() == said


@pytest.mark.parametrize("answer", [[5], [5, 6, 7], [5, -1], [5, "6"], None])
def test_badSizes(answer: Any) -> None:
    provider = StubProvider([b"one\n", b"two\n"], messageSizes=answer)
    conversation(provider, ALICE + "C: STAT\nS: -ERR [SYS/TEMP] Internal error.\nS: (closed)")


@implementer(ILoginThrottle)
class Throttle:
    def __init__(self, may: bool = True) -> None:
        self.may = may
        self.calls: list[str] = []

    async def mayLogin(self, info: object, username: str, password: str) -> bool:
        assert IPOP3ConnectionInfo.providedBy(info)
        self.calls.append(f"may {username}")
        return self.may

    def loginFailed(self, info: object, username: str) -> Any:
        assert IPOP3ConnectionInfo.providedBy(info)
        answer: Deferred[None] = Deferred()
        answer.callback(None)
        self.calls.append(f"failed {username}")
        return answer

    def loginSucceeded(self, info: object, username: str) -> None:
        assert IPOP3ConnectionInfo.providedBy(info)
        self.calls.append(f"succeeded {username}")

    def loginAbandoned(self, info: object, username: str, isLost: bool) -> None:
        assert IPOP3ConnectionInfo.providedBy(info)
        self.calls.append(f"{'lost' if isLost else 'fault'} {username}")


class LateThrottle(Throttle):
    """
    Hears of a success, and answers when the test says so.
    """

    def __init__(self) -> None:
        super().__init__()
        self.told: Deferred[None] = Deferred()

    def loginSucceeded(self, info: object, username: str) -> Any:
        super().loginSucceeded(info, username)
        return self.told


def test_throttleAnswersLater() -> None:
    """
    The user is not logged in before the throttle has heard of the success.
    """
    throttle = LateThrottle()
    client = conversation(Provider(), "S: +OK…\nC: USER alice\nS: +OK…", throttle=throttle)
    assert client.say(b"PASS secret") == b""
    throttle.told.callback(None)
    assert client.received() == b"+OK Logged in.\r\n"


def test_throttleSeesEachAttempt() -> None:
    """
    PASS and AUTH use the same throttle.
    """
    throttle, provider = Throttle(), Provider()
    verifyObject(ILoginThrottle, throttle)
    conversation(
        provider,
        "S: +OK…\nC: USER alice\nS: +OK…\nC: PASS wrong\nS: -ERR [AUTH]…\n"
        "C: AUTH PLAIN AGFsaWNlAHNlY3JldA==\nS: +OK…",
        throttle=throttle,
    )
    assert throttle.calls == ["may alice", "failed alice", "may alice", "succeeded alice"]


def test_throttleRefuses() -> None:
    throttle, provider = Throttle(False), Provider()
    conversation(
        provider,
        "S: +OK…\nC: USER alice\nS: +OK…\nC: PASS secret\nS: -ERR [AUTH] Wrong name or password.",
        throttle=throttle,
    )
    assert (provider.calls, throttle.calls) == ([], ["may alice"])


def test_inUseIsNoFailedLogin() -> None:
    throttle, provider = Throttle(), Provider()
    provider.maildrop.holder = lambda: False
    conversation(
        provider,
        "S: +OK…\nC: USER alice\nS: +OK…\nC: PASS secret\nS: -ERR [IN-USE]…",
        throttle=throttle,
    )
    assert throttle.calls == ["may alice", "succeeded alice"]
    assert provider.maildrop.isHeld


def test_onlyWrongCredentialsAreFailures() -> None:
    script = (
        "S: +OK…\nC: USER {0}\nS: +OK…\nC: PASS secret\nS: -ERR [{0}] {1}\nC: USER alice\nS: +OK…"
    )
    for code, failures in (("LOGIN-DELAY", 0), ("SYS/TEMP", 0), ("AUTH", 1)):
        throttle = Throttle()
        # The text is the same for a wrong name and a wrong password.
        text = "Wrong name or password." if failures else "Come later."
        provider = StubProvider(authenticate=POP3ResponseError("Come later.", code))
        conversation(provider, script.format(code, text), throttle=throttle)
        assert throttle.calls == [f"may {code}", f"{'failed' if failures else 'fault'} {code}"]
    throttle = Throttle()
    conversation(
        StubProvider(authenticate=KeyError("secret")),
        "S: +OK…\nC: USER bug\nS: +OK…\nC: PASS x\nS: -ERR [SYS/TEMP]…\nS: (closed)",
        throttle=throttle,
    )
    assert throttle.calls == ["may bug", "fault bug"]


def test_lostClientAbandonsTheAttempt() -> None:
    """
    The throttle gets C{loginAbandoned} for an attempt without a result.
    """
    throttle = Throttle()
    provider = StubProvider(authenticate=Deferred())
    client = Client(POP3Factory(provider, clock=Clock(), throttle=throttle))
    client.send(b"XLOG alice secret\r\n")
    client.vanish()
    assert throttle.calls == ["may alice", "lost alice"]


@pytest.mark.parametrize(
    ("mayLogin", "calls"), [(True, ["may alice", "fault alice"]), (False, ["may alice"])]
)
def test_answeredAfterTheEnd(mayLogin: bool, calls: list[str]) -> None:
    """
    The throttle hears the end of an attempt that it admits although the client is gone.
    """

    class Stubborn(Throttle):
        async def mayLogin(self, info: object, username: str, password: str) -> bool:
            try:
                await Deferred()
            except CancelledError:
                pass
            return await super().mayLogin(info, username, password)

    throttle = Stubborn(mayLogin)
    client = Client(POP3Factory(Provider(), clock=Clock(), throttle=throttle))
    client.send(b"XLOG alice secret\r\n")
    client.vanish()
    assert throttle.calls == calls


async def stubborn(answer: Any) -> Any:
    """
    @return: the answer, only when the caller cancels.
    """
    try:
        await Deferred()
    except CancelledError:
        pass
    return answer


def test_openedAfterTheEnd() -> None:
    """
    A mailbox that a provider opens although the client is gone is released.
    """
    provider = Provider(stubborn)
    client = Client(POP3Factory(provider, clock=Clock()))
    client.send(b"XLOG alice secret\r\n")
    client.vanish()
    assert provider.calls == ["authenticate", "logout"]


def test_refusedAfterTheEnd() -> None:
    provider = Provider(lambda mailbox: stubborn(None))
    client = Client(POP3Factory(provider, clock=Clock()))
    client.send(b"XLOG alice secret\r\n")
    client.vanish()
    assert provider.calls == ["authenticate"]


def test_watchedAfterTheEnd() -> None:
    """
    A watch that a mailbox begins although the client is gone is ended.
    """
    provider: Provider

    def watch(info: object, changed: object) -> Any:
        return stubborn(lambda: provider.calls.append("watch ended"))

    provider = Provider(watchMailbox=watch)
    client = Client(POP3Factory(provider, clock=Clock()))
    client.send(b"XLOG alice secret\r\n")
    client.vanish()
    assert sorted(provider.calls) == ["authenticate", "logout", "watch ended", "watchMailbox"]


def test_notWatchedAfterTheEnd() -> None:
    """
    If a mailbox that cannot be watched answers after the client is gone, the mailbox is released
    without an error.
    """
    provider = Provider(watchMailbox=lambda info, changed: stubborn(None))
    client = Client(POP3Factory(provider, clock=Clock()))
    client.send(b"XLOG alice secret\r\n")
    assert [each.get("pop3Event") for each in logged(client.vanish)] == ["close"]
    assert sorted(provider.calls) == ["authenticate", "logout", "watchMailbox"]


@pytest.mark.parametrize(
    ("address", "isLoopback"),
    [
        (None, True),
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("192.0.2.1", False),
        ("2001:db8::1", False),
        ("fe80::1%eth0", False),
    ],
)
def test_loopback(address: str | None, isLoopback: bool) -> None:
    assert ConnectionInfo(1, address, False).isLoopback is isLoopback


def test_cleartextPolicies() -> None:
    def may(policy: str, address: str, isSecure: bool) -> bool:
        info = ConnectionInfo(1, address, isSecure)
        return Session(info, Provider(), Policy(cleartextLogin=policy), Clock()).mayLogInHere

    for address in ("127.0.0.1", "192.0.2.1"):
        assert may("never", address, True)
        assert not may("never", address, False)
        assert may("always", address, False)
    assert may("loopback", "127.0.0.1", False)
    assert not may("loopback", "192.0.2.1", False)


def test_namesInEvents() -> None:
    """
    Unprintable characters of a name are escaped; no event contains a password.
    """
    seen: list[Any] = []
    globalLogPublisher.addObserver(seen.append)
    client = Client(POP3Factory(Provider(), Policy(verboseEvents=1), clock=Clock()))
    client.send(b"USER a\xffb\xc2\x85c\r\nPASS hunter2\r\n")
    client.send("USER älice\r\nPASS secret\r\nQUIT\r\n".encode())
    globalLogPublisher.removeObserver(seen.append)
    logins = [event for event in seen if event.get("pop3Event") == "login"]
    assert [(event["user"], event["succeeded"], event["code"]) for event in logins] == [
        ("a\\udcffb\\x85c", False, "AUTH"),
        ("älice", True, None),
    ]
    info = client.protocol.session.info
    assert {(event["connectionID"], event["clientIP"], event["isSecure"]) for event in logins} == {
        (info.connectionID, "127.0.0.1", False)
    }
    assert "hunter2" not in repr(seen)
    assert [event["pop3Event"] for event in seen if "pop3Event" in event] == (
        ["connection"] + ["command", "login", "command"] * 2 + ["command", "close"]
    )


def test_lostWhileUnlockingForSleep() -> None:
    """
    A client is lost while SLEE releases the lock: there is no other call meanwhile, and the
    connection ends after the release.
    """
    late: list[Delayed] = []

    def wrap(mailbox: Any) -> Any:
        late.append(Delayed(mailbox))
        return late[0]

    provider = Provider(wrap)
    factory = POP3Factory(provider, clock=Clock())
    client = Client(factory)
    client.say(b"USER alice")
    client.say(b"PASS secret")
    late[0].answerAll()
    client.say(b"SLEE")
    client.vanish()
    assert [name for name, _, _ in late[0].waiting] == ["unlock"]
    assert factory.connections
    late[0].answerAll()
    assert provider.calls[-3:] == LEAVE
    assert not provider.maildrop.isHeld and not factory.connections


def asleep(wrapper: type[W]) -> tuple[Provider, POP3Factory, Client, list[W]]:
    """
    @param wrapper: wraps the mailbox.
    @return: a provider, its factory, a client that has sent SLEE, and the wrapped mailbox.
    """
    late: list[W] = []

    def wrap(mailbox: Any) -> Any:
        late.append(wrapper(mailbox))
        return late[0]

    provider = Provider(wrap)
    factory = POP3Factory(provider, clock=Clock())
    client = Client(factory)
    client.say(b"USER alice")
    client.say(b"PASS secret")
    late[0].answerAll()
    client.say(b"SLEE")
    late[0].answerAll()
    return provider, factory, client, late


def test_lostAfterAWakeThatFails() -> None:
    """
    A client is lost while a WAKE that could not list the mailbox releases the lock: there is
    no other call meanwhile.
    """
    provider, factory, client, late = asleep(Delayed)
    provider.maildrop.messages["_"] = b""
    client.say(b"WAKE")
    while "unlock" not in [name for name, _, _ in late[0].waiting]:
        late[0].answer()
    client.vanish()
    assert [name for name, _, _ in late[0].waiting] == ["unlock"]
    assert factory.connections
    late[0].answerAll()
    assert not provider.maildrop.isHeld and not factory.connections


class LocksAllTheSame(Delayed):
    """
    Takes the lock when the call is cancelled, because the call can no longer be stopped.

    @ivar isAwake: C{True} while C{lock} still behaves like the other methods.
    """

    isAwake = True

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        if name != "lock" or self.isAwake:
            return super().around(name, call)

        def lock(*arguments: Any) -> Deferred[None]:
            return Deferred(lambda waiter: call(*arguments).chainDeferred(waiter))

        return lock


def test_lostWhileALockIsTakenAllTheSame() -> None:
    """
    A client is lost while WAKE takes the lock, and the lock is taken nevertheless: logout
    waits until unlock has returned.
    """
    provider, factory, client, late = asleep(LocksAllTheSame)
    late[0].isAwake = False
    client.say(b"WAKE")
    client.vanish()
    assert [name for name, _, _ in late[0].waiting] == ["unlock"]
    assert factory.connections
    late[0].answerAll()
    assert not provider.maildrop.isHeld and not factory.connections


def test_failedLoginsInTheLog() -> None:
    """
    The lines for fail2ban: one for each wrong guess, and none for other refusals.
    """
    provider = Provider()

    def lines(script: str) -> list[str]:
        told = logged(lambda: conversation(provider, script))
        return [formatEvent(each) for each in told if each.get("pop3Event") == "login"]

    refused = "S: +OK…\nC: USER bob\nS: +OK…\nC: PASS wrong\nS: -ERR [AUTH]…"
    assert lines(refused) == ["failed login from 127.0.0.1: bob"]
    assert lines(ALICE) == []

    provider = Provider(authenticate=POP3ResponseError("Not now."))
    script = "S: +OK…\nC: USER alice\nS: +OK…\nC: PASS secret\nS: -ERR Not now."
    assert lines(script) == []
    told = logged(lambda: conversation(provider, script, Policy(verboseEvents=True)))
    assert [each["code"] for each in told if each.get("pop3Event") == "login"] == [""]
    provider = Provider()
    provider.maildrop.holder = lambda: False
    assert lines("S: +OK…\nC: USER alice\nS: +OK…\nC: PASS secret\nS: -ERR [IN-USE]…") == []


def test_tooManyFailedLogins() -> None:
    """
    The connection is closed after the last failed login that the policy allows.
    """
    refused = "C: USER bob\nS: +OK…\nC: PASS wrong\nS: -ERR [AUTH] Wrong name or password.\n"
    for allowed in (1, 3):
        client = conversation(
            Provider(), "S: +OK…\n" + refused * allowed, Policy(maxFailedLogins=allowed)
        )
        assert not client.isOpen
        if allowed > 1:
            client = conversation(
                Provider(), "S: +OK…\n" + refused * (allowed - 1), Policy(maxFailedLogins=allowed)
            )
            assert client.isOpen


def test_everyCallGetsTheInfo() -> None:
    """
    Every call of the mailbox passes the connection's information.
    """
    infos: dict[str, set[Any]] = {}
    names = {
        *("watchMailbox", "lock", "listMessageUniqueIDs", "messageSize", "messageSizes"),
        *("messageContent", "messageExists", "messageDelete", "onSleep", "unlock"),
    }

    def telling(name: str, call: Any) -> Any:
        def asked(info: Any, *arguments: Any) -> Any:
            infos.setdefault(name, set()).add(info)
            return call(info, *arguments)

        return asked

    def wrap(mailbox: Any) -> Any:
        for name in names:
            setattr(mailbox.inside, name, telling(name, getattr(mailbox.inside, name)))
        return mailbox

    provider = Provider(
        wrap, onSleep=None, messageSizes=lambda info, uniqueIDs: [4] * len(uniqueIDs)
    )
    client = conversation(provider, ALICE)
    late = provider.maildrop.add(b"late")
    for line in ("STAT", f"LIST UID:{late}", "RETR 1", "DELI 1", "SLEE", "WAKE", "QUIT"):
        assert client.say(line.encode()).startswith(b"+OK"), line
    assert infos == dict.fromkeys(names, {provider.info})


def test_sizesAreAskedForOnce() -> None:
    """
    Only unknown sizes are requested, in one call if the mailbox has C{messageSizes}.
    """
    sizes = {"message-1": 5, "message-2": None, "message-3": 7}
    for isBulk in (True, False):
        asked: list[Any] = []

        def messageSizes(info: Any, uniqueIDs: Any, them: Any = asked) -> Any:
            them.append(list(uniqueIDs))
            return [sizes[each] for each in uniqueIDs]

        def messageSize(info: Any, uniqueID: str, them: Any = asked) -> Any:
            them.append(uniqueID)
            if sizes[uniqueID] is None:
                raise POP3ResponseError("Message no longer exists.")
            return sizes[uniqueID]

        bulk = {"messageSizes": messageSizes} if isBulk else {}
        provider = Provider(messageSize=messageSize, **bulk)
        provider.maildrop.add(b"three\n")
        client = conversation(provider, ALICE)
        # The second message is gone, so its size is never known.
        assert client.say(b"LIST 3") == b"+OK 3 7\r\n"
        assert client.say(b"STAT") == b"+OK 3 12\r\n"
        assert client.say(b"LIST").endswith(b"\r\n1 5\r\n2 0\r\n3 7\r\n.\r\n")
        assert client.say(b"DELE 1").startswith(b"+OK")
        assert client.say(b"STAT") == b"+OK 2 7\r\n"
        assert client.say(b"LIST").endswith(b"\r\n2 0\r\n3 7\r\n.\r\n")
        first = [["message-1", "message-2"]] if isBulk else ["message-1", "message-2"]
        again = [["message-2"] if isBulk else "message-2"] * 3
        assert asked == ["message-3", *first, *again]
        assert client.say(b"DELE 2").startswith(b"+OK")
        assert client.say(b"STAT") == b"+OK 1 7\r\n"
        assert len(asked) == 4 + len(first)


def test_badListingInTheLog() -> None:
    provider = Provider(listMessageUniqueIDs=["a", "a"])
    clients: list[Client] = []
    script = "S: +OK…\nC: USER alice\nS: +OK…\nC: PASS secret\nS: -ERR [SYS/PERM]…"
    told = logged(lambda: clients.append(conversation(provider, script)))
    (event,) = (each for each in told if "rule" in each)
    assert formatEvent(event).partition(" breaks a rule in the listing of alice: ")[2]
    assert event["connectionID"] == clients[0].protocol.session.info.connectionID


def test_pieceOfAMessageTimesOut() -> None:
    """
    The time limit of calls applies to each piece of a message.
    """
    content = Chunks([])
    content.nextChunk = Deferred  # type: ignore[method-assign]
    client = conversation(Provider(messageContent=content), ALICE)
    clock: Any = client.protocol.factory.clock  # type: ignore[union-attr]
    client.say(b"RETR 1")
    clock.advance(119)
    client.pump()
    assert client.isOpen
    clock.advance(2)
    client.pump()
    assert client.wasAborted


def test_deliTimesOut() -> None:
    """
    If DELI times out, the state of the mailbox is not known, and the connection is closed.
    """
    provider, client, mailbox = later(b"DELI 1\r\n")
    client.protocol.factory.clock.advance(1)  # type: ignore[union-attr]
    name, answer, result = mailbox.waiting[0]
    assert name == "messageContent"
    mailbox.answer()
    assert [each for each, _, _ in mailbox.waiting] == ["messageDelete"]
    client.protocol.factory.clock.advance(121)  # type: ignore[union-attr]
    assert client.received().startswith(b"-ERR [SYS/TEMP] The deletion takes too long")
    assert not client.isOpen
    mailbox.answerAll()


def test_quitFreesTheMailboxAtOnce() -> None:
    """
    QUIT releases the mailbox before the client reads the reply.
    """
    provider = Provider()
    client = conversation(provider, ALICE + "C: DELE 1\nS: +OK…")
    client.stall()
    client.send(b"QUIT\r\n")
    assert client.isOpen and not provider.maildrop.isHeld
    client.vanish()


def test_unlockFailsAsleep() -> None:
    """
    A failed unlock does not end the session, neither at SLEE nor after a failed WAKE.  At its end
    the session does not call unlock again.
    """
    infos: list[Any] = []

    def failing(info: Any) -> Any:
        infos.append(info)
        provider.maildrop.holder = None
        raise ValueError("x")

    provider = Provider(unlock=failing)
    client = conversation(provider, ALICE)
    assert client.say(b"SLEE").startswith(b"+OK")
    messages = dict(provider.maildrop.messages)
    provider.maildrop.messages["_"] = b""
    assert client.say(b"WAKE").startswith(b"-ERR [SYS/PERM]")
    provider.maildrop.messages = messages
    provider.calls.clear()
    client.vanish()
    assert infos == [provider.info] * 2
    # The session has no lock, and releases none.
    assert provider.calls == ["watch ended", "logout"]


def test_failedLoginUnlocksNothing() -> None:
    """
    After QAUT, a login that finds the mailbox locked does not release the lock of the other
    session.
    """
    provider = Provider()
    client = conversation(provider, ALICE)
    assert client.say(b"QAUT").startswith(b"+OK")
    provider.maildrop.holder = lambda: False
    provider.calls.clear()
    client.say(b"USER alice")
    assert client.say(b"PASS secret").startswith(b"-ERR [IN-USE]")
    client.vanish()
    assert "unlock" not in provider.calls
    assert provider.maildrop.isHeld


def test_slotIsReleasedOnce() -> None:
    """
    C{acquireSlot} is called at each login and WAKE, and the function that it returns is called once.
    """
    asked: list[tuple[str, bool]] = []
    dismissed: list[Any] = []

    def acquireSlot(name: str, isLogin: bool) -> Callable[[bool], object]:
        asked.append((name, isLogin))
        return dismissed.append

    provider = Provider()
    session = Session(
        ConnectionInfo(7, None, False), provider, Policy(), Clock(), acquireSlot=acquireSlot
    )
    assert (session.info.connectionID, session.mayStartTLS) == (7, False)
    assert session.info.providerTag is None
    listed = provider.maildrop.messages
    provider.maildrop.messages = {"_": b""}
    for isBefore in (True, False):
        _, got = start(session.logIn(Password("alice", "secret")))
        assert got[0].check(POP3ResponseError)
        assert (asked, dismissed) == ([("alice", True)], [False])
        assert dismissed[0] is False
        if isBefore:
            provider.maildrop.messages = listed
            assert start(session.logIn(Password("alice", "secret")))[1] == [None]
            session.enter(State.TRANSACTION)
            assert session._requestRelease() is False
            assert start(settled(session.sleep()))[1] == [0]
            assert dismissed == [False, True] and dismissed[1] is True
            session.enter(State.SLEEPING)
            provider.maildrop.messages = {"_": b""}
            _, got = start(session.wake())
            assert got[0].check(POP3ResponseError)
            provider.maildrop.messages = listed
            assert start(session.wake())[1] == [False]
            session.enter(State.TRANSACTION)
            assert asked == [("alice", True)] * 2 + [("alice", False)] * 2
            assert start(settled(session.logOut()))[1] == [None]
            assert dismissed == [False, True, True, True]
            session.enter(State.AUTHORIZATION)
            provider.maildrop.messages = {"_": b""}
            asked.clear()
            dismissed.clear()


def test_requestRelease() -> None:
    """
    Only a session in TRANSACTION that has not ended is asked to release its lock.
    """
    session = Session(ConnectionInfo(1, None, False), Provider(), Policy(), Clock())
    session.tryRelease = lambda isMarked: True
    assert session._requestRelease() is False
    assert start(session.logIn(Password("alice", "secret")))[1] == [None]
    assert session._requestRelease() is False
    session.enter(State.TRANSACTION)
    assert session._requestRelease() is True
    session.isOver = True
    assert session._requestRelease() is False
    session.isOver = False
    assert start(settled(session.end()))[1] == [None]
    assert session.isOver is True


def test_endBeforeLoginLogsNoError() -> None:
    """
    A connection that never logged in ends without an error.
    """
    client = Client(POP3Factory(Provider(), clock=Clock()))
    assert [event for event in logged(client.vanish) if "log_failure" in event] == []


def test_failedReleaseOfALateLockIsLogged() -> None:
    """
    The failed release of a late lock is logged, even after the client is gone.
    """
    provider = StubProvider(
        lock=Deferred(lambda late: late.callback(None)),
        unlock=lambda info: fail(ValueError("x")),
    )
    client = Client(POP3Factory(provider, clock=Clock()))
    client.say(b"USER alice")
    client.say(b"PASS secret")
    told = [each for each in logged(client.vanish) if "log_failure" in each]
    assert [each["log_failure"].type for each in told] == [ValueError]
    assert formatEvent(told[0]).startswith("failed to release mailbox")


def test_providerIsNotAskedAboutEmptyCredentials() -> None:
    """
    A provider is not called for an empty name or password.
    """
    for name, password in (("", "secret"), ("alice", "")):

        async def run(session: Session, who: str = name, what: str = password) -> Any:
            await session.logIn(Password(who, what))

        client = Client(withCommand(run))
        client.received()
        assert client.say(b"X") == b"-ERR [AUTH] A user name and a password are required.\r\n"


def test_lateLoginWithVerboseEvents() -> None:
    waiting: Deferred[Any] = Deferred()
    provider = StubProvider(authenticate=waiting)
    client = Client(POP3Factory(provider, Policy(verboseEvents=True), clock=Clock()))
    client.say(b"USER alice")
    assert client.say(b"PASS secret") == b""
    waiting.callback(provider.mailbox())
    assert client.received().startswith(b"+OK")


def test_sessionWithoutAFactory() -> None:
    """
    A session needs no factory to log in and to end.
    """
    provider = MemoryProvider({"alice": "secret"}, [b"x\n"])
    session = Session(ConnectionInfo(1, None, False), provider, Policy(), Clock())
    _, over = start(session.logIn(Password("alice", "secret")))
    assert over == [None]
    session.enter(State.TRANSACTION)
    _, over = start(settled(session.end()))
    assert over == [None]
    assert not provider.store.maildrop("alice").isHeld
    with pytest.raises(AssertionError):
        session.enter(State.TRANSACTION)


def test_errorAtTheEndIsLogged(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    An error while a session ends is logged, and the connection is closed.
    """
    for isLate in (False, True):
        client = loggedIn()
        waiting: Deferred[None] = Deferred()

        def end(session: Session, late: bool = isLate, wait: Any = waiting) -> Any:
            def fail(_: object = None) -> None:
                raise RuntimeError("a bug")

            return wait.addCallback(fail) if late else fail()

        monkeypatch.setattr(Session, "end", end)
        seen: list[Any] = []
        globalLogPublisher.addObserver(seen.append)
        client.vanish()
        waiting.callback(None)
        globalLogPublisher.removeObserver(seen.append)
        factory: Any = client.protocol.factory
        assert not factory.connections
        assert ["ending a session failed"] == [
            event["log_format"] for event in seen if "log_failure" in event
        ]
        assert [event for event in seen if "log_failure" in event][0]["log_failure"].check(
            RuntimeError
        )
