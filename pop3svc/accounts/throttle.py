"""
Who may try to log in, and how soon a refusal is answered.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import lru_cache
from hashlib import blake2b
from typing import Any
from weakref import WeakKeyDictionary

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from zope.interface import implementer

from pop3svc.accounts.knownnetworks import KnownNetworks
from pop3svc.accounts.strikes import GUESS, Attempt, BanEngine, Strikes, UserThrottle
from pop3svc.awaiting import isAwaitable
from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import ILoginThrottle, IPOP3ConnectionInfo
from pop3svc.networks import networkOf

__all__ = ["LoginGuard", "SharedThrottle"]


class _Waiter:
    """
    An attempt that waits for others that are under way.
    """

    __slots__ = ("answer", "attempt", "info", "timer")

    def __init__(self, info: Any, attempt: Attempt) -> None:
        self.info = info
        self.attempt = attempt
        self.answer: Deferred[bool]
        self.timer: IDelayedCall


class _Logged:
    """
    Wrong guesses of an address that the log has named.  A program that repeats one wrong
    password every few minutes is named once an hour: fail2ban would ban the address of
    everybody beside it.
    """

    # Seconds from one line for a guess to the next, and how many are remembered.
    AGAIN = 3600
    BOUND = 16_384

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._when: OrderedDict[tuple[str, bytes], float] = OrderedDict()

    def add(self, place: str, guess: bytes) -> bool:
        """
        A guess was wrong.

        @return: was it named lately, so that it is not to be named again?
        """
        now, key = self._clock.seconds(), (place, guess)
        last = self._when.get(key)
        if last is not None and now - last < self.AGAIN:
            return True
        self._when[key] = now
        self._when.move_to_end(key)
        if len(self._when) > self.BOUND:
            self._when.popitem(last=False)
        return False


@implementer(ILoginThrottle)
class SharedThrottle:
    """
    Asks limits that count alike in several processes.  What changes something here is told
    to the others, which do the same.

    An attempt counts from the moment it is let through.  If it might be one too many
    when those that are under way have failed, it waits for them.
    """

    def __init__(
        self,
        clock: IReactorTime,
        limits: Iterable[BanEngine | UserThrottle] = (),
        known: KnownNetworks | None = None,
        tell: Callable[[str, str | None, str, str], object] | None = None,
        patience: float = 30,
    ) -> None:
        """
        @param limits: L{BanEngine} and L{UserThrottle} with the default numbers, if there
            are none.
        @param known: what the limits were given.
        @param tell: called with what the others' L{heard} is to be called with.
        @param patience: seconds that an attempt waits for others.
        """
        self.known = KnownNetworks() if known is None else known
        self._clock = clock
        self._limits = list(limits) or [
            BanEngine(clock, self.known),
            UserThrottle(clock, self.known),
        ]
        self._tell = tell
        self._patience = patience
        self._logged = _Logged(clock)
        # For the digests; all processes of a service have the same one.
        self._key = secrets.token_bytes(32)
        self._user = self._digests()
        # Attempts that the others are told of at the reactor's next turn, unless they
        # are over by then.
        self._untold: dict[Attempt, None] = {}
        self._waiting: dict[tuple[Strikes, Any], dict[_Waiter, None]] = {}
        self._changed: set[tuple[Strikes, Any]] = set()

    def _digests(self) -> Callable[[str], bytes]:
        key = self._key

        # The same few users come again and again.
        @lru_cache(1024)
        def user(username: str) -> bytes:
            name = username.encode("utf-8", "surrogateescape")
            return blake2b(name, key=key, digest_size=16).digest()

        return user

    def _attempt(self, clientIP: str | None, username: str, guess: bytes) -> Attempt:
        isKnown = self.known.isKnown(username, clientIP)
        return Attempt(clientIP, username, self._user(username), guess, isKnown)

    def _guess(self, username: str, password: str) -> bytes:
        name = username.encode("utf-8", "surrogateescape")
        secret = password.encode("utf-8", "surrogateescape")
        return blake2b(
            b"%d:%b%b" % (len(name), name, secret), key=self._key, digest_size=GUESS
        ).digest()

    def mayLogin(self, info: IPOP3ConnectionInfo, username: str, password: str) -> Any:
        """
        See L{ILoginThrottle.mayLogin}.
        """
        attempt = self._attempt(info.clientIP, username, self._guess(username, password))
        answer = self._decide(info, attempt)
        return self._wait(info, attempt) if answer is None else answer

    def _decide(self, info: Any, attempt: Attempt) -> bool | None:
        """
        Let an attempt through or refuse it.

        @return: L{None}: it has to wait for others.
        """
        counts: list[tuple[Strikes, Any]] = []
        for limit in self._limits:
            counts += limit.counts(attempt)
        guess, waitsFor = attempt.guess, None
        for each in counts:
            table, key = each
            if table.isFull(key):
                self._refuse(attempt, counts)
                return False
            if table.mustWait(key, guess):
                waitsFor = each
        if waitsFor is not None:
            attempt.waitsFor = waitsFor
            return None
        for table, key in counts:
            table.begin(key, guess)
        attempt.counted = counts
        info.loginAttempt = attempt
        if self._tell is not None:
            self._sayBegun(attempt)
        return True

    def _refuse(self, attempt: Attempt, counts: list[tuple[Strikes, Any]]) -> None:
        for table, key in counts:
            if table.isFull(key):
                table.logRefused(attempt, table.renew(key))
        self._say("refused", attempt)

    # --- waiting --------------------------------------------------------------

    def _wait(self, info: Any, attempt: Attempt) -> Deferred[bool]:
        waiter = _Waiter(info, attempt)

        def leave(_: object = None) -> None:
            if waiter.timer.active():
                waiter.timer.cancel()
            self._leave(waiter)

        def late() -> None:
            leave()
            waiter.answer.errback(POP3ResponseError("Too busy, try again later.", "SYS/TEMP"))

        waiter.answer = Deferred(leave)
        waiter.timer = self._clock.callLater(self._patience, late)
        self._enter(waiter)
        return waiter.answer

    def _enter(self, waiter: _Waiter) -> None:
        place = waiter.attempt.waitsFor
        assert place is not None
        self._waiting.setdefault(place, {})[waiter] = None

    def _leave(self, waiter: _Waiter) -> None:
        place = waiter.attempt.waitsFor
        assert place is not None
        waiting = self._waiting.get(place, {})
        waiting.pop(waiter, None)
        if not waiting:
            self._waiting.pop(place, None)

    def _lookAgain(self, keys: list[tuple[Strikes, Any]]) -> None:
        """
        Some attempts are over: whoever waits for them may go on, at the next turn, because
        a waiter that goes on may end others at once.
        """
        if not self._waiting:
            return
        changed = [each for each in keys if each in self._waiting]
        if changed and not self._changed:
            self._clock.callLater(0, self._wakeAll)
        self._changed.update(changed)

    def _wakeAll(self) -> None:
        changed, self._changed = self._changed, set()
        for place in changed:
            self._wake(place)

    def _wake(self, place: tuple[Strikes, Any]) -> None:
        while place in self._waiting:
            waiter = next(iter(self._waiting[place]))
            attempt = waiter.attempt
            # Another login of this user may have succeeded from there.
            attempt.isFromKnownNetwork = self.known.isKnown(attempt.username, attempt.clientIP)
            answer = self._decide(waiter.info, attempt)
            if answer is None:
                if attempt.waitsFor == place:
                    return
                moved, attempt.waitsFor = attempt.waitsFor, place
                self._leave(waiter)
                attempt.waitsFor = moved
                self._enter(waiter)
                continue
            attempt.waitsFor = place
            self._leave(waiter)
            waiter.timer.cancel()
            waiter.answer.callback(answer)

    # --- the end of an attempt --------------------------------------------------

    def _over(self, info: Any) -> Attempt | None:
        attempt: Attempt | None = info.loginAttempt
        if attempt is not None:
            info.loginAttempt = None
            for table, key in attempt.counted:
                table.takeBack(key, attempt.guess)
        return attempt

    def loginFailed(self, info: IPOP3ConnectionInfo, username: str) -> bool:
        """
        See L{ILoginThrottle.loginFailed}.
        """
        attempt = self._over(info)
        if attempt is None:
            return False
        self._failed(attempt)
        return self._logged.add(attempt.place, attempt.guess)

    def _failed(self, attempt: Attempt) -> None:
        self._untold.pop(attempt, None)
        self._say("failed", attempt)
        for table, key in attempt.counted:
            if table.add(key, attempt.guess):
                table.logFilled(attempt)
        self._lookAgain(attempt.counted)

    def loginSucceeded(self, info: IPOP3ConnectionInfo, username: str) -> None:
        """
        See L{ILoginThrottle.loginSucceeded}.
        """
        attempt = self._over(info)
        if attempt is None:
            return
        isNews = self.known.add(username, attempt.clientIP)
        for limit in self._limits:
            isNews = limit.succeeded(attempt) or isNews
        self._takenBack(attempt, "succeeded" if isNews else "over")

    def loginAbandoned(self, info: IPOP3ConnectionInfo, username: str, isLost: bool) -> None:
        """
        See L{ILoginThrottle.loginAbandoned}.
        """
        attempt = self._over(info)
        if attempt is None:
            return
        # A client that leaves before the refusal has seen that it was not let in at once.
        if attempt.wasRefused or (isLost and attempt.isGuess):
            self._failed(attempt)
        else:
            self._takenBack(attempt, "over")

    def _takenBack(self, attempt: Attempt, event: str) -> None:
        if self._tell is not None:
            wasUntold = attempt in self._untold
            self._untold.pop(attempt, None)
            # Most logins change nothing, and there are many.
            if event == "succeeded" or not wasUntold:
                self._say(event, attempt)
        if self._waiting:
            self._lookAgain(attempt.counted)

    # --- other processes ----------------------------------------------------------

    def _say(self, event: str, attempt: Attempt) -> None:
        if self._tell is not None:
            self._tell(event, attempt.clientIP, attempt.username, attempt.guess.hex())

    def _sayBegun(self, attempt: Attempt) -> None:
        if not attempt.isFromKnownNetwork:
            self._say("begun", attempt)
            return
        if not self._untold:
            self._clock.callLater(0, self._sayRest)
        self._untold[attempt] = None

    def _sayRest(self) -> None:
        untold, self._untold = self._untold, {}
        for attempt in untold:
            self._say("begun", attempt)

    def heard(self, event: str, clientIP: str | None, username: str, guess: str) -> None:
        """
        Another process has told.
        """
        attempt = self._attempt(clientIP, username, bytes.fromhex(guess))
        keys = [each for limit in self._limits for each in limit.keys(attempt)]
        counts = [each for limit in self._limits for each in limit.counts(attempt)]
        if event == "begun":
            for table, key in counts:
                table.begin(key, attempt.guess)
            return
        if event == "refused":
            for table, key in counts:
                if table.isFull(key):
                    table.renew(key)
            return
        for table, key in keys:
            table.takeBack(key, attempt.guess)
        if event == "failed":
            for table, key in counts:
                table.add(key, attempt.guess)
            self._logged.add(attempt.place, attempt.guess)
        elif event == "succeeded":
            self.known.add(username, clientIP)
            for limit in self._limits:
                limit.succeeded(attempt)
        self._lookAgain(keys)

    def state(self) -> Any:
        """
        @return: what another process needs to go on, as JSON has it.
        """
        tables = [table.state() for limit in self._limits for table in limit.tables]
        return [self._key.hex(), self.known.state(), tables]

    def restore(self, state: Any) -> None:
        """
        Go on from what L{state} has returned.
        """
        key, known, tables = state
        self._key = bytes.fromhex(key)
        self._user = self._digests()
        self.known.restore(known)
        own = [table for limit in self._limits for table in limit.tables]
        for table, each in zip(own, tables, strict=True):
            table.restore(each)


@implementer(ILoginThrottle)
class LoginGuard:
    """
    Asks another throttle, and answers every refusal a set time after the attempt arrived,
    whatever the reason.  Refusals of one address come one after the other across all its
    connections, each later than the one before.
    """

    # Seconds: longer than a hash takes; from one refusal of an address to the next,
    # growing by itself each time up to a bound; until an address begins anew.
    AFTER = 1.0
    STEP = 0.5
    LONGEST = 5.0
    # And no refusal waits longer than this, however many are before it.
    PATIENCE = 60.0
    FORGOTTEN = 600
    # Addresses that are remembered; the oldest go first.  One costs some 300 octets.
    BOUND = 65536
    # Octets of a name; a longer one is nobody's, and is refused before it is counted.
    LONGEST_NAME = 255

    def __init__(self, clock: IReactorTime, throttle: Any) -> None:
        """
        @param throttle: L{ILoginThrottle}
        """
        self._clock = clock
        self._throttle = ILoginThrottle(throttle)
        # Of a client that is lost meanwhile nothing stays.
        self._arrived: WeakKeyDictionary[Any, float] = WeakKeyDictionary()
        # Refusals of an address, when the last one was noted, and when it is due.
        self._refusals: OrderedDict[str, tuple[int, float, float]] = OrderedDict()

    def mayLogin(self, info: IPOP3ConnectionInfo, username: str, password: str) -> Any:
        """
        See L{ILoginThrottle.mayLogin}.
        """
        now = self._clock.seconds()
        if len(username) > self.LONGEST_NAME or (
            not username.isascii()
            and len(username.encode("utf-8", "surrogateescape")) > self.LONGEST_NAME
        ):
            return self._later(info, now, False)
        answer = self._throttle.mayLogin(info, username, password)
        if isAwaitable(answer):
            return self._answerLater(info, now, answer)
        if not answer:
            return self._later(info, now, False)
        self._begin(info, now)
        return True

    async def _answerLater(self, info: IPOP3ConnectionInfo, arrived: float, answer: Any) -> bool:
        mayLogin = bool(await answer)
        if mayLogin:
            self._begin(info, arrived)
        else:
            await self._later(info, arrived, None)
        return mayLogin

    def _begin(self, info: IPOP3ConnectionInfo, arrived: float) -> None:
        # An attempt of ours has room for it, which costs less than a table.
        attempt = info.loginAttempt
        if isinstance(attempt, Attempt):
            attempt.arrived = arrived
        else:
            self._arrived[info] = arrived

    def loginFailed(self, info: IPOP3ConnectionInfo, username: str) -> Any:
        """
        See L{ILoginThrottle.loginFailed}; fires when the refusal is due.
        """
        attempt = info.loginAttempt
        if isinstance(attempt, Attempt):
            arrived = attempt.arrived
        else:
            arrived = self._arrived.pop(info, self._clock.seconds())
        wasLogged = self._throttle.loginFailed(info, username)
        return self._later(info, arrived, wasLogged)

    def loginSucceeded(self, info: IPOP3ConnectionInfo, username: str) -> Any:
        """
        See L{ILoginThrottle.loginSucceeded}.
        """
        if self._arrived:
            self._arrived.pop(info, None)
        return self._throttle.loginSucceeded(info, username)

    def loginAbandoned(self, info: IPOP3ConnectionInfo, username: str, isLost: bool) -> None:
        """
        See L{ILoginThrottle.loginAbandoned}.
        """
        self._arrived.pop(info, None)
        self._throttle.loginAbandoned(info, username, isLost)

    def _later(self, info: IPOP3ConnectionInfo, arrived: float, answer: Any) -> Deferred[Any]:
        now = self._clock.seconds()
        key = networkOf(info.clientIP)
        count, last, dueBefore = self._refusals.get(key, (0, now, 0.0))
        if now - last >= self.FORGOTTEN:
            count = 0
        due = max(
            arrived + self.AFTER,
            dueBefore + min(self.STEP * max(count, 1), self.LONGEST),
        )
        due = min(due, now + self.PATIENCE)
        self._refusals[key] = count + 1, now, due
        self._refusals.move_to_end(key)
        if len(self._refusals) > self.BOUND:
            self._refusals.popitem(last=False)
        later: Deferred[Any] = Deferred(lambda _: timer.cancel())
        timer = self._clock.callLater(max(due - now, 0), later.callback, answer)
        return later
