"""
Malformed exchanges of every login method, at every step.

    python -m tests.proofs.exchanges [COUNT] [SEED]

Each exchange is a valid one with changes.  Some clients send the first message as an initial
response, cancel the exchange, or are lost in the middle.  The proof fails if the service logs an
error or a traceback, lets a client in as another user, disturbs another session, or grows.
"""

from __future__ import annotations

import random
import resource
import sys
import tempfile
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Callable
from hashlib import md5
from pathlib import Path
from typing import Any

from scramp import ScramClient
from scramp.utils import ScramException
from twisted.cred.checkers import ICredentialsChecker
from twisted.internet.task import Clock
from twisted.logger import LogLevel, globalLogPublisher
from zope.interface import implementer

from pop3svc.accounts.checkers import AccountsProvider
from pop3svc.accounts.passwordfile import PasswordFile
from pop3svc.credentials import IBearerToken
from pop3svc.interfaces import IAccountNames, IBearerAccounts
from pop3svc.policy import OPTIONAL_MECHANISMS, Policy
from pop3svc.protocol.challenges import cramDigest
from pop3svc.providers.memory import MemoryStore
from pop3svc.service.factory import POP3Factory
from pop3svc.testing import Client, Inline

__all__ = ["Proof"]

PASSWORD = "tanstaaf"
# The names in the client's certificate; the last one has no account.
NAMES = ("alice", "ghost")
# The most octets by which the process may grow after the first tenth.
GROWTH = 4 << 20
BINDING = "tls-server-end-point", b"octets of this connection"
# Pieces that parsers have stumbled over.
PIECES = [
    *(b"\0", b",", b"=", b"==", b"\r", b"\xff", b" ", b"*", b"n=", b"r=", b"c=", b"p=", b"m="),
    *(b"a=alice", b"n,,", b"y,,", b"p=tls-exporter,,", b"x" * 300, "ü".encode(), b"i=1", b"%s"),
    *(b"bob", b"ghost"),
]


def _changed(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    end = min(len(data), at + chance.choice([0, 1, 2, 8]))
    kind = chance.randrange(5)
    if kind == 0:
        return data[:at] + chance.choice(PIECES) + data[end:]
    if kind == 1:
        return data[:at] + data[end:]
    if kind == 2:
        return data[:at] + bytes([chance.randrange(256)]) + data[end:]
    if kind == 3:
        return data[:at]
    return data + data[at:]


Send = Callable[[bytes], bytes]


@implementer(ICredentialsChecker, IAccountNames, IBearerAccounts)
class Tokens:
    """
    Knows one user, alice, and one token.
    """

    credentialInterfaces = (IBearerToken,)

    def requestAvatarId(self, credentials: Any) -> Any:
        """
        See L{ICredentialsChecker.requestAvatarId}.
        """
        raise AssertionError("it checks no passwords")

    def hasAccount(self, username: str) -> bool:
        """
        See L{IAccountNames.hasAccount}.
        """
        return username == "alice"

    def userOfToken(self, info: Any, token: str, username: str | None) -> str | None:
        """
        See L{IBearerAccounts.userOfToken}.
        """
        return "alice" if token == "abc.def.ghi" and username in (None, "alice") else None


class _Line:
    """
    Sends the messages of one exchange, some of them changed.

    @ivar sent: the lines.
    @ivar wasChanged: whether a message was changed.
    """

    def __init__(self, client: Client, chance: random.Random, mayBegin: bool) -> None:
        """
        @param mayBegin: whether the client sends the first message (RFC 5034 section 4).
        """
        self._client, self._chance, self._mayBegin = client, chance, mayBegin
        self._begun = b""
        self._end = b""
        self.sent: list[bytes] = []
        self.wasChanged = False

    def _perhaps(self, probability: float, data: bytes) -> bytes:
        if self._chance.random() >= probability:
            return data
        changed = _changed(data, self._chance)
        self.wasChanged = self.wasChanged or changed != data
        return changed

    def send(self, message: bytes) -> bytes:
        """
        @param message: a command, or a message of an exchange before base64.
        @return: the reply.
        """
        if self._end.startswith((b"-ERR", b"+OK Logged")) or not self._client.isOpen:
            return self._end
        chance = self._chance.random()
        if chance < 0.01:
            self._client.vanish()
            return b""
        if message.startswith(b"AUTH "):
            if self._mayBegin and chance < 0.3:
                self._begun = message + b" "
                return b"+ \r\n"
            line = self._perhaps(0.02, message)
        elif message.startswith((b"APOP ", b"USER ", b"PASS ")):
            line = message[:5] + self._perhaps(0.5, message[5:])
        elif chance < 0.03:
            line, self.wasChanged = b"*", True
        else:
            encoded = b64encode(self._perhaps(0.5, message))
            line = self._begun + self._perhaps(0.1, encoded or b"=" * bool(self._begun))
            self._begun = b""
        self.sent.append(line.replace(b"\n", b""))
        self._end = self._client.say(self.sent[-1])
        return self._end


class Proof:
    """
    A service, and clients that change their messages.

    @ivar counts: how exchanges have ended, for each method.
    @ivar faults: what must not happen.
    @ivar letIn: the lines of changed exchanges after which the client was in.
    """

    def __init__(self, directory: Path, seed: int = 1) -> None:
        self.chance = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.letIn: list[tuple[str, list[bytes]]] = []
        users = directory / "users"
        users.write_text(f"alice:{{PLAIN}}{PASSWORD}\nbob:{{PLAIN}}other\n")
        store = MemoryStore([b"a: b\n\nc\n"])
        provider = AccountsProvider(store, [PasswordFile(str(users), Inline()), Tokens()])
        policy = Policy(enable=frozenset(OPTIONAL_MECHANISMS), maxFailedLogins=1000)
        self._factory = POP3Factory(provider, policy, clock=Clock(), secret=b"s")
        self.methods: dict[str, Callable[[Client, Send], bytes]] = {
            "PASS": self._pass,
            "PLAIN": self._plain,
            "LOGIN": self._login,
            "CRAM-MD5": self._cramMD5,
            **{
                name: lambda client, send, name=name: self._scram(name, send)  # type: ignore[misc]
                for name in OPTIONAL_MECHANISMS
                if name.startswith("SCRAM")
            },
            "APOP": self._apop,
            "OAUTHBEARER": lambda client, send: self._bearer(
                b"OAUTHBEARER", b"n,a=alice,\1host=h\1auth=Bearer abc.def.ghi\1\1", send
            ),
            "XOAUTH2": lambda client, send: self._bearer(
                b"XOAUTH2", b"user=alice\1auth=Bearer abc.def.ghi\1\1", send
            ),
            "EXTERNAL": self._external,
        }

    # --- the exchanges ------------------------------------------------------------------

    def _pass(self, client: Client, send: Send) -> bytes:
        send(b"USER alice")
        return send(b"PASS " + PASSWORD.encode())

    def _plain(self, client: Client, send: Send) -> bytes:
        send(b"AUTH PLAIN")
        return send(b"\0alice\0" + PASSWORD.encode())

    def _login(self, client: Client, send: Send) -> bytes:
        send(b"AUTH LOGIN")
        send(b"alice")
        return send(PASSWORD.encode())

    def _cramMD5(self, client: Client, send: Send) -> bytes:
        challenge = _decoded(send(b"AUTH CRAM-MD5"))
        return send(b"alice " + cramDigest(challenge, PASSWORD).encode())

    def _apop(self, client: Client, send: Send) -> bytes:
        timestamp: str = client.protocol.session.timestamp
        return send(b"APOP alice " + md5((timestamp + PASSWORD).encode()).hexdigest().encode())

    def _bearer(self, name: bytes, message: bytes, send: Send) -> bytes:
        send(b"AUTH " + name)
        reply = send(message)
        return send(b"\1") if reply.startswith(b"+ ") else reply

    def _external(self, client: Client, send: Send) -> bytes:
        send(b"AUTH EXTERNAL")
        return send(b"alice")

    def _scram(self, name: str, send: Send) -> bytes:
        binding = BINDING if name.endswith("-PLUS") else None
        other = ScramClient([name], "alice", PASSWORD, channel_binding=binding)
        send(b"AUTH " + name.encode())
        try:
            other.set_server_first(_decoded(send(other.get_client_first().encode())))
            final = send(other.get_client_final().encode())
            if not final.startswith(b"+ "):
                return final
            other.set_server_final(_decoded(final))
        except (ScramException, ValueError):
            return send(b"")
        return send(b"")

    # --- one exchange -------------------------------------------------------------------

    def _connected(self) -> tuple[Client, bytes]:
        client = Client(self._factory, isSecure=True)
        session: Any = client.protocol.session
        session.channelBinding = dict([BINDING]).get
        session.certificateNames = lambda: NAMES
        return client, client.received()

    def _one(self, method: str) -> None:
        client, _ = self._connected()
        line = _Line(client, self.chance, mayBegin=method not in ("CRAM-MD5", "APOP", "PASS"))
        reply = self.methods[method](client, line.send)
        outcome = reply.split(b" ")[0].decode("ascii", "replace").strip() or "closed"
        self.counts[f"{method} {outcome}"] += 1
        if outcome not in ("+OK", "-ERR", "+", "closed"):
            self.faults.append(f"{method}: {reply!r}")
        if outcome == "+OK":
            user = client.protocol.session.record.user
            if not reply.startswith(b"+OK Logged in") or user != "alice":
                self.faults.append(f"{method}: {reply!r} to {user}")
            if line.wasChanged:
                # Some changes mean nothing, such as another nonce.
                self.letIn.append((method, line.sent))
        client.vanish()

    def run(self, count: int) -> None:
        """
        Hold this many exchanges.
        """
        seen: list[Any] = []

        def observe(event: Any) -> None:
            if event["log_level"] in (LogLevel.error, LogLevel.critical):
                seen.append(event)

        globalLogPublisher.addObserver(observe)
        other, _ = self._connected()
        other.logIn(b"alice", PASSWORD.encode())
        other.say(b"SLEE")
        bystander = Client(self._factory, isSecure=True)
        bystander.received()
        try:
            names = list(self.methods)
            for number in range(count):
                self._one(names[number % len(names)])
                if number % 100 == 0:
                    if not bystander.say(b"CAPA").startswith(b"+OK"):
                        self.faults.append("another session was disturbed")
                    if not other.say(b"NOOP").startswith(b"+OK"):
                        self.faults.append("a sleeping session was disturbed")
        finally:
            globalLogPublisher.removeObserver(observe)
            other.vanish()
            bystander.vanish()
        self.faults += [f"logged {each.get('log_format')}" for each in seen]
        left = len(self._factory.connections)
        if left:
            self.faults.append(f"{left} connections are left")


def _decoded(reply: bytes) -> str:
    return b64decode(reply[2:].strip()).decode("utf-8", "replace") if reply[:2] == b"+ " else ""


def main() -> None:
    """
    Run the proof and print how exchanges ended.
    """
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    with tempfile.TemporaryDirectory() as directory:
        proof = Proof(Path(directory), seed)
        proof.run(count // 10)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        proof.run(count - count // 10)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    for name, number in sorted(proof.counts.items()):
        print(f"{number:8} {name}")
    for method, lines in proof.letIn[:10]:
        print("let in:", method, b" / ".join(lines)[:200])
    print(f"{len(proof.letIn)} changed exchanges were let in")
    print(f"memory grew by {grown} KiB after the first tenth")
    if grown * 1024 > GROWTH:
        proof.faults.append(f"memory grew by more than {GROWTH >> 10} KiB")
    print("\n".join(proof.faults[:20]) or "wrong: 0")
    sys.exit(bool(proof.faults))


if __name__ == "__main__":
    main()
