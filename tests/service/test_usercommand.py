"""
pop3svc user add|password|remove|list, from outside.
"""

from __future__ import annotations

import os
import pty
from pathlib import Path

import pytest

from pop3svc.accounts.passwordfile import PasswordFile
from pop3svc.service import usercommand
from pop3svc.service.command import main
from pop3svc.testing import Inline
from tests.support.passwords import isGood
from tests.support.running import script
from tests.support.site import run


def test_fromAPipe(tmp_path: Path) -> None:
    command = [script("pop3svc"), "user"]
    file = ["--file", str(tmp_path / "users")]

    def good(*arguments: str, stdin: str = "") -> str:
        ended = run([*command, *arguments, *file], tmp_path, stdin)
        assert (ended.returncode, ended.stderr) == (0, ""), ended
        return ended.stdout

    def bad(*arguments: str, stdin: str = "") -> str:
        ended = run([*command, *arguments, *file], tmp_path, stdin)
        assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1)
        return ended.stderr

    good("add", "alice", stdin="one two \nignored")
    good("add", "bob", stdin="x\r\n")
    assert good("list") == "alice\nbob\n"
    checker = PasswordFile(str(tmp_path / "users"), Inline())
    assert isGood(checker, "alice", "one two ")
    assert isGood(checker, "bob", "x")
    good("password", "alice", stdin="three")
    assert isGood(checker, "alice", "three")
    good("remove", "bob")
    assert good("list") == "alice\n"
    good("add", "carol", "--scram-beside", stdin="x")
    good("add", "dave", "--scram", stdin="x")
    carol, dave = (tmp_path / "users").read_text().splitlines()[-2:]
    assert "$argon2id$" in carol and ":pop3svc_scram_sha_256=" in carol
    assert dave.startswith("dave:{SCRAM-SHA-256}")
    assert "not allowed with" in bad("add", "eve", "--scram", "--scram-beside", stdin="x")
    for name in ("carol", "dave"):
        good("remove", name)
    assert bad("add", "alice", stdin="x") == "pop3svc: there is already a user alice\n"
    assert bad("add", "eve") == "pop3svc: the password is empty\n"
    assert bad("add", "a b", stdin="x").startswith("pop3svc: a user name is")
    assert bad("password", "eve", stdin="x") == "pop3svc: there is no user eve\n"
    assert bad("remove", "eve") == "pop3svc: there is no user eve\n"
    assert "required" in bad("add")
    assert "invalid choice" in bad("nonsense")


def test_badLines(tmp_path: Path) -> None:
    """
    Each command names the bad lines of the password file, and works all the same.
    """
    path = tmp_path / "users"
    path.write_text("nonsense\nalice:$1$x\n")
    ignored = f"pop3svc: {path}, line 1: ignored: no colon\n"
    shutOut = f"pop3svc: {path}, line 2: alice cannot log in: a malformed md5-crypt hash\n"

    def user(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
        command = [script("pop3svc"), "user", *arguments, "--file", str(path)]
        ended = run(command, tmp_path, stdin)
        return ended.returncode, ended.stdout, ended.stderr

    assert user("add", "bob", stdin="x") == (0, "", ignored + shutOut)
    assert user("list") == (0, "bob\n", ignored + shutOut)
    assert user("password", "alice", stdin="x") == (0, "", ignored)
    assert user("list") == (0, "alice\nbob\n", ignored)
    assert user("remove", "alice") == (0, "", ignored)
    assert user("password", "alice", stdin="x")[0] == 1


def test_embeddedDefault(tmp_path: Path) -> None:
    ended = run([script("pop3svc"), "user", "add", "carol"], tmp_path, "secret\n")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert run([script("pop3svc"), "user", "list"], tmp_path).stdout == "carol\n"
    # The command names the file, because a service may read another file.
    said = run([script("pop3svc"), "user", "password", "carol"], tmp_path, "other\n").stdout
    assert said == f"changed {tmp_path}/.local/share/pop3svc/users\n"
    assert (tmp_path / ".local" / "share" / "pop3svc" / "users").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("second", "says"), [("secret", ""), ("other", "not the same")])
def test_fromATerminal(tmp_path: Path, second: str, says: str) -> None:
    """
    At a terminal the command asks for the password twice, and does not show it.
    """
    path = tmp_path / "users"
    child, terminal = pty.fork()
    if not child:
        os.execv(script("pop3svc"), ["pop3svc", "user", "add", "alice", "--file", str(path)])
    shown = b""

    def until(text: bytes) -> None:
        nonlocal shown
        while text not in shown:
            shown += os.read(terminal, 1000)

    until(b"Password: ")
    os.write(terminal, b"secret\n")
    until(b"Again: ")
    os.write(terminal, second.encode() + b"\n")
    try:
        while data := os.read(terminal, 1000):
            shown += data
    except OSError:
        pass
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(terminal)
    assert status == (1 if says else 0)
    assert says.encode() in shown
    assert b"secret" not in shown
    assert path.exists() is not bool(says)


def test_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(usercommand, "_askPassword", interrupt)
    with pytest.raises(SystemExit, match="nothing was changed"):
        main(["user", "add", "alice", "--file", str(tmp_path / "users")])
