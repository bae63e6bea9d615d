"""
Coroutines started in a test.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred


def start(coroutine: Any) -> tuple[Deferred[Any], list[Any]]:
    deferred = Deferred.fromCoroutine(coroutine)
    got: list[Any] = []
    deferred.addBoth(got.append)
    return deferred, got
