"""
Try three nodes that share one PostgreSQL database, behind HAProxy, with clients, deliveries and
faults.

    python bench/nodes.py [--minutes 30] [--clients 300] [--seed N] [--report FILE]
    python bench/nodes.py --patroni 3 [--minutes 30] [--clients 300] [--seed N] [--report FILE]

Clients fetch, mark and delete messages, sleep and wake, and LMTP delivers new messages.  Meanwhile
nodes are killed, and nodes are stopped for longer than a lease.

Without C{--patroni}, PostgreSQL is also restarted, and its connections are cut.  Each of these four
faults happens at least once, even with C{--minutes 0}.

With C{--patroni} there are two PostgreSQL servers with synchronous replication.  The leader is
killed as many times as the option says.  The minutes are the time in which nodes have faults, and
do not include the failovers.

At the end, the messages in the mailboxes are compared with what the service has confirmed to
clients.  The exit status is 1 if a message was lost, was given to another user, or has come back
after C{+OK} to its deletion.  The status is also 1 if two messages had the same unique-id.  The
exit status is also 1 if clients got no answers for L{RECOVERY} seconds after the leader was killed.
The program needs Debian's packages postgresql and haproxy, and for C{--patroni} also patroni,
python3-etcd and etcd-server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.support.patroni import LOOP_WAIT, TTL, Cluster, whyNoPatroni
from tests.support.postgresql import PostgreSQL
from tests.support.running import environment, freePort, script

# The seconds of a lease.  The number is the least that is allowed, so that many leases end.
LEASE = 5
# Seconds for which a client waits for an answer.  The service answers within twenty seconds.
PATIENCE = 40
# The most seconds from the death of the leader to the first answers.  In this time the leader's key
# in etcd expires, the standby notices the loss and is promoted, HAProxy notices the promotion, and
# the service connects.
RECOVERY = TTL + LOOP_WAIT + 10
_ID = re.compile(rb"X-Id: (\S+) (\S+)\r\n")


# --- the site ---------------------------------------------------------------------------


class Node:
    """
    A service with two workers.  The service has its own process group, so that all its processes
    can be killed together.
    """

    def __init__(self, home: Path, dsn: str, name: str) -> None:
        self.name = name
        self.port, self.lmtp = freePort(), freePort()
        self._home = home / name
        self._home.mkdir(mode=0o700)
        users = self._home / "users"
        users.write_text("".join(f"user{number}:{{PLAIN}}secret\n" for number in range(1000)))
        users.chmod(0o600)
        self._config = self._home / "pop3svc.toml"
        self._config.write_text(
            f'data = "{self._home}/data"\nworkers = 2\nproxy-from = ["127.0.0.0/8"]\n'
            f'lmtp = ["tcp:{self.lmtp}:interface=127.0.0.1"]\n'
            'ban-exempt = ["127.0.0.0/8"]\n'
            f'[[listener]]\nendpoint = "tcp:{self.port}:interface=127.0.0.1"\n'
            f'[[store]]\nkind = "sql"\ndsn = "{dsn}"\nlease = {LEASE}\n'
            f'auth = ["passwd:{users}"]\n'
            "[limits]\ntakeoverIdle = 1\ntakeoverMarked = 2\n"
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with open(self._home / "log", "ab") as log:
            self.process = subprocess.Popen(
                [script("pop3svc"), "serve", "--config", str(self._config)],
                env=environment(self._home),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def signal(self, number: int) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def end(self, number: int) -> None:
        assert self.process is not None
        self.signal(number)
        self.process.wait()


class Proxy:
    """
    HAProxy in front of the nodes.  HAProxy checks each node by connecting to its mail port, with a
    PROXY header.
    """

    def __init__(self, home: Path, nodes: list[Node]) -> None:
        self.port = freePort()
        servers = "".join(
            f"    server {each.name} 127.0.0.1:{each.port} send-proxy-v2 check-send-proxy check\n"
            for each in nodes
        )
        self._config = home / "haproxy.cfg"
        self._config.write_text(
            "global\n    hard-stop-after 5s\n"
            "defaults\n    mode tcp\n    timeout connect 2s\n    timeout client 15m\n"
            "    timeout server 15m\n    timeout check 2s\n    option redispatch 1\n    retries 2\n"
            f"frontend pop3\n    bind 127.0.0.1:{self.port}\n    default_backend nodes\n"
            "backend nodes\n    balance leastconn\n    option tcp-check\n"
            "    tcp-check expect rstring ^.OK\n"
            "    default-server inter 1s fastinter 300ms downinter 1s fall 2 rise 1 "
            "on-marked-down shutdown-sessions\n" + servers
        )
        self._process = subprocess.Popen(
            ["haproxy", "-db", "-f", str(self._config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def end(self) -> None:
        self._process.terminate()
        self._process.wait()


# --- what was confirmed -------------------------------------------------------------------


@dataclass
class Outage:
    """
    The time without answers after the death of a leader.

    @ivar died: the time when the leader was killed.
    @ivar gone: the time when all processes of the leader had ended.
    @ivar first: the seconds from the kill to the first answer that confirms a login, a deletion or
        a delivery, for each of these kinds.  Actions that began before C{gone} do not count.
    """

    KINDS = ("login", "deletion", "delivery")

    leader: str
    died: float
    gone: float
    first: dict[str, float] = field(default_factory=dict)

    @property
    def isOver(self) -> bool:
        return len(self.first) == len(self.KINDS)

    @property
    def text(self) -> str:
        times = ", ".join(
            f"first {kind} after {self.first[kind]:.1f} s" if kind in self.first else f"no {kind}"
            for kind in self.KINDS
        )
        return f"leader {self.leader} killed: {times}"


@dataclass
class Journal:
    """
    Records what the service has confirmed, and what clients have seen.

    @ivar accepted: the owner of each message that LMTP has confirmed, by the number of the message.
    @ivar tried: the owner of each message that was sent, by the number of the message.
    @ivar fetched: the numbers of the messages that clients have received completely.
    @ivar deleting: the numbers of the messages that clients have asked to delete.
    @ivar deleted: the times when deletions were confirmed, by the number of the deleted message.
    @ivar numbers: for each user and unique-id, the number of the message.
    @ivar outages: an outage for each death of a leader.
    """

    accepted: dict[str, str] = field(default_factory=dict)
    tried: dict[str, str] = field(default_factory=dict)
    fetched: set[str] = field(default_factory=set)
    deleting: set[str] = field(default_factory=set)
    deleted: dict[str, float] = field(default_factory=dict)
    numbers: dict[tuple[str, str], str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    outages: list[Outage] = field(default_factory=list)

    def confirmed(self, kind: str, began: float) -> None:
        """
        Record that the service has confirmed a change of the database.

        @param kind: one of L{Outage.KINDS}.
        @param began: the time when the client asked for the change.
        """
        if self.outages and began > self.outages[-1].gone:
            outage = self.outages[-1]
            outage.first.setdefault(kind, time.monotonic() - outage.died)

    def saw(self, user: str, uniqueID: str, message: bytes) -> str | None:
        """
        Record that a client has received a message.

        @return: the number of the message; L{None} if nobody has sent such a message.
        """
        found = _ID.search(message)
        if found is None:
            self.wrong.append(f"{user} received a message that nobody sent: {uniqueID}")
            return None
        number, owner = found[1].decode(), found[2].decode()
        if owner != user:
            self.wrong.append(f"{user} received message {number} of {owner}")
        if not message.endswith(b"end " + found[1] + b"\r\n"):
            self.wrong.append(f"message {number} was cut, and ended with a dot")
        known = self.numbers.setdefault((user, uniqueID), number)
        if known != number:
            self.wrong.append(f"unique-id {uniqueID} of {user} is {known} and {number}")
        self.fetched.add(number)
        return number


# --- clients --------------------------------------------------------------------------------


class Lost(Exception):
    """
    The connection has ended.
    """


class POP3:
    """
    A connection of a client.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, journal: Journal
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._journal = journal

    async def _line(self) -> bytes:
        began = time.monotonic()
        try:
            line = await asyncio.wait_for(self._reader.readline(), PATIENCE)
        except (TimeoutError, OSError, ValueError):
            raise Lost("no answer")
        self._journal.slowest = max(self._journal.slowest, time.monotonic() - began)
        if not line.endswith(b"\n"):
            raise Lost("closed")
        return line

    async def say(self, command: str) -> bytes:
        """
        @return: the first line of the reply.
        """
        try:
            self._writer.write(command.encode() + b"\r\n")
            await self._writer.drain()
        except OSError:
            raise Lost("closed")
        return await self._line()

    async def greeting(self) -> None:
        if not (await self._line()).startswith(b"+OK"):
            raise Lost("refused")

    async def body(self) -> bytes:
        lines = []
        while (line := await self._line()) != b".\r\n":
            lines.append(line[1:] if line.startswith(b".") else line)
        return b"".join(lines)

    def close(self) -> None:
        self._writer.close()


class User:
    """
    A user who polls for mail.  Each user has two clients, which contend for the mailbox.
    """

    def __init__(self, name: str, port: int, journal: Journal, choose: random.Random) -> None:
        self._name = name
        self._port = port
        self._journal = journal
        self._choose = choose

    async def poll(self) -> None:
        """
        Run one session until it ends or the connection is lost.
        """
        try:
            streams = await asyncio.wait_for(
                asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20), PATIENCE
            )
        except (TimeoutError, OSError):
            self._journal.counts["not connected"] += 1
            await asyncio.sleep(0.5)
            return
        connection = POP3(*streams, self._journal)
        try:
            await connection.greeting()
            await connection.say(f"USER {self._name}")
            began = time.monotonic()
            if not (await connection.say("PASS secret")).startswith(b"+OK"):
                self._journal.counts["login refused"] += 1
                return
            self._journal.counts["login"] += 1
            self._journal.confirmed("login", began)
            await self._session(connection, began)
        except Lost as why:
            self._journal.counts[f"lost: {why}"] += 1
        finally:
            connection.close()

    async def _session(self, connection: POP3, began: float) -> None:
        """
        @param began: the time when the client asked for the listing.  A session keeps its listing
            to the end, even if another node has taken the mailbox.
        """
        for _ in range(self._choose.randint(1, 4)):
            marked = await self._transaction(connection, began)
            if marked is None:
                return
            verb = self._choose.choice(["QUIT", "QUIT", "SLEE", "CORE", "gone"])
            if verb == "gone":
                return
            self._journal.deleting.update(marked)
            began = time.monotonic()
            said = await connection.say(verb)
            if not said.startswith(b"+OK"):
                self._journal.counts[f"{verb} refused"] += 1
                return
            now = time.monotonic()
            self._journal.deleted.update(dict.fromkeys(marked, now))
            self._journal.counts[f"{verb} confirmed"] += 1
            if marked:
                self._journal.confirmed("deletion", began)
            if verb == "QUIT":
                return
            if verb == "SLEE":
                await asyncio.sleep(self._choose.uniform(0, 2))
                began = time.monotonic()
                if not (await connection.say("WAKE")).startswith(b"+OK"):
                    self._journal.counts["WAKE refused"] += 1
                    return

    async def _transaction(self, connection: POP3, began: float) -> set[str] | None:
        """
        @return: the numbers of the marked messages; None if the session has ended.
        """
        if not (await connection.say("UIDL")).startswith(b"+OK"):
            return None
        marked = set()
        for line in (await connection.body()).decode().splitlines():
            place, uniqueID = line.split()
            known = self._journal.numbers.get((self._name, uniqueID))
            if known in self._journal.deleted and self._journal.deleted[known] < began:
                self._journal.wrong.append(f"message {known} is back after +OK to its deletion")
            if known is None or self._choose.random() < 0.1:
                said = await connection.say(f"RETR {place}")
                if not said.startswith(b"+OK"):
                    self._journal.counts["RETR refused"] += 1
                    continue
                known = self._journal.saw(self._name, uniqueID, await connection.body())
                self._journal.counts["RETR"] += 1
            isWanted = known is not None and self._choose.random() < 0.5
            if isWanted and (await connection.say(f"DELE {place}")).startswith(b"+OK"):
                marked.add(str(known))
        return marked


async def _lmtp(port: int, number: str, owner: str) -> bool:
    """
    Deliver a message.

    @return: whether the service has confirmed the delivery.
    """
    reader, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), PATIENCE)

    async def reply() -> bytes:
        while True:
            line = await asyncio.wait_for(reader.readline(), PATIENCE)
            if line[3:4] != b"-":
                return line

    try:
        await reply()
        size = 50 if hash(number) % 20 else 400_000
        text = f"Subject: x\r\nX-Id: {number} {owner}\r\n\r\n" + "y" * 70 + "\r\n"
        text += ("z" * 70 + "\r\n") * (size // 72) + f"end {number}\r\n.\r\n"
        for command in ("LHLO x", "MAIL FROM:<>", f"RCPT TO:<{owner}>", "DATA"):
            writer.write(command.encode() + b"\r\n")
            if (await reply())[:1] not in (b"2", b"3"):
                return False
        writer.write(text.encode())
        return (await reply()).startswith(b"250")
    finally:
        writer.close()


# --- the run ----------------------------------------------------------------------------------


class Trial:
    """
    The nodes and their clients.  A subclass causes the faults.
    """

    def __init__(self, home: Path, dsn: str, clients: int, choose: random.Random) -> None:
        self.journal = Journal()
        self.seconds = 0.0
        self._choose = choose
        self.nodes = [Node(home, dsn, name) for name in ("a", "b", "c")]
        self._proxy = Proxy(home, self.nodes)
        self._clients = clients
        self._users = max(clients // 2, 1)
        self._isOver = False
        self._sent = 0

    async def run(self) -> None:
        for each in self.nodes:
            each.start()
        await self._answering()
        began = time.monotonic()
        tasks = [asyncio.create_task(self._client(number)) for number in range(self._clients)]
        tasks += [asyncio.create_task(self._deliver()) for _ in range(4)]
        await self._disturb()
        self.seconds = time.monotonic() - began
        self._isOver = True
        await asyncio.gather(*tasks)
        await self._answering()

    async def _disturb(self) -> None:
        """
        Cause faults until the end of the run.
        """
        raise NotImplementedError

    async def _answering(self) -> None:
        end = time.monotonic() + 60
        user = User("user999", self._proxy.port, Journal(), self._choose)
        while time.monotonic() < end:
            await user.poll()
            if user._journal.counts["login"]:
                return
            await asyncio.sleep(0.3)
        raise AssertionError("the site does not answer")

    async def _client(self, number: int) -> None:
        user = User(f"user{number % self._users}", self._proxy.port, self.journal, self._choose)
        await asyncio.sleep(self._choose.uniform(0, 3))
        while not self._isOver:
            await user.poll()
            await asyncio.sleep(self._choose.uniform(0.1, 3))

    async def _deliver(self) -> None:
        while not self._isOver:
            self._sent += 1
            number, owner = f"m{self._sent}", f"user{self._choose.randrange(self._users)}"
            self.journal.tried[number] = owner
            node = self._choose.choice(self.nodes)
            began = time.monotonic()
            try:
                isAccepted = await _lmtp(node.lmtp, number, owner)
            except (TimeoutError, OSError, ValueError):
                isAccepted = False
            if isAccepted:
                self.journal.accepted[number] = owner
                self.journal.confirmed("delivery", began)
            else:
                self.journal.counts["not accepted"] += 1
            await asyncio.sleep(self._choose.uniform(0, 0.2))

    async def _kill(self) -> None:
        node = self._choose.choice(self.nodes)
        node.end(signal.SIGKILL)
        await asyncio.sleep(self._choose.uniform(0, 2))
        node.start()
        self.journal.counts["fault: kill"] += 1

    async def _freeze(self) -> None:
        node = self._choose.choice(self.nodes)
        node.signal(signal.SIGSTOP)
        await asyncio.sleep(LEASE * self._choose.uniform(1.2, 2.0))
        node.signal(signal.SIGCONT)
        self.journal.counts["fault: freeze"] += 1

    def end(self) -> None:
        for each in self.nodes:
            if each.process is not None and each.process.poll() is None:
                each.signal(signal.SIGCONT)
                each.end(signal.SIGKILL)
        self._proxy.end()

    async def judge(self) -> None:
        """
        Fetch all messages that are left, and compare them with the journal.
        """
        journal = self.journal
        left = set()
        for number in range(self._users):
            left |= await self._left(f"user{number}")
        for number, owner in journal.accepted.items():
            wasDeleted = number in journal.deleting
            if number not in journal.fetched:
                journal.wrong.append(f"message {number} of {owner} was confirmed and is lost")
            elif not wasDeleted and number not in left:
                journal.wrong.append(f"message {number} of {owner} is gone, and nobody deleted it")
        for number in journal.deleted:
            if number in left:
                journal.wrong.append(f"message {number} is back after +OK to its deletion")

    async def _left(self, name: str) -> set[str]:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                streams = await asyncio.open_connection(
                    "127.0.0.1", self._proxy.port, limit=1 << 20
                )
            except OSError:
                await asyncio.sleep(0.5)
                continue
            connection = POP3(*streams, self.journal)
            try:
                await connection.greeting()
                await connection.say(f"USER {name}")
                if not (await connection.say("PASS secret")).startswith(b"+OK"):
                    await asyncio.sleep(1)
                    continue
                found = set()
                await connection.say("UIDL")
                for line in (await connection.body()).decode().splitlines():
                    place, uniqueID = line.split()
                    if not (await connection.say(f"RETR {place}")).startswith(b"+OK"):
                        self.journal.wrong.append(f"{uniqueID} of {name} cannot be read")
                        continue
                    number = self.journal.saw(name, uniqueID, await connection.body())
                    found.add(number or "")
                await connection.say("QUIT")
                return found
            except Lost:
                await asyncio.sleep(0.5)
            finally:
                connection.close()
        raise AssertionError(f"{name} cannot log in at the end")


class OneServer(Trial):
    """
    A trial with one PostgreSQL server.  One fault after the other happens to a node or to the
    server.
    """

    def __init__(
        self, home: Path, server: PostgreSQL, clients: int, choose: random.Random, seconds: float
    ) -> None:
        super().__init__(home, server.dsn, clients, choose)
        self._server = server
        self._limit = seconds

    async def _disturb(self) -> None:
        faults: list[Callable[[], Any]] = [self._kill, self._freeze, self._restart, self._cut]
        end = time.monotonic() + self._limit
        # Cause each kind of fault once, however short the trial is.
        self._choose.shuffle(faults)
        for each in faults:
            await asyncio.sleep(self._choose.uniform(1, 2))
            await each()
        while time.monotonic() < end:
            await asyncio.sleep(self._choose.uniform(2, 5))
            await self._choose.choice(faults)()

    async def _restart(self) -> None:
        end = self._choose.choice([self._server.kill, self._server.stop])
        await asyncio.to_thread(end)
        await asyncio.sleep(self._choose.uniform(0, 2))
        await asyncio.to_thread(self._server.start)
        self.journal.counts["fault: restart"] += 1

    async def _cut(self) -> None:
        for _ in range(5):
            await asyncio.to_thread(self._server.terminateBackends)
            await asyncio.sleep(self._choose.uniform(0, 0.5))
        self.journal.counts["fault: cut"] += 1


class Failovers(Trial):
    """
    A trial with two PostgreSQL servers under Patroni.  One fault after the other happens to a node.
    The leader is killed while no node has a fault, so that the time to the first answer is the time
    of the failover.
    """

    def __init__(
        self,
        home: Path,
        cluster: Cluster,
        clients: int,
        choose: random.Random,
        seconds: float,
        kills: int,
    ) -> None:
        """
        @param seconds: the time in which nodes have faults, without the failovers.
        @param kills: the number of times that the leader is killed.
        """
        super().__init__(home, cluster.dsn, clients, choose)
        self._cluster = cluster
        self._limit = seconds
        self._kills = kills

    async def _disturb(self) -> None:
        for _ in range(self._kills):
            end = time.monotonic() + self._limit / self._kills
            while time.monotonic() < end:
                await asyncio.sleep(self._choose.uniform(2, 5))
                await self._choose.choice([self._kill, self._freeze])()
            await asyncio.sleep(self._choose.uniform(5, 8))
            await asyncio.to_thread(self._cluster.waitUntilSafe)
            await self._killLeader()

    async def _killLeader(self) -> None:
        died = time.monotonic()
        leader = await asyncio.to_thread(self._cluster.killLeader)
        outage = Outage(leader.name, died, time.monotonic())
        self.journal.outages.append(outage)
        self.journal.counts["fault: leader killed"] += 1
        while not outage.isOver and time.monotonic() < died + RECOVERY:
            await asyncio.sleep(0.1)
        if not outage.isOver:
            self.journal.wrong.append(f"no answers within {RECOVERY} s: {outage.text}")
        leader.patroni.start()


def report(trial: Trial) -> str:
    """
    @return: the text of the report.
    """
    journal = trial.journal
    groups: dict[str, list[str]] = defaultdict(list)
    for what, count in sorted(journal.counts.items()):
        groups["faults" if what.startswith("fault") else "clients"].append(f"{what} {count}")
    lines = [
        f"{trial.seconds:.0f} s, {len(journal.tried)} messages sent by LMTP, "
        f"{len(journal.accepted)} confirmed, {len(journal.fetched)} received, "
        f"{len(journal.deleted)} deletions confirmed",
        f"slowest answer to a client: {journal.slowest:.1f} s",
        *(outage.text for outage in journal.outages),
        *(f"{name}: {', '.join(each)}" for name, each in sorted(groups.items())),
        f"wrong: {len(journal.wrong)}",
        *journal.wrong[:20],
    ]
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=300)
    parser.add_argument(
        "--patroni", type=int, metavar="KILLS", help="the number of times to kill a leader"
    )
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--report", type=Path)
    parser.add_argument("--keep", action="store_true", help="keep the directory with the logs")
    arguments = parser.parse_args()
    if arguments.patroni is not None and whyNoPatroni():
        parser.error(f"--patroni: {whyNoPatroni()}")
    return arguments


def _trial(home: Path, arguments: argparse.Namespace, server: PostgreSQL | Cluster) -> Trial:
    choose, seconds = random.Random(arguments.seed), arguments.minutes * 60
    if isinstance(server, Cluster):
        return Failovers(home, server, arguments.clients, choose, seconds, arguments.patroni)
    return OneServer(home, server, arguments.clients, choose, seconds)


def main() -> None:
    arguments = _arguments()
    print(f"seed {arguments.seed}", flush=True)
    home = Path(tempfile.mkdtemp(prefix="pop3svc-nodes-"))
    try:
        with PostgreSQL() if arguments.patroni is None else Cluster() as server:
            subprocess.run(
                [script("pop3svc"), "sql", "migrate", server.dsn], env=environment(home), check=True
            )
            trial = _trial(home, arguments, server)

            async def all() -> None:
                await trial.run()
                await trial.judge()

            try:
                asyncio.run(all())
            finally:
                trial.end()
        text = report(trial)
        print(text)
        if arguments.report is not None:
            arguments.report.write_text(text + "\n")
    finally:
        if arguments.keep:
            print(home)
        else:
            shutil.rmtree(home, ignore_errors=True)
    raise SystemExit(bool(trial.journal.wrong))


if __name__ == "__main__":
    main()
