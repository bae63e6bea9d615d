"""
Names, passwords and the language of replies, with a real service, its password file and its
deliveries.
"""

from __future__ import annotations

import signal
from pathlib import Path

from tests.support.maildirs import deliver
from tests.support.running import Connection, Running, freePort, script
from tests.support.site import run

COMPOSED, DECOMPOSED, CAPITALS = "änne", "a\u0308nne", "ÄNNE"
WRONG = b"-ERR [AUTH] Wrong name or password.\r\n"


def logIn(connection: Connection, name: str, password: str) -> bytes:
    assert connection.say(b"USER " + name.encode("utf-8", "surrogateescape")).startswith(b"+OK")
    return connection.say(b"PASS " + password.encode("utf-8", "surrogateescape"))


def test_names(tmp_path: Path) -> None:
    """
    An account that C{pop3svc user} has made in one spelling, and mail that has come for another,
    belong to one user.
    """
    users, mail, port = tmp_path / "users", tmp_path / "mail", freePort()
    command = [script("pop3svc"), "user", "add", DECOMPOSED, "--name-case", "mapped"]
    ended = run([*command, "--file", str(users)], tmp_path, "pa\u0308ssword\n")
    assert (ended.returncode, ended.stderr) == (0, "")
    (mail / COMPOSED).mkdir(parents=True)
    deliver(mail / COMPOSED, "first")
    accounts = ["--provider", f"maildir:path={mail}", "--auth", f"passwd:{users}"]
    config = tmp_path / "config.toml"
    config.write_text(
        f'name-case = "mapped"\n[[store]]\nkind = "maildir"\npath = "{mail}"\n'
        f'auth = ["passwd:{users}"]\n'
    )
    command = [script("pop3svc"), "deliver", "--config", str(config), f"{CAPITALS}+work"]
    assert run(command, tmp_path, "a: b\n\nc\n").returncode == 0
    options = [*accounts, "--endpoint", f"tcp:{port}:interface=127.0.0.1", "--name-case", "mapped"]
    with Running(tmp_path / "home", *options) as running:
        running.up()
        for name in (COMPOSED, DECOMPOSED, CAPITALS):
            connection = Connection(port)
            connection.line()
            # Octets that are not UTF-8, and a name that no user can have.
            assert logIn(connection, "\udcff", "x") == WRONG
            assert logIn(connection, name, "pässword") == b"+OK Logged in.\r\n"
            assert connection.say(b"STAT").startswith(b"+OK 2 ")
            other = Connection(port)
            other.line()
            assert logIn(other, DECOMPOSED, "pa\u0308ssword").startswith(b"-ERR [IN-USE]")
            other.socket.close()
            assert connection.say(b"LANG de-AT") == "+OK de Sprache geändert.\r\n".encode()
            assert (
                connection.say(b"RSET")
                == "+OK Keine Nachricht ist zum Löschen markiert.\r\n".encode()
            )
            assert connection.say(b"QUIT") == b"+OK Auf Wiedersehen.\r\n"
            connection.socket.close()
        assert running.end(signal.SIGTERM) == 0
    assert not any("Traceback" in line for line in running.lines)
    assert [each.name for each in mail.iterdir()] == [COMPOSED]
    assert sum(f"{COMPOSED} from 127.0.0.1" in line for line in running.lines) == 3
