"""
Accounts in an LDAP directory, with a real service and a real slapd.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.maildirs import deliver
from tests.support.running import Connection, Running, environment, freePort, replyToLogin, script
from tests.support.slapd import BASE, PASSWORD, READER, Slapd, needsSlapd

pytestmark = needsSlapd

AWAY = b"-ERR [SYS/TEMP] Accounts are not available now.\r\n"
WRONG = b"-ERR [AUTH] Wrong name or password.\r\n"


@pytest.fixture
def slapd() -> Iterator[Slapd]:
    with Slapd() as slapd:
        yield slapd


def options(tmp_path: Path, port: int, auth: str) -> list[str]:
    deliver(tmp_path / "mail" / "ann", "1.x")
    return [
        *("--provider", f"maildir:{tmp_path / 'mail'}", "--auth", f"ldap:{auth}"),
        *("--endpoint", f"tcp:{port}:interface=127.0.0.1"),
    ]


def search(slapd: Slapd, url: str = "", *more: str) -> str:
    return ":".join(
        [
            *(url or slapd.url, f"base={BASE}", f"bind={READER}"),
            *(f"password-file={slapd.passwordFile}", *more),
        ]
    )


def answer(port: int, name: str, password: str = PASSWORD) -> bytes:
    return replyToLogin(port, name, password)


def isUp(reply: bytes) -> bool:
    return reply.startswith(b"+OK")


def test_answers(tmp_path: Path, slapd: Slapd) -> None:
    port = freePort()
    slapd.addUser("twice")
    slapd.addUser("twice", "cn=twice")
    with Running(tmp_path / "home", *options(tmp_path, port, search(slapd))) as running:
        running.up()
        assert isUp(answer(port, "ann")) and isUp(answer(port, "ANN"))
        for name, password in (("ann", "wrong"), ("nobody", PASSWORD), ("a*", PASSWORD)):
            assert answer(port, name, password) == WRONG
        assert answer(port, "twice") == WRONG
        assert isUp(answer(port, "ann"))
        lines = running.finish(PASSWORD)
    assert sum("the filter finds more than one entry" in line for line in lines) == 1
    assert sum("failed login" in line for line in lines) == 4
    # "ANN" has no mailbox of its own.
    assert [each.name for each in (tmp_path / "mail").iterdir()] == ["ann"]


def test_directBind(tmp_path: Path, slapd: Slapd) -> None:
    port = freePort()
    auth = f"{slapd.tlsURL}:dn=uid={{user}},{BASE}:ca={slapd.ca}"
    with Running(tmp_path / "home", *options(tmp_path, port, auth)) as running:
        running.up()
        assert isUp(answer(port, "ann")) and isUp(answer(port, "Ann"))
        assert answer(port, "ann", "wrong") == WRONG
        assert answer(port, f"ann,{BASE}") == WRONG
        running.finish(PASSWORD)


def test_comesAndGoes(tmp_path: Path, slapd: Slapd) -> None:
    """
    The service starts without the server, and logins succeed whenever the server can be reached.
    """
    slapd.stop()
    port = freePort()
    auth = search(slapd, "", "starttls=yes", f"ca={slapd.ca}", "timeout=1")
    with Running(tmp_path / "home", *options(tmp_path, port, auth)) as running:
        running.up()
        assert answer(port, "ann") == AWAY
        slapd.start()
        assert isUp(answer(port, "ann"))
        slapd.stop()
        slapd.start()
        assert isUp(answer(port, "ann"))
        slapd.freeze()
        for _ in range(2):
            assert answer(port, "ann") == AWAY
        slapd.thaw()
        assert isUp(answer(port, "ann"))
        slapd.stop(signal.SIGKILL)
        assert answer(port, "ann") == AWAY
        slapd.start()
        assert isUp(answer(port, "ann"))
        lines = running.finish(PASSWORD)
    begun = [line.partition("is not available: ")[2] for line in lines]
    begun = [each.partition(" (")[0] for each in begun if each]
    assert begun == ["it cannot be reached", "no answer within 1 s", "it cannot be reached"]
    assert sum("is available again" in line for line in lines) == 3
    assert not any("failed login" in line for line in lines)


def test_wake(tmp_path: Path, slapd: Slapd) -> None:
    """
    A sleeper whose entry was removed cannot wake up.
    """
    port = freePort()
    dn = slapd.addUser("sleeper")
    deliver(tmp_path / "mail" / "sleeper", "1.x")
    with Running(tmp_path / "home", *options(tmp_path, port, search(slapd))) as running:
        running.up()
        sleeper = Connection(port)
        sleeper.line()
        sleeper.logIn(b"sleeper", PASSWORD.encode())
        for _ in range(2):
            assert isUp(sleeper.say(b"SLEE")) and isUp(sleeper.say(b"WAKE"))
        assert isUp(sleeper.say(b"SLEE"))
        slapd.remove(dn)
        assert sleeper.say(b"WAKE").startswith(b"-ERR")
        sleeper.socket.close()
        running.finish(PASSWORD)


class SilentServer:
    """
    A server that accepts connections and never answers.
    """

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._held: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                self._held.append(self._listening.accept()[0])
            except OSError:
                return

    def endAll(self) -> None:
        """
        End the connections.
        """
        while self._held:
            self._held.pop().close()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.endAll()


@pytest.fixture
def silent() -> Iterator[SilentServer]:
    server = SilentServer()
    yield server
    server.close()


def test_handshakeThatNeverEnds(tmp_path: Path, slapd: Slapd, silent: SilentServer) -> None:
    """
    libldap's TLS handshake has no time limit, but the service goes on.
    """
    port = freePort()
    auth = search(slapd, f"ldaps://127.0.0.1:{silent.port}", f"ca={slapd.ca}", "timeout=1")

    def seconds() -> float:
        began = time.monotonic()
        assert answer(port, "ann") == AWAY
        return time.monotonic() - began

    with Running(tmp_path / "home", *options(tmp_path, port, auth)) as running:
        running.up()
        # The time limit of a check in a thread is one second longer than the option timeout.
        assert seconds() >= 2
        with ThreadPoolExecutor(8) as clients:
            assert set(clients.map(answer, [port] * 24, ["ann"] * 24)) == {AWAY}
        # No further check begins, because too many threads hang.
        assert seconds() < 2
        silent.endAll()
        end = time.monotonic() + 60
        while seconds() < 2:
            assert time.monotonic() < end, "no check begins"
        lines = running.finish(PASSWORD)
    assert sum("checks do not end; logins get [SYS/TEMP]" in line for line in lines) == 1
    (line,) = [line for line in lines if "is not available" in line]
    assert line.endswith("is not available: no answer within 2 s")
    assert not any("failed login" in line for line in lines)


def test_times(tmp_path: Path, slapd: Slapd) -> None:
    """
    A wrong password and an unknown name are refused after the same time, which is longer than a
    bind takes.
    """
    port = freePort()
    with Running(tmp_path / "home", *options(tmp_path, port, search(slapd))) as running:
        running.up()
        taken: dict[str, list[float]] = {"ann": [], "nobody": []}
        for _ in range(2):
            for name, times in taken.items():
                began = time.monotonic()
                assert answer(port, name, "wrong") == WRONG
                times.append(time.monotonic() - began)
        running.finish(PASSWORD)
    assert min(min(times) for times in taken.values()) >= 1


def test_deliveries(tmp_path: Path, slapd: Slapd) -> None:
    """
    LMTP and C{pop3svc deliver} know the users.  While the directory is not available, they ask for
    another attempt.
    """
    port, lmtp = freePort(), freePort()
    auth = search(slapd, "", "timeout=2")
    more = ["--lmtp", f"tcp:{lmtp}:interface=127.0.0.1"]
    with Running(tmp_path / "home", *options(tmp_path, port, auth), *more) as running:
        running.up()
        client = Connection(lmtp)
        assert client.line().startswith(b"220 ")
        client.socket.sendall(b"LHLO mta.test\r\n")
        while client.line().startswith(b"250-"):
            pass
        assert client.say(b"MAIL FROM:<>").startswith(b"250 ")
        assert client.say(b"RCPT TO:<ann>").startswith(b"250 ")
        for name in (b"nobody", b"a*"):
            assert client.say(b"RCPT TO:<%s>" % name).startswith(b"550 ")
        slapd.stop()
        assert client.say(b"RCPT TO:<ann>").startswith(b"451 ")
        client.socket.close()
        running.finish(PASSWORD)
    command = [script("pop3svc"), "deliver", "--provider", f"maildir:{tmp_path / 'mail'}"]
    command += ["--auth", f"ldap:{auth}"]

    def deliverTo(name: str) -> int:
        return subprocess.run(
            [*command, name],
            input=b"Subject: one\n\n",
            capture_output=True,
            env=environment(tmp_path),
            check=False,
        ).returncode

    assert deliverTo("ann") == 75
    slapd.start()
    assert [deliverTo(each) for each in ("ann", "nobody")] == [0, 67]
    assert len(list((tmp_path / "mail" / "ann" / "new").iterdir())) == 2
