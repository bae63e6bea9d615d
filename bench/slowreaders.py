"""
Measure the memory of a service while clients read a large message slowly.

    python bench/slowreaders.py [CLIENTS [MEGABYTES [maildir|sqlite|postgresql [SECONDS]]]]

Each client reads 64 KiB a second, and checks every octet.  The exit status is 1 if the memory has
grown by more than 16 MiB, for threads and modules, plus 2 MiB for each client.
"""

from __future__ import annotations

import asyncio
import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from pop3svc.interfaces import DeliveryCopy
from pop3svc.providers.sql.store import SQLStore
from pop3svc.testing import Inline
from tests.support.databases import InlinePool
from tests.support.postgresql import PostgreSQL
from tests.support.running import environment, freePort, script
from tests.support.stores import done, makeDatabase

LINE = b"x" * 76 + b"\r\n"
# The octets that a client reads at once, and the seconds between two reads.
PIECE, PAUSE = 65_536, 1.0
# The octets by which the memory may grow once, and for each client.  A database has pieces of 256
# KiB, and a client needs some of them at the same time.
FIXED, EACH = 16 << 20, 2 << 20


def share(pid: int) -> int:
    """
    @return: the octets of memory of a process and its children.  A page that several processes
        share counts for each of them in part.
    """
    octets = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            octets += int(line.split()[1]) * 1024
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        octets += share(int(child))
    return octets


def provider(path: Path, kind: str, megabytes: int, users: list[str], stack: ExitStack) -> str:
    """
    Store one message for all users.

    @return: the service's option C{--provider}.
    """
    message = LINE * (megabytes * 1_000_000 // len(LINE))
    if kind == "maildir":
        first = path / "message"
        first.write_bytes(message)
        for user in users:
            for folder in ("tmp", "new", "cur"):
                (path / "mail" / user / folder).mkdir(parents=True)
            os.link(first, path / "mail" / user / "new" / "1.M1P1.host")
        return f"maildir:{path / 'mail'}"
    if kind == "postgresql":
        dsn = stack.enter_context(PostgreSQL()).dsn
    else:
        dsn = f"sqlite:{path / 'mail.db'}"
    driver = makeDatabase(dsn)
    pool = InlinePool(driver)
    store = SQLStore(driver, pool=pool, executor=Inline())
    copies = [DeliveryCopy(user) for user in users]
    assert done(store.deliver, copies, io.BytesIO(message)) == [None] * len(users)
    pool.drop()
    return f"sql:{dsn}"


async def read(port: int, user: str, seconds: float) -> int:
    """
    @return: the number of octets that a client has read.
    """
    connection = socket.socket()
    # Make the buffer small, because the kernel would otherwise hold some megabytes for each
    # connection.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PIECE)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=connection, limit=PIECE)
    assert (await reader.readline()).startswith(b"+OK")
    for command in (f"XLOG {user} secret", "RETR 1"):
        writer.write(command.encode() + b"\r\n")
        said = await reader.readline()
        assert said.startswith(b"+OK"), said
    octets = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        piece = await reader.readexactly(PIECE)
        place = octets % len(LINE)
        assert piece == (LINE * (PIECE // len(LINE) + 2))[place : place + PIECE], "wrong octets"
        octets += PIECE
        await asyncio.sleep(PAUSE)
    writer.transport.abort()
    return octets


async def run(users: list[str], port: int, pid: int, seconds: float) -> tuple[int, int, int]:
    """
    @return: the octets of memory before the reading, their peak, and the octets that all clients
        have read.
    """
    octets = await read(port, users[0], 0)
    before = peak = share(pid)
    reading = asyncio.gather(*(read(port, user, seconds) for user in users))
    while not reading.done():
        peak = max(peak, share(pid))
        await asyncio.sleep(0.5)
    return before, peak, octets + sum(reading.result())


def main() -> None:
    given = sys.argv[1:] + ["50", "200", "sqlite", "60"][len(sys.argv) - 1 :]
    clients, megabytes, kind, seconds = int(given[0]), int(given[1]), given[2], float(given[3])
    if kind not in ("maildir", "sqlite", "postgresql"):
        sys.exit("the store must be maildir, sqlite or postgresql")
    users = [f"user{number}" for number in range(clients)]
    with ExitStack() as stack:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (path / "users").write_text("".join(f"{user}:{{PLAIN}}secret\n" for user in users))
        option = provider(path, kind, megabytes, users, stack)
        port = freePort()
        service = subprocess.Popen(
            [
                *(script("twistd"), "-n", "--pidfile=", "--logfile=/dev/null", "pop3svc"),
                *("--endpoint", f"tcp:{port}:interface=127.0.0.1"),
                *("--provider", option, "--auth", f"passwd:{path / 'users'}"),
            ],
            env=environment(str(path)),
        )
        try:
            while True:
                try:
                    before, peak, octets = asyncio.run(run(users, port, service.pid, seconds))
                    break
                except ConnectionRefusedError:
                    time.sleep(0.1)
        finally:
            service.send_signal(signal.SIGTERM)
            print(f"ended with status {service.wait(60)}")
    print(f"{kind}: {clients} clients read {octets >> 20} MiB of messages of {megabytes} MB")
    print(f"{before >> 20} MiB before, {peak >> 20} MiB at most")
    print(f"{(peak - before) / clients / 1024:.0f} KiB for each client")
    if peak - before > FIXED + clients * EACH:
        sys.exit("the memory has grown too much")


if __name__ == "__main__":
    main()
