"""
Run a command in the foreground: its messages, its progress, its signals and its exit status.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from twisted.internet.defer import Deferred
from twisted.logger import LogEvent, formatEvent, globalLogBeginner
from twisted.python.failure import Failure

from pop3svc.errors import DeliveryError
from pop3svc.logs import escaped
from pop3svc.service.output import outputFault
from pop3svc.service.settings import SettingError
from pop3svc.transfer.failures import NotPossible, TryAgain
from pop3svc.transfer.report import Report

__all__ = ["TEMPORARY", "complete", "endWith", "makeReport", "mustEnd", "say"]

# The exit status if a later attempt may succeed: EX_TEMPFAIL of sysexits.h.
TEMPORARY = 75

# Whether the operator wants to end the command.
_isEnding = False


def say(text: str) -> None:
    """
    Print a sentence about a failure.
    """
    print(f"pop3svc: {escaped(text)}", file=sys.stderr, flush=True)


def mustEnd() -> bool:
    """
    @return: whether the operator wants to end the command.
    """
    return _isEnding


def endWith(run: Callable[[], int]) -> NoReturn:
    """
    Run a command, and end the process.  The exit status is 0 if all work is done, 75 if a later
    attempt may succeed, and otherwise 1.

    @param run: a function that runs the command, and returns the exit status.
    """
    observer: Any = _observe
    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)
    try:
        status = run()
    except (NotPossible, SettingError) as error:
        say(str(error))
        status = 1
    except TryAgain as error:
        say(f"{str(error).rstrip('.')}; run the command again to continue")
        status = TEMPORARY
    except DeliveryError as error:
        say(error.text)
        status = TEMPORARY if error.isTemporary else 1
    except (OSError, ValueError) as error:
        say(outputFault() or str(error))
        status = 1
    except KeyboardInterrupt:
        say("the command was interrupted")
        status = TEMPORARY
    fault = outputFault()
    if fault:
        say(fault)
        status = 1
    # End the process at once, because a thread that hangs must not keep it alive.
    os._exit(status)


def _observe(event: LogEvent) -> None:
    """
    Show the warnings and the errors that stores log.
    """
    if event["log_level"].name in ("warn", "error", "critical"):
        say(formatEvent(event))


def makeReport() -> Report:
    """
    @return: a report that prints its lines to the terminal.
    """
    return Report(say, lambda text: print(escaped(text), flush=True), _bar)


def _bar(total: int) -> Any:
    """
    @return: a progress bar; L{None} if the standard error is no terminal, or if the library of the
        bar is missing.
    """
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=total, unit=" messages", leave=False)


def complete(work: Callable[[], Any], ended: Callable[[], object] = lambda: None) -> int:
    """
    Run a coroutine in a reactor.  After the first signal the coroutine ends when the present
    message is done.  The second signal ends the process at once.

    @param ended: called in the reactor after the first signal.
    @return: the result of the coroutine.
    """
    from twisted.internet import reactor as installed

    reactor: Any = installed
    outcome: list[Any] = []

    def end(number: int, frame: object) -> None:
        global _isEnding
        if _isEnding:
            os._exit(TEMPORARY)
        _isEnding = True
        reactor.callFromThread(ended)

    def start() -> None:
        result: Deferred[Any] = Deferred.fromCoroutine(work())
        result.addBoth(outcome.append).addBoth(lambda _: reactor.stop())

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    reactor.callWhenRunning(start)
    reactor.run(installSignalHandlers=False)
    if not outcome:
        raise TryAgain("the command was interrupted")
    if isinstance(outcome[0], Failure):
        outcome[0].raiseException()
    status: int = outcome[0]
    return status
