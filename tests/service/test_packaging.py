"""
The Debian package: what can be checked without building it.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import pop3svc
from pop3svc.service.configcommand import main as config
from tests.service.test_units import MOST_EXPOSED, analyze
from tests.support.running import CHECKOUT

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


def test_everyExtraIsKnown() -> None:
    """
    The package names extras of C{setup.cfg}.
    """
    extras = set(re.findall(r"^(\w+) =$", (CHECKOUT / "setup.cfg").read_text(), re.M))
    package = re.search(r"^extras = (.*)$", (DEBIAN / "rules").read_text(), re.M)
    assert package and {"metrics", "postgresql"} <= set(package[1].split(",")) < extras
