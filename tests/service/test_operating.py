"""
What an operator does to a running service: signals, and moving its log away.
"""

from __future__ import annotations

import grp
import gzip
import os
import pwd
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.application.service import Application
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, globalLogPublisher

from pop3svc.accounts.passwordediting import addUser, removeUser
from pop3svc.logs import Log
from pop3svc.service.operating import Operated, Signals, makeLog
from pop3svc.service.privileged import openTo
from tests.support.running import (
    CHECKOUT,
    PATIENCE,
    Connection,
    Running,
    environment,
    forEverybody,
    freePort,
    script,
)
from tests.support.site import options, run, served
from tests.support.workers import begun

# A provider that sends signals to its own process while it is made.  No code of a test can run
# earlier.
HUNG_UP = """
import os, signal
from pop3svc.providers.memory import MemoryProvider
def make():
    for number in (signal.SIGHUP, signal.SIGUSR1):
        os.kill(os.getpid(), number)
    return MemoryProvider({"alice": "secret"}, [b"x: y"])
"""


def where(port: int) -> list[str]:
    return ["--endpoint", f"tcp:{port}:interface=127.0.0.1"]


def greeted(port: int) -> Connection:
    connection = Connection(port)
    assert connection.line().startswith(b"+OK")
    return connection


@pytest.mark.parametrize("way", [[], ["--logfile=-"], ["--logfile=log"], ["--logfile=/dev/stdout"]])
def test_signalsEndNothing(site: Path, tmp_path: Path, way: list[str]) -> None:
    """
    SIGHUP and SIGUSR1 end neither the service nor a session, wherever the log goes.
    """
    port = freePort()
    with Running(tmp_path / "home", *options(site, *where(port)), twistd=tuple(way)) as running:
        if way == ["--logfile=log"]:
            wait(lambda: "reactor class" in text(running.home / "log"))
        else:
            running.up()
        connection = greeted(port)
        connection.logIn(b"bob", b"secret word")
        for number in (signal.SIGUSR1, signal.SIGHUP, signal.SIGUSR1):
            running.process.send_signal(number)
            assert connection.say(b"NOOP").startswith(b"+OK")
        said = "reloaded after SIGHUP: the log, the certificate, the accounts"
        if way == ["--logfile=log"]:
            wait(lambda: said in text(running.home / "log"))
        else:
            running.waitFor(said)
        assert connection.say(b"QUIT").startswith(b"+OK")
        assert running.end(signal.SIGTERM) == 0


def text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def wait(isSo: Callable[[], bool]) -> None:
    """
    Wait until another process has made a condition true.
    """
    deadline = time.monotonic() + PATIENCE
    while not isSo():
        assert time.monotonic() < deadline
        os.sched_yield()


def test_atTheStart(tmp_path: Path) -> None:
    """
    Signals that arrive before the service runs do not end it, and SIGHUP is carried out later.
    """
    home, port = tmp_path / "home", freePort()
    home.mkdir()
    (home / "early.py").write_text(HUNG_UP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(home))
        with Running(home, "--provider", "early.make", *where(port)) as running:
            running.up()
            running.waitFor("reloaded after SIGHUP")
            assert greeted(port).say(b"QUIT").startswith(b"+OK")
            assert running.end(signal.SIGTERM) == 0


def test_reload(site: Path, tmp_path: Path) -> None:
    """
    A reload reads the certificate and the accounts again, and logs again what is still wrong.
    """
    port, secure = freePort(), freePort()
    users, own = tmp_path / "users", tmp_path / "own.pem"
    addUser(str(users), "alice", "secret word")
    good = (site / "cert.pem").read_bytes() + (site / "key.pem").read_bytes()
    own.write_bytes(good)
    with Running(
        tmp_path / "home",
        *("--provider", f"maildir:{site / 'mail'}", "--auth", f"passwd:{users}"),
        *("--certificate", str(own), *where(port)),
        *("--endpoint", f"ssl:{secure}:interface=127.0.0.1"),
    ) as running:
        running.up()
        own.write_bytes(b"nonsense")
        before = served(secure)
        running.waitFor("keeping the previous certificate")
        running.process.send_signal(signal.SIGHUP)
        running.waitFor("keeping the previous certificate")
        running.waitFor("reloaded after SIGHUP")
        assert served(secure) == before
        own.write_bytes(good)
        users.write_text("alice:nonsense\n")
        running.process.send_signal(signal.SIGHUP)
        running.waitFor("unknown kind")
        users.write_text("")
        running.process.send_signal(signal.SIGHUP)
        running.waitFor("reloaded after SIGHUP")
        assert greeted(port).say(b"XLOG alice secret word").startswith(b"-ERR [AUTH]")
        assert running.end(signal.SIGTERM) == 0


def test_workers(site: Path, tmp_path: Path) -> None:
    """
    At SIGHUP the parent replaces the workers.  A signal that a worker gets itself does not end the
    service.
    """
    users = tmp_path / "users"
    addUser(str(users), "carol", "secret word")
    for workers in begun(site, tmp_path / "home", "--auth", f"passwd:{users}"):
        open = [workers.connectTo(number) for number in (1, 2)]
        for number in (signal.SIGHUP, signal.SIGUSR1):
            for pid in [workers.running.process.pid, *workers.pids.values()]:
                os.kill(pid, number)
        workers.running.waitFor("reloaded after SIGHUP")
        assert [each.say(b"NOOP")[:4] for each in open] == [b"-ERR", b"-ERR"]
        removeUser(str(users), "carol")
        users.write_text("nonsense\n")
        workers.running.process.send_signal(signal.SIGHUP)
        # The first signal has replaced workers 1 and 2.
        said = {workers.running.waitFor("no colon").partition("] ")[0][-1] for _ in range(2)}
        assert said == {"5", "6"}
        assert workers.end() == 0


def rotate(home: Path) -> None:
    """
    Run logrotate with the file that is in C{contrib}.
    """
    command = shutil.which("logrotate")
    if command is None:
        if os.environ.get("CI"):
            pytest.fail("logrotate is not installed")
        pytest.skip("logrotate is not installed")
    made = (CHECKOUT / "contrib" / "logrotate" / "pop3svc").read_text()
    owner = f"{pwd.getpwuid(os.getuid()).pw_name} {grp.getgrgid(os.getgid()).gr_name}"
    for old, new in (
        ("/var/log/pop3svc.log", str(home / "log")),
        ("/run/pop3svc.pid", str(home / "pid")),
        ("vmail adm", owner),
    ):
        assert old in made
        made = made.replace(old, new)
    (home / "rotating").write_text(made)
    (home / "rotating").chmod(0o644)
    done = run([command, "--force", "--state", str(home / "state"), str(home / "rotating")], home)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("more", [[], ["--workers", "2"]])
@pytest.mark.parametrize("way", ["logrotate", "create", "copytruncate"])
def test_logrotate(site: Path, tmp_path: Path, way: str, more: list[str]) -> None:
    """
    While logrotate moves the log away, each connection is logged exactly once.
    """
    home, port, log = tmp_path / "home", freePort(), tmp_path / "home" / "log"
    command = [script("twistd"), "--pidfile=pid", "--logfile=log", "pop3svc"]
    ended = run([*command, *options(site, *more, *where(port))], home)
    assert (ended.returncode, ended.stderr) == (0, "")
    pid = int((home / "pid").read_text())
    try:
        for rotation in range(4):
            for _ in range(50):
                assert greeted(port).say(b"QUIT").startswith(b"+OK")
            if way == "copytruncate":
                # Lines that are written between the copy and the truncation are lost, whoever
                # writes them.  Therefore wait until all lines are there.
                wait(lambda: text(log).count("nobody from") == 50)
            moved = home / f"log.{rotation}"
            if way == "logrotate":
                rotate(home)
            elif way == "create":
                log.rename(moved)
                log.touch()
                os.kill(pid, signal.SIGUSR1)
            else:
                moved.write_bytes(log.read_bytes())
                os.truncate(log, 0)
        wait(lambda: everything(home).count("nobody from") >= 200)
    finally:
        os.kill(pid, signal.SIGTERM)
    wait(lambda: "Server Shut Down" in text(log))
    lines = everything(home).splitlines()
    assert sum("nobody from" in line for line in lines) == 200
    for line in lines:
        assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} \[", line), line


@pytest.mark.parametrize("more", [[], ["--workers", "2"]])
def test_linesThatWait(site: Path, tmp_path: Path, more: list[str]) -> None:
    """
    SIGUSR1 and SIGTERM write the lines of the log that would wait for further lines, here for an
    hour.
    """
    home, port, log = tmp_path / "home", freePort(), tmp_path / "home" / "log"
    command = [script("twistd"), "--pidfile=pid", "--logfile=log", "pop3svc"]
    waiting = ["--set", "logDelay=3600000", *more]
    ended = run([*command, *options(site, *waiting, *where(port))], home)
    assert (ended.returncode, ended.stderr) == (0, "")
    pid = int((home / "pid").read_text())
    try:
        assert greeted(port).say(b"QUIT").startswith(b"+OK")

        def isWritten() -> bool:
            os.kill(pid, signal.SIGUSR1)
            return "nobody from" in text(log)

        wait(isWritten)
        assert greeted(port).say(b"QUIT").startswith(b"+OK")
    finally:
        os.kill(pid, signal.SIGTERM)
    wait(lambda: "Server Shut Down" in text(log))
    assert text(log).count("nobody from") == 2


def everything(home: Path) -> str:
    """
    @return: the text of all files of the log.
    """
    packed = home.glob("log*.gz")
    return "".join(
        [gzip.decompress(each.read_bytes()).decode() for each in packed]
        + [text(each) for each in home.glob("log*") if each.suffix != ".gz"]
    )


def test_cannotReopen(site: Path, tmp_path: Path) -> None:
    """
    If the log cannot be opened again, it goes on in the old file, which names the reason.
    """
    place = tmp_path / "place"
    place.mkdir()
    with Running(
        tmp_path / "home", *options(site, *where(freePort())), twistd=(f"--logfile={place}/log",)
    ) as running:
        wait(lambda: "reactor class" in text(place / "log"))
        place.rename(tmp_path / "other")
        running.process.send_signal(signal.SIGUSR1)
        wait(lambda: "cannot reopen the log" in text(tmp_path / "other" / "log"))
        assert running.end(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("twistd", "says"),
    [
        (["-n", "--logfile=/nowhere/x"], "--logfile /nowhere/x: No such file or directory"),
        (["--logfile=/nowhere/x"], "--logfile /nowhere/x: No such file or directory"),
        (["--logfile=-"], "--logfile -: a daemon has no standard output; use -n"),
    ],
)
def test_badLog(site: Path, tmp_path: Path, twistd: list[str], says: str) -> None:
    command = [script("twistd"), *twistd, "--pidfile=", "pop3svc"]
    ended = run([*command, *options(site, *where(freePort()))], tmp_path / "home")
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", f"pop3svc: {says}\n")


def test_nobodyReads(site: Path, tmp_path: Path) -> None:
    """
    If the log goes to a pipe that nobody reads, the service still serves.
    """
    port = freePort()
    home = tmp_path / "home"
    home.mkdir()
    ours, theirs = os.pipe()
    with subprocess.Popen(
        [script("twistd"), "-n", "--pidfile=", "pop3svc", *options(site, *where(port))],
        stdout=theirs,
        cwd=home,
        env=environment(home),
    ) as process:
        os.close(theirs)
        try:
            said = b""
            while b"reactor class" not in said:
                said += os.read(ours, 1000)
            wait(lambda: canConnect(port))
            # A pipe takes 64 KiB.  The lines of these connections have three times as much.
            name = b"x" * 200
            for _ in range(700):
                connection = greeted(port)
                connection.say(b"USER " + name)
                assert connection.say(b"QUIT").startswith(b"+OK")
                connection.socket.close()
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
            os.close(ours)


def canConnect(port: int) -> bool:
    try:
        Connection(port).socket.close()
    except ConnectionRefusedError:
        return False
    return True


def test_warnings(site: Path, tmp_path: Path) -> None:
    """
    At the start the service warns once of each setting or file that works, but is unsafe.
    """
    with forEverybody() as own:
        for name in ("cert.pem", "key.pem", "users"):
            shutil.copy(site / name, own)
            (own / name).chmod(0o644)
        with Running(
            tmp_path / "home",
            *options(site, *where(freePort()), "--workers", "2"),
            *("--auth", f"passwd:{own / 'users'}", "--auth", "memory:carol:secret"),
            *("--certificate", str(own / "cert.pem"), "--private-key", str(own / "key.pem")),
        ) as running:
            running.up()
            for _ in "12":
                running.waitFor("serves")
            assert running.end(signal.SIGTERM) == 0
    log = "\n".join(running.lines)
    said = [
        f"the private key {own}/key.pem can be read by everybody; run chmod 600 on it",
        f"the password file {own}/users can be read by everybody; run chmod 600 on it",
        "--auth memory: shows its passwords to everybody who may list processes",
    ]
    if os.geteuid() == 0:
        said.append("the service runs as root; twistd's --uid names another user")
    for each in said:
        assert log.count(each) == 1, each
    assert log.count("#warn]") == len(said), log
    assert "carol" not in log


@pytest.mark.parametrize(
    ("mode", "directory", "above", "says"),
    [
        (0o600, 0o755, 0o755, None),
        (0o640, 0o755, 0o755, None),
        (0o644, 0o755, 0o755, "read by everybody"),
        (0o644, 0o755, 0o750, None),
        (0o666, 0o755, 0o755, "changed by everybody"),
        (0o660, 0o755, 0o755, "changed by a group"),
        (0o600, 0o777, 0o755, "replaced by everybody"),
        (0o644, 0o777, 0o755, "replaced by everybody"),
        (0o600, 0o1777, 0o755, None),
    ],
)
def test_openTo(mode: int, directory: int, above: int, says: str | None) -> None:
    with forEverybody() as path:
        (path / "above" / "x").mkdir(parents=True)
        (path / "above" / "x" / "key").touch()
        for each, its in (("above/x/key", mode), ("above/x", directory), ("above", above)):
            (path / each).chmod(its)
        assert openTo(str(path / "above" / "x" / "key")) == says


# --- in memory ------------------------------------------------------------------


class FromThread:
    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []

    def callFromThread(self, call: Callable[[], object]) -> None:
        self.calls.append(call)


def test_earlySignalsAreKept() -> None:
    """
    A signal that came before L{Signals.serve} is handled once.  A later signal is handled at once.
    """
    done: list[int] = []
    signals, reactor = Signals(), FromThread()
    for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGUSR1):
        signals._came(number, None)
    signals.serve(reactor, {number: lambda: done.append(1) for number in Signals.NUMBERS})
    assert len(reactor.calls) == 2 and not done
    signals._came(signal.SIGHUP, None)
    assert len(reactor.calls) == 3


def test_reloads() -> None:
    """
    The parts of a reload run one after the other, even if one of them fails.
    """
    events: list[Any] = []
    globalLogPublisher.addObserver(events.append)
    try:
        service = Operated()
        late: Deferred[None] = Deferred()

        def refuses() -> None:
            raise ValueError("line 1: no colon")

        def breaks() -> None:
            raise RuntimeError("broken")

        async def waits() -> None:
            await late

        done: list[str] = []
        service.reloads("one", refuses)
        service.reloads("two", breaks)
        service.reloads("three", waits)
        service.reloads("four", lambda: done.append("four"))
        Deferred.fromCoroutine(service.reload("after SIGHUP"))
        assert not done
        late.callback(None)
        assert done == ["four"]
    finally:
        globalLogPublisher.removeObserver(events.append)
    said = [each["log_format"].format(**each) for each in events]
    assert said == [
        "one: line 1: no colon",
        "two: reload failed",
        "reloaded after SIGHUP: the log, one, two, three, four",
    ]


def test_observer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The application has the observer of the log, unless the operator has named another observer.
    """
    monkeypatch.chdir(tmp_path)
    made = makeLog({"logfile": "", "nodaemon": False}, None, None)
    assert isinstance(made, Log)
    assert (tmp_path / "twistd.log").exists()
    application: Any = Application("pop3svc")
    service = Operated(made)
    service.setServiceParent(application)
    assert application.getComponent(ILogObserver) is made
    assert makeLog({"logger": "a.b"}, None, None) is None
    assert isinstance(makeLog({"syslog": True, "prefix": "pop3"}, None, None), Log)
