"""
The stores on which the proofs run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.databases import emptyPostgreSQL
from tests.support.postgresql import PostgreSQL, needsPostgreSQL
from tests.support.stores import KINDS, StoreUnderTest, makeDatabase, makeDriver, strictTimes


@pytest.fixture(scope="session")
def server() -> Iterator[PostgreSQL]:
    """
    One server for all proofs of a process.
    """
    with PostgreSQL() as running:
        yield running


@pytest.fixture
def dsnOf(request: Any, tmp_path: Path) -> Callable[[str], str]:
    """
    A function that makes a database with the tables of a store.
    """

    def make(kind: str) -> str:
        if kind == "postgresql":
            dsn: str = request.getfixturevalue("server").dsn
            emptyPostgreSQL(makeDriver(dsn))
        else:
            dsn = f"sqlite:{tmp_path}/mail.db"
        makeDatabase(dsn)
        return dsn

    return make


@pytest.fixture(
    params=[
        pytest.param(each, marks=needsPostgreSQL) if each == "postgresql" else each
        for each in KINDS
    ]
)
def makeStore(
    request: Any, tmp_path: Path, dsnOf: Callable[[str], str]
) -> Iterator[Callable[[], StoreUnderTest]]:
    """
    A function that makes an empty mailbox in a store of one kind.
    """
    kind: str = request.param
    dsn = dsnOf(kind) if "sql" in kind else ""
    with strictTimes() as stamps:

        def make() -> StoreUnderTest:
            return KINDS[kind](Path(tempfile.mkdtemp(dir=tmp_path)), stamps, dsn)

        yield make
