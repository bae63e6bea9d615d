"""
Mail in a table of an SQLite database.
"""

import sqlite3

from zope.interface import implementer

from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import IPOP3Mailbox, IPOP3MailboxProvider

TABLE = "CREATE TABLE IF NOT EXISTS mail (number INTEGER PRIMARY KEY AUTOINCREMENT, message BLOB)"


@implementer(IPOP3MailboxProvider)
class SQLiteProvider:
    name = "sqlite"

    def __init__(self, path):
        self.database = sqlite3.connect(path)
        self.database.execute(TABLE)

    def authenticate(self, info, username, password):
        return SQLiteMailbox(self.database) if password == "secret" else None


@implementer(IPOP3Mailbox)
class SQLiteMailbox:
    def __init__(self, database):
        self.database = database

    def listMessageUniqueIDs(self, info):
        rows = self.database.execute("SELECT number FROM mail ORDER BY number")
        return [str(number) for (number,) in rows]

    def message(self, uniqueID):
        found = self.database.execute("SELECT message FROM mail WHERE number = ?", [uniqueID])
        return found.fetchone()

    def messageExists(self, info, uniqueID):
        return self.message(uniqueID) is not None

    def messageSize(self, info, uniqueID):
        raise NotImplementedError

    def messageContent(self, info, uniqueID):
        if not self.messageExists(info, uniqueID):
            raise POP3ResponseError("Message no longer exists.")
        return self.message(uniqueID)[0]

    def messageDelete(self, info, uniqueIDs):
        try:
            with self.database:
                numbers = [[each] for each in uniqueIDs]
                self.database.executemany("DELETE FROM mail WHERE number = ?", numbers)
        except sqlite3.Error:
            raise POP3ResponseError("The database does not delete.", "SYS/TEMP")
