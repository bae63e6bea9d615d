"""
Accounts in a database.
"""

from __future__ import annotations

import re
import sqlite3
import tomllib
from pathlib import Path
from typing import Any

import pytest
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import maybeDeferred
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from pop3svc.accounts.checkers import AccountsProvider
from pop3svc.accounts.hashes import HashReader
from pop3svc.accounts.sqlaccounts import SQLAccounts
from pop3svc.credentials import PasswordAttempt
from pop3svc.database import Database, DatabaseUnavailable
from pop3svc.drivers import makeDriver
from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import IAccountNames, IAccountStatus, IReloading
from pop3svc.protocol.session import ConnectionInfo
from pop3svc.providers.memory import MemoryStore
from pop3svc.service.plugins import SQLAccountsMaker
from pop3svc.testing import Inline, conversation
from tests.support.databases import inlineDatabase
from tests.support.postgresql import PostgreSQL, needsPostgreSQL

QUERY = (
    "SELECT password, mailbox AS user, nologin, nets AS allow_nets FROM account WHERE name = :user"
)
SIX = "$6$abcdefgh$yIZAF3gQPvtKZO/9qOJKffAKKbtS3ef3qmwyugk4uWVjX8YZf/GV3A8SkFxEPY0T56CcilGrHKLffBsp6dLMG."
ROWS = [
    ("ann", "{PLAIN}one", None, None, None),
    ("ben", SIX, "", "0", ""),
    ("cat", "{PLAIN}three", "cat@example.org", 0, None),
    ("dan", "{PLAIN}four", None, "Ask the office", None),
    ("eve", "{PLAIN}five", None, 1, None),
    ("fay", "{PLAIN}six", None, None, "192.0.2.0/24, 2001:db8::/32"),
    ("gus", "{PLAIN}seven", None, None, "anywhere"),
    ("hal", "{NOSUCH}eight", None, None, None),
    ("ida", None, None, None, None),
    ("twin", "{PLAIN}ten", None, None, None),
    ("twin", "{PLAIN}ten", None, None, None),
    ("jörg", b"{PLAIN}\xc3\xb6", None, None, None),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "accounts.db"
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE account (name, password, mailbox, nologin, nets)")
    database.executemany("INSERT INTO account VALUES (?, ?, ?, ?, ?)", ROWS)
    database.commit()
    database.close()
    return path


def change(path: Path, statement: str) -> None:
    database = sqlite3.connect(path)
    database.execute(statement)
    database.commit()
    database.close()


def accountsOf(path: Path, query: str = QUERY, reader: HashReader | None = None) -> SQLAccounts:
    database = inlineDatabase(f"sqlite:{path}", isReadOnly=True)
    return SQLAccounts(database, query, reader or HashReader(), Inline())


def result(call: Any, *arguments: Any) -> Any:
    got: list[Any] = []
    maybeDeferred(call, *arguments).addBoth(got.append)
    assert len(got) == 1
    return got[0]


def logIn(checker: Any, name: str, password: str, clientIP: str | None = "192.0.2.1") -> Any:
    """
    @return: the name of the mailbox; L{None} for a wrong name or password; else the error.
    """
    credentials = PasswordAttempt(
        name.encode("utf-8", "surrogateescape"),
        password.encode("utf-8", "surrogateescape"),
        clientIP=clientIP,
    )
    answer = result(checker.requestAvatarId, credentials)
    if isinstance(answer, Failure):
        if answer.check(UnauthorizedLogin):
            return None
        return answer.value
    return answer.decode()


def test_interfaces(path: Path) -> None:
    accounts = accountsOf(path)
    for each in (ICredentialsChecker, IAccountNames, IAccountStatus, IReloading):
        verifyObject(each, accounts)


@pytest.mark.parametrize(
    ("name", "password", "mailbox"),
    [
        ("ann", "one", "ann"),
        ("ann", "two", None),
        ("ann", "", None),
        ("ben", "correct horse", "ben"),
        ("ben", "correct horse ", None),
        ("cat", "three", "cat@example.org"),
        ("fay", "six", "fay"),
        ("gus", "seven", None),
        ("hal", "eight", None),
        ("hal", "{NOSUCH}eight", None),
        ("ida", "", None),
        ("twin", "ten", None),
        ("jörg", "ö", "jörg"),
        ("nobody", "one", None),
        ("ANN", "one", None),
        ("", "", None),
        ("ann' OR '1'='1", "one", None),
        ("ann\0", "one", None),
        ("ann", "one\0", None),
        ("\udcff", "one", None),
        ("a" * 10_000, "one", None),
    ],
)
def test_logins(path: Path, name: str, password: str, mailbox: str | None) -> None:
    assert logIn(accountsOf(path), name, password) == mailbox


def test_mayNotLogIn(path: Path) -> None:
    """
    A right password is refused with the reason; a wrong one learns nothing.
    """
    accounts = accountsOf(path)
    for name, password, reason in (
        ("dan", "four", "Ask the office"),
        ("eve", "five", "Login is disabled."),
    ):
        error = logIn(accounts, name, password)
        assert isinstance(error, POP3ResponseError)
        assert (error.code, error.text) == ("SYS/PERM", reason)
        assert logIn(accounts, name, "wrong") is None


@pytest.mark.parametrize(
    ("clientIP", "mailbox"),
    [
        ("192.0.2.9", "fay"),
        ("::ffff:192.0.2.9", "fay"),
        ("2001:db8::1", "fay"),
        ("192.0.3.9", None),
        (None, None),
    ],
)
def test_networks(path: Path, clientIP: str | None, mailbox: str | None) -> None:
    assert logIn(accountsOf(path), "fay", "six", clientIP) == mailbox


def test_badAccountsAreLoggedOnce(path: Path, logged: list[str]) -> None:
    accounts = accountsOf(path)
    for _ in range(3):
        for name in ("gus", "hal", "ida", "twin"):
            assert logIn(accounts, name, "x") is None
    assert [each.partition(" (")[0] for each in logged] == [
        f"accounts in sqlite:{path}: gus cannot log in: a malformed list of networks",
        f"accounts in sqlite:{path}: hal cannot log in: unknown kind of hash",
        f"accounts in sqlite:{path}: ida cannot log in: unknown kind of hash",
        f"accounts in sqlite:{path}: twin cannot log in: the query returns more than one row",
    ]
    accounts.reload()
    logIn(accounts, "gus", "x")
    assert len(logged) == 5


def test_localAndDomain(path: Path) -> None:
    query = "SELECT '{PLAIN}' || :local || '|' || :domain AS password"
    accounts = accountsOf(path, query)
    assert logIn(accounts, "ann@b@example.org", "ann@b|example.org")
    assert logIn(accounts, "ann", "ann|")


def test_options(path: Path) -> None:
    change(path, "UPDATE account SET password = '{MD5}Z+ksh2WpvH+y0zXEWd6etQ==' WHERE name = 'ann'")
    change(path, "UPDATE account SET password = 'work' WHERE name = 'ben'")
    reader = HashReader("PLAIN", isCourier=True)
    accounts = accountsOf(path, reader=reader)
    assert logIn(accounts, "ann", "work") == "ann"
    assert logIn(accounts, "ben", "work") == "ben"


def test_unknownUsersCostTheSame(path: Path) -> None:
    """
    A comparison for an unknown user is of the kind that the known users have.
    """
    compared: list[str] = []

    class Counting(HashReader):
        def verify(self, stored: str, password: bytes, username: str) -> bool:
            compared.append(stored)
            return super().verify(stored, password, username)

    accounts = accountsOf(path, reader=Counting())
    logIn(accounts, "nobody", "x")
    assert compared[-1].startswith("$argon2id$")
    logIn(accounts, "ben", "x")
    logIn(accounts, "nobody", "x")
    logIn(accounts, "twin", "x")
    assert compared[1:] == [SIX] * 3


# --- queries that cannot work ------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "fault"),
    [
        ("SELECT password FROM account", "no parameter :user or :local"),
        ("SELECT password FROM account WHERE name = :name", "a parameter :name; there are :user"),
        ("SELECT password FROM account WHERE name = ':user'", "no parameter :user"),
    ],
)
def test_badParameters(path: Path, query: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        accountsOf(path, query)


@pytest.mark.parametrize(
    ("query", "fault"),
    [
        ("SELECT name FROM account WHERE name = :user", "returns no column password"),
        ("SELECT * FROM account WHERE name = :user", "returns a column mailbox; a query must"),
        ("SELECT password, password FROM account WHERE name = :user", "a column twice"),
        ("SELECT password FROM missing WHERE name = :user", "the query fails: no such table"),
        ("SELEKT password FROM account WHERE name = :user", "the query fails: near"),
        ("DELETE FROM account WHERE name <> :user", "readonly database"),
        ("SELECT 1 AS password WHERE :user <> ''; DROP TABLE account", "one statement"),
    ],
)
def test_badQuery(path: Path, query: str, fault: str) -> None:
    with pytest.raises((ValueError, DatabaseUnavailable), match=fault):
        accountsOf(path, query).check()
    assert sqlite3.connect(path).execute("SELECT count(*) FROM account").fetchone() == (len(ROWS),)


def test_goodQuery(path: Path) -> None:
    accountsOf(path).check()
    accountsOf(path, QUERY.replace("password,", "password AS PassWord,")).check()


# --- the database is away -------------------------------------------------------------------


def test_away(path: Path, logged: list[str]) -> None:
    accounts = accountsOf(path)
    assert logIn(accounts, "ann", "one") == "ann"
    aside = path.with_suffix(".aside")
    path.rename(aside)
    for _ in range(3):
        error = logIn(accounts, "ann", "one")
        assert isinstance(error, POP3ResponseError) and error.code == "SYS/TEMP"
        assert isinstance(result(accounts.hasAccount, "ann").value, POP3ResponseError)
    aside.rename(path)
    assert logIn(accounts, "ann", "one") == "ann"
    assert [each.partition(" (")[0] for each in logged] == [
        f"sqlite:{path} is not available: unable to open database file",
        f"sqlite:{path} is available again",
    ]


def test_brokenLater(path: Path, logged: list[str]) -> None:
    """
    A query that has stopped working is not a wrong password.
    """
    accounts = accountsOf(path)
    change(path, "ALTER TABLE account RENAME TO gone")
    for _ in range(2):
        assert logIn(accounts, "ann", "one").code == "SYS/TEMP"
    change(path, "ALTER TABLE gone RENAME TO account")
    assert logIn(accounts, "ann", "one") == "ann"
    assert logged == [
        f"the query for accounts in sqlite:{path} is not available: no such table: account",
        f"the query for accounts in sqlite:{path} is available again",
    ]


# --- sessions that sleep, and mail -----------------------------------------------------------


def info(name: str | None) -> Any:
    made = ConnectionInfo("192.0.2.1", 1, False)
    made.userNameAtLogin = name
    return made


def test_proven(path: Path) -> None:
    """
    A user whom a certificate names may log in under the same conditions as with a password.
    """
    accounts = accountsOf(path)

    def proven(name: str, address: str = "192.0.2.1") -> Any:
        client = ConnectionInfo(1, address, True)
        client.userNameAtLogin = name
        return result(accounts.provenMailbox, client, name)

    assert proven("ann") == "ann"
    assert proven("cat") == "cat@example.org"
    assert proven("fay") == "fay"
    for found in (proven("fay", "198.51.100.1"), proven("nobody"), proven("twin"), proven("gus")):
        assert found is None
    for name, says in (("dan", "Ask the office"), ("eve", "1")):
        error = proven(name).value
        assert isinstance(error, POP3ResponseError) and error.code == "SYS/PERM"
        assert (says in str(error)) == (name == "dan")
    # The version is that of the row that was found at the login.
    session = info("cat")
    result(accounts.provenMailbox, session, "cat")
    change(path, "UPDATE account SET password = '{PLAIN}new' WHERE name = 'cat'")
    version = result(accounts.credentialsVersion, session, "cat@example.org")
    assert result(accounts.isStillValid, session, "cat@example.org", version) is False


def test_status(path: Path) -> None:
    accounts = accountsOf(path)
    assert logIn(accounts, "cat", "three") == "cat@example.org"
    session = info("cat")
    version = result(accounts.credentialsVersion, session, "cat@example.org")
    assert version == result(accounts.credentialsVersion, session, "cat@example.org") != ""
    assert "three" not in version

    def isValid() -> Any:
        return result(accounts.isStillValid, session, "cat@example.org", version)

    assert isValid() is True
    change(path, "UPDATE account SET nologin = 1 WHERE name = 'cat'")
    assert isValid() is False
    change(path, "UPDATE account SET nologin = 0, password = '{PLAIN}new' WHERE name = 'cat'")
    assert isValid() is False
    change(path, "UPDATE account SET password = '{PLAIN}three' WHERE name = 'cat'")
    assert isValid() is True
    change(path, "DELETE FROM account WHERE name = 'cat'")
    assert isValid() is False


def test_changedBetweenTwoLogins(path: Path) -> None:
    """
    Two sessions of one user have the versions of their own passwords, whichever asks first.
    """
    accounts = accountsOf(path)
    provider = AccountsProvider(MemoryStore({"ann": []}), [accounts])
    sessions = [ConnectionInfo(each, "192.0.2.1", True) for each in range(4)]
    result(provider.authenticate, sessions[0], "ann", "one")
    result(provider.scramKeys, sessions[1], "ann", "sha256", b"salt" * 4)
    result(provider.sharedSecret, sessions[2], "ann")
    change(path, "UPDATE account SET password = '{PLAIN}new' WHERE name = 'ann'")
    result(provider.authenticate, sessions[3], "ann", "new")
    versions = [result(provider.credentialsVersion, each, "ann") for each in reversed(sessions)]
    valid = [
        result(provider.isStillValid, each, "ann", version)
        for each, version in zip(reversed(sessions), versions, strict=True)
    ]
    assert valid == [True, False, False, False]


def test_names(path: Path) -> None:
    accounts = accountsOf(path)
    known = {
        name: result(accounts.hasAccount, name)
        for name in ("ann", "cat", "dan", "hal", "ida", "twin", "nobody", "a\0", "\udcff")
    }
    # The mailbox of cat has another name; those who cannot log in get mail.
    assert known == {
        "ann": True,
        "cat": False,
        "dan": True,
        "hal": True,
        "ida": True,
        "twin": True,
        "nobody": False,
        "a\0": False,
        "\udcff": False,
    }


def test_conversation(path: Path) -> None:
    """
    The address of the client reaches the checker.
    """
    provider = AccountsProvider(MemoryStore([b"a: b\n"]), [accountsOf(path)])
    conversation(
        provider,
        "S: +OK…\nC: XLOG dan four\nS: -ERR [SYS/PERM] Ask the office\nC: XLOG fay six\nS: -ERR [AUTH]…\n"
        "C: XLOG cat three\nS: +OK…\nC: STAT\nS: +OK 1 6\nC: QUIT\nS: +OK…\nS: (closed)",
    )


# --- from the command line ------------------------------------------------------------------


def test_description(path: Path) -> None:
    make = SQLAccountsMaker().generateChecker
    checker = make(
        f"sqlite:{path}:scheme=plain:courier=no:query="
        "SELECT 'x:query=' || ':scheme=y' AS password WHERE :user = 'ann'"
    )
    assert checker._query.startswith("SELECT 'x:query='")
    for argument, fault in (
        ("", "a query is needed"),
        (f"sqlite:{path}", "a query is needed"),
        (f"sqlite:{path}:query= ", "a query is needed"),
        (f"sqlite:{path}:courier=maybe:query={QUERY}", "courier is yes or no"),
        (f"sqlite:{path}:required=1:query={QUERY}", "required is yes or no"),
        (f"sqlite:{path}:scheme=X:scheme=Y:query={QUERY}", "scheme is given twice"),
        (f"sqlite:{path}:scheme=NOSUCH:query={QUERY}", "there is no scheme NOSUCH"),
        (f"sqlite:{path}x:query={QUERY}", "unable to open database file"),
        (f"mysql://h/db:query={QUERY}", "a DSN is"),
    ):
        with pytest.raises(ValueError, match=fault):
            make(argument)


def test_startsWithoutTheServer(logged: list[str]) -> None:
    make = SQLAccountsMaker().generateChecker
    dsn = "postgresql://ann:secret@127.0.0.1:1/mail"
    make(f"{dsn}:query={QUERY}")
    assert len(logged) == 1
    assert logged[0].startswith("postgresql://127.0.0.1:1/mail is not available: connection failed")
    with pytest.raises(ValueError, match="Connection refused"):
        make(f"{dsn}:required=yes:query={QUERY}")
    assert not any("secret" in each for each in logged)


# --- PostgreSQL --------------------------------------------------------------------------------


@needsPostgreSQL
def test_postgresql() -> None:
    with PostgreSQL() as server:
        server.execute(
            "CREATE TABLE account (name text, password text, mailbox text, nologin boolean, nets text)"
        )
        server.execute(
            "INSERT INTO account VALUES ('ann', '{PLAIN}one', NULL, false, NULL),"
            " ('dan', '{PLAIN}four', NULL, true, NULL), ('j%', '{PLAIN}x', 'jo', NULL, NULL)"
        )
        query = QUERY + " AND 'a%' LIKE 'a%' AND :domain::text = ''"
        accounts = SQLAccounts(inlineDatabase(server.dsn), query, runner=Inline())
        accounts.check()
        assert logIn(accounts, "ann", "one") == "ann"
        assert logIn(accounts, "ann", "two") is None
        for name in ("nobody' --", "ann\0", "\udcff"):
            assert logIn(accounts, name, "one") is None
        assert logIn(accounts, "j%", "x") == "jo"
        assert logIn(accounts, "dan", "four").code == "SYS/PERM"
        for bad, fault in (
            ("SELECT * FROM account WHERE name = :user", "returns a column"),
            ("SELECT password FROM missing WHERE name = :user", "does not exist"),
            ("DELETE FROM account WHERE name = :user", "read-only transaction"),
        ):
            with pytest.raises((ValueError, DatabaseUnavailable), match=fault):
                SQLAccounts(Database(makeDriver(server.dsn)), bad).check()


# --- the schemas of the documentation ----------------------------------------------------------

PAGE = (Path(__file__).parent.parent.parent / "docs" / "sqlaccounts.rst").read_text()
TABLES = {
    "postfixadmin": """
        CREATE TABLE domain (domain varchar(255) PRIMARY KEY, active boolean NOT NULL);
        CREATE TABLE mailbox (username varchar(255) PRIMARY KEY, password varchar(255) NOT NULL,
            maildir varchar(255), quota bigint, domain varchar(255), active boolean NOT NULL);
        INSERT INTO domain VALUES ('example.org', '1'), ('off.example', '0');
        INSERT INTO mailbox VALUES
            ('ann@example.org', '$SIX', 'example.org/ann/', 0, 'example.org', '1'),
            ('ben@example.org', '$SIX', 'example.org/ben/', 0, 'example.org', '0'),
            ('cat@off.example', '$SIX', 'off.example/cat/', 0, 'off.example', '1');
    """,
    "mailcow": """
        CREATE TABLE domain (domain varchar(255) PRIMARY KEY, active smallint NOT NULL);
        CREATE TABLE mailbox (username varchar(255) PRIMARY KEY, password varchar(255) NOT NULL,
            domain varchar(255), kind varchar(100) NOT NULL DEFAULT '', attributes json,
            authsource varchar(20) NOT NULL DEFAULT 'mailcow', active smallint NOT NULL);
        INSERT INTO domain VALUES ('example.org', 1), ('off.example', 0);
        INSERT INTO mailbox VALUES
            ('ann@example.org', '{SHA512-CRYPT}$SIX', 'example.org', '',
             '{"pop3_access": "1", "force_pw_update": "0"}', 'mailcow', 1),
            ('ben@example.org', '{SHA512-CRYPT}$SIX', 'example.org', '', '{"pop3_access": "1"}', 'mailcow', 2),
            ('cat@off.example', '{SHA512-CRYPT}$SIX', 'off.example', '', '{"pop3_access": "1"}', 'mailcow', 1),
            ('dan@example.org', '{SHA512-CRYPT}$SIX', 'example.org', '', '{"pop3_access": "0"}', 'mailcow', 1),
            ('eve@example.org', '{SHA512-CRYPT}$SIX', 'example.org', 'group', '{"pop3_access": "1"}', 'mailcow', 1),
            ('fay@example.org', '{SHA512-CRYPT}$SIX', 'example.org', '', '{"pop3_access": "1"}', 'ldap', 1),
            ('gus@example.org', '{SHA512-CRYPT}$SIX', 'example.org', '',
             '{"pop3_access": "1", "force_pw_update": "1"}', 'mailcow', 1);
    """,
    "modoboa": """
        CREATE TABLE core_user (id integer PRIMARY KEY, email varchar(254), password varchar(256),
            is_active boolean NOT NULL);
        CREATE TABLE admin_domain (id integer PRIMARY KEY, name varchar(100), enabled boolean NOT NULL);
        CREATE TABLE admin_mailbox (id integer PRIMARY KEY, address varchar(252), quota integer,
            domain_id integer, user_id integer, is_send_only boolean NOT NULL);
        INSERT INTO core_user VALUES (1, 'ann@example.org', '{SHA512-CRYPT}$SIX', '1'),
            (2, 'ben@example.org', '{SHA512-CRYPT}$SIX', '0'),
            (3, 'cat@off.example', '{SHA512-CRYPT}$SIX', '1'),
            (4, 'dan@example.org', '{SHA512-CRYPT}$SIX', '1'),
            (5, 'admin', '{SHA512-CRYPT}$SIX', '1');
        INSERT INTO admin_domain VALUES (1, 'example.org', '1'), (2, 'off.example', '0');
        INSERT INTO admin_mailbox VALUES (1, 'ann', 0, 1, 1, '0'), (2, 'ben', 0, 1, 2, '0'),
            (3, 'cat', 0, 2, 3, '0'), (4, 'dan', 0, 1, 4, '1');
    """,
}


def descriptionOf(suite: str) -> str:
    found = re.search(rf"    :name: {suite}\n\n((?:    .*\n|\n)+)", PAGE)
    assert found is not None
    (description,) = tomllib.loads(found[1].replace("\n    ", "\n").removeprefix("    "))["auth"]
    assert isinstance(description, str)
    return description


def checkSuite(accounts: Any) -> None:
    assert logIn(accounts, "ann@example.org", "correct horse") == "ann@example.org"
    assert logIn(accounts, "Ann@Example.ORG", "correct horse") == "ann@example.org"
    assert logIn(accounts, "ann@example.org", "wrong") is None
    others = {"ben", "dan", "eve", "fay", "gus", "nobody"}
    for name in (*(f"{each}@example.org" for each in others), "cat@off.example", "ann", "admin"):
        assert logIn(accounts, name, "correct horse") is None, name


@pytest.mark.parametrize("suite", TABLES)
def test_suiteInSQLite(tmp_path: Path, suite: str) -> None:
    database = sqlite3.connect(tmp_path / "suite.db")
    database.executescript(TABLES[suite].replace("$SIX", SIX))
    database.close()
    description = descriptionOf(suite).strip()
    query = re.fullmatch(r"sql:postgresql://\S+:query=(.*)", description, re.DOTALL)
    assert query is not None
    SQLAccountsMaker().generateChecker(f"sqlite:{tmp_path / 'suite.db'}:query={query[1]}")
    checkSuite(accountsOf(tmp_path / "suite.db", query[1]))


@needsPostgreSQL
def test_suitesInPostgreSQL() -> None:
    with PostgreSQL() as server:
        for suite, tables in TABLES.items():
            server.execute(f"CREATE DATABASE {suite}")
            dsn = server.dsn.removesuffix("postgres") + suite
            server.execute(tables.replace("$SIX", SIX), dsn=dsn)
            query = descriptionOf(suite).partition(":query=")[2]
            accounts = SQLAccounts(inlineDatabase(dsn), query, runner=Inline())
            accounts.check()
            checkSuite(accounts)
