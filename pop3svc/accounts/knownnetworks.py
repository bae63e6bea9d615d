"""
Remember the networks and the addresses from which users have logged in.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import islice
from typing import Any
from unicodedata import normalize

from twisted.internet.defer import DeferredLock

from pop3svc.files import disk
from pop3svc.networks import networkOf
from pop3svc.state import State
from pop3svc.threadpool import Executor

__all__ = ["KnownNetworks", "spelling"]

_SELECT = (
    "SELECT user, network, seen FROM network WHERE (user, network) > (?, ?) "
    "ORDER BY user, network LIMIT ?"
)
_INSERT = "INSERT OR REPLACE INTO network (user, network, seen) VALUES (?, ?, ?)"
_DELETE = "DELETE FROM network WHERE user = ? AND network = ?"
_DELETE_OLD = "DELETE FROM network WHERE seen <= ?"

Pair = tuple[str, str]


# Cache the results, because the same users log in again and again.
@lru_cache(1024)
def spelling(username: str) -> str:
    """
    Make the same text from all spellings of a name.  Databases and directories may ignore case,
    spaces and the width of characters in a name.  If each spelling had its own count, a client
    could make more guesses by using many spellings, and an address from which one user has logged
    in with several spellings would count as shared.

    @return: a text that is the same for all spellings of the name.
    """
    return " ".join(normalize("NFKC", username).casefold().split())


def _encoded(user: str) -> bytes:
    return user.encode("utf-8", "surrogateescape")


def _put(
    table: OrderedDict[str, dict[str, float]],
    bounds: tuple[int, int],
    key: str,
    inner: str,
    seen: float,
) -> list[Pair]:
    """
    Set the time of an inner key in the inner table of C{key}.  Move C{key} to the end of the outer
    table.

    @param bounds: the most keys of the outer table, and the most keys of an inner table.
    @return: the pairs of keys that were removed because a table was full.
    """
    most, each = bounds
    times = table.setdefault(key, {})
    table.move_to_end(key)
    times[inner] = max(seen, times.pop(inner, 0.0))
    gone: list[Pair] = []
    if len(times) > each:
        oldest = min(times, key=times.__getitem__)
        del times[oldest]
        gone.append((key, oldest))
    if len(table) > most:
        first, itsTimes = table.popitem(last=False)
        gone += [(first, it) for it in itsTimes]
    return gone


class KnownNetworks:
    """
    Remembers from which networks (IPv4 /24, IPv6 /64) each user has logged in, and which addresses
    several users share.

    An address is shared when L{SHARED} different users have logged in from it.  Examples are the
    addresses of an office, of a NAT, and of a gateway of containers.
    """

    # KEPT is the number of seconds after which a login is forgotten.  NEWS is the least number of
    # seconds between two records of the same user and network.
    KEPT = 90 * 86400
    NEWS = 86400
    # The most networks of a user.  They are enough for a home, an office and several mobile
    # networks.
    EACH = 16
    # The most users and the most addresses.  If there are more, the user or the address that was
    # not seen for the longest time is removed.  A user takes about 500 octets of memory.
    USERS = 100_000
    ADDRESSES = 100_000
    # An address is shared if at least this number of different users have logged in from it.
    SHARED = 3
    # The number of rows that are read at a time, or written in one transaction.  This number of
    # rows takes a few milliseconds.  Between two reads the reactor can do other work.
    SLICE = 2000

    def __init__(
        self,
        state: State | None = None,
        isWriter: bool = True,
        runner: Executor | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """
        @param state: the database.  Without a database, all logins are forgotten when the process
            exits.
        @param isWriter: whether this process may write to the database.
        @param runner: runs the functions that read and write the database.
        @param now: returns the seconds of the wall clock.  A monotonic clock would not do, because
            the stored times are used by later processes.
        """
        self._state = state
        self._isWriter = isWriter and state is not None
        self._runner = disk() if runner is None else runner
        self._now = now
        # The rows that have to be written, and the rows that a thread is writing now.
        self._changed: dict[Pair, float] = {}
        self._writing: dict[Pair, float] = {}
        self._gone: set[Pair] = set()
        self._saving = DeferredLock()
        self._users: OrderedDict[str, dict[str, float]] = OrderedDict()
        # For each address: at most SHARED users who have logged in from it, with the times.
        self._addresses: OrderedDict[str, dict[str, float]] = OrderedDict()

    def isKnown(self, username: str, clientIP: str | None) -> bool:
        """
        @return: whether the user has logged in from the network of the client in the last 90 days.
        """
        networks = self._users.get(spelling(username))
        if networks is None:
            return False
        seen = networks.get(networkOf(clientIP, 24))
        return seen is not None and self._now() - seen < self.KEPT

    def isShared(self, clientIP: str | None) -> bool:
        """
        @return: whether at least L{SHARED} different users have logged in from this address in the
            last 90 days.  All addresses of an IPv6 /64 count as one address.
        """
        users = self._addresses.get(networkOf(clientIP))
        if users is None or len(users) < self.SHARED:
            return False
        return self._now() - min(users.values()) < self.KEPT

    def add(self, username: str, clientIP: str | None) -> bool:
        """
        Record that the user has logged in from the address.

        @return: whether the login was recorded.  A further login of the same user from the same
            address is not recorded until a day has passed.
        """
        now, username = self._now(), spelling(username)
        network, address = networkOf(clientIP, 24), networkOf(clientIP)
        networks = self._users.get(username)
        seen = None if networks is None else networks.get(network)
        isNews = False
        if seen is None or now - seen >= self.NEWS:
            isNews = True
            self._setNetwork(username, network, now)
            self._note(username, network, now)
        if address and self._isNewSharer(address, username, now):
            isNews = True
            self._setSharer(address, username, now)
            self._note(username, address, now)
        return isNews

    def _setNetwork(self, username: str, network: str, seen: float) -> None:
        bounds = self.USERS, self.EACH
        for user, itsNetwork in _put(self._users, bounds, username, network, seen):
            self._forget(user, itsNetwork)

    def _isNewSharer(self, address: str, username: str, now: float) -> bool:
        users = self._addresses.get(address)
        if users is None:
            return True
        seen = users.get(username)
        if seen is not None:
            return now - seen >= self.NEWS
        # If there are SHARED users already, a new user replaces a user who was not seen for a day.
        # An address therefore stays shared while its users change.
        return len(users) < self.SHARED or now - min(users.values()) >= self.NEWS

    def _setSharer(self, address: str, username: str, seen: float) -> None:
        bounds = self.ADDRESSES, self.SHARED
        for where, user in _put(self._addresses, bounds, address, username, seen):
            self._forget(user, where)

    def _note(self, username: str, network: str, seen: float) -> None:
        if self._isWriter:
            self._changed[username, network] = seen
            self._gone.discard((username, network))

    def _forget(self, username: str, network: str) -> None:
        if self._isWriter:
            self._changed.pop((username, network), None)
            self._gone.add((username, network))

    # --- other processes ----------------------------------------------------------

    def state(self) -> list[list[Any]]:
        """
        @return: the logins that were not written to the database yet, or all logins if there is no
            database, for L{restore} in another process.  Each is a list of the user, the network
            and the time, serialisable as JSON.
        """
        rows: dict[Pair, float]
        if self._state is not None:
            rows = self._writing | self._changed
        else:
            rows = {}
            for each, users in self._addresses.items():
                rows.update(((user, each), seen) for user, seen in users.items())
            for user, networks in self._users.items():
                rows.update(((user, each), seen) for each, seen in networks.items())
        return [[user, network, seen] for (user, network), seen in rows.items()]

    def restore(self, rows: Iterable[Iterable[Any]]) -> None:
        """
        Add the logins that L{state} has returned in another process.
        """
        now = self._now()
        for user, network, seen in rows:
            # Accept no time in the future.  The clock may have been wrong when the time was
            # written.
            seen, user = min(seen, now), spelling(user)
            # An IPv6 /64 is used in both tables: as a network, and as an address.
            if not network.endswith("/32"):
                self._setNetwork(user, network, seen)
            if network and not network.endswith("/24"):
                self._setSharer(network, user, seen)

    # --- the file -------------------------------------------------------------------

    async def load(self) -> None:
        """
        Read the database in a thread, L{SLICE} rows at a time.
        """
        if self._state is None:
            return
        user, network = b"", ""
        while True:
            rows = await self._runner.run(self._state.read, _SELECT, user, network, self.SLICE)
            oldest = self._now() - self.KEPT
            self.restore(
                (name.decode("utf-8", "surrogateescape"), where, seen)
                for name, where, seen in rows
                if seen > oldest
            )
            if len(rows) < self.SLICE:
                return
            user, network, _ = rows[-1]

    async def save(self) -> None:
        """
        Write the changes in a thread.  A row expires after L{KEPT} seconds, but is deleted only
        after twice this time, because the clock may be wrong for some time.
        """
        if not self._isWriter:
            return
        await self._saving.acquire()
        self._writing, self._changed = self._changed, {}
        gone, self._gone = self._gone, set()
        isWritten = False
        try:
            isWritten = await self._runner.run(
                self._write, self._writing, gone, self._now() - 2 * self.KEPT
            )
        finally:
            if not isWritten:
                # The error was logged, and the next call tries again.  The next call must not
                # delete the row of a user who has logged in again meanwhile.
                self._gone |= gone - self._changed.keys()
                self._changed = self._writing | self._changed
            self._writing = {}
            self._saving.release()

    def _write(self, changed: dict[Pair, float], gone: set[Pair], oldest: float) -> bool:
        assert self._state is not None
        rows = iter(changed.items())
        while part := list(islice(rows, self.SLICE)):
            values = [(_encoded(user), network, seen) for (user, network), seen in part]
            if not self._state.write(_INSERT, values):
                return False
        deletions = [(_encoded(user), network) for user, network in gone]
        if deletions and not self._state.write(_DELETE, deletions):
            return False
        return self._state.write(_DELETE_OLD, [(oldest,)])
