"""
Calls of a provider that end late, after the client is lost or a time limit has passed.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import formatEvent, globalLogPublisher

from tests.support.connections import advance
from tests.support.mailboxes import logged, served


def test_lateLockIsReleased() -> None:
    """
    A lock that is granted after its cancellation is released, once.
    """
    client, calls = served(lock=Deferred(lambda late: late.callback(None)))
    assert client.say(b"PASS secret") == b""
    client.vanish()
    assert calls == ["unlock"]


def test_lockIsReleasedAfterALateListing() -> None:
    client, calls = served(listMessageUniqueIDs=Deferred(lambda late: late.callback(["a"])))
    assert client.say(b"PASS secret") == b""
    client.vanish()
    assert calls == ["unlock"]


def test_clientIsLostDuringACall() -> None:
    """
    A client is lost while a method runs that answers at once: the answer is not used.
    """

    def list_(info: object) -> list[str]:
        client.vanish()
        return ["a"]

    client, calls = served(listMessageUniqueIDs=list_)
    assert client.say(b"PASS secret") == b""
    assert calls == ["unlock"]


def test_releaseFailsLater() -> None:
    """
    The failed release of a mailbox is logged, and nothing else happens.
    """
    waiting: Deferred[None] = Deferred()
    client, _ = served(unlock=waiting)
    client.say(b"PASS secret")
    client.vanish()
    told = [
        each for each in logged(lambda: waiting.errback(ValueError("x"))) if "log_failure" in each
    ]
    assert [each["log_failure"].type for each in told] == [ValueError]
    assert formatEvent(told[0]).startswith("failed to release mailbox")


def _silent(*arguments: Any) -> Deferred[Any]:
    return Deferred()


@pytest.mark.parametrize(
    ("method", "lines"),
    [
        ("lock", [b"PASS secret"]),
        ("listMessageUniqueIDs", [b"PASS secret"]),
        ("messageContent", [b"PASS secret", b"RETR 1"]),
    ],
)
def test_logNamesTheCallThatTimedOut(method: str, lines: list[bytes]) -> None:
    """
    The log names the function that timed out, by its C{repr} if it has no name.
    """
    unnamed = partial(_silent)
    for silent, name in ((_silent, "_silent"), (unnamed, repr(unnamed))):
        client, _ = served(**{method: silent})
        for line in lines:
            client.say(line)
        seen: list[Any] = []
        globalLogPublisher.addObserver(seen.append)
        advance(client, 121)
        globalLogPublisher.removeObserver(seen.append)
        (event,) = (event for event in seen if "timeout" in event)
        number = client.protocol.session.info.connectionID
        assert formatEvent(event) == f"{name} of connection {number} did not answer within 120 s"


def test_deletionGoesOnWithoutItsClient() -> None:
    """
    When the client is lost, the deletion goes on.
    """
    waiting: Deferred[None] = Deferred()
    client, calls = served(messageDelete=waiting)
    client.say(b"PASS secret")
    client.say(b"DELE 1")
    assert client.say(b"QUIT") == b""
    client.vanish()
    assert calls == []
    waiting.callback(None)
    assert calls == ["unlock"]


def test_deletionThatTimesOutKeepsTheLock() -> None:
    """
    The client is told that the result is not known; the lock is kept until the deletion ends.
    """
    waiting: Deferred[None] = Deferred()
    client, calls = served(messageDelete=waiting)
    client.say(b"PASS secret")
    client.say(b"DELE 1")
    assert client.say(b"QUIT") == b""
    advance(client, 121)
    assert client.received().startswith(b"-ERR [SYS/TEMP]")
    assert (client.isOpen, calls) == (False, [])
    waiting.callback(None)
    assert calls == ["unlock"]
