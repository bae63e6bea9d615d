"""
Throttling of logins: refuse attempts over the limits, and delay the answer to each refusal.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from hashlib import blake2b
from typing import Any
from unicodedata import normalize
from weakref import WeakKeyDictionary

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from zope.interface import implementer

from pop3svc.accounts.knownnetworks import KnownNetworks
from pop3svc.accounts.strikes import GUESS, Attempt, Ban, BanEngine, Strikes, UserThrottle
from pop3svc.awaiting import isAwaitable
from pop3svc.bounded import BoundedDict
from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import ILoginThrottle, IPOP3ConnectionInfo
from pop3svc.networks import networkOf

__all__ = ["LoginGuard", "SharedThrottle"]


def _spelling(username: str) -> str:
    """
    Make one text of all spellings of a name.  Databases and directories may ignore case, spaces and
    the width of characters in a name.  If each spelling had its own counts, a client could make
    many times as many guesses.

    @return: a text that is the same for all spellings of the name.
    """
    return " ".join(normalize("NFKC", username).casefold().split())


class _Waiter:
    """
    An attempt that waits for the outcome of other attempts.
    """

    __slots__ = ("answer", "attempt", "info", "timer")

    def __init__(self, info: Any, attempt: Attempt) -> None:
        self.info = info
        self.attempt = attempt
        self.answer: Deferred[bool]
        self.timer: IDelayedCall


class _Logged:
    """
    Remembers, for each address, the wrong guesses that the log has named.  The log names a repeated
    guess only once an hour.  Otherwise one program that repeats a wrong password every few minutes
    would make fail2ban ban an address with many users.
    """

    # Seconds between two log lines for the same guess, and the most guesses that are remembered.
    AGAIN = 3600
    BOUND = 16_384

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._when: BoundedDict[tuple[str, bytes], float] = BoundedDict(self.BOUND)

    def add(self, place: str, guess: bytes) -> bool:
        """
        Note a wrong guess.

        @return: whether the log has named the same guess within the last hour.
        """
        now, key = self._clock.seconds(), (place, guess)
        last = self._when.get(key)
        if last is not None and now - last < self.AGAIN:
            return True
        self._when.put(key, now)
        return False


class _HiddenGuesses:
    """
    Counts attempts whose password the service does not see.  A mail program that repeats an old
    password must not cause a ban of its address.  Therefore a few attempts in a minute count as one
    guess, and further attempts in that minute count as different guesses.
    """

    # This many attempts for one user from one address, within this many seconds, count as one
    # guess.  A mail program asks every few minutes, and a person tries a few times.
    SAME, TIME = 3, 60.0
    # The most pairs of an address and a user that are remembered.
    BOUND = 16_384

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._begun: BoundedDict[tuple[str, str], tuple[float, int]] = BoundedDict(self.BOUND)

    def guess(self, clientIP: str | None, username: str) -> str:
        """
        @return: a text that distinguishes guesses, and contains no password.
        """
        # A ban applies to the /64 of an IPv6 address, so count its addresses together.
        now, key = self._clock.seconds(), (networkOf(clientIP), username)
        since, count = self._begun.get(key, (now, 0))
        if now - since >= self.TIME:
            since, count = now, 0
        self._begun.put(key, (since, count + 1))
        return "\0hidden" if count < self.SAME else f"\0{secrets.token_hex(16)}"


@implementer(ILoginThrottle)
class SharedThrottle:
    """
    Applies limits whose counts several processes share.  Each process sends the events that change
    its counts to the other processes.  They apply the events to their own counts.

    An attempt counts as soon as it is admitted.  If the limit would be reached when all attempts
    under way fail, further attempts wait for the results of these.

    @ivar tell: see L{__init__}.
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
        @param limits: if empty, L{BanEngine} and L{UserThrottle} with their defaults.
        @param known: the same L{KnownNetworks} that the limits were given.
        @param tell: sends an event to the other processes, which pass its arguments to
            L{heard}.
        @param patience: how many seconds an attempt waits for other attempts.
        """
        self.known = KnownNetworks() if known is None else known
        self._clock = clock
        self._limits = list(limits) or [
            BanEngine(clock, self.known),
            UserThrottle(clock, self.known),
        ]
        self.tell = tell
        self._patience = patience
        self._logged = _Logged(clock)
        self._hidden = _HiddenGuesses(clock)
        # Key of the digests.  All processes of a service share it.
        self._key = secrets.token_bytes(32)
        self._user = self._digests()
        # Attempts that wait to be announced to the other processes.  This happens in the reactor's
        # next iteration, unless the attempts have ended by then.
        self._unannounced: dict[Attempt, None] = {}
        self._waiting: dict[tuple[Strikes, Any], dict[_Waiter, None]] = {}
        self._changed: set[tuple[Strikes, Any]] = set()

    def _digests(self) -> Callable[[str], bytes]:
        key = self._key

        # Cached because the same few users log in repeatedly.
        @lru_cache(1024)
        def user(username: str) -> bytes:
            name = _spelling(username).encode("utf-8", "surrogateescape")
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

    def mayLogin(self, info: IPOP3ConnectionInfo, username: str, password: str | None) -> Any:
        """
        See L{ILoginThrottle.mayLogin}.
        """
        if password is None:
            password = self._hidden.guess(info.clientIP, username)
        attempt = self._attempt(info.clientIP, username, self._guess(username, password))
        answer = self._decide(info, attempt)
        return self._wait(info, attempt) if answer is None else answer

    def _decide(self, info: Any, attempt: Attempt) -> bool | None:
        """
        Admit or refuse an attempt.

        @return: whether the attempt is admitted, or L{None} if it has to wait for other attempts.
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
        if self.tell is not None:
            self._announceBegun(attempt)
        return True

    def _refuse(self, attempt: Attempt, counts: list[tuple[Strikes, Any]]) -> None:
        for table, key in counts:
            if table.isFull(key):
                table.logRefused(attempt, table.renew(key))
        self._announce("refused", attempt)

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

    def _decideAgain(self, keys: list[tuple[Strikes, Any]]) -> None:
        """
        Decide again about the attempts that have waited for the end of another attempt.  Do this in
        the reactor's next iteration, because an admitted attempt may end at once, and then calls
        this method again.

        @param keys: the tables and keys that counted the ended attempt.
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
            # Another login of this user may have succeeded from this network meanwhile.
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

    def _end(self, info: Any) -> Attempt | None:
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
        attempt = self._end(info)
        if attempt is None:
            return False
        self._failed(attempt)
        return self._logged.add(attempt.place, attempt.guess)

    def _failed(self, attempt: Attempt) -> None:
        self._unannounced.pop(attempt, None)
        self._announce("failed", attempt)
        for table, key in attempt.counted:
            if table.add(key, attempt.guess):
                table.logFilled(attempt)
        self._decideAgain(attempt.counted)

    def loginSucceeded(self, info: IPOP3ConnectionInfo, username: str) -> None:
        """
        See L{ILoginThrottle.loginSucceeded}.
        """
        attempt = self._end(info)
        if attempt is None:
            return
        isNews = self.known.add(username, attempt.clientIP)
        for limit in self._limits:
            isNews = limit.succeeded(attempt) or isNews
        self._settled(attempt, "succeeded" if isNews else "over")

    def loginAbandoned(self, info: IPOP3ConnectionInfo, username: str, isLost: bool) -> None:
        """
        See L{ILoginThrottle.loginAbandoned}.
        """
        attempt = self._end(info)
        if attempt is None:
            return
        # A client that disconnects before the refusal has learned that its guess was wrong, because
        # the reply to a right password comes sooner.
        if attempt.wasRefused or (isLost and attempt.isGuess):
            self._failed(attempt)
        else:
            self._settled(attempt, "over")

    def _settled(self, attempt: Attempt, event: str) -> None:
        if self.tell is not None:
            wasUnannounced = attempt in self._unannounced
            self._unannounced.pop(attempt, None)
            # Most logins change no counts, so nothing has to be sent to the other processes.
            if event == "succeeded" or not wasUnannounced:
                self._announce(event, attempt)
        if self._waiting:
            self._decideAgain(attempt.counted)

    # --- the operator -------------------------------------------------------------

    def bans(self) -> list[Ban]:
        """
        @return: the networks that are banned now.
        """
        return list(self.eachBan())

    def eachBan(self) -> Iterator[Ban]:
        """
        @return: these networks, one after the other.  There may be tens of thousands, so other work
            may be done in between.
        """
        for limit in self._limits:
            if isinstance(limit, BanEngine):
                yield from limit.eachBan()

    def countBans(self) -> int:
        """
        @return: the number of these networks; the time does not depend on it.
        """
        return sum(limit.countBans() for limit in self._limits if isinstance(limit, BanEngine))

    def ban(self, clientIP: str) -> None:
        """
        Ban an address, or its /64 for IPv6, in all processes.
        """
        self._ban(clientIP)
        if self.tell is not None:
            self.tell("banned", clientIP, "", "")

    def lift(self, clientIP: str | None, username: str = "") -> bool:
        """
        End the bans of an address, or forget the failed logins of a user, in all processes.

        @param clientIP: L{None} for a user.
        @return: whether this process knew any bans or failed logins.
        """
        if self.tell is not None:
            self.tell("lifted", clientIP, username, "")
        return self._lift(clientIP, username)

    def _ban(self, clientIP: str) -> None:
        for limit in self._limits:
            if isinstance(limit, BanEngine):
                limit.ban(clientIP)

    def _lift(self, clientIP: str | None, username: str) -> bool:
        lifted = []
        for limit in self._limits:
            if isinstance(limit, UserThrottle):
                lifted.append(clientIP is None and limit.lift(self._user(username)))
            else:
                lifted.append(clientIP is not None and limit.lift(clientIP))
        return any(lifted)

    # --- other processes ----------------------------------------------------------

    def _announce(self, event: str, attempt: Attempt) -> None:
        if self.tell is not None:
            self.tell(event, attempt.clientIP, attempt.username, attempt.guess.hex())

    def _announceBegun(self, attempt: Attempt) -> None:
        if not attempt.isFromKnownNetwork:
            self._announce("begun", attempt)
            return
        if not self._unannounced:
            self._clock.callLater(0, self._announceRest)
        self._unannounced[attempt] = None

    def _announceRest(self) -> None:
        unannounced, self._unannounced = self._unannounced, {}
        for attempt in unannounced:
            self._announce("begun", attempt)

    def heard(self, event: str, clientIP: str | None, username: str, guess: str) -> None:
        """
        Apply an event of another process.

        @param event: C{begun}, C{refused}, C{failed}, C{succeeded}, C{over}; or C{banned} or
            C{lifted} by the operator.
        """
        if event == "banned" and clientIP is not None:
            self._ban(clientIP)
            return
        if event == "lifted":
            self._lift(clientIP, username)
            return
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
        self._decideAgain(keys)

    def state(self) -> Any:
        """
        @return: the state for L{restore} in another process, serialisable as JSON.
        """
        tables = [table.state() for limit in self._limits for table in limit.tables]
        return [self._key.hex(), self.known.state(), tables]

    def restore(self, state: Any) -> None:
        """
        Use the state that L{state} of another process has returned.
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
    Wraps another throttle and delays refusals.  The delay counts from the arrival of the attempt
    and does not depend on the reason for the refusal.  The connections of one address get their
    refusals one after the other, with growing delays.
    """

    # All times are in seconds.  A refusal is sent no earlier than this after its attempt arrived.
    # A hash takes less time than this.
    AFTER = 1.0
    # The interval between two refusals to an address grows by STEP up to LONGEST.
    STEP = 0.5
    LONGEST = 5.0
    # No refusal waits longer than this, even if many other refusals come before it.
    PATIENCE = 60.0
    # After this time without refusals, an address gets the shortest interval again.
    FORGOTTEN = 600
    # The most addresses that are remembered; the oldest are evicted first.  An address takes about
    # 300 octets.
    BOUND = 65536
    # The most octets of a user name.  No user has a longer name, so a longer name is refused
    # without being counted.
    LONGEST_NAME = 255

    def __init__(self, clock: IReactorTime, throttle: Any) -> None:
        """
        @param throttle: L{ILoginThrottle}
        """
        self._clock = clock
        self._throttle = ILoginThrottle(throttle)
        # Weak keys, so that the entry of a lost client disappears with its connection.
        self._arrived: WeakKeyDictionary[Any, float] = WeakKeyDictionary()
        # For each address: the number of refusals, the time at which the last one was
        # recorded, and the time at which it is due.
        self._refusals: BoundedDict[str, tuple[int, float, float]] = BoundedDict(self.BOUND)

    def mayLogin(self, info: IPOP3ConnectionInfo, username: str, password: str | None) -> Any:
        """
        See L{ILoginThrottle.mayLogin}.
        """
        now = self._clock.seconds()
        if len(username) > self.LONGEST_NAME or (
            not username.isascii()
            and len(username.encode("utf-8", "surrogateescape")) > self.LONGEST_NAME
        ):
            return self._delay(info, now, False)
        answer = self._throttle.mayLogin(info, username, password)
        if isAwaitable(answer):
            return self._awaitAnswer(info, now, answer)
        if not answer:
            return self._delay(info, now, False)
        self._begin(info, now)
        return True

    async def _awaitAnswer(self, info: IPOP3ConnectionInfo, arrived: float, answer: Any) -> bool:
        mayLogin = bool(await answer)
        if mayLogin:
            self._begin(info, arrived)
        else:
            await self._delay(info, arrived, None)
        return mayLogin

    def _begin(self, info: IPOP3ConnectionInfo, arrived: float) -> None:
        # The time is an attribute of Attempt, because an attribute takes less memory than an entry
        # of a dictionary.
        attempt = info.loginAttempt
        if isinstance(attempt, Attempt):
            attempt.arrived = arrived
        else:
            self._arrived[info] = arrived

    def loginFailed(self, info: IPOP3ConnectionInfo, username: str) -> Any:
        """
        See L{ILoginThrottle.loginFailed}.

        @return: a Deferred that fires when the refusal is due.
        """
        attempt = info.loginAttempt
        if isinstance(attempt, Attempt):
            arrived = attempt.arrived
        else:
            arrived = self._arrived.pop(info, self._clock.seconds())
        wasLogged = self._throttle.loginFailed(info, username)
        return self._delay(info, arrived, wasLogged)

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

    def _delay(self, info: IPOP3ConnectionInfo, arrived: float, answer: Any) -> Deferred[Any]:
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
        self._refusals.put(key, (count + 1, now, due))
        later: Deferred[Any] = Deferred(lambda _: timer.cancel())
        timer = self._clock.callLater(max(due - now, 0), later.callback, answer)
        return later
