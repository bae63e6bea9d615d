"""
The examples of the page about testing run unchanged.
"""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from pop3svc.testing import POP3Server, faults
from tests.support.pages import block
from tests.support.running import PATIENCE

PAGE = (Path(__file__).parent.parent / "docs" / "testing.rst").read_text()


def files() -> dict[str, str]:
    """
    @return: the blocks of Python by the file names in their first lines.
    """
    blocks = re.findall(r"\.\. code-block:: python\n\n((?:    .*\n|\n)+)", PAGE)
    found = {}
    for each in map(textwrap.dedent, blocks):
        named = re.match(r"# (\w+\.py)\n", each)
        assert named is not None, each
        found[named[1]] = each
    return found


def run(directory: Path) -> tuple[int, str]:
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    return ran.returncode, ran.stdout


def test_examples(tmp_path: Path) -> None:
    """
    The examples pass.  If C{fetch.py} deletes each message at once, so that it loses mail,
    C{test_triesAgain} fails.
    """
    for name, text in {**files(), "notes.py": block("README.rst", "class Notes")}.items():
        (tmp_path / name).write_text(text)
    status, said = run(tmp_path)
    assert status == 0, said
    assert set(files()) >= {"fetch.py", "test_fetch.py", "test_contract.py"}
    program = files()["fetch.py"]
    broken = program.replace("server.dele(number)", "server._shortcmd(f'DELI {number}')")
    assert broken != program
    for each in tmp_path.glob("test_*.py"):
        if each.name != "test_fetch.py":
            each.unlink()
    (tmp_path / "fetch.py").write_text(broken)
    status, said = run(tmp_path)
    assert status == 1
    assert re.findall(r"FAILED test_fetch.py::(\w+)", said) == ["test_triesAgain"]


def test_nothingIsLeftOut() -> None:
    """
    The page names each fault, and each public attribute of L{POP3Server}.
    """
    kinds = {
        name
        for name, each in vars(faults).items()
        if isinstance(each, type) and issubclass(each, faults.Fault) and name in faults.__all__
    } - {"Fault"}
    table = PAGE[PAGE.index("effect\n") :]
    assert set(re.findall(r"^``([A-Z]\w+)\(", table, re.M)) == kinds
    public: Any = {name for name in vars(POP3Server) if not name.startswith("_")}
    missing = {name for name in public if f"``{name}" not in PAGE}
    assert not missing
