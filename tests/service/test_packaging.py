"""
The Debian package and the image: what can be checked without building them.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import textwrap
from pathlib import Path

import pytest

import pop3svc
from pop3svc.service.configcommand import main as config
from pop3svc.service.datadirectory import DataDirectory
from tests.service.test_units import MOST_EXPOSED, analyze
from tests.support.running import CHECKOUT, PATIENCE, SCRIPTS, environment

DEBIAN = CHECKOUT / "debian"


def test_version() -> None:
    """
    The package has the version of the service.
    """
    assert (DEBIAN / "changelog").read_text().startswith(f"pop3svc ({pop3svc.__version__}) ")


def test_configuration(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    The configuration of the package has no fault, and listens on this machine only.
    """
    text = (DEBIAN / "pop3svc.toml").read_text()
    path = tmp_path / "pop3svc.toml"
    path.write_text(text.replace("/var/lib", str(tmp_path)).replace("/etc", str(tmp_path)))
    (tmp_path / "pop3svc" / "mail").mkdir(parents=True)
    (tmp_path / "pop3svc" / "users").touch(0o600)
    config(["check", str(path)])
    said = capsys.readouterr().out
    assert "listen on tcp:110:interface=127.0.0.1;" in said
    assert "listen on ssl:995:interface=127.0.0.1 with implicit TLS" in said
    assert "maildir; accounts: passwd:" in said


def unit() -> str:
    """
    @return: the unit as the package's rules make it.
    """
    rules = (DEBIAN / "rules").read_text()
    recipe = re.search(
        r"^\t(\(cat debian/unit\.in.*?)> debian/pop3svc\.service$", rules, re.M | re.S
    )
    assert recipe
    command = recipe[1].replace("$$", "$").replace("\\\n", " ")
    return subprocess.run(
        ["sh", "-c", command], cwd=CHECKOUT, capture_output=True, text=True, check=True
    ).stdout


def test_unit(tmp_path: Path) -> None:
    """
    systemd knows each setting, and the unit is as restricted as those in contrib.
    """
    text = unit()
    assert "\nCapabilityBoundingSet=CAP_NET_BIND_SERVICE\n" in text
    assert "\nSystemCallFilter=@system-service\n" in text
    assert text.endswith("[Install]\nWantedBy=multi-user.target\n")
    path = tmp_path / "pop3svc.service"
    path.write_text(text.replace("/usr/bin/pop3svc", "/bin/true"))
    assert "pop3svc" not in analyze("verify", "--man=no", str(path))
    said = analyze("security", "--offline=true", "--no-pager", str(path))
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert found and float(found[1]) <= MOST_EXPOSED


def script(name: str, tmp_path: Path) -> str:
    """
    @return: a script of the package, for other directories.
    """
    text = (DEBIAN / f"pop3svc.{name}").read_text()
    return re.sub("/(etc|usr/lib|var/lib)/pop3svc", rf"{tmp_path}/\1", text)


def configure(tmp_path: Path, existing: str) -> list[str]:
    """
    @param existing: the databases, passwd and group, that already have vmail.
    @return: the commands with which the package is configured, which are not run.
    """
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    for name in ("addgroup", "adduser", "install", "py3compile", "runuser"):
        (tools / name).write_text('#!/bin/sh\necho "${0##*/} $*"\n')
    (tools / "getent").write_text(f'#!/bin/sh\ncase "{existing}" in *$1*) ;; *) exit 2 ;; esac\n')
    for each in tools.iterdir():
        each.chmod(0o755)
    return subprocess.run(
        ["sh", "-c", script("postinst", tmp_path), "postinst", "configure"],
        env={"PATH": f"{tools}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()


def test_configureActsAsTheUser(tmp_path: Path) -> None:
    """
    Root makes no file in the directory of the user, because the user could put a link in its place.
    """
    data = tmp_path / "var/lib"
    for isThere in (False, True):
        if isThere:
            data.mkdir(parents=True)
        done = configure(tmp_path, "passwd group")
        assert f"install -d -m 700 -o vmail -g vmail {data}" in done or isThere
        assert [each for each in done if f"{data}/" in each] == [
            f"runuser -u vmail -- mkdir -p -m 700 {data}/mail"
        ]


@pytest.mark.parametrize("existing", ["", "passwd", "group", "passwd group"])
def test_configureMakesUserAndGroup(tmp_path: Path, existing: str) -> None:
    """
    A user or a group vmail that another server has made is used.
    """
    done = [each.split()[0] for each in configure(tmp_path, existing)]
    assert ("adduser" in done) is ("passwd" not in existing)
    assert ("addgroup" in done) is ("group" not in existing)


@pytest.mark.parametrize("mail", ["mail/alice/cur/1", "boxes/alice/cur/1", "mail.sqlite", None])
def test_purge(tmp_path: Path, mail: str | None) -> None:
    """
    Purging keeps all mail, wherever the operator has put it.  The empty directories of a Maildir
    are kept, too.
    """
    data, etc = tmp_path / "var/lib", tmp_path / "etc"
    made = DataDirectory(str(data))
    made.make()
    made.makeCertificate()
    Path(made.state).touch()
    Path(made.adminSocket).touch()
    (data / "mail").mkdir()
    etc.mkdir()
    (etc / "users").touch()
    empty = data / "mail" / "alice" / "new"
    if mail is not None:
        empty.mkdir(parents=True)
        (data / mail).parent.mkdir(parents=True, exist_ok=True)
        (data / mail).touch()
    done = subprocess.run(
        ["sh", "-c", script("postrm", tmp_path), "postrm", "purge"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not (etc / "users").exists()
    if mail is None:
        assert not data.exists() and not done.stderr
    else:
        assert [each for each in data.rglob("*") if each.is_file()] == [data / mail]
        assert empty.exists() and "are kept" in done.stderr


def test_everyExtraIsKnown() -> None:
    """
    The package and the image name extras of C{setup.cfg}.
    """
    extras = set(re.findall(r"^(\w+) =$", (CHECKOUT / "setup.cfg").read_text(), re.M))
    package = re.search(r"^extras = (.*)$", (DEBIAN / "rules").read_text(), re.M)
    image = re.search(r"/src\[(.*)\]", (CHECKOUT / "Containerfile").read_text())
    assert package and image
    assert (
        {"metrics", "postgresql"} <= set(image[1].split(",")) < set(package[1].split(",")) < extras
    )


def test_imageIgnoresNothingThatItCopies() -> None:
    copied = re.findall(
        r"^COPY (?!--from)(.*) /src\S*$", (CHECKOUT / "Containerfile").read_text(), re.M
    )
    wanted = {name for line in copied for name in line.split()}
    allowed = re.findall(r"^!(.*)$", (CHECKOUT / ".containerignore").read_text(), re.M)
    assert wanted == set(allowed)
    assert all((CHECKOUT / each).exists() for each in wanted)


def instructions() -> list[list[tuple[str, str]]]:
    """
    @return: the stages of the C{Containerfile}, each as instructions with their arguments.
    """
    lines = [
        line
        for line in (CHECKOUT / "Containerfile").read_text().splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]
    stages: list[list[tuple[str, str]]] = []
    for each in "\n".join(lines).replace("\\\n", "").splitlines():
        name, arguments = each.split(None, 1)
        assert name.isupper(), each
        if name == "FROM":
            stages.append([])
        stages[-1].append((name, arguments))
    return stages


def test_image() -> None:
    """
    The image has the properties that a linter of images asks for.
    """
    stages = instructions()
    names = {each.partition(" AS ")[2] for stage in stages for name, each in stage[:1]}
    for stage in stages:
        (_, base), *rest = stage
        assert re.match(r"\S+:(?!latest)\S+", base), "the base image has no version"
        for name, arguments in rest:
            # ADD unpacks archives, and fetches files that nobody has checked.
            assert name != "ADD"
            if name == "COPY" and (found := re.match(r"--from=(\S+) ", arguments)):
                assert found[1] in names
            if name == "RUN":
                assert "sudo" not in arguments and "curl" not in arguments
                for install in re.findall(r"apt-get install[^&]*", arguments):
                    assert " -y " in install and "--no-install-recommends" in install
                    assert "apt-get update" in arguments
                    assert "rm -rf /var/lib/apt/lists/*" in arguments
    last = dict(stages[-1])
    user, _, group = last["USER"].partition(":")
    assert 0 < int(user) == int(group) and f"--uid {user} " in last["RUN"]
    # The first process must not be a shell, because a shell does not pass on signals.
    assert json.loads(last["ENTRYPOINT"])[:2] == ["tini", "--"] and json.loads(last["CMD"])
    health = last["HEALTHCHECK"].partition("CMD ")[2]
    assert json.loads(health)[:2] == ["pop3svc", "status"]
    assert last["WORKDIR"] == last["VOLUME"] in last["CMD"]
    # Nothing after USER needs to be root.
    after = [name for name, _ in stages[-1]]
    assert not {"RUN", "COPY"} & set(after[after.index("USER") :])
    ports = re.findall(r'"(?:tcp|ssl):([0-9]+)"', last["CMD"])
    assert last["EXPOSE"].split() == ports and all(int(each) >= 1024 for each in ports)


def blocks(heading: str) -> list[str]:
    """
    @return: the literal blocks of a section of the page about installing.
    """
    page = (CHECKOUT / "docs" / "installing.rst").read_text()
    section = page[page.index(f"\n{heading}\n---") :].split("\n\n\n")[0]
    return [textwrap.dedent(each) for each in re.findall(r"::\n\n((?:    .*\n?)+)", section)]


def test_completionAndManualAsDocumented(tmp_path: Path) -> None:
    """
    The commands of the page about installing put completion and manual pages into a home.
    """
    bash, zsh = blocks("Completion of the command line")
    (manual,) = blocks("Manual pages")
    environ = environment(tmp_path) | {"PATH": f"{SCRIPTS}:/usr/bin:/bin"}
    subprocess.run(
        ["bash", "-euc", bash + manual],
        env=environ,
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=PATIENCE,
    )
    home = tmp_path / ".local" / "share"
    for each in (
        home / "bash-completion" / "completions" / "pop3svc",
        tmp_path / ".config" / "fish" / "completions" / "pop3svc.fish",
        home / "man" / "man1" / "pop3svc.1",
        home / "man" / "man5" / "pop3svc.toml.5",
    ):
        assert "pop3svc" in each.read_text()
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    program = f"autoload -U compinit; compinit -u; {zsh}; print $_comps[pop3svc]"
    done = subprocess.run(
        ["zsh", "-f", "-c", program],
        env=environ,
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.stdout == "_pop3svc\n"


def test_packageAsDocumented() -> None:
    """
    The page about installing has the commands that C{tools/trypackage} runs, and the files of the
    package.
    """
    script = (CHECKOUT / "tools" / "trypackage").read_text()
    page = (CHECKOUT / "docs" / "installing.rst").read_text()
    for command in (
        "dpkg-buildpackage -us -uc -b",
        "pop3svc user add alice --file /etc/pop3svc/users",
        "pop3svc config check",
        "runuser -u vmail -- pop3svc deliver --config /etc/pop3svc/pop3svc.toml alice",
    ):
        assert command in script and command in page
    rules = (DEBIAN / "rules").read_text()
    assert set(re.findall(r"^``(\w+)``,?(?:  +.*)?$", page, re.M)) - {"ldap"} == set(
        re.search(r"^extras = (.*)$", rules, re.M)[1].split(",")
    )
