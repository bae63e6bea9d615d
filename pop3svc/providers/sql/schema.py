"""
The tables of a store, and the statements that migrate them from one version to the next.
"""

from __future__ import annotations

from collections.abc import Sequence

from pop3svc.database import Transaction
from pop3svc.providers.sql.statements import execute, hasTable, octetsType, one

__all__ = ["VERSION", "SchemaError", "migrate", "requireCurrent", "requireNoNewer", "versionOf"]

_TABLE = "pop3svc_schema"


class SchemaError(Exception):
    """
    The tables of the database cannot be used.  The text of the exception is one sentence for the
    operator.
    """


# Times are milliseconds since the epoch.  Sizes are in octets.  A row of the table "message" is the
# copy of a message in one mailbox.  Each copy has its own header fields, such as Delivered-To.
# Several copies may share one content.  The column "form" contains the value of a WireForm.  The
# column "isforeign" is 1 if the unique-id comes from another server.  The column "surrogate" is the
# size of the surrogate, or 0 if the message needs no surrogate.  A piece has at most PIECE octets,
# and its lines end with CRLF.
_FIRST = (
    f"CREATE TABLE {_TABLE} (version INTEGER NOT NULL)",
    """CREATE TABLE mailbox (
        id BIGINT PRIMARY KEY,
        name VARCHAR(320) NOT NULL UNIQUE,
        nextposition BIGINT NOT NULL,
        messages BIGINT NOT NULL,
        octets BIGINT NOT NULL,
        changes BIGINT NOT NULL)""",
    """CREATE TABLE content (
        id BIGINT PRIMARY KEY,
        octets BIGINT NOT NULL,
        pieces INTEGER NOT NULL,
        form VARCHAR(8) NOT NULL,
        uses BIGINT NOT NULL,
        made BIGINT NOT NULL)""",
    """CREATE TABLE piece (
        content BIGINT NOT NULL,
        number INTEGER NOT NULL,
        data {octets} NOT NULL,
        PRIMARY KEY (content, number))""",
    """CREATE TABLE message (
        mailbox BIGINT NOT NULL,
        position BIGINT NOT NULL,
        uniqueid VARCHAR(70) NOT NULL,
        octets BIGINT NOT NULL,
        surrogate BIGINT NOT NULL DEFAULT 0,
        arrival BIGINT NOT NULL,
        isforeign INTEGER NOT NULL,
        header {octets} NOT NULL,
        content BIGINT NOT NULL,
        PRIMARY KEY (mailbox, position),
        UNIQUE (mailbox, uniqueid))""",
    "CREATE INDEX message_content ON message (content)",
    "CREATE INDEX message_arrival ON message (arrival)",
    "CREATE INDEX content_unused ON content (uses, made)",
    """CREATE TABLE formerid (
        mailbox BIGINT NOT NULL,
        uniqueid VARCHAR(70) NOT NULL,
        PRIMARY KEY (mailbox, uniqueid))""",
    """CREATE TABLE node (
        name VARCHAR(64) PRIMARY KEY,
        epoch BIGINT NOT NULL,
        expires BIGINT NOT NULL)""",
    """CREATE TABLE lease (
        mailbox BIGINT PRIMARY KEY,
        node VARCHAR(64) NOT NULL,
        epoch BIGINT NOT NULL,
        token BIGINT NOT NULL,
        wantedby VARCHAR(64))""",
    "CREATE INDEX lease_node ON lease (node)",
)

# For each version, the statements that migrate the tables from the previous version.
_MIGRATIONS: Sequence[Sequence[str]] = (_FIRST,)
VERSION = len(_MIGRATIONS)


def versionOf(transaction: Transaction) -> int:
    """
    @return: the version of the tables; 0 if the tables do not exist.
    """
    if not hasTable(transaction, _TABLE):
        return 0
    row = one(transaction, f"SELECT MAX(version) FROM {_TABLE}")
    return int(row[0] or 0) if row else 0


def migrate(transaction: Transaction) -> tuple[int, int]:
    """
    Migrate the tables to the version that this code needs.  Blocks.

    @return: the version before the migration, and the version after it.
    @raise SchemaError: the tables are newer than the code.
    """
    before = versionOf(transaction)
    if before > VERSION:
        raise SchemaError(_newer(before))
    for version, statements in enumerate(_MIGRATIONS[before:], before + 1):
        for statement in statements:
            execute(transaction, statement.replace("{octets}", octetsType(transaction)))
        execute(transaction, f"DELETE FROM {_TABLE}")
        execute(transaction, f"INSERT INTO {_TABLE} (version) VALUES (:version)", version=version)
    return before, VERSION


def requireNoNewer(transaction: Transaction) -> None:
    """
    @raise SchemaError: the tables are newer than the code.
    """
    version = versionOf(transaction)
    if version > VERSION:
        raise SchemaError(_newer(version))


def requireCurrent(transaction: Transaction) -> None:
    """
    @raise SchemaError: the tables have another version than the code requires.
    """
    version = versionOf(transaction)
    if version > VERSION:
        raise SchemaError(_newer(version))
    if version < VERSION:
        what = "has no tables of pop3svc" if not version else f"has tables of version {version}"
        raise SchemaError(
            f"the database {what}, and version {VERSION} is needed: run 'pop3svc sql migrate'"
        )


def _newer(version: int) -> str:
    return (
        f"the database has tables of version {version}, and this pop3svc knows version {VERSION}: "
        "install a newer pop3svc"
    )
