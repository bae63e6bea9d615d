"""
Do refusals tell an unknown user from a wrong password?

    python bench/logintiming.py [--attempts 200]

For each kind of account and each login method, clients of many addresses send wrong logins in
random order: of a user that exists, of users that do not, and from addresses that are banned.  The
times until the refusal are compared.  C{D} is the distance of Kolmogorov and Smirnov between two
samples; above C{limit} they differ with a certainty of 99 %.  Exit status 1 if two samples differ
both by that and by more than a millisecond in their medians, or if two refusals have different
texts.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import hmac
import math
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from base64 import b64decode, b64encode
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from scramp import ScramClient

from pop3svc.accounts.hashes import hashPassword
from pop3svc.accounts.scramkeys import makeVerifier
from tests.support.running import Running, freePort

PASSWORD = "the right password"
# Clients at once.  More would measure their waiting for each other.
AT_ONCE = 10
METHODS = ("SCRAM-SHA-256", "CRAM-MD5", "APOP")
KINDS = {
    "argon2id": ("PASS", "PLAIN"),
    "verifier": ("PASS", "SCRAM-SHA-256"),
    "plain": ("PASS", "SCRAM-SHA-256", "CRAM-MD5", "APOP"),
    "sqlite": ("PASS", "SCRAM-SHA-256"),
}


class Connection:
    """
    A client, from an address of its own.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def line(self) -> bytes:
        """
        @return: the next line.
        """
        return (await self._reader.readline()).strip()

    async def say(self, line: bytes) -> bytes:
        """
        @return: the reply to a line.
        """
        self._writer.write(line + b"\r\n")
        return await self.line()

    def close(self) -> None:
        """
        Close the connection.
        """
        self._writer.close()


async def wrongLogin(port: int, address: str, method: str, name: str) -> tuple[float, bytes]:
    """
    @return: seconds from the last message to the refusal, and its text.
    """
    connection = Connection(
        *await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
    )
    greeting = await connection.line()
    wrong = random.randbytes(8).hex()
    if method == "PASS":
        await connection.say(b"USER " + name.encode())
        last = b"PASS " + wrong.encode()
    elif method == "PLAIN":
        await connection.say(b"AUTH PLAIN")
        last = b64encode(f"\0{name}\0{wrong}".encode())
    elif method == "CRAM-MD5":
        challenge = b64decode((await connection.say(b"AUTH CRAM-MD5"))[2:])
        digest = hmac.new(wrong.encode(), challenge, "md5").hexdigest()
        last = b64encode(f"{name} {digest}".encode())
    elif method == "APOP":
        stamp = greeting[greeting.index(b"<") :]
        last = f"APOP {name} {hashlib.md5(stamp + wrong.encode()).hexdigest()}".encode()
    else:
        client = ScramClient([method], name, wrong)
        await connection.say(b"AUTH " + method.encode())
        reply = await connection.say(b64encode(client.get_client_first().encode()))
        client.set_server_first(b64decode(reply[2:]).decode())
        last = b64encode(client.get_client_final().encode())
    began = time.perf_counter()
    reply = await connection.say(last)
    seconds = time.perf_counter() - began
    connection.close()
    return seconds, reply


def addresses(count: int) -> list[str]:
    """
    @return: addresses of networks of their own.
    """
    return [f"127.{each // 250 + 1}.{each % 250 + 1}.1" for each in range(count)]


Samples = dict[str, list[float]]


async def measure(port: int, method: str, attempts: int) -> tuple[Samples, set[bytes]]:
    """
    @return: times by kind of refusal, and all texts.
    """
    places = addresses(3 * attempts)
    random.shuffle(places)
    banned = places[:attempts]
    gate = asyncio.Semaphore(AT_ONCE)
    samples: Samples = defaultdict(list)
    texts: set[bytes] = set()

    async def ban(address: str) -> None:
        async with gate:
            for number in range(4):
                await wrongLogin(port, address, "PASS", f"somebody{number}")

    async def one(kind: str, address: str, name: str) -> None:
        async with gate:
            seconds, text = await wrongLogin(port, address, method, name)
        samples[kind].append(seconds)
        texts.add(text)

    await asyncio.gather(*map(ban, banned[: max(attempts // 10, 5)]))
    wanted = [("banned", address, "user") for address in banned[: max(attempts // 10, 5)]]
    wanted += [("wrong", each, f"user{n}") for n, each in enumerate(places[attempts:][:attempts])]
    wanted += [
        ("unknown", each, f"none{n}") for n, each in enumerate(places[2 * attempts :][:attempts])
    ]
    random.shuffle(wanted)
    await asyncio.gather(*(one(*each) for each in wanted))
    return samples, texts


def distance(one: list[float], two: list[float]) -> tuple[float, float]:
    """
    @return: the distance of two samples, and the limit.
    """
    values = sorted([*one, *two])

    def part(sample: list[float], value: float) -> float:
        return sum(each <= value for each in sample) / len(sample)

    furthest = max(abs(part(one, each) - part(two, each)) for each in values)
    return furthest, 1.63 * math.sqrt((len(one) + len(two)) / (len(one) * len(two)))


def accounts(kind: str, home: Path, count: int) -> str:
    """
    Write accounts.

    @return: the value of C{--auth}.
    """
    if kind == "argon2id":
        stored = hashPassword(PASSWORD)
    else:
        stored = f"{{PLAIN}}{PASSWORD}" if kind == "plain" else makeVerifier(PASSWORD)
    rows = [(f"user{each}", stored) for each in range(count)]
    if kind == "sqlite":
        with sqlite3.connect(home / "accounts.db") as database:
            database.execute("CREATE TABLE account (name TEXT PRIMARY KEY, password TEXT)")
            database.executemany("INSERT INTO account VALUES (?, ?)", rows)
        query = "SELECT password FROM account WHERE name = :user"
        return f"sql:sqlite:{home}/accounts.db:query={query}"
    users = home / "users"
    users.write_text("".join(f"{name}:{stored}\n" for name, stored in rows))
    users.chmod(0o600)
    return f"passwd:{users}"


def compare(kind: str, method: str, samples: Samples, texts: set[bytes]) -> bool:
    """
    Print the figures.

    @return: whether they tell anything.
    """
    medians = {each: statistics.median(times) * 1000 for each, times in samples.items()}
    furthest, limit = distance(samples["wrong"], samples["unknown"])
    fartherB, limitB = distance(samples["wrong"], samples["banned"])
    print(
        f"{kind:9} {method:14} "
        + ", ".join(f"{each} {medians[each]:.2f} ms" for each in ("wrong", "unknown", "banned"))
        + f"; wrong/unknown D {furthest:.3f} (limit {limit:.3f})"
        + f", wrong/banned D {fartherB:.3f} (limit {limitB:.3f}); {len(texts)} text",
        flush=True,
    )
    isTold = furthest > limit and abs(medians["wrong"] - medians["unknown"]) > 1
    return isTold or len(texts) != 1


def main() -> None:
    """
    Measure all methods.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attempts", type=int, default=200)
    arguments = parser.parse_args()
    isTold = False
    for kind, methods in KINDS.items():
        with tempfile.TemporaryDirectory() as directory:
            home, port = Path(directory), freePort()
            (home / "mail").mkdir()
            auth = accounts(kind, home, arguments.attempts)
            enabled = [part for each in METHODS for part in ("--enable", each)]
            with Running(
                home / "service",
                *("--endpoint", f"tcp:{port}:interface=127.0.0.1"),
                *("--provider", f"maildir:{home}/mail/{{user}}", "--auth", auth),
                *("--ban-exempt", "192.0.2.0/24", "--data", str(home / "data"), *enabled),
            ) as running:
                running.up()
                for method in methods:
                    found = asyncio.run(measure(port, method, arguments.attempts))
                    isTold = compare(kind, method, *found) or isTold
    sys.exit(isTold)


if __name__ == "__main__":
    main()
