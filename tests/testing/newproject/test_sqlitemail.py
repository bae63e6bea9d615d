"""
The mailbox keeps the contract, and pop3svc serves it.
"""

import unittest

from sqlitemail import SQLiteMailbox, SQLiteProvider

from pop3svc.testing import MailboxContract, conversation


class SQLiteTests(MailboxContract, unittest.TestCase):
    def makeMailbox(self, messages):
        self.database = SQLiteProvider(":memory:").database
        self.addCleanup(self.database.close)
        for message in messages:
            self.deliver(message)
        return self.again()

    def again(self):
        return SQLiteMailbox(self.database)

    def deliver(self, message):
        with self.database:
            added = self.database.execute("INSERT INTO mail (message) VALUES (?)", [message])
        return str(added.lastrowid)

    def failDeletion(self):
        self.database.execute(
            "CREATE TRIGGER no BEFORE DELETE ON mail WHEN OLD.number = 3 "
            "BEGIN SELECT RAISE(FAIL, 'disk'); END"
        )


def test_served():
    conversation(
        SQLiteProvider(":memory:"),
        """
        S: +OK sqlite ready.
        C: USER alice
        S: +OK…
        C: PASS secret
        S: +OK…
        C: STAT
        S: +OK 0 0
        """,
    )
