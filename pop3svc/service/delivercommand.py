"""
C{pop3svc deliver}: store one message from the standard input.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import syslog
from collections.abc import Mapping, Sequence
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO, NoReturn

from twisted.internet.defer import Deferred
from twisted.logger import LogEvent, formatEvent, globalLogBeginner
from twisted.python.failure import Failure

from pop3svc.awaiting import startNow
from pop3svc.delivery.envelope import Trace, isPrintable, traceLine
from pop3svc.errors import (
    DeliveryError,
    MalformedMessage,
    MessageTooLarge,
    NoSuchUser,
    StoreUnavailable,
)
from pop3svc.files import useNoThreads
from pop3svc.logs import escaped
from pop3svc.service.destinations import addStoreOptions, recipientsOf, settingsFrom
from pop3svc.service.parser import Parser
from pop3svc.service.settings import SettingError, Settings

__all__ = ["deliver", "main", "makeParser"]

# The most octets of a message that are kept in memory, and the octets of one read.
_SPOOLED = 262_144
# The most octets of the envelope line that some programs put before the message.
_LINE = 65_536

_TEMPORARY = 75
# Seconds for which --help waits for a message.  A short time is enough, because a program that
# delivers mail writes the message at once.
_HELP = 5.0
# Seconds within which a call of the store must end after its cancellation.
_PATIENCE = 10


class _NotNow(Exception):
    """
    The mail server has to try the delivery again.  The text is a sentence for the operator.
    """


def main(argv: Sequence[str]) -> NoReturn:
    """
    Run the command C{pop3svc deliver}.  The command ends the process with an exit status of
    sysexits.h.  The status is 0 if the message is stored durably, or if only the help was asked
    for, and 67 if no user has the name.  The status 77 or 65 means that the service will never
    accept the message.  In all other cases the status is 75, and the mail server tries again later.
    If the status is neither 0 nor 75, mail servers return the message to its sender.
    """
    status = _TEMPORARY
    try:
        signal.signal(signal.SIGTERM, _interrupted)
        signal.signal(signal.SIGINT, _interrupted)
        # Ignore SIGPIPE, because the caller reads the exit status, and may not read the output.
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        status = deliver(argv, sys.stdin.buffer, os.environ)
    except BaseException as error:
        _report(f"deliver has a fault: {_placeOf(error)}", "4.3.0 The service has a fault.")
    # End the process without cleanup, because an output that cannot be flushed would change the
    # exit status.
    os._exit(status)


def _interrupted(number: int, frame: object) -> None:
    raise _NotNow("deliver was interrupted")


def _placeOf(error: BaseException) -> str:
    """
    @return: the class of an error, and the place in the code that raised it.
    """
    trace = error.__traceback__
    place = ""
    while trace is not None:
        place = f" in {os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__}{place}"


def _report(detail: str, text: str) -> None:
    """
    Report the reason why the message was not stored.

    @param detail: a text for the operator.  This text goes to the standard error if that is a
        terminal, and otherwise to the system's log.
    @param text: a text for the sender.  If the standard error is no terminal, this text goes there,
        because mail servers put the output of a command into the mail that they return.
    """
    try:
        if sys.stderr.isatty():
            print(f"pop3svc: {escaped(detail)}", file=sys.stderr, flush=True)
            return
        syslog.openlog("pop3svc", syslog.LOG_PID, syslog.LOG_MAIL)
        syslog.syslog(syslog.LOG_ERR, escaped(detail))
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError, AttributeError):
        # Ignore the error, because there is no other place to report it.
        pass


def deliver(argv: Sequence[str], source: BinaryIO, environment: Mapping[str, str]) -> int:
    """
    Store a message.

    @param argv: the arguments of the command.
    @param source: a stream with the message.
    @return: the exit status.
    """
    try:
        observer: Any = _observe
        globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)
        arguments = _arguments(argv, source)
        if arguments is None:
            return 0
        settings = settingsFrom(arguments)
        recipient = _recipient(arguments.user, environment)
        with SpooledTemporaryFile(_SPOOLED) as spool:
            trace = _read(source, spool, settings.policy.maxMessageSize)
            # Ignore interruptions from here on, because the command ends soon.  After an
            # interruption, the caller would not know whether the message is stored.
            _holdSignals()
            trace.check(recipient if arguments.delivered_to else None)
            header = _header(arguments, recipient)
            _complete(_store(settings, recipient, header, spool), settings.policy.answerTimeout)
    except DeliveryError as error:
        _report(error.text, f"{error.status} {error.text}")
        return error.exitStatus
    except _NotNow as error:
        _report(str(error), "4.3.0 The delivery was interrupted.")
        return _TEMPORARY
    except SettingError as error:
        _report(str(error), "4.3.5 The configuration cannot be used.")
        return _TEMPORARY
    except (OSError, ValueError) as error:
        _report(str(error), "4.3.0 The message cannot be stored now.")
        return _TEMPORARY
    return 0


def _observe(event: LogEvent) -> None:
    """
    Send warnings and errors to the system's log.
    """
    if event["log_level"].name in ("warn", "error", "critical"):
        syslog.openlog("pop3svc", syslog.LOG_PID, syslog.LOG_MAIL)
        syslog.syslog(syslog.LOG_ERR, escaped(formatEvent(event)))


def _holdSignals() -> None:
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
    except ValueError:
        # A test may call this function outside the main thread, where no handler can be installed.
        pass


# --- the command line ------------------------------------------------------------------


def makeParser() -> Parser:
    """
    @return: the parser of C{pop3svc deliver}.
    """
    parser = Parser(
        prog="pop3svc deliver",
        description="Store a message from the standard input in a user's mailbox.",
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("--help", action="store_true", help="show this and exit")
    addStoreOptions(parser)
    parser.add_argument(
        "--return-path", metavar="ADDRESS", help="add the sender as Return-Path; empty means <>"
    )
    parser.add_argument(
        "--delivered-to",
        action="store_true",
        help="add Delivered-To, and refuse a message that already has the same field",
    )
    parser.add_argument(
        "user",
        metavar="USER",
        nargs="?",
        help="name or address (default: RECIPIENT of the environment, or LOCAL_PART and "
        "DOMAIN, or USER, or LOGNAME)",
    )
    return parser


def _arguments(argv: Sequence[str], source: BinaryIO) -> Any:
    """
    @return: the arguments; L{None} if the command has printed its help.
    @raise SettingError: an argument is not valid, or C{--help} is the recipient of a message.
    """
    parser = makeParser()
    try:
        arguments = parser.parse_args(list(argv))
    except SystemExit as error:
        raise SettingError(str(error.code).removeprefix("pop3svc: "))
    if not arguments.help:
        return arguments
    try:
        parser.print_help()
        sys.stdout.flush()
    except BrokenPipeError:
        # Ignore the error: the reader of the output has gone away, as with "| head".
        pass
    if not source.isatty() and _hasMessage(source):
        # A message has come, so "--help" is the recipient of this message.  With the exit status 0,
        # the message would be lost.
        raise SettingError("deliver --help takes no message")
    return None


def _hasMessage(source: BinaryIO) -> bool:
    """
    @return: whether a message comes within L{_HELP} seconds.
    """
    isReadable, _, _ = select.select([source], [], [], _HELP)
    return bool(isReadable and source.read(1))


def _recipient(user: str | None, environment: Mapping[str, str]) -> str:
    """
    @return: the name or the address of the user.
    @raise NoSuchUser: neither the argument nor the environment has a name, or the name is not
        printable.
    """
    found = user
    if found is None:
        found = environment.get("RECIPIENT")
    if not found and user is None:
        local, domain = environment.get("LOCAL_PART"), environment.get("DOMAIN")
        found = f"{local}@{domain}" if local and domain else local
    if not found and user is None:
        found = environment.get("USER") or environment.get("LOGNAME")
    if not found or not isPrintable(found):
        raise NoSuchUser("There is no such user.")
    return found


def _header(arguments: Any, recipient: str) -> bytes:
    header = b""
    if arguments.return_path is not None:
        sender = arguments.return_path.removeprefix("<").removesuffix(">")
        if not isPrintable(sender):
            raise MalformedMessage("The address of the sender is not valid.")
        header += traceLine("Return-Path", f"<{sender}>")
    if arguments.delivered_to:
        header += traceLine("Delivered-To", recipient)
    return header


# --- the message -----------------------------------------------------------------------


def _read(source: BinaryIO, spool: Any, most: int) -> Trace:
    """
    Read the message without its envelope line.

    @param most: the most octets that a message may have.
    @return: an object that finds out whether the message loops.
    @raise MessageTooLarge: the message has more octets.
    """
    trace = Trace()
    size = 0
    line = source.readline(_LINE)
    if line.startswith((b"From ", b">From ")):
        while line and not line.endswith(b"\n"):
            line = source.readline(_LINE)
        line = b""
    block = line or source.read(_SPOOLED)
    while block:
        size += len(block)
        if size <= most:
            trace.feed(block)
            spool.write(block)
        elif size > 2 * most:
            break
        # Go on reading a message that is too large, because some callers treat a broken pipe as
        # their own error.  At twice the limit, stop.
        block = source.read(_SPOOLED)
    if size > most:
        raise MessageTooLarge("The message is too large.")
    return trace


# --- storing ---------------------------------------------------------------------------


async def _store(settings: Settings, recipient: str, header: bytes, content: Any) -> None:
    """
    @raise DeliveryError: the message was not stored.
    """
    recipients = recipientsOf(settings)
    found = await recipients.find(recipient)
    [error] = await recipients.deliver([(found, header)], content)
    if error is not None:
        raise error


def _complete(work: Any, timeout: float) -> None:
    """
    Run a coroutine to its end.  Start a reactor only if the coroutine has to wait.

    @param timeout: seconds until the coroutine is cancelled.
    @raise StoreUnavailable: the coroutine did not end in time.
    """
    useNoThreads()
    result: Any = startNow(work)
    if not isinstance(result, Deferred):
        return
    outcome: list[Any] = []
    result.addBoth(outcome.append)
    if not outcome:
        from twisted.internet import reactor as installed

        reactor: Any = installed
        result.addBoth(lambda _: reactor.stop())
        reactor.callLater(timeout, result.cancel)
        # Stop the reactor in any case some time later, because the coroutine may ignore its
        # cancellation.
        reactor.callLater(timeout + _PATIENCE, reactor.stop)
        reactor.run(installSignalHandlers=False)
    if not outcome:
        raise StoreUnavailable("The mailbox is not available now.")
    if isinstance(outcome[0], Failure):
        outcome[0].raiseException()
