"""
The configuration file of a real service, with real sockets and SIGHUP.
"""

from __future__ import annotations

import os
import poplib
import signal
import ssl
from pathlib import Path

import pytest

from pop3svc.accounts.passwordediting import addUser
from tests.support.maildirs import deliver
from tests.support.running import PATIENCE, Connection, Running, forEverybody, freePort, script
from tests.support.site import renew, run, trusting


def write(path: Path, site: Path, ports: list[int], more: str = "") -> Path:
    """
    Write a configuration with two stores and three listeners.  One store is for a domain, and one
    listener has a certificate of its own.
    """
    file = path / "pop3svc.toml"
    file.write_text(
        f"""
        data = "{path}/data"
        certificate = "{site}/cert.pem"
        private-key = "{site}/key.pem"
        cleartext-login = "never"
        {more}

        [[listener]]
        endpoint = "tcp:{ports[0]}:interface=127.0.0.1"

        [[listener]]
        endpoint = "tcp:{ports[1]}:interface=127.0.0.1"
        cleartext-login = "always"

        [[listener]]
        endpoint = "tcp:{ports[2]}:interface=127.0.0.1"
        tls = true
        certificate = "{path}/cert.pem"
        private-key = "{path}/key.pem"

        [[store]]
        kind = "maildir"
        path = "{site}/mail"
        auth = ["passwd:{site}/users"]

        [[store]]
        domain = "example.org"
        kind = "maildir"
        path = "{path}/mail/{{local}}"
        auth = ["passwd:{path}/users"]
        """
    )
    return file


@pytest.fixture
def ports(tmp_path: Path) -> list[int]:
    renew(tmp_path)
    (tmp_path / "mail" / "alice").mkdir(parents=True)
    addUser(str(tmp_path / "users"), "alice@example.org", "other word")
    return [freePort() for _ in range(3)]


def test_twoDatabases(tmp_path: Path) -> None:
    """
    Each of two domains can have a database, although both stores have the same name.
    """
    port = freePort()
    file = tmp_path / "pop3svc.toml"
    text = f'[[listener]]\nendpoint = "tcp:{port}:interface=127.0.0.1"\n'
    for name in ("one", "two"):
        text += (
            f'[[store]]\ndomain = "{name}.test"\nkind = "sql"\n'
            f'dsn = "sqlite:{tmp_path}/{name}.db"\nauth = ["memory:a@{name}.test:secret"]\n'
        )
    file.write_text(text)
    with Running(tmp_path / "home", "--config", str(file)) as running:
        running.up()
        for name in (b"one", b"two"):
            client = Connection(port)
            client.line()
            client.logIn(b"a@" + name + b".test", b"secret")
            assert client.say(b"QUIT").startswith(b"+OK")


@pytest.mark.parametrize("workers", [1, 2])
def test_listenersAndDomains(site: Path, tmp_path: Path, ports: list[int], workers: int) -> None:
    deliver(tmp_path / "mail" / "alice", "1.x", b"Subject: of the domain\n\n")
    file = write(tmp_path, site, ports, f"workers = {workers}")
    with Running(tmp_path / "home", "--config", str(file)) as running:
        running.up()
        never = Connection(ports[0])
        never.line()
        assert never.say(b"USER alice") == b"-ERR Use TLS to log in.\r\n"
        always = Connection(ports[1])
        always.line()
        assert always.say(b"XLOG alice other word").startswith(b"-ERR [AUTH]")
        always.logIn(b"alice", b"secret word")
        assert always.say(b"QUIT").startswith(b"+OK")
        secure = poplib.POP3_SSL("localhost", ports[2], context=trusting(tmp_path))
        secure.user("alice@example.org")
        secure.pass_("other word")
        assert secure.retr(1)[1] == [b"Subject: of the domain", b""]
        secure.quit()
        with pytest.raises(ssl.SSLCertVerificationError):
            poplib.POP3_SSL("localhost", ports[2], context=trusting(site), timeout=PATIENCE)
        assert running.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_reload(site: Path, tmp_path: Path, ports: list[int], workers: int) -> None:
    """
    Existing sessions go on, and new sessions have the new settings.  The log names a setting that
    needs a restart.  A bad file changes nothing.
    """
    more = f"workers = {workers}"
    file = write(tmp_path, site, ports, more)
    with Running(tmp_path / "home", "--config", str(file)) as running:
        running.up()
        for _ in range(workers):
            if workers > 1:
                running.waitFor("serves")
        before = Connection(ports[1])
        before.line()
        before.logIn(b"alice", b"secret word")
        assert b"CORE" in before.say(b"CAPA") + b"".join(before.lines())
        # New workers use all new settings, except those that their parent applies.
        kept = 'ban-exempt = ["10.0.0.0/8"]' if workers == 1 else 'client-name = "cn"'
        write(tmp_path, site, ports, f'{more}\nwithout = ["CORE"]\n{kept}')
        running.process.send_signal(signal.SIGHUP)
        named = kept.partition(" ")[0]
        assert running.waitFor("restart the service").endswith(f"to change {named}")
        running.waitFor("reloaded after SIGHUP")
        assert before.say(b"NOOP").startswith(b"+OK")

        def offersCORE() -> bool:
            each = Connection(ports[1])
            each.line()
            each.say(b"CAPA")
            found = b"CORE\r\n" in each.lines()
            each.say(b"QUIT")
            each.socket.close()
            return found

        # A worker that is being replaced may still accept a connection.
        while offersCORE():
            pass
        write(tmp_path, site, ports, f"{more}\nworkres = 3")
        running.process.send_signal(signal.SIGHUP)
        said = running.waitFor("did you mean workers?")
        assert "the configuration: " in said and f"{file}: workres: unknown setting" in said
        running.waitFor("reloaded after SIGHUP")
        assert not offersCORE()
        assert before.say(b"QUIT").startswith(b"+OK")
        assert running.end(signal.SIGTERM) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_secretsAfterPrivilegesAreGivenUp(site: Path) -> None:
    """
    After the service has given up its privileges, a reload still works with a secret that only root
    may read.  The log names a configuration file that everybody may change.
    """
    with forEverybody() as path:
        port = freePort()
        (path / "data").mkdir()
        os.chown(path / "data", 65534, 65534)
        (path / "auth").write_text("memory:alice:secret")
        (path / "auth").chmod(0o600)
        file = path / "pop3svc.toml"
        text = f"""
            data = "{path}/data"
            [[listener]]
            endpoint = "tcp:{port}:interface=127.0.0.1"
            [[store]]
            kind = "memory"
            auth = [{{ file = "{path}/auth" }}]
            """
        file.write_text(text)
        file.chmod(0o666)
        with Running(
            path / "home", "--config", str(file), twistd=("--uid=65534", "--gid=65534")
        ) as running:
            running.waitFor(f"the configuration file {file} can be changed by everybody")
            file.write_text('without = ["CORE"]\n' + text)
            running.process.send_signal(signal.SIGHUP)
            running.waitFor("reloaded after SIGHUP")
            assert not any("Permission denied" in each for each in running.lines)
            client = Connection(port)
            client.line()
            client.say(b"CAPA")
            assert b"CORE\r\n" not in client.lines()
            client.logIn(b"alice", b"secret")
            assert running.end(signal.SIGTERM) == 0


def test_serve(site: Path, tmp_path: Path, ports: list[int]) -> None:
    """
    C{pop3svc serve} runs the same service in the foreground.
    """
    file = write(tmp_path, site, ports)
    command = [script("pop3svc"), "serve", "--config", str(file), "--logfile", "-"]
    with Running(tmp_path / "home", command=command) as running:
        running.up()
        client = Connection(ports[1])
        client.line()
        client.logIn(b"alice", b"secret word")
        assert client.say(b"QUIT").startswith(b"+OK")
        assert running.end(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["serve", "--uid", "nobodyatall"], "--uid nobodyatall: there is no such user"),
        (["serve", "--gid", "nobodyatall"], "--gid nobodyatall: there is no such group"),
        (["serve", "--logfile", "/nowhere/x"], "--logfile /nowhere/x: No such file or directory"),
        (["serve", "--config", "/nowhere"], "--config /nowhere: No such file or directory"),
        (["config", "check", "/nowhere"], "--config /nowhere: No such file or directory"),
        (["config", "check", "a", "b"], "'b' is not an option"),
        (["serve", "--uid", "99999999999"], "--uid 99999999999: there is no such user"),
        (["serve", "--provider", "mine.Mine"], "there is no module mine"),
        ([], "a command is needed; see pop3svc --help"),
        (
            ["nonsense"],
            "argument COMMAND: invalid choice: 'nonsense'",
        ),
    ],
)
def test_badCommand(tmp_path: Path, arguments: list[str], says: str) -> None:
    # Whoever can write into the working directory must not run code in the service.
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "mine.py").write_text("raise SystemExit('this was run')\n")
    ended = run([script("pop3svc"), *arguments], tmp_path / "home")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("pop3svc: ") and says in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_version(tmp_path: Path) -> None:
    said = set()
    for command in (
        [script("pop3svc"), "--version"],
        [script("twistd"), "pop3svc", "--version"],
    ):
        ended = run(command, tmp_path / "home")
        assert (ended.returncode, ended.stderr) == (0, "")
        said.add(ended.stdout)
    (text,) = said
    assert [each.split()[0] for each in text.splitlines()] == [
        *("pop3svc", "Twisted", "Python", "OpenSSL")
    ]
