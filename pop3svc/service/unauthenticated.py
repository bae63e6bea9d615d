"""
Count by network the connections on which nobody has logged in.  With these counts, one network with
many connections cannot use up the places of other networks.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableSet
from typing import Any

from pop3svc.networks import networkOf

__all__ = ["UnauthenticatedConnections"]


class UnauthenticatedConnections(MutableSet[Any]):
    """
    A set of connections, which have an attribute C{address}.  Each operation of the set takes
    constant time.
    """

    def __init__(self) -> None:
        # "_networks" has the connections of each network, in order of arrival.  "_by" has the
        # networks with each number of connections, in the order in which they reached that number.
        self._networks: dict[str, dict[Any, None]] = {}
        self._by: dict[int, dict[str, None]] = {}
        self._most = 0
        self._count = 0

    def __contains__(self, each: object) -> bool:
        address = getattr(each, "address", None)
        return each in self._networks.get(networkOf(address), ())

    def __iter__(self) -> Iterator[Any]:
        for those in self._networks.values():
            yield from those

    def __len__(self) -> int:
        return self._count

    def add(self, each: Any) -> None:
        """
        Add a new connection.
        """
        network = networkOf(each.address)
        those = self._networks.setdefault(network, {})
        if each not in those:
            those[each] = None
            self._count += 1
            self._move(network, len(those) - 1, len(those))

    def discard(self, each: Any) -> None:
        """
        Remove a connection that has logged in or ended.
        """
        network = networkOf(each.address)
        those = self._networks.get(network)
        if those is not None and each in those:
            del those[each]
            self._count -= 1
            self._move(network, len(those) + 1, len(those))
            if not those:
                del self._networks[network]

    def _move(self, network: str, before: int, now: int) -> None:
        by = self._by
        if before:
            those = by[before]
            del those[network]
            if not those:
                del by[before]
        if now:
            if now in by:
                by[now][network] = None
            else:
                by[now] = {network: None}
        if now > self._most or self._most not in by:
            # This network has more connections than any other, or it was alone in having the most
            # and has lost one.
            self._most = now

    def longestWaiting(self) -> Any:
        """
        @return: the oldest connection of the network with the most connections; L{None} if
            the set is empty.
        """
        if not self._count:
            return None
        network = next(iter(self._by[self._most]))
        return next(iter(self._networks[network]))
