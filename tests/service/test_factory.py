"""
Limits of connections: each biting, and an honest user unharmed.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.task import Clock

from pop3svc.policy import Policy
from pop3svc.providers.memory import MemoryMailbox, MemoryProvider
from pop3svc.service.factory import POP3Factory
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


def test_inAll() -> None:
    factory = make(maxConnections=3)
    clients = [come(factory, f"192.0.2.{number}") for number in range(3)]
    assert all(isTaken(each) for each in clients)
    assert not isTaken(come(factory, "192.0.2.9"))
    assert not isTaken(come(factory, "127.0.0.1"))
    clients[0].vanish()
    assert isTaken(come(factory, "192.0.2.9"))


def test_overTLS() -> None:
    """
    No handshake for a refusal.
    """
    factory = make(maxConnections=1)
    come(factory, isSecure=True)
    refused = come(factory, isSecure=True)
    assert (refused.received(), refused.wasAborted) == (b"", True)


def test_strangers() -> None:
    """
    Who has logged in makes room.
    """
    factory = make(maxStrangers=2)
    first = come(factory, "192.0.2.1")
    assert isTaken(first)
    assert isTaken(come(factory, "192.0.2.2"))
    assert not isTaken(come(factory, "192.0.2.3"))
    first.logIn()
    assert isTaken(come(factory, "192.0.2.3"))
    first.say(b"QAUT")
    assert not isTaken(come(factory, "192.0.2.4"))


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
    assert not factory._addresses


def test_awakePerUser(monkeypatch: Any) -> None:
    """
    Sleepers do not count.
    """
    monkeypatch.setattr(MemoryMailbox, "lock", lambda self, info, surrender: None)
    factory = make(maxAwakePerUser=2)
    clients = [come(factory) for _ in range(3)]
    for each in clients[:2]:
        each.logIn()
    clients[2].received()
    assert (
        clients[2].say(b"XLOG alice secret")
        == b"-ERR [SYS/TEMP] Too many sessions of this user.\r\n"
    )
    clients[2].logIn(b"bob")
    clients[2].say(b"QAUT")
    clients[0].say(b"SLEE")
    clients[2].logIn(b"alice")
    assert clients[0].say(b"WAKE") == b"-ERR [SYS/TEMP] Too many sessions of this user.\r\n"
    clients[2].say(b"SLEE")
    assert clients[0].say(b"WAKE").startswith(b"+OK")


def test_loginDelay() -> None:
    """
    Announced and enforced, by user; to wake up is no login, a wrong password
    is none either.
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
    assert len(factory._logins) == 1
    assert b"LOGIN-DELAY" not in come(make()).say(b"CAPA")


def test_loginDelayAfterInUse() -> None:
    """
    A login that comes to nothing delays no other.
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


def test_neverMade() -> None:
    """
    A connection whose TLS could not be set up is not counted, and keeps
    nothing from ending.
    """
    from tests.test_calling import start

    factory = make(maxStrangers=1, maxConnections=2)
    for _ in range(5):
        made: Any = factory.buildProtocol(IPv4Address("TCP", "192.0.2.1", 1))
    made.connectionLost()
    assert (factory.connections, dict(factory._addresses)) == (set(), {})
    assert isTaken(come(factory))
    assert not isTaken(come(factory))
    for connection in list(factory.connections):
        connection.connectionLost()
    assert start(factory.shutdown())[1] == [None]
