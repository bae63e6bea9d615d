"""
Tests of L{POP3Server}, the server for tests of clients.
"""

from __future__ import annotations

import asyncio
import poplib
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pop3svc import Policy
from pop3svc.policy import EXTENSIONS
from pop3svc.protocol.commands import COMMANDS
from pop3svc.testing import POP3Server, Slow
from pop3svc.testing.reactorthread import ReactorThread
from tests.support.running import PATIENCE, Connection
from tests.support.servers import MESSAGE, connected, loggedIn, served


def capa(server: POP3Server) -> list[str]:
    """
    @return: the names of the capabilities that the server announces before login.
    """
    connection = Connection(server.port)
    connection.line()
    assert connection.say(b"CAPA").startswith(b"+OK")
    return [line.split()[0].decode() for line in connection.lines()]


def test_mailboxes() -> None:
    with POP3Server() as server:
        with pytest.raises(poplib.error_proto, match="AUTH"):
            loggedIn(server)
        server.addUser("alice", "secret")
        server.addUser("bob", "other")
        first = server.deliver("alice", b"Subject: 1\n\n")
        server.deliver("bob", b"Subject: 2\n\n")
        client = loggedIn(server)
        assert client.uidl()[1] == [b"1 " + first.encode()]
        second = server.deliver("alice", b"Subject: 3\n\n")
        assert client.stat()[0] == 1
        client.dele(1)
        assert list(server.messages("alice")) == [first, second]
        client.quit()
        assert server.messages("alice") == {second: b"Subject: 3\n\n"}
        assert list(server.messages("bob").values()) == [b"Subject: 2\n\n"]
        for call in (server.messages, lambda name: server.deliver(name, b"")):
            with pytest.raises(ValueError, match="there is no user 'carol'"):
                call("carol")
    assert list(server.messages("alice")) == [second]


def test_beforeItRuns() -> None:
    server = POP3Server()
    server.addUser("alice", "secret")
    server.deliver("alice", MESSAGE)
    with server:
        assert loggedIn(server).stat() == (1, len(MESSAGE))


def test_transcript() -> None:
    """
    The transcript has the lines that client and server have sent on each connection, unencrypted
    and with passwords.  Octets that are not UTF-8 are escaped.
    """
    with served() as server:
        server.deliver("alice", b"S\xc3\xbc\xff\n.\n\nx")
        client = loggedIn(server)
        client.retr(1)
        client.quit()
        other = connected(server)
        other.stls(server.sslContext())
        other.user("alice")
        first, second = server.transcript
        assert first == [
            ("S", "+OK pop3svc memory ready."),
            ("C", "USER alice"),
            ("S", "+OK Password required."),
            ("C", "PASS secret"),
            ("S", "+OK Logged in."),
            ("C", "RETR 1"),
            ("S", "+OK Message follows _"),
            ("S", "Sü\udcff"),
            ("S", ".."),
            ("S", ""),
            ("S", "x"),
            ("S", "."),
            ("C", "QUIT"),
            ("S", "+OK Bye."),
        ]
        assert ("C", "STLS") in second and second[-1] == ("S", "+OK Password required.")
        text = server.transcriptText()
    assert text.startswith("S: +OK pop3svc memory ready.\nC: USER alice\n")
    assert "S: Sü\\udcff\nS: ..\nS: \n" in text
    assert "S: +OK Bye.\n\nS: +OK pop3svc memory ready.\n" in text
    # The transcript can still be read after the server has stopped.
    assert server.transcriptText() == text and server.transcript == [first, second]


VERBS = sorted(set(COMMANDS) - {"APOP", "WAKE"})


@pytest.mark.parametrize("verb", VERBS)
def test_withoutACommand(verb: str) -> None:
    """
    A command that is switched off is neither announced nor accepted.  If
    C{without} is empty, the server knows the command.
    """
    for without in ((), {verb}):
        with served(without=without) as server:
            connection = Connection(server.port)
            connection.line()
            states = {each.value for each in COMMANDS[verb].states}
            if "AUTHORIZATION" not in states:
                connection.logIn(b"alice", b"secret")
            reply = connection.say(verb.encode())
            assert (b"Unknown command" in reply) == bool(without)
            if without and verb != "CAPA":
                assert verb not in capa(server)


@pytest.mark.parametrize("name", EXTENSIONS)
def test_withoutAnExtension(name: str) -> None:
    with served() as server:
        assert name in capa(server)
    with served(without={name}) as server:
        assert name not in capa(server)


def test_withoutSASL() -> None:
    with served(without={"SASL"}) as server:
        assert "SASL" not in capa(server)
        with pytest.raises(poplib.error_proto, match="Unknown command"):
            connected(server)._shortcmd("AUTH PLAIN")


def test_withoutUSER() -> None:
    with served(without={"USER"}) as server:
        client = connected(server)
        for line in ("USER alice", "PASS secret"):
            with pytest.raises(poplib.error_proto, match="Unknown command"):
                client._shortcmd(line)


def test_withoutResponseCodes() -> None:
    for without, said in (
        ((), b"-ERR [AUTH] Wrong name or password."),
        ({"AUTH-RESP-CODE"}, b"-ERR Wrong name or password."),
        ({"RESP-CODES"}, b"-ERR Wrong name or password."),
    ):
        with served(without=without) as server:
            assert not set(without) & set(capa(server))
            client = connected(server)
            client.user("alice")
            with pytest.raises(poplib.error_proto) as caught:
                client.pass_("wrong")
            assert caught.value.args[0] == said
            client.user("alice")
            client.pass_("secret")
            slept = client._shortcmd("CORE")
            assert slept == (
                b"+OK Refreshed." if "RESP-CODES" in without else b"+OK [ACTIVITY/NONE] Refreshed."
            )


def test_withoutPipelining() -> None:
    """
    Without PIPELINING the server answers commands that come one by one.  If two commands come at
    once, it refuses both and closes the connection.
    """
    with served(without={"PIPELINING"}) as server:
        assert "PIPELINING" not in capa(server)
        server.deliver("alice", MESSAGE)
        client = loggedIn(server)
        client.retr(1)
        client.quit()
        connection = Connection(server.port)
        connection.line()
        connection.socket.sendall(b"USER a\r\nUSER b\r\n")
        assert connection.line() == b"-ERR This server takes one command at a time.\r\n"
        assert connection.line() == b""
    with served() as server:
        connection = Connection(server.port)
        connection.line()
        connection.socket.sendall(b"USER a\r\nUSER b\r\n")
        assert [connection.line(), connection.line()] == [b"+OK Password required.\r\n"] * 2


def test_withoutWhat() -> None:
    with pytest.raises(ValueError, match="without UIDLS: known are AUTH, AUTH-RESP-CODE, "):
        POP3Server(without={"UIDLS"})


def test_policy() -> None:
    with served(policy=Policy(cleartextLogin="never")) as server:
        with pytest.raises(poplib.error_proto, match="Use TLS"):
            connected(server).user("alice")
        client = connected(server)
        client.stls(server.sslContext())
        client.user("alice")


def test_certificate() -> None:
    """
    A client that trusts the server's authority accepts the certificate for the names of this
    machine, but for no other name.  A client that does not trust the authority refuses the
    certificate.
    """
    with served() as server:
        for name in ("localhost", "127.0.0.1"):
            sock = socket.create_connection((server.host, server.tlsPort), PATIENCE)
            with server.sslContext().wrap_socket(sock, server_hostname=name) as secure:
                assert secure.recv(100).startswith(b"+OK")
        sock = socket.create_connection((server.host, server.tlsPort), PATIENCE)
        with sock, pytest.raises(ssl.SSLCertVerificationError):
            server.sslContext().wrap_socket(sock, server_hostname="pop.example.org")
        sock = socket.create_connection((server.host, server.tlsPort), PATIENCE)
        with sock, pytest.raises(ssl.SSLCertVerificationError):
            ssl.create_default_context().wrap_socket(sock, server_hostname="localhost")
        assert Path(server.caFile).read_text().startswith("-----BEGIN CERTIFICATE-----")
        assert "PRIVATE" not in Path(server.caFile).read_text()
    assert not Path(server.caFile).exists()


def test_stopCutsEverything() -> None:
    """
    After stop() there is no connection, port, timer or thread left.
    """
    with served(Slow(3600, command="USER")) as server:
        clients = [connected(server), connected(server)]
        clients[0].sock.sendall(b"USER a\r\n")
        while server.transcript[0][-1] != ("C", "USER a"):
            pass
    from twisted.internet import reactor

    for client in clients:
        with pytest.raises((ConnectionError, poplib.error_proto)):
            client.user("alice")
    with pytest.raises(ConnectionRefusedError):
        connected(server)
    assert reactor.getDelayedCalls() == []
    assert not [each for each in threading.enumerate() if each.name == "pop3svc-reactor"]


def test_twoAtOnce() -> None:
    with served() as first, served() as second:
        first.deliver("alice", MESSAGE)
        assert loggedIn(first).stat()[0] == 1
        assert loggedIn(second).stat()[0] == 0
    with served() as third:
        assert loggedIn(third).stat()[0] == 0


def test_withAsyncio() -> None:
    """
    An asyncio client can connect while its own loop runs.
    """

    async def main() -> bytes:
        with served() as server:
            reader, writer = await asyncio.open_connection(server.host, server.port)
            greeting = await asyncio.wait_for(reader.readline(), PATIENCE)
            writer.close()
            await writer.wait_closed()
            return greeting

    assert asyncio.run(main()) == b"+OK pop3svc memory ready.\r\n"


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE
    )


def test_outsideOfPytest() -> None:
    """
    A script ends even if it has not stopped the server.
    """
    ran = run(
        "import poplib\n"
        "from pop3svc.testing import POP3Server\n"
        "server = POP3Server({'a': 'b'}).start()\n"
        "server.deliver('a', b'x')\n"
        "client = poplib.POP3(server.host, server.port, 30)\n"
        "client.user('a'), client.pass_('b')\n"
        "print(client.stat())\n"
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "(1, 3)\n", "")


def test_reactorRunsAlready() -> None:
    """
    If the reactor already runs, or cannot run again, the error gives the reason in one sentence.
    """
    ran = run(
        "from twisted.internet import reactor\n"
        "from pop3svc.testing import POP3Server\n"
        "def go():\n"
        "    try:\n"
        "        POP3Server().start()\n"
        "    except RuntimeError as error:\n"
        "        print(error)\n"
        "    reactor.stop()\n"
        "reactor.callWhenRunning(go)\n"
        "reactor.run()\n"
        "try:\n"
        "    POP3Server().start()\n"
        "except RuntimeError as error:\n"
        "    print(error)\n"
    )
    assert ran.stderr == ""
    assert ran.stdout == (
        "the Twisted reactor already runs in this program, and POP3Server has to run it in a "
        "thread; use the reactor to serve a POP3Factory instead\n"
        "the Twisted reactor does not run: ReactorNotRestartable\n"
    )


def test_reactorInTheMainThreadAtOtherTimes() -> None:
    """
    The reactor can run in the main thread before and after a server, as under trial.
    """
    ran = run(
        "from twisted.internet import reactor\n"
        "from pop3svc.testing import POP3Server\n"
        "for _ in range(2):\n"
        "    reactor.callWhenRunning(reactor.crash)\n"
        "    reactor.run()\n"
        "    with POP3Server() as server:\n"
        "        print(server.messages.__name__)\n"
    )
    assert (ran.stdout, ran.stderr) == ("messages\nmessages\n", "")


def test_reactorThread() -> None:
    thread = ReactorThread()
    thread.hold()
    try:
        with pytest.raises(RuntimeError, match="must not wait for itself"):
            thread.call(thread.call, print)
        with pytest.raises(ZeroDivisionError):
            thread.call(lambda: 1 / 0)
    finally:
        thread.release()
