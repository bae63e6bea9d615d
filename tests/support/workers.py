"""
A site that is served by workers.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.running import (
    Connection,
    Running,
    environment,
    freePort,
)
from tests.support.site import options

SERVES = re.compile(r"worker (\d+) \(process (\d+)\) serves")


class Site:
    """
    A service with two workers.

    @ivar pids: the process ids of the workers, by number.
    """

    def __init__(self, running: Running, port: int) -> None:
        self.running = running
        self.port = port
        self.pids: dict[int, int] = {}
        self.open: list[Connection] = []
        running.up()
        for _ in range(2):
            self.waitForWorker()
        assert set(self.pids) == {1, 2}

    def waitForWorker(self) -> int:
        found = SERVES.search(self.running.waitFor("serves"))
        assert found is not None
        self.pids[int(found[1])] = int(found[2])
        return int(found[1])

    def workersOf(self, *connections: Connection) -> list[int]:
        """
        @return: the number of the worker that has accepted each connection.
        """
        sockets: dict[str, int] = {}
        for number, pid in self.pids.items():
            for each in Path(f"/proc/{pid}/fd").iterdir():
                try:
                    sockets[os.readlink(each)] = number
                except FileNotFoundError:
                    pass
        local = {each.socket.getsockname()[1]: each for each in connections}
        found = {}
        with open("/proc/net/tcp") as table:
            next(table)
            for row in table:
                words = row.split()
                client = int(words[2].split(":")[1], 16)
                if client in local and f"socket:[{words[9]}]" in sockets:
                    found[client] = sockets[f"socket:[{words[9]}]"]
        return [found[each] for each in local]

    def connect(self, header: bytes = b"") -> tuple[int, Connection]:
        """
        @return: the number of a worker, and a connection to it whose greeting was read.
        """
        connection = Connection(self.port)
        self.open.append(connection)
        connection.socket.sendall(header)
        assert connection.line().startswith(b"+OK")
        return self.workersOf(connection)[0], connection

    def connectTo(self, number: int, header: bytes = b"") -> Connection:
        """
        @return: a connection to a certain worker.
        """
        for _ in range(500):
            found, connection = self.connect(header)
            if found == number:
                return connection
        raise AssertionError(f"worker {number} accepts nothing")

    def end(self) -> int:
        """
        Close the clients' connections, because the service would wait for them, and end the
        service.

        @return: the exit status.
        """
        for each in self.open:
            each.socket.close()
        return self.running.end(signal.SIGTERM)


def begun(site: Path, home: Path, *more: str) -> Iterator[Site]:
    port = freePort()
    with Running(
        home,
        *options(site, "--workers", "2", "--endpoint", f"tcp:{port}:interface=127.0.0.1", *more),
    ) as running:
        yield Site(running, port)


def mayRunHere() -> bool:
    """
    @return: whether this process may run this Python with this package as the user nobody.
    """
    if os.geteuid() != 0:
        return False
    try:
        done = subprocess.run(
            [sys.executable, "-c", "import pop3svc"], user=65534, cwd="/", env=environment("/")
        )
    except PermissionError:
        return False
    return done.returncode == 0
