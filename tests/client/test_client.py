"""
The POP3 client, with this service in memory, and with scripted servers.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.cred.checkers import ICredentialsChecker
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from zope.interface import implementer

from pop3svc.accounts.checkers import AccountsProvider
from pop3svc.accounts.passwordfile import PasswordFile
from pop3svc.accounts.scramkeys import makeVerifier
from pop3svc.client import (
    Address,
    CertificateLogin,
    CommandRefused,
    LoginRefused,
    PasswordLogin,
    POP3Client,
    ServerUnavailable,
    TLSOptions,
    TokenLogin,
    connect,
)
from pop3svc.client import protocol as clientprotocol
from pop3svc.client.exchanges import WINDOW, Command, Patience
from pop3svc.client.logins import MECHANISMS, choose
from pop3svc.credentials import IBearerToken
from pop3svc.interfaces import IBearerAccounts
from pop3svc.policy import Policy
from pop3svc.providers.memory import MemoryProvider, MemoryStore
from pop3svc.service.factory import POP3Factory
from pop3svc.testing import Inline
from tests.support.upstreams import Network, Scripted, result

ALICE = PasswordLogin("alice", "secret")
MESSAGES = [b"a: b\n\none\n", b"c: d\n\n.\n..\n.x\n\n", b"e: f\n\n" + b"x" * 20_000 + b"\n"]
WIRE = [each.replace(b"\n", b"\r\n") for each in MESSAGES]


class Site:
    """
    This service in memory.
    """

    def __init__(
        self, most: int = 1 << 20, policy: Policy = Policy(), provider: Any = None, **more: Any
    ) -> None:
        self.provider = provider or MemoryProvider({"alice": "secret"}, MESSAGES)
        self.factory = POP3Factory(self.provider, policy, clock=Clock())
        self.network = Network(self.protocol, most, **more)
        self.certificateNames: tuple[str, ...] = ()

    def protocol(self) -> Any:
        made: Any = self.factory.buildProtocol(None)
        if self.certificateNames:
            begin = made.connectionMade

            def named() -> None:
                begin()
                made.session.certificateNames = lambda: self.certificateNames

            made.connectionMade = named
        return made

    def connect(self, login: Any = ALICE, mechanism: str | None = None) -> POP3Client:
        return connected(self.network, login, mechanism)

    def run(self, awaitable: Any) -> Any:
        return run(self.network, awaitable)


def connected(network: Network, login: Any = ALICE, mechanism: str | None = None) -> POP3Client:
    client: POP3Client = result(
        network,
        connect(
            *(network.clock, "pop3://mail.example.test", login, None, mechanism, network),
            executor=Inline(),
        ),
    )
    return client


def run(network: Network, awaitable: Any, seconds: float = 0) -> Any:
    async def waiting() -> Any:
        return await awaitable

    return result(network, waiting(), seconds)


async def read(message: Deferred[Any]) -> bytes:
    found = b""
    opened = await message
    try:
        async for piece in opened:
            found += piece
    finally:
        opened.close()
    return found


def scripted(replies: dict[bytes, bytes | None], greeting: bytes = b"+OK\r\n") -> Network:
    """
    @param replies: the reply to each verb; L{None} closes the connection.  Any other verb is
        refused.
    """
    return Network(
        lambda: Scripted(
            greeting, lambda _, line: replies.get(line.split(b" ")[0].upper(), b"-ERR no\r\n")
        )
    )


# --- against this service -------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 2, 3, 7, 997, 1 << 20])
def test_session(most: int) -> None:
    """
    A session works, whatever the size of the pieces in which the network delivers its octets.
    """
    site = Site(most)
    client = site.connect()
    assert client.has("PIPELINING") and client.has("UID-PARAM")
    assert site.run(client.stat()) == (3, sum(map(len, WIRE)))
    assert site.run(client.sizes()) == {n: len(each) for n, each in enumerate(WIRE, 1)}
    names = site.run(client.uniqueIDs())
    assert list(names) == [1, 2, 3]
    # The next four commands are sent before the first reply arrives.
    reading = [Deferred.fromCoroutine(read(client.retrieve(n, 10))) for n in (1, names[2], 3)]
    header = Deferred.fromCoroutine(read(client.top(2, 1)))
    assert [site.run(each) for each in reading] == WIRE
    assert site.run(header) == b"c: d\r\n\r\n.\r\n"
    site.run(client.delete(names[1]))
    site.run(client.reset())
    site.run(client.noop())
    assert site.run(client.deleteNow(names[2])).startswith(b"Deleted")
    reply = site.run(client.ask(b"LIST"))
    assert [each.split(b" ")[0] for each in reply.lines] == [b"1", b"3"]
    assert site.run(client.ask(b"NOOP")).lines is None
    site.run(client.delete(1))
    site.run(client.quit())
    assert client.isLost and len(site.provider.store.maildrop("alice").messages) == 1


def test_sleeping() -> None:
    """
    SLEE deletes the marked messages.  WAKE and CORE tell whether new messages have arrived.
    """
    site = Site()
    client = site.connect()
    site.run(client.delete(1))
    site.run(client.sleep())
    assert site.run(client.wake()) is False
    assert len(site.run(client.uniqueIDs())) == 2
    site.run(client.sleep())
    site.provider.store.maildrop("alice").add(b"new\n")
    # Both commands are sent at once.
    woken, asleep = client.wake(), client.sleep()
    assert site.run(woken) is True
    site.run(asleep)
    assert site.run(client.wake()) is False
    site.provider.store.maildrop("alice").add(b"newer\n")
    assert site.run(client.refresh()) is True
    client.leave()
    site.network.pump()
    assert not site.network.clients[0].isOpen


def test_everySplit() -> None:
    """
    What the server sends in a session gives the same results, wherever it is cut in two.
    """
    first = b"+OK hi\r\n+OK\r\nPIPELINING\r\n.\r\n"
    replies = b"".join(
        [
            b"+OK\r\n+OK\r\n",
            b"+OK\r\n1 a\r\n2 b\r\n.\r\n",
            b"+OK\r\n..x\r\n.\r\n-ERR gone\r\n+OK 2 30\r\n",
        ]
    )
    for at in range(len(replies) + len(first)):
        client = POP3Client(Clock())
        network = Network(lambda: Scripted(b"", lambda *_: b""))
        network.connect(Factory(client))
        seen: list[Any] = []
        for each in (
            client.greeting(),
            client.askCapabilities(),
            *(client.noop(), client.noop(), client.uniqueIDs()),
            Deferred.fromCoroutine(read(client.retrieve(1))),
            *(client.delete(2), client.stat()),
        ):
            each.addBoth(seen.append)
        for data, cut in ((first, at), (replies, at - len(first))):
            client.dataReceived(data[: max(cut, 0)])
            client.dataReceived(data[max(cut, 0) :])
        greeting, capabilities, _, _, names, message, refused, stat = seen
        assert (greeting, names, message) == (b"hi", {1: "a", 2: "b"}, b".x\r\n")
        assert capabilities == {"PIPELINING": []} and stat == (2, 30)
        assert isinstance(refused.value, CommandRefused)


class Factory:
    """
    A factory that always returns the same protocol object.
    """

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol

    def buildProtocol(self, _: object) -> Any:
        return self._protocol


# --- logging in -----------------------------------------------------------------------


@pytest.fixture
def accounts(tmp_path: Path) -> AccountsProvider:
    path = tmp_path / "users"
    path.write_text(f"alice:{makeVerifier('secret')}\nbob:{{PLAIN}}other\n")
    path.chmod(0o600)
    return AccountsProvider(MemoryStore(MESSAGES), [PasswordFile(str(path), Inline()), Bearers()])


@implementer(ICredentialsChecker, IBearerAccounts)
class Bearers:
    """
    Accepts two tokens.
    """

    credentialInterfaces = (IBearerToken,)

    def requestAvatarId(self, credentials: Any) -> Any:
        raise AssertionError("it checks no passwords")

    def userOfToken(self, info: Any, token: str, username: str | None) -> str | None:
        return "alice" if token in ("good", "long" * 100) else None


ALL = Policy(enable=frozenset(["SCRAM-SHA-1", "SCRAM-SHA-256"]))


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "PLAIN", "USER"])
def test_passwords(accounts: AccountsProvider, mechanism: str) -> None:
    site = Site(policy=ALL, provider=accounts, isSecure=True)
    client = site.connect(mechanism=mechanism)
    assert site.run(client.stat())[0] == 3
    with pytest.raises(LoginRefused) as caught:
        site.connect(PasswordLogin("alice", "wrong"), mechanism)
    assert caught.value.code is None


def test_choiceOfMechanism(accounts: AccountsProvider) -> None:
    """
    The client chooses the best mechanism that the server offers and that fits the login.  If there
    is none, a password is sent by USER and PASS, and any other login fails.
    """
    site = Site(policy=ALL, provider=accounts, isSecure=True)
    site.connect()
    site.connect(PasswordLogin("bob", "other"))
    with pytest.raises(LoginRefused):
        site.connect(PasswordLogin("bob", "wrong"))
    with pytest.raises(ServerUnavailable, match="cannot get this user name or password"):
        site.connect(PasswordLogin("al\x07ice", "secret"))
    password = ALICE
    assert choose(password, {"PLAIN", "SCRAM-SHA-256"}, False) == "SCRAM-SHA-256"
    assert choose(password, {"SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"}, False) == "SCRAM-SHA-256"
    assert choose(password, {"SCRAM-SHA-256-PLUS"}, True) == "SCRAM-SHA-256-PLUS"
    assert choose(password, {"CRAM-MD5"}, True) is None
    assert choose(TokenLogin("a", "t"), {"XOAUTH2", "OAUTHBEARER"}, False) == "OAUTHBEARER"
    with pytest.raises(ServerUnavailable, match="EXTERNAL"):
        choose(CertificateLogin(), {"PLAIN"}, False)
    with pytest.raises(ServerUnavailable, match="SCRAM-SHA-256"):
        choose(password, {"PLAIN"}, False, "SCRAM-SHA-256")


@pytest.mark.parametrize(
    ("mechanism", "isSecure", "mayFollow"),
    [
        ("SCRAM-SHA-256", True, True),
        ("SCRAM-SHA-256", False, False),
        ("SCRAM-SHA-256-PLUS", True, False),
    ],
)
def test_PLAINAfterSCRAM(
    monkeypatch: pytest.MonkeyPatch, mechanism: str, isSecure: bool, mayFollow: bool
) -> None:
    """
    If the server refuses SCRAM, the client tries PLAIN, but not without TLS and not after
    SCRAM-SHA-256-PLUS.  A man in the middle could otherwise get the password.
    """
    monkeypatch.setattr(POP3Client, "_binding", lambda _: b"end point")
    replies = {b"CAPA": f"+OK\r\nSASL {mechanism} PLAIN\r\n.\r\n".encode()}
    network = Network(
        lambda: Scripted(b"+OK\r\n", lambda _, line: replies.get(line, b"-ERR no\r\n")),
        isSecure=isSecure,
    )
    with pytest.raises(LoginRefused):
        connected(network)
    verbs = [b" ".join(each.split()[:2]) for each in network.clients[0].other.protocol.lines]
    expected = [b"CAPA", b"AUTH " + mechanism.encode()]
    assert verbs == [*expected, b"AUTH PLAIN"] if mayFollow else verbs == expected


@pytest.mark.parametrize("mechanism", ["OAUTHBEARER", "XOAUTH2"])
def test_tokens(accounts: AccountsProvider, mechanism: str) -> None:
    """
    A token logs in, even if it is too long for the line of the AUTH command.
    """
    site = Site(provider=accounts, isSecure=True)
    for token in ("good", "long" * 100):
        client = site.connect(TokenLogin("alice", token), mechanism)
        assert site.run(client.stat())[0] == 3
        site.run(client.quit())
    with pytest.raises(LoginRefused):
        site.connect(TokenLogin("alice", "bad"), mechanism)


@pytest.mark.parametrize("name", ["", "alice"])
def test_external(accounts: AccountsProvider, name: str) -> None:
    site = Site(provider=accounts, isSecure=True)
    site.certificateNames = ("alice",)
    client = site.connect(CertificateLogin(name))
    assert site.run(client.stat())[0] == 3


@pytest.mark.parametrize("bad", ["a\r\nDELE 1", "a\nb", "a\0b", ""])
def test_injection(bad: str) -> None:
    """
    A name, a secret, a unique-id or a command with CR, LF or NUL is refused before it is sent.
    """
    for make in (
        lambda: PasswordLogin(bad, "x"),
        lambda: PasswordLogin("x", bad),
        lambda: TokenLogin("x", bad),
    ):
        with pytest.raises(ValueError, match="must not"):
            make()
    site = Site()
    client = site.connect()
    with pytest.raises(ValueError, match="unique-id"):
        client.retrieve(bad)
    if bad:
        with pytest.raises(ValueError, match="CR, LF"):
            client.ask(bad.encode())
    command = Command(b"PASS secret\r\n", Deferred())
    assert "secret" not in repr(ALICE) + repr(command) and "tok" not in repr(TokenLogin("x", "tok"))


# --- TLS ------------------------------------------------------------------------------


def withTLS(network: Network) -> POP3Client:
    client: POP3Client = result(
        network,
        connect(network.clock, "pop3://localhost", ALICE, TLSOptions("localhost"), None, network),
    )
    return client


def test_STLS() -> None:
    """
    STLS comes before the login, and the capabilities are asked for again.
    """
    network = scripted(
        {
            b"CAPA": b"+OK\r\nSTLS\r\n.\r\n",
            b"STLS": b"+OK\r\n",
            b"USER": b"+OK\r\n",
            b"PASS": b"+OK\r\n",
        }
    )
    withTLS(network)
    assert network.clients[0].usesTLS
    lines = network.clients[0].other.protocol.lines
    assert lines == [b"CAPA", b"STLS", b"CAPA", b"USER alice", b"PASS secret"]


@pytest.mark.parametrize(
    ("replies", "words"),
    [
        ({}, "offers no TLS"),
        ({b"CAPA": b"+OK\r\nSTLS\r\n.\r\n"}, "refuses STLS"),
        ({b"CAPA": b"+OK\r\nSTLS\r\n.\r\n", b"STLS": b"+OK\r\n+OK x\r\n"}, "plain text"),
    ],
)
def test_noTLS(replies: dict[bytes, bytes | None], words: str) -> None:
    """
    If the caller demands TLS and it cannot begin, neither the name nor the password is sent.
    """
    network = scripted(replies)
    with pytest.raises(ServerUnavailable, match=words):
        withTLS(network)
    assert not network.clients[0].usesTLS
    assert not any(b"alice" in each for each in network.clients[0].other.protocol.lines)


def test_addresses() -> None:
    network = scripted({})
    for address in ("imaps://host", "pop3s://host"):
        with pytest.raises(ValueError, match="POP3 client|options of TLS"):
            result(network, connect(network.clock, Address.parse(address), ALICE, None))


# --- other servers --------------------------------------------------------------------

GOOD: dict[bytes, bytes | None] = {
    b"USER": b"+OK\r\n",
    b"PASS": b"+OK\r\n",
    b"LIST": b"+OK\r\n1 10\r\n2 20\r\n.\r\n",
    b"UIDL": b"+OK\r\n1 a\r\n2 a\r\n.\r\n",
    b"RETR": b"+OK\r\nx\r\n.\r\n",
    b"DELE": b"+OK\r\n",
    b"QUIT": b"+OK\r\n",
}


def test_plainServer() -> None:
    """
    A server of RFC 1939 without CAPA gets one command at a time.
    """
    network = scripted(GOOD)
    client = connected(network)
    assert client.capabilities == {}
    first, second = client.uniqueIDs(), client.sizes()
    lines = network.clients[0].other.protocol.lines
    network.clients[0].deliver(100)
    assert lines == [b"CAPA", b"USER alice", b"PASS secret"]
    # A unique-id may occur twice.
    assert run(network, first) == {1: "a", 2: "a"}
    assert run(network, second) == {1: 10, 2: 20}
    reply = run(network, client.ask(b"DELE 1"))
    assert reply.lines is None
    run(network, client.quit())


def test_refusals() -> None:
    """
    After a refused command, the connection can still be used.
    """
    network = scripted({**GOOD, b"UIDL": b"-ERR [SYS/TEMP] no\r\n", b"RETR": b"-ERR\r\n"})
    client = connected(network)
    with pytest.raises(CommandRefused) as caught:
        run(network, client.uniqueIDs())
    assert caught.value.code == "SYS/TEMP" and caught.value.text == b"[SYS/TEMP] no"
    with pytest.raises(CommandRefused):
        run(network, client.retrieve(1))
    assert run(network, client.sizes()) == {1: 10, 2: 20}


@pytest.mark.parametrize("verb", [b"USER", b"PASS"])
@pytest.mark.parametrize("capabilities", [b"-ERR\r\n", b"+OK\r\nPIPELINING\r\n.\r\n"])
def test_refusedUser(verb: bytes, capabilities: bytes) -> None:
    network = scripted({**GOOD, b"CAPA": capabilities, verb: b"-ERR [IN-USE] no\r\n"})
    with pytest.raises(LoginRefused) as caught:
        connected(network)
    assert caught.value.code == "IN-USE"


@pytest.mark.parametrize(
    ("replies", "words"),
    [
        ({b"LIST": b"+OK\r\n1\r\n.\r\n"}, "malformed"),
        ({b"LIST": b"+OK\r\n1 -5\r\n.\r\n"}, "malformed"),
        ({b"LIST": b"+OK\r\n1 1234567890123456\r\n.\r\n"}, "malformed"),
        ({b"LIST": b"+OK\r\n1 x\r\n.\r\n"}, "malformed"),
        ({b"LIST": b"OK\r\n"}, "malformed"),
        ({b"LIST": b"+OK\r\n" + b"x" * 5000}, "too long"),
        ({b"LIST": b"+OK " + b"x" * 5000 + b"\r\n.\r\n"}, "too long"),
        ({b"LIST": b"+OK\r\n.\r\n+OK unasked\r\n"}, "answers no command"),
        ({b"LIST": None}, "closed the connection"),
        (
            {b"LIST": b"+OK\r\n" + b"".join(b"%d 1\r\n" % n for n in range(300)) + b".\r\n"},
            "malformed",
        ),
        ({b"UIDL": b"+OK\r\n1 " + b"x" * 256 + b"\r\n.\r\n"}, "malformed"),
        # These replies have no end, so only the repeated number can make them malformed.
        ({b"LIST": b"+OK\r\n1 1\r\n1 1\r\n"}, "malformed"),
        ({b"UIDL": b"+OK\r\n1 a\r\n1 b\r\n"}, "malformed"),
        ({b"STAT": b"+OK many\r\n"}, "malformed"),
        ({b"STAT": b""}, "did not answer within 30 s"),
    ],
)
def test_badReplies(
    replies: dict[bytes, bytes | None], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    If a reply breaks the protocol or a limit, or does not come, the connection ends, and all
    commands that wait fail.
    """
    monkeypatch.setattr(clientprotocol, "MOST_MESSAGES", 250)
    network = scripted({**GOOD, b"STAT": b"+OK 1 1\r\n", **replies})
    client = connected(network)
    outcomes: list[Any] = []
    for each in (client.sizes(), client.uniqueIDs(), client.stat(), client.noop()):
        each.addBoth(outcomes.append)
    network.pump()
    for _ in range(4):
        network.clock.advance(10)
        network.pump()
    assert client.isLost and words in client.why or words in str(outcomes[-1].value)
    assert isinstance(outcomes[-1].value, ServerUnavailable)
    with pytest.raises(ServerUnavailable):
        run(network, client.noop())
    assert not network.clock.getDelayedCalls()


@given(
    st.lists(
        st.one_of(
            st.sampled_from(
                [*(b"+OK", b"-ERR", b"\r\n", b".", b"+ ", b" ", b"1 a", b"1 5", b"PIPELINING")]
                + [*(b" _", b"\r", b"\n", b"\0", b"[SYS/TEMP]", b"+", b"AAAA", b"\r\n.\r\n")]
            ),
            st.binary(max_size=4),
        ),
        max_size=40,
    )
)
def test_anyOctets(pieces: list[bytes]) -> None:
    """
    Whatever a server sends, nothing is raised, and each command gets one outcome.
    """
    client = POP3Client(Clock(), executor=Inline())
    network = Network(lambda: Scripted(b"", lambda *_: b""))
    network.connect(Factory(client))
    outcomes: list[Any] = []
    begun = [
        *(client.greeting(), client.askCapabilities(), client.uniqueIDs(), client.sizes()),
        *(Deferred.fromCoroutine(read(client.retrieve(1))), client.ask(b"X"), client.wake()),
        Deferred.fromCoroutine(client.logIn(ALICE, "USER")),
    ]
    for each in begun:
        each.addBoth(outcomes.append)
    for piece in pieces:
        client.dataReceived(piece)
        if client.isLost:
            break
    client.abort("ends")
    network.pump()
    assert len(outcomes) == len(begun)
    assert not client.clock.getDelayedCalls()


def test_endlessCapabilities() -> None:
    """
    The number of lines in the reply to CAPA is limited, because a server may repeat a line forever.
    """
    network = scripted({**GOOD, b"CAPA": b"+OK\r\n" + b"TOP\r\n" * 1001})
    with pytest.raises(ServerUnavailable, match="malformed"):
        connected(network)


def test_malformedGreetings() -> None:
    for greeting, words in (
        (b"-ERR busy\r\n", "refuses the connection"),
        (b"* OK IMAP\r\n", "malformed"),
        (b"x" * 9000, "too long"),
        (b"", "did not answer within 30 s"),
    ):
        network = scripted({}, greeting)
        with pytest.raises(ServerUnavailable, match=words):
            result(network, connect(network.clock, "pop3://h", ALICE, None, endpoint=network), 40)
        assert not network.clock.getDelayedCalls()


@pytest.mark.parametrize(
    ("replies", "words"),
    [
        ([b"+OK\r\n"], "without proof"),
        ([b"+ !!\r\n"], "malformed"),
        ([b"+ cj14\r\n"], "wrongly"),
        # r=x,s=AAAA,i=999999999
        ([b"+ cj14LHM9QUFBQSxpPTk5OTk5OTk5OQ==\r\n"], "rounds"),
    ],
)
def test_badSCRAM(replies: list[bytes], words: str) -> None:
    """
    If a server breaks the rules of SCRAM, for example by accepting the login without a proof, the
    login fails, and the client sends no further line.
    """
    coming: Iterator[bytes] = iter(replies)
    capabilities = b"+OK\r\nSASL SCRAM-SHA-256 PLAIN\r\n.\r\n"
    network = Network(
        lambda: Scripted(
            b"+OK\r\n", lambda _, line: capabilities if line == b"CAPA" else next(coming)
        )
    )
    with pytest.raises(ServerUnavailable, match=words):
        connected(network)
    assert len(network.clients[0].other.protocol.lines) == 2


@pytest.mark.parametrize(
    ("rounds", "words"),
    [
        (b"i=4096,i=999999999", "wrongly"),
        (b"i=1,i=1", "wrongly"),
        (b"i=+999999999", "wrongly"),
        (b"i=999_999_999", "wrongly"),
        (b"i= 999999999", "wrongly"),
        (b"i=0", "wrongly"),
        (b"i=", "wrongly"),
        (b"i=2000001", "more than 2000000 rounds"),
        (b"i=999999999999", "more than 2000000 rounds"),
    ],
)
def test_roundsOfSCRAM(monkeypatch: pytest.MonkeyPatch, rounds: bytes, words: str) -> None:
    """
    A number of rounds that is too large, malformed or repeated is refused before scramp gets it,
    because versions of scramp read such numbers differently.
    """
    monkeypatch.setattr("scramp.ScramClient.set_server_first", lambda *_: pytest.fail("is used"))
    exchange = MECHANISMS["SCRAM-SHA-256"].begin(ALICE, None)
    next(exchange)
    with pytest.raises(ServerUnavailable, match=words):
        exchange.send(b"r=x,s=AAAA," + rounds)


@pytest.mark.parametrize(
    ("last", "words"),
    [
        (b"+ " + b64encode(b"v=" + b64encode(b"x" * 32)) + b"\r\n", "answers .* wrongly"),
        (b"+ " + b64encode(b"e=other-error") + b"\r\n", "answers .* wrongly"),
        (b"+OK\r\n", "without proof"),
    ],
)
def test_impostor(last: bytes, words: str) -> None:
    """
    A server that does not know the password cannot pretend that it does.
    """

    def answer(_: object, line: bytes) -> bytes:
        if line == b"CAPA":
            return b"+OK\r\nSASL SCRAM-SHA-256\r\n.\r\n"
        if line.startswith(b"AUTH"):
            nonce = b64decode(line.split()[2]).partition(b"r=")[2]
            return b"+ " + b64encode(b"r=" + nonce + b"x,s=QSXCR+Q6sek8bf92,i=4096") + b"\r\n"
        return last if line else b"+OK\r\n"

    network = Network(lambda: Scripted(b"+OK\r\n", answer))
    with pytest.raises(ServerUnavailable, match=words):
        connected(network)


# --- messages -------------------------------------------------------------------------


def test_endlessMessage() -> None:
    """
    Reading pauses while the program does not take the octets of a message.  After C{close()}, the
    rest of the message is dropped.  If the rest is far too long, the connection is aborted.
    """
    piece = b"x" * 998 + b"\r\n"
    network = scripted({**GOOD, b"RETR": b"+OK\r\n" + piece * 3000})
    network._most = 65536
    client = connected(network)
    message = run(network, client.retrieve(1, 5))
    end = network.clients[0]
    assert end.isPaused and len(end.waiting) > 2_000_000
    # No time limit runs while the client does not read.
    network.clock.advance(1000)
    assert not client.isLost
    assert len(run(network, message.nextChunk())) > 0
    message.close()
    message.close()
    network.pump()
    assert client.why == "sends a message without end"
    assert end.wasAborted


def test_sizeWithLF() -> None:
    """
    A server may count each line end as one octet, so a message may be twice as long as its reported
    size.  If the program closes such a message early, the connection can be used again.
    """
    body = b"\r\n" * 1_500_000
    network = scripted({**GOOD, b"RETR": b"+OK\r\n" + body + b".\r\n"})
    network._most = 65536
    client = connected(network)
    message = run(network, client.retrieve(1, len(body) // 2))
    octets = 0
    while octets < 1_000_000:
        octets += len(run(network, message.nextChunk()))
    message.close()
    assert run(network, client.sizes()) == {1: 10, 2: 20}


def test_octetsAfterThePause() -> None:
    """
    No time limit begins while the client does not read, even if the end of a message arrives.  TLS
    may deliver such octets after the pause has begun.
    """
    network = scripted({**GOOD, b"RETR": b"+OK\r\n", b"NOOP": b""})
    client = connected(network)
    message = run(network, client.retrieve(1, 5))
    noop = client.noop()
    client.dataReceived(b"x" * 300_000)
    client.dataReceived(b"\r\n.\r\n")
    network.clients[0].deliver(100)
    network.clock.advance(1000)
    assert not client.isLost
    while run(network, message.nextChunk()) is not None:
        pass
    network.clock.advance(31)
    assert client.why == "did not answer within 30 s"
    noop.addErrback(lambda _: None)
    network.pump()


def test_slowMessage() -> None:
    """
    A server that sends an octet now and then does not hold the connection for ever.
    """
    network = scripted({**GOOD, b"RETR": b"+OK\r\n"})
    client = connected(network)
    message = run(network, client.retrieve(1, 5))
    reading = Deferred.fromCoroutine(message.nextChunk())
    reading.addErrback(lambda _: None)
    for _ in range(100):
        network.clock.advance(20)
        if client.isLost:
            break
        client.dataReceived(b"x")
    assert client.why == "sends too slowly"
    assert network.clock.seconds() < Patience.LONG + 100


def test_cutMessage() -> None:
    network = scripted({**GOOD, b"RETR": b"+OK\r\nhalf"})
    client = connected(network)
    message = run(network, client.retrieve(1, 5))
    network.clients[0].other.loseConnection()

    async def whole() -> bytes:
        return b"".join([each async for each in message])

    with pytest.raises(ServerUnavailable, match="in a message|closed"):
        run(network, whole())


def test_cancelled() -> None:
    """
    If the program cancels a command or the reading of a message, the connection is aborted.
    """
    for begin in cancellations():
        network = scripted({**GOOD, b"NOOP": b"", b"RETR": b"+OK\r\n"})
        client = connected(network)
        waiting = begin(network, client)
        outcome: list[Any] = []
        waiting.addBoth(outcome.append)
        network.pump()
        waiting.cancel()
        network.pump()
        assert isinstance(outcome[0].value, CancelledError)
        assert network.clients[0].wasAborted and not network.clock.getDelayedCalls()


def cancellations() -> list[Callable[[Network, POP3Client], Deferred[Any]]]:
    def chunk(network: Network, client: POP3Client) -> Deferred[Any]:
        message = run(network, client.retrieve(1))
        return Deferred.fromCoroutine(message.nextChunk())

    return [lambda _, client: client.noop(), chunk]


def test_window() -> None:
    """
    The client sends at most L{WINDOW} commands before the reply to the first of them.
    """
    network = scripted({**GOOD, b"CAPA": b"+OK\r\nPIPELINING\r\n.\r\n", b"DELE": b"+OK\r\n"})
    client = connected(network)
    deleting = [client.delete(n) for n in range(1, 101)]
    end = network.clients[0].other
    assert bytes(end.waiting).count(b"\r\n") == WINDOW
    for each in deleting:
        run(network, each)


def test_leaving() -> None:
    """
    C{leave()} aborts a connection on which a command waits for its reply.
    """
    network = scripted(GOOD)
    client = connected(network)
    client.noop().addErrback(lambda _: None)
    client.leave()
    client.leave()
    network.pump()
    assert network.clients[0].wasAborted
