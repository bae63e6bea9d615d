"""
The errors of a transfer.
"""

from __future__ import annotations

__all__ = ["NotPossible", "TryAgain", "Unreadable", "reasonOf"]


class NotPossible(ValueError):
    """
    The transfer cannot be done.  The text is a sentence for the operator.
    """


class TryAgain(Exception):
    """
    The transfer may succeed later.  The text is a sentence for the operator.
    """


class Unreadable(Exception):
    """
    One message cannot be read.

    @ivar isTemporary: whether a later attempt may succeed, because the message was moved or changed
        meanwhile.
    """

    def __init__(self, text: str, isTemporary: bool = False) -> None:
        """
        @param text: the reason, in words that can follow "because".
        """
        super().__init__(text)
        self.isTemporary = isTemporary


def reasonOf(error: OSError) -> str:
    """
    @return: the reason of an error of the system, in a few words.
    """
    return error.strerror or str(error) or type(error).__name__
