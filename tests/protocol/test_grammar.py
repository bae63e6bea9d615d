"""
Arguments of commands: accepted and refused forms.
"""

from __future__ import annotations

import pytest

from pop3svc.errors import BadArguments
from pop3svc.protocol import grammar
from pop3svc.protocol.grammar import MessageNumber, UniqueID

BAD_NUMBERS = [
    b"0",
    b"00",
    b"-1",
    b"+1",
    b"1.0",
    b"1_0",
    "２".encode(),
    b"\xb2",
    b"1e1",
    b"0x1",
    b"one",
    b"1,2",
    b"12345678901",
    b"1\t",
    b"1\0",
    b"UID",
]


@pytest.mark.parametrize("rest", BAD_NUMBERS)
def test_badNumbers(rest: bytes) -> None:
    for function in (grammar.message, grammar.optionalMessage):
        with pytest.raises(BadArguments):
            function(rest)
    with pytest.raises(BadArguments):
        grammar.messageAndLines(rest + b" 1")


@pytest.mark.parametrize(
    ("rest", "number"),
    [(b"1", 1), (b"007", 7), (b"  12  ", 12), (b"9999999999", 9999999999), (b"0000000001", 1)],
)
def test_numbers(rest: bytes, number: int) -> None:
    assert grammar.message(rest) == (MessageNumber(number),)
    assert grammar.optionalMessage(rest) == (MessageNumber(number),)


def test_message() -> None:
    for rest in (None, b"", b"  ", b"1 2", b"1 1"):
        with pytest.raises(BadArguments):
            grammar.message(rest)


def test_optionalMessage() -> None:
    for rest in (None, b"", b"   "):
        assert grammar.optionalMessage(rest) == (None,)
    with pytest.raises(BadArguments):
        grammar.optionalMessage(b"1 2")


@pytest.mark.parametrize("rest", [b"UID:x", b"uid:x", b" Uid:x "])
def test_uniqueID(rest: bytes) -> None:
    assert grammar.message(rest) == (UniqueID("x"),)


def test_uniqueIDIsVerbatim() -> None:
    assert grammar.message(b"UID:") == (UniqueID(""),)
    assert grammar.message(b"UID:../../X") == (UniqueID("../../X"),)
    assert grammar.message(b"UID:\xff") == (UniqueID("\udcff"),)


def test_lines() -> None:
    assert grammar.messageAndLines(b"1 0") == (MessageNumber(1), 0)
    assert grammar.messageAndLines(b"  1   99999999 ") == (MessageNumber(1), 99999999)
    assert grammar.messageAndLines(b"UID:a 010") == (UniqueID("a"), 10)
    for rest in (None, b"", b"1", b"1 0 0", b"1 -1", b"1 +1", b"1 x", b"1 12345678901", b"0 0"):
        with pytest.raises(BadArguments):
            grammar.messageAndLines(rest)


def test_noArguments() -> None:
    for rest in (None, b"", b"    "):
        assert grammar.nothing(rest) == ()
    with pytest.raises(BadArguments):
        grammar.nothing(b"x")


def test_name() -> None:
    long = b"a" * 64 + b"@example.org"
    assert grammar.name(long) == (long.decode(),)
    assert grammar.name(b"  alice ") == ("alice",)
    assert grammar.name("ä".encode()) == ("ä",)
    assert grammar.name(b"\xff") == ("\udcff",)
    for rest in (None, b"", b"  ", b"a b"):
        with pytest.raises(BadArguments):
            grammar.name(rest)


def test_password() -> None:
    assert grammar.password(b" two  words ") == (" two  words ",)
    assert grammar.password(b" ") == (" ",)
    for rest in (None, b""):
        with pytest.raises(BadArguments):
            grammar.password(rest)


def test_saslStart() -> None:
    assert grammar.saslStart(None) == (None, None)
    assert grammar.saslStart(b" ") == (None, None)
    assert grammar.saslStart(b"plain") == ("PLAIN", None)
    assert grammar.saslStart(b" plain  = ") == ("PLAIN", b"=")
    with pytest.raises(BadArguments):
        grammar.saslStart(b"PLAIN = =")


def test_nameAndPassword() -> None:
    assert grammar.nameAndPassword(b"  Xavier two  words ") == ("Xavier", "two  words ")
    assert grammar.nameAndPassword(b"\talice x") == ("\talice", "x")
    for rest in (None, b"", b" ", b"alice", b"alice ", b"  alice"):
        with pytest.raises(BadArguments):
            grammar.nameAndPassword(rest)
