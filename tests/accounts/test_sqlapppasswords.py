"""
Application passwords in a database.
"""

from __future__ import annotations

import re
import sqlite3
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import maybeDeferred
from twisted.internet.task import Clock

from pop3svc.accounts.apppasswordfile import UseTimes
from pop3svc.accounts.apppasswords import makeSecret
from pop3svc.accounts.checkers import AccountsProvider
from pop3svc.accounts.hashes import HashReader
from pop3svc.accounts.sqlaccounts import SQLAccounts
from pop3svc.accounts.sqlapppasswords import SQLAppPasswords
from pop3svc.credentials import PasswordAttempt
from pop3svc.errors import POP3ResponseError
from pop3svc.protocol.session import ConnectionInfo
from pop3svc.providers.memory import MemoryStore
from pop3svc.service.plugins import SQLAccountsMaker
from pop3svc.testing import Inline, conversation
from tests.support.databases import inlineDatabase
from tests.support.postgresql import PostgreSQL, needsPostgreSQL

PAGE = (Path(__file__).parent.parent.parent / "docs" / "sqlaccounts.rst").read_text()
TABLE = re.search(r"    CREATE TABLE app_password \(.*?\n    \);", PAGE, re.DOTALL)
QUERY = (
    "SELECT password, mailbox AS user, nologin, nets AS allow_nets FROM account WHERE name = :user"
)
APPS = (
    "SELECT hash, networks, expires FROM app_password WHERE name = :user AND selector = :selector"
)
USED = (
    "UPDATE app_password SET last_used = CURRENT_TIMESTAMP "
    "WHERE name = :user AND selector = :selector"
)
_quick = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1)


class Accounts:
    """
    A database with accounts and application passwords.
    """

    def __init__(self, tmp_path: Path) -> None:
        self.path = tmp_path / "accounts.db"
        assert TABLE is not None
        self.execute(TABLE[0])
        self.execute("CREATE TABLE account (name, password, mailbox, nologin, nets)")
        self.execute("INSERT INTO account VALUES ('ann', '{PLAIN}main', 'ann@x', 0, '')")
        self.clock = Clock()
        self.checker = self.make()

    def make(self, scheme: str = "CRYPT") -> SQLAccounts:
        reading = inlineDatabase(f"sqlite:{self.path}", isReadOnly=True)
        writing = inlineDatabase(f"sqlite:{self.path}")
        apps = SQLAppPasswords(reading, APPS, writing, USED, Inline(), self.clock)
        return SQLAccounts(reading, QUERY, HashReader(scheme), Inline(), self.clock, apps)

    def execute(self, statement: str, *values: Any) -> list[Any]:
        with sqlite3.connect(self.path) as database:
            rows = database.execute(statement, values).fetchall()
        database.close()
        return rows

    def add(self, label: str = "Phone", networks: Any = None, expires: Any = None) -> str:
        """
        @return: the secret.
        """
        selector, secret = makeSecret()
        stored = _quick.hash(secret.replace("-", ""))
        self.execute(
            "INSERT INTO app_password (name, selector, hash, label, networks, expires) "
            "VALUES ('ann', ?, ?, ?, ?, ?)",
            *(selector, stored, label, networks, expires),
        )
        return secret

    def attempt(self, password: str, name: str = "ann", clientIP: str = "192.0.2.1") -> Any:
        self.credentials = PasswordAttempt(name.encode(), password.encode(), clientIP=clientIP)
        got: list[Any] = []
        maybeDeferred(self.checker.requestAvatarId, self.credentials).addBoth(got.append)
        if isinstance(got[0], bytes):
            return got[0].decode()
        return None if got[0].check(UnauthorizedLogin) else got[0].value


@pytest.fixture
def accounts(tmp_path: Path) -> Accounts:
    return Accounts(tmp_path)


@pytest.mark.parametrize("scheme", ["CRYPT", "SHA256"])
def test_login(accounts: Accounts, scheme: str) -> None:
    """
    The default scheme of the account's passwords does not apply to application passwords.
    """
    secret = accounts.add()
    accounts.checker = accounts.make(scheme)
    assert accounts.attempt(secret) == accounts.attempt("main") == "ann@x"
    for wrong in (secret[:-4] + ("aaaa" if secret[-4:] != "aaaa" else "bbbb"), "abcd" * 8):
        assert accounts.attempt(wrong) is None
    for name in ("ben", "ann\0", "a" * 600):
        assert accounts.attempt(secret, name) is None
    accounts.execute("DELETE FROM app_password")
    assert accounts.attempt(secret) is None and accounts.attempt("main") == "ann@x"


def test_restrictions(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime(2026, 11, 30, 12, tzinfo=UTC).timestamp()
    monkeypatch.setattr(time, "time", lambda: now)
    office = accounts.add(networks="192.0.2.0/24, 2001:db8::/32")
    assert accounts.attempt(office) == "ann@x"
    assert accounts.attempt(office, clientIP="198.51.100.1") is None
    for expires, isGood in (
        ("2026-11-30", True),
        ("2026-11-29", False),
        (now + 1, True),
        (now, False),
        ("2026-11-30 12:00:01", True),
        ("2026-11-30T12:00:00Z", False),
        (b"2026-11-30", True),
    ):
        assert (accounts.attempt(accounts.add(expires=expires)) == "ann@x") == isGood, expires
    accounts.execute("UPDATE account SET nets = '198.51.100.0/24'")
    assert accounts.attempt(office) is None
    accounts.execute("UPDATE account SET nets = '', nologin = 'Closed'")
    refusal = accounts.attempt(office)
    assert (refusal.text, refusal.code) == ("Closed", "SYS/PERM")


def test_wake(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    secrets = accounts.add("Phone", expires=2000), accounts.add("Laptop")
    provider = AccountsProvider(MemoryStore([b"x"]), [accounts.checker])
    script = (
        "S: +OK…\nC: XLOG ann {}\nS: +OK…\nC: SLEE\nS: +OK…\nC: WAKE\nS: +OK…\nC: SLEE\nS: +OK…"
    )
    phone, laptop = (conversation(provider, script.format(each)) for each in secrets)
    accounts.execute("UPDATE account SET password = '{PLAIN}other'")
    assert phone.say(b"WAKE").startswith(b"+OK")
    assert phone.say(b"SLEE").startswith(b"+OK")
    now = 2000
    assert phone.say(b"WAKE").startswith(b"-ERR [AUTH]")
    assert laptop.say(b"WAKE").startswith(b"+OK")
    assert laptop.say(b"SLEE").startswith(b"+OK")
    accounts.execute("DELETE FROM app_password WHERE label = 'Laptop'")
    assert laptop.say(b"WAKE").startswith(b"-ERR [AUTH]")


def test_version(accounts: Accounts) -> None:
    secret = accounts.add()
    assert accounts.attempt(secret) == "ann@x"
    version, info = accounts.credentials.version, ConnectionInfo(1, "::1", True)
    info.userNameAtLogin = "ann"

    def isValid() -> bool:
        got: list[Any] = []
        maybeDeferred(accounts.checker.isStillValid, info, "ann@x", version).addBoth(got.append)
        return got == [True]

    assert isValid()
    accounts.execute("UPDATE app_password SET networks = '::1'")
    assert not isValid()
    accounts.execute("UPDATE app_password SET networks = NULL")
    assert isValid()
    accounts.execute("UPDATE account SET nologin = 1")
    assert not isValid()
    accounts.execute("UPDATE account SET nologin = 0, mailbox = 'bob@x'")
    assert not isValid()
    accounts.execute("DELETE FROM account")
    assert not isValid()


def test_lastUse(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    phone, laptop = accounts.add("Phone"), accounts.add("Laptop")

    def used() -> list[str]:
        accounts.clock.advance(UseTimes.PAUSE)
        rows = accounts.execute("SELECT label FROM app_password WHERE last_used IS NOT NULL")
        accounts.execute("UPDATE app_password SET last_used = NULL")
        return sorted(label for (label,) in rows)

    assert accounts.attempt(phone) == "ann@x" and accounts.attempt(laptop[:-4] + "aaaa") is None
    assert used() == ["Phone"]
    now += 59
    assert accounts.attempt(phone) == accounts.attempt(laptop) == "ann@x"
    assert used() == ["Laptop"]
    now += 1
    assert accounts.attempt(phone) == "ann@x"
    assert used() == ["Phone"]


def test_remembered(accounts: Accounts) -> None:
    secret = accounts.add()
    accounts.checker.rememberChecks(10)
    assert accounts.attempt(secret) == accounts.attempt(secret) == "ann@x"
    apps: Any = accounts.checker._apps
    assert len(apps.comparison._remembered._until) == 1
    accounts.checker.reload()
    assert len(apps.comparison._remembered._until) == 0
    accounts.execute("DELETE FROM app_password")
    assert accounts.attempt(secret) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("hash = '$argon2id$x'", "malformed argon2"),
        ("hash = x'24ff'", "unknown kind"),
        ("networks = 'here'", "a malformed list of networks"),
        ("expires = 'soon'", "a time of expiry"),
    ],
)
def test_badRow(accounts: Accounts, logged: list[str], change: str, says: str) -> None:
    secret = accounts.add()
    accounts.execute(f"UPDATE app_password SET {change}")
    for _ in range(2):
        assert accounts.attempt(secret) is None
    assert accounts.attempt("main") == "ann@x"
    (line,) = [each for each in logged if "cannot use" in each]
    assert says in line and secret[:4] in line and secret[5:] not in line


def test_twoRows(accounts: Accounts, logged: list[str]) -> None:
    """
    A password is refused if the query returns more than one row.
    """
    secret = accounts.add()
    query = "SELECT hash FROM app_password WHERE name = :user OR selector = :selector"
    apps: Any = accounts.checker._apps
    apps._query = query
    accounts.add()
    assert accounts.attempt(secret) is None
    assert "more than one row" in logged[-1]


def test_broken(accounts: Accounts) -> None:
    """
    If the query fails, nobody's password of this form is judged.
    """
    secret = accounts.add()
    accounts.execute("ALTER TABLE app_password RENAME TO other")
    for name in ("ann", "ben"):
        refusal = accounts.attempt(secret, name)
        assert isinstance(refusal, POP3ResponseError) and refusal.code == "SYS/TEMP"
    assert accounts.attempt("main") == "ann@x"
    accounts.execute("ALTER TABLE other RENAME TO app_password")
    assert accounts.attempt(secret) == "ann@x"


@pytest.mark.parametrize(
    ("apps", "used", "says"),
    [
        (APPS.replace(":selector", "'x'"), USED, "apps: the query needs the parameter :selector"),
        (APPS.replace(":user", ":name"), USED, "apps: the query has a parameter :name"),
        (APPS, USED.replace(":user", ":domain"), "used: the statement needs the parameter"),
        (APPS.replace("hash,", ""), USED, "apps: the query must return hash, and may"),
        (APPS.replace("hash,", "hash, label,"), USED, "apps: the query must return hash, and may"),
    ],
)
def test_badStatements(accounts: Accounts, apps: str, used: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SQLAccountsMaker().generateChecker(
            f"sqlite:{accounts.path}:query={QUERY}:apps={apps}:used={used}"
        )


def test_statements(accounts: Accounts) -> None:
    """
    The query is the first one; the order of the others does not matter.
    """
    made: Any = SQLAccountsMaker().generateChecker(
        f"sqlite:{accounts.path}:required=yes:query={QUERY}\n:used={USED}\n:apps={APPS}\n"
    )
    assert (made._query, made._apps._query, made._apps._statement) == (QUERY, APPS, USED)
    assert SQLAccountsMaker().generateChecker(f"sqlite:{accounts.path}:query={QUERY}")._apps is None
    for argument, says in (
        (f"query={QUERY}:apps={APPS}:apps={APPS}", "apps is given twice"),
        (f"apps={APPS}", "a query is needed"),
        (f"query={QUERY}:used={USED}", "used requires apps"),
    ):
        with pytest.raises(ValueError, match=says):
            SQLAccountsMaker().generateChecker(f"sqlite:{accounts.path}:{argument}")


@needsPostgreSQL
def test_postgresql() -> None:
    """
    The table of the documentation, with its types.
    """
    assert TABLE is not None
    selector, secret = makeSecret()
    with PostgreSQL() as server:
        server.execute(TABLE[0])
        server.execute("CREATE TABLE account (name text, password text)")
        server.execute("INSERT INTO account VALUES ('ann', '{PLAIN}main')")
        server.execute(
            "INSERT INTO app_password (name, selector, hash, label, networks, expires) "
            "VALUES ('ann', %s, %s, 'Phone', '192.0.2.0/24', now() AT TIME ZONE 'UTC' + '1 hour')",
            [selector, _quick.hash(secret.replace("-", ""))],
        )
        reading, writing = inlineDatabase(server.dsn), inlineDatabase(server.dsn)
        clock = Clock()
        apps = SQLAppPasswords(reading, APPS, writing, USED, Inline(), clock)
        checker = SQLAccounts(
            reading, "SELECT password FROM account WHERE name = :user", runner=Inline(), apps=apps
        )
        checker.check()

        def isGood() -> bool:
            got: list[Any] = []
            credentials = PasswordAttempt(b"ann", secret.encode(), clientIP="192.0.2.1")
            maybeDeferred(checker.requestAvatarId, credentials).addBoth(got.append)
            return got == [b"ann"]

        assert isGood()
        clock.advance(UseTimes.PAUSE)
        used = server.execute("SELECT count(*) FROM app_password WHERE last_used IS NOT NULL")
        assert used == [(1,)]
        server.execute(
            "UPDATE app_password SET expires = now() AT TIME ZONE 'UTC' - '1 s'::interval"
        )
        assert not isGood()
