"""
Mailboxes in a database keep the contract of mailboxes.
"""

from __future__ import annotations

import io
import tempfile
from typing import Any
from unittest import TestCase

from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from pop3svc.database import Database
from pop3svc.drivers import makeDriver
from pop3svc.interfaces import DeliveryCopy, IDelivery, IMailboxStore
from pop3svc.providers.sql.schema import migrate
from pop3svc.providers.sql.store import SQLStore
from pop3svc.testing import Inline, MailboxContract
from tests.support.databases import InlinePool, emptyPostgreSQL, finish
from tests.support.postgresql import PostgreSQL, needsPostgreSQL


class SQLiteTests(MailboxContract, TestCase):
    readOnly = False

    def setUp(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)
        self.store, self.reading = self.makeStore(False), self.makeStore(True)
        finish(self.store.prepare())
        finish(self.reading.prepare())

    def makeStore(self, readOnly: bool) -> SQLStore:
        driver = makeDriver(f"sqlite:{self.directory.name}/mail.db", mayCreate=True)
        return SQLStore(driver, readOnly, clock=Clock(), pool=InlinePool(driver), executor=Inline())

    def makeMailbox(self, messages: list[bytes]) -> Any:
        for message in messages:
            self.deliver(message)
        return self.again()

    def again(self) -> Any:
        store = self.reading if self.readOnly else self.store
        return store.openMailbox(self._info(), "alice")

    def deliver(self, message: bytes) -> Any:
        assert finish(self.store.deliver([DeliveryCopy("alice")], io.BytesIO(message))) == [None]

    def test_interfaces(self) -> None:
        verifyObject(IMailboxStore, self.store)
        verifyObject(IDelivery, self.store)


class ReadOnlySQLiteTests(SQLiteTests):
    readOnly = True


@needsPostgreSQL
class PostgreSQLTests(SQLiteTests):
    server: PostgreSQL

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.server = cls.enterClassContext(PostgreSQL())

    def makeStore(self, readOnly: bool) -> SQLStore:
        driver = makeDriver(self.server.dsn)
        pool = InlinePool(driver)
        if not readOnly:
            emptyPostgreSQL(driver)
            finish(Database(driver, clock=Clock(), pool=pool).run(migrate))
        self.addCleanup(pool.drop)
        return SQLStore(driver, readOnly, clock=Clock(), pool=pool, executor=Inline())


class ReadOnlyPostgreSQLTests(PostgreSQLTests):
    readOnly = True
