"""
Homes and file rights of users.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from zope.interface import implementer
from zope.interface.verify import verifyObject

from pop3svc.accounts.checkers import AccountFacts, AccountsProvider
from pop3svc.accounts.passwordfile import PasswordFile, PasswordFileNames
from pop3svc.errors import NoSuchUser, POP3ResponseError, StoreUnavailable
from pop3svc.fileuser import FileUser
from pop3svc.interfaces import DeliveryCopy, IUserFacts, IUsesUserFacts, UserFacts
from pop3svc.providers.maildir import MaildirStore
from pop3svc.providers.mbox import MboxStore
from pop3svc.providers.owners import FIRST_UID, Owned, Owners, UserExecutor
from pop3svc.providers.paths import PathTemplate, Root
from pop3svc.service.factory import POP3Factory
from pop3svc.service.plugins import makeMaildir, makeMbox
from pop3svc.systemusers import SystemUser, SystemUsers
from pop3svc.testing import Client, Inline
from tests.support.coroutines import start
from tests.support.maildirs import deliver


@implementer(IUserFacts)
class Facts:
    def __init__(self, **facts: UserFacts) -> None:
        self.facts = facts
        self.isAway = False

    async def factsOf(self, username: str) -> UserFacts | None:
        if self.isAway:
            raise POP3ResponseError("Accounts are not available now.", "SYS/TEMP")
        return self.facts.get(username)


class Site:
    """
    Owners with accounts and users of the system.
    """

    def __init__(self, path: str, areUsers: bool = True, **options: Any) -> None:
        self.source = Facts()
        self.system: dict[str, SystemUser] = {}
        look = SystemUsers(Inline(), Clock(), self.system.get)
        template = PathTemplate(path, mayHaveHome=True)
        self.owners = Owners(template, areUsers, systemUsers=look, **options)
        self.owners.useFacts(self.source)

    def find(self, name: str) -> Any:
        _, got = start(self.owners.find(name))
        return got[0]

    def require(self, name: str) -> Any:
        _, got = start(self.owners.require(name))
        return got[0]


@pytest.fixture
def logged() -> Iterator[list[str]]:
    lines: list[str] = []

    def observe(event: Any) -> None:
        if "reason" in event:
            lines.append(f"{event['name']}: {event['reason']}")

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


HOME = "{home}/Maildir"


def test_accountsFirst() -> None:
    """
    The facts of the accounts come first.  The system is asked for facts that the accounts do not
    have.
    """
    site = Site(HOME)
    site.source.facts = {
        "alice": UserFacts("/srv/alice", 2001, 2002),
        "bob": UserFacts("/srv/bob"),
        "carol": UserFacts("", 2003, 2003),
        "dave": UserFacts("", 2004),
    }
    for name in ("alice", "bob", "carol", "dave", "eve"):
        site.system[name] = SystemUser(3000, 3001, f"/home/{name}", (3001, 3002))
    system = FileUser(3000, 3001, (3001, 3002))
    assert site.find("alice") == Owned(
        Root("/srv/alice", ("Maildir",)), FileUser(2001, 2002, (2002,))
    )
    assert site.find("bob") == Owned(Root("/srv/bob", ("Maildir",)), system)
    assert site.find("carol") == Owned(
        Root("/home/carol", ("Maildir",)), FileUser(2003, 2003, (2003,))
    )
    # A uid without a gid is not enough.
    assert site.find("dave") == Owned(Root("/home/dave", ("Maildir",)), system)
    assert site.find("eve") == Owned(Root("/home/eve", ("Maildir",)), system)


@pytest.mark.parametrize(
    ("uid", "gid", "isAllowed"),
    [
        (0, 1000, False),
        (1, 1000, False),
        (FIRST_UID - 1, 1000, False),
        (FIRST_UID, 1000, True),
        (FIRST_UID, 0, False),
        (FIRST_UID, -1, False),
        (-1, 1000, False),
        (0xFFFFFFFE, 1000, True),
        (0xFFFFFFFF, 1000, False),
        (1000, 0xFFFFFFFF, False),
        (1 << 32, 1000, False),
    ],
)
def test_numbers(uid: int, gid: int, isAllowed: bool, logged: list[str], tmp_path: Path) -> None:
    site = Site(str(tmp_path))
    site.source.facts = {"alice": UserFacts("", uid, gid)}
    found = site.find("alice")
    assert (found is not None) is isAllowed
    assert len(logged) == (not isAllowed)
    assert site.find("alice") == found
    assert len(logged) == (not isAllowed)


def test_firstUID(tmp_path: Path, logged: list[str]) -> None:
    site = Site(str(tmp_path), firstUID=1000)
    site.system["daemon"] = SystemUser(999, 999, "/", ())
    assert site.find("daemon") is None
    assert logged == ["daemon: uid 999 is below firstuid=1000, or is no uid"]


@pytest.mark.parametrize("home", ["", "/", "//", "home", "./x", "/home/../etc", "/a\0b", "~alice"])
@pytest.mark.parametrize("areUsers", [False, True])
def test_badHomes(home: str, areUsers: bool, logged: list[str]) -> None:
    site = Site(HOME, areUsers)
    site.source.facts = {"alice": UserFacts(home, 1000, 1000)}
    assert site.find("alice") is None
    error = site.require("alice").value
    assert (error.text, error.code) == ("This user has no mailbox here.", "SYS/PERM")
    assert logged == [
        "alice: neither the accounts nor the system know a usable home directory",
    ]


def test_nobody(logged: list[str]) -> None:
    """
    A lookup of a name that may be unknown logs nothing for an unknown name.  A lookup for a user
    who has logged in logs the reason.
    """
    site = Site(HOME)
    assert site.find("alice") is None
    assert logged == []
    assert site.require("alice").value.code == "SYS/PERM"
    assert logged == ["alice: neither the accounts nor the system know a uid and a gid"]


@pytest.mark.parametrize("name", ["", "..", "a/b", "../alice", "a\0", "\udcff", "a b"])
def test_unsafeNames(name: str) -> None:
    """
    A name that is not safe in a path is looked up nowhere.
    """
    site = Site(HOME)
    site.source.isAway = True
    assert site.find(name) is site.require(name) is None


def test_direct(tmp_path: Path) -> None:
    site = Site(str(tmp_path), areUsers=False)
    site.source.isAway = True
    assert site.owners.isDirect
    assert site.find("alice") == Owned(Root(str(tmp_path), ("alice",)), None)


def test_away() -> None:
    site = Site(HOME)
    site.source.isAway = True
    assert site.find("alice").value.code == "SYS/TEMP"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("/srv/{home}/x", "{home} must be the beginning of the path"),
        ("{home}x", "{home} must be the beginning of the path"),
        ("{home}/{user}", "no other placeholder is allowed beside {home}"),
        ("{home}/../x", '".." is not allowed'),
    ],
)
def test_badTemplates(template: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        PathTemplate(template, mayHaveHome=True)
    with pytest.raises(ValueError, match="allowed placeholders are"):
        PathTemplate("{home}/x")


# --- stores ---------------------------------------------------------------------


def storeAt(make: Any, path: str, **options: Any) -> Any:
    """
    @return: a store that works in the test's thread, on a system without users.
    """
    system = SystemUsers(Inline(), Clock(), {}.get)
    owners = Owners(PathTemplate(path, mayHaveHome=True), systemUsers=system)
    return make(path, runner=Inline(), clock=Clock(), owners=owners, **options)


def facts(path: Path, text: str) -> PasswordFile:
    path.write_text(text)
    return PasswordFile(str(path), Inline())


def test_home(tmp_path: Path) -> None:
    """
    A store serves a Maildir or an mbox in the home directory of a user with the rights of the
    service.
    """
    deliver(tmp_path / "a" / "Maildir", "1600000000.M1P1Q1.host", b"Subject: a\r\n\r\n")
    (tmp_path / "a" / "mbox").write_bytes(b"From a Thu Jan  1 00:00:00 1970\nSubject: a\n\n\n")
    users = facts(
        tmp_path / "users", f"alice:{{PLAIN}}one::::{tmp_path}/a:\nbob:{{PLAIN}}two::::/:\n"
    )
    for store in (
        storeAt(MaildirStore, HOME),
        storeAt(MboxStore, "{home}/mbox", readOnly=True),
    ):
        assert verifyObject(IUsesUserFacts, store)
        assert not store.isOwnedByUsers
        client = Client(POP3Factory(AccountsProvider(store, [users]), clock=Clock()))
        client.logIn(b"alice", b"one")
        assert client.say(b"STAT") == b"+OK 1 14\r\n"
        client = Client(POP3Factory(AccountsProvider(store, [users]), clock=Clock()))
        assert client.say(b"USER bob").startswith(b"+OK")
        assert client.say(b"PASS two") == b"-ERR [SYS/PERM] This user has no mailbox here.\r\n"


def copies(*names: str) -> list[DeliveryCopy]:
    return [DeliveryCopy(each) for each in names]


@pytest.mark.parametrize("make", [MaildirStore, MboxStore])
def test_delivery(make: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    users = facts(
        tmp_path / "users",
        f"alice:{{PLAIN}}one::::{tmp_path}/a:\nbob:{{PLAIN}}one::::{tmp_path}/b:\n"
        "carol:{PLAIN}one\n",
    )
    store = storeAt(make, "{home}/mail")
    store.useFacts(AccountFacts([users]))
    _, [errors] = start(store.deliver(copies("alice", "carol"), io.BytesIO(b"a: b\n\nc\n")))
    assert errors[0] is None and isinstance(errors[1], NoSuchUser)
    assert (tmp_path / "a" / "mail").exists()
    assert not (tmp_path / "b" / "mail").exists()
    for name, isThere in (("alice", True), ("bob", False), ("carol", False)):
        assert start(store.hasMailbox(name))[1] == [isThere]
    source = Facts()
    source.isAway = True
    store.useFacts(source)
    _, [errors] = start(store.deliver(copies("alice"), io.BytesIO(b"a: b\n\nc\n")))
    assert isinstance(errors[0], StoreUnavailable)
    _, [failure] = start(store.hasMailbox("alice"))
    assert failure.value.code == "SYS/TEMP"


@pytest.mark.parametrize(
    ("make", "argument", "says"),
    [
        (makeMaildir, "/tmp:owner=root", "owner is user or service"),
        (makeMbox, "/tmp:owner=root", "owner is user or service"),
        (makeMaildir, "/tmp:firstuid=1000", "firstuid requires owner=user"),
        (makeMaildir, "/tmp:owner=user:firstuid=x", "firstuid is a number"),
        (makeMaildir, "/tmp:owner=user:firstuid=0", "firstuid is a number from 1"),
        (makeMaildir, "{home}/Maildir:expire=30", "expire cannot be combined with {home}"),
        (makeMbox, "{home}", "an mbox is a file in {home}"),
        (makeMaildir, "{home}/Maildir:uidl=dovecot:control={home}", "control: .*placeholders are"),
    ],
)
def test_badArguments(make: Any, argument: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make(argument)


def test_arguments(tmp_path: Path) -> None:
    for store in (
        makeMaildir(f"{tmp_path}:owner=user:firstuid=1000"),
        makeMbox(f"{tmp_path}/{{user}}:owner=user:firstuid=1000"),
    ):
        assert IUsesUserFacts.providedBy(store) and store.isOwnedByUsers
        assert store._owners._firstUID == 1000
        assert store.looksUnmounted() is not None
    for path in ("/tmp", "/tmp:owner=service"):
        plain = makeMaildir(path)
        assert not IUsesUserFacts.providedBy(plain)
    assert makeMaildir(HOME).looksUnmounted() is None
    assert makeMbox("{home}/mbox").looksUnmounted() is None


# --- the facts of accounts ------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ("", None),
        ("::::::", None),
        (":1000:1001::/home/alice:/bin/sh:", UserFacts("/home/alice", 1000, 1001)),
        (":1000:1001:A, B:/home/alice", UserFacts("/home/alice", 1000, 1001)),
        (":1000", UserFacts("", 1000)),
        (":::A::", UserFacts()),
        (":::::/bin/sh:nologin=a:b", None),
        ("::::/home/alice::allow_nets=::1", UserFacts("/home/alice")),
        (":vmail:vmail::/home/alice", UserFacts("/home/alice", -1, -1)),
        (":-1:+1::", UserFacts("", -1, -1)),
        (":99999999999::::", UserFacts("", -1)),
        (":\u0661:1::", UserFacts("", -1, 1)),
    ],
)
def test_passwordFile(fields: str, found: UserFacts | None, tmp_path: Path) -> None:
    path = tmp_path / "users"
    checker = facts(path, f"alice:{{PLAIN}}one{fields}\n")
    assert verifyObject(IUserFacts, checker)
    assert start(checker.factsOf("alice"))[1] == [found]
    assert start(checker.factsOf("bob"))[1] == [None]
    names = PasswordFileNames(str(path))
    assert names.factsOf("alice") == found
    assert names.factsOf("bob") is None
    assert verifyObject(IUserFacts, names)


def test_changedFacts(tmp_path: Path) -> None:
    checker = facts(tmp_path / "users", "alice:{PLAIN}one:1000:1000::/a\n")
    (tmp_path / "users").write_text("alice:{PLAIN}one:1000:1000::/home/alice\n")
    assert start(checker.factsOf("alice"))[1] == [UserFacts("/home/alice", 1000, 1000)]


def test_order() -> None:
    """
    The first source that knows a user counts.
    """
    first, second = Facts(alice=UserFacts("/a")), Facts(alice=UserFacts("/x"), bob=UserFacts("/b"))
    found = AccountFacts([object(), first, second])
    assert verifyObject(IUserFacts, found)
    assert start(found.factsOf("alice"))[1] == [UserFacts("/a")]
    assert start(found.factsOf("bob"))[1] == [UserFacts("/b")]
    assert start(found.factsOf("carol"))[1] == [None]


# --- executors ------------------------------------------------------------------


def test_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Work runs with the rights of the user; the callbacks after it do not.
    """
    trace: list[str] = []

    class Acting:
        def __init__(self, user: FileUser) -> None:
            self.user = user

        def __enter__(self) -> None:
            trace.append(f"as {self.user.uid}")

        def __exit__(self, *_: object) -> None:
            trace.append("back")

    monkeypatch.setattr("pop3svc.providers.owners.asUser", Acting)
    executor = UserExecutor(Inline(), FileUser(1000, 1000))

    def work(text: str) -> str:
        trace.append(text)
        return text

    results: list[str] = []
    running = executor.run(work, "work", ended=lambda: trace.append("ended"), group="g")
    running.addCallback(results.append)
    assert trace == ["as 1000", "work", "back", "ended"]
    assert results == ["work"]
    assert not executor.isLost("g")
