"""
The units for systemd in C{contrib}, as C{systemd-analyze} sees them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.running import CHECKOUT, PATIENCE, SCRIPTS

UNITS = CHECKOUT / "contrib" / "systemd"
# The exposure that systemd-analyze may find at most, of 10.
MOST_EXPOSED = 2.0


def analyze(*arguments: str) -> str:
    """
    @return: what C{systemd-analyze} writes.
    """
    command = shutil.which("systemd-analyze")
    if command is None:
        if os.environ.get("CI"):
            pytest.fail("systemd-analyze is not installed")
        pytest.skip("systemd-analyze is not installed")
    done = subprocess.run(
        [command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """
    The units with the commands of this checkout.
    """
    installed = "/opt/pop3svc/bin/"
    for each in UNITS.iterdir():
        text = each.read_text()
        (tmp_path / each.name).write_text(text.replace(installed, f"{SCRIPTS}/"))
    return tmp_path


def test_verify(units: Path) -> None:
    """
    systemd knows each setting, and finds each command and each socket.
    """
    found = sorted(str(each) for each in units.iterdir() if each.suffix != ".conf")
    assert len(found) == 4
    said = analyze("verify", "--man=no", *found)
    # Units of the machine itself may have faults.
    assert "pop3svc" not in said, said


@pytest.mark.parametrize("name", ["pop3svc.service", "pop3svc-dynamic.service"])
def test_security(units: Path, name: str) -> None:
    said = analyze("security", "--offline=true", "--no-pager", str(units / name))
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert found, said
    assert float(found[1]) <= MOST_EXPOSED, said


def test_dropIn(units: Path) -> None:
    """
    The unit is valid together with the drop-in for system users.
    """
    page = (CHECKOUT / "docs" / "systemusers.rst").read_text()
    for line in (units / "system-users.conf").read_text().splitlines():
        assert line.startswith("#") or f"    {line}\n" in page
    directory = units / "pop3svc.service.d"
    directory.mkdir()
    (units / "system-users.conf").rename(directory / "system-users.conf")
    said = analyze("verify", "--man=no", str(units / "pop3svc.service"))
    assert "pop3svc" not in said, said
