"""
A throttle that writes down what it is told.
"""

from __future__ import annotations

from typing import Any

from zope.interface import implementer

from pop3svc.interfaces import ILoginThrottle

__all__ = ["RecordingThrottle"]


@implementer(ILoginThrottle)
class RecordingThrottle:
    """
    Admits each attempt, or refuses each.

    @ivar told: each call as a word and the arguments after C{info}.
    @ivar admits: whether attempts are admitted.
    @ivar error: raised in place of a decision.
    """

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.admits = True
        self.error: Exception | None = None

    def mayLogin(self, info: Any, username: str, password: str | None) -> bool:
        self.told.append(("may", username, password))
        if self.error is not None:
            raise self.error
        return self.admits

    def loginFailed(self, info: Any, username: str) -> bool:
        self.told.append(("failed", username))
        return False

    def loginSucceeded(self, info: Any, username: str) -> None:
        self.told.append(("succeeded", username))

    def loginAbandoned(self, info: Any, username: str, isLost: bool) -> None:
        self.told.append(("abandoned", username, isLost))
