"""
APOP and CRAM-MD5: the examples of the RFCs, and what is refused.
"""

from __future__ import annotations

import hmac
import re
from base64 import b64decode, b64encode
from hashlib import md5
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock

from pop3svc.accounts.checkers import AccountsProvider
from pop3svc.accounts.passwordfile import PasswordFile
from pop3svc.policy import Policy
from pop3svc.protocol.challenges import apopDigest, cramDigest
from pop3svc.providers.memory import MemoryProvider, MemoryStore
from pop3svc.service.factory import POP3Factory
from pop3svc.testing import Client, Inline

POLICY = Policy(enable=frozenset(["APOP", "CRAM-MD5"]), cleartextLogin="never")
WRONG = b"-ERR [AUTH] Wrong name or password.\r\n"


def test_examples() -> None:
    """
    The digests are right for the examples in RFC 1939 section 7 and RFC 2195 section 2.
    """
    assert (
        apopDigest("<1896.697170952@dbc.mtview.ca.us>", "tanstaaf")
        == "c4c9334bac560ecc979e58001b3e22fb"
    )
    assert (
        cramDigest("<1896.697170952@postoffice.reston.mci.net>", "tanstaaftanstaaf")
        == "b913a602c7eda7a495b4e6e7334d3890"
    )


@pytest.fixture
def provider(tmp_path: Path) -> AccountsProvider:
    path = tmp_path / "users"
    path.write_text("alice:{PLAIN}tanstaaf\nhashed:{SHA}" + b64encode(b"x" * 20).decode() + "\n")
    return AccountsProvider(MemoryStore([b"a: b\n\nc\n"]), [PasswordFile(str(path), Inline())])


def connect(provider: Any, policy: Policy = POLICY) -> tuple[Client, bytes]:
    """
    @return: a client and the greeting.
    """
    client = Client(POP3Factory(provider, policy, clock=Clock()))
    return client, client.received()


def stamp(greeting: bytes) -> bytes:
    found = re.fullmatch(rb"\+OK .* ready\. (<[0-9a-f]+@pop3svc>)\r\n", greeting)
    assert found is not None, greeting
    return found[1]


def apop(provider: Any, name: bytes, password: bytes) -> bytes:
    client, greeting = connect(provider)
    digest = md5(stamp(greeting) + password).hexdigest().encode()
    return client.say(b"APOP " + name + b" " + digest)


def cram(provider: Any, name: bytes, password: bytes) -> bytes:
    client, _ = connect(provider)
    challenge = b64decode(client.say(b"AUTH CRAM-MD5")[2:-2])
    digest = hmac.new(password, challenge, "md5").hexdigest().encode()
    return client.say(b64encode(name + b" " + digest))


@pytest.mark.parametrize("method", [apop, cram])
def test_loggedIn(provider: AccountsProvider, method: Any) -> None:
    assert method(provider, b"alice", b"tanstaaf") == b"+OK Logged in.\r\n"


@pytest.mark.parametrize("method", [apop, cram])
@pytest.mark.parametrize("name", [b"alice", b"hashed", b"nobody"])
def test_refused(provider: AccountsProvider, method: Any, name: bytes) -> None:
    """
    A wrong password, a user with a hash, and a user that does not exist get the same answer.
    """
    assert method(provider, name, b"wrong") == WRONG


def test_eachConnection(provider: AccountsProvider) -> None:
    """
    The digest of one connection is wrong on another connection.
    """
    client, greeting = connect(provider)
    other, _ = connect(provider)
    digest = md5(stamp(greeting) + b"tanstaaf").hexdigest().encode()
    assert other.say(b"APOP alice " + digest) == WRONG
    assert client.say(b"APOP alice " + digest).startswith(b"+OK")


@pytest.mark.parametrize(
    "line",
    [
        b"APOP",
        b"APOP alice",
        b"APOP alice 12",
        b"APOP alice " + b"A" * 32,
        b"APOP alice " + b"a" * 32 + b" x",
        b"APOP  " + b"a" * 32,
    ],
)
def test_malformed(provider: AccountsProvider, line: bytes) -> None:
    client, _ = connect(provider)
    assert client.say(line) == b"-ERR This command takes a user name and a digest.\r\n"


@pytest.mark.parametrize(
    "response",
    [b"", b"alice", b"alice ", b" " + b"a" * 32, b"ali\0ce " + b"a" * 32, b"alice " + b"A" * 32],
)
def test_malformedCram(provider: AccountsProvider, response: bytes) -> None:
    client, _ = connect(provider)
    client.say(b"AUTH CRAM-MD5")
    assert client.say(b64encode(response)).startswith(b"-ERR Response is not valid")


def test_noInitialResponse(provider: AccountsProvider) -> None:
    client, _ = connect(provider)
    assert client.say(b"AUTH CRAM-MD5 eA==") == b"-ERR CRAM-MD5 has no initial response.\r\n"


@pytest.mark.parametrize(
    "policy",
    [Policy(), Policy(enable=frozenset(["APOP"]), without=frozenset(["APOP"]))],
)
def test_off(provider: AccountsProvider, policy: Policy) -> None:
    """
    If APOP and CRAM-MD5 are off, the greeting has no timestamp, and the service refuses both.
    """
    client, greeting = connect(provider, policy)
    assert b"<" not in greeting
    assert client.say(b"APOP alice " + b"a" * 32) == b"-ERR Unknown command.\r\n"
    assert client.say(b"AUTH CRAM-MD5") == b"-ERR No such mechanism.\r\n"


def test_noSecrets() -> None:
    """
    APOP is not offered if the provider does not provide C{ISharedSecrets}.
    """
    client, greeting = connect(MemoryProvider({"alice": "secret"}, []))
    assert b"<" not in greeting
    assert client.say(b"APOP alice " + b"a" * 32) == b"-ERR Unknown command.\r\n"
