"""
The contract of mailboxes, as tests for an author to inherit.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
from collections.abc import Callable, Coroutine, Generator, Iterable, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, globalLogPublisher
from zope.interface import Invalid, directlyProvidedBy, directlyProvides, implementer, providedBy
from zope.interface.verify import verifyObject

from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import (
    IBulkMessageSizes,
    IChunkedContent,
    IExclusiveMailbox,
    IFileContent,
    IMailboxLogout,
    IMessageContent,
    INewMailNotifier,
    IPOP3Mailbox,
    IPOP3MailboxProvider,
    IReadOnlyMailbox,
    ISleepingMailbox,
)
from pop3svc.lineendings import CRLFNormalizer, WireSizeCounter
from pop3svc.listings import isUniqueID
from pop3svc.protocol.content import MessageBody
from pop3svc.protocol.session import ConnectionInfo
from pop3svc.service.factory import POP3Factory
from pop3svc.testing.client import Client
from pop3svc.testing.wrappers import Async, Delayed, Recording, Wrapper

__all__ = ["MailboxContract"]

_MESSAGES = (
    b"Subject: one\r\n\r\nThe first.\r\n",
    b"Subject: two\n\n.\n..\n.dot \xe9\xff\x00\nlone\rCR",
    b"",
    b"Subject: four\r\n\r\n" + b"x" * 100_000 + b"\r\n",
)
_ARRIVED = b"Subject: five\r\n\r\nIt came later.\r\n"
_OPTIONAL = (
    IBulkMessageSizes,
    IExclusiveMailbox,
    IMailboxLogout,
    INewMailNotifier,
    ISleepingMailbox,
)
_CONTENTS = (IMessageContent, IChunkedContent, IFileContent)
# How often goOn() is called before a test fails.
_MAX_TURNS = 1000
# All commands that read a mailbox, release it, or lock it again.
_READING = (
    b"USER alice",
    b"PASS secret",
    b"STAT",
    b"LIST",
    b"UIDL",
    b"RETR 1",
    b"RETR 4",
    b"TOP 4 1",
    b"RETR UID:nothing",
    b"CORE",
    b"SLEE",
    b"WAKE",
    b"LIST 2",
    b"QAUT",
    b"USER alice",
    b"PASS secret",
    b"RETR 2",
    b"QUIT",
)


class StopScript(Exception):
    """
    Ends the script of a client early.
    """


def _named(object_: Any, method: str) -> str:
    """
    @return: the name of a method with that of its class.
    """
    return f"{type(object_).__qualname__}.{method}"


class _DeferredBridge:
    """
    A coroutine for a task of asyncio that may also await Deferreds.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, Any]:
        step: Callable[[Any], Any] = self._coroutine.send
        argument: Any = None
        while True:
            try:
                awaited = step(argument)
            except StopIteration as over:
                return over.value
            try:
                if isinstance(awaited, Deferred):
                    future = awaited.asFuture(asyncio.get_running_loop())
                    argument = yield from future.__await__()
                else:
                    argument = yield awaited
                step = self._coroutine.send
            except GeneratorExit:
                self._coroutine.close()
                raise
            except BaseException as error:
                step, argument = self._coroutine.throw, error


class _Loop:
    """
    Runs coroutines, of asyncio or not, without a reactor.  Each runs as far as possible at
    once, and continues at each L{turn}.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()

    def begin(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """
        @return: the result of the coroutine if it has finished, else a Deferred.
        """
        task = self._loop.create_task(self._run(_DeferredBridge(coroutine)))
        self.turn()
        if task.done():
            return task.result()
        answer: Deferred[Any] = Deferred(lambda _: self._cancel(task))

        def over(_: object) -> None:
            # The caller has cancelled, so only consume the exception.
            if answer.called:
                task.cancelled() or task.exception()
            elif task.cancelled():
                answer.errback(CancelledError())
            elif (error := task.exception()) is not None:
                answer.errback(error)
            else:
                answer.callback(task.result())

        task.add_done_callback(over)
        return answer

    def _cancel(self, task: asyncio.Task[Any]) -> None:
        task.cancel()
        for _ in range(_MAX_TURNS):
            if task.done() or self._loop.is_running():
                return
            self.turn()

    @staticmethod
    async def _run(driven: _DeferredBridge) -> Any:
        return await driven

    def turn(self) -> None:
        """
        Run the callbacks that are ready.
        """
        if not self._loop.is_running():
            self._loop.call_soon(self._loop.stop)
            self._loop.run_forever()

    def close(self) -> None:
        """
        Cancel all tasks and close the loop.
        """
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self.turn()
        self._loop.close()


class _Bridged(Wrapper):
    """
    Lets coroutines of the mailbox await asyncio's awaitables, as under the asyncio reactor.
    """

    def __init__(self, mailbox: Any, loop: _Loop) -> None:
        super().__init__(mailbox)
        self._loop = loop

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def bridged(*arguments: Any) -> Any:
            answer = call(*arguments)
            return self._loop.begin(answer) if inspect.iscoroutine(answer) else answer

        return bridged


@implementer(IPOP3MailboxProvider)
class _OneMailbox:
    """
    Gives each login the mailbox that a function makes.
    """

    name = "contract"

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def authenticate(self, info: Any, username: str, password: str) -> Any:
        return self._make()


class _Content:
    """
    Provides the interfaces of the wrapped content, and counts the calls of C{close}.
    """

    def __init__(self, content: Any) -> None:
        self._inside = content
        self.closings = 0
        directlyProvides(self, providedBy(content))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inside, name)

    def close(self) -> None:
        self.closings += 1
        self._inside.close()


class _Opening(Wrapper):
    """
    Records the contents that were opened.
    """

    def __init__(self, mailbox: Any, opened: list[Any]) -> None:
        super().__init__(mailbox)
        self._opened = opened

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        if name != "messageContent":
            return call
        return lambda *arguments: maybeDeferred(call, *arguments).addCallback(self._counted)

    def _counted(self, content: Any) -> Any:
        if any(each.providedBy(content) for each in _CONTENTS):
            content = _Content(content)
        self._opened.append(content)
        return content


def _isClosedOnce(content: Any) -> bool:
    if isinstance(content, _Content):
        return content.closings == 1
    if inspect.isgenerator(content):
        return inspect.getgeneratorstate(content) == inspect.GEN_CLOSED
    return bool(getattr(content, "closed", True))


def _openFiles() -> int | None:
    """
    @return: the number of open descriptors of this process; L{None} if it is not known.
    """
    return len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else None


def _body(reply: bytes) -> bytes:
    """
    @return: the octets after the first line of a multi-line reply, unstuffed.
    """
    assert reply.startswith(b"+OK") and reply.endswith(b"\r\n.\r\n"), reply[:200]
    lines = reply.split(b"\r\n")[1:-2]
    return b"".join(line.removeprefix(b".") + b"\r\n" for line in lines)


def _normalised(message: bytes) -> bytes:
    lineEnds = CRLFNormalizer()
    return lineEnds.feed(message) + lineEnds.finish()


@implementer(ILogObserver)
class _Session:
    """
    A client in memory, with a record of the calls that its session makes.

    @ivar calls: the names of the calls, in order.
    """

    def __init__(
        self,
        contract: MailboxContract,
        mailboxes: Callable[[], Any],
        kind: type[Wrapper] | None = None,
        steps: int | None = None,
    ) -> None:
        """
        @param mailboxes: makes a mailbox for each login.
        @param kind: the wrapper that makes results late: L{Async} or L{Delayed}; L{None} for
            the results as the mailbox returns them.
        @param steps: after how many awaited results the client disconnects.
        """
        self._contract = contract
        self._mailboxes = mailboxes
        self._kind = kind
        self._steps = steps
        self._later: list[Delayed] = []
        self._opened: list[Any] = []
        self._failures: list[str] = []
        self.calls: list[str] = []
        globalLogPublisher.addObserver(self)
        contract.addCleanup(globalLogPublisher.removeObserver, self)
        self._factory = POP3Factory(_OneMailbox(self._make), clock=Clock())
        self._client = Client(self._factory)
        self._client.received()

    def __call__(self, event: Any) -> None:
        """
        See L{twisted.logger.ILogObserver}; records failures.
        """
        failure = event.get("log_failure")
        if failure is not None:
            self._failures.append(failure.getTraceback())

    def _make(self) -> Any:
        made = _Bridged(self._mailboxes(), self._contract._loop)
        mailbox: Any = _Opening(Recording(made, self.calls), self._opened)
        if self._kind is not None:
            mailbox = self._kind(mailbox)
        if isinstance(mailbox, Delayed):
            self._later.append(mailbox)
        return mailbox

    def _advance(self) -> None:
        if self._steps is not None:
            if not self._steps:
                raise StopScript()
            self._steps -= 1
        self._answer()

    def _answer(self) -> None:
        for each in self._later:
            if each.waiting:
                each.answer()
                return
        self._contract._advance()

    @property
    def waitsFor(self) -> str:
        """
        The name of the call that is answered next.
        """
        return next((each.waiting[0][0] for each in self._later if each.waiting), "")

    def send(self, line: bytes) -> None:
        """
        Send a line without waiting for the answer.
        """
        self._client.send(line + b"\r\n")

    def say(self, line: bytes) -> bytes:
        """
        Send a line and wait for the answer.

        @return: the whole answer.
        """
        self.send(line)
        return self.reply(line)

    def reply(self, line: bytes = b"") -> bytes:
        """
        @return: the answer to the line that was sent, once it is complete.
        """
        client = self._client
        for _ in range(_MAX_TURNS):
            if not client.isOpen or not client.protocol.isAnswering:
                return client.received()
            self._advance()
        raise AssertionError(f"{line!r} was never answered; goOn() has to make results available")

    def ok(self, line: bytes) -> bytes:
        """
        Send a line and expect a positive answer.

        @return: the whole answer.
        """
        reply = self.say(line)
        assert reply.startswith(b"+OK"), f"{line!r} was answered {reply!r}\n{self._tracebacks()}"
        return reply

    def logIn(self) -> None:
        """
        Log in by USER and PASS.
        """
        self.ok(b"USER alice")
        self.ok(b"PASS secret")

    def stallIn(self, line: bytes) -> None:
        """
        Ask for more than the transport buffers, and read none of it.
        """
        self._client.stall()
        self.send(line)
        for _ in range(_MAX_TURNS):
            if self._client.transport.written:
                return
            self._advance()

    def vanish(self) -> None:
        """
        Lose the connection, and wait until the session has ended.
        """
        self._steps = None
        self._client.vanish()
        self.over()

    def quit(self) -> None:
        """
        End the session by QUIT.
        """
        self.ok(b"QUIT")
        self.over()

    def over(self) -> None:
        """
        Wait until the session has ended, and check that each content was closed once.
        """
        for _ in range(_MAX_TURNS):
            if not self._factory.connections:
                break
            self._answer()
        assert not self._factory.connections, f"the session does not end, after {self.calls}"
        assert not self._failures, "errors were logged:\n" + self._tracebacks()
        open_ = [each for each in self._opened if not _isClosedOnce(each)]
        assert not open_, f"content not closed exactly once: {open_}"

    def _tracebacks(self) -> str:
        return "\n".join(self._failures)


class MailboxContract:
    """
    The contract of L{IPOP3Mailbox} and its optional interfaces, as tests.

    Mix this into a C{unittest.TestCase}, and implement L{makeMailbox} and L{again}, which make
    the mailboxes.  The other hooks, L{deliver}, L{remove}, L{failDeletion} and L{goOn}, are
    optional; tests that need a missing one are skipped.

    The tests run without a reactor.  Give a store with threads a L{pop3svc.testing.Inline}
    instead of them.  If results come later, implement L{goOn}, which has to make them
    available.  Methods may be coroutines that await Deferreds, and tasks and futures of
    asyncio.
    """

    assertEqual: Any
    assertTrue: Any
    assertFalse: Any
    assertIn: Any
    assertRaises: Any
    skipTest: Any
    addCleanup: Any
    _loopOrNone: _Loop | None = None
    # What deliver() has returned in this test.
    _delivered: Sequence[str | None] = ()

    # --- hooks for the author -----------------------------------------------------

    def makeMailbox(self, messages: list[bytes]) -> Any:
        """
        Make a mailbox for a new session, with exactly these messages in this order.  Called
        once in a test; L{again} makes the mailboxes of further sessions.
        """
        raise NotImplementedError

    def again(self) -> Any:
        """
        Make a mailbox for another session of the same user, as a later login does.
        """
        raise NotImplementedError

    def deliver(self, message: bytes) -> str | None:
        """
        Optional: deliver a message as the last one to the mailbox of L{makeMailbox}.  If the
        mailbox provides L{INewMailNotifier}, it has to notice the message after some calls
        of L{goOn}.  Some tests call this twice, and each call delivers a message of its own.

        @return: the unique-id of the message, or L{None} if it is not known before the next
            listing.
        """
        raise NotImplementedError

    def remove(self, uniqueID: str) -> None:
        """
        Optional: remove a message from the mailbox of L{makeMailbox} as another program
        would, whether or not a session has locked the mailbox.
        """
        raise NotImplementedError

    def failDeletion(self) -> None:
        """
        Optional: make deletions in the mailbox of L{makeMailbox} fail midway from now on, for
        example by a full disk, a lost database, or a message that cannot be removed.
        """
        raise NotImplementedError

    def goOn(self) -> None:
        """
        Optional: make results available that the mailbox waits for: advance a clock, run
        queued work, fire a Deferred.  Called repeatedly.
        """

    # --- helpers --------------------------------------------------------------

    @property
    def _loop(self) -> _Loop:
        if self._loopOrNone is None:
            self._loopOrNone = _Loop()
            self.addCleanup(self._loopOrNone.close)
        return self._loopOrNone

    def _advance(self) -> None:
        self._loop.turn()
        self.goOn()

    def _info(self) -> ConnectionInfo:
        return ConnectionInfo(1, "127.0.0.1", True)

    def _now(self, call: Any, *arguments: Any) -> Any:
        got: list[Any] = []

        try:
            answer = call(*arguments)
            if inspect.iscoroutine(answer):
                answer = self._loop.begin(answer)
        except Exception:
            answer = fail()
        if isinstance(answer, Deferred):
            answer.addBoth(got.append)
        else:
            got.append(answer)
        for _ in range(_MAX_TURNS):
            if got:
                break
            self._advance()
        assert got, "no result came; goOn() has to make results available"
        if hasattr(got[0], "raiseException"):
            got[0].raiseException()
        return got[0]

    def _opened(self, messages: Any = _MESSAGES) -> tuple[Any, list[str]]:
        mailbox = self.makeMailbox(list(messages))
        self._lock(mailbox)
        return mailbox, self._listed(mailbox)

    def _reopened(self) -> tuple[Any, list[str]]:
        mailbox = self.again()
        self._lock(mailbox)
        return mailbox, self._listed(mailbox)

    def _lock(self, mailbox: Any) -> None:
        if IExclusiveMailbox.providedBy(mailbox):
            self._now(mailbox.lock, self._info(), lambda: False)

    def _closed(self, mailbox: Any) -> None:
        if IExclusiveMailbox.providedBy(mailbox):
            self._now(mailbox.unlock, self._info())
        if IMailboxLogout.providedBy(mailbox):
            self._now(mailbox.logout)

    def _isFree(self) -> bool:
        """
        @return: whether another session can lock the mailbox.
        """
        mailbox = self.again()
        try:
            self._now(mailbox.lock, self._info(), lambda: False)
        except POP3ResponseError as error:
            self.assertEqual(error.code, "IN-USE")
            return False
        self._closed(mailbox)
        return True

    def _listed(self, mailbox: Any) -> list[str]:
        listed = self._now(mailbox.listMessageUniqueIDs, self._info())
        name = _named(mailbox, "listMessageUniqueIDs")
        assert isinstance(listed, Iterable) and not isinstance(listed, str), (
            f"{name} returned {listed!r}; it returns an iterable of str, an empty one if there "
            "are no messages"
        )
        listed = list(listed)
        for each in listed:
            assert isinstance(each, str), f"{name} lists {each!r}; unique-ids are str"
        return listed

    def _left(self) -> list[str]:
        """
        @return: the listing of a later session.
        """
        mailbox, listed = self._reopened()
        self._closed(mailbox)
        return listed

    def _content(self, mailbox: Any, uniqueID: str) -> bytes:
        content = self._now(mailbox.messageContent, self._info(), uniqueID)
        body = MessageBody(content, Clock(), 10)
        octets = b""
        try:
            while True:
                chunk = self._now(body.next)
                if chunk is None:
                    return octets
                octets += chunk
        finally:
            body.close()

    def _sentSize(self, mailbox: Any, uniqueID: str) -> int:
        """
        @return: the octets of a message as RETR sends it.
        """
        count = WireSizeCounter()
        count.feed(self._content(mailbox, uniqueID))
        return count.total()

    def _session(self, messages: Any = _MESSAGES, **options: Any) -> _Session:
        """
        @return: a session whose mailbox holds these messages at first.
        """
        first = [self.makeMailbox(list(messages))]
        return _Session(self, lambda: first.pop() if first else self.again(), **options)

    def _furtherSession(self, **options: Any) -> _Session:
        return _Session(self, self.again, **options)

    def _deliver(self) -> str | None:
        try:
            uniqueID = self.deliver(_ARRIVED)
        except NotImplementedError:
            self.skipTest("deliver() is not implemented")
            raise
        assert uniqueID is None or uniqueID not in self._delivered, (
            f"deliver() returned {uniqueID!r} twice; each message that it delivers has a "
            "unique-id that no other message has"
        )
        self._delivered = [*self._delivered, uniqueID]
        return uniqueID

    def _deletable(self, mailbox: Any = None) -> None:
        if IReadOnlyMailbox.providedBy(self.again() if mailbox is None else mailbox):
            self.skipTest("it provides IReadOnlyMailbox")

    def _exclusive(self, mailbox: Any) -> None:
        if not IExclusiveMailbox.providedBy(mailbox):
            self.skipTest("it does not provide IExclusiveMailbox")

    # --- interfaces -----------------------------------------------------------

    def test_providesItsInterfaces(self) -> None:
        """
        The mailbox and its messages have the methods of the interfaces that they provide.
        """
        mailbox, listed = self._opened()
        self._verify(IPOP3Mailbox, mailbox)
        for interface in providedBy(mailbox):
            self._verify(interface, mailbox)
        # Skipped if the object itself declares its interfaces, because that is deliberate.
        for optional in () if list(directlyProvidedBy(mailbox)) else _OPTIONAL:
            for method in optional.names():
                isThere = callable(getattr(mailbox, method, None))
                assert optional.providedBy(mailbox) or not isThere, (
                    f"{_named(mailbox, method)} is never called: the class is not declared "
                    f"@implementer({optional.__name__})"
                )
        for uniqueID in listed:
            content = self._now(mailbox.messageContent, self._info(), uniqueID)
            body = MessageBody(content, Clock(), 10)
            for each in _CONTENTS:
                if each.providedBy(content):
                    self._verify(each, content)
            body.close()
        self._closed(mailbox)

    def _verify(self, interface: Any, object_: Any) -> None:
        assert interface.providedBy(object_), (
            f"{type(object_).__qualname__} does not declare that it provides "
            f"{interface.__name__}: write @implementer({interface.__name__}) above the class"
        )
        try:
            verifyObject(interface, object_)
        except Invalid as error:
            raise AssertionError(f"{type(object_).__qualname__}: {error}")

    # --- the listing ----------------------------------------------------------

    def test_empty(self) -> None:
        """
        An empty mailbox lists nothing.
        """
        mailbox, listed = self._opened([])
        self.assertEqual(listed, [])
        self._closed(mailbox)

    def test_uniqueIDs(self) -> None:
        """
        Unique-ids are well-formed and distinct (RFC 1939 section 7).
        """
        mailbox, listed = self._opened()
        self.assertEqual(len(listed), len(_MESSAGES))
        self.assertEqual(len(set(listed)), len(listed))
        for each in listed:
            self.assertTrue(isUniqueID(each), f"not a well-formed unique-id: {each!r}")
        self._closed(mailbox)

    def test_uniqueIDsStay(self) -> None:
        """
        Unique-ids and their order stay the same in the next listing, after messages were read,
        and in the next session.
        """
        mailbox, listed = self._opened()
        self.assertEqual(self._listed(mailbox), listed)
        for each in listed:
            self._content(mailbox, each)
        self.assertEqual(self._listed(mailbox), listed)
        self._closed(mailbox)
        self.assertEqual(self._left(), listed)

    def test_uniqueIDsStayBesideDeletion(self) -> None:
        """
        After a deletion the other messages keep their unique-ids (RFC 1939 section 7: no
        unique-id is used again).
        """
        mailbox, listed = self._opened()
        self._deletable(mailbox)
        self._now(mailbox.messageDelete, self._info(), listed[:2])
        self.assertEqual(self._listed(mailbox), listed[2:])
        self._closed(mailbox)
        self.assertEqual(self._left(), listed[2:])

    def test_messageExists(self) -> None:
        """
        Unique-ids that a client invents do not exist.
        """
        mailbox, _ = self._opened()
        for madeUp in ("nothing", "../../etc/passwd", "..", "new/x", "~", "a:2,S", "." * 70):
            self.assertEqual(
                bool(self._now(mailbox.messageExists, self._info(), madeUp)), False, madeUp
            )
        self._closed(mailbox)

    # --- messages -------------------------------------------------------------

    def test_content(self) -> None:
        """
        Messages are unchanged except for line ends, and in the order of the listing.
        """
        mailbox, listed = self._opened()
        for uniqueID, message in zip(listed, _MESSAGES, strict=True):
            got = self._content(mailbox, uniqueID)
            self.assertEqual(
                got.replace(b"\r\n", b"\n").rstrip(b"\n"),
                message.replace(b"\r\n", b"\n").rstrip(b"\n"),
            )
        self._closed(mailbox)

    def test_contentIsBytes(self) -> None:
        """
        A message is bytes, not text, in each form of content.
        """
        mailbox, listed = self._opened()
        for uniqueID in listed:
            content = self._now(mailbox.messageContent, self._info(), uniqueID)
            name = _named(mailbox, "messageContent")
            assert content is not None and not isinstance(content, str), (
                f"{name} returned {type(content).__name__}; messages are bytes"
            )
            close: Callable[[], Any] = getattr(content, "close", lambda: None)
            try:
                part, how = self._firstPart(content)
            finally:
                close()
            assert part is None or isinstance(part, bytes), (
                f"{name} returned something whose {how} gives {type(part).__name__}; messages are "
                "bytes"
            )
        self._closed(mailbox)

    def _firstPart(self, content: Any) -> tuple[Any, str]:
        """
        @return: the first part of a content, and the name of the method that returned it.
        """
        if IFileContent.providedBy(content) or isinstance(content, bytes):
            return None, ""
        if IMessageContent.providedBy(content):
            return self._now(content.nextLine), f"{type(content).__qualname__}.nextLine"
        if IChunkedContent.providedBy(content):
            return self._now(content.nextChunk), f"{type(content).__qualname__}.nextChunk"
        if hasattr(content, "read"):
            return content.read(1), "read"
        return next(iter(content), None), "iteration"

    def test_contentAsItIsSent(self) -> None:
        """
        A content that provides L{IFileContent} is a region of a file exactly as RETR sends it.
        """
        mailbox, listed = self._opened()
        for uniqueID in listed:
            content = self._now(mailbox.messageContent, self._info(), uniqueID)
            if IFileContent.providedBy(content):
                region = os.pread(content.fileno, content.length, content.offset)
                self.assertEqual(len(region), content.length)
                self.assertEqual(region, _normalised(region), "it has bare LFs")
                self.assertFalse(region.startswith(b".") or b"\r\n." in region, "it has dots")
            MessageBody(content, Clock(), 10).close()
        self._closed(mailbox)

    def test_contentTwice(self) -> None:
        """
        A message can be read again, and twice at the same time.
        """
        mailbox, listed = self._opened()
        for uniqueID in listed:
            first = self._content(mailbox, uniqueID)
            self.assertEqual(self._content(mailbox, uniqueID), first)
        whole = self._content(mailbox, listed[3])
        content = self._now(mailbox.messageContent, self._info(), listed[3])
        body = MessageBody(content, Clock(), 10)
        begin = self._now(body.next)
        self.assertEqual(self._content(mailbox, listed[3]), whole)
        while (chunk := self._now(body.next)) is not None:
            begin += chunk
        self.assertEqual(begin, whole)
        body.close()
        self._closed(mailbox)

    def test_closings(self) -> None:
        """
        A message is closed once and releases its resources: read to its end, cut short by
        TOP, abandoned by the client, or never begun.
        """
        session = self._session()
        session.logIn()
        session.ok(b"RETR 4")
        session.ok(b"TOP 4 1")
        before = _openFiles()
        for line in (b"RETR 4", b"TOP 4 1", b"RETR 1", b"TOP 2 0", b"RETR 2"):
            session.ok(line)
        self.assertEqual(_openFiles(), before, "descriptors are left open")
        session.quit()
        before = _openFiles()
        session = self._furtherSession()
        session.logIn()
        session.stallIn(b"RETR 4")
        session.vanish()
        self.assertEqual(_openFiles(), before, "descriptors are left open")
        mailbox, listed = self._reopened()
        content = self._now(mailbox.messageContent, self._info(), listed[3])
        MessageBody(content, Clock(), 10).close()
        self._closed(mailbox)
        self.assertEqual(_openFiles(), before, "descriptors are left open")

    # --- sizes ----------------------------------------------------------------

    def _size(self, mailbox: Any, uniqueID: str) -> int | None:
        """
        @return: the size that the mailbox gives; L{None} if it leaves the counting to the
            service.
        """
        try:
            size: int | None = self._now(mailbox.messageSize, self._info(), uniqueID)
        except NotImplementedError:
            return None
        return size

    def _sizes(self, mailbox: Any, asked: list[str]) -> list[int | None]:
        """
        @return: the sizes that the mailbox gives for many messages at once.
        """
        sizes = self._now(mailbox.messageSizes, self._info(), list(asked))
        name = _named(mailbox, "messageSizes")
        assert isinstance(sizes, Iterable), f"{name} returned {sizes!r}; it returns one size each"
        sizes = list(sizes)
        assert len(sizes) == len(asked), (
            f"{name} returned {len(sizes)} sizes of {len(asked)} messages"
        )
        return sizes

    def _checkSize(self, name: str, uniqueID: str, size: Any, octets: int) -> None:
        assert size is None or (isinstance(size, int) and size == octets), (
            f"{name} returned {size!r} octets for {uniqueID!r}; the content of messageContent "
            f"has {octets} octets when it is sent"
        )

    def test_sizes(self) -> None:
        """
        A size is the number of octets that RETR sends, or L{None}.
        """
        mailbox, listed = self._opened()
        name = _named(mailbox, "messageSize")
        for uniqueID in listed:
            size = self._size(mailbox, uniqueID)
            self._checkSize(name, uniqueID, size, self._sentSize(mailbox, uniqueID))
        self._closed(mailbox)

    def test_bulkSizes(self) -> None:
        """
        Bulk sizes are correct and in the order of the question.  The size of a message that
        has gone is L{None}.
        """
        mailbox, listed = self._opened()
        if not IBulkMessageSizes.providedBy(mailbox):
            self._closed(mailbox)
            self.skipTest("it does not provide IBulkMessageSizes")
        name = _named(mailbox, "messageSizes")
        true = {each: self._sentSize(mailbox, each) for each in listed}
        for asked in (listed, listed[::-1], listed[1:3], listed[:1]):
            for uniqueID, size in zip(asked, self._sizes(mailbox, asked), strict=True):
                self._checkSize(name, uniqueID, size, true[uniqueID])
        before = self._sizes(mailbox, listed)
        self._remove(mailbox, listed[1])
        try:
            after = self._sizes(mailbox, listed)
        except POP3ResponseError as error:
            raise AssertionError(f"{name} fails after one message has gone: {error}")
        assert after[1] is None, (
            f"{name} returned {after[1]!r} for a message that has gone; it has to return None"
        )
        before[1] = None
        assert after == before, (
            f"{name} returned {after} after one message has gone, but {before} before"
        )
        self._closed(mailbox)

    def _remove(self, mailbox: Any, uniqueID: str) -> None:
        """
        Remove a listed message, by another program if possible.
        """
        try:
            self.remove(uniqueID)
        except NotImplementedError:
            if IReadOnlyMailbox.providedBy(mailbox):
                self._closed(mailbox)
                self.skipTest("remove() is not implemented, and the mailbox is read-only")
            self._now(mailbox.messageDelete, self._info(), [uniqueID])

    def test_gone(self) -> None:
        """
        A message that has gone since it was listed is refused; the others are not.
        """
        mailbox, listed = self._opened()
        contents = [self._content(mailbox, each) for each in listed]
        sizes = [self._size(mailbox, each) for each in listed]
        self._remove(mailbox, listed[1])
        for method in ("messageSize", "messageContent"):
            name = _named(mailbox, method)
            try:
                answer = self._now(getattr(mailbox, method), self._info(), listed[1])
            except POP3ResponseError:
                continue
            except NotImplementedError:
                assert method == "messageSize", f"{name} is not implemented"
                continue
            except Exception as error:
                raise AssertionError(
                    f"{name} raised {error!r} for a message that has gone; it has to raise "
                    "POP3ResponseError"
                )
            assert answer is None and method == "messageSize", (
                f"{name} returned {answer!r} for a message that has gone; it has to raise "
                "POP3ResponseError"
            )
        for number, each in enumerate(listed):
            if number != 1:
                self.assertEqual(self._content(mailbox, each), contents[number])
                self.assertEqual(self._size(mailbox, each), sizes[number])
        self._closed(mailbox)

    def test_goneInASession(self) -> None:
        """
        A message that goes during a session is refused by LIST, RETR and TOP.  STAT, LIST and
        the other messages still work.
        """
        session = self._session()
        session.logIn()
        sizes = [len(_body(session.ok(b"RETR %d" % number))) for number in range(1, 5)]
        session.quit()
        session = self._furtherSession()
        session.logIn()
        try:
            self.remove(self._uniqueID(session, 2))
        except NotImplementedError:
            session.vanish()
            self.skipTest("remove() is not implemented")
        session.ok(b"STAT")
        listed = dict(line.split(b" ")[:2] for line in _body(session.ok(b"LIST")).splitlines())
        for number, size in enumerate(sizes, 1):
            if number != 2:
                self.assertEqual(listed[b"%d" % number], b"%d" % size)
                self.assertEqual(session.ok(b"LIST %d" % number), b"+OK %d %d\r\n" % (number, size))
                self.assertEqual(len(_body(session.ok(b"RETR %d" % number))), size)
        for line in (b"RETR 2", b"TOP 2 0"):
            self.assertEqual(session.say(line)[:4], b"-ERR")
        session.quit()

    def _uniqueID(self, session: _Session, number: int) -> str:
        return session.ok(b"UIDL %d" % number).split()[2].decode("ascii")

    # --- a session --------------------------------------------------------------

    def test_retrAndTop(self) -> None:
        """
        RETR sends each message whole and unchanged; TOP sends its beginning, up to the whole
        message.
        """
        session = self._session()
        session.logIn()
        for number, message in enumerate(_MESSAGES, 1):
            got = _body(session.ok(b"RETR %d" % number))
            self.assertEqual(got, _normalised(message) if message else got)
            everything = _body(session.ok(b"TOP %d 99999999" % number))
            self.assertEqual(everything, got)
            header = got.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if b"\r\n\r\n" in got else got
            self.assertEqual(_body(session.ok(b"TOP %d 0" % number)), header)
            line = got[len(header) :].partition(b"\r\n")[0] + b"\r\n" if header != got else b""
            self.assertEqual(_body(session.ok(b"TOP %d 1" % number)), header + line)
        session.quit()

    def test_sizesInASession(self) -> None:
        """
        LIST and STAT give the exact number of octets that RETR sends.
        """
        session = self._session()
        session.logIn()
        sizes = [len(_body(session.ok(b"RETR %d" % number))) for number in range(1, 5)]
        session.quit()
        for order in ((b"STAT", b"LIST"), (b"LIST", b"STAT")):
            session = self._furtherSession()
            session.logIn()
            said = {line: session.ok(line) for line in order}
            self.assertEqual(said[b"STAT"], b"+OK 4 %d\r\n" % sum(sizes))
            listed = b"".join(b"%d %d\r\n" % each for each in enumerate(sizes, 1))
            self.assertEqual(_body(said[b"LIST"]), listed)
            for number, size in enumerate(sizes, 1):
                self.assertEqual(session.ok(b"LIST %d" % number), b"+OK %d %d\r\n" % (number, size))
            session.quit()

    def test_logout(self) -> None:
        """
        A mailbox with L{IMailboxLogout} is called once when its session has ended: after
        QUIT, QAUT and a lost connection.
        """
        session = self._session()
        session.logIn()
        session.ok(b"QAUT")
        session.logIn()
        session.quit()
        further = self._furtherSession()
        further.logIn()
        further.vanish()
        if not IMailboxLogout.providedBy(self.again()):
            self.skipTest("it does not provide IMailboxLogout")
        self.assertEqual(session.calls.count("logout"), 2)
        self.assertEqual((further.calls.count("logout"), further.calls[-1]), (1, "logout"))

    def test_lateAnswers(self) -> None:
        """
        Results returned at once, by coroutines or later make no difference.
        """
        session = self._session()
        said = [session.say(line) for line in _READING]
        session.over()
        for kind in (Async, Delayed):
            further = self._furtherSession(kind=kind)
            self.assertEqual([further.say(line) for line in _READING], said)
            further.over()

    def test_vanishingClient(self) -> None:
        """
        A client that disconnects while a result is awaited leaves the mailbox unlocked and
        unchanged.
        """
        mailbox, listed = self._opened()
        self._closed(mailbox)
        for steps in range(_MAX_TURNS):
            session = self._furtherSession(kind=Delayed, steps=steps)
            try:
                for line in _READING:
                    session.say(line)
            except StopScript:
                session.vanish()
            else:
                session.over()
                break
            self.assertEqual(self._left(), listed)
        self.assertTrue(steps > len(_READING) // 2)

    # --- deleting ---------------------------------------------------------------

    def test_delete(self) -> None:
        """
        Deleted messages are gone in this session and the next; the others stay.
        """
        mailbox, listed = self._opened()
        self._deletable(mailbox)
        self._now(mailbox.messageDelete, self._info(), [listed[0], listed[2]])
        with self.assertRaises(POP3ResponseError):
            self._content(mailbox, listed[0])
        self.assertFalse(self._now(mailbox.messageExists, self._info(), listed[0]))
        self.assertEqual(self._listed(mailbox), [listed[1], listed[3]])
        self._closed(mailbox)
        self.assertEqual(self._left(), [listed[1], listed[3]])

    def test_deleteTwice(self) -> None:
        """
        Deleting a message that has gone already succeeds.
        """
        mailbox, listed = self._opened()
        self._deletable(mailbox)
        self._now(mailbox.messageDelete, self._info(), [listed[0]])
        self._now(mailbox.messageDelete, self._info(), [listed[0], listed[1]])
        self._now(mailbox.messageDelete, self._info(), [listed[1]])
        self.assertEqual(self._listed(mailbox), listed[2:])
        self._closed(mailbox)
        self.assertEqual(self._left(), listed[2:])

    def test_deleteAllOrNone(self) -> None:
        """
        A deletion that fails deletes nothing.  After a failed QUIT the messages stay and the
        mailbox is unlocked.
        """
        mailbox, listed = self._opened()
        self._deletable(mailbox)
        contents = [self._content(mailbox, each) for each in listed]
        try:
            self.failDeletion()
        except NotImplementedError:
            self._closed(mailbox)
            self.skipTest("failDeletion() is not implemented")
        with self.assertRaises(POP3ResponseError):
            self._now(mailbox.messageDelete, self._info(), listed)
        self.assertEqual(self._listed(mailbox), listed)
        self._closed(mailbox)
        session = self._furtherSession()
        session.logIn()
        for number in range(1, 5):
            session.ok(b"DELE %d" % number)
        self.assertTrue(session.say(b"QUIT").startswith(b"-ERR"))
        session.over()
        mailbox, left = self._reopened()
        self.assertEqual(left, listed)
        self.assertEqual([self._content(mailbox, each) for each in listed], contents)
        self._closed(mailbox)

    def test_deleteAtQUIT(self) -> None:
        """
        Marked messages are deleted at QUIT, not before, and neither after RSET nor after a
        lost connection.
        """
        session = self._session()
        self._deletable()
        session.logIn()
        session.ok(b"DELE 1")
        session.ok(b"RSET")
        session.quit()
        listed = self._left()
        self.assertEqual(len(listed), 4)
        session = self._furtherSession()
        session.logIn()
        session.ok(b"DELE 1")
        session.ok(b"DELE 4")
        session.vanish()
        self.assertEqual(self._left(), listed)
        session = self._furtherSession()
        session.logIn()
        session.ok(b"DELE 1")
        session.ok(b"DELE 3")
        session.quit()
        self.assertEqual(self._left(), [listed[1], listed[3]])

    def test_deleteAtOnce(self) -> None:
        """
        DELI and CORE delete at once, and the session goes on.
        """
        session = self._session()
        self._deletable()
        session.logIn()
        session.ok(b"DELI 1")
        self.assertEqual(session.say(b"RETR 1")[:4], b"-ERR")
        session.ok(b"DELE 2")
        self.assertEqual(session.ok(b"CORE")[:20], b"+OK [ACTIVITY/NONE] ")
        self.assertTrue(session.ok(b"STAT").startswith(b"+OK 2 "))
        self.assertEqual(_body(session.ok(b"RETR 2")), _normalised(_MESSAGES[3]))
        session.vanish()
        self.assertEqual(len(self._left()), 2)

    def test_deletionIsFinished(self) -> None:
        """
        A client that disconnects during its deletion does not stop it; the mailbox is unlocked
        after the deletion.
        """
        session = self._session(kind=Delayed)
        self._deletable()
        session.logIn()
        session.ok(b"DELE 1")
        session.ok(b"DELE 3")
        session.send(b"QUIT")
        self.assertEqual(session.waitsFor, "messageDelete")
        session.vanish()
        if "unlock" in session.calls:
            order = [each for each in session.calls if each in ("messageDelete", "unlock")]
            self.assertEqual(order, ["messageDelete", "unlock"])
        mailbox, listed = self._reopened()
        self.assertEqual(len(listed), 2)
        self.assertEqual(self._content(mailbox, listed[0])[:12], _MESSAGES[1][:12])
        self._closed(mailbox)

    def test_readOnly(self) -> None:
        """
        A read-only mailbox refuses deletion and deletes nothing.
        """
        session = self._session()
        if not IReadOnlyMailbox.providedBy(self.again()):
            self.skipTest("it does not provide IReadOnlyMailbox")
        listed = self._left()
        session.logIn()
        for line in (b"DELE 1", b"DELI 1"):
            self.assertTrue(session.say(line).startswith(b"-ERR [READ-ONLY] "))
        session.quit()
        self.assertFalse("messageDelete" in session.calls)
        self.assertEqual(self._left(), listed)

    # --- the lock ---------------------------------------------------------------

    def test_lock(self) -> None:
        """
        Only one session can lock an exclusive mailbox; the next one can after the unlock.
        """
        mailbox = self.makeMailbox(list(_MESSAGES))
        self._exclusive(mailbox)
        other = self.again()
        self._now(mailbox.lock, self._info(), lambda: False)
        with self.assertRaises(POP3ResponseError) as caught:
            self._now(other.lock, self._info(), lambda: False)
        self.assertEqual(caught.exception.code, "IN-USE")
        self._now(mailbox.unlock, self._info())
        self._now(other.lock, self._info(), lambda: False)
        self._now(other.unlock, self._info())
        self._now(mailbox.lock, self._info(), lambda: False)
        self._closed(mailbox)

    def test_requestRelease(self) -> None:
        """
        A session that is asked to release the mailbox, and does, makes room for another one; a
        session that refuses keeps the mailbox.
        """
        mailbox = self.makeMailbox(list(_MESSAGES))
        self._exclusive(mailbox)
        asked: list[bool] = []

        def requestRelease() -> bool:
            gives = bool(asked)
            asked.append(gives)
            if gives:
                self._now(mailbox.unlock, self._info())
            return gives

        self._now(mailbox.lock, self._info(), requestRelease)
        other = self.again()
        for gives in (False, True):
            before = len(asked)
            try:
                self._now(other.lock, self._info(), lambda: False)
                isHeld = True
            except POP3ResponseError as error:
                self.assertEqual(error.code, "IN-USE")
                isHeld = False
            if len(asked) == before:
                self._closed(mailbox)
                self.skipTest("it does not call requestRelease")
            self.assertEqual(asked[before:], [gives])
            self.assertEqual(isHeld, gives)
        self._closed(other)

    def test_lockInASession(self) -> None:
        """
        The mailbox is locked from login to SLEE, and from WAKE to QAUT, QUIT or the loss of the
        client; between these it is free.
        """
        session = self._session()
        self._exclusive(self.again())

        def held() -> list[str]:
            return [each for each in session.calls if each in ("lock", "unlock")]

        session.logIn()
        pairs = ["lock"]
        for line, isFree in (
            (b"CORE", False),
            (b"SLEE", True),
            (b"WAKE", False),
            (b"QAUT", True),
            (b"XLOG alice secret", False),
            (b"QUIT", True),
        ):
            session.ok(line)
            if isFree == (pairs[-1] == "lock"):
                pairs.append("unlock" if isFree else "lock")
            self.assertEqual(held(), pairs, line)
            self.assertEqual(self._isFree(), isFree, line)
        session.over()
        session = self._furtherSession()
        session.logIn()
        self.assertFalse(self._isFree())
        session.vanish()
        self.assertEqual(held(), ["lock", "unlock"])
        self.assertTrue(self._isFree())

    def test_refusedSession(self) -> None:
        """
        Login and WAKE are refused while another session has locked the mailbox, and do not
        affect that session.
        """
        session = self._session()
        self._exclusive(self.again())
        session.logIn()
        session.ok(b"SLEE")
        mailbox, listed = self._reopened()
        self.assertTrue(session.say(b"WAKE").startswith(b"-ERR [IN-USE] "))
        further = self._furtherSession()
        self.assertTrue(further.say(b"XLOG alice secret").startswith(b"-ERR [IN-USE] "))
        further.vanish()
        self.assertFalse(self._isFree())
        self.assertEqual(self._listed(mailbox), listed)
        self._closed(mailbox)
        session.ok(b"WAKE")
        session.quit()
        self.assertTrue(self._isFree())

    # --- sleeping and new mail ----------------------------------------------------

    def test_sleep(self) -> None:
        """
        After SLEE and WAKE the mailbox is unchanged, without the deleted messages.
        """
        session = self._session()
        isReadOnly = IReadOnlyMailbox.providedBy(self.again())
        session.logIn()
        before = session.ok(b"UIDL")
        session.ok(b"SLEE")
        self.assertEqual(session.ok(b"WAKE")[:20], b"+OK [ACTIVITY/NONE] ")
        self.assertEqual(session.ok(b"UIDL"), before)
        if not isReadOnly:
            session.ok(b"DELE 2")
            session.ok(b"SLEE")
            self.assertEqual(session.ok(b"WAKE")[:20], b"+OK [ACTIVITY/NONE] ")
            self.assertEqual(len(_body(session.ok(b"UIDL")).splitlines()), 3)
            self.assertEqual(_body(session.ok(b"RETR 1")), _normalised(_MESSAGES[0]))
        session.quit()

    def test_newMail(self) -> None:
        """
        WAKE and CORE announce new mail once and list it; until then the session keeps its
        listing.
        """
        session = self._session()
        session.logIn()
        before = session.ok(b"UIDL")
        self._deliver()
        self.assertEqual(session.ok(b"UIDL"), before)
        self.assertTrue(session.ok(b"STAT").startswith(b"+OK 4 "))
        self.assertEqual(session.ok(b"CORE")[:19], b"+OK [ACTIVITY/NEW] ")
        self.assertEqual(_body(session.ok(b"RETR 5")), _ARRIVED)
        self.assertEqual(session.ok(b"CORE")[:20], b"+OK [ACTIVITY/NONE] ")
        self.assertTrue(session.ok(b"UIDL").startswith(before[:-3]))
        session.ok(b"SLEE")
        self._deliver()
        self.assertEqual(session.ok(b"WAKE")[:19], b"+OK [ACTIVITY/NEW] ")
        self.assertEqual(_body(session.ok(b"RETR 6")), _ARRIVED)
        session.ok(b"SLEE")
        self.assertEqual(session.ok(b"WAKE")[:20], b"+OK [ACTIVITY/NONE] ")
        session.quit()

    def test_arrivedMeanwhile(self) -> None:
        """
        A message that arrived after login can be read by its unique-id, as number 0, if
        C{messageExists} returns true for it, and otherwise not.
        """
        session = self._session()
        isReadOnly = IReadOnlyMailbox.providedBy(self.again())
        session.logIn()
        before = session.ok(b"LIST")
        uniqueID = self._deliver()
        if uniqueID is None:
            session.vanish()
            self.skipTest("the unique-id is not known before the next listing")
        name = f"UID:{uniqueID}".encode("ascii")
        reply = session.say(b"RETR " + name)
        if reply.startswith(b"-ERR [UID/NOT-FOUND]"):
            # messageExists may always return false; then every command refuses.
            self.assertEqual(session.say(b"LIST " + name), reply)
        else:
            self.assertEqual(_body(reply), _ARRIVED)
            self.assertEqual(session.ok(b"LIST " + name), b"+OK 0 %d\r\n" % len(_ARRIVED))
            self.assertEqual(_body(session.ok(b"TOP " + name + b" 0"))[:14], _ARRIVED[:14])
            self.assertEqual(session.ok(b"LIST"), before)
            if not isReadOnly:
                session.ok(b"DELE " + name)
        session.quit()
        left = self._left()
        self.assertEqual(len(left), 5 if isReadOnly or reply.startswith(b"-ERR") else 4)
        self.assertEqual(uniqueID in left, len(left) == 5)

    def test_watch(self) -> None:
        """
        A mailbox with L{INewMailNotifier} reports a new message before it lists it, until the
        watch is ended.
        """
        mailbox = self.makeMailbox(list(_MESSAGES))
        if not INewMailNotifier.providedBy(mailbox):
            self.skipTest("it does not provide INewMailNotifier")
        reported: list[None] = []
        end = self._now(mailbox.watchMailbox, self._info(), lambda: reported.append(None))
        self.assertTrue(callable(end), "watchMailbox has to return a function that ends the watch")
        self._lock(mailbox)
        self._listed(mailbox)
        before = len(reported)
        self._deliver()
        for _ in range(_MAX_TURNS):
            if len(reported) > before:
                break
            self._advance()
        self._listed(mailbox)
        self.assertTrue(len(reported) > before, "the mailbox did not report a message that arrived")
        self._now(end)
        before = len(reported)
        self._deliver()
        for _ in range(_MAX_TURNS):
            self._advance()
        self.assertEqual(len(reported), before, "a change was reported after the watch ended")
        self._closed(mailbox)
