"""
A real service that receives mail by LMTP, with and without workers.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.running import PATIENCE, Running, freePort, script
from tests.support.site import run


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "mail").mkdir()
    (tmp_path / "users").write_text("alice:{PLAIN}secret\nbob@x.test:{PLAIN}secret\n")
    os.chmod(tmp_path / "users", 0o600)
    yield tmp_path


def options(home: Path, *more: str) -> list[str]:
    return [
        *("--endpoint", f"tcp:{freePort()}:interface=127.0.0.1", "--data", str(home / "data")),
        *("--provider", f"maildir:{home}/mail", "--auth", f"passwd:{home}/users"),
        *("--lmtp", f"unix:{home}/lmtp", "--local-domain", "home.test", *more),
    ]


def contents(home: Path, user: str) -> list[bytes]:
    return [each.read_bytes() for each in (home / "mail" / user / "new").iterdir()]


class Client:
    """
    A client of an LMTP socket.
    """

    def __init__(self, address: Path | tuple[str, int]) -> None:
        if isinstance(address, tuple):
            self.socket = socket.create_connection(address, PATIENCE)
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(PATIENCE)
            self.socket.connect(str(address))
        self._lines = self.socket.makefile("rb")
        assert self.reply().startswith("220 ")

    def reply(self) -> str:
        line = self._lines.readline()
        while line[3:4] == b"-":
            line = self._lines.readline()
        return line.decode().rstrip("\r\n")

    def say(self, text: str | bytes) -> str:
        """
        @return: the reply to the last command.
        """
        self.socket.sendall(text if isinstance(text, bytes) else text.encode())
        return self.reply()

    def begin(self, *recipients: str) -> list[str]:
        """
        @return: the replies for the recipients.
        """
        assert self.say("LHLO mta.test\r\n").startswith("250 ")
        assert self.say("MAIL FROM:<s@y.test>\r\n").startswith("250 ")
        replies = [self.say(f"RCPT TO:<{each}>\r\n") for each in recipients]
        assert self.say("DATA\r\n").startswith("354 ")
        return replies

    def end(
        self, message: bytes = b"Subject: one\r\n\r\n..first\r\n", copies: int = 1
    ) -> list[str]:
        """
        @return: the reply for each recipient.
        """
        self.socket.sendall(message + b".\r\n")
        return [self.reply()[:9] for _ in range(copies)]

    def close(self) -> None:
        self._lines.close()
        self.socket.close()


def send(address: Path | tuple[str, int], *recipients: str) -> None:
    """
    Send a message that all recipients take.
    """
    client = Client(address)
    client.begin(*recipients)
    assert client.end(copies=len(recipients)) == ["250 2.0.0"] * len(recipients)
    client.close()


def test_oneProcess(home: Path) -> None:
    port = freePort()
    more = ["--lmtp", f"tcp:{port}:interface=127.0.0.1", "--lmtp-mode", "660"]
    with Running(home, *options(home, *more)) as running:
        running.up()
        assert stat.S_IMODE((home / "lmtp").stat().st_mode) == 0o660
        client = Client(home / "lmtp")
        replies = client.begin("alice+work@home.test", "carol@home.test", "bob@x.test")
        assert replies[1] == "550 5.1.1 There is no such user."
        assert client.end(copies=2) == ["250 2.0.0", "250 2.0.0"]
        for user, recipient in (("alice", "alice+work@home.test"), ("bob@x.test", "bob@x.test")):
            [content] = contents(home, user)
            assert content.startswith(
                f"Return-Path: <s@y.test>\nDelivered-To: {recipient}\nReceived: from ".encode()
            )
            assert content.endswith(b"\nSubject: one\n\n.first\n")
        client = Client(("127.0.0.1", port))
        client.begin("alice@home.test")
        assert client.end((b"x" * 998 + b"\r\n") * 300) == ["250 2.0.0"]
        client.close()
        assert len(contents(home, "alice")) == 2
        assert running.end(signal.SIGTERM) == 0
    assert not (home / "lmtp").exists() and not (home / "lmtp.lock").is_symlink()


def test_stop(home: Path) -> None:
    """
    If the service stops before a whole message has arrived, the message is not stored.
    """
    with Running(home, *options(home)) as running:
        running.up()
        client = Client(home / "lmtp")
        client.begin("alice@home.test")
        client.socket.sendall(b"Subject: half\r\n")
        running.process.send_signal(signal.SIGTERM)
        assert client.reply().startswith("421 4.3.2 ")
        client.close()
        assert running.end() == 0
    assert not (home / "mail" / "alice").exists()


def test_workers(home: Path) -> None:
    """
    Workers share the socket.  Its mode stays, and the socket is removed when the service ends.
    """
    mode = ["--workers", "2", "--lmtp-mode", "600"]
    with Running(home, *options(home, *mode)) as running:
        running.up()
        pids = []
        for _ in range(2):
            pids.append(int(running.waitFor("serves").partition("(process ")[2].split(")")[0]))
        for _ in range(5):
            send(home / "lmtp", "alice@home.test")
        assert len(contents(home, "alice")) == 5
        # A worker that dies, or ends in order, leaves the socket to the others.
        for number in (signal.SIGKILL, signal.SIGTERM):
            os.kill(pids.pop(), number)
            running.waitFor("serves")
            send(home / "lmtp", "alice@home.test")
        assert stat.S_IMODE((home / "lmtp").stat().st_mode) == 0o600
        assert running.end(signal.SIGTERM) == 0
    assert len(contents(home, "alice")) == 7
    assert not (home / "lmtp").exists()


def test_staleSocket(home: Path) -> None:
    """
    A service that was killed leaves its socket, and the next one replaces it.
    """
    for number in (signal.SIGKILL, signal.SIGTERM):
        with Running(home, *options(home)) as running:
            running.up()
            send(home / "lmtp", "alice@home.test")
            running.end(number)
    assert len(contents(home, "alice")) == 2


def test_staleLock(home: Path) -> None:
    """
    The lock of a killed service counts no more, even if another process has its number.
    """
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(home / "lmtp"))
    (home / "lmtp.lock").symlink_to(str(os.getpid()))
    with Running(home, *options(home)) as running:
        running.up()
        send(home / "lmtp", "alice@home.test")
        # A second service cannot take the socket of a service that runs.
        ended = run([script("twistd"), "-n", "--pidfile=", "pop3svc", *options(home)], home)
        assert ended.returncode == 1 and "Cannot acquire lock" in ended.stderr, ended
        running.end(signal.SIGTERM)
    assert len(contents(home, "alice")) == 1


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--lmtp", "tcp:25"], "--lmtp tcp:25: LMTP must not use port 25"),
        (["--lmtp", "x"], "--lmtp x: Unknown endpoint type"),
        (["--lmtp", "unix:/no/such/directory/x"], "--lmtp unix:/no/such/directory/x: "),
        (["--lmtp-mode", "999"], "--lmtp-mode 999: must be an octal mode"),
    ],
)
def test_refused(home: Path, more: list[str], says: str) -> None:
    ended = run([script("twistd"), "-n", "--pidfile=", "pop3svc", *options(home, *more)], home)
    assert ended.returncode == 1 and ended.stderr.startswith(f"pop3svc: {says}"), ended
    assert ended.stderr.count("\n") == 1


def test_readOnly(home: Path) -> None:
    more = ["--provider", f"maildir:{home}/mail:readonly=yes"]
    ended = run([script("twistd"), "-n", "--pidfile=", "pop3svc", *options(home, *more)], home)
    assert ended.returncode == 1 and "--lmtp: no store takes mail" in ended.stderr, ended


def test_manyConnections(home: Path) -> None:
    with Running(home, *options(home, "--set", "maxLMTPConnections=2")) as running:
        running.up()
        held = []
        for _ in range(3):
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(60)
            client.connect(str(home / "lmtp"))
            held.append(client)
            assert client.recv(3) == (b"421" if len(held) == 3 else b"220")
        for each in held:
            each.close()
