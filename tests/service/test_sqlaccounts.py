"""
Accounts in a database, with a real service and a real PostgreSQL.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pop3svc.accounts.hashes import hashPassword
from tests.support.maildirs import deliver
from tests.support.postgresql import PostgreSQL, needsPostgreSQL
from tests.support.running import Connection, Running, freePort, replyToLogin, script
from tests.support.site import run

QUERY = "SELECT password, mailbox AS user FROM account WHERE name = lower(:user)"
SECRET = "topsecret"


@pytest.fixture
def mail(tmp_path: Path) -> Path:
    deliver(tmp_path / "mail" / "ann", "1.x")
    return tmp_path / "mail"


@pytest.fixture
def server() -> Iterator[PostgreSQL]:
    with PostgreSQL() as server:
        server.execute("CREATE TABLE account (name text, password text, mailbox text)")
        server.execute(
            "INSERT INTO account VALUES ('ann@example.org', %s, 'ann')", [hashPassword("right")]
        )
        yield server


def options(mail: Path, port: int, auth: str) -> list[str]:
    return [
        *("--provider", f"maildir:{mail}", "--auth", f"sql:{auth}:query={QUERY}"),
        *("--endpoint", f"tcp:{port}:interface=127.0.0.1"),
    ]


def answer(port: int, password: str, name: str = "Ann@Example.org") -> bytes:
    return replyToLogin(port, name, password)


@pytest.mark.smoke
def test_sqlite(tmp_path: Path, mail: Path) -> None:
    database = sqlite3.connect(tmp_path / "accounts.db")
    database.execute("CREATE TABLE account (name, password, mailbox)")
    database.execute("INSERT INTO account VALUES ('ann@example.org', '{PLAIN}right', 'ann')")
    database.commit()
    database.close()
    port = freePort()
    path = f"sqlite:{tmp_path / 'accounts.db'}"
    with Running(tmp_path / "home", *options(mail, port, path)) as running:
        running.up()
        assert answer(port, "right").startswith(b"+OK")
        assert answer(port, "wrong").startswith(b"-ERR [AUTH]")
        assert running.end(signal.SIGTERM) == 0
        assert not any("Traceback" in line for line in running.lines)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_databaseThatTheUserCannotRead(tmp_path: Path, mail: Path) -> None:
    database = sqlite3.connect(tmp_path / "accounts.db")
    database.execute("CREATE TABLE account (name, password, mailbox)")
    database.close()
    (tmp_path / "accounts.db").chmod(0o600)
    path = f"sqlite:{tmp_path / 'accounts.db'}"
    command = [script("twistd"), "-n", "--pidfile=", "--uid=65534", "--gid=65534", "pop3svc"]
    more = ["--data", str(tmp_path / "data")]
    refused = run([*command, *options(mail, freePort(), path), *more], tmp_path / "home")
    assert refused.returncode == 1
    assert refused.stderr == (
        f"pop3svc: --auth sql:{path}: user 65534 of --uid cannot read it; let that user read it\n"
    )


@needsPostgreSQL
def test_postgresqlComesAndGoes(tmp_path: Path, mail: Path, server: PostgreSQL) -> None:
    """
    The service starts without the server, and logins succeed whenever the server can be reached.
    """
    server.stop()
    port = freePort()
    dsn = server.dsn.replace("postgres@", f"postgres:{SECRET}@")
    with Running(tmp_path / "home", *options(mail, port, dsn)) as running:
        running.up()
        assert answer(port, "right") == b"-ERR [SYS/TEMP] Accounts are not available now.\r\n"
        server.start()
        assert answer(port, "right").startswith(b"+OK")
        running.waitFor("is available again")
        server.kill()
        for _ in range(3):
            assert answer(port, "right").startswith(b"-ERR [SYS/TEMP]")
        server.start()
        assert answer(port, "right").startswith(b"+OK")
        running.waitFor("is available again")
        assert running.end(signal.SIGTERM) == 0
        lines = running.lines
    assert sum("is not available: " in line for line in lines) == 2
    assert sum("is available again" in line for line in lines) == 2
    assert sum("--auth sql: shows the password" in line for line in lines) == 1
    assert not any(
        "Traceback" in line or SECRET in line or "failed login" in line for line in lines
    )


@needsPostgreSQL
def test_endsWhileTheServerIsFrozen(tmp_path: Path, mail: Path, server: PostgreSQL) -> None:
    port = freePort()
    with Running(tmp_path / "home", *options(mail, port, server.dsn)) as running:
        running.up()
        assert answer(port, "right").startswith(b"+OK")
        server.freeze()
        try:
            connection = Connection(port)
            connection.line()
            connection.say(b"USER ann@example.org")
            connection.socket.sendall(b"PASS right\r\n")
            # Meanwhile a client that does not log in is served.
            other = Connection(port)
            assert other.line().startswith(b"+OK") and other.say(b"CAPA").startswith(b"+OK")
            began = time.monotonic()
            assert running.end(signal.SIGTERM) == 0
            assert time.monotonic() - began < 20
        finally:
            server.thaw()


@needsPostgreSQL
def test_workers(tmp_path: Path, mail: Path, server: PostgreSQL) -> None:
    """
    Each worker has its own connections.  The description of the accounts is in a separate file.
    """
    port = freePort()
    (tmp_path / "accounts").write_text(f"sql:{server.dsn}:required=yes:query=\n{QUERY}\n")
    (tmp_path / "accounts").chmod(0o600)
    (tmp_path / "pop3svc.toml").write_text(
        f"""
        workers = 2
        [[listener]]
        endpoint = "tcp:{port}:interface=127.0.0.1"
        [[store]]
        kind = "maildir"
        path = "{mail}"
        auth = [{{ file = "{tmp_path / "accounts"}" }}]
        """
    )
    config = str(tmp_path / "pop3svc.toml")
    checked = run([script("pop3svc"), "config", "check", config], tmp_path / "home")
    assert checked.returncode == 0 and "accounts: sql:(left out)" in checked.stdout
    with Running(tmp_path / "home", "--config", config) as running:
        running.up()
        for _ in range(6):
            assert answer(port, "right").startswith(b"+OK")
        assert running.end(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("auth", "sentence"),
    [
        ("sql:sqlite:/nowhere/x.db:query=" + QUERY, "sqlite:/nowhere/x.db: unable to open"),
        (f"sql:mysql://root:{SECRET}@h/db:query=" + QUERY, "a DSN is sqlite:PATH or postgresql:"),
        (
            f"sql:postgresql://root:{SECRET}@h:1/db?sslmod=no:query=" + QUERY,
            "sslmod is not a parameter of a connection",
        ),
        (
            f"sql:postgresql://root:{SECRET}@127.0.0.1:1/db:required=yes:query=" + QUERY,
            "postgresql://127.0.0.1:1/db: connection failed: connection to server at",
        ),
        ("sql:sqlite:FILE:query=SELECT 1 AS secret WHERE :user = ''", "returns no column password"),
        ("sql:sqlite:FILE:query=SELECT 1 AS password", "the query has no parameter"),
        ("sql:sqlite:FILE", "a query is needed"),
    ],
)
def test_oneSentence(tmp_path: Path, mail: Path, auth: str, sentence: str) -> None:
    (tmp_path / "empty.db").touch()
    done = run(
        [
            *(script("pop3svc"), "serve", "--endpoint", f"tcp:{freePort()}:interface=127.0.0.1"),
            *("--provider", f"maildir:{mail}"),
            *("--auth", auth.replace("FILE", str(tmp_path / "empty.db"))),
        ],
        tmp_path / "home",
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("pop3svc: --auth sql: ") and sentence in line
    assert SECRET not in done.stderr + done.stdout
