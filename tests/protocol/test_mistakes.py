"""
Providers that break their contract: the log names the class and the method, and explains
the correction; an error of one message does not affect the others.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from zope.interface import implementer

from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import (
    IBulkMessageSizes,
    IExclusiveMailbox,
    IMessageContent,
    IPOP3Mailbox,
)
from pop3svc.service.factory import POP3Factory
from pop3svc.testing import Client, StubProvider

SECRET = "nobody but alice reads this"
MAIL = {"a": b"one\n", "b": f"{SECRET}\n".encode(), "c": b"three\n"}


def mailbox(*interfaces: Any, **methods: Any) -> Any:
    """
    @param methods: these methods replace methods of a mailbox with three messages; L{None} removes
        a method.
    @return: a mailbox of a new class.
    """

    class Mailbox:
        def listMessageUniqueIDs(self, info: Any) -> Any:
            return list(MAIL)

        def messageExists(self, info: Any, uniqueID: str) -> bool:
            return uniqueID in MAIL

        def messageSize(self, info: Any, uniqueID: str) -> Any:
            raise NotImplementedError

        def messageContent(self, info: Any, uniqueID: str) -> Any:
            return MAIL[uniqueID]

        def messageDelete(self, info: Any, uniqueIDs: list[str]) -> None:
            pass

    for name, method in methods.items():
        if method is None:
            delattr(Mailbox, name)
            continue
        method.__name__ = name
        setattr(Mailbox, name, method)
    return implementer(*interfaces)(Mailbox)() if interfaces else Mailbox()


class Log:
    """
    The logged events as text, with tracebacks.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __enter__(self) -> Log:
        globalLogPublisher.addObserver(self.observe)
        return self

    def __exit__(self, *_: object) -> None:
        globalLogPublisher.removeObserver(self.observe)

    def observe(self, event: Any) -> None:
        if event.get("pop3Event") == "close":
            return
        text = formatEvent(event)
        failure = event.get("log_failure")
        self.lines.append(text if failure is None else f"{text}\n{failure.getTraceback()}")

    def has(self, *words: str) -> bool:
        return any(all(word in line for word in words) for line in self.lines)


def loggedIn(box: Any, clock: Clock | None = None) -> Client:
    client = Client(
        POP3Factory(StubProvider(authenticate=box), clock=Clock() if clock is None else clock)
    )
    client.say(b"USER alice")
    client.answer = client.say(b"PASS secret")  # type: ignore[attr-defined]
    return client


def ofB(answer: Callable[[str], Any], otherwise: Any = 5) -> Callable[..., Any]:
    """
    @return: a method that calls C{answer} for the message b, and returns a value for others.
    """
    return lambda self, info, uniqueID: answer(uniqueID) if uniqueID == "b" else otherwise


def raises(error: Exception) -> Callable[[str], Any]:
    def answer(_: str) -> Any:
        raise error

    return answer


# --- errors of one message ------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        POP3ResponseError("Message no longer exists."),
        POP3ResponseError("Not now.", "SYS/TEMP"),
        POP3ResponseError("It cannot be read.", "SYS/PERM"),
        KeyError("b"),
        OSError(5, "Input/output error"),
    ],
)
@pytest.mark.parametrize("method", ["messageSize", "messageContent"])
def test_oneWithoutASize(method: str, error: Exception) -> None:
    """
    STAT, and LIST without an argument, count a message without a size as 0 octets, because they
    must not answer -ERR (RFC 1939 section 5).
    """
    methods = {method: ofB(raises(error), b"xyz" if method == "messageContent" else 5)}
    for commands in (("STAT", "LIST"), ("LIST", "STAT")):
        client = loggedIn(mailbox(IPOP3Mailbox, **methods))
        with Log():
            for each in commands:
                answer = client.say(each.encode())
                wanted = b"+OK 3 10" if each == "STAT" else b"+OK 3 messages _\r\n1 5\r\n2 0\r\n3 5"
                assert answer.startswith(wanted), answer
            assert client.say(b"LIST 2").startswith(b"-ERR")


def test_onlyOneWithoutASize() -> None:
    box = mailbox(
        IPOP3Mailbox,
        listMessageUniqueIDs=lambda self, info: ["b"],
        messageSize=ofB(raises(POP3ResponseError("Message no longer exists.", "SYS/TEMP"))),
    )
    assert loggedIn(box).say(b"STAT") == b"+OK 1 0\r\n"


def test_noneHasASize() -> None:
    """
    If the sizes of all messages fail with SYS/TEMP, STAT answers this error, because the mailbox
    is at fault and not a message.
    """

    def messageSize(self: Any, info: Any, uniqueID: str) -> int:
        raise POP3ResponseError("The database is away.", "SYS/TEMP")

    client = loggedIn(mailbox(IPOP3Mailbox, messageSize=messageSize))
    assert client.say(b"STAT") == b"-ERR [SYS/TEMP] The database is away.\r\n"


def test_bulkSizesAreNotImplemented() -> None:
    def messageSizes(self: Any, info: Any, uniqueIDs: Any) -> Any:
        raise NotImplementedError

    box = mailbox(IPOP3Mailbox, IBulkMessageSizes, messageSizes=messageSizes)
    assert loggedIn(box).say(b"STAT") == b"+OK 3 41\r\n"


def test_sizeNoneIsCountedByReading() -> None:
    client = loggedIn(mailbox(IPOP3Mailbox, messageSize=lambda self, info, uniqueID: None))
    assert client.say(b"LIST") == b"+OK 3 messages _\r\n1 5\r\n2 29\r\n3 7\r\n.\r\n"
    assert client.say(b"LIST 2") == b"+OK 2 29\r\n"


# --- messages to the author ---------------------------------------------------------


@pytest.mark.parametrize("bulk", [False, True])
def test_wrongSizes(bulk: bool) -> None:
    """
    The warning is logged once for a class, also for many messages.
    """
    box = mailbox(
        *([IPOP3Mailbox, IBulkMessageSizes] if bulk else [IPOP3Mailbox]),
        messageSize=lambda self, info, uniqueID: len(MAIL[uniqueID]) - 3,
        messageSizes=lambda self, info, uniqueIDs: [len(MAIL[each]) - 3 for each in uniqueIDs],
    )
    client = loggedIn(box)
    client.say(b"STAT")
    with Log() as log:
        for number in (b"1", b"2", b"3"):
            assert client.say(b"RETR " + number).startswith(b"+OK")
            client.say(b"TOP " + number + b" 0")
    method = "messageSizes" if bulk else "messageSize"
    assert len(log.lines) == 1
    assert log.has(f"Mailbox.{method} returned 1 octets for a message of alice, but 5")


def test_rightSizes() -> None:
    client = loggedIn(mailbox(IPOP3Mailbox))
    client.say(b"STAT")
    with Log() as log:
        for command in (b"RETR 1", b"RETR 2", b"TOP 1 0", b"TOP 2 100"):
            client.say(command)
    assert log.lines == []


@pytest.mark.parametrize(
    ("methods", "commands", "words"),
    [
        ({"listMessageUniqueIDs": lambda self, info: None}, [], ["NoneType", "return a list"]),
        ({"listMessageUniqueIDs": lambda self, info: "ab"}, [], ["str", "return a list"]),
        (
            {"messageContent": lambda self, info, uniqueID: SECRET},
            [b"RETR 1"],
            ["str", "return bytes"],
        ),
        (
            {"messageContent": lambda self, info, uniqueID: [SECRET]},
            [b"RETR 1"],
            ["str", "bytes"],
        ),
        (
            {"messageContent": lambda self, info, uniqueID: {"text": 1}.get("text")},
            [b"RETR 1"],
            ["int", "return bytes"],
        ),
        ({"messageSize": lambda self, info, uniqueID: "5"}, [b"STAT"], ["str", "as an int"]),
        ({"messageSize": lambda self, info, uniqueID: -1}, [b"LIST 1"], ["as an int"]),
    ],
)
def test_eachMistakeIsExplained(methods: Any, commands: list[bytes], words: list[str]) -> None:
    with Log() as log:
        client = loggedIn(mailbox(IPOP3Mailbox, **methods))
        for each in commands:
            client.say(each)
        client.vanish()
    (name,) = methods
    assert log.has(*words), log.lines
    assert log.has(f"Mailbox.{name}") or log.has("lines of a message"), log.lines
    text = "\n".join(log.lines)
    assert SECRET not in text
    if name != "messageContent" or "return bytes" in words:
        assert "Traceback" not in text


def test_noMailbox() -> None:
    """
    A mailbox that does not declare its interface is refused, and the log shows the missing
    declaration.
    """
    with Log() as log:
        client: Any = loggedIn(mailbox())
    assert client.answer.startswith(b"-ERR [SYS/TEMP]")
    assert log.has("Provider.authenticate returned Mailbox", "@implementer(IPOP3Mailbox)")


def test_verifiedAtTheFirstLogin() -> None:
    box = mailbox(IPOP3Mailbox, messageExists=None, messageDelete=lambda self, uniqueIDs: None)
    with Log() as log:
        loggedIn(box)
        loggedIn(box)
    assert len(log.lines) == 2
    assert log.has("Mailbox", "IPOP3Mailbox", "messageExists")
    assert log.has("Mailbox", "IPOP3Mailbox", "messageDelete")


@pytest.mark.parametrize("isCoroutine", [False, True])
def test_slowCallIsNamed(isCoroutine: bool) -> None:
    clock = Clock()

    def blocks(self: Any, info: Any) -> Any:
        clock.advance(3)
        return list(MAIL)

    async def blocksLater(self: Any, info: Any) -> Any:
        return blocks(self, info)

    method = blocksLater if isCoroutine else blocks
    with Log() as log:
        box = mailbox(IPOP3Mailbox, listMessageUniqueIDs=method)
        loggedIn(box, clock)
        loggedIn(box, clock)
    assert len(log.lines) == 1
    assert log.has("Mailbox.listMessageUniqueIDs blocked the reactor for 3.0 s", "InThreads")


# --- asyncio ------------------------------------------------------------------------


def test_asyncioUnderAnotherReactor() -> None:
    async def listMessageUniqueIDs(self: Any, info: Any) -> Any:
        await asyncio.sleep(0.01)

    async def future(self: Any, info: Any) -> Any:
        loop = asyncio.new_event_loop()
        try:
            await loop.create_future()
        finally:
            loop.close()

    for method in (listMessageUniqueIDs, future):
        with Log() as log:
            client: Any = loggedIn(mailbox(IPOP3Mailbox, listMessageUniqueIDs=method))
        assert client.answer.startswith(b"-ERR [SYS/TEMP]")
        assert log.has(method.__qualname__, "twistd --reactor asyncio")


PROGRAM = """
import asyncio
from twisted.internet import asyncioreactor
asyncioreactor.install()
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from zope.interface import implementer
from pop3svc.interfaces import (
    IChunkedContent, IExclusiveMailbox, IMailboxLogout, IPOP3Mailbox, IPOP3MailboxProvider,
)
from pop3svc.service.factory import POP3Factory
from pop3svc.policy import Policy
from pop3svc.testing import Client

called = []

@implementer(IPOP3MailboxProvider)
class Provider:
    name = "test"

    async def authenticate(self, info, username, password):
        async with asyncio.timeout(5):
            await asyncio.sleep(0.001)
        return Mailbox()

@implementer(IPOP3Mailbox, IExclusiveMailbox, IMailboxLogout)
class Mailbox:
    async def lock(self, info, requestRelease):
        await asyncio.sleep(0)

    async def unlock(self, info):
        called.append("unlock")
        raise asyncio.CancelledError

    async def logout(self):
        called.append("logout")

    async def listMessageUniqueIDs(self, info):
        async with asyncio.TaskGroup() as group:
            task = group.create_task(asyncio.sleep(0.001, ["a", "b"]))
        return task.result()

    async def messageExists(self, info, uniqueID):
        return False

    async def messageSize(self, info, uniqueID):
        later = Deferred()
        reactor.callLater(0.001, later.callback, 5)
        return await later

    async def messageContent(self, info, uniqueID):
        if uniqueID == "b":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                called.append("cancelled")
                raise
        await asyncio.sleep(0.001)
        return Content()

    async def messageDelete(self, info, uniqueIDs):
        await asyncio.sleep(0.001)
        called.append(uniqueIDs)

@implementer(IChunkedContent)
class Content:
    left = [b"one\\n"]

    async def nextChunk(self):
        await asyncio.sleep(0.001)
        return self.left.pop() if self.left else None

    def close(self):
        pass

factory = POP3Factory(Provider())

async def talk(client, *lines):
    for line in lines:
        client.send(line + b"\\r\\n")
        for _ in range(200):
            await asyncio.sleep(0.005)
            said = client.received()
            if said:
                break
        print(said)

async def main():
    client = Client(factory)
    client.received()
    await talk(client, b"USER alice", b"PASS x", b"STAT", b"RETR 1", b"DELE 1", b"QUIT")
    client = Client(factory)
    client.received()
    await talk(client, b"USER alice", b"PASS x")
    client.send(b"RETR 2\\r\\n")
    await asyncio.sleep(0.01)
    client.vanish()
    await asyncio.sleep(0.02)
    print(called)
    reactor.stop()

reactor.callWhenRunning(lambda: asyncio.ensure_future(main()))
reactor.run()
"""


def test_asyncio() -> None:
    """
    A provider may await objects of asyncio and of Twisted, may use tasks, and can be cancelled.
    """
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60
    )
    lines = done.stdout.splitlines()
    assert lines[1:6] == [
        "b'+OK Logged in.\\r\\n'",
        "b'+OK 2 10\\r\\n'",
        "b'+OK Message follows _\\r\\none\\r\\n.\\r\\n'",
        "b'+OK Message marked for deletion.\\r\\n'",
        "b'+OK Bye, 1 deleted.\\r\\n'",
    ], done.stdout + done.stderr
    assert lines[-1] == "[['a'], 'unlock', 'logout', 'cancelled', 'unlock', 'logout']"


def test_heldBeforeItRaises() -> None:
    """
    The service also warns if a method blocks and then raises an exception, if a deletion blocks,
    and if reading the generator or the content that a method has returned blocks.
    """
    clock = Clock()

    def hold(then: Any) -> Any:
        clock.advance(0.9)
        if isinstance(then, Exception):
            raise then
        return then

    def lines() -> Any:
        yield hold(b"x\n")

    @implementer(IMessageContent)
    class Slow:
        left = [b"x"]

        def nextLine(self) -> Any:
            return hold(self.left.pop() if self.left else None)

        def close(self) -> None:
            pass

    def sizes(self: Any, info: Any, uniqueIDs: Any) -> Any:
        return (hold(5) for _ in uniqueIDs)

    for name, method, command in (
        ("messageSize", lambda *_: hold(NotImplementedError()), b"LIST 1"),
        ("messageContent", lambda *_: lines(), b"RETR 1"),
        ("messageContent", lambda *_: Slow(), b"RETR 2"),
        ("messageSizes", sizes, b"STAT"),
        ("messageDelete", lambda *_: hold(None), b"DELI 1"),
    ):
        interfaces = [IPOP3Mailbox, *([IBulkMessageSizes] if name == "messageSizes" else [])]
        client = loggedIn(mailbox(*interfaces, **{name: method}), clock)
        with Log() as log:
            assert client.say(command).startswith(b"+OK")
        assert log.has(f"{name} blocked the reactor for"), (name, log.lines)


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_octetsOfAnyKind(kind: Any) -> None:
    client = loggedIn(mailbox(IPOP3Mailbox, messageContent=lambda *_: kind(b"one\n")))
    assert client.say(b"RETR 1") == b"+OK Message follows _\r\none\r\n.\r\n"


def test_tagUntilUnlock() -> None:
    """
    C{providerTag} is kept until the mailbox is released.
    """
    seen = []

    def lock(self: Any, info: Any, requestRelease: Any) -> None:
        info.providerTag = "mine"

    box = mailbox(
        *(IPOP3Mailbox, IExclusiveMailbox),
        lock=lock,
        unlock=lambda self, info: seen.append(info.providerTag),
    )
    client = loggedIn(box)
    client.say(b"QAUT")
    assert seen == ["mine"] and client.protocol.session.info.providerTag is None


def test_largeMailboxYields(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Each step over all messages of a large mailbox has a time slice of its own.
    """
    monkeypatch.setattr("pop3svc.protocol.messages._MANY", 2)
    sizes = lambda self, info, uniqueIDs: [5, 6, 7]  # noqa: E731
    clock = Clock()
    client = loggedIn(mailbox(IPOP3Mailbox, IBulkMessageSizes, messageSizes=sizes), clock)
    client.send(b"STAT\r\n")
    assert client.received() == b""
    clock.pump([0, 0, 0])
    assert client.received() == b"+OK 3 18\r\n"
