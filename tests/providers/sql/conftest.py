"""
The databases on which the tests of this directory run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pop3svc.database import Database
from pop3svc.drivers import Driver, makeDriver
from pop3svc.providers.sql.schema import migrate
from tests.support.databases import InlinePool, emptyPostgreSQL, finish
from tests.support.postgresql import PostgreSQL, needsPostgreSQL


@pytest.fixture(scope="session")
def server() -> Iterator[PostgreSQL]:
    """
    One server for all tests of a process.
    """
    with PostgreSQL() as running:
        yield running


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=needsPostgreSQL)])
def driver(request: Any, tmp_path: Path) -> Driver:
    """
    A database with the tables of a store, and no mailboxes.
    """
    if request.param == "sqlite":
        made = makeDriver(f"sqlite:{tmp_path}/mail.db", mayCreate=True)
    else:
        made = makeDriver(request.getfixturevalue("server").dsn)
        emptyPostgreSQL(made)
    pool = InlinePool(made)
    finish(Database(made, pool=pool).run(migrate))
    pool.drop()
    return made
