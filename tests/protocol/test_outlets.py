"""
Outlets: which one a transport gets, when it is a producer, and what it does with files.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from pop3svc.files import FileRegion
from pop3svc.protocol.outlets import Outlet, ProducerOutlet, SocketOutlet, _queued, outletTo
from pop3svc.timing import TimeSlice
from tests.support.bodies import Plain, Steps
from tests.support.coroutines import start


def outletOf(transport: Any, isTLS: bool = False) -> Outlet:
    clock = Clock()
    return outletTo(transport, TimeSlice(clock), clock, 60, isTLS)


class Wrapper(StringTransport):
    """
    A transport that passes on attributes of the transport that it wraps.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(Plain(), name)


@pytest.mark.parametrize("isTLS", [False, True])
def test_kinds(isTLS: bool) -> None:
    """
    An outlet writes to the socket at once if the transport itself can do so, encrypted or not.
    """
    for transport, kind in (
        (Plain(), SocketOutlet),
        (StringTransport(), ProducerOutlet),
        (Wrapper(), ProducerOutlet),
    ):
        outlet = outletOf(transport, isTLS)
        assert type(outlet) is kind
        assert outlet.isTLS is isTLS


class Spoken(StringTransport):
    """
    A transport that is never full and remembers its calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def write(self, data: bytes) -> None:
        self.calls.append("write")
        super().write(data)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self.calls.append("push" if streaming else "pull")
        super().registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        self.calls.append("end")
        super().unregisterProducer()


def test_producerWhileItFlushes() -> None:
    """
    A flush asks the transport for room even if there is nothing to write.
    """
    transport = Spoken()
    outlet = outletOf(transport)
    outlet.write(b"a")
    assert (transport.calls, outlet.unasked) == (["write"], 1)
    transport.calls.clear()
    assert start(outlet.flush(b"bc"))[1] == [None]
    assert (transport.calls, outlet.unasked) == (["push", "write", "end"], 0)
    transport.calls.clear()
    assert start(outlet.flush(b""))[1] == [None]
    assert transport.calls == ["push", "end"]
    assert transport.value() == b"abc"


def test_resumedTwice() -> None:
    """
    A transport that resumes its producer again does no harm.
    """
    for transport in (Spoken(), Plain()):
        outlet = outletOf(transport)
        if isinstance(transport, Plain):
            outlet.write(b"a")
        else:
            outlet.pauseProducing()
        assert outlet.isFull
        for _ in range(2):
            outlet.resumeProducing()
            assert not outlet.isFull


def test_socketIsFull() -> None:
    """
    After a part that the socket did not accept, all octets go through the transport, in order.
    """
    transport = Plain(1)
    outlet = outletOf(transport)
    outlet.write(b"ab")
    outlet.write(b"c")
    assert (transport.written, transport.waiting, outlet.unasked) == (b"a", b"bc", 1)
    assert transport.producer is outlet and not transport.isStreaming
    transport.drain()
    assert (transport.written, outlet.isFull, transport.producer) == (b"abc", False, None)


def test_filesForPlainSocketsOnly() -> None:
    """
    A large region of a file is sent unread to a plain socket, and to nothing else.
    """
    large = FileRegion(-1, 0, 262_144)
    plain = outletOf(Plain())
    assert plain.sendable(large) is large
    for other in (FileRegion(-1, 0, 262_143), None, b"x" * 262_144):
        assert plain.sendable(other) is None
    for outlet in (outletOf(Plain(), isTLS=True), plain.encrypted(), outletOf(StringTransport())):
        assert outlet.sendable(large) is None
    assert start(outletOf(StringTransport()).send(Steps([5], 262_144)))[1] == [0]


def test_encrypted() -> None:
    """
    After STLS, an outlet that was full is replaced by one that is not.
    """
    transport = Plain()
    before = outletOf(transport)
    before.write(b"a")
    assert before.isFull and transport.producer is before
    after = before.encrypted()
    assert type(after) is ProducerOutlet and after.isTLS and not after.isFull
    assert transport.producer is None
    after.write(b"b")
    assert transport.waiting == b"ab"


def test_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The kernel returns the size of its queue in native byte order.
    """
    monkeypatch.setattr("fcntl.ioctl", lambda *arguments: (300).to_bytes(4, sys.byteorder))
    assert _queued(Plain()) == 300
