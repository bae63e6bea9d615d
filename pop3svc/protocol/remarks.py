"""
Log warnings for the author of a provider, once for each class and method.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from twisted.logger import Logger

__all__ = ["HELD", "nameOf", "printable", "remarkHeld", "warnOnce"]

log = Logger(namespace="pop3svc")

# A call that blocks the reactor for more than this many seconds causes a warning.  Only a call that
# waits takes so long, and every client notices the delay.
HELD = 0.5

# The warnings that are already in the log, by class.
_logged: WeakKeyDictionary[type, set[str]] = WeakKeyDictionary()


def nameOf(call: Any) -> str:
    """
    @return: the class and the name of a provider's method.
    """
    owner = getattr(call, "__self__", None)
    if owner is None:
        return getattr(call, "__qualname__", repr(call))
    return f"{type(owner).__name__}.{getattr(call, '__name__', 'a call')}"


def printable(name: str) -> str:
    """
    @return: the name for the log, escaped if it has unprintable characters.
    """
    return name if name.isprintable() else ascii(name)[1:-1]


def warnOnce(call: Any, sentence: str, **more: Any) -> None:
    """
    Log a warning about a method, once for each class and method.
    """
    logged = _logged.setdefault(type(getattr(call, "__self__", call)), set())
    key = f"{nameOf(call)}: {sentence}"
    if key not in logged:
        logged.add(key)
        log.warn(sentence, call=nameOf(call), **more)


def remarkHeld(call: Any, held: float) -> None:
    """
    Warn that a call has blocked the reactor for more than L{HELD} seconds.

    @param held: seconds.
    """
    warnOnce(
        call,
        "{call} blocked the reactor for {held:.1f} s, and all clients waited: return a Deferred, "
        "make it a coroutine, or wrap the provider in InThreads",
        held=held,
    )
