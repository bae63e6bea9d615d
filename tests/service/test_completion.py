"""
The completion of the command line, in real shells.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from pop3svc.service.commandtable import COMMANDS
from pop3svc.service.completion import SHELLS
from pop3svc.service.manualcommand import main
from pop3svc.service.settings import SERVICE
from pop3svc.service.synopsis import Synopsis, readSynopsis
from tests.support.running import PATIENCE

# The function of the script is called as bash calls it when somebody presses Tab.
_BASH = """\
source "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_pop3svc
printf '%s\\n' "${COMPREPLY[@]}"
"""
# A terminal of zsh's own (zpty), in which Tab is pressed twice.
_ZSH = """\
zmodload zsh/zpty
zpty shell env -i TERM=dumb HOME=$HOME PATH=$PATH zsh -f -i
zpty -w shell "PS1=READY; autoload -U compinit; compinit -u -d $PWD/dump; source $1; LISTMAX=1000"
zpty -w shell 'bindkey "^I" complete-word; zstyle ":completion:*" list-packed no; echo BE''GUN'
zpty -r -m shell seen '*BEGUN*'
zpty -n -w shell "$2"$'\\t\\t'
zpty -r -m shell seen "*$3*" && print FOUND
zpty -d shell
"""


@pytest.fixture(scope="module")
def top() -> Synopsis:
    return readSynopsis()


def run(shell: str, program: str, *arguments: str, cwd: Path) -> str:
    command = shutil.which(shell)
    if command is None:
        pytest.skip(f"{shell} is not installed")
    return subprocess.run(
        [command, *(["-f"] if shell == "zsh" else []), "-c", program, shell, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
        cwd=cwd,
    ).stdout


@pytest.fixture
def bash(tmp_path: Path, top: Synopsis):
    (tmp_path / "script").write_text(SHELLS["bash"](top))

    def complete(*words: str) -> list[str]:
        return run("bash", _BASH, "./script", "pop3svc", *words, cwd=tmp_path).split()

    return complete


def test_everyParserIsThere(top: Synopsis) -> None:
    assert [each.lastName for each in top.commands] == list(COMMANDS)
    names = {each.name for each in top.everyCommand()}
    assert {"pop3svc user app-password add", "pop3svc ban lift", "pop3svc config show"} <= names


def test_bashCommands(bash) -> None:
    assert set(COMMANDS) < set(bash(""))
    assert bash("st") == ["status"]
    assert bash("user", "app-password", "re") == ["revoke"]
    # The name of a user is no command.
    assert bash("user", "remove", "list", "--f") == ["--file"]


def test_bashOptions(bash) -> None:
    wanted = {f"--{each.name}" for each in SERVICE if each.isOption}
    assert wanted | {"--config", "--uid", "--tls-endpoint"} <= set(bash("serve", "--"))
    assert wanted <= set(bash("config", "show", "--"))
    assert bash("user", "add", "--scram-") == ["--scram-beside"]
    assert bash("serve", "--web", "") == []


def test_bashValues(bash) -> None:
    assert bash("serve", "--cleartext-login", "") == ["never", "loopback", "always"]
    assert bash("serve", "--log-format", "=", "j") == ["json", "journal"]
    assert bash("serve", "--log-format", "=") == ["text", "json", "journal"]
    assert bash("completion", "z") == ["zsh"]


def test_bashFiles(bash, tmp_path: Path) -> None:
    (tmp_path / "settings.toml").touch()
    assert bash("serve", "--config", "set") == ["settings.toml"]
    assert bash("config", "check", "set") == ["settings.toml"]
    assert bash("import", "alice", "set") == ["settings.toml"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("pop3svc stat", "pop3svc status"),
        ("pop3svc user app-password rev", "app-password revoke"),
        ("pop3svc serve --cleartext-login ", "loopback"),
        ("pop3svc serve --tls-", "--tls-endpoint"),
        ("pop3svc config check set", "settings.toml"),
    ],
)
def test_zsh(line: str, expected: str, tmp_path: Path, top: Synopsis) -> None:
    (tmp_path / "script").write_text(SHELLS["zsh"](top))
    (tmp_path / "settings.toml").touch()
    assert "FOUND" in run("zsh", _ZSH, "script", line, expected, cwd=tmp_path)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("pop3svc stat", "status"),
        ("pop3svc user app-password ", "revoke"),
        ("pop3svc serve --cleartext-login ", "loopback"),
        ("pop3svc serve --tls-", "--tls-endpoint"),
        ("pop3svc config check set", "settings.toml"),
    ],
)
def test_fish(line: str, expected: str, tmp_path: Path, top: Synopsis) -> None:
    (tmp_path / "script").write_text(SHELLS["fish"](top))
    (tmp_path / "settings.toml").touch()
    said = run("fish", f"source script; complete -C '{line}'", cwd=tmp_path)
    found = [each.split("\t")[0] for each in said.splitlines()]
    assert expected in found
    if expected == "loopback":
        assert set(found) == {"never", "loopback", "always"}


def test_command(capsys: pytest.CaptureFixture[str], top: Synopsis) -> None:
    for shell, make in SHELLS.items():
        main(["completion", shell])
        assert capsys.readouterr().out == make(top)
    with pytest.raises(SystemExit, match="invalid choice: 'tcsh'"):
        main(["completion", "tcsh"])
