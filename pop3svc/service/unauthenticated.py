"""
Who is connected and not logged in: counted by network, so that one network that opens
many connections takes no room from others.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableSet
from typing import Any

from pop3svc.networks import networkOf

__all__ = ["UnauthenticatedConnections"]


class UnauthenticatedConnections(MutableSet[Any]):
    """
    A set of what has an C{address}.  All that it does takes the same time, however
    many there are.
    """

    def __init__(self) -> None:
        # By network, in the order in which they have come; the networks by how many
        # are of each, those first that have had as many for longest.
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
        Somebody has come.
        """
        network = networkOf(each.address)
        those = self._networks.setdefault(network, {})
        if each not in those:
            those[each] = None
            self._count += 1
            self._move(network, len(those) - 1, len(those))

    def discard(self, each: Any) -> None:
        """
        Somebody has logged in, or left.
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
            # It has the most now, or had it and has one fewer.
            self._most = now

    def longestWaiting(self) -> Any:
        """
        @return: of the network with the most of them whoever has come first; L{None}
            if there is nobody.
        """
        if not self._count:
            return None
        network = next(iter(self._by[self._most]))
        return next(iter(self._networks[network]))
