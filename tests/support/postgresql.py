"""
A real PostgreSQL in a temporary directory, for tests.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from tests.support.running import childrenOf, freePort

__all__ = [
    "PostgreSQL",
    "asPostgres",
    "needsPostgreSQL",
    "ownedDirectory",
    "programs",
    "whyNoPostgreSQL",
]

# Seconds that a step may take; a busy machine needs long.
PATIENCE = 60


def programs() -> Path | None:
    """
    @return: the directory of PostgreSQL's programs: of the newest version from Debian's packages,
        else of the C{initdb} in the C{PATH}; L{None} if there is none.
    """
    debian = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda each: int(each.parts[-3])
    )
    if debian:
        return debian[-1].parent
    found = shutil.which("initdb")
    return None if found is None else Path(found).resolve().parent


def whyNoPostgreSQL() -> str:
    """
    @return: why there can be no server; empty if there can be one.
    """
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "psycopg is not installed"
    if programs() is None:
        return "PostgreSQL is not installed (apt-get install postgresql)"
    if os.geteuid() == 0:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            return "there is no user postgres, and PostgreSQL does not run as root"
    return ""


needsPostgreSQL = pytest.mark.skipif(
    bool(whyNoPostgreSQL()), reason=whyNoPostgreSQL() or "there is a PostgreSQL"
)


def asPostgres(*command: str) -> list[str]:
    """
    @return: a command that runs as the user postgres if this process is root's, because PostgreSQL
        refuses root.
    """
    # setpriv executes the program in its own process, so that signals reach the program.
    other = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]
    return [*(other if os.geteuid() == 0 else []), *command]


def ownedDirectory(path: str) -> str:
    """
    Make a private directory for PostgreSQL.

    @return: its path.
    """
    os.mkdir(path, 0o700)
    if os.geteuid() == 0:
        user = pwd.getpwnam("postgres")
        os.chown(path, user.pw_uid, user.pw_gid)
    return path


class PostgreSQL:
    """
    A server with an empty database.

    @ivar dsn: the connection URI of the database.
    """

    def __init__(self) -> None:
        self.port = freePort()
        self.dsn = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self._bin = programs()
        self._directory = ""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> PostgreSQL:
        self._directory = tempfile.mkdtemp(prefix="pop3svc-postgresql-")
        os.chmod(self._directory, 0o755)
        data = ownedDirectory(os.path.join(self._directory, "data"))
        sockets = ownedDirectory(os.path.join(self._directory, "run"))
        subprocess.run(
            self._command("initdb", "-D", data, "-A", "trust", "-U", "postgres", "-E", "UTF8")
            + ["--locale=C.UTF-8", "-N", "--no-instructions"],
            cwd="/",
            check=True,
            stdout=subprocess.DEVNULL,
        )
        with open(os.path.join(data, "postgresql.conf"), "a") as file:
            file.write(
                f"listen_addresses='127.0.0.1'\nport={self.port}\n"
                f"unix_socket_directories='{sockets}'\nlogging_collector=off\nmax_connections=40\n"
            )
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self.thaw()
            self._end(signal.SIGQUIT)
        shutil.rmtree(self._directory)

    def _command(self, program: str, *arguments: str) -> list[str]:
        return asPostgres(f"{self._bin}/{program}", *arguments)

    def start(self) -> None:
        """
        Start the server, and wait until it answers.
        """
        assert self._process is None
        data = os.path.join(self._directory, "data")
        with open(os.path.join(self._directory, "log"), "ab") as log:
            # The server is a child of this process, because this process then reaps the server.
            # A zombie would keep its lock file valid.
            self._process = subprocess.Popen(
                self._command("postgres", "-D", data),
                start_new_session=True,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._waitFor(self._answers)

    def _answers(self) -> bool:
        import psycopg

        assert self._process is not None
        assert self._process.poll() is None, Path(self._directory, "log").read_text()
        try:
            psycopg.connect(self.dsn, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    @staticmethod
    def _waitFor(condition: Any) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, "PostgreSQL takes too long"
            time.sleep(0.02)

    def _end(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(PATIENCE)
        self._process = None

    def stop(self) -> None:
        """
        Stop the server by a fast shutdown, which ends its sessions.
        """
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """
        Kill the server as a power failure would, and wait until its children have ended.
        """
        assert self._process is not None
        children = childrenOf(self._process.pid)
        self._end(signal.SIGKILL)
        self._waitFor(lambda: not any(os.path.exists(f"/proc/{each}") for each in children))

    def _signalAll(self, number: int) -> None:
        assert self._process is not None
        for each in (self._process.pid, *childrenOf(self._process.pid)):
            try:
                os.kill(each, number)
            except ProcessLookupError:
                pass

    def freeze(self) -> None:
        """
        Stop all processes of the server where they are: connections stay, and nothing answers.
        """
        self._signalAll(signal.SIGSTOP)

    def thaw(self) -> None:
        """
        Let a frozen server go on.
        """
        self._signalAll(signal.SIGCONT)

    def execute(self, statement: str, values: Any = None, dsn: str | None = None) -> list[Any]:
        """
        Execute a statement in a connection of its own.

        @param dsn: of another database.

        @return: the rows, if there are any.
        """
        import psycopg

        with psycopg.connect(dsn or self.dsn, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), values)
            return cursor.fetchall() if cursor.description else []

    def configure(self, name: str, value: str) -> None:
        """
        Change a setting of the running server.
        """
        self.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        self.execute("SELECT pg_reload_conf()")
        self._waitFor(lambda: self.execute(f"SHOW {name}") == [(value,)])

    def useCertificate(self, file: Path) -> None:
        """
        Offer TLS to new connections.

        @param file: a certificate and its key, in PEM.
        """
        own = os.path.join(self._directory, "run", f"{time.monotonic_ns()}.pem")
        os.close(os.open(own, os.O_WRONLY | os.O_CREAT, 0o600))
        shutil.copyfile(file, own)
        if os.geteuid() == 0:
            shutil.chown(own, "postgres", "postgres")
        self.configure("ssl_cert_file", own)
        self.configure("ssl_key_file", own)
        self.configure("ssl", "on")

    def terminateBackends(self) -> int:
        """
        End the connections of all clients.

        @return: how many there were.
        """
        rows = self.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        return len(rows)
