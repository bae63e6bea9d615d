"""
Every use of a mailbox's files has the rights of its user.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock

from pop3svc.fileuser import fileUID
from pop3svc.interfaces import DeliveryCopy, UserFacts
from pop3svc.providers.files.watching import DirectoryWatcher
from pop3svc.providers.maildir import ExpiringMaildirStore, MaildirStore
from pop3svc.providers.mbox import MboxStore
from pop3svc.providers.owners import Owners
from pop3svc.providers.paths import PathTemplate
from pop3svc.service.factory import POP3Factory
from pop3svc.state import State
from pop3svc.systemusers import SystemUsers
from pop3svc.testing import Client, Inline
from tests.anybody import Anybody
from tests.providers.test_owners import Facts
from tests.support.coroutines import start
from tests.support.maildirs import deliver
from tests.support.running import forEverybody

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

ALICE = 20001
# Python's audit events for uses of files, with the index of the path among their arguments.
EVENTS = {
    "open": 0,
    "os.listdir": 0,
    "os.scandir": 0,
    "os.mkdir": 0,
    "os.rename": 0,
    "os.link": 0,
    "os.remove": 0,
    "os.rmdir": 0,
    "os.truncate": 0,
    "os.utime": 0,
    "os.chmod": 0,
    "os.chown": 0,
}


class Audit:
    """
    Records uses of files with the wrong rights.  There is only one object of this class, because an
    audit hook cannot be removed.
    """

    home: Path | None = None
    uses = 0
    wrong: list[str]

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        place = EVENTS.get(event)
        if place is None or self.home is None:
            return
        path = arguments[place]
        if isinstance(path, int):
            # The rights were checked when the file was opened.  Only reading a directory counts.
            if event not in ("os.scandir", "os.listdir"):
                return
            path = os.readlink(f"/proc/self/fd/{path}")
        text = os.fsdecode(path)
        isMail = not text.startswith("/") or f"{text}/".startswith(f"{self.home}/")
        if not isMail or text.startswith("/proc/"):
            return
        self.uses += 1
        if fileUID() != ALICE:
            self.wrong.append(f"{event} {text}")


audit = Audit()
audit.wrong = []
hasHook = False


@pytest.fixture
def home() -> Iterator[Path]:
    global hasHook
    if not hasHook:
        hasHook = True
        sys.addaudithook(audit)
    with forEverybody() as path:
        home = path / "alice"
        home.mkdir(mode=0o700)
        os.chown(home, ALICE, ALICE)
        audit.home, audit.uses, audit.wrong = home, 0, []
        yield home
        audit.home = None


def give(path: Path) -> None:
    for each in [path, *path.rglob("*")]:
        os.chown(each, ALICE, ALICE)
    # Until here the test itself has used the files as root.  Forget these uses, so that only the
    # uses by the service count.
    audit.wrong.clear()


def login(store: Any, clock: Clock) -> Client:
    store.useFacts(Facts(alice=UserFacts("", ALICE, ALICE)))
    client = Client(POP3Factory(Anybody(store), clock=clock))
    client.logIn(b"alice", b"x")
    return client


def makeMaildir(home: Path, clock: Clock, **options: Any) -> Any:
    path = f"{home.parent}/{{user}}/Maildir"
    return MaildirStore(path, runner=Inline(), clock=clock, isOwnedByUsers=True, **options)


def makeMbox(home: Path, clock: Clock, **options: Any) -> Any:
    path = f"{home.parent}/{{user}}/mbox"
    return MboxStore(path, runner=Inline(), clock=clock, isOwnedByUsers=True, **options)


@pytest.mark.parametrize("make", [makeMaildir, makeMbox])
@pytest.mark.parametrize("options", [{}, {"readOnly": True}])
def test_everyUse(make: Callable[..., Any], options: dict[str, Any], home: Path) -> None:
    """
    A delivery and a session with sleep and deletion use files with the rights of the user only.
    """
    clock = Clock()
    content = io.BytesIO(b"Subject: one\n\ntext\n")
    store = make(home, clock)
    store.useFacts(Facts(alice=UserFacts("", ALICE, ALICE)))
    for _ in range(3):
        _, [[error]] = start(store.deliver([DeliveryCopy("alice")], content))
        assert error is None
    assert start(store.hasMailbox("alice"))[1] == [True]
    for _ in range(2):
        client = login(make(home, clock, **options), clock)
        for line in (b"STAT", b"LIST", b"UIDL", b"TOP 1 0", b"SLEE", b"WAKE", b"RETR 1"):
            assert client.say(line).startswith(b"+OK"), line
        if not options:
            assert client.say(b"DELE 1").startswith(b"+OK")
        assert client.say(b"QUIT").startswith(b"+OK")
    assert audit.wrong == []
    assert audit.uses > 20
    assert {each.lstat().st_uid for each in home.rglob("*")} == {ALICE}


@pytest.mark.parametrize("options", [{"isSlow": True}, {"uidl": "dovecot"}])
def test_otherMaildirs(options: dict[str, Any], home: Path) -> None:
    deliver(home / "Maildir", "1600000000.M1P1Q1.host")
    (home / "Maildir" / "dovecot-uidlist").write_text(
        "3 V1600000000 N2 G0123456789abcdef0123456789abcdef\n1 :1600000000.M1P1Q1.host\n"
    )
    give(home)
    client = login(makeMaildir(home, Clock(), **options), Clock())
    for line in (b"STAT", b"UIDL", b"RETR 1", b"DELE 1", b"QUIT"):
        assert client.say(line).startswith(b"+OK"), line
    assert audit.wrong == []


def test_expiry(home: Path) -> None:
    old = deliver(home / "Maildir", "1600000000.M1P1Q1.host")
    os.utime(old, (1600000000, 1600000000))
    give(home)
    (home.parent / "stranger" / "Maildir").mkdir(parents=True)
    clock = Clock()
    path = f"{home.parent}/{{user}}/Maildir"
    system = SystemUsers(Inline(), clock, {}.get)
    owners = Owners(PathTemplate(path), areUsers=True, systemUsers=system)
    store = ExpiringMaildirStore(path, 30, runner=Inline(), clock=clock, owners=owners)
    store.useFacts(Facts(alice=UserFacts("", ALICE, ALICE)))
    store.startHousekeeping()
    for _ in range(5):
        clock.advance(2)
    store.stopHousekeeping()
    assert not old.exists()
    assert audit.wrong == []


def test_takeoverWatch(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The watch for other processes that want the mailbox begins with the rights of the user.
    """
    deliver(home / "Maildir", "1600000000.M1P1Q1.host")
    give(home)
    uids: list[int] = []

    def watch(self: Any, path: str, touched: Any) -> int:
        uids.append(fileUID())
        return 1

    monkeypatch.setattr(DirectoryWatcher, "watch", watch)
    clock = Clock()
    client = login(makeMaildir(home, clock), clock)
    for _ in range(4):
        clock.advance(0.25)
    assert uids == [ALICE]
    assert client.say(b"QUIT").startswith(b"+OK")


def test_presence(home: Path) -> None:
    """
    A mailbox that has existed and is missing now is refused, even though its user may not read the
    database that records its existence.
    """
    path = home.parent / "state.db"
    deliver(home / "Maildir", "1600000000.M1P1Q1.host")
    give(home)
    store = makeMaildir(home, Clock())
    store.useState(State(str(path)))
    client = login(store, Clock())
    assert client.say(b"QUIT").startswith(b"+OK")
    (home / "Maildir").rename(home / "elsewhere")
    client = Client(POP3Factory(Anybody(store), clock=Clock()))
    client.say(b"USER alice")
    assert client.say(b"PASS x") == b"-ERR [SYS/TEMP] Mailbox is not available now.\r\n"
    assert path.stat().st_uid == 0
