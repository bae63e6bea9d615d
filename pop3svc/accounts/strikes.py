"""
Count failed logins by address and by user, and limit them.
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

# Octets of the keyed digest of a name and a password.  A collision (one in 2**64) is
# harmless, because it only counts two guesses as one.
GUESS = 8


def _printable(name: str) -> str:
    return name if name.isprintable() else ascii(name)[1:-1]


@implementer(ILoginAttempt)
class Attempt:
    """
    One attempt to log in.

    @ivar arrived: when the attempt arrived, in seconds of the clock.
    @ivar user: a keyed digest of the name.  The client chooses the name, so only a digest
        bounds the size of a table's keys.
    @ivar guess: a keyed digest of name and password.
    @ivar place: the client's address, or its /64 for IPv6, to which a ban applies.
    @ivar pair: the digest of the name, and the client's network.
    @ivar counted: the tables that count the attempt, each with its key.
    @ivar waitsFor: the table and the key because of which the attempt has to wait, or L{None}.
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
        The client's address for the log; for IPv6, its /64.
        """
        return self.place.removesuffix("/32") or "(no address)"

    @property
    def network(self) -> str:
        """
        The client's network for the log.
        """
        return self.pair[1] or "(no address)"

    @property
    def printableName(self) -> str:
        """
        The user name for the log.
        """
        return _printable(self.username)


class _Record:
    """
    The strikes against one key.  Times are seconds of the clock.

    @ivar guesses: the digests of the different guesses, concatenated.
    @ivar first: the time of the first strike.
    @ivar last: the time of the last strike.
    @ivar renewed: the time of the last refused attempt.
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
    The keys whose limit is reached.  Metrics need their number even during an attack, so the number
    is known without going over all keys.

    A heap has one entry for each key, with the time at which its strikes end.  If later strikes
    have moved the end, a new entry replaces the old one when the time of the old one has come.
    """

    # The entries of removed keys remain until their time has come.  If there are more entries than
    # this number, which is twice the most keys of a table, the heap is made again.
    MOST = 131_072

    def __init__(self, end: Callable[[Any], float]) -> None:
        """
        @param end: takes a key, and returns when its strikes end, in seconds of the clock.
        """
        self._end = end
        # The keys, in the order in which they have reached the limit.
        self.keys: dict[Any, None] = {}
        self._entries: list[tuple[float, Any]] = []
        # The keys of the entries.
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
        @param now: seconds of the clock.
        @return: the keys whose strikes have ended; their limit is not reached any more.
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
    Counts different failed guesses for each key.  Attempts without a result yet count, too.

    After C{limit} strikes, attempts are refused for C{seconds}, counted from the last strike.
    During the first day after the first strike, a refused attempt starts this period again.
    """

    # Seconds after the first strike during which a refused attempt starts the period again.
    LONGEST = 86400
    # The most keys.  The oldest keys are evicted first.  A key takes about 600 octets of memory.
    BOUND = 65536
    # Seconds after which an attempt under way is ignored, because its process may have
    # died.  No login takes this long.
    LAPSE = 300
    # The most keys with attempts under way.  There are fewer, unless processes die before they end
    # their attempts.
    MAX_PENDING = 50_000

    def __init__(
        self, clock: IReactorTime, limit: int, seconds: float, filled: str, refused: str
    ) -> None:
        """
        @param filled: the log message when the limit is reached.
        @param refused: the log message when an attempt is refused.
        """
        self._clock = clock
        self.limit = limit
        self.seconds = seconds
        self._filled = filled
        self._refused = refused
        self._records: BoundedDict[Any, _Record] = BoundedDict(self.BOUND)
        self._full = self._noneFull()
        # Guesses under way, by key: the number of attempts with that guess, and the time of
        # the last one.
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
        @return: when the strikes are forgotten, in seconds of the clock.
        """
        renewed = min(record.renewed + self.seconds, record.first + self.LONGEST)
        return max(record.last + self.seconds, renewed)

    def isFull(self, key: Any) -> bool:
        """
        @return: whether the limit is reached, so that attempts are refused.
        """
        if not self._records:
            return False
        record = self._record(key)
        return record is not None and len(record.guesses) >= self.limit * GUESS

    def mustWait(self, key: Any, guess: bytes) -> bool:
        """
        @return: whether this attempt would exceed the limit if all attempts under way failed.
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
        Count an attempt as under way.
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
        Stop counting an attempt as under way.
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
        Count a failed attempt.  A repeated guess is not another strike, and nothing is added
        once the limit is reached.

        @return: whether this strike reaches the limit.
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

        @return: the number of refused attempts.
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
        @return: the keys with strikes.
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
        @return: each key whose limit is reached, with the seconds until attempts are admitted
            again, and the number of refused attempts.
        """
        for key in list(self._full.keys):
            record = self._record(key)
            if record is not None and key in self._full.keys:
                yield key, self._end(record) - self._clock.seconds(), record.refused

    def fill(self, key: Any) -> None:
        """
        Reach the limit of a key at once.
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
        Log that the limit is reached.
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
        Log that an attempt is refused: the first, the tenth, the hundredth and so on, so
        that repeated attempts cannot fill the log.
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
        @return: the strikes, serialisable as JSON, for L{restore} in another process.
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
        Use the strikes that L{state} of another process has returned.
        """
        now = self._clock.seconds()
        for key, guesses, first, last, renewed, refused in state:
            record = _Record(now - first)
            record.guesses = bytes.fromhex(guesses)
            record.last, record.renewed, record.refused = now - last, now - renewed, refused
            self._put(_fromJSON(key), record)
        # Because of this, the strikes of a key may end sooner.
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
    A network that is banned now.

    @ivar network: an IPv4 address with /32, or an IPv6 /64.
    @ivar seconds: the time until the ban ends, if no further attempt is refused.
    @ivar refused: the number of refused attempts.
    @ivar isByOperator: whether the operator has banned the network.
    """

    network: str
    seconds: float
    refused: int
    isByOperator: bool


class BanEngine:
    """
    Bans addresses.  An address with three different failed guesses is banned until 10,000 seconds
    after its last attempt.  All IPv6 addresses of a /64 count as one address.

    Exempt addresses and addresses shared by several users are never banned.  A ban does not apply
    to a user who has logged in from the client's network before.  The operator can ban any address
    for the same time.  Such a ban has no exceptions.
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
        @param exempt: networks that are never banned.
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

        # Cached, because the same few clients connect repeatedly.
        @lru_cache(4096)
        def isExempt(clientIP: str | None) -> bool:
            return clientIP is None or any(addressOf(clientIP) in each for each in networks)

        self._isExempt = isExempt

    def keys(self, attempt: Attempt) -> list[tuple[Strikes, Any]]:
        """
        @return: the tables that may count the attempt as under way, each with its key.
        """
        return [(self._strikes, attempt.place)]

    def counts(self, attempt: Attempt) -> list[tuple[Strikes, Any]]:
        """
        @return: the tables that decide about the attempt and count it, each with its key.
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
        Keep the strikes against the address, because an attacker may have an account too.

        @return: whether anything has changed.
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
        Ban an address, or its /64 for IPv6, by order of the operator.
        """
        self._byOperator.fill(networkOf(clientIP))

    def lift(self, clientIP: str) -> bool:
        """
        End the bans of an address, or of its /64 for IPv6, and forget its failed logins.

        @return: whether there were any.
        """
        # A list, because each table has to be cleared.
        cleared = [table.clear(networkOf(clientIP)) for table in self.tables]
        return any(cleared)


class UserThrottle:
    """
    Counts failures for each user and network (IPv4 /24, IPv6 /64), and for each user from all
    unknown networks together.  The second count stops guessing from many addresses.  The user can
    still log in from the known networks, because this count does not apply to them.
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
        @param each: the limit of failures for one user from one network.
        @param unknownNetworks: the limit of failures for one user from all unknown networks.
        @param seconds: how long failures are remembered after the last strike.
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
            "refusing {user} from networks without a login of that user for {seconds} s after "
            "{count} failed logins",
            "refused a login from {address}: too many failed logins of {user} from many networks",
        )
        self.tables = [self._each, self._unknownNetworks]

    def keys(self, attempt: Attempt) -> list[tuple[Strikes, Any]]:
        """
        @return: the tables that may count the attempt as under way, each with its key.
        """
        return [(self._each, attempt.pair), (self._unknownNetworks, (attempt.user,))]

    def counts(self, attempt: Attempt) -> list[tuple[Strikes, Any]]:
        """
        @return: the tables that decide about the attempt and count it, each with its key.
        """
        pair = (self._each, attempt.pair)
        if attempt.isFromKnownNetwork:
            return [pair]
        return [pair, (self._unknownNetworks, (attempt.user,))]

    def succeeded(self, attempt: Attempt) -> bool:
        """
        Clear the user's strikes from that network.

        @return: whether anything has changed.
        """
        return self._each.clear(attempt.pair)

    def lift(self, user: bytes) -> bool:
        """
        Forget all failures of a user.

        @param user: see L{Attempt.user}.
        @return: whether there were any.
        """
        cleared = [self._each.clear(key) for key in self._each.held() if key[0] == user]
        cleared.append(self._unknownNetworks.clear((user,)))
        return any(cleared)
