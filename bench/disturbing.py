"""
Measure whether clients of the web page, of the metrics and of the admin socket disturb POP3
sessions.

    python bench/disturbing.py [--clients 1000] [--seconds 20] [--limit 50]

A POP3 session sends NOOP every 10 milliseconds.  Meanwhile clients of the web port and of the admin
socket send requests.  These clients send correct requests, damaged requests and random octets.
Some clients send their octets one by one, and some clients do not read the answer.  The table shows
how long a reply to NOOP takes without and with these clients.  The clients themselves also take
processor time.  The row C{of another service} shows how much this alone delays the replies, because
in this row the same clients ask another service.

The exit status is 1 if the 99.9th percentile with the clients of this service is above C{--limit}
milliseconds, if a log has a traceback, or if the session fails.  The exit status is also 1 if the
clients have banned an address or ended a session.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.support.running import Connection, Running, environment, freePort, script

PATHS = ("/", "/metrics", "/healthz", "/readyz", "/playground", "/events", "/kick", "/drain", "/x")
OPERATIONS = ("who", "status", "bans", "kick", "trace", "drain", "reload", "nothing")
# Seconds between two NOOPs.
PACE = 0.01
# The number of processes with clients.  Each process has an equal part of the connections.
PROCESSES = 2


def _request(chance: random.Random) -> bytes:
    """
    @return: a request for the web port that must have no effect on the service.
    """
    method = chance.choice(("GET", "GET", "GET", "HEAD", "POST", "PUT", "OPTIONS"))
    head = f"{method} {chance.choice(PATHS)} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    body = b""
    if method in ("POST", "PUT"):
        body = b"token=guess&session=1&target=alice" * chance.choice((1, 1, 2000))
        head += "Content-Type: application/x-www-form-urlencoded\r\n"
        head += f"Content-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


def _order(chance: random.Random) -> bytes:
    """
    @return: a line for the admin socket that must have no effect on the service.
    """
    # Orders that would change something are cut short below, so that they have no effect.
    name = chance.choice(OPERATIONS)
    arguments = {"target": "nobody"} if name in ("kick", "trace") else {}
    line = json.dumps({"do": name, "arguments": arguments}).encode() + b"\n"
    return line if name in ("who", "status") else line[: chance.randrange(1, len(line))]


def _damaged(data: bytes, chance: random.Random) -> bytes:
    kind = chance.randrange(4)
    if kind == 0:
        return chance.randbytes(chance.randrange(1, 3000))
    if kind == 1:
        at = chance.randrange(len(data))
        return data[:at] + chance.choice((chance.randbytes(3), b"\r", b"\n", b"\0")) + data[at:]
    return data[: chance.randrange(1, len(data) + 1)] if kind == 2 else data


async def _client(target: int | str, chance: random.Random, end: float) -> None:
    """
    Connect again and again until the time C{end}.
    """
    isWeb = isinstance(target, int)
    while time.monotonic() < end:
        with suppress(OSError, asyncio.TimeoutError):
            async with asyncio.timeout(5):
                if isWeb:
                    reader, writer = await asyncio.open_connection("127.0.0.1", target)
                else:
                    reader, writer = await asyncio.open_unix_connection(target)
                try:
                    data = _request(chance) if isWeb else _order(chance)
                    data = _damaged(data, chance)
                    if chance.randrange(8) == 0:
                        for octet in data[:50]:
                            writer.write(bytes([octet]))
                            await asyncio.sleep(0.02)
                    else:
                        writer.write(data)
                    if chance.randrange(4):
                        await reader.read(65536)
                    else:
                        # Do not read the answer.
                        await asyncio.sleep(chance.random())
                finally:
                    writer.transport.abort()
        await asyncio.sleep(chance.random() / 2)


def _clients(web: int, admin: str, count: int, seconds: float, seed: int) -> None:
    async def run() -> None:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        end = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                chance = random.Random(seed * 100_003 + number)
                group.create_task(_client(admin if number % 4 == 0 else web, chance, end))

    asyncio.run(run())


class Service:
    """
    A service with a web port, an admin socket and one session.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir()
        self.port, self.web = freePort(), freePort()
        self.running = Running(
            home,
            *("--endpoint", f"tcp:{self.port}:interface=127.0.0.1", "--data", str(home)),
            *("--web", f"tcp:{self.web}:interface=127.0.0.1", "--auth", "memory:alice:secret"),
            *("--provider", "memory:"),
        )
        self.running.up()
        self.session = Connection(self.port)
        self.session.line()
        self.session.logIn(b"alice", b"secret")
        self.session.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def admin(self) -> str:
        """
        The path of the admin socket.
        """
        return str(self.home / "admin.sock")

    def measure(self, seconds: float) -> list[float]:
        """
        @return: the milliseconds until each reply to NOOP, the least first.
        """
        times, end = [], time.monotonic() + seconds
        while (began := time.monotonic()) < end:
            assert self.session.say(b"NOOP").startswith(b"+OK")
            took = time.monotonic() - began
            times.append(took * 1000)
            time.sleep(max(PACE - took, 0))
        return sorted(times)

    def facts(self) -> tuple[object, ...]:
        """
        @return: the facts that no client may change.
        """

        def ask(*words: str) -> object:
            command = [script("pop3svc"), *words, "--data", str(self.home), "--json"]
            done = subprocess.run(
                command, capture_output=True, text=True, env=environment(self.home), check=True
            )
            return json.loads(done.stdout)

        who = ask("who")
        sessions = who.get("sessions", who) if isinstance(who, dict) else who
        assert isinstance(sessions, list)
        return [each["user"] for each in sessions if each.get("user")], ask("ban", "list")

    def close(self) -> bool:
        """
        @return: whether the service has ended in order, without a traceback in its log.
        """
        assert self.session.say(b"QUIT").startswith(b"+OK")
        isDone = self.running.end(signal.SIGTERM) == 0
        bad = [each for each in self.running.lines if "Traceback" in each]
        print("\n".join(bad[:3]), end="")
        return isDone and not bad


def _row(name: str, times: list[float]) -> float:
    late = times[min(int(len(times) * 0.999), len(times) - 1)]
    median = times[len(times) // 2]
    print(f"{name:24} {len(times):6} {median:8.2f} {late:8.2f} {times[-1]:8.2f}", flush=True)
    return late


def _disturbed(service: Service, target: Service, clients: int, seconds: float) -> list[float]:
    processes = [
        multiprocessing.Process(
            target=_clients,
            args=(target.web, target.admin, clients // PROCESSES, seconds, seed),
        )
        for seed in range(PROCESSES)
    ]
    for each in processes:
        each.start()
    try:
        return service.measure(seconds)
    finally:
        for each in processes:
            each.join(seconds + 30)
            each.kill()


def main() -> None:
    """
    Measure, and print the table.
    """
    parser = argparse.ArgumentParser(description="Disturb a session by other clients.")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--limit", type=float, default=50, help="milliseconds; default 50")
    arguments = parser.parse_args()
    print(f"{arguments.clients} clients, load {os.getloadavg()[0]:.1f}; milliseconds")
    print(f"{'clients':24} {'NOOPs':>6} {'median':>8} {'99.9 %':>8} {'most':>8}")
    with tempfile.TemporaryDirectory() as directory:
        service = Service(Path(directory) / "one")
        other = Service(Path(directory) / "other")
        before = service.facts()
        _row("none", service.measure(arguments.seconds))
        _row("of another service", _disturbed(service, other, arguments.clients, arguments.seconds))
        late = _row(
            "of this service", _disturbed(service, service, arguments.clients, arguments.seconds)
        )
        isUnchanged = service.facts() == before
        isRight = service.close() and other.close()
    print("nothing was changed" if isUnchanged else "something was changed")
    sys.exit(not (isUnchanged and isRight) or late > arguments.limit)


if __name__ == "__main__":
    main()
