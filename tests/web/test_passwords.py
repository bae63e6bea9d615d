"""
The password of the page: clients that guess are banned or slowed down, and lock nobody out.
"""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from pop3svc.web.passwords import clientAddress
from pop3svc.web.server import BoundedSite
from tests.support.mailboxes import logged
from tests.support.webpages import WebPages, basic

PROXIES = tuple(ip_network(each) for each in ("127.0.0.1", "10.0.0.0/8"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("192.0.2.7", [], "192.0.2.7"),
        # Only a proxy is believed.
        ("192.0.2.7", [b"198.51.100.1"], "192.0.2.7"),
        ("127.0.0.1", [b"198.51.100.1"], "198.51.100.1"),
        (None, [b"198.51.100.1"], "198.51.100.1"),
        ("::ffff:127.0.0.1", [b"2001:db8::1"], "2001:db8::1"),
        # The client has sent the first address itself.
        ("127.0.0.1", [b"203.0.113.9, 198.51.100.1"], "198.51.100.1"),
        ("127.0.0.1", [b"203.0.113.9", b"198.51.100.1"], "198.51.100.1"),
        # Two proxies, one after the other.
        ("127.0.0.1", [b"203.0.113.9,198.51.100.1 , 10.0.0.3"], "198.51.100.1"),
        # The proxy has not named its client.
        ("127.0.0.1", [], "127.0.0.1"),
        (None, [b""], None),
        ("10.0.0.3", [b"unknown"], "10.0.0.3"),
        ("10.0.0.3", [b"198.51.100.1, 127.0.0.1, "], "10.0.0.3"),
        ("10.0.0.3", [b"fe80::1%<b>"], "10.0.0.3"),
        ("10.0.0.3", [b"198.51.100.1:4000"], "10.0.0.3"),
        ("10.0.0.3", [b"\xff\xfe"], "10.0.0.3"),
    ],
)
def test_clientAddress(peer: str | None, forwarded: list[bytes], address: str | None) -> None:
    assert clientAddress(peer, forwarded, PROXIES) == address
    if forwarded and peer is not None:
        assert clientAddress(peer, forwarded, ()) == peer


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1", "10.0.0.3"])
def test_aSharedAddressIsNotBanned(ip: str) -> None:
    """
    Any number of wrong passwords from an address that many clients share lets the right password
    in at once.
    """
    pages = WebPages("sesame", proxies=PROXIES)

    def guess() -> None:
        for number in range(100):
            assert pages.ask("GET /", basic(f"guess{number}"), ip=ip, wait=1).status == 401

    events = logged(guess)
    assert pages.ask("GET /", basic("sesame"), ip=ip).status == 200
    assert pages.throttle.bans() == []
    text = (
        "wrong password at --web from this machine, or from a proxy that does not name its client "
        "({count} since the start)"
    )
    assert [(each["log_format"], each["count"]) for each in events] == [
        (text, 1),
        (text, 10),
        (text, 100),
    ]
    assert pages.clock.getDelayedCalls() == []


def test_guessesOfASharedAddressAreSlow() -> None:
    """
    Wrong passwords are compared one after the other, whatever the number of connections.  The right
    password of another client has its turn before its connection ends.
    """
    pages = WebPages("sesame")
    guesses = [
        pages.begin("GET /", basic(f"guess{number}"), ip="127.0.0.1")
        for number in range(BoundedSite.MOST - 1)
    ]
    right = pages.begin("GET /", basic("sesame"), ip="127.0.0.1")[1]
    # A client that leaves makes room, and the pause after a wrong password goes on without it.
    guesses[0][0].connectionLost(Failure(ConnectionDone()))
    guesses[1][0].connectionLost(Failure(ConnectionDone()))
    for _ in range(61):
        assert not right.value()
        pages.clock.advance(0.1)
    assert not right.value()
    pages.clock.advance(0.1)
    assert right.value().startswith(b"HTTP/1.1 200 ") and not right.isAborted
    pages.clock.advance(1)
    answers = [transport.value()[:13] for _, transport in guesses]
    assert answers == [b""] * 2 + [b"HTTP/1.1 401 "] * (BoundedSite.MOST - 3)


def test_clientsOfAProxyAreBanned() -> None:
    """
    A proxy names its clients, so a ban hits one of them.
    """
    pages = WebPages("sesame", proxies=PROXIES)

    def ask(password: str, client: str) -> int:
        header = f"X-Forwarded-For: {client}"
        return pages.ask("GET /", basic(password), header, ip="127.0.0.1", wait=20).status

    assert [ask(f"guess{number}", "198.51.100.1") for number in range(3)] == [401] * 3
    assert [each.network for each in pages.throttle.bans()] == ["198.51.100.1/32"]
    assert ask("sesame", "198.51.100.1") == 401
    # The client names another address, but the proxy appends its own.
    assert ask("sesame", "203.0.113.9, 198.51.100.1") == 401
    assert ask("sesame", "203.0.113.9") == 200
