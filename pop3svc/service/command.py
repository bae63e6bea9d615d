"""
The command C{pop3svc}: serve in the foreground, deliver mail, move mailboxes, manage accounts,
check a configuration or a server.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from pop3svc.service.parser import Parser

__all__ = ["ADMIN_COMMANDS", "main"]

# The commands that ask a running service; see L{pop3svc.service.admincommand}.
ADMIN_COMMANDS = {
    "who": "list the sessions of a running service",
    "kick": "end sessions of a running service",
    "ban": "list, add or lift bans of a running service",
    "status": "show the state of a running service",
    "reload": "have a running service read its configuration again",
    "trace": "show conversations with a running service as they happen",
    "drain": "have a running service admit no more logins, and end",
}


def _parser() -> Parser:
    parser = Parser(prog="pop3svc", description="A POP3 service.")
    parser.add_argument("--version", action="store_true", help="show versions and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    # These commands parse their own options, which main() passes on.
    commands.add_parser("serve", help="serve in the foreground, with the options of twistd pop3svc")
    commands.add_parser("deliver", help="store a message from the standard input")
    commands.add_parser("import", help="store the messages of a Maildir, an mbox or a folder")
    commands.add_parser("export", help="write a mailbox to a Maildir or an mbox")
    commands.add_parser("config", help="check or show a configuration")
    commands.add_parser("sql", help="make and migrate the tables of a database")
    commands.add_parser("check", help="check that a POP3 server keeps to the RFCs")
    for name, help in ADMIN_COMMANDS.items():
        commands.add_parser(name, help=help)
    from pop3svc.service.usercommand import addParser

    addParser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """
    The command C{pop3svc}.  If nobody reads its output any more, as after C{| head}, it ends by
    SIGPIPE, as other programs do.

    @raise SystemExit: with one sentence, if the command failed.
    """
    try:
        try:
            _run(sys.argv[1:] if argv is None else argv)
        finally:
            # A command may have reported the broken pipe as its own error.  The flush fails again.
            sys.stdout.flush()
    except BrokenPipeError:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)


def _run(argv: Sequence[str]) -> None:
    # Import only the module of the requested command, because the other commands do not need it.
    if argv[:1] == ["check"]:
        from pop3svc.check.command import main as check

        check(argv[1:])
    elif argv[:1] == ["serve"]:
        from pop3svc.service.servecommand import serve

        serve(list(argv[1:]))
    elif argv[:1] == ["config"]:
        from pop3svc.service.configcommand import main as config

        config(argv[1:])
    elif argv[:1] == ["sql"]:
        from pop3svc.service.sqlcommand import main as sql

        sql(argv[1:])
    elif argv and argv[0] in ADMIN_COMMANDS:
        from pop3svc.service.admincommand import main as admin

        admin(argv)
    elif argv[:1] in (["import"], ["export"]):
        from pop3svc.service.transfercommand import main as transfer

        transfer(argv)
    elif argv[:1] == ["deliver"]:
        _deliver(argv[1:])
    else:
        _user(argv)


def _deliver(argv: Sequence[str]) -> None:
    try:
        from pop3svc.service.delivercommand import main as deliver
    except Exception:
        # The installation is damaged.  For another number a mail server returns the message to its
        # sender.
        raise SystemExit(75)
    deliver(argv)


def _user(argv: Sequence[str]) -> None:
    from pop3svc.logs import escaped
    from pop3svc.service.usercommand import run
    from pop3svc.service.versions import versions

    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.version:
        print(versions())
        return
    if arguments.command is None:
        parser.error("a command is needed; see pop3svc --help")
    try:
        run(arguments)
    except (ValueError, OSError) as error:
        raise SystemExit(f"pop3svc: {escaped(str(error))}")
    except KeyboardInterrupt:
        raise SystemExit("pop3svc: nothing was changed")
