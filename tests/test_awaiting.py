"""
Results that come at once, late or never; shielded calls.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from pop3svc.awaiting import CallTimeout, Shielded, callWithTimeout, maybeAwait, settled
from tests.support.coroutines import start


class CallTests(TestCase):
    """
    Values, Deferreds and coroutines, handled alike.
    """

    def setUp(self) -> None:
        self.clock = Clock()

    def ask(self, call: Any, *arguments: Any) -> tuple[Deferred[Any], list[Any]]:
        return start(callWithTimeout(call, *arguments, clock=self.clock, timeout=10))

    def test_value(self) -> None:
        self.assertEqual(self.ask(lambda a: a, 5)[1], [5])

    def test_deferred(self) -> None:
        self.assertEqual(self.ask(succeed, 5)[1], [5])
        answer: Deferred[int] = Deferred()
        _, got = self.ask(lambda: answer)
        self.assertEqual(got, [])
        answer.callback(6)
        self.assertEqual(got, [6])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_coroutine(self) -> None:
        answer: Deferred[int] = Deferred()

        async def call(more: int) -> int:
            return more + await answer

        _, got = self.ask(call, 1)
        answer.callback(6)
        self.assertEqual(got, [7])

    def test_anyAwaitable(self) -> None:
        class Delayed:
            def __init__(self, answer: Deferred[bool]) -> None:
                self.answer = answer

            def __await__(self) -> Any:
                return self.answer.__await__()

        self.assertEqual(self.ask(lambda: Delayed(succeed(False)))[1], [False])
        answer: Deferred[bool] = Deferred()
        _, got = self.ask(lambda: Delayed(answer))
        answer.callback(False)
        self.assertEqual(got, [False])
        _, got = self.ask(lambda: Delayed(Deferred()))
        self.clock.advance(11)
        self.assertTrue(got[0].check(CallTimeout))

    def test_failure(self) -> None:
        for call in (lambda: fail(ValueError("x")), lambda: 1 // 0):
            _, got = self.ask(call)
            self.assertTrue(got[0].check(ValueError, ZeroDivisionError))
        answer: Deferred[int] = Deferred()
        _, got = self.ask(lambda: answer)
        answer.errback(ValueError("x"))
        self.assertTrue(got[0].check(ValueError))

    def test_timeout(self) -> None:
        cancelled: list[object] = []
        _, got = self.ask(lambda: Deferred(cancelled.append))
        self.clock.advance(9.9)
        self.assertEqual(got, [])
        self.clock.advance(0.2)
        self.assertTrue(got[0].check(CallTimeout))
        self.assertEqual(len(cancelled), 1)

    def test_timeoutOfACallThatIgnoresCancellation(self) -> None:
        async def stubborn() -> int:
            try:
                await Deferred()
            except CancelledError:
                pass
            await never
            return 1

        never: Deferred[None] = Deferred()
        _, got = self.ask(stubborn)
        self.clock.advance(11)
        self.assertTrue(got[0].check(CallTimeout))
        never.callback(None)

    def test_cancel(self) -> None:
        cancelled: list[object] = []
        asking, got = self.ask(lambda: Deferred(cancelled.append))
        asking.cancel()
        self.assertEqual(len(cancelled), 1)
        self.assertTrue(got[0].check(CancelledError))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_maybeAwait(self) -> None:
        for call in (lambda: 5, lambda: succeed(5)):
            self.assertEqual(start(maybeAwait(call))[1], [5])

    def test_shieldedCallGoesOn(self) -> None:
        """
        The call goes on after a waiter was cancelled or has timed out.
        """
        answer: Deferred[int] = Deferred()
        carried = Shielded(lambda: answer)
        waiting, got = start(settled(carried.outcome(self.clock, 10)))
        waiting.cancel()
        self.assertTrue(got[0].check(CancelledError))
        _, late = start(settled(carried.outcome(self.clock, 10)))
        self.clock.advance(11)
        self.assertTrue(late[0].check(CallTimeout))
        _, patient = start(settled(carried.outcome()))
        self.clock.advance(1000)
        self.assertEqual(patient, [])
        answer.callback(5)
        self.assertEqual(patient, [5])
        self.assertTrue(carried.done)
        self.assertEqual(start(settled(carried.outcome()))[1], [5])

    def test_shieldedCallFails(self) -> None:
        self.assertRaises(ValueError, Shielded(fail, ValueError("x")).outcome)
