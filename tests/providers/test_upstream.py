"""
Mailboxes of another server: the contract, and servers that break the rules.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import TestCase

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from pop3svc.client.address import Address
from pop3svc.client.decoding import BodyDecoder
from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import IPOP3MailboxProvider
from pop3svc.listings import isUniqueID
from pop3svc.protocol.session import ConnectionInfo
from pop3svc.providers.memory import MemoryMailbox, MemoryProvider
from pop3svc.providers.upstream import UpstreamProvider, client
from pop3svc.providers.upstream import imap as imapclient
from pop3svc.providers.upstream.imap import uidSets
from pop3svc.service.factory import POP3Factory
from pop3svc.service.plugins import makeUpstream
from pop3svc.testing import Client, MailboxContract
from pop3svc.testing.certificates import Authority
from tests.support.messages import NASTY, asSent, stuffed
from tests.support.upstreams import Network, Scripted, result

INFO = ConnectionInfo(1, "127.0.0.1", True)
POP3 = "pop3://mail.example.test"
IMAP = "imap://mail.example.test"


class _Loose(MemoryMailbox):
    """
    A mailbox that several sessions may use.
    """

    def lock(self, info: Any, requestRelease: Callable[[], bool]) -> None:
        pass


class _LooseProvider(MemoryProvider):
    def authenticate(self, info: Any, username: str, password: str) -> MemoryMailbox | None:
        mailbox = super().authenticate(info, username, password)
        return None if mailbox is None else _Loose(self.store.maildrop(username))


class _IMAPServer:
    """
    A small IMAP server in memory.
    """

    capabilities = b"IMAP4rev1 AUTH=PLAIN UIDPLUS"

    def __init__(self, messages: list[bytes]) -> None:
        self.uids = itertools.count(5)
        self.messages: dict[int, bytes] = {}
        self.marked: set[int] = set()
        self.refused: set[bytes] = set()
        self.commands: list[bytes] = []
        for each in messages:
            self.add(each)

    def add(self, message: bytes) -> int:
        uid = next(self.uids)
        self.messages[uid] = asSent(message)
        return uid

    def protocol(self) -> Scripted:
        return Scripted(b"* OK ready\r\n", self.answer)

    def answer(self, protocol: Any, line: bytes) -> bytes | None:
        if not re.match(rb"[0-9A-F]{4,} ", line):
            # The response to a continuation.
            tag = protocol.tag
            return self._loggedIn(tag, line)
        tag, _, rest = line.partition(b" ")
        protocol.tag = tag
        name = b" ".join(rest.split(b" ")[: 2 if rest.startswith(b"UID ") else 1])
        self.commands.append(rest)
        if name in self.refused:
            return tag + b" NO refused\r\n"
        method = getattr(self, "do_" + name.decode().replace(" ", "_"))
        found: bytes = method(tag, rest)
        return found

    def _loggedIn(self, tag: bytes, line: bytes) -> bytes:
        import base64

        if base64.b64decode(line) == b"\0alice\0secret":
            return tag + b" OK logged in\r\n"
        return tag + b" NO [AUTHENTICATIONFAILED] wrong\r\n"

    def do_CAPABILITY(self, tag: bytes, rest: bytes) -> bytes:
        return (
            b"* CAPABILITY "
            + self.capabilities
            + b"\r\n"
            + tag
            + b" OK\r\n".replace(b"OK", b"OK x")
        )

    def do_AUTHENTICATE(self, tag: bytes, rest: bytes) -> bytes:
        return b"+ \r\n"

    def do_SELECT(self, tag: bytes, rest: bytes) -> bytes:
        return b"* 1 EXISTS\r\n* OK [UIDVALIDITY 77] ok\r\n" + tag + b" OK [READ-WRITE] x\r\n"

    def do_NOOP(self, tag: bytes, rest: bytes) -> bytes:
        return tag + b" OK x\r\n"

    do_LOGOUT = do_NOOP

    def do_UID_FETCH(self, tag: bytes, rest: bytes) -> bytes:
        if rest.startswith(b"UID FETCH 1:*"):
            lines = [
                b"* %d FETCH (UID %d RFC822.SIZE %d)\r\n" % (number, uid, len(message))
                for number, (uid, message) in enumerate(self.messages.items(), 1)
            ]
            return b"".join(lines) + tag + b" OK x\r\n"
        found = re.fullmatch(rb"UID FETCH (\d+) \(UID BODY.PEEK\[\]<(\d+).(\d+)>\)", rest)
        assert found is not None, rest
        uid, offset, length = map(int, found.groups())
        if uid not in self.messages:
            return tag + b" OK x\r\n"
        piece = self.messages[uid][offset : offset + length]
        head = b"* 1 FETCH (UID %d BODY[]<%d> {%d}\r\n" % (uid, offset, len(piece))
        return head + piece + b")\r\n" + tag + b" OK x\r\n"

    def _set(self, text: bytes) -> set[int]:
        found: set[int] = set()
        for part in text.split(b","):
            first, _, last = part.partition(b":")
            found |= set(range(int(first), int(last or first) + 1))
        return found & self.messages.keys()

    def do_UID_STORE(self, tag: bytes, rest: bytes) -> bytes:
        _, _, uids, how, flags = rest.split(b" ")
        assert flags == b"(\\Deleted)"
        change = self.marked.update if how == b"+FLAGS.SILENT" else self.marked.difference_update
        change(self._set(uids))
        return tag + b" OK x\r\n"

    def do_UID_SEARCH(self, tag: bytes, rest: bytes) -> bytes:
        return (
            b"* SEARCH "
            + b" ".join(b"%d" % each for each in self.marked)
            + b"\r\n"
            + tag
            + b" OK x\r\n"
        )

    def do_UID_EXPUNGE(self, tag: bytes, rest: bytes) -> bytes:
        for uid in self._set(rest.split(b" ")[2]) & self.marked:
            del self.messages[uid]
        self.marked &= self.messages.keys()
        return tag + b" OK x\r\n"

    def do_EXPUNGE(self, tag: bytes, rest: bytes) -> bytes:
        for uid in self.marked:
            del self.messages[uid]
        self.marked.clear()
        return tag + b" OK x\r\n"


class Contract(MailboxContract, TestCase):
    """
    Mailboxes of another server.  The other server also runs this service.
    """

    most = 1 << 20

    def makeMailbox(self, messages: list[bytes]) -> Any:
        self.upstream = _LooseProvider({"alice": "secret"}, messages)
        factory = POP3Factory(self.upstream, clock=Clock())
        self.network = Network(lambda: factory.buildProtocol(None), self.most)
        return self.again()

    def again(self) -> Any:
        return self.network.mailbox(POP3, isInsecure=True)

    def deliver(self, message: bytes) -> str | None:
        return self.upstream.store.maildrop("alice").add(message)

    def goOn(self) -> None:
        self.network.pump()


class ContractSmallPackets(Contract):
    most = 997


class ContractIMAP(MailboxContract, TestCase):
    def makeMailbox(self, messages: list[bytes]) -> Any:
        self.server = _IMAPServer(messages)
        self.network = Network(self.server.protocol)
        return self.again()

    def again(self) -> Any:
        return self.network.mailbox(IMAP, isInsecure=True)

    def deliver(self, message: bytes) -> str:
        return f"77.{self.server.add(message)}"

    def failDeletion(self) -> None:
        self.server.refused |= {b"UID STORE", b"UID EXPUNGE"}

    def goOn(self) -> None:
        self.network.pump()


class ContractIMAPPieces(ContractIMAP):
    def setUp(self) -> None:
        before = imapclient._PIECE
        imapclient._PIECE = 1000
        self.addCleanup(setattr, imapclient, "_PIECE", before)


# --- logins -----------------------------------------------------------------------


def pop3(replies: dict[bytes, bytes | None], greeting: bytes = b"+OK hello\r\n") -> Network:
    """
    @param replies: replies by verb, in place of those of a good server.
    """
    good: dict[bytes, bytes | None] = {
        b"CAPA": b"-ERR\r\n",
        b"USER": b"+OK\r\n",
        b"PASS": b"+OK\r\n",
        b"LIST": b"+OK\r\n1 10\r\n2 20\r\n.\r\n",
        b"UIDL": b"+OK\r\n1 a\r\n2 b\r\n.\r\n",
        b"RETR": b"+OK\r\nx\r\n.\r\n",
        b"DELE": b"+OK\r\n",
        b"QUIT": b"+OK\r\n",
    }

    def answer(_: Any, line: bytes) -> bytes | None:
        return (good | replies)[line.split(b" ")[0]]

    return Network(lambda: Scripted(greeting, answer))


def lines(network: Network) -> list[list[bytes]]:
    """
    @return: the lines that each connection has sent.
    """
    return [client.other.protocol.lines for client in network.clients]


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (b"-ERR wrong", None),
        (b"-ERR [AUTH] wrong", None),
        (b"-ERR [IN-USE] locked", "IN-USE"),
        (b"-ERR [in-use] locked", "IN-USE"),
        (b"-ERR [LOGIN-DELAY] wait", "LOGIN-DELAY"),
        (b"-ERR [SYS/TEMP] later", "SYS/TEMP"),
        (b"-ERR [SYS/PERM] never", "SYS/PERM"),
        (b"-ERR [XYZ\x00] odd", None),
    ],
)
def test_refusedLogin(reply: bytes, code: str | None) -> None:
    """
    A refused login counts as a wrong password, unless the response code gives another reason.
    """
    for verb in (b"USER", b"PASS"):
        network = pop3({verb: reply + b"\r\n"})
        if code is None:
            assert network.mailbox(POP3, isInsecure=True) is None
        else:
            with pytest.raises(POP3ResponseError) as caught:
                network.mailbox(POP3, isInsecure=True)
            assert caught.value.code == code
        network.pump()
        assert not network.clients[0].isOpen


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (b"NO wrong", None),
        (b"NO [AUTHENTICATIONFAILED] wrong", None),
        (b"NO [UNAVAILABLE] later", "SYS/TEMP"),
        (b"NO [INUSE] later", "IN-USE"),
        (b"NO [EXPIRED] never", "SYS/PERM"),
        (b"BAD what", None),
    ],
)
def test_refusedIMAPLogin(reply: bytes, code: str | None) -> None:
    """
    The response codes of IMAP become response codes of POP3.
    """
    server = _IMAPServer([])
    server._loggedIn = lambda tag, line: tag + b" " + reply + b"\r\n"  # type: ignore[method-assign]
    network = Network(server.protocol)
    if code is None:
        assert network.mailbox(IMAP, isInsecure=True) is None
    else:
        with pytest.raises(POP3ResponseError) as caught:
            network.mailbox(IMAP, isInsecure=True)
        assert caught.value.code == code


@pytest.mark.parametrize("name", ["a\r\nDELE 1", "a\nb", "a\0b", ""])
def test_injectedNames(name: str) -> None:
    """
    A name or a password that is empty or contains a line end or NUL is wrong, and is not sent.
    """
    network = pop3({})
    provider = network.provider(POP3, isInsecure=True)
    verifyObject(IPOP3MailboxProvider, provider)
    assert result(network, provider.authenticate(INFO, name, "secret")) is None
    assert result(network, provider.authenticate(INFO, "alice", name)) is None
    assert not network.clients


def test_octetsOfPasswords() -> None:
    """
    Octets that are no UTF-8 are passed on as they came, also in literals of IMAP.
    """
    network = pop3({})
    password = b"s \xff\xe9}".decode("utf-8", "surrogateescape")
    provider = network.provider(POP3, isInsecure=True)
    assert result(network, provider.authenticate(INFO, "al ice", password)) is not None
    assert lines(network)[0][:2] == [b"USER al ice", b"PASS s \xff\xe9}"]

    def answer(protocol: Any, line: bytes) -> bytes:
        if line.endswith(b"CAPABILITY"):
            return b"* CAPABILITY IMAP4rev1\r\n" + line[:4] + b" OK x\r\n"
        if line.endswith(b"}") and not line.startswith(b"s "):
            return b"+ \r\n"
        if line.startswith(b"s "):
            return b"0002 OK x\r\n"
        return line[:4] + b" NO x\r\n"

    network = Network(lambda: Scripted(b"* OK\r\n".replace(b"OK", b"OK x"), answer))
    provider = network.provider(IMAP, isInsecure=True)
    with pytest.raises(POP3ResponseError):
        result(network, provider.authenticate(INFO, "al ice", password))
    assert lines(network)[0][1:4] == [b"0002 LOGIN {6}", b"al ice {5}", b"s \xff\xe9}"]


# --- TLS ----------------------------------------------------------------------------


def test_TLSIsNeeded() -> None:
    """
    Without TLS no password is sent.
    """
    network = pop3({})
    with pytest.raises(POP3ResponseError, match="not available"):
        network.mailbox(POP3)
    assert lines(network) == [[b"CAPA"]]
    server = _IMAPServer([])
    network = Network(server.protocol)
    with pytest.raises(POP3ResponseError, match="not available"):
        network.mailbox(IMAP)
    assert server.commands == [b"CAPABILITY"]


def test_STLS() -> None:
    """
    STLS comes before the password; plain text that follows its reply ends the connection.
    """
    network = pop3({b"CAPA": b"+OK\r\nSTLS\r\n.\r\n", b"STLS": b"+OK begin\r\n"})
    assert network.mailbox(POP3) is not None
    assert network.clients[0].usesTLS
    assert lines(network)[0] == [b"CAPA", b"STLS", b"USER alice", b"PASS secret"]
    network = pop3({b"CAPA": b"+OK\r\nSTLS\r\n.\r\n", b"STLS": b"+OK begin\r\n+OK injected\r\n"})
    with pytest.raises(POP3ResponseError):
        network.mailbox(POP3)
    assert not network.clients[0].usesTLS
    assert lines(network)[0] == [b"CAPA", b"STLS"]


def test_STARTTLS() -> None:
    """
    STARTTLS comes before the password; plain text that follows its reply ends the connection.
    """
    server = _IMAPServer([])
    server.capabilities += b" STARTTLS"
    injected = b""
    server.do_STARTTLS = lambda tag, rest: tag + b" OK x\r\n" + injected  # type: ignore[attr-defined]
    network = Network(server.protocol)
    assert network.mailbox(IMAP) is not None
    assert network.clients[0].usesTLS
    assert server.commands[:4] == [b"CAPABILITY", b"STARTTLS", b"CAPABILITY", b"AUTHENTICATE PLAIN"]
    injected = b"* CAPABILITY AUTH=PLAIN\r\n"
    server.commands.clear()
    with pytest.raises(POP3ResponseError):
        network.mailbox(IMAP)
    assert server.commands == [b"CAPABILITY", b"STARTTLS"]


# --- servers that break the rules ---------------------------------------------------


def login(network: Network, address: str = POP3) -> Any:
    mailbox = network.mailbox(address, isInsecure=True)
    assert mailbox is not None
    return mailbox


@pytest.mark.parametrize(
    "replies",
    [
        {b"LIST": b"+OK\r\n" + b"x" * 10_000},
        {b"LIST": b"+OK\r\n" + b"1 10" * 2000 + b"\r\n.\r\n"},
        {b"LIST": b"+OK\r\n1 x\r\n.\r\n"},
        {b"LIST": b"+OK\r\n1\r\n.\r\n"},
        {b"LIST": b"+OK\r\n1 -5\r\n.\r\n"},
        {b"LIST": b"-ERR\r\n"},
        {b"UIDL": b"-ERR\r\n"},
        {b"UIDL": b"+OK\r\n1 a\r\n.\r\n"},
        {b"UIDL": b"+OK\r\n1 a b\r\n2 \x07\r\n.\r\n"},
        {b"LIST": None},
        {b"LIST": b"nonsense\r\n"},
        {b"PASS": b"+OK\r\n+OK injected\r\n"},
        {b"LIST": b"+OK\r\n" + b"".join(b"%d 1\r\n" % each for each in range(1, 300)) + b".\r\n"},
    ],
)
def test_badListing(replies: dict[bytes, bytes | None], monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A listing that is refused, malformed or too long is answered [SYS/TEMP].  Unless it is refused,
    it ends the connection.
    """
    monkeypatch.setattr("pop3svc.client.protocol.MOST_MESSAGES", 250)
    network = pop3(replies)
    with pytest.raises(POP3ResponseError) as caught:
        result(network, login(network).listMessageUniqueIDs(INFO))
    assert caught.value.code == "SYS/TEMP"
    network.pump()
    refused = {b"-ERR\r\n", b"nonsense\r\n"} & set(replies.values())
    assert not network.clients[0].isOpen or refused


@pytest.mark.parametrize("verb", [b"greeting", b"PASS", b"LIST", b"RETR", b"rest"])
def test_silence(verb: bytes) -> None:
    """
    A server that stops answering is given up after a bounded time.
    """
    replies: dict[bytes, bytes | None] = {verb: b""}
    if verb == b"rest":
        replies = {b"RETR": b"+OK\r\nbegin\r\n"}
    network = pop3(replies, b"" if verb == b"greeting" else b"+OK\r\n")
    provider = network.provider(POP3, isInsecure=True)

    async def session() -> None:
        mailbox: Any = await provider.authenticate(INFO, "alice", "secret")
        names = list(await mailbox.listMessageUniqueIDs(INFO))
        content = await mailbox.messageContent(INFO, names[0])
        while await content.nextChunk() is not None:
            pass

    with pytest.raises(POP3ResponseError) as caught:
        result(network, session(), client.REPLY_TIMEOUT + 1)
    assert caught.value.code == "SYS/TEMP"
    assert network.clients[0].wasAborted


def test_cutMessage() -> None:
    """
    If the other server closes the connection during a message, the client gets no final dot.
    """
    message = b"a: b\r\n\r\n" + b"x" * 70 + b"\r\n"
    for length in range(len(message) + 1):
        cut = message[:length]

        def answer(protocol: Any, line: bytes, cut: bytes = cut) -> bytes:
            if line.startswith(b"RETR"):
                protocol.transport.write(b"+OK\r\n" + cut)
                protocol.transport.loseConnection()
                return b""
            return {b"LIST": b"+OK\r\n1 80\r\n.\r\n", b"UIDL": b"+OK\r\n1 a\r\n.\r\n"}.get(
                line, b"+OK\r\n"
            )

        network = Network(lambda answer=answer: Scripted(b"+OK\r\n", answer))  # type: ignore[misc]
        provider = network.provider(POP3, isInsecure=True)
        client = Client(POP3Factory(provider, clock=Clock()))
        client.send(b"USER alice\r\nPASS secret\r\n")
        network.pump()
        client.received()
        client.send(b"RETR 1\r\n")
        network.pump()
        assert not client.received().endswith(b"\r\n.\r\n")
        assert not client.isOpen


def test_endlessMessage() -> None:
    """
    Only a bounded part of a message is read before the client takes it.  If the client does not
    need the rest of a long message, the rest is not read.
    """
    piece = b"x" * 998 + b"\r\n"
    network = pop3(
        {b"RETR": b"+OK\r\n" + piece * 3000, b"LIST": b"+OK\r\n1 9000000\r\n2 20\r\n.\r\n"}
    )
    network._most = 65536
    mailbox = login(network)
    names = list(result(network, mailbox.listMessageUniqueIDs(INFO)))
    content = result(network, mailbox.messageContent(INFO, names[0]))
    end = network.clients[0]
    assert end.isPaused
    assert len(end.waiting) > 2_000_000
    for _ in range(10):
        result(network, content.nextChunk())
    assert len(end.waiting) < 2_700_000 and end.isPaused
    content.close()
    assert end.wasAborted
    assert result(network, mailbox.messageSize(INFO, names[1])) == 20
    assert len(network.clients) == 2


def test_restOfAMessage() -> None:
    """
    If the client does not take the rest of a message, the connection is used again if the rest is
    short, and closed if it does not end.
    """
    network = pop3({})
    mailbox = login(network)
    names = list(result(network, mailbox.listMessageUniqueIDs(INFO)))
    content = result(network, mailbox.messageContent(INFO, names[0]))
    content.close()
    content = result(network, mailbox.messageContent(INFO, names[1]))
    assert result(network, content.nextChunk()) == b"x\r\n"
    assert result(network, content.nextChunk()) is None
    assert len(network.clients) == 1
    network = pop3({b"RETR": b"+OK\r\n" + b"x" * 3_000_000})
    network._most = 65536
    mailbox = login(network)
    names = list(result(network, mailbox.listMessageUniqueIDs(INFO)))
    result(network, mailbox.messageContent(INFO, names[0])).close()
    network.pump()
    assert network.clients[0].wasAborted


@given(
    st.lists(st.one_of(NASTY, st.sampled_from([b"\r\n.", b".\r\n", b"."])), max_size=8),
    st.integers(1, 9),
)
def test_decoder(parts: list[bytes], size: int) -> None:
    """
    Dot-stuffing is removed, and the end is found, wherever the pieces are cut.
    """
    message = asSent(b"".join(parts))
    sent = stuffed(message) + b".\r\n+OK next"
    decoder = BodyDecoder()
    found = b""
    for at in range(0, len(sent), size):
        assert decoder.rest is None or at > len(sent) - 12
        if decoder.rest is None:
            found += decoder.feed(sent[at : at + size])
    assert found == message
    assert decoder.rest is not None and b"+OK next".startswith(decoder.rest)


def test_wrongSizes() -> None:
    """
    If the server reports a wrong size, the size is right after the message was read.  With
    sizes=counted it is never wrong.
    """
    network = pop3({})
    mailbox = login(network)
    names = list(result(network, mailbox.listMessageUniqueIDs(INFO)))
    assert result(network, mailbox.messageSizes(INFO, names)) == [10, 20]
    content = result(network, mailbox.messageContent(INFO, names[0]))
    while result(network, content.nextChunk()) is not None:
        pass
    assert result(network, mailbox.messageSizes(INFO, names)) == [3, 20]
    provider = pop3({}).provider(POP3, isInsecure=True, believesSizes=False)
    client = Client(POP3Factory(provider, clock=Clock()))
    network = provider._endpoint
    client.send(b"USER alice\r\nPASS secret\r\n")
    network.pump()
    client.received()
    client.send(b"LIST\r\n")
    for _ in range(10):
        network.pump()
    assert client.received().endswith(b"1 3\r\n2 3\r\n.\r\n")


def test_uniqueIDs() -> None:
    """
    Unique-ids that are malformed or occur twice are replaced by unique-ids that stay the same.
    """
    long = b"x" * 100
    network = pop3(
        {
            b"UIDL": b"+OK\r\n1 a\r\n2 a\r\n3 " + long + b"\r\n4 _\r\n5 a trailing\r\n.\r\n",
            b"LIST": b"+OK\r\n" + b"".join(b"%d 1\r\n" % each for each in range(1, 6)) + b".\r\n",
        }
    )
    first = list(result(network, login(network).listMessageUniqueIDs(INFO)))
    assert first[0] == "a" and len(set(first)) == 5 and all(map(isUniqueID, first))
    assert list(result(network, login(network).listMessageUniqueIDs(INFO))) == first


# --- deletion -------------------------------------------------------------------------


def test_deletedAtQUIT() -> None:
    """
    POP3 deletes at QUIT; a further listing uses a new connection.
    """
    network = pop3({})
    mailbox = login(network)
    names = list(result(network, mailbox.listMessageUniqueIDs(INFO)))
    result(network, mailbox.messageDelete(INFO, names))
    assert lines(network)[0][-3:] == [b"DELE 1", b"DELE 2", b"QUIT"]
    result(network, mailbox.listMessageUniqueIDs(INFO))
    mailbox.logout()
    network.pump()
    assert len(network.clients) == 2
    assert not any(each.isOpen for each in network.clients)
    assert lines(network)[1][-1] == b"QUIT"


def test_refusedDELE() -> None:
    """
    If the server refuses to delete one message, none is deleted: there is no QUIT.
    """
    network = pop3({b"DELE": b"-ERR no\r\n"})
    mailbox = login(network)
    names = list(result(network, mailbox.listMessageUniqueIDs(INFO)))
    with pytest.raises(POP3ResponseError, match="not deleted"):
        result(network, mailbox.messageDelete(INFO, names))
    assert not any(b"QUIT" in each for each in lines(network))


@pytest.mark.parametrize("reply", [b"-ERR some\r\n", None])
@pytest.mark.parametrize("isDone", [True, False])
def test_unsureQUIT(reply: bytes | None, isDone: bool) -> None:
    """
    If the reply to QUIT does not confirm the deletion, the messages are listed again.
    """
    quits = 0

    def answer(_: Any, line: bytes) -> bytes | None:
        nonlocal quits
        if line == b"QUIT":
            quits += 1
            return reply
        isGone = quits and isDone
        return {
            b"LIST": b"+OK\r\n.\r\n" if isGone else b"+OK\r\n1 5\r\n.\r\n",
            b"UIDL": b"+OK\r\n.\r\n" if isGone else b"+OK\r\n1 a\r\n.\r\n",
        }.get(line, b"+OK\r\n")

    network = Network(lambda: Scripted(b"+OK\r\n", answer))
    mailbox = login(network)
    result(network, mailbox.listMessageUniqueIDs(INFO))
    if isDone:
        result(network, mailbox.messageDelete(INFO, ["a"]))
    else:
        with pytest.raises(POP3ResponseError):
            result(network, mailbox.messageDelete(INFO, ["a"]))


@pytest.mark.parametrize("hasUIDPlus", [True, False])
def test_marksOfOthers(hasUIDPlus: bool) -> None:
    """
    Messages that another client has marked are not deleted, and stay marked.
    """
    server = _IMAPServer([b"1", b"2", b"3"])
    if not hasUIDPlus:
        server.capabilities = b"IMAP4rev1 AUTH=PLAIN"
    server.marked = {6}
    network = Network(server.protocol)
    mailbox = login(network, IMAP)
    result(network, mailbox.listMessageUniqueIDs(INFO))
    result(network, mailbox.messageDelete(INFO, ["77.5", "77.7"]))
    assert list(server.messages) == [6]
    assert server.marked == {6}


@pytest.mark.parametrize("verb", [b"UID STORE", b"UID EXPUNGE", b"EXPUNGE", b"UID SEARCH"])
def test_refusedExpunge(verb: bytes) -> None:
    """
    If the server refuses a deletion, the marks are removed again.
    """
    server = _IMAPServer([b"1", b"2", b"3"])
    if verb in (b"EXPUNGE", b"UID SEARCH"):
        server.capabilities = b"IMAP4rev1 AUTH=PLAIN"
    server.marked = {6}
    server.refused = {verb}
    network = Network(server.protocol)
    mailbox = login(network, IMAP)
    result(network, mailbox.listMessageUniqueIDs(INFO))
    with pytest.raises(POP3ResponseError):
        result(network, mailbox.messageDelete(INFO, ["77.5", "77.7"]))
    assert list(server.messages) == [5, 6, 7]
    assert server.marked == {6}


def test_cutExpunge() -> None:
    """
    If the connection is lost at EXPUNGE, the marks are removed over another connection.
    """
    server = _IMAPServer([b"1", b"2"])
    server.do_UID_EXPUNGE = lambda tag, rest: None  # type: ignore[method-assign,assignment,return-value]
    network = Network(server.protocol)
    mailbox = login(network, IMAP)
    result(network, mailbox.listMessageUniqueIDs(INFO))
    with pytest.raises(POP3ResponseError):
        result(network, mailbox.messageDelete(INFO, ["77.5", "77.6"]))
    assert list(server.messages) == [5, 6]
    assert server.marked == set()
    assert len(network.clients) == 2


@pytest.mark.parametrize("hasUIDPlus", [True, False])
def test_manyDeletions(hasUIDPlus: bool) -> None:
    """
    The server reports each of many deleted messages.
    """
    server = _IMAPServer([b"m"] * 2500)
    if not hasUIDPlus:
        server.capabilities = b"IMAP4rev1 AUTH=PLAIN"
    for verb in ("UID_EXPUNGE", "EXPUNGE"):
        plain = getattr(server, f"do_{verb}")

        def expunge(tag: bytes, rest: bytes, plain: Any = plain) -> bytes:
            before = len(server.messages)
            reply: bytes = plain(tag, rest)
            return b"* 1 EXPUNGE\r\n" * (before - len(server.messages)) + reply

        setattr(server, f"do_{verb}", expunge)
    network = Network(server.protocol)
    mailbox = login(network, IMAP)
    uniqueIDs = list(result(network, mailbox.listMessageUniqueIDs(INFO)))
    result(network, mailbox.messageDelete(INFO, uniqueIDs))
    assert not server.messages and len(network.clients) == 1


@pytest.mark.parametrize("most", [0, 1000])
def test_shortPieces(most: int) -> None:
    """
    A server may send fewer octets than it was asked for.  If it sends none of a message, the client
    does not get an empty message.
    """
    server = _IMAPServer([b"x" * 3500])
    plain = server.do_UID_FETCH

    def short(tag: bytes, rest: bytes) -> bytes:
        return plain(tag, re.sub(rb"\.\d+>", b".%d>" % most, rest))

    server.do_UID_FETCH = short  # type: ignore[method-assign]
    network = Network(server.protocol)
    mailbox = login(network, IMAP)
    [uniqueID] = result(network, mailbox.listMessageUniqueIDs(INFO))

    async def read() -> bytes:
        content = await mailbox.messageContent(INFO, uniqueID)
        octets = b""
        while (piece := await content.nextChunk()) is not None:
            octets += piece
        return octets

    if most:
        assert result(network, read()) == server.messages[5]
    else:
        with pytest.raises(POP3ResponseError):
            result(network, read())


def test_uidSets() -> None:
    """
    Sets of messages are short, and name each message once.
    """
    assert list(uidSets([1, 2, 3, 5, 7, 8])) == [b"1:3,5,7:8"]
    assert list(uidSets([])) == []
    many = list(range(1, 100_000, 2))
    sets = list(uidSets(many))
    assert max(map(len, sets)) < 4100
    assert [int(each) for some in sets for each in some.split(b",")] == many


# --- IMAP servers that break the rules --------------------------------------------------


@pytest.mark.parametrize(
    "reply",
    [
        b"* 1 FETCH (UID 5 BODY[] {999999999}\r\n",
        b"* 1 FETCH (UID 5 BODY[] {-1}\r\n",
        b"* 1 FETCH (UID 5 BODY[] {x}\r\n",
        b"* 1 FETCH (UID 5 BODY[]<0> {131073}\r\n" + b"x" * 131073 + b")\r\n",
        b"x" * 100_000,
        b"* OK flood\r\n" * 5000,
        b"* OK " + b"x" * 60_000 + b"\r\n" + (b"* OK " + b"x" * 60_000 + b"\r\n") * 30,
        b"FFFF OK another tag\r\n",
        b"+ more\r\n",
        b"\r\n",
        b"* 1 FETCH (UID 5 BODY[]<0> {1}\r\nx)\r\n* 1 FETCH (UID 5 BODY[]<0> {1}\r\nx)\r\n",
        (b"* 1 FETCH (UID 5 X {100000}\r\n" + b"x" * 100_000)
        + (b" {100000}\r\n" + b"x" * 100_000) * 9,
        b"* 1 FETCH (UID 5 X" + b" {0}\r\n" * 100 + b")\r\n",
        b"* 1 FETCH (UID 5 BODY[]<7> {1}\r\nx)\r\n",
    ],
)
def test_badFetch(reply: bytes) -> None:
    """
    A response that is malformed or larger than asked for ends the connection.
    """
    server = _IMAPServer([b"1"])
    network = Network(server.protocol)
    mailbox = login(network, IMAP)
    result(network, mailbox.listMessageUniqueIDs(INFO))
    server.do_UID_FETCH = lambda tag, rest: reply  # type: ignore[method-assign]
    with pytest.raises(POP3ResponseError) as caught:
        result(network, mailbox.messageContent(INFO, "77.5"))
    assert caught.value.code == "SYS/TEMP"
    assert network.clients[0].wasAborted


def test_removedWhileSent() -> None:
    """
    If the server removes a message while it is sent, reading it fails.
    """
    server = _IMAPServer([b"x" * 300_000])
    network = Network(server.protocol)
    mailbox = login(network, IMAP)
    result(network, mailbox.listMessageUniqueIDs(INFO))
    content = result(network, mailbox.messageContent(INFO, "77.5"))
    assert len(result(network, content.nextChunk())) == 131072
    server.messages.clear()
    with pytest.raises(POP3ResponseError):
        result(network, content.nextChunk())


@pytest.mark.parametrize(
    "greeting", [b"* BYE no\r\n", b"* PREAUTH x\r\n", b"+OK POP3\r\n", b"\r\n"]
)
def test_badGreeting(greeting: bytes) -> None:
    """
    A server that does not greet as it should counts as not available.
    """
    for address, network in (
        (IMAP, Network(lambda: Scripted(greeting, lambda *_: b""))),
        (POP3, pop3({}, b"-ERR closed\r\n")),
    ):
        with pytest.raises(POP3ResponseError) as caught:
            network.mailbox(address, isInsecure=True)
        assert caught.value.code == "SYS/TEMP"
        network.pump()
        assert not network.clients[0].isOpen


# --- sessions -------------------------------------------------------------------------


def test_connectionIsRenewed() -> None:
    """
    A session goes on with a new connection when the server has closed the old one.  SLEE closes the
    connection.
    """
    replies: dict[bytes, bytes | None] = {}
    network = pop3(replies)
    mailbox = login(network)
    names = list(result(network, mailbox.listMessageUniqueIDs(INFO)))
    network.clients[0].other.loseConnection()
    network.pump()
    content = result(network, mailbox.messageContent(INFO, names[1]))
    assert result(network, content.nextChunk()) == b"x\r\n"
    assert len(network.clients) == 2
    mailbox.onSleep(INFO)
    network.pump()
    assert not any(each.isOpen for each in network.clients)


def test_inUseAgain() -> None:
    """
    A session that connects again waits while the server still holds the lock of the previous
    connection.  If the password is refused now, the error has the code AUTH.
    """
    answers = iter(
        [
            b"+OK\r\n",
            b"-ERR [IN-USE] x\r\n",
            b"-ERR [IN-USE] x\r\n",
            b"+OK\r\n",
            b"-ERR [AUTH] x\r\n",
        ]
    )

    def answer(_: Any, line: bytes) -> bytes:
        if line.startswith(b"PASS"):
            return next(answers)
        return {b"LIST": b"+OK\r\n.\r\n", b"UIDL": b"+OK\r\n.\r\n"}.get(line, b"+OK\r\n")

    network = Network(lambda: Scripted(b"+OK\r\n", answer))
    mailbox = login(network)
    result(network, mailbox.listMessageUniqueIDs(INFO))
    result(network, mailbox.listMessageUniqueIDs(INFO), 5)
    assert len(network.clients) == 4
    with pytest.raises(POP3ResponseError) as caught:
        result(network, mailbox.listMessageUniqueIDs(INFO))
    assert caught.value.code == "AUTH"


def test_abandonedLogin() -> None:
    """
    If the client leaves while it logs in, the connection to the other server is closed.
    """
    network = pop3({b"PASS": b""})
    provider = network.provider(POP3, isInsecure=True)
    attempt = Deferred.fromCoroutine(provider.authenticate(INFO, "alice", "secret"))
    attempt.addErrback(lambda _: None)
    network.pump()
    attempt.cancel()
    assert network.clients[0].wasAborted
    assert not network.clock.getDelayedCalls()


def test_abandonedCommand() -> None:
    """
    If nobody waits for the reply to a command any more, the connection is closed.
    """
    network = pop3({b"LIST": b""})
    mailbox = login(network)
    listing = Deferred.fromCoroutine(mailbox.listMessageUniqueIDs(INFO))
    listing.addErrback(lambda _: None)
    network.pump()
    listing.cancel()
    assert network.clients[0].wasAborted
    assert not network.clock.getDelayedCalls()


def test_logOfAnOutage(logged: list[str]) -> None:
    """
    An outage is logged when it begins and when it ends.
    """
    network = pop3({}, b"-ERR closed\r\n")
    provider = network.provider(POP3, isInsecure=True)
    for _ in range(3):
        with pytest.raises(POP3ResponseError):
            result(network, provider.authenticate(INFO, "alice", "secret"))
    provider._endpoint = good = pop3({})
    for _ in range(2):
        assert result(good, provider.authenticate(INFO, "alice", "secret")) is not None
    assert logged == [
        "the mail server mail.example.test:110 refuses the connection",
        "the mail server mail.example.test:110 answers again",
    ]


# --- addresses --------------------------------------------------------------------------


def test_addresses() -> None:
    """
    Addresses have default ports, IPv6 in brackets, and a mailbox for IMAP.
    """
    assert Address.parse("pop3s://h") == Address(False, True, "h", 995, "INBOX")
    assert Address.parse("pop3://[::1]:1110") == Address(False, False, "::1", 1110, "INBOX")
    assert Address.parse("imaps://h/") == Address(True, True, "h", 993, "INBOX")
    assert Address.parse("imap://h:1/Über/x") == Address(True, False, "h", 1, "Über/x")


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("", "an address such as"),
        ("host", "an address such as"),
        ("http://host", "an address such as"),
        ("pop3s://user@host", "an address such as"),
        ("pop3s://host:0", "0 is not a port"),
        ("pop3s://host:99999", "99999 is not a port"),
        ("pop3s://host/INBOX", "POP3 has no choice of mailboxes"),
        ("pop3s://host:insecure=yes", "insecure=yes is for"),
        ("pop3://host:insecure=maybe", "insecure is yes or no"),
        ("pop3://host:insecure=yes:ca=/x", "ca cannot be combined"),
        ("pop3s://host:sizes=no", "sizes is counted or upstream"),
        ("pop3s://host:x=y", "x is not known"),
        ("pop3s://host:ca=/nonexistent", "cannot read /nonexistent"),
    ],
)
def test_badArguments(argument: str, text: str) -> None:
    """
    The error for a wrong argument names what is wrong.
    """
    with pytest.raises(ValueError, match=re.escape(text)):
        makeUpstream(argument)


def test_authorities(tmp_path: Path) -> None:
    """
    A file of certificates is read at the start.
    """
    certificate = tmp_path / "authority"
    Authority().write(certificate)
    assert isinstance(makeUpstream(f"imaps://[::1]:993/A b:ca={certificate}"), UpstreamProvider)
    (tmp_path / "empty").write_text("")
    with pytest.raises(ValueError, match="contains no certificate"):
        makeUpstream(f"pop3s://host:ca={tmp_path}/empty")
    (tmp_path / "bad").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(ValueError, match="cannot be read"):
        makeUpstream(f"pop3s://host:ca={tmp_path}/bad")
