"""
What a meter counts for sessions in memory.
"""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock

from pop3svc.accounts.throttle import SharedThrottle
from pop3svc.errors import POP3ResponseError
from pop3svc.metrics.declarations import METRICS, key
from pop3svc.metrics.exposition import expose
from pop3svc.metrics.meter import Meter
from pop3svc.metrics.numbers import ProcessNumbers
from pop3svc.policy import Policy
from pop3svc.protocol.commands import COMMANDS
from pop3svc.providers.memory import MemoryProvider
from pop3svc.service.factory import POP3Factory
from pop3svc.service.running import POP3Service
from pop3svc.testing import Client
from tests.support.mailboxes import logged


class Metered:
    """
    A service in memory that counts.
    """

    def __init__(self, provider: Any = None, **options: Any) -> None:
        self.clock = MemoryReactorClock()
        self.meter = Meter(self.clock)
        self.provider = provider or MemoryProvider({"alice": "secret"}, [b"a: b\n\nc\n"])
        self.factory = POP3Factory(self.provider, clock=self.clock, meter=self.meter, **options)
        self.service = POP3Service(self.clock, self.factory, SharedThrottle(self.clock))
        self.process = ProcessNumbers(self.service, self.meter)

    def connect(self) -> Client:
        client = Client(self.factory, isSecure=True)
        client.received()
        return client

    def number(self, name: str, *labels: str) -> Any:
        return self.process.last().get(key(name, *labels))

    def all(self, name: str) -> dict[str, Any]:
        """
        @return: the numbers of a metric that are not 0, by its labels.
        """
        numbers = self.process.last().items()
        return {
            each.partition("\t")[2]: value
            for each, value in numbers
            if each.split("\t")[0] == name and value
        }

    def count(self, name: str, *labels: str) -> int:
        """
        @return: the number of observations of a histogram.
        """
        return int(sum((self.number(name, *labels) or [0])[:-1]))


def plain(name: bytes, password: bytes) -> bytes:
    return b64encode(b"\0" + name + b"\0" + password)


@pytest.mark.smoke
def test_aSession() -> None:
    metered = Metered()
    client = metered.connect()
    assert metered.all("pop3svc_sessions") == {"login": 1}
    client.logIn()
    client.say(b"RETR 1")
    client.say(b"STAT")
    client.say(b"DELE 1")
    client.received()
    assert metered.all("pop3svc_sessions") == {"awake": 1}
    live = metered.process.last()
    assert live["pop3svc_messages_sent_total"] == 1
    assert live["pop3svc_message_octets_total"] == len(b"a: b\r\n\r\nc\r\n")
    client.say(b"QUIT")
    client.received()
    assert not metered.factory.connections
    ended = metered.process.last()
    for name in ("messages_sent", "message_octets"):
        assert ended[f"pop3svc_{name}_total"] == live[f"pop3svc_{name}_total"]
    assert ended["pop3svc_messages_deleted_total"] == 1
    assert float(ended["pop3svc_octets_sent_total"]) > float(live["pop3svc_octets_sent_total"])  # type: ignore[arg-type]
    assert metered.all("pop3svc_sessions") == {}
    assert metered.all("pop3svc_logins_total") == {"PASS\tok": 1}
    for verb in ("USER", "PASS", "RETR", "STAT", "DELE", "QUIT"):
        assert metered.count("pop3svc_command_seconds", verb) == 1, verb
    assert metered.count("pop3svc_command_seconds", "NOOP") == 0
    assert metered.number("pop3svc_connections_total") == 1
    # The provider's calls return at once, so they do not count.
    assert metered.all("pop3svc_provider_call_seconds") == {}


def test_sessionsAreCountedInSlices(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The reactor serves clients while the sessions are counted.  If a session ends before it is
    counted, the counters still do not decrease.
    """
    monkeypatch.setattr("pop3svc.metrics.numbers._AT_ONCE", 1)
    metered = Metered(MemoryProvider({f"user{each}": "x" for each in range(9)}, [b"a: b\n\nc\n"]))
    clients = []
    for number in range(9):
        client = metered.connect()
        client.logIn(b"user%d" % number, b"x")
        client.say(b"RETR 1")
        client.received()
        clients.append(client)
    name = "pop3svc_messages_sent_total"
    assert metered.process.last()[name] == 9
    times = iter(range(10_000))
    # Each time the clock is read, a whole slice has passed.
    metered.clock.seconds = lambda: 1e6 + next(times)  # type: ignore[method-assign]
    collecting = Deferred.fromCoroutine(metered.process.collect())
    assert not collecting.called
    for each in clients:
        each.vanish()
    results: list[Any] = []
    collecting.addBoth(results.append)
    while not results:
        metered.clock.advance(0)
    assert results[0][name] == 9
    assert metered.process.last()[name] == 9


def test_numbersOfALogout() -> None:
    metered = Metered()
    client = metered.connect()
    client.logIn()
    client.say(b"RETR 1")
    client.say(b"QAUT")
    assert metered.number("pop3svc_messages_sent_total") == 1
    assert metered.all("pop3svc_sessions") == {"login": 1}
    client.logIn()
    client.say(b"RETR 1")
    assert metered.number("pop3svc_messages_sent_total") == 2
    client.vanish()
    assert metered.number("pop3svc_messages_sent_total") == 2


def test_logins() -> None:
    metered = Metered(policy=Policy(maxAwakePerUser=1))
    client = metered.connect()
    client.say(b"AUTH PLAIN " + plain(b"alice", b"wrong"))
    client.say(b"AUTH PLAIN")
    client.say(plain(b"alice", b"wrong"))
    client.say(b"AUTH PLAIN")
    client.say(b"*")
    client.say(b"AUTH NONSENSE")
    client.say(b"AUTH")
    client.say(b"USER alice")
    client.say(b"PASS wrong")
    client.say(b"AUTH PLAIN")
    assert client.say(plain(b"alice", b"secret")).startswith(b"+OK")
    other = metered.connect()
    other.say(b"USER alice")
    assert other.say(b"PASS secret").startswith(b"-ERR [SYS/TEMP]")
    assert metered.all("pop3svc_logins_total") == {
        "PLAIN\trefused": 3,
        "unknown\trefused": 1,
        "PASS\trefused": 1,
        "PLAIN\tok": 1,
        "PASS\tfault": 1,
    }


def test_wakes() -> None:
    metered = Metered()
    client = metered.connect()
    client.logIn()
    client.say(b"SLEE")
    assert metered.all("pop3svc_sessions") == {"asleep": 1}
    client.say(b"WAKE")
    client.say(b"SLEE")
    metered.provider.store.maildrop("alice").add(b"d: e\n\nf\n")
    client.say(b"WAKE")
    client.say(b"SLEE")
    metered.factory.admission.drain()
    client.say(b"WAKE")
    assert metered.all("pop3svc_wakes_total") == {"none": 1, "new": 1, "refused": 1}


class Failing(MemoryProvider):
    """
    A provider whose answer the test sets.
    """

    answer: Any = None

    def authenticate(self, info: Any, username: str, password: str) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is not None:
            return self.answer
        return super().authenticate(info, username, password)


def failing() -> tuple[Metered, Failing]:
    provider = Failing({"alice": "secret"}, [b"a: b\n\nc\n"])
    return Metered(provider), provider


@pytest.mark.parametrize(
    ("answer", "isFault"),
    [
        (RuntimeError(), True),
        (POP3ResponseError("No.", "SYS/TEMP"), True),
        (POP3ResponseError("No.", "AUTH"), False),
        (NotImplementedError(), False),
    ],
)
def test_faults(answer: Exception, isFault: bool) -> None:
    for isLater in (False, True):
        metered, provider = failing()
        provider.answer = answer
        later: Deferred[Any] = Deferred()
        if isLater:
            provider.answer = later
        client = metered.connect()
        client.say(b"USER alice")
        client.send(b"PASS secret\r\n")
        if isLater:
            metered.clock.advance(3)
            later.errback(answer)
        faults = metered.all("pop3svc_provider_faults_total")
        assert faults == ({"authenticate": 1} if isFault else {})
        assert metered.count("pop3svc_provider_call_seconds", "authenticate") == int(isLater)
        if isLater:
            assert metered.number("pop3svc_provider_call_seconds", "authenticate")[-1] == 3


class Coroutines(MemoryProvider):
    """
    A provider whose coroutine ends at once.
    """

    async def authenticate(self, info: Any, username: str, password: str) -> Any:  # type: ignore[override]
        if password == "fault":
            raise RuntimeError()
        return super().authenticate(info, username, password)


def test_coroutines() -> None:
    metered = Metered(Coroutines({"alice": "secret"}, []))
    metered.connect().logIn()
    assert metered.all("pop3svc_provider_faults_total") == {}
    client = metered.connect()
    client.say(b"USER alice")
    client.say(b"PASS fault")
    assert metered.all("pop3svc_provider_faults_total") == {"authenticate": 1}


class Blocking(MemoryProvider):
    """
    A provider that blocks for some seconds.
    """

    def __init__(self, metered: list[Metered], seconds: float, isCoroutine: bool) -> None:
        super().__init__({"alice": "secret"}, [])
        self._metered = metered
        self._blocks = seconds
        self._isCoroutine = isCoroutine

    def authenticate(self, info: Any, username: str, password: str) -> Any:
        def work() -> Any:
            self._metered[0].clock.rightNow += self._blocks
            if password == "fault":
                raise RuntimeError()
            return MemoryProvider.authenticate(self, info, username, password)

        async def coroutine() -> Any:
            return work()

        return coroutine() if self._isCoroutine else work()


@pytest.mark.parametrize("isCoroutine", [False, True])
@pytest.mark.parametrize(("seconds", "count"), [(0.0009, 0), (0.002, 1), (0.7, 1)])
def test_aCallThatBlocks(seconds: float, count: int, isCoroutine: bool) -> None:
    """
    A call that takes less than a millisecond is not measured; a longer call is.  If a call that is
    not a coroutine blocks the reactor for long, a warning is logged.
    """
    found: list[Metered] = []
    found.append(Metered(Blocking(found, seconds, isCoroutine)))
    metered = found[0]

    def logIn() -> None:
        metered.connect().logIn()
        client = metered.connect()
        client.say(b"USER alice")
        client.say(b"PASS fault")

    events = logged(logIn)
    texts = [each for each in events if "blocked the reactor" in str(each["log_format"])]
    assert bool(texts) == (seconds == 0.7 and not isCoroutine)
    assert metered.count("pop3svc_provider_call_seconds", "authenticate") == 2 * count
    assert metered.all("pop3svc_provider_faults_total") == {"authenticate": 1}
    assert metered.count("pop3svc_command_seconds", "PASS") == 2


def test_frequentCommandsAreSampled() -> None:
    """
    If a command runs often, one of eleven runs is measured, and counts eleven times.  Each run of a
    rarer command is counted, and so is each wake.
    """
    metered = Metered()
    timer = metered.meter.timer(metered.clock)
    timer.startService()
    client = metered.connect()
    client.logIn()

    def count() -> int:
        return metered.count("pop3svc_command_seconds", "NOOP")

    for _ in range(201):
        client.say(b"NOOP")
    assert count() == 201
    metered.clock.advance(1)
    for _ in range(440):
        client.say(b"NOOP")
        assert 201 + 440 >= count()
    assert count() == 201 + 440 - 439 % 11
    for _ in range(3):
        client.say(b"SLEE")
        client.say(b"WAKE")
    assert metered.count("pop3svc_command_seconds", "WAKE") == 3
    assert metered.all("pop3svc_wakes_total") == {"none": 3}
    # The command is rare again: after one last sample, each run is measured.
    metered.clock.advance(1)
    metered.clock.advance(1)
    for _ in range(11):
        client.say(b"NOOP")
    assert count() == 201 + 440 + 11
    timer.stopService()


def test_aCallThatIsLate() -> None:
    metered, provider = failing()
    provider.answer = Deferred()
    client = metered.connect()
    client.say(b"USER alice")
    client.send(b"PASS secret\r\n")
    metered.clock.advance(Policy.answerTimeout)
    assert metered.all("pop3svc_provider_faults_total") == {"authenticate": 1}
    assert metered.all("pop3svc_logins_total") == {"PASS\tfault": 1}
    assert metered.number("pop3svc_command_seconds", "PASS")[-1] == Policy.answerTimeout


def test_aClientThatLeaves() -> None:
    metered, provider = failing()
    provider.answer = Deferred()
    client = metered.connect()
    client.say(b"USER alice")
    client.send(b"PASS secret\r\n")
    client.vanish()
    assert metered.all("pop3svc_provider_faults_total") == {}
    assert metered.all("pop3svc_logins_total") == {"PASS\tabandoned": 1}


def test_refusedConnections() -> None:
    metered = Metered(policy=Policy(maxConnections=1))
    client = metered.connect()
    client.logIn()
    Client(metered.factory)
    assert metered.all("pop3svc_connections_refused_total") == {"limit": 1}
    assert metered.number("pop3svc_connections_total") == 1


def test_theReactorIsLate() -> None:
    clock = Clock()
    meter = Meter(clock)
    timer = meter.timer(clock)
    timer.startService()
    clock.advance(1)
    clock.advance(1.3)
    *counts, total = meter.numbers()["pop3svc_reactor_delay_seconds"]  # type: ignore[misc]
    assert (sum(counts), counts[0]) == (2, 1)
    assert total == pytest.approx(0.3)
    timer.stopService()


def test_withoutAMeterNothingIsReplaced() -> None:
    factory = POP3Factory(MemoryProvider({}, []), clock=Clock())
    assert all(each is COMMANDS[verb] for verb, each in factory.commands.items())
    client = Client(factory)
    assert type(client.protocol.session.record).__name__ == "SessionRecord"
    assert type(client.protocol.session.calls).__name__ == "ProviderCalls"


def test_theTextIsWhatPrometheusReads() -> None:
    metered = Metered()
    client = metered.connect()
    client.logIn()
    text = expose(metered.process.last()).decode("ascii")
    families = {each.name: each for each in text_string_to_metric_families(text)}
    assert families["pop3svc_logins"].samples[0].labels == {"mechanism": "PASS", "result": "ok"}
    pass_ = [
        each
        for each in families["pop3svc_command_seconds"].samples
        if each.labels["command"] == "PASS"
    ]
    assert pass_[-2].name == "pop3svc_command_seconds_count" and pass_[-2].value == 1
    assert [each.value for each in pass_ if each.labels.get("le") == "+Inf"] == [1]
    assert "alice" not in text
    # Every metric of a process is declared.
    declared = {each.name for each in METRICS}
    assert {each.split("\t")[0] for each in metered.process.last()} <= declared
