"""
Mailboxes around another mailbox: one that records, two that answer otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from zope.interface import directlyProvides, providedBy

__all__ = ["Coroutines", "Later", "Recording"]

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
    ]
)


class _Around:
    """
    Provides what the mailbox inside provides.
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


class Recording(_Around):
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


class Coroutines(_Around):
    """
    Every answer is a coroutine.
    """

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        async def late(*arguments: Any) -> Any:
            return await maybeDeferred(call, *arguments)

        return late


class Later(_Around):
    """
    Every answer is a Deferred that fires when C{answer()} says so.
    """

    def __init__(self, mailbox: Any) -> None:
        super().__init__(mailbox)
        self.waiting: list[tuple[str, Deferred[Any], Callable[[], Any]]] = []
        self.cancelled: list[str] = []

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def later(*arguments: Any) -> Any:
            answer: Deferred[Any] = Deferred(lambda _: self._cancel(answer, name))
            self.waiting.append((name, answer, lambda: call(*arguments)))
            return answer

        return later

    def _cancel(self, answer: Deferred[Any], name: str) -> None:
        self.waiting = [each for each in self.waiting if each[1] is not answer]
        self.cancelled.append(name)

    def answer(self) -> str:
        """
        Let the oldest call happen.

        @return: its name.
        """
        name, answer, call = self.waiting.pop(0)
        maybeDeferred(call).chainDeferred(answer)
        return name

    def answerAll(self) -> None:
        """
        Let calls happen until none waits.
        """
        while self.waiting:
            self.answer()
