"""
A store of each kind against a model, with other activity meanwhile: deliveries, removed
messages and restarts of the service; in Maildirs also changes of flags, and damage to the file
of sizes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from pop3svc.providers.paths import uniqueIDFor
from pop3svc.service.factory import POP3Factory
from pop3svc.testing import Client
from tests.anybody import Anybody
from tests.support.messages import NASTY, asSent, stuffed
from tests.support.stores import InMaildir, StoreUnderTest

LONG = bool(os.environ.get("POP3SVC_TEST_LONG"))
# Names by the conventions of delivery agents, and others; the second is no unique-id.
NAMES = ["{}.M{}P1.host", "{}.M{}P1.a host", "{}.M{}P1.host,S=3,W=999", "{}.M{}_" + "x" * 80]
FLAGS = [":2,", ":2,S", ":2,RS", ":2,FS", ""]
DAMAGE = [
    "numbers",
    "numbers",
    "cut",
    "flipped",
    "removed",
    "emptied",
    "text",
    "directory",
    "doubled",
    "older",
]
# A size in the file, and a replacement for each of its digits.
_SIZE = re.compile(rb" [0-9]+ (?=[0-9]+ [01]\n)")
_NEXT = bytes.maketrans(b"0123456789", b"1234567890")


@dataclass(frozen=True)
class Message:
    """
    A message in the mailbox.

    @ivar key: the place in the order of the messages.
    @ivar sent: the octets as they are sent.
    """

    key: tuple[int, int, str]
    uniqueID: str
    sent: bytes


class Stores(RuleBasedStateMachine):
    """
    Sessions with a mailbox that other programs use, too.
    """

    def __init__(self, makeStore: Callable[[], StoreUnderTest]) -> None:
        super().__init__()
        self.store = makeStore()
        self.there: dict[str, Message] = {}
        self.client: Client | None = None
        self.isAsleep = False
        self.listed: list[Message] = []
        self.marked: list[Message] = []
        self.gone: list[Message] = []
        self.arrived = 0
        self.logged: list[Any] = []
        globalLogPublisher.addObserver(self._logged)

    def _logged(self, event: Any) -> None:
        if "log_failure" in event:
            self.logged.append(event)

    def teardown(self) -> None:
        if self.client is not None:
            self.client.vanish()
        globalLogPublisher.removeObserver(self._logged)
        self.store.close()
        assert not self.logged, self.logged

    @initialize(messages=st.lists(st.tuples(NASTY, st.sampled_from(NAMES)), max_size=4))
    def starts(self, messages: list[tuple[bytes, str]]) -> None:
        for content, name in messages:
            self.delivers(content, name, 0)
        self._startAnew()
        self._logIn()

    def _startAnew(self) -> None:
        if self.client is not None:
            self.client.vanish()
        self.store.restart()
        self.factory = POP3Factory(Anybody(self.store), clock=Clock())

    # --- other programs -----------------------------------------------------------

    @rule(content=NASTY, name=st.sampled_from(NAMES), back=st.integers(0, 3))
    def delivers(self, content: bytes, name: str, back: int) -> None:
        """
        Deliver a message.

        @param name: the name of the message's file, in a Maildir.
        @param back: seconds by which the clock of the delivering machine is slow, for a Maildir.
        """
        self.arrived += 1
        message = self._delivered(content, name, back)
        self.there[message.uniqueID] = message

    def _delivered(self, content: bytes, name: str, back: int) -> Message:
        uniqueID, sent = self.store.deliver(content)
        return Message((self.arrived, 0, ""), uniqueID, sent)

    @precondition(lambda self: self.there and (self.store.isShared or not self.isAwake))
    @rule(data=st.data())
    def isRemoved(self, data: st.DataObject) -> None:
        message = self.there.pop(data.draw(st.sampled_from(list(self.there))))
        self.store.remove(message.uniqueID)

    @rule()
    def restarts(self) -> None:
        self._startAnew()
        self._logIn()

    # --- the session ----------------------------------------------------------------

    def _say(self, line: str) -> bytes:
        assert self.client is not None
        return self.client.say(line.encode())

    def _list(self) -> None:
        self.listed = sorted(self.there.values(), key=lambda each: each.key)
        self.marked = []
        self.gone = []

    def _logIn(self) -> None:
        self.client = Client(self.factory)
        self.client.logIn()
        self.isAsleep = False
        self._list()
        self.looks()

    @property
    def isAwake(self) -> bool:
        return self.client is not None and not self.isAsleep

    @precondition(lambda self: self.client is None)
    @rule(isAnew=st.booleans())
    def logsIn(self, isAnew: bool) -> None:
        if isAnew:
            self._startAnew()
        self._logIn()

    def _present(self) -> list[tuple[int, Message]]:
        return [
            (number, each)
            for number, each in enumerate(self.listed, 1)
            if each not in self.marked and each not in self.gone
        ]

    @precondition(lambda self: self.isAwake)
    @rule()
    def looks(self) -> None:
        """
        Check that the listing is that of the login, and sizes match the octets of RETR.
        """
        present = self._present()
        lines = self._say("UIDL").decode().split("\r\n")[1:-2]
        assert lines == [f"{number} {each.uniqueID}" for number, each in present]
        lines = self._say("LIST").decode().split("\r\n")[1:-2]
        total = 0
        for line, (number, each) in zip(lines, present, strict=True):
            size = len(each.sent)
            may = [f"{number} {size}"]
            if each.uniqueID not in self.there:
                may.append(f"{number} 0")
            assert line in may, (line, may)
            total += int(line.split()[1])
        stat = self._say("STAT")
        assert stat == f"+OK {len(present)} {total}\r\n".encode()

    @precondition(lambda self: self.isAwake)
    @rule(number=st.integers(1, 6))
    def reads(self, number: int) -> None:
        present = dict(self._present())
        reply = self._say(f"RETR {number}")
        message = present.get(number)
        if message is None or message.uniqueID not in self.there:
            assert reply.startswith(b"-ERR "), reply
        else:
            first, _, body = reply.partition(b"\r\n")
            assert first.startswith(b"+OK") and body == stuffed(message.sent) + b".\r\n"

    @precondition(lambda self: self.isAwake)
    @rule(number=st.integers(1, 6))
    def marks(self, number: int) -> None:
        message = dict(self._present()).get(number)
        reply = self._say(f"DELE {number}")
        assert reply.startswith(b"-ERR " if message is None else b"+OK")
        if message is not None:
            self.marked.append(message)

    @precondition(lambda self: self.isAwake)
    @rule(number=st.integers(1, 6), isNew=st.booleans())
    def deletesNow(self, number: int, isNew: bool) -> None:
        """
        Delete a listed message, or one that has arrived since.
        """
        message = dict(self._present()).get(number)
        later = [each for each in self.there.values() if each not in self.listed]
        argument = str(number)
        if isNew and later:
            message = later[0]
            argument = f"UID:{message.uniqueID}"
        reply = self._say(f"DELI {argument}")
        if message is None or message.uniqueID not in self.there:
            assert reply.startswith(b"-ERR "), reply
            return
        assert reply.startswith(b"+OK Deleted message. UID:"), reply
        self.gone.append(message)
        self._areGone([message])

    def _areGone(self, messages: list[Message]) -> None:
        for message in messages:
            self.there.pop(message.uniqueID, None)
        self._compare()

    def _compare(self) -> None:
        """
        Compare the stored messages with the model.
        """
        messages = sorted(self.there.values(), key=lambda each: each.key)
        found = self.store.contents()
        assert list(found.items()) == [(each.uniqueID, each.sent) for each in messages]

    @precondition(lambda self: self.isAwake)
    @rule(how=st.sampled_from(["QUIT", "SLEE", "CORE", "CORE", "RSET", "vanishes"]))
    def ends(self, how: str) -> None:
        assert self.client is not None
        if how == "vanishes":
            self.client.vanish()
        else:
            assert self._say(how).startswith(b"+OK")
        if how in ("QUIT", "SLEE", "CORE"):
            self._areGone(self.marked)
        self._compare()
        if how in ("QUIT", "vanishes"):
            self.client = None
        elif how == "SLEE":
            self.isAsleep = True
            self.before = {each.uniqueID for each in self.listed}
        elif how == "CORE":
            self._list()
            self.looks()
        else:
            self.marked = []

    @precondition(lambda self: self.client is not None and self.isAsleep)
    @rule()
    def wakes(self) -> None:
        reply = self._say("WAKE")
        isNew = not self.before >= set(self.there)
        assert reply.startswith(b"+OK [ACTIVITY/NEW]" if isNew else b"+OK [ACTIVITY/NONE]"), reply
        self.isAsleep = False
        self._list()
        self.looks()


class Maildirs(Stores):
    """
    A Maildir, which delivery agents and IMAP servers use, too.
    """

    def __init__(self, makeStore: Callable[[], StoreUnderTest]) -> None:
        super().__init__(makeStore)
        assert isinstance(self.store, InMaildir)
        self.files = self.store
        self.maildir = self.store.place / "alice"
        self.older = b""

    def _delivered(self, content: bytes, name: str, back: int) -> Message:
        seconds, micro = 1_600_000_000 + self.arrived - back, self.arrived
        base = name.format(seconds, micro)
        temporary = self.maildir / "tmp" / base
        temporary.write_bytes(content)
        temporary.rename(self.maildir / "new" / base)
        self.files.touch(self.maildir / "new")
        return Message((seconds, micro, base), uniqueIDFor(base), asSent(content))

    @precondition(lambda self: self.there)
    @rule(data=st.data(), flags=st.sampled_from(FLAGS))
    def isSeen(self, data: st.DataObject, flags: str) -> None:
        before = self.files.files()[data.draw(st.sampled_from(sorted(self.there)))]
        before.rename(self.maildir / "cur" / (before.name.partition(":")[0] + flags))
        self.files.touch(before.parent)
        self.files.touch(self.maildir / "cur")

    @rule(how=st.sampled_from(DAMAGE), at=st.integers(0, 400), isRead=st.booleans())
    def sizesAreDamaged(self, how: str, at: int, isRead: bool) -> None:
        """
        @param isRead: whether a restarted service reads the file next.
        """
        path = self.maildir / "pop3svc-sizes"
        if path.is_dir():
            path.rmdir()
        kept = path.read_bytes() if path.exists() else b""
        at = min(at, max(len(kept) - 1, 0))
        if how == "cut":
            path.write_bytes(kept[:at])
        elif how == "flipped" and kept:
            path.write_bytes(kept[:at] + bytes([kept[at] ^ (1 << at % 8)]) + kept[at + 1 :])
        elif how == "numbers":
            path.write_bytes(_SIZE.sub(lambda found: found[0].translate(_NEXT), kept))
        elif how == "removed":
            path.unlink(missing_ok=True)
        elif how == "directory":
            path.unlink(missing_ok=True)
            path.mkdir()
        elif how == "older":
            path.write_bytes(self.older)
        elif how != "flipped":
            path.write_bytes({"emptied": b"", "text": b"1 2 3\n", "doubled": kept + kept}[how])
        self.older = kept
        if isRead:
            self.restarts()

    def _compare(self) -> None:
        """
        Compare the files with the model, too.
        """
        super()._compare()
        files = {each: asSent(path.read_bytes()) for each, path in self.files.files().items()}
        assert files == {each: message.sent for each, message in self.there.items()}


def test_stores(makeStore: Callable[[], StoreUnderTest]) -> None:
    isMaildir = isinstance(makeStore(), InMaildir)
    examples = (2000, 50) if isMaildir else (500, 10)
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        lambda: (Maildirs if isMaildir else Stores)(makeStore),
        settings=settings(
            max_examples=examples[0 if LONG else 1],
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
