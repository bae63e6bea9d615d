"""
The judge of the model reports violations and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from tests.proofs.journal import Journal, Message, tokenIn


class Told:
    """
    A journal, and a user with some messages.
    """

    def __init__(self) -> None:
        seconds = count(1)
        self.journal = Journal(clock=lambda: float(next(seconds)))
        self.one, self.two = self.delivered("one", "1.host"), self.delivered("two", "2.host")

    def delivered(self, name: str, base: str) -> Message:
        content = f"Subject: token-{name}\n\n.text\n".encode()
        message = Message(f"token-{name}", "alice", base, content)
        self.journal.delivering(message)
        return message

    def read(self, message: Message, uniqueID: str, began: float = 0) -> None:
        sent = message.sent
        self.journal.read("alice", uniqueID, sent, began, len(sent))

    def deletes(self, messages: list[Message], isDeleted: bool | None) -> None:
        wasOpen = {each.token for each in messages if each.mayBeDeleted}
        self.journal.deleting(messages)
        self.journal.answered(messages, isDeleted, wasOpen)

    def judge(self, *onDisk: Message) -> None:
        self.journal.judge("alice", [each.token for each in onDisk])

    @property
    def kinds(self) -> list[str]:
        return [each.partition(":")[0] for each in self.journal.violations]


@pytest.fixture
def told() -> Iterator[Told]:
    yield Told()


def test_tokens() -> None:
    assert tokenIn(b"Subject: token-a-1\r\n\r\nx") == "token-a-1"
    assert tokenIn(b"Subject: hello\n\n") is None


def test_nothingWrong(told: Told) -> None:
    """
    Messages that are read twice, listed, deleted with and without a reply, or removed by other
    programs are no violation.
    """
    three, four = told.delivered("three", "3.host"), told.delivered("four", "4.host")
    for began in (0, 1):
        told.journal.listed("alice", ["a", "b"], began)
        told.read(told.one, "a", began)
        told.journal.begins("alice", "b", told.two.sent[:9] + told.two.sent[9:25], began)
    told.deletes([told.one], True)
    told.deletes([told.two], None)
    told.deletes([three], False)
    four.removed = True
    told.judge(three)
    told.judge(told.two, three)
    assert told.kinds == []


def test_lost(told: Told) -> None:
    """
    A message that is missing after its deletion was refused is reported as lost.
    """
    told.deletes([told.one], False)
    told.judge(told.two)
    assert told.kinds == ["lost"]


def test_refusedAfterSilence(told: Told) -> None:
    """
    A deletion that was never answered, and was refused at the next attempt, may have
    happened.
    """
    told.deletes([told.one], None)
    told.deletes([told.one], False)
    told.judge(told.two)
    assert told.kinds == []


def test_resurrected(told: Told) -> None:
    """
    A deleted message that exists on disk, or in a listing requested after the reply, is reported.
    """
    told.read(told.one, "a")
    told.deletes([told.one], True)
    told.journal.listed("alice", ["a"], 0.5)
    assert told.kinds == []
    told.journal.listed("alice", ["a"], 100)
    told.judge(told.one, told.two)
    assert told.kinds == ["resurrected", "resurrected"]


def test_doubled(told: Told) -> None:
    told.journal.listed("alice", ["a", "a"], 0)
    told.judge(told.one, told.one, told.two)
    assert told.kinds == ["doubled", "doubled"]


def test_newUniqueID(told: Told) -> None:
    """
    A message with another unique-id, in another session or in the same listing, is reported.
    """
    told.read(told.one, "a")
    told.read(told.one, "b")
    told.journal.listed("alice", ["a", "b"], 0)
    assert told.kinds == ["unique-id changed", "doubled"]


def test_reusedUniqueID(told: Told) -> None:
    """
    Another message with the unique-id of a deleted one is reported when it is read.
    """
    told.read(told.one, "a")
    told.deletes([told.one], True)
    again = told.delivered("again", told.one.base)
    told.journal.listed("alice", ["a"], 100)
    assert told.kinds == []
    told.read(again, "a", 100)
    assert told.kinds == ["unique-id reused"]


def test_wrongOctets(told: Told) -> None:
    """
    A message that differs from its listed size, or is cut, unknown or another user's, is reported.
    """
    sent = told.one.sent
    told.journal.read("alice", "a", sent, 0, len(sent) + 3)
    told.journal.read("alice", "a", sent[:-2], 0, len(sent) - 2)
    told.journal.begins("alice", "a", sent[:-4] + b"\r\n", 0)
    told.journal.read("alice", "c", b"Subject: hello\r\n", 0)
    told.journal.read("bob", "a", sent, 0, len(sent))
    assert told.kinds == ["size", "content", "content", "content", "content"]


def test_someOfAll(told: Told) -> None:
    """
    It is reported if a command without a reply has deleted some of its messages and not all.
    """
    told.deletes([told.one, told.two], None)
    told.judge(told.one, told.two)
    told.judge()
    assert told.kinds == []
    told.judge(told.two)
    assert told.kinds == ["some of all"]


def test_notOfOnePieceAnyMore(told: Told) -> None:
    told.deletes([told.one, told.two], None)
    told.deletes([told.one], True)
    told.judge(told.two)
    assert told.kinds == []
