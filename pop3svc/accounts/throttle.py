"""
Which addresses may try to log in, and how soon they are answered.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import lru_cache
from ipaddress import ip_network
from typing import Any
from weakref import WeakKeyDictionary

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from pop3svc.files import writeWhole
from pop3svc.interfaces import ILoginThrottle, IPOP3ConnectionInfo
from pop3svc.networks import LOOPBACK, addressOf, networkOf

__all__ = ["BanEngine", "KnownNetworks", "LoginGuard", "SharedThrottle", "UserThrottle"]

log = Logger(namespace="pop3svc")

# Entries of about 200 octets each; the oldest go first.
_BOUND = 100_000


class _Strikes:
    """
    Failures by key, forgotten some time after the last, at most so many keys.
    """

    def __init__(self, clock: IReactorTime, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._counts: OrderedDict[Any, tuple[int, float]] = OrderedDict()

    def count(self, key: Any) -> int:
        count, last = self._counts.get(key, (0, 0.0))
        return count if self._clock.seconds() - last < self._seconds else 0

    def add(self, key: Any) -> int:
        count = self.count(key) + 1
        self._counts[key] = count, self._clock.seconds()
        self._counts.move_to_end(key)
        if len(self._counts) > _BOUND:
            self._counts.popitem(last=False)
        return count

    def clear(self, key: Any) -> bool:
        return self._counts.pop(key, None) is not None

    def state(self) -> list[Any]:
        now = self._clock.seconds()
        return [[key, count, now - last] for key, (count, last) in self._counts.items()]

    def restore(self, state: list[Any]) -> None:
        now = self._clock.seconds()
        for key, count, age in state:
            # What was a tuple is a list in JSON.
            self._counts[tuple(key) if isinstance(key, list) else key] = count, now - age


@implementer(ILoginThrottle)
class BanEngine:
    """
    Three strikes (EXTENSIONS, the ban engine): an address with three failed
    logins is banned until 10,000 seconds have passed since its last attempt.
    An attempt while banned counts as a new one.  IPv6 counts by its /64.
    """

    def __init__(
        self,
        clock: IReactorTime,
        strikes: int = 3,
        seconds: float = 10_000,
        exempt: Iterable[str] = LOOPBACK,
    ) -> None:
        """
        @param exempt: networks that are never banned.
        """
        self._strikes = strikes
        self._failures = _Strikes(clock, seconds)
        networks = [ip_network(each) for each in exempt]

        # The same few clients come again and again.
        @lru_cache(4096)
        def isExempt(clientIP: str | None) -> bool:
            return clientIP is None or any(addressOf(clientIP) in each for each in networks)

        self._isExemptIP = isExempt

    def _isExempt(self, info: IPOP3ConnectionInfo) -> bool:
        return self._isExemptIP(info.clientIP)

    def mayLogin(self, info: IPOP3ConnectionInfo, username: str) -> bool:
        key = networkOf(info.clientIP)
        if self._isExempt(info) or self._failures.count(key) < self._strikes:
            return True
        self._failures.add(key)
        return False

    def loginFailed(self, info: IPOP3ConnectionInfo, username: str) -> None:
        if not self._isExempt(info):
            self._failures.add(networkOf(info.clientIP))

    def loginSucceeded(self, info: IPOP3ConnectionInfo, username: str) -> bool:
        """
        See L{ILoginThrottle.loginSucceeded}.

        @return: whether anything was forgotten.
        """
        return self._failures.clear(networkOf(info.clientIP))

    def state(self) -> Any:
        """
        @return: what another process needs to go on, as JSON has it.
        """
        return self._failures.state()

    def restore(self, state: Any) -> None:
        """
        Go on from what L{state} has returned.
        """
        self._failures.restore(state)


class KnownNetworks:
    """
    The networks from which each user has logged in, kept in a file.
    """

    # Seconds, networks for each user, users.
    KEPT = 90 * 86400
    EACH = 16
    USERS = 100_000

    def __init__(self, path: str | None = None, now: Callable[[], float] = time.time) -> None:
        """
        @param path: the file; nothing is kept without one.
        """
        self._path = path
        self._now = now
        self._changed = False
        self._users: OrderedDict[str, dict[str, float]] = OrderedDict()
        if path is not None:
            self._load(path)

    def _load(self, path: str) -> None:
        try:
            with open(path, encoding="utf-8") as file:
                for user, networks in json.load(file).items():
                    self._users[str(user)] = {str(k): float(v) for k, v in networks.items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, AttributeError, TypeError) as error:
            log.error("{path} is begun anew: {error}", path=path, error=str(error))
            self._users.clear()

    def isKnown(self, username: str, network: str) -> bool:
        """
        Has the user logged in from there in the last 90 days?
        """
        seen = self._users.get(username, {}).get(network)
        return seen is not None and self._now() - seen < self.KEPT

    def add(self, username: str, network: str) -> bool:
        """
        The user has logged in from there.

        @return: whether that is worth writing: once a day.
        """
        now = self._now()
        networks = self._users.setdefault(username, {})
        self._users.move_to_end(username)
        isNews = now - networks.get(network, 0) > 86400
        self._changed = self._changed or isNews
        networks.pop(network, None)
        networks[network] = now
        while len(networks) > self.EACH:
            del networks[next(iter(networks))]
        if len(self._users) > self.USERS:
            self._users.popitem(last=False)
        return isNews

    def state(self) -> Any:
        """
        @return: what another process needs to go on, as JSON has it.
        """
        return self._users

    def restore(self, state: Any) -> None:
        """
        Go on from what L{state} has returned.
        """
        self._users = OrderedDict(state)

    def save(self) -> None:
        """
        Write the file, if it would be another.  Blocks.
        """
        if self._path is None or not self._changed:
            return
        self._changed = False
        try:
            writeWhole(self._path, json.dumps(self._users).encode("ascii"))
        except OSError as error:
            log.error("cannot write {path}: {error}", path=self._path, error=error.strerror)


@implementer(ILoginThrottle)
class UserThrottle:
    """
    Counts failures for each user and network (IPv4 by /24, IPv6 by /64), and
    for each user from all networks that are not known, so that an attacker
    neither guesses on nor locks the owner out: the owner's networks keep
    their access.
    """

    def __init__(
        self,
        clock: IReactorTime,
        known: KnownNetworks | None = None,
        each: int = 10,
        strangers: int = 30,
        seconds: float = 3600,
    ) -> None:
        """
        @param each: failures for one user from one network.
        @param strangers: failures for one user from all unknown networks.
        @param seconds: since the last attempt, until they are forgotten.
        """
        self.known = KnownNetworks() if known is None else known
        self._each, self._strangers = each, strangers
        self._failures = _Strikes(clock, seconds)

    def mayLogin(self, info: IPOP3ConnectionInfo, username: str) -> bool:
        network = networkOf(info.clientIP, v4=24)
        isKnown = self.known.isKnown(username, network)
        if self._failures.count((username, network)) >= self._each:
            self._failures.add((username, network))
            return False
        if not isKnown and self._failures.count(username) >= self._strangers:
            self._failures.add(username)
            return False
        return True

    def loginFailed(self, info: IPOP3ConnectionInfo, username: str) -> None:
        network = networkOf(info.clientIP, v4=24)
        self._failures.add((username, network))
        if not self.known.isKnown(username, network):
            self._failures.add(username)

    def loginSucceeded(self, info: IPOP3ConnectionInfo, username: str) -> bool:
        """
        See L{ILoginThrottle.loginSucceeded}.

        @return: whether anything was forgotten, or the network is news.
        """
        network = networkOf(info.clientIP, v4=24)
        isForgotten = self._failures.clear((username, network))
        return self.known.add(username, network) or isForgotten

    def state(self) -> Any:
        """
        @return: what another process needs to go on, as JSON has it.
        """
        return [self._failures.state(), self.known.state()]

    def restore(self, state: Any) -> None:
        """
        Go on from what L{state} has returned.
        """
        failures, known = state
        self._failures.restore(failures)
        self.known.restore(known)


class _Elsewhere:
    """
    A client of another process.
    """

    def __init__(self, clientIP: str | None) -> None:
        self.clientIP = clientIP


@implementer(ILoginThrottle)
class SharedThrottle:
    """
    Throttles that count alike in several processes: what changes something
    here is told to the others, which do the same.
    """

    def __init__(
        self,
        throttles: Iterable[BanEngine | UserThrottle],
        tell: Callable[[str, str | None, str], object] = lambda *_: None,
    ) -> None:
        """
        @param tell: called with what the others' L{heard} is to be called
            with.
        """
        self._throttles = list(throttles)
        self._tell = tell

    def mayLogin(self, info: IPOP3ConnectionInfo, username: str) -> bool:
        """
        See L{ILoginThrottle.mayLogin}.
        """
        # All are asked, so that all count.
        answers = [each.mayLogin(info, username) for each in self._throttles]
        mayLogin = all(answers)
        if not mayLogin:
            self._tell("mayLogin", info.clientIP, username)
        return mayLogin

    def loginFailed(self, info: IPOP3ConnectionInfo, username: str) -> None:
        """
        See L{ILoginThrottle.loginFailed}.
        """
        for each in self._throttles:
            each.loginFailed(info, username)
        self._tell("loginFailed", info.clientIP, username)

    def loginSucceeded(self, info: IPOP3ConnectionInfo, username: str) -> None:
        """
        See L{ILoginThrottle.loginSucceeded}.
        """
        changes = [each.loginSucceeded(info, username) for each in self._throttles]
        # Most change nothing, and there are many.
        if any(changes):
            self._tell("loginSucceeded", info.clientIP, username)

    def heard(self, method: str, clientIP: str | None, username: str) -> None:
        """
        Another process has told.
        """
        info: Any = _Elsewhere(clientIP)
        for each in self._throttles:
            getattr(each, method)(info, username)

    def state(self) -> Any:
        """
        @return: what another process needs to go on, as JSON has it.
        """
        return [each.state() for each in self._throttles]

    def restore(self, state: Any) -> None:
        """
        Go on from what L{state} has returned.
        """
        for each, own in zip(self._throttles, state, strict=True):
            each.restore(own)


@implementer(ILoginThrottle)
class LoginGuard:
    """
    Asks other throttles, and answers every refusal a set time after the
    attempt arrived, whatever the reason, those of one address one after the
    other across all its connections, each later than the one before.
    """

    # Seconds: longer than a hash takes; from one refusal of an address to the
    # next, growing by itself each time up to a bound; until an address begins
    # anew.
    AFTER = 1.0
    STEP = 0.5
    LONGEST = 5.0
    # And no refusal waits longer than this, however many are before it.
    PATIENCE = 60.0
    FORGOTTEN = 600

    def __init__(self, clock: IReactorTime, throttles: Iterable[Any]) -> None:
        self._clock = clock
        self._throttles = [ILoginThrottle(each) for each in throttles]
        # Of a client that is lost meanwhile nothing stays.
        self._arrived: WeakKeyDictionary[Any, float] = WeakKeyDictionary()
        self._failures = _Strikes(clock, self.FORGOTTEN)
        self._due: OrderedDict[str, float] = OrderedDict()

    def mayLogin(self, info: IPOP3ConnectionInfo, username: str) -> Any:
        """
        See L{ILoginThrottle.mayLogin}.
        """
        self._arrived[info] = self._clock.seconds()
        # All are asked, so that all count.
        answers = [each.mayLogin(info, username) for each in self._throttles]
        return True if all(answers) else self._later(info, False)

    def loginFailed(self, info: IPOP3ConnectionInfo, username: str) -> Any:
        """
        See L{ILoginThrottle.loginFailed}; fires when the refusal is due.
        """
        for each in self._throttles:
            each.loginFailed(info, username)
        return self._later(info, None)

    def loginSucceeded(self, info: IPOP3ConnectionInfo, username: str) -> None:
        """
        See L{ILoginThrottle.loginSucceeded}.
        """
        self._arrived.pop(info, None)
        for each in self._throttles:
            each.loginSucceeded(info, username)

    def _later(self, info: IPOP3ConnectionInfo, answer: Any) -> Deferred[Any]:
        now = self._clock.seconds()
        key = networkOf(info.clientIP)
        before = self._failures.count(key)
        self._failures.add(key)
        due = max(
            self._arrived.pop(info, now) + self.AFTER,
            self._due.get(key, 0.0) + min(self.STEP * max(before, 1), self.LONGEST),
        )
        due = min(due, now + self.PATIENCE)
        self._due[key] = due
        self._due.move_to_end(key)
        if len(self._due) > _BOUND:
            self._due.popitem(last=False)
        later: Deferred[Any] = Deferred(lambda _: timer.cancel())
        timer = self._clock.callLater(max(due - now, 0), later.callback, answer)
        return later
