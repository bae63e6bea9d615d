"""
A store in a database: what is stored, refused, shared and found damaged.
"""

from __future__ import annotations

import io
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from twisted.internet.defer import fail
from twisted.internet.task import Clock
from twisted.logger import formatEvent
from zope.interface.verify import verifyObject

from pop3svc.accounts.checkers import AccountsProvider
from pop3svc.accounts.domains import DomainProvider
from pop3svc.database import Database, DatabaseUnavailable
from pop3svc.drivers import Driver, SQLite, makeDriver
from pop3svc.errors import OverQuota, POP3ResponseError, StoreUnavailable
from pop3svc.interfaces import DeliveryCopy, IHousekeeping
from pop3svc.policy import Policy
from pop3svc.providers.sql import content, mailbox
from pop3svc.providers.sql.delivery import Quota
from pop3svc.providers.sql.schema import VERSION, SchemaError, migrate
from pop3svc.providers.sql.statements import execute, query
from pop3svc.providers.sql.store import SQLStore
from pop3svc.service.factory import POP3Factory
from pop3svc.testing import Client, Inline, conversation
from tests.anybody import Anybody
from tests.support.connections import events, logged
from tests.support.conversations import ALICE
from tests.support.databases import InlinePool, finish


@pytest.fixture
def makeStore(driver: Driver) -> Iterator[Callable[..., SQLStore]]:
    pools = []

    def make(**options: Any) -> SQLStore:
        pool = InlinePool(driver)
        pools.append(pool)
        options.setdefault("clock", Clock())
        return SQLStore(driver, pool=pool, executor=Inline(), **options)

    yield make
    for each in pools:
        each.drop()


def deliver(store: SQLStore, message: bytes, *copies: DeliveryCopy | str) -> list[Any]:
    made = [DeliveryCopy(each) if isinstance(each, str) else each for each in copies]
    result: list[Any] = finish(store.deliver(made, io.BytesIO(message)))
    return result


def ask(driver: Driver, statement: str, **values: Any) -> list[tuple[Any, ...]]:
    """
    @return: the rows of a query.
    """
    pool = InlinePool(driver)
    try:
        rows: list[tuple[Any, ...]] = finish(
            Database(driver, pool=pool).run(
                lambda transaction: query(transaction, statement, **values)
            )
        )
        return rows
    finally:
        pool.drop()


def change(driver: Driver, statement: str) -> None:
    """
    Change the tables without the store.
    """
    pool = InlinePool(driver)
    try:
        finish(Database(driver, pool=pool).run(lambda transaction: execute(transaction, statement)))
    finally:
        pool.drop()


def logIn(store: SQLStore, user: str = "alice") -> Client:
    return conversation(Anybody(store), ALICE.replace("alice", user))


def uidl(client: Client) -> list[str]:
    return [line.split()[1].decode() for line in client.say(b"UIDL").split(b"\r\n")[1:-2]]


# --- delivery ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "sent"),
    [
        (b"", b""),
        (b"a", b"a\r\n"),
        (b"a\n\nb\n", b"a\r\n\r\nb\r\n"),
        (b"a\r\nb\r\n", b"a\r\nb\r\n"),
        (b".a\n..b\n.", b".a\r\n..b\r\n.\r\n"),
        (b"\0\xff\rx\n", b"\0\xff\rx\r\n"),
    ],
)
@pytest.mark.parametrize("piece", [1, 2, 3, 262_144])
def test_whatIsSentIsWhatWasDelivered(
    makeStore: Callable[..., SQLStore],
    monkeypatch: pytest.MonkeyPatch,
    message: bytes,
    sent: bytes,
    piece: int,
) -> None:
    """
    With pieces of any size, LIST shows the size of the message that RETR sends.
    """
    monkeypatch.setattr(content, "PIECE", piece)
    store = makeStore()
    header = b"Delivered-To: alice\r\n"
    assert deliver(store, message, DeliveryCopy("alice", header)) == [None]
    client = logIn(store)
    assert client.say(b"LIST 1") == b"+OK 1 %d\r\n" % len(header + sent)
    stuffed = (header + sent).replace(b"\r\n.", b"\r\n..")
    assert client.say(b"RETR 1").partition(b"\r\n")[2] == stuffed + b".\r\n"
    assert client.say(b"TOP 1 0").endswith(b".\r\n")


def test_oneContentForMany(makeStore: Callable[..., SQLStore], driver: Driver) -> None:
    """
    Copies share their content, which is deleted with the last copy.
    """
    store = makeStore()
    assert deliver(store, b"x\n", "alice", "bob", "alice") == [None] * 3
    assert ask(driver, "SELECT COUNT(*), MAX(uses) FROM content") == [(1, 3)]
    for user, left in (("alice", 1), ("bob", 0)):
        client = logIn(store, user)
        for number in range(len(uidl(client))):
            client.say(b"DELE %d" % (number + 1))
        assert client.say(b"QUIT").startswith(b"+OK")
        assert ask(driver, "SELECT COUNT(*) FROM content") == [(left,)]
        assert ask(driver, "SELECT COUNT(*) FROM piece") == [(left,)]
    assert ask(driver, "SELECT SUM(messages), SUM(octets) FROM mailbox") == [(0, 0)]


def test_quota(makeStore: Callable[..., SQLStore]) -> None:
    """
    A full mailbox refuses further messages, and a deletion makes room.
    """
    store = makeStore(quota=Quota(octets=10, messages=2))
    assert deliver(store, b"12345678\r\n", "alice", "bob") == [None, None]
    refused, taken = deliver(store, b"", "alice", "bob")
    assert (refused, taken) == (None, None)
    for user, data in (("alice", b"x"), ("bob", b"")):
        refused, taken = deliver(store, data, user, "carol")
        assert isinstance(refused, OverQuota) and refused.isTemporary
        assert taken is None
    client = logIn(store)
    assert client.say(b"STAT") == b"+OK 2 10\r\n"
    client.say(b"DELE 1")
    client.say(b"QUIT")
    assert deliver(store, b"x", "alice") == [None]
    [refused] = deliver(store, b"", "alice")
    assert isinstance(refused, OverQuota)


def test_importedOnce(makeStore: Callable[..., SQLStore]) -> None:
    """
    A message with a unique-id of another server is stored once, and not again after its deletion.
    """
    store = makeStore()
    copy = DeliveryCopy("alice", uniqueID="old-1", arrival=1000.0)
    for _ in range(2):
        assert deliver(store, b"x\n", copy) == [None]
    client = logIn(store)
    assert uidl(client) == ["old-1"]
    assert client.say(b"STAT") == b"+OK 1 3\r\n"
    client.say(b"DELE 1")
    client.say(b"QUIT")
    assert deliver(store, b"x\n", copy) == [None]
    assert logIn(store).say(b"STAT") == b"+OK 0 0\r\n"


@pytest.mark.parametrize("losses", [1, 2])
def test_anUnknownCommitIsRepeated(
    makeStore: Callable[..., SQLStore], driver: Driver, losses: int
) -> None:
    """
    If the answer to COMMIT is lost, the transaction runs again, but nothing is stored twice.  After
    the second loss the sender has to try again.
    """
    store = makeStore()
    link = driver.connect(5)
    kind = type(link)
    link.close()
    commit = kind.commit
    lost: list[bool] = []

    def losing(self: Any) -> Any:
        done = commit(self)
        if len(lost) < losses:
            lost.append(True)
            self.close()
            raise lostConnection(driver)
        return done

    assert finish(store.hasMailbox("alice")) is False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "commit", losing)
        (result,) = deliver(store, b"x\n", "alice")
    assert isinstance(result, StoreUnavailable) is (losses == 2) and len(lost) == losses
    assert logIn(store).say(b"STAT") == b"+OK 1 3\r\n"


def lostConnection(driver: Driver) -> Exception:
    if isinstance(driver, SQLite):
        error: Any = sqlite3.OperationalError("lost")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        return cast(Exception, error)
    import psycopg

    return psycopg.OperationalError("lost")


# --- damage ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM piece WHERE number = 1",
        "DELETE FROM piece",
        "DELETE FROM content",
        "UPDATE content SET octets = octets + 1",
        "UPDATE content SET pieces = pieces + 1",
        "UPDATE message SET octets = octets - 1",
    ],
)
def test_damageIsSeenBeforeTheReply(
    makeStore: Callable[..., SQLStore],
    monkeypatch: pytest.MonkeyPatch,
    driver: Driver,
    statement: str,
) -> None:
    monkeypatch.setattr(content, "PIECE", 4)
    store = makeStore()
    deliver(store, b"damaged\n", "alice")
    deliver(store, b"whole\n", "bob")
    client = logIn(store)
    change(driver, statement)
    for command in (b"RETR 1", b"TOP 1 0"):
        assert client.say(command) == b"-ERR [SYS/PERM] Message cannot be read.\r\n"
    assert client.say(b"NOOP").startswith(b"+OK")


def test_damageOfASmallMessage(makeStore: Callable[..., SQLStore], driver: Driver) -> None:
    store = makeStore()
    deliver(store, b"small\n", "alice")
    client = logIn(store)
    change(driver, "DELETE FROM piece")
    assert client.say(b"RETR 1") == b"-ERR [SYS/PERM] Message cannot be read.\r\n"


def test_damageInTheMiddle(
    makeStore: Callable[..., SQLStore], monkeypatch: pytest.MonkeyPatch, driver: Driver
) -> None:
    """
    A piece that vanishes while the message is sent ends the connection without a dot.
    """
    monkeypatch.setattr(content, "PIECE", 4)
    store = makeStore()
    deliver(store, b"0123456789\n", "alice")
    client = logIn(store)
    read = content.readPiece

    def vanishing(transaction: Any, number: int, piece: int) -> bytes:
        if piece == 1:
            raise content.Damaged("gone")
        return read(transaction, number, piece)

    monkeypatch.setattr(content, "readPiece", vanishing)
    said = client.say(b"RETR 1")
    assert not said.endswith(b".\r\n") and client.wasAborted


def test_awayInTheMiddle(
    makeStore: Callable[..., SQLStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    If the database goes away while a message is sent, the connection ends without a dot, and no
    error is logged for the session.
    """
    monkeypatch.setattr(content, "PIECE", 4)
    store = makeStore()
    deliver(store, b"0123456789\n", "alice")
    client = logIn(store)
    run = store._database.run

    def away(work: Any, *arguments: Any, **options: Any) -> Any:
        if work is content.readPiece:
            return fail(DatabaseUnavailable("away"))
        return run(work, *arguments, **options)

    monkeypatch.setattr(store._database, "run", away)
    said: list[bytes] = []
    assert events("error", lambda: said.append(client.say(b"RETR 1"))) == []
    assert not said[0].endswith(b".\r\n") and client.wasAborted


# --- nodes ------------------------------------------------------------------------------------


class Nodes:
    """
    Two services that use one database, each with its own clock.
    """

    def __init__(self, makeStore: Callable[..., SQLStore]) -> None:
        self.clocks = Clock(), Clock()
        self.stores = [makeStore(clock=each, lease=30.0) for each in self.clocks]
        deliver(self.stores[0], b"one\n", "alice")
        deliver(self.stores[0], b"two\n", "alice")

    def advance(self, seconds: float, *nodes: int) -> None:
        for _ in range(round(seconds * 10)):
            for each in nodes or (0, 1):
                self.clocks[each].advance(0.1)

    def client(self, node: int) -> Client:
        """
        Log in, without waiting for the answer to the password.
        """
        client = Client(POP3Factory(Anybody(self.stores[node]), clock=self.clocks[node]))
        assert client.say(b"USER alice").startswith(b"+OK")
        client.send(b"PASS x\r\n")
        return client


@pytest.fixture
def nodes(makeStore: Callable[..., SQLStore]) -> Nodes:
    return Nodes(makeStore)


def test_idleSessionGivesWay(nodes: Nodes) -> None:
    """
    An idle session releases the mailbox to a session of another node, and a busy one does not.
    """
    first = nodes.client(0)
    assert first.received().startswith(b"+OK")
    nodes.advance(1)
    busy = nodes.client(1)
    nodes.advance(3)
    assert busy.received().startswith(b"-ERR [IN-USE]")
    nodes.advance(Policy().takeoverIdle, 0)
    second = nodes.client(1)
    assert second.received() == b""
    nodes.advance(2)
    assert second.received().startswith(b"+OK")
    first.received()
    assert not first.isOpen
    assert second.say(b"STAT") == b"+OK 2 10\r\n"


def test_nodeThatIsGone(nodes: Nodes, driver: Driver) -> None:
    """
    The mailboxes of a node that does not renew its row are free when the row has expired.
    """
    assert nodes.client(0).received().startswith(b"+OK")
    second = nodes.client(1)
    nodes.advance(3, 1)
    assert second.received().startswith(b"-ERR [IN-USE]")
    change(driver, "UPDATE node SET expires = expires - 31000")
    assert nodes.client(1).received().startswith(b"+OK")


def test_leaseOfNoSession(nodes: Nodes, driver: Driver) -> None:
    """
    If the answer to the COMMIT of a login was lost, the node has a lease without a session.  It
    releases this lease when another node wants it.
    """
    deliver(nodes.stores[0], b"x\n", "carol")
    logIn(nodes.stores[0], "carol")
    nodes.advance(1)
    change(
        driver,
        "UPDATE lease SET token = token + 1, (node, epoch) = (SELECT name, epoch FROM node) "
        "WHERE mailbox = (SELECT id FROM mailbox WHERE name = 'alice')",
    )
    second = nodes.client(1)
    nodes.advance(2)
    assert second.received().startswith(b"+OK")


def test_nodeThatComesBack(nodes: Nodes, driver: Driver) -> None:
    """
    A node that was cut off deletes nothing from a mailbox that another node has taken.
    """
    first = nodes.client(0)
    assert first.received().startswith(b"+OK")
    assert first.say(b"DELE 1").startswith(b"+OK")
    change(driver, "UPDATE node SET expires = expires - 31000")
    second = nodes.client(1)
    assert second.received().startswith(b"+OK")
    second.say(b"QUIT")
    assert first.say(b"QUIT").startswith(b"-ERR [IN-USE]")
    assert ask(driver, "SELECT COUNT(*) FROM message") == [(2,)]


def test_leaseThatWasNotTaken(nodes: Nodes, driver: Driver) -> None:
    """
    A session goes on after the row of its node has expired, if nobody has taken its mailbox.
    """
    first = nodes.client(0)
    assert first.received().startswith(b"+OK")
    change(driver, "UPDATE node SET expires = expires - 31000")
    first.say(b"DELE 1")
    assert first.say(b"QUIT").startswith(b"+OK")
    assert ask(driver, "SELECT COUNT(*) FROM message") == [(1,)]


def test_lostLeaseEndsTheSession(nodes: Nodes, driver: Driver) -> None:
    """
    A session whose lease is lost gets one -ERR, and is ended.
    """
    first = nodes.client(0)
    assert first.received().startswith(b"+OK")
    change(driver, "UPDATE node SET expires = expires - 31000")
    assert nodes.client(1).received().startswith(b"+OK")
    nodes.advance(9, 0)
    said = first.received() + (first.say(b"RETR 1") if first.isOpen else b"")
    assert b"-ERR" in said
    assert not first.isOpen


def test_oneWriteForAllSessions(nodes: Nodes, driver: Driver) -> None:
    """
    A node renews one row for all its sessions.
    """
    for user in ("b", "c", "d"):
        deliver(nodes.stores[0], b"x\n", user)
        logIn(nodes.stores[0], user)
    before = ask(driver, "SELECT name, expires FROM node")
    change(driver, "UPDATE node SET expires = expires - 20000")
    nodes.advance(9, 0)
    ((name, expires),) = ask(driver, "SELECT name, expires FROM node")
    assert before[0][0] == name and expires > before[0][1] - 20000
    assert ask(driver, "SELECT COUNT(*) FROM lease WHERE node <> ''") == [(3,)]


def test_stop(nodes: Nodes, driver: Driver) -> None:
    """
    A node that stops frees its mailboxes at once.
    """
    assert nodes.client(0).received().startswith(b"+OK")
    finish(nodes.stores[0].node.stop())
    assert ask(driver, "SELECT COUNT(*) FROM node WHERE expires > 0") == [(0,)]
    assert nodes.client(1).received().startswith(b"+OK")


# --- unique-ids and listings -------------------------------------------------------------------


def test_noUniqueIDTwice(makeStore: Callable[..., SQLStore]) -> None:
    """
    A unique-id is not used again, even if the mailbox was empty in between.
    """
    store = makeStore()
    seen: set[str] = set()
    for _ in range(5):
        deliver(store, b"x\n", "alice")
        client = logIn(store)
        (uniqueID,) = uidl(client)
        assert uniqueID not in seen
        seen.add(uniqueID)
        client.say(b"DELE 1")
        assert client.say(b"QUIT").startswith(b"+OK")


def test_sharedListing(makeStore: Callable[..., SQLStore], monkeypatch: pytest.MonkeyPatch) -> None:
    """
    An unchanged mailbox is listed once for all its sessions.
    """
    listings: list[int] = []
    listIn = mailbox.listIn
    monkeypatch.setattr(mailbox, "listIn", lambda *each: listings.append(1) or listIn(*each))
    store = makeStore()
    deliver(store, b"x\n", "alice")
    for _ in range(3):
        client = logIn(store)
        assert client.say(b"STAT") == b"+OK 1 3\r\n"
        client.say(b"SLEE")
        assert client.say(b"WAKE").startswith(b"+OK [ACTIVITY/NONE]")
        client.say(b"QUIT")
    assert len(listings) == 1
    client = logIn(store)
    client.say(b"SLEE")
    deliver(store, b"y\n", "alice")
    assert client.say(b"WAKE").startswith(b"+OK [ACTIVITY/NEW]")
    assert client.say(b"STAT") == b"+OK 2 6\r\n"
    assert len(listings) == 2


@pytest.mark.parametrize("name", ["", "a b", "x" * 321, "a\0b", "\udcff"])
def test_namesThatNobodyHas(makeStore: Callable[..., SQLStore], name: str) -> None:
    store = makeStore()
    finish(store.prepare())
    assert store.openMailbox(None, name) is None


# --- the schema -------------------------------------------------------------------------------


def test_otherVersions(makeStore: Callable[..., SQLStore], driver: Driver) -> None:
    change(driver, f"UPDATE pop3svc_schema SET version = {VERSION + 1}")
    store = makeStore()
    with pytest.raises(ValueError, match="install a newer pop3svc"):
        store.check()
    with pytest.raises(POP3ResponseError):
        finish(store.prepare())
    assert isinstance(deliver(store, b"x", "alice")[0], StoreUnavailable)
    change(driver, "DROP TABLE pop3svc_schema")
    reader = makeStore(readOnly=True)
    with pytest.raises(ValueError, match="run 'pop3svc sql migrate'"):
        reader.check()


def test_migrateTwice(driver: Driver) -> None:
    pool = InlinePool(driver)
    database = Database(driver, pool=pool)
    assert finish(database.run(migrate)) == (VERSION, VERSION)
    change(driver, f"UPDATE pop3svc_schema SET version = {VERSION + 1}")
    with pytest.raises(SchemaError):
        finish(database.run(migrate))
    pool.drop()


def test_databaseAway(makeStore: Callable[..., SQLStore], driver: Driver) -> None:
    """
    A session gets [SYS/TEMP] while the database is away, and goes on when it is back.
    """
    store = makeStore()
    deliver(store, b"x\n", "alice")
    client = logIn(store)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Database, "run", lambda *_, **__: fail(DatabaseUnavailable("away")))
        assert client.say(b"RETR 1") == b"-ERR [SYS/TEMP] Mailbox is not available now.\r\n"
        client.say(b"DELE 1")
        assert client.say(b"CORE").startswith(b"-ERR [SYS/TEMP]")
    assert client.say(b"RSET").startswith(b"+OK")
    assert client.say(b"RETR 1").startswith(b"+OK")


# --- old messages ------------------------------------------------------------------------------


def test_expiry(makeStore: Callable[..., SQLStore], driver: Driver) -> None:
    """
    Old messages are deleted, but not in a mailbox that a session has locked.
    """
    store = makeStore(expireDays=30)
    for user in ("alice", "bob"):
        deliver(store, b"old\n", DeliveryCopy(user, arrival=time.time() - 31 * 86400))
        deliver(store, b"new\n", DeliveryCopy(user, arrival=time.time() - 29 * 86400))
    client = logIn(store)
    house = store._housekeeping
    finish(house.run())
    assert ask(driver, "SELECT SUM(messages) FROM mailbox") == [(3,)]
    assert client.say(b"RETR 1").startswith(b"+OK")
    client.say(b"QUIT")
    # The latest round was so recent that another node does none.
    finish(makeStore(expireDays=30)._housekeeping.run())
    assert ask(driver, "SELECT SUM(messages) FROM mailbox") == [(3,)]
    change(driver, "UPDATE lease SET epoch = 0 WHERE mailbox = 0")
    finish(house.run())
    assert logIn(store).say(b"STAT") == b"+OK 1 5\r\n"


@pytest.mark.parametrize("days", [-8, 8, 4000])
def test_clockIsDoubted(makeStore: Callable[..., SQLStore], driver: Driver, days: int) -> None:
    """
    If the latest round was long ago, or is far in the future, the clock may be wrong.  Nothing is
    deleted until the operator says that the clock is right.
    """
    store = makeStore(expireDays=30)
    deliver(store, b"old\n", DeliveryCopy("alice", arrival=time.time() - 31 * 86400))
    then = int((time.time() - days * 86400) * 1000)
    change(driver, f"INSERT INTO lease (mailbox, node, epoch, token) VALUES (0, '', {then}, 0)")
    house = store._housekeeping
    seen = logged(lambda: [finish(house.run()) for _ in range(2)])
    assert ask(driver, "SELECT SUM(messages) FROM mailbox") == [(1,)]
    assert ask(driver, "SELECT epoch FROM lease WHERE mailbox = 0") == [(then,)]
    (line,) = [formatEvent(each) for each in seen if "clock" in formatEvent(each)]
    statement = line.partition("if it is right, execute: ")[2]
    change(driver, statement)
    finish(house.run())
    assert ask(driver, "SELECT SUM(messages) FROM mailbox") == [(0,)]


def test_housekeepingOfANewDatabase(tmp_path: Path) -> None:
    """
    Housekeeping makes the tables of a new database if no login and no delivery has made them.
    """
    driver = makeDriver(f"sqlite:{tmp_path}/new.db", mayCreate=True)
    pool = InlinePool(driver)
    store = SQLStore(driver, expireDays=30, clock=Clock(), pool=pool, executor=Inline())
    finish(store._housekeeping.run())
    assert deliver(store, b"x\n", "alice") == [None]
    pool.drop()


def test_deliveryToAReadOnlyStore(makeStore: Callable[..., SQLStore], driver: Driver) -> None:
    """
    A read-only store takes no mail, even if the database would let the store write.
    """
    deliver(makeStore(), b"old\n", "alice")
    [error] = deliver(makeStore(readOnly=True), b"new\n", "alice")
    assert isinstance(error, StoreUnavailable)
    assert ask(driver, "SELECT SUM(messages) FROM mailbox") == [(1,)]


def test_housekeeping(makeStore: Callable[..., SQLStore]) -> None:
    """
    A command that imports or exports starts the store, and not its housekeeping.
    """
    store = makeStore(expireDays=30)
    verifyObject(IHousekeeping, store)
    before = list(store._clock.getDelayedCalls())
    store.startService()
    assert store._clock.getDelayedCalls() == before
    store.startHousekeeping()
    assert len(store._clock.getDelayedCalls()) == len(before) + 1
    store.stopHousekeeping()
    assert store._clock.getDelayedCalls() == before


def test_expireCapability(makeStore: Callable[..., SQLStore]) -> None:
    for days, says in ((30, b"\r\nEXPIRE 30\r\n"), (0, b"\r\nEXPIRE NEVER\r\n")):
        store = makeStore(expireDays=days)
        provider = AccountsProvider(store, [])
        client = Client(POP3Factory(provider, clock=Clock()))
        assert says in client.say(b"CAPA")
        client = Client(POP3Factory(DomainProvider({None: provider}, "x"), clock=Clock()))
        assert says in client.say(b"CAPA")


def test_unfinishedDeliveries(makeStore: Callable[..., SQLStore], driver: Driver) -> None:
    store = makeStore()
    deliver(store, b"x\n", "alice")
    change(driver, "INSERT INTO content VALUES (1, 0, 0, 'lines', 0, 5)")
    change(driver, "INSERT INTO piece VALUES (1, 0, 'x')")
    change(driver, "INSERT INTO node VALUES ('gone', 1, 1)")
    finish(store._housekeeping.run())
    assert ask(driver, "SELECT COUNT(*), MIN(uses) FROM content") == [(1, 1)]
    assert ask(driver, "SELECT COUNT(*) FROM piece") == [(1,)]
    assert ask(driver, "SELECT COUNT(*) FROM node WHERE name = 'gone'") == [(0,)]


# --- reading ahead -------------------------------------------------------------------------------


def test_readAhead(makeStore: Callable[..., SQLStore], monkeypatch: pytest.MonkeyPatch) -> None:
    """
    If a client retrieves one message after the other, the service makes few queries, and sends each
    message as it was delivered.
    """
    queries: list[str] = []
    run = Database.run

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        queries.append(getattr(arguments[0], "__name__", ""))
        return run(self, *arguments, **options)

    store = makeStore()
    messages = [b"%d" % each * (20_000 if each == 7 else 10) + b"\r\n" for each in range(40)]
    for message in messages:
        deliver(store, message, "alice")
    client = logIn(store)
    with monkeypatch.context() as patch:
        patch.setattr(Database, "run", counted)
        for number, message in enumerate(messages, 1):
            said = client.say(b"RETR %d" % number)
            assert said.partition(b"\r\n")[2] == message + b".\r\n"
    assert 4 <= len(queries) <= 8
    # A message that was deleted meanwhile is refused, also if it was read ahead.
    client.say(b"DELI 2")
    assert client.say(b"RETR 1").startswith(b"+OK")
    assert client.say(b"RETR 3").startswith(b"+OK")
    assert client.say(b"RETR 2").startswith(b"-ERR")
    for command in (b"TOP 40 0", b"RETR 5", b"RETR 6", b"RETR 30", b"RETR 7"):
        assert client.say(command).startswith(b"+OK")


def test_damageThatWasReadAhead(makeStore: Callable[..., SQLStore], driver: Driver) -> None:
    store = makeStore()
    for _ in range(4):
        deliver(store, b"x\n", "alice")
    change(
        driver,
        "UPDATE message SET octets = octets + 1 WHERE position = 3",
    )
    client = logIn(store)
    for number in (1, 2, 4):
        assert client.say(b"RETR %d" % number).startswith(b"+OK")
    assert client.say(b"RETR 3") == b"-ERR [SYS/PERM] Message cannot be read.\r\n"
