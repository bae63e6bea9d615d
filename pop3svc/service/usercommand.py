"""
C{pop3svc user add|password|remove|list|app-password}: manage a password file.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from getpass import getpass

from pop3svc.accounts.apppasswordlines import revokeAppPasswords
from pop3svc.accounts.passwordediting import addUser, removeUser, setPassword
from pop3svc.accounts.passwordfile import Accounts, readPasswordFile
from pop3svc.accounts.passwordlines import checkUserName
from pop3svc.logs import escaped
from pop3svc.policy import NAME_CASES, Policy
from pop3svc.service import apppasswordcommand
from pop3svc.service.datadirectory import DataDirectory, defaultDataDirectory
from pop3svc.service.parser import Parser

__all__ = ["main", "makeParser"]

# The most octets to read from a pipe.  Every valid password is shorter.
_LONGEST = 65536


def makeParser() -> Parser:
    """
    @return: the parser of C{pop3svc user}.
    """
    user = Parser(prog="pop3svc user")
    actions = user.add_subparsers(
        dest="action", required=True, metavar="add|password|remove|list|app-password"
    )
    for name, help in (
        ("add", "add a user"),
        ("password", "change a user's password"),
        ("remove", "remove a user"),
        ("list", "list the users"),
    ):
        action = actions.add_parser(name, help=help)
        if name != "list":
            action.add_argument("name", metavar="NAME")
            action.add_argument(
                "--name-case",
                choices=NAME_CASES,
                default=Policy.nameCase,
                help="the same value as for pop3svc serve (default: %(default)s)",
            )
        if name in ("add", "password"):
            forms = action.add_mutually_exclusive_group()
            forms.add_argument(
                "--scram",
                action="store_const",
                dest="form",
                const="verifier",
                default="hash",
                help="store a verifier for SCRAM-SHA-256 instead of an argon2id hash",
            )
            forms.add_argument(
                "--scram-beside",
                action="store_const",
                dest="form",
                const="both",
                help="store a verifier for SCRAM-SHA-256 beside an argon2id hash",
            )
        action.add_argument(
            "--file",
            metavar="FILE",
            help="the password file (default: users in the default data directory)",
        )
    apppasswordcommand.addParser(actions)
    return user


def _askPassword() -> str:
    """
    Ask for a password twice, without echo, if the input is a terminal.  Otherwise read the
    first line of the input.

    @raise ValueError: the two passwords are not the same.
    """
    if not sys.stdin.isatty():
        line = sys.stdin.buffer.readline(_LONGEST).removesuffix(b"\n").removesuffix(b"\r")
        return line.decode("utf-8", "surrogateescape")
    password = getpass("Password: ")
    if getpass("Again: ") != password:
        raise ValueError("the two passwords are not the same")
    return password


def _complain(path: str, accounts: Accounts) -> None:
    """
    Print a warning for each bad line of the password file.
    """
    for sentence in accounts.complaints():
        print(f"pop3svc: {path}, {sentence}", file=sys.stderr)


def _namesIn(accounts: Accounts) -> set[str]:
    """
    @return: the users of a password file, also those who cannot log in because their line is bad.
    """
    return accounts.hashes.keys() | {each.name for each in accounts.badLines}


def main(argv: Sequence[str]) -> None:
    """
    Run the command C{pop3svc user}.

    @raise SystemExit: with one sentence, if the command failed.
    """
    arguments = makeParser().parse_args(argv)
    try:
        _run(arguments)
    except (ValueError, OSError) as error:
        raise SystemExit(f"pop3svc: {escaped(str(error))}")
    except KeyboardInterrupt:
        raise SystemExit("pop3svc: nothing was changed")


def _run(arguments: argparse.Namespace) -> None:
    """
    Carry out an action of C{pop3svc user}.

    @raise ValueError: the file was not changed; the text gives the reason.
    """
    path = getattr(arguments, "file", None)
    if path is None:
        data = DataDirectory(defaultDataDirectory())
        if arguments.action == "add":
            data.make()
        path = data.passwordFile
    if arguments.action == "app-password":
        apppasswordcommand.run(arguments, path)
        return
    if arguments.action == "list":
        accounts = readPasswordFile(path)
        for name in accounts.hashes:
            print(name)
        _complain(path, accounts)
        return
    name = arguments.name
    try:
        name = checkUserName(name, arguments.name_case == "mapped")
    except ValueError:
        # Go on with the name as it is, so that the line of a user whose name is not allowed can be
        # removed.
        if arguments.action == "add":
            raise
    if arguments.action == "remove":
        # A later user of the same name must not inherit the application passwords.  Remove them
        # first, because the command may fail between the two steps.
        revokeAppPasswords(path, name)
        removeUser(path, name)
    elif arguments.action == "add":
        password = _askPassword()
        if not os.path.exists(path) or name not in _namesIn(readPasswordFile(path)):
            # Remove old application passwords, because somebody may have removed a user of this
            # name with an editor.
            revokeAppPasswords(path, name)
        addUser(path, name, password, form=arguments.form)
    else:
        accounts = readPasswordFile(path)
        # Accept a user whose line is bad and who cannot log in, because the new password replaces
        # the bad line.
        isThere = name in _namesIn(accounts)
        if not isThere and accounts.badCount == len(accounts.badLines):
            raise ValueError(f"there is no user {name}")
        setPassword(path, name, _askPassword(), arguments.form)
    _complain(path, readPasswordFile(path))
    if arguments.file is None:
        # Name the file, because the service may read another file.
        print(f"changed {escaped(path)}")
