"""
TLS to the database, with a real service and a real PostgreSQL.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pop3svc.accounts.hashes import hashPassword
from pop3svc.accounts.passwordediting import addUser
from pop3svc.testing.certificates import Authority
from tests.support.postgresql import PostgreSQL, needsPostgreSQL
from tests.support.running import Connection, Running, freePort, script
from tests.support.site import run

pytestmark = needsPostgreSQL

QUERY = "SELECT password FROM account WHERE name = :user"


class Database:
    """
    A PostgreSQL with a certificate for C{db.example.org} that a good authority has signed.
    """

    def __init__(self, server: PostgreSQL, path: Path) -> None:
        self.server = server
        self._path = path
        Authority().write(path / "other.pem")
        authority = Authority()
        authority.write(path / "ca.pem")
        authority.issue(path / "good.pem", ["db.example.org"])
        authority.issue(path / "expired.pem", ["db.example.org"], days=-1)
        self.use("good.pem")

    def use(self, certificate: str) -> None:
        self.server.useCertificate(self._path / certificate)

    def dsn(self, host: str = "db.example.org", authorities: str = "ca.pem") -> str:
        return (
            f"postgresql://postgres@{host}:{self.server.port}/postgres?hostaddr=127.0.0.1"
            f"&sslmode=verify-full&sslrootcert={self._path / authorities}"
        )


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with PostgreSQL() as server:
        server.execute("CREATE TABLE account (name text, password text)")
        server.execute("INSERT INTO account VALUES ('ann', %s)", [hashPassword("right")])
        yield Database(server, tmp_path)


def options(path: Path, port: int, dsn: str, auth: str = "") -> list[str]:
    """
    Write the configuration of a service with mail in a database.

    @param auth: the accounts, if they are not in the same database.
    @return: the options that name the configuration.
    """
    auth = auth or f"sql:{dsn}:query={QUERY}"
    (path / "pop3svc.toml").write_text(
        f"""
        [[listener]]
        endpoint = "tcp:{port}:interface=127.0.0.1"
        [[store]]
        kind = "sql"
        dsn = "{dsn}"
        auth = ["{auth}"]
        """
    )
    return ["--config", str(path / "pop3svc.toml")]


def answer(port: int) -> bytes:
    connection = Connection(port)
    assert connection.line().startswith(b"+OK")
    assert connection.say(b"USER ann").startswith(b"+OK")
    return connection.say(b"PASS right")


def test_certificateThatVerifies(tmp_path: Path, database: Database) -> None:
    """
    Mail and accounts are read over TLS.  If the certificate expires while the service runs, logins
    fail until the database has a new certificate.
    """
    migrated = run([script("pop3svc"), "sql", "migrate", database.dsn()], tmp_path / "home")
    assert migrated.returncode == 0, migrated.stderr
    port = freePort()
    with Running(tmp_path / "home", *options(tmp_path, port, database.dsn())) as running:
        running.up()
        assert answer(port).startswith(b"+OK")
        encrypted = database.server.execute(
            "SELECT ssl FROM pg_stat_ssl NATURAL JOIN pg_stat_activity "
            "WHERE application_name = 'pop3svc'"
        )
        assert encrypted and all(each for (each,) in encrypted)
        database.use("expired.pem")
        database.server.terminateBackends()
        assert answer(port).startswith(b"-ERR [SYS/TEMP]")
        assert "certificate verify failed" in running.waitFor("is not available: ")
        database.use("good.pem")
        assert answer(port).startswith(b"+OK")
        running.waitFor("is available again")
        assert running.end(signal.SIGTERM) == 0
        assert not any("Traceback" in line for line in running.lines)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"authorities": "other.pem"}, "SSL error: certificate verify failed"),
        ({"authorities": "none.pem"}, "none.pem"),
        ({"host": "mail.example.org"}, 'does not match host name "mail.example.org"'),
    ],
)
def test_certificateThatDoesNotVerify(
    tmp_path: Path, database: Database, wrong: dict[str, str], sentence: str
) -> None:
    """
    If the certificate does not verify, C{sql migrate} fails, and the service does not start,
    neither with mail nor with accounts in the database.
    """

    def fails(*command: str) -> str:
        done = run([script("pop3svc"), *command], tmp_path / "home")
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith("pop3svc: ") and sentence in line
        return line

    dsn = database.dsn(**wrong)
    addUser(str(tmp_path / "users"), "ann", "right")
    fails("sql", "migrate", dsn)
    assert "auth sql: " in fails("serve", *options(tmp_path, freePort(), dsn))
    users = f"passwd:{tmp_path / 'users'}"
    assert "auth" not in fails("serve", *options(tmp_path, freePort(), dsn, users))
