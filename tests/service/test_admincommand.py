"""
The commands that ask a running service, with a real service.
"""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from pop3svc.service.admincommand import main
from tests.support.running import Connection, Running, environment, forEverybody, freePort
from tests.support.site import options, site  # noqa: F401
from tests.support.workers import Site, begun


class Service:
    """
    A running service, and the commands that ask it.
    """

    def __init__(self, running: Running, home: Path, port: int, where: list[str]) -> None:
        self.running = running
        self.home = home
        self.port = port
        self.where = where

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """
        Run a command in this process, because each start of Python takes as long as ten commands.
        """
        command = [*arguments, *self.where]
        status, output, errors = 0, io.StringIO(), io.StringIO()
        with redirect_stdout(output), redirect_stderr(errors):
            try:
                main(command)
            except SystemExit as ended:
                # Python gives a process this status, and prints this text.
                status = ended.code if isinstance(ended.code, int) else 1
                if isinstance(ended.code, str):
                    print(ended.code, file=errors)
        return subprocess.CompletedProcess(command, status, output.getvalue(), errors.getvalue())

    def runAlone(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """
        Run a command in a process of its own.
        """
        return subprocess.run(
            [sys.executable, "-P", "-m", "pop3svc", *arguments, *self.where],
            env=environment(self.home),
            capture_output=True,
            text=True,
            timeout=60,
        )

    def up(self) -> Service:
        """
        Wait until the socket is open.
        """
        self.running.up()
        # A greeting shows that the reactor runs, and then the admin socket is open.
        connection = Connection(self.port)
        assert connection.line().startswith(b"+OK")
        connection.socket.close()
        return self

    def say(self, *arguments: str) -> str:
        """
        @return: the output of a command that succeeds.
        """
        done = self.run(*arguments)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    def ask(self, *arguments: str) -> Any:
        """
        @return: the answer as JSON.
        """
        return json.loads(self.say(*arguments, "--json"))

    def refuses(self, *arguments: str) -> str:
        """
        @return: the sentence of a command that fails.
        """
        done = self.run(*arguments)
        assert (done.returncode, done.stdout) == (1, ""), done
        assert done.stderr.count("\n") == 1
        return done.stderr.removeprefix("pop3svc: ").rstrip("\n")

    def logIn(self, name: bytes = b"alice") -> Connection:
        connection = Connection(self.port)
        connection.line()
        connection.logIn(name, b"secret word")
        return connection


@pytest.fixture
def service(site: Path, tmp_path: Path) -> Iterator[Service]:  # noqa: F811
    port, data = freePort(), str(tmp_path / "d")
    listen = ("--endpoint", f"tcp:{port}:interface=127.0.0.1")
    with Running(tmp_path, *options(site, "--data", data, *listen)) as running:
        yield Service(running, tmp_path, port, ["--data", data]).up()


def test_whoAndKick(service: Service) -> None:
    assert service.say("who") == "nobody is connected\n"
    alone = service.runAlone("who")
    assert (alone.returncode, alone.stdout, alone.stderr) == (0, "nobody is connected\n", "")
    client = service.logIn()
    bob = service.logIn(b"bob")
    bob.say(b"SLEE")
    first, second = sorted(service.ask("who"), key=lambda each: each["user"])
    assert (first["user"], first["state"], first["address"]) == ("alice", "awake", "127.0.0.1")
    assert (second["user"], second["state"]) == ("bob", "asleep")
    assert [each["user"] for each in service.ask("who", "bob")] == ["bob"]
    heading, line = service.say("who", "alice").splitlines()
    assert heading.split()[:4] == ["SESSION", "USER", "ADDRESS", "TLS"]
    assert line.split()[1:5] == ["alice", "127.0.0.1", "-", "awake"]
    assert service.say("kick", first["session"]) == "ended 1 session\n"
    assert client.line() == b""
    service.running.waitFor("ended by the operator")
    assert service.refuses("kick", "alice") == "there is no session alice"
    alone = service.runAlone("kick", "alice")
    says = "pop3svc: there is no session alice\n"
    assert (alone.returncode, alone.stdout, alone.stderr) == (1, "", says)
    assert service.say("kick", "bob") == "ended 1 session\n"
    # The lock is released.
    service.logIn()


def test_bans(service: Service) -> None:
    assert service.say("ban", "list") == "nobody is banned\n"
    assert service.say("ban", "add", "127.0.0.1") == "banned\n"
    connection = Connection(service.port)
    connection.line()
    connection.say(b"USER alice")
    assert connection.say(b"PASS secret word").startswith(b"-ERR [AUTH]")
    [ban] = service.ask("ban", "list")
    assert (ban["network"], ban["refused"]) == ("127.0.0.1/32", 1)
    assert service.say("ban", "list").splitlines()[1].endswith("the operator")
    assert service.say("ban", "lift", "127.0.0.1") == "lifted\n"
    assert service.say("ban", "lift", "127.0.0.1") == "there was nothing to lift\n"
    service.logIn()
    assert service.refuses("ban", "add", "nowhere") == "nowhere is not an IP address"


def test_statusAndReload(service: Service) -> None:
    status = service.ask("status")
    assert status["pid"] == service.running.process.pid
    assert status["sessions"] == {"login": 0, "awake": 0, "asleep": 0}
    assert status["certificates"][0]["end"] > 1.7e9
    lines = service.say("status").splitlines()
    assert lines[0].startswith("serving for ")
    assert any(line.endswith(" days left") for line in lines)
    assert service.say("reload") == "reloaded\n"
    service.running.waitFor("reloaded by pop3svc reload")


def test_drain(service: Service) -> None:
    """
    The service ends by itself when the last session is over.
    """
    client = service.logIn()
    service.say("drain")
    other = Connection(service.port)
    other.line()
    other.say(b"USER bob")
    assert other.say(b"PASS secret word").startswith(b"-ERR [SYS/TEMP]")
    assert service.ask("status")["isDraining"] is True
    assert client.say(b"NOOP").startswith(b"+OK")
    assert client.say(b"QUIT").startswith(b"+OK")
    assert service.running.end() == 0
    assert service.refuses("who").startswith("no service runs with the admin socket ")


class Tracing:
    """
    The command C{pop3svc trace}.
    """

    def __init__(self, service: Service, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "pop3svc", "trace", *arguments, *service.where],
            env=environment(service.home),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def waitFor(self, text: str) -> list[str]:
        """
        @return: the lines up to the one with C{text}.
        """
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line.rstrip("\n"))
            if text in line:
                return lines
        raise AssertionError(lines)

    def end(self) -> str:
        """
        Press Ctrl-C.

        @return: the rest of the output.
        """
        self.process.send_signal(signal.SIGINT)
        output, errors = self.process.communicate(timeout=60)
        assert (self.process.returncode, errors) == (0, "")
        return output


def traced(service: Service, tracing: Tracing, name: bytes = b"alice") -> list[str]:
    """
    Log in until the trace has begun.

    @return: the lines of the trace up to the end of a whole session.
    """
    done: list[str] = []

    def read() -> None:
        for end in ("Password required", "QUIT", "has ended"):
            done.extend(tracing.waitFor(end))

    reader = threading.Thread(target=read)
    reader.start()
    while reader.is_alive():
        connection = service.logIn(name)
        connection.say(b"QUIT")
        reader.join(0.1)
    return done


def test_trace(service: Service) -> None:
    tracing = Tracing(service, "alice")
    lines = traced(service, tracing)
    assert "secret" not in "".join(lines)
    number = next(line.split(" ")[1] for line in lines if "C: USER alice" in line)
    said = [line.split(" ", 2)[2] for line in lines if line.split(" ")[1] == number]
    start = said.index("C: USER alice")
    assert said[start + 2] == "C: PASS ****"
    assert said[start + 3].startswith("S: +OK")
    assert said[start + 4] == "C: QUIT"
    assert said[-1] == "* the connection has ended"
    tracing.end()
    tracing = Tracing(service, "127.0.0.1", "--json")
    first = json.loads(traced(service, tracing)[0])
    assert set(first) == {"session", "time", "from", "text"}
    tracing.process.kill()
    tracing.process.communicate()
    # The traces have ended with their clients.
    for _ in range(6):
        assert service.say("trace", "nobody", "--seconds", "1") == ""
    says = "The argument seconds is a whole number, from 1 to 3600"
    assert service.refuses("trace", "alice", "--seconds", "0") == says


def test_onlyItsUser(service: Service) -> None:
    path = service.home / "d" / "admin.sock"
    assert path.stat().st_mode & 0o777 == 0o600
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    path.parent.chmod(0o755)
    path.chmod(0o666)
    with forEverybody() as link:
        # Only root may enter the directories above the socket, so link it to where anybody may go.
        (link / "d").mkdir()
        os.link(path, link / "d" / "admin.sock")
        (link / "d").chmod(0o755)
        child = os.fork()
        if not child:
            os.setuid(65534)
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(10)
            try:
                client.connect(str(link / "d" / "admin.sock"))
                client.sendall(b'{"do": "who"}\n')
                os._exit(0 if client.recv(100) == b"" else 1)
            except ConnectionError:
                os._exit(0)
            except BaseException:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
    assert service.say("who") == "nobody is connected\n"


def test_nothingRuns(tmp_path: Path) -> None:
    nowhere = Service(None, tmp_path, 0, ["--data", str(tmp_path)])  # type: ignore[arg-type]
    for command in (["who"], ["kick", "x"], ["ban", "list"], ["status"], ["reload"], ["drain"]):
        says = f"no service runs with the admin socket {tmp_path}/admin.sock"
        assert nowhere.refuses(*command) == says
    config = tmp_path / "c.toml"
    config.write_text(f"data = '{tmp_path}/other'\n")
    nowhere.where = ["--config", str(config)]
    assert (
        nowhere.refuses("who")
        == f"no service runs with the admin socket {tmp_path}/other/admin.sock"
    )
    config.write_text(f"admin = '{tmp_path}/x.sock'\n")
    assert nowhere.refuses("who") == f"no service runs with the admin socket {tmp_path}/x.sock"
    config.write_text("workers = 1\n")
    assert nowhere.refuses("who") == f"{config}: has neither admin nor data"


def test_killed(service: Service, site: Path) -> None:  # noqa: F811
    """
    A socket that a killed service has left does not keep the next service from opening its own.
    """
    service.running.end(signal.SIGKILL)
    assert (service.home / "d" / "admin.sock").exists()
    assert not (service.home / "d" / "admin.sock.lock").is_symlink()
    assert service.refuses("who").startswith("no service runs")
    port, data = freePort(), str(service.home / "d")
    listen = ("--endpoint", f"tcp:{port}:interface=127.0.0.1")
    with Running(service.home, *options(site, "--data", data, *listen)) as running:
        again = Service(running, service.home, port, service.where).up()
        assert again.say("who") == "nobody is connected\n"


@pytest.mark.parametrize("kind", ["service", "file"])
def test_takenPath(site: Path, tmp_path: Path, kind: str) -> None:  # noqa: F811
    """
    The socket of another service stays in use, and a file is not removed.
    """
    path = tmp_path / "a"
    with socket.socket(socket.AF_UNIX) as other:
        if kind == "service":
            other.bind(str(path))
            other.listen()
        else:
            path.write_text("notes")
        before = path.stat().st_ino
        port = freePort()
        listen = ("--endpoint", f"tcp:{port}:interface=127.0.0.1", "--admin", str(path))
        with Running(tmp_path, *options(site, *listen)) as running:
            running.up()
            reason = "another service uses it" if kind == "service" else "the file is not a socket"
            running.waitFor(f"cannot open the admin socket {path}: {reason}")
            assert Connection(port).line().startswith(b"+OK")
            assert running.end(signal.SIGTERM) == 0
        assert path.stat().st_ino == before


def test_uselessPath(site: Path, tmp_path: Path) -> None:  # noqa: F811
    """
    If the admin socket cannot be opened, the service serves without it, and the log says why.
    """
    path = tmp_path / ("x" * 120)
    listen = ("--endpoint", f"tcp:{freePort()}:interface=127.0.0.1")
    with Running(tmp_path, *options(site, "--admin", str(path), *listen)) as running:
        running.up()
        running.waitFor(f"cannot open the admin socket {path}: ")


# --- workers --------------------------------------------------------------------------------


@pytest.fixture
def workers(site: Path, tmp_path: Path) -> Iterator[tuple[Site, Service]]:  # noqa: F811
    data = str(tmp_path / "d")
    for each in begun(site, tmp_path, "--data", data):
        yield each, Service(each.running, tmp_path, each.port, ["--data", data])
        if each.running.process.poll() is None:
            # End the service in order, so that the workers release the mailboxes.
            each.end()


def test_workers(workers: tuple[Site, Service]) -> None:
    those, service = workers
    clients = [those.connectTo(number) for number in (1, 2)]
    for client, name in zip(clients, (b"alice", b"bob"), strict=True):
        client.logIn(name, b"secret word")
    sessions = {each["user"]: each["session"] for each in service.ask("who") if each["user"]}
    assert sessions["alice"].startswith("1.")
    assert sessions["bob"].startswith("2.")
    status = service.ask("status")
    assert {each["pid"] for each in status["workers"]} == set(those.pids.values())
    assert status["sessions"]["awake"] == 2
    service.say("ban", "add", "127.0.0.1")
    for number in (1, 2):
        refused = those.connectTo(number)
        refused.say(b"USER alice")
        assert refused.say(b"PASS secret word").startswith(b"-ERR [AUTH]")
    assert service.say("ban", "lift", "127.0.0.1") == "lifted\n"
    service.say("kick", sessions["bob"])
    assert clients[1].line() == b""
    assert clients[0].say(b"NOOP").startswith(b"+OK")
    assert service.say("reload") == "reloaded\n"
    os.kill(those.pids[2], signal.SIGSTOP)
    try:
        assert service.refuses("who") == f"worker 2 (process {those.pids[2]}): no answer in time"
        assert "worker 2: " in service.say("status")
    finally:
        os.kill(those.pids[2], signal.SIGCONT)


def test_traceWorkers(workers: tuple[Site, Service]) -> None:
    """
    Sessions in all workers are traced.  The workers end a trace whose client has ended.
    """
    those, service = workers
    tracing = Tracing(service, "127.0.0.1", "--json")
    lines = [json.loads(each) for each in traced(service, tracing)]
    assert lines[0]["session"].partition(".")[0] in ("1", "2")
    tracing.end()
    # The trace lasts longer than a worker may take for the next line of an answer.
    tracing = Tracing(service, "127.0.0.1", "--json", "--seconds", "7")
    traced(service, tracing)
    for number in (1, 2):
        client = those.connectTo(number)
        client.say(b"CAPA")
        client.lines()
    output, errors = tracing.process.communicate(timeout=60)
    assert (tracing.process.returncode, errors) == (0, "")
    found = [json.loads(each) for each in output.splitlines()]
    seen = {each["session"].partition(".")[0] for each in found if each["text"] == "CAPA"}
    assert seen == {"1", "2"}
    for _ in range(5):
        assert service.say("trace", "nobody", "--seconds", "1") == ""


def test_drainWorkers(workers: tuple[Site, Service]) -> None:
    those, service = workers
    client = those.connectTo(1)
    client.logIn(b"alice", b"secret word")
    service.say("drain")
    those.running.waitFor("worker 2] drained: 0 sessions are left")
    assert client.say(b"NOOP").startswith(b"+OK")
    assert client.say(b"QUIT").startswith(b"+OK")
    for each in those.open:
        each.socket.close()
    assert those.running.end() == 0
