"""
Numbers, marks and sizes of one session.
"""

from __future__ import annotations

import pytest

from pop3svc.errors import POP3ResponseError
from pop3svc.protocol.maildrop import BadListing, Found, Maildrop, isUniqueID


@pytest.mark.parametrize("text", ["!", "~", "__", "x" * 70, ".", "../..", "UID:a", "a_"])
def test_legal(text: str) -> None:
    assert isUniqueID(text)
    assert list(Maildrop([text]).present()) == [Found(1, text)]


@pytest.mark.parametrize("text", ["", "_", "x" * 71, "a b", "ä", "a\n", "\x7f", "_\n", b"a", None])
def test_illegal(text: str) -> None:
    assert not isUniqueID(text)
    with pytest.raises(BadListing, match="not a well-formed"):
        Maildrop(["a", text])


def test_twice() -> None:
    with pytest.raises(BadListing, match="listed twice: 'b'"):
        Maildrop(["a", "b", "c", "b"])


def test_numbersNeverShift() -> None:
    maildrop = Maildrop(["a", "b", "c"])
    maildrop.mark(maildrop.byNumber(2))
    assert [each.number for each in maildrop.present()] == [1, 3]
    assert maildrop.byNumber(3) == Found(3, "c")
    assert maildrop.byUniqueID("c") == Found(3, "c")
    for refused in (lambda: maildrop.byNumber(2), lambda: maildrop.byUniqueID("b")):
        with pytest.raises(POP3ResponseError, match="deleted"):
            refused()
    for number in (0, 4, 9999999999):
        with pytest.raises(POP3ResponseError, match="no such"):
            maildrop.byNumber(number)
    assert maildrop.byUniqueID("d") is None
    maildrop.unmark()
    assert maildrop.byNumber(2) == Found(2, "b")


def test_gone() -> None:
    maildrop = Maildrop(["a", "b"])
    maildrop.mark(Found(1, "a"))
    maildrop.mark(Found(0, "late"))
    assert maildrop.marked() == ["a", "late"]
    maildrop.setGone(["a", "late"])
    maildrop.unmark()
    assert maildrop.marked() == []
    assert list(maildrop.present()) == [Found(2, "b")]
    with pytest.raises(POP3ResponseError, match="deleted"):
        maildrop.byUniqueID("late")


def test_sizes() -> None:
    maildrop = Maildrop(["a"])
    assert maildrop.size("a") is None
    maildrop.setSizes({"a": 0})
    assert maildrop.size("a") == 0
