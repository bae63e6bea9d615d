"""
The file rights of a thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock

from pop3svc import fileuser
from pop3svc.fileuser import FileUser, asService, asUser, checkMayChangeUser, fileGIDs, fileUID
from pop3svc.state import State
from pop3svc.threadpool import BoundedThreadPool
from tests.support.running import forEverybody

ALICE = FileUser(20001, 20001, (20001, 20005))
BOB = FileUser(20002, 20002)

isRoot = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


class Kernel:
    """
    Stands in for the system calls that change the rights of a thread.

    @ivar calls: the name and the argument of each call so far.
    @ivar fails: the names of calls that fail.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.fails: set[str] = set()

    def _record(self, name: str, value: Any) -> None:
        self.calls.append((name, value))
        if name in self.fails:
            raise PermissionError(1, "Operation not permitted")

    def setGroups(self, groups: tuple[int, ...]) -> None:
        self._record("groups", groups)

    def setGroup(self, gid: int) -> None:
        self._record("group", gid)

    def setUser(self, uid: int) -> None:
        self._record("user", uid)


class Ended(BaseException):
    """
    Raised in place of the end of the process.
    """


SERVICE = FileUser(990, 991, (992, 993))
BACK = [("user", 990), ("group", 991), ("groups", (992, 993))]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    made = Kernel()

    def end(status: int) -> None:
        raise Ended(status)

    monkeypatch.setattr(fileuser, "_kernel", made)
    monkeypatch.setattr(fileuser, "_process", SERVICE)
    monkeypatch.setattr(os, "_exit", end)
    yield made
    fileuser._thread.user = None


def test_order(kernel: Kernel) -> None:
    """
    The supplementary groups are taken first, then the group, then the user.  All are given up in
    the reverse order.
    """
    with asUser(ALICE):
        assert fileUID() == ALICE.uid
        assert fileGIDs() == (20001, 20001, 20005)
        taken = list(kernel.calls)
    assert taken == [("groups", ALICE.groups), ("group", ALICE.gid), ("user", ALICE.uid)]
    assert kernel.calls[3:] == BACK
    assert fileUID() == os.geteuid()


def test_givenUpAfterAnError(kernel: Kernel) -> None:
    with pytest.raises(ZeroDivisionError), asUser(ALICE):
        raise ZeroDivisionError
    assert kernel.calls[3:] == BACK


@pytest.mark.parametrize("step", ["groups", "group", "user"])
def test_cannotBeTaken(kernel: Kernel, step: str) -> None:
    """
    If a step fails, the work does not run, and all steps are undone.
    """
    original = kernel._record

    def once(name: str, value: Any) -> None:
        if name == step and value in (*SERVICE.groups, SERVICE.groups, SERVICE.gid, SERVICE.uid):
            kernel.fails.clear()
        original(name, value)

    kernel.fails = {step}
    kernel._record = once  # type: ignore[method-assign]
    with pytest.raises(OSError, match="rights of user 20001 cannot be taken: owner=user needs"):
        with asUser(ALICE):
            raise AssertionError("it runs")
    assert kernel.calls[-3:] == BACK
    assert fileUID() == os.geteuid()


@pytest.mark.parametrize("step", ["groups", "group", "user"])
def test_cannotBeGivenUp(kernel: Kernel, step: str) -> None:
    """
    If the rights of a user cannot be given up, the process ends.
    """
    with pytest.raises(Ended), asUser(ALICE):
        kernel.fails = {step}


def test_cannotBeTakenAgain(kernel: Kernel) -> None:
    """
    If the rights of a user cannot be taken again, the process ends.  Otherwise the rest of the
    user's work would run with the rights of the service.
    """
    with pytest.raises(Ended), asUser(ALICE), asService():
        original = kernel._record

        def fail(name: str, value: Any) -> None:
            if value == ALICE.uid:
                raise PermissionError(1, "Operation not permitted")
            original(name, value)

        kernel._record = fail  # type: ignore[method-assign]


def test_nested(kernel: Kernel) -> None:
    with asUser(ALICE):
        with asUser(ALICE):
            pass
        assert len(kernel.calls) == 3
        with asService():
            assert fileUID() == os.geteuid()
            assert kernel.calls[3:] == BACK
            with asService():
                pass
        assert fileUID() == ALICE.uid
        with pytest.raises(RuntimeError), asUser(BOB):
            raise AssertionError("it runs")
    assert kernel.calls[-3:] == BACK
    with asService():
        assert len(kernel.calls) == 12


def inThread(work: Callable[[], Any]) -> Any:
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return results[0]


@pytest.fixture
def homes() -> Iterator[Path]:
    with forEverybody() as path:
        for user in (ALICE, BOB):
            home = path / str(user.uid)
            home.mkdir(mode=0o700)
            (home / "mail").write_text(str(user.uid))
            (home / "mail").chmod(0o600)
            for each in (home, home / "mail"):
                os.chown(each, user.uid, user.gid)
        secret = path / "secret"
        secret.write_text("the service's")
        secret.chmod(0o600)
        yield path


@isRoot
def test_rights(homes: Path) -> None:
    """
    A thread reads what its user may read, and nothing else; other threads keep their rights.
    """

    def read(path: Path) -> str:
        try:
            return path.read_text()
        except OSError as error:
            return type(error).__name__

    def work() -> list[str]:
        with asUser(ALICE):
            (homes / "20001" / "new").write_text("")
            found = [read(homes / each) for each in ("20001/mail", "20002/mail", "secret")]
            paths.append(homes / "20001" / "new")
        return [*found, read(homes / "secret")]

    paths: list[Path] = []
    denied = "PermissionError"
    assert inThread(work) == ["20001", denied, denied, "the service's"]
    status = paths[0].stat()
    assert (status.st_uid, status.st_gid) == (ALICE.uid, ALICE.gid)
    assert read(homes / "20002" / "mail") == "20002"


@isRoot
def test_groups(homes: Path) -> None:
    """
    A thread with the rights of a user has only the supplementary groups of this user.  The process
    keeps its own.
    """
    shared = homes / "shared"
    shared.write_text("group")
    shared.chmod(0o640)
    before = os.getgroups()

    def readable(gid: int, user: FileUser) -> bool:
        os.chown(shared, 0, gid)

        def work() -> bool:
            with asUser(user):
                return os.access(shared, os.R_OK, effective_ids=True)

        result: bool = inThread(work)
        return result

    assert readable(20005, ALICE)
    assert not readable(0, ALICE)
    assert not readable(20005, BOB)
    assert os.getgroups() == before


@isRoot
def test_newThread(homes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A new thread of a pool has the rights of the service, even if a thread with the rights of a user
    starts it.
    """
    pool = BoundedThreadPool("test", threads=1, waiting=1, reactor=_Reactor())
    found: list[str] = []
    done = threading.Event()

    def work() -> None:
        with open("/proc/thread-self/status") as file:
            found.extend(each for each in file if each.startswith("Uid"))
        done.set()

    with asUser(ALICE):
        pool.run(work)
    assert done.wait(30)
    assert found == ["Uid:\t0\t0\t0\t0\n"]
    pool.stop()


class _Reactor(Clock):
    """
    A reactor that ignores calls from other threads.
    """

    def callFromThread(self, *_: Any) -> None:
        pass

    def addSystemEventTrigger(self, *_: Any) -> None:
        pass


@isRoot
def test_state(homes: Path) -> None:
    """
    Work for a user reads and writes the database of the service with the service's rights.
    """
    (homes / "data").mkdir(mode=0o700)
    state = State(str(homes / "data" / "state.db"))
    with asUser(ALICE):
        assert state.write("INSERT INTO mailbox (path, seen) VALUES (?, ?)", [(b"/x", 1.0)])
        assert state.ask("SELECT path FROM mailbox") == [(b"/x",)]
    state.close()
    assert {each.stat().st_uid for each in (homes / "data").iterdir()} == {0}


def test_capabilitiesLeft(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fileuser, "_effectiveCapabilities", lambda: 0b11000000)
    checkMayChangeUser(500)
    assert ("user", 500) in kernel.calls
    monkeypatch.setattr(fileuser, "_effectiveCapabilities", lambda: 0b10)
    with pytest.raises(ValueError, match="owner=user does not protect"):
        checkMayChangeUser(500)
    kernel.fails = {"groups"}
    with pytest.raises(ValueError, match="needs Linux with the capabilities CAP_SETUID and"):
        checkMayChangeUser(500)


def test_otherSystem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fileuser, "_kernel", None)
    monkeypatch.setattr("platform.machine", lambda: "z80")
    with pytest.raises(ValueError, match="needs Linux"):
        checkMayChangeUser(500)
