"""
Conversations as they happen, without the secrets in them.
"""

from __future__ import annotations

import hmac
import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import md5
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred

from pop3svc.accounts.checkers import AccountsProvider
from pop3svc.accounts.passwordfile import PasswordFile
from pop3svc.admin.operations import OperationError
from pop3svc.admin.server import AdminProtocol
from pop3svc.policy import Policy
from pop3svc.protocol.sender import ReplySender
from pop3svc.protocol.taps import Tap
from pop3svc.providers.memory import MemoryStore
from pop3svc.testing import Client, Inline
from tests.admin.test_operations import Process, Socket
from tests.support.connections import BIG

SECRET = b"hunter2-is-secret"
# With this stallTimeout the service gives up a client that reads nothing before the trace ends.
SHORT = Policy(cleartextLogin="always", stallTimeout=30)


class Traced(Process):
    """
    A service in memory with a trace.
    """

    def __init__(self, target: str, before: Callable[[Process], object] = lambda _: None) -> None:
        super().__init__(policy=Policy(cleartextLogin="always"))
        before(self)
        self.over = self.begin("trace", target=target)

    def lines(self) -> list[str]:
        """
        @return: the lines since the last call, without session and time.
        """
        json.dumps(self.items)
        found = [f"{each['from']}: {each['text']}" for each in self.items]
        self.items.clear()
        return found


def isUntouched(process: Process) -> bool:
    """
    @return: whether nothing is left of a trace.
    """
    return "buildProtocol" not in process.factory.__dict__ and all(
        not {"lineReceived", "connectionMade", "connectionLost"} & set(vars(each))
        and type(each._sender) is ReplySender
        for each in process.factory.connections
    )


def test_address() -> None:
    process = Traced("192.0.2.7")
    process.connect("192.0.2.8").say(b"CAPA")
    assert process.lines() == []
    client = process.connect()
    for line in (b"USER alice", b"PASS secret", b"STAT", b"RETR 1", b"RETR 2", b"TOP 1 0"):
        client.say(line)
    first = process.items[0]
    assert first["session"] == str(client.protocol.session.info.connectionID)
    age = datetime.now(UTC) - datetime.fromisoformat(first["time"])
    assert abs(age.total_seconds()) < 600
    lines = process.lines()
    octets = len(BIG) + BIG.count(b"\n") + 3
    body = f"S: ({octets} octets)"
    assert lines == [
        f"S: +OK {process.factory.provider.name} ready.",
        "C: USER ****",
        lines[2],
        "C: PASS ****",
        lines[4],
        "C: STAT",
        lines[6],
        "C: RETR 1",
        lines[8],
        "S: (14 octets)",
        "C: RETR 2",
        lines[11],
        body,
        "C: TOP 1 0",
        lines[14],
        "S: (11 octets)",
    ]
    assert all(lines[each].startswith("S: +OK") for each in (2, 4, 6, 8, 11, 14))
    client.say(b"QUIT")
    assert process.lines()[-2:] == ["S: +OK Bye.", "-: the connection has ended"]


def test_user() -> None:
    """
    When the client has sent the name of the traced user, its earlier lines are shown, too.  The
    lines of other users are never shown.
    """
    process = Traced("alice", lambda process: process.connect().logIn())
    bob, alice = process.connect(), process.connect()
    # Another session holds the lock, so end it first.
    process.do("kick", target="alice")
    process.items.clear()
    bob.say(b"CAPA")
    bob.say(b"USER bob")
    alice.say(b"CAPA")
    assert process.lines() == []
    alice.say(b"USER alice")
    lines = process.lines()
    assert lines[1] == "C: CAPA" and lines[3].endswith(" octets)")
    assert lines[4] == "C: USER alice"
    bob.say(b"PASS secret")
    assert process.lines() == []
    alice.say(b"PASS secret")
    assert process.lines()[0] == "C: PASS ****"
    alice.say(b"NOOP")
    assert process.lines()[0] == "C: NOOP"
    # The next user of the connection is not the traced one.
    alice.say(b"QAUT")
    alice.say(b"USER bob")
    process.lines()
    alice.say(b"NOOP")
    assert process.lines() == []
    alice.vanish()
    bob.vanish()


def test_whoeverIsThere() -> None:
    """
    A trace shows existing sessions from their next line on, even if a command is running.
    """
    running: list[Any] = []

    def before(process: Process) -> None:
        client = process.connect()
        client.logIn()
        provider: Any = process.factory.provider
        provider.authenticate = lambda *arguments: running.append(Deferred()) or running[-1]
        other = process.connect()
        other.say(b"USER alice")
        other.send(b"PASS secret\r\n")
        running.extend([client, other])

    process = Traced("192.0.2.7", before)
    waits, client, other = running
    client.say(b"NOOP")
    assert process.lines() == ["C: NOOP", "S: +OK Done."]
    waits.callback(None)
    process.clock.advance(2)
    other.received()
    assert process.lines() == []
    assert other.say(b"QUACK") == b"-ERR Unknown command.\r\n"
    assert process.lines()[-1] == "S: -ERR Unknown command."
    other.say(b"CAPA")
    assert process.lines()[0] == "C: CAPA"
    client.stall()
    client.send(b"RETR 2\r\n")
    assert client.protocol._running is not None
    process.over.addErrback(lambda failure: failure.trap(CancelledError))
    process.over.cancel()
    # The client still gets the rest of its reply, but the trace shows no more.
    process.items.clear()
    client.transport.isStalled = False
    client.received()
    process.clock.advance(1)
    assert process.lines() == []
    assert client.say(b"NOOP").endswith(b"+OK Done.\r\n")


def test_cut() -> None:
    process = Traced("192.0.2.7", lambda process: process.factory.usePolicy(SHORT))
    client = process.connect()
    client.logIn()
    client.stall()
    client.send(b"RETR 2\r\n")
    for _ in range(50):
        process.clock.advance(15)
        if any("rest" in each["text"] for each in process.items):
            break
    client.pump()
    assert process.lines()[-2:] == [
        "S: (the rest of the reply was not sent)",
        "-: the connection has ended",
    ]


def test_ends() -> None:
    """
    A trace ends when its time is over, or when the operator cancels it.  Nothing is left of it.
    """
    process = Traced("alice")
    client = process.connect()
    client.say(b"CAPA")
    assert not isUntouched(process)
    for _ in range(59):
        process.clock.advance(1)
    assert not process.over.called
    process.clock.advance(1)
    assert process.over.called and isUntouched(process)
    assert not process.operations._traces._taps
    second = process.begin("trace", target="192.0.2.7", seconds="3600")
    process.begin("trace", target="192.0.2.7", seconds="1")
    process.clock.advance(1)
    client.say(b"NOOP")
    assert process.lines()[0].startswith("C: NOOP")
    second.addErrback(lambda failure: failure.trap(CancelledError))
    second.cancel()
    assert isUntouched(process)
    assert not [each for each in process.clock.getDelayedCalls() if "LoopingCall" in str(each)]


@pytest.mark.parametrize("seconds", ["0", "3601", "-1", "x", "", "\u0661", "9" * 5000])
def test_badSeconds(seconds: str) -> None:
    with pytest.raises(OperationError, match="^The argument seconds is a whole number, from 1"):
        Process().do("trace", target="alice", seconds=seconds)


def test_fewAtOnce() -> None:
    process = Process()
    for _ in range(4):
        process.begin("trace", target="alice")
    with pytest.raises(OperationError, match="^4 traces run already.$"):
        process.do("trace", target="alice")


def test_keptLinesAreBounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pop3svc.admin.traces._ALL_KEPT", 120)
    process = Traced("alice")
    clients = [process.connect() for _ in range(3)]
    for client in clients:
        for _ in range(40):
            client.say(b"CAPA")
    [trace] = process.operations._traces._traces
    assert trace._count <= 120
    assert trace._count == sum(map(len, trace._kept.values()))
    assert all(len(each) <= 50 for each in trace._kept.values())
    for client in clients:
        client.vanish()
    assert trace._count == 0 and not trace._kept


def test_failingTrace() -> None:
    """
    A bug in a trace does not harm the session.
    """
    process = Traced("192.0.2.7")
    process.operations._traces._traces[0].hear = lambda *arguments: 1 // 0
    client = process.connect()
    client.logIn()
    assert client.say(b"NOOP").startswith(b"+OK")


def test_refusedConnection() -> None:
    process = Traced("192.0.2.7")
    process.factory.usePolicy(Policy(maxConnections=1))
    process.connect()
    protocol: Any = process.factory.buildProtocol(IPv4Address("TCP", "192.0.2.7", 5))
    assert not hasattr(protocol, "session")
    # A connection whose TLS cannot be set up ends without a session.
    process.factory.usePolicy(Policy())
    protocol = process.factory.buildProtocol(IPv4Address("TCP", "192.0.2.7", 5))
    process.items.clear()
    protocol.connectionLost()
    assert process.lines() == []


# --- secrets ------------------------------------------------------------------------------


def plainText(name: bytes = b"alice", secret: bytes = SECRET) -> bytes:
    return b64encode(b"\0" + name + b"\0" + secret)


LINES = [
    [b"USER alice", b"PASS " + SECRET],
    [b"USER alice", b"pass " + SECRET + b" " + SECRET],
    [b"USER " + SECRET, b"PASS " + SECRET],
    [b"USER alice " + SECRET],
    [b"USER " + SECRET + b"\x07"],
    [SECRET, b"PASS  " + SECRET, b" PASS " + SECRET, b"PASS\t" + SECRET, b"\0PASS " + SECRET],
    [b"PASS" + SECRET, b"LOGIN alice " + SECRET, b"a1 LOGIN alice " + SECRET],
    [b"XLOG alice " + SECRET],
    [b"XLOG " + SECRET, b"XLOG  " + SECRET, b"XLOG " + SECRET + b" alice"],
    [b"APOP alice " + SECRET, b"APOP " + SECRET],
    [b"AUTH PLAIN " + plainText()],
    [b"AUTH PLAIN", plainText()],
    [b"AUTH LOGIN", b64encode(b"alice"), b64encode(SECRET)],
    [b"AUTH LOGIN " + b64encode(b"alice"), SECRET],
    [b"AUTH LOGIN", b"*", b64encode(SECRET)],
    [b"AUTH " + SECRET, b"AUTH X " + SECRET, b"AUTH OAUTHBEARER " + b64encode(SECRET)],
    [b"AUTH XOAUTH2", b64encode(SECRET), b"AUTH EXTERNAL", b64encode(SECRET)],
    [b"AUTH SCRAM-SHA-256 " + b64encode(b"n,,n=alice,r=" + SECRET), SECRET],
    [b"NOOP " + SECRET, b"LIST " + SECRET, b"QUIT " + SECRET],
    [b"STLS", b"USER alice", b"PASS " + SECRET],
    [b"STLS " + SECRET, b"USER alice\r\nPASS " + SECRET + b"\r\nSTAT"],
    [b"PASS " + SECRET * 2000],
    [b"AUTH PLAIN " + SECRET * 2000],
    [b"USER alice", b"PASS secret", b"RETR UID:" + SECRET[:0] + b"x", b"PASS " + SECRET],
    [b"USER alice", b"PASS secret", b"RETR " + SECRET, b"DELE 1 2 " + SECRET],
]


def offering(tmp_path: Path, **policy: Any) -> AccountsProvider:
    path = tmp_path / "users"
    path.write_bytes(b"alice:{PLAIN}" + SECRET + b"\n")
    return AccountsProvider(
        MemoryStore([b"a: b\n\n" + SECRET]), [PasswordFile(str(path), Inline())]
    )


ENABLED = frozenset(["APOP", "CRAM-MD5", "SCRAM-SHA-256"])


def hold(target: str, data: bytes, pieces: list[int], provider: Any = None) -> str:
    """
    @return: all that a trace shows of a conversation.
    """
    process = Traced(target)
    policy = Policy(cleartextLogin="always", enable=ENABLED, maxBadCommands=50)
    process.factory.usePolicy(policy)
    process.factory.connectionCreator = object()
    if provider is not None:
        process.factory.provider = provider
    client = process.connect()
    start = 0
    for end in [*pieces, len(data)]:
        client.send(data[start:end])
        start = end
    client.received()
    process.clock.advance(5)
    client.vanish()
    return json.dumps(process.items)


def assertNoSecret(shown: str) -> None:
    assert SECRET.decode() not in shown
    for each in (SECRET, b"\0" + SECRET, b"e\0" + SECRET, plainText()[8:]):
        assert b64encode(each)[4:-4].decode() not in shown
    assert plainText().decode()[-12:] not in shown


@pytest.mark.parametrize("target", ["192.0.2.7", "alice"])
@pytest.mark.parametrize("lines", LINES)
def test_noSecret(lines: list[bytes], target: str, tmp_path: Path) -> None:
    """
    No secret appears, wherever a client puts it, and however the octets of the lines are divided.
    """
    data = b"".join(each + b"\r\n" for each in lines)
    for provider in (None, offering(tmp_path)):
        ways: list[list[int]] = [[], list(range(1, min(len(data), 3000)))]
        ends = [index + 1 for index, each in enumerate(data) if each == 10]
        ways += [ends, [each + 1 for each in ends]]
        for pieces in ways:
            shown = hold(target, data, pieces, provider)
            assertNoSecret(shown)
            if target != "alice":
                assert "C" in [each["from"] for each in json.loads(shown)] or len(data) > 9000


@given(st.data())
def test_noSecretInAnySplit(data: Any) -> None:
    lines = data.draw(st.sampled_from(LINES[:-4]))
    octets = b"".join(each + data.draw(st.sampled_from([b"\r\n", b"\n"])) for each in lines)
    pieces = data.draw(st.lists(st.integers(0, len(octets)), max_size=6).map(sorted))
    assertNoSecret(hold("192.0.2.7", octets, pieces))


def test_digests(tmp_path: Path) -> None:
    """
    A trace does not show the challenges and digests of successful logins, or the content of a
    message.
    """
    process = Traced("192.0.2.7")
    process.factory.usePolicy(Policy(enable=ENABLED))
    process.factory.provider = offering(tmp_path)

    def connect() -> tuple[Client, bytes]:
        client = Client(process.factory, IPv4Address("TCP", "192.0.2.7", 4), isSecure=True)
        return client, client.received()

    client, greeting = connect()
    stamp = greeting.split()[-1]
    digest = md5(stamp + SECRET).hexdigest()
    assert client.say(b"APOP alice " + digest.encode()).startswith(b"+OK")
    assert SECRET in client.say(b"RETR 1")
    client.say(b"QUIT")
    client, _ = connect()
    challenge = client.say(b"AUTH CRAM-MD5")[2:-2]
    cram = hmac.new(SECRET, b64decode(challenge), "md5").hexdigest()
    assert client.say(b64encode(b"alice " + cram.encode())).startswith(b"+OK")
    shown = json.dumps(process.items)
    assertNoSecret(shown)
    for each in (digest, challenge.decode(), b64encode(cram.encode())[4:-4].decode()):
        assert each not in shown
    lines = process.lines()
    assert "C: APOP **** ****" in lines
    assert lines[-4:-1] == ["C: AUTH CRAM-MD5", "S: + ****", "C: ****"]


def test_anotherSpelling() -> None:
    """
    A trace compares the operator's and the client's spelling of a name as the service does.
    """
    process = Process(policy=Policy(nameCase="mapped", cleartextLogin="always"))
    process.begin("trace", target="ALICE")
    client = process.connect()
    client.say(b"USER Alice")
    assert [each["text"] for each in process.items][1] == "USER Alice"
    client.say(b"PASS secret")
    assert process.items[-1]["text"].startswith("+OK")


# --- the socket ---------------------------------------------------------------------------


def test_clientThatDoesNotRead() -> None:
    """
    A client of the admin socket is dropped when too much output waits for it, and its trace ends.
    """
    process = Process(policy=Policy(cleartextLogin="always"))
    socket = Socket(process)
    request = b'{"do": "trace", "arguments": {"target": "192.0.2.7"}}\n'
    assert socket.say(request) == [{"items": []}]
    transport = socket.protocol.transport
    assert transport.producer is socket.protocol
    client = process.connect()
    client.logIn()
    socket.protocol.pauseProducing()
    client.say(b"NOOP")
    assert not transport.disconnected
    socket.protocol.resumeProducing()
    socket.protocol.pauseProducing()
    for _ in range(AdminProtocol.BOUND // 100):
        client.say(b"NOOP")
        if transport.disconnected:
            break
    assert transport.disconnected
    assert len(transport.value()) < 2 * AdminProtocol.BOUND
    socket.protocol.stopProducing()
    socket.protocol.connectionLost()
    assert isUntouched(process)


def test_lastsLongerThanOthers() -> None:
    process = Process()
    socket = Socket(process)
    socket.say(b'{"do": "trace", "arguments": {"target": "x", "seconds": "100"}}\n')
    for _ in range(99):
        process.clock.advance(1)
    assert not socket.protocol.transport.disconnected
    process.clock.advance(1)
    assert socket.protocol.transport.disconnecting
    assert json.loads(socket.protocol.transport.value().splitlines()[-1]) == {"result": None}
    # A client that does not read the end is dropped.
    process.clock.advance(AdminProtocol.BOUND)
    assert socket.protocol.transport.disconnected


def test_slowLogin() -> None:
    """
    A reply that comes later is shown, too.
    """
    process = Traced("192.0.2.7")
    answer: Deferred[Any] = Deferred()
    process.factory.provider.authenticate = lambda *arguments: answer
    client = process.connect()
    client.say(b"USER alice")
    client.send(b"PASS secret\r\n")
    assert process.lines()[-1] == "C: PASS ****"
    answer.callback(None)
    process.clock.advance(2)
    client.received()
    assert process.lines() == ["S: -ERR [AUTH] Wrong name or password."]


def test_tap() -> None:
    """
    After the connection has ended, its tap tells nothing more, and can be detached again.
    """
    heard: list[Any] = []
    client = Process().connect()
    connection = client.protocol
    tap = Tap(connection, lambda connection, line: heard.append(line.text), heard.append)
    client.say(b"NOOP")
    client.say(b"QUIT")
    assert heard[-2:] == ["the connection has ended", connection]
    heard.clear()
    tap._lineReceived(b"NOOP")
    tap.detach()
    assert heard == []


@pytest.mark.parametrize("line", [b"NOOP", b"CAPA", b"LIST"])
def test_tapThatDetachesItself(line: bytes) -> None:
    """
    The client still receives the reply to that line, and further replies.
    """
    client = Process().connect()
    client.logIn()
    expected = client.say(line)
    taps: list[Tap] = []
    taps.append(Tap(client.protocol, lambda *_: taps[0].detach(), lambda _: None))
    assert client.say(line) == expected
    assert client.say(b"NOOP") == b"+OK Done.\r\n"


def test_languageOfTracedSession() -> None:
    """
    A traced client may choose a language, which remains after the trace.
    """
    client = Process().connect()
    tap = Tap(client.protocol, lambda *_: None, lambda _: None)
    client.received()
    assert client.say(b"LANG de") != b"+OK de Language changed.\r\n"
    client.logIn()
    done = client.say(b"NOOP")
    assert done != b"+OK Done.\r\n"
    tap.detach()
    assert client.say(b"NOOP") == done
