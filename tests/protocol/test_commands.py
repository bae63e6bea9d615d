"""
One conversation for each command and each refusal.
"""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import pytest
from twisted.internet.task import Clock

from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import IMailboxStore, IPOP3MailboxProvider
from pop3svc.policy import Policy
from pop3svc.protocol.authentication import Password, Proven
from pop3svc.protocol.commands import COMMANDS, command
from pop3svc.protocol.replies import ok
from pop3svc.protocol.sasl import MECHANISMS, Mechanism, mechanism
from pop3svc.protocol.session import Session, State
from pop3svc.providers.memory import MemoryProvider
from pop3svc.service.factory import POP3Factory
from pop3svc.testing import Client, StubProvider, conversation
from tests.support.connections import makeFactory, withCommand
from tests.support.conversations import ALICE, MESSAGES, loggedIn, provider

pytestmark = pytest.mark.smoke


@pytest.mark.parametrize("octetAtATime", [False, True])
def test_rfc1939Section10(octetAtATime: bool) -> None:
    """
    The example of RFC 1939 section 10, with USER instead of APOP.
    """
    mail = provider([b"x" * 118, b"y" * 198])
    conversation(
        mail,
        f"""
        S: +OK pop3svc memory ready.
        C: USER alice
        S: +OK…
        C: PASS secret
        S: +OK…
        C: STAT
        S: +OK 2 320
        C: LIST
        S: +OK…
        S: 1 120
        S: 2 200
        S: .
        C: RETR 1
        S: +OK…
        S: {"x" * 118}
        S: .
        C: DELE 1
        S: +OK…
        C: RETR 2
        S: +OK…
        S: {"y" * 198}
        S: .
        C: DELE 2
        S: +OK…
        C: QUIT
        S: +OK Bye, 2 deleted.
        S: (closed)
        """,
        octetAtATime=octetAtATime,
    )
    assert mail.store.maildrop("alice").messages == {}


def test_stat() -> None:
    loggedIn(
        """
        C: STAT
        S: +OK 3 98
        C: DELE 2
        S: +OK…
        C: STAT
        S: +OK 2 52
        C: STAT 1
        S: -ERR…
        C: STAT  
        S: +OK 2 52
        """
    )
    loggedIn("C: STAT\nS: +OK 0 0", [])


def test_list() -> None:
    loggedIn(
        """
        C: LIST 4
        S: -ERR No such message.
        C: LIST 0
        S: -ERR…
        C: LIST 1 2
        S: -ERR…
        C: LIST 3
        S: +OK 3 20
        C: LIST   03 
        S: +OK 3 20
        C: DELE 1
        S: +OK…
        C: DELE 2
        S: +OK…
        C: LIST 1
        S: -ERR Message is deleted.
        C: LIST
        S: +OK…
        S: 3 20
        S: .
        """
    )
    loggedIn("C: LIST\nS: +OK…\nS: .", [])


def test_uidl() -> None:
    loggedIn(
        """
        C: UIDL
        S: +OK…
        S: 1 message-1
        S: 2 message-2
        S: 3 message-3
        S: .
        C: UIDL 2
        S: +OK 2 message-2
        C: DELE 2
        S: +OK…
        C: UIDL 2
        S: -ERR…
        C: UIDL
        S: +OK…
        S: 1 message-1
        S: 3 message-3
        S: .
        C: UIDL 9
        S: -ERR…
        C: UIDL 1 1
        S: -ERR…
        """
    )


def test_retr() -> None:
    loggedIn(
        """
        C: RETR 1
        S: +OK…
        S: Subject: one
        S:
        S: first
        S: ..
        S: ..dot
        S: .
        C: RETR 3
        S: +OK…
        S: only a header: yes
        S: .
        C: RETR
        S: -ERR…
        C: RETR 4
        S: -ERR…
        C: RETR 1 2
        S: -ERR…
        C: DELE 1
        S: +OK…
        C: RETR 1
        S: -ERR…
        """
    )


def test_top() -> None:
    loggedIn(
        """
        C: TOP 1 0
        S: +OK…
        S: Subject: one
        S:
        S: .
        C: TOP 1 2
        S: +OK…
        S: Subject: one
        S:
        S: first
        S: ..
        S: .
        C: TOP 1 99999999
        S: +OK…
        S: Subject: one
        S:
        S: first
        S: ..
        S: ..dot
        S: .
        C: TOP 3 0
        S: +OK…
        S: only a header: yes
        S: .
        C: TOP 1
        S: -ERR…
        C: TOP 1 -1
        S: -ERR…
        C: TOP 1 1 1
        S: -ERR…
        C: TOP 9 1
        S: -ERR…
        """
    )


def test_deleRsetQuit() -> None:
    mail = provider()
    client = conversation(
        mail,
        ALICE
        + """
        C: DELE 1
        S: +OK…
        C: DELE 1
        S: -ERR…
        C: DELE 2
        S: +OK…
        C: RSET
        S: +OK…
        C: RETR 3
        S: +OK…
        S: only a header: yes
        S: .
        C: DELE 3
        S: +OK…
        C: RSET x
        S: -ERR…
        C: QUIT now
        S: -ERR…
        C: DELE x
        S: -ERR…
        """,
    )
    drop = mail.store.maildrop("alice")
    assert len(drop.messages) == 3
    assert client.say(b"QUIT") == b"+OK Bye, 1 deleted.\r\n"
    assert not client.isOpen
    assert list(drop.messages) == ["message-1", "message-2"]
    assert not drop.isHeld


def test_deletionFails() -> None:
    """
    If QUIT cannot delete the marked messages, none is deleted, and the connection is closed after
    an -ERR.
    """
    for error, said in (
        (POP3ResponseError("Disk full.", "SYS/TEMP"), "S: -ERR [SYS/TEMP] Disk full."),
        (NotImplementedError(), "S: -ERR Command not available."),
        (OSError("a secret"), "S: -ERR [SYS/TEMP] Internal error."),
    ):
        mail = StubProvider(MESSAGES, isExclusive=True, messageDelete=error)
        conversation(mail, ALICE + f"C: DELE 1\nS: +OK…\nC: QUIT\n{said}\nS: (closed)")
        assert len(mail.maildrop.messages) == 3
        assert not mail.maildrop.isHeld


def test_goneMeanwhile() -> None:
    """
    A marked message that another program has removed counts as deleted.
    """
    mail = provider()
    client = conversation(mail, ALICE + "C: DELE 1\nS: +OK…")
    drop = mail.store.maildrop("alice")
    del drop.messages["message-1"], drop.messages["message-2"]
    assert client.say(b"RETR 2") == b"-ERR Message no longer exists.\r\n"
    assert client.say(b"QUIT") == b"+OK Bye, 1 deleted.\r\n"


def test_noop() -> None:
    """
    NOOP is valid only after login (RFC 1939 section 5).
    """
    loggedIn("C: NOOP\nS: +OK…\nC: NOOP x\nS: -ERR…\nC: noop \nS: +OK…")
    conversation(provider(), "S: +OK…\nC: NOOP\nS: -ERR…\nC: QUIT\nS: +OK…")


def test_login() -> None:
    conversation(
        provider(),
        """
        S: +OK…
        C: PASS secret
        S: -ERR Send USER first.
        C: USER
        S: -ERR…
        C: USER a b
        S: -ERR…
        C: PASS secret
        S: -ERR Send USER first.
        C: USER alice
        S: +OK…
        C: PASS
        S: -ERR…
        C: PASS wrong
        S: -ERR [AUTH] Wrong name or password.
        C: PASS secret
        S: -ERR Send USER first.
        C: USER nobody
        S: +OK…
        C: PASS secret
        S: -ERR [AUTH] Wrong name or password.
        C: STAT
        S: -ERR…
        C: USER nobody
        S: +OK…
        C: USER  bob 
        S: +OK…
        C: PASS  two words 
        S: +OK…
        C: USER alice
        S: -ERR…
        C: PASS secret
        S: -ERR…
        C: AUTH PLAIN
        S: -ERR…
        C: STLS
        S: -ERR…
        C: STAT
        S: +OK…
        C: QUIT
        S: +OK Bye.
        S: (closed)
        """,
    )


def test_quitBeforeLogin() -> None:
    conversation(provider(), "S: +OK…\nC: USER alice\nS: +OK…\nC: quit\nS: +OK Bye.\nS: (closed)")


def test_longNames() -> None:
    name = "a" * 64 + "@example.org"
    conversation(
        MemoryProvider({name: "p"}), f"S: +OK…\nC: USER {name}\nS: +OK…\nC: PASS p\nS: +OK…"
    )


def test_inUse() -> None:
    mail = provider()
    first = conversation(mail, ALICE)
    conversation(
        mail,
        "S: +OK…\nC: USER alice\nS: +OK…\nC: PASS secret\nS: -ERR [IN-USE] …\nC: USER alice\nS: +OK…",
    )
    first.vanish()
    conversation(mail, ALICE)


def capabilities(script: str, **options: Any) -> set[str]:
    client = conversation(provider(), script, **options)
    lines = client.say(b"CAPA").decode().split("\r\n")
    assert lines[0] == "+OK Capabilities follow _"
    assert lines[-2:] == [".", ""]
    assert len(set(lines)) == len(lines)
    return set(lines[1:-2])


ALWAYS = {
    "UID-PARAM",
    "MULTI-LINE-IND",
    "DELI",
    "CORE",
    "SLEE-WAKE",
    "SLEEPING",
    "QAUT",
    "TOP",
    "UIDL",
    "LANG",
    "RESP-CODES",
    "AUTH-RESP-CODE",
    "PIPELINING",
    "UTF8 USER",
    "EXPIRE NEVER",
    "IMPLEMENTATION pop3svc memory",
}
LOGINS = {"USER", "SASL PLAIN LOGIN", "XLOG"}


def test_capa() -> None:
    clear, hidden = {"X-TLS False"}, {"X-TLS True"}
    assert capabilities("S: +OK…") == ALWAYS | LOGINS | clear
    assert capabilities(ALICE) == ALWAYS | LOGINS | clear
    never = Policy(cleartextLogin="never")
    assert capabilities("S: +OK…", policy=never) == ALWAYS | clear
    stls = capabilities("S: +OK…", policy=never, connectionCreator=object())
    assert stls == ALWAYS | clear | {"STLS"}
    secure = {"policy": never, "connectionCreator": object(), "isSecure": True}
    assert capabilities("S: +OK…", **secure) == ALWAYS | LOGINS | hidden
    assert capabilities(ALICE, **secure) == ALWAYS | LOGINS | hidden
    assert capabilities(ALICE, connectionCreator=object()) == ALWAYS | LOGINS | clear
    conversation(provider(), "S: +OK…\nC: CAPA x\nS: -ERR…")


def test_cleartextLogin() -> None:
    conversation(
        provider(),
        """
        S: +OK…
        C: USER alice
        S: -ERR Use TLS to log in.
        C: PASS secret
        S: -ERR Use TLS to log in.
        C: AUTH PLAIN
        S: -ERR Use TLS to log in.
        C: AUTH
        S: -ERR Use TLS to log in.
        C: STLS
        S: -ERR…
        """,
        policy=Policy(cleartextLogin="never"),
    )


def test_stlsIsRefusedInsideTLS() -> None:
    script = "S: +OK…\nC: STLS\nS: -ERR TLS is already active."
    conversation(provider(), script, isSecure=True, connectionCreator=object())


def plain(*fields: str) -> str:
    return b64encode("\0".join(fields).encode()).decode()


GOOD = plain("", "alice", "secret")


def test_authPlain() -> None:
    for script in (
        f"C: AUTH PLAIN {GOOD}\nS: +OK…",
        f"C: auth plain   {GOOD} \nS: +OK…",
        f"C: AUTH PLAIN\nS: + \nC: {GOOD}\nS: +OK…",
        f"C: AUTH PLAIN {plain('alice', 'alice', 'secret')}\nS: +OK…",
    ):
        conversation(provider(), f"S: +OK…\n{script}\nC: STAT\nS: +OK…\nC: AUTH\nS: -ERR…")


def test_authLogin() -> None:
    name, password = (b64encode(each).decode() for each in (b"alice", b"secret"))
    for script in (
        f"C: AUTH LOGIN\nS: + VXNlcm5hbWU6\nC: {name}\nS: + UGFzc3dvcmQ6\nC: {password}\nS: +OK…",
        f"C: AUTH LOGIN {name}\nS: + UGFzc3dvcmQ6\nC: {password}\nS: +OK…",
    ):
        conversation(provider(), f"S: +OK…\n{script}\nC: STAT\nS: +OK…")
    conversation(
        provider(),
        f"S: +OK…\nC: AUTH LOGIN =\nS: + UGFzc3dvcmQ6\nC: {password}\nS: -ERR [AUTH]…\nC: USER alice\nS: +OK…",
    )


@pytest.mark.parametrize(
    "script",
    [
        "C: AUTH PLAIN\nS: + \nC: *\nS: -ERR Cancelled.",
        "C: AUTH LOGIN\nS: + VXNlcm5hbWU6\nC: YWxpY2U=\nS: + UGFzc3dvcmQ6\nC: *\nS: -ERR Cancelled.",
        "C: AUTH PLAIN =\nS: -ERR…",
        "C: AUTH PLAIN\nS: + \nC:\nS: -ERR…",
        "C: AUTH PLAIN\nS: + \nC: =\nS: -ERR Response is not valid for PLAIN.",
        "C: AUTH PLAIN !!!!\nS: -ERR Response is not valid base64.",
        "C: AUTH PLAIN =AAA\nS: -ERR Response is not valid base64.",
        "C: AUTH PLAIN AAA=BBBB\nS: -ERR Response is not valid base64.",
        "C: AUTH PLAIN AAA\nS: -ERR Response is not valid base64.",
        "C: AUTH PLAIN\nS: + \nC: QUIT now\nS: -ERR Response is not valid base64.",
        f"C: AUTH PLAIN\nS: + \nC: {GOOD} \nS: -ERR Response is not valid base64.",
        f"C: AUTH PLAIN {plain('', 'alice', 'wrong')}\nS: -ERR [AUTH] Wrong name or password.",
        f"C: AUTH PLAIN {plain('bob', 'alice', 'secret')}\nS: -ERR [AUTH]…",
        f"C: AUTH PLAIN {plain('', '', 'secret')}\nS: -ERR [AUTH]…",
        f"C: AUTH PLAIN {plain('', 'alice', '')}\nS: -ERR [AUTH]…",
        f"C: AUTH PLAIN {plain('alice', 'secret')}\nS: -ERR…",
        f"C: AUTH PLAIN {plain('', 'alice', 'secret', '')}\nS: -ERR…",
        f"C: AUTH PLAIN {plain('', 'ali' + chr(10) + 'ce', 'secret')}\nS: -ERR [AUTH]…",
        "C: AUTH NTLM\nS: -ERR No such mechanism.",
        "C: AUTH DIGEST-MD5\nS: -ERR No such mechanism.",
        "C: AUTH PLAIN = =\nS: -ERR…",
    ],
)
def test_authFails(script: str) -> None:
    """
    After a failed exchange the session stays in AUTHORIZATION.
    """
    conversation(
        provider(),
        f"S: +OK…\n{script}\nC: STAT\nS: -ERR…\nC: USER alice\nS: +OK…\nC: AUTH PLAIN {GOOD}\nS: +OK…",
    )


def test_bareAuth() -> None:
    """
    AUTH without argument lists the mechanisms and does not log in.
    """
    conversation(
        provider(),
        """
        S: +OK…
        C: AUTH
        S: +OK…
        S: PLAIN
        S: LOGIN
        S: .
        C: STAT
        S: -ERR Command is not valid in this state.
        """,
    )


def test_authForgetsTheName() -> None:
    conversation(
        provider(),
        "S: +OK…\nC: USER alice\nS: +OK…\nC: AUTH PLAIN\nS: + \nC: *\nS: -ERR…\n"
        "C: PASS secret\nS: -ERR Send USER first.",
    )


def test_uniqueIDArguments() -> None:
    mail = provider()
    client = conversation(mail, ALICE)
    late = mail.store.maildrop("alice").add(b"Subject: late\n\nx\n")
    conversation_ = [
        (b"LIST UID:message-3", b"+OK 3 20\r\n"),
        (b"UIDL uid:message-3", b"+OK 3 message-3\r\n"),
        (b"UIDL UID:Message-3", b"-ERR [UID/NOT-FOUND] No such message.\r\n"),
        (b"RETR UID:../../x", b"-ERR [UID/NOT-FOUND] No such message.\r\n"),
        (b"RETR UID:" + b"x" * 71, b"-ERR [UID/NOT-FOUND] No such message.\r\n"),
        (b"RETR UID:", b"-ERR [UID/NOT-FOUND] No such message.\r\n"),
        (b"LIST UID:" + late.encode(), b"+OK 0 20\r\n"),
        (b"UIDL UID:" + late.encode(), b"+OK 0 message-4\r\n"),
        (b"STAT", b"+OK 3 98\r\n"),
        (b"DELE UID:message-3", b"+OK Message marked for deletion.\r\n"),
        (b"RETR UID:message-3", b"-ERR Message is deleted.\r\n"),
        (b"QUIT", b"+OK Bye, 1 deleted.\r\n"),
    ]
    for line, said in conversation_:
        got = client.say(line)
        if line == b"STAT":
            assert got.startswith(b"+OK 3 ")
        else:
            assert got == said


def test_readOnly() -> None:
    conversation(
        StubProvider(MESSAGES, isReadOnly=True),
        ALICE + "C: DELE 1\nS: -ERR [READ-ONLY] …\nC: RETR 3\nS: +OK…\nS: only a header: yes\nS: .",
    )


def test_aCommandOfOnesOwn() -> None:
    table = dict(COMMANDS)

    @command("XHELLO", states=[State.TRANSACTION], table=table, capability=["XHELLO"])
    async def hello(session: Any) -> Any:
        raise POP3ResponseError("Hello yourself.")

    assert "XHELLO" not in COMMANDS
    conversation(
        provider(),
        ALICE + "C: XHELLO\nS: -ERR Hello yourself.\nC: XHELLO x\nS: -ERR…",
        commands=table,
    )
    with pytest.raises(ValueError, match="declared already"):
        command("XHELLO", states=[], table=table)


def test_nothingIsEchoed() -> None:
    """
    Refusals do not repeat input of the client.
    """
    client = conversation(provider(), "S: +OK…")
    for line in (
        b"SECRET x",
        b"USER a SECRET",
        b"AUTH SECRET",
        b"AUTH PLAIN SECRET!",
        b"RETR SECRET",
    ):
        assert b"SECRET" not in client.say(line)


def test_ownCommandAsDeclared() -> None:
    table: dict[str, Any] = {}

    @command("XHELLO", states=[State.TRANSACTION], table=table, capability=["XHI"], longLine=True)
    async def hello(session: Any) -> Any:
        raise AssertionError

    made = table["XHELLO"]
    assert (made.verb, made.states, made.run) == ("XHELLO", {State.TRANSACTION}, hello)
    assert (made.capability, made.longLine, made.nextState) == (["XHI"], True, None)


@pytest.mark.parametrize(
    ("name", "password"),
    [(b"", b"secret"), (b"alice", b""), (b"al\tice", b"secret"), (b"alice", b"a\0b")],
)
def test_authNeedsNoProvider(name: bytes, password: bytes) -> None:
    """
    A malformed name or password is refused like a wrong one, without calling the provider.
    """
    asked: list[object] = []
    said = b64encode(name).decode() or "="
    conversation(
        StubProvider(authenticate=lambda *arguments: asked.append(arguments)),
        f"S: +OK…\nC: AUTH LOGIN {said}\nS: + UGFzc3dvcmQ6\nC: {b64encode(password).decode()}\n"
        "S: -ERR [AUTH] Wrong name or password.",
    )
    assert asked == []


def test_aMechanismOfOnesOwn() -> None:
    """
    A mechanism gets the session and the initial response.  By default it counts as a mechanism
    without cleartext passwords.
    """
    told: list[object] = []

    async def converse(session: Any, initial: bytes | None) -> Any:
        told.extend([session, initial])
        yield Password("alice", "secret")

    table = dict(MECHANISMS)
    assert mechanism("X-TEST", needs=IPOP3MailboxProvider, table=table)(converse) is converse
    assert table["X-TEST"] == Mechanism("X-TEST", IPOP3MailboxProvider, False, converse)
    client = conversation(
        provider(), "S: +OK…\nC: AUTH X-TEST eA==\nS: +OK Logged in.", mechanisms=table
    )
    assert told == [client.protocol.session, b"x"]
    with pytest.raises(ValueError, match="X-TEST is declared already"):
        mechanism("X-TEST", needs=IPOP3MailboxProvider, table=table)


def test_mechanismsOfAFactory() -> None:
    """
    CAPA, AUTH and the list of AUTH know the mechanisms of the connection's factory, and no others.
    """
    table: dict[str, Mechanism] = {}

    @mechanism("X-TEST", needs=IPOP3MailboxProvider, table=table)
    async def converse(session: Any, initial: bytes | None) -> Any:
        yield Password("alice", "secret")

    assert "X-TEST" not in MECHANISMS
    mail = provider()
    for mechanisms, isOurs in ((table, True), (MECHANISMS, False)):
        client = Client(POP3Factory(mail, clock=Clock(), mechanisms=mechanisms))
        client.received()
        names = b"X-TEST" if isOurs else b"PLAIN LOGIN"
        assert b"\r\nSASL " + names + b"\r\n" in client.say(b"CAPA")
        assert client.say(b"AUTH").split(b"\r\n")[1:-2] == names.split()
        theirs = b"AUTH PLAIN AGFsaWNlAHNlY3JldA==" if isOurs else b"AUTH X-TEST eA=="
        assert client.say(theirs) == b"-ERR No such mechanism.\r\n"
    conversation(mail, "S: +OK…\nC: AUTH\nS: -ERR Use TLS to log in.", mechanisms={})


@pytest.mark.parametrize(
    ("name", "says"),
    [("alice", "+OK Logged in."), ("nobody", "-ERR [AUTH] Wrong name or password.")],
)
def test_aMechanismThatProvesTheName(name: str, says: str) -> None:
    """
    There is no password: openMailbox opens the mailbox, or refuses.
    """

    async def openMailbox(info: Any, username: str) -> Any:
        return None if username == "nobody" else opening.mailbox()

    opening = StubProvider(
        [b"x"], openMailbox=openMailbox, authenticate=AssertionError("there is no password")
    )

    async def converse(session: Any, initial: bytes | None) -> Any:
        yield Proven((initial or b"").decode("ascii"))

    table: dict[str, Mechanism] = {}
    mechanism("X-TEST", needs=IMailboxStore, table=table)(converse)
    initial = b64encode(name.encode("ascii")).decode("ascii")
    script = f"S: +OK…\nC: AUTH X-TEST {initial}\nS: {says}"
    client = conversation(opening, script, mechanisms=table)
    isIn = says.startswith("+OK")
    assert client.protocol.session.info.userNameAtLogin == (name if isIn else None)
    if isIn:
        assert client.say(b"STAT") == b"+OK 1 3\r\n"
    # The mechanism is not offered if the provider opens no mailbox by name alone.
    script = "S: +OK…\nC: AUTH X-TEST eA==\nS: -ERR No such mechanism."
    conversation(provider(), script, mechanisms={**MECHANISMS, **table})


def test_emptyMessages() -> None:
    loggedIn(
        "C: LIST 1\nS: +OK 1 0\nC: STAT\nS: +OK 3 3\nC: LIST\nS: +OK…\nS: 1 0\nS: 2 0\nS: 3 3\nS: .\n"
        "C: DELE 1\nS: +OK…\nC: STAT\nS: +OK 2 3\nC: DELE 3\nS: +OK…\nC: STAT\nS: +OK 1 0\n"
        "C: LIST\nS: +OK…\nS: 2 0\nS: .",
        [b"", b"", b"a"],
    )


def test_longPasswords() -> None:
    """
    PASS and XLOG accept a password of 1024 octets.
    """
    password = "x" * 1024
    factory = POP3Factory(MemoryProvider({"alice": password}, [b"x"]), clock=Clock())
    for line in (f"USER alice\r\nPASS {password}", f"XLOG alice {password}"):
        client = Client(factory)
        client.send(line.encode("ascii") + b"\r\n")
        assert client.received().endswith(b"+OK Logged in.\r\n")
        client.vanish()


def test_noFullStopBeforeTheEnd() -> None:
    """
    The first line of a multi-line reply contains no full stop, because scanners read such a reply
    up to the first full stop.
    """
    factory = POP3Factory(MemoryProvider({"alice": "secret"}, [b"x"]), clock=Clock())
    client = Client(factory)
    client.received()
    for line in ("CAPA", "AUTH"):
        assert b"." not in client.say(line.encode()).split(b"\r\n")[0]
    client.logIn()
    for line in ("CAPA", "LIST", "UIDL", "RETR 1", "TOP 1 0"):
        assert b"." not in client.say(line.encode()).split(b"\r\n")[0]


def test_capabilityOfTwoCommandsIsListedOnce() -> None:
    """
    A capability of two commands is listed once.
    """

    async def run(session: Session) -> Any:
        return ok("Done.")

    client = Client(withCommand(run, capability=["UIDL"]))
    client.received()
    assert client.say(b"CAPA").split(b"\r\n").count(b"UIDL") == 1


def test_loginDelayIsAnnounced() -> None:
    client = Client(makeFactory(policy=Policy(loginDelay=7)))
    client.received()
    assert b"\r\nLOGIN-DELAY 7\r\n" in client.say(b"CAPA")
