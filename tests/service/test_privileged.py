"""
Files that only root may read, for a service that is no longer root.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pop3svc.accounts.passwordediting import addUser
from pop3svc.service import privileged
from pop3svc.service.privileged import Opener, changeableBy, entriesFor, startOpener, unreadable
from tests.support.running import (
    Connection,
    Running,
    childrenOf,
    forEverybody,
    freePort,
    script,
)
from tests.support.site import renew, run, served
from tests.support.workers import mayRunHere

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
forWorkers = pytest.mark.skipif(not mayRunHere(), reason="another user cannot run this Python")

NOBODY = 65534


@pytest.fixture
def place() -> Iterator[Path]:
    with forEverybody() as path:
        yield path


def certbot(place: Path, number: int) -> None:
    """
    Keep certificates as certbot does: links in one directory of root lead to another.
    """
    live, archive = place / "live" / "mail", place / "archive" / "mail"
    for each in (live, archive):
        each.mkdir(parents=True, exist_ok=True)
        each.parent.chmod(0o700)
    renew(archive)
    for name in ("cert", "key"):
        (archive / f"{name}.pem").rename(archive / f"{name}{number}.pem")
        (archive / f"{name}{number}.pem").chmod(0o600)
        (live / f"{name}.pem").unlink(missing_ok=True)
        (live / f"{name}.pem").symlink_to(f"../../archive/mail/{name}{number}.pem")


def options(place: Path, port: int, secure: int) -> list[str]:
    live = place / "live" / "mail"
    return [
        *("--provider", f"maildir:{place / 'mail'}", "--auth", f"passwd:{place / 'users'}"),
        *("--certificate", str(live / "cert.pem"), "--private-key", str(live / "key.pem")),
        *("--endpoint", f"tcp:{port}:interface=127.0.0.1"),
        *("--endpoint", f"ssl:{secure}:interface=127.0.0.1"),
    ]


def host(place: Path) -> None:
    certbot(place, 1)
    (place / "users").write_text("alice:{PLAIN}secret\n")
    (place / "users").chmod(0o600)
    for each in (place / "mail", place / "mail" / "alice"):
        each.mkdir()
        os.chown(each, NOBODY, NOBODY)


def logsIn(port: int, password: bytes) -> bool:
    connection = Connection(port)
    connection.line()
    said = connection.say(b"XLOG alice " + password)
    assert said.startswith((b"+OK", b"-ERR [AUTH]")), said
    connection.say(b"QUIT")
    return said.startswith(b"+OK")


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=forWorkers)])
def test_renewedAndRevoked(place: Path, workers: int) -> None:
    """
    A renewed certificate and a changed password take effect, even if only root may read the files.
    """
    host(place)
    port, secure = freePort(), freePort()
    with Running(
        place / "home",
        *options(place, port, secure),
        *("--workers", str(workers)),
        twistd=("--uid=65534", "--gid=65534"),
    ) as running:
        running.up()
        for _ in range(workers if workers > 1 else 0):
            running.waitFor("serves")
        before = served(secure)
        certbot(place, 2)
        # Files that another process must open are checked ten times a second.
        while served(secure) == before:
            pass
        running.waitFor("serving the renewed certificate")
        for old, new in ((b"secret", b"other"), (b"other", b"third")):
            # With so many logins, each worker gets some.
            assert all(logsIn(port, old) for _ in range(8))
            (place / "users").write_bytes(b"alice:{PLAIN}" + new + b"\n")
            assert logsIn(port, new)
            assert not any(logsIn(port, old) for _ in range(2))
        pids = childrenOf(running.process.pid)
        assert len(pids) == (1 if workers == 1 else 3)
        assert running.end(signal.SIGTERM) == 0
        for each in pids:
            assert ended(each)


def ended(pid: int) -> bool:
    """
    Wait for the end of a process, which need not be a child of this process.
    """
    import select

    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 60)[0])
    finally:
        os.close(descriptor)


def test_othersMayChangeIt(place: Path) -> None:
    """
    A file of root in a directory that others may change is not read again after the start.  The log
    says so at the start.
    """
    host(place)
    shutil.copytree(place / "archive" / "mail", place / "own")
    os.chown(place / "own", NOBODY, NOBODY)
    port = freePort()
    more = ["--certificate", str(place / "own/cert1.pem")]
    more += ["--private-key", str(place / "own/key1.pem")]
    with Running(
        place / "home",
        *options(place, port, freePort()),
        *more,
        twistd=("--uid=65534", "--gid=65534"),
    ) as running:
        running.waitFor("own/cert1.pem cannot be read by user 65534, and others than root may")
        said = running.waitFor("own/key1.pem cannot be read")
        assert "the service will not read a renewed file" in said
        assert logsIn(port, b"secret")
        assert running.end(signal.SIGTERM) == 0


def test_refused(place: Path) -> None:
    host(place)
    (place / "own").mkdir()
    os.chown(place / "own", NOBODY, NOBODY)
    (place / "users").rename(place / "own" / "users")
    command = [script("twistd"), "-n", "--pidfile=", "--uid=65534", "--gid=65534", "pop3svc"]
    wrong = [
        *("--provider", f"maildir:{place / 'mail'}", "--auth", f"passwd:{place}/own/users"),
        *("--data", str(place / "data"), "--endpoint", f"tcp:{freePort()}"),
    ]
    refused = run([*command, *wrong], place / "home")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == (
        f"pop3svc: --auth passwd:{place}/own/users: user 65534 of --uid cannot read it, so that "
        "removed accounts could still log in; let that user read it\n"
    )


CHANGEABLE: dict[str, tuple[Callable[[Path], object], str | None]] = {
    "root's own": (lambda path: None, None),
    "link": (lambda path: (path / "b/x").symlink_to("../c/y"), None),
    "absolute link": (lambda path: (path / "b/x").symlink_to(path / "c/y"), None),
    "somebody's directory": (lambda path: os.chown(path / "b", NOBODY, 0), "b"),
    "everybody's directory": (lambda path: (path / "b").chmod(0o777), "b"),
    "a group's directory": (
        lambda path: (os.chown(path / "b", 0, NOBODY), (path / "b").chmod(0o770)),
        "b",
    ),
    "link into somebody's": (
        lambda path: ((path / "b/x").symlink_to("../c/y"), os.chown(path / "c", NOBODY, 0)),
        "c",
    ),
    # The owner of the directory c cannot change what c/.. is.
    "link through somebody's": (
        lambda path: ((path / "b/x").symlink_to("../c/../d/y"), os.chown(path / "c", NOBODY, 0)),
        None,
    ),
}


@pytest.mark.parametrize("case", CHANGEABLE)
def test_changeableBy(place: Path, case: str) -> None:
    for each in "bcd":
        (place / each).mkdir(mode=0o700)
        (place / each / "y").touch()
    make, whose = CHANGEABLE[case]
    make(place)
    if not (place / "b/x").is_symlink():
        (place / "b/x").touch()
    assert changeableBy(str(place / "b/x")) == (None if whose is None else str(place / whose))


def test_everybodysKept(place: Path) -> None:
    """
    In a directory such as /tmp nobody else can replace a file of root.
    """
    (place / "t").mkdir()
    (place / "t").chmod(0o1777)
    (place / "t" / "x").touch()
    assert changeableBy(str(place / "t/x")) is None
    os.chown(place / "t" / "x", NOBODY, NOBODY)
    assert changeableBy(str(place / "t/x")) == str(place / "t")
    (place / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="Too many levels"):
        changeableBy(str(place / "loop"))


def test_unreadable(place: Path) -> None:
    names = [str(place / each) for each in "abc"]
    for each in names[:2]:
        Path(each).touch()
    Path(names[0]).chmod(0o600)
    assert unreadable(names, NOBODY, NOBODY) == names[:1]


@pytest.fixture
def opener(place: Path) -> Iterator[Opener]:
    for each in ("x", "y"):
        (place / each).write_text(each)
    (place / "own").mkdir()
    (place / "own" / "z").touch()
    os.chown(place / "own", NOBODY, NOBODY)
    made = startOpener([str(place / each) for each in ("x", "own/z", "none", "fifo")])
    os.mkfifo(place / "fifo")
    yield made
    made._asking.close()


def test_opener(opener: Opener, place: Path) -> None:
    """
    The process opens only the files that it was started for, and only if nobody but root may change
    them.  It does not wait for a FIFO.
    """
    for _ in range(3):
        descriptor = opener.open(str(place / "x"))
        assert os.read(descriptor, 10) == b"x"
        assert not os.get_inheritable(descriptor)
        os.close(descriptor)
    for name, error in (
        ("y", PermissionError),
        ("own/z", PermissionError),
        ("none", FileNotFoundError),
        ("fifo", OSError),
    ):
        with pytest.raises(error):
            opener.open(str(place / name))
    (place / "x").unlink()
    (place / "x").symlink_to("own/z")
    with pytest.raises(PermissionError):
        opener.open(str(place / "x"))


def test_nobodyAnswers(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    If the process does not answer, the service waits for a moment, and asks again after a minute.
    """
    monkeypatch.setattr(privileged, "_PATIENCE", 0.05)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        opener = Opener(ours, ["/x"])
        for _ in range(100):
            with pytest.raises(PermissionError):
                opener.open("/x")
        theirs.settimeout(0)
        assert socket.recv_fds(theirs, 1, 0)[0] == b"\0"
        with pytest.raises(BlockingIOError):
            theirs.recv(1)


def test_userOfTheFile(place: Path) -> None:
    """
    Only root may read a file that root has made by C{pop3svc user}.
    """
    addUser(str(place / "made"), "alice", "secret")
    assert unreadable([str(place / "made")], NOBODY, NOBODY) == [str(place / "made")]


def test_manyFiles() -> None:
    """
    A configuration may name more files than one octet can count.
    """
    with forEverybody() as path:
        for name in ("secret", "open"):
            (path / name).write_text(name)
        (path / "secret").chmod(0o600)
        names = [str(path / "open")] * 299 + [str(path / "secret")]
        assert unreadable(names, 65534, 65534) == [str(path / "secret")]
        opener = startOpener([f"/nowhere/{number}" for number in range(299)] + names[-1:])
        descriptor = opener.open(names[-1])
        assert os.read(descriptor, 10) == b"secret"
        os.close(descriptor)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=forWorkers)])
def test_directoryOfCertificates(place: Path, workers: int) -> None:
    """
    Certificates are renewed and added in a directory that only root may list.
    """
    from tests.service.test_certificateset import certbot as issue

    def renewed(name: str) -> None:
        issue(place, name, f"{name}.example")
        for each in ("live", "archive"):
            (place / each).chmod(0o700)
        for each in (place / "archive" / name).iterdir():
            each.chmod(0o600)

    host(place)
    shutil.rmtree(place / "live")
    shutil.rmtree(place / "archive")
    renewed("a")
    secure = freePort()
    with Running(
        place / "home",
        *("--provider", f"maildir:{place / 'mail'}", "--auth", f"passwd:{place / 'users'}"),
        *("--certificate-directory", str(place / "live"), "--workers", str(workers)),
        *("--endpoint", f"ssl:{secure}:interface=127.0.0.1"),
        twistd=("--uid=65534", "--gid=65534"),
    ) as running:
        running.up()
        for _ in range(workers if workers > 1 else 0):
            running.waitFor("serves")
        before = served(secure)
        renewed("a")
        while served(secure) == before:
            pass
        running.waitFor("serving the renewed certificate")
        (place / "live" / "b").mkdir()
        served(secure)
        renewed("b")
        while b"b.example" not in served(secure, "b.example"):
            pass
        assert running.end(signal.SIGTERM) == 0


def test_entriesForADirectory(place: Path) -> None:
    """
    The process opens the named files in subdirectories, and nothing else.
    """
    for name in ("a", "b"):
        (place / name).mkdir()
        (place / name / "chain").write_text(name)
        (place / name / "other").write_text("secret")
    (place / "chain").write_text("secret")
    opener = startOpener(entriesFor(str(place), ["chain"]))
    for name in ("a", "b"):
        with open(opener.open(f"{place}/{name}/chain")) as file:
            assert file.read() == name
    descriptor = opener.open(str(place))
    assert sorted(os.listdir(descriptor)) == ["a", "b", "chain"]
    os.close(descriptor)
    for path in (
        *(f"{place}/a/other", f"{place}/../{place.name}/a/other", f"{place}/./chain"),
        *(f"{place}/../chain", f"{place}/none/chain", f"{place}/a", "/etc/passwd"),
        f"{place}//chain",
    ):
        with pytest.raises(OSError):
            opener.open(path)
    number = privileged._NUMBER
    for request in (b"a/b", b"..", b".", b"a/../b", b"a\0b"):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            whole = (1).to_bytes(number, "big") + request
            socket.send_fds(opener._asking, [whole], [theirs.fileno()])
            theirs.close()
            answer, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
            assert not descriptors and answer != b"\0"
