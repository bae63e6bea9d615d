"""
Logins while the database of the accounts is out of order.  Service and PostgreSQL are real.

If the database cannot answer, a login is refused with C{[SYS/TEMP]} in bounded time.  The login
does not count as a guess, and logins work again without a restart of the service.
"""

from __future__ import annotations

import signal
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest
from scramp import ScramClient

from pop3svc.database import Database
from pop3svc.protocol.challenges import cramDigest
from tests.support.maildirs import deliver
from tests.support.postgresql import PostgreSQL, needsPostgreSQL
from tests.support.proxies import Proxy
from tests.support.running import Connection, Running, freePort

pytestmark = needsPostgreSQL

QUERY = "SELECT password FROM account WHERE name = :user"
AWAY = b"-ERR [SYS/TEMP] Accounts are not available now.\r\n"
IN = b"+OK Logged in.\r\n"
WRONG = b"-ERR [AUTH] Wrong name or password.\r\n"
METHODS = ("PASS", "PLAIN", "CRAM-MD5", "SCRAM-SHA-256")
# Seconds within which a login is answered: the limit, and a reserve for a busy machine.
BOUND = Database.LIMIT + 5


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    with PostgreSQL() as server:
        server.execute("CREATE TABLE account (name text, password text)")
        for name in ("ann", *METHODS):
            server.execute("INSERT INTO account VALUES (%s, '{PLAIN}right')", [name])
        yield server


@pytest.fixture
def proxy(server: PostgreSQL) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


class Service:
    """
    A service whose accounts are in a database, and which bans clients that guess passwords.
    """

    def __init__(self, path: Path, port: int) -> None:
        for name in ("ann", *METHODS):
            deliver(path / "mail" / name, "1.x")
        self.port = freePort()
        dsn = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        enabled = [part for each in METHODS[2:] for part in ("--enable", each)]
        self.running = Running(
            path / "home",
            *("--provider", f"maildir:{path / 'mail'}", "--auth", f"sql:{dsn}:query={QUERY}"),
            *("--endpoint", f"tcp:{self.port}:interface=127.0.0.1", *enabled),
            *("--ban-exempt", "192.0.2.0/24", "--data", str(path / "data")),
        )

    def __enter__(self) -> Service:
        self.running.up()
        return self

    def __exit__(self, *arguments: object) -> None:
        self.running.__exit__(None, None, None)

    def end(self) -> list[str]:
        """
        @return: the log.
        """
        assert self.running.end(signal.SIGTERM) == 0
        lines = self.running.lines
        assert not [line for line in lines if "Traceback" in line or "right" in line]
        return lines

    def answer(self, method: str = "PASS", password: str = "right", name: str = "ann") -> bytes:
        """
        @return: the answer to a login.
        """
        connection = Connection(self.port)
        try:
            said = _logIn(connection, method, password, name)
            if said == IN:
                assert connection.say(b"QUIT").startswith(b"+OK")
            return said
        finally:
            connection.socket.close()

    def answers(self, passwords: tuple[str, ...] = ("right",)) -> dict[tuple[str, str], bytes]:
        """
        Log in by all methods at once, by each method as the user who has the name of the method.

        @return: the answers, each of which came in time.
        """
        found: dict[tuple[str, str], bytes] = {}

        def work(method: str, password: str) -> None:
            began = time.monotonic()
            said = self.answer(method, password, method)
            seconds = time.monotonic() - began
            found[method, password] = said if seconds < BOUND else b"after %d s" % seconds

        threads = [
            threading.Thread(target=work, args=(method, password))
            for method in METHODS
            for password in passwords
        ]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert len(found) == len(threads)
        return found


def _logIn(connection: Connection, method: str, password: str, name: str = "ann") -> bytes:
    assert connection.line().startswith(b"+OK")
    if method == "PASS":
        assert connection.say(b"USER " + name.encode()).startswith(b"+OK")
        return connection.say(b"PASS " + password.encode())
    reply = connection.say(b"AUTH " + method.encode())
    assert reply.startswith(b"+ "), reply
    if method == "PLAIN":
        return connection.say(b64encode(f"\0{name}\0{password}".encode()))
    if method == "CRAM-MD5":
        digest = cramDigest(b64decode(reply[2:]).decode(), password)
        return connection.say(b64encode(f"{name} {digest}".encode()))
    client = ScramClient([method], name, password)
    reply = connection.say(b64encode(client.get_client_first().encode()))
    if not reply.startswith(b"+ "):
        return reply
    client.set_server_first(b64decode(reply[2:]).decode())
    reply = connection.say(b64encode(client.get_client_final().encode()))
    return connection.say(b"") if reply.startswith(b"+ ") else reply


def assertAll(answers: dict[tuple[str, str], bytes], wanted: bytes) -> None:
    assert answers == dict.fromkeys(answers, wanted)


def test_frozen(tmp_path: Path, server: PostgreSQL) -> None:
    """
    A frozen server answers nothing on old and new connections.  Right and wrong passwords get the
    same answer, and none of them counts as a guess.
    """
    with Service(tmp_path, server.port) as service:
        assertAll(service.answers(), IN)
        server.freeze()
        try:
            assertAll(service.answers(("right", "wrong1", "wrong2", "wrong3")), AWAY)
        finally:
            server.thaw()
        # Three wrong guesses would have banned the address.
        assertAll(service.answers(), IN)
        assert service.answer("PLAIN", "wrong") == WRONG
        lines = service.end()
    # A query that began before the thaw may still fail after another one has worked.
    faults = sum("is not available: " in line for line in lines)
    assert faults in (1, 2)
    assert sum("is available again" in line for line in lines) == faults
    assert sum("failed login" in line for line in lines) == 1
    assert not any("banned" in line for line in lines)


def test_othersWhileFrozen(tmp_path: Path, server: PostgreSQL) -> None:
    """
    Clients that do not need the database are served at once: a session that is logged in, and a new
    connection.
    """
    with Service(tmp_path, server.port) as service:
        session = Connection(service.port)
        assert _logIn(session, "PASS", "right") == IN
        waiting = Connection(service.port)
        assert waiting.line().startswith(b"+OK")
        assert waiting.say(b"USER ann").startswith(b"+OK")
        server.freeze()
        try:
            waiting.socket.sendall(b"PASS right\r\n")
            began = time.monotonic()
            assert session.say(b"RETR 1").startswith(b"+OK")
            assert session.lines()
            assert session.say(b"QUIT").startswith(b"+OK")
            other = Connection(service.port)
            assert other.line().startswith(b"+OK")
            assert other.say(b"CAPA").startswith(b"+OK")
            # This time is shorter than any limit of the database.
            assert time.monotonic() - began < 3
            assert waiting.line() == AWAY
        finally:
            server.thaw()
        service.end()


def test_restartsUnderLoad(tmp_path: Path, server: PostgreSQL) -> None:
    """
    While clients log in, the server is restarted in order, and is killed and started again.
    """
    with Service(tmp_path, server.port) as service:
        said: set[bytes] = set()
        isOver = threading.Event()

        def load() -> None:
            while not isOver.is_set():
                said.update(service.answer(method, name=method) for method in METHODS)

        loading = threading.Thread(target=load)
        loading.start()
        try:
            for end in (server.stop, server.kill):
                end()
                assert service.answer() == AWAY
                server.start()
                assert service.answer() == IN
        finally:
            isOver.set()
            loading.join()
        assert said == {IN, AWAY}
        lines = service.end()
    assert not any("failed login" in line or "banned" in line for line in lines)


def test_slow(tmp_path: Path, proxy: Proxy) -> None:
    """
    A slow database delays a login.  If the database is too slow, the login gets an error.
    """
    with Service(tmp_path, proxy.port) as service:
        assertAll(service.answers(), IN)
        proxy.delay = 0.2
        assertAll(service.answers(), IN)
        proxy.delay = Database.LIMIT
        assertAll(service.answers(("right", "wrong1", "wrong2", "wrong3")), AWAY)
        proxy.delay = 0.0
        assertAll(service.answers(), IN)
        lines = service.end()
    assert not any("failed login" in line or "banned" in line for line in lines)


def test_silent(tmp_path: Path, proxy: Proxy) -> None:
    """
    The network swallows the answers of the database.
    """
    with Service(tmp_path, proxy.port) as service:
        assertAll(service.answers(), IN)
        proxy.isSilent = True
        assertAll(service.answers(("right", "wrong")), AWAY)
        proxy.isSilent = False
        assertAll(service.answers(), IN)
        service.end()


@pytest.mark.parametrize(
    "lie",
    [b"\0" * 100, b"HTTP/1.1 400 Bad Request\r\n\r\n", b"R\0\0\0\x08\0\0\0\0Z\0\0\0\5I", b"N"],
)
def test_lies(tmp_path: Path, proxy: Proxy, lie: bytes) -> None:
    """
    Something else answers at the address of the database.
    """
    with Service(tmp_path, proxy.port) as service:
        assertAll(service.answers(), IN)
        proxy.lie = lie
        proxy.disconnect()
        assertAll(service.answers(("right", "wrong1", "wrong2", "wrong3")), AWAY)
        proxy.lie = b""
        assertAll(service.answers(), IN)
        lines = service.end()
    assert sum("is not available: " in line for line in lines) == 1
    assert not any("failed login" in line or "banned" in line for line in lines)


def test_cutAnywhere(tmp_path: Path, proxy: Proxy) -> None:
    """
    Wherever the answers of the database are cut, the account neither vanishes nor has another
    password.
    """
    with Service(tmp_path, proxy.port) as service:
        said = set()
        for cutAt in range(0, 1200, 7):
            proxy.cutAt = cutAt
            proxy.disconnect()
            said.add(service.answer("PLAIN"))
        proxy.cutAt = None
        assert service.answer() == IN
        assert said == {IN, AWAY}
        lines = service.end()
    assert not any("failed login" in line or "banned" in line for line in lines)
