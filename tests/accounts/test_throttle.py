"""
Throttling of logins: each limit takes effect, and spares honest users.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from pop3svc.accounts import strikes, throttle
from pop3svc.accounts.knownnetworks import KnownNetworks
from pop3svc.accounts.strikes import BanEngine, Strikes, UserThrottle
from pop3svc.accounts.throttle import LoginGuard, SharedThrottle
from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import ILoginAttempt, ILoginThrottle
from pop3svc.networks import networkOf
from pop3svc.protocol.session import ConnectionInfo
from pop3svc.service.factory import POP3Factory
from pop3svc.testing import Client, StubProvider


@pytest.mark.parametrize(
    ("address", "v4", "network"),
    [
        ("192.0.2.7", 32, "192.0.2.7/32"),
        ("192.0.2.7", 24, "192.0.2.0/24"),
        ("::ffff:192.0.2.7", 24, "192.0.2.0/24"),
        ("2001:db8:1:2:3:4:5:6", 32, "2001:db8:1:2::/64"),
        ("fe80::1%eth0", 32, "fe80::/64"),
        (None, 32, ""),
    ],
)
def test_networks(address: str | None, v4: int, network: str) -> None:
    assert networkOf(address, v4) == network


@pytest.fixture
def clock() -> Clock:
    clock = Clock()
    clock.advance(1e6)
    return clock


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """
    The log messages.
    """
    seen: list[str] = []

    def observe(event: Any) -> None:
        if event.get("log_namespace") == "pop3svc":
            seen.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    yield seen
    globalLogPublisher.removeObserver(observe)


class Service:
    """
    A throttle, and logins that it decides about.
    """

    PASSWORD = "right"

    def __init__(self, clock: Clock, tell: Any = None, **settings: Any) -> None:
        self.clock = clock
        self.known = KnownNetworks(now=clock.seconds)
        bans = {key: settings[key] for key in ("strikes", "exempt") if key in settings}
        users = {key: settings[key] for key in ("each", "unknownNetworks") if key in settings}
        self.throttle = SharedThrottle(
            clock,
            [BanEngine(clock, self.known, **bans), UserThrottle(clock, self.known, **users)],
            self.known,
            tell,
        )
        verifyObject(ILoginThrottle, self.throttle)
        self.compared = 0
        self.wasLogged = False

    def begin(self, address: str | None, name: str, password: str) -> tuple[ConnectionInfo, Any]:
        """
        @return: the connection, and the answer of C{mayLogin}.
        """
        info = ConnectionInfo(1, address, True)
        return info, self.throttle.mayLogin(info, name, password)

    def logIn(self, address: str | None, name: str, password: str = PASSWORD) -> str:
        """
        @return: the outcome: C{"in"}, C{"wrong"} or C{"refused"}.
        """
        info, may = self.begin(address, name, password)
        if not may:
            return "refused"
        assert may is True
        self.compared += 1
        if password == self.PASSWORD:
            self.throttle.loginSucceeded(info, name)
            return "in"
        self.wasLogged = self.throttle.loginFailed(info, name)
        return "wrong"

    def guess(self, address: str | None, name: str, count: int, prefix: str = "guess") -> list[str]:
        """
        @return: the outcomes of several different guesses.
        """
        return [self.logIn(address, name, f"{prefix}{each}") for each in range(count)]


@pytest.fixture
def service(clock: Clock) -> Service:
    return Service(clock)


# --- bans -------------------------------------------------------------------


def test_threeStrikes(service: Service, clock: Clock) -> None:
    assert service.guess("192.0.2.7", "alice", 4) == ["wrong"] * 3 + ["refused"]
    assert service.logIn("192.0.2.7", "alice") == "refused"
    assert service.logIn("192.0.2.7", "bob") == "refused"
    assert service.logIn("192.0.2.8", "bob") == "in"
    clock.advance(9999)
    # A refused attempt restarts the ban.
    assert service.logIn("192.0.2.7", "alice") == "refused"
    clock.advance(9999)
    assert service.logIn("192.0.2.7", "alice") == "refused"
    clock.advance(10_000)
    assert service.logIn("192.0.2.7", "alice") == "in"


def test_aBanEndsAfterADay(service: Service, clock: Clock) -> None:
    """
    A ban ends after a day, however often refused attempts have restarted it.
    """
    service.guess("192.0.2.7", "alice", 3)
    for _ in range(86399 // 60):
        clock.advance(60)
        assert service.logIn("192.0.2.7", "bob") == "refused"
    clock.advance(60)
    assert service.logIn("192.0.2.7", "bob") == "in"


def test_oneWrongPasswordIsOneStrike(service: Service, clock: Clock) -> None:
    """
    A device that repeats an old password causes no ban and is not refused.
    """
    for _ in range(1000):
        clock.advance(60)
        assert service.logIn("192.0.2.7", "alice", "an old one") == "wrong"
    assert service.logIn("192.0.2.7", "bob") == "in"
    assert service.logIn("192.0.2.7", "alice") == "in"
    # The same password for another name is another guess.
    assert service.logIn("198.51.100.1", "alice", "x") == "wrong"
    assert service.logIn("198.51.100.1", "bob", "x") == "wrong"
    assert service.logIn("198.51.100.1", "carol", "x") == "wrong"
    assert service.logIn("198.51.100.1", "dave", "x") == "refused"


def test_namesAndPasswordsAreNotMixedUp(service: Service) -> None:
    """
    Two guesses count as different even if their names and passwords concatenate to the same
    octets.
    """
    for name, password in (("a", "bc"), ("ab", "c"), ("a", "b\0c")):
        assert service.logIn("192.0.2.7", name, password) == "wrong"
    assert service.logIn("192.0.2.7", "bob") == "refused"


def test_knownNetworksAreCheckedDuringABan(service: Service) -> None:
    """
    A ban does not apply to a user from a known network.  The limit for this user and network still
    applies.
    """
    service.logIn("192.0.2.7", "alice")
    service.guess("192.0.2.7", "bob", 3)
    assert service.logIn("192.0.2.7", "bob") == "refused"
    assert service.logIn("192.0.2.7", "alice") == "in"
    assert service.guess("192.0.2.7", "alice", 11) == ["wrong"] * 10 + ["refused"]
    assert service.logIn("192.0.2.7", "alice") == "refused"


def test_onlyRefusedAttemptsRenewABan(service: Service, clock: Clock) -> None:
    """
    Attempts from known networks do not restart a ban, whether they succeed or fail.
    """
    service.logIn("192.0.2.7", "alice")
    service.guess("192.0.2.7", "bob", 3)
    for number in range(4):
        clock.advance(2499)
        service.logIn("192.0.2.7", "alice")
        service.logIn("192.0.2.7", "alice", f"typing error {number}")
    clock.advance(4)
    assert service.logIn("192.0.2.7", "bob") == "in"


def test_sharedAddressesAreNotBanned(service: Service) -> None:
    """
    Failures from a shared address, such as an office's, cause no ban.  Only the limits for the user
    apply.
    """
    for name in ("alice", "bob", "carol"):
        assert service.logIn("192.0.2.7", name) == "in"
    assert service.guess("192.0.2.7", "dave", 11) == ["wrong"] * 10 + ["refused"]
    assert service.logIn("192.0.2.7", "erin") == "in"
    assert service.logIn("192.0.2.7", "dave") == "refused"


def test_becomesSharedWhileBanned(service: Service) -> None:
    for name in ("alice", "bob"):
        service.logIn("192.0.2.7", name)
    service.logIn("192.0.2.8", "carol")
    service.guess("192.0.2.7", "dave", 3)
    assert service.logIn("192.0.2.7", "erin") == "refused"
    # Carol's network is known.  As the third user she makes the address a shared one.
    assert service.logIn("192.0.2.7", "carol") == "in"
    assert service.logIn("192.0.2.7", "erin") == "in"


def test_successDoesNotClearTheAddress(service: Service) -> None:
    """
    A login does not clear the address's strikes, because an attacker may have an account.
    """
    tried = 0
    for number in range(24):
        tried += service.logIn("192.0.2.7", "alice", f"guess{number}") == "wrong"
        assert service.logIn("192.0.2.7", "mallory") == "in"
    assert tried == 3


def test_successClearsTheUsersStrikes(service: Service) -> None:
    service.logIn("192.0.2.7", "alice")
    for _ in range(5):
        service.guess("192.0.2.7", "alice", 9)
        assert service.logIn("192.0.2.7", "alice") == "in"


def test_exempt(clock: Clock) -> None:
    service = Service(clock, each=100, unknownNetworks=100)
    for address in ("127.0.0.1", "127.9.9.9", "::1", None):
        assert service.guess(address, "alice", 10) == ["wrong"] * 10
    service = Service(clock, strikes=1, exempt=["192.0.2.0/24"])
    assert service.guess("192.0.2.9", "alice", 5) == ["wrong"] * 5
    assert service.guess("127.0.0.1", "alice", 2) == ["wrong", "refused"]


def test_sixtyFour(service: Service) -> None:
    for last in (1, 2, 3):
        service.logIn(f"2001:db8::{last}", "alice", f"guess{last}")
    assert service.logIn("2001:db8::ffff", "alice") == "refused"
    assert service.logIn("2001:db8:0:1::1", "alice") == "in"


# --- users ------------------------------------------------------------------


def test_theOwnerIsNotLockedOut(service: Service, clock: Clock) -> None:
    """
    After guesses from many networks, the user can log in from a known network, but not from an
    unknown one.
    """
    service.logIn("198.51.100.5", "alice")
    results = [service.logIn(f"203.0.{n}.1", "alice", f"guess{n}") for n in range(200)]
    assert results.count("wrong") == 30
    assert service.logIn("198.51.100.77", "alice") == "in"
    assert service.logIn("203.0.113.1", "bob") == "in"
    clock.advance(3600)
    assert service.logIn("203.0.113.1", "alice") == "in"


def test_travellingDevice(service: Service) -> None:
    """
    One old password sent from many networks is one strike against its user.
    """
    for number in range(200):
        service.logIn(f"203.0.{number}.1", "alice", "an old one")
    assert service.logIn("198.51.100.5", "alice") == "in"


def test_oneNetwork(service: Service) -> None:
    for number in range(10):
        service.logIn(f"203.0.113.{number}", "alice", f"guess{number}")
    assert service.logIn("203.0.113.200", "alice") == "refused"
    assert service.logIn("203.0.114.1", "alice") == "in"


def test_spellings(service: Service) -> None:
    """
    All spellings of a name count as one user, because an LDAP directory, for example, ignores case
    and spaces.  The operator can lift the limit with any spelling.
    """
    names = ["ann lee", "Ann Lee", "ANN LEE", " ann lee", "ann  lee ", "\uff21nn lee", "ann\tlee"]
    for number in range(10):
        service.logIn(f"203.0.113.{number}", names[number % len(names)], f"guess{number}")
    for name in names:
        assert service.logIn("203.0.113.200", name) == "refused"
    assert service.logIn("203.0.113.200", "annlee") == "in"
    assert service.throttle.lift(None, "Ann LEE")
    assert service.logIn("203.0.113.200", "ann lee") == "in"


# --- attempts under way -------------------------------------------------------


def underWay(service: Service, count: int) -> tuple[list[ConnectionInfo], list[Any]]:
    """
    Begin different guesses from one address, and end none of them.

    @return: the connections; and for each guess a list with the answer of C{mayLogin}, which is
        empty while the guess waits.
    """
    infos, answers = [], []
    for number in range(count):
        info, answer = service.begin("192.0.2.7", "alice", f"guess{number}")
        told: list[Any] = []
        if isinstance(answer, Deferred):
            answer.addBoth(told.append)
        else:
            told.append(answer)
        infos.append(info)
        answers.append(told)
    return infos, answers


def test_guessesAtOnce(service: Service, clock: Clock) -> None:
    """
    Of many concurrent guesses, three are compared.  The others wait for the outcome of these three.
    """
    infos, answers = underWay(service, 50)
    assert answers == [[True]] * 3 + [[]] * 47
    for info in infos[:3]:
        service.throttle.loginFailed(info, "alice")
    clock.advance(0)
    assert answers == [[True]] * 3 + [[False]] * 47
    assert clock.getDelayedCalls() == []


def test_rightOnesAtOnce(clock: Clock) -> None:
    """
    A household's program may log in to five accounts at once for the first time.
    """
    service = Service(clock)
    waiting, infos = [], []
    for number in range(5):
        info, answer = service.begin("192.0.2.7", f"user{number}", "right")
        infos.append((info, f"user{number}"))
        if answer is not True:
            told: list[Any] = []
            answer.addBoth(told.append)
            waiting.append(told)
    assert waiting == [[], []]
    for info, name in infos[:3]:
        service.throttle.loginSucceeded(info, name)
    clock.advance(0)
    assert waiting == [[True], [True]]


def test_oneAfterAnother(service: Service, clock: Clock) -> None:
    """
    If an attempt ends without a strike, the next one is admitted.  After three strikes the next one
    is refused.
    """
    infos, answers = underWay(service, 5)
    service.throttle.loginAbandoned(infos[0], "alice", False)
    clock.advance(0)
    assert answers == [[True]] * 4 + [[]]
    for info in infos[1:4]:
        service.throttle.loginFailed(info, "alice")
    clock.advance(0)
    assert answers == [[True]] * 4 + [[False]]


def test_waitsNotForEver(service: Service, clock: Clock) -> None:
    _, answers = underWay(service, 4)
    clock.advance(30)
    assert isinstance(answers[3][0], Failure)
    error = answers[3][0].value
    assert isinstance(error, POP3ResponseError) and error.code == "SYS/TEMP"
    assert not service.throttle._waiting


def test_lostWhileWaiting(service: Service, clock: Clock) -> None:
    underWay(service, 3)
    _, answer = service.begin("192.0.2.7", "bob", "guess")
    answer.addErrback(lambda _: None)
    answer.cancel()
    assert not service.throttle._waiting and clock.getDelayedCalls() == []


@pytest.mark.parametrize(
    ("isLost", "isGuess", "wasRefused", "isStrike"),
    [
        (False, True, False, False),  # a fault: [SYS/TEMP], [IN-USE]
        (False, True, True, True),  # one checker said no, the next one had a fault
        (True, True, False, True),  # left before the refusal: it may have been compared
        (True, False, False, False),  # left before it was compared
        (True, False, True, True),
    ],
)
def test_endedNeitherWay(
    service: Service, isLost: bool, isGuess: bool, wasRefused: bool, isStrike: bool
) -> None:
    for number in range(3):
        info, may = service.begin("192.0.2.7", "alice", f"guess{number}")
        assert may is True
        verifyObject(ILoginAttempt, info.loginAttempt)
        info.loginAttempt.isGuess, info.loginAttempt.wasRefused = isGuess, wasRefused
        service.throttle.loginAbandoned(info, "alice", isLost)
        assert info.loginAttempt is None
    assert service.logIn("192.0.2.7", "bob") == ("refused" if isStrike else "in")


def test_refusedForTheUserIsNoStrike(clock: Clock) -> None:
    """
    An attempt that one limit refuses is no strike for the other limit.
    """
    service = Service(clock, each=1)
    service.logIn("192.0.2.7", "alice", "wrong")
    assert service.guess("192.0.2.7", "alice", 10) == ["refused"] * 10
    assert service.logIn("192.0.2.7", "bob") == "in"


# --- bounds -----------------------------------------------------------------


def test_theTablesAreBounded(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """
    The tables are bounded in octets, because names of any length take the same space.
    """
    monkeypatch.setattr(Strikes, "BOUND", 10)
    monkeypatch.setattr(LoginGuard, "BOUND", 10)
    service = Service(clock)
    guard = LoginGuard(clock, service.throttle)
    for number in range(100):
        info = ConnectionInfo(1, f"192.0.2.{number}", True)
        name = f"{number}" + "x" * 250
        assert guard.mayLogin(info, name, "y" * 9000) is True
        guard.loginFailed(info, name)
        service.throttle.ban(f"198.51.100.{number}")
    text = json.dumps(service.throttle.state())
    assert "xxx" not in text and "yyy" not in text
    for limit in service.throttle._limits:
        for table in limit.tables:
            assert len(table._records) == 10 and not table._pending
            assert all(len(repr(key)) < 150 for key in table._records)
    assert len(guard._refusals) == 10


def test_countsOfBans(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The number of bans always equals the length of the list of bans.
    """
    monkeypatch.setattr(Strikes, "BOUND", 20)
    monkeypatch.setattr(strikes._Full, "MOST", 40)
    numbers = Random(14)
    service, other = Service(clock), Service(clock)
    throttle, counts = service.throttle, set()
    for _ in range(2000):
        address = f"192.0.2.{numbers.randrange(60)}"
        match numbers.randrange(6):
            case 0:
                throttle.ban(address)
            case 1:
                throttle.lift(address)
            case 2:
                clock.advance(numbers.choice([0.5, 900, 9000]))
            case 3:
                other.throttle.ban(address)
                throttle.restore(json.loads(json.dumps(other.throttle.state())))
            case _:
                service.guess(address, "alice", 4, str(numbers.random()))
        assert throttle.countBans() == len(throttle.bans())
        counts.add(throttle.countBans())
    assert len(counts) > 15


def test_bansAreCountedWithoutAWalk(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(clock)
    for number in range(1000):
        service.throttle.ban(f"192.0.{number // 250}.{number % 250}")
    looks = []
    end = Strikes._end
    monkeypatch.setattr(Strikes, "_end", lambda *of: looks.append(of) or end(*of))
    clock.advance(9000)
    assert service.throttle.countBans() == 1000
    assert looks == []


def test_passwordsAreNotKept(service: Service) -> None:
    """
    After a failed login no dictionary, list, tuple or set holds the password.
    """
    password = "".join(["never ", "kept"])
    service.logIn("192.0.2.7", "alice", password)
    holders = [
        each
        for each in gc.get_referrers(password)
        if isinstance(each, dict | list | tuple | set) and each is not globals()
    ]
    assert not holders
    assert "never kept" not in repr(service.throttle.state())


# --- the log ----------------------------------------------------------------


def test_theLog(service: Service, clock: Clock, lines: list[str]) -> None:
    """
    The log names a ban once, and the first, tenth and hundredth refused attempt.
    """
    service.guess("192.0.2.7", "alice", 3)
    assert lines == ["banned 192.0.2.7 for 10000 s after 3 failed logins"]
    del lines[:]
    for _ in range(150):
        service.logIn("192.0.2.7", "bob", "x")
    assert lines == [
        "refused a login from 192.0.2.7: banned",
        "refused a login from 192.0.2.7: banned (10 times)",
        "refused a login from 192.0.2.7: banned (100 times)",
    ]
    del lines[:]
    clock.advance(10_000)
    service.guess("2001:db8::1", "alice", 4, "other")
    assert lines == [
        "banned 2001:db8::/64 for 10000 s after 3 failed logins",
        "refused a login from 2001:db8::/64: banned",
    ]


def test_theLogOfUsers(clock: Clock, lines: list[str]) -> None:
    service = Service(clock, each=2, unknownNetworks=3)
    service.guess("192.0.2.7", "al\nice", 3)
    service.guess("198.51.100.1", "al\nice", 2, "other")
    assert lines == [
        "refusing al\\nice from 192.0.2.0/24 for 3600 s after 2 failed logins",
        "refused a login from 192.0.2.7: too many failed logins of al\\nice",
        "refusing al\\nice for 3600 s from networks without a login of that user, after 3 "
        "failed logins",
        "refused a login from 198.51.100.1: too many failed logins of al\\nice from many networks",
    ]


# --- answered late ------------------------------------------------------------


def guarded() -> tuple[POP3Factory, list[str]]:
    clock = Clock()
    clock.advance(1e6)
    asked: list[str] = []

    def authenticate(info: Any, username: str, password: str) -> Any:
        asked.append(username)
        return provider.mailbox() if (username, password) == ("alice", "secret") else None

    provider = StubProvider([b"x"], authenticate=authenticate)
    guard = LoginGuard(clock, SharedThrottle(clock))
    verifyObject(ILoginThrottle, guard)
    return POP3Factory(provider, throttle=guard, clock=clock), asked


def wait(client: Client, limit: float = 200) -> tuple[bytes, float]:
    """
    @return: the answer, and after how many seconds it came.
    """
    clock: Any = client.protocol.factory.clock  # type: ignore[union-attr]
    began = clock.seconds()
    while clock.seconds() - began < limit:
        said = client.received()
        if said:
            return said, round(clock.seconds() - began, 1)
        clock.advance(0.25)
    raise AssertionError("no answer")


def connected(factory: POP3Factory, address: str) -> Client:
    client = Client(factory, IPv4Address("TCP", address, 1), isSecure=True)
    client.received()
    return client


REFUSED = b"-ERR [AUTH] Wrong name or password.\r\n"


def test_refusalsLookTheSame(lines: list[str]) -> None:
    """
    An unknown user, a wrong password, a ban and a name that is too long are answered with the
    same text after the same time.  In the last two cases the provider is not asked, and the
    login is not logged as failed.
    """
    factory, asked = guarded()
    banned = "192.0.2.3"
    for number in range(3):
        client = connected(factory, banned)
        client.send(b"XLOG bob wrong%d\r\n" % number)
        wait(client)
    clock: Any = factory.clock
    clock.advance(600)
    del asked[:], lines[:]
    answers = []
    for address, line in (
        ("192.0.2.1", b"XLOG alice wrong"),
        ("192.0.2.2", b"XLOG nobody wrong"),
        (banned, b"XLOG alice secret"),
        ("192.0.2.4", b"AUTH PLAIN " + b"A" * 520),
    ):
        client = connected(factory, address)
        if line.startswith(b"AUTH"):
            import base64

            blob = base64.b64encode(b"\0" + b"x" * 9000 + b"\0secret")
            client.send(b"AUTH PLAIN\r\n")
            assert client.received() == b"+ \r\n"
            client.send(blob + b"\r\n")
        else:
            client.send(line + b"\r\n")
        answers.append(wait(client))
    assert answers == [(REFUSED, 1.0)] * 4
    assert asked == ["alice", "nobody"]
    assert lines == [
        "failed login from 192.0.2.1: alice",
        "failed login from 192.0.2.2: nobody",
        "refused a login from 192.0.2.3: banned",
    ]


@pytest.mark.parametrize(
    ("name", "isChecked"),
    [("x" * 255, True), ("x" * 256, False), ("ä" * 127, True), ("ä" * 128, False)],
)
def test_longNames(clock: Clock, name: str, isChecked: bool) -> None:
    """
    Names of more than 255 octets are refused before anything is counted.
    """
    throttle = SharedThrottle(clock)
    guard = LoginGuard(clock, throttle)
    info = ConnectionInfo(1, "192.0.2.7", True)
    assert (guard.mayLogin(info, name, "x") is True) is isChecked
    assert (info.loginAttempt is not None) is isChecked


def test_refusalsOfOneAddressQueue() -> None:
    """
    Refusals to one address come one after the other across its connections, with growing
    delays.  Another address does not wait.
    """
    factory, _ = guarded()
    address = IPv4Address("TCP", "127.0.0.1", 1)
    clients = [Client(factory, address) for _ in range(5)]
    for client in clients:
        client.received()
        client.send(b"XLOG alice wrong\r\n")
    other = connected(factory, "192.0.2.9")
    other.send(b"XLOG alice wrong\r\n")
    assert wait(other) == (REFUSED, 1.0)
    clock: Any = factory.clock
    began, times = clock.seconds() - 1.0, []
    for client in clients:
        wait(client)
        times.append(round(clock.seconds() - began, 1))
    assert times == [1.0, 1.5, 2.5, 4.0, 6.0]


def test_goodLoginsDoNotWait() -> None:
    factory, _ = guarded()
    client = Client(factory)
    client.logIn()
    assert client.say(b"STAT").startswith(b"+OK")


def test_lostBeforeTheRefusal() -> None:
    """
    A client lost before its refusal leaves no timer, and its attempt counts.
    """
    factory, asked = guarded()
    for number in range(5):
        client = connected(factory, "192.0.2.7")
        client.send(b"XLOG alice wrong%d\r\n" % number)
        client.vanish()
        clock: Any = factory.clock
        assert clock.getDelayedCalls() == []
    assert len(asked) == 3


def test_lostWhileBeingChecked() -> None:
    """
    Clients that do not wait for a slow provider get only three guesses.
    """
    factory, asked = guarded()

    def slow(who: Any, username: str, password: str) -> Any:
        asked.append(password)
        return Deferred()

    factory.provider.authenticate = slow
    for number in range(5):
        client = connected(factory, "192.0.2.7")
        client.send(b"XLOG alice guess%d\r\n" % number)
        client.vanish()
    assert len(asked) == 3


def test_fiveFailures() -> None:
    """
    Five failed logins close the connection.
    """
    factory, _ = guarded()
    client = Client(factory)
    client.received()
    for _ in range(4):
        client.send(b"XLOG alice wrong\r\n")
        assert wait(client)[0] == REFUSED
    assert client.isOpen
    client.send(b"XLOG alice wrong\r\n")
    assert wait(client)[0] == REFUSED
    assert not client.isOpen


def test_sixLocalFailuresAndThenTheRightOne() -> None:
    factory, _ = guarded()
    for _ in range(3):
        client = Client(factory, IPv6Address("TCP", "::1", 1))
        client.received()
        client.send(b"XLOG alice wrong\r\n")
        wait(client)
        client.logIn()
        client.say(b"QUIT")


def test_lostWhileLoggingIn(clock: Clock) -> None:
    """
    The guard keeps no entry for a client that was lost during a login.
    """
    throttle = SharedThrottle(clock)
    guard = LoginGuard(clock, throttle)
    for number in range(10):
        guard.mayLogin(ConnectionInfo(number, "192.0.2.1", True), "alice", "secret")
    gc.collect()
    assert len(guard._arrived) == 0


def test_noRefusalWaitsForEver() -> None:
    """
    Even if many refusals come before it, a refusal comes within L{LoginGuard.PATIENCE} seconds.
    """
    factory, _ = guarded()
    clients = [Client(factory) for _ in range(60)]
    for client in clients:
        client.received()
        client.send(b"XLOG alice wrong\r\n")
    clock: Any = factory.clock
    clock.advance(60)
    assert [client.received() for client in clients] == [REFUSED] * 60


# --- several processes ----------------------------------------------------------


class Two:
    """
    Two processes that exchange their events.
    """

    def __init__(self, clock: Clock, **settings: Any) -> None:
        self.told: list[Any] = []
        self.here = Service(clock, self.telling(lambda: self.there), **settings)
        self.there = Service(clock, self.telling(lambda: self.here), **settings)
        self.there.throttle.restore(json.loads(json.dumps(self.here.throttle.state())))

    def telling(self, other: Callable[[], Service]) -> Any:
        def tell(*what: Any) -> None:
            self.told.append(what[0])
            other().throttle.heard(*json.loads(json.dumps(what)))

        return tell


def test_repeatsAreNotLoggedAgain(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The same guess from the same address is logged once an hour.  This also holds if another device
    of the user logs in meanwhile, if the guesses go to two processes, and for an exempt address.
    """
    monkeypatch.setattr(throttle._Logged, "BOUND", 2)
    for address in ("192.0.2.7", "127.0.0.1"):
        two = Two(clock)
        for minute in range(70):
            service = (two.here, two.there)[minute % 2]
            assert service.logIn(address, "alice", "an old one") == "wrong"
            assert service.wasLogged is (minute not in (0, 60)), minute
            assert service.logIn(address, "alice") == "in"
            clock.advance(60)
    # Other guesses and other addresses are logged; beyond the bound the oldest is forgotten.
    for other, guess in (("192.0.2.8", "x"), ("192.0.2.8", "y"), ("192.0.2.9", "x")):
        two.here.logIn(other, "alice", guess)
        assert not two.here.wasLogged
    two.here.logIn("192.0.2.8", "alice", "x")
    assert not two.here.wasLogged


def test_countedTogether(clock: Clock) -> None:
    """
    Failures in two processes add up; a refused attempt restarts the ban in both.
    """
    two = Two(clock)
    two.here.guess("192.0.2.7", "alice", 2)
    assert two.there.logIn("192.0.2.7", "alice", "guess0") == "wrong"
    assert two.there.logIn("192.0.2.7", "alice", "guess2") == "wrong"
    assert two.here.logIn("192.0.2.7", "bob") == "refused"
    clock.advance(9_000)
    assert two.here.logIn("192.0.2.7", "bob") == "refused"
    clock.advance(9_000)
    assert two.there.logIn("192.0.2.7", "bob") == "refused"
    clock.advance(10_000)
    assert two.there.logIn("192.0.2.7", "bob") == "in"
    assert two.here.known.isKnown("bob", "192.0.2.7")


def test_underWayElsewhere(clock: Clock) -> None:
    """
    An attempt under way in another process counts, and others wait for it.
    """
    two = Two(clock)
    infos, answers = underWay(two.here, 2)
    assert answers == [[True], [True]]
    info, answer = two.there.begin("192.0.2.7", "alice", "third")
    assert answer is True
    _, waiting = two.there.begin("192.0.2.7", "alice", "fourth")
    told: list[Any] = []
    waiting.addBoth(told.append)
    two.here.throttle.loginAbandoned(infos[0], "alice", False)
    clock.advance(0)
    assert told == [True]


def test_aProcessThatDiesDoesNotBlock(clock: Clock) -> None:
    """
    The attempts of a process that died are ignored after L{Strikes.LAPSE} seconds.
    """
    two = Two(clock)
    for number in range(3):
        two.there.throttle.heard("begun", "192.0.2.7", "alice", f"{number:016x}")
    clock.advance(Strikes.LAPSE)
    assert two.there.logIn("192.0.2.7", "bob") == "in"


def test_processesThatDieLeaveLittle(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Strikes, "MAX_PENDING", 10)
    service = Service(clock)
    for number in range(100):
        service.throttle.heard("begun", f"192.0.2.{number}", f"user{number}", "00" * 8)
    pending = [len(t._pending) for limit in service.throttle._limits for t in limit.tables]
    # The table of the operator's bans counts no attempts under way.
    assert pending == [10, 0, 10, 10]


def test_theOperatorBansInAllProcesses(clock: Clock) -> None:
    two = Two(clock)
    two.here.logIn("192.0.2.7", "alice")
    two.here.throttle.ban("192.0.2.7")
    for service in (two.here, two.there):
        assert [ban.network for ban in service.throttle.bans()] == ["192.0.2.7/32"]
        # The ban also applies to a user who is known in this network.
        assert service.logIn("192.0.2.7", "alice") == "refused"
    assert two.there.throttle.lift("192.0.2.7") is True
    for service in (two.here, two.there):
        assert service.throttle.bans() == []
        assert service.logIn("192.0.2.7", "alice") == "in"


def test_whatChangesNothingIsNotTold(clock: Clock) -> None:
    two = Two(clock)
    two.here.logIn("192.0.2.7", "alice")
    assert two.told == ["begun", "succeeded"]
    for _ in range(10):
        two.here.logIn("192.0.2.7", "alice")
    clock.advance(0)
    assert two.told == ["begun", "succeeded"]
    # An attempt that outlasts an iteration of the reactor is announced.
    info, _ = two.here.begin("192.0.2.7", "alice", "right")
    clock.advance(0)
    two.here.throttle.loginSucceeded(info, "alice")
    assert two.told[2:] == ["begun", "over"]
    for service in (two.here, two.there):
        assert not any(t._pending for limit in service.throttle._limits for t in limit.tables)


def test_goesOnElsewhere(clock: Clock) -> None:
    """
    A process with another clock can go on with the state of this process.
    """
    here = Service(clock, each=4)
    here.logIn("198.51.100.1", "alice")
    here.guess("192.0.2.7", "alice", 3)
    here.guess("192.0.2.9", "alice", 1, "more")
    clock.advance(3_000)
    state = json.dumps(here.throttle.state())

    def afterwards(seconds: int, address: str, username: str, password: str = "right") -> str:
        later = Clock()
        later.advance(clock.seconds())
        there = Service(later, each=4)
        there.throttle.restore(json.loads(state))
        later.advance(seconds)
        return there.logIn(address, username, password)

    assert afterwards(6_999, "192.0.2.7", "bob") == "refused"
    assert afterwards(7_000, "192.0.2.7", "bob") == "in"
    assert afterwards(599, "192.0.2.8", "alice") == "refused"
    assert afterwards(600, "192.0.2.8", "alice") == "in"
    assert afterwards(0, "192.0.2.8", "bob") == "in"
    assert afterwards(0, "198.51.100.9", "alice") == "in"


def test_hiddenGuesses(clock: Clock) -> None:
    """
    A mail program that repeats an old password by SCRAM every minute causes no ban of its address.
    Many attempts within a minute cause a ban.
    """
    shared = SharedThrottle(clock)
    info = ConnectionInfo(1, "192.0.2.7", True)

    def fail() -> bool:
        if not shared.mayLogin(info, "alice", None):
            return False
        shared.loginFailed(info, "alice")
        return True

    for _ in range(100):
        assert fail()
        clock.advance(60)
    assert sum(fail() for _ in range(100)) == 5


def test_hiddenGuessesOfOneNetwork(clock: Clock) -> None:
    """
    All addresses of a /64 share the first attempts of a minute, which count as one guess.
    """
    shared = SharedThrottle(clock)
    admitted = 0
    for number in range(100):
        info = ConnectionInfo(1, f"2001:db8::{number:x}", True)
        if shared.mayLogin(info, "alice", None):
            admitted += 1
            shared.loginFailed(info, "alice")
    assert admitted < 10
