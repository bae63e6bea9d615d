"""
C{pop3svc import} and C{pop3svc export} as an operator runs them.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.maildirs import deliver
from tests.support.running import PATIENCE, Connection, Running, environment, freePort, script

# How often a process is killed at a random moment.
KILLS = int(os.environ.get("POP3SVC_KILLS", "4"))
MANY = 150
# Megabytes of the large message.  A process may not use as much memory.
LARGE = int(os.environ.get("POP3SVC_LARGE", "180"))
MBOX = ("--format", "mbox")


class Site:
    """
    A directory with accounts, stores and sources.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.users = home / "users"
        self.users.write_text("alice:{PLAIN}secret\n")
        os.chmod(self.users, 0o600)
        for name in ("maildirs", "others", "mboxes"):
            (home / name).mkdir()

    def command(self, action: str, store: str, *arguments: str | Path) -> list[str]:
        chosen = ["--provider", store, "--auth", f"passwd:{self.users}"]
        return [script("pop3svc"), action, *chosen, *map(str, arguments)]

    def run(self, action: str, store: str, *arguments: str | Path) -> tuple[int, str, str]:
        done = subprocess.run(
            self.command(action, store, *arguments),
            capture_output=True,
            text=True,
            env=environment(self.home),
            cwd=self.home,
            check=False,
            timeout=PATIENCE,
        )
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout, done.stderr

    def start(self, action: str, store: str, *arguments: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(action, store, *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(self.home),
            cwd=self.home,
            text=True,
        )

    def kill(self, command: list[str], after: float) -> None:
        """
        Kill a command some seconds after its start, if it has not ended before.
        """
        with subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment(self.home),
            cwd=self.home,
        ) as process:
            with suppress(subprocess.TimeoutExpired):
                process.wait(after)
            process.send_signal(signal.SIGKILL)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    yield Site(tmp_path)


def source(home: Path, count: int) -> Path:
    path = home / "source"
    for number in range(count):
        body = b"Subject: %d\n\nFrom x\n>From y\n.\n\xff\n" % number + b"line\n" * (number % 7)
        deliver(path, f"{1600000000 + number}.M1P1.host:2,S", body, "cur")
    deliver(path, "1600008000.M1P1.host", b"")
    deliver(path, "1600008001.M1P1.host", b"a: b\n\nNUL \0 and no end")
    return path


def contents(maildir: Path) -> dict[str, bytes]:
    """
    @return: the messages by base name, in order.
    """
    found = {
        each.name.partition(":")[0]: each.read_bytes()
        for folder in ("new", "cur")
        for each in (maildir / folder).iterdir()
    }
    return {
        name: content if content.endswith(b"\n") or not content else content + b"\n"
        for name, content in sorted(found.items())
    }


@pytest.mark.smoke
def test_roundTrip(site: Site) -> None:
    """
    Messages move from Maildir to SQLite, to mbox, and back to Maildir.  Their octets, order and
    unique-ids stay the same.
    """
    path, database = source(site.home, 20), f"sql:sqlite:{site.home}/mail.db"
    status, told, said = site.run("import", database, "alice", path)
    assert (status, said) == (0, "")
    assert told.startswith("the mailbox of alice has 22 of 22 messages, with ")
    octets = told.split(" with ")[1].split()[0]
    again = site.run("import", database, "alice", path)
    assert again == (0, told, "")
    mbox = site.home / "out.mbox"
    status, told, said = site.run("export", database, "--format", "mbox", "alice", mbox)
    assert (status, said) == (0, "")
    assert told == (f"{mbox} has 22 of 22 messages of alice, with {octets} octets as sent\n")
    maildirs = f"maildir:{site.home}/maildirs"
    assert site.run("import", maildirs, "--variant", "mboxrd", "alice", mbox)[0] == 0
    out = site.home / "out"
    assert site.run("export", database, "alice", out)[0] == 0
    assert contents(out) == contents(path)
    # An mbox without X-UIDL has no unique-ids, and the order is that of the times of files.
    folder = site.home / "maildirs" / "alice" / "new"
    files = sorted(folder.iterdir(), key=lambda each: each.stat().st_mtime_ns)
    assert [each.read_bytes() for each in files] == list(contents(path).values())
    # With X-UIDL an mbox has unique-ids.
    other = f"mbox:{site.home}/mboxes:uidl=x-uidl"
    assert site.run("import", other, "alice", out)[0] == 0
    assert site.run("export", other, "alice", site.home / "last")[0] == 0
    assert list(contents(site.home / "last")) == list(contents(path))


def test_notPossible(site: Site) -> None:
    path, store = source(site.home, 1), f"maildir:{site.home}/maildirs"
    cut = site.home / "cut"
    cut.write_bytes(
        b"From a Thu Jan  1 00:00:10 1970\nwhole\n\nFrom a Thu Jan  1 00:00:10 1970\nha"
    )
    for arguments, status, says in (
        (["bob", path], 1, "There is no such user."),
        (["alice", site.home / "none"], 1, "none cannot be read: No such file or directory"),
        (["alice"], 1, "PATH"),
        (["--uidl", "dovecot", "alice", path], 1, "dovecot-uidlist"),
        (["--uidl", "nonsense", "alice", path], 1, "--uidl: uidl is"),
        (["alice", site.users], 1, "not an mbox"),
        (["alice", cut], 1, "message 2 was left out: the mbox ends in the middle of the message"),
    ):
        found, _, said = site.run("import", store, *arguments)
        assert found == status and says in said and said.count("\n") == 1, said
    assert site.run("import", f"{store}:readonly=yes", "alice", path)[0] == 75
    assert site.run("import", "maildir:/no/such", "alice", path)[0] == 1
    found, _, said = site.run("import", f"mbox:{site.home}/mboxes", "alice", path)
    assert found == 1 and "uidl=x-uidl" in said and said.count("\n") == 1
    deliver(path / ".Sent", "1.x", b"sent")
    found, told, said = site.run("import", store, "alice", path)
    assert (found, said) == (0, "pop3svc: 1 other folder was left out; --folders imports them\n")
    assert site.run("export", store, "--x-uidl", "alice", site.home / "out")[0] == 1
    found, _, said = site.run("export", store, "alice", path)
    assert (found, said) == (1, f"pop3svc: {path} is not empty\n")


def stores(site: Site) -> dict[str, str]:
    return {
        "maildir": f"maildir:{site.home}/maildirs",
        "sqlite": f"sql:sqlite:{site.home}/mail.db",
        "mbox": f"mbox:{site.home}/mboxes:uidl=x-uidl",
    }


@pytest.mark.parametrize("kind", ["maildir", "sqlite", "mbox"])
def test_killedImport(kind: str, site: Site) -> None:
    """
    After kills at any moment, one more import leaves every message exactly once.
    """
    path, store = source(site.home, MANY), stores(site)[kind]
    for _ in range(KILLS):
        site.kill(site.command("import", store, "alice", path), random.uniform(0.4, 1.5))
    status, told, said = site.run("import", store, "alice", path)
    assert (status, said) == (0, "") and f" has {MANY + 2} of {MANY + 2} " in told
    assert site.run("export", store, "alice", site.home / "out")[0] == 0
    found, expected = contents(site.home / "out"), contents(path)
    assert list(found) == list(expected)
    if kind != "mbox":
        assert found == expected


@pytest.mark.parametrize("format", ["maildir", "mbox"])
def test_killedExport(format: str, site: Site) -> None:
    path, store = source(site.home, MANY), f"maildir:{site.home}/maildirs"
    assert site.run("import", store, "alice", path)[0] == 0
    out = site.home / "out"
    command = site.command("export", store, "--format", format, "alice", out)
    for _ in range(KILLS):
        site.kill(command, random.uniform(0.4, 1.2))
    work = [each for each in os.listdir(site.home) if each.startswith("out")]
    if work == ["out"] and not (out / ".pop3svc-export").exists():
        # The export had ended before it was killed.
        status, told = 0, f" has {MANY + 2} of {MANY + 2} "
    else:
        status, told, _ = site.run("export", store, "--format", format, "alice", out)
    assert status == 0 and f" has {MANY + 2} of {MANY + 2} " in told
    assert [each for each in os.listdir(site.home) if each.startswith("out")] == ["out"]
    if format == "mbox":
        other = f"maildir:{site.home}/others"
        assert site.run("import", other, "--variant", "mboxrd", "alice", out)[0] == 0
        out = site.home / "others" / "alice"
    assert list(contents(out).values()) == list(contents(path).values()) or format == "mbox"
    assert sorted(contents(out).values()) == sorted(contents(path).values())


def test_interrupted(site: Site) -> None:
    """
    SIGTERM ends an import after the present message, with exit status 75.
    """
    path, store = source(site.home, 2000), f"maildir:{site.home}/maildirs"
    with site.start("import", store, "alice", path) as process:
        new = site.home / "maildirs" / "alice" / "new"
        while process.poll() is None and not (new.exists() and os.listdir(new)):
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.01)
        process.terminate()
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 75
    assert said == "pop3svc: the import was interrupted; run the command again to continue\n"


def test_besideAService(site: Site) -> None:
    """
    A client has locked the mailbox while messages are imported.  The import stores the messages,
    and reads them back when the client has ended.
    """
    path, port = source(site.home, 5), freePort()
    store = f"maildir:{site.home}/maildirs:lock=refuse"
    with Running(
        site.home / "service",
        *("--endpoint", f"tcp:{port}:interface=127.0.0.1", "--data", str(site.home / "data")),
        *("--provider", store, "--auth", f"passwd:{site.users}"),
    ) as service:
        service.up()
        assert site.run("import", store, "alice", path)[0] == 0
        client = Connection(port)
        client.line()
        client.logIn(b"alice", b"secret")
        deliver(path, "1600009000.M1P1.host", b"new\n")
        new = site.home / "maildirs" / "alice" / "new" / "1600009000.M1P1.host"
        with site.start("import", store, "alice", path) as process:
            while process.poll() is None and not new.exists():
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.01)
            assert process.poll() is None and client.say(b"STAT").startswith(b"+OK 7 ")
            assert client.say(b"QUIT").startswith(b"+OK")
            told, said = process.communicate(timeout=PATIENCE)
            assert (process.returncode, said) == (0, "")
        assert " has 8 of 8 " in told


def _peak(process: subprocess.Popen[Any]) -> int:
    """
    Wait for the end of a process.

    @return: the most memory that the process had, in KiB.  The figure of wait4() would contain the
        memory of the test's own process, from which the process was forked.
    """
    peak = 0
    while process.poll() is None:
        with suppress(OSError, StopIteration), open(f"/proc/{process.pid}/status") as status:
            line = next(each for each in status if each.startswith("VmHWM:"))
            peak = max(peak, int(line.split()[1]))
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
    return peak


def test_largeMessage(site: Site) -> None:
    """
    A large message is moved with bounded memory.
    """
    path = site.home / "large"
    deliver(path, "1600000000.M1P1.host", b"a: b\n\n")
    block = b"0123456789abcdef" * 4 + b"\n"
    with (path / "new" / "1600000000.M1P1.host").open("ab") as file:
        for _ in range(LARGE):
            file.write(block * (1_000_000 // len(block)))
    store, out = f"sql:sqlite:{site.home}/mail.db", site.home / "out"
    for arguments in (("import", store, "alice", path), ("export", store, *MBOX, "alice", out)):
        with site.start(*arguments) as process:
            peak = _peak(process)
        assert process.returncode == 0
        assert 10_000 < peak < 160_000
    written = out.read_bytes().partition(b"\n")[2][:-1]
    assert hashlib.sha256(written).digest() == (
        hashlib.sha256((path / "new" / "1600000000.M1P1.host").read_bytes()).digest()
    )
