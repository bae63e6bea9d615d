"""
Measure how long one session waits while other clients keep a server busy.
"""

from __future__ import annotations

import contextlib
import json
import random
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.mail import GUESSED
from bench.measure import Failed, Span
from bench.servers import Server

__all__ = ["Stalls", "guess", "pipeline", "probed"]

HERE = Path(__file__).parent
# The commands that a pipelining client sends at once, and the number of lines of their replies.
COMMANDS = b"NOOP\r\nSTAT\r\nLIST 1\r\nUIDL 1\r\n" * 25
REPLIES = 100
# The number of clients that guess passwords at the same time.
GUESSERS = 50
# Seconds within which a reply must arrive.
PATIENCE = 120


@dataclass
class Stalls:
    """
    The milliseconds that each NOOP has taken, sorted by size.
    """

    times: list[float]

    @property
    def late(self) -> float:
        """
        The 99.9th percentile.
        """
        return self.times[min(int(len(self.times) * 0.999), len(self.times) - 1)]

    @property
    def worst(self) -> float:
        """
        The longest time.
        """
        return self.times[-1]


def probed(server: Server, seconds: float, disturb: Callable[[], object]) -> tuple[Stalls, Span]:
    """
    Send NOOPs until C{disturb} has returned, but for at least C{seconds} seconds.

    @raise Failed: the session that sends NOOPs was ended.
    """
    with subprocess.Popen(
        [sys.executable, str(HERE / "probe.py"), str(server.plain), "probe", "secret"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as probe:
        try:
            assert probe.stdout is not None
            probe.stdout.readline()
            began, cpu = time.monotonic(), server.group.cpu()
            disturb()
            wall = time.monotonic() - began
            time.sleep(max(seconds - wall, 0))
            wall = time.monotonic() - began
            output, errors = probe.communicate("", PATIENCE)
        finally:
            probe.kill()
    if probe.returncode:
        raise Failed(f"the session with NOOPs: {errors.strip()}")
    times = sorted(json.loads(output))
    span = Span(wall, server.group.cpu() - cpu, 0, 0, 0, 0, 0, 0, memory=server.group.memory())
    return Stalls(times), span


def _connected(port: int, address: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), PATIENCE, (address, 0))


def _line(connection: socket.socket) -> bytes:
    said = b""
    while not said.endswith(b"\r\n"):
        data = connection.recv(4096)
        if not data:
            return said
        said += data
    return said


@contextlib.contextmanager
def _sessions(port: int, users: list[str]) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        found = []
        for user in users:
            each = stack.enter_context(_connected(port))
            _line(each)
            for command in (f"USER {user}", "PASS secret"):
                each.sendall(command.encode() + b"\r\n")
                said = _line(each)
                if not said.startswith(b"+OK"):
                    raise Failed(f"refused user {user}: {said!r}")
            found.append(each)
        yield found


def pipeline(port: int, users: list[str], seconds: float) -> None:
    """
    Log in, and send a hundred short commands at once, again and again.

    @raise Failed: a client was refused, or has got a wrong number of replies.
    """
    with _sessions(port, users) as sessions, selectors.DefaultSelector() as selector:
        left = dict.fromkeys(sessions, REPLIES)
        for each in sessions:
            selector.register(each, selectors.EVENT_READ)
            each.sendall(COMMANDS)
        end = time.monotonic() + seconds
        while left:
            events = selector.select(PATIENCE)
            if not events:
                raise Failed("lost replies to pipelined commands")
            for key, _ in events:
                each: socket.socket = key.fileobj  # type: ignore[assignment]
                data = each.recv(65536)
                if not data or b"-ERR" in data:
                    raise Failed(f"refused pipelined commands: {data[:200]!r}")
                left[each] -= data.count(b"\n")
                if left[each] < 0:
                    raise Failed("wrong bytes: too many replies to pipelined commands")
                if left[each]:
                    continue
                if time.monotonic() < end:
                    left[each] = REPLIES
                    each.sendall(COMMANDS)
                else:
                    selector.unregister(each)
                    del left[each]


def guess(port: int, seconds: float) -> None:
    """
    Guess the password of a user whose password is stored as a hash.  Each connection has a random
    address, because a server may ban an address.

    @raise Failed: a guess was not refused.
    """
    end = time.monotonic() + seconds
    faults: list[str] = []

    def run(seed: int) -> None:
        chance = random.Random(seed)
        while time.monotonic() < end and not faults:
            address = f"127.{chance.randrange(1, 255)}.{chance.randrange(256)}.{seed + 1}"
            with contextlib.suppress(OSError), _connected(port, address) as each:
                _line(each)
                for command in (f"USER {GUESSED}", f"PASS {chance.random()}"):
                    each.sendall(command.encode() + b"\r\n")
                    said = _line(each)
                if not said.startswith(b"-ERR"):
                    faults.append(f"a wrong password was answered by {said!r}")

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(GUESSERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise Failed(faults[0])
