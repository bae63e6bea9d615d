"""
The limits of connections, sessions and logins.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.task import Clock

from pop3svc.policy import Policy
from pop3svc.providers.memory import MemoryMailbox, MemoryProvider
from pop3svc.service.factory import POP3Factory
from pop3svc.service.unauthenticated import UnauthenticatedConnections
from pop3svc.testing import Client

FULL = b"-ERR [SYS/TEMP] Too many connections.\r\n"


def make(**settings: Any) -> POP3Factory:
    provider = MemoryProvider({"alice": "secret", "bob": "secret"}, [b"x"])
    return POP3Factory(provider, Policy(cleartextLogin="always", **settings), clock=Clock())


def come(factory: POP3Factory, address: str = "192.0.2.1", isSecure: bool = False) -> Client:
    kind = IPv6Address if ":" in address else IPv4Address
    return Client(factory, kind("TCP", address, 1), isSecure)


def isTaken(client: Client) -> bool:
    said = client.received()
    assert client.isOpen is (said != FULL)
    return client.isOpen


def isOpen(client: Client) -> bool:
    client.received()
    return client.isOpen


def test_maxConnections(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A connection on which somebody is logged in is never closed to make room.
    """
    monkeypatch.setattr(MemoryMailbox, "lock", lambda self, info, requestRelease: None)
    factory = make(maxConnections=3)
    clients = [come(factory, f"192.0.2.{number}") for number in range(3)]
    for each in clients:
        each.received()
        each.logIn()
    assert not isTaken(come(factory, "192.0.2.9"))
    assert not isTaken(come(factory, "127.0.0.1"))
    clients[0].vanish()
    assert isTaken(come(factory, "192.0.2.9"))
    assert isTaken(come(factory, "192.0.2.10"))
    assert [each.say(b"NOOP") for each in clients[1:]] == [b"+OK Done.\r\n"] * 2


def test_overTLS() -> None:
    """
    A connection that is refused gets no TLS handshake.
    """
    factory = make(maxConnections=1)
    first = come(factory, isSecure=True)
    first.logIn()
    refused = come(factory, isSecure=True)
    assert (refused.received(), refused.wasAborted) == (b"", True)


def test_unauthenticated() -> None:
    """
    At the limit, the oldest unauthenticated connection of the network with the most such
    connections is closed.  A connection on which somebody is logged in does not count.
    """
    factory = make(maxUnauthenticated=4)
    owner = come(factory, "198.51.100.1")
    flood = [come(factory, "192.0.2.1") for _ in range(2)]
    flood6 = [come(factory, f"2001:db8::{number}") for number in (1, 2)]
    assert [isOpen(each) for each in (owner, *flood, *flood6)] == [True, False, True, True, True]
    flood.append(come(factory, "192.0.2.1"))
    assert [isOpen(each) for each in flood + flood6] == [False, True, True, False, True]
    owner.received()
    owner.logIn()
    # Fifty more connections from the same address take no room from others.
    other = come(factory, "203.0.113.1")
    for _ in range(50):
        come(factory, "192.0.2.1")
        assert isOpen(other) and isOpen(flood6[1]) and isOpen(owner)
    assert len(factory.admission.unauthenticated) == 4
    owner.say(b"QAUT")
    assert isOpen(owner) and len(factory.admission.unauthenticated) == 5
    come(factory, "192.0.2.1")
    assert isOpen(owner)


def test_fromEverywhere() -> None:
    """
    If each network has one connection, the oldest connection is closed.
    """
    factory = make(maxConnections=20)
    clients = [come(factory, f"192.0.2.{number}") for number in range(60)]
    assert [isOpen(each) for each in clients] == [False] * 40 + [True] * 20


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 3)), max_size=60))
def test_countedByNetwork(steps: list[tuple[bool, int, int]]) -> None:
    """
    L{UnauthenticatedConnections} finds the same connection as a plain search.
    """

    class Stranger:
        def __init__(self, network: int, number: int) -> None:
            self.address = f"192.0.2.{network}"
            self.number = number

    unauthenticated = UnauthenticatedConnections()
    known: dict[tuple[int, int], Stranger] = {}
    present: list[Stranger] = []
    for comes, network, number in steps:
        each = known.setdefault((network, number), Stranger(network, number))
        if comes:
            unauthenticated.add(each)
            present += [] if each in present else [each]
        else:
            unauthenticated.discard(each)
            present = [other for other in present if other is not each]
        assert len(unauthenticated) == len(present) and set(unauthenticated) == set(present)
        longest = unauthenticated.longestWaiting()
        counts = Counter(each.address for each in present)
        if not present:
            assert longest is None
            continue
        assert longest in unauthenticated
        assert counts[longest.address] == max(counts.values())
        assert longest is next(each for each in present if each.address == longest.address)


def test_mayServe() -> None:
    """
    If resources for another session are lacking, logins and WAKE are refused, and sessions that are
    awake go on.
    """
    factory = make()
    first, second = come(factory), come(factory)
    first.logIn()
    first.say(b"SLEE")
    second.received()
    assert factory.admission.inUse == (2, 0)
    factory.admission.mayServe = lambda: False
    refused = b"-ERR [SYS/TEMP] Too many sessions, try again later.\r\n"
    assert second.say(b"XLOG bob secret") == refused
    assert first.say(b"WAKE") == refused
    factory.admission.mayServe = lambda: True
    second.logIn(b"bob")
    assert factory.admission.inUse == (2, 1)
    factory.admission.mayServe = lambda: False
    assert second.say(b"RETR 1").startswith(b"+OK")
    second.say(b"QUIT")
    assert factory.admission.inUse[1] == 0


def test_perAddress() -> None:
    factory = make(maxPerAddress=2)
    first = come(factory)
    for address, taken in (
        ("192.0.2.1", True),
        ("192.0.2.1", False),
        ("::ffff:192.0.2.1", False),
        ("192.0.2.2", True),
        ("2001:db8::1", True),
        ("2001:db8::2", True),
        ("2001:db8::3", False),
        ("2001:db8:0:1::3", True),
    ):
        assert isTaken(come(factory, address)) is taken, address
    for _ in range(5):
        assert isTaken(come(factory, "127.0.0.1"))
        assert isTaken(come(factory, "::1"))
        assert Client(factory, UNIXAddress(None)).isOpen
    first.vanish()
    assert isTaken(come(factory))
    for connection in list(factory.connections):
        connection.abort("test")
        connection.connectionLost()
    assert not factory.admission._addresses


def test_awakePerUser(monkeypatch: Any) -> None:
    """
    C{maxAwakePerUser} limits logins and WAKE.  Sleepers do not count.
    """
    monkeypatch.setattr(MemoryMailbox, "lock", lambda self, info, requestRelease: None)
    factory = make(maxAwakePerUser=2)
    clients = [come(factory) for _ in range(3)]
    for each in clients[:2]:
        each.logIn()
    clients[2].received()
    assert (
        clients[2].say(b"XLOG alice secret")
        == b"-ERR [SYS/TEMP] Too many sessions for this user.\r\n"
    )
    clients[2].logIn(b"bob")
    clients[2].say(b"QAUT")
    clients[0].say(b"SLEE")
    clients[2].logIn(b"alice")
    assert clients[0].say(b"WAKE") == b"-ERR [SYS/TEMP] Too many sessions for this user.\r\n"
    clients[2].say(b"SLEE")
    assert clients[0].say(b"WAKE").startswith(b"+OK")


def test_loginDelay() -> None:
    """
    C{loginDelay} is announced, and enforced for each user.  Neither WAKE nor a login with a wrong
    password counts as a login.
    """
    factory = make(loginDelay=30)
    client = come(factory)
    assert b"\r\nLOGIN-DELAY 30\r\n" in client.say(b"CAPA")
    assert client.say(b"XLOG alice wrong").startswith(b"-ERR [AUTH]")
    client.logIn()
    for line in (b"SLEE", b"WAKE", b"QAUT"):
        assert client.say(line).startswith(b"+OK")
    refused = b"-ERR [LOGIN-DELAY] Log in again not before 30 seconds have passed.\r\n"
    assert client.say(b"XLOG alice secret") == refused
    clock: Any = factory.clock
    clock.advance(29)
    assert come(factory).say(b"XLOG alice secret").endswith(refused)
    client.logIn(b"bob")
    clock.advance(1)
    other = come(factory)
    other.logIn()
    clock.advance(31)
    client.say(b"QAUT")
    client.logIn(b"bob")
    assert len(factory.admission._logins) == 1
    assert b"LOGIN-DELAY" not in come(make()).say(b"CAPA")


def test_loginDelayAfterInUse() -> None:
    """
    A login that fails because the mailbox is in use does not delay the next login.
    """
    factory = make(loginDelay=30)
    holder = come(factory)
    holder.logIn()
    clock: Any = factory.clock
    clock.advance(31)
    client = come(factory)
    assert b"-ERR [IN-USE]" in client.say(b"XLOG alice secret")
    holder.say(b"QUIT")
    assert client.say(b"XLOG alice secret").startswith(b"+OK")


def test_failedTLSIsNotCounted() -> None:
    """
    A connection whose TLS could not be set up is not counted, and does not keep the service from
    ending.
    """
    from tests.support.coroutines import start

    factory = make(maxUnauthenticated=1, maxConnections=2)
    for _ in range(5):
        made: Any = factory.buildProtocol(IPv4Address("TCP", "192.0.2.1", 1))
    made.connectionLost()
    assert (factory.connections, dict(factory.admission._addresses)) == (set(), {})
    first = come(factory)
    assert isTaken(first)
    assert isTaken(come(factory))
    assert not isOpen(first)
    for connection in list(factory.connections):
        connection.connectionLost()
    assert start(factory.shutdown())[1] == [None]
