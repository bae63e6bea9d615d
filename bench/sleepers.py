"""
Many sleepers over TLS in one process: memory for each, what their polls cost,
and how quick a login, a RETR and a WAKE are among them.

    python bench/sleepers.py [COUNT]
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from pop3svc.service.datadirectory import _selfSigned
from tests.support.running import environment, freePort, script

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def resident(pid: int) -> int:
    """
    @return: octets of memory that a process holds.
    """
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def slab() -> int:
    """
    @return: octets that the kernel holds for objects of its own.
    """
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Slab:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no Slab")


def processor(pid: int) -> float:
    """
    @return: seconds of processor time that a process has taken.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def poll(sleepers: list[Streams]) -> None:
    """
    Each of these wakes up, looks, and falls asleep again.
    """
    for streams in sleepers:
        while not (said := await say(streams, b"WAKE")).startswith(b"+OK"):
            # Another of its user's sessions is about to fall asleep.
            assert said.startswith(b"-ERR [IN-USE]"), said
        assert (await say(streams, b"UIDL")).startswith(b"+OK")
        while await streams[0].readline() != b".\r\n":
            pass
        assert (await say(streams, b"SLEE")).startswith(b"+OK")


def site(path: Path) -> None:
    users = "".join(f"user{n}:{{PLAIN}}secret\n" for n in range(20))
    (path / "users").write_text(users)
    for number in range(20):
        for folder in ("tmp", "new", "cur"):
            (path / "mail" / f"user{number}" / folder).mkdir(parents=True)
        for message in range(20):
            name = path / "mail" / f"user{number}" / "new" / f"{message}.M1P1.host"
            name.write_bytes(b"Subject: x\n\n" + b"line\n" * 1000)
    certificate, key = _selfSigned()
    (path / "cert.pem").write_bytes(certificate)
    (path / "key.pem").write_bytes(key)


async def say(streams: Streams, text: bytes) -> bytes:
    reader, writer = streams
    writer.write(text + b"\r\n")
    return await reader.readline()


async def logIn(port: int, user: str, context: ssl.SSLContext) -> Streams:
    streams = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    assert (await streams[0].readline()).startswith(b"+OK")
    while not (said := await say(streams, f"XLOG {user} secret".encode())).startswith(b"+OK"):
        # Another of its sessions is about to fall asleep.
        assert said.startswith(b"-ERR [IN-USE]"), said
    return streams


async def run(count: int, port: int, pid: int) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    before, kernel = resident(pid), slab()
    sleepers: list[Streams] = []
    began = time.monotonic()

    async def fall(user: str, some: int) -> None:
        for _ in range(some):
            streams = await logIn(port, user, context)
            assert (await say(streams, b"SLEE")).startswith(b"+OK")
            sleepers.append(streams)

    await asyncio.gather(*(fall(f"user{n}", count // 20) for n in range(20)))
    took = time.monotonic() - began
    after = resident(pid)
    print(f"{len(sleepers)} TLS sleepers in {took:.0f} s")
    print(f"{(after - before) / len(sleepers) / 1024:.1f} KiB each ({after >> 20} MiB in all)")
    kernel = slab() - kernel
    print(f"{kernel / len(sleepers) / 1024:.1f} KiB each of the kernel's, for both ends")
    spent = processor(pid)
    await asyncio.gather(*(poll(sleepers[n::20]) for n in range(20)))
    spent = processor(pid) - spent
    print(f"{spent / len(sleepers) * 1000:.2f} ms of the server's processor for each poll")
    for name in ("login", "RETR", "WAKE"):
        times = []
        for turn in range(50):
            begun = time.monotonic()
            if name == "WAKE":
                streams = sleepers[turn * (len(sleepers) // 50)]
                assert (await say(streams, b"WAKE")).startswith(b"+OK [ACTIVITY/NONE]")
            else:
                streams = await logIn(port, "user3", context)
                if name == "RETR":
                    begun = time.monotonic()
                    await say(streams, b"RETR 1")
                    while await streams[0].readline() != b".\r\n":
                        pass
            times.append((time.monotonic() - begun) * 1000)
            await say(streams, b"SLEE" if name == "WAKE" else b"QUIT")
            if name != "WAKE":
                streams[1].close()
        times.sort()
        print(f"{name}: median {statistics.median(times):.1f} ms, slowest of 50 {times[-1]:.1f} ms")


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = min(count, hard - 200) // 20 * 20
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        site(path)
        port = freePort()
        service = subprocess.Popen(
            [
                *(script("twistd"), "-n", "--pidfile=", "--logfile=/dev/null", "pop3svc"),
                *("--endpoint", f"ssl:{port}:interface=127.0.0.1"),
                *("--provider", f"maildir:{path / 'mail'}", "--auth", f"passwd:{path / 'users'}"),
                *("--certificate", str(path / "cert.pem"), "--private-key", str(path / "key.pem")),
                *("--set", f"maxConnections={count + 200}"),
            ],
            env=environment(directory),
        )
        try:
            while True:
                try:
                    asyncio.run(run(count, port, service.pid))
                    break
                except ConnectionRefusedError:
                    time.sleep(0.1)
        finally:
            service.send_signal(signal.SIGTERM)
            print(f"ended with status {service.wait(60)}")


if __name__ == "__main__":
    main()
