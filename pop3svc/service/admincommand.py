"""
C{pop3svc who|kick|ban|status|reload|drain|trace}: ask a running service over its admin socket.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pop3svc.admin.client import NotRunning, ask, follow
from pop3svc.admin.operations import OperationError
from pop3svc.logs import escaped
from pop3svc.service.configfile import readConfiguration
from pop3svc.service.datadirectory import DataDirectory, defaultDataDirectory
from pop3svc.service.parser import Parser
from pop3svc.service.settings import Faults, SettingError

__all__ = ["main", "makeParser", "socketOf"]


def main(argv: Sequence[str]) -> None:
    """
    Run a command that asks a running service.

    @param argv: the arguments, with the name of the command first.
    @raise SystemExit: with one sentence, if the command failed.
    """
    arguments = makeParser(argv[0]).parse_args(list(argv[1:]))
    try:
        path = socketOf(arguments)
        if argv[0] == "trace":
            _trace(arguments, path)
            return
        result, show = _run(argv[0], arguments, path)
    except (NotRunning, OperationError, SettingError) as error:
        raise SystemExit(f"pop3svc: {escaped(str(error).rstrip('.'))}")
    if arguments.json:
        print(json.dumps(result))
        return
    for line in show(result):
        print(escaped(line))


def makeParser(command: str) -> Parser:
    """
    @param command: the name of a command that asks a running service, such as C{who}.
    @return: the parser of the command.
    """
    parser = Parser(prog=f"pop3svc {command}", allow_abbrev=False)
    if command == "who":
        parser.description = "List the sessions of a running service."
        parser.add_argument("user", metavar="USER", nargs="?", help="only sessions of this user")
    elif command == "kick":
        parser.description = "End a session, or all sessions of a user, at once."
        parser.add_argument("target", metavar="SESSION|USER")
    elif command == "trace":
        parser.description = "Show the conversations of a user or an address as they happen."
        parser.add_argument("target", metavar="USER|ADDRESS")
        parser.add_argument(
            "--seconds", metavar="N", default="60", help="end after N seconds, at most 3600 (60)"
        )
    elif command == "ban":
        parser.description = "List, add or lift bans."
        actions = parser.add_subparsers(dest="action", required=True, metavar="list|add|lift")
        _addCommon(actions.add_parser("list", help="list the banned addresses"))
        add = actions.add_parser("add", help="refuse all logins from an address")
        add.add_argument("target", metavar="ADDRESS")
        lift = actions.add_parser(
            "lift", help="end bans, and forget the failed logins of an address or a user"
        )
        lift.add_argument("target", metavar="ADDRESS|USER")
        _addCommon(add)
        _addCommon(lift)
        return parser
    _addCommon(parser)
    return parser


def _addCommon(parser: Any) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--config", metavar="FILE", help="the service's configuration file")
    where.add_argument("--data", metavar="DIRECTORY", help="the service's data directory")
    where.add_argument("--admin", metavar="SOCKET", help="the service's admin socket")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")


def socketOf(arguments: Any) -> str:
    """
    Find the admin socket of a service.

    @param arguments: has C{config}, C{data} and C{admin}.
    @raise SettingError: the configuration file cannot be read, or names neither a socket nor a data
        directory.
    """
    if arguments.admin is not None:
        return os.path.abspath(str(arguments.admin))
    data = arguments.data
    if arguments.config is not None:
        faults = Faults()
        values = readConfiguration(os.path.abspath(arguments.config), faults).values
        if "admin" in values:
            return os.path.abspath(str(values["admin"]))
        data = values.get("data")
        if data is None:
            raise SettingError(f"{arguments.config}: has neither admin nor data")
    return DataDirectory(data or defaultDataDirectory()).adminSocket


def _trace(arguments: Any, path: str) -> None:
    """
    Print the lines of a trace until it is over, or until the operator presses Ctrl-C.
    """
    lines = follow(path, "trace", target=arguments.target, seconds=arguments.seconds)
    try:
        for each in lines:
            if arguments.json:
                print(json.dumps(each), flush=True)
                continue
            mark = "*" if each["from"] == "-" else f"{each['from']}:"
            print(escaped(f"{each['time']} {each['session']} {mark} {each['text']}"), flush=True)
    except KeyboardInterrupt:
        # The operator has ended the trace with Ctrl-C, which is the usual way.
        pass


Show = Callable[[Any], Iterable[str]]


def _run(command: str, arguments: Any, path: str) -> tuple[Any, Show]:
    """
    @return: the result of the operation, and a function that makes lines of text from the result.
    """
    if command == "who":
        named = {} if arguments.user is None else {"user": arguments.user}
        return ask(path, "who", **named), _showSessions
    if command == "kick":
        count = ask(path, "kick", target=arguments.target)
        if not count:
            raise OperationError(f"there is no session {arguments.target}")
        return count, lambda count: [f"ended {_counted(count, 'session')}"]
    if command == "status":
        return ask(path, "status"), _showStatus
    if command == "reload":
        return ask(path, "reload"), lambda faults: faults or ["reloaded"]
    if command == "drain":
        return ask(path, "drain"), lambda _: [
            "no more logins; the service ends when nobody is logged in"
        ]
    if arguments.action == "list":
        return ask(path, "bans"), _showBans
    if arguments.action == "add":
        return ask(path, "ban", address=arguments.target), lambda _: ["banned"]
    return ask(path, "lift", target=arguments.target), lambda wasThere: [
        "lifted" if wasThere else "there was nothing to lift"
    ]


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _duration(seconds: float) -> str:
    """
    @return: a time such as C{3d 4h}, C{2h 5m}, C{3m 10s} or C{8s}.
    """
    parts: list[str] = []
    left = int(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or parts or unit == "s":
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])


def _table(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(each.ljust(width) for each, width in zip(row, widths, strict=True)).rstrip()


def _showSessions(sessions: list[Any]) -> Iterable[str]:
    if not sessions:
        return ["nobody is connected"]
    rows = [("SESSION", "USER", "ADDRESS", "TLS", "STATE", "SINCE", "MESSAGES", "WAITS FOR")]
    for each in sessions:
        rows.append(
            (
                each["session"],
                each["user"] or "-",
                each["address"] or "this machine",
                each["tls"] or "-",
                each["state"],
                _duration(each["seconds"]),
                str(each["messages"]),
                each["waitsFor"],
            )
        )
    return _table(rows)


def _showBans(bans: list[Any]) -> Iterable[str]:
    if not bans:
        return ["nobody is banned"]
    rows = [("NETWORK", "ENDS IN", "REFUSED", "BY")]
    for each in bans:
        by = "the operator" if each["isByOperator"] else "failed logins"
        rows.append((each["network"], _duration(each["seconds"]), str(each["refused"]), by))
    return _table(rows)


def _showStatus(status: dict[str, Any]) -> Iterable[str]:
    state = "draining" if status["isDraining"] else "serving"
    yield f"{state} for {_duration(status['seconds'])}, process {status['pid']}"
    counts = ", ".join(f"{count} {name}" for name, count in status["sessions"].items())
    yield f"sessions: {counts or 'none'}"
    for each in status.get("workers", []):
        does = "serves" if each["serves"] else "does not answer"
        yield f"worker {each['worker']}: process {each['pid']} {does}"
    for each in status["listeners"]:
        yield f"listens on {each}"
    for each in status["certificates"]:
        days = int((each["end"] - time.time()) // 86400)
        yield f"certificate {each['path']}: {days} days left"
    servers = [status, *status.get("workers", [])]
    for where in servers:
        prefix = f"worker {where['worker']}: " if "worker" in where else ""
        for each in where.get("servers", []):
            yield (
                prefix
                + each["name"]
                + (" works" if each["isAvailable"] else f" is not available: {each['reason']}")
            )
    for where in servers:
        if "queues" in where:
            prefix = f"worker {where['worker']}: " if "worker" in where else ""
            queues = ", ".join(f"{name} {count}" for name, count in where["queues"].items())
            yield f"{prefix}work under way: {queues}"
