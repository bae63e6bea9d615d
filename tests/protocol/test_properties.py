"""
Random commands against a simple model of a maildrop; random messages through RETR and TOP,
cut at random positions.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from zope.interface import implementer

from pop3svc.interfaces import IChunkedContent
from pop3svc.providers.memory import MemoryProvider
from pop3svc.service.factory import POP3Factory
from pop3svc.testing import Client, StubProvider
from tests.support.messages import NASTY, asSent, stuffed, topOf


class Model:
    """
    A maildrop by RFC 1939, one session at a time.
    """

    def __init__(self, messages: list[bytes]) -> None:
        self.kept = {f"message-{n}": asSent(each) for n, each in enumerate(messages, 1)}
        self.enter()

    def enter(self) -> None:
        self.state = "name"
        self.listed: list[str] = []
        self.marked: set[str] = set()

    def present(self) -> list[tuple[int, str]]:
        return [(n, each) for n, each in enumerate(self.listed, 1) if each not in self.marked]

    def find(self, argument: bytes) -> str | None:
        text = argument.decode()
        if not text.isdigit() or len(text) > 10 or not 1 <= int(text) <= len(self.listed):
            return None
        each = self.listed[int(text) - 1]
        return None if each in self.marked else each

    def answer(self, line: bytes) -> tuple[bool, bytes | None]:
        """
        @return: whether the reply is +OK, and further octets that it must contain.
        """
        verb, *arguments = line.split()
        if verb == b"QUIT":
            if arguments:
                return False, None
            for each in self.marked:
                del self.kept[each]
            self.enter()
            return True, None
        if self.state != "in":
            if verb == b"USER":
                self.state = "named"
                return True, None
            if verb == b"PASS" and self.state == "named":
                self.state = "in" if arguments == [b"secret"] else "name"
                self.listed = list(self.kept) if self.state == "in" else []
                return self.state == "in", None
            return False, None
        return self.inside(verb, arguments)

    def inside(self, verb: bytes, arguments: list[bytes]) -> tuple[bool, bytes | None]:
        sizes = [(n, len(self.kept[each])) for n, each in self.present()]
        if verb == b"STAT" and not arguments:
            return True, b" %d %d\r\n" % (len(sizes), sum(size for _, size in sizes))
        if verb == b"NOOP":
            return not arguments, None
        if verb == b"RSET" and not arguments:
            self.marked.clear()
            return True, None
        if verb in (b"LIST", b"UIDL") and not arguments:
            if verb == b"LIST":
                lines = [b"%d %d\r\n" % each for each in sizes]
            else:
                lines = [b"%d %s\r\n" % (n, each.encode()) for n, each in self.present()]
            return True, b"\r\n" + b"".join(lines) + b".\r\n"
        wanted = {b"LIST": 1, b"UIDL": 1, b"RETR": 1, b"DELE": 1, b"TOP": 2}.get(verb)
        if wanted != len(arguments):
            return False, None
        each = self.find(arguments[0])
        if each is None:
            return False, None
        if verb == b"DELE":
            self.marked.add(each)
            return True, None
        number, message = self.listed.index(each) + 1, self.kept[each]
        if verb == b"LIST":
            return True, b" %d %d\r\n" % (number, len(message))
        if verb == b"UIDL":
            return True, b" %d %s\r\n" % (number, each.encode())
        if verb == b"TOP":
            message = topOf(message, int(arguments[1]))
        return True, b"\r\n" + stuffed(message) + b".\r\n"


NUMBER = st.sampled_from([b"1", b"2", b"3", b"03", b"4", b"0", b"-1", b"x", b"99999999999"])
COMMAND = st.one_of(
    st.sampled_from(
        [
            b"STAT",
            b"LIST",
            b"UIDL",
            b"RSET",
            b"NOOP",
            b"QUIT",
            b"USER a",
            b"PASS secret",
            b"PASS no",
        ]
    ),
    st.sampled_from([b"STAT 1", b"RETR", b"TOP 1", b"LIST 1 1", b"QUIT 1", b"FOO", b"STLS"]),
    st.tuples(st.sampled_from([b"LIST", b"UIDL", b"RETR", b"DELE", b"DELE", b"DELE"]), NUMBER).map(
        b" ".join
    ),
    st.tuples(st.just(b"TOP"), NUMBER, st.sampled_from([b"0", b"1", b"7"])).map(b" ".join),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(NASTY, min_size=1, max_size=4), st.lists(COMMAND, max_size=60), st.booleans())
def test_commandsAgainstAModel(messages: list[bytes], lines: list[bytes], dropped: bool) -> None:
    provider = MemoryProvider({"a": "secret"}, messages)
    factory = POP3Factory(provider, clock=Clock())
    model, client = Model(messages), None
    kept = provider.store.maildrop("a").messages
    for line in [b"USER a", b"PASS secret", *lines]:
        if client is None or not client.isOpen:
            # After QUIT, or after too many bad commands, which delete nothing.
            model.enter()
            client = Client(factory)
            client.received()
        positive, rest = model.answer(line)
        said = client.say(line)
        assert said.startswith(b"+OK" if positive else b"-ERR"), (line, said)
        assert (
            rest is None
            or said.partition(b" follow")[2].lstrip(b"s.") == rest
            or said.endswith(rest)
        ), (line, said, rest)
        assert client.isOpen or said.startswith((b"+OK Bye", b"-ERR Too many"))
    if dropped and client is not None:
        client.vanish()
    assert {each: asSent(message) for each, message in kept.items()} == model.kept


@implementer(IChunkedContent)
class Cut:
    def __init__(self, message: bytes, cuts: list[int]) -> None:
        places = [0, *sorted(min(cut, len(message)) for cut in cuts), len(message)]
        self.pieces = [message[begin:end] for begin, end in zip(places, places[1:], strict=False)]

    def nextChunk(self) -> bytes | None:
        return self.pieces.pop(0) if self.pieces else None

    def close(self) -> None:
        pass


@settings(max_examples=200, deadline=None)
@given(NASTY, st.lists(st.integers(0, 60), max_size=6), st.integers(0, 4))
def test_messagesAtAnyBorder(message: bytes, cuts: list[int], lines: int) -> None:
    provider = StubProvider([message], messageContent=lambda info, uniqueID: Cut(message, cuts))
    client = Client(POP3Factory(provider, clock=Clock()))
    client.logIn()
    sent = asSent(message)
    assert client.say(b"LIST 1") == b"+OK 1 %d\r\n" % len(sent)
    assert client.say(b"RETR 1") == b"+OK Message follows _\r\n" + stuffed(sent) + b".\r\n"
    top = stuffed(topOf(sent, lines))
    assert client.say(b"TOP 1 %d" % lines) == b"+OK Top of message follows _\r\n" + top + b".\r\n"
