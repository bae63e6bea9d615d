"""
A service that accesses the mail of the system's users with the rights of these users.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.lmtp import offer
from tests.support.maildirs import deliver
from tests.support.passwords import hashed
from tests.support.running import (
    Connection,
    Running,
    environment,
    forEverybody,
    freePort,
)
from tests.support.unprivileged import (
    SERVICE,
    capable,
    pop3svc,
    pythonForOthers,
    twistd,
    unprivileged,
)

pytestmark = pytest.mark.skipif(
    pythonForOthers() is None, reason="needs root, and a Python that other users can run"
)

ALICE, BOB = 20001, 20002
NAME = "1600000000.M1P1Q1.host"
MESSAGE = b"From: a@example.org\r\nSubject: one\r\n\r\nText.\r\n"


class Place:
    """
    Homes of two users, and accounts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.homes = path / "home"
        self.homes.mkdir(mode=0o755)
        self.users = path / "users"
        self.data = path / "data"
        self.data.mkdir(mode=0o700)
        os.chown(self.data, SERVICE, SERVICE)
        lines = []
        for name, uid in (("alice", ALICE), ("bob", BOB)):
            home = self.home(name)
            home.mkdir(mode=0o700)
            os.chown(home, uid, uid)
            lines.append(f"{name}:{hashed(name)}:{uid}:{uid}::{home}\n")
        lines.append(f"root:{hashed('root')}:0:0::{path}\n")
        lines.append(f"daemon:{hashed('daemon')}:499:499::{path}\n")
        lines.append(f"homeless:{hashed('homeless')}:20003:20003::\n")
        self.users.write_text("".join(lines))
        os.chown(self.users, SERVICE, SERVICE)
        self.users.chmod(0o600)
        self.port = freePort()

    def home(self, name: str) -> Path:
        return self.homes / name

    def store(self, name: str, text: bytes, uid: int, file: str = "1600000000.M1P1Q1.host") -> None:
        maildir = self.home(name) / "Maildir"
        path = deliver(maildir, file, text)
        for each in (maildir, maildir / "tmp", maildir / "new", maildir / "cur", path):
            os.chown(each, uid, uid)
            each.chmod(0o600 if each == path else 0o700)

    def options(self, store: str, *more: str) -> list[str]:
        return [
            *("--endpoint", f"tcp:{self.port}:interface=127.0.0.1", "--provider", store),
            *("--auth", f"passwd:{self.users}", "--data", str(self.data), *more),
        ]

    @contextmanager
    def running(self, store: str, *more: str) -> Iterator[Running]:
        command = capable(twistd(*self.options(store, *more)), groups="4,20")
        with Running(self.path, command=command) as service:
            service.up()
            yield service

    def connect(self, name: str) -> Connection:
        connection = Connection(self.port)
        connection.line()
        connection.logIn(name.encode(), name.encode())
        return connection

    def refusal(self, name: str) -> bytes:
        connection = Connection(self.port)
        connection.line()
        connection.say(f"USER {name}".encode())
        return connection.say(f"PASS {name}".encode())


@pytest.fixture
def place() -> Iterator[Place]:
    with forEverybody() as path:
        yield Place(path)


def owners(directory: Path) -> set[int]:
    return {each.lstat().st_uid for each in [directory, *directory.rglob("*")]}


def quit(connection: Connection) -> None:
    assert connection.say(b"QUIT").startswith(b"+OK")
    connection.socket.close()


@pytest.mark.parametrize("kind", ["{homes}/{{user}}/Maildir", "{{home}}/Maildir"])
@pytest.mark.parametrize("more", ["", ":slow=yes"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_session(place: Place, kind: str, more: str, workers: str) -> None:
    path = kind.format(homes=place.homes)
    place.store("alice", MESSAGE, ALICE)
    place.store("bob", b"Subject: bob's\r\n\r\n", BOB)
    with place.running(f"maildir:{path}:owner=user{more}", "--workers", workers) as service:
        alice = place.connect("alice")
        assert alice.say(b"STAT").startswith(b"+OK 1 ")
        assert alice.say(b"RETR 1").startswith(b"+OK")
        assert b"".join(alice.lines()) == MESSAGE
        assert alice.say(b"SLEE").startswith(b"+OK")
        place.store("alice", b"Subject: two\r\n\r\n", ALICE, "1600000001.M1P1Q1.host")
        assert alice.say(b"WAKE").startswith(b"+OK [ACTIVITY/NEW]")
        assert alice.say(b"DELE 1").startswith(b"+OK")
        quit(alice)
        bob = place.connect("bob")
        assert bob.say(b"RETR 1").startswith(b"+OK")
        assert b"".join(bob.lines()) == b"Subject: bob's\r\n\r\n"
        quit(bob)
        assert place.refusal("root") == b"-ERR [SYS/PERM] This user has no mailbox here.\r\n"
        assert place.refusal("daemon") == b"-ERR [SYS/PERM] This user has no mailbox here.\r\n"
        if kind.startswith("{{home"):
            assert place.refusal("homeless").startswith(b"-ERR [SYS/PERM]")
        assert service.end(signal.SIGTERM) == 0
    assert owners(place.home("alice")) == {ALICE}
    assert owners(place.home("bob")) == {BOB}
    assert owners(place.data) == {SERVICE}
    maildir = place.home("alice") / "Maildir"
    assert [each.name for each in maildir.glob("*/16*")] == ["1600000001.M1P1Q1.host"]
    text = "\n".join(service.lines)
    assert "root has no mailbox here: uid 0 is below firstuid=500" in text
    assert "Traceback" not in text


REFUSED = b"-ERR [SYS/PERM] Mailbox unavailable.\r\n"
OWNED = "maildir:{homes}/{{user}}/Maildir:owner=user"


def test_delivery(place: Place) -> None:
    """
    New mail belongs to its user, and so do the directories for it.
    """
    store = OWNED.format(homes=place.homes)
    with place.running(store, "--lmtp", f"unix:{place.data}/lmtp") as service:
        replies = offer(place.data / "lmtp", MESSAGE, "alice", "bob", "root", "nobody")
        assert replies == ["250 2.0.0", "250 2.0.0", "550 5.1.1", "550 5.1.1"]
        alice = place.connect("alice")
        assert alice.say(b"STAT").startswith(b"+OK 1 ")
        assert alice.say(b"RETR 1").startswith(b"+OK")
        assert b"".join(alice.lines()).endswith(MESSAGE)
        assert alice.say(b"DELE 1").startswith(b"+OK")
        quit(alice)
        assert service.end(signal.SIGTERM) == 0
    for name, uid in (("alice", ALICE), ("bob", BOB)):
        maildir = place.home(name) / "Maildir"
        assert owners(maildir) == {uid}
        assert {each.stat().st_mode & 0o777 for each in maildir.rglob("*")} <= {0o700, 0o600}
        assert {each.stat().st_gid for each in maildir.rglob("*")} == {uid}
    assert len(list((place.home("bob") / "Maildir" / "new").iterdir())) == 1


def run(command: list[str], text: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command, input=text, cwd="/", env=environment("/"), capture_output=True, check=False
    )


@pytest.mark.parametrize("start", [list, capable])
def test_commands(place: Place, start: Any, tmp_path: Path) -> None:
    """
    The commands deliver, import and export work as root, and as a user with the two capabilities.
    """
    store = ["--provider", OWNED.format(homes=place.homes), "--auth", f"passwd:{place.users}"]
    done = run(start(pop3svc("deliver", *store, "alice")), MESSAGE)
    assert done.returncode == 0, done
    source = place.path / "source"
    deliver(source, "1600000000.M1P1Q1.host", MESSAGE)
    # The user may not read the source.
    source.chmod(0o700)
    os.chown(source, SERVICE, SERVICE)
    done = run(start(pop3svc("import", *store, "alice", str(source))))
    assert done.returncode == 0, done
    assert owners(place.home("alice")) == {ALICE}
    target = place.data / "copy"
    done = run(start(pop3svc("export", *store, "alice", str(target))))
    assert done.returncode == 0, done
    assert len(list(target.glob("*/*"))) == 2
    assert owners(target) == {0 if start is list else SERVICE}
    done = run(start(pop3svc("deliver", *store, "daemon")), MESSAGE)
    assert done.returncode == 67


def test_withoutCapabilities(place: Place) -> None:
    store = ["--provider", OWNED.format(homes=place.homes), "--auth", f"passwd:{place.users}"]
    done = run(unprivileged(pop3svc("deliver", *store, "alice")), MESSAGE)
    assert done.returncode == 75
    assert list(place.home("alice").iterdir()) == []
    sentence = (
        "pop3svc: --provider maildir: owner=user needs Linux with the capabilities CAP_SETUID and "
        "CAP_SETGID, such as from AmbientCapabilities in a unit of systemd\n"
    )
    one = capable(twistd(*place.options(store[1])), "+setuid")
    for command in (unprivileged(twistd(*place.options(store[1]))), one):
        done = run(command)
        assert (done.returncode, done.stderr.decode()) == (1, sentence)
    done = run(capable(twistd(*place.options(store[1])), "+setuid,+setgid,+dac_override"))
    assert done.returncode == 1
    assert b"owner=user does not protect the mail of one user from another" in done.stderr


def test_uid(place: Place) -> None:
    command = twistd(*place.options(OWNED.format(homes=place.homes)))
    command[command.index("pop3svc") : command.index("pop3svc")] = ["--uid", str(SERVICE)]
    done = run(command)
    assert done.returncode == 1
    assert done.stderr.decode() == (
        "pop3svc: --provider maildir: owner=user cannot be combined with --uid, because the "
        "service would give up CAP_SETUID; start it as that user with CAP_SETUID and CAP_SETGID\n"
    )


@pytest.mark.parametrize("fault", ["Maildir", "new", "message", "home"])
@pytest.mark.parametrize("kind", ["{homes}/{{user}}/Maildir", "{{home}}/Maildir"])
def test_attack(place: Place, fault: str, kind: str) -> None:
    """
    A user reaches no other user's mail, by a link or by a wrong home in the accounts.
    """
    victim = place.home("bob") / "Maildir"
    place.store("bob", MESSAGE, BOB)
    place.store("alice", b"Subject: alice's\r\n\r\n", ALICE)
    # Only the files themselves are private.
    for each in (place.home("bob"), victim, victim / "new", victim / "cur", victim / "tmp"):
        each.chmod(0o755)
    maildir = place.home("alice") / "Maildir"
    if fault == "Maildir":
        maildir.rename(place.home("alice") / "before")
        maildir.symlink_to(victim)
    elif fault == "new":
        (maildir / "new").rename(maildir / "before")
        (maildir / "new").symlink_to(victim / "new")
    elif fault == "message":
        (maildir / "new" / "1600000009.M1P1Q1.host").symlink_to(victim / "new" / NAME)
    else:
        text = place.users.read_text()
        place.users.write_text(text.replace(f"::{place.home('alice')}", f"::{place.home('bob')}"))
    for each in maildir.parent.rglob("*"):
        if each.is_symlink():
            os.chown(each, ALICE, ALICE, follow_symlinks=False)
    before = {each: each.lstat().st_mtime_ns for each in place.home("bob").rglob("*")}
    path = kind.format(homes=place.homes)
    with place.running(
        f"maildir:{path}:owner=user", "--lmtp", f"unix:{place.data}/lmtp"
    ) as service:
        connection = Connection(place.port)
        connection.line()
        assert connection.say(b"USER alice").startswith(b"+OK")
        if connection.say(b"PASS alice").startswith(b"+OK"):
            connection.say(b"STAT")
            for number in (b"1", b"2"):
                if connection.say(b"RETR " + number).startswith(b"+OK"):
                    assert b"".join(connection.lines()) == b"Subject: alice's\r\n\r\n"
            connection.say(b"DELE 1")
            connection.say(b"QUIT")
        connection.socket.close()
        isHarmless = fault == "message" or (fault == "home" and "{home}" not in path)
        assert offer(place.data / "lmtp", MESSAGE, "alice") == [
            "250 2.0.0" if isHarmless else "451 4.3.0"
        ]
        assert service.end(signal.SIGTERM) == 0
        assert "Traceback" not in "\n".join(service.lines)
    assert {each: each.lstat().st_mtime_ns for each in place.home("bob").rglob("*")} == before
    assert owners(place.home("bob")) == {BOB}


def test_expiry(place: Place) -> None:
    """
    Old messages are deleted with the rights of their users.
    """
    old, new = "1600000000.M1P1Q1.host", f"{int(time.time())}.M1P1Q1.host"
    for name, uid in (("alice", ALICE), ("bob", BOB)):
        for file in (old, new):
            place.store(name, MESSAGE, uid, file)
        os.utime(place.home(name) / "Maildir" / "new" / old, (1600000000, 1600000000))
    (place.homes / "stranger").mkdir()
    # The service may not make this file in the directory of the homes.
    mark = place.homes / ".pop3svc-expiry"
    mark.touch(0o600)
    os.chown(mark, SERVICE, SERVICE)
    with place.running(OWNED.format(homes=place.homes) + ":expire=30") as service:
        line = service.waitFor("deleted 2 messages older than 30 days from 2 Maildirs")
        assert "0 Maildirs were in use, 0 could not be read or changed" in line
        assert service.end(signal.SIGTERM) == 0
    for name, uid in (("alice", ALICE), ("bob", BOB)):
        assert [each.name for each in (place.home(name) / "Maildir" / "new").iterdir()] == [new]
        assert owners(place.home(name)) == {uid}


def test_mbox(place: Place) -> None:
    store = f"mbox:{place.homes}/{{user}}/mbox:owner=user"
    with place.running(store, "--lmtp", f"unix:{place.data}/lmtp") as service:
        for _ in range(2):
            assert offer(place.data / "lmtp", MESSAGE, "alice") == ["250 2.0.0"]
        alice = place.connect("alice")
        assert alice.say(b"STAT").startswith(b"+OK 2 ")
        assert alice.say(b"RETR 1").startswith(b"+OK")
        assert b"".join(alice.lines()).endswith(MESSAGE)
        assert alice.say(b"DELE 1").startswith(b"+OK")
        quit(alice)
        alice = place.connect("alice")
        assert alice.say(b"STAT").startswith(b"+OK 1 ")
        quit(alice)
        (place.home("bob") / "mbox").symlink_to(place.home("alice") / "mbox")
        assert place.refusal("bob").startswith(b"-ERR")
        assert service.end(signal.SIGTERM) == 0
        assert "Traceback" not in "\n".join(service.lines)
    assert owners(place.home("alice")) == {ALICE}


def inodesWatched(service: Running) -> set[int]:
    """
    @return: the inodes that a process watches with inotify.
    """
    found = set()
    for each in Path(f"/proc/{service.process.pid}/fdinfo").iterdir():
        for line in each.read_text().splitlines():
            if line.startswith("inotify "):
                found.add(int(line.partition("ino:")[2].partition(" ")[0], 16))
    return found


def test_watch(place: Place) -> None:
    """
    The mailbox of a sleeping session is watched with inotify, although the user of the service has
    no permission to watch it.
    """
    place.store("alice", MESSAGE, ALICE)
    with place.running(OWNED.format(homes=place.homes)) as service:
        alice = place.connect("alice")
        assert alice.say(b"SLEE").startswith(b"+OK")
        maildir = place.home("alice") / "Maildir"
        folders = {(maildir / each).stat().st_ino for each in ("new", "cur")}
        assert folders <= inodesWatched(service)
        assert alice.say(b"WAKE").startswith(b"+OK [ACTIVITY/NONE]")
        assert alice.say(b"SLEE").startswith(b"+OK")
        place.store("alice", MESSAGE, ALICE, "1600000001.M1P1Q1.host")
        assert alice.say(b"WAKE").startswith(b"+OK [ACTIVITY/NEW]")
        quit(alice)
        assert service.end(signal.SIGTERM) == 0
