"""
The port for HTTP of a real service: metrics, health, and clients that do harm.
"""

from __future__ import annotations

import json
import signal
import socket
import ssl
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pop3svc.service.options import Options
from pop3svc.service.settings import SettingError
from pop3svc.service.webport import checkPlace
from tests.support.running import Connection, Running, freePort


class Web:
    """
    A running service with a port for HTTP.
    """

    def __init__(self, running: Running, port: int, web: int) -> None:
        self.running = running
        self.port = port
        self.web = web

    def connect(self) -> Connection:
        connection = Connection(self.port)
        connection.line()
        return connection

    def get(self, path: str, method: str = "GET", **options: Any) -> tuple[int, str]:
        """
        @return: the status and the body.
        """
        url = f"http://127.0.0.1:{self.web}{path}"
        request = urllib.request.Request(url, method=method, **options)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode("utf-8")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode("utf-8")

    def events(self, client: Connection) -> set[str]:
        """
        @return: the events that the page shows while a client sleeps and wakes up.
        """
        words = {"fell asleep": "sleep", "woke up": "wake"}
        found: set[str] = set()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.web}/events", timeout=60) as stream:
            end = time.monotonic() + 60
            while found != set(words.values()) and time.monotonic() < end:
                # The workers begin to tell a moment after the stream has begun.
                for command in (b"SLEE", b"WAKE"):
                    assert client.say(command).startswith(b"+OK")
                while line := stream.readline().strip():
                    found |= {word for text, word in words.items() if text.encode() in line}
        return found

    def metrics(self) -> dict[tuple[str, ...], float]:
        """
        @return: the numbers by the names of samples and the values of their labels.
        """
        status, text = self.get("/metrics")
        assert status == 200
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def until(self, *name: str, value: float) -> dict[tuple[str, ...], float]:
        """
        Ask until a number has a value, because numbers are collected once a second.
        """
        end = time.monotonic() + 60
        while time.monotonic() < end:
            found = self.metrics()
            if found.get(name) == value:
                return found
        raise AssertionError(f"{name} is {found.get(name)} and not {value}")


def begun(home: Path, *more: str) -> Iterator[Web]:
    port, web = freePort(), freePort()
    options = (
        *("--provider", "memory:", "--auth", "memory:alice:secret:bob:secret"),
        *("--endpoint", f"tcp:{port}:interface=127.0.0.1", "--data", str(home / "data")),
        *("--web", f"tcp:{web}:interface=127.0.0.1"),
    )
    with Running(home, *options, *more) as running:
        running.up()
        yield Web(running, port, web)


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Web]:
    yield from begun(tmp_path / "home")


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Web]:
    yield from begun(tmp_path / "home", "--workers", "2")


def test_oneProcess(one: Web) -> None:
    client = one.connect()
    client.logIn(b"alice", b"secret")
    assert client.say(b"RETR 1").startswith(b"+OK")
    client.lines()
    assert client.say(b"QUIT").startswith(b"+OK")
    guess = one.connect()
    guess.say(b"USER alice")
    assert guess.say(b"PASS wrong").startswith(b"-ERR")
    found = one.until("pop3svc_logins_total", "PASS", "refused", value=1)
    assert found["pop3svc_logins_total", "PASS", "ok"] == 1
    assert found["pop3svc_messages_sent_total",] == 1
    assert found["pop3svc_sessions", "login"] == 1
    assert found["pop3svc_command_seconds_count", "RETR"] == 1
    assert found["pop3svc_open_file_descriptors",] > 5
    assert found["pop3svc_workers",] == 1
    assert one.get("/healthz") == (200, "ok\n")
    assert one.get("/readyz") == (200, "ready\n")
    assert one.get("/metrics", "HEAD") == (200, "")
    assert one.get("/metrics", "POST", data=b"x=y")[0] == 405
    assert one.get("/etc/passwd")[0] == 404
    assert one.get("/")[0] == one.get("/playground")[0] == 200
    assert one.get("/", headers={"Host": "attacker.example"})[0] == 421
    assert "alice" not in one.get("/metrics")[1]


def test_draining(one: Web) -> None:
    client = one.connect()
    client.logIn(b"alice", b"secret")
    with socket.socket(socket.AF_UNIX) as admin:
        admin.connect(str(one.running.home / "data" / "admin.sock"))
        admin.sendall(json.dumps({"do": "drain"}).encode("ascii") + b"\n")
        assert b"result" in admin.recv(4096)
    assert one.get("/readyz") == (503, "not ready: draining\n")
    assert one.get("/healthz")[0] == 200
    assert client.say(b"NOOP").startswith(b"+OK")


def test_workers(two: Web) -> None:
    for _ in range(2):
        two.running.waitFor(" serves")
    assert two.get("/healthz") == (200, "ok\n")
    clients = [two.connect() for _ in range(4)]
    for number, each in enumerate(clients):
        each.say(b"USER alice" if number % 2 else b"USER bob")
        each.say(b"PASS secret")
    found = two.until("pop3svc_connections_total", value=4)
    assert found["pop3svc_workers",] == 2
    assert found["pop3svc_info", next(iter(k[1] for k in found if k[0] == "pop3svc_info"))] == 2
    logins = sum(value for key, value in found.items() if key[0] == "pop3svc_logins_total")
    assert logins == 4
    # The page is about all workers.
    end = time.monotonic() + 60
    while True:
        status, page = two.get("/")
        assert status == 200
        if page.count('href="kick?') == 4 or time.monotonic() > end:
            break
    assert page.count('href="kick?') == 4 and page.count('<tr id="worker-') == 2
    assert two.get("/playground")[0] == 404 and "playground" not in page
    said = "--web has no playground, because it cannot be combined with --workers"
    assert [line for line in two.running.lines if line.endswith(said)]
    assert two.events(clients[0]) == {"sleep", "wake"}
    # Counters survive the workers.
    two.running.process.send_signal(signal.SIGHUP)
    for each in clients:
        each.socket.close()
    for _ in range(2):
        two.running.waitFor("has ended after its last session")
    found = two.until("pop3svc_sessions", "awake", value=0)
    assert found["pop3svc_connections_total",] == 4
    assert found["pop3svc_command_seconds_count", "USER"] == 4
    assert found["pop3svc_worker_restarts_total",] == 0
    assert two.get("/readyz") == (200, "ready\n")


def test_clientsThatHang(one: Web) -> None:
    """
    Neither POP3 nor a real scraper waits for clients that connect, send a part of a request, or do
    not read the answer.
    """
    client = one.connect()
    client.logIn(b"alice", b"secret")
    hanging = []
    slowest = 0.0
    try:
        for number in range(1000):
            each = socket.create_connection(("127.0.0.1", one.web), 60)
            hanging.append(each)
            begin = (
                *(b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"),
                *(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n", b"POST /kick HTTP/1.1\r\n"),
            )[number % 5]
            if begin:
                try:
                    each.sendall(begin)
                except ConnectionError:
                    # Later connections have taken its place.
                    pass
            if number % 20 == 0:
                began = time.monotonic()
                assert client.say(b"NOOP").startswith(b"+OK")
                slowest = max(slowest, time.monotonic() - began)
        assert one.get("/metrics")[0] == 200
        assert one.get("/healthz")[0] == one.get("/")[0] == 200
    finally:
        for each in hanging:
            each.close()
    # The service needs some milliseconds; the limit allows for a busy machine.
    assert slowest < 2


PASSWORD = 'web-password = { file = "FILE" }\n'


def test_aPasswordAndTLS(tmp_path: Path) -> None:
    home = tmp_path / "home"
    secret = tmp_path / "secret"
    secret.write_text("sesame open\n")
    secret.chmod(0o600)
    config = tmp_path / "pop3svc.toml"
    config.write_text(PASSWORD.replace("FILE", str(secret)))
    config.chmod(0o600)
    port, web = freePort(), freePort()
    options = (
        *("--provider", "memory:", "--auth", "memory:alice:secret", "--config", str(config)),
        *("--endpoint", f"tcp:{port}:interface=127.0.0.1", "--web", f"ssl:{web}"),
    )
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with Running(home, *options) as running:
        running.up()

        def get(path: str, password: bytes | None = None) -> int:
            request = urllib.request.Request(f"https://127.0.0.1:{web}{path}")
            if password is not None:
                value = b64encode(b"prometheus:" + password).decode("ascii")
                request.add_header("Authorization", f"Basic {value}")
            try:
                with urllib.request.urlopen(request, timeout=60, context=context) as answer:
                    return int(answer.status)
            except urllib.error.HTTPError as error:
                with error:
                    return error.code

        assert get("/metrics", b"sesame open") == 200
        assert get("/metrics", b"sesame") == 401
        assert get("/metrics") == 401
        assert get("/", b"sesame open") == get("/playground", b"sesame open") == 200
        assert get("/") == get("/playground") == get("/events") == 401
        assert get("/healthz") == get("/readyz") == 200
        assert running.end(signal.SIGTERM) == 0
        assert not any("sesame" in line for line in running.lines)


def test_aUNIXSocket(tmp_path: Path) -> None:
    home, path = tmp_path / "home", tmp_path / "web"
    options = ("--provider", "memory:", "--auth", "memory:alice:secret", "--web", f"unix:{path}")
    with Running(home, *options, "--endpoint", f"tcp:{freePort()}:interface=127.0.0.1") as running:
        running.up()
        # Everybody who can open the socket can act as the operator.
        assert path.stat().st_mode & 0o777 == 0o660
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            with client.makefile("rb") as answer:
                assert answer.read().endswith(b"\r\n\r\nok\n")
        assert running.end(signal.SIGTERM) == 0
    assert not path.exists()


@pytest.mark.parametrize(
    ("text", "password", "error"),
    [
        ("tcp:8110:interface=127.0.0.1", "", None),
        ("tcp:8110:interface=localhost", "", None),
        ("tcp:8110:127.0.0.1", "", None),
        ("tcp6:8110:interface=\\:\\:1", "", None),
        ("ssl:8110:interface=127.0.0.1", "", None),
        ("unix:/run/web", "", None),
        ("tcp:8110", "", "so use ssl: and web-password, or unix:, or interface=127.0.0.1"),
        ("tcp:8110", "sesame", "so use ssl: and web-password"),
        ("tcp:8110:interface=192.0.2.1", "sesame", "so use ssl: and web-password"),
        ("tcp6:8110", "sesame", "so use ssl: and web-password"),
        ("systemd:domain=INET:index=0", "sesame", "so use ssl: and web-password"),
        ("ssl:8110", "", "so set web-password"),
        ("ssl:8110", "sesame", None),
        ("", "", "so use ssl: and web-password"),
    ],
)
def test_places(tmp_path: Path, text: str, password: str, error: str | None) -> None:
    config = tmp_path / "pop3svc.toml"
    config.write_text(f'web-password = "{password}"\n' if password else "")
    options = Options()
    options.parseOptions(["--config", str(config), "--web", text])
    settings = options.settings()
    if error is None:
        checkPlace(settings)
        return
    with pytest.raises(SettingError) as raised:
        checkPlace(settings)
    assert error in str(raised.value) and str(raised.value).startswith(f"--web {text}: ")


@pytest.mark.parametrize("web", ["tcp:8110", "nonsense:1:interface=127.0.0.1", "unix:/no/such/web"])
def test_refusedAtTheStart(tmp_path: Path, web: str) -> None:
    with Running(tmp_path / "home", "--web", web, "--endpoint", f"tcp:{freePort()}") as running:
        assert running.end() == 1
        assert [line for line in running.lines if f"--web {web}: " in line] == running.lines


def test_thePasswordIsNeverShown(tmp_path: Path) -> None:
    config = tmp_path / "pop3svc.toml"
    config.write_text('web-password = "sesame"\n')
    options = Options()
    options.parseOptions(["--config", str(config)])
    assert type(options.settings().webPassword).__name__ == "Secret"
    config.write_text('web-password = ""\n')
    with pytest.raises(SettingError, match="web-password: must not be empty"):
        options.settings()
    with pytest.raises(SystemExit):
        Options().parseOptions(["--web-password", "sesame"])
