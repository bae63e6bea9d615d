"""
Log warnings for the author of a provider.  A warning about a method of a class is logged once.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from twisted.logger import Logger

__all__ = ["HELD", "nameOf", "printable", "remarkHeld", "warnOnce"]

log = Logger(namespace="pop3svc")

# A call that blocks the reactor for more seconds than this causes a warning.  Such a call has
# probably waited for something, and every client notices the delay.
HELD = 0.5

# The warnings that were logged already, by class.
_logged: WeakKeyDictionary[type, set[str]] = WeakKeyDictionary()


def nameOf(call: Any) -> str:
    """
    @return: the name of a provider's method together with its class.
    """
    owner = getattr(call, "__self__", None)
    if owner is None:
        return getattr(call, "__qualname__", repr(call))
    return f"{type(owner).__name__}.{getattr(call, '__name__', 'a call')}"


def printable(name: str) -> str:
    """
    @return: the name, for the log.  Characters that are not printable are escaped.
    """
    return name if name.isprintable() else ascii(name)[1:-1]


def warnOnce(call: Any, sentence: str, **more: Any) -> None:
    """
    Log a warning about a method, unless the same warning about this method of this class was logged
    before.
    """
    logged = _logged.setdefault(type(getattr(call, "__self__", call)), set())
    key = f"{nameOf(call)}: {sentence}"
    if key not in logged:
        logged.add(key)
        log.warn(sentence, call=nameOf(call), **more)


def remarkHeld(call: Any, held: float) -> None:
    """
    Warn that a call has blocked the reactor for more than L{HELD} seconds.

    @param held: how many seconds the call has blocked the reactor.
    """
    warnOnce(
        call,
        "{call} blocked the reactor for {held:.1f} s, and all clients waited: return a Deferred, "
        "make it a coroutine, or wrap the provider in InThreads",
        held=held,
    )
