"""
A project outside this repository uses a wheel of pop3svc.  It tests a provider with the contract,
and a program with faults.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent.parent
PROJECT = Path(__file__).parent / "newproject"

pytestmark = pytest.mark.interop


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {each: os.environ[each] for each in os.environ if not each.startswith("PYTHON")}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=500
    )


def test_newProject(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.rst", "LICENSE"):
        shutil.copy(CHECKOUT / name, source)
    for name in ("pop3svc", "twisted"):
        ignored = shutil.ignore_patterns("__pycache__", "dropin.cache")
        shutil.copytree(CHECKOUT / name, source / name, ignore=ignored)
    project = tmp_path / "project"
    shutil.copytree(PROJECT, project, ignore=shutil.ignore_patterns("__pycache__"))
    # Install with the pip of this environment, because a pip in the new environment would take
    # seconds.  Compile nothing now, because Python compiles the modules that the tests import.
    run(sys.executable, "-m", "venv", "--without-pip", "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "-q", "--python", python)
    ran = run(*pip, "install", "--no-compile", "pytest", cwd=tmp_path)
    if ran.returncode:
        if os.environ.get("CI"):
            pytest.fail(ran.stderr)
        pytest.skip("pip finds no packages here")
    ran = run(*pip, "wheel", "--no-deps", "-w", "wheels", source, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    (wheel,) = (tmp_path / "wheels").iterdir()
    ran = run(*pip, "install", "--no-compile", wheel, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    shutil.rmtree(source)

    ran = run(python, "-m", "pytest", "-q", "-rs", "--strict-markers", cwd=project)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    passed = re.search(r"(\d+) passed, (\d+) skipped", ran.stdout)
    assert passed is not None and int(passed[1]) > 25, ran.stdout
    # The tests of missing interfaces and hooks are skipped.
    reasons = set(re.findall(r"^SKIPPED \[\d+\] .*: (.*)$", ran.stdout, re.M))
    assert reasons == {
        "it does not provide INewMailNotifier",
        "it does not provide IMailboxLogout",
        "it does not provide IBulkMessageSizes",
        "it does not provide IExclusiveMailbox",
        "it does not provide ISurrogates",
        "remove() is not implemented",
        "it does not provide IReadOnlyMailbox",
    }
    # The project imports pop3svc from the wheel, not from this checkout.
    ran = run(python, "-c", "import pop3svc; print(pop3svc.__file__)", cwd=project)
    assert Path(ran.stdout.strip()).is_relative_to(tmp_path / "venv")


def test_fortyLines() -> None:
    """
    The provider and its mailbox have at most forty lines, not counting imports, blank lines and the
    docstring of the module.
    """
    text = (PROJECT / "sqlitemail.py").read_text()
    lines = [each for each in text.partition("TABLE =")[2].splitlines() if each.strip()]
    assert len(lines) <= 40
