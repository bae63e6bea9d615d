"""
The mechanisms of SCRAM: the examples of the RFCs, and all messages that must be refused.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

import pytest
from scramp import ScramClient
from twisted.internet.task import Clock

from pop3svc.accounts.checkers import AccountsProvider
from pop3svc.accounts.domains import DomainProvider
from pop3svc.accounts.hashes import HashReader
from pop3svc.accounts.passwordfile import PasswordFile
from pop3svc.accounts.scramkeys import KeyForms, ScramSource, deriveKeys, makeVerifier
from pop3svc.awaiting import startNow
from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import ScramKeys
from pop3svc.policy import Policy
from pop3svc.protocol.scram import ClientFirst, ScramServer, makeUp, seedOf
from pop3svc.providers.memory import MemoryStore
from pop3svc.service.factory import POP3Factory
from pop3svc.testing import Client, Inline
from tests.support.throttles import RecordingThrottle

POLICY = Policy(enable=frozenset(["SCRAM-SHA-1", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"]))
# Computed once, because a verifier costs many rounds.
VERIFIER = makeVerifier("pencil")


def keysOf(algorithm: str, salt: str, password: str = "pencil") -> ScramKeys:
    keys = deriveKeys(password, algorithm, b64decode(salt), 4096)
    assert keys is not None
    return keys


# --- the messages ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "salt", "clientNonce", "serverNonce", "proof", "signature"),
    [
        (
            "sha1",
            "QSXCR+Q6sek8bf92",
            "fyko+d2lbbFgONRv9qkxdawL",
            "3rfcNHYJY1ZVvWVs7j",
            "v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
            "rmF9pqV8S7suAoZWja4dJRkFsKQ=",
        ),
        (
            "sha256",
            "W22ZaJ0SNY7soEsUEjb6gQ==",
            "rOprNGfwEbeRWgbNEkqO",
            "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0",
            "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
            "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
        ),
    ],
)
def test_examplesOfTheRFCs(
    algorithm: str, salt: str, clientNonce: str, serverNonce: str, proof: str, signature: str
) -> None:
    """
    The messages of the server are those of RFC 5802 section 5 and RFC 7677 section 3.
    """
    first = ClientFirst.parse(f"n,,n=user,r={clientNonce}".encode())
    server = ScramServer(algorithm, first, keysOf(algorithm, salt), makeNonce=lambda: serverNonce)
    assert server.challenge == f"r={clientNonce}{serverNonce},s={salt},i=4096".encode()
    final = f"c=biws,r={clientNonce}{serverNonce},p={proof}".encode()
    isRight, said = server.check(final)
    assert isRight
    assert said == f"v={signature}".encode()


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"n",
        b"n,",
        b"n,,",
        b"N,,n=user,r=abc",
        b"p=,,n=user,r=abc",
        b"p,,n=user,r=abc",
        b"n,,m=ext,n=user,r=abc",
        b"n,,n=user,r=abc,m=ext",
        b"n,,n=,r=abc",
        b"n,,n=user,r=",
        b"n,,r=abc,n=user",
        b"n,,n=user,n=user,r=abc",
        b"n,,n=user",
        b"n,,n=us=er,r=abc",
        b"n,,n=us=2Der,r=abc",
        b"n,,n=us=2cer,r=abc",
        b"n,,n=us\0er,r=abc",
        b"n,,n=us\ner,r=abc",
        b"n,,n=us\xffer,r=abc",
        b"n,,n=user,r=a bc",
        b"n,,n=user,r=ab\x80c",
        b"n,,n=user,r=abc,",
        b"n,,n=user,r=abc,x=",
        b"n,a=,n=user,r=abc",
        b"n,,n=user,r=" + b"a" * 3000,
        b"n,,n=" + b"u" * 256 + b",r=abc",
    ],
)
def test_badFirstMessages(message: bytes) -> None:
    with pytest.raises(POP3ResponseError) as caught:
        ClientFirst.parse(message)
    assert caught.value.code != "AUTH"


def test_names() -> None:
    """
    Commas and equals signs are escaped (RFC 5802 section 5.1).  mutt sends the user name as the
    authorization identity, too.
    """
    first = ClientFirst.parse(b"n,a=a=2Cb=3Dc,n=a=2Cb=3Dc,r=abc,x=more")
    assert (first.name, first.nonce, first.header) == ("a,b=c", "abc", "n,a=a=2Cb=3Dc,")
    with pytest.raises(POP3ResponseError) as caught:
        ClientFirst.parse(b"n,a=other,n=user,r=abc")
    assert caught.value.code == "AUTH"


@pytest.mark.parametrize("size", [12, 16, 96])
def test_madeUp(size: int) -> None:
    """
    Made-up keys stay the same for a name, and look like those of real users.
    """
    like = ScramKeys(b"s" * size, 65_536, b"", b"")

    def make(secret: bytes = b"secret", name: str = "nobody", algorithm: str = "sha256") -> Any:
        return makeUp(seedOf(secret, name, algorithm), algorithm, like)

    one = make()
    assert one == make()
    assert (len(one.salt), one.rounds, len(one.storedKey)) == (size, 65_536, 32)
    assert len(make(algorithm="sha1").serverKey) == 20
    for other in (make(secret=b"other"), make(name="nobody2"), make(algorithm="sha1")):
        assert other.salt != one.salt


def test_formsOfMadeUpKeys() -> None:
    """
    Made-up keys have each form as often as real keys, so that a rare form tells nothing.  Another
    user changes the form of few names.
    """
    forms = KeyForms()
    for stored, count in ((VERIFIER, 60), ("{PLAIN}pencil", 40)):
        for _ in range(count):
            forms.add(stored)

    def rounds() -> list[int]:
        made = [forms.example("sha256", seedOf(b"s", str(each), "sha256")) for each in range(1000)]
        return [each.rounds for each in made if each is not None]

    before = rounds()
    assert 340 < before.count(4096) < 460 and before.count(4096) + before.count(65_536) == 1000
    forms.add("{PLAIN}pencil")
    changed = [one for one, two in zip(before, rounds(), strict=True) if one != two]
    assert len(changed) < 20 and 4096 not in changed
    sha1 = forms.example("sha1", b"seed")
    assert sha1 is not None and (sha1.rounds, len(sha1.salt)) == (4096, 16)
    assert KeyForms().example("sha256", b"seed") is None


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
def test_passwordOfNothing(algorithm: str) -> None:
    """
    A password that SASLprep makes empty has no keys, because nobody may log in with an empty
    password.
    """
    assert deriveKeys("\u00ad", algorithm, b"s" * 16, 4096) is None
    with pytest.raises(ValueError):
        makeVerifier("\u00ad")


# --- logging in -----------------------------------------------------------------------


@pytest.fixture
def provider(tmp_path: Path) -> AccountsProvider:
    """
    Users with a verifier, with a password in the clear, and with another hash.
    """
    path = tmp_path / "users"
    plain = "{PLAIN}pencil"
    hashed = "{SSHA256}" + b64encode(hashlib.sha256(b"pencilsalt").digest() + b"salt").decode()
    path.write_text(f"user:{VERIFIER}\nplain:{plain}\nhashed:{hashed}\n")
    return AccountsProvider(MemoryStore([b"a: b\n\nc\n"]), [PasswordFile(str(path), Inline())])


class Binding:
    """
    Returns the channel binding C{tls-server-end-point} of a TLS connection.
    """

    OCTETS = b"octets of the binding"

    def __call__(self, name: str) -> bytes | None:
        return self.OCTETS if name == "tls-server-end-point" else None


def connect(provider: Any, policy: Policy = POLICY, isBound: bool = False) -> Client:
    client = Client(POP3Factory(provider, policy, clock=Clock(), secret=b"s"), isSecure=True)
    if isBound:
        client.protocol.session.channelBinding = Binding()
    client.received()
    return client


def challengeOf(reply: bytes) -> str:
    assert reply.startswith(b"+ ") and reply.endswith(b"\r\n"), reply
    return b64decode(reply[2:-2]).decode()


def respond(client: Client, text: str) -> bytes:
    return client.say(b64encode(text.encode()))


def begin(client: Client, name: str, password: str, mechanism: str, binding: Any = None) -> Any:
    """
    @return: the library's client after the server's first message.
    """
    other = ScramClient([mechanism], name, password, channel_binding=binding)
    assert client.say(b"AUTH " + mechanism.encode()) == b"+ \r\n"
    other.set_server_first(challengeOf(respond(client, other.get_client_first())))
    return other


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-1"])
def test_password(provider: AccountsProvider, mechanism: str) -> None:
    """
    A user whose password is stored in the clear can log in with both mechanisms.
    """
    client = connect(provider)
    other = begin(client, "plain", "pencil", mechanism)
    other.set_server_final(challengeOf(respond(client, other.get_client_final())))
    assert client.say(b"") == b"+OK Logged in.\r\n"
    assert client.say(b"STAT") == b"+OK 1 11\r\n"


@pytest.mark.parametrize("end", [b"", b"="])
def test_verifier(provider: AccountsProvider, end: bytes) -> None:
    """
    A user with a verifier can log in.  Some clients send C{=} for the empty response.
    """
    client = connect(provider)
    other = begin(client, "user", "pencil", "SCRAM-SHA-256")
    other.set_server_final(challengeOf(respond(client, other.get_client_final())))
    assert client.say(end) == b"+OK Logged in.\r\n"


def test_passwordInTheClear(provider: AccountsProvider) -> None:
    """
    A user with a verifier can log in with PASS, too.
    """
    client = connect(provider)
    client.logIn(b"user", b"pencil")
    client = connect(provider)
    assert client.say(b"USER user").startswith(b"+OK")
    client.send(b"PASS wrong\r\n")
    client.protocol.factory.clock.advance(10)
    assert client.received().startswith(b"-ERR [AUTH]")


@pytest.mark.parametrize(
    ("name", "password"),
    [("user", "wrong"), ("plain", "wrong"), ("hashed", "pencil"), ("nobody", "pencil")],
)
def test_refused(provider: AccountsProvider, name: str, password: str) -> None:
    """
    The messages do not tell a wrong password from a user that does not exist.
    """
    client = connect(provider)
    other = begin(client, name, password, "SCRAM-SHA-256")
    assert respond(client, other.get_client_final()) == b"-ERR [AUTH] Wrong name or password.\r\n"
    assert client.say(b"CAPA").startswith(b"+OK")


def challenge(provider: Any, name: str) -> dict[str, str]:
    """
    @return: the attributes of the server's first message.
    """
    client = connect(provider)
    client.say(b"AUTH SCRAM-SHA-256")
    text = challengeOf(respond(client, f"n,,n={name},r=abcdefgh"))
    return {each[0]: each[2:] for each in text.split(",")}


def test_sameChallenge(provider: AccountsProvider) -> None:
    """
    Salt and rounds of a user that does not exist stay the same, and have the form of a real user.
    """
    one, two, real = (challenge(provider, each) for each in ("nobody", "nobody", "user"))
    assert one["s"] == two["s"] and one["r"] != two["r"]
    assert real["i"] == "65536"
    assert len(one["s"]) == len(real["s"]) and one["s"] != real["s"]


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
def test_sameWork(algorithm: str) -> None:
    """
    One verifier is read for each look-up, whether or not there is a user.
    """
    read: list[Any] = []

    class Reader(HashReader):
        def scramKeys(self, stored: str, algorithm: str) -> ScramKeys | None:
            keys = super().scramKeys(stored, algorithm)
            read.extend(() if keys is None else [stored])
            return keys

    source = ScramSource(Reader(), Inline())
    verifier = VERIFIER if algorithm == "sha256" else None
    for stored in (verifier, "{SHA}" + "A" * 27 + "=", None):
        read.clear()
        keys = startNow(source.keysOf(stored, algorithm, b"s" * 16))
        assert len(read) == 1
        assert (keys is not None) == (stored is not None and stored == verifier)


def test_plainAmongVerifiers(tmp_path: Path) -> None:
    """
    Names without an account show the form of a password in the clear, too.  A short salt of
    other users does not matter for that password.
    """
    path = tmp_path / "users"
    short = ",".join(["{SCRAM-SHA-256}65536", "c2FsdA==", *VERIFIER.split(",")[2:]])
    path.write_text(f"user:{short}\nplain:{{PLAIN}}pencil\n")
    provider = AccountsProvider(MemoryStore([]), [PasswordFile(str(path), Inline())])

    def form(name: str) -> tuple[str, int]:
        found = challenge(provider, name)
        return found["i"], len(found["s"])

    assert {form(f"nobody{each}") for each in range(20)} == {form("user"), form("plain")}
    client = connect(provider)
    client.say(b"AUTH SCRAM-SHA-256")
    client.say(b"*")
    other = begin(client, "plain", "pencil", "SCRAM-SHA-256")
    assert respond(client, other.get_client_final()).startswith(b"+ ")


def finalOf(other: Any) -> dict[str, str]:
    return {each[0]: each[2:] for each in other.get_client_final().split(",")}


@pytest.mark.parametrize(
    "change",
    [
        lambda final: final | {"r": final["r"] + "x"},
        lambda final: final | {"r": final["r"][:-1]},
        lambda final: final | {"c": "eSws"},
        lambda final: final | {"p": final["p"][:-4]},
        lambda final: final | {"p": b64encode(b"x" * 31).decode()},
        lambda final: final | {"p": b64encode(b"x" * 33).decode()},
        lambda final: final | {"p": b64encode(b"x" * 32).decode()},
        lambda final: {"c": final["c"], "r": final["r"]},
        lambda final: {"r": final["r"], "c": final["c"], "p": final["p"]},
        lambda final: final | {"p": "!"},
        lambda final: final | {"p": final["p"].rstrip("=")},
    ],
)
def test_badFinalMessages(provider: AccountsProvider, change: Any) -> None:
    client = connect(provider)
    final = change(finalOf(begin(client, "user", "pencil", "SCRAM-SHA-256")))
    reply = respond(client, ",".join(f"{key}={value}" for key, value in final.items()))
    assert reply.startswith(b"-ERR ")
    assert client.say(b"STAT").startswith(b"-ERR ")


def test_oneFormOfBase64(provider: AccountsProvider) -> None:
    """
    Bits that base64 does not use have to be zero, because a proof has one form only.
    """
    client = connect(provider)
    final = begin(client, "user", "pencil", "SCRAM-SHA-256").get_client_final()
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    last = letters[letters.index(final[-2]) + 1]
    assert b64decode(final[-44:]) == b64decode(final[-44:-2] + last + "=")
    assert respond(client, final[:-2] + last + "=").startswith(b"-ERR ")
    assert client.say(b"AUTH PLAIN AB==").startswith(b"-ERR ")


def test_moreThanTheEnd(provider: AccountsProvider) -> None:
    """
    Only an empty response may follow the server's final message.
    """
    client = connect(provider)
    other = begin(client, "user", "pencil", "SCRAM-SHA-256")
    respond(client, other.get_client_final())
    assert client.say(b"eA==").startswith(b"-ERR ")
    assert client.say(b"STAT").startswith(b"-ERR ")


def test_otherExchange(provider: AccountsProvider) -> None:
    """
    A final message of another exchange is refused.
    """
    one, two = connect(provider), connect(provider)
    final = begin(one, "user", "pencil", "SCRAM-SHA-256").get_client_final()
    begin(two, "user", "pencil", "SCRAM-SHA-256")
    assert respond(two, final).startswith(b"-ERR ")


def test_cancelled(provider: AccountsProvider) -> None:
    client = connect(provider)
    begin(client, "user", "pencil", "SCRAM-SHA-256")
    assert client.say(b"*") == b"-ERR Cancelled.\r\n"
    client.logIn(b"user", b"pencil")


def test_changedMeanwhile(provider: AccountsProvider, tmp_path: Path) -> None:
    """
    A client that waits with its proof does not log in with the password that was valid at its
    first message.
    """
    client = connect(provider)
    other = begin(client, "plain", "pencil", "SCRAM-SHA-256")
    path = tmp_path / "users"
    path.write_text(path.read_text().replace("{PLAIN}pencil", "{PLAIN}other password"))
    assert respond(client, other.get_client_final()) == b"-ERR [AUTH] Wrong name or password.\r\n"


def test_manyBegun(provider: AccountsProvider) -> None:
    """
    One connection cannot look up an unlimited number of users.  A login begins the count again.
    """
    client = connect(provider)
    for _ in range(3):
        for _ in range(POLICY.maxFailedLogins - 1):
            begin(client, "nobody", "pencil", "SCRAM-SHA-256")
            assert client.say(b"*") == b"-ERR Cancelled.\r\n"
        other = begin(client, "user", "pencil", "SCRAM-SHA-256")
        respond(client, other.get_client_final())
        assert client.say(b"") == b"+OK Logged in.\r\n"
        assert client.say(b"QAUT").startswith(b"+OK")
    for _ in range(POLICY.maxFailedLogins):
        begin(client, "nobody", "pencil", "SCRAM-SHA-256")
        client.say(b"*")
    assert client.say(b"AUTH SCRAM-SHA-256") == b"+ \r\n"
    assert respond(client, "n,,n=nobody,r=abcdefgh") == b"-ERR Too many logins were begun.\r\n"
    assert client.transport.ended


def test_leftOverKeys(tmp_path: Path) -> None:
    """
    A client cancels an exchange of SCRAM, and logs in as a user of another domain.  The mailbox
    comes from the store of this other domain.
    """
    (tmp_path / "users").write_text(f"user@one.example:{VERIFIER}\n")
    stores = MemoryStore([b"one\n"]), MemoryStore([b"two\n", b"two\n"])
    one = AccountsProvider(stores[0], [PasswordFile(str(tmp_path / "users"), Inline())])
    two = AccountsProvider(stores[1], [])
    provider = DomainProvider({"one.example": one, "two.example": two}, "x")
    client = connect(provider)
    begin(client, "user@one.example", "pencil", "SCRAM-SHA-256")
    client.say(b"*")
    info = client.protocol.session.info
    mailbox = provider.openMailbox(info, "user@two.example")
    assert len(mailbox.listMessageUniqueIDs(info)) == 2
    other = begin(client, "user@one.example", "pencil", "SCRAM-SHA-256")
    respond(client, other.get_client_final())
    assert client.say(b"") == b"+OK Logged in.\r\n"
    assert client.say(b"STAT").startswith(b"+OK 1 ")


# --- channel binding ------------------------------------------------------------------


def test_bound(provider: AccountsProvider) -> None:
    client = connect(provider, isBound=True)
    binding = "tls-server-end-point", Binding.OCTETS
    other = begin(client, "user", "pencil", "SCRAM-SHA-256-PLUS", binding)
    other.set_server_final(challengeOf(respond(client, other.get_client_final())))
    assert client.say(b"") == b"+OK Logged in.\r\n"


def test_boundElsewhere(provider: AccountsProvider) -> None:
    """
    The binding of another connection is refused, because it shows that somebody is in the middle.
    """
    client = connect(provider, isBound=True)
    binding = "tls-server-end-point", b"octets of another connection"
    other = begin(client, "user", "pencil", "SCRAM-SHA-256-PLUS", binding)
    assert respond(client, other.get_client_final()).startswith(b"-ERR [AUTH]")


@pytest.mark.parametrize(
    ("mechanism", "first"),
    [
        # The client could bind, and read a list without -PLUS.
        ("SCRAM-SHA-256", "y,,n=user,r=abcdefgh"),
        ("SCRAM-SHA-256", "p=tls-server-end-point,,n=user,r=abcdefgh"),
        ("SCRAM-SHA-256-PLUS", "n,,n=user,r=abcdefgh"),
        ("SCRAM-SHA-256-PLUS", "y,,n=user,r=abcdefgh"),
        ("SCRAM-SHA-256-PLUS", "p=tls-unique,,n=user,r=abcdefgh"),
        ("SCRAM-SHA-256-PLUS", "p=tls-exporter,,n=user,r=abcdefgh"),
        ("SCRAM-SHA-256-PLUS", "p=TLS-SERVER-END-POINT,,n=user,r=abcdefgh"),
    ],
)
def test_wrongChoice(provider: AccountsProvider, mechanism: str, first: str) -> None:
    client = connect(provider, isBound=True)
    client.say(b"AUTH " + mechanism.encode())
    assert respond(client, first).startswith(b"-ERR ")


def test_couldHaveBound(provider: AccountsProvider) -> None:
    """
    Without -PLUS the server accepts a client that could bind.
    """
    client = connect(provider, Policy(enable=frozenset(["SCRAM-SHA-256"])), isBound=True)
    client.say(b"AUTH SCRAM-SHA-256")
    challengeOf(respond(client, "y,,n=user,r=abcdefgh"))


# --- what is offered ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "isBound", "offered"),
    [
        (Policy(), True, "PLAIN LOGIN"),
        (POLICY, True, "PLAIN LOGIN SCRAM-SHA-256-PLUS SCRAM-SHA-256 SCRAM-SHA-1"),
        (POLICY, False, "PLAIN LOGIN SCRAM-SHA-256 SCRAM-SHA-1"),
        (Policy(enable=frozenset(["SCRAM-SHA-256"])), True, "PLAIN LOGIN SCRAM-SHA-256"),
        (
            Policy(
                enable=frozenset(["SCRAM-SHA-256"]), without=frozenset(["PLAIN", "SCRAM-SHA-256"])
            ),
            True,
            "LOGIN",
        ),
    ],
)
def test_offered(provider: AccountsProvider, policy: Policy, isBound: bool, offered: str) -> None:
    """
    A mechanism that is off is neither announced nor accepted.
    """
    client = connect(provider, policy, isBound)
    assert f"\r\nSASL {offered}\r\n".encode() in client.say(b"CAPA")
    for name in ("PLAIN", "LOGIN", "SCRAM-SHA-1", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"):
        accepted = client.say(b"AUTH " + name.encode()).startswith(b"+ ")
        assert accepted == (name in offered.split())
        if accepted:
            client.say(b"*")


def test_counted(provider: AccountsProvider) -> None:
    """
    The throttle decides before the client learns whether the proof was right, and hears how each
    attempt has ended.
    """
    throttle = RecordingThrottle()
    factory = POP3Factory(provider, POLICY, clock=Clock(), throttle=throttle)

    def attempt(password: str) -> bytes:
        client = Client(factory, isSecure=True)
        client.received()
        other = begin(client, "user", password, "SCRAM-SHA-256")
        return respond(client, other.get_client_final())

    assert attempt("pencil").startswith(b"+ ")
    assert attempt("wrong").startswith(b"-ERR [AUTH]")
    throttle.admits = False
    assert attempt("pencil") == attempt("wrong") == b"-ERR [AUTH] Wrong name or password.\r\n"
    may = ("may", "user", None)
    assert throttle.told == [may, ("succeeded", "user"), may, ("failed", "user"), may, may]
