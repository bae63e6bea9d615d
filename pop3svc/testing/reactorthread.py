"""
Run the Twisted reactor in its own thread while it is needed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure

__all__ = ["ReactorThread", "reactorThread"]

# A call in the reactor's thread may take this number of seconds, which is enough on a busy machine.
_PATIENCE = 30


class ReactorThread:
    """
    Runs the reactor in a thread, for programs that do not run it themselves.  The reactor runs
    from the first L{hold} to the last L{release}.  At other times the program may run it in the
    main thread, as trial does for each of its tests.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._holders = 0
        self._thread: threading.Thread | None = None

    def hold(self) -> Any:
        """
        Start the reactor if it does not run yet.

        @return: the reactor.
        @raise RuntimeError: the reactor cannot run in a thread of this program; the text is a
            sentence with the reason.
        """
        from twisted.internet import reactor

        with self._guard:
            if not self._holders:
                self._start(reactor)
            elif self._thread is None or not self._thread.is_alive():
                raise RuntimeError(
                    "the thread with the Twisted reactor has ended, perhaps by a fork"
                )
            self._holders += 1
        return reactor

    def _start(self, reactor: Any) -> None:
        if reactor.running:
            raise RuntimeError(
                "the Twisted reactor already runs in this program, and POP3Server has to "
                "run it in a thread; use the reactor to serve a POP3Factory instead"
            )
        started: Future[None] = Future()

        def run() -> None:
            try:
                reactor.callFromThread(started.set_result, None)
                reactor.run(installSignalHandlers=False)
            except Exception as error:
                started.set_exception(
                    RuntimeError(f"the Twisted reactor does not run: {type(error).__name__}")
                )

        self._thread = threading.Thread(target=run, name="pop3svc-reactor", daemon=True)
        self._thread.start()
        started.result(_PATIENCE)

    def release(self) -> None:
        """
        End one L{hold}.  The last release stops the reactor.
        """
        from twisted.internet import reactor

        with self._guard:
            self._holders -= 1
            if not self._holders and self._thread is not None:
                # Call crash() instead of stop(), because a stopped reactor cannot run again.
                ending: Any = reactor
                ending.callFromThread(ending.crash)
                self._thread.join(_PATIENCE)
                self._thread = None

    def call(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """
        Call a function in the reactor's thread, and wait for its result.  If the function returns a
        Deferred, wait for the result of the Deferred.

        @raise RuntimeError: the caller runs in the reactor's thread.
        @raise TimeoutError: there is no result within 30 seconds.
        """
        from twisted.internet import reactor

        if threading.current_thread() is self._thread:
            raise RuntimeError("the reactor's thread must not wait for itself")
        answer: Future[Any] = Future()

        def arrived(value: Any) -> None:
            if isinstance(value, Failure):
                answer.set_exception(value.value)
            else:
                answer.set_result(value)

        def run() -> None:
            waiting: Deferred[Any] = maybeDeferred(call, *arguments)
            waiting.addBoth(arrived)

        running: Any = reactor
        running.callFromThread(run)
        return answer.result(_PATIENCE)


reactorThread = ReactorThread()
