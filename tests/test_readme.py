"""
What the README shows runs as it stands there.
"""

from __future__ import annotations

import poplib
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from pop3svc.service.tap import Options
from pop3svc.testing import conversation
from tests.running import PATIENCE, environment, freePort

README = (Path(__file__).parent.parent / "README.rst").read_text()


def block(marker: str) -> str:
    """
    @return: the block of Python that holds some text.
    """
    blocks = re.findall(r"\.\. code-block:: python\n\n((?:    .*\n|\n)+)", README)
    (found,) = (each for each in blocks if marker in each)
    return textwrap.dedent(found)


@pytest.mark.smoke
def test_provider() -> None:
    names: dict[str, Any] = {}
    exec(block("class Notes"), names)
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
    assert len(block("class Notes").splitlines()) <= 60


def test_embedding(tmp_path: Path) -> None:
    port = freePort()
    program = block("task.react(main)").replace("tcp:1110", f"tcp:{port}")
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
    Each option stands in the README, and nothing else does.
    """
    table = README[README.index("option  ") : README.index("twistd's own options")]
    shown = set(re.findall(r"``--([a-z-]+)", table))
    known = {name.rstrip("=") for name in Options().longOpt}
    assert {name for name in shown if name not in known and name != "uid"} == set()
    helps = {"help", "version", "help-auth", "help-auth-type", "help-providers", "help-settings"}
    assert known - helps - {"auth"} <= shown
