"""
Open connections and drop them at every stage, and check that nothing of them is left in the
service.

    python bench/soak.py [COUNT]

The exit status is 1 if the memory has grown by more than 4 MiB, if the number of descriptors,
threads or timers has grown, or if the log has a traceback.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.sleepers import resident, site
from pop3svc.providers.maildir import MaildirStore
from tests.support.running import environment, freePort, script

AT_ONCE = 50
# The octets by which the memory of the process may grow from the first round to the last.  Some
# growth is allowed, because the allocator does not give back every page.
MEMORY = 4 << 20


class Store(MaildirStore):
    """
    A store that writes the number of the reactor's timers to a file after SIGUSR1.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._told = Path(path).parent / "timers"
        signal.signal(signal.SIGUSR1, self._tell)

    def _tell(self, *_: object) -> None:
        from twisted.internet import reactor

        self._told.write_text(str(len(reactor.getDelayedCalls())))


def timers(pid: int, told: Path) -> int:
    """
    @return: the number of timers of the service.
    """
    told.unlink(missing_ok=True)
    os.kill(pid, signal.SIGUSR1)
    for _ in range(600):
        if told.exists() and told.read_text():
            return int(told.read_text())
        time.sleep(0.05)
    raise AssertionError("the service does not answer")


async def drop(stage: str, plain: int, secure: int, user: str, context: ssl.SSLContext) -> None:
    """
    Open one connection, and cut it at the given stage.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", plain)
    try:
        if stage == "before the greeting":
            return
        await reader.readline()
        if stage == "in the handshake":
            writer.write(b"STLS\r\n")
            await reader.readline()
            writer.write(b"\x16\x03\x01\x02\x00\x01\x00")
            await writer.drain()
            return
        if stage == "in AUTH":
            writer.write(b"AUTH LOGIN\r\n")
            await reader.readline()
            return
        writer.write(f"XLOG {user} secret\r\n".encode())
        if not (await reader.readline()).startswith(b"+OK"):
            return
        writer.write(b"RETR 1\r\n" if stage == "in RETR" else b"DELE 1\r\nSLEE\r\nWAKE\r\nSLEE\r\n")
        await reader.readline()
        if stage == "asleep":
            await reader.readline()
    finally:
        # Close at once, so that octets on their way are lost.
        writer.transport.abort()


async def dropTLS(secure: int, user: str, context: ssl.SSLContext) -> None:
    with contextlib.suppress(OSError):
        reader, writer = await asyncio.open_connection("127.0.0.1", secure, ssl=context)
        await reader.readline()
        writer.write(f"XLOG {user} secret\r\n".encode())
        await reader.readline()
        writer.transport.abort()


STAGES = ("before the greeting", "in the handshake", "in AUTH", "in RETR", "asleep", "over TLS")


async def soak(count: int, plain: int, secure: int) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    choose = random.Random(7)
    left = count

    async def some() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            stage, user = choose.choice(STAGES), f"user{choose.randrange(20)}"
            with contextlib.suppress(ConnectionError):
                if stage == "over TLS":
                    await dropTLS(secure, user, context)
                else:
                    await drop(stage, plain, secure, user, context)

    await asyncio.gather(*(some() for _ in range(AT_ONCE)))


def waitForGreeting(service: subprocess.Popen[bytes], port: int) -> None:
    """
    Wait until the service serves.  Before that, SIGUSR1 would end it.
    """
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 60) as one:
            if one.recv(100).startswith(b"+OK"):
                return
        if service.poll() is not None:
            break
        time.sleep(0.1)
    raise AssertionError("the service does not start")


def settled(pid: int, told: Path) -> tuple[int, int, int, int]:
    """
    @return: the octets of memory, and the numbers of descriptors, threads and timers, when the
        number of descriptors does not change any more.
    """
    before = -1
    for _ in range(60):
        descriptors = len(os.listdir(f"/proc/{pid}/fd"))
        if descriptors == before:
            break
        before = descriptors
        time.sleep(1)
    return resident(pid), before, len(os.listdir(f"/proc/{pid}/task")), timers(pid, told)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        site(path)
        plain, secure = freePort(), freePort()
        service = subprocess.Popen(
            [
                *(script("twistd"), "-n", "--pidfile=", "--logfile=log", "pop3svc"),
                *("--endpoint", f"tcp:{plain}:interface=127.0.0.1"),
                *("--endpoint", f"ssl:{secure}:interface=127.0.0.1"),
                *(
                    "--provider",
                    f"bench.soak.Store:{path / 'mail'}",
                    "--auth",
                    f"passwd:{path / 'users'}",
                ),
                *("--certificate", str(path / "cert.pem"), "--private-key", str(path / "key.pem")),
            ],
            env=environment(directory),
            cwd=directory,
        )
        try:
            waitForGreeting(service, plain)
            rounds = 4
            print("after       memory  descriptors  threads   timers", flush=True)
            seen = []
            for turn in range(rounds + 1):
                seen.append(settled(service.pid, path / "timers"))
                memory, descriptors, threads, pending = seen[-1]
                done = turn * count // rounds
                print(
                    f"{done:7} {memory >> 10:7} KiB {descriptors:9} {threads:9} {pending:8}",
                    flush=True,
                )
                if turn < rounds:
                    asyncio.run(soak(count // rounds, plain, secure))
        finally:
            service.send_signal(signal.SIGTERM)
            print(f"ended with status {service.wait(60)}")
        text = (path / "log").read_text()
        tracebacks = text.count("Traceback")
        print(f"{tracebacks} tracebacks in the log")
        first, last = seen[1], seen[-1]
        grown = [
            name
            for name, before, after, more in zip(
                ("memory", "descriptors", "threads", "timers"),
                first,
                last,
                (MEMORY, 0, 0, 0),
                strict=True,
            )
            if after > before + more
        ]
        if grown or tracebacks:
            sys.exit(f"grown: {', '.join(grown)}" if grown else "errors in the log")


if __name__ == "__main__":
    main()
