"""
The source of an import, which has messages in an order.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Source", "SourceMessage", "fitArrivals"]


@dataclass(frozen=True, slots=True)
class SourceMessage:
    """
    A message that may be imported.

    @ivar key: the key by which the source finds the message.
    @ivar arrival: the time when the message arrived, in seconds since the epoch.
    @ivar uniqueID: the unique-id that the message keeps; L{None} if the import makes a unique-id
        from the content.
    """

    key: Any
    arrival: float
    uniqueID: str | None


class Source:
    """
    A file or a directory that holds messages.  All methods block.

    @ivar path: the path of the file or the directory.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def messages(self) -> Sequence[SourceMessage]:
        """
        Find the messages.

        @return: the messages in order.
        @raise NotPossible: the source cannot be used.
        @raise TryAgain: the source cannot be used now.
        @raise OSError: the source cannot be read.
        """
        raise NotImplementedError

    def pieces(self, message: SourceMessage) -> Iterator[bytes]:
        """
        Read a message.

        @return: the octets of the message, in pieces of bounded size.
        @raise Unreadable: the message cannot be read completely.  The iterator raises this error.
        @raise OSError: the message cannot be read.  The iterator raises this error.
        """
        raise NotImplementedError

    def hasMore(self) -> bool:
        """
        @return: whether the source may have got new messages since the call of L{messages}.
        """
        raise NotImplementedError

    def close(self) -> None:
        """
        Close the files of the source.
        """


def fitArrivals(arrivals: Sequence[float]) -> list[float]:
    """
    Change times of arrival so that they follow the order of the messages, because some stores list
    messages by their arrival.  As many times as possible stay unchanged.  A message whose time does
    not fit gets the time of the previous message.  If there is no previous message, it gets the
    first time that fits.

    @param arrivals: the times in seconds since the epoch, in the order of the messages.
    @return: the changed times, which never decrease.
    """
    # Find the longest subsequence of times that never decreases.  For this, keep for each length
    # the message with the least time that ends a subsequence of this length.
    ends: list[float] = []
    places: list[int] = []
    before: list[int] = []
    for place, arrival in enumerate(arrivals):
        length = bisect_right(ends, arrival)
        before.append(places[length - 1] if length else -1)
        ends[length : length + 1] = [arrival]
        places[length : length + 1] = [place]
    fits = set()
    place = places[-1] if places else -1
    while place >= 0:
        fits.add(place)
        place = before[place]
    fitted: list[float] = []
    first = next((each for place, each in enumerate(arrivals) if place in fits), 0.0)
    for place, arrival in enumerate(arrivals):
        fitted.append(arrival if place in fits else fitted[-1] if fitted else first)
    return fitted
