"""
The command C{pop3svc}; see L{pop3svc.service.commandtable} for its commands.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from pop3svc.service.commandtable import COMMANDS
from pop3svc.service.output import ensureOutput, isFull, outputFault
from pop3svc.service.parser import Parser

__all__ = ["main", "makeParser"]


def makeParser() -> Parser:
    """
    @return: the parser of C{pop3svc}, without the parsers of its commands.
    """
    parser = Parser(prog="pop3svc", description="A POP3 service.")
    parser.add_argument("--version", action="store_true", help="show versions and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for each in COMMANDS.values():
        # Each command parses its own options.
        commands.add_parser(each.name, help=each.help)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """
    Run the command C{pop3svc}.  If the reader of the output has gone away, as with C{| head}, the
    command ends by SIGPIPE, as other programs do.  If the output cannot be written, for example
    because the disk is full, the command fails.

    @raise SystemExit: with one sentence, if the command failed.
    """
    ensureOutput()
    try:
        try:
            _run(sys.argv[1:] if argv is None else argv)
        except OSError as error:
            if not isFull(error):
                raise
            raise SystemExit(f"pop3svc: cannot write the output: {error.strerror}")
        finally:
            # A command may have reported the failed write as its own error.  L{outputFault} writes
            # again, and returns the reason of a failure.
            fault = outputFault()
            if fault:
                raise SystemExit(f"pop3svc: {fault}")
    except BrokenPipeError:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)


def _run(argv: Sequence[str]) -> None:
    if argv[:1] == ["deliver"]:
        _deliver(argv[1:])
    elif argv and argv[0] in COMMANDS:
        COMMANDS[argv[0]].run(argv[1:])
    else:
        _withoutCommand(argv)


def _deliver(argv: Sequence[str]) -> None:
    try:
        from pop3svc.service.delivercommand import main as deliver
    except Exception:
        # The installation is damaged.  The exit status tells the mail server to try again later.
        # With another exit status, the server would return the message to its sender.
        raise SystemExit(75)
    deliver(argv)


def _withoutCommand(argv: Sequence[str]) -> None:
    parser = makeParser()
    arguments = parser.parse_args(argv)
    if not arguments.version:
        parser.error("a command is needed; see pop3svc --help")
    from pop3svc.service.versions import versions

    print(versions())
