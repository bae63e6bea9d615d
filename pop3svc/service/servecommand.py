"""
C{pop3svc serve}: serve in the foreground, with the options of C{twistd pop3svc}.
"""

from __future__ import annotations

import grp
import os
import pwd
import sys

from pop3svc.logs import escaped
from pop3svc.service.parser import Parser

__all__ = ["serve"]

# Options of twistd that make sense in the foreground.
_TWISTD = ("uid", "gid", "umask", "logfile", "prefix", "chroot", "reactor")


def _number(option: str, text: str) -> str:
    """
    @return: the number of a user or a group.
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


def serve(argv: list[str]) -> None:
    """
    Serve until SIGTERM or SIGINT.  C{--uid}, C{--gid}, C{--logfile} and other options of
    twistd may stand anywhere among the options of pop3svc.

    @raise SystemExit: at the end, or with one sentence if it cannot serve.
    """
    parser = Parser(prog="pop3svc serve", add_help=False, allow_abbrev=False)
    for name in _TWISTD:
        parser.add_argument(f"--{name}")
    parser.add_argument("--syslog", action="store_true")
    own, rest = parser.parse_known_args(argv)
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
                raise SystemExit(f"pop3svc: --{name} {value}: only root can become another user")
        command.append(f"--{name}={value}")
    sys.argv = [*command, "pop3svc", *rest]
    from twisted.scripts.twistd import run

    run()
