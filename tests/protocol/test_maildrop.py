"""
Numbers, marks and sizes of one session.
"""

from __future__ import annotations

import pytest

from pop3svc.errors import POP3ResponseError
from pop3svc.listings import BadListing, UniqueIDList, isUniqueID
from pop3svc.protocol.maildrop import Maildrop, MessageRef


@pytest.mark.parametrize("text", ["!", "~", "__", "x" * 70, ".", "../..", "UID:a", "a_"])
def test_wellFormedUniqueIDs(text: str) -> None:
    assert isUniqueID(text)
    assert list(Maildrop(UniqueIDList([text])).present()) == [MessageRef(1, text)]


@pytest.mark.parametrize("text", ["", "_", "x" * 71, "a b", "ä", "a\n", "\x7f", "_\n", b"a", None])
def test_malformedUniqueIDs(text: str) -> None:
    assert not isUniqueID(text)
    with pytest.raises(BadListing, match="not a well-formed"):
        Maildrop(UniqueIDList(["a", text]))


def test_listedTwice() -> None:
    with pytest.raises(BadListing, match="listed twice: 'b'"):
        Maildrop(UniqueIDList(["a", "b", "c", "b"]))


def test_numbersNeverShift() -> None:
    maildrop = Maildrop(UniqueIDList(["a", "b", "c"]))
    maildrop.mark(maildrop.byNumber(2))
    assert [each.number for each in maildrop.present()] == [1, 3]
    assert maildrop.byNumber(3) == MessageRef(3, "c")
    assert maildrop.byUniqueID("c") == MessageRef(3, "c")
    for refused in (lambda: maildrop.byNumber(2), lambda: maildrop.byUniqueID("b")):
        with pytest.raises(POP3ResponseError, match="deleted"):
            refused()
    for number in (0, 4, 9999999999):
        with pytest.raises(POP3ResponseError, match="No such"):
            maildrop.byNumber(number)
    assert maildrop.byUniqueID("d") is None
    maildrop.unmark()
    assert maildrop.byNumber(2) == MessageRef(2, "b")


def test_deletedMessagesAreGone() -> None:
    maildrop = Maildrop(UniqueIDList(["a", "b"]))
    maildrop.mark(MessageRef(1, "a"))
    maildrop.mark(MessageRef(0, "late"))
    assert maildrop.marked() == ["a", "late"]
    maildrop.setGone(["a", "late"])
    maildrop.unmark()
    assert maildrop.marked() == []
    assert list(maildrop.present()) == [MessageRef(2, "b")]
    with pytest.raises(POP3ResponseError, match="deleted"):
        maildrop.byUniqueID("late")


def test_sizes() -> None:
    maildrop = Maildrop(UniqueIDList(["a", "b"]))
    assert (list(maildrop.sizes()), maildrop.octets()) == ([], None)
    maildrop.setSizes(
        [MessageRef(1, "a"), MessageRef(0, "late"), MessageRef(0, "gone")], [0, 7, None]
    )
    assert (maildrop.size(MessageRef(1, "a")), maildrop.size(MessageRef(2, "b"))) == (0, None)
    assert (maildrop.size(MessageRef(0, "late")), maildrop.size(MessageRef(0, "gone"))) == (7, None)
    assert maildrop.octets() is None
    maildrop.mark(MessageRef(2, "b"))
    assert maildrop.octets() == 0
    maildrop.unmark()
    maildrop.setSizes([], [3, 4])
    assert (list(maildrop.sizes()), maildrop.octets()) == ([3, 4], 7)
    maildrop.mark(MessageRef(1, "a"))
    maildrop.mark(MessageRef(0, "late"))
    assert (maildrop.octets(), maildrop.count()) == (4, 1)
    maildrop.setGone(["a", "b"])
    assert (maildrop.octets(), maildrop.count()) == (0, 0)


def test_lines() -> None:
    listed = UniqueIDList(str(each) for each in range(2500))
    lines = b"".join(listed.lines())
    assert lines == b"".join(b"%d %d\r\n" % (each + 1, each) for each in range(2500))
    assert b"".join(listed.lines()) == lines


def test_hasOthersThan() -> None:
    before = UniqueIDList(["a", "b"])
    assert not before.hasOthersThan(before.hashes())
    assert not UniqueIDList(["b"]).hasOthersThan(before.hashes())
    assert UniqueIDList(["b", "c"]).hasOthersThan(before.hashes())


def test_sizesInAnyOrder() -> None:
    """
    A size that is not available, or one of a late message, does not affect the others.
    """
    maildrop = Maildrop(UniqueIDList(["a", "b"]))
    maildrop.setSizes([MessageRef(1, "a"), MessageRef(0, "late"), MessageRef(2, "b")], [None, 7, 4])
    assert list(maildrop.sizes()) == [None, 4]
    with pytest.raises(ValueError):
        maildrop.setSizes([MessageRef(1, "a")], [1, 2])
