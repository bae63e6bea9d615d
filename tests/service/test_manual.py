"""
The manual pages name every command, option and setting, and are correct roff.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pop3svc.service.manual import makePages
from pop3svc.service.manualcommand import main
from pop3svc.service.options import Options, providerPlugins
from pop3svc.service.settings import GROUPS, Setting
from pop3svc.service.synopsis import readSynopsis
from tests.support.running import PATIENCE


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return makePages()


def section(page: str, name: str, macro: str = "SH") -> str:
    """
    @return: a section of a page without the escapes of roff.
    """
    found = re.search(rf"^\.{macro} {re.escape(name)}\n(.*?)(?=^\.S[HS] |\Z)", page, re.M | re.S)
    assert found, name
    return re.sub(r"\\f[BIR]", "", found[1]).replace("\\-", "-").replace("\\&", "")


def test_everyCommand(pages: dict[str, str]) -> None:
    for command in readSynopsis().everyCommand()[1:]:
        if command.commands:
            continue
        text = section(pages["pop3svc.1"], command.name.replace("-", "\\-"), "SS")
        assert text.startswith(command.name)
        for option in command.options:
            for flag in option.flags:
                assert re.search(rf"^\.TP\n(?:.*, )?{flag}\b", text, re.M), (command.name, flag)


def test_everyOptionOfServe(pages: dict[str, str]) -> None:
    text = section(pages["pop3svc.1"], "pop3svc serve", "SS")
    options = Options()
    for each in options.longOpt:
        assert f"\n.TP\n--{each.removesuffix('=')}" in text
    assert "\n--workers NUMBER\nNumber of worker processes (default: 1).\n" in text


@pytest.mark.parametrize(
    ("name", "settings"),
    list(
        zip(
            (
                *("THE SERVICE", "LISTENERS", "CERTIFICATES", "STORES"),
                *("MAILBOXES OF OTHER SERVERS", "LIMITS"),
            ),
            GROUPS.values(),
            strict=True,
        )
    ),
)
def test_everySetting(pages: dict[str, str], name: str, settings: tuple[Setting, ...]) -> None:
    text = section(pages["pop3svc.toml.5"], name)
    items = re.findall(r"^\.TP\n([\w-]+) = ([^\s,]+)(.*)\n((?:[^.].*\n)*)", text, re.M)
    assert [item[0] for item in items] == [each.name for each in settings]
    for item, each in zip(items, settings, strict=True):
        assert item[1] == each.kind.name
        assert ("live" in item[2]) is each.isLive
        said = " ".join(item[3].split())
        assert said.startswith(" ".join(f"{each.help} {each.reason}".split()))


def test_everyKind(pages: dict[str, str]) -> None:
    stores = section(pages["pop3svc.toml.5"], "KINDS OF STORES")
    for prefix in providerPlugins():
        assert f"\n{prefix}:" in stores
    accounts = section(pages["pop3svc.toml.5"], "SOURCES OF ACCOUNTS")
    for kind in ("passwd", "sql", "http", "ldap", "pam", "oauth"):
        assert f"\n{kind}:" in accounts


def test_roff(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    mandoc finds no fault, and C{whatis} finds the names.
    """
    main(["manual", str(tmp_path / "man")])
    first, second = (tmp_path / "man/man1/pop3svc.1", tmp_path / "man/man5/pop3svc.toml.5")
    assert capsys.readouterr().out == f"wrote {first}\nwrote {second}\n"
    mandoc = shutil.which("mandoc")
    if mandoc is None:
        pytest.skip("mandoc is not installed")
    for each in (first, second):
        done = subprocess.run(
            [mandoc, "-Tlint", str(each)], capture_output=True, text=True, timeout=PATIENCE
        )
        assert (done.stdout + done.stderr).strip() == ""
    if shutil.which("lexgrog") is None:
        pytest.skip("man-db is not installed")
    names = subprocess.run(
        ["lexgrog", first, second], capture_output=True, text=True, timeout=PATIENCE
    )
    assert "pop3svc - a POP3 service" in names.stdout
    assert "pop3svc.toml - configuration of a POP3 service" in names.stdout


def test_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert all('"1970-01-02"' in each for each in makePages().values())


def test_cannotWrite(tmp_path: Path) -> None:
    (tmp_path / "man1").touch()
    with pytest.raises(SystemExit, match=f"pop3svc: {tmp_path}/man1: {os.strerror(17)}"):
        main(["manual", str(tmp_path)])
