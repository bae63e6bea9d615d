"""
The examples of the README and of docs/embedding run.  The table of docs/operating has all options,
and the pages that the README names exist.
"""

from __future__ import annotations

import poplib
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pop3svc.service.tap import Options
from pop3svc.testing import conversation
from tests.support.pages import CHECKOUT, block
from tests.support.running import PATIENCE, environment, freePort


@pytest.mark.smoke
def test_provider() -> None:
    names: dict[str, Any] = {}
    exec(block("README.rst", "class Notes"), names)
    conversation(
        names["Notes"](),
        """
        S: +OK notes ready.
        C: USER anybody
        S: +OK…
        C: PASS wrong
        S: -ERR [AUTH]…
        C: USER anybody
        S: +OK…
        C: PASS open sesame
        S: +OK…
        C: STAT
        S: +OK 2 64
        C: DELE 2
        S: +OK…
        C: RETR 1
        S: +OK…
        S: Subject: milk
        S:
        S: Two bottles.
        S: .
        C: QUIT
        S: +OK Bye, 1 deleted.
        S: (closed)
        """,
    )
    assert list(names["NOTES"]) == ["milk"]
    assert len(block("README.rst", "class Notes").splitlines()) <= 40


def test_embedding(tmp_path: Path) -> None:
    port = freePort()
    program = block("docs/embedding.rst", "task.react(main)").replace("tcp:1110", f"tcp:{port}")
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment(tmp_path)
    ) as running:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                client = poplib.POP3("127.0.0.1", port, PATIENCE)
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline
        client.user("alice")
        client.pass_("secret")
        assert client.retr(1)[1] == [b"Subject: hello", b"", b"It works."]
        client.quit()
        running.kill()


@pytest.mark.smoke
def test_options() -> None:
    """
    The table of docs/operating has each option except those for help, and no unknown option.
    """
    page = (CHECKOUT / "docs" / "operating.rst").read_text()
    table = page[page.index("option  ") : page.index("twistd's own options")]
    shown = set(re.findall(r"``--([a-z0-9-]+)", table))
    known = {name.rstrip("=") for name in Options().longOpt}
    assert {name for name in shown if name not in known and name != "uid"} == set()
    helps = {"help", "version", "help-auth", "help-auth-type", "help-providers", "help-settings"}
    assert known - helps - {"auth"} <= shown


@pytest.mark.smoke
def test_pages() -> None:
    """
    The pages that the README names exist.
    """
    named = re.findall(r"``([\w/]+\.rst)``", (CHECKOUT / "README.rst").read_text())
    assert named
    assert [each for each in named if not (CHECKOUT / each).is_file()] == []
