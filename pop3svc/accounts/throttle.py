"""
Refuse attempts to log in after too many failures, and delay the replies to failed and refused
attempts.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from hashlib import blake2b
from typing import Any
from weakref import WeakKeyDictionary

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from zope.interface import implementer

from pop3svc.accounts.knownnetworks import KnownNetworks, spelling
from pop3svc.accounts.strikes import GUESS, Attempt, Ban, BanEngine, Strikes, UserThrottle
from pop3svc.awaiting import isAwaitable
from pop3svc.bounded import BoundedDict
from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import ILoginThrottle, IPOP3ConnectionInfo
from pop3svc.networks import networkOf

__all__ = ["LoginGuard", "SharedThrottle"]


class _Waiter:
    """
    An attempt that waits for the results of other attempts.
    """

    __slots__ = ("answer", "attempt", "info", "timer")

    def __init__(self, info: Any, attempt: Attempt) -> None:
        self.info = info
        self.attempt = attempt
        self.answer: Deferred[bool]
        self.timer: IDelayedCall


class _Logged:
    """
    Remembers which wrong guesses from which address were logged.  The same guess from the same
    address is logged once an hour.  Suppose that a program repeats a wrong password every few
    minutes.  If each attempt were logged, fail2ban would ban the address, which may have many
    users.
    """

    # AGAIN is the number of seconds after which the same guess is logged again.  BOUND is the most
    # guesses that are remembered.
    AGAIN = 3600
    BOUND = 16_384

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._when: BoundedDict[tuple[str, bytes], float] = BoundedDict(self.BOUND)

    def add(self, place: str, guess: bytes) -> bool:
        """
        Remember a wrong guess.

        @return: whether the same guess was logged within the last hour.
        """
        now, key = self._clock.seconds(), (place, guess)
        last = self._when.get(key)
        if last is not None and now - last < self.AGAIN:
            return True
        self._when.put(key, now)
        return False


class _HiddenGuesses:
    """
    Counts attempts by mechanisms that do not show the password to the service.  A mail program may
    repeat an old password, which must not cause a ban of its address.  The first attempts of a
    minute therefore count as the same guess.  Further attempts in this minute count as different
    guesses.
    """

    # The first SAME attempts for one user from one address within TIME seconds count as the same
    # guess.  A mail program makes an attempt every few minutes, and a person tries a few times.
    SAME, TIME = 3, 60.0
    # The most pairs of an address and a user that are remembered.
    BOUND = 16_384

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._begun: BoundedDict[tuple[str, str], tuple[float, int]] = BoundedDict(self.BOUND)

    def guess(self, clientIP: str | None, username: str) -> str:
        """
        @return: a text that stands for the guess instead of a password.  Attempts with the same
            text count as the same guess.
        """
        # Count the addresses of an IPv6 /64 together, because a ban applies to all of them.
        now, key = self._clock.seconds(), (networkOf(clientIP), username)
        since, count = self._begun.get(key, (now, 0))
        if now - since >= self.TIME:
            since, count = now, 0
        self._begun.put(key, (since, count + 1))
        return "\0hidden" if count < self.SAME else f"\0{secrets.token_hex(16)}"


@implementer(ILoginThrottle)
class SharedThrottle:
    """
    Applies limits to logins.  Several processes share the counts.  If an event changes the counts
    of one process, this process sends the event to the other processes.  The others apply the event
    to their own counts.

    An attempt counts from the moment when it is admitted.  Suppose that all admitted attempts fail.
    If the limit would then be reached, a further attempt waits for the results of these attempts.

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
        @param limits: the limits; if empty, a L{BanEngine} and a L{UserThrottle} with their default
            arguments.
        @param known: the L{KnownNetworks} that the limits use as well.
        @param tell: sends an event to the other processes.  They call L{heard} with the same
            arguments.
        @param patience: how many seconds an attempt may wait for other attempts.
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
        # The key of the digests.  All processes of a service have the same key.
        self._key = secrets.token_bytes(32)
        self._user = self._digests()
        # The attempts that were not announced to the other processes yet.  They are announced in
        # the reactor's next iteration, unless they have ended by then.
        self._unannounced: dict[Attempt, None] = {}
        self._waiting: dict[tuple[Strikes, Any], dict[_Waiter, None]] = {}
        self._changed: set[tuple[Strikes, Any]] = set()

    def _digests(self) -> Callable[[str], bytes]:
        key = self._key

        # Cache the results, because the same users log in again and again.
        @lru_cache(1024)
        def user(username: str) -> bytes:
            name = spelling(username).encode("utf-8", "surrogateescape")
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

        @return: whether the attempt is admitted; L{None} if it has to wait for other attempts.
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
        Decide again about the attempts that have waited for an attempt that has ended now.  Do this
        in the reactor's next iteration, because an attempt that is admitted may end at once, and
        then this method is called again.

        @param keys: the tables and keys that have counted the attempt that has ended.
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
            # Look again whether the network is known, because another login of this user from this
            # network may have succeeded meanwhile.
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
        # Count the attempt as failed if a checker has found that the password is wrong.  Also count
        # a guess if the client disconnects before the reply.  The reply to a right password comes
        # sooner, so the client has learned that its guess was wrong.
        if attempt.wasRefused or (isLost and attempt.isGuess):
            self._failed(attempt)
        else:
            self._settled(attempt, "over")

    def _settled(self, attempt: Attempt, event: str) -> None:
        if self.tell is not None:
            wasUnannounced = attempt in self._unannounced
            self._unannounced.pop(attempt, None)
            # Most logins change no counts, so the other processes need not know of them.
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
        @return: the networks that are banned now, one after the other.  There may be tens of
            thousands of them, so the caller may do other work in between.
        """
        for limit in self._limits:
            if isinstance(limit, BanEngine):
                yield from limit.eachBan()

    def countBans(self) -> int:
        """
        @return: the number of networks that are banned now.  The call does not look at each of
            these networks.
        """
        return sum(limit.countBans() for limit in self._limits if isinstance(limit, BanEngine))

    def ban(self, clientIP: str) -> None:
        """
        Ban an IPv4 address, or the /64 of an IPv6 address, in all processes.
        """
        self._ban(clientIP)
        if self.tell is not None:
            self.tell("banned", clientIP, "", "")

    def lift(self, clientIP: str | None, username: str = "") -> bool:
        """
        End the bans of an address or forget the failed logins of a user.  Do this in all processes.

        @param clientIP: the address; L{None} to forget the failed logins of a user.
        @return: whether this process had any bans or failed logins to forget.
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

        @param event: C{begun}, C{refused}, C{failed}, C{succeeded} or C{over} for an attempt;
            C{banned} or C{lifted} for an order of the operator.
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
        @return: the counts and the key, for L{restore} in another process.  The value is
            serialisable as JSON.
        """
        tables = [table.state() for limit in self._limits for table in limit.tables]
        return [self._key.hex(), self.known.state(), tables]

    def restore(self, state: Any) -> None:
        """
        Use the value that L{state} has returned in another process.
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
    Wraps another throttle and delays refusals.  The delay begins when the attempt arrives.  It does
    not depend on the reason for the refusal.  The connections of one address get their refusals one
    after the other, with growing delays.
    """

    # All times are in seconds.  A refusal is sent at the earliest AFTER seconds after the attempt
    # has arrived.  The comparison of a hash takes less time.
    AFTER = 1.0
    # The interval between two refusals to an address grows by STEP with each refusal, but not above
    # LONGEST.
    STEP = 0.5
    LONGEST = 5.0
    # No refusal is delayed longer than this time, even if many other refusals come before it.
    PATIENCE = 60.0
    # If an address has got no refusal for this time, its interval is the shortest interval again.
    FORGOTTEN = 600
    # The most addresses that are remembered.  If there are more, the oldest one is removed.  An
    # address takes about 300 octets.
    BOUND = 65536
    # The most octets of a user name.  No user has a longer name, so a login with a longer name is
    # refused and not counted.
    LONGEST_NAME = 255

    def __init__(self, clock: IReactorTime, throttle: Any) -> None:
        """
        @param throttle: an L{ILoginThrottle}.
        """
        self._clock = clock
        self._throttle = ILoginThrottle(throttle)
        # Use weak keys, so that an entry disappears together with the connection of the client.
        self._arrived: WeakKeyDictionary[Any, float] = WeakKeyDictionary()
        # For each address: the number of refusals, the time at which the last refusal was recorded,
        # and the time at which this refusal has to be sent.
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
        # Store the time in the attempt if possible, because an attribute takes less memory than an
        # entry of a dictionary.
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
