"""
Mbox files on disk, and a process that is killed at a system call.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.internet.defer import Deferred

from pop3svc.interfaces import DeliveryCopy
from pop3svc.providers.mbox import MboxStore, rewriting

ENVELOPE = b"From sender@example.test Mon Nov  2 10:00:00 2026\n"


def mboxOf(*messages: bytes) -> bytes:
    """
    An independent writer of mboxo: no message may contain C{From } at the start of a line.
    """
    parts = []
    for message in messages:
        end = b"" if not message or message.endswith(b"\n") else b"\n"
        parts.append(ENVELOPE + message + end + b"\n")
    return b"".join(parts)


def delivered(store: MboxStore, message: bytes, username: str = "alice", **more: Any) -> Any:
    """
    Deliver a message by the store.

    @return: the error, or L{None}.
    """
    copies = [DeliveryCopy(username, arrival=1793613600.0, **more)]
    results: list[Any] = []
    Deferred.fromCoroutine(store.deliver(copies, io.BytesIO(message))).addBoth(results.append)
    assert len(results) == 1
    return results[0][0] if isinstance(results[0], list) else results[0].raiseException()


# The calls that can change files, except setxattr.
CALLS = "mkdir open write pwrite ftruncate fsync rename unlink link fchown fchmod utime".split()


def _patched(
    each: Callable[[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any],
) -> Any:
    stack = [
        mock.patch.object(
            os,
            name,
            lambda *arguments, _name=name, _call=getattr(os, name), **named: each(
                _name, _call, arguments, named
            ),
        )
        for name in CALLS
    ]
    call = rewriting.exchange
    stack.append(
        mock.patch.object(
            rewriting, "exchange", lambda *arguments: each("exchange", call, arguments, {})
        )
    )
    return stack


def killedAt(number: int, isAfter: bool, work: Callable[[], object]) -> bool:
    """
    Do work in a child process that ends at one of its system calls.

    @param number: the number of the call.
    @param isAfter: end after the call instead of before it; if the call writes, after half of the
        octets.
    @return: whether the work ended before that call.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    count = 0

    def each(name: str, call: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        nonlocal count
        count += 1
        if count < number:
            return call(*arguments, **named)
        if isAfter:
            if name in ("pwrite", "write"):
                data = bytes(arguments[1])
                call(arguments[0], data[: (len(data) + 1) // 2], *arguments[2:])
            else:
                call(*arguments, **named)
        os._exit(9)

    with suppress(BaseException):
        for patch in _patched(each):
            patch.start()
        work()
        os._exit(0)
    os._exit(1)


def failingAt(number: int, error: int, work: Callable[[], object]) -> bool:
    """
    Do work while one system call fails.

    @return: whether the work ended before that call.
    """
    count = 0

    def each(name: str, call: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        nonlocal count
        count += 1
        if count == number:
            raise OSError(error, os.strerror(error))
        return call(*arguments, **named)

    patches = _patched(each)
    for patch in patches:
        patch.start()
    try:
        work()
    finally:
        for patch in patches:
            patch.stop()
    return count < number


def appendTo(path: Path, message: bytes) -> None:
    """
    Append a message as a delivery agent does, but without locks.
    """
    with path.open("ab") as file:
        file.write(mboxOf(message))
