"""
C{pop3svc deliver}: every message is stored or the exit status tells why.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.running import PATIENCE, environment, script

MESSAGE = b"Subject: one\n\nfirst\n"
NAMES = ("RECIPIENT", "LOCAL_PART", "DOMAIN", "USER", "LOGNAME")


class Site:
    """
    A configuration, and its mail.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.mail = home / "mail"
        self.mail.mkdir()
        (home / "users").write_text(
            "alice:{PLAIN}x\nbob@x.test:{PLAIN}x\nalice+own:{PLAIN}x\nbad:nonsense\n"
        )
        self.config = home / "pop3svc.toml"
        self.config.write_text(
            'local-domain = ["home.test"]\n[limits]\nmaxMessageSize = 65536\n'
            f'[[store]]\nkind = "maildir"\npath = "{self.mail}"\nauth = ["passwd:{home}/users"]\n'
        )

    def deliver(
        self, *arguments: str, message: bytes = MESSAGE, **names: str
    ) -> subprocess.CompletedProcess[bytes]:
        clean = {key: value for key, value in environment(self.home).items() if key not in NAMES}
        return subprocess.run(
            [script("pop3svc"), "deliver", *arguments],
            input=message,
            capture_output=True,
            env=clean | names,
            cwd=self.home,
            check=False,
            timeout=PATIENCE,
        )

    def configured(
        self, *arguments: str, message: bytes = MESSAGE, **names: str
    ) -> subprocess.CompletedProcess[bytes]:
        return self.deliver("--config", str(self.config), *arguments, message=message, **names)

    def contents(self, user: str) -> list[bytes]:
        folder = self.mail / user / "new"
        return [each.read_bytes() for each in folder.iterdir()] if folder.is_dir() else []


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    yield Site(tmp_path)


def test_stored(site: Site) -> None:
    done = site.configured("alice+work@HOME.test", message=b"From s  Thu Jan 1\r\n" + MESSAGE)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert site.contents("alice") == [MESSAGE]
    done = site.configured("--return-path", "", "--delivered-to", "bob@x.test", message=b"")
    assert done.returncode == 0
    assert site.contents("bob@x.test") == [b"Return-Path: <>\nDelivered-To: bob@x.test\n"]
    # A user with the whole name comes before a user with the name without its extension.
    assert site.configured("alice+own", message=b">From x\nFrom y").returncode == 0
    assert site.contents("alice+own") == [b"From y\n"]


@pytest.mark.parametrize(
    "names",
    [
        {"RECIPIENT": "alice@home.test", "LOCAL_PART": "bob", "DOMAIN": "x.test", "USER": "root"},
        {"LOCAL_PART": "alice", "DOMAIN": "home.test", "USER": "root"},
        {"LOCAL_PART": "alice", "USER": "root"},
        {"USER": "alice", "LOGNAME": "root"},
        {"LOGNAME": "alice"},
    ],
)
def test_environment(site: Site, names: dict[str, str]) -> None:
    assert site.configured(**names).returncode == 0
    assert site.contents("alice") == [MESSAGE]


@pytest.mark.parametrize(
    "name",
    ["", "carol", "%(recipient)", "../alice", "bad", "a\nb", "x" * 600, "bob", "alice@y.test"],
)
def test_noSuchUser(site: Site, name: str) -> None:
    done = site.configured(name)
    assert (done.returncode, done.stderr) == (67, b"5.1.1 There is no such user.\n")
    assert os.listdir(site.mail) == []


def test_help(site: Site) -> None:
    """
    Without a message --help prints the help, even without a terminal.  With a message it is an
    error, so that a message for the user "--help" is not lost.
    """
    done = site.deliver("--help", message=b"")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"usage: pop3svc deliver ")
    done = site.deliver("--help", message=MESSAGE)
    assert done.returncode == 75 and done.stderr.startswith(b"4.3.5 ")


@pytest.mark.parametrize(
    ("arguments", "message", "status", "says"),
    [
        ((), b"Received: x\n" * 101 + b"\n", 77, "5.4.6 The message has passed too many"),
        (
            ("--delivered-to",),
            b"Delivered-To: alice\n\n",
            77,
            "5.4.6 The message was already delivered",
        ),
        ((), b"x" * 65_537, 65, "5.3.4 The message is too large."),
        (("--return-path", "a\nb"), b"", 65, "5.6.0 The address of the sender"),
        (("--nonsense",), b"", 75, "4.3.5 The configuration cannot be used."),
        (("--auth", "passwd:/no/such/file"), b"", 75, "4.3.5 The configuration cannot be used."),
        (("--config", "/no/such/file"), b"", 75, "4.3.5 The configuration cannot be used."),
        (("--provider", "no.such"), b"", 75, "4.3.5 The configuration cannot be used."),
        (("--provider", "maildir:/no/such:x=y", "--auth", "passwd:users"), b"", 75, "4.3.5 "),
        (("--provider", "maildir:.:readonly=yes", "--auth", "passwd:users"), b"", 75, "4.3.0 "),
        (("bob", "alice"), b"", 75, "4.3.5 The configuration cannot be used."),
    ],
)
def test_refused(
    site: Site, arguments: tuple[str, ...], message: bytes, status: int, says: str
) -> None:
    """
    The error is one sentence without a path.  A mail server returns the message to its sender only
    if the status says that the message will never be accepted.
    """
    done = site.configured(*arguments, "alice", message=message)
    assert done.returncode == status, done
    text = done.stderr.decode()
    assert text.startswith(says) and text.count("\n") == 1 and "/" not in text
    assert done.stdout == b"" and os.listdir(site.mail) == []


def test_quota(site: Site) -> None:
    assert site.configured("alice").returncode == 0
    (site.mail / "alice" / "maildirsize").write_text("1C\n0 1\n")
    done = site.configured("alice")
    assert (done.returncode, done.stderr) == (75, b"4.2.2 The mailbox is full.\n")
    assert len(site.contents("alice")) == 1


def test_theEmbeddedDefault(site: Site) -> None:
    """
    Without a configuration, mail goes to the data directory of the embedded default.
    """
    data = site.home / "data"
    data.mkdir()
    (data / "mail").mkdir()
    (data / "users").write_text("demo:{PLAIN}x\n")
    assert site.deliver("--data", str(data), "demo").returncode == 0
    [path] = (data / "mail" / "demo" / "new").iterdir()
    assert path.read_bytes() == MESSAGE
    assert site.deliver("--data", str(site.home / "none"), "demo").returncode == 75


def test_otherProviders(site: Site) -> None:
    """
    The operator's own provider works, in threads or without.  If it has a fault, the mail server
    does not return the message.
    """
    (site.home / "mine.py").write_text(
        "from pop3svc.providers.memory import MemoryStore\n"
        "from pop3svc.threads import InThreads\n"
        "class Store(MemoryStore):\n"
        "    def hasMailbox(self, name):\n"
        "        return name == 'alice'\n"
        "    def deliver(self, copies, content):\n"
        "        print(content.seek(0) or content.read())\n"
        "        return super().deliver(copies, content)\n"
        "class Broken(Store):\n"
        "    def hasMailbox(self, name):\n"
        "        raise RuntimeError('secret')\n"
        "def threaded():\n"
        "    return InThreads(Store())\n"
    )
    path = {"PYTHONPATH": environment(site.home)["PYTHONPATH"] + os.pathsep + str(site.home)}
    for kind in ("Store", "threaded"):
        arguments = ["--provider", f"mine.{kind}", "--auth", "memory:alice:x"]
        done = site.deliver(*arguments, "alice", **path)
        assert done.returncode == 0 and b"Subject: one" in done.stdout, done
        assert site.deliver(*arguments, "bob", **path).returncode == 67
    done = site.deliver("--provider", "mine.Broken", "--auth", "memory:alice:x", "alice", **path)
    assert (done.returncode, done.stderr) == (75, b"4.3.0 The service has a fault.\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted(site: Site, number: int) -> None:
    """
    If a delivery is interrupted before the whole message has come, nothing is stored.
    """
    process = subprocess.Popen(
        [script("pop3svc"), "deliver", "--config", str(site.config), "alice"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(site.home),
    )
    assert process.stdin is not None
    process.stdin.write(MESSAGE)
    process.stdin.flush()
    # The command reads the pipe only after it has set the signal handlers.
    end = time.monotonic() + PATIENCE
    while _isUnread(process.stdin.fileno()) and time.monotonic() < end:
        os.sched_yield()
    process.send_signal(number)
    _, error = process.communicate(timeout=PATIENCE)
    assert (process.returncode, error) == (75, b"4.3.0 The delivery was interrupted.\n")
    assert os.listdir(site.mail) == []


def _isUnread(descriptor: int) -> bool:
    import array
    import fcntl
    import termios

    count = array.array("i", [0])
    fcntl.ioctl(descriptor, termios.FIONREAD, count)
    return count[0] > 0
