"""
C{pop3svc sql migrate}: make and migrate the tables of a database.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pop3svc.database import Database, DatabaseUnavailable
from pop3svc.drivers import makeDriver
from pop3svc.logs import escaped
from pop3svc.providers.sql.schema import SchemaError, migrate
from pop3svc.service.configfile import readConfiguration
from pop3svc.service.parser import Parser
from pop3svc.service.plugins import optionsOfSQL
from pop3svc.service.settings import Faults, SettingError

__all__ = ["main", "makeParser"]


def makeParser() -> Parser:
    """
    @return: the parser of C{pop3svc sql}.
    """
    parser = Parser(prog="pop3svc sql")
    actions = parser.add_subparsers(dest="action", required=True, metavar="migrate")
    action = actions.add_parser("migrate", help="make the tables of a store, or migrate them")
    action.add_argument("dsn", metavar="DSN", nargs="?", help="sqlite:PATH or postgresql://...")
    action.add_argument("--config", metavar="FILE", help="migrate the stores of a configuration")
    return parser


def main(argv: Sequence[str]) -> None:
    """
    Run the command C{pop3svc sql}.

    @raise SystemExit: with one sentence, if the command failed.
    """
    parser = makeParser()
    arguments = parser.parse_args(argv)
    if (arguments.dsn is None) is (arguments.config is None):
        parser.error("sql migrate needs a DSN or --config FILE")
    try:
        dsns = [arguments.dsn] if arguments.config is None else list(_dsns(arguments.config))
        for dsn in dsns:
            _migrate(dsn)
    except (ValueError, DatabaseUnavailable) as error:
        raise SystemExit(f"pop3svc: {escaped(str(error))}")


def _dsns(path: str) -> Iterator[str]:
    """
    @return: the DSNs of the stores that a configuration file names.
    @raise ValueError: the file names no DSN, or cannot be read.
    """
    faults = Faults()
    stores = [each for each in readConfiguration(path, faults).stores if each.kind == "sql"]
    faults.check()
    if not stores:
        raise SettingError(f"--config {path}: no store has the kind sql")
    for store in stores:
        try:
            yield optionsOfSQL(store.argument or "")["dsn"]
        except ValueError as error:
            raise SettingError(f"{store.where}: {error}")


def _migrate(dsn: str) -> None:
    database = Database(makeDriver(dsn, mayCreate=True))
    try:
        before, after = database.check(migrate, isReading=False)
    except SchemaError as error:
        raise ValueError(f"{database.name}: {error}")
    if before == after:
        print(f"{database.name}: the tables already have version {after}")
    else:
        print(f"{database.name}: the tables have version {after} now (before: {before or 'none'})")
