"""
UTF8 (RFC 6856): messages with UTF-8 in their header fields, in and out of UTF-8 mode.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import succeed
from twisted.internet.task import Clock
from zope.interface import implementer

from pop3svc.downgrading.converter import surrogateSize
from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import IChunkedContent
from pop3svc.policy import Policy
from pop3svc.providers.memory import MemoryProvider
from pop3svc.service.factory import POP3Factory
from pop3svc.testing import Client, StubProvider, conversation
from tests.support.conversations import ALICE, provider
from tests.support.messages import asSent

PLAIN = b"Subject: one\r\n\r\n\xc3\xbc\r\n"
MAIL = "Subject: Grüße\r\nX: y\r\n\r\nü\r\n.z\r\n".encode()
CONVERTED = "Subject: =?utf-8?B?R3LDvMOfZQ==?=\r\nX: y\r\n\r\nü\r\n.z\r\n".encode()
LATIN = b"Subject: gr\xfc\xdfe\r\n\r\nx\r\n"
MESSAGES = [PLAIN, MAIL, LATIN]
UTF8 = "S: +OK…\nC: UTF8\nS: +OK UTF-8 mode is active.\nC: USER alice\nS: +OK…\nC: PASS secret\nS: +OK…\n"
REFUSE = Policy(utf8Headers="refuse")


def fetched(client: Client, command: bytes) -> bytes:
    """
    @return: the body of the reply, without its dots.
    """
    first, _, body = client.say(command).partition(b"\r\n")
    assert first.startswith(b"+OK"), first
    assert body.endswith(b".\r\n")
    return (b"\r\n" + body[:-3]).replace(b"\r\n.", b"\r\n")[2:]


def sizes(client: Client) -> list[int]:
    return [int(line.split()[1]) for line in fetched(client, b"LIST").splitlines()]


def test_converted() -> None:
    """
    Without UTF8, UTF-8 in a header is converted to ASCII; the sizes are those of the surrogates.
    """
    client = conversation(provider(MESSAGES), ALICE)
    assert fetched(client, b"RETR 1") == PLAIN
    assert fetched(client, b"RETR 2") == CONVERTED
    assert fetched(client, b"RETR 3") == LATIN
    assert fetched(client, b"TOP 2 1") == CONVERTED[:-4]
    assert fetched(client, b"TOP 2 9") == CONVERTED
    assert sizes(client) == [len(PLAIN), len(CONVERTED), len(LATIN)]
    assert client.say(b"LIST 2") == b"+OK 2 %d\r\n" % len(CONVERTED)
    total = len(PLAIN) + len(CONVERTED) + len(LATIN)
    assert client.say(b"STAT") == b"+OK 3 %d\r\n" % total
    assert client.say(b"LIST UID:message-2") == b"+OK 2 %d\r\n" % len(CONVERTED)


def test_record() -> None:
    """
    The log counts a surrogate as a message.
    """
    client = conversation(provider(MESSAGES), ALICE)
    session = client.protocol.session
    fetched(client, b"RETR 2")
    assert session.record.messagesSent == 1
    assert session.record.messageOctets == len(CONVERTED)


def test_utf8Mode() -> None:
    """
    After UTF8 all messages go out as they are.
    """
    client = conversation(provider(MESSAGES), UTF8)
    assert [fetched(client, b"RETR %d" % number) for number in (1, 2, 3)] == MESSAGES
    assert sizes(client) == [len(each) for each in MESSAGES]
    assert client.say(b"LIST 2") == b"+OK 2 %d\r\n" % len(MAIL)


def test_switchedOff() -> None:
    """
    Without the extension nothing is announced or converted.
    """
    for headers in ("convert", "refuse"):
        policy = Policy(without=frozenset(["UTF8"]), utf8Headers=headers)
        client = conversation(provider(MESSAGES), ALICE, policy=policy)
        assert b"UTF8" not in client.say(b"CAPA")
        assert [fetched(client, b"RETR %d" % number) for number in (1, 2, 3)] == MESSAGES
        assert sizes(client) == [len(each) for each in MESSAGES]
        conversation(provider(), "S: +OK…\nC: UTF8\nS: -ERR Unknown command.", policy=policy)


def test_refused() -> None:
    """
    If C{utf8Headers} is C{refuse}, and the client has not sent UTF8, then RETR, TOP, and LIST with
    an argument refuse a message whose header fields need UTF-8 (RFC 6856 section 5).
    """
    script = """
        C: RETR 2
        S: -ERR [UTF8] Message needs UTF-8 mode.
        C: TOP 2 0
        S: -ERR [UTF8] Message needs UTF-8 mode.
        C: LIST 2
        S: -ERR [UTF8] Message needs UTF-8 mode.
        C: UIDL 2
        S: +OK 2 message-2
        """
    client = conversation(provider(MESSAGES), ALICE + script, policy=REFUSE)
    assert fetched(client, b"RETR 1") == PLAIN
    assert fetched(client, b"RETR 3") == LATIN
    assert client.say(b"LIST 3") == b"+OK 3 %d\r\n" % len(LATIN)
    # These replies have no form for a single message that is refused.
    assert sizes(client) == [len(each) for each in MESSAGES]
    assert client.say(b"STAT") == b"+OK 3 %d\r\n" % sum(map(len, MESSAGES))
    assert client.say(b"LIST 3") == b"+OK 3 %d\r\n" % len(LATIN)
    client = conversation(provider(MESSAGES), UTF8, policy=REFUSE)
    assert fetched(client, b"RETR 2") == MAIL


def test_refusedMessageCanBeDeleted() -> None:
    mail = provider(MESSAGES)
    conversation(
        mail, ALICE + "C: DELI 2\nS: +OK…\nC: DELE 1\nS: +OK…\nC: QUIT\nS: +OK…", policy=REFUSE
    )
    assert list(mail.store.maildrop("alice").messages) == ["message-3"]


def test_states() -> None:
    conversation(
        provider(),
        """
        S: +OK…
        C: UTF8 x
        S: -ERR This command takes no argument.
        C: UTF8
        S: +OK…
        C: UTF8
        S: +OK…
        C: STLS
        S: -ERR STLS is not allowed after UTF8.
        C: USER alice
        S: +OK…
        C: PASS secret
        S: +OK…
        C: UTF8
        S: -ERR Command is not valid in this state.
        """,
        connectionCreator=object(),
    )


def test_anotherUser() -> None:
    """
    UTF-8 mode survives QAUT.  A client may also send UTF8 between QAUT and the next login.
    """
    client = conversation(
        provider(MESSAGES), UTF8 + "C: QAUT\nS: +OK…\n" + ALICE[len("S: +OK…\n") :]
    )
    assert fetched(client, b"RETR 2") == MAIL
    client = conversation(
        provider(MESSAGES), ALICE + "C: QAUT\nS: +OK…\n" + UTF8[len("S: +OK…\n") :]
    )
    assert fetched(client, b"RETR 2") == MAIL


@pytest.mark.parametrize(
    "login",
    [
        "C: USER jürgen\nS: +OK…\nC: PASS größe\nS: +OK…\n",
        "C: XLOG jürgen größe\nS: +OK…\n",
        "C: AUTH PLAIN AGrDvHJnZW4AZ3LDtsOfZQ==\nS: +OK…\n",
        "C: AUTH LOGIN\nS: +…\nC: asO8cmdlbg==\nS: +…\nC: Z3LDtsOfZQ==\nS: +OK…\n",
    ],
)
def test_names(login: str) -> None:
    """
    Names and passwords may be UTF-8, before and after UTF8 (RFC 6856 section 2.2).
    """
    mail = MemoryProvider({"jürgen": "größe"}, MESSAGES)
    for script in ("S: +OK…\n", "S: +OK…\nC: UTF8\nS: +OK…\n"):
        client = conversation(mail, script + login)
        assert client.say(b"STAT").startswith(b"+OK 3 ")
        assert client.say(b"QUIT").startswith(b"+OK")


# --- mailboxes ------------------------------------------------------------------------


def opened(policy: Policy | None = None, **methods: Any) -> Client:
    return conversation(StubProvider(MESSAGES, **methods), ALICE, policy=policy)


def test_mailboxWithoutSurrogates() -> None:
    """
    If a mailbox does not provide surrogates, its sizes are used and its messages go out as they
    are.
    """
    given = {"messageSize": lambda info, uniqueID: len(MESSAGES[int(uniqueID[-1]) - 1])}
    client = opened(**given)
    assert sizes(client) == [len(each) for each in MESSAGES]
    assert fetched(client, b"RETR 2") == MAIL
    client = opened(REFUSE, **given)
    assert client.say(b"RETR 2").startswith(b"-ERR [UTF8]")
    assert fetched(client, b"RETR 3") == LATIN


def test_mailboxThatCounts() -> None:
    """
    If the mailbox can, it tells the sizes of surrogates and whether a message needs UTF-8.
    """
    asked: list[Any] = []

    def surrogateSizes(info: Any, uniqueIDs: list[str]) -> Any:
        asked.append(list(uniqueIDs))
        return [surrogateSize([m]) or len(asSent(m)) for m in MESSAGES[: len(uniqueIDs)]]

    def needsUTF8(info: Any, uniqueID: str) -> bool:
        asked.append(uniqueID)
        return uniqueID == "message-2"

    client = opened(surrogateSizes=surrogateSizes, needsUTF8=needsUTF8)
    assert sizes(client) == [len(PLAIN), len(CONVERTED), len(LATIN)]
    assert fetched(client, b"RETR 2") == CONVERTED
    assert fetched(client, b"RETR 3") == LATIN
    assert asked == [["message-1", "message-2", "message-3"], "message-2", "message-3"]
    client = opened(surrogateSizes=surrogateSizes, needsUTF8=needsUTF8)
    assert client.say(b"LIST 1") == b"+OK 1 %d\r\n" % len(PLAIN)
    asked.clear()
    client = opened(REFUSE, surrogateSizes=surrogateSizes, needsUTF8=needsUTF8)
    assert client.say(b"RETR 2").startswith(b"-ERR [UTF8]")
    assert asked == [["message-2"], "message-2"]


def test_messageThatIsGone() -> None:
    """
    The error of a message that no longer exists comes from messageContent.
    """
    gone = POP3ResponseError("Message no longer exists.")
    client = opened(surrogateSizes=lambda info, asked: [None] * len(asked), messageContent=gone)
    assert client.say(b"LIST 1") == b"-ERR Message no longer exists.\r\n"
    assert sizes(client) == [0, 0, 0]


def test_wrongSurrogateSize() -> None:
    """
    If surrogateSizes returns a wrong size, the client still gets the whole message.
    """
    client = opened(surrogateSizes=lambda info, asked: [1] * len(asked))
    assert sizes(client) == [1, 1, 1]
    assert fetched(client, b"RETR 2") == CONVERTED


@implementer(IChunkedContent)
class Later:
    """
    A message that comes in Deferreds.
    """

    closed = 0

    def __init__(self, message: bytes) -> None:
        self._pieces = [message[at : at + 3] for at in range(0, len(message), 3)]

    def nextChunk(self) -> Any:
        return succeed(self._pieces.pop(0) if self._pieces else None)

    def close(self) -> None:
        Later.closed += 1


@pytest.mark.parametrize("number", [1, 2, 3])
def test_contentThatComesLater(number: int) -> None:
    def content(info: Any, uniqueID: str) -> Later:
        return Later(MESSAGES[int(uniqueID[-1]) - 1])

    Later.closed = 0
    client = opened(messageContent=content, surrogateSizes=NotImplementedError())
    assert fetched(client, b"RETR %d" % number) == [PLAIN, CONVERTED, LATIN][number - 1]
    assert client.say(b"LIST 2") == b"+OK 2 %d\r\n" % len(CONVERTED)
    client = opened(
        REFUSE, messageContent=content, surrogateSizes=NotImplementedError(), needsUTF8=None
    )
    assert client.say(b"TOP %d 0" % number).startswith(b"-ERR [UTF8]" if number == 2 else b"+OK")
    assert Later.closed == (3 if number == 2 else 4)


@settings(deadline=None)
@given(st.lists(st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")), max_size=4))
def test_anyMessages(messages: list[bytes]) -> None:
    """
    LIST gives the sizes that RETR sends, in both modes; TOP agrees with RETR.
    """
    messages = [b"Subject: " + each for each in messages]
    for utf8 in (False, True):
        factory = POP3Factory(MemoryProvider({"alice": "secret"}, messages), clock=Clock())
        client = Client(factory)
        for command in (*([b"UTF8"] if utf8 else []), b"USER alice", b"PASS secret"):
            client.say(command)
        told = sizes(client)
        for number, (message, size) in enumerate(zip(messages, told, strict=True), 1):
            sent = fetched(client, b"RETR %d" % number)
            assert len(sent) == size
            if utf8:
                assert sent == asSent(message)
            assert fetched(client, b"TOP %d 99" % number) == sent
            assert sent.startswith(fetched(client, b"TOP %d 0" % number))
