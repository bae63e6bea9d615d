"""
Report the progress and the result of a transfer to the operator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Report", "messages"]

# The most messages that are named to the operator one by one.  The result gives the number of all
# messages that were left out.
_NAMED = 20


def messages(count: int) -> str:
    """
    @return: the number with the noun "message" in its singular or plural form.
    """
    return "1 message" if count == 1 else f"{count} messages"


class Report:
    """
    Counts the messages of a transfer that were not moved.

    @ivar exitStatus: 0 if all messages were moved, 75 if a later attempt may move all those that
        were not, and otherwise 1.
    """

    def __init__(
        self,
        say: Callable[[str], object],
        tell: Callable[[str], object],
        makeBar: Callable[[int], Any] = lambda total: None,
    ) -> None:
        """
        @param say: called with a sentence about each failure.
        @param tell: called with the sentence that reports the result.
        @param makeBar: makes a progress bar of C{tqdm}, or returns L{None}.
        """
        self._say = say
        self._tell = tell
        self._makeBar = makeBar
        self._bar: Any = None
        self.failures = 0
        self.exitStatus = 0

    def begin(self, total: int) -> None:
        """
        Begin to show the progress.

        @param total: the number of messages.
        """
        self.end()
        self._bar = self._makeBar(total)

    def advance(self) -> None:
        """
        Show that another message was handled.
        """
        if self._bar is not None:
            self._bar.update()

    def end(self) -> None:
        """
        Stop showing progress.
        """
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def failed(self, number: int, reason: str, isTemporary: bool = False) -> None:
        """
        Count a message that was not moved.  The first twenty of them are named to the operator.

        @param number: the number of the message in the transfer, where the first has the number 1.
        @param reason: a sentence without a full stop.
        """
        self.failures += 1
        if self.failures <= _NAMED:
            self._say(f"message {number} was left out: {reason}")
        if not isTemporary:
            self.exitStatus = 1
        elif not self.exitStatus:
            self.exitStatus = 75

    def note(self, text: str) -> None:
        """
        Tell the operator something that is not an error.
        """
        self._say(text)

    def conclude(self, text: str) -> None:
        """
        Report the result in a sentence.
        """
        self.end()
        if self.failures:
            text += f"; {self.failures} left out"
        self._tell(text)
