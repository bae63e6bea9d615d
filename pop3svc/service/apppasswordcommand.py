"""
C{pop3svc user app-password add|list|revoke|make}: manage the application passwords of a password
file.
"""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from typing import Any

from pop3svc.accounts.apppasswordlines import (
    Entry,
    addAppPassword,
    fileOf,
    lastUses,
    readAppPasswords,
    revokeAppPasswords,
)
from pop3svc.accounts.apppasswords import expiryOf, makeSecret, secretIn
from pop3svc.accounts.hashes import hashPassword
from pop3svc.accounts.passwordfile import readPasswordFile
from pop3svc.accounts.passwordlines import nameIn
from pop3svc.logs import escaped

__all__ = ["addParser", "run"]

# The most days that C{--expires} accepts: ten years.  A date may be later.
_MOST_DAYS = 3650


def addParser(actions: Any) -> None:
    """
    Add C{app-password} to the actions of C{pop3svc user}.

    @param actions: the object that C{add_subparsers} returned.
    """
    parser = actions.add_parser("app-password", help="manage passwords for single mail programs")
    commands = parser.add_subparsers(
        dest="appAction", required=True, metavar="add|list|revoke|make"
    )
    add = commands.add_parser("add", help="make an application password, and show it once")
    add.add_argument("name", metavar="NAME")
    add.add_argument("label", metavar="LABEL", help="such as the name of a device")
    add.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="NETWORK",
        help="a network from which the password may be used; repeatable (default: all)",
    )
    add.add_argument(
        "--expires", metavar="DATE|DAYS", help="the last day, in UTC, or the number of days"
    )
    show = commands.add_parser("list", help="list the application passwords")
    show.add_argument("name", metavar="NAME", nargs="?", help="only the passwords of this user")
    revoke = commands.add_parser("revoke", help="remove an application password")
    revoke.add_argument("name", metavar="NAME")
    which = revoke.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "label", metavar="LABEL", nargs="?", help="the label or the selector of the password"
    )
    which.add_argument("--all", action="store_true", help="all passwords of this user")
    for each in (add, show, revoke):
        each.add_argument(
            "--file",
            metavar="FILE",
            help="the password file (default: users in the default data directory)",
        )
    commands.add_parser("make", help="print a new secret, its selector and its hash, for SQL")


def run(arguments: argparse.Namespace, path: str) -> None:
    """
    Carry out an action of C{pop3svc user app-password}.

    @param path: the password file.
    @raise ValueError: nothing was changed; the text gives the reason.
    """
    if arguments.appAction != "make" and arguments.name is not None:
        arguments.name = nameIn(arguments.name)
    if arguments.appAction == "add":
        _add(arguments, path)
    elif arguments.appAction == "list":
        _list(path, arguments.name)
    elif arguments.appAction == "revoke":
        if not revokeAppPasswords(path, arguments.name, arguments.label):
            which = "" if arguments.label is None else f" {arguments.label}"
            raise ValueError(f"{arguments.name} has no application password{which}")
    else:
        selector, secret = makeSecret()
        found = secretIn(secret.encode("ascii"))
        assert found is not None
        print(f"secret: {secret}\nselector: {selector}\nhash: {hashPassword(found[1].decode())}")


def _add(arguments: argparse.Namespace, path: str) -> None:
    if arguments.name not in readPasswordFile(path).hashes:
        raise ValueError(f"there is no user {arguments.name}")
    networks = []
    for each in arguments.allow:
        try:
            networks.append(str(ip_network(each)))
        except ValueError as error:
            raise ValueError(f"--allow {each}: {error}")
    expires = "" if arguments.expires is None else _expires(arguments.expires)
    print(addAppPassword(path, arguments.name, arguments.label, networks, expires))
    print("This password is shown only once.", file=sys.stderr)


def _expires(text: str) -> str:
    """
    @return: the time of expiry, as text for the file.
    """
    if text.isascii() and text.isdigit():
        if len(text) > 4 or not 1 <= int(text) <= _MOST_DAYS:
            raise ValueError(f"--expires {text}: must be from 1 to {_MOST_DAYS} days, or a date")
        until = datetime.now(UTC) + timedelta(days=int(text))
        return until.strftime("%Y-%m-%dT%H:%M:%SZ")
    try:
        if "T" in text:
            raise ValueError
        expires = expiryOf(text)
    except ValueError:
        raise ValueError(
            f"--expires {text}: must be a date such as 2030-12-31, or a number of days"
        ) from None
    if expires is None or expires < datetime.now(UTC).timestamp():
        raise ValueError(f"--expires {text}: must not be in the past")
    return text


def _list(path: str, name: str | None) -> None:
    entries, complaints = readAppPasswords(path)
    uses = lastUses(path)
    for entry in entries.values():
        if name is None or entry.user == name:
            print("\t".join(_columnsOf(entry, uses.get((entry.user, entry.selector)))))
    for each in complaints:
        print(f"pop3svc: {escaped(fileOf(path))}, {each}", file=sys.stderr)


def _columnsOf(entry: Entry, used: int | None) -> list[str]:
    expires, networks = entry.password.expires, entry.password.networks
    columns = [entry.user, entry.selector, entry.label, f"created {entry.created or 'unknown'}"]
    columns.append("never used" if used is None else f"last used {_timeOf(used)}")
    if expires is not None:
        isOver = expires <= datetime.now(UTC).timestamp()
        columns.append(f"{'expired' if isOver else 'expires'} {_timeOf(expires)}")
    if networks:
        columns.append(f"from {','.join(str(each) for each in networks)}")
    return columns


def _timeOf(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return "at an unknown time"
