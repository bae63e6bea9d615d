"""
The example of a mailbox in SQLite.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

import pytest
from sqlitemail import SQLiteMailbox, SQLiteStore, deliver

from pop3svc.errors import POP3ResponseError
from pop3svc.testing import MailboxContract
from tests.examples.serving import EXAMPLES, addUser, logIn, messages, service
from tests.support.running import environment


class SQLiteMailboxTests(MailboxContract, unittest.TestCase):
    def makeMailbox(self, messages: list[bytes]) -> Any:
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.path = f"{temporary.name}/mail.db"
        SQLiteStore(self.path)
        deliver(self.path, "bob", b"Another user's.\n")
        for message in messages:
            self.deliver(message)
        return self.again()

    def again(self) -> Any:
        return SQLiteMailbox(self.path, "alice")

    def deliver(self, message: bytes) -> str:
        return deliver(self.path, "alice", message)

    def remove(self, uniqueID: str) -> None:
        SQLiteMailbox(self.path, "alice").messageDelete(None, [uniqueID])  # type: ignore[arg-type]

    def failDeletion(self) -> None:
        with sqlite3.connect(self.path) as database:
            database.execute(
                "CREATE TRIGGER full BEFORE DELETE ON mail WHEN OLD.number = 4 "
                "BEGIN SELECT RAISE(FAIL, 'disk'); END"
            )
        database.close()


def test_anotherUser(tmp_path: Path) -> None:
    """
    Nobody reads or deletes another user's messages.
    """
    path = str(tmp_path / "mail.db")
    SQLiteStore(path)
    uniqueID = deliver(path, "bob", b"x\n")
    info: Any = None
    mailbox = SQLiteMailbox(path, "alice")
    assert not mailbox.messageExists(info, uniqueID)
    mailbox.messageDelete(info, [uniqueID])
    with pytest.raises(POP3ResponseError):
        mailbox.messageContent(info, uniqueID)
    assert SQLiteMailbox(path, "bob").messageContent(info, uniqueID) == b"x\n"


def test_served(tmp_path: Path) -> None:
    addUser(tmp_path, "alice", "secret")
    for number in (1, 2):
        subprocess.run(
            [sys.executable, EXAMPLES / "sqlitemail.py", "mail.db", "alice"],
            input=b"Subject: %d\n\n.\n" % number,
            cwd=tmp_path,
            env=environment(tmp_path),
            check=True,
        )
    options = "--provider", "sqlitemail.serve:mail.db", "--auth", "passwd:users"
    with service(tmp_path, *options) as port:
        client = logIn(port, "alice", "secret")
        assert messages(client) == [b"Subject: 1\n\n.\n", b"Subject: 2\n\n.\n"]
        client.dele(1)
        client.quit()
        client = logIn(port, "alice", "secret")
        assert client.uidl()[1] == [b"1 2"]
        client.quit()
