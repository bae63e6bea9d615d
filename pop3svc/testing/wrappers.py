"""
Mailboxes that wrap another mailbox.  One class records the calls, one returns coroutines, and one
returns results later.
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
        "surrogateSizes",
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
    Provides the interfaces of the wrapped mailbox.  Its calls go through the functions that
    L{around} returns.
    """

    def __init__(self, mailbox: Any) -> None:
        self.inside = mailbox
        directlyProvides(self, providedBy(mailbox))

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.inside, name)
        return self.around(name, value) if name in _CALLS else value

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """
        @return: the function to call instead of C{call}.
        """
        raise NotImplementedError


class Recording(Wrapper):
    """
    Records the names of the calls in C{calls}, and fails if two calls overlap.
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
    Returns a coroutine from each call.
    """

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        async def late(*arguments: Any) -> Any:
            return await maybeDeferred(call, *arguments)

        return late


class Delayed(Wrapper):
    """
    Returns a Deferred from each call, and makes the call in C{answer()}.  If the Deferred is
    cancelled before C{answer()}, the call is never made.  If it is cancelled after C{answer()}, the
    call is cancelled, too.
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
        Make the oldest waiting call.

        @return: the name of the call.
        """
        name, answer, begin = self.waiting.pop(0)

        def arrived(value: Any) -> None:
            # If the caller has cancelled the Deferred, ignore the result of the call.
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
        Make the waiting calls until no call is left.
        """
        while self.waiting:
            self.answer()
