"""
The playground, in memory.
"""

from __future__ import annotations

from email import message_from_bytes
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from pop3svc.admin.traces import Traces
from pop3svc.delivery.recipients import Destination, Recipients
from pop3svc.policy import Policy
from pop3svc.providers.memory import MemoryStore
from pop3svc.web.conversations import Conversations, Line, showLines
from pop3svc.web.explanations import explain
from pop3svc.web.mails import makeMail, randomMail
from pop3svc.web.playground import LARGEST_MAIL, Playground, Visited
from pop3svc.web.popclient import PlayClient, PlayClients, blankedCommand
from tests.admin.test_operations import Process
from tests.support.webpages import Answer, WebPages

HOSTILE = "<script>alert(1)</script>\u202e"


# As a browser sends it.
_FILE = b'; filename="x.eml"\r\nContent-Type: message/rfc822'


class FakeTraces:
    """
    Hears nothing.
    """

    def __init__(self) -> None:
        self.listeners: list[Any] = []

    async def begin(self, listener: Any) -> None:
        self.listeners.append(listener)

    def end(self, listener: Any) -> None:
        self.listeners.remove(listener)


class Play(WebPages):
    """
    A port with a playground of a store in memory.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.store = MemoryStore()
        self.traces = FakeTraces()
        recipients = Recipients({None: Destination(self.store, [])})
        visited = Visited(
            *(None, self.traces, recipients, self.store, ("alice",), ("alice", "secret"))
        )
        self.playground = Playground(visited, self.guard, self.clock)
        self.playground.addTo(self.root)
        self.site.largeBodies = self.playground.largeBodies
        self.connected: list[tuple[PlayClient, StringTransport]] = []
        self.playground._clients._join = self.join  # type: ignore[method-assign]

    def join(self, client: PlayClient) -> None:
        transport = StringTransport()
        transport.abortConnection = lambda: client.connectionLost()  # type: ignore[method-assign]
        client.makeConnection(transport)
        self.connected.append((client, transport))

    @property
    def mails(self) -> list[bytes]:
        return [each for drop in self.store.maildrops.values() for each in drop.messages.values()]

    def visit(self) -> tuple[str, str]:
        """
        @return: the header with the cookie, and the token.
        """
        page = self.ask("GET /playground")
        assert page.status == 200
        return f"Cookie: {page.cookie}", page.token

    def upload(self, content: bytes, cookie: str, token: str, path: str = "/upload") -> Answer:
        parts = [("token", token.encode()), ("to", b"alice"), ("file", content)]
        body = b"".join(
            b'--b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
            % (name.encode(), _FILE if name == "file" else b"", value)
            for name, value in parts
        )
        kind = "Content-Type: multipart/form-data; boundary=b"
        return self.ask(f"POST {path}", kind, cookie, body=body + b"--b--\r\n")


FORMS: list[tuple[str, dict[str, str]]] = [
    ("/mail", {"to": "alice", "from": "b@example.org", "subject": "s", "text": "t"}),
    ("/random", {"to": "alice"}),
    ("/command", {"do": "random"}),
]


@pytest.mark.parametrize(("path", "fields"), FORMS)
def test_aMail(path: str, fields: dict[str, str]) -> None:
    play = Play()
    cookie, token = play.visit()
    answer = play.post(path, cookie, token=token, **fields)
    assert answer.status == 303 and "playground" in answer.headers["location"]
    [mail] = play.mails
    assert b"\r\n\r\n" in mail and b"Subject: " in mail


@pytest.mark.parametrize(("path", "fields"), [*FORMS, ("/command", {"line": "QUIT"})])
def test_withoutPermission(path: str, fields: dict[str, str]) -> None:
    play = Play()
    cookie, token = play.visit()
    other = play.visit()[1]
    assert play.post(path, cookie, **fields).status == 403
    assert play.post(path, cookie, token=other, **fields).status == 403
    assert play.post(path, token=token, **fields).status == 403
    assert (
        play.post(path, cookie, "Sec-Fetch-Site: cross-site", token=token, **fields).status == 403
    )
    assert play.ask(f"POST {path}", cookie, host="evil.example").status == 421
    assert play.ask(f"GET {path}?token={token}", cookie).status == 405
    assert play.upload(b"Subject: x\n\n", cookie, other).status == 403
    assert play.ask("GET /upload", cookie).status == 405
    closed = Play(password="sesame")
    for each in ("/playground", "/conversations", path):
        assert closed.ask(f"GET {each}").status == 401
        assert closed.ask(f"POST {each}", cookie, body=b"token=x").status == 401
    for each in (play, closed):
        assert each.mails == [] and each.connected == []


def test_whatThePageShows() -> None:
    play = Play()
    text = play.ask("GET /playground").text
    for each in ("SLEE", "WAKE", "UIDL", "DELI 1", "Log in as alice", "Random mail"):
        assert each in text
    assert "secret" not in text and "style=" not in text


@pytest.mark.parametrize(
    ("fields", "done"),
    [
        ({"to": "bob"}, "nouser"),
        ({"to": HOSTILE}, "bad"),
        ({"from": "a\r\nBcc: x"}, "bad"),
        ({"from": "<"}, "bad"),
        ({"subject": "s\nX: y"}, "bad"),
        ({"subject": "=?utf-8?q?x=0D=0AX-Injected:_1?="}, "bad"),
    ],
)
def test_badMails(fields: dict[str, str], done: str) -> None:
    play = Play()
    cookie, token = play.visit()
    form = {"to": "alice", "from": "b@example.org", "subject": "s", "text": "t", **fields}
    answer = play.post("/mail", cookie, token=token, **form)
    assert answer.headers["location"] == f"playground?done={done}#mail"
    assert play.mails == []
    assert 'role="alert"' in play.ask(f"GET /playground?done={done}").text


def test_uploads() -> None:
    play = Play()
    cookie, token = play.visit()
    assert play.upload(b"Subject: x\n\ny\n", cookie, token).headers["location"].endswith("#mail")
    assert play.mails == [b"Subject: x\n\ny\n"]
    large = b"x" * LARGEST_MAIL
    assert play.upload(large, cookie, token).status == 303
    assert len(play.mails) == 2
    assert play.upload(b"", cookie, token).headers["location"] == "playground?done=empty#mail"
    assert play.upload(b"x" * (LARGEST_MAIL + 1), cookie, token).status == 413
    assert play.upload(b"x" * (LARGEST_MAIL + 9000), cookie, token).status == 413
    assert play.upload(b"x" * 70_000, cookie, token, path="/mail").status == 413
    assert len(play.mails) == 2


def test_mailIsBounded() -> None:
    play = Play()
    cookie, token = play.visit()
    play.playground._mails = 2_000
    answer = play.post("/random", cookie, token=token, to="alice")
    assert "done=many" in answer.headers["location"] and play.mails == []


def test_makeMail() -> None:
    mail = message_from_bytes(makeMail("Zoë <z@example.org>", "demo", "Grüße", "Hello\nWorld"))
    assert mail["From"].isascii() and "=?utf-8?" in mail["Subject"]
    assert b"x" * 999 not in makeMail("a@b", "demo", "s", "x" * 5000)
    for _ in range(30):
        assert message_from_bytes(randomMail("demo"))["To"] == "demo"


# --- the client ------------------------------------------------------------------------


def test_aCommand() -> None:
    play = Play()
    cookie, token = play.visit()
    headers = (cookie, "X-Requested-With: script")
    kind = "Content-Type: application/x-www-form-urlencoded"
    body = f"token={token}&line=uidl".encode()
    channel, transport = play.begin("POST /command", kind, *headers, body=body)
    [(client, sent)] = play.connected
    client.dataReceived(b"+OK ready\r\n")
    assert sent.value() == b"uidl\r\n" and transport.value() == b""
    client.dataReceived(b"+OK Unique-ids follow _\r\n1 first\r\n2 last<id\r\n")
    assert transport.value() == b""
    client.dataReceived(b".\r\n")
    answer = Answer(transport.value())
    assert answer.status == 200 and "<html" not in answer.text
    assert "C:</span> uidl" in answer.text and "RETR UID:last&lt;id" in answer.text
    channel.connectionLost(Failure(ConnectionDone()))
    # The page without JavaScript shows the same.
    assert "2 last&lt;id" in play.ask("GET /playground", cookie).text
    assert "2 last" not in play.ask("GET /playground").text


def test_theLogin() -> None:
    play = Play()
    cookie, token = play.visit()
    kind = "Content-Type: application/x-www-form-urlencoded"
    _, transport = play.begin(
        "POST /command", kind, cookie, body=f"token={token}&do=login".encode()
    )
    [(client, sent)] = play.connected
    for reply in (b"+OK ready", b"+OK", b"+OK in"):
        client.dataReceived(reply + b"\r\n")
    assert sent.value() == b"USER alice\r\nPASS secret\r\n"
    assert Answer(transport.value()).headers["location"] == "playground#client"
    text = play.ask("GET /playground", cookie).text
    assert "PASS ****" in text and "secret" not in text


def test_aReplyThatDoesNotCome() -> None:
    play = Play()
    cookie, token = play.visit()
    kind = "Content-Type: application/x-www-form-urlencoded"
    body = f"token={token}&line=NOOP".encode()
    channel, transport = play.begin("POST /command", kind, cookie, body=body)
    play.clock.advance(7)
    assert Answer(transport.value()).status == 303
    [(client, sent)] = play.connected
    # The greeting has not come, so nothing is sent yet.
    assert sent.value() == b""
    client.dataReceived(b"+OK ready\r\n")
    channel, transport = play.begin("POST /command", kind, cookie, body=body)
    assert sent.value() == b"NOOP\r\n"
    channel.connectionLost(Failure(ConnectionDone()))
    client.dataReceived(b"+OK\r\n")
    assert play.playground._clients.of(cookie.partition("=")[2]) is client
    assert not client.isWaiting


def test_oneLineAtATime() -> None:
    play = Play()
    cookie, token = play.visit()
    kind = "Content-Type: application/x-www-form-urlencoded"
    body = f"token={token}&line=NOOP%0d%0aQUIT".encode()
    play.begin("POST /command", kind, cookie, body=body)
    [(client, sent)] = play.connected
    client.dataReceived(b"+OK ready\r\n")
    assert sent.value() == b"NOOP\r\n"


class Connecting(PlayClients):
    """
    Clients whose connections do nothing.
    """

    def _join(self, client: PlayClient) -> None:
        transport = StringTransport()
        transport.abortConnection = lambda: client.connectionLost()  # type: ignore[method-assign]
        client.makeConnection(transport)


def test_theClientsAreBounded() -> None:
    clock = MemoryReactorClock()
    clients = Connecting(clock, None)
    made = [clients.connect(f"visitor {number}") for number in range(clients.MOST)]
    assert all(made) and clients.connect("another") is None
    # The same visitor gets a new connection instead of the old one.
    again = clients.connect("visitor 0")
    assert again is not None and made[0] is not None and not made[0].isOpen
    clock.advance(clients.UNUSED)
    again.lastUsed = clock.seconds()
    assert clients.connect("another") is not None
    assert [each is not None and each.isOpen for each in made].count(True) == clients.MOST - 2
    clock.advance(clients.LIFE)
    assert not any(each is not None and each.isOpen for each in made) and not again.isOpen
    for number in range(40):
        clients.connect(f"next {number}")
        clock.advance(clients.UNUSED)
    assert len(clients._clients) <= clients.KEPT
    clients.closeAll()
    assert clock.getDelayedCalls() == []


def talking() -> tuple[PlayClient, StringTransport]:
    client = PlayClient(lambda _: None)
    transport = StringTransport()
    client.makeConnection(transport)
    return client, transport


CONVERSATION = [
    ("CAPA", [b"+OK _\r\n", b"TOP\r\n", b".\r\n"]),
    ("CAPA", [b"+OK without the mark\r\n", b"TOP\r\n.\r\n"]),
    ("LIST 1", [b"+OK 1 20\r\n"]),
    ("RETR 9", [b"-ERR no\r\n"]),
    ("AUTH LOGIN", [b"+ VXNlcg==\r\n"]),
    ("aGVsbG8=", [b"+OK in\r\n"]),
]


def test_replies() -> None:
    client, _ = talking()
    done: list[str] = []

    def say(line: str) -> None:
        client.say(line).addCallback(lambda _: done.append(line))

    for number, (line, replies) in enumerate(CONVERSATION):
        say(line)
        for each in replies:
            assert len(done) == number
            client.dataReceived(each)
        assert done[number:] == [line]
    assert Line("C", "AUTH LOGIN") in client.lines and Line("C", "****") in client.lines
    assert not any("aGVsbG8=" in each.text for each in client.lines)


def test_longReplies() -> None:
    client, _ = talking()
    waiting: Deferred[None] = client.say("RETR 1")
    client.dataReceived(b"+OK _\r\n" + b"x" * 5_000_000)
    client.dataReceived(b"y\r\n" + b"line\r\n" * 100_000 + b".\r\n")
    assert waiting.called
    texts = [each.text for each in client.lines]
    assert len(texts) < 100 and max(map(len, texts)) < 500
    assert "more lines)" in texts[-2] and texts[-1] == "."


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("PASS secret word", "PASS ****"),
        ("xlog alice secret", "xlog alice ****"),
        ("APOP alice digest", "APOP alice ****"),
        ("AUTH PLAIN AAA=", "AUTH PLAIN ****"),
        ("AUTH PLAIN", "AUTH PLAIN"),
        ("RETR 1", "RETR 1"),
    ],
)
def test_blankedCommands(line: str, shown: str) -> None:
    assert blankedCommand(line, False) == shown
    assert blankedCommand(line, True) == "****"


# --- conversations -----------------------------------------------------------------------


def test_conversations() -> None:
    process = Process(policy=Policy())
    traces = Traces(process.factory, process.clock)
    shown = Conversations(traces, process.clock, ["alice"])
    before = process.connect()
    shown.watch()
    assert "Nobody talks" in shown.show()
    client = process.connect()
    for line in (b"USER hunter2", b"USER alice", b"PASS secret", b"SLEE", b"WAKE", b"QUIT"):
        client.say(line)
    before.say(b"CAPA")
    assert shown.hasChanged
    text = shown.show()
    for each in ("USER alice", "PASS ****", "ACTIVITY/NONE", "USER ****"):
        assert each in text
    assert "secret" not in text and "hunter2" not in text
    assert text.count("<article") == 2 and "ended" in text
    assert not shown.hasChanged
    # Hearing ends some time after the last visit.
    process.clock.advance(shown.LINGER - 1)
    shown.watch()
    process.clock.advance(shown.LINGER - 1)
    assert traces._traces == [shown]
    process.clock.advance(1)
    assert traces._traces == [] and traces._taps == {}
    shown.stop()


def test_conversationsAreBounded() -> None:
    process = Process()
    shown = Conversations(Traces(process.factory, process.clock), process.clock, [])
    shown.watch()
    for _ in range(20):
        client = process.connect()
        for _ in range(60):
            client.say(b"NOOP")
    text = shown.show()
    assert text.count("<article") == 8 and text.count("<li") <= 8 * 40


def test_explanations() -> None:
    text = showLines([Line("C", "SLEE"), Line("S", "+OK"), Line("C", "SLEE"), Line("-", "end")])
    assert text.count("the session sleeps") == 1
    assert explain("C", "retr uid:5") and explain("C", "deli 1") and not explain("C", "SLEEP")
    assert not explain("S", "SLEE") and explain("S", "+OK Capabilities follow _")
    assert "<script>" not in showLines([Line("C", HOSTILE)])


def test_liveConversations() -> None:
    play = Play()
    channel, transport = play.begin("GET /conversations")
    assert b"event: talks" in transport.value()
    transport.clear()
    play.clock.advance(0.25)
    assert transport.value() == b""
    play.playground._conversations.hasChanged = True
    play.clock.advance(0.25)
    assert b"event: talks" in transport.value()
    channel.connectionLost(Failure(ConnectionDone()))
    play.playground.stop()
    assert play.clock.getDelayedCalls() == [] and play.traces.listeners == []
