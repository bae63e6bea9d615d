"""
Two real PostgreSQL under Patroni and etcd in a temporary directory: a leader, and its synchronous
standby.  HAProxy passes every connection on to the leader.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.postgresql import (
    asPostgres,
    ownedDirectory,
    programs,
    whyNoPostgreSQL,
)
from tests.support.running import freePort

__all__ = ["LOOP_WAIT", "TTL", "Cluster", "Member", "whyNoPatroni"]

# Seconds until a leader that does not renew its key is replaced: the least that Patroni accepts.
TTL = 20
# Seconds between two rounds of Patroni.
LOOP_WAIT = 2
# Seconds that a step may take; a busy machine needs long.
PATIENCE = 120
# The environment variable that names the directory of a daemon.  The processes that the daemon has
# started are found by it.
_MARK = "POP3SVC_TEST_DAEMON"
_PACKAGES = "(apt-get install patroni python3-etcd etcd-server haproxy)"


def whyNoPatroni() -> str:
    """
    @return: why there can be no cluster; empty if there can be one.
    """
    reason = whyNoPostgreSQL()
    if reason:
        return reason
    for program in ("patroni", "etcd", "haproxy"):
        if shutil.which(program) is None:
            return f"{program} is not installed {_PACKAGES}"
    # Patroni is a Python script, and its interpreter needs the module etcd.
    with open(str(shutil.which("patroni")), "rb") as script:
        interpreter = script.readline().decode(errors="replace").removeprefix("#!").split()
    try:
        subprocess.run([*interpreter, "-c", "import etcd"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return f"Patroni's Python has no module etcd {_PACKAGES}"
    return ""


def _processesOf(directory: str) -> list[int]:
    """
    @return: the ids of the running processes that have been started by a L{_Daemon} with this
        directory.  A zombie is none of them.
    """
    mark = f"{_MARK}={directory}".encode()
    found = []
    for each in filter(str.isdigit, os.listdir("/proc")):
        process = Path("/proc", each)
        try:
            isMarked = mark in (process / "environ").read_bytes().split(b"\0")
            # The children of PostgreSQL overwrite their environment, but work in its data.
            if isMarked or os.path.dirname(os.readlink(process / "cwd")) == directory:
                found.append(int(each))
        except OSError:
            # This process has ended meanwhile, or belongs to somebody else.
            continue
    return found


def _waitFor(condition: Callable[[], Any], wanted: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"no {wanted} within {PATIENCE} s"
        time.sleep(0.05)


class _Daemon:
    """
    A program that runs in the background, as the user postgres if this process is root's.
    """

    def __init__(self, directory: str, name: str, *command: str) -> None:
        self._directory = os.path.join(directory, name)
        self._log = os.path.join(directory, f"{name}.log")
        self._command = command
        self._name = name
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(
                asPostgres(*self._command),
                start_new_session=True,
                cwd="/",
                env=os.environ | {_MARK: self._directory},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def check(self) -> None:
        """
        Fail with the log if the program has ended.
        """
        isRunning = self.process is not None and self.process.poll() is None
        assert isRunning, f"{self._name} has ended:\n" + Path(self._log).read_text()[-4000:]

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


class Member:
    """
    A PostgreSQL and its Patroni.
    """

    def __init__(self, directory: str, name: str, etcd: int) -> None:
        """
        @param etcd: the port of etcd.
        """
        self.name = name
        self.port, self.rest = freePort(), freePort()
        self._data = os.path.join(ownedDirectory(os.path.join(directory, name)), "data")
        file = os.path.join(directory, f"{name}.json")
        Path(file).write_text(json.dumps(self._configuration(etcd)))
        # JSON is YAML.
        self.patroni = _Daemon(directory, name, "patroni", file)

    def _configuration(self, etcd: int) -> dict[str, Any]:
        own = os.path.dirname(self._data)
        users = {"replication": "replicator", "superuser": "postgres", "rewind": "rewinder"}
        return {
            "scope": "pop3svc",
            "name": self.name,
            "restapi": {
                "listen": f"127.0.0.1:{self.rest}",
                "connect_address": f"127.0.0.1:{self.rest}",
            },
            # Version 2 of etcd's interface.  With version 3, Patroni 3.0.2 gives the leader's key
            # back to a leader that was frozen, and confirmed transactions are lost.
            "etcd": {"host": f"127.0.0.1:{etcd}"},
            "bootstrap": {
                "dcs": {
                    "ttl": TTL,
                    "loop_wait": LOOP_WAIT,
                    "retry_timeout": 3,
                    "synchronous_mode": True,
                    "primary_start_timeout": 0,
                    "postgresql": {
                        "use_pg_rewind": True,
                        "parameters": {"wal_log_hints": "on", "max_connections": 60},
                    },
                },
                "initdb": [{"encoding": "UTF8"}, {"locale": "C.UTF-8"}, "data-checksums"],
            },
            "postgresql": {
                "listen": f"127.0.0.1:{self.port}",
                "connect_address": f"127.0.0.1:{self.port}",
                "bin_dir": str(programs()),
                "data_dir": self._data,
                "pgpass": os.path.join(own, "pgpass"),
                "authentication": {
                    kind: {"username": user, "password": "x"} for kind, user in users.items()
                },
                "pg_hba": [
                    "local all all trust",
                    "host all all 127.0.0.1/32 trust",
                    "host replication replicator 127.0.0.1/32 trust",
                ],
                "parameters": {"unix_socket_directories": own},
            },
            "watchdog": {"mode": "off"},
        }

    def has(self, role: str) -> bool:
        """
        @param role: C{primary} or C{sync}.
        @return: whether Patroni says that its PostgreSQL has this role.
        """
        self.patroni.check()
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self.rest}/{role}", timeout=5).close()
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """
        Kill Patroni and its PostgreSQL as a power failure would, and return when no process of
        theirs is left.
        """
        self.patroni.kill()
        self._signalAll(signal.SIGKILL)

    def end(self) -> None:
        """
        Stop at once, but let PostgreSQL remove what it has outside of the directory.
        """
        self.patroni.kill()
        self._signalAll(signal.SIGQUIT)

    def _signalAll(self, number: int) -> None:
        """
        Send a signal to all that Patroni has started, until nothing of that is left.

        The file postmaster.pid does not tell of a PostgreSQL that is about to start.
        """
        own = os.path.dirname(self._data)

        def isLeft() -> bool:
            processes = _processesOf(own)
            for each in processes:
                try:
                    os.kill(each, number)
                except ProcessLookupError:
                    pass
            return bool(processes)

        # The second look finds the child of a process that ended during the first.
        _waitFor(lambda: not isLeft() and not isLeft(), f"end of PostgreSQL {self.name}")


_HAPROXY = """
global
    hard-stop-after 1s
defaults
    mode tcp
    timeout connect 2s
    timeout client 15m
    timeout server 15m
    timeout check 2s
frontend postgresql
    bind 127.0.0.1:{port}
    default_backend members
backend members
    option httpchk OPTIONS /primary
    http-check expect status 200
    default-server inter 1s fastinter 300ms downinter 1s fall 2 rise 1 \
on-marked-down shutdown-sessions
{servers}
"""


class Cluster:
    """
    A cluster with an empty database.

    @ivar dsn: the connection URI of the leader's database.
    """

    def __init__(self) -> None:
        self.port = freePort()
        self.dsn = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self._directory = ""
        self.members: list[Member] = []
        self._others: list[_Daemon] = []

    def __enter__(self) -> Cluster:
        self._directory = tempfile.mkdtemp(prefix="pop3svc-patroni-")
        os.chmod(self._directory, 0o755)
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for member in self.members:
            member.end()
        for other in self._others:
            other.kill()
        shutil.rmtree(self._directory)

    def _start(self) -> None:
        etcd, peer = freePort(), freePort()
        self.members = [Member(self._directory, name, etcd) for name in ("n1", "n2")]
        self._others = [self._etcd(etcd, peer), self._proxy()]
        for each in self._others:
            each.start()
        _waitFor(lambda: self._isHealthy(etcd), "etcd")
        for member in self.members:
            member.patroni.start()
        self.waitUntilSafe()
        _waitFor(self._answers, "answer through HAProxy")

    def _etcd(self, port: int, peer: int) -> _Daemon:
        client, other = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer}"
        command = ["etcd", "--enable-v2=true", "--name", "e1"]
        command += ["--data-dir", ownedDirectory(os.path.join(self._directory, "etcd"))]
        command += ["--listen-client-urls", client, "--advertise-client-urls", client]
        command += ["--listen-peer-urls", other, "--initial-advertise-peer-urls", other]
        command += ["--initial-cluster", f"e1={other}", "--logger", "zap", "--log-level", "warn"]
        return _Daemon(self._directory, "etcd", *command)

    def _proxy(self) -> _Daemon:
        servers = "\n".join(
            f"    server {each.name} 127.0.0.1:{each.port} check port {each.rest}"
            for each in self.members
        )
        file = os.path.join(self._directory, "haproxy.cfg")
        Path(file).write_text(_HAPROXY.format(port=self.port, servers=servers))
        return _Daemon(self._directory, "haproxy", "haproxy", "-db", "-f", file)

    def _isHealthy(self, etcd: int) -> bool:
        for each in self._others:
            each.check()
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{etcd}/health", timeout=5).close()
        except OSError:
            return False
        return True

    def _answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.dsn, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _with(self, role: str) -> Member | None:
        return next((each for each in self.members if each.has(role)), None)

    def waitUntilSafe(self) -> None:
        """
        Wait until there is a leader with a synchronous standby.  Before that, the leader confirms
        alone, and the leader's death would lose what it has confirmed.
        """
        _waitFor(lambda: self._with("primary") and self._with("sync"), "synchronous standby")

    def killLeader(self) -> Member:
        """
        Kill the leader and its Patroni as a power failure would.

        @return: the member.
        """
        leader = self._with("primary")
        assert leader is not None, "there is no leader"
        leader.kill()
        return leader
