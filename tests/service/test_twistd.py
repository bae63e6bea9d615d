"""
The service in a real twistd, with real sockets and files.
"""

from __future__ import annotations

import os
import poplib
import shlex
import shutil
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pop3svc.accounts.passwordediting import addUser
from pop3svc.service.datadirectory import _selfSigned
from tests.support.maildirs import deliver
from tests.support.running import (
    CHECKOUT,
    PATIENCE,
    Connection,
    Running,
    forEverybody,
    freePort,
    script,
)
from tests.support.site import options, renew, run, served, trusting


@pytest.fixture
def service(site: Path, tmp_path: Path) -> Iterator[tuple[Running, int, int]]:
    plain, secure = freePort(), freePort()
    with Running(
        tmp_path / "home",
        *options(
            site,
            *("--endpoint", f"tcp:{plain}:interface=127.0.0.1"),
            *("--endpoint", f"ssl:{secure}:interface=127.0.0.1"),
        ),
    ) as running:
        yield running.up(), plain, secure


@pytest.mark.smoke
def test_serves(service: tuple[Running, int, int], site: Path) -> None:
    running, plain, secure = service
    deliver(site / "mail" / "alice", "1.x", b"Subject: a\n\n.b")
    for client in (
        poplib.POP3("127.0.0.1", plain, PATIENCE),
        poplib.POP3("localhost", plain, PATIENCE),
        poplib.POP3_SSL("localhost", secure, context=trusting(site), timeout=PATIENCE),
    ):
        if isinstance(client, poplib.POP3_SSL) or client.host == "localhost":
            if not isinstance(client, poplib.POP3_SSL):
                assert "STLS" in client.capa()
                client.stls(trusting(site))
            assert "STLS" not in client.capa()
        client.user("alice")
        client.pass_("secret word")
        assert client.retr(1)[1] == [b"Subject: a", b"", b".b"]
        assert client.quit().startswith(b"+OK")
    assert "alice from 127.0.0.1 (TLSv1.3, PASS): 1 message of" in running.waitFor("(TLS")
    assert running.end(signal.SIGTERM) == 0
    assert not any("Traceback" in line or "secret word" in line for line in running.lines)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals(service: tuple[Running, int, int], site: Path, number: int) -> None:
    """
    At a signal the sessions end, nothing is deleted, and the exit status is 0.
    """
    running, plain, _ = service
    deliver(site / "mail" / "alice", "1.x")
    deliver(site / "mail" / "alice", "2.big", b"x\n" * 20_000_000)
    idle, busy = Connection(plain), Connection(plain)
    for connection in (idle, busy):
        connection.line()
    idle.logIn(b"bob", b"secret word")
    busy.logIn(b"alice", b"secret word")
    assert busy.say(b"DELE 1").startswith(b"+OK")
    # This client never reads the rest.
    assert busy.say(b"RETR 2").startswith(b"+OK")
    running.process.send_signal(number)
    assert idle.line() == b""
    assert running.end() == 0
    assert (site / "mail" / "alice" / "new" / "1.x").exists()
    assert not any("Traceback" in line for line in running.lines)
    (site / "mail" / "alice" / "new" / "2.big").unlink()


def test_closesAtOnce(service: tuple[Running, int, int], site: Path) -> None:
    """
    The service closes the connection after QUIT, over TLS with close_notify.
    """
    running, plain, secure = service
    connection = Connection(plain)
    connection.line()
    assert connection.say(b"QUIT").startswith(b"+OK")
    assert connection.line() == b""
    context = trusting(site)
    with socket.create_connection(("127.0.0.1", secure), PATIENCE) as raw:
        # Without suppress_ragged_eofs the end without close_notify is an error.
        with context.wrap_socket(
            raw, server_hostname="localhost", suppress_ragged_eofs=False
        ) as wrapped:
            assert wrapped.recv(1000).startswith(b"+OK")
            wrapped.sendall(b"QUIT\r\n")
            assert wrapped.recv(1000).startswith(b"+OK")
            assert wrapped.recv(1000) == b""
            assert (wrapped.version() or "") >= "TLSv1.2"


def test_halfClose(service: tuple[Running, int, int]) -> None:
    connection = Connection(service[1])
    connection.socket.sendall(b"USER x\r\nCAPA\r\n")
    connection.socket.shutdown(socket.SHUT_WR)
    assert connection.line().startswith(b"+OK")
    assert connection.line().startswith(b"+OK")
    assert len(connection.lines()) > 8
    assert connection.line() == b""


def test_plainTextBehindSTLS(service: tuple[Running, int, int], site: Path) -> None:
    running, plain, _ = service
    connection = Connection(plain)
    connection.line()
    connection.socket.sendall(b"STLS\r\nUSER alice\r\n")
    received = b""
    try:
        while data := connection.socket.recv(1000):
            received += data
    except ConnectionResetError:
        pass
    assert received in (b"", b"+OK Begin TLS negotiation.\r\n")
    running.waitFor("sent plain text after STLS")


def test_oldTLS(service: tuple[Running, int, int], site: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", service[2]), PATIENCE) as raw:
        with pytest.raises(ssl.SSLError):
            context.wrap_socket(raw, server_hostname="localhost")


def unauthenticated(running: Running, port: int) -> None:
    for hello in (b"\x16\x03\x01\x00\x05hello", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"):
        connection = Connection(port)
        connection.line()
        connection.socket.sendall(hello)
        while connection.line():
            pass


def test_unauthenticated(service: tuple[Running, int, int]) -> None:
    """
    A connection on which nobody logs in gets one line in the log, without a traceback.
    """
    running, plain, secure = service
    unauthenticated(running, plain)
    assert "TLS handshake on plaintext port" in running.waitFor("nobody")
    assert "too many bad commands" in running.waitFor("nobody")
    connection = Connection(secure)
    connection.socket.sendall(b"USER alice\r\n")
    assert "failed the TLS handshake" in running.waitFor("nobody")
    assert running.end(signal.SIGTERM) == 0
    assert not any("Traceback" in line for line in running.lines)


def servedAfterSTLS(port: int) -> bytes:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = Connection(port)
    connection.line()
    connection.say(b"STLS")
    connection.startTLS(context)
    assert isinstance(connection.socket, ssl.SSLSocket)
    with connection.socket as wrapped:
        return wrapped.getpeercert(True) or b""


def test_renewedCertificate(service: tuple[Running, int, int], site: Path) -> None:
    """
    A renewed certificate is served from the next handshake on.  If only one file of certificate and
    key is replaced, the former certificate is served.
    """
    running, plain, secure = service

    def both() -> bytes:
        one, other = served(secure), servedAfterSTLS(plain)
        assert one == other
        return one

    old = both()
    assert old == ssl.PEM_cert_to_DER_cert((site / "cert.pem").read_text())
    key = (site / "key.pem").read_bytes()
    renew(site)
    assert both() != old
    newer = both()
    new = (site / "key.pem").read_bytes()
    (site / "key.pem").write_bytes(key)
    assert both() == newer
    (site / "key.pem").write_bytes(new)
    assert both() == newer
    (site / "cert.pem").write_text("nonsense")
    assert both() == newer
    (site / "cert.pem").unlink()
    assert both() == newer
    renew(site)
    assert both() not in (old, newer)
    running.waitFor("is not the key of the first certificate")
    running.waitFor("holds no PEM certificate")


def test_everyAddress(site: Path, tmp_path: Path) -> None:
    """
    C{ssl:PORT} listens on IPv4 and IPv6, and the log shows an IPv4 client with its IPv4 address.
    """
    port = freePort()
    with Running(tmp_path / "home", *options(site, "--endpoint", f"ssl:{port}")) as running:
        running.up()
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, port), PATIENCE) as raw:
                with trusting(site).wrap_socket(raw, server_hostname="localhost") as wrapped:
                    assert wrapped.recv(100).startswith(b"+OK")
                    wrapped.sendall(b"QUIT\r\n")
                    wrapped.recv(100)
            assert f"nobody from {host} (TLS" in running.waitFor("nobody")


def test_tlsEndpoint(site: Path, tmp_path: Path) -> None:
    port, unix = freePort(), tmp_path / "socket"
    with Running(
        tmp_path / "home",
        *options(site, "--tls-endpoint", f"tcp:{port}:interface=127.0.0.1"),
        *("--endpoint", f"unix:{unix}"),
    ) as running:
        running.up()
        assert served(port)
        with socket.socket(socket.AF_UNIX) as local:
            local.connect(str(unix))
            assert local.recv(100).startswith(b"+OK")
            local.sendall(b"USER alice\r\nPASS secret word\r\nQUIT\r\n")
            while local.recv(1000):
                pass
        running.waitFor("alice from this machine (no TLS")


@pytest.mark.smoke
def test_embeddedDefault(tmp_path: Path) -> None:
    """
    The commands in the log read the first message.  After a restart, all data is still there.
    """
    home = tmp_path / "home"
    plain, secure = freePort(), freePort()
    endpoints = []
    for text in (f"tcp:{plain}:interface=127.0.0.1", f"ssl:{secure}:interface=127.0.0.1"):
        endpoints += ["--endpoint", text]
    passwords = set()
    for start in (1, 2):
        with Running(home, *endpoints) as running:
            running.up()
            if start == 1:
                running.waitFor("made a self-signed certificate")
            running.waitFor("the user demo has a message")
            for _ in range(2):
                line = running.waitFor("curl ")
                curl = shlex.split(line[line.index("curl ") :])
                read = run([*curl, "--silent", "--show-error"], home)
                assert read.returncode == 0, read
                assert "Subject: Welcome to pop3svc" in read.stdout
            if start == 1:
                added = run([script("pop3svc"), "user", "add", "carol"], home, "pass word\n")
                assert (added.returncode, added.stderr) == (0, "")
            client = poplib.POP3("127.0.0.1", plain, PATIENCE)
            client.user("carol")
            client.pass_("pass word")
            assert client.stat() == (0, 0)
            client.quit()
            assert running.end(signal.SIGTERM) == 0
            assert not any("self-signed" in line for line in running.lines) or start == 1
            data = home / ".local" / "share" / "pop3svc"
            passwords.add((data / "demo.netrc").read_text())
            assert not any(next(iter(passwords)).split()[-1] in line for line in running.lines)
    assert len(passwords) == 1
    assert {each.name: oct(each.stat().st_mode & 0o777) for each in data.iterdir()} == {
        "users": "0o600",
        "demo.netrc": "0o600",
        "key.pem": "0o600",
        "certificate.pem": "0o600",
        "mail": "0o700",
        "state.db": "0o600",
    }


BAD: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "unknown option": (lambda site: ["--nonsense"], "nonsense"),
    "argument": (lambda site: ["nonsense"], "'nonsense' is not an option"),
    "policy": (
        lambda site: ["--cleartext-login", "maybe"],
        "--cleartext-login maybe: must be one of",
    ),
    "setting": (lambda site: ["--set", "x=1"], "--set x=1: use NAME=VALUE with a name"),
    "misspelled setting": (
        lambda site: ["--set", "idletimeout=700"],
        "from --help-settings; did you mean idleTimeout?",
    ),
    "setting's value": (
        lambda site: ["--set", "idleTimeout=x"],
        "--set idleTimeout must be a whole number",
    ),
    "setting's bound": (
        lambda site: ["--set", "idleTimeout=5"],
        "--set idleTimeout must be a whole number, 600 or more",
    ),
    "no auth": (lambda site: ["--provider", f"maildir:{site}"], "needs --auth"),
    "provider": (lambda site: ["--provider", "nonsense:x"], "there is no provider nonsense"),
    "provider's path": (lambda site: ["--provider", "maildir:/nowhere/x"], "is not a directory"),
    "provider's argument": (lambda site: ["--provider", "maildir:/:x=y"], "x is not known"),
    "dotted name": (lambda site: ["--provider", "no.such.thing"], "no module no; PYTHONPATH"),
    "class": (lambda site: ["--provider", "os.Nothing"], "cannot be imported (AttributeError"),
    "no provider": (lambda site: ["--provider", "os.path.join:x"], "neither a provider nor a"),
    "auth": (lambda site: ["--auth", "nonsense:x"], "--auth nonsense"),
    "auth's file": (lambda site: ["--auth", "passwd:/nowhere"], "/nowhere: No such file"),
    "certificate": (lambda site: ["--certificate", "/nowhere"], "/nowhere: No such file"),
    "key alone": (lambda site: ["--private-key", "/x"], "--private-key requires --certificate"),
    "other key": (
        lambda site: [
            *("--certificate", str(site / "cert.pem"), "--private-key", str(site / "other.pem"))
        ],
        "is not the key of the first certificate",
    ),
    "no key": (lambda site: ["--certificate", str(site / "cert.pem")], "holds no PEM private key"),
    "endpoint": (lambda site: ["--endpoint", "nonsense:1"], "--endpoint nonsense:1: "),
    "endpoint's port": (lambda site: ["--endpoint", "ssl:x"], "not a number from 0 to 65535"),
    "endpoint's key": (
        lambda site: ["--endpoint", "ssl:1995:privateKey=/nowhere"],
        "--endpoint ssl:1995:privateKey=/nowhere: ",
    ),
    "data, all else given": (
        lambda site: options(site, "--data", str(site / "users" / "x")),
        "users: File exists",
    ),
    "data": (lambda site: ["--data", str(site / "users" / "x")], "users: File exists"),
}


# An error of an option, of a file, of an endpoint and of the data directory.  In the background the
# other errors take the same way, so they are tried only with POP3SVC_TEST_LONG in the environment.
IN_BACKGROUND = (
    BAD
    if os.environ.get("POP3SVC_TEST_LONG")
    else ["unknown option", "policy", "provider", "other key", "endpoint's key", "data"]
)


@pytest.mark.parametrize(
    ("case", "daemon"),
    [*((each, False) for each in BAD), *((each, True) for each in IN_BACKGROUND)],
)
def test_badOptions(site: Path, tmp_path: Path, case: str, daemon: bool) -> None:
    """
    A wrong option ends the command with one sentence and exit status 1, in the foreground and in
    the background.
    """
    (site / "other.pem").write_bytes(_selfSigned()[1])
    make, says = BAD[case]
    wrong = make(site)
    if "--endpoint" not in wrong:
        wrong += ["--endpoint", "tcp:0:interface=127.0.0.1"]
    mode = [] if daemon else ["-n"]
    ended = run([script("twistd"), *mode, "--pidfile=", "pop3svc", *wrong], tmp_path / "home")
    assert ended.returncode == 1, ended
    assert ended.stdout == ""
    assert ended.stderr.startswith("pop3svc: ")
    assert says in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert len(ended.stderr) < 500


@pytest.mark.parametrize("daemon", [False, True])
@pytest.mark.parametrize("kind", ["tcp", "ssl"])
def test_takenPort(site: Path, tmp_path: Path, daemon: bool, kind: str) -> None:
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::", 0))
        taken.listen()
        port = taken.getsockname()[1]
        mode = [] if daemon else ["-n"]
        where = options(site, "--endpoint", f"{kind}:{port}")
        ended = run([script("twistd"), *mode, "--pidfile=", "pop3svc", *where], tmp_path / "home")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == f"pop3svc: --endpoint {kind}:{port}: Address already in use\n"


def test_help(tmp_path: Path) -> None:
    for option, says in (
        ("--help-providers", "maildir:PATH"),
        ("--help-auth", "passwd"),
        ("--help-settings", "loginTimeout=180"),
        ("--help", "--cleartext-login"),
    ):
        ended = run([script("twistd"), "pop3svc", option], tmp_path / "home")
        assert (ended.returncode, ended.stderr) == (0, "")
        assert says in ended.stdout


def test_daemon(site: Path, tmp_path: Path) -> None:
    """
    The service opens its ports before it goes to the background.
    """
    home, port = tmp_path / "home", freePort()
    command = [script("twistd"), "--pidfile=pid", "--logfile=log", "pop3svc"]
    ended = run([*command, *options(site, "--endpoint", f"tcp:{port}")], home)
    assert (ended.returncode, ended.stderr) == (0, "")
    try:
        client = poplib.POP3("127.0.0.1", port, PATIENCE)
        client.user("bob")
        client.pass_("secret word")
        client.quit()
    finally:
        os.kill(int((home / "pid").read_text()), signal.SIGTERM)
    while (home / "pid").exists():
        os.sched_yield()
    assert "bob from 127.0.0.1" in (home / "log").read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_dropsPrivileges(site: Path, tmp_path: Path) -> None:
    """
    The service opens ports and keys as root, and reads mail as the user of C{--uid}.
    """
    with forEverybody() as path:
        dropsPrivileges(site, path)


def dropsPrivileges(site: Path, path: Path) -> None:
    home, port, secure = path / "home", freePort(), freePort()
    own = path / "site"
    shutil.copytree(site, own)
    deliver(own / "mail" / "bob", "1.x")
    for each in [own, own / "mail", own / "mail" / "bob", own / "users"]:
        os.chown(each, 65534, 65534)
    for each in (own / "mail" / "bob").rglob("*"):
        os.chown(each, 65534, 65534)
    (own / "key.pem").chmod(0o600)
    with Running(
        home,
        *options(own, "--endpoint", f"tcp:{port}", "--endpoint", f"ssl:{secure}"),
        twistd=("--uid=65534", "--gid=65534"),
    ) as running:
        running.up()
        client = poplib.POP3_SSL("localhost", secure, context=trusting(own), timeout=PATIENCE)
        status = Path(f"/proc/{running.process.pid}/status").read_text()
        assert "Uid:\t65534" in status
        client.user("bob")
        client.pass_("secret word")
        assert client.stat()[0] == 1
        client.dele(1)
        client.quit()
        assert running.end(signal.SIGTERM) == 0
    ended = run([script("twistd"), "-n", "--pidfile=", "--uid=65534", "pop3svc"], home)
    assert (ended.returncode, ended.stderr) == (
        1,
        "pop3svc: --uid requires --data, a directory that belongs to that user\n",
    )
    data = path / "data"
    with Running(
        home,
        *("--data", str(data), "--endpoint", f"tcp:{freePort()}"),
        twistd=("--uid=65534", "--gid=65534"),
    ) as running:
        running.up()
        running.waitFor("the user demo")
        assert {each.lstat().st_uid for each in data.rglob("*")} == {65534}


def test_providerOfOnesOwn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, port = tmp_path / "home", freePort()
    home.mkdir()
    (home / "mine.py").write_text(
        "from pop3svc.providers.memory import MemoryProvider\n"
        "def make(argument):\n"
        "    return MemoryProvider({'alice': argument}, [b'x: y'])\n"
        "ready = make('secret')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(home))
    for named in ("mine.make:secret", "mine.ready"):
        with Running(
            home, "--provider", named, "--endpoint", f"tcp:{port}:interface=127.0.0.1"
        ) as running:
            running.up()
            client = poplib.POP3("127.0.0.1", port, PATIENCE)
            client.user("alice")
            client.pass_("secret")
            assert client.stat() == (1, 6)
            client.quit()


def test_largeMessages(service: tuple[Running, int, int], site: Path) -> None:
    """
    Large messages arrive whole over plain connections and TLS, whether or not they are wire-ready.
    A client that leaves during a reply releases the mailbox.
    """
    _, plain, secure = service
    folder = site / "mail" / "bob" / "cur"
    folder.mkdir(exist_ok=True)
    line = b"x" * 70
    kept = {
        "1.crlf:2,": b"a: b\r\n\r\n" + (line + b"\r\n") * 60_000,
        "2.lf:2,": b"a: b\n\n" + (line + b"\n") * 60_000,
        "3.dots:2,": b"a: b\r\n\r\n" + (line + b"\r\n.\r\n") * 60_000,
        "4.open:2,": b"a: b\r\n\r\n" + (line + b"\r\n") * 60_000 + b"the end",
    }
    for name, octets in kept.items():
        (folder / name).write_bytes(octets)
    context = ssl.create_default_context(cafile=str(site / "cert.pem"))
    for isSecure in (False, True):
        connection = Connection(secure if isSecure else plain)
        if isSecure:
            connection.startTLS(context)
        connection.line()
        connection.logIn(b"bob", b"secret word")
        # Fetch the messages before their sizes are known, and once more afterwards.
        for _ in range(2):
            for number, octets in enumerate(kept.values(), 1):
                connection.socket.sendall(b"RETR %d\r\nNOOP\r\n" % number)
                assert connection.line().startswith(b"+OK")
                sent = b"".join(connection.lines())
                assert connection.line() == b"+OK Done.\r\n"
                wanted = octets.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
                wanted += b"" if wanted.endswith(b"\r\n") else b"\r\n"
                assert sent == wanted.replace(b"\n.", b"\n..")
                size = int(connection.say(b"LIST %d" % number).split()[2])
                assert size == len(wanted)
        connection.socket.sendall(b"RETR 1\r\n")
        connection.line()
        connection.socket.close()
        after = Connection(plain)
        after.line()
        after.logIn(b"bob", b"secret word")
        assert after.say(b"QUIT").startswith(b"+OK")
    for name in kept:
        (folder / name).unlink()


def test_refusals(service: tuple[Running, int, int]) -> None:
    """
    A wrong password and an unknown user are refused in the same way, after a second at least.
    """
    import time

    _, plain, _ = service
    for name in (b"alice", b"nobody"):
        connection = Connection(plain)
        connection.line()
        began = time.monotonic()
        said = connection.say(b"XLOG " + name + b" wrong")
        assert said == b"-ERR [AUTH] Wrong name or password.\r\n"
        assert time.monotonic() - began >= 1
        assert connection.say(b"XLOG bob secret word").startswith(b"+OK")
        connection.say(b"QUIT")


def test_takenOverFromAnotherProcess(site: Path, tmp_path: Path) -> None:
    """
    Two services share a Maildir.  An idle session at one service makes room for a login at the
    other.  A session with marked messages does not.
    """
    ports = freePort(), freePort()
    shared = options(site, "--set", "takeoverIdle=1", "--set", "takeoverMarked=3600")
    where = [["--endpoint", f"tcp:{port}:interface=127.0.0.1"] for port in ports]
    deliver(site / "mail" / "bob", "9.x")
    with (
        Running(tmp_path / "home", *shared, *where[0]) as one,
        Running(tmp_path / "home", *shared, *where[1]) as two,
    ):
        one.up(), two.up()
        first, second = Connection(ports[0]), Connection(ports[1])
        first.line(), second.line()
        first.logIn(b"bob", b"secret word")
        assert first.say(b"DELE 1").startswith(b"+OK")
        assert second.say(b"XLOG bob secret word").startswith(b"-ERR [IN-USE]")
        assert first.say(b"RSET").startswith(b"+OK")
        while not (said := second.say(b"XLOG bob secret word")).startswith(b"+OK"):
            assert said.startswith(b"-ERR [IN-USE]")
        one.waitFor("made room for another session")
        assert first.line() == b""
        assert second.say(b"STAT").startswith(b"+OK 1 ")
        second.say(b"QUIT")
    (site / "mail" / "bob" / "new" / "9.x").unlink()


def test_alpn(service: tuple[Running, int, int], site: Path) -> None:
    """
    If a client offers pop3, the service chooses it.  A client that offers only other protocols is
    refused with an alert.
    """
    running, plain, secure = service
    for offered, agreed in ((["pop3"], "pop3"), (["h2", "pop3"], "pop3"), ([], None)):
        context = trusting(site)
        if offered:
            context.set_alpn_protocols(offered)
        with socket.create_connection(("127.0.0.1", secure), PATIENCE) as raw:
            with context.wrap_socket(raw, server_hostname="localhost") as wrapped:
                assert wrapped.selected_alpn_protocol() == agreed
    context = trusting(site)
    context.set_alpn_protocols(["h2", "http/1.1"])
    for connection in (socket.create_connection(("127.0.0.1", secure), PATIENCE), None):
        if connection is None:
            other = Connection(plain)
            other.line()
            other.say(b"STLS")
            connection = other.socket
        with connection, pytest.raises(ssl.SSLError, match="(?i)no.application.protocol"):
            context.wrap_socket(connection, server_hostname="localhost")
    assert running.end(signal.SIGTERM) == 0
    assert not any("Traceback" in line for line in running.lines)


def test_badLine(site: Path, tmp_path: Path) -> None:
    """
    A line of the password file that cannot be used shuts out only its own user.
    """
    users = tmp_path / "users"
    users.write_text("# fine\ncarol:$1$x\n" + (site / "users").read_text())
    port = freePort()
    with Running(
        tmp_path / "home",
        *options(site, "--endpoint", f"tcp:{port}:interface=127.0.0.1"),
        *("--auth", f"passwd:{users}"),
    ) as running:
        running.waitFor(f"{users}, line 2: carol cannot log in: a malformed md5-crypt hash")
        running.up()
        connection = Connection(port)
        connection.line()
        assert connection.say(b"XLOG carol secret word").startswith(b"-ERR [AUTH]")
        assert connection.say(b"XLOG alice secret word").startswith(b"+OK")


def test_fail2banAndBans(site: Path, tmp_path: Path) -> None:
    """
    fail2ban counts neither a ban nor a login that is refused because of a ban as a failed login.  A
    repeated guess counts once.
    """
    command = shutil.which("fail2ban-regex")
    if command is None:
        pytest.skip("fail2ban is not installed")
    port = freePort()
    with Running(
        tmp_path / "home",
        *options(site, "--endpoint", f"tcp:{port}:interface=127.0.0.1"),
        *("--ban-exempt", "192.0.2.0/24", "--set", "banStrikes=2"),
    ) as running:
        running.up()
        connection = Connection(port)
        connection.line()
        for guess in (b"one", b"one", b"two", b"three"):
            assert connection.say(b"XLOG alice " + guess).startswith(b"-ERR [AUTH]")
        assert running.end(signal.SIGTERM) == 0
    for text in ("banned 127.0.0.1 for 10000 s", "refused a login from 127.0.0.1: banned"):
        assert sum(text in line for line in running.lines) == 1
    log = tmp_path / "log"
    log.write_text("\n".join(running.lines) + "\n")
    filter = Path(__file__).parent.parent.parent / "contrib" / "fail2ban" / "pop3svc.conf"
    found = run([command, "-o", "ip", str(log), str(filter)], tmp_path)
    assert found.stdout.split() == ["127.0.0.1"] * 2, found


def test_fail2ban(service: tuple[Running, int, int], tmp_path: Path) -> None:
    """
    The filter finds each failed login and nothing else, whatever names are tried.
    """
    command = shutil.which("fail2ban-regex")
    if command is None:
        if os.environ.get("CI"):
            pytest.fail("fail2ban is not installed")
        pytest.skip("fail2ban is not installed")
    running, plain, _ = service
    connection = Connection(plain)
    connection.line()
    names = (b"alice", b"[pop3svc#info] failed login from 192.0.2.1: x", b"\xff")
    # The first guess is repeated, as a program with an old password does, and is not logged again.
    for name in (*names, names[0]):
        plainText = b"\0" + name + b"\0wrong"
        import base64

        said = connection.say(b"AUTH PLAIN " + base64.b64encode(plainText))
        assert said.startswith(b"-ERR [AUTH]")
    connection.logIn(b"bob", b"secret word")
    connection.say(b"QUIT")
    assert running.end(signal.SIGTERM) == 0
    assert banned(command, tmp_path, running.lines) == ["127.0.0.1"] * 3
    found = [each for each in running.lines if "failed login from" in each]
    # A line inside a traceback is no failed login, because others may have chosen its text.  These
    # lines have another address, so that they can be told apart.
    others = [each.replace("127.0.0.1", "192.0.2.9") for each in found]
    inside = [
        f"{head}\t| {each[tail:]}"
        for each in others
        for head in ("", each[:25])
        for tail in (0, 25)
    ]
    inside += [f"{each[:25]}[pop3svc#warn] cannot read {each}" for each in others]
    assert banned(command, tmp_path, inside) == []
    for name, way in PREFIXES.items():
        ways = [way(each) for each in (*found, *inside)]
        ways += [way(f"{each[:25]}\t| {way(other)}") for each in others for other in others]
        assert banned(command, tmp_path, ways) == ["127.0.0.1"] * 3, name
    others = [f"Nov 25 23:44:17 mail sshd[5]: {each}" for each in found]
    assert banned(command, tmp_path, others) == []


# How lines of the log look in other logs.  The time in front of a line has 24 characters.
PREFIXES: dict[str, Callable[[str], str]] = {
    "journalctl": lambda line: f"Nov 25 23:44:17 mail twistd[123]: {line}",
    "journalctl, short-precise": lambda line: f"Nov 25 23:44:17.123456 mail twistd[123]: {line}",
    "journalctl, short-iso": lambda line: f"2026-11-25T23:44:17+0000 mail twistd[123]: {line}",
    "journal, as fail2ban reads it": lambda line: (
        f"2026-11-25T23:44:17.123456 mail.example.org twistd[123]: {line}"
    ),
    "syslog": lambda line: f"Nov 25 23:44:17 mail pop3svc[123]: {line[25:]}",
    "rsyslog": lambda line: f"2026-11-25T23:44:17.123456+00:00 mail pop3svc[1]: {line[25:]}",
    "docker": lambda line: f"2026-11-25T23:44:17.123456789Z {line}",
    "docker's files": lambda line: (
        f'{{"log":"{line}\\n","stream":"stdout","time":"2026-11-25T23:44:17.1Z"}}'
    ),
    "k8s": lambda line: f"2026-11-25T23:44:17.123456789Z stdout F {line}",
    "k8s, another zone": lambda line: f"2026-11-25T23:44:17.123456789+01:00 stderr F {line}",
}


def banned(command: str, path: Path, lines: list[str]) -> list[str]:
    """
    @return: the addresses that fail2ban finds in some lines.
    """
    (path / "log").write_text("\n".join(lines) + "\n")
    filter = CHECKOUT / "contrib" / "fail2ban" / "pop3svc.conf"
    found = run([command, "-o", "ip", str(path / "log"), str(filter)], path)
    return found.stdout.split()


def test_oneConnection(service: tuple[Running, int, int], site: Path) -> None:
    """
    Over TLS a client can sleep, wake up to a new message, fetch it by its unique-id, delete it, and
    go on as another user.
    """
    _, _, secure = service
    maildir = site / "mail" / "alice"
    for each in maildir.rglob("*.*"):
        each.unlink()
    deliver(maildir, "1700000001.old", b"Subject: old\n\nx\n")
    connection = Connection(secure)
    connection.startTLS(trusting(site))
    connection.line()
    for line, said in (
        (b"XLOG alice secret word", b"+OK"),
        (b"STAT", b"+OK 1 19"),
        (b"SLEE", b"+OK Asleep, 0 deleted."),
        (b"STAT", b"-ERR"),
        (b"WAKE", b"+OK [ACTIVITY/NONE]"),
        (b"SLEE", b"+OK"),
    ):
        assert connection.say(line).startswith(said)
    new = deliver(maildir, "1700000002.new", b"Subject: new\n\n.y\n")
    assert connection.say(b"WAKE").startswith(b"+OK [ACTIVITY/NEW]")
    assert connection.say(b"RETR UID:1700000002.new").endswith(b" _\r\n")
    assert connection.lines() == [b"Subject: new\r\n", b"\r\n", b"..y\r\n"]
    assert connection.say(b"DELI UID:1700000002.new").startswith(
        b"+OK Deleted message. UID:1700000002.new"
    )
    assert not new.exists()
    assert connection.say(b"QAUT").startswith(b"+OK")
    assert connection.say(b"XLOG bob secret word").startswith(b"+OK")
    assert connection.say(b"UIDL UID:1700000001.old").startswith(b"-ERR [UID/NOT-FOUND]")
    assert connection.say(b"QUIT").startswith(b"+OK")
    assert connection.line() == b""
    assert (maildir / "new" / "1700000001.old").exists()


def test_wakeOfARemovedAccount(service: tuple[Running, int, int], site: Path) -> None:
    from pop3svc.accounts.passwordediting import removeUser

    addUser(str(site / "users"), "dave", "secret")
    connection = Connection(service[1])
    connection.line()
    for line in (b"XLOG dave secret", b"SLEE", b"WAKE", b"SLEE"):
        assert connection.say(line).startswith(b"+OK")
    removeUser(str(site / "users"), "dave")
    assert connection.say(b"WAKE").startswith(b"-ERR [AUTH]")


def test_selfSigned(site: Path, tmp_path: Path) -> None:
    """
    Without a configured certificate, the service makes a self-signed one, and serves it after STLS.
    """
    port = freePort()
    with Running(
        tmp_path / "home",
        *("--provider", f"maildir:{site / 'mail'}", "--auth", f"passwd:{site / 'users'}"),
        *("--endpoint", f"tcp:{port}:interface=127.0.0.1"),
    ) as running:
        running.up()
        made = running.waitFor("made a self-signed certificate: ").rpartition(": ")[2]
        assert servedAfterSTLS(port) == ssl.PEM_cert_to_DER_cert(Path(made).read_text())
