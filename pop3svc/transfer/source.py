"""
The source of an import: messages in order.
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

    @ivar key: finds the message in its source.
    @ivar arrival: when it arrived, seconds since the epoch.
    @ivar uniqueID: the unique-id that the message keeps; L{None} if the import makes a unique-id
        from the content.
    """

    key: Any
    arrival: float
    uniqueID: str | None


class Source:
    """
    A file or a directory that holds messages.  All methods block.

    @ivar path: its path.
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
        @raise Unreadable: (from the iterator) the message cannot be read completely.
        @raise OSError: (from the iterator) the message cannot be read.
        """
        raise NotImplementedError

    def hasMore(self) -> bool:
        """
        @return: whether new messages have arrived in the source since the call of L{messages}.
        """
        raise NotImplementedError

    def close(self) -> None:
        """
        Close the files.
        """


def fitArrivals(arrivals: Sequence[float]) -> list[float]:
    """
    Make the times of arrival follow the order of the messages, because some stores list messages by
    arrival.  As many times as possible stay unchanged.  If the time of a message does not fit, the
    message gets the time of the previous message.

    @param arrivals: seconds since the epoch, in the order of the messages.
    @return: seconds that never decrease.
    """
    # Find the longest subsequence that never decreases: for each length, the message that
    # ends such a subsequence with the least time.
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
