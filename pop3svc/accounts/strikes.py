"""
Count failed logins by address and by user, and refuse logins after too many failures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from heapq import heapify, heappop, heappush
from ipaddress import ip_network
from typing import Any, NamedTuple

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from pop3svc.accounts.knownnetworks import KnownNetworks
from pop3svc.bounded import BoundedDict
from pop3svc.interfaces import ILoginAttempt
from pop3svc.networks import LOOPBACK, addressOf, networkOf

__all__ = ["Attempt", "Ban", "BanEngine", "Strikes", "UserThrottle"]

log = Logger(namespace="pop3svc")

# The number of octets of the keyed digest of a name and a password.  Two digests are equal by
# chance once in 2**64 pairs.  This does no harm, because two guesses then count as one.
GUESS = 8


def _printable(name: str) -> str:
    return name if name.isprintable() else ascii(name)[1:-1]


@implementer(ILoginAttempt)
class Attempt:
    """
    An attempt to log in.

    @ivar arrived: the time at which the attempt arrived, in seconds of the clock.
    @ivar user: a keyed digest of the name.  The keys of the tables contain the digest and not the
        name, because the client chooses the name and can make it long.
    @ivar guess: a keyed digest of the name and the password.
    @ivar place: the network to which a ban of the client applies: the IPv4 address of the client,
        or the /64 of its IPv6 address.
    @ivar pair: the digest of the name, and the network of the client (IPv4 /24, IPv6 /64).
    @ivar counted: the tables that count the attempt, each with the key in this table.
    @ivar waitsFor: the table and the key because of which the attempt waits, or last had to wait;
        L{None} if it never had to wait.
    """

    __slots__ = (
        "arrived",
        "clientIP",
        "counted",
        "guess",
        "isFromKnownNetwork",
        "isGuess",
        "pair",
        "place",
        "user",
        "username",
        "waitsFor",
        "wasRefused",
    )

    def __init__(
        self, clientIP: str | None, username: str, user: bytes, guess: bytes, isKnown: bool
    ) -> None:
        self.arrived = 0.0
        self.clientIP = clientIP
        self.username = username
        self.user = user
        self.guess = guess
        self.place = networkOf(clientIP)
        self.pair = user, networkOf(clientIP, 24)
        self.isFromKnownNetwork = isKnown
        self.isGuess = True
        self.wasRefused = False
        self.counted: list[tuple[Strikes, Any]] = []
        self.waitsFor: tuple[Strikes, Any] | None = None

    @property
    def address(self) -> str:
        """
        The address of the client, for the log.  For IPv6 it is the /64 of the address.
        """
        return self.place.removesuffix("/32") or "(no address)"

    @property
    def network(self) -> str:
        """
        The network of the client, for the log.
        """
        return self.pair[1] or "(no address)"

    @property
    def printableName(self) -> str:
        """
        The name of the user, for the log.
        """
        return _printable(self.username)


class _Record:
    """
    The strikes against one key.  All times are in seconds of the clock.

    @ivar guesses: the digests of the different guesses, one after the other.
    @ivar first: the time of the first strike.
    @ivar last: the time of the last strike.
    @ivar renewed: the time of the last refused attempt; the time of the first strike if no attempt
        was refused.
    @ivar refused: the number of refused attempts.
    """

    __slots__ = ("first", "guesses", "last", "refused", "renewed")

    def __init__(self, now: float) -> None:
        self.guesses = b""
        self.first = self.last = self.renewed = now
        self.refused = 0

    def holds(self, guess: bytes) -> bool:
        guesses = self.guesses
        return any(guesses[at : at + GUESS] == guess for at in range(0, len(guesses), GUESS))


class _Full:
    """
    The keys whose limit is reached.  The metrics need the number of these keys even during an
    attack.  The class therefore finds the number without a loop over all keys.

    A heap has an entry for each key.  The entry contains the time at which the strikes of the key
    end.  A refused attempt may move this time.  In this case a new entry replaces the old entry
    when the time of the old entry has come.
    """

    # If the heap has this many entries, add() makes a new heap without the entries of removed keys.
    # Otherwise these entries would stay in the heap until their time has come.  The number is twice
    # the most keys of a table.
    MOST = 131_072

    def __init__(self, end: Callable[[Any], float]) -> None:
        """
        @param end: takes a key and returns the time at which the strikes of the key end, in seconds
            of the clock.
        """
        self._end = end
        # The keys whose limit is reached, in the order in which they have reached it.
        self.keys: dict[Any, None] = {}
        self._entries: list[tuple[float, Any]] = []
        # The keys that have an entry in the heap.
        self._entered: set[Any] = set()

    def add(self, key: Any) -> None:
        """
        Add a key whose limit is reached.
        """
        self.keys[key] = None
        if key in self._entered:
            return
        if len(self._entries) >= self.MOST:
            self._entered = set(self.keys)
            self._entries = [(self._end(each), each) for each in self.keys]
            heapify(self._entries)
            return
        self._entered.add(key)
        heappush(self._entries, (self._end(key), key))

    def expired(self, now: float) -> list[Any]:
        """
        @param now: the present time in seconds of the clock.
        @return: the keys whose strikes have ended, so that their limit is not reached any more.
        """
        found = []
        while self._entries and self._entries[0][0] <= now:
            _, key = heappop(self._entries)
            self._entered.discard(key)
            if key not in self.keys:
                continue
            if self._end(key) <= now:
                del self.keys[key]
                found.append(key)
            else:
                self.add(key)
        return found


class Strikes:
    """
    Counts the different failed guesses for each key.  An attempt that has no result yet counts as
    well.

    After C{limit} strikes, attempts are refused until C{seconds} have passed since the last strike.
    A refused attempt starts these C{seconds} again, but cannot extend the refusals beyond a day
    after the first strike.
    """

    # Refused attempts can extend the refusals to at most this number of seconds after the first
    # strike.
    LONGEST = 86400
    # The most keys.  If there are more, the key whose last strike or refusal is the oldest is
    # removed.  A key takes about 600 octets of memory.
    BOUND = 65536
    # Seconds after which an attempt without a result does not count any more.  No login takes this
    # long, so the process of the attempt has probably died.
    LAPSE = 300
    # The most keys of attempts without a result.  Usually there are fewer, unless processes die
    # before their attempts have ended.
    MAX_PENDING = 50_000

    def __init__(
        self, clock: IReactorTime, limit: int, seconds: float, filled: str, refused: str
    ) -> None:
        """
        @param filled: the text to log when a limit is reached.
        @param refused: the text to log when an attempt is refused.
        """
        self._clock = clock
        self.limit = limit
        self.seconds = seconds
        self._filled = filled
        self._refused = refused
        self._records: BoundedDict[Any, _Record] = BoundedDict(self.BOUND)
        self._full = self._noneFull()
        # For each key: the guesses without a result.  For each of these guesses: the number of
        # attempts with the guess, and the time of the last of these attempts.
        self._pending: dict[Any, dict[bytes, tuple[int, float]]] = {}

    def _record(self, key: Any) -> _Record | None:
        record = self._records.get(key)
        if record is None:
            return None
        if self._clock.seconds() < self._end(record):
            return record
        self._forget(key)
        return None

    def _noneFull(self) -> _Full:
        return _Full(lambda key: self._end(self._records[key]))

    def _put(self, key: Any, record: _Record) -> None:
        evicted = self._records.put(key, record)
        if evicted is not None:
            self._full.keys.pop(evicted, None)

    def _forget(self, key: Any) -> bool:
        self._full.keys.pop(key, None)
        return self._records.pop(key, None) is not None

    def _end(self, record: _Record) -> float:
        """
        @return: the time at which the strikes are forgotten, in seconds of the clock.
        """
        renewed = min(record.renewed + self.seconds, record.first + self.LONGEST)
        return max(record.last + self.seconds, renewed)

    def isFull(self, key: Any) -> bool:
        """
        @return: whether the limit of a key is reached, so that attempts are refused.
        """
        if not self._records:
            return False
        record = self._record(key)
        return record is not None and len(record.guesses) >= self.limit * GUESS

    def mustWait(self, key: Any, guess: bytes) -> bool:
        """
        @return: whether a further attempt would exceed the limit if all attempts without a result
            failed.
        """
        pending = self._pending.get(key)
        if pending is None or guess in pending:
            return False
        record = self._record(key)
        count = 0
        if record is not None:
            if record.holds(guess):
                return False
            count = len(record.guesses) // GUESS
        now = self._clock.seconds()
        for each, (_, since) in pending.items():
            if now - since < self.LAPSE and (record is None or not record.holds(each)):
                count += 1
        return count >= self.limit

    def begin(self, key: Any, guess: bytes) -> None:
        """
        Count an attempt that has begun and has no result yet.
        """
        pending = self._pending.get(key)
        if pending is None:
            if len(self._pending) >= self.MAX_PENDING:
                del self._pending[next(iter(self._pending))]
            self._pending[key] = {guess: (1, self._clock.seconds())}
            return
        count, _ = pending.get(guess, (0, 0.0))
        pending[guess] = count + 1, self._clock.seconds()

    def takeBack(self, key: Any, guess: bytes) -> None:
        """
        Remove an attempt that L{begin} has counted, because the attempt is over.
        """
        pending = self._pending.get(key)
        if pending is None or guess not in pending:
            return
        count, since = pending[guess]
        if count > 1:
            pending[guess] = count - 1, since
            return
        del pending[guess]
        if not pending:
            del self._pending[key]

    def add(self, key: Any, guess: bytes) -> bool:
        """
        Count a failed attempt.  Nothing is counted if the same guess was counted before, or if the
        limit is reached already.

        @return: whether the limit is reached by this strike.
        """
        record = self._record(key)
        now = self._clock.seconds()
        if record is None:
            record = _Record(now)
            self._put(key, record)
        size = self.limit * GUESS
        if len(record.guesses) >= size or record.holds(guess):
            return False
        record.guesses += guess
        record.last = now
        self._records.move_to_end(key)
        isFull = len(record.guesses) >= size
        if isFull:
            self._full.add(key)
        return isFull

    def renew(self, key: Any) -> int:
        """
        Record that an attempt was refused because the limit is reached.

        @return: the number of attempts that were refused for this key.
        """
        record = self._record(key)
        if record is None:
            return 0
        record.renewed = self._clock.seconds()
        record.refused += 1
        self._records.move_to_end(key)
        return record.refused

    def held(self) -> list[Any]:
        """
        @return: the keys that have strikes, and perhaps keys whose strikes have ended.
        """
        return list(self._records)

    def countFull(self) -> int:
        """
        @return: the number of keys whose limit is reached.
        """
        for key in self._full.expired(self._clock.seconds()):
            self._forget(key)
        return len(self._full.keys)

    def full(self) -> Iterator[tuple[Any, float, int]]:
        """
        @return: each key whose limit is reached, the seconds until attempts are admitted again, and
            the number of refused attempts.
        """
        for key in list(self._full.keys):
            record = self._record(key)
            if record is not None and key in self._full.keys:
                yield key, self._end(record) - self._clock.seconds(), record.refused

    def fill(self, key: Any) -> None:
        """
        Add so many strikes against a key that its limit is reached.
        """
        for number in range(self.limit):
            self.add(key, number.to_bytes(GUESS, "big"))

    def clear(self, key: Any) -> bool:
        """
        Forget the strikes against a key.

        @return: whether the key had strikes.
        """
        return bool(self._records) and self._forget(key)

    def logFilled(self, attempt: Attempt) -> None:
        """
        Log that an attempt has reached the limit.
        """
        log.warn(
            self._filled,
            clientIP=attempt.clientIP,
            address=attempt.address,
            network=attempt.network,
            user=attempt.printableName,
            seconds=self.seconds,
            count=self.limit,
        )

    def logRefused(self, attempt: Attempt, count: int) -> None:
        """
        Log that an attempt is refused.  Only the first, the tenth, the hundredth attempt and so on
        are logged, so that repeated attempts cannot fill the log.
        """
        if str(count).strip("0") != "1":
            return
        text = self._refused if count == 1 else self._refused + " ({count} times)"
        log.info(
            text,
            clientIP=attempt.clientIP,
            address=attempt.address,
            user=attempt.printableName,
            count=count,
        )

    def state(self) -> list[Any]:
        """
        @return: all strikes, for L{restore} in another process.  The value is serialisable as JSON.
        """
        now = self._clock.seconds()
        return [
            [
                _toJSON(key),
                each.guesses.hex(),
                *(now - when for when in (each.first, each.last, each.renewed)),
                each.refused,
            ]
            for key, each in self._records.items()
        ]

    def restore(self, state: list[Any]) -> None:
        """
        Use the strikes that L{state} has returned in another process.
        """
        now = self._clock.seconds()
        for key, guesses, first, last, renewed, refused in state:
            record = _Record(now - first)
            record.guesses = bytes.fromhex(guesses)
            record.last, record.renewed, record.refused = now - last, now - renewed, refused
            self._put(_fromJSON(key), record)
        # Make a new heap, because the restored strikes of a key may end sooner than the strikes
        # that they replace.
        self._full = self._noneFull()
        for key, record in self._records.items():
            if len(record.guesses) >= self.limit * GUESS:
                self._full.add(key)


def _toJSON(key: Any) -> Any:
    return key if isinstance(key, str) else [key[0].hex(), *key[1:]]


def _fromJSON(key: Any) -> Any:
    return key if isinstance(key, str) else (bytes.fromhex(key[0]), *key[1:])


class Ban(NamedTuple):
    """
    An address or a network that is banned now.

    @ivar network: an IPv4 address with /32, or an IPv6 /64.
    @ivar seconds: the seconds until the ban ends, if no further attempt is refused.
    @ivar refused: the number of refused attempts.
    @ivar isByOperator: whether the operator has banned the network.
    """

    network: str
    seconds: float
    refused: int
    isByOperator: bool


class BanEngine:
    """
    Bans addresses.  After three different failed guesses, an address is banned until 10,000 seconds
    have passed since its last attempt, but at most for a day (see L{Strikes}).  All IPv6 addresses
    of a /64 count as one address.

    Exempt addresses, and addresses that several users share, are never banned for failed guesses.
    A ban does not apply to a user who has logged in from the same network before.  The operator can
    also ban an address.  A ban by the operator ends in the same way, but has no exceptions.
    """

    def __init__(
        self,
        clock: IReactorTime,
        known: KnownNetworks,
        strikes: int = 3,
        seconds: float = 10_000,
        exempt: Iterable[str] = LOOPBACK,
    ) -> None:
        """
        @param exempt: networks that are never banned for failed guesses.
        """
        self._known = known
        self._strikes = Strikes(
            clock,
            strikes,
            seconds,
            "banned {address} for {seconds} s after {count} failed logins",
            "refused a login from {address}: banned",
        )
        self._byOperator = Strikes(
            clock,
            1,
            seconds,
            "banned {address} for {seconds} s",
            "refused a login from {address}: banned by the operator",
        )
        self.tables = [self._strikes, self._byOperator]
        networks = [ip_network(each) for each in exempt]

        # Cache the results, because the same clients connect again and again.
        @lru_cache(4096)
        def isExempt(clientIP: str | None) -> bool:
            return clientIP is None or any(addressOf(clientIP) in each for each in networks)

        self._isExempt = isExempt

    def keys(self, attempt: Attempt) -> list[tuple[Strikes, Any]]:
        """
        @return: the tables whose L{Strikes.begin} may have counted the attempt, each with the key
            of the attempt in it.
        """
        return [(self._strikes, attempt.place)]

    def counts(self, attempt: Attempt) -> list[tuple[Strikes, Any]]:
        """
        @return: the tables that decide about the attempt and count it, each with the key of the
            attempt in it.
        """
        if self._byOperator.isFull(attempt.place):
            return [(self._byOperator, attempt.place)]
        if self._isExempt(attempt.clientIP) or self._known.isShared(attempt.clientIP):
            return []
        strikes, key = self._strikes, attempt.place
        if attempt.isFromKnownNetwork and (
            strikes.isFull(key) or strikes.mustWait(key, attempt.guess)
        ):
            return []
        return [(strikes, key)]

    def succeeded(self, attempt: Attempt) -> bool:
        """
        Do nothing.  The strikes against the address stay, because an attacker may have an account
        as well.

        @return: L{False}, because no strikes were removed.
        """
        return False

    def eachBan(self) -> Iterator[Ban]:
        """
        @return: the networks that are banned.
        """
        for table in self.tables:
            for key, seconds, refused in table.full():
                yield Ban(key, seconds, refused, table is self._byOperator)

    def countBans(self) -> int:
        """
        @return: the number of bans.
        """
        return sum(table.countFull() for table in self.tables)

    def ban(self, clientIP: str) -> None:
        """
        Ban an IPv4 address, or the /64 of an IPv6 address.  The operator has asked for this ban.
        """
        self._byOperator.fill(networkOf(clientIP))

    def lift(self, clientIP: str) -> bool:
        """
        End the bans of an IPv4 address, or of the /64 of an IPv6 address.  Also forget its failed
        logins.

        @return: whether there were bans or failed logins to forget.
        """
        # Make a list first, because any() would stop after the first table that had strikes.
        cleared = [table.clear(networkOf(clientIP)) for table in self.tables]
        return any(cleared)


class UserThrottle:
    """
    Counts failures twice.  The first count is for each user and network (IPv4 /24, IPv6 /64).  The
    second count is for each user and all networks together from which the user has not logged in
    before.  The second count limits guesses from many addresses.  It does not apply to the known
    networks of the user, so the user can still log in from them.
    """

    def __init__(
        self,
        clock: IReactorTime,
        known: KnownNetworks,
        each: int = 10,
        unknownNetworks: int = 30,
        seconds: float = 3600,
    ) -> None:
        """
        @param each: the most failures of one user from one network.
        @param unknownNetworks: the most failures of one user from all unknown networks together.
        @param seconds: how many seconds the failures are remembered after the last strike.
        """
        self._each = Strikes(
            clock,
            each,
            seconds,
            "refusing {user} from {network} for {seconds} s after {count} failed logins",
            "refused a login from {address}: too many failed logins of {user}",
        )
        self._unknownNetworks = Strikes(
            clock,
            unknownNetworks,
            seconds,
            "refusing {user} for {seconds} s from networks without a login of that user, after "
            "{count} failed logins",
            "refused a login from {address}: too many failed logins of {user} from many networks",
        )
        self.tables = [self._each, self._unknownNetworks]

    def keys(self, attempt: Attempt) -> list[tuple[Strikes, Any]]:
        """
        @return: the tables whose L{Strikes.begin} may have counted the attempt, each with the key
            in this table.
        """
        return [(self._each, attempt.pair), (self._unknownNetworks, (attempt.user,))]

    def counts(self, attempt: Attempt) -> list[tuple[Strikes, Any]]:
        """
        @return: the tables that decide about the attempt and count it, each with the key in this
            table.
        """
        pair = (self._each, attempt.pair)
        if attempt.isFromKnownNetwork:
            return [pair]
        return [pair, (self._unknownNetworks, (attempt.user,))]

    def succeeded(self, attempt: Attempt) -> bool:
        """
        Forget the strikes against the user from this network.

        @return: whether any strikes were removed.
        """
        return self._each.clear(attempt.pair)

    def lift(self, user: bytes) -> bool:
        """
        Forget all failures of a user.

        @param user: see L{Attempt.user}.
        @return: whether there were failures to forget.
        """
        cleared = [self._each.clear(key) for key in self._each.held() if key[0] == user]
        cleared.append(self._unknownNetworks.clear((user,)))
        return any(cleared)
