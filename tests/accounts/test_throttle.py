"""
Who may try to log in: each limit biting, and an honest user unharmed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from pop3svc.accounts.throttle import (
    BanEngine,
    KnownNetworks,
    LoginGuard,
    SharedThrottle,
    UserThrottle,
)
from pop3svc.interfaces import ILoginThrottle
from pop3svc.networks import networkOf
from pop3svc.protocol.session import ConnectionInfo
from pop3svc.providers.memory import MemoryProvider
from pop3svc.service.factory import POP3Factory
from pop3svc.testing import Client


def info(address: str | None, connectionID: int = 1) -> ConnectionInfo:
    return ConnectionInfo(connectionID, address, True)


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


def test_threeStrikes() -> None:
    clock = Clock()
    clock.advance(1e6)
    engine = BanEngine(clock)
    verifyObject(ILoginThrottle, engine)
    bad, other = info("192.0.2.7"), info("192.0.2.8")
    for _ in range(3):
        assert engine.mayLogin(bad, "alice")
        engine.loginFailed(bad, "alice")
    assert not engine.mayLogin(bad, "alice")
    assert not engine.mayLogin(bad, "bob")
    assert engine.mayLogin(other, "alice")
    clock.advance(9999)
    # Counts as a new one.
    assert not engine.mayLogin(bad, "alice")
    clock.advance(9999)
    assert not engine.mayLogin(bad, "alice")
    clock.advance(10_001)
    assert engine.mayLogin(bad, "alice")


def test_honestUsersAreNotBanned() -> None:
    clock = Clock()
    clock.advance(1e6)
    engine = BanEngine(clock)
    me = info("192.0.2.7")
    for _ in range(5):
        for _ in range(2):
            engine.loginFailed(me, "alice")
            assert engine.mayLogin(me, "alice")
        engine.loginSucceeded(me, "alice")
    for exempt in ("127.0.0.1", "127.9.9.9", "::1", None):
        for _ in range(10):
            engine.loginFailed(info(exempt), "alice")
        assert engine.mayLogin(info(exempt), "alice")


def test_sixtyFour() -> None:
    clock = Clock()
    clock.advance(1e6)
    engine = BanEngine(clock)
    for last in (1, 2, 3):
        engine.loginFailed(info(f"2001:db8::{last}"), "alice")
    assert not engine.mayLogin(info("2001:db8::ffff"), "alice")
    assert engine.mayLogin(info("2001:db8:0:1::1"), "alice")


def test_exemptIsSettable() -> None:
    clock = Clock()
    clock.advance(1e6)
    engine = BanEngine(clock, strikes=1, exempt=["192.0.2.0/24"])
    for address, may in (("192.0.2.9", True), ("127.0.0.1", False)):
        engine.loginFailed(info(address), "alice")
        assert engine.mayLogin(info(address), "alice") is may


def test_theTableIsBounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pop3svc.accounts.throttle._BOUND", 10)
    clock = Clock()
    clock.advance(1e6)
    engine = BanEngine(clock)
    for number in range(100):
        engine.loginFailed(info(f"192.0.2.{number}"), "alice")
    assert len(engine._failures._counts) == 10


def test_theOwnerIsNotLockedOut() -> None:
    """
    Guesses from everywhere: strangers are refused, the owner's network is not.
    """
    clock = Clock()
    clock.advance(1e6)
    throttle = UserThrottle(clock)
    verifyObject(ILoginThrottle, throttle)
    owner = info("198.51.100.5")
    throttle.loginSucceeded(owner, "alice")
    tried = 0
    for number in range(200):
        attacker = info(f"203.0.{number}.1")
        if throttle.mayLogin(attacker, "alice"):
            tried += 1
            throttle.loginFailed(attacker, "alice")
    assert tried == 30
    assert throttle.mayLogin(owner, "alice")
    assert throttle.mayLogin(info("198.51.100.77"), "alice")
    assert throttle.mayLogin(info("203.0.113.1"), "bob")
    clock.advance(3601)
    assert throttle.mayLogin(info("203.0.113.1"), "alice")


def test_oneNetwork() -> None:
    clock = Clock()
    clock.advance(1e6)
    throttle = UserThrottle(clock)
    for number in range(10):
        throttle.loginFailed(info(f"203.0.113.{number}"), "alice")
    assert not throttle.mayLogin(info("203.0.113.200"), "alice")
    assert throttle.mayLogin(info("203.0.114.1"), "alice")


def test_knownNetworksAreKept(tmp_path: Path) -> None:
    path, now = str(tmp_path / "networks"), [1e9]
    known = KnownNetworks(path, lambda: now[0])
    for number in range(20):
        known.add("alice", f"10.0.{number}.0/24")
    known.save()
    known = KnownNetworks(path, lambda: now[0])
    assert not known.isKnown("alice", "10.0.3.0/24")
    assert known.isKnown("alice", "10.0.4.0/24")
    assert not known.isKnown("bob", "10.0.4.0/24")
    assert oct((tmp_path / "networks").stat().st_mode & 0o777) == "0o600"
    before = (tmp_path / "networks").stat().st_ino
    known.add("alice", "10.0.4.0/24")
    known.save()
    assert (tmp_path / "networks").stat().st_ino == before
    now[0] += 91 * 86400
    assert not known.isKnown("alice", "10.0.5.0/24")
    for nonsense in ("nonsense", "[]", '{"a": 5}', '{"a": {"b": "c"}}'):
        (tmp_path / "networks").write_text(nonsense)
        assert not KnownNetworks(path).isKnown("alice", "10.0.5.0/24")
    KnownNetworks(str(tmp_path / "no" / "where")).save()


def guarded() -> tuple[POP3Factory, Any]:
    clock = Clock()
    clock.advance(1e6)
    provider = MemoryProvider({"alice": "secret"}, [b"x"])
    asked: list[str] = []
    authenticate = provider.authenticate

    def recording(who: Any, username: str, password: str) -> Any:
        asked.append(username)
        return authenticate(who, username, password)

    provider.authenticate = recording  # type: ignore[method-assign]
    guard = LoginGuard(clock, [BanEngine(clock), UserThrottle(clock)])
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


REFUSED = b"-ERR [AUTH] Wrong name or password.\r\n"


def test_refusalsLookTheSame() -> None:
    """
    Unknown user, wrong password, banned: the same text after the same time;
    the banned one's provider is not asked.
    """
    factory, asked = guarded()
    clients = [
        Client(factory, IPv4Address("TCP", f"192.0.2.{n}", 1), isSecure=True) for n in (1, 2)
    ]
    answers = []
    for client, name in zip(clients, (b"alice", b"nobody"), strict=True):
        client.received()
        client.send(b"XLOG " + name + b" wrong\r\n")
        answers.append(wait(client))
    assert answers == [(REFUSED, 1.0)] * 2
    banned = Client(factory, IPv4Address("TCP", "192.0.2.3", 1), isSecure=True)
    banned.received()
    guard: Any = factory.throttle
    for _ in range(3):
        guard._throttles[0].loginFailed(banned.protocol.session.info, "alice")
    asked.clear()
    banned.send(b"XLOG alice secret\r\n")
    assert wait(banned) == (REFUSED, 1.0)
    assert asked == []


def test_refusalsOfOneAddressQueue() -> None:
    """
    One after the other across its connections, and slower each time; another
    address does not wait.
    """
    factory, _ = guarded()
    address = IPv4Address("TCP", "127.0.0.1", 1)
    clients = [Client(factory, address) for _ in range(5)]
    for client in clients:
        client.received()
        client.send(b"XLOG alice wrong\r\n")
    other = Client(factory, IPv4Address("TCP", "192.0.2.9", 1), isSecure=True)
    other.received()
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


def test_lostWhileWaiting() -> None:
    """
    No timer is left.
    """
    factory, _ = guarded()
    client = Client(factory)
    client.send(b"XLOG alice wrong\r\n")
    client.vanish()
    clock: Any = factory.clock
    assert clock.getDelayedCalls() == []


def test_fiveFailures() -> None:
    """
    Then the connection is closed.
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


def test_lostWhileLoggingIn() -> None:
    """
    Nothing of it is kept.
    """
    import gc

    guard = LoginGuard(Clock(), [])
    for number in range(10):
        guard.mayLogin(info("192.0.2.1", number), "alice")
    gc.collect()
    assert len(guard._arrived) == 0


def test_noRefusalWaitsForEver() -> None:
    """
    However many are before it, it comes before the call counts as unanswered.
    """
    factory, _ = guarded()
    clients = [Client(factory) for _ in range(60)]
    for client in clients:
        client.received()
        client.send(b"XLOG alice wrong\r\n")
    clock: Any = factory.clock
    clock.advance(60)
    assert [client.received() for client in clients] == [REFUSED] * 60


class Told(list[tuple[Any, ...]]):
    """
    What a process tells the others.
    """

    def __call__(self, *what: Any) -> None:
        self.append(what)


def shared(clock: Clock, tell: Any) -> SharedThrottle:
    return SharedThrottle([BanEngine(clock), UserThrottle(clock, each=4)], tell)


def test_countedTogether() -> None:
    """
    Failures in one process and another are counted together; what changes
    nothing is not told.
    """
    clock = Clock()
    clock.advance(1e6)
    told = Told()
    here, there = shared(clock, told), shared(clock, lambda *_: None)
    verifyObject(ILoginThrottle, here)
    bad = info("192.0.2.7")
    here.loginSucceeded(bad, "alice")
    # A network that was not known.
    assert told == [("loginSucceeded", "192.0.2.7", "alice")]
    here.loginSucceeded(bad, "alice")
    assert here.mayLogin(bad, "alice")
    assert len(told) == 1
    here.loginFailed(bad, "alice")
    here.loginFailed(bad, "alice")
    for each in told:
        there.heard(*json.loads(json.dumps(each)))
    there.loginFailed(bad, "alice")
    assert not there.mayLogin(bad, "bob")
    assert here.mayLogin(bad, "alice")
    # An attempt while banned counts, and is told.
    here.heard("loginFailed", "192.0.2.7", "alice")
    del told[:]
    clock.advance(9_000)
    assert not here.mayLogin(bad, "bob")
    assert told == [("mayLogin", "192.0.2.7", "bob")]
    there.heard(*told[0])
    clock.advance(9_000)
    assert not there.mayLogin(bad, "bob")
    there.heard("loginSucceeded", "192.0.2.7", "alice")
    assert there.mayLogin(bad, "bob")


def test_goesOnElsewhere() -> None:
    """
    Another process, with another clock, goes on from what was counted.
    """
    clock = Clock()
    clock.advance(1e6)
    here = shared(clock, lambda *_: None)
    here.loginSucceeded(info("198.51.100.1"), "alice")
    for _ in range(4):
        here.loginFailed(info("192.0.2.7"), "alice")
    clock.advance(3_000)
    state = json.dumps(here.state())

    def afterwards(seconds: int, address: str, username: str) -> bool:
        later = Clock()
        there = shared(later, lambda *_: None)
        there.restore(json.loads(state))
        later.advance(seconds)
        return there.mayLogin(info(address), username)

    assert not afterwards(6_999, "192.0.2.7", "bob")
    assert afterwards(7_000, "192.0.2.7", "bob")
    assert not afterwards(599, "192.0.2.8", "alice")
    assert afterwards(600, "192.0.2.8", "alice")
    assert afterwards(0, "192.0.2.8", "bob")
    assert "198.51.100.0/24" in state
