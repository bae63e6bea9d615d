"""
Compare C{pop3svc fetch} with fetchmail, mpop and getmail6.  All four fetch the same messages from a
pop3svc service.

With C{python -m bench.fetchers}, each program fetches 10,000 messages of 4 KiB, and then looks
1,000 times for new mail in another mailbox.  A proxy on loopback counts octets and round trips.
C{--short} only shows that all parts work.  The programs fetchmail and mpop are packages of Debian.
The program getmail6 has to be installed for this Python.
"""

from __future__ import annotations

import argparse
import os
import resource
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.running import Running, environment, freePort, script

__all__ = ["main"]

HOST = "127.0.0.1"
MESSAGE = 4096
# The number of messages in the mailbox in which the programs look for new mail.
KEPT = 100

_FETCHMAIL = """
set idfile "{home}/fetchids"
set pidfile "{home}/fetchmail.pid"
set no bouncemail
set no syslog
poll {host} protocol pop3 port {port} auth password timeout 60 uidl
  user "{user}" password "secret"
  keep no fetchall no rewrite sslproto '' no sslcertck
  mda "{agent}"
"""
_MPOP = """
account default
host {host}
port {port}
auth user
user {user}
password secret
timeout 60
tls off
keep on
only_new on
received_header off
uidls_file {home}/uidls
delivery maildir {home}/Maildir
"""
_GETMAIL = """
[retriever]
type = SimplePOP3Retriever
server = {host}
port = {port}
username = {user}
password = secret
[destination]
type = MDA_external
path = {agent}
allow_root_commands = true
[options]
read_all = false
delivered_to = false
received = false
verbose = 0
"""
_AGENT = """#!/bin/sh
exec cat > "$(mktemp {home}/Maildir/new/XXXXXXXX)"
"""


class Counter:
    """
    A proxy on loopback that counts octets and round trips.

    @ivar sent: the octets that the client has sent.
    @ivar received: the octets that the client has received.
    @ivar turns: the number of round trips.  A round trip begins when the client sends after the
        server has sent.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listening = socket.create_server((HOST, 0), backlog=64)
        self.port: int = self._listening.getsockname()[1]
        self.reset()
        threading.Thread(target=self._accept, daemon=True).start()

    def reset(self) -> None:
        """
        Count from zero.
        """
        self.sent = self.received = self.turns = 0

    def _accept(self) -> None:
        while True:
            client, _ = self._listening.accept()
            threading.Thread(target=self._talk, args=(client,), daemon=True).start()

    def _talk(self, client: socket.socket) -> None:
        server = socket.create_connection((HOST, self._target))
        for each in (client, server):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The greeting counts as a round trip too.
        wasServer = True
        with selectors.DefaultSelector() as selector, client, server:
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            self.turns += 1
            while True:
                for key, _ in selector.select():
                    source: Any = key.fileobj
                    try:
                        data = source.recv(262_144)
                        if not data:
                            return
                        if source is client:
                            self.turns += wasServer
                            self.sent += len(data)
                        else:
                            self.received += len(data)
                        wasServer = source is server
                        key.data.sendall(data)
                    except OSError:
                        return


@dataclass
class Figures:
    """
    The time and the traffic of some work.
    """

    seconds: float
    cpu: float
    sent: int
    received: int
    turns: int


class Fetcher:
    """
    A program that fetches mail.
    """

    name = ""

    def __init__(self, home: Path, port: int, user: str) -> None:
        self.home = home
        home.mkdir()
        for folder in ("tmp", "new", "cur"):
            (home / "Maildir" / folder).mkdir(parents=True)
        self.values = {"home": home, "host": HOST, "port": port, "user": user}
        self.values["agent"] = self._write("agent", _AGENT, 0o700)

    def _write(self, name: str, text: str, mode: int = 0o600) -> Path:
        path = self.home / name
        path.write_text(text.format(**self.values))
        path.chmod(mode)
        return path

    def command(self) -> list[str]:
        """
        @return: the command that fetches once.
        """
        raise NotImplementedError

    # The exit statuses of success. fetchmail also has the status 1, which means that there is no
    # new mail.
    good: tuple[int, ...] = (0,)

    def fetch(self) -> None:
        """
        Fetch once.
        """
        done = subprocess.run(
            self.command(),
            env=environment(self.home),
            cwd=self.home,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
        if done.returncode not in self.good:
            raise SystemExit(f"{self.name}: {done.stderr.decode(errors='replace')}")

    def look(self, times: int) -> None:
        """
        Look for new mail C{times} times.
        """
        for _ in range(times):
            self.fetch()

    def stored(self) -> int:
        """
        @return: the number of messages that were stored.
        """
        return sum(
            1 for folder in ("new", "cur") for _ in (self.home / "Maildir" / folder).iterdir()
        )


class Fetchmail(Fetcher):
    name = "fetchmail"
    good = (0, 1)

    def command(self) -> list[str]:
        return ["fetchmail", "--nodetach", "-f", str(self._write("fetchmailrc", _FETCHMAIL))]


class Mpop(Fetcher):
    name = "mpop"

    def command(self) -> list[str]:
        return ["mpop", "--quiet", "--file", str(self._write("mpoprc", _MPOP))]


class Getmail(Fetcher):
    name = "getmail6"

    def command(self) -> list[str]:
        self._write("getmailrc", _GETMAIL)
        return [script("getmail"), "--getmaildir", str(self.home), "--rcfile", "getmailrc"]


class Ours(Fetcher):
    name = "pop3svc fetch"

    def options(self) -> list[str]:
        self._write("password", "secret\n")
        url = "pop3://{user}@{host}:{port}".format(**self.values)
        return [
            *("--state", str(self.home / "fetch.db"), "--insecure", "--mechanism", "USER"),
            *("--password-file", str(self.home / "password")),
            *("--to", f"maildir:{self.home / 'Maildir'}", url),
        ]

    def command(self) -> list[str]:
        return [script("pop3svc"), "fetch", *self.options()]


class Watching(Ours):
    name = "pop3svc fetch --watch"

    def look(self, times: int) -> None:
        # Run the command without its pauses; see watchWithoutPauses().
        options = self.options()
        subprocess.run(
            [sys.executable, "-m", "bench.fetchers", "--looks", str(times), *options],
            env=environment(self.home),
            cwd=Path(__file__).parent.parent,
            stdout=subprocess.DEVNULL,
            check=True,
        )


FETCHERS: list[type[Fetcher]] = [Ours, Watching, Mpop, Fetchmail, Getmail]


def watchWithoutPauses(times: int, options: list[str]) -> None:
    """
    Run C{pop3svc fetch --watch} without its pauses, and end it after it has looked C{times} times.
    """
    from pop3svc.fetching.watching import Ending
    from pop3svc.service.fetchcommand import main as fetch

    left = times

    async def pause(self: Ending, seconds: float) -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            self.begin()

    Ending.pause = pause  # type: ignore[method-assign]
    fetch(["--watch", *options])


def measure(work: Callable[[], object], counter: Counter) -> Figures:
    """
    @return: the time and the traffic of some work.
    """
    counter.reset()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    work()
    seconds = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Figures(seconds, cpu, counter.sent, counter.received, counter.turns)


def makeMail(path: Path, number: int) -> None:
    """
    Make a Maildir with messages of L{MESSAGE} octets.
    """
    for folder in ("tmp", "new", "cur"):
        (path / folder).mkdir(parents=True)
    for each in range(number):
        head = f"Subject: {each}\nFrom: a@example.test\nMessage-ID: <{each}@example.test>\n\n"
        lines = "0123456789" * 7 + "\n"
        text = (head + lines * (MESSAGE // len(lines) + 1))[: MESSAGE - 1] + "\n"
        (path / "new" / f"{1_600_000_000 + each}.M1P1.bench").write_text(text)


def show(title: str, found: dict[str, Figures]) -> None:
    """
    Print a table.
    """
    print(f"{title}\n")
    width = max(map(len, found))
    print(f"{'':{width}}  seconds  CPU s  sent, octets  received, octets  round trips")
    for name, each in found.items():
        print(
            f"{name:{width}}  {each.seconds:7.2f}  {each.cpu:5.2f}  {each.sent:12,}  "
            f"{each.received:16,}  {each.turns:11,}"
        )
    print(flush=True)


def run(home: Path, messages: int, polls: int, only: list[str]) -> None:
    """
    Measure all programs, and print the tables.
    """
    makeMail(home / "mail" / "many", messages)
    makeMail(home / "mail" / "kept", KEPT)
    (home / "users").write_text("many:{PLAIN}secret\nkept:{PLAIN}secret\n")
    (home / "users").chmod(0o600)
    port = freePort()
    options = [
        *("--provider", f"maildir:{home / 'mail'}", "--auth", f"passwd:{home / 'users'}"),
        *("--endpoint", f"tcp:{port}:interface={HOST}"),
    ]
    fetched: dict[str, Figures] = {}
    looked: dict[str, Figures] = {}
    with Running(home / "home", *options) as running:
        running.up()
        counter = Counter(port)
        for kind in FETCHERS:
            if only and kind.name not in only:
                continue
            if kind is not Watching:
                many = kind(home / f"{kind.__name__}-many", counter.port, "many")
                fetched[kind.name] = measure(many.fetch, counter)
                assert many.stored() == messages, (kind.name, many.stored())
            kept = kind(home / f"{kind.__name__}-kept", counter.port, "kept")
            kept.fetch()
            assert kept.stored() == KEPT, (kind.name, kept.stored())
            looks = kept
            looked[kind.name] = measure(lambda: looks.look(polls), counter)  # noqa: B023
            assert kept.stored() == KEPT, (kind.name, kept.stored())
            print(f"{kind.name} is done", file=sys.stderr, flush=True)
    if fetched:
        show(f"Fetch {messages:,} messages of {MESSAGE:,} octets, and keep them", fetched)
    show(f"Look {polls:,} times for new mail in a mailbox of {KEPT} messages", looked)


def main() -> None:
    """
    Run the program.
    """
    if sys.argv[1:2] == ["--looks"]:
        watchWithoutPauses(int(sys.argv[2]), sys.argv[3:])
    parser = argparse.ArgumentParser(prog="python -m bench.fetchers")
    parser.add_argument("--short", action="store_true", help="only show that all parts work")
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--polls", type=int, default=1_000)
    parser.add_argument("--only", action="append", default=[], metavar="NAME")
    arguments = parser.parse_args()
    if arguments.short:
        arguments.messages, arguments.polls = 50, 3
    for kind, program in ((Mpop, "mpop"), (Fetchmail, "fetchmail"), (Getmail, script("getmail"))):
        if shutil.which(program) is None:
            print(f"{program} is not installed, and is left out", file=sys.stderr)
            FETCHERS.remove(kind)
    with tempfile.TemporaryDirectory(prefix="pop3svc-bench-") as directory:
        run(Path(directory), arguments.messages, arguments.polls, arguments.only)


if __name__ == "__main__":
    os.umask(0o077)
    main()
