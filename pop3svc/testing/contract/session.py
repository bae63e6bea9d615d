"""
The sessions that the contract runs.  Each has a client in memory, and records the calls to the
mailboxes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import maybeDeferred
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, globalLogPublisher
from zope.interface import directlyProvides, implementer, providedBy

from pop3svc.interfaces import (
    IChunkedContent,
    IFileContent,
    IMessageContent,
    IPOP3MailboxProvider,
)
from pop3svc.lineendings import CRLFNormalizer
from pop3svc.service.factory import POP3Factory
from pop3svc.testing.client import Client
from pop3svc.testing.contract.loop import MAX_TURNS, Bridged, Loop
from pop3svc.testing.wrappers import Delayed, Recording, Wrapper

__all__ = ["CONTENTS", "ContractSession", "StopScript", "bodyOf", "normalised"]

CONTENTS = (IMessageContent, IChunkedContent, IFileContent)


class StopScript(Exception):
    """
    Ends the script of a client early.
    """


def bodyOf(reply: bytes) -> bytes:
    """
    @return: the octets after the first line of a multi-line reply, without dot-stuffing.
    """
    assert reply.startswith(b"+OK") and reply.endswith(b"\r\n.\r\n"), reply[:200]
    lines = reply.split(b"\r\n")[1:-2]
    return b"".join(line.removeprefix(b".") + b"\r\n" for line in lines)


def normalised(message: bytes) -> bytes:
    lineEnds = CRLFNormalizer()
    return lineEnds.feed(message) + lineEnds.finish()


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
        if any(each.providedBy(content) for each in CONTENTS):
            content = _Content(content)
        self._opened.append(content)
        return content


def _isClosedOnce(content: Any) -> bool:
    if isinstance(content, _Content):
        return content.closings == 1
    if inspect.isgenerator(content):
        return inspect.getgeneratorstate(content) == inspect.GEN_CLOSED
    return bool(getattr(content, "closed", True))


@implementer(ILogObserver)
class ContractSession:
    """
    A client in memory, with a record of the calls to the mailboxes of its session.

    @ivar calls: the names of the calls, in order.
    """

    def __init__(
        self,
        mailboxes: Callable[[], Any],
        loop: Loop,
        advance: Callable[[], object],
        kind: type[Wrapper] | None = None,
        steps: int | None = None,
    ) -> None:
        """
        @param mailboxes: makes a mailbox for each login.
        @param loop: runs the coroutines of the mailboxes.
        @param advance: makes available the results for which the mailboxes wait.
        @param kind: a further wrapper for each mailbox, L{Async} or L{Delayed}; L{None} for none.
        @param steps: how many times the session may wait for a result before L{StopScript} is
            raised; L{None} for no limit.
        """
        self._mailboxes = mailboxes
        self._loop = loop
        self._advanceMailboxes = advance
        self._kind = kind
        self._steps = steps
        self._later: list[Delayed] = []
        self._opened: list[Any] = []
        self._failures: list[str] = []
        self.calls: list[str] = []
        globalLogPublisher.addObserver(self)
        self._factory = POP3Factory(_OneMailbox(self._make), clock=Clock())
        self._client = Client(self._factory)
        self._client.received()

    def forget(self) -> None:
        """
        Stop recording failures.
        """
        globalLogPublisher.removeObserver(self)

    def __call__(self, event: Any) -> None:
        """
        Record a failure that the service logs (L{twisted.logger.ILogObserver}).
        """
        failure = event.get("log_failure")
        if failure is not None:
            self._failures.append(failure.getTraceback())

    def _make(self) -> Any:
        made = Bridged(self._mailboxes(), self._loop)
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
        self._advanceMailboxes()

    @property
    def waitsFor(self) -> str:
        """
        The name of the call that the next L{Delayed.answer} makes; empty if no call waits.
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
        Wait until the service has answered all lines that were sent, or has closed the connection.

        @param line: the last line that was sent, for the text of the error.
        @return: the answers.
        @raise AssertionError: the service does not answer.
        """
        client = self._client
        for _ in range(MAX_TURNS):
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
        Send a command, wait for the beginning of its reply, and read nothing of the reply.
        """
        self._client.stall()
        self.send(line)
        for _ in range(MAX_TURNS):
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
        Wait until the session has ended.  Check that the service logged no failure, and that each
        content was closed once.
        """
        for _ in range(MAX_TURNS):
            if not self._factory.connections:
                break
            self._answer()
        assert not self._factory.connections, f"the session does not end, after {self.calls}"
        assert not self._failures, "errors were logged:\n" + self._tracebacks()
        open_ = [each for each in self._opened if not _isClosedOnce(each)]
        assert not open_, f"content not closed exactly once: {open_}"

    def _tracebacks(self) -> str:
        return "\n".join(self._failures)
