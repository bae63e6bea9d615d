"""
Measure whether the times of refusals tell who has an account.

    python bench/logintiming.py [--attempts 200] [--sources NAME,...] [--methods NAME,...]

For each source of accounts and each login method, clients are refused in blocks of four attempts in
random order.  One attempt has a wrong password for a user who exists, and one has the name of a
user who does not exist.  The two other attempts do the same from banned addresses.  Several
attempts are under way at the same time, because the service waits for a second before it refuses a
login.  The load of the machine is nearly the same during a block, so the times of a block are
compared with each other.  C{effect} is the Hodges-Lehmann estimate of their difference, and C{p} is
the result of Wilcoxon's signed-rank test.

A method tells who has an account if C{p} is below 0.01, divided by the number of comparisons, and
the effect is at least C{--limit} microseconds.  The exit status is 1 if a method tells who has an
account, or if two refusals of one method have different texts.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import hmac
import json
import math
import os
import random
import sqlite3
import ssl
import statistics
import sys
import tempfile
import threading
import time
from base64 import b64decode, b64encode
from collections import defaultdict
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count, cycle
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from scramp import ScramClient

from pop3svc.accounts.hashes import hashPassword
from pop3svc.accounts.scramkeys import makeVerifier
from pop3svc.testing.certificates import Authority
from tests.support.pam import System
from tests.support.postgresql import PostgreSQL
from tests.support.running import Running, freePort, script
from tests.support.slapd import BASE, READER, Slapd
from tests.support.tokens import AUDIENCE, ISSUER, Issuer

PASSWORD = "the right password"
KINDS = ("wrong", "unknown", "banned", "banned unknown")
# The pairs of kinds whose times must not differ.
PAIRS = (("wrong", "unknown"), ("banned", "banned unknown"))
# The greatest allowed probability that any of the comparisons finds a difference that does not
# exist.
ALPHA = 0.01
# The number of blocks at the beginning that are not counted, because in them the service loads its
# modules and learns which hashes are usual.
WARMING = 5
# The number of wrong guesses after which an address is banned, and the seconds between two attempts
# from one address.  With fewer seconds, the service would delay the second refusal by more than a
# second.
GUESSES, REST = 3, 6
# Seconds within which a reply must arrive.
PATIENCE = 60
# The seconds between two attempts, and the most attempts under way.  The second pair is for
# attempts for which the service computes a slow hash.  With more attempts, a refusal would have to
# wait for the hashes of other attempts, and would take more than a second.
PACE, SLOW_PACE = (0.02, 60), (0.12, 6)


# --- the methods ----------------------------------------------------------------------


class Client:
    """
    A connection for one attempt.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer
        self.greeting = b""

    async def line(self) -> bytes:
        """
        @return: the next line from the service.
        """
        async with asyncio.timeout(PATIENCE):
            return (await self._reader.readuntil(b"\n")).rstrip()

    def endPoint(self) -> bytes:
        """
        @return: the octets of C{tls-server-end-point} (RFC 5929 section 4).
        """
        certificate = self.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return hashlib.sha256(certificate).digest()


# A generator that yields the lines of the client.  The caller sends the replies into it.
Exchange = Generator[bytes, bytes, None]
# The seconds between two attempts, and the most attempts under way.
Pace = tuple[float, int]
Method = Callable[[Client, "Site", str, str], Exchange]


def _pass(client: Client, site: Site, name: str, wrong: str) -> Exchange:
    yield b"USER " + name.encode()
    yield b"PASS " + wrong.encode()


def _plain(client: Client, site: Site, name: str, wrong: str) -> Exchange:
    yield b"AUTH PLAIN"
    yield b64encode(f"\0{name}\0{wrong}".encode())


def _login(client: Client, site: Site, name: str, wrong: str) -> Exchange:
    yield b"AUTH LOGIN"
    yield b64encode(name.encode())
    yield b64encode(wrong.encode())


def _cramMD5(client: Client, site: Site, name: str, wrong: str) -> Exchange:
    challenge = b64decode((yield b"AUTH CRAM-MD5")[2:])
    yield b64encode(f"{name} {hmac.new(wrong.encode(), challenge, 'md5').hexdigest()}".encode())


def _apop(client: Client, site: Site, name: str, wrong: str) -> Exchange:
    stamp = client.greeting[client.greeting.index(b"<") :]
    yield f"APOP {name} {hashlib.md5(stamp + wrong.encode()).hexdigest()}".encode()


def _scram(mechanism: str) -> Method:
    def exchange(client: Client, site: Site, name: str, wrong: str) -> Exchange:
        isBound = mechanism.endswith("-PLUS")
        binding = ("tls-server-end-point", client.endPoint()) if isBound else None
        party = ScramClient([mechanism], name, wrong, channel_binding=binding)
        yield b"AUTH " + mechanism.encode()
        reply = yield b64encode(party.get_client_first().encode())
        party.set_server_first(b64decode(reply[2:]).decode())
        yield b64encode(party.get_client_final().encode())

    return exchange


def _bearer(mechanism: str) -> Method:
    def exchange(client: Client, site: Site, name: str, wrong: str) -> Exchange:
        # The key of this token is unknown to the service.
        token = site.stranger.token(email=name)
        who = f"n,a={name}," if mechanism == "OAUTHBEARER" else f"user={name}"
        yield f"AUTH {mechanism}".encode()
        yield b64encode(f"{who}\1auth=Bearer {token}\1\1".encode())
        yield b"AQ=="

    return exchange


def _external(client: Client, site: Site, name: str, wrong: str) -> Exchange:
    # The login is refused, because the certificate does not name this user.
    yield b"AUTH EXTERNAL"
    yield b64encode(name.encode())


METHODS: dict[str, Method] = {
    "PASS": _pass,
    "PLAIN": _plain,
    "LOGIN": _login,
    "SCRAM-SHA-256": _scram("SCRAM-SHA-256"),
    "SCRAM-SHA-256-PLUS": _scram("SCRAM-SHA-256-PLUS"),
    "SCRAM-SHA-1": _scram("SCRAM-SHA-1"),
    "CRAM-MD5": _cramMD5,
    "APOP": _apop,
    "OAUTHBEARER": _bearer("OAUTHBEARER"),
    "XOAUTH2": _bearer("XOAUTH2"),
    "EXTERNAL": _external,
}
CLEAR = ("PASS", "PLAIN", "LOGIN")
SECRETS = (
    *CLEAR,
    *("SCRAM-SHA-256", "SCRAM-SHA-256-PLUS", "SCRAM-SHA-1", "CRAM-MD5", "APOP", "EXTERNAL"),
)
ENABLED = ("SCRAM-SHA-256", "SCRAM-SHA-256-PLUS", "SCRAM-SHA-1", "CRAM-MD5", "APOP")
SECURE = ("SCRAM-SHA-256-PLUS", "EXTERNAL")


# --- the sources ----------------------------------------------------------------------

QUERY = "SELECT password FROM account WHERE name = :user"


def _stored(kind: str) -> str:
    if kind == "argon2id":
        return hashPassword(PASSWORD)
    return makeVerifier(PASSWORD) if kind == "verifier" else f"{{PLAIN}}{PASSWORD}"


@contextmanager
def _passwd(site: Site, kind: str, names: list[str]) -> Iterator[str]:
    stored = _stored(kind)
    users = site.home / "users"
    users.write_text("".join(f"{name}:{stored}\n" for name in names))
    users.chmod(0o600)
    yield f"passwd:{users}"


@contextmanager
def _sqlite(site: Site, kind: str, names: list[str]) -> Iterator[str]:
    stored = _stored(kind)
    path = site.home / "accounts.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE account (name TEXT PRIMARY KEY, password TEXT)")
        database.executemany(
            "INSERT INTO account VALUES (?, ?)", [(each, stored) for each in names]
        )
    yield f"sql:sqlite:{path}:query={QUERY}"


@contextmanager
def _postgresql(site: Site, kind: str, names: list[str]) -> Iterator[str]:
    with PostgreSQL() as server:
        server.execute("CREATE TABLE account (name text PRIMARY KEY, password text)")
        server.execute(
            "INSERT INTO account SELECT name, %s FROM unnest(%s::text[]) AS name",
            [_stored(kind), names],
        )
        server.execute("ANALYZE account")
        yield f"sql:{server.dsn}:query={QUERY}"


@contextmanager
def _http(site: Site, kind: str, names: list[str]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Send each answer in one packet.
        wbufsize = -1

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            isRight = asked["password"] == PASSWORD and asked["name"] in names
            body = json.dumps({"user": asked["name"]} if isRight else {}).encode()
            self.send_response(200 if isRight else 401)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http:http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def _oauth(site: Site, kind: str, names: list[str]) -> Iterator[str]:
    keys = site.home / "keys"
    keys.write_bytes(Issuer().published())
    yield f"oauth:jwks={keys}:issuer={ISSUER}:audience={AUDIENCE}"


@contextmanager
def _ldap(site: Site, kind: str, names: list[str]) -> Iterator[str]:
    with Slapd() as server:
        for name in names:
            server.addUser(name, password=PASSWORD)
        reader = f"bind={READER}:password-file={server.passwordFile}"
        yield f"ldap:{server.url}:base={BASE}:{reader}"


@contextmanager
def _pam(site: Site, kind: str, names: list[str]) -> Iterator[str]:
    path = site.home / "system"
    path.mkdir()
    system = System(path)
    for number, name in enumerate(names, 5000):
        system.user(name, number, PASSWORD)
    site.command = system.command
    yield "pam:pop3svc"


@dataclass(frozen=True)
class Source:
    """
    A source of accounts.

    @ivar open: makes the accounts, and yields the value of C{--auth}.
    @ivar kind: the form in which passwords are stored.
    @ivar methods: the login methods to measure with this source.
    """

    open: Any
    kind: str
    methods: tuple[str, ...]

    def pace(self, method: str) -> Pace:
        """
        @return: the pace of the attempts for a method.
        """
        isSlow = self.kind == "argon2id" or (self.kind == "verifier" and method in CLEAR)
        return SLOW_PACE if isSlow else PACE


SOURCES = {
    "passwd argon2id": Source(_passwd, "argon2id", CLEAR),
    "passwd verifier": Source(_passwd, "verifier", ("PASS", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS")),
    "passwd plain": Source(_passwd, "plain", SECRETS),
    "sqlite argon2id": Source(_sqlite, "argon2id", ("PASS",)),
    "sqlite verifier": Source(_sqlite, "verifier", ("PASS", "SCRAM-SHA-256")),
    "sqlite plain": Source(_sqlite, "plain", SECRETS),
    "postgresql argon2id": Source(_postgresql, "argon2id", ("PASS",)),
    "postgresql verifier": Source(_postgresql, "verifier", ("PASS", "SCRAM-SHA-256")),
    "postgresql plain": Source(_postgresql, "plain", SECRETS),
    "http": Source(_http, "", CLEAR),
    "ldap": Source(_ldap, "", CLEAR),
    "pam": Source(_pam, "", CLEAR),
    "oauth": Source(_oauth, "", ("OAUTHBEARER", "XOAUTH2")),
}


# --- measuring ------------------------------------------------------------------------


@dataclass
class Samples:
    """
    The times and the texts of the refusals of one method.

    @ivar times: for each message of the client and each kind, the seconds until the reply, by
        block.
    @ivar texts: the different texts of refusals.
    """

    times: dict[int, dict[str, dict[int, float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(dict))
    )
    texts: set[bytes] = field(default_factory=set)


class Site:
    """
    A running service.

    @ivar command: a function that changes the command of the service.  A source of accounts may set
        it.
    """

    def __init__(self, home: Path, source: Source, users: int, stack: ExitStack) -> None:
        self.home = home
        self.port, self.securePort = freePort(), freePort()
        self.stranger = Issuer()
        authority = Authority()
        authority.write(home / "ca.pem")
        authority.issue(home / "served.pem", ["localhost"])
        authority.issue(home / "client.pem", ["somebody@example.org"], isForClients=True)
        self.context = ssl.create_default_context(cafile=str(home / "ca.pem"))
        self.context.load_cert_chain(home / "client.pem")
        self._existing = count()
        self._missing = count()
        self._places = count()
        self._banned: Iterator[str] = iter(())
        names = [self._known(each) for each in range(users)]
        for name in names:
            for folder in ("cur", "new", "tmp"):
                (home / "mail" / name / folder).mkdir(parents=True)
        self.command: Callable[[list[str]], list[str]] = list
        auth = stack.enter_context(source.open(self, source.kind, names))
        self.running = stack.enter_context(self._running(auth))
        self.running.up()

    def _running(self, auth: str) -> Running:
        home = self.home
        return Running(
            home / "service",
            command=self.command(
                [
                    script("twistd"),
                    "-n",
                    "--pidfile=",
                    "pop3svc",
                    *("--endpoint", f"tcp:{self.port}:interface=127.0.0.1"),
                    *("--endpoint", f"ssl:{self.securePort}:interface=127.0.0.1"),
                    *(
                        "--certificate",
                        str(home / "served.pem"),
                        "--client-ca",
                        str(home / "ca.pem"),
                    ),
                    *("--provider", f"maildir:{home}/mail/{{user}}", "--auth", auth),
                    *("--ban-exempt", "192.0.2.0/24", "--data", str(home / "data")),
                    *(part for each in ENABLED for part in ("--enable", each)),
                ]
            ),
        )

    @staticmethod
    def _known(number: int) -> str:
        return f"user{number:06}@example.org"

    def nextName(self, exists: bool) -> str:
        """
        @return: a name that has not been used yet.  All names have the same length.
        """
        if exists:
            return self._known(next(self._existing))
        return f"none{next(self._missing):06}@example.org"

    def nextAddress(self) -> str:
        """
        @return: an address of a network that has not been used yet.
        """
        each = next(self._places)
        return f"127.{each // 250 + 1}.{each % 250 + 1}.1"

    async def attempt(self, method: str, address: str, name: str) -> tuple[list[float], bytes]:
        """
        @return: the seconds until each reply, and the last reply.
        """
        isSecure = method in SECURE
        reader, writer = await asyncio.open_connection(
            "127.0.0.1",
            self.securePort if isSecure else self.port,
            local_addr=(address, 0),
            ssl=self.context if isSecure else None,
            server_hostname="localhost" if isSecure else None,
        )
        client = Client(reader, writer)
        try:
            client.greeting = await client.line()
            exchange = METHODS[method](client, self, name, random.randbytes(8).hex())
            line: bytes | None = next(exchange)
            times, reply = [], b""
            while line is not None:
                began = time.perf_counter()
                writer.write(line + b"\r\n")
                reply = await client.line()
                times.append(time.perf_counter() - began)
                # Compute the next line in a thread, because the keys of SCRAM take long, and the
                # other attempts must not wait for them.
                line = await asyncio.to_thread(_next, exchange, reply)
            return times, reply
        finally:
            writer.close()

    async def _paced(self, attempts: Iterable[Coroutine[Any, Any, Any]], pace: Pace) -> None:
        interval, most = pace
        gate = asyncio.Semaphore(most)

        async def one(attempt: Coroutine[Any, Any, Any]) -> None:
            try:
                await attempt
            finally:
                gate.release()

        async with asyncio.TaskGroup() as group:
            for attempt in attempts:
                await gate.acquire()
                group.create_task(one(attempt))
                await asyncio.sleep(interval)

    async def ban(self, method: str, attempts: int, pace: Pace) -> None:
        """
        Get as many addresses banned as C{attempts} blocks of a method need, if each address rests
        for L{REST} seconds between two attempts.
        """
        size = min(math.ceil(REST / (2 * PACE[0])), 2 * (WARMING + attempts))
        addresses = [self.nextAddress() for _ in range(size)]
        for _ in range(GUESSES):
            await self._paced(
                (self.attempt(method, each, self.nextName(False)) for each in addresses), pace
            )
        await asyncio.sleep(REST)
        self._banned = cycle(addresses)

    async def measure(self, method: str, attempts: int, pace: Pace) -> Samples:
        """
        Make C{attempts} blocks of attempts that are refused.
        """
        samples = Samples()

        def each() -> Iterator[Coroutine[Any, Any, None]]:
            for block in range(-WARMING, attempts):
                for kind in random.sample(KINDS, len(KINDS)):
                    address = next(self._banned) if "banned" in kind else self.nextAddress()
                    name = self.nextName("unknown" not in kind)
                    yield self._sample(samples, block, kind, method, address, name)

        await self._paced(each(), pace)
        return samples

    async def _sample(
        self, samples: Samples, block: int, kind: str, method: str, address: str, name: str
    ) -> None:
        times, text = await self.attempt(method, address, name)
        if text.startswith(b"-ERR [SYS/TEMP]"):
            # The machine is too busy, so leave this block out.
            return
        samples.texts.add(text)
        if block < 0:
            return
        # For most methods only the last reply counts.  For SCRAM and tokens all replies count
        # except the first, because the first message does not contain the name.  For tokens the
        # last reply does not count either, because the last message only answers the challenge that
        # refuses the token.
        isBearer = method in ("OAUTHBEARER", "XOAUTH2")
        isInSteps = isBearer or method.startswith("SCRAM")
        steps = range(1, len(times) - isBearer) if isInSteps else [len(times) - 1]
        for step in steps:
            samples.times[step][kind][block] = times[step]


def _next(exchange: Exchange, reply: bytes) -> bytes | None:
    try:
        return exchange.send(reply)
    except StopIteration:
        return None


# --- statistics -----------------------------------------------------------------------


def effect(one: list[float], two: list[float]) -> float:
    """
    @return: the Hodges-Lehmann estimate of the difference between two lists of times.
    """
    differences = sorted(a - b for a, b in zip(one, two, strict=True))
    return statistics.median(
        (a + b) / 2 for at, a in enumerate(differences) for b in differences[at:]
    )


def probability(one: list[float], two: list[float]) -> float:
    """
    @return: the probability of such a large difference if both kinds of attempts take the same
        time.  The probability comes from Wilcoxon's signed-rank test, two-sided, with the normal
        distribution as an approximation.
    """
    differences = [a - b for a, b in zip(one, two, strict=True) if a != b]
    size = len(differences)
    if not size:
        return 1.0
    ordered = sorted(differences, key=abs)
    positive = sum(rank for rank, each in enumerate(ordered, 1) if each > 0)
    mean = size * (size + 1) / 4
    deviation = (size * (size + 1) * (2 * size + 1) / 24) ** 0.5
    distance = max(abs(positive - mean) - 0.5, 0) / deviation
    return 2 * (1 - statistics.NormalDist().cdf(distance))


@dataclass(frozen=True)
class Row:
    """
    The comparisons between the kinds of attempts, for one step of a method.
    """

    source: str
    method: str
    medians: dict[str, float]
    effects: list[tuple[float, float]]

    def isTold(self, comparisons: int, limit: float) -> bool:
        """
        @param comparisons: the number of all comparisons.
        @param limit: the least effect that counts, in seconds.
        @return: whether the times tell who has an account.
        """
        return any(abs(effect) >= limit and p < ALPHA / comparisons for effect, p in self.effects)

    def __str__(self) -> str:
        cells = [f"{self.medians[each] * 1e6:9.0f}" for each in KINDS[:3]]
        cells += [f"{effect * 1e6:7.0f} {p:7.4f}" for effect, p in self.effects]
        return f"{self.source:20} {self.method:20} {' '.join(cells)}"


def rowsOf(source: str, method: str, samples: Samples) -> list[Row]:
    """
    @return: a row for each step of a method.
    """
    found = []
    for step, byBlock in samples.times.items():
        name = f"{method}, {'first' if step == 1 else 'last'}" if len(samples.times) > 1 else method
        blocks = sorted(set.intersection(*(set(byBlock[kind]) for kind in KINDS)))
        times = {kind: [byBlock[kind][each] for each in blocks] for kind in KINDS}
        effects = [
            (effect(times[one], times[two]), probability(times[one], times[two]))
            for one, two in PAIRS
        ]
        medians = {kind: statistics.median(times[kind]) for kind in KINDS}
        found.append(Row(source, name, medians, effects))
    return found


def run(name: str, methods: list[str], attempts: int) -> tuple[list[Row], bool]:
    """
    Measure a source of accounts, and print its rows.

    @return: the rows, and whether all refusals of each method have the same text.
    """
    source = SOURCES[name]
    used = [each for each in source.methods if each in methods]
    rows: list[Row] = []
    isSame = True
    if not used:
        return rows, isSame
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        site = Site(Path(directory), source, 2 * (attempts + WARMING) * len(used), stack)
        asyncio.run(site.ban(source.methods[0], attempts, source.pace(source.methods[0])))
        for method in used:
            samples = asyncio.run(site.measure(method, attempts, source.pace(method)))
            for row in rowsOf(name, method, samples):
                print(row, flush=True)
                rows.append(row)
            if len(samples.texts) != 1:
                print(f"{method}: different texts: {samples.texts}")
                isSame = False
    return rows, isSame


def main() -> None:
    """
    Measure, and print the table.
    """
    parser = argparse.ArgumentParser(description="Compare the times of refusals.")
    parser.add_argument("--attempts", type=int, default=200, help="blocks; default 200")
    parser.add_argument("--limit", type=float, default=100, help="microseconds; default 100")
    parser.add_argument("--sources", default=",".join(SOURCES), help="such as 'http,oauth'")
    parser.add_argument("--methods", default=",".join(METHODS), help="such as 'PASS,APOP'")
    arguments = parser.parse_args()
    print(f"{arguments.attempts} blocks, load {os.getloadavg()[0]:.1f}; microseconds")
    heads = (
        f"{'wrong':>9} {'unknown':>9} {'banned':>9} {'effect':>7} {'p':>7} {'banned':>7} {'p':>7}"
    )
    print(f"{'source':20} {'method':20} {heads}")
    rows: list[Row] = []
    isSame = True
    for name in arguments.sources.split(","):
        found, isSameHere = run(name, arguments.methods.split(","), arguments.attempts)
        rows += found
        isSame = isSame and isSameHere
    told = [each for each in rows if each.isTold(len(PAIRS) * len(rows), arguments.limit * 1e-6)]
    for row in told:
        print(f"{row.source}, {row.method}: the times tell who has an account")
    print(f"{len(rows)} rows, {len(told)} tell who has an account")
    sys.exit(bool(told) or not isSame)


if __name__ == "__main__":
    main()
