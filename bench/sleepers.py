"""
Measure the memory that each of many sleepers over TLS takes, and what their polls cost.  Measure
also the times of logins, RETRs and polls meanwhile.

    python bench/sleepers.py [COUNT [WORKERS [SECONDS]]]

By default there are 10,000 sleepers, and the service has one process.  With SECONDS, each sleeper
then polls every five minutes for this time.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from pop3svc.service.datadirectory import _selfSigned
from tests.support.running import environment, freePort, script

# The number of users.  The sleepers are spread evenly over them.
USERS = 200
# The most sleepers of one client process.  Each process has its own address, because one
# address has only 28,000 ports.
EACH = 10_000
# The seconds between two polls of a sleeper.
BETWEEN = 300.0


def family(pid: int) -> Iterator[int]:
    """
    @return: the ids of a process and its descendants.
    """
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from family(int(child))


def resident(pid: int) -> int:
    """
    @return: the octets of memory that a process and its descendants hold.  Memory that these
        processes share counts once.
    """
    return sum(
        int(line.split()[1]) * 1024
        for each in family(pid)
        for line in Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
        if line.startswith("Pss:")
    )


def slab() -> int:
    """
    @return: the octets of memory that the kernel holds for its own objects.
    """
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Slab:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no Slab")


def processor(pid: int) -> float:
    """
    @return: the seconds of processor time that a process and its descendants have taken.
    """
    spent = 0.0
    for each in family(pid):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        spent += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return spent


def site(path: Path) -> None:
    users = "".join(f"user{n}:{{PLAIN}}secret\n" for n in range(USERS))
    (path / "users").write_text(users)
    for number in range(USERS):
        for folder in ("tmp", "new", "cur"):
            (path / "mail" / f"user{number}" / folder).mkdir(parents=True)
        for message in range(20):
            name = path / "mail" / f"user{number}" / "new" / f"{message}.M1P1.host"
            name.write_bytes(b"Subject: x\n\n" + b"line\n" * 1000)
    certificate, key = _selfSigned()
    (path / "cert.pem").write_bytes(certificate)
    (path / "key.pem").write_bytes(key)


class Client:
    """
    A connection over TLS.
    """

    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    def __init__(self, port: int, user: str, address: str = "127.0.0.1") -> None:
        plain = socket.create_connection(("127.0.0.1", port), 60, (address, 0))
        self._socket = self.context.wrap_socket(plain)
        self._read()
        self._until(f"XLOG {user} secret")

    def _read(self, end: bytes = b"\r\n") -> bytes:
        read = b""
        while not read.endswith(end):
            more = self._socket.recv(65536)
            assert more, "the service has closed the connection"
            read += more
        return read

    def say(self, text: str, end: bytes = b"\r\n") -> bytes:
        """
        Send a line, and read until the given end.

        @return: the reply.
        """
        self._socket.sendall(text.encode() + b"\r\n")
        return self._read(end)

    def _until(self, text: str) -> None:
        while not (said := self.say(text)).startswith(b"+OK"):
            # Another session of the user is still awake, and holds the mailbox.
            assert said.startswith(b"-ERR [IN-USE]"), said

    def sleep(self) -> None:
        assert self.say("SLEE").startswith(b"+OK")

    def poll(self) -> None:
        self._until("WAKE")
        assert self.say("UIDL", b"\r\n.\r\n").startswith(b"+OK")
        self.sleep()

    def retrieve(self) -> None:
        assert self.say("RETR 1", b"\r\n.\r\n").startswith(b"+OK")

    def quit(self) -> None:
        assert self.say("QUIT").startswith(b"+OK")
        self._socket.close()


def sleepers(number: int, count: int, port: int, pipe: Connection) -> None:
    """
    Be one client process: open sessions, put them to sleep, and poll when the pipe says so.
    """
    address = f"127.0.1.{number + 1}"
    clients = []
    for turn in range(count):
        client = Client(port, f"user{(turn + number * count) % USERS}", address)
        client.sleep()
        clients.append(client)
    while True:
        pipe.send(None)
        seconds = pipe.recv()
        if seconds is None:
            return
        if not seconds:
            for each in clients:
                each.poll()
            continue
        times: list[float] = []
        began = time.monotonic()
        for turn in range(int(seconds / BETWEEN * count)):
            due = began + turn * BETWEEN / count
            time.sleep(max(due - time.monotonic(), 0))
            begun = time.monotonic()
            clients[turn % count].poll()
            times.append(time.monotonic() - begun)
        pipe.send(times)


def tell(name: str, times: list[float]) -> None:
    times = sorted(1000 * each for each in times)
    middle, late = times[len(times) // 2], times[int(len(times) * 0.999)]
    print(
        f"{name}: median {middle:.1f} ms, 99.9 % within {late:.1f} ms, slowest of {len(times)} "
        f"{times[-1]:.1f} ms",
        flush=True,
    )


def visit(port: int, until: float, atLeast: int) -> None:
    """
    Log in, retrieve a message and quit, again and again, and print the times.
    """
    logins, messages = [], []
    while len(logins) < atLeast or time.monotonic() < until:
        begun = time.monotonic()
        client = Client(port, f"user{len(logins) % USERS}")
        logins.append(time.monotonic() - begun)
        begun = time.monotonic()
        client.retrieve()
        messages.append(time.monotonic() - begun)
        client.quit()
        if until:
            time.sleep(0.2)
    tell("login with its handshake", logins)
    tell("RETR", messages)


def run(count: int, port: int, pid: int, seconds: float) -> None:
    before, kernel = resident(pid), slab()
    began = time.monotonic()
    context = get_context("fork")
    pipes: list[Any] = []
    processes = -(-count // EACH)
    for number in range(processes):
        ours, theirs = context.Pipe()
        context.Process(
            target=sleepers, args=(number, count // processes, port, theirs), daemon=True
        ).start()
        pipes.append(ours)
    for each in pipes:
        each.recv()
    print(f"{count} TLS sleepers in {time.monotonic() - began:.0f} s", flush=True)
    after = resident(pid)
    print(f"{(after - before) / count / 1024:.1f} KiB each ({after >> 20} MiB in all)")
    print(f"{(slab() - kernel) / count / 1024:.1f} KiB each of the kernel's, for both ends")
    visit(port, 0, 50)
    spent = processor(pid)
    for each in pipes:
        each.send(0)
    for each in pipes:
        each.recv()
    spent = processor(pid) - spent
    print(f"{spent / count * 1000:.2f} ms of the server's processor for each poll", flush=True)
    if seconds:
        spent, began = processor(pid), time.monotonic()
        for each in pipes:
            each.send(seconds)
        visit(port, began + seconds, 50)
        times = [one for each in pipes for one in each.recv()]
        spent, took = processor(pid) - spent, time.monotonic() - began
        tell("poll", times)
        print(f"{len(times) / took:.0f} polls a second, {100 * spent / took:.0f} % of a core")
        for each in pipes:
            each.recv()
    for each in pipes:
        each.send(None)


def main() -> None:
    count, workers, seconds = [
        int(given) if given else usual
        for given, usual in zip((sys.argv[1:] + [""] * 3)[:3], (10_000, 0, 0), strict=True)
    ]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count -= count % max(-(-count // EACH), 1)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        site(path)
        port = freePort()
        service = subprocess.Popen(
            [
                *(script("twistd"), "-n", "--pidfile=", f"--logfile={path / 'log'}", "pop3svc"),
                *("--endpoint", f"ssl:{port}:interface=127.0.0.1"),
                *("--provider", f"maildir:{path / 'mail'}", "--auth", f"passwd:{path / 'users'}"),
                *("--certificate", str(path / "cert.pem"), "--private-key", str(path / "key.pem")),
                # Each worker has its share of this limit, and some workers get more clients.
                *("--set", f"maxConnections={2 * count + 200}"),
                *(("--workers", str(workers)) if workers else ()),
            ],
            env=environment(directory),
        )
        try:
            while True:
                try:
                    Client(port, "user0").quit()
                    break
                except ConnectionRefusedError:
                    time.sleep(0.1)
            run(count, port, service.pid, seconds)
        finally:
            service.send_signal(signal.SIGTERM)
            print(f"ended with status {service.wait(60)}")
            for line in (path / "log").read_text().splitlines():
                if "octets sent" not in line:
                    print(line)


if __name__ == "__main__":
    main()
