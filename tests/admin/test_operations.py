"""
The operations of the admin socket, in memory.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport

from pop3svc.accounts.throttle import SharedThrottle
from pop3svc.admin.operations import OperationError, ProcessOperations, checkArguments
from pop3svc.admin.server import AdminFactory, AdminProtocol
from pop3svc.admin.traces import Traces
from pop3svc.admin.workers import Asked, WorkersOperations
from pop3svc.health import Health
from pop3svc.policy import Policy
from pop3svc.service.factory import POP3Factory
from pop3svc.service.running import POP3Service
from pop3svc.testing import Client
from tests.support.connections import makeFactory
from tests.support.mailboxes import logged


class Process:
    """
    A service in memory, and its operations.
    """

    def __init__(self, worker: int = 0, **options: Any) -> None:
        self.clock = MemoryReactorClock()
        self.clock.advance(1e6)
        self.throttle = SharedThrottle(self.clock)
        self.factory: POP3Factory = makeFactory(clock=self.clock, throttle=self.throttle, **options)
        self.service = POP3Service(self.clock, self.factory, self.throttle)
        self.operations = ProcessOperations(
            *(self.service, lambda: {"listeners": []}, self.clock, worker),
            traces=Traces(self.factory, self.clock, worker),
        )
        self.items: list[Any] = []

    def connect(self, host: str = "192.0.2.7") -> Client:
        client = Client(self.factory, IPv4Address("TCP", host, 4000), isSecure=True)
        protocol: Any = client.protocol
        protocol.handshakeCompleted()
        client.received()
        return client

    def begin(self, name: str, **arguments: str) -> Deferred[Any]:
        return Deferred.fromCoroutine(
            self.operations.do(name, checkArguments(name, arguments), self.items.extend)
        )

    def do(self, name: str, **arguments: str) -> Any:
        """
        @return: the result.
        """
        results: list[Any] = []
        self.begin(name, **arguments).addBoth(results.append)
        [result] = results
        if hasattr(result, "raiseException"):
            result.raiseException()
        return result

    def who(self, **arguments: str) -> list[Any]:
        self.items.clear()
        assert self.do("who", **arguments) is None
        json.dumps(self.items)
        return self.items


def test_who() -> None:
    process = Process()
    assert process.who() == []
    alice, bob = process.connect(), process.connect()
    process.clock.advance(2)
    alice.say(b"USER alice")
    alice.say(b"PASS secret")
    alice.say(b"RETR 1")
    alice.received()
    first, second = sorted(process.who(), key=lambda each: each["state"])
    octets = first.pop("octets")
    assert octets > first["messageOctets"]
    number = alice.protocol.session.info.connectionID  # type: ignore[attr-defined]
    assert first == {
        "session": str(number),
        "user": "alice",
        "address": "192.0.2.7",
        "tls": "TLS",
        "state": "awake",
        "method": "PASS",
        "seconds": 2.0,
        "messages": 1,
        "messageOctets": 11,
        "deleted": 0,
        "waitsFor": "command",
    }
    assert (second["user"], second["state"]) == (None, "login")
    alice.say(b"SLEE")
    assert [each["state"] for each in process.who(user="alice")] == ["asleep"]
    assert process.who(user="bob") == []
    bob.vanish()
    assert len(process.who()) == 1


def test_waitsFor() -> None:
    """
    A session that waits for the provider is listed as such, and can be ended.
    """
    process = Process()
    process.factory.provider.authenticate = lambda *arguments: Deferred()
    client = process.connect()
    client.say(b"USER alice")
    client.send(b"PASS secret\r\n")
    [session] = process.who()
    assert session["waitsFor"] == "provider"
    assert process.do("kick", target=session["session"]) == 1
    client.pump()
    assert client.wasAborted


def test_kick() -> None:
    """
    C{kick} ends the session with the id, or all sessions of the user, and no other session.
    """
    process = Process(worker=3)
    clients = [process.connect() for _ in range(3)]
    for each in clients[:2]:
        each.say(b"USER alice")
        each.say(b"PASS secret")
        # Release the lock of the mailbox.
        each.say(b"SLEE")
    number = clients[2].protocol.session.info.connectionID  # type: ignore[attr-defined]
    assert process.do("kick", target=str(number)) == 0
    for other in (f"2.{number}", f"3.{number}x", "3.", "3.\u0661", f"03.{number}", "9" * 5000):
        assert process.do("kick", target=other) == 0
    assert process.do("kick", target=f"3.{number}") == 1
    for each in clients:
        each.pump()
    assert [each.isOpen for each in clients] == [True, True, False]
    assert process.do("kick", target="alice", only="session") == 0
    assert process.do("kick", target="alice") == 2
    # The clients have not closed their connections yet.
    assert [each["state"] for each in process.who()] == ["closing", "closing"]
    assert process.do("kick", target="alice") == 0
    for each in clients:
        each.pump()
    assert process.do("kick", target="alice") == 0
    assert process.who() == []


def test_bans() -> None:
    process = Process(policy=Policy(cleartextLogin="always"))
    assert process.do("bans") == []
    assert process.do("ban", address="2001:db8::7") is None
    assert process.do("ban", address="127.0.0.1") is None
    networks = [each["network"] for each in process.do("bans")]
    assert networks == ["2001:db8::/64", "127.0.0.1/32"]
    # An exempt address, and the right password: the operator's ban is stronger.
    client = process.connect("127.0.0.1")
    client.say(b"USER alice")
    assert client.say(b"PASS secret").startswith(b"-ERR [AUTH]")
    assert [each["refused"] for each in process.do("bans")] == [0, 1]
    assert process.do("lift", target="127.0.0.1/32") is True
    assert process.do("lift", target="127.0.0.1") is False
    client.say(b"USER alice")
    assert client.say(b"PASS secret").startswith(b"+OK")
    process.clock.advance(10_001)
    assert process.do("bans") == []


def test_manyBansAreListedInSlices() -> None:
    """
    The reactor serves clients while many bans are listed.
    """
    process = Process()
    for number in range(200):
        process.do("ban", address=f"192.0.2.{number}")
    times = iter(range(10_000))
    # Each time the clock is read, a whole slice has passed.
    process.clock.seconds = lambda: 1e6 + next(times) / 10  # type: ignore[method-assign]
    listing = process.begin("bans")
    assert not listing.called
    process.do("lift", target="192.0.2.199")
    results: list[Any] = []
    listing.addBoth(results.append)
    while not results:
        process.clock.advance(0)
    assert [each["network"] for each in results[0]] == [f"192.0.2.{n}/32" for n in range(199)]


def test_liftUser() -> None:
    """
    C{lift} forgets the failed logins for a user, from whatever network they came.
    """
    process = Process()
    for host in range(10):
        client = process.connect(f"192.0.2.{host}")
        client.say(b"USER alice")
        client.say(b"PASS wrong%d" % host)
    client = process.connect("192.0.2.77")
    client.say(b"USER alice")
    assert client.say(b"PASS secret").startswith(b"-ERR [AUTH]")
    assert process.do("lift", target="bob") is False
    assert process.do("lift", target="alice") is True
    client.say(b"USER alice")
    assert client.say(b"PASS secret").startswith(b"+OK")


def test_status() -> None:
    process = Process()
    process.connect()
    process.clock.advance(5)
    status = process.do("status")
    assert status.pop("pid") > 0
    assert status == {
        "seconds": 5,
        "isDraining": False,
        "sessions": {"login": 1, "awake": 0, "asleep": 0},
        "listeners": [],
    }


def test_drain() -> None:
    """
    Logins are refused.  A session that is awake goes on.  A sleeper is refused at WAKE, and ends.
    """
    process = Process()
    asleep, awake, other = (process.connect() for _ in range(3))
    for each in (asleep, awake):
        each.say(b"USER alice")
        assert each.say(b"PASS secret").startswith(b"+OK")
        if each is asleep:
            each.say(b"SLEE")
    process.do("drain")
    process.do("drain")
    other.say(b"USER alice")
    assert other.say(b"PASS secret") == b"-ERR [SYS/TEMP] The service is about to stop.\r\n"
    assert asleep.say(b"WAKE") == b"-ERR [SYS/TEMP] The service is about to stop.\r\n"
    assert not asleep.isOpen
    assert awake.say(b"NOOP").startswith(b"+OK")
    process.clock.advance(1)
    assert not process.clock.hasStopped
    awake.say(b"QUIT")
    process.clock.advance(1)
    assert process.clock.hasStopped


def test_drainTakesTooLong() -> None:
    process = Process(policy=Policy(drainTimeout=60, cleartextLogin="always"))
    client = process.connect()
    client.say(b"USER alice")
    client.say(b"PASS secret")
    process.do("drain")
    for _ in range(59):
        process.clock.advance(1)
    assert not process.clock.hasStopped
    process.clock.advance(1)
    assert process.clock.hasStopped


def test_health() -> None:
    server = Health("the server of this test")
    assert server in Health.all()
    server.failed("")
    assert (server.isAvailable, server.reason) == (False, "no reason is known")
    server.succeeded()
    assert (server.isAvailable, server.reason) == (True, "")


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("nonsense", {}, "There is no such operation."),
        (None, {}, "There is no such operation."),
        (["who"], {}, "There is no such operation."),
        ("who", [], "The arguments must be a JSON object."),
        ("who", {"user": 5}, "The operation who has an unknown argument."),
        ("who", {"x": "5"}, "The operation who has an unknown argument."),
        ("kick", {}, "The operation kick needs the argument target."),
    ],
)
def test_badRequests(name: Any, arguments: Any, says: str) -> None:
    with pytest.raises(OperationError) as caught:
        checkArguments(name, arguments)
    assert str(caught.value) == says


def test_notAnAddress() -> None:
    with pytest.raises(OperationError, match="^nonsense is not an IP address.$"):
        Process().do("ban", address="nonsense")


def test_manySessions() -> None:
    """
    The reactor serves clients between two parts of a long answer.
    """
    process = Process(policy=Policy(maxUnauthenticated=5000, maxConnections=5000))
    for number in range(400):
        process.connect(f"192.0.{number % 250}.{number // 250}")
    times = iter(range(10_000))
    process.clock.seconds = lambda: 1e6 + next(times) / 1000  # type: ignore[method-assign]
    done = process.begin("who")
    before = len(process.items)
    assert before < 400
    assert not done.called
    while not done.called:
        process.clock.advance(0)
    assert len(process.items) == 400


def test_aSlowReader() -> None:
    """
    The rest of a long answer waits until there is room for it.
    """
    process = Process(policy=Policy(maxUnauthenticated=500, maxConnections=500))
    for number in range(120):
        process.connect(f"192.0.2.{number}")
    rooms: list[Deferred[None]] = []

    def send(items: list[Any]) -> Deferred[None]:
        process.items.extend(items)
        rooms.append(Deferred())
        return rooms[-1]

    done = Deferred.fromCoroutine(process.operations.do("who", {}, send))
    for count in (50, 100, 120):
        assert len(process.items) == count and not done.called
        rooms[-1].callback(None)
    assert done.called


# --- the socket ---------------------------------------------------------------------------


class Socket:
    """
    A connection to the admin socket of a service in memory.
    """

    def __init__(self, process: Process) -> None:
        self.factory = AdminFactory(process.operations, process.clock)
        self.protocol = self.connect()

    def connect(self) -> Any:
        protocol: Any = self.factory.buildProtocol(None)
        if protocol is not None:
            protocol.makeConnection(StringTransport())
        return protocol

    def say(self, data: bytes) -> list[Any]:
        self.protocol.dataReceived(data)
        return [json.loads(line) for line in self.protocol.transport.value().splitlines()]


def test_request() -> None:
    process = Process()
    process.connect()
    socket = Socket(process)
    data = b'{"do": "who", "arguments": {}}\n'
    for index in range(len(data) - 1):
        assert socket.say(data[index : index + 1]) == []
    items, result = socket.say(data[-1:])
    assert [each["state"] for each in items["items"]] == ["login"]
    assert result == {"result": None}
    assert socket.protocol.transport.disconnecting


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\n", "The request must be a JSON object."),
        (b"\xff\xfe\n", "The request must be a JSON object."),
        (b"[1]\n", "The request must be a JSON object."),
        (b"[" * 4000 + b"\n", "The request must be a JSON object."),
        (b"x" * 5000, "The request is too long."),
        (b"x" * 5000 + b'\n{"do": "drain"}\n', "The request is too long."),
        (b'{"do": "ban", "arguments": {"address": "\\u0000"}}\n', "\0 is not an IP address."),
        (
            b'{"do": "lift", "arguments": {"target": "\\ud800"}}\n',
            "The argument target of the operation lift is not Unicode text.",
        ),
    ],
)
def test_badLines(data: bytes, says: str) -> None:
    socket = Socket(Process())
    assert socket.say(data) == [{"error": says}]
    assert socket.protocol.transport.disconnecting


def test_anErrorOfOurs(caplog: pytest.LogCaptureFixture) -> None:
    process = Process()
    process.operations._parts = lambda: {"bad": 1 // 0}
    says = "The operation failed; the log of the service says why."
    assert Socket(process).say(b'{"do": "status"}\n') == [{"error": says}]


def test_silentClient() -> None:
    process = Process()
    socket = Socket(process)
    process.clock.advance(AdminFactory.TIMEOUT)
    assert socket.protocol.transport.disconnected


def test_aClientThatLeaves() -> None:
    """
    If a client ends a lasting operation, for example by Ctrl-C, nothing is logged.
    """
    socket = Socket(Process())
    socket.say(b'{"do": "trace", "arguments": {"target": "alice"}}\n')
    assert logged(lambda: socket.protocol.connectionLost()) == []
    assert not socket.factory.connections


def test_manyClients() -> None:
    socket = Socket(Process())
    others = [socket.connect() for _ in range(AdminFactory.MOST)]
    assert others[-1] is None
    socket.protocol.connectionLost()
    assert isinstance(socket.connect(), AdminProtocol)


# --- workers ------------------------------------------------------------------------------


class Workers:
    """
    Two processes in memory, and the operations of their parent.
    """

    isDraining = False

    class Worker:
        def __init__(self, number: int) -> None:
            self.number = number
            self.pid = 1000 + number
            self.serves = True
            self.process = Process(number)
            self.hangs = False

        def __str__(self) -> str:
            return f"worker {self.number}"

    def __init__(self, policy: Policy = Policy()) -> None:  # noqa: B008 (it is frozen)
        self.clock = Clock()
        self.policy = policy
        self.asked = Asked(self.clock)
        self.workers = [self.Worker(1), self.Worker(2)]
        self.throttle = SharedThrottle(self.clock, tell=self.tell)
        self.operations = WorkersOperations(
            self, lambda: {"listeners": [], "certificates": []}, self.clock
        )
        self.items: list[Any] = []
        self.joined: list[Any] = []

    @property
    def serving(self) -> list[Any]:
        return [each for each in self.workers if each.serves]

    def tell(self, *event: Any) -> None:
        for each in self.workers:
            each.process.throttle.heard(*event)

    def ask(self, worker: Any, name: str, arguments: Any, send: Any) -> Deferred[Any]:
        def write(question: Any) -> None:
            question = json.loads(json.dumps(question))
            if worker.hangs:
                return
            worker.process.items.clear()
            try:
                result = worker.process.do(question["do"], **question["arguments"])
            except OperationError as error:
                self.asked.answered({"id": question["id"], "error": str(error)})
                return
            if worker.process.items:
                self.asked.answered({"id": question["id"], "items": list(worker.process.items)})
            self.asked.answered({"id": question["id"], "result": result})

        return self.asked.ask(worker, write, name, arguments, send)

    def begin(self, name: str, **arguments: str) -> list[Any]:
        results: list[Any] = []
        done = Deferred.fromCoroutine(self.operations.do(name, arguments, self.items.extend))
        done.addBoth(results.append)
        return results

    def do(self, name: str, **arguments: str) -> Any:
        [result] = self.begin(name, **arguments)
        if hasattr(result, "raiseException"):
            result.raiseException()
        return result


def test_workersTogether() -> None:
    workers = Workers()
    for each in workers.workers:
        client = each.process.connect()
        client.say(b"USER alice")
        client.say(b"PASS secret")
    assert workers.do("who") is None
    assert [each["session"].partition(".")[0] for each in workers.items] == ["1", "2"]
    status = workers.do("status")
    assert status["sessions"] == {"login": 0, "awake": 2, "asleep": 0}
    assert [each["worker"] for each in status["workers"]] == [1, 2]
    assert workers.do("kick", target="alice") == 2
    assert workers.do("ban", address="192.0.2.7") is None
    assert [each["network"] for each in workers.do("bans")] == ["192.0.2.7/32"]
    assert workers.do("lift", target="192.0.2.7") is True
    assert workers.do("bans") == []
    assert workers.do("lift", target="alice") is False


def test_aWorkerHangs() -> None:
    """
    If a worker does not answer within the time limit, the error names this worker.
    """
    workers = Workers()
    workers.workers[1].hangs = True
    results = workers.begin("who")
    assert results == []
    workers.clock.advance(5)
    [failure] = results
    assert failure.getErrorMessage() == "worker 2: no answer in time"
    # An answer that comes too late is dropped.
    workers.asked.answered({"id": 2, "result": None})
    results = workers.begin("status")
    workers.clock.advance(5)
    assert [each["serves"] for each in results[0]["workers"]] == [True, False]


def test_aWorkerEnds() -> None:
    """
    An answer does not wait for a worker that has ended, and leaves it out.
    """
    workers = Workers()
    client = workers.workers[0].process.connect()
    client.say(b"USER alice")
    client.say(b"PASS secret")
    workers.workers[1].hangs = True
    results = workers.begin("kick", target="alice")
    listed = workers.begin("who")
    assert (results, listed) == ([], [])
    workers.asked.workerEnded(workers.workers[1])
    assert (results, listed) == ([1], [None])
    assert not workers.clock.getDelayedCalls()
    # The failure of one question may cancel another one.
    first, second = (
        workers.asked.ask(1, lambda question: None, "who", {}, workers.items.extend) for _ in "12"
    )
    first.addErrback(lambda _: second.cancel())
    second.addErrback(lambda failure: failure.trap(CancelledError))
    workers.asked.workerEnded(1)
    workers.workers[0].serves = False
    bans = workers.begin("bans")
    workers.asked.workerEnded(workers.workers[1])
    [failure] = bans
    assert failure.getErrorMessage() == "the worker has ended"


def test_slowAnswer() -> None:
    """
    The time limit begins again with each line of an answer.
    """
    workers = Workers()
    items: list[Any] = []
    done = workers.asked.ask(1, lambda question: None, "who", {}, items.extend)
    for number in range(3):
        workers.clock.advance(4)
        workers.asked.answered({"id": 1, "items": [number]})
    workers.asked.answered({"id": 1, "result": None})
    assert done.called
    assert items == [0, 1, 2]


def test_nobodyWaitsAnyMore() -> None:
    workers = Workers()
    done = workers.asked.ask(1, lambda question: None, "who", {}, list)
    done.addErrback(lambda _: None)
    done.cancel()
    workers.asked.answered({"id": 1, "items": [1]})
    assert not workers.clock.getDelayedCalls()


def test_laterWorkersAreFollowed() -> None:
    """
    A lasting operation also receives items from workers that begin to serve meanwhile.  It ends
    when it has lasted for its full time in one worker.
    """
    workers = Workers()
    asked: list[Any] = []

    def ask(worker: Any, name: str, arguments: Any, send: Any) -> Deferred[Any]:
        answer: Deferred[Any] = Deferred(lambda _: asked.append(f"{worker} is cancelled"))
        answer.addErrback(lambda failure: failure)
        asked.append((str(worker), answer, send))
        return answer

    workers.ask = ask  # type: ignore[method-assign]
    results = workers.begin("activity", seconds="30")
    assert [each[0] for each in asked] == ["worker 1", "worker 2"]
    # The successors of both workers begin to serve.  Then the two old workers end.
    old, workers.workers = workers.workers, [workers.Worker(3), workers.Worker(4)]
    for each in workers.workers:
        for join in workers.joined:
            join(each)
    assert [each[0] for each in asked] == ["worker 1", "worker 2", "worker 3", "worker 4"]
    for _, answer, send in asked[:2]:
        answer.errback(OperationError("no answer in time"))
    asked[2][2](["an event"])
    assert (workers.items, results) == (["an event"], [])
    asked[2][1].callback(None)
    assert results == [None]
    assert asked[4:] == ["worker 4 is cancelled"] and workers.joined == []
    # The operation fails if a worker that still serves does not answer, or if no worker is left.
    for workers.workers, error in ((old, "worker 1: no answer in time"), ([], "No worker serves")):
        asked.clear()
        present, workers.workers = workers.workers, old[:1]
        results = workers.begin("trace", target="alice")
        workers.workers = present
        asked[0][1].errback(OperationError("no answer in time"))
        assert results[0].getErrorMessage().startswith(error)
    with pytest.raises(OperationError, match="^No worker serves now.$"):
        workers.do("activity")


def test_noWorkerServes() -> None:
    workers = Workers()
    for each in workers.workers:
        each.serves = False
    with pytest.raises(OperationError, match="^No worker serves now.$"):
        workers.do("bans")
    assert workers.do("kick", target="alice") == 0
