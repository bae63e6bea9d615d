"""
A session against a model of RFC 1939 and the extensions: commands in segments of any size,
calls of the provider that return at once, late or never, and a client that disconnects.

The model has a generator for each command.  It yields the expected calls of the provider in
the order that the interfaces promise, and returns the expected reply.  The real calls and
the real reply must be the same.

Behind the scripted provider is a store of each kind, which does what a call asks for once the
script lets it.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from zope.interface import alsoProvides, implementer

from pop3svc.awaiting import CallTimeout
from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import (
    IAccountStatus,
    IBulkMessageSizes,
    IChunkedContent,
    IExclusiveMailbox,
    IMailboxLogout,
    INewMailNotifier,
    IPOP3Mailbox,
    IPOP3MailboxProvider,
    IReadOnlyMailbox,
    ISleepingMailbox,
)
from pop3svc.policy import Policy
from pop3svc.service.factory import POP3Factory
from pop3svc.testing import Client
from tests.support.messages import NASTY, asSent, stuffed, topOf
from tests.support.stores import InMemory, StoreUnderTest, done, octetsOf

# Whether the environment asks for many more examples.
LONG = bool(os.environ.get("POP3SVC_TEST_LONG"))

# --- a scripted provider -----------------------------------------------------------

# Errors that a call may raise: POP3ResponseErrors by their names here, and errors that no
# provider should raise.
REFUSALS: dict[str, tuple[str | None, bool]] = {
    "refused": (None, False),
    "temp": ("SYS/TEMP", False),
    "perm": ("SYS/PERM", False),
    "critical": ("SYS/TEMP", True),
    "in use": ("IN-USE", False),
}
BUGS = ("bug", "cancelled")
FAILURES = [*REFUSALS, *BUGS, "not available"]
# Forms of a result; "stubborn" is late and ignores its cancellation.
FORMS = ["late", "late coroutine", "coroutine", "stubborn"]
# Calls that are never cancelled.
CARRIED = ("messageDelete", "unlock", "logout", "onSleep")


class Injected(Exception):
    """
    A bug of the provider.
    """


def error(kind: str) -> Exception:
    if kind in REFUSALS:
        code, critical = REFUSALS[kind]
        return POP3ResponseError("No.", code, critical)
    if kind == "not available":
        return NotImplementedError()
    return CancelledError("of the provider") if kind == "cancelled" else Injected("a bug")


@dataclass
class Call:
    """
    One call of the provider.

    @ivar outcome: L{None} while it waits, "ok", or a kind of failure.
    """

    name: str
    arguments: tuple[Any, ...]
    owner: Any
    outcome: str | None = None
    value: Any = None
    waiter: Deferred[Any] | None = None
    act: Callable[[], Any] = lambda: None
    wasCancelled: bool = False


@dataclass
class Box:
    """
    A user's mailbox, and the script of the provider.

    @ivar there: the messages that exist, as they are sent, by unique-id.
    @ivar sent: all messages that ever existed, in the same form.
    @ivar names: unique-ids by the names that the commands below use.
    """

    store: StoreUnderTest
    there: dict[str, bytes] = field(default_factory=dict)
    sent: dict[str, bytes] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    how: dict[str, str] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    waiting: list[Call] = field(default_factory=list)
    mailboxes: list[Mailbox] = field(default_factory=list)
    contents: list[Content] = field(default_factory=list)
    interfaces: list[Any] = field(default_factory=list)
    isStillValid: bool = True
    # A call that is cancelled now has timed out.
    isLate: bool = False
    mark: int = 0
    chunk: int = 7

    def deliver(self, name: str, message: bytes) -> None:
        self.names[name], sent = self.store.deliver(message)
        self.there[self.names[name]] = self.sent[self.names[name]] = sent

    def remove(self, uniqueID: str) -> None:
        """
        Remove a message as another program does.
        """
        self.store.remove(uniqueID)
        del self.there[uniqueID]

    @property
    def mayRemove(self) -> bool:
        isLocked = any(each.isLocked for each in self.mailboxes)
        return bool(self.there) and (self.store.isShared or not isLocked)

    def named(self, line: bytes) -> bytes:
        """
        @return: a command with the unique-ids of this store.
        """
        return re.sub(
            rb"(?i)(?<=UID:)(m|new)\d+\b",
            lambda found: self.names.get(found[0].decode(), found[0].decode()).encode(),
            line,
        )

    def call(self, name: str, owner: Any, act: Callable[[], Any], *arguments: Any) -> Any:
        """
        Handle a call as scripted.
        """
        if owner is not None:
            owner.begins(name)
        made = Call(name, arguments, owner, act=act)
        self.calls.append(made)
        how = self.how.get(name, "at once")
        if how in FAILURES:
            made.outcome = how
            self._over(made)
            raise error(how)
        if how == "at once" or (how == "coroutine" and name == "nextChunk"):
            return self._answered(made)
        if how == "coroutine":

            async def answer() -> Any:
                return self._answered(made)

            return answer()

        def cancel(waiter: Deferred[Any]) -> None:
            made.wasCancelled = True
            self.waiting.remove(made)
            isStubborn = how == "stubborn" and not self.isLate
            if isStubborn and name in ("lock", "messageContent"):
                try:
                    waiter.callback(self._answered(made))
                except POP3ResponseError as gone:
                    waiter.errback(gone)
            else:
                made.outcome = "gone"
                self._over(made)

        made.waiter = Deferred(cancel)
        self.waiting.append(made)
        if how == "late coroutine":

            async def late() -> Any:
                return await made.waiter

            return late()
        return made.waiter

    def _answered(self, made: Call) -> Any:
        made.outcome = "ok"
        self._over(made)
        try:
            made.value = made.act()
        except POP3ResponseError:
            made.outcome = "refused"
            raise
        return made.value

    def _over(self, made: Call) -> None:
        if made.owner is not None:
            made.owner.ends(made.name)

    def answer(self, kind: str) -> None:
        """
        Complete the waiting call.
        """
        made = self.waiting.pop(0)
        assert made.waiter is not None
        if kind == "ok":
            try:
                value = self._answered(made)
            except POP3ResponseError as gone:
                made.waiter.errback(gone)
            else:
                made.waiter.callback(value)
        else:
            made.outcome = kind
            self._over(made)
            made.waiter.errback(error(kind))


class Owner:
    """
    An object whose calls must never overlap.
    """

    running: str | None = None

    def begins(self, name: str) -> None:
        assert self.running is None, f"{name} while {self.running} is running"
        self.running = name

    def ends(self, name: str) -> None:
        assert self.running == name
        self.running = None


@implementer(IPOP3Mailbox)
class Mailbox(Owner):
    """
    One session's mailbox; it fails the test if it is used wrongly.

    @ivar real: the mailbox of the store.
    """

    def __init__(self, box: Box) -> None:
        self.box = box
        self.real = done(box.store.openMailbox, None, "alice")
        alsoProvides(self, *box.interfaces)
        box.mailboxes.append(self)
        self.isLocked = False
        self.isWatched = False
        self.isOver = False
        self.known: set[str] = set()
        self.changed: Callable[[], None] | None = None
        self.requestRelease: Callable[[], bool] | None = None

    def begins(self, name: str) -> None:
        assert not self.isOver, f"{name} after logout"
        super().begins(name)
        isFree = name in ("lock", "watchMailbox", "logout")
        if IExclusiveMailbox.providedBy(self) and not isFree:
            assert self.isLocked, f"{name} without the lock"

    def _called(self, name: str, act: Callable[[], Any], *arguments: Any) -> Any:
        return self.box.call(name, self, act, *arguments)

    def listMessageUniqueIDs(self, info: Any) -> Any:
        return self._called("listMessageUniqueIDs", self._list)

    def _list(self) -> list[str]:
        listed = list(done(self.real.listMessageUniqueIDs, None))
        assert listed == list(self.box.there)
        if self.box.how.get("listing") == "malformed":
            return [*listed, "_"]
        if self.box.how.get("listing") == "twice":
            return [*listed, "twice", "twice"]
        self.known |= set(listed)
        return listed

    def messageExists(self, info: Any, uniqueID: str) -> Any:
        def exists() -> bool:
            isThere: bool = done(self.real.messageExists, None, uniqueID)
            assert isThere is (uniqueID in self.box.there)
            if isThere:
                self.known.add(uniqueID)
            return isThere

        return self._called("messageExists", exists, uniqueID)

    def messageSize(self, info: Any, uniqueID: str) -> Any:
        assert uniqueID in self.known
        return self._called("messageSize", partial(self._size, uniqueID), uniqueID)

    def _size(self, uniqueID: str) -> int:
        try:
            size: int = done(self.real.messageSize, None, uniqueID)
        except NotImplementedError:
            size = len(asSent(self._of(uniqueID)))
        assert size == len(self.box.sent[uniqueID])
        return size

    def messageSizes(self, info: Any, uniqueIDs: list[str]) -> Any:
        assert set(uniqueIDs) <= self.known

        def sizes() -> list[int | None]:
            if IBulkMessageSizes.providedBy(self.real):
                found = list(done(self.real.messageSizes, None, uniqueIDs))
            else:
                found = [self._size(each) if each in self.box.there else None for each in uniqueIDs]
            for size, each in zip(found, uniqueIDs, strict=True):
                wanted = len(self.box.sent[each])
                assert size == wanted or (size is None and each not in self.box.there)
            return found

        return self._called("messageSizes", sizes, uniqueIDs)

    def _of(self, uniqueID: str) -> bytes:
        content = octetsOf(done(self.real.messageContent, None, uniqueID))
        assert asSent(content) == self.box.there[uniqueID]
        return content

    def messageContent(self, info: Any, uniqueID: str) -> Any:
        assert uniqueID in self.known
        return self._called("messageContent", lambda: Content(self, self._of(uniqueID)), uniqueID)

    def messageDelete(self, info: Any, uniqueIDs: list[str]) -> Any:
        assert uniqueIDs and set(uniqueIDs) <= self.known

        def delete() -> None:
            done(self.real.messageDelete, None, list(uniqueIDs))
            for each in uniqueIDs:
                self.box.there.pop(each, None)

        return self._called("messageDelete", delete, *uniqueIDs)

    def lock(self, info: Any, requestRelease: Callable[[], bool]) -> Any:
        def lock() -> None:
            assert not self.isLocked
            done(self.real.lock, None, requestRelease)
            self.isLocked = True
            self.requestRelease = requestRelease

        return self._called("lock", lock)

    def unlock(self, info: Any) -> Any:
        assert self.isLocked, "freed twice"

        # Record the call, whatever its result is.
        def unlock() -> None:
            self.isLocked = False

        try:
            return self._called("unlock", unlock)
        finally:
            self.isLocked = False
            done(self.real.unlock, None)

    def watchMailbox(self, info: Any, changed: Callable[[], None]) -> Any:
        def watch() -> Callable[[], None]:
            self.changed = changed
            self.isWatched = True
            return self._endWatch

        return self._called("watchMailbox", watch)

    def _endWatch(self) -> None:
        assert self.isWatched, "the watch ended twice"
        self.isWatched = False
        self.changed = None

    def onSleep(self, info: Any) -> Any:
        self.known.clear()
        isTold = ISleepingMailbox.providedBy(self.real)
        act = partial(self.real.onSleep, None) if isTold else lambda: None
        return self._called("onSleep", act)

    def logout(self) -> Any:
        assert not self.isLocked, "logout before unlock"
        try:
            return self._called("logout", lambda: None)
        finally:
            self.isOver = True


@implementer(IChunkedContent)
class Content(Owner):
    """
    The content of a message.
    """

    def __init__(self, mailbox: Mailbox, message: bytes) -> None:
        self.box = mailbox.box
        self.box.contents.append(self)
        size = self.box.chunk
        self.chunks = [message[each : each + size] for each in range(0, len(message), size)]
        self.whole = list(self.chunks)
        self.isClosed = False

    def nextChunk(self) -> Any:
        assert not self.isClosed, "read after close"
        return self.box.call("nextChunk", self, lambda: self.chunks.pop(0) if self.chunks else None)

    def close(self) -> None:
        assert not self.isClosed, "closed twice"
        self.isClosed = True
        self.box.calls.append(Call("close", (), None, "ok"))


@implementer(IPOP3MailboxProvider)
class Provider:
    name = "test"

    def __init__(self, box: Box) -> None:
        self.box = box

    def authenticate(self, info: Any, username: str, password: str) -> Any:
        def open_() -> Mailbox | None:
            return Mailbox(self.box) if password == "secret pass" else None

        return self.box.call("authenticate", None, open_, username, password)

    def credentialsVersion(self, info: Any, username: str) -> Any:
        return self.box.call("credentialsVersion", None, lambda: str(self.box.mark))

    def isStillValid(self, info: Any, username: str, mark: str) -> Any:
        assert mark == str(self.box.mark)
        return self.box.call("isStillValid", None, lambda: self.box.isStillValid)


# --- the model --------------------------------------------------------------------


@dataclass
class Expected:
    """
    A reply: its status, its code, a part of its first line, and its body.

    @ivar isCut: whether the body is cut somewhere.
    """

    isOK: bool
    code: str | None = None
    text: str = ""
    body: bytes | None = None
    closes: bool = False
    isCut: bool = False


class Refused(Exception):
    """
    A command ends with an error.
    """

    def __init__(
        self,
        code: str | None = None,
        closes: bool = False,
        isCancelled: bool = False,
        isBug: bool = False,
    ) -> None:
        """
        @param isCancelled: the connection ends before resources are released.
        @param isBug: the provider raised an unexpected error.
        """
        self.isBug = isBug
        self.code = code
        self.closes = closes
        self.isCancelled = isCancelled


Asking = Generator[tuple[str, ...], Call, Any]


class Model:
    """
    An independent model of a session.
    """

    def __init__(self, box: Box, provides: set[Any]) -> None:
        self.box = box
        self.provides = provides
        self.state = "AUTHORIZATION"
        self.name: str | None = None
        self.isLocked = False
        self.isDropped = False
        self.leave()

    def leave(self) -> None:
        self.listed: list[str] = []
        self.marked: list[str] = []
        self.gone: set[str] = set()
        self.sizes: dict[str, int] = {}
        self.known: set[str] = set()
        self.changed = False

    # --- calls ---------------------------------------------------------------

    def _ask(self, *names: str) -> Asking:
        made = yield names
        if made.outcome in REFUSALS:
            code, closes = REFUSALS[made.outcome]
            raise Refused(code, closes)
        if made.outcome == "not available":
            raise Refused()
        if made.outcome in BUGS:
            isCancelled = made.outcome == "cancelled"
            raise Refused("SYS/TEMP", True, isCancelled, not isCancelled)
        return made

    def _perhaps(self, name: str, interface: Any) -> Asking:
        """
        Call an optional method whose errors are only logged.
        """
        if interface in self.provides:
            yield (name,)

    def _letGo(self) -> Asking:
        if self.isLocked:
            self.isLocked = False
            yield from self._perhaps("unlock", IExclusiveMailbox)
        yield from self._perhaps("logout", IMailboxLogout)
        self.leave()

    # --- commands --------------------------------------------------------------

    def answer(self, line: bytes) -> Generator[tuple[str, ...], Call, Expected]:
        """
        @return: the reply to a line.
        """
        verb, *rest = line.decode().split(" ", 1)
        argument = rest[0] if rest else ""
        isQuit = verb == "QUIT" and not argument
        try:
            body: Asking = getattr(self, f"_{self.state.lower()}")(verb, argument)
            reply: Expected = yield from body
        except Refused as refused:
            if isQuit:
                refused.closes = True
            reply = Expected(False, refused.code, closes=refused.closes)
        if reply.closes:
            self.state = "CLOSED"
        return reply

    def _authorization(self, verb: str, argument: str) -> Asking:
        if verb == "QUIT" and not argument:
            return Expected(True, closes=True)
        if verb == "USER" and argument and " " not in argument:
            self.name = argument
            return Expected(True)
        if verb == "PASS" and argument:
            name, self.name = self.name, None
            if name is None:
                raise Refused()
            return (yield from self._login(name, argument))
        if verb == "XLOG" and argument.count(" ") >= 1:
            self.name = None
            name, _, password = argument.partition(" ")
            return (yield from self._login(name, password))
        if verb == "AUTH" and argument.startswith("PLAIN "):
            self.name = None
            _, name, password = base64.b64decode(argument[6:]).decode().split("\0")
            return (yield from self._login(name, password))
        if verb == "CAPA" and not argument:
            return Expected(True, body=b"\r\nUIDL\r\n")
        raise Refused()

    def _login(self, name: str, password: str) -> Asking:
        made = yield from self._ask("authenticate")
        assert made.arguments == (name, password)
        if made.value is None:
            raise Refused("AUTH")
        self.mark = self.box.mark
        try:
            if IAccountStatus in self.provides:
                yield from self._ask("credentialsVersion")
            if INewMailNotifier in self.provides:
                yield from self._ask("watchMailbox")
            yield from self._lock()
            yield from self._list()
        except Refused as refused:
            if not refused.isCancelled:
                yield from self._letGo()
            raise
        self.state = "TRANSACTION"
        return Expected(True)

    def _lock(self) -> Asking:
        if IExclusiveMailbox in self.provides:
            yield from self._ask("lock")
            self.isLocked = True

    def _list(self) -> Asking:
        made = yield from self._ask("listMessageUniqueIDs")
        if "_" in made.value or "twice" in made.value:
            raise Refused("SYS/PERM")
        listed = list(made.value)
        self.leave()
        self.listed = listed

    def _sleeping(self, verb: str, argument: str) -> Asking:
        if verb == "QUIT" and not argument:
            # No call comes before the reply; all resources are released after it.
            return Expected(True, closes=True)
        if verb == "NOOP" and not argument:
            return Expected(True)
        if verb != "WAKE" or argument:
            raise Refused()
        if IAccountStatus in self.provides:
            made = yield from self._ask("isStillValid")
            if not made.value:
                raise Refused("AUTH")
        known = self.known
        yield from self._lock()
        try:
            yield from self._list()
        except Refused as refused:
            if self.isLocked and not refused.isCancelled:
                self.isLocked = False
                yield from self._perhaps("unlock", IExclusiveMailbox)
            raise
        self.state = "TRANSACTION"
        return self._activity(known)

    def _activity(self, known: set[str]) -> Expected:
        return Expected(True, "ACTIVITY/NONE" if known >= set(self.listed) else "ACTIVITY/NEW")

    def _transaction(self, verb: str, argument: str) -> Asking:
        simple: dict[str, Callable[[], Asking]] = {
            "STAT": self._stat,
            "QUIT": self._quit,
            "SLEE": self._slee,
            "CORE": self._core,
            "REFR": self._core,
            "QAUT": self._qaut,
        }
        words = argument.split()
        if verb in ("DELE", "DELI") and IReadOnlyMailbox in self.provides:
            raise Refused("READ-ONLY")
        if verb in simple and not words:
            return (yield from simple[verb]())
        if verb == "NOOP" and not words:
            return Expected(True)
        if verb == "CAPA" and not words:
            return Expected(True, body=b"\r\nUIDL\r\n")
        if verb == "RSET" and not words:
            self.marked = []
            return Expected(True)
        if verb in ("LIST", "UIDL") and not words:
            present = self._present()
            if verb == "UIDL":
                lines = [f"{number} {each}\r\n" for number, each in present]
            else:
                yield from self._size([each for _, each in present])
                lines = [f"{number} {self.sizes.get(each, 0)}\r\n" for number, each in present]
            return Expected(True, body="".join(lines).encode())
        if verb in ("LIST", "UIDL", "RETR", "DELE", "DELI") and len(words) == 1:
            number, each = yield from self._find(words[0])
            return (yield from getattr(self, f"_{verb.lower()}One")(number, each))
        if verb == "TOP" and len(words) == 2 and re.fullmatch("[0-9]{1,10}", words[1]):
            number, each = yield from self._find(words[0])
            return (yield from self._content(each, int(words[1])))
        raise Refused()

    def _present(self) -> list[tuple[int, str]]:
        away = self.gone | set(self.marked)
        return [(n, each) for n, each in enumerate(self.listed, 1) if each not in away]

    def _find(self, word: str) -> Asking:
        if word[:4].upper() == "UID:":
            each = word[4:]
            if not re.fullmatch("[!-~]{1,70}", each) or each == "_":
                raise Refused("UID/NOT-FOUND")
            if each in self.gone or each in self.marked:
                raise Refused()
            if each in self.listed:
                return self.listed.index(each) + 1, each
            made = yield from self._ask("messageExists")
            assert made.arguments == (each,)
            if not made.value:
                raise Refused("UID/NOT-FOUND")
            return 0, each
        if not re.fullmatch("[0-9]{1,10}", word) or not 1 <= int(word) <= len(self.listed):
            raise Refused()
        each = self.listed[int(word) - 1]
        if each in self.gone or each in self.marked:
            raise Refused()
        return int(word), each

    def _size(self, wanted: list[str], isOne: bool = False) -> Asking:
        """
        Request sizes that are not known yet; known sizes stay the same.  For STAT and LIST
        of all messages, an error of one message does not affect the others.
        """
        unknown = [each for each in wanted if each not in self.sizes]
        count, faults = len(unknown), []
        told: dict[str, int] = {}
        while unknown:
            made = yield ("messageSizes", "messageSize")
            if made.name == "messageSizes":
                if made.outcome == "not available":
                    continue
                self._refuse(made)
                (asked,) = made.arguments
                assert set(asked) <= set(unknown)
                told |= {
                    each: size
                    for each, size in zip(asked, made.value, strict=True)
                    if size is not None
                }
                unknown = [each for each in unknown if each not in asked]
                continue
            (each,) = made.arguments
            unknown.remove(each)
            try:
                if made.outcome == "not available":
                    told[each] = yield from self._counted(each)
                else:
                    self._refuse(made)
                    told[each] = made.value
            except Refused as refused:
                if isOne or (refused.closes and not refused.isBug):
                    raise
                if not refused.isBug:
                    faults.append(refused)
        if len(faults) == count > 1 and all(each.code == "SYS/TEMP" for each in faults):
            raise faults[0]
        self.sizes |= told

    def _refuse(self, made: Call) -> None:
        step = self._ask(made.name)
        next(step)
        try:
            step.send(made)
        except StopIteration:
            pass

    def _counted(self, each: str) -> Asking:
        made = yield from self._ask("messageContent")
        assert made.arguments == (each,)
        size = len(asSent(b"".join(made.value.whole)))
        fault = yield from self._read()
        if fault is not None:
            self._refuse(fault)
        return size

    def _read(self) -> Asking:
        """
        @return: the call that failed, if any.
        """
        fault = None
        while True:
            made = yield ("nextChunk", "close")
            if made.name == "close":
                return fault
            assert fault is None, "read on behind a fault"
            fault = None if made.outcome == "ok" else made

    def _stat(self) -> Asking:
        present = [each for _, each in self._present()]
        yield from self._size(present)
        octets = sum(self.sizes.get(each, 0) for each in present)
        return Expected(True, text=f" {len(present)} {octets}")

    def _listOne(self, number: int, each: str) -> Asking:
        yield from self._size([each], isOne=True)
        return Expected(True, text=f" {number} {self.sizes.get(each, 0)}")

    def _uidlOne(self, number: int, each: str) -> Asking:
        yield from ()
        return Expected(True, text=f" {number} {each}")

    def _deleOne(self, number: int, each: str) -> Asking:
        yield from ()
        self.marked.append(each)
        return Expected(True)

    def _deliOne(self, number: int, each: str) -> Asking:
        made = yield ("messageContent", "messageDelete")
        if made.name == "messageContent":
            self._refuse(made)
            yield ("close",)
            made = yield ("messageDelete",)
        assert made.arguments == (each,)
        self._refuse(made)
        self.gone.add(each)
        return Expected(True, text=f"UID:{each}")

    def _retrOne(self, number: int, each: str) -> Asking:
        return (yield from self._content(each, None))

    def _content(self, each: str, lines: int | None) -> Asking:
        made = yield from self._ask("messageContent")
        assert made.arguments == (each,)
        sent = asSent(b"".join(made.value.whole))
        fault = yield from self._read()
        if lines is not None:
            sent = topOf(sent, lines)
        isCut = fault is not None
        return Expected(True, body=stuffed(sent), isCut=isCut, closes=isCut)

    def _commit(self) -> Asking:
        if self.marked:
            made = yield ("messageDelete",)
            assert list(made.arguments) == self.marked
            self._refuse(made)
            self.gone |= set(self.marked)
            self.marked = []

    def _quit(self) -> Asking:
        try:
            yield from self._commit()
        finally:
            if not self.isDropped:
                yield from self._letGo()
        return Expected(True, closes=True)

    def _slee(self) -> Asking:
        count = len(self.marked)
        yield from self._commit()
        known = set(self.listed)
        yield from self._perhaps("onSleep", ISleepingMailbox)
        if self.isLocked:
            self.isLocked = False
            yield from self._perhaps("unlock", IExclusiveMailbox)
        self.leave()
        self.known = known
        self.state = "SLEEPING"
        return Expected(True, text=f" {count} ")

    def _core(self) -> Asking:
        yield from self._commit()
        known = set(self.listed)
        try:
            yield from self._list()
        except Refused:
            raise Refused("SYS/TEMP", True)
        return self._activity(known)

    def _qaut(self) -> Asking:
        yield from self._commit()
        yield from self._letGo()
        self.state = "AUTHORIZATION"
        return Expected(True)


# --- the state machine -------------------------------------------------------------

NUMBERS = ["1", "2", "3", "03", "4", "0", "-1", "99999999999", "x"]
UNIQUE_IDS = ["m1", "m2", "m3", "new1", "new2", "nobody", "_", "", "x" * 71]
MESSAGE = st.one_of(
    st.sampled_from(NUMBERS[:3]),
    st.sampled_from(NUMBERS),
    st.sampled_from(UNIQUE_IDS).map("UID:{}".format),
    st.sampled_from(UNIQUE_IDS[:5]).map("uid:{}".format),
)
PLAIN = base64.b64encode(b"\0alice\0secret pass").decode()
LOGIN = ["USER alice", "PASS secret pass"]
COMMANDS = st.one_of(
    st.sampled_from(
        ["STAT", "LIST", "UIDL", "SLEE", "WAKE", "CORE", "REFR", "RSET", "NOOP", "QAUT", "CAPA"]
    ).map(lambda each: [each]),
    st.tuples(st.sampled_from(["RETR", "DELE", "DELE", "DELI", "LIST", "UIDL"]), MESSAGE).map(
        lambda each: [" ".join(each)]
    ),
    st.tuples(MESSAGE, st.sampled_from(["0", "1", "2"])).map(
        lambda each: [f"TOP {each[0]} {each[1]}"]
    ),
    st.sampled_from(
        [
            LOGIN,
            LOGIN,
            ["USER alice"],
            ["PASS secret pass"],
            ["PASS wrong"],
            ["XLOG alice secret pass"],
            [f"AUTH PLAIN {PLAIN}"],
            ["QUIT"],
            ["SLEE", "WAKE"],
            ["QUIT now", "FOO", "TOP 1", "RETR", "STAT 1", "STLS", "LIST 1 1", ""],
        ]
    ),
)
COMMITS = ["QUIT", "SLEE", "CORE", "QAUT", "RSET", "DELE 1", "LIST"]
CALLS = [
    *(
        "authenticate",
        "credentialsVersion",
        "isStillValid",
        "lock",
        "listMessageUniqueIDs",
        "messageExists",
    ),
    *("messageSize", "messageSizes", "messageContent", "nextChunk", "messageDelete"),
    *("unlock", "logout", "onSleep", "watchMailbox"),
]


# Calls, and commands that make them.
SITUATIONS: list[tuple[list[str], list[str]]] = [
    *((["messageDelete"], ["DELE 1", "DELE 2", verb]) for verb in COMMITS[:4]),
    (["messageDelete"], ["DELI 1", "UIDL"]),
    *((["messageContent"], [line]) for line in ("RETR 1", "TOP 1 1", "DELI 1")),
    *((["nextChunk"], [line]) for line in ("RETR 1", "TOP 1 1")),
    *((["messageSize", "messageSizes"], [line]) for line in ("STAT", "LIST 1", "LIST")),
    (["messageContent", "nextChunk"], ["STAT"]),
    (["messageExists"], ["LIST UID:new1"]),
    (["listMessageUniqueIDs"], ["DELE 1", "CORE"]),
    *(([name], ["SLEE", "WAKE"]) for name in ("listMessageUniqueIDs", "lock", "isStillValid")),
    *(([name], [verb]) for name in ("unlock", "onSleep", "logout") for verb in COMMITS[:4]),
]


class Sessions(RuleBasedStateMachine):
    """
    Sessions with one mailbox, one after the other.
    """

    def __init__(self, makeStore: Callable[[], StoreUnderTest]) -> None:
        super().__init__()
        self.clock = Clock()
        self.box = Box(makeStore())
        self.client: Client | None = None
        self.logged: list[Any] = []
        globalLogPublisher.addObserver(self._logged)
        self.arrived = 0

    def _logged(self, event: Any) -> None:
        if "log_failure" in event:
            self.logged.append(event)

    @initialize(
        messages=st.lists(NASTY, min_size=1, max_size=4),
        interfaces=st.sets(
            st.sampled_from(
                [
                    IExclusiveMailbox,
                    IBulkMessageSizes,
                    IMailboxLogout,
                    INewMailNotifier,
                    ISleepingMailbox,
                    IReadOnlyMailbox,
                ]
            )
        ),
        hasStatus=st.booleans(),
        chunk=st.sampled_from([1, 3, 1000]),
    )
    def starts(
        self, messages: list[bytes], interfaces: set[Any], hasStatus: bool, chunk: int
    ) -> None:
        for number, each in enumerate(messages, 1):
            self.box.deliver(f"m{number}", each)
        if not isinstance(self.box.store, InMemory):
            # Other stores delete only with the lock.
            interfaces = interfaces | {IExclusiveMailbox}
        self.box.interfaces = sorted(interfaces, key=str)
        self.box.chunk = chunk
        self.provides = set(interfaces)
        provider = Provider(self.box)
        if hasStatus:
            alsoProvides(provider, IAccountStatus)
            self.provides.add(IAccountStatus)
        policy = Policy(maxBadCommands=10_000, maxFailedLogins=10_000)
        self.factory = POP3Factory(provider, policy, clock=self.clock)
        self.connects(True)

    def _connect(self) -> None:
        self.client = Client(self.factory)
        self.model = Model(self.box, self.provides)
        self.lines: list[bytes] = []
        self.asking: Any = None
        self.wanted: tuple[str, ...] = ()
        self.expected: list[Expected] = [Expected(True)]
        self.rest = b""
        self.quietSince = self.clock.seconds()
        self._compare()

    @property
    def isBusy(self) -> bool:
        return bool(self.box.waiting)

    @property
    def isIn(self) -> bool:
        return self.client is not None and self.model.state in ("TRANSACTION", "SLEEPING")

    # --- in step -----------------------------------------------------------------

    def _follow(self) -> None:
        """
        Advance the model to the state of the session.
        """
        while True:
            if self.asking is None:
                if self.model.state == "CLOSED" or not self.lines:
                    break
                self.asking = self.model.answer(self.lines.pop(0))
                self._step(None)
                continue
            if not self.box.calls:
                raise AssertionError(f"nobody asked for {self.wanted}")
            made = self.box.calls[0]
            assert made.name in self.wanted, f"{made} in place of {self.wanted}"
            if made.outcome is None:
                return
            self.box.calls.pop(0)
            self._step(made)
        if self.model.state == "CLOSED":
            self.box.calls.clear()
        assert not self.box.calls, f"unexpected: {self.box.calls}"

    def _step(self, made: Call | None) -> None:
        try:
            self.wanted = self.asking.send(made)
        except StopIteration as over:
            self.asking = None
            self.expected.append(over.value)
            self.quietSince = self.clock.seconds()

    def _compare(self) -> None:
        """
        Compare the received octets with the expected replies.
        """
        assert self.client is not None
        self.rest += self.client.received()
        isCut = any(each.isCut for each in self.expected)
        while self.expected:
            if isCut and not self.rest:
                # A connection that is cut may lose the last replies.
                assert self.client.wasAborted
                self.expected.clear()
                break
            self._compareOne(self.expected.pop(0))
        if self.asking is None or not self.isBusy:
            assert not self.rest, self.rest
        else:
            # Only the beginning of a reply that is being sent may be left.
            assert not self.rest or "nextChunk" in self.wanted, self.rest
        if self.model.state == "CLOSED":
            assert not self.client.isOpen
            self._ended()
        else:
            assert self.client.isOpen

    def _compareOne(self, reply: Expected) -> None:
        if reply.isCut:
            assert self.client is not None and self.client.wasAborted
            first, _, body = self.rest.partition(b"\r\n")
            assert reply.body is not None
            assert b"+OK Message follows _".startswith(first) or first.startswith(b"+OK Top"), first
            # A cut reply never looks complete.
            assert not body.endswith(b"\r\n.\r\n") and body != b".\r\n", body
            assert reply.body.startswith(body), body
            self.rest = b""
            return
        first, end, self.rest = self.rest.partition(b"\r\n")
        sign = b"+OK" if reply.isOK else b"-ERR"
        assert end and first.split(b" ")[0] == sign, (first, reply)
        code = re.match(rb"\S+ \[([^\]]*)\]", first)
        assert (code and code[1].decode()) == reply.code, (first, reply)
        assert first.endswith(b" _") == (reply.body is not None), (first, reply)
        assert len(first) <= 510 and first.isascii()
        text = first.decode() + ("" if reply.body is not None else " ")
        # A number may stand before a comma.
        assert reply.text in text + text.replace(",", " ,"), (first, reply)
        if reply.body is not None:
            # Find the end of the body like a client.
            if self.rest.startswith(b".\r\n"):
                body, self.rest = b"", self.rest[3:]
            else:
                body, end, self.rest = self.rest.partition(b"\r\n.\r\n")
                assert end, body
                body += b"\r\n"
            if reply.body == b"\r\nUIDL\r\n":
                assert reply.body in body
            else:
                assert body == reply.body, (first, body, reply)

    def _ended(self) -> None:
        """
        Handle the end of a connection.
        """
        self.client = None
        self.asking = None
        self.lines = []
        self._check()

    def _check(self) -> None:
        if self.box.waiting:
            return
        assert not self.factory.connections
        assert self.box.store.contents() == self.box.there
        for each in self.box.mailboxes:
            assert not each.isLocked, "still locked"
            assert not each.isWatched, "still watched"
            assert each.isOver or IMailboxLogout not in self.provides, "never told"
            assert each.running is None
        assert all(each.isClosed for each in self.box.contents), "never closed"
        self.box.mailboxes.clear()
        self.box.contents.clear()
        self.box.calls.clear()
        timers = [each for each in self.clock.getDelayedCalls() if each.active()]
        assert not timers, timers

    # --- rules ----------------------------------------------------------------------

    def _free(self) -> bool:
        return self.client is None and not self.box.waiting

    @precondition(lambda self: self._free())
    @rule(logsIn=st.sampled_from([True, True, True, False]))
    def connects(self, logsIn: bool) -> None:
        self._connect()
        if logsIn:
            self._say([line.encode() for line in LOGIN], [])

    def _say(self, lines: list[bytes], cuts: list[int]) -> None:
        lines = [self.box.named(line) for line in lines]
        data = b"".join(line + b"\r\n" for line in lines)
        places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
        assert self.client is not None
        self.lines += lines
        for begin, end in zip(places, places[1:], strict=False):
            if self.client.isOpen:
                self.client.send(data[begin:end])
        self._follow()
        self._compare()

    @precondition(lambda self: self.client is not None)
    @rule(
        commands=st.lists(COMMANDS, min_size=1, max_size=6),
        cuts=st.lists(st.integers(0, 60), max_size=3),
    )
    def says(self, commands: list[list[str]], cuts: list[int]) -> None:
        """
        Send commands in one segment, or cut anywhere.
        """
        self._say([line.encode() for each in commands for line in each], cuts)

    @precondition(lambda self: self.client is not None and self.model.state == "AUTHORIZATION")
    @rule(password=st.sampled_from(["secret pass", "secret pass", "wrong"]))
    def logsIn(self, password: str) -> None:
        self._say([b"USER alice", f"PASS {password}".encode()], [])

    @precondition(lambda self: self.isIn)
    @rule(command=COMMANDS)
    def saysOne(self, command: list[str]) -> None:
        self._say([line.encode() for line in command], [])

    @precondition(lambda self: self.isIn)
    @rule(message=MESSAGE, verb=st.sampled_from(COMMITS))
    def deletes(self, message: str, verb: str) -> None:
        self._say([f"DELE {message}".encode(), verb.encode()], [])

    @precondition(lambda self: self.isIn)
    @rule(
        situation=st.sampled_from(SITUATIONS),
        kind=st.sampled_from([*FORMS, *FORMS, *FAILURES]),
    )
    def goesWrong(self, situation: tuple[list[str], list[str]], kind: str) -> None:
        """
        Make a call late or fail, and send a command that makes it.
        """
        names, lines = situation
        self.box.how.update(dict.fromkeys(names, kind))
        self._say([line.encode() for line in lines], [])

    @precondition(lambda self: self.isBusy)
    @rule(kind=st.sampled_from(["ok", "ok", "ok", *FAILURES]))
    def answers(self, kind: str) -> None:
        self.box.answer(kind)
        if self.client is None:
            self._check()
        else:
            # Read the replies to input that has waited.
            self.rest += self.client.received()
            self._follow()
            self._compare()

    @rule(
        names=st.lists(st.sampled_from(CALLS), min_size=1, max_size=4),
        kind=st.sampled_from([*FORMS, *FORMS, *FAILURES]),
    )
    def willAnswer(self, names: list[str], kind: str) -> None:
        self.box.how.update(dict.fromkeys(names, kind))

    @rule(kind=st.sampled_from(["malformed", "twice", "well", "well"]))
    def isMended(self, kind: str) -> None:
        self.box.how.clear()
        self.box.how["listing"] = kind

    @rule(may=st.booleans())
    def mayComeBack(self, may: bool) -> None:
        self.box.isStillValid = may

    @rule(message=NASTY)
    def delivers(self, message: bytes) -> None:
        self.arrived += 1
        self.box.deliver(f"new{self.arrived}", message)
        self._changed()

    @precondition(lambda self: self.box.mayRemove)
    @rule(data=st.data())
    def somebodyRemoves(self, data: st.DataObject) -> None:
        self.box.remove(data.draw(st.sampled_from(list(self.box.there))))
        self._changed()

    def _changed(self) -> None:
        for each in self.box.mailboxes:
            if each.changed is not None:
                each.changed()

    @precondition(lambda self: self.client is not None)
    @rule(how=st.sampled_from(["vanishes", "closes its half", "waits for hours"]))
    def ends(self, how: str) -> None:
        assert self.client is not None
        if how == "vanishes":
            self.client.vanish()
        elif how == "closes its half":
            # The client gets the replies to its commands.
            self.client.endSending()
            while self.box.waiting and self.client.isOpen:
                self.box.answer("ok")
                self.client.received()
        else:
            # Let all time limits pass.
            self.box.isLate = True
            for seconds in (121, 181, 601, 3601, 601, 601):
                self.clock.advance(seconds)
                self.client.received()
            self.box.isLate = False
        assert not self.client.isOpen
        for each in self.box.waiting:
            assert each.name in CARRIED, f"{each.name} was not cancelled"
        # Drop the model's generator, because there are no further calls.
        self.model.isDropped = True
        self._ended()

    @precondition(lambda self: self.isIn and not self.isBusy)
    @rule(seconds=st.sampled_from([20, 61]), marks=st.booleans())
    def somebodyWantsTheMailbox(self, seconds: int, marks: bool) -> None:
        """
        A session that has been idle for a minute releases its lock without deleting, unless
        messages are marked.
        """
        if marks:
            self._say([b"DELE 1"], [])
        holders = [each for each in self.box.mailboxes if each.isLocked]
        if self.isBusy or not holders or self.model.state != "TRANSACTION":
            return
        if self.clock.seconds() + seconds - self.quietSince >= 600:
            return
        self.clock.advance(seconds)
        before = self.box.store.contents()
        gives = not self.model.marked and self.clock.seconds() - self.quietSince >= 60
        requestRelease = holders[0].requestRelease
        assert requestRelease is not None and requestRelease() is gives
        assert self.box.store.contents() == before
        assert self.client is not None
        self.client.received()
        if gives:
            assert not self.client.isOpen
            self._ended()

    # --- invariants ---------------------------------------------------------------------

    @invariant()
    def nothingUnexpectedIsLogged(self) -> None:
        for event in self.logged:
            value = event["log_failure"].value
            injected = (Injected, POP3ResponseError, CancelledError, NotImplementedError)
            assert isinstance(value, (*injected, CallTimeout)), event
            assert "Unhandled" not in (event.get("log_format") or ""), event
        self.logged.clear()

    def teardown(self) -> None:
        try:
            if self.client is not None:
                self.client.vanish()
                self.model.isDropped = True
                self._ended()
            while self.box.waiting:
                self.box.answer("ok")
            if hasattr(self, "factory"):
                self._check()
            self.nothingUnexpectedIsLogged()
        finally:
            globalLogPublisher.removeObserver(self._logged)
            self.box.store.close()


def test_sessions(makeStore: Callable[[], StoreUnderTest]) -> None:
    isInMemory = isinstance(makeStore(), InMemory)
    examples = (5000, 300) if isInMemory else (500, 25)
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        lambda: Sessions(makeStore),
        settings=settings(
            max_examples=examples[0 if LONG else 1],
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
