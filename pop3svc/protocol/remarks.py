"""
What the log tells the author of a provider, once for each class and method.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from twisted.logger import Logger

__all__ = ["HELD", "nameOf", "remarkHeld", "warnOnce"]

log = Logger(namespace="pop3svc")

# Seconds that a provider may hold the reactor before it is told so: longer than any
# call that does not wait, and long enough for every client to notice.
HELD = 0.5

# What was said of each class already.
_said: WeakKeyDictionary[type, set[str]] = WeakKeyDictionary()


def nameOf(call: Any) -> str:
    """
    @return: the class and the name of a provider's method.
    """
    owner = getattr(call, "__self__", None)
    if owner is None:
        return getattr(call, "__qualname__", repr(call))
    return f"{type(owner).__name__}.{getattr(call, '__name__', 'a call')}"


def warnOnce(call: Any, sentence: str, **more: Any) -> None:
    """
    Log a warning about a method, once for each class and method.
    """
    said = _said.setdefault(type(getattr(call, "__self__", call)), set())
    key = f"{nameOf(call)}: {sentence}"
    if key not in said:
        said.add(key)
        log.warn(sentence, call=nameOf(call), **more)


def remarkHeld(call: Any, held: float) -> None:
    """
    Say that a call has held the reactor for more than L{HELD}.

    @param held: seconds.
    """
    warnOnce(
        call,
        "{call} held the reactor for {held:.1f} s, and all clients with it: it should "
        "return a Deferred or be a coroutine, or run in InThreads(provider)",
        held=held,
    )
