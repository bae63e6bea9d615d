"""
What a client sees of each fault.
"""

from __future__ import annotations

import poplib
import re
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

import pytest

from pop3svc.testing import (
    CutOff,
    ExpiredCertificate,
    NoAnswer,
    NoFinalDot,
    POP3Server,
    Slow,
    TempFail,
    WrongNameCertificate,
    WrongSize,
)
from tests.support.running import PATIENCE
from tests.support.servers import MESSAGE, connected, loggedIn, served

# Seconds after which a client gives up.  A longer time would not help, because the answer for which
# the client waits does not come.
SOON = 0.5


def impatient(client: poplib.POP3) -> poplib.POP3:
    client.sock.settimeout(SOON)
    return client


def lastSaid(server: POP3Server) -> tuple[str, str]:
    return server.transcript[-1][-1]


def test_withoutFaults() -> None:
    """
    A server without faults works.
    """
    with served() as server:
        server.deliver("alice", MESSAGE)
        client = loggedIn(server)
        assert client.stat() == (1, len(MESSAGE))
        assert client.list()[1] == [b"1 %d" % len(MESSAGE)]
        assert b"\r\n".join(client.retr(1)[1]) + b"\r\n" == MESSAGE
        assert client.quit() == b"+OK Bye."


def test_slowSeconds() -> None:
    with served(Slow(0.3, command="NOOP")) as server:
        client = loggedIn(server)
        began = time.monotonic()
        assert client.noop().startswith(b"+OK")
        assert time.monotonic() - began >= 0.3


def test_slowerThanAClientWaits() -> None:
    with served(Slow(3600)) as server:
        client = impatient(connected(server))
        with pytest.raises(TimeoutError):
            client.user("alice")
        assert lastSaid(server) == ("C", "USER alice")


def test_trickle() -> None:
    with served(Slow(octetsPerSecond=4000, command="RETR")) as server:
        server.deliver("alice", MESSAGE)
        client = loggedIn(server)
        began = time.monotonic()
        assert b"\r\n".join(client.retr(1)[1]) + b"\r\n" == MESSAGE
        assert time.monotonic() - began >= len(MESSAGE) / 4000


@pytest.mark.parametrize("after", (0, 1, 100))
@pytest.mark.parametrize("way", ("plain", "stls", "tls"))
def test_cutOff(after: int, way: str) -> None:
    """
    Only the given number of octets of the reply arrives, and nothing is deleted.
    """
    with served(CutOff(after, command="RETR")) as server:
        server.deliver("alice", MESSAGE)
        sock = socket.create_connection((server.host, server.port), PATIENCE)
        if way == "tls":
            sock.close()
            sock = socket.create_connection((server.host, server.tlsPort), PATIENCE)
            sock = server.sslContext().wrap_socket(sock, server_hostname="localhost")
        assert sock.recv(1000).startswith(b"+OK")
        if way == "stls":
            sock.sendall(b"STLS\r\n")
            assert sock.recv(1000) == b"+OK Begin TLS negotiation.\r\n"
            sock = server.sslContext().wrap_socket(sock, server_hostname="localhost")
        with sock:
            for line in (b"USER alice", b"PASS secret", b"DELE 1", b"RSET"):
                sock.sendall(line + b"\r\n")
                assert sock.recv(1000).startswith(b"+OK")
            sock.sendall(b"RETR 1\r\n")
            got = b""
            while data := sock.recv(1000):
                got += data
        whole = b"+OK Message follows _\r\n" + MESSAGE
        assert got == whole[:after]
        assert list(server.messages("alice").values()) == [MESSAGE]


def test_cutOffIsSeen() -> None:
    with served(CutOff(40, command="RETR")) as server:
        server.deliver("alice", MESSAGE)
        with pytest.raises(poplib.error_proto, match="EOF"):
            loggedIn(server).retr(1)


def test_cutOffAfterTheCommand() -> None:
    """
    The command has been carried out when the connection closes.
    """
    with served(CutOff(3, command="QUIT")) as server:
        server.deliver("alice", MESSAGE)
        client = loggedIn(server)
        client.dele(1)
        # poplib removes the last octet, because it takes this octet for the line end.
        assert client.quit() == b"+O"
        assert server.messages("alice") == {}


def test_cutGreeting() -> None:
    with served(CutOff(3, command="greeting")) as server:
        with socket.create_connection((server.host, server.port), PATIENCE) as sock:
            assert sock.recv(100) == b"+OK"
            assert sock.recv(100) == b""


def test_shorterThanTheCut() -> None:
    with served(CutOff(1000)) as server:
        client = loggedIn(server)
        assert client.noop().startswith(b"+OK")
        assert client.quit().startswith(b"+OK")


@pytest.mark.parametrize(("by", "said"), ((7, len(MESSAGE) + 7), (-10, len(MESSAGE) - 10)))
def test_wrongSize(by: int, said: int) -> None:
    with served(WrongSize(by)) as server:
        server.deliver("alice", MESSAGE)
        server.deliver("alice", b"x\r\n")
        client = loggedIn(server)
        small = max(0, 3 + by)
        assert client.list()[1] == [b"1 %d" % said, b"2 %d" % small]
        assert client.list(1) == b"+OK 1 %d" % said
        assert client.stat() == (2, len(MESSAGE) + 3 + 2 * by)
        assert b"\r\n".join(client.retr(1)[1]) + b"\r\n" == MESSAGE


def test_wrongSizeOfStatOnly() -> None:
    with served(WrongSize(command="STAT")) as server:
        server.deliver("alice", MESSAGE)
        client = loggedIn(server)
        assert client.stat() == (1, len(MESSAGE) + 1)
        assert client.list()[1] == [b"1 %d" % len(MESSAGE)]


@pytest.mark.parametrize(
    ("verb", "ask"),
    (
        ("RETR", lambda client: client.retr(1)),
        ("TOP", lambda client: client.top(1, 2)),
        ("LIST", lambda client: client.list()),
        ("UIDL", lambda client: client.uidl()),
        ("CAPA", lambda client: client.capa()),
    ),
)
def test_noFinalDot(verb: str, ask: Callable[[Any], Any]) -> None:
    """
    The whole reply except the final dot arrives, and the connection still works.
    """
    with served(NoFinalDot(command=verb)) as server:
        server.deliver("alice", MESSAGE)
        client = impatient(loggedIn(server))
        with pytest.raises(TimeoutError):
            ask(client)
        said = lastSaid(server)
        assert said[0] == "S" and said[1] not in ("", ".")
        client.sock.sendall(b"NOOP\r\n")
        while lastSaid(server)[1] != "+OK Done.":
            pass


def test_noFinalDotOfOneLine() -> None:
    """
    A reply of one line has no final dot to omit.
    """
    with served(NoFinalDot()) as server:
        client = loggedIn(server)
        assert client.noop() == b"+OK Done."
        with pytest.raises(poplib.error_proto, match="-ERR"):
            client.retr(1)


def test_tempFail() -> None:
    """
    The nth of the DELE commands is refused and not carried out.
    """
    with served(TempFail(command="DELE", nth=2)) as server:
        for _ in range(3):
            server.deliver("alice", MESSAGE)
        client = loggedIn(server)
        client.dele(1)
        with pytest.raises(poplib.error_proto, match=re.escape("[SYS/TEMP]")):
            client.dele(2)
        client.dele(3)
        client.quit()
        assert list(server.messages("alice")) == ["message-2"]


def test_tempFailAtLogin() -> None:
    with served(TempFail(command="PASS", nth=1)) as server:
        client = connected(server)
        client.user("alice")
        with pytest.raises(poplib.error_proto, match=re.escape("[SYS/TEMP]")):
            client.pass_("secret")
        client.user("alice")
        client.pass_("secret")


def test_tempFailInsideAUTH() -> None:
    """
    The line that follows AUTH also counts as AUTH.
    """
    with served(TempFail(command="AUTH", nth=2)) as server:
        client = connected(server)
        assert client._shortcmd("AUTH PLAIN").startswith(b"+")
        with pytest.raises(poplib.error_proto, match=re.escape("[SYS/TEMP]")):
            client._shortcmd("AGFsaWNlAHNlY3JldA==")
        assert client._shortcmd("AUTH PLAIN AGFsaWNlAHNlY3JldA==").startswith(b"+OK")


def test_tempFailOfQUIT() -> None:
    with served(TempFail(command="QUIT")) as server:
        server.deliver("alice", MESSAGE)
        client = loggedIn(server)
        client.dele(1)
        with pytest.raises(poplib.error_proto, match=re.escape("[SYS/TEMP]")):
            client.quit()
        assert len(server.messages("alice")) == 1


def test_anyCommandCounts() -> None:
    """
    If a fault names no command, C{nth} counts the commands of all connections.
    """
    with served(TempFail(nth=3)) as server:
        connected(server).user("alice")
        client = connected(server)
        client.user("alice")
        with pytest.raises(poplib.error_proto, match=re.escape("[SYS/TEMP]")):
            client.user("alice")
        client.user("alice")


def test_noAnswer() -> None:
    """
    The command is not carried out, and its connection stays silent.  Other connections work.
    """
    with served(NoAnswer(command="DELE", nth=1)) as server:
        server.deliver("alice", MESSAGE)
        client = impatient(loggedIn(server))
        with pytest.raises(TimeoutError):
            client.dele(1)
        with pytest.raises(OSError):
            client.noop()
        client.close()
        assert lastSaid(server) == ("C", "DELE 1")
        while True:
            # The silent session may still hold the mailbox for a moment.
            try:
                other = loggedIn(server)
                break
            except poplib.error_proto as error:
                assert "[IN-USE]" in str(error)
        other.dele(1)
        other.quit()
        assert server.messages("alice") == {}


@pytest.mark.parametrize("tls", (False, True))
def test_noGreeting(tls: bool) -> None:
    with served(NoAnswer(command="greeting", nth=1)) as server:
        with pytest.raises(TimeoutError):
            if tls:
                poplib.POP3_SSL(
                    "localhost", server.tlsPort, timeout=SOON, context=server.sslContext()
                )
            else:
                poplib.POP3(server.host, server.port, SOON)
        assert server.transcript == [[]]
        loggedIn(server).quit()


def test_noHandshake() -> None:
    """
    Until the fault is removed, the server answers no TLS handshake, neither on the TLS port nor
    after STLS.
    """
    with served(NoAnswer(command="handshake")) as server:
        with pytest.raises(TimeoutError):
            poplib.POP3_SSL("localhost", server.tlsPort, timeout=SOON, context=server.sslContext())
        client = impatient(connected(server))
        with pytest.raises(TimeoutError):
            client.stls(server.sslContext())
        server.clearFaults()
        connected(server).stls(server.sslContext())


@pytest.mark.parametrize(
    ("fault", "complaint"),
    (
        (ExpiredCertificate(nth=1), "certificate has expired"),
        (WrongNameCertificate(nth=1), "certificate is not valid for"),
    ),
)
@pytest.mark.parametrize("way", ("stls", "tls"))
def test_certificates(fault: Any, complaint: str, way: str) -> None:
    with served(fault) as server:

        def secure() -> poplib.POP3:
            context = server.sslContext()
            if way == "tls":
                return poplib.POP3_SSL(
                    server.host, server.tlsPort, timeout=PATIENCE, context=context
                )
            client = connected(server)
            client.stls(context)
            return client

        with pytest.raises(ssl.SSLCertVerificationError, match=complaint):
            secure()
        assert secure().user("alice") == b"+OK Password required."


def test_faultsCombine() -> None:
    """
    Several faults apply together.
    """
    with served(Slow(0.2, command="RETR"), WrongSize(5), CutOff(30, command="RETR")) as server:
        server.deliver("alice", MESSAGE)
        client = loggedIn(server)
        assert client.stat() == (1, len(MESSAGE) + 5)
        began = time.monotonic()
        with pytest.raises(poplib.error_proto):
            client.retr(1)
        assert time.monotonic() - began >= 0.2


def test_atRunTime() -> None:
    """
    Faults can be set and removed while clients are connected.  C{nth} counts the commands after the
    fault was set.
    """
    with served() as server:
        client = loggedIn(server)
        client.noop()
        server.fault(TempFail(command="NOOP", nth=2))
        client.noop()
        with pytest.raises(poplib.error_proto):
            client.noop()
        server.fault(TempFail(command="NOOP"))
        with pytest.raises(poplib.error_proto):
            client.noop()
        server.clearFaults()
        client.noop()


def test_slowSTLS() -> None:
    """
    After a late answer to STLS, TLS starts correctly.
    """
    with served(Slow(0.2, command="STLS")) as server:
        client = connected(server)
        client.stls(server.sslContext())
        client.user("alice")
        client.pass_("secret")
        assert client.quit() == b"+OK Bye."


@pytest.mark.parametrize(
    ("make", "sentence"),
    (
        (
            lambda: TempFail(command="RERT"),
            "TempFail cannot happen at 'RERT', only at APOP, AUTH, ",
        ),
        (lambda: TempFail(command="greeting"), "TempFail cannot happen at 'greeting'"),
        (
            lambda: WrongSize(command="RETR"),
            "WrongSize cannot happen at 'RETR', only at LIST, STAT",
        ),
        (lambda: NoFinalDot(command="STAT"), "NoFinalDot cannot happen at 'STAT'"),
        (lambda: ExpiredCertificate(command="STLS"), "only at handshake"),
        (lambda: NoAnswer(nth=0), "nth is a number from 1, not 0"),
        (lambda: Slow(-1), "seconds are 0 or more"),
        (lambda: Slow(octetsPerSecond=0), "octetsPerSecond is more than 0"),
        (lambda: CutOff(-1), "0 or more"),
    ),
)
def test_neverStrikes(make: Callable[[], Any], sentence: str) -> None:
    """
    A fault with an invalid argument is refused, and the error gives the reason.
    """
    with pytest.raises(ValueError, match=re.escape(sentence)):
        make()


def test_noFault() -> None:
    with served() as server, pytest.raises(TypeError, match="'slow' is not a fault"):
        server.fault("slow")  # type: ignore[arg-type]
