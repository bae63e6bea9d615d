"""
Mailboxes around another mailbox: one that records, two that answer otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure
from zope.interface import directlyProvides, providedBy

__all__ = ["Async", "Delayed", "Recording", "Wrapper"]

_CALLS = frozenset(
    [
        "listMessageUniqueIDs",
        "messageExists",
        "messageSize",
        "messageSizes",
        "messageContent",
        "messageDelete",
        "lock",
        "unlock",
        "logout",
        "watchMailbox",
        "onSleep",
    ]
)


class Wrapper:
    """
    Provides what the mailbox inside provides; its calls are those that
    L{around} gives in their place.
    """

    def __init__(self, mailbox: Any) -> None:
        self.inside = mailbox
        directlyProvides(self, providedBy(mailbox))

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.inside, name)
        return self.around(name, value) if name in _CALLS else value

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """
        @return: what is called in place of C{call}.
        """
        raise NotImplementedError


class Recording(Wrapper):
    """
    Keeps the names of the calls in C{calls}, and fails when two overlap.
    """

    def __init__(self, mailbox: Any, calls: list[str] | None = None) -> None:
        super().__init__(mailbox)
        self.calls: list[str] = [] if calls is None else calls
        self._running: str | None = None

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*arguments: Any) -> Any:
            assert self._running is None, f"{name} while {self._running} is running"
            self.calls.append(name)
            self._running = name

            def over(value: Any) -> Any:
                self._running = None
                return value

            return maybeDeferred(call, *arguments).addBoth(over)

        return recorded


class Async(Wrapper):
    """
    Every answer is a coroutine.
    """

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        async def late(*arguments: Any) -> Any:
            return await maybeDeferred(call, *arguments)

        return late


class Delayed(Wrapper):
    """
    Every answer is a Deferred that fires when C{answer()} says so.  A call that
    is cancelled before that never happens; one that has begun is cancelled.
    """

    def __init__(self, mailbox: Any) -> None:
        super().__init__(mailbox)
        self.waiting: list[tuple[str, Deferred[Any], Callable[[], Deferred[Any]]]] = []
        self.cancelled: list[str] = []

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def later(*arguments: Any) -> Any:
            begun: list[Deferred[Any]] = []

            def begin() -> Deferred[Any]:
                begun.append(maybeDeferred(call, *arguments))
                return begun[0]

            def cancel(_: object) -> None:
                self.waiting = [each for each in self.waiting if each[1] is not answer]
                self.cancelled.append(name)
                for each in begun:
                    each.cancel()

            answer: Deferred[Any] = Deferred(cancel)
            self.waiting.append((name, answer, begin))
            return answer

        return later

    def answer(self) -> str:
        """
        Let the oldest call happen.

        @return: its name.
        """
        name, answer, begin = self.waiting.pop(0)

        def arrived(value: Any) -> None:
            # Whoever was cancelled waits for nothing any more.
            if answer.called:
                return
            if isinstance(value, Failure):
                answer.errback(value)
            else:
                answer.callback(value)

        begin().addBoth(arrived)
        return name

    def answerAll(self) -> None:
        """
        Let calls happen until none waits.
        """
        while self.waiting:
            self.answer()
