"""
Application passwords, remembered checks and added verifiers in a real service.
"""

from __future__ import annotations

import os
import poplib
import random
import re
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pop3svc.accounts.apppasswordlines import (
    addAppPassword,
    fileOf,
    lastUses,
    readAppPasswords,
    revokeAppPasswords,
)
from pop3svc.accounts.hashes import hashPassword
from pop3svc.accounts.passwordediting import Proved, addVerifiers
from pop3svc.accounts.passwordfile import readPasswordFile
from pop3svc.accounts.scramkeys import makeVerifier
from tests.support.maildirs import deliver
from tests.support.running import PATIENCE, Connection, Running, environment, freePort, script
from tests.support.site import run

# How often a process is killed.  Set POP3SVC_KILLS to kill it more often.
KILLS = int(os.environ.get("POP3SVC_KILLS", "6"))


@pytest.fixture
def users(tmp_path: Path) -> Path:
    (tmp_path / "users").write_text(f"ann:{hashPassword('secret')}\nben:{{PLAIN}}x\n")
    deliver(tmp_path / "mail" / "ann", "1.x")
    return tmp_path / "users"


def options(users: Path, port: int, *more: str) -> list[str]:
    return [
        *("--provider", f"maildir:{users.parent / 'mail'}", "--auth", f"passwd:{users}"),
        *("--endpoint", f"tcp:{port}:interface=127.0.0.1", *more),
    ]


def user(users: Path, *arguments: str, stdin: str = "") -> str:
    """
    Run C{pop3svc user}.

    @return: what it has printed.
    """
    command = [script("pop3svc"), "user", *arguments, "--file", str(users)]
    ended = run(command, users.parent, stdin)
    assert ended.returncode == 0, ended
    return ended.stdout


def logIn(port: int, password: str, name: str = "ann") -> str:
    """
    Log in by PASS.

    @return: the reply.
    """
    client = poplib.POP3("127.0.0.1", port, timeout=PATIENCE)
    try:
        client.user(name)
        return client.pass_(password).decode()
    except poplib.error_proto as error:
        return error.args[0].decode()  # type: ignore[no-any-return]
    finally:
        client.close()


@pytest.mark.smoke
def test_lifeOfAnAppPassword(users: Path) -> None:
    port = freePort()
    with Running(users.parent / "home", *options(users, port)) as running:
        running.up()
        secret = user(
            users, "app-password", "add", "ann", "Phone", "--allow", "127.0.0.0/8"
        ).strip()
        assert re.fullmatch("(?:[a-z2-7]{4}-){7}[a-z2-7]{4}", secret)
        elsewhere = user(users, "app-password", "add", "ann", "Office", "--allow", "192.0.2.1")
        assert logIn(port, secret).startswith("+OK")
        assert logIn(port, "secret").startswith("+OK")
        refused = logIn(port, secret[:-1] + ("a" if secret[-1] != "a" else "b"))
        assert refused.startswith("-ERR [AUTH]")
        assert logIn(port, elsewhere.strip()) == refused == logIn(port, secret, "ben")
        for mechanism in ("PLAIN", "LOGIN"):
            got = subprocess.run(
                ["curl", "-s", "-S", "--login-options", f"AUTH={mechanism}", "-u", f"ann:{secret}"]
                + [f"pop3://127.0.0.1:{port}/1"],
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
            assert (got.returncode, got.stderr) == (0, "") and got.stdout
        sleeper = Connection(port)
        assert sleeper.line().startswith(b"+OK")
        sleeper.logIn(b"ann", secret.encode())
        assert sleeper.say(b"SLEE").startswith(b"+OK")
        while not lastUses(str(users)):
            # The last use is written some seconds after the login.  A refused login takes time.
            assert logIn(port, "wrong").startswith("-ERR [AUTH]")
        shown = user(users, "app-password", "list", "ann").splitlines()
        assert [each.split("\t")[1] for each in shown] == [secret[:4], elsewhere[:4]]
        assert "\tPhone\t" in shown[0] and "\tlast used 2" in shown[0]
        assert "\tnever used\t" in shown[1] and shown[1].endswith("\tfrom 192.0.2.1/32")
        user(users, "app-password", "revoke", "ann", "Phone")
        assert logIn(port, secret) == refused
        assert sleeper.say(b"WAKE").startswith(b"-ERR [AUTH]")
        sleeper.socket.close()
        assert logIn(port, "secret").startswith("+OK")
        running.end(signal.SIGTERM)
    log = "\n".join(running.lines)
    assert secret not in log and secret[5:] not in log and "Traceback" not in log


def test_command(users: Path) -> None:
    """
    A removed user leaves no application passwords, and a later user of the same name gets none.
    """

    def bad(*arguments: str) -> str:
        command = [script("pop3svc"), "user", *arguments, "--file", str(users)]
        ended = run(command, users.parent, "x\n")
        assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1)
        return ended.stderr

    add = ("app-password", "add", "ann", "Phone")
    user(users, *add, "--expires", "2099-12-31")
    user(users, "app-password", "add", "ben", "Tablet", "--expires", "30")
    shown = user(users, "app-password", "list")
    assert "\tnever used\texpires 2099-12-31T23:59:59Z\n" in shown and "Tablet" in shown
    assert "already has an application password Phone" in bad(*add)
    assert "there is no user eve" in bad("app-password", "add", "eve", "Phone")
    for value, says in (
        ("0", "must be from 1 to 3650 days"),
        ("3651", "must be from 1 to 3650 days"),
        ("2020-01-01", "must not be in the past"),
        ("soon", "must be a date such as"),
        ("2099-01-01T00:00", "must be a date such as"),
        ("", "must be a date such as|must not be in the past"),
    ):
        assert re.search(says, bad("app-password", "add", "ann", "Car", "--expires", value))
    assert "--allow here: " in bad("app-password", "add", "ann", "Car", "--allow", "here")
    assert "ann has no application password Car" in bad("app-password", "revoke", "ann", "Car")
    assert "LABEL --all" in bad("app-password", "revoke", "ann")
    user(users, "remove", "ann")
    assert user(users, "app-password", "list").startswith("ben\t")
    user(users, "app-password", "revoke", "ben", "--all")
    assert user(users, "app-password", "list") == ""
    # Somebody removes a user with an editor.
    user(users, "app-password", "add", "ben", "Tablet")
    users.write_text("")
    user(users, "add", "ben", stdin="new\n")
    assert user(users, "app-password", "list") == ""
    with open(fileOf(str(users)), "a") as file:
        file.write("nonsense\n")
    ended = run(
        [script("pop3svc"), "user", "app-password", "list", "--file", str(users)], users.parent
    )
    assert "line 1: ignored: fewer than four fields" in ended.stderr
    made = run([script("pop3svc"), "user", "app-password", "make"], users.parent).stdout
    found = re.fullmatch(r"secret: (\S+)\nselector: (\S+)\nhash: (\$argon2id\S+)\n", made)
    assert found is not None and found[1].startswith(found[2])


def test_addedVerifiers(users: Path) -> None:
    """
    A login with a password adds a verifier.  A changed password takes effect all the same.
    """
    port = freePort()
    more = ["--add-verifiers", "SCRAM-SHA-256", "--remember-checks", "60"]
    with Running(users.parent / "home", *options(users, port, *more)) as running:
        running.up()
        for _ in range(2):
            assert logIn(port, "secret").startswith("+OK")
        assert logIn(port, "wrong").startswith("-ERR [AUTH]")
        running.waitFor("added verifiers of 1 users")
        assert list(readPasswordFile(str(users)).verifiers) == ["ann"]
        assert logIn(port, "secret").startswith("+OK")
        user(users, "password", "ann", stdin="other\n")
        assert logIn(port, "secret").startswith("-ERR [AUTH]")
        assert logIn(port, "other").startswith("+OK")


def test_withoutEffect(tmp_path: Path) -> None:
    port = freePort()
    arguments = [
        *("--provider", "memory:", "--auth", "memory:ann:x", "--remember-checks", "9"),
        *("--endpoint", f"tcp:{port}:interface=127.0.0.1", "--add-verifiers", "SCRAM-SHA-1"),
    ]
    with Running(tmp_path / "home", *arguments) as running:
        running.waitFor("--remember-checks has no effect, because no source of accounts compares")
        running.waitFor("--add-verifiers has no effect, because no source of accounts is a pass")


# --- kill -9 --------------------------------------------------------------------------

_WRITER = """
import sys
from pop3svc.accounts import apppasswordlines, passwordediting
path, what = sys.argv[1:]
number = 0
print("ready", flush=True)
while True:
    number += 1
    if what == "app passwords":
        apppasswordlines.hashPassword = lambda _: "{SSHA}" + "A" * 32
        apppasswordlines.addAppPassword(path, "ann", f"label {number}")
        apppasswordlines.revokeAppPasswords(path, "ann", f"label {number}")
    elif what == "uses":
        apppasswordlines.recordUses(path, {("ann", "aaaa"): number, ("ann", "bbbb"): number})
    else:
        stored = "{SSHA}" + "A" * 32
        verifier = "{SCRAM-SHA-256}4096," + "A" * 22 + "==," + "A" * 43 + "=," + "A" * 43 + "="
        for index in range(100):
            found = {f"user{index}": passwordediting.Proved(stored, {"sha256": verifier})}
            passwordediting.addVerifiers(path, found)
        passwordediting.setPassword(path, "ann", f"password {number}", "hash")
"""


@pytest.mark.parametrize("what", ["app passwords", "uses", "verifiers"])
def test_killed(tmp_path: Path, what: str) -> None:
    """
    After kill -9 at any time each file is whole, and nothing stays locked.
    """
    path = tmp_path / "users"
    stored = "{SSHA}" + "A" * 32
    choose = random.Random(8)
    for _ in range(KILLS):
        path.write_text(
            f"ann:{stored}\n" + "".join(f"user{each}:{stored}\n" for each in range(100))
        )
        Path(fileOf(str(path))).write_text(
            "".join(f"ann:{each}:{stored}:label={each}\n" for each in ("aaaa", "bbbb"))
        )
        writer = subprocess.Popen(
            [script("python"), "-c", _WRITER, str(path), what],
            env=environment(tmp_path),
            stdout=subprocess.PIPE,
        )
        assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
        timer = threading.Timer(choose.uniform(0, 0.3), writer.kill)
        timer.start()
        assert writer.wait(PATIENCE) == -signal.SIGKILL
        timer.join()
        writer.stdout.close()
        check: dict[str, Callable[[], object]] = {
            "app passwords": lambda: _checkEntries(str(path)),
            "uses": lambda: _checkUses(str(path)),
            "verifiers": lambda: _checkLines(str(path)),
        }
        check[what]()
        assert revokeAppPasswords(str(path), "ann", "aaaa") == 1


def _checkEntries(path: str) -> None:
    entries, complaints = readAppPasswords(path)
    assert complaints == [] and 2 <= len(entries) <= 3
    addAppPassword(path, "ann", "after")


def _checkUses(path: str) -> None:
    uses = lastUses(path)
    assert uses == {} or len(set(uses.values())) == 1 == len(uses) - 1


def _checkLines(path: str) -> None:
    accounts = readPasswordFile(path)
    assert accounts.badCount == 0 and len(accounts.hashes) == 101
    # The verifiers come in order.
    assert list(accounts.verifiers) == [f"user{each}" for each in range(len(accounts.verifiers))]
    verifier = makeVerifier("x")
    stored = accounts.hashes["user99"]
    addVerifiers(path, {"user99": Proved(stored, {"sha256": verifier})})
    assert "user99" in readPasswordFile(path).verifiers
