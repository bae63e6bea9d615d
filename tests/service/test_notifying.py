"""
What the service tells systemd.  The tests read the notify socket.
"""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock

from pop3svc.service.notifying import Notifier
from tests.support.running import PATIENCE, Connection, Running, childrenOf, freePort, script
from tests.support.site import options, run, site  # noqa: F401


class Reactor(Clock):
    """
    A clock with triggers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.triggers: list[Callable[[], object]] = []

    def addSystemEventTrigger(self, phase: str, event: str, call: Callable[[], object]) -> None:
        assert (phase, event) == ("before", "shutdown")
        self.triggers.append(call)


class Manager:
    """
    The other end of the notify socket.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(PATIENCE)

    def come(self) -> list[str]:
        """
        @return: the datagrams that have come.
        """
        found = []
        while select.select([self.socket], [], [], 0)[0]:
            found.append(self.socket.recv(4096).decode())
        return found

    def next(self, start: str) -> str:
        """
        @return: the next datagram that begins with C{start}.
        """
        end = time.monotonic() + PATIENCE
        heard = []
        while time.monotonic() < end:
            # Signs of life come all the time.
            heard.append(self.socket.recv(4096).decode())
            if heard[-1].startswith(start):
                return heard[-1]
        raise AssertionError(f"no {start}, but {heard}")


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    isPath = request.param == "path"
    made = Manager(str(tmp_path / "notify") if isPath else f"@pop3svc-test-{os.getpid()}")
    yield made
    made.socket.close()


def notifier(manager: Manager, watchdog: float = 0) -> tuple[Notifier, Reactor]:
    reactor = Reactor()
    made = Notifier(reactor, manager.address, watchdog, lambda: 77)
    made.describe = lambda: "fine"
    made.startService()
    return made, reactor


def test_readyReloadsStops(manager: Manager) -> None:
    made, reactor = notifier(manager)
    assert manager.come() == []
    made.serves.callback(None)
    assert manager.come() == ["READY=1\nSTATUS=fine"]
    made.reloading()
    assert manager.come() == ["RELOADING=1\nMONOTONIC_USEC=77"]
    made.reloading()
    made.reloaded()
    assert manager.come() == []
    made.reloaded()
    assert manager.come() == ["READY=1\nSTATUS=fine"]
    [stop] = reactor.triggers
    stop()
    assert manager.come() == ["STOPPING=1\nSTATUS=stopping"]
    made.reloading()
    made.reloaded()
    assert manager.come() == []


def test_reloadBeforeReady(manager: Manager) -> None:
    """
    A reload during the start does not make the service ready.
    """
    made, _ = notifier(manager)
    made.reloading()
    made.reloaded()
    made.reloading()
    made.serves.callback(None)
    assert manager.come() == []
    made.reloaded()
    assert manager.come() == ["READY=1\nSTATUS=fine"]


def test_status(manager: Manager) -> None:
    """
    The status is sent when it has changed, but only every few seconds.
    """
    made, reactor = notifier(manager)
    reactor.advance(Notifier.STATUS_EVERY)
    assert manager.come() == []
    made.serves.callback(None)
    manager.come()
    made.describe = lambda: "2 sessions"
    reactor.advance(Notifier.STATUS_EVERY - 0.1)
    assert manager.come() == []
    reactor.advance(0.1)
    assert manager.come() == ["STATUS=2 sessions"]
    reactor.advance(Notifier.STATUS_EVERY)
    assert manager.come() == []


def test_watchdog(manager: Manager) -> None:
    made, reactor = notifier(manager, watchdog=10)
    assert manager.come() == ["WATCHDOG=1"]
    reactor.advance(4.9)
    assert manager.come() == []
    reactor.advance(0.1)
    assert manager.come() == ["WATCHDOG=1"]


def test_fullQueue(manager: Manager) -> None:
    """
    If the socket has no room, changes of the state are sent later, in order.  Signs of life are
    dropped.
    """
    made, reactor = notifier(manager, watchdog=10)
    other = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    other.setblocking(False)
    other.connect(manager.socket.getsockname())
    with pytest.raises(BlockingIOError):
        while True:
            other.send(b"x")
    other.close()
    made.serves.callback(None)
    made.reloading()
    reactor.advance(Notifier.AGAIN)
    reactor.advance(5)
    assert "READY=1\nSTATUS=fine" not in manager.come()
    reactor.advance(Notifier.AGAIN)
    assert manager.come() == ["READY=1\nSTATUS=fine", "RELOADING=1\nMONOTONIC_USEC=77"]
    reactor.advance(5)
    assert "WATCHDOG=1" in manager.come()


def test_newSocket(tmp_path: Path) -> None:
    """
    A service manager that has opened a new socket is told, too.
    """
    old = Manager(str(tmp_path / "notify"))
    made, _ = notifier(old)
    old.socket.close()
    # Nobody listens, and the service goes on.
    made.reloading()
    made.serves.callback(None)
    made.reloaded()
    os.remove(old.address)
    new = Manager(old.address)
    made.reloading()
    assert new.come() == ["RELOADING=1\nMONOTONIC_USEC=77"]
    new.socket.close()


def test_environment(manager: Manager) -> None:
    """
    The variables are removed from the environment, so that no child process gets them.
    """

    def made(**environ: str) -> Notifier | None:
        result = Notifier.fromEnvironment(Reactor(), environ)
        assert not environ
        return result

    def watchdog(**environ: str) -> float:
        result: Any = made(NOTIFY_SOCKET=manager.address, **environ)
        return float(result._watchdog)

    assert made() is None
    assert made(NOTIFY_SOCKET="vsock:2:1234", WATCHDOG_USEC="1") is None
    assert watchdog() == 0
    assert watchdog(WATCHDOG_USEC="20000000") == 20
    assert watchdog(WATCHDOG_USEC="20000000", WATCHDOG_PID=str(os.getpid())) == 20
    assert watchdog(WATCHDOG_USEC="20000000", WATCHDOG_PID="1") == 0
    assert watchdog(WATCHDOG_USEC="soon") == 0


# --- a real service ---------------------------------------------------------------------


def environOf(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_text()


@pytest.mark.parametrize("workers", [1, 2])
def test_service(
    site: Path,  # noqa: F811
    tmp_path: Path,
    manager: Manager,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
) -> None:
    """
    The service tells systemd when clients can log in, when it reloads, and when it ends.
    """
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    port, home, data = freePort(), tmp_path / "home", tmp_path / "data"
    text = ["--endpoint", f"tcp:{port}:interface=127.0.0.1", "--data", str(data)]
    with Running(home, *options(site, *text, "--workers", str(workers))) as running:
        ready = manager.next("READY=1")
        assert "0 sessions" in ready
        connection = Connection(port)
        assert connection.line().startswith(b"+OK")
        connection.logIn(b"alice", b"secret word")
        # The second worker may have changed the state before.
        manager.next("STATUS=1 sessions")
        assert manager.next("WATCHDOG=1") == "WATCHDOG=1"
        children = childrenOf(running.process.pid)
        assert children or workers == 1
        for child in children if workers > 1 else []:
            assert "NOTIFY_SOCKET" not in environOf(child)
            assert "WATCHDOG_USEC" not in environOf(child)
        before = time.monotonic_ns() // 1000
        running.process.send_signal(signal.SIGHUP)
        reloading = manager.next("RELOADING=1")
        found = re.search(r"\nMONOTONIC_USEC=(\d+)$", reloading)
        assert found and before <= int(found[1]) <= time.monotonic_ns() // 1000
        assert "\nSTATUS=1 sessions" in manager.next("READY=1")
        done = run([script("pop3svc"), "reload", "--data", str(data)], home)
        assert done.returncode == 0, done.stderr
        manager.next("RELOADING=1")
        manager.next("READY=1")
        connection.socket.close()
        running.process.send_signal(signal.SIGTERM)
        manager.next("STOPPING=1")
        assert running.end() == 0
