"""
Addresses, names of users, and messages that loop.
"""

from __future__ import annotations

import pytest

from pop3svc.delivery.envelope import BadPath, Trace, namesFor, parsePath
from pop3svc.errors import DeliveryRefused


@pytest.mark.parametrize(
    ("argument", "text", "name", "parameters"),
    [
        ("TO:<a@b>", "a@b", "a@b", []),
        ("to: <a@b> SIZE=1 BODY=7BIT", "a@b", "a@b", ["SIZE=1", "BODY=7BIT"]),
        ("TO:<@x,@y:a@b>", "a@b", "a@b", []),
        ('TO:<"a b"@c>', '"a b"@c', "a b@c", []),
        ('TO:<"a\\"<b>"@c>', '"a\\"<b>"@c', 'a"<b>@c', []),
        ("TO:<alice>", "alice", "alice", []),
        ("TO:<>", "", "", []),
        ("TO:<ä@ö>", "ä@ö", "ä@ö", []),
    ],
)
def test_paths(argument: str, text: str, name: str, parameters: list[str]) -> None:
    assert parsePath(argument, "TO") == (text, name, parameters)


@pytest.mark.parametrize(
    "argument",
    ["", "TO", "TO:", "TO:a@b", "TO:<a@b", "TO:<a b@c>", "TO:<a@>", "TO:<@b>", "FROM:<a@b>"]
    + ["TO:<a@b>SIZE=1", "TO:<a\x00@b>", "TO:<a\nb@c>", f"TO:<{'a' * 600}@b>", "TO:<<a@b>>"],
)
def test_badPaths(argument: str) -> None:
    with pytest.raises(BadPath):
        parsePath(argument, "TO")


@pytest.mark.parametrize(
    ("recipient", "names"),
    [
        ("alice", ["alice"]),
        ("alice+work", ["alice+work", "alice"]),
        ("Alice+w@E.org", ["Alice+w@E.org", "alice+w@e.org", "Alice@E.org", "alice@e.org"]),
        ("a+b+c@x", ["a+b+c@x", "a@x"]),
        ("+a@x", ["+a@x"]),
        ("a+b@Home.test", ["a+b@Home.test", "a+b@home.test", "a+b"]
            + ["a@Home.test", "a@home.test", "a"]),
        ("%(recipient)", []),
        ("", []),
        ("@x", []),
        ("a\nb", []),
        ("a" * 600, []),
    ],
)  # fmt: skip
def test_names(recipient: str, names: list[str]) -> None:
    assert namesFor(recipient, "+", ["home.test"]) == names


def test_delimiters() -> None:
    assert namesFor("a-b+c", "+-") == ["a-b+c", "a"]
    assert namesFor("a+b", "") == ["a+b"]


def loops(message: bytes, deliveredTo: str | None = "a@b", cut: int = 7) -> bool:
    trace = Trace()
    for place in range(0, len(message), cut):
        trace.feed(message[place : place + cut])
    try:
        trace.check(deliveredTo)
    except DeliveryRefused:
        return True
    return False


def test_loops() -> None:
    own = b"Subject: x\r\nDelivered-To: A@b\r\n"
    assert loops(own) and loops(own.replace(b"\r", b"")) and not loops(own, None)
    assert not loops(b"Subject: x\r\n\r\n" + own)
    assert (
        not loops(b"Subject: x\n\n" + own) and not loops(b"\n" + own) and not loops(b"\r\n" + own)
    )
    assert not loops(b"Delivered-To: a@bc\r\n")
    hop = b"Received: from x\r\n\tby y\r\n"
    assert loops(hop * 101, None) and not loops(hop * 100, None)
    # Only the first 262,144 octets of a header are searched.
    assert not loops(b"X: " + b"x" * 262_144 + b"\r\n" + own, cut=4096)
