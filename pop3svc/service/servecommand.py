"""
C{pop3svc serve}: serve in the foreground, with the options of C{twistd pop3svc}.
"""

from __future__ import annotations

import grp
import os
import pwd
import sys
from argparse import ArgumentParser
from collections.abc import Sequence

from pop3svc.logs import escaped
from pop3svc.service.parser import Parser

__all__ = ["main", "makeParser"]

# The options of twistd that make sense for a service in the foreground.
_TWISTD = {
    "uid": ("USER", "Become this user, by name or number, after the ports are open."),
    "gid": ("GROUP", "Become this group, by name or number, after the ports are open."),
    "umask": ("MASK", "Mask of the modes of new files, octal."),
    "logfile": ("FILE", "Write the log to this file; - is the standard output."),
    "prefix": ("TEXT", "Begin each line to syslog with this text."),
    "chroot": ("DIRECTORY", "Change to this root directory before serving."),
    "reactor": ("NAME", "Use this reactor of Twisted."),
}


def _number(option: str, text: str) -> str:
    """
    @return: the number of the user or the group that an option names.
    """
    if text.isascii() and text.isdigit() and len(text) < 11 and int(text) < 2**32 - 1:
        return text
    try:
        if option == "uid":
            return str(pwd.getpwnam(text).pw_uid)
        return str(grp.getgrnam(text).gr_gid)
    except KeyError:
        kind = "user" if option == "uid" else "group"
        raise SystemExit(f"pop3svc: --{option} {escaped(text)}: there is no such {kind}")


def makeParser() -> Parser:
    """
    @return: the parser of C{pop3svc serve}.  This parser leaves the options of pop3svc to twistd.
    """
    parser = Parser(
        prog="pop3svc serve",
        description="Serve in the foreground until SIGTERM or SIGINT.  Without any option, serve "
        "accounts and Maildirs in a directory of the user, on loopback.",
        add_help=False,
        allow_abbrev=False,
    )
    for name, (value, help) in _TWISTD.items():
        parser.add_argument(f"--{name}", metavar=value, help=help)
    parser.add_argument("--syslog", action="store_true", help="Log to syslog.")
    parser.addPassedOn = _addPassedOn
    return parser


def _addPassedOn(parser: ArgumentParser) -> None:
    from pop3svc.service.options import addOptions

    addOptions(parser)


def main(argv: Sequence[str]) -> None:
    """
    Serve until SIGTERM or SIGINT.  C{--uid}, C{--gid}, C{--logfile} and other options of
    twistd may stand anywhere among the options of pop3svc.

    @raise SystemExit: when the service has ended, or with one sentence if it cannot serve.
    """
    own, rest = makeParser().parse_known_args(argv)
    command = ["twistd", "--nodaemon", "--pidfile="]
    if own.syslog:
        command.append("--syslog")
    for name in _TWISTD:
        value = getattr(own, name)
        if value is None:
            continue
        if name in ("uid", "gid"):
            value = _number(name, value)
            if os.geteuid() != 0 and int(value) != (
                os.geteuid() if name == "uid" else os.getegid()
            ):
                other = "user" if name == "uid" else "group"
                raise SystemExit(f"pop3svc: --{name} {value}: only root can become another {other}")
        command.append(f"--{name}={value}")
    sys.argv = [*command, "pop3svc", *rest]
    from twisted.scripts.twistd import run

    run()
